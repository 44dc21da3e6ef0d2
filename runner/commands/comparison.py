"""`verify` and `drift`: the world against what was promised, on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from runner import planner
from runner.actors import Embedded, Progress
from runner.commands.application import no_progress
from runner.commands.context import Context, job_of
from runner.errors import NotFound, VerificationFailed
from runner.executor import Run
from runner.ledger import Ledger
from runner.plan import SwitchAlias, VerifyPoints, loads
from runner.world import World


@dataclass(frozen=True)
class Verified:
    """Result of a verification on demand."""

    job: str
    equal: bool
    collections: tuple[dict[str, Any], ...]


def verify(
    context: Context, job: str, *, mode: str | None = None, sample: int | None = None, progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Verified:  # fmt: skip
    """Compare source and target of an applied job again. Writes nothing but a line in the run's log."""
    with context.ledger(reading=True) as ledger:
        name = job_of(context, ledger, job)
        state = context.states.load(name)
        if not state.applied:
            raise NotFound("Nothing to verify", f"job {name} has no applied run", f"vecrun status {name}")
        plan = loads(ledger.run(state.applied[-1].run)["plan"], "the applied plan")
        changes = {key: value for key, value in (("mode", mode), ("sample", sample)) if value is not None}
        steps = [step.model_copy(update=changes) for step in plan.steps if isinstance(step, VerifyPoints)]
        results: list[dict[str, Any]] = []
        with World(context.settings, "read", plan.inline) as world:
            for step in steps:
                with Ledger.temporary() as private:  # progress of this comparison: gone afterwards
                    lease = private.acquire(["verify"], "verify", 3600)
                    one = plan.model_copy(update={"steps": (step,)})
                    private.start_run(lease, one, one.dumps())
                    run = Run(
                        "verify", one, private, lease, world, context.states, context.settings.workspace.limits,
                        stop or threading.Event(),
                    )  # fmt: skip
                    try:
                        Embedded(run, progress or no_progress).execute()
                        result = private.steps_of("verify")[0]["result"]
                    except VerificationFailed as exc:
                        result = {"mode": step.mode, "differences": exc.detail.split("\n")}
                results.append({"from": str(step.source), "to": str(step.target)} | result)
        verified = Verified(name, not any(item["differences"] for item in results), tuple(results))
        text = "verified: equal" if verified.equal else "verified: source and target differ"
        ledger.write_log(state.applied[-1].run, "info" if verified.equal else "error", text, collections=results)
        return verified


def drift(context: Context, jobs: Iterable[str] = ()) -> dict[str, list[str]]:
    """What moved since each job was applied: job -> sentences."""
    found: dict[str, list[str]] = {}
    with context.ledger(reading=True) as ledger:
        names = [job_of(context, ledger, job) for job in jobs] or context.states.jobs()
        for name in names:
            state = context.states.load(name)
            if state.status != "applied":
                found[name] = []
                continue
            plan = loads(ledger.run(state.applied[-1].run)["plan"], "the applied plan")
            with World(context.settings, "read", plan.inline) as world:
                found[name] = planner.compare(state.world, planner.observe(world, state.world))
                for step in plan.steps:
                    if isinstance(step, SwitchAlias):
                        at = world.store(step.connection).aliases().get(step.alias)
                        if at != step.after:
                            found[name].append(
                                f"alias {step.alias} of {step.connection} points to {at}, not {step.after}"
                            )
            serving = context.states.serving().pointers
            for pointer, place in state.live.items():
                if serving.get(pointer) != place:
                    found[name].append(f"serving pointer {pointer} is {serving.get(pointer)}, not {place}")
    return found
