"""Whether a backup would restore: every kind of damage is found, before anything is read out of it; and which backups gc
removes (issue 6: what must be shown, 3; retention)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner import commands
from runner.backups import manifest, points
from runner.backups.check import in_subset, rows_of
from runner.backups.manifest import Backup, CollectionFiles, PointFile, TableFile
from runner.documents.shape import Column, Shape
from runner.objects import FolderConfig, S3Config
from runner.objects.storage import open_objects
from runner.points import CollectionSchema, Distance, IdKind, KeyRange, PointId, VectorField
from runner.spec import digest
from runner.stores.files.tables import to_table
from tests.e2e.training import POINTS as POINTS_TABLE
from tests.e2e.training import Training, ok
from tests.e2e.workspace import Workspace, batch_of, run
from tests.servers import S3

TABLES, POINTS = "20261101_020000", "20261101_030000"
COLUMNS = ("id", 'a "quoted", name', "text")
KB = CollectionSchema(
    name="kb", id_kind=IdKind.INT, vectors=(VectorField(name="v", dimension=8, distance=Distance.COSINE),)
)


def cell(text: str | None) -> str:
    """A value as COPY writes it."""
    if text is None:
        return ""
    return '"' + text.replace('"', '""') + '"' if text == "" or any(c in text for c in ',"\r\n') else text


def table_file(folder: Path, name: str, rows: list[tuple[str | None, ...]]) -> TableFile:
    lines = [(",".join(map(cell, row)) + "\n").encode() for row in (COLUMNS, *rows)]
    total = sum(int.from_bytes(hashlib.sha256(line).digest()[:16]) for line in lines[1:])
    file, data = f"{name}_{TABLES}.csv", b"".join(lines)
    (folder / file).write_bytes(data)
    columns = tuple(Column(name=column, type="text") for column in COLUMNS)
    return TableFile(
        table=name, shape=Shape(schema_name="public", name=name, oid=1, database=1, columns=columns), file=file,
        rows=len(rows), bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), rows_digest=f"{total % 2**128:032x}",
        snapshot="1:1:", seconds=0.125,
    )  # fmt: skip


def point_file(folder: Path, schema: CollectionSchema, ids: list[PointId]) -> PointFile:
    table = to_table(schema, batch_of(schema, ids, [{"n": f"text {n}"} for n in ids]))
    content = points.content_of(schema, table)
    with points.written(table, "zstd") as data:
        made = points.described(table, data, content, KeyRange())
        (folder / "data").mkdir(exist_ok=True)
        (folder / made.file).write_bytes(data.read())
    return made


def write(folder: Path, **values: Any) -> Backup:
    """A manifest."""
    given = {"tool_version": "0", "job": "nightly", "run": "r-1", "began": "2026-11-01T02:00:00+00:00"}
    with open_objects(FolderConfig(type="folder", path=str(folder.parent))) as objects:
        return manifest.write(
            objects, folder.name, Backup(**given | {"finished": "2026-11-01T02:01:00+00:00"} | values)
        )


def make(folder: Path) -> Path:
    """Two backups: of two tables, and of a collection in three files."""
    folder.mkdir(parents=True)
    hard: list[tuple[str | None, ...]] = [
        ("1", None, "plain"), ("2", "", 'two\nlines, "quoted"\r\n\n'), ("3", "\\.", "ü 日本 \U0001f600"), ("4", '"', "\n"),
        *((str(n), f"row {n}", "x" * n) for n in range(5, 60)),
    ]  # fmt: skip
    tables = table_file(folder, "items", hard), table_file(folder, "empty", [])
    write(folder, id=TABLES, form="tables", tables=tables)
    files = tuple(point_file(folder, KB, [*range(start, start + 100)]) for start in (0, 100, 200))
    kb = CollectionFiles(connection="a", store="files", collection=KB, rows=300, files=files)
    write(folder, id=POINTS, form="collections", collections=(kb,))
    (folder / "vector_backup_log.txt").write_text("for people\n")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("backups") / "vector bak")


@pytest.fixture
def folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, far from any workspace."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(whole, tmp_path / whole.name))


def check(folder: Path | str, *args: str, code: int) -> str:
    found = run("backup", "check", folder, *args)
    assert found.exit_code == code, found.output
    document = json.loads(run("backup", "check", folder, *args, "--json").stdout)
    assert document["type"] == ("backup_check" if code != 10 else "error")
    if code != 10:
        assert document["ok"] == (code == 0)
    return found.stdout or found.stderr


def files_of(folder: Path, *patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns or ("*_2*", "data/*") for path in folder.glob(pattern))


def flip(path: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


# What is whole ------------------------------------------------------------------------------------------------------


def test_a_whole_backup_would_restore(folder: Path) -> None:
    said = check(folder, code=0)
    assert f"backup {POINTS} of job nightly" in said
    assert "  = collection kb: 300 points, 3 files" in said
    assert "Only its structure and the sizes of its files were looked at" in said
    assert said.endswith("It would restore, as far as that tells.\n")
    said = check(folder, "--all", "--read-data", code=0)
    assert "  = table items: 59 rows, 1 file" in said
    assert "  = table empty: 0 rows, 1 file" in said
    assert "1 read" in said
    assert "3 read" in said
    assert said.count("It would restore.\n") == 2
    assert "Only its structure" not in said
    assert "all of them would" in said


def test_the_manifest_itself_may_be_named_and_what_else_lies_there_does_not_matter(folder: Path) -> None:
    (folder / "items_20261101_020000.csv.tmp").write_text("grows")
    (folder / "notes.txt").write_text("mine")
    (folder / "data" / "of-another.parquet").write_text("x")
    (folder / "backup_latest.json").write_text("{}")
    said = check(folder / f"backup_{TABLES}.json", "--read-data", code=0)
    assert "table items" in said
    assert "collection kb" not in said
    assert "table items" in check(folder, "--backup", TABLES, code=0)
    assert "20261101_020000" in check(folder, "--backup", "20200101_000000", code=10)
    assert "This is no backup" in check(folder / "notes.txt", code=10)


def test_what_is_listed(folder: Path) -> None:
    lines = ok("backup", "list", str(folder)).splitlines()
    assert lines[0].split() == ["id", "time", "form", "rows", "size", "files", "whole", "job", "run"]
    assert lines[1].split()[:3] == [POINTS, "2026-11-01T03:00:00+00:00", "collections"]
    assert lines[2].split()[:4] == [TABLES, "2026-11-01T02:00:00+00:00", "tables", "59"]
    items = json.loads(ok("backup", "list", str(folder), "--json"))["items"]
    assert [(item["id"], item["whole"], item["rows"]) for item in items] == [(POINTS, True, 300), (TABLES, True, 59)]
    flip(folder / f"backup_{TABLES}.json", 500)
    assert f"! {TABLES}: The manifest of a backup is damaged" in ok("backup", "list", str(folder))


def test_where_there_is_nothing(folder: Path, tmp_path: Path) -> None:
    for path in files_of(folder, "backup_*.json"):
        path.unlink()
    assert "There is no backup" in check(folder, code=10)
    assert "vector bak" in check(make(tmp_path / "other" / "job" / "vector bak").parents[1], code=10)
    assert "There is nothing" in check(tmp_path / "nowhere", code=10)
    assert "No workspace here" in check("nightly", code=10)
    found = run("backup", "list", folder)
    assert (found.exit_code, found.stdout) == (10, "")


def test_a_backup_that_is_not_whole_says_so(folder: Path) -> None:
    failed = TableFile(table="gone", error="The login lacks a right")
    there = table_file(folder, "items", [("1", "a", "b")])
    write(folder, id="20261102_000000", form="tables", tables=(there, failed))
    said = check(folder, "--read-data", code=13)
    assert "! table gone: 0 rows" in said
    assert "it was not backed up: The login lacks a right" in said
    assert "It would not restore as a whole: 1 of 2 parts are not right." in said
    assert " no " in ok("backup", "list", str(folder)).splitlines()[1]


# Damage -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["items", "data", "manifest"])
@pytest.mark.parametrize("at", [0.0, 0.02, 0.3, 0.6, 0.98, 1.0])
def test_a_flipped_bit_is_found_wherever_it_is(folder: Path, name: str, at: float) -> None:
    patterns = {"items": "items_*.csv", "data": "data/*.parquet", "manifest": "backup_*.json"}
    for path in files_of(folder, patterns[name]):
        before = path.read_bytes()
        flip(path, round(at * (len(before) - 1)))
        said = check(folder, "--all", "--read-data", code=13)
        assert path.name in said
        assert "It would not restore" in said
        if name == "manifest":
            assert "would not restore" in check(folder, "--all", code=13)
        else:
            check(folder, "--all", code=0)  # and it says that it has not looked
        path.write_bytes(before)
    check(folder, "--all", "--read-data", code=0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 6), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_bit_of_any_file(folder: Path, which: int, where: float, bit: int) -> None:
    path = files_of(folder)[which]
    before = path.read_bytes()
    flip(path, int(where * len(before)), bit)
    try:
        found = commands.check_backups(lambda: pytest.fail("no workspace"), str(folder), every=True, read_data=True)
        assert not found.ok
        assert any(path.name in problem for item in found.backups for problem in item.problems), found
    finally:
        path.write_bytes(before)


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


@pytest.mark.parametrize("damage", [remove, cut, halve, empty, lengthen])
def test_what_is_missing_or_has_another_size_is_found_without_reading(
    folder: Path, damage: Callable[[Path], None]
) -> None:
    for path in files_of(folder, "*.csv", "data/*"):
        before = path.read_bytes()
        damage(path)
        for more in ((), ("--read-data",)):
            said = check(folder, "--all", *more, code=13)
            assert path.name in said
            assert ("is missing" if damage is remove else f"{len(before):,} are expected") in said
        path.write_bytes(before)


def test_all_damage_is_told_not_only_the_first(folder: Path) -> None:
    for path in files_of(folder, "data/*"):
        path.unlink()
    flip(folder / f"items_{TABLES}.csv", 100)
    said = check(folder, "--all", "--read-data", code=13)
    assert said.count("is missing") == 3
    assert "(sha256)" in said
    assert "2 backups: these not: 20261101_030000, 20261101_020000" in said


def test_files_that_were_swapped_are_found(folder: Path, whole: Path) -> None:
    one, two = files_of(folder, "data/*")[:2]
    before = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(before)
    said = check(folder, "--read-data", code=13)
    assert one.name in said
    assert two.name in said
    # of equal size, a row for a row: only what was read shows it
    path = folder / f"items_{TABLES}.csv"
    path.write_bytes(path.read_bytes().replace(b"row 7", b"row 8", 1))
    assert "its bytes are not those that were written" in check(folder, "--backup", TABLES, "--read-data", code=13)
    assert "would restore" in check(folder, "--backup", TABLES, code=0)


def rewritten(folder: Path, name: str, change: Callable[[dict[str, Any]], None], *, seal: bool = True) -> None:
    """The manifest changed, and its digest with it."""
    path = folder / f"backup_{name}.json"
    data = json.loads(path.read_text())
    change(data)
    if seal:
        data["digest"] = digest({key: value for key, value in data.items() if key != "digest"})
    path.write_text(json.dumps(data))


def test_a_manifest_that_says_something_else_than_the_files(folder: Path) -> None:
    """As a fault of vecrun would: every checksum is right."""
    rewritten(folder, TABLES, lambda data: data["tables"][0].update(rows=58))
    assert "it holds 59 rows, 58 are expected" in check(folder, "--backup", TABLES, "--read-data", code=13)
    rewritten(folder, TABLES, lambda data: data["tables"][0].update(rows=59, rows_digest="0" * 32))
    assert "rows_digest" in check(folder, "--backup", TABLES, "--read-data", code=13)
    rewritten(folder, TABLES, lambda data: data["tables"][1]["shape"]["columns"].pop())
    assert "does not name the columns" in check(folder, "--backup", TABLES, "--read-data", code=13)
    rewritten(folder, POINTS, lambda data: data["collections"][0].update(rows=301))
    assert "its files hold 300 points, 301 are expected" in check(folder, code=13)
    rewritten(folder, POINTS, lambda data: data["collections"][0]["files"][0].update(rows=101))
    assert "100 points" in check(folder, "--read-data", code=13)
    files = lambda data: data["collections"][0]["files"]  # noqa: E731
    rewritten(folder, POINTS, lambda data: files(data).append(files(data)[0]))
    assert "is named twice" in check(folder, code=13)


def test_a_manifest_that_was_edited_is_not_believed(folder: Path) -> None:
    rewritten(folder, TABLES, lambda data: data["tables"][0].update(rows=58), seal=False)
    assert "its content does not match its digest" in check(folder, "--backup", TABLES, code=13)


def test_a_manifest_under_another_name(folder: Path) -> None:
    shutil.copy(folder / f"backup_{POINTS}.json", folder / "backup_20261102_000000.json")
    assert f"it is the manifest of backup {POINTS}" in check(folder, code=13)
    (folder / "backup_20261103_000000.json").write_text("{}")
    assert "no whole JSON document" in check(folder, code=13)
    (folder / "backup_99999999_999999.json").write_text("{}")
    said = ok("backup", "list", str(folder))
    assert "20261103_000000" in said
    assert "99999999_999999" not in said, "no calendar has that day"


def test_versions_of_the_manifest(folder: Path) -> None:
    rewritten(folder, POINTS, lambda data: data.update(format_version="2.0", unheard="of"))
    said = check(folder, code=13)
    assert "made by a newer vecrun" in said
    assert "pip install -U vecrun" in said
    rewritten(folder, POINTS, lambda data: data.update(format_version="1.9", more={"that": "is new"}))
    check(folder, "--read-data", code=0)
    (folder / f"backup_{POINTS}.json").write_text("[]")
    assert "no whole JSON document" in check(folder, code=13)


def test_parts_of_a_large_one_add_up_to_all_of_it(folder: Path) -> None:
    names = [path.name for path in files_of(folder, "data/*")]
    read = [
        json.loads(run("backup", "check", folder, "--subset", f"{n}/4", "--json").stdout)["backups"][0]["read_files"]
        for n in range(1, 5)
    ]
    assert sum(read) == len(names)
    assert max(read) < len(names), "nothing was divided"
    flip(files_of(folder, "data/*")[1], 2000)
    codes = [run("backup", "check", folder, "--subset", f"{n}/4").exit_code for n in range(1, 5)]
    assert sorted(codes) == [0, 0, 0, 13]
    assert "Part 1/1 of its files was read: 3 of 3 files" in check(folder, "--subset", "1/1", code=13)
    for wrong in ("0/4", "5/4", "1", "a/b", "1/0"):
        assert run("backup", "check", folder, "--subset", wrong).exit_code == 2


@given(st.lists(st.text(min_size=1), max_size=50), st.integers(1, 12))
def test_each_file_is_in_exactly_one_part(names: list[str], t: int) -> None:
    for name in names:
        assert sum(in_subset(name, (n, t)) for n in range(1, t + 1)) == 1


@given(
    st.lists(st.lists(st.none() | st.text(alphabet='a",\r\n\\.é', max_size=6), min_size=1, max_size=3), max_size=8),
    st.integers(1, 9),
)
def test_rows_are_told_apart_wherever_the_pieces_end(rows: list[list[str | None]], size: int) -> None:
    lines = [(",".join(map(cell, row)) + "\n").encode() for row in rows]
    data = b"".join(lines)
    assert list(rows_of(data[at : at + size] for at in range(0, len(data), size))) == lines


# From a workspace ---------------------------------------------------------------------------------------------------

SETTINGS = """\
apiVersion: vecrun/v1
kind: Workspace
connections:
  a: {type: files, path: ./a}
  b: {type: files, path: ./b}
  backups: {type: folder, path: ./backups}
"""
NIGHTLY = """\
apiVersion: vecrun/v1
kind: VectorBackup
metadata: {name: nightly}
spec:
  collections: {connection: a, names: [kb], file_size_mb: 1}
  to: {connection: backups}
  keep: {last: 2}
"""
BACK = """\
apiVersion: vecrun/v1
kind: VectorRestore
metadata: {name: back}
spec:
  from: {connection: backups, folder: nightly/vector_bak, backup: ID}
  collections: {connection: b}
"""
APPLY = ("apply", "jobs/nightly.yaml", "--auto-approve")


class Nights:
    """A collection that changes, and its backups."""

    def __init__(self, ws: Workspace) -> None:
        self.ws, self.folder = ws, ws.root / "backups" / "nightly" / "vector_bak"
        ws.job.unlink()
        ws.write("vecrun.yaml", SETTINGS)
        ws.write("jobs/nightly.yaml", NIGHTLY)
        (ws.root / "backups").mkdir()
        ws.fill(2000, dimension=256)  # 2 MB

    def back_up(self, change: int) -> str:
        """One more, after a point has changed; its id."""
        with self.ws.store("a") as store:
            schema = store.inspect("kb")
            assert schema is not None
            store.upsert("kb", batch_of(schema, [change], [{"changed": change}], seed=change + 1))
        ok(*APPLY)
        return self.ids()[-1]

    def ids(self) -> list[str]:
        return [path.stem.removeprefix("backup_") for path in sorted(self.folder.glob("backup_*.json"))]

    def named(self, backup: str = "*") -> set[str]:
        """Files that the manifests name, or that of one backup."""
        return {
            file["file"]
            for path in self.folder.glob(f"backup_{backup}.json")
            for one in json.loads(path.read_text())["collections"]
            for file in one["files"]
        }

    def data(self) -> set[str]:
        return {f"data/{path.name}" for path in (self.folder / "data").iterdir()}


@pytest.fixture
def nights(ws: Workspace) -> Nights:
    return Nights(ws)


def garbage() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ok("gc", "--dry-run", "--json"))["garbage"]["backups"]
    return found


def test_a_backup_is_checked_where_the_workspace_has_it(nights: Nights) -> None:
    made = nights.back_up(1)
    for where in ("backups:nightly/vector_bak", "backups:nightly/vector_bak/", "nightly", str(nights.folder)):
        assert f"backup {made} of job nightly" in check(where, "--read-data", code=0)
    assert f"backups/nightly/vector_bak: backup {made} would restore: 2,000 read" in ok("verify", "nightly")
    flip(next(iter((nights.folder / "data").iterdir())), 100)
    check("nightly", "--read-data", code=13)
    assert "There is nothing" in check("other", code=10)
    assert "There is no backup" in check("backups:elsewhere", code=10)
    assert "names no folder" in check("backups:", code=10)
    found = run("verify", "nightly")
    assert found.exit_code == 13, found.output
    assert "backups/nightly/vector_bak: the backup would not restore:" in found.stdout
    assert "its checksum is not the one in its manifest" in found.stdout
    assert "would restore: names and sizes looked at" in ok("verify", "nightly", "--mode", "count")
    (nights.folder / f"backup_{made}.json").unlink()
    assert run("verify", "nightly").exit_code == 13


def test_a_backup_in_a_bucket(folder: Path, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"check-{uuid.uuid4().hex[:8]}"
    s3.client().create_bucket(Bucket=name)
    values = s3.connection(name, access_key_id="${env:VECRUN_TEST_KEY}", secret_access_key="${env:VECRUN_TEST_SECRET}")
    monkeypatch.setenv("VECRUN_TEST_KEY", s3.keys["admin"][0])
    monkeypatch.setenv("VECRUN_TEST_SECRET", s3.keys["admin"][1])
    written = {"apiVersion": "vecrun/v1", "kind": "Workspace", "connections": {"bucket": values}}
    Path("vecrun.yaml").write_text(json.dumps(written))
    with open_objects(S3Config(**s3.connection(name))) as objects:
        for path in files_of(folder):
            objects.write_from(f"deep/bak/{path.relative_to(folder)}", [path.read_bytes()])
        check("bucket:deep/bak", "--all", "--read-data", code=0)
        path = files_of(folder, "data/*")[0]
        flip(path, 50)
        objects.write(f"deep/bak/data/{path.name}", path.read_bytes())
    assert path.name in check("bucket:deep/bak", "--all", "--read-data", code=13)
    check("bucket:deep/bak", "--all", code=0)


@pytest.mark.parametrize("damage", ["flip", "remove", "manifest"])
def test_nothing_is_restored_out_of_a_damaged_backup(nights: Nights, damage: str) -> None:
    made = nights.back_up(1)
    nights.ws.write("jobs/back.yaml", BACK.replace("ID", f"'{made}'"))
    ok("plan", "jobs/back.yaml", "-o", "back.json")
    path = next(iter((nights.folder / "data").iterdir()))
    if damage == "flip":
        flip(path, 100)
    elif damage == "remove":
        path.unlink()
    else:
        rewritten(nights.folder, made, lambda data: data.update(source="another"))
    found = run("apply", "back.json", "--auto-approve")
    assert found.exit_code == (12 if damage == "manifest" else 13), found.output
    if damage != "manifest":
        assert "The backup is damaged" in found.stderr
        assert path.name in found.stderr
    with nights.ws.store("b") as store:
        assert store.collections() == []


# What gc removes ----------------------------------------------------------------------------------------------------


def test_gc_removes_what_no_rule_keeps_and_no_other_backup_needs(nights: Nights) -> None:
    made = [nights.back_up(number) for number in (1, 2, 3)]
    before = nights.ws.tree("backups")
    first = nights.named(made[0])
    assert first & nights.named(made[1]), "nothing is shared: the test shows nothing"
    (shown,) = garbage()
    assert [item["id"] for item in shown["backups"]] == made[:1]
    assert sorted(shown["kept"]) == made[1:]
    assert set(shown["files"]) == first - nights.named(made[1]) - nights.named(made[2]) != first
    said = ok("gc", "--dry-run")
    assert "backups of job nightly in backups/nightly/vector_bak" in said
    assert f"  - {made[0]}: collections, 2,000 rows" in said
    assert f"  = {made[2]} stays: last, newest, newest that holds rows" in said
    assert nights.ws.tree("backups") == before
    assert run("gc").exit_code == 1
    assert nights.ws.tree("backups") == before
    assert "1 backups" in ok("gc", "--auto-approve")
    assert nights.ids() == made[1:]
    assert nights.data() == nights.named(), "a file that is needed is gone, or one that is not has stayed"
    check("nightly", "--all", "--read-data", code=0)
    assert "Nothing to remove" in ok("gc", "--dry-run")


def test_without_a_rule_nothing_goes(nights: Nights) -> None:
    nights.ws.edit("jobs/nightly.yaml", "  keep: {last: 2}\n", "")
    for number in (1, 2, 3):
        nights.back_up(number)
    old = nights.folder / "data" / f"{'0' * 64}.parquet"
    old.write_bytes(b"left behind")
    os.utime(old, (0, 0))
    assert not garbage()


@pytest.mark.parametrize(
    "at",
    [pytest.param("backup", marks=pytest.mark.long), "manifest", pytest.param("backup file", marks=pytest.mark.long)],
)
def test_gc_that_is_killed_is_finished_by_the_next(nights: Nights, at: str) -> None:
    made = [nights.back_up(number) for number in (1, 2, 3, 4)]
    died = nights.ws.process("gc", "--auto-approve", env={"VECRUN_CRASH_AT": f"gc:{at}"})
    assert died.returncode == -9, died.stderr
    assert nights.ids() in (made, made[1:])
    check("nightly", "--all", "--read-data", code=0)
    assert garbage(), "what is half removed is forgotten"
    time.sleep(0.1)
    ok("gc", "--auto-approve")
    assert nights.ids() == made[2:]
    assert nights.data() == nights.named()
    assert not list(nights.folder.glob("leaving_*"))
    check("nightly", "--all", "--read-data", code=0)


def test_what_nobody_named_goes_only_when_it_is_old_and_our_own(nights: Nights) -> None:
    nights.back_up(1)
    names = {"old": f"data/{'0' * 64}.parquet", "new": f"data/{'1' * 64}.parquet"}
    strange = ["data/mine.txt", "data/x.parquet", "notes.txt", "items_20200101_000000.csv", "x_20200101_000000.csv.tmp"]
    for name in (*names.values(), *strange):
        (nights.folder / name).write_bytes(b"12345")
        if name != names["new"]:
            os.utime(nights.folder / name, (0, 0))
    (shown,) = garbage()
    assert (shown["files"], shown["bytes"], shown["backups"]) == ([names["old"]], 5, [])
    ok("gc", "--auto-approve")
    assert nights.data() == nights.named() | {names["new"], "data/mine.txt", "data/x.parquet"}
    assert all((nights.folder / name).exists() for name in strange)


def test_where_a_manifest_cannot_be_read_nothing_goes(nights: Nights) -> None:
    made = [nights.back_up(number) for number in (1, 2, 3)]
    flip(nights.folder / f"backup_{made[1]}.json", 300)
    assert not garbage()
    said = ok("gc", "--dry-run")
    assert "nothing is removed there: The manifest of a backup is damaged" in said
    assert made[1] in said


def test_what_a_run_needs_that_is_not_finished_stays(nights: Nights) -> None:
    made = [nights.back_up(number) for number in (1, 2, 3, 4)]
    nights.ws.write("jobs/back.yaml", BACK.replace("ID", f"'{made[0]}'"))
    died = nights.ws.process("apply", "jobs/back.yaml", "--auto-approve", env={"VECRUN_CRASH_AT": "check_backup:read"})
    assert died.returncode == -9, died.stderr
    (shown,) = garbage()
    assert [item["id"] for item in shown["backups"]] == [made[1]]
    assert "is not finished and needs it" in shown["kept"][made[0]][0]
    ok("gc", "--auto-approve")
    ok("resume", "back")
    restored = nights.ws.points("b", "kb")
    assert restored is not None
    assert len(restored) == 2000
    ok("gc", "--auto-approve")
    assert nights.ids() == [made[0], *made[2:]], "a rollback of the restore reads it"
    ok("rollback", "back", "--auto-approve")
    ok("gc", "--auto-approve")
    assert nights.ids() == made[2:]


@pytest.fixture
def training(ws: Workspace, pg_database: str, monkeypatch: pytest.MonkeyPatch) -> Training:
    """Tables that are emptied by each backup, of which the newest one is kept."""
    monkeypatch.setenv("VECRUN_TEST_APP", pg_database)
    made = Training(ws, pg_database)
    made.configure()
    made.truncate()
    ws.edit("jobs/training.yaml", "to: {connection: backups}", "to: {connection: backups}\n  keep: {last: 1}")
    return made


def nights_of(training: Training, count: int) -> list[str]:
    """Ids of so many backups, each of twenty other rows."""
    for number in range(count):
        training.fill(20, first=20 * number)
        ok("apply", "jobs/training.yaml", "--auto-approve")
    return [item["id"] for item in training.manifests()]


def test_a_backup_that_emptied_tables_can_be_filled_from_again_stays(training: Training) -> None:
    made = nights_of(training, 2)
    assert "It would restore." in check("training", "--all", "--read-data", code=0)
    assert f"backup {made[1]} would restore: 21 read" in ok("verify", "training")
    assert not garbage()
    ok("rollback", "training", "--auto-approve")
    assert training.count() == 20
    # the run before can be rolled back now, and the backup of this one is the newest
    assert not garbage()


def test_it_goes_once_its_run_cannot_be_rolled_back(training: Training) -> None:
    with (training.ws.root / "vecrun.yaml").open("a") as file:
        file.write("state: {retention: 1s}\n")
    made = nights_of(training, 2)
    time.sleep(1.2)
    (shown,) = garbage()
    assert [item["id"] for item in shown["backups"]] == made[:1]
    assert len(shown["files"]) == 2
    ok("gc", "--auto-approve")
    assert [item["id"] for item in training.manifests()] == made[1:]
    assert [name.rpartition(".")[0][-15:] for name in training.files() if name.endswith(".csv")] == made[1:] * 2
    check("training", "--all", "--read-data", code=0)


def test_files_that_a_killed_run_left_go_as_well(training: Training) -> None:
    nights_of(training, 1)
    training.fill(20)
    died = training.ws.process(
        "apply", "jobs/training.yaml", "--auto-approve", env={"VECRUN_CRASH_AT": "back_up_tables:written"}
    )
    assert died.returncode == -9, died.stderr
    ok("rollback", "training", "--auto-approve")
    named = {item["file"] for one in training.manifests() for item in one["tables"]}
    left = [name for name in training.files() if ".csv" in name and name not in named]
    assert left
    strange = "langchain_pg_embedding_20200101_000000.csv"  # of another program, before
    (training.folder / strange).write_text("id\n")
    assert not garbage(), "it may be somebody's work"
    for name in (*left, strange):
        os.utime(training.folder / name, (0, 0))
    (shown,) = garbage()
    assert (shown["files"], shown["backups"]) == (left, [])
    ok("gc", "--auto-approve")
    assert named | {strange} <= set(training.files())
    assert not set(left) & set(training.files())


def test_restored_tables_are_verified_and_what_is_kept_for_the_way_back_goes(training: Training) -> None:
    with (training.ws.root / "vecrun.yaml").open("a") as file:
        file.write("state: {retention: 1s}\n")
    nights_of(training, 1)
    training.fill(5, first=100)
    training.existing("replace")
    ok("apply", "jobs/back.yaml", "--auto-approve")
    said = ok("verify", "back")
    assert f"app-db/{POINTS_TABLE}: tables, 20 rows compared, 20 equal" in said
    training.sql(f"UPDATE {POINTS_TABLE} SET document = 'other' WHERE id = 't1'")
    assert "its rows are not those of the backup" in run("verify", "back").stdout
    training.sql(f"DELETE FROM {POINTS_TABLE} WHERE id = 't1'")
    assert "it holds 19 rows, the backup 20" in run("verify", "back").stdout
    time.sleep(1.2)
    tables = {
        name for item in json.loads(ok("gc", "--dry-run", "--json"))["garbage"]["runs"] for name in item["tables"]
    }
    assert tables
    ok("gc", "--auto-approve")
    with psycopg.connect(training.url) as db:
        left = db.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE 'vecrun%'").fetchall()
    assert left == []
    assert training.count() == 19
