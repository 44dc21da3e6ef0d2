"""Points as PostgreSQL's binary rows, and back.

A column of a batch is packed into one piece of bytes a point: its length and its value, NULL as length -1. COPY wants
the pieces row by row, an array column by column.
"""

# ruff: noqa: S608

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from decimal import Decimal
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from runner.errors import Permanent
from runner.points import Payloads, PointBatch, PointId, SparseVector, empty_batch
from runner.stores.pgvector.connection import Binary
from runner.stores.pgvector.table import SPARSE_DIMENSIONS, Table, Vector, quoted

if TYPE_CHECKING:
    from runner.stores.pgvector.connection import Connection

_NULL = struct.pack(">i", -1)
OIDS = {"bigint": 20, "text": 25, "uuid": 2950, "jsonb": 3802}
_EXPONENT = re.compile(rb'"(?:[^"\\]|\\.)*"|(-?\d+(?:\.\d+)?[eE]\+?\d+)', re.DOTALL)  # strings are passed over
_MAYBE_EXPONENT = re.compile(rb"[:,\[\s]-?[\d.]+[eE][+\d]")


def pack(table: Table, batch: PointBatch) -> list[list[bytes]]:
    """The columns id, payload and vectors of `batch`."""
    if unknown := {*batch.vectors, *batch.sparse} - {item.name for item in table.vectors}:
        raise Permanent(
            "The table has no column for a vector", f"collection {table.schema.name}: {', '.join(sorted(unknown))}"
        )
    vectors = [_pack_vector(item, batch) for item in table.vectors]
    return [_pack_ids(table, batch.ids), pack_payloads(batch.payloads.json), *vectors]


def pack_payloads(texts: list[bytes]) -> list[bytes]:
    if _may_have_exponent(b",".join(texts)):
        texts = [_EXPONENT.sub(_written_out, text) if _MAYBE_EXPONENT.search(text) else text for text in texts]
    head = struct.Struct(">iB")
    return [head.pack(len(text) + 1, 1) + text for text in texts]  # 1 is the version of jsonb's form


def copy(conn: Connection, table: Table, columns: list[list[bytes]]) -> None:
    """COPY packed columns into a plain table; all or nothing."""
    names = [table.id_column, cast("str", table.root), *(item.column for item in table.vectors)]
    head = [struct.pack(">h", len(columns))] * len(columns[0])
    rows = b"".join(chain.from_iterable(zip(head, *columns, strict=True)))
    statement = f"COPY {table.relation} ({', '.join(map(quoted, names))}) FROM STDIN (FORMAT BINARY)"
    with conn.cursor().copy(statement) as stream:
        stream.write(b"PGCOPY\n\xff\r\n\0" + bytes(8) + rows + b"\xff\xff")


def merge(conn: Connection, table: Table, columns: list[list[bytes]]) -> int:
    """INSERT … ON CONFLICT DO UPDATE of packed columns; how many rows were written."""
    names = [f"v{number}" for number in range(len(table.vectors))]
    targets = [(quoted(table.id_column), "s.id")]
    targets += [(quoted(item.column), f"s.{name}") for item, name in zip(table.vectors, names, strict=True)]
    targets += [(quoted(item.name), f"r.{quoted(item.name)}") for item in table.fields]
    if table.root:
        rest = f"(s.p - {table.keys_sql()})" if table.fields else "s.p"
        targets.append((quoted(table.root), f"{rest}::{table.root_base}"))
    if table.collection:
        targets.append(("collection_id", f"'{table.collection}'::uuid"))
    types = [table.id_type, "jsonb", *(item.type for item in table.vectors)]
    arrays = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(types, 1))
    query = (
        f"INSERT INTO {table.relation} AS t ({', '.join(name for name, _ in targets)}) OVERRIDING SYSTEM VALUE"
        f" SELECT {', '.join(value for _, value in targets)}"
        f" FROM unnest({arrays}) AS s({', '.join(['id', 'p', *names])})"
        + (f", {table.record_sql()}" if table.fields else "")
        + f" ON CONFLICT ({quoted(table.id_column)}) DO UPDATE"
        f" SET {', '.join(f'{name} = excluded.{name}' for name, _ in targets[1:])}"
        + (" WHERE t.collection_id = excluded.collection_id" if table.collection else "")
    )
    oids = [OIDS[table.id_type], OIDS["jsonb"], *(item.oid for item in table.vectors)]
    return conn.execute(query, [array(oid, pieces) for oid, pieces in zip(oids, columns, strict=True)]).rowcount


def unpack(table: Table, rows: list[tuple[Any, ...]]) -> PointBatch:
    """The points of a page that `select_sql` read. Permanent where a row is no point."""
    if not rows:
        return empty_batch(table.schema)
    raw_ids, raw_payloads, *columns = zip(*rows, strict=True)
    ids: list[PointId] = list(raw_ids) if table.id_type == "bigint" else [item.decode() for item in raw_ids]
    payloads = list(raw_payloads)
    if not table.fields and None in payloads:
        payloads = [b"{}" if text is None else text for text in payloads]
    if bad := [row for row, text in enumerate(payloads) if text is None or not text.lstrip().startswith(b"{")]:
        clash = payloads[bad[0]] is None
        raise Permanent(
            "Columns and payload have the same key" if clash else "A payload is no JSON object",
            f"collection {table.schema.name}, ids {', '.join(str(ids[row]) for row in bad[:5])}",
            f"List the columns to carry in tables.{table.schema.name}.fields." if clash else "",
        )
    batch = PointBatch(ids=ids, vectors={}, payloads=Payloads(json=payloads))
    for item, column in zip(table.vectors, columns, strict=True):
        if item.type == "sparsevec":
            batch.sparse[item.name] = [None if data is None else _unpack_sparse(data) for data in column]
            continue
        if None in column:
            batch.missing[item.name] = np.fromiter((data is None for data in column), bool, len(column))
        batch.vectors[item.name] = _unpack_dense(table, item, ids, column)
    return batch


def array(oid: int, pieces: list[bytes]) -> Binary:
    """A one-dimensional array that may hold NULLs."""
    return Binary(struct.pack(">iiIii", 1, 1, oid, len(pieces), 1) + b"".join(pieces))


def _cut_rows(block: NDArray[Any]) -> list[bytes]:
    """The bytes of each row of a structured array."""
    data, size = block.tobytes(), block.dtype.itemsize
    return [data[start : start + size] for start in range(0, len(data), size)]


def _pack_ids(table: Table, ids: list[PointId]) -> list[bytes]:
    if table.id_type == "text":
        texts = [cast("str", item).encode() for item in ids]
        return [struct.pack(">i", len(text)) + text for text in texts]
    value: Any
    if table.id_type == "uuid":
        value = np.frombuffer(bytes.fromhex("".join(cast("list[str]", ids)).replace("-", "")), "V16")
    else:
        value = np.array(ids, ">i8")
    block = np.empty(len(ids), [("length", ">i4"), ("value", value.dtype)])
    block["length"], block["value"] = value.dtype.itemsize, value
    return _cut_rows(block)


def _may_have_exponent(text: bytes) -> bool:
    """Whether a digit, an e and a digit or plus follow each other anywhere; ten times as fast as a regular expression."""
    data = np.frombuffer(text, np.uint8)
    digit = data - np.uint8(48) < 10
    return bool((digit[:-2] & ((data[1:-1] | 32) == 101) & (digit[2:] | (data[2:] == 43))).any())


def _written_out(token: re.Match[bytes]) -> bytes:
    """1e300 in digits and with a fraction: jsonb would print it as an integer, and it would come back as one."""
    text = token.group(1)
    if text is None or len(text.lower().split(b"e")[1]) > 4:
        return token.group()
    digits = format(Decimal(text.decode()), "f")
    return (digits if "." in digits else digits + ".0").encode()


def _pack_vector(item: Vector, batch: PointBatch) -> list[bytes]:
    if item.type == "sparsevec":
        size = item.size or SPARSE_DIMENSIONS
        return [_pack_sparse(entry, size) for entry in batch.sparse.get(item.name, [None] * len(batch))]
    if item.name not in batch.vectors:
        return [_NULL] * len(batch)
    matrix = batch.vectors[item.name]
    block = np.empty(len(batch), [("length", ">i4"), *_dense_form(item, matrix.shape[1])])
    block["length"], block["dimension"], block["unused"] = block.dtype.itemsize - 4, matrix.shape[1], 0
    block["numbers"] = matrix
    pieces = _cut_rows(block)
    for row in np.flatnonzero(batch.missing.get(item.name, np.zeros(0, bool))):
        pieces[row] = _NULL
    return pieces


def _dense_form(item: Vector, dimension: int) -> list[Any]:
    number = ">f2" if item.type == "halfvec" else ">f4"
    return [("dimension", ">i2"), ("unused", ">i2"), ("numbers", number, (dimension,))]


def _unpack_dense(
    table: Table, item: Vector, ids: list[PointId], column: Sequence[bytes | None]
) -> NDArray[np.float32]:
    """float32 (n, dimension); missing vectors are zeros. Permanent where the dimensions differ."""
    dimension = table.schema.vector(item.name).dimension
    form = np.dtype(_dense_form(item, dimension))
    blank = bytes(form.itemsize)
    rows = [blank if data is None else data for data in column]
    if odd := [str(ids[row]) for row, data in enumerate(rows) if len(data) != form.itemsize]:
        raise Permanent(
            "Vectors of one column have different dimensions",
            f"collection {table.schema.name}, {item.column}: not {dimension} in ids {', '.join(odd[:5])} ({len(odd)})",
        )
    return np.frombuffer(b"".join(rows), form)["numbers"].astype(np.float32, order="C")


def _pack_sparse(entry: SparseVector | None, size: int) -> bytes:
    if entry is None:
        return _NULL
    kept = entry.values != 0
    indices, values = entry.indices[kept].astype(">i4"), entry.values[kept].astype(">f4")
    head = struct.pack(">iiii", 12 + 8 * len(indices), size, len(indices), 0)
    return bytes(head + indices.tobytes() + values.tobytes())


def _unpack_sparse(data: bytes) -> SparseVector:
    count = struct.unpack_from(">i", data, 4)[0]
    indices = np.frombuffer(data, ">i4", count, 12).astype(np.int64)
    return SparseVector(indices, np.frombuffer(data, ">f4", count, 12 + 4 * count).astype(np.float32))
