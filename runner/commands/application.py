"""`apply`, `resume` and the dry run: from a plan to a run, and its record in state and ledger."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from runner import crash, planner
from runner.actors import Coordinator, Distributed, Embedded, Progress
from runner.commands.context import Context, find_run, job_of
from runner.errors import (
    HandedOver,
    Interrupted,
    LeaseLost,
    LockHeld,
    NoSlot,
    NotFound,
    Permanent,
    PlanRefused,
    VecrunError,
    VerificationFailed,
)
from runner.executor import Run
from runner.ledger import FINAL, UNLIMITED, Ledger, Partition
from runner.lock import SLOT, Keeper, Lease, machine, now, owner
from runner.plan import CopyPoints, Observed, Place, Plan, SetServing, SwitchAlias, VerifyPoints, loads
from runner.settings import duration_seconds
from runner.spec import Job
from runner.state import Applied, State
from runner.sweeper import Sweeper
from runner.world import World

#: Takeovers of a run without a finished step after which it is set aside: it probably kills its coordinator.
MAX_TAKEOVERS = 30


def _nobody(_message: str) -> None:
    return None


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run: str
    job: str
    purpose: str
    status: str
    steps: tuple[dict[str, Any], ...]
    seconds: float
    dry: bool = False

    @property
    def points(self) -> int:
        """Points copied."""
        return sum(item["result"]["done"] for item in self.steps if item["type"] == "copy_points" and item["result"])


def apply(
    context: Context, plan: Plan, *, dry_run: bool = False, sample: int | None = None, detach: bool = False,
    wait: float | None = None, progress: Progress | None = None, stop: threading.Event | None = None,
    say: Callable[[str], None] = _nobody,
) -> Outcome:  # fmt: skip
    """Carry out a plan that was made before. Refuses one that is stale, altered or was applied (PlanRefused).

    `dry_run` reads and transforms everything, or about `sample` points of each collection, and writes nothing.
    `detach` leaves it to the workers and returns. `wait`: seconds to wait for a lock that somebody holds; by default a
    held lock is refused at once, and a free slot is waited for as long as limits.wait says.
    """
    refuse_blocked(plan)
    if dry_run:
        return _dry_run(context, plan, sample, progress, stop, say)
    _refuse_unshared(context, plan, detach=detach)
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
        _refuse_unfinished(ledger, plan)
        if plan.purpose == "apply" and not plan.steps:
            _refuse_stale(context, ledger, plan)
            return Outcome("", plan.job, plan.purpose, "completed", (), 0.0)
        run = f"r-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:6]}"
        stop = stop or threading.Event()
        with _leased(context, ledger, plan, run, stop, wait=wait, say=say, slot=not detach) as (lease, keeper):
            _refuse_unfinished(ledger, plan)  # again: a run may have begun and stopped before the lease was ours
            _refuse_stale(context, ledger, plan)
            crash.point("run", "leased")
            executor = "distributed" if context.settings.has_broker else "embedded"
            status = "pending" if detach else "running"
            ledger.start_run(lease, plan, plan.dumps(), executor=executor, status=status)
            crash.point("run", "started")
            ledger.write_log(run, "info", f"{status}: {plan.purpose} of job {plan.job}", plan=plan.plan_digest)
            if detach:
                return Outcome(run, plan.job, plan.purpose, status, (), 0.0)
            return _execute(context, ledger, lease, keeper, plan, progress, stop, say)


def resume(
    context: Context, job: str, *, detach: bool = False, wait: float | None = None, progress: Progress | None = None,
    stop: threading.Event | None = None, say: Callable[[str], None] = _nobody,
) -> Outcome:  # fmt: skip
    """Go on with the unfinished run of a job, from its checkpoints. NotFound when there is none.

    `detach` leaves it to the workers and returns; `wait` as for `apply`.
    """
    with context.ledger() as ledger:
        name = job_of(context, ledger, job)
        row = ledger.unfinished(name)
        if row is None:
            raise NotFound("Nothing to resume", f"job {name} has no unfinished run", f"vecrun status {name}")
        return _resume(context, ledger, row, progress, stop, say, detach=detach, wait=wait)


def unfinished_of(context: Context, job: Job) -> dict[str, Any] | None:
    """The unfinished run that `apply JOB.yaml` goes on with. VecrunError when the spec changed since it began."""
    with context.ledger() as ledger:
        row: dict[str, Any] | None = ledger.unfinished(job.name)
        if row is None or row["purpose"] == "rollback":
            return row
        if loads(row["plan"], f"run {row['run']}").spec_digest != job.digest:
            raise VecrunError(
                "The spec changed while a run of it is unfinished",
                f"run {row['run']} of job {job.name} is {row['status']} and was planned from another spec",
                f"Finish it as planned: vecrun resume {job.name}\nOr undo it: vecrun rollback {job.name}",
            )
        return row


def _refuse_unfinished(ledger: Ledger, plan: Plan) -> None:
    """A run that has not come to its end can be gone on with, or undone by its own rollback; nothing else."""
    unfinished = ledger.unfinished(plan.job)
    if unfinished and not (plan.purpose == "rollback" and plan.of_run == unfinished["run"]):
        planner.refuse_unfinished(ledger, plan.job)


def refuse_blocked(plan: Plan) -> None:
    """VecrunError when the plan has findings that nobody accepted."""
    if plan.blocked:
        lines = [
            f"{item.code} {item.where}: {item.message}" + (f" ({item.seen})" if item.seen else "")
            for item in plan.notices
            if item.blocking
        ]
        hints = sorted({item.code for item in plan.notices if item.blocking and item.code.startswith(("VL", "VD1"))})
        hint = "Mend them in the spec or in the stores, and plan again"
        if hints:
            hint += f"\nWhat is wanted can be accepted in the spec: accept: [{{code: {hints[0]}, reason: why}}]"
        if any(item.code == planner.NEW_POINTS for item in plan.notices if item.blocking):
            hint = "Save those points first, or lose them with: vecrun rollback " + plan.job + " --discard-new-points"
        raise VecrunError("The plan cannot be applied as it is", "\n".join(lines), hint)


def _resume(
    context: Context, ledger: Sweeper, row: dict[str, Any], progress: Progress | None, stop: threading.Event | None,
    say: Callable[[str], None], *, detach: bool = False, wait: float | None = None,
) -> Outcome:  # fmt: skip
    plan = loads(row["plan"], f"run {row['run']}")
    _refuse_unshared(context, plan, detach=detach)
    stop = stop or threading.Event()
    with _leased(context, ledger, plan, row["run"], stop, wait=wait, say=say, slot=not detach) as (lease, keeper):
        if ledger.run(row["run"])["status"] in FINAL:
            raise NotFound(
                "Nothing to resume", f"run {row['run']} came to its end meanwhile", f"vecrun status {plan.job}"
            )
        _refuse_moved_connections(context, plan)
        executor = "distributed" if context.settings.has_broker else "embedded"
        status = "pending" if detach else "running"
        ledger.hold(lease, status=status, executor=executor, control=None, problem=None, error=None, takeovers=0)
        ledger.write_log(row["run"], "info", "resumed")
        crash.point("run", "resumed")
        for number, step in enumerate(ledger.steps_of(row["run"])):
            if isinstance(plan.steps[number], VerifyPoints) and step["status"] == "failed":
                ledger.restart_step(lease, number)
        if detach:
            return Outcome(row["run"], plan.job, plan.purpose, status, (), 0.0)
        return _execute(context, ledger, lease, keeper, plan, progress, stop, say)


def take_over(context: Context, run: str, stop: threading.Event) -> None:
    """A worker goes on with a run that nobody coordinates. When it has to stop, another one does."""
    mine = threading.Event()
    with context.ledger() as ledger:
        row = ledger.run(run)
        plan = loads(row["plan"], f"run {run}")
        with _leased(context, ledger, plan, run, mine, wait=0, say=_nobody) as (lease, keeper):
            row = ledger.run(run)
            if row["status"] not in ("pending", "running"):
                return
            watch = threading.Thread(target=_pass_on, args=(stop, mine), daemon=True)
            watch.start()
            try:
                begun = any(step["status"] != "pending" for step in ledger.steps_of(run))
                ledger.hold(lease, status="running", takeovers=row["takeovers"] + 1, started=row["started"] or now())
                ledger.write_log(run, "info", "taken over" if begun else "started", by=owner())
                try:
                    if row["takeovers"] >= MAX_TAKEOVERS:
                        raise Permanent(
                            "The run keeps killing the process that coordinates it",
                            f"run {run} was taken over {row['takeovers']} times without finishing a step",
                        )
                    _refuse_moved_connections(context, plan) if begun else _refuse_stale(context, ledger, plan, run)
                except VecrunError as exc:
                    _record_failure(context, _run(context, ledger, lease, keeper, plan, mine, _nobody), exc)
                    raise
                _execute(context, ledger, lease, keeper, plan, None, mine, _nobody, hand_over=True)
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
    _refuse_moved_connections(context, plan)
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
    return _run(context, ledger, lease, None, plan, threading.Event(), _nobody)


def left_behind(context: Context, name: str) -> list[str]:
    """What a run that was stopped has left in the stores, one sentence each."""
    with context.ledger(reading=True) as ledger:
        row = find_run(context, ledger, name)
        plan = loads(row["plan"], f"run {row['run']}")
        found = []
        for number, (step, state) in enumerate(zip(plan.steps, ledger.steps_of(row["run"]), strict=True)):
            if state["status"] == "pending" or isinstance(step, VerifyPoints):
                continue
            if isinstance(step, CopyPoints):
                done = sum(part.done for part in ledger.partitions_of(row["run"], number))
                found.append(f"{step.target}: {done:,} of {step.points:,} points copied; {step.source} is untouched")
            elif isinstance(step, SwitchAlias):
                found.append(f"alias {step.alias} of {step.connection} points to {step.after or 'nothing'}")
            elif isinstance(step, SetServing):
                found.append(f"serving pointer {step.name} is {step.after or 'not set'}")
        return found


@contextmanager
def _leased(
    context: Context, ledger: Ledger, plan: Plan, run: str, stop: threading.Event, *, wait: float | None,
    say: Callable[[str], None], slot: bool = True,
) -> Iterator[tuple[Lease, Keeper]]:  # fmt: skip
    """Hold the job, every collection that is written, a place at those that are read, and a slot, for one run; `stop`
    is set when that can no longer be."""
    limits = context.settings.workspace.limits
    names, read = {f"job:{plan.job}"}, set[str]()
    for step in plan.steps:
        target = getattr(step, "target", None)
        if isinstance(target, Place) and not isinstance(step, VerifyPoints):
            names.add(f"collection:{target}")
        if isinstance(step, CopyPoints):
            read.add(f"collection:{step.source}")
    shared = dict.fromkeys(read - names, limits.runs_per_source) | ({SLOT: limits.runs} if slot else {})
    began, told = time.monotonic(), False
    while True:
        try:
            lease = ledger.acquire(sorted(names), run, limits.lease_seconds, shared=shared)
            break
        except LockHeld as exc:
            patience = wait
            if patience is None:
                patience = duration_seconds(limits.wait) if isinstance(exc, NoSlot) else 0.0
            if time.monotonic() - began >= patience:
                raise
            if not told:
                say(f"Waiting: {exc.detail}")
            told = True
            if stop.wait(min(1.0, patience)):
                raise Interrupted("Interrupted", "nothing was begun", "") from exc
    try:
        with Keeper(ledger, lease, limits.lease_seconds, stop) as keeper:
            yield lease, keeper
    finally:
        with suppress(VecrunError):
            ledger.release(lease)


def _refuse_unshared(context: Context, plan: Plan, *, detach: bool) -> None:
    """With workers, every store must be one that several processes can open."""
    if not context.settings.has_broker:
        if detach:
            raise VecrunError(
                "Nobody would go on with it",
                "vecrun.yaml has no broker, so a run works in the process that started it",
                "Leave out --detach; or set up workers: docs/howto/run-workers.md",
            )
        return
    with context.ledger() as ledger:
        if not ledger.on_server:
            raise VecrunError(
                "Workers and a SQLite ledger do not go together",
                "a SQLite file is for one host, and its locks hold for one host only",
                "state: {database: postgresql://…} in vecrun.yaml, or no broker",
            )
    with World(context.settings, "read", plan.inline) as world:
        for name in plan.connections:
            if reason := world.unshared(name):
                raise VecrunError(
                    "This store cannot be used by several workers",
                    f"connection {name}: {reason}",
                    "Use its server, or apply without a broker (an environment of vecrun.yaml can have none)",
                )


def _refuse_moved_connections(context: Context, plan: Plan) -> None:
    with World(context.settings, "read", plan.inline) as world:
        if moved := planner.moved_connections(plan, world):
            raise PlanRefused("The plan is stale", "\n".join(moved), "Plan again, or put the connection back")


def _refuse_stale(context: Context, ledger: Ledger, plan: Plan, run: str = "") -> None:
    """PlanRefused when the state or anything the plan touches moved since; says what."""
    if plan.environment != context.settings.environment:
        raise PlanRefused(
            "The plan was made for another environment",
            f"it is for {plan.environment or 'none'}, and {context.settings.environment or 'none'} is chosen",
            f"vecrun apply --env {plan.environment} …" if plan.environment else "Leave out --env and VECRUN_ENV",
        )
    _refuse_moved_connections(context, plan)
    state = context.states.load(plan.job)
    moved = []
    if state.lineage != plan.lineage:
        moved.append("the plan was made in another workspace (lineage differs)")
    elif state.serial != plan.serial:
        moved.append(f"the job's state has serial {state.serial}, the plan was made at {plan.serial}")
    with World(context.settings, "read", plan.inline) as world:
        moved += planner.compare(plan.world, planner.observe(world, plan.world))
        serving = context.states.serving().pointers
        for step in plan.steps:
            if isinstance(step, SwitchAlias):
                now_at = world.store(step.connection).aliases().get(step.alias)
                if now_at != step.before:
                    moved.append(f"alias {step.alias} of {step.connection} points to {now_at}, not {step.before}")
            if isinstance(step, SetServing) and serving.get(step.name) != step.before:
                moved.append(f"the serving pointer {step.name} is {serving.get(step.name)}, not {step.before}")
    if not moved and plan.purpose == "rollback":
        again = planner.rollback(plan.job, context.settings, ledger, context.states, discard_new_points=True, but=run)
        if again.of_run != plan.of_run or again.steps != plan.steps:
            moved.append(f"run {plan.of_run} went on since its rollback was planned")
    if moved:
        raise PlanRefused("The plan is stale", "\n".join(moved), "Plan again, and look at what changed")


def _run(
    context: Context, ledger: Sweeper, lease: Lease, keeper: Keeper | None, plan: Plan, stop: threading.Event,
    say: Callable[[str], None],
) -> Run:  # fmt: skip
    return Run(
        lease.run, plan, ledger, lease, World(context.settings, "write", plan.inline), context.states,
        context.settings.workspace.limits, stop, say, keeper=keeper,
    )  # fmt: skip


def _execute(
    context: Context, ledger: Sweeper, lease: Lease, keeper: Keeper, plan: Plan, progress: Progress | None,
    stop: threading.Event, say: Callable[[str], None], *, hand_over: bool = False,
) -> Outcome:  # fmt: skip
    began = time.monotonic()
    run = _run(context, ledger, lease, keeper, plan, stop, say)
    try:
        _coordinator(context, run, progress or no_progress, hand_over=hand_over).execute()
        _record(context, run)
    except BaseException as exc:
        _record_failure(context, run, exc)
        raise
    finally:
        run.world.close()
    return _outcome(run, time.monotonic() - began)


def _coordinator(context: Context, run: Run, progress: Progress, *, hand_over: bool) -> Coordinator:
    broker = context.settings.broker
    if broker is None:
        run.hands = run.limits.workers
        return Embedded(run, progress)
    # two for each thread, so that none is idle while another is at a large one
    run.hands = max(run.limits.workers, 2 * sum(worker["threads"] for worker in run.ledger.crew()))
    return Distributed(run, progress, broker, hand_over=hand_over)


def _record(context: Context, run: Run) -> None:
    """After the last step: the state, then the ledger's verdict. Harmless when repeated after a crash in between."""
    plan, ledger, lease = run.plan, run.ledger, run.lease
    state = context.states.load(plan.job)
    crash.point("state", "before")
    new = _rolled_back(state, plan, run) if plan.purpose == "rollback" else _applied(state, plan, run)
    context.states.save(new, ledger.guarded(lease))
    crash.point("state", "after")
    if plan.of_run:
        ledger.mark_run(plan.of_run, status="rolled_back", finished=now())
        crash.point("state", "marked")
    ledger.write_log(lease.run, "info", "completed")
    ledger.set_run(lease, status="completed", finished=now(), error=None)
    crash.point("state", "recorded")


def _applied(state: State, plan: Plan, run: Run) -> State:
    places = tuple(Observed(place=item.place, role=item.role, count=None, schema_digest=None) for item in plan.world)
    world = planner.observe(run.world, places)
    if state.applied and state.applied[-1].run == run.run:  # written before a crash
        return state
    finished = datetime.now(UTC)
    record = Applied(
        run=run.run, plan_digest=plan.plan_digest, spec_digest=plan.spec_digest,
        finished=finished.isoformat(timespec="seconds"),
        expires=(finished + timedelta(seconds=duration_seconds(plan.retention))).isoformat(timespec="seconds"),
    )  # fmt: skip
    return state.model_copy(
        update={
            "kind": plan.kind, "spec_digest": plan.spec_digest, "status": "applied", "live": _live(plan), "world": world,
            "applied": (*state.applied, record), "pinned": None,
        }
    )  # fmt: skip


def _rolled_back(state: State, plan: Plan, run: Run) -> State:
    """What was applied before the run that was undone is what is applied now; if nothing was, nothing is."""
    kept = tuple(item for item in state.applied if item.run != plan.of_run)
    new = state.model_copy(update={"kind": plan.kind, "pinned": plan.spec_digest, "applied": kept})
    if not kept:
        nothing = {"status": "rolled_back", "spec_digest": None, "live": _live(plan), "world": ()}
        return new.model_copy(update=nothing)
    if kept == state.applied:  # the run never came to its end
        return new
    before = loads(run.ledger.run(kept[-1].run)["plan"], f"run {kept[-1].run}")
    world: tuple[Observed, ...] = ()
    with suppress(VecrunError):  # a store of that time may be gone; then there is nothing to compare with later
        world = planner.observe(run.world, before.world)
    return new.model_copy(
        update={"status": "applied", "spec_digest": before.spec_digest, "live": _live(before), "world": world}
    )


def _live(plan: Plan) -> dict[str, Place]:
    """Which store and collection serve under which name after a plan."""
    return {step.name: step.after for step in plan.steps if isinstance(step, SetServing) and step.after}


def _record_failure(context: Context, run: Run, exc: BaseException) -> None:
    """The run's status after an error. A lost lease writes nothing: somebody else owns the run now."""
    if isinstance(exc, LeaseLost | HandedOver) or run.dry:
        return
    status = "failed"
    if isinstance(exc, Interrupted | KeyboardInterrupt):
        status = "cancelled" if "Cancelled" in str(exc) else "paused"
    with suppress(VecrunError):
        for number, row in enumerate(run.ledger.steps_of(run.run)):
            if row["status"] == "running" and isinstance(exc, VerificationFailed):
                run.ledger.set_step(run.lease, number, "failed")
        if isinstance(exc, VecrunError) and status == "failed" and "vecrun resume" not in exc.hint:
            way_on = f"When that is mended: vecrun resume {run.plan.job}. Or undo it: vecrun rollback {run.plan.job}"
            exc.hint = f"{exc.hint}\n{way_on}".strip()
        run.ledger.write_log(run.run, "error" if status == "failed" else "info", f"{status}: {exc}")
        run.ledger.set_run(
            run.lease, status=status, error=str(exc) if status == "failed" else None, control=None, problem=None
        )


def _outcome(run: Run, seconds: float) -> Outcome:
    rows = run.ledger.steps_of(run.run)
    steps = tuple(
        {"type": step.type, "status": row["status"], "result": row["result"]}
        for step, row in zip(run.plan.steps, rows, strict=True)
    )
    return Outcome(run.run, run.plan.job, run.plan.purpose, "completed", steps, seconds, run.dry)


def no_progress(_number: int, _step: Any, _parts: list[Partition]) -> None:
    return None


def _dry_run(
    context: Context,
    plan: Plan,
    sample: int | None,
    progress: Progress | None,
    stop: threading.Event | None,
    say: Callable[[str], None],
) -> Outcome:
    """Walk the whole plan over stores that discard writes, with a ledger in memory. Nothing is left behind."""
    with context.ledger(reading=True) as kept:
        _refuse_stale(context, kept, plan)
    began = time.monotonic()
    with Sweeper.temporary() as ledger, World(context.settings, "dry", plan.inline) as world:
        lease = ledger.acquire(["dry-run"], "dry-run", UNLIMITED)
        ledger.start_run(lease, plan, plan.dumps())
        run = Run(
            "dry-run", plan, ledger, lease, world, context.states, context.settings.workspace.limits,
            stop or threading.Event(), say, sample=sample, hands=context.settings.workspace.limits.workers,
        )  # fmt: skip
        Embedded(run, progress or no_progress).execute()
        return _outcome(run, time.monotonic() - began)
