"""What became of documents, for people and for spreadsheets."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from runner.errors import redact

if TYPE_CHECKING:
    from runner.commands import Documents

#: Types of the steps that change documents.
STEPS = ("delete_documents", "edit_documents", "reprocess_documents")


def changed(result: dict[str, Any]) -> str:
    """What became of documents, in one line."""
    counts = {name: result.get(name, 0) for name in ("done", "unchanged", "failed")}
    shown = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count or name == "done")
    return f"documents: {shown} ({result.get('points', 0):,} points)"


def restored(result: dict[str, Any]) -> str:
    """What was brought back, in one line."""
    parts = [f"{result.get(name, 0):,} {name}" for name in ("points", "rows", "files") if result.get(name)]
    left = f"; {result['left']:,} changed since were left alone" if result.get("left") else ""
    return f"brought back {', '.join(parts) or 'nothing: nothing was changed'}{left}"


def heading(value: Documents) -> str:
    """The run, and how many documents came to which end."""
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(value.counts.items()))
    return f"{value.job}: run {value.run} ({value.operation}, {value.status}): {counts or 'no documents'}"


def rows_of(value: Documents) -> tuple[list[dict[str, Any]], list[str]]:
    """(a row a document, the columns in which something stands)."""
    rows = [
        {"document": one.document, "status": one.status, "points": one.points, "rows": one.rows, "file": one.file,
         "error": one.error}
        for one in value.items
    ]  # fmt: skip
    names = ("document", "status", "points", "rows", "file", "error")
    return rows, [name for name in names if name in ("document", "status") or any(row[name] for row in rows)]


def csv_table(value: Documents) -> str:
    """The same for a spreadsheet: a line each, RFC 4180."""
    out = io.StringIO()
    lines = csv.writer(out)
    head = (value.job, value.run, value.status, value.operation)
    lines.writerow(
        ["job", "run", "run_status", "operation", "document", "status", "points", "rows", "file", "error", "time"]
    )
    for one in value.items:
        error = redact(one.error)
        lines.writerow([*head, one.document, one.status, one.points, one.rows, one.file, error, one.time])
    return out.getvalue()
