"""Columns that are encrypted where they stand, with another key, or back: batch by batch, each one transaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from runner import crash
from runner.errors import Permanent
from runner.executor import slices
from runner.executor.flow import Moved, retried
from runner.executor.relational.rows import Batch, RowReader, batch, ciphers, cut, limit, placed, totals
from runner.executor.relational.working import ended, mine
from runner.executor.slices import Done, Task
from runner.ledger import Partition
from runner.plan import EncryptColumns, Place
from runner.points import KeyRange, PointId
from runner.relational import execute, quoted, record, rows, schema
from runner.relational.encrypting import Change, Keys, changed_columns, changed_rows, make_undo, write
from runner.relational.opened import RelationalDatabase
from runner.relational.shape import Shape, shape

if TYPE_CHECKING:
    from runner.executor import Run

#: Values that an error names.
SHOWN = 5


def ranges(run: Run, step: EncryptColumns) -> list[KeyRange]:
    """The partition table; the step is recorded as begun before. On the way back nothing of what was never begun, and of the
    rows only those that were changed. NotOurs when some of those hold what nobody here can read."""
    database, me = run.world.relational(step.connection), mine(run)
    if step.undoes:
        with database.reading() as connection:
            found = record.entry(connection, me, step.name)
        if found is None:
            return []
        if step.undo:
            _refuse_lost(database, step)
            if found.status == "done":
                _refuse_foreign(run, database, step)
    else:
        rows.refuse(database, step.table)
        _refuse_filled(database, step)
    with record.working(database, me) as connection:
        begun = record.entry(connection, me, step.name) is not None
        if step.undoes and not begun:
            return []
        if not begun:
            record.begin(connection, me, step.name, step.digest)
        elif step.undoes:  # from now on values are under both keys
            record.mark(connection, me, step.name, step.digest, "undoing", 0)
        if step.undo and not step.undoes and schema.look(connection, step.undo, count=False) is None:
            described = schema.look(connection, step.table, count=False)
            assert described is not None
            make_undo(connection, Shape(connection, step.table, described), step.key, step.undo)
    return cut(run, step)


def _refuse_filled(database: RelationalDatabase, step: EncryptColumns) -> None:
    target = shape(database, step.table)
    if other := [name for name in step.columns if not target.is_text(name)]:
        raise Permanent(
            "A column does not keep a text as it is", ", ".join(f"{step.table}.{one} is {target.types[one]}" for one in other),
            "Make it text, or character varying, in a step before. Nothing was changed",
        )  # fmt: skip


def _refuse_lost(database: RelationalDatabase, step: EncryptColumns) -> None:
    with database.reading() as connection:
        if schema.look(connection, step.undo, count=False) is None:
            raise Permanent(
                "It is not known any more which values were changed", f"step {step.name}: no table {step.undo}",
                "Bring that table back from a backup, then roll back again. Nothing was changed",
            )  # fmt: skip


def _refuse_foreign(run: Run, database: RelationalDatabase, step: EncryptColumns) -> None:
    """Before the first value is brought back: those that somebody has encrypted since with a key that is not known here."""
    from runner.executor import NotOurs

    keys, found = keys_of(run, step), list[str]()
    for page, columns in _changed(database, step, KeyRange(), None, step.batch_size):
        for row in page:
            found += [
                f"{step.key} {row[step.key]!r}, {name}"
                for name in columns.get(row[step.key], ())
                if keys.is_foreign(row[name])
            ]
    if found:
        begun = any(row["status"] == "done" for row in run.ledger.steps_of(run.run))
        values = f"{len(found):,} {'value' if len(found) == 1 else 'values'}"
        first = "; ".join(found[:SHOWN]) + (" …" if len(found) > SHOWN else "")
        raise NotOurs(
            "Values look encrypted, and not with the key of this step", f"{step.table}, {values}: {first}",
            f"None was changed. Look who wrote them. Those that are to stay as they are: DELETE their row_key from {step.undo}, "
            f"which lists what is brought back. Then: vecrun {'resume' if begun else 'rollback'} {run.plan.job}",
        )  # fmt: skip


def _changed(
    database: RelationalDatabase, step: EncryptColumns, keys: KeyRange, after: PointId | None, size: int
) -> Iterator[tuple[list[dict[str, Any]], dict[PointId, list[str]]]]:
    """Pages of rows that the step has changed, with the columns in which it did."""
    target = shape(database, step.table)
    where = changed_rows(database.engine.dialect, step.key, step.undo)
    for page in rows.pages(database, step.table, step.key, step.columns, where, keys, after, size):
        with database.reading() as connection:
            yield page, changed_columns(connection, target, [row[step.key] for row in page], step.key, step.undo)


def keys_of(run: Run, step: EncryptColumns) -> Keys:
    """What the values are encrypted with, before and after."""
    known = ciphers(run)
    return Keys(known[step.before] if step.before else None, known[step.after] if step.after else None, step.undoes)


def work(run: Run, number: int, step: EncryptColumns, part: int, seconds: float) -> bool:
    """Work on one slice of one partition. True when it is done or set aside."""
    database = retried(lambda: run.world.relational(step.connection), run.limits, run.stop)
    place = Place(connection=step.connection, collection=step.table)
    me, keys = mine(run), keys_of(run, step)
    back = step.undoes and bool(step.undo)

    def task_of(partition: Partition, parts: int) -> Task:
        target, changed = shape(database, step.table), int((partition.notes or {}).get("changed", 0))

        def written(changes: list[Change]) -> int:
            with record.working(database, me, batch=True) as connection:
                return write(
                    connection, target, step.key, step.columns, changes, keys, "" if step.undoes else step.undo
                )

        def act(item: Moved) -> Done:
            nonlocal changed
            assert isinstance(item, Batch)
            crash.point(step.type, "before_write")
            found = [
                keys.changed(step.table, step.key, step.columns if item.columns is None else item.columns.get(row[step.key], ()), row)
                for row in item.page
            ]  # fmt: skip
            if changes := [one for one in found if one is not None]:
                with placed(step, item):
                    changed += retried(lambda: written(changes), run.limits, run.stop)
            crash.point(step.type, "after_write")
            return Done(item.read, notes={"changed": changed})

        def pages(after: PointId | None) -> Iterator[Batch]:
            size = step.batch_size if run.sample is None else min(step.batch_size, run.sample)
            if back:
                for page, columns in _changed(database, step, partition.keys, after, size):
                    yield batch(page[-1][step.key], len(page), page, columns=columns)
                return
            for page in rows.pages(database, step.table, step.key, step.columns, None, partition.keys, after, size):
                yield batch(page[-1][step.key], len(page), page)

        return Task(step.type, str(place), RowReader(place, partition, pages, limit(run, parts)), act)

    return slices.work(run, number, part, seconds, task_of)


def finish(run: Run, number: int, step: EncryptColumns, parts: Sequence[Partition]) -> dict[str, Any]:
    """Record the step as done, or forget it on the way back. `changed`: rows that were written."""
    database, me = run.world.relational(step.connection), mine(run)
    with record.working(database, me) as connection:
        if step.undoes:
            record.forget(connection, me, step.name)
            if step.undo:
                execute(connection, f"DROP TABLE IF EXISTS {quoted(database.engine.dialect, step.undo)}")
        else:
            record.done(connection, me, step.name, step.digest)
        ended(connection, run, number, me)
    return totals(parts) | {"changed": sum((part.notes or {}).get("changed", 0) for part in parts)}
