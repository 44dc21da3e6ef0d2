"""What only Qdrant has: its order of ids, cosine, its two vector formats on the wire, locks, settings, tenants.

The wire is tested without a server: a request that `upsert` built is turned into the answer a server would give.
With VECRUN_TEST_QDRANT_URL (or a `qdrant` on PATH) the same store is also tested against a real one.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runner.errors import NotFound, Permanent, StoreError, TooLarge, Transient, VecrunError
from runner.points import (
    CollectionSchema,
    Datatype,
    Distance,
    IdKind,
    KeyRange,
    PayloadField,
    Payloads,
    PayloadType,
    PointBatch,
    PointId,
    SparseField,
    SparseVector,
    VectorField,
    VectorIndex,
)
from runner.store import BAD_ID, BAD_VECTOR, INDEX, PARTITIONS, PAYLOAD_FIELD, REFUSED, Store
from runner.stores.qdrant import QdrantConfig, QdrantStore, collection
from runner.stores.qdrant.connection import Connection
from runner.stores.qdrant.errors import translated
from runner.stores.qdrant.payload import is_rounded, stored
from runner.stores.qdrant.points import Layout, from_messages, message_id
from tests import conftest, worlds
from tests.worlds import concat, points, same

grpc = pytest.importorskip("qdrant_client.grpc", reason="qdrant-client is not installed")
ALL = KeyRange()
UUIDS = [f"{n:08x}-0000-4000-8000-{n:012x}" for n in (1, 2, 2**31)]


class Wire:
    """A client whose gRPC stubs are answered by local mode: real messages, serialised and parsed, but no server."""

    def __init__(self) -> None:
        from qdrant_client import QdrantClient

        self._local = QdrantClient(location=":memory:")
        self.grpc_points = SimpleNamespace(Upsert=self._upsert, Scroll=self._scroll, Get=self._get)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._local, name)

    def _upsert(self, request: Any, timeout: float) -> Any:
        from qdrant_client.conversions.conversion import GrpcToRest

        request = grpc.UpsertPoints.FromString(request.SerializeToString())
        with self._errors():
            self._local.upsert(request.collection_name, [GrpcToRest.convert_point_struct(p) for p in request.points])
        return grpc.PointsOperationResponse(result=grpc.UpdateResult(status=grpc.UpdateStatus.Completed))

    def _scroll(self, request: Any, timeout: float) -> Any:
        offset = request.offset.uuid or request.offset.num if request.HasField("offset") else None
        with self._errors():
            found, following = self._local.scroll(
                request.collection_name,
                offset=offset,
                limit=request.limit,
                with_payload=request.with_payload.enable,
                with_vectors=request.with_vectors.enable,
            )
        answer = grpc.ScrollResponse(result=self._messages(found))
        if following is not None:
            answer.next_page_offset.CopyFrom(message_id(following))
        return grpc.ScrollResponse.FromString(answer.SerializeToString())

    def _get(self, request: Any, timeout: float) -> Any:
        ids = [item.uuid or item.num for item in request.ids]
        with self._errors():
            found = self._local.retrieve(request.collection_name, ids, with_vectors=request.with_vectors.enable)
        return grpc.GetResponse(result=self._messages(found))

    def _messages(self, found: list[Any]) -> list[Any]:
        from qdrant_client.conversions.conversion import RestToGrpc

        return [RestToGrpc.convert_record(item) for item in found]

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        import grpc as channel

        class Refused(channel.RpcError):
            def code(self) -> Any:
                return channel.StatusCode.INVALID_ARGUMENT

            def details(self) -> str:
                return "refused"

        try:
            yield
        except ValueError as exc:
            raise Refused from exc


@pytest.fixture(params=["memory", "folder", "wire", "server", "server-rest"])
def qdrant(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Iterator[Store]:
    """An open Qdrant of each edition and protocol."""
    if request.param == "memory":
        config = QdrantConfig(path=":memory:")
    elif request.param in ("folder", "wire"):
        config = QdrantConfig(path=str(tmp_path / "q"))
    else:
        config = request.getfixturevalue("server_config")
        config = config.model_copy(update={"prefer_grpc": request.param == "server"})
    if request.param == "wire":
        yield QdrantStore(Connection(Wire(), QdrantConfig(url="http://nowhere")))
        return
    edition = "qdrant-local" if config.path else "qdrant-server"
    with conftest.watch(edition, QdrantStore.connect(config)) as store:
        yield store
        for name in store.collections():
            if name.startswith(prefix):
                store.drop(name)


@pytest.fixture
def server_config(request: pytest.FixtureRequest) -> QdrantConfig:
    """The server's address; VECRUN_TEST_QDRANT_URL may end in ?grpc_port=…, else it is the REST port + 1."""
    url, _, port = str(request.getfixturevalue("qdrant_url")).partition("?grpc_port=")
    return QdrantConfig(url=url, grpc_port=int(port or int(url.rstrip("/").rpartition(":")[2]) + 1))


def schema_of(name: str, **changes: Any) -> CollectionSchema:
    values: dict[str, Any] = {
        "name": name,
        "id_kind": IdKind.INT_OR_UUID,
        "vectors": (VectorField(name="", dimension=4, distance=Distance.DOT),),
    }
    return CollectionSchema(**values | changes)


def made(store: Store, name: str, **changes: Any) -> CollectionSchema:
    schema, found = store.fit(schema_of(name, **changes))
    assert not [item for item in found if item.code.startswith("VX")], found
    store.create(schema)
    return schema


# Ids and order ------------------------------------------------------------------------------------------------------


def test_integers_come_before_uuids(qdrant: Store, name: str) -> None:
    """Rule: one collection may hold both; ranges, `after` and `hi` follow Qdrant's order, which is ours too."""
    schema = made(qdrant, name)
    ids: list[PointId] = [*UUIDS, 10, 9, 2, 100, 2**64 - 1, 0]
    qdrant.upsert(name, points(schema, ids=ids))
    order = [0, 2, 9, 10, 100, 2**64 - 1, *UUIDS]

    def scan(keys: KeyRange = ALL, after: PointId | None = None, size: int = 2) -> list[PointId]:
        return [item for batch in qdrant.scan(name, keys, after, size) for item in batch.ids]

    for size in (1, 2, 3, 9, 50):
        assert scan(size=size) == order
    for place, edge in enumerate(order):
        assert scan(after=edge) == order[place + 1 :]
        assert scan(KeyRange(None, edge)) == order[:place]
        assert scan(KeyRange(edge, None), after=order[0]) == order[max(place, 1) :]
    assert scan(KeyRange(5, UUIDS[0]), after=50) == [100, 2**64 - 1]
    assert scan(after=11) == [100, 2**64 - 1, *UUIDS], "an `after` whose point is gone"


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 40])
def test_cut_covers_every_id_once(qdrant: Store, name: str, parts: int) -> None:
    schema = made(qdrant, name)
    ids: list[PointId] = [*range(0, 60, 3), *UUIDS]
    qdrant.upsert(name, points(schema, ids=ids))
    ranges = qdrant.cut(name, parts)
    assert 1 <= len(ranges) <= parts
    assert (ranges[0].lo, ranges[-1].hi) == (None, None)
    assert all(one.hi == two.lo for one, two in itertools.pairwise(ranges))
    seen = [item for keys in ranges for batch in qdrant.scan(name, keys) for item in batch.ids]
    assert seen == ids
    if parts == 3:
        sizes = [sum(len(batch) for batch in qdrant.scan(name, keys)) for keys in ranges]
        assert max(sizes) - min(sizes) <= 2


def test_cut_by_a_sample(qdrant: Store, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: a large collection is cut by a random sample, which still covers everything."""
    monkeypatch.setattr(collection, "SAMPLE", 200)
    schema = made(qdrant, name)
    qdrant.upsert(name, points(schema, ids=list(range(1000))))
    ranges = qdrant.cut(name, 4)
    sizes = [sum(len(batch) for batch in qdrant.scan(name, keys)) for keys in ranges]
    assert sum(sizes) == 1000
    assert min(sizes) > 100


def test_ids_a_server_refuses_are_told(qdrant: Store, name: str) -> None:
    """Rule: local mode takes -1 and other spellings of a UUID; a server does not keep them, so they are BAD_ID."""
    schema = made(qdrant, name)
    letters = "7f9c24e5-2c1b-4a77-9d3e-0b1c2d3e4f50"
    bad: list[PointId] = [-1, 2**64, "doc-1", letters.upper(), letters.replace("-", ""), f"{{{letters}}}", ""]
    for point_id in bad:
        found = qdrant.problems(schema, points(schema, ids=[5, point_id]))
        assert [(item.code, item.ids, item.count) for item in found] == [(BAD_ID, (point_id,), 1)]
    assert qdrant.problems(schema, points(schema, ids=[0, 2**64 - 1, *UUIDS])) == []
    qdrant.upsert(name, points(schema, ids=[1]))
    assert qdrant.fetch(name, [*bad, 1, 1]).ids == [1]
    qdrant.delete(name, bad)
    assert qdrant.count(name) == 1


def test_the_kind_of_ids_of_a_foreign_collection(qdrant: Store, name: str) -> None:
    """Rule: what others made is of the kind its points are; ours keeps its word, unless the points break it."""
    from qdrant_client import models

    assert isinstance(qdrant, QdrantStore)
    schema = schema_of(name)
    for ids, kind in (([], "int_or_uuid"), ([1], "int"), ([UUIDS[0]], "uuid"), ([1, UUIDS[0]], "int_or_uuid")):
        qdrant.drop(name)
        qdrant._client.create_collection(name, models.VectorParams(size=4, distance=models.Distance.DOT))
        qdrant.upsert(name, points(schema, ids=ids))
        seen = qdrant.inspect(name)
        assert seen is not None
        assert seen.id_kind == kind
    qdrant.drop(name)
    made(qdrant, name, id_kind=IdKind.INT)
    qdrant.upsert(name, points(schema, ids=[UUIDS[0]]))
    seen = qdrant.inspect(name)
    assert seen is not None
    assert seen.id_kind == IdKind.INT_OR_UUID


# Vectors ------------------------------------------------------------------------------------------------------------


def test_cosine_is_unit_length_also_after_reopening(tmp_path: Path) -> None:
    """Rule: local mode writes the unscaled vector to its file; we scale first, as a server does."""
    config, rows = (
        QdrantConfig(path=str(tmp_path / "q")),
        np.array([[5, 1, 2, 3], [0, 0, 0, 0], [1, 0, 0, 0]], np.float32),
    )
    expected = rows / np.array([[np.sqrt(39.0)], [1], [1]])
    with QdrantStore.connect(config) as store:
        schema = made(store, "c", vectors=(VectorField(name="", dimension=4, distance=Distance.COSINE),))
        store.upsert("c", PointBatch([1, 2, 3], {"": rows}, Payloads([{}, {}, {}])))
        np.testing.assert_allclose(store.fetch("c", [1, 2, 3]).vectors[""], expected, atol=1e-7)
    assert rows[0, 0] == 5, "the input is not changed"
    with QdrantStore.connect(config) as store:
        np.testing.assert_allclose(store.fetch("c", [1, 2, 3]).vectors[""], expected, atol=1e-7)
        again = store.inspect("c")
        assert again is not None
        assert again.vectors == schema.vectors


def test_zero_vectors_under_cosine_stay_zero(qdrant: Store, name: str) -> None:
    made(qdrant, name, vectors=(VectorField(name="", dimension=4, distance=Distance.COSINE),))
    qdrant.upsert(name, PointBatch([1], {"": np.zeros((1, 4), np.float32)}, Payloads([{}])))
    found = qdrant.fetch(name, [1])
    assert not found.vectors[""].any()
    assert not found.missing


def mixed(name: str) -> tuple[CollectionSchema, PointBatch]:
    """An unnamed vector, a named one and a sparse one; points that lack some or all of them."""
    schema = schema_of(
        name,
        vectors=(
            VectorField(name="", dimension=4, distance=Distance.DOT),
            VectorField(name="titre é", dimension=3, distance=Distance.EUCLID),
        ),
        sparse=(SparseField(name="words"),),
    )
    batch = points(schema, ids=[3, UUIDS[0], 1, 0, 7, 2**64 - 1])
    batch.missing = {
        "": np.array([False, True, False, True, False, False]),
        "titre é": np.array([False, False, True, True, True, False]),
    }
    for key, mask in batch.missing.items():
        batch.vectors[key][mask] = 0
    top = SparseVector(np.array([0, 7, 2**32 - 1]), np.array([0.0, -1.5, 1e-30], np.float32))  # an explicit zero
    batch.sparse["words"] = [top, None, None, None, top, None]
    batch.payloads = Payloads(
        [worlds.PAYLOAD_ZOO[key] for key in ("empty", "list_mixed", "object", "key_dot", "key_quotes", "many")]
    )
    return schema, batch


def test_every_kind_of_vector_and_none_at_all(qdrant: Store, name: str) -> None:
    schema, batch = mixed(name)
    assert qdrant.problems(schema, batch) == []
    schema, _ = qdrant.fit(schema)
    qdrant.create(schema)
    qdrant.upsert(name, batch)
    assert same(qdrant, schema, batch, qdrant.fetch(name, batch.ids)) == []
    assert same(qdrant, schema, batch, concat(qdrant.scan(name, KeyRange(), None, 2), schema)) == []
    seen = qdrant.inspect(name)
    assert seen is not None
    assert (seen.vectors[0].name, seen.vectors[1].name, seen.sparse[0].name) == ("", "titre é", "words")


def test_positions_and_numbers_out_of_range(qdrant: Store, name: str) -> None:
    schema = schema_of(
        name,
        vectors=(
            VectorField(name="half", dimension=4, distance=Distance.DOT, datatype=Datatype.FLOAT16),
            VectorField(name="byte", dimension=4, distance=Distance.DOT, datatype=Datatype.UINT8),
        ),
        sparse=(SparseField(name="words"),),
    )
    batch = points(schema, ids=[1, 2, 3])
    batch.vectors["byte"][:] = 255
    assert qdrant.problems(schema, batch) == []
    batch.vectors["half"][1, 2] = 65_505
    batch.vectors["byte"][2, 0] = -1
    batch.sparse["words"][0] = SparseVector(np.array([2**32]), np.ones(1, np.float32))
    found = {(item.code, item.field, item.ids) for item in qdrant.problems(schema, batch)}
    assert found == {(BAD_VECTOR, f"vector {key}", (row,)) for row, key in ((1, "words"), (2, "half"), (3, "byte"))}


def test_multivectors_are_refused(qdrant: Store, name: str) -> None:
    from qdrant_client import models

    many = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    params = models.VectorParams(size=4, distance=models.Distance.DOT, multivector_config=many)
    assert isinstance(qdrant, QdrantStore)
    qdrant._client.create_collection(name, {"colbert": params})
    for call in (qdrant.inspect, lambda name: list(qdrant.scan(name, KeyRange()))):
        with pytest.raises(Permanent, match="colbert"):
            call(name)


def test_shard_keys_are_partitions(server_config: QdrantConfig, name: str) -> None:
    """Rule: every shard key is read by itself, so that one id under two of them is two points. Texts and integers."""
    from qdrant_client import models

    dot = models.VectorParams(size=2, distance=models.Distance.DOT)
    for prefer_grpc in (True, False):
        with QdrantStore.connect(server_config.model_copy(update={"prefer_grpc": prefer_grpc})) as store:
            assert isinstance(store, QdrantStore)
            client = store._client
            if client.http.distributed_api.cluster_status().result.status != "enabled":
                pytest.skip("the server is not distributed")
            try:
                client.create_collection(name, dot, sharding_method=models.ShardingMethod.CUSTOM)
                for start, key in enumerate(("rome", "paris", 7)):
                    client.create_shard_key(name, key)
                    found = [
                        models.PointStruct(id=n, vector=[n, 1.0], payload={"key": str(key)})
                        for n in range(start, start + 50)
                    ]
                    client.upsert(name, found, shard_key_selector=key, wait=True)
                seen = store.inspect(name)
                assert seen is not None
                assert seen.partitions == ("7", "paris", "rome")
                ranges = store.cut(name, 3)
                assert len(ranges) == 9
                for keys in ranges:
                    for batch in store.scan(name, keys, None, 7):
                        assert batch.partitions == [payload["key"] for payload in batch.payloads.dicts]
                        assert set(batch.partitions) == {keys.partition}
                assert (
                    sum(len(batch) for keys in ranges for batch in store.scan(name, keys)) == store.count(name) == 150
                )
                assert store.fetch(name, [0, 51]).partitions == ["rome", "7"]
            finally:
                store.drop(name)


# Payloads and the wire ----------------------------------------------------------------------------------------------


def test_oversized_numbers_become_what_was_announced(qdrant: Store, name: str) -> None:
    """Rule: what VL103 says happens is what happens once it was accepted."""
    schema = made(qdrant, name)
    payloads = [
        {"n": [2**63, -(2**63) - 1]},
        {"n": {"a": float("nan")}},
        {"n": float("inf")},
        {"n": 10**400},
        {"n": 2**63 - 1},
    ]
    batch = points(schema, ids=[1, 2, 3, 4, 5], payloads=payloads)
    assert [(item.code, item.ids) for item in qdrant.problems(schema, batch)] == [(PAYLOAD_FIELD, (1, 2, 3, 4))]
    qdrant.upsert(name, batch)
    expected = [{"n": [float(2**63), -float(2**63)]}, {"n": {"a": None}}, {"n": None}, {"n": None}, {"n": 2**63 - 1}]
    batch.payloads = Payloads(expected)
    assert same(qdrant, schema, batch, qdrant.fetch(name, batch.ids)) == []


def test_floats_are_exact_or_told(qdrant: Store, name: str) -> None:
    """Rule: a 64-bit float comes back bit for bit, or `problems` says that a server rounds its last digit."""
    numbers = np.random.default_rng(5).integers(0, 2**63, 2000, np.uint64).view(np.float64)
    values = [
        item for item in [*numbers.tolist(), *np.random.default_rng(6).random(2000).tolist()] if np.isfinite(item)
    ]
    schema = made(qdrant, name)
    singles = points(schema, ids=list(range(len(values))), payloads=[{"f": value} for value in values])
    kept = [value for row, value in enumerate(values) if not qdrant.problems(schema, singles.take([row]))]
    assert len(kept) > len(values) / 2
    batch = points(schema, ids=list(range(20)), payloads=[{"f": kept[n::20]} for n in range(20)])
    qdrant.upsert(name, batch)
    assert same(qdrant, schema, batch, qdrant.fetch(name, batch.ids)) == []


def test_a_server_rounds_some_floats() -> None:
    """Rule: short floats are safe; of long ones some change in the last digit on a server, never in local mode."""
    remote = QdrantStore(Connection(SimpleNamespace(), QdrantConfig(url="http://nowhere")))
    schema = schema_of("c")
    safe = [
        0.1,
        -0.25,
        1.0,
        -0.0,
        1e21,
        5e-324,
        3.141592653589793,
        123456789.125,
        1e16,
        2.0**53,
        1e-7,
        1.7976931348623157e308,
    ]
    assert remote.problems(schema, points(schema, ids=[1], payloads=[{"f": safe}])) == []
    values = [value for value in np.random.default_rng(1).random(500).tolist() if is_rounded([value])]
    assert 10 < len(values) < 250
    for value in [*values, -values[0]]:
        assert abs(stored(repr(value)) / abs(value) - 1) < 1e-15
    found = remote.problems(schema, points(schema, ids=[1, 2], payloads=[{"a": {"f": [values[0]]}}, {"f": 0.5}]))
    assert [(item.code, item.ids, item.acceptable) for item in found] == [(PAYLOAD_FIELD, (1,), True)]


def through_the_wire(batch: PointBatch, layout: Any, old: bool = False) -> PointBatch:
    """What a server that stores messages as they are would answer to an upsert of `batch`."""
    sent: list[Any] = []

    def upsert(request: Any, timeout: float) -> Any:
        sent.append(grpc.UpsertPoints.FromString(request.SerializeToString()))
        return grpc.PointsOperationResponse(result=grpc.UpdateResult(status=grpc.UpdateStatus.Completed))

    client = SimpleNamespace(grpc_points=SimpleNamespace(Upsert=upsert))
    QdrantStore(Connection(client, QdrantConfig(url="http://nowhere"))).upsert("c", batch)
    assert sent[0].wait
    answer = grpc.ScrollResponse()
    for point in sent[0].points:
        found = answer.result.add(id=point.id, payload=dict(point.payload))
        vectors = grpc.VectorsOutput.FromString(point.vectors.SerializeToString())
        if old:
            for item in [vectors.vector] if vectors.HasField("vector") else vectors.vectors.vectors.values():
                numbers = list(item.dense.data or item.sparse.values)
                indices = grpc.SparseIndices(data=item.sparse.indices) if item.HasField("sparse") else None
                item.CopyFrom(grpc.VectorOutput(data=numbers, indices=indices))
        found.vectors.CopyFrom(vectors)
    return from_messages(layout, grpc.ScrollResponse.FromString(answer.SerializeToString()).result)


@pytest.mark.parametrize("old", [False, True])
def test_messages_hold_every_vector_and_payload(old: bool) -> None:
    """Rule: what goes into gRPC messages comes out of them, in the format of new servers and of older ones."""
    with QdrantStore.connect(QdrantConfig(path=":memory:")) as store:
        schema, batch = mixed("c")
        layout = Layout({item.name: item.dimension for item in schema.vectors}, ["words"], False)
        assert same(store, schema, batch, through_the_wire(batch, layout, old)) == []
        plain = schema_of("c")
        zoo, _ = worlds.without_refused(store, plain, points(plain, payloads=list(worlds.PAYLOAD_ZOO.values())))
        assert len(zoo) == len(worlds.PAYLOAD_ZOO) - 2, "only integers beyond 64 bits are refused"
        assert same(store, plain, zoo, through_the_wire(zoo, Layout({"": 4}, [], False), old)) == []


def test_a_write_that_is_only_acknowledged_is_tried_again() -> None:
    """Rule: "acknowledged" is not "completed": the points might not be counted yet."""
    answer = grpc.PointsOperationResponse(result=grpc.UpdateResult(status=grpc.UpdateStatus.WaitTimeout))
    client = SimpleNamespace(grpc_points=SimpleNamespace(Upsert=lambda request, timeout: answer))
    with pytest.raises(Transient):
        QdrantStore(Connection(client, QdrantConfig(url="http://nowhere"))).upsert("c", points(schema_of("c"), ids=[1]))


# Errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        ("UNAVAILABLE", "failed to connect", Transient),
        ("DEADLINE_EXCEEDED", "", Transient),
        ("INTERNAL", "Service internal error", Transient),
        ("RESOURCE_EXHAUSTED", "message larger than max", TooLarge),
        ("OUT_OF_RANGE", "decoded message length too large", TooLarge),
        ("INVALID_ARGUMENT", "Upsert limit exceeded 10 > 5", TooLarge),
        ("INVALID_ARGUMENT", "Wrong input: Vector dimension error", Permanent),
        ("UNAUTHENTICATED", "Invalid api-key", Permanent),
        ("PERMISSION_DENIED", "Write access required", Permanent),
        ("NOT_FOUND", "Collection `x` doesn't exist!", NotFound),
        ("ALREADY_EXISTS", "Collection `x` already exists!", Permanent),
    ],
)
def test_grpc_errors_are_ours(code: str, text: str, kind: type[VecrunError]) -> None:
    from grpc import RpcError, StatusCode

    class Failed(RpcError):
        def code(self) -> StatusCode:
            return StatusCode[code]

        def details(self) -> str:
            return text

    with pytest.raises(VecrunError) as caught, translated("http://somewhere:6333", "scan x"):
        raise Failed
    assert type(caught.value) is kind
    assert "http://somewhere:6333" in caught.value.detail


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, b"Invalid api-key", Permanent),
        (403, b"forbidden", Permanent),
        (400, b"Payload error: JSON payload (33554433 bytes) is larger than allowed", TooLarge),
        (413, b"", TooLarge),
        (429, b"Rate limiting exceeded", TooLarge),
        (500, b"", Transient),
        (503, b"", Transient),
        (404, b"Collection `x` doesn't exist!", NotFound),
        (400, b"Format error", Permanent),
    ],
)
def test_rest_errors_are_ours(status: int, body: bytes, kind: type[VecrunError]) -> None:
    from httpx import Headers
    from qdrant_client.http.exceptions import UnexpectedResponse

    with pytest.raises(VecrunError) as caught, translated("p", "scan x"):
        raise UnexpectedResponse(status, "reason", body, Headers())
    assert type(caught.value) is kind


def test_faults_of_vecrun_are_not_hidden() -> None:
    with pytest.raises(TypeError), translated("p", "scan x"):
        raise TypeError("a fault")


def test_an_address_is_shown_without_user_and_key() -> None:
    config = QdrantConfig(url="https://user:hunter2pw@host:6333", api_key="hunter2key")
    store = QdrantStore(Connection(SimpleNamespace(close=lambda: None), config))
    assert repr(store) == "QdrantStore(https://host:6333)"
    assert "hunter2key" not in repr(config)


def test_one_place_must_be_given() -> None:
    for values in ({}, {"url": "http://x", "path": "y"}, {"url": "localhost:6333"}):
        with pytest.raises(ValueError, match=r"url|pattern"):
            QdrantConfig(**values)


# Local mode ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_for_one_at_a_time(tmp_path: Path) -> None:
    """Rule: the second one is told so; after `close` (twice is fine) the next can open it and sees everything."""
    config = QdrantConfig(path=str(tmp_path / "q"))
    store = QdrantStore.connect(config)
    assert store.capabilities().exclusive
    schema, batch = mixed("c")
    store.create(schema)
    store.upsert("c", batch)
    store.set_alias("live", "c")
    with pytest.raises(Permanent, match="in use") as caught:
        QdrantStore.connect(config)
    assert caught.value.hint
    before = store.inspect("c")
    size = store.size_bytes("c")
    assert size is not None
    assert size > 0
    store.close()
    store.close()
    with QdrantStore.connect(config) as again:
        assert again.inspect("c") == before
        assert again.aliases() == {"live": "c"}
        assert same(again, schema, batch, concat(again.scan("c", KeyRange()), schema)) == []


def test_memory_is_not_durable() -> None:
    with QdrantStore.connect(QdrantConfig(path=":memory:")) as store:
        caps = store.capabilities()
        assert (caps.durable, caps.parallel, caps.partition_key) == (False, False, False)
        assert store.size_bytes("c") is None


def test_local_mode_in_threads(tmp_path: Path) -> None:
    """Rule: local mode is no thread's friend; every call takes its turn."""
    with QdrantStore.connect(QdrantConfig(path=str(tmp_path / "q"))) as store:
        schema = made(store, "c")
        failed: list[BaseException] = []

        def write(part: int) -> None:
            try:
                for start in range(0, 40, 10):
                    store.upsert("c", points(schema, ids=list(range(part * 100 + start, part * 100 + start + 10))))
                    list(store.scan("c", KeyRange(), None, 7))
            except BaseException as exc:
                failed.append(exc)

        threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert store.count("c") == 160


# Schemas ------------------------------------------------------------------------------------------------------------


def test_fit_tells_what_is_different() -> None:
    with QdrantStore.connect(QdrantConfig(path=":memory:")) as local:
        remote = QdrantStore(Connection(SimpleNamespace(), QdrantConfig(url="http://nowhere")))
        wish = schema_of(
            "c",
            vectors=(
                VectorField(name="a", dimension=4, distance=Distance.DOT, index=VectorIndex(type="ivf_flat")),
                VectorField(name="b", dimension=4, distance=Distance.DOT, index=VectorIndex(params={"lists": 5})),
                VectorField(name="c", dimension=4, distance=Distance.DOT, index=VectorIndex(type="flat")),
                VectorField(name="d", dimension=4, distance=Distance.DOT),
            ),
            payload=(
                PayloadField(name="plain", type=PayloadType.JSON),
                PayloadField(name="object", type=PayloadType.JSON, indexed=True),
                PayloadField(name="key", type=PayloadType.KEYWORD, indexed=True, array=True, max_length=9),
            ),
            partitions=("p", "q"),
            partition_key="tenant",
            settings={"shards": 3, "qdrant.shard_number": 2},
        )
        schema, found = remote.fit(wish)
        assert sorted((item.code, item.field) for item in found) == sorted(
            [(INDEX, "vector a"), (INDEX, "vector b"), (INDEX, "object"), (PARTITIONS, "partitions")]
        )
        default = VectorIndex(type="hnsw", m=16, ef_construction=100)
        assert [item.index for item in schema.vectors] == [default, default, VectorIndex(type="flat"), default]
        assert [(item.name, item.array, item.max_length) for item in schema.payload] == [
            ("key", False, None),
            ("tenant", False, None),
        ]
        assert (schema.partition_key, schema.partitions) == ("tenant", None)
        assert schema.settings == {"qdrant.shard_number": 2}
        assert remote.fit(schema) == (schema, [])
        assert INDEX in {item.code for item in local.fit(schema)[1]}
        for name in ("a/b", "", "..", "x" * 256):
            assert {item.code for item in remote.fit(schema_of(name))[1]} == {REFUSED}


def test_settings_of_a_server_are_carried(server_config: QdrantConfig, prefix: str) -> None:
    """Rule: create + finish of what `inspect` saw gives a collection that looks the same (indexes, quantization …)."""
    one, two = f"{prefix}One", f"{prefix}Two"
    fields = [
        PayloadField(name=item.value, type=item, indexed=True) for item in PayloadType if item != PayloadType.JSON
    ]
    fields.append(PayloadField(name="team", type=PayloadType.KEYWORD, indexed=True))
    with conftest.watch("qdrant-server", QdrantStore.connect(server_config)) as store:
        try:
            index = VectorIndex(
                m=24,
                ef_construction=60,
                params={"on_disk": True, "hnsw.payload_m": 8, "quantization": '{"scalar": {"type": "int8"}}'},
            )
            wish = schema_of(
                one,
                vectors=(
                    VectorField(name="a", dimension=4, distance=Distance.DOT, index=index),
                    VectorField(name="b", dimension=4, distance=Distance.COSINE, index=VectorIndex(type="flat")),
                    VectorField(name="c", dimension=4, distance=Distance.EUCLID, datatype=Datatype.FLOAT16),
                ),
                sparse=(SparseField(name="words"),),
                payload=tuple(fields),
                partition_key="team",
                settings={
                    "qdrant.shard_number": 2,
                    "qdrant.metadata": '{"owner": "search"}',
                    "qdrant.sparse.words": '{"modifier": "idf"}',
                    "qdrant.index.text": '{"lowercase": true, "tokenizer": "word"}',
                    "qdrant.optimizers": '{"indexing_threshold": 1000}',
                },
            )
            schema, _ = store.fit(wish)
            store.create(schema)
            unfinished = store.inspect(one)
            assert unfinished is not None
            assert unfinished.vectors[0].index is not None
            assert unfinished.vectors[0].index.type == "flat", "no graph while the points are loaded"
            store.upsert(one, points(schema, 50))
            for _ in range(2):
                store.finish(schema)
            seen = store.inspect(one)
            assert seen is not None
            assert seen.model_copy(update={"settings": schema.settings}) == schema
            for key in ("qdrant.shard_number", "qdrant.metadata", "qdrant.sparse.words", "qdrant.index.text"):
                assert seen.settings[key] == schema.settings[key]
            copied, found = store.fit(seen.model_copy(update={"name": two}))
            assert [item for item in found if item.code == INDEX] == []
            store.create(copied)
            store.finish(copied)
            assert store.inspect(two) == seen.model_copy(update={"name": two})
        finally:
            store.drop(one)
            store.drop(two)


def test_a_server_tells_its_version_and_rights(server_config: QdrantConfig) -> None:
    with QdrantStore.connect(server_config) as store:
        health = store.health()
        assert health.version[0].isdigit()
        assert health.rights == ("read", "write")


def test_a_request_beyond_the_servers_limit(server_config: QdrantConfig, prefix: str) -> None:
    """Rule: a batch over the server's message limit is TooLarge (or simply taken), never Permanent."""
    with QdrantStore.connect(server_config.model_copy(update={"prefer_grpc": False})) as store:
        schema = made(store, f"{prefix}Big")
        try:
            batch = points(schema, ids=list(range(40)), payloads=[{"t": "x" * 1_000_000} for _ in range(40)])
            with pytest.raises(TooLarge):
                store.upsert(schema.name, batch)
            store.upsert(schema.name, batch.slice(0, 10))
            assert store.count(schema.name) == 10
        except StoreError:
            store.drop(schema.name)
            raise
        store.drop(schema.name)
