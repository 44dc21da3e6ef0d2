"""What every command has: its options, how a result is printed, how an error is told."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from runner import __version__
from runner.errors import VecrunError, redact

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
    @click.option(
        "--env", "environment", default="", help="Environment of vecrun.yaml.", envvar="VECRUN_ENV", show_envvar=True
    )
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
            fail(exc, as_json=as_json, debug=context.obj["debug"])

    return wrapped


class Seconds(click.ParamType[float]):
    """A duration such as 90s, 15m or 2h; given on as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        from runner.settings import duration_seconds

        try:
            return float(duration_seconds(str(value)))
        except ValueError as exc:
            self.fail(str(exc), param, context)


def fail(exc: VecrunError, *, as_json: bool = False, debug: bool = False) -> NoReturn:
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


def given_variables() -> tuple[dict[str, Any], tuple[Path, ...]]:
    """The variables and the files of variables that the command at work was given."""
    given = click.get_current_context().params
    return _variables(given["variables"], ()), given["variable_files"]


def _error_text(exc: VecrunError) -> str:
    parts = [click.style("Error: ", fg="red", bold=True) + exc.summary]
    parts += [f"  {line}" for line in exc.detail.splitlines()]
    parts += [f"  {line}" for line in exc.hint.splitlines()]
    return "\n".join(parts)


def style(text: str, colour: str) -> str:
    return click.style(text, bold=True) if colour == "bold" else click.style(text, fg=colour)


def show(text: str) -> None:
    """Print a result; colour only where NO_COLOR and the terminal allow it."""
    click.echo(redact(text), color=_colour())
