"""Drift of all jobs for a scheduled pipeline: what moved, part by part, what is expected, and its forms (G8)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.points import Distance, PayloadField, PayloadType
from runner.policies import DriftRules, segment
from tests.e2e.workspace import JOB, SETTINGS, Workspace, run


@pytest.fixture
def ws(ws: Workspace) -> Workspace:
    """Two applied jobs."""
    ws.fill(10)
    ws.fill(4, name="faq", dimension=3)
    ws.write("jobs/faq.yaml", JOB.replace("name: move", "name: faq").replace("kb", "faq"))
    for name in ("move", "faq"):
        assert run("apply", f"jobs/{name}.yaml", "--auto-approve").exit_code == 0
    return ws


def drifted(*args: str, code: int) -> dict[str, Any]:
    found = run("drift", "--json", *args)
    assert found.exit_code == code, found.output
    return dict(json.loads(found.stdout))


def ignore(ws: Workspace, *texts: str) -> None:
    ws.write("vecrun.yaml", SETTINGS + "drift:\n  ignore:\n" + "".join(f"    - {text}\n" for text in texts))


def remade(ws: Workspace) -> None:
    """faq2 made anew by somebody: another metric, another payload field, one point less."""
    with ws.store("b") as store:
        before = store.inspect("faq2")
        points = ws.points("b", "faq2")
        assert before is not None
        assert points is not None
        store.drop("faq2")
        vectors = tuple(item.model_copy(update={"distance": Distance.EUCLID}) for item in before.vectors)
        field = PayloadField(name="lang", type=PayloadType.KEYWORD, indexed=True)
        schema = before.model_copy(update={"vectors": vectors, "payload": (field,)})
        store.create(schema)
        store.upsert("faq2", points.slice(0, 3))
        store.finish(schema)
        store.set_alias("faq-live", "faq2")


def test_parts_of_a_schema_are_told(ws: Workspace) -> None:
    assert drifted(code=0)["jobs"] == {"faq": [], "move": []}
    remade(ws)
    found = drifted(code=2)
    assert found["jobs"]["move"] == []
    told = found["jobs"]["faq"]
    assert "b/faq2 (target) held 4 points and holds 3 now" in told
    assert "b/faq2 (target): vectors.(unnamed).distance was cosine and is euclid" in told
    assert any("payload.lang was not there and is type keyword" in line for line in told)
    fields = {item["field"] for item in found["changes"]["faq"]}
    assert {"count", "vectors.(unnamed).distance", "payload.lang"} <= fields
    assert run("drift", "move").exit_code == 0
    shown = run("plan", "jobs/faq.yaml", "--detailed-exitcode")
    assert (shown.exit_code, "vectors.(unnamed).distance was cosine" in shown.stdout) == (2, True)


def test_what_is_expected_is_left_out(ws: Workspace) -> None:
    remade(ws)
    ignore(ws, "{fields: [count], jobs: [fa*], reason: readers rate it}")
    found = drifted(code=2)
    assert not any("held 4" in line for line in found["jobs"]["faq"])
    assert [item["field"] for item in found["changes"]["faq"] if item["expected"]] == ["count"]
    assert "· expected: b/faq2 (target) held 4 points" in run("drift").stdout
    ignore(ws, "{fields: [count, schema], places: ['b/*']}")
    assert drifted(code=0)["jobs"] == {"faq": [], "move": []}
    assert run("plan", "jobs/faq.yaml", "--detailed-exitcode").exit_code == 0
    ignore(ws, "{fields: [count, 'vectors.*', payload]}")  # a part, and everything below one
    assert drifted(code=0)["jobs"]["faq"] == []
    ignore(ws, "{fields: [count, schema], places: [a/faq2]}")
    drifted(code=2)
    ignore(ws, "{fields: [count, schema], jobs: [move]}")
    drifted(code=2)


def test_aliases_and_collections_that_are_gone(ws: Workspace) -> None:
    with ws.store("b") as store:
        store.set_alias("kb-live", "faq2")
    assert "alias kb-live of b points to faq2, not kb2" in drifted(code=2)["jobs"]["move"]
    ignore(ws, "{fields: [aliases], places: [kb-live]}")
    drifted(code=0)
    with ws.store("b") as store:
        store.drop("kb2")
    assert drifted(code=2)["jobs"]["move"] == ["b/kb2 (target) is gone"]
    ignore(ws, "{fields: [aliases, presence]}")
    drifted(code=0)


def test_an_apply_does_not_overlook_what_is_expected(ws: Workspace) -> None:
    """A plan of a new job touches the same collection: what moved since it was planned counts, whatever drift leaves out."""
    ws.write(
        "jobs/again.yaml",
        JOB.replace("name: move", "name: again").replace("to: kb2", "to: kb3").replace("kb-live", "x"),
    )
    ignore(ws, "{fields: [count]}")
    assert run("plan", "jobs/again.yaml", "-o", "plans/again.json").exit_code == 0
    with ws.store("a") as store:
        store.delete("kb", ws.points("a", "kb").ids[:1])  # type: ignore[union-attr]
    assert run("apply", "plans/again.json").exit_code == 12


def test_markdown(ws: Workspace) -> None:
    calm = run("drift", "--format", "markdown")
    assert (calm.exit_code, calm.stdout.startswith("# Drift\n\n2 jobs: nothing moved.\n")) == (0, True)
    remade(ws)
    ignore(ws, "{fields: [count]}")
    found = run("drift", "--format", "markdown")
    assert found.exit_code == 2
    text = found.stdout
    assert "**1 of 2 jobs: the world is not as it was left.** `faq`" in text
    assert text.count("\n## ") == 2
    assert (
        "| b/faq2 | vectors.(unnamed).distance | b/faq2 (target): vectors.(unnamed).distance was cosine and is euclid |"
        in text
    )
    assert "Expected (`drift` in vecrun.yaml):" in text
    assert json.loads(run("drift", "--format", "json").stdout)["changes"]["faq"]


def test_states_from_before_schemas_were_kept(ws: Workspace) -> None:
    path = ws.root / "state" / "faq.json"
    data = json.loads(path.read_text())
    assert all(item["shape"]["name"] for item in data["world"])
    for item in data["world"]:
        del item["shape"]
    path.write_text(json.dumps(data | {"format_version": "1.2"}))
    assert drifted(code=0)["jobs"]["faq"] == []
    remade(ws)
    assert "b/faq2 (target) has another schema, index or setting now" in drifted(code=2)["jobs"]["faq"]


@pytest.mark.parametrize("rule", ["{fields: []}", "{jobs: [x]}", "{field: [count]}"])
def test_wrong_rules(tmp_path: Path, rule: str) -> None:
    ws = Workspace.create(tmp_path / "new")
    ignore(ws, rule)
    assert run("-w", ws.root, "drift").exit_code == 14


def test_one_that_cannot_be_looked_at_keeps_none_of_the_others_from_it(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "a")
    ws.write("vecrun.yaml", SETTINGS + "  c: {type: files, path: './${env:PLACE}'}\n")
    job = JOB.replace("name: move", "name: third").replace("source: a", "source: c").replace("kb2", "kb3")
    ws.write("jobs/third.yaml", job.replace("kb-live", "x"))
    assert run("apply", "jobs/third.yaml", "--auto-approve").exit_code == 0
    monkeypatch.delenv("PLACE")
    found = drifted(code=1)
    assert found["jobs"] == {"faq": [], "move": []}
    assert "PLACE is not set" in found["error"]["third"]
    remade(ws)
    found = drifted(code=2)
    assert found["jobs"]["faq"]
    assert set(found["error"]) == {"third"}
    said = run("drift").stdout
    assert "third: could not be looked at: " in said
    assert "faq: moved since it was applied" in said
    told = run("drift", "--format", "markdown").stdout
    assert "**1 of 3 jobs: could not be looked at.** `third`" in told
    assert "**1 of 2 jobs: the world is not as it was left.** `faq`" in told
    (ws.root / "state" / "faq.json").write_text("{")  # a damaged document likewise
    assert set(drifted(code=1)["error"]) == {"faq", "third"}


def test_a_star_stands_for_a_whole_part_of_a_path() -> None:
    rules = DriftRules.model_validate({"ignore": [{"fields": ["vectors.*.index", 'payload."a.b"', "settings.x?"]}]})
    for field, expected in (
        ("vectors.v.index", True), ("vectors.v.index.m", True), ("vectors.v.size", False),
        (f"vectors.{segment('x.index')}.size", False), (f"vectors.{segment('x.y')}.index", True),
        (f"payload.{segment('a.b')}.type", True), ("payload.a.type", False),
        ("settings.xy", True), ("settings.xyz", False), ("count", False),
    ):  # fmt: skip
        assert rules.leaves_out("move", "b/kb2", field) is expected, field


def test_a_name_with_a_dot_is_one_part_of_a_path(ws: Workspace) -> None:
    with ws.store("b") as store:
        schema, points = store.inspect("faq2"), ws.points("b", "faq2")
        assert schema is not None
        assert points is not None
        store.drop("faq2")
        field = PayloadField(name="meta.lang", type=PayloadType.KEYWORD, indexed=True)
        store.create(schema.model_copy(update={"payload": (field,)}))
        store.upsert("faq2", points)
        store.set_alias("faq-live", "faq2")
    ignore(ws, "{fields: [payload.*.lang, payload.meta]}")
    (told,) = drifted("faq", code=2)["jobs"]["faq"]
    assert 'payload."meta.lang" was not there and is type keyword' in told
    ignore(ws, "{fields: [payload.*]}")
    assert drifted("faq", code=0)["changes"]["faq"][0]["expected"]
