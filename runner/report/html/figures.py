"""The numbers of a plan that a page draws, and what stands before and after a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runner.embedder import money
from runner.plan import (
    BackUpPoints,
    ClearCollection,
    CopyPoints,
    CreateCollection,
    DropCollection,
    OfDatabase,
    Plan,
    ReplaceVectors,
    SetServing,
    Step,
    SwitchAlias,
    TruncateTables,
)
from runner.report import phrases, relational

#: A chart shows the largest so many, and tells of the rest below.
SHOWN = 10


@dataclass(frozen=True)
class Bar:
    """One line of a chart; `start` and `width` in percent of the whole width."""

    name: str
    value: str
    start: float
    width: float


@dataclass(frozen=True)
class Chart:
    """Bars under a title; `names` and `values` are the headings of the columns."""

    title: str
    names: str
    values: str
    bars: tuple[Bar, ...]
    note: str = ""


def known(values: Sequence[float | None]) -> bool:
    """Whether anything was measured."""
    return any(value is not None for value in values)


def total(values: Sequence[float | None]) -> float:
    """What was measured, in all."""
    return sum(value or 0 for value in values)


def around(step: Step) -> tuple[str, str] | None:
    """(before, after) of a step that makes, removes or switches something; None for others."""
    match step:
        case OfDatabase():
            return relational.around(step)
        case CreateCollection():
            return "not there", f"empty, indexes: {phrases.index_text(step.schema_)}"
        case DropCollection() | ClearCollection():
            gone = "not there" if isinstance(step, DropCollection) else "no points"
            return (phrases.counted(step.points, "point") if step.points is not None else "there"), gone
        case TruncateTables():
            return phrases.counted(step.rows, "row"), "no rows"
        case SwitchAlias():
            return step.before or "no such alias", step.after or "no such alias"
        case SetServing():
            return _serving(step.before, step.model_before), _serving(step.after, step.model_after)
    return None


def _serving(place: object, model: str | None) -> str:
    return f"{place or 'not set'}, {model}" if model else str(place or "not set")


def charts(plan: Plan) -> list[Chart]:
    """Charts of whatever there is more than one of: points by collection, time and cost by step."""
    return [chart for chart in (_points(plan), _time(plan), _cost(plan)) if chart is not None]


def _points(plan: Plan) -> Chart | None:
    found: dict[str, tuple[int, int]] = {}
    for step in plan.steps:
        if isinstance(step, CopyPoints | BackUpPoints):
            name = str(step.source)
        elif isinstance(step, ReplaceVectors) and step.phase == "before":
            name = str(step.target)
        else:
            continue
        points, size = found.get(name, (0, 0))
        found[name] = points + step.points, size + (step.estimate.bytes or 0)
    if len(found) < 2 or not any(points for points, _size in found.values()):
        return None
    order = sorted(found.items(), key=lambda item: -item[1][0])
    most = order[0][1][0]
    bars = tuple(
        Bar(name, phrases.counted(points, "point") + (f", about {phrases.size(size)}" if size else ""), 0, _of(points, most))
        for name, (points, size) in order[:SHOWN]
    )  # fmt: skip
    rest = [points for _name, (points, _size) in order[SHOWN:]]
    note = f"{phrases.number(len(rest))} others: {phrases.counted(sum(rest), 'point')}" if rest else ""
    return Chart("Points by collection", "collection", "points", bars, note)


def _time(plan: Plan) -> Chart | None:
    """Bars one after the other, as the steps are."""
    steps = [
        (number, step, step.estimate.seconds) for number, step in enumerate(plan.steps, 1) if step.estimate.seconds
    ]
    whole = total([seconds for _number, _step, seconds in steps])
    if len(steps) < 2:
        return None
    largest = {number for number, _step, _seconds in sorted(steps, key=lambda item: -(item[2] or 0))[:SHOWN]}
    bars, at = [], 0.0
    for number, step, seconds in steps:
        if number in largest:
            name = f"{number}. {phrases.step_line(step)}"
            bars.append(Bar(name, phrases.about(seconds or 0), _of(at, whole), _of(seconds or 0, whole)))
        at += seconds or 0
    left = len(steps) - len(bars)
    note = f"The {len(bars)} longest of {phrases.counted(len(steps), 'step')} that were measured." if left else ""
    return Chart("Time by step", "step", "time", tuple(bars), note)


def _cost(plan: Plan) -> Chart | None:
    paid = [(number, step, step.estimate.usd) for number, step in enumerate(plan.steps, 1) if step.estimate.usd]
    if len(paid) < 2:
        return None
    shown = sorted(paid, key=lambda item: -(item[2] or 0))[:SHOWN]
    most = shown[0][2] or 1
    bars = tuple(
        Bar(f"{number}. {phrases.step_line(step)}", f"{money(usd or 0)} USD", 0, _of(usd or 0, most))
        for number, step, usd in shown
    )
    note = f"The {len(bars)} dearest of {phrases.counted(len(paid), 'step')}." if len(paid) > len(shown) else ""
    return Chart("Cost by step", "step", "cost", bars, note)


def _of(part: float, whole: float) -> float:
    """Percent with one decimal, so that the same plan draws the same page everywhere."""
    return round(100 * part / whole, 1) if whole else 0.0
