"""Which model the vectors are of, in the user's relational tables: a version a chunk, an info a knowledge base.

Marks are taken away before vectors change and set after, in one transaction each; the old ones stand in an undo table
meanwhile. Each of them may be repeated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from runner.documents.chunks import column_of, converter
from runner.documents.database import Database
from runner.errors import NotFound, Permanent
from runner.plan import InfoRow, SetModel, VersionRows
from runner.points import PointId

#: Columns of the undo table of versions.
UNDO_COLUMNS = ("row_id", "old_version")
CHUNK = 500
#: Keys of a knowledge base's info that vecrun sets, the time aside; all others are the user's.
INFO_KEYS = ("provider", "model", "dimension", "version", "collection")


@dataclass(frozen=True)
class Changed:
    """Rows whose version was set or put back, and whether the info of the knowledge base was."""

    rows: int = 0
    info: bool = False


def check(database: Database, rows: VersionRows) -> int:
    """Number of rows of the chunks table. NotFound when a table or column is missing."""
    table = database.table(rows.table)
    for name in (rows.id_column, rows.vector_id_column, rows.version_column, rows.collection_column):
        if name is not None:
            column_of(table, name)
    with database.transaction() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def holds(database: Database, rows: VersionRows, version: str) -> str:
    """Empty if the version column can hold this version, else why not."""
    column = column_of(database.table(rows.table), rows.version_column)
    place = f"{rows.table}.{rows.version_column} is {column.type}"
    if not isinstance(column.type, sa.String | sa.types.NullType):
        return f"{place}, and a version is text"
    length = getattr(column.type, "length", None)
    if length is not None and length < len(version):
        return f"{place}; {version!r} has {len(version)} characters. Widen it, or give the model a shorter version: in vecrun.yaml"
    return ""


def versions(database: Database, rows: VersionRows, ids: Sequence[PointId]) -> dict[PointId, str | None]:
    """id -> version, for the points that a row names; None where several rows say different ones."""
    table = database.table(rows.table)
    key, version = column_of(table, rows.vector_id_column), column_of(table, rows.version_column)
    convert, found = converter(key), dict[PointId, str | None]()
    with database.transaction() as connection:
        for start in range(0, len(ids), CHUNK):
            wanted = {convert(one): one for one in ids[start : start + CHUNK]}
            wanted.pop(None, None)
            query = sa.select(key, version).where(key.in_(list(wanted)))
            for row_id, value in connection.execute(_of_collection(query, table, rows)):
                point_id = wanted[row_id] if row_id in wanted else wanted[convert(row_id)]
                carried = None if value is None else str(value)
                found[point_id] = carried if found.get(point_id, carried) == carried else None
    return found


def counts(database: Database, rows: VersionRows) -> dict[str, int]:
    """version -> rows; "" for those without one."""
    table = database.table(rows.table)
    version = column_of(table, rows.version_column)
    query = _of_collection(sa.select(version, sa.func.count()).group_by(version), table, rows)
    with database.transaction() as connection:
        return {str(value) if value is not None else "": int(count) for value, count in connection.execute(query)}


def info(database: Database, row: InfoRow) -> dict[str, Any] | None:
    """What the knowledge base's row says now; None when it says nothing. NotFound when there is no such row."""
    table = database.table(row.table)
    with database.transaction() as connection:
        return _read_info(connection, table, row)


def set_model(
    database: Database, step: SetModel, embedded: Iterable[Sequence[PointId]], stamp: str,
    unsure: Iterable[Sequence[PointId]] = (),
) -> Changed:  # fmt: skip
    """Carry out a phase, in one transaction. `embedded`: ids of points that the model made, in pages; `stamp` is the
    `updated_at` of a new info; `unsure`: ids of points that were being written in a crash, whose rows stay without."""
    chunks = database.table(step.rows.table) if step.rows is not None else None
    bases = database.table(step.info.table) if step.info is not None else None
    with database.transaction() as connection:
        rows = 0
        if step.rows is not None and chunks is not None:
            table, undo = chunks, _undo_table(step.undo_table, chunks, step.rows)
            match step.phase:
                case "begin" | "open":
                    rows = _take_away(connection, table, undo, step)
                case "end" | "again":
                    rows = _set(connection, table, undo, step, embedded, unsure)
                case "reopen":
                    rows = _reopen(connection, table, undo, step)
                case "restore":
                    rows = _restore(connection, table, undo, step)
        changed = False
        if bases is not None and step.phase in ("end", "reopen"):
            changed = _set_info(connection, bases, step, stamp)
        return Changed(rows, changed)


def _take_away(connection: sa.Connection, table: sa.Table, undo: sa.Table, step: SetModel) -> int:
    """Rows of another version carry none from now on."""
    assert step.rows is not None
    key, version = column_of(table, step.rows.id_column), column_of(table, step.rows.version_column)
    undo.create(connection, checkfirst=True)
    other = sa.or_(version.is_(None), version != step.embed.identity.version)
    chosen = _of_collection(sa.select(key, version).where(other), table, step.rows)
    chosen = chosen.where(key.not_in(sa.select(undo.c.row_id)))
    connection.execute(undo.insert().from_select(list(UNDO_COLUMNS), chosen))
    taken = sa.select(undo.c.row_id).where(undo.c.row_id == key).exists()
    still = sa.or_(version.is_(None), version != step.embed.identity.version)
    connection.execute(table.update().values({version.name: _none(version)}).where(taken, still))
    return _count(connection, undo)


def _set(
    connection: sa.Connection, table: sa.Table, undo: sa.Table, step: SetModel, embedded: Iterable[Sequence[PointId]],
    unsure: Iterable[Sequence[PointId]],
) -> int:  # fmt: skip
    """Rows whose point was embedded get the version; the others get back what they had."""
    assert step.rows is not None
    key, vector_id = column_of(table, step.rows.id_column), column_of(table, step.rows.vector_id_column)
    version, new = column_of(table, step.rows.version_column), step.embed.identity.version
    convert = converter(vector_id)
    undo.create(connection, checkfirst=True)
    made = sa.Table(
        f"{step.undo_table}_made", sa.MetaData(), sa.Column("vector_id", vector_id.type, primary_key=True),
        sa.Column("sure", sa.Boolean), schema=table.schema,
    )  # fmt: skip
    made.create(connection)
    for pages, sure in ((embedded, True), (unsure, False)):
        for page in pages:
            ids = {convert(one) for one in page} - {None}
            if ids:
                connection.execute(made.insert(), [{"vector_id": one, "sure": sure} for one in ids])
    other = sa.or_(version.is_(None), version != new)
    chosen = _of_collection(
        sa.select(key, version).join_from(table, made, vector_id == made.c.vector_id).where(made.c.sure, other),
        table,
        step.rows,
    ).where(key.not_in(sa.select(undo.c.row_id)))
    connection.execute(undo.insert().from_select(list(UNDO_COLUMNS), chosen))  # rows that came since
    ours = sa.select(made.c.vector_id).where(made.c.vector_id == vector_id).exists()
    embedded_ones = sa.select(made.c.vector_id).where(made.c.vector_id == vector_id, made.c.sure).exists()
    update = _of_collection(table.update().values({version.name: new}).where(embedded_ones, other), table, step.rows)
    count = connection.execute(update).rowcount
    _put_back(connection, table, undo, step, only=sa.not_(ours))
    made.drop(connection)
    return int(count)


def _reopen(connection: sa.Connection, table: sa.Table, undo: sa.Table, step: SetModel) -> int:
    """Before vectors go back: the rows that were set carry no version again."""
    assert step.rows is not None
    if not sa.inspect(connection).has_table(undo.name, schema=undo.schema):
        return 0
    key, version = column_of(table, step.rows.id_column), column_of(table, step.rows.version_column)
    ours = sa.select(undo.c.row_id).where(undo.c.row_id == key).exists()
    update = table.update().values({version.name: _none(version)}).where(ours, version == step.embed.identity.version)
    return int(connection.execute(update).rowcount)


def _restore(connection: sa.Connection, table: sa.Table, undo: sa.Table, step: SetModel) -> int:
    """Put the old versions back and remove the undo table. Rows that somebody gave another version keep it."""
    if not sa.inspect(connection).has_table(undo.name, schema=undo.schema):
        return 0
    count = _put_back(connection, table, undo, step)
    undo.drop(connection)
    return count


def _put_back(connection: sa.Connection, table: sa.Table, undo: sa.Table, step: SetModel, only: Any = None) -> int:
    assert step.rows is not None
    key, version = column_of(table, step.rows.id_column), column_of(table, step.rows.version_column)
    none = _none(version)
    ours = [version.is_(None) if none is None else version == none]
    if only is not None:
        ours.append(only)
    old = sa.select(undo.c.old_version).where(undo.c.row_id == key).scalar_subquery()
    held = sa.select(undo.c.row_id).where(undo.c.row_id == key).exists()
    return int(connection.execute(table.update().values({version.name: old}).where(held, *ours)).rowcount)


def undo_rows(database: Database, rows: VersionRows, undo_table: str) -> int | None:
    """Rows of the undo table; None when there is none, or when a table of that name is not one of ours."""
    schema = rows.table.rpartition(".")[0] or None
    with database.transaction() as connection:
        inspector = sa.inspect(connection)
        if not inspector.has_table(undo_table, schema=schema):
            return None
        if {column["name"] for column in inspector.get_columns(undo_table, schema=schema)} != set(UNDO_COLUMNS):
            return None
        return _count(connection, sa.table(undo_table, schema=schema))


def forget(database: Database, rows: VersionRows, undo_table: str) -> None:
    """Remove the undo table: the old versions cannot be put back any more."""
    if undo_rows(database, rows, undo_table) is None:
        return
    schema = rows.table.rpartition(".")[0] or None
    with database.transaction() as connection:
        sa.Table(undo_table, sa.MetaData(), schema=schema).drop(connection, checkfirst=True)


def _count(connection: sa.Connection, table: sa.FromClause) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def _of_collection(statement: Any, table: sa.Table, rows: VersionRows) -> Any:
    if rows.collection_column is None:
        return statement
    return statement.where(column_of(table, rows.collection_column) == rows.collection)


def _undo_table(name: str, table: sa.Table, rows: VersionRows) -> sa.Table:
    key, version = column_of(table, rows.id_column), column_of(table, rows.version_column)
    return sa.Table(
        name, sa.MetaData(),
        sa.Column("row_id", key.type, primary_key=True, autoincrement=False), sa.Column("old_version", version.type),
        schema=table.schema,
    )  # fmt: skip


def _none(version: sa.Column[Any]) -> str | None:
    """What a row without a version carries: NULL, or the empty text where the column takes no NULL."""
    return None if version.nullable else ""


def _set_info(connection: sa.Connection, table: sa.Table, step: SetModel, stamp: str) -> bool:
    """The info becomes `after`. Permanent when somebody else changed it before it was set; when it is put back, keys that
    somebody added stay, and an info of another model is left alone (False)."""
    assert step.info is not None
    held = _read_info(connection, table, step.info, lock=connection.dialect.name != "sqlite")
    after = step.after
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
        mine = {*INFO_KEYS, "updated_at"}
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
    value: Any = after if after is None or isinstance(column.type, sa.JSON) else json.dumps(after)
    if after is None and isinstance(column.type, sa.JSON):
        value = sa.null()
    where = column_of(table, step.info.id_column) == step.info.id
    connection.execute(table.update().values({column.name: value}).where(where))
    return True


def _timeless(value: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if value is None else {key: item for key, item in value.items() if key != "updated_at"}


def _read_info(
    connection: sa.Connection, table: sa.Table, row: InfoRow, *, lock: bool = False
) -> dict[str, Any] | None:
    column = column_of(table, row.info_column)
    query = sa.select(column).where(column_of(table, row.id_column) == row.id)
    found = connection.execute(query.with_for_update() if lock else query).all()
    if len(found) != 1:
        raise NotFound(
            "No such knowledge base" if not found else "Several rows are one knowledge base",
            f"{row.table}.{row.id_column} = {row.id!r}: {len(found)} rows",
        )
    value = found[0][0]
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError as exc:
            raise Permanent("The model info is no JSON", f"{row.table}.{row.info_column} of {row.id!r}: {exc}") from exc
    if value is not None and not isinstance(value, dict):
        raise Permanent("The model info is no JSON object", f"{row.table}.{row.info_column} of {row.id!r} is {value!r}")
    return value
