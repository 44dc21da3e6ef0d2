"""Points as Arrow tables sorted by id, and back.

A table has three key columns, the partition, the payload as JSON text, dense and sparse vectors, and in a table with
deletes a column that marks them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from runner.errors import Permanent
from runner.points import (
    CollectionSchema,
    Float32Matrix,
    Payloads,
    PointBatch,
    PointId,
    SparseVector,
    VectorField,
    empty_batch,
)

if TYPE_CHECKING:
    import pyarrow as pa

#: Every part begins with these; exactly one of them is set in a row. Together they sort: integers, then texts.
KEYS = ("id_int", "id_big", "id_text")
#: A boolean column, only in parts that hold deletes.
DELETED = "deleted"


class Key(NamedTuple):
    """An id as it sorts: integers by value, then texts by code point, which is also the order of their UTF-8 bytes."""

    text: bool
    value: Any


def key_of(point_id: PointId) -> Key:
    """The place of an id in the order."""
    return Key(isinstance(point_id, str), point_id)


def _id_columns(ids: Sequence[PointId]) -> dict[str, Any]:
    """The three key columns for `ids`."""
    import pyarrow as pa

    big = 2**63
    return {
        "id_int": pa.array([None if isinstance(item, str) or item >= big else item for item in ids], pa.int64()),
        "id_big": pa.array([None if isinstance(item, str) or item < big else item for item in ids], pa.uint64()),
        "id_text": pa.array([item if isinstance(item, str) else None for item in ids], pa.string()),
    }


def ids_of(table: pa.Table) -> list[PointId]:
    """The ids of all rows."""
    columns = [_python(table[key]) for key in KEYS if table[key].null_count < table.num_rows]
    if len(columns) == 1:
        return columns[0]
    return [next(item for item in row if item is not None) for row in zip(*columns, strict=True)]


def _python(column: pa.ChunkedArray) -> list[Any]:
    """As `to_pylist`, but through numpy, which is several times faster."""
    if column.null_count:
        return cast("list[Any]", column.to_pylist())
    return cast("list[Any]", column.to_numpy().tolist())


def id_at(table: pa.Table, row: int) -> PointId:
    """The id of one row."""
    values = (table[key][row].as_py() for key in KEYS if table[key].null_count < table.num_rows)
    return cast("PointId", next(value for value in values if value is not None))


def place(table: pa.Table, key: Key | None, right: bool) -> int:
    """Where `key` belongs among the sorted rows; `right` puts it behind an equal one."""
    if key is None:
        return 0
    search = bisect_right if right else bisect_left
    return search(range(table.num_rows), key, key=lambda row: key_of(id_at(table, row)))


def newest(tables: list[pa.Table], already: bool = False) -> pa.Table:
    """The rows of `tables`, oldest first, sorted by id, the last of each id; `already`: each table is like that."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if len(tables) == 1 and already:
        return tables[0]
    whole = pa.concat_tables(tables, promote_options="default").combine_chunks()
    keys = [key for key in KEYS if whole[key].null_count < whole.num_rows]
    if len(tables) == 1 and len(keys) == 1 and whole[keys[0]].null_count == 0:
        column = whole[keys[0]]
        if pc.all(pc.less(column[:-1], column[1:])).as_py() is not False:
            return whole
    ranked = whole.select(keys).append_column("row", pa.array(np.arange(whole.num_rows)))
    order = pc.sort_indices(ranked, sort_keys=[(key, "ascending") for key in (*keys, "row")])
    last = np.ones(whole.num_rows, bool)
    for key in keys:  # one key is set in a row, so two ids are equal if any is
        column = ranked[key].take(order)
        last[:-1] &= ~pc.fill_null(pc.equal(column[:-1], column[1:]), fill_value=False).to_numpy()
    return whole.take(order.filter(pa.array(last)))


def living(table: pa.Table) -> pa.Table:
    """Without the deletes, and without their column."""
    import pyarrow.compute as pc

    if DELETED not in table.column_names:
        return table
    return table.filter(pc.invert(pc.fill_null(table[DELETED], fill_value=False))).drop_columns([DELETED])


def tombstones(ids: Sequence[PointId]) -> pa.Table:
    """The rows that delete these ids."""
    import pyarrow as pa

    return newest([pa.table(_id_columns(ids) | {DELETED: pa.repeat(pa.scalar(value=True), len(ids))})])


def matching(table: pa.Table, wanted: Sequence[Key]) -> NDArray[np.bool_]:
    """Which rows have one of the `wanted` keys."""
    import pyarrow.compute as pc

    hits = np.zeros(table.num_rows, bool)
    for key, values in _id_columns([item.value for item in wanted]).items():
        if table[key].null_count < table.num_rows:
            hits |= pc.is_in(table[key], value_set=values.drop_null()).to_numpy()
    return hits


def widened(table: pa.Table, collection: CollectionSchema) -> pa.Table:
    """`table` with every column of the collection and the one of deletes, so that one file can hold it all."""
    import pyarrow as pa

    empty = to_table(collection, empty_batch(collection)).append_column(DELETED, pa.array([], pa.bool_()))
    return pa.concat_tables([empty, table], promote_options="default")


def to_table(collection: CollectionSchema, batch: PointBatch) -> pa.Table:
    """Points as columns: three keys, partition, payload (JSON text), dense vectors, sparse vectors."""
    import pyarrow as pa

    n = len(batch)
    columns = _id_columns(batch.ids)
    if collection.partitions is not None:
        columns["partition"] = pa.array(batch.partitions, pa.string()) if batch.partitions else pa.nulls(n, pa.string())
    columns["payload"] = pa.array(batch.payloads.json, pa.large_string())
    for item in collection.vectors:
        matrix, gone = batch.vectors.get(item.name), batch.missing.get(item.name)
        if matrix is None:
            matrix, gone = np.zeros((n, item.dimension), np.float32), np.ones(n, bool)
        if matrix.shape != (n, item.dimension):
            found = f"{collection.name}: {matrix.shape[1]} numbers, {item.dimension} expected"
            raise Permanent("A vector has another dimension", found)
        numbers = pa.array(np.ascontiguousarray(matrix, np.float32).reshape(-1))
        mask = None if gone is None or not gone.any() else pa.array(gone)
        columns[f"vector:{item.name}"] = pa.FixedSizeListArray.from_arrays(numbers, item.dimension, mask=mask)
    for sparse in collection.sparse:
        column = batch.sparse.get(sparse.name) or [None] * n
        for part, kind in (("indices", pa.int64()), ("values", pa.float32())):
            lists = [None if entry is None else getattr(entry, part) for entry in column]
            columns[f"sparse:{sparse.name}:{part}"] = pa.array(lists, pa.list_(kind))
    return pa.table(columns)


def to_matrix(table: pa.Table, item: VectorField) -> tuple[Float32Matrix, NDArray[np.bool_] | None]:
    """One dense vector of all rows, and which have none (their row is zeros); a view where it lies in one piece."""
    column, n, size = table[f"vector:{item.name}"], table.num_rows, item.dimension
    lists = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    matrix = lists.values.slice(lists.offset * size, n * size).to_numpy(zero_copy_only=False).reshape(n, size)
    if not lists.null_count:
        return matrix, None
    missing = lists.is_null().to_numpy(zero_copy_only=False)
    return np.where(missing[:, None], np.float32(0), matrix), missing


def to_batch(collection: CollectionSchema, table: pa.Table) -> PointBatch:
    """The rows of a table; vectors are views of it where they lie in one piece."""
    import pyarrow as pa

    batch = PointBatch(ids_of(table), {}, Payloads(json=_python(table["payload"].cast(pa.large_binary()))))
    if "partition" in table.column_names:
        batch.partitions = _python(table["partition"])
    for item in collection.vectors:
        batch.vectors[item.name], missing = to_matrix(table, item)
        if missing is not None:
            batch.missing[item.name] = missing
    for sparse in collection.sparse:
        pairs = zip(*(table[f"sparse:{sparse.name}:{part}"] for part in ("indices", "values")), strict=True)
        batch.sparse[sparse.name] = [
            SparseVector(indices.values.to_numpy(), values.values.to_numpy()) if indices.is_valid else None
            for indices, values in pairs
        ]
    return batch
