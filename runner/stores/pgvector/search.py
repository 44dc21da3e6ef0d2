"""Nearest points by the operators of pgvector, so that an index of the column answers where it has one."""

# ruff: noqa: S608

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.points import Distance, Float32Matrix
from runner.store import Hit
from runner.stores.pgvector.connection import Binary
from runner.stores.pgvector.table import Index, Table, Vector, quoted

if TYPE_CHECKING:
    from runner.stores.pgvector.connection import Connection

OPERATORS = {Distance.COSINE: "<=>", Distance.DOT: "<#>", Distance.EUCLID: "<->", Distance.MANHATTAN: "<+>"}
#: Points that a graph looks at for one query, at least; pgvector's own 40 miss more than other stores do.
_EFFORT = 100

# Settings end with the transaction, are there once the library is loaded, and the iterative scans only from 0.8 on.
# An order that is not strict finds more, and the hits are sorted here anyway.
_LOAD = "SELECT '[1]'::vector IS NULL"
_SETTINGS = """
SELECT set_config(name, CASE name WHEN 'hnsw.ef_search' THEN greatest(setting::int, least($1, max_val::int))::text
    WHEN 'ivfflat.probes' THEN greatest(setting::int, least($2, max_val::int))::text ELSE 'relaxed_order' END, true)
FROM pg_settings WHERE name IN ('hnsw.ef_search', 'ivfflat.probes', 'hnsw.iterative_scan', 'ivfflat.iterative_scan')
"""


def search(conn: Connection, table: Table, vector: str, queries: Float32Matrix, limit: int) -> list[list[Hit]]:
    """The nearest points for each of `queries`, which fit the column of `vector`."""
    wanted = table.schema.vector(vector)
    column = next(item for item in table.vectors if item.name == vector)
    plain, operator, index = f"t.{quoted(column.column)}", OPERATORS[wanted.distance], _index(table, column)
    # the index may hold fewer bits than the column: its order counts, but the score is that of the column itself
    head = (
        f"SELECT t.{quoted(table.id_column)}::{table.read_type}, {plain}::vector {operator} $1::vector"
        f" FROM {table.relation} t WHERE {table.filter} AND {plain} IS NOT NULL ORDER BY "
    )
    end = f" LIMIT {int(limit)}"
    exact = f"{head}({plain}::vector {operator} $1::vector) + 0{end}"  # no index has a sum
    ordered = ""
    if index:
        cast = f"::{index.cast}" if index.cast else ""
        ordered = f"{head}{plain}{cast} {operator} $1::vector::{index.cast or column.type}{end}"
    found = []
    with conn.transaction(), conn.cursor(binary=True) as cursor:
        if index:
            lists = int(index.settings.params.get("lists", 1))
            conn.execute(_LOAD)
            conn.execute(_SETTINGS, [max(2 * limit, _EFFORT), math.ceil(math.sqrt(lists))])
        for query in _packed(queries):
            rows = cursor.execute(ordered, [query]).fetchall() if index else []
            # an index can end early: it has no zero vectors under cosine, and stops where a filter leaves too little
            if len(rows) < limit:
                rows = cursor.execute(exact, [query]).fetchall()
            found.append(_hits(wanted.distance, rows))
    return found


def _index(table: Table, column: Vector) -> Index | None:
    """An index of this column and its metric, rather one of the column as it is than of a cast."""
    wanted = table.schema.vector(column.name)
    # collections of LangChain may share a column without a dimension, and have an index on a cast each
    casts = ("", f"vector({wanted.dimension})", f"halfvec({wanted.dimension})")
    fitting = [item for item in table.indexes if item.column == column.column and item.distance == wanted.distance]
    fitting = [item for item in fitting if item.cast in casts]
    return min(fitting, key=lambda item: bool(item.cast), default=None)


def _packed(queries: Float32Matrix) -> list[Binary]:
    """Each row as a vector in binary form."""
    rows = np.empty(len(queries), [("dimension", ">i2"), ("unused", ">i2"), ("numbers", ">f4", (queries.shape[1],))])
    rows["dimension"], rows["unused"], rows["numbers"] = queries.shape[1], 0, queries
    return [Binary(row.tobytes()) for row in rows]


def _hits(distance: Distance, rows: list[tuple[Any, ...]]) -> list[Hit]:
    """Best first. The cosine of a zero vector, which PostgreSQL calls NaN, is 0."""
    hits = []
    for point_id, far in rows:
        score = 1 - far if distance == Distance.COSINE else -far
        point = point_id if isinstance(point_id, int) else point_id.decode()
        hits.append(Hit(point, 0.0 if math.isnan(score) else score))
    return sorted(hits, key=lambda hit: -hit.score)
