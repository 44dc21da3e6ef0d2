"""Stores that fail on purpose, two processes at one job, a process that was asleep too long, and a full disk.

Whatever happens on the way, in the end the target must hold the points that are known from the seed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from runner import cli, commands, world
from runner.errors import ItemsFailed, LockHeld, Permanent, TooLarge, Transient
from runner.executor import slices
from runner.points import CollectionSchema, IdKind, KeyRange, Payloads, PointBatch, PointId
from runner.store import ConnectionConfig, Problem, ReadOnlyStore, Store
from runner.stores import open_store
from runner.transform import IdMode
from tests import warm
from tests.faults import scene
from tests.faults.scene import JOB, Pair
from tests.faults.truth import Truth, compare

POINTS, BATCH, RETRIES = 600, 40, 3
REPOSITORY = Path(__file__).parents[2]


class FaultyStore(ReadOnlyStore):
    """Passes everything on, after (or before) asking `faults` whether it may."""

    def __init__(self, inner: Store, faults: Faults) -> None:
        super().__init__(inner)
        self.faults = faults

    def create(self, schema: CollectionSchema) -> None:
        self.inner.create(schema)

    def finish(self, schema: CollectionSchema) -> None:
        self.faults.on_finish()
        self.inner.finish(schema)

    def problems(self, schema: CollectionSchema, batch: PointBatch) -> list[Problem]:
        self.faults.on_check()
        return self.inner.problems(schema, batch)

    def drop(self, name: str) -> None:
        self.inner.drop(name)

    def delete(self, name: str, ids: Sequence[PointId]) -> None:
        self.inner.delete(name, ids)

    def set_alias(self, alias: str, name: str | None) -> None:
        self.inner.set_alias(alias, name)

    def upsert(self, name: str, batch: PointBatch) -> None:
        self.faults.before_write(batch)
        self.inner.upsert(name, batch)
        self.faults.after_write(batch)

    def scan(
        self, name: str, keys: KeyRange, after: PointId | None = None, batch_size: int = 1000
    ) -> Iterator[PointBatch]:
        return self.faults.scanned(self.inner, name, keys, after, batch_size)


class Faults:
    """What goes wrong; nothing unless a test says so. `writes` are the sizes of the batches that were let through."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # two workers write at once, and each number must come to one of them
        self.calls = 0
        self.writes: list[int] = []
        self.scans: Counter[tuple[Any, Any]] = Counter()
        self.on_write: Callable[[int, PointBatch], None] = lambda _call, _batch: None
        self.on_written: Callable[[int, PointBatch], None] = lambda _call, _batch: None
        self.on_scan: Callable[[Iterator[PointBatch]], Iterator[PointBatch]] = lambda batches: batches
        self.on_check: Callable[[], None] = lambda: None
        self.on_finish: Callable[[], None] = lambda: None

    def before_write(self, batch: PointBatch) -> None:
        with self._lock:
            self.calls += 1
            call = self.calls
        self.on_write(call, batch)

    def after_write(self, batch: PointBatch) -> None:
        with self._lock:
            self.writes.append(len(batch))
            call = len(self.writes)
        self.on_written(call, batch)

    def scanned(self, inner: Store, name: str, keys: KeyRange, *rest: Any) -> Iterator[PointBatch]:
        self.scans[keys.lo, rest[0]] += 1
        return self.on_scan(inner.scan(name, keys, *rest))


class Bench:
    """A migration from files to a target whose stores fail on purpose."""

    def __init__(self, directory: Path, target: str, postgres: str) -> None:
        self.directory, self.faults = directory, Faults()
        pair = Pair("files", target, IdKind.STRING, IdMode.UUID5, "sqlite")
        scene.build(str(directory), asdict(pair), 4, POINTS, BATCH, postgres)
        self.set_limits(workers=2, retries=RETRIES, retry_delay=0.001)

    def set_limits(self, **limits: Any) -> None:
        path = self.directory / "vecrun.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"limits": limits}))

    @property
    def context(self) -> commands.Context:
        return commands.open_context(self.directory)

    def apply(self) -> commands.Outcome:
        """Plan while nothing fails, then apply."""
        faults, self.faults = self.faults, Faults()
        made = commands.plan(self.context, self.directory / "jobs" / f"{JOB}.yaml")
        self.faults = faults
        return commands.apply(self.context, made)

    def resume(self) -> commands.Outcome:
        return commands.resume(self.context, JOB)

    def cure(self) -> None:
        """From now on nothing fails."""
        self.faults = Faults()

    def assert_moved(self) -> None:
        checked = scene.check(str(self.directory), moved=True)
        wrong = {key: checked["counts"][key] for key in ("lost", "doubled", "changed")}
        assert wrong == {"lost": 0, "doubled": 0, "changed": 0}, checked["counts"]["examples"]
        assert checked["findings"] == []

    def partitions(self) -> list[tuple[str, int, str | None]]:
        """(status, points done, error) of the partitions of the copy."""
        with closing(sqlite3.connect(self.directory / "state" / "ledger.db")) as ledger:
            query = "select status, done, error from partitions where step = 1 order by part"
            return list(ledger.execute(query).fetchall())


@pytest.fixture(params=["files", "pgvector"])
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pg_url: str) -> Bench:
    made = Bench(tmp_path / "w", request.param, pg_url)
    monkeypatch.setattr(slices, "CHECKPOINT_SECONDS", 0)
    source = str(tmp_path / "w" / "a")

    def opened(config: ConnectionConfig) -> Store:
        store = FaultyStore(open_store(config), made.faults)
        if getattr(config, "path", "") != source:  # only the source breaks scans, only the target breaks writes
            store.scan = store.inner.scan  # type: ignore[method-assign]
        return store

    monkeypatch.setattr(world, "open_store", opened)
    return made


# -- writes --------------------------------------------------------------------------------------------------


def test_transient_errors_are_tried_again(bench: Bench) -> None:
    def now_and_then(call: int, _batch: PointBatch) -> None:
        if call % 3 == 1:
            raise Transient("The store did not answer", "on purpose")

    bench.faults.on_write = now_and_then
    assert bench.apply().points == POINTS
    bench.assert_moved()


def test_a_target_that_does_not_answer_a_check_loses_nothing(bench: Bench) -> None:
    """Some stores look at a batch with the server's help, before it is written."""
    calls = 0

    def now_and_then() -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 1:
            raise Transient("The store did not answer", "on purpose, at a check")

    bench.faults.on_check = now_and_then
    assert bench.apply().points == POINTS
    assert calls > POINTS // BATCH
    bench.assert_moved()


def test_a_step_without_partitions_waits_for_its_store(bench: Bench) -> None:
    """A server that restarts while it builds an index does not end the run."""
    calls = 0

    def twice() -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise Transient("The store did not answer", "on purpose, while it finished")

    bench.faults.on_finish = twice
    assert bench.apply().points == POINTS
    assert calls == 3
    bench.assert_moved()


def test_a_write_whose_answer_was_lost_is_repeated_harmlessly(bench: Bench) -> None:
    def lost(call: int, _batch: PointBatch) -> None:
        if call % 3 == 1:
            raise Transient("The connection broke", "on purpose, after the write")

    bench.faults.on_written = lost
    assert bench.apply().points == POINTS
    assert sum(bench.faults.writes) > POINTS
    bench.assert_moved()


def test_batches_shrink_when_they_are_too_large_and_grow_back(bench: Bench) -> None:
    bench.set_limits(workers=1, retries=RETRIES, retry_delay=0.001)

    def picky(_call: int, batch: PointBatch) -> None:
        if sum(bench.faults.writes) < POINTS / 4 and len(batch) > 7:
            raise TooLarge("The batch is too large", f"{len(batch)} points")

    bench.faults.on_write = picky
    bench.apply()
    sizes = bench.faults.writes
    small = [size for size in sizes if size <= 7]
    assert small
    assert max(sizes[: len(small)]) <= 7
    assert BATCH in sizes[len(small) :], f"the batches never grew back: {sizes}"
    bench.assert_moved()


def test_too_large_forever_sets_the_partition_aside(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.executor.flow.MAX_DELAY", 0.01)

    def never(_call: int, batch: PointBatch) -> None:
        raise TooLarge("The batch is too large", f"{len(batch)} points")

    bench.faults.on_write = never
    with pytest.raises(ItemsFailed):
        bench.apply()
    assert bench.faults.calls < 100
    bench.cure()
    bench.resume()
    bench.assert_moved()


def test_retries_are_bounded_and_the_partition_is_set_aside(bench: Bench) -> None:
    """One partition fails for ever: the other comes to its end, the exit says so, resume completes it."""
    tries: Counter[PointId] = Counter()
    victim: list[PointId] = []

    def one_fails(_call: int, batch: PointBatch) -> None:
        victim[:] = victim or batch.ids[:1]
        if batch.ids[0] in victim:
            tries[batch.ids[0]] += 1
            raise Transient("The store did not answer", "on purpose")

    bench.faults.on_write = one_fails
    with pytest.raises(ItemsFailed) as caught:
        bench.apply()
    assert caught.value.exit_code == 3
    assert "on purpose" in caught.value.detail
    assert "vecrun resume" in caught.value.hint
    assert list(tries.values()) == [RETRIES + 1]
    failed, done = sorted(bench.partitions(), key=lambda row: row[1])
    assert (failed[0], done[0]) == ("failed", "done")
    assert commands.status(bench.context, JOB).run["status"] == "failed"
    bench.cure()
    bench.resume()
    assert sum(bench.faults.writes) < POINTS  # what was done is not done again
    bench.assert_moved()


def test_the_command_ends_with_3_when_partitions_failed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_call: int, _batch: PointBatch) -> None:
        raise Transient("The store did not answer", "on purpose")

    bench.faults.on_write = never
    monkeypatch.chdir(bench.directory)
    done = CliRunner().invoke(cli.cli, ["apply", f"jobs/{JOB}.yaml", "--auto-approve"])
    assert done.exit_code == 3, done.output
    bench.cure()
    done = CliRunner().invoke(cli.cli, ["resume", JOB])
    assert done.exit_code == 0, done.output
    bench.assert_moved()


@pytest.mark.parametrize("moment", ["before write", "after write", "after checkpoint"])
def test_a_permanent_error_stops_the_run_and_resume_goes_on(bench: Bench, moment: str) -> None:
    def broken(call: int, _batch: PointBatch) -> None:
        checkpointed = any(done for _, done, _ in bench.partitions())
        if (moment == "after checkpoint" and checkpointed) or (moment != "after checkpoint" and call == 5):
            raise Permanent("The store refused", f"on purpose, {moment}")

    if moment == "after write":
        bench.faults.on_written = broken
    else:
        bench.faults.on_write = broken
    with pytest.raises(Permanent, match="on purpose"):
        bench.apply()
    status = commands.status(bench.context, JOB)
    assert (status.run["status"], status.steps[1]["status"]) == ("failed", "running")
    assert "on purpose" in status.run["error"]
    bench.cure()
    bench.resume()
    bench.assert_moved()


def test_a_point_that_is_always_refused_can_be_rolled_back(bench: Bench) -> None:
    bad = scene.load(str(bench.directory)).truth(0).moved("", IdMode.UUID5, None).ids[POINTS // 2]

    def refused(_call: int, batch: PointBatch) -> None:
        if bad in batch.ids:
            raise Permanent("The store refused a point", repr(bad))

    bench.faults.on_write = refused
    for attempt in (bench.apply, bench.resume):
        with pytest.raises(Permanent, match=str(bad)):
            attempt()
    commands.apply(bench.context, commands.plan_rollback(bench.context, JOB))
    assert scene.check(str(bench.directory), moved=False)["findings"] == []


# -- reads ---------------------------------------------------------------------------------------------------


def test_short_and_empty_pages_lose_nothing(bench: Bench) -> None:
    def short(batches: Iterator[PointBatch]) -> Iterator[PointBatch]:
        for batch in batches:
            yield batch.slice(0, 0)
            yield batch.slice(0, 1)
            yield batch.slice(1, len(batch) // 2)
            yield batch.slice(max(1, len(batch) // 2), len(batch))

    bench.faults.on_scan = short
    assert bench.apply().points == POINTS
    bench.assert_moved()


def test_a_scan_that_breaks_goes_on_after_the_last_point(bench: Bench) -> None:
    def breaking(batches: Iterator[PointBatch]) -> Iterator[PointBatch]:
        for number, batch in enumerate(batches):
            if number == 2:
                raise Transient("The connection broke", "on purpose, in the middle of a scan")
            yield batch

    bench.faults.on_scan = breaking
    assert bench.apply().points == POINTS
    assert sum(bench.faults.writes) == POINTS  # nothing was read twice
    bench.assert_moved()


def test_a_scan_that_never_begins_is_given_up(bench: Bench) -> None:
    def dead(_batches: Iterator[PointBatch]) -> Iterator[PointBatch]:
        raise Transient("The source did not answer", "on purpose")
        yield

    bench.faults.on_scan = dead
    with pytest.raises(ItemsFailed, match="on purpose"):
        bench.apply()
    assert set(bench.faults.scans.values()) == {RETRIES + 1}
    bench.cure()
    bench.resume()
    bench.assert_moved()


# -- two at once ---------------------------------------------------------------------------------------------


def vecrun(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A real process."""
    command = [sys.executable, "-m", "runner", *arguments]
    return warm.run(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120)


def test_the_second_apply_of_a_job_is_refused_before_it_writes(bench: Bench) -> None:
    bench.set_limits(workers=1)  # so that nothing moves while the only one waits
    arrived, go_on = threading.Event(), threading.Event()

    def wait(_call: int, _batch: PointBatch) -> None:
        arrived.set()
        assert go_on.wait(120)

    bench.faults.on_write = wait
    made = commands.plan(bench.context, bench.directory / "jobs" / f"{JOB}.yaml")
    outcome: list[Any] = []
    first = threading.Thread(target=lambda: outcome.append(commands.apply(bench.context, made)))
    first.start()
    try:
        assert arrived.wait(60)
        before = _records(bench.directory)
        with pytest.raises(LockHeld):
            commands.apply(bench.context, made)
        for arguments in (("apply", f"jobs/{JOB}.yaml", "--auto-approve"), ("resume", JOB)):
            second = vecrun(bench.directory, *arguments)
            assert second.returncode == 11, second.stderr
            assert "Somebody else is at work" in second.stderr
        assert vecrun(bench.directory, "rollback", JOB, "--auto-approve").returncode == 11
        assert _records(bench.directory) == before
    finally:
        go_on.set()
        first.join(60)
    assert outcome[0].points == POINTS
    bench.assert_moved()


def _records(directory: Path) -> dict[str, Any]:
    """Everything vecrun has written down, but for the log and the leases."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in (directory / "state").glob("*.json")}
    with closing(sqlite3.connect(directory / "state" / "ledger.db")) as ledger:
        for table in ("runs", "steps", "partitions", "id_map", "findings"):
            found[table] = ledger.execute(f"select * from {table} order by 1, 2, 3").fetchall()
    return found


#: A vecrun that falls asleep (SIGSTOP) in the middle of its n-th write, or right before its last records.
SLEEPER = """
import os, signal, sys
from runner import cli, crash, world
from runner.stores import open_store
from tests.faults.test_faulty_store import Faults, FaultyStore

moment, *sys.argv[1:] = sys.argv[1:]
faults = Faults()
def sleep(call, batch):
    if call == 4 and moment == "copy":
        os.kill(os.getpid(), signal.SIGSTOP)
def point(step, phase):
    if f"{step} {phase}" == moment:
        os.kill(os.getpid(), signal.SIGSTOP)
faults.on_written = sleep
world.open_store = lambda config: FaultyStore(open_store(config), faults)
crash.point = point
cli.main()
"""


@pytest.mark.parametrize(
    "moment",
    ["copy", *(pytest.param(one, marks=pytest.mark.long) for one in ("state before", "verify_points recorded"))],
)
def test_a_process_that_slept_beyond_its_lease_writes_nothing_more(tmp_path: Path, moment: str) -> None:
    bench = Bench(tmp_path / "w", "files", "")
    bench.set_limits(workers=1, lease_seconds=5)
    command = [sys.executable, "-c", SLEEPER, moment, "apply", f"jobs/{JOB}.yaml", "--auto-approve"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    sleeper = subprocess.Popen(command, cwd=bench.directory, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        _wait_until(lambda: _asleep(sleeper.pid), 60)
        assert vecrun(bench.directory, "resume", JOB).returncode == 11  # its lease still runs
        time.sleep(5.5)
        taken = vecrun(bench.directory, "resume", JOB)
        assert taken.returncode == 0, taken.stderr
        bench.assert_moved()
        before = _records(bench.directory)
        os.kill(sleeper.pid, signal.SIGCONT)
        _, text = sleeper.communicate(timeout=60)
        assert sleeper.returncode == 11, text
        assert "lost its lock" in text
        assert _records(bench.directory) == before
        bench.assert_moved()
    finally:
        sleeper.kill()
        sleeper.communicate()


def _asleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")


def _wait_until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- a full disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte. Larger with `mount -o remount,size=…`."""
    folder = tmp_path / "small"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("what", ["b", "state"])
def test_a_full_disk_is_told_and_resume_goes_on_once_there_is_space(
    tmp_path: Path, small_disk: Path, what: str
) -> None:
    """`b`: the target's folder; `state`: state files and ledger."""
    bench = Bench(tmp_path / "w", "files", "")
    folder = bench.directory / what
    if folder.exists():
        shutil.copytree(folder, small_disk, dirs_exist_ok=True)
        shutil.rmtree(folder)
    folder.symlink_to(small_disk)
    disk = os.statvfs(small_disk)
    # SQLite must get as far as its tables; the target as far as a few parts
    room = {"state": 330_000, "b": 120_000}[what]
    (small_disk / "ballast").write_bytes(b"x" * (disk.f_bavail * disk.f_frsize - room))
    full = vecrun(bench.directory, "apply", f"jobs/{JOB}.yaml", "--auto-approve")
    assert full.returncode in (1, 3), full.stderr
    assert "Traceback" not in full.stderr
    assert "Internal error" not in full.stderr
    assert "full" in full.stderr or "No space left" in full.stderr, full.stderr
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    again = vecrun(bench.directory, "apply", f"jobs/{JOB}.yaml", "--auto-approve")
    assert again.returncode == 0, again.stderr
    bench.assert_moved()


# -- the comparison itself -----------------------------------------------------------------------------------


def test_the_comparison_sees_what_is_lost_doubled_and_changed(tmp_path: Path) -> None:
    truth = Truth(1, IdKind.STRING, 50)
    with scene.opened({"type": "files", "path": str(tmp_path)}) as store:
        store.create(truth.schema("kb", ""))
        points = truth.points("")
        store.upsert("kb", points)
        assert compare(store, "kb", points).right
        store.delete("kb", points.ids[:2])
        vectors = points.vectors[""][2:4].copy()
        vectors[0, 0] = np.nextafter(vectors[0, 0], np.float32(9))
        rows = [points.payloads.dicts[2], points.payloads.dicts[3] | {"maybe": 0}]
        store.upsert("kb", PointBatch(points.ids[2:4], {"": vectors}, Payloads(rows)))
        store.upsert("kb", replace(points.slice(9, 10), ids=["somebody else"]))
        counts = compare(store, "kb", points)
    assert (counts.lost, counts.doubled, counts.changed) == (2, 1, 2), counts.examples
