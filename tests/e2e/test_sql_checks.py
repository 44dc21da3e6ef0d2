"""What `vecrun validate` and `vecrun lint` say of a SqlMigration, offline (E4): expressions, tables that it declares, what has no
way back, what stays in clear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.workspace import Workspace, run

SETTINGS = """\
apiVersion: vecrun/v1
kind: Workspace
connections:
  app: {type: sql, url: "sqlite:///./app.db"}
"""
KEYS = {"one": {"secret": "${env:KEY}"}}
TABLE = {
    "name": "t",
    "columns": [
        {"name": "id", "type": "integer", "primary_key": True},
        {"name": "secret", "type": "text", "nullable": False},
        {"name": "number", "type": "integer", "nullable": False, "default": 0},
    ],
}
MADE = {"name": "tables", "create_tables": [TABLE]}


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    return Workspace.create(tmp_path, SETTINGS)


def said(ws: Workspace, *steps: dict[str, Any], command: str = "validate", **more: Any) -> str:
    """What a command says of a job with these steps."""
    used = {"keys": KEYS} if "'one'" in str(steps) else {}
    spec = {"connection": "app", "steps": [{"name": f"s{at}"} | step for at, step in enumerate(steps)]}
    job = {"apiVersion": "vecrun/v1", "kind": "SqlMigration", "metadata": {"name": "move", "description": "Rows move."}}
    ws.write("jobs/move.yaml", yaml.safe_dump(job | {"spec": spec | used | more}, sort_keys=False))
    return run(command).output


def mapping(values: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"map": {"from": "s", "into": [{"table": "t", "values": values}], **more}}


FINE = {"id": "row.id", "secret": {"encrypt": "row.secret", "key": "one"}}


def test_a_migration_that_is_right(ws: Workspace) -> None:
    assert "are valid" in said(ws, MADE, mapping(FINE))
    # a column may be called as secrets are: what stands there is an expression
    assert "are valid" in said(ws, mapping({"id": "row.id", "api_key": "row.token"}, let={"password": "row.p"}))
    assert "a secret is written out here" in said(ws, mapping({"id": "row.id", "api_key": "'sk-abc'"}))


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([mapping({"id": "row.id +"})], "spec.steps.0.map: into.0.values.id: "),
        ([mapping({"id": "settng"}, let={"setting": "1"})], "no such name: settng; there are row, setting"),
        ([mapping({"id": "a"}, let={"a": "b", "b": "a"})], "let.a: it is computed from itself: a → b → a"),
        ([MADE, mapping({**FINE, "other": "1"})], "t has no column other; it has id, secret, number"),
        ([MADE, mapping({"secret": "row.a"})], "t: its key is not among the values: id"),
        ([MADE, mapping({"id": "row.id"})], "t: columns that cannot be NULL have no value: secret"),
        ([MADE, mapping({**FINE, "number": {"encrypt": "row.n", "key": "one"}})], "t.number is integer"),
        ([MADE, {"map": {"from": "t", "into": [{"table": "u", "values": {"a": "row.none"}}]}}], "t has no column none"),
        (
            [MADE, {"encrypt": {"table": "t", "columns": ["number"], "key": "one"}}],
            "what is encrypted is stored as text",
        ),
        ([MADE, {"drop_column": {"table": "t", "column": "none"}}], "t has no column none"),
        ([MADE, MADE | {"name": "again"}], "again: t is made by step tables already"),
        ([{"create_tables": [TABLE | {"name": "vecrun_t"}]}], "begin with vecrun_ are vecrun's own"),
        ([{"rotate": {"table": "t", "columns": ["a"], "from": "one", "to": "one"}}], "from and to are the same key"),
    ],
)
def test_what_cannot_be_right(ws: Workspace, steps: list[dict[str, Any]], words: str) -> None:
    assert words in said(ws, *steps)


def test_what_sql_does_to_a_table_is_not_known(ws: Workspace) -> None:
    sql = {"sql": {"forward": ["ALTER TABLE t ADD COLUMN other text"], "rollback": []}}
    assert "are valid" in said(ws, MADE, sql, mapping({**FINE, "other": "row.o"}))


BACKUP = {"back_up": {"table": "s", "columns": ["secret"], "to": "kept"}}


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ([{"sql": {"forward": ["UPDATE t SET a = 1"]}}], "VI151: spec.steps.0.sql: there is no way back"),
        ([{"sql": {"forward": ["select 1", "drop  table t"]}}], "VI145: spec.steps.0.sql.forward.1: DROP TABLE takes"),
        (
            [{"sql": {"forward": ["DELETE FROM t"], "rollback": []}}],
            "VI145: spec.steps.0.sql.forward.0: DELETE FROM takes",
        ),
        ([{"sql": {"forward": ["ALTER TABLE t DROP COLUMN c"], "rollback": []}}], "VI145"),
        (
            [{"sql": {"forward": ["CREATE  INDEX CONCURRENTLY i ON t (a)"], "rollback": ["DROP INDEX i"]}}],
            "VI175: spec.steps.0.sql.forward.0: PostgreSQL does not run CREATE INDEX CONCURRENTLY in a transaction",
        ),
        ([BACKUP, mapping(FINE)], "VI152: spec.steps.0.back_up: kept keeps secret in clear"),
        ([BACKUP, {"encrypt": {"table": "s", "columns": ["secret"], "key": "one"}}], "VI152"),
        ([mapping(FINE | {"copy": "row.secret"})], "VI153: spec.steps.0.map.into.0.values.copy"),
        ([mapping(FINE | {"id": {"uuid_from": ["row.secret"]}})], "VI146: spec.steps.0.map.into.0.values.id"),
        ([mapping(FINE, let={"idle": "row.a"})], "VI147: spec.steps.0.map.let.idle: no expression uses idle"),
    ],
)
def test_what_a_reviewer_would_object_to(ws: Workspace, steps: list[dict[str, Any]], found: str) -> None:
    text = said(ws, *steps, command="lint")
    assert found in text
    accept = [
        {"code": code, "reason": "it was looked at"}
        for code in ("VI145", "VI146", "VI147", "VI151", "VI152", "VI153", "VI175")
    ]
    assert ": warning VI" not in said(ws, *steps, command="lint", accept=accept)


@pytest.mark.parametrize(
    "steps",
    [
        [MADE, mapping(FINE)],
        [{"sql": {"forward": ["DELETE FROM t"], "rollback": ["INSERT INTO t SELECT * FROM kept"]}}],
        [{"sql": {"forward": ["UPDATE t SET a = 'drop table t' -- delete from"], "rollback": []}}],
        [{"sql": {"forward": ["REFRESH MATERIALIZED VIEW CONCURRENTLY v"], "rollback": []}}],
        [{"back_up": {"table": "s", "columns": ["other"], "to": "kept"}}, mapping(FINE)],
        [mapping(FINE | {"id": {"uuid_from": ["row.secret"], "key": "one"}})],
        [mapping(FINE, let={"used": "row.a"}, rules=[{"rule": "used", "message": "m"}])],
    ],
)
def test_what_nobody_objects_to(ws: Workspace, steps: list[dict[str, Any]]) -> None:
    assert " VI1" not in said(ws, *steps, command="lint")
