"""Items that could not be embedded: listing them, and another try for just those (B5)."""

from __future__ import annotations

from dataclasses import dataclass

from runner import planner
from runner.commands.context import Context, find_run, job_of
from runner.errors import NotFound
from runner.plan import Plan
from runner.vectors import Failure, Vectors


@dataclass(frozen=True)
class Failures:
    """The items that a run left out."""

    run: str
    job: str
    status: str
    items: tuple[Failure, ...]


def failures(context: Context, name: str) -> Failures:
    """Failed items of a run, or of a job's newest run that has some. NotFound when there is no such run."""
    with context.ledger(reading=True) as ledger:
        row, kept = find_run(context, ledger, name), Vectors(ledger)
        found = kept.failed(row["run"])
        if not found and not name.startswith("r-"):
            for other in ledger.runs_of(row["job"]):
                if found := kept.failed(other["run"]):
                    row = other
                    break
        return Failures(row["run"], row["job"], row["status"], tuple(found))


def plan_retry(context: Context, job: str) -> Plan | None:
    """The plan that gives the failed items of a job's applied run another try; None when a run of it is unfinished and
    is to be resumed with that wish. NotFound when nothing has failed."""
    with context.ledger(reading=True) as ledger:
        name, kept = job_of(context, ledger, job), Vectors(ledger)
        if row := ledger.unfinished(name):
            if not kept.count_failed(row["run"]):
                raise NotFound(
                    "Nothing to try again",
                    f"no item of run {row['run']} has failed; it is {row['status']}",
                    f"Go on with it: vecrun resume {name}",
                )
            return None
        return planner.retry(name, context.settings, ledger, context.states)
