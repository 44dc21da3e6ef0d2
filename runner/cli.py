"""The command line: parse arguments, call `commands`, print what `report` makes of the answer. No decisions.

Results go to stdout, progress and questions to stderr. Store clients are imported when a connection is opened.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from runner import __version__
from runner.errors import NotFound, VecrunError, redact

if TYPE_CHECKING:
    from runner.commands import Context
    from runner.ledger import Partition
    from runner.plan import Plan

EPILOG = (
    "Exit codes: 0 done or nothing to do, 1 error, 2 changes pending (plan --detailed-exitcode, drift), "
    "3 finished with failed items, 10 not found, 11 lock held, 12 plan stale or altered, 13 verification failed, "
    "14 validation failed, 130 interrupted (resumable). Any other code is a failure."
)


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="vecrun")
@click.option(
    "-w",
    "--workspace",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder with vecrun.yaml [default: here or above].",
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(context: click.Context, workspace: Path | None, debug: bool) -> None:
    """Plan and apply for vector databases."""
    context.obj = {"workspace": workspace, "debug": debug}


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options every command has: --json, --env, --var, --var-file."""

    @click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
    @click.option("--env", "environment", default="", help="Environment of vecrun.yaml.", envvar="VECRUN_ENV")
    @click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="Variable for the job's template.")
    @click.option(
        "--var-file", "variable_files", multiple=True, type=click.Path(path_type=Path), help="YAML file with variables."
    )
    @functools.wraps(command)
    @click.pass_context
    def wrapped(
        context: click.Context,
        /,
        as_json: bool,
        environment: str,
        variables: tuple[str, ...],
        variable_files: tuple[Path, ...],
        **rest: Any,
    ) -> None:
        try:
            from runner import commands

            given = _variables(variables, variable_files)
            command(commands.open_context(context.obj["workspace"], environment, given), as_json=as_json, **rest)
        except VecrunError as exc:
            _fail(exc, as_json=as_json, debug=context.obj["debug"])

    return wrapped


def _fail(exc: VecrunError, *, as_json: bool = False, debug: bool = False) -> NoReturn:
    """Tell an expected error and leave with its exit code."""
    if as_json:
        from runner.report import to_json

        click.echo(to_json("error", exc))
    else:
        click.echo(_error_text(exc), err=True, color=_colour())
    if debug:
        click.echo(redact("".join(traceback.format_exception(exc))), err=True)
    sys.exit(exc.exit_code)


def _colour() -> bool | None:
    """For click.echo: never with NO_COLOR, else where there is a terminal."""
    return False if os.environ.get("NO_COLOR") else None


def _variables(pairs: tuple[str, ...], files: tuple[Path, ...]) -> dict[str, Any]:
    from runner.errors import Diagnostic, InvalidFile
    from runner.spec import parse, read_text

    found: dict[str, Any] = {}
    for path in files:
        data = parse(read_text(path), str(path)).data
        if not isinstance(data, dict):
            raise InvalidFile([Diagnostic(str(path), 1, "", "a variables file is a mapping")])
        found |= data
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--var {pair}: write NAME=VALUE")
        found[name] = value
    return found


def _error_text(exc: VecrunError) -> str:
    parts = [click.style("Error: ", fg="red", bold=True) + exc.summary]
    parts += [f"  {line}" for line in exc.detail.splitlines()]
    parts += [f"  {line}" for line in exc.hint.splitlines()]
    return "\n".join(parts)


def _style(text: str, colour: str) -> str:
    return click.style(text, bold=True) if colour == "bold" else click.style(text, fg=colour)


def show(text: str) -> None:
    """Print a result; colour only where NO_COLOR and the terminal allow it."""
    click.echo(redact(text), color=_colour())


# -- commands ------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path), default=Path())
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def init(directory: Path, as_json: bool) -> None:
    """Make a workspace with a sample job."""
    from runner import workspace
    from runner.report import to_json

    try:
        made = workspace.create(directory)
    except VecrunError as exc:
        _fail(exc, as_json=as_json)
    if as_json:
        click.echo(to_json("workspace", {"files": [str(path) for path in made]}))
        return
    for path in made:
        show(f"+ {path}")
    show(f"Next: cd {directory} && vecrun validate, then vecrun connections test")


@cli.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@options
def validate(context: Context, paths: tuple[Path, ...], as_json: bool) -> None:
    """Check job files (default: jobs/) and the workspace, offline."""
    from runner import commands
    from runner.report import text, to_json

    result = commands.validate(context, paths or (context.settings.root / "jobs",))
    if as_json:
        click.echo(to_json("validation", result))
    else:
        click.echo(text.validation(result), err=bool(result.problems))
    if result.problems:
        sys.exit(14)


@cli.command()
@click.argument("job", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Save the plan; a .md beside it shows it to people.")
@click.option("--format", "form", type=click.Choice(["text", "markdown", "json"]), default="text", show_default=True)
@click.option("--detailed-exitcode", is_flag=True, help="Exit with 2 when there are changes.")
@click.option("--unpin", is_flag=True, help="Plan again what was rolled back.")
@options
def plan(
    context: Context, job: Path, out: Path | None, form: str, detailed_exitcode: bool, unpin: bool, as_json: bool
) -> None:
    """Show what a job would do. Reads the live stores and changes nothing."""
    from runner import commands
    from runner.report import markdown
    from runner.state import write_atomically

    made = commands.plan(context, job, unpin=unpin)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, made.dumps())
        write_atomically(out.with_suffix(".md"), redact(markdown.plan(made)))
    _show_plan(made, "json" if as_json else form)
    if out is not None and not as_json and form == "text":
        show(f"\nSaved to {out}. Apply exactly this with: vecrun apply {out}")
    if detailed_exitcode and (made.steps or made.drift):
        sys.exit(2)


def _show_plan(made: Plan, form: str) -> None:
    from runner.report import markdown, text, to_json

    match form:
        case "json":
            click.echo(to_json("plan", {"plan": made}))
        case "markdown":
            show(markdown.plan(made).rstrip())
        case _:
            show(text.plan(made, _style))


@cli.command("show")
@click.argument("what")
@click.option("--format", "form", type=click.Choice(["text", "markdown", "json"]), default="text", show_default=True)
@options
def show_(context: Context, what: str, form: str, as_json: bool) -> None:
    """Show a plan file, or the plan of a run."""
    from runner import commands
    from runner import plan as plans

    made = plans.read(Path(what)) if Path(what).exists() else commands.status(context, what).plan
    _show_plan(made, "json" if as_json else form)


@cli.command()
@click.argument("what", type=click.Path(path_type=Path), metavar="PLANFILE|JOB.yaml")
@click.option("--auto-approve", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Read and transform everything, write nothing.")
@click.option("--sample", type=click.IntRange(1), help="With --dry-run: only about so many points of each collection.")
@click.option("--unpin", is_flag=True, help="Apply again what was rolled back.")
@options
def apply(
    context: Context, what: Path, auto_approve: bool, dry_run: bool, sample: int | None, unpin: bool, as_json: bool
) -> None:
    """Carry out a saved plan, or plan a job, ask, and carry it out. Goes on with an unfinished run."""
    from runner import commands
    from runner import plan as plans

    if not what.exists():
        raise NotFound("No such file", str(what))
    if sample is not None and not dry_run:
        raise click.UsageError("--sample belongs to --dry-run")
    if what.suffix == ".json":
        _run(context, plans.read(what), as_json=as_json, dry_run=dry_run, sample=sample)
        return
    job = commands.load(context, what)
    if not dry_run and (row := commands.unfinished_of(context, job)):
        click.echo(f"Going on with run {row['run']} ({row['purpose']}, {row['status']}).", err=True)
        _resume(context, job.name, as_json)
        return
    made = commands.plan(context, what, unpin=unpin)
    if not as_json:
        _show_plan(made, "text")
    if not made.steps:
        if as_json:
            _show_plan(made, "json")
        return
    commands.refuse_blocked(made)
    if not dry_run:
        _approve(auto_approve, as_json)
    _run(context, made, as_json=as_json, dry_run=dry_run, sample=sample)


def _approve(auto: bool, as_json: bool) -> None:
    if auto:
        return
    if as_json or not sys.stdin.isatty():
        raise VecrunError(
            "Nobody is here to approve the plan",
            "",
            "Apply a saved plan file (that is the approval), or pass --auto-approve",
        )
    if click.prompt("Apply this plan? Only yes is accepted", err=True, default="no", show_default=False) != "yes":
        raise VecrunError("Not applied", "the answer was not yes")


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """First Ctrl-C or SIGTERM: finish the batch, checkpoint. Second: stop now."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: Any) -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()
        click.echo("\nStopping after this batch; once more stops at once. Nothing is lost either way.", err=True)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Display:
    """Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, made: Plan, quiet: bool) -> None:
        self.plan, self.quiet, self.bar, self.task = made, quiet, None, None  # type: tuple[Plan, bool, Any, Any]
        self.step, self.began, self.first, self.shown = -1, 0.0, 0, 0.0

    def __call__(self, number: int, step: Any, parts: list[Partition]) -> None:
        if self.quiet:
            return
        from runner.report import phrases

        total, done = getattr(step, "points", 0), sum(part.done for part in parts)
        clock = time.monotonic()
        if number != self.step:
            self.stop()
            self.step, self.began, self.first, self.shown = number, clock, done, clock
            click.echo(f"{number + 1}/{len(self.plan.steps)} {step.action} {phrases.step_line(step)}", err=True)
            if parts and total and sys.stderr.isatty():
                self._start(total)
        rate = (done - self.first) / max(clock - self.began, 1e-6)
        left = phrases.duration((total - done) / rate) if rate > 0 else "…"
        if self.bar is not None:
            self.bar.update(self.task, completed=done, rate=f"{rate:,.0f} points/s", left=left)
        elif parts and clock - self.shown >= 10:
            self.shown = clock
            click.echo(f"    {done:,} of {total:,} points, {rate:,.0f} points/s, {left} left", err=True)

    def _start(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}  {task.fields[left]} left"))
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task("", total=total, rate="", left="…")
        self.bar.start()

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _run(context: Context, made: Plan, *, as_json: bool, dry_run: bool = False, sample: int | None = None) -> None:
    from runner import commands

    display = Display(made, as_json)
    with _stoppable() as stop:
        try:
            done = commands.apply(context, made, dry_run=dry_run, sample=sample, progress=display, stop=stop, say=_say)
        finally:
            display.stop()
    _show_outcome(done, as_json)


def _say(line: str) -> None:
    click.echo(redact(line), err=True)


def _resume(context: Context, job: str, as_json: bool) -> None:
    from runner import commands

    display = Display(commands.status(context, job).plan, as_json)
    with _stoppable() as stop:
        try:
            done = commands.resume(context, job, progress=display, stop=stop, say=_say)
        finally:
            display.stop()
    _show_outcome(done, as_json)


def _show_outcome(done: Any, as_json: bool) -> None:
    from runner.report import text, to_json

    if as_json:
        click.echo(to_json("outcome", done))
    else:
        show(text.outcome(done))


@cli.command()
@click.argument("job")
@options
def resume(context: Context, job: str, as_json: bool) -> None:
    """Go on with the unfinished run of a job."""
    _resume(context, job, as_json)


def _controls(wish: str, doc: str) -> None:
    @cli.command(wish, help=doc)
    @click.argument("job", metavar="JOB|RUN")
    @options
    def command(context: Context, job: str, as_json: bool) -> None:
        from runner import commands
        from runner.report import to_json

        run = commands.control(context, job, wish)
        if as_json:
            click.echo(to_json("control", {"run": run, "asked": wish}))
            return
        status = commands.status(context, run)
        show(
            f"Asked run {run} to {wish}."
            if status.run["status"] == "running"
            else f"Run {run} is {status.run['status']}."
        )
        if wish == "cancel":
            from runner.plan import CreateCollection

            left = [str(step.target) for step in status.plan.steps if isinstance(step, CreateCollection)]
            if left:
                show(f"The source is untouched. Left behind, as far as the run came: {', '.join(left)}")
        show(f"Go on: vecrun resume {status.run['job']}. Undo: vecrun rollback {status.run['job']}")


_controls("pause", "Ask a run to stop after its batch; it can be resumed.")
_controls("cancel", "Ask a run to stop after its batch, to be rolled back.")


@cli.command()
@click.argument("job", metavar="JOB|RUN", required=False)
@click.option("--watch", is_flag=True, help="Show it again every second until it ends.")
@options
def status(context: Context, job: str | None, watch: bool, as_json: bool) -> None:
    """Where a job's newest run stands; without a job, all of them."""
    from runner import commands
    from runner.report import text, to_json

    if job is None:
        newest = {row["job"]: row for row in reversed(commands.runs(context))}
        rows = sorted(newest.values(), key=lambda row: str(row["job"]))
        columns = ["job", "run", "purpose", "status", "started", "finished"]
        click.echo(to_json("statuses", rows)) if as_json else show(text.table(rows, columns, "No job was applied yet."))
        return
    while True:
        found = commands.status(context, job)
        if as_json:
            steps = [{key: value for key, value in item.items() if key != "step"} for item in found.steps]
            body = {
                "run": found.run,
                "steps": steps,
                "done": found.done,
                "total": found.total,
                "seconds_left": found.seconds_left,
            }
            click.echo(to_json("status", body))
        else:
            show(text.status(found))
        if not watch or found.run["status"] != "running":
            return
        time.sleep(1)


@cli.command()
@click.argument("job", required=False)
@options
def runs(context: Context, job: str | None, as_json: bool) -> None:
    """History of runs, newest first."""
    from runner import commands
    from runner.report import text, to_json

    found = commands.runs(context, job)
    columns = ["run", "job", "purpose", "status", "started", "finished", "owner"]
    click.echo(to_json("runs", found)) if as_json else show(text.table(found, columns, "No runs yet."))


@cli.command()
@click.argument("run", metavar="JOB|RUN")
@click.option("-f", "--follow", is_flag=True, help="Wait for more until the run ends.")
@options
def logs(context: Context, run: str, follow: bool, as_json: bool) -> None:
    """The log of a run."""
    from runner import commands
    from runner.report import to_json

    if as_json and not follow:
        click.echo(to_json("logs", commands.logs(context, run)))
        return
    last = 0
    while True:
        ended = not follow or commands.status(context, run).run["status"] != "running"
        for line in commands.logs(context, run, last):
            last = line["id"]
            if as_json:
                click.echo(to_json("log", line))
            else:
                details = " ".join(f"{key}={value}" for key, value in line["details"].items())
                show(f"{line['time']} {line['level']:<5} {line['message']}" + (f" ({details})" if details else ""))
        if ended:
            return
        time.sleep(0.5)


@cli.command()
@click.argument("job")
@click.option("--mode", type=click.Choice(["count", "sample", "full"]), help="Instead of the job's own.")
@click.option("--sample", type=click.IntRange(1), help="Points to compare in mode sample.")
@options
def verify(context: Context, job: str, mode: str | None, sample: int | None, as_json: bool) -> None:
    """Compare source and target of an applied job again."""
    from runner import commands
    from runner.report import text, to_json

    with _stoppable() as stop:
        result = commands.verify(context, job, mode=mode, sample=sample, stop=stop)
    click.echo(to_json("verified", result)) if as_json else show(text.verified(result))
    if not result.equal:
        sys.exit(13)


@cli.command()
@click.argument("job")
@click.option("--auto-approve", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only show what it would do.")
@click.option("--discard-new-points", is_flag=True, help="Also when points were written to the target since.")
@options
def rollback(
    context: Context, job: str, auto_approve: bool, dry_run: bool, discard_new_points: bool, as_json: bool
) -> None:
    """Undo the newest run of a job: shown first, then asked, then applied like any plan."""
    from runner import commands

    made = commands.plan_rollback(context, job, discard_new_points=discard_new_points)
    if not as_json or dry_run:
        _show_plan(made, "json" if as_json else "text")
    if dry_run:
        return
    commands.refuse_blocked(made)
    _approve(auto_approve, as_json)
    _run(context, made, as_json=as_json)


@cli.command()
@click.argument("jobs", nargs=-1)
@options
def drift(context: Context, jobs: tuple[str, ...], as_json: bool) -> None:
    """What moved since jobs were applied; exit code 2 when something did."""
    from runner import commands
    from runner.report import to_json

    found = commands.drift(context, jobs)
    if as_json:
        click.echo(to_json("drift", {"jobs": found}))
    else:
        for job, lines in found.items():
            show(f"{job}: " + ("nothing moved" if not lines else "moved since it was applied"))
            for line in lines:
                show(f"  ~ {line}")
        if not found:
            show("No job was applied yet.")
    if any(found.values()):
        sys.exit(2)


@cli.group()
def connections() -> None:
    """Connections of the workspace."""


@connections.command("test")
@click.argument("names", nargs=-1)
@options
def connections_test(context: Context, names: tuple[str, ...], as_json: bool) -> None:
    """Reachable, version, credentials, rights, latency."""
    from runner import commands
    from runner.report import text, to_json

    found = commands.check_connections(context, names)
    click.echo(to_json("connections", found)) if as_json else show(text.connections(found))
    if any(item.error for item in found):
        sys.exit(1)


@cli.group()
def state() -> None:
    """State documents: what is live, how to roll back."""


@state.command("list")
@options
def state_list(context: Context, as_json: bool) -> None:
    """Jobs with a state."""
    from runner.report import text, to_json

    rows = [context.states.load(name).model_dump(mode="json") for name in context.states.jobs()]
    columns = ["job", "status", "serial", "kind"]
    click.echo(to_json("states", rows)) if as_json else show(text.table(rows, columns, "No job was applied yet."))


@state.command("show")
@click.argument("job")
@options
def state_show(context: Context, job: str, as_json: bool) -> None:
    """A job's state as JSON."""
    from runner import commands
    from runner.report import to_json

    found = commands.state(context, job)
    click.echo(
        to_json("state", found) if as_json else json.dumps(found.model_dump(mode="json"), indent=2, ensure_ascii=False)
    )


@cli.group()
def lock() -> None:
    """Locks on jobs and collections."""


@lock.command("list")
@options
def lock_list(context: Context, as_json: bool) -> None:
    """Who holds what."""
    from runner import commands
    from runner.report import text, to_json

    rows = [item | {"id": item["token"]} for item in commands.locks(context)]
    columns = ["name", "id", "run", "owner", "host", "pid", "since", "expired"]
    click.echo(to_json("locks", rows)) if as_json else show(text.table(rows, columns, "No lock is held."))


@lock.command("release")
@click.argument("name")
@click.option("--if-id", "token", type=int, required=True, help="The id that lock list showed.")
@options
def lock_release(context: Context, name: str, token: int, as_json: bool) -> None:
    """Free a lock whose holder is gone; a holder that still lives is fenced off."""
    from runner import commands
    from runner.report import to_json

    commands.release_lock(context, name, token)
    click.echo(to_json("lock", {"released": name})) if as_json else show(f"Released {name}.")


@cli.command()
@click.argument("kind", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def schema(kind: str | None, as_json: bool) -> None:
    """JSON Schema of a job kind or of vecrun.yaml (Workspace); without a kind, their names."""
    from runner import schemas
    from runner.report import to_json

    try:
        if as_json:
            click.echo(
                to_json("schema", {"kinds": schemas.names()} if kind is None else {"schema": schemas.schema(kind)})
            )
        else:
            click.echo("\n".join(schemas.names()) if kind is None else schemas.dumps(kind), nl=kind is None)
    except VecrunError as exc:
        _fail(exc, as_json=as_json)


@cli.command()
@click.option(
    "--directory", type=click.Path(file_okay=False, path_type=Path), default=Path(".demo"), show_default=True,
    help="Where to build it; an earlier demo there is replaced.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout; what it tells goes to stderr.")
def demo(directory: Path, as_json: bool) -> None:
    """Build a small knowledge base without any network and move it: Milvus → Qdrant → pgvector, and back."""
    from runner import demo as demonstration
    from runner.report import to_json

    try:
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            demonstration.run(directory)
    except VecrunError as exc:
        _fail(exc, as_json=as_json)
    if as_json:
        click.echo(to_json("demo", {"directory": str(directory), "ok": True}))


def main() -> None:
    """Entry point of the `vecrun` command."""
    try:
        cli.main(prog_name="vecrun", standalone_mode=False)
    except click.exceptions.Exit as exc:
        sys.exit(exc.exit_code)
    except click.Abort:
        click.echo("Aborted.", err=True)
        sys.exit(130)
    except click.ClickException as exc:
        exc.show()
        sys.exit(1)  # not click's 2, which means here: changes are pending
    except Exception as exc:
        debug = "--debug" in sys.argv
        click.echo(redact(f"Error: Internal error\n  {type(exc).__name__}: {exc}"), err=True)
        if debug:
            click.echo(redact("".join(traceback.format_exception(exc))), err=True)
        else:
            click.echo(
                "  This is a fault of vecrun. Run it again with vecrun --debug … and report what it shows", err=True
            )
        sys.exit(1)


if __name__ == "__main__":
    main()
