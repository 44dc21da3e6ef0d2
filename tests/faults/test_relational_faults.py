"""A short run of the migrations of `python -m tests.faults --chores sql`, and what else can come in between: a process that
slept beyond its lease, two at once, an application that writes meanwhile, another key, a database that dies.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from tests import servers, warm
from tests.conftest import FULL
from tests.e2e import relations
from tests.e2e.relations import Library, Relations
from tests.faults import relational
from tests.faults.batch import APPLY, ROLLBACK
from tests.faults.matrix import KILLED
from tests.faults.migrated import KEYS, STEPS, Truth, workspace
from tests.faults.nursery import COMMAND, REPOSITORY, Nursery
from tests.faults.relational import DATABASES, RESUME
from tests.faults.sleeper import asleep, wake

#: Of the cases of the matrix, each so many; after it, how many seconds a sleeper needs to lose its lease.
EVERY, LEASE = 7 if FULL else 401, 5.5
#: In the middle of the step `fill`, before the last batch, when nothing is read any more: in no transaction, if there is one
#: partition. And right before the commit of a batch.
BETWEEN, INSIDE = "map_rows:cut:2 > map_rows:before_write:3", "map_rows:cut:2 > sql:commit:2"
ONE: dict[str, Any] = {"workers": 1, "fill.map.batch_size": 5}


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("kind", DATABASES)
def test_a_migration_that_dies_is_resumable_or_undone(kind: str, pg_url: str, tmp_path: Path) -> None:
    score = relational.crash(
        Nursery(tmp_path / "log"), tmp_path / "w", pg_url, kind=kind, seed=3, every=EVERY, offset=97
    )
    assert score.right, score.findings
    assert score.crashes >= 2
    assert score.missed <= score.crashes


@dataclass
class World:
    """A database with knowledge bases, and workspaces that migrate it."""

    truth: Truth
    folder: Path
    count: int = 0

    def workspace(self, **changes: Any) -> Path:
        """A new one, with a ledger of its own."""
        self.count += 1
        made = self.folder / f"w{self.count}"
        workspace(made, self.truth.relations, **changes)
        return made

    def vecrun(self, directory: Path, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
        """(exit status, what it said)"""
        environment = os.environ | {"PYTHONPATH": REPOSITORY} | (env or {})
        command = [*COMMAND, "vecrun", *arguments]
        done = warm.run(command, cwd=directory, env=environment, text=True, stdout=PIPE, stderr=PIPE, timeout=100)
        return done.returncode, done.stdout + done.stderr

    def is_done(self) -> bool:
        return self.truth.moment() == [] and self.truth.record() == dict.fromkeys(STEPS, "done") | {"": "closed"}

    def is_old(self) -> bool:
        return self.truth.relations.dump() == self.truth.before


@pytest.fixture(params=DATABASES)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """Twelve knowledge bases in PostgreSQL or SQLite."""
    if request.param == "sqlite":
        relation = Relations(f"sqlite:///{tmp_path / 'app.db'}")
    else:
        relation = relations.postgres(request.getfixturevalue("pg_url"), f"faults_{uuid.uuid4().hex[:12]}")
    return World(Truth(Library(relation).build()), tmp_path)


def test_a_process_that_slept_beyond_its_lease_writes_nothing_more(world: World) -> None:
    """SIGSTOP between two batches; another goes on to the end. SIGCONT: not a byte is written (G, O1)."""
    directory = world.workspace(**ONE)
    with asleep(directory, BETWEEN, *APPLY) as process:
        assert world.vecrun(directory, *RESUME)[0] == 11  # its lease still runs
        time.sleep(LEASE)
        status, said = world.vecrun(directory, *RESUME)
        assert status == 0, said
        assert world.is_done(), world.truth.moment()
        before = world.truth.relations.dump()
        status, said = wake(process)
        assert status == 11, said
        # the ledger's lease and the record in the database both say so: what it meets first depends on where it slept
        assert "lost its lock" in said or "replaced by another" in said
        assert world.truth.relations.dump() == before
    assert world.vecrun(directory, *ROLLBACK)[0] == 0
    assert world.is_old()


@pytest.mark.long
def test_a_process_that_slept_in_a_transaction_is_replaced(world: World) -> None:
    """PostgreSQL ends its session after a while. Of SQLite it holds the only lock: whoever comes waits until it wakes, and it
    ends with the batch that it was in."""
    directory = world.workspace()
    with asleep(directory, INSIDE, *APPLY) as process, ThreadPoolExecutor() as pool:
        time.sleep(LEASE)
        other = pool.submit(world.vecrun, directory, *RESUME)
        if world.truth.relations.sqlite:
            time.sleep(3)
            assert not other.done()
            assert wake(process)[0] == 11
        status, said = other.result()
        assert status == 0, said
        assert world.is_done(), world.truth.moment()
        before = world.truth.relations.dump()
        if not world.truth.relations.sqlite:
            assert wake(process)[0] == 11
        assert world.truth.relations.dump() == before


def test_of_two_at_once_on_one_database_one_is_refused(world: World) -> None:
    """Two workspaces, each with its own ledger: what is in the database keeps them apart (G)."""
    first, second = world.workspace(**ONE), world.workspace(**ONE)
    with asleep(first, BETWEEN, *APPLY) as process:
        at = world.truth.relations.dump()
        status, said = world.vecrun(second, *APPLY)
        assert status not in (0, KILLED), said
        assert "fault of vecrun" not in said
        assert world.truth.relations.dump() == at
        status, said = wake(process)
        assert status == 0, said
    assert world.is_done(), world.truth.moment()
    status, said = world.vecrun(second, *APPLY)
    assert status == 0, said  # there is nothing to do
    assert world.is_done()


@pytest.mark.long
@pytest.mark.parametrize("number", range(6))
def test_two_that_begin_in_the_same_moment(world: World, number: int) -> None:
    places = [world.workspace(), world.workspace()]
    environment = os.environ | {"PYTHONPATH": REPOSITORY}
    with ExitStack() as stack:
        options: dict[str, Any] = {"env": environment, "text": True, "stdout": PIPE, "stderr": PIPE}
        both = []
        for place in places:
            both.append(stack.enter_context(warm.Popen([*COMMAND, "vecrun", *APPLY], cwd=place, **options)))
            time.sleep(0.05 * number)
        said = [process.communicate(timeout=100) for process in both]
    done = [process.returncode for process in both]
    assert 0 in done, said
    assert all("fault of vecrun" not in out + err for out, err in said), said
    assert world.is_done(), (world.truth.moment(), said)
    winner = places[done.index(0)]
    assert world.vecrun(winner, *ROLLBACK)[0] in (
        0,
        10,
    )  # 10: the other one had done it all, and it found nothing to do
    assert world.is_old() or world.vecrun(places[1 - done.index(0)], *ROLLBACK)[0] == 0
    assert world.is_old(), world.truth.first_difference()


def test_another_key_after_a_crash_is_refused_before_it_writes(world: World) -> None:
    directory = world.workspace()
    status, said = world.vecrun(directory, *APPLY, env={"VECRUN_CRASH_AT": "map_rows:after_checkpoint:5"})
    assert status == KILLED, said
    world.truth.relations.quiet()
    before = world.truth.relations.dump()
    other = {"FAULTS_FIRST": KEYS["FAULTS_SECOND"]}
    for arguments in (RESUME, APPLY):
        status, said = world.vecrun(directory, *arguments, env=other)
        assert status == 1, said
        assert "first" in said
        assert KEYS["FAULTS_SECOND"] not in said
        assert world.truth.relations.dump() == before
    status, said = world.vecrun(directory, *RESUME)
    assert status == 0, said
    assert world.is_done(), world.truth.moment()


# -- an application that writes meanwhile ------------------------------------------------------------------------------


@dataclass
class Application:
    """Adds knowledge bases and changes some, one after the other. `told`: what was committed, by id."""

    relations: Relations
    told: dict[int, tuple[str, str | None]] = field(
        default_factory=dict
    )  # -> (name, settings; None: it had none to give)
    errors: list[str] = field(default_factory=list)
    number: int = 100
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Application:
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join()

    def _work(self) -> None:
        while not self._stop.wait(0.02):
            try:
                self.add()
                if self.number % 3 == 0 and self.number - 2 in self.told:
                    self.change(self.number - 2)
            except Exception as exc:
                # without the column it knows no better than to leave it out
                if "embedding_config" not in str(exc):
                    self.errors.append(f"{type(exc).__name__}: {exc}")
                    return
                self.add(settings=False)

    def add(self, *, settings: bool = True) -> None:
        """One more."""
        self.number += 1
        text = (
            f'{{"llm": {{"provider": "new", "model": "m", "api_key": "sk-new-{self.number}"}}}}' if settings else None
        )
        name = f"new {self.number}"
        if settings:
            insert = "INSERT INTO knowledge_bases (id, user_id, name, embedding_config) VALUES (%s, 1, %s, %s)"
            self.relations.run(insert, self.number, name, text)
        else:
            insert = "INSERT INTO knowledge_bases (id, user_id, name) VALUES (%s, 1, %s)"
            self.relations.run(insert, self.number, name)
        self.told[self.number] = name, text

    def change(self, number: int) -> None:
        """Another key, for one that has settings."""
        name, text = self.told[number]
        text = (text or "{}").replace("sk-new", "sk-changed")
        self.relations.run("UPDATE knowledge_bases SET embedding_config = %s WHERE id = %s", text, number)
        self.told[number] = name, text

    def lost(self) -> list[int]:
        """Those that were told committed and are not there as they were."""
        cast = "embedding_config" if self.relations.sqlite else "embedding_config::text"
        query = f"SELECT id, name, {cast} FROM knowledge_bases WHERE id > 100"
        found = {number: (name, text) for number, name, text in self.relations.rows(query)}
        return [number for number, said in self.told.items() if found.get(number) != said]


LIVE = {"fill.map.live": True, "members.map.live": True}


@pytest.mark.parametrize("begins", ["drop_column:before", pytest.param("run:started", marks=pytest.mark.long)])
def test_no_write_is_lost_while_an_application_writes(world: World, begins: str) -> None:
    """It adds and changes knowledge bases while a column of theirs is dropped, and while all is undone. From the beginning on
    there may always be a row that came too late for its verification."""
    directory = world.workspace(**LIVE)
    for _ in range(3 if FULL else 1):
        with asleep(directory, begins, *APPLY) as process, Application(world.truth.relations) as application:
            time.sleep(0.1)
            status, said = wake(process)
            assert status in ((0,) if begins.startswith("drop") else (0, 13)), said
            time.sleep(0.1)
            status, said = world.vecrun(directory, *ROLLBACK)
            assert status == 0, said
        assert not application.errors, application.errors
        assert len(application.told) > 10
        assert application.lost() == []
        world.truth.relations.run("DELETE FROM knowledge_bases WHERE id > 100")
        assert world.is_old(), world.truth.first_difference()


@pytest.mark.parametrize("write", ["change", pytest.param("add", marks=pytest.mark.long)])
def test_a_verification_says_that_it_missed_a_row(world: World, write: str) -> None:
    """A row that comes, or changes, between the last batch and its verification."""
    directory = world.workspace(**LIVE)
    application = Application(world.truth.relations)
    application.add()
    with asleep(directory, "map_rows:cut:2 > verify_rows:before", *APPLY) as process:
        if write == "add":
            application.add()
        else:
            application.change(application.number)
        status, said = wake(process)
    assert status == 13, said
    assert str(application.number) in said
    assert "sk-" not in said
    assert world.vecrun(directory, *RESUME)[0] == 13  # nothing was mended meanwhile
    status, said = world.vecrun(directory, *ROLLBACK)
    assert status == 0, said
    assert application.lost() == []
    world.truth.relations.run("DELETE FROM knowledge_bases WHERE id > 100")
    assert world.is_old(), world.truth.first_difference()


# -- a database that dies ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[str]:
    """A server that may be restarted."""
    with servers.postgres() as url:
        yield url


MOMENTS = (
    INSIDE, BETWEEN, "create_tables:before > sql:commit", "run_statements:before > sql:after:3", "encrypt_columns:cut > sql:commit",
    "verify_rows:cut", "drop_column:before > sql:commit", "drop_column:before > sql:committed", "state:before",
)  # fmt: skip


@pytest.mark.parametrize("moment", MOMENTS if FULL else MOMENTS[:1])
def test_a_database_that_dies_in_the_middle(own_postgres: str, moment: str, tmp_path: Path) -> None:
    made = relations.postgres(own_postgres, f"faults_{uuid.uuid4().hex[:12]}")
    world = World(Truth(Library(made).build()), tmp_path)
    directory = world.workspace()
    with asleep(directory, moment, *APPLY) as process:
        servers.restart_postgres(own_postgres, "immediate")
        assert world.truth.moment() == []
        status, said = wake(process)
        assert "fault of vecrun" not in said
    assert world.truth.moment() == []
    if status != 0:
        status, said = world.vecrun(directory, *RESUME)
        assert status == 0, said
    assert world.is_done(), world.truth.moment()
    assert world.vecrun(directory, *ROLLBACK)[0] == 0
    assert world.is_old(), world.truth.first_difference()


# -- the comparison itself ---------------------------------------------------------------------------------------------

WRONGS: dict[str, Callable[[Relations], None]] = {
    "a row is gone": lambda one: one.run("DELETE FROM knowledge_bases WHERE id = 1"),
    "a table nobody knows": lambda one: one.run("CREATE TABLE other (id INTEGER PRIMARY KEY)"),
    "a step that never was": lambda one: one.run(
        "INSERT INTO vecrun_migrations (job, step, digest, status, run) VALUES ('move', 'tables', 'x', 'done', 'r')"
    ),
    "a table without its record": lambda one: one.run("DELETE FROM vecrun_migrations WHERE step = 'backup'"),
    "a value of the backup": lambda one: one.run("DELETE FROM config_backup WHERE id = 2"),
}


@pytest.mark.parametrize("wrong", WRONGS)
def test_the_look_sees_what_is_wrong(tmp_path: Path, wrong: str) -> None:
    made = Relations(f"sqlite:///{tmp_path / 'app.db'}")
    truth = Truth(Library(made).build())
    assert truth.moment() == []
    made.run("CREATE TABLE config_backup (id INTEGER PRIMARY KEY, embedding_config TEXT)")
    made.run("INSERT INTO config_backup SELECT id, embedding_config FROM knowledge_bases")
    made.run("CREATE TABLE vecrun_migrations (job TEXT, step TEXT, digest TEXT, status TEXT, run TEXT)")
    made.run("INSERT INTO vecrun_migrations VALUES ('move', 'backup', 'x', 'done', 'r')")
    assert truth.moment() == []
    WRONGS[wrong](made)
    assert truth.moment() != []
