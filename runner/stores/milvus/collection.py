"""One collection: its points, read and written in columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from runner.conditions import Condition
from runner.errors import Permanent, StoreError, TooLarge
from runner.points import CollectionSchema, Float32Matrix, KeyRange, PointBatch, PointId
from runner.store import Hit, check_queries
from runner.stores.milvus import definition, search
from runner.stores.milvus.columns import joined, keys_of, pack, unpack
from runner.stores.milvus.conditions import compiled
from runner.stores.milvus.connection import Connection
from runner.stores.milvus.errors import ABSENT, UNLOADED
from runner.stores.milvus.filters import MOST_IDS, among, in_range
from runner.stores.milvus.layout import DEFAULT_PARTITION, FLOAT_VECTOR, Layout, described, partition_key_of

#: offset + limit of one query; the server's `quotaAndLimits.limits.maxQueryResultWindow`.
_WINDOW = 16_384
#: Answers of a scan are kept near this size by adapting the rows of a page.
_PAGE_BYTES = 8_000_000
#: Fewer points are not cut.
_SMALL = 1_000
_STRONG, _CUSTOMIZED = 0, 4


class Collection:
    """A collection as it was described when this was made."""

    def __init__(self, connection: Connection, found: dict[str, Any], partitions: tuple[str, ...] | None) -> None:
        self._connection, self._found = connection, found
        self.layout = described(found, partitions)
        self._place = connection.place(self.layout.name)
        self._outputs = ["*", *self.layout.dense, *self.layout.sparse]

    @classmethod
    def find(cls, connection: Connection, name: str) -> Collection | None:
        """None if there is no such collection; an alias is none."""
        try:
            found = connection.ask("describe_collection", name)
            if found["collection_name"] != name:
                return None
            partitions = None
            if partition_key_of(found) is None and found.get("num_partitions") != 1:
                names = set(connection.ask("list_partitions", name))
                partitions = tuple(sorted(names - {DEFAULT_PARTITION})) or None
        except StoreError as exc:
            if exc.summary == ABSENT:
                return None
            raise
        return cls(connection, found, partitions)

    def schema(self) -> CollectionSchema:
        return definition.schema_of(self._found, self.layout, self._connection.indexes(self.layout.name))

    # Reading --------------------------------------------------------------------------------------------------------

    def count(self, partition: str | None = None) -> int:
        """Exact, at Strong consistency."""
        # Lite ignores the partition of a count without a filter, and without a partition a filter is only slower
        expr = in_range(self.layout, KeyRange()) if partition else ""
        answer = self._query(expr, ["count(*)"], partition=partition)
        return int(answer.fields_data[0].scalars.long_data.data[0])

    def cut(self, parts: int) -> list[KeyRange]:
        """Ranges of every partition, as many as its share of the points."""
        places: list[str | None] = [None]
        if self.layout.partitions is not None:
            places = [DEFAULT_PARTITION, *self.layout.partitions]
        counts = [self.count(place) for place in places]
        clock, ranges = self._connection.clock(), []
        for place, rows in zip(places, counts, strict=True):
            share = max(1, round(parts * rows / max(1, sum(counts))))
            bounds = self._bounds(place, rows, share, clock) if rows >= _SMALL else ()
            ranges += [KeyRange(lo, hi, place) for lo, hi in pairwise([None, *bounds, None])]
        return ranges

    def _bounds(self, partition: str | None, rows: int, share: int, clock: int) -> Iterator[PointId]:
        """Keys between `share` equal parts of `rows` points: jumps of up to 16,383 keys, each a query for one row."""
        key: PointId | None = None
        step = math.ceil(rows / share)
        for _ in range(share - 1):
            for start in range(0, step, _WINDOW - 1):
                hop = min(step - start, _WINDOW - 1)
                expr = in_range(self.layout, KeyRange(key))
                found = self._keys(expr, limit=1, offset=hop, partition=partition, clock=clock)
                if not found:
                    return
                key = found[0]
            assert key is not None
            yield key

    def scan(self, keys: KeyRange, after: PointId | None, batch_size: int) -> Iterator[PointBatch]:
        clock = self._connection.clock()
        for batch in self._pages(self.layout, keys, after, batch_size, clock):
            self._add_partitions(batch, keys.partition, clock)
            for start in range(0, len(batch), batch_size):
                yield batch.slice(start, start + batch_size)

    def candidates(self, where: Sequence[Condition], batch_size: int) -> Iterator[PointBatch]:
        """Keyset pages of what the compiled conditions find, without vectors. Lite filters in Python, which takes longer
        than to read all payloads, and looks at all points for each page, so that its pages are as large as they may."""
        layout, lite = replace(self.layout, dense={}, sparse=()), self._connection.lite
        narrow = "" if lite else compiled(self.layout, where)
        size, after = _WINDOW if lite else batch_size, None
        while True:
            try:
                for batch in self._pages(layout, KeyRange(), after, size, self._connection.clock(), narrow):
                    after = batch.ids[-1]
                    for start in range(0, len(batch), batch_size):
                        part = batch.slice(start, start + batch_size)
                        yield PointBatch(part.ids, {}, part.payloads)
                return
            except Permanent:  # an expression this version does not know
                if not narrow:
                    raise
                narrow = ""  # all points from here on have the rest

    def _pages(
        self, layout: Layout, keys: KeyRange, after: PointId | None, batch_size: int, clock: int, narrow: str = ""
    ) -> Iterator[PointBatch]:
        """Keyset pages in key order (bytes of UTF-8 for VARCHAR), as they were acknowledged at `clock`, with the vectors
        of `layout`; only what the expression `narrow` finds.

        A server answers `key > last limit n` in key order; Lite does so when it is asked as an iterator. The first page
        waits (about 200 ms) until the node has seen the timestamp taken at the start, later pages find it seen.
        """
        self._check_readable()
        whole = layout is self.layout
        outputs = self._outputs if whole else [layout.key, *layout.typed, *(["$meta"] if layout.dynamic else [])]
        rows, last = min(batch_size, _WINDOW), after
        while True:
            expr = " and ".join(filter(None, [f"({narrow})" if narrow else "", in_range(layout, keys, last)]))
            try:
                answer = self._query(expr, outputs, limit=rows, partition=keys.partition, clock=clock)
            except TooLarge:
                if rows == 1:
                    raise
                rows = max(1, rows // 4)
                continue
            batch = unpack(layout, answer.fields_data)
            if not len(batch):
                return
            if any(a >= b for a, b in pairwise(batch.ids)):  # type: ignore[operator]
                raise Permanent("The server answered out of key order", self._place, "Use Milvus 2.3 or newer.")
            yield batch
            if len(batch) < rows:
                return
            last = batch.ids[-1]
            rows = int(min(_WINDOW, max(1, rows * _PAGE_BYTES / answer.ByteSize())))

    def fetch(self, ids: Sequence[PointId]) -> PointBatch:
        self._check_readable()
        parts, clock = [unpack(self.layout, [])], self._connection.clock()
        self._add_partitions(parts[0], None, clock)
        size = sum(dimension for _, dimension in self.layout.dense.values()) * 4 + 1_000
        for expr in among(self.layout, ids, max(1, min(MOST_IDS, _PAGE_BYTES // size))):
            answer = self._query(expr, self._outputs, clock=clock, ordered=False)
            part = unpack(self.layout, answer.fields_data)
            self._add_partitions(part, None, clock)
            parts.append(part)
        return joined(parts[1:] or parts)

    def search(self, vector: str, queries: Float32Matrix, limit: int) -> list[list[Hit]]:
        """Permanent where both `limit` and the collection are larger than what one search gives."""
        sizes = {label: dimension for label, (_, dimension) in self.layout.dense.items()}
        check_queries(self._place, sizes, vector, queries)
        if self.layout.dense[vector][0] != FLOAT_VECTOR and not self._connection.modern:
            hint = "Servers from 2.4 on can; 2.3 answers with wrong points and says nothing."
            raise Permanent("This server cannot search float16 vectors", f"{self._place}: {vector}", hint)
        if limit > search.MOST_HITS and self.count() > search.MOST_HITS:
            hint = f"Milvus gives at most {search.MOST_HITS}."
            raise Permanent("More hits than one search gives", f"{self._place}: {limit}", hint)
        limit, kind = min(limit, search.MOST_HITS), self.layout.dense[vector][0]
        wanted, clock, found = self.schema().vector(vector), self._connection.clock(), list[list[Hit]]()
        for part in search.parts(queries, limit):
            request = self._connection.request(
                "Search",
                self.layout.name,
                output_fields=[self.layout.key],  # none would be all of them on Lite
                guarantee_timestamp=clock,
                consistency_level=_CUSTOMIZED if clock else _STRONG,
                **search.fields(vector, kind, wanted.distance, wanted.index, part, limit),
            )
            found += search.hits_of(wanted.distance, self._read("Search", request).results)
        return found

    def _check_readable(self) -> None:
        if self.layout.unsupported:
            raise Permanent(
                "A collection has fields that vecrun cannot read",
                f"{self._place}: {', '.join(self.layout.unsupported)}",
                "Binary vectors and arrays of structures are not supported.",
            )

    def _add_partitions(self, batch: PointBatch, partition: str | None, clock: int) -> None:
        """Tell where each point lies. A query does not, so each partition is asked, unless only one was read."""
        if self.layout.partitions is None:
            return
        if partition is not None:
            batch.partitions = [partition] * len(batch)
            return
        known = {key: place for place in self.layout.partitions for key in self._keys_in(place, batch.ids, clock)}
        batch.partitions = [known.get(point_id, DEFAULT_PARTITION) for point_id in batch.ids]

    def _keys_in(self, partition: str, ids: Sequence[PointId], clock: int) -> set[PointId]:
        """Those of the ids that lie in this partition."""
        filters = among(self.layout, ids)
        return {key for expr in filters for key in self._keys(expr, partition=partition, clock=clock, ordered=False)}

    def _keys(self, expr: str, **options: Any) -> list[PointId]:
        return keys_of(self.layout, self._query(expr, [self.layout.key], **options).fields_data)

    def _query(
        self,
        expr: str,
        outputs: list[str],
        *,
        limit: int = 0,
        offset: int = 0,
        partition: str | None = None,
        clock: int = 0,
        ordered: bool = True,
    ) -> Any:
        """One query; the answer's columns as they come."""
        params = {key: str(value) for key, value in (("limit", limit), ("offset", offset)) if value}
        if self._connection.lite and ordered:
            params["iterator"] = "True"  # only then does Lite sort by key
        request = self._connection.request(
            "Query",
            self.layout.name,
            expr=expr,
            output_fields=outputs,
            partition_names=[partition] if partition else [],
            guarantee_timestamp=clock,
            consistency_level=_CUSTOMIZED if clock else _STRONG,
            query_params=[{"key": key, "value": value} for key, value in params.items()],
        )
        return self._read("Query", request)

    def _read(self, method: str, request: Any) -> Any:
        """Send it. Loads a collection that is not loaded, if that is allowed."""
        try:
            return self._connection.send(method, request)
        except StoreError as exc:
            if exc.summary != UNLOADED or not self._connection.loads:
                raise
        self._connection.load(self.layout.name)
        return self._connection.send(method, request)

    # Writing --------------------------------------------------------------------------------------------------------

    def upsert(self, batch: PointBatch) -> None:
        """Milvus answers once the points are in its log, so they are durable; reads here wait for what was written."""
        self._check_writable(batch)
        rows = {point_id: row for row, point_id in enumerate(batch.ids)}
        if len(rows) < len(batch):  # twice in one request: a server keeps and counts both
            batch = batch.take(sorted(rows.values()))
        if self.layout.partitions is None:
            self._write(batch, "")
            return
        # A server replaces a point only within its partition, so one that moved has to be deleted where it was.
        places, clock = batch.partitions or [DEFAULT_PARTITION] * len(batch), self._connection.clock()
        moved: dict[str, list[PointId]] = {}
        for other in (DEFAULT_PARTITION, *self.layout.partitions):
            old = self._keys_in(other, batch.ids, clock)
            moved[other] = [key for key, now in zip(batch.ids, places, strict=True) if now != other and key in old]
        if self._connection.lite and any(moved.values()):
            # There a delete reaches every partition, so it has to come before; and unless it is flushed, the insert of
            # the same key cancels it and the old row stays.
            self.delete([key for keys in moved.values() for key in keys])
            self._connection.ask("flush", self.layout.name, timeout=None)
        for place in dict.fromkeys(places):
            self._write(batch.take([row for row, item in enumerate(places) if item == place]), place)
        if not self._connection.lite:
            for place, keys in moved.items():
                self.delete(keys, place)

    def delete(self, ids: Sequence[PointId], partition: str = "") -> None:
        for expr in among(self.layout, ids):
            fields = {"partition_name": partition, "expr": expr}
            self._connection.send("Delete", self._connection.request("Delete", self.layout.name, **fields))

    def _write(self, batch: PointBatch, partition: str) -> None:
        # Lite's upsert merges the old payload into the new one; its insert replaces the whole point, unlike a server's
        method = "Insert" if self._connection.lite else "Upsert"
        fields = {"partition_name": partition, "num_rows": len(batch)}
        request = self._connection.request(method, self.layout.name, **fields)
        try:
            pack(self.layout, request, batch)
        except (TypeError, ValueError, OverflowError) as exc:  # protobuf refuses a value: `problems` was not heeded
            raise Permanent("The points do not fit the collection", f"{self._place}: {exc}") from exc
        self._connection.send(method, request)

    def _check_writable(self, batch: PointBatch) -> None:
        layout = self.layout
        if layout.auto_id:
            hint = "Write to a collection without auto_id."
            raise Permanent("The collection makes its own ids", f"{self._place} has auto_id", hint)
        wrong = [
            f"{label} has {dimension} dimensions, not {batch.vectors[label].shape[1] if label in batch.vectors else 0}"
            for label, (_, dimension) in layout.dense.items()
            if label not in batch.vectors or batch.vectors[label].shape[1] != dimension
        ]
        wrong += [f"no vector {label}" for label in layout.sparse if label not in batch.sparse]
        known = {*layout.dense, *layout.sparse}
        wrong += [f"unknown vector {label}" for label in (*batch.vectors, *batch.sparse) if label not in known]
        wrong += [f"field {label}" for label in layout.unsupported]
        if wrong:
            raise Permanent("The points do not fit the collection", f"{self._place}: {', '.join(wrong)}")
