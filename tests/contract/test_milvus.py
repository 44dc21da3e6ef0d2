"""What only Milvus has: typed fields, aliases that block, paging of a Lite that is out of order, cuts, and exclusivity.

Milvus Lite always runs; the server (2.3.5 and newer) through the fixture `milvus_uri`.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.errors import Permanent, StoreError, TooLarge, Transient
from runner.points import (
    CollectionSchema,
    Distance,
    IdKind,
    KeyRange,
    PayloadField,
    Payloads,
    PayloadType,
    PointBatch,
    SparseField,
    SparseVector,
    VectorField,
    VectorIndex,
    json_dumps,
)
from runner.store import BAD_VECTOR, INDEX, PAYLOAD_FIELD, REFUSED
from runner.stores import open_store
from runner.stores.milvus import MilvusConfig, MilvusStore
from runner.stores.milvus.errors import error_of
from tests import conftest, worlds
from tests.worlds import concat, points, same

Open = Callable[..., MilvusStore]


@pytest.fixture(params=[item for item in ("milvus-lite", "milvus-server") if item in conftest.CHOSEN])
def opener(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Iterator[Open]:
    """Opens the edition; the collections of this test are dropped after it."""
    edition = str(request.param)
    uri = str(tmp_path / "points.db") if edition == "milvus-lite" else str(request.getfixturevalue("milvus_uri"))
    opened: list[MilvusStore] = []

    def start(**values: Any) -> MilvusStore:
        store = open_store(MilvusConfig(uri=uri, **values))
        assert isinstance(store, MilvusStore)
        opened.append(store)
        conftest.watch(edition, store)
        return store

    yield start
    for item in opened:
        item.close()
    if edition == "milvus-server":
        with open_store(MilvusConfig(uri=uri)) as last:
            for name in [name for name in last.collections() if name.startswith(prefix)]:
                last.drop(name)


@pytest.fixture
def milvus(opener: Open) -> MilvusStore:
    return opener()


def make(store: MilvusStore, name: str, **wishes: Any) -> Any:
    schema, _ = store.fit(worlds.wish(name, store.capabilities(), **wishes))
    store.create(schema)
    return schema


def read(store: MilvusStore, name: str) -> PointBatch:
    schema = store.inspect(name)
    assert schema is not None
    return concat((part for keys in store.cut(name, 1) for part in store.scan(name, keys)), schema)


def foreign(store: MilvusStore, name: str, nullable: bool, **options: Any) -> None:
    """A collection as somebody else made it: another name for the key, typed fields."""
    from pymilvus import DataType

    client = store._connection.client
    schema = client.create_schema(enable_dynamic_field=options.pop("dynamic", True), **options)
    schema.add_field("pk", DataType.INT64, is_primary=True)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=4)
    more = {"nullable": True} if nullable else {}
    for field, kind in (("flag", "BOOL"), ("small", "INT8"), ("big", "INT64"), ("f", "FLOAT"), ("d", "DOUBLE")):
        schema.add_field(field, DataType[kind], **more)
    schema.add_field("text", DataType.VARCHAR, max_length=20, **more)
    schema.add_field("doc", DataType.JSON, **more)
    schema.add_field("tags", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=3, max_length=10, **more)
    index = client.prepare_index_params()
    index.add_index("embedding", index_type="IVF_FLAT", metric_type="L2", params={"nlist": 16})
    client.create_collection(name, schema=schema, index_params=index)


FULL = {
    "flag": True,
    "small": -128,
    "big": 2**53 + 1,
    "f": 0.5,
    "d": 0.1,
    "text": "naïve 🙂",
    "doc": {"a": [None, {}], "b": 2**53 + 1},
    "tags": ["x", ""],
}


def test_typed_fields_hold_their_keys_and_the_rest_is_dynamic(milvus: MilvusStore, name: str) -> None:
    foreign(milvus, name, nullable=False)
    schema = milvus.inspect(name)
    assert schema is not None
    assert schema.id_kind == IdKind.INT
    assert schema.settings["primary_key"] == "pk"
    assert schema.vectors[0].distance == Distance.EUCLID
    assert {(item.name, item.type, item.array) for item in schema.payload} == {
        ("flag", PayloadType.BOOL, False),
        ("small", PayloadType.INTEGER, False),
        ("big", PayloadType.INTEGER, False),
        ("f", PayloadType.FLOAT, False),
        ("d", PayloadType.FLOAT, False),
        ("text", PayloadType.KEYWORD, False),
        ("doc", PayloadType.JSON, False),
        ("tags", PayloadType.KEYWORD, True),
    }
    payloads = [FULL | {"more": [1, None], "id": 5}, FULL | {"pk": "taken", "embedding": {}}]
    batch = points(schema, payloads=payloads)
    assert milvus.problems(schema, batch) == []
    milvus.upsert(name, batch)
    assert same(milvus, schema, batch, read(milvus, name)) == []
    assert same(milvus, schema, batch, milvus.fetch(name, batch.ids)) == []
    found = milvus._connection.client.query(
        name, filter="big == 9007199254740993 and text like 'na%'", output_fields=["small"]
    )
    assert [item["small"] for item in found] == [-128, -128]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("small", 128),
        ("small", 1.0),
        ("big", 2**63),
        ("f", 0.1),
        ("d", 1),
        ("flag", 1),
        ("text", "x" * 21),
        ("text", None),
        ("tags", ["a", "b", "c", "d"]),
        ("tags", [1]),
    ],
)
def test_values_that_do_not_fit_a_typed_field(milvus: MilvusStore, name: str, key: str, value: Any) -> None:
    """A field that may be null leaves the value to the dynamic field; one that may not is a problem."""
    nullable = milvus.health().version.startswith("milvus_lite")
    foreign(milvus, name, nullable=nullable)
    schema = milvus.inspect(name)
    assert schema is not None
    batch = points(schema, payloads=[FULL | {key: value}, FULL])
    if not nullable:
        found = milvus.problems(schema, batch)
        assert [(item.code, item.field, item.ids) for item in found] == [(PAYLOAD_FIELD, key, (batch.ids[0],))]
        missing = points(schema, payloads=[{k: v for k, v in FULL.items() if k != key}])
        assert [item.code for item in milvus.problems(schema, missing)] == [PAYLOAD_FIELD]
        return
    batch = points(schema, payloads=[FULL | {key: value}, {k: v for k, v in FULL.items() if k != key}, {}])
    assert milvus.problems(schema, batch) == []
    milvus.upsert(name, batch)
    assert same(milvus, schema, batch, read(milvus, name)) == []


def test_a_collection_without_a_dynamic_field_takes_only_its_own_keys(milvus: MilvusStore, name: str) -> None:
    foreign(milvus, name, nullable=False, dynamic=False)
    schema = milvus.inspect(name)
    assert schema is not None
    batch = points(schema, payloads=[FULL, FULL | {"other": 1}])
    found = milvus.problems(schema, batch)
    assert [(item.code, item.field, item.ids) for item in found] == [(PAYLOAD_FIELD, "other", (batch.ids[1],))]
    milvus.upsert(name, batch.slice(0, 1))
    assert same(milvus, schema, batch.slice(0, 1), read(milvus, name)) == []


def test_auto_id_is_read_but_not_written(milvus: MilvusStore, name: str) -> None:
    from pymilvus import DataType

    client = milvus._connection.client
    made = client.create_schema(auto_id=True, enable_dynamic_field=True)
    made.add_field("id", DataType.INT64, is_primary=True, auto_id=True)
    made.add_field("vector", DataType.FLOAT_VECTOR, dim=4)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="IP")
    client.create_collection(name, schema=made, index_params=index)
    client.insert(name, [{"vector": [1, 2, 3, n], "n": n} for n in range(5)])
    schema = milvus.inspect(name)
    assert schema is not None
    assert schema.settings["auto_id"] is True
    found = read(milvus, name)
    assert sorted(item["n"] for item in found.payloads) == list(range(5))
    with pytest.raises(Permanent, match="its own ids"):
        milvus.upsert(name, found)


def test_a_partition_key_is_carried(milvus: MilvusStore, name: str) -> None:
    wish = worlds.wish(name, milvus.capabilities()).model_copy(
        update={
            "payload": (PayloadField(name="tenant", type=PayloadType.KEYWORD, max_length=50),),
            "partition_key": "tenant",
        }
    )
    schema, found = milvus.fit(wish)
    assert found == []
    missing = points(schema, payloads=[{}, {"tenant": "a"}, {"tenant": 5}])
    assert [(item.code, item.count) for item in milvus.problems(schema, missing)] == [(PAYLOAD_FIELD, 2)]
    milvus.create(schema)
    seen = milvus.inspect(name)
    assert seen is not None
    assert (seen.partition_key, seen.partitions, seen.payload) == ("tenant", None, schema.payload)
    batch = points(schema, payloads=[{"tenant": f"t{n % 5}", "n": n} for n in range(40)])
    milvus.upsert(name, batch)
    assert same(milvus, schema, batch, read(milvus, name)) == []


def test_a_point_that_moves_to_another_partition_is_there_once(milvus: MilvusStore, name: str) -> None:
    schema = make(milvus, name, partitions=("alpha", "beta"))
    batch = points(schema, 30)
    milvus.upsert(name, batch)
    milvus.finish(schema)
    moved = points(schema, 30)
    moved.partitions = ["_default"] * 10 + ["beta"] * 20
    milvus.upsert(name, moved)
    assert milvus.count(name) == 30
    assert same(milvus, schema, moved, read(milvus, name)) == []
    assert same(milvus, schema, moved, milvus.fetch(name, moved.ids)) == []
    whole = concat(milvus.scan(name, KeyRange(), None, 7), schema)
    assert same(milvus, schema, moved, whole) == []
    assert whole.ids == sorted(whole.ids)


def test_a_collection_that_is_not_loaded(opener: Open, name: str) -> None:
    milvus = opener()
    schema = make(milvus, name)
    batch = points(schema, 5)
    milvus.upsert(name, batch)
    milvus._connection.client.release_collection(name)
    if not milvus.health().version.startswith("milvus_lite"):
        with pytest.raises(Permanent, match="not loaded") as caught:
            milvus.count(name)
        assert "load: true" in caught.value.hint
        milvus = opener(load=True)
    assert milvus.count(name) == 5
    assert same(milvus, schema, batch, read(milvus, name)) == []


def test_keys_that_clash_are_hidden_and_come_back(milvus: MilvusStore, name: str) -> None:
    schema = make(milvus, name)
    odd: list[dict[str, Any]] = [
        {"_vecrun": '{"id":1}', "id": 2, "keep": 3},
        {"_vecrun": "no json"},
        {"_vecrun": {"deep": [1]}},
        {"_seq": 1, "_partition": "x", "$meta": {"$meta": 1}},
        {"inner": {"id": 1, "_vecrun": 2}},
        {"text": 'she said "id": yes', "vector": None},
    ]
    batch = points(schema, payloads=odd)
    escaped = PointBatch(
        batch.ids[:1], {k: v[:1] for k, v in batch.vectors.items()}, Payloads(json=[b'{"\\u0069d": 7, "a": 1}'])
    )
    milvus.upsert(name, batch)
    assert same(milvus, schema, batch, read(milvus, name)) == []
    milvus.upsert(name, escaped)
    assert milvus.fetch(name, batch.ids[:1]).payloads.dicts == [{"id": 7, "a": 1}]
    found = milvus._connection.client.query(name, filter="keep == 3 or a == 1", output_fields=["keep"])
    assert len(found) == 1, "keys without a clash stay natural"


def test_payloads_up_to_the_limit(milvus: MilvusStore, name: str) -> None:
    schema = make(milvus, name)
    batch = points(schema, payloads=[{"t": "x" * (65_536 - 8)}, {"t": "x" * (65_536 - 7)}, {"id": '"' * 22_000}])
    assert [len(json_dumps(item)) for item in batch.payloads] == [65_536, 65_537, 44_009]
    found = milvus.problems(schema, batch)
    assert [(item.code, item.ids) for item in found] == [(PAYLOAD_FIELD, (batch.ids[1], batch.ids[2]))]
    milvus.upsert(name, batch.slice(0, 1))
    assert same(milvus, schema, batch.slice(0, 1), read(milvus, name)) == []


def test_long_keys(milvus: MilvusStore, name: str) -> None:
    wish = worlds.wish(name, milvus.capabilities(), id_kind=IdKind.STRING).model_copy(update={"id_max_length": 2000})
    schema, _ = milvus.fit(wish)
    milvus.create(schema)
    seen = milvus.inspect(name)
    assert seen is not None
    assert seen.id_max_length == 2000
    batch = points(schema, ids=["é" * 1000, "é" * 1001])
    assert [item.ids for item in milvus.problems(schema, batch)] == [(batch.ids[1],)]
    milvus.upsert(name, batch.slice(0, 1))
    assert read(milvus, name).ids == batch.ids[:1]


def test_cut_beyond_the_window(milvus: MilvusStore, name: str) -> None:
    """A range of more than 16,383 keys is walked in several jumps, and pages adapt beyond the batch size."""
    schema = make(milvus, name, dimension=2)
    total = 35_000
    ids = [int(n) for n in np.random.default_rng(3).permutation(total) * 7 - 90_000]
    for start in range(0, total, 5000):
        milvus.upsert(name, points(schema, ids=ids[start : start + 5000], payloads=[{}] * 5000))
    ranges = milvus.cut(name, 2)
    assert len(ranges) == 2
    found = [[item for part in milvus.scan(name, keys) for item in part.ids] for keys in ranges]
    assert [len(item) for item in found] == [17_500, 17_500]
    assert list(itertools.chain(*found)) == sorted(ids)
    assert max(len(part) for part in milvus.scan(name, ranges[0], None, 300)) == 300


def test_drop_takes_aliases_along(milvus: MilvusStore, name: str) -> None:
    make(milvus, name)
    milvus.set_alias(f"{name}Live", name)
    assert milvus.inspect(f"{name}Live") is None
    milvus.drop(name)
    assert f"{name}Live" not in milvus.aliases()


def test_fit_tells_what_milvus_cannot_name_or_index(milvus: MilvusStore, name: str) -> None:
    caps = milvus.capabilities()

    def codes(schema: Any) -> set[str]:
        return {item.code for item in milvus.fit(schema)[1]}

    for bad in ("a-b", "1a", "ü", "a b", "x" * 255):
        assert codes(worlds.wish(bad, caps)) == {REFUSED}
    for bad in ("", "id", "_vecrun", "v.1"):
        assert codes(worlds.wish(name, caps, vectors=[bad])) == {REFUSED}
    assert codes(worlds.wish(name, caps, dimension=1)) == {REFUSED}
    assert codes(worlds.wish(name, caps, index=VectorIndex(type="vamana"))) == {INDEX}
    field = PayloadField(name="a", type=PayloadType.KEYWORD, indexed=True)
    assert codes(worlds.wish(name, caps, payload=[field])) == {INDEX}
    schema, found = milvus.fit(worlds.wish(name, caps, index=VectorIndex(type="ivfflat", params={"lists": 32})))
    assert found == []
    milvus.create(schema)
    seen = milvus.inspect(name)
    assert seen is not None
    assert seen.vectors[0].index == VectorIndex(type="ivf_flat", params={"nlist": 32})
    assert schema.vectors == seen.vectors


def test_sparse_numbers_that_milvus_refuses(milvus: MilvusStore, name: str) -> None:
    if not milvus.capabilities().sparse:
        pytest.skip("no sparse vectors before 2.4")
    schema = make(milvus, name, sparse=("words",))
    assert schema.sparse == (SparseField(name="words"),)
    batch = points(schema, 6)
    column = [([1, 5], [0.5, 2]), ([], []), ([1], [0.0]), ([1], [-1]), ([2**32 - 1], [1]), ([5, 1], [1, 1])]
    batch.sparse["words"] = [SparseVector(np.array(i, np.int64), np.array(v, np.float32)) for i, v in column]
    found = milvus.problems(schema, batch)
    assert [(item.code, item.count) for item in found] == [(BAD_VECTOR, 5)]
    milvus.upsert(name, batch.slice(0, 1))
    assert same(milvus, schema, batch.slice(0, 1), read(milvus, name)) == []


@pytest.mark.skipif("milvus-lite" not in conftest.CHOSEN, reason="milvus-lite is not in VECRUN_TEST_STORES")
def test_lite_is_open_in_one_process_until_it_is_closed(tmp_path: Path) -> None:
    """Two stores of one process share it; another process is refused clearly, and let in after the last close."""
    uri = str(tmp_path / "points.db")
    config = MilvusConfig(uri=uri)
    command = f"""
from runner.errors import VecrunError
from runner.stores import open_store
from runner.stores.milvus import MilvusConfig
try:
    with open_store(MilvusConfig(uri={uri!r})) as store:
        print(store.collections())
except VecrunError as exc:
    print(type(exc).__name__, exc.summary)
"""

    def other() -> str:
        done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True, timeout=60)
        assert "Traceback" not in done.stderr
        return done.stdout.strip()

    one, two = open_store(config), open_store(config)
    make(one, "Mine")  # type: ignore[arg-type]
    assert other() == "Transient Another process has this Milvus Lite directory open"
    one.close()
    assert two.collections() == ["Mine"]
    assert other().startswith("Transient")
    two.close()
    assert other() == "['Mine']"
    with contextlib.closing(open_store(config)) as again:
        assert again.collections() == ["Mine"]


def test_what_cannot_be_a_milvus_lite_directory(tmp_path: Path) -> None:
    with pytest.raises(Permanent, match="URI"):
        open_store(MilvusConfig(uri=str(tmp_path / "points")))
    (tmp_path / "points.db").write_text("old milvus lite, or something else")
    with pytest.raises(Permanent, match="cannot be opened"):
        open_store(MilvusConfig(uri=str(tmp_path / "points.db")))
    with pytest.raises(Permanent):
        open_store(MilvusConfig(uri=str(tmp_path / "absent" / "points.db")))


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (8, "request is rejected by grpc RateLimiter middleware, please retry later: rate limit exceeded", TooLarge),
        (65535, "grpc: received message larger than max (70000000 vs. 67108864)", TooLarge),
        (2, "Fail connecting to server on localhost:1, illegal connection params or server unavailable", Transient),
        (65535, "auth check failure, please check username and password are correct", Permanent),
        (1100, "invalid parameter", Permanent),
    ],
)
def test_errors_are_sorted(code: int, message: str, kind: type[Exception]) -> None:
    error = error_of(code, message, "http://localhost:1")
    assert type(error) is kind
    assert "http://localhost:1" in error.detail


def test_a_process_killed_while_it_makes_a_collection_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    """Milvus Lite makes the folder first and its schema after: with the folder alone it knows no such collection."""
    uri = tmp_path / "kb.db"
    (uri / "collections" / "half").mkdir(parents=True)
    (uri / "collections" / "other").mkdir()
    (uri / "collections" / "other" / "file").write_text("of somebody")
    schema = CollectionSchema(
        name="half", id_kind=IdKind.INT, vectors=(VectorField(name="v", dimension=4, distance=Distance.COSINE),)
    )
    with MilvusStore.connect(MilvusConfig(type="milvus", uri=str(uri))) as store:
        store.create(schema)
        assert store.collections() == ["half"]
        with pytest.raises(StoreError):
            store.create(schema.model_copy(update={"name": "other"}))
    assert (uri / "collections" / "other" / "file").read_text() == "of somebody"
