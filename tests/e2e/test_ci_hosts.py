"""What is asked of the hosts of pull requests, and what happens when they do not answer (issue 7)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.e2e.pulls import JOB, TOKEN, Flow, github, grow, merge, moved
from tests.e2e.workspace import SETTINGS, run


def test_one_comment_among_three_hundred_and_none_of_others(flow: Flow) -> None:
    flow.plan()
    quoted = f"> {(flow.ws.root / 'plans' / 'comment.md').read_text()}"
    copied = (flow.ws.root / "plans" / "comment.md").read_text()
    for number in range(140):
        flow.forge.say(1, "eve", f"remark {number}")
    flow.forge.say(1, "eve", copied)  # the marker of somebody else
    flow.forge.say(1, "github-actions[bot]", quoted)  # ours, and no first line
    assert "created" in flow.comment().output
    for number in range(160):
        flow.forge.say(1, "eve", f"remark {number}")
    flow.change("kb2", "kb3")
    assert "updated" in flow.shown().output
    assert flow.made() == 1
    assert copied in [item.body for item in flow.forge.said(1)], "nobody else's comment was touched"


@pytest.mark.parametrize(("status", "arrived"), [(502, False), (502, True), (429, False)])
def test_a_host_that_fails_gets_one_comment(
    flow: Flow, status: int, arrived: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the comment was made and the answer was lost."""
    monkeypatch.setattr("runner.ci.commenting.PAUSE", 0.01)
    flow.forge.faults.append(("POST", "comments" if flow.kind == "github" else "notes", status, arrived))
    flow.shown()
    assert len(flow.ours()) == 1
    assert not flow.forge.faults


def test_a_token_that_is_refused_is_not_told(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    flow.plan()
    monkeypatch.setenv("GITHUB_TOKEN" if flow.kind == "github" else "GITLAB_TOKEN", "wrong-secret-9")
    done = flow.comment()
    assert done.exit_code == 1
    assert "does not allow it" in done.output
    assert "wrong-secret-9" not in done.output
    monkeypatch.delenv("GITHUB_TOKEN" if flow.kind == "github" else "GITLAB_TOKEN")
    assert "no token" in flow.comment().output


def test_a_host_that_cannot_be_reached(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plans are applied or not; without its comment nobody knows what was shown, so they are not."""
    flow.shown()
    monkeypatch.setattr("runner.ci.commenting.PAUSE", 0.01)
    flow.forge.faults += [("GET", "comments" if flow.kind == "github" else "notes", 404, False)]
    assert flow.apply().exit_code == 10
    assert moved(flow) == 0
    end = "comments/" if flow.kind == "github" else "notes/"
    flow.forge.faults += [("PATCH" if flow.kind == "github" else "PUT", f"{end}1", 422, False)] * 2
    done = flow.apply()
    assert done.exit_code == 0, "what is applied is applied"
    assert "could not be updated" in done.output
    assert moved(flow) == 20


def test_approvals_come_from_the_host(flow: Flow) -> None:
    """Of this head, by somebody who may write, and not by the author."""
    rules = "policies: {rules: [{name: two-eyes, require: {approvals: 1}}]}\n"
    flow.ws.write("vecrun.yaml", SETTINGS + rules)
    flow.commit()
    flow.push()
    flow.shown()
    flow.forge.review(1, "ada")
    flow.forge.review(1, "eve")
    done = flow.apply()
    assert (done.exit_code, "two-eyes" in done.output) == (12, True), "the author, and one who may only read"
    assert moved(flow) == 0
    flow.forge.review(1, "bob")
    done = flow.apply()
    assert done.exit_code == 0, done.output

    flow.ws.write("jobs/more.yaml", JOB.replace("name: move", "name: more").replace("kb2", "kb4"))
    flow.commit()
    flow.push()
    flow.shown()
    done = flow.apply()
    assert (done.exit_code, "two-eyes" in done.output) == (12, True), "the approval was of another commit"


@github
def test_a_withdrawn_approval_does_not_count(flow: Flow) -> None:
    """GitLab does not list it any more."""
    flow.ws.write("vecrun.yaml", SETTINGS + "policies: {rules: [{name: two-eyes, require: {approvals: 1}}]}\n")
    flow.commit()
    flow.push()
    flow.shown()
    flow.forge.review(1, "bob")
    flow.forge.review(1, "bob", "CHANGES_REQUESTED")
    assert flow.apply().exit_code == 12
    flow.forge.review(1, "dan")
    flow.forge.review(1, "dan", "COMMENTED")
    assert flow.apply().exit_code == 0


@github
def test_without_a_host(flow: Flow) -> None:
    flow.plan()
    assert "no host" in run("ci", "comment", "plans", "--host", "none").output
    assert run("ci", "apply", "--base", "origin/main", "--host", "none").exit_code == 1
    done = run("ci", "apply", "plans", "--host", "none", "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert [item["status"] for item in found["results"]] == ["completed"]
    assert "not compared" in found["notes"][0]
    assert flow.forge.log == []


def test_an_approval_of_another_plan_does_not_count(flow: Flow) -> None:
    """The commit is the same, what would be done is not: the world moved, and it was planned again."""
    flow.ws.write("vecrun.yaml", SETTINGS + "policies: {rules: [{name: two-eyes, require: {approvals: 1}}]}\n")
    flow.commit()
    flow.push()
    flow.shown()
    flow.forge.review(1, "bob")
    grow(flow)
    flow.shown()
    done = flow.apply()
    assert (done.exit_code, "two-eyes" in done.output) == (12, True)
    flow.forge.review(1, "bob")
    flow.shown()  # the same again: what bob saw
    assert flow.apply().exit_code == 0
    assert moved(flow) == 25


@pytest.mark.parametrize("flow", ["gitlab"], indirect=True)
def test_the_token_of_a_job_stands_for_who_started_it(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITLAB_TOKEN")
    monkeypatch.setenv("CI_JOB_TOKEN", TOKEN)
    monkeypatch.setenv("GITLAB_USER_LOGIN", "github-actions[bot]")
    flow.shown()
    flow.change("kb2", "kb3")
    assert "updated" in flow.shown().output
    assert flow.made() == 1


@github
def test_which_request_is_meant(flow: Flow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There are two of the same branch, so the commit does not say it."""
    assert flow.forge.open("change") == 2
    flow.plan()
    assert run("ci", "comment", "plans").exit_code == 10
    assert flow.forge.remarks == []
    assert run("ci", "comment", "plans", "--pr", "2").exit_code == 0
    event = tmp_path / "event.json"
    ways = {"GITHUB_REF": "refs/pull/2/merge", "CI_MERGE_REQUEST_IID": "2", "GITHUB_EVENT_PATH": str(event)}
    for name, value in ways.items():
        for what in ("pull_request", "issue"):
            event.write_text(json.dumps({what: {"number": 2}}))
            with monkeypatch.context() as patch:
                patch.setenv(name, value)
                done = run("ci", "comment", "plans")
            assert (done.exit_code, "unchanged on 2" in done.output) == (0, True), (name, what, done.output)
    assert [item.pr for item in flow.forge.remarks] == [2]


@github
def test_a_request_that_touches_no_job_gets_no_comment(flow: Flow) -> None:
    flow.shown()
    merge(flow, "rebase")
    flow.git("fetch", "-q")
    flow.git("checkout", "-q", "-b", "words")
    flow.ws.write("README.md", "# Words\n")
    flow.commit()
    flow.push()
    assert flow.forge.open("words") == 2
    before = len(flow.forge.remarks)
    assert flow.plan()["jobs"] == []
    assert "No job is touched" in run("ci", "comment", "plans", "--pr", "2").output
    assert "Nothing to apply" in run("ci", "apply", "plans", "--pr", "2").output
    assert "Nothing to apply" in run("ci", "apply", "--base", "origin/main").output
    assert len(flow.forge.remarks) == before


@github
def test_a_client_that_is_not_installed(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    flow.plan()
    monkeypatch.setitem(sys.modules, "github", None)
    done = flow.comment()
    assert (done.exit_code, "vecrun[ci]" in done.output) == (1, True)


@github
def test_an_approval_of_a_page_from_before_the_push_does_not_count(flow: Flow) -> None:
    """It comes after the new plans were shown, and is of the commit before."""
    flow.ws.write("vecrun.yaml", SETTINGS + "policies: {rules: [{name: two-eyes, require: {approvals: 1}}]}\n")
    before = flow.commit()
    flow.push()
    flow.change("kb2", "kb3")
    flow.shown()
    flow.forge.review(1, "bob")
    flow.forge.reviews[-1].commit = before
    assert flow.apply().exit_code == 12
    flow.forge.review(1, "bob")
    assert flow.apply().exit_code == 0


@github
def test_the_comment_of_another_app_is_not_ours(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every app that may write is a bot; whose token it is decides."""
    flow.plan()
    flow.forge.say(1, "other-app[bot]", (flow.ws.root / "plans" / "comment.md").read_text())
    done = flow.apply()
    assert (done.exit_code, "does not show these plans" in done.output) == (12, True)
    monkeypatch.setenv("VECRUN_GITHUB_APP", "other-app")
    assert flow.apply().exit_code == 0


def test_a_comment_says_that_nothing_is_left_to_do(flow: Flow) -> None:
    flow.shown()
    (flow.ws.root / "jobs" / "move.yaml").unlink()
    flow.commit()
    flow.push()
    assert "updated" in flow.shown().output
    assert "no job is touched" in flow.text
