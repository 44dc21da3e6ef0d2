"""The model change check: the present model against the configured one, what a change would take (B4)."""

from __future__ import annotations

from typing import Any

from runner.clauses.collection import resolved, vector_of
from runner.clauses.cost import cost as cost_of
from runner.clauses.texts import Choice
from runner.kinds.reembedding import estimate
from runner.kinds.reembedding.change import Change
from runner.kinds.reembedding.spec import ReembeddingSpec
from runner.kinds.reembedding.target import change_of
from runner.state import State
from runner.world import World


def check(job: str, spec: ReembeddingSpec, world: World, state: State, *, applied: bool = False) -> dict[str, Any]:
    """current_model, configured_model, needs_reembed, dimension_changed, texts, estimated_tokens, estimated_cost (USD),
    estimated_time (seconds); None where something is not known. `applied`: exactly this spec was, so its new collection is
    looked at."""
    store, place = world.store(spec.connection), resolved(spec.connection, spec.collection, world)
    made = [item.place for item in state.world if item.role == "target"]
    if applied and made and world.store(made[0].connection).inspect(made[0].collection) is not None:
        place = made[0]
    schema = store.inspect(place.collection)
    assert schema is not None
    embedder = world.embedder(spec.model)
    identity, before = embedder.identity(), vector_of(spec.vector, place, schema)
    changed = identity.dimension != before.dimension
    lasting = spec.model_copy(update={"strategy": "create_new_collection"})
    change = change_of(job, lasting, world, state, store, place, schema, before, identity)
    current = _current(change, world)
    same = not changed and current["version"] == identity.version
    choice = Choice(world, world.kept, place, change.embed, change.rows, stale_only=True) if not changed else None
    work = estimate.sample(world, world.kept, place, change.embed, embedder, choice)
    if same and spec.documents is None and current["from"] != "vecrun":
        work.texts = work.tokens = 0  # the model is the same, and nobody recorded the texts
    cost = cost_of(work, embedder)
    return {
        "job": job, "collection": str(place), "points": work.points,
        "current_model": current,
        "configured_model": {
            "name": spec.model, "provider": identity.provider, "model": identity.model, "revision": identity.revision,
            "dimension": identity.dimension, "version": identity.version,
        },
        "needs_reembed": bool(changed or work.texts),
        "dimension_changed": changed,
        "strategy": "create_new_collection" if changed else spec.strategy,
        "texts": work.texts, "texts_kept": work.known, "texts_failing": sum(work.failing.values()), "exact": work.exact,
        "estimated_tokens": cost.tokens, "estimated_cost": None if cost.usd is None else round(cost.usd, 4),
        "estimated_time": None if cost.seconds is None else round(cost.seconds, 1),
    }  # fmt: skip


def _current(change: Change, world: World) -> dict[str, Any]:
    """What is known of the model of the present vectors, and from where."""
    spec = change.spec
    found: dict[str, Any] = {"dimension": change.before.dimension, "version": None, "from": "the collection"}
    if spec.knowledge_base is not None:
        from runner.documents import info as model_info

        base = spec.knowledge_base
        info = model_info.read(world.database(base.connection), base.row) or {}
        if (
            info
            and info.get("dimension", change.before.dimension) == change.before.dimension
            and info.get("collection", change.source.collection) == change.source.collection
        ):  # else it speaks of another collection
            return (
                found | info | {"dimension": info.get("dimension", change.before.dimension), "from": "knowledge_base"}
            )
    if change.rows is not None:
        from runner.documents import model

        counts = model.counts(world.database(change.rows.connection), change.rows)
        named = world.serving().get(spec.cutover.alias) if spec.cutover is not None else None
        if counts and named in (None, change.source):  # rows speak of the collection that serves
            version = max(counts, key=lambda name: counts[name])
            return found | {"version": version or None, "versions": counts, "from": "documents"}
    if next(world.kept.marked(str(change.source), change.before.name, change.embed.identity.key), None):
        return found | {"version": change.embed.identity.version, "from": "vecrun"}
    if change.old is not None:
        identity = change.old.identity
        return found | {
            "name": spec.from_model, "provider": identity.provider, "model": identity.model, "version": identity.version,
            "from": "from_model",
        }  # fmt: skip
    return found
