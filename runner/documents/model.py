"""Which model the vectors are of, in the user's relational tables: a version a chunk; `info` has that of a knowledge base.

Marks are taken away before vectors change and set after, in one transaction each; the old ones stand in an undo table
meanwhile. Each of them may be repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from runner.documents.chunks import column_of, converter, plain_type, stands_for
from runner.documents.database import Database
from runner.documents.info import set_info
from runner.plan import SetModel, VersionRows
from runner.points import PointId

#: Columns of the undo table of versions.
UNDO_COLUMNS = ("row_id", "old_version")
CHUNK = 500


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
    """Empty if the version column can hold this version and every row has an id of its own, else why not. Conditions of
    the table (CHECK) are not looked at."""
    table = database.table(rows.table)
    column, key = column_of(table, rows.version_column), column_of(table, rows.id_column)
    place = f"{rows.table}.{rows.version_column} is {column.type}"
    if not isinstance(column.type, sa.String | sa.types.NullType):
        return f"{place}, and a version is text"
    needed = [version, *([""] if not column.nullable else [])]  # a row without a version carries the empty text there
    if isinstance(column.type, sa.Enum) and (lacking := [one for one in needed if one not in column.type.enums]):
        return f"{place}, which has no label {lacking[0]!r}. Add it to the type"
    length = getattr(column.type, "length", None)
    if not isinstance(column.type, sa.Enum) and length is not None and length < len(version):
        return f"{place}; {version!r} has {len(version)} characters. Widen it, or give the model a shorter version: in vecrun.yaml"
    for foreign in column.foreign_keys:
        parent, _, name = foreign.target_fullname.rpartition(".")
        there = column_of(database.table(parent), name)
        with database.transaction() as connection:
            for one in needed:
                if connection.execute(sa.select(there).where(there == one).limit(1)).first() is None:
                    return f"{rows.table}.{rows.version_column} refers to {parent}.{name}, which has no {one!r}. Add it there"
    if [one.name for one in table.primary_key.columns] != [key.name]:
        with database.transaction() as connection:
            count, different = connection.execute(
                sa.select(sa.func.count(), sa.func.count(key.distinct())).select_from(table)
            ).one()
        if count != different:
            return (
                f"{rows.table}.{rows.id_column} does not tell rows apart: {count:,} rows, {different:,} values. "
                "Name the primary key in documents.id_column"
            )
    return ""


def named(database: Database, rows: VersionRows) -> int:
    """How many points the rows name."""
    table = database.table(rows.table)
    count = sa.select(sa.func.count(column_of(table, rows.vector_id_column).distinct())).select_from(table)
    with database.transaction() as connection:
        return int(connection.execute(_of_collection(count, table, rows)).scalar_one())


def versions(database: Database, rows: VersionRows, ids: Sequence[PointId]) -> dict[PointId, str | None]:
    """id -> version, for the points that a row names; None where several rows say different ones."""
    table = database.table(rows.table)
    key, version = column_of(table, rows.vector_id_column), column_of(table, rows.version_column)
    convert, found = converter(key), dict[PointId, str | None]()
    with database.transaction() as connection:
        for start in range(0, len(ids), CHUNK):
            some = ids[start : start + CHUNK]
            wanted, find = {convert(one) for one in some} - {None}, stands_for(some, convert)
            query = sa.select(key, version).where(key.in_(list(wanted)))
            for row_id, value in connection.execute(_of_collection(query, table, rows)):
                if (point_id := find(row_id)) is None:
                    continue
                carried = None if value is None else _told(value)
                found[point_id] = carried if found.get(point_id, carried) == carried else None
    return found


def counts(database: Database, rows: VersionRows) -> dict[str, int]:
    """version -> rows; "" for those without one."""
    table = database.table(rows.table)
    version = column_of(table, rows.version_column)
    query = _of_collection(sa.select(version, sa.func.count()).group_by(version), table, rows)
    with database.transaction() as connection:
        return {_told(value) if value is not None else "": int(count) for value, count in connection.execute(query)}


def _told(value: Any) -> str:
    """A version as a row carries it: char(n) pads it with blanks."""
    return str(value).rstrip(" ")


def set_model(
    database: Database, step: SetModel, embedded: Iterable[Sequence[PointId]], stamp: str,
    unsure: Iterable[Sequence[PointId]] = (),
) -> Changed:  # fmt: skip
    """Carry out a phase, in one transaction. `embedded`: ids of points that the model made, in pages (again: that this
    run has embedded); `stamp` is the `updated_at` of a new info; `unsure`: ids of points that were being written in a
    crash, whose rows stay without."""
    chunks = database.table(step.rows.table) if step.rows is not None else None
    bases = database.table(step.info.table) if step.info is not None else None
    with database.transaction() as connection:
        rows = 0
        if step.rows is not None and chunks is not None:
            table, undo = chunks, _undo_table(step.undo_table, chunks, step.rows)
            match step.phase:
                case "open":
                    undo.create(connection, checkfirst=True)
                case "begin":
                    rows = _take_away(connection, table, undo, step)
                case "end" | "again":
                    rows = _set(connection, table, undo, step, embedded, unsure)
                case "reopen":
                    rows = _reopen(connection, table, undo, step)
                case "restore":
                    rows = _restore(connection, table, undo, step)
        changed = False
        if bases is not None and step.phase in ("end", "reopen"):
            changed = set_info(connection, bases, step, stamp)
        return Changed(rows, changed)


def open_rows(database: Database, step: SetModel, ids: Sequence[PointId]) -> None:
    """Right before these points get vectors: their rows of another version carry none from now on, in one transaction.
    Old versions go into the undo table, unless one is there."""
    rows = step.rows
    assert rows is not None
    table = database.table(rows.table)
    key, vector_id = column_of(table, rows.id_column), column_of(table, rows.vector_id_column)
    version, undo = column_of(table, rows.version_column), _undo_table(step.undo_table, table, rows)
    convert, other = converter(vector_id), _other(version, step)
    with database.transaction() as connection:
        undo.create(connection, checkfirst=True)
        for start in range(0, len(ids), CHUNK):
            wanted = {convert(one) for one in ids[start : start + CHUNK]} - {None}
            chosen = _of_collection(sa.select(key, version).where(vector_id.in_(list(wanted)), other), table, rows)
            chosen = chosen.where(~sa.select(undo.c.row_id).where(undo.c.row_id == key).exists())
            connection.execute(undo.insert().from_select(list(UNDO_COLUMNS), chosen))
            update = table.update().values({version.name: _none(version)})
            connection.execute(_of_collection(update.where(vector_id.in_(list(wanted)), other), table, rows))


def _other(version: sa.Column[Any], step: SetModel) -> sa.ColumnElement[bool]:
    """Whether a row is of another version than the model's, or of none."""
    return sa.or_(version.is_(None), version != step.embed.identity.version)


def _take_away(connection: sa.Connection, table: sa.Table, undo: sa.Table, step: SetModel) -> int:
    """Rows of another version carry none from now on."""
    assert step.rows is not None
    key, version = column_of(table, step.rows.id_column), column_of(table, step.rows.version_column)
    undo.create(connection, checkfirst=True)
    chosen = _of_collection(sa.select(key, version).where(_other(version, step)), table, step.rows)
    chosen = chosen.where(key.not_in(sa.select(undo.c.row_id)))
    connection.execute(undo.insert().from_select(list(UNDO_COLUMNS), chosen))
    taken = sa.select(undo.c.row_id).where(undo.c.row_id == key).exists()
    connection.execute(table.update().values({version.name: _none(version)}).where(taken, _other(version, step)))
    return _count(connection, undo)


def _set(
    connection: sa.Connection, table: sa.Table, undo: sa.Table, step: SetModel, embedded: Iterable[Sequence[PointId]],
    unsure: Iterable[Sequence[PointId]],
) -> int:  # fmt: skip
    """Rows whose point was embedded get the version; the others get back what they had. again: nothing is put back, and
    a row that somebody has given another version since keeps it."""
    assert step.rows is not None
    key, vector_id = column_of(table, step.rows.id_column), column_of(table, step.rows.vector_id_column)
    version, new = column_of(table, step.rows.version_column), step.embed.identity.version
    convert = converter(vector_id)
    undo.create(connection, checkfirst=True)
    made = sa.Table(
        f"{step.undo_table}_made", sa.MetaData(), sa.Column("vector_id", plain_type(vector_id), primary_key=True),
        sa.Column("sure", sa.Boolean), schema=table.schema,
    )  # fmt: skip
    made.create(connection)
    for pages, sure in ((embedded, True), (unsure, False)):
        for page in pages:
            ids = {convert(one) for one in page} - {None}
            if ids:
                connection.execute(made.insert(), [{"vector_id": one, "sure": sure} for one in ids])
    other = _other(version, step)
    if step.phase == "again":
        before = sa.select(undo.c.old_version).where(undo.c.row_id == key).scalar_subquery()
        none = _none(version)
        without = version.is_(None) if none is None else version == none
        other = sa.and_(other, sa.or_(without, key.not_in(sa.select(undo.c.row_id)), version == before))
    chosen = _of_collection(
        sa.select(key, version).join_from(table, made, vector_id == made.c.vector_id).where(made.c.sure, other),
        table,
        step.rows,
    ).where(key.not_in(sa.select(undo.c.row_id)))
    connection.execute(undo.insert().from_select(list(UNDO_COLUMNS), chosen))  # rows that came since
    # the column of the user's table first: its collation is the one that counts
    ours = sa.select(made.c.vector_id).where(vector_id == made.c.vector_id).exists()
    embedded_ones = sa.select(made.c.vector_id).where(vector_id == made.c.vector_id, made.c.sure).exists()
    update = _of_collection(table.update().values({version.name: new}).where(embedded_ones, other), table, step.rows)
    count = connection.execute(update).rowcount
    if step.phase == "end":
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
        sa.Column("row_id", plain_type(key), primary_key=True, autoincrement=False),
        sa.Column("old_version", plain_type(version)), schema=table.schema,
    )  # fmt: skip


def _none(version: sa.Column[Any]) -> str | None:
    """What a row without a version carries: NULL, or the empty text where the column takes no NULL."""
    return None if version.nullable else ""
