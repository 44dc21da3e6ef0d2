"""A backup of collections is read back from the storage, and gets its manifest.

Nothing counts that was only written: every file, also one of an earlier backup, is fetched and compared before it is named.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

import runner
from runner import crash
from runner.backups import log, manifest, points
from runner.backups.manifest import Backup, CollectionFiles, DamagedBackup, PointFile
from runner.errors import NotFound, Permanent
from runner.executor.backup.points import files_of
from runner.executor.flow import Stopped, retried
from runner.ledger import Partition
from runner.lock import now
from runner.plan import BackUpPoints, Place, SealBackup
from runner.points import KeyRange, PointId, json_dumps
from runner.stores.files.tables import key_of

if TYPE_CHECKING:
    from runner.executor import Run
    from runner.objects.storage import Objects

#: Files that are read back at once.
AT_ONCE = 4
#: Bytes that stand for an id where ids of several files are compared, and how many of them are sorted at once.
MARK, MARKS_AT_ONCE = 16, 4_000_000


def seal(run: Run, step: SealBackup) -> dict[str, Any]:
    """Compare every file with what was read from the store, then write the manifest. DamagedBackup names all that is not
    as it should be."""
    if run.dry:
        return {}
    objects, folder = run.world.objects(step.into.connection), step.into.folder
    backup = retried(lambda: manifest.of_run(objects, folder, run.run), run.limits, run.stop)
    collections = backup.collections if backup is not None else ()
    if backup is None:
        collections = tuple(_collection(run, place, _parts(run, step, place)) for place in step.sources)
    for item in collections:
        _read_back(run, objects, folder, item)
    if backup is None:
        crash.point(step.type, "checked")
        row = run.ledger.run(run.run)
        backup_id = retried(lambda: manifest.reserve(objects, folder, run.run), run.limits, run.stop)
        stores = {place.connection: run.world.store(place.connection) for place in step.sources}
        found = Backup(
            tool_version=runner.__version__, id=backup_id, job=run.plan.job, run=run.run,
            environment=run.plan.environment, lineage=run.plan.lineage, form="collections", began=row["started"] or row["created"], finished=now(),
            source=", ".join(f"{name}: {store.type} {store.health().version}" for name, store in stores.items()),
            previous=step.previous, collections=collections,
        )  # fmt: skip
        backup = retried(lambda: manifest.write(objects, folder, found), run.limits, run.stop)
        crash.point(step.type, "sealed")
    made = backup
    retried(lambda: log.backup(objects, folder, made), run.limits, run.stop)
    return _result(run, step, backup)


def _parts(run: Run, step: SealBackup, place: Place) -> list[Partition]:
    """What is recorded of the collection that was read from `place`."""
    return [
        part
        for number, one in enumerate(run.plan.steps)
        if isinstance(one, BackUpPoints) and (one.source, one.into) == (place, step.into)
        for part in run.ledger.partitions_of(run.run, number)
    ]


def _collection(run: Run, place: Place, parts: Sequence[Partition]) -> CollectionFiles:
    store = run.world.store(place.connection)
    collection = retried(lambda: store.inspect(place.collection), run.limits, run.stop)
    if collection is None:
        raise NotFound("The collection is gone", f"{place} was deleted while it was read", "Back up again without it")
    aliases = retried(store.aliases, run.limits, run.stop)
    files = without_gaps(files_of(parts))
    return CollectionFiles(
        connection=place.connection, store=store.type, collection=collection, files=tuple(files),
        aliases=tuple(sorted(alias for alias, name in aliases.items() if name == place.collection)),
        rows=sum(file.rows for file in files),
    )  # fmt: skip


def without_gaps(files: Sequence[PointFile]) -> list[PointFile]:
    """The same files, their ranges stretched over those that held no points: the next backup is cut by them."""
    found: list[PointFile] = []
    for partition in dict.fromkeys(file.keys.partition for file in files):
        some = [file for file in files if file.keys.partition == partition]
        lows: list[PointId | None] = [None, *(file.keys.lo for file in some[1:])]
        for file, (low, high) in zip(some, itertools.pairwise([*lows, None]), strict=True):
            found.append(file.model_copy(update={"keys": KeyRange(low, high, partition)}))
    return found


def _read_back(run: Run, objects: Objects, folder: str, item: CollectionFiles) -> None:
    """All files of a collection, several at once. DamagedBackup with everything that was found; Permanent when an id is in
    two of them."""
    marks = Marks() if _overlap(item.files) else None

    def look(file: PointFile) -> str:
        if run.stop.is_set():
            raise Stopped
        found: list[bytes] = []

        def read() -> None:
            found.clear()
            each = None if marks is None else lambda ids: found.extend(map(mark_of, ids))
            points.read_back(objects, folder, file, item.collection, each)

        try:
            retried(read, run.limits, run.stop)
        except DamagedBackup as exc:
            return exc.detail
        if marks is not None:
            marks.add(found)
        return ""

    with ExitStack() as stack:
        if marks is not None:
            stack.callback(marks.close)
        pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE, thread_name_prefix="read-back"))
        problems = [found for found in pool.map(look, item.files) if found]
        if problems:
            raise DamagedBackup(
                "What lies in the storage is not what was read",
                "\n".join(problems),
                "Look at the storage. A backup with incremental: false writes a damaged file of an earlier backup anew",
            )
        if marks is not None and (twice := marks.twice()):
            ids = _with_marks(objects, folder, item, twice)
            raise Permanent(
                "Two points have one id",
                f"{item.connection}/{item.name}: {len(twice):,} ids, such as {ids[0]!r}",
                "They are in two partitions, or one was moved while it was read. Delete one, or back up again",
            )


def _overlap(files: Sequence[PointFile]) -> bool:
    """Whether an id could be in two of the files, by the first and the last id of each."""
    spans = sorted((key_of(file.first), key_of(file.last)) for file in files)
    return any(one[1] >= two[0] for one, two in itertools.pairwise(spans))


def mark_of(point_id: PointId) -> bytes:
    """16 bytes that stand for an id."""
    return hashlib.blake2b(json_dumps(point_id), digest_size=MARK).digest()


class Marks:
    """The marks of all ids of a collection, in an anonymous file."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        self._guard, self._count = threading.Lock(), 0

    def add(self, marks: Sequence[bytes]) -> None:
        """Those of one file."""
        with self._guard:
            self._file.write(b"".join(marks))
            self._count += len(marks)

    def twice(self) -> set[bytes]:
        """Marks that came more than once. Looked for in shares, so that memory stays flat."""
        if not self._count:
            return set()
        self._file.flush()
        every = np.memmap(self._file, np.uint64, "r", shape=(self._count, MARK // 8))
        shares = 1 + self._count // MARKS_AT_ONCE
        found: set[bytes] = set()
        for share in range(shares):
            some = np.ascontiguousarray(every[every[:, 0] % np.uint64(shares) == share])
            some = some[np.lexsort((some[:, 1], some[:, 0]))]
            same = (some[1:] == some[:-1]).all(axis=1)
            found.update(row.tobytes() for row in some[1:][same])
        return found

    def close(self) -> None:
        """Nothing is left."""
        self._file.close()


def _with_marks(objects: Objects, folder: str, item: CollectionFiles, marks: set[bytes]) -> list[PointId]:
    """Ids with these marks, of the first file that has some."""
    found: list[PointId] = []
    for file in item.files:
        points.read_back(
            objects,
            folder,
            file,
            item.collection,
            lambda ids: found.extend(one for one in ids if mark_of(one) in marks),
        )
        if found:
            break
    return found


def _result(run: Run, step: SealBackup, backup: Backup) -> dict[str, Any]:
    """What is in the backup. `moved`: points that came or went while it was read; a store has no snapshot of them."""
    made: list[dict[str, Any]] = []
    for item in backup.collections:
        place = Place(connection=item.connection, collection=item.name)
        parts = _parts(run, step, place)
        new = {key: sum((part.notes or {}).get(key, 0) for part in parts) for key in ("written", "written_bytes")}
        size = sum(file.bytes for file in item.files)
        one = {
            "collection": str(place),
            "rows": item.rows,
            "files": len(item.files),
            "kept": len(item.files) - new["written"],
        }
        made.append(one | new | {"bytes": size})
        store = run.world.store(item.connection)
        if moved := retried(lambda s=store, n=item.name: s.count(n), run.limits, run.stop) - item.rows:  # type: ignore[misc]
            made[-1]["moved"] = moved
            text = f"{place} was written to while it was read: {item.rows:,} points are in the backup, {moved:+,} are there now"
            run.say(text)
            run.ledger.write_log(run.run, "warning", text)
    return {
        "backup": backup.id, "files": len(backup.files), "rows": backup.rows, "bytes": sum(backup.files.values()),
        "collections": made,
    }  # fmt: skip
