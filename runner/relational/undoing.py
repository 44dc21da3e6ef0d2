"""Removing rows that were made in tables from before a migration, by the undo table of their keys.

A row that somebody has changed since is not one that was made any more: it stays, and is counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from runner.relational.shape import Shape
from runner.relational.written import digest, digested, fetch, literal, name_in, undo_table

#: Rows that are looked at in one go, for a database that has to be asked row by row.
PAGE = 1000


@dataclass(frozen=True)
class Removed:
    """Rows that went, and rows that were changed since and were left alone."""

    rows: int = 0
    changed_since: int = 0


def remove(connection: sa.Connection, targets: Sequence[tuple[Shape, Sequence[str]]], kept: str) -> Removed:
    """Delete the rows that the undo table names, of each table by its unique columns, in this order."""
    rows = changed = 0
    for target, unique in targets:
        one = (_remove if target.postgresql else _remove_each)(connection, target, unique, kept)
        rows, changed = rows + one.rows, changed + one.changed_since
    return Removed(rows, changed)


def _remove(connection: sa.Connection, target: Shape, unique: Sequence[str], kept: str) -> Removed:
    columns = ", ".join(f"{target.quote(name)} {target.types[name]}" for name in unique)
    undo = name_in(target, kept)
    named = (
        f"(SELECT u.row_digest AS vecrun_digest, u.row_columns AS vecrun_columns, r.* FROM {undo} u, "  # noqa: S608
        f"json_to_record(u.row_key::json) AS r({columns}) WHERE u.made_in = {literal(target.name)}) k"
    )
    same = " AND ".join(f"t.{target.quote(name)} = k.{target.quote(name)}" for name in unique)
    had = f"SELECT DISTINCT row_columns FROM {undo} WHERE made_in = {literal(target.name)}"  # noqa: S608
    rows = 0
    for (text,) in connection.exec_driver_sql(had, {}).all():
        made = json.loads(text)
        if set(made) <= set(
            target.types
        ):  # columns that came later say nothing; without one that went, nobody can tell
            delete = f"DELETE FROM {target.quoted} t USING {named} WHERE {same} "  # noqa: S608
            delete += f"AND k.vecrun_columns = {literal(text)} AND {digested(target, 't', made)} = k.vecrun_digest"
            rows += connection.exec_driver_sql(delete, {}).rowcount
    left = connection.exec_driver_sql(f"SELECT count(*) FROM {target.quoted} t, {named} WHERE {same}", {}).scalar_one()  # noqa: S608
    return Removed(rows, left)


def _remove_each(connection: sa.Connection, target: Shape, unique: Sequence[str], kept: str) -> Removed:
    undo, rows, changed = undo_table(kept), 0, 0
    named = sa.select(undo.c.row_key, undo.c.row_columns, undo.c.row_digest).where(undo.c.made_in == target.name)
    pages = connection.execute(named.order_by(undo.c.row_key)).partitions(PAGE)
    delete = sa.delete(target.table).where(*(target.table.c[name] == sa.bindparam(f"key_{name}") for name in unique))
    for page in pages:
        keys = [json.loads(row.row_key) for row in page]
        held = fetch(connection, target, unique, keys, [*target.types])
        for key, row, one in zip(keys, page, held, strict=True):
            if one is not None and _digest(one, json.loads(row.row_columns)) == row.row_digest:
                connection.execute(delete, {f"key_{name}": value for name, value in key.items()})
                rows += 1
            elif one is not None:
                changed += 1
    return Removed(rows, changed)


def _digest(row: dict[str, Any], columns: Sequence[str]) -> str | None:
    """Of the columns that the row had when it was made; None without one of them."""
    return digest({name: row[name] for name in columns}) if set(columns) <= set(row) else None
