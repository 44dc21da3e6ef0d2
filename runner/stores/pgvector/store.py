"""The contract of a store, kept by PostgreSQL."""

# ruff: noqa: S608

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from runner.conditions import Condition
from runner.errors import Permanent, TooLarge
from runner.points import CollectionSchema, Float32Matrix, KeyRange, Payloads, PointBatch, PointId
from runner.store import INDEX, PARTITIONS, Capabilities, ConnectionConfig, Health, Hit, Problem, Store, check_queries
from runner.stores.pgvector import limits
from runner.stores.pgvector.aliases import aliases_of, set_alias, taken
from runner.stores.pgvector.catalog import Catalog
from runner.stores.pgvector.conditions import where_sql
from runner.stores.pgvector.config import PgvectorConfig
from runner.stores.pgvector.connection import Pool
from runner.stores.pgvector.indexes import build_payload_index, build_vector_index, fit_index
from runner.stores.pgvector.langchain import LangChainCatalog
from runner.stores.pgvector.rows import copy, merge, pack, unpack
from runner.stores.pgvector.search import search
from runner.stores.pgvector.table import SPARSE_DIMENSIONS, Table, quoted

_REQUEST_BYTES = 512 << 20  # the server allocates at most 1 GiB for one value
_MERGE_SECONDS = 10.0  # how long after a conflict straight COPY is not tried again
_EXACT_CUT_ROWS = 500_000  # beyond, the boundaries of partitions come from a sample

_HEALTH = """
SELECT current_setting('server_version'), (SELECT extversion FROM pg_extension WHERE extname = 'vector'),
  coalesce(has_schema_privilege(to_regnamespace(quote_ident($1)), 'USAGE'), false),
  coalesce(has_schema_privilege(to_regnamespace(quote_ident($1)), 'CREATE'), false),
  pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on'
"""


class PgvectorStore(Store):
    """Collections in one schema of one database; every thread works on its own connection out of a small pool."""

    type = "pgvector"

    def __init__(self, catalog: Catalog, pool: Pool) -> None:
        self._catalog, self._pool, self._session = catalog, pool, catalog.session
        self._merging: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"PgvectorStore({self._pool.place})"

    @classmethod
    def connect(cls, config: ConnectionConfig) -> PgvectorStore:
        assert isinstance(config, PgvectorConfig)
        pool = Pool(config)
        with pool.session("connecting"):
            pass
        return cls((LangChainCatalog if config.layout == "langchain" else Catalog)(config, pool), pool)

    def capabilities(self) -> Capabilities:
        return self._catalog.capabilities()

    def health(self) -> Health:
        with self._session("testing the connection") as conn:
            schema = self._catalog.config.schema_name
            began = time.perf_counter()
            [(server, extension, usage, create, read_only)] = conn.execute(_HEALTH, [schema])
            latency = (time.perf_counter() - began) * 1000
        rights = [name for name, has in (("read", usage), ("create", create and not read_only)) if has]
        notes = [] if extension else ["the extension vector is not installed in this database"]
        notes += [] if usage else [f"schema {schema} is missing or may not be used"]
        notes += ["the server is read-only"] if read_only else []
        version = f"PostgreSQL {server}" + (f", pgvector {extension}" if extension else "")
        return Health(version, latency, tuple(rights), tuple(notes))

    # Reading

    def collections(self) -> list[str]:
        return self._catalog.collections()

    def inspect(self, name: str) -> CollectionSchema | None:
        table = self._catalog.find(name, fresh=True)
        return table.schema if table else None

    def columns(self, name: str) -> tuple[str, ...]:
        table = self._catalog.find(name)
        return tuple(item.name for item in table.fields) if table is not None else ()

    def count(self, name: str) -> int:
        table = self._catalog.find(name)
        if table is None:
            return 0
        with self._session(f"counting {name}") as conn:
            [(count,)] = conn.execute(f"SELECT count(*) FROM {table.relation} t WHERE {table.filter}")
        return int(count)

    def size_bytes(self, name: str) -> int | None:
        """Table, TOAST and indexes; None for a LangChain collection, which shares its table with others."""
        table = self._catalog.find(name)
        if table is None or table.collection:
            return None
        with self._session(f"measuring {name}") as conn:
            [(size,)] = conn.execute("SELECT pg_total_relation_size($1::oid)", [table.oid])
        return int(size)

    def cut(self, name: str, parts: int) -> list[KeyRange]:
        table = self._catalog.find(name)
        if table is None or parts < 2:
            return [KeyRange()]
        with self._session(f"cutting {name}") as conn:
            [(rows,)] = conn.execute("SELECT reltuples FROM pg_class WHERE oid = $1::oid", [table.oid])
            sample = f"TABLESAMPLE SYSTEM ({100 * _EXACT_CUT_ROWS / rows:.4f})" if rows > _EXACT_CUT_ROWS else ""
            [(ids,)] = conn.execute(
                f"SELECT percentile_disc($1::float8[]) WITHIN GROUP (ORDER BY t.{quoted(table.id_column)})"
                f"::{table.id_type}[]::{table.read_type}[] FROM {table.relation} t {sample} WHERE {table.filter}",
                [[part / parts for part in range(1, parts)]],
            )
        # they come in the order of the database, so equal ones are neighbours
        bounds: list[PointId | None] = [None, *dict.fromkeys(ids or []), None]
        return [KeyRange(low, high) for low, high in pairwise(bounds)]

    def scan(
        self, name: str, keys: KeyRange, after: PointId | None = None, batch_size: int = 1000
    ) -> Iterator[PointBatch]:
        table = self._catalog.find(name)
        if table is None:
            return
        column = f"t.{quoted(table.id_column)}"
        while True:
            bounds = [(sign, key) for sign, key in ((">=", keys.lo), ("<", keys.hi), (">", after)) if key is not None]
            where = [f" AND {column} {sign} ${n}::{table.id_type}" for n, (sign, _) in enumerate(bounds, 1)]
            end = f"{''.join(where)} ORDER BY {column} LIMIT {int(batch_size)}"
            batch = self._read(table, end, [key for _, key in bounds])
            if len(batch):
                yield batch
            if len(batch) < batch_size:
                return
            after = batch.ids[-1]

    def fetch(self, name: str, ids: Sequence[PointId]) -> PointBatch:
        table = self._catalog.find(name)
        if table is None:
            return PointBatch(ids=[], vectors={}, payloads=Payloads([]))
        return self._read(table, f" AND {table.ids_sql()}", [table.possible(ids)])

    def candidates(self, name: str, where: Sequence[Condition], batch_size: int) -> Iterator[PointBatch]:
        """Keyset pages of the rows for which the compiled conditions are true; no vector is read."""
        table = self._catalog.find(name)
        if table is None:
            return
        table, column, values = replace(table, vectors=()), f"t.{quoted(table.id_column)}", list[Any]()
        narrow = where_sql(table, where, values)
        after: list[PointId] = []
        while True:
            beyond = f" AND {column} > ${len(values) + 1}::{table.id_type}" if after else ""
            batch = self._read(table, f"{narrow}{beyond} ORDER BY {column} LIMIT {int(batch_size)}", values + after)
            if len(batch):
                yield PointBatch(batch.ids, {}, batch.payloads)
            if len(batch) < batch_size:
                return
            after = [batch.ids[-1]]

    def search(self, name: str, vector: str, queries: Float32Matrix, limit: int) -> list[list[Hit]]:
        """A few rows are ordered by the operator alone; PostgreSQL decides whether the index is worth it."""
        table = self._catalog.find(name)
        if table is None or limit < 1:
            return [[] for _ in queries]
        check_queries(
            f"collection {name}", {item.name: item.dimension for item in table.schema.vectors}, vector, queries
        )
        with self._session(f"searching {name}") as conn:
            return search(conn, table, vector, queries, limit)

    def _read(self, table: Table, where: str, values: Sequence[Any]) -> PointBatch:
        with self._session(f"reading {table.schema.name}") as conn, conn.cursor(binary=True) as cursor:
            rows = cursor.execute(table.select_sql() + where, values).fetchall()
        return unpack(table, rows)

    # Writing

    def create(self, schema: CollectionSchema) -> None:
        self._catalog.create(schema)

    def finish(self, schema: CollectionSchema) -> None:
        table = self._catalog.find(schema.name, fresh=True)
        if table is None:
            raise _absent(schema.name)
        memory = self._catalog.config.maintenance_work_mem
        with self._session(f"building the indexes of {schema.name}") as conn:
            for vector in schema.vectors:
                build_vector_index(conn, table, vector, memory)
            for field in schema.payload:
                if field.indexed:
                    build_payload_index(conn, table, field, memory)
            conn.execute(f"ANALYZE {table.relation}")
        self._catalog.forget(schema.name)

    def drop(self, name: str) -> None:
        if table := self._catalog.find(name, fresh=True):
            self._catalog.drop(table)

    def upsert(self, name: str, batch: PointBatch) -> None:
        import psycopg

        if not len(batch):
            return
        table = self._catalog.find(name)
        if table is None:
            raise _absent(name)
        if len(set(batch.ids)) < len(batch):
            batch = batch.take(sorted({point_id: row for row, point_id in enumerate(batch.ids)}.values()))
        columns = pack(table, batch)
        if sum(len(piece) for column in columns for piece in column) > _REQUEST_BYTES:
            raise TooLarge("The batch is too large for one request", f"collection {name}, {len(batch)} points")
        with self._session(f"writing to {name}") as conn:
            if table.plain and time.monotonic() > self._merging.get(name, 0.0):
                try:
                    copy(conn, table, columns)
                except psycopg.errors.UniqueViolation:  # a batch that is repeated, or points that are replaced
                    self._merging[name] = time.monotonic() + _MERGE_SECONDS
                else:
                    return
            written = merge(conn, table, columns)
        if written < len(batch):
            raise Permanent(
                "Ids are taken by another collection",
                f"collection {name}: {len(batch) - written} of {len(batch)} ids of this batch",
                "LangChain keeps the ids of all collections in one table; map the ids of this job, or use another database.",
            )

    def delete(self, name: str, ids: Sequence[PointId]) -> None:
        table = self._catalog.find(name)
        if table is None:
            return
        query = f"DELETE FROM {table.relation} t WHERE {table.filter} AND {table.ids_sql()}"
        with self._session(f"deleting from {name}") as conn:
            conn.execute(query, [table.possible(ids)])

    def aliases(self) -> dict[str, str]:
        """Views that `set_alias` made."""
        with self._session("listing aliases") as conn:
            return aliases_of(conn, self._catalog.config.schema_name)

    def alias_taken(self, alias: str) -> str:
        """Tables and views that vecrun did not make are in the way, too."""
        with self._session(f"looking for {alias}") as conn:
            return taken(conn, self._catalog.config.schema_name, alias)

    def set_alias(self, alias: str, name: str | None) -> None:
        """An alias is a view; readers keep the rights they have on it."""
        if not self.capabilities().aliases:
            raise Permanent("Aliases are not supported here", f"alias {alias}", "Use the layout tables.")
        with self._session(f"setting alias {alias}") as conn, conn.transaction():
            set_alias(conn, self._catalog.config.schema_name, alias, name)

    # What fits

    def fit(self, wish: CollectionSchema) -> tuple[CollectionSchema, list[Problem]]:
        schema, problems = super().fit(wish)
        if wish.partitions:
            problems.append(Problem(PARTITIONS, "pgvector collections have no partitions"))
        problems += limits.schema_problems(wish)
        vectors = []
        for item in schema.vectors:
            index, notes = fit_index(item)
            problems += [Problem(INDEX, note, f"vector {item.name}") for note in notes]
            vectors.append(item.model_copy(update={"index": index}))
        sparse = [item.model_copy(update={"dimension": item.dimension or SPARSE_DIMENSIONS}) for item in wish.sparse]
        changes = {"vectors": tuple(vectors), "sparse": tuple(sparse)}
        absent = dict.fromkeys(("id_max_length", "partitions", "partition_key"))
        schema, more = self._catalog.fit(schema.model_copy(update=changes | absent))
        return schema, problems + more

    def problems(self, schema: CollectionSchema, batch: PointBatch) -> list[Problem]:
        table = self._catalog.find(schema.name) or self._catalog.planned(schema)
        texts = batch.payloads.json
        found = [limits.bad_ids(table, batch.ids), *limits.bad_vectors(table, batch)]
        nul, sign = limits.bad_payloads(texts)
        found += [nul, sign]
        if not nul[3] and (table.fields or not table.root):  # a NUL would fail the check for all
            with self._session(f"checking payloads for {schema.name}") as conn:
                found.append(limits.bad_columns(conn, table, texts))
        return super().problems(schema, batch) + [
            Problem(code, message, place, tuple(batch.ids[row] for row in rows[:5]), len(rows))
            for code, message, place, rows in found
            if rows
        ]

    def close(self) -> None:
        self._pool.close()


def _absent(name: str) -> Permanent:
    return Permanent("There is no such collection", name, "A table needs a vector column to be one.")
