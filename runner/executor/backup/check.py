"""A backup against its manifest, before anything is written out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runner import crash
from runner.backups import manifest
from runner.backups.check import Checked
from runner.backups.check import check as compare
from runner.backups.manifest import DamagedBackup
from runner.errors import Interrupted, PlanRefused
from runner.executor.flow import Stopped, retried
from runner.plan import BackupFolder, CheckBackup

if TYPE_CHECKING:
    from runner.executor import Run

#: Problems that an error names.
_TOLD = 10


def check(run: Run, step: CheckBackup) -> dict[str, Any]:
    """Read every byte of the parts that the step names. PlanRefused when it is another backup than the plan is about,
    DamagedBackup with all that is amiss."""
    objects, folder = run.world.objects(step.source.connection), step.source.folder
    backup = retried(lambda: manifest.read(objects, folder, step.backup), run.limits, run.stop)
    if backup.digest != step.manifest:
        raise PlanRefused(
            "The backup is another one than the plan was made for",
            f"{manifest.manifest_key(folder, step.backup)} has another digest than it had then",
            "Plan again",
        )
    try:
        found = compare(
            objects, folder, backup, read_data=True, names=step.names, say=run.say, stop=run.stop,
            again=lambda action: retried(action, run.limits, run.stop),
        )  # fmt: skip
    except Interrupted as exc:
        raise Stopped from exc
    refuse_damaged(found, step.source)
    crash.point("check_backup", "read")
    return {"files": found.files, "bytes": found.bytes, "rows": found.rows}


def refuse_damaged(found: Checked, where: BackupFolder) -> None:
    """DamagedBackup when anything is amiss."""
    if found.ok:
        return
    more = len(found.problems) - _TOLD
    told = [*found.problems[:_TOLD], *([f"and {more:,} more"] if more > 0 else [])]
    raise DamagedBackup(
        "The backup is damaged",
        "\n".join([f"{where}, backup {found.backup}", *told]),
        f"Nothing was written out of it. Take another backup: vecrun backup list {where.connection}:{where.folder}",
    )
