"""An open relational database, its transactions and its tables."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from runner.documents import SqlConfig
from runner.documents.refusals import said
from runner.errors import NotFound, Permanent, Transient

#: Seconds after which PostgreSQL ends a transaction in which nothing happens.
IDLE_SECONDS = 30
#: PostgreSQL's code for a lock that was not to be had in time.
LOCKED = "55P03"
#: Dialects that understand SET TRANSACTION READ ONLY.
READ_ONLY = ("postgresql", "mysql", "mariadb", "oracle")
URL_HINT = "Such as postgresql://user@host/name, or sqlite:///./app.db"


class Database:
    """An open relational database. Errors name the URL without its password."""

    def __init__(self, config: SqlConfig) -> None:
        try:
            url = sa.make_url(config.url)
        except sa.exc.ArgumentError as exc:
            raise Permanent("The url of a database cannot be read", "it is none of SQLAlchemy", URL_HINT) from exc
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        self.shown = url.render_as_string(hide_password=True)
        try:
            self.engine = sa.create_engine(url, pool_pre_ping=True, hide_parameters=True)
        except sa.exc.NoSuchModuleError as exc:
            raise Permanent("No such kind of database", self.shown, URL_HINT) from exc
        except ModuleNotFoundError as exc:
            known = "'vecrun[pgvector]'" if exc.name and exc.name.startswith("psycopg") else "the package that has it"
            raise Permanent(
                "A client library is missing", f"{self.shown} needs {exc.name!r}", f"pip install {known}"
            ) from exc
        if self.engine.dialect.name == "postgresql":
            event.listen(self.engine, "connect", _postgresql_settings)
        if self.engine.dialect.name == "sqlite":
            # the driver's own transactions leave out DDL; SQLAlchemy opens them instead
            event.listen(self.engine, "connect", _sqlite_manual)
            event.listen(self.engine, "begin", _sqlite_begin)

    def close(self) -> None:
        self.engine.dispose()

    @contextlib.contextmanager
    def transaction(self, *, foreign_keys: bool = False) -> Iterator[sa.Connection]:
        """One transaction; database errors come out as Transient (connection, lock) or Permanent. SQLite looks at foreign
        keys only with `foreign_keys`, others always do."""
        try:
            with self.engine.connect() as connection, _obeying(connection, foreign_keys), connection.begin():
                yield connection
        except sa.exc.NoSuchTableError:
            raise
        except self.errors as exc:
            raise self.told(exc) from None

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that cannot write, and is rolled back. It sees one state of the database (PostgreSQL, SQLite)."""
        dialect = self.engine.dialect.name
        level = {"isolation_level": "REPEATABLE READ"} if dialect == "postgresql" else {}
        try:
            with (
                self.engine.connect().execution_options(reading=True, **level) as connection,
                _only_reading(connection),
                _undone(connection.begin()),
            ):
                if dialect in READ_ONLY:
                    connection.exec_driver_sql("SET TRANSACTION READ ONLY")
                yield connection
        except sa.exc.NoSuchTableError:
            raise
        except self.errors as exc:
            raise self.told(exc) from None

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What SQLAlchemy raises, and the driver where it is used alone. Raise `told(exc)` of it, `from None`: both repeat
        values of rows, and --debug shows what an error comes from."""
        return sa.exc.SQLAlchemyError, self.engine.dialect.loaded_dbapi.Error

    def told(self, exc: Exception) -> Transient | Permanent:
        """An error of the client in our words, and with its traceback: Transient (connection, lock, deadlock) or Permanent.
        No values of rows."""
        kind, summary, hint = self._kind(exc)
        return kind(summary, f"{self.shown}: {said(exc)}", hint).with_traceback(exc.__traceback__)

    def _kind(self, exc: Exception) -> tuple[type[Transient | Permanent], str, str]:
        orig = getattr(exc, "orig", exc)
        unreached = isinstance(orig, self.engine.dialect.loaded_dbapi.OperationalError) and not _of_sql(exc)
        if not (unreached or getattr(exc, "connection_invalidated", False)):
            return Permanent, "The relational database refused", ""
        if getattr(orig, "sqlstate", None) == LOCKED or _code(exc) in (5, 6):
            hint = "Look which session holds the lock; it is tried again, and the run can be resumed"
            return Transient, "Somebody else holds a lock in the relational database", hint
        hint = "Check the url and that the server is up; a file needs its folder, and the right to write there"
        return Transient, "The relational database did not answer", hint

    def table(self, name: str) -> sa.Table:
        """The reflected table; `schema.table` is understood. NotFound."""
        schema, _, bare = name.rpartition(".")
        try:
            with self.reading() as connection:
                return sa.Table(bare, sa.MetaData(), schema=schema or None, autoload_with=connection)
        except sa.exc.NoSuchTableError as exc:
            raise NotFound("No such table", f"{name} in {self.shown}") from exc


def _code(exc: BaseException) -> int:
    """SQLite's primary error code; 0 of other databases."""
    return int(getattr(getattr(exc, "orig", exc), "sqlite_errorcode", 0)) & 0xFF


def _of_sql(exc: BaseException) -> bool:
    """Whether SQLite did not understand a statement, or may not write, or its driver a value (0): all that is called
    operational there."""
    return type(getattr(exc, "orig", exc)).__module__ == "sqlite3" and _code(exc) in (0, 1, 8)


@contextlib.contextmanager
def _obeying(connection: sa.Connection, foreign_keys: bool) -> Iterator[None]:
    if not foreign_keys or connection.dialect.name != "sqlite":
        yield
        return
    raw: Any = connection.connection.driver_connection  # inside of a transaction the setting has no effect
    raw.execute("PRAGMA foreign_keys=ON")
    try:
        yield
    finally:
        raw.execute("PRAGMA foreign_keys=OFF")


@contextlib.contextmanager
def _only_reading(connection: sa.Connection) -> Iterator[None]:
    if connection.dialect.name != "sqlite":
        yield
        return
    raw: Any = connection.connection.driver_connection
    raw.execute("PRAGMA query_only=ON")
    try:
        yield
    finally:
        raw.execute("PRAGMA query_only=OFF")


@contextlib.contextmanager
def _undone(transaction: sa.RootTransaction) -> Iterator[None]:
    try:
        yield
    finally:
        transaction.rollback()


def _sqlite_begin(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    if options.get("isolation_level") != "AUTOCOMMIT":  # there SQLAlchemy begins, too, but never commits
        connection.exec_driver_sql("BEGIN" if options.get("reading") else "BEGIN IMMEDIATE")


def _postgresql_settings(connection: Any, _record: Any) -> None:
    # a process that is stopped in the middle would keep the rows locked from whoever goes on with its run
    connection.cursor().execute(f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")
    connection.commit()


def _sqlite_manual(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout=30000")
