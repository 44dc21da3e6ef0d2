"""The store: one Qdrant with its collections and aliases."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from runner.conditions import Condition
from runner.errors import NotFound, Permanent
from runner.points import CollectionSchema, Datatype, Distance, Float32Matrix, IdKind, KeyRange, PointBatch, PointId
from runner.store import Capabilities, ConnectionConfig, Health, Hit, Problem, Store
from runner.stores.qdrant import definition, limits
from runner.stores.qdrant.collection import Collection
from runner.stores.qdrant.config import QdrantConfig
from runner.stores.qdrant.connection import Connection
from runner.stores.qdrant.search import search

#: `finish` waits this long (s) for the indexes. Qdrant goes on building them alone and answers exactly meanwhile.
_INDEX_WAIT = 20.0


class QdrantStore(Store):
    """A Qdrant server, or the client's local mode."""

    type = "qdrant"

    def __init__(self, connection: Connection) -> None:
        self._connection, self._client = connection, connection.client
        self._place, self._timeout = connection.config.place, connection.config.timeout

    def __repr__(self) -> str:
        return f"QdrantStore({self._place})"

    @classmethod
    def connect(cls, config: ConnectionConfig) -> Store:
        assert isinstance(config, QdrantConfig)
        return cls(Connection.open(config))

    def capabilities(self) -> Capabilities:
        local = self._connection.local
        return Capabilities(
            id_kinds=frozenset({IdKind.INT, IdKind.UUID, IdKind.INT_OR_UUID}),
            distances=frozenset(definition.DISTANCES),
            default_vector_name="",
            id_int_range=(0, 2**64 - 1),
            datatypes=frozenset(Datatype),
            max_dimension=65_536,
            max_vectors=256,  # Qdrant sets no limit; each one costs files in every segment
            sparse=True,
            missing_vectors=True,
            normalises=frozenset({Distance.COSINE}),
            aliases=True,
            partition_key=not local,
            parallel=not local,
            exclusive=local,
            durable=self._connection.config.path != ":memory:",
        )

    def health(self) -> Health:
        return self._connection.health()

    def close(self) -> None:
        self._connection.close()

    # Collections ----------------------------------------------------------------------------------------------------

    def collections(self) -> list[str]:
        with self._connection.calling("list collections"):
            return sorted(item.name for item in self._client.get_collections().collections)

    def inspect(self, name: str) -> CollectionSchema | None:
        """`id_kind` is what the points have now; a collection without points could take both: INT_OR_UUID."""
        if name not in self.collections() or (info := self._connection.info(name)) is None:
            return None
        collection = Collection(self._connection, name)
        shard_keys = sorted(collection.shard_keys) if definition.is_sharded(info.config.params) else None
        id_kind = collection.id_kind(definition.declared_id_kind(info))
        return definition.schema_of(name, info, id_kind, shard_keys, local=self._connection.local)

    def count(self, name: str) -> int:
        with suppress(NotFound), self._connection.calling(f"count {name}"):
            return int(self._client.count(name, exact=True, timeout=self._timeout).count)
        return 0

    def size_bytes(self, name: str) -> int | None:
        """Only local mode has files within reach; a server does not tell."""
        path = self._connection.config.path
        folder = Path(path or "") / "collection" / name
        if path in (None, ":memory:") or not folder.is_dir():
            return None
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    def fit(self, wish: CollectionSchema) -> tuple[CollectionSchema, list[Problem]]:
        schema, problems = super().fit(wish)
        schema, more = definition.fit(wish, schema, local=self._connection.local)
        return schema, problems + more

    def create(self, schema: CollectionSchema) -> None:
        """On a server without HNSW graphs and quantization: `finish` builds both once, after the load."""
        arguments = definition.create_arguments(schema, local=self._connection.local)
        with self._connection.calling(f"create {schema.name}"):
            self._client.create_collection(schema.name, timeout=self._timeout, **arguments)

    def finish(self, schema: CollectionSchema) -> None:
        """Payload indexes first (HNSW links along them), then HNSW and quantization. Waits up to 20 s for green:
        Qdrant goes on optimising by itself and answers exactly from what is not indexed yet.
        """
        if self._connection.local:
            return
        from qdrant_client import models

        now = self.inspect(schema.name)
        if now is None:
            raise NotFound("There is no such collection", f"{self._place}: {schema.name}")
        for field in schema.payload:  # one that is there is left alone by the server
            if field.indexed:
                with self._connection.calling(f"index {field.name} of {schema.name}"):
                    self._client.create_payload_index(
                        schema.name,
                        field_name=field.name,
                        field_schema=definition.payload_index(schema, field),
                        wait=True,
                        timeout=self._timeout,
                    )
        # only what differs: an update stops the optimiser in the middle of its work
        built = {item.name: item.index for item in now.vectors}
        changed = {
            item.name: models.VectorParamsDiff(**definition.index_arguments(item))
            for item in schema.vectors
            if built.get(item.name) != item.index
        }
        if changed:
            with self._connection.calling(f"index vectors of {schema.name}"):
                self._client.update_collection(schema.name, vectors_config=changed, timeout=self._timeout)
            time.sleep(0.2)  # the optimiser needs a moment to notice; until then the status is still green
        self._wait_for_index(schema.name)

    def _wait_for_index(self, name: str) -> None:
        deadline = time.monotonic() + _INDEX_WAIT
        while (info := self._connection.info(name)) and info.status.value == "yellow" and time.monotonic() < deadline:
            time.sleep(0.25)
        if info and info.status.value == "red":
            where = f"{self._place}: {name}: {info.optimizer_status}"
            raise Permanent("Qdrant reports a broken collection", where)

    def drop(self, name: str) -> None:
        if name in self.collections():
            with self._connection.calling(f"drop {name}"):
                self._client.delete_collection(name, timeout=self._timeout)

    def aliases(self) -> dict[str, str]:
        with self._connection.calling("list aliases"):
            return {item.alias_name: item.collection_name for item in self._client.get_aliases().aliases}

    def set_alias(self, alias: str, name: str | None) -> None:
        from qdrant_client import models

        current = self.aliases().get(alias)
        if current == name:
            return
        actions: list[Any] = []
        if current is not None:
            actions.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
        if name is not None:
            create = models.CreateAlias(collection_name=name, alias_name=alias)
            actions.append(models.CreateAliasOperation(create_alias=create))
        with self._connection.calling(f"alias {alias}"):  # the actions of one call are applied as one
            self._client.update_collection_aliases(change_aliases_operations=actions, timeout=self._timeout)

    # Points ---------------------------------------------------------------------------------------------------------

    def cut(self, name: str, parts: int) -> list[KeyRange]:
        """Boundaries are quantiles of all ids, or of a random sample of 10,000 where there are more."""
        return Collection(self._connection, name).cut(parts)

    def scan(
        self, name: str, keys: KeyRange, after: PointId | None = None, batch_size: int = 1000
    ) -> Iterator[PointBatch]:
        return Collection(self._connection, name).scan(keys, after, batch_size)

    def fetch(self, name: str, ids: Sequence[PointId]) -> PointBatch:
        return Collection(self._connection, name).fetch(ids)

    def candidates(self, name: str, where: Sequence[Condition], batch_size: int) -> Iterator[PointBatch]:
        return Collection(self._connection, name).candidates(where, batch_size)

    def search(self, name: str, vector: str, queries: Float32Matrix, limit: int) -> list[list[Hit]]:
        return search(self._connection, name, vector, queries, limit)

    def upsert(self, name: str, batch: PointBatch) -> None:
        if len(batch):
            Collection(self._connection, name).upsert(batch)

    def delete(self, name: str, ids: Sequence[PointId]) -> None:
        Collection(self._connection, name).delete(ids)

    def problems(self, schema: CollectionSchema, batch: PointBatch) -> list[Problem]:
        return super().problems(schema, batch) + limits.problems(schema, batch, local=self._connection.local)
