"""Migrations inside of a relational database whose processes die: at every statement and every commit, and wherever else.

The database is looked at whenever a process is dead, before anything goes on (`migrated.Truth.moment`). What has died is
resumed, and then equal to a run that nobody disturbed; or it is rolled back, and then the old database.
"""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests.e2e import relations
from tests.e2e.relations import Library, Relations
from tests.faults.batch import APPLY, ROLLBACK
from tests.faults.matrix import KILLED, Score, Spot, Watched
from tests.faults.migrated import KEYS, STEPS, Truth, workspace
from tests.faults.nursery import Nursery
from tests.faults.scene import JOB

#: Its name among the chores of `python -m tests.faults`, and the databases.
CHORE = "sql"
DATABASES = ("postgresql", "sqlite")
RESUME = ("resume", JOB)


class Workspace(Watched):
    """A migration that is done and undone in one workspace, and looked at whenever a process is dead."""

    def __init__(self, nursery: Nursery, directory: Path, kind: str, postgres: str, score: Score) -> None:
        self.nursery, self.directory, self.kind, self.score = nursery, directory, kind, score
        os.environ.update(KEYS)
        directory.mkdir(parents=True)
        relation = Relations(f"sqlite:///{directory / 'app.db'}")
        if kind == "postgresql":
            relation = relations.postgres(postgres, f"faults_{uuid.uuid4().hex[:12]}")
        self.truth = Truth(Library(relation).build())
        workspace(directory, relation)

    def undisturbed(self) -> tuple[list[Spot], list[Spot]]:
        """Done and undone once. (crash points of the apply, of the rollback)"""
        seen = []
        for number, arguments in enumerate((APPLY, ROLLBACK)):
            record = self.directory.with_name(f"{self.directory.name}-{number}.points")
            self.vecrun("undisturbed", *arguments, record=record)
            self.compare("undisturbed", after=number == 0)
            seen.append(places(record.read_text().split()) if record.exists() else [])
        return seen[0], seen[1]

    def look(self, what: str) -> None:
        """The database, as it is now."""
        self.truth.relations.quiet()
        self.score.findings += [f"{what}: {text}" for text in self.truth.moment()]

    def compare(self, what: str, *, after: bool) -> None:
        """Everything, once a run has ended."""
        if self.score.findings:
            return
        self.look(what)
        self.score.runs += 1
        self.score.counts.compared += len(self.truth.before)
        record = self.truth.record()
        if after and record != dict.fromkeys(STEPS, "done") | {"": "closed"}:
            self.score.findings.append(f"{what}: recorded is {record}")
        if not after and self.truth.relations.dump() != self.truth.before:
            self.score.findings.append(f"{what}: not the old database: {self.truth.first_difference()}")

    def purpose(self) -> str:
        """Of the newest run: apply or rollback; empty when there is none."""
        query = "SELECT purpose FROM runs ORDER BY created DESC, run DESC LIMIT 1"
        ledger = Relations(f"sqlite:///{self.directory / 'state' / 'ledger.db'}")
        return next((str(purpose) for (purpose,) in ledger.rows(query)), "") if ledger.tables() else ""

    def go_on(self, what: str, crash_at: Spot | None = None) -> int:
        """Resume what has died; where nothing of it was written down, begin again."""
        expected = (0, 10, KILLED) if crash_at else (0, 10)
        return self.vecrun(what, *RESUME, crash_at=crash_at, expected=expected)


def places(lines: list[str]) -> list[Spot]:
    """Each statement and commit, and every other crash point the first time, and in the middle.

    Not what comes before the run is begun, where nothing is changed, but for the first statement; nor the moment after a
    statement that another follows at once: it is the moment before that one.
    """
    found, seen = list[Spot](), dict[str, int]()
    begun = False
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        step, phase = line.split(":")
        times = seen[line] = seen.get(line, 0) + 1
        begun = begun or step == "run"
        wanted = {1, lines.count(line) // 2 + 1}
        if step == "sql":
            wanted = {times} if begun else {1} if phase == "before" else set()
            wanted -= {times} if (phase, following) == ("after", "sql:before") else set()
        if times in wanted:
            found.append(Spot(step, phase, times))
    return found


def cases(apply: list[Spot], back: list[Spot], seed: int) -> Iterator[tuple[Spot | None, Spot | None, Spot | None]]:
    """(where to die or None, where again on the way on or None, where to die in the rollback or None).

    By turns what has died is resumed, and rolled back at once (the last is None). One in seven dies once more.
    """
    chance, number = random.Random(seed), 0
    for at, first in enumerate(apply):
        again = Spot("sql", chance.choice(("before", "after", "commit", "committed")), chance.randint(1, 12))
        second = again if at % 7 == 3 else None
        if at % 2:
            yield first, second, None
        else:
            yield first, second, back[number % len(back)]
            number += 1
    for spot in back[number:]:
        yield None, None, spot


def crash(
    nursery: Nursery, directory: Path, postgres: str, *, kind: str, seed: int, every: int = 1, offset: int = 0
) -> Score:  # fmt: skip
    """All cases (or every n-th, from `offset` on) on a kind of database: after each, the world is back where it was."""
    score = Score()
    space = Workspace(nursery, directory, kind, postgres, score)
    apply, back = space.undisturbed()
    for number, (first, second, third) in enumerate(cases(apply, back, seed)):
        if score.findings:  # what follows would only repeat it
            break
        if number % every == offset % every:
            _case(space, number, first, second, third)
    return score


def _case(space: Workspace, number: int, first: Spot | None, second: Spot | None, third: Spot | None) -> None:
    what, score = f"{CHORE}, {space.kind} {first}, {second}, {third}", space.score
    # threads take turns: a process may come to its end before it comes to the place
    died = space.vecrun(what, *APPLY, crash_at=first, expected=(KILLED, 0) if first else (0,)) == KILLED
    score.missed += first is not None and not died
    if third is None:
        if space.vecrun(what, *ROLLBACK, crash_at=second, expected=(0, 10, KILLED)) == KILLED:
            # it is resumed if it was written down; else it has to be asked for once more
            space.vecrun(what, *(RESUME if space.purpose() == "rollback" else ROLLBACK), expected=(0, 10))
        space.compare(f"{what}: rollback of the crashed run", after=False)
        return
    if died:
        if second is not None:
            space.go_on(what, second)
        again = (RESUME, APPLY)[number % 4 == 0]
        if space.vecrun(what, *again, expected=(0, 10)) == 10:
            space.vecrun(what, *APPLY)
    space.compare(what, after=True)
    if space.vecrun(what, *ROLLBACK, crash_at=third, expected=(KILLED, 0)) == KILLED:
        space.vecrun(what, *(RESUME if space.purpose() == "rollback" else ROLLBACK), expected=(0, 10))
    else:
        score.missed += 1
    space.compare(f"{what}: rollback", after=False)
