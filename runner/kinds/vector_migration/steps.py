"""From the spec and the live stores to steps: create all, copy all, index all, verify all, then switch readers."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from runner.clauses.live import LivePlan
from runner.clauses.spec import notice as _notice
from runner.clauses.spec import saved
from runner.errors import NotFound, Permanent
from runner.kinds import Draft
from runner.kinds.vector_migration.move import Move, describe, probe
from runner.kinds.vector_migration.spec import CollectionRule, VectorMigrationSpec
from runner.plan import (
    ChunkTable,
    CopyPoints,
    CreateCollection,
    DropCollection,
    Estimate,
    FinishCollection,
    Notice,
    Observed,
    Overview,
    Place,
    RewriteIds,
    SetServing,
    SwitchAlias,
    VerifyPoints,
)
from runner.points import CollectionSchema, IdKind
from runner.spec import digest, suggest
from runner.state import State
from runner.store import ALIASES, BAD_ID, PARTITIONS, PRECISION, Problem, Store
from runner.transform import IdMode, Transform, id_mode
from runner.world import World

#: Codes of this kind, beside those of `runner.store`.
TARGET_NOT_EMPTY = "VX201"
TARGET_DIFFERS = "VX202"
CHUNKS_COLUMN = "VX203"
ALIAS_TAKEN = "VX204"
DELETES_SOURCE = "VD101"
SWITCHES_READERS = "VB101"
UNSEEN_FIELDS = "VI104"
ASSUMED_DISTANCE = "VI105"
ROWS_STAY = "VI106"
PARTITION_FIELD = "_partition"


def recurring(_spec: VectorMigrationSpec) -> bool:
    """Whether an applied, unchanged job may have something to do again: a move is over when it is done."""
    return False


def plan_steps(job: str, spec: VectorMigrationSpec, world: World, state: State, *, applied: bool = False) -> Draft:  # noqa: ARG001
    """Steps for every collection: create all, copy all, index all, verify all, then ids, aliases, pointers, source."""
    source_name = spec.source if isinstance(spec.source, str) else "(source)"
    target_name = spec.target if isinstance(spec.target, str) else "(target)"
    accepted = {item.code: item.reason for item in spec.accept}
    draft = Draft(retention=spec.retention or "")
    source, target = world.store(source_name), world.store(target_name)
    moves = [
        _plan_move(
            spec, rule, Place(connection=source_name, collection=name), target_name, source, target, accepted, draft
        )
        for rule, name in _matches(spec.rules, source, source_name)
    ]
    if duplicates := _duplicates([str(move.target) for move in moves]):
        raise Permanent(
            "Two collections would become one",
            f"target {', '.join(duplicates)}",
            'Give each its own name: to: "{name}_v2"',
        )
    live = LivePlan(spec.live, tuple(accepted), moves)
    _arrange(spec, moves, live, draft)
    _plan_ids(job, spec, moves, world, state, draft)
    _plan_cutover(spec, moves, target, world, draft, accepted)
    draft.steps += live.after(draft.steps)
    draft.notices += [_notice(item, where, accepted) for item, where in live.problems()]
    if spec.source_after == "delete":
        for move in moves:
            draft.steps.append(DropCollection(target=move.source, why="source_after: delete", points=move.points))
            message = "the source is deleted at the end; from then on no rollback is possible"
            if move.transform.where:
                message += ", and the points that where leaves out are lost"
            problem = Problem(DELETES_SOURCE, message)
            draft.notices.append(_notice(problem, str(move.source), accepted, may_accept=True))
    draft.overview = [Overview(source=move.source, target=move.target, facts=tuple(move.facts)) for move in moves]
    return draft


def _matches(rules: Sequence[CollectionRule], source: Store, connection: str) -> list[tuple[CollectionRule, str]]:
    """(rule, collection) for every collection a rule takes; the first rule that matches wins."""
    existing, aliases = source.collections(), source.aliases()
    found: dict[str, CollectionRule] = {}
    for rule in rules:
        names = [name for name in existing if fnmatch.fnmatchcase(name, rule.from_) and not saved(name)]
        if rule.from_ in existing:
            names = [rule.from_]
        if not names:
            if rule.from_ in aliases:
                hint = f"{rule.from_} is an alias there; name the collection: {aliases[rule.from_]}"
            else:
                hint = suggest(rule.from_, existing) or "there are no collections"
            raise NotFound("No such collection", f"{rule.from_!r} in {connection}", hint)
        for name in names:
            found.setdefault(name, rule)
    return [(rule, name) for name, rule in found.items()]


def _plan_move(
    spec: VectorMigrationSpec, rule: CollectionRule, source_place: Place, target_name: str,
    source: Store, target: Store, accepted: dict[str, str], draft: Draft,
) -> Move:  # fmt: skip
    name = source_place.collection
    schema = source.inspect(name)
    if schema is None:
        raise NotFound("No such collection", str(source_place))
    place = Place(connection=target_name, collection=rule.to.replace("{name}", name))
    if place == source_place:
        raise Permanent(
            "Source and target are the same collection", str(place), "Give the target another name with to:"
        )
    where, points = str(source_place), source.count(name)
    transform, wish = _wish(rule, place, schema, target, where, accepted, draft)
    fitted, problems = target.fit(wish)
    seen = {(item.code, item.field): item for item in problems}
    existing = target.inspect(place.collection)
    held = target.count(place.collection) if existing is not None else None
    if existing is not None:
        problems += _compare_target(fitted, existing, held or 0, target)
        fitted = existing
    switches = (rule.cutover or spec.cutover) is not None
    move = Move(rule, source_place, place, schema, fitted, transform, points, existing is None, switches)
    if all(item.acceptable or item.code.startswith("VI") for item in problems):
        for item in probe(move, source, target):
            if (item.code, item.field) not in seen:
                problems.append(item)
        problems += _unseen(move, spec.live.field if spec.live else None)
    if schema.settings.get("distance_assumed"):
        message = (
            "the source does not say its metric; cosine is assumed. Another one: tables.NAME.distance of the connection"
        )
        problems.append(Problem(ASSUMED_DISTANCE, message))
    draft.notices += [_notice(item, where, accepted) for item in problems]
    carried = {spec.cutover.alias} if spec.cutover else set()
    aliases = sorted(alias for alias, held_by in source.aliases().items() if held_by == name and alias not in carried)
    if aliases:
        draft.notices.append(
            _notice(Problem(ALIASES, f"aliases of the source are not carried: {', '.join(aliases)}"), where, accepted)
        )
    draft.world += [
        Observed(
            place=source_place, role="source", count=points, schema_digest=digest(schema.model_dump(mode="json")),
            live=spec.live is not None,
        ),
        Observed(
            place=place, role="target", count=held,
            schema_digest=digest(existing.model_dump(mode="json")) if existing is not None else None,
        ),
    ]  # fmt: skip
    move.facts = describe(move, spec)
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
    rule: CollectionRule, place: Place, schema: CollectionSchema, target: Store, where: str,
    accepted: dict[str, str], draft: Draft,
) -> tuple[Transform, CollectionSchema]:  # fmt: skip
    """The transform, and the schema we would like the target to have (the target then says what it can)."""
    caps = target.capabilities()
    names = _vector_names(rule, schema, caps.default_vector_name)
    for name in rule.index:
        if name not in names.values():
            raise NotFound("No such vector", f"index: {name!r} in the target of {where}", suggest(name, names.values()))
    kind = rule.ids.from_kind if rule.ids.from_field else schema.id_kind
    mode, target_kind = IdMode.KEEP, kind
    match rule.ids.mode:
        case "auto":
            way = id_mode(kind, caps.id_kinds)
            if way is None:
                problem = Problem(BAD_ID, f"{kind} ids cannot become ids of {target.type}")
                draft.notices.append(_notice(problem, where, accepted))
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
        problem = Problem(PARTITIONS, f"partitions become the payload field {PARTITION_FIELD}")
        draft.notices.append(_notice(problem, where, accepted))
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
    return transform, wish


def _vector_names(rule: CollectionRule, schema: CollectionSchema, default: str) -> dict[str, str]:
    """source vector -> target vector. A collection's only vector gets the name the target uses for such."""
    existing = [item.name for item in schema.vectors] + [item.name for item in schema.sparse]
    if rule.vectors:
        for name in rule.vectors:
            if name not in existing:
                raise NotFound("No such vector", f"{name!r} in {schema.name}", suggest(name, existing))
        return dict(rule.vectors)
    if len(existing) == 1 and schema.vectors:
        return {existing[0]: default}
    return {name: name for name in existing}


def _compare_target(wanted: CollectionSchema, existing: CollectionSchema, held: int, target: Store) -> list[Problem]:
    """Why the collection that is there already cannot take the points."""
    found = []
    if held:
        message = f"the target already holds {held:,} points; choose another name with to:, or empty it"
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


def _arrange(spec: VectorMigrationSpec, moves: list[Move], live: LivePlan, draft: Draft) -> None:
    """Data first, for all collections; then indexes; then verification of all, before anything is switched."""
    accept = tuple(item.code for item in spec.accept)
    for move in moves:
        if move.creates:
            draft.steps.append(CreateCollection(target=move.target, schema=move.schema))
    for move in moves:
        estimate = Estimate(
            seconds=round(move.points / move.read_rate, 1) if move.read_rate else None,
            bytes=int(move.points * move.point_bytes) if move.point_bytes else None,
        )
        draft.steps.append(
            CopyPoints(
                source=move.source, target=move.target, target_schema=move.schema, transform=move.transform,
                points=move.points, batch_size=spec.batch_size, accept=accept, creates_target=move.creates, estimate=estimate,
            )
        )  # fmt: skip
    draft.steps += [FinishCollection(target=move.target, schema=move.schema) for move in moves]
    draft.steps += live.before()
    draft.steps += [
        VerifyPoints(
            source=move.source, target=move.target, target_schema=move.schema, transform=move.transform,
            mode=spec.verify.mode, sample=spec.verify.sample, points=move.points, live=live.of_verification(move),
        )
        for move in moves
    ]  # fmt: skip


def _plan_ids(job: str, spec: VectorMigrationSpec, moves: list[Move], world: World, state: State, draft: Draft) -> None:
    """A3: the chunks table follows the ids, right before the pointers move."""
    mapped = [move for move in moves if move.transform.ids is not IdMode.KEEP or move.transform.id_from]
    if spec.documents is None:
        return
    documents = spec.documents
    table = ChunkTable(
        connection=documents.connection, table=documents.table, id_column=documents.id_column,
        vector_id_column=documents.vector_id_column, collection_column=documents.collection_column,
    )  # fmt: skip
    from runner.documents import chunks as chunk_tables

    database = world.database(documents.connection)
    rows = chunk_tables.inspect(database, table)
    if not mapped:
        return
    if any(move.transform.where for move in mapped):
        message = f"rows of {table.table} whose points where leaves out keep their old ids"
        draft.notices.append(_notice(Problem(ROWS_STAY, message), documents.connection, {}))
    if len(mapped) > 1 and documents.collection_column is None:
        raise Permanent(
            "The chunks table is ambiguous",
            f"ids of {len(mapped)} collections are mapped, and an id may stand in several of them",
            "Say which column names the collection: documents.collection_column",
        )
    for kind in sorted({move.schema.id_kind for move in mapped}):
        if reason := chunk_tables.holds(database, table, kind):
            draft.notices.append(_notice(Problem(CHUNKS_COLUMN, reason), documents.connection, {}))
    draft.steps.append(
        RewriteIds(
            chunks=table, undo_table=chunk_tables.free_name(database, table.table, f"{job}:{state.lineage}:{state.serial}"),
            rows=rows,
            collections=tuple((move.source.collection, move.target.collection) for move in mapped),
        )
    )  # fmt: skip


def _plan_cutover(
    spec: VectorMigrationSpec, moves: list[Move], target: Store, world: World, draft: Draft, accepted: dict[str, str]
) -> None:
    """Aliases of the target store, then the workspace's serving pointers."""
    pointers: dict[str, Place] = {}
    for move in moves:
        cutover = move.rule.cutover or spec.cutover
        if cutover is None:
            continue
        alias = cutover.alias.replace("{name}", move.target.collection)
        if alias in pointers:
            raise Permanent(
                "One alias for two collections", alias, "Use {name} in cutover.alias, or a cutover per collection"
            )
        pointers[alias] = move.target
    serving = world.serving()
    aliases, made = target.aliases(), {move.target.collection for move in moves}
    if target.capabilities().aliases:
        for alias, place in pointers.items():
            if reason := f"{alias} is made by this job" if alias in made else target.alias_taken(alias):
                problem = Problem(ALIAS_TAKEN, f"{reason}, so it cannot become an alias")
                draft.notices.append(_notice(problem, place.connection, accepted))
            draft.steps.append(
                SwitchAlias(connection=place.connection, alias=alias, before=aliases.get(alias), after=place.collection)
            )
    for alias, place in pointers.items():
        draft.steps.append(SetServing(name=alias, before=serving.get(alias), after=place))
        message = f"readers that follow {alias} are switched to {place}"
        draft.notices.append(
            Notice(code=SWITCHES_READERS, message=message, where=alias, accepted=accepted.get(SWITCHES_READERS, ""))
        )


def _duplicates(items: Sequence[str]) -> list[str]:
    return sorted({item for item in items if items.count(item) > 1})
