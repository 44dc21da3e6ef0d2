"""Commands about backups that lie somewhere: which there are, and whether they would restore."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from runner.cli.command import cli, fail, show
from runner.errors import VecrunError

if TYPE_CHECKING:
    from runner.commands import Context

WHERE = "PATH|CONNECTION:FOLDER|JOB"


class Subset(click.ParamType[tuple[int, int]]):
    """n/t: the n-th of t groups."""

    name = "n/t"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[int, int]:
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", str(value))
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            self.fail(f"{value!r} is no part of a whole; write 1/10 to 10/10", param, context)
        return int(found[1]), int(found[2])


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--json and --env. Unlike other commands these open a workspace only when the place is one of its own."""

    @click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
    @click.option(
        "--env", "environment", default="", help="Environment of vecrun.yaml.", envvar="VECRUN_ENV", show_envvar=True
    )
    @functools.wraps(command)
    @click.pass_context
    def wrapped(context: click.Context, /, as_json: bool, environment: str, **rest: Any) -> None:
        def workspace() -> Context:
            from runner import commands

            opened: Context = commands.open_context(context.obj["workspace"], environment)
            return opened

        try:
            command(workspace, as_json=as_json, **rest)
        except VecrunError as exc:
            fail(exc, as_json=as_json, debug=context.obj["debug"])

    return wrapped


@cli.group()
def backup() -> None:
    """Backups: which there are, and whether they would restore."""


@backup.command("list")
@click.argument("where", metavar=WHERE)
@_options
def backup_list(workspace: Callable[[], Context], where: str, as_json: bool) -> None:
    """The backups in a folder, the newest first."""
    from runner import commands
    from runner.report import backups, to_json

    found = commands.list_backups(workspace, where)
    click.echo(to_json("backups", found)) if as_json else show(backups.listed(found))


@backup.command("check")
@click.argument("where", metavar=WHERE)
@click.option("--backup", "name", default="", metavar="ID", help="This one [default: the newest].")
@click.option("--all", "every", is_flag=True, help="Every backup there is.")
@click.option("--read-data", is_flag=True, help="Read every byte, and compare all rows and points.")
@click.option("--subset", type=Subset(), help="Read the n-th of t groups of files only; t runs read everything.")
@_options
def backup_check(
    workspace: Callable[[], Context], where: str, name: str, every: bool, read_data: bool, subset: tuple[int, int] | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Compare a backup with its manifest. Exit code 0: it would restore; 13: it would not; 10: there is none.

    PATH is a folder with backup_*.json in it, or such a file; no workspace is needed for it. A job is one whose last
    applied run made backups. Without --read-data only names, sizes and the manifest are looked at.
    """
    from runner import commands
    from runner.report import backups, to_json

    quiet = as_json or not sys.stderr.isatty()
    found = commands.check_backups(
        workspace, where, backup=name, every=every, read_data=read_data, subset=subset,
        say=(lambda _line: None) if quiet else functools.partial(click.echo, err=True),
    )  # fmt: skip
    click.echo(to_json("backup_check", found)) if as_json else show(backups.checked(found))
    if not found.ok:
        sys.exit(13)
