"""What stands in a table, in one number: whether somebody changed rows of it since is told without a copy of them."""

# Names in SQL are quoted by `quoted` and `column`.
# ruff: noqa: S608

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from runner.relational import column, execute, quoted, schema

#: What the text of a value depends on in a session of PostgreSQL.
_PINNED = {
    "TimeZone": "UTC", "DateStyle": "ISO, MDY", "IntervalStyle": "postgres", "bytea_output": "hex", "extra_float_digits": "1",
}  # fmt: skip
#: Rows that are read at once, and the size of a sum.
PAGE, WIDTH = 1_000, 2**64


def seen(connection: sa.Connection, table: str, but: Collection[str] = ()) -> dict[str, Any] | None:
    """{columns, rows, sum} of a table, in whatever order its rows stand; None when there is none. `but`: columns that are left
    out. JSON, for `differs`."""
    shape = schema.look(connection, table, count=False)
    if shape is None:
        return None
    return _seen(connection, table, [one.name for one in shape.columns if one.name not in but])


def differs(connection: sa.Connection, table: str, before: dict[str, Any]) -> str:
    """How a table differs from what `seen` gave; empty when it does not. Columns that came since are not looked at."""
    shape = schema.look(connection, table, count=False)
    if shape is None:
        return ""
    if gone := [name for name in before["columns"] if shape.column(name) is None]:
        return f"its columns were changed since the run: {', '.join(gone)} is not there any more"
    now = _seen(connection, table, before["columns"])
    if (now["rows"], now["sum"]) == (before["rows"], before["sum"]):
        return ""
    if (more := now["rows"] - before["rows"]) > 0:
        return f"rows that came since the run, and stand nowhere else: {more:,}"
    if more < 0:
        return f"rows were changed since the run: it had {before['rows']:,} rows then, and has {now['rows']:,} now"
    return "rows were changed since the run, and the changes stand nowhere else"


def _seen(connection: sa.Connection, table: str, names: list[str]) -> dict[str, Any]:
    dialect = connection.dialect
    chosen, t = [column(dialect, name) for name in names], quoted(dialect, table)
    if dialect.name == "postgresql":
        rows, total = _postgresql(connection, f"ROW({', '.join(f't.{one}' for one in chosen)})", t)
    else:
        if dialect.name == "sqlite":  # text may be no UTF-8
            chosen = [f"CASE typeof({one}) WHEN 'text' THEN CAST({one} AS BLOB) ELSE {one} END" for one in chosen]
        rows, total = 0, 0
        found = execute(connection, f"SELECT {', '.join(chosen) or '1'} FROM {t}")
        for page in found.partitions(PAGE):
            for row in page:
                name = hashlib.blake2b(repr(tuple(row)).encode(), digest_size=8).digest()
                total += int.from_bytes(name, "big")
            rows += len(page)
    return {"columns": names, "rows": rows, "sum": f"{total % WIDTH:016x}"}


def _postgresql(connection: sa.Connection, row: str, table: str) -> tuple[int, int]:
    names = ", ".join(f"current_setting('{name}')" for name in _PINNED)
    before = execute(connection, f"SELECT {names}").one()
    execute(connection, f"SELECT {', '.join(_set(name, value) for name, value in _PINNED.items())}")
    query = f"SELECT count(*), coalesce(sum(hashtextextended({row}::text, 0)::numeric), 0) FROM {table} t"
    found = tuple(execute(connection, query).one())
    execute(connection, f"SELECT {', '.join(_set(name, value) for name, value in zip(_PINNED, before, strict=True))}")
    return int(found[0]), int(found[1])


def _set(name: str, value: str) -> str:
    return f"set_config('{name}', '{value.replace(chr(39), chr(39) * 2)}', true)"
