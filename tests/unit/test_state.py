"""State documents: one contract for the folder and for PostgreSQL (G7, O1)."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from runner.errors import LeaseLost, NotFound, PlanRefused, VecrunError
from runner.plan import Place
from runner.records import Records
from runner.state import Applied, Fence, Serving, State, StateDirectory, States, StateTable, write_atomically
from runner.sweeper import Sweeper


@dataclass
class Kept:
    """Documents in one place, and the ledger whose leases guard them."""

    states: States
    ledger: Sweeper
    other: States  # in another place

    @contextmanager
    def fence(self, name: str = "job:move") -> Iterator[object]:
        """A lease that is ours, for one write."""
        lease = self.ledger.acquire([name], f"r-{name}", 60)
        with self.ledger.guarded(lease) as held:
            yield held
        self.ledger.release(lease)

    def write(self, count: int) -> list[State]:
        """So many serials of job move."""
        lease, made = self.ledger.acquire(["job:move"], "r-write", 60), list[State]()
        for _ in range(count):
            before = self.states.load("move")
            changed = before.model_copy(update={"status": "applied", "pinned": f"p{before.serial + 1}"})
            made.append(self.states.save(changed, self.ledger.guarded(lease)))
        self.ledger.release(lease)
        return made


@pytest.fixture(params=["directory", "table"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kept]:
    if request.param == "directory":
        ledger = Sweeper(f"sqlite:///{tmp_path}/ledger.db")
        yield Kept(StateDirectory(tmp_path / "state"), ledger, StateDirectory(tmp_path / "other"))
        ledger.close()
        return
    url = request.getfixturevalue("pg_database")
    ledger, dev = Sweeper(url), Sweeper(url, "vecrun_dev")
    yield Kept(StateTable(ledger, "database, vecrun"), ledger, StateTable(dev, "database, vecrun_dev"))
    ledger.close()
    dev.close()


def applied(state: State, **changes: object) -> State:
    return state.model_copy(update={"status": "applied"} | changes)


def test_the_serial_moves_with_the_content_only(kept: Kept) -> None:
    fresh = kept.states.load("move")
    assert (fresh.serial, kept.states.jobs()) == (0, [])
    lease = kept.ledger.acquire(["job:move"], "r-1", 60)
    one = kept.states.save(applied(fresh), kept.ledger.guarded(lease))
    assert one.serial == 1
    assert kept.states.save(one, kept.ledger.guarded(lease)) == one
    assert kept.states.load("move") == kept.states.version("move") == one
    assert kept.states.jobs() == ["move"]
    assert [item.serial for item in kept.states.history("move")] == [1]


def test_a_state_that_moved_meanwhile_is_not_overwritten(kept: Kept) -> None:
    fresh = kept.states.load("move")
    [one] = kept.write(1)
    fence = kept.ledger.acquire(["job:move"], "r-1", 60)
    with pytest.raises(PlanRefused, match="moved meanwhile"):
        kept.states.save(fresh.model_copy(update={"status": "rolled_back"}), kept.ledger.guarded(fence))
    with pytest.raises(PlanRefused):
        kept.states.save(applied(one, lineage="another", pinned="x"), kept.ledger.guarded(fence))
    assert kept.states.load("move") == one


def test_of_two_writers_with_one_serial_one_wins(kept: Kept) -> None:
    lease = kept.ledger.acquire(["job:move"], "r-1", 60)
    for round_ in range(5):
        before = kept.states.load("move")
        won, lost = list[State](), list[PlanRefused]()
        barrier = threading.Barrier(4)

        def write(
            number: int, before: State = before, won: list[State] = won, lost: list[PlanRefused] = lost,
            barrier: threading.Barrier = barrier, round_: int = round_,
        ) -> None:  # fmt: skip
            barrier.wait()
            try:
                won.append(kept.states.save(applied(before, pinned=f"{round_}-{number}"), kept.ledger.guarded(lease)))
            except PlanRefused as exc:
                lost.append(exc)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 3)
        assert kept.states.load("move") == won[0]
        assert won[0].serial == before.serial + 1


WRITES: dict[str, Callable[[Kept, State, Fence], object]] = {
    "save": lambda kept, state, fence: kept.states.save(applied(state, pinned="late"), fence),
    "push": lambda kept, state, fence: kept.states.push(applied(state, pinned="late"), fence, force=True),
    "remove": lambda kept, _state, fence: kept.states.remove("move", fence),
    "forget": lambda kept, _state, fence: kept.states.forget("move", [1], fence),
    "change_serving": lambda kept, state, fence: kept.states.change_serving(
        lambda serving: serving.model_copy(update={"pointers": {"x": Place(connection="a", collection="b")}}), fence
    ),
}


@pytest.mark.parametrize("write", WRITES)
def test_without_the_lease_nothing_is_written(kept: Kept, write: str) -> None:
    made = kept.write(2)
    lease = kept.ledger.acquire(["job:move"], "r-1", 60)
    kept.ledger.force_release("job:move", lease.token)
    history = kept.states.history("move")
    with pytest.raises(LeaseLost):
        WRITES[write](kept, made[-1], kept.ledger.guarded(lease))
    assert kept.states.load("move") == made[-1]
    assert kept.states.history("move") == history
    assert kept.states.serving().pointers == {}


def test_all_that_was_before_stays_as_history(kept: Kept) -> None:
    made = kept.write(4)
    history = kept.states.history("move")
    assert [item.serial for item in history] == [4, 3, 2, 1]
    assert [kept.states.version("move", item.serial) for item in reversed(made)] == list(reversed(made))
    times = [datetime.fromisoformat(item.written) for item in history]
    assert times == sorted(times, reverse=True)
    assert abs(datetime.now(UTC) - times[0]) < timedelta(seconds=30)
    assert json.loads(kept.states.text("move", 2)) == made[1].model_dump(mode="json")
    for job, serial in (("move", 9), ("other", None), ("other", 1)):
        with pytest.raises(NotFound, match="No state"):
            kept.states.version(job, serial)


def test_old_history_is_forgotten_but_the_newest(kept: Kept) -> None:
    made = kept.write(14)
    soon, before = datetime.now(UTC) + timedelta(seconds=5), datetime.now(UTC) - timedelta(days=1)
    assert kept.states.expired("move", before) == []
    assert kept.states.expired("move", soon) == [4, 3, 2, 1]
    assert kept.states.expired("other", soon) == []
    kept.states.forget("move", [4, 2, 1, 14, 99], kept.fence())
    assert [item.serial for item in kept.states.history("move")] == [14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 3]
    assert kept.states.load("move") == made[-1]
    assert kept.write(1)[0].serial == 15


def test_a_document_is_pushed_onto_the_one_it_was_pulled_from(kept: Kept) -> None:
    one = kept.write(1)[0]
    lease = kept.ledger.acquire(["job:move"], "r-1", 60)
    fence = lambda: kept.ledger.guarded(lease)  # noqa: E731
    assert kept.states.push(one, fence()) == one  # nothing changes
    assert len(kept.states.history("move")) == 1
    two = kept.states.push(applied(one, pinned="edited"), fence())
    assert (two.serial, two.pinned) == (2, "edited")
    for wrong in (applied(one, pinned="x"), applied(two, pinned="x", lineage="another")):
        with pytest.raises(PlanRefused, match="moved since it was pulled"):
            kept.states.push(wrong, fence())
    three = kept.states.push(applied(one, pinned="x", lineage="another"), fence(), force=True)
    assert (three.serial, three.lineage, three.pinned) == (3, one.lineage, "x")
    assert kept.states.load("move") == three
    assert [item.serial for item in kept.states.history("move")] == [3, 2, 1]


def test_a_document_moves_to_another_place_as_it_is(kept: Kept) -> None:
    last = kept.write(3)[-1]
    lease = Sweeper.acquire
    ledger = kept.other.records if isinstance(kept.other, StateTable) else kept.ledger
    assert isinstance(ledger, Sweeper)
    held = lease(ledger, ["job:move"], "r-1", 60)
    assert kept.other.push(last, ledger.guarded(held)) == last
    assert kept.other.load("move") == last
    assert kept.other.text("move") == kept.states.text("move")


def test_a_removed_document_is_gone_and_its_serials_go_on(kept: Kept) -> None:
    made = kept.write(2)
    plan_of_that_time = made[-1].serial
    kept.states.remove("move", kept.fence())
    assert kept.states.jobs() == []
    assert kept.states.names() == ["move"]
    fresh = kept.states.load("move")
    assert (fresh.status, fresh.applied, fresh.lineage) == ("new", (), made[0].lineage)
    assert fresh.serial > plan_of_that_time
    with pytest.raises(NotFound):
        kept.states.version("move")
    lease = kept.ledger.acquire(["job:other"], "r-2", 60)
    with pytest.raises(NotFound):
        kept.states.remove("move", kept.ledger.guarded(lease))
    assert kept.states.version("move", 2) == made[-1]
    assert [item.serial for item in kept.states.history("move")] == [2, 1]
    back = kept.states.push(made[-1], kept.ledger.guarded(lease))
    assert back == made[-1].model_copy(update={"serial": fresh.serial + 1})
    kept.states.remove("move", kept.ledger.guarded(lease))
    again = kept.states.save(applied(kept.states.load("move")), kept.ledger.guarded(lease))
    assert again.serial > back.serial
    assert kept.states.version("move", 1) == made[0]


def test_pointers_of_jobs_that_end_at_once_are_all_kept(kept: Kept) -> None:
    def set_ten(number: int) -> None:
        lease = kept.ledger.acquire([f"job:{number}"], f"r-{number}", 60)
        for count in range(10):
            place = Place(connection=f"c{number}", collection=f"n{count}")

            def change(serving: Serving, place: Place = place) -> Serving:
                return serving.model_copy(
                    update={"pointers": serving.pointers | {f"{place.connection}-{place.collection}": place}}
                )

            kept.states.change_serving(change, kept.ledger.guarded(lease))

    threads = [threading.Thread(target=set_ten, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    serving = kept.states.serving()
    assert (len(serving.pointers), serving.serial) == (40, 40)
    kept.states.change_serving(lambda value: value, kept.fence())
    assert kept.states.serving() == serving
    assert kept.states.names() == ["serving"]
    assert kept.states.jobs() == []


def test_lineage_is_the_same_for_one_place_and_another_elsewhere(kept: Kept) -> None:
    assert kept.states.load("move").lineage == kept.states.load("move").lineage
    lineages = {kept.states.load("move").lineage, kept.states.load("a").lineage, kept.other.load("move").lineage}
    assert len(lineages) == 3


def test_lineage_does_not_depend_on_the_name_of_the_server(pg_database: str) -> None:
    one, two = Sweeper(pg_database), Sweeper(pg_database)
    assert StateTable(one, "by this name").load("move").lineage == StateTable(two, "by that").load("move").lineage
    one.close()
    two.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not whole JSON"),
        ("[]", "not whole JSON"),
        ('{"format_version": "2.0"}', "newer format"),
        ('{"format_version": "1.0"}', "lineage"),
        ('{"format_version": "1.0", "lineage": "l", "serial": 1, "job": "move", "status": "x"}', "status"),
        ('{"format_version": "1.0", "lineage": "l", "serial": 1, "job": "move", "aplied": []}', "aplied"),
    ],
)
def test_a_wrong_document_of_the_user_is_refused(kept: Kept, text: str, words: str) -> None:
    with pytest.raises(VecrunError) as refused:
        kept.states.parse(text, "mine.json")
    assert words in str(refused.value)
    assert "mine.json" in refused.value.detail


# The folder only ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Kept]:
    ledger = Sweeper(f"sqlite:///{tmp_path}/ledger.db")
    yield Kept(StateDirectory(tmp_path / "state"), ledger, StateDirectory(tmp_path / "other"))
    ledger.close()


def test_a_newer_minor_is_read_and_a_newer_major_refused(folder: Kept) -> None:
    folder.write(1)
    assert isinstance(folder.states, StateDirectory)
    path = folder.states.directory / "move.json"
    path.write_text(path.read_text().replace('"1.3"', '"1.9", "new_key": 1'))
    assert folder.states.load("move").status == "applied"
    path.write_text(path.read_text().replace('"1.9"', '"2.0"'))
    with pytest.raises(VecrunError, match="newer format"):
        folder.states.load("move")


def test_a_damaged_document_is_replaced_by_force_only(folder: Kept) -> None:
    made = folder.write(3)
    assert isinstance(folder.states, StateDirectory)
    path = folder.states.directory / "move.json"
    path.write_text(path.read_text()[:50])
    lease = folder.ledger.acquire(["job:move"], "r-1", 60)
    with pytest.raises(VecrunError, match="damaged") as damaged:
        folder.states.push(made[1], folder.ledger.guarded(lease))
    assert "move.2.json" in damaged.value.hint
    assert [item.serial for item in folder.states.history("move")] == [3, 2, 1]
    assert folder.states.version("move", 2) == made[1]
    with pytest.raises(VecrunError, match="damaged"):
        folder.states.version("move", 3)
    assert folder.states.push(made[1], folder.ledger.guarded(lease), force=True).serial == 4
    assert folder.states.load("move").pinned == made[1].pinned
    assert [item.serial for item in folder.states.history("move")] == [4, 3, 2, 1]
    path.write_text("")
    folder.states.remove("move", folder.ledger.guarded(lease))
    assert folder.states.load("move").serial == 5


def test_history_knows_when_a_document_was_written_not_when_it_was_replaced(folder: Kept) -> None:
    folder.write(1)
    assert isinstance(folder.states, StateDirectory)
    old = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    os.utime(folder.states.directory / "move.json", (old.timestamp(), old.timestamp()))
    folder.write(1)
    assert folder.states.history("move")[1].written == "2026-01-02T03:04:05.000+00:00"


def test_jobs_whose_names_look_like_serials_keep_apart(folder: Kept) -> None:
    for job in ("move", "move.1", "move.1.2"):
        lease = folder.ledger.acquire([f"job:{job}"], "r-1", 60)
        for number in range(3):
            changed = folder.states.load(job).model_copy(update={"pinned": f"{job}-{number}"})
            folder.states.save(changed, folder.ledger.guarded(lease))
    assert folder.states.jobs() == folder.states.names() == ["move", "move.1", "move.1.2"]
    for job in folder.states.jobs():
        assert [item.serial for item in folder.states.history(job)] == [3, 2, 1]
        assert folder.states.version(job, 2).pinned == f"{job}-1"


def test_files_are_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    with pytest.raises(VecrunError):
        write_atomically(tmp_path / "no" / "f", "x")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir() if not item.name.endswith(".tmp")] == ["f"]


def test_what_was_forgotten_is_kept_in_the_document(folder: Kept) -> None:
    item = Applied(run="r-1", plan_digest="d", spec_digest="s", finished="2026-01-01", expires="2026-02-01")
    changed = applied(folder.states.load("move"), applied=(item,), forgotten={"r-1": "2026-03-01"})
    saved = folder.states.save(changed, folder.fence())
    assert folder.states.load("move") == saved
    assert folder.states.version("move").forgotten == {"r-1": "2026-03-01"}


# PostgreSQL only ------------------------------------------------------------------------------------------------------


def test_a_document_is_read_again_when_the_server_closes_the_connection(pg_database: str) -> None:
    records, other = Records(pg_database), Records(pg_database)
    states, reads = StateTable(records, "here"), list[str]()

    def cut(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if "body" in statement:
            reads.append(statement)
            if len(reads) == 1:
                with other.writing() as killer:
                    killer.exec_driver_sql(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )

    sa.event.listen(records.engine, "before_cursor_execute", cut)
    assert states.load("move").serial == 0
    assert len(reads) == 2
    records.close()
    other.close()
