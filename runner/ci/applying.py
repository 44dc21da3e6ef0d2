"""`vecrun ci apply`: exactly the plans that a pull request showed, each once, in their order.

Everything is compared before the first write: the folder with its digests, the comment, the head of the request, what the
plans were made from, policies with the approvals of the host, and the world. Then jobs are renamed and plans applied until
one fails; the comment says how far it went.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from runner import commands
from runner.ci import bundle as bundles
from runner.ci import changes, git, renaming
from runner.ci.bundle import Bundle, Planned
from runner.ci.commenting import find, place_of, post, refuse_other_head
from runner.ci.differing import between_documents, between_plans
from runner.ci.document import Marker, Result, document, with_result
from runner.ci.hosts import Comment, Host, moment, number_of
from runner.ci.planning import Planning
from runner.ci.texts import first_sentence
from runner.commands import Context, Outcome
from runner.commands.refusals import refuse_stale, refuse_unfinished
from runner.errors import Interrupted, PlanRefused, VecrunError, redact
from runner.plan import Plan

#: Characters of a comment that a host may count in its own way.
SPARE = 500
AGAIN = "Plan again with vecrun ci plan, and look at what changed"
#: What an apply of one plan is: from the plan and who approved it to how it ended.
CarryOut = Callable[[Plan, tuple[str, ...]], Outcome]


@dataclass(frozen=True)
class Review:
    """Where a change is reviewed, and what is asked of it. `host` None: nothing is compared there. `head`: the commit that
    the plans must be of; `approvals`: names beside those of the host; `since`: when it was asked for, and what was shown later
    is not meant; `signed`: plans that are not signed are refused."""

    host: Host | None = None
    pr: int | None = None
    head: str = ""
    approvals: tuple[str, ...] = ()
    since: datetime | None = None
    signed: bool = False


@dataclass
class Shown:
    """Plans that may be applied as far as the review goes. `comment` None: it was not compared. `since`: when it first showed
    what they do."""

    bundle: Bundle
    plans: Mapping[str, Plan]
    review: Review
    pr: int | None = None
    comment: Comment | None = None
    head: str = ""
    since: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def work(self) -> list[Planned]:
        """What is to be done: renames first, then the plans in their order."""
        moving = [item for item in self.bundle.jobs if item.renamed_from]
        return moving + [item for item in self.bundle.jobs if item.changes]


@dataclass(frozen=True)
class Applied:
    """How it went. `error`: what stopped it; `failed`: items that runs left out."""

    pr: int | None
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()
    failed: int = 0
    error: VecrunError | None = None


# What is to be applied ------------------------------------------------------------------------------------------------


def saved(context: Context, folder: Path, review: Review) -> Shown:
    """The plans of a folder. PlanRefused when they were altered, are of another place, or are not what the comment shows."""
    key = context.settings.signing_key
    if review.signed and not key:
        raise PlanRefused(
            "Signed plans are asked for, and there is no key", "ci.signing_key of vecrun.yaml is not set here",
            "Set it as it was set for vecrun ci plan; or leave out --require-signature",
        )  # fmt: skip
    bundle, plans = bundles.read(folder, key)
    repository = git.find(context.settings.root)
    _refuse_other_place(context, repository, bundle)
    _refuse_other_commit(review.head, bundle.head)
    _refuse_unplanned(bundle)
    shown = Shown(bundle, plans, review, head=bundle.head)
    if review.host is None or not bundle.jobs:
        return shown
    comment, said = _compare(shown, review.host, number_of(review.host, review.pr, repository.commit("HEAD")))
    if said.digest != bundle.digest:
        raise PlanRefused(
            "The comment shows other plans", _differing(comment, bundle, plans, str(folder)),
            "Show these: vecrun ci comment; or apply those that are shown",
        )  # fmt: skip
    refuse_other_head(review.host, shown.pr or 0, bundle.head)
    return shown


def planned_again(context: Context, made: Planning, review: Review) -> Shown:
    """The plans that were made just now. PlanRefused unless they do exactly what the comment shows."""
    bundle = made.bundle
    _refuse_unplanned(bundle)
    if not bundle.jobs:
        return Shown(bundle, made.plans, review)
    if review.host is None:
        raise VecrunError(
            "There is nothing to compare the plans with", "no host of a pull request is known here",
            "Apply saved plans: vecrun ci apply DIR; or name the host: --host github",
        )  # fmt: skip
    shown = Shown(bundle, made.plans, review)
    comment, said = _compare(shown, review.host, number_of(review.host, review.pr, bundle.head))
    shown.head = said.head
    _refuse_other_commit(review.head, shown.head)
    refuse_other_head(review.host, shown.pr or 0, shown.head)
    if said.plans != bundle.identity:
        if not bundle.has_changes:
            raise PlanRefused(
                "There is nothing left to apply, and the comment shows something", "\n".join(_lately(context, bundle)),
                "A plan is applied once. If it was not you: vecrun runs",
            )  # fmt: skip
        now = place_of(bundle).sources
        moved = sorted(
            name for name in now.keys() | said.sources.keys() if now.get(name) != said.sources.get(name)
        ) if said.sources else []  # fmt: skip
        named = [f"another {name} than was shown" for name in moved]
        detail = "\n".join([*named, _differing(comment, bundle, made.plans, "")])
        raise PlanRefused("What would be done now is not what the comment shows", detail, AGAIN)
    return shown


def _compare(shown: Shown, host: Host, pr: int) -> tuple[Comment, Marker]:
    """Our comment, and what it says."""
    shown.pr = pr
    found = find(host, pr, place_of(shown.bundle))
    if found is None:
        raise PlanRefused(
            "The pull request does not show these plans", f"{host.name} {pr} has no comment of vecrun for this workspace",
            "Show them: vecrun ci comment DIR",
        )  # fmt: skip
    shown.comment, shown.since = found[0], found[1].since
    asked = shown.review.since
    if asked is not None and (not shown.since or moment(shown.since) > asked):
        raise PlanRefused(
            "The plans were shown after it was asked for", f"shown {shown.since or 'nobody knows when'}, asked for {asked.isoformat()}",
            "There was a push, or another plan came out. Look at the comment, and ask again",
        )  # fmt: skip
    return found


def _lately(context: Context, bundle: Bundle) -> list[str]:
    """By which run each job came to where it is."""
    lines = []
    with context.ledger(reading=True) as ledger:
        for item in bundle.jobs:
            runs = [row for row in ledger.runs_of(item.job) if row["status"] == "completed"]
            lines.append(
                f"{item.job}: " + (f"run {runs[0]['run']}, {runs[0]['finished']}" if runs else "nothing to do")
            )
    return lines


def _differing(comment: Comment, bundle: Bundle, plans: Mapping[str, Plan], folder: str) -> str:
    return "\n".join(between_documents(comment.text, document(bundle, plans, folder))) or "they differ in their digests"


def _refuse_other_place(context: Context, repository: git.Repository, bundle: Bundle) -> None:
    if bundle.environment != context.settings.environment:
        raise PlanRefused(
            "The plans were made for another environment",
            f"they are for {bundle.environment or 'none'}, and {context.settings.environment or 'none'} is chosen",
            f"--env {bundle.environment}" if bundle.environment else "Leave out --env and VECRUN_ENV",
        )
    if bundle.workspace != repository.workspace:
        raise PlanRefused(
            "The plans were made in another workspace",
            f"in {bundle.workspace} of the repository, and this is {repository.workspace}", "",
        )  # fmt: skip


def _refuse_other_commit(wanted: str, head: str) -> None:
    if wanted and wanted != head:
        raise PlanRefused(
            "The plans were made for another commit", f"they are of {head[:12]}, and --head is {wanted[:12]}", AGAIN
        )


def _refuse_unplanned(bundle: Bundle) -> None:
    if failed := [item for item in bundle.jobs if item.error]:
        raise VecrunError(
            "Not all jobs of the change could be planned", "\n".join(f"{item.job}: {item.error}" for item in failed),
            "Mend them, and plan again with vecrun ci plan",
        )  # fmt: skip


# Applying it ----------------------------------------------------------------------------------------------------------


def apply(context: Context, shown: Shown, carry_out: CarryOut) -> Applied:
    """Carry out what was shown. PlanRefused when it was done before. Everything else that stops it is in the answer and, as
    far as there is a host, in the comment."""
    if shown.comment is None and shown.bundle.jobs:
        shown.notes.append("No host is known here, so the plans were not compared with a comment")
    work, before = shown.work, _done_before(context, shown)
    left = [place for place, item in enumerate(work) if item.job not in before]
    if work and not left:
        raise PlanRefused(
            "These plans were applied before", "\n".join(f"{job}: {what}" for job, what in before.items()),
            "Plans are applied once; plan again with vecrun ci plan",
        )  # fmt: skip
    results = [
        Result(job=item.job, status="completed", summary=f"before: {before[item.job]}")
        if item.job in before
        else Result(job=item.job, status="not begun")
        for item in work
    ]
    if not left:
        return Applied(shown.pr, (), tuple(shown.notes))
    error, approvals, failed = None, (), 0  # type: tuple[VecrunError | None, tuple[str, ...], int]
    try:
        approvals = _approvals(context, shown)
        _refuse(context, shown, [work[place] for place in left], approvals)
    except VecrunError as exc:
        error, results[left[0]] = exc, _stopped(results[left[0]], exc)
    _tell(shown, results)
    for place in left:
        if error is not None:
            break
        try:
            results[place], some = _one(context, shown, work[place], carry_out, approvals)
            failed += some
        except VecrunError as exc:
            error, results[place] = exc, _stopped(results[place], exc)
        _tell(shown, results)
    _summarize(shown, results)
    return Applied(shown.pr, tuple(results), tuple(shown.notes), failed, error)


def _one(
    context: Context, shown: Shown, item: Planned, carry_out: CarryOut, approvals: tuple[str, ...]
) -> tuple[Result, int]:
    """Do one thing: how it went, and how many items it left out."""
    if item.renamed_from:
        moved = commands.move_state(context, item.renamed_from, item.job)
        if not moved.unchanged:
            shown.notes.append(f"{item.job} plans as changed: it is not what {item.renamed_from} was applied from")
        return Result(job=item.job, status="moved", summary=f"it was {item.renamed_from}"), 0
    done = carry_out(shown.plans[item.job], approvals)
    left_out = f"{done.failed} items failed" if done.failed else ""
    summary = left_out or first_sentence(item.summary)
    return (
        Result(job=item.job, status=done.status, summary=summary, run=done.run, seconds=done.seconds),
        done.failed,
    )


def _stopped(result: Result, exc: VecrunError) -> Result:
    status = "refused" if isinstance(exc, PlanRefused) else "interrupted" if isinstance(exc, Interrupted) else "failed"
    said = "\n".join(part for part in (exc.summary, exc.detail, exc.hint) if part)
    return result.model_copy(update={"status": status, "error": redact(said)})


def _done_before(context: Context, shown: Shown) -> dict[str, str]:
    """What of the work is done already, by job: where that is seen."""
    found = dict[str, str]()
    states = set(context.states.jobs())
    with context.ledger(reading=True) as ledger:
        for item in shown.work:
            if item.renamed_from:
                if item.renamed_from not in states and item.job in states:
                    found[item.job] = f"the state of {item.renamed_from} was moved"
                continue
            for row in ledger.runs_of(item.job):
                if row["plan_digest"] == item.plan_digest and row["status"] in ("completed", "rolled_back"):
                    found[item.job] = f"run {row['run']}, {row['finished']}"
    return found


def _approvals(context: Context, shown: Shown) -> tuple[str, ...]:
    """Names of those who approved. The host is asked only where a policy wants to know."""
    names = set(shown.review.approvals)
    wanted = any(rule.require.approvals for rule in context.settings.workspace.policies.rules)
    if wanted and shown.review.host is not None and shown.pr is not None:
        names |= set(shown.review.host.approvals(shown.pr, shown.head, shown.since))
    return tuple(sorted(names))


def _refuse(context: Context, shown: Shown, left: Sequence[Planned], approvals: tuple[str, ...]) -> None:
    """What stands in the way of anything that is left to do; before any of it is begun."""
    present = changes.present(context)
    if present.digest(item.job for item in shown.bundle.jobs) != shown.bundle.inputs:
        moved = [_moved(present, item) for item in shown.bundle.jobs]
        lines = [line for line in moved if line] + between_plans(context, present, shown.bundle, shown.plans)
        raise PlanRefused("What is checked out is not what the plans were made from", "\n".join(lines), AGAIN)
    plans = [shown.plans[item.job] for item in left if item.plan]
    for item in left:
        if item.renamed_from:
            renaming.refuse(context, item, approvals)
    with context.ledger() as ledger:
        for plan in plans:
            commands.refuse_blocked(plan)
            unfinished = ledger.unfinished(plan.job)
            if unfinished and unfinished["plan_digest"] == plan.plan_digest:
                continue  # it is gone on with: it began when the policies allowed it
            commands.refuse_policies(context, plan, approvals)
            refuse_unfinished(ledger, plan)
            try:
                refuse_stale(context, ledger, plan)
            except PlanRefused as exc:
                now = between_plans(context, present, shown.bundle, {plan.job: plan})
                detail = "\n".join([*(f"{plan.job}: {line}" for line in exc.detail.splitlines()), *now])
                raise PlanRefused(exc.summary, detail, AGAIN) from exc


def _moved(present: changes.Side, item: Planned) -> str:
    """What of a job is not as it was planned from."""
    now = present.jobs[item.job].parts if item.job in present.jobs else {}
    names = sorted(name for name in now.keys() | item.parts.keys() if now.get(name) != item.parts.get(name))
    return f"{item.job}: not as it was planned: {', '.join(names)}" if now and names else ""


def _tell(shown: Shown, results: Sequence[Result]) -> None:
    """Write into the comment how far it went. What is applied stays applied when that does not work."""
    if shown.comment is None or shown.review.host is None or shown.pr is None:
        return
    try:
        post(shown.review.host, shown.pr, with_result(shown.comment.text, results, shown.review.host.limit - SPARE))
    except VecrunError as exc:
        note = f"The comment could not be updated: {exc}"
        if note not in shown.notes:
            shown.notes.append(note)


def _summarize(shown: Shown, results: Sequence[Result]) -> None:
    """The same for the summary of a step of GitHub Actions."""
    if at := os.environ.get("GITHUB_STEP_SUMMARY"):
        text = document(shown.bundle, shown.plans)
        with suppress(OSError), Path(at).open("a", encoding="utf-8") as file:
            file.write(with_result(text, results) if results else text)
