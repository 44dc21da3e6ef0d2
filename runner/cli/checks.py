"""Commands that look without being asked to do anything: lint, drift; and completion for shells."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runner.cli.command import cli, options, show, style

if TYPE_CHECKING:
    from runner.commands import Context


@cli.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--strict", is_flag=True, help="Exit with 2 when there are warnings that no job accepts.")
@options
def lint(context: Context, paths: tuple[Path, ...], strict: bool, as_json: bool) -> None:
    """Look for what a reviewer would object to, offline: in job files (default: jobs/) and in vecrun.yaml.

    Exit code 14 when there are errors.
    """
    from runner import commands
    from runner.report import checks, to_json

    found = commands.lint(context, paths)
    if as_json:
        click.echo(to_json("lint", {"errors": found.errors, "warnings": found.warnings} | vars(found)))
    else:
        show(checks.linted(found, style))
    if found.errors:
        sys.exit(14)
    if strict and found.warnings:
        sys.exit(2)


@cli.command()
@click.argument("jobs", nargs=-1)
@click.option("--format", "form", type=click.Choice(["text", "markdown", "json"]), default="text", show_default=True)
@options
def drift(context: Context, jobs: tuple[str, ...], form: str, as_json: bool) -> None:
    """What moved since jobs were applied, and is not expected (drift in vecrun.yaml).

    Exit code 2 when something did; 1 when nothing did, but some jobs could not be looked at.
    """
    from runner import commands
    from runner.report import checks, to_json

    looked = commands.movements(context, jobs)
    found, errors = looked.jobs, {job: str(error) for job, error in looked.errors.items()}
    unexpected = {job: [item.text for item in moved if not item.expected] for job, moved in found.items()}
    notes = commands.foreign(context, found) if found else []
    for line in notes if form != "markdown" else ():
        click.echo(f"Note: {line}", err=True)
    if as_json or form == "json":
        changes = {job: [vars(item) for item in moved] for job, moved in found.items()}
        click.echo(to_json("drift", {"jobs": unexpected, "changes": changes, "notes": notes, "error": errors}))
    elif form == "markdown":
        show(checks.drift_document(found, notes, context.settings.environment, errors).rstrip())
    else:
        show(checks.drift(found, errors))
    if any(unexpected.values()):
        sys.exit(2)
    if errors:
        sys.exit(1)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "fish", "zsh"]))
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def completion(shell: str, as_json: bool) -> None:
    """Print the script that completes commands and options in a shell.

    bash: vecrun completion bash > ~/.local/share/bash-completion/completions/vecrun. zsh: into a folder of fpath as
    _vecrun. fish: into ~/.config/fish/completions/vecrun.fish.
    """
    from click.shell_completion import get_completion_class

    from runner.report import to_json

    made = get_completion_class(shell)
    assert made is not None
    maker = made(cli, {}, "vecrun", "_VECRUN_COMPLETE")
    script = maker.source_template % maker.source_vars()  # source() would start the shell to ask for its version
    click.echo(to_json("completion", {"shell": shell, "script": script})) if as_json else click.echo(script)
