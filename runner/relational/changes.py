"""Tables that are made and removed, and what stands in the way of either, or of dropping a column.

All of it happens on a connection of `record.working`. Where a database commits with every such statement, what is there
already is left as it is when a step is repeated.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence

import sqlalchemy as sa

from runner.documents.database import Database
from runner.errors import NotFound, Permanent
from runner.mapping import TableModel
from runner.relational import COMMITS_DDL, execute, number, quoted, schema
from runner.relational import column as quote

#: What depends on a column of PostgreSQL, but for its own default.
_DEPENDING = """
SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid) FROM pg_depend d
JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass(%(table)s) AND a.attname = %(column)s
AND NOT (d.classid = 'pg_constraint'::regclass AND d.objid IN
  (SELECT oid FROM pg_constraint WHERE contype = 'n' AND conrelid = a.attrelid))
AND NOT (d.classid = 'pg_attrdef'::regclass AND d.objid IN
  (SELECT oid FROM pg_attrdef WHERE adrelid = a.attrelid AND adnum = a.attnum)) ORDER BY 1
"""
_ODD = """
SELECT CASE WHEN a.attacl IS NOT NULL THEN 'rights are granted on it alone'
WHEN a.attoptions IS NOT NULL THEN 'it has options of its own'
WHEN a.attinhcount > 0 OR EXISTS (SELECT FROM pg_inherits WHERE inhparent = a.attrelid OR inhrelid = a.attrelid)
THEN 'its table inherits, or has partitions' END
FROM pg_attribute a WHERE a.attrelid = to_regclass(%(table)s) AND a.attname = %(column)s
"""
_REFERRING = """
SELECT c.conrelid::regclass::text, c.conname FROM pg_constraint c
WHERE c.contype = 'f' AND c.confrelid = to_regclass(%(table)s) ORDER BY 1, 2
"""


def create(connection: sa.Connection, models: Sequence[TableModel]) -> int:
    """Make tables with their indexes; how many were made. Permanent, and nothing was made, when one is there already."""
    again = connection.dialect.name in COMMITS_DDL
    there = [model.name for model in models if schema.look(connection, model.name, count=False) is not None]
    if there and not again:
        raise Permanent(
            "A table that is to be made is there already", ", ".join(there),
            "Look whose it is. If the step was done by hand: vecrun stamp. Nothing was changed",
        )  # fmt: skip
    tables = schema.tables_of(models, connection.dialect)
    named = {id(table): model.name for table, model in zip(tables, models, strict=True)}
    missing = [table for table in tables if named[id(table)] not in there]
    if missing:
        missing[0].metadata.create_all(connection, tables=missing, checkfirst=False)
    return len(missing)


def remove(connection: sa.Connection, models: Sequence[TableModel]) -> int:
    """Drop tables that were made; how many there were. Permanent, and nothing was dropped, when another table references one."""
    names = [model.name for model in models]
    held = [text for name in names for text in referring(connection, name, but=names)]
    if held:
        raise Permanent(
            "A table that is to be dropped is referenced by another", "; ".join(held),
            "Remove that foreign key, or its table. Nothing was dropped",
        )  # fmt: skip
    there = [name for name in names if schema.look(connection, name, count=False) is not None]
    tables = dict(zip(names, schema.tables_of(models, connection.dialect), strict=True))
    if there:  # in the order in which they reference each other
        tables[there[0]].metadata.drop_all(connection, tables=[tables[name] for name in there], checkfirst=False)
    if held := _left_views(connection, there):
        raise Permanent(
            "A table that is to be dropped is read by a view", "; ".join(held),
            "Drop the view. The table stays as it is",
        )  # fmt: skip
    return len(there)


def referring(connection: sa.Connection, table: str, *, but: Collection[str] = ()) -> list[str]:
    """Foreign keys of other tables that point at a table, each in words."""
    if connection.dialect.name == "postgresql":
        query = {"table": quoted(connection.dialect, table)}
        # both names as PostgreSQL writes them
        own = {connection.exec_driver_sql("SELECT to_regclass(%(n)s)::text", {"n": quoted(connection.dialect, one)}).scalar()
               for one in (table, *but)}  # fmt: skip
        rows = connection.exec_driver_sql(_REFERRING, query).all()
        return [f"{child} references {table} ({name})" for child, name in rows if child not in own]
    found, skipped = [], {table.lower(), *(name.lower() for name in but)}
    for other in sa.inspect(connection).get_table_names(table.rpartition(".")[0] or None):
        if other.lower() in skipped or (shape := schema.look(connection, other, count=False)) is None:
            continue
        found += [f"{other} {one}" for one in shape.foreign_keys if one.table.lower() == table.lower()]
    return found


def _left_views(connection: sa.Connection, gone: Collection[str]) -> list[str]:
    """Views of SQLite that tables were taken from: it lets that happen."""
    if connection.dialect.name != "sqlite" or not gone:
        return []
    found = []
    for (view,) in execute(connection, "SELECT name FROM sqlite_master WHERE type = 'view'").all():
        try:
            execute(connection, f"EXPLAIN SELECT * FROM {quoted(connection.dialect, view)}").close()  # noqa: S608
        except sa.exc.OperationalError as exc:
            found += [f"{view} reads {name}" for name in gone if str(exc.orig).lower().endswith(f".{name.lower()}")]
    return found


def obstacles(database: Database, table: str, column: str) -> list[str]:
    """Why a column cannot be dropped so that it could come back as it was; empty when it can. NotFound."""
    with database.reading() as connection:
        return obstacles_in(connection, table, column)


def obstacles_in(connection: sa.Connection, table: str, column: str) -> list[str]:
    """The same in a transaction that is open."""
    shape = schema.look(connection, table, count=False)
    if shape is None or (found := shape.column(column)) is None:
        raise NotFound("No such column", f"{table}.{column}")
    reasons = []
    if column in shape.primary_key:
        reasons.append("it is in the primary key")
    reasons += _nameless(connection, shape)
    if found.generated:
        reasons.append("it is generated")
    if any(column in one for one in shape.uniques):
        reasons.append("it is unique")
    reasons += [f"it references another table: {one}" for one in shape.foreign_keys if column in one.columns]
    reasons += [f"it is in the index {one.name}" for one in shape.indexes if column in one.columns]
    if connection.dialect.name == "postgresql":
        place = {"table": quoted(connection.dialect, table), "column": column}
        known = [one.name for one in shape.indexes if column in one.columns]
        depending = [str(row[0]) for row in connection.exec_driver_sql(_DEPENDING, place)]
        if not reasons or known:
            reasons += [f"{text} needs it" for text in depending if not any(f"index {name}" in text for name in known)]
        reasons += [str(row[0]) for row in connection.exec_driver_sql(_ODD, place) if row[0]]
    else:
        reasons += [f"a foreign key needs it: {text}" for text in referring(connection, table) if f"({column})" in text]
        if connection.dialect.name == "sqlite" and not reasons:
            reasons += _tried(connection, table, column)
        elif connection.dialect.name != "sqlite":
            schema_name, _, bare = table.rpartition(".")
            checks = sa.inspect(connection).get_check_constraints(bare, schema_name or None)
            reasons += [f"the check {one['name']} needs it" for one in checks if column in one["sqltext"]]
    return reasons


def _nameless(connection: sa.Connection, shape: schema.Described) -> list[str]:
    """SQLite lets NULL stand in a primary key: a value of such a row would find no row again."""
    found = []
    for name in shape.primary_key:
        if (key := shape.column(name)) is not None and key.nullable and connection.dialect.name == "sqlite":
            table, c = quoted(connection.dialect, shape.name), quote(connection.dialect, name)
            if rows := number(connection, f"SELECT count(*) FROM {table} WHERE {c} IS NULL"):  # noqa: S608
                reason = f"{rows:,} {'row has' if rows == 1 else 'rows have'} no key: {name} is NULL there"
                found.append(reason)
    return found


def _tried(connection: sa.Connection, table: str, column: str) -> list[str]:
    """SQLite's own word, of a copy of the schema in memory: indexes, views, triggers and checks that need the column."""
    rows = connection.exec_driver_sql("SELECT type, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid").all()
    memory = sqlite3.connect(":memory:", isolation_level=None)
    try:
        for kind in ("table", "index", "view", "trigger"):
            for _, sql in (row for row in rows if row[0] == kind):
                try:
                    memory.execute(sql)
                except sqlite3.Error:  # what a virtual table has made already, or SQLite's own
                    continue
        try:
            memory.execute(
                f"ALTER TABLE {quoted(connection.dialect, table)} DROP COLUMN {quoted(connection.dialect, column)}"
            )
        except sqlite3.Error as exc:
            return [str(exc)]
        return []
    finally:
        memory.close()
