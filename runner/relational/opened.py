"""A relational database that is migrated: with the places where tests kill the process, and refusing writes to a planner.

Tests count the commands of the user's database at `crash.point("sql", …)`; those of the ledger are on another engine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from runner import crash
from runner.documents import SqlConfig
from runner.documents.database import Database
from runner.errors import Permanent

#: Seconds that PostgreSQL waits for a lock. Whoever waits for a table keeps all readers after it waiting, too.
LOCK_SECONDS = 10
#: Settings of PostgreSQL that say what a value is as text, and how text is understood.
TEXTS = {"TimeZone": "UTC", "DateStyle": "ISO", "IntervalStyle": "postgres"}


class RelationalDatabase(Database):
    """Open for a migration. `writes=False`: its transactions are refused."""

    def __init__(self, config: SqlConfig, *, writes: bool = True) -> None:
        super().__init__(config)
        self.writes = writes
        #: (run, token) whose claim is known to stand there with this token, or a newer one.
        self.current: set[tuple[str, int]] = set()
        if self.engine.dialect.name == "postgresql":
            event.listen(self.engine, "connect", _postgresql_settings)
        if self.engine.dialect.driver == "psycopg":
            event.listen(self.engine, "do_execute_no_params", _one_statement)
        event.listen(self.engine, "before_cursor_execute", lambda *_: crash.point("sql", "before"))
        event.listen(self.engine, "after_cursor_execute", lambda *_: crash.point("sql", "after"))
        event.listen(self.engine, "commit", lambda _: crash.point("sql", "commit"))

    @contextlib.contextmanager
    def transaction(self, *, foreign_keys: bool = False) -> Iterator[sa.Connection]:
        self._refuse()
        with super().transaction(foreign_keys=foreign_keys) as connection:
            yield connection
        crash.point("sql", "committed")

    @contextlib.contextmanager
    def alone(self) -> Iterator[sa.Connection | None]:
        """A connection on which each statement commits by itself. None in a dry run, which leaves such statements out."""
        self._refuse()
        try:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.detach()  # what a statement sets for its session ends with it
                if self.engine.dialect.name == "postgresql":  # an index that is built beside writers waits for them
                    connection.exec_driver_sql("SET lock_timeout = 0")
                    for setting in TEXTS:
                        connection.exec_driver_sql(f"RESET {setting}")
                yield connection
        except self.errors as exc:
            raise self.told(exc) from None

    @property
    def rehearses(self) -> bool:
        """Whether everything is undone at the end."""
        return False

    def _refuse(self) -> None:
        if not self.writes:
            raise Permanent("This database is open for reading only", self.shown, "A plan changes nothing")


def _one_statement(cursor: Any, statement: str, context: Any) -> bool | None:
    """With the protocol that takes one statement: a second one could be a COMMIT."""
    if not context.execution_options.get("single"):
        return None
    cursor.execute(statement, binary=True)
    return True


def _postgresql_settings(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"SET lock_timeout = '{LOCK_SECONDS}s'")
    # a claim is read after the lock was waited for: it must not be that of a snapshot from before
    cursor.execute("SET default_transaction_isolation = 'read committed'")
    # rows that a policy hides are not left out in silence: a query that would miss them fails
    cursor.execute("SET row_security = off")
    # what is read as text, and what is made of it, is the same for everybody; SQL of the user's has the settings of its user
    for setting, value in TEXTS.items():
        cursor.execute(f"SET {setting} = '{value}'")
    connection.commit()
