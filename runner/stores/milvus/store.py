"""The store: one database of a Milvus server, or one Milvus Lite directory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from runner.conditions import Condition
from runner.errors import Permanent, StoreError, TooLarge
from runner.points import CollectionSchema, Datatype, Float32Matrix, IdKind, KeyRange, Payloads, PointBatch, PointId
from runner.store import Capabilities, ConnectionConfig, Health, Hit, Problem, Store
from runner.stores.milvus import definition, indexes, limits
from runner.stores.milvus import lite as lite_files
from runner.stores.milvus.collection import Collection
from runner.stores.milvus.config import MilvusConfig
from runner.stores.milvus.connection import Connection
from runner.stores.milvus.errors import ABSENT, translated
from runner.stores.milvus.layout import MAX_VARCHAR, planned

#: Seconds an index may stand still before `finish` leaves it to the server.
_STANDSTILL = 60.0


class MilvusStore(Store):
    """One database of a Milvus server, or one Milvus Lite directory."""

    type = "milvus"

    def __init__(self, connection: Connection, config: MilvusConfig) -> None:
        self._connection, self._config = connection, config

    def __repr__(self) -> str:
        return f"MilvusStore({self._connection.address})"

    @classmethod
    def connect(cls, config: ConnectionConfig) -> MilvusStore:
        assert isinstance(config, MilvusConfig)
        return cls(Connection(config), config)

    def capabilities(self) -> Capabilities:
        lite, modern = self._connection.lite, self._connection.modern
        return Capabilities(
            id_kinds=frozenset({IdKind.INT, IdKind.UUID, IdKind.STRING}),
            distances=frozenset(indexes.METRICS),
            default_vector_name="vector",
            # A server never returns a key of 2^63-1 (its merge uses it as the end) and cannot parse -2^63.
            id_int_range=(-(2**63) + 1, 2**63 - 2),
            id_max_bytes=MAX_VARCHAR,
            # 2.3 takes float16 and finds nothing right in it
            datatypes=frozenset({Datatype.FLOAT32, Datatype.FLOAT16} if modern and not lite else {Datatype.FLOAT32}),
            max_dimension=32_768,
            max_vectors=4 if modern else 1,
            sparse=modern,
            aliases=True,
            partitions=True,
            partition_key=True,
            parallel=not lite,
            exclusive=self._connection.path is not None,
        )

    def health(self) -> Health:
        start = time.perf_counter()
        version = str(self._connection.ask("get_server_version"))
        latency = (time.perf_counter() - start) * 1000
        load = "are loaded when they are read" if self._connection.loads else "cannot be read (setting `load`)"
        return Health(version, latency, self._connection.roles(), (f"collections that are not loaded {load}",))

    def close(self) -> None:
        """The last user of a Milvus Lite directory in this process stops its server, so that others can open it."""
        self._connection.close()

    # Collections ----------------------------------------------------------------------------------------------------

    def collections(self) -> list[str]:
        return sorted(self._connection.ask("list_collections"))

    def inspect(self, name: str) -> CollectionSchema | None:
        collection = self._collection(name)
        return None if collection is None else collection.schema()

    def fit(self, wish: CollectionSchema) -> tuple[CollectionSchema, list[Problem]]:
        """Payloads go into the dynamic field, so no payload field is declared but the partition key."""
        schema, problems = super().fit(wish)
        schema, more = limits.fit(schema, self.capabilities())
        return schema, problems + more

    def create(self, schema: CollectionSchema) -> None:
        """Makes the indexes at once and loads: Milvus builds them segment by segment, and nothing else can be counted.

        A collection that is indexed only in `finish` must be released for that, and could not be read after a crash.
        """
        where = self._connection.place(schema.name)
        if self._connection.ask("has_collection", schema.name):
            raise Permanent("The collection exists already", where, "Choose another name, or drop it first.")
        if self._connection.path:
            lite_files.clear(self._connection.path, schema.name)
        with translated(where):
            made = definition.pymilvus_schema(schema)
        self._connection.ask("create_collection", schema.name, schema=made)
        try:
            for partition in schema.partitions or ():
                self._connection.ask("create_partition", schema.name, partition)
            self._make_ready(schema)
        except StoreError:
            with contextlib.suppress(StoreError):
                self.drop(schema.name)
            raise

    def finish(self, schema: CollectionSchema) -> None:
        """Seal what was written, create indexes that are not there, load, and wait for them while they get on."""
        with contextlib.suppress(TooLarge):
            # Servers allow one flush of a collection in ten seconds. Points are durable without it, and segments are
            # sealed by time too, so a refused flush costs nothing but speed.
            self._connection.ask("flush", schema.name, timeout=None)
        self._make_ready(schema)
        fewest, since = None, time.monotonic()
        while time.monotonic() - since < _STANDSTILL:
            pending = sum(item.pending_index_rows for item in self._connection.indexes(schema.name).values())
            if not pending:
                return
            if pending != fewest:
                fewest, since = pending, time.monotonic()
            time.sleep(0.5)

    def _make_ready(self, schema: CollectionSchema) -> None:
        """Index every vector that has no index, and load. Not with pymilvus' create_index: its form of the parameters
        is ignored by Lite, and it waits for ever."""
        there = self._connection.indexes(schema.name)
        for field, params in indexes.wanted(schema).items():
            if field not in there:
                pairs = [{"key": key, "value": value} for key, value in params.items()]
                fields = {"field_name": field, "index_name": field, "extra_params": pairs}
                self._connection.send("CreateIndex", self._connection.request("CreateIndex", schema.name, **fields))
        self._connection.load(schema.name)

    def drop(self, name: str) -> None:
        if self._collection(name) is None:
            return
        for alias in self._aliases_of(name):  # newer servers refuse to drop what an alias points at
            self._connection.ask("drop_alias", alias)
        self._connection.ask("drop_collection", name)

    def aliases(self) -> dict[str, str]:
        return {alias: name for name in self.collections() for alias in self._aliases_of(name)}

    def set_alias(self, alias: str, name: str | None) -> None:
        now = self.aliases().get(alias)
        if name == now:
            return
        if name is None:
            self._connection.ask("drop_alias", alias)
        else:
            self._connection.ask("create_alias" if now is None else "alter_alias", name, alias)

    def _aliases_of(self, name: str) -> list[str]:
        return list(self._connection.ask("list_aliases", name)["aliases"])

    def _collection(self, name: str) -> Collection | None:
        return Collection.find(self._connection, name)

    # Points ---------------------------------------------------------------------------------------------------------

    def count(self, name: str) -> int:
        """Exact, at Strong consistency. Rows that were *inserted* twice under one key count twice, as Milvus counts."""
        collection = self._collection(name)
        return 0 if collection is None else collection.count()

    def size_bytes(self, name: str) -> int | None:  # noqa: ARG002 - Milvus does not tell
        return None

    def cut(self, name: str, parts: int) -> list[KeyRange]:
        collection = self._collection(name)
        return [KeyRange()] if collection is None else collection.cut(parts)

    def scan(
        self, name: str, keys: KeyRange, after: PointId | None = None, batch_size: int = 1000
    ) -> Iterator[PointBatch]:
        collection = self._collection(name)
        if collection is not None:
            yield from collection.scan(keys, after, batch_size)

    def fetch(self, name: str, ids: Sequence[PointId]) -> PointBatch:
        collection = self._collection(name)
        return PointBatch([], {}, Payloads([])) if collection is None else collection.fetch(ids)

    def candidates(self, name: str, where: Sequence[Condition], batch_size: int) -> Iterator[PointBatch]:
        collection = self._collection(name)
        if collection is not None:
            yield from collection.candidates(where, batch_size)

    def search(self, name: str, vector: str, queries: Float32Matrix, limit: int) -> list[list[Hit]]:
        collection = self._collection(name)
        return [[] for _ in queries] if collection is None or limit < 1 else collection.search(vector, queries, limit)

    def upsert(self, name: str, batch: PointBatch) -> None:
        if not len(batch):
            return
        collection = self._collection(name)
        if collection is None:
            raise Permanent(ABSENT, self._connection.place(name), "Create it first.")
        collection.upsert(batch)

    def delete(self, name: str, ids: Sequence[PointId]) -> None:
        collection = self._collection(name)
        if collection is not None:
            collection.delete(ids)

    def problems(self, schema: CollectionSchema, batch: PointBatch) -> list[Problem]:
        """Beside the base's: sparse vectors, the 64 KB of a payload, and the typed fields of an existing collection."""
        found = super().problems(schema, batch)
        for item in schema.sparse:
            found += limits.bad_sparse(item.name, batch)
        collection = self._collection(schema.name)
        return found + limits.bad_payloads(planned(schema) if collection is None else collection.layout, batch)
