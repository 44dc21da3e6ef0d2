"""Who works on a database: the run, with its token and the checks of its keys; and which of its changes is the last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from runner.kinds.sql_migration.spec import KEY
from runner.mapping import Encrypted
from runner.plan import CheckQueries, CreateTables, EncryptColumns, MapRows, OfDatabase, VerifyRows
from runner.relational import contents, record
from runner.relational.record import Mine

if TYPE_CHECKING:
    from runner.executor import Run


def mine(run: Run) -> Mine:
    """For `record.working`. A key that cannot be read is refused here, before anything is touched."""

    def alive() -> None:
        with run.ledger.guarded(run.lease):
            pass

    keys = {name.removeprefix(KEY): run.world.cipher(name).check for name in run.plan.inline if name.startswith(KEY)}
    of_run = run.plan.of_run if run.plan.purpose == "rollback" else None
    return Mine(run.plan.job, run.run, run.lease.token, of_run, keys, alive)


def changes(step: object) -> bool:
    """Whether a step changes a database."""
    return isinstance(step, OfDatabase) and not isinstance(step, CheckQueries | VerifyRows)


def is_last(run: Run, number: int) -> bool:
    """Whether no later step of the plan changes a database."""
    return not any(changes(step) for step in run.plan.steps[number + 1 :])


def ended(connection: sa.Connection, run: Run, number: int, me: Mine) -> None:
    """After a change, in its transaction: the last one frees the database, and keeps what stands in the tables that were made."""
    if is_last(run, number):
        record.close(connection, me, _made(connection, run) if run.plan.purpose == "apply" else None)


def _made(connection: sa.Connection, run: Run) -> dict[str, dict[str, Any]]:
    """step -> {table: what stands in it}, of the steps that have made tables. What is encrypted is left out: with another key it
    is the same."""
    tables, encrypted = dict[str, tuple[str, ...]](), dict[str, set[str]]()
    for step in run.plan.steps:
        if isinstance(step, CreateTables):
            tables[step.name] = step.tables
        elif isinstance(step, MapRows):
            if step.make is not None:
                tables[step.name] = (step.make.name,)
            for into in step.map.into:
                names = [name for name, value in into.values.items() if isinstance(value, Encrypted)]
                encrypted.setdefault(into.table, set()).update(names)
        elif isinstance(step, EncryptColumns):
            encrypted.setdefault(step.table, set()).update(step.columns)
    seen = {
        name: {one: contents.seen(connection, one, encrypted.get(one, ())) for one in made}
        for name, made in tables.items()
    }
    return {name: {one: held for one, held in of.items() if held is not None} for name, of in seen.items()}
