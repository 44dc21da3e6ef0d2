"""A source that is written to while it is moved: passes over all of it, until one has little to repair.

A pass reads the source and mends the target (the leg `points`); when the target holds more than was read, it reads the
target and deletes what the source no longer has (the leg `deletions`). Between two legs the step's result in the ledger
says where it stands. Verification of a live source is such a pass, too, and it proves each repair; after the cutover
others write to the target, so a pass there touches only what it knows to be older.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeGuard

from runner.documents import chunks as chunk_tables
from runner.errors import Interrupted, ItemsFailed
from runner.executor import slices, verify, versions
from runner.executor.flow import Reader, plain
from runner.executor.legs import Leg, Pairs
from runner.executor.slices import Task
from runner.ledger import Ledger, Partition
from runner.lock import Lease, now
from runner.plan import CatchUp, Hold, Place, Plan, VerifyPoints
from runner.points import KeyRange
from runner.transform import Transform

if TYPE_CHECKING:
    from runner.executor import Run

#: What a step in passes begins with. `highest` is the mark of all passes before this one, `skip` what needs no second
#: look in this one, `threshold` what was certainly looked at by the verification.
BEGINNING: dict[str, Any] = {
    "leg": "points", "legs": 0, "passes": 0, "tries": 0, "repaired": [], "pending": 0, "added": 0, "deleted": 0, "left": 0, "batches": 0,
    "retries": 0,    "highest": {}, "skip": {}, "threshold": {},
}  # fmt: skip


#: Claims kept for one leg: a partition is taken once for every slice of half a minute.
CLAIMS = 1_000_000


def in_passes(step: Any) -> TypeGuard[CatchUp | VerifyPoints]:
    """Whether a step works in passes over a live source."""
    return isinstance(step, CatchUp) or (isinstance(step, VerifyPoints) and step.live is not None)


def ranges(run: Run, number: int, step: CatchUp | VerifyPoints) -> list[KeyRange]:
    """The partition table of the leg that comes next: over the source, or over the target."""
    place = step.source if _state(run, number, step)["leg"] == "points" else step.target
    store = run.world.store(place.connection)
    points = store.count(place.collection)
    return slices.ranges(store, place, points, run.hands if points > 10_000 else 1, None)


def first_claim(run: Run, number: int, step: CatchUp | VerifyPoints) -> int:
    """Where the claims on partitions of the next leg begin: a worker of an earlier leg that wakes up has none of them."""
    return int(_state(run, number, step)["legs"]) * CLAIMS


def work(run: Run, number: int, step: CatchUp | VerifyPoints, part: int, seconds: float) -> bool:
    """One slice of one partition of a leg. True when it is done or set aside."""
    state = _state(run, number, step)

    def task_of(partition: Partition, _parts: int) -> Task:
        leg = Leg(run, step, state, dict(partition.notes or {}))
        if state["leg"] == "deletions":
            place, prepare, act = step.target, plain(Transform()), leg.delete
        else:
            place, prepare = step.source, leg.prepare
            act = leg.prove if isinstance(step, VerifyPoints) else leg.repair if step.phase == "before" else leg.merge
        reader = Reader(
            run.world.store(place.connection), place, partition, prepare, verify.READ_POINTS, lambda _batch: None
        )
        return Task(step.type, step.source.collection, reader, act)

    return slices.work(run, number, part, seconds, task_of)


def finish(run: Run, number: int, step: CatchUp | VerifyPoints, parts: list[Partition]) -> dict[str, Any]:
    """After a leg: where the step stands. `more` says that another leg follows; else it is the step's result."""
    assert step.live is not None
    state = _state(run, number, step)
    state["legs"] += 1
    read, done = sum(part.read for part in parts), sum(part.done for part in parts)
    notes = [part.notes or {} for part in parts]
    for key in ("added", "deleted"):
        state[key] += sum(item.get(key, 0) for item in notes)
    for key in ("batches", "retries"):
        state[key] += sum(getattr(part, key) for part in parts)
    store, after = run.world.store(step.target.connection), isinstance(step, CatchUp) and step.phase == "after"
    if state["leg"] == "points":
        moved = sum(item.get("moved", 0) for item in notes) if isinstance(step, VerifyPoints) else read - done
        state |= {
            "pending": moved, "compared": read, "equal": done, "left": sum(item.get("left", 0) for item in notes),
            "skip": versions.lowered(state["highest"]),
            "highest": versions.highest([state["highest"], *(item.get("highest", {}) for item in notes)]),
        }  # fmt: skip
        held = store.count(step.target.collection)
        if not after:
            _refuse_differences(run, number, step, held, read, done)
        in_place = step.source == step.target
        if not in_place and (step.live.field is not None if after else held > read):
            return state | {"leg": "deletions", "more": True}
    else:
        state["pending"] += read - done
        state["left"] += sum(item.get("left", 0) for item in notes)
    state["repaired"] = [*state["repaired"], state["pending"]]
    state |= {"leg": "points", "passes": state["passes"] + 1, "tries": state["tries"] + 1}
    run.ledger.write_log(
        run.run, "info", f"pass {state['passes']} over {step.source}: {state['pending']:,} points repaired"
    )
    state["more"] = state["pending"] > (0 if after else step.live.bound)
    if state["more"]:
        return state
    if isinstance(step, CatchUp) and step.chunks is not None:
        state["rows"] = _late_rows(run, step)
    state |= {"target": store.count(step.target.collection), "read": state["compared"], "done": state["equal"]}
    if isinstance(step, VerifyPoints):
        moved = sum(state["repaired"])
        return state | {"mode": step.mode, "source": state["compared"], "moved": moved, "differences": []}
    return state | {"source": run.world.store(step.source.connection).count(step.source.collection)}


def again(run: Run, number: int, result: dict[str, Any]) -> bool:
    """Whether another leg follows. ItemsFailed when there were as many passes as are allowed; a resume allows as many again."""
    step = run.plan.steps[number]
    if not in_passes(step) or not result["more"]:
        return False
    assert step.live is not None
    if result["leg"] == "deletions" or result["tries"] < step.live.passes:
        return True
    run.ledger.restart_step(run.lease, number, result | {"tries": 0})
    pending = f"{step.source}: the last of {result['passes']} passes had to repair {result['pending']:,} points"
    if isinstance(step, CatchUp) and step.phase == "after":
        raise ItemsFailed(
            "The source is still written to, after the switch",
            pending,
            f"Point its writers to {step.target}, then: vecrun resume {run.plan.job}",
        )
    raise ItemsFailed(
        "The source is written to faster than it is brought over",
        f"{pending}, and live.bound is {step.live.bound:,}. Nothing was switched",
        f"Slow its writers down, then: vecrun resume {run.plan.job}\n"
        f"Or plan with a higher live.bound, or with live.hold, after: vecrun rollback {run.plan.job}",
    )


def hold(run: Run, number: int, step: Hold) -> dict[str, Any]:
    """Raise Interrupted until an operator has released it; see `release`."""
    if run.dry:
        return {}
    rows = run.ledger.steps_of(run.run)
    result: dict[str, Any] = rows[number]["result"] or {"held": now()}
    if "released" in result:
        return result
    run.ledger.set_step(run.lease, number, "running", result)
    lines = []
    for source, target in step.collections:
        held = [run.world.store(place.connection).count(place.collection) for place in (source, target)]
        last = next(
            row["result"]["repaired"][-1]
            for other, row in zip(run.plan.steps, rows, strict=True)
            if isinstance(other, CatchUp) and other.source == source
        )
        lines.append(
            f"{source} holds {held[0]:,} points, {target} {held[1]:,}; the last pass had to repair {last:,} points"
        )
    raise Interrupted(
        "Paused for the operator",
        "\n".join(lines),
        f"Stop the writers of the source, then: vecrun resume {run.plan.job}\n"
        "The rest is brought over then, everything is compared, and readers are switched",
    )


def release(ledger: Ledger, lease: Lease, plan: Plan) -> None:
    """An operator resumes: a run that waits at a hold goes on behind it. Whoever takes a run over does not call this."""
    for number, row in enumerate(ledger.steps_of(lease.run)):
        if isinstance(plan.steps[number], Hold) and row["result"] and "released" not in row["result"]:
            ledger.set_step(lease, number, row["status"], row["result"] | {"released": now()})


def caught_up(run: Run, source: Place, planned: int) -> int:
    """Points a source held at the end of its last pass; those of the plan when it is not live."""
    found = planned
    for step, row in zip(run.plan.steps, run.ledger.steps_of(run.run), strict=True):
        if isinstance(step, CatchUp) and step.source == source and row["status"] == "done":
            found = row["result"]["source"]
    return found


def changed(pages: Iterator[Pairs]) -> Iterator[Pairs]:
    """Pages of an id mapping, without the ids that stay: they are recorded for live sources, to know what was there."""
    for page in pages:
        yield [(old, new) for old, new in page if old != new or type(old) is not type(new)]


def _state(run: Run, number: int, step: CatchUp | VerifyPoints) -> dict[str, Any]:
    """Where the step stands: its own result so far, or what the steps before it hand over."""
    rows = run.ledger.steps_of(run.run)
    if rows[number]["result"]:
        return dict(rows[number]["result"])
    before: dict[str, Any] = {}
    for other, row in zip(run.plan.steps[:number], rows, strict=False):
        if in_passes(other) and other.source == step.source:
            before = row["result"]
    if not before:
        return dict(BEGINNING)
    state = BEGINNING | {"highest": before["highest"]}
    if isinstance(step, VerifyPoints):
        state["threshold"] = versions.lowered(before["highest"])
    elif step.phase == "after":
        state["threshold"] = before["threshold"]
    return state


def _refuse_differences(run: Run, number: int, step: CatchUp | VerifyPoints, held: int, read: int, done: int) -> None:
    """VerificationFailed for what no pass can mend: a repair that is not equal, several points that become one."""
    found = []
    if isinstance(step, VerifyPoints) and done != read:
        found.append(f"{read - done:,} of {read:,} compared points differ, and still do when they are copied again:")
        found += [f"  {point_id!r}: {what}" for point_id, what in run.ledger.findings_of(run.run, number)[:20]]
    elif held < read and step.source != step.target:
        found.append(f"{step.target} holds {held:,} points, {read:,} were brought there from {step.source}")
    if found and isinstance(step, CatchUp):
        run.ledger.restart_step(run.lease, number)  # a resume looks at everything again
    verify.refuse_differences(run.plan.job, found)


def _late_rows(run: Run, step: CatchUp) -> int:
    assert step.chunks is not None
    pages = [(step.source.collection, changed(run.ledger.mapping(run.run, step.source.collection)))]
    database = run.world.database(step.chunks.connection)
    return chunk_tables.rewrite(database, step.chunks, step.undo_table, pages, late=True)
