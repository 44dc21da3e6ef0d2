"""Batch operations: documents per second of `vecrun apply` against the store's own bulk call.

20,000 documents of two points each: half of them are tagged, then a quarter deleted. vecrun's figure is the step that
changes them, as its ledger says: every point is fetched, saved beside, written or deleted, and what became of each document is
recorded. The bulk call does none of that: one statement, or the fewest calls that the client takes. Where the store can
copy by itself (PostgreSQL) there is a third figure: save the rows, then change them, in two statements.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import yaml

from bench import process
from bench.process import Ground
from runner.points import CollectionSchema, Distance, IdKind, Payloads, PointBatch, VectorField
from runner.stores import config_model, open_store
from tests import servers

DOCUMENTS, POINTS, DIMENSION = 20_000, 2, 64
#: Share of the documents for a store whose client commits each point by itself.
SLOW = {"qdrant": 0.1}


@dataclass(frozen=True)
class Side:
    """One store: its connection, and what its own bulk calls are. Each takes the ids of points and their payloads."""

    connection: dict[str, Any]
    documents: int
    tag: Callable[[list[str], list[dict[str, Any]]], None]
    delete: Callable[[list[str]], None]
    copy: Callable[[str], float] | None = None  # seconds, with a copy by the store itself


def run(folder: Path, scale: float, rounds: int) -> None:
    """Each store in turn; of each operation the median of the rounds."""
    for name in ("pgvector", "milvus", "qdrant"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with servers.postgres(durable=True) as url:
            count = max(100, int(DOCUMENTS * scale * SLOW.get(name, 1.0)))
            side = {"pgvector": _pgvector, "milvus": _milvus, "qdrant": _qdrant}[name](folder, url, count)
            ground = Ground(folder, url, count)
            found: dict[str, list[tuple[float, ...]]] = {"tag": [], "delete": []}
            for number in range(rounds):
                for operation, rows in found.items():
                    rows.append(_round(ground, side, operation, number))
        for operation, rows in found.items():
            _print(name, operation, side, rows)


def _print(name: str, operation: str, side: Side, rows: list[tuple[float, ...]]) -> None:
    changed = side.documents // (2 if operation == "tag" else 4)
    medians = [statistics.median(one[place] for one in rows) for place in range(len(rows[0]))]
    ratios = [one[1] / one[0] for one in rows]
    text = (
        f"bench documents {name} {operation} vecrun={changed / medians[0]:,.0f}/s bulk={changed / medians[1]:,.0f}/s "
        f"ratio={statistics.median(ratios):.2f}"
    )
    if len(medians) > 2:
        text += (
            f" copied={changed / medians[2]:,.0f}/s of_copied={statistics.median(one[2] / one[0] for one in rows):.2f}"
        )
    print(
        f"{text} documents={changed:,} of {side.documents:,} (rounds: {' '.join(f'{one:.2f}' for one in ratios)})",
        flush=True,
    )


def _round(ground: Ground, side: Side, operation: str, number: int) -> tuple[float, ...]:
    """Seconds of vecrun's step, of the bulk call, and of the bulk call with a copy; each on a fresh collection."""
    _fill(side)
    root = _workspace(ground, side, operation, f"{operation}-{number}")
    seconds, _peak = process.apply(root)
    ours = seconds["edit_documents" if operation == "tag" else "delete_documents"]
    _fill(side)
    chosen = [
        (point, payload)
        for point, payload in _points(side.documents)
        if payload["half" if operation == "tag" else "quarter"] == 1
    ]
    ids, payloads = (
        [point for point, _payload in chosen],
        [payload | {"tags": ["reviewed"]} for _point, payload in chosen],
    )
    began = time.monotonic()
    if operation == "tag":
        side.tag(ids, payloads)
    else:
        side.delete(ids)
    bulk = time.monotonic() - began
    if side.copy is None:
        return ours, bulk
    _fill(side)
    return ours, bulk, side.copy(operation)


def _points(documents: int) -> Iterator[tuple[str, dict[str, Any]]]:
    for document in range(documents):
        for part in range(POINTS):
            yield (
                f"d{document:06}-{part}",
                {
                    "document_id": f"d{document:06}",
                    "half": document % 2,
                    "quarter": int(document % 4 == 3),
                    "text": "a few words " * 5,
                },
            )


def _fill(side: Side) -> None:
    schema = CollectionSchema(
        name="bench", id_kind=IdKind.STRING, id_max_length=64,
        vectors=(VectorField(name="", dimension=DIMENSION, distance=Distance.COSINE),),
    )  # fmt: skip
    rng = np.random.default_rng(5)
    with open_store(config_model(side.connection["type"])(**side.connection)) as store:
        kinds = store.capabilities().id_kinds
        vector = schema.vectors[0].model_copy(update={"name": store.capabilities().default_vector_name})
        schema = schema.model_copy(
            update={"vectors": (vector,), "id_kind": IdKind.STRING if IdKind.STRING in kinds else IdKind.INT_OR_UUID}
        )
        store.drop("bench")
        for left in [one for one in store.collections() if one.startswith("bench__saved_")]:
            store.drop(left)
        schema = store.fit(schema)[0]
        store.create(schema)
        everything = list(_points(side.documents))
        for start in range(0, len(everything), 2000):
            part = everything[start : start + 2000]
            vectors = rng.normal(size=(len(part), DIMENSION)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            ids: list[Any] = [_id(point, kinds) for point, _payload in part]
            store.upsert("bench", PointBatch(ids, {vector.name: vectors}, Payloads([item for _point, item in part])))
        store.finish(schema)


def _id(point: str, kinds: frozenset[IdKind]) -> str | int:
    """Qdrant takes no texts as ids."""
    return point if IdKind.STRING in kinds else int(point[1:7]) * POINTS + int(point[-1])


def _workspace(ground: Ground, side: Side, operation: str, name: str) -> Path:
    root = ground.folder / f"workspace-{name}"
    (root / "jobs").mkdir(parents=True)
    settings = {"apiVersion": "vecrun/v1", "kind": "Workspace", "connections": {"kb": side.connection}}
    (root / "vecrun.yaml").write_text(yaml.safe_dump(settings))
    field, change = (
        ("half", {"operation": "add_tags", "tags": ["reviewed"]})
        if operation == "tag"
        else ("quarter", {"operation": "delete"})
    )
    spec = {
        "connection": "kb",
        "collection": "bench",
        "select": {"where": [{"field": field, "value": 1}]},
        "verify": False,
        **change,
    }
    job = {"apiVersion": "vecrun/v1", "kind": "BatchOperation", "metadata": {"name": "bench"}, "spec": spec}
    (root / "jobs" / "bench.yaml").write_text(yaml.safe_dump(job))
    return root


# -- the stores' own bulk calls ---------------------------------------------------------------------------------------


def _pgvector(_folder: Path, url: str, documents: int) -> Side:
    with psycopg.connect(url) as database:
        database.execute("create extension if not exists vector")

    def statement(*queries: str) -> float:
        began = time.monotonic()
        with psycopg.connect(url) as database:
            for query in queries:
                database.execute(query)
        return time.monotonic() - began

    update = (
        "update bench set payload = jsonb_set(payload, '{tags}', '[\"reviewed\"]') where (payload ->> 'half')::int = 1"
    )
    delete = "delete from bench where (payload ->> 'quarter')::int = 1"

    def copied(operation: str) -> float:
        where = update.split(" where ")[1] if operation == "tag" else delete.split(" where ")[1]
        seconds = statement(
            f"create table bench_kept as select * from bench where {where}", update if operation == "tag" else delete
        )
        statement("drop table bench_kept")
        return seconds

    def tag(_ids: list[str], _payloads: list[dict[str, Any]]) -> None:
        statement(update)

    def remove(_ids: list[str]) -> None:
        statement(delete)

    return Side({"type": "pgvector", "url": url}, documents, tag, remove, copied)


def _milvus(folder: Path, _url: str, documents: int) -> Side:
    uri = str(folder / "bench.db")

    def tag(ids: list[str], payloads: list[dict[str, Any]]) -> None:
        from pymilvus import MilvusClient

        with closing(MilvusClient(uri)) as client:
            client.load_collection("bench")
            field = next(one["name"] for one in client.describe_collection("bench")["fields"] if one["type"] == 101)
            for start in range(0, len(ids), 1000):
                some = ids[start : start + 1000]
                held = client.get("bench", some, output_fields=["*"])
                known = dict(zip(some, payloads[start : start + 1000], strict=True))
                client.upsert("bench", [{**row, **known[row["id"]], field: row[field]} for row in held])

    def delete(ids: list[str]) -> None:
        from pymilvus import MilvusClient

        with closing(MilvusClient(uri)) as client:
            client.load_collection("bench")
            for start in range(0, len(ids), 1000):
                client.delete("bench", ids=ids[start : start + 1000])

    return Side({"type": "milvus", "uri": uri}, documents, tag, delete)


def _qdrant(folder: Path, _url: str, documents: int) -> Side:
    path = str(folder / "qdrant")

    def tag(_ids: list[str], _payloads: list[dict[str, Any]]) -> None:
        from qdrant_client import QdrantClient, models

        with closing(QdrantClient(path=path)) as client:
            half = models.Filter(must=[models.FieldCondition(key="half", match=models.MatchValue(value=1))])
            client.set_payload("bench", {"tags": ["reviewed"]}, points=half)

    def delete(_ids: list[str]) -> None:
        from qdrant_client import QdrantClient, models

        with closing(QdrantClient(path=path)) as client:
            quarter = models.Filter(must=[models.FieldCondition(key="quarter", match=models.MatchValue(value=1))])
            client.delete("bench", points_selector=models.FilterSelector(filter=quarter))

    return Side({"type": "qdrant", "path": path}, documents, tag, delete)
