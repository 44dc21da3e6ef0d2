"""LangChain's two tables, where a row of the first is a collection and the second holds the points of all of them."""

# ruff: noqa: S608

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from runner.errors import Permanent
from runner.points import CollectionSchema, Datatype, IdKind
from runner.store import INDEX, PAYLOAD_FIELD, REFUSED, Capabilities, Problem
from runner.stores.pgvector.catalog import Catalog
from runner.stores.pgvector.config import PgvectorConfig, TableMapping
from runner.stores.pgvector.connection import Pool, install_extension
from runner.stores.pgvector.table import Column, Table

if TYPE_CHECKING:
    from runner.stores.pgvector.connection import Connection

_DOCUMENT, _METADATA = Column("document", "varchar", "varchar"), Column("cmetadata", "jsonb", "jsonb")
_OLD_FIELDS = (_DOCUMENT, Column("cmetadata", "json", "json"), Column("custom_id", "varchar", "varchar"))


class LangChainCatalog(Catalog):
    """Tables as langchain-postgres makes them, or as langchain-community did, whose key was called uuid."""

    def __init__(self, config: PgvectorConfig, pool: Pool) -> None:
        super().__init__(config, pool)
        with self.session("looking at the embedding table") as conn:
            key = self.attributes(conn, config.embedding_table).get("uuid")
        self._old = key is not None and key.key
        self._fields = _OLD_FIELDS if self._old else (_DOCUMENT, _METADATA)

    def capabilities(self) -> Capabilities:
        return replace(
            super().capabilities(),
            id_kinds=frozenset({IdKind.UUID} if self._old else {IdKind.UUID, IdKind.STRING}),
            datatypes=frozenset({Datatype.FLOAT32}),
            max_vectors=1,
            sparse=False,
            aliases=False,
            shared_ids=True,
        )

    def collections(self) -> list[str]:
        with self.session("listing collections") as conn:
            if not self.attributes(conn, self.config.collection_table):
                return []
            query = f"SELECT name FROM {self.relation(self.config.collection_table)} WHERE name IS NOT NULL"
            return sorted({name for (name,) in conn.execute(query)})

    def planned(self, schema: CollectionSchema) -> Table:
        base = "uuid" if self._old else "varchar"
        return replace(super().planned(schema), id_base=base, root=None, fields=self._fields)

    def fit(self, schema: CollectionSchema) -> tuple[CollectionSchema, list[Problem]]:
        names = [item.name for item in self._fields]
        problems = [
            Problem(PAYLOAD_FIELD, f"LangChain's table has only {', '.join(names)}", item.name)
            for item in schema.payload
            if item.name not in names
        ]
        problems += [
            Problem(REFUSED, "LangChain's vector is called embedding", f"vector {item.name}")
            for item in schema.vectors
            if item.name != "embedding"
        ]
        vectors = schema.vectors
        if any(item.index for item in vectors) and not self._typed():
            vectors = tuple(item.model_copy(update={"index": None}) for item in vectors)
            problems.append(
                Problem(INDEX, "the embedding column has no dimension, so it gets no index", "vector embedding")
            )
        fitted = {
            "id_kind": IdKind.UUID if self._old else IdKind.STRING,
            "vectors": vectors,
            "payload": tuple(item.payload_field(indexed=item.base == "jsonb") for item in self._fields),
        }
        return schema.model_copy(update=fitted), problems

    def create(self, schema: CollectionSchema) -> None:
        """The tables, where they are absent, and the row of the collection."""
        vector = schema.vectors[0]
        collections = self.relation(self.config.collection_table)
        embeddings = self.relation(self.config.embedding_table)
        with self.session(f"creating {schema.name}") as conn:
            install_extension(conn)
            with conn.transaction():
                conn.execute(
                    f"CREATE TABLE IF NOT EXISTS {collections} (uuid uuid PRIMARY KEY, name varchar NOT NULL UNIQUE,"
                    " cmetadata json)"
                )
                if not self.attributes(conn, self.config.embedding_table):
                    conn.execute(
                        f"CREATE TABLE {embeddings} (id varchar PRIMARY KEY, collection_id uuid"
                        f" REFERENCES {collections} (uuid) ON DELETE CASCADE,"
                        f" embedding vector({vector.dimension}), document varchar, cmetadata jsonb)"
                    )
                    conn.execute(f"CREATE INDEX ix_cmetadata_gin ON {embeddings} USING gin (cmetadata jsonb_path_ops)")
                if conn.execute(f"SELECT 1 FROM {collections} WHERE name = $1", [schema.name]).fetchone():
                    raise Permanent("The collection exists already", f"LangChain collection {schema.name}")
                size = self.attributes(conn, self.config.embedding_table)["embedding"].size
                if size not in (None, vector.dimension):
                    raise Permanent(
                        "The embedding table has another dimension",
                        f"{self.config.embedding_table}.embedding has {size}, {schema.name} needs {vector.dimension}",
                        "Use another embedding_table, or a column without a dimension.",
                    )
                note = {"vecrun": {"distance": {vector.name: vector.distance}, "dimension": vector.dimension}}
                conn.execute(
                    f"INSERT INTO {collections} (uuid, name, cmetadata) VALUES (gen_random_uuid(), $1, $2::json)",
                    [schema.name, json.dumps(note)],
                )
        self.forget(schema.name)

    def drop(self, table: Table) -> None:
        with self.session(f"dropping {table.schema.name}") as conn, conn.transaction():
            conn.execute(f"DELETE FROM {table.relation} t WHERE {table.filter}")
            relation = self.relation(self.config.collection_table)
            conn.execute(f"DELETE FROM {relation} WHERE uuid = $1::uuid", [table.collection])
        self.forget(table.schema.name)

    def _typed(self) -> bool:
        """Whether the embedding column has a dimension, or will have one because `create` makes it."""
        with self.session("looking at the embedding table") as conn:
            embedding = self.attributes(conn, self.config.embedding_table).get("embedding")
        return embedding is None or embedding.size is not None

    def _look(self, conn: Connection, name: str) -> Table | None:
        if not self.attributes(conn, self.config.collection_table):
            return None
        query = f"SELECT uuid::text, cmetadata -> 'vecrun' FROM {self.relation(self.config.collection_table)}"
        rows = conn.execute(f"{query} WHERE name = $1", [name]).fetchall()
        if len(rows) > 1:  # older tables have no unique name
            raise Permanent("Several LangChain collections have the same name", f"{name} ({len(rows)} rows)")
        mapping = TableMapping(
            id_column="uuid" if self._old else "id",
            vectors={"embedding": "embedding"},
            fields=[item.name for item in self._fields],
            distance=self.config.tables[name].distance if name in self.config.tables else None,
        )
        for collection, note in rows:
            return self._read(conn, name, self.config.embedding_table, mapping, note or {}, collection)
        return None
