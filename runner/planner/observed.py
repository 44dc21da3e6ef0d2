"""The world as it is now against the world of a plan or a state: what moved, one sentence each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from runner.clauses.selection import select
from runner.errors import NotFound, Permanent
from runner.ledger import Ledger
from runner.plan import (
    Observed,
    Place,
    Plan,
    SelectDocuments,
    SwitchAlias,
    loads,
)
from runner.planner import relational
from runner.policies import segment
from runner.spec import digest
from runner.state import State
from runner.world import World


@dataclass(frozen=True)
class Moved:
    """One thing that is not as it was. `field`: what of it (see `drift.ignore`); `expected`: vecrun.yaml leaves it out."""

    place: str
    field: str
    text: str
    expected: bool = False


def look(
    world: World,
    place: Place,
    role: Literal["source", "target", "table", "relation"],
    live: bool = False,
    *,
    whole: bool = False,
) -> Observed:
    """A collection, or a relational table, as it is now; `whole`: with all of its schema."""
    shape: dict[str, Any] | None = None
    if role == "table":
        table = world.postgres(place.connection).describe(place.collection)
        if table is not None and table.rows is None:
            hint = f"GRANT SELECT ON {table.shape.qualified}, then go on as before"
            raise Permanent("The rows of a table cannot be counted", f"{place}: the login may not read all of it", hint)
        count = table.rows if table is not None else None
        shape = table.shape.looks if table is not None else None
    elif role == "relation" and (relation := relational.described(world, place)) is not None:
        return Observed(
            place=place, role=role, count=relation.rows, schema_digest=digest(relation.looks), live=live,
            shape=relational.shape(relation) if whole else None,
        )  # fmt: skip
    elif role == "relation":
        count = None
    else:
        store = world.store(place.connection)
        schema = store.inspect(place.collection)
        count = store.count(place.collection) if schema is not None else None
        shape = schema.model_dump(mode="json") if schema is not None else None
    return Observed(
        place=place, role=role, count=count, schema_digest=digest(shape) if shape is not None else None, live=live,
        shape=shape if whole else None,
    )  # fmt: skip


def moved_connections(plan: Plan, world: World) -> list[str]:
    """Connections that point somewhere else than when a plan was made, one sentence each."""
    return [
        f"connection {name} points somewhere else than when the plan was made"
        for name, wanted in plan.connections.items()
        if world.digest(name) != wanted
    ]


def moved_selection(plan: Plan, world: World) -> list[str]:
    """How the documents that a plan selects differ from those that are selected now."""
    found = []
    for step in plan.steps:
        if isinstance(step, SelectDocuments) and step.of_run is None:
            now = select(world, step.target, step.fields, step.rows, step.selection)
            if now.digest != step.selected:
                there = len(now.documents) - len(now.missing)
                found.append(
                    f"the selection: {there:,} documents with {now.points:,} points now, {step.documents:,} with "
                    f"{step.points:,} when the plan was made" if (there, now.points) != (step.documents, step.points)
                    else "the selection: other documents, or other points of them, than when the plan was made"
                )  # fmt: skip
    return found


def applied_plan(state: State, ledger: Ledger) -> Plan | None:
    """The plan of the run that is applied; None when this ledger does not know it: the state came from elsewhere."""
    try:
        return loads(ledger.run(state.applied[-1].run)["plan"], "the applied plan")
    except NotFound:
        return None


def foreign(state: State) -> str:
    """Why less can be said about a job whose state came from elsewhere."""
    return (
        f"run {state.applied[-1].run} of job {state.job} is not in this ledger: the state was pushed from elsewhere, "
        "so only its collections and serving pointers are compared"
    )


def drift(state: State, ledger: Ledger, world: World) -> list[str]:
    """What moved since a job was applied and is not expected, one sentence each."""
    return [item.text for item in movements(state, ledger, world) if not item.expected]


def movements(state: State, ledger: Ledger, world: World) -> list[Moved]:
    """What moved since a job was applied: collections, aliases, serving pointers. What `drift` in vecrun.yaml leaves out is
    marked.

    Of a run that this ledger does not know: collections and serving pointers.
    """
    plan = applied_plan(state, ledger)
    if plan is not None and (elsewhere := moved_connections(plan, world)):
        return [Moved("", "connection", text) for text in elsewhere]
    # rows of a relational table come and go: how many there are is compared between a plan and its apply only
    was = tuple(item.model_copy(update={"live": True}) if item.role == "relation" else item for item in state.world)
    found = differences(was, observe(world, was, whole=True))
    found += [Moved(place, "record", text) for place, text in relational.unrecorded(state, ledger, world)]
    for step in plan.steps if plan is not None else ():
        if isinstance(step, SwitchAlias):
            at = world.store(step.connection).aliases().get(step.alias)
            if at != step.after:
                text = f"alias {step.alias} of {step.connection} points to {at or 'nothing'}, not {step.after}"
                found.append(Moved(step.alias, "aliases", text))
    serving = world.serving()
    found += [
        Moved(pointer, "pointers", f"serving pointer {pointer} is {serving.get(pointer) or 'not set'}, not {place}")
        for pointer, place in state.live.items()
        if serving.get(pointer) != place
    ]
    rules = world.settings.workspace.drift
    return [
        Moved(item.place, item.field, item.text, rules.leaves_out(state.job, item.place, item.field)) for item in found
    ]


def observe(world: World, places: tuple[Observed, ...], *, whole: bool = False) -> tuple[Observed, ...]:
    """How the same collections look now."""
    return tuple(look(world, item.place, item.role, item.live, whole=whole) for item in places)


def compare(before: tuple[Observed, ...], after: tuple[Observed, ...]) -> list[str]:
    """What moved between two observations, one sentence each. The count of a live source may."""
    return [item.text for item in differences(before, after)]


def differences(before: tuple[Observed, ...], after: tuple[Observed, ...]) -> list[Moved]:
    """What moved between two observations: schemas part by part, where both are known in full."""
    found = list[Moved]()
    for old, new in zip(before, after, strict=True):
        place = str(old.place)
        name = f"{place} ({'table' if old.role == 'relation' else old.role})"
        if (old.count is None) != (new.count is None):
            found.append(Moved(place, "presence", f"{name} {'appeared' if old.count is None else 'is gone'}"))
        elif old.count is not None and new.count is not None:
            if old.count != new.count and not old.live:
                what = "points" if old.role in ("source", "target") else "rows"
                found.append(Moved(place, "count", f"{name} held {old.count:,} {what} and holds {new.count:,} now"))
            if old.schema_digest != new.schema_digest:
                parts = _parts(old.shape, new.shape) if old.shape is not None and new.shape is not None else {}
                found += [
                    Moved(place, field, f"{name}: {field} was {was} and is {now}")
                    for field, (was, now) in parts.items()
                ] or [Moved(place, "schema", f"{name} has another schema, index or setting now")]
    return found


def _parts(old: Any, new: Any, at: str = "") -> dict[str, tuple[str, str]]:
    """Dotted path -> (what was there, what is there now); parts of a list that have names go by these."""
    if old == new:
        return {}
    old, new = _named(old), _named(new)
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[str, str]] = {}
        for key in [*old, *(key for key in new if key not in old)]:
            part = segment(str(key))
            found |= _parts(old.get(key), new.get(key), f"{at}.{part}" if at else part)
        return found
    return {at: (_value(old), _value(new))}


def _named(value: Any) -> Any:
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        return {item["name"] or "(unnamed)": item for item in value}
    return {} if value == [] else value


def _value(value: Any) -> str:
    """A part of a schema in a sentence."""
    if value is None or value == {}:
        return "not there"
    if isinstance(value, dict):
        return (
            ", ".join(f"{key} {item}" for key, item in value.items() if item is not None and key != "name") or "there"
        )
    return str(value)
