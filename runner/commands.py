"""One function a verb: the Python API. The command line and later the HTTP API call these and nothing else.

Functions return report models; `runner.report` turns them into text, Markdown or JSON.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from runner import planner
from runner.errors import (
    Diagnostic,
    Interrupted,
    InvalidFile,
    LeaseLost,
    NotFound,
    PlanRefused,
    VecrunError,
    VerificationFailed,
)
from runner.kinds import spec_models
from runner.ledger import Lease, Ledger, now
from runner.plan import CopyPoints, CreateCollection, Observed, Place, Plan, SetServing, VerifyPoints, loads
from runner.settings import Settings, duration_seconds, find_root
from runner.settings import load as load_settings
from runner.spec import Job, digest, load_job
from runner.state import Applied, State, StateDirectory
from runner.store import Health
from runner.world import World, connection_model

if TYPE_CHECKING:
    from runner.actors import Progress
    from runner.ledger import Partition


@dataclass(frozen=True)
class Context:
    """What every verb works on: a workspace in one environment, and its variables."""

    settings: Settings
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def states(self) -> StateDirectory:
        return StateDirectory(self.settings.state_directory)

    @contextmanager
    def ledger(self) -> Any:
        """The ledger, open for one verb."""
        ledger = Ledger(self.settings.ledger_url)
        try:
            yield ledger
        finally:
            ledger.close()


def open_context(
    workspace: Path | None = None, environment: str = "", variables: Mapping[str, Any] | None = None
) -> Context:
    """Find and check the workspace at or above `workspace` (default: the current folder)."""
    root = find_root((workspace or Path.cwd()).resolve())
    settings = load_settings(root, environment, connection_model)
    return Context(settings, settings.variables | dict(variables or {}))


def load(context: Context, path: Path) -> Job:
    """Read and check one job file."""
    return load_job(path, spec_models(), context.variables)


# -- validate ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Validation:
    """What was checked and every problem found."""

    files: tuple[str, ...]
    problems: tuple[Diagnostic, ...]


def validate(context: Context, paths: Iterable[Path]) -> Validation:
    """Check job files (folders: all *.yaml and *.yml below) offline, and that the connections they name exist."""
    from runner.kinds import kind_module

    files = list(_job_files(paths))
    problems: list[Diagnostic] = []
    names: dict[str, Path] = {}
    for path in files:
        try:
            job = load(context, path)
        except InvalidFile as exc:
            problems += exc.diagnostics
            continue
        if job.name in names:
            message = f"job name {job.name} is used by {names[job.name]} as well"
            problems.append(job.document.diagnostic(("metadata", "name"), message))
        names.setdefault(job.name, path)
        named, inline = kind_module(job.kind).connections(job.spec)
        for name in named:
            try:
                context.settings.connection(name)
            except NotFound as exc:
                at = next((key for key, value in _strings(job.document.data) if value == name), ("spec",))
                problems.append(job.document.diagnostic(at, exc.detail, exc.hint))
        for role, raw in inline.items():
            from runner.spec import check_model

            try:
                checked = check_model(connection_model(str(raw["type"])), raw, job.document, ("spec", role.strip("()")))
                problems += checked if isinstance(checked, list) else []
            except NotFound as exc:
                problems.append(job.document.diagnostic(("spec", role.strip("()"), "type"), exc.detail))
    return Validation(tuple(str(path) for path in files), tuple(problems))


def _job_files(paths: Iterable[Path]) -> Iterable[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(item for item in path.rglob("*") if item.suffix in (".yaml", ".yml"))
        elif path.exists():
            yield path
        else:
            raise NotFound("No such file", str(path))


def _strings(data: Any, at: tuple[str | int, ...] = ()) -> Iterable[tuple[tuple[str | int, ...], str]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _strings(value, (*at, key))
    elif isinstance(data, list):
        for number, value in enumerate(data):
            yield from _strings(value, (*at, number))
    elif isinstance(data, str):
        yield at, data


# -- plan ----------------------------------------------------------------------------------------------------


def plan(context: Context, path: Path, *, unpin: bool = False) -> Plan:
    """The plan of a job file. Changes nothing anywhere."""
    job = load(context, path)
    with context.ledger() as ledger:
        return planner.build(job, context.settings, ledger, context.states, unpin=unpin)


def plan_rollback(context: Context, job: str, *, discard_new_points: bool = False) -> Plan:
    """The plan that undoes a job's newest run."""
    with context.ledger() as ledger:
        return planner.rollback(
            job_name(context, job), context.settings, ledger, context.states, discard_new_points=discard_new_points
        )


def job_name(context: Context, job: str) -> str:
    """A job given by name or by its file."""
    path = Path(job)
    return load(context, path).name if path.suffix in (".yaml", ".yml") and path.exists() else job


# -- apply ---------------------------------------------------------------------------------------------------


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
    context: Context, plan: Plan, *, dry_run: bool = False, progress: Progress | None = None,
    stop: threading.Event | None = None, say: Callable[[str], None] = lambda _message: None,
) -> Outcome:  # fmt: skip
    """Carry out a plan that was made before. Refuses one that is stale, altered or was applied (PlanRefused)."""
    refuse_blocked(plan)
    if dry_run:
        return _dry_run(context, plan, progress, stop, say)
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
            return _resume(context, ledger, unfinished, progress, stop, say)
        if unfinished and not (plan.purpose == "rollback" and plan.of_run == unfinished["run"]):
            planner.refuse_unfinished(ledger, plan.job)
        run = f"r-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:6]}"
        with _leased(context, ledger, plan, run) as lease:
            _refuse_stale(context, plan)
            ledger.start_run(lease, plan, plan.dumps())
            ledger.write_log(run, "info", f"started: {plan.purpose} of job {plan.job}", plan=plan.plan_digest)
            return _execute(context, ledger, lease, plan, progress, stop, say)


def resume(
    context: Context, job: str, *, progress: Progress | None = None, stop: threading.Event | None = None,
    say: Callable[[str], None] = lambda _message: None,
) -> Outcome:  # fmt: skip
    """Go on with the unfinished run of a job, from its checkpoints. NotFound when there is none."""
    with context.ledger() as ledger:
        name = _job_of(context, ledger, job)
        row = ledger.unfinished(name)
        if row is None:
            raise NotFound("Nothing to resume", f"job {name} has no unfinished run", f"vecrun status {name}")
        return _resume(context, ledger, row, progress, stop, say)


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


def refuse_blocked(plan: Plan) -> None:
    """VecrunError when the plan has findings that nobody accepted."""
    if plan.blocked:
        lines = [f"{item.code} {item.where}: {item.message}" for item in plan.notices if item.blocking]
        hints = sorted({item.code for item in plan.notices if item.blocking and item.code.startswith(("VL", "VD1"))})
        hint = "Mend them in the spec or in the stores, and plan again"
        if hints:
            hint += f"\nWhat is wanted can be accepted in the spec: accept: [{{code: {hints[0]}, reason: why}}]"
        raise VecrunError("The plan cannot be applied as it is", "\n".join(lines), hint)


def _resume(
    context: Context, ledger: Ledger, row: dict[str, Any], progress: Progress | None, stop: threading.Event | None,
    say: Callable[[str], None],
) -> Outcome:  # fmt: skip
    plan = loads(row["plan"], f"run {row['run']}")
    with _leased(context, ledger, plan, row["run"]) as lease:
        _refuse_moved_connections(context, plan)
        ledger.set_run(lease, status="running", control=None, error=None)
        ledger.write_log(row["run"], "info", "resumed")
        for number, step in enumerate(ledger.steps_of(row["run"])):
            if isinstance(plan.steps[number], VerifyPoints) and step["status"] == "failed":
                ledger.restart_step(lease, number)
        return _execute(context, ledger, lease, plan, progress, stop, say)


@contextmanager
def _leased(context: Context, ledger: Ledger, plan: Plan, run: str) -> Any:
    """Hold the job and every collection that is written, for one run."""
    names = {f"job:{plan.job}"}
    for step in plan.steps:
        target = getattr(step, "target", None)
        if isinstance(target, Place) and not isinstance(step, VerifyPoints):
            names.add(f"collection:{target}")
    lease = ledger.acquire(sorted(names), run, context.settings.workspace.limits.lease_seconds)
    try:
        yield lease
    finally:
        with suppress(VecrunError):
            ledger.release(lease)


def _refuse_moved_connections(context: Context, plan: Plan) -> None:
    with World(context.settings, "read", plan.inline) as world:
        for name, wanted in plan.connections.items():
            if world.digest(name) != wanted:
                raise PlanRefused(
                    "The plan is stale",
                    f"connection {name} points somewhere else in {context.settings.document.file} than when the plan was made",
                    "Plan again, or put the connection back",
                )


def _refuse_stale(context: Context, plan: Plan) -> None:
    """PlanRefused when the state or anything the plan touches moved since; says what."""
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
            if isinstance(step, SetServing) and serving.get(step.name) != step.before:
                moved.append(f"the serving pointer {step.name} is {serving.get(step.name)}, not {step.before}")
    if moved:
        raise PlanRefused("The plan is stale", "\n".join(moved), "Plan again, and look at what changed")


def _execute(
    context: Context, ledger: Ledger, lease: Lease, plan: Plan, progress: Progress | None, stop: threading.Event | None,
    say: Callable[[str], None],
) -> Outcome:  # fmt: skip
    from runner.actors import Embedded
    from runner.executor import Run

    began = time.monotonic()
    run = Run(
        lease.run, plan, ledger, lease, World(context.settings, "write", plan.inline), context.states,
        context.settings.workspace.limits, stop or threading.Event(), say,
    )  # fmt: skip
    try:
        Embedded(run, progress or _no_progress).execute()
        _record(context, run)
    except BaseException as exc:
        _record_failure(run, exc)
        raise
    finally:
        run.world.close()
    return _outcome(run, time.monotonic() - began)


def _record(context: Context, run: Run) -> None:
    """After the last step: the state, then the ledger's verdict. Harmless when repeated after a crash in between."""
    from runner import crash

    plan, ledger, lease = run.plan, run.ledger, run.lease
    state = context.states.load(plan.job)
    crash.point("state", "before")
    new = _rolled_back(state, plan) if plan.purpose == "rollback" else _applied(state, plan, run)
    context.states.save(new, lambda: ledger.guard(lease))
    crash.point("state", "after")
    if plan.of_run:
        ledger.mark_run(plan.of_run, status="rolled_back", finished=now())
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
        run=run.run, plan_digest=plan.plan_digest, spec_digest=plan.spec_digest, finished=finished.isoformat(timespec="seconds"),
        expires=(finished + timedelta(seconds=duration_seconds(plan.retention))).isoformat(timespec="seconds"),
    )  # fmt: skip
    live = {step.name: step.after for step in plan.steps if isinstance(step, SetServing) and step.after}
    return state.model_copy(
        update={
            "kind": plan.kind, "spec_digest": plan.spec_digest, "status": "applied", "live": live, "world": world,
            "applied": (*state.applied, record), "pinned": None,
        }
    )  # fmt: skip


def _rolled_back(state: State, plan: Plan) -> State:
    live = {step.name: step.after for step in plan.steps if isinstance(step, SetServing) and step.after}
    return state.model_copy(
        update={
            "kind": plan.kind, "status": "rolled_back", "pinned": plan.spec_digest, "spec_digest": None, "live": live, "world": (),
            "applied": tuple(item for item in state.applied if item.run != plan.of_run),
        }
    )  # fmt: skip


def _record_failure(run: Run, exc: BaseException) -> None:
    """The run's status after an error. A lost lease writes nothing: somebody else owns the run now."""
    if isinstance(exc, LeaseLost) or run.dry:
        return
    status = "failed"
    if isinstance(exc, Interrupted | KeyboardInterrupt):
        status = "cancelled" if "Cancelled" in str(exc) else "paused"
    with suppress(VecrunError):
        for number, row in enumerate(run.ledger.steps_of(run.run)):
            if row["status"] == "running" and isinstance(exc, VerificationFailed):
                run.ledger.set_step(run.lease, number, "failed")
        run.ledger.write_log(run.run, "error" if status == "failed" else "info", f"{status}: {exc}")
        run.ledger.set_run(run.lease, status=status, error=str(exc) if status == "failed" else None, control=None)


def _outcome(run: Run, seconds: float) -> Outcome:
    rows = run.ledger.steps_of(run.run)
    steps = tuple(
        {"type": step.type, "status": row["status"], "result": row["result"]}
        for step, row in zip(run.plan.steps, rows, strict=True)
    )
    return Outcome(run.run, run.plan.job, run.plan.purpose, "completed", steps, seconds, run.dry)


def _no_progress(_number: int, _step: Any, _parts: list[Partition]) -> None:
    return None


def _dry_run(
    context: Context, plan: Plan, progress: Progress | None, stop: threading.Event | None, say: Callable[[str], None]
) -> Outcome:
    """Walk the whole plan over stores that discard writes, with a ledger in memory. Nothing is left behind."""
    from runner.actors import Embedded
    from runner.executor import Run

    _refuse_stale(context, plan)
    began = time.monotonic()
    with Ledger.temporary() as ledger, World(context.settings, "dry", plan.inline) as world:
        lease = ledger.acquire(["dry-run"], "dry-run", 3600)
        ledger.start_run(lease, plan, plan.dumps())
        run = Run(
            "dry-run", plan, ledger, lease, world, context.states, context.settings.workspace.limits,
            stop or threading.Event(), say,
        )  # fmt: skip
        Embedded(run, progress or _no_progress).execute()
        return _outcome(run, time.monotonic() - began)


# -- verify, drift, status -----------------------------------------------------------------------------------


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
    """Compare source and target of an applied job again. Writes nothing but a line in the run's log."""
    from runner.actors import Embedded
    from runner.executor import Run

    with context.ledger() as ledger:
        name = _job_of(context, ledger, job)
        state = context.states.load(name)
        if not state.applied:
            raise NotFound("Nothing to verify", f"job {name} has no applied run", f"vecrun status {name}")
        plan = loads(ledger.run(state.applied[-1].run)["plan"], "the applied plan")
        changes = {key: value for key, value in (("mode", mode), ("sample", sample)) if value is not None}
        steps = [step.model_copy(update=changes) for step in plan.steps if isinstance(step, VerifyPoints)]
        results: list[dict[str, Any]] = []
        with World(context.settings, "read", plan.inline) as world:
            for step in steps:
                with Ledger.temporary() as private:  # progress of this comparison: gone afterwards
                    lease = private.acquire(["verify"], "verify", 3600)
                    one = plan.model_copy(update={"steps": (step,)})
                    private.start_run(lease, one, one.dumps())
                    run = Run(
                        "verify", one, private, lease, world, context.states, context.settings.workspace.limits,
                        stop or threading.Event(),
                    )  # fmt: skip
                    try:
                        Embedded(run, progress or _no_progress).execute()
                        result = private.steps_of("verify")[0]["result"]
                    except VerificationFailed as exc:
                        result = {"mode": step.mode, "differences": exc.detail.split("\n")}
                results.append({"from": str(step.source), "to": str(step.target)} | result)
        verified = Verified(name, not any(item["differences"] for item in results), tuple(results))
        text = "verified: equal" if verified.equal else "verified: source and target differ"
        ledger.write_log(state.applied[-1].run, "info" if verified.equal else "error", text, collections=results)
        return verified


def drift(context: Context, jobs: Iterable[str] = ()) -> dict[str, list[str]]:
    """What moved since each job was applied: job -> sentences."""
    found = {}
    with context.ledger() as ledger:
        names = [_job_of(context, ledger, job) for job in jobs] or context.states.jobs()
        for name in names:
            state = context.states.load(name)
            if state.status != "applied":
                found[name] = []
                continue
            plan = loads(ledger.run(state.applied[-1].run)["plan"], "the applied plan")
            with World(context.settings, "read", plan.inline) as world:
                found[name] = planner.compare(state.world, planner.observe(world, state.world))
            serving = context.states.serving().pointers
            for pointer, place in state.live.items():
                if serving.get(pointer) != place:
                    found[name].append(f"serving pointer {pointer} is {serving.get(pointer)}, not {place}")
    return found


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands. Counts are of the step at work, or of all points copied when none is."""

    run: dict[str, Any]
    plan: Plan
    steps: tuple[dict[str, Any], ...]
    done: int
    total: int
    seconds_left: float | None


def status(context: Context, name: str) -> RunStatus:
    """Status of a run, or of the newest run of a job. NotFound."""
    with context.ledger() as ledger:
        row = _find_run(context, ledger, name)
        plan = loads(row["plan"], f"run {row['run']}")
        rows = ledger.steps_of(row["run"])
        steps, done, left = [], 0, None
        for number, (step, state) in enumerate(zip(plan.steps, rows, strict=True)):
            item = {"type": step.type, "status": state["status"], "result": state["result"], "step": step}
            if isinstance(step, CopyPoints | VerifyPoints):
                parts = ledger.partitions_of(row["run"], number)
                item["done"], item["points"] = sum(part.done for part in parts), step.points
                item["partitions"] = f"{sum(part.status == 'done' for part in parts)}/{len(parts)}"
                if isinstance(step, CopyPoints):
                    done += item["done"]
                if state["status"] == "running" and state["started"] and item["done"] and row["status"] == "running":
                    passed = (datetime.now(UTC) - datetime.fromisoformat(state["started"])).total_seconds()
                    left = max(step.points - item["done"], 0) * passed / item["done"]
            steps.append(item)
        row.pop("plan")
        return RunStatus(row, plan, tuple(steps), done, plan.points, left)


def runs(context: Context, job: str | None = None) -> list[dict[str, Any]]:
    """History: all runs, newest first."""
    with context.ledger() as ledger:
        found: list[dict[str, Any]] = ledger.runs_of(_job_of(context, ledger, job) if job else None)
        return found


def logs(context: Context, name: str, after: int = 0) -> list[dict[str, Any]]:
    """Log of a run, or of a job's newest run."""
    with context.ledger() as ledger:
        found: list[dict[str, Any]] = ledger.read_log(_find_run(context, ledger, name)["run"], after)
        return found


def control(context: Context, name: str, wish: str) -> str:
    """Ask a running run to pause or cancel. Returns the run. An unfinished run nobody works on is marked at once."""
    with context.ledger() as ledger:
        row = _find_run(context, ledger, name)
        if row["status"] in ("completed", "rolled_back"):
            raise VecrunError("The run has ended", f"run {row['run']} is {row['status']}", "vecrun runs")
        held = {item["run"] for item in ledger.holders() if item["expires"] > time.time()}
        if row["run"] in held:
            ledger.ask(row["run"], wish)
        else:
            ledger.mark_run(row["run"], status="cancelled" if wish == "cancel" else "paused")
        return str(row["run"])


def _find_run(context: Context, ledger: Ledger, name: str) -> dict[str, Any]:
    if name.startswith("r-"):
        with suppress(NotFound):
            return ledger.run(name)
    job = _job_of(context, ledger, name)
    for row in ledger.runs_of(job):
        return ledger.run(row["run"])
    raise NotFound("No run", f"job {job} was never applied", "vecrun runs")


def _job_of(context: Context, ledger: Ledger, name: str) -> str:
    """A job by name or file; NotFound when neither a run nor a state of it exists."""
    job = job_name(context, name)
    if not ledger.runs_of(job) and job not in context.states.jobs():
        from runner.spec import suggest

        known = sorted({row["job"] for row in ledger.runs_of()} | set(context.states.jobs()))
        raise NotFound("No such job", f"{name!r} has no runs and no state", suggest(name, known))
    return job


# -- connections, locks, state -------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConnectionTest:
    """Answer of one connection, or its error."""

    name: str
    type: str
    health: Health | None
    error: VecrunError | None
    collections: int = 0


def test_connections(context: Context, names: Iterable[str] = ()) -> list[ConnectionTest]:
    """Open each connection, ask for its version, rights and latency."""
    settings = context.settings
    wanted = list(names) or sorted(
        set(settings.workspace.connections)
        | set(getattr(settings.workspace.environments.get(settings.environment), "connections", {}))
    )
    found = []
    for name in wanted:
        kind = str(settings.connection(name).get("type"))
        with World(settings, "read") as world:
            try:
                if kind == "sql":
                    began = time.monotonic()
                    database = world.database(name)
                    with database.transaction() as connection:
                        version = ".".join(str(part) for part in connection.dialect.server_version_info or ())
                    health = Health(
                        f"{database.engine.dialect.name} {version}".strip(), (time.monotonic() - began) * 1000
                    )
                    found.append(ConnectionTest(name, kind, health, None))
                else:
                    store = world.store(name)
                    found.append(ConnectionTest(name, kind, store.health(), None, len(store.collections())))
            except VecrunError as exc:
                found.append(ConnectionTest(name, kind, None, exc))
    return found


def locks(context: Context) -> list[dict[str, Any]]:
    """Leases that are held."""
    with context.ledger() as ledger:
        clock = time.time()
        return [item | {"expired": item["expires"] < clock} for item in ledger.holders()]


def release_lock(context: Context, name: str, token: int) -> None:
    """An operator frees a lock, if it still is the one that was looked at."""
    with context.ledger() as ledger:
        if not ledger.force_release(name, token):
            raise NotFound("No such lock", f"{name} with id {token} is not held", "vecrun lock list")


def state(context: Context, job: str) -> State:
    """The state document of a job. NotFound when it has none."""
    if job not in context.states.jobs():
        raise NotFound("No state", f"job {job}", "vecrun state list")
    return context.states.load(job)
