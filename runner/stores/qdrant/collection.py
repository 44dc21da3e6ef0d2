"""The points of one collection: ranges, pages, single points, writes."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

from runner.conditions import Condition
from runner.errors import NotFound, Permanent, Transient
from runner.points import IdKind, KeyRange, PointBatch, PointId
from runner.stores.qdrant.conditions import Index, compiled
from runner.stores.qdrant.connection import Connection
from runner.stores.qdrant.definition import dense_params, is_sharded
from runner.stores.qdrant.points import (
    Layout,
    from_messages,
    from_records,
    is_id,
    message_id,
    sort_key,
    structs,
    unit_rows,
    upsert_request,
)

#: Ids that `cut` reads at most; a sample of this size places a boundary within about 1 % of where it should be.
SAMPLE = 10_000
#: Points of one filtered page in local mode, which looks at all points for each page.
_LOCAL_PAGE = 10_000
_FIRST_UUID = "00000000-0000-0000-0000-000000000000"


class Collection:
    """A collection that may not be there: what it looks like is asked for on first use, and never for a write."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection, self._name = connection, name
        self._client, self._timeout = connection.client, connection.config.timeout

    @cached_property
    def layout(self) -> Layout | None:
        """None if there is no such collection."""
        if (info := self._connection.info(self._name)) is None:
            return None
        params = info.config.params
        dense = {vector: int(item.size) for vector, item in dense_params(self._name, params.vectors).items()}
        return Layout(dense, sorted(params.sparse_vectors or {}), is_sharded(params))

    @cached_property
    def shard_keys(self) -> dict[str, int | str]:
        """The user's shard keys, which may be integers, by their text."""
        with self._connection.calling(f"shard keys of {self._name}"):
            cluster = self._client.collection_cluster_info(self._name)
        keys = (shard.shard_key for shard in (*cluster.local_shards, *cluster.remote_shards))
        return {str(key): key for key in keys if key is not None}

    def id_kind(self, declared: str | None) -> IdKind:
        """What `create` declared, unless the points say otherwise; for others' collections what the points are.

        Integers come first in Qdrant's order, so the first point and the first from UUID 0 on tell it.
        """
        with self._connection.calling(f"inspect {self._name}"):
            first, _ = self._client.scroll(self._name, limit=1, with_payload=False)
            uuids, _ = self._client.scroll(self._name, limit=1, offset=_FIRST_UUID, with_payload=False)
        if not first:
            return IdKind(declared or IdKind.INT_OR_UUID)
        found = IdKind.UUID if isinstance(first[0].id, str) else IdKind.INT_OR_UUID if uuids else IdKind.INT
        return IdKind.INT_OR_UUID if declared not in (None, found) else found

    # Reading --------------------------------------------------------------------------------------------------------

    def cut(self, parts: int) -> list[KeyRange]:
        """Boundaries are quantiles of all ids, or of a random sample where there are more than SAMPLE."""
        if self.layout is None:
            return [KeyRange()]
        ranges: list[KeyRange] = []
        for partition in sorted(self.shard_keys) if self.layout.sharded else [None]:
            ids = sorted(self._sample(partition), key=sort_key) if parts > 1 else []
            places = (len(ids) * part // parts for part in range(1, parts))
            edges = [None, *dict.fromkeys(ids[place] for place in places if 0 < place < len(ids)), None]
            ranges += [KeyRange(lo, hi, partition) for lo, hi in itertools.pairwise(edges)]
        return ranges

    def _sample(self, partition: str | None) -> list[PointId]:
        from qdrant_client import models

        wish: dict[str, Any] = {"limit": SAMPLE, "with_payload": False}
        wish["shard_key_selector"] = None if partition is None else self.shard_keys[partition]
        with self._connection.calling(f"cut {self._name}"):
            points, more = self._client.scroll(self._name, **wish)
            if more is not None:
                query = models.SampleQuery(sample=models.Sample.RANDOM)
                points = self._client.query_points(self._name, query, timeout=self._timeout, **wish).points
        return [point.id for point in points]

    def scan(self, keys: KeyRange, after: PointId | None, batch_size: int) -> Iterator[PointBatch]:
        if self.layout is None:
            return
        shard_key = None if keys.partition is None else self.shard_keys[keys.partition]
        offset = max((edge for edge in (keys.lo, after) if edge is not None), key=sort_key, default=None)
        while True:
            batch, offset = self._page(self.layout, shard_key, offset, batch_size)
            # a page starts with the id of its offset itself, and Qdrant has no end of a range
            start = 0 if after is None else bisect.bisect_right(batch.ids, sort_key(after), key=sort_key)
            stop = len(batch) if keys.hi is None else bisect.bisect_left(batch.ids, sort_key(keys.hi), key=sort_key)
            if start < stop:
                yield batch if stop - start == len(batch) else batch.slice(start, stop)
            if offset is None or stop < len(batch):
                return

    def candidates(self, where: Sequence[Condition], batch_size: int) -> Iterator[PointBatch]:
        """Pages of payloads in the order of ids, all that pass the filter. A server may refuse a filter on a field
        without index (strict mode): then all points come."""
        if self.layout is None:
            return
        local = self._connection.local
        narrow = compiled(where, self._index_of)
        size = max(batch_size, _LOCAL_PAGE) if local and narrow is not None else batch_size
        offset: PointId | None = None
        while True:
            try:
                batch, offset = self._page(Layout({}, [], False), None, offset, size, narrow, whole=False)
            except Permanent:
                if narrow is None:
                    raise
                narrow = None  # a page of all points from here on has the rest
                continue
            for start in range(0, len(batch), batch_size):
                yield batch.slice(start, start + batch_size)
            if offset is None:
                return

    def _index_of(self, key: str) -> Index:
        """Of integers if every point with a value under `key` is in the index, so that no other number is there (but
        in an array beside an integer)."""
        from qdrant_client import models

        if self._connection.local or (info := self._connection.info(self._name)) is None:
            return Index.NONE
        index = info.payload_schema.get(key)
        if index is None or index.data_type not in (models.PayloadSchemaType.INTEGER, models.PayloadSchemaType.FLOAT):
            return Index.NONE
        if index.data_type == models.PayloadSchemaType.FLOAT:
            return Index.FLOATS
        empty = models.IsEmptyCondition(is_empty=models.PayloadField(key=key))
        with self._connection.calling(f"count in {self._name}"):
            there = self._client.count(self._name, count_filter=models.Filter(must_not=[empty]), exact=True)
        return Index.INTEGERS if there.count <= index.points else Index.PARTIAL

    def _page(
        self,
        layout: Layout,
        shard_key: int | str | None,
        offset: PointId | None,
        limit: int,
        narrow: Any = None,
        *,
        whole: bool = True,
    ) -> tuple[PointBatch, PointId | None]:
        """Up to `limit` points from `offset` on in the order of ids, and the first id after them. `narrow` is a filter,
        a page that is not `whole` has no vectors."""
        with self._connection.calling(f"scan {self._name}"):
            if not self._connection.grpc:
                records, following = self._client.scroll(
                    self._name,
                    scroll_filter=narrow,
                    limit=limit,
                    offset=offset,
                    with_vectors=whole,
                    shard_key_selector=shard_key,
                )
                return from_records(layout, records), following
            from qdrant_client import grpc

            request = grpc.ScrollPoints(
                collection_name=self._name,
                offset=None if offset is None else message_id(offset),
                limit=limit,
                with_payload=grpc.WithPayloadSelector(enable=True),
                with_vectors=grpc.WithVectorsSelector(enable=whole),
            )
            if narrow is not None:
                from qdrant_client.conversions.conversion import RestToGrpc

                request.filter.CopyFrom(RestToGrpc.convert_filter(narrow))
            if shard_key is not None:
                wanted = {"keyword" if isinstance(shard_key, str) else "number": shard_key}
                request.shard_key_selector.shard_keys.append(grpc.ShardKey(**wanted))
            answer = self._client.grpc_points.Scroll(request, timeout=self._timeout)
        following = answer.next_page_offset
        more = answer.HasField("next_page_offset")
        return from_messages(layout, answer.result), (following.uuid or following.num) if more else None

    def fetch(self, ids: Sequence[PointId]) -> PointBatch:
        wanted = [item for item in dict.fromkeys(ids) if is_id(item)]
        if self.layout is None or not wanted:
            return from_records(self.layout or Layout({}, [], False), [])
        with self._connection.calling(f"fetch from {self._name}"):
            if not self._connection.grpc:
                return from_records(self.layout, self._client.retrieve(self._name, wanted, with_vectors=True))
            from qdrant_client import grpc

            request = grpc.GetPoints(
                collection_name=self._name,
                ids=[message_id(item) for item in wanted],
                with_payload=grpc.WithPayloadSelector(enable=True),
                with_vectors=grpc.WithVectorsSelector(enable=True),
            )
            answer = self._client.grpc_points.Get(request, timeout=self._timeout)
        return from_messages(self.layout, answer.result)

    # Writing --------------------------------------------------------------------------------------------------------

    def upsert(self, batch: PointBatch) -> None:
        with self._connection.calling(f"upsert into {self._name}"):
            if self._connection.grpc:
                from qdrant_client import grpc

                answer = self._client.grpc_points.Upsert(upsert_request(self._name, batch), timeout=self._timeout)
                completed = answer.result.status == grpc.UpdateStatus.Completed
            else:
                if self._connection.local:
                    batch = self._scaled(batch)
                completed = self._client.upsert(self._name, structs(batch), wait=True).status.value == "completed"
        if not completed:  # only acknowledged: the points might not be counted yet
            where = f"{self._connection.config.place}: {self._name}"
            raise Transient("Qdrant did not finish the write in time", where)

    def _scaled(self, batch: PointBatch) -> PointBatch:
        """Under cosine of length 1. Local mode does that in memory only, and writes the original to its file."""
        params = dense_params(self._name, self._client.get_collection(self._name).config.params.vectors)
        cosine = {vector for vector, item in params.items() if item.distance.value == "Cosine"}
        scaled = {vector: unit_rows(matrix) for vector, matrix in batch.vectors.items() if vector in cosine}
        return replace(batch, vectors=batch.vectors | scaled)

    def delete(self, ids: Sequence[PointId]) -> None:
        from qdrant_client import models

        if wanted := [item for item in ids if is_id(item)]:
            with suppress(NotFound), self._connection.calling(f"delete from {self._name}"):  # noqa: S608
                self._client.delete(self._name, models.PointIdsList(points=wanted), wait=True)
