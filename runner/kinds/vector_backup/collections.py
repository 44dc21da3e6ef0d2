"""Collections that are backed up: which, how large, and what of an earlier backup can be shared."""

from __future__ import annotations

import fnmatch

from runner.backups.manifest import Backup
from runner.clauses.spec import saved
from runner.errors import NotFound
from runner.kinds import Draft
from runner.kinds.vector_backup.spec import Collections, VectorBackupSpec
from runner.plan import (
    BackupFolder,
    BackUpPoints,
    Estimate,
    Fact,
    Notice,
    Observed,
    Overview,
    Place,
    SealBackup,
)
from runner.points import CollectionSchema, PointBatch
from runner.spec import digest, suggest
from runner.store import Store
from runner.world import World

#: No store of vectors has a snapshot that can be read through its API.
NO_SNAPSHOT = "VI133"
NOTHING = "VI136"
#: Points that are read to measure how large they are.
PROBE_POINTS = 200


def plan_collections(
    spec: VectorBackupSpec, collections: Collections, world: World, into: BackupFolder, earlier: Backup | None,
    accepted: dict[str, str], draft: Draft,
) -> None:  # fmt: skip
    """Adds steps, findings, facts and what was observed to the draft."""
    store = world.store(collections.connection)
    sources = [Place(connection=collections.connection, collection=name) for name in _matching(collections, store)]
    if not sources:
        message = "there are no collections, so there is nothing to back up"
        draft.notices.append(Notice(code=NOTHING, message=message, where=collections.connection))
        return
    previous = earlier if collections.incremental else None
    for place in sources:
        schema = store.inspect(place.collection)
        assert schema is not None
        points = store.count(place.collection)
        first = next(iter(_some(store, place)), None)
        size = int(points * _bytes(first)) if first is not None and len(first) else 0
        known = (
            next((item for item in previous.collections if _same(item.connection, item.name, place)), None)
            if previous
            else None
        )
        draft.world.append(
            Observed(
                place=place,
                role="source",
                count=points,
                schema_digest=digest(schema.model_dump(mode="json")),
                live=True,
            )
        )
        aliases = sorted(alias for alias, held_by in store.aliases().items() if held_by == place.collection)
        facts = [*_facts(schema, points, size, aliases)]
        if known is not None and previous is not None:
            facts.append(
                Fact(label="shares with", before=f"backup {previous.id}: files whose points have not changed since")
            )
        draft.overview.append(Overview(source=place, target=into.place, facts=tuple(facts)))
        draft.steps.append(
            BackUpPoints(
                source=place, into=into, points=points, batch_size=collections.batch_size,
                file_bytes=collections.file_size_mb * 2**20, compression=collections.compression,
                previous=previous.id if known is not None and previous is not None else "", estimate=Estimate(bytes=size),
            )
        )  # fmt: skip
    draft.steps.append(
        SealBackup(into=into, sources=tuple(sources), previous=previous.id if previous else "", keep=spec.rules)
    )
    message = (
        "each point is read once, and not all at one moment: what is written meanwhile may be in it or not. Stop the "
        "writers where that matters"
    )
    where = ", ".join(map(str, sources))
    draft.notices.append(Notice(code=NO_SNAPSHOT, message=message, where=where, accepted=accepted.get(NO_SNAPSHOT, "")))


def _matching(collections: Collections, store: Store) -> list[str]:
    existing = store.collections()
    if collections.names == "all":
        return [name for name in existing if not saved(name)]
    found = dict[str, None]()
    for pattern in collections.names:
        names = [name for name in existing if fnmatch.fnmatchcase(name, pattern) and not saved(name)]
        # * always means all, also where a collection is called so
        names = [pattern] if pattern in existing and pattern != "*" else names
        if not names:
            at = f"{pattern!r} in {collections.connection}"
            if pattern in (aliases := store.aliases()):
                raise NotFound(
                    "No such collection", at, f"{pattern} is an alias there; name the collection: {aliases[pattern]}"
                )
            raise NotFound("No such collection", at, suggest(pattern, existing) or "there are no collections")
        found |= dict.fromkeys(names)
    return list(found)


def _same(connection: str, name: str, place: Place) -> bool:
    return (connection, name) == (place.connection, place.collection)


def _some(store: Store, place: Place) -> list[PointBatch]:
    """Some points, to see how large they are."""
    for keys in store.cut(place.collection, 1):
        for batch in store.scan(place.collection, keys, None, PROBE_POINTS):
            return [batch]
    return []


def _bytes(batch: PointBatch) -> float:
    vectors = sum(matrix.nbytes for matrix in batch.vectors.values())
    sparse = sum(8 * len(item.indices) for column in batch.sparse.values() for item in column if item is not None)
    return (vectors + sparse + sum(map(len, batch.payloads.json)) + 16 * len(batch)) / len(batch)


def _facts(schema: CollectionSchema, points: int, size: int, aliases: list[str]) -> list[Fact]:
    """What a reviewer reads about a collection."""
    facts = [Fact(label="points", before=f"{points:,}")]
    facts += [
        Fact(label="vector", before=f"{item.name or '(unnamed)'}: {item.dimension} × {item.datatype}, {item.distance}")
        for item in schema.vectors
    ]
    facts += [Fact(label="sparse vector", before=item.name) for item in schema.sparse]
    if aliases:
        facts.append(Fact(label="aliases", before=", ".join(aliases)))
    facts.append(Fact(label="before compression", after=f"about {size:,} bytes"))
    return facts
