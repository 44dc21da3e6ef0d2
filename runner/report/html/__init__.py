"""A plan as one HTML page that needs nothing but itself: no request leaves it, and it reads without scripts.

The sentences are those of `phrases`, as in the text and the Markdown form; headings and short labels stand in `page.html`.
All that comes out of a plan is escaped, and characters that no reader sees, or that turn a line around, are shown by number.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import shlex
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from runner.embedder import money
from runner.plan import Action, Fact, Notice, Plan, Step, reversed_steps
from runner.report import phrases
from runner.report.html import figures
from runner.report.html.marks import Prose, changes, document, visible

#: What a step does, in a word and as a class of the style sheet.
WORDS = {
    Action.CREATE: "creates",
    Action.CHANGE: "changes",
    Action.DELETE: "deletes",
    Action.SWITCH: "switches",
    Action.CHECK: "checks",
}
#: What findings are about, by the letters of their codes; the heaviest first.
FAMILIES = {
    "VX": "not possible",
    "VP": "policy",
    "VD": "destroys",
    "VL": "loses information",
    "VC": "cost or time",
    "VB": "readers",
    "VI": "information",
}
#: Lists of more than so many entries are folded.
FOLDED = 12


@dataclass(frozen=True)
class Row:
    """A fact about a collection, with what changes marked. `state`: changed, same, or empty. `span`: how many rows its
    label stands for; 0 for those that go on with the label above."""

    label: str
    before: Markup
    after: Markup
    state: str
    span: int


def plan(value: Plan, file: str = "") -> str:
    """The page. `file`: where the plan is saved, for the command that applies it."""
    prose = Prose(value)
    blocking = sum(item.blocking for item in value.notices)
    back = phrases.way_back(value)
    style, script = _part("page.css"), _part("page.js")
    return _template().render(
        plan=value,
        prose=prose,
        phrases=phrases,
        words=WORDS,
        folded=FOLDED,
        style=Markup(style),  # noqa: S704  files of this package
        script=Markup(script),  # noqa: S704
        policy=_policy(style, script),
        what=f"{value.purpose} of run {value.of_run}" if value.of_run else value.kind,
        made=_moment(value.created),
        blocking=blocking,
        lost=phrases.destroyed(value),
        state=_state(value),
        tiles=_tiles(value),
        findings=sorted(value.notices, key=_weight),
        family=lambda notice: FAMILIES.get(notice.code[:2], "finding"),
        tables=[(phrases.heading(item), _rows(item.facts)) for item in value.overview],
        groups=_groups(value),
        actions=Counter(step.action for step in value.steps),
        around=figures.around,
        undone=functools.partial(_undone, value),
        charts=figures.charts(value),
        back=back,
        undo=[(Action(line[2]), line[4:]) for line in back if line.startswith("  ")],
        command=_command(value, file),
        raw=document(value),
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_shown, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": phrases.number}
    return environment.from_string(_part("page.html"))


def _shown(value: Any) -> Any:
    """Every text that is not markup yet, before it is escaped."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@functools.cache
def _part(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Nothing from outside, and of what is inside only the page's own style and script."""

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    rules = ("default-src 'none'", f"style-src {source(style)}", f"script-src {source(script)}")
    return "; ".join((*rules, "base-uri 'none'", "form-action 'none'"))


def _moment(created: str) -> str:
    """2026-11-20 22:05 UTC; as it stands when it is no time."""
    try:
        return f"{datetime.fromisoformat(created).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return created


def _weight(notice: Notice) -> tuple[bool, int]:
    """What blocks first, then by what it is about; the order of the plan among equals."""
    families = list(FAMILIES)
    return not notice.blocking, families.index(notice.code[:2]) if notice.code[:2] in families else 0


def _state(value: Plan) -> str:
    """Whether it can be applied, as a class of the style sheet."""
    if not value.steps:
        return "moved" if value.drift else "still"
    return "blocked" if value.blocked else "lossy" if phrases.destroyed(value) else "ready"


def _rows(facts: tuple[Fact, ...]) -> list[Row]:
    """A row a fact. One without a label goes on with the fact before it."""
    starts = [number for number, fact in enumerate(facts) if fact.label or not number]
    spans = {start: end - start for start, end in itertools.pairwise((*starts, len(facts)))}
    rows = []
    for number, fact in enumerate(facts):
        same = phrases.unchanged(fact)
        before, after = changes(fact.before, fact.after)
        state = "same" if same else "changed" if fact.before and fact.after else ""
        rows.append(Row(fact.label, before, Markup("the same") if same else after, state, spans.get(number, 0)))
    return rows


def _tiles(value: Plan) -> list[tuple[str, str, str]]:
    """(label, value, remark): what a reviewer wants to know at a glance."""
    if not value.steps:
        return []
    estimates = [step.estimate for step in value.steps]
    embeds = any(item.tokens is not None for item in estimates)
    seconds, data = [item.seconds for item in estimates], [item.bytes for item in estimates]
    took = phrases.about(figures.total(seconds)) if figures.known(seconds) else "not measured"
    usd = [item.usd for item in estimates if item.tokens is not None]
    cost = "none" if not embeds else "not known" if None in usd else f"about {money(figures.total(usd))} USD"
    tokens = phrases.number(figures.total([item.tokens for item in estimates]))
    size = f"about {phrases.size(figures.total(data))}" if figures.known(data) else "not measured"
    blocking = sum(item.blocking for item in value.notices)
    return [
        ("Steps", phrases.number(len(value.steps)), ""),
        ("Findings", phrases.number(len(value.notices)), f"{phrases.number(blocking)} not accepted" if blocking else ""),
        ("Time", took, "" if embeds or not figures.known(seconds) else "reading alone, as measured"),
        ("Cost", cost, f"{tokens} tokens" if embeds else "nothing is embedded"),
        ("Data", size, ""),
        ("Way back", *_back(value)),
    ]  # fmt: skip


def _back(value: Plan) -> tuple[str, str]:
    if value.purpose != "apply":
        return ("this is one", "") if value.purpose == "rollback" else ("with its run", "")
    _undo, irreversible = reversed_steps(value.steps)
    if irreversible:
        return "none", f"after {phrases.counted(len(irreversible), 'step')}"
    return value.retention, "after the run"


def _groups(value: Plan) -> list[tuple[bool, list[tuple[int, Step]]]]:
    """Steps with their numbers. Long runs of one type stand alone, to be folded: (True, run); what is between them together."""
    groups: list[tuple[bool, list[tuple[int, Step]]]] = []
    for _type, run in itertools.groupby(enumerate(value.steps, 1), key=lambda item: item[1].type):
        steps = list(run)
        long = len(steps) > FOLDED
        if groups and not long and not groups[-1][0]:
            groups[-1][1].extend(steps)
        else:
            groups.append((long, steps))
    return groups


def _undone(value: Plan, step: Step) -> str | None:
    """What takes a step back, in words; None when it is irreversible, empty when there is nothing to take back."""
    back = step.reverse() if value.purpose == "apply" else ()
    return None if back is None else "; then ".join(phrases.step_line(item) for item in back)


def _command(value: Plan, file: str) -> tuple[str, str]:
    """(what to do next, the command for it)."""
    job = shlex.quote(value.job)
    environment = f" --env {shlex.quote(value.environment)}" if value.environment else ""
    plan_file = shlex.quote(file) if file else "PLANFILE"
    if value.blocked:
        again = (
            f"vecrun plan JOB.yaml -o {plan_file}" if value.purpose == "apply" else f"vecrun rollback {job} --dry-run"
        )
        return "Mend or accept what blocks it, then plan again", again + environment
    if not value.steps:
        if value.drift:
            return "See what moved", f"vecrun drift {job}{environment}"
        return "See how it stands", f"vecrun status {job}{environment}"
    match value.purpose:
        case "rollback":
            return "Roll back", f"vecrun rollback {job}{environment}"
        case "retry":
            return "Try again", f"vecrun retry-failed {job}{environment}"
    return (
        "Apply exactly this; it is refused if anything it touches moved by then",
        f"vecrun apply {plan_file}{environment}",
    )
