"""The hand-written loops, and the data they copy: random unit vectors of 384 numbers with a short text."""

from __future__ import annotations

import json
import struct
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg

if TYPE_CHECKING:
    from bench.process import Ground

DIMENSION, BATCH = 384, 1000
_TEXT = "The quick brown fox jumps over the lazy dog, number {}."
_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)


def vectors(start: int, count: int) -> np.ndarray:
    """float32 (count, 384), unit length, the same for the same `start`."""
    matrix = np.random.default_rng(start).standard_normal((count, DIMENSION), dtype=np.float32)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def payload(number: int) -> dict[str, Any]:
    return {"text": _TEXT.format(number), "number": number}


# -- PostgreSQL ----------------------------------------------------------------------------------------------


def fill_pgvector(ground: Ground) -> None:
    """`bench_source` with `ground.points` rows: bigint id, vector(384), jsonb payload."""
    with psycopg.connect(ground.pg_url, autocommit=True) as database:
        database.execute("create extension if not exists vector")
        empty_table(database, "bench_source")
        for start in range(0, ground.points, 10_000):
            count = min(10_000, ground.points - start)
            texts = [json.dumps(payload(start + n)).encode() for n in range(count)]
            copy_rows(database, "bench_source", range(start, start + count), vectors(start, count), texts)
        database.execute("vacuum analyze bench_source")


def empty_table(database: psycopg.Connection[Any], name: str) -> None:
    """id bigint, vector(384), jsonb payload."""
    database.execute(f"drop table if exists {name}")  # type: ignore[arg-type]
    database.execute(
        f"create table {name} (id bigint primary key, embedding vector({DIMENSION}), payload jsonb not null)"  # type: ignore[arg-type]
    )


def copy_rows(database: psycopg.Connection[Any], table: str, ids: Any, matrix: np.ndarray, texts: list[bytes]) -> None:
    """Binary COPY: the fastest way into PostgreSQL that psycopg offers."""
    numbers = np.ascontiguousarray(matrix, dtype=">f4").tobytes()
    size = DIMENSION * 4
    head = struct.pack("!ihh", 4 + size, DIMENSION, 0)
    pieces = [_COPY_HEADER]
    for row, point_id in enumerate(ids):
        text = texts[row]
        pieces += [
            struct.pack("!hiq", 3, 8, point_id), head, numbers[row * size : (row + 1) * size],
            struct.pack("!iB", len(text) + 1, 1), text,
        ]  # fmt: skip
    pieces.append(b"\xff\xff")
    statement = f"copy {table} (id, embedding, payload) from stdin with (format binary)"
    with database.cursor() as cursor, cursor.copy(statement) as copy:  # type: ignore[arg-type]
        copy.write(b"".join(pieces))


def _pages(url: str) -> Any:
    """(ids, float32 matrix, payload texts) by key pages with a binary cursor."""
    with psycopg.connect(url) as database, database.cursor(binary=True) as cursor:
        last = -1
        while True:
            cursor.execute(
                "select id, vector_send(embedding), payload::text from bench_source where id > %s order by id limit %s",
                (last, BATCH),
            )
            rows = cursor.fetchall()
            if not rows:
                return
            joined = b"".join(row[1][4:] for row in rows)
            matrix = np.frombuffer(joined, ">f4").astype(np.float32).reshape(len(rows), DIMENSION)
            yield [row[0] for row in rows], matrix, [row[2].encode() for row in rows]
            last = rows[-1][0]


def pgvector_to_pgvector(ground: Ground) -> float:
    with psycopg.connect(ground.pg_url) as target:
        empty_table(target, "bench_bare")
        target.commit()
        began = time.monotonic()
        for ids, matrix, texts in _pages(ground.pg_url):
            copy_rows(target, "bench_bare", ids, matrix, texts)
            target.commit()
        return time.monotonic() - began


def pgvector_to_parquet(ground: Ground) -> float:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([("id", pa.int64()), ("embedding", pa.list_(pa.float32(), DIMENSION)), ("payload", pa.string())])
    began = time.monotonic()
    with parquet.ParquetWriter(ground.folder / "bare.parquet", schema) as writer:
        for ids, matrix, texts in _pages(ground.pg_url):
            column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), DIMENSION)
            table = pa.table([pa.array(ids), column, pa.array([text.decode() for text in texts])], schema=schema)
            writer.write_table(table)
    return time.monotonic() - began


# -- Milvus --------------------------------------------------------------------------------------------------


def fill_milvus(ground: Ground) -> None:
    """`bench_source` in Milvus Lite: INT64 key, one vector, dynamic fields."""
    from milvus_lite.server_manager import server_manager_instance
    from pymilvus import DataType, MilvusClient

    path = str(ground.folder / "milvus.db")
    client = MilvusClient(path)
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=DIMENSION)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="COSINE")
    client.create_collection("bench_source", schema=schema, index_params=index)
    for start in range(0, ground.points, 5000):
        count = min(5000, ground.points - start)
        rows = [{"id": start + n, "vector": row, **payload(start + n)} for n, row in enumerate(vectors(start, count))]
        client.insert("bench_source", rows)
    client.flush("bench_source")
    client.close()
    server_manager_instance.release_server(path)


def milvus_to_pgvector(ground: Ground) -> float:
    """query_iterator, pages of the batch size, binary COPY, a commit a page."""
    from milvus_lite.server_manager import server_manager_instance
    from pymilvus import MilvusClient

    path = str(ground.folder / "milvus.db")
    client = MilvusClient(path)
    client.load_collection("bench_source")
    with psycopg.connect(ground.pg_url) as target:
        target.execute("create extension if not exists vector")
        empty_table(target, "bench_bare")
        target.commit()
        began = time.monotonic()
        iterator = client.query_iterator("bench_source", batch_size=BATCH, output_fields=["*"])
        while rows := iterator.next():
            matrix = np.array([row.pop("vector") for row in rows], dtype=np.float32)
            ids = [row.pop("id") for row in rows]
            copy_rows(target, "bench_bare", ids, matrix, [json.dumps(dict(row)).encode() for row in rows])
            target.commit()
        seconds = time.monotonic() - began
        iterator.close()
    client.close()
    server_manager_instance.release_server(path)
    return seconds


# -- Qdrant and Weaviate -------------------------------------------------------------------------------------


def _into_qdrant(ground: Ground, client: Any) -> float:
    from qdrant_client import models

    params = models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)
    if client.collection_exists("bench_bare"):
        client.delete_collection("bench_bare")
    client.create_collection("bench_bare", vectors_config=params)
    began = time.monotonic()
    for ids, matrix, texts in _pages(ground.pg_url):
        batch = models.Batch(ids=ids, vectors=matrix.tolist(), payloads=[json.loads(text) for text in texts])
        client.upsert("bench_bare", batch, wait=True)
    seconds = time.monotonic() - began
    client.delete_collection("bench_bare")
    client.close()
    return seconds


def pgvector_to_qdrant(ground: Ground) -> float:
    from qdrant_client import QdrantClient

    return _into_qdrant(ground, QdrantClient(path=str(ground.folder / "qdrant-bare")))


def pgvector_to_qdrant_server(ground: Ground) -> float:
    import os

    from qdrant_client import QdrantClient

    port = int(os.environ.get("VECRUN_TEST_QDRANT_GRPC_PORT", "6334"))
    url = os.environ["VECRUN_TEST_QDRANT_URL"]
    return _into_qdrant(
        ground, QdrantClient(url=url, grpc_port=port, prefer_grpc=True, timeout=60, check_compatibility=False)
    )


def pgvector_to_weaviate(ground: Ground) -> float:
    import os
    import uuid
    from urllib.parse import urlsplit

    import weaviate
    from weaviate.classes.config import Configure, DataType, Property

    url = urlsplit(os.environ["VECRUN_TEST_WEAVIATE_URL"])
    port = int(os.environ.get("VECRUN_TEST_WEAVIATE_GRPC_PORT", "50051"))
    assert url.hostname
    with weaviate.connect_to_local(host=url.hostname, port=url.port or 8080, grpc_port=port) as client:
        client.collections.delete("Bench_bare")
        collection = client.collections.create(
            "Bench_bare", vector_config=Configure.Vectors.self_provided(),
            properties=[Property(name="text", data_type=DataType.TEXT), Property(name="number", data_type=DataType.INT)],
        )  # fmt: skip
        began = time.monotonic()
        with collection.batch.fixed_size(batch_size=BATCH) as batch:
            for ids, matrix, texts in _pages(ground.pg_url):
                for point_id, row, text in zip(ids, matrix, texts, strict=True):
                    batch.add_object(
                        properties=json.loads(text), uuid=str(uuid.UUID(int=point_id)), vector=row.tolist()
                    )
        assert not collection.batch.failed_objects
        seconds = time.monotonic() - began
        client.collections.delete("Bench_bare")
        return seconds
