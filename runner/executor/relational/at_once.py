"""Steps that are one transaction: the claim, the work and the record of it; and SQL that cannot be in one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from runner.errors import Permanent, VerificationFailed
from runner.executor.relational.working import ended, mine
from runner.plan import (
    CheckQueries,
    CreateTables,
    DropColumn,
    ForgetSteps,
    Recorded,
    RecordSteps,
    RemoveTables,
    RestoreColumn,
    RevertStatements,
    RunStatements,
)
from runner.relational import COMMITS_DDL, changes, columns, queries, record, statements
from runner.relational.opened import RelationalDatabase
from runner.relational.record import Entry, Mine

if TYPE_CHECKING:
    from runner.executor import Run

#: Steps that are carried out here.
Whole = (
    CheckQueries | CreateTables | RemoveTables | RunStatements | RevertStatements | DropColumn | RestoreColumn
    | RecordSteps | ForgetSteps
)  # fmt: skip
Result = dict[str, Any]


def do(run: Run, number: int, step: Whole) -> Result:
    """Carry out one of them. Transient when the database does not answer or somebody holds a lock: it may be repeated."""
    match step:
        case CheckQueries():
            return _check(run, number, step)
        case CreateTables():
            return _forward(run, number, step, lambda connection, _: {"tables": _create(run, connection, step)})
        case DropColumn():
            return _forward(run, number, step, lambda connection, half: _drop(connection, step, half))
        case RunStatements():
            return _statements(run, number, step)
        case RemoveTables():
            return _back(run, number, step.of, lambda c, _: {"tables": changes.remove(c, step.of.made)})
        case RestoreColumn():
            return _back(run, number, step.of, lambda connection, found: _restore(run, connection, step.of, found))
        case RevertStatements():
            return _revert(run, number, step)
        case RecordSteps():
            return _stamp(run, number, step)
        case ForgetSteps():
            return _forget(run, number, step)


def _forward(run: Run, number: int, step: Recorded, act: Callable[[sa.Connection, bool], Result]) -> Result:
    """A step in one transaction; a repeated one finds that it is done. `act` gets whether a try before died halfway, where the
    database commits with each statement."""
    database, me = run.world.relational(step.connection), mine(run)
    half = False
    if database.engine.dialect.name in COMMITS_DDL:
        with record.working(database, me) as connection:
            found = _found(connection, run, me, step)
            half = found is not None
            if found is None:
                record.begin(connection, me, step.name, step.digest)
    foreign_keys = not isinstance(step, RunStatements)
    with record.working(database, me, foreign_keys=foreign_keys) as connection:
        found = _found(connection, run, me, step)
        result: Result = {}
        if found is None or found.status != "done":
            record.begin(connection, me, step.name, step.digest)
            result = act(connection, half)
            notes = result.pop("notes", None)
            record.done(connection, me, step.name, step.digest, result.get("statements", 0), notes)
        ended(connection, run, number, me)
    return result


def _found(connection: sa.Connection, run: Run, me: Mine, step: Recorded) -> Entry | None:
    """What this run has recorded of a step. NotOurs: somebody else has done it."""
    from runner.executor import NotOurs

    found = record.entry(connection, me, step.name)
    if found is not None and found.run != me.run:
        raise NotOurs(
            "A step was done by somebody else", f"step {step.name}: run {found.run}, {found.recorded}",
            f"Look with: vecrun plan {run.plan.job}",
        )  # fmt: skip
    return found


def _back(run: Run, number: int, of: Recorded, act: Callable[[sa.Connection, Entry], Result]) -> Result:
    """The way back of a step in one transaction; what is not recorded was not done, or is undone."""
    database, me = run.world.relational(of.connection), mine(run)
    foreign_keys = not isinstance(of, RunStatements)
    with record.working(database, me, foreign_keys=foreign_keys) as connection:
        found = record.entry(connection, me, of.name)
        result: Result = {}
        if found is not None:
            result = act(connection, found)
            record.forget(connection, me, of.name)
        ended(connection, run, number, me)
    return result


def _check(run: Run, number: int, step: CheckQueries) -> Result:
    wrong = queries.ask(run.world.relational(step.connection), step.queries)
    if not wrong:
        return {"queries": len(step.queries)}
    text = f"step {step.name}: {'; '.join(wrong)}"
    earlier = run.plan.steps[:number]
    if run.dry and any(isinstance(one, RunStatements) and not one.transaction for one in earlier):
        run.say(f"cannot be told in a dry run, which leaves out what an earlier step does: {text}")
        return {"queries": len(step.queries)}
    if step.when == "after":
        raise VerificationFailed(
            "The database is not as it should be after a step", text,
            f"Look at it, then: vecrun resume {run.plan.job}, or vecrun rollback {run.plan.job}",
        )  # fmt: skip
    raise Permanent(
        "The database is not as it has to be before a step", text,
        f"Put that right, then: vecrun resume {run.plan.job}. This step has changed nothing",
    )  # fmt: skip


def _create(run: Run, connection: sa.Connection, step: CreateTables) -> int:
    database = run.world.relational(step.connection)
    try:
        return changes.create(connection, step.made)
    except database.errors as exc:
        told = database.told(exc)
        place = f"step {step.name}, {', '.join(step.tables)}"
        raise type(told)(told.summary, f"{place}: {told.detail}", told.hint) from None


def _drop(connection: sa.Connection, step: DropColumn, half: bool) -> Result:
    kept, definition = columns.drop(connection, step.table, step.column, step.key, step.undo, again=half)
    return {"rows": kept, "notes": definition}


def _restore(run: Run, connection: sa.Connection, step: DropColumn, found: Entry) -> Result:
    done = columns.restore(connection, step.table, step.column, step.key, step.undo, found.notes)
    place = f"{step.table}.{step.column}"
    if done.new:
        run.say(f"{done.new:,} rows of {step.table} came since; {place} is empty there, or has its default")
    if done.deleted:
        run.say(
            f"{done.deleted:,} rows of {step.table} were deleted since; what {place} held there is not brought back"
        )
    return {"rows": done.values, "new": done.new, "deleted": done.deleted}


def _statements(run: Run, number: int, step: RunStatements) -> Result:
    database, me = run.world.relational(step.connection), mine(run)
    if step.transaction and not _by_itself(database):

        def act(connection: sa.Connection, _half: bool) -> Result:
            statements.run_whole(database, connection, step.name, step.statements)
            return {"statements": len(step.statements)}

        return _forward(run, number, step, act)
    with record.working(database, me, foreign_keys=False) as connection:
        found = _found(connection, run, me, step)
    if found is None or found.status != "done":
        statements.run_alone(database, me, step.name, step.digest, step.statements, run.say)
    with record.working(database, me, foreign_keys=False) as connection:
        record.done(connection, me, step.name, step.digest, len(step.statements))
        ended(connection, run, number, me)
    return {"statements": len(step.statements)}


def _revert(run: Run, number: int, step: RevertStatements) -> Result:
    of, back = step.of, step.of.back or ()
    database, me = run.world.relational(of.connection), mine(run)
    if of.transaction and not _by_itself(database):

        def act(connection: sa.Connection, _found: Entry) -> Result:
            statements.run_whole(database, connection, of.name, back)
            return {"statements": len(back)}

        return _back(run, number, of, act)
    with record.working(database, me, foreign_keys=False) as connection:
        found = record.entry(connection, me, of.name)
    ran = 0
    if found is not None:
        ran = statements.run_alone(database, me, of.name, of.digest, back, run.say, back=True)
    with record.working(database, me, foreign_keys=False) as connection:
        if found is not None:
            record.forget(connection, me, of.name)
        ended(connection, run, number, me)
    return {"statements": ran}


def _stamp(run: Run, number: int, step: RecordSteps) -> Result:
    """What is recorded as it should be stays; everything else that is recorded of the job is replaced."""
    me, wanted = mine(run), dict(step.steps)
    with record.working(run.world.relational(step.connection), me, replace=True) as connection:
        right = {one.step for one in record.entries(connection, me)
                 if one.status in ("done", "stamped") and wanted.get(one.step) == one.digest}  # fmt: skip
        if done := sorted(
            one.step for one in record.entries(connection, me) if one.status == "done" and one.step not in right
        ):
            raise Permanent(
                "A step that a run has done would be forgotten", ", ".join(done),
                "Look with: vecrun stamp JOB.yaml --dry-run. Nothing was changed",
            )  # fmt: skip
        record.keep_only(connection, me, right)
        for name, digest in step.steps:
            if name not in right:
                record.stamp(connection, me, name, digest)
        ended(connection, run, number, me)
    return {"steps": len(wanted) - len(right)}


def _forget(run: Run, number: int, step: ForgetSteps) -> Result:
    me, forgotten = mine(run), 0
    with record.working(run.world.relational(step.connection), me) as connection:
        for name, _ in reversed(step.of.steps):
            found = record.entry(connection, me, name)
            if found is not None and found.status == "stamped" and found.run == me.of_run:
                record.forget(connection, me, name)
                forgotten += 1
        ended(connection, run, number, me)
    return {"steps": forgotten}


def _by_itself(database: RelationalDatabase) -> bool:
    """Whether each statement commits by itself, whatever the spec says."""
    return database.engine.dialect.name in COMMITS_DDL
