"""Points that are known without reading any store, and a comparison of a store with them that shares no code with vecrun.

Everything comes from a seed. Odd on purpose: ids with spaces, quotes and other alphabets, texts and vectors that
many points share, a zero vector, empty payloads, null beside missing, 2^53+1, nesting.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from runner.points import (
    CollectionSchema,
    Distance,
    IdKind,
    KeyRange,
    Payload,
    Payloads,
    PointBatch,
    PointId,
    VectorField,
    VectorIndex,
)
from runner.store import Store
from runner.transform import IdMode, map_id

DIMENSION = 16

#: What the payload of the n-th point looks like, by turns. A key has one type everywhere.
PAYLOADS: dict[str, Callable[[int], Payload]] = {
    "empty": lambda _n: {},
    "same text": lambda _n: {"text": "many points share this text"},
    "text": lambda n: {"text": f"naïve 日本語 🙂 \"{n}\"\n\ttab, back\\slash and 'quote'", "number": n},
    "null": lambda n: {"maybe": None, "number": n},
    "missing": lambda n: {"number": n},
    "big": lambda n: {"count": 2**53 + 1 + 2 * n},
    "nested": lambda n: {"meta": {"list": [1, {"deep": None, "n": n}], "text": {"": []}}},
    "floats": lambda n: {"score": 1.0 if n % 2 else n / 7, "flag": n % 3 == 0},
    "keys": lambda n: {"it's": n, 'a "key"': "x", "two words": True, "ключ": str(n), "a.b": n},
    "lists": lambda n: {"tags": [], "numbers": [3, n, 3], "meta": {}},
}


@dataclass(frozen=True)
class Truth:
    """How to make the points of one collection: the same values always give the same points."""

    seed: int
    ids: IdKind
    count: int
    payloads: tuple[str, ...] = tuple(PAYLOADS)

    def points(self, vector: str) -> PointBatch:
        """All points, with their only dense vector under the name `vector`."""
        matrix = np.random.default_rng(self.seed).standard_normal((self.count, DIMENSION)).astype(np.float32)
        matrix[1::10] = matrix[1]
        matrix[3] = 0
        rows = [PAYLOADS[self.payloads[n % len(self.payloads)]](n) for n in range(self.count)]
        return PointBatch(ids=self.point_ids(), vectors={vector: matrix}, payloads=Payloads(rows))

    def point_ids(self) -> list[PointId]:
        """Different ids in an order of their own."""
        numbers = np.random.default_rng([self.seed, 1]).permutation(self.count).tolist()
        match self.ids:
            case IdKind.INT:
                return [number * 7 + (2**53 if number % 5 == 0 else 1) for number in numbers]
            case IdKind.UUID:
                return [str(uuid.uuid5(uuid.NAMESPACE_OID, str(number))) for number in numbers]
            case IdKind.INT_OR_UUID:
                return [n + 1 if n % 2 else str(uuid.uuid5(uuid.NAMESPACE_OID, str(n))) for n in numbers]
            case IdKind.STRING:
                shapes = ("doc {}", 'O\'Brien "{}"', "файл {}.pdf", "{}", "a%{}_b\\", "日本語 {} 🙂", "uuid")
                made = [shapes[n % len(shapes)].replace("{}", str(n)) for n in numbers]
                return [
                    str(uuid.uuid5(uuid.NAMESPACE_OID, str(n))) if text == "uuid" else text
                    for n, text in zip(numbers, made, strict=True)
                ]

    def moved(self, vector: str, mode: IdMode, keep_id_as: str | None) -> PointBatch:
        """The same points as they must stand in a target that was reached with this id mode."""
        batch = self.points(vector)
        ids = [map_id(point_id, mode) for point_id in batch.ids]
        rows = [
            item | {keep_id_as: old} if keep_id_as and mode is IdMode.UUID5 and new != old else item
            for old, new, item in zip(batch.ids, ids, batch.payloads.dicts, strict=True)
        ]
        return PointBatch(ids=ids, vectors=batch.vectors, payloads=Payloads(rows))

    def schema(self, name: str, vector: str) -> CollectionSchema:
        """A collection for these points. EUCLID: no store changes the numbers of its vectors."""
        item = VectorField(
            name=vector,
            dimension=DIMENSION,
            distance=Distance.EUCLID,
            index=VectorIndex(type="hnsw", m=8, ef_construction=32),
        )
        length = 200 if self.ids is IdKind.STRING else None
        return CollectionSchema(name=name, id_kind=self.ids, id_max_length=length, vectors=(item,))


@dataclass
class Counts:
    """What a store holds against what it must hold. `doubled`: seen more than once, or under an id nobody made."""

    compared: int = 0
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    examples: list[str] = field(default_factory=list)

    def __iadd__(self, other: Counts) -> Counts:
        self.compared += other.compared
        self.lost += other.lost
        self.doubled += other.doubled
        self.changed += other.changed
        self.examples = (self.examples + other.examples)[:10]
        return self

    @property
    def right(self) -> bool:
        """Whether everything is where it belongs."""
        return not (self.lost or self.doubled or self.changed)


def compare(store: Store, name: str, truth: PointBatch) -> Counts:
    """Read the whole collection through `scan` and hold every id, number and payload against `truth`."""
    counts = Counts(compared=len(truth))
    (vector,) = truth.vectors
    wanted = {
        (type(point_id), point_id): (truth.vectors[vector][row].tobytes(), _text(truth.payloads.dicts[row]))
        for row, point_id in enumerate(truth.ids)
    }
    seen: set[tuple[type, PointId]] = set()

    def note(message: str) -> None:
        if len(counts.examples) < 5:
            counts.examples.append(f"{name}: {message}")

    parts: Sequence[KeyRange] = store.cut(name, 3) if store.inspect(name) is not None else ()
    for keys in parts:
        for batch in store.scan(name, keys, None, 500):
            if set(batch.vectors) != {vector}:
                note(f"vectors {sorted(batch.vectors)}, expected {vector!r}")
                counts.changed += len(batch)
                continue
            for row, point_id in enumerate(batch.ids):
                key = type(point_id), point_id
                expected = wanted.get(key)
                if expected is None or key in seen:
                    counts.doubled += 1
                    note(f"{point_id!r} " + ("came twice" if expected else "is nobody's id"))
                    continue
                seen.add(key)
                found = batch.vectors[vector][row].tobytes(), _text(batch.payloads.dicts[row])
                if found != expected:
                    counts.changed += 1
                    what = "payload" if found[0] == expected[0] else "vector"
                    note(f"{point_id!r} {what}: expected {expected[1][:200]}, found {found[1][:200]}")
    lost = [key[1] for key in wanted if key not in seen]
    counts.lost = len(lost)
    if lost:
        note(f"{len(lost)} lost, first {lost[:3]!r}")
    held = store.count(name) if parts else 0
    if held != len(seen) + counts.doubled:
        counts.doubled += 1
        note(f"count says {held}, the scan gave {len(seen) + counts.doubled - 1}")
    return counts


def _text(payload: Payload) -> str:
    return json.dumps(payload, sort_keys=True, ensure_ascii=False)
