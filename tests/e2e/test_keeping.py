"""State documents, locks and what is kept too long, as an operator meets them (G7, G9, G10, O1, O2).
With the records in files and SQLite, and in PostgreSQL.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import Result

from runner.points import KeyRange
from runner.tables import failures, findings, id_map, log, marks, partitions, runs, steps, usage, vectors, workers
from tests.e2e.knowledge import Knowledge, Server
from tests.e2e.workspace import JOB, SETTINGS, Workspace, run

APPLY = ("apply", "jobs/move.yaml", "--auto-approve")
CHUNKS = JOB.replace("to: kb2", "to: kb2\n      ids: {mode: uuid5}") + "  documents: {connection: app, table: chunks}\n"


def ok(*args: str | Path) -> str:
    found = run(*args)
    assert found.exit_code == 0, found.output
    return found.stdout


def refused(found: Result, code: int, *words: str) -> str:
    assert found.exit_code == code, found.output
    for word in words:
        assert word in found.stderr, found.stderr
    return found.stderr


@pytest.fixture(params=["files", "postgresql"])
def kept(request: pytest.FixtureRequest, ws: Workspace) -> Workspace:
    """A workspace whose records are in files, or in PostgreSQL."""
    if request.param == "postgresql":
        settings(ws, database=request.getfixturevalue("pg_database"))
    ws.fill()
    return ws


def settings(ws: Workspace, *, app: bool = False, **state: str) -> None:
    """vecrun.yaml with these settings of the state, and a database for chunks."""
    text = SETTINGS + ("  app: {type: sql, url: 'sqlite:///app.db'}\n" if app else "")
    ws.write("vecrun.yaml", text + f"state: {json.dumps(state)}\n")


def state(job: str = "move") -> dict[str, Any]:
    return dict(json.loads(ok("state", "show", job)))


def count(ws: Workspace, table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
    with ws.context().ledger() as ledger, ledger.reading() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(table).where(*where)).scalar_one())


@pytest.fixture
def held(kept: Workspace) -> Iterator[Callable[..., None]]:
    """Takes leases for somebody else, who lives."""
    with kept.context().ledger() as ledger:
        taken = []

        def take(*names: str, run: str = "r-other", **shared: int) -> None:
            taken.append(ledger.acquire(list(names), run, 60, shared=shared))

        yield take
        for lease in taken:
            ledger.release(lease)


# State ----------------------------------------------------------------------------------------------------------------


def test_a_state_is_listed_shown_and_pulled_to_the_byte(kept: Workspace) -> None:
    assert "No job was applied yet." in ok("state", "list")
    ok(*APPLY)
    listed = ok("state", "list")
    assert re.search(r"^move +applied +1 +VectorMigration +r-", listed, re.MULTILINE)
    assert "kb-live > b/kb2" in listed
    document = json.loads(ok("state", "list", "--json"))
    assert [item["job"] for item in document["items"]] == ["move"]
    assert document["serving"]["pointers"] == {"kb-live": {"connection": "b", "collection": "kb2"}}
    assert state("serving")["pointers"] == document["serving"]["pointers"]
    pulled = ok("state", "pull", "move")
    assert pulled == ok("state", "pull", "move")
    assert json.loads(pulled) == state()
    ok("state", "pull", "move", "-o", "move.json")
    assert Path("move.json").read_bytes() == pulled.encode()
    if (kept.root / "state" / "move.json").exists():
        assert (kept.root / "state" / "move.json").read_bytes() == pulled.encode()
    ok("rollback", "move", "--auto-approve")
    assert ok("state", "pull", "move", "--serial", "1") == pulled
    assert [item["serial"] for item in json.loads(ok("state", "history", "move", "--json"))["items"]] == [2, 1]
    assert ok("state", "history", "move").splitlines()[1].startswith("2 ")
    refused(run("state", "pull", "move", "--serial", "7"), 10, "No state", "vecrun state history move")
    for verb in ("show", "history", "pull"):
        refused(run("state", verb, "nosuch"), 10, "No state", "vecrun state list")


def test_an_edited_state_is_pushed_and_says_what_changed(kept: Workspace) -> None:
    ok(*APPLY)
    ok("state", "pull", "move", "-o", "move.json")
    assert "Nothing to change" in ok("state", "push", "move.json")
    edited = json.loads(Path("move.json").read_text()) | {"pinned": "sha256:x"}
    Path("move.json").write_text(json.dumps(edited))
    said = ok("state", "push", "move.json")
    assert "serial 2 now (before: 1)" in said
    assert '~ pinned: nothing → "sha256:x"' in said
    assert (state()["serial"], state()["pinned"]) == (2, "sha256:x")
    refused(run("state", "push", "move.json"), 12, "moved since it was pulled", "serial 2", "--force")
    assert state()["serial"] == 2
    edited |= {"pinned": None, "lineage": "another"}
    Path("move.json").write_text(json.dumps(edited))
    refused(run("state", "push", "move.json"), 12, "lineage")
    pushed = json.loads(ok("state", "push", "move.json", "--force", "--json"))
    assert (pushed["before"], pushed["serial"]) == (2, 3)
    assert state()["pinned"] is None
    ok("rollback", "move", "--auto-approve")


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"job": "../outside"}, 1, "names no job"),
        ({"job": "serving"}, 1, "names no job"),
        ({"aplied": []}, 1, "aplied"),
        ({"status": "x"}, 1, "status"),
        ({"serial": "one"}, 1, "serial"),
        ({"applied": []}, 1, "contradicts itself"),
        ({"forgotten": {"r-x": "2026-01-01"}}, 1, "r-x was not applied"),
        ({"format_version": "2.0"}, 1, "newer format"),
    ],
)
def test_a_document_that_cannot_be_is_not_pushed(ws: Workspace, change: dict[str, Any], code: int, words: str) -> None:
    ws.fill()
    ok(*APPLY)
    before = ws.tree("state")
    Path("pushed.json").write_text(json.dumps(state() | change))
    refused(run("state", "push", "pushed.json"), code, words)
    refused(run("state", "push", "pushed.json", "--force"), code, words)
    after = ws.tree("state")
    assert {name: kept for name, kept in after.items() if ".json" in name} == {
        name: kept for name, kept in before.items() if ".json" in name
    }
    assert not (ws.root / "outside.json").exists()


def test_a_file_of_one_job_is_not_pushed_over_another(ws: Workspace) -> None:
    ws.fill()
    ok(*APPLY)
    Path("move.json").write_text(json.dumps(state() | {"job": "other"}))
    refused(run("state", "push", "move.json"), 1, "of another job", "content is of other")
    refused(run("state", "push", "nosuch.json"), 1, "cannot be read", "nosuch.json")
    Path("half.json").write_text(ok("state", "pull", "move")[:100])
    refused(run("state", "push", "half.json"), 1, "not whole JSON", "half.json")


def test_a_state_is_not_written_while_a_run_is_at_work(kept: Workspace, held: Callable[..., None]) -> None:
    ok(*APPLY)
    ok("state", "pull", "move", "-o", "move.json")
    before = ok("state", "pull", "move")
    held("job:move")
    Path("move.json").write_text(json.dumps(state() | {"pinned": "x"}))
    refused(run("state", "push", "move.json", "--force"), 11, "Somebody else is at work", "run r-other")
    refused(run("state", "rm", "move", "--auto-approve"), 11, "run r-other")
    assert ok("state", "pull", "move") == before


def test_a_state_moves_from_files_to_postgresql(ws: Workspace, pg_database: str) -> None:
    ws.fill()
    ok(*APPLY)
    for name in ("move", "serving"):
        ok("state", "pull", name, "-o", f"moved/{name}.json")
    settings(ws, database=pg_database)
    assert "No job was applied yet." in ok("state", "list")
    said = ok("state", "push", "moved/move.json")
    assert "there was none" in said
    assert re.search(r"in vecrun of \S+/\S+, job:move", said)
    assert "://" not in said
    no_run = refused(run("status", "move"), 10, "No run", "is not in this ledger")
    assert "never applied" not in no_run
    assert ok("state", "pull", "move") == Path("moved/move.json").read_text()
    # the run is not known here: what can be said is said, and what cannot is refused with the reason
    planned = run("plan", "jobs/move.yaml", "--detailed-exitcode")
    assert "VI203" in planned.stdout
    assert "is not in this ledger" in planned.stdout
    drifted = run("drift")
    assert "serving pointer kb-live is not set" in drifted.stdout  # they are a document of their own
    assert "is not in this ledger" in drifted.stderr
    assert "serving document has state serial" in ok("state", "push", "moved/serving.json")
    assert ok("state", "pull", "serving") == Path("moved/serving.json").read_text()
    assert "kb-live" not in run("drift").stdout
    refused(run("rollback", "move", "--auto-approve"), 10, "cannot be rolled back from here", "pushed from elsewhere")
    refused(run("verify", "move"), 10, "cannot be verified from here", "pushed from elsewhere")
    with ws.store("b") as store:
        store.delete("kb2", list(next(iter(store.scan("kb2", KeyRange()))).ids[:1]))
    assert "b/kb2 (target) held 50 points and holds 49 now" in run("drift").stdout


def test_the_serving_pointers_are_pushed(kept: Workspace, held: Callable[..., None]) -> None:
    ok(*APPLY)
    ok("state", "pull", "serving", "-o", "pointers.json")
    assert "Nothing to change: the serving document" in ok("state", "push", "pointers.json")
    document = json.loads(Path("pointers.json").read_text())
    document["pointers"]["other"] = {"connection": "a", "collection": "kb"}
    Path("pointers.json").write_text(json.dumps(document))
    held("serving")
    refused(run("state", "push", "pointers.json"), 11, "serving is held by run r-other")
    ok("lock", "release", "serving", "--if-id", str(json.loads(ok("lock", "show", "serving", "--json"))["id"]))
    said = ok("state", "push", "pointers.json")
    assert "The serving document has state serial 2 now (before: 1)" in said
    assert '~ other: nothing → "a/kb"' in said
    assert state("serving")["pointers"] == document["pointers"]
    refused(run("state", "push", "pointers.json"), 12, "moved since it was pulled", "serial 2")
    Path("move.json").write_text(Path("pointers.json").read_text())
    refused(run("state", "push", "move.json", "--force"), 1, "of another job", "content is of serving")
    Path("pointers.json").write_text(json.dumps(document | {"pointers": {"other": "a/kb"}}))
    refused(run("state", "push", "pointers.json", "--force"), 1, "pointers.other")
    ok("rollback", "move", "--auto-approve")
    assert list(state("serving")["pointers"]) == ["other"]


def test_a_pointer_says_which_model_embeds_its_queries(kb: Knowledge) -> None:
    kb.job(model="wide", from_model="old")
    ok(*CHANGE)
    assert "  live > kb/docs_wide, queries embedded with wide" in ok("state", "list")
    assert state("serving")["models"] == {"live": "wide"}
    assert json.loads(ok("state", "list", "--json"))["serving"]["models"] == {"live": "wide"}
    ok("state", "pull", "serving", "-o", "pointers.json")
    document = json.loads(Path("pointers.json").read_text())
    assert document["format_version"] == "1.3"
    Path("pointers.json").write_text(json.dumps(document | {"models": {"live": "old"}}))
    assert '~ live: "kb/docs_wide, wide" → "kb/docs_wide, old"' in ok("state", "push", "pointers.json")
    assert state("serving")["models"] == {"live": "old"}
    # a document of a vecrun from before models is taken, too
    older = {name: value for name, value in state("serving").items() if name != "models"} | {"format_version": "1.1"}
    Path("pointers.json").write_text(json.dumps(older))
    ok("state", "push", "pointers.json")
    assert "  live > kb/docs_wide\n" in ok("state", "list")


def test_a_run_above_one_of_elsewhere_is_rolled_back(ws: Workspace, pg_database: str) -> None:
    ws.fill()
    ok(*APPLY)
    before = state()
    ok("state", "pull", "move", "-o", "moved.json")
    settings(ws, database=pg_database)
    ok("state", "push", "moved.json")
    ws.write("jobs/move.yaml", JOB.replace("kb2", "kb3"))
    ok(*APPLY)
    ok("rollback", "move", "--auto-approve")
    after = state()
    assert (after["status"], after["applied"]) == ("applied", before["applied"])
    assert after["spec_digest"] == before["spec_digest"]
    assert after["pinned"] is not None
    assert json.loads(ok("runs", "--json"))["items"][0]["status"] == "completed"
    refused(run("rollback", "move", "--auto-approve"), 10, "cannot be rolled back from here")


def test_a_state_that_is_removed_can_be_brought_back(kept: Workspace) -> None:
    ok(*APPLY)
    world, before = kept.world(), state()
    refused(run("state", "rm", "move"), 1, "Nobody is here to agree", "--auto-approve")
    assert state() == before
    said = ok("state", "rm", "move", "--auto-approve")
    assert f"run {before['applied'][0]['run']}" in said
    assert "kb-live goes on serving b/kb2" in said
    assert kept.world() == world
    refused(run("state", "show", "move"), 10, "No state")
    refused(run("rollback", "move", "--auto-approve"), 10, "Nothing to roll back")
    planned = run("plan", "jobs/move.yaml")
    assert "b/kb2" in planned.stdout  # as a job that was never applied
    assert "Nothing to do" not in planned.stdout
    ok("state", "pull", "move", "--serial", "1", "-o", "again.json")
    ok("state", "push", "again.json")
    assert state() == before | {"serial": state()["serial"]}
    ok("rollback", "move", "--auto-approve")
    assert kept.world("b") == {"b:aliases": {}}


def test_a_state_is_not_removed_under_an_unfinished_run(kept: Workspace) -> None:
    ok(*APPLY)
    died = kept.process("rollback", "move", "--auto-approve", env={"VECRUN_CRASH_AT": "switch_alias:after"})
    assert died.returncode == -9
    refused(run("state", "rm", "move", "--auto-approve"), 1, "is not finished", "vecrun resume move")
    ok("resume", "move")
    assert state()["status"] == "rolled_back"


# Locks ----------------------------------------------------------------------------------------------------------------


def test_locks_are_listed_shown_and_released(kept: Workspace, held: Callable[..., None]) -> None:
    assert "No lock is held." in ok("lock", "list")
    refused(run("lock", "show", "job:move"), 10, "No such lock", "vecrun lock list")
    ok(*APPLY)
    newest = json.loads(ok("runs", "--json"))["items"][0]["run"]
    held("job:move", run=newest, slot=2)
    listed = ok("lock", "list")
    assert re.search(r"^job:move +2 +r-", listed, re.MULTILINE)
    assert "slot#1" in listed
    assert "one of several places" in listed
    shown = ok("lock", "show", "job:move")
    assert f"run {newest} of job move, completed" in shown
    assert re.search(r"expires +in (59|60) s", shown)
    assert "vecrun lock release 'job:move' --if-id 2" in shown
    assert "one of several places" in ok("lock", "show", "slot#1")
    found = json.loads(ok("lock", "show", "job:move", "--json"))
    renewed, expires = (datetime.fromisoformat(found[key]) for key in ("renewed", "expires"))
    assert expires - renewed == timedelta(seconds=60)
    assert abs(datetime.now(UTC) - renewed) < timedelta(seconds=30)
    assert 55 < found["seconds"] <= 60
    assert (found["job"], found["status"], found["gone"], found["expired"]) == ("move", "completed", False, False)
    assert set(found) >= {"owner", "host", "pid", "machine", "run", "since", "id"}
    refused(run("lock", "release", "job:move", "--if-id", "1"), 10, "No such lock")
    ok("lock", "release", "job:move", "--if-id", "2")
    refused(run("lock", "show", "job:move"), 10, "No such lock")


def test_the_lock_of_a_process_that_died_says_so(kept: Workspace) -> None:
    died = kept.process(*APPLY, env={"VECRUN_CRASH_AT": "copy_points:after_checkpoint"})
    assert died.returncode == -9
    shown = ok("lock", "show", "job:move")
    assert "of job move, running" in shown
    assert "its process is gone: the next run takes it at once" in shown
    ok("resume", "move")


@pytest.mark.parametrize(
    ("names", "shared", "words"),
    [
        (["job:move"], {}, "job:move is held, an apply would be refused now: run r-other"),
        (["collection:b/kb2"], {}, "collection:b/kb2 is held"),
        ([], {"collection:a/kb": 1}, "collection:a/kb is held"),
        (["collection:a/kb"], {}, "collection:a/kb is held"),
        ([], {"slot": 2}, ""),  # one of two
        (["collection:b/other"], {}, ""),
    ],
)
def test_a_plan_takes_no_lock_and_shows_who_has_it(
    kept: Workspace, held: Callable[..., None], names: list[str], shared: dict[str, int], words: str
) -> None:
    free = json.loads(ok("plan", "jobs/move.yaml", "--json"))["plan"]
    held(*names, **shared)
    planned = run("plan", "jobs/move.yaml", "--json")
    assert planned.exit_code == 0
    plan = json.loads(planned.stdout)["plan"]
    assert {key: plan[key] for key in plan if key not in ("created", "plan_digest", "steps")} == {
        key: free[key] for key in free if key not in ("created", "plan_digest", "steps")
    }
    dry = run("apply", "jobs/move.yaml", "--dry-run")
    assert dry.exit_code == 0, dry.output
    for found in (planned, dry):
        assert (f"Note: {words}" in found.stderr) if words else ("Note:" not in found.stderr), found.stderr
    if words:
        assert run(*APPLY).exit_code == 11


def test_a_plan_says_when_all_slots_are_taken(kept: Workspace, held: Callable[..., None]) -> None:
    held(run="r-one", slot=2)
    held(run="r-two", slot=2)
    planned = run("plan", "jobs/move.yaml")
    assert re.search(r"Note: all slots .*: run r-one .*; run r-two ", planned.stderr)


# What is kept too long ------------------------------------------------------------------------------------------------


def with_chunks(ws: Workspace, **state: str) -> None:
    """The job rewrites ids in a table; its runs expire after a second."""
    settings(ws, app=True, **({"retention": "1s"} | state))
    ws.write("jobs/move.yaml", CHUNKS)
    with closing(sqlite3.connect("app.db")) as database:
        database.execute("CREATE TABLE chunks (id INTEGER PRIMARY KEY, vector_id TEXT)")
        database.execute("CREATE TABLE vecrun_undo_0123456789 (mine TEXT)")  # the user's, whatever its name
        database.executemany("INSERT INTO chunks VALUES (?, ?)", [(n, str(n)) for n in range(-5, 60)])
        database.commit()


def tables() -> set[str]:
    with closing(sqlite3.connect("app.db")) as database:
        return {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


@pytest.fixture(params=["files", "postgresql"])
def expired(request: pytest.FixtureRequest, ws: Workspace) -> Workspace:
    """An applied job whose run has just expired, with an undo table and an id mapping."""
    place = {"database": request.getfixturevalue("pg_database")} if request.param == "postgresql" else {}
    with_chunks(ws, **place)
    ws.fill(ids=list(range(50)))
    ok(*APPLY)
    time.sleep(1.1)
    return ws


def test_a_run_that_expired_is_rolled_back_until_gc(expired: Workspace) -> None:
    shown = ok("rollback", "move", "--dry-run")
    assert "VI202" in shown
    assert "still there, until the next vecrun gc" in shown
    ok("rollback", "move", "--auto-approve")
    with closing(sqlite3.connect("app.db")) as database:
        assert [row[0] for row in database.execute("SELECT vector_id FROM chunks WHERE id = 7")] == ["7"]


def test_gc_shows_first_and_removes_then(expired: Workspace) -> None:
    [name] = {row["run"] for row in json.loads(ok("runs", "--json"))["items"]}
    [undo] = tables() - {"chunks", "vecrun_undo_0123456789"}
    world, serving, before = expired.world(), state("serving"), state()
    history = ok("runs")
    shown = ok("gc", "--dry-run")
    for words in (
        f"run {name} of job move expired on 20", f"Gone for good: these can then not be rolled back any more: run {name} of job move",
        f"undo table app/{undo}: 50 rows", "id mapping: 50 rows", "partitions: ", "log details: ",
    ):  # fmt: skip
        assert words in shown, shown
    refused(run("gc"), 1, "Nobody is here to agree", "--auto-approve")
    assert json.loads(run("gc", "--json").stdout)["summary"] == "Nobody is here to agree to removing this"
    dry = json.loads(ok("gc", "--dry-run", "--json"))
    assert dry["removed"] is False
    assert [item["run"] for item in dry["garbage"]["runs"]] == [name]
    assert (undo in tables(), state(), count(expired, id_map)) == (True, before, 50)

    assert "Removed: 1 undo tables" in ok("gc", "--auto-approve")

    assert tables() == {"chunks", "vecrun_undo_0123456789"}
    for table in (id_map, partitions, findings):
        assert count(expired, table) == 0
    assert count(expired, log, log.c.details.is_not(None)) == 0
    assert (count(expired, runs), count(expired, steps) > 3, count(expired, log) > 3) == (1, True, True)
    assert (expired.world(), state("serving"), ok("runs")) == (world, serving, history)
    after = state()
    assert list(after["forgotten"]) == [name]
    assert after == before | {"serial": before["serial"] + 1, "forgotten": after["forgotten"]}
    assert "points    50\n" in ok("status", "move")
    refused(
        run("rollback", "move", "--auto-approve"), 12, "cannot be rolled back any more", f"run {name} expired on 20"
    )
    assert "Nothing to remove." in ok("gc")
    assert "Nothing to remove." in ok("gc", "--auto-approve")
    ok("logs", "move")
    ok("drift")
    ok("verify", "move")


def test_gc_leaves_what_did_not_expire(ws: Workspace) -> None:
    with_chunks(ws, retention="1d")
    ws.fill(ids=list(range(50)))
    ok(*APPLY)
    before = tables()
    assert "Nothing to remove." in ok("gc", "--auto-approve")
    assert tables() == before
    assert count(ws, id_map) == 50
    ok("rollback", "move", "--auto-approve")
    said = ok("gc", "--auto-approve")
    assert "was rolled back on 20" in said
    assert (count(ws, id_map), count(ws, partitions)) == (0, 0)
    assert "Nothing to remove." in ok("gc")


def test_gc_leaves_a_job_with_an_unfinished_run(expired: Workspace) -> None:
    died = expired.process("rollback", "move", "--auto-approve", env={"VECRUN_CRASH_AT": "switch_alias:after"})
    assert died.returncode == -9
    before = tables()
    said = ok("gc", "--auto-approve")
    assert "nothing of the job is touched" in said
    assert tables() == before
    assert count(expired, id_map) == 50
    ok("resume", "move")
    with closing(sqlite3.connect("app.db")) as database:
        assert [row[0] for row in database.execute("SELECT vector_id FROM chunks WHERE id = 7")] == ["7"]


def test_gc_leaves_a_job_that_somebody_holds(expired: Workspace) -> None:
    with expired.context().ledger() as ledger:
        lease = ledger.acquire(["job:move"], "r-other", 60)
        before = tables()
        said = ok("gc", "--auto-approve")
        assert "left: move: job:move is held by run r-other" in said
        assert tables() == before
        ledger.release(lease)
    ok("gc", "--auto-approve")
    assert tables() < before


def test_a_run_below_one_that_can_be_rolled_back_is_live_again_afterwards(ws: Workspace) -> None:
    with_chunks(ws)
    ws.write("jobs/move.yaml", JOB)
    ws.fill(ids=list(range(50)))
    for number in (2, 3):  # both expire
        ws.write("jobs/move.yaml", JOB.replace("kb2", f"kb{number}"))
        ok(*APPLY)
    time.sleep(1.1)
    settings(ws, app=True, retention="30d")
    ws.write("jobs/move.yaml", JOB.replace("kb2", "kb4"))
    ok(*APPLY)
    first, second, third = [item["run"] for item in state()["applied"]]
    said = ok("gc", "--auto-approve")
    assert first in said
    assert second in said
    assert third not in said
    assert [item["run"] for item in state()["applied"]] == [second, third]
    ok("rollback", "move", "--auto-approve")
    after = state()
    assert (after["status"], [item["run"] for item in after["applied"]]) == ("applied", [second])
    assert after["live"]["kb-live"]["collection"] == "kb3"
    refused(run("rollback", "move", "--auto-approve"), 12, f"run {second} expired")


@pytest.mark.parametrize("at", ["state", "tables", "rows", "rows:2", "rows:3", "history"])
def test_gc_that_is_killed_is_done_again_to_the_same_end(expired: Workspace, at: str) -> None:
    step, _, number = at.partition(":")
    for turn in range(13):
        Path("edit.json").write_text(json.dumps(state() | {"pinned": f"p{turn}"}))
        ok("state", "push", "edit.json")
    time.sleep(1.1)
    crash = f"gc:{step}" + (f":{number}" if number else "")
    died = expired.process("gc", "--auto-approve", env={"VECRUN_CRASH_AT": crash})
    assert died.returncode == -9, died.stderr
    if at != "history":  # that is the last step
        assert "Nothing to remove." not in ok("gc", "--dry-run")
    refused(run("rollback", "move", "--auto-approve"), 12, "cannot be rolled back any more")
    ok("gc", "--auto-approve")
    assert tables() == {"chunks", "vecrun_undo_0123456789"}
    assert [count(expired, table) for table in (id_map, partitions, findings)] == [0, 0, 0]
    assert len(json.loads(ok("state", "history", "move", "--json"))["items"]) == 10
    assert "Nothing to remove." in ok("gc")
    ok("drift")


def test_gc_keeps_the_newest_of_the_history(expired: Workspace) -> None:
    for turn in range(13):
        Path("edit.json").write_text(json.dumps(state() | {"pinned": f"p{turn}"}))
        ok("state", "push", "edit.json")
    time.sleep(1.1)
    assert "5 old serials, 1 to 5" in ok("gc", "--dry-run")  # gc itself writes one more
    ok("gc", "--auto-approve")
    serials = [item["serial"] for item in json.loads(ok("state", "history", "move", "--json"))["items"]]
    assert serials == list(range(15, 5, -1))
    assert "Nothing to remove." in ok("gc")
    refused(run("state", "pull", "move", "--serial", "2"), 10, "No state")


def test_gc_forgets_workers_that_are_gone(kept: Workspace) -> None:
    with kept.context().ledger() as ledger:
        for name in ("here", "gone"):
            ledger.beat(name, 1, 0)
        with ledger.writing() as connection:
            long_ago = ledger.clock(connection) - 120
            connection.execute(workers.update().where(workers.c.worker == "gone").values(seen=long_ago))
    assert "workers that are gone\n  - 1: gone" in ok("gc", "--auto-approve")
    assert count(kept, workers) == 1


def test_gc_says_what_it_cannot_look_at(expired: Workspace) -> None:
    Path("app.db").rename("elsewhere.db")
    Path("app.db").write_bytes(b"garbage" * 1000)
    said = ok("gc", "--auto-approve")
    assert "is not looked for" in said
    Path("elsewhere.db").replace("app.db")
    said = ok("gc", "--auto-approve")
    assert "undo table app/vecrun_undo_" in said
    assert tables() == {"chunks", "vecrun_undo_0123456789"}
    assert "Nothing to remove." in ok("gc")


# What is kept of embedding --------------------------------------------------------------------------------------------

CHANGE = ("apply", "jobs/change.yaml", "--auto-approve")


@pytest.fixture(params=["files", "postgresql"])
def kb(request: pytest.FixtureRequest, ws: Workspace) -> Knowledge:
    """A knowledge base and models on this machine; the records in files, or in PostgreSQL. Runs expire after a second."""
    place = {"database": request.getfixturevalue("pg_database")} if request.param == "postgresql" else {}
    models = {
        "same": {"provider": "hash", "model": "same", "dimension": 8},
        "wide": {"provider": "hash", "model": "wide", "dimension": 16, "text_tokens": 20},
    }
    made = Knowledge(ws, Server("http://127.0.0.1:9"), models=models)
    made.configure(state={"retention": "1s"} | place)
    made.fill(40)
    return made


def collections(kb: Knowledge) -> set[str]:
    with kb.store() as store:
        return set(store.collections())


def nothing_left() -> None:
    assert "Nothing to remove." in ok("gc")


def test_gc_drops_saved_points_and_old_versions(kb: Knowledge) -> None:
    kb.job(model="same", strategy="replace")
    ok(*CHANGE)
    ok("verify", "change")
    time.sleep(1.1)
    [kept_points] = collections(kb) - {"docs"}
    [undo] = tables() - {"chunks", "knowledge_bases"}
    points, versions, info = kb.world()["docs:points"], kb.versions(), kb.info()
    shown = ok("gc", "--dry-run")
    assert "Gone for good: these can then not be rolled back any more: run r-" in shown
    assert f"- collection kb/{kept_points}: 40 saved points" in shown
    assert f"- undo table app/{undo}: 40 rows" in shown
    assert (collections(kb), undo in tables()) == ({"docs", kept_points}, True)
    [item] = json.loads(ok("gc", "--dry-run", "--json"))["garbage"]["runs"]
    assert item["collections"] == {f"kb/{kept_points}": 40}
    said = ok("gc", "--auto-approve")
    assert "Removed: 1 undo tables, 1 collections of saved points" in said
    assert (collections(kb), tables()) == ({"docs"}, {"chunks", "knowledge_bases"})
    assert (kb.world()["docs:points"], kb.versions(), kb.info()) == (points, versions, info)
    assert count(kb.ws, usage) == 1, "what a run has cost is history"
    assert count(kb.ws, vectors) == 40
    nothing_left()
    refused(run("rollback", "change", "--auto-approve"), 12, "cannot be rolled back any more")
    ok("verify", "change")


def test_gc_keeps_what_a_rollback_of_the_next_run_needs(kb: Knowledge) -> None:
    """Two runs in place: the first has expired, the second has not. Both have saved points and old versions."""
    kb.job(model="same", strategy="incremental", retention="1s")
    ok(*CHANGE)
    time.sleep(1.1)
    [first] = collections(kb) - {"docs"}
    before = kb.world()
    kb.say({"p003": "another text", "p007": "one more"})
    before_second = kb.world()
    kb.job(model="same", strategy="incremental", retention="30d")
    ok(*CHANGE)
    [second] = collections(kb) - {"docs", first}
    said = ok("gc", "--auto-approve")
    assert f"collection kb/{first}: 40 saved points" in said
    assert second not in said
    assert collections(kb) == {"docs", second}
    nothing_left()
    ok("rollback", "change", "--auto-approve")
    after = kb.world()
    assert after["docs:points"] == before_second["docs:points"]
    assert after["dump"]["chunks"] == before_second["dump"]["chunks"]
    assert collections(kb) == {"docs"}
    assert before["docs:points"] != after["docs:points"]


def test_gc_never_drops_a_name_that_a_later_run_uses_again(kb: Knowledge) -> None:
    """A run that was rolled back and the next one may have the same names for what they save."""
    kb.job(model="same", strategy="replace", retention="30d")
    before = kb.world()
    ok(*CHANGE)
    [name] = collections(kb) - {"docs"}
    ok("rollback", "change", "--auto-approve")
    ok(*CHANGE, "--unpin")
    [later] = collections(kb) - {"docs"}
    # the plan of the first run names what the second one has saved
    with kb.ws.context().ledger() as ledger, ledger.writing() as connection:
        newest, _back, oldest = (row["run"] for row in json.loads(ok("runs", "--json"))["items"])
        text = connection.execute(sa.select(runs.c.plan).where(runs.c.run == newest)).scalar_one()
        assert (later == name) or later in text
        connection.execute(runs.update().where(runs.c.run == oldest).values(plan=text))
    said = ok("gc", "--auto-approve")
    assert "was rolled back on 20" in said
    assert "saved points\n" not in said
    assert later in collections(kb)
    ok("rollback", "change", "--auto-approve")
    assert kb.world() == before


@pytest.mark.parametrize("at", ["state", "tables", "collections", "rows", "rows:2", "marks", "vectors"])
def test_gc_of_embedding_that_is_killed_is_done_again(kb: Knowledge, at: str) -> None:
    kb.configure(vectors={"keep": "1s"})
    kb.job(model="same", strategy="replace")
    ok(*CHANGE)
    with kb.ws.context().ledger() as ledger, ledger.writing() as connection:
        plan = connection.execute(sa.select(runs.c.run)).scalar_one()
        connection.execute(marks.insert().values(place="kb/gone", vector="", item='"x"', model="m", text="t", run=plan))
    time.sleep(1.1)
    died = kb.ws.process("gc", "--auto-approve", env={"VECRUN_CRASH_AT": f"gc:{at}"})
    assert died.returncode == -9, died.stderr
    refused(run("rollback", "change", "--auto-approve"), 12, "cannot be rolled back any more")
    ok("gc", "--auto-approve")
    assert (collections(kb), tables()) == ({"docs"}, {"chunks", "knowledge_bases"})
    assert [count(kb.ws, table) for table in (partitions, vectors)] == [0, 0]
    assert count(kb.ws, marks) == 40
    nothing_left()
    assert kb.versions()["p003"] == "hash:same:8"


def test_gc_leaves_saved_points_where_the_connection_points_elsewhere(kb: Knowledge) -> None:
    kb.job(model="same", strategy="replace")
    ok(*CHANGE)
    time.sleep(1.1)
    names = collections(kb)
    kb.connection = {"type": "files", "path": "./elsewhere"}
    kb.configure()
    said = ok("gc", "--auto-approve")
    assert "is not looked for: the connection points somewhere else now" in said
    kb.connection = {"type": "files", "path": "./kb"}
    kb.configure()
    assert collections(kb) == names
    assert "saved points" in ok("gc", "--auto-approve")
    assert collections(kb) == {"docs"}
    assert count(kb.ws, marks) == 40


def test_gc_forgets_old_vectors_but_not_under_a_run_that_embeds(kb: Knowledge) -> None:
    kb.job(model="wide", retention="30d")
    died = kb.ws.process(*CHANGE, env={"VECRUN_CRASH_AT": "copy_points:after_checkpoint"})
    assert died.returncode == -9
    kb.configure(vectors={"keep": "1s"})
    time.sleep(1.1)
    before = count(kb.ws, vectors)
    assert before > 0
    said = ok("gc", "--auto-approve")
    assert re.search(r"left: kept vectors: run r-\S+ is not finished", said)
    assert count(kb.ws, vectors) == before
    ok("resume", "change")
    assert json.loads(ok("status", "change", "--json"))["used"]["texts"] == 40
    time.sleep(1.1)
    shown = ok("gc", "--dry-run")
    assert "kept vectors\n  - 40 from before 20" in shown
    assert "2.6 kB: these texts are paid for again" in shown
    assert count(kb.ws, vectors) == 40
    assert "40 kept vectors" in ok("gc", "--auto-approve")
    assert count(kb.ws, vectors) == 0
    nothing_left()
    ok("rollback", "change", "--auto-approve")


def test_vectors_that_are_kept_for_a_run_only_stay_while_another_needs_them(kb: Knowledge) -> None:
    kb.configure(vectors={"keep": "0s"})
    kb.job(model="wide")
    died = kb.ws.process(*CHANGE, env={"VECRUN_CRASH_AT": "copy_points:after_checkpoint"})
    assert died.returncode == -9
    before = count(kb.ws, vectors)
    assert before > 0
    kb.fill({"x": "one text"}, name="other")
    kb.job("second", collection="other", model="wide", documents=None, knowledge_base=None, cutover=None)
    ok("apply", "jobs/second.yaml", "--auto-approve")
    assert count(kb.ws, vectors) == before + 1
    ok("resume", "change")
    assert json.loads(ok("status", "change", "--json"))["used"]["texts"] == 40
    assert count(kb.ws, vectors) == 0


def test_gc_keeps_failed_items_as_long_as_they_can_be_tried_again(kb: Knowledge) -> None:
    kb.say({"p003": "much " * 30, "p005": "more " * 30})
    kb.job(model="wide", failures={"allow": 5})
    found = run(*CHANGE)
    assert found.exit_code == 3, found.output
    time.sleep(1.1)
    said = ok("gc", "--auto-approve")
    assert "failed items" not in said
    nothing_left()
    assert count(kb.ws, failures) == 2
    assert "p003" in ok("failures", "change")
    kb.say({"p003": "short by now"})
    found = run("retry-failed", "change", "--auto-approve")
    assert found.exit_code == 3, found.output
    assert (count(kb.ws, failures), "p003" in kb.points("docs_wide")) == (1, True)


def test_gc_removes_failed_items_of_what_was_rolled_back(kb: Knowledge) -> None:
    kb.say({"p003": "much " * 30})
    kb.job(model="wide", failures={"allow": 5})
    assert run(*CHANGE).exit_code == 3
    ok("rollback", "change", "--auto-approve")
    time.sleep(1.1)
    assert "- failed items: 1 rows of the ledger" in ok("gc", "--auto-approve")
    assert count(kb.ws, failures) == 0
    nothing_left()


def test_gc_forgets_marks_of_collections_that_are_gone(kb: Knowledge) -> None:
    kb.job(model="wide", retention="30d")
    ok(*CHANGE)
    with kb.store() as store:
        store.drop("docs_wide")
    assert count(kb.ws, marks) == 40
    assert "kb/docs_wide is gone\n  - 40 marks" in ok("gc", "--dry-run")
    assert count(kb.ws, marks) == 40
    ok("gc", "--auto-approve")
    assert count(kb.ws, marks) == 0
    nothing_left()


def test_a_ledger_gets_smaller_when_most_of_it_is_gone(ws: Workspace) -> None:
    ws.write("vecrun.yaml", SETTINGS + "vectors: {keep: 1d}\n")
    with ws.context().ledger() as ledger, ledger.writing() as connection:
        for start in range(0, 6000, 1000):
            rows = [
                {
                    "model": "m",
                    "text": f"{start + n:032}",
                    "vector": bytes(4096),
                    "written": "2026-01-01T00:00:00.000+00:00",
                }
                for n in range(1000)
            ]
            connection.execute(vectors.insert(), rows)
    ledger_file = ws.root / "state" / "ledger.db"
    assert ledger_file.stat().st_size > 20e6
    assert "24.6 MB: these texts are paid for again" in ok("gc", "--dry-run")
    said = ok("gc", "--auto-approve")
    assert re.search(r"The ledger's file is 2\d\.\d MB smaller", said), said
    assert ledger_file.stat().st_size < 1e6
    nothing_left()


@pytest.mark.usefixtures("kept")
def test_a_state_is_not_lost_by_a_move_to_its_own_name() -> None:
    assert run(*APPLY).exit_code == 0
    before = ok("state", "pull", "move")
    refused(run("state", "mv", "move", "move"), 1, "has this name already")
    refused(run("state", "mv", "move", "Move"), 1, "only in upper and lower case")
    assert ok("state", "pull", "move") == before
    assert [item["job"] for item in json.loads(ok("state", "list", "--json"))["items"]] == ["move"]


def test_an_environment_has_its_own_retention(ws: Workspace) -> None:
    ws.fill()
    ws.write("vecrun.yaml", SETTINGS + "state: {retention: 30d}\nenvironments: {prod: {state: {retention: 90d}}}\n")
    plans = [json.loads(ok("plan", "jobs/move.yaml", "--json", *more))["plan"] for more in ((), ("--env", "prod"))]
    assert [plan["retention"] for plan in plans] == ["30d", "90d"]
