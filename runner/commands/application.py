"""`apply`, `resume`, taking over, and the dry run: from a plan to a run."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from runner import crash, planner
from runner.actors import Embedded, Progress
from runner.commands.context import Context, job_of
from runner.commands.execution import (
    Outcome,
    execute,
    leased,
    no_progress,
    nobody,
    outcome,
    prepared,
    record_failure,
)
from runner.commands.refusals import (
    refuse_blocked,
    refuse_moved_connections,
    refuse_policies,
    refuse_stale,
    refuse_unfinished,
    refuse_unshared,
)
from runner.errors import (
    HandedOver,
    NotFound,
    Permanent,
    PlanRefused,
    Transient,
    VecrunError,
)
from runner.executor import Run, settle
from runner.executor.catchup import release
from runner.ledger import FINAL, UNLIMITED
from runner.lock import machine, now
from runner.plan import (
    BackUpTables,
    CopyPoints,
    Plan,
    Recorded,
    ReplaceVectors,
    TruncateTables,
    VerifyPoints,
    VerifyRows,
    loads,
)
from runner.spec import Job
from runner.sweeper import Sweeper
from runner.world import World

#: Takeovers of a run without a finished step after which it is set aside: it probably kills its coordinator.
MAX_TAKEOVERS = 30
#: What a hint says to do with a run.
_GOES_ON = re.compile(r"vecrun (resume|rollback|retry-failed)")


def apply(
    context: Context, plan: Plan, *, dry_run: bool = False, sample: int | None = None, detach: bool = False,
    wait: float | None = None, progress: Progress | None = None, stop: threading.Event | None = None,
    say: Callable[[str], None] = nobody, approvals: Sequence[str] = (),
) -> Outcome:  # fmt: skip
    """Carry out a plan that was made before. Refuses one that is stale, altered, was applied, or that the policies of
    vecrun.yaml forbid by now (PlanRefused). `approvals`: names of those who approved it; the run's log keeps them.

    `dry_run` reads and transforms everything, or about `sample` points of each collection, and writes nothing.
    `detach` leaves it to the workers and returns. `wait`: seconds to wait for a lock that somebody holds; by default a
    held lock is refused at once, and a free slot is waited for as long as limits.wait says.
    """
    refuse_blocked(plan)
    if dry_run:
        return _dry_run(context, plan, sample, progress, stop, say)
    refuse_unshared(context, plan, detach=detach)
    with context.ledger() as ledger:
        for row in ledger.runs_of(plan.job):
            if row["plan_digest"] == plan.plan_digest and row["status"] in ("completed", "rolled_back"):
                raise PlanRefused(
                    "This plan was applied before",
                    f"run {row['run']}, {row['finished']}",
                    "A plan is applied once; plan again",
                )
        unfinished = ledger.unfinished(plan.job)
        if unfinished and unfinished["plan_digest"] == plan.plan_digest:
            return _resume(context, ledger, unfinished, progress, stop, say, wait=wait)
        refuse_unfinished(ledger, plan)
        planner.refuse_half_changed(plan, ledger)
        refuse_policies(context, plan, approvals)
        if plan.purpose == "apply" and not plan.steps:
            refuse_stale(context, ledger, plan)
            failed = planner.failed_documents(context.states.load(plan.job), ledger)
            return Outcome("", plan.job, plan.purpose, "completed", (), 0.0, failed=failed)
        run = f"r-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:6]}"
        stop = stop or threading.Event()
        with leased(context, ledger, plan, run, stop, wait=wait, say=say, slot=not detach) as held:
            refuse_unfinished(ledger, plan)  # again: a run may have begun and stopped before the lease was ours
            planner.refuse_half_changed(plan, ledger)
            refuse_stale(context, ledger, plan)
            refuse_policies(context, plan, approvals)  # again: a window may have closed while the lease was waited for
            crash.point("run", "leased")
            executor = "distributed" if context.settings.has_broker else "embedded"
            status = "pending" if detach else "running"
            ledger.start_run(held.lease, plan, plan.dumps(), executor=executor, status=status)
            crash.point("run", "started")
            ledger.write_log(run, "info", f"{status}: {plan.purpose} of job {plan.job}", plan=plan.plan_digest)
            if approvals:
                ledger.write_log(run, "info", f"approved by {', '.join(approvals)}", approvals=[*approvals])
            if detach:
                return Outcome(run, plan.job, plan.purpose, status, (), 0.0)
            return execute(context, ledger, held, plan, progress, stop, say)


def resume(
    context: Context, job: str, *, operator: bool = True, detach: bool = False, wait: float | None = None,
    retry_failed: bool = False, progress: Progress | None = None, stop: threading.Event | None = None,
    say: Callable[[str], None] = nobody,
) -> Outcome:  # fmt: skip
    """Go on with the unfinished run of a job, from its checkpoints. NotFound when there is none.

    `detach` leaves it to the workers and returns; `wait` as for `apply`. Without `operator` a run that waits at a hold
    waits on. `retry_failed`: items that could not be embedded are tried again.
    """
    with context.ledger() as ledger:
        name = job_of(context, ledger, job)
        row = ledger.unfinished(name)
        if row is None:
            raise NotFound("Nothing to resume", f"job {name} has no unfinished run", f"vecrun status {name}")
        return _resume(
            context, ledger, row, progress, stop, say, detach=detach, wait=wait, operator=operator,
            retry_failed=retry_failed,
        )  # fmt: skip


def unfinished_of(context: Context, job: Job) -> dict[str, Any] | None:
    """The unfinished run that `apply JOB.yaml` goes on with. VecrunError when the spec changed since it began, and when it is a
    rollback: whoever applies a job does not mean to undo it."""
    with context.ledger() as ledger:
        row: dict[str, Any] | None = ledger.unfinished(job.name)
        if row is not None and row["purpose"] == "rollback":
            raise VecrunError(
                "A rollback of this job is not finished",
                f"run {row['run']} is {row['status']}" + (f": {row['error']}" if row["error"] else ""),
                f"Finish it first: vecrun resume {job.name}",
            )
        if row is None or row["purpose"] != "apply":
            return row
        with World(context.settings, "read") as world:
            wanted = planner.spec_digest(job, world)
        if loads(row["plan"], f"run {row['run']}").spec_digest != wanted:
            raise VecrunError(
                "The spec changed while a run of it is unfinished",
                f"run {row['run']} of job {job.name} is {row['status']} and was planned from another spec",
                f"Finish it as planned: vecrun resume {job.name}\nOr undo it: vecrun rollback {job.name}",
            )
        return row


def _resume(
    context: Context, ledger: Sweeper, row: dict[str, Any], progress: Progress | None, stop: threading.Event | None,
    say: Callable[[str], None], *, detach: bool = False, wait: float | None = None, operator: bool = False,
    retry_failed: bool = False,
) -> Outcome:  # fmt: skip
    plan = loads(row["plan"], f"run {row['run']}")
    refuse_unshared(context, plan, detach=detach)
    stop = stop or threading.Event()
    with leased(context, ledger, plan, row["run"], stop, wait=wait, say=say, slot=not detach) as held:
        if ledger.run(row["run"])["status"] in FINAL:
            raise NotFound(
                "Nothing to resume", f"run {row['run']} came to its end meanwhile", f"vecrun status {plan.job}"
            )
        begun = not plan.steps or any(step["status"] != "pending" for step in ledger.steps_of(row["run"]))
        refuse_moved_connections(context, plan) if begun else refuse_stale(context, ledger, plan, row["run"])
        executor = "distributed" if context.settings.has_broker else "embedded"
        status = "pending" if detach else "running"
        ledger.hold(held.lease, status=status, executor=executor, control=None, problem=None, error=None, takeovers=0)
        ledger.write_log(row["run"], "info", "resumed")
        if operator:
            release(ledger, held.lease, plan)
        if retry_failed:
            settle.ask(ledger, held.lease, plan)
        crash.point("run", "resumed")
        rows = ledger.steps_of(row["run"])
        for number, step in enumerate(rows):
            again = isinstance(plan.steps[number], VerifyPoints | VerifyRows) and step["status"] == "failed"
            # what was refused because rows came after the backup needs another one
            emptying = any(isinstance(one, TruncateTables) for one in plan.steps[number + 1 :])
            refused = row["status"] == "failed" and rows[-1]["status"] != "done" and step["status"] == "done"
            if again or (refused and emptying and isinstance(plan.steps[number], BackUpTables)):
                ledger.restart_step(held.lease, number)
        if detach:
            return Outcome(row["run"], plan.job, plan.purpose, status, (), 0.0)
        return execute(context, ledger, held, plan, progress, stop, say)


def take_over(context: Context, run: str, stop: threading.Event) -> None:
    """A worker goes on with a run that nobody coordinates. When it has to stop, another one does."""
    mine = threading.Event()
    with context.ledger() as ledger:
        row = ledger.run(run)
        plan = loads(row["plan"], f"run {run}")
        with leased(context, ledger, plan, run, mine, wait=0, say=nobody) as held:
            row = ledger.run(run)
            if row["status"] not in ("pending", "running") or ledger.runs_of(plan.job)[0]["run"] != run:
                return
            watch = threading.Thread(target=_pass_on, args=(stop, mine), daemon=True)
            watch.start()
            try:
                begun = any(step["status"] != "pending" for step in ledger.steps_of(run))
                ledger.hold(
                    held.lease, status="running", takeovers=row["takeovers"] + 1, started=row["started"] or now()
                )
                before = f"{row['owner']}" if row["takeovers"] == 0 else "another worker"
                by = f"pid {os.getpid()} on {socket.gethostname()}"
                ledger.write_log(run, "info", "taken over" if begun else "started", by=by, begun_by=before)
                try:
                    if row["takeovers"] >= MAX_TAKEOVERS:
                        raise Permanent(
                            "The run keeps killing the process that coordinates it",
                            f"run {run} was taken over {row['takeovers']} times without finishing a step",
                        )
                    refuse_moved_connections(context, plan) if begun else refuse_stale(context, ledger, plan, run)
                except Transient:  # a later sweep tries again, and nothing has died
                    ledger.hold(held.lease, takeovers=row["takeovers"])
                    raise
                except VecrunError as exc:
                    record_failure(prepared(context, ledger, held.lease, held.keeper, plan, mine, nobody), exc)
                    held.ended.append(exc)
                    raise
                try:
                    execute(context, ledger, held, plan, None, mine, nobody, hand_over=True)
                except (HandedOver, Transient):
                    with suppress(VecrunError):
                        ledger.hold(held.lease, takeovers=row["takeovers"])
                    raise
            finally:
                mine.set()


def _pass_on(stop: threading.Event, mine: threading.Event) -> None:
    while not mine.wait(0.2):
        if stop.is_set():
            mine.set()


def open_run(context: Context, ledger: Sweeper, run: str, token: int) -> Run | None:
    """What a worker needs to work on partitions of a run; None when `token` is not of its present lease."""
    row, lease = ledger.run(run), ledger.lease_of(run)
    if lease is None or lease.token != token or row["status"] != "running":
        return None
    plan = loads(row["plan"], f"run {run}")
    refuse_moved_connections(context, plan)
    elsewhere = [item for item in ledger.holders() if item["run"] == run and item["machine"] != machine()]
    with World(context.settings, "read", plan.inline) as world:
        for name in plan.connections if elsewhere else ():
            if world.local(name):
                raise Permanent(
                    "A store lies in the file system of another host",
                    f"connection {name}: the run is coordinated on {elsewhere[0]['host']}, and a worker on "
                    f"{socket.gethostname()} would find something else under that path",
                    "Use a folder that all hosts share, and say so in the connection (shared: true); or run the workers on one host",
                )
    return prepared(context, ledger, lease, None, plan, threading.Event(), nobody)


def _dry_run(
    context: Context,
    plan: Plan,
    sample: int | None,
    progress: Progress | None,
    stop: threading.Event | None,
    say: Callable[[str], None],
) -> Outcome:
    """Walk the whole plan over stores that discard writes, with a ledger in memory. Nothing is left behind."""
    began, name = time.monotonic(), f"dry-run-{uuid4().hex[:6]}"
    embeds = any(isinstance(step, CopyPoints | ReplaceVectors) and step.transform.embed for step in plan.steps)
    with (
        context.ledger(reading=not embeds) as kept,  # vectors that are paid for are kept: apply does not ask again
        Sweeper.temporary() as ledger,
        World(context.settings, "dry", plan.inline) as world,
    ):
        refuse_stale(context, kept, plan)
        lease = ledger.acquire(["dry-run"], name, UNLIMITED)
        ledger.start_run(lease, plan, plan.dumps())
        run = Run(
            name, plan, ledger, lease, world, context.states, context.settings.workspace.limits,
            stop or threading.Event(), say, sample=sample, hands=context.settings.workspace.limits.workers, records=kept,
        )  # fmt: skip
        if any(isinstance(step, Recorded) for step in plan.steps):
            say(
                "What it changes stays locked in the database until the dry run ends; on SQLite nobody else writes meanwhile"
            )
        try:
            Embedded(run, progress or no_progress).execute()
            for line in world.rehearsed():
                say(line)
        except VecrunError as exc:  # there is no run to go on with, nor one to undo
            said = [one for one in re.split(r"\n|(?<=\.) ", exc.hint) if one and not _GOES_ON.search(one)]
            exc.hint = "\n".join([*said, "It was a dry run: nothing of it is left"])
            raise
        finally:
            run.services.close()
        return outcome(run, time.monotonic() - began)
