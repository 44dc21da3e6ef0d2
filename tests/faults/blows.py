"""One workspace with workers, whose processes and servers are killed, restarted and stopped while a run is at work."""

from __future__ import annotations

import contextlib
import heapq
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from runner.sweeper import SILENT_SECONDS
from tests import servers, warm
from tests.faults.ledger_watch import LedgerWatch, Moved, Orphan, Stopwatch
from tests.faults.matrix import KILLED, Score
from tests.faults.nursery import Nursery
from tests.faults.scene import JOB, Pair
from tests.faults.team import COMMAND, Team, environment, lives

#: Faults and how often each is chosen.
FAULTS = {
    "kill worker": 7, "kill supervisor": 2, "kill coordinator": 3, "kill redis": 2, "restart postgres fast": 2,
    "restart postgres immediate": 2, "stop worker": 2, "stop coordinator": 2,
}  # fmt: skip
#: How often a step is chosen to be struck; others count 1.
WEIGHTS = {"copy_points": 12, "verify_points": 6, "rewrite_ids": 3, "restore_ids": 3, "finish_collection": 2}
#: Faults that one run has to bear, at most; share of them that come in twos; share of applies that are cancelled.
APPLY_FAULTS, ROLLBACK_FAULTS, TWICE, CANCELLED = 4, 2, 0.15, 0.1
#: Longest time in which a run must have come to its end after the last fault, and a partition must move again.
END_SECONDS, MOVE_SECONDS = 150.0, 15.0
#: Shortest that vecrun.yaml allows is 5.
LEASE_SECONDS = 10
FINAL = ("completed", "failed", "paused", "cancelled", "rolled_back")


@dataclass
class Tally:
    """What was seen besides right and wrong."""

    struck: Counter[str] = field(default_factory=Counter)  # fault -> how often
    where: Counter[tuple[str, str]] = field(default_factory=Counter)  # (fault, step) -> how often
    moved: list[Moved] = field(default_factory=list)
    deliveries: int = 0
    checkpoints: int = 0
    swept: int = 0  # partitions taken up again
    takeovers: int = 0
    resumed: int = 0  # runs that needed `vecrun resume`
    refused: int = 0  # stopped coordinators that were told, when they woke, that their lock is lost

    def __iadd__(self, other: Tally) -> Tally:
        self.struck += other.struck
        self.where += other.where
        self.moved += other.moved
        for name in ("deliveries", "checkpoints", "swept", "takeovers", "resumed", "refused"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


@dataclass
class World:
    """The servers everything depends on."""

    postgres: str
    redis: servers.Redis


class Disturbed:
    """Applies and rolls back a pair's migration under faults, and compares after each."""

    def __init__(
        self, nursery: Nursery, directory: Path, pair: Pair, seed: int, world: World, points: int, threads: int
    ) -> None:  # fmt: skip
        self.nursery, self.directory, self.pair, self.seed, self.world = nursery, directory, pair, seed, world
        self.chance = random.Random(seed)
        self.score, self.tally = Score(), Tally()
        self.log = directory.with_name(f"{directory.name}.log")
        name = f"ledger_{directory.name}"
        servers.sql(world.postgres, f"CREATE DATABASE {name}")
        database = servers.database(world.postgres, name)
        team = {
            "state": {"database": database},
            "broker": {"url": world.redis.url, "namespace": directory.name},
            "limits": {"workers": 2, "retry_delay": 0.5, "lease_seconds": LEASE_SECONDS},
        }
        nursery.call(
            "build", directory=str(directory), pair=asdict(pair), seed=seed, points=points or pair.points,
            batch_size=500, postgres=world.postgres, team=team,
        )  # fmt: skip
        self.ledger = LedgerWatch(database)
        self.stopwatch = Stopwatch(database)
        self.team = Team(directory, directory.with_name(f"{directory.name}-workers.log"), threads=threads)
        self.normal: dict[str, float] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._client: subprocess.Popen[bytes] | None = None
        self._frozen: set[int] = set()
        self._told: set[str] = set()  # faults that struck the process that was started for this run

    def close(self) -> None:
        """Stop everything; what never ended or never moved is a finding."""
        for _, _, action in sorted(self._due):
            action()
        self.score.findings += self.team.stop()
        self.score.findings += self.stopwatch.close()
        self.tally.moved += self.stopwatch.measured
        if self.score.findings:
            self.ledger.dump(self.log.with_suffix(".ledger"))
        self.ledger.close()
        self.nursery.call("remove", directory=str(self.directory))

    # -- one run -----------------------------------------------------------------------------------------------

    def measure(self) -> None:
        """One migration and its way back that nobody disturbs: how long each step takes."""
        self._await_workers()
        self.ledger.audit()
        for number, command in enumerate((self._apply(), self._rollback())):
            self._run(command, 0)
            if self.score.findings:
                return
            self.normal |= self.ledger.seconds(self.ledger.newest()[0])
            self._compare(moved=number == 0)

    def disturb(self, quota: int) -> None:
        """Apply and roll back with at most so many faults, compare after each."""
        before = self._count()
        self._run(self._apply(), min(APPLY_FAULTS, quota))
        if self.score.findings:
            return
        if self.ledger.newest()[2] == "completed":
            self._compare(moved=True)
        left = quota - (self._count() - before)
        self._run(self._rollback(), min(ROLLBACK_FAULTS, left))
        self._compare(moved=False)

    def _count(self) -> int:
        return sum(self.tally.struck.values())

    def _apply(self) -> list[str]:
        return ["apply", f"jobs/{JOB}.yaml", "--auto-approve", "--unpin"]

    def _rollback(self) -> list[str]:
        return ["rollback", JOB, "--auto-approve"]

    def _run(self, command: list[str], faults: int) -> None:
        """Start it, attached or not, strike, and wait until it has come to its end."""
        last, serial = self.ledger.newest()[0], self.ledger.serial(JOB)
        detached = self.chance.random() < 0.5
        self._told = set()
        self._client = self._start(*command, *(["--detach"] if detached else []))
        run = self._await_run(last)
        if run:
            self._strike(run, faults)
            self._await_end(run)
            self._finish(run, serial, detached=detached)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            log.write(f"\n{time.strftime('%X')} $ vecrun {' '.join(arguments)}\n".encode())
            log.flush()
            return warm.Popen(
                [*COMMAND, *arguments], cwd=self.directory, stdout=log, stderr=log, env=environment(),
                stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def _await_workers(self) -> None:
        """Until the ledger has its tables and every worker has said that it lives."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):
                if self.ledger.query("select count(*) from workers")[0][0] >= self.team.processes:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"the workers do not come up: see {self.team.log}")

    def _await_run(self, last: str) -> str:
        assert self._client is not None
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            run = self.ledger.newest()[0]
            if run not in ("", last):
                return run
            if self._client.poll() not in (None, 0):
                break
            time.sleep(0.02)
        self.score.findings.append(f"no run began (exit status {self._client.poll()}): see {self.log}")
        return ""

    def _strike(self, run: str, faults: int) -> None:
        done = 0
        while done < faults:
            chosen = self._await_moment(run)
            if not chosen:
                return
            if done and self.chance.random() < CANCELLED and self.ledger.newest()[1] == "apply":
                self._cancel()
                return
            for _ in range(2 if done + 1 < faults and self.chance.random() < TWICE else 1):
                if self._over(run):
                    return
                # what is measured is how soon a partition moves again, and only these steps have any
                more = {"kill worker": 20} if chosen in ("copy_points", "verify_points") else {}
                weights = FAULTS | more
                self._hit(self.chance.choices(list(weights), list(weights.values()))[0], run)
                done += 1
            self._sleep(run, self.chance.uniform(0, 4))

    def _await_moment(self, run: str) -> str:
        """Wait for a step chosen by lot, and somewhere into it. The step; empty when the run is over."""
        left = [kind for kind, state in self.ledger.steps(run) if state != "done"]
        if not left or self._over(run):
            return ""
        chosen = self.chance.choices(left, [WEIGHTS.get(name, 1) for name in left])[0]
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            states = {state for kind, state in self.ledger.steps(run) if kind == chosen}
            if states & {"running", "failed"} or states <= {"done"} or self._over(run):
                break
            self._tick(0.004)
        self._sleep(run, self.chance.uniform(0, 0.9 * self.normal.get(chosen, 0.05)))
        return "" if self._over(run) else chosen

    def _over(self, run: str) -> bool:
        return bool(self.ledger.query("select status from runs where run = %s", run)[0][0] in FINAL)

    def _sleep(self, run: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._over(run):
            self._tick(min(0.02, left))

    def _tick(self, seconds: float) -> None:
        """Pass some time, and do what is due."""
        time.sleep(seconds)
        while self._due and self._due[0][0] <= time.monotonic():
            heapq.heappop(self._due)[2]()

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, len(self._due), action))

    def _await_end(self, run: str) -> None:
        deadline = time.monotonic() + END_SECONDS
        while not self._over(run) and time.monotonic() < deadline:
            self._tick(0.05)
        while self._due:  # servers are started again, who was stopped goes on
            self._tick(0.05)

    def _finish(self, run: str, serial: int, *, detached: bool) -> None:
        """How the run and the process that was started for it have ended."""
        assert self._client is not None
        try:
            status: int | None = self._client.wait(60)
        except subprocess.TimeoutExpired:
            self._client.kill()
            self._client.wait()
            status = None
        name, purpose, ended, error = self.ledger.newest()
        what = f"{self.pair} {run} ({purpose}, seed {self.seed})"
        wanted = {130 if ended == "cancelled" and not detached else 0}
        if "kill coordinator" in self._told:
            wanted = {KILLED}
        elif "stop coordinator" in self._told:
            wanted = {11} | (wanted - {0})
            self.tally.refused += status == 11
        elif "restart" in self._told and not detached and self.ledger.lines(run, "taken over"):
            wanted |= {1, 11}  # it took longer than the lease: this process has stopped itself, and a worker went on
        if status not in wanted:
            self.score.findings.append(
                f"{what}: the process that began it ended with {status}, expected {wanted}: see {self.log}"
            )
        if ended in ("failed", "paused"):
            self.tally.resumed += 1
            self.score.findings.append(f"{what} is {ended} and needs vecrun resume: {error[:400]}")
        elif ended not in ("completed", "cancelled"):
            steps = [f"{kind} {state}" for kind, state in self.ledger.steps(name)]
            self.score.findings.append(f"{what} did not end within {END_SECONDS:.0f} s: {ended}, {steps}")
        # a rollback of what never came to its end may find the state as it leaves it, and the serial moves with the content
        elif self.ledger.serial(JOB) - serial not in ({0, 1} if purpose == "rollback" else {int(ended == "completed")}):
            self.score.findings.append(f"{what}: the state went from serial {serial} to {self.ledger.serial(JOB)}")
        if late := self.team.stragglers():
            self.score.findings.append(f"{what}: worker processes {late} outlive their killed supervisor")
        audit = self.ledger.audited(run)
        self.score.findings += [f"{what}: {text}" for text in audit.findings]
        self.tally.deliveries += audit.deliveries
        self.tally.checkpoints += audit.checkpoints
        self.tally.swept += self.ledger.lines(run, "%%is taken up again%%")
        self.tally.takeovers += self.ledger.lines(run, "taken over")

    def _compare(self, *, moved: bool) -> None:
        if not self.score.findings:
            what = f"{self.pair} {'apply' if moved else 'rollback'} {self.ledger.newest()[0]} (seed {self.seed})"
            self.score.take(self.nursery.call("check", directory=str(self.directory), moved=moved), what)

    # -- the faults --------------------------------------------------------------------------------------------

    def _cancel(self) -> None:
        done = self._start("cancel", JOB).wait(120)
        if done != 0 and self.ledger.newest()[2] != "completed":  # it may have come too late
            self.score.findings.append(f"vecrun cancel ended with {done}: see {self.log}")

    def _hit(self, fault: str, run: str) -> None:
        step = self._at(run)
        holder = self.ledger.coordinator(run)
        victim: int | None = None
        if fault.endswith("coordinator") and (holder is None or holder in self._frozen):
            fault = fault.replace("coordinator", "worker")
        if fault.endswith("worker"):
            victim = self._worker(run, wait=step in ("copy_points", "verify_points"))
            if victim is None:
                return
            step = self._at(run)
        with self.log.open("a") as log:
            log.write(f"{time.strftime('%X')} -- {fault} at {step} of {run}\n")
        match fault:
            case "kill worker":
                assert victim is not None
                self._kill(victim, run)
            case "kill coordinator":
                assert holder is not None
                self._kill(holder, run)
                self._mark(holder, fault)
            case "stop worker":
                assert victim is not None
                self._stop(victim, SILENT_SECONDS + self.chance.uniform(2, 5))
            case "stop coordinator":
                assert holder is not None
                self._stop(holder, LEASE_SECONDS + self.chance.uniform(3, 6))
                self._mark(holder, fault)
            case "kill supervisor":
                self.team.kill_supervisor()
                self._later(self.chance.uniform(0, 2), self.team.start)
            case "kill redis":
                self.world.redis.kill()
                self._later(self.chance.uniform(0, 3), self.world.redis.start)
            case "restart postgres fast":
                servers.restart_postgres(self.world.postgres, "fast")
            case "restart postgres immediate":
                servers.restart_postgres(self.world.postgres, "immediate")
        if fault.startswith("restart"):
            self._told.add("restart")
        self.stopwatch.struck.append(time.monotonic())
        self.score.kills += 1
        self.tally.struck[fault] += 1
        self.tally.where[fault, step] += 1

    def _worker(self, run: str, *, wait: bool) -> int | None:
        """One of the workers, one that has a partition if there is any; `wait` a moment for it."""
        deadline = time.monotonic() + (2 if wait else 0)
        while True:
            awake = [pid for pid in self.team.children() if pid not in self._frozen]
            at_work = [pid for pid in awake if self.ledger.claims(run, pid)]
            if at_work or time.monotonic() > deadline or self._over(run):
                break
            self._tick(0.01)
        return self.chance.choice(at_work or awake) if awake else None

    def _mark(self, pid: int, fault: str) -> None:
        if self._client is not None and pid == self._client.pid:
            self._told.add(fault)

    def _kill(self, pid: int, run: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        died = time.monotonic()
        self._frozen.discard(pid)
        claims = self.ledger.claims(run, pid)
        self.stopwatch.add([Orphan(run, place, claim, worker, died) for place, claim, worker in claims])

    def _stop(self, pid: int, seconds: float) -> None:
        def go_on() -> None:
            self._frozen.discard(pid)
            if lives(pid):
                os.kill(pid, signal.SIGCONT)

        os.kill(pid, signal.SIGSTOP)
        self._frozen.add(pid)
        self._later(seconds, go_on)

    def _at(self, run: str) -> str:
        """What the run is at."""
        _, purpose, _, _ = self.ledger.newest()
        steps = self.ledger.steps(run)
        running = [kind for kind, state in steps if state == "running"]
        name = running[0] if running else "state" if all(state == "done" for _, state in steps) else "between steps"
        return ("rollback " if purpose == "rollback" else "") + name
