"""`stamp`: the plan that records steps of a migration as done that were done by hand."""

from __future__ import annotations

from pathlib import Path

from runner import planner
from runner.commands.context import Context, load
from runner.plan import Plan


def plan_stamp(context: Context, path: Path, *, through: str | None = None) -> Plan:
    """The plan that records the steps of a job file up to `through` (default: all). Changes nothing anywhere.

    NotFound: no such step. Permanent: the job is of another kind. VecrunError: a run of it is unfinished.
    """
    job = load(context, path)
    with context.ledger(reading=True) as ledger:
        planner.refuse_unfinished(ledger, job.name)
        return planner.stamp(job, context.settings, context.states, through=through)
