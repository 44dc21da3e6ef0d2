"""One collection on its way, planned: what the target is to look like, what the transform does, and what stands in the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runner.clauses.live import LivePlan
from runner.clauses.moving.move import Move, describe, probe
from runner.clauses.moving.rules import CollectionRule
from runner.clauses.spec import Cutover, LiveSource, Verify, notice
from runner.errors import NotFound, Permanent
from runner.plan import (
    CopyPoints,
    CreateCollection,
    Estimate,
    FinishCollection,
    Observed,
    Place,
    Step,
    VerifyPoints,
)
from runner.points import CollectionSchema, IdKind
from runner.spec import digest, suggest
from runner.store import ALIASES, BAD_ID, PARTITIONS, PRECISION, Problem, Store
from runner.transform import IdMode, Transform, id_mode

TARGET_NOT_EMPTY = "VX201"
TARGET_DIFFERS = "VX202"
OVERWRITES = "VD106"
UNSEEN_FIELDS = "VI104"
ASSUMED_DISTANCE = "VI105"
PARTITION_FIELD = "_partition"


@dataclass(frozen=True)
class How:
    """What a spec says about all its collections. `accepted`: code -> reason. `merge`: points that the target holds stay,
    unless one of the same id comes."""

    verify: Verify
    batch_size: int
    accepted: dict[str, str]
    live: LiveSource | None = None
    cutover: Cutover | None = None
    merge: bool = False
    keep_names: bool = False  # vectors are called as before, where a rule says nothing else
    or_else: str = ""  # what else helps when the target holds points


def plan_move(rule: CollectionRule, source_place: Place, place: Place, source: Store, target: Store, how: How) -> Move:
    """Look at both sides and a sample of the points. What is found is in `notices` and `world` of the answer."""
    name = source_place.collection
    schema = source.inspect(name)
    if schema is None:
        raise NotFound("No such collection", str(source_place))
    if place == source_place:
        raise Permanent(
            "Source and target are the same collection", str(place), "Give the target another name with to:"
        )
    where, points = str(source_place), source.count(name)
    transform, wish, problems = _wish(rule, place, schema, target, where, keep_names=how.keep_names)
    fitted, unfit = target.fit(wish)
    problems += unfit
    seen = {(item.code, item.field): item for item in problems}
    existing = target.inspect(place.collection)
    held = target.count(place.collection) if existing is not None else None
    if existing is not None:
        problems += _compare_target(fitted, existing, held or 0, target, merge=how.merge, or_else=how.or_else)
        fitted = existing
    switches = (rule.cutover or how.cutover) is not None
    move = Move(rule, source_place, place, schema, fitted, transform, points, existing is None, switches, held or 0)
    if all(item.acceptable or item.code.startswith("VI") for item in problems):
        for item in probe(move, source, target):
            if (item.code, item.field) not in seen:
                problems.append(item)
        problems += _unseen(move, how.live.field if how.live else None)
    if schema.settings.get("distance_assumed"):
        message = (
            "the source does not say its metric; cosine is assumed. Another one: tables.NAME.distance of the connection"
        )
        problems.append(Problem(ASSUMED_DISTANCE, message))
    carried = {how.cutover.alias} if how.cutover else set()
    aliases = sorted(alias for alias, held_by in source.aliases().items() if held_by == name and alias not in carried)
    if aliases:
        problems.append(Problem(ALIASES, f"aliases of the source are not carried: {', '.join(aliases)}"))
    move.notices = [notice(item, where, how.accepted, may_accept=item.code == OVERWRITES) for item in problems]
    move.world = [
        Observed(
            place=source_place, role="source", count=points, schema_digest=digest(schema.model_dump(mode="json")),
            live=how.live is not None,
        ),
        Observed(
            place=place, role="target", count=held,
            schema_digest=digest(existing.model_dump(mode="json")) if existing is not None else None,
        ),
    ]  # fmt: skip
    move.facts = describe(move, how.verify, how.live)
    return move


def _unseen(move: Move, version: str | None) -> list[Problem]:
    """Fields that the rule names and no point of the sample has: a slip of the pen would otherwise do nothing, unsaid."""
    rule, transform = move.rule, move.transform
    seen = move.fields[0] | {item.name for item in move.source_schema.payload}
    if not move.fields[0]:  # no payload was looked at
        return []
    made = {*rule.payload.rename.values(), *rule.payload.set}
    named = [*rule.payload.drop, *rule.payload.rename, *(name for name in rule.payload.cast if name not in made)]
    paths = [item.field for item in rule.where] + ([version] if version else [])
    named += [path for path in paths if path not in seen and path.split(".")[0] not in seen]
    named += [transform.id_from] if transform.id_from else []
    missing = sorted(set(named) - seen)
    message = f"fields that no point of the sample has: {', '.join(missing)}"
    return [Problem(UNSEEN_FIELDS, message)] if missing else []


def _wish(
    rule: CollectionRule, place: Place, schema: CollectionSchema, target: Store, where: str, *, keep_names: bool
) -> tuple[Transform, CollectionSchema, list[Problem]]:
    """The transform, the schema we would like the target to have (the target then says what it can), what is found."""
    problems = list[Problem]()
    caps = target.capabilities()
    names = _vector_names(rule, schema, None if keep_names else caps.default_vector_name)
    for name in rule.index:
        if name not in names.values():
            raise NotFound("No such vector", f"index: {name!r} in the target of {where}", suggest(name, names.values()))
    kind = rule.ids.from_kind if rule.ids.from_field else schema.id_kind
    mode, target_kind = IdMode.KEEP, kind
    match rule.ids.mode:
        case "auto":
            way = id_mode(kind, caps.id_kinds)
            if way is None:
                problems.append(Problem(BAD_ID, f"{kind} ids cannot become ids of {target.type}"))
            else:
                mode, target_kind = way
        case "string":
            mode, target_kind = IdMode.STRING, IdKind.STRING
        case "uuid5":
            mode, target_kind = IdMode.UUID5, IdKind.UUID
        case "keep":
            way = id_mode(kind, caps.id_kinds)
            target_kind = way[1] if way and way[0] is IdMode.KEEP else kind
    carries_partitions = schema.partitions is None or caps.partitions
    if not carries_partitions:
        problems.append(Problem(PARTITIONS, f"partitions become the payload field {PARTITION_FIELD}"))
    unchanged = all(old == new for old, new in names.items()) and len(names) == len(schema.vectors) + len(schema.sparse)
    transform = Transform(
        where=rule.where, drop=rule.payload.drop, rename=rule.payload.rename, cast=rule.payload.cast,
        set=rule.payload.set,
        vectors={} if unchanged else names,
        ids=mode, id_from=rule.ids.from_field,
        keep_id_as=rule.ids.keep_original_as if mode is IdMode.UUID5 else None,
        partition_field=None if carries_partitions else PARTITION_FIELD,
    )  # fmt: skip
    gone = {*rule.payload.drop, *rule.payload.rename, *rule.payload.set, *rule.payload.cast}
    fields = [item for item in schema.payload if item.name not in gone]
    fields += [
        item.model_copy(update={"name": rule.payload.rename[item.name]})
        for item in schema.payload if item.name in rule.payload.rename and item.name not in rule.payload.cast
    ]  # fmt: skip
    wish = CollectionSchema(
        name=place.collection,
        id_kind=target_kind,
        id_max_length=schema.id_max_length if target_kind is schema.id_kind else None,
        vectors=tuple(
            item.model_copy(update={"name": names[item.name], "index": rule.index.get(names[item.name], item.index)})
            for item in schema.vectors if item.name in names
        ),
        sparse=tuple(
            item.model_copy(update={"name": names[item.name]}) for item in schema.sparse if item.name in names
        ),
        payload=tuple(fields),
        partitions=schema.partitions if carries_partitions else None,
        partition_key=schema.partition_key if caps.partition_key and schema.partition_key not in gone else None,
        settings=schema.settings,
    )  # fmt: skip
    return transform, wish, problems


def _vector_names(rule: CollectionRule, schema: CollectionSchema, default: str | None) -> dict[str, str]:
    """source vector -> target vector. A collection's only vector gets the name the target uses for such, if given."""
    existing = [item.name for item in schema.vectors] + [item.name for item in schema.sparse]
    if rule.vectors:
        for name in rule.vectors:
            if name not in existing:
                raise NotFound("No such vector", f"{name!r} in {schema.name}", suggest(name, existing))
        return dict(rule.vectors)
    if len(existing) == 1 and schema.vectors and default is not None:
        return {existing[0]: default}
    return {name: name for name in existing}


def _compare_target(
    wanted: CollectionSchema, existing: CollectionSchema, held: int, target: Store, *, merge: bool, or_else: str
) -> list[Problem]:
    """Why the collection that is there already cannot take the points."""
    found = []
    if held and merge:
        message = f"the target holds {held:,} points; those with the same id are overwritten, and no rollback brings them back"
        found.append(Problem(OVERWRITES, message))
    elif held:
        message = f"the target already holds {held:,} points; choose another name with to:, or empty it{or_else}"
        found.append(Problem(TARGET_NOT_EMPTY, message))
    names = {vector.name: vector for vector in existing.vectors}
    for vector in wanted.vectors:
        other, label = names.get(vector.name), f"vector {vector.name or '(unnamed)'}"
        if other is None:
            message = f"the existing target has no such vector; it has {', '.join(names) or 'none'}"
            found.append(Problem(TARGET_DIFFERS, message, label))
        elif other.dimension != vector.dimension:
            message = f"dimension {vector.dimension}, but the existing target has {other.dimension}"
            found.append(Problem(TARGET_DIFFERS, message, label))
        elif other.distance != vector.distance:
            message = f"metric {vector.distance}, but the existing target has {other.distance}"
            found.append(Problem(TARGET_DIFFERS, message, label))
    shared = [vector for vector in existing.vectors if vector.name in {item.name for item in wanted.vectors}]
    theirs = existing.model_copy(update={"vectors": tuple(shared)})
    found += [item for item in target.fit(theirs)[1] if item.code == PRECISION]
    extra = sorted({item.name for item in existing.vectors} - {item.name for item in wanted.vectors})
    if extra and not target.capabilities().missing_vectors:
        found.append(Problem(TARGET_DIFFERS, f"the existing target also wants the vectors {', '.join(extra)}"))
    for sparse in sorted({item.name for item in wanted.sparse} - {item.name for item in existing.sparse}):
        found.append(Problem(TARGET_DIFFERS, "the existing target has no such sparse vector", f"vector {sparse}"))
    if wanted.partitions is not None and existing.partitions is None:
        found.append(Problem(TARGET_DIFFERS, "the points lie in partitions, and the existing target has none"))
    mixed = {IdKind.INT, IdKind.UUID, IdKind.INT_OR_UUID}
    held_by = {IdKind.INT_OR_UUID: mixed, IdKind.STRING: {IdKind.STRING, IdKind.UUID}}
    if wanted.id_kind not in held_by.get(existing.id_kind, {existing.id_kind}):
        found.append(
            Problem(TARGET_DIFFERS, f"{wanted.id_kind} ids, but the existing target has {existing.id_kind}", "id")
        )
    return found


def arrange(moves: Sequence[Move], how: How, live: LivePlan) -> list[Step]:
    """Data first, for all collections; then indexes; then verification of all, before anything is switched."""
    steps: list[Step] = [CreateCollection(target=move.target, schema=move.schema) for move in moves if move.creates]
    for move in moves:
        estimate = Estimate(
            seconds=round(move.points / move.read_rate, 1) if move.read_rate else None,
            bytes=int(move.points * move.point_bytes) if move.point_bytes else None,
        )
        steps.append(
            CopyPoints(
                source=move.source, target=move.target, target_schema=move.schema, transform=move.transform,
                points=move.points, batch_size=how.batch_size, accept=tuple(how.accepted), creates_target=move.creates,
                merges=how.merge and bool(move.held), estimate=estimate,
            )
        )  # fmt: skip
    steps += [FinishCollection(target=move.target, schema=move.schema) for move in moves]
    steps += live.before()
    steps += [
        VerifyPoints(
            source=move.source, target=move.target, target_schema=move.schema, transform=move.transform,
            mode=how.verify.mode, sample=how.verify.sample, points=move.points, live=live.of_verification(move),
            others=how.merge and bool(move.held),
        )
        for move in moves
    ]  # fmt: skip
    return steps


def duplicates(items: Sequence[str]) -> list[str]:
    """Those that stand there more than once."""
    return sorted({item for item in items if items.count(item) > 1})
