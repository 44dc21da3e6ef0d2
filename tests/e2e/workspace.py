"""A small workspace on disk with real files stores, and the two doors to it: the command line here or as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result

from runner import commands
from runner.cli import cli
from runner.plan import Plan
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
    json_dumps,
)
from runner.store import Store
from runner.stores import config_model, open_store
from tests import warm, worlds
from tests.conftest import watch

SETTINGS = """\
apiVersion: vecrun/v1
kind: Workspace
connections:
  a: {type: files, path: ./a}
  b: {type: files, path: ./b}
"""
JOB = """\
apiVersion: vecrun/v1
kind: VectorMigration
metadata:
  name: move
spec:
  source: a
  target: b
  collections:
    - from: kb
      to: kb2
  cutover: {alias: kb-live}
"""
#: `python -m runner` with the same interpreter: what the installed `vecrun` script does.
VECRUN = (sys.executable, "-m", "runner")
REPOSITORY = Path(__file__).resolve().parents[2]


def run(*args: str | Path, answer: str | None = None, env: dict[str, str | None] | None = None) -> Result:
    """The command line in this process; an unexpected exception is raised."""
    found = CliRunner(env=env).invoke(cli, [str(item) for item in args], input=answer)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


def batch_of(
    schema: CollectionSchema, ids: Sequence[PointId], payloads: Sequence[Payload] | None = None, seed: int = 0
) -> PointBatch:
    """Points with random vectors of length 1 (a store may scale them without a loss)."""
    return worlds.points(schema, ids=ids, payloads=payloads, seed=seed, unit=True)


@dataclass
class Workspace:
    """A folder with vecrun.yaml and jobs/, with the stores a and b beside them."""

    root: Path
    schemas: dict[str, CollectionSchema] = field(default_factory=dict)

    @classmethod
    def create(cls, root: Path, settings: str = SETTINGS, job: str = JOB) -> Workspace:
        root.mkdir(parents=True, exist_ok=True)
        made = cls(root)
        made.write("vecrun.yaml", settings)
        made.write("jobs/move.yaml", job)
        return made

    @property
    def job(self) -> Path:
        return self.root / "jobs" / "move.yaml"

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text()
        assert old in text, f"{old!r} is not in {name}"
        self.write(name, text.replace(old, new, 1))

    def store(self, name: str) -> Store:
        """The files store `name`, open."""
        return watch("files", open_store(config_model("files")(type="files", path=str(self.root / name))))

    def fill(
        self, count: int = 50, *, store: str = "a", name: str = "kb", kind: IdKind = IdKind.INT, dimension: int = 4,
        distance: Distance = Distance.COSINE, ids: Sequence[PointId] | None = None,
        payloads: Sequence[Payload] | None = None, vector: str = "v", **schema: Any,
    ) -> PointBatch:  # fmt: skip
        """A collection with points; the batch that was written."""
        made = CollectionSchema(
            name=name, id_kind=kind, vectors=(VectorField(name=vector, dimension=dimension, distance=distance),), **schema
        )  # fmt: skip
        self.schemas[f"{store}/{name}"] = made
        batch = batch_of(made, ids if ids is not None else worlds.ids_of(kind, count), payloads)
        with self.store(store) as opened:
            opened.create(made)
            for start in range(0, len(batch), 5000):
                opened.upsert(name, batch.slice(start, start + 5000))
            opened.finish(made)
        return batch

    def points(self, store: str, name: str) -> PointBatch | None:
        """Everything a collection holds, in key order; None when there is no such collection."""
        with self.store(store) as opened:
            schema = opened.inspect(name)
            if schema is None:
                return None
            return worlds.concat(list(opened.scan(name, KeyRange())), schema)

    def poison(self, point_id: PointId, *, store: str = "a", name: str = "kb") -> None:
        """Give one point a vector with a NaN."""
        with self.store(store) as opened:
            schema = opened.inspect(name)
            assert schema is not None
            vectors = {item.name: np.full((1, item.dimension), np.nan, np.float32) for item in schema.vectors}
            opened.upsert(name, PointBatch(ids=[point_id], vectors=vectors, payloads=Payloads([{}])))

    # doors ------------------------------------------------------------------------------------------------------

    def context(self, environment: str = "") -> commands.Context:
        return commands.open_context(self.root, environment)

    def plan(self) -> Plan:
        return commands.plan(self.context(), self.job)

    def apply(self) -> commands.Outcome:
        return commands.apply(self.context(), self.plan())

    def process(self, *args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """The command line as a process of its own, in this workspace."""
        with self.start(*args, **options) as process:
            out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    @contextmanager
    def start(self, *args: str | Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
        """The same, running while the block does; killed at its end if it still lives."""
        with warm.Popen(
            [*VECRUN, *map(str, args)], cwd=self.root, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment(env or {}), stdin=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()

    # the world, to compare before and after ---------------------------------------------------------------------

    def world(self, *stores: str) -> dict[str, Any]:
        """What the stores hold, in words that can be compared: aliases, schemas, ids with vectors and payloads."""
        found: dict[str, Any] = {}
        for store in stores or ("a", "b"):
            with self.store(store) as opened:
                found[f"{store}:aliases"] = opened.aliases()
                for name in opened.collections():
                    found[f"{store}/{name}"] = opened.inspect(name)
                    batch = self.points(store, name)
                    assert batch is not None
                    found[f"{store}/{name}:points"] = points_of(batch)
        return found

    def tree(self, *names: str) -> dict[str, tuple[int, bytes]]:
        """Every file below (default: all): its time of change and content. The ledger's side files are left out."""
        return {
            str(path.relative_to(self.root)): (path.stat().st_mtime_ns, path.read_bytes())
            for name in names or (".",)
            for path in sorted((self.root / name).rglob("*"))
            if path.is_file() and path.suffix not in (".db-wal", ".db-shm")
        }

    def state(self, job: str = "move") -> dict[str, Any]:
        path = self.root / "state" / f"{job}.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def serving(self) -> dict[str, Any]:
        path = self.root / "state" / "serving.json"
        return dict(json.loads(path.read_text())["pointers"]) if path.exists() else {}

    def nothing_happened(self) -> bool:
        """No target, no state, nothing serving: what must hold after anything that was refused."""
        return self.world("b") == {"b:aliases": {}} and not self.state() and not self.serving()


def points_of(batch: PointBatch) -> dict[tuple[str, PointId], tuple[Any, ...]]:
    """Points by (type of the id, id), each as bytes of its vectors, payload, and partition."""
    return {
        (type(point_id).__name__, point_id): (
            {name: matrix[row].tobytes() for name, matrix in batch.vectors.items()},
            json_dumps(batch.payloads.dicts[row]),
            batch.partitions[row] if batch.partitions else None,
        )
        for row, point_id in enumerate(batch.ids)
    }


def environment(extra: dict[str, str]) -> dict[str, str]:
    """The environment of a process: no terminal colours of the test run, the package from this checkout."""
    base = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "VECRUN_ENV", "NO_COLOR")}
    return base | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"} | extra
