"""Backups and restores whose processes die: at every crash point there is, and at random moments.

As `batch` does it: the crash points are those that an undisturbed run and its rollback come to, and whenever a process is
dead, before anything goes on, tables, collections and backups are held against each other (`kept.moment`).
"""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path

from tests.faults import kills
from tests.faults.archive import Chore
from tests.faults.batch import APPLY, ROLLBACK, cases, spots
from tests.faults.matrix import KILLED, Score, Spot, Watched
from tests.faults.nursery import Nursery
from tests.faults.scene import JOB

CHORES = (
    Chore("backup", "keep"),
    Chore("backup", "truncate"),
    Chore("restore", "refuse"),
    Chore("restore", "merge"),
    Chore("restore", "replace"),
    Chore("backup", "files"),
    Chore("backup", "pgvector", again=True),
    Chore("restore", "files", "pgvector"),
    Chore("restore", "pgvector", "files"),
)
#: Those of the matrix.
MATRIX = tuple(map(str, CHORES[:-1]))
#: Rows or points: of the matrix, and of the kills, which want work that takes a while.
ROWS, MANY_ROWS, POINTS, MANY_POINTS = 60, 4000, 600, 1500


class Workspace(Watched):
    """A chore that is done and undone in one workspace, and looked at whenever a process is dead."""

    def __init__(self, nursery: Nursery, directory: Path, chore: Chore, postgres: str, score: Score, size: int) -> None:
        self.nursery, self.directory, self.chore, self.score = nursery, directory, chore, score
        self.tries, self.resumed = 0, True
        nursery.call("archive.build", directory=str(directory), chore=asdict(chore), size=size, postgres=postgres)

    def undisturbed(self) -> tuple[list[Spot], list[Spot]]:
        """Done and undone once: what it makes of the world is remembered. (crash points of the apply, of the rollback)"""
        seen = []
        self.prepare()
        for number, arguments in enumerate((APPLY, ROLLBACK)):
            record = self.directory.with_name(f"{self.directory.name}-{number}.points")
            self.vecrun("undisturbed", *arguments, record=record)
            if number == 0:
                self.score.findings += self.nursery.call("kept.remember", directory=str(self.directory))
            self.compare("undisturbed", after=number == 0)
            seen.append(spots(record.read_text().split()) if record.exists() else [])
        return seen[0], seen[1]

    def prepare(self) -> None:
        """Before each apply that is not the second half of another."""
        self.tries, self.resumed = self.tries + 1, True
        self.nursery.call("archive.prepare", directory=str(self.directory), number=self.tries)

    def look(self, what: str) -> None:
        """Tables, collections and backups, as they are now."""
        found = self.nursery.call("kept.moment", directory=str(self.directory))
        self.score.findings += [f"{what}: {text}" for text in found["findings"]]

    def compare(self, what: str, *, after: bool) -> None:
        """Everything, once a run has ended."""
        if not self.score.findings:
            given = {"directory": str(self.directory), "after": after, "resumed": self.resumed}
            self.score.take(self.nursery.call("kept.ended", **given), what)


def crash(
    nursery: Nursery, directory: Path, postgres: str, *, chore: Chore, seed: int, every: int = 1
) -> Score:  # fmt: skip
    """All cases of a chore (or every n-th) in one workspace: after each, the world is back where it was."""
    score = Score()
    space = Workspace(nursery, directory, chore, postgres, score, ROWS if chore.tables else POINTS)
    apply, back = space.undisturbed()
    last = (Spot("state", "recorded"),)
    for number, (first, second, third) in enumerate(cases(apply, back, random.Random(seed))):
        if score.findings:  # what follows would only repeat it
            break
        if number % every:
            continue
        what = f"{chore} {first}, {second}, {third}"
        space.prepare()
        space.vecrun(what, *APPLY, crash_at=first, expected=(KILLED,))
        if third is None:  # before the run was recorded there is nothing to undo
            space.resumed = False
            space.vecrun(what, *ROLLBACK, expected=(10,) if first.phase == "leased" else (0,))
            space.compare(f"{what}: rollback of the crashed run", after=False)
            continue
        over = first in last
        if second is not None:  # what is behind it may not come to this place any more
            over = space.vecrun(what, *APPLY, crash_at=second, expected=(KILLED, 0)) != KILLED or second in last
        if not over:
            again = ("resume", JOB) if number % 4 and first.phase != "leased" else APPLY
            space.vecrun(what, *again)
        space.compare(what, after=True)
        space.vecrun(what, *ROLLBACK, crash_at=third, expected=(KILLED,))
        if third.phase == "leased":
            space.vecrun(what, *ROLLBACK)
        else:
            space.vecrun(what, "resume", JOB, expected=(10,) if third in last else (0,))
        space.compare(f"{what}: rollback", after=False)
    return score


class Disturbed(kills.Migration):
    """A chore whose processes are killed."""

    def __init__(self, space: Workspace, chance: random.Random) -> None:
        super().__init__(space.nursery, space.directory, chance, space.score)
        self.space = space

    def apply(self, quota: int) -> bool:
        self.space.prepare()
        return super().apply(quota)

    def rollback(self, quota: int) -> None:
        _, purpose, status = self._newest()
        self.space.resumed = (purpose, status) == ("apply", "completed")
        super().rollback(quota)

    def killed(self, *arguments: str) -> bool | None:
        died = super().killed(*arguments)
        if died is not None and not self.score.findings:
            self.space.look(f"{self.space.chore}: killed in {' '.join(arguments)}")
        return None if self.score.findings else died

    def _compare(self, *, moved: bool) -> None:
        self.space.compare(f"{self.space.chore} after {'apply' if moved else 'rollback'}", after=moved)


def kill(
    nursery: Nursery, directory: Path, postgres: str, *, chore: Chore, seed: int, quota: int, until: float = float("inf")
) -> Score:  # fmt: skip
    """Apply and roll back in one workspace until `quota` processes were killed at work, or until `until`."""
    score = Score()
    size = MANY_ROWS if chore.tables else MANY_POINTS
    space = Workspace(nursery, directory, chore, postgres, score, size)
    space.undisturbed()
    if not score.findings:
        space.prepare()
        kills.until_killed(Disturbed(space, random.Random(seed)), quota, until)
    return score
