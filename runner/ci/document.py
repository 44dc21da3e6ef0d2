"""The plans of a change as one Markdown document: what a host shows beside the change, and how applying it went.

Its first line is a marker that no reader sees, by which the comment is found again. It never grows over the limit of a
host: long plans are cut, each to its share. Nothing that a name or a text holds is taken for markup, a mention or a command.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from runner.ci.bundle import Bundle, Planned, sources
from runner.ci.texts import as_html, cell, code, first_lines, first_sentence, harmless, length, quote, shares
from runner.embedder import money
from runner.errors import redact
from runner.plan import BackUpPoints, BackUpTables, Change, LoadTables, Plan, RestoreDocuments
from runner.points import Model
from runner.report import markdown, phrases

#: Characters that a comment may have: GitHub's limit, of which a part is kept for the result.
LIMIT = 60_000
WITH_RESULT = 65_000
#: Entries of a list in the banner; the summary table and the sections have all.
SHOWN = 8
#: The least that is left of a plan that is cut.
LEAST = 400
#: Characters of the marker for what the jobs are made from.
MOST_SOURCES = 3_000
#: What is kept of the plans below a long result.
ENOUGH = 1_000
_MARKER = re.compile(r"<!-- vecrun (\{.*\}) -->")
_RESULT = ("<!-- vecrun result -->", "<!-- vecrun result end -->")
_CUT = "_Cut here, so that the comment is not too long._"


class Marker(Model):
    """What the first line of a comment says. `workspace` and `environment` name the comment, `head` and `digest` what is in
    it."""

    workspace: str
    environment: str
    head: str
    digest: str
    plans: str = ""  # `Bundle.identity`
    since: str = ""  # when what these plans do was first shown; an approval of before is of something else
    sources: dict[str, str] = {}  # connections, models and files of its jobs, with the beginning of their digests

    def same_place(self, other: Marker) -> bool:
        """Whether both are of one workspace in one environment: then it is one comment."""
        return (self.workspace, self.environment) == (other.workspace, other.environment)


class Result(Model):
    """How applying one job went. `status`: completed, moved (its state, to a new name), failed, refused, not begun."""

    job: str
    status: str
    summary: str = ""
    run: str = ""
    seconds: float | None = None
    error: str = ""


def marker(bundle: Bundle) -> str:
    """The first line of the document of a bundle."""
    return _marker_line(
        Marker(
            workspace=bundle.workspace, environment=bundle.environment, head=bundle.head, digest=bundle.digest,
            plans=bundle.identity, sources=_sources(bundle),
        )
    )  # fmt: skip


def _sources(bundle: Bundle) -> dict[str, str]:
    """Nothing when there are too many to stand in a line: then what differs cannot be named."""
    found = {name: known[-12:] for item in bundle.jobs for name, known in sources(item.parts).items()}
    return found if len(json.dumps(found)) < MOST_SOURCES else {}


def dated(text: str, since: str) -> str:
    """The document with this moment in its first line."""
    said = parse_marker(text)
    assert said is not None
    return f"{_marker_line(said.model_copy(update={'since': since}))}\n{text.partition(chr(10))[2]}"


def parse_marker(text: str) -> Marker | None:
    """What the first line of a comment says; None when it is no comment of vecrun. A quoted marker is none."""
    found = _MARKER.fullmatch(text.partition("\n")[0].rstrip("\r"))
    try:
        return Marker.model_validate(json.loads(found[1])) if found else None
    except (ValueError, ValidationError):
        return None


def _marker_line(value: Marker) -> str:
    body = json.dumps(value.model_dump(), ensure_ascii=True)
    body = body.replace("--", "-\\u002d").replace(">", "\\u003e")  # which would end the comment
    return f"<!-- vecrun {body} -->"


def document(bundle: Bundle, plans: Mapping[str, Plan], folder: str = "", limit: int = LIMIT) -> str:
    """The document of a bundle with its plans by job. `folder`: where they are saved, for the commands to copy; `limit`: the
    most characters it may have."""
    head = [marker(bundle), f"## vecrun: {_headline(bundle)}", ""]
    head += _place(bundle) + _banner(bundle, plans) + _table(bundle, plans)
    tail = _notes(bundle) + _next(bundle, folder) + _footer(bundle)
    sections = [(item, redact(_section(item, plans.get(item.job)))) for item in bundle.jobs]
    framed = [(*_frame(item, folder), text) for item, text in sections if text]
    fixed = redact("\n".join([*head, *tail]))
    room = limit - length(fixed) - sum(length("".join(frame[:2])) + 6 for frame in framed)
    if room < LEAST * len(framed):  # hundreds of jobs: no section has room, and the table is cut, too
        return _shortened(head, _next(bundle, folder) + _footer(bundle), folder, limit)
    cut = shares([length(frame[-1]) for frame in framed], room)
    body = []
    for (opening, closing, full, text), most in zip(framed, cut, strict=True):
        kept = text if length(text) <= most else f"{first_lines(text, most - length(full) - 2)}\n\n{full}"
        body += [opening, "", kept, "", closing, ""]
    return redact("\n".join([*head, *body, *tail])) + "\n"


def with_result(text: str, results: Sequence[Result], limit: int = WITH_RESULT) -> str:
    """The document with how applying it went, below its title; in place of an earlier result. The result stays whole, and the
    plans are cut where both have no room; of hundreds of jobs those that failed stand first."""
    opening, closing = _RESULT
    before, found, after = text.partition(opening + "\n")
    if found:
        text = before + after.partition(closing + "\n")[2].removeprefix("\n")
    failed = [item for item in results if item.error]
    going = any(item.status == "not begun" for item in results)
    done = "did not come to its end" if failed else "is under way" if going else "is done"
    lines = [opening, f"### Applying it {done}", ""]
    table = ["| job | | run | time |", "| --- | --- | --- | --- |"]
    for item in [*failed, *(item for item in results if not item.error)]:
        status = f"**{cell(item.status)}**" if item.error or item.status == "not begun" else cell(item.status)
        what = f"{status}: {cell(item.summary)}" if item.summary else status
        took = phrases.duration(item.seconds) if item.seconds is not None else ""
        table.append(f"| {cell(item.job)} | {what} | {cell(item.run)} | {took} |")
    errors = [line for item in failed for line in ("", f"**{cell(item.job)}**", "", quote(item.error))]
    first, _, rest = text.partition("\n")
    title, _, rest = rest.partition("\n")
    if not failed and not going:
        title = title.replace(" to apply", " applied")
    frame = length("".join([first, title, closing])) + 10
    note = "What follows is the plan as it was shown before."
    room = limit - frame - ENOUGH
    while len(table) > 3 + len(failed) and length("\n".join([*lines, *table, *errors, "", note])) > room:
        shown = 2 + len(failed) + (len(table) - len(failed) - 3) // 2  # the errors are worth more than what went well
        table = [*table[:shown], f"| and {2 + len(results) - shown} more | | | |"]
    said = first_lines(redact("\n".join([*lines, *table, *errors, "", note])), room)
    rest = _first_part(rest.lstrip("\n"), limit - frame - length(said))
    return "\n".join([first, title, "", said, "", closing, "", rest])


def _first_part(text: str, room: int) -> str:
    """The beginning of what follows the title, with its footer, and no section left open."""
    if length(text) <= room:
        return text
    footer = text.rstrip("\n").rpartition("\n")[2]
    end = f"\n\n</details>\n\n{_CUT} The rest is in the artefact.\n\n"
    kept = first_lines(text, room - length(end) - (length(footer) if len(footer) < ENOUGH // 2 else 0) - 2)
    if kept.count("<details>") == kept.count("</details>"):
        end = end.replace("</details>\n\n", "")
    return kept + end + (f"{footer}\n" if len(footer) < ENOUGH // 2 else "")


# Parts ----------------------------------------------------------------------------------------------------------------


def _headline(bundle: Bundle) -> str:
    failed = sum(bool(item.error) for item in bundle.jobs)
    changing = sum(item.changes or bool(item.renamed_from) for item in bundle.jobs)
    if not bundle.jobs:
        return "no job is touched" if not bundle.removed else f"{phrases.counted(len(bundle.removed), 'job')} removed"
    text = f"{phrases.counted(changing, 'job')} to apply" if changing else "nothing to apply"
    return text + (f", {failed} not planned" if failed else "")


def _place(bundle: Bundle) -> list[str]:
    said = [f"workspace {cell(bundle.workspace)}"] if bundle.workspace != "." else []
    said += [f"environment {cell(bundle.environment)}"] if bundle.environment else []
    return [" · ".join(said), ""] if said else []


def _banner(bundle: Bundle, plans: Mapping[str, Plan]) -> list[str]:
    """In red, what nobody may overlook."""
    lost = [f"{cell(item.job)}: {cell(what)}" for item in bundle.jobs for what in item.destroys]
    blocked = [
        f"{cell(item.job)}: {', '.join(_codes(plans[item.job], blocking=True))}" for item in bundle.jobs if item.blocked
    ]
    failed = [cell(item.job) for item in bundle.jobs if item.error]
    lines: list[str] = []
    for title, found in (
        ("Gone for good after this", lost), ("Cannot be applied as it is", blocked), ("Could not be planned", failed)
    ):  # fmt: skip
        if found:
            more = [f"> - and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
            lines += [
                *([">"] if lines else []),
                f"> **{title}**",
                ">",
                *(f"> - {item}" for item in found[:SHOWN]),
                *more,
            ]
    return ["> [!CAUTION]", *lines, ""] if lines else []


def _table(bundle: Bundle, plans: Mapping[str, Plan]) -> list[str]:
    if not bundle.jobs:
        return []
    lines = [
        "| job | what happens | points, rows | findings | USD | time | |",
        "| --- | --- | ---: | --- | ---: | ---: | --- |",
    ]
    for item in bundle.jobs:
        plan = plans.get(item.job)
        what = (
            f"its state moves here from {cell(item.renamed_from)}"
            if item.renamed_from
            else cell(first_sentence(item.summary))
        )
        usd = money(item.usd) if item.usd else "" if item.usd is not None or plan is None else "not known"
        took = phrases.duration(item.seconds) if item.seconds is not None else ""
        codes = ", ".join(_codes(plan)) if plan is not None else ""
        size = _size(plan) if plan is not None else ""
        lines.append(f"| {cell(item.job)} | {what} | {size} | {codes} | {usd} | {took} | {_state(item)} |")
    return [*lines, ""]


def _state(item: Planned) -> str:
    if item.error:
        return "**not planned**"
    if item.blocked:
        return "**blocked**"
    return "to apply" if item.changes or item.renamed_from else "nothing to do"


def _codes(plan: Plan, *, blocking: bool = False) -> list[str]:
    """The codes of the findings; those that block are bold."""
    found = {item.code: False for item in plan.notices if item.blocking or not blocking}
    found |= {item.code: True for item in plan.notices if item.blocking}
    return [f"**{code}**" if heavy else code for code, heavy in sorted(found.items())]


def _size(plan: Plan) -> str:
    """How much a plan is about."""
    rows = sum(step.rows for step in plan.steps if isinstance(step, BackUpTables | LoadTables))
    points = plan.points + sum(step.points for step in plan.steps if isinstance(step, BackUpPoints))
    documents = next((step.documents for step in plan.steps if isinstance(step, Change | RestoreDocuments)), 0)
    counts = ((points, "point"), (rows, "row"), (documents, "document"))
    return ", ".join(phrases.counted(count, word) for count, word in counts if count)


def _section(item: Planned, plan: Plan | None) -> str:
    """What stands in the folded section of a job; empty when there is nothing to say."""
    if item.error:
        return quote(item.error)
    if plan is None or not (item.changes or plan.notices or plan.drift):
        return ""
    text = markdown.plan(_plain(plan)).partition("\n")[2].strip()  # the title is that of the section
    text = text.replace(
        "\nApply it with `vecrun apply PLANFILE`; it is refused if anything it touches moved by then.", ""
    )
    why = f"Planned because of: {', '.join(map(cell, item.why))}.\n\n" if item.why else ""
    said = f"{quote(plan.description)}\n\n" if plan.description else ""
    return why + said + harmless(text)


def _plain(plan: Plan) -> Plan:
    """The plan with what people wrote into a job or a rule as text: no heading, link or list of theirs looks like ours."""

    def escaped(text: str) -> str:
        return cell(text).replace("\\|", "|")  # in a table it is escaped once more

    notices = [
        item.model_copy(
            update={"accepted": escaped(item.accepted) if item.accepted else item.accepted}
            | ({"message": escaped(item.message)} if item.code.startswith("VP") else {})
        )
        for item in plan.notices
    ]
    return plan.model_copy(update={"description": "", "notices": tuple(notices)})


def _frame(item: Planned, folder: str) -> tuple[str, str, str]:
    """(what opens a section, what closes it, what is said when its text is cut)."""
    words = "not planned" if item.error else first_sentence(item.summary)
    opening = f"<details><summary><b>{as_html(item.job)}</b>: {as_html(words)}</summary>"
    path = f"{folder}/{item.plan.removesuffix('.json')}" if item.plan else ""
    full = f"The full plan is in {cell(path)}.md and .html of the artefact." if path else "The full text is in the log."
    return opening, "</details>", f"{_CUT} {full}"


def _notes(bundle: Bundle) -> list[str]:
    lines = []
    for item in bundle.jobs:
        if item.renamed_from:
            old, new = cell(item.renamed_from), cell(item.job)
            lines.append(f"- Renamed: {old} is {new} now. Its state moves with it; no collection is touched.")
    lines += [
        f"- Removed: nothing describes {cell(job)} any more. What it made stays as it is. To undo it: "
        f"{code('vecrun rollback ' + job)}; to forget it: {code('vecrun state rm ' + job)}"
        for job in bundle.removed
    ]
    lines += [f"- {cell(note)}" for note in bundle.notes]
    return [*lines, ""] if lines else []


def _next(bundle: Bundle, folder: str) -> list[str]:
    """The command that comes next, to copy."""
    name = "vecrun" if bundle.workspace == "." else f"vecrun -w {shlex.quote(bundle.workspace)}"
    env = f" --env {shlex.quote(bundle.environment)}" if bundle.environment else ""
    stuck = next((item for item in bundle.jobs if item.error or item.blocked), None)
    if stuck is not None:
        said = "Mend that first. To look at it where the stores can be reached:"
        verb = "plan" if stuck.kind else "validate"  # of a file that cannot be read no kind is known
        command = f"{name} {verb} {shlex.quote(stuck.file)}{env}"
    elif bundle.has_changes:
        said, command = "To apply exactly this:", f"{name} ci apply {shlex.quote(folder or '.')}{env}"
    else:
        return []
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", command)), default=0))
    return [said, "", f"{fence}console", command.replace("\n", " "), fence, ""]


def _footer(bundle: Bundle) -> list[str]:
    commits = f"commit {bundle.head[:12]}, compared with {bundle.base[:12]}"
    return [f"<sub>{commits} · plans {bundle.digest[7:19]} · vecrun {as_html(bundle.tool_version)}</sub>"]


def _shortened(head: list[str], tail: list[str], folder: str, limit: int) -> str:
    """Only what fits, from the top; the end stays."""
    where = f"The rest is in {cell(folder)} of the artefact." if folder else "The rest is in the artefact."
    end = redact("\n".join([f"{_CUT} {where}", "", *tail]))
    return f"{first_lines(redact(chr(10).join(head)), limit - length(end) - 4)}\n\n{end}\n"
