"""What a verification on demand looks at in a relational database: rows of all applied runs, and their questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runner import planner
from runner.errors import Permanent
from runner.ledger import Ledger
from runner.plan import CheckQueries, DropColumn, EncryptColumns, MapRows, RunStatements, Step, VerifyRows
from runner.state import State
from runner.world import World

#: What the parts of its result are called.
ROWS, QUESTIONS, PASSED_OVER = "rows", "questions", "passed over"


@dataclass(frozen=True)
class Other:
    """What is no comparison of rows: questions; or rows that are passed over, and why. `later`: steps that may have taken away
    what a question asks for."""

    step: CheckQueries | VerifyRows
    why: str = ""
    later: bool = False


def relational_steps(state: State, ledger: Ledger) -> tuple[list[VerifyRows], list[Other]]:
    """(rows to compare, everything else), of all runs that are applied."""
    steps: list[Step] = [step for plan in planner.plans_of(state, ledger) for step in plan.steps]
    rows, others = list[VerifyRows](), list[Other]()
    for number, step in enumerate(steps):
        rest = steps[number + 1 :]
        if isinstance(step, VerifyRows) and not (why := _past(step.of, rest)):
            rows.append(step)
        elif isinstance(step, VerifyRows):
            others.append(Other(step, why))
        elif isinstance(step, CheckQueries) and step.when == "after":
            others.append(Other(step, later=any(isinstance(one, DropColumn | RunStatements) for one in rest)))
    return rows, others


def _past(of: MapRows | EncryptColumns, later: list[Step]) -> str:
    """Why rows cannot be compared after what was done later; empty if they can."""
    for step in later:
        if isinstance(of, MapRows) and isinstance(step, DropColumn) and step.table == of.map.from_:
            return f"column {step.column} of {step.table}, which rows were made of, was dropped since"
        if isinstance(of, MapRows) and isinstance(step, EncryptColumns) and step.table in (of.map.from_, *of.tables):
            return f"{', '.join(step.columns)} of {step.table} was encrypted anew since"
        if isinstance(of, EncryptColumns) and isinstance(step, EncryptColumns) and step.table == of.table:
            return f"{', '.join(step.columns)} of {step.table} was encrypted anew since"
    return ""


def names_of(step: VerifyRows) -> dict[str, str]:
    """What is compared with what."""
    of = step.of
    source, tables = (
        (of.map.from_, [into.table for into in of.map.into]) if isinstance(of, MapRows) else (of.table, [of.table])
    )
    return {
        "from": f"{step.connection}/{source}",
        "to": ", ".join(f"{step.connection}/{table}" for table in dict.fromkeys(tables)),
    }


def rows_result(result: dict[str, Any]) -> dict[str, Any]:
    """A comparison of rows in the words of a verification."""
    return {"mode": ROWS, "compared": result["read"], "equal": result["done"], "differences": result["differences"]}


def answers(others: list[Other], world: World) -> list[dict[str, Any]]:
    """The questions asked again, and what is passed over."""
    from runner.relational import queries

    found = list[dict[str, Any]]()
    for other in others:
        one = other.step
        if isinstance(one, VerifyRows):
            found.append(names_of(one) | {"mode": PASSED_OVER, "why": other.why, "differences": []})
            continue
        place, differences, asked = f"{one.connection}, step {one.name}", list[str](), 0
        for query in one.queries:
            try:
                differences += queries.ask(world.relational(one.connection), (query,))
                asked += 1
            except Permanent as exc:
                why = exc.detail or exc.summary  # begins with its name
                if other.later:  # a later step took away what it asks for
                    found.append({"from": place, "to": place, "mode": PASSED_OVER, "why": why, "differences": []})
                else:
                    differences.append(why)
        if asked or differences:
            equal = max(0, asked - len(differences))
            counts = {"compared": asked, "equal": equal, "differences": differences}
            found.append({"from": place, "to": place, "mode": QUESTIONS} | counts)
    return found
