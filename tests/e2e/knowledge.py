"""A knowledge base whose embedding model changes: a collection, its chunks table, and models behind the real HTTP server.

The present vectors are of the model `old` (hashes, 8 numbers), the new ones of `new`: the server of `embedding_server`, with
16 numbers, which counts every text it gives an embedding of.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import Result

from runner.embedders.hash import hash_vectors
from runner.points import CollectionSchema, Distance, IdKind, KeyRange, Payloads, PointBatch, PointId, VectorField
from runner.store import Store
from runner.stores import config_model, open_store
from tests import embedding_server, worlds
from tests.conftest import watch
from tests.e2e.workspace import Workspace, points_of, run

OLD, NEW = 8, 16
KEY = "sk-abcdefgh-1234567890-tail"
#: USD for a million tokens: a price at which a handful of words is money.
PRICE = 1000.0
#: How the present rows say which model they are of, and how rows of the new model do.
BEFORE, AFTER = "hash:old:8", "openai:m:16"


def old_vectors(texts: Sequence[str]) -> np.ndarray:
    return hash_vectors(texts, OLD, "old")


def new_vectors(texts: Sequence[str]) -> np.ndarray:
    """What the server gives for these texts."""
    return hash_vectors(texts, NEW, "m")


@dataclass
class Server:
    """The server outside, seen from a test."""

    root: str

    def set(self, **settings: Any) -> None:
        embedding_server.ask(self.root, "/control", settings)

    def stats(self) -> dict[str, Any]:
        return embedding_server.ask(self.root, "/stats")

    def fresh(self, **settings: Any) -> None:
        """As it was started, and with these settings; nothing counted."""
        self.set(**asdict(embedding_server.Settings(dimension=NEW)) | settings)
        embedding_server.ask(self.root, "/reset", {})

    def reset(self) -> None:
        embedding_server.ask(self.root, "/reset", {})

    def returned(self) -> dict[str, int]:
        """text -> how many usable embeddings of it were given; what vecrun asks on its own account left out."""
        return {text: count for text, count in self.stats()["returned"].items() if text not in ("vecrun", "dimension")}


@dataclass
class Knowledge:
    """One workspace with a store `kb`, a relational database `app`, and the models; `texts` are what the points say."""

    ws: Workspace
    server: Server
    connection: dict[str, Any] = field(default_factory=lambda: {"type": "files", "path": "./kb"})
    model: dict[str, Any] = field(default_factory=dict)
    models: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    texts: dict[PointId, str] = field(default_factory=dict)

    def configure(self, **more: Any) -> None:
        """Write vecrun.yaml; `more` are further keys of it."""
        self.settings |= more
        new = {
            "provider": "openai", "model": "m", "base_url": f"{self.server.root}/v1", "dimension": NEW,
            "api_key": "${env:VECRUN_TEST_KEY}", "price": PRICE, "items": 8,
        }  # fmt: skip
        body = {
            "apiVersion": "vecrun/v1", "kind": "Workspace",
            "connections": {"kb": self.connection, "app": {"type": "sql", "url": "sqlite:///./app.db"}},
            "models": {"old": {"provider": "hash", "model": "old", "dimension": OLD}, "new": new | self.model} | self.models,
            "limits": {"retry_delay": 0.01},
        }  # fmt: skip
        self.ws.write("vecrun.yaml", json.dumps(body | self.settings))  # JSON is YAML

    def job(self, name: str = "change", **spec: Any) -> Path:
        """Write jobs/NAME.yaml: a Reembedding; a key that is None is left out."""
        whole = {
            "connection": "kb", "collection": "docs", "model": "new", "from_model": "old", "text": {"field": "text"},
            "documents": {"connection": "app", "table": "chunks", "version_column": "embedding_model_version"},
            "knowledge_base": {"connection": "app", "id": 1}, "cutover": {"alias": "live"}, "batch_size": 16,
        } | spec  # fmt: skip
        body = {"apiVersion": "vecrun/v1", "kind": "Reembedding", "metadata": {"name": name}}
        return self.ws.write(
            f"jobs/{name}.yaml",
            json.dumps(body | {"spec": {k: v for k, v in whole.items() if v is not None}}, indent=1),
        )

    def store(self) -> Store:
        kind = self.connection["type"]
        config = {key: str(self.ws.root / value) if key == "path" else value for key, value in self.connection.items()}
        return watch(kind, open_store(config_model(kind)(**config)))

    def fill(self, texts: Mapping[Any, str] | int = 40, name: str = "docs", info: str = '{"dimension": 8}') -> None:
        """The collection with old vectors, its rows with their version, and a knowledge base."""
        if isinstance(texts, int):
            texts = {f"p{n:03}": text_of(n) for n in range(texts)}
        kind = IdKind.INT if all(isinstance(one, int) for one in texts) else IdKind.STRING
        schema = CollectionSchema(
            name=name, id_kind=kind, vectors=(VectorField(name="", dimension=OLD, distance=Distance.EUCLID),)
        )
        if self.connection["type"] == "pgvector":
            vectors = (VectorField(name="embedding", dimension=OLD, distance=Distance.EUCLID),)
            schema = schema.model_copy(update={"vectors": vectors})
        with self.store() as store:
            store.create(schema)
            if texts:
                store.upsert(name, self.batch(texts, schema.vectors[0].name))
            store.finish(schema)
        if name == "docs":
            self.texts = dict(texts)
            with self.database() as db:
                db.execute(
                    "CREATE TABLE chunks (id INTEGER PRIMARY KEY, vector_id TEXT, content TEXT, embedding_model_version TEXT)"
                )
                db.execute("CREATE TABLE knowledge_bases (id INTEGER PRIMARY KEY, embedding_model_info JSON)")
                db.execute("INSERT INTO knowledge_bases VALUES (1, ?)", (info,))
                db.executemany(
                    "INSERT INTO chunks (vector_id, content, embedding_model_version) VALUES (?, ?, ?)",
                    [(str(one), text, BEFORE) for one, text in texts.items()],
                )

    def batch(self, texts: Mapping[Any, str], vector: str = "") -> PointBatch:
        payloads = [{"text": text, "n": number} for number, text in enumerate(texts.values())]
        return PointBatch(list(texts), {vector: old_vectors(list(texts.values()))}, Payloads(payloads))

    def say(self, texts: Mapping[Any, str], name: str = "docs") -> None:
        """An application changes texts, in payload and table; the vectors stay as they are."""
        with self.store() as store:
            held = store.fetch(name, list(texts))
            payloads = [item | {"text": texts[one]} for one, item in zip(held.ids, held.payloads.dicts, strict=True)]
            store.upsert(name, PointBatch(held.ids, held.vectors, Payloads(payloads), held.sparse, held.missing))
        with self.database() as db:
            db.executemany(
                "UPDATE chunks SET content = ? WHERE vector_id = ?", [(text, str(one)) for one, text in texts.items()]
            )
        self.texts |= texts

    @contextlib.contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.ws.root / "app.db")) as db, db:
            yield db

    # what stands there ------------------------------------------------------------------------------------------

    def points(self, name: str) -> dict[PointId, tuple[np.ndarray, dict[str, Any]]]:
        """id -> its vector and payload."""
        with self.store() as store:
            schema = store.inspect(name)
            assert schema is not None, f"there is no {name}"
            held = worlds.concat(list(store.scan(name, KeyRange())), schema)
        vector = held.vectors[schema.vectors[0].name]
        return {
            one: (vector[row], item) for row, (one, item) in enumerate(zip(held.ids, held.payloads.dicts, strict=True))
        }

    def versions(self) -> dict[str, str | None]:
        with self.database() as db:
            return dict(db.execute("SELECT vector_id, embedding_model_version FROM chunks"))

    def info(self) -> Any:
        with self.database() as db:
            value = db.execute("SELECT embedding_model_info FROM knowledge_bases WHERE id = 1").fetchone()[0]
        return None if value is None else json.loads(value)

    def world(self) -> dict[str, Any]:
        """All that a rollback must bring back, to be compared."""
        found: dict[str, Any] = {"serving": self.ws.serving()}
        with self.store() as store:
            found["aliases"] = store.aliases()
            for name in store.collections():
                schema = store.inspect(name)
                assert schema is not None
                found[name] = schema
                found[f"{name}:points"] = points_of(worlds.concat(list(store.scan(name, KeyRange())), schema))
        with self.database() as db:
            found["tables"] = sorted(
                row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            )
            found["dump"] = {
                table: db.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in found["tables"]
            }
        return found

    def is_new(self, name: str = "docs_new", *, but: Sequence[PointId] = (), prefix: str = "") -> None:
        """Every point has the new vector of the text it says and its row says so; those of `but` are not there, or old."""
        held, versions = self.points(name), self.versions()
        assert set(held) - set(but) == set(self.texts) - set(but)
        for one, text in self.texts.items():
            if one not in but:
                np.testing.assert_array_equal(held[one][0], new_vectors([prefix + text])[0], str(one))
                assert held[one][1]["text"] == text
        assert {versions[str(one)] for one in self.texts if one not in but} == {AFTER}

    # doors ------------------------------------------------------------------------------------------------------

    def plan(self, name: str = "change") -> dict[str, Any]:
        """The plan, as JSON; saved to plans/NAME.json. The server has forgotten what the plan asked it."""
        found = run("plan", f"jobs/{name}.yaml", "--json", "-o", f"plans/{name}.json")
        assert found.exit_code == 0, found.stderr
        self.server.reset()
        plan: dict[str, Any] = json.loads(found.stdout)["plan"]
        return plan

    def apply(self, name: str = "change", status: int = 0) -> dict[str, Any]:
        """Plan, and apply it; the outcome, or the error."""
        self.plan(name)
        return self.done(run("apply", f"plans/{name}.json", "--json"), status)

    def done(self, found: Result, status: int = 0) -> dict[str, Any]:
        """The outcome or error of a command with --json."""
        assert found.exit_code == status, found.stdout + found.stderr
        out: dict[str, Any] = json.loads(found.stdout)
        return out

    def paid(self, outcome: Mapping[str, Any]) -> None:
        """What a run says that it used is what the server counted."""
        used, stats = outcome["used"], self.server.stats()
        assert (used["requests"], used["tokens"]) == (stats["replies"], stats["tokens"])
        assert abs(used["usd"] - stats["tokens"] * PRICE / 1e6) < 1e-9


def text_of(number: int) -> str:
    """A text of a few words, of its own."""
    words = ("rice", "train", "king", "queen", "music", "water", "stone", "garden", "night", "river")
    return f"text {number} of {words[number % 10]} and {words[number // 10 % 10]}" + " more" * (number % 5)
