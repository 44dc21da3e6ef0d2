"""The schema of the records and its revisions: made, brought up to date, and refused when it is newer (G7)."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import runner
from runner import records
from runner.errors import StoreError, VecrunError
from runner.ledger import Ledger
from runner.records import REVISION, Records
from runner.sweeper import Sweeper
from runner.tables import metadata
from tests.e2e.workspace import Workspace
from tests.servers import sql
from tests.unit.sample import plan

#: The ledger of the release before revisions, as that release made it.
BEFORE = """
CREATE TABLE leases (name VARCHAR(255) NOT NULL, token BIGINT NOT NULL, run VARCHAR(32), owner VARCHAR(255),
    host VARCHAR(255), pid INTEGER, since VARCHAR(32), expires FLOAT, PRIMARY KEY (name));
CREATE TABLE runs (run VARCHAR(32) NOT NULL, job VARCHAR(64) NOT NULL, kind VARCHAR(64) NOT NULL,
    purpose VARCHAR(16) NOT NULL, of_run VARCHAR(32), status VARCHAR(16) NOT NULL, plan_digest VARCHAR(80) NOT NULL,
    "plan" TEXT NOT NULL, created VARCHAR(32) NOT NULL, started VARCHAR(32), finished VARCHAR(32), owner VARCHAR(255),
    control VARCHAR(16), error TEXT, PRIMARY KEY (run));
CREATE INDEX ix_runs_job ON runs (job);
CREATE TABLE steps (run VARCHAR(32) NOT NULL, step INTEGER NOT NULL, status VARCHAR(16) NOT NULL,
    fingerprint VARCHAR(80), result TEXT, started VARCHAR(32), finished VARCHAR(32), PRIMARY KEY (run, step),
    FOREIGN KEY(run) REFERENCES runs (run));
CREATE TABLE partitions (run VARCHAR(32) NOT NULL, step INTEGER NOT NULL, part INTEGER NOT NULL, keys TEXT NOT NULL,
    status VARCHAR(16) NOT NULL, cursor TEXT, read BIGINT NOT NULL, done BIGINT NOT NULL, deliveries INTEGER NOT NULL,
    error TEXT, PRIMARY KEY (run, step, part));
CREATE TABLE id_map (run VARCHAR(32) NOT NULL, collection VARCHAR(255) NOT NULL, old TEXT NOT NULL, new TEXT NOT NULL,
    PRIMARY KEY (run, collection, old));
CREATE TABLE findings (run VARCHAR(32) NOT NULL, step INTEGER NOT NULL, item VARCHAR(1024) NOT NULL,
    part INTEGER NOT NULL, message TEXT NOT NULL, PRIMARY KEY (run, step, item));
CREATE TABLE log (id INTEGER NOT NULL, run VARCHAR(32) NOT NULL, time VARCHAR(32) NOT NULL, level VARCHAR(8) NOT NULL,
    message TEXT NOT NULL, details TEXT, PRIMARY KEY (id));
CREATE INDEX ix_log_run ON log (run);
PRAGMA user_version = 1;
"""


def rows(path: Path, table: str) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3")]


def as_before(ledger: Path) -> dict[str, list[dict[str, Any]]]:
    """Turn a ledger of today into what the release before would have written. Its rows."""
    old = ledger.with_name("old.db")
    with contextlib.closing(sqlite3.connect(old)) as database:
        database.executescript(BEFORE)
        database.execute("ATTACH ? AS today", (str(ledger),))
        tables = [name for (name,) in database.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")]
        for table in tables:
            columns = ", ".join(f'"{row[1]}"' for row in database.execute(f"PRAGMA main.table_info({table})"))
            database.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM today.{table}")
        database.commit()
    for path in ledger.parent.glob("ledger.db*"):
        path.unlink()
    old.rename(ledger)
    return {table: rows(ledger, table) for table in tables}


def test_the_newest_revision_is_the_one_that_is_asked_for() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(runner.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [REVISION]


def test_the_revisions_make_the_tables_that_the_code_knows(ledger: Sweeper) -> None:
    with ledger.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert context.get_current_revision() == REVISION
        assert compare_metadata(context, metadata) == []
        one = metadata.tables["runs"].c.lease
        connection.exec_driver_sql("ALTER TABLE runs DROP COLUMN lease")  # and a difference would be seen
        assert [item[0] for item in compare_metadata(context, metadata)] == ["add_column"]
        assert one.name == "lease"


def test_a_ledger_of_the_release_before_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(f"sqlite:///{path}")
    ledger.start_run(ledger.acquire(["job:move"], "r-1", 60), plan(), plan().dumps())
    ledger.write_log("r-1", "info", "a line", count=1)
    ledger.close()
    before = as_before(path)
    assert before["runs"]
    for _ in range(2):
        Ledger(f"sqlite:///{path}").close()
    for table, old in before.items():
        now = rows(path, table)
        assert [{key: row[key] for key in kept} for row, kept in zip(now, old, strict=True)] == old, table
    assert rows(path, "runs")[0]["executor"] == "embedded"
    with contextlib.closing(sqlite3.connect(path)) as database:
        # the release before refuses it: it knows no claims
        assert database.execute("PRAGMA user_version").fetchone()[0] > 1


def test_a_run_of_the_release_before_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ws = Workspace.create(tmp_path / "ws")
    ws.fill(300)
    monkeypatch.chdir(ws.root)
    died = ws.process(
        "apply", "jobs/move.yaml", "--auto-approve", env={"VECRUN_CRASH_AT": "copy_points:after_checkpoint"}
    )
    assert died.returncode == -9
    as_before(ws.root / "state" / "ledger.db")
    with contextlib.closing(sqlite3.connect("state/ledger.db")) as database:  # its lease ran out
        database.execute("UPDATE leases SET expires = ?", (time.time() - 1,))
        database.commit()
    went_on = ws.process("resume", "move")
    assert went_on.returncode == 0, went_on.stderr
    assert ws.process("verify", "move").returncode == 0
    assert ws.process("rollback", "move", "--auto-approve").returncode == 0


def test_a_ledger_of_a_newer_release_is_refused_and_left_alone(records_url: str) -> None:
    ledger = Sweeper(records_url)
    with ledger.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0999'")
    with pytest.raises(VecrunError, match="newer format") as refused:
        Sweeper(records_url)
    assert f"revision 0999, this vecrun knows {REVISION}" in refused.value.detail
    with ledger.reading() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == "0999"
    ledger.close()


def test_many_processes_open_a_new_ledger_at_once(records_url: str) -> None:
    code = (
        "import sys; from runner.sweeper import Sweeper\n"
        f"ledger = Sweeper({records_url!r}); ledger.beat(sys.argv[1], 1, 0); print(len(ledger.crew()))"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(number)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for number in range(5)
    ]
    for process in started:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert int(out) >= 1
    ledger = Sweeper(records_url)
    assert len(ledger.crew()) == 5
    ledger.close()


def test_environments_do_not_see_each_other(pg_database: str) -> None:
    prod, dev = Sweeper(pg_database), Sweeper(pg_database, "vecrun_Dev-1")
    prod.acquire(["job:move"], "r-1", 60)
    dev.acquire(["job:move"], "r-2", 60)
    assert [row["run"] for row in prod.holders()] == ["r-1"]
    assert [row["run"] for row in dev.holders()] == ["r-2"]
    with prod.reading() as connection:
        found = connection.exec_driver_sql(
            "SELECT DISTINCT table_schema FROM information_schema.tables WHERE table_name = 'leases'"
        ).scalars()
        assert sorted(found) == ["vecrun", "vecrun_Dev-1"]
    prod.close()
    dev.close()


def test_the_users_own_tables_in_that_database_are_not_touched(pg_database: str) -> None:
    sql(pg_database, "CREATE TABLE runs (mine text)", "CREATE TABLE alembic_version (version_num text)")
    sql(pg_database, "INSERT INTO alembic_version VALUES ('theirs')")
    ledger = Sweeper(pg_database)
    assert ledger.runs_of() == []
    ledger.close()
    engine = sa.create_engine(pg_database.replace("postgresql://", "postgresql+psycopg2://"))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM public.alembic_version").scalar() == "theirs"
    engine.dispose()


def test_a_database_that_cannot_be_reached_is_told_without_its_password() -> None:
    with pytest.raises(StoreError) as refused:
        Records("postgresql://me:sesame@127.0.0.1:1/records")
    assert isinstance(refused.value, records.LedgerGone)
    assert "127.0.0.1:1" in refused.value.detail
    assert "sesame" not in str(refused.value)
    for url, words in (("mysql://x/y", "mysql"), ("no url", "state.database")):
        with pytest.raises(VecrunError) as wrong:
            Records(url)
        assert words in wrong.value.detail
