"""What is special to pgvector: tables of any shape, LangChain's, NULLs, views as aliases, repeats (A1, A12, D6)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from runner.errors import Permanent, Transient, VecrunError
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
from runner.store import BAD_ID, BAD_VECTOR, INDEX, PAYLOAD_FIELD, PRECISION, REFUSED
from runner.stores.pgvector import PgvectorConfig, PgvectorStore, TableMapping
from tests.conftest import watch

psycopg = pytest.importorskip("psycopg")


@pytest.fixture
def database(pg_url: str) -> Iterator[str]:
    """The URL of an empty database of its own."""
    name = f"pgvector_{uuid.uuid4().hex[:10]}"
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}")
        yield pg_url.replace("/postgres?", f"/{name}?")
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def sql(database: str) -> Iterator[Any]:
    """Runs statements in that database and gives their rows."""
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("CREATE EXTENSION vector")

        def run(query: str, *values: Any) -> list[Any]:
            cursor = conn.execute(query, values or None)
            return cursor.fetchall() if cursor.description else []

        yield run


@pytest.fixture
def connect(database: str) -> Iterator[Any]:
    opened: list[PgvectorStore] = []

    def start(**settings: Any) -> PgvectorStore:
        store = PgvectorStore.connect(PgvectorConfig(type="pgvector", url=database, **settings))
        watch("pgvector", store)
        opened.append(store)
        return store

    yield start
    for store in opened:
        store.close()


def schema_of(name: str = "items", **changes: Any) -> CollectionSchema:
    wish = CollectionSchema(
        name=name,
        id_kind=IdKind.INT,
        vectors=(VectorField(name="embedding", dimension=3, distance=Distance.COSINE),),
    )
    return wish.model_copy(update=changes)


def batch_of(ids: list[PointId], payloads: list[Any] | None = None, start: float = 0.0) -> PointBatch:
    numbers = np.arange(len(ids) * 3, dtype=np.float32).reshape(-1, 3) + np.float32(start)
    return PointBatch(ids, {"embedding": numbers}, Payloads(payloads or [{"n": row} for row in range(len(ids))]))


def everything(store: PgvectorStore, name: str = "items", size: int = 2) -> dict[PointId, tuple[list[float], Any]]:
    found: dict[PointId, tuple[list[float], Any]] = {}
    for batch in store.scan(name, KeyRange(), None, size):
        vectors = next(iter(batch.vectors.values()))
        for row, point_id in enumerate(batch.ids):
            assert point_id not in found
            found[point_id] = (vectors[row].tolist(), batch.payloads[row])
    return found


# Tables of any shape


def test_a_table_of_the_user_becomes_payload_keys(sql: Any, connect: Any) -> None:
    """Every column is a key with the value PostgreSQL shows as JSON; NULL is null."""
    sql(
        'CREATE TABLE items (pk serial PRIMARY KEY, v vector(3), "the title" text, score float8, price numeric,'
        " ok bool, made timestamptz, day date, tags text[], extra jsonb, ref uuid, words tsvector GENERATED ALWAYS"
        " AS (to_tsvector('simple', \"the title\")) STORED)"
    )
    ref = "0f0e0d0c-0b0a-0908-0706-050403020100"
    sql(
        'INSERT INTO items (v, "the title", score, price, ok, made, day, tags, extra, ref) VALUES (%s::vector, %s, 2.0,'
        " 1.50, true, '2024-01-02 03:04:05+02', '2024-01-02', '{a,NULL}', %s::jsonb, %s::uuid)",
        "[1,2,3]", 'a "b" \\ %', '{"x": [1, null]}', ref,
    )  # fmt: skip
    sql("INSERT INTO items (v) VALUES (NULL)")
    store = connect()
    assert store.collections() == ["items"]
    schema = store.inspect("items")
    assert schema.id_kind == IdKind.INT
    assert schema.settings["distance_assumed"] is True
    assert schema.settings["numbers_read_as_float"] == "price"
    types = {item.name: (item.type, item.array) for item in schema.payload}
    assert types["score"] == (PayloadType.FLOAT, False)
    assert types["tags"] == (PayloadType.TEXT, True)
    assert types["made"] == (PayloadType.DATETIME, False)
    (batch,) = store.scan("items", KeyRange())
    assert batch.payloads.dicts == [
        {
            "the title": 'a "b" \\ %',
            "score": 2.0,
            "price": 1.5,
            "ok": True,
            "made": "2024-01-02T01:04:05+00:00",
            "day": "2024-01-02",
            "tags": ["a", None],
            "extra": {"x": [1, None]},
            "ref": ref,
        },
        dict.fromkeys(("the title", "score", "price", "ok", "made", "day", "tags", "extra", "ref")),
    ]
    assert isinstance(batch.payloads.dicts[0]["score"], float)
    assert batch.missing["v"].tolist() == [False, True]
    assert batch.vectors["v"].tolist() == [[1, 2, 3], [0, 0, 0]]
    # and what was read can be written back, also under other ids
    assert store.problems(schema, batch) == []
    copy = PointBatch([8, 9], batch.vectors, Payloads(json=batch.payloads.json), missing=batch.missing)
    for _ in range(2):
        store.upsert("items", copy)
    assert store.count("items") == 4
    again = store.fetch("items", [9, 8])
    assert {point_id: again.payloads[row] for row, point_id in enumerate(again.ids)} == dict(
        zip([8, 9], batch.payloads.dicts, strict=True)
    )


def test_columns_and_a_payload_column_are_merged(sql: Any, connect: Any) -> None:
    sql("CREATE TABLE items (id text PRIMARY KEY, v vector(3), lang text, payload jsonb)")
    sql("""INSERT INTO items VALUES ('a', '[1,2,3]', 'de', '{"x": 1.0}'), ('b', '[1,2,3]', NULL, NULL)""")
    store = connect()
    assert [item[1] for item in everything(store).values()] == [{"x": 1.0, "lang": "de"}, {"lang": None}]
    schema = store.inspect("items")
    batch = PointBatch(
        ["c", "a"], {"v": np.ones((2, 3), np.float32)}, Payloads([{"lang": "fr", "y": {"z": []}}, {"lang": None}])
    )
    assert store.problems(schema, batch) == []
    store.upsert("items", batch)
    assert everything(store)["c"][1] == {"lang": "fr", "y": {"z": []}}
    assert sql("SELECT payload FROM items WHERE id = 'c'") == [({"y": {"z": []}},)]
    missing = PointBatch(["d"], {"v": np.ones((1, 3), np.float32)}, Payloads([{"y": 1}]))
    (problem,) = store.problems(schema, missing)
    assert (problem.code, problem.ids) == (PAYLOAD_FIELD, ("d",))
    sql("""UPDATE items SET payload = '{"lang": "en"}' WHERE id = 'b'""")
    with pytest.raises(Permanent, match="same key") as caught:
        everything(store)
    assert "b" in caught.value.detail


def test_a_mapping_names_the_columns(sql: Any, connect: Any) -> None:
    sql(
        'CREATE TABLE "Odd ""%s" (a int, "no%" varchar(40) UNIQUE, "v 1" halfvec(3), v2 vector, body json, n smallint,'
        " data bytea, rest text)"
    )
    sql("INSERT INTO \"Odd \"\"%s\" VALUES (1, 'x', '[1,2,3]', '[5,6]', '{\"k\":  1e300}', 7, '\\x00', NULL)")
    name = 'Odd "%s'
    with pytest.raises(Permanent, match="id column is not known") as caught:
        connect().inspect(name)
    assert "id_column" in caught.value.hint
    with pytest.raises(Permanent, match="bytea") as caught:
        connect(tables={name: TableMapping(id_column="no%")}).inspect(name)
    mapping = TableMapping(
        id_column="no%", vectors={"first": "v 1", "second": "v2"}, payload_column="body", fields=["n"],
        distance=Distance.EUCLID,
    )  # fmt: skip
    store = connect(tables={name: mapping})
    schema = store.inspect(name)
    assert schema.id_kind == IdKind.STRING
    assert [(item.name, item.dimension, item.datatype, item.distance) for item in schema.vectors] == [
        ("first", 3, Datatype.FLOAT16, Distance.EUCLID),
        ("second", 2, Datatype.FLOAT32, Distance.EUCLID),
    ]
    assert schema.settings["columns_left_out"] == "a, data, rest"
    (batch,) = store.scan(name, KeyRange())
    assert batch.payloads.dicts == [{"k": 10**300, "n": 7}]
    store.upsert(name, PointBatch(["y %s'"], batch.vectors, Payloads([{"k": 1e300, "n": None}])))
    assert store.fetch(name, ["y %s'"]).payloads.dicts == [{"k": 1e300, "n": None}]
    assert store.cut(name, 2)[0].hi in ("x", "y %s'")
    store.delete(name, ["y %s'"])
    assert store.count(name) == 1


def test_columns_that_would_change_a_value_are_told(sql: Any, connect: Any) -> None:
    sql("CREATE TABLE items (id bigint PRIMARY KEY, embedding vector(3), n int, at timestamptz)")
    store = connect()
    schema = store.inspect("items")
    good = {"n": 1, "at": "2024-01-01T00:00:00+00:00"}
    cases = [good, good | {"at": "2024-01-01T00:00:00Z"}, good | {"more": 1}, {"n": 1}, good | {"n": "2"}]
    (problem,) = store.problems(schema, batch_of([0, 1, 2, 3, 4], cases))
    assert (problem.code, problem.ids) == (PAYLOAD_FIELD, (1, 2, 3, 4))
    assert problem.message.endswith("exactly: at")
    (problem,) = store.problems(schema, batch_of([0], [{"n": 1, "more": 1}]))
    assert problem.message.endswith("at (missing, and read back as null), more (no such column)")
    (problem,) = store.problems(schema, batch_of([0, 1], [good, good | {"n": "two"}]))
    assert (problem.code, problem.ids) == (PAYLOAD_FIELD, (1,))
    assert "integer" in problem.message
    assert everything(store) == {}


def test_small_integer_ids(sql: Any, connect: Any) -> None:
    sql("CREATE TABLE items (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, embedding vector(3), payload jsonb)")
    store = connect()
    schema = store.inspect("items")
    store.upsert("items", batch_of([-5, 2**31 - 1]))
    assert list(everything(store)) == [-5, 2**31 - 1]
    (problem,) = store.problems(schema, batch_of([2**31]))
    assert (problem.code, problem.ids) == (BAD_ID, (2**31,))
    assert store.fetch("items", [2**31, 2**70, -5]).ids == [-5]


def test_payloads_that_are_no_objects(sql: Any, connect: Any) -> None:
    sql("CREATE TABLE items (id bigint PRIMARY KEY, v vector(3), payload jsonb)")
    sql("INSERT INTO items VALUES (1, '[1,2,3]', NULL)")
    store = connect()
    assert everything(store)[1][1] == {}
    sql("INSERT INTO items VALUES (2, '[1,2,3]', '[1]')")
    with pytest.raises(Permanent, match="no JSON object"):
        everything(store)


def test_vectors_of_mixed_dimensions(sql: Any, connect: Any) -> None:
    sql("CREATE TABLE items (id bigint PRIMARY KEY, v vector)")
    with pytest.raises(Permanent, match="dimension is not known"):
        connect().inspect("items")
    sql("INSERT INTO items VALUES (1, '[1,2]'), (2, '[1,2,3]')")
    with pytest.raises(Permanent, match="different dimensions") as caught:
        everything(connect())
    assert "2" in caught.value.detail


def test_metrics_and_indexes_of_others(sql: Any, connect: Any) -> None:
    """The operator class tells the metric, also of an index on a cast."""
    sql("CREATE TABLE one (id bigint PRIMARY KEY, v vector(3))")
    sql("CREATE INDEX ON one USING hnsw (v vector_ip_ops) WITH (m = 8)")
    sql("CREATE TABLE two (id uuid PRIMARY KEY, v vector(3))")
    sql("CREATE INDEX ON two USING hnsw ((v::halfvec(3)) halfvec_l1_ops)")
    sql("CREATE TABLE three (id bigint PRIMARY KEY, v vector(3))")
    sql("INSERT INTO three VALUES (1, '[1,2,3]')")
    sql("CREATE INDEX ON three USING ivfflat (v vector_l2_ops) WITH (lists = 1)")
    store = connect()
    found = {name: store.inspect(name).vectors[0] for name in ("one", "two", "three")}
    assert (found["one"].distance, found["one"].index) == (Distance.DOT, VectorIndex(m=8, ef_construction=64))
    assert found["two"].distance == Distance.MANHATTAN
    assert found["three"].distance == Distance.EUCLID
    assert found["three"].index == VectorIndex(type="ivfflat", params={"lists": 1})
    before = sql("SELECT indexname FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1")
    store.finish(store.inspect("one"))
    assert sql("SELECT indexname FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1") == before


# Tables of vecrun


def test_an_upsert_that_is_repeated_meets_conflicts(sql: Any, connect: Any) -> None:
    """Straight COPY fails on the first id that is there; the batch is then merged, and nothing is lost."""
    store = connect()
    store.create(schema_of())
    store.upsert("items", batch_of([1, 2, 3]))
    store.upsert("items", batch_of([3, 4, 5], start=50))
    assert "items" in store._merging
    store.upsert("items", batch_of([5, 6, 6], start=90))
    found = everything(store)
    assert list(found) == [1, 2, 3, 4, 5, 6]
    assert found[2] == ([3, 4, 5], {"n": 1})
    assert found[3] == ([50, 51, 52], {"n": 0})
    assert found[5] == ([90, 91, 92], {"n": 0})
    assert found[6] == ([96, 97, 98], {"n": 2})


def test_numbers_keep_their_kind(connect: Any) -> None:
    """jsonb writes 1e300 as an integer; it is stored with a fraction so that it comes back as a float."""
    store = connect()
    store.create(schema_of())
    payload = {
        "a": [1e300, -1.5e22, 1e-300, 1.0, 5e-324, 1.7976931348623157e308],
        "b": '1e5, :1e5 \\" [1E9',
        "1e5": 2**70,
    }
    store.upsert("items", batch_of([1], [payload]))
    found = everything(store)[1][1]
    assert found == payload
    assert [type(item) for item in found["a"]] == [float] * 6
    raw = batch_of([2])
    raw.payloads = Payloads(json=[b'{"x":1E+2,"y":12e0,"z":-2.5e1}'])
    store.upsert("items", raw)
    assert store.fetch("items", [2]).payloads.json == [b'{"x": 100.0, "y": 12.0, "z": -25.0}']


def test_what_jsonb_cannot_hold(connect: Any) -> None:
    store = connect()
    schema, _ = store.fit(schema_of())
    payloads = [{"a": "x\0y"}, {"a": "\\u0000"}, {"a": -0.0}, {"a": "-0.0", "b": -0.5}, {"-0.0": 1}]
    found = store.problems(schema, batch_of([1, 2, 3, 4, 5], payloads))
    assert [(item.code, item.ids) for item in found] == [(PAYLOAD_FIELD, (1,)), (PAYLOAD_FIELD, (3,))]
    text, _ = store.fit(schema_of(id_kind=IdKind.STRING))
    (problem,) = store.problems(text, batch_of(["a", "b\0"]))
    assert (problem.code, problem.ids) == (BAD_ID, ("b\0",))


def test_fit_tells_the_limits(connect: Any) -> None:
    store = connect()

    def codes(dimension: int, **changes: Any) -> tuple[set[str], Any]:
        field = VectorField(
            name="embedding", dimension=dimension, distance=Distance.COSINE, **({"index": VectorIndex()} | changes)
        )
        schema, found = store.fit(schema_of(vectors=(field,)))
        return {item.code for item in found}, schema.vectors[0].index

    assert codes(2000) == (set(), VectorIndex(m=16, ef_construction=64))
    assert codes(2001) == ({INDEX}, None)
    assert codes(4000, datatype=Datatype.FLOAT16)[0] == {PRECISION}
    assert codes(3, index=VectorIndex(type="IVF_PQ")) == ({INDEX}, VectorIndex(m=16, ef_construction=64))
    assert codes(3, index=VectorIndex(m=64, ef_construction=32)) == ({INDEX}, VectorIndex(m=64, ef_construction=128))
    for name in ("payload", "x" * 64, ""):
        field = VectorField(name=name, dimension=3, distance=Distance.DOT)
        assert [item.code for item in store.fit(schema_of(vectors=(field,)))[1]] == [REFUSED]


def test_create_and_finish_are_read_back(sql: Any, connect: Any) -> None:
    """Names may be anything; indexes are built once and rebuilt when their settings change."""
    store = connect()
    wish = CollectionSchema(
        name='K"B %s',
        id_kind=IdKind.UUID,
        vectors=(
            VectorField(
                name="vec %", dimension=3, distance=Distance.DOT, datatype=Datatype.FLOAT16, index=VectorIndex(m=8)
            ),
        ),
        sparse=(SparseField(name="words"),),
        payload=(
            PayloadField(name="it's 100%", type=PayloadType.KEYWORD, indexed=True),
            PayloadField(name="text", type=PayloadType.TEXT, indexed=True),
            PayloadField(name="tags", type=PayloadType.KEYWORD, array=True, indexed=True),
            PayloadField(name="n", type=PayloadType.INTEGER),
        ),
    )
    schema, found = store.fit(wish)
    assert {item.code for item in found} == {PRECISION}
    store.create(schema)
    store.upsert(
        schema.name,
        PointBatch(
            [str(uuid.UUID(int=1))],
            {"vec %": np.ones((1, 3), np.float32)},
            Payloads([{"it's 100%": "a" * 5000, "text": "b" * 9000, "tags": ["x"]}]),
            sparse={"words": [SparseVector(np.array([0, 999_999_999]), np.array([1, -2], np.float32))]},
        ),
    )
    for _ in range(2):
        store.finish(schema)
        assert store.inspect(schema.name) == schema
    changed = schema.vectors[0].model_copy(update={"index": VectorIndex(m=9, ef_construction=40)})
    store.finish(schema.model_copy(update={"vectors": (changed,)}))
    assert store.inspect(schema.name).vectors == (changed,)
    assert sql("SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%%hnsw%%'") == [(1,)]
    assert store.size_bytes(schema.name) > 0


def test_sparse_positions_out_of_range(connect: Any) -> None:
    store = connect()
    schema, _ = store.fit(schema_of(sparse=(SparseField(name="s", dimension=10),)))
    batch = batch_of([1, 2, 3, 4])
    entries = [([0, 9], [1, 2]), ([10], [1]), ([1], [0]), ([], [])]
    batch.sparse["s"] = [SparseVector(np.array(i, np.int64), np.array(v, np.float32)) for i, v in entries]
    found = {item.code: item.ids for item in store.problems(schema, batch)}
    assert found == {BAD_VECTOR: (2,), PRECISION: (3,)}
    half, _ = store.fit(
        schema_of(
            vectors=(VectorField(name="embedding", dimension=3, distance=Distance.DOT, datatype=Datatype.FLOAT16),)
        )
    )
    assert [item.code for item in store.problems(half, batch_of([1], start=70_000))] == [BAD_VECTOR]


def test_another_schema_and_an_extension_elsewhere(sql: Any, connect: Any) -> None:
    sql('CREATE SCHEMA "Search"')
    sql("CREATE SCHEMA ext")
    sql("ALTER EXTENSION vector SET SCHEMA ext")
    store = connect(schema_name="Search")
    schema, _ = store.fit(schema_of(vectors=(schema_of().vectors[0].model_copy(update={"index": VectorIndex()}),)))
    store.create(schema)
    store.upsert("items", batch_of([1, 2]))
    store.upsert("items", batch_of([2, 3]))
    store.finish(schema)
    assert store.inspect("items") == schema
    assert list(everything(store)) == [1, 2, 3]
    assert connect().collections() == []
    assert "create" in store.health().rights
    assert connect(schema_name="nowhere").health().notes


def test_big_tables_are_cut_from_a_sample(sql: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.stores.pgvector.store._EXACT_CUT_ROWS", 2000)
    store = connect()
    store.create(schema_of())
    sql("INSERT INTO items SELECT n, '[1,2,3]' FROM generate_series(1, 20000) n")
    sql("ANALYZE items")
    ranges = store.cut("items", 4)
    assert len(ranges) == 4
    sizes = [sum(len(batch) for batch in store.scan("items", keys)) for keys in ranges]
    assert sum(sizes) == 20000
    assert min(sizes) > 500


# Aliases


def test_an_alias_is_a_view_that_readers_may_keep_reading(sql: Any, connect: Any) -> None:
    store = connect()
    store.create(schema_of("one"))
    store.create(schema_of("two", vectors=(VectorField(name="embedding", dimension=5, distance=Distance.DOT),)))
    store.upsert("one", batch_of([1]))
    store.set_alias("live", "one")
    assert sql("SELECT id FROM live") == [(1,)]
    role = f"reader_{uuid.uuid4().hex[:8]}"
    sql(f"CREATE ROLE {role}")
    sql(f"GRANT SELECT ON live TO {role}")
    store.set_alias("live", "two")  # another dimension: the view is made anew
    assert store.aliases() == {"live": "two"}
    assert sql("SELECT has_table_privilege(%s, 'live', 'SELECT')", role) == [(True,)]
    assert store.collections() == ["one", "two"]
    assert store.inspect("live") is None
    store.drop("two")
    assert store.aliases() == {}
    sql(f"DROP ROLE {role}")


def test_an_alias_never_replaces_what_is_not_ours(sql: Any, connect: Any) -> None:
    store = connect()
    store.create(schema_of("one"))
    sql("CREATE TABLE docs (id int)")
    sql("CREATE VIEW report AS SELECT id FROM one")
    for name in ("docs", "report", "one"):
        for target in ("one", None):
            with pytest.raises(Permanent, match="taken"):
                store.set_alias(name, target)
    assert store.aliases() == {}
    with pytest.raises(Permanent, match="depends"):
        store.drop("one")
    assert store.inspect("one") is not None


# LangChain

LANGCHAIN = """
CREATE TABLE langchain_pg_collection (uuid uuid PRIMARY KEY, name varchar UNIQUE, cmetadata json);
CREATE TABLE langchain_pg_embedding (
    {key}, collection_id uuid REFERENCES langchain_pg_collection (uuid) ON DELETE CASCADE,
    embedding vector, document varchar, cmetadata {kind});
INSERT INTO langchain_pg_collection VALUES ('00000000-0000-0000-0000-000000000001', 'kb', NULL),
    ('00000000-0000-0000-0000-000000000002', 'other', '{{"a": 1}}');
"""


def test_langchain_collections_are_read_and_written(sql: Any, connect: Any) -> None:
    sql(LANGCHAIN.format(key="id varchar PRIMARY KEY", kind="jsonb"))
    sql(
        """INSERT INTO langchain_pg_embedding VALUES
        ('a', '00000000-0000-0000-0000-000000000001', '[1,2,3]', 'text', '{"page": 1.0}'),
        ('b', '00000000-0000-0000-0000-000000000001', '[4,5,6]', NULL, NULL),
        ('z', '00000000-0000-0000-0000-000000000002', '[1,2]', 'other', '{}')"""
    )
    store = connect(layout="langchain")
    assert store.collections() == ["kb", "other"]
    assert not store.capabilities().aliases
    schema = store.inspect("kb")
    assert (schema.id_kind, schema.vectors[0].dimension) == (IdKind.STRING, 3)
    assert [item.name for item in schema.payload] == ["document", "cmetadata"]
    assert everything(store, "kb") == {
        "a": ([1, 2, 3], {"document": "text", "cmetadata": {"page": 1.0}}),
        "b": ([4, 5, 6], {"document": None, "cmetadata": None}),
    }
    assert store.count("other") == 1
    payload = {"document": "neu ü", "cmetadata": {"x": []}}
    batch = batch_of(["a", "c"], [payload, payload])
    assert store.problems(schema, batch) == []
    store.upsert("kb", batch)
    assert everything(store, "kb")["c"] == ([3, 4, 5], payload)
    (problem,) = store.problems(schema, batch_of(["d"], [payload | {"more": 1}]))
    assert (problem.code, problem.ids) == (PAYLOAD_FIELD, ("d",))
    with pytest.raises(Permanent, match="another collection"):
        store.upsert("kb", batch_of(["z"], [payload]))
    assert everything(store, "other") == {"z": ([1, 2], {"document": "other", "cmetadata": {}})}
    store.delete("kb", ["a", "z"])
    assert (store.count("kb"), store.count("other")) == (2, 1)
    store.drop("kb")
    assert store.collections() == ["other"]
    assert store.count("other") == 1
    assert store.inspect("other").settings["distance_assumed"]
    told = connect(layout="langchain", tables={"other": TableMapping(distance=Distance.EUCLID)}).inspect("other")
    assert (told.vectors[0].distance, "distance_assumed" in told.settings) == (Distance.EUCLID, False)


def test_a_database_that_is_not_there(database: str) -> None:
    absent = database.replace("/pgvector_", "/nowhere_")
    with pytest.raises(Permanent, match="The database does not exist"):
        PgvectorStore.connect(PgvectorConfig(url=absent))


def test_older_langchain_tables(sql: Any, connect: Any) -> None:
    sql(LANGCHAIN.format(key="uuid uuid PRIMARY KEY, custom_id varchar", kind="json"))
    store = connect(layout="langchain")
    point = str(uuid.UUID(int=7))
    sql(
        "INSERT INTO langchain_pg_embedding VALUES (%s::uuid, 'c1', '00000000-0000-0000-0000-000000000001', '[1,2,3]',"
        " 'text', '{\"a\": 1}')",
        point,
    )
    assert store.capabilities().id_kinds == {IdKind.UUID}
    assert store.inspect("kb").id_kind == IdKind.UUID
    expected = {"document": "text", "cmetadata": {"a": 1}, "custom_id": "c1"}
    assert everything(store, "kb") == {point: ([1, 2, 3], expected)}
    other = str(uuid.UUID(int=8))
    store.upsert("kb", batch_of([other], [expected]))
    assert everything(store, "kb")[other][1] == expected


def test_langchain_tables_are_made(sql: Any, connect: Any) -> None:
    store = connect(layout="langchain")
    assert store.collections() == []
    field = VectorField(name="embedding", dimension=3, distance=Distance.EUCLID, index=VectorIndex())
    schema, found = store.fit(schema_of("kb", id_kind=IdKind.UUID, vectors=(field,)))
    assert found == []
    payload = {"document": "x", "cmetadata": {"a": 1.5}}
    point = str(uuid.UUID(int=1))
    assert store.problems(schema, batch_of([point], [payload])) == []
    assert store.problems(schema, batch_of([point], [{"text": "x"}]))[0].code == PAYLOAD_FIELD
    store.create(schema)
    with pytest.raises(Permanent, match="exists"):
        store.create(schema)
    store.upsert("kb", batch_of([point], [payload]))
    store.finish(schema)
    assert store.inspect("kb") == schema
    second, _ = store.fit(schema_of("kb2", id_kind=IdKind.STRING))
    store.create(second)
    assert store.inspect("kb2").vectors[0].distance == Distance.COSINE
    wide = VectorField(name="embedding", dimension=9, distance=Distance.EUCLID)
    with pytest.raises(Permanent, match="another dimension"):
        store.create(second.model_copy(update={"name": "kb3", "vectors": (wide,)}))
    assert store.collections() == ["kb", "kb2"]
    columns = (
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'langchain_pg_embedding' ORDER BY 1"
    )
    assert [row[0] for row in sql(columns)] == ["cmetadata", "collection_id", "document", "embedding", "id"]


# Connections


def test_a_lost_connection_is_replaced(sql: Any, connect: Any) -> None:
    """A server that went away costs one Transient error, not one for each connection of the pool."""
    store = connect()
    store.create(schema_of())
    sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        " AND datname = current_database()"
    )
    with pytest.raises(Transient):
        store.count("items")
    assert store.count("items") == 0


def test_a_missing_extension_is_installed(database: str, connect: Any) -> None:
    store = connect()
    assert store.collections() == []
    assert store.health().notes
    store.create(schema_of())
    store.upsert("items", batch_of([1]))
    assert store.collections() == ["items"]


def test_secrets_stay_out_of_sight() -> None:
    config = PgvectorConfig(type="pgvector", url="postgresql://user:topsecret@127.0.0.1:1/db", connect_timeout=1)
    assert "topsecret" not in repr(config)
    for url in (config.url, "host='topsecret password=topsecret", "postgresql+psycopg://u:topsecret@127.0.0.1:1/db"):
        with pytest.raises(VecrunError) as caught:
            PgvectorStore.connect(config.model_copy(update={"url": url}))
        error = caught.value
        assert "topsecret" not in f"{error} {getattr(error, 'hint', '')} {error!r}"
