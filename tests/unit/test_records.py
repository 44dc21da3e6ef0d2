"""Plans, state files, the ledger and its leases: what is written down, and who may write it
(G5, G7, G9, O1, O3; A6 for the log). The ledger on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from runner import lock
from runner.errors import LeaseLost, LockHeld, NotFound, PlanRefused, VecrunError, register_secret
from runner.ledger import Ledger
from runner.lock import Keeper, Lease
from runner.plan import (
    ChunkTable,
    ClearCollection,
    CopyPoints,
    CreateCollection,
    DropCollection,
    FinishCollection,
    Notice,
    Place,
    Plan,
    RestoreIds,
    RewriteIds,
    SetServing,
    Step,
    SwitchAlias,
    VerifyPoints,
    loads,
    reversed_steps,
)
from runner.points import CollectionSchema, Distance, IdKind, KeyRange, VectorField
from runner.state import State, StateDirectory, write_atomically
from runner.store import Problem

SOURCE, TARGET = Place(connection="a", collection="kb"), Place(connection="b", collection="kb2")
SCHEMA = CollectionSchema(
    name="kb2", id_kind=IdKind.INT, vectors=(VectorField(name="", dimension=4, distance=Distance.DOT),)
)
CHUNKS = ChunkTable(connection="app", table="chunks", id_column="id", vector_id_column="vector_id")
STEPS: tuple[Step, ...] = (
    CreateCollection(target=TARGET, schema=SCHEMA),
    CopyPoints(source=SOURCE, target=TARGET, target_schema=SCHEMA, points=3),
    FinishCollection(target=TARGET, schema=SCHEMA),
    VerifyPoints(source=SOURCE, target=TARGET, target_schema=SCHEMA, points=3),
    RewriteIds(chunks=CHUNKS, undo_table="undo", collections=(("kb", "kb2"),), rows=3),
    SwitchAlias(connection="b", alias="live", before="old", after="kb2"),
    SetServing(name="live", before=None, after=TARGET),
)


def plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "tool_version": "0", "created": "2026-11-20T10:00:00+00:00", "job": "move", "kind": "VectorMigration",
        "lineage": "l", "serial": 0, "spec_digest": "sha256:s", "connections": {"a": "x", "b": "y"}, "steps": STEPS,
    }  # fmt: skip
    return Plan(**(values | changes)).sealed()


# Plans --------------------------------------------------------------------------------------------------------------


def test_a_plan_reads_back_as_it_was_written() -> None:
    made = plan()
    assert loads(made.dumps(), "f") == made
    assert made.dumps().endswith("}\n")


def test_the_digest_covers_everything_and_the_identity_what_is_done() -> None:
    made = plan()
    assert plan().plan_digest == made.plan_digest
    for change in (
        {"created": "later"},
        {"serial": 1},
        {"connections": {}},
        {"steps": STEPS[:-1]},
        {"retention": "1d"},
    ):
        assert plan(**change).plan_digest != made.plan_digest, change
    assert plan(created="later").identity() == made.identity()
    assert plan(serial=1).identity() != made.identity()
    estimated = STEPS[1].model_copy(update={"estimate": STEPS[1].estimate.model_copy(update={"seconds": 9.0})})
    assert plan(steps=(STEPS[0], estimated, *STEPS[2:])).identity() == made.identity()


def test_any_change_to_any_value_of_the_file_is_found() -> None:
    data = json.loads(plan().dumps())

    def leaves(value: Any, put: Callable[[Any], None]) -> Iterator[tuple[Any, Callable[[Any], None]]]:
        if isinstance(value, dict):
            for key in list(value):
                yield from leaves(value[key], lambda new, at=value, key=key: at.__setitem__(key, new))  # type: ignore[misc]
        elif isinstance(value, list):
            for number in range(len(value)):
                yield from leaves(value[number], lambda new, at=value, n=number: at.__setitem__(n, new))  # type: ignore[misc]
        else:
            yield value, put

    changed = 0
    for value, put in leaves(data, lambda _new: None):
        put(f"{value}x" if isinstance(value, str) else 12345)
        with pytest.raises(PlanRefused):
            loads(json.dumps(data), "f")
        put(value)
        changed += 1
    assert changed > 100
    assert loads(json.dumps(data), "f") == plan()


def test_a_plan_from_before_a_key_was_added_stays_readable() -> None:
    """A new minor only adds keys: runs in ledgers of users hold plans without them."""
    from runner.spec import digest

    data = json.loads(plan().dumps())
    del data["drift"]
    data["plan_digest"] = digest({key: value for key, value in data.items() if key != "plan_digest"})
    assert loads(json.dumps(data), "f").steps == STEPS


def test_steps_are_undone_last_first() -> None:
    undo, irreversible = reversed_steps(STEPS)
    assert irreversible == []
    assert [step.type for step in undo] == ["set_serving", "switch_alias", "restore_ids", "drop_collection"]
    assert undo[0] == SetServing(name="live", before=TARGET, after=None)
    assert undo[1] == SwitchAlias(connection="b", alias="live", before="kb2", after="old")
    assert undo[2] == RestoreIds(chunks=CHUNKS, undo_table="undo", rows=3)
    assert isinstance(undo[3], DropCollection)
    assert undo[3].destroys == ""  # a copy: the source has the points


def test_into_an_existing_collection_the_points_are_cleared_and_a_dropped_source_is_gone() -> None:
    copied = STEPS[1].model_copy(update={"creates_target": False})
    gone = DropCollection(target=SOURCE, why="source_after: delete", points=1234)
    undo, irreversible = reversed_steps((copied, gone))
    assert undo == [ClearCollection(target=TARGET)]
    assert irreversible == [gone]
    assert gone.destroys == "a/kb with 1,234 points"


@pytest.mark.parametrize(
    ("code", "reason", "blocks"),
    [("VL101", "", True), ("VL101", "fine", False), ("VX101", "fine", True), ("VI101", "", False)],
)
def test_which_findings_block(code: str, reason: str, blocks: bool) -> None:
    assert Notice.of(Problem(code, "m"), "w", reason).blocking is blocks


# State --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def states(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path / "state")


class Free(nullcontext[None]):
    """A lease that is ours."""


free = Free()


def test_the_serial_moves_with_the_content_only(states: StateDirectory) -> None:
    fresh = states.load("move")
    assert fresh.serial == 0
    one = states.save(fresh.model_copy(update={"status": "applied"}), free)
    assert one.serial == 1
    assert states.save(one, free) == one
    assert states.load("move") == one
    assert states.jobs() == ["move"]


def test_a_state_that_moved_meanwhile_is_not_overwritten(states: StateDirectory) -> None:
    fresh = states.load("move")
    one = states.save(fresh.model_copy(update={"status": "applied"}), free)
    with pytest.raises(PlanRefused, match="moved meanwhile"):
        states.save(fresh.model_copy(update={"status": "rolled_back"}), free)
    with pytest.raises(PlanRefused):
        states.save(one.model_copy(update={"lineage": "another", "status": "rolled_back"}), free)
    assert states.load("move") == one


def test_the_version_before_stays_as_backup(states: StateDirectory) -> None:
    one = states.save(states.load("move").model_copy(update={"status": "applied"}), free)
    states.save(one.model_copy(update={"status": "rolled_back"}), free)
    backup = states.directory / "move.json.backup"
    assert State.model_validate_json(backup.read_text()) == one
    assert states.jobs() == ["move"]


def test_without_the_lease_nothing_is_written(states: StateDirectory) -> None:
    @contextmanager
    def lost() -> Iterator[None]:
        raise LeaseLost("gone")
        yield

    with pytest.raises(LeaseLost):
        states.save(states.load("move").model_copy(update={"status": "applied"}), lost())
    assert not (states.directory / "move.json").exists()


def test_lineage_is_the_same_for_one_place_and_another_elsewhere(tmp_path: Path) -> None:
    one, two = StateDirectory(tmp_path / "one"), StateDirectory(tmp_path / "two")
    assert one.load("move").lineage == one.load("move").lineage
    assert len({one.load("move").lineage, one.load("other").lineage, two.load("move").lineage}) == 3


def test_a_newer_minor_is_read_and_a_newer_major_refused(states: StateDirectory) -> None:
    states.save(states.load("move").model_copy(update={"status": "applied"}), free)
    path = states.directory / "move.json"
    path.write_text(path.read_text().replace('"1.0"', '"1.9", "new_key": 1'))
    assert states.load("move").status == "applied"
    path.write_text(path.read_text().replace('"1.9"', '"2.0"'))
    with pytest.raises(VecrunError, match="newer format"):
        states.load("move")


def test_files_are_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    with pytest.raises(VecrunError):
        write_atomically(tmp_path / "no" / "f", "x")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir() if not item.name.endswith(".tmp")] == ["f"]


# The ledger ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/ledger.db"
    else:
        url = request.getfixturevalue("pg_database").replace("postgresql://", "postgresql+psycopg://")
    made = Ledger(url)
    yield made
    made.close()


@pytest.fixture
def lease(ledger: Ledger) -> Lease:
    """A run with its plan, under a lease."""
    held = ledger.acquire(["job:move", "collection:b/kb2"], "r-1", 60)
    ledger.start_run(held, plan(), plan().dumps())
    return held


def test_a_name_is_held_by_one(ledger: Ledger) -> None:
    first = ledger.acquire(["x", "y"], "r-1", 60)
    with pytest.raises(LockHeld, match=r"y is held by .* for run r-1"):
        ledger.acquire(["y", "z"], "r-2", 60)
    assert [row["name"] for row in ledger.holders()] == ["x", "y"]  # all or none: z was not taken
    ledger.release(first)
    assert ledger.holders() == []
    second = ledger.acquire(["y"], "r-2", 60)
    assert dict(second.tokens)["y"] == dict(first.tokens)["y"] + 1
    ledger.release(first)  # late, and without effect
    with ledger.guarded(second):
        pass


def test_of_many_at_once_one_wins(ledger: Ledger) -> None:
    for number in range(5):
        won: list[Lease] = []
        barrier = threading.Barrier(6)

        def take(won: list[Lease] = won, barrier: threading.Barrier = barrier, number: int = number) -> None:
            barrier.wait()
            with contextlib.suppress(LockHeld):
                won.append(ledger.acquire(["x"], f"r-{number}", 60))

        threads = [threading.Thread(target=take) for _ in range(6)]
        for item in threads:
            item.start()
        for item in threads:
            item.join()
        assert len(won) == 1
        ledger.release(won[0])


def test_a_lease_that_ran_out_is_lost_and_free(ledger: Ledger) -> None:
    old = ledger.acquire(["x"], "r-1", 0.05)
    time.sleep(0.1)
    with pytest.raises(LeaseLost), ledger.guarded(old):
        pass
    new = ledger.acquire(["x"], "r-2", 60)
    with pytest.raises(LeaseLost):
        ledger.renew(old, 60)
    with ledger.guarded(new):
        pass


def test_a_dead_process_of_this_host_is_replaced_at_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"from runner.ledger import Ledger\nLedger({ledger.url!r}).acquire(['x'], 'r-dead', 3600)\n"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert ledger.holders()[0]["run"] == "r-dead"
    monkeypatch.setattr(lock.socket, "gethostname", lambda: "another-host")
    with pytest.raises(LockHeld):  # from another host nobody knows whether it lives
        ledger.acquire(["x"], "r-2", 60)
    monkeypatch.undo()
    assert dict(ledger.acquire(["x"], "r-2", 60).tokens) == {"x": 2}


def test_an_operator_frees_only_what_was_looked_at(ledger: Ledger, lease: Lease) -> None:
    token = dict(lease.tokens)["job:move"]
    assert not ledger.force_release("job:move", token + 1)
    assert ledger.force_release("job:move", token)
    assert not ledger.force_release("job:move", token)
    with pytest.raises(LeaseLost), ledger.guarded(lease):
        pass


def test_a_keeper_renews_and_says_when_it_cannot(ledger: Ledger, lease: Lease) -> None:
    stop = threading.Event()
    ledger.renew(lease, 0.4)
    with Keeper(ledger, lease, 0.4, stop) as keeper:
        time.sleep(0.8)
        assert keeper.error is None
        ledger.force_release("job:move", dict(lease.tokens)["job:move"])
        assert stop.wait(5)
    assert isinstance(keeper.error, LeaseLost)


GUARDED: dict[str, Callable[[Ledger, Lease], object]] = {
    "renew": lambda ledger, lease: ledger.renew(lease, 1),
    "set_run": lambda ledger, lease: ledger.set_run(lease, status="completed"),
    "set_step": lambda ledger, lease: ledger.set_step(lease, 1, "done"),
    "cut": lambda ledger, lease: ledger.cut(lease, 3, [KeyRange()], "f"),
    "take": lambda ledger, lease: ledger.take(lease, 1, 0),
    "checkpoint": lambda ledger, lease: ledger.checkpoint(lease, 1, 0, cursor=9, read=9, done=9),
    "fail_partition": lambda ledger, lease: ledger.fail_partition(lease, 1, 0, "x", "failed"),
    "reopen": lambda ledger, lease: ledger.reopen(lease, 1),
    "restart_step": lambda ledger, lease: ledger.restart_step(lease, 1),
}


def test_no_write_of_a_run_gets_past_the_fencing_token(ledger: Ledger, lease: Lease) -> None:
    ledger.cut(lease, 1, [KeyRange(None, 5), KeyRange(5, None)], "f1")
    before = ledger.run("r-1"), ledger.steps_of("r-1"), ledger.partitions_of("r-1", 1)
    ledger.force_release("collection:b/kb2", dict(lease.tokens)["collection:b/kb2"])
    ledger.acquire(["collection:b/kb2"], "r-2", 60)
    for name, write in GUARDED.items():
        with pytest.raises(LeaseLost):
            write(ledger, lease)
        assert (ledger.run("r-1"), ledger.steps_of("r-1"), ledger.partitions_of("r-1", 1)) == before, name


def test_a_table_of_partitions_is_cut_once(ledger: Ledger, lease: Lease) -> None:
    ranges = [KeyRange(None, 5), KeyRange(5, "x"), KeyRange("x", None, "p")]
    ledger.cut(lease, 1, ranges, "f1")
    ledger.cut(lease, 1, [KeyRange()], "f2")
    assert [part.keys for part in ledger.partitions_of("r-1", 1)] == ranges
    assert ledger.steps_of("r-1")[1]["fingerprint"] == "f1"


def test_a_partition_counts_its_deliveries_until_it_moves(ledger: Ledger, lease: Lease) -> None:
    ledger.cut(lease, 1, [KeyRange()], "f")
    for number in range(3):
        taken = ledger.take(lease, 1, 0)
        assert taken is not None
        assert taken.deliveries == number
    ledger.checkpoint(lease, 1, 0, cursor="a", read=5, done=4)
    part = ledger.take(lease, 1, 0)
    assert part is not None
    assert (part.deliveries, part.cursor, part.read, part.done) == (0, "a", 5, 4)
    ledger.fail_partition(lease, 1, 0, "broken", "failed")
    assert ledger.take(lease, 1, 0) is None
    ledger.reopen(lease, 1)
    again = ledger.take(lease, 1, 0)
    assert again is not None
    assert again.cursor == "a"
    ledger.checkpoint(lease, 1, 0, cursor=None, read=5, done=5, status="done")
    assert ledger.take(lease, 1, 0) is None
    assert ledger.partitions_of("r-1", 1)[0].cursor == "a"


ODD_IDS: list[int | str] = [42, "42", -(2**63), 2**64 - 1, "", "a'b\\", "日本語", "x" * 2000]


def test_cursors_and_mappings_keep_every_id_as_it_is(ledger: Ledger, lease: Lease) -> None:
    ledger.cut(lease, 1, [KeyRange()], "f")
    for item in ODD_IDS:
        ledger.checkpoint(lease, 1, 0, cursor=item, read=1, done=1, found=[(item, "differs")])
        assert ledger.partitions_of("r-1", 1)[0].cursor == item
    pairs: list[tuple[int | str, int | str]] = [(item, f"new-{number}") for number, item in enumerate(ODD_IDS)]
    for _ in range(2):  # a batch may be repeated
        ledger.checkpoint(lease, 1, 0, cursor=1, read=1, done=1, mapped=pairs, collection="kb")
    ledger.checkpoint(lease, 1, 0, cursor=1, read=1, done=1, mapped=[(1, 2)], collection="other")
    pages = list(ledger.mapping("r-1", "kb", size=3))
    assert max(map(len, pages)) == 3
    found = [pair for page in pages for pair in page]
    assert sorted(found, key=repr) == sorted(pairs, key=repr)
    assert len(ledger.findings_of("r-1", 1)) == len(ODD_IDS)


def test_a_verification_is_forgotten_and_done_again(ledger: Ledger, lease: Lease) -> None:
    ledger.cut(lease, 3, [KeyRange()], "f")
    ledger.checkpoint(lease, 3, 0, cursor=1, read=1, done=0, status="done", found=[(1, "differs")])
    ledger.set_step(lease, 3, "failed", {"x": 1})
    ledger.restart_step(lease, 3)
    assert ledger.partitions_of("r-1", 3) == []
    assert ledger.findings_of("r-1", 3) == []
    step = ledger.steps_of("r-1")[3]
    assert (step["status"], step["fingerprint"], step["result"]) == ("pending", None, None)


def test_runs_and_their_log(ledger: Ledger, lease: Lease) -> None:
    register_secret("ledger-secret-1")
    ledger.write_log("r-1", "info", "with ledger-secret-1", where="ledger-secret-1", count=3)
    ledger.set_run(lease, status="failed", error="because of ledger-secret-1")
    line = ledger.read_log("r-1")[0]
    assert (line["level"], line["message"], line["details"]) == ("info", "with ***", {"where": "***", "count": 3})
    assert ledger.read_log("r-1", after=line["id"]) == []
    assert ledger.run("r-1")["error"] == "because of ***"
    assert ledger.unfinished("move")["run"] == "r-1"  # type: ignore[index]
    ledger.ask("r-1", "pause")
    assert ledger.run("r-1")["control"] == "pause"
    ledger.set_run(lease, status="completed")
    assert ledger.unfinished("move") is None
    assert [row["run"] for row in ledger.runs_of()] == [row["run"] for row in ledger.runs_of("move")] == ["r-1"]
    assert ledger.runs_of("other") == []
    with pytest.raises(NotFound):
        ledger.run("r-2")


def test_a_temporary_ledger_is_gone_afterwards() -> None:
    with Ledger.temporary() as made:
        path = Path(made.url.removeprefix("sqlite:///"))
        assert path.exists()
    assert not path.exists()
