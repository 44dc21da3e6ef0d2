"""Brokers and actors: the only file that imports dramatiq. Messages carry ids; the ledger is the truth.

A coordinator walks the steps of a run in order, hands partitions to workers, and reads from the ledger when they are
done. Embedded, the workers are threads beside it on a StubBroker. Distributed, they are `Worker` processes that take
the same messages from Redis; they also sweep, and coordinate runs whose coordinator is gone.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import BrokerConnectionError
from dramatiq.middleware import Shutdown, ShutdownNotifications

from runner import crash, executor, logs
from runner.errors import (
    Cancelled,
    HandedOver,
    Interrupted,
    ItemsFailed,
    LeaseLost,
    LockHeld,
    Transient,
    VecrunError,
    VerificationFailed,
    restored,
)
from runner.executor import Run
from runner.executor.flow import retried
from runner.ledger import Partition
from runner.plan import Step
from runner.records import LedgerGone
from runner.settings import Broker
from runner.sweeper import BEAT_SECONDS, Claim, Message, Sweeper

#: Seconds between two looks at the ledger, in the process that works and in one that only waits for workers.
POLL_SECONDS, REMOTE_POLL_SECONDS = 0.1, 0.25
#: Longest wait, in seconds, for workers to finish their batch and checkpoint.
DRAIN_SECONDS = 60
#: Seconds without a living worker after which the user is told.
LONELY_SECONDS = 5.0
QUEUE = "vecrun"

#: Called with (step number, step, its partitions) at each look: progress for a display.
Progress = Callable[[int, Step, list[Partition]], None]
Result = TypeVar("Result")


class Coordinator(ABC):
    """Walks the steps of a run. `error` is what a thread of this process met."""

    poll = POLL_SECONDS

    def __init__(self, run: Run, progress: Progress) -> None:
        self.run, self.progress = run, progress
        self.error: BaseException | None = None

    @abstractmethod
    def execute(self) -> None:
        """All steps in order. Raises what stopped the run; checkpoints are written by then."""

    @abstractmethod
    def _send(self, step: int, part: int) -> None:
        """Hand a partition to the workers."""

    @abstractmethod
    def _drain(self) -> None:
        """Wait until the workers have finished their batch and checkpointed."""

    def _walk(self) -> None:
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

    def _step(self, number: int, step: Step) -> None:
        ledger, lease = self.run.ledger, self.run.lease
        self._check()
        ledger.set_step(lease, number, "running")
        crash.point(step.type, "before")
        while executor.is_partitioned(step):
            try:
                self._patiently(executor.cut, number)
            except executor.NotOurs:
                ledger.set_step(lease, number, "pending")
                raise
            ledger.reopen(lease, number)
            for part in ledger.partitions_of(self.run.run, number):
                if part.status == "pending":
                    self._send(number, part.part)
            self._wait(number, step)
            result = self._patiently(executor.finish, number)
            if not executor.again(self.run, number, result):
                break
            ledger.restart_step(lease, number, result)
            ledger.set_step(lease, number, "running")
        else:
            self.progress(number, step, [])
            try:
                result = self._patiently(executor.do, number)
            except executor.NotOurs:
                ledger.set_step(lease, number, "pending")
                raise
        crash.point(step.type, "after")
        ledger.set_step(lease, number, "done", result)
        crash.point(step.type, "recorded")
        self._log(number, step, result)

    def _patiently(self, action: Callable[[Run, int], Result], number: int) -> Result:
        """What may be repeated as a whole: a store that is being restarted is waited for."""
        try:
            return retried(lambda: action(self.run, number), self.run.limits, self.run.stop)
        except Transient:
            self._check()  # if it was not waited for because this process is to stop, that is the reason
            raise

    def _log(self, number: int, step: Step, result: Any) -> None:
        counts = {key: value for key, value in (result or {}).items() if isinstance(value, int | str)}
        self.run.ledger.write_log(self.run.run, "info", f"step {number + 1} {step.type} done", **counts)

    def _wait(self, number: int, step: Step) -> None:
        """Until every partition is done; failed ones end the run once the others are through."""
        while True:
            parts = self.run.ledger.partitions_of(self.run.run, number)
            self.progress(number, step, parts)
            if all(part.status in ("done", "failed") for part in parts):
                break
            self._check()
            time.sleep(self.poll)
        self._check()
        failed = [part for part in parts if part.status == "failed"]
        if failed:
            raise ItemsFailed(
                f"{len(failed)} of {len(parts)} partitions failed",
                "\n".join(f"partition {part.part}: {part.error}" for part in failed[:5]),
                f"The others are done. Mend the cause, then: vecrun resume {self.run.plan.job}",
            )

    def _check(self) -> None:
        """Raise what stops the run: a lost lease, an error of a worker, a request from outside, Ctrl-C."""
        self._raise_error()
        wish, problem = self.run.ledger.wish(self.run.run)
        if wish:
            self.run.stop.set()
            self._drain()
            if wish == "stop" and problem is not None:
                raise restored(problem)
            raise (Cancelled if wish == "cancel" else Interrupted)(
                "Cancelled on request" if wish == "cancel" else "Paused on request",
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
        """Raise the error of a thread or of the lease's keeper, once the workers are through."""
        if self.run.keeper is not None and self.run.keeper.error is not None:
            self.error = self.error or self.run.keeper.error
        if self.error is not None:
            self._drain()
            raise self.error


class Embedded(Coordinator):
    """Runs a plan in this process."""

    def __init__(self, run: Run, progress: Progress) -> None:
        super().__init__(run, progress)
        self.broker = StubBroker(middleware=[ShutdownNotifications()], fail_fast_default=False)
        declare = dramatiq.actor(broker=self.broker, queue_name=QUEUE, actor_name="work_partition")
        self.actor = declare(self._work_partition)

    def execute(self) -> None:
        self.broker.emit_after("process_boot")  # only dramatiq's own command line does this for us
        worker = dramatiq.Worker(self.broker, worker_threads=self.run.limits.workers, worker_timeout=100)
        worker.start()
        try:
            self._walk()
        finally:
            worker.stop(timeout=DRAIN_SECONDS * 1000)
            self.broker.close()

    def _work_partition(self, run: str, step: int, part: int, token: int) -> None:
        """One slice of a partition. Errors are recorded, never raised: a stub broker keeps dead letters for ever."""
        if run != self.run.run or token != self.run.lease.token or self.run.stop.is_set():
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
            self._send(step, part)

    def _send(self, step: int, part: int) -> None:
        self.actor.send(self.run.run, step, part, self.run.lease.token)

    def _drain(self) -> None:
        with suppress(Exception):
            self.broker.join(QUEUE, timeout=DRAIN_SECONDS * 1000)


class Distributed(Coordinator):
    """Walks the steps here and leaves the partitions to workers. With `hand_over`, `stop` means that another worker is
    to go on with it, not that the run is to be paused."""

    poll = REMOTE_POLL_SECONDS

    def __init__(self, run: Run, progress: Progress, settings: Broker, *, hand_over: bool = False) -> None:
        super().__init__(run, progress)
        self.broker, self.hand_over = _redis(settings), hand_over
        self.actor = _declare(self.broker, _elsewhere)
        self._lonely, self._told = time.monotonic(), False

    def execute(self) -> None:
        try:
            self._walk()
        finally:
            self.broker.close()

    def _send(self, step: int, part: int) -> None:
        _hand_over(self.actor, Message(self.run.run, step, part, self.run.lease.token))

    def _check(self) -> None:
        if self.hand_over and self.run.stop.is_set() and (self.run.keeper is None or self.run.keeper.error is None):
            raise HandedOver("Handed over", f"run {self.run.run}: this worker stops, another goes on")
        if not self._told and time.monotonic() - self._lonely > LONELY_SECONDS:
            self._lonely = time.monotonic()
            if not self.run.ledger.crew():
                self._told = True
                self.run.say("No worker is alive, so nothing moves. Start one in this workspace: vecrun worker")
        super()._check()

    def _drain(self) -> None:
        ledger = self.run.ledger
        if self.run.keeper is not None and self.run.keeper.error is not None:
            return  # whoever takes the run over goes on with its workers
        with suppress(VecrunError):
            if ledger.wish(self.run.run)[0] is None:
                ledger.set_run(self.run.lease, control="pause")
            deadline = time.monotonic() + DRAIN_SECONDS
            while time.monotonic() < deadline and ledger.at_work(self.run.run):
                time.sleep(self.poll)


class Worker:
    """One worker process: partitions from the queue, signs of life, sweeping, and runs that nobody coordinates.

    `open_run(run, token)`: what is needed to work for a run, None when the token is not of its present lease.
    `coordinate(run, stop)`: go on with a run until it ends or `stop` is set. `slots`: so many runs work at once.
    """

    def __init__(
        self, ledger: Sweeper, settings: Broker, threads: int, open_run: Callable[[str, int], Run | None],
        coordinate: Callable[[str, threading.Event], None], slots: int, stop: threading.Event,
    ) -> None:  # fmt: skip
        self.ledger, self.threads, self.slots, self.stop = ledger, threads, slots, stop
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"
        self._open_run, self._coordinate = open_run, coordinate
        self._broker = _redis(settings)
        self._actor = _declare(self._broker, self._work_partition)
        self._queued = _length(self._broker)
        self._guard = threading.Lock()
        self._busy: Counter[Claim] = Counter()
        self._open: dict[tuple[str, int], Run] = {}
        self._used: dict[tuple[str, int], float] = {}
        self._runs: dict[str, threading.Thread] = {}
        self._later: dict[str, float] = {}  # runs that could not be taken over, and when to try again

    def work(self) -> None:
        """Until `stop`; then finish the batches, checkpoint, and hand everything back."""
        worker = dramatiq.Worker(self._broker, worker_threads=self.threads, worker_timeout=200)
        worker.queue_prefetch = self.threads  # what waits here would wait for this process's death, too
        self._look_after()
        worker.start()
        logs.log().info("worker begins", worker=self.name, threads=self.threads)
        while not self.stop.wait(BEAT_SECONDS):
            self._look_after()
        for run in list(self._open.values()):
            run.stop.set()
        worker.stop(timeout=DRAIN_SECONDS * 500)
        for thread in self._runs.values():
            thread.join(timeout=DRAIN_SECONDS / 2)
        with suppress(VecrunError):
            self._send(self.ledger.sweep(self.name, tuple, idle=False))
            self.ledger.leave(self.name)
        self._close_runs(older=float("inf"))
        self._broker.close()
        logs.log().info("worker ends", worker=self.name)

    def _work_partition(self, run: str, step: int, part: int, token: int) -> None:
        claim = (run, step, part)
        with self._guard:
            self._busy[claim] += 1
        try:
            with logs.bound(run=run, step=step + 1, partition=part, worker=self.name):
                self._work(run, step, part, token)
        finally:
            with self._guard:
                self._busy[claim] -= 1

    def _work(self, run: str, step: int, part: int, token: int) -> None:
        """Errors go to the coordinator through the ledger: a queue that tries again by itself knows nothing of leases."""
        try:
            opened = self._opened(run, token)
            if opened is None or opened.stop.is_set():
                return
            with logs.bound(job=opened.plan.job):
                finished = executor.work(opened, step, part)
        except LeaseLost as exc:
            logs.log().info("given up", reason=str(exc))
        except LedgerGone as exc:  # what this thread held is freed by the sweep, once the ledger answers
            logs.log().warning("ledger does not answer", reason=str(exc))
        except VecrunError as exc:
            logs.log().error("failed", reason=str(exc))
            self._report(run, token, exc)
        except BaseException as exc:
            logs.log().exception("internal error")
            detail = f"{type(exc).__name__}: {exc} (worker {self.name}; its log has more)"
            self._report(run, token, VecrunError("Internal error in a worker", detail))
        else:
            if not finished and not opened.stop.is_set():
                self._send([Message(run, step, part, token)])

    def _report(self, run: str, token: int, exc: VecrunError) -> None:
        with suppress(VecrunError):
            lease = self.ledger.lease_of(run)
            if lease is not None and lease.token == token:
                self.ledger.report(lease, exc)

    def _opened(self, run: str, token: int) -> Run | None:
        key = (run, token)
        with self._guard:
            self._used[key] = time.monotonic()
            if key not in self._open:
                opened = self._open_run(run, token)
                if opened is None:
                    return None
                opened.worker = self.name
                self._open[key] = opened
            return self._open[key]

    def _send(self, messages: list[Message]) -> None:
        for item in messages:
            _hand_over(self._actor, item)

    def _look_after(self) -> None:
        """What is done every few seconds. A ledger that does not answer is no reason to end."""
        try:
            began = time.monotonic()
            self.ledger.beat(self.name, self.threads, len(self._at_it()))
            if time.monotonic() - began > BEAT_SECONDS:  # the ledger was away: others have to give a sign first, too
                return
            self._send(self.ledger.sweep(self.name, self._at_it, idle=self._queued() == 0))
            self._runs = {run: thread for run, thread in self._runs.items() if thread.is_alive()}
            # one at a time: each asks for leases, and many runs may wait for a slot
            waiting = [run for run in self.ledger.orphans(self.slots) if run not in self._runs]
            for run in [one for one in waiting if self._later.get(one, 0.0) <= time.monotonic()][:1]:
                self._runs[run] = threading.Thread(target=self._take_over, args=(run,), name=f"run-{run}")
                self._runs[run].start()
        except VecrunError as exc:
            logs.log().warning("ledger does not answer", reason=str(exc))
        self._close_runs(older=time.monotonic() - 60)

    def _at_it(self) -> set[Claim]:
        """What the threads work on."""
        with self._guard:
            self._busy = Counter({claim: count for claim, count in self._busy.items() if count})
            return set(self._busy)

    def _take_over(self, run: str) -> None:
        with logs.bound(run=run, worker=self.name):
            try:
                self._coordinate(run, self.stop)
                self._later.pop(run, None)
            except LockHeld as exc:
                self._later[run] = time.monotonic() + 4 * BEAT_SECONDS
                logs.log().debug("waits", reason=str(exc))
            except VecrunError as exc:  # it is in the ledger as well, unless another goes on with it
                self._later[run] = time.monotonic() + 4 * BEAT_SECONDS
                logs.log().info("run ended here", reason=str(exc))
            except Exception:
                logs.log().exception("internal error")

    def _close_runs(self, older: float) -> None:
        with self._guard:
            busy = {claim[0] for claim, count in self._busy.items() if count}
            idle = [key for key, used in self._used.items() if used < older and key[0] not in busy]
            for key in idle:
                del self._used[key]
            closing = [self._open.pop(key) for key in idle if key in self._open]
        for run in closing:  # may wait for a request that is under way
            run.close()


def _redis(settings: Broker) -> Any:
    """dramatiq's broker on Redis. Its own ways to bring back work of dead workers take minutes: the sweepers do it."""
    try:
        from dramatiq.brokers.redis import RedisBroker
    except ImportError as exc:
        raise VecrunError("A package is missing", "redis, for a broker", "pip install 'vecrun[distributed]'") from exc
    try:
        return RedisBroker(  # type: ignore[no-untyped-call]
            url=settings.url, namespace=settings.namespace, middleware=[], heartbeat_timeout=60_000,
            maintenance_chance=20_000,
        )  # fmt: skip
    except ValueError as exc:
        raise VecrunError("The broker's URL cannot be read", "broker.url", "redis://host:6379/0") from exc


def queue_length(settings: Broker) -> Callable[[], int | None]:
    """A function that tells how many messages wait in the queue; None while Redis does not answer."""
    return _length(_redis(settings))


def _length(broker: Any) -> Callable[[], int | None]:
    def length() -> int | None:
        try:
            return int(broker.client.llen(f"{broker.namespace}:{QUEUE}"))
        except OSError:
            return None
        except Exception as exc:  # redis-py's errors have their own root
            logs.log().warning("queue does not answer", reason=str(exc))
            return None

    return length


def _declare(broker: Any, function: Callable[..., None]) -> Any:
    return dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name="work_partition")(function)


def _hand_over(actor: Any, message: Message) -> None:
    """Put a message into the queue. While Redis does not answer that is not an error: the sweepers send it again."""
    from redis.exceptions import RedisError

    try:
        actor.send(message.run, message.step, message.part, message.token)
    except (BrokerConnectionError, RedisError, OSError) as exc:  # dramatiq translates some of them only
        logs.log().warning("queue does not answer", reason=str(exc))


def _elsewhere(*message: object) -> None:
    raise AssertionError(f"a coordinator only sends, and got {message}")
