"""The contract of object storage: one suite for a folder and for S3 (moto), then what only one of them has (C1)."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from runner.cli import cli
from runner.errors import NotFound, Permanent, RateLimited, Transient, VecrunError
from runner.objects import OBJECTS, FolderConfig, S3Config
from runner.objects.storage import Objects, open_objects
from runner.settings import load
from runner.world import World, connection_model
from tests.servers import S3

KEYS = [
    "plain.txt", "a b.txt", "ümlaut/é.pdf", "日本/語.md", "100%.txt", "a%20b", "%2e%2e/x", "note #12", "x?y&z=1", "a+b;c,d",
    "~x", "[1]{2}", "'q\"<>|*", "e\u0301 decomposed", "…", "-rf", ".hidden/.file", "a..b/...", "l" * 200 + "/" + "m" * 200,
]  # fmt: skip
NO_KEYS = [
    "", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "a\\..\\x", "a\x00b", "a\nb", "a//b", "a/", "./a", "a/./b", "\ud800",
]  # fmt: skip


@pytest.fixture(params=["folder", "s3", "s3-prefix"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> FolderConfig | S3Config:
    """A new place for files."""
    if request.param == "folder":
        (tmp_path / "files").mkdir()
        return FolderConfig(type="folder", path=str(tmp_path / "files"))
    server: S3 = request.getfixturevalue("s3")
    return S3Config(**server.connection(bucket(server), prefix="kb/2026/" if "prefix" in request.param else ""))


@pytest.fixture
def objects(config: FolderConfig | S3Config) -> Iterator[Objects]:
    with open_objects(config) as opened:
        yield opened


def bucket(server: S3) -> str:
    """The name of a new one."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    server.client().create_bucket(Bucket=name)
    return name


# Both ---------------------------------------------------------------------------------------------------------------


def test_files_of_all_names(objects: Objects) -> None:
    for key in KEYS:
        assert objects.head(key) is None
        data = key.encode() * 3
        objects.write(key, data)
        found = objects.head(key)
        assert found is not None
        assert (found.key, found.size) == (key, len(data))
        assert abs(found.modified - datetime.now(UTC)) < timedelta(minutes=1)
        assert objects.read(key) == data
        objects.copy(key, f"trash/{key}")
        assert objects.read(f"trash/{key}") == data
    assert sorted(item.key for item in objects.list()) == sorted([*KEYS, *(f"trash/{key}" for key in KEYS)])
    for key in KEYS:
        objects.delete(key)
        assert objects.head(key) is None
    assert {item.key: item.size for item in objects.list()} == {f"trash/{key}": len(key.encode()) * 3 for key in KEYS}


def test_what_is_no_key_is_refused_by_everything(objects: Objects) -> None:
    objects.write("good", b"1")
    calls: list[Callable[[str], object]] = [
        objects.read, objects.head, objects.delete, lambda key: objects.write(key, b""),
        lambda key: objects.copy(key, "good"), lambda key: objects.copy("good", key),
    ]  # fmt: skip
    for key in NO_KEYS:
        for call in calls:
            with pytest.raises(Permanent, match="no key of a file"):
                call(key)
    assert objects.read("good") == b"1"


def test_a_key_that_is_too_long_is_a_clear_error(objects: Objects) -> None:
    with pytest.raises(Permanent):
        objects.write("x" * 1500, b"1")
    assert list(objects.list()) == []


def test_everything_may_be_repeated(objects: Objects) -> None:
    for data in (b"first", b"", b"second"):
        for _ in range(2):
            objects.write("a/f", data)
            objects.copy("a/f", "b/f")
            objects.copy("b/f", "b/f")
            assert objects.read("b/f") == data
    for _ in range(2):
        objects.delete("a/f")
        objects.delete("never/there")
    assert [item.key for item in objects.list()] == ["b/f"]


def test_what_is_not_there(objects: Objects) -> None:
    objects.write("folder/f", b"1")
    for key in ("nothing", "folder", "folder/f/below", "folder/g"):
        assert objects.head(key) is None
        with pytest.raises(NotFound, match="No such file"):
            objects.read(key)
        with pytest.raises(NotFound, match="No such file"):
            objects.copy(key, "to")
        objects.delete(key)
    assert [item.key for item in objects.list()] == ["folder/f"]


def test_a_list_is_of_one_folder(objects: Objects) -> None:
    for key in ("kb/a", "kb/b/c", "kbx/d", "kb.e", "z"):
        objects.write(key, b"1")
    assert sorted(item.key for item in objects.list("kb")) == ["kb/a", "kb/b/c"]
    assert sorted(item.key for item in objects.list("kb/")) == ["kb/a", "kb/b/c"]
    assert list(objects.list("nothing")) == []
    assert len(list(objects.list())) == 5
    for item in objects.list():
        assert objects.head(item.key) == item
    with pytest.raises(Permanent, match="no key"):
        list(objects.list("../"))


def test_bytes_stay_bytes_and_a_limit_is_kept(objects: Objects) -> None:
    data = bytes(range(256)) * 40_000  # 10 MB
    objects.write("big", data)
    objects.copy("big", "trash/big")
    objects.delete("big")
    objects.copy("trash/big", "big")
    assert objects.read("big", limit=len(data)) == data
    with pytest.raises(Permanent, match="too large"):
        objects.read("big", limit=len(data) - 1)


class Broken(Exception):
    """What a caller's iterator raises."""


def given_pieces(count: int, size: int, error: BaseException | None = None) -> Iterator[bytes]:
    for number in range(count):
        yield bytes([number % 256]) * size
    if error is not None:
        raise error


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 0), (1, 1), (1000, 10), (5, 7_000_000)])
def test_pieces_in_and_out(objects: Objects, count: int, size: int) -> None:
    data = b"".join(given_pieces(count, size))
    for _ in range(2):
        assert objects.write_from("a/f", given_pieces(count, size), unfinished="a/f.tmp") == len(data)
    found = objects.head("a/f")
    assert found is not None
    assert found.size == len(data)
    assert [item.key for item in objects.list()] == ["a/f"]
    for wanted in (1 << 20, 1 << 24):
        pieces = list(objects.pieces("a/f", wanted))
        assert b"".join(pieces) == data
        assert max(map(len, pieces), default=0) <= 4 * wanted, "all of it at once"
    objects.write("a/f", b"over it")
    assert b"".join(objects.pieces("a/f")) == b"over it"


def test_pieces_of_what_is_not_there(objects: Objects) -> None:
    objects.write("folder/f", b"1")
    for key in ("nothing", "folder"):
        with pytest.raises(NotFound, match="No such file"):
            next(objects.pieces(key))
    with pytest.raises(Permanent, match="no key of a file"):
        next(objects.pieces("../x"))
    with pytest.raises(Permanent, match="no key of a file"):
        objects.write_from("../x", [b"1"])


@pytest.mark.parametrize(
    "error",
    [Broken("mine"), OSError("mine"), ValueError("mine"), Transient("mine"), KeyboardInterrupt("mine")],
    ids=repr,
)
@pytest.mark.parametrize(("count", "size"), [(0, 0), (3, 10), (2, 17_000_000)])
def test_an_iterator_that_raises_leaves_nothing(
    request: pytest.FixtureRequest, objects: Objects, config: Any, error: BaseException, count: int, size: int
) -> None:
    objects.write("there", b"before")
    for key in ("f", "there"):
        with pytest.raises(type(error), match="mine") as caught:
            objects.write_from(key, given_pieces(count, size, error), unfinished=f"{key}.tmp")
        assert caught.value is error, "an error of the caller, told as one of the storage"
    assert [(item.key, item.size) for item in objects.list()] == [("there", 6)]
    assert objects.read("there") == b"before"
    if isinstance(config, S3Config):
        server: S3 = request.getfixturevalue("s3")
        assert not server.client().list_multipart_uploads(Bucket=config.bucket).get("Uploads")
    else:
        assert [path.name for path in Path(config.path).iterdir()] == ["there"]
    assert objects.write_from("f", [b"now"]) == 3
    assert objects.read("f") == b"now"


def test_threads_at_work_on_one_storage(objects: Objects) -> None:
    failed = []

    def work(name: str) -> None:
        try:
            for number in range(5):
                objects.write(f"{name}/{number}", name.encode())
                objects.copy(f"{name}/{number}", f"t/{name}/{number}")
                assert objects.read(f"t/{name}/{number}") == name.encode()
        except BaseException as exc:  # the thread's, told to the test
            failed.append(exc)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(list(objects.list())) == 40


def test_health_says_what_it_is(objects: Objects, config: FolderConfig | S3Config) -> None:
    health = objects.health()
    assert health.version.startswith(config.type)
    assert "list" in health.rights


# As connections of a workspace --------------------------------------------------------------------------------------


def workspace(root: Path, connections: dict[str, Any]) -> Path:
    (root / "vecrun.yaml").write_text(
        json.dumps({"apiVersion": "vecrun/v1", "kind": "Workspace", "connections": connections})
    )
    return root


def given(config: FolderConfig | S3Config, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The connection as it is written in a file."""
    values = config.model_dump(exclude_defaults=True) | {"type": config.type}
    for key in ("access_key_id", "secret_access_key"):
        if key in values:
            monkeypatch.setenv(f"VECRUN_TEST_{key.upper()}", values[key])
            values[key] = f"${{env:VECRUN_TEST_{key.upper()}}}"
    return values


def test_only_apply_writes(config: FolderConfig | S3Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(workspace(tmp_path, {"files": given(config, monkeypatch)}), "", connection_model)
    with World(settings, "write") as world:
        world.objects("files").write("f", b"1")
        assert world.objects("files") is world.objects("files")
        assert world.local("files") == (config.type == "folder")
    for mode in ("read", "dry"):
        with World(settings, mode) as world:  # type: ignore[arg-type]
            objects = world.objects("files")
            for write in (lambda o: o.write("g", b"2"), lambda o: o.copy("f", "g"), lambda o: o.delete("f")):
                with pytest.raises(Permanent, match="read-only") if mode == "read" else contextlib.nullcontext():
                    write(objects)
            assert [item.key for item in objects.list()] == ["f"]
            assert objects.read("f") == b"".join(objects.pieces("f")) == b"1"
            assert objects.free() is None or config.type == "folder"
            assert objects.head("g") is None
            with pytest.raises(Permanent, match="no vector store"):
                world.store("files")
            with pytest.raises(Permanent, match="no relational database"):
                world.database("files")


def test_connections_test_asks_it(
    config: FolderConfig | S3Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = workspace(tmp_path, {"files": given(config, monkeypatch), "other": {"type": "sql", "url": "sqlite:///a.db"}})
    done = CliRunner().invoke(cli, ["-w", str(root), "connections", "test", "files", "--json"])
    assert done.exit_code == 0, done.output
    assert config.type in done.output
    settings = load(root, "", connection_model)
    with World(settings, "read") as world, pytest.raises(Permanent, match="no object storage"):
        world.objects("other")


def test_a_connection_that_cannot_be_says_why(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = given(S3Config(**s3.connection("nothing-there-1")), monkeypatch)
    root = workspace(tmp_path, {"bucket": values, "folder": {"type": "folder", "path": "./missing"}})
    done = CliRunner().invoke(cli, ["-w", str(root), "connections", "test"])
    assert done.exit_code != 0
    assert "The bucket does not exist" in done.output
    assert "The folder does not exist" in done.output
    assert s3.keys["admin"][1] not in done.output


@pytest.mark.parametrize("key", ["access_key_id", "secret_access_key", "session_token"])
def test_keys_are_not_written_out_in_a_workspace(tmp_path: Path, key: str) -> None:
    values = dict.fromkeys(("access_key_id", "secret_access_key", "session_token"), "${env:X}")
    root = workspace(tmp_path, {"b": {"type": "s3", "bucket": "bbb"} | values | {key: "literal"}})
    done = CliRunner().invoke(cli, ["-w", str(root), "validate"])
    assert done.exit_code == 14
    assert "a secret is written out here" in done.output
    assert done.output.count("a secret is") == 1


@pytest.mark.parametrize(
    "values",
    [
        {"bucket": ""}, {"bucket": "a/b"}, {"endpoint": "minio:9000"}, {"prefix": "../x"}, {"prefix": "a//b"}, {"prefix": "a\\b"},
        {"access_key_id": "x"}, {"secret_access_key": "x"}, {"session_token": "x"}, {"timeout": 0}, {"unknown": 1},
        {"endpoint": "https://10.0.0.1:9000", "path_style": False}, {"endpoint": "https://"}, {"endpoint": "http://[::"},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        S3Config(**{"type": "s3", "bucket": "good", **values})


def test_settings_explain_themselves_and_hide_keys() -> None:
    for name, model in OBJECTS.items():
        properties = model.model_json_schema()["properties"]
        assert properties["type"]["const"] == name
        assert all("description" in value for value in properties.values())
    shown = repr(S3Config(type="s3", bucket="bbb", access_key_id="AKIDSHOWN", secret_access_key="SECRET"))
    assert "AKIDSHOWN" not in shown
    assert "SECRET" not in shown


# Folder -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


@pytest.fixture
def folder(root: Path) -> Iterator[Objects]:
    with open_objects(FolderConfig(type="folder", path=str(root))) as opened:
        yield opened


def test_links_out_of_the_folder_are_not_followed(folder: Objects, root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "outside").mkdir()
    (root / "inside").write_text("inside")
    (root / "file").symlink_to(tmp_path / "secret")
    (root / "dir").symlink_to(tmp_path / "outside")
    (root / "dangling").symlink_to(tmp_path / "made-by-a-write")
    (root / "circle").symlink_to(root / "circle")
    (root / "loop").symlink_to(root)
    (root / "good").symlink_to("inside")
    for key in ("file", "dir/x", "dangling"):
        for call in (folder.read, folder.head, folder.delete, lambda k: folder.write(k, b"")):
            with pytest.raises(Permanent, match="leads out"):
                call(key)
    with pytest.raises(Permanent, match="leads out"):
        folder.copy("inside", "dir/x")
    with pytest.raises(Permanent):
        folder.read("circle")
    assert folder.read("good") == b"inside"
    assert sorted(item.key for item in folder.list()) == ["good", "inside"]
    assert (tmp_path / "secret").read_text() == "secret"
    assert list((tmp_path / "outside").iterdir()) == []
    assert not (tmp_path / "made-by-a-write").exists()


def test_a_copy_is_a_copy_with_mode_and_times(folder: Objects, root: Path) -> None:
    folder.write("f", b"as it was")
    (root / "f").chmod(0o440)
    os.utime(root / "f", ns=(1_600_000_000_123456789, 1_600_000_000_123456789))
    folder.copy("f", "trash/f")
    folder.delete("f")
    folder.copy("trash/f", "f")
    assert (root / "f").stat().st_mode & 0o777 == 0o440
    assert (root / "f").stat().st_mtime_ns == 1_600_000_000_123456789
    (root / "f").chmod(0o640)
    with (root / "f").open("r+b") as file:  # an application that writes in place does not change what was saved
        file.write(b"changed")
    assert folder.read("trash/f") == b"as it was"


WRITER = """
import sys
from runner.objects import FolderConfig
from runner.objects.storage import open_objects
folder = open_objects(FolderConfig(type="folder", path=sys.argv[1]))
print("up", flush=True)
while True:
    for byte in (b"a", b"b"):
        folder.write("f", byte * 5_000_000)
        folder.copy("f", "t/f")
"""


def test_a_killed_writer_leaves_whole_files_and_its_rest_is_taken_up(folder: Objects, root: Path) -> None:
    leftovers = 0
    for turn in range(4):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(root)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + turn * 0.013)
        process.kill()
        process.wait()
        process.stdout.close()
        for item in folder.list():
            data = folder.read(item.key)
            assert len(data) == item.size == 5_000_000
            assert len(set(data)) == 1, "half of one, half of another"
        leftovers += len(list(root.rglob(".vecrun-*.part")))
    folder.write("f", b"1")
    folder.copy("f", "t/f")
    assert sorted(path.name for path in root.rglob("*") if path.is_file()) == ["f", "f"]
    assert leftovers, "no kill hit a write: the test shows nothing"


def test_a_file_is_seen_growing_under_its_other_name(folder: Objects, root: Path) -> None:
    seen = []

    def chunks() -> Iterator[bytes]:
        for _ in range(3):
            yield b"x" * 200_000
            seen.append(([item.key for item in folder.list()], (root / "f.csv.tmp").stat().st_size))

    folder.write_from("f.csv", chunks(), unfinished="f.csv.tmp")
    assert [keys for keys, _size in seen] == [["f.csv.tmp"]] * 3
    assert [size for _keys, size in seen] == sorted({size for _keys, size in seen}), "it does not grow"
    assert [item.key for item in folder.list()] == ["f.csv"]


GROWER = """
import sys, time
from runner.objects import FolderConfig
from runner.objects.storage import open_objects

def chunks():
    yield b"of the dead" * 100_000
    print("up", flush=True)
    time.sleep(60)

open_objects(FolderConfig(type="folder", path=sys.argv[1])).write_from("f.csv", chunks(), unfinished="f.csv.tmp")
"""


def test_what_a_killed_writer_left_growing_is_taken_over(folder: Objects, root: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", GROWER, str(root)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(Transient, match="Somebody else writes this file"):  # it lives
        folder.write_from("f.csv", [b"mine"], unfinished="f.csv.tmp")
    process.kill()
    process.wait()
    process.stdout.close()
    assert [item.key for item in folder.list()] == ["f.csv.tmp"]
    (root / "f.csv.tmp").chmod(0o400)
    assert folder.write_from("f.csv", [b"mine"], unfinished="f.csv.tmp") == 4
    assert [path.name for path in root.iterdir()] == ["f.csv"]
    assert folder.read("f.csv") == b"mine"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a small disk needs root, to mount a tmpfs")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_leaves_nothing(small_disk: Path) -> None:
    folder = open_objects(FolderConfig(type="folder", path=str(small_disk)))
    folder.write("there", b"x" * 10_000)
    room = folder.free()
    assert room is not None
    assert 900_000 < room < 2**20
    for size in (100, 100_000, 2_000_000):  # full in the middle, and when the rest is flushed
        for unfinished in ("", "there.tmp"):
            with pytest.raises(Permanent, match="The disk is full"):
                folder.write_from("there", (b"y" * size for _ in range(2_000_000 // size)), unfinished=unfinished)
            assert [path.name for path in small_disk.iterdir()] == ["there"]
    assert folder.read("there") == b"x" * 10_000
    assert folder.free() == room


def test_room_is_what_this_user_may_use(folder: Objects, root: Path) -> None:
    room, disk = folder.free(), os.statvfs(root)
    assert room is not None
    assert abs(room - disk.f_bavail * disk.f_frsize) < 2**30
    root.rename(root.with_name("elsewhere"))
    with pytest.raises(Permanent, match="The folder does not exist"):
        folder.free()


def test_two_writers_of_one_file(folder: Objects) -> None:
    """Each write is whole, or Transient because another one is under way."""

    def work(byte: bytes) -> None:
        for _ in range(10):
            with contextlib.suppress(Transient):
                folder.write("f", byte * 200_000)

    threads = [threading.Thread(target=work, args=(byte,)) for byte in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with contextlib.suppress(NotFound):
            assert len(set(folder.read("f"))) == 1
    assert len(folder.read("f")) == 200_000


def test_a_folder_that_is_gone_is_not_empty(folder: Objects, root: Path) -> None:
    folder.write("f", b"1")
    root.rename(root.with_name("elsewhere"))
    for call in (
        lambda: folder.head("f"), lambda: folder.read("f"), lambda: folder.delete("f"), lambda: folder.write("f", b""),
        lambda: list(folder.list()), folder.health,
    ):  # fmt: skip
        with pytest.raises(Permanent, match="The folder does not exist"):
            call()
    assert not root.exists()


def test_what_is_no_file(folder: Objects, root: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / ".vecrun-x.part").write_text("unfinished")
    (root / os.fsdecode(b"bad-\xff")).write_text("no text")
    folder.write("dir/f", b"1")
    assert folder.head("pipe") is None
    with pytest.raises(NotFound):
        folder.read("pipe")  # and it does not wait
    with pytest.raises(Permanent, match=r"vecrun's own"):
        folder.delete(".vecrun-x.part")
    for key in ("dir", "dir/f/g"):
        with pytest.raises(Permanent, match="cannot have this file"):
            folder.write(key, b"1")
    assert [item.key for item in folder.list()] == ["dir/f"]
    assert folder.read("dir/f") == b"1"
    assert sorted(path.name for path in root.rglob(".vecrun-*")) == [".vecrun-x.part"]


@pytest.mark.skipif(os.geteuid() == 0 and not hasattr(os, "seteuid"), reason="root may do everything")
def test_no_rights(folder: Objects, root: Path) -> None:
    folder.write("f", b"1")
    (root / "f").chmod(0)
    root.chmod(0o555)
    root.parent.chmod(0o755)
    mine = os.geteuid()
    above = [path for path in root.parents if not path.stat().st_mode & 1]
    for path in above:
        path.chmod(path.stat().st_mode | 0o011)
    try:
        if mine == 0:
            os.seteuid(65534)
        for verb, call in (
            ("read", lambda: folder.read("f")),
            ("write", lambda: folder.write("g", b"")),
            ("delete", lambda: folder.delete("f")),
            ("copy", lambda: folder.copy("f", "g")),
        ):
            with pytest.raises(Permanent, match=f"No right to {verb} a file: .* in "):
                call()
        assert folder.health().rights == ("list", "read")
    finally:
        if mine == 0:
            os.seteuid(0)
        root.chmod(0o755)
        for path in above:
            path.chmod(path.stat().st_mode & ~0o011)


# S3 -----------------------------------------------------------------------------------------------------------------


def opened(values: dict[str, Any]) -> Objects:
    return open_objects(S3Config(**values))


def test_what_belongs_to_a_file_survives_trash_and_back(s3: S3) -> None:
    name, client = bucket(s3), s3.client()
    client.put_object(
        Bucket=name, Key="kb/report.pdf", Body=b"%PDF-", ContentType="application/pdf", CacheControl="no-store",
        ContentDisposition="inline", Metadata={"owner": "legal"}, Tagging="class=secret",
    )  # fmt: skip
    with opened(s3.connection(name)) as objects:
        objects.copy("kb/report.pdf", "trash/r1/kb/report.pdf")
        objects.delete("kb/report.pdf")
        objects.copy("trash/r1/kb/report.pdf", "kb/report.pdf")
    found = client.get_object(Bucket=name, Key="kb/report.pdf")
    assert found["Body"].read() == b"%PDF-"
    assert found["ContentType"] == "application/pdf"
    assert found["CacheControl"] == "no-store"
    assert found["ContentDisposition"] == "inline"
    assert found["Metadata"] == {"owner": "legal"}
    tags = client.get_object_tagging(Bucket=name, Key="kb/report.pdf")["TagSet"]
    assert tags == [{"Key": "class", "Value": "secret"}]


@pytest.mark.parametrize("who", ["reader", "writer", "nobody"])
def test_rights(s3: S3, who: str) -> None:
    name = bucket(s3)
    with opened(s3.connection(name)) as admin:
        admin.write("f", b"1")
    may = {"reader": ("read", "list"), "writer": ("read", "list", "write", "copy"), "nobody": ()}[who]
    calls: dict[str, Callable[[Objects], object]] = {
        "read": lambda o: (o.read("f"), o.head("f")),
        "write": lambda o: o.write("g", b"2"),
        "copy": lambda o: o.copy("f", "h"),
        "delete": lambda o: o.delete("f"),
        "list": lambda o: (list(o.list()), o.health()),
    }
    for verb, call in calls.items():
        with opened(s3.connection(name, who)) as objects:
            if verb in may:
                call(objects)
            else:
                with pytest.raises(Permanent, match=f"No right to {verb}") as caught:
                    call(objects)
                assert "s3:" in caught.value.hint
                assert name in caught.value.detail
    with opened(s3.connection(name, "nobody")) as objects, pytest.raises(Permanent, match="No right to read"):
        objects.head("f")
    with opened(s3.connection(name)) as admin:
        assert admin.read("f") == b"1"


def test_a_bucket_that_does_not_exist_is_not_an_absent_file(s3: S3) -> None:
    calls: list[Callable[[Objects], object]] = [
        lambda o: o.read("f"), lambda o: o.head("f"), lambda o: o.write("f", b""), lambda o: o.delete("f"),
        lambda o: o.copy("f", "g"), lambda o: list(o.list()), lambda o: o.health(),
    ]  # fmt: skip
    for call in calls:
        with (
            opened(s3.connection("nothing-there-2")) as objects,
            pytest.raises(Permanent, match="The bucket does not exist: s3://nothing-there-2 at 127"),
        ):
            call(objects)


@pytest.mark.parametrize(
    "wrong", [{"secret_access_key": "wrongwrongwrong"}, {"access_key_id": "AKIAWRONGWRONGWRONG0"}], ids=str
)
def test_wrong_keys(s3: S3, wrong: dict[str, str]) -> None:
    values = s3.connection(bucket(s3)) | wrong
    calls: list[Callable[[Objects], object]] = [lambda o: o.read("f"), lambda o: o.head("f"), lambda o: o.health()]
    for call in calls:
        with opened(values) as objects, pytest.raises(Permanent, match="does not accept the key") as caught:
            call(objects)
        assert all(secret not in str(caught.value) for secret in (*wrong.values(), *s3.keys["admin"]))


def test_keys_of_the_environment_are_not_mixed_with_those_given(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    name = bucket(s3)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-somebody-else")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.keys["nobody"][0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.keys["nobody"][1])
    with opened(s3.connection(name)) as objects:
        objects.write("f", b"1")
    without = {key: value for key, value in s3.connection(name).items() if "key" not in key}
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    with opened(without) as objects, pytest.raises(Permanent, match="No right to read"):
        objects.read("f")  # as nobody, whose keys the environment has


class Answer(BaseHTTPRequestHandler):
    """Answers every request with what the server was told, and notes it."""

    def answer(self) -> None:
        server: Any = self.server
        server.asked.append((self.headers["Host"], self.path))
        if server.delay:
            time.sleep(server.delay)
        body = server.body if self.command != "HEAD" else b""
        with contextlib.suppress(OSError):
            self.send_response(server.status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Last-Modified", "Fri, 20 Nov 2026 10:00:00 GMT")
            self.send_header("ETag", '"1"')
            self.end_headers()
            self.wfile.write(body[: -server.short or None])

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def answers() -> Iterator[tuple[Any, dict[str, Any]]]:
    """A server that is told what to answer, and a connection to it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        told: Any = server
        told.asked, told.delay, told.status, told.body = [], 0.0, 500, b""
        told.short = 0  # bytes that it does not send
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        values = {"type": "s3", "bucket": "bbb", "endpoint": f"http://127.0.0.1:{server.server_port}", "timeout": 1}
        yield told, values | {"access_key_id": "k", "secret_access_key": "s"}
        server.shutdown()


def failure(code: str, message: str = "because") -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


@pytest.mark.parametrize(
    ("status", "body", "error", "says"),
    [
        (500, failure("InternalError"), Transient, "did not do it now"),
        (503, failure("ServiceUnavailable"), Transient, "did not do it now"),
        (503, failure("SlowDown"), RateLimited, "fewer requests"),
        (429, b"", RateLimited, "fewer requests"),
        (502, b"<html>Bad Gateway</html>", Transient, "502"),
        (400, failure("RequestTimeout"), Transient, "RequestTimeout"),
        (400, failure("ExpiredToken"), Permanent, "does not accept the key"),
        (400, failure("AuthorizationHeaderMalformed"), Permanent, "another region"),
        (301, failure("PermanentRedirect"), Permanent, "another region"),
        (403, failure("AccessDenied"), Permanent, "No right to copy"),
        (400, failure("KeyTooLongError"), Permanent, "KeyTooLongError"),
        (400, failure("InvalidRequest", "The specified copy source is larger than the maximum allowable size for a copy "
                      "source: 5368709120"), Permanent, "too large to be copied"),
        (200, failure("InternalError"), Transient, "InternalError"),
    ],
)  # fmt: skip
def test_answers_of_s3(answers: Any, status: int, body: bytes, error: type[VecrunError], says: str) -> None:
    server, values = answers
    server.status, server.body = status, body
    began = time.monotonic()
    with opened(values) as objects, pytest.raises(error, match=says) as caught:
        objects.copy("f", "g")
    assert type(caught.value) is error
    assert "s3://bbb at 127.0.0.1" in caught.value.detail
    assert len(server.asked) <= 3, "how often to try is decided above"
    assert time.monotonic() - began < 3


def test_another_server_is_not_a_bucket_without_files(answers: Any) -> None:
    server, values = answers
    calls: list[Callable[[Objects], object]] = [
        lambda o: o.head("f"),
        lambda o: o.delete("f"),
        lambda o: list(o.list()),
    ]
    for call in calls:
        server.status, server.body = 404, b"<html>Not here</html>"
        with opened(values) as objects, pytest.raises(Permanent, match="The bucket does not exist"):
            call(objects)
        server.status, server.body = 200, b"<html>Welcome</html>"
        with opened(values) as objects, pytest.raises(VecrunError, match="This is no S3"):
            objects.health()


def test_a_server_that_says_nothing(answers: Any) -> None:
    server, values = answers
    server.delay = 8
    began = time.monotonic()
    with opened(values) as objects, pytest.raises(Transient, match="did not answer"):
        objects.read("f")
    assert time.monotonic() - began < 6


def test_an_answer_that_breaks_off_is_an_error(answers: Any) -> None:
    server, values = answers
    server.status, server.body, server.short = 200, b"x" * 3_000_000, 1_000_000
    with opened(values) as objects, pytest.raises(Transient, match="did not answer"):
        list(objects.pieces("f", 1 << 16))
    server.short, server.status, server.body = 0, 403, failure("AccessDenied")
    with opened(values) as objects, pytest.raises(Permanent, match="No right to read"):
        list(objects.pieces("f"))
    with opened(values) as objects, pytest.raises(Permanent, match="No right to write"):
        objects.write_from("f", [b"1"])


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:{}", "http://no-such-host.invalid", "https://127.0.0.1:{}"])
def test_an_endpoint_that_is_none(endpoint: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        values = {"type": "s3", "bucket": "bbb", "endpoint": endpoint.format(taken.getsockname()[1])}
        began = time.monotonic()
        with (
            opened(values | {"access_key_id": "k", "secret_access_key": "s"}) as objects,
            pytest.raises(Transient, match="did not answer") as caught,
        ):
            objects.head("f")
    assert "endpoint" in caught.value.hint
    assert "Debug" not in str(caught.value)
    assert time.monotonic() - began < 5


def test_the_bucket_before_the_host_name(answers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server, values = answers
    server.status, server.body = 200, b"found"
    monkeypatch.setenv("HTTP_PROXY", values["endpoint"])  # so that the name need not be known
    for style, path in ((False, "http://bbb.s3.example.test/f"), (True, "http://s3.example.test/bbb/f")):
        with opened(values | {"path_style": style, "endpoint": "http://s3.example.test"}) as objects:
            assert objects.read("f") == b"found"
        assert server.asked.pop()[1] == path


@pytest.mark.parametrize("status", [403, 404])
def test_no_keys_anywhere(answers: Any, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    server, values = answers
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", values["endpoint"])  # what a virtual machine would be asked
    server.status = status
    with (
        opened({key: value for key, value in values.items() if "key" not in key}) as objects,
        pytest.raises(Permanent, match="There is no key for S3"),
    ):
        objects.head("f")
    assert server.asked[0][1].startswith("/latest/")


def test_a_missing_package_is_named(s3: S3) -> None:
    code = (
        "import sys; sys.modules['obstore'] = None\n"
        "from runner.objects import S3Config\nfrom runner.objects.storage import open_objects\n"
        "try: open_objects(S3Config(type='s3', bucket='bbb'))\n"
        "except Exception as exc: print(type(exc).__name__, exc, exc.hint)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Permanent" in done.stdout
    assert "pip install 'vecrun[objects]'" in done.stdout
