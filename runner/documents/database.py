"""An open relational database, its transactions and its tables."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from runner.documents import SqlConfig
from runner.errors import NotFound, Permanent, Transient

#: Seconds after which PostgreSQL ends a transaction in which nothing happens.
IDLE_SECONDS = 30
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
            self.engine = sa.create_engine(url, pool_pre_ping=True)
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
            event.listen(self.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))

    def close(self) -> None:
        self.engine.dispose()

    @contextlib.contextmanager
    def transaction(self, *, foreign_keys: bool = False) -> Iterator[sa.Connection]:
        """One transaction; database errors come out as Transient (connection, lock) or Permanent. SQLite looks at foreign
        keys only with `foreign_keys`, others always do."""
        try:
            with self.engine.connect() as connection, _obeying(connection, foreign_keys), connection.begin():
                yield connection
        except sa.exc.OperationalError as exc:
            hint = "Check the url and that the server is up; a file needs its folder, and the right to write there"
            raise Transient("The relational database did not answer", f"{self.shown}: {exc.orig}", hint) from exc
        except sa.exc.NoSuchTableError:
            raise
        except sa.exc.SQLAlchemyError as exc:
            raise Permanent("The relational database refused", f"{self.shown}: {said(exc)}") from exc

    def table(self, name: str) -> sa.Table:
        """The reflected table; `schema.table` is understood. NotFound."""
        schema, _, bare = name.rpartition(".")
        try:
            with self.transaction() as connection:
                return sa.Table(bare, sa.MetaData(), schema=schema or None, autoload_with=connection)
        except sa.exc.NoSuchTableError as exc:
            raise NotFound("No such table", f"{name} in {self.shown}") from exc


def said(exc: Exception) -> str:
    """The database's own words; not PostgreSQL's detail, which repeats the values of the row."""
    orig = getattr(exc, "orig", None) or exc
    return str(getattr(getattr(orig, "diag", None), "message_primary", None) or orig)


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


def _postgresql_settings(connection: Any, _record: Any) -> None:
    # a process that is stopped in the middle would keep the rows locked from whoever goes on with its run
    connection.cursor().execute(f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")
    connection.commit()


def _sqlite_manual(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout=30000")
