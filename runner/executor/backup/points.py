"""Points of a collection into Parquet files, one partition at a time; one file is what the loop calls a batch.

Files are built in the thread that reads ahead, and handed to the storage by the worker. Their boundaries are those of the
previous backup, so that a file whose points are as they were has the name that it had, and is not written again.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from typing import TYPE_CHECKING, Any, BinaryIO

from runner import crash
from runner.backups import manifest, points
from runner.backups.manifest import CollectionFiles, DamagedBackup, PointFile
from runner.errors import NotFound
from runner.executor import slices
from runner.executor.flow import Moved, Reader, Stopped, plain, retried
from runner.executor.slices import Done, Task
from runner.ledger import Partition
from runner.plan import BackUpPoints, Place
from runner.points import CollectionSchema, KeyRange, Payloads, PointBatch, PointId
from runner.settings import Limits
from runner.store import Store
from runner.stores.files.tables import to_table
from runner.transform import Transform

if TYPE_CHECKING:
    from runner.executor import Run
    from runner.objects.storage import Objects

#: Of the size of a file, what a partition of a first backup aims at: it should not end in a second, tiny one.
AIM = 0.75
#: A collection that has grown so much since the previous backup is cut anew.
GROWN = 4
#: Points from which the size of one is estimated.
PROBE = 200


def ranges(run: Run, step: BackUpPoints) -> list[KeyRange]:
    """The partition table: neighbouring files of the previous backup, or parts of about one file each."""
    source, name = run.world.store(step.source.connection), step.source.collection
    if run.sample is not None:
        return source.cut(name, min(slices.SAMPLE_PLACES, run.sample))
    objects = run.world.objects(step.into.connection)
    retried(lambda: manifest.may_write(objects, step.into.folder, run.run), run.limits, run.stop)
    collection = _inspected(source, step.source)
    wanted = math.ceil(step.points * _bytes_of_one(source, collection) / (AIM * step.file_bytes))
    if source.capabilities().parallel and step.points > 4 * step.batch_size:
        wanted = max(wanted, run.hands)
    wanted = max(1, min(wanted, slices.MAX_PARTITIONS))
    before = previous(run, step, source, collection)
    if before is None or len(before.files) * GROWN < wanted:
        return source.cut(name, wanted)
    most = math.ceil(len(before.files) / slices.MAX_PARTITIONS)
    found, missing = list[KeyRange](), False
    for place in dict.fromkeys(keys.partition for keys in source.cut(name, 1)):
        files = _chain(before, place)
        missing = missing or not files
        found += [
            KeyRange(some[0].lo, some[-1].hi, place)
            for some in (files[start : start + most] for start in range(0, len(files), most))
        ]
    if missing:
        known = {keys.partition for keys in found}
        found += [keys for keys in source.cut(name, wanted) if keys.partition not in known]
    return found


def work(run: Run, number: int, step: BackUpPoints, part: int, seconds: float) -> bool:
    """Work on one slice of one partition. True when it is done or set aside.

    A slice ends behind a file, when `seconds` are over. A file that takes longer than one and a half times as long is closed
    early: what was read must not be lost, however slow the store is.
    """
    source = retried(lambda: run.world.store(step.source.connection), run.limits, run.stop)
    objects = retried(lambda: run.world.objects(step.into.connection), run.limits, run.stop)
    collection = retried(lambda: _inspected(source, step.source), run.limits, run.stop)
    before = retried(lambda: previous(run, step, source, collection), run.limits, run.stop)
    open_files: list[BinaryIO] = []

    def task_of(partition: Partition, parts: int) -> Task:
        limit = math.ceil(run.sample / parts) if run.sample is not None else None
        reader = FileReader(run, step, source, objects, collection, before, partition, seconds, limit, open_files)
        notes: dict[str, Any] = dict(partition.notes or {})

        def act(item: Moved) -> Done:
            assert isinstance(item, Built)
            crash.point(step.type, "before_write")
            file, new, retries = _kept(run, step, objects, collection, item)
            crash.point(step.type, "after_write")
            notes["files"] = [*notes.get("files", ()), file.model_dump(mode="json")]
            notes["next"] = item.goes_on
            notes["written"] = notes.get("written", 0) + new
            notes["written_bytes"] = notes.get("written_bytes", 0) + (file.bytes if new else 0)
            return Done(file.rows, notes=dict(notes), retries=retries)

        return Task(step.type, step.source.collection, reader, act)

    try:
        return slices.work(run, number, part, 2 * seconds, task_of)
    finally:
        for file in open_files:
            file.close()


def finish(parts: Sequence[Partition]) -> dict[str, Any]:
    """What was written. `bytes`: of all files; `kept`: files that were there, and were not written again."""
    result: dict[str, Any] = {
        key: sum(getattr(part, key) for part in parts) for key in ("read", "done", "batches", "retries")
    }
    files = files_of(parts)
    notes = [part.notes or {} for part in parts]
    new = {key: sum(one.get(key, 0) for one in notes) for key in ("written", "written_bytes")}
    return result | new | {
        "files": len(files), "kept": len(files) - new["written"], "bytes": sum(file.bytes for file in files),
    }  # fmt: skip


def files_of(parts: Sequence[Partition]) -> list[PointFile]:
    """The files that are recorded for a step, in the order of its partitions."""
    return [PointFile.model_validate(item) for part in parts for item in (part.notes or {}).get("files", ())]


def previous(run: Run, step: BackUpPoints, source: Store, collection: CollectionSchema) -> CollectionFiles | None:
    """The same collection in the backup that the step goes on from. None when that is gone or damaged: all is written."""
    if not step.previous:
        return None
    objects = run.world.objects(step.into.connection)
    try:
        backup = manifest.read(objects, step.into.folder, step.previous)
    except (NotFound, DamagedBackup):
        return None
    for item in backup.collections:
        if (item.connection, item.name) == (step.source.connection, step.source.collection):
            return item if (item.store, item.collection.id_kind) == (source.type, collection.id_kind) else None
    return None


@dataclass(frozen=True)
class Built(Moved):
    """A file as it is to be. `data` is None when the previous backup has it. `goes_on`: the bounds of what is to be read
    next of the partition; None when that was all."""

    file: PointFile | None = None
    data: BinaryIO | None = None
    goes_on: tuple[PointId | None, PointId | None] | None = None


@dataclass(frozen=True)
class FileReader:
    """Where the files of a partition come from. `open_files` holds those that nobody has closed yet."""

    run: Run
    step: BackUpPoints
    source: Store
    objects: Objects
    collection: CollectionSchema
    before: CollectionFiles | None
    partition: Partition
    seconds: float
    limit: int | None
    open_files: list[BinaryIO] = field(default_factory=list)

    @property
    def place(self) -> Place:
        """The collection that is read."""
        return self.step.source

    def batches(self, limits: Limits, stop: threading.Event) -> Iterator[Moved]:
        """Files that come after those in the partition's notes. Raises Stopped when the slice is over."""
        began, read = time.monotonic(), self.partition.read
        known = {item.file: item for item in self.before.files} if self.before is not None else {}
        todo = self._todo()
        while todo:
            keys = todo.pop(0)
            low, rows, opened = keys.lo, points.Rows(self.collection), time.monotonic()
            pages = self._reader(keys, read).batches(limits, stop)
            last: PointId | None = None
            for page in pages:
                batch = page.batch
                now = time.monotonic()
                late = now - began > 1.5 * self.seconds
                if rows.count and (late or rows.bytes >= self.step.file_bytes):
                    # the first id of this page is where the next file begins
                    edge = batch.ids[0]
                    assert last is not None
                    yield self._built(
                        rows, known, KeyRange(low, edge, keys.partition), last, (edge, keys.hi), limits, stop
                    )
                    if time.monotonic() + (now - opened) - began > self.seconds:
                        raise Stopped
                    low, rows, opened = edge, points.Rows(self.collection), time.monotonic()
                rows.add(batch)
                last, read = batch.ids[-1], read + len(batch)
            if stop.is_set():
                return
            if rows.count:
                assert last is not None
                goes_on = (todo[0].lo, todo[0].hi) if todo else None
                yield self._built(rows, known, KeyRange(low, keys.hi, keys.partition), last, goes_on, limits, stop)
                if todo and time.monotonic() + (time.monotonic() - opened) - began > self.seconds:
                    raise Stopped
        return

    def _todo(self) -> list[KeyRange]:
        """The ranges that are still to be read, each the range of one file of the previous backup."""
        keys = self.partition.keys
        cuts = _within(_chain(self.before, keys.partition), keys) if self.before is not None else []
        all_of_it = cuts or [keys]
        notes = self.partition.notes or {}
        if "next" not in notes:
            return all_of_it
        if notes["next"] is None:
            return []
        low, high = notes["next"]
        first = KeyRange(low, high, keys.partition)
        if high == keys.hi:
            return [first]
        at = next((number for number, one in enumerate(all_of_it) if one.lo == high), None)
        return [first, *(all_of_it[at:] if at is not None else [KeyRange(high, keys.hi, keys.partition)])]

    def _reader(self, keys: KeyRange, read: int) -> Reader:
        partition = replaced(self.partition, keys=keys, cursor=None, read=read)
        check = points.refuse_unfit(self.collection)
        return Reader(
            self.source, self.step.source, partition, plain(Transform()), self.step.batch_size, check, self.limit
        )

    def _built(
        self, rows: points.Rows, known: Mapping[str, PointFile], keys: KeyRange, last: PointId,
        goes_on: tuple[PointId | None, PointId | None] | None, limits: Limits, stop: threading.Event,
    ) -> Built:  # fmt: skip
        read, table = rows.count, rows.sorted()
        content = points.content_of(self.collection, table)
        nothing = PointBatch([], {}, Payloads([]))
        file = known.get(points.file_name(content))
        if file is not None:
            key = self.step.into.key(file.file)
            head = retried(lambda: self.objects.head(key), limits, stop)
            if head is not None and head.size == file.bytes:
                same = file.model_copy(update={"keys": keys})
                return Built(nothing, [], last=last, read=read, file=same, goes_on=goes_on)
        data = points.written(table, self.step.compression)
        self.open_files.append(data)
        made = points.described(table, data, content, keys)
        return Built(nothing, [], last=last, read=read, file=made, data=data, goes_on=goes_on)


def _kept(
    run: Run, step: BackUpPoints, objects: Objects, collection: CollectionSchema, item: Built
) -> tuple[PointFile, bool, int]:
    """The file as it lies in the storage, whether it was written now, and how often it had to be tried again."""
    assert item.file is not None
    file, data, tries = item.file, item.data, 0
    if data is None:
        return file, False, 0

    def told() -> None:
        nonlocal tries
        tries += 1

    folder, key, there = step.into.folder, step.into.key(file.file), None
    if not run.dry and retried(lambda: objects.head(key), run.limits, run.stop, told) is not None:
        # of another backup, or of a try that was killed. It stays byte for byte: another manifest has its checksum
        there = retried(lambda: points.as_it_is(objects, folder, file, collection), run.limits, run.stop, told)
    if there is None:
        retried(lambda: objects.write_from(key, points.pieces(data)), run.limits, run.stop, told)
    data.close()
    return there or file, there is None, tries


def _inspected(source: Store, place: Place) -> CollectionSchema:
    collection = source.inspect(place.collection)
    if collection is None:
        raise NotFound("No such collection", str(place), "It was there when the plan was made. Plan again")
    return collection


def _bytes_of_one(source: Store, collection: CollectionSchema) -> int:
    """What a point takes in memory, from the first few."""
    for batch in source.scan(collection.name, KeyRange(), None, PROBE):
        if len(batch):
            points.refuse_unfit(collection)(batch)
            return max(1, int(to_table(collection, batch).nbytes) // len(batch))
    return 1


def _chain(before: CollectionFiles, partition: str | None) -> list[KeyRange]:
    """The ranges of the files of one partition of the source; empty unless they cover it without a gap."""
    found = [item.keys for item in before.files if item.keys.partition == partition]
    whole = bool(found) and found[0].lo is None and found[-1].hi is None
    joined = all(one.hi == two.lo and one.hi is not None for one, two in itertools.pairwise(found))
    return found if whole and joined else []


def _within(chain: Sequence[KeyRange], keys: KeyRange) -> list[KeyRange]:
    """The ranges of `chain` that make up `keys`; empty when they do not."""
    start = next((number for number, one in enumerate(chain) if one.lo == keys.lo), None)
    if start is None:
        return []
    stop = next((number for number, one in enumerate(chain) if number >= start and one.hi == keys.hi), None)
    return [] if stop is None else list(chain[start : stop + 1])
