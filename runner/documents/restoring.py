"""Putting back what a run did to the rows of documents: rows that are out come in, changed columns get their old value.

What somebody changed since is left alone. What a trigger of the user's tables writes into a row when it comes in or is
changed (a time of change, mostly) stands there afterwards, as after any other statement.
"""

# Names in SQL are quoted by columns.quoted(); values are always parameters.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runner.documents.columns import Column, batches, listed, run
from runner.documents.database import Database
from runner.documents.editing import dumps, present, write
from runner.documents.positions import Move, move
from runner.documents.reading import as_json
from runner.documents.undo import DID, Side, Sides, made_of, sides, there
from runner.edit import Edit
from runner.errors import Permanent
from runner.plan.batch import DocumentRows, UndoTables
from runner.points import PointId


@dataclass(frozen=True)
class Restored:
    """Rows that are as they were, by table, and rows of both that somebody changed since and that were left alone."""

    documents: int = 0
    chunks: int = 0
    changed_since: int = 0


def restore(
    database: Database, rows: DocumentRows, undo: UndoTables, ids: Sequence[PointId], edit: Edit | None = None
) -> dict[str, Restored]:
    """Put back what the run took out, changed or swapped, and remove the rows it made, in one transaction. str(id) -> what
    became of its rows; the same when it is repeated.

    With `edit` a value that somebody has changed since loses what the run did, and keeps what they did.
    """
    counts = {str(one): [0, 0, 0] for one in ids}
    with database.transaction() as connection:
        if there(database, connection, rows, undo):
            both = sides(database, connection, rows, undo)
            for some in batches(ids):
                both.lock(some)
                _columns(both.documents, some, edit)
                _rows(both.documents, some)
                if both.chunks is not None:
                    _remove_made(both, both.chunks, rows, some)
                    _columns(both.chunks, some, edit)
                    _rows(both.chunks, some)
                _count(both, some, counts)
    return {one: Restored(*found) for one, found in counts.items()}


def _rows(side: Side, ids: Sequence[PointId]) -> None:
    """Rows that are out come in again; one that somebody made in its place stays."""
    table, key, given = side.table, side.key.sql, {"documents": side.table.ids(side.document, ids)}
    out = f"{side.of_documents('u')} AND u.{DID} IN ('out', 'swapped')"
    again = f"EXISTS (SELECT 1 FROM {table.sql} AS t WHERE t.{key} = u.{key})"
    run(table.connection, f"UPDATE {side.undo} AS u SET {DID} = 'left' WHERE {out} AND {again}", **given)
    overriding = "OVERRIDING SYSTEM VALUE " if table.postgresql else ""
    run(
        table.connection,
        f"INSERT INTO {table.sql} ({listed(table.written)}) {overriding}"
        f"SELECT {listed(table.written, 'u')} FROM {side.undo} AS u WHERE {out}",
        **given,
    )
    query = f"SELECT count(*) FROM {side.undo} AS u WHERE {out} AND NOT {again}"
    if lacking := run(table.connection, query, **given).scalar_one():
        raise Permanent(
            "Rows cannot be put back", f"{table.name}: {lacking:,} are not there", "A trigger or a rule drops them"
        )
    run(table.connection, f"UPDATE {side.undo} AS u SET {DID} = 'back' WHERE {out}", **given)


def _columns(side: Side, ids: Sequence[PointId], edit: Edit | None) -> None:
    """Columns that the run changed get their old value back where they still have the one that it wrote."""
    table, key, given = side.table, side.key.sql, {"documents": side.table.ids(side.document, ids)}
    changed = f"{side.of_documents('u')} AND u.{DID} = 'changed'"
    left: list[Any] = []
    for role, column in side.roles.items():
        left += _positions(side, column, changed, given) if role == "position" else []
        left += _column(side, role, column, changed, given, edit) if role != "position" else []
    for some in batches(left):
        query = f"UPDATE {side.undo} AS u SET {DID} = 'left' WHERE {table.among(side.key, 'keys', 'u')}"
        run(table.connection, query, keys=table.ids(side.key, some))
    gone = f"NOT EXISTS (SELECT 1 FROM {table.sql} AS t WHERE t.{key} = u.{key})"
    run(table.connection, f"UPDATE {side.undo} AS u SET {DID} = 'left' WHERE {changed} AND {gone}", **given)
    run(table.connection, f"UPDATE {side.undo} AS u SET {DID} = 'back' WHERE {changed}", **given)


def _column(
    side: Side, role: str, column: Column, changed: str, given: dict[str, Any], edit: Edit | None
) -> list[Any]:  # fmt: skip
    """Keys of the rows that keep what somebody made of them."""
    table, key = side.table, side.key.sql
    joined = f"FROM {table.sql} AS t JOIN {side.undo} AS u ON t.{key} = u.{key} WHERE {changed}"
    ours = f"{table.text(column)} {table.same} u.vecrun_{role}"
    old = f"{table.text(column)} {table.same} {table.text(column, 'u')}"
    query = (
        f"SELECT {table.told(side.key)}, {as_json(table, column, 'u')}, {as_json(table, column)} {joined} "
        f"AND u.vecrun_{role} IS NOT NULL AND NOT ({ours}) AND NOT ({old})"
    )
    others = run(table.connection, query, **given).all()
    back = f"UPDATE {table.sql} AS t SET {column.sql} = u.{column.sql} FROM {side.undo} AS u WHERE t.{key} = u.{key}"
    run(table.connection, f"{back} AND {changed} AND u.vecrun_{role} IS NOT NULL AND {ours}", **given)
    whole, parts, left = list[Any](), list[tuple[Any, list[str | None]]](), list[Any]()
    for row_key, before, now in others:
        value, moved = _without(role, before, now, edit)
        if moved:
            left.append(row_key)
        if value is None:
            continue
        if dumps(value) == dumps(present(role, before, "")):
            whole.append(row_key)
        else:
            parts.append((row_key, [dumps(value)]))
    for some in batches(whole):
        run(table.connection, f"{back} AND {table.among(side.key, 'keys')}", keys=table.ids(side.key, some))
    for few in batches(parts):
        write(side, [column], few)
    return left


def _without(role: str, before: Any, now: Any, edit: Edit | None) -> tuple[Any, bool]:
    """(the value without the edit, None to leave it; whether somebody changed the same place)."""
    if edit is None or role == "text":
        return None, True
    try:
        old, held = present(role, before, ""), present(role, now, "")
        return edit.metadata_back(old, held) if role == "metadata" else (edit.tags_back(old, held), False)
    except (Permanent, ValueError):
        return None, True


def _positions(side: Side, column: Column, changed: str, given: dict[str, Any]) -> list[Any]:
    table, key = side.table, side.key.sql
    query = (
        f"SELECT {table.told(side.document)}, {table.told(side.key)}, t.{column.sql}, u.{column.sql}, u.vecrun_position "
        f"FROM {table.sql} AS t JOIN {side.undo} AS u ON t.{key} = u.{key} WHERE {changed} "
        "AND u.vecrun_position IS NOT NULL"
    )
    moves, left = list[Move](), list[Any]()
    for document, row_key, now, before, ours in run(table.connection, query, **given):
        if now is not None and str(now) == str(ours):
            moves.append(Move(str(document), row_key, now, before))
        elif now != before:
            left.append(row_key)
    move(side, moves)
    return left


def _remove_made(both: Sides, side: Side, rows: DocumentRows, ids: Sequence[PointId]) -> None:
    """Rows that the run made are deleted; one that somebody gave to another point since is theirs."""
    assert rows.chunks is not None
    table, key, given = side.table, side.key.sql, {"documents": side.table.ids(side.document, ids)}
    vector = table[rows.chunks.vector_id_column]
    came = f"{made_of(side)} AND m.{DID} = 'in'"
    other = f"EXISTS (SELECT 1 FROM {table.sql} AS t WHERE t.{key} = m.row_id AND NOT (t.{vector.sql} {table.same} m.vector_id))"
    run(table.connection, f"UPDATE {both.made} AS m SET {DID} = 'left' WHERE {came} AND {other}", **given)
    run(
        table.connection,
        f"DELETE FROM {table.sql} AS t WHERE {side.of_documents()} "
        f"AND t.{key} IN (SELECT m.row_id FROM {both.made} AS m WHERE {came})",
        **given,
    )
    run(
        table.connection,
        f"UPDATE {both.made} AS m SET {DID} = 'gone' WHERE {made_of(side)} AND m.{DID} IN ('in', 'coming', 'stale')",
        **given,
    )


def _count(both: Sides, ids: Sequence[PointId], counts: dict[str, list[int]]) -> None:
    for number, side in enumerate(both.both):
        table = side.table
        find = table.finder(side.document, ids)
        told, of = table.told(side.document, "u"), side.of_documents("u")
        queries = [f"SELECT {told}, u.{DID}, count(*) FROM {side.undo} AS u WHERE {of} GROUP BY 1, 2"]
        if side is both.chunks:
            queries.append(
                f"SELECT document_id, m.{DID}, count(*) FROM {both.made} AS m "
                f"WHERE {made_of(side)} AND m.{DID} = 'left' GROUP BY 1, 2"
            )
        for query in queries:
            for document, did, count in run(table.connection, query, documents=table.ids(side.document, ids)):
                if (one := find(document)) is not None and did in ("back", "left"):
                    counts[str(one)][number if did == "back" else 2] += int(count)
