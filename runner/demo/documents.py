"""`vecrun demo --documents`: documents of a small real knowledge base are tagged, cut anew and deleted, offline; and all
of it is undone.

Points are in PostgreSQL with pgvector, rows of documents and chunks in SQLite, files in a folder. Every step is the
command a user would type; what stands in all three before and after is compared byte for byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from runner.demo.stage import Chunk, chunks, embedded, empty, expect, postgres, say, vecrun
from runner.embedder import Embedder
from runner.embedders import config_model as model_config
from runner.embedders import open_embedder
from runner.points import CollectionSchema, Distance, IdKind, Payloads, PointBatch, VectorField, VectorIndex
from runner.state import write_atomically
from runner.stores import config_model, open_store

COLLECTION = "handbook"
CHUNK_CHARACTERS, LONGEST_TOPIC = 800, 7_000
SPLIT, DELETED = "with", ("lambda", "yield", "assert")

SETTINGS = """\
apiVersion: vecrun/v1
kind: Workspace

connections:
  kb:
    type: pgvector
    url: ${env:VECRUN_DEMO_PG_URL}
  app-db:
    type: sql
    url: sqlite:///.demo/app.db       # the application's own tables: documents and chunks
  library:
    type: folder                      # or s3
    path: ./.demo/files

models:
  wide: {provider: wordllama, dimension: 256}
"""

#: What all jobs of the demo say alike; YAML below spec.
COMMON = """\
  connection: kb
  collection: handbook
  documents:
    connection: app-db
    table: documents
    name_column: title
    file_column: file
    metadata_column: metadata
    tags_column: tags
    chunks: {table: chunks, text_column: content, position_column: position}
  points: {position_field: position}
"""

TAG = f"""\
apiVersion: vecrun/v1
kind: BatchOperation
metadata:
  name: tag
  description: Whoever reviews the handbook finds the long documents by a tag.
spec:
{COMMON}\
  operation: add_tags
  tags: [long, to-review]
  select:
    where: [{{field: characters, op: gte, value: 4000}}]
"""

RESPLIT = f"""\
apiVersion: vecrun/v1
kind: BatchOperation
metadata:
  name: resplit
  description: Smaller chunks for one document, out of its file.
spec:
{COMMON}\
  files: {{connection: library}}
  operation: reprocess
  reprocess:
    parse: true
    split: {{size: 400}}
    model: wide
  select: {{ids: [{SPLIT}]}}
"""

DELETE = f"""\
apiVersion: vecrun/v1
kind: BatchOperation
metadata:
  name: delete
  description: Three documents have to go, with everything that is kept of them.
spec:
{COMMON}\
  files: {{connection: library}}
  operation: delete
  delete: {{rows: true, files: true}}
  select: {{file: gone.txt}}
"""

FILES = {
    "vecrun.yaml": SETTINGS,
    "jobs/tag.yaml": TAG,
    "jobs/resplit.yaml": RESPLIT,
    "jobs/delete.yaml": DELETE,
    "gone.txt": "".join(f"{name}\n" for name in DELETED),
    ".gitignore": "/.demo/\n/state/\n",
}


@dataclass(frozen=True)
class Picture:
    """Everything a rollback has to bring back, exactly."""

    points: list[tuple[str, str, str]]  # (id, vector, payload)
    documents: list[tuple[Any, ...]]
    chunks: list[tuple[Any, ...]]
    files: dict[str, bytes]
    others: tuple[list[str], list[str]]  # collections, tables of the application's database

    def of(self, document: str) -> list[tuple[str, str, str]]:
        """The points of a document."""
        return [one for one in self.points if json.loads(one[2])["document_id"] == document]


def run(directory: Path, longest: int = LONGEST_TOPIC) -> None:
    """Everything, with what a user would want to read on the way; of topics with at most `longest` characters. Raises
    Failed when something is not as it should."""
    began = time.monotonic()
    given: dict[str, Any] = yaml.safe_load(SETTINGS)["models"]["wide"]
    model = open_embedder(model_config(given["provider"])(**given))
    directory = empty(directory)
    for name, text in FILES.items():
        (directory / name).parent.mkdir(exist_ok=True)
        write_atomically(directory / name, text)
    with postgres() as url:
        os.environ["VECRUN_DEMO_PG_URL"] = url
        say("A knowledge base: Python's own documentation as files, their chunks in PostgreSQL, rows of both in SQLite")
        pieces = chunks(CHUNK_CHARACTERS, longest)
        _build(directory, url, pieces, model)
        click.echo(f"{len({one.topic for one in pieces}):,} documents, {len(pieces):,} chunks")
        _tour(directory, url)
    click.echo(
        f"\nAll of it took {time.monotonic() - began:.0f} s. The workspace is in {directory}: look at vecrun.yaml, jobs/ and state/."
    )
    click.echo("demo: ok")


def _tour(directory: Path, url: str) -> None:
    vecrun(directory, "validate")
    first = _picture(directory, url)

    say("1. Tags for documents that a filter finds, in the payloads and in the rows")
    vecrun(directory, "plan", "jobs/tag.yaml", "-o", "plans/tag.json")
    vecrun(directory, "apply", "plans/tag.json")
    tagged = _picture(directory, url)
    _expect_tags(first, tagged)

    say(f"2. Document {SPLIT!r} is cut anew out of its file: chunks that stay the same keep their points")
    vecrun(directory, "plan", "jobs/resplit.yaml")
    vecrun(directory, "apply", "jobs/resplit.yaml", "--auto-approve")
    split = _picture(directory, url)
    _expect_split(tagged, split)

    say("3. Three documents go: points, rows and files")
    vecrun(directory, "plan", "jobs/delete.yaml", "-o", "plans/delete.json")
    vecrun(directory, "apply", "plans/delete.json", "--auto-approve")
    deleted = _picture(directory, url)
    _expect_deleted(split, deleted)
    say("What became of each, for whoever asks later")
    vecrun(directory, "report", "delete")
    vecrun(directory, "report", "delete", "--format", "csv", "-o", "deleted.csv")
    vecrun(directory, "plan", "jobs/delete.yaml", "--detailed-exitcode")

    say("4. Back, in the other order; after each rollback everything must be what it was")
    for job, before in (("delete", split), ("resplit", tagged), ("tag", first)):
        vecrun(directory, "rollback", job, "--auto-approve")
        _same(before, _picture(directory, url))
    vecrun(directory, "runs")


def _expect_tags(before: Picture, after: Picture) -> None:
    old, new = _payloads(before), _payloads(after)
    wanted = {one for one, payload in old.items() if payload["characters"] >= 4000}
    tagged = {one for one, payload in new.items() if {"long", "to-review"} <= set(payload.get("tags", []))}
    rows = {row[0] for row in after.documents if "long" in json.loads(row[4])}
    click.echo(f"\n{len(tagged):,} points of {len(rows)} documents carry the tags, and their rows do, too")
    expect("exactly the points of long documents are tagged", bool(wanted) and tagged == wanted)
    expect("the rows say the same", rows == {old[one]["document_id"] for one in wanted})
    same = [one[:2] for one in before.points] == [one[:2] for one in after.points]
    expect("no vector has changed", same)


def _expect_split(before: Picture, after: Picture) -> None:
    old, new = before.of(SPLIT), after.of(SPLIT)
    kept = {one[0] for one in old} & {one[0] for one in new}
    click.echo(f"\n{len(old)} chunks became {len(new)}; {len(kept)} of them kept their points")
    expect("there are more, smaller chunks", len(new) > len(old))
    expect("no chunk is larger than asked for", all(len(json.loads(one[2])["text"]) <= 400 for one in new))
    rows = {row[2] for row in after.chunks if row[1] == SPLIT}
    expect("rows and points are of the same chunks", rows == {one[0] for one in new})
    others = [one for one in before.points if json.loads(one[2])["document_id"] != SPLIT]
    expect(
        "other documents are as they were",
        others == [one for one in after.points if json.loads(one[2])["document_id"] != SPLIT],
    )


def _expect_deleted(before: Picture, after: Picture) -> None:
    for name in DELETED:
        expect(f"{name} had points", bool(before.of(name)))
        expect(f"no point of {name} is left", not after.of(name))
        expect(
            f"no row of {name} is left",
            all(row[0] != name for row in after.documents) and all(row[1] != name for row in after.chunks),
        )
        expect(f"the file of {name} is gone", f"{name}.txt" in before.files and f"{name}.txt" not in after.files)
    gone = len(before.points) - len(after.points)
    click.echo(
        f"\n{gone} points, {len(before.chunks) - len(after.chunks)} rows of chunks, {len(DELETED)} documents and files are gone"
    )
    waiting = [name for name in after.files if name.startswith(".vecrun-trash/")]
    expect("the files wait in the trash", len(waiting) == len(DELETED))


def _same(before: Picture, now: Picture) -> None:
    for what in ("points", "documents", "chunks", "files", "others"):
        expect(f"{what} are what they were before", getattr(before, what) == getattr(now, what))
    click.echo(
        f"\nAs before, byte for byte: {len(now.points):,} points, {len(now.documents):,} documents, {len(now.chunks):,} rows "
        f"of chunks, {len(now.files):,} files"
    )


def _payloads(picture: Picture) -> Mapping[str, Any]:
    return {one[0]: json.loads(one[2]) for one in picture.points}


def _build(directory: Path, url: str, pieces: list[Chunk], model: Embedder) -> None:
    """The collection, the application's tables, and a file a document."""
    texts = {one.topic: "" for one in pieces}
    for one in pieces:
        texts[one.topic] = f"{texts[one.topic]}\n\n{one.text}".strip()
    vectors, dimension = embedded(model, [one.text for one in pieces]), model.identity().dimension
    index = VectorIndex(type="hnsw", m=16, ef_construction=128)
    vector = VectorField(name="embedding", dimension=dimension, distance=Distance.COSINE, index=index)
    schema = CollectionSchema(name=COLLECTION, id_kind=IdKind.STRING, id_max_length=256, vectors=(vector,))
    payloads = Payloads(
        [
            {"document_id": one.topic, "characters": len(texts[one.topic]), "position": one.position, "text": one.text}
            for one in pieces
        ]
    )
    with open_store(config_model("pgvector")(type="pgvector", url=url)) as store:  # type: ignore[call-arg]
        store.create(schema)
        store.upsert(COLLECTION, PointBatch([one.id for one in pieces], {"embedding": vectors}, payloads))
        store.finish(schema)
    folder = directory / ".demo" / "files"
    folder.mkdir()
    for topic, text in texts.items():
        (folder / f"{topic}.txt").write_text(text, encoding="utf-8")
    with _app_database(directory) as database:
        database.executescript(
            "create table documents (id text primary key, title text, file text, metadata json, tags json);"
            "create table chunks (id integer primary key, document_id text references documents, vector_id text unique,"
            " content text, position integer);"
        )
        rows = [(topic, f"About {topic}", f"{topic}.txt", json.dumps({"language": "en"}), "[]") for topic in texts]
        database.executemany("insert into documents values (?, ?, ?, ?, ?)", rows)
        database.executemany(
            "insert into chunks (document_id, vector_id, content, position) values (?, ?, ?, ?)",
            [(one.topic, one.id, one.text, one.position) for one in pieces],
        )


def _picture(directory: Path, url: str) -> Picture:
    import psycopg
    from psycopg import sql

    with open_store(config_model("pgvector")(type="pgvector", url=url)) as store:  # type: ignore[call-arg]
        collections = store.collections()
    with psycopg.connect(url) as server:
        query = sql.SQL("select id, embedding::text, payload::text from {} order by id")
        points = server.execute(query.format(sql.Identifier(COLLECTION))).fetchall()
    with _app_database(directory) as database:
        documents = database.execute("select * from documents order by id").fetchall()
        rows = database.execute("select * from chunks order by id").fetchall()
        tables = [
            row[0] for row in database.execute("select name from sqlite_master where type = 'table' order by name")
        ]
    folder = directory / ".demo" / "files"
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return Picture(points, documents, rows, files, (collections, tables))


@contextlib.contextmanager
def _app_database(directory: Path) -> Any:
    """The application's own database, in one transaction."""
    with contextlib.closing(sqlite3.connect(directory / ".demo" / "app.db")) as database, database:
        yield database
