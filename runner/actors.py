"""Brokers and actors: the only file that imports dramatiq. Messages carry ids; the ledger is the truth.

Embedded: the same actor on a StubBroker, with worker threads in this process. The coordinator walks the steps in
order, hands partitions to the workers, and reads from the ledger when they are done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Shutdown, ShutdownNotifications

from runner import crash, executor
from runner.errors import Interrupted, ItemsFailed, VerificationFailed
from runner.executor import Run
from runner.ledger import Partition
from runner.plan import Step

#: Seconds between two looks at the ledger.
POLL_SECONDS = 0.1
QUEUE = "vecrun"

#: Called with (step number, step, its partitions) at each look: progress for a display.
Progress = Callable[[int, Step, list[Partition]], None]


class Embedded:
    """Runs a plan in this process."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self.run, self.progress = run, progress
        self.error: BaseException | None = None
        self.broker = StubBroker(middleware=[ShutdownNotifications()], fail_fast_default=False)
        declare = dramatiq.actor(broker=self.broker, queue_name=QUEUE, actor_name="work_partition")
        self.actor = declare(self._work_partition)

    def _work_partition(self, run: str, step: int, part: int, token: int) -> None:
        """One slice of a partition. Errors are recorded, never raised: a stub broker keeps dead letters for ever."""
        if run != self.run.run or token != self.run.lease.tokens[0][1] or self.run.stop.is_set():
            return
        try:
            finished = executor.work(self.run, step, part)
        except Shutdown:
            return
        except BaseException as exc:
            self.error = self.error or exc
            self.run.stop.set()
            return
        if not finished and not self.run.stop.is_set():
            self.actor.send(run, step, part, token)

    def execute(self) -> None:
        """All steps in order. Raises what stopped the run; checkpoints are written by then."""
        self.broker.emit_after("process_boot")  # only dramatiq's own command line does this for us
        worker = dramatiq.Worker(self.broker, worker_threads=self.run.limits.workers, worker_timeout=100)
        worker.start()
        try:
            rows = self.run.ledger.steps_of(self.run.run)
            for number, step in enumerate(self.run.plan.steps):
                if rows[number]["status"] != "done":
                    self._step(number, step)
        except VerificationFailed:  # nobody is at work any more; whoever gave `stop` may have more to compare
            raise
        except BaseException:
            self.run.stop.set()
            raise
        finally:
            worker.stop(timeout=60_000)
            self.broker.close()

    def _step(self, number: int, step: Step) -> None:
        ledger, lease = self.run.ledger, self.run.lease
        self._check()
        ledger.set_step(lease, number, "running")
        crash.point(step.type, "before")
        if executor.is_partitioned(step):
            executor.cut(self.run, number)
            ledger.reopen(lease, number)
            for part in ledger.partitions_of(self.run.run, number):
                if part.status != "done":
                    self.actor.send(self.run.run, number, part.part, lease.tokens[0][1])
            self._wait(number, step)
            result = executor.finish(self.run, number)
        else:
            self.progress(number, step, [])
            try:
                result = executor.do(self.run, number)
            except executor.NotOurs:
                ledger.set_step(lease, number, "pending")
                raise
        crash.point(step.type, "after")
        ledger.set_step(lease, number, "done", result)
        crash.point(step.type, "recorded")

    def _wait(self, number: int, step: Step) -> None:
        """Until every partition is done; failed ones end the run once the others are through."""
        while True:
            parts = self.run.ledger.partitions_of(self.run.run, number)
            self.progress(number, step, parts)
            if all(part.status in ("done", "failed") for part in parts):
                break
            self._check()
            time.sleep(POLL_SECONDS)
        self._check()
        failed = [part for part in parts if part.status == "failed"]
        if failed:
            raise ItemsFailed(
                f"{len(failed)} of {len(parts)} partitions failed",
                "\n".join(f"partition {part.part}: {part.error}" for part in failed[:5]),
                f"Mend the cause, then: vecrun resume {self.run.plan.job}",
            )

    def _check(self) -> None:
        """Raise what stops the run: a lost lease, an error of a worker, a request from outside, Ctrl-C."""
        self._raise_error()
        control = self.run.ledger.run(self.run.run)["control"]
        if control:
            self.run.stop.set()
            self._drain()
            raise Interrupted(
                "Paused on request" if control == "pause" else "Cancelled on request",
                f"run {self.run.run}",
                f"Go on with: vecrun resume {self.run.plan.job}\nOr undo it with: vecrun rollback {self.run.plan.job}",
            )
        if self.run.stop.is_set():
            self._drain()
            self._raise_error()  # whoever has set `stop` may have had a reason
            raise Interrupted(
                "Interrupted",
                f"run {self.run.run}: checkpoints are written",
                f"Go on with: vecrun resume {self.run.plan.job}",
            )

    def _raise_error(self) -> None:
        """Raise the error of a worker or of the lease's keeper, once the workers are through."""
        if self.run.keeper is not None and self.run.keeper.error is not None:
            self.error = self.error or self.run.keeper.error
        if self.error is not None:
            self._drain()
            raise self.error

    def _drain(self) -> None:
        """Wait until the workers have finished their batch and checkpointed."""
        with suppress(Exception):
            self.broker.join(QUEUE, timeout=60_000)
