"""The command line: parse arguments, call `commands`, print what `report` makes of the answer. No decisions.

Results go to stdout, progress and questions to stderr. Store clients are imported when a connection is opened.
"""

from __future__ import annotations

import sys
import traceback

import click

from runner.cli import backups, checks, ci, jobs, keeping, models, notifications, records, stamping, workers
from runner.cli.command import cli
from runner.errors import redact

__all__ = [
    "backups",
    "checks",
    "ci",
    "cli",
    "jobs",
    "keeping",
    "main",
    "models",
    "notifications",
    "records",
    "stamping",
    "workers",
]


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
