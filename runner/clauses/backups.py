"""The storage that backups are in: whether it can be read and written, how much room it has, and what is there already."""

from __future__ import annotations

import itertools
from typing import Literal

from runner.backups import manifest
from runner.backups.manifest import Backup
from runner.errors import Permanent, VecrunError
from runner.objects.storage import Objects
from runner.plan import BackupFolder, Notice
from runner.world import World

#: Codes of backups and of what is made of them.
NO_STORAGE_RIGHT = "VX220"
NO_ROOM = "VX221"
LITTLE_ROOM = "VI130"
UNREADABLE = "VI131"
SHARED = "VB114"
FUTURE = "VI144"
#: Free space that is left alone, in bytes: for the manifest and the log.
SPARE = 1 << 20
#: Backups whose manifests are read to see whose a folder is.
_LOOKED_AT = 10


def storage(world: World, folder: BackupFolder, *, write: bool) -> tuple[Objects, list[Notice]]:
    """The object storage, asked once; what this login may not do there."""
    objects = world.objects(folder.connection)
    rights = objects.health().rights
    known = "read" in rights  # S3 tells only what it was asked: to list
    lacking = [right for right in ("read", *(["write"] if write else [])) if known and right not in rights]
    if not lacking:
        return objects, []
    message = f"no right to {' and '.join(lacking)} there"
    return objects, [Notice(code=NO_STORAGE_RIGHT, message=message, where=folder.connection, blocking=True)]


def last_backup(
    objects: Objects, folder: BackupFolder, form: Literal["tables", "collections"], job: str, lineage: str
) -> tuple[Backup | None, list[Notice]]:
    """The job's newest whole backup of this form that can be read, and which newer ones cannot."""
    found = list[Notice]()
    for item in manifest.newest_first(objects, folder.folder, present=True):
        if isinstance(item, VecrunError):
            message = f"an earlier backup cannot be read and is left alone: {item.summary}: {item.detail}"
            found.append(Notice(code=UNREADABLE, message=message, where=str(folder)))
        elif item.whole and item.form == form and item.job == job and item.lineage in ("", lineage):
            return item, found
        elif item.form != form:
            raise Permanent(
                "The folder has backups of another kind",
                f"{folder}: backup {item.id} of job {item.job} is one of {item.form}",
                "Give each job a folder of its own: to: {folder: …}",
            )
    return None, found


def future(objects: Objects, folder: BackupFolder) -> list[Notice]:
    """Backups that count for nothing because of their time."""
    ahead = [name for name in manifest.ids(objects, folder.folder) if manifest.ahead(name)]
    if not ahead:
        return []
    message = f"passed over, because their time is in the future: {', '.join(ahead)}. Whose clock was wrong?"
    return [Notice(code=FUTURE, message=message, where=str(folder))]


def origins(objects: Objects, folder: BackupFolder) -> dict[tuple[str, str, str], str]:
    """(job, environment, lineage) of the newest backups in the folder -> the newest id of each."""
    found: dict[tuple[str, str, str], str] = {}
    for item in itertools.islice(manifest.newest_first(objects, folder.folder), _LOOKED_AT):
        if isinstance(item, Backup):
            found.setdefault((item.job, item.environment, item.lineage), item.id)
    return found


def shared(objects: Objects, folder: BackupFolder, job: str, environment: str, lineage: str) -> list[Notice]:
    """Whether somebody else's backups are in the folder, too. Those that say no lineage may be the job's own."""
    others = [
        f"{name} of job {whose}, {f'environment {env}' if env else 'no environment'}"
        + (", another workspace" if (whose, env) == (job, environment) else "")
        for (whose, env, line), name in origins(objects, folder).items()
        if (env, line) != (environment, lineage) and ((whose, env) != (job, environment) or line)
    ]
    if not others:
        return []
    message = (
        f"the folder has backups that are not of this job: {'; '.join(others)}. vecrun gc of this job leaves them alone, but "
        "latest means the newest of all. Give each a folder of its own: to: {folder: …}"
    )
    return [Notice(code=SHARED, message=message, where=str(folder))]


def room_problems(objects: Objects, folder: BackupFolder, needed: int, *, shared: bool) -> list[Notice]:
    """Whether there is room for so many bytes; `shared`: most of them may be there already."""
    free = objects.free()
    if free is None or needed + SPARE <= free:
        return []
    needed += SPARE
    message = f"about {needed:,} bytes are needed, and {free:,} are free"
    if shared:
        message += "; files of earlier backups that did not change are not written again"
        return [Notice(code=LITTLE_ROOM, message=message, where=str(folder))]
    return [Notice(code=NO_ROOM, message=message, where=str(folder), blocking=True)]
