"""The contract of a store, kept by a folder of Parquet files: what is read, and how writes pile up and are merged."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, cast

from runner.conditions import Condition
from runner.errors import Permanent
from runner.points import (
    CollectionSchema,
    Datatype,
    Distance,
    Float32Matrix,
    IdKind,
    KeyRange,
    Payloads,
    PointBatch,
    PointId,
    empty_batch,
    json_dumps,
)
from runner.store import PAYLOAD_FIELD, PRECISION, Capabilities, ConnectionConfig, Health, Hit, Problem, Store
from runner.stores.files.catalog import Catalog
from runner.stores.files.conditions import Filter, compiled
from runner.stores.files.disk import translated
from runner.stores.files.manifest import FORMAT_VERSION, FilesConfig, Manifest
from runner.stores.files.parts import (
    Opener,
    Part,
    PartWriter,
    checked_opener,
    crowd,
    find,
    is_compact,
    is_tidy,
    merged,
    where,
)
from runner.stores.files.search import search
from runner.stores.files.tables import DELETED, KEYS, id_at, newest, to_batch, to_table, tombstones, widened

if TYPE_CHECKING:
    import pyarrow as pa


class FilesStore(Store):
    """Collections as folders of Parquet files under one path."""

    type = "files"

    def __init__(self, root: Path) -> None:
        self.root = root
        self._catalog = Catalog(root)
        self._counts: dict[str, tuple[Manifest, int]] = {}
        self._intact: set[str] = set()
        self._merging: set[str] = set()
        self._guard = Lock()

    def __repr__(self) -> str:
        return f"FilesStore({str(self.root)!r})"

    @classmethod
    def connect(cls, config: ConnectionConfig) -> Store:
        import pyarrow.parquet  # noqa: F401  # so that a missing package is told here

        root = Path(cast("FilesConfig", config).path).expanduser().absolute()
        if root.exists() and not root.is_dir():
            raise Permanent("The path is no folder", str(root), "Give the folder that holds the collections.")
        return cls(root)

    def capabilities(self) -> Capabilities:
        return Capabilities(
            id_kinds=frozenset(IdKind),
            distances=frozenset(Distance),
            default_vector_name="",
            id_int_range=(-(2**63), 2**64 - 1),
            datatypes=frozenset(Datatype),
            max_dimension=65_536,
            max_vectors=1000,
            sparse=True,
            missing_vectors=True,
            aliases=True,
            partitions=True,
            partition_key=True,
            max_batch=50_000,
        )

    def health(self) -> Health:
        import pyarrow as pa

        started = time.perf_counter()
        self.collections()
        place = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        rights = tuple(word for word, mode in (("read", os.R_OK), ("write", os.W_OK)) if os.access(place, mode))
        latency = (time.perf_counter() - started) * 1000
        return Health(f"format {FORMAT_VERSION}, pyarrow {pa.__version__}", latency, rights)

    # Reading

    def collections(self) -> list[str]:
        return self._catalog.names()

    def inspect(self, name: str) -> CollectionSchema | None:
        manifest = self._catalog.find(name)
        return manifest.collection if manifest else None

    def count(self, name: str) -> int:
        """Exact. Parts that overlap or hold deletes are counted by merging their ids, once for each state."""

        def total(manifest: Manifest) -> int:
            if is_tidy(manifest.parts):
                return sum(part.rows for part in manifest.parts)
            known = self._counts.get(name)
            if known is None or known[0] is not manifest:
                known = self._counts[name] = manifest, sum(table.num_rows for table in self._ids(name, manifest))
            return known[1]

        return self._catalog.reading(name, total, 0)

    def size_bytes(self, name: str) -> int | None:
        manifest = self._catalog.find(name)
        return None if manifest is None else sum(part.bytes for part in manifest.parts)

    def cut(self, name: str, parts: int) -> list[KeyRange]:
        """Ranges of equal size, from one pass over the ids."""
        total = self.count(name)

        def bounds(manifest: Manifest) -> list[PointId]:
            wanted = sorted({total * part // parts for part in range(1, parts)} - {0})
            found: list[PointId] = []
            seen = 0
            for table in self._ids(name, manifest):
                while len(found) < len(wanted) and wanted[len(found)] < seen + table.num_rows:
                    found.append(id_at(table, wanted[len(found)] - seen))
                seen += table.num_rows
            return found

        nothing: list[PointId] = []
        edges = self._catalog.reading(name, bounds, nothing)
        return [KeyRange(lo, hi) for lo, hi in zip([None, *edges], [*edges, None], strict=True)]

    def scan(
        self, name: str, keys: KeyRange, after: PointId | None = None, batch_size: int = 1000
    ) -> Iterator[PointBatch]:
        """Reads one row group of each overlapping part at a time; a part merged away meanwhile is no obstacle."""
        return self._pages(name, keys, after, batch_size)

    def candidates(self, name: str, where: Sequence[Condition], batch_size: int) -> Iterator[PointBatch]:
        """Reads ids and payloads alone, and parses the payloads that a regular expression finds."""
        return self._pages(name, KeyRange(), None, batch_size, whole=False, keep=compiled(where))

    def _pages(
        self,
        name: str,
        keys: KeyRange,
        after: PointId | None,
        size: int,
        *,
        whole: bool = True,
        keep: Filter | None = None,
    ) -> Iterator[PointBatch]:
        """Points in the order of ids; with or without their vectors, all or what the filter keeps."""
        first = self._catalog.find(name)
        while first is not None:
            manifest = self._catalog.get(name)  # a collection dropped in the middle is not one that ended
            try:
                with closing(self._batches(name, manifest, keys, after, size, whole, keep)) as batches:
                    for batch in batches:
                        after = batch.ids[-1]
                        yield batch
                return
            except FileNotFoundError as exc:  # another writer merged this part into a new one: go on from there
                self._catalog.refuse_if_lost(name, manifest, exc)

    def fetch(self, name: str, ids: Sequence[PointId]) -> PointBatch:
        def found(manifest: Manifest) -> PointBatch:
            import pyarrow as pa

            tables = [table for table in find(manifest.parts, self._opener(name), ids) if table.num_rows]
            if not tables:
                return empty_batch(manifest.collection)
            return to_batch(manifest.collection, pa.concat_tables(tables, promote_options="default"))

        nothing = PointBatch(ids=[], vectors={}, payloads=Payloads([]))
        return self._catalog.reading(name, found, nothing)

    def search(self, name: str, vector: str, queries: Float32Matrix, limit: int) -> list[list[Hit]]:
        """Compares with every point; there is no index."""

        def found(manifest: Manifest) -> list[list[Hit]]:
            return search(manifest, self._opener(name), vector, queries, limit)

        nothing: list[list[Hit]] = [[] for _ in queries]
        return self._catalog.reading(name, found, nothing) if limit > 0 else nothing

    # Writing

    def create(self, schema: CollectionSchema) -> None:
        self._catalog.create(schema)

    def finish(self, schema: CollectionSchema) -> None:
        """Merge everything into parts that do not overlap, and remove what a crash has left."""
        name = schema.name
        while not is_compact((manifest := self._catalog.get(name)).parts):
            if not self._merge(name, manifest.parts):
                time.sleep(0.01)  # another thread is at it
        self._catalog.remove_leftovers(name, manifest)

    def drop(self, name: str) -> None:
        self._catalog.drop(name)

    def upsert(self, name: str, batch: PointBatch) -> None:
        manifest = self._catalog.get(name)
        if len(batch):
            with translated(name):
                self._add(name, newest([to_table(manifest.collection, batch)]))

    def delete(self, name: str, ids: Sequence[PointId]) -> None:
        if ids and self._catalog.find(name) is not None:
            with translated(name):
                self._add(name, tombstones(ids))

    def aliases(self) -> dict[str, str]:
        return self._catalog.aliases()

    def set_alias(self, alias: str, name: str | None) -> None:
        if name is not None:
            self._catalog.get(name)
            if self._catalog.find(alias) is not None:
                raise Permanent("A collection has the name of the alias", alias, "Choose another alias.")

        def change(known: dict[str, str]) -> dict[str, str]:
            rest = {key: value for key, value in known.items() if key != alias}
            return rest if name is None else rest | {alias: name}

        with translated(alias):
            self._catalog.change_aliases(change)

    def fit(self, wish: CollectionSchema) -> tuple[CollectionSchema, list[Problem]]:
        """Everything fits. A smaller datatype is remembered for the way back; the numbers are kept as float32."""
        schema, problems = super().fit(wish)
        return schema, [item for item in problems if item.code != PRECISION]

    def problems(self, schema: CollectionSchema, batch: PointBatch) -> list[Problem]:
        """Adds payloads that are no JSON (NaN, infinities, bytes)."""
        found = super().problems(schema, batch)
        try:
            _ = batch.payloads.json  # kept by the batch, and needed by `upsert` anyway
        except (ValueError, TypeError):
            bad = tuple(i for i, item in zip(batch.ids, batch.payloads.dicts, strict=True) if not _is_json(item))
            found.append(Problem(PAYLOAD_FIELD, "a value that is no JSON", "payload", bad[:5], len(bad)))
        return found

    def close(self) -> None:
        self._catalog.forget()
        self._counts.clear()

    # Parts

    def _opener(self, name: str) -> Opener:
        return checked_opener(self._catalog.folder(name), self._intact)

    def _ids(self, name: str, manifest: Manifest) -> Iterator[pa.Table]:
        """The ids of all living points, in order."""
        return merged(manifest.parts, self._opener(name), columns=[*KEYS, DELETED])

    def _batches(
        self,
        name: str,
        manifest: Manifest,
        keys: KeyRange,
        after: PointId | None,
        size: int,
        whole: bool,
        keep: Filter | None,
    ) -> Generator[PointBatch, None, None]:
        import pyarrow as pa
        import pyarrow.compute as pc

        rest, collection, columns = None, manifest.collection, None
        if not whole:
            collection = collection.model_copy(update={"vectors": (), "sparse": ()})
            columns = [*KEYS, DELETED, "payload"]
        tables = merged(manifest.parts, self._opener(name), keys, after, columns)
        with translated(name, passing=FileNotFoundError), closing(tables):
            for found in tables:
                table = found
                if keys.partition is not None:
                    if collection.partitions is None:
                        return
                    table = table.filter(pc.equal(table["partition"], keys.partition))
                if keep is not None:
                    table = keep(table)
                rest = table if rest is None else pa.concat_tables([rest, table], promote_options="default")
                start = 0
                while rest.num_rows - start >= size:
                    yield to_batch(collection, rest.slice(start, size))
                    start += size
                rest = rest.slice(start) if start < rest.num_rows else None
            if rest is not None and rest.num_rows:
                yield to_batch(collection, rest)

    def _written(self, name: str, level: int, tables: Iterable[pa.Table]) -> PartWriter:
        """`tables` as one run of part files, which no manifest names yet."""
        with PartWriter(self._catalog.folder(name), level) as writer:
            for table in tables:
                writer.write(table)
        self._intact.update(part.file for part in writer.parts)
        return writer

    def _add(self, name: str, table: pa.Table) -> None:
        fresh = self._written(name, 0, [table]).parts
        self._catalog.commit(name, lambda parts: (*parts, *fresh))
        while (manifest := self._catalog.find(name)) is not None and (many := crowd(manifest.parts)):
            if not self._merge(name, many):
                return

    def _merge(self, name: str, old: Sequence[Part]) -> bool:
        """Write `old` (neighbours in age) as one run and put it in their place; False if somebody else is at it."""
        with self._guard:
            if name in self._merging:
                return False
            self._merging.add(name)
        try:
            with translated(name):
                return self._merge_alone(name, tuple(old))
        finally:
            self._merging.discard(name)

    def _merge_alone(self, name: str, old: tuple[Part, ...]) -> bool:
        manifest = self._catalog.get(name)
        start = where(manifest.parts, old)
        if start is None:
            return False
        # a delete is kept as long as something older may have to be hidden
        tables = merged(old, self._opener(name), keep_deletes=start > 0)
        try:
            level = max(part.level for part in old) + 1
            wide = (widened(table, manifest.collection) if start > 0 else table for table in tables)
            writer = self._written(name, level, wide)
        except FileNotFoundError as exc:
            self._catalog.refuse_if_lost(name, manifest, exc)
            return False

        def put(parts: tuple[Part, ...]) -> tuple[Part, ...] | None:
            place = where(parts, old)
            return None if place is None else (*parts[:place], *writer.parts, *parts[place + len(old) :])

        if not self._catalog.commit(name, put):  # another process was faster
            writer.discard()
            return False
        for part in old:
            (self._catalog.folder(name) / part.file).unlink(missing_ok=True)
        return True


def _is_json(value: object) -> bool:
    try:
        json_dumps(value)
    except (ValueError, TypeError):
        return False
    return True
