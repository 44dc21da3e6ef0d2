"""What rows of documents name beside themselves: files, and the points of their chunks."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from runner.documents.chunks import column_of
from runner.documents.columns import batches, plain, run
from runner.documents.database import Database
from runner.documents.undo import sides
from runner.plan import DocumentRows
from runner.points import PointId

#: Values in one IN (…).
CHUNK = 500


def still_named(database: Database, rows: DocumentRows, keys: Sequence[str]) -> set[str]:
    """Those of these keys that a row of the documents table names."""
    assert rows.file_column is not None
    column = column_of(database.table(rows.table), rows.file_column)
    found = set[str]()
    with database.transaction() as connection:
        for start in range(0, len(keys), CHUNK):
            query = sa.select(column).where(column.in_(keys[start : start + CHUNK]))
            found |= {str(value) for value in connection.execute(query).scalars()}
    return found


def still_named_points(
    database: Database, rows: DocumentRows, points: Sequence[PointId], but: Sequence[PointId]
) -> set[str]:
    """Those of these points, as text, that a chunk row of a document other than `but` names."""
    found = set[str]()
    if rows.chunks is None or not points:
        return found
    forms = {form: str(one) for one in points for form in _forms(one)}
    with database.transaction() as connection:
        side = sides(database, connection, rows, None).chunks
        assert side is not None
        table, vector = side.table, side.table[rows.chunks.vector_id_column]
        find = table.finder(side.document, but)
        given: dict[str, Any] = {"collection": side.collection} if side.collection_column is not None else {}
        query = (
            f"SELECT {table.told(side.document)}, {table.told(vector)} FROM {table.sql} AS t "  # noqa: S608
            f"WHERE {table.among(vector, 'points')}{side.within}"
        )
        for some in batches(forms):
            named = table.finder(vector, some)
            for document, point in run(connection, query, points=table.ids(vector, some), **given):
                if find(document) is None and (one := named(plain(point, table.name))) is not None:
                    found.add(forms[str(one)])
    return found


def _forms(point: PointId) -> list[str]:
    """How a column of texts may name a point: a UUID also in capitals, or without dashes."""
    try:
        same = uuid.UUID(str(point))
    except ValueError:
        return [str(point)]
    return list(dict.fromkeys([str(point), str(same), str(same).upper(), same.hex, same.hex.upper()]))
