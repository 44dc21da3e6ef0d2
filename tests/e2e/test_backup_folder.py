"""A folder of backups that is not one job's alone: ids, claims, what gc counts and leaves alone, and files that nobody can
read (issue 6: O2, D4)."""

from __future__ import annotations

import errno
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from runner.backups import manifest
from runner.backups.keeping import Kept, decide
from runner.backups.manifest import Backup, TableFile
from runner.errors import Permanent
from runner.objects import FolderConfig, S3Config
from runner.objects.storage import Objects, open_objects
from runner.plan import Keep
from runner.settings import LONGEST, duration_seconds, parse_duration
from runner.spec import digest
from tests import servers
from tests.e2e.training import answer, ok, refused
from tests.e2e.workspace import Workspace, run
from tests.servers import S3

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
SETTINGS = """\
apiVersion: vecrun/v1
kind: Workspace
connections:
  a: {type: files, path: ./a}
  b: {type: files, path: ./b}
  backups: {type: folder, path: ./backups}
environments:
  prod:
    connections:
      a: {type: files, path: ./prod}
"""
KB = """\
apiVersion: vecrun/v1
kind: VectorBackup
metadata: {name: kb}
spec:
  collections: {connection: a}
  to: {connection: backups}
  keep: {last: 1}
"""
BACK = """\
apiVersion: vecrun/v1
kind: VectorRestore
metadata: {name: back}
spec:
  from: {connection: backups, folder: kb/vector_bak}
  collections: {connection: b}
"""
APPLY = ("apply", "jobs/kb.yaml", "--auto-approve")


class Nightly:
    """A job that backs up small collections, and one that restores them."""

    def __init__(self, ws: Workspace) -> None:
        self.ws, self.folder = ws, ws.root / "backups" / "kb" / "vector_bak"
        ws.job.unlink()
        for name, text in (("vecrun.yaml", SETTINGS), ("jobs/kb.yaml", KB), ("jobs/back.yaml", BACK)):
            ws.write(name, text)
        (ws.root / "backups").mkdir()

    def fill(self, *names: str) -> None:
        for name in names or ("kb",):
            self.ws.fill(3, name=name)

    def ids(self) -> list[str]:
        return [path.stem.removeprefix("backup_") for path in sorted(self.folder.glob("backup_*.json"))]

    def back_up(self, *args: str) -> str:
        """The id of one more."""
        return str(answer(*APPLY, *args)["steps"][-1]["result"]["backup"])

    def plan(self, job: str = "kb", *args: str) -> dict[str, Any]:
        return dict(answer("plan", f"jobs/{job}.yaml", *args)["plan"])

    def altered(self, backup: str, into: str = "", **values: Any) -> None:
        """The same manifest with other values, whole by its digest."""
        path = self.folder / f"backup_{backup}.json"
        data = json.loads(path.read_text()) | ({"id": into} if into else {}) | values
        data = {key: value for key, value in data.items() if key != "digest" and value is not None}
        if into:
            path = self.folder / f"backup_{into}.json"
        path.write_text(json.dumps(data | {"digest": digest(data)}))


@pytest.fixture
def nightly(ws: Workspace) -> Nightly:
    return Nightly(ws)


def codes(plan: dict[str, Any]) -> dict[str, str]:
    return {item["code"]: item["message"] for item in plan["notices"]}


# Files that are made only where there is none --------------------------------------------------------------------------


class Ignorant(BaseHTTPRequestHandler):
    """A server of S3 that does not know the condition of a PUT."""

    files: dict[str, bytes] = {}

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if "If-None-Match" in self.headers:
            return self.answer(501, b"<Error><Code>NotImplemented</Code><Message>no such header</Message></Error>")
        self.files[self.path] = data
        return self.answer(200, b"")

    def do_GET(self) -> None:
        if "list-type" in self.path:
            return self.answer(200, b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>")
        found = self.files.get(self.path)
        return self.answer(404 if found is None else 200, found or b"<Error><Code>NoSuchKey</Code></Error>")

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", "Fri, 20 Nov 2026 12:00:00 GMT")
        self.send_header("ETag", '"0"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(params=["folder", "no links", "s3", "no condition"])
def objects(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    if request.param == "s3":
        server: S3 = request.getfixturevalue("s3")
        name = f"test-{uuid.uuid4().hex[:12]}"
        server.client().create_bucket(Bucket=name)
        with open_objects(S3Config(**server.connection(name))) as opened:
            yield opened
    elif request.param == "no condition":
        ignorant = ThreadingHTTPServer(("127.0.0.1", 0), Ignorant)
        threading.Thread(target=ignorant.serve_forever, args=(0.05,), daemon=True).start()
        Ignorant.files.clear()
        keys = {"access_key_id": "k", "secret_access_key": "s", "endpoint": f"http://127.0.0.1:{ignorant.server_port}"}
        with open_objects(S3Config(**{"type": "s3", "bucket": "some", **keys})) as opened:
            yield opened
        ignorant.shutdown()
        ignorant.server_close()
    else:
        if request.param == "no links":

            def refuse(*_args: object, **_more: object) -> None:
                raise OSError(errno.EPERM, "no links here")

            monkeypatch.setattr(os, "link", refuse)
        with open_objects(FolderConfig(type="folder", path=str(tmp_path))) as opened:
            yield opened
        assert not list(tmp_path.rglob("*.part"))


def test_a_file_is_made_only_where_there_is_none(objects: Objects) -> None:
    assert objects.create("x/claim", b"mine")
    assert objects.create("x/claim", b"mine"), "a repetition is told that it is not there"
    assert not objects.create("x/claim", b"another's")
    assert objects.read("x/claim") == b"mine"


@pytest.mark.parametrize("objects", ["folder", "no links", "s3"], indirect=True)
def test_of_many_one_makes_it(objects: Objects) -> None:
    data = [f"of {number}".encode() for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        made = [*pool.map(lambda one: objects.create("claim", one), data)]
    assert [one for one, mine in zip(data, made, strict=True) if mine] == [objects.read("claim")]


def tables(backup: str, run: str, rows: int = 1) -> Backup:
    file = TableFile(table="t", file=f"t_{backup}.csv", rows=rows, bytes=5, sha256="0" * 64)
    at = "2026-11-20T12:00:00+00:00"
    return Backup(
        tool_version="0", id=backup, job="j", run=run, form="tables", began=at, finished=at, tables=(file,)
    )  # fmt: skip


def test_two_runs_of_one_second_get_two_ids(tmp_path: Path) -> None:
    with open_objects(FolderConfig(type="folder", path=str(tmp_path))) as objects, ThreadPoolExecutor(6) as pool:
        ids = [*pool.map(lambda number: manifest.reserve(objects, "x", f"r-{number}", NOW), range(6))]
        assert sorted(ids) == [f"20261120_12000{second}" for second in range(6)]
        manifest.write(objects, "x", tables(ids[0], "r-0"))
        assert objects.head(f"x/claim_{ids[0]}") is None
        assert manifest.reserve(objects, "x", "r-9", NOW) == "20261120_120006", "the id of a backup was given again"
        manifest.write(objects, "x", tables(ids[0], "r-0"))  # a repetition
        with pytest.raises(Permanent, match="Another backup has this id"):
            manifest.write(objects, "x", tables(ids[0], "r-1"))
        assert manifest.read(objects, "x", ids[0]).run == "r-0"
        manifest.reserve(objects, "x", "r-9", NOW)
        claims = [objects.read(item.key) for item in objects.list("x") if "claim_" in item.key]
        assert claims.count(b"r-9\n") == 1, "what a killed attempt had claimed stays"


def test_a_login_that_may_only_read_is_told_before_anything_is_read(
    nightly: Nightly, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    nightly.fill()
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3.client().create_bucket(Bucket=name)
    config = s3.connection(name, "reader")
    for key in ("access_key_id", "secret_access_key"):
        monkeypatch.setenv(f"VECRUN_TEST_{key.upper()}", config[key])
        config[key] = f"${{env:VECRUN_TEST_{key.upper()}}}"
    nightly.ws.edit("vecrun.yaml", "{type: folder, path: ./backups}", json.dumps(config))
    assert not codes(nightly.plan()).keys() & {"VX220"}, "S3 says what a key may do only when it is tried"
    said = refused(1, *APPLY)
    assert "No right to write a file" in said
    assert "probe_" in said


# Whose backups they are -------------------------------------------------------------------------------------------------


def test_each_environment_has_a_folder_of_its_own(nightly: Nightly) -> None:
    nightly.fill()
    step = nightly.plan()["steps"][-1]
    assert step["into"]["folder"] == "kb/vector_bak"
    nightly.ws.edit("vecrun.yaml", "path: ./prod", "path: ./a")
    step = nightly.plan("kb", "--env", "prod")["steps"][-1]
    assert step["into"]["folder"] == "prod/kb/vector_bak"


def test_gc_leaves_alone_what_another_environment_made(nightly: Nightly) -> None:
    nightly.fill()
    nightly.ws.edit("vecrun.yaml", "path: ./prod", "path: ./a")
    nightly.ws.edit("jobs/kb.yaml", "{connection: backups}", "{connection: backups, folder: kb/vector_bak}")
    prod = nightly.back_up("--env", "prod")
    told = codes(nightly.plan())
    assert f"{prod} of job kb, environment prod" in told["VB114"]
    mine = [nightly.back_up(), nightly.back_up()]
    made = json.loads((nightly.folder / f"backup_{prod}.json").read_text())
    assert made["environment"] == "prod"
    assert made["lineage"] != json.loads((nightly.folder / f"backup_{mine[0]}.json").read_text())["lineage"]
    said = ok("gc", "--auto-approve")
    assert f"left alone, they are of job kb, environment prod, of another workspace or environment: {prod}" in said
    assert nightly.ids() == [prod, mine[1]]
    newest = nightly.back_up("--env", "prod")
    plan = nightly.plan("back")
    assert (
        f"it is of job kb, environment prod; the folder has backups of others, too: {mine[1]}" in codes(plan)["VB114"]
    )
    (fact,) = [item for item in plan["overview"][0]["facts"] if item["label"] == "backup"]
    assert fact["before"] == f"{newest} of job kb, environment prod"


def test_gc_counts_the_backups_of_a_job_that_has_another_name_now(nightly: Nightly) -> None:
    nightly.fill()
    nightly.ws.edit("jobs/kb.yaml", "{connection: backups}", "{connection: backups, folder: kb/vector_bak}")
    old = [nightly.back_up(), nightly.back_up()]
    nightly.ws.edit("jobs/kb.yaml", "name: kb", "name: nightly")
    assert "count for the rules of keep" in ok("state", "mv", "kb", "nightly")
    assert "VB114" not in codes(nightly.plan())
    new = nightly.back_up()
    # a job of the old name has backups of its own, of the same lineage
    nightly.ws.write(
        "jobs/again.yaml", KB.replace("to: {connection: backups}", "to: {connection: backups, folder: kb/vector_bak}")
    )
    again = str(answer("apply", "jobs/again.yaml", "--auto-approve")["steps"][-1]["result"]["backup"])
    ok("gc", "--auto-approve")
    assert nightly.ids() == sorted([new, again])
    assert not set(old) & set(nightly.ids())


@pytest.mark.parametrize(
    ("user", "database", "said"),
    [("nobody", "postgres", "The server refuses the login"), ("postgres", "nosuch", "The database does not exist")],
)
def test_a_wrong_login_and_a_missing_database_are_called_so(
    nightly: Nightly, pg_url: str, user: str, database: str, said: str
) -> None:
    url = make_url(servers.database(pg_url, database)).set(username=user).render_as_string(hide_password=False)
    nightly.ws.write(
        "vecrun.yaml", SETTINGS.replace("environments:", f"  db: {{type: sql, url: '{url}'}}\nenvironments:")
    )
    nightly.ws.edit("jobs/kb.yaml", "collections: {connection: a}", "tables: {connection: db, truncate: [x]}")
    failed = run("plan", "jobs/kb.yaml")
    assert (failed.exit_code, said in failed.stderr) == (1, True), failed.output


def test_gc_leaves_alone_what_says_no_lineage(nightly: Nightly) -> None:
    nightly.fill()
    first = nightly.back_up()
    nightly.altered(first, lineage=None, environment=None)
    nightly.back_up()
    said = ok("gc", "--auto-approve")
    assert f"their manifests do not say which workspace and environment made them: {first}" in said
    assert first in nightly.ids()
    assert "VB114" not in codes(nightly.plan())


# What counts ------------------------------------------------------------------------------------------------------------


def kept(hours: int, *holding: str, whole: bool = True) -> Kept:
    at = NOW - timedelta(hours=hours)
    return Kept(manifest.new_id(at), at, whole, len(holding), holding)


def test_the_newest_with_rows_counts_for_each_table() -> None:
    newest, none, one, both, other = kept(1, "c"), kept(2), kept(3, "c"), kept(4, "c", "p"), kept(5, "c", "p")
    found = decide([other, both, one, none, newest], Keep(last=2), NOW)
    assert [bool(found[item.id]) for item in (newest, none, one, both, other)] == [True, True, False, True, False]
    assert found[both.id] == ("newest that holds rows of p",)
    assert decide([kept(1), kept(2, "p", whole=False), kept(3, "p")], Keep(last=1), NOW)[kept(3).id]


def test_a_backup_of_the_future_counts_for_nothing_and_stays() -> None:
    ahead = kept(-24, "p")
    found = decide([ahead, kept(1, "p"), kept(2, "p")], Keep(last=1), NOW)
    assert found[ahead.id] == ("its time is in the future",)
    assert found[kept(1).id]
    assert not found[kept(2).id]


def test_restoring_latest_tells_what_only_an_older_one_holds(nightly: Nightly) -> None:
    nightly.fill("kb", "notes")
    full = nightly.back_up()
    with nightly.ws.store("a") as store:
        store.delete("notes", list(nightly.ws.points("a", "notes").ids))  # type: ignore[union-attr]
    nightly.back_up()
    nightly.back_up()
    assert f"it holds nothing of a/notes; the newest that does is {full}" in codes(nightly.plan("back"))["VI141"]
    ok("gc", "--auto-approve")
    assert full in nightly.ids(), "the last points of a collection went"


def test_a_backup_whose_files_are_gone_does_not_push_out_a_good_one(nightly: Nightly) -> None:
    nightly.fill()
    good = nightly.back_up()
    nightly.fill("more")
    bad = nightly.back_up()
    (lost,) = {
        file["file"]
        for one in json.loads((nightly.folder / f"backup_{bad}.json").read_text())["collections"]
        if one["collection"]["name"] == "more"
        for file in one["files"]
    }
    (nightly.folder / lost).unlink()
    said = ok("gc", "--auto-approve")
    assert f"backup {bad} in backups/kb/vector_bak is damaged and counts for no rule: {lost} is missing" in said
    assert nightly.ids() == [good, bad]


def test_latest_passes_over_the_future_and_says_so(nightly: Nightly) -> None:
    nightly.fill()
    made = nightly.back_up()
    ahead = manifest.new_id(datetime.now(UTC) + timedelta(days=900))
    nightly.altered(made, ahead)
    plan = nightly.plan("back")
    assert next(step for step in plan["steps"] if step["type"] == "check_backup")["backup"] == made
    assert ahead in codes(plan)["VI144"]
    assert ahead in codes(nightly.plan())["VI144"]
    nightly.back_up()
    said = ok("gc", "--auto-approve")
    assert f"their time is in the future: {ahead}" in said
    assert ahead in nightly.ids()
    assert made not in nightly.ids()


def test_durations_that_no_date_can_hold(nightly: Nightly) -> None:
    for text in ("365001d", "9999999d", "9" * 5000 + "s"):
        with pytest.raises(ValueError, match="is too long"):
            parse_duration(text)
        assert duration_seconds(text) == LONGEST + 1, "a plan of an earlier version may have it"
    assert duration_seconds(parse_duration("0365000d")) == LONGEST
    nightly.ws.edit("jobs/kb.yaml", "{last: 1}", "{within: 9999999d}")
    found = run("validate", "jobs/kb.yaml")
    assert found.exit_code
    assert "is too long" in found.output


# What is not as it should be --------------------------------------------------------------------------------------------


def test_a_store_without_collections(nightly: Nightly) -> None:
    (nightly.ws.root / "a").mkdir(exist_ok=True)
    plan = nightly.plan()
    assert not plan["steps"]
    assert "VI136" in codes(plan)
    assert run(*APPLY).exit_code == 0
    assert "Traceback" not in run("verify", "kb").output


STRANGE: dict[str, Callable[[], bytes]] = {
    "nested": lambda: b"[" * 200_000,
    "surrogates": lambda: b'{"format_version": "1.0", "id": "\\ud800", "digest": "x"}',
    "a list": lambda: b"[]",
    "binary": lambda: bytes(range(256)),
    "a number": lambda: b'{"format_version": {"a": 1}, "digest": 1e999}',
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_no_manifest_is_a_damaged_one(name: str) -> None:
    with pytest.raises(manifest.DamagedBackup):
        manifest.parse(STRANGE[name](), "x")


def test_strange_manifests_stop_no_backup(nightly: Nightly) -> None:
    nightly.fill()
    made = nightly.back_up()
    for number, data in enumerate(STRANGE.values()):
        at = datetime.strptime(made, "%Y%m%d_%H%M%S").replace(tzinfo=UTC) + timedelta(seconds=number + 1)
        (nightly.folder / f"backup_{manifest.new_id(at)}.json").write_bytes(data())
    (nightly.folder / "backup_20261399_250000.json").write_bytes(b"")
    nightly.altered(made, "20261119_000000", tables=[], collections=[])
    assert "VI131" in codes(nightly.plan())
    newest = nightly.back_up()
    assert ok("backup", "check", "kb", "--backup", newest)
    said = run("backup", "check", "kb", "--all").output
    assert "it names no table and no collection" in said
    assert "20261399" not in said
    ok("gc", "--dry-run")


def test_a_collection_that_is_called_like_all_of_them(nightly: Nightly) -> None:
    nightly.fill("*", "kb")
    nightly.ws.edit("jobs/kb.yaml", "{connection: a}", '{connection: a, names: ["*"]}')
    made = nightly.back_up()
    names = [
        one["collection"]["name"]
        for one in json.loads((nightly.folder / f"backup_{made}.json").read_text())["collections"]
    ]
    assert sorted(names) == ["*", "kb"]
    ok("apply", "jobs/back.yaml", "--auto-approve")
    with nightly.ws.store("b") as store:
        assert sorted(store.collections()) == ["*", "kb"]


def test_what_killed_runs_left_goes_after_a_day(nightly: Nightly) -> None:
    nightly.fill()
    nightly.back_up()
    names = [
        "claim_20261101_000000",
        "probe_r-1",
        ".vecrun-0123.part",
        "data/.vecrun-4567.part",
        "claim_x",
        ".other.part",
    ]
    for name in names:
        (nightly.folder / name).write_bytes(b"12345")
    ok("gc", "--auto-approve")
    assert all((nightly.folder / name).exists() for name in names), "somebody may be at it"
    for name in names:
        os.utime(nightly.folder / name, (0, 0))
    ok("gc", "--auto-approve")
    assert [name for name in names if (nightly.folder / name).exists()] == names[4:]
