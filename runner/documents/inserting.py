"""What new chunk rows take over from the old ones of their document, and how they get in."""

# Names in SQL are quoted by columns.quoted(); values are always parameters.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from runner.documents.columns import Column, Find, listed, run
from runner.documents.undo import DID, Side
from runner.errors import Permanent
from runner.plan.batch import ChunkRows
from runner.points import PointId

#: Rows that are looked at to learn which columns differ within a document.
SAMPLE = 1000


@dataclass(frozen=True)
class NewChunk:
    """A chunk row that is to come. `key`: None where the column fills itself, or takes the id of the point. `like`: key of
    the old row that all other columns are taken from; None: those that are equal in all old rows of the document."""

    key: Any | None
    vector_id: PointId
    text: str
    position: int
    like: Any | None = None


def carried(side: Side, parts: ChunkRows, ids: Sequence[PointId], find: Find) -> dict[str, set[str]]:
    """str(id) -> the columns whose value is equal in all chunk rows of the document. One row alone says nothing: there, a
    column that differs within other documents is left out."""
    found: dict[str, set[str]] = {}
    if not ids:
        return found
    table = side.table
    columns = list(table.columns.values())
    counts = ", ".join(f"count(DISTINCT {table.text(column)}), count(t.{column.sql})" for column in columns)
    query = (
        f"SELECT {table.told(side.document)}, count(*), {counts} FROM {table.sql} AS t "
        f"WHERE {side.of_documents()}{side.within} GROUP BY 1"
    )
    alone = []
    for document, total, *numbers in run(table.connection, query, **side.documents(ids)):
        if (one := find(document)) is None:
            continue
        equal = {
            column.name
            for column, different, filled in zip(columns, numbers[::2], numbers[1::2], strict=True)
            if different == 0 or (different == 1 and filled == total)
        }
        found[str(one)] = equal
        if total == 1:
            alone.append(equal)
    if alone:
        counts = ", ".join(f"count(DISTINCT {table.text(column)}) AS c{n}" for n, column in enumerate(columns))
        most = ", ".join(f"max(s.c{n})" for n in range(len(columns)))
        query = (
            f"SELECT {most} FROM (SELECT {counts} FROM (SELECT * FROM {table.sql} LIMIT {SAMPLE}) AS t "
            f"GROUP BY t.{side.document.sql} HAVING count(*) > 1) AS s"
        )
        row = run(table.connection, query).one()
        varied = {column.name for column, number in zip(columns, row, strict=True) if (number or 0) > 1}
        for equal in alone:
            equal -= {name for name in varied if table[name].nullable or table[name].filled}
    for equal in found.values():
        equal |= {name for name in (side.document.name, parts.collection_column) if name is not None}
    return found


def inserts(
    side: Side, parts: ChunkRows, document: PointId, coming: list[NewChunk], equal: set[str] | None, first: Any | None
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The statements that insert new rows, each with its values; other columns are taken over from an old row. `first` is
    the key of one, if there is any."""
    table = side.table
    vector = table[parts.vector_id_column]
    named = [(vector, "vector")]
    named += [(table[parts.text_column], "text")] if parts.text_column is not None else []
    named += [(table[parts.position_column], "position")] if parts.position_column is not None else []
    own = {side.key.name, *(column.name for column, _ in named)}
    free = [
        one for one in table.written if one.name not in own and not one.identity and (equal is None or not one.unique)
    ]
    shapes: dict[tuple[bool, bool], list[NewChunk]] = {}
    for new in coming:
        shapes.setdefault((new.like is not None, new.key is not None or not side.key.filled), []).append(new)
    for (alike, keyed), some in shapes.items():
        values = named + ([(side.key, "key")] if keyed else [])
        taken: list[Column] = []
        if first is not None:
            taken = [one for one in free if alike or equal is None or one.name in equal]
            for name in (side.document.name, parts.collection_column):
                if name is not None and table[name] not in taken:
                    taken.append(table[name])
        else:
            values = [*values, (side.document, "document")]
            values += [(table[parts.collection_column], "collection")] if parts.collection_column else []
        _complete(side, [*taken, *(column for column, _ in values)])
        given = ", ".join(table.given(column, name) for column, name in values)
        names = listed([*(column for column, _ in values), *taken])
        statement = f"INSERT INTO {table.sql} ({names}) "
        statement += "OVERRIDING SYSTEM VALUE " if table.postgresql else ""
        if taken:
            old = (
                f"SELECT {listed(taken, 'x')} FROM {{}} AS x WHERE x.{side.key.sql} = {table.given(side.key, 'source')}"
            )
            both = f"{old.format(side.undo)} AND x.{DID} = 'swapped' UNION ALL {old.format(table.sql)}"
            statement += f"SELECT {given}, {listed(taken, 's')} FROM ({both}) AS s LIMIT 1"
        else:
            statement += f"VALUES ({given})"
        yield (
            statement,
            [
                {
                    "vector": table.value(vector, new.vector_id),
                    "text": new.text,
                    "position": new.position,
                    "key": table.value(side.key, new.key if new.key is not None else new.vector_id),
                    "document": table.value(side.document, document),
                    "collection": parts.collection,
                    "source": new.like if alike else first,
                }
                for new in some
            ],
        )


def _complete(side: Side, given: list[Column]) -> None:
    """Permanent where a column that must have a value would get none."""
    names = {column.name for column in given}
    for column in side.table.columns.values():
        if column.name not in names and not column.nullable and not column.filled:
            raise Permanent(
                "A new row has no value for a column",
                f"{side.table.name}.{column.name} must have one, and it is not equal in the old rows of the document",
                "Give the column a default",
            )
