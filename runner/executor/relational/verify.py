"""Whether rows are what they should be: made once more and compared with those that are there, or decrypted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from runner.errors import VerificationFailed
from runner.executor import slices
from runner.executor.flow import Moved, retried
from runner.executor.relational.encryption import keys_of
from runner.executor.relational.mapping import Copying, Making, copies
from runner.executor.relational.rows import Batch, RowReader, batch, cut, limit, source_of, totals
from runner.executor.slices import MAX_FINDINGS, Done, Task
from runner.ledger import Partition
from runner.mapper import Secret
from runner.plan import EncryptColumns, MapRows, Place, VerifyRows
from runner.points import KeyRange, PointId
from runner.relational import rows, written
from runner.relational.opened import RelationalDatabase
from runner.relational.shape import Shape

if TYPE_CHECKING:
    from runner.executor import Run

#: Differences that an error names.
SHOWN = 20
Found = list[tuple[PointId, str]]


def ranges(run: Run, step: VerifyRows) -> list[KeyRange]:
    """The partition table."""
    return cut(run, step.of)


def work(run: Run, number: int, step: VerifyRows, part: int, seconds: float) -> bool:
    """Compare one slice of one partition. True when it is done or set aside."""
    database = retried(lambda: run.world.relational(step.connection), run.limits, run.stop)
    place = Place(connection=step.connection, collection=source_of(step.of)[0])

    def task_of(partition: Partition, parts: int) -> Task:
        pages, compare = _ways(run, database, step.of, partition)

        def act(item: Moved) -> Done:
            assert isinstance(item, Batch)
            wrong, found = retried(lambda: compare(item), run.limits, run.stop)
            return Done(item.read - wrong, compared=item.read, found=found)

        return Task(step.type, str(place), RowReader(place, partition, pages, limit(run, parts)), act)

    return slices.work(run, number, part, seconds, task_of)


def finish(run: Run, number: int, step: VerifyRows, parts: Sequence[Partition]) -> dict[str, Any]:
    """The verdict. VerificationFailed when a row is missing or another, or a reference leads nowhere."""
    result, table = totals(parts), source_of(step.of)[0]
    found: list[str] = []
    if result["done"] != result["read"]:
        found.append(f"{result['read'] - result['done']:,} of {result['read']:,} rows of {table} differ:")
        found += [f"  {key!r}: {what}" for key, what in run.ledger.findings_of(run.run, number)[:SHOWN]]
    if isinstance(step.of, MapRows):
        found += _whole(run, step.of, result["read"])
    if found:
        raise VerificationFailed(
            "Rows are not what they should be", "\n".join(found),
            f"Look at them; vecrun resume {run.plan.job} compares again. Or go back: vecrun rollback {run.plan.job}",
        )  # fmt: skip
    return result | {"differences": []}


def _ways(
    run: Run, database: RelationalDatabase, of: MapRows | EncryptColumns, partition: Partition
) -> tuple[Callable[[PointId | None], Iterator[Batch]], Callable[[Batch], tuple[int, Found]]]:
    """(how rows are read, how they are compared: how many are wrong, and what with the first of them)."""
    if isinstance(of, EncryptColumns):
        return _decrypted(run, database, of, partition)
    if copies(of):
        copying = Copying(run, database, of)

        def compare(item: Batch) -> tuple[int, Found]:
            with database.reading() as connection:
                return rows.copied_wrong(
                    connection, copying.source, copying.target, copying.columns, copying.unique, of.key,
                    copying.chosen(partition.keys, item), MAX_FINDINGS,
                )  # fmt: skip

        return lambda after: copying.pages(partition.keys, after), compare
    remaking = Remaking(run, database, of)
    return lambda after: remaking.pages(partition.keys, after), remaking.compare


def _decrypted(
    run: Run, database: RelationalDatabase, of: EncryptColumns, partition: Partition
) -> tuple[Callable[[PointId | None], Iterator[Batch]], Callable[[Batch], tuple[int, Found]]]:
    keys = keys_of(run, of)
    wrong = f"not encrypted with key {of.after}" if of.after else f"still encrypted with key {of.before}"

    def pages(after: PointId | None) -> Iterator[Batch]:
        for page in rows.pages(database, of.table, of.key, of.columns, None, partition.keys, after, of.batch_size):
            yield batch(page[-1][of.key], len(page), page)

    def compare(item: Batch) -> tuple[int, Found]:
        found = [
            (row[of.key], f"{', '.join(bad)} {wrong}")
            for row in item.page
            if (bad := [name for name in of.columns if not keys.is_done(row[name])])
        ]
        return len(found), found

    return pages, compare


class Remaking(Making):
    """Makes rows once more, to compare them."""

    def compare(self, item: Batch) -> tuple[int, Found]:
        """How many rows of the source are not what they should be in the other tables, and what is wrong with them."""
        made = self.mapped(item)
        found: dict[PointId, str] = {}
        with self.database.reading() as connection:
            for number, target in enumerate(self.shapes):
                wanted = [(key, row.values) for key, mapped in made for row in mapped.rows if row.into == number]
                for key, what in self._compare(connection, target, self.unique[number], wanted):
                    found[key] = f"{found[key]}; {what}" if key in found else what
        for key, mapped in made:
            if left := [one.message for one in mapped.problems if one.otherwise == "fail"]:
                found[key] = f"does not fit: {left[0]}"
        return len(found), list(found.items())[:MAX_FINDINGS]

    def _compare(
        self, connection: sa.Connection, target: Shape, unique: Sequence[str],
        wanted: Sequence[tuple[PointId, dict[str, Any]]],
    ) -> Iterator[tuple[PointId, str]]:  # fmt: skip
        if not wanted:
            return
        secret = [name for name, value in wanted[0][1].items() if isinstance(value, Secret)]
        plain = [{name: value for name, value in values.items() if name not in secret} for _, values in wanted]
        held = written.compare(connection, target, unique, plain, secret)
        for (key, values), one in zip(wanted, held, strict=True):
            if one is None:
                yield key, f"no row of {target.name}"
                continue
            other, stored = one
            other += [name for name in secret if not self.mapper.opened(values[name], stored[name])]
            if other:
                yield key, rows.differing(target, other)


def _whole(run: Run, of: MapRows, read: int) -> list[str]:
    """What is to be said of the tables as a whole: references that lead nowhere, and a backup with other rows."""
    database, found = run.world.relational(of.connection), list[str]()
    with database.reading() as connection:
        if connection.dialect.name == "sqlite":  # others have looked at each row that was written
            for table in dict.fromkeys(into.table for into in of.map.into):
                found += _dangling(connection, table)
        if of.make is not None and copies(of) and not of.map.live and run.sample is None:
            name = of.map.into[0].table
            schema_name, _, bare = name.rpartition(".")
            count = sa.select(sa.func.count()).select_from(sa.table(bare, schema=schema_name or None))
            if (held := connection.execute(count).scalar_one()) != read:
                found.append(f"{name} holds {held:,} rows, {of.map.from_} has {read:,}")
    return found


def _dangling(connection: sa.Connection, table: str) -> list[str]:
    schema_name, _, bare = table.rpartition(".")
    quote = connection.dialect.identifier_preparer.quote_identifier
    pragma = f"PRAGMA {quote(schema_name or 'main')}.foreign_key_check({quote(bare)})"
    amiss: dict[str, int] = {}
    for row in connection.exec_driver_sql(pragma):
        amiss[row[2]] = amiss.get(row[2], 0) + 1
    return [f"{count:,} rows of {table} reference rows of {other} that are not there" for other, count in amiss.items()]
