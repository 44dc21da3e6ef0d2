"""What users get wrong, and what goes wrong around them: the message names the place and the remedy, the exit code is
the documented one, and nothing was lost or switched half-way (G1, G2, G5, G7, G10, A2, A7; errors of A9).
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from runner.ledger import Ledger
from runner.plan import FORMAT_VERSION
from runner.points import Distance, IdKind
from tests import worlds
from tests.e2e.workspace import JOB, SETTINGS, Workspace, batch_of, run


def refused(found: Result, code: int, *words: str) -> str:
    """The command failed with this exit code, and the user was told all of `words`, on stderr alone."""
    assert found.exit_code == code, found.output
    for word in words:
        assert word in found.stderr, f"{word!r} is not in:\n{found.stderr}"
    assert "Traceback" not in found.output
    return found.stderr


def change(old: str, new: str) -> str:
    assert old in JOB
    return JOB.replace(old, new, 1)


# A file that is wrong ----------------------------------------------------------------------------------------------

FILES: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "unknown key": (
        change("  cutover:", "  cutovr:"),
        ("jobs/move.yaml:11: spec.cutovr: unknown key", "did you mean cutover?", "allowed: accept, batch_size,"),
    ),
    "unknown key in a list": (
        change("      to: kb2", "      too: kb2"),
        ("jobs/move.yaml:10: spec.collections.0.too: unknown key", "did you mean to?"),
    ),
    "unknown key at the top": (JOB + "spce: {}\n", ("jobs/move.yaml:12: spce: unknown key", "did you mean spec?")),
    "wrong type": (
        JOB + "  batch_size: many\n",
        ("jobs/move.yaml:12: spec.batch_size: should be a whole number, found 'many'",),
    ),
    "wrong type for one of two forms": (
        change("collections:\n    - from: kb\n      to: kb2", "collections: kb"),
        ("jobs/move.yaml:8: spec.collections: should be a list or 'all', found 'kb'",),
    ),
    "out of range": (JOB + "  batch_size: 0\n", ("jobs/move.yaml:12: spec.batch_size: should be at least 1, found 0",)),
    "not one of the words": (
        JOB + "  verify: {mode: ful}\n",
        ("jobs/move.yaml:12: spec.verify.mode: should be 'count', 'sample' or 'full', found 'ful'", "did you mean full?"),
    ),
    "missing key": (change("  target: b\n", ""), ("jobs/move.yaml:5: spec.target: this key is missing",)),
    "no spec": (JOB.split("spec:")[0] + "spec:\n", ("jobs/move.yaml:5: spec: should be a mapping, found null",)),
    "name with a slash": (
        change("name: move", "name: a/b"),
        ("jobs/move.yaml:4: metadata.name:", "Letters, digits, dot, dash, underscore; at most 63.", "found 'a/b'"),
    ),
    "reserved name": (change("name: move", "name: serving"), ("jobs/move.yaml:4: metadata.name: no job can be called",)),
    "unknown kind": (
        change("VectorMigration", "vectormigration"),
        ("jobs/move.yaml:2: kind: kind 'vectormigration' is not known", "did you mean VectorMigration?"),
    ),
    "newer apiVersion": (
        change("vecrun/v1", "vecrun/v2"),
        ("jobs/move.yaml:1: apiVersion: apiVersion 'vecrun/v2' is not known", "a newer file needs a newer vecrun"),
    ),
    "unknown connection": (
        change("source: a", "source: aa"),
        ("jobs/move.yaml:6: spec.source: vecrun.yaml has no connection 'aa'", "did you mean a?; allowed: a, b"),
    ),
    "unknown connection type": (
        change("source: a", "source: {type: qdrnt, url: 'http://x'}"),
        ("jobs/move.yaml:6: spec.source.type: ", "'qdrnt'", "files, milvus, pgvector, qdrant, weaviate"),
    ),
    "inline connection": (
        change("source: a", "source: {type: qdrant, ulr: 'http://x'}"),
        ("jobs/move.yaml:6: spec.source.ulr: unknown key", "did you mean url?"),
    ),
    "doubled key": (
        JOB + "  source: b\n",
        ("jobs/move.yaml:12: spec.source: this key stands here twice", "it is on line 6 too"),
    ),
    "undefined variable": (
        change("source: a", "source: {{ soruce }}"),
        ("jobs/move.yaml:6: template: 'soruce' is undefined", "--var NAME=VALUE", "environments in vecrun.yaml"),
    ),
    "broken template": (change("source: a", "source: {% if %}"), ("jobs/move.yaml:6: template: ",)),
    "template that fails": (change("source: a", "source: {{ 1 / 0 }}"), ("jobs/move.yaml:6: template: division by zero",)),
    "template that breaks out": (
        change("source: a", "source: {{ ''.__class__.__mro__ }}"),
        ("jobs/move.yaml:6: template: ", "unsafe"),
    ),
    "secret": (
        change("source: a", "source: {type: qdrant, url: 'http://x', api_key: open-sesame}"),
        ("jobs/move.yaml:6: spec.source.api_key: a secret is written out here", "${env:NAME}"),
    ),
    "secret that is a number": (
        change("source: a", "source: {type: qdrant, url: 'http://x', api_key: 20261120}"),
        ("jobs/move.yaml:6: spec.source.api_key: a secret is written out here", "${env:NAME}"),
    ),
    "secret in a URL": (
        change("source: a", "source: {type: pgvector, url: 'postgresql://u:open-sesame@h/d'}"),
        ("jobs/move.yaml:6: spec.source.url: a secret is written out here",),
    ),
    "secret in a query": (
        change("source: a", "source: {type: pgvector, url: 'postgresql://u@h/d?password=open-sesame'}"),
        ("jobs/move.yaml:6: spec.source.url: a secret is written out here",),
    ),
    "two problems": (
        change("  cutover:", "  cutovr:") + "  batch_size: many\n",
        ("jobs/move.yaml:11: spec.cutovr: unknown key", "jobs/move.yaml:12: spec.batch_size: should be"),
    ),
    "not UTF-8": (JOB.encode() + b"  # caf\xe9\n", ("jobs/move.yaml:12: not UTF-8 text", "save the file as UTF-8")),
    "empty": ("", ("jobs/move.yaml:1: the file is empty",)),
    "only a comment": ("# later\n", ("jobs/move.yaml:1: the file is empty",)),
    "a list": ("- a\n", ("jobs/move.yaml:1: a job is a mapping with apiVersion, kind, metadata, spec",)),
    "not YAML": ("a: [1\nb: 2\n", ("jobs/move.yaml:2: not YAML: ",)),
    "a tab": ("a:\n\tb: 2\n", ("jobs/move.yaml:2: not YAML: ",)),
    "two documents": (JOB + "---\n" + JOB, ("jobs/move.yaml:12: not YAML: ", "another document")),
    "a control character": (JOB + "  #\x00\n", ("jobs/move.yaml:12: not YAML: the character U+0000",)),
    "an alias in itself": (
        change("source: a", "source: &x {type: *x}"),
        ("jobs/move.yaml:6: not YAML: an alias that holds itself",),
    ),
    "a bomb of aliases": (
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
        ("not YAML: more than 100,000 values",),
    ),
    "a date and a number as keys": (JOB + "2026: x\n", ("jobs/move.yaml:12: ", "key 2026 is not text", "quote it")),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_job_file_is_told_with_place_and_remedy(ws: Workspace, name: str) -> None:
    text, words = FILES[name]
    ws.write("jobs/move.yaml", text)
    told = refused(run("validate"), 14, *words)
    assert "open-sesame" not in told
    assert "20261120" not in told


@pytest.mark.parametrize(
    "name", ["unknown key", "wrong type", "undefined variable", "doubled key", "secret", "not UTF-8"]
)
@pytest.mark.parametrize("verb", [("plan", "jobs/move.yaml"), ("apply", "jobs/move.yaml", "--auto-approve")])
def test_a_wrong_job_file_is_neither_planned_nor_applied(ws: Workspace, name: str, verb: tuple[str, ...]) -> None:
    ws.fill()
    text, words = FILES[name]
    ws.write("jobs/move.yaml", text)
    refused(run(*verb), 14, *words)
    assert ws.nothing_happened()


def test_problems_of_several_files_are_all_told_and_as_json_too(ws: Workspace) -> None:
    ws.write("jobs/move.yaml", FILES["two problems"][0])
    ws.write("jobs/second.yaml", FILES["empty"][0])
    found = run("validate", "--json")
    assert found.exit_code == 14
    assert found.stderr == ""
    document = json.loads(found.stdout)
    assert [(item["file"], item["line"], item["field"]) for item in document["problems"]] == [
        ("jobs/move.yaml", 11, "spec.cutovr"),
        ("jobs/move.yaml", 12, "spec.batch_size"),
        ("jobs/second.yaml", 1, ""),
    ]


def test_two_jobs_of_one_name_are_refused(ws: Workspace) -> None:
    ws.write("jobs/second.yaml", JOB)
    refused(run("validate"), 14, "jobs/second.yaml:4: metadata.name: job name move is used by", "move.yaml as well")


SETTINGS_FILES: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "unknown key": (SETTINGS + "limit: {}\n", ("vecrun.yaml:6: limit: unknown key", "did you mean limits?")),
    "unknown key of a connection": (
        SETTINGS + "  c: {type: files, pth: ./c}\n",
        ("vecrun.yaml:6: connections.c.path: this key is missing", "vecrun.yaml:6: connections.c.pth: unknown key"),
    ),
    "wrong type": (
        SETTINGS + "limits: {workers: two}\n",
        ("vecrun.yaml:6: limits.workers: should be a whole number, found 'two'",),
    ),
    "unknown type of store": (
        SETTINGS + "  c: {type: fils, path: x}\n",
        ("vecrun.yaml:6: connections.c.type: no such store type: 'fils'", "files, milvus, pgvector, qdrant, weaviate"),
    ),
    "no type": (SETTINGS + "  c: {path: x}\n", ("vecrun.yaml:6: connections.c.type: this key is missing",)),
    "several at once": (
        SETTINGS + "  c: {path: x}\nlimits: {workers: 0}\n",
        ("vecrun.yaml:6: connections.c.type:", "vecrun.yaml:7: limits.workers: should be at least 1, found 0"),
    ),
    "a connection of an environment": (
        SETTINGS + "environments:\n  prod:\n    connections:\n      b: {type: files}\n",
        ("vecrun.yaml:9: environments.prod.connections.b.path: this key is missing",),
    ),
    "a duration": (SETTINGS + "state: {retention: 3w}\n", ("vecrun.yaml:6: state.retention: '3w' is no duration", "30d")),
    "no apiVersion": (SETTINGS.replace("apiVersion: vecrun/v1\n", ""), ("vecrun.yaml:1: apiVersion:", "is missing")),
    "newer apiVersion": (SETTINGS.replace("/v1", "/v2"), ("vecrun.yaml:1: apiVersion:", "needs a newer vecrun")),
    "secret": (
        SETTINGS + "  c: {type: pgvector, url: 'postgresql://u:open-sesame@h/d'}\n",
        ("vecrun.yaml:6: connections.c.url: a secret is written out here", "${env:NAME}"),
    ),
    "doubled key": (SETTINGS + "  a: {type: files, path: ./c}\n", ("vecrun.yaml:6: connections.a: this key", "line 4")),
    "not UTF-8": (b"# caf\xe9\n" + SETTINGS.encode(), ("vecrun.yaml:1: not UTF-8 text",)),
    "empty": ("", ("vecrun.yaml:1: the file is empty",)),
    "a list": ("- a\n", ("vecrun.yaml:1: a workspace is a mapping with apiVersion, kind,",)),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS_FILES)
def test_a_wrong_workspace_file_is_told_with_place_and_remedy(ws: Workspace, name: str) -> None:
    text, words = SETTINGS_FILES[name]
    ws.write("vecrun.yaml", text)
    assert "open-sesame" not in refused(run("validate"), 14, *words)
    found = json.loads(run("validate", "--json").stdout)
    assert found["diagnostics"]
    assert "open-sesame" not in json.dumps(found)


def test_a_variables_file_is_checked_like_any_other(ws: Workspace) -> None:
    refused(run("validate", "--var-file", "vars.yaml"), 10, "No such file", "vars.yaml")
    ws.write("vars.yaml", b"a: \xff\n")
    refused(run("validate", "--var-file", "vars.yaml"), 14, "vars.yaml:1: not UTF-8 text")
    ws.write("vars.yaml", "- a\n")
    refused(run("validate", "--var-file", "vars.yaml"), 14, "vars.yaml:1: a variables file is a mapping")


def test_what_is_named_must_exist(ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(run("plan", "jobs/no.yaml"), 10, "No such file", "jobs/no.yaml")
    refused(run("apply", "jobs/no.yaml"), 10, "No such file", "jobs/no.yaml")
    refused(run("apply", "plans/no.json"), 10, "plans/no.json")
    refused(run("validate", "jobs/no.yaml"), 10, "jobs/no.yaml")
    refused(run("validate", "--env", "prd"), 10, "No such environment", "'prd'")
    for verb in ("status", "resume", "rollback", "logs", "pause", "cancel", "verify"):
        refused(run(verb, "nobody"), 10, "nobody")
    monkeypatch.chdir(tmp_path)
    refused(run("validate"), 10, "No workspace here", "vecrun init", "-w FOLDER")


# A world that does not fit ----------------------------------------------------------------------------------------


def refused_everywhere(ws: Workspace, *words: str) -> None:
    """The finding stands in the plan, apply refuses with it, and the world is as before."""
    before = ws.world()
    shown = run("plan", "jobs/move.yaml")
    assert shown.exit_code == 0
    for word in words:
        assert word in shown.stdout, f"{word!r} is not in:\n{shown.stdout}"
    assert "not accepted: apply will refuse" in shown.stdout
    refused(run("apply", "jobs/move.yaml", "--auto-approve"), 1, "The plan cannot be applied as it is", words[0])
    run("plan", "jobs/move.yaml", "-o", "plans/move.json")
    refused(run("apply", "plans/move.json"), 1, "The plan cannot be applied as it is", words[0])
    assert ws.world() == before
    assert not ws.state()
    assert not ws.serving()


def test_unknown_connection_when_planning(ws: Workspace) -> None:
    ws.write("jobs/move.yaml", change("source: a", "source: aa"))
    refused(run("plan", "jobs/move.yaml"), 10, "No such connection", "'aa'", "vecrun.yaml", "did you mean a?")


def test_unknown_collection_is_told_with_those_there_are(ws: Workspace) -> None:
    ws.fill()
    ws.write("jobs/move.yaml", change("from: kb", "from: kbb"))
    refused(run("plan", "jobs/move.yaml"), 10, "No such collection", "'kbb' in a", "did you mean kb?; allowed: kb")
    ws.write("jobs/move.yaml", change("from: kb", "from: live"))
    with ws.store("a") as store:
        store.set_alias("live", "kb")
    refused(run("plan", "jobs/move.yaml"), 10, "live is an alias there; name the collection: kb")


def test_missing_environment_variable_names_variable_and_place(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    ws.fill()
    ws.edit("vecrun.yaml", "path: ./b", "path: '${env:VECRUN_TEST_UNSET}/${file:./no-such-file}'")
    monkeypatch.delenv("VECRUN_TEST_UNSET", raising=False)
    assert run("validate").exit_code == 0  # offline: who validates need not have the secrets
    for verb in (("plan", "jobs/move.yaml"), ("apply", "jobs/move.yaml", "--auto-approve")):
        refused(
            run(*verb), 14, "vecrun.yaml:5: connections.b.path: environment variable VECRUN_TEST_UNSET is not set",
            "export VECRUN_TEST_UNSET=", "vecrun.yaml:5: connections.b.path: file ./no-such-file cannot be read",
        )  # fmt: skip
    assert not ws.state()


def test_another_dimension_of_the_existing_target(ws: Workspace) -> None:
    ws.fill()
    ws.fill(0, store="b", name="kb2", dimension=8, vector="")
    refused_everywhere(ws, "VX202", "dimension 4, but the existing target has 8")


def test_another_metric_and_other_ids_of_the_existing_target(ws: Workspace) -> None:
    ws.fill()
    ws.fill(0, store="b", name="kb2", vector="", distance=Distance.DOT, kind=IdKind.UUID)
    refused_everywhere(ws, "VX202", "metric cosine, but the existing target has dot", "int ids, but")


def test_a_target_that_holds_points(ws: Workspace) -> None:
    ws.fill()
    ws.fill(5, store="b", name="kb2", vector="")
    refused_everywhere(ws, "VX201", "already holds 5 points; choose another name with to:, or empty it")


def test_an_id_that_the_target_cannot_hold(ws: Workspace) -> None:
    ws.fill(ids=[*range(20), -5])
    ws.edit("vecrun.yaml", "{type: files, path: ./b}", "{type: qdrant, path: ./b}")
    shown = run("plan", "jobs/move.yaml")
    assert "VX103" in shown.stdout
    assert "-5" in shown.stdout, "the point is named"
    refused(run("apply", "jobs/move.yaml", "--auto-approve"), 1, "VX103", "id out of range")
    assert not ws.state()


def test_an_id_of_a_kind_the_target_cannot_hold(ws: Workspace) -> None:
    ws.fill(kind=IdKind.STRING, count=10)
    ws.edit("vecrun.yaml", "{type: files, path: ./b}", "{type: qdrant, path: ./b}")
    ws.write("jobs/move.yaml", change("      to: kb2", "      to: kb2\n      ids: {mode: keep}"))
    refused(run("apply", "jobs/move.yaml", "--auto-approve"), 1, "VX103", "string ids; qdrant has")


def test_a_vector_with_nan_in_the_probe(ws: Workspace) -> None:
    ws.fill(ids=list(range(50)))
    ws.poison(7)
    refused_everywhere(ws, "VX102", "NaN or infinity", "in the sample, such as 7")


def test_a_vector_with_nan_beyond_the_probe_stops_before_anything_is_switched(ws: Workspace) -> None:
    ws.fill(ids=list(range(5000)))
    ws.poison(4999)
    assert run("plan", "jobs/move.yaml").exit_code == 0
    told = refused(
        run("apply", "jobs/move.yaml", "--auto-approve"), 1, "kb2: vector (unnamed): NaN or infinity [VX102]", "4999",
        "Mend the points in the source, or leave them out with where:",
    )  # fmt: skip
    assert "point alias" not in told
    assert ws.world("b")["b:aliases"] == {}
    assert not ws.serving()
    assert not ws.state()
    # mended, the same run goes on from where it was
    with ws.store("a") as store:
        store.upsert("kb", batch_of(ws.schemas["a/kb"], [4999]))
    assert run("resume", "move").exit_code == 0
    assert ws.serving() == {"kb-live": {"connection": "b", "collection": "kb2"}}
    assert len(ws.points("b", "kb2").ids) == 5000  # type: ignore[union-attr]


# A world that does not answer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "connection",
    [
        "{type: milvus, uri: 'http://127.0.0.1:9'}",
        "{type: pgvector, url: 'postgresql://u@127.0.0.1:9/d'}",
        "{type: qdrant, url: 'http://127.0.0.1:9', timeout: 2}",
        "{type: weaviate, url: 'http://127.0.0.1:9'}",
    ],
)
def test_an_unreachable_store_is_named_with_what_to_look_at(ws: Workspace, connection: str) -> None:
    ws.fill()
    ws.edit("vecrun.yaml", "{type: files, path: ./b}", connection)
    told = refused(run("plan", "jobs/move.yaml"), 1, "connection b: ", "127.0.0.1")
    assert len(told.rstrip("\n").split("\n")) >= 3, f"summary, place and remedy expected:\n{told}"
    found = run("connections", "test")
    assert found.exit_code == 1
    assert "error b (" in found.stdout
    assert "ok    a (files)" in found.stdout
    assert not ws.state()


@pytest.mark.parametrize("kind", ["pgvector", "sql"])
def test_wrong_credentials_are_told_without_the_password(
    ws: Workspace, pg_locked_url: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws.fill()
    monkeypatch.setenv("VECRUN_TEST_PASSWORD", "open-sesame-7")
    url = pg_locked_url.replace("PASSWORD", "${env:VECRUN_TEST_PASSWORD}")
    ws.edit("vecrun.yaml", "{type: files, path: ./b}", f"{{type: {kind}, url: '{url}'}}")
    found = run("connections", "test", "b")
    assert found.exit_code == 1
    assert "password authentication failed" in found.stdout
    if kind == "pgvector":
        told = refused(run("plan", "jobs/move.yaml"), 1, "connection b: ", "locked")
        assert "open-sesame" not in told
    assert "open-sesame" not in found.output
    assert not ws.state()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a small disk needs root, to mount a tmpfs")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_fills_stops_the_run_and_a_larger_one_lets_it_go_on(ws: Workspace, small_disk: Path) -> None:
    ws.fill(20_000, dimension=64)
    ws.edit("vecrun.yaml", "path: ./b", f"path: {small_disk}")
    told = refused(run("apply", "jobs/move.yaml", "--auto-approve"), 1, "No space left on device", "free space")
    assert str(small_disk) in told or "kb2" in told
    assert not ws.serving()
    assert not ws.state()
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    found = run("resume", "move")
    assert found.exit_code == 0, found.output
    (ws.root / "b").symlink_to(small_disk)
    assert worlds.same(ws.store("b"), ws.store("b").inspect("kb2"), _unnamed(ws), ws.points("b", "kb2")) == []  # type: ignore[arg-type]


def test_a_disk_that_fills_under_the_state_directory(ws: Workspace, small_disk: Path) -> None:
    ws.fill()
    (small_disk / "filler").write_bytes(b"x" * (2 * 1024 * 1024 - 300_000))
    ws.write("vecrun.yaml", SETTINGS + f"state: {{directory: {small_disk}/state}}\n")
    run("runs")  # the ledger is there
    with (small_disk / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    found = run("apply", "jobs/move.yaml", "--auto-approve")
    refused(found, 1, "The ledger cannot be used", "disk", "Check disk space and rights of the state directory")
    assert ws.world("b") == {"b:aliases": {}}
    (small_disk / "filler").unlink()
    assert run("apply", "jobs/move.yaml", "--auto-approve").exit_code == 0


def _unnamed(ws: Workspace) -> object:
    batch = ws.points("a", "kb")
    assert batch is not None
    batch.vectors = {"": np.ascontiguousarray(batch.vectors.pop("v"))}
    return batch


# A plan that is no longer right -------------------------------------------------------------------------------------


@pytest.fixture
def planned(ws: Workspace) -> Path:
    ws.fill()
    found = run("plan", "jobs/move.yaml", "-o", "plans/move.json")
    assert found.exit_code == 0, found.output
    return Path("plans/move.json")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"points": 50', '"points": 49'),
        ('"collection": "kb2"', '"collection": "kb3"'),
        ('"verify_points"', '"count_points"'),
        ('"plan_digest": "sha256:', '"plan_digest": "sha256:0'),
        ('"serial": 0', '"serial": "zero"'),
    ],
)
def test_a_plan_edited_by_hand(ws: Workspace, planned: Path, old: str, new: str) -> None:
    ws.edit(str(planned), old, new)
    refused(run("apply", planned), 12, "The plan file was altered", "plans/move.json")
    assert ws.nothing_happened()


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"format_version": "1.0"'])
def test_something_that_is_no_plan(ws: Workspace, planned: Path, text: bytes) -> None:
    planned.write_bytes(text)
    refused(run("apply", planned), 12, "plans/move.json", "vecrun plan")
    assert ws.nothing_happened()


def test_a_plan_cut_in_half(ws: Workspace, planned: Path) -> None:
    planned.write_text(planned.read_text()[: len(planned.read_text()) // 2])
    refused(run("apply", planned), 12, "This is not a whole plan file", "plans/move.json", "vecrun plan JOB.yaml -o")
    assert ws.nothing_happened()


def test_a_plan_of_a_newer_format(ws: Workspace, planned: Path) -> None:
    ws.edit(str(planned), f'"format_version": "{FORMAT_VERSION}"', '"format_version": "2.0"')
    refused(
        run("apply", planned),
        12,
        "newer format",
        f"format_version 2.0, this vecrun reads {FORMAT_VERSION}",
        "or plan again",
    )
    ws.edit(str(planned), '"format_version": "2.0"', '"format_version": "1.9", "what_comes": 1')
    refused(run("apply", planned), 12, "newer format", "what_comes", "format_version 1.9")
    assert ws.nothing_happened()


def test_a_stale_plan_the_source_grew(ws: Workspace, planned: Path) -> None:
    with ws.store("a") as store:
        store.upsert("kb", batch_of(ws.schemas["a/kb"], [10**6]))
    refused(
        run("apply", planned), 12, "The plan is stale", "a/kb (source) held 50 points and holds 51 now", "Plan again"
    )
    assert ws.nothing_happened()


def test_a_stale_plan_the_target_appeared(ws: Workspace, planned: Path) -> None:
    ws.fill(0, store="b", name="kb2", vector="")
    refused(run("apply", planned), 12, "The plan is stale", "b/kb2 (target) appeared")
    assert not ws.state()


def test_a_stale_plan_the_alias_moved(ws: Workspace, planned: Path) -> None:
    ws.fill(3, store="b", name="other")
    with ws.store("b") as store:
        store.set_alias("kb-live", "other")
    refused(run("apply", planned), 12, "The plan is stale", "kb-live", "other")
    assert ws.world("b")["b:aliases"] == {"kb-live": "other"}
    assert ws.points("b", "kb2") is None


def test_a_stale_plan_the_serving_pointer_moved(ws: Workspace, planned: Path) -> None:
    ws.write("jobs/other.yaml", change("name: move", "name: other").replace("to: kb2", "to: kb3"))
    assert run("apply", "jobs/other.yaml", "--auto-approve").exit_code == 0
    refused(run("apply", planned), 12, "The plan is stale", "kb-live", "b/kb3")
    assert ws.serving() == {"kb-live": {"connection": "b", "collection": "kb3"}}


def test_a_stale_plan_the_connection_was_repointed(ws: Workspace, planned: Path) -> None:
    ws.edit("vecrun.yaml", "./b", "./elsewhere")
    refused(run("apply", planned), 12, "The plan is stale", "connection b", "put the connection back")
    assert not (ws.root / "elsewhere").exists()
    ws.edit("vecrun.yaml", "./elsewhere", "./b")
    assert run("apply", planned).exit_code == 0


def test_a_stale_plan_of_another_workspace(ws: Workspace, planned: Path) -> None:
    other = Workspace.create(ws.root.parent / "other", SETTINGS.replace("./", f"{ws.root}/"))
    text = planned.read_text()
    assert run("-w", other.root, "apply", planned).exit_code == 12
    assert planned.read_text() == text
    assert ws.nothing_happened()


# Records that are damaged -------------------------------------------------------------------------------------------


def test_a_state_file_cut_in_half_is_never_taken_for_none(ws: Workspace) -> None:
    ws.fill()
    assert run("apply", "jobs/move.yaml", "--auto-approve").exit_code == 0
    path = ws.root / "state" / "move.json"
    whole, before = path.read_text(), ws.world()
    path.write_text(whole[: len(whole) // 2])
    for verb in (("plan", "jobs/move.yaml"), ("rollback", "move", "--auto-approve"), ("state", "list")):
        refused(run(*verb), 1, "A state file is damaged", "state/move.json", "backup")
    looked = run("drift")  # it tells what it could not look at among the others
    assert looked.exit_code == 1
    assert "A state file is damaged" in looked.stdout
    refused(run("apply", "jobs/move.yaml", "--auto-approve"), 1, "A state file is damaged")
    assert ws.world() == before
    path.write_text(whole)
    assert run("rollback", "move", "--auto-approve").exit_code == 0
    # from now on the version before is in the history, and the message says so
    path.write_text("")
    refused(run("plan", "jobs/move.yaml"), 1, "A state file is damaged", "history/move.1.json", "copy it over")
    path.write_text((path.parent / "history" / "move.1.json").read_text())
    assert run("plan", "jobs/move.yaml").exit_code == 0


@pytest.mark.parametrize("text", [b"{}", b"[]", b"\xff", b'{"format_version": "1.0"}', b'{"format_version": "2.0"}'])
def test_a_state_file_that_is_none(ws: Workspace, text: bytes) -> None:
    ws.fill()
    ws.write("state/move.json", text)
    told = refused(run("plan", "jobs/move.yaml"), 1, "A state file", "state/move.json")
    if b"2.0" in text:
        assert "newer format" in told
        assert "format_version 2.0, this vecrun reads 1.3" in told
    assert ws.world("b") == {"b:aliases": {}}


def test_a_damaged_serving_file(ws: Workspace) -> None:
    ws.fill()
    ws.write("state/serving.json", '{"format_version": "1.0", "poin')
    refused(run("apply", "jobs/move.yaml", "--auto-approve"), 1, "A state file is damaged", "state/serving.json")
    assert ws.world("b") == {"b:aliases": {}}


def test_a_ledger_of_a_newer_format_or_none_at_all(ws: Workspace) -> None:
    ws.fill()
    ledger = ws.root / "state" / "ledger.db"
    Ledger(f"sqlite:///{ledger}").close()
    with sqlite3.connect(ledger) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    refused(run("plan", "jobs/move.yaml"), 1, "The ledger has a newer format", "revision 9999", "Use the newer vecrun")
    for side in ledger.parent.glob("ledger.db*"):
        side.unlink()
    ledger.write_bytes(b"garbage" * 1000)
    refused(
        run("apply", "jobs/move.yaml", "--auto-approve"), 1, "The ledger cannot be used", "ledger.db", "not a database"
    )
    assert ws.world("b") == {"b:aliases": {}}


def test_files_of_a_newer_format(ws: Workspace) -> None:
    ws.fill()
    ws.edit("a/kb/manifest.json", '"1.0"', '"2.0"')
    refused(run("plan", "jobs/move.yaml"), 1, "newer vecrun", "manifest.json", "format 2.0")


# A wrong command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("nosuch",), "No such command 'nosuch'"),
        (("plan",), "Missing argument 'JOB'"),
        (("plan", "--nosuch", "x"), "No such option"),
        (("validate", "--var", "x"), "write NAME=VALUE"),
    ],
)
def test_a_wrong_command_line_never_looks_like_pending_changes(
    ws: Workspace, args: tuple[str, ...], words: str
) -> None:
    found = ws.process(*args)
    assert found.returncode == 1  # click's own 2 means here: there are changes
    assert words in found.stderr
    assert "Usage: vecrun" in found.stderr
    assert found.stdout == ""
