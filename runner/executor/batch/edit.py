"""Metadata and tags changed: points first, then rows, so that a row never says what its points do not say yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from runner import crash
from runner.errors import Permanent
from runner.executor.batch.documents import Document, Result, Work, fetch, isolated, keep, remove, store_of
from runner.executor.flow import Pace, checker, retried
from runner.plan import EditDocuments
from runner.points import Payload, Payloads, PointBatch, PointId, json_dumps

if TYPE_CHECKING:
    from runner.executor import Run


def doer(run: Run, step: EditDocuments) -> Callable[[Work], Sequence[Result]]:
    """From a batch of documents to what became of each."""
    store = store_of(run, step.target)
    pace = Pace(min(store.capabilities().max_batch, store_of(run, step.saved).capabilities().max_batch))
    check = checker(store, step.target_schema, step.accept)

    def carry_out(work: Work) -> Sequence[Result]:
        return isolated(work.documents, lambda some: _edit(run, step, some, pace, check))

    return carry_out


def _edit(
    run: Run, step: EditDocuments, documents: Sequence[Document], pace: Pace, check: Callable[[PointBatch], None]
) -> list[Result]:  # fmt: skip
    held = fetch(run, step.target, [point for one in documents for point in one.points])
    owner = {point: one for one in documents for point in one.points}
    rows, payloads = list[int](), list[Payload]()
    for row, (point, payload) in enumerate(zip(held.ids, held.payloads.dicts, strict=True)):
        try:
            after = step.fields.edited(payload, step.edit)
        except ValueError as exc:
            raise Permanent(
                "Metadata cannot be changed as it is wished", f"{owner[point].item.id}, point {point!r}: {exc}"
            ) from exc
        if json_dumps(after) != json_dumps(payload):
            rows.append(row)
            payloads.append(after)
    changed = set[PointId]()
    if rows:
        before = held.take(rows)
        after_ = PointBatch(
            before.ids, before.vectors, Payloads(payloads), before.sparse, before.missing, before.partitions
        )
        check(after_)
        keep(run, step, before, pace)
        store = store_of(run, step.target)
        pace.write(after_, lambda part: store.upsert(step.target.collection, part), run.limits, run.stop)
        crash.point(step.type, "points")
        changed = set(before.ids)
    try:
        told = _rows(run, step, documents)
    except Permanent:
        if len(documents) == 1 and not run.dry:
            _points_back(run, step, documents[0], pace)
        raise
    crash.point(step.type, "rows")
    return _results(run, step, documents, changed, told)


def _points_back(run: Run, step: EditDocuments, document: Document, pace: Pace) -> None:
    """What its rows refuse to say, its points do not say either: the document has failed, and is as before."""
    saved, held = fetch(run, step.saved, document.points), fetch(run, step.target, document.points)
    before = dict(zip(saved.ids, saved.payloads.dicts, strict=True))
    rows = [row for row, point in enumerate(held.ids) if point in before]
    payloads = [step.fields.edited_back(before[held.ids[row]], held.payloads.dicts[row], step.edit)[0] for row in rows]
    if not rows:
        return
    now = held.take(rows)
    back = PointBatch(now.ids, now.vectors, Payloads(payloads), now.sparse, now.missing, now.partitions)
    store = store_of(run, step.target)
    pace.write(back, lambda part: store.upsert(step.target.collection, part), run.limits, run.stop)
    remove(run, step.saved, saved.ids)  # another try saves what is there then


def _rows(run: Run, step: EditDocuments, documents: Sequence[Document]) -> dict[str, bool]:
    if step.rows is None or step.undo is None or run.dry:
        return {}
    from runner.documents import rows as tables

    database, rows, undo = run.world.database(step.rows.connection), step.rows, step.undo
    names = [one.item.id for one in documents]
    return retried(lambda: tables.edit(database, rows, undo, names, step.edit), run.limits, run.stop)


def _row_count(step: EditDocuments, one: Document) -> int:
    """Rows of both tables that have a column for what changes."""
    rows = step.rows
    if rows is None or one.row is None:
        return 0
    meta, tags = step.edit.on_metadata, step.edit.on_tags
    own = bool((meta and rows.metadata_column) or (tags and rows.tags_column))
    chunks = rows.chunks
    theirs = chunks is not None and bool((meta and chunks.metadata_column) or (tags and chunks.tags_column))
    return int(own) + (len(one.row.chunks) if theirs else 0)


def _results(
    run: Run, step: EditDocuments, documents: Sequence[Document], changed: set[PointId], told: dict[str, bool]
) -> list[Result]:  # fmt: skip
    """A point that is as wished already was changed by this run, before a crash, when it is saved."""
    rest = [point for one in documents for point in one.points if point not in changed]
    mine = changed | (set(fetch(run, step.saved, rest).ids) if rest and not run.dry else set())
    results = []
    for one in documents:
        points, row = sum(point in mine for point in one.points), told.get(str(one.item.id), False)
        details = {"points": points, "rows": _row_count(step, one) if row else 0}
        results.append(Result(one, "done" if points or row else "unchanged", points=points, details=details))
    return results
