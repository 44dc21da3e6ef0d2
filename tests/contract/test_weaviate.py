"""What only Weaviate has: typed properties, names that change silently, tenants, old collections, references.

The server comes from the fixture `weaviate_url`; its rules, not those of the client, are what is tested.
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from runner.errors import Permanent, TooLarge, Transient
from runner.points import (
    CollectionSchema,
    Distance,
    IdKind,
    KeyRange,
    PayloadField,
    Payloads,
    PayloadType,
    PointBatch,
    VectorField,
    VectorIndex,
)
from runner.store import BAD_ID, INDEX, REFUSED
from runner.stores import config_model, open_store
from runner.stores.weaviate import WeaviateStore
from tests.conftest import watch

REST = "_vecrun"


def uid(number: int) -> str:
    return str(uuid.UUID(int=number))


@pytest.fixture
def connection(weaviate_url: str) -> dict[str, Any]:
    url, _, port = weaviate_url.partition("?grpc_port=")
    return {"url": url, "grpc_port": int(port or os.environ.get("VECRUN_TEST_WEAVIATE_GRPC_PORT", "50051"))}


@pytest.fixture
def store(connection: dict[str, Any]) -> Iterator[WeaviateStore]:
    opened = watch("weaviate", open_store(config_model("weaviate")(type="weaviate", **connection)))
    assert isinstance(opened, WeaviateStore)
    yield opened
    opened.close()


@pytest.fixture
def name(connection: dict[str, Any]) -> Iterator[str]:
    """A fresh name; everything that begins with it is removed after the test."""
    fresh = f"W{uuid.uuid4().hex[:10]}"
    yield fresh
    with open_store(config_model("weaviate")(type="weaviate", **connection)) as last:
        for alias in last.aliases():
            if alias.startswith(fresh):
                last.set_alias(alias, None)
        for item in last.collections():
            if item.startswith(fresh):
                last.drop(item)


def schema_of(name: str, **changes: Any) -> CollectionSchema:
    vectors = (VectorField(name="default", dimension=2, distance=Distance.COSINE),)
    return CollectionSchema(**{"name": name, "id_kind": IdKind.UUID, "vectors": vectors} | changes)


def made(store: WeaviateStore, name: str, **changes: Any) -> CollectionSchema:
    schema, problems = store.fit(schema_of(name, **changes))
    assert not problems
    store.create(schema)
    return schema


def batch_of(payloads: list[Any], start: int = 1, **changes: Any) -> PointBatch:
    count = len(payloads)
    ids = [uid(start + row) for row in range(count)]
    vectors = {"default": np.arange(2 * count, dtype=np.float32).reshape(count, 2) + 1}
    return PointBatch(**{"ids": ids, "vectors": vectors, "payloads": Payloads(payloads)} | changes)


def read(store: WeaviateStore, name: str) -> dict[Any, Any]:
    return {
        point_id: payload
        for batch in store.scan(name, KeyRange())
        for point_id, payload in zip(batch.ids, batch.payloads.dicts, strict=True)
    }


def raw(store: WeaviateStore, name: str, point_id: str) -> dict[str, Any]:
    """The properties as any other client of the server sees them."""
    found: dict[str, Any] = store._connection.rest("get", f"/objects/{name}/{point_id}")
    return found["properties"] or {}


def define(store: WeaviateStore, name: str, **definition: Any) -> None:
    """A collection as somebody else made it."""
    store._connection.rest("post", "/schema", {"class": name, **definition})


NONE = {"vectorizer": {"none": {}}, "vectorIndexType": "hnsw", "vectorIndexConfig": {"distance": "cosine"}}


# Payloads -----------------------------------------------------------------------------------------------------------


def test_ordinary_values_are_natural_properties(store: WeaviateStore, name: str) -> None:
    """Filters and searches of the application must find them, so they may not hide in the rest."""
    from weaviate.classes.query import Filter

    made(store, name)
    payload = {"title": "Blue whale", "year": 2021, "score": 0.5, "ok": True, "tags": ["a", "b"], "ns": [1, 2]}
    store.upsert(name, batch_of([payload, {"title": "red fox", "year": 1999}]))
    assert raw(store, name, uid(1)) == payload
    found = store._connection.client.collections.use(name).query
    assert [str(item.uuid) for item in found.fetch_objects(filters=Filter.by_property("year").less_than(2000)).objects]
    assert [str(item.uuid) for item in found.bm25("whale").objects] == [uid(1)]
    assert read(store, name) == {uid(1): payload, uid(2): {"title": "red fox", "year": 1999}}


def test_what_a_property_cannot_hold_goes_to_the_rest_and_comes_back(store: WeaviateStore, name: str) -> None:
    made(store, name)
    store.upsert(name, batch_of([{"n": 1, "f": 0.5, "t": "x", "l": ["a"], "b": True}], start=100))
    awkward = {
        "n": 2**53 + 1,
        "f": 3,
        "t": None,
        "l": ["a", 1, None],
        "b": "yes",
        "object": {"a": {"b": []}},
        "Upper": "case",
        "id": "mine",
        "_additional": 1,
        "a.b c\"'": [],
        "x_temp": "reserved suffix",
        REST: {"even": "this"},
        "big": 2**63 - 1,
        "huge": 10**30,
        "whole": [1.0, 2.0],
        "größe": 1.5,
    }
    store.upsert(name, batch_of([awkward, {"n": 7.0, "f": -0.0, "l": []}, {}]))
    got = read(store, name)
    assert got[uid(1)] == awkward
    assert type(got[uid(1)]["f"]) is int
    assert type(got[uid(1)]["whole"][0]) is float
    assert got[uid(2)] == {"n": 7.0, "f": -0.0, "l": []}
    assert type(got[uid(2)]["n"]) is float
    assert got[uid(3)] == {}
    assert raw(store, name, uid(2))["n"] == 7, "a near value stays where filters find it"
    assert raw(store, name, uid(3)) == {}


@pytest.mark.parametrize(
    ("text", "natural"),
    [
        ("2024-01-02T03:04:05Z", "2024-01-02T03:04:05Z"),
        ("2024-01-02T03:04:05.120Z", "2024-01-02T03:04:05.12Z"),
        ("2024-01-02T03:04:05+00:00", "2024-01-02T03:04:05Z"),
        ("2024-01-02T03:04:05.123456789+02:00", "2024-01-02T03:04:05.123456789+02:00"),
        ("2024-01-02", None),
        ("2024-02-30T00:00:00Z", None),
        ("2024-01-02T03:04:60Z", None),
        ("2024-01-02T03:04:05+24:00", None),
        ("2024-01-02t03:04:05z", None),
        ("0000-01-01T00:00:00Z", None),
        ("yesterday", None),
    ],
)
def test_dates_keep_their_spelling(store: WeaviateStore, name: str, text: str, natural: str | None) -> None:
    made(store, name, payload=(PayloadField(name="at", type=PayloadType.DATETIME, indexed=True),))
    store.upsert(name, batch_of([{"at": text}]))
    assert read(store, name) == {uid(1): {"at": text}}
    assert raw(store, name, uid(1)).get("at") == natural


def test_declared_types_hold_what_they_can(store: WeaviateStore, name: str) -> None:
    fields = (
        PayloadField(name="who", type=PayloadType.UUID, indexed=True),
        PayloadField(name="place", type=PayloadType.GEO, indexed=True),
        PayloadField(name="code", type=PayloadType.KEYWORD, indexed=True),
        PayloadField(name="text", type=PayloadType.TEXT, indexed=True),
        PayloadField(name="plain", type=PayloadType.TEXT),
        PayloadField(name="days", type=PayloadType.DATETIME, array=True),
    )
    schema = made(store, name, payload=fields)
    seen = store.inspect(name)
    assert seen is not None
    assert set(seen.payload) == set(schema.payload)
    payloads = [
        {"who": uid(7), "place": {"latitude": 52.3676, "longitude": 4.9041}, "days": ["2024-01-01T00:00:00Z"]},
        {"who": uid(7).upper().replace("0", "A"), "place": {"lat": 52.367612345678, "lon": 4.9}, "days": ["?"]},
        {"place": {"latitude": 91, "longitude": 0}, "code": "A b", "text": "A b"},
        {"place": {"latitude": 1, "longitude": 0.1}},
    ]
    store.upsert(name, batch_of(payloads))
    assert list(read(store, name).values()) == payloads
    assert "latitude" in raw(store, name, uid(2))["place"]
    assert "place" not in raw(store, name, uid(3))


def test_undeclared_properties_do_not_change_what_inspect_says(store: WeaviateStore, name: str) -> None:
    made(store, name)
    before = store.inspect(name)
    store.upsert(name, batch_of([{"colour": "red"}]))
    assert store.inspect(name) == before


def test_the_same_new_property_from_many_threads(store: WeaviateStore, name: str, connection: dict[str, Any]) -> None:
    """Threads of one process and of another meet at the same new keys, one of them with another type."""
    made(store, name)
    others = [open_store(config_model("weaviate")(type="weaviate", **connection)) for _ in range(2)]
    failures: list[BaseException] = []
    start = threading.Barrier(6)

    def write(opened: Any, number: int) -> None:
        try:
            start.wait()
            value: Any = "text" if number % 2 else number
            opened.upsert(name, batch_of([{f"key{item}": value for item in range(8)}] * 20, start=100 * (number + 1)))
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=write, args=([store, *others][n % 3], n)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for opened in others:
        opened.close()
    assert not failures
    got = read(store, name)
    assert len(got) == 120
    for point_id, payload in got.items():
        number = uuid.UUID(point_id).int // 100 - 1
        assert payload == {f"key{item}": "text" if number % 2 else number for item in range(8)}


def test_keys_that_differ_only_in_case(store: WeaviateStore, name: str) -> None:
    """The server refuses the second one as a property."""
    made(store, name)
    store.upsert(name, batch_of([{"someKey": 1, "somekey": 2}, {"somekey": 3}]))
    assert read(store, name) == {uid(1): {"someKey": 1, "somekey": 2}, uid(2): {"somekey": 3}}


# Names --------------------------------------------------------------------------------------------------------------


def test_names_are_never_changed_silently(store: WeaviateStore, name: str) -> None:
    made(store, name)
    lower = name[0].lower() + name[1:]
    _, problems = store.fit(schema_of(lower))
    assert [(item.code, name in item.message) for item in problems] == [(REFUSED, True)]
    with pytest.raises(Permanent):
        store.create(schema_of(lower))
    assert store.inspect(lower) is None
    store.drop(lower)
    assert store.inspect(name) is not None, "the server would have dropped it"
    with pytest.raises(Permanent):
        store.set_alias("lower", name)
    _, problems = store.fit(schema_of("2 bad-names"))
    assert problems[0].code == REFUSED


def test_an_alias_is_no_collection(store: WeaviateStore, name: str) -> None:
    made(store, name)
    made(store, f"{name}B")
    alias = f"{name}Alias"
    store.set_alias(alias, name)
    store.set_alias(alias, name)
    assert store.inspect(alias) is None
    store.drop(alias)
    assert store.inspect(name) is not None
    store.set_alias(alias, f"{name}B")
    assert store.aliases()[alias] == f"{name}B"
    store.set_alias(alias, None)
    store.set_alias(alias, None)
    assert alias not in store.aliases()


def test_fit_tells_what_becomes_something_else(store: WeaviateStore) -> None:
    wish = schema_of(
        "Target",
        id_kind=IdKind.UUID,
        vectors=(
            VectorField(
                name="a", dimension=2, distance=Distance.DOT, index=VectorIndex(type="ivf_flat", params={"nlist": 9})
            ),
            VectorField(name="b-c", dimension=2, distance=Distance.EUCLID),
        ),
        payload=(
            PayloadField(name="Upper", type=PayloadType.TEXT, indexed=True),
            PayloadField(name="free", type=PayloadType.JSON),
        ),
        partitions=("ok", "not ok"),
        partition_key="who",
    )
    schema, problems = store.fit(wish)
    assert [item.code for item in problems] == [INDEX, REFUSED, INDEX, REFUSED, INDEX]
    assert schema.payload == ()
    index = schema.vectors[0].index
    assert index is not None
    assert (index.type, index.m, index.ef_construction, index.params) == ("hnsw", 32, 128, {})


def test_ids_must_be_canonical_uuids(store: WeaviateStore, name: str) -> None:
    found = store.problems(schema_of(name), batch_of([{}, {}], ids=[uid(1), uid(10).upper()]))
    assert [(item.code, item.ids) for item in found] == [(BAD_ID, (uid(10).upper(),))]


# Collections somebody else made -------------------------------------------------------------------------------------


def test_an_old_collection_with_one_unnamed_vector(store: WeaviateStore, name: str) -> None:
    define(store, name, vectorizer="none", vectorIndexType="hnsw", vectorIndexConfig={"distance": "cosine"})
    seen = store.inspect(name)
    assert seen is not None
    assert [(item.name, item.dimension) for item in seen.vectors] == [("", 0)], "empty: no length is known yet"
    vectors = {"": np.array([[3, 4], [0, 0], [5, 12]], np.float32)}
    missing = {"": np.array([False, True, False])}
    store.upsert(name, batch_of([{"a": 1}, {}, {"b": {}}], vectors=vectors, missing=missing))
    seen = store.inspect(name)
    assert seen is not None
    assert [(item.name, item.dimension, item.distance) for item in seen.vectors] == [("", 2, Distance.COSINE)]
    assert [item.name for item in seen.payload] == []
    (batch,) = store.scan(name, KeyRange())
    assert np.array_equal(batch.vectors[""], vectors[""]), "cosine vectors are not normalised"
    assert batch.missing[""].tolist() == [False, True, False]
    assert batch.payloads.dicts == [{"a": 1}, {}, {"b": {}}]
    assert store.fit(seen)[1] == []


def test_lengths_are_found_behind_points_without_the_vector(store: WeaviateStore, name: str) -> None:
    define(store, name, vectorConfig={"a": NONE, "b": NONE, "never": NONE})
    vectors = {"a": np.ones((300, 3), np.float32), "b": np.full((300, 5), 2, np.float32)}
    late = np.arange(300) < 290
    store.upsert(name, batch_of([{}] * 300, vectors=vectors, missing={"b": late}))
    seen = store.inspect(name)
    assert seen is not None
    assert {item.name: item.dimension for item in seen.vectors} == {"a": 3, "b": 5}
    (batch,) = store.scan(name, KeyRange(), uid(289))
    assert batch.vectors["b"][:, 0].tolist() == [0] + [2] * 10
    assert batch.missing["b"].tolist() == [True] + [False] * 10


def test_every_type_survives_reading_and_writing_back(store: WeaviateStore, name: str) -> None:
    """A batch operation writes points back where they were: nothing may leave its natural property."""
    nested = [
        {"name": "x", "dataType": ["int"]},
        {"name": "blob", "dataType": ["blob"]},
        {"name": "deep", "dataType": ["object[]"], "nestedProperties": [{"name": "ys", "dataType": ["text[]"]}]},
    ]
    define(store, f"{name}Author", vectorConfig={"default": NONE})
    define(
        store,
        name,
        vectorConfig={"default": NONE},
        properties=[
            {"name": "blob", "dataType": ["blob"]},
            {"name": "phone", "dataType": ["phoneNumber"]},
            {"name": "place", "dataType": ["geoCoordinates"]},
            {"name": "object", "dataType": ["object"], "nestedProperties": nested},
            {"name": "by", "dataType": [f"{name}Author"]},
            {"name": "ints", "dataType": ["int[]"]},
            {"name": "numbers", "dataType": ["number[]"]},
            {"name": "dates", "dataType": ["date[]"]},
            {"name": "uuids", "dataType": ["uuid[]"]},
            {"name": "bools", "dataType": ["boolean[]"]},
        ],
    )
    store.upsert(f"{name}Author", batch_of([{}, {}]))
    properties = {
        "blob": "aGVsbG8=",
        "phone": {"input": "020 1234567", "defaultCountry": "nl"},
        "place": {"latitude": 52.3676, "longitude": 4.9041},
        "object": {"x": 5, "blob": "aGVsbG8=", "deep": [{"ys": ["a"]}, {"ys": []}, {}]},
        "by": [{"beacon": f"weaviate://localhost/{name}Author/{uid(2)}"}],
        "ints": [1, -(2**53)],
        "numbers": [0.1, 1e300],
        "dates": ["2024-01-01T00:00:00.5Z"],
        "uuids": [uid(3)],
        "bools": [True, False],
    }
    store._connection.rest(
        "post", "/objects", {"class": name, "id": uid(1), "properties": properties, "vector": [1, 2]}
    )
    before = raw(store, name, uid(1))
    (batch,) = store.scan(name, KeyRange())
    payload = batch.payloads.dicts[0]
    assert payload.keys() == properties.keys()
    assert {key: payload[key] for key in properties if key != "phone"} == {
        key: value for key, value in properties.items() if key != "phone"
    }
    assert store.fetch(name, [uid(1)]).payloads.dicts == [payload]
    more = [{"by": [{"beacon": f"weaviate://localhost/{name}Author/{uid(n)}"}]} for n in (1, 2, 1, 2)]
    store.upsert(name, batch_of(more, start=10))
    (scanned,) = store.scan(name, KeyRange(uid(2)))
    assert scanned.payloads.dicts == more
    assert store.fetch(name, [uid(13), uid(11)]).payloads.dicts == [more[1], more[3]]
    store.upsert(name, batch)
    after = raw(store, name, uid(1))
    assert set(after) - set(before) <= {REST}
    assert {key: value for key, value in after.items() if key != REST} == before
    assert store.fetch(name, [uid(1)]).payloads.dicts == [payload]
    store.drop(name)


def test_multi_vectors_are_refused_by_name(store: WeaviateStore, name: str) -> None:
    config = {"vectorIndexConfig": {"multivector": {"enabled": True}}}
    define(store, name, vectorConfig={"colbert": NONE | config})
    with pytest.raises(Permanent) as caught:
        store.inspect(name)
    assert "colbert" in caught.value.detail


@pytest.mark.parametrize(
    "index",
    [
        VectorIndex(type="hnsw", m=8, ef_construction=50, params={"ef": 90}),
        VectorIndex(type="flat", params={"quantizer": "bq", "bq.rescoreLimit": 70}),
        VectorIndex(type="hnsw", m=16, ef_construction=100, params={"quantizer": "rq", "rq.bits": 8}),
    ],
)
def test_an_index_is_made_as_wished_and_vectors_stay_raw(store: WeaviateStore, name: str, index: VectorIndex) -> None:
    vector = VectorField(name="v", dimension=64, distance=Distance.COSINE, index=index)
    schema = made(store, name, vectors=(vector,))
    seen = store.inspect(name)
    assert seen is not None
    made_index = seen.vectors[0].index
    assert made_index is not None
    assert (made_index.type, made_index.m, made_index.ef_construction) == (index.type, index.m, index.ef_construction)
    assert index.params.items() <= made_index.params.items()
    matrix = np.random.default_rng(3).standard_normal((50, 64)).astype(np.float32) * 9
    store.upsert(name, batch_of([{}] * 50, vectors={"v": matrix}))
    store.finish(schema)
    (batch,) = store.scan(name, KeyRange())
    assert np.array_equal(batch.vectors["v"], matrix)


# Reading and writing ------------------------------------------------------------------------------------------------


def test_the_cursor_goes_by_bytes_over_several_shards(store: WeaviateStore, name: str) -> None:
    schema = made(store, name)
    store.drop(name)
    store.create(schema.model_copy(update={"settings": {"shards": 3}}))
    seen = store.inspect(name)
    assert seen is not None
    assert seen.settings["shards"] == 3
    numbers = [0, 1, 2**128 - 1, *(int.from_bytes(np.random.default_rng(n).bytes(16), "big") for n in range(500))]
    ids = [uid(number) for number in sorted(numbers)]
    shuffled = np.random.default_rng(1).permutation(len(ids)).tolist()
    store.upsert(name, batch_of([{}] * len(ids), ids=[ids[row] for row in shuffled]))
    for keys in (KeyRange(), KeyRange(uid(2**127)), KeyRange(None, uid(2**127 + 5)), KeyRange(ids[7], ids[90])):
        expected = [item for item in ids if (keys.lo or "") <= item and (keys.hi is None or item < keys.hi)]
        assert [item for batch in store.scan(name, keys, None, 37) for item in batch.ids] == expected
        assert [item for batch in store.scan(name, keys, expected[10], 37) for item in batch.ids] == expected[11:]
    store.delete(name, [uid(2**126)])
    assert [item for batch in store.scan(name, KeyRange(), uid(2**126)) for item in batch.ids] == [
        item for item in ids if item > uid(2**126)
    ], "a cursor at an id that is not there"


def test_time_ordered_ids_are_cut_evenly(store: WeaviateStore, name: str) -> None:
    made(store, name)
    start = 0x019_1234_5678_0000 << 64
    ids = [uid(start + (n << 64) + n * 12345) for n in range(2000)]
    store.upsert(name, batch_of([{}] * 2000, ids=ids))
    ranges = store.cut(name, 8)
    sizes = [sum(len(batch) for batch in store.scan(name, keys)) for keys in ranges]
    assert sum(sizes) == 2000
    assert max(sizes) < 2 * 2000 / 8


@pytest.mark.parametrize("window", [10_000, 40_000])
def test_many_ids_at_once(store: WeaviateStore, name: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the server's window of 10,000 for a search or a delete, known to the adapter or not (40,000).

    A delete beyond the window does its part and says nothing.
    """
    monkeypatch.setattr("runner.stores.weaviate.collection.MOST_RESULTS", window)
    schema = made(store, name, vectors=())
    seen = store.inspect(name)
    assert seen is not None
    assert seen.vectors == schema.vectors == ()
    count = 12_000
    store.upsert(name, batch_of([{}] * 6000, vectors={}))
    store.upsert(name, batch_of([{}] * 6000, start=6001, vectors={}))
    ids = [uid(n + 1) for n in range(count)]
    assert len(store.fetch(name, [*ids, uid(10**9)])) == count
    assert len(store.fetch(name, ids[:5000] + ids[:10])) == 5000
    assert sum(len(batch) for batch in store.scan(name, KeyRange(), None, 50_000)) == count
    assert list(store.scan(name, KeyRange(partition="none"))) == []
    store.delete(name, [*ids[: count - 1], uid(10**9), "no uuid"])
    assert store.count(name) == 1


def test_replacing_leaves_nothing_behind(store: WeaviateStore, name: str) -> None:
    made(store, name, vectors=tuple(VectorField(name=n, dimension=2, distance=Distance.DOT) for n in "ab"))
    one = np.ones((1, 2), np.float32)
    store.upsert(name, batch_of([{"x": 1, "y": None}], vectors={"a": one, "b": one}))
    gone = {"b": np.array([True])}
    store.upsert(name, batch_of([{"z": 1}], vectors={"a": one, "b": one}, missing=gone))
    got = store.fetch(name, [uid(1)])
    assert got.payloads.dicts == [{"z": 1}]
    assert got.missing["b"].tolist() == [True]
    assert store.count(name) == 1


def test_a_collection_is_never_made_up(store: WeaviateStore, name: str) -> None:
    """The server would make one on a write, with guessed types."""
    with pytest.raises(Permanent):
        store.upsert(name, batch_of([{"a": 1}]))
    assert store.inspect(name) is None
    assert (store.count(name), len(store.fetch(name, [uid(1)])), list(store.scan(name, KeyRange()))) == (0, 0, [])
    store.delete(name, [uid(1)])


def test_errors_of_single_points_are_not_overlooked(store: WeaviateStore, name: str) -> None:
    """The reply to a batch is a success as a whole."""
    define(store, name, vectorConfig={"default": NONE}, properties=[{"name": "by", "dataType": [name]}])
    beacon = [{"beacon": f"weaviate://localhost/{name}/{uid(77)}"}]
    with pytest.raises(Permanent) as caught:
        store.upsert(name, batch_of([{}, {"by": beacon}]))
    assert uid(2) in caught.value.detail
    assert uid(1) not in caught.value.detail


def test_a_closed_grpc_port_is_told(connection: dict[str, Any]) -> None:
    """REST answers, so only the hint can lead to the cause."""
    with pytest.raises(Transient) as caught:
        open_store(config_model("weaviate")(type="weaviate", **connection | {"grpc_port": 1}))
    assert "grpc_port" in caught.value.hint


def test_a_closed_store_says_so(store: WeaviateStore, name: str) -> None:
    made(store, name)
    store.close()
    store.close()
    for call in (store.collections, lambda: store.count(name), lambda: store.upsert(name, batch_of([{}]))):
        with pytest.raises(Permanent):
            call()


def test_too_large_batches_are_told_before_they_are_sent(store: WeaviateStore, name: str) -> None:
    made(store, name)
    store._connection.message_bytes = 10_000
    with pytest.raises(TooLarge):
        store.upsert(name, batch_of([{"t": "x" * 6000}] * 2))
    with pytest.raises(Permanent):
        store.upsert(name, batch_of([{"t": "x" * 12_000}]))
    assert store.count(name) == 0


def test_nan_in_a_payload_is_an_error(store: WeaviateStore, name: str) -> None:
    made(store, name)
    with pytest.raises(Permanent):
        store.upsert(name, batch_of([{"f": float("nan")}]))


# Tenants ------------------------------------------------------------------------------------------------------------


def test_tenants_are_partitions(store: WeaviateStore, name: str) -> None:
    """The same id in two tenants is two points."""
    schema = made(store, name, partitions=("a", "b-1"))
    assert store.count(name) == 0
    store.upsert(name, batch_of([{"n": n} for n in range(30)], partitions=["a", "b-1", "c"] * 10))
    store.upsert(name, batch_of([{"n": 99}], partitions=["b-1"]))
    assert store.count(name) == 31
    seen = store.inspect(name)
    assert seen is not None
    assert seen.partitions == ("a", "b-1", "c")
    assert seen.vectors == schema.vectors
    ranges = store.cut(name, 6)
    assert {keys.partition for keys in ranges} == {"a", "b-1", "c"}
    found = [
        (tenant, point_id)
        for keys in ranges
        for batch in store.scan(name, keys)
        for tenant, point_id in zip(batch.partitions or [], batch.ids, strict=True)
    ]
    assert len(found) == len(set(found)) == 31
    assert sorted(store.fetch(name, [uid(1)]).partitions or []) == ["a", "b-1"]
    store.delete(name, [uid(1)])
    assert store.count(name) == 29


def test_an_inactive_tenant_is_told(store: WeaviateStore, name: str) -> None:
    made(store, name, partitions=("on", "off"))
    store.upsert(name, batch_of([{}, {}], partitions=["on", "off"]))
    store._connection.rest("put", f"/schema/{name}/tenants", [{"name": "off", "activityStatus": "COLD"}])
    assert store.inspect(name) is not None
    with pytest.raises(Permanent) as caught:
        store.count(name)
    assert "ctivate" in caught.value.hint


def test_a_server_that_is_down_is_told_with_the_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]  # nobody listens there once it is closed
    with pytest.raises(Transient, match="refused"):
        open_store(config_model("weaviate")(type="weaviate", url=f"http://127.0.0.1:{port}"))
