"""What only the files store promises: damage is found, versions are refused, crashes and other processes do no harm."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runner.errors import Permanent
from runner.points import CollectionSchema, Distance, IdKind, KeyRange, Payloads, PointBatch, PointId, VectorField
from runner.store import PAYLOAD_FIELD
from runner.stores.files import FilesConfig, FilesStore
from runner.stores.files import parts as part_module
from tests import conftest
from tests.worlds import concat, newest, points, same

SCHEMA = CollectionSchema(
    name="kb", id_kind=IdKind.INT, vectors=(VectorField(name="", dimension=4, distance=Distance.DOT),)
)


def opened(path: Path) -> FilesStore:
    store = conftest.watch("files", FilesStore.connect(FilesConfig(path=str(path))))
    assert isinstance(store, FilesStore)
    return store


@pytest.fixture
def store(tmp_path: Path) -> FilesStore:
    found = opened(tmp_path)
    found.create(SCHEMA)
    return found


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the disk where no crash is tested."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def everything(store: FilesStore, schema: CollectionSchema = SCHEMA) -> PointBatch:
    return concat(store.scan(schema.name, KeyRange()), schema)


def part_files(path: Path) -> list[Path]:
    return sorted((path / "kb").glob("part-*.parquet"))


def named_files(path: Path) -> set[str]:
    manifest = json.loads((path / "kb" / "manifest.json").read_text())
    return {part["file"] for part in manifest["parts"]}


def test_connecting_and_reading_write_nothing(tmp_path: Path) -> None:
    """Given a path that is not there, when one looks, then nothing is made."""
    store = opened(tmp_path / "later")
    assert store.collections() == []
    assert store.count("kb") == 0
    assert store.aliases() == {}
    store.set_alias("live", None)
    store.drop("kb")
    assert "write" in store.health().rights
    assert not (tmp_path / "later").exists()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, Path.unlink])
def test_a_damaged_part_is_named(store: FilesStore, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """Given a part that was cut, changed or removed, when another process reads, then the error names the file."""
    store.upsert("kb", points(SCHEMA, 100))
    (part,) = part_files(tmp_path)
    damage(part)
    again = opened(tmp_path)
    for read in (
        lambda: everything(again),
        lambda: again.fetch("kb", points(SCHEMA, 100).ids),
        lambda: again.cut("kb", 2),
    ):
        with pytest.raises(Permanent) as caught:
            read()
        assert part.name in str(caught.value)
    again.upsert("kb", points(SCHEMA, 100, seed=1))
    with pytest.raises(Permanent, match=part.name):
        again.finish(SCHEMA)
    assert len(part_files(tmp_path)) == (1 if damage is Path.unlink else 2), "nothing is removed on top of the damage"


def test_a_damaged_manifest_is_named(store: FilesStore, tmp_path: Path) -> None:
    path = tmp_path / "kb" / "manifest.json"
    for text in (path.read_bytes()[:-20], b"", b"[]", b'{"format_version": "x"}'):
        path.write_bytes(text)
        with pytest.raises(Permanent, match=r"manifest\.json"):
            opened(tmp_path).inspect("kb")


def test_versions(store: FilesStore, tmp_path: Path) -> None:
    """Given a manifest of a newer major, then it is refused with the remedy; a newer minor only adds keys."""
    store.upsert("kb", points(SCHEMA, 5))
    path = tmp_path / "kb" / "manifest.json"
    document = json.loads(path.read_text())
    document["parts"][0]["new_key"] = 1
    path.write_text(json.dumps(document | {"format_version": "1.7", "new_key": {}}))
    assert opened(tmp_path).count("kb") == 5
    path.write_text(json.dumps(document | {"format_version": "2.0"}))
    with pytest.raises(Permanent, match="newer") as caught:
        opened(tmp_path).count("kb")
    assert "Upgrade" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["a/b", "..", ".hidden", "100%", "two words", "Ünï 日本", "a\\b", "CON", "manifest.json"]
)
def test_odd_names_of_collections(tmp_path: Path, name: str) -> None:
    store = opened(tmp_path / "root")
    schema = SCHEMA.model_copy(update={"name": name})
    store.create(schema)
    store.upsert(name, points(schema, 3))
    assert store.collections() == [name]
    assert opened(tmp_path / "root").count(name) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    store.drop(name)
    assert store.collections() == []


def test_a_name_is_needed(store: FilesStore, tmp_path: Path) -> None:
    with pytest.raises(Permanent):
        store.drop("")
    assert store.collections() == ["kb"]


def test_payloads_that_are_no_json_are_found(store: FilesStore) -> None:
    batch = points(SCHEMA, payloads=[{"a": 1}, {"a": float("nan")}, {"a": b"bytes"}, {"a": "\ud800"}])
    (found,) = store.problems(SCHEMA, batch)
    assert (found.code, found.ids, found.count) == (PAYLOAD_FIELD, tuple(batch.ids[1:]), 3)


def test_ids_too_long_for_statistics(tmp_path: Path) -> None:
    """Given texts so long that Parquet keeps no statistics of them, then ranges and fetches still find every point."""
    store, schema = opened(tmp_path), SCHEMA.model_copy(update={"id_kind": IdKind.STRING})
    store.create(schema)
    ids: list[PointId] = [f"{'x' * 6000}{n:05d}" for n in range(500)]
    batch = points(schema, ids=ids)
    store.upsert("kb", batch)
    assert same(store, schema, batch, everything(store, schema)) == []
    assert [i for b in store.scan("kb", KeyRange(ids[100], ids[300]), ids[200]) for i in b.ids] == ids[201:300]
    assert store.fetch("kb", ids[50:60]).ids == ids[50:60]
    # and when short ids, which have statistics, stand before them in the same part
    mixed: list[PointId] = [*(f"a{n:06d}" for n in range(3000)), *(f"{'x' * 6000}{n:05d}" for n in range(5000))]
    store.upsert("kb", points(schema, ids=mixed))
    assert set(store.fetch("kb", mixed).ids) == set(mixed)


@pytest.mark.parametrize("kind", [IdKind.INT, IdKind.STRING, IdKind.INT_OR_UUID])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.usefixtures("no_fsync")
def test_any_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: IdKind, seed: int) -> None:
    """Given any order of writes, deletes and merges of many small parts, then the store holds what a dict would."""
    monkeypatch.setattr(part_module, "FAN_IN", 3)
    monkeypatch.setattr(part_module, "GROUP_BYTES", 1)
    monkeypatch.setattr(part_module, "PART_BYTES", 20_000)
    rng = random.Random(seed)
    schema = SCHEMA.model_copy(update={"id_kind": kind})
    store = opened(tmp_path)
    store.create(schema)
    pool = points(schema, 900, seed=seed)
    history: list[PointBatch] = []
    model: dict[PointId, int] = {}
    for step in range(60):
        rows = rng.sample(range(900), rng.choice((1, 10, 200)))
        ids = [pool.ids[row] for row in rows]
        if rng.random() < 0.3:
            store.delete("kb", ids)
            for point_id in ids:
                model.pop(point_id, None)
        else:
            history.append(points(schema, ids=ids, seed=step))
            store.upsert("kb", history[-1])
            model.update(dict.fromkeys(ids, len(history) - 1))
        if rng.random() < 0.05:
            store.finish(schema)
        if rng.random() < 0.2:
            assert store.count("kb") == len(model)
    expected = newest(
        [b.take([r for r, i in enumerate(b.ids) if model.get(i) == n]) for n, b in enumerate(history)], schema
    )
    for _ in range(2):
        assert same(store, schema, expected, everything(store, schema)) == []
        assert same(store, schema, expected, store.fetch("kb", pool.ids)) == []
        for parts in (3, 8):
            ranges = store.cut("kb", parts)
            assert same(store, schema, expected, concat((b for k in ranges for b in store.scan("kb", k)), schema)) == []
        store.finish(schema)
    manifest = json.loads((tmp_path / "kb" / "manifest.json").read_text())
    assert len(manifest["parts"]) > 1
    assert sum(part["rows"] for part in manifest["parts"]) == len(model)
    assert {path.name for path in part_files(tmp_path)} == named_files(tmp_path)


def test_a_scan_survives_the_merge_of_its_parts(store: FilesStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a scan that has begun, when everything is merged and the old files go, then it gives the rest, once."""
    monkeypatch.setattr(part_module, "GROUP_BYTES", 1)
    batch = points(SCHEMA, 2000)
    batch = batch.take(sorted(range(2000), key=lambda row: batch.ids[row]))
    for start in range(0, 2000, 200):
        store.upsert("kb", batch.slice(start, start + 200))
    seen: list[PointId] = []
    for number, part in enumerate(store.scan("kb", KeyRange(), None, 100)):
        seen += part.ids
        if number == 3:
            opened(store.root).finish(SCHEMA)
    assert seen == batch.ids


def test_a_scan_of_a_dropped_collection_does_not_just_end(store: FilesStore) -> None:
    for seed in range(3):
        store.upsert("kb", points(SCHEMA, 200, seed=seed))
    scan = store.scan("kb", KeyRange(), None, 10)
    next(scan)
    opened(store.root).drop("kb")
    with pytest.raises(Permanent, match="does not exist"):
        list(scan)


@pytest.mark.usefixtures("no_fsync")
def test_many_writes_keep_few_parts(store: FilesStore, tmp_path: Path) -> None:
    """Given hundreds of small writes, then the parts are merged on the way, and `finish` leaves one."""
    for step in range(300):
        store.upsert("kb", points(SCHEMA, ids=[step, step + 1000]))
    assert len(part_files(tmp_path)) <= 3 * part_module.FAN_IN
    assert store.count("kb") == 600
    store.finish(SCHEMA)
    assert len(part_files(tmp_path)) == 1


def test_leftovers_are_not_points_and_go_away(store: FilesStore, tmp_path: Path) -> None:
    """Given files of a crash (a part that no manifest names, a temporary file), then they count for nothing."""
    store.upsert("kb", points(SCHEMA, 10))
    stray = tmp_path / "kb" / "part-stray-0000.parquet"
    stray.write_bytes(part_files(tmp_path)[0].read_bytes())
    young = tmp_path / "kb" / ".temp-young"
    young.touch()
    os.utime(stray, (0, 0))
    assert store.count("kb") == len(everything(store)) == 10
    store.finish(SCHEMA)
    assert not stray.exists()
    assert young.exists(), "it may belong to a writer that is at work"


WRITER = """
import sys
import numpy as np
from runner.points import Payloads, PointBatch
from runner.stores.files import FilesConfig, FilesStore
root, start, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = FilesStore.connect(FilesConfig(path=root))
for n in range(count):
    ids = [start + n * 20 + k for k in range(20)]
    store.upsert("kb", PointBatch(ids, {"": np.full((20, 4), n, np.float32)}, Payloads([{"n": i} for i in ids])))
    print(n, flush=True)
"""


def writer(path: Path, start: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), str(start), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def test_several_processes_write_one_collection(store: FilesStore, tmp_path: Path) -> None:
    """Given three processes that write at once (and merge on the way), then no write of any of them is lost."""
    started = [writer(tmp_path, number * 100_000, 40) for number in range(3)]
    store.upsert("kb", points(SCHEMA, ids=list(range(900_000, 900_050))))
    for process in started:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert store.count("kb") == 3 * 40 * 20 + 50
    assert len({*everything(store).ids}) == 3 * 40 * 20 + 50
    store.finish(SCHEMA)
    assert {path.name for path in part_files(tmp_path)} == named_files(tmp_path)


@pytest.mark.parametrize("after", [1, 17, 33])
def test_a_killed_writer_loses_nothing(store: FilesStore, tmp_path: Path, after: int) -> None:
    """Given a writer that is killed, then every batch it had confirmed is there, whole, and the next one can go on."""
    process = writer(tmp_path, 0, 1000)
    assert process.stdout is not None
    with process.stdout:
        for _ in range(after):
            confirmed = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    found = everything(opened(tmp_path))
    assert len(found) % 20 == 0
    assert {*range((confirmed + 1) * 20)} <= {*found.ids}
    assert np.array_equal(found.vectors[""][:, 0], np.array(found.ids) // 20)
    store.upsert("kb", PointBatch([5], {"": np.zeros((1, 4), np.float32)}, Payloads([{}])))
    store.finish(SCHEMA)
    assert store.count("kb") == len(found)
