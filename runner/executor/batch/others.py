"""What is others' by now, when a run is undone: documents that were made again, or deleted, or whose rows do not fit any more;
payloads that were changed. It is left alone, counted, and told in the run's log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from runner.clauses.selection import select
from runner.conditions import MISSING, look_up
from runner.edit import Edit
from runner.executor.batch.documents import Change, Document, fetch, home_of
from runner.executor.flow import retried
from runner.plan import DeleteDocuments, EditDocuments, ReprocessDocuments, RestoreDocuments, Selection
from runner.points import Payload, Payloads, PointBatch, PointId, json_dumps
from runner.vectors import text_key

if TYPE_CHECKING:
    from runner.executor import Run

#: Documents that a line of the log names.
NAMED = 5


def left_alone(run: Run, change: Change, documents: Sequence[Document]) -> dict[str, str]:
    """str(id) -> why a document is left alone as a whole."""
    if isinstance(change, EditDocuments):
        return {}
    alone = _deleted_since(run, change, documents) if isinstance(change, ReprocessDocuments) else {}
    if change.rows is not None and change.undo is not None:
        from runner.documents import rows as tables

        database, rows, undo = run.world.database(change.rows.connection), change.rows, change.undo
        ids = [one.item.id for one in documents]
        found = retried(lambda: tables.restorable(database, rows, undo, ids), run.limits, run.stop)
        alone |= {name: why for name, why in found.items() if why}
    return alone


def _deleted_since(run: Run, change: ReprocessDocuments, documents: Sequence[Document]) -> dict[str, str]:
    """Where no row says it: documents of which no point is left, though the run has left some at every moment."""
    if change.split is not None and change.rows is not None and change.rows.chunks is not None:
        return {}
    of = {
        str(one.item.id): [*one.points, *one.item.details.get("made", ())]
        for one in documents
        if one.points and one.item.status == "done"
    }
    there = set(fetch(run, change.target, list(dict.fromkeys(point for points in of.values() for point in points))).ids)
    return {name: "it was deleted since" for name, points in of.items() if there.isdisjoint(points)}


def made_again(run: Run, change: DeleteDocuments) -> dict[str, str]:
    """Where there are no rows: deleted documents that points name now which the run has neither found nor saved."""
    if change.rows is not None or change.fields.document is None:
        return {}
    gone = {str(one.id): one for one in run.items.all(home_of(run)) if one.status == "done"}
    if not gone:
        return {}
    selection = Selection(ids=tuple(one.id for one in gone.values()), missing="skip")
    found = retried(lambda: select(run.world, change.target, change.fields, None, selection), run.limits, run.stop)
    return {
        name: "a document of this id was made again since"
        for name, points in ((str(one.id), one.points) for one in found.documents)
        if not {*points} <= {*gone[name].points, *gone[name].details.get("late", ())}
    }


def tell(run: Run, step: RestoreDocuments, why: Mapping[str, str]) -> None:
    """One line of the log."""
    if why:
        shown = "; ".join(f"{name!r}: {reason}" for name, reason in list(why.items())[:NAMED])
        more = f"; and {len(why) - NAMED:,} more" if len(why) > NAMED else ""
        run.ledger.write_log(
            run.run, "warning", f"{step.target}: changed by somebody else, and left alone: {shown}{more}"
        )


def kept_back(
    change: ReprocessDocuments, saved: PointBatch, now: PointBatch, texts: Mapping[str, str | None]
) -> tuple[list[PointId], PointBatch]:  # fmt: skip
    """(points whose text somebody changed since: their vector is of that text; the others as they are now, with what the
    run wrote of them as it was). `texts`: what the rows say, which the run may have written into the payload."""
    rows, left = {point: row for row, point in enumerate(now.ids)}, list[PointId]()
    old, new, payloads = list[int](), list[int](), list[Payload]()
    field = change.fields.text
    for number, (point, before) in enumerate(zip(saved.ids, saved.payloads.dicts, strict=True)):
        if point not in rows:
            continue
        present = now.payloads.dicts[rows[point]]
        if field is not None:
            said, was = look_up(present, field), look_up(before, field)
            if said is not MISSING and was is not MISSING and said not in (was, texts.get(str(point))):
                left.append(point)
                continue
        old.append(number)
        new.append(rows[point])
        payloads.append(_back(change, before, present))
    first, second = saved.take(old), now.take(new)
    name = change.embed.vector
    vectors, missing = dict(second.vectors), dict(second.missing)
    if change.embed_all and name in first.vectors:
        vectors[name] = first.vectors[name]
        missing.pop(name, None)
        if name in first.missing and first.missing[name].any():
            missing[name] = first.missing[name]
    return left, PointBatch(second.ids, vectors, Payloads(payloads), second.sparse, missing, second.partitions)


def _back(change: ReprocessDocuments, before: Payload, present: Payload) -> Payload:
    """The payload as it is now, with text and position as they were."""
    after = present
    for path in (change.fields.text, change.fields.position) if change.split is not None else ():
        if path is not None and (found := look_up(after, path)) is not MISSING:
            after = Edit(set={path: found}).metadata_back(before, after)[0]
    return after


def is_changed(change: ReprocessDocuments, payload: Payload, before: Sequence[Payload], text: str) -> bool:
    """Whether a chunk that the run made is not as it made it: like all chunks of its document were, with a text and a
    position of its own. `before`: what was saved of them; `text`: the key of its text, empty if it is not known."""
    field = change.fields.text
    said = look_up(payload, field) if field is not None else MISSING
    if text and said is not MISSING and (not isinstance(said, str) or text_key(said) != text):
        return True
    own = {path.split(".")[0] for path in (field, change.fields.position) if path is not None}
    for key in {*payload, *(key for one in before for key in one)} - own if before else ():
        values = {json_dumps(one[key]) if key in one else "" for one in before}
        if len(values) == 1 and values != {json_dumps(payload[key]) if key in payload else ""}:
            return True
    return False
