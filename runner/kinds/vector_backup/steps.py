"""From the spec and the live world to the steps of a backup."""

from __future__ import annotations

from typing import Literal

from runner.clauses.backups import future, last_backup, room_problems, shared, storage
from runner.kinds import Draft
from runner.kinds.vector_backup.collections import plan_collections
from runner.kinds.vector_backup.spec import VectorBackupSpec
from runner.kinds.vector_backup.tables import plan_tables
from runner.state import State
from runner.world import World


def recurring(_spec: VectorBackupSpec) -> bool:
    """What was backed up may have changed since."""
    return True


def plan_steps(job: str, spec: VectorBackupSpec, world: World, state: State, *, applied: bool = False) -> Draft:
    """Steps of a backup; none for tables of which no row has changed since the newest one."""
    accepted = {item.code: item.reason for item in spec.accept}
    environment = world.settings.environment
    draft, into = Draft(retention=spec.retention or ""), spec.to.place(job, environment)
    objects, found = storage(world, into, write=True)
    form: Literal["tables", "collections"] = "tables" if spec.tables is not None else "collections"
    earlier, damaged = last_backup(objects, into, form, job, state.lineage)
    draft.notices += [*found, *damaged]
    if spec.tables is not None:
        plan_tables(spec, spec.tables, world, into, objects, earlier, applied, accepted, draft)
    elif spec.collections is not None:
        plan_collections(spec, spec.collections, world, into, earlier, accepted, draft)
    # after the tables: a finding before would keep them from saying that nothing has changed
    draft.notices += future(objects, into)
    if draft.steps:
        draft.notices += shared(objects, into, job, environment, state.lineage)
        needed = sum(step.estimate.bytes or 0 for step in draft.steps)
        draft.notices += room_problems(
            objects, into, needed, shared=spec.collections is not None and earlier is not None
        )
    return draft
