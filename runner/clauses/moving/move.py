"""One collection on its way: the probe that reads a sample of it, and the lines a reviewer reads about it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from runner.clauses.moving.rules import CollectionRule
from runner.clauses.spec import LiveSource, Verify
from runner.errors import VecrunError
from runner.plan import Fact, Notice, Observed, Place
from runner.points import CollectionSchema, IdKind, KeyRange, PointBatch, VectorField
from runner.store import Problem, Store
from runner.transform import IdMode, Transform

#: The probe of a plan: points read from each of so many places of the key order.
PROBE_PLACES, PROBE_POINTS = 8, 250
#: A filter that takes nothing: readers would be switched to an empty collection.
NO_MATCH = "VL104"


@dataclass
class Move:
    """One collection on its way, as far as it is planned."""

    rule: CollectionRule
    source: Place
    target: Place
    source_schema: CollectionSchema
    schema: CollectionSchema
    transform: Transform
    points: int
    creates: bool
    switches: bool = False  # readers are switched to the target
    held: int = 0  # points that the target has already
    facts: list[Fact] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    world: list[Observed] = field(default_factory=list)
    fields: tuple[set[str], set[str]] = field(
        default_factory=lambda: (set(), set())
    )  # seen before and after, in the probe
    read_rate: float | None = None
    point_bytes: float | None = None


def probe(move: Move, source: Store, target: Store) -> list[Problem]:
    """Read a sample, run the transform and the target's checks on it; measures rate and size on the way."""
    found: dict[tuple[str, str, str], Problem] = {}
    small = move.points <= PROBE_PLACES * PROBE_POINTS
    ranges = (
        [KeyRange()]
        if small and move.source_schema.partitions is None
        else source.cut(move.source.collection, PROBE_PLACES)
    )
    points = matched = size = 0
    began = time.monotonic()
    for keys in ranges:
        limit = PROBE_PLACES * PROBE_POINTS if small else PROBE_POINTS
        for batch in source.scan(move.source.collection, keys, None, min(limit, PROBE_POINTS)):
            try:
                move.fields[0].update(*batch.payloads.dicts)
                changed, pairs = move.transform.apply(batch)
                matched += len(changed)
                move.fields[1].update(*changed.payloads.dicts)
                old_ids = {new: old for old, new in pairs}  # a reviewer knows the source's
                problems = [
                    replace(item, ids=tuple(old_ids.get(one, one) for one in item.ids))
                    for item in target.problems(move.schema, changed)
                ]
            except VecrunError as exc:
                seen_before = any(item.message.startswith(exc.summary) for item in found.values())
                problems = [] if seen_before else [Problem("VX104", f"{exc.summary}: {exc.detail}")]
            for item in problems:
                key = (item.code, item.field, item.message)
                before = found.get(key, Problem(item.code, item.message, item.field))
                found[key] = Problem(
                    item.code, item.message, item.field, (before.ids + item.ids)[:5], before.count + item.count
                )
            points += len(batch)
            size += _batch_bytes(batch)
            limit -= len(batch)
            if limit <= 0:
                break
    if points and not matched and not found:
        message = "the conditions hold for none of the points that were looked at; the target may stay empty"
        found["", "", ""] = Problem(NO_MATCH, message, "where")
    if points:
        move.read_rate = points / max(time.monotonic() - began, 1e-6)
        move.point_bytes = size / points
    return list(found.values())


def _batch_bytes(batch: PointBatch) -> int:
    vectors = sum(matrix.nbytes for matrix in batch.vectors.values())
    return vectors + sum(len(text) for text in batch.payloads.json) + 16 * len(batch)


def describe(move: Move, verify: Verify, live: LiveSource | None) -> list[Fact]:
    """What a reviewer reads about one collection."""
    old, new, transform = move.source_schema, move.schema, move.transform
    back = {target: source for source, target in transform.vectors.items()} or {
        item.name: item.name for item in old.vectors
    }
    facts = [
        Fact(
            label="points",
            before=f"{move.points:,}",
            after=f"{move.points:,}" if not transform.where else "those that match where",
        )
    ]
    originals = {item.name: item for item in old.vectors}
    for item in new.vectors:
        before = originals.get(back.get(item.name, item.name))
        facts.append(Fact(label="vector", before=_vector_text(before) if before else "", after=_vector_text(item)))
    facts += [
        Fact(label="sparse vector", before=back.get(item.name, item.name), after=item.name) for item in new.sparse
    ]
    names = [*(item.name for item in old.vectors), *(item.name for item in old.sparse)]
    left = [name or "(unnamed)" for name in names if name not in transform.vectors]
    if transform.vectors and left:
        facts.append(Fact(label="vectors left behind", before=", ".join(left)))
    ids = f"{new.id_kind}"
    if transform.ids is IdMode.UUID5:
        ids += ", a UUID made from each old id"
        ids += " that is not one already" if old.id_kind is not IdKind.INT else ""
        ids += f"; the old one stays in {transform.keep_id_as}" if transform.keep_id_as else ""
    elif transform.ids is IdMode.STRING:
        ids += ", written as text"
    elif not transform.id_from:
        ids += ", unchanged"
    if transform.id_from:
        ids += f", taken from the payload field {transform.id_from}"
    facts.append(Fact(label="ids", before=str(old.id_kind), after=ids))
    facts.append(Fact(label="payload fields", before=_fields(old, move.fields[0]), after=_fields(new, move.fields[1])))
    for label, change in (
        ("payload dropped", ", ".join(transform.drop)),
        ("payload renamed", ", ".join(f"{a} → {b}" for a, b in transform.rename.items())),
        ("payload converted", ", ".join(f"{a} to {b}" for a, b in transform.cast.items())),
        ("payload set", ", ".join(f"{a} = {b!r}" for a, b in transform.set.items())),
        ("only where", " and ".join(f"{c.field} {c.op} {c.value!r}" for c in transform.where)),
    ):
        if change:
            facts.append(Fact(label=label, after=change))
    if new.partitions is not None:
        facts.append(Fact(label="partitions", before=", ".join(old.partitions or ()), after=", ".join(new.partitions)))
    if old.settings:
        facts.append(
            Fact(label="settings of the source", before=", ".join(f"{k}={v}" for k, v in sorted(old.settings.items())))
        )
    how = {"full": "every point", "sample": f"{verify.sample} points", "count": "counts only"}[verify.mode]
    facts.append(Fact(label="verification", after=how))
    if live is not None:
        by = f"by {live.field}" if live.field else "by ids and content"
        wait = "; then it waits for an operator" if live.hold else ""
        until = f"until a pass repairs at most {live.bound:,} points{wait}"
        facts.append(Fact(label="written to meanwhile", after=f"brought over {by}, {until}"))
    return facts


def _fields(schema: CollectionSchema, seen: set[str]) -> str:
    """Declared fields with their types, then those the probe saw besides; long lists are cut."""
    names = [f"{item.name} ({item.type}{', indexed' if item.indexed else ''})" for item in schema.payload]
    names += sorted(seen - {item.name for item in schema.payload})
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none seen"


def _vector_text(item: VectorField) -> str:
    index = "no index"
    if item.index is not None:
        settings = {"m": item.index.m, "ef_construction": item.index.ef_construction} | dict(item.index.params)
        shown = ", ".join(f"{key}={value}" for key, value in settings.items() if value is not None)
        index = f"{item.index.type}({shown})" if shown else item.index.type
    return f"{item.name or '(unnamed)'}: {item.dimension} × {item.datatype}, {item.distance}, {index}"
