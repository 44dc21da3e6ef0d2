"""The user's triggers on a table, kept quiet while vecrun puts back what was there: they would write other columns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import sqlalchemy as sa

from runner.relational import column, execute, quoted

_ENABLED = {"O": "ENABLE TRIGGER", "R": "ENABLE REPLICA TRIGGER", "A": "ENABLE ALWAYS TRIGGER"}


@contextlib.contextmanager
def without_triggers(connection: sa.Connection, table: str) -> Iterator[None]:
    """In a transaction that is undone when the block fails. Other databases than PostgreSQL and SQLite run theirs."""
    dialect = connection.dialect
    if dialect.name == "postgresql":
        query = (
            "SELECT tgname, tgenabled::text FROM pg_trigger WHERE tgrelid = to_regclass(%(table)s) "
            "AND NOT tgisinternal AND tgenabled <> 'D'"
        )
        found = connection.exec_driver_sql(query, {"table": quoted(dialect, table)}).all()
        for name, _ in found:
            execute(connection, f"ALTER TABLE {quoted(dialect, table)} DISABLE TRIGGER {column(dialect, name)}")
        yield
        if found:  # a foreign key that is checked at the end would be in the way of ALTER TABLE
            execute(connection, "SET CONSTRAINTS ALL IMMEDIATE")
        for name, enabled in found:
            execute(connection, f"ALTER TABLE {quoted(dialect, table)} {_ENABLED[enabled]} {column(dialect, name)}")
    elif dialect.name == "sqlite":
        schema, _, bare = table.rpartition(".")
        query = (
            f"SELECT name, sql FROM {column(dialect, schema or 'main')}.sqlite_master "  # noqa: S608
            "WHERE type = 'trigger' AND lower(tbl_name) = lower(?) ORDER BY rowid"
        )
        triggers = connection.exec_driver_sql(query, (bare,)).all()
        for name, _ in triggers:
            execute(connection, f"DROP TRIGGER {quoted(dialect, f'{schema}.{name}' if schema else name)}")
        yield
        for _, sql in triggers:
            execute(connection, sql)
    else:
        yield
