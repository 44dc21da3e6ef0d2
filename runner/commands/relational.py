"""What a verification on demand looks at in a relational database: rows of all applied runs, and their questions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from runner import planner
from runner.errors import Permanent
from runner.ledger import Ledger
from runner.mapper import columns_read
from runner.plan import CheckQueries, DropColumn, EncryptColumns, MapRows, RunStatements, Step, VerifyRows
from runner.state import State
from runner.world import World

#: What the parts of its result are called.
ROWS, QUESTIONS, PASSED_OVER = "rows", "questions", "passed over"


@dataclass(frozen=True)
class Other:
    """What is no comparison of rows: questions; or rows that are passed over, and why. `later`: steps that may have taken away
    what a question asks for. `amiss`: it is not right that they cannot be compared."""

    step: CheckQueries | VerifyRows
    why: str = ""
    later: bool = False
    amiss: bool = False


def relational_steps(state: State, ledger: Ledger, world: World) -> tuple[list[VerifyRows], list[Other]]:
    """(rows to compare, everything else), of all runs that are applied."""
    steps: list[Step] = [step for plan in planner.plans_of(state, ledger) for step in plan.steps]
    rows, others = list[VerifyRows](), list[Other]()
    for number, step in enumerate(steps):
        rest = steps[number + 1 :]
        if isinstance(step, VerifyRows):
            if why := _past(step.of, rest):
                others.append(Other(step, why))
                continue
            table, gone = _gone(step, world)
            if not gone:
                rows.append(step)
            elif by := _by_sql(table, rest):
                others.append(Other(step, f"{gone}, since step {by}"))
            else:
                others.append(Other(step, gone, amiss=True))
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


def _gone(step: VerifyRows, world: World) -> tuple[str, str]:
    """(table, what is not there of it any more) of those that a comparison reads; empty when all is there."""
    from runner.relational import schema

    with world.relational(step.connection).reading() as connection:
        for table, columns in _needed(step.of):
            found = schema.look(connection, table, count=False)
            if found is None:
                return table, f"table {table} is not there any more"
            if lacking := [name for name in columns if found.column(name) is None]:
                return table, f"{table} has no column {', '.join(lacking)} any more"
    return "", ""


def _by_sql(table: str, later: list[Step]) -> str:
    """The first of later steps whose SQL speaks of a table: what it does to it is not known here. Empty if none does."""
    word = re.compile(rf"\b{re.escape(table.rpartition('.')[2])}\b", re.IGNORECASE)
    for step in later:
        if isinstance(step, RunStatements) and any(word.search(one.sql) for one in step.statements):
            return step.name
    return ""


def _needed(of: MapRows | EncryptColumns) -> list[tuple[str, list[str]]]:
    """Tables that a comparison reads, with columns of them."""
    if isinstance(of, EncryptColumns):
        return [(of.table, [of.key, *of.columns])]
    read = columns_read(of.map) or ()
    return [(of.map.from_, [of.key, *read]), *((into.table, [*into.values]) for into in of.map.into)]


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
            mode: dict[str, Any] = {"mode": PASSED_OVER, "why": other.why, "differences": []}
            if other.amiss:
                mode = {"mode": ROWS, "compared": 0, "equal": 0, "differences": [other.why]}
            found.append(names_of(one) | mode)
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
