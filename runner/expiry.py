"""What is kept for rollbacks that can no longer be: found first, and removed only once it was shown.

A run keeps its line in the history, its steps, its log and what it cost. What goes is what only its rollback needed
(undo tables, saved points) and what says something about single points (id mapping, partitions, findings, failed items).
Of collections only those are dropped that a run made to save points in. Kept vectors go by their age.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from runner import crash
from runner.clauses.spec import saved
from runner.errors import LockHeld, VecrunError
from runner.ledger import FINAL, Ledger
from runner.lock import Keeper, Lease, collection
from runner.plan import CopyPoints, Place, Plan, ReplaceVectors, RewriteIds, SetModel, SettleFailures, loads
from runner.settings import Settings, duration_seconds
from runner.state import KEEP_VERSIONS, SERVING, State, States
from runner.sweeper import Sweeper
from runner.tables import failures, findings, id_map, log, marks, partitions, workers
from runner.vectors import Vectors
from runner.world import World

#: Seconds of silence after which a worker's line is of no use.
GONE_SECONDS = 60.0
#: What the rows of failed items are called.
FAILED = "failed items"
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
    rows: dict[str, int]  # of the ledger: id mapping, partitions, findings, failed items, log details
    collections: dict[str, int] = field(default_factory=dict)  # CONNECTION/collection of saved points -> points

    @property
    def empty(self) -> bool:
        return not (self.rollback or self.tables or self.rows or self.collections)


@dataclass(frozen=True)
class OldVectors:
    """Vectors that were kept before `before` (ISO 8601, UTC), and texts that were refused before."""

    before: str
    count: int
    bytes: int


@dataclass(frozen=True)
class Garbage:
    """What can be removed. `left`: what was not looked at or not removed, and why."""

    runs: tuple[Leftover, ...] = ()
    history: tuple[tuple[str, tuple[int, ...]], ...] = ()  # (document, serials)
    workers: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    vectors: OldVectors | None = None
    marks: dict[str, int] = field(default_factory=dict)  # CONNECTION/collection that is gone -> points with a mark
    freed: int = 0  # bytes by which the ledger's file became smaller

    @property
    def empty(self) -> bool:
        return not (self.runs or self.history or self.workers or self.vectors or self.marks)


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
    if jobs is not None:
        return Garbage(tuple(runs), tuple(history), (), tuple(left))
    aged, reason = _old_vectors(settings, ledger, now)
    orphans, reasons = _orphans(settings, ledger)
    left += [reason] if reason else []
    return Garbage(tuple(runs), tuple(history), _gone(ledger), (*left, *reasons), aged, orphans)


def remove(settings: Settings, ledger: Sweeper, states: States, shown: Garbage, say: Callable[[str], None]) -> Garbage:
    """Remove what was shown, as far as it still is there and nobody needs it. Returns what was removed.

    A crash between any two steps leaves something that `find` finds again: the state is told first that there is no
    way back, then the way back is removed.
    """
    removed, left = Garbage(), list[str]()
    serials = dict(shown.history)
    for job in sorted({item.job for item in shown.runs} | serials.keys()):
        saved_points = {name for item in shown.runs if item.job == job for name in item.collections}
        names = ["gc" if job == SERVING else f"job:{job}", *sorted(map(collection, saved_points))]
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
    orphans = _forget_orphans(settings, ledger, shown.marks, left)
    aged, reason = _expire_vectors(ledger, shown.vectors)
    left += [reason] if reason else []
    freed = ledger.compact() if not ledger.holders() else 0
    return Garbage(removed.runs, removed.history, shown.workers, (*shown.left, *left), aged, orphans, freed)


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
    known, over, needed = set(), list[tuple[Any, Plan, str]](), set[str]()
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
            needed |= {*_undo_names(plan), *map(str, _saved_places(plan))}
            continue
        over.append((row, plan, why))
    for row, plan, why in over:
        with World(settings, "read", plan.inline) as world:
            tables, reasons = _undo_tables(plan, world, needed)
            collections, more = _saved_points(plan, world, needed)
        left += [f"run {row['run']} {why}, but {reason}" for reason in (*reasons, *more)]
        rollback = row["run"] in applied and row["run"] not in state.forgotten
        rows = _rows(ledger, row["run"], _before(settings, now))
        if _can_retry(state, row["run"], plan):
            rows.pop(FAILED, None)
        leftover = Leftover(row["run"], state.job, why, rollback, tables, rows, collections)
        if not leftover.empty:
            found.append(leftover)
    for item in state.applied:  # of another ledger: there is nothing of it here but the entry
        expires = datetime.fromisoformat(item.expires)
        if item.run not in known and expires <= now and item.run not in state.forgotten:
            found.append(Leftover(item.run, state.job, f"expired on {expires:%Y-%m-%d}", True, {}, {}))
    return found, left


def _can_retry(state: State, run: str, plan: Plan) -> bool:
    """Whether failed items of a run can be tried again once it is past its rollback: what they miss is still missed in
    the collection that it made. In place the next incremental run finds them by itself."""
    settle = [step for step in plan.steps if isinstance(step, SettleFailures)]
    live = state.status == "applied" and state.applied[-1].run == run
    return live and plan.purpose == "apply" and bool(settle) and settle[0].saved is None


def _undo_names(plan: Plan) -> dict[str, RewriteIds | SetModel]:
    """CONNECTION/undo table -> a step that fills it."""
    found: dict[str, RewriteIds | SetModel] = {}
    for step in plan.steps:
        if isinstance(step, RewriteIds):
            found[f"{step.chunks.connection}/{step.undo_table}"] = step
        elif isinstance(step, SetModel) and step.phase in ("begin", "end") and step.rows is not None:
            found[f"{step.rows.connection}/{step.undo_table}"] = step
    return found


def _saved_places(plan: Plan) -> list[Place]:
    """Collections that a run made to save points in."""
    places = {step.saved: None for step in plan.steps if isinstance(step, ReplaceVectors)}
    return [place for place in places if saved(place.collection)]


def _undo_tables(plan: Plan, world: World, needed: set[str]) -> tuple[dict[str, int], list[str]]:
    found, left = dict[str, int](), list[str]()
    for name, step in _undo_names(plan).items():
        if name in needed:
            continue
        try:
            if _moved(plan, world, connection := name.partition("/")[0]):
                left.append(f"{name} is not looked for: the connection points somewhere else now")
                continue
            rows = _undo_rows(world, connection, step)
        except VecrunError as exc:
            left.append(f"{name} is not looked for: {exc}")
            continue
        if rows is not None:
            found[name] = rows
    return found, left


def _undo_rows(world: World, connection: str, step: RewriteIds | SetModel) -> int | None:
    from runner.documents import chunks, model

    if isinstance(step, RewriteIds):
        return chunks.undo_rows(world.database(connection), step.chunks, step.undo_table)
    assert step.rows is not None
    return model.undo_rows(world.database(connection), step.rows, step.undo_table)


def _saved_points(plan: Plan, world: World, needed: set[str]) -> tuple[dict[str, int], list[str]]:
    found, left = dict[str, int](), list[str]()
    for place in _saved_places(plan):
        if str(place) in needed:
            continue
        try:
            if _moved(plan, world, place.connection):
                left.append(f"{place} is not looked for: the connection points somewhere else now")
                continue
            store = world.store(place.connection)
            if store.inspect(place.collection) is not None:
                found[str(place)] = store.count(place.collection)
        except VecrunError as exc:
            left.append(f"{place} is not looked for: {exc}")
    return found, left


def _moved(plan: Plan, world: World, connection: str) -> bool:
    return world.digest(connection) != plan.connections.get(connection, world.digest(connection))


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
        FAILED: (failures, (failures.c.run == run,)),
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
        if item.tables or item.collections:
            plan = loads(ledger.run(item.run)["plan"], f"run {item.run}")
            left += _drop(settings, ledger, plan, item)
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


def _drop(settings: Settings, ledger: Sweeper, plan: Plan, item: Leftover) -> list[str]:
    """Undo tables, then saved points. Reasons why something was left."""
    from runner.documents import chunks, model

    left = []
    with World(settings, "write", plan.inline) as world:
        for name, step in _undo_names(plan).items():
            if name in item.tables:
                try:
                    database = world.database(name.partition("/")[0])
                    if isinstance(step, RewriteIds):
                        chunks.forget(database, step.chunks, step.undo_table)
                    elif step.rows is not None:
                        model.forget(database, step.rows, step.undo_table)
                except VecrunError as exc:
                    left.append(f"{name} of run {item.run}: {exc}")
                crash.point("gc", "tables")
        for place in _saved_places(plan):
            if str(place) in item.collections:
                try:
                    world.store(place.connection).drop(place.collection)
                    crash.point("gc", "collections")
                    Vectors(ledger).forget_place(str(place))
                except VecrunError as exc:
                    left.append(f"{place} of run {item.run}: {exc}")
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


# Kept vectors, and what points were made from ---------------------------------------------------------------------------


def _old_vectors(settings: Settings, ledger: Sweeper, now: datetime) -> tuple[OldVectors | None, str]:
    """(vectors that are kept for longer than vectors.keep, why they are not looked at)."""
    if run := embedding(ledger):
        return None, f"kept vectors: run {run} is not finished and may need them"
    keep = duration_seconds(settings.workspace.vectors.keep)
    before = _written(now - timedelta(seconds=keep))
    count, size = Vectors(ledger).older(before)
    return (OldVectors(before, count, size) if count else None), ""


def embedding(ledger: Ledger, but: str = "") -> str:
    """An unfinished run that embeds, `but` aside: it needs kept vectors. Empty if there is none."""
    for row in ledger.runs_of():
        if row["status"] not in FINAL and row["run"] != but:
            plan = loads(ledger.run(row["run"])["plan"], f"run {row['run']}")
            if any(
                isinstance(step, CopyPoints | ReplaceVectors | SettleFailures) and step.transform.embed
                for step in plan.steps
            ):
                return str(row["run"])
    return ""


def _expire_vectors(ledger: Sweeper, shown: OldVectors | None) -> tuple[OldVectors | None, str]:
    if shown is None:
        return None, ""
    if run := embedding(ledger):
        return None, f"kept vectors: run {run} has begun and may need them"
    _count, size = Vectors(ledger).older(shown.before)
    gone = Vectors(ledger).expire(datetime.fromisoformat(shown.before))
    crash.point("gc", "vectors")
    return OldVectors(shown.before, gone, size), ""


def _orphans(settings: Settings, ledger: Sweeper) -> tuple[dict[str, int], list[str]]:
    """(collections that are gone, with the number of points of which a mark is left; why some were not looked for)."""
    found, left = dict[str, int](), list[str]()
    with ledger.reading() as connection:
        query = sa.select(marks.c.place, sa.func.count(), sa.func.max(marks.c.run)).group_by(marks.c.place)
        rows = [(str(place), int(count), str(run)) for place, count, run in connection.execute(query)]
    for place, count, run in rows:
        try:
            plan = loads(ledger.run(run)["plan"], f"run {run}")
            with World(settings, "read", plan.inline) as world:
                if _is_gone(plan, world, place):
                    found[place] = count
        except VecrunError as exc:
            left.append(f"marks of {place}: {exc}")
    return found, left


def _is_gone(plan: Plan, world: World, place: str) -> bool:
    """Whether a collection was looked for where the run had it, and is not there."""
    connection, _, name = place.partition("/")
    return not _moved(plan, world, connection) and world.store(connection).inspect(name) is None


def _forget_orphans(settings: Settings, ledger: Sweeper, shown: dict[str, int], left: list[str]) -> dict[str, int]:
    """What was removed; reasons why something was not go into `left`."""
    done: dict[str, int] = {}
    for place in shown:
        try:
            with _leased(ledger, [collection(place)], settings.workspace.limits.lease_seconds):
                still, reasons = _orphans(settings, ledger)  # somebody may have made it anew meanwhile
                left += [reason for reason in reasons if reason.startswith(f"marks of {place}:")]
                if place in still:
                    Vectors(ledger).forget_place(place)
                    done[place] = still[place]
                    crash.point("gc", "marks")
        except LockHeld as exc:
            left.append(f"marks of {place}: {exc.detail}")
    return done
