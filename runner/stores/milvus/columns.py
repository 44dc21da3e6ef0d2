"""Batches of points and the columns of Milvus' gRPC messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.points import Float32Matrix, Payload, Payloads, PointBatch, PointId, SparseVector, json_loads
from runner.stores.milvus.layout import (
    ARRAY,
    BFLOAT16_VECTOR,
    BOOL,
    DOUBLE,
    FLOAT,
    FLOAT16_VECTOR,
    FLOAT_VECTOR,
    GEOMETRY,
    HIDDEN,
    INT8,
    INT16,
    INT32,
    INT64,
    JSON,
    SPARSE_VECTOR,
    TIMESTAMPTZ,
    VARCHAR,
    Field,
    Layout,
)
from runner.stores.milvus.payload import Split, hider, restored

#: type -> member of ScalarField that holds its column.
_SLOTS = dict.fromkeys((INT8, INT16, INT32), "int_data") | {
    BOOL: "bool_data",
    INT64: "long_data",
    FLOAT: "float_data",
    DOUBLE: "double_data",
    VARCHAR: "string_data",
    JSON: "json_data",
    GEOMETRY: "geometry_wkt_data",
    TIMESTAMPTZ: "string_data",
}
_SPARSE_ENTRY = np.dtype([("i", "<u4"), ("v", "<f4")])
_NO_ENTRIES = SparseVector(np.empty(0, np.int64), np.empty(0, np.float32))
_MARK = f'"{HIDDEN}"'.encode()


# From an answer -------------------------------------------------------------------------------------------------------


def keys_of(layout: Layout, fields: Sequence[Any]) -> list[PointId]:
    """The primary keys in the columns of an answer, which may have none at all."""
    for item in fields:
        if item.field_name == layout.key:
            return list(item.scalars.string_data.data if layout.text_key else item.scalars.long_data.data)
    return []


def unpack(layout: Layout, fields: Sequence[Any]) -> PointBatch:
    """The columns of an answer as a batch."""
    columns = {item.field_name: item for item in fields}
    batch = PointBatch(keys_of(layout, fields), {}, Payloads([]))
    rows = len(batch)
    for label, (kind, dimension) in layout.dense.items():
        batch.vectors[label], valid = _matrix(columns.get(label), kind, dimension, rows)
        if not valid.all():
            batch.missing[label] = ~valid
    for label in layout.sparse:
        batch.sparse[label] = _sparse(columns[label]) if label in columns else [None] * rows
    meta = next((item for item in fields if item.is_dynamic), None)
    texts: list[bytes] = list(meta.scalars.json_data.data) if meta is not None else []
    if len(texts) != rows:  # no dynamic field, or nothing in it
        texts = [b"{}"] * rows
    texts = [restored(text) if _MARK in text else text or b"{}" for text in texts]
    typed = {label: _values(columns[label]) for label in layout.typed if label in columns}
    if not typed:
        batch.payloads = Payloads(json=texts)
        return batch
    payloads = []
    for row, text in enumerate(texts):
        payload: Payload = {label: column[row] for label, column in typed.items() if column[row] is not None}
        payloads.append(payload | json_loads(text))
    batch.payloads = Payloads(payloads)
    return batch


def joined(parts: Sequence[PointBatch]) -> PointBatch:
    """One batch of several, all of one collection."""
    first = parts[0]
    if len(parts) == 1:
        return first
    none = {label for part in parts for label in part.missing}
    return PointBatch(
        ids=[point_id for part in parts for point_id in part.ids],
        vectors={label: np.concatenate([part.vectors[label] for part in parts]) for label in first.vectors},
        payloads=Payloads(json=[text for part in parts for text in part.payloads.json]),
        sparse={label: [entry for part in parts for entry in part.sparse[label]] for label in first.sparse},
        missing={
            label: np.concatenate([part.missing.get(label, np.zeros(len(part), bool)) for part in parts])
            for label in none
        },
        partitions=None if first.partitions is None else [item for part in parts for item in part.partitions or ()],
    )


def _floats(message: Any) -> NDArray[np.float32]:
    """The floats of a FloatArray. Its wire form is tag, length, little-endian block: one copy instead of n objects."""
    raw = message.SerializeToString()
    start = 1
    while start < len(raw) and raw[start] & 0x80:
        start += 1
    return np.frombuffer(raw, "<f4", offset=min(start + 1, len(raw))).astype(np.float32)


def _matrix(column: Any, kind: int, dimension: int, rows: int) -> tuple[Float32Matrix, NDArray[np.bool_]]:
    """The vectors, and which points have one."""
    if column is None:
        return np.zeros((rows, dimension), np.float32), np.zeros(rows, bool)
    vectors = column.vectors
    if kind == FLOAT_VECTOR:
        flat = _floats(vectors.float_vector)
    elif kind == FLOAT16_VECTOR:
        flat = np.frombuffer(vectors.float16_vector, "<f2").astype(np.float32)
    elif kind == BFLOAT16_VECTOR:  # the upper half of a float32
        flat = (np.frombuffer(vectors.bfloat16_vector, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        flat = np.frombuffer(vectors.int8_vector, np.int8).astype(np.float32)
    matrix = flat.reshape(-1, dimension)
    valid = np.array(column.valid_data, bool)
    if valid.all():
        return matrix, valid
    full = np.zeros((rows, dimension), np.float32)
    # Lite puts zeros where there is none, a server leaves them out
    full[valid] = matrix[valid] if len(matrix) == rows else matrix
    return full, valid


def _sparse(column: Any) -> list[SparseVector | None]:
    """Each entry is pairs of uint32 position and float32 value."""
    found: list[SparseVector | None] = []
    for text in _spread(list(column.vectors.sparse_float_vector.contents), column.valid_data):
        entry = np.frombuffer(text or b"", _SPARSE_ENTRY)
        found.append(SparseVector(entry["i"].astype(np.int64), entry["v"].astype(np.float32)) if text else None)
    return found


def _values(column: Any) -> list[Any]:
    """The values of a typed field; None is null. FLOAT gives the exact value of the float32, with all its digits."""
    slot = column.scalars.WhichOneof("data")
    values = list(getattr(column.scalars, slot).data) if slot else []
    if slot == "array_data":
        slots = [item.WhichOneof("data") for item in values]
        values = [list(getattr(item, name).data) if name else [] for item, name in zip(values, slots, strict=True)]
    elif slot == "json_data":
        values = [json_loads(text) if text else None for text in values]
    return _spread(values, column.valid_data)


def _spread(values: list[Any], valid: Sequence[bool]) -> list[Any]:
    """None where there is no value: Lite leaves a place for it, a server does not."""
    if not valid:
        return values
    if len(values) < len(valid):
        rest = iter(values)
        return [next(rest) if there else None for there in valid]
    return [value if there else None for value, there in zip(values, valid, strict=True)]


# Into a request -------------------------------------------------------------------------------------------------------


def pack(layout: Layout, request: Any, batch: PointBatch) -> None:
    """Add the columns of a batch to an InsertRequest or UpsertRequest. Raises what protobuf raises of a bad value."""
    column = request.fields_data.add(field_name=layout.key, type=VARCHAR if layout.text_key else INT64)
    scalars = column.scalars.string_data if layout.text_key else column.scalars.long_data
    scalars.data.extend(batch.ids)
    for label, (kind, dimension) in layout.dense.items():
        column = request.fields_data.add(field_name=label, type=kind)
        column.vectors.dim = dimension
        _put_matrix(column.vectors, kind, batch.vectors[label])
    for label in layout.sparse:
        entries = [entry or _NO_ENTRIES for entry in batch.sparse[label]]
        column = request.fields_data.add(field_name=label, type=SPARSE_VECTOR).vectors.sparse_float_vector
        column.dim = max((int(entry.indices[-1]) + 1 for entry in entries if len(entry.indices)), default=0)
        column.contents.extend(map(_sparse_bytes, entries))
    if layout.typed or not layout.dynamic:
        splits = [Split(layout, payload) for payload in batch.payloads.dicts]
        texts = [item.text for item in splits]
        for label, field in layout.typed.items():
            column = request.fields_data.add(field_name=label, type=field.type)
            _put_values(column, field, [item.values[label] for item in splits])
    else:
        texts = list(map(hider(layout), batch.payloads.json))
    if layout.dynamic:
        column = request.fields_data.add(field_name="$meta", type=JSON, is_dynamic=True)
        column.scalars.json_data.data.extend(texts)


def _put_matrix(vectors: Any, kind: int, matrix: Float32Matrix) -> None:
    if kind == FLOAT_VECTOR:
        raw = np.ascontiguousarray(matrix, "<f4").tobytes()
        size, length = len(raw), bytearray()
        while size > 0x7F:
            length.append(size & 0x7F | 0x80)
            size >>= 7
        vectors.float_vector.MergeFromString(b"\x0a" + bytes(length) + bytes([size]) + raw)
    elif kind == FLOAT16_VECTOR:
        vectors.float16_vector = matrix.astype("<f2").tobytes()
    elif kind == BFLOAT16_VECTOR:
        vectors.bfloat16_vector = (np.ascontiguousarray(matrix, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    else:
        vectors.int8_vector = matrix.astype(np.int8).tobytes()


def _sparse_bytes(entry: SparseVector) -> bytes:
    pairs = np.empty(len(entry.indices), _SPARSE_ENTRY)
    pairs["i"], pairs["v"] = entry.indices, entry.values
    return pairs.tobytes()


def _put_values(column: Any, field: Field, values: list[Any]) -> None:
    if field.nullable:
        column.valid_data.extend(value is not None for value in values)
        values = [value for value in values if value is not None]
    if field.type == ARRAY:
        array = column.scalars.array_data
        array.element_type = field.element
        for value in values:
            getattr(array.data.add(), _SLOTS[field.element]).data.extend(value)
        return
    getattr(column.scalars, _SLOTS[field.type]).data.extend(values)
