"""A plan as Markdown: what a pull request shows."""

from __future__ import annotations

from runner.plan import Plan
from runner.report import phrases


def plan(value: Plan) -> str:
    """Summary first, then per collection what changes, the steps, the findings, the way back."""
    what = f"{value.purpose.capitalize()} of run `{value.of_run}`" if value.of_run else value.kind
    lines = [f"## vecrun plan: `{value.job}`", "", f"**{phrases.summary(value)}**", ""]
    if value.description:
        lines += [value.description, ""]
    blocking = [item for item in value.notices if item.blocking]
    if blocking:
        lines += [f"> **This plan cannot be applied yet:** {len(blocking)} finding(s) are not accepted.", ""]
    lines += [f"> **Gone for good:** {item}" for item in phrases.destroyed(value)]
    environment = f" · environment `{value.environment}`" if value.environment else ""
    lines += [f"{what}{environment} · plan `{value.plan_digest[7:19]}` · spec `{value.spec_digest[7:19]}`", ""]
    for item in value.overview:
        lines += [f"### {phrases.heading(item)}", "", "| | now | after |", "| --- | --- | --- |"]
        lines += [
            f"| {_cell(fact.label)} | {_cell(fact.before)} | {'the same' if phrases.unchanged(fact) else _cell(fact.after)} |"
            for fact in item.facts
        ]
        lines.append("")
    if value.steps:
        lines += ["### Steps, in this order", "", "| | | step | needs |", "| ---: | :---: | --- | --- |"]
        lines += [
            f"| {number} | `{step.action}` | {_cell(phrases.step_line(step))} | {phrases.estimate(step)} |"
            for number, step in enumerate(value.steps, 1)
        ]
        lines += ["", "`+` creates · `~` changes · `>` switches readers · `=` checks · `-` deletes", ""]
    if value.notices:
        lines += ["### Findings", "", "| code | what | |", "| --- | --- | --- |"]
        lines += [
            f"| {'**' + item.code + '**' if item.blocking else item.code} | {_cell(phrases.notice_text(item))} | {_cell(phrases.notice_state(item))} |"
            for item in value.notices
        ]
        lines.append("")
    if value.drift:
        lines += ["### Moved since it was applied", "", *(f"- {item}" for item in value.drift), ""]
    back = phrases.way_back(value)
    if back:
        lines += ["### Way back", "", back[0], ""]
        lines += [f"- `{line.split()[0]}` {line.split(maxsplit=1)[1]}" for line in back[1:] if line.startswith("  ")]
        lines += ["", *(line for line in back[1:] if not line.startswith("  ")), ""]
    if value.steps:
        lines += ["Apply it with `vecrun apply PLANFILE`; it is refused if anything it touches moved by then."]
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    bare = text.lstrip(" ")  # what is indented stays so
    return "&nbsp;" * (len(text) - len(bare)) + bare.replace("|", "\\|").replace("\n", " ")
