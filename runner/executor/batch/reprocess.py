"""Documents made anew: new chunk rows are announced and new points written beside the old ones, rows are swapped in one
transaction, then the old points go. Search finds the old chunks, or both, but never a document without its chunks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runner import crash
from runner.clauses.pieces import Piece, Pieces, Source, arranged
from runner.errors import NotFound, Permanent
from runner.executor.batch.documents import (
    Document,
    Prepare,
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
from runner.executor.batch.files import each
from runner.executor.flow import Pace, checker, retried
from runner.plan import ReprocessDocuments
from runner.points import Payload, Payloads, PointBatch, PointId, json_dumps
from runner.store import NORMS
from runner.vectors import Refusal, text_key

if TYPE_CHECKING:
    from runner.executor import Run


@dataclass(frozen=True)
class Made:
    """What a document becomes. `written`: points that are new or change; `marks`: text keys of new vectors."""

    found: Pieces
    ids: tuple[PointId, ...]  # of its pieces
    written: PointBatch
    marks: dict[PointId, str]

    @property
    def new(self) -> list[tuple[PointId, Piece]]:
        """The pieces that get points of their own."""
        return [(one, piece) for one, piece in zip(self.ids, self.found.pieces, strict=True) if piece.held is None]


def preparer(run: Run, step: ReprocessDocuments) -> Prepare:
    """From documents to what they become; those of which nothing can be made carry the reason."""
    service = run.services.of(step.embed)  # a model that cannot be opened is told before anything is read
    source = Source(step.parse, step.split, step.fields, step.rows, step.files, service.embedder)

    def prepare(documents: list[Document], stop: threading.Event) -> list[Document]:
        held = fetch(run, step.target, [point for one in documents for point in one.points])
        rows = {point: row for row, point in enumerate(held.ids)}

        def arrange(one: Document) -> Document:
            mine = held.take([rows[point] for point in one.points if point in rows])
            try:
                found = retried(lambda: arranged(run.world, source, one.item.id, one.row, mine), run.limits, stop)
            except (NotFound, Permanent) as exc:
                return replaced(one, error=str(exc))
            return replaced(one, made=found)

        before = _before(run, step, documents, held)
        return _embedded(run, step, each(documents, arrange), before, stop)

    return prepare


def _before(
    run: Run, step: ReprocessDocuments, documents: Sequence[Document], held: PointBatch
) -> dict[int, list[Payload]]:  # fmt: skip
    """Number of a document -> what its points said before the run: when this is a second try, some are gone by now."""
    again = [point for one in documents if "made" in one.item.details for point in one.points]
    saved = fetch(run, step.saved, again) if again and not run.dry else PointBatch([], {}, Payloads([]))
    said = {
        point: payload
        for batch in (held, saved)
        for point, payload in zip(batch.ids, batch.payloads.dicts, strict=True)
    }
    return {one.item.number: [said[point] for point in one.points if point in said] for one in documents}


def _embedded(
    run: Run, step: ReprocessDocuments, documents: list[Document], before: dict[int, list[Payload]],
    stop: threading.Event,
) -> list[Document]:  # fmt: skip
    """The vectors of all texts of the batch that need one, in as few requests as there can be."""
    wanted = [piece.text for one in documents if not one.error for piece in _wanted(step, one.made)]
    texts = list(dict.fromkeys(wanted))
    made = dict(zip(texts, run.services.of(step.embed).vectors(texts, stop) if texts else [], strict=True))
    done = list[Document]()
    for one in documents:
        if one.error:
            done.append(one)
            continue
        refused = next(
            (
                f"{item.error}: {piece.text[:60]!r}"
                for piece in _wanted(step, one.made)
                if isinstance(item := made[piece.text], Refusal)
            ),
            "",
        )
        vectors = {text: item for text, item in made.items() if not isinstance(item, Refusal)}
        if not refused:
            one = replaced(one, made=_made(step, one, before[one.item.number], vectors))  # noqa: PLW2901
        done.append(replaced(one, error=refused))
    return done


def _wanted(step: ReprocessDocuments, found: Pieces) -> list[Piece]:
    return [piece for piece in found.pieces if step.embed_all or piece.held is None]


def _made(
    step: ReprocessDocuments, one: Document, before: list[Payload], vectors: dict[str, NDArray[np.float32]]
) -> Made:  # fmt: skip
    """The points of a document as they are to be; those that stay as they are, are left out."""
    found: Pieces = one.made
    kind, held = step.target_schema.id_kind, found.points
    ids = tuple(piece.held if piece.held is not None else piece.new_id(one.item.id, kind) for piece in found.pieces)
    rows = {point: row for row, point in enumerate(held.ids)}
    like = _like(step, one, before)
    chosen, payloads, matrix, marks = (
        list[PointId](),
        list[Payload](),
        list[NDArray[np.float32]](),
        dict[PointId, str](),
    )
    old = list[int]()  # row in `held`, -1 for a new point
    for point, piece in zip(ids, found.pieces, strict=True):
        row = rows.get(point, -1)
        present = held.payloads.dicts[row] if row >= 0 else None
        payload = _payload(step, present if present is not None else like, piece)
        anew = piece.held is None or step.embed_all
        if not anew and present is not None and json_dumps(payload) == json_dumps(present):
            continue
        chosen.append(point)
        payloads.append(payload)
        old.append(row)
        matrix.append(vectors[piece.text] if anew else held.vectors[step.embed.vector][row])
        if anew:
            marks[point] = text_key(piece.text)
    batch = _batch(step, held, chosen, payloads, matrix, old)
    return Made(found, ids, batch, marks)


def _batch(
    step: ReprocessDocuments, held: PointBatch, ids: list[PointId], payloads: list[Payload],
    matrix: list[NDArray[np.float32]], old: list[int],
) -> PointBatch:  # fmt: skip
    """Points in columns: the vector of the model, and whatever else a point that is kept has."""
    vectors, missing = dict[str, Any](), dict[str, Any]()
    for item in step.target_schema.vectors:
        if item.name == step.embed.vector:
            vectors[item.name] = np.stack(matrix) if matrix else np.empty((0, item.dimension), np.float32)
            continue
        column = np.zeros((len(ids), item.dimension), np.float32)
        absent = np.array([row < 0 for row in old], bool)
        for number, row in enumerate(old):
            if row >= 0 and item.name in held.vectors:
                column[number] = held.vectors[item.name][row]
                absent[number] = item.name in held.missing and bool(held.missing[item.name][row])
        vectors[item.name] = column
        if absent.any():
            missing[item.name] = absent
    sparse = {
        name: [held.sparse[name][row] if row >= 0 and name in held.sparse else None for row in old]
        for name in (item.name for item in step.target_schema.sparse)
    }
    partitions = None
    if held.partitions is not None and len(held):
        partitions = [held.partitions[max(row, 0)] for row in old]
    return PointBatch(ids, vectors, Payloads(payloads), sparse, missing, partitions)


def _like(step: ReprocessDocuments, one: Document, dicts: list[Payload]) -> Payload:
    """What a new chunk's payload begins with: what all chunks of the document say alike, or what its row says."""
    if dicts:
        return _alike(dicts)
    payload: Payload = {}
    if one.row is not None and one.row.metadata is not None:
        payload = dict(one.row.metadata)
        if step.fields.metadata is not None:
            payload = {}
            _put(payload, step.fields.metadata, one.row.metadata)
    if one.row is not None and one.row.tags is not None:
        _put(payload, step.fields.tags, one.row.tags)
    if step.fields.document is not None:
        _put(payload, step.fields.document, one.item.id)
    return payload


def _alike(dicts: Sequence[Payload]) -> Payload:
    """What all of them say alike, level by level."""
    found: Payload = {}
    for key, value in dicts[0].items():
        if not all(key in item for item in dicts):
            continue
        if all(json_dumps(item[key]) == json_dumps(value) for item in dicts):
            found[key] = value
        elif all(isinstance(item[key], dict) for item in dicts) and (inner := _alike([item[key] for item in dicts])):
            found[key] = inner
    return found


def _payload(step: ReprocessDocuments, present: Payload, piece: Piece) -> Payload:
    payload = dict(present)
    if step.split is None:
        return payload
    if step.fields.text is not None:
        _put(payload, step.fields.text, piece.text)
    if step.fields.position is not None:
        _put(payload, step.fields.position, piece.position)
    return payload


def _put(payload: Payload, path: str, value: Any) -> None:
    if path in payload or "." not in path:
        payload[path] = value
        return
    way = path.split(".")
    for key in way[:-1]:
        inner = payload.get(key)
        payload[key] = dict(inner) if isinstance(inner, dict) else {}
        payload = payload[key]
    payload[way[-1]] = value


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
    going = {one.item.number: [point for point in one.points if point not in set(one.made.ids)] for one in documents}
    stale = [
        point
        for one in documents
        for point in _once(one.item.details.get("made"), one.made)
        if point not in set(one.made.ids)
    ]
    changes = {one.item.number: _changes(step, one, going[one.item.number]) for one in documents}
    batches = [one.made.written for one in documents if len(one.made.written)]
    for batch in batches:
        check(batch)
    _announce(run, step, documents, changes)
    before = fetch(
        run, step.target,
        [point for one in documents for point in one.points if point in set(one.made.written.ids) or point in going[one.item.number]],
    )  # fmt: skip
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
    gone = [point for one in documents for point in going[one.item.number]]
    remove(run, step.target, [*gone, *stale])
    crash.point(step.type, "old_points")
    return [
        _result(one, going[one.item.number], sum(swapped.get(str(one.item.id), ())), changed=changes[one.item.number])
        for one in documents
    ]


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
    named = {str(chunk.vector_id) for chunk in chunks}
    if any(str(point) in named for point in made):  # its new rows are in: the old points have none any more
        remove(run, step.target, [point for point in document.points if str(point) not in named])
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
        swaps.append(Swap(one.item.id, kept, _new_rows(one), made.found.text))
    return retried(lambda: tables.swap_all(database, rows, undo, swaps), run.limits, run.stop)


def _result(one: Document, gone: Sequence[PointId], rows: int, *, changed: bool) -> Result:
    made: Made = one.made
    new = [point for point, _piece in made.new]
    details = {
        "points": len(made.ids), "new": len(new), "kept": len(made.ids) - len(new), "gone": len(gone),
        "rows": rows, "made": new,
    }  # fmt: skip
    details = {**_told(one, changed=changed), **details}
    return Result(
        one, "done" if changed else "unchanged", points=len(made.ids), details=details, marks=made.marks, gone=gone
    )
