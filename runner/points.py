"""The words all stores share: points in columns, what a collection looks like, ranges of ids.

Everything here is plain data without input or output; every other room may use it.
"""

from __future__ import annotations

import builtins
import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, cast

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

#: An id as the store gives it. A UUID travels as its canonical text (lower case, hyphens).
PointId = int | str
Payload = dict[str, Any]
Float32Matrix = NDArray[np.float32]
_Rows = slice  # the method PointBatch.slice hides the name in its class


class IdKind(StrEnum):
    """What the ids of one collection are."""

    INT = "int"
    UUID = "uuid"
    STRING = "string"
    INT_OR_UUID = "int_or_uuid"  # Qdrant: both in one collection


class Distance(StrEnum):
    """Metric of a dense vector. EUCLID ranks alike whether a store squares it or not."""

    COSINE = "cosine"
    DOT = "dot"
    EUCLID = "euclid"
    MANHATTAN = "manhattan"


class Datatype(StrEnum):
    """How a store keeps the numbers of a dense vector. Inside vecrun they are always float32."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    UINT8 = "uint8"


class PayloadType(StrEnum):
    """Type of a declared payload field (or of its elements, for arrays)."""

    KEYWORD = "keyword"
    TEXT = "text"
    INTEGER = "integer"
    FLOAT = "float"
    BOOL = "bool"
    DATETIME = "datetime"
    UUID = "uuid"
    GEO = "geo"
    JSON = "json"


class Model(BaseModel):
    """Base of all immutable records that are stored in plans, states and the ledger."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class VectorIndex(Model):
    """Index of a dense vector. `m` and `ef_construction` belong to hnsw; `params` holds what only one store knows."""

    type: str = "hnsw"
    m: int | None = None
    ef_construction: int | None = None
    params: dict[str, int | float | str | bool] = {}


class VectorField(Model):
    """A dense vector of a collection. The name "" is the unnamed vector of a store that has one."""

    name: str
    dimension: int
    distance: Distance
    datatype: Datatype = Datatype.FLOAT32
    index: VectorIndex | None = None


class SparseField(Model):
    """A sparse vector of a collection (inner product). `dimension` only where the store fixes one (sparsevec)."""

    name: str
    dimension: int | None = None


class PayloadField(Model):
    """A payload field a store declares or indexes. Payloads may hold more than what is declared."""

    name: str
    type: PayloadType
    array: bool = False
    indexed: bool = False
    max_length: int | None = None


class CollectionSchema(Model):
    """What a collection looks like, in words every store can be asked for."""

    name: str
    id_kind: IdKind
    id_max_length: int | None = None
    vectors: tuple[VectorField, ...] = ()
    sparse: tuple[SparseField, ...] = ()
    payload: tuple[PayloadField, ...] = ()
    #: Names of the partitions (Milvus), tenants (Weaviate) or shard keys (Qdrant) that points are placed in by hand.
    partitions: tuple[str, ...] | None = None
    #: The payload field whose value places a point (Milvus partition key, Qdrant tenant index).
    partition_key: str | None = None
    #: What only this store knows of it (shards, replication, consistency …): shown, compared, never required.
    settings: dict[str, int | float | str | bool | None] = {}

    def vector(self, name: str) -> VectorField:
        """The dense vector called `name`; KeyError if there is none."""
        for item in self.vectors:
            if item.name == name:
                return item
        raise KeyError(name)


class KeyRange(NamedTuple):
    """Ids with `lo` <= id < `hi` in the store's own order; None is open. `partition` limits it to one of these."""

    lo: PointId | None = None
    hi: PointId | None = None
    partition: str | None = None


class SparseVector(NamedTuple):
    """One sparse vector: positions (int64, ascending) and values (float32), of equal length."""

    indices: NDArray[np.int64]
    values: NDArray[np.float32]


_BIG_INTEGER = re.compile(rb"\d{19}")


def json_loads(text: bytes) -> Any:
    """Parse JSON exactly: integers beyond 64 bits stay integers, which orjson alone would turn into floats."""
    if _BIG_INTEGER.search(text):
        return json.loads(text)
    return orjson.loads(text)


def json_dumps(value: Any) -> bytes:
    """Canonical JSON (keys sorted, no spaces); integers of any size; NaN and infinities raise ValueError."""
    try:
        text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # an integer beyond 64 bits, or something that is no JSON at all
        return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    if b"null" in text and _has_nonfinite(value):
        raise ValueError("NaN and infinity are not JSON")
    return text


def _has_nonfinite(value: Any) -> bool:
    """Whether a float inside is NaN or infinite: orjson would write null without a word."""
    if isinstance(value, float):
        return value != value or value in (float("inf"), float("-inf"))
    if isinstance(value, dict):
        return any(_has_nonfinite(item) for item in value.values())
    if isinstance(value, list):
        return any(_has_nonfinite(item) for item in value)
    return False


class Payloads(Sequence[Payload]):
    """A column of payloads, held as dicts or as JSON texts and converted at most once, on demand.

    A store that keeps JSON (pgvector, files) reads and writes texts, so a move between two of them parses nothing.
    """

    __slots__ = ("_dicts", "_json")

    def __init__(self, dicts: list[Payload] | None = None, json: list[bytes] | None = None) -> None:
        self._dicts, self._json = dicts, json

    @property
    def dicts(self) -> list[Payload]:
        """The payloads as dicts. Treat them as read-only: they are shared."""
        if self._dicts is None:
            self._dicts = [json_loads(text) for text in self._json or []]
        return self._dicts

    @property
    def json(self) -> list[bytes]:
        """The payloads as JSON objects in UTF-8."""
        if self._json is None:
            self._json = [json_dumps(item) for item in self._dicts or []]
        return self._json

    def __len__(self) -> int:
        return len(self._dicts if self._dicts is not None else self._json or [])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Payloads(
                dicts=None if self._dicts is None else self._dicts[index],
                json=None if self._json is None else self._json[index],
            )
        return self.dicts[index]

    def __iter__(self) -> Iterator[Payload]:
        return iter(self.dicts)


@dataclass(slots=True)
class PointBatch:
    """n points in columns. Treat it as immutable: batches are shared between threads.

    vectors: name -> float32 array of shape (n, dimension), C-contiguous.
    missing: name -> bool array of shape (n,), True where a point has no such dense vector (its row is zeros);
    absent when every point has one. sparse: name -> n entries, None where a point has none.
    partitions: n names, or None where the collection has no partitions.
    """

    ids: list[PointId]
    vectors: dict[str, Float32Matrix]
    payloads: Payloads
    sparse: dict[str, list[SparseVector | None]] = field(default_factory=dict)
    missing: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    partitions: list[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def slice(self, start: int, stop: int) -> PointBatch:
        """Points start … stop-1; arrays are views."""
        return self._pick(_Rows(start, stop))

    def take(self, rows: Sequence[int]) -> PointBatch:
        """The points at the given positions, in that order."""
        dicts = self.payloads.dicts
        return PointBatch(
            ids=[self.ids[row] for row in rows],
            vectors={name: matrix[list(rows)] for name, matrix in self.vectors.items()},
            payloads=Payloads([dicts[row] for row in rows]),
            sparse={name: [column[row] for row in rows] for name, column in self.sparse.items()},
            missing={name: mask[list(rows)] for name, mask in self.missing.items()},
            partitions=None if self.partitions is None else [self.partitions[row] for row in rows],
        )

    def _pick(self, rows: builtins.slice) -> PointBatch:
        return PointBatch(
            ids=self.ids[rows],
            vectors={name: matrix[rows] for name, matrix in self.vectors.items()},
            payloads=cast("Payloads", self.payloads[rows]),
            sparse={name: column[rows] for name, column in self.sparse.items()},
            missing={name: mask[rows] for name, mask in self.missing.items()},
            partitions=None if self.partitions is None else self.partitions[rows],
        )


def empty_batch(schema: CollectionSchema) -> PointBatch:
    """No points, with the columns of `schema`."""
    return PointBatch(
        ids=[],
        vectors={item.name: np.empty((0, item.dimension), np.float32) for item in schema.vectors},
        payloads=Payloads([]),
        sparse={item.name: [] for item in schema.sparse},
        partitions=[] if schema.partitions is not None else None,
    )


def canonical_uuid(value: object) -> bool:
    """Whether `value` is the text of a UUID exactly as every store gives it back (lower case, hyphens)."""
    if not isinstance(value, str) or len(value) != 36:
        return False
    try:
        return str(uuid.UUID(value)) == value
    except ValueError:
        return False
