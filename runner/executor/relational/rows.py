"""What steps over the rows of a table have in common: where their rows come from, and their partitions."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner import crash
from runner.ciphers import Cipher
from runner.errors import Permanent, Transient
from runner.executor.flow import MAX_DELAY, Moved
from runner.kinds.sql_migration.spec import KEY
from runner.ledger import Partition
from runner.plan import EncryptColumns, MapRows, Place
from runner.points import KeyRange, Payloads, PointBatch, PointId
from runner.relational import rows
from runner.relational.encrypting import changed_rows
from runner.settings import Limits

if TYPE_CHECKING:
    from runner.executor import Run

#: From the key that was read last (None: from the beginning): batches in the order of keys.
Pages = Callable[[PointId | None], Iterator["Batch"]]


@dataclass(frozen=True)
class Batch(Moved):
    """Rows of one page. A plain copy has none: its rows are those behind `after`, to `last`. `columns`: of each key, where they
    are not the same."""

    page: Sequence[Mapping[str, Any]] = ()
    after: PointId | None = None
    columns: Mapping[PointId, Sequence[str]] | None = None


def batch(
    last: PointId, read: int, page: Sequence[Mapping[str, Any]] = (), after: PointId | None = None,
    columns: Mapping[PointId, Sequence[str]] | None = None,
) -> Batch:  # fmt: skip
    """A batch; no points are in it."""
    return Batch(PointBatch([], {}, Payloads([])), [], last=last, read=read, page=page, after=after, columns=columns)


@contextlib.contextmanager
def placed(step: MapRows | EncryptColumns, item: Batch) -> Iterator[None]:
    """Errors of the database name the step, its tables and the keys of the batch."""
    try:
        yield
    except (Permanent, Transient) as exc:
        if type(exc) not in (Permanent, Transient):
            raise
        first = f"{item.page[0][step.key]!r} " if item.page else ""
        tables = ", ".join(one for one in step.tables if one != step.undo)
        place = f"step {step.name}, into {tables}, rows {first}to {item.last!r} of {source_of(step)[0]}"
        told = type(exc)(exc.summary, f"{place}: {exc.detail}" if exc.detail else place, exc.hint)
        raise told.with_traceback(exc.__traceback__) from None


@dataclass(frozen=True)
class RowReader:
    """Where the rows of a partition come from. `limit`: at most about so many in all."""

    place: Place
    partition: Partition
    pages: Pages
    limit: int | None = None

    def batches(self, limits: Limits, stop: threading.Event) -> Iterator[Moved]:
        """Batches behind the partition's cursor; a transient error reads on behind the last one."""
        last, read, failures = self.partition.cursor, self.partition.read, 0
        while not stop.is_set():
            try:
                for page in self.pages(last):
                    if self.limit is not None and read >= self.limit:
                        return
                    last, read, failures = page.last, read + page.read, 0
                    crash.point("read", "after_read")
                    yield page
                    if stop.is_set():
                        return
                return
            except Transient:
                failures += 1
                if failures > limits.retries or stop.wait(min(limits.retry_delay * 2 ** (failures - 1), MAX_DELAY)):
                    raise


def source_of(step: MapRows | EncryptColumns) -> tuple[str, str | None]:
    """(table whose rows are read, which of them)."""
    if isinstance(step, MapRows):
        return step.map.from_, step.map.where
    return step.table, None


def batch_size(step: MapRows | EncryptColumns) -> int:
    """Rows of one transaction."""
    return step.map.batch_size if isinstance(step, MapRows) else step.batch_size


def cut(run: Run, step: MapRows | EncryptColumns) -> list[KeyRange]:
    """As many ranges as can be worked on at once. SQLite has one writer, and a dry run one transaction."""
    database = run.world.relational(step.connection)
    table, where = source_of(step)
    several = database.engine.dialect.name != "sqlite" and not run.dry
    parts = min(run.hands, math.ceil(step.rows / batch_size(step))) if several else 1
    if isinstance(step, EncryptColumns) and step.undoes and step.undo:
        where = changed_rows(database.engine.dialect, step.key, step.undo)
    return rows.cut(database, table, step.key, where, parts)


def limit(run: Run, parts: int) -> int | None:
    """Rows that a sample reads of a partition."""
    return None if run.sample is None else math.ceil(run.sample / parts)


def ciphers(run: Run) -> dict[str, Cipher]:
    """The keys of the job, by their names in the spec."""
    return {name.removeprefix(KEY): run.world.cipher(name) for name in run.plan.inline if name.startswith(KEY)}


def totals(parts: Sequence[Partition]) -> dict[str, Any]:
    """What the ledger counts of all partitions."""
    return {key: sum(getattr(part, key) for part in parts) for key in ("read", "done", "batches", "retries")}


def added(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Counts by name, added up."""
    found: dict[str, int] = {}
    for one in counts:
        for name, count in one.items():
            found[name] = found.get(name, 0) + count
    return found
