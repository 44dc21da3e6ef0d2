"""Reading the texts of points from the user's relational table."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from runner.documents.chunks import column_of, converter, stands_for
from runner.documents.database import Database
from runner.errors import Permanent
from runner.points import PointId
from runner.transform import TextColumn

#: Ids in one query.
CHUNK = 500


def fetch(database: Database, column: TextColumn, ids: Sequence[PointId]) -> dict[PointId, str]:
    """id -> text, for those that a row names and that have one. Permanent when several rows name a point differently."""
    table = database.table(column.table)
    key, text = column_of(table, column.vector_id_column), column_of(table, column.text_column)
    convert, found = converter(key), dict[PointId, str]()
    with database.transaction() as connection:
        for start in range(0, len(ids), CHUNK):
            some = ids[start : start + CHUNK]
            wanted, find = {convert(one) for one in some} - {None}, stands_for(some, convert)
            query = sa.select(key, text).where(key.in_(list(wanted)), text.is_not(None))
            if column.collection_column is not None:
                query = query.where(column_of(table, column.collection_column) == column.collection)
            for row_id, value in connection.execute(query):
                point_id = find(row_id)
                if point_id is not None and found.setdefault(point_id, value) != value:
                    raise Permanent(
                        "Several rows name one point, with different texts",
                        f"{column.table}.{column.vector_id_column} = {row_id!r}",
                        "Give documents.collection_column, or mend the table",
                    )
    return found


def check(database: Database, column: TextColumn) -> None:
    """NotFound when the table or one of the columns is missing."""
    table = database.table(column.table)
    for name in (column.vector_id_column, column.text_column, column.collection_column):
        if name is not None:
            column_of(table, name)
