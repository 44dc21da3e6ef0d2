"""What a table of PostgreSQL looks like: its columns and constraints, who points at it, and what this login may do to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from runner.points import Model
from runner.spec import digest

Right = Literal["select", "insert", "delete", "truncate"]


class Column(Model):
    """A column as `format_type` names its type. `generated`: the server computes it from `default`, so no file has it.
    `number`: its place in the catalog, which no other column of the table ever gets again. `collation`: as written in SQL,
    where it is not that of the type. `counting`: options of the sequence of an identity column, as written in SQL."""

    name: str
    type: str
    not_null: bool = False
    default: str | None = None
    generated: bool = False
    identity: Literal["", "always", "by default"] = ""
    number: int = 0
    collation: str = ""
    counting: str = ""


class Constraint(Model):
    """A constraint as `pg_get_constraintdef` writes it. `references`: the schema.table of a foreign key."""

    name: str
    kind: Literal["primary key", "unique", "foreign key", "check", "exclusion"]
    definition: str
    columns: tuple[str, ...] = ()
    references: str = ""

    @property
    def unchecked(self) -> bool:
        """Whether rows that break it may be there (NOT VALID)."""
        return self.definition.endswith(" NOT VALID")


class Reference(Model):
    """A foreign key of another table that points here. Emptying this table would cascade to that one, or is refused."""

    table: str  # schema.table
    constraint: str
    on_delete: Literal["no action", "restrict", "cascade", "set null", "set default"]
    rows: int | None = None  # of that table


class Shape(Model):
    """A table that is there."""

    schema_name: str
    name: str
    oid: int
    database: int  # oid
    columns: tuple[Column, ...]
    constraints: tuple[Constraint, ...] = ()
    indexes: tuple[str, ...] = ()  # as `pg_get_indexdef` writes them, without those of constraints
    referenced_by: tuple[Reference, ...] = ()
    relation: Literal["table", "partitioned table", "other"] = "table"  # other: a view, a parent of other tables …
    hidden_rows: bool = False  # row level security applies to this login
    unlogged: bool = False

    def fingerprint(self) -> str:
        """Names what it looks like: its columns and constraints, not what may change without anybody touching it."""
        return digest(self.looks)

    @property
    def looks(self) -> dict[str, Any]:
        """Its columns and constraints."""
        return self.model_dump(mode="json", include={"schema_name", "name", "columns", "constraints", "relation"})

    @property
    def qualified(self) -> str:
        """schema.table"""
        return f"{self.schema_name}.{self.name}"

    @property
    def primary_key(self) -> tuple[str, ...]:
        """Its columns; () when there is none."""
        return next((item.columns for item in self.constraints if item.kind == "primary key"), ())

    @property
    def copied(self) -> tuple[str, ...]:
        """Columns that a file of this table has, in order."""
        return tuple(item.name for item in self.columns if not item.generated)

    @property
    def sql(self) -> str:
        """The table as written in SQL."""
        return f"{quoted(self.schema_name)}.{quoted(self.name)}"

    @property
    def columns_sql(self) -> str:
        """`copied` as written in SQL, with commas between."""
        return ", ".join(quoted(name) for name in self.copied)


@dataclass(frozen=True)
class Described:
    """A table and what this login finds there. `rows` and `csv_bytes` (an estimate, header included) are None where it may
    not read all of it."""

    shape: Shape
    rows: int | None
    rights: frozenset[Right]
    csv_bytes: int | None


def quoted(name: str) -> str:
    """A name as SQL, in double quotes."""
    return '"' + name.replace('"', '""') + '"'
