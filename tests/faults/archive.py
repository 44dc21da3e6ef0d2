"""Tables and collections that are backed up, emptied and restored: how they are set up, and what there is.

`build` and `prepare` run in processes of their own (see `nursery`); what must hold of all this is in `kept`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psycopg
import yaml

from runner import commands
from runner.commands import open_context
from runner.objects import OBJECTS
from runner.objects.storage import Objects, open_objects
from runner.points import CollectionSchema, Distance, IdKind, Payloads, PointBatch, VectorField
from runner.store import Store
from tests.faults.scene import JOB, opened, place_of

COLLECTIONS, POINTS, NOTES = "langchain_pg_collection", "langchain_pg_embedding", "notes"
TABLES = (
    f"CREATE TABLE {COLLECTIONS} (uuid uuid PRIMARY KEY, name varchar NOT NULL UNIQUE, cmetadata json)",
    (
        f"CREATE TABLE {POINTS} (id varchar PRIMARY KEY, collection_id uuid REFERENCES {COLLECTIONS} (uuid) ON DELETE CASCADE,"
        " embedding vector, document varchar, cmetadata jsonb)"
    ),
    f"CREATE TABLE {NOTES} (id integer PRIMARY KEY, text text)",
    f"INSERT INTO {NOTES} SELECT n, 'not to be touched ' || n FROM generate_series(1, 5) n",
)
KEY = "6f1f8f1e-0000-4000-8000-000000000001"
#: A job that made what is restored.
FIRST = "first"
#: Bytes of a text: some hundred points make a file of a megabyte, which is the smallest.
LENGTH, DIMENSION = 4000, 8
Action = Literal["backup", "restore"]


@dataclass(frozen=True)
class Chore:
    """What is disturbed. Of tables `how` is keep, truncate (backup), refuse, merge, replace (restore); else stores."""

    action: Action
    how: str
    target: str = ""
    again: bool = False  # after a first backup, few points changed

    def __str__(self) -> str:
        if self.target:
            return f"{self.action}: {self.how} → {self.target}"
        return f"{self.action}: {'tables, ' * self.tables}{self.how}{', again' * self.again}"

    @property
    def tables(self) -> bool:
        return self.how in ("keep", "truncate", "refuse", "merge", "replace")


@dataclass(frozen=True)
class Scene:
    """A chore with its places. Stored as chore.json in the workspace."""

    directory: Path
    chore: Chore
    size: int  # rows, or points
    app: str
    stores: dict[str, dict[str, Any]]

    @property
    def folder(self) -> str:
        """Where the backups are that the job makes or reads."""
        return f"{JOB if self.chore.action == 'backup' else FIRST}/vector_bak"

    @property
    def place(self) -> Path:
        return self.directory / "backups" / self.folder

    def objects(self) -> Objects:
        return open_objects(OBJECTS["folder"](type="folder", path=str(self.directory / "backups")))

    def read(self, name: str) -> Any:
        return json.loads((self.directory / name).read_text())

    def write(self, name: str, value: Any) -> None:
        (self.directory / name).write_text(json.dumps(value))


def load(directory: str) -> Scene:
    """The scene of a workspace."""
    data = json.loads((Path(directory) / "chore.json").read_text())
    return Scene(**data | {"directory": Path(directory), "chore": Chore(**data["chore"])})


# -- setting up --------------------------------------------------------------------------------------------------------


def build(directory: str, chore: dict[str, Any], size: int, postgres: str) -> None:
    """Make the workspace with its places, and what is restored."""
    root, made = Path(directory), Chore(**chore)
    (root / "jobs").mkdir(parents=True)
    (root / "backups").mkdir()
    app = place_of("pgvector", root, postgres)["url"] if made.tables else ""
    stores = {}
    if not made.tables:
        stores = {
            name: place_of(kind, root / name, postgres)
            for name, kind in (("kb", made.how), ("to", made.target or "files"))
        }
    scene = Scene(root, made, size, app, stores)
    data = {key: getattr(scene, key) for key in Scene.__dataclass_fields__}
    scene.write("chore.json", data | {"chore": asdict(made), "directory": directory})
    _write_workspace(scene)
    if made.tables:
        with psycopg.connect(app, autocommit=True) as db:
            for statement in TABLES:
                db.execute(statement)
            db.execute(f"INSERT INTO {COLLECTIONS} VALUES (%s, 'ddl', NULL)", (KEY,))
            _insert(db, range(size), "loaded")
    else:
        _fill(scene)
    scene.write("states.json", [])
    _known(scene)
    if made.action == "restore":
        _run(scene, FIRST)
        if made.tables:
            _disarrange(scene)
    elif made.again:
        _run(scene, JOB)
    scene.write("before.json", picture(scene))


def _write_workspace(scene: Scene) -> None:
    chore = scene.chore
    connections: dict[str, Any] = {"backups": {"type": "folder", "path": "./backups"}} | scene.stores
    if chore.tables:
        connections["app-db"] = {"type": "sql", "url": scene.app}
    workspace = {
        "apiVersion": "vecrun/v1", "kind": "Workspace", "connections": connections,
        "limits": {"workers": 2, "retry_delay": 0.1},
    }  # fmt: skip
    save: dict[str, Any] = {"to": {"connection": "backups"}, "keep": {"last": 2}}
    if chore.tables:
        save["tables"] = {"connection": "app-db"}
        if chore.how == "truncate":
            save["tables"]["truncate"] = [COLLECTIONS, POINTS]
    else:
        save["collections"] = {
            "connection": "kb", "names": ["kb"], "batch_size": 50, "file_size_mb": 1, "incremental": chore.again
        }  # fmt: skip
    back: dict[str, Any] = {"from": {"connection": "backups", "folder": f"{FIRST}/vector_bak"}}
    if chore.tables:
        back["tables"] = {"connection": "app-db", "if_not_empty": chore.how}
    else:
        back["collections"] = {"connection": "to", "batch_size": 50, "verify": {"mode": "full"}}
    spec = {"backup": save, "restore": back}
    (scene.directory / "vecrun.yaml").write_text(yaml.safe_dump(workspace))
    names: dict[str, Action] = {JOB: "backup"}
    if chore.action == "restore":
        names = {JOB: "restore", FIRST: "backup"}
    for name, action in names.items():
        kind = {"backup": "VectorBackup", "restore": "VectorRestore"}[action]
        job = {"apiVersion": "vecrun/v1", "kind": kind, "metadata": {"name": name}, "spec": spec[action]}
        (scene.directory / "jobs" / f"{name}.yaml").write_text(yaml.safe_dump(job))


def _run(scene: Scene, job: str) -> None:
    """Plan a job and apply it, in this process."""
    context = open_context(scene.directory)
    commands.apply(context, commands.plan(context, scene.directory / "jobs" / f"{job}.yaml"))


def _insert(db: psycopg.Connection[Any], numbers: range, text: str) -> None:
    with db.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {POINTS} VALUES (%s, %s, %s::vector, %s, %s)",
            [
                (
                    f"t{n}",
                    KEY,
                    f"[{n},0.1,-2.5]",
                    f"{text} {n}, 'quoted'\n\"twice\"\r\\. {'x' * 300}",
                    json.dumps({"n": n}),
                )
                for n in numbers
            ],
        )


def _disarrange(scene: Scene) -> None:
    """What a restore finds: rows that are gone, others, and new ones; nothing at all where it would refuse."""
    with psycopg.connect(scene.app, autocommit=True) as db:
        if scene.chore.how == "refuse":
            db.execute(f"TRUNCATE {COLLECTIONS}, {POINTS}")
            return
        db.execute(f"UPDATE {COLLECTIONS} SET name = 'other'")
        db.execute(f"DELETE FROM {POINTS} WHERE (cmetadata->>'n')::int % 3 = 0")
        db.execute(f"UPDATE {POINTS} SET document = 'other' WHERE (cmetadata->>'n')::int % 3 = 1")
        _insert(db, range(scene.size, scene.size + 20), "new")


def _schema(scene: Scene, store: Store) -> CollectionSchema:
    vector = store.capabilities().default_vector_name
    field = VectorField(name=vector, dimension=DIMENSION, distance=Distance.EUCLID)
    return store.fit(CollectionSchema(name="kb", id_kind=IdKind.INT, vectors=(field,)))[0]


def _batch(schema: CollectionSchema, numbers: list[int], version: int) -> PointBatch:
    """Points with texts that cannot be compressed much."""
    chance = np.random.default_rng([version, *numbers[:1]])
    texts = [chance.bytes(LENGTH // 2).hex() for _ in numbers]
    vectors = chance.standard_normal((len(numbers), DIMENSION)).astype(np.float32)
    rows = [{"n": n, "version": version, "text": text} for n, text in zip(numbers, texts, strict=True)]
    return PointBatch(list(numbers), {schema.vectors[0].name: vectors}, Payloads(rows))


def _fill(scene: Scene) -> None:
    with opened(scene.stores["kb"]) as store:
        schema = _schema(scene, store)
        store.create(schema)
        for start in range(0, scene.size, 200):
            store.upsert("kb", _batch(schema, list(range(start, min(start + 200, scene.size))), 0))
        store.finish(schema)


def prepare(directory: str, number: int) -> None:
    """Before each try: something that a backup has not got yet. What lies about by now is of earlier tries."""
    scene = load(directory)
    scene.write("old.json", left_over(scene, set()))
    if scene.chore.action == "restore":
        return
    if scene.chore.tables:
        with psycopg.connect(scene.app, autocommit=True) as db:
            db.execute(f"UPDATE {POINTS} SET document = %s WHERE id = 't1'", (f"try {number}",))
    else:
        numbers = list(range(scene.size))
        if scene.chore.again:
            numbers = random.Random(number).sample(numbers, 2)
        with opened(scene.stores["kb"]) as store:
            schema = _schema(scene, store)
            for start in range(0, len(numbers), 200):
                store.upsert("kb", _batch(schema, numbers[start : start + 200], number + 1))
    _known(scene)
    scene.write("before.json", picture(scene))


# -- the world ---------------------------------------------------------------------------------------------------------


@contextmanager
def _standing(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A transaction that waits for whoever empties or fills the tables just now, and sees what they left."""
    with psycopg.connect(url) as db:
        db.execute("SET lock_timeout = '60s'")
        db.execute(f"LOCK TABLE {COLLECTIONS}, {POINTS}, {NOTES} IN ACCESS SHARE MODE")
        yield db


def rows_of(db: psycopg.Connection[Any], table: str) -> dict[str, str]:
    """Key -> the whole row as text."""
    found = db.execute(f"SELECT coalesce(to_jsonb(t)->>'id', to_jsonb(t)->>'uuid'), t::text FROM {table} t")
    rows = found.fetchall()
    named = dict(rows)
    assert len(named) == len(rows), f"a key of {table} came twice"
    return named


def points_of(store: Store, name: str) -> dict[str, str] | None:
    """Id -> digest of vectors and payload."""
    if store.inspect(name) is None:
        return None
    found: dict[str, str] = {}
    for keys in store.cut(name, 1):
        for batch in store.scan(name, keys, None, 500):
            for row, one in enumerate(batch.ids):
                assert str(one) not in found, f"{one!r} came twice"
                vectors = b"".join(column[row].tobytes() for column in batch.vectors.values())
                payload = json.dumps(batch.payloads.dicts[row], sort_keys=True).encode()
                found[str(one)] = hashlib.sha256(vectors + payload).hexdigest()[:20]
    return found


def picture(scene: Scene) -> dict[str, Any]:
    """Everything that is backed up or restored, and what stands beside it."""
    if scene.chore.tables:
        with _standing(scene.app) as db:
            found: dict[str, Any] = {table: rows_of(db, table) for table in (COLLECTIONS, POINTS, NOTES)}
            query = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1"
            return found | {"there": [name for (name,) in db.execute(query)]}
    found = {}
    for name in ("kb", "to"):
        with opened(scene.stores[name]) as store:
            found[name] = points_of(store, "kb")
            found.setdefault("there", []).append(sorted(store.collections()))
    return found


def digest_of(rows: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _known(scene: Scene) -> None:
    """The source is in a state that a backup may hold from now on."""
    now = picture(scene)
    names = (COLLECTIONS, POINTS) if scene.chore.tables else ("kb",)
    scene.write("states.json", [*scene.read("states.json"), {name: digest_of(now[name]) for name in names}])


def left_over(scene: Scene, named: set[str]) -> list[str]:
    """Files beside the backups that no manifest names."""
    if not scene.place.is_dir():
        return []
    files = {str(path.relative_to(scene.place)) for path in scene.place.rglob("*") if path.is_file()}
    return sorted(name for name in files - named if not name.startswith("backup_") and name != "vector_backup_log.txt")
