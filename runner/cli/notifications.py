"""The command that tries the addresses of `notifications`. What is told after a run is the business of apply."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from runner.cli.command import cli, options, show

if TYPE_CHECKING:
    from runner.commands import Context
    from runner.settings import Happening

#: The same as `Happening` of the settings, which would be slow to import for --help; a test compares.
EVENTS = ("success", "failure", "paused", "cancelled")


@cli.group()
def notify() -> None:
    """Who is told how a run ended."""


@notify.command("test")
@click.option("--event", type=click.Choice(EVENTS), default="success", show_default=True, help="What to tell.")
@options
def notify_test(context: Context, event: Happening, as_json: bool) -> None:
    """Send a test to every entry of notifications and say whether it arrived."""
    from runner import commands
    from runner.report import to_json

    found = commands.check_notifications(context, event)
    if as_json:
        click.echo(to_json("notifications", found))
    else:
        for item in found:
            show(f"{item.entry}  {item.address}  " + (f"failed: {item.error}" if item.error else "arrived"))
    if any(item.error for item in found):
        sys.exit(1)
