"""A table as statements need it: its columns with the database's own types, what of it is unique, and ranges of a key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from runner.documents.database import Database
from runner.errors import NotFound, Permanent
from runner.points import KeyRange, PointId
from runner.relational import quoted, schema
from runner.relational.schema import Described, Native

JSON = ("json", "jsonb")
#: Types of PostgreSQL without an equality; nor have arrays of them.
INCOMPARABLE = ("json", "xml", "point")
#: Types of PostgreSQL that its client gives as they are. Others are read as their text, which gives the same value again:
#: as Python's, some would be another (infinity, years before Christ, intervals, the bounds of arrays).
AS_THEY_ARE = frozenset(
    [
        "boolean", "smallint", "integer", "bigint", "real", "double precision", "numeric", "text", "character varying",
        "character", '"char"', "name", "bytea", "oid",
    ]
)  # fmt: skip
#: The type below a domain.
_DOMAINS = """
WITH RECURSIVE below(name, type, kind) AS (
  SELECT a.attname, t.typbasetype, t.typtypmod FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
  WHERE a.attrelid = to_regclass(%(name)s) AND a.attnum > 0 AND t.typtype = 'd'
  UNION ALL SELECT name, t.typbasetype, t.typtypmod FROM below JOIN pg_type t ON t.oid = type AND t.typtype = 'd')
SELECT name, format_type(type, kind) FROM below JOIN pg_type t ON t.oid = type WHERE t.typtype <> 'd'
"""
#: What ON CONFLICT can be told: no index of some rows, or of expressions, or that is only looked at in the end.
_UNIQUE = """
SELECT array(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(n, at)
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.n WHERE k.at <= i.indnkeyatts)
FROM pg_index i WHERE i.indrelid = to_regclass(%(name)s)
AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
"""


class Shape:
    """A table as statements need it: its name, its columns and their types, and what of it is unique."""

    def __init__(self, connection: sa.Connection, name: str, described: Described) -> None:
        """On a connection that is open, which is asked what the description does not say."""
        schema_name, _, bare = name.rpartition(".")
        self.name, self.dialect = name, connection.dialect
        self.types = {column.name: column.type.lower() for column in described.columns}
        #: the same without domains
        self.base = self.types | dict(_asked(connection, _DOMAINS, name))
        self.primary_key = tuple(described.primary_key)
        self.uniques = _uniques(connection, name, described)
        self.table = sa.table(bare, *(sa.column(column) for column in self.types), schema=schema_name or None)

    @property
    def postgresql(self) -> bool:
        return self.dialect.name == "postgresql"

    @property
    def quoted(self) -> str:
        """Its name, for SQL that the client looks through for %s."""
        return ".".join(self.quote(part) for part in self.name.rpartition(".")[::2] if part)

    def quote(self, column: str) -> str:
        return self.dialect.identifier_preparer.quote_identifier(column)

    def is_json(self, column: str) -> bool:
        return self.base[column] in JSON

    def is_comparable(self, column: str) -> bool:
        """Whether the database has an equality for it. Elsewhere the texts of values are compared."""
        return self.base[column].rstrip("[]") not in INCOMPARABLE

    def is_text(self, column: str) -> bool:
        """Whether text is kept there as it is: char(n) fills it up, and a domain may refuse it."""
        return not self.postgresql or self.types[column].startswith(("text", "character varying", "citext"))

    def as_text(self, column: str) -> bool:
        """Whether it is read as the database's own text."""
        return self.postgresql and self.base[column].partition("(")[0].strip() not in AS_THEY_ARE

    def read(self, column: str) -> sa.ColumnElement[Any]:
        """A column as it is read: as a value of Python, or as text."""
        plain = self.table.c[column]
        return sa.cast(plain, sa.Text).label(column) if self.as_text(column) else plain

    def read_sql(self, at: str, column: str) -> str:
        """The same in SQL of PostgreSQL, of the table `at`."""
        return f"{at}.{self.quote(column)}" + ("::text" if self.as_text(column) else "")

    def bound(self, column: str, value: Any) -> sa.ColumnElement[Any]:
        """A value to compare a column with."""
        if self.postgresql:
            return sa.cast(sa.literal(value), Native(self.types[column]))
        return sa.literal(value)

    def within(self, key: str, keys: KeyRange, after: PointId | None, last: PointId | None = None) -> list[Any]:
        """Conditions: key in the range, behind `after` and not behind `last`."""
        column, found = self.table.c[key], []
        if after is not None:
            found.append(column > self.bound(key, after))
        elif keys.lo is not None:
            found.append(column >= self.bound(key, keys.lo))
        if keys.hi is not None:
            found.append(column < self.bound(key, keys.hi))
        if last is not None:
            found.append(column <= self.bound(key, last))
        return found


def shape(database: Database, table: str) -> Shape:
    """The table as it stands. NotFound."""
    with database.reading() as connection:
        described = schema.look(connection, table, count=False)
        if described is None:
            raise NotFound("No such table", f"{table} in {database.shown}")
        return Shape(connection, table, described)


def unique_columns(target: Shape, wanted: Sequence[str]) -> tuple[str, ...]:
    """The columns that tell the rows of a table apart: `wanted`, or its primary key. Permanent when the database does not see
    to it that they do."""
    found = tuple(wanted) or target.primary_key
    if not found or frozenset(found) not in target.uniques:
        raise Permanent(
            "Rows of a table cannot be told apart",
            f"{target.name}: {', '.join(found)} is neither its primary key nor unique" if found else f"{target.name}: no primary key",
            "Give `key`: columns that are unique together, by a constraint or an index of all rows",
        )  # fmt: skip
    return found


def _uniques(connection: sa.Connection, name: str, described: Described) -> set[frozenset[str]]:
    if connection.dialect.name == "postgresql":
        return {frozenset(columns) for (columns,) in _asked(connection, _UNIQUE, name)}
    found = {frozenset(described.primary_key), *(frozenset(columns) for columns in described.uniques)}
    partial = _partial(connection, name) if connection.dialect.name == "sqlite" else set[str]()
    found |= {frozenset(one.columns) for one in described.indexes if one.unique and one.name not in partial}
    return {columns for columns in found if columns and "" not in columns}


def _partial(connection: sa.Connection, name: str) -> set[str]:
    """Indexes of SQLite that are of some rows only."""
    schema_name, _, bare = name.rpartition(".")
    quote = connection.dialect.identifier_preparer.quote_identifier
    pragma = f"PRAGMA {quote(schema_name or 'main')}.index_list({quote(bare)})"
    return {str(row["name"]) for row in connection.exec_driver_sql(pragma).mappings() if row["partial"]}


def _asked(connection: sa.Connection, query: str, name: str) -> list[Any]:
    """Rows of what PostgreSQL knows of a table; none of other databases."""
    if connection.dialect.name != "postgresql":
        return []
    return [tuple(row) for row in connection.exec_driver_sql(query, {"name": quoted(connection.dialect, name)})]
