"""What is kept for rollbacks that can no longer be: found first, and removed only once it was shown.

Undo tables, saved points and deleted files of runs that are over, and the ledger's rows about single points. Kept vectors
go by their age, backups by the rules of their job. Nothing is touched that vecrun did not make to be able to go back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime

import sqlalchemy as sa

from runner import crash
from runner.errors import LockHeld, VecrunError
from runner.expiry import backups
from runner.expiry.backups import OldBackup, OldBackups
from runner.expiry.kept import OldVectors, embedding, expire_vectors, forget_orphans, old_vectors, orphans
from runner.expiry.lease import leased
from runner.expiry.remains import Trash
from runner.expiry.runs import Leftover, before, of_job, remove_runs
from runner.lock import collection
from runner.settings import Settings
from runner.state import KEEP_VERSIONS, SERVING, States
from runner.sweeper import Sweeper
from runner.tables import workers

__all__ = ["Garbage", "Leftover", "OldBackup", "OldBackups", "OldVectors", "Trash", "embedding", "find", "remove"]

#: Seconds of silence after which a worker's line is of no use.
GONE_SECONDS = 60.0


@dataclass(frozen=True)
class Garbage:
    """What can be removed. `left`: what was not looked at or not removed, and why."""

    runs: tuple[Leftover, ...] = ()
    history: tuple[tuple[str, tuple[int, ...]], ...] = ()  # (document, serials)
    workers: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    vectors: OldVectors | None = None
    marks: dict[str, int] = field(default_factory=dict)  # CONNECTION/collection that is gone -> points with a mark
    backups: tuple[OldBackups, ...] = ()
    freed: int = 0  # bytes by which the ledger's file became smaller

    @property
    def empty(self) -> bool:
        return not (self.runs or self.history or self.workers or self.vectors or self.marks or self.backups)


def find(settings: Settings, ledger: Sweeper, states: States, jobs: Collection[str] | None = None) -> Garbage:
    """What there is to remove, of all jobs or of some. Changes nothing."""
    now, runs, left = _now(ledger), list[Leftover](), list[str]()
    history: list[tuple[str, tuple[int, ...]]] = []
    old_before = before(settings, now)
    rows = ledger.runs_of()
    names = sorted({row["job"] for row in rows} | set(states.names()))
    for name in names if jobs is None else [name for name in names if name in jobs]:
        keep = KEEP_VERSIONS
        try:
            if name != SERVING:
                if held := ledger.unfinished(name):
                    left.append(f"job {name}: run {held['run']} is {held['status']}; nothing of the job is touched")
                    continue
                found, reasons = of_job(settings, ledger, states.load(name), now)
                runs += found
                left += reasons
                keep -= any(item.rollback for item in found)  # to remove it writes one more
            if old := states.expired(name, old_before, keep):
                history.append((name, tuple(old)))
        except VecrunError as exc:
            left.append(f"{name}: {exc}")
    if jobs is not None:
        return Garbage(tuple(runs), tuple(history), (), tuple(left))
    aged, reason = old_vectors(settings, ledger, now)
    gone, reasons = orphans(settings, ledger)
    left += [reason] if reason else []
    old_backups, unseen = backups.find(settings, ledger, states, now)
    return Garbage(tuple(runs), tuple(history), _gone(ledger), (*left, *reasons, *unseen), aged, gone, old_backups)


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
            with leased(ledger, names, settings.workspace.limits.lease_seconds) as lease:
                still = find(settings, ledger, states, [job])
                wanted = {item.run for item in shown.runs}
                runs = tuple(item for item in still.runs if item.run in wanted)
                left += [reason for reason in still.left if reason not in shown.left]
                left += remove_runs(settings, ledger, states, lease, job, runs, _now(ledger))
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
    forgotten = forget_orphans(settings, ledger, shown.marks, left)
    aged, reason = expire_vectors(ledger, shown.vectors)
    left += [reason] if reason else []
    gone = list[OldBackups]()
    for item in shown.backups:
        one, reasons = backups.remove(settings, ledger, states, item, _now(ledger), say)
        gone += [one] if one is not None else []
        left += [reason for reason in reasons if reason not in shown.left]
    freed = ledger.compact() if not ledger.holders() else 0
    return Garbage(
        removed.runs, removed.history, shown.workers, (*shown.left, *left), aged, forgotten, tuple(gone), freed
    )  # fmt: skip


def _now(ledger: Sweeper) -> datetime:
    with ledger.reading() as connection:
        return datetime.fromtimestamp(ledger.clock(connection), UTC)


def _gone(ledger: Sweeper) -> tuple[str, ...]:
    with ledger.reading() as connection:
        limit = ledger.clock(connection) - GONE_SECONDS
        return tuple(connection.execute(sa.select(workers.c.worker).where(workers.c.seen < limit)).scalars())
