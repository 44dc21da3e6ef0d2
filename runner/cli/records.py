"""Commands that look at runs, connections and schemas, and steer a run from outside."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runner.cli.command import cli, fail, options, show
from runner.errors import VecrunError

if TYPE_CHECKING:
    from runner.commands import Context


def _controls(wish: str, doc: str) -> None:
    @cli.command(wish, help=doc)
    @click.argument("job", metavar="JOB|RUN")
    @click.option("--no-wait", is_flag=True, help="Only ask; do not wait until it has stopped.")
    @options
    def command(context: Context, job: str, no_wait: bool, as_json: bool) -> None:
        from runner import commands
        from runner.report import to_json

        run = commands.control(context, job, wish)
        stopped = no_wait or commands.stopped(context, run)
        found = commands.status(context, run)
        row = found.run
        left = commands.left_behind(context, run) if wish == "cancel" else []
        if as_json:
            click.echo(to_json("control", {"run": run, "asked": wish, "status": row["status"], "left_behind": left}))
            return
        if no_wait or not stopped:
            show(
                f"Asked run {run} to {wish}; it looks between batches."
                + ("" if no_wait else " It has not stopped yet.")
            )
        else:
            show(f"Run {run} is {row['status']}.")
        if left:
            show("Left behind:")
            for line in left:
                show(f"  {line}")
        elif wish == "cancel" and all(item["status"] == "pending" for item in found.steps):
            show("Nothing was written.")
        show(f"Go on: vecrun resume {row['job']}. Undo: vecrun rollback {row['job']}")


_controls("pause", "Ask a run to stop after its batch; it can be resumed.")
_controls("cancel", "Ask a run to stop after its batch, to be rolled back.")


@cli.command()
@click.argument("job", metavar="[JOB|RUN]", required=False)
@click.option("--watch", is_flag=True, help="Show it again every second until it ends.")
@options
def status(context: Context, job: str | None, watch: bool, as_json: bool) -> None:
    """Where a job's newest run stands; without a job, all of them."""
    from runner import commands
    from runner.report import text, to_json

    if job is None:
        newest = {row["job"]: row for row in reversed(commands.runs(context))}
        rows = sorted(newest.values(), key=lambda row: str(row["job"]))
        columns = ["job", "run", "purpose", "status", "started", "finished"]
        click.echo(to_json("statuses", rows)) if as_json else show(text.table(rows, columns, "No job was applied yet."))
        return
    while True:
        found = commands.status(context, job)
        if as_json:
            steps = [{key: value for key, value in item.items() if key != "step"} for item in found.steps]
            body = {
                "run": found.run,
                "steps": steps,
                "done": found.done,
                "total": found.total,
                "percent": found.percent,
                "seconds_left": found.seconds_left,
                "queue_answers": found.queue_answers,
                "waits_for": found.waits_for,
                "used": found.used,
                "failed": found.failed,
            }
            click.echo(to_json("status", body))
        else:
            show(text.status(found))
        if not watch or found.run["status"] not in ("pending", "running"):
            return
        time.sleep(1)


@cli.command()
@click.argument("job", required=False)
@options
def runs(context: Context, job: str | None, as_json: bool) -> None:
    """History of runs, newest first."""
    from runner import commands
    from runner.report import text, to_json

    found = commands.runs(context, job)
    columns = ["run", "job", "purpose", "status", "started", "finished", "owner"]
    click.echo(to_json("runs", found)) if as_json else show(text.table(found, columns, "No runs yet."))


@cli.command()
@click.argument("run", metavar="JOB|RUN")
@click.option("-f", "--follow", is_flag=True, help="Wait for more until the run ends.")
@options
def logs(context: Context, run: str, follow: bool, as_json: bool) -> None:
    """The log of a run. With --json one document; with --follow and --json an object for each line."""
    from runner import commands
    from runner.report import to_json

    if as_json and not follow:
        click.echo(to_json("logs", commands.logs(context, run)))
        return
    last = 0
    while True:
        ended = not follow or commands.status(context, run).run["status"] not in ("pending", "running")
        for line in commands.logs(context, run, last):
            last = line["id"]
            if as_json:
                click.echo(to_json("log", line))
            else:
                details = " ".join(f"{key}={value}" for key, value in line["details"].items())
                show(f"{line['time']} {line['level']:<5} {line['message']}" + (f" ({details})" if details else ""))
        if ended:
            return
        time.sleep(0.5)


@cli.group()
def connections() -> None:
    """Connections of the workspace."""


@connections.command("test")
@click.argument("names", nargs=-1)
@options
def connections_test(context: Context, names: tuple[str, ...], as_json: bool) -> None:
    """Reachable, version, credentials, rights, latency. Without names also the ledger's database and the broker."""
    from runner import commands
    from runner.report import text, to_json

    found = commands.check_connections(context, names)
    click.echo(to_json("connections", found)) if as_json else show(text.connections(found))
    if any(item.error for item in found):
        sys.exit(1)


@cli.command()
@click.argument("kind", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def schema(kind: str | None, as_json: bool) -> None:
    """JSON Schema of a job kind or of vecrun.yaml (Workspace); without a kind, their names."""
    from runner import schemas
    from runner.report import to_json

    try:
        if as_json:
            click.echo(
                to_json("schema", {"kinds": schemas.names()} if kind is None else {"schema": schemas.schema(kind)})
            )
        else:
            click.echo("\n".join(schemas.names()) if kind is None else schemas.dumps(kind), nl=kind is None)
    except VecrunError as exc:
        fail(exc, as_json=as_json)


@cli.command()
@click.option(
    "--directory", type=click.Path(file_okay=False, path_type=Path), default=Path(".demo"), show_default=True,
    help="Where to build it; an earlier demo there is replaced.",
)  # fmt: skip
@click.option("--reembed", is_flag=True, help="Change its embedding model instead, while another process searches it.")
@click.option("--documents", is_flag=True, help="Tag, cut anew and delete some of its documents instead, and undo it.")
@click.option("--backup", is_flag=True, help="Back up LangChain's tables instead, empty them, and restore them.")
@click.option("--sql", is_flag=True, help="Turn API keys in clear into encrypted credentials instead, and undo it.")
@click.option(
    "--pull-request", is_flag=True, help="Change it in a pull request instead, with git and a host of its own."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout; what it tells goes to stderr.")
def demo(
    directory: Path, reembed: bool, documents: bool, backup: bool, sql: bool, pull_request: bool, as_json: bool
) -> None:
    """Build a small knowledge base without any network and move it: Milvus → Qdrant → pgvector, and back."""
    from runner.demo import backup as tables
    from runner.demo import credentials, migration, reembedding
    from runner.demo import documents as batch
    from runner.demo import pull_request as review
    from runner.report import to_json

    try:
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            chosen = {
                reembedding: reembed, batch: documents, tables: backup, credentials: sql, review: pull_request
            }  # fmt: skip
            next((one for one, wanted in chosen.items() if wanted), migration).run(directory)
    except VecrunError as exc:
        fail(exc, as_json=as_json)
    if as_json:
        click.echo(to_json("demo", {"directory": str(directory), "ok": True}))
