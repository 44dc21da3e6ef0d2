"""Documents with rows, chunks, points and files in a workspace of their own: how they are set up, and what must hold.

`build`, `moment` and `ended` run in processes of their own (see `nursery`). What a document becomes is taken from one run
that nobody disturbed, after `meaning` has held that against the texts the documents were made from.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from runner import commands
from runner.commands import open_context
from runner.objects import OBJECTS
from runner.objects.storage import Objects, open_objects
from runner.plan import Change, DocumentRows, Plan, loads
from runner.points import (
    CollectionSchema,
    Distance,
    IdKind,
    KeyRange,
    Payload,
    Payloads,
    PointBatch,
    PointId,
    VectorField,
)
from tests.faults.change import embedder_of
from tests.faults.scene import JOB, opened, place_of

TRASH = ".vecrun-trash"
MODELS = {
    "first": {"provider": "hash", "model": "first", "dimension": 16},
    "second": {"provider": "hash", "model": "second", "dimension": 16},
}
#: Characters of a new chunk: each paragraph is one.
SIZE = 160
Operation = Literal["delete", "metadata", "tags", "parse", "split", "embed"]


@dataclass(frozen=True)
class Task:
    """An operation to be disturbed, and where everything is."""

    operation: Operation
    store: str
    ids: IdKind
    rows: Literal["postgres", "sqlite"]
    files: Literal["folder", "s3"] = "folder"

    def __str__(self) -> str:
        return f"{self.operation}: {self.store}" + (", s3" if self.files == "s3" else "")

    @property
    def chunked(self) -> bool:
        """Whether other chunks come of it."""
        return self.operation in ("parse", "split")

    @property
    def edits(self) -> bool:
        return self.operation in ("metadata", "tags")


@dataclass(frozen=True)
class Text:
    """A document. `old`: its chunks before; `paragraphs`: what a splitter makes of it."""

    id: str
    number: int
    paragraphs: list[str]
    old: list[str]
    file: str | None

    @property
    def text(self) -> str:
        return "\n\n".join(self.paragraphs)


@dataclass(frozen=True)
class Scene:
    """A task with its places. Stored as task.json in the workspace."""

    directory: Path
    task: Task
    name: str
    documents: int
    batch_size: int
    store: dict[str, Any]
    url: str
    files: dict[str, Any]
    delay: float = 0.0
    team: dict[str, Any] | None = None

    @cached_property
    def texts(self) -> list[Text]:
        return [_text(number) for number in range(self.documents)]

    @property
    def wanted(self) -> list[str]:
        """The ids that are selected; of the last nothing is there."""
        return [one.id for one in self.texts if one.number % 4 != 3] + ["nobody"]

    @property
    def rows(self) -> DocumentRows:
        """The tables, as the plan of a run names them."""
        return next(
            step.rows
            for _, plan in self.runs()
            for step in plan.steps
            if isinstance(step, Change) and step.rows is not None
        )

    def runs(self) -> list[tuple[str, Plan]]:
        """All runs of the ledger with their plans."""
        query = "select run, plan from runs order by created, run"
        if self.team:
            import psycopg

            with psycopg.connect(self.team["state"]["database"], options="-c search_path=vecrun") as server:
                return [(row[0], loads(row[1], row[0])) for row in server.execute(query)]
        path = self.directory / "state" / "ledger.db"
        ledger = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)
        with (
            contextlib.closing(ledger),
            contextlib.suppress(sqlite3.OperationalError),
        ):  # killed before there were tables
            return [(row[0], loads(row[1], row[0])) for row in ledger.execute(query)]
        return []

    @contextlib.contextmanager
    def database(self) -> Iterator[tuple[Any, str]]:
        """(an open database, its mark for a value)"""
        if self.task.rows == "sqlite":
            with contextlib.closing(sqlite3.connect(self.directory / "app.db", timeout=30)) as database, database:
                yield database, "?"
        else:
            import psycopg

            with psycopg.connect(self.url) as connection:
                yield connection, "%s"

    def objects(self) -> Objects:
        # as in vecrun.yaml, keys of a bucket are names of variables
        values = {key: os.path.expandvars(str(value).replace("${env:", "${")) for key, value in self.files.items()}
        return open_objects(OBJECTS[self.files["type"]](**values))

    def vectors(self, model: str, texts: list[str]) -> Any:
        """float32 of shape (texts, 16)."""
        return embedder_of(json.dumps(MODELS[model])).embed(texts, "document").vectors

    def point(self, document: int, chunk: int) -> PointId:
        if self.task.ids is IdKind.INT:
            return document * 100 + chunk + 1
        if self.task.ids in (IdKind.UUID, IdKind.INT_OR_UUID):
            return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{document}/{chunk}"))
        return f"d{document:03d} #{chunk}"


def _text(number: int) -> Text:
    """Some chunks are a paragraph already, some are several; one document has no chunks yet, one has twice the same."""
    paragraphs = [
        f"Paragraph {p} of document {number} tells of rivers and of bread, number {number * 7919 % 1009}-{p}. "
        "And so it goes on with what was said of it."
        for p in range(2 + number % 3)
    ]
    if number % 8 == 6:
        paragraphs[1] = paragraphs[0]
    first, rest = paragraphs[0], "\n\n".join(paragraphs[1:])
    shapes = [[first, rest], ["\n\n".join(paragraphs[:2]), *paragraphs[2:]], ["\n\n".join(paragraphs)], paragraphs]
    old = [] if number == 4 else list(shapes[number % 7 % 4])
    file = None if number == 1 else f"docs/{number // 4}/d{number:03d}.txt"
    return Text(f"d{number:03d}", number, paragraphs, old, file)


#: Documents whose row names a file that is not there.
LOST_FILES = {2}


def payload_of(text: Text, position: int) -> Payload:
    """Of a chunk before: what all chunks of a document say alike, and what they do not."""
    return {
        "document_id": text.id, "text": text.old[position], "position": position, "lang": "de", "page": position + 7,
        "tags": _tags(text), "source": {"by": "import", "number": text.number},
    }  # fmt: skip


def _tags(text: Text) -> list[str]:
    return ["old", "kept"] if text.number % 5 else ["old", "seen"]


def _metadata(text: Text) -> dict[str, Any]:
    return {"lang": "de", "source": {"by": "import", "number": text.number}}


# -- setting up ----------------------------------------------------------------------------------------------


def build(
    directory: str, task: dict[str, Any], documents: int, batch_size: int, postgres: str, delay: float = 0.0,
    bucket: dict[str, Any] | None = None, team: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Make the workspace, the collection, the tables and the files."""
    root = Path(directory)
    root.mkdir(parents=True)
    made = Task(**task | {"ids": IdKind(task["ids"])})
    url = place_of("pgvector", root, postgres)["url"] if made.rows == "postgres" else f"sqlite:///{root / 'app.db'}"
    files: dict[str, Any] = {"type": "folder", "path": str(root / "library")}
    if made.files == "s3":
        assert bucket is not None
        files = bucket | {"prefix": root.name}
    else:
        (root / "library").mkdir()
    name = f"F{uuid.uuid4().hex[:8]}"
    store = place_of(made.store, root / "kb", postgres)
    scene = Scene(root, made, name, documents, batch_size, store, url, files, delay, team)
    data = {key: getattr(scene, key) for key in Scene.__dataclass_fields__}
    data |= {"task": asdict(made), "directory": directory}
    (root / "task.json").write_text(json.dumps(data))
    _write_workspace(scene)
    _fill(scene)
    _fill_tables(scene)
    with scene.objects() as objects:
        for one in scene.texts:
            if one.file is not None and one.number not in LOST_FILES:
                objects.write(one.file, one.text.encode())
    (root / "before.json").write_text(json.dumps(picture(scene)))


def load(directory: str) -> Scene:
    """The scene of a workspace."""
    data = json.loads((Path(directory) / "task.json").read_text())
    task = Task(**data["task"] | {"ids": IdKind(data["task"]["ids"])})
    return Scene(**data | {"directory": Path(directory), "task": task})


def _write_workspace(scene: Scene) -> None:
    task = scene.task
    operations: dict[str, dict[str, Any]] = {
        "delete": {"operation": "delete", "delete": {"rows": True, "files": True}},
        "metadata": {
            "operation": "update_metadata",
            "metadata": {"merge": {"lang": "fr", "source": {"by": "audit"}}, "set": {"year": 2026}, "remove": ["page"]},
        },
        "tags": {"operation": "add_tags", "tags": ["seen", "x"]},
        "parse": {"operation": "reprocess", "reprocess": {"parse": True, "split": {"size": SIZE}, "model": "first"}},
        "split": {"operation": "reprocess", "reprocess": {"split": {"size": SIZE}, "model": "first"}},
        "embed": {"operation": "reprocess", "reprocess": {"model": "second"}},
    }
    codes = ("VB104", "VL204", "VD105", "VB106")
    spec = operations[task.operation] | {
        "connection": "kb", "collection": scene.name, "batch_size": scene.batch_size, "select": {"file": "ids.txt"},
        "documents": {
            "connection": "app", "table": "documents", "name_column": "title", "file_column": "file",
            "text_column": "body", "metadata_column": "metadata", "tags_column": "tags",
            "chunks": {
                "table": "chunks", "text_column": "content", "position_column": "position",
                "metadata_column": "metadata", "tags_column": "tags",
            },
        },
        "points": {"position_field": "position"},
        "accept": [{"code": code, "reason": "looked at"} for code in codes],
    }  # fmt: skip
    if task.operation in ("delete", "parse"):
        spec["files"] = {"connection": "library"}
    connections = {"kb": scene.store, "app": {"type": "sql", "url": scene.url}, "library": scene.files}
    workspace = {
        "apiVersion": "vecrun/v1", "kind": "Workspace", "connections": connections,
        "models": {name: config | {"delay": scene.delay, "items": 16} for name, config in MODELS.items()},
        "limits": {"workers": 2, "retry_delay": 0.1}, "vectors": {"keep": "0s"},
    } | (scene.team or {})  # fmt: skip
    job = {"apiVersion": "vecrun/v1", "kind": "BatchOperation", "metadata": {"name": JOB}, "spec": spec}
    (scene.directory / "jobs").mkdir()
    (scene.directory / "vecrun.yaml").write_text(yaml.safe_dump(workspace))
    (scene.directory / "jobs" / f"{JOB}.yaml").write_text(yaml.safe_dump(job))
    (scene.directory / "ids.txt").write_text("".join(f"{one}\n" for one in scene.wanted))


def _fill(scene: Scene) -> None:
    with opened(scene.store) as store:
        vector = store.capabilities().default_vector_name
        ids = scene.task.ids
        schema = CollectionSchema(
            name=scene.name, id_kind=ids, id_max_length=200 if ids is IdKind.STRING else None,
            vectors=(VectorField(name=vector, dimension=16, distance=Distance.EUCLID),),
        )  # fmt: skip
        schema, _ = store.fit(schema)
        store.create(schema)
        chunks = [(one, position) for one in scene.texts for position in range(len(one.old))]
        vectors = scene.vectors("first", [one.old[position] for one, position in chunks])
        points = PointBatch(
            [scene.point(one.number, position) for one, position in chunks], {schema.vectors[0].name: vectors},
            Payloads([payload_of(one, position) for one, position in chunks]),
        )  # fmt: skip
        for start in range(0, len(points), 500):
            store.upsert(scene.name, points.slice(start, start + 500))
        store.finish(schema)


def _fill_tables(scene: Scene) -> None:
    postgres = scene.task.rows == "postgres"
    key, array = ("serial", "text[]") if postgres else ("integer", "json")
    with scene.database() as (database, mark):
        database.execute(
            "create table documents (id text primary key, title text, file text, body text, metadata json, tags json)"
        )
        database.execute(
            f"create table chunks (id {key} primary key, document_id text not null references documents, "
            f"vector_id text unique, content text, position integer, metadata json, tags {array}, "
            "unique (document_id, position))"
        )
        marks = [mark] * 7
        for one in scene.texts:
            row = (
                one.id,
                f"About {one.number}",
                one.file,
                one.text,
                json.dumps(_metadata(one)),
                json.dumps(_tags(one)),
            )
            database.execute(f"insert into documents values ({', '.join(marks[:6])})", row)
            for position, text in enumerate(one.old):
                tags: Any = _tags(one) if postgres else json.dumps(_tags(one))
                chunk = (one.id, str(scene.point(one.number, position)), text, position)
                database.execute(
                    "insert into chunks (document_id, vector_id, content, position, metadata, tags) "
                    f"values ({', '.join(marks[:6])})",
                    (*chunk, json.dumps(_metadata(one)), tags),
                )


# -- the world -----------------------------------------------------------------------------------------------


def picture(scene: Scene) -> dict[str, Any]:
    """Everything there is: points {id: [vectors, payload]}, rows, files, and which collections and tables there are."""
    points: dict[str, list[str]] = {}
    with opened(scene.store) as store:
        names = [name for name in store.collections() if name.startswith(scene.name)]
        for batch in store.scan(scene.name, KeyRange(), None, 500):
            for row, one in enumerate(batch.ids):
                vectors = {name: column[row].tobytes().hex() for name, column in batch.vectors.items()}
                assert str(one) not in points, f"{one!r} came twice"
                points[str(one)] = [json.dumps(vectors), json.dumps(batch.payloads.dicts[row], sort_keys=True)]
        assert store.count(scene.name) == len(points)
    with scene.database() as (database, _):
        postgres = scene.task.rows == "postgres"
        told = "metadata::text, tags::text" if postgres else "metadata, tags"
        documents = database.execute(f"select id, title, file, body, {told} from documents order by id").fetchall()
        chunks = database.execute(
            f"select id, document_id, vector_id, content, position, {told} from chunks order by id"
        ).fetchall()
        query = "select table_name from information_schema.tables where table_schema = 'public' order by 1"
        if not postgres:
            query = "select name from sqlite_master where type = 'table' order by 1"
        there = [row[0] for row in database.execute(query).fetchall()]
    with scene.objects() as objects:
        files = {one.key: objects.read(one.key).decode() for one in objects.list()}
    return {
        "points": points, "documents": {row[0]: list(row) for row in documents},
        "chunks": {row[2]: list(row) for row in chunks}, "files": files, "collections": names, "tables": there,
    }  # fmt: skip


def report(scene: Scene) -> list[list[Any]]:
    """What the newest run says of each document."""
    found = commands.documents(open_context(scene.directory), JOB)
    return [[str(one.document), one.status, one.points, one.rows, one.file, one.error] for one in found.items]
