"""Copying the points of a partition, and deleting those of a collection."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from runner import crash
from runner.executor import slices, texts
from runner.executor.flow import Moved, Pace, Reader, checker, retried
from runner.executor.slices import Done, Task
from runner.ledger import Partition
from runner.plan import ClearCollection, CopyPoints
from runner.points import KeyRange
from runner.store import Store

if TYPE_CHECKING:
    from runner.executor import Run


def ranges(step: CopyPoints, source: Store, hands: int, sample: int | None) -> list[KeyRange]:
    """The partition table of a copy: enough parts for all workers, where more than one is faster."""
    several = source.capabilities().parallel and step.points > 4 * step.batch_size
    return slices.ranges(source, step.source, step.points, hands if several else 1, sample)


def work(run: Run, number: int, step: CopyPoints, part: int, seconds: float) -> bool:
    """Copy one slice of one partition. True when it is done or set aside."""
    source, target = run.world.store(step.source.connection), run.world.store(step.target.connection)
    pace = Pace(min(step.batch_size, target.capabilities().max_batch))
    embed = step.transform.embed

    def write(item: Moved) -> Done:
        crash.point(step.type, "before_write")
        if len(item.batch):
            pace.write(item.batch, lambda batch: target.upsert(step.target.collection, batch), run.limits, run.stop)
        crash.point(step.type, "after_write")
        retries, pace.retries = pace.retries, 0
        record = texts.recorded(run, embed, step.target, texts.of_points(item), item.failed, item.known)
        return Done(len(item.batch), mapped=item.mapped, retries=retries, record=record)

    def task_of(partition: Partition, parts: int) -> Task:
        limit = math.ceil(run.sample / parts) if run.sample is not None else None
        check = checker(target, step.target_schema, step.accept)
        prepare = texts.prepare(run, step.transform, count=True)
        reader = Reader(source, step.source, partition, prepare, step.batch_size, check, limit)
        return Task(step.type, step.source.collection, reader, write)

    return slices.work(run, number, part, seconds, task_of)


def clear(run: Run, step: ClearCollection) -> int:
    """Delete every point of a collection."""
    store, name, deleted = run.world.store(step.target.connection), step.target.collection, 0
    for keys in store.cut(name, 1):
        for batch in store.scan(name, keys, None, 1000):
            ids = batch.ids
            retried(lambda ids=ids: store.delete(name, ids), run.limits, run.stop)  # type: ignore[misc]
            deleted += len(ids)
            crash.point(step.type, "after_delete")
    return deleted
