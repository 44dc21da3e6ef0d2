"""What is changed: the collection that is meant, its vector, and the collection and transform that come of it."""

from __future__ import annotations

from runner.clauses.collection import free_saved
from runner.clauses.cost import COST
from runner.embedder import ModelIdentity
from runner.errors import Permanent
from runner.kinds.reembedding.change import Change
from runner.kinds.reembedding.spec import ReembeddingSpec
from runner.plan import (
    Observed,
    Place,
    VersionRows,
)
from runner.points import CollectionSchema, Datatype, PayloadField, PayloadType, VectorField
from runner.spec import digest
from runner.state import State
from runner.store import Store
from runner.transform import Embedding, TextColumn, Transform
from runner.world import World


def _old(spec: ReembeddingSpec, world: World, before: VectorField) -> Embedding | None:
    """How queries are embedded for the present vectors. Permanent when from_model cannot have made them."""
    if spec.from_model is None:
        return None
    identity = world.embedder(spec.from_model).identity()
    if identity.dimension != before.dimension:
        raise Permanent(
            "The present vectors are of another model",
            f"from_model {spec.from_model} has {identity.dimension} dimensions, the collection {before.dimension}",
            "Name the model that made them, or leave from_model out",
        )
    return Embedding(model=spec.from_model, identity=identity, vector=before.name, field=spec.text.field)


def change_of(
    job: str, spec: ReembeddingSpec, world: World, state: State, store: Store, place: Place, schema: CollectionSchema,
    before: VectorField, identity: ModelIdentity,
) -> Change:  # fmt: skip
    """What is to be done to a collection, in the words of a plan."""
    column = None
    if spec.text.column is not None:
        assert spec.documents is not None
        documents = spec.documents
        column = TextColumn(
            connection=documents.connection, table=documents.table, vector_id_column=documents.vector_id_column,
            text_column=spec.text.column, collection_column=documents.collection_column,
            collection=documents.collection_value or place.collection,
        )  # fmt: skip
        from runner.documents import texts

        texts.check(world.database(documents.connection), column)
    embed = Embedding(
        model=spec.model, identity=identity, vector=before.name, field=spec.text.field, column=column,
        version_field=spec.version_field,
        budget=spec.budget.usd if COST not in {item.code for item in spec.accept} else None,
    )  # fmt: skip
    transform = Transform(embed=embed)
    if (field := spec.version_field) is not None:
        transform = Transform(drop=(field,), set={field: identity.version}, embed=embed)
    target, saved, wish = place, None, schema
    if spec.in_place:
        key = f"{job}:{state.lineage}:{state.serial}"
        where = spec.save_to or place.connection
        saved = Place(connection=where, collection=free_saved(world.store(where), place.collection, key))
    else:
        name = spec.to.replace("{name}", place.collection).replace("{model}", _word(spec.model))
        target = Place(connection=place.connection, collection=name)
        wish = _wish(spec, schema, before, identity, target)
    rows = None
    if spec.documents is not None and spec.documents.version_column is not None:
        documents = spec.documents
        rows = VersionRows(
            connection=documents.connection, table=documents.table, id_column=documents.id_column,
            vector_id_column=documents.vector_id_column, version_column=documents.version_column or "",
            collection_column=documents.collection_column, collection=documents.collection_value or place.collection,
        )  # fmt: skip
    switches = not spec.in_place and spec.cutover is not None
    return Change(
        spec, place, target, saved, wish, before, transform, embed, _old(spec, world, before), rows,
        store.count(place.collection), switches,
    )  # fmt: skip


def _word(name: str) -> str:
    """A model's name as every store takes it in a collection's."""
    return "".join(char if char.isascii() and char.isalnum() else "_" for char in name)


def _wish(
    spec: ReembeddingSpec, schema: CollectionSchema, before: VectorField, identity: ModelIdentity, target: Place
) -> CollectionSchema:
    """The present collection with another vector."""
    made = before.model_copy(
        update={
            "dimension": identity.dimension, "datatype": Datatype.FLOAT32,
            "distance": spec.distance or before.distance, "index": spec.index or before.index,
        }
    )  # fmt: skip
    payload = schema.payload
    if spec.version_field is not None and payload and spec.version_field not in {item.name for item in payload}:
        payload = (*payload, PayloadField(name=spec.version_field, type=PayloadType.KEYWORD))
    vectors = tuple(made if item.name == before.name else item for item in schema.vectors)
    return schema.model_copy(update={"name": target.collection, "vectors": vectors, "payload": payload})


def observed(
    place: Place, role: str, schema: CollectionSchema | None, count: int | None, spec: ReembeddingSpec
) -> Observed:
    return Observed(
        place=place, role="source" if role == "source" else "target", count=count,
        schema_digest=digest(schema.model_dump(mode="json")) if schema is not None else None,
        live=spec.live is not None and schema is not None,
    )  # fmt: skip
