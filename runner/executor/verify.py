"""Proving that source and target are equal: counts, a sample, or every id, vector and payload.

The source is read again and run through the same transform; each batch is looked up in the target by id. With equal
counts that also proves that the target holds nothing else.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.errors import VerificationFailed
from runner.executor import slices, texts
from runner.executor.flow import Moved, Prepare, Prepared, Reader, retried
from runner.executor.slices import Done, Task
from runner.ledger import Partition
from runner.plan import CopyPoints, Place, Plan, VerifyPoints
from runner.points import (
    CollectionSchema,
    Datatype,
    Float32Matrix,
    KeyRange,
    PointBatch,
    PointId,
    SparseVector,
    VectorField,
    json_dumps,
)
from runner.store import Capabilities, Store

if TYPE_CHECKING:
    from runner.executor import Run

#: Source points read, and looked up in the target, at once.
READ_POINTS = 1000
#: Two unit vectors are the same direction when no number differs by more: float32 rounds at 6e-8, a few times over.
DIRECTION_TOLERANCE = 2e-6
HALF_TOLERANCE = 1e-3


def ranges(step: VerifyPoints, source: Store, hands: int) -> list[KeyRange]:
    """Parts to read: none for counts, a few places for a sample, all for a full comparison."""
    if step.mode == "count":
        return []
    sample = step.sample if step.mode == "sample" else None
    return slices.ranges(source, step.source, step.points, hands if step.points > 10_000 else 1, sample)


def work(run: Run, number: int, step: VerifyPoints, part: int, seconds: float) -> bool:
    """Compare one slice of one partition. True when it is done or set aside."""
    source, target = run.world.store(step.source.connection), run.world.store(step.target.connection)
    caps = target.capabilities()

    def compare(item: Moved) -> Done:
        if not len(item.batch):
            return Done(0, compared=0)
        ids = item.batch.ids
        got = retried(lambda: target.fetch(step.target.collection, ids), run.limits, run.stop)
        wrong = differences(step.target_schema, caps, item.batch, got)
        return Done(len(ids) - len(wrong), compared=len(ids), found=list(wrong.items()))

    def task_of(partition: Partition, parts: int) -> Task:
        limit = math.ceil(step.sample / parts) if step.mode == "sample" else None
        reader = Reader(source, step.source, partition, _prepare(run, step), READ_POINTS, lambda _batch: None, limit)
        return Task(step.type, step.source.collection, reader, compare)

    return slices.work(run, number, part, seconds, task_of)


def _prepare(run: Run, step: VerifyPoints) -> Prepare:
    """In place a run compares what it has embedded; on demand, what any run has. The vectors of other texts would have to
    be paid for."""
    embed = step.transform.embed
    if embed is None or step.source != step.target:
        return texts.prepare(run, step.transform)

    def prepare(batch: PointBatch, stop: threading.Event) -> Prepared:
        changed, _mapped = step.transform.apply(batch)
        marks = run.vectors.marks(str(step.target), embed.vector, changed.ids)
        rows = [
            row
            for row, point_id in enumerate(changed.ids)
            if (mark := marks.get(point_id)) is not None
            and mark.model == embed.identity.key
            and (mark.run == run.run or not run.spend)
        ]
        return texts.with_vectors(run, embed, changed.take(rows), stop)

    return prepare


def copied_by(plan: Plan, rows: list[dict[str, Any]]) -> dict[Place, int]:
    """How many points the copies of a run have written to each target."""
    return {
        step.target: row["result"]["done"]
        for step, row in zip(plan.steps, rows, strict=True)
        if isinstance(step, CopyPoints) and row["result"]
    }


def conclude(run: Run, number: int, step: VerifyPoints, read: int, equal: int) -> dict[str, Any]:
    """The verdict over all partitions: counts and what differed."""
    if run.dry:
        return {"mode": step.mode, "source": read, "target": None, "compared": 0, "equal": 0, "differences": []}
    target = run.world.store(step.target.connection).count(step.target.collection)
    if step.source == step.target:  # one collection: points whose text could not be embedded stay in it as they were
        expected = target
    elif step.mode == "full":
        expected = read
    elif step.transform.embed is not None:  # later tries have added what the copy had to leave out
        held = run.world.store(step.source.connection).count(step.source.collection)
        expected = held - run.vectors.count_failed(run.failures_of or run.run)
    elif step.transform.where:
        # how many points match is known from the copy, or by reading them all
        copied = run.copied or copied_by(run.plan, run.ledger.steps_of(run.run))
        expected = copied.get(step.target, target)
    else:
        expected = run.world.store(step.source.connection).count(step.source.collection)
    found = []
    if target != expected and not (step.others and target > expected):
        found.append(f"{step.target} holds {target:,} points, expected {expected:,} from {step.source}")
    if equal != read:
        found.append(f"{read - equal:,} of {read:,} compared points differ:")
        found += [f"  {point_id!r}: {what}" for point_id, what in run.ledger.findings_of(run.run, number)[:20]]
    return {
        "mode": step.mode,
        "source": expected,
        "target": target,
        "compared": read,
        "equal": equal,
        "differences": found,
    }


def refuse_differences(job: str, found: list[str]) -> None:
    """VerificationFailed when there are any."""
    if found:
        raise VerificationFailed(
            "Source and target differ",
            "\n".join(found),
            f"Nothing was switched. Look at it with vecrun logs, copy again after a rollback: vecrun rollback {job}",
        )


def differences(
    schema: CollectionSchema, caps: Capabilities, expected: PointBatch, got: PointBatch
) -> dict[PointId, str]:
    """id -> what differs, for every point of `expected` that `got` does not hold equally."""
    found: dict[PointId, str] = {}
    for point_id, what in _differences(schema, caps, expected, got):
        found[point_id] = f"{found[point_id]}, {what}" if point_id in found else what
    if len(set(expected.ids)) < len(expected):
        for point_id, times in Counter(expected.ids).items():
            if times > 1:
                found[point_id] = f"{times} points of the source become this one"
    return found


def _differences(
    schema: CollectionSchema, caps: Capabilities, expected: PointBatch, got: PointBatch
) -> list[tuple[PointId, str]]:
    rows = {(type(point_id), point_id): row for row, point_id in enumerate(got.ids)}
    order = [rows.get((type(point_id), point_id), -1) for point_id in expected.ids]
    found: list[tuple[PointId, str]] = [
        (point_id, "missing in the target") for point_id, row in zip(expected.ids, order, strict=True) if row < 0
    ]
    here = [row for row, other in enumerate(order) if other >= 0]
    there = [other for other in order if other >= 0]
    for item in schema.vectors:
        if item.name not in expected.vectors:
            continue
        if item.name not in got.vectors:
            found += [(expected.ids[row], f"vector {item.name or '(unnamed)'} is missing") for row in here]
            continue
        bad = _vector_rows(item, caps, expected.vectors[item.name][here], got.vectors[item.name][there])
        for columns, flags in ((expected, here), (got, there)):
            mask = columns.missing.get(item.name)
            if mask is not None:  # a missing vector is a row of zeros; it must be missing on both sides
                other = (got if columns is expected else expected).missing.get(item.name)
                mine = mask[flags]
                theirs = (
                    other[there if columns is expected else here] if other is not None else np.zeros(len(mine), bool)
                )
                bad |= mine != theirs
        found += [
            (expected.ids[here[int(row)]], f"vector {item.name or '(unnamed)'} differs") for row in np.flatnonzero(bad)
        ]
    for sparse in schema.sparse:
        if sparse.name in expected.sparse:
            theirs_all = got.sparse.get(sparse.name, [None] * len(got.ids))
            for mine_row, their_row in zip(here, there, strict=True):
                if not _same_sparse(expected.sparse[sparse.name][mine_row], theirs_all[their_row]):
                    found.append((expected.ids[mine_row], f"vector {sparse.name} differs"))
    mine_payloads, their_payloads = expected.payloads.dicts, got.payloads.dicts
    for mine_row, their_row in zip(here, there, strict=True):
        wanted, held = mine_payloads[mine_row], their_payloads[their_row]
        if json_dumps(wanted) != json_dumps(held):
            found.append((expected.ids[mine_row], f"payload differs in {_fields(wanted, held)}"))
    if schema.partitions is not None and expected.partitions is not None and got.partitions is not None:
        for mine_row, their_row in zip(here, there, strict=True):
            if expected.partitions[mine_row] != got.partitions[their_row]:
                found.append((expected.ids[mine_row], "partition differs"))
    return found


def _vector_rows(item: VectorField, caps: Capabilities, mine: Float32Matrix, theirs: Float32Matrix) -> np.ndarray:
    """True for rows that differ. Exact, unless the store scales this metric's vectors or keeps fewer bits."""
    if mine.shape != theirs.shape:
        return np.ones(len(mine), bool)
    if item.distance in caps.normalises:
        tolerance = DIRECTION_TOLERANCE if item.datatype is Datatype.FLOAT32 else HALF_TOLERANCE
        return np.asarray((np.abs(_unit(mine) - _unit(theirs)) > tolerance).any(axis=1))
    if item.datatype is Datatype.FLOAT32:
        return np.asarray((mine != theirs).any(axis=1))
    if item.datatype is Datatype.UINT8:
        return np.asarray((np.abs(mine - theirs) > 0.5).any(axis=1))
    return np.asarray((np.abs(mine - theirs) > HALF_TOLERANCE * np.maximum(np.abs(mine), 6e-5)).any(axis=1))


def _unit(matrix: Float32Matrix) -> np.ndarray:
    wide = matrix.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(lengths > 0, lengths, 1.0))


def _same_sparse(mine: SparseVector | None, theirs: SparseVector | None) -> bool:
    if mine is None or theirs is None:
        return mine is theirs
    return np.array_equal(mine.indices, theirs.indices) and np.array_equal(mine.values, theirs.values)


def _fields(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    """The first few keys whose values, or presence, differ."""
    names = [
        name
        for name in sorted({*mine, *theirs})
        if name not in mine or name not in theirs or json_dumps(mine[name]) != json_dumps(theirs[name])
    ]
    return ", ".join(repr(name) for name in names[:5])
