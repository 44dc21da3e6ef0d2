"""What a run has changed, brought back: deleted files first, then points, then rows; after an edit rows, then points; after
chunks were made anew old points, then rows, then the new points go. What somebody changed since is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from runner import crash
from runner.errors import Permanent, VerificationFailed
from runner.executor import slices, verify
from runner.executor.batch.documents import (
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
from runner.executor.batch.files import each
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

        def act(item: Any) -> Done:
            assert isinstance(item, Work)
            one = _Batch(run, step, item.documents, pace)
            one.bring_back()
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
    """Some documents, on their way back."""

    def __init__(self, run: Run, step: RestoreDocuments, documents: Sequence[Document], pace: Pace) -> None:
        self.run, self.step, self.change, self.documents, self.pace = run, step, step.of, documents, pace
        self.ids = list(dict.fromkeys(point for one in documents for point in one.points))
        self.saved = fetch(run, step.saved, self.ids)
        self.counts = {"points": 0, "rows": 0, "files": 0, "left": 0}
        self._back: list[PointId] = []

    def bring_back(self) -> None:
        match self.change:
            case DeleteDocuments():
                self._files_back()
                self._points_back(self._absent())
                self._rows_back()
                self._trash_out()
            case EditDocuments():
                self._rows_back()
                self._points_back(self._unedited(self.change))
            case ReprocessDocuments():
                self._points_back(self._as_before(self.change))
                self._rows_back()
                self._new_out()

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

    def _as_before(self, change: ReprocessDocuments) -> PointBatch:
        """Saved points that are gone, or that differ: only this run wrote their vectors, texts and positions."""
        held = self._held()
        caps = store_of(self.run, self.step.target).capabilities()
        wrong = verify.differences(change.target_schema, caps, self.saved, self._now) if held else {}
        chosen = [row for row, point in enumerate(self.saved.ids) if point not in held or point in wrong]
        return self.saved.take(chosen)

    def _new_out(self) -> None:
        before = set(self.ids)
        made = [point for one in self.documents for point in one.item.details.get("made", ()) if point not in before]
        if made:
            remove(self.run, self.step.target, made)
            with self.run.ledger.guarded(self.run.lease) as connection:
                for item in self.change.target_schema.vectors:
                    self.run.vectors.unmark(connection, str(self.step.target), item.name, made)
            crash.point(self.step.type, "new_points")

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
        crash.point(self.step.type, "rows")

    def _keys(self) -> list[tuple[str, str]]:
        """(key of a file, where it waits) of the documents that have one."""
        files = self.change.files
        if files is None:
            return []
        rows = [one.row for one in self.documents if one.row is not None and one.row.file]
        return [(row.file, files.key(origin_of(self.run), row.file)) for row in rows if row.file]

    def _files_back(self) -> None:
        files = self.change.files
        if files is None:
            return
        objects, limits, stop = self.run.world.objects(files.connection), self.run.limits, self.run.stop

        def back(pair: tuple[str, str]) -> str:
            key, there = pair
            kept = retried(lambda: objects.head(there), limits, stop)
            if kept is None:
                return ""
            present = retried(lambda: objects.head(key), limits, stop)
            if present is None:
                retried(lambda: objects.copy(there, key), limits, stop)
                return "files"
            return "" if present.size == kept.size and objects.read(key) == objects.read(there) else "left"

        for what in each(self._keys(), back):
            if what:
                self.counts[what] += 1
        crash.point(self.step.type, "files")

    def _trash_out(self) -> None:
        """After the rows are back: the copies are of no use any more."""
        files = self.change.files
        if files is None:
            return
        objects, limits, stop = self.run.world.objects(files.connection), self.run.limits, self.run.stop

        def out(pair: tuple[str, str]) -> None:
            try:
                retried(lambda: objects.delete(pair[1]), limits, stop)
            except Permanent:  # who may not delete has no copy there either
                if retried(lambda: objects.head(pair[1]), limits, stop) is not None:
                    raise

        each(self._keys(), out)
        crash.point(self.step.type, "trash")
