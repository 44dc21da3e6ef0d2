# ruff: noqa: T201
"""`python -m tests.faults`: the crash matrix, then `kill -9` at random moments, over several pairs of stores, over
changes of the embedding model with every strategy, over each batch operation on documents, over backups and restores, and
over migrations inside of a relational database.

The last line counts what was found; the exit status is 0 only if nothing was lost, doubled, changed, or otherwise wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests import servers, warm
from tests.faults import backup, batch, kills, matrix, reembed, relational, writing
from tests.faults.archive import Chore
from tests.faults.change import Change
from tests.faults.matrix import Score
from tests.faults.nursery import Nursery
from tests.faults.papers import Task
from tests.faults.scene import PAIRS, Pair, missing

#: Pairs of the matrix: all steps in one or the other, both kinds of chunks tables, a target that was there before.
MATRIX = ("files → pgvector", "pgvector → pgvector", "pgvector → files")
#: Work that goes on at once. Much of it waits: for discs, for clients to be imported, for the moment of a kill.
LANES = 3
#: What is imported once for all processes, besides what most tests want.
CLIENTS = {"milvus": ("pymilvus", "milvus_lite.server_manager"), "qdrant": ("qdrant_client",)}
#: The name of the one that is no matrix.
WRITER = "backup: while rows are written"

Job = tuple[Pair | Change | Task | Chore | str, Callable[[Nursery, Path, str], Score]]


def main() -> int:
    """Parse arguments, run everything, print the table. The exit status."""
    known, changes = [str(pair) for pair in PAIRS], [str(change) for change in reembed.CHANGES]
    tasks = [str(task) for task in batch.TASKS]
    chores = [*map(str, backup.CHORES), relational.CHORE]
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=208, help="processes to kill, over all pairs [%(default)s]")
    parser.add_argument("--seconds", type=float, default=0, help="begin no more migrations after so many seconds")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the data and the moments [the time]")
    parser.add_argument("--change-kills", type=int, default=80, help="the same, over all changes [%(default)s]")
    parser.add_argument("--batch-kills", type=int, default=80, help="the same, over all operations [%(default)s]")
    parser.add_argument("--backup-kills", type=int, default=60, help="the same, over all backups [%(default)s]")
    parser.add_argument("--writer-kills", type=int, default=100, help="while rows are added to a table [%(default)s]")
    parser.add_argument("--pairs", nargs="*", metavar="PAIR", help=f"only these of: {'; '.join(known)}")
    parser.add_argument("--changes", nargs="*", metavar="CHANGE", help=f"only these of: {'; '.join(changes)}")
    parser.add_argument("--tasks", nargs="*", metavar="TASK", help=f"only these operations: {'; '.join(tasks)}")
    parser.add_argument(
        "--chores", nargs="*", metavar="CHORE", help=f"only these backups, migrations: {'; '.join(chores)}"
    )
    parser.add_argument("--every", type=int, default=1, help="each n-th case of the matrix; 0: no matrix [%(default)s]")
    parser.add_argument("--points", type=int, default=0, help="points in a collection, for the kills")
    parser.add_argument("--documents", type=int, default=0, help="documents of an operation, for the kills")
    options = parser.parse_args()
    chosen = [pair for pair in PAIRS if options.pairs is None or str(pair) in options.pairs]
    disturbed = [one for one in reembed.CHANGES if options.changes is None or str(one) in options.changes]
    asked = [one for one in batch.TASKS if options.tasks is None or str(one) in options.tasks]
    saved = [one for one in backup.CHORES if options.chores is None or str(one) in options.chores]
    inside = [relational.CHORE] if options.chores is None or relational.CHORE in options.chores else []
    given = (
        ("pairs", chosen, known), ("changes", disturbed, changes), ("tasks", asked, tasks),
        ("chores", [*saved, *inside], chores),
    )  # fmt: skip
    for name, found, there in given:
        if len(found) < len(getattr(options, name) or ()):
            parser.error(f"--{name}: there are {', '.join(there)}")
    left_out = {str(pair): reason for pair in chosen if (reason := missing(pair))}
    pairs = [pair for pair in chosen if str(pair) not in left_out]
    until = time.monotonic() + options.seconds if options.seconds else float("inf")
    stores = {name.split("-")[0] for one in (*pairs, *disturbed) for name in str(one).replace(": ", " → ").split(" → ")}
    warm.also += [client for store, clients in CLIENTS.items() if store in stores for client in clients]
    folder = Path(tempfile.mkdtemp(prefix="vecrun-faults-"))
    print(f"faults: seed {options.seed}, workspaces and logs in {folder}", flush=True)
    with _postgres() as url, _bucket(asked) as bucket:
        jobs = [*_tasks(asked, options, until, bucket), *_changes(disturbed, options, until)]
        jobs = [*_inside(inside, options), *_chores(saved, options, until), *jobs]
        scores = _work([*jobs, *_jobs(pairs, options, until)], folder, url)
    total = _show(
        [*map(str, pairs), *map(str, disturbed), *map(str, asked), *map(str, saved), WRITER, *inside], scores, left_out
    )
    wanted = (options.kills if pairs else 0) + (options.change_kills if disturbed else 0)
    wanted += options.batch_kills if asked else 0
    wanted += options.backup_kills + options.writer_kills if saved else 0
    if total.kills < wanted and not options.seconds:
        total.findings.append(f"only {total.kills} of {wanted} processes were killed at work")
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


@contextlib.contextmanager
def _postgres() -> Iterator[str]:
    """VECRUN_FAULTS_POSTGRES (with a database `with_vector`), or a server of our own."""
    if given := os.environ.get("VECRUN_FAULTS_POSTGRES"):
        yield given
    else:
        with servers.postgres() as url:
            yield url


@contextlib.contextmanager
def _bucket(tasks: Sequence[Task]) -> Iterator[dict[str, Any] | None]:
    """A connection to an empty bucket, where a task needs one. Its keys are in the environment."""
    if not any(task.files == "s3" for task in tasks):
        yield None
        return
    with servers.s3_server() as server:
        server.client().create_bucket(Bucket="library")
        os.environ["FAULTS_S3_ID"], os.environ["FAULTS_S3_KEY"] = server.keys["admin"]
        keys = {"access_key_id": "${env:FAULTS_S3_ID}", "secret_access_key": "${env:FAULTS_S3_KEY}"}
        yield server.connection("library") | keys


def _tasks(
    chosen: Sequence[Task], options: argparse.Namespace, until: float, bucket: dict[str, Any] | None
) -> list[Job]:  # fmt: skip
    """The same of batch operations on documents."""
    jobs: list[Job] = []
    for number, task in enumerate(chosen):
        quota = options.batch_kills // len(chosen) + (number < options.batch_kills % len(chosen))
        given = {"task": task, "seed": options.seed + 10 * number, "bucket": bucket}
        if options.every and str(task) in batch.MATRIX:
            jobs.insert(0, (task, partial(batch.crash, every=options.every, **given)))
        if quota:
            killed = partial(batch.kill, quota=quota, documents=options.documents, until=until, **given)
            jobs.append((task, killed))
    return jobs


def _chores(chosen: Sequence[Chore], options: argparse.Namespace, until: float) -> list[Job]:
    """The same of backups and restores, and of a table that is written to while it is backed up and emptied."""
    jobs: list[Job] = []
    for number, chore in enumerate(chosen):
        quota = options.backup_kills // len(chosen) + (number < options.backup_kills % len(chosen))
        seed = options.seed + 20 * number
        if options.every and str(chore) in backup.MATRIX:
            jobs.insert(0, (chore, partial(backup.crash, chore=chore, seed=seed, every=options.every)))
        if quota:
            jobs.append((chore, partial(backup.kill, chore=chore, seed=seed, quota=quota, until=until)))
    if chosen and options.writer_kills:
        written = partial(writing.run, seed=options.seed, quota=options.writer_kills, until=until)
        jobs.insert(0, (WRITER, written))
    return jobs


def _inside(chosen: Sequence[str], options: argparse.Namespace) -> list[Job]:
    """The same of migrations inside of a database, at every statement: of each kind, in as many lanes as there are."""
    return [
        (name, partial(relational.crash, kind=kind, seed=options.seed, every=options.every * LANES, offset=lane))
        for name in chosen
        for kind in relational.DATABASES
        for lane in range(LANES)
        if options.every
    ]


def _jobs(pairs: Sequence[Pair], options: argparse.Namespace, until: float) -> list[Job]:
    """What there is to do, the longest first."""
    jobs: list[Job] = []
    for number, pair in enumerate(pairs):
        quota = options.kills // len(pairs) + (number < options.kills % len(pairs))
        seed = options.seed + 1000 * number

        def disturbed(nursery: Nursery, directory: Path, url: str, pair=pair, seed=seed, quota=quota) -> Score:  # type: ignore[no-untyped-def]
            return kills.run(nursery, directory, pair, seed, url, quota, options.points, until)

        def crashed(nursery: Nursery, directory: Path, url: str, pair=pair, seed=seed) -> Score:  # type: ignore[no-untyped-def]
            return matrix.run(nursery, directory, pair, seed, url, options.every)

        if options.every and str(pair) in MATRIX:
            jobs.insert(0, (pair, crashed))
        if quota:
            jobs.append((pair, disturbed))
    return jobs


def _changes(chosen: Sequence[Change], options: argparse.Namespace, until: float) -> list[Job]:
    """The same of changes of the model, and of second tries after texts were mended."""
    jobs: list[Job] = []
    for number, change in enumerate(chosen):
        quota = options.change_kills // len(chosen) + (number < options.change_kills % len(chosen))
        seed = options.seed + 100 * number
        if options.every and str(change) in reembed.MATRIX:
            jobs.insert(0, (change, partial(reembed.crash, change=change, seed=seed, every=options.every)))
        if quota:
            killed = partial(reembed.kill, change=change, seed=seed, quota=quota, points=options.points, until=until)
            jobs.append((change, killed))
    jobs += [
        (change, partial(reembed.mend, change=change, seed=options.seed, every=options.every))
        for change in reembed.MENDED
        if options.every and str(change) in map(str, chosen)
    ]
    return jobs


def _work(jobs: list[Job], folder: Path, url: str) -> dict[str, Score]:
    """Do all jobs in a few lanes, each with its own log. Scores by pair."""
    waiting: queue.SimpleQueue[tuple[int, Job]] = queue.SimpleQueue()
    for numbered in enumerate(jobs):
        waiting.put(numbered)
    scores: dict[str, Score] = {}
    lock = threading.Lock()

    def lane(number: int) -> None:
        nursery = Nursery(folder / f"lane{number}.log")
        while True:
            try:
                job, (pair, action) = waiting.get_nowait()
            except queue.Empty:
                return
            began = time.monotonic()
            try:
                score = action(nursery, folder / f"w{job}", url)
            except Exception as exc:
                score = Score(findings=[f"{pair}: {type(exc).__name__}: {exc}"])
            score.seconds = time.monotonic() - began
            with lock:
                scores.setdefault(str(pair), Score()).__iadd__(score)
                what = f"{score.crashes} crashes" if score.crashes else f"{score.kills} kills"
                done = "right" if score.right else f"WRONG: {score.findings[:1]}"
                print(f"  {pair}: {what}, {score.runs} runs, {score.seconds:.0f} s, {done}", flush=True)

    lanes = [threading.Thread(target=lane, args=(number,)) for number in range(min(LANES, len(jobs)))]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()
    return scores


def _show(names: Sequence[str], scores: dict[str, Score], left_out: dict[str, str]) -> Score:
    """Print what happened to each, and where the kills struck. The sum."""
    total = Score()
    columns = ("runs", "crashes", "kills", "compared", "lost", "doubled", "changed", "seconds")
    print("\n" + f"{'pair':<28}" + "".join(f"{name:>10}" for name in columns))
    for name in [*dict.fromkeys(names), "all"]:
        score = total if name == "all" else scores.get(name, Score())
        counts = score.counts
        cells = (
            score.runs, score.crashes, score.kills, counts.compared, counts.lost, counts.doubled, counts.changed,
            f"{score.seconds:.0f}",
        )  # fmt: skip
        print(f"{name:<28}" + "".join(f"{cell:>10}" for cell in cells))
        if name != "all":
            total += score
    print(
        "runs: applies and rollbacks that were disturbed and compared afterwards; crashes: at chosen points; kills: at random"
    )
    spread = sorted(total.hits.items(), key=lambda item: -item[1])
    print("kills struck: " + (", ".join(f"{name} {number}" for name, number in spread) or "nothing"))
    for name, reason in left_out.items():
        print(f"left out: {name} ({reason})")
    return total


if __name__ == "__main__":
    sys.exit(main())
