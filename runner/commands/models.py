"""Models: does one have to be changed, and what does search find with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner import planner
from runner.commands.context import Context, load
from runner.errors import NotFound, Permanent, VecrunError
from runner.plan import Place
from runner.spec import suggest
from runner.state import Serving
from runner.world import World

ModelCheck = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """Results of a search: where, with which model, and the points, best first."""

    place: Place
    model: str
    hits: tuple[dict[str, Any], ...]


def model_check(context: Context, path: Path) -> ModelCheck:
    """The present model of a Reembedding job's collection against the configured one (B4). Changes nothing."""
    from runner.kinds.reembedding.check import check
    from runner.kinds.reembedding.spec import ReembeddingSpec

    job = load(context, path)
    if not isinstance(job.spec, ReembeddingSpec):
        raise Permanent(
            "The job changes no model", f"job {job.name} is a {job.kind}", "It is for jobs of kind Reembedding"
        )
    with context.ledger() as ledger, World(context.settings, "read", ledger=ledger) as world:
        state = context.states.load(job.name)
        applied = state.status == "applied" and state.spec_digest == planner.spec_digest(job, world)
        return check(job.name, job.spec, world, state, applied=applied)


def search(context: Context, name: str, text: str, *, k: int = 5, model: str = "", vector: str | None = None) -> Found:
    """Search a serving pointer, with the model it names, or CONNECTION/COLLECTION (also an alias) with `model`."""
    with World(context.settings, "read") as world:
        while True:
            serving = context.states.serving()  # pointer and model from one document: never the one without the other
            place, chosen = _meant(serving, name, model)
            found: Found | VecrunError
            try:
                found = _search(world, place, chosen, text, k, vector)
            except VecrunError as exc:
                found = exc
            # a rollback moves the pointer and then removes the collection, maybe while the query was being embedded
            if _served(context.states.serving(), name) == _served(serving, name):
                if isinstance(found, VecrunError):
                    raise found
                return found


def _served(serving: Serving, name: str) -> tuple[Place | None, str | None]:
    return serving.pointers.get(name), serving.models.get(name)


def _meant(serving: Serving, name: str, model: str) -> tuple[Place, str]:
    """The place and the model of a name."""
    place = serving.pointers.get(name)
    if place is None:
        connection, slash, collection = name.partition("/")
        if not slash:
            raise NotFound(
                "No such serving pointer", repr(name),
                suggest(name, serving.pointers) or "Name a collection: CONNECTION/COLLECTION --model MODEL",
            )  # fmt: skip
        place = Place(connection=connection, collection=collection)
    chosen = model or serving.models.get(name, "")
    if not chosen:
        raise NotFound(
            "Which model embeds the query?",
            f"nobody has recorded one for {name}",
            "Say it: --model NAME, of vecrun.yaml",
        )
    return place, chosen


def _search(world: World, place: Place, chosen: str, text: str, k: int, vector: str | None) -> Found:
    store, collection = world.store(place.connection), place.collection
    schema = store.inspect(collection)
    if schema is None:
        collection = store.aliases().get(collection, collection)
        schema = store.inspect(collection)
    if schema is None:
        raise NotFound("No such collection", str(place), suggest(place.collection, store.collections()))
    names = [item.name for item in schema.vectors]
    if vector is None and len(names) != 1:
        raise Permanent("Which vector is to be searched?", f"{place} has {', '.join(names)}", "Say it: --vector NAME")
    query = world.embedder(chosen).embed([text], "query").vectors
    found = store.search(collection, vector if vector is not None else names[0], query, k)[0]
    points = store.fetch(collection, [hit.id for hit in found])
    payloads = dict(zip(points.ids, points.payloads.dicts, strict=True))
    hits = tuple({"id": hit.id, "score": hit.score, "payload": payloads.get(hit.id, {})} for hit in found)
    return Found(Place(connection=place.connection, collection=collection), chosen, hits)
