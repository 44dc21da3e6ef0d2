"""What must hold of backups, and of what is backed up, emptied and restored: `moment`, whenever a process has died;
`ended`, once a run has ended; `remember`, after one that nobody disturbed. All run in processes of their own.

CSV is read back by PostgreSQL itself. What a backup may hold is every state that the source was ever in.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg

from runner.backups import manifest
from runner.backups.check import check
from runner.backups.store import BackupStore
from runner.commands import open_context
from runner.errors import VecrunError
from runner.objects.storage import Objects
from tests.faults.archive import (
    COLLECTIONS,
    NOTES,
    POINTS,
    Scene,
    digest_of,
    left_over,
    load,
    picture,
    points_of,
    rows_of,
)
from tests.faults.scene import JOB
from tests.faults.truth import Counts


def remember(directory: str) -> list[str]:
    """After a run that nobody disturbed. What is wrong with it."""
    scene = load(directory)
    before, after = scene.read("before.json"), picture(scene)
    scene.write("after.json", after)
    wanted: dict[str, Any] = {name: before[name] for name in before if name != "there"}
    states, chore = scene.read("states.json"), scene.chore
    if chore.how == "truncate":
        wanted |= {COLLECTIONS: {}, POINTS: {}}
    wrong = []
    if chore.action == "restore" and chore.tables:
        mine = {key for key in after[POINTS] if key not in before[POINTS] or after[POINTS][key] != before[POINTS][key]}
        kept = {key: row for key, row in after[POINTS].items() if int(key[1:]) < scene.size}
        if digest_of(kept) != states[0][POINTS] or digest_of(after[COLLECTIONS]) != states[0][COLLECTIONS]:
            wrong.append("the restored rows are not those of the backup")
        if len(after[POINTS]) - len(kept) != (20 if chore.how == "merge" else 0):
            wrong.append(f"{len(after[POINTS]) - len(kept)} rows are there that the backup does not have")
        if not mine or after[NOTES] != before[NOTES]:
            wrong.append("nothing was restored, or a table beside it changed")
        return wrong
    if chore.action == "restore":
        wanted["to"] = before["kb"]
    return [f"{name} is not as it should be after the run" for name in wanted if after[name] != wanted[name]]


class Archive:
    """The backups of a scene, each file read once as long as it stays as it is."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.findings = scene, list[str]()
        self.states = scene.read("states.json")
        self.whole = list[manifest.Backup]()
        self.files = set[str]()
        path = scene.directory / "seen.json"
        self.seen: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        with scene.objects() as objects:
            for backup in manifest.ids(objects, scene.folder):
                self._look(objects, backup)
        if scene.chore.tables and scene.place.is_dir():
            for path in scene.place.glob("*.csv"):
                self._csv(path)
        scene.write("seen.json", self.seen)

    def _look(self, objects: Objects, name: str) -> None:
        try:
            backup = manifest.read(objects, self.scene.folder, name)
        except VecrunError as exc:
            self.findings.append(f"manifest {name}: {exc}")
            return
        self.files |= set(backup.files)
        found = check(objects, self.scene.folder, backup, read_data=True)
        if not found.ok:
            self.findings += [f"backup {name}: {text}" for text in found.problems]
            return
        self.whole.append(backup)
        if self.scene.chore.tables:
            held = {item.table: self._csv(self.scene.place / item.file) for item in backup.tables}
        else:
            points = points_of(BackupStore(objects, self.scene.folder), f"{name}/kb")
            held = {"kb": digest_of(points or {})}
        if held not in self.states:
            self.findings.append(f"backup {name} holds what was never there")

    def _csv(self, path: Path) -> str:
        """Digest of the rows of a file, as PostgreSQL reads them."""
        found, table = path.stat(), path.name[: -len("_20261120_000000.csv")]
        key = f"{path.name} {found.st_mtime_ns} {found.st_size}"
        if key not in self.seen:
            with psycopg.connect(self.scene.app) as db, db.cursor() as cursor:
                cursor.execute(f"CREATE TEMPORARY TABLE back (LIKE {table}) ON COMMIT DROP")
                with cursor.copy("COPY back FROM STDIN (FORMAT csv, HEADER)") as copy:
                    copy.write(path.read_bytes())
                self.seen[key] = digest_of(rows_of(db, "back"))
                db.rollback()
            if self.seen[key] not in [state[table] for state in self.states]:
                self.findings.append(f"{path.name} holds rows that were never there")
        return self.seen[key]

    def holds(self, before: dict[str, Any]) -> bool:
        """Whether a whole backup has the tables of then."""
        wanted = {name: digest_of(before[name]) for name in (COLLECTIONS, POINTS)}
        return any(
            wanted == {item.table: self._csv(self.scene.place / item.file) for item in one.tables} for one in self.whole
        )


def moment(directory: str) -> dict[str, Any]:
    """Whenever a process has died."""
    scene = load(directory)
    before, now, archive = scene.read("before.json"), picture(scene), Archive(scene)
    findings, chore = archive.findings, scene.chore
    after = scene.read("after.json") if (scene.directory / "after.json").exists() else before
    if chore.tables:
        worlds = [{name: world[name] for name in (COLLECTIONS, POINTS, NOTES)} for world in (before, after)]
        if chore.how in ("keep", "truncate"):  # what is backed up changes from try to try
            worlds = [worlds[0], worlds[0] | ({COLLECTIONS: {}, POINTS: {}} if chore.how == "truncate" else {})]
        if (held := {name: now[name] for name in worlds[0]}) not in worlds:
            counts = {name: len(rows) for name, rows in held.items()}
            findings.append(f"the tables are neither as before nor as after: {counts}")
        if chore.how == "truncate" and not now[POINTS] and not archive.holds(before):
            findings.append("a table is empty, and no whole backup has its rows")
    elif now["kb"] != before["kb"]:
        findings.append("the source has changed")
    return {"findings": findings}


def ended(directory: str, after: bool, resumed: bool) -> dict[str, Any]:
    """Once a run has come to its end. `resumed`: it went on where it had died; nothing may be left lying about then."""
    scene, counts = load(directory), Counts()
    before, now, archive = scene.read("before.json"), picture(scene), Archive(scene)
    wanted, findings, chore = before, archive.findings, scene.chore
    if after and chore.action == "restore":
        wanted = scene.read("after.json")
    elif after and chore.how == "truncate":
        wanted = before | {COLLECTIONS: {}, POINTS: {}}
    for name in (name for name in wanted if name != "there"):
        one, other = wanted[name] or {}, now[name] or {}
        counts.compared += len(one)
        counts.lost += len([key for key in one if key not in other])
        counts.doubled += len([key for key in other if key not in one])
        changed = [key for key in one if key in other and one[key] != other[key]]
        counts.changed += len(changed)
        if one != other:
            counts.examples.append(f"{name}: {len(other)} instead of {len(one)}, {len(changed)} of them changed")
    # what a rollback needs is there after a restore; a rollback that filled tables leaves its record until `vecrun gc`
    ours = "vecrun_" if after and chore.action == "restore" else "vecrun_load_" if chore.how == "truncate" else "none"
    there, wished = ([name for name in world["there"] if ours not in name] for world in (now, wanted))
    if there != wished:
        findings.append(f"there are {there}, and there should be {wished}")
    if after and chore.action == "backup":
        newest = archive.whole[-1:]
        if chore.tables and not archive.holds(before):
            findings.append("no whole backup has the rows")
        elif not newest or newest[0].rows != sum(len(before[name]) for name in archive.states[0]):
            findings.append("the newest backup does not hold what is there")
    if resumed:
        findings += [
            f"{name} is left over" for name in left_over(scene, archive.files) if name not in scene.read("old.json")
        ]
    status = open_context(scene.directory).states.load(JOB).status
    if status not in (("applied",) if after or chore.again else ("new", "rolled_back")):
        findings.append(f"the state document says {status}")
    return {"counts": asdict(counts), "findings": findings}
