"""The SQL database of vecrun's own records: its engine, its transactions, its clock, and its schema's revision.

SQLite for one host, PostgreSQL for a team (there in a schema of its own, one for each environment). The schema is
brought up to date by Alembic when a database is opened; what is up to date is not touched.
"""

from __future__ import annotations

import functools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy import event

from runner.errors import StoreError, Transient, VecrunError
from runner.tables import metadata, state_documents

Method = TypeVar("Method", bound=Callable[..., Any])

#: The newest revision in runner/migrations.
REVISION = "0005"
#: Unused bytes of a SQLite file that are worth a copy of the rest.
COMPACT_BYTES = 16_000_000
#: Bytes of it that are copied at most: others wait meanwhile, for 30 s.
COPY_BYTES = 2_000_000_000
#: Seconds for which a database that went away is waited for, once it had answered.
PATIENCE = 60.0
#: Answers of PostgreSQL after which the same transaction may work: it is shut down or starting, deadlock, time-outs.
_PASSING = {"57P01", "57P02", "57P03", "40P01", "40001", "55P03", "25P03"}
#: Seconds after which PostgreSQL ends a transaction whose process has stopped in the middle: it would hold its locks for ever.
IDLE_SECONDS = 10


#: A server that vanished without a word is noticed after some 15 s, not after the hours of TCP's defaults.
_ALIVE = {"keepalives_idle": 5, "keepalives_interval": 3, "keepalives_count": 3, "tcp_user_timeout": 15_000}


class LedgerGone(Transient):
    """The database of the records does not answer. It may again."""


def again(method: Method) -> Method:
    """For methods that may be repeated as a whole: wait for a database that is being restarted, and try again."""

    @functools.wraps(method)
    def repeated(self: Records, *args: Any, **kwargs: Any) -> Any:
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return method(self, *args, **kwargs)
            except LedgerGone:
                if time.monotonic() > deadline or self.stopping.wait(0.5):
                    raise

    return cast("Method", repeated)


class Records:
    """A database of records. Safe for use from several threads. `schema` is PostgreSQL's."""

    def __init__(self, url: str, schema: str = "vecrun", *, lasting: bool = True) -> None:
        self.url, self.patience = url, 0.0
        self.stopping = threading.Event()  # set: this process ends, and waits for nothing any more
        if url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self.engine, self.on_server = _engine(url, schema)
        with self._translated():
            if lasting:
                _upgrade(self.engine, schema, self._shown())
            else:
                metadata.create_all(self.engine)
        self.patience = PATIENCE if self.on_server else 0.0

    def close(self) -> None:
        self.engine.dispose()

    def _shown(self) -> str:
        return self.engine.url.render_as_string(hide_password=True)

    def clock(self, connection: sa.Connection) -> float:
        """Seconds since 1970. The server's clock, where there is one: those of its clients may differ."""
        if self.on_server:
            return float(connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").scalar_one())
        return time.time()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as exc:
            kind, hint = StoreError, "Check disk space and rights of the state directory"
            if self.on_server:
                kind, hint = _kind(exc), "Check state.database in vecrun.yaml, and that the server runs"
            raise kind(
                "The ledger cannot be used",
                f"{self._shown()}: {str(exc.orig).strip()}",
                f"{hint}; nothing of the run is lost, apply goes on from its checkpoints",
            ) from exc

    @again
    def identity(self) -> str:
        """Names this database and schema, wherever it is looked at from; empty for SQLite, which is one host's."""
        if not self.on_server:
            return ""
        query = sa.select(state_documents.c.lineage).where(state_documents.c.name == "lineage")
        return str(self.fetch(query).scalar())

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        with self._translated(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that only reads, so that progress displays never wait for a writer."""
        with (
            self._translated(),
            self.engine.connect().execution_options(reading=True) as connection,
            connection.begin(),
        ):
            yield connection

    def compact(self) -> int:
        """Give unused pages of a SQLite file back when they are most of it; how many bytes. 0 where that is the server's
        business, where it is not worth the time, or where somebody is at work. Killed half-way, nothing has happened."""
        if self.on_server:
            return 0
        with closing(self.engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:

            def pragma(name: str) -> int:
                return int(cursor.execute(f"PRAGMA {name}").fetchone()[0])

            size, free, pages = pragma("page_size"), pragma("freelist_count"), pragma("page_count")
            if size * free < COMPACT_BYTES or 2 * free < pages or size * (pages - free) > COPY_BYTES:
                return 0
            try:
                cursor.execute("VACUUM")
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.OperationalError:  # locked, or no room for the copy
                return 0
            return size * (pages - pragma("page_count"))

    @again
    def fetch(self, query: sa.Select[Any]) -> sa.Result[Any]:
        """All rows of a query, read in a transaction of its own."""
        with self.reading() as connection:
            return connection.execute(query).freeze()()


def _kind(exc: sa.exc.DBAPIError) -> type[StoreError]:
    code = getattr(exc.orig, "pgcode", None)
    lost = exc.connection_invalidated or isinstance(exc, sa.exc.OperationalError | sa.exc.InterfaceError)
    return LedgerGone if code in _PASSING or (code is None and lost) else StoreError


def _engine(url: str, schema: str) -> tuple[sa.Engine, bool]:
    try:
        made = sa.make_url(url)
        if made.get_backend_name() == "sqlite":
            engine = sa.create_engine(made)
            event.listen(engine, "connect", _sqlite_settings)
            event.listen(engine, "begin", _sqlite_begin)
            return engine, False
        if made.get_backend_name() not in ("postgresql", "postgres"):
            raise VecrunError(
                "The ledger cannot live there",
                made.get_backend_name(),
                "state.database is postgresql://… or sqlite:///…",
            )
        # as it is written everywhere; the driver is ours to choose
        made = made.set(drivername="postgresql+psycopg2")
        engine = sa.create_engine(
            made, pool_pre_ping=True, connect_args={"connect_timeout": 10, "application_name": "vecrun"} | _ALIVE
        )
    except sa.exc.ArgumentError as exc:
        raise VecrunError(
            "The ledger's URL cannot be read", "state.database", "postgresql://user@host/database"
        ) from exc
    except ModuleNotFoundError as exc:
        raise VecrunError(
            "A package is missing", f"{exc.name}, for a ledger in PostgreSQL", "pip install 'vecrun[distributed]'"
        ) from exc

    def settings(connection: Any, _record: Any) -> None:
        quoted = engine.dialect.identifier_preparer.quote_identifier(schema)
        with connection.cursor() as cursor:
            cursor.execute(f"SET search_path TO {quoted}")
            cursor.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")
            cursor.execute("SET lock_timeout = '20s'")
        connection.commit()

    event.listen(engine, "connect", settings)
    return engine, True


def _upgrade(engine: sa.Engine, schema: str, shown: str) -> None:
    """Bring the schema to `REVISION`. VecrunError when it is of a newer vecrun."""
    with engine.connect().execution_options(reading=True) as connection, connection.begin():
        if _revision(connection) == REVISION:
            return
    with engine.begin() as connection:  # one at a time: SQLite's BEGIN IMMEDIATE, PostgreSQL's advisory lock
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7366265317)")
            connection.execute(sa.schema.CreateSchema(schema, if_not_exists=True))
        found = _revision(connection)
        if found == REVISION:
            return
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        try:
            if found is None and sa.inspect(connection).has_table("runs"):  # from before there were revisions
                command.stamp(config, "0001")
            command.upgrade(config, "head")
        except CommandError as exc:
            raise VecrunError(
                "The ledger has a newer format",
                f"{shown}: revision {found}, this vecrun knows {REVISION}",
                "Use the newer vecrun, or another state directory",
            ) from exc


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()


def _sqlite_settings(connection: Any, _record: Any) -> None:
    # autocommit off in the driver: SQLAlchemy's begin event opens the transaction (see _sqlite_begin)
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout=30000")
    deadline = time.monotonic() + 30
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except (
            sqlite3.OperationalError
        ) as exc:  # several processes make a new ledger at once: SQLite does not wait here
            if "locked" not in str(exc) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _sqlite_begin(connection: Any) -> None:
    # IMMEDIATE: a transaction that reads and then writes must not lose the race in between
    reading = connection.get_execution_options().get("reading")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
