"""A short run of the backups of `python -m tests.faults`, and what else can come between a backup and what follows it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests import servers
from tests.conftest import FULL
from tests.e2e.training import COLLECTIONS, KEY, POINTS, Training, ok
from tests.e2e.workspace import Workspace, run
from tests.faults import writing
from tests.faults.matrix import KILLED, Score
from tests.faults.nursery import Nursery

APPLY = ("apply", "jobs/training.yaml", "--auto-approve")
BACK = ("apply", "jobs/back.yaml", "--auto-approve")
ROLLBACK, RESUME = ("rollback", "training", "--auto-approve"), ("resume", "training")


def test_no_backup_and_no_row_is_lost_when_processes_die(pg_url: str, tmp_path: Path) -> None:
    chores = ("backup: tables, truncate", "restore: tables, replace")[: 2 if FULL else 1]
    kills, every = ("4", "7") if FULL else ("1", "29")
    sizes = ("--backup-kills", kills, "--every", every, "--writer-kills", "0", "--seed", "7")
    environment = os.environ | {"VECRUN_FAULTS_POSTGRES": pg_url, "TMPDIR": str(tmp_path), "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--pairs", "--changes", "--tasks", "--chores", *chores, *sizes],
        cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(rf"faults: \d+ runs, {kills} kills, 0 lost, 0 doubled, 0 changed", last), last


def test_no_committed_row_is_lost_while_an_application_writes(pg_url: str, tmp_path: Path) -> None:
    score = Score()
    score += writing.run(Nursery(tmp_path / "log"), tmp_path / "w", pg_url, seed=5, quota=12 if FULL else 3)
    assert score.right, (score.findings, score.counts)
    assert score.kills >= 3


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace that is the current folder."""
    made = Workspace.create(tmp_path / "ws")
    monkeypatch.chdir(made.root)
    return made


@pytest.fixture
def training(ws: Workspace, pg_database: str, monkeypatch: pytest.MonkeyPatch) -> Training:
    """Twenty texts, and a job that empties their table."""
    return _trained(ws, pg_database, monkeypatch)


def _trained(ws: Workspace, url: str, monkeypatch: pytest.MonkeyPatch) -> Training:
    monkeypatch.setenv("VECRUN_TEST_APP", url)
    made = Training(ws, url)
    made.configure()
    made.fill(20)
    made.truncate()
    return made


def dies(training: Training, at: str, *arguments: str) -> None:
    with training.ws.start(*(arguments or APPLY), env={"VECRUN_CRASH_AT": at}) as process:
        _, said = process.communicate(timeout=60)
        assert process.returncode == KILLED, said


def csv_of(training: Training, table: str = POINTS) -> Path:
    return next(training.folder.glob(f"{table}_*.csv"))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": _flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size - 10),
    "gone": Path.unlink,
    "manifest cut": lambda path: os.truncate(next(path.parent.glob("backup_*.json")), 100),
    "manifest gone": lambda path: next(path.parent.glob("backup_*.json")).unlink(),
}


@pytest.mark.parametrize("damage", [*DAMAGES] if FULL else ["flipped", "manifest gone"])
def test_a_backup_that_is_damaged_before_the_tables_are_emptied(training: Training, damage: str) -> None:
    """Nothing is emptied, it is said why, and a rollback and another run lead on."""
    before = training.rows(), training.rows(COLLECTIONS)
    dies(training, "truncate_tables:before")
    DAMAGES[damage](csv_of(training))
    found = run(*RESUME)
    assert found.exit_code == 1, found.output
    assert "Error: " in found.output
    assert "fault of vecrun" not in found.output
    assert (training.rows(), training.rows(COLLECTIONS)) == before
    ok(*ROLLBACK)
    assert (training.rows(), training.rows(COLLECTIONS)) == before
    if damage == "manifest cut":  # no moment to guess: somebody has to look at it
        next(training.folder.glob("backup_*.json")).unlink()
    ok(*APPLY, "--unpin")
    assert training.count() == 0
    ok(*ROLLBACK)
    assert (training.rows(), training.rows(COLLECTIONS)) == before


def test_a_manifest_comes_after_files_that_are_on_the_disk(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a loss of power would show: each file is synced before it gets its name, and its name before the manifest."""
    done: list[str] = []
    sync, rename, link = os.fsync, os.rename, os.link

    def synced(fd: int) -> None:
        sync(fd)
        done.append(f"sync {Path(f'/proc/self/fd/{fd}').readlink().name}")

    def renamed(old: str, new: str, **options: int) -> None:
        rename(old, new, **options)
        done.append(f"name {Path(new).name}")
        known.setdefault(Path(new).name, f"sync {Path(old).name}")

    def linked(old: str, new: str, **options: bool) -> None:
        link(old, new, **options)
        done.append(f"name {Path(new).name}")
        known.setdefault(Path(new).name, f"sync {Path(old).name}")

    known: dict[str, str] = {}
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "link", linked)
    ok(*APPLY)
    monkeypatch.undo()
    names = [name for name in known if name.startswith(("langchain", "backup_"))]
    assert len(names) == 3
    for name in names:
        at = done.index(f"name {name}")
        assert known[name] in done[:at], (name, done)
        assert f"sync {training.folder.name}" in done[at:], (name, done)
    manifest = next(at for at, what in enumerate(done) if what.startswith("name backup_"))
    for name in names:
        if not name.startswith("backup_"):
            at = done.index(f"name {name}")
            assert f"sync {training.folder.name}" in done[at:manifest], (name, done)


@pytest.mark.parametrize("at", ["before", "locked", "truncated"] if FULL else ["truncated"])
def test_a_rollback_of_a_run_that_died_before_it_emptied_anything(training: Training, at: str) -> None:
    before = training.rows()
    dies(training, f"truncate_tables:{at}")
    ok(*ROLLBACK)
    assert training.rows() == before
    ok(*APPLY, "--unpin")
    assert training.count() == 0


def test_the_job_goes_on_after_a_rollback_that_could_not_be(training: Training) -> None:
    """Rows came into the emptied table: they are not mixed with the old ones, and the next backup has them."""
    ok(*APPLY)
    training.fill(2, first=50)
    assert run(*ROLLBACK).exit_code == 1
    found = run(*APPLY, "--unpin")
    assert found.exit_code == 0, found.output
    assert training.manifests()[-1]["tables"][1]["rows"] == 2


@pytest.mark.long
def test_a_server_that_is_killed_between_the_commit_and_the_record(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with servers.postgres(durable=True) as postgres:
        servers.sql(postgres, "CREATE DATABASE app TEMPLATE with_vector")
        training = _trained(ws, servers.database(postgres, "app"), monkeypatch)
        before = training.rows()
        for number, (at, left) in enumerate((("truncated", 20), ("committed", 0))):
            dies(training, f"truncate_tables:{at}", *APPLY, "--unpin")
            servers.restart_postgres(postgres, "immediate")
            assert training.count() == left
            ok(*RESUME)
            assert training.count() == 0
            log = (training.folder / "vector_backup_log.txt").read_text()
            assert log.count("20 rows before, 0 after") == number + 1, log
            ok(*ROLLBACK)
            assert training.rows() == before


@pytest.mark.long
def test_a_commit_that_the_server_has_not_finished_when_the_client_is_dead(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that waits for another server, as with synchronous replication: it stands, though nobody was told."""
    with servers.postgres() as postgres:
        servers.sql(postgres, "CREATE DATABASE app TEMPLATE with_vector")
        training = _trained(ws, servers.database(postgres, "app"), monkeypatch)
        before = training.rows()
        servers.sql(postgres, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
        with training.ws.start(*APPLY) as process:
            assert _waits(postgres), process.communicate(timeout=5)
            process.kill()
            process.wait()
        release = threading.Timer(2.0, _release, (postgres,))
        release.start()
        found = run(*RESUME)
        release.join()
        assert found.exit_code == 0, found.output
        assert training.count() == 0
        ok(*ROLLBACK)
        assert training.rows() == before


def _waits(postgres: str) -> bool:
    with psycopg.connect(postgres, autocommit=True) as db:
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        for _ in range(200):
            row = db.execute(query).fetchone()
            if row is not None and row[0]:
                return True
            time.sleep(0.05)
    return False


def _release(postgres: str) -> None:
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute("SET synchronous_commit = local")
        db.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
        db.execute("SELECT pg_reload_conf()")


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """A file system of so many bytes there; the test is skipped where none can be mounted."""
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=False, capture_output=True
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.long
def test_a_disk_that_is_full_before(training: Training) -> None:
    """The storage said that there is room, and then somebody else took it."""
    with small_disk(training.ws.root / "backups", "6m"):
        training.sql(f"UPDATE {POINTS} SET document = repeat(md5(id), 2000)")  # 64 kB each, 1.3 MB in all
        before = training.rows(), training.rows(COLLECTIONS)
        (training.ws.root / "backups" / "big").write_bytes(b"x" * 5_300_000)
        found = run(*APPLY)
        assert found.exit_code == 1, found.output
        assert (training.rows(), training.rows(COLLECTIONS)) == before
        assert not [name for name in training.files() if name.endswith(".tmp")]
        (training.ws.root / "backups" / "big").unlink()
        ok(*APPLY)
        assert (training.count(), training.count(COLLECTIONS)) == (0, 1)
        ok(*ROLLBACK)
        assert (training.rows(), training.rows(COLLECTIONS)) == before


def test_a_disk_that_fills_up_while_the_file_grows(training: Training) -> None:
    """A few rows are far longer than those by which the size was estimated."""
    with small_disk(training.ws.root / "backups", "6m"):
        small, large = (
            "'n' || n, '%s'::uuid, '[1,2,3]', 'short'",
            "'z' || n, '%s'::uuid, '[1,2,3]', repeat('x', 1000000)",
        )
        for columns, count in ((small, 5000), (large, 8)):
            training.sql(f"INSERT INTO {POINTS} SELECT {columns % KEY} FROM generate_series(1, {count}) n")
        before = training.rows(), training.rows(COLLECTIONS)
        found = run(*APPLY)
        assert found.exit_code == 3, found.output
        assert "The disk is full" in found.output
        assert "not enough room" not in found.output
        assert (training.rows(), training.rows(COLLECTIONS)) == before
        assert not [name for name in training.files() if name.endswith(".tmp")]
        assert [item["table"] for one in training.manifests() for item in one["tables"] if item["error"]] == [POINTS]
        subprocess.run(["mount", "-o", "remount,size=64m", str(training.ws.root / "backups")], check=True)
        ok(*RESUME)
        assert (training.count(), training.count(COLLECTIONS)) == (0, 1)
        ok(*ROLLBACK)
        assert (training.rows(), training.rows(COLLECTIONS)) == before


@pytest.mark.parametrize("right", ["SELECT", "TRUNCATE"] if FULL else ["SELECT"])
def test_a_right_that_is_revoked_after_the_plan(
    training: Training, monkeypatch: pytest.MonkeyPatch, right: str
) -> None:
    """The other table's file is there and whole; nothing is emptied, and it goes on once the right is back."""
    role = f"faults_{training.url.rpartition('/')[2].partition('?')[0]}"
    training.sql(
        f"CREATE ROLE {role} LOGIN", f"GRANT SELECT, TRUNCATE ON ALL TABLES IN SCHEMA public TO {role}",
        f"GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}", f"GRANT CREATE ON SCHEMA public TO {role}",
    )  # fmt: skip
    try:
        monkeypatch.setenv("VECRUN_TEST_APP", training.url.replace("postgres:@", f"{role}:@"))
        before = training.rows(), training.rows(COLLECTIONS)
        dies(training, "back_up_tables:before")
        training.sql(f"REVOKE {right} ON {POINTS} FROM {role}")
        found = run(*RESUME)
        assert found.exit_code == {"SELECT": 3, "TRUNCATE": 1}[right], found.output
        assert POINTS in found.output
        assert "permission denied" in found.output
        assert (training.rows(), training.rows(COLLECTIONS)) == before
        assert not [name for name in training.files() if name.endswith(".tmp")]
        made = {item["table"]: item for item in training.manifests()[-1]["tables"]}
        assert bool(made[POINTS]["error"]) == (right == "SELECT")
        assert not made[COLLECTIONS]["error"]
        assert (training.folder / made[COLLECTIONS]["file"]).stat().st_size == made[COLLECTIONS]["bytes"]
        training.sql(f"GRANT {right} ON {POINTS} TO {role}")
        ok(*RESUME)
        assert training.count() == 0
        ok(*ROLLBACK)
        assert (training.rows(), training.rows(COLLECTIONS)) == before
    finally:
        training.sql(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_two_processes_and_one_job(training: Training) -> None:
    """One of two that are started at once is refused by the lock, and what the other does is whole."""
    for number in range(4 if FULL else 2):
        training.fill(5, first=100 * number + 100)
        known = len(training.manifests())
        with training.ws.start(*APPLY, "--unpin") as one, training.ws.start(*APPLY, "--unpin") as two:
            said = [process.communicate(timeout=60) for process in (one, two)]
            statuses = sorted(process.returncode for process in (one, two))
        # one that comes after the other's end finds an empty table, and nothing to do
        assert statuses in ([0, 11], [0, 0]), said
        assert training.count() == 0
        assert len(training.manifests()) == known + 1
        assert sum("emptied, " in err for _, err in said) == 1, said


@pytest.mark.long
def test_two_jobs_that_empty_one_table(training: Training) -> None:
    """They work on the same table, so that only one can be at it; the rows are in the backup of one of them."""
    other = (training.ws.root / "jobs" / "training.yaml").read_text().replace("name: training", "name: other")
    training.ws.write("jobs/other.yaml", other)
    before = training.rows()
    with training.ws.start(*APPLY) as one, training.ws.start("apply", "jobs/other.yaml", "--auto-approve") as two:
        said = [process.communicate(timeout=60) for process in (one, two)]
        statuses = [process.returncode for process in (one, two)]
    assert 0 in statuses, said
    assert {*statuses} <= {0, 1, 11, 12}, said
    assert training.count() == 0
    emptied = [
        name for name, (_, err) in zip(("training", "other"), said, strict=True) if f"{POINTS}: emptied, 20" in err
    ]
    assert len(emptied) == 1, said
    ok("rollback", emptied[0], "--auto-approve")
    assert training.rows() == before
