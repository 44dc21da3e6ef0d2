"""Runs that workers carry out (issue 3): who may write, what happens when a process stops, and control from outside.

Real PostgreSQL and Redis; what works, or is watched, is a process of its own. `make faults-distributed` kills at random; here
each case is brought about on purpose.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runner.cli.workers import CHILD
from runner.points import KeyRange
from runner.stores import config_model, open_store
from tests import servers, warm, worlds
from tests.e2e.workspace import JOB, VECRUN, Workspace, batch_of, environment, points_of, run
from tests.faults.ledger_watch import LedgerWatch

#: Batches so small that a run takes seconds: there is time to do something to it.
POINTS, BATCH = 4000, 20
#: For tests where nothing has to be done to it meanwhile.
quick = pytest.mark.parametrize("team", [600], indirect=True)
APPLY = ("apply", "jobs/move.yaml", "--auto-approve")
SETTINGS = """\
apiVersion: vecrun/v1
kind: Workspace
connections:
  a: {{type: files, path: ./a}}
  b: {{type: files, path: ./b}}
state: {{database: "{database}"}}
broker: {{url: "{redis}", namespace: {name}}}
limits: {{lease_seconds: 5, retry_delay: 0.1, workers: 2}}
"""


@pytest.fixture(scope="module")
def redis() -> Iterator[servers.Redis]:
    with servers.redis_server() as server:
        yield server


@dataclass
class Team:
    """A workspace, its ledger seen from outside, and the processes that were started in it."""

    ws: Workspace
    ledger: LedgerWatch
    processes: contextlib.ExitStack

    def start(self, *args: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> subprocess.Popen[str]:
        """`vecrun ARGS`, killed at the end of the test if it still lives. Its output goes to a file: `.said(process)`."""
        return self._start([*VECRUN, *args], env or {}, cwd)

    def worker(self, *, silent: float = 2.5, cwd: Path | None = None, **env: Any) -> subprocess.Popen[str]:
        """One worker process with one thread; up, and known to the ledger."""
        command = [sys.executable, "-m", "tests.e2e.one_worker", "worker", "-t", "1"]
        started = self._start(command, {CHILD: "1", "VECRUN_TEST_SILENT": str(silent)} | env, cwd)
        known = "select count(*) from workers where pid = %s"
        self.until(lambda: self.has_tables() and self.ledger.query(known, started.pid)[0][0] == 1, of=started)
        return started

    def _start(self, command: list[str], env: dict[str, str], cwd: Path | None) -> subprocess.Popen[str]:
        folder = self.ws.root.parent / "said"
        folder.mkdir(exist_ok=True)
        number = len(list(folder.iterdir()))
        with (folder / f"{number}.out").open("w") as out, (folder / f"{number}.err").open("w") as err:
            process = warm.Popen(
                command, cwd=cwd or self.ws.root, text=True, stdout=out, stderr=err, stdin=subprocess.DEVNULL,
                env=environment(env),
            )  # fmt: skip
        process.number = number  # type: ignore[attr-defined]
        self.processes.callback(process.wait)
        self.processes.callback(process.kill)
        return process

    def said(self, process: subprocess.Popen[str]) -> str:
        """What it has written so far, to both streams."""
        folder, number = self.ws.root.parent / "said", process.number  # type: ignore[attr-defined]
        return (folder / f"{number}.out").read_text() + (folder / f"{number}.err").read_text()

    def has_tables(self) -> bool:
        return bool(self.ledger.query("select to_regclass('vecrun.workers') is not null")[0][0])

    def until(
        self, condition: Callable[[], Any], seconds: float = 25, of: subprocess.Popen[str] | None = None
    ) -> None:  # fmt: skip
        deadline = time.monotonic() + seconds
        while not condition():
            assert of is None or of.poll() is None, self.said(of)
            assert time.monotonic() < deadline, f"not within {seconds} s\n" + (self.said(of) if of else "")
            time.sleep(0.03)

    def ends(self, process: subprocess.Popen[str], status: int, seconds: float = 25) -> str:
        """Wait for its end; what it said."""
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running: {self.said(process)}")
        assert process.returncode == status, self.said(process)
        return self.said(process)

    def status(self, job: str = "move") -> str:
        if not self.has_tables():
            return ""
        rows = self.ledger.query("select status from runs where job = %s order by created desc limit 1", job)
        return str(rows[0][0]) if rows else ""

    def copied(self) -> int:
        """Points that are known to be durable."""
        if not self.has_tables():
            return 0
        return int(self.ledger.query("select coalesce(sum(done), 0) from partitions where step = 1")[0][0])

    def rows(self) -> Any:
        """Everything a process that lost its right must not change."""
        return [
            self.ledger.query(f"select to_jsonb(t) from {table} t order by 1")
            for table in ("runs", "steps", "partitions", "state_documents")
        ]

    def holder(self) -> int | None:
        """The process that holds the run's lease."""
        query = "select pid from leases where name = 'job:move' and run is not null"
        rows = self.ledger.query(query) if self.has_tables() else []
        return rows[0][0] if rows else None

    def at_work(self, pid: int) -> bool:
        query = """select count(*) from partitions p join workers w on w.worker = p.worker
            where p.status = 'running' and p.step = 1 and w.pid = %s"""
        return bool(self.ledger.query(query, pid)[0][0])

    def equal(self, source: str = "kb", target: str = "kb2") -> bool:
        """Whether the target holds what the source holds: ids, vectors, payloads."""
        a, b = self.ws.points("a", source), self.ws.points("b", target)
        assert a is not None
        assert b is not None
        return len(b) == len(a) and points_of(a) == points_of(b)


@pytest.fixture
def team(request: pytest.FixtureRequest, pg_url: str, redis: servers.Redis, ws: Workspace) -> Iterator[Team]:
    name = f"team_{uuid.uuid4().hex[:10]}"
    servers.sql(pg_url, f"CREATE DATABASE {name}")
    database = servers.database(pg_url, name)
    ws.write("vecrun.yaml", SETTINGS.format(database=database, redis=redis.url, name=name))
    ws.write("jobs/move.yaml", JOB.replace("  collections:", f"  batch_size: {BATCH}\n  collections:"))
    ws.fill(getattr(request, "param", POINTS), vector="")
    ledger = LedgerWatch(database)
    with contextlib.ExitStack() as processes:
        processes.callback(lambda: servers.sql(pg_url, f"DROP DATABASE {name} WITH (FORCE)"))
        processes.callback(ledger.close)
        yield Team(ws, ledger, processes)


def another_job(team: Team, name: str, source: str, target: str) -> None:
    text = team.ws.job.read_text().replace("name: move", f"name: {name}").replace("kb-live", f"{name}-live")
    text = text.replace("from: kb", f"from: {source}").replace("to: kb2", f"to: {target}")
    team.ws.write(f"jobs/{name}.yaml", text)


# Who may write --------------------------------------------------------------------------------------------------------


@quick
def test_two_applies_at_once(team: Team) -> None:
    """The second is refused before it writes anything, and names the holder (O1)."""
    run("plan", "jobs/move.yaml", "-o", "plans/move.json")
    both = [team.start("apply", "plans/move.json") for _ in range(2)]
    team.until(lambda: any(process.poll() is not None for process in both))
    first, second = both if both[0].poll() is None else reversed(both)
    said = team.ends(second, 11)
    assert re.search(rf"held by run r-\S+ of \S+ \(pid {first.pid}\) since", said), said
    assert "vecrun lock list" in said
    team.until(lambda: team.ledger.query("select count(*) from partitions")[0][0] > 0, of=first)  # now it waits
    assert team.ledger.query("select count(*) from runs")[0][0] == 1
    before = team.rows()
    third = run(*APPLY)  # planned by itself, while the first is at work
    assert third.exit_code == 11, third.stderr
    assert f"(pid {first.pid})" in third.stderr
    assert team.rows() == before  # no worker lives: nobody else has written
    locks = json.loads(run("lock", "list", "--json").stdout)["items"]
    assert {item["pid"] for item in locks} == {first.pid}
    team.worker()
    team.ends(first, 0)
    assert team.equal()


def test_a_stopped_coordinator_cannot_write(team: Team) -> None:
    """SIGSTOP beyond its lease: a worker takes the run over and finishes it. SIGCONT: nothing is written any more (O1)."""
    team.worker()
    apply = team.start(*APPLY)
    team.until(lambda: team.copied() > 0, of=apply)
    os.kill(apply.pid, signal.SIGSTOP)
    team.until(lambda: team.status() == "completed", 40)
    before = team.rows()
    assert [row["serial"] for (row,) in before[3] if row["name"] == "job:move"] == [1]
    os.kill(apply.pid, signal.SIGCONT)
    assert "lost its lock" in team.ends(apply, 11)
    assert team.rows() == before
    assert team.equal()
    assert "taken over" in run("logs", "move").stdout


def test_a_stopped_worker_cannot_checkpoint(team: Team, pg_database: str) -> None:
    """SIGSTOP until it counts as dead: another has its partition. SIGCONT: its next checkpoint is refused."""
    # a process that is stopped while it holds the lock of a folder would keep the others out
    team.ws.edit("vecrun.yaml", "b: {type: files, path: ./b}", f'b: {{type: pgvector, url: "{pg_database}"}}')
    more = team.ws.fill(5 * POINTS, name="more", vector="")
    team.ws.edit("jobs/move.yaml", "from: kb", "from: more")
    one, two = team.worker(), team.worker()
    apply = team.start(*APPLY)
    team.until(lambda: team.has_tables() and team.at_work(one.pid) and team.copied() > 0, of=apply)
    os.kill(one.pid, signal.SIGSTOP)
    team.ends(apply, 0)
    assert "is taken up again" in run("logs", "move").stdout
    before = team.rows()
    os.kill(one.pid, signal.SIGCONT)
    team.until(lambda: "given up" in team.said(one), of=one)
    assert team.rows() == before
    with open_store(config_model("pgvector")(type="pgvector", url=pg_database)) as target:  # type: ignore[call-arg]
        schema = target.inspect("kb2")
        assert schema is not None
        moved = worlds.concat(list(target.scan("kb2", KeyRange())), schema)
    moved.vectors = {"": moved.vectors[schema.vectors[0].name]}
    assert points_of(moved) == points_of(more)
    assert two.poll() is None
    assert one.poll() is None


# What keeps failing ---------------------------------------------------------------------------------------------------


@quick
def test_a_partition_that_kills_its_workers_is_set_aside(team: Team) -> None:
    """The rest goes on; the run ends with exit code 3 and says what is left; resume completes it (O3)."""
    apply = team.start(*APPLY)
    worker = team.worker(silent=1.5, VECRUN_TEST_POISON="1")
    deaths = 0
    deadline = time.monotonic() + 60
    while apply.poll() is None and time.monotonic() < deadline:
        if worker.poll() is not None:
            assert worker.returncode == -signal.SIGKILL, team.said(worker)
            deaths += 1
            worker = team.worker(silent=1.5, VECRUN_TEST_POISON="1")
        time.sleep(0.05)
    said = team.ends(apply, 3)
    assert deaths == 5
    assert re.search(r"1 of \d+ partitions failed", said), said
    assert "partition 1: set aside after 5 deliveries" in said
    assert "vecrun resume move" in said
    rows = team.ledger.query("select part, status from partitions where step = 1 order by part")
    assert [status for part, status in rows if part != 1] == ["done"] * (len(rows) - 1)
    assert team.status() == "failed"
    worker.terminate()
    team.ends(worker, 0)
    team.worker()
    assert run("resume", "move").exit_code == 0
    assert team.equal()


@quick
def test_a_worker_that_would_find_another_store(team: Team) -> None:
    """Its vecrun.yaml points elsewhere, or a secret is missing there: the run stops and says why, and can go on."""
    text = (team.ws.root / "vecrun.yaml").read_text()
    other = Workspace.create(team.ws.root.parent / "other", text.replace("path: ./b", "path: ./c"), JOB)
    wrong = team.worker(cwd=other.root)
    said = team.ends(team.start(*APPLY), 12)
    assert re.search(r"connection b\b", said), said
    assert "vecrun resume move" in said
    assert not (other.root / "c").exists()
    wrong.terminate()
    team.ends(wrong, 0)
    team.worker()
    team.ends(team.start("resume", "move"), 0)
    assert team.equal()


@quick
def test_a_secret_that_only_the_coordinator_has(team: Team) -> None:
    team.ws.edit("vecrun.yaml", "path: ./b", 'path: "${env:VECRUN_TEST_B}"')
    secret = {"VECRUN_TEST_B": str(team.ws.root / "b")}
    poor = team.worker()
    said = team.ends(team.start(*APPLY, env=secret), 14)
    assert "VECRUN_TEST_B" in said
    assert "vecrun resume move" in said
    assert secret["VECRUN_TEST_B"] not in json.dumps(team.rows())
    poor.terminate()
    team.ends(poor, 0)
    team.worker(**secret)
    team.ends(team.start("resume", "move", env=secret), 0)
    assert team.equal()


# Control from outside -------------------------------------------------------------------------------------------------


def test_pause_resume_and_cancel_from_elsewhere(team: Team) -> None:
    """Pause takes effect within a batch; cancel says what is left behind, and a rollback removes it (A5)."""
    team.worker()
    said = run(*APPLY, "--detach").stdout
    assert "waits for a worker" in said
    team.until(lambda: team.copied() > 0)
    began = time.monotonic()
    paused = run("pause", "move")
    assert paused.exit_code == 0
    assert "is paused" in paused.stdout
    assert time.monotonic() - began < 6  # two thirds of it is the start of a process
    done = team.copied()
    assert 0 < done < POINTS
    time.sleep(2)
    assert (team.status(), team.copied()) == ("paused", done)
    assert run("resume", "move", "--detach").exit_code == 0
    team.until(lambda: team.copied() > done)
    cancelled = run("cancel", "move")
    assert cancelled.exit_code == 0
    assert "is cancelled" in cancelled.stdout
    assert re.search(r"b/kb2: [\d,]+ of 4,000 points copied", cancelled.stdout), cancelled.stdout
    assert "vecrun rollback move" in cancelled.stdout
    assert run("rollback", "move", "--auto-approve", "--detach").exit_code == 0
    team.until(lambda: team.status() == "completed")
    assert team.ws.world("b") == {"b:aliases": {}}


def test_watching_from_elsewhere(team: Team) -> None:
    """--detach returns at once; status --watch and logs -f end with the run; runs and workers list it."""
    worker = team.worker()
    detached = run(*APPLY, "--detach", "--json")
    assert detached.exit_code == 0
    name = json.loads(detached.stdout)["run"]
    watch, follow = team.start("status", "move", "--watch", "--json"), team.start("logs", name, "-f")
    seen = [json.loads(line) for line in _documents(team.ends(watch, 0))]
    assert seen[-1]["run"]["status"] == "completed"
    assert len({item["done"] for item in seen}) > 1
    assert all(item["percent"] == round(100 * item["done"] / POINTS, 1) for item in seen)
    assert "lease" not in seen[-1]["run"]
    assert {item["queue_answers"] for item in seen} == {True, None}
    assert "completed" in team.ends(follow, 0).splitlines()[-1]
    listed = json.loads(run("runs", "--json").stdout)["items"]
    assert [(row["run"], row["status"]) for row in listed] == [(name, "completed")]
    known = json.loads(run("workers", "--json").stdout)["items"]
    assert [row["pid"] for row in known] == [worker.pid]
    assert team.equal()


def _documents(text: str) -> list[str]:
    """The JSON documents of a stream."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text):
        _, end = decoder.raw_decode(text, at)
        found.append(text[at:end])
        at = end + len(text[end:]) - len(text[end:].lstrip())
    return found


@quick
def test_slots_and_knowledge_bases(team: Team) -> None:
    """limits.runs: a further run waits, and is refused after its time; one source is read by one run at a time (A8)."""
    team.ws.edit("vecrun.yaml", "workers: 2", "workers: 2, runs: 1")
    for name in ("one", "two"):
        team.ws.fill(200, name=name, vector="")
        another_job(team, name, name, f"{name}_2")
    another_job(team, "same", "kb", "kb3")
    first = team.start(*APPLY)
    team.until(lambda: team.status() == "running", of=first)
    same = run("apply", "jobs/same.yaml", "--auto-approve")
    assert same.exit_code == 11
    assert "collection:a/kb is held by run" in same.stderr
    assert f"(pid {first.pid})" in same.stderr
    late = run("apply", "jobs/one.yaml", "--auto-approve", "--wait", "1s")
    assert late.exit_code == 11
    assert "Waiting:" in late.stderr
    assert "No slot is free" in late.stderr
    waiting = team.start("apply", "jobs/one.yaml", "--auto-approve")
    team.until(lambda: "Waiting:" in team.said(waiting), of=waiting)
    assert run("apply", "jobs/two.yaml", "--auto-approve", "--detach").exit_code == 0
    shown = run("status", "two").stdout
    assert "waits for a slot: limits.runs = 1 and these runs are at work: r-" in shown
    assert "not started yet" in shown
    assert "None" not in shown
    assert "nobody coordinates" not in shown
    team.worker()
    assert (team.status("one"), team.status("two")) == ("", "pending")
    team.ends(first, 0)
    team.ends(waiting, 0)
    team.until(lambda: team.status("two") == "completed")
    assert team.equal()
    assert team.equal("one", "one_2")
    assert team.equal("two", "two_2")
    at_once = team.ledger.query(
        "select r.run from runs r join runs o on r.run < o.run and r.started < o.finished and o.started < r.finished"
    )
    assert at_once == []


@quick
def test_a_run_that_never_began_is_cancelled(team: Team) -> None:
    assert run(*APPLY, "--detach").exit_code == 0
    shown = run("status", "move").stdout
    assert "nobody coordinates it yet" in shown
    assert re.search(r"created +20\S+ by .*; not started yet", shown), shown
    refused = run("plan", "jobs/move.yaml")
    assert "A run of this job is not finished" in refused.stderr  # nobody holds it
    assert "vecrun resume move" in refused.stderr
    cancelled = run("cancel", "move").stdout
    assert "is cancelled" in cancelled
    assert "Nothing was written." in cancelled
    assert team.ws.world("b") == {"b:aliases": {}}


# Processes that end, servers that go away -----------------------------------------------------------------------------


def test_a_worker_that_is_asked_to_end_hands_back(team: Team) -> None:
    """SIGTERM: batch, checkpoint, exit 0 within seconds; the run goes on elsewhere, also when it was coordinated here."""
    one = team.worker()
    assert run(*APPLY, "--detach").exit_code == 0
    team.until(lambda: team.copied() > 0)
    assert team.holder() == one.pid
    two = team.worker()
    one.terminate()
    began = time.monotonic()
    team.ends(one, 0)
    assert time.monotonic() - began < 8
    assert team.ledger.query("select pid from workers") == [(two.pid,)]
    team.until(lambda: team.status() == "completed")
    assert team.equal()
    assert "fell silent" not in run("logs", "move").stdout  # handed back, not found out


@quick
def test_redis_is_down_for_a_while(team: Team, redis: servers.Redis) -> None:
    worker = team.worker()
    redis.kill()
    try:
        apply = team.start(*APPLY)
        team.until(lambda: team.status() == "running", of=apply)
        time.sleep(1)
        assert apply.poll() is None
        shown = run("status", "move")
        assert "queue     does not answer" in shown.stdout
        assert "time left" not in shown.stdout  # no partition is at work
        tested = run("connections", "test")
        assert tested.exit_code == 1
        assert re.search(r"ok +\(ledger\) \(sql\): postgresql", tested.stdout)
        assert "error (broker) (redis): The queue does not answer" in tested.stdout
        time.sleep(4)
    finally:
        redis.start()
    team.ends(apply, 0)
    assert team.equal()
    assert team.said(worker).count("queue does not answer") == 1  # not at each try
    assert team.said(worker).count("Consumer encountered") <= 2  # a thread each for messages and delayed ones
    assert re.search(r"ok +\(broker\) \(redis\): \d", run("connections", "test").stdout)


@quick
def test_nothing_is_written_into_the_workspace(team: Team) -> None:
    """Workers and `apply --detach` need no right to write there."""
    for name in ("a", "b"):
        team.ws.edit("vecrun.yaml", f"path: ./{name}", f"path: ../{name}")
    (team.ws.root / "a").rename(team.ws.root.parent / "a")
    before = team.ws.tree()
    team.worker()
    assert run(*APPLY, "--detach").exit_code == 0
    team.until(lambda: team.status() == "completed")
    assert team.ws.tree() == before
    assert (team.ws.root.parent / "b").is_dir()


# Refused combinations -------------------------------------------------------------------------------------------------


@quick
def test_what_cannot_be_safe_is_refused(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (team.ws.root / "vecrun.yaml").read_text()

    def refused(*command: str, code: int, change: tuple[str, str]) -> str:
        team.ws.write("vecrun.yaml", re.sub(*change, settings))
        done = run(*command)
        assert done.exit_code == code, done.stderr
        return done.stderr

    no_server = (r"state: .*\n", "")
    said = refused(*APPLY, code=14, change=no_server)
    assert re.search(r"vecrun\.yaml:\d+: broker: .*SQLite", said), said
    qdrant = (r"b: .*", "b: {type: qdrant, path: ./q}")
    said = refused(*APPLY, code=1, change=qdrant)
    assert "This store cannot be used by several workers" in said
    assert "connection b" in said
    milvus = (r"b: .*", "b: {type: milvus, uri: ./m.db}")
    assert "connection b" in refused(*APPLY, code=1, change=milvus)
    no_broker = (r"broker: .*\n", "")
    assert "no broker" in refused(*APPLY, "--detach", code=1, change=no_broker)
    assert "No broker is set" in refused("worker", code=1, change=no_broker)
    unset = (r"url: \"[^\"]*\"", 'url: "${env:VECRUN_TEST_NOT_SET}"')
    assert "VECRUN_TEST_NOT_SET" in refused("worker", code=14, change=unset)
    unset = (r"database: .*", 'database: "${env:VECRUN_TEST_NOT_SET}"}')
    assert "VECRUN_TEST_NOT_SET" in refused("worker", code=14, change=unset)
    unreadable = (r"url: \"[^\"]*\"", "url: localhost")
    assert "The broker's URL cannot be read" in refused("worker", code=1, change=unreadable)
    monkeypatch.setenv("VECRUN_TEST_LEDGER", "sqlite:///ledger.db")
    sqlite = (r"database: .*", 'database: "${env:VECRUN_TEST_LEDGER}"}')
    assert "the ledger is sqlite" in refused("worker", code=1, change=sqlite)
    monkeypatch.setenv("VECRUN_TEST_LEDGER", "postgresql://u@h:no-port/d")
    assert "The ledger's URL cannot be read" in refused("worker", code=1, change=sqlite)
    assert not team.has_tables() or team.ledger.query("select count(*) from runs") == [(0,)]
    assert team.ws.world("b") == {"b:aliases": {}}


# What is being undone -----------------------------------------------------------------------------------------------


@quick
def test_what_is_being_undone_is_not_gone_on_with(team: Team) -> None:
    """An apply that was killed, its rollback waiting: workers go on with the rollback only (G9, O3)."""
    before = team.ws.world("b")
    killed = team.start(*APPLY, env={"VECRUN_CRASH_AT": "verify_points:before"})
    team.worker()
    team.ends(killed, -signal.SIGKILL)
    with contextlib.suppress(AssertionError):  # the worker goes on with it at once, unless the rollback is faster
        team.until(lambda: team.status() == "completed", 15)
    undone = run("rollback", "move", "--auto-approve", "--detach")
    assert undone.exit_code == 0, undone.output
    team.until(
        lambda: (
            team.status() == "completed"
            and json.loads(run("runs", "--json").stdout)["items"][0]["purpose"] == "rollback"
        )
    )
    assert team.ws.world("b") == before
    assert {row["status"] for row in json.loads(run("runs", "--json").stdout)["items"]} == {"completed", "rolled_back"}


@quick
def test_a_run_that_never_began_and_is_stale_is_given_up(team: Team) -> None:
    """No worker was there; meanwhile the source grew. Neither worker nor resume begins with it; a rollback ends it (G5)."""
    assert run(*APPLY, "--detach").exit_code == 0
    with team.ws.store("a") as store:
        schema = store.inspect("kb")
        assert schema is not None
        store.upsert("kb", batch_of(schema, list(range(10_000, 10_100))))
    found = run("resume", "move")
    assert found.exit_code == 12, found.output
    assert "held 600 points and holds 700 now" in found.stderr
    assert "Give it up: vecrun rollback move" in found.stderr
    team.worker()
    team.until(lambda: team.status() == "failed")
    assert team.ws.world("b") == {"b:aliases": {}}
    assert run("rollback", "move", "--auto-approve").exit_code == 0
    team.ends(team.start(*APPLY, "--unpin"), 0)
    assert team.equal()


@quick
def test_environments_of_one_broker_stay_apart(team: Team) -> None:
    """A worker of another environment never gets a message of this one (G12)."""
    text = (team.ws.root / "vecrun.yaml").read_text()
    team.ws.write("vecrun.yaml", text + "environments: {other: {}}\n")
    other = team.start("worker", "--env", "other", "-p", "2")
    team.until(lambda: "worker begins" in team.said(other), of=other)
    team.worker()
    team.ends(team.start(*APPLY), 0)
    assert team.equal()
    assert "No such run" not in team.said(other)
