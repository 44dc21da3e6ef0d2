"""The world as it is now against the world of a plan or a state: what moved, one sentence each."""

from __future__ import annotations

from typing import Literal

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
from runner.spec import digest
from runner.state import State
from runner.world import World


def look(world: World, place: Place, role: Literal["source", "target", "table"], live: bool = False) -> Observed:
    """A collection, or a relational table, as it is now."""
    if role == "table":
        table = world.postgres(place.connection).describe(place.collection)
        if table is not None and table.rows is None:
            hint = f"GRANT SELECT ON {table.shape.qualified}, then go on as before"
            raise Permanent("The rows of a table cannot be counted", f"{place}: the login may not read all of it", hint)
        count, shape = (None, None) if table is None else (table.rows, table.shape.fingerprint())
        return Observed(place=place, role=role, count=count, schema_digest=shape, live=live)
    store = world.store(place.connection)
    schema = store.inspect(place.collection)
    return Observed(
        place=place,
        role=role,
        count=store.count(place.collection) if schema is not None else None,
        schema_digest=digest(schema.model_dump(mode="json")) if schema is not None else None,
        live=live,
    )


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
    """What moved since a job was applied, one sentence each: collections, aliases, serving pointers.

    Of a run that this ledger does not know: collections and serving pointers.
    """
    plan = applied_plan(state, ledger)
    if plan is not None and (elsewhere := moved_connections(plan, world)):
        return elsewhere
    found = compare(state.world, observe(world, state.world))
    for step in plan.steps if plan is not None else ():
        if isinstance(step, SwitchAlias):
            at = world.store(step.connection).aliases().get(step.alias)
            if at != step.after:
                found.append(f"alias {step.alias} of {step.connection} points to {at or 'nothing'}, not {step.after}")
    serving = world.serving()
    found += [
        f"serving pointer {pointer} is {serving.get(pointer) or 'not set'}, not {place}"
        for pointer, place in state.live.items()
        if serving.get(pointer) != place
    ]
    return found


def observe(world: World, places: tuple[Observed, ...]) -> tuple[Observed, ...]:
    """How the same collections look now."""
    return tuple(look(world, item.place, item.role, item.live) for item in places)


def compare(before: tuple[Observed, ...], after: tuple[Observed, ...]) -> list[str]:
    """What moved between two observations, one sentence each. The count of a live source may."""
    found = []
    for old, new in zip(before, after, strict=True):
        if (old.count is None) != (new.count is None):
            found.append(f"{old.place} ({old.role}) {'appeared' if old.count is None else 'is gone'}")
        elif old.count is not None and new.count is not None:
            if old.count != new.count and not old.live:
                what = "rows" if old.role == "table" else "points"
                found.append(f"{old.place} ({old.role}) held {old.count:,} {what} and holds {new.count:,} now")
            if old.schema_digest != new.schema_digest:
                found.append(f"{old.place} ({old.role}) has another schema, index or setting now")
    return found
