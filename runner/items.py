"""The items of a run that works on documents, in the ledger's database: which they are, and what became of each.

They are recorded once, before the first write, and numbered; partitions of such a step are ranges of these numbers.
They are also the report of the run, and stay; only which points they had goes when it cannot be rolled back any more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from runner.lock import Lease, now
from runner.points import PointId
from runner.records import Records, again
from runner.tables import items

#: Rows of one INSERT.
CHUNK = 2_000
#: Details that name points.
NAMING = ("made", "out", "late", "shared", "swept")


@dataclass(frozen=True)
class Item:
    """A document. `status`: pending, done, unchanged, failed; `details`: counts and what the step wants to remember."""

    number: int
    id: PointId
    points: tuple[PointId, ...] = ()
    status: str = "pending"
    details: Mapping[str, Any] = field(default_factory=dict)
    time: str = ""


class Items:
    """The items of runs. Safe for use from several threads."""

    def __init__(self, records: Records) -> None:
        self.records = records
        # for `again`
        self.patience, self.stopping = records.patience, records.stopping

    def record(self, lease: Lease, found: Sequence[Item]) -> None:
        """The items of a run, instead of those it has: it is selecting."""
        rows = [
            {"run": lease.run, "number": one.number, "item": json.dumps(one.id), "points": json.dumps(one.points),
             "status": one.status, "details": json.dumps(dict(one.details)), "time": now()}
            for one in found
        ]  # fmt: skip
        with self.records.guarded(lease) as connection:  # type: ignore[attr-defined]
            connection.execute(items.delete().where(items.c.run == lease.run))
            for start in range(0, len(rows), CHUNK):
                connection.execute(items.insert(), rows[start : start + CHUNK])

    @again
    def page(self, run: str, lo: int, hi: int | None, limit: int) -> list[Item]:
        """At most `limit` items with lo <= number < hi, in order."""
        query = sa.select(items).where(items.c.run == run, items.c.number >= lo).order_by(items.c.number).limit(limit)
        if hi is not None:
            query = query.where(items.c.number < hi)
        with self.records.reading() as connection:
            return [_item(row) for row in connection.execute(query)]

    @again
    def last(self, run: str) -> int:
        """The highest number of a run's items, -1 when it has none."""
        query = sa.select(sa.func.coalesce(sa.func.max(items.c.number), -1)).where(items.c.run == run)
        with self.records.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def all(self, run: str) -> Iterator[Item]:
        """All of a run, in order."""
        last = 0
        while page := self.page(run, last, None, 5_000):
            yield from page
            last = page[-1].number + 1

    @again
    def counts(self, run: str) -> dict[str, int]:
        """status -> items."""
        query = sa.select(items.c.status, sa.func.count()).where(items.c.run == run).group_by(items.c.status)
        with self.records.reading() as connection:
            return {status: int(count) for status, count in connection.execute(query)}

    def settle(self, connection: sa.Connection, run: str, done: Sequence[Item]) -> None:
        """What became of these, in a transaction of the caller: that of the checkpoint."""
        if not done:
            return
        chosen = (items.c.run == run, items.c.number == sa.bindparam("_number"))
        update = items.update().where(*chosen).values(
            status=sa.bindparam("_status"), details=sa.bindparam("_details"), time=now()
        )  # fmt: skip
        connection.execute(
            update,
            [{"_number": one.number, "_status": one.status, "_details": json.dumps(dict(one.details))} for one in done],
        )

    def thin(self, lease: Lease, run: str) -> None:
        """Of a run that cannot be rolled back any more: forget which points the documents had and got. What became of
        each stays, as the report of the run."""
        query = sa.select(items).where(naming(run)).order_by(items.c.number).limit(CHUNK)
        chosen = (items.c.run == run, items.c.number == sa.bindparam("_number"))
        update = items.update().where(*chosen).values(points="[]", details=sa.bindparam("_details"))
        last = -1
        while True:
            with self.records.guarded(lease) as connection:  # type: ignore[attr-defined]
                rows = connection.execute(query.where(items.c.number > last)).all()
                if not rows:
                    return
                connection.execute(update, [{"_number": row.number, "_details": _thinned(row.details)} for row in rows])
                last = rows[-1].number


def naming(run: str) -> sa.ColumnElement[bool]:
    """Items of a run that still name points."""
    return (items.c.run == run) & ((items.c.points != "[]") | items.c.details.like('%"made":%'))


def _thinned(details: str) -> str:
    return json.dumps({key: value for key, value in json.loads(details).items() if key not in NAMING})


def _item(row: Any) -> Item:
    return Item(
        row.number, json.loads(row.item), tuple(json.loads(row.points)), row.status, json.loads(row.details), row.time
    )
