"""Builds plans: from a job and the live world for `apply`, from a recorded run for `rollback`. Writes nothing.

A job that is applied and unchanged gets a plan without steps; what moved since is listed as drift.
"""

from __future__ import annotations

from typing import Any

from runner import __version__
from runner.errors import NotFound, PlanRefused, VecrunError
from runner.kinds import Draft, kind_module
from runner.ledger import Ledger
from runner.lock import now
from runner.plan import (
    CatchUp,
    ClearCollection,
    CopyPoints,
    CreateCollection,
    DropCollection,
    Notice,
    Observed,
    Place,
    Plan,
    ReplaceVectors,
    RestoreVectors,
    SetModel,
    SetServing,
    SettleFailures,
    Step,
    SwitchAlias,
    VerifyPoints,
    loads,
    reversed_steps,
)
from runner.settings import MODEL, Settings
from runner.spec import Job, digest
from runner.state import State, States
from runner.vectors import Vectors
from runner.world import World

PINNED = "VI201"
SOURCE_GONE = "VX301"
IRREVERSIBLE = "VX302"
EXPIRED = "VI202"
FOREIGN = "VI203"
NEW_POINTS = "VD102"
MOVED_POINTER = "VB102"
ALIAS_REMOVED = "VB103"
NEEDED_BY = "VD103"
NO_OLD_VECTOR = "VB105"
#: Points a target may have got from a catching-up that is not through: nobody else writes there before the cutover.
UNKNOWN = 2**63


def build(job: Job, settings: Settings, ledger: Ledger, states: States, *, unpin: bool = False) -> Plan:
    """The plan of a job. Raises when a run of it is unfinished: that has to be resumed or rolled back first."""
    refuse_unfinished(ledger, job.name)
    state = states.load(job.name)
    module = kind_module(job.kind)
    named, inline = module.connections(job.spec)
    with World(settings, "read", inline, ledger) as world:
        draft, moved, wanted = Draft(), tuple[str, ...](), spec_digest(job, world)
        if state.status == "applied" and state.spec_digest == wanted and module.recurring(job.spec):
            draft = module.plan_steps(job.name, job.spec, world, state)
        elif state.status == "applied" and state.spec_digest == wanted:
            moved = tuple(drift(state, ledger, world))
            if applied_plan(state, ledger) is None:
                draft.notices.append(Notice(code=FOREIGN, message=foreign(state)))
        elif state.pinned == wanted and not unpin:
            message = "this spec was rolled back and stays so; change the spec, or apply with --unpin"
            draft.notices.append(Notice(code=PINNED, message=message))
        else:
            draft = module.plan_steps(job.name, job.spec, world, state)
        return Plan(
            tool_version=__version__,
            created=now(),
            job=job.name,
            kind=job.kind,
            description=job.description,
            environment=settings.environment,
            lineage=state.lineage,
            serial=state.serial,
            spec_digest=wanted,
            connections={name: world.digest(name) for name in [*named, *inline]},
            inline=inline,
            world=tuple(draft.world),
            overview=tuple(draft.overview),
            steps=tuple(draft.steps),
            notices=tuple(draft.notices),
            drift=moved,
            retention=draft.retention or settings.workspace.state.retention,
        ).sealed()


def spec_digest(job: Job, world: World) -> str:
    """Names a spec together with the models it uses: the same spec with other weights is another spec."""
    named, _inline = kind_module(job.kind).connections(job.spec)
    models = [name.removeprefix(MODEL) for name in named if name.startswith(MODEL)]
    if not models:
        return job.digest
    return digest([job.digest, *(world.embedder(name).identity().model_dump(mode="json") for name in models)])


def refuse_unfinished(ledger: Ledger, job: str) -> None:
    """VecrunError when the newest run of a job has not come to its end."""
    if run := ledger.unfinished(job):
        if who := next((item for item in ledger.holders() if item["run"] == run["run"] and not item["expired"]), None):
            raise VecrunError(
                "A run of this job is at work",
                f"run {run['run']} ({run['purpose']}) is {run['status']}: {who['owner']} (pid {who['pid']} on "
                f"{who['host']}) has it since {who['since']}",
                f"Look at it: vecrun status {job} --watch\nStop it: vecrun pause {job}, or vecrun cancel {job}",
            )
        raise VecrunError(
            "A run of this job is not finished",
            f"run {run['run']} ({run['purpose']}) is {run['status']}" + (f": {run['error']}" if run["error"] else ""),
            f"Go on with: vecrun resume {job}\nOr undo it with: vecrun rollback {job}",
        )


def rollback(
    job: str, settings: Settings, ledger: Ledger, states: States, *, discard_new_points: bool = False, but: str = ""
) -> Plan:
    """The plan that undoes the newest run of a job, finished or not; `but` is a run that is only about to begin.
    NotFound when there is nothing to undo."""
    state, expired = states.load(job), list[Notice]()
    run = ledger.unfinished(job, but=but)
    if run and run["purpose"] == "rollback" and all(row["status"] == "pending" for row in ledger.steps_of(run["run"])):
        run = ledger.run(run["of_run"])  # it never began: it is planned anew
    if run and run["purpose"] == "rollback":
        raise VecrunError(
            "A rollback of this job is not finished", f"run {run['run']} is {run['status']}", f"vecrun resume {job}"
        )
    if run is None:
        if not state.applied:
            raise NotFound("Nothing to roll back", f"job {job} has no applied run", f"vecrun runs {job}")
        last = state.applied[-1]
        if last.run in state.forgotten:
            raise PlanRefused(
                "This run cannot be rolled back any more",
                f"run {last.run} expired on {last.expires[:10]}, and what its rollback needs was removed on "
                f"{state.forgotten[last.run][:10]} (vecrun gc)",
                "What it made stays. state.retention in vecrun.yaml, or retention in the job, says how long runs are kept",
            )
        if applied_plan(state, ledger) is None:
            raise NotFound(
                "The run cannot be rolled back from here",
                foreign(state),
                "Roll it back in the workspace that applied it, before its state is moved",
            )
        run = ledger.run(last.run)
        if last.expires <= now():
            message = (
                f"it expired on {last.expires[:10]}; what a rollback needs is still there, until the next vecrun gc"
            )
            expired = [Notice(code=EXPIRED, message=message, where=f"run {last.run}")]
    plan = loads(run["plan"], f"run {run['run']}")
    rows = ledger.steps_of(run["run"])
    begun = [step for step, row in zip(plan.steps, rows, strict=True) if row["status"] != "pending"]
    undo, irreversible = reversed_steps(tuple(begun))
    with World(settings, "read", plan.inline) as world:
        if elsewhere := moved_connections(plan, world):
            raise PlanRefused(
                "The run went somewhere else than the workspace points to now",
                "\n".join(elsewhere),
                "Put the connection back as it was, or choose the environment of the run with --env",
            )
        notices = expired + [_irreversible(step) for step in irreversible]
        copies = [step for step in begun if isinstance(step, CopyPoints)]
        for copy in copies:
            if world.store(copy.source.connection).inspect(copy.source.collection) is None:
                message = "the source is gone: after a rollback nothing would serve these points"
                notices.append(Notice(code=SOURCE_GONE, message=message, where=str(copy.source), blocking=True))
        kept, found = _still_ours(undo, world)
        steps = [_as_it_stands(step, world) for step in kept]
        written = _written(plan, rows)
        for place, count in _retried(job, run["run"], ledger).items():
            written[place] = written.get(place, 0) + count
        notices += found + _new_points(written, steps, discard=discard_new_points)
        notices += _needed_by(job, steps, states) + _never_saved(begun, world)
        places = _touched(begun)
        live = {item.place for item in plan.world if item.live}
        return Plan(
            tool_version=__version__,
            created=now(),
            job=job,
            kind=plan.kind,
            description=plan.description,
            purpose="rollback",
            of_run=run["run"],
            environment=plan.environment,
            lineage=state.lineage,
            serial=state.serial,
            spec_digest=plan.spec_digest,
            connections={name: world.digest(name) for name in plan.connections},
            inline=plan.inline,
            world=tuple(_observe(world, place, role, place in live) for place, role in places.items()),
            steps=tuple(steps),
            notices=tuple(notices),
            retention=plan.retention,
        ).sealed()


def retry(job: str, settings: Settings, ledger: Ledger, states: States) -> Plan:
    """The plan that tries the failed items of a job's applied run again. NotFound when nothing has failed."""
    state = states.load(job)
    plan = applied_plan(state, ledger) if state.applied else None
    run = state.applied[-1].run if state.applied else ""
    settle = next((step for step in plan.steps if isinstance(step, SettleFailures)), None) if plan is not None else None
    if plan is None or settle is None or not Vectors(ledger).count_failed(run):
        raise NotFound("Nothing to try again", f"no item of job {job} has failed", f"vecrun status {job}")
    marks = [
        step for step in plan.steps if isinstance(step, SetModel) and step.phase == "end" and step.rows is not None
    ]
    later = {"info": None, "before": None, "after": None}
    steps: list[Step] = [
        *(step.model_copy(update=later | {"phase": "open"}) for step in marks),
        settle.model_copy(update={"of_run": run}),
        *(step.model_copy(update=later | {"phase": "again"}) for step in marks),
    ]
    with World(settings, "read", plan.inline) as world:
        if elsewhere := moved_connections(plan, world):
            raise PlanRefused(
                "The run went somewhere else than the workspace points to now",
                "\n".join(elsewhere),
                "Put the connection back as it was, or choose the environment of the run with --env",
            )
        connections = {name: world.digest(name) for name in plan.connections}
    return Plan(
        tool_version=__version__, created=now(), job=job, kind=plan.kind, description=plan.description, purpose="retry",
        of_run=run, environment=plan.environment, lineage=state.lineage, serial=state.serial, spec_digest=plan.spec_digest,
        connections=connections, inline=plan.inline, steps=tuple(steps), retention=plan.retention,
    ).sealed()  # fmt: skip


def _retried(job: str, run: str, ledger: Ledger) -> dict[Place, int]:
    """Points that later runs have added for items that had failed in a run."""
    found: dict[Place, int] = {}
    for row in ledger.runs_of(job):
        if row["purpose"] == "retry" and row["of_run"] == run:
            plan = loads(ledger.run(row["run"])["plan"], f"run {row['run']}")
            for step, state in zip(plan.steps, ledger.steps_of(row["run"]), strict=True):
                if isinstance(step, SettleFailures):
                    more = (state["result"] or {}).get("written", 0)
                    if state["status"] not in ("pending", "done"):  # any of those still listed may be written already
                        more += Vectors(ledger).count_failed(run)
                    found[step.target] = found.get(step.target, 0) + more
    return found


def _irreversible(step: Step) -> Notice:
    return Notice(
        code=IRREVERSIBLE,
        message=f"{step.type} cannot be undone",
        where=str(getattr(step, "target", "")),
        blocking=True,
    )


def _as_it_stands(step: Step, world: World) -> Step:
    """A delete, or what is put back, with the number of points that are there now."""
    if isinstance(step, RestoreVectors):
        store = world.store(step.saved.connection)
        there = store.inspect(step.saved.collection) is not None
        return step.model_copy(update={"points": store.count(step.saved.collection) if there else 0})
    if not isinstance(step, DropCollection | ClearCollection):
        return step
    store = world.store(step.target.connection)
    held = store.count(step.target.collection) if store.inspect(step.target.collection) is not None else None
    return step.model_copy(update={"points": held})


def _still_ours(steps: list[Step], world: World) -> tuple[list[Step], list[Notice]]:
    """Pointers as they are now: those that were never switched need no way back; those that somebody else moved are
    not ours to move; an alias cannot go back to a collection that is gone."""
    kept: list[Step] = []
    found = []
    for step in steps:
        back = step
        if isinstance(step, SwitchAlias | SetServing):
            if isinstance(step, SwitchAlias):
                store = world.store(step.connection)
                at: object = store.aliases().get(step.alias)
                name = f"alias {step.alias} of {step.connection}"
            else:
                at, name = world.serving().get(step.name), f"serving pointer {step.name}"
            model = isinstance(step, SetServing) and step.model_before != step.model_after
            if at == step.after and not (model and step.before == step.after):
                continue
            if at != step.before:
                message = f"it points to {at or 'nothing'}, which this run did not set; it is left as it is"
                found.append(Notice(code=MOVED_POINTER, message=message, where=name))
                continue
            if isinstance(step, SwitchAlias) and step.after is not None and store.inspect(step.after) is None:
                message = f"it pointed to {step.after}, and {step.after} is gone: the alias is removed"
                found.append(Notice(code=ALIAS_REMOVED, message=message, where=name))
                back = step.model_copy(update={"after": None})
        kept.append(back)
    return kept, found


def _written(plan: Plan, rows: list[dict[str, Any]]) -> dict[Place, int]:
    """How many points each target can have got from a run: as its verification counted, else as many as it may have
    copied so far."""
    found: dict[Place, int] = {}
    for step, row in zip(plan.steps, rows, strict=True):
        if row["status"] == "pending" and not row["result"]:
            continue
        if isinstance(step, ReplaceVectors):  # only vecrun writes there
            found[step.saved] = UNKNOWN
        elif isinstance(step, CopyPoints):
            growing = any(item.live and item.place == step.source for item in plan.world)
            found[step.target] = row["result"]["done"] if row["result"] else UNKNOWN if growing else step.points
        elif isinstance(step, SettleFailures):
            more = row["result"].get("written", 0) if row["status"] == "done" else UNKNOWN
            found[step.target] = found.get(step.target, 0) + more
        elif isinstance(step, CatchUp) and step.phase == "after":  # by now others write there, too
            result = row["result"] or {}
            found[step.target] += result.get("added", 0) - result.get("deleted", 0)
        elif isinstance(step, VerifyPoints | CatchUp) and row["status"] == "done":
            found[step.target] = row["result"]["target"]
        elif isinstance(step, CatchUp) or (isinstance(step, VerifyPoints) and step.live):
            found[step.target] = UNKNOWN
    return found


def _new_points(written: dict[Place, int], steps: list[Step], *, discard: bool) -> list[Notice]:
    """Points in the target that did not come from the run: to delete them would destroy the only copy."""
    found = []
    for step in steps:
        if not isinstance(step, DropCollection | ClearCollection):
            continue
        more = (step.points or 0) - written.get(step.target, 0)
        if more > 0:
            message = f"{more:,} points of the target did not come from this run, and stand nowhere else"
            reason = "--discard-new-points" if discard else ""
            found.append(
                Notice(code=NEW_POINTS, message=message, where=str(step.target), accepted=reason, blocking=not discard)
            )
    return found


def _needed_by(job: str, steps: list[Step], states: States) -> list[Notice]:
    """Collections that another applied job came from: without them it could not be rolled back any more."""
    dropped = {step.target for step in steps if isinstance(step, DropCollection | ClearCollection)}
    found = []
    for name in states.jobs():
        other = states.load(name)
        if name == job or other.status != "applied":
            continue
        kept = bool(other.applied) and other.applied[-1].run not in other.forgotten
        for item in other.world:
            within = item.role == "target" and other.kind == "Reembedding" and kept
            if item.place in dropped and (item.role == "source" or within):
                what = "was applied from it" if item.role == "source" else "replaced vectors in it"
                message = f"job {name} {what}; undo that first: vecrun rollback {name}"
                found.append(Notice(code=NEEDED_BY, message=message, where=str(item.place), blocking=True))
    return found


def _never_saved(begun: list[Step], world: World) -> list[Notice]:
    """Points of a collection whose vectors were replaced that came there since: no old vector of theirs is known."""
    found = []
    for step in begun:
        if isinstance(step, ReplaceVectors) and step.phase == "before" and step.choose == "all":
            store, saved = world.store(step.target.connection), world.store(step.saved.connection)
            held = store.count(step.target.collection) if store.inspect(step.target.collection) is not None else 0
            kept = saved.count(step.saved.collection) if saved.inspect(step.saved.collection) is not None else 0
            if held > kept and kept >= step.points:
                message = f"{held - kept:,} points were written since, and keep the vectors they have"
                found.append(Notice(code=NO_OLD_VECTOR, message=message, where=str(step.target)))
    return found


def _touched(steps: list[Step]) -> dict[Place, str]:
    places: dict[Place, str] = {}
    for step in steps:
        if isinstance(step, CopyPoints):
            places[step.source], places[step.target] = "source", "target"
        elif isinstance(step, CreateCollection | ReplaceVectors):
            places.setdefault(step.target, "target")
    return places


def _observe(world: World, place: Place, role: str, live: bool = False) -> Observed:
    store = world.store(place.connection)
    schema = store.inspect(place.collection)
    return Observed(
        place=place,
        role="source" if role == "source" else "target",
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
    return tuple(_observe(world, item.place, item.role, item.live) for item in places)


def compare(before: tuple[Observed, ...], after: tuple[Observed, ...]) -> list[str]:
    """What moved between two observations, one sentence each. The count of a live source may."""
    found = []
    for old, new in zip(before, after, strict=True):
        if (old.count is None) != (new.count is None):
            found.append(f"{old.place} ({old.role}) {'appeared' if old.count is None else 'is gone'}")
        elif old.count is not None and new.count is not None:
            if old.count != new.count and not old.live:
                found.append(f"{old.place} ({old.role}) held {old.count:,} points and holds {new.count:,} now")
            if old.schema_digest != new.schema_digest:
                found.append(f"{old.place} ({old.role}) has another schema, index or setting now")
    return found
