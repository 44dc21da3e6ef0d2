"""The words for steps inside of a relational database, and for what became of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from runner.plan import (
    CheckQueries,
    CreateTables,
    DropColumn,
    EncryptColumns,
    ForgetSteps,
    MapRows,
    OfDatabase,
    Plan,
    RecordSteps,
    RemoveTables,
    RestoreColumn,
    RevertStatements,
    RunStatements,
    Step,
    UnmapRows,
    VerifyRows,
)
from runner.report.words import counted, joined

#: The kind of job whose steps these are.
KIND = "SqlMigration"
#: What a verification on demand calls its parts: rows made anew and compared, questions asked, what cannot be compared.
ROWS, QUESTIONS, PASSED_OVER = "rows", "questions", "passed over"
MODES = (ROWS, QUESTIONS, PASSED_OVER)
#: Characters of a statement in a line.
SHOWN = 60
_TYPES = {
    model.model_fields["type"].default
    for model in (CheckQueries, CreateTables, RemoveTables, RunStatements, RevertStatements, MapRows, UnmapRows, EncryptColumns,
                  VerifyRows, DropColumn, RestoreColumn, RecordSteps, ForgetSteps)
}  # fmt: skip


def step_line(step: OfDatabase) -> str:
    """One step as a sentence without its symbol."""
    match step:
        case CheckQueries():
            holds = "that does" if len(step.queries) == 1 else "one does"
            return f"check {step.when} step {step.name}: {'; '.join(one.name for one in step.queries)}; stop here if {holds} not hold"
        case CreateTables():
            return f"make {_tables(step.tables)}"
        case RemoveTables():
            held = f" ({counted(step.rows, 'row')})" if step.rows is not None else ""
            return f"drop {_tables(step.tables)}{held}"
        case RunStatements():
            how = "" if step.transaction else ", each by itself, outside of a transaction"
            return f"run {counted(len(step.statements), 'statement')} of SQL{how}: {_sql([one.sql for one in step.statements])}"
        case RevertStatements():
            back = step.of.back or ()
            if not back:
                return f"undo the SQL of step {step.name}: nothing has to be done"
            return f"undo the SQL of step {step.name}: {_sql([one.sql for one in back])}"
        case MapRows() if step.make is not None:
            columns = [into for into in step.map.into[0].values if into not in step.make.primary_key]
            return f"copy {joined(columns)} of {step.map.from_} ({counted(step.rows, 'row')}) to {step.make.name}, a table that is made for it"
        case MapRows():
            undo = f"; keys of rows that are added to tables from before go to {step.undo}" if step.undo else ""
            left = f"; {counted(step.left_out, 'row')} left out, as a whole or in part" if step.left_out else ""
            return f"make rows of {joined(_made(step))} from {step.map.from_}{_rows(step.rows)}{left}{undo}"
        case UnmapRows() if step.of.make is not None:
            return f"drop {step.of.make.name}, the copy of {step.of.map.from_}"
        case UnmapRows() if step.of.undo:
            return f"remove the rows of {joined(_made(step.of))} that were made from {step.of.map.from_}, where nobody changed them since"
        case UnmapRows():
            return f"forget the rows of {joined(_made(step.of))}: they go with their tables"
        case EncryptColumns():
            return _encryption(step)
        case VerifyRows(of=MapRows() as made):
            return (
                f"compare {joined(_made(made))} row by row with what {made.map.from_} gives; stop here if one differs"
            )
        case VerifyRows(of=EncryptColumns() as changed):
            return f"look at every value of {joined(changed.columns)} of {changed.table}; stop here if one cannot be decrypted"
        case DropColumn():
            return f"drop column {step.column} of {step.table} ({counted(step.values, 'value')}; they stay in {step.undo} until the rollback expires)"
        case RestoreColumn():
            return f"bring column {step.of.column} of {step.of.table} back, with its {counted(step.of.values, 'value')} out of {step.of.undo}"
        case RecordSteps():
            return f"record as done, and do nothing else: {', '.join(name for name, _digest in step.steps)}"
        case ForgetSteps():
            return f"forget that these steps are done, and change nothing else: {', '.join(name for name, _digest in step.of.steps)}"
    raise AssertionError(step)


def summary(plan: Plan) -> str:
    """How much there is to do in tables and rows; empty for other plans."""
    steps = [step for step in plan.steps if isinstance(step, OfDatabase)]
    if not steps:
        return ""
    made = sum(len(step.made) for step in steps if isinstance(step, CreateTables))
    made += sum(step.make is not None for step in steps if isinstance(step, MapRows))
    gone = sum(len(step.of.made) for step in steps if isinstance(step, RemoveTables))
    gone += sum(step.of.make is not None for step in steps if isinstance(step, UnmapRows))
    read = sum(step.rows for step in steps if isinstance(step, MapRows | EncryptColumns))
    counts = [
        (made, "table", "to make"),
        (gone, "table", "to drop"),
        (read, "row", "to read"),
        (sum(item.distinct for step in steps if isinstance(step, MapRows) for item in step.made), "row", "to make"),
        (sum(len(step.columns) for step in steps if isinstance(step, EncryptColumns)), "column", "to encrypt or decrypt"),
        (sum(isinstance(step, DropColumn) for step in steps), "column", "to drop"),
        (sum(isinstance(step, RestoreColumn) for step in steps), "column", "to bring back"),
        (sum(len(step.statements) for step in steps if isinstance(step, RunStatements)), "statement", "of SQL to run"),
        (sum(len(step.of.back or ()) for step in steps if isinstance(step, RevertStatements)), "statement", "of SQL to undo it"),
        (sum(len(step.steps) for step in steps if isinstance(step, RecordSteps)), "step", "to record as done"),
        (sum(len(step.of.steps) for step in steps if isinstance(step, ForgetSteps)), "step", "to forget"),
    ]  # fmt: skip
    parts = [f"{counted(count, word)} {what}" for count, word, what in counts if count]
    if not parts:
        parts = [f"{counted(sum(len(s.queries) for s in steps if isinstance(s, CheckQueries)), 'question')} to ask"]
    return f"Plan: {', '.join(parts)}."


def around(step: OfDatabase) -> tuple[str, str] | None:
    """(before, after) of a step that makes or removes something; None for others."""
    match step:
        case CreateTables():
            return "not there", "empty"
        case RemoveTables():
            return (counted(step.rows, "row") if step.rows is not None else "there"), "not there"
        case DropColumn():
            return counted(step.values, "value"), "not there"
        case RestoreColumn():
            return "not there", counted(step.of.values, "value")
    return None


def is_of(types: Iterable[str]) -> bool:
    """Whether steps are those of a migration inside of a relational database."""
    return bool({*types} & _TYPES)


def verified(item: dict[str, Any]) -> list[str]:
    """The verdict over rows or questions of a step."""
    if item["differences"]:
        return [f"{item['to']}: not as it should be:", *(f"  {line}" for line in item["differences"])]
    if item["mode"] == QUESTIONS:
        return [f"{item['to']}: {counted(item['compared'], 'question')} asked, answers as wanted"]
    if item["mode"] == PASSED_OVER:
        return [f"{item['to']}: not compared: {item['why']}"]
    return [
        f"{item['from']} → {item['to']}: {counted(item['compared'], 'row')} compared, {item['equal']:,} as they should be"
    ]


def outcome_line(step: str, result: dict[str, Any]) -> str:
    """What became of a step, in a sentence; empty for those of which there is nothing to say."""
    match step:
        case "map_rows":
            made = joined(
                [f"{counted(count, 'row')} of {table}" for table, count in result.get("inserted", {}).items()]
            )
            left = result.get("left_out", 0)
            told = f"; {counted(left, 'row')} left out, as a whole or in part" if left else ""
            return f"read {counted(result.get('read', 0), 'row')}, made {made or 'nothing'}{told}"
        case "unmap_rows":
            changed = result.get("changed_since", 0)
            left_alone = f"; {counted(changed, 'row')} changed since were left alone" if changed else ""
            return (
                f"removed {counted(result.get('rows', 0), 'row')}{left_alone}" if result.get("rows") or changed else ""
            )
        case "encrypt_columns":
            return f"read {counted(result.get('read', 0), 'row')}, changed {result.get('changed', 0):,}"
        case "verify_rows":
            return f"verified: {counted(result.get('read', 0), 'row')} compared, {result.get('done', 0):,} equal"
    return ""


def was_vain(step: Step, result: dict[str, Any]) -> bool:
    """Whether the way back of a step found that the step had not been done. `result`: what became of the way back."""
    if isinstance(step, RevertStatements):
        return not result.get("statements") and bool(step.of.back)
    return isinstance(step, RemoveTables | RestoreColumn) and not result


def _encryption(step: EncryptColumns) -> str:
    what = f"{joined(list(step.columns))} of {step.table}{_rows(step.rows)}"
    if not step.before:
        how = f"encrypt {what} with key {step.after}"
    elif not step.after:
        how = f"decrypt {what} with key {step.before}, to plain text"
    else:
        how = f"decrypt {what} with key {step.before} and encrypt with key {step.after}"
    if not step.undo:
        return how
    return f"{how}, where the run has changed it" if step.undoes else f"{how}; what it changes is listed in {step.undo}"


def _made(step: MapRows) -> list[str]:
    return list(dict.fromkeys(into.table for into in step.map.into))


def _rows(count: int) -> str:
    return f" ({counted(count, 'row')})" if count else ""


def _tables(names: Sequence[str]) -> str:
    return f"{counted(len(names), 'table')}: {', '.join(names)}"


def _sql(texts: list[str]) -> str:
    first = " ".join(texts[0].split())
    shown = first if len(first) <= SHOWN else f"{first[:SHOWN].rstrip()} …"
    return shown + (f" and {len(texts) - 1:,} more" if len(texts) > 1 else "")
