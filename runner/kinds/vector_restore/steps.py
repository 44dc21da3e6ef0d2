"""From the spec, the backup and the live world to the steps of a restore: the backup is checked before all else."""

from __future__ import annotations

from runner.backups import manifest
from runner.backups.manifest import Backup
from runner.clauses.backups import SHARED, future, origins, storage
from runner.errors import NotFound, Permanent, VecrunError
from runner.kinds import Draft
from runner.kinds.vector_restore.collections import plan_collections
from runner.kinds.vector_restore.spec import From, VectorRestoreSpec
from runner.kinds.vector_restore.tables import plan_tables
from runner.objects.storage import Objects
from runner.plan import BackupFolder, CheckBackup, Fact, Notice
from runner.state import State
from runner.world import World

#: Codes of this kind.
DAMAGED = "VX230"
NOT_NEWEST = "VI140"
EMPTY = "VI141"


def recurring(_spec: VectorRestoreSpec) -> bool:
    """Whether an applied, unchanged job may have something to do again: a restore is over when it is done."""
    return False


def plan_steps(job: str, spec: VectorRestoreSpec, world: World, state: State, *, applied: bool = False) -> Draft:  # noqa: ARG001
    """Check, then fill tables, or copy collections."""
    accepted = {item.code: item.reason for item in spec.accept}
    draft, source = (
        Draft(retention=spec.retention or ""),
        BackupFolder(connection=spec.from_.connection, folder=spec.from_.folder),
    )
    objects, found = storage(world, source, write=False)
    draft.notices += found
    backup, found = _chosen(objects, source, spec.from_)
    draft.notices += found
    wanted = "tables" if spec.tables is not None else "collections"
    if backup.form != wanted:
        raise Permanent(
            "The backup is of another form", f"{source}: backup {backup.id} is one of {backup.form}",
            f"Say {backup.form}: in the spec instead of {wanted}:",
        )  # fmt: skip
    if spec.tables is not None:
        names = plan_tables(job, spec.tables, world, source, backup, state, draft)
        files = [item for item in backup.tables if item.table in names]
        size = sum(item.bytes for item in files)
    else:
        assert spec.collections is not None
        names = plan_collections(spec.collections, world, source, backup, accepted, draft)
        size = sum(file.bytes for one in backup.collections if one.name in names for file in one.files)
    check = CheckBackup(
        source=source, backup=backup.id, manifest=backup.digest, names=() if _everything(backup, names) else tuple(names),
        bytes=size,
    )  # fmt: skip
    draft.steps.insert(0, check)
    draft.notices += _gone(objects, source, backup, names)
    draft.notices += _others(objects, source, backup, world.settings.environment)
    told = Fact(label="backup", before=f"{backup.id} of {backup.origin}")
    draft.overview = [item.model_copy(update={"facts": (*item.facts, told)}) for item in draft.overview]
    return draft


def _chosen(objects: Objects, source: BackupFolder, given: From) -> tuple[Backup, list[Notice]]:
    """The backup that is meant, and what there is to say about the choice."""
    if given.backup != "latest":
        backup = manifest.read(objects, given.folder, given.backup)
        if not backup.whole:
            failed = ", ".join(item.table for item in backup.tables if item.error)
            message = f"it is not whole: {failed} failed when it was made"
            return backup, [Notice(code=NOT_NEWEST, message=message, where=f"backup {backup.id}")]
        return backup, []
    newest = manifest.latest(objects, given.folder)
    if newest is None:
        raise NotFound(
            "There is no whole backup", f"in {source}", f"vecrun backup list {source.connection}:{source.folder}"
        )
    found = list[Notice]()
    found += future(objects, source)
    newer = [one for one in manifest.ids(objects, given.folder) if one > newest.id and not manifest.ahead(one)]
    if newer:
        message = f"newer ones are not whole: {', '.join(newer)}"
        found.append(Notice(code=NOT_NEWEST, message=message, where=f"backup {newest.id}"))
    for older, names in _holding(objects, given.folder, newest).items():
        what = "the newest backup holds nothing" if not newest.rows else f"it holds nothing of {', '.join(names)}"
        message = f"{what}; the newest that does is {older}. Name it: from: {{backup: {older!r}}}"
        found.append(Notice(code=EMPTY, message=message, where=f"backup {newest.id}"))
    return newest, found


def _holding(objects: Objects, folder: str, newest: Backup) -> dict[str, list[str]]:
    """Older backup -> tables and collections that it is the newest to hold anything of; those that are empty in `newest`."""
    empty = {item.table for item in newest.tables} | {f"{one.connection}/{one.name}" for one in newest.collections}
    empty -= set(newest.holding)
    found: dict[str, list[str]] = {}
    for item in manifest.newest_first(objects, folder, present=True) if empty else ():
        if (
            isinstance(item, Backup)
            and item.whole
            and item.origin == newest.origin
            and (held := empty & {*item.holding})
        ):
            found[item.id] = sorted(held)
            empty -= held
        if not empty:
            break
    return found


def _others(objects: Objects, source: BackupFolder, backup: Backup, environment: str) -> list[Notice]:
    """Whether the folder is one of several jobs, or of another environment: the backup may not be the one that is meant."""
    others = [
        f"{name} of job {job}, environment {env or '(none)'}"
        for (job, env, line), name in origins(objects, source).items()
        if (job, env) != (backup.job, backup.environment) or (line and backup.lineage and line != backup.lineage)
    ]
    elsewhere = bool(backup.lineage) and backup.environment != environment
    if not others and not elsewhere:
        return []
    message = f"it is of job {backup.job}, environment {backup.environment or '(none)'}"
    if others:
        message += f"; the folder has backups of others, too: {'; '.join(others)}"
    return [Notice(code=SHARED, message=message, where=f"backup {backup.id}")]


def _everything(backup: Backup, names: list[str]) -> bool:
    return set(names) == {item.table for item in backup.tables} | {item.name for item in backup.collections}


def _gone(objects: Objects, source: BackupFolder, backup: Backup, names: list[str]) -> list[Notice]:
    """Files that are not there, or have another size: `apply` would find it, too, by reading all of them."""
    wanted = {item.file: item.bytes for item in backup.tables if item.table in names and item.file}
    wanted |= {file.file: file.bytes for one in backup.collections if one.name in names for file in one.files}
    bad = list[str]()
    for file, size in wanted.items():
        try:
            there = objects.head(source.key(file))
        except VecrunError as exc:
            bad.append(str(exc))
            continue
        if there is None:
            bad.append(f"{file} is gone")
        elif there.size != size:
            bad.append(f"{file} has {there.size:,} bytes, and {size:,} belong there")
    if not bad:
        return []
    more = f" and {len(bad) - 5:,} more" if len(bad) > 5 else ""
    message = f"it is damaged: {'; '.join(bad[:5])}{more}. Take another backup"
    return [Notice(code=DAMAGED, message=message, where=f"backup {backup.id}", blocking=True)]
