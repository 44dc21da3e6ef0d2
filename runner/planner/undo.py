"""Plans from recorded runs: the way back, and another try for what failed; and what stands in their way."""

from __future__ import annotations

from typing import Any, Literal

from runner import __version__
from runner.errors import NotFound, PlanRefused, VecrunError
from runner.items import Items
from runner.ledger import Ledger
from runner.lock import now
from runner.plan import (
    CatchUp,
    CheckDocuments,
    ClearCollection,
    CopyPoints,
    CreateCollection,
    DeleteDocuments,
    DropCollection,
    EditDocuments,
    Estimate,
    LoadTables,
    Notice,
    Observed,
    Place,
    Plan,
    ReplaceVectors,
    ReprocessDocuments,
    RestoreDocuments,
    RestoreVectors,
    RunStatements,
    SelectDocuments,
    SetModel,
    SetServing,
    SettleFailures,
    Step,
    SwitchAlias,
    TruncateTables,
    VerifyPoints,
    loads,
    reversed_steps,
)
from runner.planner import relational
from runner.planner.observed import applied_plan, foreign, look, moved_connections
from runner.planner.policies import judged
from runner.settings import Settings
from runner.state import State, States
from runner.vectors import Vectors
from runner.world import World

SOURCE_GONE = "VX301"
IRREVERSIBLE = "VX302"
EXPIRED = "VI202"
NEW_POINTS = "VD102"
MOVED_POINTER = "VB102"
ALIAS_REMOVED = "VB103"
NEEDED_BY = "VD103"
NO_OLD_VECTOR = "VB105"
SAVED_GONE = "VX303"
ROWS_SINCE = "VX305"
#: Points a target may have got from a catching-up that is not through: nobody else writes there before the cutover.
UNKNOWN = 2**63
#: What a job did that has changed documents.
CHANGED = "changed documents in it since"
#: Steps that change documents.
Changing = DeleteDocuments | EditDocuments | ReprocessDocuments


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
            raise NotFound(
                "Nothing to roll back", f"job {job} has no applied run in this workspace",
                f"vecrun runs {job}. What another workspace has applied, or one whose state was lost, is rolled back there only",
            )  # fmt: skip
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
        notices = expired + [
            _irreversible(step) for step in relational.really_done(irreversible, job, run["run"], world)
        ]
        copies = [step for step in begun if isinstance(step, CopyPoints)]
        for copy in copies:
            if world.store(copy.source.connection).inspect(copy.source.collection) is None:
                message = "the source is gone: after a rollback nothing would serve these points"
                notices.append(Notice(code=SOURCE_GONE, message=message, where=str(copy.source), blocking=True))
        kept, found = _still_ours(undo, world)
        steps = [_as_it_stands(step, world, run["run"]) for step in kept]
        written = _written(plan, rows)
        for place, count in _retried(job, run["run"], ledger).items():
            written[place] = written.get(place, 0) + count
        notices += found + _new_points(written, steps, discard=discard_new_points)
        notices += _needed_by(job, run["run"], steps, ledger, states) + _never_saved(begun, world)
        of_begun = [row for row in rows if row["status"] != "pending"]
        notices += _rows_since(begun, of_begun, world) + _saved_gone(begun, of_begun, world)
        notices += relational.hindrances(
            plan, begun, of_begun, steps, state, run["run"], world, ledger, states, discard=discard_new_points
        )
        places = _touched(begun)
        # what came into a table is looked at by itself
        live = {item.place for item in plan.world if item.live} | {*relational.touched(begun)}
        idle = relational.keys_of(plan, steps)
        made = Plan(
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
            # of the record, not of its plan: a job that got another name has another digest
            spec_digest=next((item.spec_digest for item in state.applied if item.run == run["run"]), plan.spec_digest),
            connections={name: world.digest(name) for name in plan.connections if name not in idle},
            inline={name: given for name, given in plan.inline.items() if name not in idle},
            world=tuple(look(world, place, role, place in live) for place, role in places.items()),
            steps=tuple(steps),
            notices=tuple(notices),
            retention=plan.retention,
        )
        return judged(made, settings)


def retry(job: str, settings: Settings, ledger: Ledger, states: States) -> Plan:
    """The plan that tries the failed items of a job's applied run again. NotFound when nothing has failed."""
    state = states.load(job)
    plan = applied_plan(state, ledger) if state.applied else None
    run = state.applied[-1].run if state.applied else ""
    of_documents = plan is not None and any(isinstance(step, Changing) for step in plan.steps)
    settle = next((step for step in plan.steps if isinstance(step, SettleFailures)), None) if plan is not None else None
    if plan is None or (settle is None and not of_documents) or not Vectors(ledger).count_failed(run):
        raise NotFound("Nothing to try again", f"no item of job {job} has failed", f"vecrun status {job}")
    if of_documents and run in state.forgotten:  # gc is not through yet, or could not remove everything
        raise PlanRefused(
            "This run cannot be mended any more", f"run {run} expired, and what it saved was removed (vecrun gc)",
            "Plan the job anew for what is left",
        )  # fmt: skip
    steps = _documents_again(plan, run, Items(ledger)) if settle is None else _texts_again(plan, run, settle)
    targets = {step.target for step in steps if isinstance(step, SettleFailures | ReprocessDocuments)}
    for name in states.jobs():
        other = states.load(name)
        used = _uses(other, run, ledger) if name != job and other.status == "applied" else {}
        if at := next((place for place in targets if "replaced" in used.get(place, "")), None):
            raise PlanRefused(
                "Another job has changed the model since", f"{at}: job {name} replaced its vectors",
                f"Embed what is missing with its model (strategy: incremental). Or undo it first: vecrun rollback {name}",
            )  # fmt: skip
    with World(settings, "read", plan.inline) as world:
        if elsewhere := moved_connections(plan, world):
            raise PlanRefused(
                "The run went somewhere else than the workspace points to now",
                "\n".join(elsewhere),
                "Put the connection back as it was, or choose the environment of the run with --env",
            )
        connections = {name: world.digest(name) for name in plan.connections}
    made = Plan(
        tool_version=__version__, created=now(), job=job, kind=plan.kind, description=plan.description, purpose="retry",
        of_run=run, environment=plan.environment, lineage=state.lineage, serial=state.serial, spec_digest=plan.spec_digest,
        connections=connections, inline=plan.inline, steps=tuple(steps), retention=plan.retention,
    )  # fmt: skip
    return judged(made, settings)


def _texts_again(plan: Plan, run: str, settle: SettleFailures) -> list[Step]:
    """Texts that could not be embedded."""
    marks = [
        step for step in plan.steps if isinstance(step, SetModel) and step.phase == "end" and step.rows is not None
    ]
    later = {"info": None, "before": None, "after": None, "before_text": None}
    return [
        *(step.model_copy(update=later | {"phase": "open"}) for step in marks),
        settle.model_copy(update={"of_run": run}),
        *(step.model_copy(update=later | {"phase": "again"}) for step in marks),
    ]


def _documents_again(plan: Plan, run: str, items: Items) -> list[Step]:
    """Documents that failed: what their run saved is there already, and the first copy counts."""
    failed = [one for one in items.all(run) if one.status == "failed"]
    counts = {"documents": len(failed), "points": sum(len(one.points) for one in failed)}
    steps = list[Step]()
    for step in plan.steps:
        if isinstance(step, SelectDocuments):
            steps.append(step.model_copy(update=counts | {"of_run": run}))
        elif isinstance(step, Changing):
            steps.append(step.model_copy(update=counts | {"estimate": Estimate()}))
        elif isinstance(step, CheckDocuments):
            steps.append(step.model_copy(update={"of": step.of.model_copy(update=counts)}))
    return steps


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
    what = "its SQL is given no rollback, so it" if isinstance(step, RunStatements) else step.type
    return Notice(
        code=IRREVERSIBLE,
        message=f"{what} cannot be undone",
        where=str(getattr(step, "target", "") or getattr(step, "name", "")),
        blocking=True,
    )


def _as_it_stands(step: Step, world: World, run: str) -> Step:
    """A delete, or what is put back, with the number of points that are there now; a backup is that of the run."""
    if isinstance(step, LoadTables):
        return step.model_copy(update={"of_run": run})
    if isinstance(step, RestoreVectors | RestoreDocuments):
        store = world.store(step.saved.connection)
        there = store.inspect(step.saved.collection) is not None
        return step.model_copy(update={"points": store.count(step.saved.collection) if there else 0})
    if not isinstance(step, DropCollection | ClearCollection):
        return relational.as_it_stands(step, world)
    store = world.store(step.target.connection)
    held = store.count(step.target.collection) if store.inspect(step.target.collection) is not None else None
    return step.model_copy(update={"points": held})


def _rows_since(begun: list[Step], rows: list[dict[str, Any]], world: World) -> list[Notice]:
    """Tables that were emptied and hold rows again: they are not filled, and no run is recorded that could never end."""
    found = list[Notice]()
    for step, row in zip(begun, rows, strict=True):
        if not isinstance(step, TruncateTables) or row["status"] != "done":
            continue
        for place in step.written_places:
            there = world.postgres(place.connection).describe(place.collection)
            if there is not None and there.rows:
                message = (
                    f"Rows came since the tables were emptied: {there.rows:,}. They are kept. To have both, restore with a job "
                    "of kind VectorRestore that says if_not_empty: merge (the backup's rows win), or replace (only the "
                    "backup's rows stay)"
                )
                found.append(Notice(code=ROWS_SINCE, message=message, where=str(place), blocking=True))
    return found


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
            if isinstance(step, SetServing) and step.after is not None and step.after != step.before:
                place = step.after
                if world.store(place.connection).inspect(place.collection) is None:
                    message = f"it pointed to {place}, and that is gone: the pointer is cleared"
                    found.append(Notice(code=ALIAS_REMOVED, message=message, where=name))
                    back = step.model_copy(update={"after": None, "model_after": ""})
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
        if isinstance(step, ReplaceVectors | Changing):  # only vecrun writes there
            found[step.saved] = UNKNOWN
        elif isinstance(step, CopyPoints):
            growing = any(item.live and item.place == step.source for item in plan.world)
            found[step.target] = row["result"]["done"] if row["result"] else UNKNOWN if growing else step.points
        elif isinstance(step, SettleFailures):
            begun = row["status"] not in ("pending", "done")  # pending with a result: another try was asked for
            more = UNKNOWN if begun else row["result"].get("written", 0)
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


def _needed_by(job: str, run: str, steps: list[Step], ledger: Ledger, states: States) -> list[Notice]:
    """Collections that another applied job came from, worked in, or would go back to: that job is undone first."""
    dropped = {step.target for step in steps if isinstance(step, DropCollection | ClearCollection)}
    restored = {step.target for step in steps if isinstance(step, RestoreVectors | RestoreDocuments)}
    brought = {step.target for step in steps if isinstance(step, RestoreDocuments)}
    found = []
    for name in states.jobs():
        other = states.load(name)
        if name == job or other.status != "applied":
            continue
        found += [_needed(name, item.place, "was applied from it") for item in other.world if _from(item, dropped)]
        kept = other.applied and other.applied[-1].run not in other.forgotten
        for place, what in _uses(other, run, ledger).items() if kept else ():
            if what == CHANGED and place in brought:
                continue
            if place in (dropped | restored) and not any(item.where == str(place) for item in found):
                found.append(_needed(name, place, what))
        later = [place for place in brought if kept and _changed_later(run, other, place, ledger)]
        found += [_needed(name, place, "changed some of the same documents since") for place in later]
    return found


def _from(item: Observed, dropped: set[Place]) -> bool:
    return item.role == "source" and item.place in dropped


def _needed(job: str, place: Place, what: str) -> Notice:
    message = f"job {job} {what}; undo that first: vecrun rollback {job}"
    return Notice(code=NEEDED_BY, message=message, where=str(place), blocking=True)


def _uses(state: State, after: str, ledger: Ledger) -> dict[Place, str]:
    """Collections that the runs of a job have read, changed or left since the run `after`, and what they did."""
    found: dict[Place, str] = {}
    began = ledger.run(after)["created"]
    for record in state.applied:
        try:
            row = ledger.run(record.run)
        except NotFound:
            continue
        plan = loads(row["plan"], f"run {record.run}")
        for step in plan.steps:
            if isinstance(step, SwitchAlias) and step.before is not None:
                found.setdefault(Place(connection=step.connection, collection=step.before), "would go back to it")
            elif isinstance(step, SetServing) and step.before is not None and step.before != step.after:
                found.setdefault(step.before, "would go back to it")
            elif row["created"] > began and isinstance(step, ReplaceVectors):
                found[step.target] = "replaced vectors in it since"
            elif row["created"] > began and isinstance(step, Changing):
                found[step.target] = CHANGED
            elif row["created"] > began and isinstance(step, CopyPoints):
                found[step.source] = "was applied from it since"
    return found


def _changed_later(run: str, other: State, place: Place, ledger: Ledger) -> bool:
    """Whether a job has changed a document of a collection after a run, or a second try of it, did."""
    kept = Items(ledger)
    mine = {str(one.id): one.time for one in kept.all(run) if one.status != "unchanged"}
    for record in other.applied:
        try:
            plan = loads(ledger.run(record.run)["plan"], f"run {record.run}")
        except NotFound:
            continue
        if any(isinstance(step, Changing) and step.target == place for step in plan.steps):
            for one in kept.all(record.run):
                if one.status != "unchanged" and one.time > mine.get(str(one.id), "~"):
                    return True
    return False


def _saved_gone(begun: list[Step], rows: list[dict[str, Any]], world: World) -> list[Notice]:
    """Saved points that are not there any more: their old vectors cannot come back."""
    found = []
    for step, row in zip(begun, rows, strict=True):
        if isinstance(step, ReplaceVectors) and step.phase == "before":
            store = world.store(step.saved.connection)
            kept = store.count(step.saved.collection) if store.inspect(step.saved.collection) is not None else 0
            expected = (row["result"] or {}).get("replaced", 0)
            if kept < expected:
                message = (
                    f"{expected - kept:,} of {expected:,} saved points are gone: their old vectors cannot come back"
                )
                found.append(Notice(code=SAVED_GONE, message=message, where=str(step.saved), blocking=True))
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


def _touched(steps: list[Step]) -> dict[Place, Literal["source", "target", "relation"]]:
    places: dict[Place, Literal["source", "target", "relation"]] = dict.fromkeys(relational.touched(steps), "relation")
    for step in steps:
        if isinstance(step, CopyPoints):
            places[step.source], places[step.target] = "source", "target"
        elif isinstance(step, CreateCollection | ReplaceVectors | Changing):
            places.setdefault(step.target, "target")
    return places
