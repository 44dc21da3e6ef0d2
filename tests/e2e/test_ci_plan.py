"""Which jobs a change touches, their plans as files and as one comment, and jobs that get another name (G3, G5, G10, G11).
With real git repositories and files stores.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.ci import bundle as bundles
from runner.ci.bundle import Bundle, Planned
from runner.ci.document import LIMIT, WITH_RESULT, document, parse_marker, with_result
from runner.ci.document import Result as Applied
from runner.ci.planning import plan_change
from runner.ci.texts import length, shares
from runner.errors import NotFound, PlanRefused, register_secret
from tests.e2e.workspace import JOB, SETTINGS, Workspace, run

REEMBEDDING = """\
apiVersion: vecrun/v1
kind: Reembedding
metadata: {name: re}
spec:
  connection: a
  collection: kb
  model: m
  text: {field: text}
  cutover: {alias: live}
"""
IDENTITY = {
    f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in (("NAME", "t"), ("EMAIL", "t@example.com"))
} | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}  # fmt: skip
BATCH = """\
apiVersion: vecrun/v1
kind: BatchOperation
metadata: {name: tidy}
spec:
  connection: a
  collection: kb
  operation: delete
  select: {file: ids.txt}
  points: {document_field: document_id}
"""


def other(name: str, to: str, source: str = "a") -> str:
    return JOB.replace("name: move", f"name: {name}").replace("to: kb2", f"to: {to}").replace("kb-live", f"{name}-live").replace(
        "source: a", f"source: {source}"
    )  # fmt: skip


class Repository:
    """A workspace in a git repository whose branch main is the base; the branch change is checked out."""

    def __init__(self, ws: Workspace, top: Path) -> None:
        self.ws, self.top, self.commits = ws, top, 0
        self.git("init", "-q", "-b", "main", ".")
        ws.write(".gitignore", "/a\n/b\n/state\n/out\n")
        ws.write("jobs/other.yaml", other("other", "kb3"))
        self.commit()
        self.git("checkout", "-q", "-b", "change")

    def git(self, *args: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            ["git", *args], cwd=cwd or self.top, env=os.environ | IDENTITY, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def commit(self) -> str:
        self.git("add", "-A")
        self.commits += 1  # within a second, equal commits would be one
        self.git("commit", "-q", "--allow-empty", "-m", f"commit {self.commits}")
        return self.git("rev-parse", "HEAD")

    def base(self) -> None:
        """What is there now becomes the base."""
        self.commit()
        self.git("branch", "-f", "main", "HEAD")

    def planned(self, *args: str, code: int = 0) -> dict[str, dict[str, Any]]:
        """What `ci plan --json` says of each job, by name, once the change is committed."""
        self.commit()
        found = run("ci", "plan", "--base", "main", "--json", *args)
        assert found.exit_code == code, found.output
        self.said = json.loads(found.stdout)
        return {item["job"]: item for item in self.said["jobs"]}

    def document(self, *args: str) -> str:
        return run("ci", "plan", "--base", "main", *args).stdout


@pytest.fixture
def repo(ws: Workspace) -> Repository:
    ws.fill()
    return Repository(ws, ws.root)


def refused(found: Result, code: int, *words: str) -> None:
    assert found.exit_code == code, found.output
    for word in words:
        assert word in found.stderr, found.stderr


# Which jobs -----------------------------------------------------------------------------------------------------------


def test_only_what_a_change_touches_is_planned_and_laid_out(
    repo: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    repo.ws.edit("jobs/move.yaml", "to: kb2", "to: kb4")
    head = repo.commit()
    before = repo.ws.tree(".git", "jobs", "a")
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "outputs"))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    found = run("ci", "plan", "--base", "main", "--out", "out")
    assert found.exit_code == 0, found.output
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "ci.json",
        "comment.md",
        "move.html",
        "move.json",
        "move.md",
    ]
    assert repo.ws.tree(".git", "jobs", "a") == before
    assert not (repo.ws.root / "state").exists()
    bundle, plans = bundles.read(Path("out"))
    assert (bundle.head, bundle.base) == (head, repo.git("rev-parse", "main"))
    assert [item.job for item in bundle.jobs] == ["move"]
    assert bundle.jobs[0].identity == plans["move"].identity() == repo.ws.plan().identity()
    text = Path("out/comment.md").read_text()
    marker = parse_marker(text)
    assert marker is not None
    assert (marker.head, marker.digest, marker.workspace, marker.environment) == (head, bundle.digest, ".", "")
    assert "copy 50 points from a/kb to b/kb4" in text
    assert "Planned because of: spec." in text
    assert "vecrun ci apply out" in text
    assert "other" not in text
    outputs = dict(line.split("=", 1) for line in (tmp_path / "outputs").read_text().splitlines())
    assert outputs == {
        "has_changes": "true", "has_destroy": "false", "cost": "0", "plan_digest": bundle.digest, "jobs": '["move"]'
    }  # fmt: skip
    assert (tmp_path / "summary").read_text() == text
    assert run("ci", "plan", "--base", "main", "--detailed-exitcode").exit_code == 2
    # the plan is one like any other; a folder holds no plan of an earlier call
    assert run("apply", "out/move.json").exit_code == 0
    repo.git("checkout", "-q", "main")
    repo.ws.edit("jobs/other.yaml", "to: kb3", "to: kb5")
    assert run("ci", "plan", "--base", "change", "--out", "out").exit_code == 0
    assert sorted(path.stem for path in Path("out").glob("*.json")) == ["ci", "other"]


def test_what_changes_nothing_of_a_job_touches_none(repo: Repository) -> None:
    repo.ws.edit("jobs/move.yaml", "kind: VectorMigration\n", "# a comment\nkind: VectorMigration\n")
    repo.ws.edit("jobs/move.yaml", "name: move\n", "name: move\n  description: Said in other words.\n")
    repo.git("mv", "jobs/other.yaml", "jobs/renamed.yaml")
    repo.ws.write("vecrun.yaml", SETTINGS + "  c: {type: files, path: ./c}\nlimits: {workers: 3}\n")
    assert repo.planned("--detailed-exitcode") == {}
    assert "no job is touched" in repo.document()


def test_a_connection_touches_all_jobs_that_use_it(repo: Repository) -> None:
    repo.ws.write("vecrun.yaml", SETTINGS + "  c: {type: files, path: ./c}\n")
    repo.ws.write("jobs/third.yaml", other("third", "kb6", source="c"))
    repo.base()
    repo.ws.edit("vecrun.yaml", "path: ./c", "path: ./d")
    assert {name: item["why"] for name, item in repo.planned(code=1).items()} == {"third": ["connection c"]}
    assert "not planned" in repo.document()
    repo.ws.edit("vecrun.yaml", "path: ./b", "path: ./e")
    assert set(repo.planned(code=1)) == {"move", "other", "third"}
    assert repo.planned(code=1)["move"]["changes"]


def test_variables_selection_files_and_policies_are_part_of_a_job(repo: Repository) -> None:
    repo.ws.write("vecrun.yaml", SETTINGS + "environments: {dev: {variables: {to: kb7, more: 1}}}\n")
    repo.ws.edit("jobs/move.yaml", "to: kb2", 'to: \'{{ to | default("kb2") }}{{ given | default("") }}\'')
    repo.ws.write("jobs/tidy.yaml", BATCH)
    repo.ws.write("ids.txt", "doc-1\n")
    repo.ws.write("given.yaml", "given: x\n")
    repo.base()
    repo.ws.edit("vecrun.yaml", "more: 1", "more: 2")
    assert repo.planned("--env", "dev") == {}
    repo.ws.edit("vecrun.yaml", "to: kb7", "to: kb8")
    assert repo.planned() == {}
    assert set(repo.planned("--env", "dev")) == {"move"}
    assert repo.said["environment"] == "dev"
    repo.base()
    repo.ws.write("given.yaml", "given: y\n")
    assert set(repo.planned("--var-file", "given.yaml")) == {"move"}
    assert repo.planned("--var", "given=z") == {}
    repo.ws.write("ids.txt", "doc-1\ndoc-2\n")
    assert set(repo.planned()) == {"tidy"}
    repo.base()
    repo.ws.write("vecrun.yaml", SETTINGS + "policies: {usd: 1}\n")
    assert set(repo.planned()) == {"move", "other", "tidy"}


def test_the_address_of_a_model_and_files_of_references_are_part_of_a_job(repo: Repository) -> None:
    """Files that git does not keep are secrets: they are no part."""
    repo.ws.write(".gitignore", "/a\n/b\n/c\n/state\n/out\n/secret\n")
    repo.ws.write("secret", "planted-one")
    repo.ws.write("where.txt", "./b")
    settings_ = (
        SETTINGS.replace("./b}", "'${file:where.txt}'}")
        + "  q: {type: qdrant, url: 'http://127.0.0.1:9', api_key: '${file:secret}'}\n"
    )
    model = "models: {m: {provider: openai, model: text-embedding-3-small, base_url: 'https://a.example/v1', api_key: '${env:K}'}}\n"
    repo.ws.write("vecrun.yaml", settings_ + model)
    repo.ws.write("jobs/far.yaml", other("far", "x", source="q"))
    repo.ws.write("jobs/re.yaml", REEMBEDDING)
    repo.base()
    repo.ws.write("secret", "planted-two")
    assert repo.planned() == {}
    repo.ws.write("vecrun.yaml", settings_ + model.replace("a.example", "evil.example"))
    assert repo.planned(code=1)["re"]["why"] == ["model:m"]
    repo.base()
    repo.ws.write("where.txt", "./c")
    why = {name: item["why"] for name, item in repo.planned(code=1).items()}
    assert why["move"] == why["other"] == ["file where.txt"]
    assert "planted" not in json.dumps(repo.said)


def test_a_name_that_is_no_text_and_a_folder_that_cannot_be(repo: Repository) -> None:
    repo.ws.edit("jobs/move.yaml", "to: kb2", "to: kb4")
    path = os.fsencode(repo.ws.root / "jobs") + b"/caf\xe9.yaml"
    Path(os.fsdecode(path)).write_text(other("cafe", "kb7"))
    planned = repo.planned("--out", "out", code=1)
    assert planned["move"]["changes"]
    assert [item for item in planned.values() if "is not UTF-8" in item["error"]]
    repo.base()
    repo.ws.edit("jobs/move.yaml", "to: kb4", "to: kb5")
    assert set(repo.planned()) == {"move"}
    refused(run("ci", "plan", "--base", "main", "--out", "vecrun.yaml/x"), 1, "The plans cannot be written")


def test_new_and_removed_jobs(repo: Repository) -> None:
    run("apply", "jobs/other.yaml", "--auto-approve")
    state = repo.ws.state("other")
    repo.ws.write("jobs/deep/new.yml", other("new", "kb9").replace("from: kb", "from: kb").replace("[]", ""))
    (repo.ws.root / "jobs/other.yaml").unlink()
    repo.ws.edit("jobs/deep/new.yml", "source: a", "source: b")
    repo.ws.edit("jobs/deep/new.yml", "from: kb", "from: kb3")
    assert set(repo.planned()) == {"new"}
    assert repo.said["removed"] == ["other"]
    text = repo.document()
    assert "nothing describes other any more. What it made stays" in text
    assert "`vecrun rollback other`" in text
    assert "`vecrun state rm other`" in text
    assert repo.ws.state("other") == state


# Another name ---------------------------------------------------------------------------------------------------------


def rename(repo: Repository, old: str, new: str) -> None:
    repo.ws.edit(f"jobs/{old}.yaml", f"name: {old}", f"name: {new}")
    repo.git("mv", f"jobs/{old}.yaml", f"jobs/{new}.yaml")


def test_a_job_of_another_name_keeps_its_state_and_its_way_back(repo: Repository) -> None:
    assert run("apply", "jobs/move.yaml", "--auto-approve").exit_code == 0
    world, before = repo.ws.world(), repo.ws.state()
    rename(repo, "move", "moved")
    planned = repo.planned("--detailed-exitcode", "--out", "out", code=2)
    assert planned["moved"]["renamed_from"] == "move"
    assert planned["moved"]["plan"] == ""
    assert set(planned) == {"moved"}
    assert repo.said["removed"] == []
    assert "move is moved now. Its state moves with it" in Path("out/comment.md").read_text()
    done = run("state", "mv", "move", "moved")
    assert done.exit_code == 0, done.output
    assert "Job move is moved now: state serial 1, 1 runs" in done.stdout
    assert "plans as changed" not in done.stdout
    assert repo.ws.world() == world
    assert not repo.ws.state("move")
    assert repo.ws.state("moved")["live"] == before["live"]
    assert run("plan", "jobs/moved.yaml", "--detailed-exitcode").exit_code == 0
    assert "completed" in run("runs", "moved").stdout
    assert run("status", "moved").exit_code == 0
    refused(run("status", "move"), 10, "No such job")
    assert repo.planned("--detailed-exitcode")["moved"]["changes"] is False
    # back: the pin is of the spec under the name that it has now
    assert run("rollback", "moved", "--auto-approve").exit_code == 0
    assert repo.ws.world("b") == {"b:aliases": {}}
    assert "VI201" in run("plan", "jobs/moved.yaml").stdout
    assert run("apply", "jobs/moved.yaml", "--auto-approve", "--unpin").exit_code == 0
    assert repo.ws.world() == world


def test_a_job_that_was_never_applied_is_only_a_new_one(repo: Repository) -> None:
    rename(repo, "move", "moved")
    planned = repo.planned()
    assert planned["moved"]["changes"]
    assert planned["moved"]["renamed_from"] == ""


def test_another_name_and_another_spec_at_once_take_two_steps(repo: Repository) -> None:
    run("apply", "jobs/move.yaml", "--auto-approve")
    rename(repo, "move", "moved")
    repo.ws.edit("jobs/moved.yaml", "cutover: {alias: kb-live}", "batch_size: 7")
    repo.ws.edit("jobs/other.yaml", "to: kb3", "to: kb5")
    planned = repo.planned(code=0)
    assert repo.said["removed"] == ["move"], "nothing is alike: they are two jobs"
    repo.git("mv", "jobs/moved.yaml", "jobs/move.yaml")
    planned = repo.planned(code=1)
    assert "more than its name has changed: spec" in planned["moved"]["error"]
    assert "in two steps" in planned["moved"]["error"]
    assert planned["other"]["changes"]
    assert repo.said["removed"] == []


@pytest.mark.parametrize("kept", ["files", "postgresql"])
def test_a_state_moves_to_another_name(ws: Workspace, request: pytest.FixtureRequest, kept: str) -> None:
    if kept == "postgresql":
        ws.write("vecrun.yaml", SETTINGS + f"state: {{database: '{request.getfixturevalue('pg_database')}'}}\n")
    ws.fill()
    run("apply", "jobs/move.yaml", "--auto-approve")
    document = run("state", "pull", "move").stdout
    refused(run("state", "mv", "nosuch", "new"), 10, "No state")
    for name in ("serving", "../out", ""):
        refused(run("state", "mv", "move", name), 1, "no name of a job")
    ws.write("jobs/other.yaml", other("other", "kb3"))
    run("apply", "jobs/other.yaml", "--auto-approve")
    refused(run("state", "mv", "move", "other"), 1, "has a state already", "vecrun state rm other")
    assert run("state", "pull", "move").stdout == document
    with ws.context().ledger() as ledger:
        lease = ledger.acquire(["job:moved"], "r-other", 60)
        refused(run("state", "mv", "move", "moved"), 11, "run r-other")
        ledger.release(lease)
    # by hand, before the file has the other name; what a crash left half done is gone on with
    moved = json.loads(document) | {"job": "moved"}
    if kept == "files":
        half = run("state", "mv", "move", "moved")
        done = json.loads(run("state", "pull", "moved").stdout)
        ws.write("state/move.json", document)
        assert half.exit_code == 0, half.output
        assert {**done, "spec_digest": "", "applied": [], "serial": 1} == {**moved, "spec_digest": "", "applied": []}
    assert run("state", "mv", "move", "moved").exit_code == 0
    ws.edit("jobs/move.yaml", "name: move", "name: moved")
    assert run("plan", "jobs/move.yaml", "--detailed-exitcode").exit_code == 0
    ws.edit("jobs/move.yaml", "to: kb2", "to: kb9")
    said = run("state", "mv", "moved", "again").stdout
    assert "plans as changed" in said
    assert run("rollback", "again", "--auto-approve").exit_code == 0


# What cannot be planned -----------------------------------------------------------------------------------------------


def test_what_is_not_valid_is_told_and_the_others_are_planned(repo: Repository) -> None:
    repo.ws.edit("jobs/move.yaml", "source: a", "source: nosuch")
    repo.ws.edit("jobs/other.yaml", "to: kb3", "to: kb5")
    repo.ws.write("jobs/again.yaml", other("twice", "x"))
    repo.ws.write("jobs/again2.yaml", other("twice", "y"))
    repo.ws.write("jobs/half.yaml", "apiVersion: vecrun/v1\nkind: Nosuch\nmetadata: {name: half}\n")
    planned = repo.planned(code=1)
    assert planned["other"]["changes"]
    assert "nosuch" in planned["move"]["error"]
    assert "jobs/half.yaml:2" in planned["half"]["error"]
    assert "is used by jobs/again.yaml as well" in planned["twice"]["error"]
    assert repo.said["removed"] == []
    text = repo.document()
    assert "> [!CAUTION]" in text
    assert "Could not be planned" in text
    repo.base()  # what was so before the change is not its fault
    repo.ws.edit("jobs/other.yaml", "to: kb5", "to: kb6")
    assert set(repo.planned(code=0)) == {"other"}
    assert any("could not be before" in note for note in repo.said["notes"])


def test_a_store_that_does_not_answer_and_a_run_that_is_not_finished(repo: Repository) -> None:
    repo.ws.write("vecrun.yaml", SETTINGS + "  p: {type: pgvector, url: 'postgresql://u@127.0.0.1:9/x'}\n")
    repo.ws.write("jobs/far.yaml", other("far", "x", source="p"))
    died = repo.ws.process(
        "apply", "jobs/move.yaml", "--auto-approve", env={"VECRUN_CRASH_AT": "create_collection:after"}
    )
    assert died.returncode == -9
    for name in ("move", "other"):
        repo.ws.edit(f"jobs/{name}.yaml", "cutover:", "batch_size: 5\n  cutover:")
    planned = repo.planned(code=1)
    assert "not finished" in planned["move"]["error"]
    assert "vecrun resume move" in planned["move"]["error"]
    assert "connection p" in planned["far"]["error"]
    assert planned["other"]["changes"]
    repo.ws.edit("jobs/move.yaml", "batch_size: 5\n  ", "")
    rename(repo, "move", "moved")
    assert "and run r-" in repo.planned(code=1)["moved"]["error"]
    (repo.ws.root / "jobs/moved.yaml").unlink()
    repo.planned(code=1)
    assert any("move is removed, and run r-" in note for note in repo.said["notes"])


def test_a_base_of_another_format_counts_as_changed(repo: Repository) -> None:
    good = {name: (repo.ws.root / name).read_text() for name in ("vecrun.yaml", "jobs/move.yaml")}
    repo.ws.write("jobs/move.yaml", good["jobs/move.yaml"].replace("vecrun/v1", "vecrun/v0"))
    repo.base()
    repo.ws.write("jobs/move.yaml", good["jobs/move.yaml"])
    assert set(repo.planned()) == {"move"}
    assert "jobs/move.yaml of the base cannot be read by this vecrun" in repo.said["notes"][0]
    repo.ws.write("vecrun.yaml", good["vecrun.yaml"] + "was: there\n")
    repo.base()
    repo.ws.write("vecrun.yaml", good["vecrun.yaml"])
    assert set(repo.planned()) == {"move", "other"}
    assert "The base cannot be read by this vecrun: vecrun.yaml:6: was: unknown key" in repo.said["notes"][0]
    repo.git("checkout", "-q", "--orphan", "empty")
    repo.git("rm", "-rq", "--cached", ".")
    repo.git("commit", "-q", "--allow-empty", "-m", "nothing")
    repo.git("branch", "-f", "main", "HEAD")
    assert set(repo.planned()) == {"move", "other"}
    assert "The base has no vecrun.yaml" in repo.said["notes"][0]


# Commits --------------------------------------------------------------------------------------------------------------


def test_commits_with_the_same_content_have_the_same_inputs(repo: Repository) -> None:
    repo.ws.edit("jobs/move.yaml", "to: kb2", "to: kb4")
    repo.planned()
    inputs, head = repo.said["inputs"], repo.said["head"]
    repo.git("branch", "-q", "base", "main")
    repo.git("checkout", "-q", "-b", "squashed", "main")
    repo.ws.write("README.md", "Something else moved meanwhile.\n")
    repo.commit()
    repo.git("merge", "-q", "--squash", "change")
    repo.planned()
    assert repo.said["inputs"] == inputs
    assert repo.said["head"] != head
    repo.ws.edit("jobs/move.yaml", "to: kb4", "to: kb5")
    repo.planned()
    assert repo.said["inputs"] != inputs


def test_what_is_not_committed_is_said(repo: Repository) -> None:
    repo.ws.write("ids.txt", "doc-1\n")
    repo.ws.write("jobs/tidy.yaml", BATCH)
    repo.ws.edit("jobs/move.yaml", "to: kb2", "to: kb4")
    repo.ws.write("notes.txt", "of no job\n")
    said = json.loads(run("ci", "plan", "--base", "main", "--json").stdout)
    assert [item["job"] for item in said["jobs"]] == ["move", "tidy"]
    assert "what the commit has: ids.txt, jobs/move.yaml, jobs/tidy.yaml" in said["notes"][0]
    repo.planned()
    assert repo.said["notes"] == []


def test_a_workspace_may_be_a_folder_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tmp_path / "top"
    made = Workspace.create(top / "infra")
    made.fill()
    monkeypatch.chdir(made.root)
    repo = Repository(made, top)
    made.edit("jobs/move.yaml", "to: kb2", "to: kb4")
    (top / "jobs").mkdir()
    (top / "jobs" / "other.yaml").write_text("of somebody else\n")
    assert [item["file"] for item in repo.planned().values()] == ["infra/jobs/move.yaml"]
    assert repo.said["workspace"] == "infra"
    monkeypatch.chdir(top)
    assert "vecrun -w infra ci apply ." in run("-w", "infra", "ci", "plan", "--base", "main").stdout


def test_git_says_what_is_missing(repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(run("ci", "plan", "--base", "nosuch"), 10, "No such commit", "nosuch", "fetch-depth: 0")
    refused(run("ci", "plan", "--base", "--output=x"), 10, "No such commit")
    repo.git("checkout", "-q", "main")
    repo.commit()
    repo.git("checkout", "-q", "change")
    repo.commit()
    clone = tmp_path / "clone"
    repo.git("clone", "-q", "--depth", "1", "--no-single-branch", f"file://{repo.top}", str(clone))
    monkeypatch.chdir(clone)
    refused(run("ci", "plan", "--base", "origin/main"), 1, "no common ancestor", "shallow", "fetch-depth: 0")
    outside = Workspace.create(tmp_path / "outside")
    monkeypatch.chdir(outside.root)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    refused(run("ci", "plan", "--base", "main"), 1, "no git repository", "git init")


def test_links_and_pointers_are_not_followed_out_of_the_workspace(repo: Repository, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("password: opensesame\n")
    (repo.ws.root / "jobs/link.yaml").symlink_to(tmp_path / "elsewhere")
    repo.ws.write("shared/spec.yaml", other("inside", "kb5"))
    (repo.ws.root / "jobs/inside.yaml").symlink_to("../shared/spec.yaml")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{hashlib.sha256(b'doc-1').hexdigest()}\nsize 5\n"
    repo.ws.write("jobs/tidy.yaml", BATCH)
    repo.ws.write("ids.txt", pointer)
    planned = repo.planned(code=1)
    assert "leads out of the workspace" in planned["jobs/link.yaml"]["error"]
    assert "opensesame" not in json.dumps(repo.said)
    assert "Git LFS" in planned["tidy"]["error"]
    assert planned["inside"]["changes"]
    repo.base()  # as git keeps them on the other side: a link that stays inside is the same job, the pointer stands for the file
    (repo.ws.root / "jobs/link.yaml").unlink()
    repo.ws.write("ids.txt", "doc-1")
    assert repo.planned() == {}
    repo.ws.write("ids.txt", "doc-2")
    assert set(repo.planned()) == {"tidy"}


# Files ----------------------------------------------------------------------------------------------------------------


def test_no_secret_is_in_any_file(repo: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secrets = {name: f"planted_{name.lower()}<&>{number}" for number, name in enumerate(("KEY", "PASSWORD", "SIGNING"))}
    for name, value in secrets.items():
        monkeypatch.setenv(f"VECRUN_TEST_{name}", value)
    repo.ws.write("token", "planted_in_a_file\n")
    repo.ws.write(
        "vecrun.yaml",
        SETTINGS + "  q: {type: qdrant, url: 'http://127.0.0.1:9', api_key: '${env:VECRUN_TEST_KEY}', timeout: 1}\n"
        "  p: {type: pgvector, url: 'postgresql://u:${env:VECRUN_TEST_PASSWORD}@127.0.0.1:9/x'}\n"
        "  m: {type: milvus, uri: 'http://127.0.0.1:9', token: '${file:token}', timeout: 1}\n"
        "ci: {signing_key: '${env:VECRUN_TEST_SIGNING}'}\n",
    )
    for name, source in (("q", "q"), ("p", "p"), ("m", "m"), ("fine", "a")):
        repo.ws.write(f"jobs/{name}.yaml", other(name, "x", source=source))
    repo.commit()
    for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"):
        monkeypatch.setenv(name, str(tmp_path / name))
    found = run("ci", "plan", "--base", "main", "--out", "out")
    assert found.exit_code == 1, found.output
    written = [*Path("out").iterdir(), tmp_path / "GITHUB_OUTPUT", tmp_path / "GITHUB_STEP_SUMMARY"]
    assert len(written) == 5 + 2
    for text in (found.output, *(path.read_text() for path in written)):
        assert "planted" not in text
    # signed with a key, by reference; nothing else is taken
    key = secrets["SIGNING"]
    assert set(bundles.read(Path("out"), key)[1]) == {"fine"}
    with pytest.raises(PlanRefused, match="not signed with this key"):
        bundles.read(Path("out"), "another")
    monkeypatch.setenv("VECRUN_TEST_SIGNING", "")
    refused(run("ci", "plan", "--base", "main"), 14, "ci.signing_key", "empty")
    repo.ws.edit("vecrun.yaml", "${env:VECRUN_TEST_SIGNING}", "written-out")
    refused(run("ci", "plan", "--base", "main"), 14, "a secret is written out")


def test_jobs_called_like_the_files_beside_them(repo: Repository) -> None:
    for name in ("ci", "comment"):
        repo.ws.write(f"jobs/{name}.yaml", other(name, name))
    repo.planned("--out", "out")
    bundle, plans = bundles.read(Path("out"))
    assert set(plans) == {"ci", "comment"}
    assert Path("out/comment.md").read_text().startswith("<!-- vecrun {")
    for byte in range(0, len(Path("out/ci.json").read_bytes()), 97):
        text = bytearray(Path("out/ci.json").read_bytes())
        text[byte] ^= 1
        Path("out/ci.json").write_bytes(text)
        with pytest.raises((PlanRefused, UnicodeDecodeError)):
            bundles.read(Path("out"))
        bundles.write(Path("out"), bundle)
    with pytest.raises(NotFound):
        bundles.read(Path("nosuch"))


# The document ---------------------------------------------------------------------------------------------------------


def bundle_of(*jobs: Planned, **values: Any) -> Bundle:
    made: dict[str, Any] = {"tool_version": "1", "base": "0" * 40, "head": "1" * 40, "inputs": "sha256:0", "jobs": jobs}
    return Bundle(**(made | values)).sealed()


def test_what_destroys_or_blocks_is_in_the_banner(repo: Repository) -> None:
    repo.ws.edit("jobs/move.yaml", "  cutover:", "  source_after: delete\n  cutover:")
    assert repo.planned()["move"]["blocked"]
    text = repo.document()
    banner = text[text.index("> [!CAUTION]") : text.index("| job |")]
    assert "Cannot be applied as it is" in banner
    assert "move: **VD101**" in banner
    assert "Mend that first" in text
    assert "vecrun plan jobs/move.yaml" in text
    repo.ws.write(
        "jobs/move.yaml",
        (repo.ws.root / "jobs/move.yaml").read_text() + "  accept: [{code: VD101, reason: We have it.}]\n",
    )
    item = repo.planned()["move"]
    assert not item["blocked"]
    assert item["destroys"]
    repo.document("--out", "out")
    assert "Gone for good after this" in Path("out/comment.md").read_text()


def test_a_long_plan_is_cut_and_a_short_one_stays_whole(repo: Repository) -> None:
    repo.ws.edit("jobs/move.yaml", "to: kb2", "to: kb4")
    for number in range(30):
        repo.ws.fill(2, name=f"many{number}")
    many = "".join(f"    - from: many{number}\n      to: many{number}\n" for number in range(30))
    repo.ws.edit("jobs/other.yaml", "    - from: kb\n      to: kb3\n", many)
    repo.ws.edit("jobs/other.yaml", "  cutover: {alias: other-live}\n", "")
    repo.commit()
    made = plan_change(repo.ws.context(), "main")
    whole, cut = made.document("out"), made.document("out", 12_000)
    assert length(whole) > 15_000
    assert length(cut) <= 12_000
    for text in (whole, cut):
        assert "copy 50 points from a/kb to b/kb4" in text
        assert text.count("<details>") == text.count("</details>") == 2
        assert "to apply" in text.splitlines()[1]
    section = cut[cut.index("<b>other</b>") :]
    assert "b/many1" in section
    assert "b/many29" not in section
    assert "Cut here, so that the comment is not too long._ The full plan is in out/other.md and .html" in section
    assert "Cut here" not in whole + cut[: cut.index("<b>other</b>")]
    assert length(cut) > 11_000, "what room there is, is used"


def test_the_text_of_a_plan_does_no_harm(repo: Repository) -> None:
    nasty = "x </details><!-- <script> ![y](http://y) @team\n/merge\n  ```\n~~~\n"
    repo.ws.edit("jobs/move.yaml", "name: move", f"name: move\n  description: {json.dumps(nasty)}")
    repo.ws.edit("jobs/move.yaml", "to: kb2", "to: kb4")
    assert repo.planned()["move"]["changes"]
    text = repo.document()
    assert "/merge" in text
    assert text.count("</details>") == text.count("<!--") == 1
    for bad in ("<script", "![", "@team"):
        assert bad not in text
    assert not [line for line in text.splitlines() if line.lstrip().startswith(("/", "~~~"))]
    assert [line for line in text.splitlines() if line.lstrip().startswith("```")] == ["```console", "```"]


def test_a_secret_is_not_recognised_once_it_is_escaped() -> None:
    secret = "_planted_<&>|`x`"
    register_secret(secret)
    item = Planned(job="one", file="f", kind="K", summary=secret, changes=True, destroys=(secret,))
    text = document(bundle_of(item, item.model_copy(update={"error": "x" * 490 + secret}), notes=(secret,)), {})
    text = with_result(text, [Applied(job="one", status="failed", summary=secret, error=secret)])
    assert "planted" not in text


def test_the_result_is_never_cut_away() -> None:
    """The plans make room for it, and what failed stands first."""
    text = document(bundle_of(Planned(job="one", file="f", kind="K", error="x")), {})
    head, _, rest = text.partition("<details>")
    text = head + "<details>" + "y\n" * 31_000 + rest
    results = [Applied(job=f"a-job-{number:03}", status="completed", summary="s" * 60, run="r") for number in range(60)]
    found = with_result(text, [*results, Applied(job="z-fail", status="failed", error="BOOM")])
    assert length(found) <= WITH_RESULT
    assert found.index("z-fail") < found.index("a-job-000")
    for words in ("BOOM", "a-job-059", "vecrun result end", "Cut here"):
        assert words in found
    assert found.count("<details>") == found.count("</details>")
    assert parse_marker(found) is not None
    assert found.endswith("</sub>\n")
    assert "Cut here" not in with_result(text, results, 1_000_000), "another host has more room"
    many = [result.model_copy(update={"job": f"b-{number}"}) for number in range(20) for result in results]
    found = with_result(text, [*many, Applied(job="z-fail", status="failed", error="BOOM")])
    assert "BOOM" in found
    assert re.search(r"\| and \d+ more \|", found)
    assert length(found) <= WITH_RESULT


def test_what_people_wrote_is_text(repo: Repository) -> None:
    repo.ws.edit(
        "jobs/move.yaml", "name: move", 'name: move\n  description: "# Approved\\n\\n| a | b |\\n[go](http://x)"'
    )
    repo.ws.edit("jobs/move.yaml", "to: kb2", "to: kb4")
    rule = "{name: two, require: {approvals: 1}, reason: '[all fine](http://y) **approved**'}"
    repo.ws.write("vecrun.yaml", SETTINGS + f"policies: {{rules: [{rule}]}}\n")
    repo.planned()
    text = repo.document()
    assert "> # Approved  \n> " in text
    assert "](http" not in text.replace("\\](http", "")
    assert "**approved**" not in text
    assert "\\*\\*approved\\*\\*" in text


def test_names_and_texts_do_no_harm() -> None:
    nasty = "a|b `c` </details><!-- @team ``` ![x](http://x) <script>\n/merge\n```\n@everyone"
    made = bundle_of(
        Planned(job="one", file="jobs/`x`|.yaml", kind="K", error=nasty),
        Planned(job=nasty, file="f", kind="", error="x"),
        Planned(job="two", file="g", kind="K", summary=nasty, changes=True, destroys=(nasty,), blocked=False),
        removed=(nasty,), notes=(nasty,), environment="a--b-->c", workspace="x -->",
    )  # fmt: skip
    text = document(made, {}, folder="out `x`\n@y")
    assert text.count("<details>") == text.count("</details>") == 2
    assert "<script" not in text
    assert "@team" not in text
    assert "@everyone" not in text
    assert not any(line.lstrip().startswith(("/", "~~~")) for line in text.splitlines())
    assert sum(line.lstrip().startswith("```") for line in text.splitlines()) == 2, "the block with the command to copy"
    assert text.count("<!--") == 1
    for line in text.splitlines():
        assert not line.startswith("| ") or len(re.split(r"(?<!\\)\|", line)) == 9
        assert "`c`" not in line or line.startswith("<details>")  # in HTML it is no markup
    marker = parse_marker(text)
    assert marker is not None
    assert (marker.environment, marker.workspace) == ("a--b-->c", "x -->")
    assert parse_marker("> " + text) is None
    assert parse_marker("quoted:\n" + text) is None
    assert parse_marker("<!-- vecrun {} -->") is None


words = st.text("ab|`<@\n_*/ é𝔘", max_size=60).map(lambda text: text * 40)


@settings(max_examples=20, deadline=None)
@given(st.lists(words, max_size=12), st.integers(2_000, LIMIT), st.sampled_from([1, 40]))
def test_a_comment_is_never_too_long(texts: list[str], limit: int, times: int) -> None:
    jobs = [
        Planned(job=f"job-{number}", file="f", kind="K", error=text or "x")
        for number, text in enumerate(text for text in texts for _time in range(times))
    ]
    made = bundle_of(*jobs)
    text = document(made, {}, "out", limit)
    assert length(text) <= limit
    assert text.count("<details>") == text.count("</details>")
    assert parse_marker(text) is not None
    results = [Applied(job=job.job, status="failed", error=job.error, seconds=1.5, run="r-1") for job in jobs]
    shown = with_result(text, results)
    assert length(shown) <= WITH_RESULT
    assert parse_marker(shown) == parse_marker(text)
    again = with_result(shown, [Applied(job="job-0", status="completed", summary="50 points")])
    assert again.count("### Applying it") == 1
    assert "did not come to its end" not in again
    if shown.endswith(text.partition("| job |")[2]):  # else the plans were cut, to keep the result whole
        assert again == with_result(text, [Applied(job="job-0", status="completed", summary="50 points")])
    assert all(f"**{job.job}**" in shown for job in jobs[:3])
    assert again.endswith(text.splitlines()[-1] + "\n")


@given(st.lists(st.integers(0, 1000), max_size=20), st.integers(0, 5000))
def test_room_is_shared_fairly(sizes: list[int], room: int) -> None:
    found = shares(sizes, room)
    assert sum(found) <= room
    assert all(0 <= got <= size for got, size in zip(found, sizes, strict=True))
    cut = [got for got, size in zip(found, sizes, strict=True) if got < size]
    assert not cut or (max(cut) - min(cut) <= len(sizes) and min(cut) >= max(found) - len(sizes))
    assert not cut or sum(found) >= room - len(sizes)
