"""The knowledge base of `vecrun demo --reembed`: its workspace as a user would write it, its texts, its tables."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from runner.demo.stage import Chunk, embedded
from runner.embedder import Embedder
from runner.embedders import config_model as model_config
from runner.embedders import open_embedder
from runner.points import CollectionSchema, Distance, IdKind, Payloads, PointBatch, VectorField, VectorIndex
from runner.stores import config_model, open_store

POINTER, FIRST, WIDE, LAST = "handbook-live", "handbook", "handbook_wide", "handbook_minilm"
QUESTIONS = (
    "How do I import a module?",
    "What does the with statement do?",
    "How do I leave a loop early?",
    "What does yield do?",
    "How do I write a list?",
    "How do I handle an exception?",
)

SETTINGS = """\
apiVersion: vecrun/v1
kind: Workspace

connections:
  kb:
    type: pgvector
    url: ${env:VECRUN_DEMO_PG_URL}
  app-db:
    type: sql
    url: sqlite:///.demo/app.db       # the application's own database: chunks and knowledge_bases

models:
  small: {provider: wordllama, dimension: 64}
  wide: {provider: wordllama, dimension: 256}
  minilm:
    provider: minilm
    too_long: truncate                # texts of more than 256 word pieces are cut
"""

WIDER = """\
apiVersion: vecrun/v1
kind: Reembedding
metadata:
  name: wider
  description: More numbers of the same model, and a name for readers to follow.
spec:
  connection: kb
  collection: handbook
  model: wide
  from_model: small
  text: {field: text}
  documents: {connection: app-db, table: chunks, version_column: embedding_model_version}
  knowledge_base: {connection: app-db, id: 1}
  cutover: {alias: handbook-live}
"""

BETTER = """\
apiVersion: vecrun/v1
kind: Reembedding
metadata:
  name: better
  description: The handbook gets a model that understands more.
spec:
  connection: kb
  collection: handbook-live           # whatever readers are served from
  to: handbook_minilm
  strategy: create_new_collection
  model: minilm
  from_model: wide
  batch_size: 64                      # so that progress is seen
  text: {field: text}
  documents: {connection: app-db, table: chunks, version_column: embedding_model_version}
  knowledge_base: {connection: app-db, id: 1}
  quality:
    k: 10
    min_overlap: 0.1                  # another model finds other things; none at all in common would be a fault
    queries:
      - How do I import a module?
      - What does the with statement do?
      - How do I handle an exception?
  cutover: {alias: handbook-live}
"""

EDITS = """\
apiVersion: vecrun/v1
kind: Reembedding
metadata:
  name: edits
  description: Run this whenever texts have changed.
spec:
  connection: kb
  collection: handbook-live
  strategy: incremental
  model: minilm
  text: {field: text}
  documents: {connection: app-db, table: chunks, version_column: embedding_model_version}
"""

FILES = {
    "vecrun.yaml": SETTINGS,
    "jobs/wider.yaml": WIDER,
    "jobs/better.yaml": BETTER,
    "jobs/edits.yaml": EDITS,
    ".gitignore": "/.demo/\n/state/\n",
}


def open_model(name: str) -> Embedder:
    """A model as the workspace has it."""
    given: dict[str, Any] = yaml.safe_load(SETTINGS)["models"][name]
    return open_embedder(model_config(given["provider"])(**given))


def build(directory: Path, url: str, pieces: Sequence[Chunk], model: Embedder) -> None:
    """The collection, and the application's tables `chunks` and `knowledge_bases`."""
    vectors, identity = embedded(model, [piece.text for piece in pieces]), model.identity()
    index = VectorIndex(type="hnsw", m=16, ef_construction=128)
    vector = VectorField(name="embedding", dimension=identity.dimension, distance=Distance.COSINE, index=index)
    schema = CollectionSchema(name=FIRST, id_kind=IdKind.STRING, id_max_length=256, vectors=(vector,))
    payloads = Payloads([{"topic": one.topic, "position": one.position, "text": one.text} for one in pieces])
    with open_store(config_model("pgvector")(type="pgvector", url=url)) as store:  # type: ignore[call-arg]
        store.create(schema)
        store.upsert(FIRST, PointBatch([one.id for one in pieces], {"embedding": vectors}, payloads))
        store.finish(schema)
    with app_database(directory) as database:
        database.executescript(
            "create table chunks (id integer primary key, topic text, vector_id text unique, embedding_model_version text);"
            "create table knowledge_bases (id integer primary key, name text, embedding_model_info json);"
        )
        rows = [(one.topic, one.id, identity.version) for one in pieces]
        database.executemany("insert into chunks (topic, vector_id, embedding_model_version) values (?, ?, ?)", rows)
        info = {"provider": "wordllama", "model": "l2_supercat", "dimension": 64, "updated_at": "2026-01-05T09:00:00Z"}
        database.execute("insert into knowledge_bases values (1, 'handbook', ?)", (json.dumps(info),))


@contextlib.contextmanager
def app_database(directory: Path) -> Iterator[sqlite3.Connection]:
    """The application's own database, in one transaction."""
    with contextlib.closing(sqlite3.connect(directory / ".demo" / "app.db")) as database, database:
        yield database
