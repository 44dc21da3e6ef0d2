"""One collection: what reading and writing need to know of it, and its points as protobuf messages."""

from __future__ import annotations

import threading
import time
import uuid
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from runner.conditions import Condition
from runner.errors import Permanent, TooLarge, Transient
from runner.points import KeyRange, Payload, Payloads, PointBatch, PointId, canonical_uuid
from runner.stores.weaviate import payload as payloads
from runner.stores.weaviate.conditions import beyond, compiled
from runner.stores.weaviate.connection import Connection
from runner.stores.weaviate.definition import (
    ADDED,
    OVERFLOW,
    Property,
    is_property_name,
    overflow_property,
    properties_of,
    vector_lengths,
)
from runner.stores.weaviate.errors import check_points

#: Window of one search and of one delete by filter (QUERY_MAXIMUM_RESULTS, 10,000 as shipped).
MOST_RESULTS = 10_000
#: Properties vecrun adds by itself to one collection: each is an index of its own on the server's disk.
_MOST_PROPERTIES = 200


class Collection:
    """A collection, defined as it was at `read_at`. Methods do what those of Store do; tenants are partitions."""

    def __init__(self, connection: Connection, name: str, definition: dict[str, Any]) -> None:
        self.definition, self.read_at = definition, time.monotonic()
        self._connection, self._name = connection, name
        self._tenanted = bool((definition.get("multiTenancyConfig") or {}).get("enabled"))
        self._known_tenants: set[str] = set()
        self._not_properties: set[str] = set()
        self._lock = threading.Lock()
        self._learn(definition)
        self.vectors = vector_lengths(definition)
        self._measure()

    # Definition -----------------------------------------------------------------------------------------------------

    def _learn(self, definition: dict[str, Any]) -> None:
        from weaviate.proto.v1 import search_get_pb2

        properties = properties_of(definition.get("properties") or [])
        self._references = {key for key, item in properties.items() if item.refers}
        if any(item.has_blob for item in properties.values()):  # left out of "all properties"
            asked = _by_name({key: item for key, item in properties.items() if not item.refers})
            self._request = search_get_pb2.PropertiesRequest(**asked)
        else:
            self._request = search_get_pb2.PropertiesRequest(return_all_nonref_properties=True)
        self._properties = properties

    def _measure(self) -> None:
        """Fill in the lengths of vectors: the definition does not tell, so the first points are asked (up to 2,000)."""
        for tenant in [] if all(self.vectors.values()) else self.each_tenant():
            cursor = ""
            for _ in range(20):
                results, size = self._page(tenant, 100, cursor)
                for result in results:
                    for vector, data in self._vectors_of(result):
                        self.vectors[vector] = len(data) // 4
                if all(self.vectors.values()):
                    return
                if len(results) < size:
                    break
                cursor = results[-1].metadata.id

    def _add_properties(self, batch: list[Payload]) -> None:
        """Make properties of new keys before the points that need them, so that the server never guesses a type."""
        known = self._properties.keys()
        kinds: dict[str, Counter[str]] = {}
        for payload in batch:
            if payload.keys() <= known:
                continue
            for key, value in payload.items():
                new = key not in known and key not in self._not_properties and is_property_name(key)
                if new and (kind := payloads.guess(value)):
                    kinds.setdefault(key, Counter())[kind] += 1
        added = []
        for key in sorted(kinds)[: max(0, _MOST_PROPERTIES - len(known))]:
            counts = kinds[key]
            for whole, broken in (("int", "number"), ("int[]", "number[]")):
                if broken in counts:
                    counts[broken] += counts.pop(whole, 0)
            added.append({"name": key, "dataType": [counts.most_common(1)[0][0]], "description": ADDED})
        self._declare(added)

    def _declare(self, wanted: list[dict[str, Any]]) -> None:
        """Add properties, or learn what another thread or process made of them.

        The answer tells nothing: of two that come together the server accepts both and keeps the type of the first.
        """
        with self._lock:
            added = [item for item in wanted if item["name"] not in self._properties]
            if not added:
                return
            path = f"/schema/{self._name}"
            for item in added:  # 422: there already, or one that differs only in upper and lower case
                self._connection.rest("post", f"{path}/properties", item, without=(422,), what=f"add to {self._name}")
            self._learn(self._connection.rest("get", path))
            self._not_properties |= {item["name"] for item in added} - self._properties.keys()

    # Tenants --------------------------------------------------------------------------------------------------------

    def tenants(self) -> list[str] | None:
        """Names of the tenants; None for a collection that is not made for them."""
        if not self._tenanted:
            return None
        return sorted(item["name"] for item in self._connection.rest("get", f"/schema/{self._name}/tenants"))

    def each_tenant(self) -> list[str]:
        """The tenants; "" stands for a collection without."""
        tenants = self.tenants()
        return [""] if tenants is None else tenants

    def add_tenants(self, tenants: Sequence[str]) -> None:
        """Make those that are not there."""
        if new := set(tenants) - self._known_tenants:
            self._connection.rest("post", f"/schema/{self._name}/tenants", [{"name": item} for item in sorted(new)])
            self._known_tenants |= new

    # Reading --------------------------------------------------------------------------------------------------------

    def count(self) -> int:
        """Exact number of points."""
        from weaviate.proto.v1 import aggregate_pb2

        def count(tenant: str) -> int:
            request = aggregate_pb2.AggregateRequest(collection=self._name, tenant=tenant, objects_count=True)
            return int(self._connection.call("Aggregate", request, f"count {self._name}").single_result.objects_count)

        return sum(map(count, self.each_tenant()))

    def cut(self, parts: int) -> list[KeyRange]:
        tenants = self.each_tenant()
        ranges: list[KeyRange] = []
        for tenant in tenants:
            edges = [None, *self._edges(tenant, max(1, parts // len(tenants))), None]
            ranges += [KeyRange(lo, hi, tenant or None) for lo, hi in pairwise(edges)]
        return ranges or [KeyRange()]

    def _edges(self, tenant: str, parts: int) -> list[str]:
        """Even cuts between the smallest and the largest id, found by probing: time-ordered UUIDs share their head."""

        def beyond(number: int) -> int | None:
            """The smallest id of at least `number`."""
            results = self._search(tenant, 1, _before(_text(number)), whole=False, payload=False)
            return uuid.UUID(results[0].metadata.id).int if results else None

        first = beyond(0) if parts > 1 else None
        if first is None:
            return []
        last, limit = first, 2**128
        while limit - last > 1 + (last - first) // 64:
            middle = (last + limit) // 2
            found = beyond(middle)
            last, limit = (last, middle) if found is None else (found, limit)
        span = last - first + 1
        return [_text(edge) for edge in sorted({first + span * part // parts for part in range(1, parts)} - {first})]

    def scan(self, keys: KeyRange, after: PointId | None, batch_size: int) -> Iterator[PointBatch]:
        tenants = [item for item in self.each_tenant() if keys.partition in (None, item)]
        if after is not None and len(tenants) > 1:
            hint = "Scan one tenant at a time: KeyRange(partition=…), as cut() gives them."
            raise Permanent("A scan of many tenants cannot be taken up again", f"collection {self._name}", hint)
        start = max("" if after is None else str(after), "" if keys.lo is None else _before(str(keys.lo)))
        size = min(batch_size, MOST_RESULTS)
        for tenant in tenants:
            cursor = start
            while True:
                results, size = self._page(tenant, size, cursor)
                ids = [result.metadata.id for result in results]
                stop = len(ids) if keys.hi is None else bisect_left(ids, str(keys.hi))
                if stop:
                    found = results[:stop]
                    yield self._batch(found, self._payloads(tenant, found), [tenant] * stop)
                if not ids or stop < len(ids):
                    break
                cursor = ids[-1]

    def fetch(self, ids: Sequence[PointId]) -> PointBatch:
        wanted = sorted({str(item) for item in ids if canonical_uuid(item)})
        found, dicts, partitions = list[Any](), list[Payload](), list[str]()
        size = 1000
        for tenant in self.each_tenant():
            start = 0
            while start < len(wanted):
                results, size = self._page(tenant, size, ids=wanted[start : start + size])
                start += size
                found += results
                dicts += self._payloads(tenant, results)
                partitions += [tenant] * len(results)
        return self._batch(found, dicts, partitions)

    def candidates(self, where: Sequence[Condition], batch_size: int) -> Iterator[PointBatch]:
        """Payloads in the order of ids. The server takes no cursor beside a filter, so the filter itself says beyond
        which id; it sorts all that match for each page, so pages are as large as it allows."""
        for tenant in self.each_tenant():
            narrow = compiled(where, self.definition)
            cursor, size = "", MOST_RESULTS if narrow is not None else min(batch_size, MOST_RESULTS)
            while True:
                try:
                    results = self._search(tenant, size, cursor, whole=False, narrow=narrow)
                except TooLarge:
                    if size == 1:
                        raise
                    size //= 2
                    continue
                except Permanent:  # it refuses a filter of stopwords alone; an old one, to sort or to compare ids
                    if narrow is None:
                        raise
                    narrow, size = None, min(batch_size, MOST_RESULTS)
                    continue
                for start in range(0, len(results), batch_size):
                    part = results[start : start + batch_size]
                    ids: list[PointId] = [result.metadata.id for result in part]
                    yield PointBatch(ids, {}, Payloads(self._payloads(tenant, part)))
                if len(results) < size:
                    break
                cursor = results[-1].metadata.id

    def _page(self, tenant: str, size: int, after: str = "", ids: Sequence[str] = ()) -> tuple[list[Any], int]:
        """Up to `size` whole points, fewer where the server's limit for a message is met; and that number."""
        while True:
            try:
                return self._search(tenant, size, after, ids[:size]), size
            except TooLarge:
                if size == 1:
                    raise
                size //= 2

    def _search(
        self,
        tenant: str,
        limit: int,
        after: str = "",
        ids: Sequence[str] = (),
        whole: bool = True,
        narrow: Any = None,
        payload: bool = True,
    ) -> list[Any]:
        """Up to `limit` points beyond `after` ("" is the beginning): all, those with `ids`, or what the filter `narrow`
        finds. Without vectors if not `whole`, only ids without `payload`."""
        from weaviate.proto.v1 import search_get_pb2

        request = search_get_pb2.SearchRequest(
            collection=self._name,
            tenant=tenant,
            limit=limit,
            metadata=search_get_pb2.MetadataRequest(uuid=True, vector=whole),
            properties=self._request if payload else search_get_pb2.PropertiesRequest(),
            uses_127_api=True,
        )
        if narrow is not None:
            request.filters.CopyFrom(beyond(narrow, after) if after else narrow)
            request.sort_by.append(search_get_pb2.SortBy(ascending=True, path=["_id"]))
        else:
            request.after = after
            if ids:
                request.filters.CopyFrom(_by_id(ids))
        return list(self._connection.call("Search", request, f"read {self._name}").results)

    def _payloads(self, tenant: str, results: list[Any]) -> list[Payload]:
        """The payloads. Cross-references come from REST: gRPC leaves out those whose target is gone."""
        read = [payloads.read(result.properties.non_ref_props.fields) for result in results]
        found: dict[str, Payload] = {}
        limit = len(results)  # a whole page at first; then, one by one, what is no neighbour of the first
        for result, payload in zip(results, read, strict=True) if self._references else ():
            point_id = result.metadata.id
            if point_id not in found:
                params = {"class": self._name, "limit": limit, "after": _before(point_id), "tenant": tenant}
                params = {key: item for key, item in params.items() if item != ""}
                for item in self._connection.rest("get", "/objects", params=params)["objects"]:
                    properties = item.get("properties") or {}
                    found[item["id"]] = {
                        key: [{"beacon": beacon["beacon"]} for beacon in properties[key]]
                        for key in self._references & properties.keys()
                    }
                limit = 1
            payload.update(found.get(point_id, {}))
        return read

    def _batch(self, results: list[Any], dicts: list[Payload], partitions: list[str]) -> PointBatch:
        count = len(results)
        found: dict[str, list[bytes]] = {vector: [b""] * count for vector in self.vectors}
        for row, result in enumerate(results):
            for vector, data in self._vectors_of(result):
                found[vector][row] = data
        batch = PointBatch([result.metadata.id for result in results], {}, Payloads(dicts))
        for vector, rows in found.items():
            width = self.vectors[vector] or max(map(len, rows), default=0) // 4
            if not width:
                continue
            self.vectors[vector] = width
            if not all(rows):
                batch.missing[vector] = np.asarray([not data for data in rows])
            if any(len(data) not in (0, 4 * width) for data in rows):
                raise Permanent("Vectors of different lengths under one name", f"{self._name}, {vector or '(unnamed)'}")
            whole = b"".join([data or bytes(4 * width) for data in rows])
            batch.vectors[vector] = np.frombuffer(whole, np.dtype("<f4")).reshape(count, width)
        if self._tenanted:
            batch.partitions = partitions
        return batch

    def _vectors_of(self, result: Any) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of each vector a result has."""
        if "" in self.vectors and result.metadata.vector_bytes:
            yield "", result.metadata.vector_bytes
        for item in result.metadata.vectors:
            if item.name in self.vectors:
                yield item.name, item.vector_bytes

    # Writing --------------------------------------------------------------------------------------------------------

    def upsert(self, batch: PointBatch) -> None:
        from weaviate.proto.v1 import batch_pb2

        self._add_properties(batch.payloads.dicts)
        if batch.partitions:
            self.add_tenants(batch.partitions)
        objects = list(self._objects(batch))
        request = batch_pb2.BatchObjectsRequest(objects=objects, consistency_level=self._connection.consistency)
        size, limit = request.ByteSize(), self._connection.message_bytes
        if size > limit:
            raise (TooLarge if len(batch) > 1 else Permanent)(
                "The batch is larger than the server takes in one message",
                f"{self._name}: {len(batch)} points, {size} bytes; limit {limit}",
                "Use a smaller batch_size, or raise GRPC_MAX_MESSAGE_SIZE of the server.",
            )
        check_points(self._name, batch, self._connection.call("BatchObjects", request, f"write to {self._name}").errors)

    def _objects(self, batch: PointBatch) -> Iterator[Any]:
        """A message per point. The overflow property is declared before the first point that needs it is sent."""
        from google.protobuf.struct_pb2 import Struct
        from weaviate.proto.v1 import base_pb2, batch_pb2

        columns = []
        for vector, matrix in batch.vectors.items():
            width = self.vectors.get(vector)
            if width is None or (width and width != matrix.shape[1]):
                raise Permanent(
                    "The collection has no such vector",
                    f"{self._name}, {vector or '(unnamed)'} of {matrix.shape[1]} numbers; there are {self.vectors}",
                )
            missing = batch.missing.get(vector)
            data = np.ascontiguousarray(matrix, np.dtype("<f4")).tobytes()
            columns.append((vector, data, matrix.shape[1] * 4, None if missing is None else missing.tolist()))
        for row, (point_id, payload) in enumerate(zip(batch.ids, batch.payloads.dicts, strict=True)):
            natural = payloads.write(payload, self._properties, point_id)
            if OVERFLOW in natural and OVERFLOW not in self._properties:
                self._declare([overflow_property(None)])
            properties = Struct()
            properties.update(natural)
            item = batch_pb2.BatchObject(
                collection=self._name,
                uuid=str(point_id),
                tenant=batch.partitions[row] if batch.partitions else "",
                properties=batch_pb2.BatchObject.Properties(non_ref_properties=properties),
            )
            for vector, data, width, absent in columns:
                if absent is not None and absent[row]:
                    continue
                numbers = data[row * width : row * width + width]
                if vector:
                    single = base_pb2.Vectors.VECTOR_TYPE_SINGLE_FP32
                    item.vectors.append(base_pb2.Vectors(name=vector, vector_bytes=numbers, type=single))
                else:
                    item.vector_bytes = numbers
            yield item

    def delete(self, ids: Sequence[PointId]) -> None:
        from weaviate.proto.v1 import batch_delete_pb2

        known = sorted({str(item) for item in ids if canonical_uuid(item)})
        for tenant in self.each_tenant():
            for start in range(0, len(known), MOST_RESULTS // 2):
                request = batch_delete_pb2.BatchDeleteRequest(
                    collection=self._name,
                    filters=_by_id(known[start : start + MOST_RESULTS // 2]),
                    consistency_level=self._connection.consistency,
                    tenant=tenant or None,
                )
                # One call takes away no more than QUERY_MAXIMUM_RESULTS, and says nothing of the others.
                while True:
                    reply = self._connection.call("BatchDelete", request, f"delete in {self._name}")
                    if reply.failed or (reply.matches and not reply.successful):
                        detail = f"{self._name}: {reply.successful} of {reply.matches} were"
                        raise Transient("Not all points were deleted", detail)
                    if reply.successful >= reply.matches:
                        break


def _text(number: int) -> str:
    return str(uuid.UUID(int=number))


def _before(point_id: str) -> str:
    """The id just before, for a cursor that starts behind it; "" before the very first."""
    number = uuid.UUID(point_id).int
    return _text(number - 1) if number else ""


def _by_id(ids: Sequence[str]) -> Any:
    """A filter for these ids."""
    from weaviate.proto.v1 import base_pb2

    return base_pb2.Filters(
        operator=base_pb2.Filters.OPERATOR_CONTAINS_ANY,
        target=base_pb2.FilterTarget(property="_id"),
        value_text_array=base_pb2.TextArray(values=ids),
    )


def _by_name(properties: dict[str, Property], plain: str = "non_ref_properties") -> dict[str, Any]:
    """Arguments of a request for all these properties by name."""
    from weaviate.proto.v1 import search_get_pb2

    objects = [
        search_get_pb2.ObjectPropertiesRequest(prop_name=key, **_by_name(item.nested, "primitive_properties"))
        for key, item in properties.items()
        if item.nested
    ]
    return {plain: [key for key, item in properties.items() if not item.nested], "object_properties": objects}
