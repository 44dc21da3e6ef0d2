"""A batch operation by two workers over Redis and PostgreSQL, while workers, their supervisor and the coordinator are
killed; undone under the same. `strike` is called by a test."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

from tests import servers, warm
from tests.faults.batch import APPLY, BATCH, ROLLBACK
from tests.faults.blows import END_SECONDS, FINAL, LEASE_SECONDS, World
from tests.faults.ledger_watch import LedgerWatch
from tests.faults.matrix import Score
from tests.faults.nursery import Nursery
from tests.faults.papers import Task
from tests.faults.team import COMMAND, Team, environment

#: Documents: enough for two partitions.
DOCUMENTS = 1400


def strike(world: World, directory: Path, task: Task, seed: int, kills: int) -> Score:
    """Once undisturbed, then with so many kills in the apply and half of them in the rollback."""
    score, chance, nursery = Score(), random.Random(seed), Nursery(directory.with_name(f"{directory.name}.log"))
    name = f"ledger_{directory.name}"
    servers.sql(world.postgres, f"CREATE DATABASE {name}")
    database = servers.database(world.postgres, name)
    team = {
        "state": {"database": database}, "broker": {"url": world.redis.url, "namespace": directory.name},
        "limits": {"workers": 2, "retry_delay": 0.5, "lease_seconds": LEASE_SECONDS},
    }  # fmt: skip
    nursery.call(
        "papers.build", directory=str(directory), task=asdict(task), documents=DOCUMENTS, batch_size=4 * BATCH,
        postgres=world.postgres, delay=0.05, team=team,
    )  # fmt: skip
    log = directory.with_name(f"{directory.name}-workers.log")
    workers = Team(directory, log, processes=2)
    try:
        for number, quota in enumerate((0, 0, kills, kills // 2)):
            after = number % 2 == 0
            _run(directory, database, workers, APPLY if after else ROLLBACK, quota, chance, score)
            if number == 0:
                score.findings += nursery.call("holding.remember", directory=str(directory))
            score.findings += nursery.call("holding.moment", directory=str(directory))["findings"]
            score.take(nursery.call("holding.ended", directory=str(directory), after=after), f"{task} run {number}")
            if not score.right:
                break
    finally:
        score.findings += workers.stop()
    return score


def _run(
    directory: Path, database: str, workers: Team, command: tuple[str, ...], kills: int, chance: random.Random,
    score: Score,
) -> None:  # fmt: skip
    """Begin it, kill, and wait until it has come to its end."""
    log = directory.with_name(f"{directory.name}.log")
    with log.open("ab") as into:
        client = warm.Popen(
            [*COMMAND, *command], cwd=directory, stdout=into, stderr=into, env=environment(), stdin=subprocess.DEVNULL
        )  # fmt: skip
    deadline, left = time.monotonic() + END_SECONDS, kills
    ledger = LedgerWatch(database)
    try:
        run = ""
        while time.monotonic() < deadline:
            run, _, status, _ = ledger.newest()
            if not run:  # the workers have not even made the tables
                time.sleep(0.1)
                continue
            if client.poll() is not None and status in FINAL:
                break
            children = workers.children()
            victims = [*children, client.pid] if client.poll() is None else children
            changing = any(kind.endswith("_documents") and state == "running" for kind, state in ledger.steps(run))
            if left and changing and victims and status not in FINAL:
                time.sleep(chance.uniform(0, 0.8))
                if left % 3 == 2:
                    workers.kill_supervisor()
                    workers.start()
                else:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(chance.choice(victims), signal.SIGKILL)
                left -= 1
                score.kills += 1
                deadline = time.monotonic() + END_SECONDS
            time.sleep(0.05)
        found = ledger.newest()
        if found[2] != "completed":
            score.findings.append(f"{' '.join(command)}: {found}, {ledger.steps(run)}, see {log}")
    finally:
        ledger.close()
