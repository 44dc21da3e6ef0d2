"""`state mv`: a job gets another name and stays the same job, with what it did and the way back."""

from __future__ import annotations

import dataclasses
import uuid
from contextlib import suppress
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from runner import planner
from runner.commands.context import Context, load
from runner.commands.validation import job_files
from runner.errors import InvalidFile, NotFound, VecrunError
from runner.plan import OfDatabase
from runner.spec import Job, Name, digest
from runner.state import SERVING, State
from runner.sweeper import Sweeper
from runner.tables import runs
from runner.world import World


@dataclass(frozen=True)
class Moved:
    """What was moved. `unchanged`: the job's spec is the applied one but for its name, so that it plans nothing."""

    old: str
    new: str
    kind: str
    serial: int
    runs: int
    unchanged: bool


def move_state(context: Context, old: str, new: str) -> Moved:
    """Give the state and the runs of job `old` to job `new`, and what a database records of its steps. Its collections are not
    touched. NotFound; LockHeld while a run
    of either is at work; VecrunError when one is unfinished, the names are the same, or `new` has a state of its own.
    Repeating it is harmless."""
    _check_name(new)
    _refuse_the_same(context, old, new)
    seconds = context.settings.workspace.limits.lease_seconds
    with context.ledger() as ledger:
        lease = ledger.acquire([f"job:{old}", f"job:{new}"], f"state-mv-{uuid.uuid4().hex[:8]}", seconds)
        try:
            for job in (old, new):
                planner.refuse_unfinished(ledger, job)
            state = context.states.version(old)
            named = _digests(context, old, new, ledger)
            wanted = _renamed(state, new, named)
            present = _present(context, new)
            if present is not None and present.model_copy(update={"serial": wanted.serial}) != wanted:
                raise VecrunError(
                    "A job of this name has a state already", f"{new}: serial {present.serial}, {present.status}",
                    f"Choose another name. Or forget that one: vecrun state rm {new}",
                )  # fmt: skip
            _rename_records(context, state, new, ledger)
            if present is None:  # else a crash came after this was written
                present = context.states.push(wanted, ledger.guarded(lease))
            with ledger.guarded(lease) as connection:
                done = connection.execute(runs.update().where(runs.c.job == old).values(job=new))
            context.states.remove(old, ledger.guarded(lease))
        finally:
            with suppress(VecrunError):
                ledger.release(lease)
    unchanged = state.spec_digest in named if state.spec_digest is not None else state.pinned in named
    return Moved(old, new, state.kind, present.serial, done.rowcount, unchanged)


def _rename_records(context: Context, state: State, new: str, ledger: Sweeper) -> None:
    """In the databases whose steps the job has done: they record them under its name."""
    plans = [*planner.plans_of(state, ledger)]
    databases = {step.connection for plan in plans for step in plan.steps if isinstance(step, OfDatabase)}
    if not databases:
        return
    from runner.relational import record

    with World(context.settings, "write") as world:
        for name in sorted(databases):
            record.rename(world.relational(name), state.job, new)


def _check_name(name: str) -> None:
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as exc:
        raise VecrunError("This is no name of a job", repr(name), exc.errors()[0]["msg"]) from exc
    if name == SERVING:
        raise VecrunError("This is no name of a job", "serving is the name of the serving pointers")


def _refuse_the_same(context: Context, old: str, new: str) -> None:
    """Names that differ only in upper and lower case are one file on some systems: removing the old would remove the new."""
    if new == old:
        raise VecrunError("A job has this name already", new, "Give another name. Nothing was changed")
    alike = [name for name in {old, *context.states.jobs()} - {new} if name.casefold() == new.casefold()]
    if alike:
        raise VecrunError(
            "The name differs only in upper and lower case", f"{new}, and there is {alike[0]}",
            "Give another name; or go by way of one: vecrun state mv twice",
        )  # fmt: skip


def _present(context: Context, job: str) -> State | None:
    return context.states.version(job) if job in context.states.jobs() else None


def _renamed(state: State, new: str, named: dict[str, str]) -> State:
    """The document under the other name. The digest of a spec covers the name, so it is that of the other one, too."""

    def under(found: str | None) -> str | None:
        return named.get(found, found) if found is not None else None

    applied = tuple(
        item.model_copy(update={"spec_digest": named.get(item.spec_digest, item.spec_digest)}) for item in state.applied
    )
    update = {"job": new, "spec_digest": under(state.spec_digest), "pinned": under(state.pinned), "applied": applied}
    return state.model_copy(update=update)


def _digests(context: Context, old: str, new: str, ledger: Sweeper) -> dict[str, str]:
    """Digest of the job's present spec under the old name -> under the new one; empty when no file describes the job."""
    job = _described(context, new) or _described(context, old)
    if job is None:
        return {}
    with World(context.settings, "read", ledger=ledger) as world:
        before, after = (planner.spec_digest(_called(job, name), world) for name in (old, new))
    return {before: after}


def _called(job: Job, name: str) -> Job:
    content = {"kind": job.kind, "name": name, "spec": job.spec.model_dump(mode="json", by_alias=True)}
    return dataclasses.replace(job, name=name, digest=digest(content))


def _described(context: Context, name: str) -> Job | None:
    """The job of that name below jobs/."""
    with suppress(NotFound):
        for path in job_files([context.settings.root / "jobs"]):
            with suppress(InvalidFile):
                if (job := load(context, path)).name == name:
                    return job
    return None
