"""What every job kind promises, for VectorMigration over real stores, for each way of a Reembedding and for SqlMigration: planning twice
gives the same plan and writes nothing, apply then plan is nothing, apply then rollback is as before
(A1-A4, A7, A12, A13, B1-B3, G3, G8, G9).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runner import commands
from runner.errors import NotFound, Permanent, VecrunError
from runner.plan import CopyPoints, CreateCollection, Plan
from runner.points import (
    CollectionSchema,
    Datatype,
    Distance,
    IdKind,
    KeyRange,
    PayloadField,
    PayloadType,
    PointBatch,
    SparseField,
    VectorField,
    VectorIndex,
)
from runner.store import ReadOnlyStore, Store
from runner.world import World
from tests import worlds
from tests.conftest import watch
from tests.e2e import migrating
from tests.e2e.knowledge import Knowledge, Server
from tests.e2e.relations import Relations
from tests.e2e.workspace import Workspace, points_of

HEAD = "apiVersion: vecrun/v1\nkind: VectorMigration\nmetadata: {name: move}\nspec:\n  source: a\n  target: b\n"
PLAIN = HEAD + "  collections:\n    - from: kb\n      to: kb2\n  cutover: {alias: kb-live}\n"
#: (source edition, target edition) -> connections; files → files is used for everything, the others once.
PAIRS = {
    "files-files": ("{type: files, path: ./a}", "{type: files, path: ./b}"),
    "files-pgvector": ("{type: files, path: ./a}", "{type: pgvector, url: '%s'}"),
    "milvus-qdrant": ("{type: milvus, uri: ./a.db}", "{type: qdrant, path: ./b}"),
}


class Pair(Workspace):
    """A workspace over any two stores."""

    def open(self, name: str) -> Store:
        with World(self.context().settings, "write") as world:
            store = world.store(name)
            world._open.clear()  # it is closed by whoever asked for it
        return watch({"milvus": "milvus-lite", "qdrant": "qdrant-local"}.get(store.type, store.type), store)

    def world(self, *stores: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in stores or ("a", "b"):
            with self.open(name) as store:
                found[f"{name}:aliases"] = store.aliases()
                for collection in store.collections():
                    found[f"{name}/{collection}"] = store.inspect(collection)
                    found[f"{name}/{collection}:points"] = points_of(self.read(store, collection))
        return found

    def read(self, store: Store, name: str) -> PointBatch:
        schema = store.inspect(name)
        assert schema is not None
        return worlds.concat(list(store.scan(name, KeyRange())), schema)

    def put(self, schema: CollectionSchema, count: int = 60, store: str = "a", **points: Any) -> PointBatch:
        """A collection with points of length 1; what was written."""
        batch = (
            worlds.points(schema, count, unit=True, **points)
            if "ids" not in points
            else worlds.points(schema, unit=True, **points)
        )
        with self.open(store) as opened:
            opened.create(schema)
            opened.upsert(schema.name, batch)
            opened.finish(schema)
        return batch

    def got(self, name: str = "kb2", store: str = "b") -> tuple[CollectionSchema, PointBatch]:
        with self.open(store) as opened:
            schema = opened.inspect(name)
            assert schema is not None
            return schema, self.read(opened, name)

    def spec(self, text: str) -> None:
        self.write("jobs/move.yaml", text)

    def rollback(self) -> commands.Outcome:
        context = self.context()
        return commands.apply(context, commands.plan_rollback(context, "move"))


def schema(name: str = "kb", kind: IdKind = IdKind.INT, vector: str = "", **more: Any) -> CollectionSchema:
    values: dict[str, Any] = {"vectors": (VectorField(name=vector, dimension=4, distance=Distance.COSINE),)}
    return CollectionSchema(name=name, id_kind=kind, **(values | more))


def settings(a: str, b: str) -> str:
    return f"apiVersion: vecrun/v1\nkind: Workspace\nconnections:\n  a: {a}\n  b: {b}\nlimits: {{workers: 1}}\n"


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    a, b = PAIRS[request.param]
    if "%s" in b:
        monkeypatch.setenv("VECRUN_TEST_PG", request.getfixturevalue("pg_database"))
        b %= "${env:VECRUN_TEST_PG}"
    made = Pair.create(tmp_path / "ws", settings(a, b), PLAIN)
    assert isinstance(made, Pair)
    return made


@pytest.fixture
def files(tmp_path: Path) -> Pair:
    made = Pair.create(tmp_path / "ws", settings(*PAIRS["files-files"]), PLAIN)
    assert isinstance(made, Pair)
    return made


# The promises, for each pair ----------------------------------------------------------------------------------------


def fill(pair: Pair) -> PointBatch:
    """A collection as the source store of this pair has them."""
    with pair.open("a") as store:
        vector = store.capabilities().default_vector_name
    return pair.put(schema(vector=vector))


def test_the_whole_way(pair: Pair) -> None:
    before_source = points_of(fill(pair))
    before = pair.world()
    run_through(pair, before)
    assert {key[1] for key in before_source} == {key[1] for key in pair.world()["a/kb:points"]}


def run_through(pair: Pair, before: dict[str, Any]) -> None:
    """Plan twice, apply, plan again, roll back, with the world compared at every stage."""
    one, two = pair.plan(), pair.plan()
    assert one.identity() == two.identity()
    assert pair.world() == before
    outcome = commands.apply(pair.context(), two)
    assert outcome.status == "completed"
    after = pair.world()
    assert {key: value for key, value in after.items() if key.startswith("a")} == {
        key: value for key, value in before.items() if key.startswith("a")
    }
    assert after != before
    again = pair.plan()
    assert again.steps == ()
    assert again.drift == ()
    assert commands.verify(pair.context(), "move").equal
    assert pair.rollback().status == "completed"
    assert pair.world() == before


def test_planning_gets_stores_that_refuse_every_write(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(pair)
    used: set[str] = set()
    calls = ReadOnlyStore.inspect
    monkeypatch.setattr(
        ReadOnlyStore, "inspect", lambda self, name: used.add(self.type) or calls(self, name)
    )  # a look at which stores the planner had
    pair.plan()
    assert used
    with World(pair.context().settings, "read") as world:
        for name in ("a", "b"):
            store = world.store(name)
            assert isinstance(store, ReadOnlyStore)
            for write in (
                lambda store=store: store.create(schema()), lambda store=store: store.drop("kb"),
                lambda store=store: store.upsert("kb", worlds.points(schema(), 1)), lambda store=store: store.delete("kb", [1]),
                lambda store=store: store.set_alias("x", "kb"), lambda store=store: store.finish(schema()),
            ):  # fmt: skip
                with pytest.raises(Permanent, match="read-only"):
                    write()


# Features of the spec, files → files --------------------------------------------------------------------------------


def through(files: Pair, spec: str) -> Plan:
    """Take a spec the whole way and leave it applied; the plan that was applied."""
    files.spec(spec)
    before = files.world()
    run_through(files, before)
    plan = commands.plan(files.context(), files.job, unpin=True)
    commands.apply(files.context(), plan)
    return plan


def rule(text: str, **keys: str) -> str:
    more = "".join(f"  {key}: {value}\n" for key, value in keys.items())
    return HEAD + "  collections:\n    - {from: kb, to: kb2, " + text + "}\n" + more


def test_fields_are_dropped_renamed_converted_and_set(files: Pair) -> None:
    fields = (
        PayloadField(name="title", type=PayloadType.TEXT, indexed=True), PayloadField(name="n", type=PayloadType.INTEGER),
        PayloadField(name="gone", type=PayloadType.KEYWORD),
    )  # fmt: skip
    files.put(
        schema(payload=fields), ids=[1, 2],
        payloads=[{"title": "a", "n": 1, "gone": "x", "rest": [1]}, {"title": "b", "n": None}],
    )  # fmt: skip
    plan = through(
        files, rule("payload: {drop: [gone], rename: {title: headline}, cast: {n: string}, set: {lang: en}}")
    )
    made, batch = files.got()
    assert batch.payloads.dicts == [
        {"headline": "a", "n": "1", "rest": [1], "lang": "en"},
        {"headline": "b", "n": None, "lang": "en"},
    ]
    assert [item.name for item in made.payload] == ["headline"]
    assert made.payload[0].indexed
    labels = {fact.label: fact.after for fact in plan.overview[0].facts}
    assert labels["payload dropped"] == "gone"
    assert labels["payload renamed"] == "title → headline"


def test_a_part_is_copied(files: Pair) -> None:
    files.put(
        schema(), ids=[1, 2, 3], payloads=[{"lang": "en", "n": 1}, {"lang": "de", "n": 2}, {"lang": "en", "n": 3}]
    )
    for mode in ("full", "sample", "count"):
        files.spec(rule("where: [{field: lang, value: en}, {field: n, op: gt, value: 1}]", verify=f"{{mode: {mode}}}"))
        files.apply()
        assert files.got()[1].ids == [3]
        files.rollback()


def test_vectors_are_renamed_left_behind_and_indexed_anew(files: Pair) -> None:
    index = VectorIndex(type="hnsw", m=16, ef_construction=100)
    vectors = (
        VectorField(name="text", dimension=4, distance=Distance.COSINE, index=index),
        VectorField(name="image", dimension=6, distance=Distance.DOT, datatype=Datatype.FLOAT16),
    )
    files.put(schema(vectors=vectors, sparse=(SparseField(name="words"),)), 20)
    through(files, rule("vectors: {text: body, words: terms}, index: {body: {type: hnsw, m: 32}}"))
    made, batch = files.got()
    assert [(item.name, item.index.m if item.index else None) for item in made.vectors] == [("body", 32)]
    assert [item.name for item in made.sparse] == ["terms"]
    assert set(batch.vectors) == {"body"}
    assert sum(entry is not None for entry in batch.sparse["terms"]) == 16
    files.spec(rule("vectors: {txt: body}"))
    with pytest.raises(NotFound) as caught:
        files.plan()
    assert "did you mean text?" in caught.value.hint


@pytest.mark.parametrize(("mode", "expected"), [("uuid5", 36), ("string", 1)])
def test_ids_are_mapped_and_found_back(files: Pair, mode: str, expected: int) -> None:
    files.put(schema(), ids=[1, 2, 3])
    through(files, rule(f"ids: {{mode: {mode}}}"))
    ids = files.got()[1].ids
    assert {len(str(item)) for item in ids} == {expected}
    assert all(isinstance(item, str) for item in ids)
    if mode == "uuid5":
        back = (
            HEAD.replace("source: a", "source: b").replace("target: b", "target: a").replace("name: move", "name: back")
        )
        files.write(
            "jobs/back.yaml",
            back + "  collections: [{from: kb2, to: kb3, ids: {from_field: _vecrun_id, from_kind: int}}]\n",
        )
        context = files.context()
        commands.apply(context, commands.plan(context, files.root / "jobs" / "back.yaml"))
        world = files.world("a")
        assert world["a/kb3:points"] == world["a/kb:points"]


def test_partitions_are_kept_where_the_target_has_them(files: Pair) -> None:
    files.put(schema(partitions=("p", "q")), 20)
    through(files, PLAIN)
    made, batch = files.got()
    assert made.partitions == ("p", "q")
    assert sorted(set(batch.partitions or [])) == ["p", "q"]


def test_partitions_become_a_field_where_it_has_none(tmp_path: Path) -> None:
    pair = Pair.create(tmp_path / "ws", settings("{type: files, path: ./a}", "{type: qdrant, path: ./b}"), PLAIN)
    assert isinstance(pair, Pair)
    pair.put(schema(partitions=("p", "q")), 20)
    plan = pair.plan()
    assert "VI103" in {item.code for item in plan.notices}
    assert not plan.blocked
    commands.apply(pair.context(), plan)
    payloads = pair.got()[1].payloads.dicts
    assert sorted({item["_partition"] for item in payloads}) == ["p", "q"]


@pytest.mark.parametrize(
    ("collections", "expected"),
    [
        pytest.param("all", {"a", "kb_de", "kb_en"}, marks=pytest.mark.long),
        ('[{from: "kb_*", to: "{name}_v2"}]', {"kb_de_v2", "kb_en_v2"}),
        ("[{from: a, to: z}, {from: '*', to: 'copy_{name}'}]", {"z", "copy_kb_de", "copy_kb_en"}),
        pytest.param("[{from: kb_de}, {from: a}]", {"kb_de", "a"}, marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_several_collections_by_name_pattern_and_all(files: Pair, collections: str, expected: set[str]) -> None:
    for name in ("a", "kb_de", "kb_en"):
        files.put(schema(name), 10)
    plan = through(files, HEAD + f"  collections: {collections}\n  cutover: {{alias: 'live-{{name}}'}}\n")
    world = files.world("b")
    assert {key.removeprefix("b/") for key in world if key.startswith("b/") and not key.endswith(":points")} == expected
    assert world["b:aliases"] == {f"live-{name}": name for name in expected}
    kinds = [step.type for step in plan.steps]
    assert kinds.index("verify_points") > kinds.index("copy_points") + len(expected) - 1, (
        "all data first, then verification"
    )
    assert kinds.index("switch_alias") > max(n for n, kind in enumerate(kinds) if kind == "verify_points")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (HEAD + "  collections: [{from: '*', to: one}]\n", "Two collections would become one"),
        (HEAD + "  collections: all\n  cutover: {alias: live}\n", "One alias for two collections"),
        (HEAD.replace("target: b", "target: a") + "  collections: all\n", "the same collection"),
    ],
)
def test_what_contradicts_itself_is_refused(files: Pair, spec: str, words: str) -> None:
    files.put(schema("x"), 3)
    files.put(schema("y"), 3)
    files.spec(spec)
    with pytest.raises(Permanent, match=words):
        files.plan()


def test_an_existing_empty_target_is_filled_and_emptied_again(files: Pair) -> None:
    files.put(schema(), 30)
    files.put(schema("kb2"), 0, store="b")
    plan = through(files, PLAIN)
    assert not any(isinstance(step, CreateCollection) for step in plan.steps)
    assert any(isinstance(step, CopyPoints) and not step.creates_target for step in plan.steps)


@pytest.mark.parametrize("mode", ["{mode: count}", "{mode: sample, sample: 7}", "{mode: full}"])
def test_verification_finds_what_it_can_see(files: Pair, mode: str) -> None:
    files.put(schema(), 60)
    through(files, PLAIN + f"  verify: {mode}\n")
    with files.open("b") as store:
        store.delete("kb2", files.got()[1].ids[:1])
    assert not commands.verify(files.context(), "move").equal


def test_a_finding_blocks_until_it_is_accepted_with_a_reason(tmp_path: Path) -> None:
    pair = Pair.create(tmp_path / "ws", settings("{type: files, path: ./a}", "{type: qdrant, path: ./b}"), PLAIN)
    assert isinstance(pair, Pair)
    batch = worlds.points(schema(), 20)  # not of length 1: Qdrant scales them
    with pair.open("a") as store:
        store.create(schema())
        store.upsert("kb", batch)
    plan = pair.plan()
    assert plan.blocked
    with pytest.raises(VecrunError, match="VL101"):
        commands.apply(pair.context(), plan)
    assert pair.world("b") == {"b:aliases": {}}
    pair.spec(PLAIN + "  accept: [{code: VL101, reason: only directions matter}]\n")
    plan = pair.plan()
    assert [item.accepted for item in plan.notices if item.code == "VL101"] == ["only directions matter"]
    run_through(pair, pair.world())


def test_the_source_is_deleted_only_when_that_is_accepted(files: Pair) -> None:
    files.put(schema(), 10)
    files.spec(PLAIN + "  source_after: delete\n")
    plan = files.plan()
    assert plan.blocked
    with pytest.raises(VecrunError, match="VD101"):
        commands.apply(files.context(), plan)
    assert "a/kb" in files.world("a")
    files.spec(PLAIN + "  source_after: delete\n  accept: [{code: VD101, reason: it was moved for good}]\n")
    assert files.apply().status == "completed"
    assert files.world("a") == {"a:aliases": {}}
    before = files.world()
    with pytest.raises(VecrunError, match="VX30"):
        files.rollback()
    assert files.world() == before


def test_an_alias_of_the_target_is_moved_and_moved_back(files: Pair) -> None:
    files.put(schema(), 10)
    files.put(schema("old"), 5, store="b")
    with files.open("b") as store:
        store.set_alias("kb-live", "old")
    through(files, PLAIN)
    assert files.world("b")["b:aliases"] == {"kb-live": "kb2"}


def test_aliases_of_the_source_are_told(files: Pair) -> None:
    files.put(schema(), 10)
    with files.open("a") as store:
        store.set_alias("reader", "kb")
        store.set_alias("kb-live", "kb")
    notices = {item.code: item.message for item in files.plan().notices}
    assert notices["VI101"] == "aliases of the source are not carried: reader"


def test_an_inline_connection_is_as_good_as_a_named_one(files: Pair) -> None:
    files.put(schema(), 10)
    files.spec(PLAIN.replace("target: b", f"target: {{type: files, path: {files.root}/b}}"))
    before = files.world()
    run_through(files, before)


@pytest.fixture
def chunks(files: Pair) -> Iterator[Callable[[], list[str]]]:
    """A chunks table in SQLite beside the stores; a function that reads its vector ids."""
    import sqlite3

    database = sqlite3.connect(files.root / "app.db")
    with database:
        database.execute("CREATE TABLE chunks (id INTEGER PRIMARY KEY, vector_id TEXT)")
        database.executemany("INSERT INTO chunks VALUES (?, ?)", [(n, str(n)) for n in (1, 2, 3)])
    files.edit("vecrun.yaml", "limits:", f"  app: {{type: sql, url: 'sqlite:///{files.root}/app.db'}}\nlimits:")
    yield lambda: [row[0] for row in database.execute("SELECT vector_id FROM chunks ORDER BY id")]
    database.close()


def test_the_chunks_table_follows_the_ids_and_back(files: Pair, chunks: Callable[[], list[str]]) -> None:
    files.put(schema(), ids=[1, 2, 3])
    files.spec(rule("ids: {mode: uuid5}", documents="{connection: app, table: chunks}"))
    files.apply()
    assert set(chunks()) == {str(item) for item in files.got()[1].ids}
    files.rollback()
    assert chunks() == ["1", "2", "3"]


def test_the_chunks_table_is_left_alone_when_ids_are_kept(files: Pair, chunks: Callable[[], list[str]]) -> None:
    files.put(schema(), ids=[1, 2, 3])
    files.spec(PLAIN + "  documents: {connection: app, table: chunks}\n")
    assert "rewrite_ids" not in {step.type for step in files.plan().steps}
    files.apply()
    assert chunks() == ["1", "2", "3"]
    files.spec(PLAIN.replace("move", "other") + "  documents: {connection: app, table: chunkz}\n")
    with pytest.raises(VecrunError, match="chunkz"):
        files.plan()


# Reembedding: each of its ways ----------------------------------------------------------------------------------------

QUALITY = {"queries": ["rice", {"text": "train", "expect": ["p001"]}], "k": 5, "min_overlap": 0.0}
ACCEPTED = [{"code": "VL201", "reason": "nobody writes"}, {"code": "VL202", "reason": "nobody writes"}]
#: What a job says -> the steps that must be there, in this order.
WAYS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a new collection": ({"model": "wide"}, ("copy_points", "verify_points", "switch_alias", "set_serving", "set_model")),
    "a new collection, live": (
        {"model": "wide", "live": {}, "accept": ACCEPTED, "quality": QUALITY},
        ("copy_points", "catch_up", "verify_points", "check_quality", "switch_alias", "set_serving", "set_model", "catch_up"),
    ),
    "a new collection, of the same dimension": ({"model": "same", "version_field": "model"}, ("copy_points", "switch_alias")),
    "in place": ({"model": "same", "strategy": "replace"}, ("set_model", "replace_vectors", "verify_points", "set_serving")),
    "in place, live": (
        {"model": "same", "strategy": "replace", "live": {}, "accept": ACCEPTED, "quality": QUALITY, "version_field": "model"},
        ("check_quality", "set_model", "replace_vectors", "verify_points", "check_quality", "set_model", "replace_vectors"),
    ),
    "incremental": (
        {"model": "same", "strategy": "incremental", "cutover": None, "knowledge_base": None},
        ("set_model", "replace_vectors", "verify_points", "set_model"),
    ),
    "incremental, without tables": (
        {"model": "same", "strategy": "incremental", "cutover": None, "knowledge_base": None, "documents": None},
        ("replace_vectors", "verify_points"),
    ),
    "in place, by a column": (
        {"model": "same", "strategy": "replace", "text": {"column": "content"}, "verify": {"mode": "sample", "sample": 7}},
        ("replace_vectors", "verify_points"),
    ),
}  # fmt: skip


@pytest.fixture
def kb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Knowledge:
    """A knowledge base, and two models on this machine: one has other dimensions."""
    ws = Workspace.create(tmp_path / "ws")
    monkeypatch.chdir(ws.root)
    models = {
        name: {"provider": "hash", "model": name, "dimension": size} for name, size in (("wide", 16), ("same", 8))
    }
    made = Knowledge(ws, Server("http://127.0.0.1:9"), models=models)
    made.configure()
    made.fill()
    return made


def everything(kb: Knowledge) -> dict[str, Any]:
    """The world with the models of the pointers."""
    return kb.world() | {"models": dict(kb.ws.context().states.serving().models)}


@pytest.mark.parametrize("way", WAYS)
def test_the_whole_way_of_a_change_of_the_model(kb: Knowledge, way: str) -> None:
    spec, wanted = WAYS[way]
    job, context = kb.job(**spec), kb.ws.context()
    before = everything(kb)
    one = commands.plan(context, job)
    files = kb.ws.tree("kb", "app.db", "jobs")
    assert not one.blocked
    two = commands.plan(context, job)
    assert one.identity() == two.identity()
    assert everything(kb) == before
    assert kb.ws.tree("kb", "app.db", "jobs") == files
    kinds = iter(step.type for step in two.steps)
    assert all(kind in kinds for kind in wanted), [step.type for step in two.steps]
    assert commands.apply(context, two, dry_run=True).failed == 0
    assert everything(kb) == before, "a dry run writes nothing"
    outcome = commands.apply(context, two)
    assert (outcome.status, outcome.failed) == ("completed", 0)
    assert (outcome.used.texts, outcome.used.known) == (0, 40), "the dry run has asked for them"
    after = everything(kb)
    assert after != before
    again = commands.plan(context, job)
    assert (again.steps, again.drift) == ((), ())
    assert commands.verify(context, "change").equal
    assert everything(kb) == after
    back = commands.apply(context, commands.plan_rollback(context, "change"))
    assert back.status == "completed"
    assert everything(kb) == before
    pinned = commands.plan(context, job)
    if spec.get("strategy") == "incremental":  # it says that there is something to do, and refuses to
        assert pinned.blocked
        assert "VX304" in {item.code for item in pinned.notices}
    else:
        assert pinned.steps == ()
        assert {item.code for item in pinned.notices} == {"VI201"}
    third = commands.apply(context, commands.plan(context, job, unpin=True))
    assert third.used.texts == 0, "nothing is paid for twice"
    again_after = everything(kb)
    for name in ("docs:points", "docs_wide:points", "serving", "models", "aliases"):
        assert again_after.get(name) == after.get(name), name


def test_an_incremental_job_has_something_to_do_when_texts_change(kb: Knowledge) -> None:
    job, context = kb.job(**WAYS["incremental"][0]), kb.ws.context()
    commands.apply(context, commands.plan(context, job))
    assert commands.plan(context, job).steps == ()
    kb.say({"p004": "now about something else"})
    before = everything(kb)
    plan = commands.plan(context, job)
    assert [step.estimate.texts for step in plan.steps if step.type == "replace_vectors"] == [1]
    assert everything(kb) == before
    outcome = commands.apply(context, plan)
    assert (outcome.used.texts, outcome.used.known) == (1, 0)
    assert commands.plan(context, job).steps == ()
    commands.apply(context, commands.plan_rollback(context, "change"))
    assert everything(kb) == before


@pytest.mark.parametrize("strategy", ["replace", "incremental"])
def test_in_place_points_whose_text_fails_stay_as_they_were(kb: Knowledge, strategy: str) -> None:
    kb.say({"p003": "", "p005": " "})
    job, context = kb.job(model="same", strategy=strategy, failures={"allow": 2}), kb.ws.context()
    before, old = everything(kb), kb.points("docs")
    outcome = commands.apply(context, commands.plan(context, job))
    assert (outcome.status, outcome.failed, outcome.used.texts) == ("completed", 2, 38)
    new, versions = kb.points("docs"), kb.versions()
    assert {one for one in new if (new[one][0] == old[one][0]).all()} == {"p003", "p005"}
    assert {one for one, version in versions.items() if version != "hash:same:8"} == {"p003", "p005"}
    assert commands.plan(context, job).steps == ()
    assert commands.verify(context, "change").equal
    commands.apply(context, commands.plan_rollback(context, "change"))
    assert everything(kb) == before


# SqlMigration: inside of a relational database ------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_migration_of_a_relational_database(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("MIGRATION_KEY", migrating.KEY)
    url = f"sqlite:///{tmp_path / 'app.db'}" if database == "sqlite" else request.getfixturevalue("pg_database")
    ws = migrating.Migration.begin(tmp_path / "ws", Relations(url))
    ws.fill()
    ws.steps(*migrating.ALL, migrating.LABEL)
    before = ws.relations.dump()
    one, two = ws.plan(), ws.plan()
    assert one.identity() == two.identity()
    assert ws.relations.dump() == before, "a plan changes nothing"
    assert commands.apply(ws.context(), two).status == "completed"
    assert ws.relations.columns("people") == ["id", "name"]
    assert ws.relations.rows("SELECT count(*) FROM accounts") == [(4,)]
    assert ws.record() == {"": "closed", **dict.fromkeys(["tables", "copy", "accounts", "drop", "label"], "done")}
    again = ws.plan()
    assert again.steps == ()
    assert again.drift == ()
    assert commands.verify(ws.context(), "move").equal
    ws.roll_back()
    assert ws.relations.dump() == before
