"""Collections out of a backup: each is a move, whose source is the backup."""

from __future__ import annotations

import fnmatch

from runner.backups.manifest import Backup
from runner.clauses.live import LivePlan
from runner.clauses.moving.move import Move
from runner.clauses.moving.plan import How, arrange, duplicates, plan_move
from runner.errors import NotFound, Permanent
from runner.kinds import Draft
from runner.kinds.vector_restore.spec import BACKUP, Collections
from runner.plan import BackupFolder, Notice, Overview, Place, SwitchAlias
from runner.spec import suggest
from runner.store import Store
from runner.world import World

ALIAS_TAKEN = "VX204"
SWITCHES_READERS = "VB101"
NO_ALIASES = "VI142"


def plan_collections(
    wanted: Collections, world: World, folder: BackupFolder, backup: Backup, accepted: dict[str, str], draft: Draft
) -> list[str]:
    """Adds steps, findings, facts and what was observed to the draft; returns the collections that come back."""
    source, target = world.store(BACKUP), world.store(wanted.connection)
    moves, names = list[Move](), list[str]()
    known = [item.name for item in backup.collections]
    same = all(item.store == target.type for item in backup.collections)
    merge = wanted.if_not_empty == "merge"
    how = How(
        wanted.verify, wanted.batch_size, accepted, merge=merge, keep_names=same, or_else="; or say if_not_empty: merge"
    )
    for rule in wanted.rules:
        matching = [name for name in known if fnmatch.fnmatchcase(name, rule.from_) and name not in names]
        if rule.from_ in known and rule.from_ != "*":  # which always means all, also where a collection is called so
            matching = [rule.from_] if rule.from_ not in names else []
        elif not matching and rule.from_ not in names and not (rule.from_ == "*" and known):
            where = f"{rule.from_!r} in backup {backup.id} of {folder}"
            raise NotFound("No such collection", where, suggest(rule.from_, known) or "there are no collections")
        for name in matching:
            at = Place(connection=wanted.connection, collection=rule.to.replace("{name}", name))
            move = plan_move(rule, Place(connection=BACKUP, collection=f"{backup.id}/{name}"), at, source, target, how)
            moves.append(move)
            names.append(name)
            draft.notices += move.notices
            draft.world += move.world
    if doubled := duplicates([str(move.target) for move in moves]):
        raise Permanent(
            "Two collections would become one",
            f"target {', '.join(doubled)}",
            'Give each its own name: to: "{name}_v2"',
        )
    draft.steps += arrange(moves, how, LivePlan(None, tuple(accepted), moves))
    _plan_aliases(wanted, target, backup, dict(zip(names, moves, strict=True)), accepted, draft)
    draft.overview += [Overview(source=move.source, target=move.target, facts=tuple(move.facts)) for move in moves]
    return names


def _plan_aliases(
    wanted: Collections, target: Store, backup: Backup, moves: dict[str, Move], accepted: dict[str, str], draft: Draft
) -> None:
    """The aliases of that time, if they are wanted; else they are told."""
    held = {alias: item.name for item in backup.collections if item.name in moves for alias in item.aliases}
    if not held:
        return
    if not wanted.aliases:
        message = f"aliases of that time are not restored: {', '.join(sorted(held))}; they would be with aliases: true"
        draft.notices.append(Notice(code=NO_ALIASES, message=message, where=f"backup {backup.id}"))
        return
    if not target.capabilities().aliases:
        message = f"{target.type} has no aliases: {', '.join(sorted(held))}"
        draft.notices.append(Notice(code=NO_ALIASES, message=message, where=wanted.connection))
        return
    now = target.aliases()
    for alias, name in sorted(held.items()):
        move = moves[name]
        if reason := target.alias_taken(alias):
            message = f"{reason}, so it cannot become an alias"
            draft.notices.append(Notice(code=ALIAS_TAKEN, message=message, where=wanted.connection, blocking=True))
        draft.steps.append(
            SwitchAlias(connection=wanted.connection, alias=alias, before=now.get(alias), after=move.target.collection)
        )
        message = f"readers that follow {alias} are switched to {move.target}"
        draft.notices.append(
            Notice(code=SWITCHES_READERS, message=message, where=alias, accepted=accepted.get(SWITCHES_READERS, ""))
        )
