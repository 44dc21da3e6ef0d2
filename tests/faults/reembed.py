"""Changes of the embedding model whose processes die: at every step and phase, and at random moments.

Whenever a process is dead, before anything goes on, marks and vectors are held against each other (`agreement.moment`);
when a run has come to its end, everything is compared (`agreement.ended`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from runner.points import IdKind
from tests.faults import kills
from tests.faults.change import Change
from tests.faults.matrix import KILLED, Score, Spot
from tests.faults.nursery import Nursery
from tests.faults.scene import JOB

CHANGES = (
    Change("create_new_collection", "files", IdKind.STRING, "sqlite", marked=True, bad=2, quality=True),
    Change("create_new_collection", "pgvector", IdKind.INT, "postgres", column=True, pointer=False),
    Change("replace", "files", IdKind.STRING, "sqlite", marked=True, bare="", bad=2),
    Change("replace", "pgvector", IdKind.INT, "postgres", column=True, quality=True),
    Change("incremental", "files", IdKind.STRING, marked=True, rows=""),
    Change("incremental", "pgvector", IdKind.UUID, "postgres", bad=2, marked=True, pointer=False),
    Change("incremental", "files", IdKind.INT, "sqlite", edited=True, bad=1),
    Change("incremental", "pgvector", IdKind.INT, "sqlite", column=True, edited=True, marked=True),
    Change("create_new_collection", "qdrant-local", IdKind.INT_OR_UUID, "sqlite", marked=True, points=300),
    Change("replace", "milvus-lite", IdKind.INT, "sqlite", column=True, points=400),
)
#: Those of the matrix: all steps in one or the other.
MATRIX = ("create: pgvector", "replace: files", "edited: files")
#: Its size: batches of 20 have two requests each.
POINTS, BATCH = 120, 20
#: Seconds a request takes while processes are killed.
DELAY = 0.03


def _around(step: str, inside: list[Spot] | None = None, times: int = 1) -> list[Spot]:
    return [Spot(step, "before", times), *(inside or []), Spot(step, "after", times), Spot(step, "recorded", times)]


def _slices(step: str, phases: tuple[str, ...]) -> list[Spot]:
    return [Spot(step, "cut"), *(Spot(step, phase, times) for phase in phases for times in (1, 4))]


def apply_spots(change: Change) -> list[Spot]:
    """Every phase of every step of an apply, in the order in which they come."""
    checkpoints = ("before_checkpoint", "after_checkpoint")
    embed = [Spot("embed", phase, times) for phase in ("answered", "kept") for times in (1, 2)]
    read = [Spot("read", "after_read"), Spot("read", "after_read", 3), *embed]
    begin, end = _around("set_model") if change.rows else [], _around("set_model", times=2 if change.rows else 1)
    spots = [Spot("run", "leased"), Spot("run", "started")]
    verify = _around("verify_points", [Spot("verify_points", phase) for phase in ("cut", *checkpoints)])
    serving = _around("set_serving")
    if change.in_place:
        spots += _around("check_quality") if change.quality else []
        spots += [*_around("create_collection"), *_around("finish_collection"), *begin]
        spots += _around("replace_vectors", [
            *_slices("replace_vectors", ("before_write", "after_write", *checkpoints)), *read,
            Spot("replace", "saved"), Spot("replace", "saved", 3),
        ])  # fmt: skip
        spots += [*_around("settle_failures"), *verify]
        spots += _around("check_quality", times=2) if change.quality else []
        return [*spots, *serving, *end, *_state(("before", "after", "recorded"))]
    spots += _around("create_collection")
    spots += _around("copy_points", [*_slices("copy_points", ("before_write", "after_write", *checkpoints)), *read])
    spots += [*_around("settle_failures"), *_around("finish_collection"), *verify]
    spots += _around("check_quality") if change.quality else []
    spots += begin + (_around("switch_alias") if change.store != "files" else []) + serving + end
    return spots + _state(("before", "after", "recorded"))


def rollback_spots(change: Change) -> list[Spot]:
    """Every phase of every step of its rollback."""
    spots = [Spot("run", "leased"), Spot("run", "started"), *_around("set_model")]
    spots += _around("set_serving") if not change.edited else []  # it never moved
    if change.in_place:
        phases = ("before_write", "after_write", "before_checkpoint", "after_checkpoint")
        spots += _around("restore_vectors", [Spot("restore_vectors", phase) for phase in ("cut", *phases)])
    elif change.store != "files":
        spots += _around("switch_alias")
    spots += _around("set_model", times=2) if change.rows else []
    return spots + _around("drop_collection") + _state(("before", "after", "marked", "recorded"))


def _state(phases: tuple[str, ...]) -> list[Spot]:
    return [Spot("state", phase) for phase in phases]


def cases(change: Change, seed: int) -> Iterator[tuple[Spot, Spot | None, Spot | None]]:
    """(where to die, where again on the way back or None, where in the rollback or None); see `matrix.cases`."""
    chance, spots, back = random.Random(seed), apply_spots(change), rollback_spots(change)
    number = 0
    for at, first in enumerate(spots):
        later = [spot for spot in spots[at + 1 :] if spot.phase in ("before", "recorded") and spot.times == 1]
        later = [spot for spot in later if spot.step not in (first.step, "set_model", "check_quality")]
        for _ in range(2 if len(back) > len(spots) else 1):
            yield first, chance.choice(later) if later and first.step != "state" else None, back[number % len(back)]
            number += 1
        if not (change.edited and first.phase == "leased"):  # there a rollback would undo the run before
            yield first, None, None


class Workspace:
    """A change that is done and undone in one workspace, and looked at whenever a process is dead."""

    def __init__(
        self, nursery: Nursery, directory: Path, change: Change, seed: int, postgres: str, score: Score, points: int,
        batch: int, delay: float,
    ) -> None:  # fmt: skip
        self.nursery, self.directory, self.change, self.score = nursery, directory, change, score
        nursery.call(
            "change.build", directory=str(directory), change=asdict(change), seed=seed, points=points,
            batch_size=batch, delay=delay, postgres=postgres,
        )  # fmt: skip
        if change.edited:
            self.vecrun("the first run", "apply", f"jobs/{JOB}.yaml", "--auto-approve", expected=(0, 3))
            nursery.call("change.edit", directory=str(directory))

    def vecrun(
        self, what: str, *arguments: str, crash_at: Spot | None = None, expected: tuple[int, ...] = (0, 3)
    ) -> None:  # fmt: skip
        """Run it; when it dies, look. 3: it completed, and some texts were left out."""
        status = self.nursery.vecrun(self.directory, *arguments, crash_at=str(crash_at or ""))
        if status not in expected:
            self.score.findings.append(
                f"{what}: vecrun {' '.join(arguments)} ended with {status}, see {self.nursery.log}"
                + (f"; it did not come to {crash_at}" if crash_at and status != KILLED else "")
            )
        elif status == KILLED:
            self.score.crashes += 1
            self.look(f"{what}: dead at {crash_at}")

    def look(self, what: str) -> None:
        """Marks against vectors, as they are now."""
        found = self.nursery.call("agreement.moment", directory=str(self.directory))
        self.score.findings += [f"{what}: {text}" for text in found["findings"]]

    def compare(self, what: str, *, after: bool) -> None:
        """Everything, once a run has ended."""
        if not self.score.findings:
            self.look(what)
            self.score.take(self.nursery.call("agreement.ended", directory=str(self.directory), after=after), what)


def crash(nursery: Nursery, directory: Path, postgres: str, *, change: Change, seed: int, every: int = 1) -> Score:
    """All cases of a change (or every n-th) in one workspace: after each, the world is back where it was."""
    score = Score()
    space = Workspace(nursery, directory, change, seed, postgres, score, POINTS, BATCH, 0.0)
    apply = ("apply", f"jobs/{JOB}.yaml", "--auto-approve", "--unpin")
    rollback, killed = ("rollback", JOB, "--auto-approve"), (KILLED,)
    for number, (first, second, third) in enumerate(cases(change, seed)):
        if number % every:
            continue
        what = f"{change} {first}, {second}, {third}"
        space.vecrun(what, *apply, crash_at=first, expected=killed)
        if third is None:  # before the run was recorded there is nothing to undo
            space.vecrun(what, *rollback, expected=(10,) if first.phase == "leased" else (0,))
            space.compare(f"{what}: rollback of the crashed run", after=False)
        else:
            if second is not None:
                space.vecrun(what, *apply, crash_at=second, expected=killed)
            if Spot("state", "recorded") not in (first, second):  # else nothing is left to do
                space.vecrun(what, *apply)
            space.compare(what, after=True)
            space.vecrun(what, *rollback, crash_at=third, expected=killed)
            if third.phase == "leased":
                space.vecrun(what, *rollback, expected=(0,))
            else:
                space.vecrun(what, "resume", JOB, expected=(10,) if third == Spot("state", "recorded") else (0,))
            space.compare(f"{what}: rollback", after=False)
        if score.findings:  # what follows would only repeat it
            break
    return score


#: Changes whose texts are too long at first, and are mended: of an unfinished run, and of an applied one.
MENDED = (
    Change("replace", "files", IdKind.STRING, "sqlite", marked=True, bad=3, strict=True),
    Change("create_new_collection", "files", IdKind.STRING, "sqlite", bad=3, strict=True),
    Change("replace", "pgvector", IdKind.INT, "sqlite", marked=True, bad=3),
    Change("create_new_collection", "pgvector", IdKind.INT, "sqlite", bad=3, column=True),
    Change("incremental", "files", IdKind.STRING, "sqlite", bad=3),
)


def retry_spots(change: Change) -> list[Spot]:
    """Every phase in which a second try can die."""
    settle = _around("settle_failures", [Spot("settle_failures", "written"), Spot("settle_failures", "tried")])
    inside = [Spot("replace", "saved")] if change.in_place else []
    if change.strict:
        return [Spot("run", "resumed"), *settle, *inside, *_around("set_serving")]
    marks = [*_around("set_model"), *_around("set_model", times=2)]
    return [Spot("run", "started"), *marks, *settle, *inside, *_state(("before", "after", "recorded"))]


def mend(nursery: Nursery, directory: Path, postgres: str, *, change: Change, seed: int, every: int = 1) -> Score:
    """Failed texts are mended and tried again, by processes that die; then everything is rolled back."""
    score = Score()
    space = Workspace(nursery, directory, change, seed, postgres, score, POINTS, BATCH, 0.0)
    retry, rollback = ("retry-failed", JOB, "--auto-approve"), ("rollback", JOB, "--auto-approve")
    for number, spot in enumerate(retry_spots(change)):
        if number % every:
            continue
        what = f"{change} mended, {spot}"
        space.vecrun(what, "apply", f"jobs/{JOB}.yaml", "--auto-approve", "--unpin", expected=(3,))
        space.look(f"{what}: before the second try")
        nursery.call("change.mend", directory=str(directory), mended=True)
        space.vecrun(what, *(("retry-failed", JOB) if change.strict else retry), crash_at=spot, expected=(KILLED,))
        done = spot == Spot("state", "recorded")
        if number // every % 3:
            space.vecrun(what, "resume", JOB, expected=(10,) if done else (0,))
            space.compare(what, after=True)
        elif not (change.strict or done):  # the second try is undone by itself
            space.vecrun(what, *rollback, expected=(0,))
            space.look(f"{what}: rollback of the second try")
        space.vecrun(what, *rollback, expected=(0,))
        space.compare(f"{what}: rollback", after=False)
        nursery.call("change.mend", directory=str(directory), mended=False)
        if score.findings:
            break
    return score


class Disturbed(kills.Migration):
    """A change whose processes are killed."""

    def __init__(self, space: Workspace, chance: random.Random) -> None:
        super().__init__(space.nursery, space.directory, chance, space.score)
        self.space = space
        self.right = (0, 3) if space.change.bad else (0,)

    def killed(self, *arguments: str) -> bool | None:
        died = super().killed(*arguments)
        if died is not None and not self.score.findings:
            self.space.look(f"{self.space.change}: killed in {' '.join(arguments)}")
        return None if self.score.findings else died

    def _compare(self, *, moved: bool) -> None:
        self.space.compare(f"{self.space.change} after {'apply' if moved else 'rollback'}", after=moved)


def kill(
    nursery: Nursery, directory: Path, postgres: str, *, change: Change, seed: int, quota: int, points: int = 0,
    until: float = float("inf"),
) -> Score:  # fmt: skip
    """Apply and roll back in one workspace until `quota` processes were killed at work, or until `until`."""
    score = Score()
    space = Workspace(nursery, directory, change, seed, postgres, score, points or change.points, 50, DELAY)
    kills.until_killed(Disturbed(space, random.Random(seed)), quota, until)
    return score
