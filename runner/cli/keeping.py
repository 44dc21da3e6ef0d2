"""Commands about the records themselves: state documents, locks, and what is kept too long."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.command import cli, options, show
from runner.errors import VecrunError

if TYPE_CHECKING:
    from runner.commands import Context
    from runner.expiry import Garbage

#: Said below lists of locks.
PLACES = (
    "A name with #1, #2, … is one of several places: slot#1 is one of limits.runs runs that may work at once, "
    "collection:C/N#1 one of limits.runs_per_source that may read collection N of connection C."
)


def _agree(question: str, auto: bool, as_json: bool, what: str) -> None:
    if auto:
        return
    if as_json or not sys.stdin.isatty():
        raise VecrunError(f"Nobody is here to agree to {what}", "", "Look at what it says, then pass --auto-approve")
    if click.prompt(f"{question} Only yes is accepted", err=True, default="no", show_default=False) != "yes":
        raise VecrunError("Nothing was removed", "the answer was not yes")


# State documents ------------------------------------------------------------------------------------------------------


@cli.group()
def state() -> None:
    """State documents: what is live, how to roll back."""


@state.command("list")
@options
def state_list(context: Context, as_json: bool) -> None:
    """Jobs with a state, and what serves under which name."""
    from runner import commands
    from runner.report import text, to_json

    found, serving = commands.states(context), commands.serving(context)
    if as_json:
        click.echo(to_json("states", {"items": found, "serving": serving}))
        return
    rows = [item.model_dump(mode="json") | {"run": item.applied[-1].run if item.applied else ""} for item in found]
    show(text.table(rows, ["job", "status", "serial", "kind", "run"], "No job was applied yet."))
    if serving.pointers:
        show("\nServing:")
        model = {name: f", queries embedded with {model}" for name, model in serving.models.items()}
        show("\n".join(f"  {name} > {place}{model.get(name, '')}" for name, place in sorted(serving.pointers.items())))


@state.command("show")
@click.argument("job", metavar="JOB|serving")
@options
def state_show(context: Context, job: str, as_json: bool) -> None:
    """A job's state as JSON; `serving` shows the serving pointers."""
    from runner import commands
    from runner.report import to_json

    found = commands.serving(context) if job == "serving" else commands.state(context, job)
    body = found.model_dump(mode="json")
    click.echo(to_json("state", body)) if as_json else show(json.dumps(body, indent=2, ensure_ascii=False))


@state.command("history")
@click.argument("job", metavar="JOB|serving")
@options
def state_history(context: Context, job: str, as_json: bool) -> None:
    """The serials of a job's state that are kept, newest first."""
    from runner import commands
    from runner.report import text, to_json

    rows = [item.model_dump(mode="json") for item in commands.state_history(context, job)]
    click.echo(to_json("history", rows)) if as_json else show(text.table(rows, ["serial", "written", "owner"], ""))


@state.command("pull")
@click.argument("job", metavar="JOB|serving")
@click.option("--serial", type=click.IntRange(0), help="An earlier one; state history lists them.")
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write it to a file.")
@options
def state_pull(context: Context, job: str, serial: int | None, out: Path | None, as_json: bool) -> None:
    """Print a job's state document as it is kept, to the byte."""
    from runner import commands
    from runner.report import to_json

    document = commands.pull(context, job, serial=serial, out=out)
    if as_json:
        click.echo(to_json("state", json.loads(document)))
    elif out is None:
        click.echo(document, nl=False)
    else:
        show(f"Wrote {out}. After a change: vecrun state push {out}")


@state.command("push")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite a document that moved since, or is damaged.")
@options
def state_push(context: Context, file: Path, force: bool, as_json: bool) -> None:
    """Make a file the state document of its job, or the serving pointers. Refused when it was not pulled from the present one."""
    from runner import commands
    from runner.report import to_json

    done = commands.push(context, file, force=force)
    if as_json:
        click.echo(to_json("pushed", done))
        return
    whose = "The serving document" if done.job == "serving" else f"Job {done.job}"
    if done.before == done.serial:
        show(f"Nothing to change: {whose[0].lower()}{whose[1:]} has this state already (serial {done.serial}).")
    else:
        before = "" if done.before is None else f" (before: {done.before})"
        show(f"{whose} has state serial {done.serial} now{before}, in {done.where}")
        for line in done.changes:
            show(f"  ~ {line}")


@state.command("mv")
@click.argument("old")
@click.argument("new")
@options
def state_mv(context: Context, old: str, new: str, as_json: bool) -> None:
    """Give a job's state and runs to a job of another name. Its collections are not touched."""
    from runner import commands
    from runner.report import to_json

    done = commands.move_state(context, old, new)
    if as_json:
        click.echo(to_json("moved", done))
        return
    show(f"Job {old} is {new} now: state serial {done.serial}, {done.runs} runs. No collection was touched.")
    if not done.unchanged:
        show(f"No file in jobs/ describes {new} as it was applied, so it plans as changed.")
    if done.kind == "VectorBackup":
        show(
            "Backups made so far count for the rules of keep, in the same folder. Without to.folder it is another one now."
        )


@state.command("rm")
@click.argument("job")
@click.option("--auto-approve", is_flag=True, help="Do not ask.")
@options
def state_rm(context: Context, job: str, auto_approve: bool, as_json: bool) -> None:
    """Forget a job's state: it cannot be rolled back and plans as new. Its collections stay."""
    from runner import commands
    from runner.report import to_json

    found = commands.state(context, job)
    if not as_json:
        show(f"Job {job}, state serial {found.serial} ({found.status}), is forgotten:")
        for item in found.applied:
            show(f"  - run {item.run} of {item.finished[:10]} can then not be rolled back")
        for name, place in sorted(found.live.items()):
            show(f"  = {name} goes on serving {place}, and no job says so any more")
        show("  = collections, aliases and the history of runs stay; the job plans as one that was never applied")
    _agree("Forget it?", auto_approve, as_json, "this")
    commands.remove_state(context, job)
    if as_json:
        click.echo(to_json("removed", {"job": job, "serial": found.serial}))
        return
    show(f"Forgotten. Until gc removes its history: vecrun state pull {job} --serial {found.serial} brings it back")


# Locks ----------------------------------------------------------------------------------------------------------------


@cli.group()
def lock() -> None:
    """Locks on jobs and collections, and slots of runs."""


@lock.command("list")
@options
def lock_list(context: Context, as_json: bool) -> None:
    """Who holds what."""
    from runner import commands
    from runner.report import text, to_json

    rows = commands.locks(context)
    if as_json:
        click.echo(to_json("locks", rows))
        return
    columns = ["name", "id", "run", "owner", "host", "pid", "since", "expired"]
    show(text.table(rows, columns, "No lock is held."))
    if any("#" in row["name"] for row in rows):
        show(f"\n{PLACES}")


@lock.command("show")
@click.argument("name")
@options
def lock_show(context: Context, name: str, as_json: bool) -> None:
    """Who holds one lock, since when and until when, and how it is released."""
    from runner import commands
    from runner.report import to_json

    found = commands.lock(context, name)
    if as_json:
        click.echo(to_json("lock", found))
        return
    lines = {
        "held by": f"run {found['run']}"
        + (f" of job {found['job']}, {found['status']}" if found["job"] else ", a command"),
        "owner": found["owner"],
        "process": f"pid {found['pid']} on {found['host']} (machine {found['machine'] or 'unknown'})",
        "since": found["since"],
        "renewed": found["renewed"] or "unknown",
        "expires": _expiry(found),
        "id": found["id"],
    }
    show(name)
    show("\n".join(f"  {key:<9}{value}" for key, value in lines.items()))
    if "#" in name:
        show(PLACES)
    show(
        f"Its holder releases it by itself. When that is gone for good: vecrun lock release '{name}' --if-id {found['id']}"
    )


def _expiry(found: dict[str, Any]) -> str:
    if found["gone"]:
        return "its process is gone: the next run takes it at once"
    seconds = round(found["seconds"])
    return (
        f"in {seconds} s, unless it is renewed" if seconds > 0 else f"expired {-seconds} s ago: the next run takes it"
    )


@lock.command("release")
@click.argument("name")
@click.option("--if-id", "token", type=int, required=True, help="The id that lock list showed.")
@options
def lock_release(context: Context, name: str, token: int, as_json: bool) -> None:
    """Free a lock whose holder is gone; a holder that still lives is fenced off."""
    from runner import commands
    from runner.report import to_json

    commands.release_lock(context, name, token)
    click.echo(to_json("lock", {"released": name})) if as_json else show(f"Released {name}.")


# What is kept too long ------------------------------------------------------------------------------------------------


@cli.command()
@click.option("--auto-approve", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@options
def gc(context: Context, auto_approve: bool, dry_run: bool, as_json: bool) -> None:
    """Remove what is kept for rollbacks whose time is over, and old history: shown first, then asked.

    Undo tables, saved points, deleted files in the trash and ledger rows of runs that expired or were rolled back, kept
    vectors older than vectors.keep, backups that the rules of their job (keep) do not keep, state history older than
    state.retention, workers that are gone. No other collection, file or pointer and no unfinished run is touched; the
    list of runs stays, with what they cost and what became of each document.
    """
    from runner import commands
    from runner.report import phrases, to_json

    found = commands.garbage(context)
    if not as_json:
        _show_garbage(found)
    if dry_run or found.empty:
        if as_json:
            click.echo(to_json("garbage", {"removed": False, "garbage": found}))
        return
    _agree("Remove this?", auto_approve, as_json, "removing this")
    removed = commands.gc(context, found)
    if as_json:
        click.echo(to_json("garbage", {"removed": True, "garbage": removed}))
        return
    for reason in removed.left[len(found.left) :]:
        show(f"  ! left: {reason}")
    tables = sum(len(item.tables) for item in removed.runs)
    rows = sum(sum(item.rows.values()) for item in removed.runs)
    serials = sum(len(old) for _name, old in removed.history)
    collections = sum(len(item.collections) for item in removed.runs)
    files = sum(trash.count for item in removed.runs for trash in item.trash.values())
    vectors = removed.vectors.count if removed.vectors is not None else 0
    show(
        f"Removed: {tables} undo tables, {collections} collections of saved points, {files:,} deleted files, "
        f"{rows + sum(removed.marks.values()):,} rows of the ledger, {vectors:,} kept vectors, {serials} old states, "
        f"{sum(len(item.backups) for item in removed.backups)} backups, "
        f"{len(removed.workers)} workers."
    )
    if removed.freed:
        show(f"The ledger's file is {phrases.size(removed.freed)} smaller.")


def _show_garbage(found: Garbage) -> None:
    from runner.report import phrases

    if lost := [f"run {item.run} of job {item.job}" for item in found.runs if item.rollback]:
        show(f"Gone for good: these can then not be rolled back any more: {', '.join(lost)}")
    for item in found.runs:
        show(f"run {item.run} of job {item.job} {item.why}")
        for name, count in item.tables.items():
            show(f"  - undo table {name}: {count:,} rows")
        for name, count in item.collections.items():
            show(f"  - collection {name}: {count:,} saved points")
        for name, trash in item.trash.items():
            show(f"  - trash {name}: {trash.count:,} deleted files, {phrases.size(trash.bytes)}")
        for name, count in item.rows.items():
            show(f"  - {name}: {count:,} rows of the ledger")
    if found.vectors is not None:
        show(
            f"kept vectors\n  - {found.vectors.count:,} from before {found.vectors.before[:10]}, "
            f"{phrases.size(found.vectors.bytes)}: these texts are paid for again when they are embedded again"
        )
    for name, count in found.marks.items():
        show(f"{name} is gone\n  - {count:,} marks of what its vectors were made from")
    for place in found.backups:
        show(f"backups of job {place.job} in {place.place}")
        for backup in place.backups:
            lacking = "" if backup.whole else ", not whole"
            show(f"  - {backup.id}: {backup.form}, {backup.rows:,} rows, {phrases.size(backup.bytes)}{lacking}")
        show(f"  - {len(place.files):,} files that no other backup needs, {phrases.size(place.bytes)}")
        for name, why in place.kept.items():
            show(f"  = {name} stays: {', '.join(why)}")
    for name, serials in found.history:
        kind = "serving pointers" if name == "serving" else f"state of job {name}"
        show(f"{kind}\n  - {len(serials)} old serials, {min(serials)} to {max(serials)}")
    if found.workers:
        show(f"workers that are gone\n  - {len(found.workers)}: {', '.join(found.workers)}")
    for reason in found.left:
        show(f"  = left: {reason}")
    if found.empty:
        show("Nothing to remove.")
