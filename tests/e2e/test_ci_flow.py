"""A change from its pull request to its result in the comment, on git with a bare remote and a host that speaks HTTP (issue 7)."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest

from runner.ci import bundle as bundles
from runner.ci import changes
from runner.ci.document import parse_marker
from tests.e2e.pulls import JOB, Flow, github, grow, head, merge, moved
from tests.e2e.workspace import SETTINGS, run


def test_from_the_first_push_to_the_result(flow: Flow) -> None:
    flow.forge.say(1, "eve", "What is this about?")
    assert "created on 1" in flow.shown().output
    first = flow.ours()[0].id
    assert "1 job to apply" in flow.text
    assert "unchanged" in flow.comment().output, "the same plans again change nothing"

    flow.change("kb2", "kb3")
    assert flow.comment().exit_code == 12, "the plans are not of the head of the request"
    assert "updated on 1" in flow.shown().output
    assert [item.id for item in flow.ours()] == [first]
    assert "kb3" in flow.text

    flow.change("kb3", "kb2")
    flow.shown()
    done = flow.apply()
    assert done.exit_code == 0, done.output
    assert "move: completed" in done.output
    assert moved(flow) == 20
    assert [item.id for item in flow.ours()] == [first]
    assert "### Applying it is done" in flow.text
    assert "completed" in flow.text
    assert parse_marker(flow.text) is not None
    assert flow.made() == 1, "one comment, whatever happened"

    before = flow.text
    again = flow.apply()
    assert again.exit_code == 12
    assert "applied before" in again.output
    assert flow.text == before, "the result stays as it was"


@github
@pytest.mark.parametrize("way", ["merge", "squash", "rebase"])
def test_on_merge_the_shown_plans_are_applied(flow: Flow, way: str) -> None:
    flow.shown()
    merge(flow, way)
    done = flow.apply()
    assert done.exit_code == 0, done.output
    assert moved(flow) == 20
    assert "is done" in flow.text


@pytest.mark.parametrize("way", ["merge", "squash"])
def test_without_artefacts_it_is_planned_again_and_compared(flow: Flow, way: str) -> None:
    flow.shown()
    before = merge(flow, way)
    done = flow.apply("--base", before)
    assert done.exit_code == 0, done.output
    assert moved(flow) == 20
    assert "is done" in flow.text
    again = flow.apply("--base", before)
    assert again.exit_code == 12
    assert "nothing left to apply" in again.output
    assert "is done" in flow.text


@github
def test_without_artefacts_another_world_is_refused_and_shown(flow: Flow) -> None:
    flow.shown()
    before = merge(flow, "merge")
    grow(flow)
    done = flow.apply("--base", before)
    assert done.exit_code == 12
    assert "not what the comment shows" in done.output
    assert "25" in done.output
    assert moved(flow) == 0


def test_a_stale_plan_is_refused_at_the_merge_with_the_difference(flow: Flow) -> None:
    """Somebody else's change of the same job is merged first."""
    flow.shown()
    flow.git("checkout", "-q", "main")
    flow.ws.write("vecrun.yaml", SETTINGS.replace("./b", "./c"))
    flow.commit("another place for b")
    flow.git("merge", "-q", "--no-ff", "-m", "Merge 1", "change")
    flow.push()
    done = flow.apply()
    assert done.exit_code == 12
    assert "not what the plans were made from" in done.output
    assert "move: not as it was planned: connection b" in done.output
    assert moved(flow) == 0
    assert "did not come to its end" in flow.text
    assert "refused" in flow.text


@github
def test_what_the_difference_is_is_said(flow: Flow) -> None:
    flow.shown()
    flow.ws.edit("jobs/move.yaml", "kb2", "kb3")
    done = flow.apply()
    assert done.exit_code == 12
    assert "shown (-) and now (+)" in done.output
    assert [line for line in done.output.splitlines() if line.strip().startswith("+") and "kb3" in line]
    assert moved(flow) == 0


@github
def test_the_world_moved(flow: Flow) -> None:
    flow.shown()
    grow(flow)
    told = flow.apply("plans", "--json")
    assert (told.exit_code, json.loads(told.stdout)["error"]["summary"]) == (12, "The plan is stale")
    done = flow.apply()
    assert done.exit_code == 12
    assert "The plan is stale" in done.output
    assert "25" in done.output
    assert moved(flow) == 0
    assert "refused" in flow.text


@github
def test_another_workspace(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same commit and the same points elsewhere, with records of its own."""
    flow.shown()
    other = flow.ws.root.parent / "other"
    flow.git("clone", "-q", "--branch", "change", str(flow.forge.remote), str(other))
    for name in ("a", "plans"):
        shutil.copytree(flow.ws.root / name, other / name)
    monkeypatch.chdir(other)
    done = flow.apply()
    assert done.exit_code == 12
    assert "another workspace" in done.output
    assert moved(flow) == 0


@github
def test_another_environment_and_another_commit(flow: Flow) -> None:
    flow.ws.write("vecrun.yaml", SETTINGS + "environments: {prod: {}}\n")
    flow.commit()
    flow.push()
    flow.shown()
    other = run("ci", "apply", "plans", "--env", "prod")
    assert (other.exit_code, "another environment" in other.output) == (12, True)
    other = flow.apply("plans", "--head", "0" * 40)
    assert (other.exit_code, "another commit" in other.output) == (12, True)
    assert moved(flow) == 0


@github
@pytest.mark.parametrize("name", ["ci.json", "move.json", "move.md", "move.html", "comment.md"])
def test_one_byte(flow: Flow, name: str) -> None:
    """Wherever it is; a few places of each file."""
    flow.shown()
    path = flow.ws.root / "plans" / name
    whole = path.read_bytes()
    for place in range(5, len(whole) - 5, max(1, len(whole) // (12 if name.endswith(".json") else 2))):
        if not chr(whole[place]).isalnum():
            continue
        other = b"0" if whole[place : place + 1] != b"0" else b"1"
        path.write_bytes(whole[:place] + other + whole[place + 1 :])
        done = flow.apply()
        assert done.exit_code == 12, (place, whole[place - 20 : place + 20], done.output)
    for broken in (b"", whole[: len(whole) // 2], whole[:50] + b"\xff" + whole[51:], b"[" * 100_000):
        path.write_bytes(broken)
        done = flow.apply()
        assert (done.exit_code, done.exception is None or isinstance(done.exception, SystemExit)) == (12, True)
    if name != "ci.json":
        path.unlink()
        assert flow.apply().exit_code == 12
    path.write_bytes(whole)
    assert moved(flow) == 0
    assert flow.apply().exit_code == 0


@github
def test_a_comment_that_shows_other_plans(flow: Flow) -> None:
    assert flow.plan()
    none = flow.apply()
    assert (none.exit_code, "does not show these plans" in none.output) == (12, True)
    assert flow.comment().exit_code == 0
    grow(flow)
    flow.plan()
    other = flow.apply()
    assert (other.exit_code, "shows other plans" in other.output) == (12, True)
    assert moved(flow) == 0


@github
def test_a_newer_push_is_refused(flow: Flow) -> None:
    flow.shown()
    here = head(flow)
    flow.change("kb2", "kb3")
    flow.git("checkout", "-q", "--detach", here)
    done = flow.apply("plans", "--pr", "1")
    assert (done.exit_code, "has another head" in done.output) == (12, True)
    assert moved(flow) == 0


@github
def test_a_job_that_fails_stops_the_others_and_the_rest_can_follow(flow: Flow) -> None:
    flow.ws.fill(20, name="bad")
    flow.ws.write("jobs/a-first.yaml", JOB.replace("name: move", "name: a-first").replace("kb2", "kb5"))
    bad = JOB.replace("name: move", "name: k-bad").replace("from: kb,", "from: bad,").replace("kb2", "kb6")
    flow.ws.write("jobs/k-bad.yaml", bad)
    flow.commit()
    flow.push()
    flow.shown()
    flow.ws.poison(7, name="bad")
    done = flow.apply()
    assert done.exit_code not in (0, 12), done.output
    for line in ("a-first: completed", "k-bad: failed", "move: not begun"):
        assert line in done.output
    assert "did not come to its end" in flow.text
    assert moved(flow) == 0


@github
def test_a_renamed_job_moves_its_state(flow: Flow) -> None:
    flow.shown()
    assert flow.apply().exit_code == 0
    merge(flow, "rebase")
    flow.git("fetch", "-q")
    flow.git("checkout", "-q", "change")
    flow.change("name: move", "name: move-kb")
    flow.shown()
    done = flow.apply()
    assert done.exit_code == 0, done.output
    assert "move-kb: moved, it was move" in done.output
    assert "moved" in flow.text
    states = json.loads(run("state", "list", "--json").output)["items"]
    assert [item["job"] for item in states] == ["move-kb"]
    assert (flow.apply().exit_code, moved(flow)) == (12, 20)


@github
def test_signed_plans(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECRUN_KEY", "planted-signing-key")
    flow.ws.write("vecrun.yaml", SETTINGS + "ci: {signing_key: '${env:VECRUN_KEY}'}\n")
    flow.commit()
    flow.push()
    flow.shown()
    path = flow.ws.root / "plans" / "ci.json"
    signed = path.read_text()
    path.write_text(signed.replace(json.loads(signed)["signature"], ""))
    done = flow.apply()
    assert (done.exit_code, "not signed" in done.output) == (12, True)
    path.write_text(signed.replace(json.loads(signed)["signature"], "é"))
    assert flow.apply().exit_code == 12
    path.write_text(signed)
    assert "planted-signing-key" not in signed
    assert flow.apply("plans", "--require-signature").exit_code == 0


@github
def test_a_signature_can_be_demanded(flow: Flow) -> None:
    """A change that takes the key out of vecrun.yaml does not get around it."""
    flow.shown()
    done = flow.apply("plans", "--require-signature")
    assert (done.exit_code, "there is no key" in done.output) == (12, True)
    assert moved(flow) == 0


@github
def test_a_push_after_the_command_is_not_applied(flow: Flow) -> None:
    flow.shown()
    asked = datetime.now(UTC).isoformat()
    flow.change("kb2", "kb3")
    flow.shown()
    base = ("--base", "origin/main", "--pr", "1", "--head", head(flow))
    done = flow.apply(*base, "--since", asked)
    assert (done.exit_code, "after it was asked for" in done.output) == (12, True)
    assert flow.ws.points("b", "kb3") is None
    assert flow.apply(*base, "--since", "yesterday").exit_code == 2
    assert flow.apply(*base, "--since", datetime.now(UTC).isoformat()).exit_code == 0


@github
def test_what_a_merge_before_changed_is_named(flow: Flow) -> None:
    """A file that a reference names counts, where git keeps it."""
    where = SETTINGS.replace("./b", "'${file:./where.txt}'")
    flow.git("checkout", "-q", "main")
    flow.ws.write("where.txt", str(flow.ws.root / "b"))
    flow.ws.write("vecrun.yaml", where)
    flow.commit()
    flow.push()
    flow.git("checkout", "-q", "change")
    flow.git("merge", "-q", "-m", "main", "main")
    flow.push()
    flow.git("fetch", "-q")
    flow.shown()
    flow.git("checkout", "-q", "main")
    flow.ws.write("where.txt", str(flow.ws.root / "elsewhere"))
    before = flow.commit()
    flow.git("merge", "-q", "--no-ff", "-m", "Merge 1", "change")
    flow.push()
    for options in (("--base", before), ("plans",)):
        done = flow.apply(*options)
        assert (done.exit_code, "file where.txt" in done.output) == (12, True), done.output
    assert not (flow.ws.root / "elsewhere").exists()


@github
def test_a_rename_asks_the_policies_of_both_names_and_for_the_state_that_was_shown(flow: Flow) -> None:
    flow.shown()
    assert flow.apply().exit_code == 0
    flow.ws.write("vecrun.yaml", SETTINGS + "policies: {rules: [{name: two, jobs: [move], require: {approvals: 1}}]}\n")
    merge_base = flow.commit()
    flow.git("push", "-q", "origin", f"{merge_base}:main")
    flow.git("fetch", "-q")
    flow.change("name: move", "name: move-kb")
    flow.shown()
    assert "Policy two asks of move-kb, which was move: 1 approval" in flow.text
    done = flow.apply()
    assert (done.exit_code, "policy two" in done.output) == (12, True)
    assert run("rollback", "move", "--auto-approve").exit_code == 0
    done = flow.apply("plans", "--approved-by", "bob")
    assert (done.exit_code, "The state of a renamed job moved" in done.output) == (12, True)
    flow.shown()
    assert flow.apply("plans", "--approved-by", "bob").exit_code == 0


@github
def test_an_interrupted_run_is_gone_on_with_after_the_window(flow: Flow) -> None:
    """It began when it was allowed to."""
    today, next_day, later = (f"{datetime.now(UTC) + timedelta(days=days):%a}".lower() for days in (0, 1, 4))
    rule = "policies: {{rules: [{{name: w, window: {{days: [{day}]}}}}]}}\n"
    flow.ws.write("vecrun.yaml", SETTINGS + rule.format(day=f"{today}, {next_day}"))
    flow.commit()
    flow.push()
    flow.shown()
    flow.ws.poison(7)
    stopped = flow.apply()
    assert "move: failed" in stopped.output
    path = flow.ws.root / "plans"
    whole = json.loads((path / "ci.json").read_text())
    flow.ws.write("vecrun.yaml", SETTINGS + rule.format(day=later))
    made = bundles.Bundle.model_validate(whole)
    now = changes.present(flow.ws.context())
    item = made.jobs[0].model_copy(update={"parts": dict(now.jobs["move"].parts)})
    inputs = now.digest(["move"])
    # as if the rule were what was shown
    bundles.write(path, made.model_copy(update={"jobs": (item,), "inputs": inputs}))
    done = run("ci", "apply", "plans", "--host", "none")
    assert (done.exit_code, "policy w" in done.output) == (stopped.exit_code, False), done.output
