"""Tables are emptied, if they still hold exactly the rows that they held when they were backed up.

Under an exclusive lock each table's versions of rows are compared with those that the backup saw (`copying.versions`):
what was inserted, updated, deleted, deleted and inserted again, or loaded anew since makes another name, whatever
transaction or savepoint wrote it. Then nothing is emptied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

from runner import crash
from runner.documents import catalog
from runner.documents.constraints import obstacles
from runner.documents.copying import Kept, moved
from runner.documents.shape import Shape
from runner.errors import Permanent

if TYPE_CHECKING:
    from runner.documents.postgres import Connection, Postgres

Guard = Callable[[], AbstractContextManager[object]]

#: How long to wait for each lock. Readers that come later wait behind us.
_LOCK_TIMEOUT = "10s"


class Changed(Permanent):
    """A table is not as its backup saw it; nothing was emptied."""


def truncate(postgres: Postgres, tables: Sequence[Kept], note: Callable[[str], None], guard: Guard) -> None:
    """Empty them all, or none. `note` is told the id of the transaction before it is committed, and may raise; `guard` is held
    over the commit. Changed; Permanent when a lock cannot be had, a right is missing, or another table refers to one of these."""
    from psycopg import IsolationLevel

    with postgres.connect() as connection:
        connection.isolation_level = IsolationLevel.READ_COMMITTED  # what is read under the lock is what is there
        with ExitStack() as stack, connection.transaction():
            names = ", ".join(sorted(item.shape.sql for item in tables if item.shape is not None))
            connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
            connection.execute(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE")
            crash.point("truncate_tables", "locked")
            shapes = [_unchanged(connection, item) for item in tables]
            _refuse_references(shapes)
            for table, why in obstacles(connection, shapes):
                raise Permanent("A table could not be filled again", f"{table}: {why}", "Nothing was emptied")
            connection.execute(f"TRUNCATE TABLE {names} RESTRICT")
            for shape in shapes:
                if left := catalog.rows(connection, shape):
                    raise Permanent(
                        "Rows remain in a table that was emptied",
                        f"{shape.qualified}: {left:,}; a trigger may have made them",
                        "Nothing was emptied",
                    )
            row = connection.execute("SELECT txid_current()").fetchone()
            assert row is not None
            note(str(row[0]))
            crash.point("truncate_tables", "truncated")
            stack.enter_context(guard())
    crash.point("truncate_tables", "committed")


def outcome(postgres: Postgres, transaction: str) -> str:
    """What became of a transaction that was told to `note`: committed, aborted, in progress; "" where the server does not
    know any more."""
    import psycopg

    with postgres.connect() as connection:
        try:
            row = connection.execute("SELECT txid_status(%s::bigint)", (transaction,)).fetchone()
        except psycopg.errors.InvalidParameterValue:  # of another server, which is not there yet
            return ""
    return str(row[0] or "") if row is not None else ""


def _unchanged(connection: Connection, kept: Kept) -> Shape:
    """The table as it is. Changed when its rows are others than those of the backup."""
    if why := moved(connection, kept):
        raise Changed("A table was written to after its backup", why, "Nothing was emptied. Make a new backup")
    here = None if kept.shape is None else catalog.shape(connection, kept.shape.schema_name, kept.shape.name)
    assert here is not None  # it is locked
    return here


def _refuse_references(tables: Sequence[Shape]) -> None:
    """The server would refuse as well, but names only the first."""
    named = {item.qualified for item in tables}
    for item in tables:
        others = sorted({found.table for found in item.referenced_by} - named)
        if others:
            raise Permanent(
                "Another table refers to one that is to be emptied", f"{item.qualified}: {', '.join(others)}",
                "Name them for truncation too, or leave this one out",
            )  # fmt: skip
