"""A change of the embedding model (issue 4): strategies, marks, rollback, and that no text is paid for twice (B1-B5, B7).

The model is a real HTTP server that counts. Vectors, versions, model info and pointers are compared with what they must be.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.e2e.knowledge import AFTER, BEFORE, NEW, PRICE, Knowledge, new_vectors, text_of
from tests.e2e.workspace import run


def fact(plan: dict[str, Any], label: str) -> dict[str, Any]:
    found: dict[str, Any] = next(item for item in plan["overview"][0]["facts"] if item["label"] == label)
    return found


def codes(plan: dict[str, Any]) -> set[str]:
    return {item["code"] for item in plan["notices"]}


def once(kb: Knowledge) -> None:
    """Every distinct text was embedded exactly once."""
    assert kb.server.returned() == dict.fromkeys(kb.texts.values(), 1)


# -- strategies --------------------------------------------------------------------------------------------------------


def test_a_new_collection_and_back(kb: Knowledge) -> None:
    """Vectors, versions, info, alias and pointer; the second apply does nothing; the rollback is exact; then it is free."""
    kb.fill({f"p{n:03}": text_of(n % 30) for n in range(40)})  # ten texts stand there twice
    kb.job()
    before = kb.world()
    plan = kb.plan()
    assert fact(plan, "points")["before"] == "40"
    assert fact(plan, "cost")["after"].startswith("about ")
    assert "VB101" in codes(plan)
    assert not plan["notices"][0]["blocking"]
    assert kb.world() == before  # planning writes nothing
    outcome = kb.apply()
    once(kb)
    kb.paid(outcome)
    kb.is_new()
    assert outcome["used"]["texts"] == 30
    assert kb.ws.serving()["live"] == {"connection": "kb", "collection": "docs_new"}
    with kb.store() as store:
        assert store.aliases() == {"live": "docs_new"}
    info = kb.info()
    assert info.pop("updated_at") > "2026"
    assert info == {
        "provider": "openai", "model": "m", "dimension": NEW, "version": AFTER, "collection": "docs_new",
    }  # fmt: skip
    assert kb.world()["docs:points"] == before["docs:points"]  # the old collection is as it was
    hits = json.loads(run("search", "live", text_of(7), "--json", "-k", "3").stdout)
    assert hits["model"] == "new"
    assert hits["hits"][0]["payload"]["text"] == text_of(7)
    assert json.loads(run("verify", "change", "--json").stdout)["equal"]

    again = run("plan", "jobs/change.yaml", "--detailed-exitcode")
    assert again.exit_code == 0, again.stdout
    kb.server.reset()
    assert run("apply", "jobs/change.yaml", "--auto-approve").exit_code == 0
    assert kb.server.stats()["requests"] == 0

    assert run("rollback", "change", "--auto-approve").exit_code == 0
    assert kb.world() == before
    found = json.loads(run("search", "kb/docs", text_of(7), "--model", "old", "--json").stdout)
    assert found["hits"][0]["payload"]["text"] == text_of(7)

    found = kb.done(run("apply", "jobs/change.yaml", "--auto-approve", "--unpin", "--json"))
    assert kb.server.returned() == {}  # all of it was kept
    assert (found["used"]["texts"], found["used"]["known"], found["used"]["requests"]) == (0, 40, 0)  # of points
    kb.is_new()


@pytest.mark.parametrize("strategy", ["replace", "incremental"])
def test_in_place_and_back(kb: Knowledge, strategy: str) -> None:
    """The dimension stays; old points are saved first; vectors, payload and versions come back, exactly."""
    kb.models["small"] = {"provider": "hash", "model": "old", "dimension": NEW}
    kb.configure()
    kb.fill(20)
    kb.job("grow", model="small", documents=None, knowledge_base=None, cutover=None, to="wide")
    assert run("apply", "jobs/grow.yaml", "--auto-approve").exit_code == 0
    kb.job(
        collection="wide", from_model="small", strategy=strategy, version_field="made_by",
        quality={"queries": ["where is the garden"], "k": 3},
    )  # fmt: skip
    before = kb.world()
    plan = kb.plan()
    assert fact(plan, "to embed")["after"].endswith("20 texts")
    assert "wide__saved_" in fact(plan, "old points")["after"]
    outcome = kb.apply()
    assert kb.server.returned() == dict.fromkeys([*kb.texts.values(), "where is the garden"], 1)
    kb.is_new("wide")
    assert outcome["used"]["texts"] == 20
    stats = kb.server.stats()  # the query of the quality check is paid for, too; the model from before costs nothing
    assert outcome["used"]["usd"] == pytest.approx(stats["tokens"] * PRICE / 1e6)
    assert outcome["used"]["requests"] == stats["replies"] + 1
    assert {item[1]["made_by"] for item in kb.points("wide").values()} == {AFTER}
    assert kb.info()["version"] == AFTER
    assert kb.ws.serving()["live"]["collection"] == "wide"
    assert run("rollback", "change", "--auto-approve").exit_code == 0
    after = kb.world()
    assert after == before


def test_incremental_embeds_what_changed(kb: Knowledge) -> None:
    """Ten edited texts: these ten and nothing else; also rows of another version, points without a row, new points."""
    kb.fill(50)
    kb.job()
    kb.apply()
    kb.job("news", collection="docs_new", strategy="incremental", from_model=None, cutover=None)
    kb.plan("news")
    assert run("plan", "jobs/news.yaml", "--detailed-exitcode").exit_code == 0  # nothing changed
    edited = {f"p{n:03}": f"edited text {n}" for n in range(0, 50, 5)}
    kb.say(edited, "docs_new")
    before = kb.world()
    plan = kb.plan("news")
    assert fact(plan, "to embed")["after"] == "10 texts"
    outcome = kb.done(run("apply", "plans/news.json", "--json"))
    assert kb.server.returned() == dict.fromkeys(edited.values(), 1)
    assert outcome["used"]["texts"] == 10
    kb.is_new()
    kb.server.reset()
    assert run("apply", "jobs/news.yaml", "--auto-approve").exit_code == 0  # nothing is left to do
    assert kb.server.returned() == {}

    with kb.database() as db:  # somebody put a chunk back to another version
        db.execute("UPDATE chunks SET embedding_model_version = 'other:1' WHERE vector_id = 'p003'")
    plan = kb.plan("news")
    assert fact(plan, "to embed")["after"].startswith("1 texts")
    assert run("apply", "plans/news.json").exit_code == 0
    assert kb.server.returned() == {}  # its text is known
    kb.is_new()
    assert run("rollback", "news", "--auto-approve").exit_code == 0
    assert kb.versions()["p003"] == "other:1"
    assert run("rollback", "news", "--auto-approve").exit_code == 0
    found = kb.world()
    with kb.database() as db:
        db.execute(f"UPDATE chunks SET embedding_model_version = '{AFTER}' WHERE vector_id = 'p003'")
    assert {key: value for key, value in found.items() if key != "dump"} == {
        key: value for key, value in before.items() if key != "dump"
    }
    assert found["dump"]["knowledge_bases"] == before["dump"]["knowledge_bases"]


def test_a_new_point_and_a_deleted_one_are_met_incrementally(kb: Knowledge) -> None:
    kb.fill(20)
    kb.job()
    kb.apply()
    with kb.store() as store:
        store.delete("docs_new", ["p004"])
    kb.texts.pop("p004")
    with kb.store() as store:
        held = store.fetch("docs_new", ["p005"])
        from runner.points import Payloads, PointBatch

        vectors = {name: np.zeros((1, NEW), np.float32) for name in held.vectors}
        store.upsert("docs_new", PointBatch(["x1"], vectors, Payloads([{"text": "a text that is new", "n": 1}])))
    kb.texts["x1"] = "a text that is new"
    with kb.database() as db:
        db.execute("INSERT INTO chunks (vector_id, content) VALUES ('x1', 'a text that is new')")
    kb.job("news", collection="docs_new", strategy="incremental", from_model=None, cutover=None)
    kb.apply("news")
    assert kb.server.returned() == {"a text that is new": 1}
    kb.is_new()
    assert run("rollback", "news", "--auto-approve").exit_code == 0
    assert kb.versions()["x1"] is None
    assert not kb.points("docs_new")["x1"][0].any()


def test_a_changed_dimension_makes_a_new_collection(kb: Knowledge) -> None:
    """B2: with replace, too; the plan says so."""
    kb.fill(10)
    kb.job(strategy="replace")
    plan = kb.plan()
    notice = next(item for item in plan["notices"] if item["code"] == "VI113")
    assert "8 dimensions become 16" in notice["message"]
    assert "strategy replace becomes create_new_collection" in notice["message"]
    assert "only a new collection can hold them" in run("plan", "jobs/change.yaml").stdout
    before = kb.world()["docs:points"]
    kb.apply()
    assert kb.world()["docs:points"] == before
    kb.is_new()


# -- nothing twice -----------------------------------------------------------------------------------------------------


def test_what_a_dry_run_paid_for_is_kept(kb: Knowledge) -> None:
    kb.fill(30)
    kb.job()
    before = kb.world()
    kb.plan()
    outcome = kb.done(run("apply", "plans/change.json", "--dry-run", "--json"))
    assert outcome["dry"]
    once(kb)
    kb.paid(outcome)
    assert kb.world() == before
    kb.server.reset()
    outcome = kb.done(run("apply", "plans/change.json", "--json"))
    assert kb.server.stats()["requests"] == 0
    assert (outcome["used"]["requests"], outcome["used"]["usd"], outcome["used"]["known"]) == (0, None, 30)
    kb.is_new()


def test_a_dry_run_of_a_sample_pays_for_the_sample(kb: Knowledge) -> None:
    kb.fill(200)
    kb.job()
    kb.plan()
    kb.done(run("apply", "plans/change.json", "--dry-run", "--sample", "20", "--json"))
    sampled = kb.server.returned()
    assert 10 <= len(sampled) <= 60
    assert set(sampled.values()) == {1}
    assert run("apply", "plans/change.json").exit_code == 0
    once(kb)


def test_another_collection_with_the_same_texts_costs_nothing(kb: Knowledge) -> None:
    kb.fill(20)
    kb.fill(kb.texts, name="copy")
    kb.job()
    kb.apply()
    kb.job("second", collection="copy", documents=None, knowledge_base=None, cutover=None)
    plan = kb.plan("second")
    assert "20 of them kept from before" in fact(plan, "to embed")["after"]
    assert fact(plan, "tokens")["after"].startswith("about 0 ")
    outcome = kb.done(run("apply", "plans/second.json", "--json"))
    assert kb.server.stats()["requests"] == 0
    assert outcome["used"]["known"] == 20
    assert {one: item[0].tobytes() for one, item in kb.points("copy_new").items()} == {
        one: item[0].tobytes() for one, item in kb.points("docs_new").items()
    }


def test_kept_vectors_can_be_given_up(kb: Knowledge) -> None:
    """vectors.keep: 0s forgets them with the run: then a second run pays again."""
    kb.configure(vectors={"keep": "0s"})
    kb.fill(10)
    kb.job()
    kb.apply()
    once(kb)
    assert run("rollback", "change", "--auto-approve").exit_code == 0
    kb.server.reset()
    assert run("apply", "jobs/change.yaml", "--auto-approve", "--unpin").exit_code == 0
    assert set(kb.texts.values()) <= set(kb.server.returned())


# -- the relational side -----------------------------------------------------------------------------------------------


def test_text_from_the_table(kb: Knowledge) -> None:
    """The payload says something else; a point without a row fails, and is named."""
    kb.fill(20)
    with kb.database() as db:
        db.execute("UPDATE chunks SET content = 'row ' || content")
        db.execute("DELETE FROM chunks WHERE vector_id = 'p007'")
    kb.job(text={"column": "content"}, failures={"allow": 1})
    outcome = kb.apply(status=3)
    assert outcome["failed"] == 1
    assert kb.server.returned() == {f"row {text}": 1 for one, text in kb.texts.items() if one != "p007"}
    held = kb.points("docs_new")
    assert "p007" not in held
    for one, (vector, _payload) in held.items():
        np.testing.assert_array_equal(vector, new_vectors([f"row {kb.texts[one]}"])[0])
    found = json.loads(run("failures", "change", "--json").stdout)["items"]
    assert [item["item"] for item in found] == ["p007"]
    assert "no row of chunks names this point" in found[0]["error"]


def test_an_edited_row_is_met_incrementally(kb: Knowledge) -> None:
    kb.fill(20)
    kb.job(text={"column": "content"})
    kb.apply()
    kb.job(
        "news", collection="docs_new", strategy="incremental", from_model=None, cutover=None, text={"column": "content"}
    )  # fmt: skip
    with kb.database() as db:
        db.execute("UPDATE chunks SET content = 'edited in the table' WHERE vector_id = 'p004'")
    kb.apply("news")
    assert kb.server.returned() == {"edited in the table": 1}
    np.testing.assert_array_equal(kb.points("docs_new")["p004"][0], new_vectors(["edited in the table"])[0])
    assert set(kb.versions().values()) == {AFTER}
    assert run("rollback", "news", "--auto-approve").exit_code == 0
    np.testing.assert_array_equal(kb.points("docs_new")["p004"][0], new_vectors([text_of(4)])[0])


def test_a_version_column_that_takes_no_null(kb: Knowledge) -> None:
    kb.fill(20)
    with kb.database() as db:
        db.execute("ALTER TABLE chunks RENAME TO former")
        db.execute(
            "CREATE TABLE chunks (id INTEGER PRIMARY KEY, vector_id TEXT, content TEXT,"
            " embedding_model_version TEXT NOT NULL DEFAULT 'none')"
        )
        db.execute("INSERT INTO chunks SELECT * FROM former")
        db.execute("DROP TABLE former")
    before = kb.world()
    kb.job(failures={"allow": 1})
    kb.server.set(refuse=kb.texts["p003"])
    kb.apply(status=3)
    kb.is_new(but=["p003"])
    assert kb.versions()["p003"] == BEFORE
    assert run("rollback", "change", "--auto-approve").exit_code == 0
    assert kb.world() == before


def test_several_collections_in_one_table(kb: Knowledge) -> None:
    """Rows of another collection, with the same ids, are not touched; texts are of the right one."""
    kb.fill(10)
    kb.fill({one: f"other {text}" for one, text in kb.texts.items()}, name="faq")
    with kb.database() as db:
        db.execute("ALTER TABLE chunks ADD COLUMN of TEXT")
        db.execute("UPDATE chunks SET of = 'docs'")
        db.execute(
            "INSERT INTO chunks (vector_id, content, embedding_model_version, of)"
            f" SELECT vector_id, 'other ' || content, '{BEFORE}', 'FAQ' FROM chunks"
        )
    rows = "SELECT of, embedding_model_version, count(*) FROM chunks GROUP BY 1, 2 ORDER BY 1"
    before = kb.world()
    documents = {
        "connection": "app", "table": "chunks", "version_column": "embedding_model_version", "collection_column": "of",
    }  # fmt: skip
    kb.job(text={"column": "content"}, documents=documents)
    kb.apply()
    with kb.database() as db:
        assert db.execute(rows).fetchall() == [("FAQ", BEFORE, 10), ("docs", AFTER, 10)]
    held = kb.points("docs_new")
    for one, text in kb.texts.items():
        np.testing.assert_array_equal(held[one][0], new_vectors([text])[0])
    kb.job(
        "faq", collection="faq", text={"column": "content"}, documents=documents | {"collection_value": "FAQ"},
        knowledge_base=None, cutover=None,
    )  # fmt: skip
    kb.apply("faq")
    assert kb.server.returned() == {f"other {text}": 1 for text in kb.texts.values()}
    with kb.database() as db:
        assert db.execute(rows).fetchall() == [("FAQ", AFTER, 10), ("docs", AFTER, 10)]
    for job in ("faq", "change"):
        assert run("rollback", job, "--auto-approve").exit_code == 0
    assert kb.world() == before


@pytest.mark.parametrize("kind", ["JSON", "TEXT"])
@pytest.mark.parametrize("info", [None, '{"dimension": 8, "owner": {"team": "search"}, "updated_at": "2025-01-01"}'])
def test_the_model_info(kb: Knowledge, kind: str, info: str | None) -> None:
    """Other keys stay; NULL becomes an info and NULL again; a JSON and a TEXT column."""
    kb.fill(3)
    with kb.database() as db:
        db.execute("DROP TABLE knowledge_bases")
        db.execute(f"CREATE TABLE knowledge_bases (id INTEGER PRIMARY KEY, embedding_model_info {kind})")
        db.execute("INSERT INTO knowledge_bases VALUES (1, ?), (2, ?)", (info, '{"other": "kb"}'))
    before = kb.world()
    kb.job()
    kb.apply()
    found = kb.info()
    assert found["dimension"] == NEW
    assert found["updated_at"] > "2026"
    assert found.get("owner") == ({"team": "search"} if info else None)
    assert run("rollback", "change", "--auto-approve").exit_code == 0
    after = kb.world()
    told = [json.loads(row[1]) if row[1] else None for row in after["dump"].pop("knowledge_bases")]
    wanted = [json.loads(row[1]) if row[1] else None for row in before["dump"].pop("knowledge_bases")]
    assert told == wanted
    assert after == before


def test_no_such_knowledge_base(kb: Knowledge) -> None:
    kb.fill(3)
    kb.job(knowledge_base={"connection": "app", "id": 7})
    found = run("plan", "jobs/change.yaml")
    assert found.exit_code == 10
    assert "No such knowledge base" in found.stderr
    assert "knowledge_bases.id = 7" in found.stderr


def test_an_info_that_somebody_changed_is_not_overwritten(kb: Knowledge) -> None:
    kb.fill(3)
    kb.job()
    kb.plan()
    with kb.database() as db:
        db.execute("""UPDATE knowledge_bases SET embedding_model_info = '{"model": "somebody else''s"}'""")
    found = run("apply", "plans/change.json")
    assert found.exit_code == 1
    assert "model info was changed by somebody else" in found.stderr
    assert run("rollback", "change", "--auto-approve").exit_code == 0
    assert kb.info() == {"model": "somebody else's"}
    assert set(kb.versions().values()) == {BEFORE}


def test_keys_that_came_into_the_info_stay(kb: Knowledge) -> None:
    kb.fill(3)
    kb.job()
    kb.apply()
    with kb.database() as db:
        db.execute(
            "UPDATE knowledge_bases SET embedding_model_info = json_set(embedding_model_info, '$.owner', 'search')"
        )
    assert run("rollback", "change", "--auto-approve").exit_code == 0
    assert kb.info() == {"dimension": 8, "owner": "search"}


# -- quality and the model check ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["create_new_collection", "replace"])
def test_the_quality_gate(kb: Knowledge, strategy: str) -> None:
    """Below a threshold nothing is switched, exit code 13, and a rollback brings everything back."""
    kb.fill({f"p{n:03}": text_of(n) for n in range(60)})
    collection = "docs"
    if strategy == "replace":
        kb.models["small"] = {"provider": "hash", "model": "old", "dimension": NEW}
        kb.configure()
        kb.job("grow", model="small", documents=None, knowledge_base=None, cutover=None, to="wide")
        assert run("apply", "jobs/grow.yaml", "--auto-approve").exit_code == 0
        collection = "wide"
    queries = [{"text": text_of(5), "expect": ["p005"]}, {"text": text_of(9), "expect": ["p050", "p051"]}]
    quality = {"queries": queries, "k": 2, "min_recall": 0.9}
    same = {"collection": collection, "strategy": strategy, "from_model": "small" if collection == "wide" else "old"}
    kb.job(**same, quality=quality)
    before = kb.world()
    found = kb.apply(status=13)
    assert "recall@2 is 0.50, at least 0.90" in json.dumps(found)
    assert kb.ws.serving() == {}
    with kb.store() as store:
        assert store.aliases() == {}
    assert kb.info() == {"dimension": 8}
    assert AFTER not in kb.versions().values()
    assert run("rollback", "change", "--auto-approve").exit_code == 0
    assert kb.world() == before
    kb.job(**same, quality=quality | {"min_recall": 0.5, "min_overlap": 0.1})
    outcome = kb.done(run("apply", "jobs/change.yaml", "--auto-approve", "--json"))
    result = [item["result"] for item in outcome["steps"] if item["type"] == "check_quality"][-1]
    assert result["recall"] == 0.5
    assert 0.1 <= result["overlap"] <= 1
    kb.is_new("docs_new" if collection == "docs" else "wide")


def test_model_check(kb: Knowledge) -> None:
    kb.fill(20)
    kb.job()
    found = kb.done(run("model-check", "jobs/change.yaml", "--json"))
    named = {
        "current_model", "configured_model", "needs_reembed", "dimension_changed", "estimated_cost", "estimated_time",
    }  # fmt: skip
    assert named <= set(found)
    assert found["current_model"]["dimension"] == 8
    assert found["configured_model"]["version"] == AFTER
    assert found["needs_reembed"] is True
    assert found["dimension_changed"] is True
    assert found["strategy"] == "create_new_collection"
    assert found["estimated_cost"] > 0
    assert found["estimated_time"] >= 0
    assert run("model-check", "jobs/change.yaml", "--detailed-exitcode").exit_code == 2
    assert kb.ws.state("change") == {}
    kb.apply()
    kb.job("next", collection="docs_new", strategy="incremental", from_model=None, cutover=None)
    found = kb.done(run("model-check", "jobs/next.yaml", "--json"))
    assert found["current_model"]["version"] == AFTER
    assert (found["needs_reembed"], found["dimension_changed"], found["texts"]) == (False, False, 0)
    assert found["estimated_cost"] == 0
    kb.say({"p001": "a changed text"}, "docs_new")
    found = kb.done(run("model-check", "jobs/next.yaml", "--json"))
    assert (found["needs_reembed"], found["texts"]) == (True, 1)


# -- what is refused before anything is asked -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "told", "hint"),
    [
        ({"text": {"field": "text", "column": "content"}}, "give either field or column", ""),
        ({"text": {"column": "content"}, "documents": None}, "text.column needs documents", ""),
        (
            {"from_model": None, "quality": {"queries": ["x"], "min_overlap": 0.5}},
            "quality.min_overlap needs from_model",
            "",
        ),
        ({"model": "nwe"}, "nwe", "new"),
        ({"strategy": "replcae"}, "replace", ""),
        ({"quality": {"queries": ["x"], "min_recall": 0.5}}, "min_recall needs queries with expect", ""),
        ({"live": {"hold": True}, "strategy": "replace"}, "live.hold is for create_new_collection", ""),
    ],
)
def test_specs_that_cannot_be(kb: Knowledge, spec: dict[str, Any], told: str, hint: str) -> None:
    """file:line, what is wrong, and what would be right; the same at validate and at plan."""
    kb.fill(3)
    kb.job(**spec)
    for command in (("validate",), ("plan", "jobs/change.yaml")):
        found = run(*command)
        said = found.stderr + found.stdout
        assert found.exit_code in (10, 14), said
        assert told in said
        assert hint in said
        assert "Traceback" not in said
    assert "jobs/change.yaml:" in run("validate").stderr


def test_a_provider_that_nobody_knows(kb: Knowledge) -> None:
    kb.models["odd"] = {"provider": "opneai", "model": "m"}
    kb.configure()
    found = run("validate")
    assert found.exit_code == 14
    assert "vecrun.yaml:1: " in found.stderr
    assert "opneai" in found.stderr
    assert "openai" in found.stderr.replace("opneai", "")


# -- one change after another ----------------------------------------------------------------------------------------------


def test_a_change_after_a_change(kb: Knowledge) -> None:
    """The job names the pointer, and finds what serves; the first change is undone after the second, exactly."""
    kb.models["third"] = {**json.loads((kb.ws.root / "vecrun.yaml").read_text())["models"]["new"], "model": "m3"}
    kb.configure()
    kb.fill(20)
    kb.job()
    kb.apply()
    first = kb.world()
    kb.job("next", collection="live", model="third", from_model="new")
    kb.apply("next")
    once(kb)
    assert kb.ws.serving()["live"]["collection"] == "docs_new_third"
    assert kb.info()["model"] == "m3"
    assert set(kb.versions().values()) == {"openai:m3:16"}
    found = run("rollback", "change", "--auto-approve")
    assert found.exit_code == 1
    assert "VD103" in found.stderr
    assert run("rollback", "next", "--auto-approve").exit_code == 0
    assert kb.world() == first
    assert run("rollback", "change", "--auto-approve").exit_code == 0
    assert kb.info() == {"dimension": 8}
    assert set(kb.versions().values()) == {BEFORE}


def test_texts_that_fail_incrementally(kb: Knowledge) -> None:
    """They are told, and not planned again and again; when they are accepted at last, just they are embedded."""
    kb.fill(20)
    kb.job()
    kb.apply()
    kb.say({"p003": "now POISON", "p004": "edited well"}, "docs_new")
    kb.server.set(refuse="POISON")
    kb.job(
        "news", collection="docs_new", strategy="incremental", from_model=None, cutover=None, failures={"allow": 1}
    )  # fmt: skip
    outcome = kb.apply("news", status=3)
    assert outcome["failed"] == 1
    assert kb.server.returned() == {"edited well": 1}
    kb.is_new(but=["p003"])
    kb.server.reset()
    assert run("plan", "jobs/news.yaml", "--detailed-exitcode").exit_code == 0
    assert run("apply", "jobs/news.yaml", "--auto-approve").exit_code == 0
    assert kb.server.stats()["requests"] == 0
    kb.server.set(refuse="")
    kb.done(run("retry-failed", "news", "--auto-approve", "--json"))
    assert kb.server.returned() == {"now POISON": 1}
    kb.is_new()
    assert run("rollback", "news", "--auto-approve").exit_code == 0
    held = kb.points("docs_new")
    np.testing.assert_array_equal(held["p003"][0], new_vectors([text_of(3)])[0])
    assert held["p003"][1]["text"] == "now POISON"


def test_another_store(kb: Knowledge, pg_database: str) -> None:
    """pgvector: integer ids, a view as alias; a new collection, then all of it in place; both undone exactly."""
    kb.connection = {"type": "pgvector", "url": pg_database}
    kb.models["third"] = {**json.loads((kb.ws.root / "vecrun.yaml").read_text())["models"]["new"], "model": "m3"}
    kb.configure()
    kb.fill({n: text_of(n) for n in range(60)})
    before = kb.world()
    kb.job()
    kb.server.set(faults={"rate_limit": 5, "server_error": 7}, retry_after=0.05)
    outcome = kb.apply()
    once(kb)
    kb.paid(outcome)
    kb.is_new()
    with kb.store() as store:
        assert store.aliases() == {"live": "docs_new"}
    first = kb.world()
    kb.job("next", collection="docs_new", strategy="replace", model="third", from_model="new", version_field="made_by")
    kb.apply("next")
    assert kb.ws.serving()["live"]["collection"] == "docs_new"
    assert set(kb.versions().values()) == {"openai:m3:16"}
    assert kb.points("docs_new")[7][1]["made_by"] == "openai:m3:16"
    assert run("rollback", "next", "--auto-approve").exit_code == 0
    assert kb.world() == first
    assert run("rollback", "change", "--auto-approve").exit_code == 0
    assert kb.world() == before


def test_a_change_is_undone_after_what_was_done_in_its_collection(kb: Knowledge) -> None:
    kb.fill(20)
    before = kb.world()
    kb.job()
    kb.apply()
    kb.say({"p001": "an edited text"}, "docs_new")
    kb.job("news", collection="docs_new", strategy="incremental", from_model=None, cutover=None)
    kb.apply("news")
    found = run("rollback", "change", "--auto-approve")
    assert found.exit_code == 1
    assert "VD103" in found.stderr
    assert "vecrun rollback news" in found.stderr
    for job in ("news", "change"):
        assert run("rollback", job, "--auto-approve").exit_code == 0
    after = kb.world()
    assert after["docs:points"] == before["docs:points"]
    assert set(after) == set(before)
    assert set(kb.versions().values()) == {BEFORE}


def test_points_that_are_gone_do_not_come_back(kb: Knowledge) -> None:
    """An application deleted every point of a batch, and one of another, after their vectors were replaced."""
    kb.fill(20)
    kb.job()
    kb.apply()
    edited = {f"p{n:03}": f"edited text {n}" for n in range(10)}
    kb.say(edited, "docs_new")
    kb.job("news", collection="docs_new", strategy="incremental", from_model=None, cutover=None)
    kb.apply("news")
    with kb.store() as store:
        store.delete("docs_new", list(edited))
    found = run("rollback", "news", "--auto-approve")
    assert found.exit_code == 0, found.stderr
    assert set(kb.points("docs_new")) == set(kb.texts) - set(edited)
