"""`vecrun demo --pull-request`: a change of a small knowledge base from its first push to its result in the pull request.

A git repository with a bare remote, a host of pull requests on loopback, Milvus Lite and Qdrant in files: no network. Every
step of vecrun is the command that a pipeline would run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from runner.demo.forge import Forge, Remark
from runner.demo.stage import Chunk, chunks, embedded, empty, expect, say, vecrun
from runner.embedder import Embedder
from runner.embedders import config_model as model_config
from runner.embedders import open_embedder
from runner.points import CollectionSchema, Distance, IdKind, Payloads, PointBatch, VectorField
from runner.state import write_atomically
from runner.stores import config_model, open_store

SETTINGS = """\
apiVersion: vecrun/v1
kind: Workspace

connections:
  milvus-prod:
    type: milvus
    uri: ./.demo/milvus.db            # a server: https://… and token: ${env:MILVUS_TOKEN}
  qdrant-prod:
    type: qdrant
    path: ./.demo/qdrant              # a server: url: https://… and api_key: ${env:QDRANT_API_KEY}

policies:
  rules:
    - name: two-pairs-of-eyes
      when: destroys
      require: {approvals: 1, verify: full}
      reason: What is gone for good was seen by somebody else before.
"""

JOB = """\
apiVersion: vecrun/v1
kind: VectorMigration
metadata:
  name: handbook
  description: The handbook moves to Qdrant, and Milvus is given up.
spec:
  source: milvus-prod
  target: qdrant-prod
  collections:
    - from: handbook
      to: handbook_v2
  verify: {mode: full}
  cutover: {alias: handbook-live}
  source_after: delete
"""

ACCEPTED = """\
  accept:
    - code: VD101
      reason: The last backup of Milvus is of today, and was read back.
    - code: VL101
      reason: Only directions are compared, never lengths.
"""

FILES = {
    "vecrun.yaml": SETTINGS,
    "jobs/.gitkeep": "",
    ".gitignore": "/.demo/\n/pr/\n/state/\n",
}
AUTHOR, REVIEWER, PIPELINE = "ada", "bob", "github-actions[bot]"
#: What tells a program that it is a step of a pipeline; the demo may be one itself.
OUTSIDE = (
    "GITHUB_OUTPUT",
    "GITHUB_STEP_SUMMARY",
    "GITHUB_EVENT_PATH",
    "GITHUB_REF",
    "CI_MERGE_REQUEST_IID",
    "VECRUN_ENV",
)


def run(directory: Path, longest: int | None = None) -> None:
    """Everything, with what a user would want to read on the way; of the documentation the topics that have at most so many
    characters. Raises Failed when something is not as it should."""
    began = time.monotonic()
    directory = empty(directory)
    for name, text in FILES.items():
        (directory / name).parent.mkdir(exist_ok=True)
        write_atomically(directory / name, text)
    model = open_embedder(model_config("wordllama")(provider="wordllama"))
    pieces = chunks(900, longest)
    say("A knowledge base in Milvus Lite, and a repository whose main branch has a workspace without jobs")
    _fill(directory, model, pieces[:-20])
    remote = directory / ".demo" / "remote.git"
    _git(directory, "init", "--quiet", "--bare", str(remote))
    with Forge(remote, {"demo-token": PIPELINE}, {AUTHOR: "write", REVIEWER: "write"}) as forge, _pipeline(forge):
        _begin(directory, remote)
        _tour(directory, forge, model, pieces)
    click.echo(
        f"\nAll of it took {time.monotonic() - began:.0f} s. The comment is {directory}/pr/comment.md, the page of the plan "
        f"{directory}/pr/handbook.html."
    )
    click.echo("demo: ok")


def _tour(directory: Path, forge: Forge, model: Embedder, pieces: list[Chunk]) -> None:
    say("1. Ada opens a pull request with a job. The pipeline plans it and comments")
    _git(directory, "checkout", "--quiet", "-b", "move-handbook")
    write_atomically(directory / "jobs" / "handbook.yaml", JOB)
    _push(directory, "Move the handbook to Qdrant")
    number = forge.open("move-handbook", AUTHOR)
    _plan(directory)
    first = _only(forge, number)
    _quote(first.body, 12)
    expect("the comment says that the plan is blocked", "**VD101**" in first.body and "Cannot be applied" in first.body)

    say("2. She accepts the findings with reasons, and pushes again: the same comment is updated")
    write_atomically(directory / "jobs" / "handbook.yaml", JOB + ACCEPTED)
    _push(directory, "Accept that Milvus is given up")
    _plan(directory)
    second = _only(forge, number)
    expect("it is the same comment", first.id == second.id)
    expect(
        "nothing blocks it any more, and it is red", "Cannot be applied" not in second.body and "CAUTION" in second.body
    )

    say("3. Nobody has approved it, so a policy of vecrun.yaml holds it up (exit code 12)")
    vecrun(directory, "ci", "apply", "pr", "--pr", "1", code=12)

    say("4. Bob approves. Meanwhile an application writes to Milvus: the plan is not what would be done now")
    forge.review(number, REVIEWER)
    _fill(directory, model, pieces[-20:])
    vecrun(directory, "ci", "apply", "pr", "--pr", "1", code=12)
    expect("the comment says that it was refused", "refused" in _only(forge, number).body)
    say("Planned again, it is another plan: Bob's approval was of the one before, so he looks once more")
    _plan(directory)
    forge.review(number, REVIEWER)

    say("5. It is merged. The pipeline of main plans again, and applies, because that is what the comment shows")
    _git(directory, "checkout", "--quiet", "main")
    before = _git(directory, "rev-parse", "HEAD")
    _git(directory, "merge", "--quiet", "--no-ff", "--message", "Merge pull request 1", "move-handbook")
    _git(directory, "push", "--quiet", "origin", "main")
    vecrun(directory, "ci", "apply", "--base", before, "--pr", "1")
    last = _only(forge, number)
    _quote(last.body, 14)
    expect("the comment says how it went", "Applying it is done" in last.body and "completed" in last.body)
    expect("all points are in Qdrant", _count(directory) == len(pieces))

    say("6. Once more: nothing is applied twice (exit code 12)")
    vecrun(directory, "ci", "apply", "--base", before, "--pr", "1", code=12)
    made = sum(method == "POST" and status == 201 for method, _, _, status in forge.log)
    updated = sum(method == "PATCH" and status == 200 for method, _, _, status in forge.log)
    click.echo(f"\nThe host saw {len(forge.log)} requests: one comment was made, and updated {updated} times")
    expect("only one comment was made", made == 1)
    expect("no request has the token in it", not any("demo-token" in path + body for _, path, body, _ in forge.log))
    write_atomically(directory / "pr" / "comment.md", last.body)


def _plan(directory: Path) -> None:
    """What the pipeline of a pull request does."""
    vecrun(directory, "ci", "plan", "--base", "origin/main", "--out", "pr")
    vecrun(directory, "ci", "comment", "pr", "--pr", "1")


def _only(forge: Forge, number: int) -> Remark:
    """The one comment, as it is at this moment."""
    found = forge.said(number)
    expect(f"there is one comment ({len(found)})", len(found) == 1)
    return replace(found[0])


def _quote(body: str, lines: int) -> None:
    """The beginning of a comment, without the line that nobody sees."""
    click.echo("\nThe pull request shows:")
    for line in [line for line in body.splitlines()[1:] if line.strip()][:lines]:
        click.echo(f"  │ {line[:150]}")


def _fill(directory: Path, model: Embedder, pieces: list[Chunk]) -> None:
    """Write pieces into the collection in Milvus, which is made when it is not there."""
    vectors = embedded(model, [piece.text for piece in pieces])
    field = VectorField(name="vector", dimension=vectors.shape[1], distance=Distance.COSINE)
    schema = CollectionSchema(name="handbook", id_kind=IdKind.STRING, id_max_length=256, vectors=(field,))
    with open_store(config_model("milvus")(type="milvus", uri=str(directory / ".demo" / "milvus.db"))) as store:  # type: ignore[call-arg]
        if store.inspect("handbook") is None:
            store.create(schema)
        for start in range(0, len(pieces), 500):
            part = pieces[start : start + 500]
            payloads = Payloads([{"topic": one.topic, "text": one.text} for one in part])
            store.upsert(
                "handbook", PointBatch([one.id for one in part], {"vector": vectors[start : start + 500]}, payloads)
            )
        store.finish(schema)
    click.echo(f"{len(pieces):,} chunks of Python's documentation written to Milvus")


def _count(directory: Path) -> int:
    with open_store(config_model("qdrant")(type="qdrant", path=str(directory / ".demo" / "qdrant"))) as store:  # type: ignore[call-arg]
        return store.count("handbook_v2")


def _begin(directory: Path, remote: Path) -> None:
    _git(directory, "init", "--quiet")
    _git(directory, "remote", "add", "origin", str(remote))
    _push(directory, "A workspace")


def _push(directory: Path, message: str) -> None:
    _git(directory, "add", "--all")
    _git(directory, "commit", "--quiet", "--message", message)
    _git(directory, "push", "--quiet", "origin", "HEAD")
    _git(directory, "fetch", "--quiet", "origin")


def _git(directory: Path, *arguments: str) -> str:
    """git, as a person who is configured nowhere. Failed when it fails."""
    program = shutil.which("git")
    expect("git is installed", program is not None)
    assert program is not None
    person = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main"]
    command = [program, *person, "-c", "commit.gpgsign=false", *arguments]
    done = subprocess.run(command, cwd=directory, check=False, capture_output=True, text=True)  # noqa: S603
    expect(f"git {' '.join(arguments)} succeeds: {done.stderr.strip()}", done.returncode == 0)
    return done.stdout.strip()


@contextlib.contextmanager
def _pipeline(forge: Forge) -> Iterator[None]:
    """The environment of a step in GitHub Actions, as far as vecrun looks at it."""
    before = dict(os.environ)
    for name in OUTSIDE:
        os.environ.pop(name, None)
    os.environ |= {"GITHUB_API_URL": forge.url, "GITHUB_REPOSITORY": "demo/handbook", "GITHUB_TOKEN": "demo-token"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
