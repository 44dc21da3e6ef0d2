# ruff: noqa: T201
"""`python -m tests.faults.distributed`: three workers, Redis and PostgreSQL, and everything of it dies now and then.

Workers, their supervisor and the coordinator are killed (SIGKILL) or stopped beyond their lease (SIGSTOP), Redis is
killed and started again, PostgreSQL restarts; everything is compared after each run. The exit status is 0 only if
nothing was wrong, every run ended by itself, and no partition of a killed worker stood still for 15 s while others lived.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from runner.points import IdKind
from runner.transform import IdMode
from tests import servers
from tests.faults.blows import MOVE_SECONDS, Disturbed, Tally, World
from tests.faults.matrix import Score
from tests.faults.nursery import Nursery
from tests.faults.scene import Pair, missing

PAIRS = (
    Pair("pgvector", "pgvector", IdKind.INT, IdMode.UUID5, "postgres", collections=2, points=26_000),
    Pair("files", "pgvector", IdKind.STRING, IdMode.UUID5, "postgres", points=50_000),
    Pair("pgvector", "files", IdKind.UUID, IdMode.KEEP, existing=True, points=50_000),
    Pair("files", "qdrant-server", IdKind.INT_OR_UUID, IdMode.UUID5, "postgres", points=50_000),
    Pair("pgvector", "weaviate", IdKind.INT, IdMode.UUID5, "postgres", points=50_000),
)


def main() -> int:
    """Parse arguments, run everything, print the tables. The exit status."""
    known = [str(pair) for pair in PAIRS]
    parser = argparse.ArgumentParser(prog="python -m tests.faults.distributed", description=__doc__)
    parser.add_argument("--faults", type=int, default=60, help="faults, over all pairs [%(default)s]")
    parser.add_argument("--seconds", type=float, default=0, help="begin no more migrations after so many seconds")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of data, faults and moments [the time]")
    parser.add_argument("--pairs", nargs="+", metavar="PAIR", help=f"only these of: {'; '.join(known)}")
    parser.add_argument("--points", type=int, default=0, help="points in a collection [at least 50,000 in a migration]")
    options = parser.parse_args()
    chosen = [pair for pair in PAIRS if not options.pairs or str(pair) in options.pairs]
    if len(chosen) < len(options.pairs or ()):
        parser.error(f"--pairs: there are {', '.join(known)}")
    left_out = {str(pair): reason for pair in chosen if (reason := missing(pair))}
    pairs = [pair for pair in chosen if str(pair) not in left_out]
    until = time.monotonic() + options.seconds if options.seconds else float("inf")
    folder = Path(tempfile.mkdtemp(prefix="vecrun-faults-"))
    print(f"faults: seed {options.seed}, workspaces and logs in {folder}", flush=True)
    scores: dict[str, Score] = {}
    tally = Tally()
    with servers.postgres(durable=True) as postgres, servers.redis_server() as redis:
        world, nursery = World(postgres, redis), Nursery(folder / "nursery.log")
        for number, pair in enumerate(pairs):
            quota = options.faults // len(pairs) + (number < options.faults % len(pairs))
            seed, threads = options.seed + 1000 * number, 1 + number % 2
            score, seen = _pair(
                nursery, folder / f"w{number}", pair, seed, world, options.points, threads, quota, until
            )
            scores[str(pair)] = score
            tally += seen
    total = _show(pairs, scores, tally, left_out)
    if total.kills < options.faults and not options.seconds:
        total.findings.append(f"only {total.kills} of {options.faults} faults struck")
    total.findings += [
        f"a partition stood still for {item.seconds:.1f} s: {item.which}"
        for item in tally.moved
        if item.alone and item.seconds > MOVE_SECONDS
    ]
    if total.right:
        shutil.rmtree(folder, ignore_errors=True)
    for text in total.findings:
        print(f"wrong: {text}")
    counts = total.counts
    print(
        f"faults: {total.runs} runs, {total.kills} kills, "
        f"{counts.lost} lost, {counts.doubled} doubled, {counts.changed} changed"
    )
    return 0 if total.right else 1


def _pair(
    nursery: Nursery, directory: Path, pair: Pair, seed: int, world: World, points: int, threads: int, quota: int,
    until: float,
) -> tuple[Score, Tally]:  # fmt: skip
    """All faults of one pair."""
    began = time.monotonic()
    disturbed = Disturbed(nursery, directory, pair, seed, world, points, threads)
    score = disturbed.score
    try:
        disturbed.measure()
        while score.kills < quota and not score.findings and time.monotonic() < until:
            disturbed.disturb(quota - score.kills)
    except Exception as exc:
        score.findings.append(f"{pair}: {type(exc).__name__}: {exc}")
    finally:
        disturbed.close()
    score.seconds = time.monotonic() - began
    done = "right" if score.right else f"WRONG: {score.findings[:1]}"
    print(f"  {pair}: {score.kills} faults, {score.runs} runs, {score.seconds:.0f} s, {done}", flush=True)
    return score, disturbed.tally


def _show(pairs: Sequence[Pair], scores: dict[str, Score], tally: Tally, left_out: dict[str, str]) -> Score:
    """Print what happened to each pair, what struck where, and how long partitions stood still. The sum."""
    total = Score()
    columns = ("runs", "faults", "compared", "lost", "doubled", "changed", "seconds")
    print("\n" + f"{'pair':<28}" + "".join(f"{name:>10}" for name in columns))
    for name in [*dict.fromkeys(map(str, pairs)), "all"]:
        score = total if name == "all" else scores.get(name, Score())
        counts = score.counts
        cells = (
            score.runs, score.kills, counts.compared, counts.lost, counts.doubled, counts.changed, f"{score.seconds:.0f}",
        )  # fmt: skip
        print(f"{name:<28}" + "".join(f"{cell:>10}" for cell in cells))
        if name != "all":
            total += score
    print("runs: applies and rollbacks that came to their end and were compared, two of each pair undisturbed")
    for fault, number in tally.struck.most_common():
        at = Counted({step: count for (name, step), count in tally.where.items() if name == fault})
        print(f"  {fault} {number}: {at}")
    print(
        f"{tally.deliveries} deliveries, {tally.checkpoints} checkpoints, {tally.swept} partitions taken up again, "
        f"{tally.takeovers} runs taken over, {tally.refused} stopped coordinators refused, {tally.resumed} resumes needed"
    )
    for alone, what in ((True, ""), (False, ", with other faults at the same time")):
        if seconds := sorted(item.seconds for item in tally.moved if item.alone is alone):
            print(
                f"from a worker's death to its partition moving again{what}: {len(seconds)} measured, "
                f"median {seconds[len(seconds) // 2]:.1f} s, longest {seconds[-1]:.1f} s"
            )
    for name, reason in left_out.items():
        print(f"left out: {name} ({reason})")
    return total


class Counted(dict[str, int]):
    """Numbers by name, the largest first."""

    def __str__(self) -> str:
        return ", ".join(f"{name} {number}" for name, number in sorted(self.items(), key=lambda item: -item[1]))


if __name__ == "__main__":
    sys.exit(main())
