"""Several jobs on one collection, and what stands in the way of a change: the order of undoing, names, pins (B1, B2, B7, G9, O1)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from runner.embedders.hash import hash_vectors
from tests.e2e.knowledge import BEFORE, OLD, Knowledge, text_of
from tests.e2e.workspace import run
from tests.servers import sql


@pytest.fixture
def kb(kb: Knowledge) -> Knowledge:
    """Models `one` and `two` have the dimension of the old one."""
    kb.models = {name: {"provider": "hash", "model": name, "dimension": OLD} for name in ("one", "two")}
    kb.configure()
    return kb


def in_place(kb: Knowledge, name: str, model: str, **more: Any) -> None:
    kb.job(
        name, model=model, strategy="replace", **{"from_model": None, "knowledge_base": None, "cutover": None} | more
    )


def applied(name: str, *more: str) -> None:
    found = run("apply", f"jobs/{name}.yaml", "--auto-approve", *more)
    assert found.exit_code == 0, found.output + found.stderr


def refused(*words: str, code: int = 1) -> str:
    found = run(*words)
    assert found.exit_code == code, found.output + found.stderr
    return found.output + found.stderr


def vectors_are(kb: Knowledge, model: str, name: str = "docs") -> None:
    for one, (vector, payload) in kb.points(name).items():
        np.testing.assert_array_equal(vector, hash_vectors([payload["text"]], OLD, model)[0], str(one))


def test_changes_in_place_are_undone_in_their_order(kb: Knowledge) -> None:
    kb.fill(20)
    before = kb.world()
    in_place(kb, "first", "one")
    in_place(kb, "second", "two")
    applied("first")
    applied("second")
    told = refused("rollback", "first", "--auto-approve")
    assert "VD103" in told
    assert "vecrun rollback second" in told
    vectors_are(kb, "two")
    for job, model in (("second", "one"), ("first", "old")):
        assert run("rollback", job, "--auto-approve").exit_code == 0
        vectors_are(kb, model)
    assert kb.world() == before


def test_nobody_works_in_a_collection_that_is_half_changed(kb: Knowledge) -> None:
    kb.fill(20)
    in_place(kb, "first", "one", failures={"allow": 0})
    kb.say({"p003": "  "})  # it stops there
    assert run("apply", "jobs/first.yaml", "--auto-approve").exit_code == 3
    in_place(kb, "second", "two", failures={"allow": 1})
    kb.job("copy", model="new", failures={"allow": 1}, from_model=None, cutover=None, knowledge_base=None)
    for job in ("second", "copy"):
        told = refused("apply", f"jobs/{job}.yaml", "--auto-approve")
        assert "Another job has changed a part of the collection" in told
        assert "vecrun rollback first" in told
    assert run("rollback", "first", "--auto-approve").exit_code == 0
    applied_with_failures = run("apply", "jobs/second.yaml", "--auto-approve")
    assert applied_with_failures.exit_code == 3
    assert kb.versions()["p003"] == BEFORE


def test_saved_points_that_are_gone_stop_a_rollback(kb: Knowledge) -> None:
    kb.fill(20)
    in_place(kb, "first", "one")
    applied("first")
    with kb.store() as store:
        saved = next(name for name in store.collections() if "__saved_" in name)
        store.delete(saved, ["p003", "p004"])
    told = refused("rollback", "first", "--auto-approve")
    assert "VX303" in told
    assert "2 of 20 saved points are gone" in told
    assert set(kb.versions().values()) == {"hash:one:8"}
    vectors_are(kb, "one")


def test_pointers_learn_the_model_of_a_change_in_place(kb: Knowledge) -> None:
    """The job names no cutover, and a pointer leads to the collection all the same."""
    kb.fill(20)
    kb.job("make", model="one", to="served", knowledge_base=None, documents=None)
    applied("make")
    assert json.loads(run("search", "live", text_of(3), "--json").stdout)["model"] == "one"
    in_place(kb, "first", "two", collection="live", documents=None)
    applied("first")
    found = json.loads(run("search", "live", text_of(3), "--json").stdout)
    assert (found["model"], found["hits"][0]["id"]) == ("two", "p003")
    assert run("rollback", "first", "--auto-approve").exit_code == 0
    found = json.loads(run("search", "live", text_of(3), "--json").stdout)
    assert (found["model"], found["hits"][0]["id"]) == ("one", "p003")


def test_a_pointer_does_not_go_back_to_what_is_gone(kb: Knowledge) -> None:
    kb.fill(20)
    for job in ("one", "two"):
        kb.job(job, model=job, to=f"docs_{job}", documents=None, knowledge_base=None)
        applied(job)
    told = refused("rollback", "one", "--auto-approve")
    assert "job two would go back to it" in told
    with kb.store() as store:  # somebody does it by hand
        store.set_alias("live", "docs_two")
        store.drop("docs_one")
    assert run("rollback", "two", "--auto-approve").exit_code == 0
    assert kb.ws.serving() == {}


def test_an_incremental_job_that_was_rolled_back_says_so(kb: Knowledge) -> None:
    kb.fill(20)
    kb.job("edits", model="one", strategy="incremental", from_model=None, cutover=None, knowledge_base=None)
    applied("edits")
    assert run("rollback", "edits", "--auto-approve").exit_code == 0
    kb.say({"p001": "an edited text"})
    told = refused("apply", "jobs/edits.yaml", "--auto-approve")
    assert "VX304" in told
    assert "--unpin" in told
    applied("edits", "--unpin")
    vectors_are(kb, "one")
    assert "Nothing to do" in run("apply", "jobs/edits.yaml", "--auto-approve").output


def test_an_incremental_job_meets_another_dimension(kb: Knowledge) -> None:
    kb.fill(20)
    spec = {"strategy": "incremental", "from_model": None, "cutover": None, "knowledge_base": None}
    kb.job("edits", model="one", **spec)
    applied("edits")
    kb.job("edits", model="new", **spec)
    plan = json.loads(run("plan", "jobs/edits.yaml", "--json").stdout)["plan"]
    assert "create_collection" in {step["type"] for step in plan["steps"]}
    assert "VI113" in {item["code"] for item in plan["notices"]}


def test_what_is_of_the_model_already(kb: Knowledge) -> None:
    """Another job on what a first one has made: nothing is copied once more, and the check says the same."""
    kb.fill(20)
    kb.job("make", model="one")
    applied("make")
    kb.job("again", collection="live", model="one", from_model=None)
    plan = json.loads(run("plan", "jobs/again.yaml", "--json").stdout)["plan"]
    assert plan["steps"] == []
    assert "VI117" in {item["code"] for item in plan["notices"]}
    for job in ("make", "again"):
        found = json.loads(run("model-check", f"jobs/{job}.yaml", "--json").stdout)
        assert (found["needs_reembed"], found["dimension_changed"], found["texts"]) == (False, False, 0), job
        assert found["current_model"]["version"] == "hash:one:8"


def test_a_budget_without_a_price_must_be_accepted(kb: Knowledge) -> None:
    kb.model = {"price": None}
    kb.configure()
    kb.fill(20)
    kb.job(budget={"usd": 1.0})
    assert "VC103" in refused("apply", "jobs/change.yaml", "--auto-approve")
    kb.job(budget={"usd": 1.0}, accept=[{"code": "VC103", "reason": "a model of our own"}])
    applied("change")


def test_a_name_that_is_taken_is_found_by_the_plan(kb: Knowledge, pg_database: str) -> None:
    kb.connection = {"type": "pgvector", "url": pg_database}
    kb.configure()
    kb.fill({n: text_of(n) for n in range(20)})
    sql(pg_database, "CREATE VIEW live AS SELECT 1 AS one")
    kb.job(model="one")
    told = refused("apply", "jobs/change.yaml", "--auto-approve")
    assert "VX204" in told
    assert "a table or a view that vecrun did not make" in told
    assert set(kb.versions().values()) == {BEFORE}
    for alias in ("", "{nam}_live"):
        kb.job(cutover={"alias": alias})
        assert "cutover.alias" in refused("validate", code=14)


def test_columns_that_become_keys_must_be_accepted(kb: Knowledge, pg_database: str) -> None:
    """An application's own table: the new one holds its columns as jsonb, and whoever reads it by SQL must know."""
    kb.connection = {"type": "pgvector", "url": pg_database}
    kb.configure()
    sql(pg_database, f"CREATE TABLE support (id bigint PRIMARY KEY, embedding vector({OLD}), text text, lang text)")
    sql(pg_database, "INSERT INTO support VALUES (1, '[1,2,3,4,5,6,7,8]', 'a text of some words', 'en')")
    spec: dict[str, Any] = {"collection": "support", "documents": None, "knowledge_base": None, "from_model": None}
    kb.job(model="one", **spec)
    told = refused("apply", "jobs/change.yaml", "--auto-approve")
    assert "VL203" in told
    assert "text, lang are columns of kb/support" in told
    kb.job(model="one", accept=[{"code": "VL203", "reason": "nobody reads it by SQL"}], **spec)
    applied("change")
    in_place(kb, "inside", "two", collection="support", documents=None)
    applied("inside")
    vectors_are(kb, "two", "support")
