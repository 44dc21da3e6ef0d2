"""A table as statements need it: its columns with the database's own types, what of it is unique, and ranges of a key."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from runner.documents.database import Database
from runner.errors import NotFound
from runner.points import KeyRange, PointId
from runner.relational import schema
from runner.relational.schema import Described, Native

JSON = ("json", "jsonb")
#: Types of PostgreSQL without an equality.
INCOMPARABLE = ("json", "xml", "point")


class Shape:
    """A table as statements need it: its name, its columns and their types, and what of it is unique."""

    def __init__(self, name: str, described: Described, dialect: sa.Dialect) -> None:
        schema_name, _, bare = name.rpartition(".")
        self.name, self.dialect = name, dialect
        self.types = {column.name: column.type.lower() for column in described.columns}
        self.primary_key = tuple(described.primary_key)
        self.uniques = {frozenset(self.primary_key), *(frozenset(columns) for columns in described.uniques)}
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
        return self.types[column] in JSON

    def read(self, column: str) -> sa.ColumnElement[Any]:
        """A column as it is read: JSON as its text, a UUID as text."""
        plain = self.table.c[column]
        if self.postgresql and self.types[column] in (*JSON, "uuid"):
            return sa.cast(plain, sa.Text).label(column)
        return plain

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
    return Shape(table, described, database.engine.dialect)
