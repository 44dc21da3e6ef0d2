"""Files that rows of documents name."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from runner.documents.chunks import column_of
from runner.documents.database import Database
from runner.plan import DocumentRows

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
