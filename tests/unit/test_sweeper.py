"""Workers that fall silent: what they held is freed and sent again once (O3, A5). On SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
import sqlalchemy as sa

from runner import sweeper
from runner.lock import SLOT, Lease
from runner.points import KeyRange
from runner.sweeper import Message, Sweeper
from runner.tables import partitions, workers
from tests.unit.sample import plan


@pytest.fixture
def work(ledger: Sweeper) -> Lease:
    """A distributed run that is at its copy, in three partitions."""
    held = ledger.acquire(["job:move"], "r-1", 60)
    ledger.start_run(held, plan(), plan().dumps(), executor="distributed")
    ledger.cut(held, 1, [KeyRange(None, 5), KeyRange(5, 9), KeyRange(9, None)], "f")
    ledger.set_step(held, 1, "running")
    return held


def sweep(ledger: Sweeper, worker: str, *busy: tuple[str, int, int], idle: bool) -> list[Message]:
    """As a worker does it: first a sign of life of its own, without which it judges nobody."""
    ledger.beat(worker, 2, len(busy))
    return ledger.sweep(worker, lambda: busy, idle=idle)


def silent(ledger: Sweeper, worker: str) -> None:
    """As if `worker` had given its last sign of life a while ago."""
    with ledger.writing() as connection:
        before = ledger.clock(connection) - sweeper.SILENT_SECONDS - 1
        connection.execute(workers.update().where(workers.c.worker == worker).values(seen=before))


def test_what_a_dead_worker_held_is_sent_again_once(ledger: Sweeper, work: Lease) -> None:
    for worker in ("dead", "alive"):
        ledger.beat(worker, 2, 1)
    old = ledger.take(work, 1, 0, "dead")
    assert old is not None
    assert ledger.take(work, 1, 1, "alive") is not None
    assert sweep(ledger, "alive", ("r-1", 1, 1), idle=False) == []  # both gave a sign of life
    silent(ledger, "dead")
    found: list[Message] = []
    barrier = threading.Barrier(4)

    def at_once(number: int) -> None:
        barrier.wait()
        found.extend(sweep(ledger, f"w{number}", idle=False))

    threads = [threading.Thread(target=at_once, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Message("r-1", 1, 0, work.token)]
    freed, kept, waiting = ledger.partitions_of("r-1", 1)
    assert (freed.status, freed.worker, freed.claim > old.claim) == ("pending", None, True)
    assert (kept.status, kept.worker, waiting.status) == ("running", "alive", "pending")
    lines = [line["message"] for line in ledger.read_log("r-1")]
    assert lines == ["partition 0 of step 2 is taken up again: dead fell silent"]
    again = ledger.take(work, 1, 0, "alive")
    assert again is not None
    assert again.deliveries == 1  # the delivery that killed its worker counts


def test_a_worker_that_never_gave_a_sign_is_dead(ledger: Sweeper, work: Lease) -> None:
    ledger.take(work, 1, 0, "nobody")
    assert sweep(ledger, "w", idle=False) == [Message("r-1", 1, 0, work.token)]


def test_a_worker_gives_back_what_it_holds_without_working_on_it(ledger: Sweeper, work: Lease) -> None:
    ledger.beat("w", 2, 1)
    ledger.take(work, 1, 0, "w")
    ledger.take(work, 1, 1, "w")
    assert sweep(ledger, "w", ("r-1", 1, 0), idle=False) == [Message("r-1", 1, 1, work.token)]
    assert [part.status for part in ledger.partitions_of("r-1", 1)] == ["running", "pending", "pending"]
    assert ledger.read_log("r-1") == []  # nobody fell silent


def test_a_lost_message_is_sent_again_when_the_queue_is_empty(
    ledger: Sweeper, work: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.beat("w", 2, 0)
    assert sweep(ledger, "w", idle=False) == []
    assert [item.part for item in sweep(ledger, "w", idle=True)] == [0, 1, 2]
    assert sweep(ledger, "w", idle=True) == []  # just sent
    ledger.take(work, 1, 0, "w")
    monkeypatch.setattr(sweeper, "LOST_SECONDS", 0.05)
    time.sleep(0.1)
    assert [item.part for item in sweep(ledger, "w", ("r-1", 1, 0), idle=True)] == [1, 2]


@pytest.mark.parametrize("change", [{"status": "paused"}, {"control": "pause"}, {"executor": "embedded"}])
def test_only_runs_that_are_to_go_on_are_swept(ledger: Sweeper, work: Lease, change: dict[str, str]) -> None:
    ledger.set_run(work, **change)
    assert sweep(ledger, "w", idle=True) == []


def test_a_step_that_is_done_or_not_begun_is_not_swept(ledger: Sweeper, work: Lease) -> None:
    part = ledger.take(work, 1, 0, "w")
    assert part is not None
    ledger.checkpoint(work, 1, replace(part, status="done"))
    assert [item.part for item in sweep(ledger, "x", idle=True)] == [1, 2]
    ledger.set_step(work, 1, "done")
    with ledger.writing() as connection:
        connection.execute(partitions.update().values(queued=None))
    assert sweep(ledger, "x", idle=True) == []


def test_runs_that_nobody_coordinates(ledger: Sweeper, work: Lease) -> None:
    assert ledger.orphans(2) == []
    ledger.renew(work, 0.05)
    time.sleep(0.1)
    assert ledger.orphans(2) == ["r-1"]
    later = ledger.acquire(["job:move"], "r-1", 60)
    assert ledger.orphans(2) == []
    ledger.hold(later, status="pending")
    ledger.release(later)
    assert ledger.orphans(2) == ["r-1"]
    for values in ({"status": "paused"}, {"status": "running", "executor": "embedded"}):
        ledger.mark_run("r-1", **values)
        assert ledger.orphans(2) == []


def test_who_gave_no_sign_itself_judges_nobody(ledger: Sweeper, work: Lease) -> None:
    """The ledger was away, and nobody could write: the first to come back must not take the others for dead."""
    ledger.beat("other", 2, 1)
    ledger.take(work, 1, 0, "other")
    silent(ledger, "other")
    assert ledger.sweep("w", tuple, idle=False) == []
    assert sweep(ledger, "w", idle=False) == [Message("r-1", 1, 0, work.token)]


def test_nobody_is_asked_to_go_on_while_all_slots_are_taken(ledger: Sweeper, work: Lease) -> None:
    ledger.release(work)
    assert ledger.orphans(1) == ["r-1"]
    ledger.acquire([], "r-9", 60, shared={SLOT: 1})
    assert ledger.orphans(1) == []
    assert ledger.orphans(2) == ["r-1"]


def test_who_is_alive_and_at_work(ledger: Sweeper, work: Lease) -> None:
    ledger.beat("one", 2, 0)
    ledger.beat("two", 4, 1)
    ledger.take(work, 1, 0, "one")
    ledger.take(work, 1, 1, "two")
    assert {row["worker"]: row["threads"] for row in ledger.crew()} == {"one": 2, "two": 4}
    assert ledger.at_work("r-1") == 2
    silent(ledger, "one")
    assert [row["worker"] for row in ledger.crew()] == ["two"]
    assert ledger.at_work("r-1") == 1
    ledger.beat("one", 3, 0)
    assert {row["worker"]: row["threads"] for row in ledger.crew()} == {"one": 3, "two": 4}
    ledger.leave("two")
    assert [row["worker"] for row in ledger.crew()] == ["one"]
    with ledger.reading() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(workers)).scalar_one() == 1
