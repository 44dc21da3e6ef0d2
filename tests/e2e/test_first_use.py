"""What somebody meets who moves data for the first time: a new workspace, slips of the pen, half a collection."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from runner.points import IdKind
from tests.e2e.workspace import SETTINGS, Workspace, run

CHUNKS = SETTINGS + "  app: {type: sql, url: 'sqlite:///app.db'}\n"


def told(*args: str | Path) -> str:
    found = run(*args)
    assert found.exit_code == 0, found.output
    return found.output


def test_a_new_workspace_has_the_schemas_its_files_name(tmp_path: Path) -> None:
    printed = told("init", tmp_path / "new")
    for name in ("vecrun.yaml", "jobs/milvus-to-qdrant.yaml"):
        path = tmp_path / "new" / name
        named = path.read_text().splitlines()[0].removeprefix("# yaml-language-server: $schema=")
        assert (path.parent / named).is_file()
    assert "put your databases into vecrun.yaml" in printed


def test_a_sqlite_file_is_found_from_anywhere(ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ws.write("vecrun.yaml", CHUNKS)
    sqlite3.connect(ws.root / "app.db").close()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert told("-w", ws.root, "connections", "test", "app").startswith("ok")
    assert list(elsewhere.iterdir()) == []


def test_a_ledger_file_lies_in_the_workspace(ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ws.write("vecrun.yaml", SETTINGS + "state: {database: 'sqlite:///runs.db'}\n")
    ws.fill(5)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    told("-w", ws.root, "apply", ws.job, "--auto-approve")
    assert (ws.root / "runs.db").is_file()
    assert list(elsewhere.iterdir()) == []


def test_fields_that_nothing_has_are_told(ws: Workspace) -> None:
    ws.fill(ids=[1, 2], payloads=[{"lang": "en", "meta": {"year": 2020}}, {"lang": "de"}])
    rule = "to: kb2\n      payload: {drop: [langg], rename: {txt: text}}\n      where: [{field: meta.year, op: exists}]"
    ws.edit("jobs/move.yaml", "to: kb2", rule)
    assert "VI104 a/kb: fields that no point of the sample has: langg, txt" in told("plan", ws.job)


def test_one_finding_for_one_transform_that_fails(ws: Workspace) -> None:
    ws.fill(ids=list(range(600)), payloads=[{"year": f"y{number}"} for number in range(600)])
    ws.edit("jobs/move.yaml", "to: kb2", "to: kb2\n      payload: {cast: {year: integer}}")
    assert told("plan", ws.job).count("VX104") == 1


def test_the_status_of_a_filtered_run_is_not_half_done(ws: Workspace) -> None:
    ws.fill(ids=list(range(10)), payloads=[{"n": number} for number in range(10)])
    ws.edit("jobs/move.yaml", "to: kb2", "to: kb2\n      where: [{field: n, op: lt, value: 4}]")
    told("apply", ws.job, "--auto-approve")
    assert "  points    4\n" in told("status", "move")


def test_rows_whose_points_stay_behind_are_told(ws: Workspace) -> None:
    ws.write("vecrun.yaml", CHUNKS)
    with sqlite3.connect(ws.root / "app.db") as database:
        database.execute("create table chunks (id integer primary key, vector_id text)")
    database.close()
    ws.fill(ids=[1, 2], payloads=[{"n": 1}, {"n": 2}])
    ws.edit("jobs/move.yaml", "to: kb2", "to: kb2\n      ids: {mode: uuid5}\n      where: [{field: n, value: 1}]")
    ws.edit("jobs/move.yaml", "  cutover:", "  documents: {connection: app, table: chunks}\n  cutover:")
    assert "VI106 app: rows of chunks whose points where leaves out keep their old ids" in told("plan", ws.job)


def test_a_run_that_fails_says_how_to_go_on(ws: Workspace) -> None:
    ws.fill(20)
    ws.write("plans/p.json", ws.plan().dumps())
    ws.poison(1)
    found = run("apply", ws.root / "plans" / "p.json")
    assert found.exit_code == 1
    assert "vecrun resume move" in found.output
    assert "vecrun rollback move" in found.output


def test_ids_in_findings_are_those_of_the_source(ws: Workspace) -> None:
    ws.fill(kind=IdKind.STRING, ids=["doc 1"], payloads=[{"a": 1}])
    ws.poison("doc 1")
    ws.edit("jobs/move.yaml", "to: kb2", "to: kb2\n      ids: {mode: uuid5}")
    assert "such as 'doc 1'" in told("plan", ws.job)


def test_a_collection_that_differs_does_not_hide_the_next(ws: Workspace) -> None:
    ws.fill(5, name="kb")
    ws.fill(5, name="other")
    ws.edit("jobs/move.yaml", "to: kb2", "to: kb2\n    - from: other\n      to: other2")
    ws.edit("jobs/move.yaml", "alias: kb-live", 'alias: "{name}-live"')
    told("apply", ws.job, "--auto-approve")
    ws.poison(1, store="b", name="kb2")
    found = run("verify", "move")
    assert found.exit_code == 13, found.output
    assert "a/kb and b/kb2 differ" in found.output
    assert "a/other = b/other2: full, 5 points compared, 5 equal" in found.output


def test_a_collection_that_another_job_came_from_is_not_dropped(ws: Workspace) -> None:
    """Given kb moved to b/kb2 and from there on, then the first move cannot be undone before the second (VD103)."""
    ws.fill(ids=[1, 2, 3])
    told("apply", ws.job, "--auto-approve")
    onward = (ws.root / ws.job).read_text().replace("source: a", "source: b").replace("target: b", "target: a")
    onward = onward.replace("from: kb", "from: kb2").replace("to: kb2", "to: kb3").replace("name: move", "name: onward")
    ws.write("jobs/onward.yaml", onward)
    told("apply", "jobs/onward.yaml", "--auto-approve")
    refused = run("rollback", "move", "--auto-approve")
    assert refused.exit_code == 1
    assert "VD103 b/kb2: job onward was applied from it" in refused.output
    told("rollback", "onward", "--auto-approve")
    told("rollback", "move", "--auto-approve")
    assert ws.world("b") == {"b:aliases": {}}
