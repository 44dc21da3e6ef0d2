"""`vecrun lint`: what a reviewer would object to, seen offline; and what editors and shells are given (DESIGN 6, G11)."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner import schemas, workspace
from runner.kinds import KINDS, kind_module
from runner.plan import acceptable
from tests.e2e.workspace import JOB, REPOSITORY, SETTINGS, Workspace, run

GOOD = JOB.replace("  name: move\n", "  name: move\n  description: The knowledge base moves on.\n")
BACKUP = """\
apiVersion: vecrun/v1
kind: VectorBackup
metadata: {name: nightly, description: Every night.}
spec:
  tables: {connection: db, truncate: true}
  to: {connection: bucket}
"""
RESTORE = """\
apiVersion: vecrun/v1
kind: VectorRestore
metadata: {name: back, description: Once.}
spec:
  from: {connection: bucket, folder: nightly/vector_bak}
  tables: {connection: db, if_not_empty: replace}
"""
EMBED = """\
apiVersion: vecrun/v1
kind: Reembedding
metadata: {name: embed, description: Another model.}
spec:
  connection: a
  collection: kb
  model: big
  strategy: replace
  text: {field: text}
"""
BATCH = """\
apiVersion: vecrun/v1
kind: BatchOperation
metadata: {name: clean, description: Away with them.}
spec:
  connection: a
  collection: kb
  operation: delete
  select: {ids: [1]}
  verify: false
"""
PLACES = """\
  db: {type: sql, url: "postgresql:///app"}
  bucket: {type: folder, path: ./bucket}
models:
  big: {provider: openai, model: text-embedding-3-small, api_key: "${env:NOT_SET}"}
"""


@pytest.fixture
def ws(ws: Workspace) -> Workspace:
    ws.write("jobs/move.yaml", GOOD)
    return ws


def linted(*args: str | Path, code: int = 0) -> dict[str, Any]:
    found = run("lint", "--json", *args)
    assert found.exit_code == code, found.output
    return dict(json.loads(found.stdout))


def codes(*args: str | Path, code: int = 0) -> list[str]:
    return [item["code"] for item in linted(*args, code=code)["findings"]]


def test_nothing_to_object_to(ws: Workspace) -> None:
    found = run("lint", "--strict")
    assert (found.exit_code, found.stdout) == (0, "1 job file: 0 errors, 0 warnings\n")
    assert linted()["findings"] == []


@pytest.mark.parametrize(
    ("old", "new", "code", "place"),
    [
        ("  description: The knowledge base moves on.\n", "", "VW101", "3:1: warning VW101: metadata"),
        ("  cutover:", "  source_after: delete\n  cutover:", "VD101", "12:3: warning VD101: spec.source_after"),
        ("  cutover:", "  live: {}\n  cutover:", "VL201", "spec.live"),
        ("  cutover:", "  verify: {mode: sample}\n  cutover:", "VB111", "12:12: warning VB111: spec.verify.mode"),
        ("  cutover:", "  retention: 2h\n  cutover:", "VW104", "spec.retention"),
        ("  cutover:", "  accept: [{code: VL202, reason: it is known to all}]\n  cutover:", "VW102", "no VectorMigration has"),
        ("  cutover:", "  accept: [{code: VX101, reason: it is known to all}]\n  cutover:", "VW102", "cannot be accepted"),
        ("  cutover:", "  accept: [{code: VP104, reason: it is known to all}]\n  cutover:", "VW102", "a policy is not"),
        ("  cutover:", "  accept: [{code: VL101, reason: todo}]\n  cutover:", "VW103", "spec.accept.0.reason"),
    ],
)  # fmt: skip
def test_what_a_migration_is_warned_of(ws: Workspace, old: str, new: str, code: str, place: str) -> None:
    ws.edit("jobs/move.yaml", old, new)
    assert codes() == [code]
    assert codes("--strict", code=2) == [code]
    assert place in run("lint").stdout


@pytest.mark.parametrize(
    ("text", "expected"),
    [(BACKUP, ["VB109"]), (RESTORE, ["VB110"]), (EMBED, ["VB104", "VC104"]), (BATCH, ["VB112"])],
)
def test_what_other_kinds_are_warned_of(ws: Workspace, text: str, expected: list[str]) -> None:
    ws.write("vecrun.yaml", SETTINGS + PLACES)
    path = ws.write("jobs/other.yaml", text)
    assert sorted(codes(path)) == expected
    accepted = "".join(f"    - {{code: {code}, reason: we know what we do}}\n" for code in expected)
    path.write_text(f"{text}  accept:\n{accepted}")
    found = linted(path, "--strict")
    assert [item["accepted"] for item in found["findings"]] == ["we know what we do"] * len(expected)
    assert found["warnings"] == 0
    assert "accepted: we know what we do" in run("lint", path).stdout


def test_a_limit_of_the_workspace_or_a_free_model_is_enough(ws: Workspace) -> None:
    path = ws.write("jobs/embed.yaml", EMBED.replace("  strategy: replace\n", ""))
    ws.write("vecrun.yaml", SETTINGS + PLACES)
    assert codes(path) == ["VC104"]
    ws.write("vecrun.yaml", SETTINGS + PLACES + "policies: {usd: 5}\n")
    assert codes(path) == []
    ws.write("vecrun.yaml", SETTINGS + PLACES.replace("api_key:", "price: 0, api_key:"))
    assert codes(path) == []


def test_what_nothing_uses_and_what_matches_nothing(ws: Workspace) -> None:
    rules = (
        "environments: {prod: {state: {retention: 1h}}}\n"
        "policies: {rules: [{name: x, jobs: [mvoe], deny: ['*']}, {name: y, kinds: [Reembedding], deny: ['*']}]}\n"
        "drift: {ignore: [{fields: [count], jobs: [gone-*]}]}\n"
    )
    ws.write("vecrun.yaml", SETTINGS + PLACES + rules)
    told = run("lint").stdout
    assert sorted(codes()) == ["VW104", "VW105", "VW105", "VW105", "VW106", "VW106", "VW106"]
    assert "vecrun.yaml:6:3: warning VW105: connections.db: no job uses this connection" in told
    assert "no job is called 'mvoe'" in told
    # what other jobs use is not known when one is looked at; vecrun.yaml may be among the files, as hooks give them
    assert codes("jobs/move.yaml") == []
    assert codes("jobs/move.yaml", "vecrun.yaml") == ["VW104"]


def test_what_validate_finds_is_an_error(ws: Workspace) -> None:
    ws.edit("jobs/move.yaml", "source: a", "source: aa")
    ws.write("jobs/twice.yaml", GOOD.replace("a\n", "a\n", 1))
    ws.write("jobs/broken.yaml", "kind: [\n")
    found = linted(code=14)
    assert found["errors"] == 3
    told = run("lint")
    assert told.exit_code == 14
    assert "jobs/move.yaml:7: error: spec.source: " in told.stdout
    assert "is used by" in told.stdout
    assert codes("jobs/twice.yaml") == []


def test_secrets_are_found_and_not_shown(ws: Workspace) -> None:
    key = "sk-proj-" + "abcdefgh12345678" * 2
    ws.edit("jobs/move.yaml", "The knowledge base moves on.", f"with {key}")
    ws.write("vecrun.yaml", SETTINGS + "environments: {dev: {variables: {db_password: hunter22, user: ada}}}\n")
    found = run("lint")
    assert found.exit_code == 14
    assert found.stdout.count("error VW107") == 2
    assert "environments.dev.variables.db_password" in found.stdout
    assert key not in found.output
    assert "hunter22" not in found.output
    assert key not in run("lint", "--json").output


def test_a_file_that_is_not_there(ws: Workspace) -> None:
    assert run("lint", "jobs/none.yaml").exit_code == 10


def test_every_code_is_in_the_reference() -> None:
    reference = (REPOSITORY / "docs" / "reference" / "findings.md").read_text()
    listed = set(re.findall(r"^\| (V[A-Z]\d{3}) \|", reference, re.MULTILINE))
    used = set[str]()
    for path in (REPOSITORY / "runner").rglob("*.py"):
        used |= set(re.findall(r"\"(V[A-Z]\d{3})\"", path.read_text()))
    assert used - listed - {"VD107"} == set()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kind_says_it_can_accept_can_be_accepted(kind: str) -> None:
    assert all(acceptable(code) for code in kind_module(kind).ACCEPTABLE)


@pytest.mark.parametrize(
    ("host", "path"), [("github", ".github/workflows/vecrun-plan.yml"), ("gitlab", ".gitlab-ci.yml")]
)
def test_a_new_repository_has_its_pipelines(tmp_path: Path, host: str, path: str) -> None:
    made = run("init", tmp_path / "new", "--ci", host)
    assert made.exit_code == 0, made.output
    text = (tmp_path / "new" / path).read_text()
    assert path in made.stdout
    assert "vecrun ci plan" in text
    assert yaml.safe_load(text)
    assert (host == "github") == (tmp_path / "new" / ".github" / "workflows" / "vecrun-drift.yml").exists()
    for args in (("lint", "--strict"), ("lint", "--strict", "--env", "prod"), ("validate", "--env", "prod")):
        found = run("-w", tmp_path / "new", *args)
        assert found.exit_code == 0, found.output
    assert "A file is in the way" in run("init", tmp_path / "new", "--ci", host).stderr


def test_a_workspace_of_its_own_is_linted_as_it_is_shipped() -> None:
    assert run("-w", REPOSITORY, "lint", "--strict").exit_code == 0


# Editors and shells -------------------------------------------------------------------------------------------------

HEADER = re.compile(r"# yaml-language-server: \$schema=(\S+)\n")


def shipped() -> dict[str, str]:
    """Every file of vecrun that is shipped, and those that init writes."""
    found = {f"init {name}": text for name, text in workspace.FILES.items() if name.endswith((".yaml", ".yml"))}
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.yaml", "*.yml"], cwd=REPOSITORY,
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    found |= {name: (REPOSITORY / name).read_text() for name in listed if (REPOSITORY / name).exists()}
    return {name: text for name, text in found.items() if re.search(r"^apiVersion: vecrun/v1$", text, re.MULTILINE)}


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_file_names_its_schema(name: str) -> None:
    text = shipped()[name]
    header = HEADER.match(text)
    assert header, "the first line is: # yaml-language-server: $schema=…"
    path = Path(header[1])
    assert path.stem == yaml.safe_load(text)["kind"]
    if not name.startswith("init "):
        assert (REPOSITORY / name).parent.joinpath(path).resolve() == REPOSITORY / "schemas" / path.name


def test_whole_files_in_the_documentation_name_their_schema() -> None:
    count = 0
    for path in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]:
        for block in re.findall(r"```ya?ml\n(.*?)```", path.read_text(), re.DOTALL):
            if re.search(r"^apiVersion: vecrun/v1$", block, re.MULTILINE):
                header = HEADER.match(re.sub(r"^# [\w./-]+\.yaml\n", "", block))  # what the file is called
                assert header, f"{path.name}: {block[:60]}"
                assert Path(header[1]).stem in schemas.names()
                count += 1
    assert count


@pytest.mark.parametrize(
    ("shell", "word"), [("bash", "complete -o"), ("zsh", "#compdef vecrun"), ("fish", "complete --")]
)
def test_completion(shell: str, word: str) -> None:
    script = run("completion", shell).stdout
    assert word in script
    assert "_VECRUN_COMPLETE" in script
    assert json.loads(run("completion", shell, "--json").stdout)["script"] == script.removesuffix("\n")


def test_what_a_shell_is_told(ws: Workspace) -> None:
    """The script asks vecrun itself: here, what `vecrun li` and `vecrun plan --f` could become."""
    for words, expected in (("vecrun li", "lint"), ("vecrun plan --f", "--format"), ("vecrun completion z", "zsh")):
        cword = str(len(words.split()) - 1)
        done = ws.process(env={"COMP_WORDS": words, "COMP_CWORD": cword, "_VECRUN_COMPLETE": "bash_complete"})
        assert f"plain,{expected}" in done.stdout.splitlines(), done


def test_two_jobs_that_create_one_collection(ws: Workspace) -> None:
    ws.write("jobs/other.yaml", GOOD.replace("name: move", "name: other").replace("from: kb\n", "from: faq\n"))
    (found,) = linted()["findings"]
    assert (found["code"], found["level"], found["file"]) == ("VW108", "warning", "jobs/other.yaml")
    assert "b/kb2 is what job move creates, too" in found["message"]
    assert run("lint", "--strict").exit_code == 2
    ws.edit(
        "jobs/other.yaml",
        "  cutover:",
        "  accept: [{code: VW108, reason: only one of them is ever applied}]\n  cutover:",
    )
    assert run("lint", "--strict").exit_code == 0
    ws.edit("jobs/other.yaml", "to: kb2", "to: '{name}2'")
    assert codes() == []


def test_a_linked_folder_is_told(ws: Workspace, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "bad.yaml").write_text("kind: nothing\n")
    (ws.root / "jobs" / "linked").symlink_to(elsewhere, target_is_directory=True)
    (found,) = linted()["findings"]
    assert (found["code"], found["file"].endswith("jobs/linked")) == ("VW109", True)
    checked = run("validate")
    assert checked.exit_code == 0
    assert "linked is a link to a folder" in checked.stderr
    assert run("validate", "jobs/linked").exit_code == 14
