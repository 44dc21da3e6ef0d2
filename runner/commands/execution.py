"""One run under its lease: who holds what meanwhile, how it is carried out, and what is recorded and told when it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from runner import crash, expiry, logs, planner
from runner.actors import Coordinator, Distributed, Embedded, Progress
from runner.commands.context import Context
from runner.errors import (
    Cancelled,
    HandedOver,
    Interrupted,
    LeaseLost,
    LockHeld,
    NoSlot,
    Transient,
    VecrunError,
    VerificationFailed,
)
from runner.executor import Run
from runner.executor.flow import retried
from runner.ledger import Ledger, Partition
from runner.lock import SLOT, Keeper, Lease, collection, now
from runner.notify import Event, notify
from runner.plan import (
    Change,
    CopyPoints,
    MapRows,
    Observed,
    OfDatabase,
    Place,
    Plan,
    ReplaceVectors,
    SetServing,
    loads,
)
from runner.records import LedgerGone
from runner.settings import duration_seconds
from runner.state import Applied, State
from runner.sweeper import Sweeper
from runner.vectors import Used, Vectors
from runner.world import World

#: Types of the steps that change documents.
DOCUMENT_STEPS = ("delete_documents", "edit_documents", "reprocess_documents")


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
    used: Used = field(default_factory=Used)  # what embedding has cost
    failed: int = 0  # items that were left out, or that failed

    @property
    def points(self) -> int:
        """Points copied, looked at in place, or of the documents that were changed."""
        moving = {
            "copy_points": "done",
            "replace_vectors": "done",
            "back_up_points": "done",
            **dict.fromkeys(DOCUMENT_STEPS, "points"),
        }
        return sum((item["result"] or {}).get(moving.get(item["type"], ""), 0) for item in self.steps)


@dataclass(frozen=True)
class Held:
    """A lease and its keeper; what `ended` the run under it (None: nothing did, it completed) is told afterwards."""

    lease: Lease
    keeper: Keeper
    ended: list[BaseException | None] = field(default_factory=list)


@contextmanager
def leased(
    context: Context, ledger: Ledger, plan: Plan, run: str, stop: threading.Event, *, wait: float | None,
    say: Callable[[str], None], slot: bool = True,
) -> Iterator[Held]:  # fmt: skip
    """Hold the job, every collection that is written, a place at those that are read, and a slot, for one run; `stop`
    is set when that can no longer be."""
    limits = context.settings.workspace.limits
    written, read = plan.places
    names = {f"job:{plan.job}", *map(collection, written)}
    shared = dict.fromkeys(map(collection, read), limits.runs_per_source) | ({SLOT: limits.runs} if slot else {})
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
    ended: list[BaseException | None] = []
    try:
        with Keeper(ledger, lease, limits.lease_seconds, stop) as keeper:
            yield Held(lease, keeper, ended)
    finally:
        with suppress(VecrunError):
            ledger.release(lease)
        for error in ended:
            _tell(context, ledger, run, error, say)


def _tell(context: Context, ledger: Ledger, run: str, error: BaseException | None, say: Callable[[str], None]) -> None:
    """Send the notifications of a run that ended or waits. What does not arrive is in the run's log, and changes nothing."""
    if not context.settings.workspace.notifications:
        return
    with suppress(VecrunError):
        row = ledger.run(run)
        plan = loads(row["plan"], f"run {run}")
        copied, rows = None, ledger.steps_of(run)
        for number, step in enumerate(plan.steps):
            if isinstance(step, CopyPoints) or (isinstance(step, ReplaceVectors) and step.phase == "before"):
                done = sum(part.done for part in ledger.partitions_of(run, number))
                copied = (copied or 0) + max(done, (rows[number]["result"] or {}).get("done", 0))
            elif isinstance(step, Change):
                copied = (copied or 0) + ((rows[number]["result"] or {}).get("points", 0))
        failed = Vectors(ledger).count_failed(plan.of_run if plan.purpose == "retry" and plan.of_run else run)
        event = Event.of(row, context.settings.environment, copied, error, failed)
        for problem in notify(context.settings, event):
            ledger.write_log(run, "warning", problem)
            say(problem)


def prepared(
    context: Context, ledger: Sweeper, lease: Lease, keeper: Keeper | None, plan: Plan, stop: threading.Event,
    say: Callable[[str], None],
) -> Run:  # fmt: skip
    return Run(
        lease.run, plan, ledger, lease, World(context.settings, "write", plan.inline), context.states,
        context.settings.workspace.limits, stop, say, keeper=keeper,
    )  # fmt: skip


def execute(
    context: Context, ledger: Sweeper, held: Held, plan: Plan, progress: Progress | None, stop: threading.Event,
    say: Callable[[str], None], *, hand_over: bool = False,
) -> Outcome:  # fmt: skip
    began = time.monotonic()
    run = prepared(context, ledger, held.lease, held.keeper, plan, stop, say)
    try:
        with _measured(context, ledger, say), logs.bound(run=run.run, job=plan.job):
            _coordinator(context, run, progress or no_progress, hand_over=hand_over).execute()
            retried(lambda: _record(context, run), run.limits, stop)  # a store may just be restarting
    except BaseException as exc:
        if record_failure(run, exc):
            held.ended.append(exc)
        raise
    finally:
        run.close()
    held.ended.append(None)
    return outcome(run, time.monotonic() - began)


@contextmanager
def _measured(context: Context, ledger: Sweeper, say: Callable[[str], None]) -> Iterator[None]:
    """Metrics of a run that works by itself; those of workers come from `vecrun worker`."""
    listen = context.settings.workspace.metrics.listen
    with ExitStack() as stack:
        if listen and not context.settings.has_broker:
            from runner.metrics import serve

            try:
                stack.callback(serve(listen, ledger).close)
            except VecrunError as exc:  # another run of this host has the port
                say(f"No metrics of this run: {exc}")
        yield


def _coordinator(context: Context, run: Run, progress: Progress, *, hand_over: bool) -> Coordinator:
    broker = context.broker(run.ledger)
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
    if plan.purpose != "retry":  # which changes nothing of what is live, and is undone with the run it belongs to
        new = _rolled_back(state, plan, run) if plan.purpose == "rollback" else _applied(state, plan, run)
        context.states.save(new, ledger.guarded(lease))
    crash.point("state", "after")
    if plan.of_run and plan.purpose == "rollback":
        ledger.mark_run(plan.of_run, status="rolled_back", finished=now())
        crash.point("state", "marked")
    if duration_seconds(context.settings.workspace.vectors.keep) == 0 and not expiry.embedding(ledger, lease.run):
        run.vectors.expire(datetime.now(UTC))
    ledger.write_log(lease.run, "info", "completed")
    ledger.set_run(lease, status="completed", finished=now(), error=None)
    crash.point("state", "recorded")


def _applied(state: State, plan: Plan, run: Run) -> State:
    world = planner.observe(run.world, plan.world, whole=True)
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
    before = planner.applied_plan(new, run.ledger)
    if before is None:  # of another ledger: what its record says, and the pointers that were put back
        return new.model_copy(
            update={"status": "applied", "spec_digest": kept[-1].spec_digest, "live": _live(plan), "world": ()}
        )
    world: tuple[Observed, ...] = ()
    with suppress(VecrunError):  # a store of that time may be gone; then there is nothing to compare with later
        world = planner.observe(run.world, before.world, whole=True)
    return new.model_copy(
        update={"status": "applied", "spec_digest": kept[-1].spec_digest, "live": _live(before), "world": world}
    )


def _live(plan: Plan) -> dict[str, Place]:
    """Which store and collection serve under which name after a plan."""
    return {step.name: step.after for step in plan.steps if isinstance(step, SetServing) and step.after}


def record_failure(run: Run, exc: BaseException) -> bool:
    """The run's status after an error; whether it was written. After a lost lease it is not: somebody else owns the run."""
    if isinstance(exc, LeaseLost | HandedOver | LedgerGone) or run.dry:
        return False
    if run.keeper is not None and isinstance(run.keeper.error, LedgerGone):  # whoever comes next goes on with it
        return False
    status = "failed"
    if isinstance(exc, Interrupted | KeyboardInterrupt):
        status = "cancelled" if isinstance(exc, Cancelled) else "paused"
    with suppress(VecrunError):
        if status == "paused" and run.ledger.wish(run.run)[0] == "cancel":  # asked for while it was being stopped
            status = "cancelled"
        for number, row in enumerate(run.ledger.steps_of(run.run)):
            if row["status"] == "running" and isinstance(exc, VerificationFailed):
                run.ledger.set_step(run.lease, number, "failed")
        given_up = status == "failed" and _did_nothing(run, exc)
        if given_up and isinstance(exc, VecrunError):
            said = exc.hint if run.plan.purpose == "rollback" or "vecrun resume" not in exc.hint else ""
            again = "" if run.plan.purpose == "rollback" else ". When that is mended, apply the job again"
            exc.hint = f"{said}\nNothing was changed, and job {run.plan.job} is as it was{again}".strip()
        elif isinstance(exc, VecrunError) and status == "failed" and "vecrun " not in exc.hint:
            exc.hint = f"{exc.hint}\n{_way_on(run.plan)}".strip()
        ended: dict[str, Any] = {"status": "rolled_back", "finished": now()} if given_up else {"status": status}
        run.ledger.set_run(
            run.lease, error=str(exc) if status == "failed" else None, control=None, problem=None, **ended
        )
        run.ledger.write_log(run.run, "error" if status == "failed" else "info", f"{status}: {exc}")
        return True
    return False


def _way_on(plan: Plan) -> str:
    """What can be done with a run that failed in the middle."""
    relational = any(isinstance(step, OfDatabase) for step in plan.steps)
    said = f"When that is mended: vecrun resume {plan.job}"
    if plan.purpose == "rollback":
        return f"{said}. The way back is that of the applied run, whatever the file says now" if relational else said
    if relational:
        return f"{said}. The run keeps its plan: after a change of the file, vecrun rollback {plan.job}, then apply"
    return f"{said}. Or undo it: vecrun rollback {plan.job}"


def _did_nothing(run: Run, exc: BaseException) -> bool:
    """Whether a run was refused before it changed anything: it is over then, and keeps nobody from going on. Of other kinds than
    migrations of a relational database this is known of a rollback only."""
    if isinstance(exc, Transient) or not isinstance(exc, VecrunError):
        return False
    for number, row in enumerate(run.ledger.steps_of(run.run)):
        if row["status"] == "running" and run.plan.steps[number].whole:
            run.ledger.set_step(run.lease, number, "pending")
    begun = any(row["status"] != "pending" for row in run.ledger.steps_of(run.run))
    if run.plan.purpose == "rollback":
        return bool(run.plan.steps) and not begun
    return run.plan.purpose == "apply" and _left_no_record(run)


def _left_no_record(run: Run) -> bool:
    """Whether the steps of a plan are all in relational databases, and none of them is recorded there by this run."""
    steps = [step for step in run.plan.steps if isinstance(step, OfDatabase)]
    if not steps or len(steps) < len(run.plan.steps):
        return False
    from runner.relational import record

    for connection in dict.fromkeys(step.connection for step in steps):
        found = record.read(run.world.relational(connection), run.plan.job)
        ours = found.claim is not None and found.claim.open and found.claim.run == run.run
        if ours or any(entry.run == run.run for entry in found.entries):
            return False
    return True


def outcome(run: Run, seconds: float) -> Outcome:
    rows = run.ledger.steps_of(run.run)
    steps = tuple(
        {"type": step.type, "status": row["status"], "result": row["result"]}
        for step, row in zip(run.plan.steps, rows, strict=True)
    )
    of_run = run.plan.of_run if run.plan.purpose == "retry" else None
    failed = run.vectors.count_failed(of_run or run.run)
    # rows that the plan has shown as left out are no surprise
    failed = max(0, failed - sum(step.left_out for step in run.plan.steps if isinstance(step, MapRows)))
    if run.dry:  # what it found is not recorded for good
        failed = sum((item["result"] or {}).get("failed", 0) for item in steps if item["type"] in DOCUMENT_STEPS)
    return Outcome(
        run.run, run.plan.job, run.plan.purpose, "completed", steps, seconds, run.dry, run.vectors.used(run.run),
        failed,
    )  # fmt: skip


def no_progress(_number: int, _step: Any, _parts: list[Partition]) -> None:
    return None


def nobody(_message: str) -> None:
    return None
