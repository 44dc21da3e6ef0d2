"""Tables of LangChain: backed up, emptied, restored, and back again, by the command line (D1-D5, G3, G8, G9)."""

from __future__ import annotations

import re

import pytest

from tests.e2e.training import COLLECTIONS, POINTS, Training, answer, ok, refused
from tests.e2e.workspace import Workspace

APPLY = ("apply", "jobs/training.yaml", "--auto-approve")
BACK = ("apply", "jobs/back.yaml", "--auto-approve")


@pytest.fixture
def training(ws: Workspace, pg_database: str, monkeypatch: pytest.MonkeyPatch) -> Training:
    """Twenty texts."""
    monkeypatch.setenv("VECRUN_TEST_APP", pg_database)
    made = Training(ws, pg_database)
    made.configure()
    made.fill(20)
    return made


def test_files_log_and_manifest(training: Training) -> None:
    shown = ok("plan", "jobs/training.yaml")
    assert f"+ back up {COLLECTIONS} and {POINTS} (21 rows) as CSV into backups/training/vector_bak" in shown
    assert "Plan: 0 to create, 21 rows to back up" in shown
    assert not training.files()  # a plan writes nothing
    result = answer(*APPLY)
    names = training.files()
    stamp = training.manifests()[0]["id"]
    assert re.fullmatch(r"\d{8}_\d{6}", stamp)
    assert names == [
        f"backup_{stamp}.json", f"{COLLECTIONS}_{stamp}.csv", f"{POINTS}_{stamp}.csv", "vector_backup_log.txt",
    ]  # fmt: skip
    step = next(item for item in result["steps"] if item["type"] == "back_up_tables")
    tables = {item["table"]: item for item in step["result"]["tables"]}
    assert {name: item["row_count"] for name, item in tables.items()} == {COLLECTIONS: 1, POINTS: 20}
    for item in tables.values():
        assert (training.folder / item["backup_file"]).stat().st_size == item["file_size"]
    first = (training.folder / f"{POINTS}_{stamp}.csv").read_text().splitlines()[0]
    assert first == "id,collection_id,embedding,document,cmetadata"
    log = (training.folder / "vector_backup_log.txt").read_text()
    assert all(text in log for text in ("training", POINTS, "20", stamp))
    assert training.count() == 20


def test_the_second_run_does_nothing_until_a_row_changes(training: Training) -> None:
    ok(*APPLY)
    before = training.files()
    assert "no row has changed since backup" in ok("plan", "jobs/training.yaml")
    assert "Nothing to do." in ok(*APPLY)
    assert training.files() == before
    training.sql(f"UPDATE {POINTS} SET document = document WHERE id = 't3'")
    assert "(21 rows) as CSV" in ok("plan", "jobs/training.yaml")
    ok(*APPLY)
    assert len(training.manifests()) == 2


def test_emptied_and_restored(training: Training) -> None:
    before = training.rows(), training.rows(COLLECTIONS)
    training.truncate()
    shown = ok("plan", "jobs/training.yaml")
    assert f"- empty {POINTS} (20 rows); not unless the backup is whole" in shown
    assert f"VB109 app-db/{POINTS}: readers find nothing there afterwards" in shown
    result = answer(*APPLY)
    emptied = next(item["result"] for item in result["steps"] if item["type"] == "truncate_tables")
    assert emptied["truncated"] == [{"table": POINTS, "rows_before": 20, "rows_after": 0}]
    assert (training.count(), training.count(COLLECTIONS)) == (0, 1)
    assert f"nothing was loaded since it was emptied: {POINTS}" in ok("plan", "jobs/training.yaml")
    assert "Nothing to do." in ok(*APPLY)  # an empty table is not backed up over the one that had rows
    # the collection is still there, so that the whole backup does not fit into empty tables
    assert "if_not_empty: merge (the backup's rows win, by primary key) or replace" in refused(1, *BACK)
    assert training.count() == 0
    training.existing("merge")
    shown = ok("plan", "jobs/back.yaml")
    assert "stop here if anything is amiss" in shown
    ok(*BACK)
    assert (training.rows(), training.rows(COLLECTIONS)) == before
    assert "Nothing to do." in ok(*BACK)


def test_a_failed_load_is_replaced_and_comes_back_by_a_rollback(training: Training) -> None:
    before = training.rows()
    training.truncate()
    ok(*APPLY)
    training.fill(3, first=100)
    half = training.rows()
    training.existing("replace")
    shown = ok("plan", "jobs/back.yaml")
    assert f"VB110 app-db/{POINTS}: rows that are there: 3. They are replaced; all stand in vecrun_undo_" in shown
    ok(*BACK)
    assert training.rows() == before
    shown = ok("rollback", "back", "--dry-run")
    assert "make langchain_pg_collection and langchain_pg_embedding what they were before, out of vecrun_undo_" in shown
    ok("rollback", "back", "--auto-approve")
    assert training.rows() == half
    ok(*BACK, "--unpin")
    assert training.rows() == before


def test_a_rollback_fills_what_was_emptied(training: Training) -> None:
    before = training.rows()
    training.truncate()
    ok(*APPLY)
    ok("rollback", "training", "--auto-approve")
    assert training.rows() == before
    assert len(training.manifests()) == 1  # the backup stays


def test_a_rollback_does_not_mix_with_what_was_loaded_since(training: Training) -> None:
    training.truncate()
    ok(*APPLY)
    training.fill(2, first=50)
    since = training.rows()
    said = refused(1, "rollback", "training", "--auto-approve")
    assert "Rows came since the tables were emptied" in said
    assert "if_not_empty: merge" in said
    assert training.rows() == since


def test_a_table_that_another_refers_to_is_not_emptied_alone(training: Training) -> None:
    training.truncate(f"[{COLLECTIONS}]")
    said = refused(1, *APPLY)
    assert f"VX226 app-db/{COLLECTIONS}: public.{POINTS} and its 20 rows points at it" in said
    assert "on delete cascade" in said
    assert not training.files()
    training.ws.edit("jobs/training.yaml", f"[{COLLECTIONS}]", f"[{COLLECTIONS}, {POINTS}]")
    ok(*APPLY)
    assert (training.count(), training.count(COLLECTIONS)) == (0, 0)
    ok(*BACK)
    assert (training.count(), training.count(COLLECTIONS)) == (20, 1)


def test_a_restore_into_other_tables_that_are_made(training: Training) -> None:
    ok(*APPLY)
    training.ws.edit(
        "jobs/back.yaml", "{connection: app-db}",
        f"{{connection: app-db, create: true, names: [{{from: {POINTS}, to: old_points}}]}}",
    )  # fmt: skip
    ok(*BACK)
    assert training.rows("old_points") == training.rows()
    ok("rollback", "back", "--auto-approve")
    with pytest.raises(Exception, match="old_points"):
        training.rows("old_points")


def test_a_rollback_that_is_refused_keeps_nobody_from_going_on(training: Training) -> None:
    ok(*APPLY)
    training.existing("replace")
    ok(*BACK)
    training.fill(1, first=70)
    said = refused(1, "rollback", "back", "--auto-approve")
    assert "Nothing was changed, and job back is as it was" in said
    assert training.count() == 21
    ok(*APPLY)  # the tables are backed up as they are
    assert [item["tables"][1]["rows"] for item in training.manifests()] == [20, 21]
    assert "held 20 rows and holds 21 now" in ok(*BACK)
    training.sql(f"DELETE FROM {POINTS} WHERE id = 't70'")
    ok("rollback", "back", "--auto-approve")  # the tables are as the restore left them
    assert training.count() == 20
