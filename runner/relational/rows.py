"""Rows of a table: read in pages in the order of a key, and copied range by range inside of the database.

All comparisons are made by the database: its order of text, and what a value becomes in a column, are its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from runner.documents.database import Database
from runner.errors import NotFound, Permanent
from runner.points import KeyRange, PointId
from runner.relational import quoted
from runner.relational.schema import Described, Native
from runner.relational.shape import Shape, shape

#: Tables that inherit from one that is not partitioned.
_HEIRS = """
SELECT i.inhrelid::regclass::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhparent
WHERE c.oid = to_regclass(%(name)s) AND c.relkind = 'r' ORDER BY 1
"""
#: All rows.
ALL = KeyRange()


def key_column(described: Described, wanted: str | None) -> str:
    """The column whose order rows are read in: `wanted`, or the primary key. Permanent when it is not unique, or can be NULL."""
    if wanted is None and len(described.primary_key) != 1:
        raise Permanent(
            "A table has no primary key of one column", f"{len(described.primary_key)} columns",
            "Name a column that is unique and never NULL as key",
        )  # fmt: skip
    name = wanted if wanted is not None else described.primary_key[0]
    column = next((one for one in described.columns if one.name == name), None)
    if column is None:
        raise Permanent("No such column", name, "Name a column of the table as key")
    primary = tuple(described.primary_key) == (name,)
    if not primary and (column.nullable or (name,) not in [tuple(one) for one in described.uniques]):
        raise Permanent(
            "A key has to be unique and never NULL", name, "Name another column, or give this one a unique constraint"
        )
    return name


def obstacles(database: Database, table: str) -> list[str]:
    """Why the rows of a table cannot be gone through by its key."""
    if database.engine.dialect.name != "postgresql":
        return []
    with database.reading() as connection:
        found = connection.exec_driver_sql(_HEIRS, {"name": quoted(connection.dialect, table)}).scalars().all()
    return [f"{table} has the rows of tables that inherit from it, too ({', '.join(found)}), and its key says nothing of those"] if found else []  # fmt: skip


def refuse(database: Database, table: str) -> None:
    """Permanent where there are obstacles."""
    if found := obstacles(database, table):
        raise Permanent(
            "A table cannot be read by its key", "; ".join(found), "Name each of those tables in a step of its own"
        )


def cut(database: Database, table: str, key: str, where: str | None, parts: int) -> list[KeyRange]:
    """`parts` ranges of about as many rows each; fewer where there are not so many rows."""
    if parts < 2:
        return [KeyRange()]
    found = shape(database, table)
    column, chosen = found.table.c[key], _chosen(found, where)
    with database.reading() as connection:
        rows = connection.execute(sa.select(sa.func.count()).select_from(found.table).where(*chosen)).scalar_one()
        edges: list[PointId] = []
        for part in range(1, parts):
            query = sa.select(found.read(key)).where(*chosen).order_by(column).limit(1).offset(rows * part // parts)
            edge = connection.execute(query).scalar()
            if edge is not None and edge not in edges and rows * part // parts:
                edges.append(_told(edge, table, key))
    return [KeyRange(low, high) for low, high in zip([None, *edges], [*edges, None], strict=True)]


def pages(
    database: Database, table: str, key: str, columns: Sequence[str] | None, where: str | None,
    keys: KeyRange = ALL, after: PointId | None = None, size: int = 1000,
) -> Iterator[list[dict[str, Any]]]:  # fmt: skip
    """Rows in the order of their keys, `size` at once; each page is a transaction of its own. `columns` None: all.

    What `Shape.as_text` says comes as its text. Permanent when a key is neither a number nor text."""
    found = shape(database, table)
    names = list(dict.fromkeys((key, *(columns if columns is not None else found.types))))
    if missing := [name for name in names if name not in found.types]:
        raise NotFound("No such column", f"{', '.join(missing)} of {table}")
    query = sa.select(*(found.read(name) for name in names)).where(*_chosen(found, where)).order_by(found.table.c[key])
    last = after
    while True:
        with database.reading() as connection:
            answer = connection.execute(query.where(*found.within(key, keys, last)).limit(size))
            page = [dict(zip(names, row, strict=True)) for row in answer]
        if not page:
            return
        last = _told(page[-1][key], table, key)
        _told(page[0][key], table, key)  # where NULL comes first
        yield page
        if len(page) < size:
            return


def edges(
    database: Database, table: str, key: str, where: str | None, keys: KeyRange, after: PointId | None, size: int
) -> Iterator[tuple[PointId | None, PointId, int]]:
    """What a range is copied in: (behind this key, to this one, so many rows)."""
    found = shape(database, table)
    column, last = found.table.c[key], after
    while True:
        query = (
            sa.select(found.read(key)).where(*_chosen(found, where), *found.within(key, keys, last)).order_by(column)
        )
        rows = size
        with database.reading() as connection:
            edge = connection.execute(query.limit(1).offset(size - 1)).scalar()
            if edge is None:
                rest = sa.select(sa.func.count()).select_from(query.order_by(None).subquery())
                rows = connection.execute(rest).scalar_one()
                edge = connection.execute(query.order_by(None).order_by(column.desc()).limit(1)).scalar()
        if not rows:
            return
        edge = _told(edge, table, key)
        yield last, edge, rows
        last = edge
        if rows < size:
            return


def copy_range(
    connection: sa.Connection, source: Shape, target: Shape, columns: Mapping[str, str], unique: Sequence[str],
    chosen: Sequence[Any], *, empty: bool = False,
) -> int:  # fmt: skip
    """INSERT … SELECT of `columns` (target: source), without rows whose `unique` columns the target has; `empty`: it has none
    of them, which saves half of the time. Returns the rows that were made."""
    wanted = [source.table.c[name] for name in columns.values()]
    rows = sa.select(*wanted).where(*chosen)
    statement: Any
    if empty:
        statement = sa.insert(target.table).from_select([*columns], rows)
    elif target.dialect.name in ("postgresql", "sqlite"):
        dialect: Any = postgresql if target.postgresql else sqlite
        statement = dialect.insert(target.table).from_select([*columns], rows)
        statement = statement.on_conflict_do_nothing(index_elements=[*unique])
    else:
        there = target.table.alias()
        same = [there.c[name] == source.table.c[columns[name]] for name in unique]
        rows = rows.where(~sa.exists(sa.select(sa.literal(1)).select_from(there).where(*same)))
        statement = sa.insert(target.table).from_select([*columns], rows)
    return int(connection.execute(statement.execution_options(preserve_rowcount=True)).rowcount)


def copied_wrong(
    connection: sa.Connection, source: Shape, target: Shape, columns: Mapping[str, str], unique: Sequence[str],
    key: str, chosen: Sequence[Any], most: int,
) -> tuple[int, list[tuple[PointId, str]]]:  # fmt: skip
    """Rows of the source that the target does not hold equally: how many, and (key, columns) of the first `most`."""
    # what the user says of the rows names columns of their table alone
    taken = sa.select(
        source.read(key).label("vecrun_key"),
        *(_typed(source, origin, target, name).label(f"vecrun_{name}") for name, origin in columns.items()),
    )
    read, there = taken.where(*chosen).subquery("vecrun_source"), target.table.alias("vecrun_target")
    same = {
        name: _comparable(target, there.c[name], name).is_not_distinct_from(
            _comparable(target, read.c[f"vecrun_{name}"], name)
        )
        for name in columns
    }
    joined = read.outerjoin(there, sa.and_(*(there.c[name] == read.c[f"vecrun_{name}"] for name in unique)))
    missing = there.c[unique[0]].is_(None)
    wrong = sa.select(read.c.vecrun_key, missing, *same.values()).select_from(joined)
    wrong = wrong.where(sa.or_(missing, sa.not_(sa.and_(*same.values()))))
    rows = connection.execute(wrong.limit(most)).all()
    count = len(rows)
    if count == most:
        every = wrong.with_only_columns(sa.literal(1).label("one")).subquery()
        count = connection.execute(sa.select(sa.func.count()).select_from(every)).scalar_one()
    told = []
    for at, gone, *equal in rows:
        names = [name for name, one in zip(same, equal, strict=True) if not one]
        told.append((at, f"no row of {target.name}" if gone else differing(target, names)))
    return count, told


def differing(target: Shape, names: Sequence[str]) -> str:
    """What is said of a row that is another than the one that was made."""
    return f"another value in {', '.join(f'{target.name}.{name}' for name in names)}"


def _chosen(at: Shape, where: str | None) -> list[sa.ColumnElement[Any]]:
    """The user's condition, word for word."""
    if not where:
        return []
    # SQLite looks for a range with one bound of a kind: with + before it, this is none, and ours is taken
    plus = "+" if at.dialect.name == "sqlite" else ""
    return [sa.literal_column(f"{plus}({where})")]


def chosen(
    source: Shape, key: str, where: str | None, keys: KeyRange, after: PointId | None, last: PointId
) -> list[Any]:
    """The rows of one batch that is copied."""
    return [*_chosen(source, where), *source.within(key, keys, after, last)]


def _told(value: Any, table: str, key: str) -> PointId:
    if isinstance(value, int | str) and not isinstance(value, bool):
        return value
    kind = "NULL" if value is None else type(value).__name__
    raise Permanent(
        "A key is neither a number nor text",
        f"{table}.{key} has {kind}",
        "Name another column as key: unique, never NULL",
    )


def _comparable(at: Shape, column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[Any]:
    if at.postgresql and not at.is_comparable(name):
        return sa.cast(column, sa.Text)
    return column


def _typed(source: Shape, origin: str, target: Shape, name: str) -> sa.ColumnElement[Any]:
    """A column of the source as the target's column holds it."""
    column = source.table.c[origin]
    if target.postgresql and source.types[origin] != target.types[name]:
        return sa.cast(column, Native(target.types[name]))
    return column
