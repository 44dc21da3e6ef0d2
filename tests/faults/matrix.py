"""The crash matrix: die at every phase of every step, come back (and die again), and compare the world."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.nursery import Nursery
from tests.faults.scene import JOB, Pair
from tests.faults.truth import Counts

#: Partitions of 300 points in batches of 20 have at least seven batches each.
POINTS, BATCH = 300, 20
KILLED = -9


@dataclass(frozen=True)
class Spot:
    """A place to die: the n-th time `step` comes to `phase` (`runner.crash`)."""

    step: str
    phase: str
    times: int = 1

    def __str__(self) -> str:
        return f"{self.step}:{self.phase}" + (f":{self.times}" if self.times > 1 else "")


@dataclass
class Score:
    """What came out of a pair, or of all of them."""

    runs: int = 0  # applies and rollbacks that were disturbed, came to their end, and were compared
    crashes: int = 0
    kills: int = 0
    missed: int = 0  # kills that came too late
    hits: dict[str, int] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    findings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __iadd__(self, other: Score) -> Score:
        self.runs += other.runs
        self.crashes += other.crashes
        self.kills += other.kills
        self.missed += other.missed
        for name, number in other.hits.items():
            self.hits[name] = self.hits.get(name, 0) + number
        self.counts += other.counts
        self.findings += other.findings
        self.seconds += other.seconds
        return self

    @property
    def right(self) -> bool:
        """Whether nothing at all was wrong."""
        return self.counts.right and not self.findings

    def take(self, checked: dict[str, Any], what: str) -> None:
        """Add the answer of `scene.check`."""
        counts = Counts(**checked["counts"])
        self.runs += 1
        self.counts += counts
        self.findings += [f"{what}: {text}" for text in checked["findings"] + counts.examples]


class Watched(ABC):
    """A workspace whose commands die at chosen places, and that is looked at after each death, before anything goes on."""

    nursery: Nursery
    directory: Path
    score: Score
    right: tuple[int, ...] = (0,)  # exit codes of a command that was not disturbed

    @abstractmethod
    def look(self, what: str) -> None:
        """Add what is wrong at this moment to the findings."""

    def vecrun(
        self, what: str, *arguments: str, crash_at: Spot | None = None, expected: tuple[int, ...] | None = None,
        record: Path | None = None,
    ) -> int:  # fmt: skip
        """Run it; when it dies, look."""
        status = self.nursery.vecrun(self.directory, *arguments, crash_at=str(crash_at or ""), record=record)
        if status not in (expected or self.right):
            self.score.findings.append(
                f"{what}: vecrun {' '.join(arguments)} ended with {status}, see {self.nursery.log}"
                + (f"; it did not come to {crash_at}" if crash_at and status != KILLED else "")
            )
        elif status == KILLED:
            self.score.crashes += 1
            self.look(f"{what}: dead at {crash_at}")
        return status


def apply_spots(pair: Pair) -> list[Spot]:
    """Every phase of every step of an apply, in the order in which they come."""
    spots = [Spot("run", "leased"), Spot("run", "started")]
    if not pair.existing:
        spots += _around("create_collection")
    copy = [
        Spot("copy_points", "cut"),
        Spot("read", "after_read"),
        Spot("read", "after_read", 5),
        Spot("copy_points", "before_write"),
        Spot("copy_points", "before_write", 6),
        Spot("copy_points", "after_write"),
        Spot("copy_points", "after_write", 6),
        Spot("copy_points", "before_checkpoint"),
        Spot("copy_points", "before_checkpoint", 6),
        Spot("copy_points", "after_checkpoint"),
        Spot("copy_points", "after_checkpoint", 6),
    ]
    spots += _around("copy_points", copy)
    spots += _around("finish_collection")
    verify = [Spot("verify_points", phase) for phase in ("cut", "before_checkpoint", "after_checkpoint")]
    spots += _around("verify_points", verify)
    if pair.chunks:
        spots += _around("rewrite_ids")
    spots += _around("switch_alias") if pair.target != "weaviate" else []
    spots += _around("set_serving")
    return spots + [Spot("state", phase) for phase in ("before", "after", "recorded")]


def rollback_spots(pair: Pair) -> list[Spot]:
    """Every phase of every step of its rollback."""
    spots = [Spot("run", "leased"), Spot("run", "started"), *_around("set_serving")]
    spots += _around("switch_alias") if pair.target != "weaviate" else []
    if pair.chunks:
        spots += _around("restore_ids")
    if pair.existing:
        spots += _around("clear_collection", [Spot("clear_collection", "after_delete")])
    else:
        spots += _around("drop_collection")
    return spots + [Spot("state", phase) for phase in ("before", "after", "marked", "recorded")]


def _around(step: str, inside: list[Spot] | None = None) -> list[Spot]:
    return [Spot(step, "before"), *(inside or []), Spot(step, "after"), Spot(step, "recorded")]


def cases(pair: Pair, seed: int) -> Iterator[tuple[Spot, Spot | None, Spot | None]]:
    """(where to die, where to die again on the way back or None, where to die in the rollback or None).

    Each spot of the apply comes once with a second crash, and once with the rollback of the unfinished run
    (second is None); the spots of the rollback come at least once among them.
    """
    chance = random.Random(seed)
    back = rollback_spots(pair)
    for number, spot in enumerate(apply_spots(pair)):
        yield spot, _again(spot, apply_spots(pair), chance), back[number % len(back)]
        yield spot, None, None


def _again(first: Spot, spots: list[Spot], chance: random.Random) -> Spot | None:
    """A spot that the run must pass once more after it died at `first`."""
    steps = list(dict.fromkeys(spot.step for spot in spots if spot.step not in ("read", "run")))
    if first == Spot("state", "recorded"):
        return None
    at = -1 if first.step == "run" else steps.index("copy_points" if first.step == "read" else first.step)
    later = [Spot(step, phase) for step in steps[at + 1 :] for phase in ("before", "after", "recorded")]
    if first.phase != "recorded" and first.step in steps:
        later.append(Spot(first.step, "after"))
    if first != Spot("run", "leased"):
        later += [Spot("run", "resumed")] * (len(later) // 3 + 1)
    return chance.choice(later)


def run(nursery: Nursery, directory: Path, pair: Pair, seed: int, postgres: str, every: int = 1) -> Score:
    """All cases of a pair (or every n-th) in one workspace: after each, the world is back where it was."""
    score = Score()
    nursery.call(
        "build", directory=str(directory), pair=asdict(pair), seed=seed, points=POINTS, batch_size=BATCH,
        postgres=postgres,
    )  # fmt: skip
    try:
        for number, (first, second, third) in enumerate(cases(pair, seed)):
            if number % every:
                continue
            _case(nursery, directory, first, second, third, score, f"{pair} {first}, {second}, {third}")
            if score.findings:  # what follows would only repeat it
                break
    finally:
        nursery.call("remove", directory=str(directory))
    return score


def _case(
    nursery: Nursery, directory: Path, first: Spot, second: Spot | None, third: Spot | None, score: Score, what: str
) -> None:  # fmt: skip
    def vecrun(*arguments: str, crash_at: Spot | None = None, expected: tuple[int, ...] = (0,)) -> int:
        status = nursery.vecrun(directory, *arguments, crash_at=str(crash_at or ""))
        score.crashes += status == KILLED
        if status not in expected:
            score.findings.append(
                f"{what}: vecrun {' '.join(arguments)} ended with {status}, see {nursery.log}"
                + (f"; it did not come to {crash_at}" if crash_at and status == 0 else "")
            )
        return status

    apply = ("apply", f"jobs/{JOB}.yaml", "--auto-approve", "--unpin")
    rollback = ("rollback", JOB, "--auto-approve")
    vecrun(*apply, crash_at=first, expected=(KILLED,))
    if third is None:  # undo what the crash left, at once; before the run was recorded there is nothing to undo
        vecrun(*rollback, expected=(10,) if first.phase == "leased" else (0,))
        score.take(nursery.call("check", directory=str(directory), moved=False), f"{what}: rollback of the crashed run")
        return
    if second is not None:
        vecrun(*apply, crash_at=second, expected=(KILLED,))
    # once the last record is written, nothing is left to do
    vecrun(*apply)
    score.take(nursery.call("check", directory=str(directory), moved=True), what)
    vecrun(*rollback, crash_at=third, expected=(KILLED,))
    if third.phase == "leased":
        vecrun(*rollback)
    else:
        vecrun("resume", JOB, expected=(10,) if third == Spot("state", "recorded") else (0,))
    score.take(nursery.call("check", directory=str(directory), moved=False), f"{what}: rollback")
