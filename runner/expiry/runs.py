"""Finished runs that cannot be rolled back any more: which they are, what is kept of each, and how that is removed.

A run keeps its line in the history, its steps, its log, what it cost, and what became of each document. What goes is what
only its rollback needed and what says something about single points (id mapping, partitions, findings, failed items).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from runner import crash
from runner.expiry import remains
from runner.expiry.kept import written
from runner.expiry.remains import Remains, Trash
from runner.items import Items, naming
from runner.ledger import FINAL
from runner.lock import Lease
from runner.plan import Plan, SettleFailures, loads
from runner.settings import Settings, duration_seconds
from runner.state import State, States
from runner.sweeper import Sweeper
from runner.tables import failures, findings, id_map, items, log, partitions
from runner.world import World

#: What the rows of failed items are called, and the documents whose points are still named.
FAILED, DOCUMENTS = "failed items", "points of documents"
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
    trash: dict[str, Trash] = field(default_factory=dict)  # CONNECTION/prefix -> deleted files

    @property
    def empty(self) -> bool:
        return not (self.rollback or self.tables or self.rows or self.collections or self.trash)


def before(settings: Settings, now: datetime) -> datetime:
    """History and log details from before are of no use."""
    return now - timedelta(seconds=duration_seconds(settings.state.retention))


def of_job(settings: Settings, ledger: Sweeper, state: State, now: datetime) -> tuple[list[Leftover], list[str]]:
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
            needed |= remains.names(plan, row["run"])
            continue
        over.append((row, plan, why))
    for row, plan, why in over:
        with World(settings, "read", plan.inline) as world:
            there, reasons = remains.look(plan, row["run"], world, needed)
        left += [f"run {row['run']} {why}, but {reason}" for reason in reasons]
        rollback = row["run"] in applied and row["run"] not in state.forgotten
        rows = _rows(ledger, row["run"], before(settings, now))
        if _can_retry(state, row["run"], plan):
            rows.pop(FAILED, None)
        leftover = Leftover(row["run"], state.job, why, rollback, there.tables, rows, there.collections, there.trash)
        if not leftover.empty:
            found.append(leftover)
    for item in state.applied:  # of another ledger: there is nothing of it here but the entry
        expires = datetime.fromisoformat(item.expires)
        if item.run not in known and expires <= now and item.run not in state.forgotten:
            found.append(Leftover(item.run, state.job, f"expired on {expires:%Y-%m-%d}", True, {}, {}))
    return found, left


def _can_retry(state: State, run: str, plan: Plan) -> bool:
    """Whether failed items of a run can be tried again once it is past its rollback: what they miss is still missed in
    the collection that it made. In place the next incremental run finds them by itself; for documents nothing is kept
    any more of what they were."""
    settle = [step for step in plan.steps if isinstance(step, SettleFailures)]
    live = state.status == "applied" and state.applied[-1].run == run
    return live and plan.purpose == "apply" and bool(settle) and settle[0].saved is None


def _rows(ledger: Sweeper, run: str, old: datetime) -> dict[str, int]:
    """Rows of the ledger about single points and partitions of a run; old log lines with details."""
    with ledger.reading() as connection:
        counts = {
            name: connection.execute(sa.select(sa.func.count()).select_from(table).where(*where)).scalar_one()
            for name, (table, where) in _tables(run, old).items()
        }
    return {name: count for name, count in counts.items() if count}


def _tables(run: str, old: datetime) -> dict[str, tuple[sa.Table, tuple[Any, ...]]]:
    return {
        "id mapping": (id_map, (id_map.c.run == run,)),
        "partitions": (partitions, (partitions.c.run == run,)),
        "findings": (findings, (findings.c.run == run,)),
        DOCUMENTS: (items, (naming(run),)),
        FAILED: (failures, (failures.c.run == run,)),
        # a verification writes such lines long after the run
        "log details": (log, (log.c.run == run, log.c.details.is_not(None), log.c.time < written(old))),
    }


def remove_runs(
    settings: Settings, ledger: Sweeper, states: States, lease: Lease, job: str, runs: tuple[Leftover, ...], now: datetime
) -> list[str]:  # fmt: skip
    """First the state is told, then goes what was kept. Reasons why something was left."""
    ending = {item.run for item in runs if item.rollback}
    if ending:
        states.save(_without(states.load(job), ending, now), ledger.guarded(lease))
        crash.point("gc", "state")
    left = list[str]()
    for item in runs:
        if item.tables or item.collections or item.trash:
            plan = loads(ledger.run(item.run)["plan"], f"run {item.run}")
            with World(settings, "write", plan.inline) as world:
                shown = Remains(item.tables, item.collections, item.trash)
                left += remains.drop(world, ledger, plan, item.run, shown)
        if DOCUMENTS in item.rows:
            Items(ledger).thin(lease, item.run)
            crash.point("gc", "documents")
        for name, (table, where) in _tables(item.run, before(settings, now)).items():
            if name in item.rows and name != DOCUMENTS:
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


def _delete(ledger: Sweeper, lease: Lease, table: sa.Table, where: tuple[Any, ...]) -> None:
    """In transactions of some thousand rows, so that the lease can be renewed in between."""
    key = sa.tuple_(*table.primary_key.columns)
    chosen = key.in_(sa.select(*table.primary_key.columns).where(*where).limit(CHUNK))
    statement = table.update().where(chosen).values(details=None) if table is log else table.delete().where(chosen)
    while True:
        with ledger.guarded(lease) as connection:
            if connection.execute(statement).rowcount == 0:
                return
