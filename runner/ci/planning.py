"""`vecrun ci plan`: plan the jobs that a change touches, and lay the plans out as files.

One job that cannot be planned does not keep the others from it. Nothing here writes to a store, a state or the repository.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner import __version__, commands
from runner.ci import bundle as bundles
from runner.ci import changes, git, renaming
from runner.ci.bundle import Bundle, Planned
from runner.ci.document import LIMIT, document
from runner.commands.context import Context
from runner.errors import VecrunError, redact
from runner.plan import Plan
from runner.report import html, markdown, phrases
from runner.settings import FILE_NAME
from runner.state import write_atomically

#: Names of files in the folder that are of no job.
_TAKEN = (bundles.NAME.removesuffix(".json"), bundles.DOCUMENT.removesuffix(".md"))


@dataclass(frozen=True)
class Planning:
    """The plans of a change: what `ci.json` says, and the plans by job."""

    bundle: Bundle
    plans: Mapping[str, Plan] = field(default_factory=dict)

    def document(self, folder: str = "", limit: int = LIMIT) -> str:
        """The Markdown document; `folder`: where the plans are saved."""
        return document(self.bundle, self.plans, folder, limit)


def plan_change(
    context: Context, base: str, *, variables: Mapping[str, Any] | None = None, variable_files: Iterable[Path] = (),
    say: Callable[[str], None] = lambda _line: None,
) -> Planning:  # fmt: skip
    """Plan the jobs that differ between the working tree and where HEAD parted from `base`. `variables`, `variable_files`:
    those given beside vecrun.yaml. Changes nothing."""
    key = context.settings.signing_key
    repository = git.find(context.settings.root)
    head, parted = repository.commit("HEAD"), repository.merge_base(base, "HEAD")
    new = changes.present(context)
    old = changes.at_commit(context, repository, parted, variables, variable_files)
    change = changes.compare(old, new)
    planned, plans = list[Planned](), dict[str, Plan]()
    renamed, stuck = _renames(context, change, new, repository)
    known = {item.job for item in (*renamed, *stuck)}
    # a job that was never applied has no state to move: it is planned as any other
    fresh = [new.jobs[item.new] for item in change.renamed if item.new not in known]
    for entry in sorted((*change.touched, *fresh), key=lambda entry: entry.job):
        say(f"planning {entry.job}")
        item, plan = _planned(context, entry, repository)
        planned.append(item.model_copy(update={"why": change.why.get(entry.job, ("its name",))}))
        if plan is not None:
            plans[entry.job] = plan
    planned += [
        Planned(job=item.job, file=repository.prefix + item.file, kind="", error=redact(item.why))
        for item in change.broken
    ]
    jobs = tuple(
        item.model_copy(update={"parts": dict(new.jobs[item.job].parts)}) if item.job in new.jobs else item
        for item in sorted((*planned, *renamed, *stuck), key=lambda item: (item.job, item.file))
    )
    made = Bundle(
        tool_version=__version__, base=parted, head=head, workspace=repository.workspace,
        environment=context.settings.environment, inputs=new.digest(item.job for item in jobs), jobs=jobs,
        removed=change.removed,
        notes=(
            *change.notes, *_left_running(context, change.removed), *_not_committed(repository, new),
            *(line for item in renamed for line in renaming.asked(context.settings, item)),
        ),
    )  # fmt: skip
    return Planning(made.sealed(key), plans)


def write(context: Context, made: Planning, folder: Path) -> list[Path]:
    """Lay out the plans in a folder: JSON, Markdown and HTML of each, the document, ci.json. What an earlier call left there
    goes. Returns the files."""
    try:
        return _write(context, made, folder)
    except OSError as exc:
        raise VecrunError(
            "The plans cannot be written", f"{folder}: {exc.strerror or exc}", "--out names a folder that can be made"
        ) from exc


def _write(context: Context, made: Planning, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    texts = dict[Path, str]()
    for item in made.bundle.jobs:
        if not item.plan:
            continue
        plan, at = made.plans[item.job], folder / item.plan
        texts[at] = plan.dumps()
        texts[at.with_suffix(".md")] = redact(markdown.plan(plan))
        texts[at.with_suffix(".html")] = html.plan(plan, str(at))
    texts[folder / bundles.DOCUMENT] = made.document(str(folder))
    for path, text in texts.items():
        write_atomically(path, text)
    files = {path.name: bundles.content(path.read_bytes()) for path in texts}
    # last: with it the folder is whole
    bundles.write(folder, made.bundle.model_copy(update={"files": files}), context.settings.signing_key)
    return [*texts, folder / bundles.NAME]


def outputs(bundle: Bundle) -> dict[str, str]:
    """What later steps of a pipeline ask for. `cost` in USD; empty when a price is not known."""
    known = all(item.usd is not None for item in bundle.jobs)
    return {
        "has_changes": str(bundle.has_changes).lower(),
        "has_destroy": str(bundle.has_destroy).lower(),
        "cost": f"{sum(item.usd or 0 for item in bundle.jobs):.6f}".rstrip("0").rstrip(".") if known else "",
        "plan_digest": bundle.digest,
        "jobs": json.dumps([item.job for item in bundle.jobs if item.changes or item.renamed_from]),
    }


def tell_pipeline(made: Planning, folder: str = "") -> None:
    """Append the outputs to the file that GITHUB_OUTPUT names, and the document to that of GITHUB_STEP_SUMMARY."""
    if at := os.environ.get("GITHUB_OUTPUT"):
        _append(Path(at), "".join(f"{name}={value}\n" for name, value in outputs(made.bundle).items()))
    if at := os.environ.get("GITHUB_STEP_SUMMARY"):
        _append(Path(at), made.document(folder))


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as exc:
        raise VecrunError("A file of the pipeline cannot be written", f"{path}: {exc.strerror}") from exc


def file_name(job: str) -> str:
    """The plan file of a job. No job's name ends with _, so it is nobody else's."""
    return f"{job}_.json" if job.lower() in _TAKEN else f"{job}.json"


def _planned(context: Context, entry: changes.Entry, repository: git.Repository) -> tuple[Planned, Plan | None]:
    """A job with its plan, or with the reason why it has none."""
    file = repository.prefix + entry.file
    try:
        plan = commands.plan(context, context.settings.root / entry.file)
    except VecrunError as exc:
        return Planned(job=entry.job, file=file, kind=entry.kind, error=_told(exc)), None
    embedding = [step.estimate.usd for step in plan.steps if step.estimate.tokens is not None]
    seconds = [step.estimate.seconds for step in plan.steps if step.estimate.seconds is not None]
    return Planned(
        job=entry.job, file=file, kind=entry.kind, plan=file_name(entry.job), plan_digest=plan.plan_digest,
        identity=plan.identity(), summary=redact(phrases.summary(plan)), changes=bool(plan.steps),
        destroys=tuple(map(redact, phrases.destroyed(plan))), blocked=plan.blocked,
        usd=None if None in embedding else sum(value or 0 for value in embedding),
        seconds=sum(seconds) if seconds else None,
    ), plan  # fmt: skip


def _renames(
    context: Context, change: changes.Change, new: changes.Side, repository: git.Repository
) -> tuple[list[Planned], list[Planned]]:
    """(jobs whose state moves to another name, those where that cannot be)."""
    moving, stuck = list[Planned](), list[Planned]()
    if not change.renamed:
        return moving, stuck
    states = set(context.states.jobs())
    for item in change.renamed:
        entry, unfinished = new.jobs[item.new], _unfinished(context, item.old)
        if item.old not in states and unfinished is None:  # never applied, or moved by hand
            continue
        why = ""
        if item.new in states:
            why = f"{item.new} was {item.old}, and both have a state\nLook at them: vecrun state list"
        elif item.parts:
            why = (
                f"{item.new} was {item.old}, and more than its name has changed: {', '.join(item.parts)}\n"
                f"Do it in two steps: first only the name, which moves its state, then the rest. Or, if it is another job, "
                f"remove {item.old} in a change of its own"
            )
        elif unfinished is not None:
            why = f"{item.new} was {item.old}, and {unfinished}"
        planned = Planned(job=item.new, file=repository.prefix + entry.file, kind=entry.kind)
        if why:
            stuck.append(planned.model_copy(update={"error": why}))
        else:
            serial = context.states.version(item.old).serial
            moving.append(planned.model_copy(update={"renamed_from": item.old, "serial": serial, "usd": 0.0}))
    return moving, stuck


def _unfinished(context: Context, job: str) -> str | None:
    """What is said of a job whose newest run has not come to its end; None for others."""
    with context.ledger(reading=True) as ledger:
        row = ledger.unfinished(job)
    if row is None:
        return None
    way_on = f"Go on with: vecrun resume {job}\nOr undo it with: vecrun rollback {job}"
    return f"run {row['run']} of it is {row['status']}\n{way_on}"


def _left_running(context: Context, jobs: Iterable[str]) -> list[str]:
    found = [(job, _unfinished(context, job)) for job in jobs]
    return [f"{job} is removed, and {said}" for job, said in found if said is not None]


def _not_committed(repository: git.Repository, new: changes.Side) -> list[str]:
    """What the plans were made from that HEAD does not have, in a sentence."""
    files = [
        part.removeprefix("file ") for entry in new.jobs.values() for part in entry.parts if part.startswith("file ")
    ]
    found = repository.changed([FILE_NAME, changes.JOBS, *files])
    if not found:
        return []
    shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
    return [f"Planned from the working tree, which is not what the commit has: {shown}"]


def _clear(folder: Path) -> None:
    """Remove what an earlier call wrote, so that no plan of then stands beside those of now."""
    try:
        earlier = json.loads((folder / bundles.NAME).read_text(encoding="utf-8"))["jobs"]
        names = [str(item["plan"]) for item in earlier if item["plan"]]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in names:
        at = folder / Path(name).name  # whatever the file says, nothing outside of the folder
        for path in (at, at.with_suffix(".md"), at.with_suffix(".html")):
            path.unlink(missing_ok=True)
    (folder / bundles.NAME).unlink()


def _told(exc: VecrunError) -> str:
    return redact("\n".join(part for part in (str(exc), exc.hint) if part))
