"""Which backups stay when old ones go: the newest ones, the newest of each of so many days, weeks, months and years.

Rules are told apart from what stays whatever they say: nobody shall be left without a backup that holds something. Times
and days are those of UTC, weeks those of ISO 8601.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from runner.backups.manifest import AHEAD, Backup, moment
from runner.plan import Keep
from runner.settings import duration_seconds

#: How long a backup that is not whole may still be somebody's work.
AT_WORK = timedelta(hours=1)

_PERIODS: dict[str, Callable[[datetime], object]] = {
    "daily": lambda at: at.date(),
    "weekly": lambda at: at.isocalendar()[:2],
    "monthly": lambda at: (at.year, at.month),
    "yearly": lambda at: at.year,
}


@dataclass(frozen=True)
class Kept:
    """What the rules look at of a backup."""

    id: str
    at: datetime  # UTC
    whole: bool
    rows: int
    holding: tuple[str, ...] = ()  # tables and collections with rows

    @classmethod
    def of(cls, backup: Backup, *, damaged: bool = False) -> Kept:
        """A backup as its manifest tells it. `damaged`: its files are not, so it is not whole."""
        return cls(backup.id, moment(backup.id), backup.whole and not damaged, backup.rows, backup.holding)


def decide(backups: Iterable[Kept], keep: Keep | None, now: datetime) -> dict[str, tuple[str, ...]]:
    """id -> why it stays; () for one that can go. Without any rule everything stays.

    The newest whole backup stays, and for each table and each collection the newest whole one that holds rows of it. One
    that is not whole counts for no rule and can go as soon as a newer one is whole, but not within its first hour. One of
    the future counts for no rule and stays: the clock was wrong, and nobody knows when it was made.
    """
    every = sorted(backups, key=lambda item: item.at, reverse=True)
    newest_first = [item for item in every if item.at <= now + AHEAD]
    ahead = {item.id: ("its time is in the future",) for item in every if item.at > now + AHEAD}
    if keep is None or not any(keep.model_dump().values()):
        return {item.id: ("no rule says what can go",) for item in every}
    why: dict[str, list[str]] = {item.id: [] for item in newest_first}
    whole = [item for item in newest_first if item.whole]
    for item in whole[: keep.last or 0]:
        why[item.id].append("last")
    for rule, period in _PERIODS.items():
        newest: dict[object, Kept] = {}
        for item in whole:
            newest.setdefault(period(item.at), item)
        for item in [*newest.values()][: getattr(keep, rule) or 0]:
            why[item.id].append(rule)
    if keep.within:
        since = now - timedelta(seconds=duration_seconds(keep.within))
        for item in whole:
            if item.at >= since:
                why[item.id].append("within")
    for item in whole[:1]:
        why[item.id].append("newest")
    seen = set[str]()
    for item in whole:
        new = [name for name in item.holding or (("",) if item.rows else ()) if name not in seen]
        if new:
            why[item.id].append(f"newest that holds rows of {', '.join(new)}" if seen else "newest that holds rows")
            seen.update(new, item.holding)
    for item in newest_first:
        if not item.whole and item.at > now - AT_WORK:
            why[item.id].append("less than an hour old")
        elif not item.whole and (not whole or item.at > whole[0].at):
            why[item.id].append("no newer one is whole")
    return ahead | {name: tuple(reasons) for name, reasons in why.items()}
