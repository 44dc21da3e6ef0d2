"""A source that is written to while it is moved ends equal at the cutover (A11), whatever dies in the middle (O3)."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import pytest

from runner import commands
from runner.cli.workers import CHILD
from runner.errors import PlanRefused
from runner.points import CollectionSchema, Distance, IdKind, KeyRange, PointBatch, PointId, VectorField
from runner.store import Store
from runner.stores import config_model, open_store
from runner.transform import IdMode, map_id
from tests import servers, warm, worlds
from tests.conftest import watch
from tests.e2e.workspace import JOB, SETTINGS, Workspace, environment, run
from tests.e2e.writer import Writer, batch, points_of

LIVE = JOB + "  live: {field: version}\n"
ACCEPTED = "  accept: [{code: VL201, reason: writers only add}]\n"
UNIT = [0.5, 0.5, 0.5, 0.5]


def live_job(ws: Workspace, text: str) -> None:
    ws.write("jobs/move.yaml", JOB + text)


def fill(ws: Workspace, count: int = 60) -> None:
    """Points 0 … count-1 with versions 1 … count."""
    ws.fill(ids=list(range(count)), payloads=[{"version": n + 1, "text": f"first {n}"} for n in range(count)])


def put(ws: Workspace, store: str, points: dict[PointId, int], text: str = "later") -> None:
    """id -> version"""
    name, vector = ("kb", "v") if store == "a" else ("kb2", "v")
    with ws.store(store) as opened:
        schema = opened.inspect(name)
        assert schema is not None
        vector = schema.vectors[0].name
        made = {one: {"vector": UNIT, "payload": {"version": version, "text": text}} for one, version in points.items()}
        opened.upsert(name, batch(made, vector))


def drop(ws: Workspace, store: str, ids: list[PointId]) -> None:
    with ws.store(store) as opened:
        opened.delete("kb" if store == "a" else "kb2", ids)


def payloads(ws: Workspace, store: str) -> dict[PointId, dict[str, Any]]:
    held = ws.points(store, "kb" if store == "a" else "kb2")
    assert held is not None
    return dict(zip(held.ids, held.payloads.dicts, strict=True))


def texts(ws: Workspace, store: str, ids: list[PointId]) -> list[str | None]:
    held = payloads(ws, store)
    return [held[one]["text"] if one in held else None for one in ids]


def killed(ws: Workspace, *args: str, at: str) -> None:
    """A command that dies at a crash point: what is done between two commands happens there."""
    found = ws.process(*args, env={"VECRUN_CRASH_AT": at})
    assert found.returncode == -9, found.stdout + found.stderr


def equal(ws: Workspace) -> bool:
    return payloads(ws, "a") == payloads(ws, "b")


# -- a writer all through ------------------------------------------------------------------------------------------


@dataclass
class Pair:
    """Two stores of one workspace, and the writer between them."""

    ws: Workspace
    connections: dict[str, dict[str, Any]]
    before: PointBatch
    writer: Writer

    def open(self, name: str) -> Store:
        config = self.connections[name]
        return watch(config["type"], open_store(config_model(config["type"])(**config)))

    def held(self, name: str, collection: str) -> dict[Any, tuple[list[float], dict[str, Any]]]:
        with self.open(name) as store:
            schema = store.inspect(collection)
            assert schema is not None
            return points_of(worlds.concat(list(store.scan(collection, KeyRange())), schema), schema.vectors[0].name)


def pair(ws: Workspace, a: dict[str, Any], b: dict[str, Any], count: int, pause: float = 0.004) -> Pair:
    connections = {"a": a, "b": b}
    ws.write("vecrun.yaml", SETTINGS.split("connections:")[0] + f"connections: {json.dumps(connections)}\n")
    schema = CollectionSchema(
        name="kb",
        id_kind=IdKind.INT,
        vectors=(VectorField(name="embedding", dimension=8, distance=Distance.COSINE),),
    )
    payload = [{"version": n + 1, "text": f"first {n}"} for n in range(count)]
    made = worlds.points(schema, ids=list(range(count)), payloads=payload, unit=True)
    names = {}
    with open_store(config_model(a["type"])(**a)) as store:
        store.create(schema)
        store.upsert("kb", made)
        store.finish(schema)
    for name, config in connections.items():
        with open_store(config_model(config["type"])(**config)) as store:
            names[name] = store.capabilities().default_vector_name if name == "b" else "embedding"
    writer = Writer(
        ws.root, connections=connections, source={"connection": "a", "collection": "kb"}, vectors=names, dimension=8,
        serving=str(ws.root / "state" / "serving.json"), ids=list(range(count)), version=count, next=count, seed=7,
        pause=pause,
    )  # fmt: skip
    return Pair(ws, connections, made, writer)


def test_a_writer_all_through_ends_equal(ws: Workspace, pg_url: str, pg_database: str) -> None:
    """The writer never stops; it follows the switch. Afterwards the target holds exactly what was acknowledged."""
    other = f"{Path(ws.root).parent.name}_b".replace("-", "_").lower()
    servers.sql(pg_url, f'CREATE DATABASE "{other}" TEMPLATE with_vector')
    url = servers.database(pg_url, other)
    try:
        live_job(ws, "  live: {field: version, bound: 400}\n  batch_size: 200\n")
        both = pair(ws, {"type": "pgvector", "url": pg_database}, {"type": "pgvector", "url": url}, 6000)
        with both.writer.at_work():
            found = run("apply", "jobs/move.yaml", "--auto-approve")
            assert found.exit_code == 0, found.output
            both.writer.wait_for(50)  # in the target by now
        assert ws.serving()["kb-live"]["connection"] == "b"
        assert both.held("b", "kb2") == both.writer.truth(both.before, "embedding")
        with both.open("a") as source, both.open("b") as target:
            assert source.count("kb") != target.count("kb2")  # it did write there
    finally:
        servers.sql(pg_url, f'DROP DATABASE "{other}" WITH (FORCE)')


def test_with_a_hold_both_sides_are_equal(ws: Workspace, pg_database: str) -> None:
    """It pauses before the cutover; only an operator's resume goes on; then source and target are the same."""
    live_job(ws, "  live: {hold: true}\n  source_after: delete\n  accept: [{code: VD101, reason: moved}]\n")
    both = pair(ws, {"type": "pgvector", "url": pg_database}, {"type": "files", "path": str(ws.root / "b")}, 1000)
    with both.writer.at_work():
        found = run("apply", "jobs/move.yaml", "--auto-approve")
        assert found.exit_code == 130, found.output
        assert "Paused for the operator" in found.stderr
        assert "stop the writers" in found.stderr.lower()
        assert json.loads(run("status", "move", "--json").stdout)["run"]["status"] == "paused"
        both.writer.wait_for(30)
        again = run(
            "apply", "jobs/move.yaml", "--auto-approve"
        )  # not an operator who says that the writers stand still
        assert again.exit_code == 130
        assert "Paused for the operator" in again.stderr
        assert not ws.serving()
        both.writer.wait_for(30)
    truth = both.writer.truth(both.before, "embedding")
    assert both.held("a", "kb") == truth
    killed(ws, "resume", "move", at="set_serving:before")
    assert both.held("b", "kb2") == truth
    assert both.held("a", "kb") == truth
    found = run("resume", "move")  # the hold was released; the source is deleted at the end, though it grew
    assert found.exit_code == 0, found.output
    assert both.held("b", "kb2") == truth
    with both.open("a") as source:
        assert source.inspect("kb") is None


def test_a_source_that_is_too_fast_stops_the_run(ws: Workspace, pg_database: str) -> None:
    """Exit code 3, nothing switched; when the writer has stopped, resume goes on."""
    live_job(ws, "  live: {field: version, bound: 0, passes: 2}\n")
    both = pair(ws, {"type": "pgvector", "url": pg_database}, {"type": "files", "path": str(ws.root / "b")}, 400)
    with both.writer.at_work():
        found = run("apply", "jobs/move.yaml", "--auto-approve")
        assert found.exit_code == 3, found.output
        assert "written to faster" in found.stderr
        assert not ws.serving()
        assert run("resume", "move").exit_code == 3
    assert run("resume", "move").exit_code == 0
    assert both.held("b", "kb2") == both.writer.truth(both.before, "embedding")


def test_workers_bring_over_what_a_writer_writes(ws: Workspace, pg_url: str, pg_database: str) -> None:
    """Distributed, with a hold: a worker dies in the middle of a pass, and another goes on with it."""
    name = f"{Path(ws.root).parent.name}_records".replace("-", "_").lower()
    servers.sql(pg_url, f'CREATE DATABASE "{name}"')
    records = servers.database(pg_url, name)
    command = [sys.executable, "-m", "tests.e2e.one_worker", "worker", "-t", "1"]
    try:
        with servers.redis_server() as redis, contextlib.ExitStack() as processes:
            # a bound that a writer does not exceed on a slow machine either: what is left comes over after the hold
            live_job(ws, "  live: {hold: true, bound: 2000}\n  batch_size: 100\n")
            both = pair(
                ws, {"type": "pgvector", "url": pg_database}, {"type": "files", "path": str(ws.root / "b")}, 1000
            )
            text = (ws.root / "vecrun.yaml").read_text()
            text += f"state: {{database: '{records}'}}\nbroker: {{url: '{redis.url}'}}\nlimits: {{lease_seconds: 5}}\n"
            ws.write("vecrun.yaml", text)

            def worker(**more: str) -> subprocess.Popen[bytes]:
                env = environment({CHILD: "1", "VECRUN_TEST_SILENT": "1.5"} | more)
                started = warm.Popen(command, cwd=ws.root, env=env, stdout=DEVNULL, stderr=DEVNULL)
                processes.enter_context(started)
                processes.callback(started.kill)
                return started

            first = worker(VECRUN_CRASH_AT="catch_up:after_write")
            with both.writer.at_work(), ws.start("apply", "jobs/move.yaml", "--auto-approve") as process:
                assert first.wait(timeout=60) == -9
                worker()
                _out, told = process.communicate(timeout=60)
                assert process.returncode == 130, told
                assert "Paused for the operator" in told
                both.writer.wait_for(30)
            found = run("resume", "move")
            assert found.exit_code == 0, found.output
            assert both.held("b", "kb2") == both.held("a", "kb") == both.writer.truth(both.before, "embedding")
    finally:
        servers.sql(pg_url, f'DROP DATABASE "{name}" WITH (FORCE)')


# -- what was written between two moments ----------------------------------------------------------------------------


def test_before_the_cutover_everything_is_brought_over(ws: Workspace) -> None:
    ws.write("jobs/move.yaml", LIVE)
    fill(ws)
    killed(ws, "apply", "jobs/move.yaml", "--auto-approve", at="copy_points:recorded")
    put(ws, "a", {3: 61, 70: 62})  # changed, added
    drop(ws, "a", [5, 6])
    assert run("resume", "move").exit_code == 0
    assert equal(ws)
    assert texts(ws, "b", [3, 70, 5]) == ["later", "later", None]
    steps = {item["type"]: item for item in json.loads(run("status", "move", "--json").stdout)["steps"]}
    assert steps["verify_points"]["result"]["moved"] == 0
    assert steps["verify_points"]["result"]["compared"] == 59


def test_verification_copies_again_what_moved(ws: Workspace) -> None:
    """What is written between the last pass and the verification is neither a failure nor unsaid."""
    ws.write("jobs/move.yaml", LIVE)
    fill(ws)
    killed(ws, "apply", "jobs/move.yaml", "--auto-approve", at="verify_points:before")
    put(ws, "a", {3: 61, 70: 62})
    drop(ws, "a", [5, 6])
    found = run("resume", "move")
    assert found.exit_code == 0
    assert "4 had moved meanwhile and were brought over" in found.output
    assert equal(ws)


def test_verification_fails_when_a_copy_is_not_equal(ws: Workspace) -> None:
    """Two points that become one are no movement, however often they are copied."""
    ws.write(
        "jobs/move.yaml",
        LIVE.replace("to: kb2", "to: kb2\n      ids: {mode: string, from_field: key, from_kind: string}"),
    )
    ws.fill(ids=list(range(40)), payloads=[{"version": n, "key": f"k{min(n, 38)}"} for n in range(40)])
    found = run("apply", "jobs/move.yaml", "--auto-approve")
    assert found.exit_code in (3, 13), found.output
    assert not ws.serving()


def test_after_the_switch_the_newer_side_wins(ws: Workspace) -> None:
    """Both sides were written to between the last look and the end: each point ends as its last writer left it."""
    ws.write("jobs/move.yaml", LIVE)
    fill(ws)
    killed(ws, "apply", "jobs/move.yaml", "--auto-approve", at="set_serving:before")
    put(ws, "a", {3: 61, 70: 62, 8: 63, 9: 64})  # late: changed, added, changed, changed
    drop(ws, "a", [5, 6])  # late deletions
    put(ws, "b", {8: 65, 80: 66, 6: 67}, "application")  # and there: changed later, added, written though deleted here
    drop(ws, "b", [9, 10])
    assert run("resume", "move").exit_code == 0
    assert texts(ws, "b", [3, 70, 8, 80, 9, 10, 5, 6]) == [
        "later", "later", "application", "application", None, None, None, "application",
    ]  # fmt: skip
    held, source = payloads(ws, "b"), payloads(ws, "a")
    others = set(range(60)) - {3, 5, 6, 8, 9, 10}
    assert {one: held[one] for one in others} == {one: source[one] for one in others}


def test_without_a_field_only_new_points_are_added(ws: Workspace) -> None:
    """Nothing says which side is newer: what was there before is left to whoever writes there now."""
    live_job(ws, "  live: {}\n" + ACCEPTED)
    fill(ws)
    killed(ws, "apply", "jobs/move.yaml", "--auto-approve", at="set_serving:before")
    put(ws, "a", {3: 0, 70: 0})
    drop(ws, "a", [5])
    put(ws, "b", {80: 0}, "application")
    drop(ws, "b", [9])
    assert run("resume", "move").exit_code == 0
    assert texts(ws, "b", [70, 80, 9, 3, 5]) == ["later", "application", None, "first 3", "first 5"]


def test_a_pass_looks_only_at_what_was_written_since(ws: Workspace) -> None:
    """By the field, and at every point that has none; verification looks at everything."""
    live_job(ws, "  live: {field: meta.at, bound: 0}\n")
    stamps = [{"meta": {"at": f"2026-01-01T00:{n:02}:00Z"}} if n % 2 else {"text": "none"} for n in range(40)]
    ws.fill(ids=list(range(40)), payloads=stamps)

    def write(points: dict[PointId, dict[str, Any]]) -> None:
        with ws.store("a") as store:
            store.upsert("kb", batch({one: {"vector": UNIT, "payload": made} for one, made in points.items()}, "v"))

    killed(ws, "apply", "jobs/move.yaml", "--auto-approve", at="copy_points:recorded")
    write({2: {"text": "first"}})
    killed(ws, "resume", "move", at="catch_up:cut:2")
    write({4: {"text": "second"}})
    killed(ws, "resume", "move", at="catch_up:cut:2")
    write({6: {"text": "third"}, 90: {"text": "new"}, 91: {"meta": {"at": "2026-01-01T00:40:00+00:00"}}})
    write({7: {"meta": {"at": "2026-01-01T00:07:00Z"}, "text": "against the rule: not raised"}})
    found = run("resume", "move", "--json")
    assert found.exit_code == 0
    steps = {item["type"]: item["result"] for item in json.loads(found.stdout)["steps"][:5]}
    assert steps["catch_up"]["repaired"] == [1, 1, 3, 0]
    assert steps["verify_points"]["repaired"] == [1, 0]
    assert equal(ws)


# -- whatever dies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["after_write", "before_delete", "after_delete", "cut:2"])
def test_a_kill_in_a_pass_loses_nothing(ws: Workspace, at: str) -> None:
    live_job(ws, "  live: {hold: true" + (", field: version" if at.startswith("after") else "") + "}\n")
    fill(ws)
    assert run("apply", "jobs/move.yaml", "--auto-approve").exit_code == 130
    put(ws, "a", {3: 61, 70: 62})
    drop(ws, "a", [5, 6])
    killed(ws, "resume", "move", at=f"catch_up:{at}")
    put(ws, "a", {4: 63, 71: 64})
    drop(ws, "a", [7])
    assert run("resume", "move").exit_code == 0
    assert equal(ws)


@pytest.mark.parametrize("at", ["after_write", "cut:2"])
def test_a_kill_in_the_verification_loses_nothing(ws: Workspace, at: str) -> None:
    live_job(ws, "  live: {bound: 1, field: version}\n")
    fill(ws)
    killed(ws, "apply", "jobs/move.yaml", "--auto-approve", at="verify_points:before")
    put(ws, "a", {3: 61, 70: 62})
    drop(ws, "a", [5, 6])
    killed(ws, "resume", "move", at=f"verify_points:{at}")
    put(ws, "a", {4: 63, 71: 64})
    assert run("resume", "move").exit_code == 0
    assert equal(ws)


@pytest.mark.parametrize("phase", ["after_write", "after_delete"])
def test_a_kill_after_the_switch_loses_nothing(ws: Workspace, phase: str) -> None:
    ws.write("jobs/move.yaml", LIVE)
    fill(ws)
    killed(ws, "apply", "jobs/move.yaml", "--auto-approve", at="set_serving:recorded")
    put(ws, "a", {3: 61, 70: 62})
    drop(ws, "a", [5])
    killed(ws, "resume", "move", at=f"catch_up:{phase}")
    put(ws, "b", {70: 63}, "application")
    drop(ws, "b", [11])
    assert run("resume", "move").exit_code == 0
    assert texts(ws, "b", [3, 70, 5, 11]) == ["later", "application", None, None]
    assert len(payloads(ws, "b")) == 59
    assert run("rollback", "move", "--auto-approve").exit_code == 0  # every point came from the run


# -- ids that are mapped, and the chunks table -----------------------------------------------------------------------


def test_rows_of_late_points_follow_their_ids(ws: Workspace) -> None:
    """Points added, deleted and changed by the writer are mapped like all; so are rows that came after the rewrite (A3)."""
    ws.write("vecrun.yaml", SETTINGS + "  app: {type: sql, url: 'sqlite:///app.db'}\n")
    ws.write(
        "jobs/move.yaml",
        LIVE.replace("to: kb2", "to: kb2\n      ids: {mode: uuid5}")
        + "  documents: {connection: app, table: chunks}\n",
    )
    fill(ws)

    def new(point_id: int) -> str:
        return str(map_id(point_id, IdMode.UUID5))

    def rows() -> dict[int, str]:
        with sqlite3.connect("app.db") as database:
            return dict(database.execute("SELECT id, vector_id FROM chunks"))

    def insert(ids: list[int]) -> None:
        with sqlite3.connect("app.db") as database:
            database.executemany("INSERT INTO chunks VALUES (?, ?)", [(n, str(n)) for n in ids])

    with sqlite3.connect("app.db") as database:
        database.execute("CREATE TABLE chunks (id INTEGER PRIMARY KEY, vector_id TEXT)")
    insert(list(range(60)))
    killed(ws, "apply", "jobs/move.yaml", "--auto-approve", at="copy_points:recorded")
    put(ws, "a", {70: 61})
    insert([70])
    drop(ws, "a", [5])
    with sqlite3.connect("app.db") as database:
        database.execute("DELETE FROM chunks WHERE id = 5")
    killed(ws, "resume", "move", at="set_serving:recorded")
    put(ws, "a", {71: 62})  # after the rewrite of the rows
    insert([71])
    assert run("resume", "move").exit_code == 0
    assert rows() == {n: new(n) for n in [*range(60), 70, 71] if n != 5}
    held = payloads(ws, "b")
    assert set(held) == set(rows().values())
    assert {item["_vecrun_id"] for item in held.values()} == set(payloads(ws, "a"))
    assert run("rollback", "move", "--auto-approve").exit_code == 0
    assert rows() == {n: str(n) for n in [*range(60), 70, 71] if n != 5}


def test_deletions_are_seen_without_the_old_id_in_the_payload(ws: Workspace) -> None:
    ws.write("jobs/move.yaml", LIVE.replace("to: kb2", "to: kb2\n      ids: {mode: uuid5, keep_original_as: null}"))
    fill(ws)
    killed(ws, "apply", "jobs/move.yaml", "--auto-approve", at="copy_points:recorded")
    drop(ws, "a", [5, 6])
    assert run("resume", "move").exit_code == 0
    assert set(payloads(ws, "b")) == {map_id(n, IdMode.UUID5) for n in range(60) if n not in (5, 6)}


# -- plans ---------------------------------------------------------------------------------------------------------------


def test_growth_makes_no_plan_stale_and_another_schema_does(ws: Workspace) -> None:
    ws.write("jobs/move.yaml", LIVE)
    fill(ws)
    made = ws.plan()
    put(ws, "a", {70: 61})
    commands.apply(ws.context(), made)
    assert equal(ws)
    put(ws, "a", {71: 62})
    assert run("drift", "move").exit_code == 0  # the source may be written to on and on
    assert run("rollback", "move", "--auto-approve").exit_code == 0

    ws.edit("jobs/move.yaml", "field: version", "field: version, bound: 7")
    made = ws.plan()
    with ws.store("a") as store:
        store.drop("kb")
    ws.fill(70, dimension=6, ids=list(range(70)))
    with pytest.raises(PlanRefused, match="schema"):
        commands.apply(ws.context(), made)


def test_what_came_later_is_named_by_a_rollback(ws: Workspace) -> None:
    """Points that the passes added came from the run; those an application added did not (VD102)."""
    ws.write("jobs/move.yaml", LIVE)
    fill(ws)
    put(ws, "a", {59: 100_000})
    killed(ws, "apply", "jobs/move.yaml", "--auto-approve", at="set_serving:recorded")
    put(ws, "a", {3: 100_001, 70: 100_002, 71: 100_003})  # the first one is no new point
    killed(ws, "resume", "move", at="catch_up:after_write")
    assert run("resume", "move").exit_code == 0
    put(ws, "b", {80: 63}, "application")
    found = run("rollback", "move", "--auto-approve")
    assert found.exit_code == 1
    assert "1 points of the target did not come from this run" in found.output + found.stderr


def test_a_run_can_be_undone_in_the_middle_of_a_pass(ws: Workspace) -> None:
    ws.write("jobs/move.yaml", LIVE)
    fill(ws)
    killed(ws, "apply", "jobs/move.yaml", "--auto-approve", at="copy_points:recorded")
    put(ws, "a", {70: 61})
    killed(ws, "resume", "move", at="catch_up:after_write")
    put(ws, "a", {71: 62})
    assert run("rollback", "move", "--auto-approve").exit_code == 0
    assert ws.points("b", "kb2") is None


def test_the_plan_says_what_it_relies_on(ws: Workspace) -> None:
    fill(ws)
    live_job(ws, "  live: {}\n")
    found = run("plan", "jobs/move.yaml")
    assert "VL201" in found.stdout
    assert run("apply", "jobs/move.yaml", "--auto-approve").exit_code == 1  # a loss is accepted first
    live_job(ws, "  live: {field: version}\n")
    found = run("plan", "jobs/move.yaml")
    assert "VI107" in found.stdout
    assert "VI108" in found.stdout
    live_job(ws, "  live: {field: verison}\n")
    assert "VI104" in run("plan", "jobs/move.yaml").stdout
    live_job(ws, "  live: {hold: true}\n")
    found = run("plan", "jobs/move.yaml")
    assert "VI109" in found.stdout
    assert "wait until the writers of a/kb are stopped" in found.stdout


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("  live: {}\n  source_after: delete\n", "live.hold: true"),
        ("  live: {}\n  verify: {mode: sample}\n", "verify.mode must be full"),
        ("  live: {bound: -1}\n", "bound"),
        ("  live: {passes: 0}\n", "passes"),
    ],
)
def test_what_cannot_be_kept_is_refused(ws: Workspace, text: str, told: str) -> None:
    live_job(ws, text)
    found = run("validate")
    assert found.exit_code == 14
    assert told in found.stderr


def test_a_dropped_field_is_refused(ws: Workspace) -> None:
    ws.write("jobs/move.yaml", LIVE.replace("to: kb2", "to: kb2\n      payload: {drop: [version]}"))
    found = run("validate")
    assert found.exit_code == 14
    assert "must reach the target" in found.stderr


def test_a_renamed_field_is_followed(ws: Workspace) -> None:
    ws.write("jobs/move.yaml", LIVE.replace("to: kb2", "to: kb2\n      payload: {rename: {version: seq}}"))
    fill(ws)
    killed(ws, "apply", "jobs/move.yaml", "--auto-approve", at="set_serving:recorded")
    put(ws, "a", {3: 61})
    assert run("resume", "move").exit_code == 0
    assert payloads(ws, "b")[3] == {"seq": 61, "text": "later"}


def test_a_dry_run_writes_nothing(ws: Workspace) -> None:
    live_job(ws, "  live: {hold: true}\n")
    fill(ws)
    assert run("apply", "jobs/move.yaml", "--dry-run").exit_code == 0
    assert ws.nothing_happened()
