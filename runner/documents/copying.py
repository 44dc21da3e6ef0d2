"""Tables out of PostgreSQL as CSV, all of one moment: a snapshot that is held open, and `COPY … TO STDOUT` from any number
of connections that share it. What goes through is counted and hashed on the way.

What is exact: every value, as the text that its type writes under the settings of `Postgres`, which is the text that the
same type reads back. Floating-point numbers and vectors of pgvector have as many digits as they need to come back bit for
bit, times are in UTC, money is in the notation of the locale C. NULL is an empty field, an empty text is `""`. The
encoding is UTF-8; a database in SQL_ASCII gives the bytes it has, and those that are no UTF-8 are refused.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from runner.documents import catalog
from runner.documents.postgres import translated
from runner.documents.shape import Shape, quoted
from runner.errors import Permanent, VecrunError

if TYPE_CHECKING:
    from runner.documents.postgres import Connection, Postgres

#: Bytes that are handed on at once, at least.
_PIECE = 1 << 20
#: How long a backup waits for who changes or empties a table just now.
_LOCK_TIMEOUT = "30s"


@dataclass
class Tally:
    """What went through: rows, and bytes with the header."""

    rows: int = 0
    bytes: int = 0
    _whole: Any = field(default_factory=hashlib.sha256)
    _sum: int = 0

    @property
    def sha256(self) -> str:
        """Of all bytes, header and all."""
        return str(self._whole.hexdigest())

    @property
    def rows_digest(self) -> str:
        """Of the set of rows, whatever their order: the sum modulo 2^128 of the first 16 bytes of the SHA-256 of each row as
        COPY sends it, its end of line included. 32 hex digits."""
        return f"{self._sum & (1 << 128) - 1:032x}"


@dataclass(frozen=True)
class Source:
    """A table that is to be copied, as it is in the snapshot; or why it cannot be. `csv_bytes` is an estimate."""

    table: str  # as it was asked for
    shape: Shape | None = None
    rows: int = 0
    csv_bytes: int = 0
    error: VecrunError | None = None


@dataclass(frozen=True)
class Snapshot:
    """A moment of the database, as long as the block of `snapshot` lasts."""

    name: str
    server: str
    sources: tuple[Source, ...]
    connection: Connection  # that holds it, and a lock on each table
    alone: threading.Lock  # for whoever uses that connection


@contextmanager
def snapshot(postgres: Postgres, tables: Sequence[str]) -> Iterator[Snapshot]:
    """Hold what is in these tables now. They cannot be emptied, changed in shape or dropped meanwhile; rows come and go as
    ever. A table that cannot be read has an error and stops no other."""
    from psycopg import IsolationLevel

    with postgres.connect() as connection:
        connection.isolation_level, connection.read_only = IsolationLevel.REPEATABLE_READ, True
        with connection.transaction():
            _without_haste(connection)
            connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
            # before the snapshot, which does not protect from TRUNCATE
            failed = [_lock(postgres, connection, table) for table in tables]
            row = connection.execute("SELECT pg_export_snapshot()").fetchone()
            assert row is not None
            sources = (
                Source(table, error=error) if error else _source(postgres, connection, table)
                for table, error in zip(tables, failed, strict=True)
            )  # fmt: skip
            yield Snapshot(row[0], catalog.server(connection), tuple(sources), connection, threading.Lock())


def _without_haste(connection: Connection) -> None:
    """Who holds a snapshot waits for others, and stops nobody from reading and writing."""
    connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")


def _lock(postgres: Postgres, connection: Connection, table: str) -> VecrunError | None:
    schema, name = postgres.split(table)
    try:
        with nested(postgres, connection):
            connection.execute(f"LOCK TABLE {quoted(schema)}.{quoted(name)} IN ACCESS SHARE MODE")
    except VecrunError as exc:
        return exc
    return None


def _source(postgres: Postgres, connection: Connection, table: str) -> Source:
    try:
        with nested(postgres, connection):
            found = catalog.shape(connection, *postgres.split(table))
            if found is None or found.relation == "other":
                raise Permanent(
                    "Only tables are backed up", f"{table} is a view, a foreign table or the parent of other tables"
                )
            if found.hidden_rows:
                raise Permanent(
                    "Row level security hides rows from this login", table,
                    "Connect as the owner of the table, or as a user with BYPASSRLS",
                )  # fmt: skip
            rows = catalog.rows(connection, found)
            return Source(table, found, rows, catalog.csv_bytes(connection, found, rows))
    except VecrunError as exc:
        return Source(table, error=exc)


@contextmanager
def nested(postgres: Postgres, connection: Connection) -> Iterator[None]:
    """A part of a transaction that may fail alone. An error leaves as ours."""
    with translated(postgres.shown), connection.transaction():
        yield


@contextmanager
def reader(postgres: Postgres, shared: Snapshot, table: Shape) -> Iterator[Connection]:
    """A connection that sees of a table what the snapshot saw: one of its own. Where somebody waits to empty or change the
    table, any other one would wait behind him, and he waits for the snapshot; then it is the one that holds it."""
    import psycopg

    with postgres.connect() as connection:
        connection.isolation_level, connection.read_only = psycopg.IsolationLevel.REPEATABLE_READ, True
        with connection.transaction():
            connection.execute(f"SET TRANSACTION SNAPSHOT '{shared.name}'")
            _without_haste(connection)
            if _locked(connection, table):
                yield connection
                return
    with shared.alone, nested(postgres, shared.connection):
        yield shared.connection


def _locked(connection: Connection, table: Shape) -> bool:
    import psycopg

    try:
        with connection.transaction():
            connection.execute(f"LOCK TABLE {table.sql} IN ACCESS SHARE MODE NOWAIT")
    except psycopg.errors.LockNotAvailable:
        return False
    return True


def csv(
    connection: Connection, select: str, tally: Tally, check: Callable[[], None] = lambda: None
) -> Generator[bytes, None, None]:
    """What a query gives, as CSV with header, in pieces of about a megabyte. `check` is called between them and may raise.
    Close it when you leave early: the server stops then."""
    with connection.cursor() as cursor:
        with cursor.copy(f"COPY ({select}) TO STDOUT (FORMAT csv, HEADER)") as copy:
            # a server sends each row in a message of its own
            waiting, size, messages, total = [], 0, -1, 0
            for row in copy:
                if messages >= 0:
                    total += int.from_bytes(hashlib.sha256(row).digest()[:16])
                messages += 1
                waiting.append(row)
                size += len(row)
                if size >= _PIECE:
                    yield _hand_on(tally, waiting)
                    check()
                    waiting, size = [], 0
            yield _hand_on(tally, waiting)
        if messages != cursor.rowcount:
            raise Permanent(
                "The server did not send each row by itself", f"{messages:,} parts, {cursor.rowcount:,} rows"
            )
        tally.rows, tally._sum = messages, total


def decoded(postgres: Postgres, table: Shape) -> None:
    """Read a table of a database in SQL_ASCII, where there may be any bytes. NotUnicode when some are no text."""
    with postgres.connect() as connection:
        if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
            tally(connection, table, table.sql)


def tally(
    connection: Connection, columns: Shape, source: str, check: Callable[[], None] = lambda: None
) -> Tally:  # fmt: skip
    """Rows and their digest as a backup would have them, of what stands behind FROM."""
    found = Tally()
    for _piece in csv(connection, f"SELECT {columns.columns_sql} FROM {source}", found, check):  # noqa: S608
        pass
    return found


def differs(connection: Connection, kept: Kept) -> str:
    """Why a table does not hold the rows that a backup has of it, by their content as well; empty when it does. For a database
    that was put back to an earlier state, and has come to the same versions of rows again."""
    if why := moved(connection, kept):
        return why
    assert kept.shape is not None
    if tally(connection, kept.shape, kept.shape.sql).rows_digest != kept.rows_digest:
        return f"{kept.table}: as many rows as in the backup, with another content"
    return ""


def _hand_on(tally: Tally, waiting: Sequence[bytes | bytearray | memoryview]) -> bytes:
    piece = b"".join(waiting)
    tally._whole.update(piece)
    tally.bytes += len(piece)
    return piece


class Kept(Protocol):
    """A table as a backup has it. `snapshot`: `versions` of the rows in it."""

    @property
    def table(self) -> str: ...

    @property
    def shape(self) -> Shape | None: ...

    @property
    def rows(self) -> int: ...

    @property
    def snapshot(self) -> str: ...

    @property
    def rows_digest(self) -> str: ...


def versions(connection: Connection, table: Shape) -> str:
    """Names the versions of rows that are there, each by its place and the transaction that wrote it. The same name later
    means that no row came, went or was written to since; a rewrite of the table (VACUUM FULL) gives another one too."""
    each = "hashtextextended(concat(tableoid, ' ', ctid, ' ', xmin), 0)"
    row = connection.execute(f"SELECT count(*), coalesce(sum({each}), 0)::text FROM {table.sql}").fetchone()  # noqa: S608
    assert row is not None
    return f"{row[0]}:{row[1]}"


def moved(connection: Connection, kept: Kept) -> str:
    """Why a table does not hold exactly the rows that a backup has of it, whoever wrote them since and in whatever
    transaction or savepoint; empty when it does."""
    assert kept.shape is not None
    here = catalog.shape(connection, kept.shape.schema_name, kept.shape.name)
    if here is None or (here.oid, here.database) != (kept.shape.oid, kept.shape.database):
        return f"{kept.table} is another table than the one in the backup"
    if here.fingerprint() != kept.shape.fingerprint():
        return f"{kept.table}: its columns or constraints are others than in the backup"
    now = versions(connection, here)
    if now == kept.snapshot:
        return ""
    count = int(now.split(":")[0])
    if count != kept.rows:
        return f"{kept.table}: {kept.rows:,} rows in the backup, {count:,} now"
    return f"{kept.table}: {count:,} rows as in the backup, but some were changed or replaced since"
