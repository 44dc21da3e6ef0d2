"""Constraints that stand in the way of filling a table again with rows that it held: circles of foreign keys, and those
that are NOT VALID, so that rows which break them may be there.
"""

# Names in SQL are quoted by shape.quoted(); definitions were written by PostgreSQL itself.

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from runner.documents import catalog
from runner.documents.shape import Constraint, Shape, quoted

if TYPE_CHECKING:
    from runner.documents.postgres import Connection

_QUOTED = re.compile(r'"(?:[^"]|"")*"')
# those of the domains of its columns, and of its partitions: they are not lifted
_INSIDE = """
SELECT o.conname FROM pg_attribute a JOIN pg_constraint o ON o.contypid = a.atttypid
WHERE a.attrelid = %(oid)s::oid AND a.attnum > 0 AND NOT a.attisdropped AND NOT o.convalidated
UNION SELECT o.conname FROM pg_partition_tree(%(oid)s::oid::regclass) p JOIN pg_constraint o ON o.conrelid = p.relid
WHERE p.relid <> %(oid)s::oid AND NOT o.convalidated AND o.coninhcount = 0 ORDER BY 1
"""


def deferrable(item: Constraint) -> bool:
    """Whether a constraint can wait until the end of a transaction."""
    return "DEFERRABLE" in _QUOTED.sub("", item.definition).replace("NOT DEFERRABLE", "").split()


def parents(table: Shape) -> set[str]:
    """schema.table of those that have to be filled before this one. A foreign key that can be deferred binds nobody."""
    bound = (item for item in table.constraints if item.kind == "foreign key" and not deferrable(item))
    return {item.references for item in bound} - {table.qualified}


def circle(needs: dict[str, set[str]]) -> list[str]:
    """The tables that cannot be put in an order, each with those that it needs before; [] when all can."""
    waiting = dict(needs)
    while ready := [name for name, before in waiting.items() if not before & waiting.keys()]:
        for name in ready:
            del waiting[name]
    return list(waiting)


def obstacles(connection: Connection, tables: Sequence[Shape]) -> list[tuple[str, str]]:
    """(table, why it could not be filled again) once all these have been emptied."""
    round_about = circle({item.qualified: parents(item) for item in tables})
    found = [
        (item.qualified, f"foreign keys make a circle of {', '.join(round_about)}: make one of them DEFERRABLE")
        for item in tables
        if item.qualified in round_about
    ]
    for item in tables:
        away = _liftable(connection, item)
        if stays := [one.name for one in item.constraints if one.unchecked and one not in away]:
            text = f"{', '.join(stays)} is NOT VALID, and the login may not drop it and add it again, so rows that break it "
            found.append((item.qualified, f"{text}could not come back: validate it, or connect as the owner"))
        if inside := [name for (name,) in connection.execute(_INSIDE, {"oid": item.oid})]:
            text = f"{', '.join(inside)} (of a domain, or of a partition alone) is NOT VALID: validate it"
            found.append((item.qualified, text))
    return found


def _liftable(connection: Connection, table: Shape) -> list[Constraint]:
    """Those that are NOT VALID, and that this login may drop and add again: not one that comes from a parent of the table,
    nor a foreign key without the right to refer to the other table."""
    loose = [item for item in table.constraints if item.unchecked]
    if not loose or not catalog.owns(connection, table):
        return []
    query = (
        "SELECT conname FROM pg_constraint WHERE conrelid = %s AND coninhcount = 0"
        " AND (confrelid = 0 OR has_table_privilege(confrelid, 'REFERENCES'))"
    )
    may = {name for (name,) in connection.execute(query, (table.oid,))}
    return [item for item in loose if item.name in may]


@contextmanager
def lifted(connection: Connection, tables: Sequence[Shape]) -> Iterator[None]:
    """Rows may come that break a constraint which is NOT VALID, as they were there before: inside of a transaction that has
    the tables locked, such constraints are away, and NOT VALID again afterwards. Those that the login may not drop stay."""
    away = [(table, _liftable(connection, table)) for table in tables]
    remarks = []
    for table, items in away:
        for item in items:
            row = connection.execute(
                "SELECT obj_description(oid, 'pg_constraint') FROM pg_constraint WHERE conrelid = %s AND conname = %s",
                (table.oid, item.name),
            ).fetchone()
            if row is not None and row[0] is not None:
                remarks.append((table, item, row[0]))
            connection.execute(f"ALTER TABLE {table.sql} DROP CONSTRAINT {quoted(item.name)}")
    yield
    for table, items in away:
        for item in items:
            connection.execute(f"ALTER TABLE {table.sql} ADD CONSTRAINT {quoted(item.name)} {item.definition}")
    for table, item, remark in remarks:
        from psycopg import sql

        connection.execute(
            sql.SQL("COMMENT ON CONSTRAINT {} ON {} IS {}").format(
                sql.Identifier(item.name), sql.Identifier(table.schema_name, table.name), sql.Literal(remark)
            )
        )
