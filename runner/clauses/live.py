"""A source that is written to: the passes before and after the cutover, the hold, and what a reviewer must know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from runner.clauses.spec import LiveSource
from runner.plan import CatchUp, Hold, Live, Place, RewriteIds, Step
from runner.points import CollectionSchema
from runner.store import Problem
from runner.transform import Transform

#: Codes of live sources.
LATE_CHANGES = "VL201"
BY_FIELD = "VI107"
IN_FLIGHT = "VI108"
HELD = "VI109"


class Moving(Protocol):
    """A collection on its way. `switches`: readers are switched to its target."""

    @property
    def source(self) -> Place: ...
    @property
    def target(self) -> Place: ...
    @property
    def schema(self) -> CollectionSchema: ...
    @property
    def transform(self) -> Transform: ...
    @property
    def points(self) -> int: ...
    @property
    def switches(self) -> bool: ...


class LivePlan:
    """The steps that a live source needs; none without one. `accept`: codes of findings the spec accepts."""

    def __init__(self, live: LiveSource | None, accept: tuple[str, ...], moves: Sequence[Moving]) -> None:
        self.live, self.accept, self.moves = live, accept, moves

    def before(self) -> list[Step]:
        """Catch up with every source; with a hold, once more behind it, to the last point."""
        if self.live is None:
            return []
        steps: list[Step] = [self._step(move, self.live.bound) for move in self.moves]
        if self.live.hold:
            steps.append(Hold(collections=tuple((move.source, move.target) for move in self.moves)))
            steps += [self._step(move, 0) for move in self.moves]
        return steps

    def of_verification(self, move: Moving) -> Live | None:
        """What a verification must know of its source; None when it stands still by then."""
        return None if self.live is None or self.live.hold else self._live(move, self.live.bound)

    def after(self, steps: Sequence[Step]) -> list[Step]:
        """What was written between the last look and the switch of readers and writers, which `steps` make."""
        if self.live is None or self.live.hold:
            return []
        late_steps: list[Step] = []
        rows = next((step for step in steps if isinstance(step, RewriteIds)), None)
        for move in self.moves:
            if move.switches:
                late = rows is not None and (move.source.collection, move.target.collection) in rows.collections
                # an id taken from a field may be another point's old id: a second rewrite would take one for the other
                if rows is None or not late or move.transform.id_from:
                    rows_of = {}
                else:
                    rows_of = {"chunks": rows.chunks, "undo_table": rows.undo_table}
                late_steps.append(self._step(move, 0, after=True).model_copy(update=rows_of))
        return late_steps

    def problems(self) -> list[tuple[Problem, str]]:
        """What the run relies on and what it cannot see: (finding, where)."""
        if self.live is None:
            return []
        where = ", ".join(str(move.source) for move in self.moves)
        if self.live.hold:
            message = (
                "the run waits before the cutover until vecrun resume: stop the writers of the source first, and start them "
                "on the target afterwards. Both are proven equal in between; what is still written to the source is not seen"
            )
            return [(Problem(HELD, message), where)]
        if not any(move.switches for move in self.moves):
            message = "the target holds the source as the verification met it; what is written later is not seen"
            return [(Problem(IN_FLIGHT, message), where)]
        found = []
        if self.live.field is None:
            message = (
                "what is changed or deleted in the source in the last moments before the switch is lost: without a live.field "
                "nothing tells which side is newer afterwards. New points are brought over. live.hold loses nothing"
            )
            found.append((Problem(LATE_CHANGES, message), where))
        else:
            message = (
                f"relies on {self.live.field}: every write, of any point, raises it above all earlier ones (numbers may be out "
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

    def _step(self, move: Moving, bound: int, *, after: bool = False) -> CatchUp:
        return CatchUp(
            phase="after" if after else "before", source=move.source, target=move.target, target_schema=move.schema,
            transform=move.transform, points=move.points, live=self._live(move, bound),
        )  # fmt: skip

    def _live(self, move: Moving, bound: int) -> Live:
        assert self.live is not None
        field = self.live.field
        if field is not None:  # its name in the target
            renamed = move.transform.rename
            first, dot, rest = field.partition(".")
            field = renamed[field] if field in renamed else renamed.get(first, first) + dot + rest
        return Live(field=field, bound=bound, passes=self.live.passes, accept=self.accept)
