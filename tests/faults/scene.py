"""One migration in a workspace of its own: how it is set up, and what the world must be before and after it.

`build` and `check` run in processes of their own (see `nursery`), so that no client of theirs lives on.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from runner.commands import open_context
from runner.plan import Place
from runner.points import IdKind, Payloads, PointBatch
from runner.state import States
from runner.store import Store
from runner.stores import config_model, open_store
from runner.transform import IdMode, map_id
from tests import servers
from tests.faults.truth import PAYLOADS, Counts, Truth, compare

JOB = "move"
KEEP_AS = "_vecrun_id"
TYPES = {
    "files": "files",
    "milvus-lite": "milvus",
    "milvus-server": "milvus",
    "pgvector": "pgvector",
    "qdrant-local": "qdrant",
    "qdrant-server": "qdrant",
    "weaviate": "weaviate",
}
#: Where an edition that is not embedded is found.
VARIABLES = {
    "milvus-server": "VECRUN_TEST_MILVUS_URI",
    "qdrant-server": "VECRUN_TEST_QDRANT_URL",
    "weaviate": "VECRUN_TEST_WEAVIATE_URL",
}


@dataclass(frozen=True)
class Pair:
    """A migration to be disturbed. `expect`: how ids change; `existing`: the target is there before, and empty."""

    source: str
    target: str
    ids: IdKind
    expect: IdMode
    chunks: Literal["", "sqlite", "postgres"] = ""
    existing: bool = False
    collections: int = 1
    points: int = 2000  # in each collection, for the kills: so many that a run takes seconds; the matrix takes fewer

    def __str__(self) -> str:
        return f"{self.source} → {self.target}"


PAIRS = (
    Pair("files", "pgvector", IdKind.STRING, IdMode.UUID5, "sqlite"),
    Pair("pgvector", "pgvector", IdKind.INT, IdMode.UUID5, "postgres", collections=2, points=1000),
    Pair("pgvector", "files", IdKind.UUID, IdMode.KEEP, existing=True, points=1600),
    Pair("milvus-lite", "pgvector", IdKind.INT, IdMode.UUID5, "sqlite"),
    Pair("milvus-lite", "qdrant-local", IdKind.STRING, IdMode.UUID5, "sqlite", points=500),
    Pair("pgvector", "qdrant-local", IdKind.INT, IdMode.KEEP, existing=True, points=500),
    Pair("qdrant-local", "files", IdKind.INT_OR_UUID, IdMode.UUID5, "sqlite", collections=2, points=600),
    Pair("files", "milvus-lite", IdKind.STRING, IdMode.KEEP, points=1200),
    Pair("files", "qdrant-server", IdKind.STRING, IdMode.UUID5, "sqlite"),
    Pair("files", "weaviate", IdKind.STRING, IdMode.UUID5, "sqlite"),
    Pair("files", "milvus-server", IdKind.STRING, IdMode.KEEP),
)


@dataclass(frozen=True)
class Scene:
    """A pair with its places. Stored as scene.json in the workspace."""

    directory: Path
    pair: Pair
    prefix: str
    seed: int
    points: int
    batch_size: int
    source: dict[str, Any]
    target: dict[str, Any]
    chunks_url: str = ""
    payloads: tuple[str, ...] = tuple(PAYLOADS)
    team: dict[str, Any] = field(default_factory=dict)  # what vecrun.yaml has besides, where workers do the work

    @property
    def names(self) -> list[tuple[str, str]]:
        """(source collection, target collection)"""
        return [(f"{self.prefix}{n}", f"{self.prefix}{n}_v2") for n in range(self.pair.collections)]

    def truth(self, number: int) -> Truth:
        # the ids of two collections overlap: only the collection tells which point a chunk names
        return Truth(self.seed + number, self.pair.ids, self.points + 7 * number, self.payloads)

    def alias(self, target: str) -> str:
        return f"{target}_live"


def opened(values: dict[str, Any]) -> Store:
    """The store of a connection."""
    return open_store(config_model(values["type"])(**values))


def missing(pair: Pair) -> str:
    """Why this pair cannot be run here; empty if it can."""
    for edition in (pair.source, pair.target):
        if edition in VARIABLES and not os.environ.get(VARIABLES[edition]):
            return f"{VARIABLES[edition]} is not set"
    return ""


def build(
    directory: str, pair: dict[str, Any], seed: int, points: int, batch_size: int, postgres: str,
    team: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Make the workspace and fill the source, the chunks table and what stands in the target before."""
    root = Path(directory)
    root.mkdir(parents=True)
    made = Pair(**pair | {"ids": IdKind(pair["ids"]), "expect": IdMode(pair["expect"])})
    prefix = f"F{uuid.uuid4().hex[:8]}"
    places = [place_of(edition, root / role, postgres) for role, edition in (("a", made.source), ("b", made.target))]
    url = {"sqlite": f"sqlite:///{root / 'app.db'}", "postgres": "", "": ""}[made.chunks]
    if made.chunks == "postgres":
        url = place_of("pgvector", root, postgres)["url"]
    scene = Scene(root, made, prefix, seed, points, batch_size, *places, chunks_url=url, team=team or {})
    with opened(scene.source) as source, opened(scene.target) as target:
        scene = replace(scene, payloads=_held(scene, source, target))
        _fill(scene, source, target)
    (root / "scene.json").write_text(json.dumps(asdict(scene) | {"directory": directory}))
    _write_workspace(scene)
    if made.chunks:
        _fill_chunks(scene)
    (root / "before.json").write_text(json.dumps(_surroundings(scene)))


def load(directory: str) -> Scene:
    """The scene of a workspace."""
    data = json.loads((Path(directory) / "scene.json").read_text())
    pair = data["pair"] | {"ids": IdKind(data["pair"]["ids"]), "expect": IdMode(data["pair"]["expect"])}
    return Scene(**data | {"directory": Path(directory), "pair": Pair(**pair), "payloads": tuple(data["payloads"])})


def place_of(edition: str, path: Path, postgres: str) -> dict[str, Any]:
    if edition == "pgvector":
        name = f"faults_{uuid.uuid4().hex[:12]}"
        servers.sql(postgres, f"CREATE DATABASE {name} TEMPLATE with_vector")
        return {"type": "pgvector", "url": servers.database(postgres, name)}
    if edition in VARIABLES:
        key = "uri" if edition == "milvus-server" else "url"
        address, _, grpc = os.environ[VARIABLES[edition]].partition("?grpc_port=")
        return {"type": TYPES[edition], key: address} | ({"grpc_port": int(grpc)} if grpc else {})
    if edition == "milvus-lite":
        return {"type": "milvus", "uri": f"{path}.db"}
    return {"type": TYPES[edition], "path": str(path)}


def _held(scene: Scene, source: Store, target: Store) -> tuple[str, ...]:
    """The kinds of payload that both stores hold."""
    kept = []
    for name in PAYLOADS:
        truth = Truth(scene.seed, scene.pair.ids, 12, (name,))
        refused = False
        for store, points in (
            (source, truth.points(source.capabilities().default_vector_name)),
            (target, truth.moved(target.capabilities().default_vector_name, scene.pair.expect, KEEP_AS)),
        ):
            (vector,) = points.vectors
            schema = replace(truth, ids=_target_ids(scene)) if store is target else truth
            fitted, _ = store.fit(schema.schema("Probe", vector))
            refused |= any(not item.code.startswith("VI") for item in store.problems(fitted, points))
        if not refused:
            kept.append(name)
    return tuple(kept)


def _target_ids(scene: Scene) -> IdKind:
    return IdKind.UUID if scene.pair.expect is IdMode.UUID5 else scene.pair.ids


def _fill(scene: Scene, source: Store, target: Store) -> None:
    for number, (name, moved) in enumerate(scene.names):
        truth = scene.truth(number)
        schema = truth.schema(name, source.capabilities().default_vector_name)
        schema, _ = source.fit(schema)
        source.create(schema)
        points = truth.points(schema.vectors[0].name)
        for start in range(0, len(points), 500):
            source.upsert(name, points.slice(start, start + 500))
        source.finish(schema)
        if scene.pair.existing:
            vector = target.capabilities().default_vector_name
            fitted, _ = target.fit(replace(truth, ids=_target_ids(scene)).schema(moved, vector))
            target.create(fitted)
            target.finish(fitted)
    if target.capabilities().aliases:  # readers are served by something older, which must come back
        old = f"{scene.prefix}old"
        vector = target.capabilities().default_vector_name
        truth = Truth(1, _target_ids(scene), 5, scene.payloads)
        fitted, _ = target.fit(truth.schema(old, vector))
        target.create(fitted)
        target.upsert(old, truth.points(vector))
        target.finish(fitted)
        target.set_alias(scene.alias(scene.names[0][1]), old)


def _write_workspace(scene: Scene) -> None:
    connections = {"a": scene.source, "b": scene.target}
    spec: dict[str, Any] = {
        "source": "a",
        "target": "b",
        "batch_size": scene.batch_size,
        "cutover": {"alias": "{name}_live"},
        "collections": [
            {"from": name, "to": moved, "ids": {"mode": str(scene.pair.expect)}} for name, moved in scene.names
        ],
    }
    if scene.pair.chunks:
        connections["app"] = {"type": "sql", "url": scene.chunks_url}
        spec["documents"] = {"connection": "app", "table": "chunks", "collection_column": "collection"}
    workspace = {
        "apiVersion": "vecrun/v1",
        "kind": "Workspace",
        "connections": connections,
        "limits": {"workers": 2, "retry_delay": 0.1},
    } | scene.team
    job = {"apiVersion": "vecrun/v1", "kind": "VectorMigration", "metadata": {"name": JOB}, "spec": spec}
    (scene.directory / "jobs").mkdir()
    (scene.directory / "vecrun.yaml").write_text(yaml.safe_dump(workspace))
    (scene.directory / "jobs" / f"{JOB}.yaml").write_text(yaml.safe_dump(job))
    if scene.seed % 2:
        old = Place(connection="b", collection=f"{scene.prefix}old")
        pointers = {scene.alias(scene.names[0][1]): old}
        _states(scene).change_serving(
            lambda serving: serving.model_copy(update={"pointers": pointers}), contextlib.nullcontext()
        )


def _states(scene: Scene) -> States:
    return open_context(scene.directory).states


# -- the chunks table ----------------------------------------------------------------------------------------


def _chunk_rows(scene: Scene, *, moved: bool) -> list[tuple[int, str, str, str | None]]:
    """(id, document, collection, vector id) of every chunk, before or after the migration."""
    rows: list[tuple[int, str, str, str | None]] = []
    for number, (name, _) in enumerate(scene.names):
        for point_id in reversed(scene.truth(number).point_ids()):
            new = map_id(point_id, scene.pair.expect) if moved else point_id
            rows.append((len(rows) + 1, f"document of {point_id}", name, str(new)))
    first = rows[0][3] if not moved else str(scene.truth(0).point_ids()[-1])
    # rows that belong to nobody here must stay as they are
    rows += [
        (len(rows) + 1, "of another collection", "another", first),
        (len(rows) + 2, "of a point that is gone", scene.names[0][0], "no such id"),
        (len(rows) + 3, "not embedded yet", scene.names[0][0], None),
    ]
    return rows


@contextlib.contextmanager
def _chunks_database(scene: Scene) -> Iterator[Any]:
    if scene.pair.chunks == "sqlite":
        with contextlib.closing(sqlite3.connect(scene.directory / "app.db")) as database, database:
            yield database
    else:
        import psycopg

        with psycopg.connect(scene.chunks_url) as connection:
            yield connection


def _fill_chunks(scene: Scene) -> None:
    with _chunks_database(scene) as database:
        database.execute(
            "create table chunks (id integer primary key, document text not null, collection text not null, vector_id text)"
        )
        mark = "?" if scene.pair.chunks == "sqlite" else "%s"
        cursor = database.cursor()
        cursor.executemany(
            f"insert into chunks values ({mark}, {mark}, {mark}, {mark})", _chunk_rows(scene, moved=False)
        )


def _chunks(scene: Scene) -> list[list[Any]]:
    with _chunks_database(scene) as database:
        return [list(row) for row in database.execute("select * from chunks order by id").fetchall()]


def _chunks_dump(scene: Scene) -> str:
    """Everything in the database of the chunks table, as text."""
    if not scene.pair.chunks:
        return ""
    with _chunks_database(scene) as database:
        if scene.pair.chunks == "sqlite":
            return "\n".join(database.iterdump())
        tables = database.execute(
            "select table_name, column_name, data_type from information_schema.columns"
            " where table_schema = 'public' order by 1, 2"
        ).fetchall()
        return repr(tables) + repr(database.execute("select * from chunks order by id").fetchall())


# -- what must hold ------------------------------------------------------------------------------------------


def _surroundings(scene: Scene) -> dict[str, Any]:
    """What the migration changes beside points: collections, aliases, serving pointers, the chunks database."""
    with opened(scene.target) as target:
        names = [name for name in target.collections() if name.startswith(scene.prefix)]
        aliases = {alias: name for alias, name in target.aliases().items() if alias.startswith(scene.prefix)}
    pointers = _states(scene).serving().pointers
    return {
        "collections": names,
        "aliases": aliases,
        "pointers": {name: str(place) for name, place in pointers.items()},
        "chunks": _chunks_dump(scene),
    }


def check(directory: str, moved: bool) -> dict[str, Any]:
    """Compare everything with the truth, in the world after the migration or in the one before it."""
    scene = load(directory)
    findings: list[str] = []
    counts = Counts()
    with opened(scene.source) as source:
        vector = source.capabilities().default_vector_name
        for number, (name, _) in enumerate(scene.names):
            held = compare(source, name, scene.truth(number).points(vector))
            if not held.right:
                findings.append(f"the source changed: {held.examples}")
            counts += held
    before = json.loads((scene.directory / "before.json").read_text())
    now = _surroundings(scene)
    with opened(scene.target) as target:
        vector = target.capabilities().default_vector_name
        aliased = target.capabilities().aliases
        for number, (_, name) in enumerate(scene.names):
            if moved:
                counts += compare(target, name, scene.truth(number).moved(vector, scene.pair.expect, KEEP_AS))
            elif scene.pair.existing:
                nothing = scene.truth(number).points(vector).slice(0, 0)
                counts += compare(target, name, PointBatch([], nothing.vectors, Payloads([])))
        if aliased:
            old = f"{scene.prefix}old"
            counts += compare(target, old, Truth(1, _target_ids(scene), 5, scene.payloads).points(vector))
    if moved:
        expected = before | {
            "collections": sorted({*before["collections"], *(name for _, name in scene.names)}),
            "aliases": {scene.alias(name): name for _, name in scene.names} if aliased else {},
            "pointers": {scene.alias(name): f"b/{name}" for _, name in scene.names},
            "chunks": now["chunks"],
        }
        if scene.pair.chunks and _chunks(scene) != [list(row) for row in _chunk_rows(scene, moved=True)]:
            findings.append("the chunks table does not follow the ids")
        if _mapping(scene) != _recorded_mapping(scene):
            findings.append("the ledger's mapping of ids is not the one that was made")
    else:
        expected = before
    status = _states(scene).load(JOB).status
    if status not in (("applied",) if moved else ("new", "rolled_back")):
        findings.append(f"the state document says {status}")
    for key, wanted in expected.items():
        if now[key] != wanted:
            findings.append(f"{key}: expected {str(wanted)[:300]}, found {str(now[key])[:300]}")
    return {"counts": asdict(counts), "findings": findings}


def _mapping(scene: Scene) -> set[tuple[str, str, str]]:
    """(collection, old id, new id) of every point whose id changes; ids as JSON."""
    return {
        (name, json.dumps(old), json.dumps(new))
        for number, (name, _) in enumerate(scene.names)
        for old in scene.truth(number).point_ids()
        if (new := map_id(old, scene.pair.expect)) != old
    }


def _recorded_mapping(scene: Scene) -> set[tuple[str, str, str]]:
    """The same, as the newest apply recorded it."""
    query = """select collection, old, new from id_map where run =
        (select run from runs where purpose = 'apply' order by created desc, run desc limit 1)"""
    if not scene.team:
        with contextlib.closing(sqlite3.connect(scene.directory / "state" / "ledger.db")) as ledger:
            return set(ledger.execute(query).fetchall())
    import psycopg

    with psycopg.connect(scene.team["state"]["database"], options="-c search_path=vecrun") as server:
        return {(row[0], row[1], row[2]) for row in server.execute(query)}


def remove(directory: str) -> None:
    """Leave nothing on servers: the databases and collections of this scene."""
    scene = load(directory)
    if scene.pair.target in VARIABLES:
        with contextlib.suppress(Exception), opened(scene.target) as target:
            for alias, name in target.aliases().items():
                if name.startswith(scene.prefix):
                    target.set_alias(alias, None)
            for name in target.collections():
                if name.startswith(scene.prefix):
                    target.drop(name)
