"""What is another thing now than it was when it was shown, in lines for whoever has to decide again."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from runner import commands
from runner.ci.bundle import Bundle
from runner.ci.changes import Side
from runner.commands import Context
from runner.errors import VecrunError, redact
from runner.plan import Plan
from runner.report import markdown

#: Lines of a difference that are shown.
SHOWN = 30
#: Lines of a document that say when and of which commit it is, and no more.
_PASSING = re.compile(r"<!-- vecrun \{|<sub>|.*· plan `[0-9a-f]+` ·|vecrun ci apply |```|To apply exactly this")
_RESULT = re.compile(r"<!-- vecrun result -->\n.*?<!-- vecrun result end -->\n?", re.DOTALL)


def between_plans(context: Context, present: Side, bundle: Bundle, plans: Mapping[str, Plan]) -> list[str]:
    """Plan these jobs of a bundle again, and say which do something else now, and what. Changes nothing."""
    lines = list[str]()
    for item in bundle.jobs:
        shown = plans.get(item.job)
        if shown is None:
            continue
        entry = present.jobs.get(item.job)
        if entry is None:
            lines.append(f"{item.job}: no job file describes it now")
            continue
        try:
            now = commands.plan(context, context.settings.root / entry.file)
        except VecrunError as exc:
            lines.append(f"{item.job}: it cannot be planned now: {exc}")
            continue
        if now.identity() != item.identity:
            found = _diff(markdown.plan(shown), markdown.plan(now))
            lines += [f"{item.job}: shown (-) and now (+)", *(found or ["  the same steps, from another state"])]
    return [redact(line) for line in lines]


def between_documents(shown: str, now: str) -> list[str]:
    """What differs between the text of a comment and the document of new plans."""
    return [redact(line) for line in _diff(_RESULT.sub("", shown.replace("\r\n", "\n")), now)]


def _diff(one: str, other: str) -> list[str]:
    found = [
        f"  {line}"
        for line in difflib.unified_diff(_lines(one), _lines(other), n=0, lineterm="")
        if not line.startswith(("---", "+++", "@@"))
    ]
    more = [f"  … {len(found) - SHOWN} more lines"] if len(found) > SHOWN else []
    return found[:SHOWN] + more


def _lines(text: str) -> Sequence[str]:
    return [line for line in text.splitlines() if line.strip() and not _PASSING.match(line)]
