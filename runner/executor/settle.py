"""Texts that could not be embedded: another try for just those, and the decision whether the run may go on without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace as replaced
from typing import TYPE_CHECKING, Any

from runner import crash
from runner.errors import ItemsFailed
from runner.executor import replace, texts, verify
from runner.executor.flow import Pace, Prepared, checker, retried
from runner.ledger import Ledger
from runner.lock import Lease
from runner.plan import CatchUp, Plan, SettleFailures
from runner.points import PointId
from runner.vectors import Failure

if TYPE_CHECKING:
    from runner.executor import Run

#: Items that are tried at once.
BATCH = 100


def settle(run: Run, number: int, step: SettleFailures) -> dict[str, Any]:
    """Try failed items again when that was asked for. ItemsFailed when more than are allowed are left."""
    if run.dry:
        return {"tried": 0, "failed": run.vectors.count_failed(run.run)}
    of_run = step.of_run or run.run
    asked = run.ledger.steps_of(run.run)[number]["result"] or {}
    tried, written = 0, asked.get("written", 0)  # of earlier tries, too
    if step.of_run is not None or asked.get("retry"):
        found = run.vectors.failed(of_run)
        assert step.transform.embed is not None
        run.vectors.forgive(step.transform.embed.identity.key, [one.text for one in found if one.text])
        for start in range(0, len(found), BATCH):
            some = found[start : start + BATCH]
            written = _try(run, number, step, of_run, some, asked | {"written": written})
            tried += len(some)
            crash.point(step.type, "tried")
    left = run.vectors.failed(of_run, limit=5)
    count = run.vectors.count_failed(of_run)
    run.ledger.set_step(run.lease, number, "running", {"failed": count, "written": written})
    if count > step.allow and step.of_run is None:
        shown = "\n".join(f"  {one.item!r}: {one.error} ({one.attempts} tries)" for one in left)
        more = f"\n  and {count - len(left):,} more: vecrun failures {run.plan.job}" if count > len(left) else ""
        where = "nothing was switched"
        if step.saved is not None:
            where = f"the other vectors of {step.target} are replaced already"
        raise ItemsFailed(
            f"{count:,} texts could not be embedded",
            f"failures.allow is {step.allow:,}; {where}:\n{shown}{more}",
            f"Mend them in the source, then: vecrun retry-failed {run.plan.job}\n"
            f"Or leave them out: raise failures.allow in the job and plan again, after: vecrun rollback {run.plan.job}",
        )
    return {"tried": tried, "written": written, "failed": count}


def _try(
    run: Run, number: int, step: SettleFailures, of_run: str, some: list[Failure], so_far: dict[str, Any]
) -> int:  # fmt: skip
    """How many hold their new vector by now; recorded with their marks, so that a rollback knows them after any crash."""
    source, ids = run.world.store(step.source.connection), [one.item for one in some]
    batch = retried(lambda: source.fetch(step.source.collection, ids), run.limits, run.stop)
    made = texts.prepare(run, step.transform)(batch, run.stop)
    done = _write(run, step, made, later=step.of_run is not None)
    written: int = so_far["written"] + len(done)
    if done and any(isinstance(one, CatchUp) for one in run.plan.steps):  # what a pass after the switch asks for
        run.ledger.remember(run.lease, step.source.collection, [(one, one) for one in done])
    crash.point(step.type, "written")
    tries = {one.item: one.attempts for one in some}
    still = [replaced(one, attempts=max(one.attempts, tries[one.item] + 1)) for one in made.failed]
    with run.ledger.guarded(run.lease) as connection:
        embed = step.transform.embed
        assert embed is not None
        marks = {one: text for one, text in texts.of_points(made).items() if one in done}
        run.vectors.mark(connection, run.run, str(step.target), embed.vector, embed.identity.key, marks)
        # deleted in the source meanwhile, or written by somebody else: it is no failure any more
        failed = {one.item for one in still}
        run.vectors.settle(connection, of_run, [one for one in ids if one not in failed])
        run.vectors.fail(connection, of_run, still)
        run.ledger.note_step(connection, run.run, number, so_far | {"written": written})
    return written


def _write(run: Run, step: SettleFailures, made: Prepared, *, later: bool) -> set[PointId]:
    """The ids that hold their new vector now. `later`: applications write to the target by now."""
    store = run.world.store(step.target.connection)
    batch, pace = made.batch, Pace(min(BATCH, store.capabilities().max_batch))
    if not len(batch):
        return set()
    checker(store, step.target_schema, step.accept)(batch)
    if step.saved is not None:
        return set(batch.ids) - replace.write(run, step.target, step.saved, step.transform, batch, pace)
    equal = set[PointId]()
    if later:
        held = retried(lambda: store.fetch(step.target.collection, batch.ids), run.limits, run.stop)
        # written before a crash, and not recorded; what differs is an application's
        equal = set(held.ids) - set(verify.differences(step.target_schema, store.capabilities(), batch, held))
        batch = batch.take([row for row, one in enumerate(batch.ids) if one not in set(held.ids)])
    if len(batch):
        if later:
            _announce(run, step, batch.ids)
        pace.write(batch, lambda part: store.upsert(step.target.collection, part), run.limits, run.stop)
    return equal | set(batch.ids)


def _announce(run: Run, step: SettleFailures, ids: Sequence[PointId]) -> None:
    """Before points are written that readers see: as of no model in the ledger and in their rows until the checkpoint."""
    embed = step.transform.embed
    assert embed is not None
    with run.ledger.guarded(run.lease) as connection:
        run.vectors.mark(connection, run.run, str(step.target), embed.vector, "", dict.fromkeys(ids, ""))
    replace.open_rows(run, step.target, ids)


def ask(ledger: Ledger, lease: Lease, plan: Plan) -> None:
    """An operator wants failed items tried again: the step that settles them does, when the run gets there."""
    for number, row in enumerate(ledger.steps_of(lease.run)):
        if isinstance(plan.steps[number], SettleFailures):
            ledger.set_step(lease, number, row["status"], (row["result"] or {}) | {"retry": True})
