"""What is shown while a run is at work, and how Ctrl-C reaches it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from runner.errors import redact

if TYPE_CHECKING:
    from runner.ledger import Partition
    from runner.plan import Plan


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """First Ctrl-C or SIGTERM: finish the batch, checkpoint. Second: stop now."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: Any) -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()
        click.echo(
            "\nStopping after this batch; once more stops at once, and embedding requests under way are paid for "
            "again. No point is lost either way.",
            err=True,
        )

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Display:
    """Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, made: Plan, quiet: bool) -> None:
        self.plan, self.quiet, self.bar, self.task = made, quiet, None, None  # type: tuple[Plan, bool, Any, Any]
        self.step, self.began, self.first, self.shown, self.word = -1, 0.0, 0, 0.0, "points"

    def __call__(self, number: int, step: Any, parts: list[Partition]) -> None:
        if self.quiet:
            return
        from runner.report import phrases

        total, word = step.extent
        done = sum(part.done for part in parts)
        clock = time.monotonic()
        if number != self.step:
            self.stop()
            self.step, self.began, self.first, self.shown = number, clock, done, clock
            self.word = "texts" if step.type in ("copy_points", "replace_vectors") and step.transform.embed else word
            click.echo(f"{number + 1}/{len(self.plan.steps)} {step.action} {phrases.step_line(step)}", err=True)
            if parts and total and sys.stderr.isatty():
                self._start(total)
        rate = (done - self.first) / max(clock - self.began, 1e-6)
        left = phrases.duration((total - done) / rate) if rate > 0 else "…"
        if self.bar is not None:
            self.bar.update(self.task, completed=done, rate=f"{rate:,.0f} {self.word}/s", left=left)
        elif parts and clock - self.shown >= 10:
            self.shown = clock
            click.echo(f"    {done:,} of {total:,} {self.word}, {rate:,.0f} {self.word}/s, {left} left", err=True)

    def _start(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}  {task.fields[left]} left"))
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task("", total=total, rate="", left="…")
        self.bar.start()

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def say(line: str) -> None:
    click.echo(redact(line), err=True)
