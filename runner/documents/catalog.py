"""What the catalog of PostgreSQL says of a table, how many rows it has, and how large it would be as CSV.

Definitions are written by the server itself, under the search path of the login: a type or table outside of it comes
with its schema.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, get_args

from runner.documents.shape import Column, Constraint, Described, Reference, Right, Shape, quoted

if TYPE_CHECKING:
    from runner.documents.postgres import Connection

#: About how many rows and bytes of a sample are read at most.
_SAMPLE_ROWS, _SAMPLE_BYTES = 500, 4 * 2**20

_KINDS = {"p": "primary key", "u": "unique", "f": "foreign key", "c": "check", "x": "exclusion"}
_ON_DELETE = {"a": "no action", "r": "restrict", "c": "cascade", "n": "set null", "d": "set default"}
_IDENTITY = {"": "", "a": "always", "d": "by default"}

# the parent of other tables is no plain one: what is read and emptied through it are their rows too
_TABLE = """
SELECT c.oid, d.oid, n.nspname, c.relname, row_security_active(c.oid),
       CASE WHEN c.relkind = 'p' THEN 'partitioned table'
            WHEN c.relkind = 'r' AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid) THEN 'table'
            ELSE 'other' END, c.relpersistence = 'u'
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, pg_database d
WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND d.datname = current_database()
"""
_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(e.adbin, e.adrelid),
       a.attgenerated <> '', a.attidentity::text, a.attnum,
       CASE WHEN a.attcollation <> t.typcollation THEN coalesce(
         (SELECT format('%%I.%%I', n.nspname, o.collname) FROM pg_collation o JOIN pg_namespace n ON n.oid = o.collnamespace
          WHERE o.oid = a.attcollation), '') ELSE '' END,
       CASE WHEN a.attidentity <> '' THEN coalesce(
         (SELECT format('START WITH %%s INCREMENT BY %%s MINVALUE %%s MAXVALUE %%s CACHE %%s%%s', q.seqstart, q.seqincrement,
                        q.seqmin, q.seqmax, q.seqcache, CASE WHEN q.seqcycle THEN ' CYCLE' ELSE '' END)
          FROM pg_depend d JOIN pg_sequence q ON q.seqrelid = d.objid
          WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = a.attrelid
            AND d.refobjsubid = a.attnum AND d.deptype = 'i'), '') ELSE '' END
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef e ON e.adrelid = a.attrelid AND e.adnum = a.attnum
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_CONSTRAINTS = """
SELECT o.conname, o.contype::text, pg_get_constraintdef(o.oid),
       ARRAY(SELECT a.attname::text FROM unnest(o.conkey) WITH ORDINALITY k (number, place)
             JOIN pg_attribute a ON a.attrelid = o.conrelid AND a.attnum = k.number ORDER BY k.place),
       coalesce((SELECT format('%%s.%%s', n.nspname, c.relname) FROM pg_class c
                 JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = o.confrelid), '')
FROM pg_constraint o WHERE o.conrelid = %s AND o.contype IN ('p', 'u', 'f', 'c', 'x')
ORDER BY position(o.contype::text IN 'puxcf'), o.conname
"""
_INDEXES = """
SELECT pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = %s AND NOT EXISTS (
  SELECT FROM pg_constraint o WHERE o.conindid = i.indexrelid AND o.conrelid = i.indrelid AND o.contype IN ('p', 'u', 'x'))
ORDER BY c.relname
"""
# a partition may be pointed at as well, and is emptied with its table
_REFERENCES = """
WITH tree AS (SELECT %(oid)s::oid AS oid UNION SELECT relid FROM pg_partition_tree(%(oid)s::oid::regclass))
SELECT n.nspname, c.relname, o.conname, o.confdeltype::text,
       has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AND NOT row_security_active(c.oid)
FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE o.contype = 'f' AND o.conparentid = 0 AND o.confrelid IN (SELECT oid FROM tree)
  AND o.conrelid NOT IN (SELECT oid FROM tree) ORDER BY 1, 2, 3
"""

_TRIGGERS = """
SELECT DISTINCT t.tgname FROM pg_trigger t
WHERE (t.tgrelid = %(oid)s::oid OR t.tgrelid IN (SELECT relid FROM pg_partition_tree(%(oid)s::oid::regclass)))
  AND NOT t.tgisinternal AND t.tgenabled <> 'D' AND t.tgtype::int & (4 | 32) <> 0 ORDER BY 1
"""


def shape(connection: Connection, schema: str, table: str, *, counted: bool = False) -> Shape | None:
    """The table, view or foreign table of exactly these names; None when there is none. `counted`: also the rows of tables
    that point at it, where this login may read them."""
    found = connection.execute(_TABLE, (schema, table)).fetchone()
    if found is None:
        return None
    oid, database, _schema, _name, hidden, relation, unlogged = found
    return Shape(
        schema_name=schema, name=table, oid=oid, database=database, hidden_rows=hidden, relation=relation,
        unlogged=unlogged,
        columns=tuple(
            Column(
                name=name, type=kind, not_null=strict, default=default, generated=made, identity=_IDENTITY[identity],
                number=number, collation=collation, counting=counting,
            )
            for name, kind, strict, default, made, identity, number, collation, counting
            in connection.execute(_COLUMNS, (oid,))
        ),
        constraints=tuple(
            Constraint(name=name, kind=_KINDS[kind], definition=text, columns=tuple(columns), references=references)
            for name, kind, text, columns, references in connection.execute(_CONSTRAINTS, (oid,))
        ),
        indexes=tuple(row[0] for row in connection.execute(_INDEXES, (oid,))),
        referenced_by=tuple(_references(connection, oid, counted=counted)),
    )  # fmt: skip


def _references(connection: Connection, oid: int, *, counted: bool) -> list[Reference]:
    found = connection.execute(_REFERENCES, {"oid": oid}).fetchall()
    return [
        Reference(
            table=f"{schema}.{name}", constraint=constraint, on_delete=_ON_DELETE[deleted],
            rows=_count(connection, f"{quoted(schema)}.{quoted(name)}") if counted and readable else None,
        )
        for schema, name, constraint, deleted, readable in found
    ]  # fmt: skip


def rights(connection: Connection, table: Shape) -> frozenset[Right]:
    """What this login may do to the whole table, however it came by that. A right to some columns does not count."""
    names = get_args(Right)
    asked = ", ".join(f"has_table_privilege({table.oid}, '{name}')" for name in names)
    row = connection.execute(f"SELECT has_schema_privilege(%s, 'USAGE'), {asked}", (table.schema_name,)).fetchone()
    assert row is not None
    return frozenset(name for name, held in zip(names, row[1:], strict=True) if held and row[0])


def rows(connection: Connection, table: Shape) -> int:
    """How many there are, counted."""
    return _count(connection, table.sql)


def _count(connection: Connection, table: str) -> int:
    row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
    assert row is not None
    return int(row[0])


def owns(connection: Connection, table: Shape) -> bool:
    """Whether this login may alter the table."""
    query = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = %s"
    row = connection.execute(query, (table.oid,)).fetchone()
    return row is not None and bool(row[0])


def triggers(connection: Connection, table: Shape) -> tuple[str, ...]:
    """Triggers of the user's own that fire when rows come or the table is emptied, partitions included."""
    rows = connection.execute(_TRIGGERS, {"oid": table.oid}).fetchall()
    return tuple(name for (name,) in rows)


#: The next value of a sequence, as a default writes it.
NEXT = re.compile(r"nextval\('((?:[^']|'')*)'::regclass\)")


def sequences(connection: Connection, table: Shape) -> list[tuple[Column, str, bool]]:
    """(column, the sequence that it counts by, whether this login may read and set it) of each column that counts."""
    found = []
    for column in table.columns:
        row = connection.execute("SELECT pg_get_serial_sequence(%s, %s)", (table.sql, column.name)).fetchone()
        name = None if row is None else row[0]
        if name is None and (match := NEXT.fullmatch(column.default or "")):
            name = match[1].replace("''", "'")
        if name is None:
            continue
        query = (
            "SELECT has_sequence_privilege(c.oid, 'SELECT') AND has_sequence_privilege(c.oid, 'UPDATE')"
            " AND has_schema_privilege(c.relnamespace, 'USAGE') FROM pg_class c WHERE c.oid = to_regclass(%s)"
        )
        held = connection.execute(query, (name,)).fetchone()
        if held is not None:
            found.append((column, name, bool(held[0])))
    return found


def csv_bytes(connection: Connection, table: Shape, count: int) -> int:
    """About how many bytes the table has as CSV, from the text of some hundred of its rows."""
    header = len(",".join(table.copied).encode()) + 1
    if not count:
        return header
    some = f"SELECT {table.columns_sql} FROM {table.sql}"  # noqa: S608
    read, size = _sample(connection, f"{some} LIMIT 10")
    if (more := min(_SAMPLE_ROWS, _SAMPLE_BYTES * read // size)) > 10:  # from all over the table
        percent = min(100.0, 100.0 * more / count)
        spread = _sample(connection, f"{some} TABLESAMPLE SYSTEM ({percent}) REPEATABLE (1) LIMIT {more}")
        read, size = spread if spread[0] else (read, size)
    return header + round(size / read * count)


def _sample(connection: Connection, select: str) -> tuple[int, int]:
    """(rows, bytes) of a query as CSV."""
    with connection.cursor() as cursor, cursor.copy(f"COPY ({select}) TO STDOUT (FORMAT csv)") as copy:
        sizes = [len(row) for row in copy]
    return len(sizes), sum(sizes)


def server(connection: Connection) -> str:
    """Name and version."""
    row: Any = connection.execute("SHOW server_version").fetchone()
    return f"PostgreSQL {row[0].split()[0]}"


def describe(connection: Connection, schema: str, table: str) -> Described | None:
    """All of that; None when there is no such table."""
    found = shape(connection, schema, table, counted=True)
    if found is None:
        return None
    held = rights(connection, found)
    if "select" not in held or found.hidden_rows or found.relation == "other":
        return Described(found, None, held, None)
    count = rows(connection, found)
    return Described(found, count, held, csv_bytes(connection, found, count))


def may_create(connection: Connection, schema: str) -> bool | None:
    """Whether this login may make tables in a schema, where vecrun records what it did; None when there is no such schema."""
    query = "SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = %s"
    row = connection.execute(query, (schema,)).fetchone()
    return None if row is None else bool(row[0])
