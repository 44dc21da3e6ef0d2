"""What lint and drift found, as text and as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.report import phrases
from runner.report.text import Style, plain

if TYPE_CHECKING:
    from runner.commands.linting import Finding, Linted
    from runner.planner import Moved


def linted(value: Linted, style: Style = plain) -> str:
    """A line for each finding, as editors read it: FILE:LINE:COLUMN."""
    lines = [style(_finding(item), _colour(item)) for item in value.findings]
    accepted = sum(bool(item.accepted) for item in value.findings)
    counts = [phrases.counted(value.errors, "error"), phrases.counted(value.warnings, "warning")]
    counts += [f"{accepted:,} accepted"] if accepted else []
    files = phrases.counted(len(value.files), "job file")
    return "\n".join([*lines, f"{files}: {', '.join(counts)}"])


def _colour(item: Finding) -> str:
    return "red" if item.level == "error" else "green" if item.accepted else "yellow"


def _finding(item: Finding) -> str:
    place = ":".join(str(part) for part in (item.file, item.line, item.column) if part)
    word = "accepted" if item.accepted else item.level
    code = "" if item.code == "invalid" else f" {item.code}"
    field = f" {item.field}:" if item.field else ""
    ending = f"; accepted: {item.accepted}" if item.accepted else f" ({item.hint})" if item.hint else ""
    return f"{place}: {word}{code}:{field} {item.message}{ending}"


def drift(found: dict[str, list[Moved]], errors: dict[str, str] | None = None) -> str:
    """Job by job what moved, and why it is not known."""
    lines = []
    for job, moved in found.items():
        unexpected = [item for item in moved if not item.expected]
        lines.append(f"{job}: " + ("moved since it was applied" if unexpected else "nothing moved"))
        lines += [f"  ~ {item.text}" for item in unexpected]
        lines += [f"  · expected: {item.text}" for item in moved if item.expected]
    lines += [f"{job}: could not be looked at: {error}" for job, error in (errors or {}).items()]
    return "\n".join(lines) or "No job was applied yet."


def drift_document(
    found: dict[str, list[Moved]], notes: list[str], environment: str = "", errors: dict[str, str] | None = None
) -> str:
    """The same as a Markdown document: what to look at first, then a section for each job."""
    moved = [job for job, items in found.items() if any(not item.expected for item in items)]
    where = f" in environment {environment}" if environment else ""
    lines = ["# Drift" + where, ""]
    if errors:
        what = f"{len(errors):,} of {phrases.counted(len(found) + len(errors), 'job')}"
        lines += [f"**{what}: could not be looked at.** {', '.join(_code(job) for job in errors)}", ""]
    if not found and not errors:
        lines += ["No job was applied yet.", ""]
    elif moved:
        what = f"{len(moved):,} of {phrases.counted(len(found), 'job')}"
        lines += [f"**{what}: the world is not as it was left.** {', '.join(_code(job) for job in moved)}", ""]
    elif found:
        lines += [f"{phrases.counted(len(found), 'job')}: nothing moved.", ""]
    for job, items in found.items():
        unexpected = [item for item in items if not item.expected]
        lines += [f"## {_code(job)}", "", "Moved since it was applied:" if unexpected else "Nothing moved.", ""]
        if unexpected:
            lines += ["| where | what | |", "| --- | --- | --- |"]
            lines += [f"| {_cell(item.place)} | {_cell(item.field)} | {_cell(item.text)} |" for item in unexpected]
            lines += ["", "Look at what it would take to put it right:", "", "```sh", f"vecrun plan {job}", "```", ""]
        expected = [item for item in items if item.expected]
        if expected:
            lines += ["Expected (`drift` in vecrun.yaml):", "", *(f"- {_cell(item.text)}" for item in expected), ""]
    for job, error in (errors or {}).items():
        lines += [f"## {_code(job)}", "", f"Could not be looked at: {_cell(error)}", ""]
    if notes:
        lines += ["## Seen in part", "", *(f"- {_cell(note)}" for note in notes), ""]
    return "\n".join(lines).rstrip() + "\n"


def _code(text: str) -> str:
    return f"`{text}`"


def _cell(text: str) -> str:
    """Text of names that somebody chose, without effect as markup."""
    for mark in "\\`*_[]<>|~#!":
        text = text.replace(mark, "\\" + mark)
    return text.replace("@", "@\u200b").replace("\n", " ")
