"""Commands that take a job or a plan: check, plan, apply, verify, roll back."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.command import Seconds, cli, fail, options, show, style
from runner.errors import NotFound, VecrunError, redact

if TYPE_CHECKING:
    from runner.commands import Context
    from runner.plan import Plan

from runner.cli.progress import Display, say, stoppable

FORMS = click.Choice(["text", "markdown", "json", "html"])


@cli.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path), default=Path())
@click.option("--ci", "host", type=click.Choice(["github", "gitlab"]), help="With its workflows: plan, apply, drift.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def init(directory: Path, host: str | None, as_json: bool) -> None:
    """Make a workspace with a sample job."""
    from runner import schemas, workspace
    from runner.ci import starting
    from runner.report import to_json

    more = {f"schemas/{kind}.json": schemas.dumps(kind) for kind in schemas.names()}
    try:
        made = workspace.create(directory, more | (starting.files(host) if host is not None else {}))
    except VecrunError as exc:
        fail(exc, as_json=as_json)
    if as_json:
        click.echo(to_json("workspace", {"files": [str(path) for path in made]}))
        return
    for path in made:
        show(f"+ {path}")
    enter = "" if directory == Path() else f"cd {directory}, "
    show(f"Next: {enter}put your databases into vecrun.yaml and your job into jobs/ (those there are samples),")
    show("then: vecrun validate, vecrun connections test, vecrun plan jobs/NAME.yaml")
    if host is not None:
        show("The pipelines use environment prod of vecrun.yaml; each file says which secrets it needs.")


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
        for folder in result.linked:
            click.echo(f"Note: {folder} is a link to a folder, and job files in it are not looked at", err=True)
    if result.problems:
        sys.exit(14)


@cli.command()
@click.argument("job", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Save the plan; a .md beside it shows it to people.")
@click.option("--format", "form", type=FORMS, default="text", show_default=True)
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

    if out is not None and out.suffix != ".json":
        raise click.UsageError(f"-o {out}: a plan is saved as NAME.json, and NAME.md beside it")
    made = commands.plan(context, job, unpin=unpin, say=say)
    _show_holders(context, made)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, made.dumps())
        write_atomically(out.with_suffix(".md"), redact(markdown.plan(made)))
    show_plan(made, "json" if as_json else form, file=str(out or ""))
    if out is not None and not as_json and form == "text":
        show(f"\nSaved to {out}. Apply exactly this with: vecrun apply {out}")
    if detailed_exitcode and (made.steps or made.drift):
        sys.exit(2)


def _show_holders(context: Context, made: Plan) -> None:
    """Neither a plan nor a dry run takes a lock; who reads it wants to know what an apply would meet."""
    from runner import commands

    for line in commands.holders(context, made) if made.steps else ():
        click.echo(f"Note: {line}", err=True)


def show_plan(made: Plan, form: str, file: str = "") -> None:
    """Print a plan; `file`: where it is saved."""
    from runner.report import html, markdown, text, to_json

    match form:
        case "json":
            click.echo(to_json("plan", {"plan": made}))
        case "html":
            click.echo(html.plan(made, file))  # it hides secrets itself, before it escapes
        case "markdown":
            show(markdown.plan(made).rstrip())
        case _:
            show(text.plan(made, style))


@cli.command("show")
@click.argument("what")
@click.option("--format", "form", type=FORMS, default="text", show_default=True)
@options
def show_(context: Context, what: str, form: str, as_json: bool) -> None:
    """Show a plan file, or the plan of a run."""
    from runner import commands
    from runner import plan as plans

    saved = Path(what).exists()
    made = plans.read(Path(what)) if saved else commands.status(context, what).plan
    show_plan(made, "json" if as_json else form, file=what if saved else "")


def starting(command: Callable[..., Any]) -> Callable[..., Any]:
    """What commands that begin or go on with a run have."""
    command = click.option(
        "--wait", type=Seconds(), metavar="DURATION",
        help="Wait so long for a lock that somebody holds [default: 0s; for a slot: limits.wait].",
    )(command)  # fmt: skip
    return click.option("--detach", is_flag=True, help="Leave it to the workers and return.")(command)


def approvable(command: Callable[..., Any]) -> Callable[..., Any]:
    """What commands that begin a run from a plan have."""
    return click.option(
        "--approved-by", "approvals", multiple=True, metavar="NAME",
        help="Who approved the plan, where a policy of vecrun.yaml asks for it; once for each. Kept in the run's log.",
    )(command)  # fmt: skip


@cli.command()
@click.argument("what", type=click.Path(path_type=Path), metavar="PLANFILE|JOB.yaml")
@click.option("--auto-approve", is_flag=True, help="Do not ask.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Read and transform everything, write nothing to a store. Texts are embedded, and kept.",
)
@click.option("--sample", type=click.IntRange(1), help="With --dry-run: only about so many points of each collection.")
@click.option("--unpin", is_flag=True, help="Apply again what was rolled back.")
@approvable
@starting
@options
def apply(
    context: Context, what: Path, auto_approve: bool, dry_run: bool, sample: int | None, unpin: bool,
    approvals: tuple[str, ...], detach: bool, wait: float | None, as_json: bool,
) -> None:  # fmt: skip
    """Carry out a saved plan, or plan a job, ask, and carry it out. Goes on with an unfinished run."""
    from runner import commands
    from runner import plan as plans

    if not what.exists():
        raise NotFound("No such file", str(what))
    if sample is not None and not dry_run:
        raise click.UsageError("--sample belongs to --dry-run")
    if what.suffix == ".json":
        made = plans.read(what)
        run_plan(
            context,
            made,
            as_json=as_json,
            dry_run=dry_run,
            sample=sample,
            detach=detach,
            wait=wait,
            approvals=approvals,
        )
        return
    job = commands.load(context, what)
    if not dry_run and (row := commands.unfinished_of(context, job)):
        click.echo(f"Going on with run {row['run']} ({row['purpose']}, {row['status']}).", err=True)
        resume_run(context, job.name, as_json, operator=False, detach=detach, wait=wait)
        return
    made = commands.plan(context, what, unpin=unpin, say=say)
    if not as_json:
        show_plan(made, "text")
    commands.refuse_blocked(made)
    if not made.steps:
        if as_json:
            show_plan(made, "json")
        return
    if not dry_run:
        commands.refuse_policies(context, made, approvals)  # before anybody is asked
        approve(auto_approve, as_json)
    run_plan(
        context, made, as_json=as_json, dry_run=dry_run, sample=sample, detach=detach, wait=wait, approvals=approvals
    )


def approve(auto: bool, as_json: bool) -> None:
    """Ask, unless it was said not to. VecrunError when nobody can answer or the answer is not yes."""
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


def run_plan(
    context: Context, made: Plan, *, as_json: bool, dry_run: bool = False, sample: int | None = None,
    detach: bool = False, wait: float | None = None, approvals: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Carry out a plan, with its progress, and show how it ended."""
    from runner import commands

    _log_if_asked()
    if dry_run:
        _show_holders(context, made)
    display = Display(made, as_json)
    with stoppable() as stop:
        try:
            done = commands.apply(
                context,
                made,
                dry_run=dry_run,
                sample=sample,
                detach=detach,
                wait=wait,
                progress=display,
                stop=stop,
                say=say,
                approvals=approvals,
            )
        finally:
            display.stop()
    _show_outcome(done, as_json)


def resume_run(
    context: Context, job: str, as_json: bool, *, operator: bool = True, detach: bool = False, wait: float | None = None,
    retry_failed: bool = False,
) -> None:  # fmt: skip
    """Go on with a run, with its progress, and show how it ended."""
    from runner import commands

    _log_if_asked()
    display = Display(commands.status(context, job).plan, as_json)
    with stoppable() as stop:
        try:
            done = commands.resume(
                context, job, operator=operator, detach=detach, wait=wait, retry_failed=retry_failed, progress=display,
                stop=stop, say=say,
            )  # fmt: skip
        finally:
            display.stop()
    _show_outcome(done, as_json)


def _log_if_asked() -> None:
    """Log lines beside the progress, only when somebody wants them."""
    if os.environ.get("VECRUN_LOG") or os.environ.get("VECRUN_LOG_FORMAT"):
        from runner import logs

        logs.configure()


def _show_outcome(done: Any, as_json: bool) -> None:
    from runner.report import text, to_json

    if as_json:
        click.echo(to_json("outcome", done))
    else:
        show(text.outcome(done))
    if done.failed:
        sys.exit(3)


@cli.command()
@click.argument("job")
@starting
@options
def resume(context: Context, job: str, detach: bool, wait: float | None, as_json: bool) -> None:
    """Go on with the unfinished run of a job."""
    resume_run(context, job, as_json, detach=detach, wait=wait)


@cli.command()
@click.argument("job")
@click.option("--mode", type=click.Choice(["count", "sample", "full"]), help="Instead of the job's own.")
@click.option("--sample", type=click.IntRange(1), help="Points to compare in mode sample.")
@options
def verify(context: Context, job: str, mode: str | None, sample: int | None, as_json: bool) -> None:
    """Compare source and target of an applied job again, or made rows with those that they were made of."""
    from runner import commands
    from runner.report import text, to_json

    with stoppable() as stop:
        result = commands.verify(context, job, mode=mode, sample=sample, stop=stop)
    click.echo(to_json("verified", result)) if as_json else show(text.verified(result))
    if not result.equal:
        sys.exit(13)


@cli.command()
@click.argument("job")
@click.option("--auto-approve", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only show what it would do.")
@click.option("--discard-new-points", is_flag=True, help="Also when points or rows were written to the target since.")
@approvable
@starting
@options
def rollback(
    context: Context, job: str, auto_approve: bool, dry_run: bool, discard_new_points: bool, approvals: tuple[str, ...],
    detach: bool, wait: float | None, as_json: bool,
) -> None:  # fmt: skip
    """Undo the newest run of a job: shown first, then asked, then applied like any plan."""
    from runner import commands

    made = commands.plan_rollback(context, job, discard_new_points=discard_new_points)
    if not as_json or dry_run:
        show_plan(made, "json" if as_json else "text")
    if dry_run:
        _show_holders(context, made)
        return
    commands.refuse_blocked(made)
    commands.refuse_policies(context, made, approvals)
    approve(auto_approve, as_json)
    run_plan(context, made, as_json=as_json, detach=detach, wait=wait, approvals=approvals)
