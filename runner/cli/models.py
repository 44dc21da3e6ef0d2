"""Commands about embedding models: does one have to be changed, failed items, search."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runner.cli.command import cli, options, show
from runner.cli.jobs import approvable, approve, resume_run, run_plan, show_plan, starting

if TYPE_CHECKING:
    from runner.commands import Context


@cli.command("model-check")
@click.argument("job", type=click.Path(exists=True, path_type=Path), metavar="JOB.yaml")
@click.option("--detailed-exitcode", is_flag=True, help="Exit with 2 when something has to be embedded.")
@options
def model_check(context: Context, job: Path, detailed_exitcode: bool, as_json: bool) -> None:
    """The present model against the configured one: what changes, what it costs, how long it takes."""
    from runner import commands
    from runner.report import text, to_json

    found = commands.model_check(context, job)
    click.echo(to_json("model_check", found)) if as_json else show(text.model_check(found))
    if detailed_exitcode and found["needs_reembed"]:
        sys.exit(2)


@cli.command()
@click.argument("job", metavar="JOB|RUN")
@options
def failures(context: Context, job: str, as_json: bool) -> None:
    """Items that failed (texts that could not be embedded, documents), each with its error."""
    from runner import commands
    from runner.report import text, to_json

    found = commands.failures(context, job)
    click.echo(to_json("failures", found)) if as_json else show(text.failures(found))


@cli.command()
@click.argument("name", metavar="JOB|RUN")
@click.option("--format", "form", type=click.Choice(["text", "csv", "json"]), default="text", show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write it to a file.")
@options
def report(context: Context, name: str, form: str, out: Path | None, as_json: bool) -> None:
    """What became of each document of a batch operation."""
    from runner import commands
    from runner.report import documents, text, to_json

    found = commands.documents(context, name)
    form = "json" if as_json and out is None else form
    shown = {"csv": documents.csv_table, "text": text.report}.get(form, lambda value: to_json("report", value))(found)
    if out is None:
        click.echo(shown.rstrip("\n")) if form != "text" else show(shown)
        return
    from runner.state import write_atomically

    write_atomically(out, shown.rstrip("\n") + "\n")
    written = {"file": str(out), "run": found.run, "documents": len(found.items)}
    said = f"{found.job}: {len(found.items):,} documents of run {found.run} written to {out}"
    click.echo(to_json("written", written)) if as_json else show(said)


@cli.command("retry-failed")
@click.argument("job")
@click.option("--auto-approve", is_flag=True, help="Do not ask.")
@approvable
@starting
@options
def retry_failed(
    context: Context, job: str, auto_approve: bool, approvals: tuple[str, ...], detach: bool, wait: float | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Try just the failed items again: goes on with the run that stopped for them, or mends the applied one."""
    from runner import commands

    made = commands.plan_retry(context, job)
    if made is None:
        resume_run(context, job, as_json, detach=detach, wait=wait, retry_failed=True)
        return
    if not as_json:
        show_plan(made, "text")
    commands.refuse_policies(context, made, approvals)
    approve(auto_approve, as_json)
    run_plan(context, made, as_json=as_json, detach=detach, wait=wait, approvals=approvals)


@cli.command()
@click.argument("name", metavar="POINTER|CONNECTION/COLLECTION")
@click.argument("text")
@click.option("-k", type=click.IntRange(1, 1000), default=5, show_default=True, help="Results.")
@click.option("--model", default="", help="A model of vecrun.yaml, instead of the pointer's.")
@click.option("--vector", help="Which vector, where points have several.")
@options
def search(context: Context, name: str, text: str, k: int, model: str, vector: str | None, as_json: bool) -> None:
    """Search what serves under a name, with the model that serves it."""
    from runner import commands
    from runner.report import text as texts
    from runner.report import to_json

    found = commands.search(context, name, text, k=k, model=model, vector=vector)
    click.echo(to_json("found", found)) if as_json else show(texts.found(found))
