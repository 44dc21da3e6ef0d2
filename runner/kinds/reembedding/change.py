"""A change of the model as far as it is planned, and the lines a reviewer reads about it."""

from __future__ import annotations

from dataclasses import dataclass

from runner.clauses.cost import Cost, Work
from runner.embedder import ModelIdentity, money
from runner.kinds.reembedding.spec import ReembeddingSpec
from runner.plan import Fact, Place, VersionRows
from runner.points import CollectionSchema, VectorField
from runner.transform import Embedding, Transform
from runner.world import World


@dataclass
class Change:
    """A change of the model, as far as it is planned."""

    spec: ReembeddingSpec
    source: Place
    target: Place
    saved: Place | None
    schema: CollectionSchema  # of the target
    before: VectorField
    transform: Transform
    embed: Embedding
    old: Embedding | None  # of from_model
    rows: VersionRows | None
    points: int
    switches: bool


def describe(change: Change, world: World, work: Work, cost: Cost) -> list[Fact]:
    """What a reviewer reads."""
    spec, identity = change.spec, change.embed.identity
    what = {
        "create_new_collection": "a new collection; readers are switched when it is proven",
        "replace": "all vectors are replaced in the same collection; the old points are saved first",
        "incremental": "vectors of changed texts, and of other models, are replaced; the old points are saved first",
    }[spec.strategy]
    present = _present(change, world)
    facts = [
        Fact(label="model", before=present, after=_model_text(spec.model, identity)),
        Fact(label="vector", before=_vector_text(change.before), after=_vector_text(change.schema.vector(change.before.name))),
        Fact(label="cost", after=_cost_text(cost)),
        Fact(label="time", after=_time_text(cost)),
        Fact(label="points", before=f"{change.points:,}"),
        Fact(
            label="to embed",
            after=("" if work.exact else "about ") + f"{work.texts:,} texts" + (f", {work.known:,} of them kept from before" if work.known else ""),
        ),
        Fact(label="tokens", after=("" if work.exact else "about ") + f"{cost.tokens:,} ({cost.counting})"),
        Fact(label="text", after=f"payload field {spec.text.field}" if spec.text.field else _column_text(change)),
        Fact(label="strategy", after=what),
    ]  # fmt: skip
    if change.rows is not None:
        facts.append(
            Fact(label="versions", after=f"{change.rows.table}.{change.rows.version_column} = {identity.version}")
        )
    if spec.version_field is not None:
        facts.append(Fact(label="version field", after=f"{spec.version_field} = {identity.version}"))
    if change.saved is not None:
        facts.append(
            Fact(
                label="old points",
                after=f"kept in {change.saved} until {spec.retention or world.settings.state.retention} after the run",
            )
        )
    if spec.quality is not None:
        asked = [f"overlap ≥ {spec.quality.min_overlap}"] if spec.quality.min_overlap is not None else []
        asked += [f"recall ≥ {spec.quality.min_recall}"] if spec.quality.min_recall is not None else []
        facts.append(
            Fact(
                label="quality",
                after=f"{len(spec.quality.queries)} queries, first {spec.quality.k} results"
                + (f": {', '.join(asked)}" if asked else ", reported only"),
            )
        )
    how = {"full": "every point", "sample": f"{spec.verify.sample} points", "count": "counts only"}[spec.verify.mode]
    facts.append(Fact(label="verification", after=how))
    facts.append(Fact(label="written to meanwhile", after=_live_text(spec)))
    return facts


def _live_text(spec: ReembeddingSpec) -> str:
    """How what is written during the run gets its new vector."""
    if spec.live is None:
        seen = "the verification then stops the run" if spec.verify.mode == "full" else "not seen"
        return f"not expected, and {seen}; live: in the job brings it over"
    by = f"by {spec.live.field}" if spec.live.field and not spec.in_place else "by ids and content"
    text = f"brought over {by} in passes over all points, until a pass repairs at most {spec.live.bound:,}"
    if spec.live.hold:
        return f"{text}; then the run waits until its writers are stopped, and looks once more"
    return f"{text}, and once more after the switch"


def _cost_text(cost: Cost) -> str:
    if cost.usd is None:
        return f"not known: {cost.price}"
    return f"{'about ' if cost.usd else ''}{money(cost.usd)} USD ({cost.price})"


def _present(change: Change, world: World) -> str:
    """What is known of the model whose vectors stand there now."""
    if change.spec.from_model is not None:
        return _model_text(change.spec.from_model, world.embedder(change.spec.from_model).identity())
    return "not named (from_model)"


def _model_text(name: str, identity: ModelIdentity) -> str:
    weights = f", weights {identity.digest[:12]}" if identity.digest else ""
    return f"{name} ({identity.version}{weights})"


def _column_text(change: Change) -> str:
    column = change.embed.column
    assert column is not None
    return f"{column.connection}: {column.table}.{column.text_column}"


def _time_text(cost: Cost) -> str:
    if cost.seconds is None:
        return cost.speed
    if not cost.speed:
        return "none: everything is kept from before"
    text = (
        "under 1 s"
        if cost.seconds < 1
        else f"about {cost.seconds:,.0f} s"
        if cost.seconds < 90
        else f"about {cost.seconds / 60:,.0f} min"
        if cost.seconds < 5400
        else f"about {cost.seconds / 3600:,.1f} h"
    )
    return f"{text} ({cost.speed})"


def _vector_text(item: VectorField) -> str:
    index = item.index.type if item.index is not None else "no index"
    return f"{item.name or '(unnamed)'}: {item.dimension} × {item.datatype}, {item.distance}, {index}"
