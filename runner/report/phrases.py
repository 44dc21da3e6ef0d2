"""The words for plans, used by the text and the Markdown form alike, so that both say the same."""

from __future__ import annotations

from runner.plan import (
    CatchUp,
    ClearCollection,
    CopyPoints,
    CreateCollection,
    DropCollection,
    Fact,
    FinishCollection,
    Hold,
    Notice,
    Plan,
    RestoreIds,
    RewriteIds,
    SetServing,
    Step,
    SwitchAlias,
    VerifyPoints,
    reversed_steps,
)
from runner.points import CollectionSchema


def number(value: int | float) -> str:
    """1,234,567"""
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes for people: 1.2 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds for people: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s" if seconds >= 1 else "under 1 s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def step_line(step: Step) -> str:
    """One step as a sentence without its symbol."""
    match step:
        case CreateCollection():
            vectors = ", ".join(f"{item.dimension} × {item.datatype}, {item.distance}" for item in step.schema_.vectors)
            return f"create collection {step.target} ({vectors or 'no dense vector'})"
        case CopyPoints():
            some = "up to " if step.transform.where else ""
            return f"copy {some}{number(step.points)} points from {step.source} to {step.target}"
        case FinishCollection():
            return f"build the indexes of {step.target} ({index_text(step.schema_)})"
        case VerifyPoints():
            what = {"full": "every point", "sample": f"{number(step.sample)} sampled points", "count": "the counts"}[
                step.mode
            ]
            if step.live is not None:
                return (
                    f"verify {what} of {step.target} against {step.source}; what moved meanwhile is copied and compared again, "
                    f"until a pass meets at most {number(step.live.bound)} such points; stop here if one still differs"
                )
            return f"verify {what} of {step.target} against {step.source}; stop here if anything differs"
        case CatchUp(phase="before"):
            until = f"at most {number(step.live.bound)} points" if step.live.bound else "nothing"
            return (
                f"bring over what was written to {step.source} since, {_by(step)}; until a pass repairs {until}, "
                f"in at most {step.live.passes} passes"
            )
        case CatchUp():
            what = "new points, newer contents and deletions" if step.live.field else "new points"
            rows = f", with their rows in {step.chunks.table}" if step.chunks else ""
            return (
                f"bring over what was written to {step.source} up to the switch, {_by(step)}: {what}{rows}; until a pass "
                f"finds nothing, in at most {step.live.passes} passes"
            )
        case Hold():
            sources = ", ".join(str(source) for source, _target in step.collections)
            return f"wait until the writers of {sources} are stopped and an operator says so: vecrun resume"
        case RewriteIds():
            where = f"{step.chunks.connection}: {step.chunks.table}.{step.chunks.vector_id_column}"
            return (
                f"rewrite point ids in {where} (up to {number(step.rows)} rows); old ids are kept in {step.undo_table}"
            )
        case RestoreIds():
            return f"restore the old point ids in {step.chunks.connection}: {step.chunks.table}.{step.chunks.vector_id_column}"
        case SwitchAlias():
            if step.after is None:
                return f"remove alias {step.alias} of {step.connection} (it points to {step.before})"
            return f"point alias {step.alias} of {step.connection} to {step.after} (before: {step.before or 'no such alias'})"
        case SetServing():
            if step.after is None:
                return f"clear serving pointer {step.name} (it is {step.before})"
            return f"set serving pointer {step.name} to {step.after} (before: {step.before or 'not set'})"
        case ClearCollection():
            held = f", {number(step.points)} points" if step.points is not None else ""
            return f"delete every point of {step.target}{held}; the collection stays"
        case DropCollection():
            held = f" with {number(step.points)} points" if step.points is not None else ""
            return f"drop collection {step.target}{held} ({step.why})"
    raise AssertionError(step)


def _by(step: CatchUp) -> str:
    return f"by {step.live.field}" if step.live.field else "by ids and content"


def index_text(schema: CollectionSchema) -> str:
    """Indexes of a collection in a few words."""
    parts = []
    for item in schema.vectors:
        if item.index is None:
            parts.append("none")
            continue
        shown = {"m": item.index.m, "ef_construction": item.index.ef_construction}
        parts.append(
            " ".join([item.index.type, *(f"{key}={value}" for key, value in shown.items() if value is not None)])
        )
    parts += [f"payload {item.name}" for item in schema.payload if item.indexed]
    return ", ".join(parts) or "none"


def estimate(step: Step) -> str:
    """What the probe says a step needs; empty where nothing was measured."""
    parts = []
    if step.estimate.seconds is not None:
        parts.append(f"reading alone {duration(step.estimate.seconds)}")
    if step.estimate.bytes is not None:
        parts.append(f"about {size(step.estimate.bytes)} of data")
    return ", ".join(parts)


def fact_text(fact: Fact) -> str:
    """before → after, or the one of them there is."""
    if fact.before and fact.after and fact.before != fact.after:
        return f"{fact.before} → {fact.after}"
    return fact.after or fact.before


def unchanged(fact: Fact) -> bool:
    """Whether a fact is the same before and after."""
    return bool(fact.before) and fact.before == fact.after


def notice_text(notice: Notice) -> str:
    """A finding in one line."""
    seen = f" ({notice.seen})" if notice.seen else ""
    return f"{notice.where}: {notice.message}{seen}" if notice.where else notice.message + seen


def notice_state(notice: Notice) -> str:
    """What became of a finding."""
    if notice.blocking:
        wanted = notice.code.startswith("VL") or notice.code == "VD101"
        way = f"; if it is wanted, in the spec: accept: [{{code: {notice.code}, reason: why}}]" if wanted else ""
        return f"not accepted: apply will refuse{way}"
    return f"accepted: {notice.accepted}" if notice.accepted else "for your information"


def summary(plan: Plan) -> str:
    """The last line of a plan."""
    if not plan.steps:
        return (
            "Nothing to do."
            if not plan.drift
            else "Nothing to do by this spec, but the world moved since it was applied."
        )
    count = {"create": 0, "change": 0, "switch": 0, "delete": 0}
    for step in plan.steps:
        match step:
            case CreateCollection():
                count["create"] += 1
            case RewriteIds() | RestoreIds() | CatchUp():
                count["change"] += 1
            case SwitchAlias() | SetServing():
                count["switch"] += 1
            case DropCollection() | ClearCollection():
                count["delete"] += 1
    seconds = sum(step.estimate.seconds or 0 for step in plan.steps)
    data = sum(step.estimate.bytes or 0 for step in plan.steps)
    text = f"Plan: {count['create']} to create, {number(plan.points)} points to copy, {count['change']} to change, "
    text += f"{count['switch']} to switch, {count['delete']} to delete."
    if data:
        text += f" Reading alone takes {duration(seconds)} as measured just now; about {size(data)} of data."
    return text


def way_back(plan: Plan) -> list[str]:
    """How it can be undone, in sentences."""
    if not plan.steps or plan.purpose == "rollback":
        return []
    undo, irreversible = reversed_steps(plan.steps)
    if irreversible:
        return ["There is no way back after: " + "; ".join(step_line(step) for step in irreversible)]
    lines = [f"For {plan.retention} after the run: vecrun rollback {plan.job}. It would, in this order:"]
    lines += [f"  {step.action} {step_line(step)}" for step in undo]
    sources = sorted({str(step.source) for step in plan.steps if isinstance(step, CopyPoints)})
    lines.append(f"The source is only read, never changed: {', '.join(sources)}")
    return lines


def destroyed(plan: Plan) -> list[str]:
    """What is gone for good after the plan."""
    return [step.destroys for step in plan.steps if step.destroys]
