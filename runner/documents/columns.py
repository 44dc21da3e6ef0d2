"""A table of the user's, as rows are taken from it and put back: its columns, and values that pass by unchanged.

What is saved and put back goes from table to table inside the database. Only ids, texts and JSON come out, and ids are
compared as text here, whatever the column is.
"""

# Names in SQL are quoted by columns.quoted(); values are always parameters.
# ruff: noqa: S608

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any, TypeVar

import sqlalchemy as sa

from runner.documents.chunks import stands_for
from runner.documents.database import Database
from runner.errors import NotFound, Permanent
from runner.points import PointId
from runner.spec import suggest

#: Ids in one query.
BATCH = 500
#: What SQLite and PostgreSQL hold in the widest integer.
BIGGEST = 2**63

T = TypeVar("T")
Find = Callable[[Any], PointId | None]


@dataclass(frozen=True)
class Column:
    """A column: how it is written in SQL, what it holds, and where its value comes from when none is given."""

    name: str
    type: str  # for a CAST, without length: a longer value must be refused, not cut; in SQLite as it was declared
    kind: str  # int | uuid | text | json | array | any (SQLite) | other
    nullable: bool
    filled: bool  # by a default, an identity, SQLite's rowid
    generated: bool
    identity: bool
    unique: bool  # by itself

    @property
    def sql(self) -> str:
        return quoted(self.name)


class Relation:
    """A table with its columns, as it stands in this transaction. NotFound. Statements name it t."""

    def __init__(self, database: Database, connection: sa.Connection, name: str) -> None:
        self.connection, self.name = connection, name
        self.postgresql = connection.dialect.name == "postgresql"
        self.schema, _, self.bare = name.rpartition(".")
        self.sql = beside(self.schema, self.bare)
        found = self._postgresql() if self.postgresql else self._sqlite()
        self.columns = {column.name: column for column in found}
        if not self.columns:
            raise NotFound("No such table", f"{name} in {database.shown}")

    def __getitem__(self, name: str) -> Column:
        if name not in self.columns:
            raise NotFound("No such column", f"{self.name}.{name}", suggest(name, list(self.columns)))
        return self.columns[name]

    def _postgresql(self) -> Iterator[Column]:
        rows = run(
            self.connection,
            "SELECT a.attname, format_type(b.oid, -1), b.typname, b.typcategory, e.typcategory, a.attnotnull, "
            "a.atthasdef OR ty.typdefault IS NOT NULL, a.attgenerated, a.attidentity, "
            "EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisunique AND i.indpred IS NULL "
            "AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum) "
            "FROM pg_attribute a JOIN pg_type ty ON ty.oid = a.atttypid "
            "JOIN pg_type b ON b.oid = CASE ty.typtype WHEN 'd' THEN ty.typbasetype ELSE ty.oid END "
            "LEFT JOIN pg_type e ON e.oid = b.typelem "
            "WHERE a.attrelid = to_regclass(:name) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
            name=self.regclass,
        )
        kinds = {"int2": "int", "int4": "int", "int8": "int", "uuid": "uuid", "json": "json", "jsonb": "json"}
        for name, cast, base, category, element, needed, default, generated, identity, unique in rows:
            kind = kinds.get(base, "text" if category == "S" else "other")
            if category == "A" and element in ("S", "E"):
                kind = "array"
            made = bool(generated.strip("\0 "))
            one = bool(identity.strip("\0 "))
            yield Column(name, cast, kind, not needed, bool(default) or one or made, made, one, bool(unique))

    def _sqlite(self) -> Iterator[Column]:
        prefix = f"{quoted(self.schema)}." if self.schema else ""
        rows = list(run(self.connection, f"PRAGMA {prefix}table_xinfo({quoted(self.bare)})"))
        keys = [row for row in rows if row.pk]
        alone = {keys[0].name} if len(keys) == 1 else set()
        for index in list(run(self.connection, f"PRAGMA {prefix}index_list({quoted(self.bare)})")):
            parts = list(run(self.connection, f"PRAGMA {prefix}index_info({quoted(index.name)})"))
            if index.unique and not index.partial and len(parts) == 1 and parts[0].name is not None:
                alone.add(parts[0].name)
        for row in rows:
            if row.hidden == 1:
                continue
            declared = (row.type or "").upper()
            rowid = bool(row.pk) and len(keys) == 1 and declared == "INTEGER"
            made = row.hidden in (2, 3)
            kind = "json" if "JSON" in declared else "int" if "INT" in declared else "any"
            if any(word in declared for word in ("CHAR", "CLOB", "TEXT")):
                kind = "text"
            elif any(word in declared for word in ("BLOB", "REAL", "FLOA", "DOUB")):
                kind = "other"
            filled = row.dflt_value is not None or rowid or made
            yield Column(row.name, row.type or "", kind, not row.notnull, filled, made, rowid, row.name in alone)

    @property
    def regclass(self) -> str:
        """The name as PostgreSQL's to_regclass takes it."""
        return self.sql.replace("\\:", ":")

    # pieces of SQL ----------------------------------------------------------------------------------------------------

    def told(self, column: Column, table: str = "t") -> str:
        """An id as an integer or a text."""
        return self.text(column, table) if self.postgresql and column.kind != "int" else f"{table}.{column.sql}"

    def text(self, column: Column, table: str = "t") -> str:
        """A value as the text that is compared and kept: in SQLite the value itself."""
        return f"CAST({table}.{column.sql} AS text)" if self.postgresql else f"{table}.{column.sql}"

    def among(self, column: Column, parameter: str, table: str = "t") -> str:
        """Whether the value is one of those that `ids` made for this parameter."""
        if self.postgresql:
            cast = "bigint" if column.kind == "int" else column.type
            return f"{table}.{column.sql} = ANY(CAST(CAST(:{parameter} AS text[]) AS {cast}[]))"
        return f"{table}.{column.sql} IN (SELECT value FROM json_each(:{parameter}))"

    def ids(self, column: Column, ids: Iterable[Any]) -> Any:
        """The parameter of `among`; ids that the column can never hold are left out."""
        able = [text for text in (self.canonical(column)(one) for one in ids) if text is not None]
        if self.postgresql:
            return able
        return json.dumps([form for text in able for form in ([text, int(text)] if _is_int(text) else [text])])

    def given(self, column: Column, parameter: str) -> str:
        """A value to be written, refused where it does not fit."""
        return f"CAST(:{parameter} AS {column.type})" if self.postgresql else f":{parameter}"

    def value(self, column: Column, value: Any) -> Any:
        """What `given` takes."""
        return str(value) if value is not None and column.kind in ("text", "uuid") else value

    def canonical(self, column: Column) -> Callable[[PointId], str | None]:
        """From an id to the text it is compared as, None for one that the column cannot hold."""

        def convert(one: PointId) -> str | None:
            text = str(one)
            if "\0" in text or (column.kind == "int" and not _is_int(text)):
                return None
            if column.kind == "uuid" and self.form(column, text) != text:
                return None
            try:
                text.encode()
            except UnicodeEncodeError:
                return None
            return text

        return convert

    def form(self, column: Column, one: PointId) -> str:
        """The text as which the column gives an id back: a UUID has one form only."""
        try:
            return str(uuid.UUID(str(one))) if column.kind == "uuid" else str(one)
        except ValueError:
            return ""

    def finder(self, column: Column, ids: Iterable[PointId]) -> Find:
        """From an id as the column has it to the one of `ids` that it stands for."""
        find = stands_for(ids, self.canonical(column))
        return lambda value: find(str(value))

    @property
    def same(self) -> str:
        """Equal, and NULL is equal to NULL."""
        return "IS NOT DISTINCT FROM" if self.postgresql else "IS"

    @property
    def lock(self) -> str:
        """SQLite is locked as a whole from the first statement on."""
        return " FOR UPDATE OF t" if self.postgresql else ""

    @property
    def written(self) -> list[Column]:
        """The columns whose values are given; the others the database makes itself."""
        return [column for column in self.columns.values() if not column.generated]


def run(connection: sa.Connection, statement: str, rows: Sequence[dict[str, Any]] | None = None, **values: Any) -> Any:
    """Carry out one statement; with `rows`, once for each."""
    if rows is not None:
        return connection.execute(sa.text(statement), list(rows)) if rows else None
    return connection.execute(sa.text(statement), values)


def quoted(name: str) -> str:
    """A name in SQL."""
    return '"' + name.replace('"', '""').replace(":", "\\:") + '"'


def beside(schema: str, name: str) -> str:
    """The name of a table in this schema, in SQL."""
    return f"{quoted(schema)}.{quoted(name)}" if schema else quoted(name)


def listed(columns: Iterable[Column], table: str = "") -> str:
    """Names of columns in SQL."""
    return ", ".join(f"{table}.{column.sql}" if table else column.sql for column in columns)


def plain(value: Any, place: str) -> PointId:
    """An id as a query gave it. Permanent when it is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, Decimal) and value.is_finite() and value == int(value):
        return int(value)
    raise Permanent("This is no id", f"{place}: {value!r}", "An id is an integer, a text or a UUID")


def batches(items: Collection[T], size: int = BATCH) -> Iterator[list[T]]:
    """The items, so many at a time."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def _is_int(text: str) -> bool:
    """Whether it is how an integer of 64 bits is written: "007" is another id than 7."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 19:
        return False
    return str(int(text)) == text and -BIGGEST <= int(text) < BIGGEST
