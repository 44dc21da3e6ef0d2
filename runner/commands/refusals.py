"""What stands in the way of a plan: findings, policies, other runs, stores, a world that moved. Nothing is written before these are asked."""

from __future__ import annotations

from collections.abc import Sequence

from runner import planner
from runner.commands.context import Context
from runner.errors import (
    PlanRefused,
    VecrunError,
)
from runner.ledger import Ledger
from runner.plan import Plan, SetServing, SwitchAlias, acceptable
from runner.world import World


def refuse_blocked(plan: Plan) -> None:
    """VecrunError when the plan has findings that nobody accepted."""
    if plan.blocked:
        lines = [
            " ".join([item.code, *([f"{item.where}:"] if item.where else []), item.message])
            + (f" ({item.seen})" if item.seen else "")
            for item in plan.notices
            if item.blocking
        ]
        hints = sorted({item.code for item in plan.notices if item.blocking and acceptable(item.code)})
        hint = "Mend them in the spec or in the stores, and plan again"
        if any(item.code.startswith("VP") for item in plan.notices if item.blocking):
            hint += "\nFor VP: do what the policy says, or change the policies of vecrun.yaml; no job can accept it"
        if hints:
            hint += f"\nWhat is wanted can be accepted in the spec: accept: [{{code: {hints[0]}, reason: why}}]"
        since = {planner.NEW_POINTS: "points", planner.ROWS_SINCE: "rows"}
        for what in [since[item.code] for item in plan.notices if item.blocking and item.code in since]:
            hint = f"Save those {what} first, or lose them with: vecrun rollback {plan.job} --discard-new-points"
        raise VecrunError("The plan cannot be applied as it is", "\n".join(lines), hint)


def refuse_policies(context: Context, plan: Plan, approvals: Sequence[str] = ()) -> None:
    """PlanRefused when a policy, as vecrun.yaml has it now, forbids to apply the plan now. `approvals`: who approved it."""
    if found := planner.refusals(plan, context.settings, approvals):
        raise PlanRefused(
            "A policy forbids to apply this plan",
            "\n".join(found),
            "Approvals are given with --approved-by NAME, once for each; a window is waited for. Else change the job, or "
            "the policies of vecrun.yaml, and plan again",
        )


def refuse_unfinished(ledger: Ledger, plan: Plan) -> None:
    """A run that has not come to its end can be gone on with, or undone by its own rollback; nothing else."""
    unfinished = ledger.unfinished(plan.job)
    if unfinished and not (plan.purpose == "rollback" and plan.of_run in (unfinished["run"], unfinished["of_run"])):
        planner.refuse_unfinished(ledger, plan.job)


def refuse_unshared(context: Context, plan: Plan, *, detach: bool) -> None:
    """With workers, every store must be one that several processes can open."""
    if not context.settings.has_broker:
        if detach:
            raise VecrunError(
                "Nobody would go on with it",
                "vecrun.yaml has no broker, so a run works in the process that started it",
                "Leave out --detach; or set up workers: docs/howto/run-workers.md",
            )
        return
    with context.ledger() as ledger:
        if not ledger.on_server:
            raise VecrunError(
                "Workers and a SQLite ledger do not go together",
                "a SQLite file is for one host, and its locks hold for one host only",
                "state: {database: postgresql://…} in vecrun.yaml, or no broker",
            )
    with World(context.settings, "read", plan.inline) as world:
        for name in plan.connections:
            if reason := world.unshared(name):
                raise VecrunError(
                    "This store cannot be used by several workers",
                    f"connection {name}: {reason}",
                    "Use its server, or apply without a broker (an environment of vecrun.yaml can have none)",
                )


def refuse_moved_connections(context: Context, plan: Plan) -> None:
    with World(context.settings, "read", plan.inline) as world:
        if moved := planner.moved_connections(plan, world):
            raise PlanRefused("The plan is stale", "\n".join(moved), "Plan again, or put the connection back")
        for name, given in plan.inline.items():
            if given.get("type") == "key":  # a key that cannot be one is refused before there is a run
                world.cipher(name)


def refuse_stale(context: Context, ledger: Ledger, plan: Plan, run: str = "") -> None:
    """PlanRefused when the state or anything the plan touches moved since; says what."""
    if plan.environment != context.settings.environment:
        raise PlanRefused(
            "The plan was made for another environment",
            f"it is for {plan.environment or 'none'}, and {context.settings.environment or 'none'} is chosen",
            f"vecrun apply --env {plan.environment} …" if plan.environment else "Leave out --env and VECRUN_ENV",
        )
    refuse_moved_connections(context, plan)
    state = context.states.load(plan.job)
    moved = []
    if state.lineage != plan.lineage:
        moved.append("the plan was made in another workspace (lineage differs)")
    elif state.serial != plan.serial:
        moved.append(f"the job's state has serial {state.serial}, the plan was made at {plan.serial}")
    with World(context.settings, "read", plan.inline) as world:
        moved += planner.compare(plan.world, planner.observe(world, plan.world))
        moved += planner.moved_selection(plan, world) if not run else []
        serving = context.states.serving().pointers
        for step in plan.steps:
            if isinstance(step, SwitchAlias):
                now_at = world.store(step.connection).aliases().get(step.alias)
                if now_at != step.before:
                    moved.append(f"alias {step.alias} of {step.connection} points to {now_at}, not {step.before}")
            if isinstance(step, SetServing) and serving.get(step.name) != step.before:
                moved.append(f"the serving pointer {step.name} is {serving.get(step.name)}, not {step.before}")
    if not moved and plan.purpose == "rollback":
        again = planner.rollback(plan.job, context.settings, ledger, context.states, discard_new_points=True, but=run)
        if again.of_run != plan.of_run or again.steps != plan.steps:
            moved.append(f"run {plan.of_run} went on since its rollback was planned")
    if moved:
        way_on = "Plan again, and look at what changed"
        if run:  # recorded, and never begun
            way_on = f"Give it up: vecrun rollback {plan.job}. Then plan again, and look at what changed"
        raise PlanRefused("The plan is stale", "\n".join(moved), way_on)
