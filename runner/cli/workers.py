"""Commands of a team: worker processes, and who is at work."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from runner.cli.command import cli, options, show

if TYPE_CHECKING:
    from runner.commands import Context

#: Set by the supervisor for the processes it starts.
CHILD = "VECRUN_WORKER_PROCESS"


@cli.command()
@click.option("-p", "--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
@click.option(
    "-t", "--threads", type=click.IntRange(1, 64), help="Partitions each works on at once [default: limits.workers]."
)
@click.option("--metrics", metavar="HOST:PORT", help="Serve metrics for Prometheus there.")
@options
def worker(context: Context, processes: int, threads: int | None, metrics: str | None, as_json: bool) -> None:
    """Work for the runs of this workspace, until it is stopped (SIGTERM or Ctrl-C: hands everything back first)."""
    from runner import commands, logs

    commands.require_broker(context)
    logs.configure("json" if as_json else "auto", "info")
    count = threads or context.settings.workspace.limits.workers
    stop = _stopped_by_signals()
    if os.environ.pop(CHILD, ""):
        commands.work(context, count, stop)
        return
    from runner.supervisor import supervise

    command = [sys.executable, "-m", "runner", "-w", str(context.settings.root), "worker", "-t", str(count)]
    command += ["--env", context.settings.environment] if context.settings.environment else []
    command += ["--json"] if as_json else []
    with ExitStack() as stack:
        listen = metrics or context.settings.workspace.metrics.listen
        if listen:
            from runner.metrics import serve

            server = serve(
                listen, stack.enter_context(commands.patient_ledger(context, stop)), commands.queued(context)
            )  # fmt: skip
            stack.callback(server.close)
            logs.log().info("metrics", address=server.address)
        if not supervise(command, os.environ | {CHILD: "1"}, processes, stop, logs.log().warning):
            sys.exit(1)


def _stopped_by_signals() -> threading.Event:
    stop = threading.Event()

    def on_signal(_number: int, _frame: Any) -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return stop


@cli.command()
@options
def workers(context: Context, as_json: bool) -> None:
    """Worker processes that are alive, on all hosts."""
    from runner import commands
    from runner.report import text, to_json

    found = commands.crew(context)
    columns = ["worker", "host", "pid", "threads", "running", "since"]
    click.echo(to_json("workers", found)) if as_json else show(text.table(found, columns, "No worker is alive."))
