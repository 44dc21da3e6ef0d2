"""`validate`: job files and workspace, offline. Imports no store client and no database library."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.commands.context import Context, load
from runner.errors import Diagnostic, InvalidFile, NotFound
from runner.kinds import kind_module
from runner.planner import policies
from runner.settings import FILE_NAME, MODEL
from runner.spec import check_model
from runner.world import connection_model


@dataclass(frozen=True)
class Validation:
    """What was checked and every problem found. `linked`: folders that are links, in which nothing was looked for."""

    files: tuple[str, ...]
    problems: tuple[Diagnostic, ...]
    linked: tuple[str, ...] = ()


def validate(context: Context, paths: Iterable[Path]) -> Validation:
    """Check job files (folders: all *.yaml and *.yml below) offline, that the connections they name exist, and that policies
    name what there is. vecrun.yaml itself was checked when it was opened, and may be among the paths."""
    settings_file = (context.settings.root / FILE_NAME).resolve()
    paths = [*paths]
    files = [path for path in job_files(paths) if path.resolve() != settings_file]
    problems = policies.problems(context.settings)
    names: dict[str, Path] = {}
    for path in files:
        try:
            job = load(context, path)
        except InvalidFile as exc:
            problems += exc.diagnostics
            continue
        if job.name in names:
            message = f"job name {job.name} is used by {names[job.name]} as well"
            problems.append(job.document.diagnostic(("metadata", "name"), message))
        names.setdefault(job.name, path)
        named, inline = kind_module(job.kind).connections(job.spec)
        for name in named:
            try:
                context.settings.connection(name)
            except NotFound as exc:
                at = next(
                    (key for key, value in _strings(job.document.data) if value == name.removeprefix(MODEL)), ("spec",)
                )
                problems.append(job.document.diagnostic(at, exc.detail, exc.hint))
        for role, raw in inline.items():
            try:
                checked = check_model(connection_model(str(raw["type"])), raw, job.document, ("spec", role.strip("()")))
                problems += checked if isinstance(checked, list) else []
            except NotFound as exc:
                problems.append(
                    job.document.diagnostic(
                        ("spec", role.strip("()"), "type"), f"no such store type: {exc.detail}", exc.hint
                    )
                )
    linked = tuple(str(path) for path in linked_folders(paths))
    return Validation(tuple(str(path) for path in files), tuple(problems), linked)


def job_files(paths: Iterable[Path]) -> Iterable[Path]:
    """Files, and all *.yaml and *.yml below folders; links to folders are not followed: they may lead anywhere. NotFound."""
    for path in paths:
        if path.is_dir():
            yield from sorted(item for item in path.rglob("*") if item.suffix in (".yaml", ".yml"))
        elif path.exists():
            yield path
        else:
            raise NotFound("No such file", str(path))


def linked_folders(paths: Iterable[Path]) -> list[Path]:
    """Links to folders below these folders: `job_files` does not follow them."""
    return sorted(
        item for path in paths if path.is_dir() for item in path.rglob("*") if item.is_symlink() and item.is_dir()
    )


def _strings(data: Any, at: tuple[str | int, ...] = ()) -> Iterable[tuple[tuple[str | int, ...], str]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _strings(value, (*at, key))
    elif isinstance(data, list):
        for number, value in enumerate(data):
            yield from _strings(value, (*at, number))
    elif isinstance(data, str):
        yield at, data
