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
#: no limit of time for a copy, nor for the transaction that holds its snapshot. What a server does not know is left out.
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
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
}


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
        with self.connect() as connection:
            return catalog.describe(connection, *self.split(table))

    def server(self) -> str:
        """Name and version of the server."""
        with self.connect() as connection:
            return catalog.server(connection)

    def split(self, table: str) -> tuple[str, str]:
        """(schema, table) of a name that may have a schema."""
        schema, _, bare = table.rpartition(".")
        return schema or self.schema, bare

    def close(self) -> None:
        """Nothing is held open between calls."""


@contextmanager
def translated(place: str) -> Iterator[None]:
    """psycopg's errors as ours, without the values of rows, which the details of PostgreSQL repeat."""
    import psycopg

    try:
        yield
    except psycopg.Error as exc:
        code, text = exc.sqlstate or "", (exc.diag.message_primary or str(exc)).strip()
        kind: type[VecrunError] = Permanent
        if (
            code[:2] in ("08", "40")
            or code[:3] == "57P"
            or code in ("53300", "57014")
            or (not code and isinstance(exc, psycopg.OperationalError | psycopg.InterfaceError))
        ):
            kind = Transient
        summary, hint = "PostgreSQL refuses", ""
        if code == "42501":
            summary, hint = "The login lacks a right", "GRANT it, or connect as another user."
        elif code == "55P03":  # it was waited for, so not to be tried again at once
            summary, hint = "A lock could not be had in time", "Stop what works on the table, or try again later."
        elif code in ("42P01", "3F000"):
            kind, summary = NotFound, "No such table"
        elif kind is Transient:
            summary, hint = "PostgreSQL did not answer", "Is the server running there?"
        raise kind(summary, f"{place}: {text}", hint) from exc
