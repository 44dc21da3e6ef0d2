"""The store: one Weaviate server with its collections and aliases."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from runner.conditions import Condition
from runner.errors import Permanent, Transient
from runner.points import (
    CollectionSchema,
    Float32Matrix,
    IdKind,
    KeyRange,
    Payloads,
    PointBatch,
    PointId,
    canonical_uuid,
)
from runner.store import BAD_ID, Capabilities, ConnectionConfig, Health, Hit, Problem, Store, check_queries
from runner.stores.weaviate import definition
from runner.stores.weaviate.collection import MOST_RESULTS, Collection
from runner.stores.weaviate.config import WeaviateConfig
from runner.stores.weaviate.connection import Connection
from runner.stores.weaviate.search import search

#: Seconds a collection's definition is trusted: another process may add properties, or drop it.
_TRUST = 5.0
#: Seconds a queue of vectors may stand still before `finish` gives up.
_STANDSTILL = 600.0


class WeaviateStore(Store):
    """One Weaviate server. Ids are UUIDs; vectors come back as they were written, whatever the metric."""

    type = "weaviate"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: dict[str, Collection] = {}
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"WeaviateStore({self._connection.host})"

    @classmethod
    def connect(cls, config: ConnectionConfig) -> Store:
        assert isinstance(config, WeaviateConfig)
        return cls(Connection(config))

    def capabilities(self) -> Capabilities:
        return Capabilities(
            id_kinds=frozenset({IdKind.UUID}),
            distances=frozenset(definition.DISTANCES.values()),
            default_vector_name="default",
            max_dimension=65_535,
            max_vectors=100,
            missing_vectors=True,
            aliases=[int(part) for part in re.findall(r"\d+", self._connection.version)[:2]] >= [1, 32],
            partitions=True,
            max_batch=MOST_RESULTS,
        )

    def health(self) -> Health:
        return self._connection.health()

    def close(self) -> None:
        self._connection.client.close()

    # Collections ----------------------------------------------------------------------------------------------------

    def collections(self) -> list[str]:
        return sorted(item["class"] for item in self._connection.rest("get", "/schema").get("classes") or [])

    def inspect(self, name: str) -> CollectionSchema | None:
        collection = self._collection(name, fresh=True)
        if collection is None:
            return None
        lengths = collection.vectors
        # Of unknown length although there are points: never written by anyone, so there is nothing to carry.
        if not all(lengths.values()) and collection.count():
            lengths = {vector: length for vector, length in lengths.items() if length}
        return definition.schema_of(collection.definition, lengths, collection.tenants())

    def create(self, schema: CollectionSchema) -> None:
        if hint := definition.name_hint(schema.name):
            raise Permanent("Not a name for a collection", repr(schema.name), hint)
        self._known.pop(schema.name, None)
        self._connection.rest("post", "/schema", definition.definition_of(schema), what=f"create {schema.name}")
        collection = self._collection(schema.name) if schema.partitions else None
        if collection is not None:
            collection.add_tenants(schema.partitions or ())

    def finish(self, schema: CollectionSchema) -> None:
        """Wait until the vectors that ASYNC_INDEXING put into a queue are in the index."""
        shortest, since = None, time.monotonic()
        while True:
            reply = self._connection.rest("get", f"/nodes/{schema.name}", params={"output": "verbose"})
            shards = [shard for node in reply.get("nodes") or [] for shard in node.get("shards") or []]
            queued = sum(shard.get("vectorQueueLength") or 0 for shard in shards)
            if not queued and not any(shard.get("vectorIndexingStatus") == "INDEXING" for shard in shards):
                return
            if shortest is None or queued < shortest:
                shortest, since = queued, time.monotonic()
            elif time.monotonic() - since > _STANDSTILL:
                raise Transient("The vector index does not come to an end", f"{schema.name}: {queued} vectors waiting")
            time.sleep(0.5)

    def drop(self, name: str) -> None:
        self._known.pop(name, None)
        # Asked first: the server would take a name with a lower first letter for the collection itself.
        if self._definition(name) is not None:
            self._connection.rest("delete", f"/schema/{name}", what=f"drop {name}")

    def aliases(self) -> dict[str, str]:
        found = self._connection.rest("get", "/aliases", without=(404,)) or {}
        return {item["alias"]: item["class"] for item in found.get("aliases") or []}

    def set_alias(self, alias: str, name: str | None) -> None:
        connection, what = self._connection, f"alias {alias}"
        if hint := definition.name_hint(alias):
            raise Permanent("Not a name for an alias", repr(alias), hint)
        if name is None:
            connection.rest("delete", f"/aliases/{alias}", without=(404,), what=what)
        elif alias in self.aliases():
            connection.rest("put", f"/aliases/{alias}", {"class": name}, what=what)
        else:
            connection.rest("post", "/aliases", {"alias": alias, "class": name}, what=what)

    def fit(self, wish: CollectionSchema) -> tuple[CollectionSchema, list[Problem]]:
        schema, problems = super().fit(wish)
        schema, more = definition.fit(schema)
        return schema, problems + more

    def _definition(self, name: str) -> dict[str, Any] | None:
        """The definition; None also for an alias and for another spelling, which the server would resolve."""
        if definition.name_hint(name):
            return None
        found: dict[str, Any] | None = self._connection.rest("get", f"/schema/{name}", without=(404,))
        return found if found is not None and found["class"] == name else None

    def _collection(self, name: str, fresh: bool = False) -> Collection | None:
        with self._lock:
            known = self._known.pop(name, None)
            if known is None or fresh or time.monotonic() - known.read_at > _TRUST:
                found = self._definition(name)
                known = None if found is None else Collection(self._connection, name, found)
            if known is not None:
                self._known[name] = known
            return known

    # Points ---------------------------------------------------------------------------------------------------------

    def count(self, name: str) -> int:
        collection = self._collection(name)
        return 0 if collection is None else collection.count()

    def size_bytes(self, name: str) -> int | None:  # noqa: ARG002 - the server does not tell
        return None

    def cut(self, name: str, parts: int) -> list[KeyRange]:
        collection = self._collection(name)
        return [KeyRange()] if collection is None else collection.cut(parts)

    def scan(
        self, name: str, keys: KeyRange, after: PointId | None = None, batch_size: int = 1000
    ) -> Iterator[PointBatch]:
        collection = self._collection(name, fresh=True)
        if collection is not None:
            yield from collection.scan(keys, after, batch_size)

    def fetch(self, name: str, ids: Sequence[PointId]) -> PointBatch:
        collection = self._collection(name)
        return PointBatch([], {}, Payloads([])) if collection is None else collection.fetch(ids)

    def candidates(self, name: str, where: Sequence[Condition], batch_size: int) -> Iterator[PointBatch]:
        collection = self._collection(name, fresh=True)
        if collection is not None:
            yield from collection.candidates(where, batch_size)

    def search(self, name: str, vector: str, queries: Float32Matrix, limit: int) -> list[list[Hit]]:
        """Permanent where both `limit` and the collection are larger than the server's window of one search."""
        collection = self._collection(name)
        if collection is None or limit < 1:
            return [[] for _ in queries]
        check_queries(name, collection.vectors, vector, queries)
        if limit > MOST_RESULTS and collection.count() > MOST_RESULTS:
            hint = f"Weaviate gives at most {MOST_RESULTS} (QUERY_MAXIMUM_RESULTS)."
            raise Permanent("More hits than one search gives", f"{name}: {limit}", hint)
        lengths = {vector: collection.vectors[vector]}
        distance = definition.schema_of(collection.definition, lengths, None).vector(vector).distance
        tenants = collection.each_tenant()
        return search(self._connection, name, tenants, vector, distance, queries, min(limit, MOST_RESULTS))

    def upsert(self, name: str, batch: PointBatch) -> None:
        collection = self._collection(name) if len(batch) else None
        if collection is not None:
            collection.upsert(batch)
        elif len(batch):  # the server would make one up, with types it guesses
            raise Permanent("No such collection", name, "Create it first.")

    def delete(self, name: str, ids: Sequence[PointId]) -> None:
        collection = self._collection(name)
        if collection is not None:
            collection.delete(ids)

    def problems(self, schema: CollectionSchema, batch: PointBatch) -> list[Problem]:
        found = super().problems(schema, batch)
        bad = [item for item in batch.ids if not canonical_uuid(item)]
        if bad:
            found.append(Problem(BAD_ID, "no UUID in canonical form", "id", tuple(bad[:5]), len(bad)))
        return found
