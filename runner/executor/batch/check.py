"""What documents have become, against what was asked for: in the store, the rows and the files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from runner.conditions import look_up
from runner.errors import VerificationFailed
from runner.executor import slices, verify
from runner.executor.batch.documents import Document, DocumentReader, Work, documents_of, fetch, store_of
from runner.executor.batch.files import each
from runner.executor.flow import retried
from runner.executor.slices import Done, Task
from runner.ledger import Partition
from runner.plan import CheckDocuments, DeleteDocuments, EditDocuments, ReprocessDocuments
from runner.points import Payloads, PointBatch, PointId, json_dumps

if TYPE_CHECKING:
    from runner.executor import Run

#: Differences that an error shows.
SHOWN = 5


def work(run: Run, number: int, step: CheckDocuments, part: int, seconds: float) -> bool:
    """Look at one slice. True when it is done or set aside."""

    def task_of(partition: Partition, _parts: int) -> Task:
        notes: dict[str, Any] = dict(partition.notes or {})

        def act(item: Any) -> Done:
            assert isinstance(item, Work)
            wrong = _wrong(run, step, item.documents)
            notes["differences"] = notes.get("differences", 0) + len(wrong)
            bad = {key for key, _what in wrong}
            return Done(len(item.documents) - len(bad), compared=item.read, found=wrong, notes=dict(notes))

        read = documents_of(run, step.of)
        reader = DocumentReader(
            run, step, partition, run.failures_of or run.run, read, step.of.batch_size, statuses=("done",)
        )
        return Task(step.type, step.target.collection, reader, act)

    return slices.work(run, number, part, seconds, task_of)


def conclude(run: Run, step: CheckDocuments, result: dict[str, Any]) -> None:
    """VerificationFailed when something is not as it was asked for."""
    if not result.get("differences"):
        return
    number = next(number for number, one in enumerate(run.plan.steps) if one == step)
    found = run.ledger.findings_of(run.run, number)[:SHOWN]
    shown = "\n".join(f"  {item!r}: {what}" for item, what in found)
    raise VerificationFailed(
        "Documents are not as they were asked for",
        f"{step.target}: {result['differences']:,} differences\n{shown}",
        f"Look at them, then undo the run: vecrun rollback {run.plan.job}",
    )


def _wrong(run: Run, step: CheckDocuments, documents: Sequence[Document]) -> list[tuple[PointId, str]]:
    match step.of:
        case DeleteDocuments():
            return _deleted(run, step.of, documents)
        case EditDocuments():
            return _edited(run, step.of, documents)
        case ReprocessDocuments():
            return _renewed(run, step.of, documents)


def _deleted(run: Run, step: DeleteDocuments, documents: Sequence[Document]) -> list[tuple[PointId, str]]:
    held = set(fetch(run, step.target, [point for one in documents for point in one.points]).ids)
    held -= _of_others(run, step, list(held), [] if step.delete_rows else [one.item.id for one in documents])
    found: list[tuple[PointId, str]] = [
        (one.item.id, f"{sum(point in held for point in one.points):,} of its points are there")
        for one in documents
        if any(point in held for point in one.points)
    ]
    if step.delete_rows:
        found += [(one.item.id, "its row is there") for one in documents if one.row is not None and not one.row.taken]
    if step.delete_files and step.files is not None and step.rows is not None:
        from runner.documents.files import still_named

        objects, database, rows = (
            run.world.objects(step.files.connection),
            run.world.database(step.rows.connection),
            step.rows,
        )
        keyed = [(one.item.id, one.row.file) for one in documents if one.row is not None and one.row.file]
        shared = retried(lambda: still_named(database, rows, [key for _, key in keyed]), run.limits, run.stop)
        keyed = [(name, key) for name, key in keyed if key not in shared]
        there = each(keyed, lambda pair: retried(lambda: objects.head(pair[1]), run.limits, run.stop))
        found += [(name, f"its file {key} is there") for (name, key), head in zip(keyed, there, strict=True) if head]
    return found


def _edited(run: Run, step: EditDocuments, documents: Sequence[Document]) -> list[tuple[PointId, str]]:
    ids = [point for one in documents for point in one.points]
    owner = {point: one.item.id for one in documents for point in one.points}
    before = fetch(run, step.saved, ids)
    mine = set(before.ids) | {point for one in documents for point in one.item.points}
    held = fetch(run, step.target, [point for point in ids if point in mine])  # what came later was not meant
    there, found = set(held.ids), list[tuple[PointId, str]]()
    found += [(owner[point], f"point {point!r} is gone") for point in before.ids if point not in there]
    for point, payload in zip(held.ids, held.payloads.dicts, strict=True):
        try:
            same = json_dumps(step.fields.edited(payload, step.edit)) == json_dumps(payload)
        except ValueError:
            same = False
        if not same:
            found.append((owner[point], f"the payload of point {point!r} is not as it was asked for"))
    vectors = [
        PointBatch(one.ids, one.vectors, Payloads([{}] * len(one)), one.sparse, one.missing) for one in (before, held)
    ]
    kept = (
        vectors[0].take([row for row, point in enumerate(before.ids) if point in there]) if len(before) else vectors[0]
    )
    if len(kept):
        caps = store_of(run, step.target).capabilities()
        wrong = verify.differences(step.target_schema, caps, kept, vectors[1])
        found += [(owner[point], f"point {point!r}: {what}") for point, what in wrong.items()]
    if step.rows is not None:
        from runner.documents.rows import would_change

        meant = {one.item.number: {str(point) for point in one.item.points} for one in documents}
        bad = [
            one
            for one in documents
            if one.row is not None and would_change(one.row, step.edit, step.rows, meant[one.item.number])
        ]
        found += [(one.item.id, "its row is not as it was asked for") for one in bad]
    return found


def _renewed(run: Run, step: ReprocessDocuments, documents: Sequence[Document]) -> list[tuple[PointId, str]]:
    """The new points are there with a text, the old ones are gone; rows and points are of the same chunks."""
    made = {one.item.number: list(one.item.details.get("made", ())) for one in documents}
    meant = {  # what came after the documents were read was not
        one.item.number: dict.fromkeys((*one.item.points, *one.item.details.get("late", ()), *made[one.item.number]))
        for one in documents
    }
    held = fetch(run, step.target, list(dict.fromkeys(point for some in meant.values() for point in some)))
    payloads = dict(zip(held.ids, held.payloads.dicts, strict=True))
    named = {
        one.item.number: {str(chunk.vector_id) for chunk in (one.row.chunks if one.row is not None else ())}
        for one in documents
    }
    there = {number: [point for point in some if point in payloads] for number, some in meant.items()}
    others = set[PointId]()
    if step.split is not None:
        others = _of_others(
            run, step, [p for number, some in there.items() for p in some if str(p) not in named[number]]
        )
    found = list[tuple[PointId, str]]()
    for one in documents:
        ours = named[one.item.number] & {str(point) for point in meant[one.item.number]}
        mine = [point for point in there[one.item.number] if str(point) in ours or point not in others]
        if lost := [point for point in made[one.item.number] if point not in payloads]:
            found.append((one.item.id, f"{len(lost):,} of its new points are not there"))
        if len(mine) != one.item.details.get("points", len(mine)):
            found.append(
                (one.item.id, f"{len(mine):,} points are there, {one.item.details['points']:,} chunks were made")
            )
        if step.fields.text is not None and any(
            not isinstance(look_up(payloads[point], step.fields.text), str) for point in mine
        ):
            found.append((one.item.id, f"a point has no text in {step.fields.text}"))
        chunks = step.rows.chunks if step.rows is not None and step.split is not None else None
        if chunks is not None and one.row is not None and ours != {str(point) for point in mine}:
            found.append((one.item.id, f"its {len(ours):,} rows and {len(mine):,} points are not of the same chunks"))
    return found


def _of_others(
    run: Run, step: DeleteDocuments | ReprocessDocuments, points: Sequence[PointId], but: Sequence[PointId] = ()
) -> set[PointId]:  # fmt: skip
    """Those of the points which stay because a row names them: that of a document other than `but`."""
    rows = step.rows
    if rows is None or rows.chunks is None or not points:
        return set()
    from runner.documents.files import still_named_points

    database = run.world.database(rows.connection)
    found = retried(lambda: still_named_points(database, rows, points, but), run.limits, run.stop)
    return {point for point in points if str(point) in found}
