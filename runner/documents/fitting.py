"""Whether tables can be filled from a backup: columns, types, keys, who refers to whom, and what the login may do.

Everything is looked at before the first write, and once more under the lock.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.documents.catalog import may_create, rights, rows, shape
from runner.documents.constraints import circle, parents
from runner.documents.shape import Column, Shape, quoted
from runner.errors import NotFound, Permanent
from runner.plan import LoadTables

if TYPE_CHECKING:
    from runner.documents.postgres import Connection, Postgres

#: A name in SQL, with its schema.
_NAME = r'(?:"(?:[^"]|"")*"|[\w$]+)'
_SCHEMA = re.compile(rf"^{_NAME}\.")


@dataclass(frozen=True)
class Filling:
    """A table of a backup, and the one that it is to fill. `pieces` gives the CSV anew each time, and raises when it is not
    what the manifest says; `rows_digest` as in the manifest."""

    backup: str  # its id
    shape: Shape  # of the backup
    table: str  # here, as the step names it
    rows: int
    rows_digest: str
    pieces: Callable[[], Iterator[bytes]]


@dataclass(frozen=True)
class Target:
    """A table to be filled, as it is now. `here` is None when it has to be made."""

    filling: Filling
    schema: str
    name: str
    here: Shape | None
    rows: int

    @property
    def sql(self) -> str:
        """As written in SQL."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def qualified(self) -> str:
        """schema.table"""
        return f"{self.schema}.{self.name}"


def targets(connection: Connection, postgres: Postgres, step: LoadTables, fillings: Sequence[Filling]) -> list[Target]:
    """The tables, parents before children. NotFound, Permanent when they cannot be filled: says all that is wrong with a
    table at once."""
    found = []
    for filling in fillings:
        schema, name = postgres.split(filling.table)
        here = shape(connection, schema, name)
        found.append(Target(filling, schema, name, here, 0 if here is None else rows(connection, here)))
    for target in found:
        _there(connection, target, create=step.create)
        if target.here is not None:
            _kind(target.here)
            _fits(target.filling.shape, target.here)
            _may(connection, target.here, step)
    _schemas(connection, step, found)
    _refuse_rows(step, found)
    _refuse_references(step, found)
    _refuse_keyless(step, found)
    return _ordered(found)


def _there(connection: Connection, target: Target, *, create: bool) -> None:
    if target.here is None and not create:
        raise NotFound(
            "A table to be filled is not there",
            target.qualified,
            "Make it, or let the job make it: create: true",
        )
    if target.here is None:
        for column in target.filling.shape.columns:
            if type_here(connection, column.type) is None:
                hint = (
                    "CREATE EXTENSION vector" if bare_type(column.type).startswith(VECTORS) else "Make the type first"
                )
                raise Permanent(
                    "The database lacks a type", f"{target.qualified}.{column.name} needs {column.type}", hint
                )


#: Types of the extension vector.
VECTORS = ("vector", "halfvec", "sparsevec")


def bare_type(name: str) -> str:
    """A type without the schema that it is in, which is another one in another database."""
    return _SCHEMA.sub("", name)


def type_here(connection: Connection, name: str) -> str | None:
    """How a type of a backup is written here; None when there is none."""
    for written in (name, bare_type(name)):
        row = connection.execute("SELECT to_regtype(%s) IS NOT NULL", (written,)).fetchone()
        if row is not None and row[0]:
            return written
    return None


def _kind(here: Shape) -> None:
    if here.relation == "other":
        raise Permanent(
            "This is no table that can be filled",
            f"{here.qualified} is a view, a foreign table or the parent of other tables",
        )


def _fits(backup: Shape, here: Shape) -> None:
    """The columns of the file against those of the table, by name."""
    columns = {item.name: item for item in here.columns}
    wrong = [text for item in backup.columns if (text := _misfit(item, columns.get(item.name)))]
    known = {item.name for item in backup.columns}
    wrong += [
        f"{item.name} is NOT NULL without a default, and the backup does not have it"
        for item in here.columns
        if item.name not in known and item.not_null and not (item.default or item.generated or item.identity)
    ]
    if wrong:
        raise Permanent(
            "A table does not fit its backup", f"{here.qualified}: " + "; ".join(wrong),
            "Restore into a new table, or change this one to what it was",
        )  # fmt: skip


def _misfit(item: Column, here: Column | None) -> str:
    if here is None:
        return "" if item.generated else f"column {item.name} of the backup is not there"
    if bare_type(item.type) != bare_type(here.type):
        return f"column {item.name} is {here.type}, in the backup {item.type}"
    if here.generated != item.generated:
        return f"column {item.name} is computed {'here' if here.generated else 'in the backup'} only"
    return ""


def _may(connection: Connection, here: Shape, step: LoadTables) -> None:
    """What the login needs: an exclusive lock wants one of the rights that change rows."""
    needed: set[str] = {"select", "insert"} | ({"truncate"} if step.existing == "replace" else set())
    lacking = sorted(needed - rights(connection, here))
    if step.existing == "merge":
        row = connection.execute("SELECT has_table_privilege(%s::oid, 'update')", (here.oid,)).fetchone()
        lacking += [] if row is not None and row[0] else ["update"]
    if lacking:
        listed = ", ".join(item.upper() for item in lacking)
        raise Permanent(
            "The login lacks a right", f"{here.qualified}: {listed}", f"GRANT {listed} ON {here.qualified} TO …"
        )


def _schemas(connection: Connection, step: LoadTables, found: list[Target]) -> None:
    """Undo tables, and the one that says what was loaded, are made beside the tables."""
    for schema in sorted({target.schema for target in found}):
        may = may_create(connection, schema)
        if may is None:
            raise NotFound("No such schema", schema, f"CREATE SCHEMA {schema}")
        makes = schema == found[0].schema or step.undo or any(t.here is None and t.schema == schema for t in found)
        if makes and not may:
            raise Permanent(
                "The login lacks a right", f"it may not make a table in schema {schema}, where vecrun records what it did",
                f"GRANT CREATE ON SCHEMA {schema} TO …",
            )  # fmt: skip


def _refuse_rows(step: LoadTables, found: list[Target]) -> None:
    full = [f"{target.qualified} holds {target.rows:,} rows" for target in found if target.rows]
    if not full or step.existing != "refuse":
        return
    if step.of_run:
        raise Permanent(
            "Rows came since the tables were emptied", "; ".join(full),
            "They are kept, and nothing was written. To have both, restore with a job of kind VectorRestore that says "
            "if_not_empty: merge (the backup's rows win), or replace (only the backup's rows stay)",
        )  # fmt: skip
    raise Permanent(
        "A table to be filled is not empty", "; ".join(full),
        "Say if_not_empty: merge (the backup's rows win, by primary key) or replace (the rows that are there go), "
        "and plan again",
    )  # fmt: skip


def _refuse_references(step: LoadTables, found: list[Target]) -> None:
    """TRUNCATE would have to cascade to a table that nobody named."""
    if step.existing != "replace" or not any(target.rows for target in found):
        return
    named = {target.qualified for target in found}
    for target in found:
        for item in target.here.referenced_by if target.here is not None else ():
            if item.table not in named:
                raise Permanent(
                    "Another table refers to one that is to be replaced",
                    f"{item.table} refers to {target.qualified} ({item.constraint})",
                    f"Name {item.table} as well, or say if_not_empty: merge",
                )


def _refuse_keyless(step: LoadTables, found: list[Target]) -> None:
    if step.existing != "merge":
        return
    for target in found:
        if target.here is None or not target.rows:
            continue
        key = target.here.primary_key
        if not key or not set(key) <= set(target.filling.shape.copied):
            raise Permanent(
                "A table cannot be merged",
                f"{target.qualified} has no primary key" + (" that the backup has" if key else ""),
                "Say if_not_empty: replace, or give the table a primary key",
            )


def _ordered(found: list[Target]) -> list[Target]:
    """Parents before children. Permanent when there is no such order."""
    # the foreign keys of a table that is to be made come after the data
    needs = {target.qualified: set() if target.here is None else parents(target.here) for target in found}
    if stuck := circle(needs):
        raise Permanent(
            "Tables refer to each other in a circle", ", ".join(stuck), "Make one of the foreign keys DEFERRABLE"
        )
    done: list[Target] = []
    waiting = list(found)
    while waiting:
        left = {target.qualified for target in waiting}
        ready = [target for target in waiting if not needs[target.qualified] & left]
        done += ready
        waiting = [target for target in waiting if target not in ready]
    return done
