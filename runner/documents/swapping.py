"""New chunk rows of documents in the place of old ones: announced first, then swapped in one transaction."""

# Names in SQL are quoted by columns.quoted(); values are always parameters.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from runner.documents.chunks import OURS
from runner.documents.columns import BIGGEST, Column, Find, batches, beside, plain, quoted, run
from runner.documents.database import Database
from runner.documents.inserting import NewChunk, carried, inserts
from runner.documents.positions import Move, move
from runner.documents.undo import DID, Side, Sides, made_of, prepare, sides
from runner.errors import Permanent
from runner.plan.batch import ChunkRows, DocumentRows, UndoTables
from runner.points import PointId


@dataclass(frozen=True)
class Swap:
    """What a document's chunks become: old rows that stay, by key, with their new position, and new rows. `text`: the
    document's own from now on, None to leave it. `seen`: keys as text of the old rows it was made from; others came since
    and stay. None: all rows are meant."""

    document: PointId
    keep: Mapping[Any, NewChunk]
    made: Sequence[NewChunk]
    text: str | None = None
    seen: frozenset[str] | None = None


@dataclass
class _Found:
    """A document's chunk rows as they are: key -> position; the keys of those that this run made: vector id -> key; and
    the key of one that an earlier attempt took out."""

    present: dict[str, tuple[Any, int | None]] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    saved: Any = None

    @property
    def first(self) -> Any:
        """The key of an old row, which new ones take over from: not of one that this run made, as that may go."""
        ours = set(self.made.values())
        return next((key for text, (key, _) in self.present.items() if text not in ours), self.saved)


def announce_all(
    database: Database, rows: DocumentRows, undo: UndoTables, items: Sequence[tuple[PointId, Sequence[NewChunk]]]
) -> None:
    """Write down which chunk rows are coming, before their points are written: nobody finds a point unexplained."""
    prepare(database, rows, undo)
    with database.transaction() as connection:
        _announce(sides(database, connection, rows, undo), rows, items)


def _announce(
    both: Sides, rows: DocumentRows, items: Sequence[tuple[PointId, Sequence[NewChunk]]]
) -> tuple[Side, ChunkRows]:
    side, parts = both.chunks, rows.chunks
    if side is None or parts is None:
        raise Permanent("There is no table of chunks", rows.table, "Name it: rows.chunks")
    table, vector = side.table, side.table[parts.vector_id_column]
    given = f"{table.given(side.document, 'document')}, {table.given(vector, 'vector')}, {table.given(side.key, 'key')}"
    run(
        table.connection,
        f"INSERT INTO {both.made} AS m (document_id, vector_id, row_id, {DID}) VALUES ({given}, 'coming') "
        f"ON CONFLICT (document_id, vector_id) DO UPDATE SET {DID} = 'coming', row_id = excluded.row_id "
        f"WHERE m.{DID} IN ('stale', 'gone', 'left')",
        [
            {
                "document": table.value(side.document, document),
                "vector": table.value(vector, new.vector_id),
                "key": table.value(side.key, new.key),
            }
            for document, made in items
            for new in made
        ],
    )
    return side, parts


def swap_all(
    database: Database, rows: DocumentRows, undo: UndoTables, swaps: Sequence[Swap]
) -> dict[str, tuple[int, int]]:
    """New rows in, rows that are not kept out into the undo table, positions and texts set: all of it, or Permanent and
    nothing. str(id) -> (new rows that are in, old rows that are out by now).

    Rows that came in an earlier call are not made again, and are removed where they are neither kept nor made now.
    """
    prepare(database, rows, undo)
    ids = [one.document for one in swaps]
    with database.transaction(foreign_keys=True) as connection:
        both = sides(database, connection, rows, undo)
        both.lock(ids)
        both.anew(ids)
        side, parts = _announce(both, rows, [(one.document, one.made) for one in swaps])
        find = side.table.finder(side.document, ids)
        found = _found(both, side, ids, find)
        vector = side.table[parts.vector_id_column]
        coming = {
            str(one.document): [
                new for new in one.made if side.table.form(vector, new.vector_id) not in found[str(one.document)].made
            ]
            for one in swaps
        }
        equal = carried(side, parts, [one for one in ids if coming[str(one)]], find)
        _out(both, side, vector, swaps, found)
        _positions(side, swaps, found)
        statements: dict[str, list[dict[str, Any]]] = {}
        keys = _unused_keys(side)
        for one in swaps:
            name = str(one.document)
            first, ours = found[name].first, set(found[name].made.values())
            new_rows = [replace(new, like=first) if str(new.like) in ours else new for new in coming[name]]
            new_rows = [replace(new, key=next(keys, None)) if new.key is None else new for new in new_rows]
            for statement, values in inserts(side, parts, one.document, new_rows, equal.get(name), first):
                statements.setdefault(statement, []).extend(values)
        for statement, values in statements.items():
            run(connection, statement, values)
        _arrived(
            both,
            side,
            vector,
            ids,
            [side.table.form(vector, new.vector_id) for some in coming.values() for new in some],
        )
        _texts(both.documents, swaps)
        return _counted(both, side, ids, find)


def _unused_keys(side: Side) -> Iterator[int]:
    """Keys for new rows where SQLite would give those of deleted rows out again: old rows that a run has taken out, this
    one or another, may need theirs."""
    table, key = side.table, side.key.sql
    if table.postgresql or not side.key.identity:
        return iter(())
    schema = f"{quoted(table.schema)}." if table.schema else ""
    query = f"SELECT 1 FROM {schema}sqlite_master WHERE type = 'table' AND name = :name AND sql LIKE '%AUTOINCREMENT%'"
    if run(table.connection, query, name=table.bare).first() is not None:
        return iter(())
    names, last = [table.sql], 0
    for (name,) in run(table.connection, f"SELECT name FROM {schema}sqlite_master WHERE type = 'table'").all():
        columns = run(table.connection, f"PRAGMA {schema}table_xinfo({quoted(name)})") if OURS.fullmatch(name) else ()
        if {*table.columns, DID} <= {column.name for column in columns}:
            names.append(beside(table.schema, name))
    for name in names:
        highest = run(table.connection, f"SELECT max(o.{key}) FROM {name} AS o").scalar_one()
        last = max(last, highest) if isinstance(highest, int) else last
    return iter(range(last + 1, BIGGEST))


def _found(both: Sides, side: Side, ids: Sequence[PointId], find: Find) -> dict[str, _Found]:
    table, found = side.table, {str(one): _Found() for one in ids}
    place = f"t.{side.roles['position'].sql}" if "position" in side.roles else "NULL"
    query = (
        f"SELECT {table.told(side.document)}, {table.told(side.key)}, {place} FROM {table.sql} AS t "
        f"WHERE {side.of_documents()}{side.within} ORDER BY t.{side.key.sql}{table.lock}"
    )
    for document, key, position in run(table.connection, query, **side.documents(ids)):
        if (one := find(document)) is not None:
            found[str(one)].present[str(key)] = (key, None if position is None else int(position))
    query = f"SELECT document_id, vector_id, row_id FROM {both.made} AS m WHERE {made_of(side)} AND m.{DID} = 'in'"
    for document, vector_id, key in run(table.connection, query, documents=table.ids(side.document, ids)):
        if (one := find(document)) is not None and key is not None:
            found[str(one)].made[str(plain(vector_id, both.made)).rstrip(" ")] = str(plain(key, both.made))
    query = (
        f"SELECT {table.told(side.document, 'u')}, min({table.told(side.key, 'u')}) FROM {side.undo} AS u "
        f"WHERE {side.of_documents('u')} AND u.{DID} = 'swapped' GROUP BY 1"
    )
    for document, key in run(table.connection, query, documents=table.ids(side.document, ids)):
        if (one := find(document)) is not None:
            found[str(one)].saved = key
    return found


def _out(both: Sides, side: Side, vector: Column, swaps: Sequence[Swap], found: dict[str, _Found]) -> None:
    """Old rows that are not kept are saved and deleted; rows of an earlier attempt are only deleted."""
    connection, table = side.table.connection, side.table
    old: list[Any] = []
    stale: list[Any] = []
    for one in swaps:
        state, wanted = found[str(one.document)], {table.form(vector, new.vector_id) for new in one.made}
        kept, ours = {str(key) for key in one.keep}, set(state.made.values())
        lasting = {key for vector, key in state.made.items() if vector in wanted}
        gone = [key for key in state.present if key not in kept and key not in lasting]
        old += [state.present[key][0] for key in gone if key not in ours and (one.seen is None or key in one.seen)]
        stale += [state.present[key][0] for key in gone if key in ours]
    among, is_changed = table.among(side.key, "keys"), f"{table.among(side.key, 'keys', 'u')} AND u.{DID} = 'changed'"
    for some in batches(old):
        keys = table.ids(side.key, some)
        run(connection, f"UPDATE {side.undo} AS u SET {DID} = 'swapped' WHERE {is_changed}", keys=keys)
        run(connection, side.save("swapped", among), keys=keys)
    for some in batches(stale):
        row_id = Column(**{**vars(side.key), "name": "row_id"})
        query = (
            f"UPDATE {both.made} AS m SET {DID} = 'stale' WHERE m.{DID} = 'in' AND {table.among(row_id, 'keys', 'm')}"
        )
        run(connection, query, keys=table.ids(side.key, some))
    for some in batches([*old, *stale]):
        keys = table.ids(side.key, some)
        run(connection, f"DELETE FROM {table.sql} AS t WHERE {among}", keys=keys)
        if run(connection, f"SELECT count(*) FROM {table.sql} AS t WHERE {among}", keys=keys).scalar_one():
            raise Permanent("Rows cannot be deleted", table.name, "A trigger or a rule of the table keeps them")


def _positions(side: Side, swaps: Sequence[Swap], found: dict[str, _Found]) -> None:
    column = side.roles.get("position")
    if column is None:
        return
    moves, ours = list[Move](), set[str]()
    for one in swaps:
        state = found[str(one.document)]
        ours |= set(state.made.values())
        for key, new in one.keep.items():
            if str(key) in state.present and state.present[str(key)][1] != new.position:
                moves.append(Move(str(one.document), *state.present[str(key)], new.position))
    table = side.table
    saved = [one.key for one in moves if str(one.key) not in ours]
    among = table.among(side.key, "keys")
    for some in batches(saved):
        run(table.connection, side.save("changed", among), keys=table.ids(side.key, some))
    move(side, moves)
    for some in batches(saved):
        query = (
            f"UPDATE {side.undo} AS u SET vecrun_position = {table.text(column)} FROM {table.sql} AS t "
            f"WHERE t.{side.key.sql} = u.{side.key.sql} AND {among}"
        )
        run(table.connection, query, keys=table.ids(side.key, some))


def _arrived(both: Sides, side: Side, vector: Column, ids: Sequence[PointId], vectors: Sequence[str]) -> None:
    table = side.table
    query = (
        f"UPDATE {both.made} AS m SET {DID} = 'in', row_id = t.{side.key.sql} FROM {table.sql} AS t "
        f"WHERE t.{side.document.sql} = m.document_id AND t.{vector.sql} = m.vector_id AND m.{DID} = 'coming' "
        f"AND {made_of(side)} AND {table.among(vector, 'vectors')}{side.within}"
    )
    for some in batches(vectors):
        run(table.connection, query, vectors=table.ids(vector, some), **side.documents(ids))


def _texts(side: Side, swaps: Sequence[Swap]) -> None:
    """The whole texts of documents, in their own rows."""
    column, table = side.roles.get("text"), side.table
    texts = [(one.document, one.text) for one in swaps if one.text is not None]
    if column is None or not texts:
        return
    differs = f"NOT ({table.text(column)} {table.same} :text)"
    for document, text in texts:
        given = side.documents([document])
        changed = f"{side.of_documents()} AND {differs}"
        run(table.connection, side.save("changed", changed), text=text, **given)
        run(
            table.connection,
            f"UPDATE {table.sql} AS t SET {column.sql} = {table.given(column, 'text')} WHERE {changed} AND EXISTS "
            f"(SELECT 1 FROM {side.undo} AS u WHERE t.{side.key.sql} = u.{side.key.sql} AND u.{DID} = 'changed')",
            text=text,
            **given,
        )
        run(
            table.connection,
            f"UPDATE {side.undo} AS u SET vecrun_text = {table.text(column)} FROM {table.sql} AS t "
            f"WHERE t.{side.key.sql} = u.{side.key.sql} AND u.{DID} = 'changed' AND {side.of_documents()}",
            **given,
        )


def _counted(both: Sides, side: Side, ids: Sequence[PointId], find: Find) -> dict[str, tuple[int, int]]:
    counts, connection = {str(one): [0, 0] for one in ids}, side.table.connection
    queries = (
        f"SELECT document_id, count(*) FROM {both.made} AS m WHERE {made_of(side)} AND m.{DID} = 'in' GROUP BY 1",
        f"SELECT {side.table.told(side.document, 'u')}, count(*) FROM {side.undo} AS u WHERE {side.of_documents('u')} AND u.{DID} = 'swapped' GROUP BY 1",
    )
    for number, query in enumerate(queries):
        for document, count in run(connection, query, documents=side.table.ids(side.document, ids)):
            if (one := find(document)) is not None:
                counts[str(one)][number] += int(count)
    return {one: (found[0], found[1]) for one, found in counts.items()}
