"""Backups, for people: what is there, and whether it would restore."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runner.report.phrases import size

if TYPE_CHECKING:
    from runner.backups.check import Checked
    from runner.commands.backups import BackupsChecked, Listed


def listed(values: list[Listed]) -> str:
    """A line a backup, the newest first."""
    from runner.report.text import table

    rows = [
        {"id": item.id, "time": item.time, "form": item.form, "rows": f"{item.rows:,}", "size": size(item.bytes),
         "files": item.files, "whole": "yes" if item.whole else "no", "job": item.job, "run": item.run}
        if not item.problem
        else {"id": item.id, "time": item.time, "form": "cannot be read"}
        for item in values
    ]  # fmt: skip
    columns = ["id", "time", "form", "rows", "size", "files", "whole", "job", "run"]
    broken = [f"  ! {item.id}: {item.problem}" for item in values if item.problem]
    return "\n".join([table(rows, columns, "There is no backup."), *broken])


def checked(value: BackupsChecked) -> str:
    """Each backup with its parts and what is wrong with them, and at the end whether it would restore."""
    lines = []
    for item in value.backups:
        lines += _one(item, value.place)
    if len(value.backups) > 1:
        bad = [item.backup for item in value.backups if not item.ok]
        lines.append(
            f"{len(value.backups)} backups: " + (f"these not: {', '.join(bad)}" if bad else "all of them would")
        )
    return "\n".join(lines)


def _one(item: Checked, place: str) -> list[str]:
    if item.problem:
        return [f"backup {item.backup} in {place}", f"  ! {item.problem}", "It would not restore."]
    unit = "rows" if item.form == "tables" else "points"
    what = f"{item.form}, {item.rows:,} {unit}, {item.files:,} files, {size(item.bytes)}"
    lines = [f"backup {item.backup} of job {item.job} in {place}: {what}"]
    for part in item.parts:
        files = f"{part.files:,} file{'s' if part.files != 1 else ''}, {size(part.bytes)}"
        read = f", {part.read:,} read" if item.read_data else ""
        lines.append(f"  {'!' if part.problems else '='} {part.what} {part.name}: {part.rows:,} {unit}, {files}{read}")
        lines += [f"      {problem}" for problem in part.problems]
    in_parts = {f"{part.what} {part.name}: {problem}" for part in item.parts for problem in part.problems}
    lines += [f"  ! {problem}" for problem in item.problems if problem not in in_parts]
    return [*lines, *_verdict(item)]


def _verdict(item: Checked) -> list[str]:
    looked = []
    if not item.read_data:
        looked = ["Only its structure and the sizes of its files were looked at. Every byte is read with --read-data."]
    elif item.subset:
        part = f"{item.read_files:,} of {item.files:,} files, {size(item.read_bytes)} of {size(item.bytes)}"
        looked = [f"Part {item.subset} of its files was read: {part}."]
    if item.ok:
        words = "It would restore." if item.read_data and not item.subset else "It would restore, as far as that tells."
    elif any(not part.problems for part in item.parts):
        bad = sum(bool(part.problems) for part in item.parts)
        words = f"It would not restore as a whole: {bad} of {len(item.parts)} parts are not right."
    else:
        words = "It would not restore."
    return [*looked, words]


def verified(item: dict[str, Any]) -> list[str]:
    """What `verify` found out about a backup that a job made."""
    if item["differences"]:
        return [f"{item['to']}: the backup would not restore:", *(f"  {line}" for line in item["differences"])]
    read = f"{item['compared']:,} read" if item["compared"] else "names and sizes looked at"
    return [f"{item['to']}: backup {item['backup']} would restore: {read}"]
