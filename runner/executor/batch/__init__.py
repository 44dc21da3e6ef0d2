"""Batch operations on documents: found once, worked on in batches of documents, compared, and brought back.

Partitions are ranges of the numbers that documents got when they were selected. What became of each document is
recorded in the checkpoint's transaction; a document that fails stops no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from runner.clauses.selection import NO_SUCH, select
from runner.errors import PlanRefused
from runner.executor import slices
from runner.executor.batch import check, delete, edit, made, reprocess, restore
from runner.executor.batch.documents import DocumentReader, Result, Work, documents_of, home_of, recorded
from runner.executor.flow import retried
from runner.executor.slices import Done, Task
from runner.items import Item
from runner.ledger import Partition
from runner.plan import (
    CheckDocuments,
    DeleteDocuments,
    EditDocuments,
    ReprocessDocuments,
    RestoreDocuments,
    SelectDocuments,
    Selection,
)
from runner.points import KeyRange
from runner.vectors import Failure

if TYPE_CHECKING:
    from runner.executor import Run

#: Steps that go through the documents of a run in partitions.
OverDocuments = DeleteDocuments | EditDocuments | ReprocessDocuments | CheckDocuments | RestoreDocuments
#: Least number of documents of a partition.
PARTITION_DOCUMENTS = 500
#: Failed documents that a dry run names.
SHOWN = 10


def find(run: Run, step: SelectDocuments) -> dict[str, Any]:
    """Record the documents of the run. PlanRefused when they are others than those that were planned."""
    if step.of_run is not None:
        return _failed_of(run, step, step.of_run)
    found = retried(
        lambda: select(run.world, step.target, step.fields, step.rows, step.selection), run.limits, run.stop
    )
    if found.digest != step.selected:
        raise PlanRefused(
            "The selection moved since the plan was made",
            f"{len(found.documents) - len(found.missing):,} documents with {found.points:,} points are selected now, "
            f"{step.documents:,} with {step.points:,} were planned; nothing was written",
            f"Give it up: vecrun rollback {run.plan.job}. Then plan again, and look at what changed",
        )
    items = found.items(step.selection.missing)
    if run.sample is not None:
        items = items[: run.sample]
    run.items.record(run.lease, items)
    absent = [Failure(one.id, NO_SUCH, 1) for one in items if one.status == "failed"]
    if absent:
        with run.ledger.guarded(run.lease) as connection:
            run.vectors.fail(connection, run.run, absent)
    return {"documents": step.documents, "points": found.points, "missing": len(found.missing)}


def _failed_of(run: Run, step: SelectDocuments, of_run: str) -> dict[str, Any]:
    """For another try: the documents of a run that failed."""
    items = [one for one in run.items.all(of_run) if one.status == "failed"]
    selection = Selection(ids=tuple(one.id for one in items), missing=step.selection.missing)
    again = retried(lambda: select(run.world, step.target, step.fields, step.rows, selection), run.limits, run.stop)
    now = {str(one.id): one for one in again.documents}
    found = list[Item]()
    for one in items:  # points that came since; those that are gone may be saved already
        ours = set(one.details.get("made", ()))  # by an earlier try: they are no points of the document as it was
        since = [point for point in now[str(one.id)].points if point not in ours]
        points = tuple(dict.fromkeys([*one.points, *since]))
        absent = now[str(one.id)].missing and not points and not one.details.get("rows")  # the first try has its row
        found.append(Item(one.number, one.id, points, "failed" if absent else "pending", one.details))
    run.items.record(run.lease, found)
    return {"documents": len(found), "points": sum(len(one.points) for one in found)}


def ranges(run: Run, step: OverDocuments) -> list[KeyRange]:
    """The partition table: ranges of numbers."""
    change = step.of if isinstance(step, CheckDocuments | RestoreDocuments) else step
    if isinstance(step, RestoreDocuments | CheckDocuments) and run.dry:
        return []
    if change.rows is not None and change.undo is not None and not run.dry and step is change:
        from runner.documents import rows as tables

        database, rows, undo = run.world.database(change.rows.connection), change.rows, change.undo
        retried(lambda: tables.prepare(database, rows, undo), run.limits, run.stop)
    source = home_of(run) if isinstance(step, RestoreDocuments) else run.failures_of or run.run
    count = run.items.last(source) + 1
    parallel = run.world.store(change.target.connection).capabilities().parallel
    parts = max(1, min(run.hands if parallel else 1, count // PARTITION_DOCUMENTS, slices.MAX_PARTITIONS))
    bounds = [count * part // parts for part in range(1, parts)]
    lows: list[int | None] = [None, *bounds]
    highs: list[int | None] = [*bounds, None]
    return [KeyRange(low, high) for low, high in zip(lows, highs, strict=True)]


def work(run: Run, number: int, step: OverDocuments, part: int, seconds: float) -> bool:
    """Work on one slice of one partition. True when it is done or set aside."""
    carry_out: Callable[[Work], Sequence[Result]]
    prepare = None
    match step:
        case DeleteDocuments():
            carry_out = delete.doer(run, step)
        case EditDocuments():
            carry_out = edit.doer(run, step)
        case ReprocessDocuments():
            prepare, carry_out = made.preparer(run, step), reprocess.doer(run, step)
        case CheckDocuments():
            return check.work(run, number, step, part, seconds)
        case RestoreDocuments():
            return restore.work(run, number, step, part, seconds)

    def task_of(partition: Partition, _parts: int) -> Task:
        notes: dict[str, Any] = dict(partition.notes or {})

        def act(item: Any) -> Done:
            assert isinstance(item, Work)
            results = list(carry_out(item))
            for one in results:
                notes[one.status] = notes.get(one.status, 0) + 1
                notes["points"] = notes.get("points", 0) + one.points
            return Done(
                len([one for one in results if one.status != "failed"]), compared=item.read, notes=dict(notes),
                record=recorded(run, step, results),
            )  # fmt: skip

        reader = DocumentReader(run, step, partition, run.run, documents_of(run, step), step.batch_size, prepare)
        return Task(step.type, step.target.collection, reader, act)

    return slices.work(run, number, part, seconds, task_of)


def finish(run: Run, step: OverDocuments, parts: Sequence[Partition]) -> dict[str, Any]:
    """After all partitions of a step: what became of the documents."""
    result: dict[str, Any] = {
        key: sum(getattr(part, key) for part in parts) for key in ("read", "done", "batches", "retries")
    }
    notes = [part.notes or {} for part in parts]
    keys = sorted({key for one in notes for key in one})
    result |= {key: sum(one.get(key, 0) for one in notes) for key in keys}
    if not isinstance(step, CheckDocuments | RestoreDocuments):  # as the report of the run counts them
        counts = run.items.counts(run.run)
        result |= {status: counts.get(status, 0) for status in ("done", "unchanged", "failed")}
        if run.dry:  # its items are gone with it
            bad = [one for one in run.items.all(run.run) if one.status == "failed"]
            result["failures"] = [f"{one.id!r}: {one.details.get('error', '')}" for one in bad[:SHOWN]]
    if isinstance(step, DeleteDocuments) and (late := delete.sweep(run, step)):
        result |= {"points": result.get("points", 0) + late, "late": late}
    if isinstance(step, ReprocessDocuments):
        reprocess.sweep(run, step)
    if isinstance(step, CheckDocuments):
        check.conclude(run, step, result)
    if isinstance(step, RestoreDocuments):
        restore.conclude(run, step, result)
    return result
