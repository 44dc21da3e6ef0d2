"""Points in columns, from and to Qdrant's two forms: gRPC messages, and the client's records (REST, local mode)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runner.points import Float32Matrix, Payloads, PointBatch, PointId, SparseVector, canonical_uuid
from runner.stores.qdrant.payload import get_value, set_value, softened


class Layout(NamedTuple):
    """What reading needs to know of a collection: dense name -> dimension, sparse names, custom sharding."""

    dense: dict[str, int]
    sparse: list[str]
    sharded: bool


def sort_key(point_id: PointId) -> tuple[bool, int, str]:
    """Qdrant's order of ids: integers by value, then UUIDs."""
    return (True, 0, point_id) if isinstance(point_id, str) else (False, point_id, "")


def is_id(value: PointId) -> bool:
    """Whether a point of Qdrant can have this id at all; a request with another one is refused as a whole."""
    return 0 <= value < 2**64 if isinstance(value, int) else canonical_uuid(value)


def message_id(value: PointId) -> Any:
    from qdrant_client import grpc

    return grpc.PointId(num=value) if isinstance(value, int) else grpc.PointId(uuid=value)


def _frames(grpc: Any, name: str | None, matrix: Float32Matrix) -> tuple[bytes, int]:
    """For each row a serialised `Vectors` message, all of one width. Its last 4·d bytes are the numbers, so the
    bytes before them, taken from a message of zeros, are the same for every row. No name: the only vector there is.
    """
    zeros = grpc.Vector(dense=grpc.DenseVector(data=np.zeros(matrix.shape[1], np.float32)))
    named = None if name is None else grpc.NamedVectors(vectors={name: zeros})
    sample = grpc.Vectors(vectors=named) if named else grpc.Vectors(vector=zeros)
    frame = np.frombuffer(sample.SerializeToString(), np.uint8)
    frames = np.empty((len(matrix), len(frame)), np.uint8)
    frames[:] = frame
    frames[:, -4 * matrix.shape[1] :] = np.ascontiguousarray(matrix, "<f4").view(np.uint8)
    return frames.tobytes(), len(frame)


def upsert_request(name: str, batch: PointBatch) -> Any:
    """The gRPC request that writes `batch`; vectors are copied into their wire form, row by row."""
    from qdrant_client import grpc

    alone = list(batch.vectors) == [""] and not batch.sparse
    dense = [
        (batch.missing.get(key), *_frames(grpc, None if alone else key, matrix))
        for key, matrix in batch.vectors.items()
    ]
    request = grpc.UpsertPoints(collection_name=name, wait=True)
    add = request.points.add
    for row, (point_id, payload) in enumerate(zip(batch.ids, batch.payloads.dicts, strict=True)):
        point = add()
        if isinstance(point_id, int):
            point.id.num = point_id
        else:
            point.id.uuid = point_id
        vectors, fields = point.vectors, point.payload
        for missing, frames, width in dense:
            if missing is None or not missing[row]:
                vectors.MergeFromString(frames[row * width : (row + 1) * width])
        for key, entries in batch.sparse.items():
            if (entry := entries[row]) is not None:
                # naming the message keeps a vector without any position
                sparse = vectors.vectors.vectors[key].sparse
                sparse.SetInParent()
                sparse.indices.extend(entry.indices.tolist())
                sparse.values.extend(entry.values.tolist())
        if vectors.WhichOneof("vectors_options") is None:
            vectors.vectors.SetInParent()  # a point without any vector
        for key, value in payload.items():
            set_value(fields[key], value)
    return request


def structs(batch: PointBatch) -> list[Any]:
    """`batch` as the client's models, for REST and local mode."""
    from qdrant_client import models

    columns = {key: matrix.tolist() for key, matrix in batch.vectors.items()}
    found = []
    for row, (point_id, payload) in enumerate(zip(batch.ids, batch.payloads.dicts, strict=True)):
        vectors: dict[str, Any] = {
            key: column[row]
            for key, column in columns.items()
            if key not in batch.missing or not batch.missing[key][row]
        }
        for key, entries in batch.sparse.items():
            if (entry := entries[row]) is not None:
                vectors[key] = models.SparseVector(indices=entry.indices.tolist(), values=entry.values.tolist())
        # model_construct: validating a vector number by number would take longer than storing it
        found.append(models.PointStruct.model_construct(id=point_id, vector=vectors, payload=softened(payload)))
    return found


def _vector_of(point: Any, name: str) -> Any:
    """The `VectorOutput` of that name, or None. The unnamed vector comes alone or in the map under ""."""
    if not name and point.vectors.HasField("vector"):
        return point.vectors.vector
    named = point.vectors.vectors.vectors
    return named.get(name)


def from_messages(layout: Layout, points: Sequence[Any]) -> PointBatch:
    """Points of a gRPC answer in columns. Older servers put the numbers into fields that are now deprecated."""
    payloads = []
    for point in points:
        fields = point.payload
        payloads.append({key: get_value(fields[key]) for key in fields})
    batch = PointBatch([point.id.uuid or point.id.num for point in points], {}, Payloads(payloads))
    for name, dimension in layout.dense.items():
        size, rows, missing = 4 * dimension, [], []
        for point in points:
            vector = _vector_of(point, name)
            missing.append(vector is None)
            # in the old form and the new the message ends with the packed floats: no Python number is made of them
            rows.append(bytes(size) if vector is None else vector.SerializeToString()[-size:])
        matrix = np.frombuffer(bytearray().join(rows), "<f4").reshape(len(points), dimension)
        _add_dense(batch, name, matrix, missing)
    for name in layout.sparse:
        found = [_vector_of(point, name) for point in points]
        batch.sparse[name] = [
            None
            if vector is None
            else _sparse(vector.sparse.indices or vector.indices.data, vector.sparse.values or vector.data)
            for vector in found
        ]
    if layout.sharded:
        batch.partitions = [point.shard_key.keyword or str(point.shard_key.number) for point in points]
    return batch


def from_records(layout: Layout, records: Sequence[Any]) -> PointBatch:
    """Points as local mode and REST give them, in columns."""
    batch = PointBatch([item.id for item in records], {}, Payloads([item.payload or {} for item in records]))
    vectors = [item.vector if isinstance(item.vector, dict) else {"": item.vector} for item in records]
    for name, dimension in layout.dense.items():
        zeros, found = [0.0] * dimension, [item.get(name) for item in vectors]
        matrix = np.array([zeros if row is None else row for row in found], np.float32).reshape(-1, dimension)
        _add_dense(batch, name, matrix, [row is None for row in found])
    for name in layout.sparse:
        batch.sparse[name] = [
            None if (vector := item.get(name)) is None else _sparse(vector.indices, vector.values) for item in vectors
        ]
    if layout.sharded:
        batch.partitions = [str(item.shard_key) for item in records]
    return batch


def _add_dense(batch: PointBatch, name: str, matrix: Float32Matrix, missing: list[bool]) -> None:
    batch.vectors[name] = matrix
    if any(missing):
        batch.missing[name] = np.array(missing, bool)


def _sparse(indices: Iterable[int], values: Iterable[float]) -> SparseVector:
    positions, numbers = np.array(list(indices), np.int64), np.array(list(values), np.float32)
    order = np.argsort(positions, kind="stable")
    return SparseVector(positions[order], numbers[order])


def unit_rows(matrix: Float32Matrix) -> Float32Matrix:
    """Rows scaled as a server does it under cosine: those of length near 0 or 1 stay as they are.

    Local mode scales in memory but writes the original to its file, so that after opening it again other vectors come.
    """
    squares: NDArray[np.float32] = np.einsum("ij,ij->i", matrix, matrix)
    keep = (squares < np.finfo(np.float32).eps) | (np.abs(squares - 1) <= 1e-6)
    lengths = np.sqrt(np.where(keep, np.float32(1), squares)).astype(np.float32)
    return np.divide(matrix, lengths[:, None], dtype=np.float32)
