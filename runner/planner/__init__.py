"""Builds plans: from a job and the live world for `apply`, from a recorded run for `rollback`. Writes nothing.

A job that is applied and unchanged gets a plan without steps; what moved since is listed as drift.
"""

from __future__ import annotations

from collections.abc import Callable

from runner import __version__
from runner.errors import LockHeld, VecrunError
from runner.kinds import Draft, kind_module
from runner.ledger import FINAL, Ledger
from runner.lock import now
from runner.plan import (
    Change,
    CopyPoints,
    LoadTables,
    Notice,
    OfDatabase,
    Plan,
    ReplaceVectors,
    RestoreDocuments,
    RestoreVectors,
    TruncateTables,
    UnloadTables,
    loads,
)
from runner.planner import relational
from runner.planner.observed import (
    Moved,
    applied_plan,
    compare,
    drift,
    foreign,
    moved_connections,
    moved_selection,
    movements,
    observe,
)
from runner.planner.policies import judged, refusals
from runner.planner.relational import ROWS_SINCE, plans_of
from runner.planner.stamping import stamp
from runner.planner.undo import NEW_POINTS, retry, rollback
from runner.settings import MODEL, Settings
from runner.spec import Job, digest
from runner.state import State, States
from runner.vectors import Vectors
from runner.world import World

__all__ = [
    "NEW_POINTS", "ROWS_SINCE", "Moved", "applied_plan", "build", "compare", "drift", "failed_documents", "foreign", "judged", "moved_connections", "moved_selection", "movements", "observe", "plans_of",
    "refusals", "refuse_half_changed", "refuse_unfinished", "retry", "rollback", "spec_digest", "stamp",
]  # fmt: skip

PINNED = "VI201"
FOREIGN = "VI203"
ONCE = "VI204"
FAILED = "VB107"
ROLLED_BACK = "VX304"


def build(
    job: Job, settings: Settings, ledger: Ledger, states: States, *, unpin: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> Plan:  # fmt: skip
    """The plan of a job; `say` is told what takes long. Raises when a run of it is unfinished: that has to be resumed or rolled back first."""
    refuse_unfinished(ledger, job.name)
    state = states.load(job.name)
    module = kind_module(job.kind)
    named, inline = module.connections(job.spec)
    with World(settings, "read", inline, ledger, say) as world:
        draft, moved, wanted = Draft(), tuple[str, ...](), spec_digest(job, world)
        if state.status == "applied" and state.spec_digest == wanted and module.recurring(job.spec):
            draft = module.plan_steps(job.name, job.spec, world, state, applied=True)
        elif state.status == "applied" and state.spec_digest == wanted:
            moved = tuple(drift(state, ledger, world))
            if applied_plan(state, ledger) is None:
                draft.notices.append(Notice(code=FOREIGN, message=foreign(state)))
            draft.notices += _done_once(state, ledger)
        elif state.pinned == wanted and not unpin and module.recurring(job.spec):
            draft = module.plan_steps(job.name, job.spec, world, state, applied=False)
            if draft.steps:
                message = "the job was rolled back, so nothing is done again by itself; apply with --unpin"
                draft.notices.append(Notice(code=ROLLED_BACK, message=message, blocking=True))
        elif state.pinned == wanted and not unpin:
            message = "this spec was rolled back and stays so; change the spec, or apply with --unpin"
            draft.notices.append(Notice(code=PINNED, message=message))
        else:
            draft = module.plan_steps(job.name, job.spec, world, state, applied=False)
        plan = Plan(
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
            retention=draft.retention or settings.state.retention,
        )
        return judged(plan, settings, {item.code: item.reason for item in getattr(job.spec, "accept", ())})


def _done_once(state: State, ledger: Ledger) -> list[Notice]:
    """What is said of an applied job that changes documents: it is over, and some may have failed."""
    plan = applied_plan(state, ledger)
    if plan is None or not any(isinstance(step, Change) for step in plan.steps):
        return []
    applied = state.applied[-1]
    message = (
        f"it was applied on {applied.finished[:10]} (run {applied.run}), and is done once: what it selects is not looked at "
        "again. To do it again, give the job another name"
    )
    found = [Notice(code=ONCE, message=message)]
    if failed := failed_documents(state, ledger):
        what = "document" if failed == 1 else "documents"
        message = f"{failed:,} {what} of that run failed: vecrun failures {state.job} · vecrun retry-failed {state.job}"
        found.append(Notice(code=FAILED, message=message))
    return found


def failed_documents(state: State, ledger: Ledger) -> int:
    """Documents that failed in the run that is applied; 0 for other kinds of jobs."""
    plan = applied_plan(state, ledger) if state.applied else None
    if plan is None or not any(isinstance(step, Change) for step in plan.steps):
        return 0
    return Vectors(ledger).count_failed(state.applied[-1].run)


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
            raise LockHeld(
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


def refuse_half_changed(plan: Plan, ledger: Ledger) -> None:
    """VecrunError when another job has begun to fill a collection of this plan, or to replace its vectors, and has not come
    to its end: it goes on, or back, from there."""
    written, read = plan.places
    # tables of documents are not locked: a migration of the same tables and a change of documents keep out of each other's way
    tables, relations = relational.tables_of(plan.steps), {*relational.touched(plan.steps)}
    for row in ledger.runs_of():
        if row["job"] == plan.job or row["status"] in FINAL:
            continue
        other = loads(ledger.run(row["run"])["plan"], f"run {row['run']}")
        for step, state in zip(other.steps, ledger.steps_of(row["run"]), strict=True):
            filling = isinstance(step, CopyPoints | ReplaceVectors | RestoreVectors | Change | RestoreDocuments)
            emptying = isinstance(step, TruncateTables | LoadTables | UnloadTables | OfDatabase)
            if state["status"] == "pending":
                continue
            places = {*([step.target] if filling else []), *(step.written_places if emptying else [])}  # type: ignore[union-attr]
            met = places & (written | read) | relational.tables_of([step]) & relations
            met |= places & tables if isinstance(step, OfDatabase) else set()
            for place in sorted(met, key=str):
                raise VecrunError(
                    "Another job has changed a part of the collection",
                    f"{place}: run {row['run']} of job {row['job']} is {row['status']}",
                    f"Finish it: vecrun resume {row['job']}\nOr undo it: vecrun rollback {row['job']}",
                )
