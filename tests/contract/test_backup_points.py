"""Backups of collections: every store into files and back into every store, files named by their content, what is shared
between backups, runs that are killed or slow, and the store that reads them (D5, D6, A5).
"""

from __future__ import annotations

import itertools
import json
import random
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner import commands, executor
from runner.actors import Embedded
from runner.backups import manifest, points
from runner.backups.manifest import Backup, CollectionFiles, DamagedBackup
from runner.backups.store import BackupStore
from runner.commands.execution import Outcome, no_progress, outcome
from runner.errors import Lossy, Permanent, Transient, VecrunError
from runner.executor import Run
from runner.objects import FolderConfig
from runner.objects.folder import FolderObjects
from runner.plan import BackupFolder, BackUpPoints, Place, Plan, SealBackup, Step
from runner.points import (
    CollectionSchema,
    Distance,
    IdKind,
    KeyRange,
    Payloads,
    PointBatch,
    PointId,
    SparseField,
    SparseVector,
    VectorField,
)
from runner.store import ConnectionConfig, Store
from runner.stores.files.store import FilesStore
from runner.sweeper import Sweeper
from runner.world import World
from tests import servers, worlds
from tests.e2e.workspace import Workspace, points_of

FOLDER = "nightly/vector_bak"
INTO = BackupFolder(connection="bak", folder=FOLDER)
SOURCE = Place(connection="a", collection="kb")
SETTINGS: dict[str, Any] = {
    "a": {"type": "files", "path": "./a"},
    "b": {"type": "files", "path": "./b"},
    "bak": {"type": "folder", "path": "./bak"},
    "old": {"type": "backup", "connection": "bak", "folder": FOLDER},
}
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


class Vault(Workspace):
    """A workspace with two stores and a folder for backups of collections."""

    @classmethod
    def make(cls, root: Path, **connections: Any) -> Vault:
        (root / "bak").mkdir(parents=True)
        made = cls.create(root)
        made.connect(**connections)
        assert isinstance(made, Vault)
        return made

    def connect(self, **connections: Any) -> None:
        document = {"apiVersion": "vecrun/v1", "kind": "Workspace", "connections": SETTINGS | connections}
        self.write("vecrun.yaml", json.dumps(document | {"limits": {"workers": 2, "retry_delay": 0.01}}))

    def job(self, kind: str, name: str, **spec: Any) -> Outcome:  # type: ignore[override]
        """Plan and apply a job of this kind."""
        document = {"apiVersion": "vecrun/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
        path = self.write(f"jobs/{name}.yaml", json.dumps(document))
        return commands.apply(self.context(), commands.plan(self.context(), path))

    def back_up(self, connection: str = "a", **collections: Any) -> dict[str, Any]:
        """The result of a VectorBackup of everything in a store."""
        done = self.job(
            "VectorBackup", "nightly", collections={"connection": connection, **collections}, to={"connection": "bak"}
        )
        assert done.status == "completed"
        return dict(done.steps[-1]["result"])

    def restore(self, connection: str, name: str, to: str, **more: Any) -> Outcome:
        return self.job(
            "VectorRestore", f"back-{uuid.uuid4().hex[:6]}", **{"from": {"connection": "bak", "folder": FOLDER}},
            collections={"connection": connection, "names": [{"from": name, "to": to}], "verify": {"mode": "full"}, **more},
        )  # fmt: skip

    def drive(
        self, *steps: Step, mode: Any = "write", sample: int | None = None, stores: dict[str, Store] | None = None
    ) -> Outcome:
        """Carry out steps, as a run does, with smaller files than a spec may ask for. `stores`: in place of connections."""
        context = self.context()
        plan = Plan(
            tool_version="0", created="", job="nightly", kind="VectorBackup", lineage="", serial=0, spec_digest="",
            connections={}, steps=steps,
        )  # fmt: skip
        with Sweeper.temporary() as ledger, World(context.settings, mode) as world:
            world._open.update(stores or {})
            name = uuid.uuid4().hex[:12]
            lease = ledger.acquire(["job:nightly"], name, 1e9)
            ledger.start_run(lease, plan, plan.dumps())
            run = Run(
                name,
                plan,
                ledger,
                lease,
                world,
                context.states,
                context.settings.workspace.limits,
                hands=2,
                sample=sample,
            )
            try:
                Embedded(run, no_progress).execute()
                self.log = [row["message"] for row in ledger.read_log(name)]
                return outcome(run, 0.0)
            finally:
                run.services.close()

    def small(
        self,
        count: int,
        previous: str = "",
        *,
        file_bytes: int = 60_000,
        stores: dict[str, Store] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """A backup of a/kb in small files; what its collection came to, with the id of the backup."""
        values = {"batch_size": 50, "compression": "zstd"} | more
        step = BackUpPoints(source=SOURCE, into=INTO, points=count, file_bytes=file_bytes, previous=previous, **values)
        done = self.drive(step, SealBackup(into=INTO, sources=(SOURCE,), previous=previous), stores=stores)
        [one] = done.steps[-1]["result"]["collections"]
        return {"id": done.steps[-1]["result"]["backup"], **one}

    @property
    def objects(self) -> FolderObjects:
        return FolderObjects(FolderConfig(type="folder", path=str(self.root / "bak")))

    def manifest(self, backup: str) -> Backup:
        return manifest.read(self.objects, FOLDER, backup)

    @property
    def files(self) -> dict[str, tuple[int, bytes]]:
        """The point files: when they were written, and what is in them."""
        found = (self.root / "bak" / FOLDER / "data").glob("*")
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}

    def read(self, backup: str, name: str = "kb", parts: int = 3) -> PointBatch:
        """A collection of a backup, by the ranges of `cut`."""
        with BackupStore(self.objects, FOLDER) as store:
            schema = store.inspect(f"{backup}/{name}")
            assert schema is not None
            ranges = store.cut(schema.name, parts)
            return worlds.concat((batch for keys in ranges for batch in store.scan(schema.name, keys)), schema)

    def same(self, backup: str) -> bool:
        """Whether a backup holds exactly what is in a/kb now."""
        now = self.points("a", "kb")
        assert now is not None
        return points_of(self.read(backup)) == points_of(now)


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault.make(tmp_path / "ws")


# Every store into files, and back into every store ------------------------------------------------------------------


def renamed(batch: PointBatch, schema: CollectionSchema) -> PointBatch:
    """The points with the vector of another collection that has only one."""
    if len(schema.vectors) == 1 and len(batch.vectors) == 1:
        [name], new = batch.vectors, schema.vectors[0].name
        batch.vectors = {new: batch.vectors[name]}
        batch.missing = {new: batch.missing[name]} if name in batch.missing else {}
    return batch


def connection_of(config: ConnectionConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_none=True)


def whole(store: Store, name: str) -> tuple[CollectionSchema, PointBatch]:
    schema = store.inspect(name)
    assert schema is not None
    return schema, worlds.concat((b for keys in store.cut(name, 1) for b in store.scan(name, keys)), schema)


def test_a_collection_of_every_store_comes_back(
    reopen: Callable[[], Store], store_config: ConnectionConfig, name: str, tmp_path: Path
) -> None:
    """Rule: what a store holds, with every value it took, is in the backup, and comes back into it and into files."""
    vault = Vault.make(tmp_path / "ws", s=connection_of(store_config))
    with reopen() as store:
        caps = store.capabilities()
        several = ("one", "two") if caps.max_vectors > 1 else None
        wish = worlds.wish(
            name, caps, vectors=several, sparse=("words",) if caps.sparse else (),
            partitions=("north", "south") if caps.partitions else None,
        )  # fmt: skip
        schema, problems = store.fit(wish)
        assert not [item for item in problems if item.code.startswith("VX")]
        store.create(schema)
        payloads = list(worlds.PAYLOAD_ZOO.values())
        for wished in (
            worlds.points(schema, payloads=payloads, unit=True, missing=caps.missing_vectors),
            worlds.points(schema, 90, seed=3, unit=True),
        ):
            batch, _refused = worlds.without_refused(store, schema, wished)
            store.upsert(name, batch)
        store.finish(schema)
        if caps.aliases:
            store.set_alias(f"{name}Live", name)
        held, before = whole(store, name)
    result = vault.back_up("s", names=[name], batch_size=20)
    assert (result["rows"], result["collections"][0].get("moved", 0)) == (len(before), 0)
    [saved] = vault.manifest(result["backup"]).collections
    assert saved.collection == held
    assert saved.aliases == ((f"{name}Live",) if caps.aliases else ())
    assert worlds.same(caps, held, before, vault.read(result["backup"], name)) == []
    again = vault.back_up("s", names=[name], batch_size=20)
    assert (again["collections"][0]["kept"], again["files"]) == (result["files"], result["files"])
    assert vault.restore("s", name, f"{name}Back").status == "completed"
    with reopen() as store:
        back_schema, back = whole(store, f"{name}Back")
        assert worlds.same(caps, back_schema, before, back) == []
    assert vault.restore("b", name, "kb").status == "completed"
    with vault.store("b") as files:
        files_schema, there = whole(files, "kb")
    assert worlds.same(caps, files_schema, renamed(before, files_schema), there) == []


def test_every_store_takes_a_backup_of_another(
    reopen: Callable[[], Store], store_config: ConnectionConfig, name: str, tmp_path: Path
) -> None:
    """Rule: a backup can be restored into any store that can hold what is in it."""
    with reopen() as store:
        caps = store.capabilities()
    vault = Vault.make(tmp_path / "ws", s=connection_of(store_config))
    before = vault.fill(120, kind=worlds.id_kinds(caps)[0], distance=worlds.exact_distance(caps), dimension=6)
    vault.back_up(batch_size=20)
    assert vault.restore("s", "kb", name).status == "completed"
    with reopen() as store:
        schema, there = whole(store, name)
    assert worlds.same(caps, schema, renamed(before, schema), there) == []


def test_a_bucket(s3: servers.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in object storage."""
    s3.client().create_bucket(Bucket="points-of-backups")
    connection = s3.connection("points-of-backups", prefix="deep")
    for key in ("access_key_id", "secret_access_key"):
        monkeypatch.setenv(f"VECRUN_TEST_{key}", connection[key])
        connection[key] = f"${{env:VECRUN_TEST_{key}}}"
    vault = Vault.make(tmp_path / "ws", bak=connection)
    before = vault.fill(300)
    one, two = vault.back_up(batch_size=20), vault.back_up(batch_size=20)
    assert one["files"] == two["files"] == two["collections"][0]["kept"] > 1
    vault.restore("b", "kb", "back")
    with vault.store("b") as store:
        schema, there = whole(store, "back")
    assert points_of(there) == points_of(renamed(before, schema))


# What is shared -----------------------------------------------------------------------------------------------------


def test_what_has_not_changed_is_not_written_again(vault: Vault) -> None:
    """One point makes one new file; new points at the end one; a deleted range none; another compression none."""
    batch = vault.fill(1000, dimension=32)
    first = vault.small(1000)
    assert first["files"] == first["written"] > 5
    assert first["kept"] == 0
    before = vault.files

    same = vault.small(1000, first["id"])
    assert (same["written"], same["kept"], vault.files) == (0, first["files"], before)
    packed = vault.small(1000, same["id"], compression="gzip")
    assert (packed["written"], vault.files) == (0, before)

    with vault.store("a") as store:
        store.upsert("kb", PointBatch([batch.ids[500]], {"v": batch.vectors["v"][:1]}, Payloads([{"changed": True}])))
    changed = vault.small(1000, packed["id"])
    assert (changed["written"], changed["files"]) == (1, first["files"])
    assert vault.same(changed["id"])

    highest = max(int(item) for item in batch.ids)
    with vault.store("a") as store:
        more = worlds.points(vault.schemas["a/kb"], ids=range(highest + 1, highest + 301), unit=True)
        store.upsert("kb", more)
    grown = vault.small(1300, changed["id"])
    assert grown["kept"] == changed["files"] - 1
    assert vault.same(grown["id"])

    low, high = sorted(vault.manifest(grown["id"]).collections[0].files, key=lambda one: str(one.keys))[2].keys[:2]
    with vault.store("a") as store:
        gone = [item for item in batch.ids if (low is None or item >= low) and (high is None or item < high)]  # type: ignore[operator]
        assert gone
        store.delete("kb", gone)
    fewer = vault.small(1200, grown["id"])
    assert (fewer["written"], fewer["files"]) == (0, grown["files"] - 1)
    assert vault.same(fewer["id"])
    assert vault.small(1200, fewer["id"])["kept"] == fewer["files"]

    for backup in (first["id"], changed["id"]):  # earlier ones are what they were
        assert vault.read(backup).ids


def test_a_backup_that_is_gone_or_damaged_is_not_gone_on_from(vault: Vault) -> None:
    vault.fill(300, dimension=32)
    first = vault.small(300)
    path = vault.root / "bak" / manifest.manifest_key(FOLDER, first["id"])
    path.write_bytes(path.read_bytes()[:-20])
    second = vault.small(300, first["id"])
    path.unlink()
    third = vault.small(300, first["id"])
    assert second["rows"] == third["rows"] == 300
    assert vault.same(third["id"])


def test_a_file_that_is_gone_is_written_again(vault: Vault) -> None:
    vault.fill(300, dimension=32)
    first = vault.small(300)
    path = next((vault.root / "bak" / FOLDER / "data").glob("*"))
    path.unlink()
    second = vault.small(300, first["id"])
    assert (second["written"], second["kept"]) == (1, first["files"] - 1)
    assert points_of(vault.read(first["id"])) == points_of(vault.read(second["id"]))


def test_a_damaged_file_is_found_before_it_is_named_again(vault: Vault) -> None:
    """A flipped bit in a file of an earlier backup: no manifest names it; a backup that shares nothing writes it anew."""
    vault.fill(300, dimension=32)
    first = vault.small(300)
    path = max((vault.root / "bak" / FOLDER / "data").glob("*"))
    right = path.read_bytes()
    path.write_bytes(right[:500] + bytes([right[500] ^ 1]) + right[501:])
    with pytest.raises(DamagedBackup, match=path.name):
        vault.small(300, first["id"])
    assert manifest.ids(vault.objects, FOLDER) == [first["id"]]
    anew = vault.small(300)
    assert anew["written"] >= 1
    assert path.read_bytes() == right
    assert vault.same(first["id"])


@pytest.mark.long
def test_files_of_others_keep_their_bytes(vault: Vault) -> None:
    """A backup that shares nothing, in another compression, must not change what an earlier manifest has a checksum of."""
    vault.fill(300, dimension=32)
    first, before = vault.small(300), vault.files
    second = vault.small(300, compression="none")
    assert (second["written"], vault.files) == (0, before)
    assert vault.same(first["id"])
    assert vault.same(second["id"])


@pytest.mark.long
def test_more_files_than_partitions(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several files of the previous backup in one partition keep their boundaries, also in slices of one file each."""
    vault.fill(1000, dimension=32)
    first = vault.small(1000)
    monkeypatch.setattr(executor.slices, "MAX_PARTITIONS", 2)
    before = vault.files
    second = vault.small(1000, first["id"])
    assert (second["kept"], vault.files) == (first["files"], before)
    monkeypatch.setattr(executor, "SLICE_SECONDS", 0.001)
    third = vault.small(1000, second["id"])
    assert third["rows"] == 1000
    assert vault.same(third["id"])


@pytest.mark.long
def test_a_collection_that_grew_much_is_cut_anew(vault: Vault) -> None:
    vault.fill(60, dimension=32)
    first = vault.small(60)
    with vault.store("a") as store:
        store.upsert("kb", worlds.points(vault.schemas["a/kb"], 1500, seed=5, unit=True))
    second = vault.small(1560, first["id"])
    assert second["files"] > 10
    assert vault.same(second["id"])


# Runs that go wrong -------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_slow_store_makes_progress(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices that end long before a file is full: files are closed early, nothing is read for ever."""
    vault.fill(400, dimension=32)

    class Slow(FilesStore):
        def scan(self, *args: Any, **more: Any) -> Iterator[PointBatch]:
            for batch in super().scan(*args, **more):
                time.sleep(0.05)
                yield batch

    monkeypatch.setattr(executor, "SLICE_SECONDS", 0.1)
    done = vault.small(400, file_bytes=10**9, batch_size=20, stores={"a": Slow(vault.root / "a")})
    assert done["files"] > 2
    assert vault.same(done["id"])
    monkeypatch.undo()
    again = vault.small(400, done["id"])
    assert again["kept"] == done["files"]


@pytest.mark.long
def test_errors_that_pass_are_tried_again(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    vault.fill(400, dimension=32)
    luck = random.Random(4)

    class Shaky(FilesStore):
        def scan(self, *args: Any, **more: Any) -> Iterator[PointBatch]:
            for batch in super().scan(*args, **more):
                if luck.random() < 0.2:
                    raise Transient("busy")
                yield batch

    inner = FolderObjects.write_from
    failed: list[str] = []

    def shaky(self: FolderObjects, key: str, chunks: Any, unfinished: str = "") -> int:
        if key not in failed:
            failed.append(key)
            next(iter(chunks))
            raise Transient("busy")
        return inner(self, key, chunks, unfinished)

    monkeypatch.setattr(FolderObjects, "write_from", shaky)
    done = vault.small(400, stores={"a": Shaky(vault.root / "a")})
    assert failed
    assert vault.same(done["id"])


def test_a_value_that_is_no_json_stops_before_its_file(vault: Vault) -> None:
    vault.fill(100)
    vault.poison(4)
    with pytest.raises(VecrunError, match=r"NaN or infinity.*4"):
        vault.small(100)
    assert vault.files == {}
    assert manifest.ids(vault.objects, FOLDER) == []


def test_points_that_come_meanwhile_are_told(vault: Vault) -> None:
    batch = vault.fill(100)

    class Live(FilesStore):
        def aliases(self) -> dict[str, str]:  # asked for when everything was read
            self.upsert("kb", PointBatch([10**6], {"v": batch.vectors["v"][:1]}, Payloads([{}])))
            return super().aliases()

    done = vault.small(100, stores={"a": Live(vault.root / "a")})
    assert (done["rows"], done["moved"]) == (100, 1)
    assert any("written to while it was read" in line for line in vault.log)


def test_an_id_in_two_files_is_refused(vault: Vault) -> None:
    vault.fill(100)

    class Twice(FilesStore):
        def cut(self, name: str, parts: int) -> list[KeyRange]:
            return [KeyRange(None, 200), KeyRange(100, None)]

    with pytest.raises(Permanent, match=r"Two points have one id.*ids, such as 1"):
        vault.small(100, stores={"a": Twice(vault.root / "a")})
    assert manifest.ids(vault.objects, FOLDER) == []


def test_an_empty_collection(vault: Vault) -> None:
    vault.fill(ids=[])
    first = vault.small(0)
    assert (first["rows"], first["files"]) == (0, 0)
    assert len(vault.read(first["id"])) == 0
    vault.restore("b", "kb", "back")
    assert vault.points("b", "back") is not None
    with vault.store("a") as store:
        store.upsert("kb", worlds.points(vault.schemas["a/kb"], 40, unit=True))
    assert vault.small(40, first["id"])["rows"] == 40


def test_a_dry_run_writes_nothing(vault: Vault) -> None:
    """It reads and builds all of it, or of a sample; what is no JSON is found there already."""
    vault.fill(500, dimension=32)
    steps = [
        BackUpPoints(source=SOURCE, into=INTO, points=500, file_bytes=60_000, batch_size=50),
        SealBackup(into=INTO, sources=(SOURCE,)),
    ]
    done = vault.drive(*steps, mode="dry")
    assert (done.steps[0]["result"]["read"], done.steps[1]["result"]) == (500, {})
    some = vault.drive(*steps, mode="dry", sample=100)
    assert 100 <= some.steps[0]["result"]["read"] <= 120
    assert list((vault.root / "bak").iterdir()) == []
    vault.poison(4)
    with pytest.raises(VecrunError, match="NaN or infinity"):
        vault.drive(*steps, mode="dry")


CRASHES = [
    *(f"back_up_points:{place}" for place in ("cut", "before_write", "after_write:2", "before_checkpoint", "after_checkpoint:2", "after", "recorded")),
    *(f"seal_backup:{place}" for place in ("before", "checked", "sealed", "after", "recorded")),
]  # fmt: skip
QUICK_CRASHES = ("back_up_points:after_write:2", "back_up_points:after_checkpoint:2", "seal_backup:sealed")


@pytest.mark.parametrize(
    "at", [pytest.param(at, marks=[] if at in QUICK_CRASHES else [pytest.mark.long]) for at in CRASHES]
)
def test_a_killed_backup_goes_on(vault: Vault, at: str) -> None:
    """Rule: whenever the process dies, another one ends with one whole backup of everything, and no unfinished file."""
    vault.fill(1200, dimension=256)
    spec = {"collections": {"connection": "a", "file_size_mb": 1, "batch_size": 100}, "to": {"connection": "bak"}}
    job = {"apiVersion": "vecrun/v1", "kind": "VectorBackup", "metadata": {"name": "nightly"}, "spec": spec}
    path = vault.write("jobs/nightly.yaml", json.dumps(job))
    died = vault.process("apply", path, "--auto-approve", env={"VECRUN_CRASH_AT": at})
    assert died.returncode == -9, died.stderr
    went_on = vault.process("resume", "nightly")
    assert went_on.returncode == 0, went_on.stderr
    [backup] = manifest.ids(vault.objects, FOLDER)
    assert vault.same(backup)
    found = vault.manifest(backup)
    assert {f"data/{item}" for item in vault.files} == set(found.files)
    assert len(found.files) > 1
    log = (vault.root / "bak" / FOLDER / "vector_backup_log.txt").read_text()
    assert log.count(f"backup {backup},") == 1


# The files ----------------------------------------------------------------------------------------------------------

IDS = st.one_of(
    st.integers(-(2**63), 2**64 - 1), st.text(st.characters(codec="utf-8"), max_size=12), st.uuids().map(str),
    st.sampled_from([*worlds.INT_ZOO, *worlds.STRING_ZOO]),
)  # fmt: skip
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(codec="utf-8"), max_size=8),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6,
)  # fmt: skip
NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SCHEMA = CollectionSchema(
    name="kb", id_kind=IdKind.INT_OR_UUID, partitions=("p", "q"), sparse=(SparseField(name="s"),),
    vectors=(VectorField(name="", dimension=3, distance=Distance.DOT), VectorField(name="w", dimension=2, distance=Distance.DOT)),
)  # fmt: skip


@st.composite
def batches(draw: st.DrawFn) -> PointBatch:
    """Points of SCHEMA with anything that a batch may hold."""
    ids: list[PointId] = draw(st.lists(IDS, min_size=1, max_size=20, unique_by=lambda item: (type(item), item)))
    count = len(ids)

    def matrix(width: int) -> np.ndarray:
        rows = draw(st.lists(st.lists(NUMBERS, min_size=width, max_size=width), min_size=count, max_size=count))
        return np.array(rows, np.float32).reshape(count, width)

    def entry() -> SparseVector | None:
        if draw(st.booleans()):
            return None
        places = sorted(draw(st.sets(st.integers(0, 2**40), max_size=4)))
        values = draw(st.lists(NUMBERS, min_size=len(places), max_size=len(places)))
        return SparseVector(np.array(places, np.int64), np.array(values, np.float32))

    gone = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    second = matrix(2)
    second[gone] = 0
    payloads = [draw(st.dictionaries(st.text(max_size=4), JSON, max_size=3)) for _ in ids]
    return PointBatch(
        ids, {"": matrix(3), "w": second}, Payloads(payloads), {"s": [entry() for _ in ids]}, {"w": gone},
        [draw(st.sampled_from(["p", "q"])) for _ in ids],
    )  # fmt: skip


def rows_of(*some: PointBatch) -> points.Rows:
    rows = points.Rows(SCHEMA)
    for batch in some:
        points.refuse_unfit(SCHEMA)(batch)
        rows.add(batch)
    return rows


def full(batch: PointBatch) -> dict[Any, Any]:
    """Points by id with everything that they are."""
    sparse = batch.sparse["s"]
    gone = batch.missing.get("w", np.zeros(len(batch), bool))
    return {
        key: (
            *value,
            gone[row].item(),
            None if sparse[row] is None else (sparse[row].indices.tolist(), sparse[row].values.tobytes()),
        )  # type: ignore[union-attr]
        for row, (key, value) in enumerate(points_of(batch).items())
    }


@QUICK
@given(batches(), st.sampled_from(["none", "zstd", "lz4", "snappy", "gzip"]), st.randoms())
def test_a_file_holds_what_it_was_given(batch: PointBatch, compression: str, luck: random.Random) -> None:
    """Any ids, payloads, missing and sparse vectors and partitions come back bit by bit, from one file or two, and the
    name is the same in whatever order, batches and compression they came."""
    with tempfile.TemporaryDirectory() as folder:
        objects = FolderObjects(FolderConfig(type="folder", path=folder))
        table = rows_of(batch).sorted()
        content = points.content_of(SCHEMA, table)
        with points.written(table, compression) as data:
            file = points.described(table, data, content, KeyRange())
            objects.write_from(f"x/{file.file}", points.pieces(data))
        points.read_back(objects, "x", file, SCHEMA)
        made = Backup(
            tool_version="0", id="20260101_000000", job="x", run="r", form="collections", began="", finished="",
            collections=(CollectionFiles(connection="a", store="files", collection=SCHEMA, rows=len(batch), files=(file,)),),
        )  # fmt: skip
        manifest.write(objects, "x", made)
        with BackupStore(objects, "x") as store:
            got = worlds.concat(store.scan("20260101_000000/kb", KeyRange(), None, 7), SCHEMA)
            one = store.fetch("20260101_000000/kb", [batch.ids[-1], "no such id"])
        assert full(got) == full(batch)
        assert one.ids == [batch.ids[-1]]
        order = luck.sample(range(len(batch)), len(batch))
        middle = luck.randrange(len(batch) + 1)
        other = [batch.take(order[:middle]), batch.take(order[middle:])]
        assert points.content_of(SCHEMA, rows_of(*other).sorted()) == content


@QUICK
@given(batches(), st.randoms())
def test_another_point_has_another_name(batch: PointBatch, luck: random.Random) -> None:
    """Rule: whatever changes in any point changes the content digest."""
    before = points.content_of(SCHEMA, rows_of(batch).sorted())
    row, found = luck.randrange(len(batch)), set[str]()
    changed = worlds.copy_of(batch)
    bits = changed.vectors[""].view(np.uint32)
    bits[row, 2] ^= 1
    variants = [changed]
    payloads = [dict(item) for item in batch.payloads.dicts]
    payloads[row]["new key"] = 1
    variants.append(worlds.copy_of(batch))
    variants[-1].payloads = Payloads(payloads)
    variants.append(worlds.copy_of(batch))
    gone = variants[-1].missing["w"]
    gone[row] = not gone[row]
    variants[-1].vectors["w"][row] = 0
    variants.append(worlds.copy_of(batch))
    assert variants[-1].partitions is not None
    variants[-1].partitions[row] = "q" if variants[-1].partitions[row] == "p" else "p"
    variants.append(worlds.copy_of(batch))
    variants[-1].sparse["s"][row] = SparseVector(np.array([2**41]), np.array([1], np.float32))
    variants.append(batch.take([other for other in range(len(batch)) if other != row]))
    variants.append(worlds.copy_of(batch))
    variants[-1].ids[row] = "an id that is not there before"
    for one in variants:
        if len(one):
            found.add(points.content_of(SCHEMA, rows_of(one).sorted()))
    assert before not in found
    assert len(found) == len([one for one in variants if len(one)])


def test_the_content_of_known_points_never_changes() -> None:
    """Rule: the same points have the same name in every version, or the next backup writes everything again."""
    batch = PointBatch(
        [7, 2**63, "a", -1], {"": np.arange(12, dtype=np.float32).reshape(4, 3), "w": np.zeros((4, 2), np.float32)},
        Payloads([{"a": 1}, {}, {"b": [None, "é"]}, {"c": 1.5}]),
        {"s": [None, SparseVector(np.array([1, 5]), np.array([0.5, 2], np.float32)), None, None]},
        {"w": np.array([True, False, False, True])}, ["p", "q", "p", "q"],
    )  # fmt: skip
    assert points.content_of(SCHEMA, rows_of(batch).sorted()) == (
        "698d78a51fb407a178933b705f0c647ec2cdd6bdd2a9be3fe0e9a8d8dbe3b354"
    )


def test_what_is_no_json_is_named() -> None:
    batch = PointBatch(
        ["good", "bad"], {"": np.ones((2, 3), np.float32), "w": np.ones((2, 2), np.float32)},
        Payloads([{}, {"x": float("nan")}]), {"s": [None, None]}, {}, ["p", "q"],
    )  # fmt: skip
    with pytest.raises(Lossy, match=r"no JSON.*'bad'"):
        points.refuse_unfit(SCHEMA)(batch)


def test_nothing_is_left_of_a_file_that_was_not_finished(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk of the storage: no file, no manifest, no trace in the folder for temporary files."""
    temporary = vault.root / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    vault.fill(300, dimension=32)

    def full_disk(self: FolderObjects, key: str, chunks: Any, unfinished: str = "") -> int:
        raise Permanent("The disk is full", key)

    with monkeypatch.context() as patch:
        patch.setattr(FolderObjects, "write_from", full_disk)
        with pytest.raises(VecrunError, match="The disk is full"):
            vault.small(300)
    assert list(temporary.glob("*")) == []
    assert vault.files == {}
    assert manifest.ids(vault.objects, FOLDER) == []


# The store of backups -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode", [pytest.param("count", marks=pytest.mark.long), pytest.param("sample", marks=pytest.mark.long), "full"]
)
def test_many_files_are_the_source_of_a_restore(vault: Vault, mode: str) -> None:
    """Copied and verified in each way, in partitions of several files."""
    before = vault.fill(900, dimension=32, kind=IdKind.UUID)
    assert vault.small(900)["files"] > 5
    done = vault.restore(
        "b", "kb", "back", verify={"mode": mode, **({"sample": 60} if mode == "sample" else {})}, batch_size=50
    )
    [verified] = [step["result"] for step in done.steps if step["type"] == "verify_points"]
    assert (verified["source"], verified["target"], verified["differences"]) == (900, 900, [])
    assert verified["compared"] >= {"count": 0, "sample": 50, "full": 900}[mode]
    with vault.store("b") as store:
        schema, there = whole(store, "back")
    assert points_of(there) == points_of(renamed(before, schema))


def test_a_scan_can_be_taken_up_anywhere(vault: Vault) -> None:
    """Rule: as in every store: ranges cover each id once, and a scan after any id gives the rest."""
    vault.fill(400, dimension=32, kind=IdKind.STRING)
    name = f"{vault.small(400)['id']}/kb"
    with BackupStore(vault.objects, FOLDER) as store:
        assert store.collections() == [name]
        for parts in (1, 3, 100):
            ids = [
                one
                for keys in store.cut(name, parts)
                for batch in store.scan(name, keys, None, 30)
                for one in batch.ids
            ]
            assert len(ids) == len(set(ids)) == store.count(name) == 400
        for keys in store.cut(name, 3):
            found = [one for batch in store.scan(name, keys, None, 30) for one in batch.ids]
            for at in (0, 29, 30, len(found) - 1):
                rest = [one for batch in store.scan(name, keys, found[at], 30) for one in batch.ids]
                assert rest == found[at + 1 :]
        assert store.size_bytes(name) == sum(len(data) for _time, data in vault.files.values())
        assert sorted(map(str, store.fetch(name, [*found[:40], "nobody"]).ids)) == sorted(map(str, found[:40]))


def test_a_source_in_another_order_of_ids(vault: Vault) -> None:
    """A database may sort texts in its own way, so that the ids of files overlap: each file is then read by itself."""
    vault.fill(300, dimension=32, kind=IdKind.STRING)

    class Folded(FilesStore):
        """Sorts by the text backwards."""

        def cut(self, name: str, parts: int) -> list[KeyRange]:
            ids = self._ordered(name)
            edges = [None, *(ids[len(ids) * part // 4] for part in range(1, 4)), None]
            return [KeyRange(low, high) for low, high in itertools.pairwise(edges)] if parts > 1 else [KeyRange()]

        def scan(
            self, name: str, keys: KeyRange, after: PointId | None = None, batch_size: int = 1000
        ) -> Iterator[PointBatch]:
            ids = [
                one for one in self._ordered(name)
                if (keys.lo is None or turned(one) >= turned(keys.lo)) and (keys.hi is None or turned(one) < turned(keys.hi))
                and (after is None or turned(one) > turned(after))
            ]  # fmt: skip
            for start in range(0, len(ids), batch_size):
                some = ids[start : start + batch_size]
                found = self.fetch(name, some)
                rows = {one: row for row, one in enumerate(found.ids)}
                yield found.take([rows[one] for one in some])

        def _ordered(self, name: str) -> list[PointId]:
            return sorted((one for b in super().scan(name, KeyRange()) for one in b.ids), key=turned)

    source = Folded(vault.root / "a")
    first = vault.small(300, stores={"a": source})
    assert first["files"] == 4
    assert vault.same(first["id"])
    again = vault.small(300, first["id"], stores={"a": source})
    assert (again["written"], again["kept"]) == (0, first["files"])
    with BackupStore(vault.objects, FOLDER) as store:
        assert len(store.cut(f"{first['id']}/kb", 2)) == first["files"]
        whole_scan = [one for batch in store.scan(f"{first['id']}/kb", KeyRange()) for one in batch.ids]
        assert whole_scan == sorted(whole_scan, key=str)


def turned(point_id: PointId) -> str:
    return str(point_id)[::-1]


def test_a_store_of_backups_is_only_read(vault: Vault) -> None:
    batch = vault.fill(20)
    name = f"{vault.small(20)['id']}/kb"
    before = vault.files
    with BackupStore(vault.objects, FOLDER) as store:
        schema = store.inspect(name)
        assert schema is not None
        writes: list[Callable[[], None]] = [
            lambda: store.create(schema), lambda: store.finish(schema), lambda: store.drop(name),
            lambda: store.upsert(name, batch), lambda: store.delete(name, batch.ids), lambda: store.set_alias("x", name),
        ]  # fmt: skip
        for write in writes:
            with pytest.raises(Permanent, match="A backup is only read"):
                write()
        with pytest.raises(Permanent, match="cannot be searched"):
            store.search(name, "v", batch.vectors["v"][:1], 1)
        assert store.aliases() == {}
        for absent in ("kb", "20200101_000000/kb", f"{name}2", "../kb"):
            assert store.inspect(absent) is None
            assert store.count(absent) == 0
            assert list(store.scan(absent, KeyRange())) == []
            assert store.fetch(absent, [1]).ids == []
        assert store.health().rights == ("read",)
    assert vault.files == before


def test_a_damaged_file_stops_a_scan(vault: Vault) -> None:
    vault.fill(100)
    name = f"{vault.small(100)['id']}/kb"
    path = next((vault.root / "bak" / FOLDER / "data").glob("*"))
    right = path.read_bytes()
    middle = len(right) // 2
    cases: list[tuple[bytes | None, str]] = [
        (right[:middle] + bytes([right[middle] ^ 4]) + right[middle + 1 :], "checksum"), (right[:-1], "bytes"),
        (right + b"x", "bytes"), (b"", "bytes"), (None, "not there"),
    ]  # fmt: skip
    for data, what in cases:
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
        with BackupStore(vault.objects, FOLDER) as store, pytest.raises(DamagedBackup, match=what):
            list(store.scan(name, KeyRange()))
    path.write_bytes(right)
    assert vault.same(name.partition("/")[0])
