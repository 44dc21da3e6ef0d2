"""The contract of a store, what it can do, and the wrappers that keep planning and dry runs from writing.

An adapter knows only this file, `points` and `errors`. All methods may be called from several threads; vendor
errors leave an adapter as `Transient` or `Permanent`; no secret appears in `repr` or in an error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import BaseModel, ConfigDict

from runner.conditions import Condition, holds
from runner.errors import Permanent
from runner.points import (
    CollectionSchema,
    Datatype,
    Distance,
    Float32Matrix,
    IdKind,
    KeyRange,
    PointBatch,
    PointId,
    VectorField,
)

#: Codes of what a target cannot hold. VL may be accepted in the spec with a reason, VX never, VI only informs.
NORMS = "VL101"  # the store scales cosine vectors to length 1; the magnitude is gone
PRECISION = "VL102"  # float32 numbers are stored with fewer bits
PAYLOAD_FIELD = "VL103"  # a payload field or value that the target cannot hold
ALIASES = "VI101"  # aliases of the source that are not carried
INDEX = "VI102"  # index settings the target has no equal for; its own defaults are used
PARTITIONS = "VI103"  # partitions become a payload field
REFUSED = "VX101"  # the target cannot hold this at all
BAD_VECTOR = "VX102"  # NaN, infinity, or a length other than the dimension
BAD_ID = "VX103"  # an id the target cannot hold


class ConnectionConfig(BaseModel):
    """Settings of one connection; each adapter extends it. `type` chooses the adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: str

    @property
    def unshared(self) -> str:
        """Why only one process at a time can open it; empty if several can."""
        return ""

    @property
    def local(self) -> bool:
        """Whether it lies in the file system of a host, so that another host would find something else there."""
        return False


@dataclass(frozen=True)
class Capabilities:
    """What the open connection can do (an embedded edition may do less than its server)."""

    id_kinds: frozenset[IdKind]
    distances: frozenset[Distance]
    default_vector_name: str  # the name a collection's only vector gets; "" where it is unnamed
    id_int_range: tuple[int, int] = (-(2**63), 2**63 - 1)
    id_max_bytes: int | None = None  # for string ids, in UTF-8
    datatypes: frozenset[Datatype] = frozenset({Datatype.FLOAT32})
    max_dimension: int = 16_000
    max_vectors: int = 1  # dense vectors a point may have
    sparse: bool = False
    missing_vectors: bool = False  # a point may lack one of its dense vectors
    normalises: frozenset[Distance] = frozenset()  # metrics whose vectors are scaled to length 1 when written
    aliases: bool = False
    shared_ids: bool = False  # an id is unique over all collections, so no two hold the same point
    partitions: bool = False
    partition_key: bool = False
    max_batch: int = 10_000  # points one write may carry
    parallel: bool = True  # several partitions at once are faster than one
    exclusive: bool = False  # only one process at a time may open it
    durable: bool = True  # False for a store that is gone with the process


@dataclass(frozen=True)
class Problem:
    """Something a target cannot hold: `code` (above), what, and up to five ids where it was seen."""

    code: str
    message: str
    field: str = ""
    ids: tuple[PointId, ...] = ()
    count: int = 0

    @property
    def acceptable(self) -> bool:
        """Whether a spec may accept it (`accept: [{code, reason}]`)."""
        return self.code.startswith("VL")


@dataclass(frozen=True)
class Health:
    """Answer of a connection test. `rights` names what this login may do; latency is one round trip in ms."""

    version: str
    latency_ms: float
    rights: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Hit:
    """A point that was found. `score`: higher is nearer; cosine similarity, dot product, or the distance below zero."""

    id: PointId
    score: float


class Store(ABC):
    """One vector database. Absence is None or empty, never an error; ids keep their type; inputs are not mutated."""

    type: str = ""

    @classmethod
    @abstractmethod
    def connect(cls, config: ConnectionConfig) -> Store:
        """Open it. Raises Transient when unreachable, Permanent when the credentials are wrong."""

    @abstractmethod
    def capabilities(self) -> Capabilities: ...

    @abstractmethod
    def health(self) -> Health:
        """One round trip: version, latency, rights. Raises like `connect`."""

    @abstractmethod
    def collections(self) -> list[str]:
        """Names of all collections, sorted; aliases and vecrun's own are not among them."""

    @abstractmethod
    def inspect(self, name: str) -> CollectionSchema | None:
        """What the collection looks like now; None if there is none. `name` is no alias."""

    def columns(self, name: str) -> tuple[str, ...]:
        """Payload fields that have columns of their own, for who reads the collection past vecrun. What `create` makes has none."""
        return ()

    @abstractmethod
    def count(self, name: str) -> int:
        """Exact number of points, everything written so far included."""

    @abstractmethod
    def size_bytes(self, name: str) -> int | None:
        """Bytes on disk, if the store tells."""

    @abstractmethod
    def cut(self, name: str, parts: int) -> list[KeyRange]:
        """About `parts` ranges of roughly equal size that together cover every possible id exactly once."""

    @abstractmethod
    def scan(
        self, name: str, keys: KeyRange, after: PointId | None = None, batch_size: int = 1000
    ) -> Iterator[PointBatch]:
        """Batches of at most `batch_size` points in key order, all with ids in `keys` and beyond `after`.

        A scan started again after the last id of a batch gives the rest: no gap, no repeat. Vectors come as stored.
        """

    @abstractmethod
    def fetch(self, name: str, ids: Sequence[PointId]) -> PointBatch:
        """The points with these ids that exist, in any order."""

    def find(self, name: str, where: Sequence[Condition] = (), batch_size: int = 1000) -> Iterator[PointBatch]:
        """Points that meet all conditions, without their vectors, in any order, each once. An adapter narrows the search
        as far as its own filters are sure to miss none; what matches is decided here."""
        for batch in self.candidates(name, where, batch_size):
            rows = [row for row, item in enumerate(batch.payloads.dicts) if all(holds(one, item) for one in where)]
            if rows:
                yield batch if len(rows) == len(batch) else batch.take(rows)

    def candidates(self, name: str, where: Sequence[Condition], batch_size: int) -> Iterator[PointBatch]:
        """Points that may meet all conditions: all that do, and perhaps others. Each once; their vectors may be left out."""
        for batch in self.scan(name, KeyRange(), None, batch_size):
            yield PointBatch(batch.ids, {}, batch.payloads)

    @abstractmethod
    def search(self, name: str, vector: str, queries: Float32Matrix, limit: int) -> list[list[Hit]]:
        """The `limit` nearest points for each row of `queries` (shape (n, dimension) of the dense vector `vector`), best
        first, by the store's index where it has one. Sees everything that was written before `finish`."""

    @abstractmethod
    def create(self, schema: CollectionSchema) -> None:
        """Make an empty collection, ready for a fast load (slow indexes come with `finish`). Exists already: Permanent."""

    @abstractmethod
    def finish(self, schema: CollectionSchema) -> None:
        """After the load: build the indexes of `schema`, make it searchable. Harmless when repeated."""

    @abstractmethod
    def drop(self, name: str) -> None:
        """Remove the collection with everything in it. Absent: nothing happens."""

    @abstractmethod
    def upsert(self, name: str, batch: PointBatch) -> None:
        """Insert or replace by id. Returns once the points are durable and counted. Repeating is harmless.

        Raises TooLarge when a smaller batch may pass. `batch` has passed `problems` with nothing unaccepted.
        """

    @abstractmethod
    def delete(self, name: str, ids: Sequence[PointId]) -> None:
        """Remove these points; ids that are not there are ignored. Durable on return."""

    @abstractmethod
    def aliases(self) -> dict[str, str]:
        """alias -> collection. Empty where the store has none."""

    def alias_taken(self, alias: str) -> str:
        """Why `alias` cannot become an alias: something else has the name. Empty when it can, or is one already."""
        return f"{alias} is a collection there" if alias in self.collections() else ""

    @abstractmethod
    def set_alias(self, alias: str, name: str | None) -> None:
        """Point `alias` at a collection, atomically; None removes it. Repeating is harmless."""

    def fit(self, wish: CollectionSchema) -> tuple[CollectionSchema, list[Problem]]:
        """The schema this store would create for `wish`, and what of it cannot be held. Adapters extend it."""
        caps, problems = self.capabilities(), []
        vectors = []
        for wished in wish.vectors:
            item, label = wished, wished.name or "(unnamed)"
            if item.distance not in caps.distances:
                problems.append(Problem(REFUSED, f"{self.type} has no metric {item.distance}", f"vector {label}"))
            if item.dimension > caps.max_dimension:
                problems.append(
                    Problem(
                        REFUSED,
                        f"{item.dimension} dimensions; {self.type} holds at most {caps.max_dimension}",
                        f"vector {label}",
                    )
                )
            if item.datatype not in caps.datatypes:
                item = item.model_copy(update={"datatype": Datatype.FLOAT32})
            elif item.datatype != Datatype.FLOAT32:
                problems.append(Problem(PRECISION, f"stored as {item.datatype}", f"vector {label}"))
            vectors.append(item)
        if len(wish.vectors) > caps.max_vectors:
            names = ", ".join(item.name or "(unnamed)" for item in wish.vectors)
            problems.append(
                Problem(
                    REFUSED,
                    f"{len(wish.vectors)} dense vectors a point ({names}); {self.type} holds {caps.max_vectors}",
                )
            )
        if wish.sparse and not caps.sparse:
            names = ", ".join(item.name for item in wish.sparse)
            problems.append(Problem(REFUSED, f"sparse vectors ({names}); {self.type} has none"))
        if wish.id_kind not in caps.id_kinds:
            problems.append(Problem(BAD_ID, f"{wish.id_kind} ids; {self.type} has {', '.join(sorted(caps.id_kinds))}"))
        return wish.model_copy(update={"vectors": tuple(vectors), "settings": {}}), problems

    def problems(self, schema: CollectionSchema, batch: PointBatch) -> list[Problem]:
        """What of `batch` a collection with `schema` here could not hold exactly. Cheap: runs on every batch.

        The base checks ids and vectors for all stores; adapters add their payload rules.
        """
        found = list(id_problems(self.capabilities(), schema, batch))
        for item in schema.vectors:
            if item.name in batch.vectors:
                found += vector_problems(self.capabilities(), item, batch)
        for sparse in schema.sparse:
            if sparse.name not in batch.sparse:
                continue
            bad = tuple(
                point_id
                for point_id, entry in zip(batch.ids, batch.sparse[sparse.name], strict=True)
                if entry is not None and not np.isfinite(entry.values).all()
            )
            if bad:
                found.append(Problem(BAD_VECTOR, "NaN or infinity", f"vector {sparse.name}", bad[:5], len(bad)))
        return found

    @abstractmethod
    def close(self) -> None:
        """Release everything. May be called twice."""

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def id_problems(caps: Capabilities, schema: CollectionSchema, batch: PointBatch) -> Iterator[Problem]:
    """Ids of another kind than the collection's, outside the store's range of integers, or longer than its limit."""
    low, high = caps.id_int_range
    longest = min((n for n in (caps.id_max_bytes, schema.id_max_length) if n is not None), default=None)
    bad: list[PointId] = []
    wrong = {IdKind.INT: (str,), IdKind.INT_OR_UUID: ()}.get(schema.id_kind, (int,))
    other = [point_id for point_id in batch.ids if isinstance(point_id, wrong)]
    if other:
        yield Problem(BAD_ID, f"no {schema.id_kind} id", "id", tuple(other[:5]), len(other))
    for point_id in batch.ids:
        if isinstance(point_id, int):
            if not low <= point_id <= high:
                bad.append(point_id)
        elif longest is not None and len(point_id) * 4 > longest and len(point_id.encode()) > longest:
            bad.append(point_id)
    if bad:
        limit = f"integers {low} … {high}" + (f", strings up to {longest} bytes" if longest else "")
        yield Problem(BAD_ID, f"id out of range ({limit})", "id", tuple(bad[:5]), len(bad))


def vector_problems(caps: Capabilities, item: VectorField, batch: PointBatch) -> Iterator[Problem]:
    """NaN and infinities, a wrong dimension, missing vectors, and lengths that a normalising store would drop."""
    matrix = batch.vectors[item.name]
    label = f"vector {item.name or '(unnamed)'}"
    if matrix.shape[1] != item.dimension:
        yield Problem(
            BAD_VECTOR,
            f"{matrix.shape[1]} numbers where {item.dimension} are expected",
            label,
            tuple(batch.ids[:5]),
            len(batch),
        )
        return

    def named(rows: np.ndarray) -> tuple[tuple[PointId, ...], int]:
        where = np.flatnonzero(rows)
        return tuple(batch.ids[int(row)] for row in where[:5]), len(where)

    missing = batch.missing.get(item.name)
    present = np.ones(len(batch), bool) if missing is None else ~missing
    if missing is not None and missing.any() and not caps.missing_vectors:
        yield Problem(REFUSED, "a point without this vector", label, *named(missing))
    # one dot product a row finds both: NaN and infinity spread into it, and its root is the length
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)
    bad = ~np.isfinite(squares)
    if bad.any():
        yield Problem(BAD_VECTOR, "NaN or infinity", label, *named(bad))
    if item.distance in caps.normalises:
        scaled = present & ~bad & (squares > 0) & (np.abs(squares - 1.0) > 1e-4)
        if scaled.any():
            yield Problem(NORMS, "not of length 1; the store scales it and the length is lost", label, *named(scaled))


def check_queries(place: str, dimensions: Mapping[str, int], vector: str, queries: Float32Matrix) -> None:
    """Permanent unless `queries` fit the dense vector `vector`; `dimensions` tells the length of each there is, 0 if unknown."""
    label = vector or "(unnamed)"
    if vector not in dimensions:
        there = ", ".join(item or "(unnamed)" for item in dimensions) or "none"
        raise Permanent("There is no such vector", f"{place}: {label}", f"Dense vectors there: {there}.")
    if queries.ndim != 2 or (dimensions[vector] and queries.shape[1] != dimensions[vector]):
        found = f"{place}, vector {label}: {queries.shape[-1]} numbers where {dimensions[vector]} are expected"
        raise Permanent(
            "A query has another dimension than the vectors", found, "Embed it with the model of the points."
        )
    if not np.isfinite(queries).all():
        raise Permanent("A query holds NaN or infinity", f"{place}, vector {label}")


class ReadOnlyStore(Store):
    """Passes reads through and refuses every write: the planner gets nothing else, so planning cannot write."""

    def __init__(self, inner: Store) -> None:
        self.inner, self.type = inner, inner.type

    @classmethod
    def connect(cls, config: ConnectionConfig) -> Store:
        raise TypeError("wrap an open store")

    def capabilities(self) -> Capabilities:
        return self.inner.capabilities()

    def health(self) -> Health:
        return self.inner.health()

    def collections(self) -> list[str]:
        return self.inner.collections()

    def inspect(self, name: str) -> CollectionSchema | None:
        return self.inner.inspect(name)

    def columns(self, name: str) -> tuple[str, ...]:
        return self.inner.columns(name)

    def count(self, name: str) -> int:
        return self.inner.count(name)

    def size_bytes(self, name: str) -> int | None:
        return self.inner.size_bytes(name)

    def cut(self, name: str, parts: int) -> list[KeyRange]:
        return self.inner.cut(name, parts)

    def scan(
        self, name: str, keys: KeyRange, after: PointId | None = None, batch_size: int = 1000
    ) -> Iterator[PointBatch]:
        return self.inner.scan(name, keys, after, batch_size)

    def candidates(self, name: str, where: Sequence[Condition], batch_size: int) -> Iterator[PointBatch]:
        return self.inner.candidates(name, where, batch_size)

    def fetch(self, name: str, ids: Sequence[PointId]) -> PointBatch:
        return self.inner.fetch(name, ids)

    def search(self, name: str, vector: str, queries: Float32Matrix, limit: int) -> list[list[Hit]]:
        return self.inner.search(name, vector, queries, limit)

    def aliases(self) -> dict[str, str]:
        return self.inner.aliases()

    def alias_taken(self, alias: str) -> str:
        return self.inner.alias_taken(alias)

    def fit(self, wish: CollectionSchema) -> tuple[CollectionSchema, list[Problem]]:
        return self.inner.fit(wish)

    def problems(self, schema: CollectionSchema, batch: PointBatch) -> list[Problem]:
        return self.inner.problems(schema, batch)

    def create(self, schema: CollectionSchema) -> None:
        self._refuse("create")

    def finish(self, schema: CollectionSchema) -> None:
        self._refuse("finish")

    def drop(self, name: str) -> None:
        self._refuse("drop")

    def upsert(self, name: str, batch: PointBatch) -> None:
        self._refuse("upsert")

    def delete(self, name: str, ids: Sequence[PointId]) -> None:
        self._refuse("delete")

    def set_alias(self, alias: str, name: str | None) -> None:
        self._refuse("set_alias")

    def close(self) -> None:
        self.inner.close()

    def _refuse(self, verb: str) -> None:
        raise Permanent("A read-only store was asked to write", f"{self.type}: {verb}", "This is a fault of vecrun.")


class DryRunStore(ReadOnlyStore):
    """Passes reads through, accepts every write and discards it: a dry run walks the whole real code path."""

    def _refuse(self, verb: str) -> None:
        return None
