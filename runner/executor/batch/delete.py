"""Documents deleted: a copy of the file goes to the trash, points are saved, rows go into the undo tables, then the
points go, then the file. Until the rows are gone everything is there; from then on the undo tables explain the points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace as replaced
from typing import TYPE_CHECKING

from runner import crash
from runner.clauses.selection import select
from runner.errors import ItemsFailed, NotFound
from runner.executor.batch.documents import (
    Document,
    Result,
    Work,
    fetch,
    home_of,
    isolated,
    keep,
    keep_marks,
    quietly,
    remove,
    store_of,
)
from runner.executor.batch.files import each
from runner.executor.flow import Pace, retried
from runner.plan import DeleteDocuments, Selection
from runner.points import PointId

if TYPE_CHECKING:
    from runner.executor import Run


#: How often points that come meanwhile are looked for, and how many are removed at once.
MAX_SWEEPS, SWEPT = 10, 1000


def doer(run: Run, step: DeleteDocuments) -> Callable[[Work], Sequence[Result]]:
    """From a batch of documents to what became of each."""
    pace = Pace(store_of(run, step.saved).capabilities().max_batch)

    def carry_out(work: Work) -> Sequence[Result]:
        kept, results = list(work.documents), list[Result]()
        if step.delete_files:
            kept, results = _files_saved(run, step, kept)
        results += isolated(kept, lambda some: _delete(run, step, some, pace))
        if step.delete_files:
            results = _files_gone(run, step, results)
        return results

    return carry_out


def _delete(run: Run, step: DeleteDocuments, documents: Sequence[Document], pace: Pace) -> list[Result]:
    ids = [point for one in documents for point in one.points]
    held = fetch(run, step.target, ids)
    keep(run, step, held, pace)
    keep_marks(run, step, held.ids)
    out: dict[str, tuple[int, int]] = {}
    if step.rows is not None and step.undo is not None and step.delete_rows and not run.dry:
        from runner.documents import rows as tables

        database, rows, undo = run.world.database(step.rows.connection), step.rows, step.undo
        names = [one.item.id for one in documents]
        out = retried(lambda: tables.take_out(database, rows, undo, names), run.limits, run.stop)
        crash.point(step.type, "rows")
    remove(run, step.target, ids)
    crash.point(step.type, "points")
    results = []
    for one in documents:
        rows_out, chunks_out = out.get(str(one.item.id), (0, 0))
        details = {"points": len(one.points), "rows": rows_out, "chunks": chunks_out}
        results.append(Result(one, "done", points=len(one.points), details=details, gone=one.points))
    return results


def sweep(run: Run, step: DeleteDocuments) -> int:
    """Points that name a deleted document, and that came without a row after it was selected, go as well. How many."""
    gone = {str(one.id): one for one in run.items.all(run.run) if one.status == "done"}
    if run.dry or step.fields.document is None or not gone:
        return 0
    selection, total = Selection(ids=tuple(one.id for one in gone.values()), missing="skip"), 0
    for _ in range(MAX_SWEEPS):
        found = retried(lambda: select(run.world, step.target, step.fields, None, selection), run.limits, run.stop)
        late = {str(one.id): one.points for one in found.documents if one.points}
        for name in _made_again(run, step, [gone[name].id for name in late]):
            del late[name]
        if not late:
            return total
        total += sum(map(len, late.values()))
        for name, points in late.items():
            more = [*gone[name].details.get("late", ()), *points]
            gone[name] = replaced(gone[name], details={**gone[name].details, "late": more})
        with run.ledger.guarded(run.lease) as connection:  # before: a rollback has to know them
            for home in dict.fromkeys((run.run, home_of(run))):
                run.items.settle(connection, home, [gone[name] for name in late])
        _points_gone(run, step, [point for points in late.values() for point in points])
    raise ItemsFailed(
        "Points of deleted documents keep coming",
        f"{step.target}: {total:,} came while {len(gone):,} documents were deleted",
        f"Stop their writer, then: vecrun resume {run.plan.job}",
    )


def _made_again(run: Run, step: DeleteDocuments, ids: Sequence[PointId]) -> list[str]:
    """Documents that somebody has made again under the same id: they are theirs."""
    if step.rows is None or not step.delete_rows or not ids:
        return []
    from runner.documents import rows as tables

    database, rows = run.world.database(step.rows.connection), step.rows
    return list(retried(lambda: tables.read(database, rows, ids), run.limits, run.stop))


def _points_gone(run: Run, step: DeleteDocuments, ids: list[PointId]) -> None:
    pace = Pace(store_of(run, step.saved).capabilities().max_batch)
    for start in range(0, len(ids), SWEPT):
        held = fetch(run, step.target, ids[start : start + SWEPT])
        keep(run, step, held, pace)
        keep_marks(run, step, held.ids)
        remove(run, step.target, held.ids)
        crash.point(step.type, "swept")


def _files_saved(run: Run, step: DeleteDocuments, documents: list[Document]) -> tuple[list[Document], list[Result]]:
    """(documents whose file is in the trash, or that have none; those whose file cannot be copied)."""
    files = step.files
    assert files is not None
    objects, home = run.world.objects(files.connection), home_of(run)

    def copy(key: str) -> None:
        if run.dry:
            objects.head(key)
            return
        with suppress(NotFound):  # it is gone already: there is nothing to keep, or it is in the trash
            retried(lambda: objects.copy(key, files.key(home, key)), run.limits, run.stop)

    errors = each([_key(one) for one in documents], lambda key: quietly(lambda: copy(key)) if key else "")
    crash.point(step.type, "files_saved")
    pairs = list(zip(documents, errors, strict=True))
    return [one for one, error in pairs if not error], [Result(one, "failed", error) for one, error in pairs if error]


def _files_gone(run: Run, step: DeleteDocuments, results: list[Result]) -> list[Result]:
    """The files themselves; one that the row of another document names stays."""
    files, rows = step.files, step.rows
    assert files is not None
    assert rows is not None
    if run.dry:
        return results
    from runner.documents.files import still_named

    objects, home = run.world.objects(files.connection), home_of(run)
    done = [one for one in results if one.status == "done" and _key(one.document)]
    database, keys = run.world.database(rows.connection), [_key(one.document) for one in done]
    shared = retried(lambda: still_named(database, rows, keys), run.limits, run.stop)

    def drop(key: str) -> str:
        if key in shared:
            return ""
        return quietly(lambda: retried(lambda: objects.delete(key), run.limits, run.stop))

    def held(key: str) -> bool:
        return key not in shared and objects.head(files.key(home, key)) is not None

    errors = each(keys, drop)
    crash.point(step.type, "files")
    final = {id(one): one for one in results}
    for one, key, error, gone in zip(done, keys, errors, each(keys, held), strict=True):
        if error:
            why = f"points and rows are deleted, the file is not: {error}"
            final[id(one)] = replaced(one, status="failed", error=why)
        elif gone:
            final[id(one)] = replaced(one, details={**one.details, "file": key})
    return list(final.values())


def _key(document: Document) -> str:
    """Key of its file, empty if it has none."""
    return (document.row.file or "") if document.row is not None else ""
