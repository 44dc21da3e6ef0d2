"""Batch operations on documents whose processes die: at every crash point there is, and at random moments.

Whenever a process is dead, before anything goes on, rows, points and files are held against each other (`holding.moment`);
when a run has come to its end, everything is compared (`holding.ended`). The crash points are those that an undisturbed
run and its rollback come to.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runner.points import IdKind
from tests.faults import kills
from tests.faults.matrix import KILLED, Score, Spot, Watched
from tests.faults.nursery import Nursery
from tests.faults.papers import Task
from tests.faults.scene import JOB

TASKS = (
    Task("delete", "pgvector", IdKind.UUID, "postgres"),
    Task("metadata", "pgvector", IdKind.STRING, "postgres"),
    Task("tags", "pgvector", IdKind.INT, "postgres"),
    Task("parse", "pgvector", IdKind.STRING, "postgres"),
    Task("split", "pgvector", IdKind.INT, "postgres"),
    Task("embed", "pgvector", IdKind.UUID, "postgres"),
    Task("delete", "files", IdKind.STRING, "sqlite"),
    Task("parse", "files", IdKind.STRING, "sqlite"),
    Task("metadata", "files", IdKind.INT, "sqlite"),
    Task("delete", "milvus-lite", IdKind.INT, "sqlite"),
    Task("parse", "milvus-lite", IdKind.INT, "postgres"),
    Task("tags", "qdrant-local", IdKind.INT_OR_UUID, "sqlite"),
    Task("parse", "qdrant-local", IdKind.INT_OR_UUID, "sqlite"),
    Task("delete", "pgvector", IdKind.STRING, "postgres", "s3"),
    Task("parse", "files", IdKind.STRING, "postgres", "s3"),
)
#: Those of the matrix: each operation, over PostgreSQL and a folder.
MATRIX = tuple(str(task) for task in TASKS[:6])
#: Its size: a few batches.
DOCUMENTS, BATCH = 20, 5
#: For the kills: many batches, and requests to the model that take a moment.
MANY, DELAY = 160, 0.02
#: Exit statuses: there is always a document that failed.
DONE = (3,)
APPLY, ROLLBACK = ("apply", f"jobs/{JOB}.yaml", "--auto-approve", "--unpin"), ("rollback", JOB, "--auto-approve")


class Workspace(Watched):
    """An operation that is done and undone in one workspace, and looked at whenever a process is dead."""

    right = DONE

    def __init__(
        self, nursery: Nursery, directory: Path, task: Task, postgres: str, score: Score, documents: int, batch: int,
        delay: float = 0.0, bucket: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.nursery, self.directory, self.task, self.score = nursery, directory, task, score
        nursery.call(
            "papers.build", directory=str(directory), task=asdict(task), documents=documents, batch_size=batch,
            postgres=postgres, delay=delay, bucket=bucket,
        )  # fmt: skip

    def undisturbed(self) -> tuple[list[Spot], list[Spot]]:
        """Done and undone once: what it makes of the world is remembered. (crash points of the apply, of the rollback)"""
        seen = []
        for number, arguments in enumerate((APPLY, ROLLBACK)):
            record = self.directory.with_name(f"{self.directory.name}-{number}.points")
            self.vecrun("undisturbed", *arguments, expected=(0,) if number else DONE, record=record)
            if number == 0:
                self.score.findings += self.nursery.call("holding.remember", directory=str(self.directory))
            self.compare("undisturbed", after=number == 0)
            seen.append(spots(record.read_text().split()) if record.exists() else [])
        return seen[0], seen[1]

    def look(self, what: str) -> None:
        """Rows, points and files, as they are now."""
        found = self.nursery.call("holding.moment", directory=str(self.directory))
        self.score.findings += [f"{what}: {text}" for text in found["findings"]]

    def compare(self, what: str, *, after: bool) -> None:
        """Everything, once a run has ended."""
        if not self.score.findings:
            self.look(what)
            self.score.take(self.nursery.call("holding.ended", directory=str(self.directory), after=after), what)


def spots(lines: list[str]) -> list[Spot]:
    """Each crash point the first time a process came to it, and in the middle."""
    found = list[Spot]()
    for line in dict.fromkeys(lines):
        step, phase = line.split(":")
        times = lines.count(line)
        found += [Spot(step, phase)] + ([Spot(step, phase, times // 2 + 1)] if times > 2 else [])
    return found


def cases(
    apply: list[Spot], back: list[Spot], chance: random.Random
) -> Iterator[tuple[Spot, Spot | None, Spot | None]]:
    """(where to die, where again on the way back or None, where in the rollback or None); see `matrix.cases`."""
    number = 0
    for at, first in enumerate(apply):
        later = apply[at + 1 :]
        again = chance.choice(later) if later and number % 2 else None
        yield first, again, back[number % len(back)]
        number += 1
        yield first, None, None
    for spot in back[number:]:
        yield apply[-1], None, spot


def crash(
    nursery: Nursery, directory: Path, postgres: str, *, task: Task, seed: int, every: int = 1,
    bucket: dict[str, Any] | None = None,
) -> Score:  # fmt: skip
    """All cases of a task (or every n-th) in one workspace: after each, the world is back where it was."""
    score = Score()
    space = Workspace(nursery, directory, task, postgres, score, DOCUMENTS, BATCH, bucket=bucket)
    apply, back = space.undisturbed()
    last = (Spot("state", "recorded"),)
    for number, (first, second, third) in enumerate(cases(apply, back, random.Random(seed))):
        if score.findings:  # what follows would only repeat it
            break
        if number % every:
            continue
        what = f"{task} {first}, {second}, {third}"
        space.vecrun(what, *APPLY, crash_at=first, expected=(KILLED,))
        if third is None:  # before the run was recorded there is nothing to undo
            space.vecrun(what, *ROLLBACK, expected=(10,) if first.phase == "leased" else (0,))
            space.compare(f"{what}: rollback of the crashed run", after=False)
            continue
        over = first in last
        if second is not None:  # what is behind it may not come to this place any more
            over = space.vecrun(what, *APPLY, crash_at=second, expected=(KILLED, *DONE)) != KILLED or second in last
        if not over:
            again = ("resume", JOB) if number % 4 and first.phase != "leased" else APPLY
            space.vecrun(what, *again)
        space.compare(what, after=True)
        space.vecrun(what, *ROLLBACK, crash_at=third, expected=(KILLED,))
        if third.phase == "leased":
            space.vecrun(what, *ROLLBACK, expected=(0,))
        else:
            space.vecrun(what, "resume", JOB, expected=(10,) if third in last else (0,))
        space.compare(f"{what}: rollback", after=False)
    return score


class Disturbed(kills.Migration):
    """An operation whose processes are killed."""

    def __init__(self, space: Workspace, chance: random.Random) -> None:
        super().__init__(space.nursery, space.directory, chance, space.score)
        self.space = space
        self.right = (0, 3)

    def killed(self, *arguments: str) -> bool | None:
        died = super().killed(*arguments)
        if died is not None and not self.score.findings:
            self.space.look(f"{self.space.task}: killed in {' '.join(arguments)}")
        return None if self.score.findings else died

    def _compare(self, *, moved: bool) -> None:
        self.space.compare(f"{self.space.task} after {'apply' if moved else 'rollback'}", after=moved)


def kill(
    nursery: Nursery, directory: Path, postgres: str, *, task: Task, seed: int, quota: int, documents: int = 0,
    until: float = float("inf"), bucket: dict[str, Any] | None = None,
) -> Score:  # fmt: skip
    """Apply and roll back in one workspace until `quota` processes were killed at work, or until `until`."""
    score = Score()
    space = Workspace(nursery, directory, task, postgres, score, documents or MANY, BATCH, DELAY, bucket)
    space.undisturbed()
    if not score.findings:
        kills.until_killed(Disturbed(space, random.Random(seed)), quota, until)
    return score
