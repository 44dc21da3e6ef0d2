"""The table vecrun_migrations: which steps of which job were done in this database, by which run, and who works on it now.

A row for each step, and one for each job (step '') that is the claim of a run. Whatever changes the database does so in a
transaction of `working`, which takes the database's lock and looks whether the claim is ours; a process that was replaced
while it slept finds a newer token there and writes nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from runner.documents.database import Database
from runner.errors import LeaseLost, Permanent, Transient
from runner.lock import now
from runner.plan import RECORD
from runner.relational.opened import RelationalDatabase

#: The advisory lock of PostgreSQL that a migration holds, one in each database ("vecrun" in ASCII). Batches share it.
LOCK = 0x76656372756E
#: Dialects with a lock of the database; elsewhere the claims that are read are locked.
LOCKS = ("postgresql", "sqlite", "mysql", "mariadb")
#: Seconds that MySQL waits for it.
LOCK_SECONDS = 10

records = sa.Table(
    RECORD, sa.MetaData(),
    sa.Column("job", sa.String(255), primary_key=True),
    sa.Column("step", sa.String(255), primary_key=True),  # '': the claim
    sa.Column("digest", sa.String(255), nullable=False),  # of the step; of a claim: the run that is rolled back
    sa.Column("status", sa.String(16), nullable=False),  # begun, done, stamped, undoing; of a claim: open, closed
    sa.Column("run", sa.String(255), nullable=False),
    sa.Column("token", sa.BigInteger, nullable=False),
    sa.Column("statement", sa.Integer, nullable=False),  # so many are done, or begun when the step is
    sa.Column("keys", sa.Text, nullable=False),  # JSON: of a claim {key: check}; of a step what its way back needs
    sa.Column("recorded", sa.String(32), nullable=False),  # UTC, ISO 8601
)  # fmt: skip


@dataclass(frozen=True)
class Mine:
    """Who works: a run with its fencing token. `of_run`: the run that it rolls back. `keys`: {key of the spec: Cipher.check}.

    `alive` raises LeaseLost when the lease is another's; it is asked under the database's lock."""

    job: str
    run: str
    token: int
    of_run: str | None = None
    keys: dict[str, str] = field(default_factory=dict)
    alive: Callable[[], None] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Entry:
    """A step that was recorded. `status`: begun, done, stamped, undoing. `statement`: so many of its statements are done; while `status` is begun, the last of them is
    what was begun."""

    step: str
    digest: str
    status: str
    run: str
    statement: int
    recorded: str
    notes: dict[str, Any] = field(default_factory=dict)  # what its way back needs


@dataclass(frozen=True)
class Claim:
    """The run that worked last on the steps of a job; `open` until its last change."""

    run: str
    of_run: str | None
    token: int
    open: bool
    keys: dict[str, str]


@dataclass(frozen=True)
class Record:
    """What a database says of a job: its steps by the time at which they were recorded (several can have the same), and the
    claim of the run that was last. `others`: (job, run) of claims of other jobs that are open."""

    entries: tuple[Entry, ...] = ()
    claim: Claim | None = None
    others: tuple[tuple[str, str], ...] = ()


def read(database: Database, job: str) -> Record:
    """What is recorded; nothing where there is no record."""
    with database.reading() as connection:
        if not there(connection):
            return Record()
        rows = connection.execute(sa.select(records).order_by(records.c.recorded, records.c.step)).all()
    own = [row for row in rows if row.job == job]
    return Record(
        tuple(_entry(row) for row in own if row.step),
        next((_claim(row) for row in own if not row.step), None),
        tuple((row.job, row.run) for row in rows if row.job != job and not row.step and row.status == "open"),
    )


def there(connection: sa.Connection) -> bool:
    """Whether the database has a record."""
    return sa.inspect(connection).has_table(RECORD)


@contextlib.contextmanager
def working(
    database: RelationalDatabase, mine: Mine, *, batch: bool = False, foreign_keys: bool = True, replace: bool = False
) -> Iterator[sa.Connection]:
    """A transaction in which this run may change the database.

    The first of a run claims the database, unless it is a rollback: that only takes over what is there. `batch`: several at
    once, under a claim that is open and ours. `replace`: whatever claim of the job there is, and its keys (`vecrun stamp`).
    Permanent: another run works on it, or a key is another. LeaseLost: another process goes on with this run.
    """
    if batch and (mine.run, mine.token) not in database.current:
        if _older(database, mine):
            with working(database, mine):  # alone: from its commit on no process with the old token is let in
                pass
        database.current.add((mine.run, mine.token))
    with _named_lock(database), database.transaction(foreign_keys=foreign_keys) as connection:
        _lock(connection, shared=batch)
        if mine.alive is not None and not batch:
            mine.alive()
        claim = _claimed(connection, mine)
        if batch and (claim is None or not claim.open or claim.run != mine.run):
            raise LeaseLost(
                "The migration was ended by another process", f"run {mine.run}",
                "Nothing was written since. Look with: vecrun status",
            )  # fmt: skip
        if not batch:
            if replace and claim is not None:
                connection.execute(records.delete().where(_of(mine, "")))
                claim = None
            _take(connection, mine, claim)
        yield connection


def rename(database: RelationalDatabase, old: str, new: str) -> int:
    """Give what is recorded of a job another job's name; how many rows that were. Permanent when that one has a record of its own.
    Repeating it is harmless."""
    with _named_lock(database), database.transaction() as connection:
        _lock(connection, shared=False)
        if not there(connection):
            return 0
        jobs = set(connection.execute(sa.select(records.c.job).distinct()).scalars())
        if {old, new} <= jobs:
            raise Permanent(
                "A job of this name has a record in the database already", f"{new}, in {database.shown}",
                "Choose another name. Nothing was changed",
            )  # fmt: skip
        return connection.execute(records.update().where(records.c.job == old).values(job=new)).rowcount


def entry(connection: sa.Connection, mine: Mine, step: str) -> Entry | None:
    """What is recorded of a step of the job."""
    if not there(connection):
        return None
    row = connection.execute(sa.select(records).where(_of(mine, step))).first()
    return None if row is None else _entry(row)


def entries(connection: sa.Connection, mine: Mine) -> list[Entry]:
    """What is recorded of all steps of the job."""
    if not there(connection):
        return []
    return [_entry(row) for row in connection.execute(sa.select(records).where(_steps(mine)))]


def keep_only(connection: sa.Connection, mine: Mine, steps: Collection[str]) -> None:
    """Remove what is recorded of other steps of the job."""
    if there(connection):
        connection.execute(records.delete().where(_steps(mine), records.c.step.not_in(steps)))


def begin(connection: sa.Connection, mine: Mine, step: str, digest: str) -> None:
    """A step has begun."""
    mark(connection, mine, step, digest, "begun", 0)


def mark(connection: sa.Connection, mine: Mine, step: str, digest: str, status: str, statement: int) -> None:
    """A step is `begun`, or `undoing`: outside of a transaction its statement with this number, from 1, comes now."""
    _write(connection, mine, step, digest=digest, status=status, statement=statement)


def done(
    connection: sa.Connection, mine: Mine, step: str, digest: str, statement: int = 0,
    notes: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """A step is done; `statement`: how many statements it had; `notes`: JSON that its way back needs."""
    kept = json.dumps(notes or {})
    _write(connection, mine, step, digest=digest, status="done", statement=statement, keys=kept)


def stamp(connection: sa.Connection, mine: Mine, step: str, digest: str) -> None:
    """A step was done by hand."""
    _write(connection, mine, step, digest=digest, status="stamped", statement=0)


def forget(connection: sa.Connection, mine: Mine, step: str) -> None:
    """A step is undone. With the last one of the job its claim goes, and with the last claim the table."""
    if not there(connection):
        return
    connection.execute(records.delete().where(_of(mine, step)))
    if not connection.execute(sa.select(sa.func.count()).select_from(records).where(_steps(mine))).scalar_one():
        connection.execute(records.delete().where(_of(mine, "")))
    if not connection.execute(sa.select(sa.func.count()).select_from(records)).scalar_one():
        records.drop(connection)


def close(connection: sa.Connection, mine: Mine, contents: Mapping[str, dict[str, Any]] | None = None) -> None:
    """The last change of this run: the database is free for the next. What was never done leaves no claim. `contents`: step ->
    {table: what `contents.seen` says of it}, which its notes keep."""
    if not there(connection):
        return
    for step, tables in (contents or {}).items():
        found = entry(connection, mine, step)
        if found is not None and found.run == mine.run:
            kept = json.dumps(found.notes | {"contents": tables})
            connection.execute(records.update().where(_of(mine, step)).values(keys=kept))
    if not connection.execute(sa.select(sa.func.count()).select_from(records).where(_steps(mine))).scalar_one():
        forget(connection, mine, "")
        return
    connection.execute(records.update().where(_of(mine, "")).values(status="closed", recorded=now()))


def _older(database: Database, mine: Mine) -> bool:
    """Whether the claim is ours by a process that was replaced by this one."""
    with database.reading() as connection:
        if not there(connection):
            return False
        row = connection.execute(sa.select(records).where(_of(mine, ""))).first()
    return row is not None and row.run == mine.run and row.token < mine.token


def _claimed(connection: sa.Connection, mine: Mine) -> Claim | None:
    """The claim of the job, which this run may use or take over."""
    if not there(connection):
        return None
    claims = sa.select(records).where(records.c.step == "")
    if connection.dialect.name not in LOCKS:
        claims = claims.with_for_update()
    rows = connection.execute(claims).all()
    own = next((_claim(row) for row in rows if row.job == mine.job), None)
    for row in rows:
        if row.job != mine.job and row.status == "open":
            raise _another(row.job, row.run)
    if own is None:
        return None
    if own.run == mine.run and own.token > mine.token:
        raise LeaseLost(
            "This process was replaced by another", f"run {mine.run}",
            "Nothing was written since. Look with: vecrun status",
        )  # fmt: skip
    ours = own.run in (mine.run, mine.of_run) or (own.of_run is not None and own.of_run == mine.of_run)
    return own if ours or not own.open else _Foreign.of(own)


@dataclass(frozen=True)
class _Foreign(Claim):
    """An open claim of another run: only a stamp may replace it."""

    @classmethod
    def of(cls, claim: Claim) -> _Foreign:
        return cls(claim.run, claim.of_run, claim.token, claim.open, claim.keys)


def _take(connection: sa.Connection, mine: Mine, claim: Claim | None) -> None:
    """Make the claim ours, or make one."""
    if isinstance(claim, _Foreign):
        raise _another(mine.job, claim.run)
    known = claim.keys if claim is not None else {}
    if wrong := sorted(name for name, check in mine.keys.items() if known.get(name, check) != check):
        raise Permanent(
            "A key is not the one that this job has used in this database", f"key {', '.join(wrong)}",
            "Give the old key its name back, and another name to a new one. Nothing was changed",
        )  # fmt: skip
    if claim is None and mine.of_run is not None:
        return
    if not there(connection):
        records.create(connection)
    values: dict[str, Any] = {
        "digest": mine.of_run or "", "status": "open", "token": mine.token, "statement": 0,
        "keys": json.dumps(dict(sorted((known | mine.keys).items()))),
    }  # fmt: skip
    if (
        claim is None
        or (claim.run, claim.token, claim.open) != (mine.run, mine.token, True)
        or known != mine.keys | known
    ):
        _write(connection, mine, "", **values)


def _another(job: str, run: str) -> Permanent:
    return Permanent(
        "Another run works on this database", f"run {run} of job {job} has begun and is not finished",
        f"Where it runs: vecrun resume {job}, or vecrun rollback {job}. If nobody can any more: vecrun stamp",
    )  # fmt: skip


def _write(connection: sa.Connection, mine: Mine, step: str, **values: Any) -> None:
    values = {"token": mine.token, "keys": "{}"} | values | {"run": mine.run, "recorded": now()}
    found = connection.execute(sa.select(records.c.step).where(_of(mine, step))).first()
    if found is None:
        connection.execute(records.insert().values(job=mine.job, step=step, **values))
    else:
        connection.execute(records.update().where(_of(mine, step)).values(**values))


def _of(mine: Mine, step: str) -> sa.ColumnElement[bool]:
    return sa.and_(records.c.job == mine.job, records.c.step == step)


def _steps(mine: Mine) -> sa.ColumnElement[bool]:
    return sa.and_(records.c.job == mine.job, records.c.step != "")


def _entry(row: Any) -> Entry:
    return Entry(row.step, row.digest, row.status, row.run, row.statement, row.recorded, json.loads(row.keys))


def _claim(row: Any) -> Claim:
    return Claim(row.run, row.digest or None, row.token, row.status == "open", json.loads(row.keys))


def _lock(connection: sa.Connection, *, shared: bool) -> None:
    """Alone in the database, or with other batches. SQLite's BEGIN IMMEDIATE is the lock, MySQL's has a name."""
    if connection.dialect.name == "postgresql":
        function = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
        connection.exec_driver_sql(f"SELECT {function}({LOCK})")


@contextlib.contextmanager
def _named_lock(database: Database) -> Iterator[None]:
    """MySQL's lock belongs to a session, and outlives the commits of its DDL."""
    if database.engine.dialect.name not in ("mysql", "mariadb"):
        yield
        return
    with database.engine.connect() as connection:
        name = {"name": "vecrun", "seconds": LOCK_SECONDS}
        if connection.execute(sa.text("SELECT GET_LOCK(:name, :seconds)"), name).scalar() != 1:
            raise Transient("Somebody else holds a lock in the relational database", database.shown)
        try:
            yield
        finally:
            connection.execute(sa.text("SELECT RELEASE_LOCK(:name)"), name)
