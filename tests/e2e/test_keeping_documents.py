"""What batch operations on documents leave for a rollback, and `vecrun gc`: saved points, undo tables, deleted files (G10, C2)."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from runner.tables import failures, items, runs, vectors
from tests.e2e.documents import SIZE, TRASH, Library, schema_of
from tests.e2e.workspace import Workspace, run

#: A table and a collection of the user with names as vecrun makes them.
TABLE, COLLECTION = "vecrun_undo_0123456789", "Docs__saved_01234567"
#: Items that still name points.
NAMING = (items.c.points != "[]") | items.c.details.like('%"made"%')


def ok(*args: str | Path) -> str:
    found = run(*args)
    assert found.exit_code == 0, found.output
    return found.stdout


@pytest.fixture
def library(ws: Workspace) -> Library:
    """Six documents with rows and files, and what the user has that looks like vecrun's."""
    made = Library(ws)
    made.configure()
    made.fill(6, tables=f"CREATE TABLE {TABLE} (mine TEXT)")
    with made.store() as store:
        store.create(schema_of(made).model_copy(update={"name": COLLECTION}))
    for name in ("mine.txt", "r-20200101-000000-000000/mine.txt"):
        ws.write(f"files/{TRASH}/{name}", "the user's")
    return made


def delete(library: Library, *ids: str, name: str = "gone", status: int = 0, retention: str = "0s") -> str:
    """The run that deletes these documents with rows and files."""
    library.job(name, "delete", {"ids": list(ids)}, delete={"files": True}, retention=retention)
    library.do(name, status)
    return newest(name)


def late(library: Library) -> None:
    """A document comes that was not there before."""
    library.sql("INSERT INTO documents (id, title, file) VALUES ('late', 'Late', 'sub/late.txt')")
    library.ws.write("files/sub/late.txt", "late")


def newest(job: str) -> str:
    return str(json.loads(ok("runs", job, "--json"))["items"][0]["run"])


def trash(library: Library) -> set[str]:
    """Files in the trash but those of the user."""
    folder = library.ws.root / "files" / TRASH
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != "mine.txt"}


def undo_tables(library: Library) -> set[str]:
    return {name for name in library.tables() if name.startswith("vecrun_undo_")} - {TABLE}


def saved(library: Library) -> set[str]:
    return set(library.world()["collections"]) - {library.collection, COLLECTION}


def count(library: Library, table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
    with library.ws.context().ledger() as ledger, ledger.reading() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(table).where(*where)).scalar_one())


def only_the_users(library: Library) -> None:
    """Nothing of vecrun's is left outside the ledger, and all that is the user's."""
    world = library.world()
    assert (undo_tables(library), saved(library), trash(library)) == (set(), set(), set())
    assert (TABLE in world["tables"], COLLECTION in world["collections"]) == (True, True)
    assert {f"{TRASH}/mine.txt", f"{TRASH}/r-20200101-000000-000000/mine.txt"} <= world["files"].keys()


def nothing_left(library: Library) -> None:
    assert "Nothing to remove." in ok("gc")
    only_the_users(library)
    assert count(library, items, NAMING) == 0


def test_gc_shows_and_removes_what_a_deletion_keeps(library: Library) -> None:
    name = delete(library, "d0001", "d0002", "nope", status=3)
    before, told = library.world(), library.report("gone")
    [kept], ours = saved(library), undo_tables(library)
    shown = ok("gc", "--dry-run")
    # two documents, three chunks and two; none is made anew
    assert sum(f"undo table app/{one}: 7 rows" in shown for one in ours) == 1, shown
    for words in (
        f"Gone for good: these can then not be rolled back any more: run {name} of job gone", f"collection kb/{kept}: 5 saved points",
        f"trash library/{TRASH}/{name}/: 2 deleted files, ", "points of documents: 2 rows",
    ):  # fmt: skip
        assert words in shown, shown
    [item] = json.loads(ok("gc", "--dry-run", "--json"))["garbage"]["runs"]
    files = [before["files"][f"{TRASH}/{name}/{one.file}"] for one in library.of("d0001", "d0002")]
    assert item["trash"] == {f"library/{TRASH}/{name}/": {"count": 2, "bytes": sum(map(len, files))}}
    assert library.world() == before
    said = ok("gc", "--auto-approve")
    assert "Removed: 1 undo tables, 1 collections of saved points, 2 deleted files" in said
    nothing_left(library)
    assert library.report("gone") == told, "it is the proof of what was done"
    assert (told["nope"]["status"], told["nope"]["error"]) == ("failed", "there is no such document")
    after = library.world()
    assert (after["points"], after["tables"]["documents"]) == (before["points"], before["tables"]["documents"])
    assert [key for key in after["files"] if not key.startswith(TRASH)] == [
        key for key in before["files"] if not key.startswith(TRASH)
    ]
    refused = run("rollback", "gone", "--auto-approve")
    assert (refused.exit_code, "cannot be rolled back any more" in refused.stderr) == (12, True)
    assert run("retry-failed", "gone", "--auto-approve").exit_code == 10


def test_gc_of_a_deletion_that_is_killed_is_done_again(library: Library) -> None:
    delete(library, "d0001", "d0002", "d0003", "nope", status=3)
    told = library.report("gone")
    for at in ("state", "trash", "documents"):
        died = library.ws.process("gc", "--auto-approve", env={"VECRUN_CRASH_AT": f"gc:{at}"})
        assert died.returncode == -9, (at, died.stdout, died.stderr)
        if at == "state":  # what another try would need may be gone by now
            refused = run("retry-failed", "gone", "--auto-approve")
            assert (refused.exit_code, "cannot be mended any more" in refused.stderr) == (12, True)
    assert count(library, failures) == 1
    ok("gc", "--auto-approve")
    nothing_left(library)
    assert library.report("gone") == told
    assert count(library, failures) == 0


def test_gc_leaves_what_another_run_needs(library: Library) -> None:
    before = library.world()
    kept = delete(library, "d0003", "d0004", name="kept", retention="30d")
    needed = (undo_tables(library), saved(library), trash(library))
    gone = delete(library, "d0001")
    assert trash(library) > needed[2]
    said = ok("gc", "--auto-approve")
    assert (gone in said, kept in said) == (True, False)
    assert (undo_tables(library), saved(library), trash(library)) == needed
    assert count(library, items, NAMING, items.c.run == kept) == 2
    library.undo("kept")
    after = library.world()
    for one in ("d0003", "d0004"):
        assert [row for row in after["tables"]["documents"] if one in row] == [
            row for row in before["tables"]["documents"] if one in row
        ]
    assert len(after["points"]) == len(before["points"]) - 3
    assert "was rolled back on 20" in ok("gc", "--auto-approve")
    nothing_left(library)


def test_gc_finds_what_a_rollback_left(library: Library) -> None:
    library.job("gone", "delete", {"ids": ["d0001", "d0002"]}, delete={"files": True})
    died = library.ws.process(
        "apply", "jobs/gone.yaml", "--auto-approve", env={"VECRUN_CRASH_AT": "delete_documents:files_saved"}
    )
    assert died.returncode == -9
    # nobody knows any more that this document had a file
    library.sql("DELETE FROM chunks WHERE document_id = 'd0001'", "DELETE FROM documents WHERE id = 'd0001'")
    assert "nothing of the job is touched" in ok("gc", "--auto-approve")
    assert len(trash(library)) == 2
    library.undo("gone")
    [left] = trash(library)
    assert f"trash library/{TRASH}/{left.partition('/')[0]}/: 1 deleted files" in ok("gc", "--dry-run")
    library.files = {"type": "folder", "path": "./elsewhere"}
    library.ws.write("elsewhere/mine.txt", "another folder")
    library.configure()
    assert "is not looked for: the connection points somewhere else now" in ok("gc", "--auto-approve")
    assert trash(library) == {left}
    library.files = {"type": "folder", "path": "./files"}
    library.configure()
    assert "1 deleted files" in ok("gc", "--auto-approve")
    nothing_left(library)
    assert library.of("d0001")[0].file in library.world()["files"]


@pytest.mark.parametrize("over", ["the run", "the second try"])
def test_gc_knows_whose_saved_points_a_second_try_uses(library: Library, over: str) -> None:
    first = delete(library, "d0001", "late", status=3, retention="30d" if over == "the second try" else "0s")
    late(library)
    ok("retry-failed", "gone", "--auto-approve")
    second = newest("gone")
    assert trash(library) == {f"{first}/sub/d0001.txt", f"{first}/sub/late.txt"}
    kept = (undo_tables(library), saved(library), trash(library))
    # the other way round than it comes: what both use follows the run it was kept for
    moment = "2020-01-01T00:00:00+00:00" if over == "the second try" else "2099-01-01T00:00:00+00:00"
    with library.ws.context().ledger() as ledger, ledger.writing() as connection:
        connection.execute(runs.update().where(runs.c.run == second).values(finished=moment))
    said = ok("gc", "--auto-approve")
    assert (first in said, second in said) == (over == "the run", over == "the second try")
    if over == "the run":
        only_the_users(library)
        return
    assert (undo_tables(library), saved(library), trash(library)) == kept
    library.undo("gone")
    assert {"d0001", "late"} <= library.rows("documents").keys()
    assert {"sub/d0001.txt", "sub/late.txt"} <= library.world()["files"].keys()
    only_the_users(library)
    ok("gc", "--auto-approve")
    nothing_left(library)


def test_gc_removes_what_edits_and_new_chunks_keep(library: Library) -> None:
    library.configure(vectors={"keep": "1s"})
    library.job("tag", "add_tags", {"ids": ["d0001", "d0002"]}, tags=["x"], retention="0s")
    library.job(
        "again", "reprocess", {"ids": ["d0003", "d0004"]}, retention="0s",
        reprocess={"model": "small", "parse": True, "split": {"size": SIZE}},
    )  # fmt: skip
    library.do("tag")
    died = library.ws.process(
        "apply", "jobs/again.yaml", "--auto-approve", env={"VECRUN_CRASH_AT": "reprocess_documents:points"}
    )
    assert died.returncode == -9
    time.sleep(1.1)
    paid = count(library, vectors)
    said = ok("gc", "--auto-approve")
    assert "left: kept vectors: run r-" in said
    assert "nothing of the job is touched" in said
    assert (count(library, vectors), paid > 0) == (paid, True)
    assert len(saved(library)) == 1, "that of the tags is gone"
    ok("resume", "again")
    world, told = library.world(), library.report("again")
    time.sleep(1.1)
    ok("gc", "--auto-approve")
    nothing_left(library)
    after = library.world()
    assert (after["points"], after["tables"]["chunks"]) == (world["points"], world["tables"]["chunks"])
    assert library.report("again") == told
    assert count(library, vectors) == 0
