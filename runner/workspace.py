"""The files a new workspace starts with: `vecrun init` writes them, the demo runs on them, `jobs/` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from runner.errors import VecrunError
from runner.state import write_atomically

SETTINGS = """\
# yaml-language-server: $schema=./schemas/Workspace.json
apiVersion: vecrun/v1
kind: Workspace

# What jobs may name. Secrets are references: ${env:NAME} or ${file:/path}.
# Paths that start with ./ are taken from here, and so are SQLite files without a leading /.
connections:
  milvus-demo:
    type: milvus
    uri: ./.demo/milvus.db          # a server: http://localhost:19530, with token: ${env:MILVUS_TOKEN}
  qdrant-demo:
    type: qdrant
    path: ./.demo/qdrant            # a server: url: http://localhost:6333, with api_key: ${env:QDRANT_API_KEY}
  pgvector-demo:
    type: pgvector
    url: ${env:VECRUN_DEMO_PG_URL}  # postgresql://user:${env:PGPASSWORD}@host/database
  app-db:
    type: sql
    url: sqlite:///.demo/app.db     # the application's own database, with the chunks table

# Models that turn texts into vectors, for jobs of kind Reembedding.
models:
  words:
    provider: wordllama             # on this machine; an endpoint: provider: openai, with model: and api_key: ${env:OPENAI_API_KEY}
    dimension: 64

# Variables for job templates, and what else differs; chosen with --env or VECRUN_ENV.
environments:
  demo:
    variables: {suffix: v2}
  team:                             # many workers: records in PostgreSQL, partitions through Redis
    state: {database: "${env:VECRUN_DATABASE}"}
    broker: {url: "${env:VECRUN_REDIS}"}

state:
  directory: ./state
  retention: 30d                    # how long a run can be rolled back

limits:
  workers: 2                        # partitions a process works on at once
  runs: 2                           # runs at work at once; further ones wait
"""

MILVUS_TO_QDRANT = """\
# yaml-language-server: $schema=../schemas/VectorMigration.json
apiVersion: vecrun/v1
kind: VectorMigration
metadata:
  name: milvus-to-qdrant
  description: The handbook knowledge base moves from Milvus to Qdrant.
spec:
  source: milvus-demo
  target: qdrant-demo
  collections:
    - from: handbook
      to: handbook_v2
  verify: {mode: full}
  cutover: {alias: handbook-live}
  documents:
    connection: app-db
    table: chunks
    id_column: id
    vector_id_column: vector_id
  accept:
    - code: VL101
      reason: Only the direction of these embeddings is used; Qdrant keeps cosine vectors at length 1.
"""

QDRANT_TO_PGVECTOR = """\
# yaml-language-server: $schema=../schemas/VectorMigration.json
apiVersion: vecrun/v1
kind: VectorMigration
metadata:
  name: qdrant-to-pgvector
  description: The handbook knowledge base moves on from Qdrant into PostgreSQL.
spec:
  source: qdrant-demo
  target: pgvector-demo
  collections:
    - from: handbook_v2
      to: handbook
  verify: {mode: full}
  cutover: {alias: handbook-live}
"""

OTHER_MODEL = """\
# yaml-language-server: $schema=../schemas/Reembedding.json
apiVersion: vecrun/v1
kind: Reembedding
metadata:
  name: other-model
  description: The handbook knowledge base gets vectors of another model, in a collection of its own.
spec:
  connection: milvus-demo
  collection: handbook
  model: words
  text: {field: text}
  cutover: {alias: handbook-words}
  budget: {usd: 1, time: 1h}
"""

FILES = {
    "vecrun.yaml": SETTINGS,
    "jobs/milvus-to-qdrant.yaml": MILVUS_TO_QDRANT,
    "jobs/qdrant-to-pgvector.yaml": QDRANT_TO_PGVECTOR,
    "jobs/other-model.yaml": OTHER_MODEL,
    "plans/README.md": "Saved plans: JSON for `vecrun apply`, Markdown for pull requests. Made with `vecrun plan JOB.yaml -o plans/NAME.json`.\n",
    "state/README.md": "State files, one JSON a job, `serving.json`, and the ledger. Written by vecrun; back it up, do not edit it.\n",
    ".gitignore": "/.demo/\n/state/*\n!/state/README.md\n",
}


def create(directory: Path, more: Mapping[str, str] | None = None) -> list[Path]:
    """Write the files, and `more` (path: text); VecrunError when one is there already, before any is written."""
    paths = {directory / name: text for name, text in (FILES | dict(more or {})).items()}
    for path in paths:
        if path.exists() and path.name != ".gitignore":
            raise VecrunError("A file is in the way", str(path), "Choose an empty folder")
    made = []
    for path, text in paths.items():
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
        made.append(path)
    return made
