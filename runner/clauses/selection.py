"""Which documents are meant, and which points are theirs: asked by a plan, and by the run that carries it out.

A document is known by the text of its id, so 42 in a row and "42" in a payload are the same document.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from runner.conditions import MISSING, Condition, look_up
from runner.errors import NotFound, Permanent
from runner.items import Item
from runner.plan import DocumentRows, Place, PointFields, Selection
from runner.points import IdKind, Payload, PointBatch, PointId, json_dumps, json_loads
from runner.store import Store
from runner.world import World

if TYPE_CHECKING:
    from runner.documents.rows import Row

#: Up to so many documents are looked for by their ids; more in one pass over the collection.
MANY = 5_000
#: The text of an integer as a store may have it as an id, written the one way it has.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
#: Ids asked for at once.
CHUNK = 200

#: What is said of a document of which nothing is there.
NO_SUCH = "there is no such document"

#: Whether a document's payload, or its row, is not yet as it is wished.
Look = Callable[[Payload], bool]


@dataclass
class Found:
    """One document. `row`: None where there are no rows, or none for it; `changes`: something of it is not as wished."""

    id: PointId
    points: list[PointId] = field(default_factory=list)
    row: bool | None = None
    name: str = ""
    file: bool = False
    chunks: int = 0
    changes: bool = False

    @property
    def missing(self) -> bool:
        """Whether nothing of it is there."""
        return not self.points and not self.row


@dataclass
class Selected:
    """The documents that were found, in order of their ids; those that were asked for by id are among them."""

    documents: list[Found]
    stray: int = 0  # points that match and name no document
    foreign: int = 0  # points that chunk rows name, and that name another document themselves
    asked: int = 0

    @property
    def points(self) -> int:
        return sum(len(one.points) for one in self.documents)

    @property
    def missing(self) -> list[Found]:
        return [one for one in self.documents if one.missing]

    @property
    def digest(self) -> str:
        """Names the documents and the points of each."""
        seen = hashlib.sha256()
        for one in self.documents:
            seen.update(json_dumps([str(one.id), [str(point) for point in one.points], bool(one.row)]) + b"\n")
        return f"sha256:{seen.hexdigest()}"

    def items(self, missing: str) -> list[Item]:
        """The items of a run; those of which nothing is there have failed, or with `skip` nothing is done to them."""
        absent = "unchanged" if missing == "skip" else "failed"
        return [
            Item(
                number,
                one.id,
                tuple(one.points),
                absent if one.missing else "pending",
                {"error": NO_SUCH} if one.missing and absent == "failed" else {},
            )
            for number, one in enumerate(self.documents)
        ]


def select(
    world: World, place: Place, fields: PointFields, rows: DocumentRows | None, selection: Selection, *,
    look: Look | None = None, look_row: Callable[[Row], bool] | None = None,
) -> Selected:  # fmt: skip
    """Find them. `look` and `look_row` say of a payload and a row whether something is to be done to it."""
    store = world.store(place.connection)
    finder = _Finder(world, store, place, fields, rows, look)
    if selection.where is not None:
        finder.by_filter(selection.where)
    else:
        finder.by_ids(asked_for(world, selection, rows, fields.document))
    if rows is not None:
        finder.add_rows(rows, look_row)
    documents = [finder.found[key] for key in sorted(finder.found)]
    for one in documents:
        one.points = sorted(set(one.points), key=lambda point: (isinstance(point, str), point))
    return Selected(documents, finder.stray, finder.foreign, len(finder.found) if selection.where is None else 0)


def asked_for(
    world: World, selection: Selection, rows: DocumentRows | None, field: str | None = None
) -> list[PointId]:  # fmt: skip
    """The ids that were given, in a file, or by a query. PlanRefused is not for here: the caller compares digests."""
    if selection.ids is not None:
        return list(selection.ids)
    if selection.file is not None:
        return read_ids(
            Path(world.settings.root) / selection.file, {field, rows.id_column if rows is not None else None}
        )
    assert selection.query is not None
    assert rows is not None
    from runner.documents import rows as tables

    return tables.select(world.database(rows.connection), selection.query)


def read_ids(path: Path, headings: Collection[str | None] = ()) -> list[PointId]:
    """Ids of a file: a JSON array, or one a line (empty lines and lines that begin with # are left out; of a CSV the first
    column, without its heading when that is `id`, `document_id` or one of `headings`). NotFound; Permanent when it holds none."""
    data = file_bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise Permanent("A file of ids is not UTF-8 text", f"{path}: byte {exc.start}") from exc
    if text.lstrip().startswith("[") or path.suffix.lower() == ".json":
        try:
            found = json_loads(text.strip().encode()) if text.strip() else []
        except ValueError as exc:
            raise Permanent("A file of ids is no JSON array", f"{path}: {exc}") from exc
        if not isinstance(found, list):
            raise Permanent("A file of ids is no JSON array", f"{path}: it holds {type(found).__name__}")
        if bad := [one for one in found if isinstance(one, bool) or not isinstance(one, int | str) or one == ""]:
            raise Permanent("A file of ids holds something else", f"{path}: {bad[0]!r}", "Ids are texts or integers")
        ids: list[PointId] = found
    else:
        known = {"id", "document_id", *(one.lower() for one in headings if one)}
        ids = list(_lines(text, known if path.suffix.lower() == ".csv" else None))
    if not ids:
        raise Permanent("A file of ids is empty", str(path), "One id a line, or a JSON array")
    return list(dict.fromkeys(ids))


def file_bytes(path: Path) -> bytes:
    """NotFound when there is no such file."""
    try:
        return path.read_bytes()
    except OSError as exc:
        raise NotFound("No such file of ids", f"{path}: {exc.strerror}") from exc


def _lines(text: str, headings: set[str] | None) -> Iterator[str]:
    """Ids of lines; of a CSV, which has headings, the first column."""
    if headings is not None:
        import csv

        lines = [row[0].strip() for row in csv.reader(text.splitlines()) if row]
        lines = lines[1:] if lines and lines[0].lower() in headings else lines
    else:
        lines = [line.strip() for line in text.splitlines()]
    yield from (line for line in lines if line and not line.startswith("#"))


class _Finder:
    """Collects documents by the text of their ids."""

    def __init__(
        self, world: World, store: Store, place: Place, fields: PointFields, rows: DocumentRows | None, look: Look | None
    ) -> None:  # fmt: skip
        self.world, self.store, self.place, self.fields, self.rows, self.look = world, store, place, fields, rows, look
        self.found: dict[str, Found] = {}
        self.stray = self.foreign = 0

    @property
    def _itself(self) -> bool:
        """Whether each point is a document."""
        return self.fields.document is None and (self.rows is None or self.rows.chunks is None)

    def by_filter(self, where: Sequence[Condition]) -> None:
        for batch in self.store.find(self.place.collection, where):
            for point, payload in zip(batch.ids, batch.payloads.dicts, strict=True):
                if self._itself:
                    self._add(point, point, payload)
                elif (document := self._document(payload)) is not None:
                    self.found.setdefault(str(document), Found(document))
                else:
                    self.stray += 1
        if not self._itself:
            self._points_of(list(self.found))

    def by_ids(self, ids: Iterable[PointId]) -> None:
        if not self._itself:
            for one in ids:
                self.found.setdefault(str(one), Found(one))
            self._points_of(list(self.found))
            return
        schema = self.store.inspect(self.place.collection)
        assert schema is not None
        wanted = [as_point(one, schema.id_kind) for one in ids]
        self.found = {str(one): Found(one) for one in wanted}
        for start in range(0, len(wanted), CHUNK):
            batch = self.store.fetch(self.place.collection, wanted[start : start + CHUNK])
            for point, payload in zip(batch.ids, batch.payloads.dicts, strict=True):
                self._add(point, point, payload)

    def _points_of(self, keys: Sequence[str]) -> None:
        """Points whose payload names one of these documents."""
        name = self.fields.document
        if name is None or not keys:
            return
        wanted = set(keys)
        if len(keys) > MANY:
            self._collect(self.store.find(self.place.collection), wanted)
            return
        for start in range(0, len(keys), CHUNK):
            forms = [form for key in keys[start : start + CHUNK] for form in _forms(key)]
            self._collect(self.store.find(self.place.collection, [Condition(field=name, op="in", value=forms)]), wanted)

    def _collect(self, batches: Iterator[PointBatch], wanted: set[str]) -> None:
        for batch in batches:
            for point, payload in zip(batch.ids, batch.payloads.dicts, strict=True):
                document = self._document(payload)
                if document is not None and str(document) in wanted:
                    self._add(document, point, payload)

    def add_rows(self, rows: DocumentRows, look_row: Callable[[Row], bool] | None) -> None:
        """Which documents have a row, and points that only the rows of chunks name."""
        from runner.documents import rows as tables

        database, keys = self.world.database(rows.connection), list(self.found)
        for start in range(0, len(keys), CHUNK):
            some = [self.found[key] for key in keys[start : start + CHUNK]]
            held = tables.read(database, rows, [one.id for one in some])
            extra: dict[PointId, Found] = {}
            for one in some:
                row = held.get(str(one.id))
                one.row = row is not None
                if row is None:
                    continue
                one.name, one.file, one.chunks = row.name or "", bool(row.file), len(row.chunks)
                one.changes = one.changes or (look_row is not None and look_row(row))
                known = {str(point) for point in one.points}
                extra |= {
                    chunk.vector_id: one
                    for chunk in row.chunks
                    if chunk.vector_id is not None and str(chunk.vector_id) not in known
                }
            self._claimed(extra)

    def _claimed(self, extra: dict[PointId, Found]) -> None:
        """Points that rows name: those that are there."""
        if not extra:
            return
        schema = self.store.inspect(self.place.collection)
        assert schema is not None
        wanted = {as_point(point, schema.id_kind): one for point, one in extra.items()}
        ids = list(wanted)
        for start in range(0, len(ids), CHUNK):
            batch = self.store.fetch(self.place.collection, ids[start : start + CHUNK])
            for point, payload in zip(batch.ids, batch.payloads.dicts, strict=True):
                said = self._document(payload)
                if said is not None and str(said) != str(wanted[point].id):
                    self.foreign += 1  # its own document keeps it
                else:
                    self._add(wanted[point].id, point, payload)

    def _document(self, payload: Payload) -> PointId | None:
        if self.fields.document is None:
            return None
        value = look_up(payload, self.fields.document)
        if value is MISSING or isinstance(value, bool) or not isinstance(value, int | str):
            return None
        return value

    def _add(self, document: PointId, point: PointId, payload: Payload) -> None:
        one = self.found.setdefault(str(document), Found(document))
        one.points.append(point)
        one.changes = one.changes or (self.look is not None and self.look(payload))


def _forms(key: str) -> list[PointId]:
    """What a payload may hold for a document: its id as text, and as an integer where it is one."""
    return [key, int(key)] if _INTEGER.fullmatch(key) else [key]


def as_point(point: PointId, kind: IdKind) -> PointId:
    """An id that was given as text, as the collection has it."""
    if kind in (IdKind.INT, IdKind.INT_OR_UUID) and isinstance(point, str) and len(_forms(point)) == 2:
        return int(point)
    if kind in (IdKind.STRING, IdKind.UUID) and isinstance(point, int):
        return str(point)
    return point
