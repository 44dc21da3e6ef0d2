"""Taking documents out of the relational tables: into the undo tables, then away, in one transaction."""

# Names in SQL are quoted by columns.quoted(); values are always parameters.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Sequence

from runner.documents.columns import batches, run
from runner.documents.database import Database
from runner.documents.undo import DID, Side, Sides, prepare, sides
from runner.errors import Permanent
from runner.plan.batch import DocumentRows, UndoTables
from runner.points import PointId


def take_out(
    database: Database, rows: DocumentRows, undo: UndoTables, ids: Sequence[PointId]
) -> dict[str, tuple[int, int]]:
    """Save whole rows of the documents and of their chunks, then delete them: all, or Permanent and none. str(id) ->
    (document rows, chunk rows) that are out by now.

    Once a row is out, one that somebody makes under the same id is theirs and stays. Foreign keys are obeyed: of other
    tables, too (`referring` tells of them before).
    """
    prepare(database, rows, undo)
    with database.transaction(foreign_keys=True) as connection:
        both = sides(database, connection, rows, undo)
        out: dict[str, tuple[int, int]] = {}
        for some in batches(ids):
            both.lock(some)
            both.anew(some)
            done = _out(both, some)
            # of a document that is out nothing else is taken: what is there now came since
            if rest := [one for one in some if done[str(one)] == (0, 0)]:
                if both.chunks is not None:
                    _refuse_others(both.chunks, rest)
                    _move(both.chunks, rest)
                _move(both.documents, rest)
            out |= done | _out(both, rest)
    return out


def _out(both: Sides, ids: Sequence[PointId]) -> dict[str, tuple[int, int]]:
    counts = {str(one): [0, 0] for one in ids}
    for number, side in enumerate(both.both):
        find = side.table.finder(side.document, ids)
        told, of = side.table.told(side.document, "u"), side.of_documents("u")
        query = f"SELECT {told}, count(*) FROM {side.undo} AS u WHERE {of} AND u.{DID} = 'out' GROUP BY 1"
        for document, count in run(side.table.connection, query, documents=side.table.ids(side.document, ids)):
            if (one := find(document)) is not None:
                counts[str(one)][number] += int(count)
    return {one: (found[0], found[1]) for one, found in counts.items()}


def _move(side: Side, ids: Sequence[PointId]) -> None:
    connection, table, key = side.table.connection, side.table, side.key.sql
    given = side.documents(ids)
    run(connection, side.save("taking", f"{side.of_documents()}{side.within}"), **given)
    taking = f"t.{key} IN (SELECT u.{key} FROM {side.undo} AS u WHERE u.{DID} = 'taking' AND {side.of_documents('u')})"
    of = f"{table.sql} AS t WHERE {side.of_documents()} AND {taking}"
    run(connection, f"DELETE FROM {of}", documents=given["documents"])
    kept = run(connection, f"SELECT count(*) FROM {of}", documents=given["documents"]).scalar_one()
    if kept:
        raise Permanent(
            "Rows cannot be deleted",
            f"{table.name}: {kept:,} of them are still there",
            "A trigger or a rule keeps them",
        )
    query = f"UPDATE {side.undo} AS u SET {DID} = 'out' WHERE u.{DID} = 'taking' AND {side.of_documents('u')}"
    run(connection, query, documents=given["documents"])


def _refuse_others(chunks: Side, ids: Sequence[PointId]) -> None:
    """A document whose chunks are of other collections, too, would leave them alone, or take them along unsaved."""
    column, table = chunks.collection_column, chunks.table
    if column is None:
        return
    query = (
        f"SELECT {table.told(chunks.document)}, {table.text(column)} FROM {table.sql} AS t WHERE {chunks.of_documents()} "
        f"AND NOT (t.{column.sql} {table.same} {table.given(column, 'collection')}) LIMIT 1"
    )
    other = run(table.connection, query, **chunks.documents(ids)).first()
    if other is not None:
        raise Permanent(
            "A document has chunks of another collection",
            f"{table.name}: rows of document {other[0]!r} are of {other[1]!r}, not of {chunks.collection!r}",
            "Keep the rows of such documents, or delete it from the other collection first",
        )
