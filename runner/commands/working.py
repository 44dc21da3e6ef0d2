"""`worker`: one process that works for runs of this workspace, and who else does."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from runner.actors import Worker, queue_length
from runner.commands.application import open_run, take_over
from runner.commands.context import Context
from runner.errors import VecrunError
from runner.records import LedgerGone

#: Seconds for which a worker that starts waits for a ledger that is not there yet.
START_SECONDS = 60.0


def require_broker(context: Context) -> None:
    """VecrunError when workers of this workspace could never work: no broker, no URL, no server for the ledger. A server
    that does not answer yet is not asked."""
    if not context.settings.has_broker:
        raise VecrunError(
            "No broker is set",
            f"{context.settings.document.file} has no broker, so every run works in the process that started it",
            "broker: {url: redis://…} and state: {database: postgresql://…}; see docs/howto/run-workers.md",
        )
    broker, url = context.settings.broker, context.settings.records_url
    assert broker is not None
    queue_length(broker)  # reads its URL
    if not url.startswith("postgres"):
        raise VecrunError(
            "Workers need a ledger that all of them reach",
            f"the ledger is {url.partition(':')[0]}, and that is for one host",
            "state: {database: postgresql://…} in vecrun.yaml",
        )
    try:
        sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as exc:
        raise VecrunError(
            "The ledger's URL cannot be read", "state.database", "postgresql://user@host/database"
        ) from exc


def work(context: Context, threads: int, stop: threading.Event) -> None:
    """Be one worker process until `stop`, or until the process that started this one is gone."""
    require_broker(context)
    parent = os.getppid()

    def watch() -> None:
        while not stop.wait(1.0):
            if os.getppid() != parent:
                stop.set()

    threading.Thread(target=watch, daemon=True).start()
    with patient_ledger(context, stop) as ledger:
        broker = context.broker(ledger)
        assert broker is not None
        ledger.stopping = stop
        Worker(
            ledger, broker, threads, lambda run, token: open_run(context, ledger, run, token),
            lambda run, event: take_over(context, run, event), context.settings.workspace.limits.runs, stop,
        ).work()  # fmt: skip


def crew(context: Context) -> list[dict[str, Any]]:
    """Workers that gave a sign of life lately."""
    with context.ledger(reading=True) as ledger:
        return ledger.crew()


def queued(context: Context) -> Callable[[], int | None]:
    """A function that tells how many messages wait in the queue; None when there is none or it does not answer."""
    if not context.settings.has_broker:
        return lambda: None
    with context.ledger() as ledger:
        broker = context.broker(ledger)
    return queue_length(broker) if broker is not None else lambda: None


@contextmanager
def patient_ledger(context: Context, stop: threading.Event) -> Iterator[Any]:
    """The ledger; a worker may come up before its database."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with context.ledger() as ledger:
                yield ledger
            return
        except LedgerGone:
            if time.monotonic() > deadline or stop.wait(1.0):
                raise
