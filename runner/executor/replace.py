"""Vectors replaced in the collection that serves: the old point is saved first, and what was written meanwhile is left
to the next pass. And the way back: saved vectors go into the points that still exist.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from runner import crash
from runner.clauses.texts import Choice, texts_of
from runner.errors import ItemsFailed, VerificationFailed
from runner.executor import slices, texts, verify
from runner.executor.flow import Moved, Pace, Prepare, Prepared, Reader, checker, plain, retried
from runner.executor.slices import Done, Task
from runner.ledger import Partition
from runner.plan import Place, ReplaceVectors, RestoreVectors, SetModel
from runner.points import KeyRange, Payload, Payloads, PointBatch, PointId, json_dumps
from runner.store import NORMS, PAYLOAD_FIELD, PRECISION
from runner.transform import Embedding, Transform

if TYPE_CHECKING:
    from runner.executor import Run

#: Claims kept for one pass: a partition is taken once for every slice of half a minute.
CLAIMS = 1_000_000


def ranges(run: Run, step: ReplaceVectors | RestoreVectors) -> list[KeyRange]:
    """The partition table: enough parts for all workers."""
    store = run.world.store(step.source.connection)
    points = store.count(step.source.collection)
    several = store.capabilities().parallel and points > 10_000
    sample = run.sample if isinstance(step, ReplaceVectors) else None
    return slices.ranges(store, step.source, points, run.hands if several else 1, sample)


def first_claim(run: Run, number: int) -> int:
    """Where the claims on partitions of the next pass begin: a worker of an earlier pass that wakes up has none of them."""
    result = run.ledger.steps_of(run.run)[number]["result"] or {}
    return int(result.get("passes", 0)) * CLAIMS


def work(run: Run, number: int, step: ReplaceVectors, part: int, seconds: float) -> bool:
    """Look at one slice of one partition. True when it is done or set aside."""
    store, embed = run.world.store(step.target.connection), step.transform.embed
    assert embed is not None
    caps, pace = store.capabilities(), Pace(min(step.batch_size, store.capabilities().max_batch))

    def task_of(partition: Partition, parts: int) -> Task:
        notes: dict[str, Any] = dict(partition.notes or {})

        def act(item: Moved) -> Done:
            left: set[PointId] = set()
            ids = item.batch.ids
            if ids and not run.dry:
                held = retried(lambda: store.fetch(step.target.collection, ids), run.limits, run.stop)
                wrong = verify.differences(step.target_schema, caps, item.batch, held)
                rows = [row for row, point_id in enumerate(ids) if point_id in wrong]
                if rows:
                    crash.point(step.type, "before_write")
                    left = write(run, step.target, step.saved, step.transform, item.batch.take(rows), pace)
                    crash.point(step.type, "after_write")
                notes["replaced"] = notes.get("replaced", 0) + len(rows) - len(left)
                notes["left"] = notes.get("left", 0) + len(left)
            made = {one: text for one, text in texts.of_points(item).items() if one not in left}
            record = texts.recorded(run, embed, step.target, made, item.failed, item.known)
            retries, pace.retries = pace.retries, 0
            return Done(
                item.read - len(item.failed) - len(left), retries=retries, notes=dict(notes), record=record
            )  # fmt: skip

        limit = -(-run.sample // parts) if run.sample is not None else None
        check = checker(store, step.target_schema, step.accept)
        reader = Reader(store, step.target, partition, _chosen(run, step, embed), step.batch_size, check, limit)
        return Task(step.type, step.target.collection, reader, act)

    return slices.work(run, number, part, seconds, task_of)


def _chosen(run: Run, step: ReplaceVectors, embed: Embedding) -> Prepare:
    """The points of a batch that need a look, with their new vectors."""
    run.services.of(embed)
    stale_only = step.choose == "stale" or step.phase == "after"
    choice = Choice(run.world, run.vectors, step.target, embed, step.rows, stale_only=stale_only, run=run.run)

    def prepare(batch: PointBatch, stop: threading.Event) -> Prepared:
        changed, _mapped = step.transform.apply(batch)
        # versions are looked at as they are, not as the transform sets them
        rows = choice.rows(batch, texts_of(run.world, embed, batch))
        return texts.with_vectors(run, embed, changed.take(rows), stop, count=step.phase == "before")

    return prepare


def write(run: Run, place: Place, saved: Place, transform: Transform, batch: PointBatch, pace: Pace) -> set[PointId]:
    """Save the points as they are, unless they were saved before, and write them with their new vectors. Returns the
    ids that somebody wrote or deleted since they were read: they are left alone."""
    store, ids = run.world.store(place.connection), batch.ids
    fresh = retried(lambda: store.fetch(place.collection, ids), run.limits, run.stop)
    payloads = dict(zip(ids, batch.payloads.dicts, strict=True))
    now, _mapped = transform.apply(fresh)
    same = {
        point_id
        for point_id, item in zip(now.ids, now.payloads.dicts, strict=True)
        if json_dumps(item) == json_dumps(payloads[point_id])
    }
    kept = fresh.take([row for row, point_id in enumerate(fresh.ids) if point_id in same])
    save(run, saved, kept, pace, elsewhere=saved.connection != place.connection)
    crash.point("replace", "saved")
    if same:  # all but the new vector as it is now
        name, rows = _vector_of(transform), {point_id: row for row, point_id in enumerate(ids)}
        with run.ledger.guarded(run.lease) as connection:  # before: a crash must not leave a mark that is wrong
            run.vectors.set_aside(connection, [run.run], str(place), str(saved), name, list(same))
        open_rows(run, place, list(same))
        chosen = now.take([row for row, point_id in enumerate(now.ids) if point_id in same])
        chosen.vectors[name] = batch.vectors[name][[rows[point_id] for point_id in chosen.ids]]
        chosen.missing.pop(name, None)
        pace.write(chosen, lambda part: store.upsert(place.collection, part), run.limits, run.stop)
    return set(ids) - same


def open_rows(run: Run, place: Place, ids: Sequence[PointId]) -> None:
    """Right before points of a collection get vectors: their rows carry no version, where applications may have given
    them one since the run took all of them away, or where it never did that (a second try for failed items)."""
    marks = next(
        (one for one in run.plan.steps if isinstance(one, SetModel) and one.rows is not None and one.target == place),
        None,
    )
    live = any(isinstance(one, ReplaceVectors) and one.live is not None for one in run.plan.steps)
    if marks is None or marks.rows is None or not (live or run.plan.purpose == "retry"):
        return
    from runner.documents import model

    database = run.world.database(marks.rows.connection)
    retried(lambda: model.open_rows(database, marks, ids), run.limits, run.stop)
    crash.point("replace", "opened")


def _vector_of(transform: Transform) -> str:
    assert transform.embed is not None
    return transform.embed.vector


def save(run: Run, saved: Place, batch: PointBatch, pace: Pace, *, elsewhere: bool) -> None:
    """The first copy counts: when this is repeated after a crash, the vectors may be the new ones already. `elsewhere`:
    in another store, which may not take every point."""
    if not len(batch):
        return
    store = run.world.store(saved.connection)
    have = set(retried(lambda: store.fetch(saved.collection, batch.ids), run.limits, run.stop).ids)
    wanted = batch.take([row for row, point_id in enumerate(batch.ids) if point_id not in have])
    if elsewhere and len(wanted):
        schema = store.inspect(saved.collection)
        assert schema is not None
        checker(store, schema, (NORMS, PRECISION, PAYLOAD_FIELD))(wanted)  # the plan has asked about these
    if len(wanted):
        pace.write(wanted, lambda part: store.upsert(saved.collection, part), run.limits, run.stop)


def finish(run: Run, number: int, step: ReplaceVectors, parts: Sequence[Partition]) -> dict[str, Any]:
    """After a pass: what came of it. `more` says that another one follows."""
    before = run.ledger.steps_of(run.run)[number]["result"] or {}
    notes = [part.notes or {} for part in parts]
    replaced, left = (sum(item.get(key, 0) for item in notes) for key in ("replaced", "left"))
    result: dict[str, Any] = {
        key: sum(getattr(part, key) for part in parts) for key in ("read", "done", "batches", "retries")
    }
    passes = [*before.get("repaired", []), replaced]
    bound = step.live.bound if step.live is not None and step.phase == "before" else 0
    more = step.live is not None and replaced + left > bound and not run.dry
    if step.live is not None and step.phase == "before" and len(passes) == 1:
        more = not run.dry and (replaced > 0 or left > 0)  # the first pass replaces everything
    return result | {
        "looked": before.get("looked", 0) + result["done"], "replaced": sum(passes), "repaired": passes, "left": left, "passes": len(passes),
        "tries": before.get("tries", 0) + 1, "more": more,
    }  # fmt: skip


def again(run: Run, number: int, step: ReplaceVectors, result: dict[str, Any]) -> bool:
    """Whether another pass follows. ItemsFailed when there were as many as are allowed; a resume allows as many again."""
    if not result["more"]:
        return False
    assert step.live is not None
    if result["tries"] < step.live.passes:
        return True
    run.ledger.restart_step(run.lease, number, result | {"tries": 0})
    raise ItemsFailed(
        "The collection is written to faster than it is embedded",
        f"{step.target}: the last of {result['passes']} passes had to replace {result['repaired'][-1]:,} vectors",
        f"Slow its writers down, then: vecrun resume {run.plan.job}",
    )


def restore(run: Run, number: int, step: RestoreVectors, part: int, seconds: float) -> bool:
    """Put back one slice of the saved vectors. True when it is done or set aside."""
    store, embed = run.world.store(step.target.connection), step.transform.embed
    assert embed is not None
    pace = Pace(min(verify.READ_POINTS, store.capabilities().max_batch))
    # what the run that is undone has recorded, and second tries of it, is not what was known before
    runs = [run.run, *(row["run"] for row in run.ledger.runs_of(run.plan.job) if row["of_run"] == run.plan.of_run)]
    runs.append(str(run.plan.of_run))

    def task_of(partition: Partition, _parts: int) -> Task:
        notes: dict[str, Any] = dict(partition.notes or {})

        def act(item: Moved) -> Done:
            ids = item.batch.ids
            if run.dry:
                return Done(len(ids))
            with run.ledger.guarded(run.lease) as connection:  # before: a mark may be missing, but never be wrong
                run.vectors.set_aside(connection, runs, str(step.target), str(step.saved), embed.vector, ids)
            held = retried(lambda: store.fetch(step.target.collection, ids), run.limits, run.stop)
            back = _with_old(embed, held, item.batch)
            crash.point(step.type, "before_write")
            if len(back):
                pace.write(back, lambda part: store.upsert(step.target.collection, part), run.limits, run.stop)
            crash.point(step.type, "after_write")
            _refuse_others(run, step, embed.vector, back)
            notes["gone"] = notes.get("gone", 0) + len(ids) - len(back)
            retries, pace.retries = pace.retries, 0
            return Done(len(back), retries=retries, notes=dict(notes), record=_known_before(run, step, ids, back.ids))

        saved = run.world.store(step.saved.connection)
        reader = Reader(saved, step.saved, partition, plain(Transform()), verify.READ_POINTS, lambda _batch: None)
        return Task(step.type, step.saved.collection, reader, act)

    return slices.work(run, number, part, seconds, task_of)


def _known_before(run: Run, step: RestoreVectors, ids: Sequence[PointId], back: Sequence[PointId]) -> texts.Record:
    """With the checkpoint: what was known of the old vectors is known again; of points that are gone nothing is."""
    embed = step.transform.embed
    assert embed is not None
    place, saved, vector = str(step.target), str(step.saved), embed.vector

    def record(connection: sa.Connection) -> None:
        run.vectors.unmark(connection, place, vector, ids)
        run.vectors.bring_back(connection, saved, place, vector, back)

    return record


def _refuse_others(run: Run, step: RestoreVectors, vector: str, back: PointBatch) -> None:
    """VerificationFailed when a vector that was put back is not the one that was saved."""
    store = run.world.store(step.target.connection)
    held = retried(lambda: store.fetch(step.target.collection, back.ids), run.limits, run.stop)
    if not len(held):  # all of them were deleted: there is nothing to compare
        return
    there = set(held.ids)  # what was deleted just now is nobody's
    here = back.take([row for row, point_id in enumerate(back.ids) if point_id in there])
    only = [PointBatch(one.ids, {vector: one.vectors[vector]}, Payloads([{}] * len(one))) for one in (here, held)]
    schema = step.target_schema.model_copy(update={"vectors": (step.target_schema.vector(vector),), "sparse": ()})
    if wrong := verify.differences(schema, store.capabilities(), *only):
        shown = "\n".join(f"  {point_id!r}: {what}" for point_id, what in list(wrong.items())[:5])
        raise VerificationFailed(
            "Old vectors did not come back",
            f"{step.target}: {len(wrong):,} of {len(here):,} points differ from {step.saved}\n{shown}",
            f"They are still saved. Try again: vecrun resume {run.plan.job}",
        )


def _with_old(embed: Embedding, held: PointBatch, saved: PointBatch) -> PointBatch:
    """The points as they are now, with the vector and the version they were saved with."""
    rows = {point_id: row for row, point_id in enumerate(saved.ids)}
    order = [rows[point_id] for point_id in held.ids]
    old = saved.take(order)
    payloads = [dict(item) for item in held.payloads.dicts]
    if embed.version_field is not None:
        for item, before in zip(payloads, old.payloads.dicts, strict=True):
            _put_back(item, before, embed.version_field)
    missing = {**held.missing}
    missing.pop(embed.vector, None)
    if embed.vector in old.missing:
        missing[embed.vector] = old.missing[embed.vector]
    vectors = {**held.vectors, embed.vector: old.vectors[embed.vector]}
    return PointBatch(held.ids, vectors, Payloads(payloads), held.sparse, missing, held.partitions)


def _put_back(item: Payload, before: Payload, name: str) -> None:
    if name in before:
        item[name] = before[name]
    else:
        item.pop(name, None)
