"""The collections of backups as a store that can be read: the source of a restore, and of its verification.

A collection is called ID/name. Its files are sorted by id, so it is read as the files store reads its parts.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from runner.backups import manifest, points
from runner.backups.manifest import Backup, CollectionFiles, PointFile
from runner.errors import NotFound, Permanent, VecrunError
from runner.objects.storage import Objects
from runner.points import CollectionSchema, Float32Matrix, KeyRange, Payloads, PointBatch, PointId, empty_batch
from runner.store import Capabilities, ConnectionConfig, Health, Hit, Store
from runner.stores.files.parts import Opener, Part, find, merged
from runner.stores.files.store import FilesStore
from runner.stores.files.tables import key_of, to_batch


class BackupStore(Store):
    """Reads the whole backups of collections in one folder of a storage, which stays open when this is closed."""

    type = "backup"

    def __init__(self, objects: Objects, folder: str) -> None:
        self.objects, self.folder = objects, folder
        self._known: dict[str, Backup] = {}
        self._guard = threading.Lock()

    def __repr__(self) -> str:
        return f"BackupStore({self.folder!r})"

    @classmethod
    def connect(cls, config: ConnectionConfig) -> Store:  # noqa: ARG003
        raise TypeError("it is opened over an open storage")

    def capabilities(self) -> Capabilities:
        return replace(FilesStore(Path()).capabilities(), aliases=False)

    def health(self) -> Health:
        began = time.perf_counter()
        there = len(manifest.ids(self.objects, self.folder))
        latency = (time.perf_counter() - began) * 1000
        return Health(f"format {manifest.FORMAT_VERSION}, {there} backups", latency, ("read",))

    # Reading

    def collections(self) -> list[str]:
        """Those of all whole backups; one whose manifest cannot be read is left out here, and told when it is asked for."""
        found: list[str] = []
        for backup in manifest.ids(self.objects, self.folder):
            try:
                found += [f"{backup}/{item.name}" for item in self._backup(backup).collections]
            except VecrunError:
                continue
        return sorted(found)

    def inspect(self, name: str) -> CollectionSchema | None:
        found = self._find(name)
        return None if found is None else found.collection.model_copy(update={"name": name})

    def count(self, name: str) -> int:
        found = self._find(name)
        return 0 if found is None else found.rows

    def size_bytes(self, name: str) -> int | None:
        found = self._find(name)
        return None if found is None else sum(file.bytes for file in found.files)

    def cut(self, name: str, parts: int) -> list[KeyRange]:
        """Ranges of files: `partition` is FIRST-LAST, their numbers in the order of ids. Where the ranges of ids of files
        overlap (the source sorts in another way), each is a range of its own, so that few are open at once."""
        found = self._find(name)
        files = [] if found is None else _in_order(found)
        if not files:
            return [KeyRange()]
        apart = all(key_of(one.last) < key_of(two.first) for one, two in itertools.pairwise(files))
        count = min(max(parts, 1), len(files)) if apart else len(files)
        edges = [len(files) * part // count for part in range(count + 1)]
        return [KeyRange(partition=f"{low}-{high - 1}") for low, high in itertools.pairwise(edges)]

    def scan(
        self, name: str, keys: KeyRange, after: PointId | None = None, batch_size: int = 1000
    ) -> Iterator[PointBatch]:
        """In the order of integers, then texts. Each file is fetched once, compared with its checksum, and read by row
        groups. DamagedBackup."""
        found = self._find(name)
        if found is None:
            return
        parts = [_part(file) for file in _within(_in_order(found), keys.partition)]
        with closing(merged(parts, self._opener(found), keys._replace(partition=None), after)) as tables:
            for table in tables:
                for start in range(0, table.num_rows, batch_size):
                    yield to_batch(found.collection, table.slice(start, batch_size))

    def fetch(self, name: str, ids: Sequence[PointId]) -> PointBatch:
        import pyarrow as pa

        found = self._find(name)
        if found is None or not ids:
            return PointBatch([], {}, Payloads([]))
        parts = [_part(file) for file in found.files]
        tables = [table for table in find(parts, self._opener(found), ids) if table.num_rows]
        return to_batch(found.collection, pa.concat_tables(tables)) if tables else empty_batch(found.collection)

    def search(self, name: str, vector: str, queries: Float32Matrix, limit: int) -> list[list[Hit]]:  # noqa: ARG002
        raise Permanent("A backup cannot be searched", f"{self.folder}/{name}", "Restore it into a store")

    def aliases(self) -> dict[str, str]:
        """None: those of the time are in the manifest."""
        return {}

    # Refusing to write

    def create(self, schema: CollectionSchema) -> None:
        self._refuse(f"create {schema.name}")

    def finish(self, schema: CollectionSchema) -> None:
        self._refuse(f"finish {schema.name}")

    def drop(self, name: str) -> None:
        self._refuse(f"drop {name}")

    def upsert(self, name: str, batch: PointBatch) -> None:
        self._refuse(f"upsert {len(batch):,} points into {name}")

    def delete(self, name: str, ids: Sequence[PointId]) -> None:
        self._refuse(f"delete {len(ids):,} points of {name}")

    def set_alias(self, alias: str, name: str | None) -> None:
        self._refuse(f"set alias {alias} to {name or 'nothing'}")

    def close(self) -> None:
        with self._guard:
            self._known.clear()

    def _refuse(self, what: str) -> NoReturn:
        raise Permanent("A backup is only read", f"{self.folder}: {what}", "A job of kind VectorBackup makes one")

    # Files

    def _backup(self, backup: str) -> Backup:
        """Its manifest, which never changes. NotFound; DamagedBackup."""
        with self._guard:
            if backup not in self._known:
                self._known[backup] = manifest.read(self.objects, self.folder, backup)
            return self._known[backup]

    def _find(self, name: str) -> CollectionFiles | None:
        backup, _slash, collection = name.partition("/")
        if not manifest.ID.fullmatch(backup):
            return None
        try:
            found = self._backup(backup)
        except NotFound:
            return None
        return next((item for item in found.collections if item.name == collection), None)

    def _opener(self, collection: CollectionFiles) -> Opener:
        files = {file.file: file for file in collection.files}
        return lambda part: points.opened(self.objects, self.folder, files[part.file])


def _in_order(collection: CollectionFiles) -> list[PointFile]:
    """The files in the order of ids."""
    return sorted(collection.files, key=lambda file: key_of(file.first))


def _part(file: PointFile) -> Part:
    return Part(
        file=file.file, run="", level=0, rows=file.rows, deletes=0, bytes=file.bytes, sha256=file.sha256,
        first=file.first, last=file.last,
    )  # fmt: skip


def _within(files: list[PointFile], partition: str | None) -> list[PointFile]:
    """The files of a range of `cut`; all without one."""
    if partition is None:
        return files
    low, _dash, high = partition.partition("-")
    return files[int(low) : int(high) + 1]
