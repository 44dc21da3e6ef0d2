"""The documents a worker has in hand: read ahead by number, carried out in batches, and what became of each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from runner import crash
from runner.clauses.selection import as_point
from runner.conditions import MISSING, look_up
from runner.errors import Permanent, TooLarge, Transient, redact
from runner.executor.flow import MAX_DELAY, Moved, Pace, Stopped, retried
from runner.executor.replace import save
from runner.items import Item
from runner.ledger import Partition
from runner.plan import (
    CheckDocuments,
    DeleteDocuments,
    EditDocuments,
    Place,
    ReprocessDocuments,
    RestoreDocuments,
)
from runner.points import Payloads, PointBatch, PointId
from runner.settings import Limits
from runner.store import Store
from runner.vectors import Failure

if TYPE_CHECKING:
    from runner.documents.rows import Row
    from runner.executor import Run

Change = DeleteDocuments | EditDocuments | ReprocessDocuments
#: Points of the documents that are worked on at once: some stores look through everything for each call.
POINTS_AT_ONCE = 2_000


@dataclass(frozen=True)
class Document:
    """One document: its item, and its row where there are rows (`taken`: this run took it out). `late`: points that its
    chunk rows name and that came after it was selected."""

    item: Item
    row: Row | None = None
    late: tuple[PointId, ...] = ()
    made: Any = None  # what was prepared for it
    error: str = ""  # why nothing can be done with it

    @property
    def points(self) -> tuple[PointId, ...]:
        """Its points: those that were selected, and those that came since with a row."""
        return (*self.item.points, *self.late)


@dataclass(frozen=True)
class Work(Moved):
    """A batch of documents."""

    documents: tuple[Document, ...] = ()


@dataclass(frozen=True)
class Result:
    """What became of a document. `marks`: id -> text key of new vectors; `gone`: points that went."""

    document: Document
    status: str
    error: str = ""
    points: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)
    marks: Mapping[PointId, str] = field(default_factory=dict)
    gone: Sequence[PointId] = ()


Prepare = Callable[[list[Document], threading.Event], list[Document]]


def home_of(run: Run) -> str:
    """The run whose documents these are: that of the job, also when it is undone or compared
    later, or its failed items are tried again."""
    if run.failures_of:
        return run.failures_of
    return run.run if run.plan.purpose == "apply" or run.plan.of_run is None else run.plan.of_run


def documents_of(run: Run, change: Change) -> Callable[[list[Item]], list[Document]]:
    """From items to documents with their rows."""

    def read(items: list[Item]) -> list[Document]:
        if change.rows is None:
            return [Document(item, late=tuple(item.details.get("late", ()))) for item in items]
        from runner.documents import rows as tables

        database = run.world.database(change.rows.connection)
        undo = None if run.dry else change.undo
        held = tables.read(database, change.rows, [item.id for item in items], undo)
        return _with_late(run, change, [Document(item, held.get(str(item.id))) for item in items])

    return read


def _with_late(run: Run, change: Change, documents: list[Document]) -> list[Document]:
    """What came since they were selected belongs to them, too: else its rows would go, and its points stay."""
    kind, late = change.target_schema.id_kind, dict[int, list[PointId]]()
    for one in documents:
        known = {str(point) for point in (*one.item.points, *one.item.details.get("made", ()))}
        named = [
            as_point(chunk.vector_id, kind)
            for chunk in (one.row.chunks if one.row is not None else ())
            if chunk.vector_id is not None and str(chunk.vector_id) not in known
        ]
        late[one.item.number] = list(dict.fromkeys([*one.item.details.get("late", ()), *named]))
    wanted = [point for some in late.values() for point in some]
    if not wanted:
        return documents
    there = _said(change, fetch(run, change.target, wanted))
    there |= _said(change, fetch(run, change.saved, wanted)) if not run.dry else {}
    return [
        replaced(
            one,
            late=tuple(
                point for point in late[one.item.number] if point in there and there[point] in ("", str(one.item.id))
            ),
        )
        for one in documents
    ]


def _said(change: Change, batch: PointBatch) -> dict[PointId, str]:
    """point -> the document its payload names, empty if none: that one keeps it, whatever a row says."""
    field = change.fields.document
    found = (look_up(item, field) if field is not None else MISSING for item in batch.payloads.dicts)
    return {point: "" if said is MISSING else str(said) for point, said in zip(batch.ids, found, strict=True)}


def origin_of(run: Run) -> str:
    """The run that a second try is one of, also when that try is undone: its trash and its undo tables serve both."""
    home = home_of(run)
    if run.plan.purpose != "rollback":
        return home
    row = run.ledger.run(home)
    return str(row["of_run"]) if row["purpose"] == "retry" else home


@dataclass(frozen=True)
class DocumentReader:
    """Where a partition's documents come from. Only those with one of `statuses` are handed on."""

    run: Run
    step: Change | CheckDocuments | RestoreDocuments
    partition: Partition
    source: str  # the run that selected them
    read: Callable[[list[Item]], list[Document]]
    batch_size: int
    prepare: Prepare | None = None
    statuses: tuple[str, ...] = ("pending",)

    @property
    def place(self) -> Place:
        """The collection that is worked on."""
        return self.step.target

    def batches(self, limits: Limits, stop: threading.Event) -> Iterator[Moved]:
        """Documents after the partition's cursor."""
        keys, last = self.partition.keys, self.partition.cursor
        low = int(last) + 1 if last is not None else int(keys.lo or 0)
        high = int(keys.hi) if keys.hi is not None else None
        failures = 0
        while not stop.is_set():
            try:
                page = _light(self.run.items.page(self.source, low, high, self.batch_size))
                if not page:
                    return
                documents = self.read([one for one in page if one.status in self.statuses])
                if self.prepare is not None:
                    documents = self.prepare(documents, stop)
                failures = 0
            except Stopped:
                return
            except Transient:
                failures += 1
                if failures > limits.retries or stop.wait(min(limits.retry_delay * 2 ** (failures - 1), MAX_DELAY)):
                    raise
                continue
            crash.point("read", "after_read")
            yield Work(
                PointBatch([], {}, Payloads([])), [], last=page[-1].number, read=len(page), documents=tuple(documents)
            )
            low = page[-1].number + 1


def _light(page: list[Item]) -> list[Item]:
    """The first of these documents that have not too many points together; at least one."""
    total = 0
    for number, one in enumerate(page):
        total += len(one.points)
        if number and total > POINTS_AT_ONCE:
            return page[:number]
    return page


def isolated(
    documents: Sequence[Document], action: Callable[[Sequence[Document]], Sequence[Result]]
) -> list[Result]:  # fmt: skip
    """Carry out `action`; when something is refused for good, with halves, until the document that it is stands alone."""
    if not documents:
        return []
    try:
        return list(action(documents))
    except TooLarge:
        raise
    except Permanent as exc:
        if len(documents) == 1:
            return [failed(documents[0], exc)]
    middle = len(documents) // 2
    return isolated(documents[:middle], action) + isolated(documents[middle:], action)


def failed(document: Document, why: Exception | str) -> Result:
    """A document that something stood in the way of."""
    return Result(document, "failed", str(why))


def recorded(run: Run, step: Change, results: Sequence[Result]) -> Callable[[sa.Connection], None]:
    """What belongs into the checkpoint: what became of each document, failures, and what new vectors were made from."""
    home, place = home_of(run), str(step.target)

    def record(connection: sa.Connection) -> None:
        items = [replaced(one.document.item, status=one.status, details=_details(one)) for one in results]
        for name in dict.fromkeys((run.run, home)):
            run.items.settle(connection, name, items)
        bad = [one for one in results if one.status == "failed"]
        run.vectors.settle(connection, home, [one.document.item.id for one in results if one.status != "failed"])
        tries = run.vectors.attempts(connection, home, [one.document.item.id for one in bad]) if bad else {}
        run.vectors.fail(
            connection, home,
            [Failure(one.document.item.id, one.error, tries.get(one.document.item.id, 0) + 1) for one in bad],
        )  # fmt: skip
        for item in step.target_schema.vectors:
            run.vectors.unmark(connection, place, item.name, [point for one in results for point in one.gone])
        if isinstance(step, ReprocessDocuments):
            marks = {point: text for one in results for point, text in one.marks.items()}
            run.vectors.mark(connection, run.run, place, step.embed.vector, step.embed.identity.key, marks)

    return record


def _details(one: Result) -> dict[str, Any]:
    details = {**one.document.item.details, **one.details}
    details.pop("error", None)
    return details | ({"error": redact(one.error)} if one.error else {})


def fetch(run: Run, place: Place, ids: Sequence[PointId]) -> PointBatch:
    """Points of a collection; an empty batch for none."""
    if not ids:
        return PointBatch([], {}, Payloads([]))
    store = run.world.store(place.connection)
    return retried(lambda: store.fetch(place.collection, ids), run.limits, run.stop)


def remove(run: Run, place: Place, ids: Sequence[PointId]) -> None:
    """Delete points, as many at once as the store takes."""
    store = run.world.store(place.connection)
    most = store.capabilities().max_batch
    for start in range(0, len(ids), most):
        some = list(ids[start : start + most])
        retried(lambda some=some: store.delete(place.collection, some), run.limits, run.stop)  # type: ignore[misc]


def keep(run: Run, step: Change, batch: PointBatch, pace: Pace) -> None:
    """Save points as they are, unless they were saved before: the first copy counts."""
    if len(batch) and not run.dry:
        save(run, step.saved, batch, pace, elsewhere=step.saved.connection != step.target.connection)
        crash.point(step.type, "saved")


def keep_marks(run: Run, step: Change, ids: Sequence[PointId]) -> None:
    """Before points go, or get other vectors: what is known of theirs goes with the saved copies."""
    if not ids or run.dry:
        return
    with run.ledger.guarded(run.lease) as connection:
        for item in step.target_schema.vectors:
            run.vectors.move_marks(connection, str(step.target), str(step.saved), item.name, ids)


def store_of(run: Run, place: Place) -> Store:
    """The store of a place."""
    return run.world.store(place.connection)
