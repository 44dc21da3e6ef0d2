"""What a run has changed, brought back: deleted files first, then points, then rows; after an edit rows, then points; after
chunks were made anew old points, then rows, then the new points go. What somebody changed since is left alone; so is, as a
whole, a document that cannot come back, or that is another one now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from runner import crash
from runner.errors import VerificationFailed
from runner.executor import slices, verify
from runner.executor.batch import others
from runner.executor.batch.documents import (
    Change,
    Document,
    DocumentReader,
    Work,
    documents_of,
    fetch,
    home_of,
    origin_of,
    remove,
    store_of,
)
from runner.executor.batch.files import bring_back, empty_trash, key_of
from runner.executor.batch.others import kept_back
from runner.executor.flow import Pace, retried
from runner.executor.slices import Done, Task
from runner.ledger import Partition
from runner.plan import DeleteDocuments, EditDocuments, ReprocessDocuments, RestoreDocuments
from runner.points import Payload, Payloads, PointBatch, PointId, json_dumps

if TYPE_CHECKING:
    from runner.executor import Run

#: Statuses of documents that a run may have changed.
TOUCHED = ("done", "failed", "pending", "unchanged")


def work(run: Run, number: int, step: RestoreDocuments, part: int, seconds: float) -> bool:
    """Bring back one slice. True when it is done or set aside."""
    pace = Pace(store_of(run, step.target).capabilities().max_batch)

    def task_of(partition: Partition, _parts: int) -> Task:
        notes: dict[str, Any] = dict(partition.notes or {})
        again = cache(lambda: others.made_again(run, step.of) if isinstance(step.of, DeleteDocuments) else {})

        def act(item: Any) -> Done:
            assert isinstance(item, Work)
            alone = {} if run.dry or not item.documents else again() | others.left_alone(run, step.of, item.documents)
            one = _Batch(run, step, [one for one in item.documents if str(one.item.id) not in alone], pace)
            one.bring_back()
            mine = {str(one.item.id): alone[str(one.item.id)] for one in item.documents if str(one.item.id) in alone}
            others.tell(run, step, mine | one.changed)
            one.counts["left"] += len(mine)
            for key, count in one.counts.items():
                notes[key] = notes.get(key, 0) + count
            there = sum(bool(one.points) or one.row is not None for one in item.documents)
            return Done(there, compared=item.read, notes=dict(notes), record=one.record())

        read = documents_of(run, step.of)
        reader = DocumentReader(run, step, partition, home_of(run), read, step.of.batch_size, statuses=TOUCHED)
        return Task(step.type, step.target.collection, reader, act)

    return slices.work(run, number, part, seconds, task_of)


def conclude(run: Run, step: RestoreDocuments, result: dict[str, Any]) -> None:
    """After everything is back: the undo tables go. What was left alone is told."""
    if left := result.get("left", 0):
        run.say(f"{left:,} points, rows or files were changed by somebody else since, and were left alone")
    change = step.of
    another = origin_of(run) != home_of(run)  # after a second try the first one can still be undone
    if change.rows is not None and change.undo is not None and not run.dry and not another:
        from runner.documents import rows as tables

        tables.forget(run.world.database(change.rows.connection), change.rows, change.undo)
        crash.point(step.type, "undo_tables")


class _Batch:
    """Some documents, on their way back. `changed`: those of which something was not as the run had left it."""

    def __init__(self, run: Run, step: RestoreDocuments, documents: Sequence[Document], pace: Pace) -> None:
        self.run, self.step, self.change, self.documents, self.pace = run, step, step.of, documents, pace
        self.out = [one for one in documents if not _stands(self.change, one)]
        self.ids = list(dict.fromkeys(point for one in self.out for point in one.points))
        self.saved = fetch(run, step.saved, self.ids)
        self.counts = {"points": 0, "rows": 0, "files": 0, "left": 0}
        self.changed: dict[str, str] = {}
        self._back: list[PointId] = []

    def bring_back(self) -> None:
        match self.change:
            case DeleteDocuments():
                self._made_since(self.change)
                self._files_back()
                self._points_back(self._absent())
                self._rows_back()
                self._trash_out()
            case EditDocuments():
                self._rows_back()
                self._points_back(self._unedited(self.change))
            case ReprocessDocuments():
                for batch in self._as_before(self.change):
                    self._points_back(batch)
                self._rows_back()
                self._new_out(self.change)

    def record(self) -> Callable[[sa.Connection], None]:
        """With the checkpoint: what was known of the vectors that are back."""
        place, saved, back = str(self.step.target), str(self.step.saved), list(self._back)

        def record(connection: sa.Connection) -> None:
            for item in self.change.target_schema.vectors:
                if not isinstance(self.change, EditDocuments):
                    self.run.vectors.unmark(connection, place, item.name, back)
                    self.run.vectors.bring_back(connection, saved, place, item.name, back)

        return record

    # points ------------------------------------------------------------------------------------------------------------

    def _points_back(self, batch: PointBatch) -> None:
        if not len(batch):
            return
        crash.point(self.step.type, "before_write")
        store = store_of(self.run, self.step.target)
        upsert: Callable[[PointBatch], None] = lambda part: store.upsert(self.step.target.collection, part)  # noqa: E731
        self.pace.write(batch, upsert, self.run.limits, self.run.stop)
        crash.point(self.step.type, "points")
        self.counts["points"] += len(batch)
        self._back += batch.ids
        held = fetch(self.run, self.step.target, batch.ids)
        wrong = verify.differences(self.change.target_schema, store.capabilities(), batch, held)
        if wrong:
            shown = "\n".join(f"  {point!r}: {what}" for point, what in list(wrong.items())[:5])
            raise VerificationFailed(
                "Points did not come back as they were",
                f"{self.step.target}: {len(wrong):,} of {len(batch):,} differ from {self.step.saved}\n{shown}",
                f"They are still saved. Try again: vecrun resume {self.run.plan.job}",
            )

    def _held(self) -> dict[PointId, int]:
        self._now = fetch(self.run, self.step.target, self.saved.ids)
        return {point: row for row, point in enumerate(self._now.ids)}

    def _absent(self) -> PointBatch:
        """Saved points that are not there. One that is, somebody wrote since, or it never went."""
        held = self._held()
        if held:
            caps = store_of(self.run, self.step.target).capabilities()
            both = self.saved.take([row for row, point in enumerate(self.saved.ids) if point in held])
            self.counts["left"] += len(verify.differences(self.change.target_schema, caps, both, self._now))
        return self.saved.take([row for row, point in enumerate(self.saved.ids) if point not in held])

    def _unedited(self, change: EditDocuments) -> PointBatch:
        """The points as they are now, with what the run changed in their payloads as it was."""
        held = self._held()
        rows, payloads = list[int](), list[Payload]()
        for point, before in zip(self.saved.ids, self.saved.payloads.dicts, strict=True):
            if point not in held:
                self.counts["left"] += 1  # somebody deleted it
                continue
            present = self._now.payloads.dicts[held[point]]
            try:
                back, moved = change.fields.edited_back(before, present, change.edit)
            except ValueError:
                self.counts["left"] += 1
                continue
            self.counts["left"] += moved
            if json_dumps(back) != json_dumps(present):
                rows.append(held[point])
                payloads.append(back)
        now = self._now.take(rows) if rows else PointBatch([], {}, Payloads([]))
        return PointBatch(now.ids, now.vectors, Payloads(payloads), now.sparse, now.missing, now.partitions)

    def _made_since(self, change: DeleteDocuments) -> None:
        """A document that had no row, and has one now, is another one."""
        done = [one for one in self.documents if _stands(change, one) and one.item.status == "done"]
        ids = [point for one in done for point in one.points]
        there = set(fetch(self.run, self.step.target, ids).ids)
        for one in done:
            if any(point not in there for point in one.points):
                self._leave(str(one.item.id), "a document of this id was made again since")

    def _as_before(self, change: ReprocessDocuments) -> Iterator[PointBatch]:
        """Saved points that are gone; and of those that stand, what the run wrote: a vector, a text, a position."""
        held = self._held()
        lost = [row for row, point in enumerate(self.saved.ids) if point not in held]
        owner = {point: str(one.item.id) for one in self.documents for point in one.points}
        if change.split is None:  # such a run takes no point away
            for row in lost:
                self._leave(owner[self.saved.ids[row]], "a point was deleted since")
            lost = []
        yield self.saved.take(lost)
        kept, pairs = kept_back(change, self.saved, self._now, _texts(self.documents))
        for point in kept:
            self._leave(owner[point], "a text was changed since")
        caps = store_of(self.run, self.step.target).capabilities()
        wrong = verify.differences(change.target_schema, caps, pairs, self._now)
        yield pairs.take([row for row, point in enumerate(pairs.ids) if point in wrong])

    def _new_out(self, change: ReprocessDocuments) -> None:
        before = set(self.ids)
        owner = {
            point: one for one in self.documents for point in one.item.details.get("made", ()) if point not in before
        }
        if not owner:
            return
        made = list(owner)
        held = fetch(self.run, self.step.target, made)
        marks = self.run.vectors.marks(str(self.step.target), change.embed.vector, held.ids)
        known = set(self.saved.ids)
        as_is = fetch(self.run, self.step.target, [point for point in self.ids if point not in known])
        before_it = {
            point: payload
            for batch in (as_is, self.saved)
            for point, payload in zip(batch.ids, batch.payloads.dicts, strict=True)
        }
        said = {one.item.number: [before_it[p] for p in one.points if p in before_it] for one in self.documents}
        for point, payload in zip(held.ids, held.payloads.dicts, strict=True):
            mark = marks.get(point)
            if others.is_changed(
                change, payload, said[owner[point].item.number], mark.text if mark is not None else ""
            ):
                self._leave(str(owner[point].item.id), "a new chunk was changed since, and went with its text")
        remove(self.run, self.step.target, made)
        with self.run.ledger.guarded(self.run.lease) as connection:
            for item in self.change.target_schema.vectors:
                self.run.vectors.unmark(connection, str(self.step.target), item.name, made)
        crash.point(self.step.type, "new_points")

    def _leave(self, name: str, why: str) -> None:
        self.counts["left"] += 1
        self.changed[name] = why

    # rows and files ------------------------------------------------------------------------------------------------------

    def _rows_back(self) -> None:
        change = self.change
        if change.rows is None or change.undo is None or not self.documents:
            return
        from runner.documents import rows as tables

        database, rows, undo = self.run.world.database(change.rows.connection), change.rows, change.undo
        edit = change.edit if isinstance(change, EditDocuments) else None
        names = [one.item.id for one in self.documents]
        done = retried(lambda: tables.restore(database, rows, undo, names, edit), self.run.limits, self.run.stop)
        self.counts["rows"] += sum(one.documents + one.chunks for one in done.values())
        self.counts["left"] += sum(one.changed_since for one in done.values())
        self.changed |= {name: one.why for name, one in done.items() if one.why}
        crash.point(self.step.type, "rows")

    def _files_back(self) -> None:
        if self.change.files is None:
            return
        keys = [key for one in self.out if (key := key_of(one))]
        back, left = bring_back(self.run, self.change.files, origin_of(self.run), keys)
        self.counts["files"] += back
        self.counts["left"] += left
        crash.point(self.step.type, "files")

    def _trash_out(self) -> None:
        if self.change.files is None:
            return
        taken, out = dict[str, bool](), {one.item.number for one in self.out}
        for one in self.documents:
            if key := key_of(one):
                taken[key] = taken.get(key, False) or one.item.number in out
        empty_trash(self.run, self.change.files, origin_of(self.run), taken)
        crash.point(self.step.type, "trash")


def _stands(change: Change, one: Document) -> bool:
    """Whether a document that was to be deleted has its row: its points and its file go after that, and come back before."""
    by_row = isinstance(change, DeleteDocuments) and change.delete_rows and change.rows is not None
    return by_row and one.row is not None and not one.row.taken


def _texts(documents: Sequence[Document]) -> dict[str, str | None]:
    """Point as text -> what its chunk row says."""
    return {
        str(chunk.vector_id): chunk.text
        for one in documents
        for chunk in (one.row.chunks if one.row is not None else ())
    }
