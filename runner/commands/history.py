"""`status`, `runs`, `logs`, and the wishes `pause` and `cancel` that a run looks for between batches."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from runner import executor
from runner.commands.context import Context, find_run, job_of
from runner.commands.operation import broker_version
from runner.errors import InvalidFile, VecrunError
from runner.lock import SLOT
from runner.plan import (
    BackUpPoints,
    BackUpTables,
    Change,
    CopyPoints,
    EncryptColumns,
    LoadTables,
    MapRows,
    Plan,
    Recorded,
    ReplaceVectors,
    RestoreDocuments,
    RestoreVectors,
    SealBackup,
    SetModel,
    SetServing,
    Step,
    SwitchAlias,
    TruncateTables,
    UnloadTables,
    VerifyPoints,
    loads,
)
from runner.vectors import Used, Vectors


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands. `done` and `total` are of points copied, embedded or put back; each step has its own."""

    run: dict[str, Any]
    plan: Plan
    steps: tuple[dict[str, Any], ...]
    done: int
    total: int
    seconds_left: float | None
    coordinator: str = ""  # who walks the steps now
    workers: int | None = None  # alive; None for a run that works by itself
    at_work: int = 0  # partitions that workers have
    queue_answers: bool | None = None  # None: it has none, or it cannot be asked from here
    slots: int = 0  # limits.runs
    waits_for: tuple[str, ...] = ()  # runs that have all the slots; empty when it need not wait for one
    used: Used = field(default_factory=Used)  # what embedding has cost so far
    failed: int = 0  # items that could not be embedded

    @property
    def percent(self) -> float | None:
        """Of the planned points; 100 when it completed, whatever a filter left out. None: nothing is planned."""
        if self.run["status"] == "completed":
            return 100.0
        return round(100 * self.done / self.total, 1) if self.total else None


def status(context: Context, name: str) -> RunStatus:
    """Status of a run, or of the newest run of a job. NotFound."""
    with context.ledger(reading=True) as ledger:
        row = find_run(context, ledger, name)
        plan = loads(row["plan"], f"run {row['run']}")
        rows = ledger.steps_of(row["run"])
        steps, done, left = [], 0, None
        for number, (step, state) in enumerate(zip(plan.steps, rows, strict=True)):
            item = {"type": step.type, "status": state["status"], "result": state["result"], "step": step}
            if executor.is_partitioned(step):
                parts = ledger.partitions_of(row["run"], number)
                item["done"], item["points"] = sum(part.done for part in parts), step.extent[0]
                if _moves(step) and state["result"]:  # gc took the partitions, or another pass has begun
                    item["done"] = max(item["done"], state["result"].get("done", 0))
                item["partitions"] = f"{sum(part.status == 'done' for part in parts)}/{len(parts)}"
                if _moves(step):
                    done += item["done"]
                if state["status"] == "running" and state["started"] and item["done"] and row["status"] == "running":
                    passed = (datetime.now(UTC) - datetime.fromisoformat(state["started"])).total_seconds()
                    left = max(step.extent[0] - item["done"], 0) * passed / item["done"]
            elif _moves(step):  # tables: all at once
                done += (state["result"] or {}).get("rows", 0)
            steps.append(item)
        row.pop("plan"), row.pop("lease")
        total = sum(step.extent[0] for step in plan.steps if _moves(step))
        kept, of_run = Vectors(ledger), row["of_run"] if row["purpose"] == "retry" else row["run"]
        held = [item for item in ledger.holders() if not item["expired"]]
        holders = [item for item in held if item["run"] == row["run"]]
        coordinator = f"{holders[0]['owner']} (pid {holders[0]['pid']})" if holders else ""
        distributed, slots = row["executor"] == "distributed", context.settings.workspace.limits.runs
        at_work = ledger.at_work(row["run"]) if distributed else 0
        is_open = row["status"] in ("pending", "running")
        at_slots = tuple(item["run"] for item in held if item["name"].startswith(f"{SLOT}#"))
        return RunStatus(
            row, plan, tuple(steps), done, total, left if (at_work if distributed else coordinator) else None,
            coordinator, len(ledger.crew()) if distributed else None, at_work,
            _queue_answers(context) if distributed and is_open else None, slots,
            at_slots if distributed and is_open and not coordinator and len(at_slots) >= slots else (),
            kept.used(row["run"]), kept.count_failed(of_run),
        )  # fmt: skip


def _moves(step: Step) -> bool:
    """Whether a step's points, documents or rows count as the run's."""
    counted = (
        CopyPoints | RestoreVectors | Change | RestoreDocuments | BackUpPoints | BackUpTables | LoadTables | MapRows
        | EncryptColumns
    )  # fmt: skip
    return isinstance(step, counted) or (isinstance(step, ReplaceVectors) and step.phase == "before")


def _queue_answers(context: Context) -> bool | None:
    try:
        broker = context.settings.broker
    except InvalidFile:  # its URL is a secret of the workers' hosts
        return None
    if broker is None:
        return None
    try:
        return bool(broker_version(broker))
    except VecrunError:
        return False


def runs(context: Context, job: str | None = None) -> list[dict[str, Any]]:
    """History: all runs, newest first. `used`: what embedding has cost; None where nothing was embedded."""
    with context.ledger(reading=True) as ledger:
        found: list[dict[str, Any]] = ledger.runs_of(job_of(context, ledger, job) if job else None)
        used = Vectors(ledger).used_by([row["run"] for row in found])
        return [row | {"used": used.get(row["run"])} for row in found]


def logs(context: Context, name: str, after: int = 0) -> list[dict[str, Any]]:
    """Log of a run, or of a job's newest run."""
    with context.ledger(reading=True) as ledger:
        found: list[dict[str, Any]] = ledger.read_log(find_run(context, ledger, name)["run"], after)
        return found


def control(context: Context, name: str, wish: str) -> str:
    """Ask a running run to pause or cancel. Returns the run. An unfinished run nobody works on is marked at once."""
    with context.ledger(reading=True) as ledger:
        row = find_run(context, ledger, name)
        if not ledger.ask(row["run"], wish, "cancelled" if wish == "cancel" else "paused"):
            ended = ledger.run(row["run"])["status"]
            raise VecrunError("The run has ended", f"run {row['run']} is {ended}", "vecrun runs")
        return str(row["run"])


def stopped(context: Context, run: str, seconds: float = 60.0) -> bool:
    """Wait until a run that was asked to stop has done so. False when it has not within `seconds`."""
    deadline = time.monotonic() + seconds
    with context.ledger(reading=True) as ledger:
        while ledger.run(run)["status"] in ("pending", "running"):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True


def left_behind(context: Context, name: str) -> list[str]:
    """What a run that was stopped has left in the stores, one sentence each."""
    with context.ledger(reading=True) as ledger:
        row = find_run(context, ledger, name)
        plan = loads(row["plan"], f"run {row['run']}")
        found = []
        for number, (step, state) in enumerate(zip(plan.steps, ledger.steps_of(row["run"]), strict=True)):
            if state["status"] == "pending" or isinstance(step, VerifyPoints):
                continue
            if isinstance(step, CopyPoints):
                done = sum(part.done for part in ledger.partitions_of(row["run"], number))
                found.append(f"{step.target}: {done:,} of {step.points:,} points copied; {step.source} is untouched")
            elif isinstance(step, ReplaceVectors) and step.phase == "before":
                parts = ledger.partitions_of(row["run"], number)
                count = sum((state["result"] or {}).get("repaired", []))
                if state["status"] != "done":
                    count += sum((part.notes or {}).get("replaced", 0) for part in parts)
                found.append(
                    f"{step.target}: the vectors of {count:,} of {step.points:,} points were replaced; the old points are in "
                    f"{step.saved}"
                )
            elif isinstance(step, Change):
                done = sum(part.done for part in ledger.partitions_of(row["run"], number))
                found.append(
                    f"{step.target}: {done:,} of {step.documents:,} documents were changed; what they were is in {step.saved}"
                    + (f" and in undo tables beside {step.rows.table}" if step.rows is not None else "")
                )
            elif isinstance(step, RestoreVectors):
                done = sum(part.done for part in ledger.partitions_of(row["run"], number))
                found.append(f"{step.target}: the old vectors of {done:,} points are back")
            elif isinstance(step, SetModel) and step.rows is not None and step.phase in ("begin", "end", "again"):
                column = f"{step.rows.connection}: {step.rows.table}.{step.rows.version_column}"
                says = (
                    f"is empty for rows of another version; old ones are in {step.undo_table}"
                    if step.phase == "begin"
                    else f"says {step.embed.identity.version} for points that were embedded"
                )
                found.append(f"{column} {says}")
            elif isinstance(step, Recorded):
                whole = (
                    "is done and recorded" if state["status"] == "done" else "was begun; what is done of it is recorded"
                )
                found.append(f"{step.connection}: step {step.name} {whole}")
            elif isinstance(step, TruncateTables | LoadTables | UnloadTables) and state["status"] == "done":
                places = ", ".join(map(str, step.written_places))
                said = {"truncate_tables": "emptied", "load_tables": "filled from the backup"}
                found.append(f"{places}: {said.get(step.type, 'as before the restore')}")
            elif isinstance(step, BackUpTables | BackUpPoints | SealBackup):
                found.append(f"{step.into}: files of the backup; vecrun gc removes those that no backup names")
            elif isinstance(step, SwitchAlias):
                found.append(f"alias {step.alias} of {step.connection} points to {step.after or 'nothing'}")
            elif isinstance(step, SetServing):
                found.append(f"serving pointer {step.name} is {step.after or 'not set'}")
        return found
