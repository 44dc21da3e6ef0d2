"""From the spec and the live stores to steps: create all, copy all, index all, verify all, then switch readers."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from runner.clauses.live import LivePlan
from runner.clauses.moving import CollectionRule
from runner.clauses.moving.move import Move
from runner.clauses.moving.plan import How, arrange, duplicates, plan_move
from runner.clauses.spec import notice as _notice
from runner.clauses.spec import saved
from runner.errors import NotFound, Permanent
from runner.kinds import Draft
from runner.kinds.vector_migration.spec import VectorMigrationSpec
from runner.plan import (
    ChunkTable,
    DropCollection,
    Notice,
    Overview,
    Place,
    RewriteIds,
    SetServing,
    SwitchAlias,
)
from runner.spec import suggest
from runner.state import State
from runner.store import Problem, Store
from runner.transform import IdMode
from runner.world import World

#: Codes of this kind, beside those of `runner.store` and of what moves.
CHUNKS_COLUMN = "VX203"
ALIAS_TAKEN = "VX204"
DELETES_SOURCE = "VD101"
SWITCHES_READERS = "VB101"
ROWS_STAY = "VI106"


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
    how = How(spec.verify, spec.batch_size, accepted, spec.live, spec.cutover)
    moves = list[Move]()
    for rule, name in _matches(spec.rules, source, source_name):
        at = Place(connection=target_name, collection=rule.to.replace("{name}", name))
        moves.append(plan_move(rule, Place(connection=source_name, collection=name), at, source, target, how))
        draft.notices += moves[-1].notices
        draft.world += moves[-1].world
    if doubled := duplicates([str(move.target) for move in moves]):
        raise Permanent(
            "Two collections would become one",
            f"target {', '.join(doubled)}",
            'Give each its own name: to: "{name}_v2"',
        )
    live = LivePlan(spec.live, tuple(accepted), moves)
    draft.steps += arrange(moves, how, live)
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
