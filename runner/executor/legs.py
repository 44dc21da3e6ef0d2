"""What is done with the batches of a live source: before the cutover, in its verification, after it, and deletions.

`catchup` says which of these a pass is made of. Before the cutover only this run writes to the target; after it
applications do, and a pass touches only what it knows to be older than what the source has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from runner import crash
from runner.errors import Permanent
from runner.executor import replace, texts, verify, versions
from runner.executor.flow import Moved, Pace, checker, retried
from runner.executor.slices import Done
from runner.plan import CatchUp, VerifyPoints
from runner.points import IdKind, Payloads, PointBatch, PointId, canonical_uuid
from runner.transform import IdMode
from runner.vectors import Failure

if TYPE_CHECKING:
    from runner.executor import Run

Pairs = list[tuple[PointId, PointId]]
NOTHING = PointBatch(ids=[], vectors={}, payloads=Payloads([]))


class Leg:
    """What is done with the batches of one partition in one leg. `notes` go into the ledger with each checkpoint."""

    def __init__(self, run: Run, step: CatchUp | VerifyPoints, state: dict[str, Any], notes: dict[str, Any]) -> None:
        assert step.live is not None
        self.run, self.step, self.live, self.state, self.notes = run, step, step.live, state, notes
        self.source = run.world.store(step.source.connection)
        self.target = run.world.store(step.target.connection)
        schema = self.source.inspect(step.source.collection)
        if schema is None:  # every point of the target would seem to be deleted
            raise Permanent(
                "The source is gone", f"{step.source}, in the middle of bringing over what is written to it"
            )
        self.id_kind, self.caps = schema.id_kind, self.target.capabilities()
        self.check = checker(self.target, step.target_schema, step.live.accept)
        self.pace = Pace(min(verify.READ_POINTS, self.caps.max_batch))
        self.embed = step.transform.embed
        self.prepare = texts.prepare(run, step.transform)
        self._made: dict[PointId, str] = {}  # what the vectors that were written since the last batch were made from
        self._failed: list[Failure] = []
        self._removed: list[PointId] = []

    # before the cutover: only this run writes to the target ------------------------------------------------------

    def repair(self, item: Moved) -> Done:
        """Write what the target lacks or holds otherwise. Points below the mark were looked at in an earlier pass."""
        found = versions.column(item.batch, self.live.field)
        looked = _above(item.batch, found, self.state["skip"])
        wrong = self._compare(looked)
        if wrong:
            rows = [row for row, point_id in enumerate(looked.ids) if point_id in wrong]
            self._write(looked.take(rows), texts.of_points(item))
        self._failed += item.failed
        self._remove(self._failed)
        fresh = self._unrecorded(_pairs(item, looked))
        self._note({}, found)
        return self._done(len(item.batch) - len(wrong), len(item.batch), mapped=fresh)

    def prove(self, item: Moved) -> Done:
        """Compare every point; copy what differs again, from the source as it is now, and compare that with what was
        written: a point that was only on its way is equal then, whoever writes to the source."""
        found = versions.column(item.batch, self.live.field)
        wrong, gone, still = self._compare(item.batch), 0, dict[PointId, str]()
        again, written = item.batch, Pairs()
        self._failed += item.failed
        if wrong:
            again, written, made = self._read_again(item, list(wrong))
            moved = self._write(again, made)
            still = {point_id: what for point_id, what in self._compare(again).items() if point_id not in moved}
            gone = len(wrong) - len(again)  # deleted in the source meanwhile: the other leg's; or refused by now
        if self.step.source != self.step.target:
            self._remove(self._failed)
        recent = _pairs(item, _above(item.batch, found, self.state["threshold"]), kept=True)
        absent = set(wrong) - set(again.ids) if wrong else set()
        fresh = self._unrecorded([*(pair for pair in recent if pair[1] not in absent), *written])
        self._note({"moved": len(wrong) - len(still)}, found)
        compared = len(item.batch) - gone
        return self._done(compared - len(still), compared, mapped=fresh, found=list(still.items()))

    # after it: applications write to the target --------------------------------------------------------------------

    def merge(self, item: Moved) -> Done:
        """Add what was never there, replace what is older by its field. The rest belongs to whoever writes there now."""
        found = versions.column(item.batch, self.live.field)
        looked = _above(item.batch, found, self.state["threshold"])
        wrong = self._compare(looked)
        unknown = {old for old, _new in self._unrecorded(_pairs(item, looked, kept=True))}
        again, pairs, made = self._read_again(item, list(wrong))
        self._failed += item.failed
        old_ids = {new: old for old, new in pairs}
        held = self._fetch(again.ids)
        theirs = dict(zip(held.ids, versions.column(held, self.live.field), strict=True))
        ours = versions.column(again, self.live.field)
        differing = verify.differences(self.step.target_schema, self.caps, again, held)
        rows, left = [], 0
        for row, point_id in enumerate(again.ids):
            if point_id not in differing:
                continue
            if point_id not in theirs:  # an application deleted it, unless it never was there
                if old_ids.get(point_id, point_id) in unknown:
                    rows.append(row)
            elif versions.newer(ours[row], theirs[point_id]):
                rows.append(row)
            elif not versions.newer(theirs[point_id], ours[row]):
                left += 1
        chosen = again.take(rows)
        # what is replaced is recorded before: when a crash follows, it is not taken for something that was added
        replaced = [(old_ids.get(one, one), one) for one in chosen.ids if one in theirs]
        if replaced := [pair for pair in replaced if pair[0] in unknown]:
            self.run.ledger.remember(self.run.lease, self.step.source.collection, replaced)
            unknown -= {old for old, _new in replaced}
        self._write(chosen, made)
        # added is what stands there and is not recorded: a crash may have come between the write and the checkpoint
        absent = {point_id for point_id in again.ids if point_id not in theirs} - set(chosen.ids)
        gone = set(wrong) - set(again.ids)
        fresh = [
            (old, new)
            for old, new in _pairs(item, looked, kept=True)
            if old in unknown and new not in absent and new not in gone
        ]
        self._note({"added": len(fresh), "left": left}, [])
        return self._done(len(item.batch) - len(chosen), len(item.batch), mapped=fresh)

    # deletions -------------------------------------------------------------------------------------------------------

    def delete(self, item: Moved) -> Done:
        """Delete points of the target whose source is gone. After the cutover: only those this run brought, and that
        nobody has written since."""
        batch, left = item.batch, 0
        after = isinstance(self.step, CatchUp) and self.step.phase == "after"
        if after:
            batch = self._old_enough(batch)
            left = self._orphans(item.batch)
        origins = self._origins(batch)
        olds = [old for one in origins for old in one]
        standing, _pairs_of = self.step.transform.apply(self._fetch_source(olds))
        alive = {(type(point_id), point_id) for point_id in standing.ids}
        rows = [row for row, point_id in enumerate(batch.ids) if (type(point_id), point_id) not in alive]
        if after and rows:
            known = self.run.ledger.known(self.run.run, self.step.source.collection, olds)
            found = versions.column(batch, self.live.field)
            rows = [
                row
                for row in rows
                if versions.not_above(found[row], self.state["threshold"]) or known.intersection(origins[row])
            ]
            still = set(self._old_enough(self._fetch([batch.ids[row] for row in rows])).ids)
            rows = [row for row in rows if batch.ids[row] in still]
        if rows:
            gone, forgotten = [batch.ids[row] for row in rows], [old for row in rows for old in origins[row]]
            # before the cutover a point without a mapping is deleted all the same when this is repeated, after it not
            if not after:
                self.run.ledger.forget(self.run.lease, self.step.source.collection, forgotten)
            crash.point(self.step.type, "before_delete")
            retried(lambda: self.target.delete(self.step.target.collection, gone), self.run.limits, self.run.stop)
            crash.point(self.step.type, "after_delete")
            if after:
                self.run.ledger.forget(self.run.lease, self.step.source.collection, forgotten)
        self._note({"deleted": len(rows), "left": left}, [])
        return self._done(len(item.batch) - len(rows), len(item.batch))

    def _old_enough(self, batch: PointBatch) -> PointBatch:
        """The points whose version is one that the source had before the switch."""
        found = versions.column(batch, self.live.field)
        return batch.take([row for row, one in enumerate(found) if versions.not_above(one, self.state["highest"])])

    def _orphans(self, batch: PointBatch) -> int:
        """How many points of this run the source has deleted, and somebody has written since the switch."""
        found = versions.column(batch, self.live.field)
        recent = batch.take(
            [row for row, one in enumerate(found) if not versions.not_above(one, self.state["highest"])]
        )
        origins = self._origins(recent)
        known = self.run.ledger.known(
            self.run.run, self.step.source.collection, [old for one in origins for old in one]
        )
        rows = [row for row, one in enumerate(origins) if known.intersection(one)]
        standing, _pairs_of = self.step.transform.apply(
            self._fetch_source([old for row in rows for old in origins[row]])
        )
        return len({recent.ids[row] for row in rows} - set(standing.ids))

    def _origins(self, batch: PointBatch) -> list[list[PointId]]:
        """The source ids that each of these target points can have come from."""
        transform = self.step.transform
        if transform.ids is IdMode.KEEP and transform.id_from is None:
            return [[point_id] for point_id in batch.ids]
        recorded: dict[PointId, PointId] = {}
        if transform.ids is not IdMode.STRING and transform.keep_id_as is None:
            recorded = self.run.ledger.originals(self.run.run, self.step.source.collection, batch.ids)
        origins = []
        for point_id, payload in zip(batch.ids, batch.payloads.dicts, strict=True):
            wanted: list[Any] = [point_id, recorded.get(point_id), payload.get(transform.keep_id_as or "")]
            if transform.ids is IdMode.STRING and isinstance(point_id, str) and point_id.lstrip("-").isdecimal():
                wanted.append(int(point_id))
            origins.append(list(dict.fromkeys(one for one in wanted if _possible(one, self.id_kind))))
        return origins

    # reading and writing -----------------------------------------------------------------------------------------------

    def _fetch(self, ids: Sequence[PointId]) -> PointBatch:
        if not ids:
            return NOTHING
        return retried(lambda: self.target.fetch(self.step.target.collection, ids), self.run.limits, self.run.stop)

    def _fetch_source(self, ids: Sequence[PointId]) -> PointBatch:
        if not ids:
            return NOTHING
        return retried(lambda: self.source.fetch(self.step.source.collection, ids), self.run.limits, self.run.stop)

    def _compare(self, batch: PointBatch) -> dict[PointId, str]:
        if not len(batch):
            return {}
        return verify.differences(self.step.target_schema, self.caps, batch, self._fetch(batch.ids))

    def _read_again(self, item: Moved, ids: Sequence[PointId]) -> tuple[PointBatch, Pairs, dict[PointId, str]]:
        """These points of a batch, as the source holds them now, what their ids came from, and what was embedded."""
        if not ids:
            return NOTHING, [], {}
        old_ids = {new: old for old, new in item.mapped}
        made = self.prepare(self._fetch_source([old_ids.get(one, one) for one in ids]), self.run.stop)
        self._failed += made.failed
        return made.batch, made.mapped, texts.of_points(made)

    def _write(self, batch: PointBatch, made: Mapping[PointId, str]) -> set[PointId]:
        """Write points; `made` is what their vectors were made from, where the transform embeds. Returns those that
        were left to the next pass, because somebody wrote them just now."""
        if not len(batch):
            return set()
        self.check(batch)
        crash.point(self.step.type, "before_write")
        if isinstance(self.step, VerifyPoints) and self.step.saved is not None:
            left = replace.write(self.run, self.step.target, self.step.saved, self.step.transform, batch, self.pace)
            self._made |= {one: made[one] for one in batch.ids if one not in left}
            return left
        self._made |= {one: made[one] for one in batch.ids if one in made}
        upsert: Callable[[PointBatch], None] = lambda part: self.target.upsert(self.step.target.collection, part)  # noqa: E731
        self.pace.write(batch, upsert, self.run.limits, self.run.stop)
        crash.point(self.step.type, "after_write")
        return set()

    def _remove(self, failed: Sequence[Failure]) -> None:
        """Before the cutover: a point whose text fails now is not left with the vector of an earlier text. It is absent,
        like all that failed, and comes with the next try."""
        if not failed:
            return
        ids = [one.item for one in failed]
        self._removed += ids
        held = self._fetch(ids).ids
        if held:
            self.run.ledger.forget(self.run.lease, self.step.source.collection, held)
            crash.point(self.step.type, "before_delete")
            retried(lambda: self.target.delete(self.step.target.collection, held), self.run.limits, self.run.stop)
            crash.point(self.step.type, "after_delete")
        self._note({"deleted": len(held)}, [])

    # what is kept --------------------------------------------------------------------------------------------------------

    def _unrecorded(self, pairs: Pairs) -> Pairs:
        """Those that are not in the ledger yet."""
        if not pairs:
            return []
        known = self.run.ledger.known(self.run.run, self.step.source.collection, [old for old, _new in pairs])
        return [pair for pair in pairs if pair[0] not in known]

    def _note(self, counts: dict[str, int], found: Sequence[versions.Version | None]) -> None:
        for key, count in counts.items():
            self.notes[key] = self.notes.get(key, 0) + count
        self.notes["highest"] = versions.raised(self.notes.get("highest", {}), found)

    def _done(self, points: int, compared: int, **more: Any) -> Done:
        retries, self.pace.retries = self.pace.retries, 0
        record = self._record()
        self._made, self._failed, self._removed = {}, [], []
        return Done(points, compared=compared, retries=retries, notes=dict(self.notes), record=record, **more)

    def _record(self) -> texts.Record | None:
        made = texts.recorded(self.run, self.embed, self.step.target, self._made, self._failed)
        if made is None or self.embed is None or not self._removed:
            return made
        removed, place, vector = list(self._removed), str(self.step.target), self.embed.vector

        def record(connection: sa.Connection) -> None:
            self.run.vectors.unmark(connection, place, vector, removed)
            made(connection)

        return record


def _above(batch: PointBatch, found: Sequence[versions.Version | None], marks: versions.Marks) -> PointBatch:
    """The points whose version is above the marks, or that have none."""
    rows = [row for row, one in enumerate(found) if not versions.not_above(one, marks)]
    return batch if len(rows) == len(batch) else batch.take(rows)


def _pairs(item: Moved, batch: PointBatch, *, kept: bool = False) -> Pairs:
    """(source id, target id) of these points of a batch; `kept`: also of those whose id stays."""
    old_ids = {new: old for old, new in item.mapped}
    return [(old_ids.get(new, new), new) for new in batch.ids if kept or new in old_ids]


def _possible(point_id: Any, kind: IdKind) -> bool:
    """Whether a source of this kind can have such an id."""
    if isinstance(point_id, bool) or not isinstance(point_id, int | str):
        return False
    if isinstance(point_id, int):
        return kind in (IdKind.INT, IdKind.INT_OR_UUID)
    return kind is IdKind.STRING or (kind is not IdKind.INT and canonical_uuid(point_id))
