"""Rows of a table made from rows of another: which expressions, which rules, and what a row becomes.

Expressions are Jinja2's, in its sandbox, without braces. They see `row`, the names of `each` and `let`, the filter `json`
and the test `json`. What they give depends on the row alone: no clock, no chance, no database.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from runner.spec import SpecModel

Scalar = bool | int | float | str | None
Word = Annotated[str, Field(min_length=1)]
#: What becomes of a row, or of one item of it, for which a rule does not hold.
Otherwise = Literal["fail", "skip", "ignore"]
#: Types of columns that every database has, and what else can be said of some.
TYPE = r"^(text|string\([1-9]\d{0,4}\)|integer|bigint|boolean|float|decimal\([1-9]\d?,\d\d?\)|date|timestamp|uuid|json|bytes)$"

#: Words that mean something else in an expression.
_TAKEN = frozenset(
    ["row", "self", "and", "or", "not", "in", "is", "if", "else", "true", "false", "none", "True", "False", "None"]
)


class Expectation(SpecModel):
    """A query that has one answer, and which it has to be. It is run in a transaction that can only read."""

    name: Word = Field(description="What is asked, in a sentence.", examples=["every knowledge base has a user"])
    query: Word = Field(description="A SELECT with one row of one column.", examples=["SELECT count(*) FROM users"])
    expect: Scalar = Field(0, description="The answer that is wanted.")
    same_as: Word | None = Field(None, description="Instead of `expect`: a query with the same answer.")

    @model_validator(mode="after")
    def _one(self) -> Expectation:
        if self.same_as is not None and self.expect != 0:  # a plan file has the default, too
            raise ValueError("give one of expect and same_as")
        return self


class ColumnModel(SpecModel):
    """A column of a declared table."""

    name: Word
    type: str | None = Field(
        None, pattern=TYPE,
        description="text, string(LENGTH), integer, bigint, boolean, float, decimal(DIGITS,PLACES), date, timestamp (with time zone), uuid, json, bytes.",
    )  # fmt: skip
    sql_type: Word | None = Field(None, description="Instead of `type`: the type in the words of the database.")
    nullable: bool = True
    primary_key: bool = False
    unique: bool = False
    default: Scalar = Field(None, description="Value of rows that do not say it.")
    default_sql: Word | None = Field(
        None, description="The same as an expression of the database.", examples=["CURRENT_TIMESTAMP"]
    )
    references: str | None = Field(
        None, pattern=r"^.+\.[^.]+$", description="TABLE.COLUMN that has to hold the value.", examples=["users.id"]
    )
    on_delete: Literal["restrict", "cascade", "set null"] = Field(
        "restrict", description="What happens to a row when the one it references is deleted."
    )

    @model_validator(mode="after")
    def _one(self) -> ColumnModel:
        if (self.type is None) == (self.sql_type is None):
            raise ValueError("give one of type and sql_type")
        if self.default is not None and self.default_sql is not None:
            raise ValueError("give one of default and default_sql")
        return self


class TableModel(SpecModel):
    """A table that is made."""

    name: Word = Field(description="Its name; SCHEMA.TABLE where there are schemas.")
    columns: tuple[ColumnModel, ...] = Field(min_length=1)
    unique: tuple[tuple[Word, ...], ...] = Field((), description="Columns that are unique together.")
    indexes: tuple[tuple[Word, ...], ...] = Field((), description="Columns of further indexes.")

    @model_validator(mode="after")
    def _known(self) -> TableModel:
        names = [column.name for column in self.columns]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"columns that stand here twice: {', '.join(doubled)}")
        named = {name for some in (*self.unique, *self.indexes) for name in some}
        if unknown := sorted(named - set(names)):
            raise ValueError(f"no such columns: {', '.join(unknown)}")
        if not any(column.primary_key for column in self.columns):
            raise ValueError("give it a primary key: without one no row can be found again")
        return self

    @property
    def primary_key(self) -> tuple[str, ...]:
        """Its columns."""
        return tuple(column.name for column in self.columns if column.primary_key)


class Rule(SpecModel):
    """What has to hold for a row, or for one item of it."""

    rule: Word = Field(description="An expression that is true where all is well.")
    message: Word = Field(description="What is wrong where it is not.", examples=["no API key"])
    otherwise: Otherwise = Field(
        "fail",
        description="fail: nothing is applied. skip: it is left out, and listed. ignore: it is not meant, and counted.",
    )


class Encrypted(SpecModel):
    """A value that is stored encrypted."""

    encrypt: Word = Field(description="An expression that gives text.")
    key: Word = Field(description="A key of the spec's `keys`.")


class Identity(SpecModel):
    """An id that is always the same for the same parts (a UUID): what is equal becomes one row."""

    uuid_from: tuple[Word, ...] = Field(min_length=1, description="Expressions.")
    key: Word | None = Field(
        None, description="A key of the spec's `keys`, where a part is a secret: nobody can guess it from the id."
    )


Value = Encrypted | Identity | str


class Into(SpecModel):
    """A row of a table that is made of each row, or of each item of it."""

    table: Word
    key: tuple[Word, ...] = Field(
        (), description="Columns that tell its rows apart; default: its primary key. Rows with equal keys are one row."
    )
    values: dict[str, Value] = Field(
        min_length=1, description="COLUMN: expression, or {encrypt, key}, or {uuid_from, key}."
    )


class RowMap(SpecModel):
    """Rows of tables, made from the rows of one."""

    from_: Word = Field(alias="from", description="The table whose rows are read.")
    key: Word | None = Field(
        None, description="A column of it that is unique and never NULL, a number or text; default: its primary key."
    )
    where: Word | None = Field(None, description="SQL condition: other rows are not read.")
    each: dict[str, tuple[Scalar, ...] | str] = Field(
        {}, max_length=1, description="NAME: values, or an expression that gives a list: each row is done for each of them."
    )  # fmt: skip
    let: dict[str, Word] = Field({}, description="NAME: expression, for the expressions below.")
    rules: tuple[Rule, ...] = Field((), description="Asked in this order; the first that does not hold decides.")
    malformed: Literal["fail", "skip"] = Field(
        "fail", description="What becomes of a row for which an expression cannot be computed."
    )
    into: tuple[Into, ...] = Field(min_length=1)
    live: bool = Field(False, description="Rows may come and go between plan and apply: their number is not compared.")
    batch_size: int = Field(1000, ge=1, le=100_000, description="Rows read at once, written in one transaction.")

    @field_validator("each", "let")
    @classmethod
    def _names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name in _TAKEN:
                raise ValueError(f"{name!r} can be no name in an expression")
        return value
