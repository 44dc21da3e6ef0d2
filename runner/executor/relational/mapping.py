"""Rows of tables out of the rows of one, batch by batch; and removing them again.

A batch is one transaction of the database, and repeating it is harmless: a row whose key is there already stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from runner import crash
from runner.errors import Permanent
from runner.executor import slices
from runner.executor.flow import Moved, retried
from runner.executor.relational.rows import Batch, RowReader, added, batch, cut, limit, placed, source_of, totals
from runner.executor.relational.rows import ciphers as ciphers_of
from runner.executor.relational.working import ended, mine
from runner.executor.slices import Done, Task
from runner.ledger import Partition
from runner.mapper import Mapped, Mapper, Misfit, Problem
from runner.mapping import Encrypted
from runner.plan import MapRows, Place, UnmapRows
from runner.points import KeyRange, PointId
from runner.relational import changes, record, rows, schema, undoing, written
from runner.relational.opened import RelationalDatabase
from runner.relational.shape import Shape, shape, unique_columns
from runner.vectors import Failure

if TYPE_CHECKING:
    from runner.executor import Run

#: Rows of a transaction in which SQLite copies (a tenth of a second), unless smaller ones are asked for.
SQLITE_COPIES, MANY = 20_000, 1000
#: What no row can be told apart by.
NO_KEY = (type(None), list, dict)


def ranges(run: Run, step: MapRows) -> list[KeyRange]:
    """The partition table. The tables that the step brings along are made first, in the transaction that says it has begun."""
    database, me = run.world.relational(step.connection), mine(run)
    rows.refuse(database, step.map.from_)
    with record.working(database, me) as connection:
        begun = record.entry(connection, me, step.name) is not None
        if not begun:
            record.begin(connection, me, step.name, step.digest)
        # where DDL commits by itself, a process may have died between the two
        if step.make is not None:
            schema.table_of(step.make, database.engine.dialect).create(connection, checkfirst=begun)
        if step.undo:
            written.undo_table(step.undo).create(connection, checkfirst=begun)
    return cut(run, step)


def work(run: Run, number: int, step: MapRows, part: int, seconds: float) -> bool:
    """Work on one slice of one partition. True when it is done or set aside."""
    database = retried(lambda: run.world.relational(step.connection), run.limits, run.stop)
    place = Place(connection=step.connection, collection=step.map.from_)
    me = mine(run)

    def task_of(partition: Partition, parts: int) -> Task:
        doing = Copying(run, database, step) if copies(step) else Making(run, database, step)
        counts = Counts(partition)

        def write(item: Batch, prepared: Prepared | None) -> dict[str, int]:
            with record.working(database, me, batch=True) as connection:
                return doing.write(connection, item, partition.keys, prepared)

        def act(item: Moved) -> Done:
            assert isinstance(item, Batch)
            crash.point(step.type, "before_write")
            prepared = doing.prepared(item)
            with placed(step, item):
                made = retried(lambda: write(item, prepared), run.limits, run.stop)
            crash.point(step.type, "after_write")
            failures = counts.add(prepared, made)

            def keep(connection: sa.Connection) -> None:
                run.vectors.fail(connection, run.run, failures)

            return Done(item.read, notes=counts.notes(), record=keep if failures else None)

        def pages(after: PointId | None) -> Iterator[Batch]:
            return doing.pages(partition.keys, after)

        return Task(step.type, str(place), RowReader(place, partition, pages, limit(run, parts)), act)

    return slices.work(run, number, part, seconds, task_of)


def finish(run: Run, number: int, step: MapRows, parts: Sequence[Partition]) -> dict[str, Any]:
    """Record the step as done. `inserted`: rows that were made, by table; `left_out`: rows of the source that were, at least in
    part; `rules`: items by what is wrong with them."""
    database, me = run.world.relational(step.connection), mine(run)
    with record.working(database, me) as connection:
        record.done(connection, me, step.name, step.digest)
        ended(connection, run, number, me)
    notes = [part.notes or {} for part in parts]
    counted = {name: added([one.get(name, {}) for one in notes]) for name in ("inserted", "rules")}
    return totals(parts) | counted | {"left_out": sum(one.get("left_out", 0) for one in notes)}


def unmap(run: Run, number: int, step: UnmapRows) -> dict[str, Any]:
    """Remove the rows that the step has made and the table that it has made, all at once. A row that somebody has changed since
    stays, and is told."""
    of, me = step.of, mine(run)
    database = run.world.relational(step.connection)
    removed = undoing.Removed()
    with record.working(database, me) as connection:
        if record.entry(connection, me, of.name) is not None:
            if of.undo and schema.look(connection, of.undo, count=False) is not None:
                removed = undoing.remove(connection, _made_in(connection, of), of.undo)
                written.undo_table(of.undo).drop(connection)
            if of.make is not None:
                changes.remove(connection, [of.make])
            record.forget(connection, me, of.name)
        ended(connection, run, number, me)
    if removed.changed_since:
        names = ", ".join(dict.fromkeys(into.table for into in of.map.into))
        run.say(f"{removed.changed_since:,} rows of {names} were changed since and were left alone")
    return {"rows": removed.rows, "changed_since": removed.changed_since}


def copies(step: MapRows) -> bool:
    """Whether the database copies the rows by itself. Not where keys are kept of the rows that it makes."""
    return step.columns is not None and not step.undo


def unique_of(target: Shape, step: MapRows, into: int) -> tuple[str, ...]:
    """The columns that tell the rows of a table apart. Permanent when there are none."""
    found = unique_columns(target, step.map.into[into].key)
    if missing := [name for name in found if name not in step.map.into[into].values]:
        raise Permanent(
            "Rows of a table cannot be told apart", f"{target.name}: no value for {', '.join(missing)}",
            "Give `key`: columns that are unique together, with a value for each",
        )  # fmt: skip
    return found


def misfits(step: MapRows, shapes: Sequence[Shape]) -> dict[tuple[int, str], Misfit]:
    """What is looked at before a value goes into a column."""
    return {
        (number, name): found
        for number, (into, target) in enumerate(zip(step.map.into, shapes, strict=True))
        for name, value in into.values.items()
        if not isinstance(value, Encrypted)
        and (found := written.misfit(target.dialect.name, is_json=target.is_json(name))) is not None
    }


class Copying:
    """Columns of one table into one other: the database does it, a range of keys at a time."""

    def __init__(self, run: Run, database: RelationalDatabase, step: MapRows) -> None:
        self.database, self.step = database, step
        self.source, self.target = shape(database, step.map.from_), shape(database, step.map.into[0].table)
        self.columns = step.columns or {}
        self.unique = unique_of(self.target, step, 0)
        size = step.map.batch_size
        if database.engine.dialect.name == "sqlite" and size >= MANY:  # its commits take longer than its rows
            size = max(size, SQLITE_COPIES)
        self.size = size if run.sample is None else min(size, run.sample)

    def pages(self, keys: KeyRange, after: PointId | None) -> Iterator[Batch]:
        """What is to be copied next."""
        table, where = source_of(self.step)
        for low, high, count in rows.edges(self.database, table, self.step.key, where, keys, after, self.size):
            yield batch(high, count, after=low)

    def chosen(self, keys: KeyRange, item: Batch) -> list[Any]:
        """Conditions for the rows of a batch."""
        return rows.chosen(self.source, self.step.key, self.step.map.where, keys, item.after, item.last)

    def prepared(self, item: Batch) -> None:
        """Nothing has to be."""
        del item

    def write(
        self, connection: sa.Connection, item: Batch, keys: KeyRange, prepared: Prepared | None
    ) -> dict[str, int]:  # fmt: skip
        """Rows that were made, by table."""
        del prepared
        made = rows.copy_range(
            connection, self.source, self.target, self.columns, self.unique, self.chosen(keys, item),
            empty=self._empty(connection, item, keys),
        )  # fmt: skip
        return {self.target.name: made}

    def _empty(self, connection: sa.Connection, item: Batch, keys: KeyRange) -> bool:
        """Whether the target has nothing in the range of a batch. Only a batch that is repeated finds something there: the table
        was made for these rows."""
        key = self.unique[0]
        if self.unique != (key,) or self.columns[key] != self.step.key or not self._same_order(key):
            return False
        there = sa.select(sa.literal(1)).select_from(self.target.table)
        there = there.where(*self.target.within(key, keys, item.after, item.last)).limit(1)
        return connection.execute(there).first() is None

    def _same_order(self, key: str) -> bool:
        return self.target.types[key] == self.source.types[self.step.key]


class Making:
    """Rows that expressions make of rows."""

    def __init__(self, run: Run, database: RelationalDatabase, step: MapRows) -> None:
        self.database, self.step = database, step
        self.shapes = [shape(database, into.table) for into in step.map.into]
        self.mapper = Mapper(step.map, ciphers_of(run), misfits(step, self.shapes))
        self.unique = [unique_of(target, step, number) for number, target in enumerate(self.shapes)]
        self.size = step.map.batch_size if run.sample is None else min(step.map.batch_size, run.sample)

    def pages(self, keys: KeyRange, after: PointId | None) -> Iterator[Batch]:
        """Rows of the source. They are not mapped here: two threads that compute hinder each other."""
        table, where = source_of(self.step)
        names = self.mapper.columns
        for page in rows.pages(self.database, table, self.step.key, names, where, keys, after, self.size):
            yield batch(page[-1][self.step.key], len(page), page)

    def mapped(self, item: Batch) -> list[tuple[PointId, Mapped]]:
        """What becomes of the rows of a batch."""
        return [(row[self.step.key], self.mapper.apply(row)) for row in item.page]

    def prepared(self, item: Batch) -> Prepared:
        """What is to be written of a batch. Permanent when a row must not be left out."""
        found = self.mapped(item)
        for key, mapped in found:
            self._refuse(key, mapped)
        return Prepared(self, found)

    def write(
        self, connection: sa.Connection, item: Batch, keys: KeyRange, prepared: Prepared | None
    ) -> dict[str, int]:  # fmt: skip
        """Rows that were made, by table."""
        del item, keys
        assert prepared is not None
        inserted: dict[str, int] = {}
        for number, target in enumerate(self.shapes):
            made = written.insert(
                connection, target, self.unique[number], prepared.sealed[number], self.step.undo or None
            )  # fmt: skip
            inserted[target.name] = inserted.get(target.name, 0) + made
        return inserted

    def _refuse(self, key: PointId, mapped: Mapped) -> None:
        for problem in mapped.problems:
            if problem.otherwise == "fail":
                raise Permanent(
                    "A row does not fit the rules", f"{self.step.map.from_} {key!r}: {said(problem)}",
                    "Put the row right, or say in the rule what becomes of such rows; nothing of its batch was written",
                )  # fmt: skip


class Prepared:
    """What a page becomes: of each row what is wrong with it, and for each table the rows, encrypted."""

    def __init__(self, making: Making, found: Sequence[tuple[PointId, Mapped]]) -> None:
        self.problems = [(key, mapped.problems) for key, mapped in found if mapped.problems]
        first: list[dict[tuple[Any, ...], dict[str, Any]]] = [{} for _ in making.shapes]
        for key, mapped in found:
            for row in mapped.rows:
                names, target = making.unique[row.into], making.shapes[row.into]
                unique = tuple(row.values[name] for name in names)
                # what is kept of a row that may have to go again is JSON
                no_key = NO_KEY if target.postgresql or not making.step.undo else (*NO_KEY, bytes)
                if bad := [name for name, one in zip(names, unique, strict=True) if isinstance(one, no_key)]:
                    raise Permanent(
                        "A row that is made has no key",
                        f"{making.step.map.from_} {key!r}: {target.name}.{bad[0]} is NULL, a list, or bytes",
                        "Add a rule that leaves such rows out",
                    )
                first[row.into].setdefault(unique, row.values)
        # only what is written is encrypted: equal rows are one
        self.sealed = [[making.mapper.sealed(values) for values in one.values()] for one in first]


class Counts:
    """What a partition keeps: rows made by table, rows left out, items by what is wrong with them."""

    def __init__(self, partition: Partition) -> None:
        notes = partition.notes or {}
        self.inserted: dict[str, int] = dict(notes.get("inserted", {}))
        self.rules: dict[str, int] = dict(notes.get("rules", {}))
        self.left_out: int = notes.get("left_out", 0)

    def add(self, prepared: Prepared | None, made: dict[str, int]) -> list[Failure]:
        """Count a batch. Returns what is to be listed of it."""
        self.inserted = added([self.inserted, made])
        failures: list[Failure] = []
        for key, problems in prepared.problems if prepared is not None else ():
            for problem in problems:
                self.rules[problem.message] = self.rules.get(problem.message, 0) + problem.items
            if left := [said(problem) for problem in problems if problem.otherwise == "skip"]:
                failures.append(Failure(key, "; ".join(left), 1))
        self.left_out += len(failures)
        return failures

    def notes(self) -> dict[str, Any]:
        return {"inserted": dict(self.inserted), "rules": dict(self.rules), "left_out": self.left_out}


def said(problem: Problem) -> str:
    """A problem, with the item that it is of."""
    return f"{problem.item}: {problem.message}" if problem.item else problem.message


def _made_in(connection: sa.Connection, step: MapRows) -> list[tuple[Shape, tuple[str, ...]]]:
    """The tables that the undo table names, those last that others may reference."""
    found: dict[tuple[str, tuple[str, ...]], tuple[Shape, tuple[str, ...]]] = {}
    for number, into in reversed([*enumerate(step.map.into)]):
        described = schema.look(connection, into.table, count=False)
        if described is not None:
            target = Shape(connection, into.table, described)
            unique = unique_of(target, step, number)
            found[into.table, unique] = (target, unique)
    return list(found.values())
