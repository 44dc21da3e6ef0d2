"""Carries out the steps of a plan. Moving points is cut into partitions (`flow`); everything else is done at once.

Every step may be repeated after a crash: it either did its work already, or does it again harmlessly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from runner import crash
from runner.documents import chunks as chunk_tables
from runner.errors import Interrupted, Permanent
from runner.executor import backup, batch, catchup, copy, quality, relational, replace, settle, verify
from runner.executor.backup import points
from runner.executor.embedding import Services
from runner.executor.flow import Stopped, retried
from runner.items import Items
from runner.ledger import Ledger
from runner.lock import Keeper, Lease, now
from runner.plan import (
    BackUpPoints,
    CatchUp,
    CheckQuality,
    ClearCollection,
    CopyPoints,
    CreateCollection,
    DropCollection,
    FinishCollection,
    Hold,
    Place,
    Plan,
    ReplaceVectors,
    RestoreIds,
    RestoreVectors,
    RewriteIds,
    SelectDocuments,
    SetModel,
    SetServing,
    SettleFailures,
    SwitchAlias,
    VerifyPoints,
)
from runner.points import KeyRange
from runner.settings import Limits
from runner.spec import digest
from runner.state import Serving, States
from runner.store import Store
from runner.sweeper import Sweeper
from runner.vectors import Vectors
from runner.world import World

#: Seconds of work after which a partition checkpoints and puts itself back in the queue.
SLICE_SECONDS = 30.0


@dataclass
class Run:
    """Everything the steps of one run need. `stop` is set to make all workers finish their batch and return."""

    run: str
    plan: Plan
    ledger: Sweeper
    lease: Lease
    world: World
    states: States
    limits: Limits
    stop: threading.Event = field(default_factory=threading.Event)
    say: Callable[[str], None] = lambda _message: None
    sample: int | None = None  # a dry run may read only about so many points of each collection
    copied: dict[Place, int] = field(default_factory=dict)  # for a verification later: what the run it is about wrote
    failures_of: str = ""  # the run whose failed items are left out, if it is another
    keeper: Keeper | None = (
        None  # renews the lease meanwhile; None for a ledger that nobody else can open, and in a worker
    )
    worker: str = ""  # the process that works on partitions, as the ledger names it
    hands: int = 1  # partitions that can be worked on at once, by all processes together
    records: Ledger | None = None  # where vectors are kept, if that is another ledger than the run's
    spend: bool = True  # texts may be paid for

    def __post_init__(self) -> None:
        self.vectors = Vectors(self.records or self.ledger)
        # a verification on demand reads those of the run that it is about
        self.items = Items(self.records if self.records is not None and self.failures_of else self.ledger)
        self.services = Services(
            self.run, self.world, self.vectors, self.limits, spend=self.spend,
            log=self._tell,
        )  # fmt: skip

    def _tell(self, text: str) -> None:
        """What a model makes a run wait for: on the screen, and in the log."""
        self.say(text)
        self.ledger.write_log(self.run, "warning", text)

    def close(self) -> None:
        """Wait for requests that are under way, and close stores and models."""
        self.services.close()
        self.world.close()

    @property
    def dry(self) -> bool:
        """Whether writes are discarded."""
        return self.world.mode == "dry"


class NotOurs(Permanent):
    """A step found its work done by somebody else. It did nothing, so a rollback must not undo it."""


#: Steps that are worked on in partitions.
Partitioned = (
    CopyPoints | VerifyPoints | CatchUp | ReplaceVectors | RestoreVectors | BackUpPoints | batch.OverDocuments
    | relational.OverRows
)  # fmt: skip


def is_partitioned(step: Any) -> bool:
    """Whether a step is worked on in partitions."""
    return isinstance(step, Partitioned)


def cut(run: Run, number: int) -> None:
    """Store the partition table of a step, once, before its first write."""
    step = run.plan.steps[number]
    assert isinstance(step, Partitioned)
    if isinstance(step, relational.OverRows):
        _cut(run, number, relational.ranges(run, step))
        return
    source = run.world.store(step.source.connection)
    if isinstance(step, batch.OverDocuments):
        ranges = batch.ranges(run, step)
    elif isinstance(step, BackUpPoints):
        ranges = points.ranges(run, step)
    elif run.dry and not (isinstance(step, CopyPoints) or _looks_first(step)):
        ranges = []  # there is nothing to compare with
    elif catchup.in_passes(step):
        ranges = catchup.ranges(run, number, step)
    elif isinstance(step, ReplaceVectors | RestoreVectors):
        ranges = replace.ranges(run, step)
    elif isinstance(step, CopyPoints):
        ranges = copy.ranges(step, source, run.hands, run.sample)
    else:
        assert isinstance(step, VerifyPoints)
        ranges = verify.ranges(step, source, run.hands)
    claim = catchup.first_claim(run, number, step) if catchup.in_passes(step) and not run.dry else 0
    if isinstance(step, ReplaceVectors):
        claim = replace.first_claim(run, number)
    _cut(run, number, ranges, claim)


def _cut(run: Run, number: int, ranges: list[KeyRange], claim: int = 0) -> None:
    run.ledger.cut(run.lease, number, ranges, fingerprint(ranges), claim=claim)
    crash.point(run.plan.steps[number].type, "cut")


def fingerprint(ranges: list[KeyRange]) -> str:
    """Names a partition table: cursors of one are never used with another."""
    return digest([list(keys) for keys in ranges])


def work(run: Run, number: int, part: int) -> bool:
    """Work on one partition for at most SLICE_SECONDS. True when it is done or set aside, False to be called again."""
    step = run.plan.steps[number]
    assert isinstance(step, Partitioned)
    if isinstance(step, relational.OverRows):
        return relational.work(run, number, step, part, SLICE_SECONDS)
    if isinstance(step, BackUpPoints):
        return points.work(run, number, step, part, SLICE_SECONDS)
    for place in (step.source, step.target):  # before anything is claimed: a store may just be restarting
        retried(lambda name=place.connection: run.world.store(name), run.limits, run.stop)  # type: ignore[misc]
    if isinstance(step, batch.OverDocuments):
        return batch.work(run, number, step, part, SLICE_SECONDS)
    if isinstance(step, CopyPoints):
        return copy.work(run, number, step, part, SLICE_SECONDS)
    if isinstance(step, ReplaceVectors):
        return replace.work(run, number, step, part, SLICE_SECONDS)
    if isinstance(step, RestoreVectors):
        return replace.restore(run, number, step, part, SLICE_SECONDS)
    if catchup.in_passes(step):
        return catchup.work(run, number, step, part, SLICE_SECONDS)
    assert isinstance(step, VerifyPoints)
    return verify.work(run, number, step, part, SLICE_SECONDS)


def finish(run: Run, number: int) -> dict[str, Any]:
    """After all partitions of a step: totals, and whether they are right."""
    step = run.plan.steps[number]
    parts = run.ledger.partitions_of(run.run, number)
    if isinstance(step, relational.OverRows):
        return relational.finish(run, number, step, parts)
    if isinstance(step, batch.OverDocuments):
        return batch.finish(run, step, parts)
    if isinstance(step, BackUpPoints):
        return points.finish(parts)
    if catchup.in_passes(step) and not run.dry:
        return catchup.finish(run, number, step, parts)
    if isinstance(step, ReplaceVectors):
        return replace.finish(run, number, step, parts)
    result: dict[str, Any] = {
        key: sum(getattr(part, key) for part in parts) for key in ("read", "done", "batches", "retries")
    }
    if isinstance(step, VerifyPoints):
        result |= verify.conclude(run, number, step, result["read"], result["done"])
        verify.refuse_differences(run.plan.job, result["differences"])
    return result


def again(run: Run, number: int, result: dict[str, Any]) -> bool:
    """Whether a step that went through its partitions has to go through them once more, beginning with `result`."""
    step = run.plan.steps[number]
    if isinstance(step, ReplaceVectors):
        return replace.again(run, number, step, result)
    return not run.dry and catchup.again(run, number, result)


def do(run: Run, number: int) -> dict[str, Any]:
    """Carry out a step that is not partitioned."""
    try:
        return _do(run, number)
    except Stopped:
        raise Interrupted(
            "Interrupted", f"run {run.run}: what was done so far is kept", f"Go on with: vecrun resume {run.plan.job}"
        ) from None


def _do(run: Run, number: int) -> dict[str, Any]:
    step = run.plan.steps[number]
    if isinstance(step, backup.AtOnce):
        return backup.do(run, step)
    if isinstance(step, relational.AtOnce):
        return relational.do(run, number, step)
    match step:
        case CreateCollection():
            store = run.world.store(step.target.connection)
            existing = None if run.dry else store.inspect(step.target.collection)
            if existing is None:
                store.create(step.schema_)
            elif store.count(step.target.collection):
                raise NotOurs(
                    "The target was filled by somebody else",
                    f"{step.target} did not exist when the plan was made, and holds points now",
                    f"Look at it, then: vecrun rollback {run.plan.job}",
                )
            _forget(run, step.target)
            return {}
        case FinishCollection():
            run.world.store(step.target.connection).finish(step.schema_)
            return {}
        case DropCollection():
            store = run.world.store(step.target.connection)
            if not run.dry and not step.copy_of_source:
                _refuse_more_points(run, step, store)
            store.drop(step.target.collection)
            _forget(run, step.target)
            return {}
        case ClearCollection():
            deleted = copy.clear(run, step)
            _forget(run, step.target)
            return {"deleted": deleted}
        case Hold():
            return catchup.hold(run, number, step)
        case SwitchAlias():
            store = run.world.store(step.connection)
            if not run.dry:
                _refuse_moved(run, step, f"alias {step.alias} of {step.connection}", store.aliases().get(step.alias))
            store.set_alias(step.alias, step.after)
            return {}
        case SetServing():
            return _set_serving(run, step)
        case RewriteIds():
            if run.dry:
                return {"rows": 0}
            pages = [(name, catchup.changed(run.ledger.mapping(run.run, name))) for name, _ in step.collections]
            database = run.world.database(step.chunks.connection)
            return {"rows": chunk_tables.rewrite(database, step.chunks, step.undo_table, pages)}
        case RestoreIds():
            if run.dry:
                return {"rows": 0}
            done = chunk_tables.restore(run.world.database(step.chunks.connection), step.chunks, step.undo_table)
            if done.changed_since:
                run.say(f"{done.changed_since:,} rows of {step.chunks.table} were changed since and were left alone")
            return {"rows": done.rows, "changed_since": done.changed_since}
        case SelectDocuments():
            return batch.find(run, step)
        case SettleFailures():
            return settle.settle(run, number, step)
        case CheckQuality():
            return quality.check(run, step)
        case SetModel():
            return _set_model(run, step)
        case _:
            raise AssertionError(f"no handler for {step.type}")


def _forget(run: Run, place: Place) -> None:
    """Nothing is known of the points of a collection that is gone, or made anew."""
    if not run.dry:
        run.vectors.forget_place(str(place))


def _looks_first(step: Any) -> bool:
    return isinstance(step, ReplaceVectors) and step.phase == "before"


def _set_model(run: Run, step: SetModel) -> dict[str, Any]:
    if run.dry:
        return {"rows": 0}
    from runner.documents import model

    only = None
    if step.phase == "again":  # in a rollback: what the run that it undoes has embedded
        only = run.run if run.plan.purpose != "rollback" else run.plan.of_run
    pages, unsure = (
        run.vectors.marked(str(step.target), step.embed.vector, key, run=only) for key in (step.embed.identity.key, "")
    )
    rows, info = step.rows, step.info
    done = None
    if rows is not None:
        same = info is not None and info.connection == rows.connection
        one = step if same else step.model_copy(update={"info": None})
        done = model.set_model(run.world.database(rows.connection), one, pages, now(), unsure)
    told = done
    if info is not None and (rows is None or rows.connection != info.connection):
        alone = step.model_copy(update={"rows": None})
        told = model.set_model(run.world.database(info.connection), alone, (), now())
    if info is not None and step.phase == "reopen" and told is not None and not told.info:
        run.say(f"{info.table}.{info.info_column} of {info.id!r} names another model by now and was left alone")
    return {"phase": step.phase, "rows": done.rows if done is not None else 0}


def _refuse_more_points(run: Run, step: DropCollection, store: Store) -> None:
    """The source at the end of a move: points that came since nobody has copied."""
    if store.inspect(step.target.collection) is None or step.points is None:
        return
    held, expected = store.count(step.target.collection), catchup.caught_up(run, step.target, step.points)
    if held > expected:
        raise NotOurs(
            "The collection holds more points than the plan deletes",
            f"{step.target} holds {held:,} points, {expected:,} were expected",
            f"Save or remove the new ones, then: vecrun resume {run.plan.job}",
        )


def _refuse_moved(run: Run, step: SwitchAlias | SetServing, name: str, at: object) -> None:
    if at not in (step.before, step.after):
        raise NotOurs(
            "A pointer was moved by somebody else meanwhile",
            f"{name} points to {at or 'nothing'}, neither {step.before or 'nothing'} nor {step.after or 'nothing'}",
            f"Put it back to {step.before or 'nothing'}, then: vecrun resume {run.plan.job}",
        )


def _set_serving(run: Run, step: SetServing) -> dict[str, Any]:
    if run.dry:
        return {}

    def change(serving: Serving) -> Serving:
        _refuse_moved(run, step, f"serving pointer {step.name}", serving.pointers.get(step.name))
        pointers = {key: value for key, value in serving.pointers.items() if key != step.name}
        models = dict(serving.models)
        if step.after is not None:
            pointers[step.name] = step.after
        if step.model_after is not None or step.after is None:
            models.pop(step.name, None)
        if step.model_after and step.after is not None:
            models[step.name] = step.model_after
        return serving.model_copy(update={"pointers": pointers, "models": models})

    run.states.change_serving(change, run.ledger.guarded(run.lease))
    return {}
