"""The collection that is meant, its vector, and a name for what is saved of it."""

from __future__ import annotations

from runner.clauses.spec import saved_name
from runner.errors import NotFound, Permanent
from runner.plan import Place
from runner.points import CollectionSchema, PointBatch, VectorField
from runner.spec import suggest
from runner.store import INDEX, NORMS, Problem, Store
from runner.world import World


def resolved(connection: str, collection: str, world: World) -> Place:
    """The collection that is meant: by its name, an alias of the store, or a serving pointer."""
    store = world.store(connection)
    existing, aliases = store.collections(), store.aliases()
    if collection in existing or store.inspect(collection) is not None:
        return Place(connection=connection, collection=collection)
    name = aliases.get(collection)
    pointer = world.serving().get(collection)
    if name is None and pointer is not None and pointer.connection == connection:
        name = pointer.collection
    if name is None or store.inspect(name) is None:
        raise NotFound(
            "No such collection", f"{collection!r} in {connection}",
            suggest(collection, [*existing, *aliases]) or "there are no collections",
        )  # fmt: skip
    return Place(connection=connection, collection=name)


def vector_of(name: str | None, place: Place, schema: CollectionSchema) -> VectorField:
    """The vector that is to be made anew."""
    names = [item.name for item in schema.vectors]
    if name is not None and name not in names:
        raise NotFound("No such vector", f"{name!r} in {place}", suggest(name, names))
    if not names or (name is None and len(names) > 1):
        known = ", ".join(map(repr, names)) or "no dense vector"
        raise Permanent("Which vector is to be made anew?", f"{place} has {known}", "Say it in the job: vector: NAME")
    return schema.vector(name if name is not None else names[0])


def free_saved(store: Store, name: str, key: str) -> str:
    """A name for the saved points that no collection has: a rolled back run may have left none, an applied one has."""
    while store.inspect(saved_name(name, key)) is not None:
        key += "+"
    return saved_name(name, key)


def saving_problems(kept: CollectionSchema, store: Store, first: PointBatch | None) -> list[Problem]:
    """What of points that are saved in another store would not come back exactly; `first` are some of them."""
    found = [item for item in store.fit(kept)[1] if item.code != INDEX]
    if first is not None:
        found += store.problems(kept, first)
    scaled = [item for item in kept.vectors if item.distance in store.capabilities().normalises]
    if scaled and NORMS not in {item.code for item in found}:
        names = ", ".join(item.name or "(unnamed)" for item in scaled)
        found.append(Problem(NORMS, "the store scales vectors to length 1, so they do not come back exactly", names))
    return list({item.code + item.message: item for item in found}.values())
