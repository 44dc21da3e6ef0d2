"""Migrations inside of a relational database: the record of what was done, tables, columns, rows and SQL.

Everything that changes something goes through `record.working`. PostgreSQL and SQLite are tested; other dialects of
SQLAlchemy take the general way beside what is written for these two.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

#: Dialects that commit with every statement that changes a schema: nothing there is undone by a rollback.
COMMITS_DDL = ("mysql", "mariadb", "oracle")


def quoted(dialect: sa.Dialect, name: str) -> str:
    """A table, SCHEMA.TABLE understood, as it is written in SQL."""
    schema, _, bare = name.rpartition(".")
    return f"{column(dialect, schema)}.{column(dialect, bare)}" if schema else column(dialect, bare)


def column(dialect: sa.Dialect, name: str) -> str:
    """A column as it is written in SQL, for `execute`, or as a value of a parameter: its % stand once, whatever the client is."""
    text = dialect.identifier_preparer.quote_identifier(name)
    return text.replace("%%", "%") if dialect.paramstyle in ("format", "pyformat") else text


def execute(connection: sa.Connection, sql: str) -> sa.CursorResult[Any]:
    """Run one statement as it stands: the client looks for no parameters in it."""
    return connection.exec_driver_sql(sql, execution_options={"no_parameters": True})


def number(connection: sa.Connection, sql: str) -> int:
    """The one number that a query gives."""
    return int(execute(connection, sql).scalar_one())
