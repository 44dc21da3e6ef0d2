"""Commands for pipelines: plan what a change touches, show it on the pull request, apply what was shown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.command import cli, fail, given_variables, options, show
from runner.cli.progress import Display, say, stoppable

if TYPE_CHECKING:
    from runner.ci.applying import Applied, Review
    from runner.commands import Context, Outcome
    from runner.plan import Plan


@cli.group()
def ci() -> None:
    """Pull requests: plan what a change touches, show it, apply what was shown."""


@ci.command("plan")
@click.option("--base", required=True, metavar="REF", help="What the change is to be merged into, such as origin/main.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Write the plans there: JOB.json, .md and .html, comment.md, ci.json.",
)  # fmt: skip
@click.option("--detailed-exitcode", is_flag=True, help="Exit with 2 when there are changes.")
@options
def ci_plan(context: Context, base: str, out: Path | None, detailed_exitcode: bool, as_json: bool) -> None:
    """Plan the jobs that a change touches: what differs between the working tree and where HEAD parted from REF.

    Without --out it prints the document for the pull request. In GitHub Actions the outputs has_changes, has_destroy,
    cost (USD), plan_digest and jobs are set, and the document is the summary of the step. Exits with 1 when a job could not
    be planned; the others are planned all the same.
    """
    from runner.ci import planning
    from runner.report import to_json

    folder = str(out or "")
    pairs, files = given_variables()
    made = planning.plan_change(
        context, base, variables=pairs, variable_files=files, say=lambda line: click.echo(line, err=True)
    )
    if out is not None:
        planning.write(context, made, out)
    planning.tell_pipeline(made, folder)
    if as_json:
        click.echo(to_json("ci", made.bundle))
    elif out is None:
        show(made.document().rstrip())
    else:
        for item in made.bundle.jobs:
            moved = f"its state moves here from {item.renamed_from}" if item.renamed_from else ""
            show(f"{item.job}: {item.error or moved or item.summary}")
        for job in made.bundle.removed:
            show(f"{job}: nothing describes it any more; what it made stays")
        for note in made.bundle.notes:
            show(f"Note: {note}")
        way_on = f" To apply exactly this: vecrun ci apply {out}" if made.bundle.has_changes else ""
        show(f"Written to {out}.{way_on}")
    if made.bundle.failed:
        sys.exit(1)
    if detailed_exitcode and made.bundle.has_changes:
        sys.exit(2)


def hosted(command: Callable[..., Any]) -> Callable[..., Any]:
    """What commands have that speak with the host of a repository."""
    command = click.option(
        "--repo", "repository", default="", metavar="NAME",
        help="OWNER/NAME, or the path of a GitLab project [default: that of the pipeline].",
    )(command)  # fmt: skip
    command = click.option(
        "--host", "name", type=click.Choice(["github", "gitlab", "none"]), help="[default: that of the pipeline]"
    )(command)
    return click.option(
        "--pr", type=click.IntRange(1), metavar="NUMBER",
        help="Pull request or merge request [default: that of the pipeline, or the one that brought the commit].",
    )(command)  # fmt: skip


@ci.command("comment")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@hosted
@options
def ci_comment(
    context: Context, folder: Path, pr: int | None, name: str | None, repository: str, as_json: bool
) -> None:
    """Show the plans of DIR in one comment of the pull request: created once, then updated in place.

    The token is in GITHUB_TOKEN or GITLAB_TOKEN; GITHUB_API_URL and CI_API_V4_URL name another server.
    """
    from runner.ci import bundle, commenting, hosts
    from runner.errors import VecrunError
    from runner.report import to_json

    made, plans = bundle.read(folder, context.settings.signing_key)
    host = hosts.choose(name or "", repository)
    if host is None:
        raise VecrunError("There is no host to comment on", "this is no pipeline of GitHub or GitLab", "--host github")
    done = commenting.show(host, pr, made, plans, str(folder))
    text = (
        f"Comment {done.action} on {done.pr}: {done.url}"
        if done.url
        else f"No job is touched, so {done.pr} has no comment"
    )
    click.echo(to_json("ci_comment", done)) if as_json else show(text)


def _moment(_ctx: click.Context, _param: click.Parameter, value: str | None) -> datetime | None:
    """A moment with its time zone, as the events of a host carry it."""
    try:
        found = datetime.fromisoformat(value) if value is not None else None
    except ValueError as exc:
        raise click.BadParameter(f"{value!r} is no moment such as 2026-11-20T12:00:00Z") from exc
    if found is not None and found.tzinfo is None:
        raise click.BadParameter(f"{value!r} names no time zone, such as Z")
    return found


@ci.command("apply")
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option("--base", default="", metavar="REF", help="Instead of DIR: plan again what differs from REF.")
@hosted
@click.option("--head", default="", metavar="SHA", help="Refuse plans of any other commit.")
@click.option(
    "--approved-by", "approvals", multiple=True, metavar="NAME",
    help="Who approved it, beside those that the host names, where a policy asks for it; once for each.",
)  # fmt: skip
@click.option(
    "--since", callback=_moment, metavar="TIME",
    help="When it was asked for, such as 2026-11-20T12:00:00Z: plans that were shown later are refused.",
)  # fmt: skip
@click.option("--require-signature", "signed", is_flag=True, help="Refuse plans that are not signed.")
@options
def ci_apply(
    context: Context, folder: Path | None, base: str, pr: int | None, name: str | None, repository: str, head: str,
    approvals: tuple[str, ...], since: datetime | None, signed: bool, as_json: bool,
) -> None:  # fmt: skip
    """Apply exactly the plans that the pull request shows, and say in its comment how it went.

    With DIR the plans that lie there. With --base they are made again, and applied only if they do what the comment shows.
    Exits with 12, and shows what differs, when the plans were altered or applied before, or when the comment, the head of the
    pull request, the checkout or the world is another one.
    """
    from runner.ci import applying, hosts

    if (folder is None) == (not base):
        raise click.UsageError("Give DIR or --base")
    if signed and folder is None:
        raise click.UsageError("--require-signature is for saved plans: give DIR")
    host = hosts.choose(name or "", repository)
    if since is not None and host is None:
        raise click.UsageError("--since is compared with a comment, and no host is known here: --host github")
    review = applying.Review(host, pr, head, approvals, since, signed)
    shown = applying.saved(context, folder, review) if folder is not None else _again(context, base, review)
    with stoppable() as stop:

        def carry_out(plan: Plan, names: tuple[str, ...]) -> Outcome:
            from runner import commands
            from runner.errors import Interrupted

            if stop.is_set():
                raise Interrupted("Interrupted", f"job {plan.job} was not begun", "The same command goes on")
            display = Display(plan, as_json)
            try:
                return commands.apply(context, plan, progress=display, stop=stop, say=say, approvals=names)
            finally:
                display.stop()

        done = applying.apply(context, shown, carry_out)
    _show_applied(done, as_json)


def _again(context: Context, base: str, review: Review) -> Any:
    from runner.ci import applying, planning

    pairs, files = given_variables()
    return applying.planned_again(
        context, planning.plan_change(context, base, variables=pairs, variable_files=files, say=say), review
    )


def _show_applied(done: Applied, as_json: bool) -> None:
    from runner.report import to_json

    if as_json:
        click.echo(to_json("ci_apply", done))
    else:
        for item in done.results:
            run = f" (run {item.run})" if item.run else ""
            show(f"{item.job}: {item.status}" + (f", {item.summary}" if item.summary else "") + run)
        if not done.results:
            show("Nothing to apply.")
        for note in done.notes:
            click.echo(f"Note: {note}", err=True)
    if done.error is not None:
        if as_json:
            sys.exit(done.error.exit_code)
        fail(done.error)
    if done.failed:
        sys.exit(3)
