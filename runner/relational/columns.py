"""A column that is dropped, with its values in an undo table from the same transaction on, and that comes back.

PostgreSQL keeps type, default, collation, NOT NULL and comment; SQLite the words of its definition. It comes back as the
last column of its table, in both.
"""

# Names in SQL are quoted by `quoted` and `quote`; values are parameters.
# ruff: noqa: S608

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from runner.documents.database import Database
from runner.errors import NotFound, Permanent
from runner.relational import column as quote
from runner.relational import execute, number, quoted, schema
from runner.relational.changes import obstacles_in
from runner.relational.triggers import without_triggers

_COMMENT = re.compile(r"""('(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^]]*\])|--[^\n]*|/\*.*?\*/""", re.DOTALL)
_DEFINITION = """
SELECT format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS not_null,
pg_get_expr(d.adbin, d.adrelid) AS "default", col_description(a.attrelid, a.attnum) AS comment,
(SELECT conname FROM pg_constraint WHERE contype = 'n' AND conrelid = a.attrelid AND conkey = ARRAY[a.attnum]) AS named,
CASE WHEN a.attstorage <> t.typstorage THEN a.attstorage::text END AS storage, coalesce(a.attstattarget, -1) AS statistics,
nullif(to_jsonb(a) ->> 'attcompression', '') AS compression,
CASE WHEN a.attcollation <> t.typcollation THEN
  (SELECT quote_ident(n.nspname) || '.' || quote_ident(c.collname) FROM pg_collation c
   JOIN pg_namespace n ON n.oid = c.collnamespace WHERE c.oid = a.attcollation) END AS collation
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = to_regclass(%(table)s) AND a.attname = %(column)s
"""

#: Defaults of SQLite that are no expression. A name is a text, but for those of the time, which every row has its own of.
_LITERAL = re.compile(
    r"""(?!current_(time|date|timestamp)$)([xX]?'(?:[^']|'')*'|"(?:[^"]|"")*"|[+-]?[\w.]+)""", re.IGNORECASE
)
_STORAGE = {"p": "PLAIN", "e": "EXTERNAL", "m": "MAIN", "x": "EXTENDED"}
_COMPRESSION = {"p": "pglz", "l": "lz4"}  # since PostgreSQL 14


@dataclass(frozen=True)
class Restored:
    """What became of the rows: values that are back, rows that were deleted since, rows that came since."""

    values: int
    deleted: int
    new: int


def drop(
    connection: sa.Connection, table: str, column: str, key: Sequence[str], undo: str, *, again: bool = False
) -> tuple[int, dict[str, Any]]:
    """Drop a column; rows that are kept of it, and its definition for `restore`. Permanent, and nothing was changed, when
    something needs the column. `again`: a try before may have died halfway, where the database could not undo it."""
    t, c, u = quoted(connection.dialect, table), quote(connection.dialect, column), quoted(connection.dialect, undo)
    if connection.dialect.name == "postgresql":
        execute(connection, f"LOCK TABLE {t} IN ACCESS EXCLUSIVE MODE")
    if reasons := obstacles_in(connection, table, column):
        raise Permanent(
            "The column cannot be dropped so that it could come back", f"{table}.{column}: {'; '.join(reasons)}",
            "Remove what needs it in a step before. Nothing was changed",
        )  # fmt: skip
    if schema.look(connection, undo, count=False) is not None:
        if not again:
            raise Permanent(
                "A table of this name is there already", f"{undo} is to keep the values of {table}.{column}"
            )
        execute(connection, f"DROP TABLE {u}")
    shape = schema.look(connection, table, count=False)
    assert shape is not None
    definition = _definition(connection, table, column) | {"last": is_last(shape, column)}
    keys = ", ".join(quote(connection.dialect, name) for name in key)
    copied = f"SELECT {keys}, {c} INTO {u} FROM {t}" if connection.dialect.name == "mssql" else (
        f"CREATE TABLE {u} AS SELECT {keys}, {c} FROM {t}"
    )  # fmt: skip
    execute(connection, copied)
    index = quote(connection.dialect, f"{undo.rpartition('.')[2][:50]}_key")
    execute(connection, f"CREATE UNIQUE INDEX {index} ON {u} ({keys})")
    rows = number(connection, f"SELECT count(*) FROM {u}")
    if rows != number(connection, f"SELECT count(*) FROM {t}"):
        raise Permanent("Not every value of the column was kept", f"{table}.{column}", "Nothing was changed")
    before = _text(connection, table)
    execute(connection, f"ALTER TABLE {t} DROP COLUMN {c}")
    if before:
        after = _text(connection, table)
        start, end = _added(before, after, column)
        definition |= {"words": _COMMENT.sub(r"\1", before[start:end]).strip(), "before": before, "after": after}
    return rows, definition


def restore(
    connection: sa.Connection, table: str, column: str, key: Sequence[str], undo: str, definition: dict[str, Any]
) -> Restored:
    """Bring a column back with its values and drop the undo table. Rows that came since have its default, or NULL.

    Permanent, and nothing was changed: the undo table is gone, a column of this name is there, the column takes no NULL and has
    no default for rows that came since, or a value did not come back.
    """
    dialect = connection.dialect
    t, c, u = quoted(dialect, table), quote(dialect, column), quoted(dialect, undo)
    shape = schema.look(connection, table, count=False)
    if shape is None or schema.look(connection, undo, count=False) is None:
        gone = undo if shape is not None else table
        raise NotFound("A table that the way back needs is gone", f"{gone}: {table}.{column} cannot come back")
    if dialect.name == "postgresql":
        execute(connection, f"LOCK TABLE {t} IN ACCESS EXCLUSIVE MODE")
    if shape.column(column) is not None:
        raise Permanent(
            "A column of this name is there already", f"{table}.{column} was dropped, and made anew since",
            "Rename or drop the new one. Nothing was changed",
        )  # fmt: skip
    same = " AND ".join(f"{u}.{quote(dialect, name)} = {t}.{quote(dialect, name)}" for name in key)
    saved = f"EXISTS (SELECT 1 FROM {u} WHERE {same})"
    new = number(connection, f"SELECT count(*) FROM {t} WHERE NOT {saved}")
    deleted = number(connection, f"SELECT count(*) FROM {u} WHERE NOT EXISTS (SELECT 1 FROM {t} WHERE {same})")
    if new and definition["not_null"] and definition["default"] is None:
        raise Permanent(
            "Rows came since that the column has no value for", f"{table}.{column} is NOT NULL: {new:,} rows",
            "Take these rows away, and put them back after the rollback. Nothing was changed",
        )  # fmt: skip
    text = _text(connection, table)
    with without_triggers(connection, table):
        _ADD.get(dialect.name, _add)(
            connection, t, c, definition, f"WHERE {saved}", f"(SELECT {u}.{c} FROM {u} WHERE {same})"
        )
    if dialect.name == "sqlite":
        _reword(connection, table, column, definition, text)
    _compare(connection, t, c, u, same, f"{table}.{column}")
    found = _definition(connection, table, column)
    if dialect.name in _ADD and any(definition.get(name) != value for name, value in found.items()):
        raise Permanent("The column did not come back as it was", f"{table}.{column}", "Nothing was changed")
    execute(connection, f"DROP TABLE {u}")
    return Restored(number(connection, f"SELECT count(*) FROM {t}") - new, deleted, new)


def without_row(database: Database, table: str, column: str, key: Sequence[str], undo: str) -> int:
    """Values that an undo table keeps and whose row is not there any more: they would not come back."""
    dialect = database.engine.dialect
    t, c, u = quoted(dialect, table), quote(dialect, column), quoted(dialect, undo)
    same = " AND ".join(f"{u}.{quote(dialect, name)} = {t}.{quote(dialect, name)}" for name in key)
    query = f"SELECT count(*) FROM {u} WHERE {c} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {t} WHERE {same})"
    with database.reading() as connection:
        return number(connection, query)


def is_last(shape: schema.Described, column: str) -> bool:
    """Whether a column is the last of its table, where it comes back to."""
    return shape.columns[-1].name == column


def _add(connection: sa.Connection, t: str, c: str, definition: dict[str, Any], where: str, value: str) -> None:
    """In the SQL that most understand: the type, then the values. NOT NULL stays away where it has no default."""
    default = "" if definition["default"] is None else f" DEFAULT {definition['default']}"
    execute(connection, f"ALTER TABLE {t} ADD COLUMN {c} {definition['type']}{default}")
    execute(connection, f"UPDATE {t} SET {c} = {value} {where}")


def _add_postgresql(
    connection: sa.Connection, t: str, c: str, definition: dict[str, Any], where: str, value: str
) -> None:
    collation = f" COLLATE {definition['collation']}" if definition["collation"] else ""
    execute(connection, f"ALTER TABLE {t} ADD COLUMN {c} {definition['type']}{collation}")
    if definition.get("compression") is not None:
        execute(
            connection, f"ALTER TABLE {t} ALTER COLUMN {c} SET COMPRESSION {_COMPRESSION[definition['compression']]}"
        )
    execute(connection, f"UPDATE {t} SET {c} = {value} {where}")
    if definition["default"] is not None:
        execute(connection, f"ALTER TABLE {t} ALTER COLUMN {c} SET DEFAULT {definition['default']}")
        execute(connection, f"UPDATE {t} SET {c} = DEFAULT {where.replace('WHERE EXISTS', 'WHERE NOT EXISTS', 1)}")
    if definition["named"]:  # since PostgreSQL 18
        name = quote(connection.dialect, definition["named"])
        execute(connection, f"ALTER TABLE {t} ADD CONSTRAINT {name} NOT NULL {c}")
    elif definition["not_null"]:
        execute(connection, f"ALTER TABLE {t} ALTER COLUMN {c} SET NOT NULL")
    if definition["storage"] is not None:
        execute(connection, f"ALTER TABLE {t} ALTER COLUMN {c} SET STORAGE {_STORAGE[definition['storage']]}")
    if definition["statistics"] >= 0:
        execute(connection, f"ALTER TABLE {t} ALTER COLUMN {c} SET STATISTICS {definition['statistics']}")
    if definition["comment"] is not None:
        words = sa.literal(definition["comment"]).compile(
            dialect=connection.dialect, compile_kwargs={"literal_binds": True}
        )
        execute(connection, f"COMMENT ON COLUMN {t}.{c} IS {str(words).replace('%%', '%')}")


def _add_sqlite(connection: sa.Connection, t: str, c: str, definition: dict[str, Any], where: str, value: str) -> None:
    """Without its constraints first: they may not hold before the values are there. A default is given to new rows where it is
    written, as its words can mean another thing elsewhere: "name" is a text there, and a column in an UPDATE."""
    bare, default = f"ALTER TABLE {t} ADD COLUMN {c} {definition['type']}", definition["default"]
    literal = default is not None and _LITERAL.fullmatch(default)
    execute(connection, f"{bare} DEFAULT {default}" if literal else bare)
    execute(connection, f"UPDATE {t} SET {c} = {value} {where}")
    if default is not None and not literal:
        # each row is written: one that is shorter than its table has the default of the definition that comes later
        execute(connection, f"UPDATE {t} SET {c} = {default} {where.replace('WHERE EXISTS', 'WHERE NOT EXISTS', 1)}")


_ADD = {"postgresql": _add_postgresql, "sqlite": _add_sqlite}


def _reword(connection: sa.Connection, table: str, column: str, definition: dict[str, Any], without: str) -> None:
    """Give a column of SQLite the words of its definition: constraints and defaults are nothing but the text of the schema.
    `without`: the text of the table before the column was added. A table that nobody changed since gets its own text back."""
    schema_name, _, name = table.rpartition(".")
    prefix = quote(connection.dialect, schema_name or "main")
    text = _text(connection, table)
    start, end = _added(text, without, column)
    text = text[:start] + definition["words"] + text[end:]
    if definition["last"] and without == definition["after"]:
        text = definition["before"]
    version = number(connection, f"PRAGMA {prefix}.schema_version")
    execute(connection, "PRAGMA writable_schema=ON")
    try:
        update = f"UPDATE {prefix}.sqlite_master SET sql = ? WHERE type = 'table' AND lower(name) = lower(?)"
        connection.exec_driver_sql(update, (text, name))
        execute(connection, f"PRAGMA {prefix}.schema_version = {version + 1}")
    finally:
        execute(connection, "PRAGMA writable_schema=RESET")  # the schema is read again


def _added(longer: str, shorter: str, column: str) -> tuple[int, int]:
    """Where the definition of a column stands in the text of a table that is otherwise `shorter`."""
    size = len(longer) - len(shorter)
    named = re.compile(
        rf"""[\s,]*(?P<words>["`\[]?{re.escape(column.replace('"', '""'))}["`\]]?(?=[\s,]|$).*?)[\s,]*""",
        re.DOTALL | re.IGNORECASE,
    )
    for at in range(len(shorter) + 1):
        # several places give the same text when both begin alike; at one of them the definition stands as a whole
        if longer[:at] == shorter[:at] and longer[at + size :] == shorter[at:]:
            found = named.fullmatch(longer[at : at + size])
            if found is not None:
                return at + found.start("words"), at + found.end("words")
    raise Permanent("The definition of a column is not understood", column, "Nothing was changed")


def _text(connection: sa.Connection, table: str) -> str:
    """The text of a table in SQLite; empty in others."""
    if connection.dialect.name != "sqlite":
        return ""
    schema_name, _, name = table.rpartition(".")
    query = f"SELECT sql FROM {quote(connection.dialect, schema_name or 'main')}.sqlite_master WHERE type = 'table' AND lower(name) = lower(?)"
    return str(connection.exec_driver_sql(query, (name,)).scalar_one())


def _definition(connection: sa.Connection, table: str, column: str) -> dict[str, Any]:
    """What is compared when the column is back. JSON."""
    if connection.dialect.name == "postgresql":
        place = {"table": quoted(connection.dialect, table), "column": column}
        return dict(connection.exec_driver_sql(_DEFINITION, place).mappings().one())
    shape = schema.look(connection, table, count=False)
    found = shape.column(column) if shape is not None else None
    if found is None:
        raise NotFound("No such column", f"{table}.{column}")
    return {"type": found.type, "not_null": not found.nullable, "default": found.default}


def _compare(connection: sa.Connection, t: str, c: str, u: str, same: str, place: str) -> None:
    """Permanent when a value that was kept is not that of its row."""
    match connection.dialect.name:
        case "postgresql":  # as text: not every type can be compared
            differs = f"{t}.{c}::text IS DISTINCT FROM {u}.{c}::text"
        case "sqlite":
            differs = f"({t}.{c} IS NOT {u}.{c} OR typeof({t}.{c}) <> typeof({u}.{c}))"
        case _:
            one_null = f"({t}.{c} IS NULL AND {u}.{c} IS NOT NULL) OR ({t}.{c} IS NOT NULL AND {u}.{c} IS NULL)"
            differs = f"({t}.{c} <> {u}.{c} OR {one_null})"
    if count := number(connection, f"SELECT count(*) FROM {u} JOIN {t} ON {same} WHERE {differs}"):
        raise Permanent("Values did not come back as they were", f"{place}: {count:,} rows", "Nothing was changed")
