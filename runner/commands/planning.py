"""`plan` and the plan of a rollback. Both read live stores and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runner import planner
from runner.commands.context import Context, job_name, load
from runner.plan import Plan


def plan(context: Context, path: Path, *, unpin: bool = False, say: Callable[[str], None] = lambda _line: None) -> Plan:
    """The plan of a job file; `say` is told what takes long. Changes nothing anywhere."""
    job = load(context, path)
    with context.ledger(reading=True) as ledger:
        return planner.build(job, context.settings, ledger, context.states, unpin=unpin, say=say)


def plan_rollback(context: Context, job: str, *, discard_new_points: bool = False) -> Plan:
    """The plan that undoes a job's newest run."""
    with context.ledger(reading=True) as ledger:
        return planner.rollback(
            job_name(context, job), context.settings, ledger, context.states, discard_new_points=discard_new_points
        )
