"""Columns that are encrypted where they stand, with another key, or back: batch by batch, each one transaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from runner import crash
from runner.executor import slices
from runner.executor.flow import Moved, retried
from runner.executor.relational.rows import Batch, RowReader, batch, ciphers, cut, limit, totals
from runner.executor.relational.working import ended, mine
from runner.executor.slices import Done, Task
from runner.ledger import Partition
from runner.plan import EncryptColumns, Place
from runner.points import KeyRange, PointId
from runner.relational import record, rows
from runner.relational.encrypting import Change, Keys, write
from runner.relational.shape import shape

if TYPE_CHECKING:
    from runner.executor import Run


def ranges(run: Run, step: EncryptColumns) -> list[KeyRange]:
    """The partition table; the step is recorded as begun before. On the way back nothing of what was never begun."""
    database, me = run.world.relational(step.connection), mine(run)
    with record.working(database, me) as connection:
        begun = record.entry(connection, me, step.name) is not None
        if step.undoes and not begun:
            return []
        if not begun:
            record.begin(connection, me, step.name, step.digest)
        elif step.undoes:  # from now on values are under both keys
            record.mark(connection, me, step.name, step.digest, "undoing", 0)
    return cut(run, step)


def keys_of(run: Run, step: EncryptColumns) -> Keys:
    """What the values are encrypted with, before and after."""
    known = ciphers(run)
    return Keys(known[step.before] if step.before else None, known[step.after] if step.after else None)


def work(run: Run, number: int, step: EncryptColumns, part: int, seconds: float) -> bool:
    """Work on one slice of one partition. True when it is done or set aside."""
    database = retried(lambda: run.world.relational(step.connection), run.limits, run.stop)
    place = Place(connection=step.connection, collection=step.table)
    me, keys = mine(run), keys_of(run, step)

    def task_of(partition: Partition, parts: int) -> Task:
        target, changed = shape(database, step.table), int((partition.notes or {}).get("changed", 0))

        def written(changes: list[Change]) -> int:
            with record.working(database, me, batch=True) as connection:
                return write(connection, target, step.key, step.columns, changes, keys)

        def act(item: Moved) -> Done:
            nonlocal changed
            assert isinstance(item, Batch)
            crash.point(step.type, "before_write")
            found = [keys.changed(step.table, step.key, step.columns, row) for row in item.page]
            if changes := [one for one in found if one is not None]:
                changed += retried(lambda: written(changes), run.limits, run.stop)
            crash.point(step.type, "after_write")
            return Done(item.read, notes={"changed": changed})

        def pages(after: PointId | None) -> Iterator[Batch]:
            size = step.batch_size if run.sample is None else min(step.batch_size, run.sample)
            for page in rows.pages(database, step.table, step.key, step.columns, None, partition.keys, after, size):
                yield batch(page[-1][step.key], len(page), page)

        return Task(step.type, str(place), RowReader(place, partition, pages, limit(run, parts)), act)

    return slices.work(run, number, part, seconds, task_of)


def finish(run: Run, number: int, step: EncryptColumns, parts: Sequence[Partition]) -> dict[str, Any]:
    """Record the step as done, or forget it on the way back. `changed`: rows that were written."""
    database, me = run.world.relational(step.connection), mine(run)
    with record.working(database, me) as connection:
        if step.undoes:
            record.forget(connection, me, step.name)
        else:
            record.done(connection, me, step.name, step.digest)
        ended(connection, run, number, me)
    return totals(parts) | {"changed": sum((part.notes or {}).get("changed", 0) for part in parts)}
