"""What documents become when they are made anew: their chunks, the points of these with vectors, and which of them are there
already. Nothing is written here.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runner.clauses.pieces import Piece, Pieces, Source, arranged, point_ids
from runner.errors import NotFound, Permanent
from runner.executor.batch.documents import Document, Prepare, fetch
from runner.executor.batch.files import each
from runner.executor.flow import retried
from runner.plan import ReprocessDocuments
from runner.points import Payload, Payloads, PointBatch, PointId, json_dumps
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
        tried = fetch(run, step.target, [point for one in documents for point in one.item.details.get("made", ())])
        earlier = dict(zip(tried.ids, tried.payloads.dicts, strict=True))
        return _embedded(run, step, each(documents, arrange), before, earlier, stop)

    return prepare


def _before(
    run: Run, step: ReprocessDocuments, documents: Sequence[Document], held: PointBatch
) -> dict[int, list[Payload]]:  # fmt: skip
    """Number of a document -> what its points said before the run: when this is a second try, some are gone by now."""
    again = [point for one in documents if "made" in one.item.details for point in one.points]
    saved = fetch(run, step.saved, again if not run.dry else [])
    said = {
        point: payload
        for batch in (held, saved)
        for point, payload in zip(batch.ids, batch.payloads.dicts, strict=True)
    }
    return {one.item.number: [said[point] for point in one.points if point in said] for one in documents}


def _embedded(
    run: Run, step: ReprocessDocuments, documents: list[Document], before: dict[int, list[Payload]],
    earlier: dict[PointId, Payload], stop: threading.Event,
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
            one = replaced(one, made=_made(step, one, before[one.item.number], earlier, vectors))  # noqa: PLW2901
        done.append(replaced(one, error=refused))
    return done


def _wanted(step: ReprocessDocuments, found: Pieces) -> list[Piece]:
    return [piece for piece in found.pieces if step.embed_all or piece.held is None]


def _made(
    step: ReprocessDocuments, one: Document, before: list[Payload], earlier: dict[PointId, Payload],
    vectors: dict[str, NDArray[np.float32]],
) -> Made:  # fmt: skip
    """The points of a document as they are to be; those that stay as they are, are left out. `earlier`: what points say
    that an earlier try made: somebody may have edited them since."""
    found: Pieces = one.made
    kind, held = step.target_schema.id_kind, found.points
    ids = point_ids(found, one.points, kind)
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
        present = held.payloads.dicts[row] if row >= 0 else earlier.get(point)
        payload = _payload(step, present if present is not None else like, piece)
        anew = piece.held is None or step.embed_all
        if not anew and row >= 0 and json_dumps(payload) == json_dumps(present):
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
