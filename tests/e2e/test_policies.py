"""Policies of vecrun.yaml: what a plan says of them, and what an apply refuses because of them (G5; DESIGN 6)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from runner.policies import DAYS, Window
from tests.e2e.knowledge import Knowledge
from tests.e2e.workspace import JOB, SETTINGS, Workspace, run

APPROVED = "{name: two-eyes, require: {approvals: 2}, reason: readers depend on it}"


def rules(ws: Workspace, *texts: str, more: str = "") -> None:
    """vecrun.yaml with these policies."""
    lines = "".join(f"    - {text}\n" for text in texts)
    ws.write("vecrun.yaml", f"{SETTINGS}policies:\n  rules:\n{lines}{more}")


def planned(*args: str | Path) -> dict[str, Any]:
    found = run("plan", "jobs/move.yaml", "--json", *args)
    assert found.exit_code == 0, found.output
    return dict(json.loads(found.stdout)["plan"])


def notices(plan: dict[str, Any], family: str = "VP") -> dict[str, dict[str, Any]]:
    return {item["code"]: item for item in plan["notices"] if item["code"].startswith(family)}


def refused(*args: str | Path, code: int = 12) -> str:
    """What an apply says that does nothing."""
    found = run("apply", *args)
    assert found.exit_code == code, found.output
    return found.stderr


def day(offset: int) -> str:
    return DAYS[(datetime.now(UTC) + timedelta(days=offset)).weekday()]


def test_approvals_are_told_asked_for_and_kept(ws: Workspace) -> None:
    ws.fill(5)
    rules(ws, APPROVED)
    plan = planned("-o", "plans/move.json")
    assert notices(plan)["VP101"]["where"] == "policy two-eyes"
    assert not notices(plan)["VP101"]["blocking"]
    assert "readers depend on it" in notices(plan)["VP101"]["message"]
    assert "VP101" in Path("plans/move.md").read_text()
    assert planned()["plan_digest"]  # planning again is possible, and gives the same findings
    for names in ((), ("ada",), ("ada", "Ada ")):  # one person is one approval, however spelt
        said = refused("plans/move.json", *_by(names))
        assert "policy two-eyes: 2 approvals are needed, and there" in said
    assert "1 approval" not in said
    assert ws.nothing_happened()
    # asked before anybody is asked to approve it at a terminal
    assert "two-eyes" in refused("jobs/move.yaml", "--auto-approve")
    done = run("apply", "plans/move.json", *_by(["ada", "bob"]))
    assert done.exit_code == 0, done.output
    assert "approved by ada, bob" in run("logs", "move").stdout
    # nothing to do: nobody is asked
    assert run("apply", "jobs/move.yaml", "--auto-approve").exit_code == 0


def _by(names: Sequence[str]) -> list[str]:
    return [word for name in names for word in ("--approved-by", name)]


def test_a_policy_that_became_stricter_counts_and_one_that_is_gone_does_not(ws: Workspace) -> None:
    ws.fill(5)
    planned("-o", "plans/move.json")
    rules(ws, "{name: no-switch, when: switches, deny: ['*']}")
    assert "policy no-switch: switch_alias is denied" in refused("plans/move.json")
    assert ws.nothing_happened()
    rules(ws, APPROVED)
    planned("-o", "plans/asked.json")
    ws.write("vecrun.yaml", SETTINGS)
    assert run("apply", "plans/asked.json").exit_code == 0


def test_windows(ws: Workspace) -> None:
    ws.fill(5)
    rules(ws, f"{{name: weekly, window: {{days: [{day(3)}], from: '01:00', to: '02:00'}}}}")
    plan = planned("-o", "plans/move.json")
    notice = notices(plan)["VP102"]
    assert (notice["blocking"], notice["seen"]) == (False, "closed when this was planned")
    said = refused("plans/move.json")
    assert f"policy weekly: an apply may begin {day(3)} from 01:00 to 02:00, UTC; it is" in said
    rules(ws, "{name: weekly, window: {timezone: Asia/Tokyo}}")
    assert run("apply", "jobs/move.yaml", "--auto-approve").exit_code == 0


@pytest.mark.parametrize(
    ("window", "moment", "is_open"),
    [
        ({"from": "22:00", "to": "06:00", "days": ["fri"]}, "2026-11-20T21:59", False),
        ({"from": "22:00", "to": "06:00", "days": ["fri"]}, "2026-11-20T22:00", True),
        ({"from": "22:00", "to": "06:00", "days": ["fri"]}, "2026-11-21T05:59", True),  # of Friday, on Saturday
        ({"from": "22:00", "to": "06:00", "days": ["fri"]}, "2026-11-21T06:00", False),
        ({"from": "22:00", "to": "06:00", "days": ["fri"]}, "2026-11-20T05:00", False),  # of Thursday
        ({"from": "08:00", "to": "08:00", "days": ["sun"]}, "2026-11-23T07:59", True),  # a whole day
        ({"days": ["sat", "sun"]}, "2026-11-22T23:59", True),
        ({"days": ["sat", "sun"]}, "2026-11-23T00:00", False),
        ({"from": "22:00", "timezone": "Europe/Berlin"}, "2026-07-01T20:00", True),  # summer time
        ({"from": "22:00", "timezone": "Europe/Berlin"}, "2026-12-01T20:59", False),  # winter time
        # the night in which the clocks go back: 02:30 happens twice, and is inside twice
        ({"from": "02:00", "to": "03:00", "timezone": "Europe/Berlin"}, "2026-10-25T00:30", True),
        ({"from": "02:00", "to": "03:00", "timezone": "Europe/Berlin"}, "2026-10-25T01:30", True),
        ({"from": "02:00", "to": "03:00", "timezone": "Europe/Berlin"}, "2026-10-25T02:00", False),
    ],
)
def test_when_a_window_is_open(window: dict[str, Any], moment: str, is_open: bool) -> None:
    assert Window.model_validate(window).open(datetime.fromisoformat(moment).replace(tzinfo=UTC)) is is_open


def test_what_blocks_a_plan_names_its_policy_and_no_job_can_accept_it(ws: Workspace) -> None:
    ws.fill(5)
    ws.edit("jobs/move.yaml", "  cutover:", "  verify: {mode: count}\n  source_after: delete\n  cutover:")
    codes = ("VD101", "VP103", "VP104", "VP106")
    accepted = ", ".join(f"{{code: {code}, reason: it is wanted here}}" for code in codes)
    ws.write("jobs/move.yaml", ws.job.read_text() + f"  accept: [{accepted}]\n")
    rules(
        ws, "{name: whole, require: {verify: full}}", "{name: keep, deny: [VD*, 'drop_*']}",
        "{name: said, require: {accepted: [VI*, VB*]}}",
    )  # fmt: skip
    ws.fill(3, store="b", name="old")
    with ws.store("b") as store:
        store.set_alias("kb-live", "old")
    plan = planned("-o", "plans/move.json")
    found = [(item["code"], item["where"], item["message"]) for item in plan["notices"] if item["code"] in codes[1:]]
    assert ("VP103", "policy whole", "verification must be full, and it is count") in found
    assert ("VP104", "policy keep", "drop_collection is denied") in found
    assert ("VP104", "policy keep", "VD101 is denied") in found
    assert ("VP106", "policy said", "the job has to accept VB101 with a reason") in found
    assert all(item["blocking"] for item in plan["notices"] if item["code"] in codes[1:])
    said = refused("plans/move.json", code=1)
    assert "VP103 policy whole" in said
    assert "no job can accept it" in said
    assert ws.points("b", "kb2") is None


def test_an_information_that_a_policy_wants_accepted(ws: Workspace) -> None:
    ws.fill(5)
    ws.fill(3, store="b", name="old")
    with ws.store("b") as store:
        store.set_alias("kb-live", "old")
    planned("-o", "plans/before.json")
    rules(ws, "{name: said, require: {accepted: [VB101]}}")
    assert "policy said: the job has to accept VB101" in refused("plans/before.json")
    ws.write("jobs/move.yaml", JOB + "  accept: [{code: VB101, reason: the readers were told on Monday}]\n")
    plan = planned("-o", "plans/after.json")
    assert notices(plan) == {}
    assert notices(plan, "VB101")["VB101"]["accepted"] == "the readers were told on Monday"
    assert run("apply", "plans/after.json").exit_code == 0


def test_a_rule_is_for_environments_jobs_kinds_and_purposes(ws: Workspace) -> None:
    ws.fill(5)
    everything = "require: {approvals: 1}"
    rules(
        ws, f"{{name: elsewhere, environments: [prod], {everything}}}", f"{{name: other-job, jobs: ['re*'], {everything}}}",
        f"{{name: other-kind, kinds: [Reembedding], {everything}}}", f"{{name: deleting, when: deletes, {everything}}}",
        f"{{name: gone, when: destroys, {everything}}}", f"{{name: back, purposes: [rollback], {everything}}}",
        more="environments: {prod: {}, dev: {}}\n",
    )  # fmt: skip
    assert notices(planned()) == {}
    assert notices(planned("--env", "dev")) == {}
    assert notices(planned("--env", "prod"))["VP101"]["where"] == "policy elsewhere"
    assert run("apply", "jobs/move.yaml", "--auto-approve").exit_code == 0
    back = run("rollback", "move", "--auto-approve")
    assert (back.exit_code, "policy back: 1 approval is needed, and there are none" in back.stderr) == (12, True)
    assert "VP101 policy back" in run("rollback", "move", "--dry-run").stdout
    assert run("rollback", "move", "--auto-approve", "--approved-by", "ada").exit_code == 0


def test_a_rollback_is_not_held_up_unless_it_is_named(ws: Workspace) -> None:
    ws.fill(5)
    run("apply", "jobs/move.yaml", "--auto-approve")
    rules(ws, "{name: closed, when: always, deny: ['*'], require: {approvals: 20}}")
    assert run("rollback", "move", "--auto-approve").exit_code == 0
    assert run("apply", "jobs/move.yaml", "--auto-approve", "--unpin").exit_code == 1


def test_a_backup_is_no_change_and_a_dry_run_is_free(ws: Workspace) -> None:
    ws.fill(5)
    rules(ws, APPROVED)
    assert run("apply", "jobs/move.yaml", "--dry-run").exit_code == 0
    (ws.root / "bucket").mkdir()
    ws.edit("vecrun.yaml", "policies:", "  bucket: {type: folder, path: ./bucket}\npolicies:")
    job = (
        "apiVersion: vecrun/v1\nkind: VectorBackup\nmetadata: {name: nightly}\n"
        "spec: {collections: {connection: a}, to: {connection: bucket}}\n"
    )
    ws.write("jobs/nightly.yaml", job)
    assert run("apply", "jobs/nightly.yaml", "--auto-approve").exit_code == 0


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("{name: x}", "a rule demands something: require, deny, usd or window"),
        ("{name: x, deny: [drop_collecton]}", "no step, and no code, is called 'drop_collecton'"),
        ("{name: x, environments: [prd], deny: ['*']}", "no environment is called 'prd'"),
        ("{name: x, kinds: [Migration], deny: ['*']}", "no kind of job is called 'Migration'"),
        ("{name: x, window: {timezone: Europe/Berlinn}}", "is no time zone that this machine knows"),
        ("{name: x, window: {from: '25:00'}}", "policies.rules.0.window.from"),
        ("{name: x, require: {approvals: two}}", "should be a whole number"),
        ("{name: x, when: never, deny: ['*']}", "policies.rules.0.when"),
    ],
)
def test_a_rule_that_would_forbid_nothing_is_an_error(ws: Workspace, rule: str, said: str) -> None:
    ws.fill(5)
    rules(ws, rule, more="environments: {prod: {}}\n")
    found = run("plan", "jobs/move.yaml")
    assert found.exit_code == 14, found.output
    assert "vecrun.yaml:" in found.stderr
    assert said in found.stderr
    assert run("lint").exit_code == 14


def test_two_rules_of_one_name(ws: Workspace) -> None:
    rules(ws, APPROVED, APPROVED)
    assert "two rules are called two-eyes" in run("validate").stderr


def test_what_it_may_cost_is_no_matter_of_the_job(kb: Knowledge) -> None:
    """VP105, where VC101 can be accepted; it names no amount that nobody knows."""
    kb.configure(policies={"usd": 0.00001, "rules": [{"name": "thrift", "usd": 0.00001}]})
    kb.fill(20)
    kb.job(accept=[{"code": "VC101", "reason": "it is worth it"}])
    found = notices(kb.plan())
    assert found["VP105"]["blocking"]
    assert "policy thrift" in refused("plans/change.json", code=1)
    kb.configure(policies={"rules": [{"name": "thrift", "usd": 1000}]})
    assert notices(kb.plan()) == {}
    kb.model = {"price": None}
    kb.configure()
    assert "no price is known" in notices(kb.plan())["VP105"]["message"]
