"""`kill -9` at random moments of real vecrun processes, then on with the run until it ends, and a comparison.

Half of the kills are spread evenly over the time a run takes; the other half waits for a step chosen by lot and dies
somewhere in it, so that the short steps at the end are hit as well. Start-up is left out: a process that has no
lease yet does nothing that could go wrong.
"""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from tests import warm
from tests.faults.matrix import KILLED, Score
from tests.faults.nursery import Nursery
from tests.faults.scene import JOB, Pair

#: Kills that one run has to bear at most; then it is left alone.
KILLS_A_RUN, KILLS_A_ROLLBACK = 6, 2
#: Share of the killed applies that are rolled back instead of resumed.
ROLLED_BACK_EARLY = 0.15
#: Longest a vecrun process may take, in seconds.
PATIENCE = 150
#: How often a step is chosen; others count 1.
WEIGHTS = {
    "copy_points": 10, "verify_points": 5, "replace_vectors": 12, "restore_vectors": 8, "set_model": 3, "set_serving": 2,
    "delete_documents": 12, "edit_documents": 12, "reprocess_documents": 12, "restore_documents": 8,
}  # fmt: skip
BATCH = 25
COMMAND = (sys.executable, "-m", "runner")


class Migration:
    """A workspace whose runs are killed."""

    def __init__(self, nursery: Nursery, directory: Path, chance: random.Random, score: Score) -> None:
        self.nursery, self.directory, self.chance, self.score = nursery, directory, chance, score
        self.log = directory.with_name(f"{directory.name}.log")
        #: Seconds each step took when nobody disturbed it: step type -> seconds, for applies and rollbacks.
        self.normal: dict[str, float] = {}
        #: Exit statuses of a run that came to its end.
        self.right: tuple[int, ...] = (0,)

    # -- looking into the ledger -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _ledger(self) -> Iterator[sqlite3.Connection]:
        path = self.directory / "state" / "ledger.db"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
            yield connection

    def _newest(self) -> tuple[str, str, str]:
        """(run, purpose, status) of the newest run; empty strings when there is none."""
        with contextlib.suppress(sqlite3.OperationalError), self._ledger() as ledger:
            query = "select run, purpose, status from runs order by created desc, run desc limit 1"
            return ledger.execute(query).fetchone() or ("", "", "")
        return "", "", ""

    def _steps(self, ledger: sqlite3.Connection, run: str) -> list[tuple[str, str]]:
        """(type, status) of each step."""
        row = ledger.execute("select plan from runs where run = ?", (run,)).fetchone()
        if row is None:
            return []
        types = [step["type"] for step in json.loads(row[0])["steps"]]
        states = ledger.execute("select status from steps where run = ? order by step", (run,)).fetchall()
        return [(kind, state[0]) for kind, state in zip(types, states, strict=True)]

    def _holds(self, ledger: sqlite3.Connection, pid: int) -> str:
        """The run for which the process holds a lease."""
        with contextlib.suppress(sqlite3.OperationalError):  # no tables yet
            row = ledger.execute("select run from leases where pid = ? and run is not null", (pid,)).fetchone()
            return row[0] if row else ""
        return ""

    def measure(self) -> None:
        """Remember how long each step of the newest run took."""
        run, _, _ = self._newest()
        with self._ledger() as ledger:
            rows = ledger.execute("select started, finished from steps where run = ? order by step", (run,)).fetchall()
            for (kind, _), (started, finished) in zip(self._steps(ledger, run), rows, strict=True):
                seconds = (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()
                self.normal[kind] = max(self.normal.get(kind, 0.0), seconds)

    # -- running ---------------------------------------------------------------------------------------------

    def undisturbed(self, *arguments: str) -> bool:
        """Run it to its end. False (and a finding) when it does not succeed."""
        with self.log.open("ab") as log:
            done = warm.run([*COMMAND, *arguments], cwd=self.directory, stdout=log, stderr=log, timeout=PATIENCE)
        if done.returncode not in self.right:
            self.score.findings.append(f"vecrun {' '.join(arguments)} ended with {done.returncode}: see {self.log}")
        return done.returncode in self.right

    def killed(self, *arguments: str) -> bool | None:
        """Run it and kill it somewhere. True: killed at work; False: it came to its end before; None: a finding."""
        with self.log.open("ab") as log:
            log.write(f"\n$ vecrun {' '.join(arguments)}\n".encode())
            log.flush()
            process = warm.Popen([*COMMAND, *arguments], cwd=self.directory, stdout=log, stderr=log)
        run = self._wait_for_the_moment(process)
        process.kill()
        status = process.wait()
        if status == KILLED:
            if (hit := self._where(process.pid, run)) is not None:
                self.score.kills += 1
                self.score.hits[hit] = self.score.hits.get(hit, 0) + 1
                return True
            self.score.missed += 1
            return False
        if status not in self.right:
            self.score.findings.append(f"vecrun {' '.join(arguments)} ended with {status}: see {self.log}")
            return None
        self.score.missed += 1
        return False

    def _wait_for_the_moment(self, process: subprocess.Popen[bytes]) -> str:
        """Return when the process is to die (or is over); the run it works for."""
        began = time.monotonic()
        while not (self.directory / "state" / "ledger.db").exists() and process.poll() is None:
            time.sleep(0.005)
        with self._ledger() as ledger:
            run = ""
            while not run and process.poll() is None and time.monotonic() - began < PATIENCE:
                run = self._holds(ledger, process.pid)
                time.sleep(0.003)
            if not run:
                return run
            steps = self._steps(ledger, run)
            left = [kind for kind, state in steps if state != "done"] or list(self.normal)
            if self.chance.random() < 0.5:
                self._sleep(process, self.chance.uniform(0, sum(self.normal.get(kind, 0.1) for kind in left)))
                return run
            names = [*left, "state"]
            chosen = self.chance.choices(names, [WEIGHTS.get(name, 1) for name in names])[0]
            while process.poll() is None and time.monotonic() - began < PATIENCE:
                steps = self._steps(ledger, run)
                states = {state for kind, state in steps if kind == chosen}
                if "running" in states or (steps and states <= {"done"} and (chosen != "state" or _over(steps))):
                    break
                time.sleep(0.001)
            self._sleep(process, self.chance.uniform(0, self.normal.get(chosen, 0.03)))
        return run

    def _sleep(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)

    def _where(self, pid: int, run: str) -> str | None:
        """What the killed process was at; None when it had done everything already."""
        with self._ledger() as ledger:
            if not self._holds(ledger, pid):
                return None
            row = ledger.execute("select purpose from runs where run = ?", (run,)).fetchone()
            prefix = "rollback " if row and row[0] == "rollback" else ""
            if row is None:
                return "starting"
            running = [kind for kind, state in self._steps(ledger, run) if state == "running"]
            if running:
                return prefix + running[0]
            return prefix + ("state" if _over(self._steps(ledger, run)) else "between steps")

    # -- a migration and its way back ------------------------------------------------------------------------

    def apply(self, quota: int) -> bool:
        """Apply with up to `quota` kills, and compare. False when it was rolled back in the middle."""
        fresh = ("apply", f"jobs/{JOB}.yaml", "--auto-approve", "--unpin")
        for number in range(min(quota, KILLS_A_RUN) + 1):
            _, purpose, status = self._newest()
            unfinished = purpose == "apply" and status not in ("completed", "rolled_back")
            if number and purpose == "apply" and status == "completed":
                break
            if number and unfinished and self.chance.random() < ROLLED_BACK_EARLY:
                self.rollback(quota - number)
                return False
            again = ("resume", JOB) if unfinished and self.chance.random() < 0.5 else fresh
            if number == min(quota, KILLS_A_RUN):
                self.undisturbed(*again)
            elif not self.killed(*again):
                break
        self._compare(moved=True)
        return True

    def rollback(self, quota: int) -> None:
        """Roll back with up to `quota` kills, and compare."""
        quota = min(quota, KILLS_A_ROLLBACK)
        for number in range(quota + 1):
            _, purpose, status = self._newest()
            unfinished = purpose == "rollback" and status != "completed"
            if number and purpose == "rollback" and status == "completed":
                break
            again = ("resume", JOB) if unfinished else ("rollback", JOB, "--auto-approve")
            if number == quota:
                self.undisturbed(*again)
            elif not self.killed(*again):
                break
        self._compare(moved=False)

    def _compare(self, *, moved: bool) -> None:
        if not self.score.findings:
            checked = self.nursery.call("check", directory=str(self.directory), moved=moved)
            self.score.take(checked, f"{self.directory.name} after {'apply' if moved else 'rollback'}")


def _over(steps: list[tuple[str, str]]) -> bool:
    return bool(steps) and all(state == "done" for _, state in steps)


def run(
    nursery: Nursery, directory: Path, pair: Pair, seed: int, postgres: str, kills: int, points: int = 0,
    until: float = float("inf"),
) -> Score:  # fmt: skip
    """Migrate and roll back in one workspace until `kills` processes were killed at work, or until `until`."""
    score = Score()
    nursery.call(
        "build", directory=str(directory), pair=asdict(pair), seed=seed, points=points or pair.points,
        batch_size=BATCH, postgres=postgres,
    )  # fmt: skip
    try:
        until_killed(Migration(nursery, directory, random.Random(seed), score), kills, until)
    finally:
        nursery.call("remove", directory=str(directory))
    return score


def until_killed(migration: Migration, kills: int, until: float) -> None:
    """Once without a kill, to learn how long its steps take; then until so many processes were killed at work, or until
    `until`."""
    score = migration.score
    if migration.undisturbed("apply", f"jobs/{JOB}.yaml", "--auto-approve", "--unpin"):
        migration.measure()
        if migration.undisturbed("rollback", JOB, "--auto-approve"):
            migration.measure()
    while score.kills < kills and not score.findings and score.missed < 3 * kills + 10:
        if time.monotonic() > until:
            break
        if migration.apply(kills - score.kills):
            migration.rollback(kills - score.kills)
