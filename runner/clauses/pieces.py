"""The chunks of one document as they are to be, and which of them are there already: asked by a plan, and by a run."""

from __future__ import annotations

import hashlib
import uuid
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.conditions import look_up
from runner.embedder import Embedder
from runner.errors import Permanent
from runner.plan import DocumentRows, Files, Place, PointFields, Splitter, UndoTables
from runner.points import IdKind, PointBatch, PointId
from runner.transform import ID_NAMESPACE
from runner.world import World

if TYPE_CHECKING:
    from runner.documents.rows import ChunkRow, Row


@dataclass(frozen=True)
class Source:
    """Where the text comes from: the file (`parse`), the row's text (`split` alone), or the chunks as they are."""

    parse: bool
    split: Splitter | None
    fields: PointFields
    rows: DocumentRows | None
    files: Files | None
    embedder: Embedder


@dataclass(frozen=True)
class Piece:
    """One chunk as it is to be. `held`: the point that has this text already; `row`: its row."""

    text: str
    position: int
    held: PointId | None = None
    row: ChunkRow | None = None
    occurrence: int = 0  # how many pieces before it have the same text


@dataclass(frozen=True)
class Pieces:
    """What comes of a document. `points`: those it has now; `text`: what was taken out of its file."""

    id: PointId
    pieces: tuple[Piece, ...]
    points: PointBatch
    row: Row | None
    text: str | None = None


def point_ids(found: Pieces, taken: Iterable[PointId], kind: IdKind) -> tuple[PointId, ...]:
    """The ids of the points of its pieces. Those that have none yet get one that is not among `taken`, nor another's: the
    same each time it is asked for."""
    ids, used = list[PointId](), set(taken)
    for piece in found.pieces:
        one, number = piece.held, piece.occurrence
        while one is None:
            made = _id_of(found.id, number, piece.text, kind)
            one, number = (None, number + 1) if made in used else (made, number)
        used.add(one)
        ids.append(one)
    return tuple(ids)


def _id_of(document: PointId, occurrence: int, text: str, kind: IdKind) -> PointId:
    name = f"{document}\n{occurrence}\n{text}"
    if kind is IdKind.INT:
        return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1
    return str(uuid.uuid5(ID_NAMESPACE, name))


def pieces_of(
    world: World, source: Source, place: Place, document: PointId, points: Sequence[PointId], *,
    undo: UndoTables | None = None,
) -> Pieces:  # fmt: skip
    """Permanent, with the reason, when no chunks can be made of it."""
    row = None
    if source.rows is not None:
        from runner.documents import rows as tables

        row = tables.read(world.database(source.rows.connection), source.rows, [document], undo).get(str(document))
    held = world.store(place.connection).fetch(place.collection, points)
    return arranged(world, source, document, row, held)


def arranged(world: World, source: Source, document: PointId, row: Row | None, held: PointBatch) -> Pieces:
    """The same, for a document whose row and points were read."""
    present = _present(source, row, held)
    if source.split is None:
        kept = [
            Piece(text, number, point, chunk)
            for number, (text, point, chunk) in enumerate(present)
            if point is not None
        ]
        with_text = {piece.held for piece in kept}
        if lacking := [point for point in held.ids if point not in with_text]:
            raise Permanent(
                "A chunk has no text", f"{document}: {len(lacking):,} of its points, such as {lacking[0]!r}"
            )
        return Pieces(document, tuple(kept), held, row)
    text = _text(world, source, document, row)
    from runner.documents.split import split

    parts = split(text, source.split, source.embedder.count)
    if not parts:
        raise Permanent("There is no text in it", _where(source, document, row))
    there: defaultdict[str, deque[tuple[PointId | None, ChunkRow | None]]] = defaultdict(deque)
    for old, point, chunk in present:
        if point is not None:
            there[old].append((point, chunk))
    pieces, seen = [], dict[str, int]()
    for position, part in enumerate(parts):
        point, chunk = there[part].popleft() if there[part] else (None, None)
        pieces.append(Piece(part, position, point, chunk, seen.get(part, 0)))
        seen[part] = seen.get(part, 0) + 1
    return Pieces(document, tuple(pieces), held, row, text if source.parse else None)


def _present(
    source: Source, row: Row | None, held: PointBatch
) -> list[tuple[str, PointId | None, ChunkRow | None]]:  # fmt: skip
    """(text, point, row) of the chunks there are, in their order."""
    payloads: Mapping[str, tuple[PointId, dict[str, object]]] = {
        str(point): (point, payload) for point, payload in zip(held.ids, held.payloads.dicts, strict=True)
    }
    found: list[tuple[int, str, PointId | None, ChunkRow | None]] = []
    named: set[str] = set()
    for number, chunk in enumerate(row.chunks if row is not None else ()):
        point, payload = payloads.get(str(chunk.vector_id), (None, {}))
        named.add(str(chunk.vector_id))
        value = chunk.text if chunk.text is not None else _field(payload, source.fields.text)
        if isinstance(value, str):
            found.append((number if chunk.position is None else chunk.position, value, point, chunk))
    for number, (key, (point, payload)) in enumerate(payloads.items()):
        if key not in named:
            value, place = _field(payload, source.fields.text), _field(payload, source.fields.position)
            if isinstance(value, str):
                found.append((place if isinstance(place, int) else number, value, point, None))
    return [(text, point, chunk) for _place, text, point, chunk in sorted(found, key=lambda one: one[0])]


def _field(payload: dict[str, object], name: str | None) -> object:
    return look_up(payload, name) if name is not None else None


def _text(world: World, source: Source, document: PointId, row: Row | None) -> str:
    if row is None:
        raise Permanent("The document has no row", str(document), "Its row says where its text is")
    if not source.parse:
        if not row.text:
            raise Permanent("The document has no text", f"{document}: its text column is empty")
        return row.text
    if not row.file:
        raise Permanent("The document has no file", f"{document}: its file column is empty")
    assert source.files is not None
    from runner.documents.parse import MAX_BYTES, parse

    return parse(world.objects(source.files.connection).read(row.file, MAX_BYTES), row.file)


def _where(source: Source, document: PointId, row: Row | None) -> str:
    return f"{document}: {row.file}" if source.parse and row is not None else str(document)
