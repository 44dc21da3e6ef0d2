"""Collections: backed up, shared with earlier backups, and restored under another name, by the command line (D6, G3, G8, G9)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runner.points import Payloads, PointBatch
from tests.e2e.training import SETTINGS, answer, ok, refused
from tests.e2e.workspace import Workspace, points_of

BACKUP = """\
apiVersion: vecrun/v1
kind: VectorBackup
metadata: {name: nightly}
spec:
  collections: {connection: a, file_size_mb: 1}
  to: {connection: backups}
  keep: {last: 2}
"""
RESTORE = """\
apiVersion: vecrun/v1
kind: VectorRestore
metadata: {name: back}
spec:
  from: {connection: backups, folder: nightly/vector_bak}
  collections:
    connection: b
    names:
      - from: kb
        to: kb_again
"""
APPLY = ("apply", "jobs/nightly.yaml", "--auto-approve")
BACK = ("apply", "jobs/back.yaml", "--auto-approve")


@pytest.fixture
def kb(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A collection of 3,000 points with an alias, and another one."""
    monkeypatch.setenv("VECRUN_TEST_APP", "")
    ws.write("vecrun.yaml", SETTINGS)
    ws.job.unlink()
    ws.write("jobs/nightly.yaml", BACKUP)
    ws.write("jobs/back.yaml", RESTORE)
    (ws.root / "backups").mkdir()
    ws.fill(3000, dimension=256)
    ws.fill(10, name="small")
    with ws.store("a") as store:
        store.set_alias("live", "kb")
    return ws


def data(ws: Workspace) -> set[str]:
    """The files of points."""
    return {path.name for path in (ws.root / "backups/nightly/vector_bak/data").iterdir()}


def change(ws: Workspace) -> None:
    """Write one point anew."""
    batch = ws.points("a", "kb")
    assert batch is not None
    point_id = batch.ids[1500]
    with ws.store("a") as store:
        old = store.fetch("kb", [point_id])
        vectors = {"v": np.flip(old.vectors["v"], axis=1).copy()}
        store.upsert("kb", PointBatch(ids=[point_id], vectors=vectors, payloads=Payloads([{"new": True}])))


def test_backed_up_and_restored_into_another_store(kb: Workspace) -> None:
    shown = ok("plan", "jobs/nightly.yaml")
    assert "back up 3,000 points of a/kb as Parquet into backups/nightly/vector_bak" in shown
    assert "VI133" in shown
    result = answer(*APPLY)
    sealed = next(item["result"] for item in result["steps"] if item["type"] == "seal_backup")
    assert sealed["files"] == len(data(kb)) >= 4
    assert {item["collection"]: item["rows"] for item in sealed["collections"]} == {"a/kb": 3000, "a/small": 10}
    shown = ok("plan", "jobs/back.yaml")
    assert "VI142" in shown  # aliases are told
    ok(*BACK)
    was, is_now = kb.points("a", "kb"), kb.points("b", "kb_again")
    assert was is not None
    assert is_now is not None
    assert points_of(was) == points_of(is_now)
    assert "3,000 points compared, 3,000 equal" in ok("verify", "back")
    ok("rollback", "back", "--auto-approve")
    assert kb.points("b", "kb_again") is None


def test_what_did_not_change_is_shared(kb: Workspace) -> None:
    ok(*APPLY)
    first = data(kb)
    change(kb)
    sealed = next(item["result"] for item in answer(*APPLY)["steps"] if item["type"] == "seal_backup")
    assert len(data(kb) - first) == 1
    by_name = {item["collection"]: item for item in sealed["collections"]}
    assert (by_name["a/kb"]["written"], by_name["a/small"]["written"]) == (1, 0)
    ok(*BACK)
    was, is_now = kb.points("a", "kb"), kb.points("b", "kb_again")
    assert was is not None
    assert is_now is not None
    assert points_of(was) == points_of(is_now)


def test_a_collection_that_holds_points(kb: Workspace) -> None:
    ok(*APPLY)
    held = kb.points("a", "kb")
    assert held is not None
    points = held.ids
    kb.fill(5, store="b", name="kb_again", dimension=256, ids=[1, 2, 9001, 9002, 9003])
    assert "VX201" in refused(1, *BACK)
    kb.edit("jobs/back.yaml", "    connection: b\n", "    connection: b\n    if_not_empty: merge\n")
    assert "VD106" in refused(1, *BACK)
    kb.write(
        "jobs/back.yaml",
        (kb.root / "jobs/back.yaml").read_text() + "  accept:\n    - {code: VD106, reason: they are older}\n",
    )
    shown = ok(*BACK)
    assert "Gone for good: points of b/kb_again with the same id" in shown
    merged = kb.points("b", "kb_again")
    assert merged is not None
    assert len(merged) == 3000 + len({1, 2, 9001, 9002, 9003} - set(points))
    assert "cannot be undone" in refused(1, "rollback", "back", "--auto-approve")


def test_aliases_of_that_time(kb: Workspace) -> None:
    ok(*APPLY)
    kb.edit("jobs/back.yaml", "    connection: b\n", "    connection: b\n    aliases: true\n")
    ok(*BACK)
    with kb.store("b") as store:
        assert store.aliases() == {"live": "kb_again"}


def test_damage_is_found_before_the_first_write(kb: Workspace) -> None:
    ok(*APPLY)
    path = max((kb.root / "backups/nightly/vector_bak/data").iterdir(), key=lambda one: one.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert path.name in refused(13, *BACK)
    assert kb.points("b", "kb_again") is None
    assert path.name in refused(13, "backup", "check", "backups/nightly/vector_bak", "--read-data")
    path.write_bytes(content[:-1])
    assert path.name in refused(13, *BACK)
    path.unlink()
    assert path.name in refused(13, *BACK)
    assert kb.points("b", "kb_again") is None


def test_a_folder_is_of_one_form(kb: Workspace) -> None:
    ok(*APPLY)
    Path("jobs/nightly.yaml").unlink()
    kb.write(
        "jobs/other.yaml",
        BACKUP.replace("nightly", "other").replace(
            "{connection: backups}", "{connection: backups, folder: nightly/vector_bak}"
        ),
    )
    ok("plan", "jobs/other.yaml")
