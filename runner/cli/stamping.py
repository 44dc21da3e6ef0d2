"""The command that records what was done by hand: stamp."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from runner.cli.command import cli, options
from runner.cli.jobs import approvable, approve, run_plan, show_plan, starting

if TYPE_CHECKING:
    from runner.commands import Context


@cli.command()
@click.argument("job", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="JOB.yaml")
@click.option("--through", metavar="STEP", help="The last step that is done [default: all of them].")
@click.option("--auto-approve", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only show what it would do.")
@approvable
@starting
@options
def stamp(
    context: Context, job: Path, through: str | None, auto_approve: bool, dry_run: bool, approvals: tuple[str, ...],
    detach: bool, wait: float | None, as_json: bool,
) -> None:  # fmt: skip
    """Record steps of a SqlMigration as done that were done by hand, and change nothing else.

    Also the way out of a database that was left in the middle: bring it to where a step ends, then record that. The questions
    of each step's verify are asked first.
    """
    from runner import commands

    made = commands.plan_stamp(context, job, through=through)
    if not as_json or dry_run:
        show_plan(made, "json" if as_json else "text")
    if dry_run:
        return
    commands.refuse_blocked(made)
    commands.refuse_policies(context, made, approvals)
    approve(auto_approve, as_json)
    run_plan(context, made, as_json=as_json, detach=detach, wait=wait, approvals=approvals)
