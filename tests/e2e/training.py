"""LangChain's tables in a PostgreSQL of its own, the folder that backups go to, and jobs that back up and restore."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from click.testing import Result

from tests import servers
from tests.e2e.workspace import Workspace, run

COLLECTIONS, POINTS = "langchain_pg_collection", "langchain_pg_embedding"
#: As langchain-postgres makes them.
TABLES = (
    f"CREATE TABLE {COLLECTIONS} (uuid uuid PRIMARY KEY, name varchar NOT NULL UNIQUE, cmetadata json)",
    (
        f"CREATE TABLE {POINTS} (id varchar PRIMARY KEY, collection_id uuid REFERENCES {COLLECTIONS} (uuid) ON DELETE CASCADE,"
        " embedding vector, document varchar, cmetadata jsonb)"
    ),
    f"CREATE INDEX ix_cmetadata_gin ON {POINTS} USING gin (cmetadata jsonb_path_ops)",
)
KEY = "6f1f8f1e-0000-4000-8000-000000000001"
SETTINGS = """\
apiVersion: vecrun/v1
kind: Workspace
connections:
  app-db: {type: sql, url: "${env:VECRUN_TEST_APP}"}
  backups: {type: folder, path: ./backups}
  a: {type: files, path: ./a}
  b: {type: files, path: ./b}
"""
BACKUP = """\
apiVersion: vecrun/v1
kind: VectorBackup
metadata: {name: training}
spec:
  tables: {connection: app-db}
  to: {connection: backups}
"""
RESTORE = """\
apiVersion: vecrun/v1
kind: VectorRestore
metadata: {name: back}
spec:
  from: {connection: backups, folder: training/vector_bak}
  tables: {connection: app-db}
"""


@dataclass
class Training:
    """A text-to-SQL system that was trained into LangChain's tables."""

    ws: Workspace
    url: str

    def configure(self) -> None:
        """The workspace, its jobs, and empty tables."""
        self.ws.write("vecrun.yaml", SETTINGS)
        self.job.unlink()
        self.ws.write("jobs/training.yaml", BACKUP)
        self.ws.write("jobs/back.yaml", RESTORE)
        (self.ws.root / "backups").mkdir()
        self.sql(*TABLES)

    @property
    def job(self) -> Path:
        """The job that every workspace begins with."""
        return self.ws.job

    @property
    def folder(self) -> Path:
        """Where the backups are."""
        return self.ws.root / "backups" / "training" / "vector_bak"

    def fill(self, count: int = 20, *, first: int = 0) -> None:
        """A collection, and so many texts with their vectors."""
        with psycopg.connect(self.url, autocommit=True) as db:
            db.execute(
                f"INSERT INTO {COLLECTIONS} VALUES (%s, 'ddl', '{{\"by\": \"load\"}}') ON CONFLICT DO NOTHING", (KEY,)
            )
            with db.cursor() as cursor:
                cursor.executemany(
                    f"INSERT INTO {POINTS} VALUES (%s, %s, %s::vector, %s, %s)",
                    [
                        (f"t{n}", KEY, f"[{n},0.1,-2.5]", f"text {n}, 'quoted'\n\"twice\"", json.dumps({"n": n}))
                        for n in range(first, first + count)
                    ],
                )

    def truncate(self, wanted: str = "true") -> None:
        """Let the job empty tables."""
        self.ws.edit("jobs/training.yaml", "{connection: app-db}", f"{{connection: app-db, truncate: {wanted}}}")

    def existing(self, mode: str) -> None:
        """What the restore does with rows that are there."""
        self.ws.edit("jobs/back.yaml", "{connection: app-db}", f"{{connection: app-db, if_not_empty: {mode}}}")

    def sql(self, *statements: str) -> None:
        """Run statements."""
        servers.sql(self.url, *statements)

    def rows(self, table: str = POINTS) -> list[tuple[Any, ...]]:
        """All rows, every value as text, in the order of the first column."""
        with psycopg.connect(self.url) as db:
            return [row for (row,) in db.execute(f"SELECT t::text FROM {table} t ORDER BY 1")]  # type: ignore[arg-type]

    def count(self, table: str = POINTS) -> int:
        """Rows of a table."""
        return len(self.rows(table))

    def files(self) -> list[str]:
        """Names of the files beside the backups."""
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []

    def manifests(self) -> list[dict[str, Any]]:
        """What the manifests say, oldest first."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("backup_*.json"))]

    def vecrun(self, *args: str) -> Result:
        """The command line."""
        return run(*args)


def ok(*args: str) -> str:
    """A command that has to succeed; what it printed."""
    found = run(*args)
    assert found.exit_code == 0, found.output
    return found.stdout


def answer(*args: str) -> dict[str, Any]:
    """The same as one JSON document."""
    return dict(json.loads(ok(*args, "--json")))


def refused(code: int, *args: str) -> str:
    """A command that has to fail; what it said."""
    found = run(*args)
    assert found.exit_code == code, found.output
    return found.output


def tables_of(step: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """The tables in the result of a step."""
    return list(step["result"]["tables"])
