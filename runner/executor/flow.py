"""The one loop: read ahead in a thread, hand batches over through a bounded queue, retry what is transient.

Reading and transforming of the next batches overlap with writing of this one.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import Protocol, TypeVar

from runner import crash
from runner.errors import Lossy, TooLarge, Transient
from runner.ledger import Partition
from runner.plan import Place
from runner.points import CollectionSchema, PointBatch, PointId
from runner.settings import Limits
from runner.store import Store
from runner.transform import Transform
from runner.vectors import Failure

Result = TypeVar("Result")

#: Longest pause between two tries, in seconds.
MAX_DELAY = 30.0


class Stopped(Exception):
    """What was prepared is no longer wanted: the run stops, or its slice is over."""


@dataclass(frozen=True)
class Prepared:
    """A batch as the target is to hold it. `texts`: what each vector was made from, for a transform that embeds."""

    batch: PointBatch
    mapped: list[tuple[PointId, PointId]]
    texts: list[str] | None = None
    failed: Sequence[Failure] = ()
    known: int = 0  # texts whose vectors another run has paid for


#: From source points to what the target is to hold. The event is set when nobody wants it any more: Stopped.
Prepare = Callable[[PointBatch, threading.Event], Prepared]


def plain(transform: Transform) -> Prepare:
    """A transform that needs nothing but the points."""
    return lambda batch, _stop: Prepared(*transform.apply(batch))


@dataclass(frozen=True)
class Moved(Prepared):
    """A prepared batch, with what is needed to checkpoint it."""

    last: PointId = 0  # last source id read: the cursor once the batch is durable
    read: int = 0  # source points, those left out by a filter included


def retried(
    action: Callable[[], Result], limits: Limits, stop: threading.Event, told: Callable[[], None] | None = None
) -> Result:
    """Try again after Transient errors, with doubling pauses; `told` is called each time. TooLarge is left to the
    caller, who can write less."""
    delay = limits.retry_delay
    for attempt in range(limits.retries + 1):
        try:
            return action()
        except TooLarge:
            raise
        except Transient:
            if attempt == limits.retries or stop.wait(delay):
                raise
            if told is not None:
                told()
            delay = min(delay * 2, MAX_DELAY)
    raise AssertionError("unreachable")


@dataclass(frozen=True)
class Reader:
    """Where a partition's points come from and what is done to them."""

    source: Store
    place: Place
    partition: Partition
    prepare: Prepare
    batch_size: int
    check: Callable[[PointBatch], None]
    limit: int | None = None  # at most so many source points in all

    def batches(self, limits: Limits, stop: threading.Event) -> Iterator[Moved]:
        """Batches after the partition's cursor; a transient error starts the scan again after the last one read."""
        last, read = self.partition.cursor, self.partition.read
        failures = 0
        while not stop.is_set():
            try:
                size = self.batch_size if self.limit is None else min(self.batch_size, max(self.limit - read, 1))
                for batch in self.source.scan(self.place.collection, self.partition.keys, last, size):
                    if self.limit is not None and read >= self.limit:
                        return
                    if len(batch):
                        made = self.prepare(batch, stop)
                        self.check(made.batch)  # it may ask the target: when that fails, this batch is read again
                        last, read, failures = batch.ids[-1], read + len(batch), 0
                        crash.point("read", "after_read")
                        yield Moved(made.batch, made.mapped, made.texts, made.failed, made.known, last, len(batch))
                    if stop.is_set():
                        return
                return
            except Stopped:
                return
            except Transient:
                failures += 1
                if failures > limits.retries or stop.wait(min(limits.retry_delay * 2 ** (failures - 1), MAX_DELAY)):
                    raise


class Batches(Protocol):
    """Where the batches of a partition come from."""

    @property
    def place(self) -> Place: ...

    @property
    def partition(self) -> Partition: ...

    def batches(self, limits: Limits, stop: threading.Event) -> Iterator[Moved]: ...


def read_ahead(reader: Batches, limits: Limits, stop: threading.Event, seconds: float) -> Iterator[Moved | None]:
    """`reader.batches` from a thread, through a bounded queue. Yields None and ends when `seconds` are over or on stop."""
    handed: queue.Queue[Moved | BaseException | None] = queue.Queue(limits.batches_in_flight)
    done = threading.Event()

    def put(item: Moved | BaseException | None) -> None:
        while not done.is_set():
            with suppress(queue.Full):
                handed.put(item, timeout=0.2)
                return

    def run() -> None:
        try:
            for item in reader.batches(limits, done):
                put(item)
                if done.is_set():
                    return
            put(None)
        except BaseException as exc:  # handed to the writer, which raises it
            put(exc)

    # in our context: what a client warns of there belongs to this run
    thread = threading.Thread(
        target=copy_context().run,
        args=(run,),
        name=f"read-{reader.place.collection}-{reader.partition.part}",
        daemon=True,
    )
    deadline = time.monotonic() + seconds
    thread.start()
    try:
        while True:
            if stop.is_set() or time.monotonic() > deadline:
                yield None
                return
            try:
                item = handed.get(timeout=0.2)
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        done.set()
        thread.join(timeout=60)


class Pace:
    """How many points one write may carry: halves when the store says 'too large', grows back when it does not."""

    def __init__(self, most: int) -> None:
        self.most, self.size, self._calm = max(1, most), max(1, most), 0
        self.retries = 0  # after transient errors

    def _told(self) -> None:
        self.retries += 1

    def write(
        self, batch: PointBatch, upsert: Callable[[PointBatch], None], limits: Limits, stop: threading.Event
    ) -> None:
        """Write a batch in slices of the present size."""
        start, delay = 0, limits.retry_delay
        while start < len(batch):
            size = self.size
            part = batch if size >= len(batch) else batch.slice(start, min(start + size, len(batch)))
            try:
                retried(lambda part=part: upsert(part), limits, stop, self._told)  # type: ignore[misc]
            except TooLarge:
                if size > 1:
                    self.size, self._calm = max(1, min(size, len(part)) // 2), 0
                elif delay > MAX_DELAY:
                    raise
                else:
                    delay *= 2  # one point is too much: it is the pace that is asked for
                if stop.wait(min(delay, MAX_DELAY)):
                    raise
                continue
            start, delay = start + len(part), limits.retry_delay
            self._calm += 1
            if self._calm >= 8 and self.size < self.most:
                self.size, self._calm = min(self.most, self.size * 2), 0


def checker(target: Store, schema: CollectionSchema, accept: tuple[str, ...]) -> Callable[[PointBatch], None]:
    """A function that raises Lossy when a batch holds something the target cannot, unless the spec accepts it."""

    def check(batch: PointBatch) -> None:
        for item in target.problems(schema, batch):
            if item.code.startswith("VI") or (item.acceptable and item.code in accept):
                continue
            ids = ", ".join(repr(one) for one in item.ids)
            hint = f"Mend the points in the source, leave them out with where:, or accept {item.code} with a reason"
            if not item.acceptable:
                hint = "Mend the points in the source, or leave them out with where:"
            raise Lossy(
                "A point cannot be held by the target",
                f"{schema.name}: {item.field}: {item.message} [{item.code}], {item.count or 1} in this batch: {ids}",
                hint,
            )

    return check
