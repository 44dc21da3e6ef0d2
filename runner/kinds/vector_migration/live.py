"""A source that is written to: the passes before and after the cutover, the hold, and what a reviewer must know."""

from __future__ import annotations

from runner.kinds import Draft
from runner.kinds.vector_migration.move import Move
from runner.kinds.vector_migration.spec import VectorMigrationSpec
from runner.plan import CatchUp, Hold, Live, RewriteIds
from runner.store import Problem

#: Codes of live sources.
LATE_CHANGES = "VL201"
BY_FIELD = "VI107"
IN_FLIGHT = "VI108"
HELD = "VI109"


def plan_before(spec: VectorMigrationSpec, moves: list[Move], draft: Draft) -> None:
    """Catch up with every source; with a hold, once more behind it, to the last point."""
    if spec.live is None:
        return
    draft.steps += [_step(spec, move, spec.live.bound) for move in moves]
    if spec.live.hold:
        draft.steps.append(Hold(collections=tuple((move.source, move.target) for move in moves)))
        draft.steps += [_step(spec, move, 0) for move in moves]


def of_verification(spec: VectorMigrationSpec, move: Move) -> Live | None:
    """What a verification must know of its source; None when it stands still by then."""
    return None if spec.live is None or spec.live.hold else _live(spec, move, spec.live.bound)


def plan_after(spec: VectorMigrationSpec, moves: list[Move], draft: Draft) -> None:
    """What was written between the last look and the switch of readers and writers."""
    if spec.live is None or spec.live.hold:
        return
    rows = next((step for step in draft.steps if isinstance(step, RewriteIds)), None)
    for move in moves:
        if move.rule.cutover or spec.cutover:
            late = rows is not None and (move.source.collection, move.target.collection) in rows.collections
            # an id taken from a field may be another point's old id: a second rewrite would take one for the other
            if rows is None or not late or move.transform.id_from:
                rows_of = {}
            else:
                rows_of = {"chunks": rows.chunks, "undo_table": rows.undo_table}
            draft.steps.append(_step(spec, move, 0, after=True).model_copy(update=rows_of))


def problems(spec: VectorMigrationSpec, moves: list[Move]) -> list[tuple[Problem, str]]:
    """What the run relies on and what it cannot see: (finding, where)."""
    if spec.live is None:
        return []
    where = ", ".join(str(move.source) for move in moves)
    if spec.live.hold:
        message = (
            "the run waits before the cutover until vecrun resume: stop the writers of the source first, and start them "
            "on the target afterwards. Both are proven equal in between; what is still written to the source is not seen"
        )
        return [(Problem(HELD, message), where)]
    if not any(move.rule.cutover or spec.cutover for move in moves):
        message = "the target holds the source as the verification met it; what is written later is not seen"
        return [(Problem(IN_FLIGHT, message), where)]
    found = []
    if spec.live.field is None:
        message = (
            "what is changed or deleted in the source in the last moments before the switch is lost: without a live.field "
            "nothing tells which side is newer afterwards. New points are brought over. live.hold loses nothing"
        )
        found.append((Problem(LATE_CHANGES, message), where))
    else:
        message = (
            f"relies on {spec.live.field}: every write, of any point, raises it above all earlier ones (numbers may be out "
            "of order by 10,000, clocks of writers by 60 s). After the switch the higher value wins; late changes to "
            "points without it are lost"
        )
        found.append((Problem(BY_FIELD, message), where))
    message = (
        "writers must follow the switch: what they write to the source after the last pass is not seen. Until then, a "
        "point written on both sides at the same moment can keep the source's content, and one that was new in the "
        "source and is deleted in the target before it came there comes back. live.hold avoids this"
    )
    return [*found, (Problem(IN_FLIGHT, message), where)]


def _step(spec: VectorMigrationSpec, move: Move, bound: int, *, after: bool = False) -> CatchUp:
    return CatchUp(
        phase="after" if after else "before", source=move.source, target=move.target, target_schema=move.schema,
        transform=move.transform, points=move.points, live=_live(spec, move, bound),
    )  # fmt: skip


def _live(spec: VectorMigrationSpec, move: Move, bound: int) -> Live:
    assert spec.live is not None
    field = spec.live.field
    if field is not None:  # its name in the target
        renamed = move.transform.rename
        first, dot, rest = field.partition(".")
        field = renamed[field] if field in renamed else renamed.get(first, first) + dot + rest
    accept = tuple(item.code for item in spec.accept)
    return Live(field=field, bound=bound, passes=spec.live.passes, accept=accept)
