"""`vecrun demo`: a small real knowledge base, moved Milvus → Qdrant → pgvector and back, without any network.

Texts: the documentation topics that ship inside Python. Embeddings: wordllama, whose weights come in its package.
Every step that vecrun does is run as the command a user would type.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

import click
import numpy as np

from runner import workspace
from runner.demo.stage import chunks, embedded, empty, expect, postgres, say, vecrun
from runner.embedder import Embedder
from runner.embedders import config_model as model_config
from runner.embedders import open_embedder
from runner.points import CollectionSchema, Distance, IdKind, Payloads, PointBatch, VectorField, VectorIndex
from runner.stores import config_model, open_store

COLLECTION, TARGET, TABLE = "handbook", "handbook_v2", "handbook"
CHUNK_CHARACTERS = 900
QUESTIONS = (
    "How do I handle an exception?",
    "What does the with statement do?",
    "How are integers formatted in a string?",
    "Which names may a variable have?",
)


def build(directory: Path, model: Embedder) -> int:
    """Fill Milvus Lite and the chunks table. Returns the number of chunks."""
    pieces = chunks(CHUNK_CHARACTERS)
    vectors = embedded(model, [piece.text for piece in pieces])
    store = open_store(config_model("milvus")(type="milvus", uri=str(directory / ".demo" / "milvus.db")))  # type: ignore[call-arg]
    with store:
        schema = CollectionSchema(
            name=COLLECTION,
            id_kind=IdKind.STRING,
            id_max_length=256,
            vectors=(
                VectorField(
                    name="vector", dimension=model.identity().dimension, distance=Distance.COSINE,
                    index=VectorIndex(type="hnsw", m=16, ef_construction=128),
                ),
            ),
        )  # fmt: skip
        store.create(schema)
        for start in range(0, len(pieces), 500):
            part = pieces[start : start + 500]
            payloads = [{"topic": one.topic, "position": one.position, "text": one.text} for one in part]
            store.upsert(
                COLLECTION,
                PointBatch([one.id for one in part], {"vector": vectors[start : start + 500]}, Payloads(payloads)),
            )
        store.finish(schema)
    with contextlib.closing(sqlite3.connect(directory / ".demo" / "app.db")) as database, database:
        database.execute(
            "create table chunks (id integer primary key, topic text not null, vector_id text not null unique)"
        )
        database.executemany(
            "insert into chunks (topic, vector_id) values (?, ?)", [(one.topic, one.id) for one in pieces]
        )
    return len(pieces)


def search_milvus(directory: Path, vectors: np.ndarray) -> list[list[str]]:
    """Texts of the three nearest chunks to each query vector."""
    from milvus_lite.server_manager import server_manager_instance
    from pymilvus import MilvusClient

    client = MilvusClient(str(directory / ".demo" / "milvus.db"))
    try:
        client.load_collection(COLLECTION)
        answers = client.search(COLLECTION, data=vectors.tolist(), limit=3, output_fields=["text"])
        return [[hit["entity"]["text"] for hit in answer] for answer in answers]
    finally:
        client.close()
        server_manager_instance.release_server(str(directory / ".demo" / "milvus.db"))  # else nobody else can open it


def search_qdrant(directory: Path, vectors: np.ndarray) -> list[list[str]]:
    """The same, through the alias that the cutover switched."""
    from qdrant_client import QdrantClient

    client = QdrantClient(path=str(directory / ".demo" / "qdrant"))
    try:
        return [
            [
                str((hit.payload or {})["text"])
                for hit in client.query_points("handbook-live", query=row.tolist(), limit=3).points
            ]
            for row in vectors
        ]
    finally:
        client.close()


def search_pgvector(url: str, vectors: np.ndarray) -> list[list[str]]:
    """The same, through the view that the cutover switched."""
    import psycopg

    query = """select payload ->> 'text' from "handbook-live" order by embedding <=> %s::vector limit 3"""
    with psycopg.connect(url) as connection:
        return [[row[0] for row in connection.execute(query, (str(vector.tolist()),))] for vector in vectors]


def run(directory: Path) -> None:
    """Everything, with what a user would want to read on the way. Raises Failed when something is not as it should."""
    directory = empty(directory)
    workspace.create(directory)
    began = time.monotonic()
    say(
        "A knowledge base: Python's own documentation, embedded with wordllama, in Milvus Lite, with a chunks table in SQLite"
    )
    model = open_embedder(model_config("wordllama")(provider="wordllama"))
    count = build(directory, model)
    click.echo(f"{count:,} chunks, {model.identity().dimension} dimensions")
    with postgres() as url:
        os.environ["VECRUN_DEMO_PG_URL"] = url
        _tour(directory, url, model.embed(QUESTIONS, "query").vectors)
    click.echo(
        f"\nAll of it took {time.monotonic() - began:.0f} s. The workspace is in {directory}: look at jobs/, plans/ and state/."
    )
    click.echo("demo: ok")


def _tour(directory: Path, url: str, questions: np.ndarray) -> None:
    before = search_milvus(directory, questions)
    ids_before = _chunk_ids(directory)
    say("Check the workspace, offline, then the connections")
    vecrun(directory, "validate")
    vecrun(directory, "connections", "test")

    say("1. Milvus → Qdrant. First the plan: what a pull request would show is in plans/milvus-to-qdrant.md")
    vecrun(directory, "plan", "jobs/milvus-to-qdrant.yaml", "-o", "plans/milvus-to-qdrant.json")
    say("Apply exactly that plan, then compare both stores once more")
    vecrun(directory, "apply", "plans/milvus-to-qdrant.json")
    vecrun(directory, "verify", "milvus-to-qdrant")
    _answers("Qdrant", search_qdrant(directory, questions), before)
    moved = sum(old != new for old, new in zip(ids_before, _chunk_ids(directory), strict=True))
    click.echo(f"The chunks table followed: {moved:,} of {len(ids_before):,} vector ids are new")
    expect("the chunks table follows the ids", moved == len(ids_before))
    say("Apply the same job again: nothing is left to do")
    vecrun(directory, "plan", "jobs/milvus-to-qdrant.yaml", "--detailed-exitcode")

    say("2. Qdrant → pgvector (an embedded PostgreSQL)")
    vecrun(directory, "apply", "jobs/qdrant-to-pgvector.yaml", "--auto-approve")
    _answers("pgvector", search_pgvector(url, questions), before)
    vecrun(directory, "plan", "jobs/qdrant-to-pgvector.yaml", "--detailed-exitcode")

    say("Back again: both runs are rolled back, newest first")
    vecrun(directory, "rollback", "qdrant-to-pgvector", "--auto-approve")
    vecrun(directory, "rollback", "milvus-to-qdrant", "--auto-approve")
    expect("the chunks table has its old ids again", _chunk_ids(directory) == ids_before)
    _answers("Milvus, after the rollback", search_milvus(directory, questions), before)
    vecrun(directory, "runs")


def _answers(where: str, found: list[list[str]], wanted: list[list[str]]) -> None:
    """The same texts, in the same order where the scores differ at all."""
    same = sum(set(a) == set(b) for a, b in zip(found, wanted, strict=True))
    click.echo(f"\nSearch in {where}: {same} of {len(wanted)} questions get the same three answers as in Milvus before")
    for question, answer in list(zip(QUESTIONS, found, strict=True))[:2]:
        click.echo(f"  {question}\n    → {' '.join(answer[0].split())[:96]} …")
    expect(f"{where} gives the same answers", same == len(wanted))


def _chunk_ids(directory: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(directory / ".demo" / "app.db")) as database:
        return [row[0] for row in database.execute("select vector_id from chunks order by id")]
