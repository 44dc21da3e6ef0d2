"""What making documents anew will take: a sample of them is parsed, split and counted, and nothing is embedded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from runner.clauses.collection import vector_of
from runner.clauses.cost import COST, Cost, Work
from runner.clauses.cost import cost as cost_of
from runner.clauses.pieces import Source, pieces_of
from runner.clauses.selection import Found
from runner.errors import VecrunError
from runner.kinds.batch_operation.spec import BatchOperationSpec
from runner.plan import DocumentRows, Files, Place
from runner.points import CollectionSchema
from runner.transform import Embedding
from runner.vectors import text_key
from runner.world import World

#: Documents that are looked at.
SAMPLE = 20


@dataclass
class Renewal:
    """How documents are made anew, as far as it is planned."""

    embed: Embedding
    work: Work
    cost: Cost
    looked: int = 0  # documents of the sample
    chunks: int = 0  # that came of them
    kept: int = 0  # chunks that are there already
    failing: list[tuple[str, str]] = field(default_factory=list)
    other_vectors: list[str] = field(default_factory=list)
    dimension: int | None = None  # of the collection, where it is not the model's
    mixed: int = 0  # points of the sample whose vector another model made
    unknown: bool = False


def renewal(
    spec: BatchOperationSpec, world: World, place: Place, schema: CollectionSchema, rows: DocumentRows | None,
    due: Sequence[Found],
) -> Renewal:  # fmt: skip
    """Look at a sample of the documents."""
    wish = spec.reprocess
    assert wish is not None
    item = vector_of(wish.vector, place, schema)
    embedder = world.embedder(wish.model)
    identity = embedder.identity()
    embed = Embedding(
        model=wish.model, identity=identity, vector=item.name, field=spec.points.text_field,
        budget=spec.budget.usd if COST not in {one.code for one in spec.accept} else None,
    )  # fmt: skip
    sample = due[:: max(1, len(due) // SAMPLE)][:SAMPLE]
    files = Files(connection=spec.files.connection) if spec.files is not None else None
    source = Source(
        wish.parse, wish.split.splitter if wish.split is not None else None, spec.fields, rows, files, embedder
    )
    work, made = Work(len(due)), Renewal(embed, Work(0), Cost(0, 0.0, 0.0, "", "", ""))
    tokens = characters = 0
    store = world.store(place.connection)
    for one in sample:
        made.looked += 1
        try:
            found = pieces_of(world, source, place, one.id, one.points)
        except VecrunError as exc:
            made.failing.append((one.name or str(one.id), str(exc)))
            continue
        made.chunks += len(found.pieces)
        again = wish.split is None or wish.unchanged == "embed"
        new = found.pieces if again else [piece for piece in found.pieces if piece.held is None]
        made.kept += len(found.pieces) - len(new)
        texts = [piece.text for piece in new]
        known = world.kept.known(identity.key, [text_key(text) for text in texts])
        unknown = [text for text in texts if not known.get(text_key(text), False)]
        work.texts += len(texts)
        work.known += len(texts) - len(unknown)
        tokens += sum(embedder.count(unknown)) if unknown else 0
        characters += sum(map(len, texts))
        marks = world.kept.marks(str(place), item.name, one.points)
        made.mixed += 0 if again else sum(mark.model not in ("", identity.key) for mark in marks.values())
        made.unknown = made.unknown or (not again and len(marks) < len(one.points))
    good = max(made.looked - len(made.failing), 1)
    share = len(due) / good if made.looked > len(made.failing) else 0.0
    work.characters = round(characters / work.texts) if work.texts else 0
    work.texts, work.known, work.tokens = round(work.texts * share), round(work.known * share), round(tokens * share)
    work.exact = len(sample) == len(due) and not made.failing
    made.work, made.cost = work, cost_of(work, embedder)
    made.chunks, made.kept = round(made.chunks * share), round(made.kept * share)
    if wish.split is not None:
        made.other_vectors = [one.name for one in schema.vectors if one.name != item.name]
        made.other_vectors += [one.name for one in schema.sparse]
        if store.capabilities().missing_vectors:
            made.other_vectors = []
    made.dimension = item.dimension if item.dimension != identity.dimension else None
    return made
