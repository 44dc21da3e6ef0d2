"""What a reviewer must know of a change of the model, and what stands in its way: the findings of this kind."""

from __future__ import annotations

from runner.embedder import money
from runner.kinds.reembedding import estimate
from runner.kinds.reembedding.change import Change
from runner.kinds.reembedding.spec import ReembeddingSpec
from runner.points import Datatype, PointBatch
from runner.settings import duration_seconds
from runner.store import Problem, Store
from runner.world import World

#: Codes of this kind.
COST = "VC101"
TIME = "VC102"
NO_PRICE = "VI110"
FAILING = "VI111"
TOO_LONG = "VI112"
DIMENSION = "VI113"
MIXED = "VB104"
SWITCHES_READERS = "VB101"
OVERWRITES = "VL202"
TARGET_EXISTS = "VX206"
NO_TEXT = "VX207"
ALIAS_TAKEN = "VX204"
VERSION_COLUMN = "VX208"


def of_change(change: Change, store: Store, work: estimate.Work) -> list[Problem]:
    """What stands in the way, and what a reviewer must know."""
    spec, found = change.spec, list[Problem]()
    if not spec.in_place:
        change.schema, problems = store.fit(change.schema)
        found += problems
    else:
        if change.before.datatype is not Datatype.FLOAT32:
            found += [item for item in store.fit(change.schema)[1] if item.code == "VL102"]
        if spec.strategy == "replace":
            message = (
                "until the run is through, points of two models stand side by side, and search finds only those of the model "
                "it asks with. create_new_collection has no such time"
            )
            found.append(Problem(MIXED, message))
        if spec.live is not None:
            message = (
                "what an application does to a point in the moment in which its vector is replaced is lost (a read and a write "
                "of the whole point, some milliseconds): a change, and a deletion. create_new_collection loses nothing"
            )
            found.append(Problem(OVERWRITES, message))
    found += _payload_problems(change, store, work)
    if work.failing:
        total = sum(work.failing.values())
        if total >= work.sampled and not work.texts:
            found.append(Problem(NO_TEXT, f"no point that was looked at has a text: {'; '.join(sorted(work.failing))}"))
        else:
            seen = "; ".join(f"{why}: {count:,}" for why, count in sorted(work.failing.items()))
            which = "of the texts" if work.exact else f"of {work.sampled:,} texts that were looked at"
            found.append(
                Problem(
                    FAILING, f"{total:,} {which} cannot be embedded: {seen}. failures.allow is {spec.failures.allow:,}"
                )
            )
    if work.too_long:
        which = "texts" if work.exact else f"of {work.sampled:,} texts that were looked at"
        found.append(
            Problem(
                TOO_LONG, f"{work.too_long:,} {which} have more tokens than the model takes (too_long in vecrun.yaml)"
            )
        )
    return found


def _payload_problems(change: Change, store: Store, work: estimate.Work) -> list[Problem]:
    """What of some points the target could not hold, their new vector aside."""
    if work.first is None:
        return []
    batch, _mapped = change.transform.apply(work.first)
    name = change.before.name
    others = tuple(item for item in change.schema.vectors if item.name != name)
    vectors = {key: matrix for key, matrix in batch.vectors.items() if key != name}
    bare = PointBatch(batch.ids, vectors, batch.payloads, batch.sparse, batch.missing, batch.partitions)
    return store.problems(change.schema.model_copy(update={"vectors": others}), bare)


def of_cost(spec: ReembeddingSpec, world: World, cost: estimate.Cost) -> list[Problem]:
    policies, found = world.settings.workspace.policies, list[Problem]()
    most = min((value for value in (spec.budget.usd, policies.usd) if value is not None), default=None)
    if cost.usd is None and cost.tokens:
        found.append(Problem(NO_PRICE, f"about {cost.tokens:,} tokens; {cost.price}"))
    if most is not None and cost.usd is not None and cost.usd > most:
        found.append(Problem(COST, f"embedding costs about {money(cost.usd)} USD; at most {money(most)} is allowed"))
    times = [duration_seconds(value) for value in (spec.budget.time, policies.time) if value is not None]
    if times and cost.seconds is not None and cost.seconds > min(times):
        found.append(Problem(TIME, f"embedding takes longer than the {min(times) / 60:,.0f} minutes that are allowed"))
    return found
