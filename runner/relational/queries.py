"""Questions to a database with one answer each, and whether it is the one that is wanted."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from runner.documents.database import Database
from runner.documents.refusals import said
from runner.errors import Permanent
from runner.mapping import Expectation


class _NoAnswer(Exception):
    """A query gave none, or more than one."""


def ask(database: Database, queries: Sequence[Expectation], connection: sa.Connection | None = None) -> list[str]:
    """What does not hold, each with its name and the answer; texts are not shown, they may be values of rows.

    In a transaction that can only read, or on the connection that is given. Permanent when a query does not run.
    """
    if not queries:
        return []
    with contextlib.nullcontext(connection) if connection is not None else database.reading() as asked:
        return [text for one in queries if (text := _asked(asked, one))]


def is_true(database: Database, query: str) -> bool:
    """Whether a query gives true, or a number other than 0."""
    with database.reading() as connection:
        try:
            answer = _answer(connection, query, query)
        except _NoAnswer:
            return False
    return isinstance(answer, bool | int | float | Decimal) and bool(answer)


def _asked(connection: sa.Connection, one: Expectation) -> str:
    try:
        found = _answer(connection, one.query, one.name)
        wanted = one.expect if one.same_as is None else _answer(connection, one.same_as, one.name)
    except _NoAnswer as exc:
        return f"{one.name}: {exc}"
    if _same(found, wanted):
        return ""
    return f"{one.name}: {_shown(found)} instead of {_shown(wanted)}"


def _answer(connection: sa.Connection, query: str, name: str) -> Any:
    streams = connection.dialect.name == "postgresql"
    options = {"no_parameters": True, "stream_results": streams}  # a cursor on the server's side takes one SELECT
    try:
        with contextlib.closing(connection.exec_driver_sql(query, execution_options=options)) as result:
            if not result.returns_rows:
                raise _NoAnswer("the query gives no rows")
            columns, rows = len(result.keys()), result.fetchmany(2)
    except sa.exc.OperationalError as exc:
        if connection.dialect.name != "sqlite":
            raise
        raise _refused(name, exc) from None
    except sa.exc.SQLAlchemyError as exc:
        raise _refused(name, exc) from None
    if columns != 1:
        raise _NoAnswer(f"the query gives {columns} columns, not one")
    if len(rows) != 1:
        raise _NoAnswer("the query gives no row" if not rows else "the query gives more than one row")
    return rows[0][0]


def _refused(name: str, exc: Exception) -> Permanent:
    return Permanent("A query does not run", f"{name}: {said(exc)}", "Queries can only read")


def _same(found: Any, wanted: Any) -> bool:
    if found is None or wanted is None:
        return found is wanted
    if isinstance(wanted, str) and not isinstance(found, str):
        return str(found) == wanted
    return bool(found == wanted)


def _shown(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool | int | float | Decimal):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value).lower()
    return "another text" if isinstance(value, str) else "another value"
