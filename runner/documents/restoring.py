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

import sqlalchemy as sa

from runner.documents.columns import Column, batches, listed, plain, run
from runner.documents.database import Database
from runner.documents.editing import dumps, present, write
from runner.documents.positions import Move, move
from runner.documents.reading import as_json
from runner.documents.refusals import said
from runner.documents.undo import DID, Side, Sides, made_of, sides, there
from runner.edit import Edit
from runner.errors import Permanent
from runner.plan.batch import DocumentRows, UndoTables
from runner.points import PointId

#: Errors of PostgreSQL and SQLite that say: not beside the rows that are there.
BY_OTHERS = (
    "23503", "23505", "23P01", "SQLITE_CONSTRAINT_FOREIGNKEY", "SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY",
    "SQLITE_CONSTRAINT_ROWID",
)  # fmt: skip


@dataclass(frozen=True)
class Restored:
    """Rows that are as they were, by table, and rows of both that somebody changed since and that were left alone.
    `why`: the document was left alone as a whole, and counts as one that changed."""

    documents: int = 0
    chunks: int = 0
    changed_since: int = 0
    why: str = ""


class _Taken(Exception):
    """A key that a saved row needs is another row's."""


def restore(
    database: Database, rows: DocumentRows, undo: UndoTables, ids: Sequence[PointId], edit: Edit | None = None
) -> dict[str, Restored]:
    """Put back what the run took out, changed or swapped, and remove the rows it made, in one transaction. str(id) -> what
    became of its rows; the same when it is repeated. What `restorable` tells of is left alone as a whole.

    With `edit` a value that somebody has changed since loses what the run did, and keeps what they did.
    """
    counts, left = {str(one): [0, 0, 0] for one in ids}, dict[str, str]()
    with database.transaction() as connection:
        if there(database, connection, rows, undo):
            both = sides(database, connection, rows, undo)
            for some in batches(ids):
                left |= _put_back(both, rows, some, edit)
                _count(both, [one for one in some if str(one) not in left], counts)
    return {
        one: Restored(0, 0, 1, left[one]) if one in left else Restored(found[0], found[1], found[2])
        for one, found in counts.items()
    }


def restorable(database: Database, rows: DocumentRows, undo: UndoTables, ids: Sequence[PointId]) -> dict[str, str]:
    """str(id) -> why the rows of this document cannot or must not come back: it was made again since, it was deleted
    since, or the tables do not take its rows any more. Documents that can are left out. It is tried, and nothing stays."""
    found: dict[str, str] = {}
    with database.transaction() as connection:
        if there(database, connection, rows, undo):
            both = sides(database, connection, rows, undo)
            for some in batches(ids):
                trial = connection.begin_nested()
                found |= _put_back(both, rows, some, None)
                trial.rollback()
    return found


def _put_back(both: Sides, rows: DocumentRows, ids: Sequence[PointId], edit: Edit | None) -> dict[str, str]:
    """Put back what can be. str(id) -> why it cannot, for the others."""
    both.lock(ids)
    left = _made_again_or_gone(both, rows, ids)
    waiting = [[one for one in ids if str(one) not in left]]
    while waiting:
        if not (some := waiting.pop()):
            continue
        connection = both.documents.table.connection
        try:
            with connection.begin_nested():
                _all_back(both, rows, some, edit)
        except (sa.exc.IntegrityError, _Taken) as exc:
            if not _by_others(exc):  # the table has changed: nothing fits any more
                raise
            if len(some) == 1:
                left[str(some[0])] = f"its rows do not fit any more: {said(exc)}"
            else:
                waiting += [some[len(some) // 2 :], some[: len(some) // 2]]
    return left


def _by_others(exc: Exception) -> bool:
    """Whether another row has the value that only one may have, or what the row refers to is gone."""
    orig = getattr(exc, "orig", None)
    code = getattr(orig, "sqlstate", None) or getattr(orig, "sqlite_errorname", "")
    return isinstance(exc, _Taken) or code in BY_OTHERS


def _all_back(both: Sides, rows: DocumentRows, ids: Sequence[PointId], edit: Edit | None) -> None:
    postgresql = both.documents.table.postgresql
    if postgresql:  # what is only looked at in the end must not spoil the others
        run(both.documents.table.connection, "SET CONSTRAINTS ALL DEFERRED")
    _columns(both.documents, ids, edit)
    _rows(both.documents, None, ids)
    if both.chunks is not None and rows.chunks is not None:
        vector = both.chunks.table[rows.chunks.vector_id_column]
        _remove_made(both, both.chunks, vector, ids)
        _columns(both.chunks, ids, edit)
        _rows(both.chunks, vector, ids)
    if postgresql:
        run(both.documents.table.connection, "SET CONSTRAINTS ALL IMMEDIATE")


def _made_again_or_gone(both: Sides, rows: DocumentRows, ids: Sequence[PointId]) -> dict[str, str]:
    """Documents as a whole that are others' now."""
    documents, chunks = both.documents, both.chunks
    out = _named(documents, documents.undo, ids, f"AND t.{DID} = 'out'")
    touched = _named(documents, documents.undo, ids, f"AND t.{DID} <> 'out'") - out
    present = _named(documents, documents.table.sql, ids)
    again, gone = out & present, touched - present
    found = dict.fromkeys(again, "a document of this id was made again since")
    if chunks is not None and rows.chunks is not None:
        out_chunks = _named(chunks, chunks.undo, ids, f"AND t.{DID} = 'out'")
        touched = _named(chunks, chunks.undo, ids, f"AND t.{DID} <> 'out'") | _made(both, chunks, ids)
        # a document that only its chunks name has no row, and never had one
        gone |= touched - out - out_chunks - present - _named(chunks, chunks.table.sql, ids)
        found |= dict.fromkeys((out_chunks - out) & present, "a document of this id was made again since")
        anew = _made(both, chunks, ids, f"AND m.{DID} = 'in'") - _made(both, chunks, ids, _came(chunks, rows))
        found |= dict.fromkeys(anew, "its chunks were made anew since")
    return found | dict.fromkeys(gone, "it was deleted since")


def _named(side: Side, table: str, ids: Sequence[PointId], where: str = "") -> set[str]:
    """Those of the documents that rows of this table are of."""
    find = side.table.finder(side.document, ids)
    query = f"SELECT DISTINCT {side.table.told(side.document)} FROM {table} AS t WHERE {side.of_documents()} {where}"
    found = run(side.table.connection, query, documents=side.table.ids(side.document, ids))
    return {str(one) for (document,) in found if (one := find(document)) is not None}


def _came(side: Side, rows: DocumentRows) -> str:
    """The condition that a row that the run made is there, by its key or by its point."""
    assert rows.chunks is not None
    table, vector = side.table, side.table[rows.chunks.vector_id_column]
    one = f"EXISTS (SELECT 1 FROM {table.sql} AS t WHERE t.{side.document.sql} = m.document_id AND "
    return f"AND m.{DID} = 'in' AND ({one}t.{side.key.sql} = m.row_id) OR {one}t.{vector.sql} = m.vector_id))"


def _made(both: Sides, side: Side, ids: Sequence[PointId], where: str = "") -> set[str]:
    """Those of the documents for which the run made rows."""
    find = side.table.finder(side.document, ids)
    query = f"SELECT DISTINCT document_id FROM {both.made} AS m WHERE {made_of(side)} {where}"
    found = run(side.table.connection, query, documents=side.table.ids(side.document, ids))
    return {str(one) for (document,) in found if (one := find(plain(document, both.made))) is not None}


def _rows(side: Side, vector: Column | None, ids: Sequence[PointId]) -> None:
    """Rows that are out come in again, with a new key where another row got theirs, as SQLite gives keys out again; one
    that somebody made in its place stays. `vector`: the column that tells chunks apart."""
    table, key, given = side.table, side.key.sql, {"documents": side.table.ids(side.document, ids)}
    out = f"{side.of_documents('u')} AND u.{DID} IN ('out', 'swapped')"
    moved = f"{side.of_documents('u')} AND u.{DID} = 'moved'"
    same_key = f"t.{key} = u.{key}"
    same = f"t.{side.document.sql} = u.{side.document.sql}"
    same += f" AND t.{vector.sql} {table.same} u.{vector.sql}" if vector is not None else ""
    there = f"EXISTS (SELECT 1 FROM {table.sql} AS t WHERE "
    run(
        table.connection,
        f"UPDATE {side.undo} AS u SET {DID} = 'left' WHERE {out} AND {there}{same_key} AND {same})",
        **given,
    )
    taken = f"UPDATE {side.undo} AS u SET {DID} = 'moved' WHERE {out} AND {there}{same_key})"
    count = run(table.connection, taken, **given).rowcount
    if count and not side.key.filled:
        raise _Taken(f"another row of {table.name} has the {side.key.name} of one of them")
    overriding = "OVERRIDING SYSTEM VALUE " if table.postgresql else ""
    keyless = [column for column in table.written if column.name != side.key.name]
    for which, columns in ((out, table.written), (moved, keyless)) if count else ((out, table.written),):
        run(
            table.connection,
            f"INSERT INTO {table.sql} ({listed(columns)}) {overriding}"
            f"SELECT {listed(columns, 'u')} FROM {side.undo} AS u WHERE {which} ORDER BY u.{key}",
            **given,
        )
    lacking = f"({out} AND NOT {there}{same_key})) OR ({moved} AND NOT {there}{same}))"
    query = f"SELECT count(*) FROM {side.undo} AS u WHERE {lacking}"
    if count := run(table.connection, query, **given).scalar_one():
        raise Permanent(
            "Rows cannot be put back", f"{table.name}: {count:,} are not there", "A trigger or a rule drops them"
        )
    run(table.connection, f"UPDATE {side.undo} AS u SET {DID} = 'back' WHERE ({out}) OR ({moved})", **given)


def _columns(side: Side, ids: Sequence[PointId], edit: Edit | None) -> None:
    """Columns that the run changed get their old value back where they still have the one that it wrote."""
    table, given = side.table, {"documents": side.table.ids(side.document, ids)}
    same = side.same
    changed = f"{side.of_documents('u')} AND u.{DID} = 'changed'"
    left: list[Any] = []
    for role, column in side.roles.items():
        left += _positions(side, column, same, changed, given) if role == "position" else []
        left += _column(side, role, column, same, changed, given, edit) if role != "position" else []
    for some in batches(left):
        query = f"UPDATE {side.undo} AS u SET {DID} = 'left' WHERE {table.among(side.key, 'keys', 'u')}"
        run(table.connection, query, keys=table.ids(side.key, some))
    gone = f"NOT EXISTS (SELECT 1 FROM {table.sql} AS t WHERE {same})"
    run(table.connection, f"UPDATE {side.undo} AS u SET {DID} = 'left' WHERE {changed} AND {gone}", **given)
    run(table.connection, f"UPDATE {side.undo} AS u SET {DID} = 'back' WHERE {changed}", **given)


def _column(
    side: Side, role: str, column: Column, same: str, changed: str, given: dict[str, Any], edit: Edit | None
) -> list[Any]:  # fmt: skip
    """Keys of the rows that keep what somebody made of them."""
    table = side.table
    joined = f"FROM {table.sql} AS t JOIN {side.undo} AS u ON {same} WHERE {changed}"
    ours = f"{table.text(column)} {table.same} u.vecrun_{role}"
    old = f"{table.text(column)} {table.same} {table.text(column, 'u')}"
    query = (
        f"SELECT {table.told(side.key)}, {as_json(table, column, 'u')}, {as_json(table, column)} {joined} "
        f"AND u.vecrun_{role} IS NOT NULL AND NOT ({ours}) AND NOT ({old})"
    )
    others = run(table.connection, query, **given).all()
    back = f"UPDATE {table.sql} AS t SET {column.sql} = u.{column.sql} FROM {side.undo} AS u WHERE {same}"
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


def _positions(side: Side, column: Column, same: str, changed: str, given: dict[str, Any]) -> list[Any]:
    table = side.table
    query = (
        f"SELECT {table.told(side.document)}, {table.told(side.key)}, t.{column.sql}, u.{column.sql}, u.vecrun_position "
        f"FROM {table.sql} AS t JOIN {side.undo} AS u ON {same} WHERE {changed} "
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


def _remove_made(both: Sides, side: Side, vector: Column, ids: Sequence[PointId]) -> None:
    """Rows that the run made are deleted; one that somebody gave to another point since is theirs."""
    table, key, given = side.table, side.key.sql, {"documents": side.table.ids(side.document, ids)}
    came = f"{made_of(side)} AND m.{DID} = 'in'"
    row = f"t.{key} = m.row_id AND t.{side.document.sql} = m.document_id"
    same = f"t.{vector.sql} {table.same} m.vector_id"
    other = f"EXISTS (SELECT 1 FROM {table.sql} AS t WHERE {row} AND NOT ({same}))"
    run(table.connection, f"UPDATE {both.made} AS m SET {DID} = 'left' WHERE {came} AND {other}", **given)
    run(
        table.connection,
        f"DELETE FROM {table.sql} AS t WHERE {side.of_documents()} "
        f"AND EXISTS (SELECT 1 FROM {both.made} AS m WHERE {row} AND {same} AND m.{DID} = 'in')",
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
