"""Copying the points of one partition: write what the reader hands over, checkpoint once it is durable."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from runner import crash
from runner.errors import LeaseLost, Permanent, Transient, VecrunError
from runner.executor.flow import Pace, Reader, checker, read_ahead, retried
from runner.plan import ClearCollection, CopyPoints
from runner.points import KeyRange, PointId
from runner.settings import Limits
from runner.store import Store

if TYPE_CHECKING:
    from runner.executor import Run

#: Points a partition aims at, and how many there are at most.
PARTITION_POINTS, MAX_PARTITIONS, SAMPLE_PLACES = 100_000, 256, 20
#: Seconds between two checkpoints of a partition, at least. What was written since the last is written again after a crash.
CHECKPOINT_SECONDS = 0.25
#: Deliveries without progress after which a partition is set aside: it probably kills its worker.
MAX_DELIVERIES = 5


def ranges(step: CopyPoints, source: Store, limits: Limits, sample: int | None) -> list[KeyRange]:
    """The partition table of a copy: enough parts for all workers, none very large; for a sample, many places."""
    if sample is not None:
        return source.cut(step.source.collection, min(SAMPLE_PLACES, sample))
    wanted = max(math.ceil(step.points / PARTITION_POINTS), 1)
    if source.capabilities().parallel and step.points > 4 * step.batch_size:
        wanted = max(wanted, limits.workers)
    return source.cut(step.source.collection, min(wanted, MAX_PARTITIONS))


def work(run: Run, number: int, step: CopyPoints, part: int, seconds: float) -> bool:
    """One slice of one partition. True when it is done or set aside."""
    partition = run.ledger.take(run.lease, number, part)
    if partition is None:
        return True
    if partition.deliveries >= MAX_DELIVERIES:
        text = f"set aside after {partition.deliveries} deliveries without progress" + (
            f": {partition.error}" if partition.error else ""
        )
        run.ledger.fail_partition(run.lease, number, part, text, "failed")
        run.ledger.write_log(run.run, "error", f"partition {part} of step {number}: {text}")
        return True
    try:
        return _copy(run, number, step, part, seconds)
    except LeaseLost:
        raise
    except Transient as exc:
        run.ledger.fail_partition(run.lease, number, part, str(exc), "failed")
        run.ledger.write_log(run.run, "error", f"partition {part} of step {number} gave up: {exc}")
        return True
    except VecrunError as exc:
        run.ledger.fail_partition(run.lease, number, part, str(exc), "failed")
        raise


def _copy(run: Run, number: int, step: CopyPoints, part: int, seconds: float) -> bool:
    source, target = run.world.store(step.source.connection), run.world.store(step.target.connection)
    caps = target.capabilities()
    parts = run.ledger.partitions_of(run.run, number)
    partition = parts[part]
    limit = math.ceil(run.sample / len(parts)) if run.sample is not None else None
    check = checker(target, step.target_schema, step.accept)
    reader = Reader(source, step.source, partition, step.transform, step.batch_size, check, limit)
    pace = Pace(min(step.batch_size, caps.max_batch))
    read, done, cursor = partition.read, partition.done, partition.cursor
    mapped: list[tuple[PointId, PointId]] = []
    last_checkpoint, whole = time.monotonic(), True

    def checkpoint(status: str) -> None:
        nonlocal last_checkpoint
        crash.point(step.type, "before_checkpoint")
        run.ledger.checkpoint(
            run.lease,
            number,
            part,
            cursor=cursor,
            read=read,
            done=done,
            status=status,
            mapped=mapped,
            collection=step.source.collection,
        )
        crash.point(step.type, "after_checkpoint")
        mapped.clear()
        last_checkpoint = time.monotonic()

    try:
        for item in read_ahead(reader, run.limits, run.stop, seconds):
            if item is None:
                whole = False
                break
            crash.point(step.type, "before_write")
            if len(item.batch):
                pace.write(item.batch, lambda batch: target.upsert(step.target.collection, batch), run.limits, run.stop)
            crash.point(step.type, "after_write")
            read, done, cursor = read + item.read, done + len(item.batch), item.last
            mapped += item.mapped
            if time.monotonic() - last_checkpoint > CHECKPOINT_SECONDS:
                checkpoint("running")
    except (Transient, Permanent):
        checkpoint("running")  # what was written before the error is durable
        raise
    checkpoint("done" if whole else "running")
    return whole


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
