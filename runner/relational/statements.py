"""SQL of the user's: in one transaction, or each statement by itself with a record of how far it got."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from runner.errors import Permanent
from runner.plan import Statement
from runner.relational import execute, queries, record
from runner.relational.opened import TEXTS, RelationalDatabase
from runner.relational.record import Mine

#: What ends a transaction, or begins one, behind comments too.
_ENDS = re.compile(
    r"(\s|--[^\n]*(\n|$)|/\*.*?\*/)*"
    r"(begin|start\s+transaction|commit|end|rollback|savepoint|release|abort|prepare\s+transaction)\b",
    re.IGNORECASE | re.DOTALL,
)


def run_whole(
    database: RelationalDatabase, connection: sa.Connection, step: str, statements: Sequence[Statement]
) -> None:
    """In the transaction that is open. Permanent when one of them has ended it, or does not run."""
    postgresql = connection.dialect.name == "postgresql"
    transaction, orphans = _transaction(connection), _orphans(connection)
    path = connection.exec_driver_sql("SHOW search_path").scalar_one() if postgresql else ""
    if postgresql:
        connection.detach()  # what a statement sets for its session ends with it
        for setting in TEXTS:
            execute(connection, f"SET LOCAL {setting} TO DEFAULT")
    for number, one in enumerate(statements, 1):
        if _ENDS.match(one.sql):
            raise Permanent(
                "A statement would end the transaction that it is in", f"step {step}, statement {number}",
                "Leave transactions to vecrun, or say transaction: false. Nothing of the step was done",
            )  # fmt: skip
        _run(database, connection, one, f"step {step}, statement {number}")
        if _transaction(connection) != transaction:
            raise Permanent(
                "A statement has ended the transaction that it was in", f"step {step}, statement {number}: what came before it is done",
                "Leave transactions to vecrun, or say transaction: false. Look at the database, then: vecrun stamp",
            )  # fmt: skip
    if broken := sorted({table for table, _ in _orphans(connection) - orphans}):
        raise Permanent(
            "A foreign key does not hold after the statements", f"step {step}: rows of {', '.join(broken)} reference what is not there",
            "Nothing of the step was done",
        )  # fmt: skip
    if postgresql:  # the record is where it was
        connection.exec_driver_sql("SELECT set_config('search_path', %(path)s, true)", {"path": path})
        for setting, value in TEXTS.items():  # a dry run goes on in this transaction
            execute(connection, f"SET LOCAL {setting} = '{value}'")


def run_alone(
    database: RelationalDatabase, mine: Mine, step: str, digest: str, statements: Sequence[Statement],
    say: Callable[[str], None], *, back: bool = False,
) -> int:  # fmt: skip
    """Each statement by itself: recorded as begun, then run; how many were run. Goes on where a process before has died.

    `back`: they undo the step, of which not everything may have been done. Permanent: nobody can tell whether the statement
    at which it died has happened.
    """
    with record.working(database, mine, foreign_keys=False) as connection:
        found = record.entry(connection, mine, step)
    status = "undoing" if back else "begun"
    at = found.statement if found is not None and found.status == status else 0
    half = back and found is not None and found.status != "done"
    ran = 0
    for number, one in enumerate(statements, 1):
        if number < at:
            continue
        asks = one.done and (number == at or half)
        happened = bool(asks) and queries.is_true(database, one.done)
        if number == at and not happened and not one.done and not one.repeat:
            raise Permanent(
                "It cannot be told whether a statement has happened", f"step {step}, statement {number}",
                "Look at the database. If the step is done: vecrun stamp; else undo what is there, and stamp the steps before",
            )  # fmt: skip
        with record.working(database, mine, foreign_keys=False) as connection:
            record.mark(connection, mine, step, digest, status, number)
        if happened:
            continue
        with database.alone() as alone:
            if alone is None:
                say(f"left out of the dry run, as it cannot be in a transaction: {one.sql}")
                continue
            _run(database, alone, one, f"step {step}, statement {number}")
            ran += 1
    return ran


def _run(database: RelationalDatabase, connection: sa.Connection, one: Statement, place: str) -> None:
    """One statement, as it stands; what the database says of it names the place in the job."""
    try:
        connection.exec_driver_sql(one.sql, execution_options={"no_parameters": True, "single": True})
    except database.errors as exc:
        told = database.told(exc)
        several = any(words in told.detail for words in ("insert multiple commands", "execute one statement at a time"))
        hint = "Each item of forward and rollback is one statement; give each an item" if several else told.hint
        raise type(told)(told.summary, f"{place}: {told.detail}", hint) from None


def _orphans(connection: sa.Connection) -> Counter[tuple[str, int]]:
    """Rows of SQLite that break a foreign key, by table and number of the key. It does not look while the statements run: a
    table that is made anew would take the rows with it that reference it."""
    if connection.dialect.name != "sqlite":
        return Counter()
    rows: list[Any] = list(execute(connection, "PRAGMA foreign_key_check"))
    return Counter((row[0], row[3]) for row in rows)


def _transaction(connection: sa.Connection) -> Any:
    """Names the transaction that a connection is in, as the database knows it."""
    if connection.dialect.name == "postgresql":
        return execute(connection, "SELECT pg_current_xact_id()::text").scalar_one()
    if connection.dialect.name == "sqlite":
        raw: Any = connection.connection.driver_connection
        return getattr(raw, "in_transaction", True)
    return True
