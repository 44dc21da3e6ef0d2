"""The command line as its users have it: help, JSON, colour, exit codes, plan and apply, pause and resume, the way back
(G3-G6, G8-G10, A5, A6, A7, A9, O1; secrets of G1; stores imported on use: DESIGN 2).
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from runner import commands
from runner.cli import cli
from runner.state import FORMAT_VERSION
from tests import worlds
from tests.e2e.workspace import JOB, SETTINGS, VECRUN, Workspace, batch_of, environment, run

CLIENTS = ("pyarrow", "psycopg", "pymilvus", "milvus_lite", "qdrant_client", "weaviate", "grpc", "dramatiq")


def leaves(group: click.Group = cli, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its words."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from leaves(command, (*above, name))
        else:
            yield (*above, name), command


LEAVES = dict(leaves())


# Help and start -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_command_has_help_for_itself_and_each_option(words: tuple[str, ...]) -> None:
    found = run(*words, "--help")
    assert found.exit_code == 0
    assert f"Usage: cli {' '.join(words)}" in found.stdout
    assert LEAVES[words].help
    for option in LEAVES[words].params:
        if isinstance(option, click.Option) and option.name != "form":
            assert option.help, f"{option.name} has no help"


def test_help_lists_the_commands_and_the_exit_codes() -> None:
    text = " ".join(run("--help").stdout.split())
    for words in LEAVES:
        assert words[0] in text
    for code in ("0 done", "1 error", "2 changes pending", "3 finished with failed items", "10 not found",
                 "11 lock held", "12 plan stale", "13 verification failed", "14 validation failed", "130 interrupted"):  # fmt: skip
        assert code in text
    assert "vecrun" in run("--version").stdout


@pytest.mark.parametrize("args", [("--help",), ("validate",), ("plan", "--help"), ("status",)], ids=" ".join)
def test_no_store_client_is_imported_before_a_connection_is_opened(ws: Workspace, args: tuple[str, ...]) -> None:
    code = (
        "import sys\n"
        "from runner.cli import main\n"
        f"sys.argv = ['vecrun', *{list(args)!r}]\n"
        "try:\n    main()\nexcept SystemExit as exc:\n    assert not exc.code, exc.code\n"
        f"found = sorted({set(CLIENTS)!r} & set(sys.modules))\n"
        "assert not found, found\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment({}), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# Output -------------------------------------------------------------------------------------------------------------


def test_every_command_has_json() -> None:
    for words, command in LEAVES.items():
        assert "as_json" in {item.name for item in command.params}, " ".join(words)


def document(*args: str | Path, code: int = 0) -> dict[str, Any]:
    """What a command prints with --json: one document on stdout."""
    found = run(*args, "--json")
    assert found.exit_code == code, found.output
    lines = found.stdout.splitlines()
    assert len(lines) == 1, found.stdout
    made: dict[str, Any] = json.loads(lines[0])
    # a state document has a version of its own
    assert made["format_version"] == (FORMAT_VERSION if args[:2] == ("state", "show") else "1.0")
    assert made["type"]
    return made


def test_json_of_every_command_is_one_document(ws: Workspace, tmp_path: Path) -> None:
    ws.fill()
    assert document("init", tmp_path / "new")["type"] == "workspace"
    assert document("validate")["problems"] == []
    plan = document("plan", "jobs/move.yaml", "-o", "plans/move.json")["plan"]
    assert plan["steps"][0]["type"] == "create_collection"
    assert plan == json.loads(Path("plans/move.json").read_text())
    assert document("show", "plans/move.json")["plan"] == plan
    assert document("status")["items"] == []
    assert document("runs")["items"] == []
    assert document("drift")["jobs"] == {}
    outcome = document("apply", "plans/move.json")
    assert (outcome["status"], outcome["purpose"], outcome["dry"]) == ("completed", "apply", False)
    assert document("apply", "jobs/move.yaml", "--auto-approve")["plan"]["steps"] == []
    assert document("show", outcome["run"])["plan"] == plan
    status = document("status", "move")
    assert (status["done"], status["total"], status["run"]["status"]) == (50, 50, "completed")
    assert [item["run"] for item in document("runs", "move")["items"]] == [outcome["run"]]
    assert [line["message"] for line in document("logs", "move")["items"]][-1] == "completed"
    assert document("verify", "move")["equal"] is True
    assert document("drift")["jobs"] == {"move": []}
    connections = document("connections", "test")["items"]
    assert connections[0]["health"]["rights"] == ["read", "write"]
    assert connections[-1]["name"] == "(ledger)"
    assert connections[-1]["health"]["version"].startswith("sqlite 3")
    assert document("state", "list")["items"][0]["status"] == "applied"
    assert document("state", "show", "move")["live"] == {"kb-live": {"connection": "b", "collection": "kb2"}}
    assert document("lock", "list")["items"] == []
    assert "VectorMigration" in document("schema")["kinds"]
    assert document("schema", "Workspace")["schema"]["title"] == "vecrun Workspace"
    assert document("rollback", "move", "--dry-run")["plan"]["purpose"] == "rollback"
    assert document("rollback", "move", "--auto-approve")["purpose"] == "rollback"
    # and of what is refused
    assert document("plan", "jobs/no.yaml", code=10)["error"] == "NotFound"
    assert document("apply", "plans/move.json", code=12)["error"] == "PlanRefused"
    assert document("resume", "move", code=10)["hint"] == "vecrun status move"
    assert document("pause", "nobody", code=10)["summary"] == "No such job"
    assert document("cancel", "nobody", code=10)["detail"]
    assert document("lock", "release", "job:move", "--if-id", "1", code=10)["summary"] == "No such lock"
    assert document("schema", "Nosuch", code=10)["hint"]
    assert document("init", tmp_path / "new", code=1)["detail"]


def test_results_go_to_stdout_and_progress_to_stderr(ws: Workspace) -> None:
    ws.fill()
    found = run("apply", "jobs/move.yaml", "--auto-approve")
    assert "apply completed" in found.stdout
    assert "1/6 + create collection b/kb2" not in found.stdout
    assert "1/6 + create collection b/kb2" in found.stderr
    assert "6/6 > set serving pointer kb-live" in found.stderr
    assert run("status", "move").stderr == ""


def on_terminal(ws: Workspace, *args: str, answer: str = "", **env: str) -> tuple[int, str]:
    """A process whose standard streams are one terminal; (exit code, everything it showed)."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*VECRUN, *args], cwd=ws.root, stdin=theirs, stdout=theirs, stderr=theirs,
        env=environment({"TERM": "xterm", "COLUMNS": "200"} | env),
    )  # fmt: skip
    os.close(theirs)
    shown, answered = b"", False
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        shown += part
        if not part:
            break
        if answer and not answered and b"Only yes is accepted" in shown:
            os.write(ours, answer.encode())
            answered = True
    os.close(ours)
    return process.wait(30), shown.decode()


def test_colour_follows_the_terminal_and_no_color(ws: Workspace) -> None:
    ws.fill()
    assert "\x1b[" in on_terminal(ws, "plan", "jobs/move.yaml")[1]
    assert "\x1b[" not in on_terminal(ws, "plan", "jobs/move.yaml", NO_COLOR="1")[1]
    assert "\x1b[" not in run("plan", "jobs/move.yaml").stdout  # no terminal
    code, shown = on_terminal(ws, "plan", "jobs/no.yaml", NO_COLOR="1")
    assert code == 10
    assert "Error: No such file" in shown
    assert "\x1b[" not in shown


# Plan and apply -----------------------------------------------------------------------------------------------------


def test_apply_asks_on_a_terminal_and_only_yes_is_taken(ws: Workspace) -> None:
    ws.fill()
    code, shown = on_terminal(ws, "apply", "jobs/move.yaml", answer="y\n")
    assert code == 1
    assert "Not applied" in shown
    assert ws.nothing_happened()
    code, shown = on_terminal(ws, "apply", "jobs/move.yaml", answer="yes\n")
    assert code == 0, shown
    assert "apply completed" in shown
    assert ws.serving()


def test_apply_refuses_without_a_terminal(ws: Workspace) -> None:
    ws.fill()
    for args in (("apply", "jobs/move.yaml"), ("apply", "jobs/move.yaml", "--json")):
        found = ws.process(*args)
        assert found.returncode == 1
        assert "Nobody is here to approve the plan" in found.stdout + found.stderr
        assert "--auto-approve" in found.stdout + found.stderr
    assert ws.nothing_happened()
    assert run("apply", "jobs/move.yaml", "--auto-approve").exit_code == 0
    assert ws.process("rollback", "move").returncode == 1
    assert ws.serving()


def test_plan_writes_nothing_but_the_files_it_was_asked_for(ws: Workspace) -> None:
    ws.fill()
    run("runs")  # the ledger is there
    before = ws.tree()
    found = run("plan", "jobs/move.yaml", "-o", "plans/move.json", "--detailed-exitcode")
    assert found.exit_code == 2
    assert set(ws.tree()) - set(before) == {"plans/move.json", "plans/move.md"}
    assert {name: ws.tree()[name] for name in before} == before
    markdown = Path("plans/move.md").read_text()
    assert markdown.startswith("## vecrun plan: `move`")
    assert run("plan", "jobs/move.yaml", "--format", "markdown").stdout.split("\n")[0] == markdown.split("\n")[0]


def test_dry_run_writes_nothing_and_reads_everything(ws: Workspace) -> None:
    ws.fill(ids=list(range(4000)))
    run("runs")
    before = ws.tree()
    found = run("apply", "jobs/move.yaml", "--dry-run")
    assert found.exit_code == 0, found.output
    assert "dry run read and transformed 4,000 points and wrote nothing" in found.stdout
    assert ws.tree() == before
    run("plan", "jobs/move.yaml", "-o", "plans/move.json")
    assert run("apply", "plans/move.json", "--dry-run").exit_code == 0
    assert ws.nothing_happened()
    ws.poison(3999)  # the very last one
    assert run("plan", "jobs/move.yaml").exit_code == 0
    before = ws.tree()
    found = run("apply", "jobs/move.yaml", "--dry-run")
    assert found.exit_code == 1
    assert "NaN" in found.stderr
    assert "3999" in found.stderr
    assert ws.tree() == before


def test_a_saved_plan_is_applied_exactly_and_once(ws: Workspace) -> None:
    source = ws.fill()
    run("plan", "jobs/move.yaml", "-o", "plans/move.json")
    plan = json.loads(Path("plans/move.json").read_text())
    # what the job says by now does not matter: the plan is what was reviewed
    ws.write("jobs/move.yaml", JOB.replace("to: kb2", "to: kb3"))
    found = run("apply", "plans/move.json")
    assert found.exit_code == 0, found.output
    assert set(ws.world("b")) == {"b:aliases", "b/kb2", "b/kb2:points"}
    target = ws.points("b", "kb2")
    assert target is not None
    assert sorted(target.ids) == sorted(source.ids)  # type: ignore[type-var]
    status = json.loads(run("status", "move", "--json").stdout)
    assert [item["type"] for item in status["steps"]] == [item["type"] for item in plan["steps"]]
    assert status["run"]["plan_digest"] == plan["plan_digest"]
    again = run("apply", "plans/move.json")
    assert again.exit_code == 12
    assert "This plan was applied before" in again.stderr
    assert status["run"]["run"] in again.stderr


def test_a_second_apply_does_nothing(ws: Workspace) -> None:
    ws.fill()
    assert run("apply", "jobs/move.yaml", "--auto-approve").exit_code == 0
    before = ws.tree("a", "b"), ws.state(), json.loads(run("runs", "--json").stdout)
    found = run("apply", "jobs/move.yaml", "--auto-approve")
    assert found.exit_code == 0
    assert "Nothing to do." in found.stdout
    assert (ws.tree("a", "b"), ws.state(), json.loads(run("runs", "--json").stdout)) == before
    assert run("plan", "jobs/move.yaml", "--detailed-exitcode").exit_code == 0
    # comments and the order of keys are no change
    ws.write("jobs/move.yaml", "# moved\n" + JOB.replace("  source: a\n  target: b\n", "  target: b\n  source: a\n"))
    assert "Nothing to do." in run("plan", "jobs/move.yaml", "--detailed-exitcode").stdout


def test_drift_is_shown_with_exit_code_2(ws: Workspace) -> None:
    ws.fill()
    assert run("drift").exit_code == 0
    run("apply", "jobs/move.yaml", "--auto-approve")
    assert run("drift").exit_code == 0
    with ws.store("b") as store:
        store.delete("kb2", ws.points("b", "kb2").ids[:3])  # type: ignore[union-attr]
    for args in (("drift",), ("drift", "move"), ("drift", "jobs/move.yaml")):
        found = run(*args)
        assert found.exit_code == 2
        assert "b/kb2 (target) held 50 points and holds 47 now" in found.stdout
    shown = run("plan", "jobs/move.yaml", "--detailed-exitcode")
    assert shown.exit_code == 2
    assert "held 50 points and holds 47 now" in shown.stdout
    assert "the world moved since it was applied" in shown.stdout


def test_an_alias_that_somebody_moved_is_drift(ws: Workspace) -> None:
    ws.fill()
    run("apply", "jobs/move.yaml", "--auto-approve")
    ws.fill(3, store="b", name="other")
    with ws.store("b") as store:
        store.set_alias("kb-live", "other")
    found = run("drift")
    assert found.exit_code == 2, found.output
    assert "kb-live" in found.stdout
    assert "other" in found.stdout


def test_verify_on_demand_names_what_differs_with_exit_code_13(ws: Workspace) -> None:
    ws.fill(ids=list(range(50)))
    run("apply", "jobs/move.yaml", "--auto-approve")
    found = run("verify", "move")
    assert found.exit_code == 0
    assert "50 points compared, 50 equal" in found.stdout
    with ws.store("b") as store:
        schema = store.inspect("kb2")
        assert schema is not None
        store.upsert("kb2", batch_of(schema, [7], [{"text": "somebody was here"}], seed=9))
    found = run("verify", "move", "--mode", "full")
    assert found.exit_code == 13
    assert "1 of 50 compared points differ" in found.stdout
    assert "\n    7: " in found.stdout
    assert run("verify", "move", "--mode", "count").exit_code == 0
    assert run("verify", "jobs/move.yaml", "--mode", "sample", "--sample", "50", "--json").exit_code == 13


# The way back -------------------------------------------------------------------------------------------------------


def test_rollback_is_shown_first_and_brings_the_world_back(ws: Workspace) -> None:
    ws.fill()
    ws.fill(4, store="b", name="old")
    with ws.store("b") as store:
        store.set_alias("kb-live", "old")
    before = ws.world()
    assert run("apply", "jobs/move.yaml", "--auto-approve").exit_code == 0
    after = ws.world()
    shown = run("rollback", "move", "--dry-run")
    assert shown.exit_code == 0
    for line in ("point alias kb-live of b to old (before: kb2)", "drop collection b/kb2 with 50 points"):
        assert line in shown.stdout
    assert ws.world() == after
    found = run("rollback", "move", "--auto-approve")
    assert found.exit_code == 0, found.output
    assert ws.world() == before
    assert ws.serving() == {}
    rows = json.loads(run("runs", "--json").stdout)["items"]
    assert [(row["purpose"], row["status"]) for row in rows] == [("rollback", "completed"), ("apply", "rolled_back")]
    assert run("rollback", "move", "--auto-approve").exit_code == 10


def test_what_was_rolled_back_stays_so_until_unpinned_or_changed(ws: Workspace) -> None:
    ws.fill()
    run("apply", "jobs/move.yaml", "--auto-approve")
    run("rollback", "move", "--auto-approve")
    for args in (("plan", "jobs/move.yaml", "--detailed-exitcode"), ("apply", "jobs/move.yaml", "--auto-approve")):
        found = run(*args)
        assert found.exit_code == 0
        assert "VI201" in found.stdout
        assert "--unpin" in found.stdout
        assert "Nothing to do." in found.stdout
    assert ws.points("b", "kb2") is None
    assert run("plan", "jobs/move.yaml", "--unpin", "--detailed-exitcode").exit_code == 2
    assert run("apply", "jobs/move.yaml", "--unpin", "--auto-approve").exit_code == 0
    assert ws.points("b", "kb2") is not None
    run("rollback", "move", "--auto-approve")
    ws.write("jobs/move.yaml", JOB.replace("to: kb2", "to: kb3"))
    assert run("apply", "jobs/move.yaml", "--auto-approve").exit_code == 0


def test_rollback_is_refused_when_the_source_is_gone(ws: Workspace) -> None:
    ws.fill()
    run("apply", "jobs/move.yaml", "--auto-approve")
    with ws.store("a") as store:
        store.drop("kb")
    before = ws.world(), ws.state(), ws.serving()
    found = run("rollback", "move", "--auto-approve")
    assert found.exit_code == 1
    assert "VX301" in found.stderr
    assert "the source is gone" in found.stderr
    assert (ws.world(), ws.state(), ws.serving()) == before


def test_rollback_is_refused_when_new_points_stand_in_the_target(ws: Workspace) -> None:
    ws.fill()
    run("apply", "jobs/move.yaml", "--auto-approve")
    with ws.store("b") as store:
        schema = store.inspect("kb2")
        assert schema is not None
        store.upsert("kb2", batch_of(schema, [10**6, 10**6 + 1]))
    before = ws.world()
    found = run("rollback", "move", "--auto-approve")
    assert found.exit_code == 1
    assert "VD102" in found.stderr
    assert "2 points of the target did not come from this run, and stand nowhere else" in found.stderr
    assert "--discard-new-points" in found.output
    assert ws.world() == before
    assert run("rollback", "move", "--auto-approve", "--discard-new-points").exit_code == 0
    assert ws.points("b", "kb2") is None


# While a run is at work ---------------------------------------------------------------------------------------------

COUNT = 2000


@pytest.fixture
def slow(ws: Workspace) -> Workspace:
    """A workspace whose job takes a few seconds: many small batches."""
    ws.fill(ids=list(range(COUNT)))
    ws.write("jobs/move.yaml", JOB + "  batch_size: 5\n")
    return ws


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def at_work(ws: Workspace) -> bool:
    """Whether the run has copied some points by now, and not all."""
    rows = commands.runs(ws.context())
    return bool(rows) and rows[0]["status"] == "running" and commands.status(ws.context(), "move").done > 0


def complete(ws: Workspace) -> None:
    """The target holds exactly the source."""
    source, target = ws.points("a", "kb"), ws.points("b", "kb2")
    assert source is not None
    assert target is not None
    source.vectors = {"": source.vectors["v"]}
    with ws.store("b") as store:
        schema = store.inspect("kb2")
        assert schema is not None
        assert worlds.same(store, schema, source, target) == []


def test_pause_status_and_resume_from_other_processes(slow: Workspace) -> None:
    with slow.start("apply", "jobs/move.yaml", "--auto-approve") as applying:
        until(lambda: at_work(slow))
        shown = run("status", "move")
        assert "apply is running" in shown.stdout
        assert "time left about" in shown.stdout
        assert "apply of job move" in run("logs", "move").stdout
        assert "job:move" in run("lock", "list").stdout
        for words in (("plan",), ("apply", "--dry-run")):
            busy = run(*words, "jobs/move.yaml")
            assert busy.exit_code == 11
            assert "A run of this job is at work" in busy.stderr
            assert f"(pid {applying.pid} on " in busy.stderr
            for way in ("vecrun status move --watch", "vecrun pause move", "vecrun cancel move"):
                assert way in busy.stderr
            assert "rollback" not in busy.stderr
        second = run("resume", "move")
        assert second.exit_code == 11
        assert "Somebody else is at work" in second.stderr
        assert "vecrun lock list" in second.stderr
        asked = run("pause", "move")
        assert asked.exit_code == 0
        assert "vecrun resume move" in asked.stdout
        out, err = applying.communicate(timeout=30)
    assert applying.returncode == 130, err
    assert "Paused on request" in err
    assert "vecrun resume move" in err
    assert out == "" or "completed" not in out
    status = json.loads(run("status", "move", "--json").stdout)
    assert status["run"]["status"] == "paused"
    assert 0 < status["done"] < COUNT
    assert json.loads(run("lock", "list", "--json").stdout)["items"] == []
    assert slow.serving() == {}
    refused = run("plan", "jobs/move.yaml")
    assert refused.exit_code == 1
    assert "A run of this job is not finished" in refused.stderr
    found = run("apply", "jobs/move.yaml", "--auto-approve")  # goes on with it
    assert found.exit_code == 0, found.output
    assert f"Going on with run {status['run']['run']}" in found.stderr
    assert len(json.loads(run("runs", "--json").stdout)["items"]) == 1
    complete(slow)


def test_cancel_leaves_the_source_and_says_what_is_left_behind(slow: Workspace) -> None:
    before = slow.world("a")
    with slow.start("apply", "jobs/move.yaml", "--auto-approve") as applying:
        until(lambda: at_work(slow))
        asked = run("cancel", "move")
        assert "a/kb is untouched" in asked.stdout
        assert "b/kb2" in asked.stdout
        assert "vecrun rollback move" in asked.stdout
        applying.communicate(timeout=30)
    assert applying.returncode == 130
    assert json.loads(run("status", "move", "--json").stdout)["run"]["status"] == "cancelled"
    assert slow.world("a") == before
    assert run("rollback", "move", "--auto-approve").exit_code == 0
    assert slow.world("b") == {"b:aliases": {}}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_run_that_goes_on(slow: Workspace, number: signal.Signals) -> None:
    with slow.start("apply", "jobs/move.yaml", "--auto-approve") as applying:
        until(lambda: at_work(slow))
        applying.send_signal(number)
        _, err = applying.communicate(timeout=30)
    assert applying.returncode == 130, err
    assert "Stopping after this batch" in err
    assert "checkpoints are written" in err
    assert "vecrun resume move" in err
    assert "Traceback" not in err
    status = json.loads(run("status", "move", "--json").stdout)
    assert status["run"]["status"] == "paused"
    found = run("resume", "move")
    assert found.exit_code == 0, found.output
    complete(slow)


def test_a_second_interrupt_stops_at_once_and_nothing_is_lost(slow: Workspace) -> None:
    with slow.start("apply", "jobs/move.yaml", "--auto-approve") as applying:
        until(lambda: at_work(slow))
        applying.send_signal(signal.SIGINT)
        applying.send_signal(signal.SIGINT)
        applying.wait(30)
        applying.communicate()
    assert applying.returncode == 130
    assert run("resume", "move").exit_code == 0  # its lock is taken over at once: the process is dead
    complete(slow)


def test_an_operator_frees_a_lock_and_the_old_holder_is_fenced_off(slow: Workspace) -> None:
    with slow.start("apply", "jobs/move.yaml", "--auto-approve") as applying:
        until(lambda: at_work(slow))
        rows = {row["name"]: row for row in json.loads(run("lock", "list", "--json").stdout)["items"]}
        assert run("lock", "release", "job:move", "--if-id", str(rows["job:move"]["id"] + 1)).exit_code == 10
        assert run("lock", "release", "job:move", "--if-id", str(rows["job:move"]["id"])).exit_code == 0
        _, err = applying.communicate(timeout=30)
    assert applying.returncode == 11, err
    assert "lost its lock" in err
    assert slow.serving() == {}


# Secrets ------------------------------------------------------------------------------------------------------------


def test_secrets_of_environment_and_files_appear_nowhere(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECRUN_TEST_PLACE", "sesame-place")
    monkeypatch.setenv("VECRUN_TEST_SQL", "sesame-sql")
    ws.write("secret.txt", "sesame-file\n")
    ws.write(
        "vecrun.yaml",
        SETTINGS.replace("path: ./b", "path: './b/${env:VECRUN_TEST_PLACE}'")
        + "  app: {type: sql, url: 'sqlite:///${env:VECRUN_TEST_SQL}.db'}\n"
        + "  q: {type: qdrant, url: 'http://127.0.0.1:9', api_key: '${file:./secret.txt}', timeout: 1}\n",
    )
    ws.write(
        "jobs/move.yaml",
        JOB.replace("to: kb2", "to: kb2\n      ids: {mode: uuid5}") + "  documents: {connection: app, table: chunks}\n",
    )
    ws.fill(ids=list(range(50)))
    import sqlite3

    with sqlite3.connect("sesame-sql.db") as database:
        database.execute("CREATE TABLE chunks (id INTEGER PRIMARY KEY, vector_id TEXT)")
        database.executemany("INSERT INTO chunks VALUES (?, ?)", [(n, str(n)) for n in range(50)])
    database.close()
    said = ""
    for args in (
        ("validate",), ("plan", "jobs/move.yaml", "-o", "plans/move.json"), ("show", "plans/move.json", "--json"),
        ("connections", "test"), ("--debug", "connections", "test", "--json"), ("apply", "plans/move.json"),
        ("status", "move"), ("status", "move", "--json"), ("logs", "move", "--json"), ("state", "show", "move"),
        ("runs", "--json"), ("verify", "move"), ("drift",), ("rollback", "move", "--auto-approve"),
    ):  # fmt: skip
        found = run(*args)
        said += found.output
        assert found.exit_code == (1 if "connections" in args else 0), found.output
    # and when something is wrong with the places themselves
    (ws.root / "sesame-sql.db").write_bytes(b"garbage" * 500)
    broken = run("plan", "jobs/move.yaml", "--unpin")
    assert broken.exit_code == 1
    (ws.root / "b" / "sesame-place" / "aliases.json").write_text("{")
    damaged = run("--debug", "plan", "jobs/move.yaml", "--unpin", "--json")
    assert damaged.exit_code == 1
    said += broken.output + damaged.output
    assert "sesame" not in said, [line for line in said.splitlines() if "sesame" in line]
    for folder in ("plans", "state"):
        for path in (ws.root / folder).rglob("*"):
            assert path.is_dir() or b"sesame" not in path.read_bytes(), path


def test_an_internal_error_is_told_without_a_traceback_unless_asked(ws: Workspace) -> None:
    ws.fill()
    ws.write("state", "a file where the folder should be")
    command = ("apply", "jobs/move.yaml", "--auto-approve")
    plain, debug = ws.process(*command), ws.process("--debug", *command)
    assert plain.returncode == debug.returncode == 1
    assert "state" in plain.stderr
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr
