"""The records themselves: state documents, locks, and what of finished runs is kept too long."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from runner import expiry, planner
from runner.commands.context import Context
from runner.errors import NotFound, VecrunError
from runner.expiry import Garbage
from runner.lock import SLOT, Lease, collection, dead
from runner.plan import Plan
from runner.spec import Name
from runner.state import SERVING, Serving, State, Version, name_of, write_atomically
from runner.sweeper import Sweeper

# State documents ------------------------------------------------------------------------------------------------------


def state(context: Context, job: str) -> State:
    """The state document of a job. NotFound when it has none."""
    return context.states.version(job)


def states(context: Context) -> list[State]:
    """The state documents of all jobs."""
    return [context.states.load(name) for name in context.states.jobs()]


def serving(context: Context) -> Serving:
    """Which store and collection serve under which name."""
    return context.states.serving()


def state_history(context: Context, job: str) -> list[Version]:
    """The serials of a job's state that are kept, newest first; `serving` has one, too. NotFound."""
    found = context.states.history(job)
    if not found:
        raise NotFound("No state", f"job {job}", "vecrun state list")
    return found


def pull(context: Context, job: str, *, serial: int | None = None, out: Path | None = None) -> str:
    """A job's state document as it is kept, to the byte, and written to `out` if given. NotFound."""
    text = context.states.text(job, serial)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text)
    return text


@dataclass(frozen=True)
class Pushed:
    """What a push did."""

    job: str  # or serving
    where: str
    before: int | None  # serial; None: there was no document
    serial: int
    changes: tuple[str, ...]


def push(context: Context, file: Path, *, force: bool = False) -> Pushed:
    """Make a file the state document of its job, or the serving pointers. PlanRefused unless it was pulled from the
    present one; LockHeld while a run of the job is at work."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise VecrunError("The document cannot be read", f"{file}: {exc}") from exc
    new = context.states.parse(text, str(file))
    name = name_of(new)
    _check(new, file, context.states.jobs())
    lock = SERVING if isinstance(new, Serving) else f"job:{name}"
    with context.ledger() as ledger, _held(context, ledger, lock, "push") as lease:
        before = None
        with suppress(VecrunError):
            before = _present(context, new)
        written = context.states.push(new, ledger.guarded(lease), force=force)
    changes = _changes(before, written) if before is not None else ("there was none",)
    return Pushed(name, context.states.where(name), before.serial if before else None, written.serial, changes)


def _present(context: Context, new: State | Serving) -> State | Serving | None:
    if isinstance(new, State):
        return context.states.version(new.job)
    return context.states.serving() if context.states.history(SERVING) else None


def _check(new: State | Serving, file: Path, jobs: list[str]) -> None:
    """VecrunError when a document names its job wrongly, or is in the file of another job."""
    if isinstance(new, Serving):
        _check_name(file, SERVING, jobs)
        return
    try:
        TypeAdapter(Name).validate_python(new.job)
    except ValidationError as exc:
        raise VecrunError("The document names no job", f"{file}: job: {new.job!r}") from exc
    if new.job == SERVING:
        raise VecrunError("The document names no job", f"{file}: job: serving is the name of the serving pointers")
    _check_name(file, new.job, jobs)
    runs = [item.run for item in new.applied]
    if new.status == "applied" and not runs:
        raise VecrunError("The document contradicts itself", f"{file}: status applied, and no applied run")
    if strangers := sorted(new.forgotten.keys() - set(runs)):
        raise VecrunError(
            "The document contradicts itself", f"{file}: forgotten: {', '.join(strangers)} was not applied"
        )
    for item in new.applied:
        try:
            datetime.fromisoformat(item.expires), datetime.fromisoformat(item.finished)
        except ValueError as exc:
            raise VecrunError("The document holds no valid time", f"{file}: run {item.run}: {exc}") from exc


def _check_name(file: Path, name: str, jobs: list[str]) -> None:
    if file.stem != name and file.stem in [*jobs, SERVING]:
        raise VecrunError(
            "The document is of another job",
            f"{file} is named like that of {file.stem}, and its content is of {name}",
            "Rename the file if that is meant",
        )


def _changes(before: State | Serving, after: State | Serving) -> tuple[str, ...]:
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    if isinstance(before, Serving) and isinstance(after, Serving):  # a line for each name is shorter
        names = sorted(before.pointers.keys() | after.pointers.keys())
        old, new = (
            {
                name: str(item.pointers.get(name) or "") + (f", {item.models[name]}" if name in item.models else "")
                for name in names
            }
            for item in (before, after)
        )
    return tuple(
        f"{key}: {_short(old[key])} → {_short(new[key])}"
        for key in old
        if key not in ("serial", "format_version") and old[key] != new[key]
    )


def _short(value: Any) -> str:
    if isinstance(value, list) and value and "run" in value[0]:
        return ", ".join(item["run"] for item in value)
    return json.dumps(value, ensure_ascii=False) if value not in (None, "", [], {}) else "nothing"


@contextmanager
def _held(context: Context, ledger: Sweeper, name: str, verb: str) -> Iterator[Lease]:
    """The lease on a name for an operator's one write."""
    seconds = context.settings.workspace.limits.lease_seconds
    lease = ledger.acquire([name], f"state-{verb}-{uuid.uuid4().hex[:8]}", seconds)
    try:
        yield lease
    finally:
        with suppress(VecrunError):
            ledger.release(lease)


def remove_state(context: Context, job: str) -> None:
    """Forget a job's state document; its history stays. Refused while a run of the job is unfinished."""
    with context.ledger() as ledger, _held(context, ledger, f"job:{job}", "rm") as lease:
        planner.refuse_unfinished(ledger, job)
        context.states.remove(job, ledger.guarded(lease))


# Locks ----------------------------------------------------------------------------------------------------------------


def locks(context: Context) -> list[dict[str, Any]]:
    """Leases that are held. `status` and `job` are of the run that holds it; None when it is no run, but an operator's
    command. `seconds` until it expires, negative since it did."""
    with context.ledger(reading=True) as ledger:
        runs = {row["run"]: row for row in ledger.runs_of()}
        return [
            item
            | {
                "id": item["token"],
                "job": runs.get(item["run"], {}).get("job"),
                "status": runs.get(item["run"], {}).get("status"),
                "renewed": _time(item["renewed"]),
                "expires": _time(item["expires"]),
                "gone": dead(item),
            }
            for item in ledger.holders()
        ]


def lock(context: Context, name: str) -> dict[str, Any]:
    """One of `locks`. NotFound when nobody holds it."""
    for item in locks(context):
        if item["name"] == name:
            return item
    raise NotFound("No such lock", f"nobody holds {name}", "vecrun lock list")


def release_lock(context: Context, name: str, token: int) -> None:
    """An operator frees a lock, if it still is the one that was looked at."""
    with context.ledger(reading=True) as ledger:
        if not ledger.force_release(name, token):
            raise NotFound("No such lock", f"{name} with id {token} is not held", "vecrun lock list")


def holders(context: Context, plan: Plan) -> list[str]:
    """Who holds what a plan would need to be applied now, a sentence each."""
    limits = context.settings.workspace.limits
    with context.ledger(reading=True) as ledger:
        held = [item for item in ledger.holders() if not item["expired"]]
    written, read = plan.places
    alone = {f"job:{plan.job}"} | {collection(place) for place in written}
    shared = {collection(place): limits.runs_per_source for place in read} | {SLOT: limits.runs}
    found = []
    for name in sorted(alone):
        found += [_sentence(name, [item]) for item in held if item["name"] == name or _shared_by(item) == name]
    for name, places in sorted(shared.items()):
        of_name = [item for item in held if item["name"] == name or _shared_by(item) == name]
        if any(item["name"] == name for item in of_name) or len(of_name) >= places:
            found.append(_sentence(name, of_name))
    return found


def _shared_by(item: dict[str, Any]) -> str:
    return str(item["name"]).partition("#")[0]


def _sentence(name: str, items: list[dict[str, Any]]) -> str:
    who = "; ".join(f"run {item['run']} of {item['owner']} (pid {item['pid']}) since {item['since']}" for item in items)
    if name == SLOT:
        return f"all slots (limits.runs) are taken, an apply would wait: {who}"
    return f"{name} is held, an apply would be refused now: {who}"


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


# What is kept too long ------------------------------------------------------------------------------------------------


def garbage(context: Context) -> Garbage:
    """What `gc` would remove. Changes nothing."""
    with context.ledger(reading=True) as ledger:
        return expiry.find(context.settings, ledger, context.states)


def gc(context: Context, shown: Garbage, *, say: Callable[[str], None] = lambda _line: None) -> Garbage:
    """Remove what was shown, as far as nobody needs it meanwhile. Returns what was removed."""
    with context.ledger(reading=True) as ledger:
        return expiry.remove(context.settings, ledger, context.states, shown, say)
