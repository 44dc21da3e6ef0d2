"""Reports for a terminal. Words stand beside symbols, so colour and symbols are never the only sign."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runner.embedder import money
from runner.plan import Action, Plan
from runner.report import backups, documents, outcomes, phrases, relational

if TYPE_CHECKING:
    from runner.commands.comparison import Verified
    from runner.commands.execution import Outcome
    from runner.commands.failed import Documents, Failures
    from runner.commands.history import RunStatus
    from runner.commands.models import Found
    from runner.commands.operation import ConnectionTest
    from runner.commands.validation import Validation
    from runner.vectors import Used

#: (text, colour name) -> text; the command line passes one that honours NO_COLOR and the terminal.
Style = Callable[[str, str], str]
COLOURS = {
    Action.CREATE: "green",
    Action.CHANGE: "yellow",
    Action.DELETE: "red",
    Action.SWITCH: "cyan",
    Action.CHECK: "blue",
}


def plain(text: str, _colour: str) -> str:
    """No colour."""
    return text


def plan(value: Plan, style: Style = plain) -> str:
    """A plan for a reviewer at a terminal."""
    what = f"{value.purpose} of run {value.of_run}" if value.of_run else value.kind
    lines = [style(f"{value.job}: {what}", "bold"), *([value.description] if value.description else []), ""]
    for move in value.overview:
        lines.append(f"  {style(phrases.heading(move), 'bold')}")
        width = max(len(fact.label) for fact in move.facts)
        lines += [f"    {fact.label:<{width}}  {phrases.fact_text(fact)}" for fact in move.facts]
        lines.append("")
    if value.steps:
        lines.append(style("Steps, in this order", "bold"))
        for number, step in enumerate(value.steps, 1):
            note = phrases.estimate(step)
            text = f"  {number:>2} {step.action} {phrases.step_line(step)}" + (f"; {note}" if note else "")
            lines.append(style(text, COLOURS[step.action]))
        lines.append("")
    if value.notices:
        lines.append(style("Findings", "bold"))
        for notice in value.notices:
            mark = "!" if notice.blocking else "·"
            text = f"  {mark} {notice.code} {phrases.notice_text(notice)}\n      {phrases.notice_state(notice)}"
            lines.append(style(text, "red" if notice.blocking else "yellow"))
        lines.append("")
    if value.drift:
        lines += [
            style("Moved since it was applied", "bold"),
            *(style(f"  ~ {item}", "yellow") for item in value.drift),
            "",
        ]
    for item in phrases.destroyed(value):
        lines.append(style(f"Gone for good: {item}", "red"))
    back = phrases.way_back(value)
    if back:
        lines += [style("Way back", "bold"), *(f"  {line}" for line in back), ""]
    lines.append(style(phrases.summary(value), "bold"))
    return "\n".join(lines)


def outcome(value: Outcome) -> str:
    """How a run ended."""
    if value.status == "pending":
        return (
            f"{value.job}: run {value.run} waits for a worker.\n"
            f"  look at it: vecrun status {value.job} --watch · vecrun logs {value.job} -f · stop it: vecrun pause {value.job}"
        )
    if not value.steps:
        failed = f" {value.failed:,} of its documents failed: vecrun retry-failed {value.job}" if value.failed else ""
        return f"{value.job}: nothing to do.{failed}"
    kind = "dry run" if value.dry else value.purpose
    lines = [f"{value.job}: {kind} completed in {phrases.duration(value.seconds)} (run {value.run})"]
    if value.dry:
        rows = sum((step["result"] or {}).get("rows", 0) for step in value.steps if step["type"] == "back_up_tables")
        what = phrases.counted(rows, "row") if rows else f"and transformed {value.points:,} points"
        if any(step["type"] == "check_backup" for step in value.steps) and not value.points:
            what = "the backup, which is as its manifest says,"
        if relational.is_of(step["type"] for step in value.steps):
            told = [relational.outcome_line(step["type"], step["result"] or {}) for step in value.steps]
            head = (
                f"{value.job}: dry run did all of it in a transaction that was rolled back, and nothing is left of it"
            )
            return "\n".join([head, *(f"  {line}" for line in told if line)])
        lines = [f"{value.job}: dry run read {what} and wrote nothing"]
        bad = [line for step in value.steps for line in (step["result"] or {}).get("failures", ())]
        if value.failed:
            lines.append(f"  {value.failed:,} {'item' if value.failed == 1 else 'items'} would fail:")
            lines += [f"    {line}" for line in bad] + (["    …"] if value.failed > len(bad) else [])
        return "\n".join([*lines, *_embedded(value)])
    for step in value.steps:
        result = step["result"] or {}
        told = [*outcomes.lines(step["type"], result), relational.outcome_line(step["type"], result)]
        lines += [f"  {line}" for line in told if line]
        if step["type"] == "verify_points":
            lines.append(
                f"  verified ({result['mode']}): source {result['source']:,}, target {result['target']:,}, "
                f"compared {result['compared']:,}, equal {result['equal']:,}"
            )
            if result.get("moved"):
                lines.append(f"  {result['moved']:,} had moved meanwhile and were brought over")
        elif step["type"] == "catch_up":
            repaired = ", ".join(f"{count:,}" for count in result["repaired"])
            passes = "1 pass" if result["passes"] == 1 else f"{result['passes']:,} passes"
            text = f"  caught up in {passes}, points repaired: {repaired}"
            if result["left"]:
                text += f"; {result['left']:,} points were left as they are: nothing says which side is newer"
            lines.append(text)
        elif step["type"] == "rewrite_ids":
            lines.append(f"  rewrote {result['rows']:,} rows")
        elif step["type"] == "restore_ids":
            lines.append(
                f"  restored {result['rows']:,} rows"
                + (f", left {result['changed_since']:,} changed since" if result.get("changed_since") else "")
            )
        elif step["type"] == "replace_vectors":
            lines.append(f"  replaced the vectors of {result['replaced']:,} of {result['read']:,} points")
        elif step["type"] == "restore_vectors":
            lines.append(f"  put the old vectors of {result['done']:,} points back")
        elif step["type"] in documents.STEPS:
            lines.append("  " + documents.changed(result))
        elif step["type"] == "check_documents":
            lines.append(f"  compared {phrases.counted(result['done'], 'document')}: as asked for")
        elif step["type"] == "restore_documents":
            lines.append("  " + documents.restored(result))
        elif step["type"] == "check_quality" and "overlap" in result:
            lines.append("  quality: " + quality_text(result))
        elif step["type"] == "set_model" and result["phase"] in ("end", "again", "restore") and result["rows"]:
            done = "put back in" if result["phase"] == "restore" else "set in"
            lines.append(f"  model version {done} {result['rows']:,} rows")
    lines += _embedded(value)
    if value.failed:
        lines.append(f"  {_failed(value)}")
    return "\n".join(lines)


def _failed(value: Outcome) -> str:
    if relational.is_of(step["type"] for step in value.steps):
        what = phrases.counted(value.failed, "row")
        return f"{what} left out that the plan did not show: vecrun failures {value.job}"
    what = phrases.counted(value.failed, "item")
    return f"{what} failed: vecrun failures {value.job} · vecrun retry-failed {value.job}"


def _embedded(value: Outcome) -> list[str]:
    return [f"  {line}" for line in used_text(value.used)]


def used_text(used: Used) -> list[str]:
    """What a run has asked of its model in one line; none when it asked nothing."""
    if not (used.requests or used.known):
        return []
    cost = f", {money(used.usd)} USD" if used.usd else ""
    kept = f"; {used.known:,} texts were kept from before" if used.known else ""
    return [f"embedded {used.texts:,} texts in {used.requests:,} requests, {used.tokens:,} tokens{cost}{kept}"]


def quality_text(result: dict[str, Any]) -> str:
    """The result of a quality check in one line."""
    parts = [f"{result['queries']} queries, first {result['k']} results"]
    if result["overlap"] is not None:
        parts.append(f"{result['overlap']:.2f} of the old results are among the new")
    if result["recall"] is not None:
        was = f" (old model: {result['recall_before']:.2f})" if result["recall_before"] is not None else ""
        parts.append(f"recall {result['recall']:.2f}{was}")
    return ", ".join(parts)


def failures(value: Failures) -> str:
    """The items a run left out."""
    if not value.items:
        return f"{value.job}: no item failed"
    if value.kind == relational.KIND:
        what = phrases.counted(len(value.items), "row")
        lines = [f"{value.job}: {what} left out by run {value.run}, as a whole or in part ({value.status})"]
        return "\n".join([*lines, *(f"  {item.item!r}: {item.error}" for item in value.items)])
    lines = [f"{value.job}: {phrases.counted(len(value.items), 'item')} of run {value.run} failed ({value.status})"]
    lines += [
        f"  {item.item!r}: {item.error} ({item.attempts} {'try' if item.attempts == 1 else 'tries'})"
        for item in value.items
    ]
    lines.append(f"Try just those again: vecrun retry-failed {value.job}")
    return "\n".join(lines)


def model_check(value: dict[str, Any]) -> str:
    """The present and the configured model, and what a change would take."""
    current, wanted = value["current_model"], value["configured_model"]
    present = current.get("version") or f"{current['dimension']} dimensions, version not known"
    lines = [
        f"{value['collection']}: {value['points']:,} points",
        f"  present model     {present} (from {current['from']})",
        f"  configured model  {wanted['version']} ({wanted['name']}, {wanted['dimension']} dimensions)",
    ]
    if not value["needs_reembed"]:
        return "\n".join([*lines, "Nothing has to be embedded."])
    about = "" if value["exact"] else "about "
    cost = "price not known" if value["estimated_cost"] is None else f"{money(value['estimated_cost'])} USD"
    took = "" if value["estimated_time"] is None else f", {phrases.duration(value['estimated_time'])}"
    lines.append(
        f"  to embed          {about}{value['texts']:,} texts, {value['estimated_tokens']:,} tokens, {cost}{took}"
    )
    if value["dimension_changed"]:
        lines.append("The dimension changes: a new collection is needed.")
    return "\n".join(lines)


def found(value: Found) -> str:
    """Search results, best first."""
    lines = [f"{value.place}, queries embedded with {value.model}"]
    for hit in value.hits:
        texts = [item for item in hit["payload"].values() if isinstance(item, str)]
        text = max(texts, key=lambda item: (item.count(" "), len(item)), default="")  # what has the most words
        lines.append(f"  {hit['score']:.3f}  {hit['id']}  {' '.join(text.split())[:100]}")
    return "\n".join(lines if value.hits else [*lines, "  nothing found"])


def validation(value: Validation) -> str:
    """Problems with places, or that there are none."""
    if value.problems:
        return "\n".join(str(item) for item in value.problems)
    count = len(value.files)
    return f"{count} job file{'s' if count != 1 else ''} and the workspace are valid"


def verified(value: Verified) -> str:
    """The verdict per collection."""
    lines = []
    for item in value.collections:
        if item["mode"] == "documents":
            lines += (
                [f"{item['to']}: not as it was asked for", *(f"  {line}" for line in item["differences"])]
                if item["differences"]
                else [f"{item['to']}: {item['equal']:,} documents are as they were asked for"]
            )
        elif item["mode"] == "backup":
            lines += backups.verified(item)
        elif item["mode"] in relational.MODES:
            lines += relational.verified(item)
        elif item["differences"]:
            lines += [f"{item['from']} and {item['to']} differ:", *(f"  {line}" for line in item["differences"])]
        else:
            unit = "rows" if item["mode"] == "tables" else "points"
            compared = (
                f"{item['compared']:,} {unit} compared, {item['equal']:,} equal"
                if item["compared"] or "target" not in item
                else f"{item['target']:,} points each"
            )
            lines.append(f"{item['from']} = {item['to']}: {item['mode']}, {compared}")
    return "\n".join(lines) or f"{value.job}: it verifies nothing, so there is nothing to compare"


def status(value: RunStatus) -> str:
    """Where a run stands."""
    run = value.run
    whole = run["status"] == "completed"  # a filter may have left points out: what is done is all there is
    percent = f" of {value.total:,} ({100 * value.done / value.total:.0f} %)" if value.total and not whole else ""
    lines = [
        f"{run['job']}: {run['purpose']} is {run['status']} (run {run['run']})",
        *([f"  {_word(value)} {value.done:,}{percent}"] if value.total or value.plan.kind != relational.KIND else []),
        *(f"  {line.replace(' ', '  ', 1)}" for line in used_text(value.used)),
        f"  started   {run['started']} by {run['owner']}" if run["started"]
        else f"  created   {run['created']} by {run['owner']}; not started yet",
    ]  # fmt: skip
    if run["finished"]:
        lines.append(f"  finished  {run['finished']}")
    elif run["status"] in ("pending", "running"):
        crew = (
            [] if value.workers is None else [f"{value.workers} workers alive", f"{value.at_work} partitions at work"]
        )
        who = f"coordinated by {value.coordinator}" if value.coordinator else "nobody coordinates it yet"
        if not value.coordinator and value.workers is None and run["status"] == "running":
            who = f"nobody: its process is gone. Go on: vecrun resume {run['job']}"
        if value.waits_for:
            who = f"waits for a slot: limits.runs = {value.slots} and these runs are at work: {', '.join(value.waits_for)}"
        lines.append("  at work   " + ", ".join([who, *crew]))
        if value.queue_answers is False:
            lines.append("  queue     does not answer; the run goes on when it does (vecrun connections test)")
    if value.seconds_left is not None:
        lines.append(f"  time left about {phrases.duration(value.seconds_left)}")
    if value.failed and value.plan.kind == relational.KIND:
        lines.append(f"  left out  {phrases.counted(value.failed, 'row')}: vecrun failures {run['job']}")
    elif value.failed:
        lines.append(
            f"  failed    {value.failed:,} {_items(value)}: vecrun failures {run['job']} · "
            f"vecrun retry-failed {run['job']}"
        )
    if run["error"]:
        lines.append(f"  error     {run['error']}")
    for number, item in enumerate(value.steps, 1):
        parts = f", partitions {item['partitions']}" if "partitions" in item else ""
        state = "begun" if item["status"] == "running" and run["status"] != "running" else item["status"]
        if item["status"] == "done" and relational.was_vain(item["step"], item["result"] or {}):
            parts = "; nothing had to be undone"
        lines.append(f"  {number:>2} {state:<8} {phrases.step_line(item['step'])}{parts}")
        if item["type"] == "check_quality" and "overlap" in (item["result"] or {}):
            lines.append(f"              {quality_text(item['result'])}")
            lines += [f"              {one['overlap']:.2f}  {one['query']}" for one in item["result"]["worst"]]
    if run["status"] == "running":
        gone = "" if value.workers is not None else f" · if its process is gone: vecrun resume {run['job']}"
        lines.append(f"  stop it: vecrun pause {run['job']}{gone}")
    elif run["status"] in ("failed", "paused", "cancelled"):
        on = "retry-failed" if value.failed and "could not be embedded" in (run["error"] or "") else "resume"
        lines.append(f"  go on: vecrun {on} {run['job']} · undo: vecrun rollback {run['job']}")
    return "\n".join(lines)


def _word(value: RunStatus) -> str:
    """What progress is counted in."""
    words = {step.extent[1] for step in value.plan.steps}
    return next((word.ljust(9) for word in ("documents", "rows") if word in words), "points   ")


def report(value: Documents) -> str:
    """What became of each document."""
    return documents.heading(value) + "\n" + table(*documents.rows_of(value), "")


def _items(value: RunStatus) -> str:
    what = "document" if value.plan.kind == "BatchOperation" else "text"
    return what if value.failed == 1 else f"{what}s"


def table(rows: list[dict[str, Any]], columns: list[str], empty: str) -> str:
    """Rows under column names, or a sentence when there are none."""
    if not rows:
        return empty
    cells = [
        columns,
        *([str(row.get(column) if row.get(column) is not None else "") for column in columns] for row in rows),
    ]
    widths = [max(len(line[number]) for line in cells) for number in range(len(columns))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def connections(values: list[ConnectionTest]) -> str:
    """One line a connection; errors with their remedy below."""
    lines = []
    for item in values:
        if item.health is not None:
            rights = f", may {', '.join(item.health.rights)}" if item.health.rights else ""
            size = "" if item.collections is None else f", {item.collections} collections"
            lines.append(
                f"ok    {item.name} ({item.type}): {item.health.version}, {item.health.latency_ms:.0f} ms{rights}{size}"
            )
            lines += [f"      {note}" for note in item.health.notes]
        else:
            assert item.error is not None
            detail = "; ".join(line.strip() for line in item.error.detail.splitlines())
            lines.append(f"error {item.name} ({item.type}): {item.error.summary}. {detail}")
            lines += [f"      {line}" for line in item.error.hint.splitlines()]
    none = [] if any(not item.name.startswith("(") for item in values) else ["vecrun.yaml has no connections"]
    return "\n".join(none + lines)
