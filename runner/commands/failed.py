"""Items that failed: listing them, another try for just those (B5, C5), and what became of each document of a run."""

from __future__ import annotations

from dataclasses import dataclass

from runner import planner
from runner.commands.context import Context, find_run, job_of
from runner.errors import NotFound
from runner.items import Items
from runner.plan import Change, Plan, loads
from runner.points import PointId
from runner.vectors import Failure, Vectors

#: A kind of jobs that leave rows out as the spec says.
RELATIONAL = "SqlMigration"


@dataclass(frozen=True)
class Failures:
    """The items that a run left out."""

    run: str
    job: str
    status: str
    items: tuple[Failure, ...]
    kind: str = ""  # of the job


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
        kind = loads(ledger.run(row["run"])["plan"], f"run {row['run']}").kind
        found.sort(key=lambda one: (isinstance(one.item, str), one.item))  # numbers as numbers
        return Failures(row["run"], row["job"], row["status"], tuple(found), kind)


@dataclass(frozen=True)
class DocumentReport:
    """What became of one document. `status`: done, unchanged, failed or pending; `points`: that were deleted, changed, or
    there are now; `rows`: of both tables; `time`: UTC, ISO 8601."""

    document: PointId
    status: str
    points: int
    rows: int
    file: str
    error: str
    time: str


@dataclass(frozen=True)
class Documents:
    """The documents of a run of a BatchOperation."""

    run: str
    job: str
    operation: str
    status: str
    counts: dict[str, int]
    items: tuple[DocumentReport, ...]


def documents(context: Context, name: str) -> Documents:
    """What became of each document of a run, or of a job's newest run that changed documents. NotFound."""
    with context.ledger(reading=True) as ledger:
        row, kept = find_run(context, ledger, name), Items(ledger)
        rows = [row] if name.startswith("r-") else [row, *ledger.runs_of(row["job"])]
        found = next((one for one in rows if one["purpose"] == "apply" and kept.last(one["run"]) >= 0), None)
        if found is None:
            raise NotFound("No documents", f"no run of {name} has selected documents", f"vecrun runs {row['job']}")
        plan = loads(ledger.run(found["run"])["plan"], f"run {found['run']}")
        change = next((step for step in plan.steps if isinstance(step, Change)), None)
        errors = {str(one.item): one.error for one in Vectors(ledger).failed(found["run"])}
        items = []
        for one in kept.all(found["run"]):
            said, details = one.status, one.details
            error = details.get("error") or errors.get(str(one.id), "")
            count = details.get("rows", 0) + details.get("chunks", 0)
            items.append(
                DocumentReport(one.id, said, details.get("points", 0), count, details.get("file", ""),
                               error if said == "failed" else "", one.time)
            )  # fmt: skip
        operation = change.operation if change is not None else ""
        return Documents(
            found["run"], found["job"], operation, found["status"], kept.counts(found["run"]), tuple(items)
        )


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
        if context.states.load(name).kind == RELATIONAL:
            raise NotFound(
                "Nothing to try again",
                f"rows that job {name} leaves out are not tried again",
                f"Mend them, then: vecrun rollback {name}, and apply the job with --unpin",
            )
        return planner.retry(name, context.settings, ledger, context.states)
