"""Connections to the PostgreSQL database of tables that are backed up, emptied and filled: psycopg, for its COPY.

A connection of type sql and one of type pgvector lead here alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from runner.documents import catalog
from runner.documents.shape import Described
from runner.errors import NotFound, Permanent, Transient, VecrunError

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.Connection[tuple[Any, ...]]

#: How values are written, so that every one of them can be read back exactly, whatever the server's own settings are; and
#: no limit of time for a copy. A client that was stopped in the middle of a transaction loses it, and its locks, after a
#: minute; while rows stream, a transaction is not idle. What a server does not know is left out.
_SETTINGS = {
    "client_encoding": "UTF8",
    "extra_float_digits": "3",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "xmloption": "content",
    "synchronize_seqscans": "off",
    # a policy that hides rows is an error then, and not a backup that lacks them
    "row_security": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "60s",
    "transaction_timeout": "0",
}
#: Bytes of a name; the server would cut what is longer.
_LONGEST = 63
_PART = r'"(?:[^"]|"")+"'
#: A name of which at least one part is in double quotes.
_IN_QUOTES = re.compile(rf'(?:({_PART}|[^".]+)\.)?({_PART})|({_PART})\.([^".]+)')
#: From the first quotation mark of a message to the last, in whatever language; a value may hold some, too.
_VALUES = re.compile("[\"“”„«»‘’'].*[\"“”„«»‘’']", re.DOTALL)
_HEX = re.compile(r"0x[0-9a-f]{2}(?: 0x[0-9a-f]{2})*")
#: libpq gives no SQLSTATE for a connection that the server refuses, only its text.
_REFUSED_LOGIN = re.compile(
    r"authentication failed|no password supplied|no pg_hba.conf entry|not permitted to log in|certificate"
    r"|role .* does not exist|permission denied for database|SSL was required|does not support SSL",
    re.IGNORECASE,
)
_NO_DATABASE = re.compile(r"database \".*\" does not exist")
_LINE = re.compile(r"(COPY [^,]+, line \d+)")


class NotUnicode(Permanent):
    """Bytes in the database are no text: it is in SQL_ASCII, where the server does not look."""


class Postgres:
    """One database. `schema` is where names without one are. `read_only`: the server itself refuses every write."""

    def __init__(self, url: str, schema: str = "public", *, read_only: bool = False) -> None:
        try:
            import psycopg
            from psycopg.conninfo import conninfo_to_dict, make_conninfo
        except ModuleNotFoundError as exc:
            raise Permanent(
                "A client library is missing", f"tables need the package {exc.name!r}", "pip install 'vecrun[pgvector]'"
            ) from exc
        try:
            parts = conninfo_to_dict(re.sub(r"^postgres(?:ql)?\+\w+://", "postgresql://", url))
        except psycopg.Error:  # its text may quote the password
            raise Permanent(
                "The connection string cannot be read",
                "a url of PostgreSQL",
                "Write postgresql://user:password@host/database",
            ) from None
        parts.setdefault("connect_timeout", 10)
        self.shown = f"{parts.get('host', 'localhost')}/{parts.get('dbname', '')}"
        self.schema, self.read_only = schema, read_only
        self._conninfo = make_conninfo("", **parts)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """A connection of its own, with autocommit: transactions are begun by `connection.transaction()`. Closed at the end.
        Errors of the database leave as Transient or Permanent."""
        import psycopg

        with translated(self.shown), psycopg.connect(self._conninfo, autocommit=True) as connection:
            connection.execute(
                "SELECT set_config(s.name, v.value, false) FROM unnest(%s::text[], %s::text[]) v (name, value)"
                " JOIN pg_settings s ON lower(s.name) = v.name",
                (list(_SETTINGS), list(_SETTINGS.values())),
            )
            if self.read_only:
                connection.execute("SET default_transaction_read_only = on")
            yield connection

    def describe(self, table: str) -> Described | None:
        """The table of this name, with its rows, its size as CSV and the rights of this login; None when there is none."""
        try:
            with self.connect() as connection:
                return catalog.describe(connection, *self.split(table))
        except NotUnicode as exc:
            raise NotUnicode(exc.summary, f"{table}, {exc.detail}", exc.hint) from exc

    def server(self) -> str:
        """Name and version of the server."""
        with self.connect() as connection:
            return catalog.server(connection)

    def split(self, table: str) -> tuple[str, str]:
        """(schema, table) of a name that may have a schema; each may be in double quotes, as in SQL: "a.b" is a table with a dot
        in its name. Permanent when one is longer than PostgreSQL's names are."""
        if match := _IN_QUOTES.fullmatch(table):
            one, two, three, four = match.groups(default="")
            schema, bare = _plain(one or three), _plain(two or four)
        else:
            schema, _, bare = table.rpartition(".")
        for name in (schema, bare):
            if len(name.encode()) > _LONGEST:
                raise Permanent(
                    "A name is too long for PostgreSQL", f"{name!r} has {len(name.encode())} bytes, and {_LONGEST} are kept",
                    "Choose a shorter one",
                )  # fmt: skip
        return schema or self.schema, bare

    def close(self) -> None:
        """Nothing is held open between calls."""


def _plain(name: str) -> str:
    """A name of which quotes are no part."""
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _without_values(exc: psycopg.Error, text: str) -> str:
    """What a message about values says without them, and where that was."""
    if exc.sqlstate not in ("22021", "22P05"):  # these name encodings, and bytes
        text = _VALUES.sub("…", text)
    text = _HEX.sub("…", text)
    names = (exc.diag.schema_name, exc.diag.table_name, exc.diag.column_name or exc.diag.constraint_name)
    where = ".".join(name for name in names if name)
    if not where and (match := _LINE.match(exc.diag.context or "")):
        where = match[1]
    return f"{text} ({where})" if where else text


@contextmanager
def translated(place: str) -> Iterator[None]:
    """psycopg's errors as ours, without the values of rows, which the details of PostgreSQL repeat."""
    import psycopg

    try:
        yield
    except UnicodeDecodeError as exc:
        raise NotUnicode("A name or definition is no UTF-8", place, "Rename it, or convert the database") from exc
    except psycopg.Error as exc:
        code, text = exc.sqlstate or "", (exc.diag.message_primary or str(exc)).strip()
        if code[:2] in ("22", "23") or code == "P0001":
            text = _without_values(exc, text)
        kind: type[VecrunError] = Permanent
        if (
            code[:2] in ("08", "40")
            or code[:3] == "57P"
            or code in ("53300", "57014", "25P03")
            or (not code and isinstance(exc, psycopg.OperationalError | psycopg.InterfaceError))
        ):
            kind = Transient
        no_login = code[:2] == "28" or (not code and _REFUSED_LOGIN.search(text) is not None)
        no_database = code[:2] == "3D" or (not code and _NO_DATABASE.search(text) is not None)
        if no_login or no_database:
            kind = Permanent
        summary, hint = "PostgreSQL refuses", ""
        if code == "22021":
            kind, summary = NotUnicode, "There is text that is no UTF-8, so that it could not be restored"
            hint = "Convert it, or move the rows to a database that has an encoding."
        if code == "42501":
            summary, hint = "The login lacks a right", "GRANT it, or connect as another user."
        elif code == "55P03":  # it was waited for, so not to be tried again at once
            summary, hint = "A lock could not be had in time", "Stop what works on the table, or try again later."
        elif code in ("42P01", "3F000"):
            kind, summary = NotFound, "No such table"
        elif no_database:
            summary, hint = "The database does not exist", "Check the name in the url."
        elif no_login:
            summary, hint = "The server refuses the login", "Check user, password and pg_hba.conf."
        elif kind is Transient:
            summary, hint = "PostgreSQL did not answer", "Is the server running there?"
        raise kind(summary, f"{place}: {text}", hint) from exc
