"""What stands in the way of a job that gets another name: the policies of both names, and a state that moved meanwhile.

A rename has no plan, so the rules that are for every apply, or for those that change something, are asked of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from runner.ci.bundle import Planned
from runner.commands import Context
from runner.errors import PlanRefused
from runner.policies import Rule, fits
from runner.report.phrases import counted
from runner.settings import Settings


def asked(settings: Settings, item: Planned) -> list[str]:
    """What the policies ask of whoever applies a rename, a sentence for each rule."""
    lines = []
    for rule in _rules(settings, item):
        wanted = [f"{counted(rule.require.approvals, 'approval')}"] if rule.require.approvals else []
        wanted += [f"an apply that begins {rule.window}"] if rule.window is not None else []
        lines.append(f"Policy {rule.name} asks of {item.job}, which was {item.renamed_from}: {', '.join(wanted)}")
    return lines


def refuse(context: Context, item: Planned, approvals: Sequence[str]) -> None:
    """PlanRefused when the state is another one than was shown, or a policy forbids to move it now."""
    old = item.renamed_from
    serial = context.states.version(old).serial if old in context.states.jobs() else None
    if serial != item.serial:
        raise PlanRefused(
            "The state of a renamed job moved",
            f"{item.job}, which was {old}: serial {item.serial} was shown, and it is {serial or 'gone'} now",
            "Plan again with vecrun ci plan",
        )
    names, now, found = {name.strip().casefold() for name in approvals} - {""}, datetime.now(UTC), list[str]()
    for rule in _rules(context.settings, item):
        if len(names) < (wanted := rule.require.approvals):
            found.append(f"policy {rule.name}: {counted(wanted, 'approval')} needed, and there: {len(names)}")
        if rule.window is not None and not rule.window.open(now):
            found.append(f"policy {rule.name}: an apply may begin {rule.window}; it is {now:%a %H:%M} UTC now")
    if found:
        raise PlanRefused(
            "A policy forbids to rename this job", "\n".join(f"{item.job}, which was {old}: {line}" for line in found),
            "Approvals are given in the review, or with --approved-by NAME; a window is waited for",
        )  # fmt: skip


def _rules(settings: Settings, item: Planned) -> list[Rule]:
    """The rules that are for a rename, by either name."""
    return [
        rule
        for rule in settings.workspace.policies.rules
        if (rule.require.approvals or rule.window is not None)
        and rule.when in ("always", "changes")
        and "apply" in rule.purposes
        and fits(settings.environment, rule.environments)
        and fits(item.kind, rule.kinds)
        and (fits(item.job, rule.jobs) or fits(item.renamed_from, rule.jobs))
    ]
