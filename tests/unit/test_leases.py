"""Leases: one holder at a time, shared places, the server's clock, and the holder that died (O1, A8).
On SQLite and on PostgreSQL.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from runner import lock
from runner.errors import LeaseLost, LockHeld, NoSlot
from runner.lock import SLOT, Keeper, Lease
from runner.records import Records
from runner.sweeper import Sweeper


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run `work(number)` in so many threads at once, to the end."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> None:
        barrier.wait()
        work(number)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(count)]
    for item in threads:
        item.start()
    for item in threads:
        item.join()


def test_a_name_is_held_by_one(ledger: Sweeper) -> None:
    first = ledger.acquire(["x", "y"], "r-1", 60)
    with pytest.raises(LockHeld, match=r"y is held by run r-1 of .*pid"):
        ledger.acquire(["y", "z"], "r-2", 60)
    assert [row["name"] for row in ledger.holders()] == ["x", "y"]  # all or none: z was not taken
    ledger.release(first)
    assert ledger.holders() == []
    second = ledger.acquire(["y"], "r-2", 60)
    assert dict(second.tokens)["y"] == dict(first.tokens)["y"] + 1
    ledger.release(first)  # late, and without effect
    with ledger.guarded(second):
        pass


def test_of_many_at_once_one_wins(ledger: Sweeper) -> None:
    for number in range(5):
        won: list[Lease] = []

        def take(_thread: int, won: list[Lease] = won, number: int = number) -> None:
            with contextlib.suppress(LockHeld):
                won.append(ledger.acquire(["x"], f"r-{number}", 60))

        in_threads(6, take)
        assert len(won) == 1
        ledger.release(won[0])


def test_shared_places_are_taken_until_there_is_none(ledger: Sweeper) -> None:
    one = ledger.acquire(["job:1"], "r-1", 60, shared={"source": 2})
    two = ledger.acquire(["job:2"], "r-2", 60, shared={"source": 2})
    assert [name for name, _ in (*one.tokens, *two.tokens)] == ["job:1", "source#1", "job:2", "source#2"]
    with pytest.raises(LockHeld, match=r"source is held by run r-1 .*; run r-2") as refused:
        ledger.acquire(["job:3"], "r-3", 60, shared={"source": 2})
    assert not isinstance(refused.value, NoSlot)
    with pytest.raises(LockHeld, match="source is held"):  # nobody holds alone what others share
        ledger.acquire(["source"], "r-3", 60)
    assert "job:3" not in {row["name"] for row in ledger.holders()}
    ledger.release(one)
    three = ledger.acquire(["job:3"], "r-3", 60, shared={"source": 2})
    assert ("source#1", 2) in three.tokens
    ledger.release(two)
    ledger.release(three)
    alone = ledger.acquire(["source"], "r-4", 60)
    with pytest.raises(LockHeld, match="source is held by run r-4"):
        ledger.acquire([], "r-5", 60, shared={"source": 2})
    ledger.release(alone)


def test_without_a_slot_a_run_is_told_who_has_them(ledger: Sweeper) -> None:
    ledger.acquire(["job:1"], "r-1", 60, shared={SLOT: 2})
    ledger.acquire(["job:2"], "r-2", 60, shared={SLOT: 2})
    with pytest.raises(NoSlot, match=r"2 runs are at work(?s:.)*r-1(?s:.)*r-2"):
        ledger.acquire(["job:3"], "r-3", 60, shared={SLOT: 2})
    assert dict(ledger.acquire(["job:3"], "r-3", 60, shared={SLOT: 3}).tokens)["slot#3"] == 1


def test_of_many_at_once_as_many_win_as_there_are_places(ledger: Sweeper) -> None:
    won: list[Lease] = []

    def take(thread: int) -> None:
        with contextlib.suppress(NoSlot):
            won.append(ledger.acquire([f"job:{thread}"], f"r-{thread}", 60, shared={SLOT: 3}))

    in_threads(8, take)
    assert len(won) == 3
    places = sorted(name for item in won for name, _ in item.tokens if name.startswith("slot#"))
    assert places == ["slot#1", "slot#2", "slot#3"]


def test_a_lease_that_ran_out_is_lost_and_free(ledger: Sweeper) -> None:
    old = ledger.acquire(["x"], "r-1", 0.05)
    time.sleep(0.1)
    with pytest.raises(LeaseLost), ledger.guarded(old):
        pass
    new = ledger.acquire(["x"], "r-2", 60)
    with pytest.raises(LeaseLost):
        ledger.renew(old, 60)
    with ledger.guarded(new):
        pass


@pytest.mark.parametrize("wrong", [-3600.0, 3600.0])
def test_the_clock_of_a_client_does_not_matter(pg_database: str, monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    ledger, real = Sweeper(pg_database), time.time
    with contextlib.closing(ledger):
        held = ledger.acquire(["x"], "r-1", 60)
        monkeypatch.setattr(time, "time", lambda: real() + wrong)
        with pytest.raises(LockHeld):  # not stolen
            ledger.acquire(["x"], "r-2", 60)
        ledger.renew(held, 60)  # not lost
        with ledger.guarded(held):
            pass
        assert 55 < ledger.holders()[0]["seconds"] <= 60
        ledger.renew(held, 0.05)
        time.sleep(0.1)
        assert ledger.holders()[0]["expired"]
        other = ledger.acquire(["x", "y"], "r-2", 60)
        monkeypatch.undo()
        assert all(55 < row["seconds"] <= 60 for row in ledger.holders())
        with ledger.guarded(other):
            pass


def test_a_dead_process_of_this_machine_is_replaced_at_once(ledger: Sweeper, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"from runner.ledger import Ledger\nLedger({ledger.url!r}).acquire(['x'], 'r-dead', 3600)\n"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [(row["run"], row["expired"]) for row in ledger.holders()] == [("r-dead", True)]
    # another machine may have the same name, and another process with that pid
    monkeypatch.setattr(lock, "machine", lambda: "another")
    assert not ledger.holders()[0]["expired"]
    with pytest.raises(LockHeld):
        ledger.acquire(["x"], "r-2", 60)
    monkeypatch.undo()
    assert dict(ledger.acquire(["x"], "r-2", 60).tokens) == {"x": 2}


def test_a_wish_for_a_run_whose_process_died_is_fulfilled_at_once(ledger: Sweeper) -> None:
    code = (
        "from runner.ledger import Ledger\nfrom tests.unit.sample import plan\n"
        f"ledger = Ledger({ledger.url!r})\nlease = ledger.acquire(['x'], 'r-dead', 3600)\n"
        "ledger.start_run(lease, plan(), plan().dumps())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert ledger.ask("r-dead", "pause", "paused")
    assert (ledger.run("r-dead")["status"], ledger.run("r-dead")["control"]) == ("paused", None)


def test_a_process_that_has_the_pid_of_the_dead_holder(ledger: Sweeper, monkeypatch: pytest.MonkeyPatch) -> None:
    held = ledger.acquire(["x"], "r-1", 3600)
    with pytest.raises(LockHeld):
        ledger.acquire(["x"], "r-2", 60)
    monkeypatch.setattr(lock, "_HELD", set())  # as in a process that only got our pid
    assert ledger.acquire(["x"], "r-2", 60).token == held.token + 1


def test_an_operator_frees_only_what_was_looked_at(ledger: Sweeper, lease: Lease) -> None:
    token = dict(lease.tokens)["job:move"]
    assert not ledger.force_release("job:move", token + 1)
    assert ledger.force_release("job:move", token)
    assert not ledger.force_release("job:move", token)
    with pytest.raises(LeaseLost), ledger.guarded(lease):
        pass


def test_a_keeper_renews_and_says_when_it_cannot(ledger: Sweeper, lease: Lease) -> None:
    stop = threading.Event()
    ledger.renew(lease, 0.6)
    with Keeper(ledger, lease, 0.6, stop) as keeper:
        time.sleep(1.2)
        assert keeper.error is None
        ledger.force_release("job:move", dict(lease.tokens)["job:move"])
        assert stop.wait(5)
    assert isinstance(keeper.error, LeaseLost)


def test_workers_of_one_run_write_at_the_same_time_and_nobody_takes_the_lease_meanwhile(pg_database: str) -> None:
    """PostgreSQL only: SQLite lets one writer in at a time anyway."""
    ledger = Sweeper(pg_database)
    with contextlib.closing(ledger):
        lease = ledger.acquire(["x"], "r-1", 60)
        with ledger.guarded(lease), ledger.guarded(lease):  # two at once, in two connections
            taken = threading.Event()

            def take() -> None:
                with contextlib.suppress(LockHeld):
                    ledger.acquire(["x"], "r-2", 60)
                taken.set()

            thread = threading.Thread(target=take)
            thread.start()
            assert not taken.wait(0.3)  # whoever takes a lease waits for those who write under it
        assert taken.wait(10)
        thread.join()
        with ledger.guarded(lease):
            ledger.renew(lease, 60)  # does not wait for those who write: a stream of them would starve it


def test_a_transaction_of_a_stopped_process_does_not_hold_the_lease_for_ever(
    pg_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner import records

    monkeypatch.setattr(records, "IDLE_SECONDS", 1)
    ledger = Sweeper(pg_database)
    with contextlib.closing(ledger):
        lease = ledger.acquire(["x"], "r-1", 60)
        began = time.monotonic()

        def stopped() -> None:
            with ledger.guarded(lease) as connection:
                time.sleep(1.5)  # as if it had been stopped here
                connection.exec_driver_sql("SELECT 1")

        with pytest.raises(records.LedgerGone):
            stopped()
        ledger.release(lease)
        assert time.monotonic() - began < 10


def test_a_method_is_repeated_when_the_server_closes_its_connections(
    pg_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, other = Sweeper(pg_database), Records(pg_database)
    with contextlib.closing(ledger), contextlib.closing(other):
        lease = ledger.acquire(["x"], "r-1", 60)
        seen: list[int] = []
        clock = Sweeper.clock

        def killed(self: Sweeper, connection: object) -> float:
            seen.append(1)
            if len(seen) == 1:
                with other.writing() as killer:
                    killer.exec_driver_sql(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
            return clock(self, connection)  # type: ignore[arg-type]

        monkeypatch.setattr(Sweeper, "clock", killed)
        ledger.write_log("r-1", "info", "before")
        assert [row["name"] for row in ledger.holders()] == ["x"]
        assert len(seen) == 2
        ledger.release(lease)
