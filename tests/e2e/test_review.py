"""Faults a reviewer found, each as the user would meet it. Files stores, in this process."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from runner import commands
from runner.crash import point
from runner.ledger import Ledger
from runner.points import CollectionSchema, Distance, IdKind, SparseField, VectorField
from runner.state import Serving, StateDirectory
from tests import worlds
from tests.e2e.workspace import JOB, SETTINGS, Workspace, batch_of, run

APPLY = ("apply", "jobs/move.yaml", "--auto-approve")
ROLLBACK = ("rollback", "move", "--auto-approve")


class Stop(Exception):
    """What a crash is in these tests."""


def stop_at(monkeypatch: pytest.MonkeyPatch, step: str, phase: str) -> None:
    """Make the next run end at a crash point, as if the process had died there."""

    def stopped(at: str, when: str) -> None:
        point(at, when)
        if (at, when) == (step, phase):
            raise Stop

    monkeypatch.setattr("runner.crash.point", stopped)


def crashed(monkeypatch: pytest.MonkeyPatch, step: str, phase: str, *args: str) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, step, phase)
        with pytest.raises(Stop):
            run(*(args or APPLY))


def ok(*args: str) -> str:
    found = run(*args)
    assert found.exit_code == 0, found.output
    return found.output


# The way back -------------------------------------------------------------------------------------------------------


def test_new_points_in_a_target_that_was_there_before_are_not_cleared_unasked(ws: Workspace) -> None:
    ws.fill(ids=list(range(50)))
    ws.fill(0, store="b", name="kb2", vector="")
    ok(*APPLY)
    with ws.store("b") as store:
        store.upsert("kb2", batch_of(ws.schemas["b/kb2"], [1000, 1001]))
    before = ws.world()
    found = run(*ROLLBACK)
    assert found.exit_code == 1, found.output
    assert "VD102" in found.stderr
    assert "2 points of the target did not come from this run" in found.stderr
    assert ws.world() == before
    shown = ok("rollback", "move", "--dry-run", "--discard-new-points")
    assert "52 points" in shown
    ok(*ROLLBACK, "--discard-new-points")
    assert ws.points("b", "kb2").ids == []  # type: ignore[union-attr]


def test_an_alias_that_somebody_moved_is_told_by_the_rollback_and_left_alone(ws: Workspace) -> None:
    ws.fill()
    ws.fill(3, store="b", name="other")
    ok(*APPLY)
    with ws.store("b") as store:
        store.set_alias("kb-live", "other")
    shown = ok("rollback", "move", "--dry-run")
    assert "VB102" in shown
    assert "it points to other, which this run did not set; it is left as it is" in shown
    ok(*ROLLBACK)
    assert ws.world("b")["b:aliases"] == {"kb-live": "other"}
    assert ws.points("b", "kb2") is None
    assert ws.serving() == {}


def test_an_alias_whose_earlier_collection_is_gone_is_removed(ws: Workspace) -> None:
    ws.fill()
    ws.fill(3, store="b", name="old")
    with ws.store("b") as store:
        store.set_alias("kb-live", "old")
    ok(*APPLY)
    with ws.store("b") as store:
        store.drop("old")
    assert "old is gone" in ok(*ROLLBACK)
    assert ws.world("b") == {"b:aliases": {}}


def test_after_the_rollback_of_a_second_run_the_first_is_what_is_applied(ws: Workspace) -> None:
    ws.fill()
    ok(*APPLY)
    applied, world = ws.state(), ws.world()
    ws.write("jobs/move.yaml", JOB.replace("to: kb2", "to: kb3"))
    ok(*APPLY)
    ok(*ROLLBACK)
    assert ws.world() == world
    ws.write("jobs/move.yaml", JOB)
    assert "Nothing to do." in ok("plan", "jobs/move.yaml", "--detailed-exitcode")
    assert ws.state()["live"] == applied["live"]
    assert ws.state()["status"] == "applied"
    ok("drift")
    ok(*ROLLBACK)
    assert ws.world("b") == {"b:aliases": {}}
    assert run(*ROLLBACK).exit_code == 10


def test_after_the_rollback_of_a_half_done_second_run_the_first_is_what_is_applied(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws.fill()
    ok(*APPLY)
    world = ws.world()
    ws.write("jobs/move.yaml", JOB.replace("to: kb2", "to: kb3"))
    crashed(monkeypatch, "copy_points", "after")
    ok(*ROLLBACK)
    assert ws.world() == world
    assert "VI201" in ok("plan", "jobs/move.yaml")
    ws.write("jobs/move.yaml", JOB)
    assert "Nothing to do." in ok("plan", "jobs/move.yaml", "--detailed-exitcode")
    with ws.store("b") as store:
        store.drop("kb2")
    assert run("drift").exit_code == 2


def test_a_rollback_is_stale_when_the_run_went_on_since_it_was_planned(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws.fill()
    crashed(monkeypatch, "verify_points", "before")
    planned = commands.plan_rollback(ws.context(), "move")
    crashed(monkeypatch, "set_serving", "recorded", "resume", "move")
    before = ws.world()
    with pytest.raises(Exception, match="stale"):
        commands.apply(ws.context(), planned)
    assert ws.world() == before
    ok(*ROLLBACK)
    assert ws.world("b") == {"b:aliases": {}}
    assert ws.serving() == {}


def test_somebody_elses_collection_is_not_dropped_after_a_crash_before_ours_was_made(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws.fill()
    crashed(monkeypatch, "create_collection", "before")
    ws.fill(20, store="b", name="kb2", vector="")
    before = ws.world()
    found = run(*ROLLBACK)
    assert found.exit_code == 1, found.output
    assert "VD102" in found.stderr
    assert ws.world() == before


def test_rollback_goes_nowhere_else_than_the_run_went(ws: Workspace) -> None:
    ws.fill()
    ok(*APPLY)
    ws.edit("vecrun.yaml", "./b", "./c")
    ws.fill(10, store="c", name="kb2", vector="")
    before = ws.world("c")
    found = run(*ROLLBACK)
    assert found.exit_code == 12, found.output
    assert "connection b points somewhere else" in found.stderr
    assert ws.world("c") == before
    assert run("verify", "move").exit_code == 12
    found = run("drift", "move")
    assert found.exit_code == 2
    assert "connection b points somewhere else" in found.stdout
    ws.edit("vecrun.yaml", "./c", "./b")
    ok(*ROLLBACK)


# Plan and apply -----------------------------------------------------------------------------------------------------


def test_a_saved_plan_without_steps_changes_nothing(ws: Workspace) -> None:
    ws.fill()
    ok(*APPLY)
    before = ws.state(), ws.world(), json.loads(ok("runs", "--json"))
    ok("plan", "jobs/move.yaml", "-o", "plans/again.json")
    assert "nothing to do" in ok("apply", "plans/again.json")
    assert (ws.state(), ws.world(), json.loads(ok("runs", "--json"))) == before
    ok(*ROLLBACK)
    before = ws.state(), ws.world(), json.loads(ok("runs", "--json"))
    ok("plan", "jobs/move.yaml", "-o", "plans/pinned.json")
    assert "nothing to do" in ok("apply", "plans/pinned.json")
    assert (ws.state(), ws.world(), json.loads(ok("runs", "--json"))) == before


ENVIRONMENTS = SETTINGS + "environments:\n  prod:\n    connections:\n      b: {type: files, path: ./prod}\n"


def test_environments_do_not_share_their_state(ws: Workspace) -> None:
    ws.write("vecrun.yaml", ENVIRONMENTS)
    ws.fill()
    ok(*APPLY)
    assert "create collection" in ok("plan", "jobs/move.yaml", "--env", "prod")
    ok("plan", "jobs/move.yaml", "--env", "prod", "-o", "plans/prod.json")
    found = run("apply", "plans/prod.json")
    assert found.exit_code == 12
    assert "--env prod" in found.stderr
    ok("apply", "plans/prod.json", "--env", "prod")
    before = ws.world("b")
    ok(*ROLLBACK, "--env", "prod")
    assert ws.world("b") == before
    assert ws.world("prod") == {"prod:aliases": {}}
    assert ws.serving() == {"kb-live": {"connection": "b", "collection": "kb2"}}
    assert "Nothing to do" in ok("plan", "jobs/move.yaml")


def test_the_plan_tells_a_moved_alias_as_drift_does(ws: Workspace) -> None:
    ws.fill()
    ok(*APPLY)
    ws.fill(3, store="b", name="other")
    with ws.store("b") as store:
        store.set_alias("kb-live", "other")
    assert run("drift").exit_code == 2
    found = run("plan", "jobs/move.yaml", "--detailed-exitcode")
    assert found.exit_code == 2
    assert "alias kb-live of b points to other, not kb2" in found.stdout


def test_an_alias_moved_while_the_run_was_paused_is_not_taken_away(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws.fill()
    ws.fill(3, store="b", name="other")
    crashed(monkeypatch, "copy_points", "after")
    with ws.store("b") as store:
        store.set_alias("kb-live", "other")
    found = run("resume", "move")
    assert found.exit_code == 1, found.output
    assert "moved by somebody else" in found.stderr
    assert ws.world("b")["b:aliases"] == {"kb-live": "other"}
    ok(*ROLLBACK)
    assert ws.world("b")["b:aliases"] == {"kb-live": "other"}


@pytest.mark.parametrize("name", ["plans/x.md", "plans/x.txt", "plans/x"])
def test_a_plan_is_saved_under_a_name_that_apply_takes(ws: Workspace, name: str) -> None:
    ws.fill()
    found = run("plan", "jobs/move.yaml", "-o", name)
    assert found.exit_code != 0
    assert ".json" in found.output
    assert not Path(name).exists()


# Nothing is dropped in silence --------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["sparse", "partitions"])
def test_an_existing_target_that_would_lose_something_is_refused(ws: Workspace, what: str) -> None:
    vectors = (VectorField(name="v", dimension=4, distance=Distance.DOT),)
    sparse = (SparseField(name="s"),)
    theirs: dict[str, Any] = {"vectors": vectors, "sparse": sparse, "partitions": ("p",)}
    theirs[what] = () if what == "sparse" else None
    ours = CollectionSchema(name="kb", id_kind=IdKind.INT, vectors=vectors, sparse=sparse, partitions=("p",))
    with ws.store("a") as store:
        store.create(ours)
        store.upsert("kb", worlds.points(ours, 20))
    with ws.store("b") as store:
        store.create(ours.model_copy(update={"name": "kb2"} | theirs))
    found = run(*APPLY)
    assert found.exit_code == 1, found.output
    assert "VX202" in found.stderr
    assert not ws.serving()


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("vectors: {v: x, w: x}", "x"),
        ("payload: {rename: {a: t, b: t}}", "t"),
        ("index: {nosuch: {type: hnsw}}", "nosuch"),
        ("where: [{field: a, op: in, value: acme}]", "a list"),
        ("where: [{field: a, op: in, value: 5}]", "a list"),
        ("where: [{field: a, op: gt}]", "value"),
    ],
)
def test_rules_that_contradict_themselves_are_refused(ws: Workspace, rule: str, words: str) -> None:
    vectors = tuple(VectorField(name=name, dimension=4, distance=Distance.DOT) for name in ("v", "w"))
    ours = CollectionSchema(name="kb", id_kind=IdKind.INT, vectors=vectors)
    with ws.store("a") as store:
        store.create(ours)
        store.upsert("kb", worlds.points(ours, ids=[1, 2], payloads=[{"a": 1, "b": 2}, {"a": 3, "b": 4}]))
    ws.write("jobs/move.yaml", JOB.replace("to: kb2", "to: kb2\n      " + rule))
    found = run("plan", "jobs/move.yaml")
    assert found.exit_code in (10, 14), found.output
    assert words in found.stderr


def test_a_filter_that_takes_nothing_does_not_switch_readers_to_nothing(ws: Workspace) -> None:
    ws.fill()
    ws.write("jobs/move.yaml", JOB.replace("to: kb2", "to: kb2\n      where: [{field: tennant, value: acme}]"))
    found = run(*APPLY)
    assert found.exit_code == 1, found.output
    assert "VL104" in found.stderr
    assert not ws.serving()
    ws.write(
        "jobs/move.yaml", Path("jobs/move.yaml").read_text() + "  accept: [{code: VL104, reason: it is to be empty}]\n"
    )
    ok(*APPLY)


@pytest.mark.parametrize("mode", ["count", "sample", "full"])
def test_two_points_that_become_one_are_found_with_a_filter_too(ws: Workspace, mode: str) -> None:
    ws.fill(ids=list(range(50)), payloads=[{"key": f"k{number % 49}", "on": True} for number in range(50)])
    rule = "to: kb2\n      where: [{field: on, value: true}]\n      ids: {from_field: key}"
    ws.write("jobs/move.yaml", JOB.replace("to: kb2", rule) + f"  verify: {{mode: {mode}}}\n")
    found = run(*APPLY)
    assert found.exit_code == 13, found.output
    assert not ws.serving()


def test_points_that_become_one_are_named_once(ws: Workspace) -> None:
    ws.fill(ids=list(range(500)), payloads=[{"key": f"k{number % 10}"} for number in range(500)])
    ws.write("jobs/move.yaml", JOB.replace("to: kb2", "to: kb2\n      ids: {from_field: key}"))
    found = run(*APPLY)
    assert found.exit_code == 13
    assert "'k3': 50 points of the source become this one\n" in found.stderr
    assert len(found.stderr) < 5000


def test_ids_of_another_kind_than_the_spec_says_are_found_in_the_plan(ws: Workspace) -> None:
    ws.fill(ids=[1, 2], payloads=[{"key": "one"}, {"key": "two"}])
    ws.write("jobs/move.yaml", JOB.replace("to: kb2", "to: kb2\n      ids: {from_field: key, from_kind: int}"))
    found = run("plan", "jobs/move.yaml")
    assert "VX103" in found.stdout
    assert "no int id" in found.stdout


def test_count_with_a_filter_counts(ws: Workspace) -> None:
    ws.fill(ids=list(range(50)), payloads=[{"on": number % 2 == 0} for number in range(50)])
    rule = "to: kb2\n      where: [{field: on, value: true}]"
    ws.write("jobs/move.yaml", JOB.replace("to: kb2", rule) + "  verify: {mode: count}\n")
    ok(*APPLY)
    assert "25 points each" in ok("verify", "move")
    with ws.store("b") as store:
        store.delete("kb2", [2])
    assert run("verify", "move").exit_code == 13


def test_the_source_is_not_deleted_with_points_that_came_since(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    ws.fill(ids=list(range(50)))
    ws.write("jobs/move.yaml", JOB + "  source_after: delete\n  accept: [{code: VD101, reason: it moves}]\n")
    crashed(monkeypatch, "drop_collection", "before")
    with ws.store("a") as store:
        store.upsert("kb", batch_of(ws.schemas["a/kb"], [1000]))
    found = run("resume", "move")
    assert found.exit_code == 1, found.output
    assert "51 points" in found.stderr
    assert 1000 in ws.points("a", "kb").ids  # type: ignore[union-attr]
    with ws.store("a") as store:
        store.delete("kb", [1000])
    ok("resume", "move")
    assert ws.points("a", "kb") is None


# The chunks table ---------------------------------------------------------------------------------------------------


@pytest.fixture
def chunks(ws: Workspace) -> Workspace:
    ws.write("vecrun.yaml", SETTINGS + "  app: {type: sql, url: 'sqlite:///app.db'}\n")
    ws.write(
        "jobs/move.yaml",
        JOB.replace("to: kb2", "to: kb2\n      ids: {mode: uuid5}") + "  documents: {connection: app, table: chunks}\n",
    )
    ws.fill(ids=list(range(10)))
    with sqlite3.connect("app.db") as database:
        database.execute("CREATE TABLE chunks (id INTEGER PRIMARY KEY, vector_id TEXT)")
        database.executemany("INSERT INTO chunks VALUES (?, ?)", [(number, str(number)) for number in range(10)])
    database.close()
    return ws


def rows() -> list[str]:
    with sqlite3.connect("app.db") as database:
        found = [row[0] for row in database.execute("SELECT vector_id FROM chunks ORDER BY id")]
    database.close()
    return found


def test_an_undo_table_of_a_forgotten_run_is_not_taken_for_ours(chunks: Workspace) -> None:
    ok(*APPLY)
    assert all(len(item) == 36 for item in rows())
    shutil.rmtree("state")
    shutil.rmtree("b")
    with sqlite3.connect("app.db") as database:  # the table was put back from a backup, the undo table stayed
        database.executemany("UPDATE chunks SET vector_id = ? WHERE id = ?", [(str(n), n) for n in range(10)])
    database.close()
    ok(*APPLY)
    assert all(len(item) == 36 for item in rows())
    ok(*ROLLBACK)
    assert rows() == [str(number) for number in range(10)]


@pytest.mark.parametrize("column", ["NUMERIC(10)", "DATETIME", "VARCHAR(20)"])
def test_a_column_that_cannot_hold_the_new_ids_is_found_in_the_plan(chunks: Workspace, column: str) -> None:
    with sqlite3.connect("app.db") as database:
        database.execute("DROP TABLE chunks")
        database.execute(f"CREATE TABLE chunks (id INTEGER PRIMARY KEY, vector_id {column})")
    database.close()
    found = run("plan", "jobs/move.yaml")
    assert "VX203" in found.output


# Records ------------------------------------------------------------------------------------------------------------


def test_two_jobs_that_end_at_once_keep_both_pointers(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    ws.write("vecrun.yaml", SETTINGS + "limits: {runs: 3, runs_per_source: 3}\n")
    ws.fill()
    plans = []
    for number in range(3):
        name = f"job{number}"
        text = JOB.replace("name: move", f"name: {name}").replace("kb2", f"kb2-{number}").replace("kb-live", name)
        plans.append(commands.plan(ws.context(), ws.write(f"jobs/{name}.yaml", text)))
    read = StateDirectory.serving

    def slowly(self: StateDirectory) -> Serving:
        found = read(self)
        time.sleep(0.2)
        return found

    monkeypatch.setattr(StateDirectory, "serving", slowly)
    threads = [threading.Thread(target=commands.apply, args=(ws.context(), plan)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ws.serving()) == ["job0", "job1", "job2"]


def test_a_new_ledger_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def open_it() -> None:
        try:
            Ledger(f"sqlite:///{tmp_path}/ledger.db").close()
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=open_it) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


@pytest.mark.parametrize("word", ["abcd1/efgh2@ijkl3", "p:q@r1234567", "50%off#?x=1", 'quo"te back'])
def test_any_password_stays_whole_in_a_url_and_is_not_shown(
    ws: Workspace, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECRUN_TEST_WORD", word)
    url = "postgresql://u:${env:VECRUN_TEST_WORD}@127.0.0.1:9/d"
    ws.write("vecrun.yaml", SETTINGS + f"  p: {{type: pgvector, url: '{url}'}}\n  s: {{type: sql, url: '{url}'}}\n")
    for more in ((), ("--json",)):
        found = run("connections", "test", "p", "s", *more)
        assert found.exit_code == 1
        assert "Connection refused" in found.output
        assert not [part for part in re.split(r"[^a-z0-9]", word) if len(part) > 3 and part in found.output]
    resolved = ws.context().settings.resolved("p")["url"]
    assert sa.make_url(resolved).password == word
