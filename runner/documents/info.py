"""The model info of a knowledge base, in the user's relational tables: a JSON object, or a text that is one.

What a run found there is put back letter for letter; what others have changed since is theirs.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from runner.documents.chunks import column_of
from runner.documents.database import Database
from runner.errors import NotFound, Permanent
from runner.plan import InfoRow, SetModel

#: Keys of a knowledge base's info that vecrun sets, the time aside; all others are the user's.
INFO_KEYS = ("provider", "model", "dimension", "version", "collection")


def read(database: Database, row: InfoRow) -> dict[str, Any] | None:
    """What the knowledge base's row says now; None when it says nothing. NotFound when there is no such row."""
    return as_it_stands(database, row)[0]


def as_it_stands(database: Database, row: InfoRow) -> tuple[dict[str, Any] | None, str | None]:
    """What the knowledge base's row says now, and its text exactly as it stands there; None for NULL. NotFound."""
    table = database.table(row.table)
    with database.transaction() as connection:
        return _read_info(connection, table, row)


def set_info(connection: sa.Connection, table: sa.Table, step: SetModel, stamp: str) -> bool:
    """The info becomes `after`. Permanent when somebody else changed it before it was set; when it is put back, keys that
    somebody added stay, and an info of another model is left alone (False)."""
    assert step.info is not None
    held, _raw = _read_info(connection, table, step.info, lock=connection.dialect.name != "sqlite")
    after, exactly = step.after, step.phase != "end"
    if step.phase == "end" and after is not None:
        if held is not None and _timeless(held) == _timeless(after) and held.get("updated_at"):
            return True  # done before
        after = {**after, "updated_at": stamp}
    elif held == after:
        return True
    elif _timeless(held) != _timeless(step.before):
        ours = step.before or {}
        if held is None or any(held.get(key) != ours.get(key) for key in INFO_KEYS):
            return False
        mine, exactly = {*INFO_KEYS, "updated_at"}, False
        after = {key: item for key, item in held.items() if key not in mine} | {
            key: item for key, item in (after or {}).items() if key in mine
        }
    if step.phase == "end" and held != step.before:
        raise Permanent(
            "The knowledge base's model info was changed by somebody else",
            f"{step.info.table}.{step.info.info_column} of {step.info.id!r} is {json.dumps(held)}, expected {json.dumps(step.before)}",
            "Look at it and put it back, then resume",
        )
    column = column_of(table, step.info.info_column)
    text = json.dumps(after) if after is not None else None
    if exactly and step.before_text is not None:
        text = step.before_text
    value = _text_for(connection, column, text) if text is not None else sa.null()
    where = column_of(table, step.info.id_column) == step.info.id
    connection.execute(table.update().values({column.name: value}).where(where))
    return True


def _timeless(value: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if value is None else {key: item for key, item in value.items() if key != "updated_at"}


def _text_for(connection: sa.Connection, column: sa.Column[Any], text: str) -> Any:
    """A value that stands in the column as this text, letter for letter."""
    given = sa.literal(text, sa.Text())
    if (
        isinstance(column.type, sa.JSON) and connection.dialect.name != "sqlite"
    ):  # where a cast would make a number of it
        return sa.cast(given, column.type)
    return given


def _read_info(
    connection: sa.Connection, table: sa.Table, row: InfoRow, *, lock: bool = False
) -> tuple[dict[str, Any] | None, str | None]:
    column = column_of(table, row.info_column)
    query = sa.select(sa.cast(column, sa.Text())).where(column_of(table, row.id_column) == row.id)
    found = connection.execute(query.with_for_update() if lock else query).all()
    if len(found) != 1:
        raise NotFound(
            "No such knowledge base" if not found else "Several rows are one knowledge base",
            f"{row.table}.{row.id_column} = {row.id!r}: {len(found)} rows",
        )
    text: str | None = found[0][0]
    try:
        value = json.loads(text) if text is not None and text.strip() else None
    except ValueError as exc:
        raise Permanent("The model info is no JSON", f"{row.table}.{row.info_column} of {row.id!r}: {exc}") from exc
    if value is not None and not isinstance(value, dict):
        raise Permanent("The model info is no JSON object", f"{row.table}.{row.info_column} of {row.id!r} is {value!r}")
    return value, text
