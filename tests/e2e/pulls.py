"""A repository with a bare remote, a branch with a new job, and a host of its pull request; what tests do with them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.e2e.workspace import Workspace, run
from tests.forges import GitHubForge, GitLabForge

TOKEN = "ghs_planted_4711_token"
GIT = ("git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main")
JOB = """\
apiVersion: vecrun/v1
kind: VectorMigration
metadata: {name: move}
spec:
  source: a
  target: b
  collections: [{from: kb, to: kb2}]
"""


#: For what does not depend on the host.
github = pytest.mark.parametrize("flow", ["github"], indirect=True)


@dataclass
class Flow:
    """A repository with a remote, and the host of its pull requests."""

    ws: Workspace
    forge: GitHubForge
    kind: str

    def git(self, *args: str) -> str:
        done = subprocess.run([*GIT, *args], cwd=self.ws.root, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit(self, message: str = "change") -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        return self.git("rev-parse", "HEAD")

    def push(self) -> None:
        self.git("push", "-q", "origin", "HEAD")
        for number in self.forge.pulls:
            self.forge.head(number)

    def change(self, old: str, new: str) -> None:
        """A new push on the branch."""
        self.ws.edit("jobs/move.yaml", old, new)
        self.commit()
        self.push()

    def plan(self, code: int = 0) -> dict[str, Any]:
        assert run("ci", "plan", "--base", "origin/main", "--out", "plans").exit_code == code
        found: dict[str, Any] = json.loads((self.ws.root / "plans" / "ci.json").read_text())
        return found

    def comment(self) -> Result:
        return run("ci", "comment", "plans", "--pr", "1")

    def shown(self) -> Result:
        """Planned and shown."""
        self.plan()
        done = self.comment()
        assert done.exit_code == 0, done.output
        return done

    def apply(self, *options: str) -> Result:
        return run("ci", "apply", *(options or ("plans",)))

    def ours(self) -> list[Any]:
        return [item for item in self.forge.said(1) if item.author == "github-actions[bot]"]

    @property
    def text(self) -> str:
        (only,) = self.ours()
        return str(only.body)

    def made(self) -> int:
        """Comments that requests have made."""
        return sum(method == "POST" and status == 201 for method, _, _, status in self.forge.log)


@contextmanager
def opened(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flow]:
    """A branch with a new job, pushed, and its pull request 1."""
    ws = Workspace.create(tmp_path / "ws", job=JOB)
    ws.job.unlink()
    ws.write(".gitignore", "/a/\n/b/\n/state/\n/plans/\n*.lock\n")
    ws.fill(20)
    remote = tmp_path / "remote.git"
    subprocess.run([*GIT, "init", "-q", "--bare", str(remote)], check=True)
    for name in ("VECRUN_ENV", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_EVENT_PATH", "GITHUB_REF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ws.root)
    github = kind == "github"
    rights = {"ada": "write", "bob": "write", "eve": "read", "dan": "admin"}
    if not github:
        rights = {"ada": "30", "bob": "40", "eve": "20", "dan": "50"}
    with (GitHubForge if github else GitLabForge)(remote, {TOKEN: "github-actions[bot]"}, rights) as forge:
        if github:
            monkeypatch.setenv("GITHUB_REPOSITORY", "o/r")
            monkeypatch.setenv("GITHUB_API_URL", forge.url)
            monkeypatch.setenv("GITHUB_TOKEN", TOKEN)
        else:
            monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
            monkeypatch.setenv("CI_PROJECT_ID", "42")
            monkeypatch.setenv("CI_API_V4_URL", f"{forge.url}/api/v4")
            monkeypatch.setenv("GITLAB_TOKEN", TOKEN)
        made = Flow(ws, forge, kind)
        made.git("init", "-q")
        made.git("remote", "add", "origin", str(remote))
        made.commit("a workspace")
        made.push()
        made.git("fetch", "-q")
        made.git("checkout", "-q", "-b", "change")
        ws.write("jobs/move.yaml", JOB)
        made.commit("a job")
        made.push()
        forge.open("change")
        yield made
        for _, path, body, _ in forge.log:  # the token goes in a header, and nowhere else
            assert TOKEN not in path
            assert TOKEN not in body
    assert not [path for path in ws.root.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def head(flow: Flow) -> str:
    return flow.git("rev-parse", "HEAD")


def moved(flow: Flow) -> int:
    points = flow.ws.points("b", "kb2")
    return 0 if points is None else len(points)


def merge(flow: Flow, way: str) -> str:
    """Merge the branch after somebody else's change came to main. Returns what main was before."""
    branch = flow.git("rev-parse", "change")
    flow.git("checkout", "-q", "main")
    if way != "rebase":
        flow.ws.write("README.md", "# Somebody else\n")
        flow.commit("somebody else")
    before = head(flow)
    if way == "merge":
        flow.git("merge", "-q", "--no-ff", "-m", "Merge 1", "change")
    elif way == "squash":
        flow.git("merge", "-q", "--squash", "change")
        flow.commit(f"Squashed (1)\n\n{branch}")
    else:
        flow.git("merge", "-q", "--ff-only", "change")
    flow.push()
    return before


def grow(flow: Flow) -> None:
    """Five points more in the source."""
    batch = flow.ws.fill(25, name="other")
    with flow.ws.store("a") as store:
        store.upsert("kb", batch)
