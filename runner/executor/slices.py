"""One slice of a partition: read ahead, do something with each batch, checkpoint, put aside what keeps failing.

The same for every step that moves or reads points; the step says what is done with a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from runner import crash
from runner.errors import LeaseLost, Transient, VecrunError
from runner.executor.flow import Batches, Moved, Stopped, read_ahead
from runner.ledger import Partition
from runner.plan import Place
from runner.points import KeyRange, PointId
from runner.records import LedgerGone
from runner.store import Store

if TYPE_CHECKING:
    from runner.executor import Run

#: Points a partition aims at, how many partitions there are at most, and at how many places a sample is taken.
PARTITION_POINTS, MAX_PARTITIONS, SAMPLE_PLACES = 100_000, 256, 20
#: Seconds between two checkpoints of a partition, at least. What was done since the last is done again after a crash.
CHECKPOINT_SECONDS = 0.25
#: Deliveries without a checkpoint after which a partition is set aside: it probably kills its worker.
MAX_DELIVERIES = 5
#: Differences recorded per checkpoint; more are only counted.
MAX_FINDINGS = 50


def ranges(source: Store, place: Place, points: int, at_least: int, sample: int | None) -> list[KeyRange]:
    """The partition table of a step: `at_least` so many parts, none very large; for a sample, a few places."""
    if sample is not None:
        return source.cut(place.collection, min(SAMPLE_PLACES, sample))
    wanted = max(math.ceil(points / PARTITION_POINTS), at_least)
    return source.cut(place.collection, min(wanted, MAX_PARTITIONS))


@dataclass(frozen=True)
class Done:
    """What became of a batch: points that are as they should be, id mapping to record, (id, what is wrong with it)."""

    points: int
    compared: int | None = None  # counted as read instead of what was read: a filter leaves some out
    mapped: Sequence[tuple[PointId, PointId]] = ()
    found: Sequence[tuple[PointId, str]] = ()
    retries: int = 0  # tries after transient errors
    notes: dict[str, Any] | None = None  # what the step keeps of the partition so far, if it keeps anything
    record: Callable[[sa.Connection], None] | None = None  # what else belongs into the checkpoint's transaction


@dataclass(frozen=True)
class Task:
    """A step's part in it. `act` returns once its work is durable; `collection` names the source in the id mapping."""

    step: str
    collection: str
    reader: Batches
    act: Callable[[Moved], Done]


def work(run: Run, number: int, part: int, seconds: float, task_of: Callable[[Partition, int], Task]) -> bool:
    """Work for at most `seconds`. True when the partition is done or set aside; `task_of(partition, parts)` begins it."""
    partition = run.ledger.take(run.lease, number, part, run.worker)
    if partition is None:
        return True
    if partition.deliveries >= MAX_DELIVERIES:
        reason = f": {partition.error}" if partition.error else ""
        text = f"set aside after {partition.deliveries} deliveries without progress{reason}"
        _set_aside(run, number, partition, text)
        return True
    parts = len(run.ledger.partitions_of(run.run, number))
    try:
        return _work(run, number, partition, seconds, task_of(partition, parts))
    except (LeaseLost, LedgerGone):
        raise
    except Transient as exc:
        if run.stop.is_set():  # it was handed back; whoever goes on tries again
            return False
        _set_aside(run, number, partition, str(exc))
        return True
    except VecrunError as exc:
        run.ledger.fail_partition(run.lease, number, partition, str(exc))
        raise


def _set_aside(run: Run, number: int, partition: Partition, text: str) -> None:
    run.ledger.fail_partition(run.lease, number, partition, text)
    run.ledger.write_log(run.run, "error", f"partition {partition.part} of step {number + 1}: {text}")


def _work(run: Run, number: int, partition: Partition, seconds: float, task: Task) -> bool:
    now = partition
    mapped: list[tuple[PointId, PointId]] = []
    found: list[tuple[PointId, str]] = []
    records: list[Callable[[sa.Connection], None]] = []
    last, whole = time.monotonic(), True

    def checkpoint(status: str) -> None:
        nonlocal last
        crash.point(task.step, "before_checkpoint")
        go_on = run.ledger.checkpoint(
            run.lease, number, replace(now, status=status), mapped=mapped, collection=task.collection,
            found=found[:MAX_FINDINGS], records=records,
        )  # fmt: skip
        crash.point(task.step, "after_checkpoint")
        mapped.clear()
        found.clear()
        records.clear()
        last = time.monotonic()
        if not go_on:
            run.stop.set()

    try:
        for item in read_ahead(task.reader, run.limits, run.stop, seconds):
            if item is None:
                whole = False
                break
            result = task.act(item)
            now = replace(
                now, cursor=item.last, read=now.read + (item.read if result.compared is None else result.compared),
                done=now.done + result.points, batches=now.batches + 1, retries=now.retries + result.retries,
                notes=now.notes if result.notes is None else result.notes,
            )  # fmt: skip
            mapped += result.mapped
            found += result.found
            if result.record is not None:
                records.append(result.record)
            if time.monotonic() - last > CHECKPOINT_SECONDS:
                checkpoint("running")
    except Stopped:
        whole = False
    except (LeaseLost, LedgerGone):
        raise
    except VecrunError as exc:  # what was done before the error is durable
        checkpoint("pending" if isinstance(exc, Transient) and run.stop.is_set() else "running")
        raise
    checkpoint("done" if whole else "pending")
    return whole
