"""What a load did to tables, in a table of ours beside them that is written in the same transaction.

That it names a load is the mark that the load was committed, so repeating one after a crash is harmless. It also holds
what is needed to see later whether somebody wrote to the tables since. One table for each run; `gc` drops it.
"""

# Names in SQL are quoted by shape.quoted(); values are always parameters.
# ruff: noqa: S608

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import psycopg

from runner.documents.shape import quoted
from runner.errors import Permanent
from runner.plan import LoadTables
from runner.points import Model
from runner.spec import digest

if TYPE_CHECKING:
    from runner.documents.postgres import Connection, Postgres

#: Seconds that a lock is waited for.
PATIENCE = 30.0
#: Columns of the table, by which it is told from somebody else's of that name.
_COLUMNS = ("step", "place", "loaded")


class Loaded(Model):
    """What became of one table. `before`: rows that it held; `undo`: the table they stand in ("": there were none).
    `made`: the table was not there. `replaced`: rows that are gone or changed. `rows`: of the backup. `after`: rows that
    it held in the end, and `versions` of them: see copying.versions."""

    backup: str
    table: str  # as the step names it
    schema_name: str
    name: str
    oid: int
    undo: str = ""
    made: bool = False
    before: int = 0
    replaced: int = 0
    rows: int = 0
    after: int = 0
    versions: str = ""

    @property
    def qualified(self) -> str:
        """schema.table"""
        return f"{self.schema_name}.{self.name}"

    @property
    def sql(self) -> str:
        """The table as written in SQL."""
        return f"{quoted(self.schema_name)}.{quoted(self.name)}"

    @property
    def undo_sql(self) -> str:
        """The undo table, which is in the schema of the table, as written in SQL."""
        return f"{quoted(self.schema_name)}.{quoted(self.undo)}"


class Loads:
    """The loads of a run. `step` says which of them is meant, and where the table is: beside the first one it fills."""

    def __init__(self, postgres: Postgres, step: LoadTables, run: str) -> None:
        self.schema = postgres.split(step.tables[0][1])[0]
        self.name = f"vecrun_load_{hashlib.sha256(run.encode()).hexdigest()[:8]}"
        fields = {"connection", "tables", "source", "backup", "of_run", "existing"}
        self.key = digest(step.model_dump(mode="json", include=fields))[:16]
        self.sql = f"{quoted(self.schema)}.{quoted(self.name)}"

    def lock(self, connection: Connection) -> None:
        """Wait until no other process works on the loads of this run; until the end of the transaction. A client may be
        dead while the server still commits what it asked for."""
        number = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big", signed=True)
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (number,))

    def ours(self, connection: Connection) -> bool:
        """Whether the table is there. Permanent when it is somebody else's."""
        rows = connection.execute(
            "SELECT a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n "
            "ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped "
            "ORDER BY a.attnum",
            (self.schema, self.name),
        ).fetchall()
        found = tuple(name for (name,) in rows)
        if found and found != _COLUMNS:
            raise Permanent(
                "A table has a name that vecrun uses", f"{self.schema}.{self.name} is none of its tables", "Rename it"
            )
        return bool(found)

    def read(self, connection: Connection) -> tuple[Loaded, ...]:
        """What the load did to each table, in its order; () when it was not committed, or was undone or forgotten."""
        if not self.ours(connection):
            return ()
        query = f"SELECT loaded FROM {self.sql} WHERE step = %s ORDER BY place"
        return tuple(Loaded.model_validate(item) for (item,) in connection.execute(query, (self.key,)))

    def write(self, connection: Connection, items: Iterable[Loaded]) -> None:
        """Record it. To be called in the transaction of the load."""
        if not self.ours(connection):
            columns = "step text, place integer, loaded jsonb NOT NULL, PRIMARY KEY (step, place)"
            connection.execute(f"CREATE TABLE {self.sql} ({columns})")
        query = f"INSERT INTO {self.sql} VALUES (%s, %s, %s::jsonb)"
        for place, item in enumerate(items):
            connection.execute(query, (self.key, place, item.model_dump_json()))

    def forget(self, connection: Connection) -> None:
        """Drop the undo tables of the load and its record; the table goes with the last load in it."""
        loaded = self.read(connection)
        for item in loaded:
            if item.undo:
                connection.execute(f"DROP TABLE IF EXISTS {item.undo_sql}")
        if loaded:
            connection.execute(f"DELETE FROM {self.sql} WHERE step = %s", (self.key,))
            if not connection.execute(f"SELECT 1 FROM {self.sql} LIMIT 1").fetchone():
                connection.execute(f"DROP TABLE {self.sql}")


def one(connection: Connection, query: str, given: tuple[Any, ...] | None = None) -> Any:
    """The one value that a query gives."""
    row = connection.execute(query, given).fetchone()
    assert row is not None
    return row[0]


def patient(connection: Connection) -> None:
    """Until the end of the transaction, a lock that cannot be had in PATIENCE is an error."""
    connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{int(PATIENCE * 1000)}ms",))


def lock(connection: Connection, tables: Iterable[str]) -> None:
    """Keep everybody else from reading and writing these tables, named in SQL, until the end of the transaction. Permanent
    when somebody does so for longer than PATIENCE."""
    if listed := ", ".join(sorted(tables)):
        try:
            connection.execute(f"LOCK TABLE {listed} IN ACCESS EXCLUSIVE MODE")
        except psycopg.errors.LockNotAvailable as exc:
            raise Permanent(
                "A lock could not be had in time", f"{listed}: somebody has worked with them for {PATIENCE:g} s. "
                "Nothing was changed", "Stop who reads or writes there, then resume",
            ) from exc  # fmt: skip
