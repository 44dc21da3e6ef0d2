"""Plans and the ledger: what is written down of a run, and that nothing gets past its fencing token
(G5, G9, O1, O3; A6 for the log). The ledger on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner import lock
from runner.errors import ClaimLost, LeaseLost, LockHeld, NotFound, PlanRefused, VecrunError, register_secret
from runner.ledger import Ledger, Partition
from runner.lock import Lease
from runner.plan import (
    ClearCollection,
    DropCollection,
    Notice,
    RestoreIds,
    SetServing,
    SwitchAlias,
    loads,
    reversed_steps,
)
from runner.points import KeyRange
from runner.store import Problem
from tests.unit.sample import CHUNKS, SOURCE, STEPS, TARGET, plan

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


# The ledger ---------------------------------------------------------------------------------------------------------


def taken(ledger: Ledger, lease: Lease, step: int = 1, part: int = 0, **changes: Any) -> Partition:
    """A partition that is ours, moved on by `changes`."""
    found = ledger.take(lease, step, part, "w1")
    assert found is not None
    return replace(found, **changes)


#: A partition as a worker holds it that took it before the lease was lost.
STALE = Partition(0, KeyRange(None, 5), "running", 9, 9, 9, 0, None, claim=1)
GUARDED: dict[str, Callable[[Ledger, Lease], object]] = {
    "renew": lambda ledger, lease: ledger.renew(lease, 1),
    "set_run": lambda ledger, lease: ledger.set_run(lease, status="completed"),
    "hold": lambda ledger, lease: ledger.hold(lease, status="completed"),
    "set_step": lambda ledger, lease: ledger.set_step(lease, 1, "done"),
    "cut": lambda ledger, lease: ledger.cut(lease, 3, [KeyRange()], "f"),
    "take": lambda ledger, lease: ledger.take(lease, 1, 1),
    "checkpoint": lambda ledger, lease: ledger.checkpoint(lease, 1, STALE),
    "fail_partition": lambda ledger, lease: ledger.fail_partition(lease, 1, STALE, "x"),
    "report": lambda ledger, lease: ledger.report(lease, VecrunError("x")),
    "reopen": lambda ledger, lease: ledger.reopen(lease, 1),
    "restart_step": lambda ledger, lease: ledger.restart_step(lease, 1),
}


def test_no_write_of_a_run_gets_past_the_fencing_token(ledger: Ledger, lease: Lease) -> None:
    ledger.cut(lease, 1, [KeyRange(None, 5), KeyRange(5, None)], "f1")
    taken(ledger, lease)
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
        assert taken(ledger, lease).deliveries == number
        ledger.reopen(lease, 1)  # its worker died
    ledger.checkpoint(lease, 1, taken(ledger, lease, cursor="a", read=5, done=4, status="pending"))
    part = taken(ledger, lease)
    assert (part.deliveries, part.cursor, part.read, part.done, part.worker) == (0, "a", 5, 4, "w1")
    ledger.fail_partition(lease, 1, part, "broken")
    assert ledger.take(lease, 1, 0) is None
    assert ledger.partitions_of("r-1", 1)[0].error == "broken"
    ledger.reopen(lease, 1)
    part = taken(ledger, lease)
    assert part.cursor == "a"
    ledger.checkpoint(lease, 1, replace(part, cursor=None, done=5, status="done"))
    assert ledger.take(lease, 1, 0) is None
    assert ledger.partitions_of("r-1", 1)[0].cursor == "a"
    assert ledger.take(lease, 1, 7) is None  # there is no such partition


def test_of_two_workers_with_one_partition_the_later_counts(ledger: Ledger, lease: Lease) -> None:
    ledger.cut(lease, 1, [KeyRange()], "f")
    old = taken(ledger, lease)
    assert ledger.take(lease, 1, 0, "w2") is None  # it is taken
    ledger.reopen(lease, 1)
    new = ledger.take(lease, 1, 0, "w2")
    assert new is not None
    assert new.claim > old.claim
    assert ledger.checkpoint(lease, 1, replace(new, cursor=5, read=5, done=5))
    for write in (
        lambda: ledger.checkpoint(lease, 1, replace(old, cursor=9, read=9, done=9), mapped=[(1, 2)], collection="kb"),
        lambda: ledger.fail_partition(lease, 1, old, "late"),
    ):
        with pytest.raises(ClaimLost):
            write()
    held = ledger.partitions_of("r-1", 1)[0]
    assert (held.status, held.cursor, held.done, held.worker) == ("running", 5, 5, "w2")
    assert list(ledger.mapping("r-1", "kb")) == []  # all of the late checkpoint is refused, not only its cursor
    assert ledger.checkpoint(lease, 1, replace(new, cursor=6, status="pending"))  # handed back
    assert ledger.partitions_of("r-1", 1)[0].status == "pending"
    assert taken(ledger, lease).cursor == 6


def test_a_checkpoint_says_when_the_run_is_to_stop(ledger: Ledger, lease: Lease) -> None:
    ledger.cut(lease, 1, [KeyRange()], "f")
    part = taken(ledger, lease, cursor=1, read=1, done=1)
    assert ledger.checkpoint(lease, 1, part)
    assert ledger.ask("r-1", "pause", "paused")
    assert not ledger.checkpoint(lease, 1, replace(part, cursor=2))
    assert ledger.partitions_of("r-1", 1)[0].cursor == 2  # written all the same


def test_a_wish_reaches_whoever_works_and_else_is_fulfilled_at_once(ledger: Ledger, lease: Lease) -> None:
    assert ledger.ask("r-1", "pause", "paused")
    assert (ledger.run("r-1")["status"], ledger.wish("r-1")) == ("running", ("pause", None))
    ledger.report(lease, VecrunError("too late", "it stops anyway"))
    assert ledger.wish("r-1") == ("pause", None)
    ledger.set_run(lease, control=None)
    ledger.report(lease, NotFound("first", "here", "so"))
    ledger.report(lease, NotFound("second"))
    control, problem = ledger.wish("r-1")
    assert control == "stop"
    assert problem == {"error": "NotFound", "summary": "first", "detail": "here", "hint": "so"}
    ledger.release(lease)
    assert ledger.ask("r-1", "cancel", "cancelled")
    assert (ledger.run("r-1")["status"], ledger.run("r-1")["control"]) == ("cancelled", None)
    ledger.mark_run("r-1", status="rolled_back")
    assert not ledger.ask("r-1", "pause", "paused")
    assert not ledger.ask("r-2", "pause", "paused")
    assert ledger.run("r-1")["status"] == "rolled_back"


def test_a_run_is_begun_once_and_tells_its_lease(ledger: Ledger, lease: Lease) -> None:
    ledger.start_run(lease, plan(steps=()), "another text")
    assert ledger.run("r-1")["plan"] == plan().dumps()
    assert len(ledger.steps_of("r-1")) == len(STEPS)
    assert ledger.lease_of("r-1") == lease
    ledger.release(lease)
    later = ledger.acquire(["job:move", "collection:b/kb2"], "r-1", 60, shared={"slot": 2})
    ledger.hold(later, status="running")
    assert ledger.lease_of("r-1") == later
    assert later.token == lease.token + 1


ODD_IDS: list[int | str] = [42, "42", -(2**63), 2**64 - 1, "", "a'b\\", "日本語", "x" * 2000]


def test_cursors_and_mappings_keep_every_id_as_it_is(ledger: Ledger, lease: Lease) -> None:
    ledger.cut(lease, 1, [KeyRange()], "f")
    part = taken(ledger, lease, read=1, done=1)
    for item in ODD_IDS:
        ledger.checkpoint(lease, 1, replace(part, cursor=item), found=[(item, "differs")])
        assert ledger.partitions_of("r-1", 1)[0].cursor == item
    pairs: list[tuple[int | str, int | str]] = [(item, f"new-{number}") for number, item in enumerate(ODD_IDS)]
    part = replace(part, cursor=1)
    for _ in range(2):  # a batch may be repeated
        ledger.checkpoint(lease, 1, part, mapped=pairs, collection="kb")
    ledger.checkpoint(lease, 1, part, mapped=[(1, 2)], collection="other")
    pages = list(ledger.mapping("r-1", "kb", size=3))
    assert max(map(len, pages)) == 3
    found = [pair for page in pages for pair in page]
    assert sorted(found, key=repr) == sorted(pairs, key=repr)
    assert len(ledger.findings_of("r-1", 1)) == len(ODD_IDS)


def test_a_verification_is_forgotten_and_done_again(ledger: Ledger, lease: Lease) -> None:
    ledger.cut(lease, 3, [KeyRange()], "f")
    part = taken(ledger, lease, 3, cursor=1, read=1, status="done")
    ledger.checkpoint(lease, 3, part, found=[(1, "differs")])
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
    ledger.ask("r-1", "pause", "paused")
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


# What fresh eyes found ------------------------------------------------------------------------------------------------


def test_taking_a_partition_can_be_repeated(ledger: Ledger, lease: Lease) -> None:
    """The answer to its commit was lost: the same call finds that it has the partition; another call does not."""
    ledger.cut(lease, 1, [KeyRange()], "f")
    taken = ledger._take(lease, 1, 0, "", "one")
    assert taken is not None
    assert ledger._take(lease, 1, 0, "", "one") == taken
    assert ledger._take(lease, 1, 0, "", "two") is None


def test_runs_are_in_the_order_they_began_whatever_clocks_say(ledger: Ledger, lease: Lease) -> None:
    """A host whose clock is fast completes a run; one that is slow begins the next."""
    with ledger.writing() as connection:
        connection.exec_driver_sql("UPDATE runs SET created = '2999-01-01T00:00:00.000+00:00', status = 'completed'")
    ledger.release(lease)
    second = ledger.acquire(["job:move"], "r-2", 60)
    ledger.start_run(second, plan(created="later"), plan().dumps())
    assert [row["run"] for row in ledger.runs_of("move")] == ["r-2", "r-1"]
    unfinished = ledger.unfinished("move")
    assert unfinished is not None
    assert unfinished["run"] == "r-2"


def test_a_rollback_takes_what_it_undoes_out_of_the_workers_hands(ledger: Ledger, lease: Lease) -> None:
    ledger.release(lease)
    back = ledger.acquire(["job:move"], "r-2", 60)
    ledger.start_run(back, plan(purpose="rollback", of_run="r-1"), plan().dumps())
    assert ledger.run("r-1")["status"] == "cancelled"
    ledger.release(back)
    again = ledger.acquire(["job:move"], "r-3", 60)
    ledger.start_run(again, plan(purpose="rollback", of_run="r-1", serial=1), plan().dumps())
    assert ledger.run("r-2")["status"] == "rolled_back"


def test_a_cancel_is_not_replaced_by_a_pause(ledger: Ledger, lease: Lease) -> None:
    assert ledger.ask("r-1", "cancel", "cancelled")
    assert ledger.ask("r-1", "pause", "paused")
    assert ledger.wish("r-1")[0] == "cancel"


def test_a_name_with_a_hash_is_no_place_of_another(ledger: Ledger) -> None:
    reader = ledger.acquire([], "r-1", 60, shared={lock.collection("q/kb#a"): 1})
    with pytest.raises(LockHeld):
        ledger.acquire([lock.collection("q/kb#a")], "r-2", 60)
    ledger.release(reader)
    ledger.acquire([lock.collection("q/kb#1")], "r-2", 60)
    ledger.acquire([], "r-3", 60, shared={lock.collection("q/kb"): 1})
