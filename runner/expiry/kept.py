"""What gc does with kept vectors and marks: vectors go by their age, but not while a run embeds; marks go with their
collection.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from runner import crash
from runner.errors import LockHeld, VecrunError
from runner.expiry.lease import leased
from runner.expiry.remains import moved
from runner.ledger import FINAL, Ledger
from runner.lock import collection
from runner.plan import CopyPoints, Plan, ReplaceVectors, ReprocessDocuments, SettleFailures, Step, loads
from runner.settings import Settings, duration_seconds
from runner.sweeper import Sweeper
from runner.tables import marks
from runner.vectors import Vectors
from runner.world import World


@dataclass(frozen=True)
class OldVectors:
    """Vectors that were kept before `before` (ISO 8601, UTC), and texts that were refused before."""

    before: str
    count: int
    bytes: int


def written(moment: datetime) -> str:
    """A time as the ledger writes it."""
    return moment.isoformat(timespec="milliseconds")


def old_vectors(settings: Settings, ledger: Sweeper, now: datetime) -> tuple[OldVectors | None, str]:
    """(vectors that are kept for longer than vectors.keep, why they are not looked at)."""
    if run := embedding(ledger):
        return None, f"kept vectors: run {run} is not finished and may need them"
    keep = duration_seconds(settings.workspace.vectors.keep)
    before = written(now - timedelta(seconds=keep))
    count, size = Vectors(ledger).older(before)
    return (OldVectors(before, count, size) if count else None), ""


def embedding(ledger: Ledger, but: str = "") -> str:
    """An unfinished run that embeds, `but` aside: it needs kept vectors. Empty if there is none."""
    for row in ledger.runs_of():
        if row["status"] not in FINAL and row["run"] != but:
            plan = loads(ledger.run(row["run"])["plan"], f"run {row['run']}")
            if any(_embeds(step) for step in plan.steps):
                return str(row["run"])
    return ""


def _embeds(step: Step) -> bool:
    if isinstance(step, CopyPoints | ReplaceVectors | SettleFailures):
        return step.transform.embed is not None
    return isinstance(step, ReprocessDocuments)


def expire_vectors(ledger: Sweeper, shown: OldVectors | None) -> tuple[OldVectors | None, str]:
    """Remove what was shown: (what was removed, why it was not)."""
    if shown is None:
        return None, ""
    if run := embedding(ledger):
        return None, f"kept vectors: run {run} has begun and may need them"
    _count, size = Vectors(ledger).older(shown.before)
    gone = Vectors(ledger).expire(datetime.fromisoformat(shown.before))
    crash.point("gc", "vectors")
    return OldVectors(shown.before, gone, size), ""


def orphans(settings: Settings, ledger: Sweeper) -> tuple[dict[str, int], list[str]]:
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
    return not moved(plan, world, connection) and world.store(connection).inspect(name) is None


def forget_orphans(settings: Settings, ledger: Sweeper, shown: dict[str, int], left: list[str]) -> dict[str, int]:
    """What was removed; reasons why something was not go into `left`."""
    done: dict[str, int] = {}
    for place in shown:
        try:
            with leased(ledger, [collection(place)], settings.workspace.limits.lease_seconds):
                still, reasons = orphans(settings, ledger)  # somebody may have made it anew meanwhile
                left += [reason for reason in reasons if reason.startswith(f"marks of {place}:")]
                if place in still:
                    Vectors(ledger).forget_place(place)
                    done[place] = still[place]
                    crash.point("gc", "marks")
        except LockHeld as exc:
            left.append(f"marks of {place}: {exc.detail}")
    return done
