"""What is kept for rollbacks that can no longer be: found first, and removed only once it was shown.

A run keeps its line in the history, its steps and its log. What goes is what only its rollback needed (undo tables) and
what says something about single points (id mapping, partitions, findings). No collection is touched here.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from runner import crash
from runner.errors import LockHeld, VecrunError
from runner.ledger import FINAL
from runner.lock import Keeper, Lease
from runner.plan import Plan, RewriteIds, loads
from runner.settings import Settings, duration_seconds
from runner.state import KEEP_VERSIONS, SERVING, State, States
from runner.sweeper import Sweeper
from runner.tables import findings, id_map, log, partitions, workers
from runner.world import World

#: Seconds of silence after which a worker's line is of no use.
GONE_SECONDS = 60.0
#: Rows that are removed in one transaction: others wait for it.
CHUNK = 10_000


@dataclass(frozen=True)
class Leftover:
    """A finished run that cannot be rolled back any more, and what is still kept of it."""

    run: str
    job: str
    why: str
    rollback: bool  # its state still offers the rollback, which ends with it
    tables: dict[str, int]  # CONNECTION/undo table -> rows
    rows: dict[str, int]  # of the ledger: id mapping, partitions, findings, log details

    @property
    def empty(self) -> bool:
        return not (self.rollback or self.tables or self.rows)


@dataclass(frozen=True)
class Garbage:
    """What can be removed. `left`: what was not looked at or not removed, and why."""

    runs: tuple[Leftover, ...] = ()
    history: tuple[tuple[str, tuple[int, ...]], ...] = ()  # (document, serials)
    workers: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.runs or self.history or self.workers)


def find(settings: Settings, ledger: Sweeper, states: States, jobs: Collection[str] | None = None) -> Garbage:
    """What there is to remove, of all jobs or of some. Changes nothing."""
    now, runs, left = _now(ledger), list[Leftover](), list[str]()
    history: list[tuple[str, tuple[int, ...]]] = []
    before = _before(settings, now)
    rows = ledger.runs_of()
    names = sorted({row["job"] for row in rows} | set(states.names()))
    for name in names if jobs is None else [name for name in names if name in jobs]:
        keep = KEEP_VERSIONS
        try:
            if name != SERVING:
                if held := ledger.unfinished(name):
                    left.append(f"job {name}: run {held['run']} is {held['status']}; nothing of the job is touched")
                    continue
                found, reasons = _of_job(settings, ledger, states.load(name), now)
                runs += found
                left += reasons
                keep -= any(item.rollback for item in found)  # to remove it writes one more
            if old := states.expired(name, before, keep):
                history.append((name, tuple(old)))
        except VecrunError as exc:
            left.append(f"{name}: {exc}")
    gone = _gone(ledger) if jobs is None else ()
    return Garbage(tuple(runs), tuple(history), gone, tuple(left))


def remove(settings: Settings, ledger: Sweeper, states: States, shown: Garbage, say: Callable[[str], None]) -> Garbage:
    """Remove what was shown, as far as it still is there and nobody needs it. Returns what was removed.

    A crash between any two steps leaves something that `find` finds again: the state is told first that there is no
    way back, then the way back is removed.
    """
    removed, left = Garbage(), list[str]()
    serials = dict(shown.history)
    for job in sorted({item.job for item in shown.runs} | serials.keys()):
        names = ["gc" if job == SERVING else f"job:{job}"]
        try:
            with _leased(ledger, names, settings.workspace.limits.lease_seconds) as lease:
                still = find(settings, ledger, states, [job])
                wanted = {item.run for item in shown.runs}
                runs = tuple(item for item in still.runs if item.run in wanted)
                left += [reason for reason in still.left if reason not in shown.left]
                left += _remove_runs(settings, ledger, states, lease, job, runs)
                old = tuple(n for n in dict(still.history).get(job, ()) if n in serials.get(job, ()))
                if old:
                    states.forget(job, old, ledger.guarded(lease))
                    crash.point("gc", "history")
                removed = Garbage(removed.runs + runs, removed.history + (((job, old),) if old else ()))
                say(f"{job}: done")
        except LockHeld as exc:
            left.append(f"{job}: {exc.detail}")
    with ledger.writing() as connection:
        limit = ledger.clock(connection) - GONE_SECONDS
        chosen = workers.c.worker.in_(shown.workers)
        connection.execute(workers.delete().where(chosen, workers.c.seen < limit))
    return Garbage(removed.runs, removed.history, shown.workers, (*shown.left, *left))


@contextmanager
def _leased(ledger: Sweeper, names: list[str], seconds: int) -> Iterator[Lease]:
    lease = ledger.acquire(names, f"gc-{uuid.uuid4().hex[:12]}", seconds)
    try:
        with Keeper(ledger, lease, seconds, threading.Event()):
            yield lease
    finally:
        with suppress(VecrunError):
            ledger.release(lease)


def _now(ledger: Sweeper) -> datetime:
    with ledger.reading() as connection:
        return datetime.fromtimestamp(ledger.clock(connection), UTC)


def _before(settings: Settings, now: datetime) -> datetime:
    """History and log details from before are of no use."""
    return now - timedelta(seconds=duration_seconds(settings.state.retention))


def _of_job(settings: Settings, ledger: Sweeper, state: State, now: datetime) -> tuple[list[Leftover], list[str]]:
    """Finished runs of a job that cannot be rolled back, and reasons why some of their tables were not looked at."""
    applied = {item.run: item for item in state.applied}
    found, left = list[Leftover](), list[str]()
    known = set()
    for row in ledger.runs_of(state.job):
        known.add(row["run"])
        if row["status"] not in FINAL:
            continue
        plan = loads(ledger.run(row["run"])["plan"], f"run {row['run']}")
        item = applied.get(row["run"])
        finished = datetime.fromisoformat(row["finished"] or row["created"])
        expires = finished + timedelta(seconds=duration_seconds(plan.retention))
        if item is not None:
            expires = datetime.fromisoformat(item.expires)
        why = f"expired on {expires:%Y-%m-%d}"
        if row["status"] == "rolled_back":
            why = f"was rolled back on {finished:%Y-%m-%d}"
        elif plan.purpose == "rollback":
            why = f"is a rollback, finished on {finished:%Y-%m-%d}"
        elif expires > now:
            continue
        with World(settings, "read", plan.inline) as world:
            tables, reasons = _undo_tables(plan, world)
        left += [f"run {row['run']} {why}, but {reason}" for reason in reasons]
        rollback = item is not None and row["run"] not in state.forgotten
        rows = _rows(ledger, row["run"], _before(settings, now))
        leftover = Leftover(row["run"], state.job, why, rollback, tables, rows)
        if not leftover.empty:
            found.append(leftover)
    for item in state.applied:  # of another ledger: there is nothing of it here but the entry
        expires = datetime.fromisoformat(item.expires)
        if item.run not in known and expires <= now and item.run not in state.forgotten:
            found.append(Leftover(item.run, state.job, f"expired on {expires:%Y-%m-%d}", True, {}, {}))
    return found, left


def _undo_tables(plan: Plan, world: World) -> tuple[dict[str, int], list[str]]:
    from runner.documents import chunks

    found, left = dict[str, int](), list[str]()
    for step in plan.steps:
        if isinstance(step, RewriteIds):
            name, connection = f"{step.chunks.connection}/{step.undo_table}", step.chunks.connection
            try:
                if world.digest(connection) != plan.connections.get(connection, world.digest(connection)):
                    left.append(f"{name} is not looked for: the connection points somewhere else now")
                    continue
                rows = chunks.undo_rows(world.database(connection), step.chunks, step.undo_table)
            except VecrunError as exc:
                left.append(f"{name} is not looked for: {exc}")
                continue
            if rows is not None:
                found[name] = rows
    return found, left


def _rows(ledger: Sweeper, run: str, before: datetime) -> dict[str, int]:
    """Rows of the ledger about single points and partitions of a run; old log lines with details."""
    with ledger.reading() as connection:
        counts = {
            name: connection.execute(sa.select(sa.func.count()).select_from(table).where(*where)).scalar_one()
            for name, (table, where) in _tables(run, before).items()
        }
    return {name: count for name, count in counts.items() if count}


def _tables(run: str, before: datetime) -> dict[str, tuple[sa.Table, tuple[Any, ...]]]:
    return {
        "id mapping": (id_map, (id_map.c.run == run,)),
        "partitions": (partitions, (partitions.c.run == run,)),
        "findings": (findings, (findings.c.run == run,)),
        # a verification writes such lines long after the run
        "log details": (log, (log.c.run == run, log.c.details.is_not(None), log.c.time < _written(before))),
    }


def _written(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


def _gone(ledger: Sweeper) -> tuple[str, ...]:
    with ledger.reading() as connection:
        limit = ledger.clock(connection) - GONE_SECONDS
        return tuple(connection.execute(sa.select(workers.c.worker).where(workers.c.seen < limit)).scalars())


def _remove_runs(
    settings: Settings, ledger: Sweeper, states: States, lease: Lease, job: str, runs: tuple[Leftover, ...]
) -> list[str]:
    """Reasons why something was left."""
    ending = {item.run for item in runs if item.rollback}
    if ending:
        states.save(_without(states.load(job), ending, _now(ledger)), ledger.guarded(lease))
        crash.point("gc", "state")
    left, before = list[str](), _before(settings, _now(ledger))
    for item in runs:
        if item.tables:
            plan = loads(ledger.run(item.run)["plan"], f"run {item.run}")
            left += _drop(settings, plan, item)
            crash.point("gc", "tables")
        for name, (table, where) in _tables(item.run, before).items():
            if name in item.rows:
                _delete(ledger, lease, table, where)
                crash.point("gc", "rows")
    return left


def _without(state: State, ending: set[str], now: datetime) -> State:
    """The state without the rollback of these runs. What lies below one of them is never reached again and goes; the
    uppermost stays, because it says what is live."""
    gone = ending | state.forgotten.keys()
    top = max(number for number, item in enumerate(state.applied) if item.run in gone)
    applied = tuple(item for number, item in enumerate(state.applied) if number >= top or item.run not in gone)
    forgotten = dict.fromkeys(ending, now.isoformat(timespec="seconds")) | state.forgotten
    kept = {item.run for item in applied}
    return state.model_copy(
        update={"applied": applied, "forgotten": {run: at for run, at in sorted(forgotten.items()) if run in kept}}
    )


def _drop(settings: Settings, plan: Plan, item: Leftover) -> list[str]:
    from runner.documents import chunks

    left = []
    with World(settings, "write", plan.inline) as world:
        for step in plan.steps:
            if isinstance(step, RewriteIds) and f"{step.chunks.connection}/{step.undo_table}" in item.tables:
                try:
                    chunks.forget(world.database(step.chunks.connection), step.chunks, step.undo_table)
                except VecrunError as exc:
                    left.append(f"{step.chunks.connection}/{step.undo_table} of run {item.run}: {exc}")
    return left


def _delete(ledger: Sweeper, lease: Lease, table: sa.Table, where: tuple[Any, ...]) -> None:
    """In transactions of some thousand rows, so that the lease can be renewed in between."""
    key = sa.tuple_(*table.primary_key.columns)
    chosen = key.in_(sa.select(*table.primary_key.columns).where(*where).limit(CHUNK))
    statement = table.update().where(chosen).values(details=None) if table is log else table.delete().where(chosen)
    while True:
        with ledger.guarded(lease) as connection:
            if connection.execute(statement).rowcount == 0:
                return
