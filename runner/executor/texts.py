"""The embedding part of a transform: the text of each point, its vector, and what is recorded of both."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import sqlalchemy as sa

from runner.clauses.texts import texts_of
from runner.executor.flow import Prepare, Prepared, plain
from runner.plan import Place
from runner.points import PointBatch, PointId
from runner.transform import Embedding, Transform
from runner.vectors import Failure, Refusal, text_key

if TYPE_CHECKING:
    from runner.executor import Run

Record = Callable[[sa.Connection], None]


def prepare(run: Run, transform: Transform, *, count: bool = False) -> Prepare:
    """A transform as the executor does it. Points whose text cannot be embedded are left out, and named. `count`: texts
    whose vectors were kept from before are added to the run's usage."""
    embed = transform.embed
    if embed is None:
        return plain(transform)
    run.services.of(embed)  # a model that cannot be opened is told before anything is read

    def embedded(batch: PointBatch, stop: threading.Event) -> Prepared:
        changed, mapped = transform.apply(batch)
        return with_vectors(run, embed, changed, stop, mapped=mapped, count=count)

    return embedded


def with_vectors(
    run: Run, embed: Embedding, batch: PointBatch, stop: threading.Event, *,
    mapped: Sequence[tuple[PointId, PointId]] = (), count: bool = False,
) -> Prepared:  # fmt: skip
    """The points of a batch with the vectors of their texts; those without one are left out, and named."""
    found = texts_of(run.world, embed, batch)
    asked = [(row, text) for row, text in enumerate(found) if isinstance(text, str)]
    failed = [item for item in found if isinstance(item, Failure)]
    made = run.services.of(embed).vectors([text for _row, text in asked], stop) if asked else []
    known = run.vectors.of_others(run.run, embed.identity.key, [text_key(text) for _row, text in asked]) if count else 0
    rows, texts, vectors = [], [], []
    for (row, text), item in zip(asked, made, strict=True):
        if isinstance(item, Refusal):
            failed.append(Failure(batch.ids[row], item.error, item.attempts, text_key(text)))
        else:
            rows.append(row)
            texts.append(text_key(text))
            vectors.append(item)
    chosen = batch if len(rows) == len(batch) else batch.take(rows)
    matrix = np.stack(vectors) if vectors else np.empty((0, embed.identity.dimension), np.float32)
    columns = {**chosen.vectors, embed.vector: np.ascontiguousarray(matrix, np.float32)}
    missing = {name: mask for name, mask in chosen.missing.items() if name != embed.vector}
    left = set(chosen.ids)
    return Prepared(
        PointBatch(chosen.ids, columns, chosen.payloads, chosen.sparse, missing, chosen.partitions),
        [pair for pair in mapped if pair[1] in left], texts, failed, known,
    )  # fmt: skip


def recorded(
    run: Run, embed: Embedding | None, target: Place, made: Mapping[PointId, str], failed: Sequence[Failure],
    known: int = 0,
) -> Record | None:  # fmt: skip
    """What belongs into the checkpoint: what the vectors of points that are durable now were made from, failures, and how
    many texts were `known`."""
    if embed is None or not (made or failed or known):
        return None
    kept, marks, failures = run.vectors, dict(made), list(failed)

    def record(connection: sa.Connection) -> None:
        kept.mark(connection, run.run, str(target), embed.vector, embed.identity.key, marks)
        kept.fail(connection, run.run, failures)
        if known:
            kept.count_known(connection, run.run, embed.identity.key, known)

    return record


def of_points(prepared: Prepared) -> dict[PointId, str]:
    """id -> text key, of a prepared batch."""
    return dict(zip(prepared.batch.ids, prepared.texts, strict=True)) if prepared.texts is not None else {}
