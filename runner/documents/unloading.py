"""Bringing tables back to what they were before they were filled, and dropping what a load keeps for that.

Somebody may have written to the tables since: then nothing is touched. All in one transaction, like the load.
"""

# Names in SQL are quoted by shape.quoted().
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import psycopg

from runner import crash
from runner.documents.catalog import rows, shape
from runner.documents.constraints import lifted
from runner.documents.copying import tally, versions
from runner.documents.loaded import Loaded, Loads, lock, patient
from runner.documents.loading import Guard
from runner.documents.shape import Shape, quoted
from runner.errors import Permanent, VerificationFailed
from runner.plan import LoadTables

if TYPE_CHECKING:
    from runner.documents.postgres import Connection, Postgres


def unload(postgres: Postgres, step: LoadTables, run: str, guard: Guard) -> tuple[Loaded, ...]:
    """Undo what `run` loaded; () when it loaded nothing, or that was undone already. Permanent when the tables hold anything
    else than the load left there."""
    loads = Loads(postgres, step, run)
    with postgres.connect() as connection:
        # what is read under the lock is what is there
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        with ExitStack() as stack, connection.transaction():
            patient(connection)
            loads.lock(connection)
            loaded = loads.read(connection)
            if not loaded:
                return ()
            there = [item for item in loaded if shape(connection, item.schema_name, item.name) is not None]
            lock(connection, [item.sql for item in there])
            shapes = _unchanged(connection, loaded)
            crash.point("unload_tables", "locked")
            _back(connection, [item for item in loaded if not item.made], shapes)
            if made := [item for item in there if item.made]:
                connection.execute(f"DROP TABLE {', '.join(item.sql for item in made)}")
            loads.forget(connection)
            crash.point("unload_tables", "unloaded")
            stack.enter_context(guard())
        crash.point("unload_tables", "committed")
    return loaded


def undo_rows(postgres: Postgres, step: LoadTables, run: str) -> int | None:
    """Rows that are kept for an undo of this load; None when nothing is."""
    loads = Loads(postgres, step, run)
    with postgres.connect() as connection:
        try:
            loaded = loads.read(connection)
        except Permanent:  # a table of this name that is not ours
            return None
        return sum(item.before for item in loaded if item.undo) if loaded else None


def forget(postgres: Postgres, step: LoadTables, run: str) -> None:
    """Drop what is kept: the load cannot be undone any more. Nothing happens when there is nothing."""
    if undo_rows(postgres, step, run) is None:
        return
    loads = Loads(postgres, step, run)
    with postgres.connect() as connection, connection.transaction():
        patient(connection)
        loads.lock(connection)
        loads.forget(connection)


def _unchanged(connection: Connection, loaded: Sequence[Loaded]) -> dict[str, Shape]:
    """The tables as they are, by name. Permanent when one is not as the load left it."""
    found: dict[str, Shape] = {}
    wrong: list[str] = []
    for item in loaded:
        here = shape(connection, item.schema_name, item.name, counted=True)
        if here is None:
            wrong += [] if item.made else [f"{item.qualified} is gone"]
        elif here.oid != item.oid:
            wrong.append(f"{item.qualified} was made anew")
        else:
            found[item.qualified] = here
            count = rows(connection, here)
            if count != item.after:
                wrong.append(f"{item.qualified} holds {count:,} rows, not {item.after:,}")
            elif versions(connection, here) != item.versions:
                wrong.append(f"rows of {item.qualified} changed, or it was rewritten (VACUUM FULL)")
    if wrong:
        raise Permanent(
            "Somebody has written to a table since it was filled", "; ".join(wrong) + ". Nothing was changed",
            "Keep it as it is, or undo that first and try again. What was there before stands in: "
            + (", ".join(f"{item.schema_name}.{item.undo}" for item in loaded if item.undo) or "no table, it was empty"),
        )  # fmt: skip
    return found


def _back(connection: Connection, loaded: Sequence[Loaded], shapes: dict[str, Shape]) -> None:
    """Old rows in, new ones out; `loaded` has parents before children."""
    if not loaded:
        return
    connection.execute("SET CONSTRAINTS ALL DEFERRED")
    gentle = _referred(loaded, shapes)
    with lifted(connection, [shapes[item.qualified] for item in loaded]):
        if not gentle:
            connection.execute(f"TRUNCATE {', '.join(item.sql for item in loaded)}")
        for item in reversed(loaded) if gentle else ():
            _remove_new(connection, item, shapes[item.qualified])
        for item in loaded:
            _put_back(connection, item, shapes[item.qualified], over=gentle)
        connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    for item in loaded:
        looks = shapes[item.qualified]
        now = tally(connection, looks, item.sql)
        old = tally(connection, looks, item.undo_sql) if item.undo else None
        if now.rows != item.before or (old is not None and now.rows_digest != old.rows_digest):
            raise VerificationFailed(
                "A table did not come back as it was",
                f"{item.qualified}: {now.rows:,} rows of {item.before:,}. Nothing was changed",
                "A trigger or rule of the table that changes or drops rows is the usual cause: disable it, then resume",
            )


def _referred(loaded: Sequence[Loaded], shapes: dict[str, Shape]) -> bool:
    """Whether another table refers to one of these, so that they cannot be truncated. Permanent when rows of that one could
    go, or lose their reference."""
    named = {item.qualified for item in loaded}
    others = [
        (item, reference) for item in loaded for reference in shapes[item.qualified].referenced_by
        if reference.table not in named
    ]  # fmt: skip
    for item, reference in others:
        if reference.on_delete in ("cascade", "set null", "set default") and reference.rows != 0:
            raise Permanent(
                "Rows of another table refer to rows that would go",
                f"{reference.table} refers to {item.qualified} ({reference.constraint}, ON DELETE "
                f"{reference.on_delete.upper()})",
                f"Remove the rows of {reference.table} first, or keep what was loaded",
            )
    return bool(others)


def _remove_new(connection: Connection, item: Loaded, looks: Shape) -> None:
    """Rows that were not there before. A table with old rows has a primary key here: only a merge leaves references."""
    kept = ""
    if item.undo and looks.primary_key:
        same = " AND ".join(f"u.{quoted(name)} = t.{quoted(name)}" for name in looks.primary_key)
        kept = f" WHERE NOT EXISTS (SELECT FROM {item.undo_sql} AS u WHERE {same})"
    connection.execute(f"DELETE FROM {item.sql} AS t{kept}")


def _put_back(connection: Connection, item: Loaded, looks: Shape, *, over: bool) -> None:
    if not item.undo:
        return
    columns = f"({looks.columns_sql}) OVERRIDING SYSTEM VALUE" if looks.copied else ""
    conflict = ""
    if over and (key := looks.primary_key):
        # an identity that the server gives always cannot be set, and a merge has not changed it
        fixed = {*key, *(column.name for column in looks.columns if column.identity == "always")}
        values = ", ".join(f"{quoted(one)} = EXCLUDED.{quoted(one)}" for one in looks.copied if one not in fixed)
        conflict = f"ON CONFLICT ({', '.join(map(quoted, key))}) DO {f'UPDATE SET {values}' if values else 'NOTHING'}"
    connection.execute(f"INSERT INTO {item.sql} {columns} SELECT {looks.columns_sql} FROM {item.undo_sql} {conflict}")
