"""What the record in the database says of the steps of a spec: those that are done, and what is not as it was recorded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from runner.kinds.sql_migration import findings
from runner.kinds.sql_migration.spec import SqlMigrationSpec, StepSpec
from runner.plan import Notice

if TYPE_CHECKING:
    from runner.relational.record import Entry, Record


def standing(
    spec: SqlMigrationSpec, record: Record, checks: Mapping[str, str], known: Collection[str]
) -> list[Notice]:  # fmt: skip
    """What the record in the database says of the spec's steps. `checks`: key -> what tells it from others; `known`: runs that this
    workspace has applied."""
    found, claim = list[Notice](), record.claim
    if claim is not None and claim.open:
        found.append(findings.blocking(findings.HALF, findings.half(f"run {claim.run} is not through"), ""))
    for job, run in record.others:
        message = f"run {run} of job {job} works on this database, or did not come to its end; it is waited for"
        found.append(Notice(code=findings.BUSY, message=message))
    recorded = {entry.step: entry for entry in record.entries}
    begun = [entry for entry in record.entries if entry.status in ("begun", "undoing")]
    for entry in begun:
        what = "begun it" if entry.status == "begun" else "begun to undo it"
        message = f"run {entry.run} has {what} and not come to its end"
        found.append(findings.blocking(findings.HALF, findings.half(message), entry.step))
    steps = {step.name: step for step in spec.steps if step.forms}
    for name, entry in recorded.items():
        step = steps.get(name)
        if step is None:
            message = f"it {_was(entry)} run {entry.run}, and the spec does not have it any more: put it back"
            found.append(findings.blocking(findings.CHANGED, message, name))
        elif step.digest != entry.digest:
            message = (
                f"it {_was(entry)} run {entry.run}, and its {step.forms[0]} says something else now, perhaps by a variable (--var, the "
                "environment): an applied step stays as it is. Put it back, and add steps at the end; or roll the job back first"
            )
            found.append(findings.blocking(findings.CHANGED, message, name))
    names = list(steps)
    missing = [name for name in names if name not in recorded]
    if later := [name for name in names[names.index(missing[0]) :] if name in recorded] if missing else []:
        message = findings.half(f"it is not recorded, and {', '.join(later)} after it is: new steps come at the end")
        found.append(findings.blocking(findings.HALF, message, missing[0]))
    for name, check in checks.items():
        if claim is not None and claim.keys.get(name, check) != check:
            message = (
                "it is another key than the one that what stands in the database was encrypted with. Put that one back; a new key "
                "gets another name, and a step with rotate"
            )
            found.append(findings.blocking(findings.OTHER_KEY, message, f"key {name}"))
    if recorded and not any(item.blocking for item in found):
        runs = sorted({(str(entry.recorded)[:10], entry.run) for entry in record.entries})
        by = ", ".join(f"run {run} on {day}" for day, run in runs)
        done = [name for name in names if name in recorded]
        rest = "Nothing is left to do" if not missing else "They are not done again"
        message = f"steps recorded in the database: {', '.join(done)} ({by}). {rest}"
        if strange := sorted({entry.run for entry in record.entries} - {*known}):
            message += f". This workspace does not know run {', '.join(strange)}: another one applied it, or the state was lost; only there it can be rolled back"
        found.append(Notice(code=findings.RECORDED, message=message))
    return found


def _was(entry: Entry) -> str:
    return "was recorded by stamp in" if entry.status == "stamped" else "was applied by"


def due(spec: SqlMigrationSpec, record: Record) -> list[StepSpec]:
    """The steps after the last recorded one; none when nothing that is recorded is left. Steps that only check go with those around them."""
    recorded = {entry.step for entry in record.entries}
    done = [number for number, step in enumerate(spec.steps) if step.name in recorded]
    rest = list(spec.steps[done[-1] + 1 :] if done else spec.steps)
    return rest if not done or any(step.forms for step in rest) else []
