"""The policies of `vecrun.yaml` for a plan: what they say when it is made, and what stands in the way when it is applied.

A plan carries what they said (findings VP); an apply asks the policies as they are by then, so that one that became
stricter counts. No job can accept what they find.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import get_args

from runner.embedder import money
from runner.errors import Diagnostic, InvalidFile
from runner.kinds import KINDS
from runner.plan import Action, Change, CheckDocuments, CopyPoints, Notice, Plan, ReplaceVectors, Step, VerifyPoints
from runner.policies import CODE, Rule, fits
from runner.settings import Settings

APPROVALS = "VP101"
WINDOW = "VP102"
VERIFICATION = "VP103"
DENIED = "VP104"
COST = "VP105"
UNACCEPTED = "VP106"

_MODES = ("count", "sample", "full")
STEP_TYPES = tuple(sorted(model.model_fields["type"].default for model in get_args(get_args(Step)[0])))


def judged(plan: Plan, settings: Settings, accepted: Mapping[str, str] | None = None) -> Plan:
    """The plan, sealed, with what the policies say of it. `accepted`: code -> reason, as the job accepts findings: some
    that only inform have to be. InvalidFile when a policy names what there is not."""
    _refuse_unsound(settings)
    reasons, rules = accepted or {}, _for(plan, settings)
    wanted = tuple(pattern for rule in rules for pattern in rule.require.accepted)
    noted = [
        item.model_copy(update={"accepted": reasons[item.code]})
        if item.code in reasons and not item.accepted and not item.blocking and fits(item.code, wanted) else item
        for item in plan.notices
    ]  # fmt: skip
    plan = plan.model_copy(update={"notices": tuple(noted)})
    now = datetime.now(UTC)
    said = [item for rule in rules for item in [*_asked(rule, now), *_broken(rule, plan)]]
    return plan.model_copy(update={"notices": (*noted, *said)}).sealed()


def refusals(plan: Plan, settings: Settings, approvals: Sequence[str] = ()) -> list[str]:
    """What the policies, as they are now, have against applying the plan now; a sentence each, with the policy's name."""
    _refuse_unsound(settings)
    names = {name.strip().casefold() for name in approvals} - {""}
    found, now = list[str](), datetime.now(UTC)
    for rule in _for(plan, settings):
        if len(names) < rule.require.approvals:
            found.append(_line(rule, f"{_approvals(rule)}, and there {_are(len(names))}"))
        if rule.window is not None and not rule.window.open(now):
            found.append(_line(rule, f"an apply may begin {rule.window}; it is {now:%a %H:%M} UTC now"))
        found += [_line(rule, item.message) for item in _broken(rule, plan)]
    return found


def problems(settings: Settings) -> list[Diagnostic]:
    """What the policies name and there is not, with its place: a misspelt rule would forbid nothing."""
    found = []
    for number, rule in enumerate(settings.workspace.policies.rules):
        at = ("policies", "rules", number)
        given: list[tuple[str, tuple[str, ...], Iterable[str], str]] = [
            ("environments", rule.environments, settings.workspace.environments, "environment"),
            ("kinds", rule.kinds, KINDS, "kind of job"),
            ("deny", tuple(one for one in rule.deny if not CODE.fullmatch(one)), STEP_TYPES, "step, and no code,"),
        ]
        for key, patterns, known, what in given:
            found += [
                settings.document.diagnostic(
                    (*at, key), f"no {what} is called {one!r}", f"there are: {', '.join(known)}"
                )
                for one in patterns
                if one.strip("*") and not any(fits(name, (one,)) for name in known)
            ]
    return found


def _refuse_unsound(settings: Settings) -> None:
    if found := problems(settings):
        raise InvalidFile(found)


def _for(plan: Plan, settings: Settings) -> list[Rule]:
    """The rules that are for a plan; none for one that does nothing."""
    return [
        rule
        for rule in settings.workspace.policies.rules
        if plan.purpose in rule.purposes
        and fits(settings.environment, rule.environments)
        and fits(plan.job, rule.jobs)
        and fits(plan.kind, rule.kinds)
        and _happens(rule, plan)
    ]


def _happens(rule: Rule, plan: Plan) -> bool:
    match rule.when:
        case "always":
            return bool(plan.steps)
        case "changes":
            return any(step.action != Action.CHECK and not step.type.startswith("back_up") for step in plan.steps)
        case "switches":
            return any(step.action == Action.SWITCH for step in plan.steps)
        case "deletes":
            return any(step.action == Action.DELETE for step in plan.steps)
        case "destroys":
            return any(step.destroys for step in plan.steps)


def _asked(rule: Rule, now: datetime) -> Iterator[Notice]:
    """What only an apply can answer: it is told."""
    if rule.require.approvals:
        yield _notice(rule, APPROVALS, f"{_approvals(rule)} (vecrun apply --approved-by NAME)")
    if rule.window is not None:
        seen = "open when this was planned" if rule.window.open(now) else "closed when this was planned"
        yield _notice(rule, WINDOW, f"an apply may begin {rule.window}; it may end later").model_copy(
            update={"seen": seen}
        )


def _broken(rule: Rule, plan: Plan) -> list[Notice]:
    """What the plan itself has against the rule."""
    found = list[Notice]()
    if rule.require.verify is not None and (how := _too_little(plan, rule.require.verify)):
        found.append(_notice(rule, VERIFICATION, f"verification must be {rule.require.verify}, and {how}"))
    found += [
        _notice(rule, UNACCEPTED, f"the job has to accept {code} with a reason")
        for code in dict.fromkeys(item.code for item in plan.notices if not item.accepted)
        if fits(code, rule.require.accepted) and not code.startswith("VP")
    ]
    types = dict.fromkeys(step.type for step in plan.steps if fits(step.type, rule.deny))
    codes = dict.fromkeys(
        item.code for item in plan.notices if not item.code.startswith("VP") and fits(item.code, rule.deny)
    )
    found += [_notice(rule, DENIED, f"{one} is denied") for one in [*types, *codes]]
    if rule.usd is not None:
        costs = [step.estimate for step in plan.steps]
        usd = sum(item.usd or 0.0 for item in costs)
        if usd > rule.usd:
            message = f"it costs about {money(usd)} USD; at most {money(rule.usd)} is allowed"
            found.append(_notice(rule, COST, message))
        elif any(item.tokens and item.usd is None for item in costs):
            found.append(_notice(rule, COST, f"at most {money(rule.usd)} USD is allowed, and no price is known"))
    return [item.model_copy(update={"blocking": True}) for item in found]


def _too_little(plan: Plan, wanted: str) -> str:
    """How a plan falls short of a mode of verification; empty when it does not."""
    modes = [step.mode for step in plan.steps if isinstance(step, VerifyPoints)]
    if weakest := min(
        (mode for mode in modes if _MODES.index(mode) < _MODES.index(wanted)), key=_MODES.index, default=""
    ):
        return f"it is {weakest}"
    moves = any(isinstance(step, CopyPoints | ReplaceVectors) for step in plan.steps)
    changes = any(isinstance(step, Change) for step in plan.steps)
    checked = any(isinstance(step, CheckDocuments) for step in plan.steps)
    return "there is none" if (moves and not modes) or (changes and not checked) else ""


def _notice(rule: Rule, code: str, message: str) -> Notice:
    return Notice(code=code, message=message + (f": {rule.reason}" if rule.reason else ""), where=f"policy {rule.name}")


def _line(rule: Rule, text: str) -> str:
    reason = f": {rule.reason}" if rule.reason and not text.endswith(rule.reason) else ""
    return f"policy {rule.name}: {text}{reason}"


def _approvals(rule: Rule) -> str:
    count = rule.require.approvals
    return "1 approval is needed" if count == 1 else f"{count} approvals are needed"


def _are(count: int) -> str:
    return "are none" if count == 0 else "is 1" if count == 1 else f"are {count}"
