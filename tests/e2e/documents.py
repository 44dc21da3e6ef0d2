"""Documents in three systems: points in any store, rows in SQLite or PostgreSQL, files in a folder; and jobs on them.

The file of a document is newer than its chunks: a paragraph has come first, one has changed. Every paragraph is a chunk at
SIZE characters, so that a test knows by itself what has to come of it.
"""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import decimal
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from click.testing import Result

from runner import commands
from runner.embedders.hash import hash_vectors
from runner.plan import Plan
from runner.points import CollectionSchema, Distance, KeyRange, Payload, Payloads, PointBatch, PointId
from runner.store import Store
from runner.stores import config_model, open_store
from tests import worlds
from tests.conftest import watch
from tests.e2e.workspace import Workspace, points_of, run

DIMENSION = 16
#: Characters of a chunk: two paragraphs do not fit into one.
SIZE = 60
TRASH = ".vecrun-trash"
WORDS = ("rice", "train", "music", "stone", "garden")


@dataclass
class Document:
    """One document as the application made it."""

    id: Any
    number: int
    points: list[PointId]

    @property
    def paragraphs(self) -> list[str]:
        """What its chunks say."""
        return [self._say(place, "old") for place in range(2 + self.number % 2)]

    @property
    def renewed(self) -> list[str]:
        """What its file says."""
        return [self._say(9, "new"), self.paragraphs[0], self._say(1, "new"), *self.paragraphs[2:]]

    def _say(self, place: int, age: str) -> str:
        return f"Paragraph {place} of {self.number:04} about {WORDS[(self.number + place) % 5]}, {age} text."

    @property
    def lang(self) -> str:
        return ("de", "en", "fr")[self.number % 3]

    @property
    def tags(self) -> list[str]:
        return [["draft"], ["draft", "old"], []][self.number % 3]

    @property
    def metadata(self) -> dict[str, Any]:
        """What row and points say alike."""
        return {"lang": self.lang, "source": {"owner": f"team {self.number % 4}", "year": 2020 + self.number % 5}}

    @property
    def file(self) -> str:
        return f"sub/{self.id}.txt"

    def payload(self, place: int) -> Payload:
        return {"document_id": self.id, "tags": list(self.tags), "text": self.paragraphs[place], "pos": place,
                "score": self.number / 8} | self.metadata  # fmt: skip


@dataclass
class Library:
    """A workspace with a store `kb`, a relational database `app`, and a folder `library`."""

    ws: Workspace
    connection: dict[str, Any] = field(default_factory=lambda: {"type": "files", "path": "./kb"})
    edition: str = "files"
    database_url: str = ""
    collection: str = "Docs"
    files: dict[str, Any] = field(default_factory=lambda: {"type": "folder", "path": "./files"})
    settings: dict[str, Any] = field(default_factory=dict)
    distance: Distance | None = None
    documents: list[Document] = field(default_factory=list)
    nested: tuple[str, str] | None = None
    fields: dict[str, str] = field(default_factory=lambda: {"position_field": "pos"})

    # making it ------------------------------------------------------------------------------------------------------

    def configure(self, **more: Any) -> None:
        """Write vecrun.yaml; `more` are further keys of it."""
        self.settings |= more
        database = self.database_url
        if database:
            os.environ["VECRUN_TEST_APP"] = database
        body = {
            "apiVersion": "vecrun/v1", "kind": "Workspace",
            "connections": {
                "kb": self.connection, "keep": {"type": "files", "path": "./keep"}, "library": self.files,
                "app": {"type": "sql", "url": "${env:VECRUN_TEST_APP}" if database else "sqlite:///./app.db"},
            },
            "models": {"small": {"provider": "hash", "dimension": DIMENSION}},
            "limits": {"retry_delay": 0.01},
        }  # fmt: skip
        body |= {key: value for key, value in self.settings.items() if key != "connections"}
        body["connections"] |= self.settings.get("connections", {})
        self.ws.write("vecrun.yaml", json.dumps(body))  # JSON is YAML

    def nest(self, metadata: str, text: str) -> None:
        """Payloads as LangChain writes them: everything but the text is one level down. Before `fill`."""
        self.nested = metadata, text
        self.fields = {
            "document_field": f"{metadata}.document_id", "text_field": text, "metadata_field": metadata,
            "tags_field": f"{metadata}.tags", "position_field": f"{metadata}.pos",
        }  # fmt: skip

    def _shaped(self, payload: Payload) -> Payload:
        if self.nested is None:
            return payload
        metadata, text = self.nested
        return {text: payload["text"], metadata: {key: item for key, item in payload.items() if key != "text"}}

    def fill(self, count: int = 30, ids: Sequence[Any] | None = None, tables: str = "") -> None:
        """Points, rows and files of so many documents; `tables`: SQL after those of the application."""
        with self.store() as store:
            capabilities = store.capabilities()
            metric = self.distance or worlds.exact_distance(capabilities)
            schema = worlds.wish(self.collection, capabilities, dimension=DIMENSION, distance=metric)
            names = list(ids) if ids is not None else [f"d{number:04}" for number in range(count)]
            points = iter(worlds.ids_of(schema.id_kind, 3 * len(names)))
            self.documents = [
                Document(name, number, [next(points) for _ in range(2 + number % 2)])
                for number, name in enumerate(names)
            ]
            store.create(schema)
            chunks = [(one, place) for one in self.documents for place in range(len(one.points))]
            self.write_points(store, chunks)
            store.finish(schema)
        for one in self.documents:
            self.ws.write(f"files/{one.file}", "\n\n".join(one.renewed))
        self._tables(tables)

    def write_points(self, store: Store, chunks: Sequence[tuple[Document, int]]) -> None:
        schema = store.inspect(self.collection)
        assert schema is not None
        vectors = hash_vectors([one.paragraphs[place] for one, place in chunks], DIMENSION)
        payloads = Payloads([self._shaped(one.payload(place)) for one, place in chunks])
        ids = [one.points[place] for one, place in chunks]
        store.upsert(self.collection, PointBatch(ids, {schema.vectors[0].name: vectors}, payloads))

    def _tables(self, more: str) -> None:
        postgresql = self.engine.dialect.name == "postgresql"
        key = "bigint" if all(isinstance(one.id, int) for one in self.documents) else "text"
        if postgresql:
            script = f"""
                CREATE TYPE mood AS ENUM ('calm', 'odd');
                CREATE TABLE documents (id {key} PRIMARY KEY, title varchar(80) NOT NULL, file text, body text, meta jsonb,
                    tags text[], amount numeric(30, 15), raw bytea, span interval, mood mood, at timestamptz DEFAULT now(),
                    "Odd Name" int[], length int GENERATED ALWAYS AS (length(title)) STORED);
                CREATE TABLE chunks (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                    document_id {key} NOT NULL REFERENCES documents (id), vector_id text UNIQUE, content text, pos int,
                    tags jsonb, digest bytea, weight real)"""
            odd = ("amount", "raw", "span", "mood", '"Odd Name"')
            values: Any = lambda n: (  # noqa: E731
                decimal.Decimal(f"{n}.100000000000001"), bytes([0, 255, n % 256]), dt.timedelta(days=n, microseconds=n),
                ("calm", "odd")[n % 2], [n, n + 1] if n % 3 else None,
            )  # fmt: skip
            tags: Any = lambda value: value  # noqa: E731
        else:
            script = f"""
                CREATE TABLE documents (id {"INTEGER" if key == "bigint" else "TEXT"} PRIMARY KEY, title TEXT NOT NULL, file TEXT,
                    body TEXT, meta JSON, tags TEXT, odd, "Odd Name" REAL, length INT GENERATED ALWAYS AS (length(title)));
                CREATE TABLE chunks (id INTEGER PRIMARY KEY, document_id NOT NULL REFERENCES documents (id), vector_id TEXT UNIQUE,
                    content TEXT, pos INT, tags JSON, digest BLOB, weight NUMERIC)"""
            odd = ("odd", '"Odd Name"')
            values = lambda n: ([bytes([0, 255, n % 256]), 2**62 + n, 0.1, "text", None][n % 5], n / 3)  # noqa: E731
            tags = lambda value: json.dumps(value, separators=(",", ":"))  # noqa: E731
        with self.transaction() as db:
            for statement in [*script.split(";"), *filter(str.strip, more.split(";"))]:
                db.exec_driver_sql(statement)
            mark = "%s" if postgresql else "?"
            marks = ", ".join([mark] * (6 + len(odd)))
            db.exec_driver_sql(
                f"INSERT INTO documents (id, title, file, body, meta, tags, {', '.join(odd)}) VALUES ({marks})",
                [
                    (one.id, f"About {one.number}", one.file, "\n\n".join(one.paragraphs), _odd_json(one.metadata),
                     tags(one.tags), *values(one.number))
                    for one in self.documents
                ],
            )  # fmt: skip
            rows = [
                (one.id, str(point), one.paragraphs[place], place, json.dumps(one.tags), bytes([place, 254]), place / 3)
                for one in self.documents
                for place, point in enumerate(one.points)
            ]
            db.exec_driver_sql(
                f"INSERT INTO chunks (document_id, vector_id, content, pos, tags, digest, weight) VALUES ({', '.join([mark] * 7)})",
                rows,
            )

    def job(self, name: str, operation: str, select: Mapping[str, Any], **spec: Any) -> Path:
        """Write jobs/NAME.yaml. A key that is None is left out; `documents` and `points` are merged into the usual ones."""
        whole: dict[str, Any] = {
            "connection": "kb", "collection": self.collection, "operation": operation, "select": select,
            "documents": {
                "connection": "app", "table": "documents", "name_column": "title", "file_column": "file", "text_column": "body",
                "metadata_column": "meta", "tags_column": "tags",
                "chunks": {"table": "chunks", "text_column": "content", "position_column": "pos", "tags_column": "tags"},
            },
            "points": self.fields, "files": {"connection": "library"},
        }  # fmt: skip
        if self.shared_ids:
            whole["save_to"] = "keep"
        for key, value in spec.items():
            both = isinstance(value, dict) and isinstance(whole.get(key), dict)
            whole[key] = whole[key] | value if both else value
        body = {"apiVersion": "vecrun/v1", "kind": "BatchOperation", "metadata": {"name": name}}
        body["spec"] = _without_none(whole)
        return self.ws.write(f"jobs/{name}.yaml", json.dumps(body, indent=1))

    # doors ----------------------------------------------------------------------------------------------------------

    def store(self, name: str = "kb") -> Store:
        given = self.connection if name == "kb" else {"type": "files", "path": "./keep"}
        values = {key: self._resolved(key, value) for key, value in given.items()}
        opened = open_store(config_model(given["type"])(**values))
        return watch(self.edition, opened) if name == "kb" else opened

    def _resolved(self, key: str, value: Any) -> Any:
        if key in ("path", "uri") and str(value).startswith("./"):
            return str(self.ws.root / value)
        return os.environ[value[6:-1]] if str(value).startswith("${env:") else value

    @cached_property
    def shared_ids(self) -> bool:
        with self.store() as store:
            return store.capabilities().shared_ids

    @cached_property
    def engine(self) -> sa.Engine:
        if not self.database_url:
            return sa.create_engine(f"sqlite:///{self.ws.root / 'app.db'}", poolclass=sa.NullPool)
        url = sa.make_url(self.database_url).set(drivername="postgresql+psycopg")
        return sa.create_engine(url, poolclass=sa.NullPool)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        with self.engine.begin() as connection:
            yield connection

    def sql(self, *statements: str) -> list[Any]:
        """Run statements; the rows of the last one."""
        with self.transaction() as db:
            found = None
            for statement in statements:
                found = db.exec_driver_sql(statement)
            return [tuple(row) for row in found] if found is not None and found.returns_rows else []

    def planned(self, name: str) -> Plan:
        return commands.plan(self.ws.context(), self.ws.root / f"jobs/{name}.yaml")

    def applied(self, plan: Plan) -> commands.Outcome:
        return commands.apply(self.ws.context(), plan)

    def undone(self, name: str) -> commands.Outcome:
        context = self.ws.context()
        return commands.apply(context, commands.plan_rollback(context, name))

    def do(self, name: str, status: int = 0) -> Result:
        """Plan and apply through the command line."""
        found = run("apply", f"jobs/{name}.yaml", "--auto-approve")
        assert found.exit_code == status, found.output
        return found

    def undo(self, name: str, status: int = 0) -> Result:
        found = run("rollback", name, "--auto-approve")
        assert found.exit_code == status, found.output
        return found

    def report(self, name: str) -> dict[str, dict[str, Any]]:
        """id as text -> what `vecrun report` says of the document."""
        found = run("report", name, "--json")
        assert found.exit_code == 0, found.output
        return {str(one["document"]): one for one in json.loads(found.stdout)["items"]}

    # what stands there ----------------------------------------------------------------------------------------------

    def world(self) -> dict[str, Any]:
        """All that a rollback must bring back, to be compared."""
        found: dict[str, Any] = {}
        with self.store() as store:
            begin = self.collection[:11]
            found["collections"] = sorted(name for name in store.collections() if name.startswith(begin))
            found["points"] = points_of(self._scanned(store))
        if (self.ws.root / "keep").exists():
            with self.store("keep") as store:
                found["collections"] += sorted(f"keep/{name}" for name in store.collections())
        found["tables"] = self.tables()
        folder = self.ws.root / "files"
        found["files"] = {
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }
        return found

    def _scanned(self, store: Store) -> PointBatch:
        schema = store.inspect(self.collection)
        assert schema is not None
        return worlds.concat(list(store.scan(self.collection, KeyRange())), schema)

    def tables(self) -> dict[str, list[str]]:
        """table -> its rows, each as a text of all that stands in it."""
        names = [name for name in sa.inspect(self.engine).get_table_names() if not name.startswith("spatial_")]
        found = {}
        with self.transaction() as db:
            for name in sorted(names):
                if name == self.collection or name == "vecrun_collections":
                    continue
                if db.dialect.name == "postgresql":
                    rows = [row[0] for row in db.exec_driver_sql(f'SELECT t::text FROM "{name}" AS t')]
                else:
                    rows = [repr(tuple(row)) for row in db.exec_driver_sql(f'SELECT * FROM "{name}"')]
                found[name] = sorted(rows)
        return found

    def rows(self, table: str) -> dict[Any, dict[str, Any]]:
        """id -> the row; JSON as values."""
        with self.transaction() as db:
            rows = [dict(row) for row in db.exec_driver_sql(f"SELECT * FROM {table}").mappings()]
        for row in rows:
            for name in ("meta", "tags"):
                row[name] = json.loads(row[name]) if isinstance(row.get(name), str) else row.get(name)
        return {row["id"]: row for row in rows}

    def points(self) -> dict[PointId, tuple[np.ndarray, Payload]]:
        """id -> vector and payload."""
        with self.store() as store:
            held = self._scanned(store)
        (matrix,) = held.vectors.values()
        return {one: (matrix[row], copy.deepcopy(held.payloads.dicts[row])) for row, one in enumerate(held.ids)}

    def of(self, *ids: Any) -> list[Document]:
        """The documents with these ids."""
        known = {str(one.id): one for one in self.documents}
        return [known[str(one)] for one in ids]

    def change_payload(self, point: PointId, **fields: Any) -> None:
        """An application writes fields of a payload; None takes one away."""
        with self.store() as store:
            held = store.fetch(self.collection, [point])
            payload = held.payloads.dicts[0] | fields
            payload = {key: value for key, value in payload.items() if value is not None}
            store.upsert(
                self.collection, PointBatch(held.ids, held.vectors, Payloads([payload]), held.sparse, held.missing)
            )

    def delete_points(self, points: Sequence[PointId]) -> None:
        with self.store() as store:
            store.delete(self.collection, list(points))


def _odd_json(value: Any) -> str:
    """JSON as no program of ours would write it: a rollback must bring back these very bytes."""
    return json.dumps(value, separators=(" ,", ":  "))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None or key == "document_field"}
    return value


def schema_of(library: Library) -> CollectionSchema:
    with library.store() as store:
        schema = store.inspect(library.collection)
    assert schema is not None
    return schema
