"""A short run of the batch operations of `python -m tests.faults`, and what else can come between two tries.

`make faults` is the long one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.points import IdKind, Payloads, PointBatch
from tests import servers
from tests.conftest import FULL
from tests.faults import batch_team, papers
from tests.faults.batch import APPLY, DONE, ROLLBACK, Workspace
from tests.faults.blows import World
from tests.faults.matrix import KILLED, Score, Spot
from tests.faults.nursery import Nursery
from tests.faults.papers import Operation, Task
from tests.faults.scene import JOB, opened
from tests.servers import S3

STEPS = {"delete": "delete_documents", "metadata": "edit_documents", "parse": "reprocess_documents"}
RETRY, RESUME = ("retry-failed", JOB, "--auto-approve"), ("resume", JOB)
Make = Callable[..., Workspace]


def test_rows_points_and_files_agree_when_processes_die(pg_url: str, tmp_path: Path) -> None:
    tasks = ("delete: pgvector", "parse: pgvector", "metadata: pgvector")[: 3 if FULL else 1]
    kills, every = ("6", "9") if FULL else ("2", "61")  # odd numbers: both kinds of cases
    sizes = ("--batch-kills", kills, "--every", every, "--documents", "40", "--seed", "7")
    environment = os.environ | {"VECRUN_FAULTS_POSTGRES": pg_url, "TMPDIR": str(tmp_path), "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--pairs", "--changes", "--chores", "--tasks", *tasks, *sizes],
        cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(rf"faults: \d+ runs, {kills} kills, 0 lost, 0 doubled, 0 changed", last), last


@pytest.mark.long
@pytest.mark.parametrize("operation", ["delete", "parse"])
def test_workers_and_coordinators_that_die(tmp_path: Path, operation: Operation) -> None:
    with servers.postgres(durable=True) as postgres, servers.redis_server() as redis:
        task = Task(operation, "pgvector", IdKind.STRING, "postgres")
        score = batch_team.strike(World(postgres, redis), tmp_path / "w", task, 3, 4)
    assert score.right, (score.findings, score.counts)
    assert (score.runs, score.kills) == (4, 6)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a workspace over files and SQLite for an operation on 12 documents."""

    def build(operation: Operation, bucket: dict[str, Any] | None = None) -> Workspace:
        task = Task(operation, "files", IdKind.STRING, "sqlite", "s3" if bucket else "folder")
        return Workspace(Nursery(tmp_path / "log"), tmp_path / "w", task, "", Score(), 12, 4, bucket=bucket)

    return build


def scene_of(space: Workspace) -> papers.Scene:
    return papers.load(str(space.directory))


def do(space: Workspace, *arguments: str, at: Spot | None = None, expected: tuple[int, ...] = DONE) -> None:
    status = space.nursery.vecrun(space.directory, *arguments, crash_at=str(at or ""))
    assert status in ((KILLED,) if at else expected), (arguments, status, space.nursery.log.read_text()[-3000:])


def world(space: Workspace) -> dict[str, Any]:
    return dict(json.loads(json.dumps(papers.picture(scene_of(space)))))


def agrees(now: dict[str, Any]) -> None:
    """Each point has a row, and each row its point."""
    assert set(now["points"]) == set(now["chunks"])


def test_a_second_try_that_is_killed_is_undone_alone(make: Make, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that may not be deleted: their documents failed. The second try dies and is undone, then so is the first."""
    s3.client().create_bucket(Bucket="try-again")
    access_key, secret_key = s3.keys["writer"]
    monkeypatch.setenv("TEST_S3_ID", access_key)
    monkeypatch.setenv("TEST_S3_KEY", secret_key)

    def allow(*actions: str) -> None:
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]}
        s3.client("iam").put_user_policy(UserName="writer", PolicyName="rights", PolicyDocument=json.dumps(policy))

    keys = {"access_key_id": "${env:TEST_S3_ID}", "secret_access_key": "${env:TEST_S3_KEY}"}
    space = make("delete", s3.connection("try-again", "writer") | keys)
    before, rights = world(space), ("s3:GetObject", "s3:ListBucket", "s3:PutObject")
    try:
        for spot in (Spot(STEPS["delete"], "files"), Spot(STEPS["delete"], "rows"))[: 2 if FULL else 1]:
            do(space, *APPLY)
            assert [row[1] for row in papers.report(scene_of(space))].count("failed") > 3
            allow("*")
            do(space, *RETRY, at=spot)
            do(space, *ROLLBACK, expected=(0,))
            now = world(space)
            assert len(before["documents"]) > len(now["documents"]) > 3  # those of the first try are out still
            for one, row in now["documents"].items():
                assert row[2] is None or row[2] in now["files"] or row[2] not in before["files"], one
            do(space, *ROLLBACK, expected=(0,))
            assert world(space) == before
            allow(*rights)
        do(space, *APPLY)
        allow("*")
        do(space, *RETRY, at=Spot(STEPS["delete"], "files"))
        do(space, *RESUME)
        assert [row[0] for row in papers.report(scene_of(space)) if row[1] == "failed"] == ["nobody"]
        do(space, *ROLLBACK, expected=(0,))
        assert world(space) == before
    finally:
        allow(*rights)


@pytest.mark.parametrize(
    "phase", ["rows", *(pytest.param(one, marks=pytest.mark.long) for one in ("points", "old_points"))]
)
def test_files_that_change_between_two_tries(make: Make, phase: str) -> None:
    space = make("parse")
    before, scene = world(space), scene_of(space)
    do(space, *APPLY, at=Spot(STEPS["parse"], phase, 2))
    changed = [one for one in scene.texts if one.file and one.number in (4, 5, 6, 8, 9)]
    for one in changed:
        assert one.file is not None
        (space.directory / "library" / one.file).write_text(f"Something else.\n\n{one.paragraphs[0]}")
    (space.directory / "library" / "docs" / "2" / "d010.txt").unlink()
    do(space, *RESUME)
    now = world(space)
    agrees(now)
    texts = {row[3] for row in now["chunks"].values() if row[1] == "d009"}
    assert any("Something else" in text for text in texts)
    do(space, *ROLLBACK, expected=(0,))
    after = world(space)
    for what in ("points", "documents", "chunks", "collections", "tables"):
        assert after[what] == before[what]


@pytest.mark.parametrize("operation", ["delete", pytest.param("metadata", marks=pytest.mark.long), "parse"])
def test_a_chunk_that_comes_after_the_selection(make: Make, operation: Operation) -> None:
    """With its row it is one of the document's, and comes back with it."""
    space = make(operation)
    do(space, *APPLY, at=Spot(STEPS[operation], "before"))
    scene = scene_of(space)
    with opened(scene.store) as store:
        vectors = {store.capabilities().default_vector_name: scene.vectors("first", ["late"])}
        payload = papers.payload_of(scene.texts[0], 0) | {"text": "late", "position": 9}
        store.upsert(scene.name, PointBatch(["late"], vectors, Payloads([payload])))
    with scene.database() as (database, _):
        database.execute(
            "insert into chunks (document_id, vector_id, content, position, metadata, tags) "
            """values ('d000', 'late', 'late', 9, '{"lang": "de"}', '["old"]')"""
        )
    before = world(space)
    do(space, *RESUME)
    now = world(space)
    agrees(now)
    assert ("late" in now["points"]) == (operation == "metadata")
    if operation == "metadata":
        assert json.loads(now["points"]["late"][1])["lang"] == json.loads(now["chunks"]["late"][5])["lang"] == "fr"
    do(space, *ROLLBACK, expected=(0,))
    after = world(space)
    for what in ("points", "documents", "chunks", "files"):
        assert after[what] == before[what]


def test_a_text_that_changes_and_its_chunks_do_not(make: Make) -> None:
    """The row gets the text of the file; the rollback knows that, too."""
    space = make("parse")
    with scene_of(space).database() as (database, _):
        database.execute("update documents set body = 'of long ago'")
    before = world(space)
    do(space, *APPLY)
    now = world(space)
    assert {row[3] for key, row in now["documents"].items() if key in ("d000", "d003")} != {"of long ago"}
    assert "of long ago" not in now["documents"]["d000"][3]
    do(space, *ROLLBACK, expected=(0,))
    assert world(space) == before


@pytest.mark.long
def test_jobs_on_the_same_documents_are_undone_in_their_order(make: Make) -> None:
    space = make("parse")
    before, path = world(space), space.directory / "jobs" / f"{JOB}.yaml"
    first = yaml.safe_load(path.read_text())
    wishes: dict[str, dict[str, Any]] = {
        "tag": {"operation": "add_tags", "tags": ["later"]},
        "coarser": {**first["spec"], "reprocess": {"parse": True, "split": {"size": 400}, "model": "first"}},
        "gone": {"operation": "delete", "delete": {"rows": True, "files": True}, "files": {"connection": "library"}},
    }
    for name, wish in wishes.items():
        shared = {key: item for key, item in first["spec"].items() if key not in ("operation", "reprocess", "files")}
        job = first | {"metadata": {"name": name}, "spec": shared | wish}
        (space.directory / "jobs" / f"{name}.yaml").write_text(yaml.safe_dump(job))
    names, worlds = [JOB, *wishes], []
    for name in names:
        worlds.append(world(space))
        do(space, "apply", f"jobs/{name}.yaml", "--auto-approve")
    do(space, "rollback", JOB, "--auto-approve", expected=(1,))
    for name, wanted in reversed(list(zip(names, worlds, strict=True))):
        do(space, "rollback", name, "--auto-approve", at=Spot("restore_documents", "rows"))
        do(space, "resume", name, expected=(0,))
        assert world(space) == wanted
    assert worlds[0] == before
