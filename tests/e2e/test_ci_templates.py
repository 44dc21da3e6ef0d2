"""What is shipped for pipelines fits the command line: the action, workflows, the GitLab template, hooks of pre-commit (G11)."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pages import ROOT, complaints

GITHUB = sorted((ROOT / "examples" / "ci" / "github").glob("*.yml"))
GITLAB = sorted((ROOT / "examples" / "ci" / "gitlab").glob("*.yml"))
ACTION = ROOT / "action.yml"
#: What a script may not hold: text that somebody outside chooses would become part of it.
FOREIGN = re.compile(r"\$\{\{")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def steps(path: Path) -> Iterator[dict[str, Any]]:
    """Steps of a workflow or of the action."""
    data = load(path)
    for job in data["jobs"].values() if "jobs" in data else [data["runs"]]:
        yield from job["steps"]


def scripts(path: Path) -> Iterator[str]:
    if path in GITLAB:
        for job in load(path).values():
            if isinstance(job, dict):
                yield from [*job.get("before_script", []), *job.get("script", [])]
    else:
        yield from (step["run"] for step in steps(path) if "run" in step)


def lines(path: Path) -> list[str]:
    """Every command of a file; of a line of `case`, what comes after its pattern."""
    found = [line.strip() for script in scripts(path) for line in script.splitlines()]
    return [
        re.sub(r"^[\w*|-]+\) +", "", line)
        .replace('"${pr[@]}"', "")
        .replace('"${head[@]}"', "")
        .replace('"${signed[@]}"', "")
        for line in found
    ]


def calls(path: Path) -> list[str]:
    return [line for line in lines(path) if re.search(r"(^| )vecrun ", line)]


@pytest.mark.parametrize("path", [ACTION, *GITHUB, *GITLAB], ids=lambda path: path.name)
def test_every_command_of_a_template_exists(path: Path) -> None:
    assert calls(path)
    assert {wrong for line in lines(path) if "vecrun" in line for wrong in complaints(line)} == set()


def test_all_of_it_is_there() -> None:
    told = "\n".join(line for path in (*GITHUB, *GITLAB) for line in calls(path))
    for words in ("validate", "lint", "ci plan", "ci comment", "ci apply --base", "ci apply plans", "drift"):
        assert f"vecrun {words}" in told


def test_a_slip_is_seen() -> None:
    assert complaints("if [ -f plans/ci.json ]; then vecrun ci coment plans; fi")
    assert complaints('vecrun ci plan --bse "$BASE" --out plans')


@pytest.mark.parametrize("path", [ACTION, *GITHUB], ids=lambda path: path.name)
def test_nothing_from_outside_becomes_part_of_a_script(path: Path) -> None:
    assert [script for script in scripts(path) if FOREIGN.search(script)] == []


@pytest.mark.parametrize("path", GITHUB, ids=lambda path: path.name)
def test_a_workflow_has_the_least_rights_and_none_for_forks(path: Path) -> None:
    data = load(path)
    events = data[True]  # on: YAML 1.1 reads it as a boolean
    assert "pull_request_target" not in events
    assert data["permissions"]["contents"] == "read"
    granted = [data["permissions"], *(job.get("permissions", {}) for job in data["jobs"].values())]
    assert {name for item in granted for name, right in item.items() if right == "write"} <= {"pull-requests"}
    for name, job in data["jobs"].items():
        if "secrets." in str(job) and "pull_request" in events:
            assert "head.repo.full_name == github.repository" in job["if"], name
        if "ci apply" in str(job):
            assert job["environment"] == "production"
            assert data["concurrency"]["cancel-in-progress"] is False
    for step in steps(path):
        if str(step.get("uses", "")).startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False


def test_no_workflow_runs_in_this_repository() -> None:
    assert not (ROOT / ".github" / "workflows").exists()
    assert not (ROOT / ".gitlab-ci.yml").exists()


def test_inputs_and_outputs_of_the_action() -> None:
    data = load(ACTION)
    text = ACTION.read_text()
    used = set(re.findall(r"inputs\.([\w-]+)", text))
    assert used == set(data["inputs"])
    assert {"has_changes", "has_destroy", "cost", "plan_digest", "jobs"} == set(data["outputs"])
    (step,) = [step for step in steps(ACTION) if step.get("id") == "vecrun"]
    wanted = set(re.findall(r"\$\{?([A-Z_]+)\b", step["run"])) - {"GITHUB_STEP_SUMMARY"}
    assert wanted <= set(step["env"])


@pytest.mark.parametrize(
    ("given", "called"),
    [
        ({"COMMAND": "validate"}, "validate"),
        ({"COMMAND": "plan", "BASE": "origin/main"}, "ci plan --base origin/main --out plans"),
        ({"COMMAND": "comment", "PLANS": "my plans", "PR": "7"}, "ci comment my plans --pr 7"),
        ({"COMMAND": "apply", "BASE": "abc", "HEAD": "def"}, "ci apply --base abc --head def"),
        ({"COMMAND": "apply", "PLANS": "plans", "PR": "7"}, "ci apply plans --pr 7"),
        (
            {"COMMAND": "apply", "PLANS": "p", "SINCE": "T", "SIGNED": "true"},
            "ci apply p --since T --require-signature",
        ),
        ({"COMMAND": "lint; rm -rf /"}, None),
        ({"COMMAND": "drift"}, "drift --format markdown"),
    ],
)
def test_the_script_of_the_action(given: dict[str, str], called: str | None, tmp_path: Path) -> None:
    """Run by bash, with a vecrun that writes down how it was called."""
    (step,) = [step for step in steps(ACTION) if step.get("id") == "vecrun"]
    program = tmp_path / "vecrun"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\nexit 2\n')
    program.chmod(0o755)
    empty = dict.fromkeys(("COMMAND", "BASE", "PLANS", "PR", "HEAD", "ENVIRONMENT", "SINCE", "SIGNED"), "")
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    script = tmp_path / "script.sh"
    script.write_text(step["run"])
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]  # as GitHub does
    done = subprocess.run(command, env=env | empty | given, check=False, capture_output=True, text=True)
    if called is None:
        assert (done.returncode, "no command" in done.stdout) == (1, True)
        return
    assert done.returncode == 2, "the exit code of vecrun is that of the step"
    assert (tmp_path / "called").read_text().strip() == called


@pytest.mark.parametrize(("given", "there"), [("", "prod"), ("dev", "dev")])
def test_an_empty_input_leaves_the_environment_of_the_workflow(given: str, there: str, tmp_path: Path) -> None:
    (step,) = [step for step in steps(ACTION) if step.get("id") == "vecrun"]
    assert "VECRUN_ENV" not in step["env"]
    program = tmp_path / "vecrun"
    program.write_text(f'#!/bin/sh\necho "$VECRUN_ENV" > {tmp_path}/environment\n')
    program.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VECRUN_ENV": "prod", "COMMAND": "lint", "ENVIRONMENT": given}
    subprocess.run(["bash", "-c", step["run"]], env=env, check=True)
    assert (tmp_path / "environment").read_text().strip() == there


@pytest.mark.parametrize("path", [*GITHUB, *GITLAB], ids=lambda path: path.name)
def test_no_change_is_left_out_by_its_files_or_pushed_out_by_another(path: Path) -> None:
    """Jobs select from files anywhere; a group of GitHub drops what waits when one more comes."""
    data = load(path)
    if path in GITLAB:
        rules = [rule for job in data.values() if isinstance(job, dict) for rule in job.get("rules", [])]
        assert rules
        assert not [rule for rule in rules if "changes" in rule]
        return
    assert not re.search(r"^ +paths(-ignore)?:", path.read_text(), re.MULTILINE)
    if "ci apply" in path.read_text():
        assert re.search(r"github\.(sha|event\.comment\.id)", data["concurrency"]["group"])
    if "issue_comment" in data[True]:
        assert '--since "$SINCE"' in path.read_text()


def test_hooks_of_pre_commit() -> None:
    hooks = load(ROOT / ".pre-commit-hooks.yaml")
    assert [item["id"] for item in hooks] == ["vecrun-validate", "vecrun-lint"]
    for item in hooks:
        assert complaints(item["entry"]) == []
        pattern = re.compile(item["files"])
        assert pattern.search("jobs/a.yaml")
        assert pattern.search("team/jobs/deep/b.yml")
        assert pattern.search("vecrun.yaml")
        assert not pattern.search("docs/jobs.md")
