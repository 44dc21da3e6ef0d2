"""Documents made anew: new chunk rows are announced and new points written beside the old ones, rows are swapped in one
transaction, then the old points go. Search finds the old chunks, or both, but never a document without its chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace as replaced
from typing import TYPE_CHECKING, Any

import numpy as np

from runner import crash
from runner.errors import Permanent
from runner.executor.batch.documents import (
    Document,
    Result,
    Work,
    fetch,
    home_of,
    isolated,
    keep,
    keep_marks,
    remove,
    store_of,
)
from runner.executor.batch.made import Made
from runner.executor.flow import Pace, checker, retried
from runner.plan import ReprocessDocuments
from runner.points import Payloads, PointBatch, PointId
from runner.store import NORMS

if TYPE_CHECKING:
    from runner.executor import Run

#: Points that are looked at at once.
SWEPT = 1000


def doer(run: Run, step: ReprocessDocuments) -> Callable[[Work], Sequence[Result]]:
    """From a batch of prepared documents to what became of each."""
    store = store_of(run, step.target)
    pace = Pace(min(store.capabilities().max_batch, store_of(run, step.saved).capabilities().max_batch))
    check = checker(store, step.target_schema, (*step.accept, NORMS))  # a model's vectors can be had again

    def carry_out(work: Work) -> Sequence[Result]:
        bad = [Result(one, "failed", one.error) for one in work.documents if one.error]
        for one in bad:
            if "made" in one.document.item.details and not run.dry:
                _given_up(run, step, one.document, pace)
        good = [one for one in work.documents if not one.error]
        return [*bad, *isolated(good, lambda some: _swap(run, step, some, pace, check))]

    return carry_out


def _swap(
    run: Run, step: ReprocessDocuments, documents: Sequence[Document], pace: Pace, check: Callable[[PointBatch], None]
) -> list[Result]:  # fmt: skip
    wanted = {one.item.number: set(one.made.ids) for one in documents}
    going = {
        one.item.number: [point for point in one.points if point not in wanted[one.item.number]] for one in documents
    }
    stale = [
        point for one in documents for point in one.item.details.get("made", ()) if point not in wanted[one.item.number]
    ]
    changes = {one.item.number: _changes(step, one, going[one.item.number]) for one in documents}
    batches = [one.made.written for one in documents if len(one.made.written)]
    for batch in batches:
        check(batch)
    _announce(run, step, documents, changes)
    changing = {point for batch in batches for point in batch.ids} | {
        point for some in going.values() for point in some
    }
    before = fetch(run, step.target, [point for one in documents for point in one.points if point in changing])
    keep(run, step, before, pace)
    keep_marks(run, step, before.ids)
    store = store_of(run, step.target)
    for batch in _joined(batches):
        pace.write(batch, lambda part: store.upsert(step.target.collection, part), run.limits, run.stop)
    crash.point(step.type, "points")
    try:
        swapped = _rows_swapped(run, step, documents)
    except Permanent:
        if len(documents) == 1 and not run.dry:
            new = [point for point, _piece in documents[0].made.new if point not in documents[0].points]
            _points_back(run, step, before.ids, new, pace)
        raise
    crash.point(step.type, "rows")
    shared = _let_go(run, step, [*(point for some in going.values() for point in some), *stale])
    crash.point(step.type, "old_points")
    results = []
    for one in documents:
        stay = [point for point in going[one.item.number] if point in shared]
        gone = [point for point in going[one.item.number] if point not in shared]
        rows = sum(swapped.get(str(one.item.id), ()))
        result = _result(one, gone, rows, changed=changes[one.item.number])
        results.append(replaced(result, details={**result.details, "shared": stay}) if stay else result)
    return results


def _let_go(run: Run, step: ReprocessDocuments, points: Sequence[PointId]) -> set[PointId]:
    """After the rows of their documents are swapped: points that no row names any more go. Those that are left."""
    shared = _named(run, step, points)
    remove(run, step.target, [point for point in points if point not in shared])
    if shared:  # their vectors are what they were
        with run.ledger.guarded(run.lease) as connection:
            for item in step.target_schema.vectors:
                run.vectors.bring_back(connection, str(step.saved), str(step.target), item.name, list(shared))
    return shared


def _named(run: Run, step: ReprocessDocuments, points: Sequence[PointId]) -> set[PointId]:
    """Those of the points that a chunk row names, of whichever document."""
    if step.rows is None or step.rows.chunks is None or not points or run.dry:
        return set()
    from runner.documents.files import still_named_points

    database, rows = run.world.database(step.rows.connection), step.rows
    named = retried(lambda: still_named_points(database, rows, points, ()), run.limits, run.stop)
    return {point for point in points if str(point) in named}


def sweep(run: Run, step: ReprocessDocuments) -> None:
    """After all documents: points that stayed because a row of another one named them, which has let them go since."""
    if run.dry or step.rows is None or step.rows.chunks is None or step.split is None:
        return
    shared = (one.details.get("shared", ()) for one in run.items.all(run.run))
    stayed = list(dict.fromkeys(point for some in shared for point in some))
    for start in range(0, len(stayed), SWEPT):
        some = stayed[start : start + SWEPT]
        named = _named(run, step, some)
        going = [point for point in some if point not in named]
        keep_marks(run, step, going)  # the points are saved since their own document let them go
        remove(run, step.target, going)
        crash.point(step.type, "swept")


def _changes(step: ReprocessDocuments, one: Document, going: Sequence[PointId]) -> bool:
    """Whether anything of it is not as it is to be, now or at an earlier try: in the store, or in its rows."""
    made, row, rows = one.made, one.row, step.rows
    if new := bool(made.new or going or len(made.written) or one.item.details.get("changes")):
        return new
    if row is None or rows is None or step.split is None:
        return False
    kept = [piece for piece in made.found.pieces if piece.row is not None]
    moved = rows.chunks is not None and rows.chunks.position_column is not None
    return (
        (rows.text_column is not None and made.found.text is not None and made.found.text != row.text)
        or (moved and any(piece.row.position != piece.position for piece in kept))
        or len(kept) != len(row.chunks)
        or len(kept) != len(made.ids)
    )


def _given_up(run: Run, step: ReprocessDocuments, document: Document, pace: Pace) -> None:
    """Nothing can be made of it now, and an earlier try had begun: what its rows name stays, the rest goes."""
    made = [point for point in document.item.details["made"] if point not in document.points]
    chunks = document.row.chunks if document.row is not None else ()
    named, out = {str(chunk.vector_id) for chunk in chunks}, document.item.details.get("out", ())
    if any(str(point) in named for point in made) or (out and not any(str(point) in named for point in out)):
        # its new rows are in: the old points have none any more
        _let_go(run, step, [point for point in document.points if str(point) not in named])
        return
    _points_back(run, step, document.points, made, pace)


def _points_back(
    run: Run, step: ReprocessDocuments, changed: Sequence[PointId], new: Sequence[PointId], pace: Pace
) -> None:  # fmt: skip
    """A document has failed, its rows refuse the new chunks or are the old ones still: so are its points, and no others."""
    store, saved = store_of(run, step.target), fetch(run, step.saved, changed)
    pace.write(saved, lambda part: store.upsert(step.target.collection, part), run.limits, run.stop)
    remove(run, step.target, new)
    with run.ledger.guarded(run.lease) as connection:
        for item in step.target_schema.vectors:
            run.vectors.unmark(connection, str(step.target), item.name, new)
            run.vectors.bring_back(connection, str(step.saved), str(step.target), item.name, saved.ids)
    remove(run, step.saved, saved.ids)  # another try saves what is there then


def _joined(batches: Sequence[PointBatch]) -> list[PointBatch]:
    """Batches of the same columns as one: a write for many documents."""
    groups: dict[tuple[Any, ...], list[PointBatch]] = {}
    for batch in batches:
        key = (tuple(batch.vectors), tuple(batch.sparse), tuple(batch.missing), batch.partitions is None)
        groups.setdefault(key, []).append(batch)
    return [
        PointBatch(
            [point for one in group for point in one.ids],
            {name: np.concatenate([one.vectors[name] for one in group]) for name in group[0].vectors},
            Payloads([item for one in group for item in one.payloads.dicts]),
            {name: [entry for one in group for entry in one.sparse[name]] for name in group[0].sparse},
            {name: np.concatenate([one.missing[name] for one in group]) for name in group[0].missing},
            None if group[0].partitions is None else [item for one in group for item in one.partitions or ()],
        )
        for group in groups.values()
    ]


def _announce(
    run: Run, step: ReprocessDocuments, documents: Sequence[Document], changes: dict[int, bool]
) -> None:  # fmt: skip
    """Before new points are written: the ledger knows them, and so does the undo table beside the chunks."""
    if run.dry:
        return
    with run.ledger.guarded(run.lease) as connection:
        for name in dict.fromkeys((run.run, home_of(run))):
            run.items.settle(
                connection, name,
                [replaced(one.item, details=_told(one, changed=changes[one.item.number])) for one in documents],
            )  # fmt: skip
    crash.point(step.type, "announced")
    if step.rows is not None and step.rows.chunks is not None and step.undo is not None and step.split is not None:
        from runner.documents import rows as tables

        database, rows, undo = run.world.database(step.rows.connection), step.rows, step.undo
        coming = [(one.item.id, _new_rows(one)) for one in documents]
        retried(lambda: tables.announce_all(database, rows, undo, coming), run.limits, run.stop)
        crash.point(step.type, "rows_announced")


def _told(one: Document, *, changed: bool) -> dict[str, Any]:
    """What whoever goes on, or goes back, has to know of a document before anything of it is written."""
    details = {**one.item.details, "made": _once(one.item.details.get("made"), one.made)}
    if not details["made"] and one.row is not None:  # nothing comes: that these are gone tells that rows were swapped
        named = {str(chunk.vector_id) for chunk in one.row.chunks} - {str(point) for point in one.made.ids}
        details.setdefault("out", [point for point in one.points if str(point) in named])
    return details | ({"late": one.late} if one.late else {}) | ({"changes": True} if changed else {})


def _once(before: Any, made: Made) -> list[PointId]:
    """Ids of new points, with those of an earlier try."""
    return list(dict.fromkeys([*(before or ()), *(point for point, _piece in made.new)]))


def _new_rows(one: Document) -> list[Any]:
    from runner.documents.rows import NewChunk

    made: Made = one.made
    return [
        NewChunk(None, point, piece.text, piece.position)
        for point, piece in zip(made.ids, made.found.pieces, strict=True)
        if piece.row is None  # a point that is kept may lack its row, too
    ]


def _rows_swapped(
    run: Run, step: ReprocessDocuments, documents: Sequence[Document]
) -> dict[str, tuple[int, int]]:  # fmt: skip
    """str(id) -> (rows that came, rows that went)."""
    if step.rows is None or step.rows.chunks is None or step.undo is None or step.split is None or run.dry:
        return {}
    from runner.documents import rows as tables
    from runner.documents.rows import NewChunk, Swap

    database, rows, undo = run.world.database(step.rows.connection), step.rows, step.undo
    swaps = []
    for one in documents:
        made: Made = one.made
        kept = {
            piece.row.key: NewChunk(piece.row.key, point, piece.text, piece.position)
            for point, piece in zip(made.ids, made.found.pieces, strict=True)
            if piece.row is not None
        }
        seen = frozenset(str(chunk.key) for chunk in one.row.chunks) if one.row is not None else frozenset()
        swaps.append(Swap(one.item.id, kept, _new_rows(one), made.found.text, seen))
    return retried(lambda: tables.swap_all(database, rows, undo, swaps), run.limits, run.stop)


def _result(one: Document, gone: Sequence[PointId], rows: int, *, changed: bool) -> Result:
    made: Made = one.made
    new = [point for point, _piece in made.new]
    details = {
        "points": len(made.ids), "new": len(new), "kept": len(made.ids) - len(new), "gone": len(gone), "rows": rows,
    }  # fmt: skip
    told, wanted = _told(one, changed=changed), set(made.ids)
    told["made"] = [point for point in told["made"] if point in wanted]  # also by an earlier try
    details = {**told, **details}
    return Result(
        one, "done" if changed else "unchanged", points=len(made.ids), details=details, marks=made.marks, gone=gone
    )
