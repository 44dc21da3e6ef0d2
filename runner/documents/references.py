"""Foreign keys of other tables onto the documents and their chunks: what would go with a row, or keeps it from going."""

# Names in SQL are quoted by columns.quoted(); values are always parameters.
# ruff: noqa: S608

from __future__ import annotations

from typing import Any, NamedTuple

from runner.documents.columns import Relation, quoted, run
from runner.documents.database import Database
from runner.documents.undo import sides
from runner.plan.batch import DocumentRows


class _Reference(NamedTuple):
    child: str
    columns: list[str]
    parents: list[str]
    action: str
    own: bool  # of the chunks table


def referring(database: Database, rows: DocumentRows) -> list[str]:
    """A sentence for each foreign key onto the documents or the chunks, other than that of the chunks onto the documents:
    what becomes of the rows that refer to a row when it is deleted."""
    told = list[str]()
    with database.transaction() as connection:
        tables = [side.table for side in sides(database, connection, rows, None).both]
        for table, noun in zip(tables, ("document", "chunk"), strict=False):
            find = _postgresql if table.postgresql else _sqlite
            skipped = noun == "document" and len(tables) > 1
            told += [_sentence(one, table.name, noun) for one in find(table, tables[-1]) if not (one.own and skipped)]
    return sorted(told)


def _sentence(one: _Reference, table: str, noun: str) -> str:
    columns, parents = ", ".join(one.columns), ", ".join(one.parents)
    known = f"{one.child}.{columns} refers to {table}.{parents} (ON DELETE {one.action})"
    if one.action == "CASCADE":
        return f"{known}: its rows would be deleted, too, and not come back"
    if one.action.startswith("SET"):
        return f"{known}: its values would be lost, and not come back"
    return f"{known}: a {noun} that is named there cannot be deleted"


def _postgresql(table: Relation, chunks: Relation) -> list[_Reference]:
    actions = {"a": "NO ACTION", "r": "RESTRICT", "c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}

    def names(side: str, key: str) -> str:
        return (
            f"ARRAY(SELECT CAST(a.attname AS text) FROM unnest(c.{key}) WITH ORDINALITY AS k(number, n) "
            f"JOIN pg_attribute a ON a.attrelid = c.{side} AND a.attnum = k.number ORDER BY k.n)"
        )

    query = (
        f"SELECT CAST(CAST(c.conrelid AS regclass) AS text), {names('conrelid', 'conkey')}, "
        f"{names('confrelid', 'confkey')}, CAST(c.confdeltype AS text), c.conrelid = to_regclass(:chunks) "
        "FROM pg_constraint c WHERE c.contype = 'f' AND c.confrelid = to_regclass(:parent) AND c.conparentid = 0"
    )
    found = run(table.connection, query, chunks=chunks.regclass, parent=table.regclass)
    return [_Reference(child, columns, parents, actions[action], own) for child, columns, parents, action, own in found]


def _sqlite(table: Relation, chunks: Relation) -> list[_Reference]:
    found = []
    described = run(table.connection, f"PRAGMA table_info({quoted(table.bare)})").mappings()
    key = next((row["name"] for row in described if row["pk"]), "rowid")
    children = [row[0] for row in run(table.connection, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    for child in children:
        keys: dict[int, list[Any]] = {}
        for row in list(run(table.connection, f"PRAGMA foreign_key_list({quoted(child)})")):
            if row.table.lower() == table.bare.lower():
                keys.setdefault(row.id, []).append(row)
        for parts in keys.values():
            columns = [row[3] for row in parts]
            parents = [row[4] if row[4] is not None else key for row in parts]
            own = child.lower() == chunks.bare.lower()
            found.append(_Reference(child, columns, parents, parts[0].on_delete, own))
    return found
