"""The contract of a store: every edition of every store must pass every test here (A1, A4, D6, G3).

A docstring gives the rule and what to look at when it is broken. Run one edition alone with
`VECRUN_TEST_STORES=pgvector pytest tests/contract`.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runner.errors import NotFound, Permanent, StoreError, Transient, VecrunError
from runner.points import (
    CollectionSchema,
    Datatype,
    Distance,
    Float32Matrix,
    IdKind,
    KeyRange,
    PayloadField,
    Payloads,
    PayloadType,
    PointBatch,
    PointId,
    VectorIndex,
)
from runner.store import (
    BAD_ID,
    BAD_VECTOR,
    NORMS,
    PAYLOAD_FIELD,
    PRECISION,
    REFUSED,
    ConnectionConfig,
    Problem,
    ReadOnlyStore,
    Store,
)
from runner.stores import STORES, config_model, open_store
from tests import conftest, worlds
from tests.worlds import concat, dense, ids_of, newest, points, same

MARKER = "hunter2-marker-secret"
ALL = KeyRange()


def make(store: Store, name: str, **wishes: Any) -> CollectionSchema:
    """Create what `fit` makes of a wish that must be possible here."""
    schema, found = store.fit(worlds.wish(name, store.capabilities(), **wishes))
    assert not [item for item in found if item.code.startswith("VX")], found
    store.create(schema)
    return schema


def load(store: Store, schema: CollectionSchema, batch: PointBatch, size: int = 1000) -> None:
    """Upsert in batches no larger than the store takes."""
    size = min(size, store.capabilities().max_batch)
    for start in range(0, len(batch), size):
        store.upsert(schema.name, batch.slice(start, start + size))


def scan(
    store: Store, name: str, keys: KeyRange = ALL, after: PointId | None = None, size: int = 1000
) -> list[PointId]:
    """The ids of a scan, in its order."""
    found: list[PointId] = []
    for batch in store.scan(name, keys, after, size):
        assert 0 < len(batch) <= size, f"a batch of {len(batch)} where {size} is the limit"
        found += batch.ids
    return found


def everything(store: Store, schema: CollectionSchema) -> PointBatch:
    """All points of a collection, read by a scan of every range of `cut`."""
    ranges = store.cut(schema.name, 1)
    return concat((batch for keys in ranges for batch in store.scan(schema.name, keys)), schema)


def codes(problems: list[Problem]) -> set[str]:
    return {item.code for item in problems}


def typed(ids: list[PointId]) -> list[tuple[str, PointId]]:
    return sorted((type(item).__name__, item) for item in ids)


# Collections --------------------------------------------------------------------------------------------------------


def test_every_store_has_an_edition() -> None:
    """Rule: a store of the table STORES is opened by these tests. If this fails, add an edition to conftest.py."""
    assert set(conftest.EDITIONS.values()) == set(STORES)


def test_health_tells_version_and_latency(store: Store) -> None:
    """Rule: `health` answers with a version and a measured latency. If this fails, make one round trip and time it."""
    health = store.health()
    assert health.version.strip()
    assert 0 <= health.latency_ms < 30_000
    assert isinstance(health.rights, tuple)


def test_type_is_the_name_in_the_table(store: Store, edition: str) -> None:
    """Rule: `type` is the store's key in STORES. If this fails, set the class attribute."""
    assert store.type == conftest.EDITIONS[edition]


def test_capabilities_are_consistent(store: Store) -> None:
    """Rule: what a store says of itself makes sense. If this fails, look at `capabilities`."""
    caps = store.capabilities()
    assert caps.id_kinds
    assert caps.distances
    assert caps.normalises <= caps.distances
    assert Datatype.FLOAT32 in caps.datatypes
    assert caps.max_vectors >= 1
    assert caps.max_batch >= 100
    assert caps.max_dimension >= 1536
    assert caps == store.capabilities()


def test_create_then_inspect(store: Store, name: str) -> None:
    """Rule: `inspect` tells what `create` made: ids, vectors, dimensions, metrics, for every kind and metric it claims.

    If this fails, read them from the store's own description, not from the points.
    """
    caps = store.capabilities()
    kinds = [{"id_kind": kind} for kind in worlds.id_kinds(caps)]
    metrics = [{"distance": metric} for metric in Distance if metric in caps.distances]
    for number, (one, two) in enumerate(itertools.zip_longest(kinds, metrics, fillvalue={})):
        case: dict[str, Any] = one | two
        schema = make(store, f"{name}{number}", dimension=5 + number, **case)
        seen = store.inspect(schema.name)
        assert seen is not None
        assert seen.name == schema.name
        assert seen.id_kind == schema.id_kind
        assert [(v.name, v.dimension, v.distance, v.datatype) for v in seen.vectors] == [
            (v.name, v.dimension, v.distance, v.datatype) for v in schema.vectors
        ]
        assert schema.vectors[0].distance == case.get("distance", schema.vectors[0].distance)
        assert not seen.sparse
        assert seen.partitions is None


def test_inspect_tells_the_same_after_points_came(store: Store, name: str) -> None:
    """Rule: points do not change what a collection looks like (drift would be seen where there is none).

    If this fails, the adapter infers something from the first points.
    """
    schema = make(store, name)
    store.finish(schema)
    before = store.inspect(name)
    store.upsert(name, points(schema, 20))
    store.finish(schema)
    assert store.inspect(name) == before


def test_declared_payload_fields_are_kept(store: Store, name: str) -> None:
    """Rule: the payload fields `fit` kept are there after `finish`, and points with and without them fit in.

    If this fails, `fit` should drop what the store does not declare, or `inspect` does not read it back.
    """
    fields = [
        PayloadField(name="document_id", type=PayloadType.KEYWORD, indexed=True, max_length=200),
        PayloadField(name="chunk", type=PayloadType.INTEGER, indexed=True),
        PayloadField(name="score", type=PayloadType.FLOAT),
        PayloadField(name="active", type=PayloadType.BOOL),
        PayloadField(name="text", type=PayloadType.TEXT, max_length=2000),
        PayloadField(name="tags", type=PayloadType.KEYWORD, array=True, max_length=100),
    ]
    schema = make(store, name, payload=fields)
    batch = points(schema, 12)
    batch.payloads = Payloads([item if row % 2 else {"other": row} for row, item in enumerate(batch.payloads.dicts)])
    good, bad = worlds.without_refused(store, schema, batch)
    assert not [row for row in bad if row % 2], "a payload with every declared field must be held"
    store.upsert(name, good)
    store.finish(schema)
    assert same(store, schema, good, everything(store, schema)) == []
    seen = store.inspect(name)
    assert seen is not None
    found = {item.name: (item.type, item.array) for item in seen.payload}
    for item in schema.payload:
        if item.name in found:
            assert found[item.name] == (item.type, item.array)


def test_finish_may_be_repeated_and_index_settings_are_kept(store: Store, name: str, edition: str) -> None:
    """Rule: `finish` builds the index that was asked for, and again does no harm.

    If this fails, `inspect` must read the settings back. Qdrant's local mode accepts settings and forgets them, and
    a Milvus Lite index has its own rules, so only their presence is not asked for there.
    """
    index = VectorIndex(type="hnsw", m=12, ef_construction=77)
    schema = make(store, name, index=index)
    batch = points(schema, 300)
    store.upsert(name, batch)
    store.finish(schema)
    store.finish(schema)
    seen = store.inspect(name)
    assert seen is not None
    if edition != "qdrant-local":
        found = seen.vectors[0].index
        assert found is not None
        assert (found.type, found.m, found.ef_construction) == ("hnsw", 12, 77)
    assert same(store, schema, batch, everything(store, schema)) == []


def test_finish_of_an_empty_collection(store: Store, name: str) -> None:
    """Rule: an empty collection can be finished, and written to afterwards. If this fails, finish needs points."""
    schema = make(store, name, index=VectorIndex())
    store.finish(schema)
    batch = points(schema, 10)
    store.upsert(name, batch)
    assert same(store, schema, batch, everything(store, schema)) == []


def test_absence_is_no_error(store: Store, name: str) -> None:
    """Rule: what is not there reads as None, 0 or nothing, never as an error; only a write to it is Permanent.

    If this fails, look for "not found" among the client's errors.
    """
    schema, _ = store.fit(worlds.wish(name, store.capabilities()))
    assert name not in store.collections()
    assert store.inspect(name) is None
    assert store.count(name) == 0
    assert store.size_bytes(name) is None
    assert list(store.scan(name, ALL)) == []
    ids = ids_of(schema.id_kind, 3)
    assert len(store.fetch(name, ids)) == 0
    assert store.cut(name, 4) == [KeyRange()]
    store.drop(name)
    store.delete(name, ids)
    with pytest.raises((Permanent, NotFound)):
        store.upsert(name, points(schema, 3))
    assert store.inspect(name) is None


def test_create_twice_is_permanent_and_keeps_the_points(store: Store, name: str) -> None:
    """Rule: `create` never replaces a collection. If this fails, the client's "recreate" or "if not exists" is used."""
    schema = make(store, name)
    store.upsert(name, points(schema, 3))
    with pytest.raises(Permanent) as caught:
        store.create(schema)
    assert name in str(caught.value)
    assert store.count(name) == 3


def test_drop_twice(store: Store, name: str) -> None:
    """Rule: `drop` removes the points too and is harmless when repeated; the name can be used again, empty.

    If this fails, something of the old collection (a cache, a file, an alias) outlives it.
    """
    schema = make(store, name)
    store.upsert(name, points(schema, 5))
    store.drop(name)
    store.drop(name)
    assert store.inspect(name) is None
    assert name not in store.collections()
    other = make(store, name, dimension=11)
    assert store.count(name) == 0
    assert everything(store, other).ids == []
    batch = points(other, 4, seed=1)
    store.upsert(name, batch)
    assert same(store, other, batch, everything(store, other)) == []


def test_collections_are_sorted(store: Store, prefix: str) -> None:
    """Rule: `collections` lists all names, sorted. If this fails, sort them by code point."""
    names = [f"{prefix}{end}" for end in ("B", "A", "C10", "C2")]
    for item in names:
        make(store, item)
    found = store.collections()
    assert found == sorted(found)
    assert [item for item in found if item.startswith(prefix)] == sorted(names)


def test_size_is_told_or_none(store: Store, name: str) -> None:
    """Rule: `size_bytes` is a number of bytes or None. If this fails, return None rather than a guess."""
    schema = make(store, name)
    store.upsert(name, points(schema, 50))
    size = store.size_bytes(name)
    assert size is None or size >= 0


# Writing ------------------------------------------------------------------------------------------------------------


def test_upsert_is_counted_and_read_at_once(store: Store, name: str) -> None:
    """Rule: when `upsert` returns, `count`, `fetch` and `scan` see the points, before any `finish`.

    If this fails, wait for the write (Qdrant wait=True, Milvus Strong consistency), do not use statistics to count.
    """
    schema = make(store, name)
    for step in range(1, 6):
        batch = points(schema, 40, seed=step)
        store.upsert(name, batch)
        assert store.count(name) == 40 * step
        assert same(store, schema, batch, store.fetch(name, batch.ids)) == []
        assert len(scan(store, name)) == 40 * step


def test_upsert_twice_changes_nothing(store: Store, name: str) -> None:
    """Rule: repeating a batch is harmless. If this fails, the adapter inserts (Milvus counts such points twice)."""
    schema = make(store, name)
    batch = points(schema, 200)
    for _ in range(3):
        store.upsert(name, batch)
    assert store.count(name) == 200
    assert same(store, schema, batch, everything(store, schema)) == []


def test_the_last_upsert_wins_completely(store: Store, name: str) -> None:
    """Rule: an upsert replaces vector and payload as a whole; keys of the old payload are gone.

    If this fails, the client merges payloads or keeps old columns.
    """
    schema = make(store, name)
    first = points(schema, 60)
    rows = list(range(0, 60, 2))
    second = points(schema, ids=[first.ids[row] for row in rows], seed=9, payloads=[{"only": row} for row in rows])
    second.payloads.dicts[0] = {}
    store.upsert(name, first)
    store.upsert(name, second)
    assert same(store, schema, newest([first, second], schema), everything(store, schema)) == []
    assert store.count(name) == 60


def test_duplicate_ids_in_one_batch(store: Store, name: str) -> None:
    """Rule: an id twice in one batch gives one point, the later one. If this fails, keep the last row of each id."""
    schema = make(store, name)
    ids = ids_of(schema.id_kind, 10)
    batch = points(schema, ids=ids + ids[:5] + ids[:1])
    store.upsert(name, batch)
    assert store.count(name) == 10
    assert same(store, schema, newest([batch], schema), everything(store, schema)) == []


def test_nothing_may_be_written(store: Store, name: str) -> None:
    """Rule: empty batches and lists of ids do nothing. If this fails, return early; many servers refuse them."""
    schema = make(store, name)
    store.upsert(name, points(schema, 0))
    store.delete(name, [])
    assert store.count(name) == 0
    assert len(store.fetch(name, [])) == 0
    store.upsert(name, points(schema, 2))
    assert len(store.fetch(name, [])) == 0
    assert store.count(name) == 2


def test_delete_is_harmless_when_repeated(store: Store, name: str) -> None:
    """Rule: `delete` removes at once, ignores ids that are not there, and a deleted id can come back.

    If this fails, the delete is not awaited, or a tombstone hides the new point.
    """
    schema = make(store, name)
    batch = points(schema, 50)
    absent = ids_of(schema.id_kind, 5, seed=8)
    store.upsert(name, batch)
    for _ in range(2):
        store.delete(name, batch.ids[:20] + absent)
        assert store.count(name) == 30
        assert len(store.fetch(name, batch.ids)) == 30
    assert same(store, schema, batch.slice(20, 50), everything(store, schema)) == []
    store.upsert(name, batch.slice(0, 5))
    assert (
        same(store, schema, newest([batch.slice(20, 50), batch.slice(0, 5)], schema), everything(store, schema)) == []
    )


def test_inputs_are_not_mutated(store: Store, name: str) -> None:
    """Rule: a batch is shared between threads, so `upsert` and `problems` leave it as it is.

    If this fails, the adapter or the client (cosine) scales vectors in place, or adds its own payload keys.
    """
    caps = store.capabilities()
    schema = make(store, name, distance=Distance.COSINE if Distance.COSINE in caps.distances else None)
    batch = points(schema, 30)
    before = worlds.copy_of(batch)
    exact = replace(caps, normalises=frozenset())
    ids = list(batch.ids)
    store.problems(schema, batch)
    store.upsert(name, batch)
    store.fetch(name, ids)
    store.delete(name, ids[:3])
    assert ids == batch.ids
    assert same(exact, schema, before, batch) == []


def test_points_survive_a_reopen(store: Store, name: str, reopen: Callable[[], Store]) -> None:
    """Rule: points are durable when `upsert` returns; schema, points and deletes are there for the next process.

    If this fails, something lives only in memory, or `close` is needed to write it.
    """
    if not store.capabilities().durable:
        pytest.skip("says that it is not durable")
    schema = make(store, name, index=VectorIndex())
    batch = points(schema, 100)
    store.upsert(name, batch)
    store.delete(name, batch.ids[:10])
    store.close()
    again = reopen()
    seen = again.inspect(name)
    assert seen is not None
    assert seen.vectors[0].dimension == schema.vectors[0].dimension
    assert again.count(name) == 90
    assert same(again, schema, batch.slice(10, 100), everything(again, schema)) == []


def test_close_twice(store: Store, name: str) -> None:
    """Rule: `close` may be called twice and leaves nothing running. If this fails, remember that it was done."""
    make(store, name)
    store.close()
    store.close()


# Ids ----------------------------------------------------------------------------------------------------------------


def test_ids_of_every_kind_come_back(store: Store, name: str) -> None:
    """Rule: an id comes back as it was, with its type; those that cannot be held are named by `problems` first.

    If this fails: quoting in filters (', \\, %), padding or trimming, collation, unsigned numbers, UUID forms.
    """
    for number, kind in enumerate(worlds.id_kinds(store.capabilities())):
        schema = make(store, f"{name}{number}", id_kind=kind)
        batch = points(schema, ids=worlds.odd_ids(kind))
        good, bad = worlds.without_refused(store, schema, batch)
        for row in bad:
            assert codes(store.problems(schema, batch.take([row]))) == {BAD_ID}
        assert len(good) > len(batch) / 2
        store.upsert(schema.name, good)
        assert store.count(schema.name) == len(good)
        assert same(store, schema, good, everything(store, schema)) == []
        assert same(store, schema, good, store.fetch(schema.name, good.ids)) == []
        for point_id in good.ids:
            assert store.fetch(schema.name, [point_id]).ids == [point_id]
        order = scan(store, schema.name, size=1)
        for row, point_id in enumerate(order):
            assert scan(store, schema.name, after=point_id, size=3) == order[row + 1 :], f"after {point_id!r}"
        store.delete(schema.name, good.ids[::2])
        assert same(store, schema, good.take(range(1, len(good), 2)), everything(store, schema)) == []


def test_ids_out_of_range_are_found(store: Store, name: str) -> None:
    """Rule: `problems` names ids the store cannot hold, before a write. If this fails, see id_problems in store.py."""
    caps = store.capabilities()
    if {IdKind.INT, IdKind.INT_OR_UUID} & caps.id_kinds:
        kind = IdKind.INT if IdKind.INT in caps.id_kinds else IdKind.INT_OR_UUID
        schema, _ = store.fit(worlds.wish(name, caps, id_kind=kind))
        low, high = caps.id_int_range
        assert store.problems(schema, points(schema, ids=[max(low, 0), high])) == []
        for bad in (low - 1, high + 1):
            found = store.problems(schema, points(schema, ids=[5, bad]))
            assert codes(found) == {BAD_ID}
            assert found[0].ids == (bad,)
            assert found[0].count == 1
    if IdKind.STRING in caps.id_kinds and caps.id_max_bytes is not None:
        schema, _ = store.fit(worlds.wish(name, caps, id_kind=IdKind.STRING))
        assert codes(store.problems(schema, points(schema, ids=["x" * (caps.id_max_bytes + 1)]))) == {BAD_ID}


def test_fetch_gives_only_what_exists(store: Store, name: str) -> None:
    """Rule: `fetch` ignores ids that are not there, and an id asked for twice comes once.

    If this fails, the client fills holes with None or repeats rows.
    """
    schema = make(store, name)
    batch = points(schema, 20)
    store.upsert(name, batch)
    absent = ids_of(schema.id_kind, 4, seed=8)
    found = store.fetch(name, [*batch.ids[:5], *absent, *batch.ids[:2]])
    assert same(store, schema, batch.slice(0, 5), found) == []
    assert len(store.fetch(name, absent)) == 0


def test_thousands_of_ids_in_one_call(store: Store, name: str, edition: str) -> None:
    """Rule: `fetch` and `delete` take any number of ids, cutting their calls themselves; 5,000 points pass exactly.

    If this fails, a limit of the server (16,384 rows, 32,767 parameters, 4 MB messages) was met.
    """
    count = 500 if edition in conftest.SLOW else 5000
    schema = make(store, name, dimension=32)
    batch = points(schema, count)
    load(store, schema, batch)
    assert store.count(name) == count
    assert same(store, schema, batch, store.fetch(name, batch.ids)) == []
    assert same(store, schema, batch, everything(store, schema)) == []
    store.delete(name, batch.ids[:-10])
    assert store.count(name) == 10
    assert typed(store.fetch(name, batch.ids).ids) == typed(batch.ids[-10:])


# Reading in order ---------------------------------------------------------------------------------------------------


def test_scan_covers_everything_once_and_resumes_anywhere(store: Store, name: str) -> None:
    """Rule: for any batch size a scan gives every point once, in one order, and goes on after the last id of a batch.

    If this fails, the order of the answer is not the order of the cursor (Milvus Lite answers in insertion order).
    """
    for number, kind in enumerate(worlds.id_kinds(store.capabilities())):
        schema = make(store, f"{name}{number}", id_kind=kind)
        batch = points(schema, 45)
        load(store, schema, batch, 10)
        order = scan(store, schema.name)
        assert typed(order) == typed(batch.ids)
        for size in (1, 7, 45, 1000):
            done: list[PointId] = []
            for part in store.scan(schema.name, ALL, None, size):
                assert (
                    same(store, schema, newest([batch], schema).take([batch.ids.index(i) for i in part.ids]), part)
                    == []
                )
                done += part.ids
                assert scan(store, schema.name, after=part.ids[-1], size=size) == order[len(done) :]
            assert done == order


def test_scan_respects_its_range(store: Store, name: str) -> None:
    """Rule: lo is in, hi is out, None is open, `after` is out; also when the bounding points are deleted.

    If this fails, compare the order of `scan` with the comparison of the filter (collation, signedness).
    """
    for number, kind in enumerate(worlds.id_kinds(store.capabilities())):
        schema = make(store, f"{name}{number}", id_kind=kind)
        store.upsert(schema.name, points(schema, 30))
        order = scan(store, schema.name)
        for step in range(2):
            if step:  # the bounds are gone, the ranges stay what they were
                store.delete(schema.name, [order[10], order[20]])
            left = [item for item in order if not step or item not in (order[10], order[20])]
            inside = [item for item in left if 10 <= order.index(item) < 20]
            assert scan(store, schema.name, KeyRange(order[10], order[20]), size=4) == inside
            assert scan(store, schema.name, KeyRange(None, order[10])) == left[:10]
            assert scan(store, schema.name, KeyRange(order[20], None)) == [i for i in left if order.index(i) >= 20]
            assert scan(store, schema.name, KeyRange(None, order[20]), after=order[10], size=3) == [
                item for item in left if 10 < order.index(item) < 20
            ]
        assert scan(store, schema.name, KeyRange(order[5], order[5])) == []
        assert scan(store, schema.name, after=order[-1]) == []


def test_scan_after_shuffled_writes_by_two_threads(store: Store, name: str) -> None:
    """Rule: however points came (two writers, any order, updates, deletes), a scan gives each living one once.

    If this fails, segments are read one after the other instead of merged: points are lost at every page.
    """
    schema = make(store, name)
    batch = points(schema, 1200)
    update = points(schema, ids=batch.ids[100:1100:5], seed=5)
    gone = batch.ids[3::11]

    def write(half: int) -> None:
        rows = range(half, 1200, 2)
        for start in range(0, 600, 60):
            store.upsert(name, batch.take(rows[start : start + 60]))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(2)))

    def change(half: int) -> None:
        for start in range(half * 50, 200, 100):
            store.upsert(name, update.slice(start, start + 50))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(change, range(2)))
    store.delete(name, gone)
    expected = newest([batch, update], schema, gone)
    assert store.count(name) == len(expected)
    assert same(store, schema, expected, everything(store, schema)) == []
    order = scan(store, name)
    for size in (97, 333):
        assert scan(store, name, size=size) == order
    for row in range(50, len(order), 211):
        assert scan(store, name, after=order[row], size=100) == order[row + 1 :]
    store.finish(schema)
    assert scan(store, name, size=250) == order


def test_scan_while_others_write(store: Store, name: str) -> None:
    """Rule: points that nobody touches come exactly once, though others are added and removed during the scan.

    If this fails, the cursor is a position (offset) and not an id.
    """
    schema = make(store, name)
    batch = points(schema, 200)
    noise = points(schema, 120, seed=3)
    store.upsert(name, batch)
    store.upsert(name, noise.slice(0, 60))
    seen: list[PointId] = []
    for step, part in enumerate(store.scan(name, ALL, None, 20)):
        seen += part.ids
        store.delete(name, noise.ids[step * 10 : step * 10 + 10])
        store.upsert(name, noise.slice(60 + step * 5, 65 + step * 5))
        assert step < 100
    mine = set(batch.ids)
    assert typed([item for item in seen if item in mine]) == typed(batch.ids)
    assert len(seen) == len(set(seen))


def test_scan_of_an_empty_collection(store: Store, name: str) -> None:
    """Rule: nothing gives no batch at all. If this fails, do not yield empty batches."""
    schema = make(store, name)
    assert list(store.scan(name, ALL)) == []
    assert list(store.scan(name, ALL, ids_of(schema.id_kind, 1)[0])) == []


@pytest.mark.parametrize("count", [0, 1, 5, 3000])
def test_cut_covers_every_id_once(store: Store, name: str, edition: str, count: int) -> None:
    """Rule: the ranges of `cut` follow each other without gap or overlap, open at both ends, even, and survive JSON.

    An id that comes later falls into exactly one of them. If this fails, compare bounds in the store's own order.
    """
    kinds = worlds.id_kinds(store.capabilities())[: 1 if count == 3000 else None]
    count = min(count, 400) if edition in conftest.SLOW else count
    for number, kind in enumerate(kinds):
        schema = make(store, f"{name}{number}", id_kind=kind)
        batch = points(schema, count)
        load(store, schema, batch)
        order = scan(store, schema.name)
        cuts = {parts: store.cut(schema.name, parts) for parts in (1, 2, 7)}
        for parts, ranges in cuts.items():
            assert 1 <= len(ranges) <= 2 * parts
            assert ranges[0].lo is None
            assert ranges[-1].hi is None
            assert all(one.hi == two.lo and one.hi is not None for one, two in itertools.pairwise(ranges))
            again = [KeyRange(*item) for item in json.loads(json.dumps(ranges))]
            assert again == ranges
            assert [type(item.lo) for item in again] == [type(item.lo) for item in ranges]
            found = [scan(store, schema.name, keys) for keys in again]
            assert [item for part in found for item in part] == order
            if count >= 400:
                assert max(map(len, found)) <= 3 * count / parts
        later = points(schema, 30, seed=4)
        store.upsert(schema.name, later)
        for ranges in cuts.values():
            assert typed([i for keys in ranges for i in scan(store, schema.name, keys)]) == typed(batch.ids + later.ids)


def test_partitions_are_carried(store: Store, name: str) -> None:
    """Rule: where a store has partitions, points come back with theirs, and ranges cover all of them.

    If this fails, the adapter must write and read each partition by its name.
    """
    if not store.capabilities().partitions:
        schema, found = store.fit(worlds.wish(name, store.capabilities(), partitions=("alpha", "beta")))
        assert found, "partitions that are not carried must be told"
        assert schema.partitions is None
        return
    schema = make(store, name, partitions=("alpha", "beta"))
    seen = store.inspect(name)
    assert seen is not None
    assert seen.partitions is not None
    assert {"alpha", "beta"} <= set(seen.partitions)
    batch = points(schema, 60)
    store.upsert(name, batch)
    assert store.count(name) == 60
    for parts in (1, 4):
        found_points = concat((b for keys in store.cut(name, parts) for b in store.scan(name, keys, None, 7)), schema)
        assert same(store, schema, batch, found_points) == []
    for wanted in ("alpha", "beta"):
        rows = [row for row in range(60) if (batch.partitions or [])[row] == wanted]
        found_points = concat(store.scan(name, KeyRange(partition=wanted)), schema)
        assert same(store, schema, batch.take(rows), found_points) == []
    store.upsert(name, batch)
    assert store.count(name) == 60
    store.delete(name, batch.ids[:7])
    assert same(store, schema, batch.slice(7, 60), store.fetch(name, batch.ids)) == []


# Search -------------------------------------------------------------------------------------------------------------


def scores(metric: Distance, queries: Float32Matrix, matrix: Float32Matrix) -> NDArray[np.float64]:
    """What every store must say of these points, shape (queries, points): higher is nearer."""
    asked, there = queries.astype(np.float64), matrix.astype(np.float64)
    if metric == Distance.COSINE:
        asked, there = (item / np.linalg.norm(item, axis=1, keepdims=True) for item in (asked, there))
    if metric in (Distance.COSINE, Distance.DOT):
        return np.asarray(asked @ there.T)
    apart = asked[:, None] - there[None]
    return np.asarray(
        -np.linalg.norm(apart, axis=2) if metric == Distance.EUCLID else -np.abs(apart).sum(axis=2), np.float64
    )


def check_search(store: Store, schema: CollectionSchema, batch: PointBatch, queries: Float32Matrix, limit: int) -> None:
    """Search the first vector of the points of `batch`, which are all there are, and compare with brute force.

    Points as far away as each other may come in any order.
    """
    item = schema.vectors[0]
    rows = np.flatnonzero(~batch.missing.get(item.name, np.zeros(len(batch), bool)))
    expected = scores(item.distance, queries, batch.vectors[item.name][rows])
    found = store.search(schema.name, item.name, queries, limit)
    assert len(found) == len(queries)
    for hits, row in zip(found, expected, strict=True):
        known = {(type(batch.ids[place]), batch.ids[place]): score for place, score in zip(rows, row, strict=True)}
        keys = [(type(hit.id), hit.id) for hit in hits]
        assert len(set(keys)) == len(keys)
        best = np.sort(row)[::-1][:limit]
        assert np.allclose([hit.score for hit in hits], best, rtol=0, atol=1e-4)
        assert np.allclose([known[key] for key in keys], best, rtol=0, atol=1e-4)


def test_search_finds_the_nearest_first(store: Store, name: str) -> None:
    """Rule: for every metric the nearest points come first, with the same score in every store, written just before.

    If this fails: the sign or the square of a distance, a write that the search does not wait for, or an old vector.
    """
    caps = store.capabilities()
    for number, metric in enumerate(item for item in Distance if item in caps.distances):
        schema = make(store, f"{name}{number}", distance=metric, index=VectorIndex())
        first, second = points(schema, 150), points(schema, ids=ids_of(schema.id_kind, 150)[:20], seed=7)
        queries = dense(3, 8, seed=99)
        store.upsert(schema.name, first)
        check_search(store, schema, first, queries, 10)
        store.finish(schema)
        store.upsert(schema.name, second)
        store.delete(schema.name, first.ids[30:40])
        living = newest([first, second], schema, first.ids[30:40])
        check_search(store, schema, living, queries, 10)
        check_search(ReadOnlyStore(store), schema, living, queries, 1)
        store.finish(schema)
        check_search(store, schema, living, queries, 25)


def test_search_beyond_what_is_there(store: Store, name: str) -> None:
    """Rule: a limit beyond the collection gives every point; no points, no queries and no collection give empty lists.

    If this fails, look at the largest limit of one call, and at what an index leaves out.
    """
    schema = make(store, name, index=VectorIndex())
    label = schema.vectors[0].name
    queries = dense(230, 8, seed=99)
    assert store.search(name, label, queries[:2], 5) == [[], []]
    batch = points(schema, 60)
    store.upsert(name, batch)
    for limit in (60, 61, 2000, 100_000):
        check_search(store, schema, batch, queries[:4], limit)
    check_search(store, schema, batch, queries, 3)
    assert store.search(name, label, queries[:0], 5) == []
    assert store.search(name, label, queries[:2], 0) == [[], []]
    assert store.search(f"{name}Absent", label, queries[:2], 5) == [[], []]


def test_search_tells_ids_as_a_scan_does(store: Store, name: str) -> None:
    """Rule: ids of hits have the value and type they have in a scan. If this fails, compare how both decode them."""
    for number, kind in enumerate(worlds.id_kinds(store.capabilities())):
        schema = make(store, f"{name}{number}", id_kind=kind)
        batch = points(schema, 30)
        store.upsert(schema.name, batch)
        [hits] = store.search(schema.name, schema.vectors[0].name, dense(1, 8, seed=99), 30)
        assert typed([hit.id for hit in hits]) == typed(scan(store, schema.name))


def test_search_of_one_of_several_vectors(store: Store, name: str) -> None:
    """Rule: the vector that is named is searched, and points without it are no hits. If not, it is not passed on."""
    caps = store.capabilities()
    if caps.max_vectors < 2:
        pytest.skip("has one vector")
    schema = make(store, name, vectors=("title", "body"), index=VectorIndex())
    batch = points(schema, 90, missing=caps.missing_vectors)
    store.upsert(name, batch)
    for _ in range(2):
        for item in schema.vectors:
            alone = schema.model_copy(update={"vectors": (item,)})
            queries = dense(2, item.dimension, seed=99)
            check_search(store, alone, batch, queries, 12)
            check_search(store, alone, batch, queries, 90)
        store.finish(schema)


def test_search_of_smaller_datatypes(store: Store, name: str) -> None:
    """Rule: numbers that a smaller datatype holds exactly give the exact scores. If not, look at how queries are cast."""
    caps = store.capabilities()
    for number, datatype in enumerate(item for item in Datatype if item in caps.datatypes):
        schema = make(store, f"{name}{number}", datatype=datatype, index=VectorIndex())
        batch = points(schema, 100)
        numbers = np.random.default_rng(3).integers(0, 12, (103, 8)).astype(np.float32)
        batch.vectors[schema.vectors[0].name] = numbers[:100]
        store.upsert(schema.name, batch)
        store.finish(schema)
        check_search(store, schema, batch, numbers[100:], 10)


def test_search_covers_every_partition(store: Store, name: str) -> None:
    """Rule: a search looks into all partitions. If this fails, ask each of them and merge what they tell."""
    if not store.capabilities().partitions:
        pytest.skip("has no partitions")
    schema = make(store, name, partitions=("alpha", "beta"))
    batch = points(schema, 60)
    store.upsert(name, batch)
    check_search(store, schema, batch, dense(2, 8, seed=99), 20)
    check_search(store, schema, batch, dense(2, 8, seed=99), 60)


def test_a_search_that_cannot_be_is_refused(store: Store, name: str) -> None:
    """Rule: an unknown vector, a query of another dimension and one with NaN are Permanent and say what is wrong.

    If this fails, call `check_queries` before the store is asked.
    """
    schema = make(store, name, dimension=8)
    label = schema.vectors[0].name
    store.upsert(name, points(schema, 5))
    with pytest.raises((Permanent, NotFound), match="absent"):
        store.search(name, "absent", dense(1, 8), 3)
    with pytest.raises(Permanent, match="9 numbers where 8 are expected"):
        store.search(name, label, dense(1, 9), 3)
    for value in (np.nan, np.inf):
        bad = dense(2, 8)
        bad[1, 3] = value
        with pytest.raises(Permanent, match="NaN"):
            store.search(name, label, bad, 3)


# Payloads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", worlds.PLAIN_PAYLOADS)
def test_plain_payloads_are_held_by_every_store(store: Store, name: str, kind: str) -> None:
    """Rule: texts, numbers, truth values and lists of texts pass every store. If not, `problems` refuses too much."""
    schema = make(store, name)
    batch = points(schema, payloads=[worlds.PAYLOAD_ZOO[kind]] * 2)
    assert store.problems(schema, batch) == []
    store.upsert(name, batch)
    assert same(store, schema, batch, store.fetch(name, batch.ids)) == []


def test_payload_zoo(store: Store, name: str) -> None:
    """Rule: a payload comes back exactly (1, 1.0 and true differ; null is not missing), or `problems` names it before.

    If this fails, either keep it (as JSON text beside the fields) or report PAYLOAD_FIELD; never change it silently.
    """
    schema = make(store, name)
    batch = points(schema, payloads=list(worlds.PAYLOAD_ZOO.values()))
    good, bad = worlds.without_refused(store, schema, batch)
    for row in bad:
        assert codes(store.problems(schema, batch.take([row]))) == {PAYLOAD_FIELD}
    names = list(worlds.PAYLOAD_ZOO)
    report = []
    for row, label in enumerate(names):
        if row in bad:
            continue
        one = batch.take([row])
        try:
            store.upsert(name, one)
            report += [f"{label}: {text}" for text in same(store, schema, one, store.fetch(name, one.ids))]
        except StoreError as exc:
            report.append(f"{label}: {exc}")
    assert report == []
    assert same(store, schema, good, everything(store, schema)) == []


def test_one_key_of_several_types(store: Store, name: str) -> None:
    """Rule: a key may hold another type in each point, unless `problems` says no. If not, types are inferred once."""
    schema = make(store, name)
    batch = points(schema, payloads=[{"v": item} for item in (1, "one", 1.5, True, None, [1], {"a": 1}, "2024-01-01")])
    if any(item.code == PAYLOAD_FIELD for item in store.problems(schema, batch)):
        return
    store.upsert(name, batch)
    assert same(store, schema, batch, everything(store, schema)) == []


def test_payloads_given_as_json_text(store: Store, name: str) -> None:
    """Rule: payloads may come as JSON texts, whatever their spacing. If this fails, use `Payloads.dicts` or `.json`."""
    schema = make(store, name)
    texts = [b'{"b": 1, "a": [1.0, 2]}', b"{ }", '{"text":"\\u00e9 é"}'.encode(), b'{"count":9007199254740993}']
    batch = points(schema, len(texts))
    batch.payloads = Payloads(json=list(texts))
    good, _ = worlds.without_refused(store, schema, batch)
    assert len(good) >= 3
    batch = PointBatch(good.ids, good.vectors, Payloads(json=good.payloads.json))
    store.upsert(name, batch)
    assert same(store, schema, batch, everything(store, schema)) == []


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("edition", [item for item in conftest.EMBEDDED if item in conftest.CHOSEN], indirect=True)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(payloads=st.lists(st.dictionaries(st.text(max_size=10), JSON, max_size=5), min_size=1, max_size=6))
def test_any_json_payload(store: Store, name: str, payloads: list[dict[str, Any]]) -> None:
    """Rule: as in test_payload_zoo, for any JSON. If this fails, put the example it found into the zoo."""
    if store.inspect(name) is None:
        make(store, name)
    schema = store.inspect(name)
    assert schema is not None
    good, _ = worlds.without_refused(store, schema, points(schema, payloads=payloads))
    store.upsert(name, good)
    assert same(store, schema, good, store.fetch(name, good.ids)) == []


# Vectors ------------------------------------------------------------------------------------------------------------


def test_vectors_of_every_metric(store: Store, name: str) -> None:
    """Rule: vectors come back bit for bit, or by direction under a metric in `normalises`; a zero vector stays zero.

    If this fails: text with too few digits, float64 in between, or `normalises` lacks this metric.
    """
    caps = store.capabilities()
    for number, metric in enumerate(item for item in Distance if item in caps.distances):
        schema = make(store, f"{name}{number}", distance=metric, dimension=8)
        batch = points(schema, 40)
        matrix = batch.vectors[schema.vectors[0].name]
        matrix[0] = 0
        matrix[1] = np.eye(8, dtype=np.float32)[3]
        matrix[2] = np.float32(0.1)
        if metric not in caps.normalises:
            matrix[3] = np.float32(1e-30)
            matrix[4] = np.float32(1e15)
            matrix[5] = np.nextafter(np.float32(1), np.float32(2))
            matrix[6] = [1e-45, 1e-38, 0.0, -0.0, 3.0e38, -3.0e38, 16777217, 1 / 3]
        good, bad = worlds.without_refused(store, schema, batch)
        assert all(
            item == BAD_VECTOR or metric in caps.normalises
            for row in bad
            for item in codes(store.problems(schema, batch.take([row])))
        )
        if metric in caps.normalises:
            good = batch  # a spec may accept that lengths are lost
        store.upsert(schema.name, good)
        assert same(store, schema, good, everything(store, schema)) == []


def test_lost_lengths_are_told(store: Store, name: str) -> None:
    """Rule: under a normalising metric `problems` names vectors of another length, and none of length 1 (or 0).

    If this fails, `capabilities().normalises` is wrong, or `problems` does not call the base.
    """
    caps = store.capabilities()
    for metric in (item for item in Distance if item in caps.distances):
        schema, _ = store.fit(worlds.wish(name, caps, distance=metric))
        label = schema.vectors[0].name
        batch = points(schema, 20, unit=True)
        batch.vectors[label][4] = 0
        assert store.problems(schema, batch) == []
        batch.vectors[label][7] *= 3
        found = store.problems(schema, batch)
        if metric in caps.normalises:
            assert [(item.code, item.ids, item.count) for item in found] == [(NORMS, (batch.ids[7],), 1)]
        else:
            assert found == []


def test_bad_vectors_are_found(store: Store, name: str) -> None:
    """Rule: NaN, infinity and another dimension are BAD_VECTOR before a write. If this fails, call the base."""
    schema, _ = store.fit(worlds.wish(name, store.capabilities()))
    label = schema.vectors[0].name
    for value in (np.nan, np.inf, -np.inf):
        batch = points(schema, 10, unit=True)
        batch.vectors[label][3, 2] = value
        found = store.problems(schema, batch)
        assert codes(found) == {BAD_VECTOR}
        assert found[0].ids == (batch.ids[3],)
    batch = points(schema, 10)
    batch.vectors[label] = dense(10, 9, unit=True)
    assert codes(store.problems(schema, batch)) == {BAD_VECTOR}


def test_smaller_datatypes(store: Store, name: str) -> None:
    """Rule: a datatype with fewer bits is kept; `fit` tells of it (numbers are close then) unless all bits stay.

    If this fails, take it out of `capabilities().datatypes`.
    """
    caps = store.capabilities()
    for number, datatype in enumerate(item for item in Datatype if item in caps.datatypes and item != Datatype.FLOAT32):
        schema, found = store.fit(worlds.wish(f"{name}{number}", caps, datatype=datatype))
        store.create(schema)
        batch = points(schema, 20, unit=True)
        if datatype == Datatype.UINT8:
            numbers = np.random.default_rng(1).integers(0, 256, (20, 8))
            batch.vectors[schema.vectors[0].name][:] = numbers
        store.upsert(schema.name, batch)
        seen = store.inspect(schema.name)
        assert seen is not None
        assert seen.vectors[0].datatype == datatype
        exact = worlds.wish(schema.name, caps, vectors=[schema.vectors[0].name])
        wanted = schema if PRECISION in codes(found) else exact
        assert same(store, wanted, batch, everything(store, schema)) == []


def test_several_vectors_a_point(store: Store, name: str) -> None:
    """Rule: named vectors of different dimensions are kept apart; a store without them says REFUSED.

    If this fails, look at `max_vectors`, and at the names in the batch.
    """
    caps = store.capabilities()
    if caps.max_vectors <= 64:
        many = [f"vector_{n}" for n in range(caps.max_vectors + 1)]
        assert REFUSED in codes(store.fit(worlds.wish(name, caps, vectors=many))[1])
    if caps.max_vectors < 2:
        return
    schema = make(store, name, vectors=("title", "body"))
    seen = store.inspect(name)
    assert seen is not None
    assert {(v.name, v.dimension) for v in seen.vectors} == {(v.name, v.dimension) for v in schema.vectors}
    batch = points(schema, 50)
    store.upsert(name, batch)
    assert same(store, schema, batch, everything(store, schema)) == []
    assert same(store, schema, batch, store.fetch(name, batch.ids)) == []


def test_missing_vectors(store: Store, name: str) -> None:
    """Rule: a point may lack one of several vectors where the store allows it (its row reads as zeros, marked missing).

    If this fails, report REFUSED in `problems`, or mark the point in `missing` when reading.
    """
    caps = store.capabilities()
    if caps.max_vectors < 2:
        return
    names = ("title", "body")
    schema, _ = store.fit(worlds.wish(name, caps, vectors=names))
    batch = points(schema, 30, missing=True, unit=True)
    batch.vectors["title"][batch.missing["title"]] = 0
    if not caps.missing_vectors:
        assert codes(store.problems(schema, batch)) == {REFUSED}
        return
    assert store.problems(schema, batch) == []
    store.create(schema)
    store.upsert(name, batch)
    assert same(store, schema, batch, everything(store, schema)) == []
    whole = points(schema, ids=batch.ids[:10], seed=2)
    store.upsert(name, whole)
    store.upsert(name, batch.slice(0, 5))  # and a vector that was there goes away again
    expected = newest([batch, whole, batch.slice(0, 5)], schema)
    assert same(store, schema, expected, everything(store, schema)) == []


def test_sparse_vectors(store: Store, name: str) -> None:
    """Rule: sparse vectors come back with positions and values, beside a dense one; else `fit` says REFUSED.

    If this fails: positions counted from 1, zeros dropped, or not sorted.
    """
    caps = store.capabilities()
    if not caps.sparse:
        assert REFUSED in codes(store.fit(worlds.wish(name, caps, sparse=("words",)))[1])
        return
    schema = make(store, name, sparse=("words",))
    seen = store.inspect(name)
    assert seen is not None
    assert [item.name for item in seen.sparse] == ["words"]
    batch = points(schema, 40)
    if store.problems(schema, batch.slice(4, 5)):  # a store may want a sparse vector in every point
        batch.sparse = {"words": list(worlds.sparse_column(40, holes=False))}
    assert store.problems(schema, batch) == []
    store.upsert(name, batch)
    assert same(store, schema, batch, everything(store, schema)) == []
    assert same(store, schema, batch, store.fetch(name, batch.ids)) == []
    bad = worlds.copy_of(batch)
    entry = bad.sparse["words"][0]
    assert entry is not None
    entry.values[0] = np.nan
    assert codes(store.problems(schema, bad)) == {BAD_VECTOR}


def test_fit_refuses_what_the_store_has_not(store: Store, name: str) -> None:
    """Rule: a metric, dimension or kind of id that the store lacks is told by `fit`. If not, call the base first."""
    caps = store.capabilities()
    for metric in set(Distance) - caps.distances:
        assert REFUSED in codes(store.fit(worlds.wish(name, caps, distance=metric))[1])
    assert REFUSED in codes(store.fit(worlds.wish(name, caps, dimension=caps.max_dimension + 1))[1])
    for kind in set(IdKind) - caps.id_kinds:
        assert BAD_ID in codes(store.fit(worlds.wish(name, caps, id_kind=kind))[1])
    schema, found = store.fit(worlds.wish(name, caps))
    assert found == []
    assert store.fit(schema) == (schema, []), "what fits once fits again unchanged"
    assert store.inspect(name) is None, "fit writes nothing"


# Aliases ------------------------------------------------------------------------------------------------------------


def test_aliases(store: Store, prefix: str) -> None:
    """Rule: an alias is set, switched at once and removed, each as often as one likes; `collections` does not list it.

    If this fails, a store without aliases must say so in its capabilities and answer {}.
    """
    if not store.capabilities().aliases:
        assert store.aliases() == {}
        return
    one, two, alias = f"{prefix}One", f"{prefix}Two", f"{prefix}Live"
    for item in (one, two):
        make(store, item)

    def mine() -> dict[str, str]:
        return {key: value for key, value in store.aliases().items() if key.startswith(prefix)}

    assert mine() == {}
    for target in (one, one, two, two, one):
        store.set_alias(alias, target)
        assert mine() == {alias: target}
    assert [item for item in store.collections() if item.startswith(prefix)] == [one, two]
    second = f"{prefix}Other"
    store.set_alias(second, one)
    assert mine() == {alias: one, second: one}
    for _ in range(2):
        store.set_alias(alias, None)
        store.set_alias(second, None)
        assert mine() == {}
    with pytest.raises(VecrunError):
        store.set_alias(alias, f"{prefix}Absent")
    assert mine() == {}


def test_a_collection_with_an_alias_can_be_read_and_written(store: Store, name: str, prefix: str) -> None:
    """Rule: an alias changes nothing for its collection. If this fails, names are looked up as aliases."""
    if not store.capabilities().aliases:
        pytest.skip("has no aliases")
    schema = make(store, name)
    store.set_alias(f"{prefix}Live", name)
    batch = points(schema, 10)
    store.upsert(name, batch)
    store.finish(schema)
    assert same(store, schema, batch, everything(store, schema)) == []
    assert store.inspect(name) is not None
    store.set_alias(f"{prefix}Live", None)
    store.drop(name)
    assert store.aliases().get(f"{prefix}Live") is None


# Threads ------------------------------------------------------------------------------------------------------------


def test_four_threads_at_once(store: Store, name: str) -> None:
    """Rule: every method may be called from several threads. If this fails, guard the client, or open one a thread."""
    schema = make(store, name)
    batches = [points(schema, 60, seed=seed) for seed in range(4)]
    start = threading.Barrier(4)

    def work(seed: int) -> list[str]:
        mine, report = batches[seed], []
        start.wait(30)
        for offset in range(0, 60, 20):
            store.upsert(name, mine.slice(offset, offset + 20))
            report += same(store, schema, mine.slice(0, offset + 20), store.fetch(name, mine.ids[: offset + 20]))
            store.count(name)
            store.inspect(name)
            own = set(mine.ids[: offset + 20])
            found = [item for item in scan(store, name, size=30) if item in own]
            if len(found) != len(own):
                report.append(f"a scan saw {len(found)} of {len(own)}")
        store.delete(name, mine.ids[:10])
        return report

    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(work, range(4)))
    assert reports == [[], [], [], []]
    expected = newest(batches, schema, [point_id for item in batches for point_id in item.ids[:10]])
    assert same(store, schema, expected, everything(store, schema)) == []


# Errors and secrets -------------------------------------------------------------------------------------------------


def test_errors_are_vecruns_own(store: Store, name: str) -> None:
    """Rule: what the client raises leaves the adapter as a StoreError with a summary and the collection's name.

    If this fails, a call is made outside the place that translates.
    """
    schema = make(store, name)
    with pytest.raises(StoreError) as caught:
        store.create(schema)
    assert caught.value.summary
    assert name in f"{caught.value.summary} {caught.value.detail}"
    batch = points(schema, 3)
    batch.vectors[schema.vectors[0].name] = dense(3, 5)
    with pytest.raises(StoreError):  # not a vendor's error, though `problems` was ignored
        store.upsert(name, batch)
    assert store.count(name) == 0


#: How a connection to each server is written, with a secret in it.
SERVERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "milvus": lambda address: {"uri": f"http://{address}", "token": f"root:{MARKER}"},
    "pgvector": lambda address: {"url": f"postgresql://someone:{MARKER}@{address}/db"},
    "qdrant": lambda address: {"url": f"http://{address}", "api_key": MARKER},
    "weaviate": lambda address: {"url": f"http://{address}", "api_key": MARKER},
}
CHOSEN_SERVERS = [item for item in SERVERS if item in {conftest.EDITIONS[name] for name in conftest.CHOSEN}]


def pgvector(url: str) -> ConnectionConfig:
    return config_model("pgvector").model_validate({"type": "pgvector", "url": url})


def _config(store_type: str, address: str) -> Any:
    return config_model(store_type)(type=store_type, **SERVERS[store_type](address))


@pytest.mark.parametrize("store_type", CHOSEN_SERVERS)
def test_an_unreachable_server_is_transient(store_type: str) -> None:
    """Rule: nobody there is Transient, told within seconds, without the secret. If not, set a connect time-out."""
    started = time.monotonic()
    with pytest.raises(Transient) as caught:
        open_store(_config(store_type, "127.0.0.1:1"))
    assert time.monotonic() - started < 15
    _no_secret(caught.value)
    assert "127.0.0.1" in f"{caught.value} {caught.value.hint}", "an error names the address"


@pytest.fixture
def refusing_server() -> Iterator[str]:
    """An HTTP server that answers everything with 401."""

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            body = b'{"status": {"error": "Unauthorized"}, "error": [{"message": "Unauthorized"}]}'
            self.send_response(401)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815  # the names that http.server calls

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("store_type", [item for item in CHOSEN_SERVERS if item in ("qdrant", "weaviate")])
def test_a_refused_key_is_permanent(store_type: str, refusing_server: str) -> None:
    """Rule: a 401 is Permanent and its text has no secret. If this fails, look at the status first."""
    with pytest.raises(Permanent) as caught:
        open_store(_config(store_type, refusing_server))
    _no_secret(caught.value)


def test_a_wrong_password_is_permanent(edition: str, request: pytest.FixtureRequest) -> None:
    """Rule: PostgreSQL's refusal of a login or a database is Permanent, and no text or repr shows the password.

    If this fails, look at the SQLSTATE: class 28 and 3D000 are not worth another try.
    """
    if edition != "pgvector":
        pytest.skip("pgvector only")
    url = str(request.getfixturevalue("pg_locked_url"))
    with pytest.raises(Permanent) as caught:
        open_store(pgvector(url.replace("PASSWORD", MARKER)))
    _no_secret(caught.value)
    absent = (
        str(request.getfixturevalue("pg_url"))
        .replace("postgres:@", f"postgres:{MARKER}@")
        .replace("/postgres?", "/absent?")
    )
    with pytest.raises(Permanent) as caught:
        open_store(pgvector(absent))
    _no_secret(caught.value)


def test_repr_and_errors_show_no_secret(edition: str, name: str, request: pytest.FixtureRequest) -> None:
    """Rule: neither `repr` nor an error text shows a password. If not, name the server without its credentials."""
    if edition != "pgvector":
        store: Store = request.getfixturevalue("store")
        assert MARKER not in repr(store)
        return
    url = str(request.getfixturevalue("pg_database")).replace("postgres:@", f"postgres:{MARKER}@")
    with open_store(pgvector(url)) as store:
        schema = make(store, name)
        with pytest.raises(Permanent) as caught:
            store.create(schema)
        _no_secret(caught.value)
        assert MARKER not in repr(store) + str(store)


def _no_secret(error: VecrunError) -> None:
    shown = [repr(error), str(error), error.summary, error.detail, error.hint, json.dumps(error.as_dict())]
    assert not [text for text in shown if MARKER in text]
