"""Connections to one database: opened as vecrun needs them, lent to one thread at a time, their errors translated."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from runner.errors import Permanent, StoreError, TooLarge, Transient
from runner.stores.pgvector.config import PgvectorConfig

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.Connection[tuple[Any, ...]]

#: SQLSTATE or its class -> what it means. Longer keys first; what is not listed is Permanent.
_MEANINGS: dict[str, tuple[type[StoreError], str, str]] = {
    "53100": (Permanent, "The disk of the server is full", "Free space and run again; what is written stays."),
    "53200": (TooLarge, "The server is out of memory", "Smaller batches may pass."),
    "53300": (Transient, "The server has no free connection", "Raise max_connections or run fewer jobs at once."),
    "55006": (Transient, "The object is in use", ""),
    "55P03": (Transient, "A lock could not be had in time", ""),
    "57014": (Transient, "The statement was cancelled", "Look at statement_timeout of this login."),
    "57P04": (Permanent, "The database was dropped", ""),
    "58030": (Transient, "The server could not read or write a file", "Look at the server's log."),
    "42501": (Permanent, "The login lacks a right", "GRANT it, or connect as another user."),
    "42P07": (Permanent, "The collection exists already", "Choose another name or drop it first."),
    "42P10": (Permanent, "The id column is not unique", "Give it a unique index: points are replaced by id."),
    "2BP01": (Permanent, "Something else depends on it", "Drop the views that use the table first."),
    "25006": (Permanent, "The server is read-only", "Connect to the primary server."),
    "08": (Transient, "The connection was lost", ""),
    "22": (Permanent, "A value does not fit its column", ""),
    "23": (Permanent, "A constraint of the table is violated", "Map the columns in `tables` of the connection."),
    "28": (Permanent, "The server refuses the login", "Check user, password and pg_hba.conf."),
    "3D": (Permanent, "The database does not exist", "Check the name in the url."),
    "3F": (Permanent, "The schema does not exist", "Create it or change schema_name."),
    "40": (Transient, "The transaction was rolled back by the server", ""),
    "57P": (Transient, "The server is starting or shutting down", ""),
}
#: libpq gives no SQLSTATE for a refused connection, only the text of the server.
_REFUSED_LOGIN = re.compile(
    r"authentication failed|no password supplied|no pg_hba.conf entry|not permitted to log in|certificate"
    r"|role .* does not exist|permission denied for database|SSL was required"
    r"|does not support SSL",
    re.IGNORECASE,
)
_NO_DATABASE = re.compile(r"database \".*\" does not exist")


@contextmanager
def translated(place: str) -> Iterator[None]:
    """psycopg's errors as ours; `place` says where and what was being done."""
    import psycopg

    try:
        yield
    except psycopg.Error as exc:
        code, message = exc.sqlstate or "", message_of(exc)
        meaning: tuple[type[StoreError], str, str] = (Permanent, "PostgreSQL refuses the request", "")
        if found := next((_MEANINGS[code[:size]] for size in (5, 3, 2) if code[:size] in _MEANINGS), None):
            meaning = found
        elif not code and isinstance(exc, psycopg.OperationalError | psycopg.InterfaceError):
            unreachable = (Transient, "PostgreSQL cannot be reached", "Is the server running there?")
            meaning = _MEANINGS["28"] if _REFUSED_LOGIN.search(message) else unreachable
            meaning = _MEANINGS["3D"] if _NO_DATABASE.search(message) else meaning
        kind, summary, hint = meaning
        raise kind(summary, f"{place}: {message}", hint) from exc


def message_of(exc: psycopg.Error) -> str:
    """The server's sentence, without the statement and its position."""
    return (exc.diag.message_primary or str(exc)).strip()


class Binary(bytes):
    """A parameter that is in PostgreSQL's binary form already."""


class Pool:
    """Open connections that nobody uses at the moment. `place` names the server without its credentials."""

    def __init__(self, config: PgvectorConfig) -> None:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict, make_conninfo

        url = re.sub(r"^postgres(?:ql)?\+\w+://", "postgresql://", config.url)  # the form SQLAlchemy uses
        try:
            parts = conninfo_to_dict(url)
        except psycopg.Error:  # its text may quote the password
            raise Permanent(
                "The connection string cannot be read", "pgvector url", "Write postgresql://user:password@host/database"
            ) from None
        parts.setdefault("connect_timeout", config.connect_timeout)
        self.place = f"{parts.get('host', 'localhost')}/{parts.get('dbname', '')}"
        self._conninfo = make_conninfo("", **{**parts, "client_encoding": "UTF8"})
        self._schema = config.schema_name
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def session(self, doing: str) -> Iterator[Connection]:
        """A connection of its own for the block; a broken one is not used again. Translates what the block raises."""
        with translated(f"{self.place}, {doing}"):
            with self._lock:
                conn = self._idle.pop() if self._idle else None
            conn = conn or self._open()
            try:
                yield conn
            finally:
                with self._lock:
                    gone = []
                    if conn.closed or conn.broken:  # the server went away; the others are as dead
                        gone, self._idle = [conn, *self._idle], []
                    elif self._closed:
                        gone = [conn]
                    else:
                        self._idle.append(conn)
                for item in gone:
                    item.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for conn in idle:
            conn.close()

    def _open(self) -> Connection:
        import psycopg
        from psycopg.adapt import Dumper
        from psycopg.pq import Format
        from psycopg.types.string import ByteaBinaryLoader

        class BinaryDumper(Dumper):
            format = Format.BINARY

            def dump(self, obj: Binary) -> bytes:
                return obj

        # raw cursors take $1, so a percent sign in a name means nothing
        conn = psycopg.connect(self._conninfo, autocommit=True, cursor_factory=psycopg.RawCursor)
        # binary reads ask for text only to hand it on as it is
        conn.adapters.register_loader("text", ByteaBinaryLoader)
        conn.adapters.register_dumper(Binary, BinaryDumper)
        conn.execute(
            """
            SELECT set_config('search_path', concat_ws(', ', quote_ident($1), (SELECT quote_ident(n.nspname)
                FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector')), false),
              set_config('TimeZone', 'UTC', false), set_config('DateStyle', 'ISO, YMD', false),
              set_config('extra_float_digits', '1', false), set_config('standard_conforming_strings', 'on', false),
              set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
                ELSE current_setting('synchronous_commit') END, false)
            """,
            [self._schema],
        )
        return conn


def install_extension(conn: Connection) -> None:
    """Make the types of pgvector known to the database. Permanent where this login may not."""
    import psycopg

    try:
        conn.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except psycopg.errors.UniqueViolation:
        pass  # another session was faster
    except psycopg.Error as exc:
        raise Permanent(
            "The extension vector is not installed",
            f"{conn.info.host}/{conn.info.dbname}: {message_of(exc)}",
            "Install pgvector on the server; a superuser then runs: CREATE EXTENSION vector",
        ) from exc
