"""Undo tables of migrations whose rollback has expired: how much is in them, and how they go."""

from __future__ import annotations

from runner.documents.database import Database
from runner.relational import execute, quoted, schema


def undo_rows(database: Database, name: str) -> int | None:
    """Rows of an undo table; None when there is none."""
    described = schema.describe(database, name)
    return described.rows if described is not None else None


def forget(database: Database, name: str) -> None:
    """Drop an undo table. Harmless when repeated."""
    with database.transaction() as connection:
        execute(connection, f"DROP TABLE IF EXISTS {quoted(database.engine.dialect, name)}")
