"""`verify` and `drift`: the world against what was promised, on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from runner import planner
from runner.actors import Embedded, Progress
from runner.commands.backups import backups_of, tables_of
from runner.commands.context import Context, job_of
from runner.commands.execution import no_progress
from runner.commands.relational import ROWS, answers, names_of, relational_steps, rows_result
from runner.errors import Interrupted, NotFound, PlanRefused, VecrunError, VerificationFailed
from runner.executor import Run
from runner.executor.verify import copied_by
from runner.ledger import UNLIMITED
from runner.plan import Change, CheckDocuments, VerifyPoints, VerifyRows
from runner.sweeper import Sweeper
from runner.world import World

#: What a comparison of documents with what was asked for is called, where others have their mode.
DOCUMENTS = "documents"


@dataclass(frozen=True)
class Verified:
    """Result of a verification on demand."""

    job: str
    equal: bool
    collections: tuple[dict[str, Any], ...]


def verify(
    context: Context, job: str, *, mode: str | None = None, sample: int | None = None, progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Verified:  # fmt: skip
    """Compare source and target of an applied job again, a backup with its manifest, made rows with those that they were made
    of. Writes nothing but a line in the run's
    log."""
    with context.ledger(reading=True) as ledger:
        name = job_of(context, ledger, job)
        state = context.states.load(name)
        if not state.applied:
            raise NotFound("Nothing to verify", f"job {name} has no applied run", f"vecrun status {name}")
        applied = state.applied[-1].run
        plan = planner.applied_plan(state, ledger)
        if plan is None:
            raise NotFound(
                "The run cannot be verified from here",
                planner.foreign(state),
                "Verify it in the workspace that applied it, or apply the job here",
            )
        copied = copied_by(plan, ledger.steps_of(applied))
        changes: dict[str, Any] = {
            key: value for key, value in (("mode", mode), ("sample", sample)) if value is not None
        }
        changes["live"] = None  # it only looks
        steps: list[VerifyPoints | CheckDocuments | VerifyRows] = [
            step.model_copy(update=changes) for step in plan.steps if isinstance(step, VerifyPoints)
        ]
        steps += [CheckDocuments(of=step) for step in plan.steps if isinstance(step, Change)]
        results: list[dict[str, Any]] = []
        with World(context.settings, "read", plan.inline) as world:
            if elsewhere := planner.moved_connections(plan, world):
                raise PlanRefused(
                    "The job was applied somewhere else than the workspace points to now",
                    "\n".join(elsewhere),
                    "Put the connection back as it was, or choose the environment of the run with --env",
                )
            of_rows, others = relational_steps(state, ledger, world)
            for step in (*steps, *of_rows):
                with Sweeper.temporary() as private:  # progress of this comparison: gone afterwards
                    lease = private.acquire(["verify"], "verify", UNLIMITED)
                    one = plan.model_copy(update={"steps": (step,)})
                    private.start_run(lease, one, one.dumps())
                    run = Run(
                        "verify", one, private, lease, world, context.states, context.settings.workspace.limits,
                        stop or threading.Event(), copied=copied, hands=context.settings.workspace.limits.workers,
                        records=ledger, spend=False, failures_of=applied,
                    )  # fmt: skip
                    try:
                        Embedded(run, progress or no_progress).execute()
                        result = private.steps_of("verify")[0]["result"]
                        if isinstance(step, VerifyRows):
                            result = rows_result(result)
                        if isinstance(step, CheckDocuments):
                            result = {
                                "mode": DOCUMENTS,
                                "compared": result["read"],
                                "equal": result["done"],
                                "differences": [],
                            }
                    except Interrupted as exc:
                        raise Interrupted(
                            "Interrupted",
                            "the comparison did not come to its end",
                            f"Begin again: vecrun verify {name}",
                        ) from exc
                    except VerificationFailed as exc:
                        how = step.mode if isinstance(step, VerifyPoints) else DOCUMENTS
                        how = ROWS if isinstance(step, VerifyRows) else how
                        result = {"mode": how, "differences": exc.detail.split("\n")}
                    finally:
                        run.services.close()
                names = (
                    names_of(step)
                    if isinstance(step, VerifyRows)
                    else {"from": str(step.source), "to": str(step.target)}
                )
                results.append(names | result)
            results += answers(others, world)
            results += backups_of(plan, applied, world, read_data=mode != "count", stop=stop)
            results += tables_of(plan, applied, world)
        verified = Verified(name, not any(item["differences"] for item in results), tuple(results))
        text = "verified: equal" if verified.equal else "verified: source and target differ"
        ledger.write_log(applied, "info" if verified.equal else "error", text, collections=results)
        return verified


@dataclass(frozen=True)
class Movements:
    """What moved since each job was applied, and why some jobs could not be looked at: job -> error."""

    jobs: dict[str, list[planner.Moved]]
    errors: dict[str, VecrunError]


def foreign(context: Context, jobs: Iterable[str] = ()) -> list[str]:
    """Jobs whose state came from elsewhere, so that `drift` sees less of them: a sentence each."""
    with context.ledger(reading=True) as ledger:
        states = [context.states.load(name) for name in jobs or context.states.jobs()]
        applied = [state for state in states if state.status == "applied"]
        return [planner.foreign(state) for state in applied if planner.applied_plan(state, ledger) is None]


def drift(context: Context, jobs: Iterable[str] = ()) -> dict[str, list[str]]:
    """What moved since each job was applied and is not expected: job -> sentences. Raises when a job could not be looked
    at."""
    found = movements(context, jobs)
    for error in found.errors.values():
        raise error
    return {job: [item.text for item in moved if not item.expected] for job, moved in found.jobs.items()}


def movements(context: Context, jobs: Iterable[str] = ()) -> Movements:
    """What moved since each job was applied; what `drift.ignore` of vecrun.yaml expects is marked. A job that is not applied
    has nothing. One that cannot be looked at keeps none of the others from it."""
    found = Movements({}, {})
    with context.ledger(reading=True) as ledger:
        names = [job_of(context, ledger, job) for job in jobs] or context.states.jobs()
        for name in names:
            try:
                found.jobs[name] = _movements(context, name, ledger)
            except Interrupted:
                raise
            except VecrunError as exc:
                found.errors[name] = exc
    return found


def _movements(context: Context, job: str, ledger: Sweeper) -> list[planner.Moved]:
    state = context.states.load(job)
    if state.status != "applied":
        return []
    plan = planner.applied_plan(state, ledger)
    with World(context.settings, "read", plan.inline if plan is not None else None) as world:
        return planner.movements(state, ledger, world)
