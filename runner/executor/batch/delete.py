"""Documents deleted: a copy of the file goes to the trash, points are saved, rows go into the undo tables, then the
points go, then the file. Until the rows are gone everything is there; from then on the undo tables explain the points.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace as replaced
from typing import TYPE_CHECKING

from runner import crash
from runner.clauses.selection import select
from runner.errors import ItemsFailed, Permanent
from runner.executor.batch.documents import (
    Document,
    Result,
    Work,
    failed,
    fetch,
    home_of,
    isolated,
    keep,
    keep_marks,
    remove,
    store_of,
)
from runner.executor.batch.files import copy_to_trash, delete_copied, key_of
from runner.executor.flow import Pace, retried
from runner.items import Item
from runner.plan import DeleteDocuments, Selection
from runner.points import PointBatch, PointId

if TYPE_CHECKING:
    from runner.executor import Run


#: How often points that come meanwhile are looked for, and how many are removed at once.
MAX_SWEEPS, SWEPT = 10, 1000
#: Documents that a line of the log names.
NAMED = 5


def doer(run: Run, step: DeleteDocuments) -> Callable[[Work], Sequence[Result]]:
    """From a batch of documents to what became of each."""
    pace = Pace(store_of(run, step.saved).capabilities().max_batch)

    def carry_out(work: Work) -> Sequence[Result]:
        kept, results = list(work.documents), list[Result]()
        if step.delete_files:
            errors = copy_to_trash(run, step, kept)
            results = [failed(one, why) for one in kept if (why := errors.get(key_of(one), ""))]
            kept = [one for one in kept if not errors.get(key_of(one), "")]
        results += isolated(kept, lambda some: _delete(run, step, some, pace))
        if step.delete_files and not run.dry:
            results = _without_files(run, step, results)
        return results

    return carry_out


def _delete(run: Run, step: DeleteDocuments, documents: Sequence[Document], pace: Pace) -> list[Result]:
    ids = list(dict.fromkeys(point for one in documents for point in one.points))
    held = fetch(run, step.target, ids)
    try:
        _saved_as_now(run, step, held, pace)
        out = _rows_out(run, step, documents)
    except Permanent:
        if (
            len(documents) == 1
        ):  # it stays: what somebody makes of it until another try, or a rollback, is not to go back
            _forget_saved(run, step, held.ids)
        raise
    shared = _of_others(run, step, ids, documents)
    going = [point for point in held.ids if str(point) not in shared]
    keep_marks(run, step, going)
    remove(run, step.target, going)
    crash.point(step.type, "points")
    there = set(held.ids)
    gone = {*going, *_gone_before(run, step, [point for point in ids if point not in there])}
    results = []
    for one in documents:
        rows_out, chunks_out = out.get(str(one.item.id), (0, 0))
        mine = [point for point in one.points if point in gone]
        details = {"points": len(mine), "rows": rows_out, "chunks": chunks_out}
        if stay := [point for point in one.points if point in there and str(point) in shared]:
            details["shared"] = stay  # type: ignore[assignment]
        results.append(Result(one, "done", points=len(mine), details=details, gone=mine))
    return results


def _saved_as_now(run: Run, step: DeleteDocuments, held: PointBatch, pace: Pace) -> None:
    """Save points as they are. What is still there was not deleted by an earlier try, so a copy of then is too old."""
    _forget_saved(run, step, held.ids)
    keep(run, step, held, pace)


def _forget_saved(run: Run, step: DeleteDocuments, ids: Sequence[PointId]) -> None:
    if not run.dry and (old := fetch(run, step.saved, ids).ids):
        remove(run, step.saved, old)


def _gone_before(run: Run, step: DeleteDocuments, ids: Sequence[PointId]) -> list[PointId]:
    """Those that an earlier try has deleted."""
    return [] if run.dry else fetch(run, step.saved, ids).ids


def _rows_out(run: Run, step: DeleteDocuments, documents: Sequence[Document]) -> dict[str, tuple[int, int]]:
    """str(id) -> (document rows, chunk rows) that are out."""
    if step.rows is None or step.undo is None or not step.delete_rows or run.dry:
        return {}
    from runner.documents import rows as tables

    database, rows, undo = run.world.database(step.rows.connection), step.rows, step.undo
    names = [one.item.id for one in documents]
    out = retried(lambda: tables.take_out(database, rows, undo, names), run.limits, run.stop)
    crash.point(step.type, "rows")
    return out


def _of_others(
    run: Run, step: DeleteDocuments, points: Sequence[PointId], documents: Sequence[Document]
) -> Collection[str]:
    """Points, as text, that the row of another document names: they stay with it. Rows that are out count no more; one of
    these documents that has some again was made again."""
    if step.rows is None or not points:
        return ()
    from runner.documents.files import still_named_points

    database, rows = run.world.database(step.rows.connection), step.rows
    but = [] if step.delete_rows and not run.dry else [one.item.id for one in documents]
    return retried(lambda: still_named_points(database, rows, points, but), run.limits, run.stop)


def _without_files(run: Run, step: DeleteDocuments, results: list[Result]) -> list[Result]:
    """The same, after the files are gone; one that the row of another document names stays."""
    found = delete_copied(
        run, step, [key_of(one.document) for one in results if one.status == "done" and key_of(one.document)]
    )
    final = []
    for one in results:
        gone, error = found.get(key_of(one.document), (False, "")) if one.status == "done" else (False, "")
        if error:
            why = f"points and rows are deleted, the file is not: {error}"
            one = replaced(one, status="failed", error=why)  # noqa: PLW2901
        elif gone:
            one = replaced(one, details={**one.details, "file": key_of(one.document)})  # noqa: PLW2901
        final.append(one)
    return final


# What comes meanwhile ------------------------------------------------------------------------------------------------------


def sweep(run: Run, step: DeleteDocuments) -> int:
    """After all: points that stayed because the row of a document named them which is gone by now as well, and, where
    there are no rows, points that came since for a deleted document. How many went.

    Where there are rows, a point that came since may be the first of a document that is being added again: it stays, and
    is told.
    """
    gone = {str(one.id): one for one in run.items.all(run.run) if one.status == "done"}
    if run.dry or not gone:
        return 0
    total = _shared_gone(run, step, gone)
    if step.fields.document is None:
        return total
    for _ in range(MAX_SWEEPS):
        late = _late(run, step, gone)
        if not late or step.rows is not None:
            _tell(run, step, {name: len(points) for name, points in late.items()})
            return total
        total += sum(map(len, late.values()))
        for name, points in late.items():
            details = gone[name].details
            gone[name] = replaced(
                gone[name],
                details={
                    **details, "late": [*details.get("late", ()), *points],
                    "points": details.get("points", 0) + len(points),
                },
            )  # fmt: skip
        _settle(run, [gone[name] for name in late])  # before: a rollback has to know them
        _points_gone(run, step, [point for points in late.values() for point in points])
    raise ItemsFailed(
        "Points of deleted documents keep coming",
        f"{step.target}: {total:,} came while {len(gone):,} documents were deleted",
        f"Stop their writer, then: vecrun resume {run.plan.job}",
    )


def _late(run: Run, step: DeleteDocuments, gone: dict[str, Item]) -> dict[str, list[PointId]]:
    """str(id) -> points that name this document, of those that nobody has made again."""
    selection = Selection(ids=tuple(one.id for one in gone.values()), missing="skip")
    found = retried(lambda: select(run.world, step.target, step.fields, None, selection), run.limits, run.stop)
    late = {}
    for one in found.documents:
        known = {*gone[str(one.id)].details.get("shared", ())}
        if points := [point for point in one.points if point not in known]:
            late[str(one.id)] = points
    if step.rows is not None and late:
        from runner.documents import rows as tables

        database, rows, ids = run.world.database(step.rows.connection), step.rows, [gone[name].id for name in late]
        for name in retried(lambda: tables.read(database, rows, ids), run.limits, run.stop):
            del late[name]
    return late


def _tell(run: Run, step: DeleteDocuments, late: dict[str, int]) -> None:
    if not late:
        return
    shown = ", ".join(repr(name) for name in list(late)[:NAMED])
    text = (
        f"{step.target}: points without a row came since for deleted documents: {sum(late.values()):,}, of {shown}. They stay: "
        "such a document may be on its way again. If it is not, delete it once more"
    )
    run.say(text)
    run.ledger.write_log(run.run, "warning", text)


def _shared_gone(run: Run, step: DeleteDocuments, gone: dict[str, Item]) -> int:
    """Points that another document named, too, which went after this one."""
    stayed = [point for one in gone.values() for point in one.details.get("shared", ())]
    if not stayed or step.rows is None:
        return 0
    named = _of_others(run, step, stayed, [Document(one) for one in gone.values()])
    free = set(fetch(run, step.target, [point for point in stayed if str(point) not in named]).ids)
    changed, total = list[Item](), 0
    for name, one in gone.items():
        before = one.details.get("swept", ())
        mine = list(dict.fromkeys([*before, *(point for point in one.details.get("shared", ()) if point in free)]))
        total += len(mine)
        if len(mine) > len(before):
            points = one.details.get("points", 0) + len(mine) - len(before)
            gone[name] = replaced(one, details={**one.details, "points": points, "swept": mine})
            changed.append(gone[name])
    _settle(run, changed)
    _points_gone(run, step, list(free))
    return total


def _settle(run: Run, items: Sequence[Item]) -> None:
    with run.ledger.guarded(run.lease) as connection:
        for home in dict.fromkeys((run.run, home_of(run))):
            run.items.settle(connection, home, items)


def _points_gone(run: Run, step: DeleteDocuments, ids: list[PointId]) -> None:
    pace = Pace(store_of(run, step.saved).capabilities().max_batch)
    for start in range(0, len(ids), SWEPT):
        held = fetch(run, step.target, ids[start : start + SWEPT])
        keep(run, step, held, pace)
        keep_marks(run, step, held.ids)
        remove(run, step.target, held.ids)
        crash.point(step.type, "swept")
