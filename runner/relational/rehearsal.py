"""A dry run of a migration: everything is really done, in one transaction that is rolled back.

Its tables stay locked until then, as they would be in a migration that is one transaction. What cannot be in a
transaction is left out, and told.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import sqlalchemy as sa

from runner.documents import SqlConfig
from runner.errors import Permanent
from runner.relational import COMMITS_DDL
from runner.relational.opened import RelationalDatabase
from runner.relational.schema import Described, differences, snapshot

#: Minutes after which PostgreSQL ends a dry run that was stopped in the middle.
IDLE_MINUTES = 10


class Rehearsal(RelationalDatabase):
    """A database whose transactions are savepoints of one that is rolled back at `close`. Threads take turns."""

    def __init__(self, config: SqlConfig) -> None:
        super().__init__(config)
        if self.engine.dialect.name in COMMITS_DDL:
            raise Permanent(
                "This database cannot take back what is done to its tables",
                f"{self.shown}: {self.engine.dialect.name} commits with every such statement, so there is no dry run",
                "Try the job on a copy of the database",
            )
        self._turn = threading.RLock()
        self._connection: sa.Connection | None = None
        self._before: dict[str, Described] = {}

    @property
    def rehearses(self) -> bool:
        return True

    @contextlib.contextmanager
    def transaction(self, *, foreign_keys: bool = False) -> Iterator[sa.Connection]:
        """A savepoint. SQLite cannot begin to look at foreign keys in the middle of a transaction: verifications do."""
        del foreign_keys
        with self._turn:
            try:
                connection = self._begun()
                with connection.begin_nested():
                    yield connection
            except sa.exc.NoSuchTableError:
                raise
            except self.errors as exc:
                raise self.told(exc) from None

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A savepoint in which nothing can be written, and that is rolled back."""
        with self._turn:
            try:
                connection = self._begun()
                savepoint = connection.begin_nested()
                try:
                    self._writes(connection, False)
                    yield connection
                finally:
                    if connection.dialect.name == "sqlite":  # of PostgreSQL the savepoint does it
                        self._writes(connection, True)
                    savepoint.rollback()
            except sa.exc.NoSuchTableError:
                raise
            except self.errors as exc:
                raise self.told(exc) from None

    @contextlib.contextmanager
    def alone(self) -> Iterator[sa.Connection | None]:
        """None: what commits by itself is left out."""
        yield None

    def differences(self) -> list[str]:
        """How the schema differs from what it was at the beginning, a line for each thing."""
        if self._connection is None:
            return []
        return differences(self._before, snapshot(self))

    def close(self) -> None:
        with self._turn:
            if self._connection is not None:
                with contextlib.suppress(sa.exc.SQLAlchemyError):  # a connection that broke has undone everything
                    self._connection.rollback()
                    self._connection.close()
                self._connection = None
        super().close()

    def _begun(self) -> sa.Connection:
        if self._connection is None:
            self._connection = self.engine.connect()
            self._connection.begin()
            if self.engine.dialect.name == "postgresql":
                idle = f"SET LOCAL idle_in_transaction_session_timeout = '{IDLE_MINUTES}min'"
                self._connection.exec_driver_sql(idle)
            self._before = snapshot(self)
        return self._connection

    @staticmethod
    def _writes(connection: sa.Connection, allowed: bool) -> None:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(f"PRAGMA query_only={'OFF' if allowed else 'ON'}")
        elif connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")
