"""Backups that no rule keeps: which they are, and how they are removed.

A manifest goes first, behind a copy under another name that says which files are to follow, then the files that no other
manifest names, then that copy. Files are removed only if a manifest of vecrun named them, or a run of vecrun made them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from runner import crash
from runner.backups import manifest
from runner.backups.keeping import Kept, decide
from runner.backups.manifest import Backup, DamagedBackup, moment
from runner.errors import LockHeld, VecrunError
from runner.expiry.lease import leased
from runner.expiry.remains import AT_ONCE, moved
from runner.ledger import FINAL
from runner.lock import collection
from runner.objects.storage import Found, Objects
from runner.plan import (
    BackupFolder,
    BackUpPoints,
    BackUpTables,
    CheckBackup,
    CopyPoints,
    Keep,
    LoadTables,
    Plan,
    SealBackup,
    TruncateTables,
    VerifyPoints,
    loads,
)
from runner.settings import Settings, duration_seconds
from runner.state import States
from runner.sweeper import Sweeper
from runner.world import World

#: How old a file must be before it counts as left behind: whoever wrote it would have named it by then.
LEFT_BEHIND = timedelta(days=1)
_DATA = re.compile(r"data/[\w-]{16,128}\.parquet")
_TABLE = re.compile(r"([^/]+)_(\d{8}_\d{6})\.csv(\.tmp)?")
_LEAVING = re.compile(r"leaving_(\d{8}_\d{6})\.json")
_IN_BACKUP = re.compile(r"(\d{8}_\d{6})/")
#: Claims of ids, and what tried whether there is a right to write: of runs that were killed.
_CLAIM = re.compile(r"claim_\d{8}_\d{6}|probe_[^/]+")


@dataclass(frozen=True)
class OldBackup:
    """A backup that goes. `bytes`: of its files, those that others share included."""

    id: str
    form: str
    whole: bool
    rows: int
    bytes: int


@dataclass(frozen=True)
class OldBackups:
    """What goes of the backups of a job in one place, CONNECTION/FOLDER. `files`: those that no backup needs then, with
    what was left behind; `bytes`: of these. `kept`: id -> why it stays."""

    job: str
    place: str
    backups: tuple[OldBackup, ...]
    files: tuple[str, ...]
    bytes: int
    kept: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return not (self.backups or self.files)


@dataclass(frozen=True)
class _Needed:
    """What others need: ids of backups, runs whose backups must stay, places that are being written to."""

    ids: dict[str, str]
    runs: dict[str, str]
    written: set[str]


@dataclass
class _Folder:
    """What lies in a folder of backups. `leaving`: manifests of backups that are half removed; `parts`: what killed writes
    left, among the files, too."""

    backups: dict[str, Backup]
    leaving: dict[str, Backup]
    files: dict[str, Found]  # by key relative to the folder
    parts: frozenset[str] = frozenset()

    def missing(self, backup: Backup) -> list[str]:
        """What a listing says is amiss with the files of a backup."""
        found = list[str]()
        for file, size in backup.files.items():
            there = self.files.get(file)
            if there is None:
                found.append(f"{file} is missing")
            elif there.size != size:
                found.append(f"{file} has {there.size:,} bytes, {size:,} are expected")
        return found

    def named(self, but: Collection[str] = ()) -> set[str]:
        """Files that the manifests name, those of some backups aside."""
        return {file for name, backup in self.backups.items() if name not in but for file in backup.files}


def find(
    settings: Settings, ledger: Sweeper, states: States, now: datetime, only: str | None = None
) -> tuple[tuple[OldBackups, ...], list[str]]:
    """(what can go, why some was not looked at), of all jobs or of one. Changes nothing."""
    found, left = list[OldBackups](), list[str]()
    needed: _Needed | None = None
    for job, plan in _jobs(ledger, only):
        for place, rules in _rules(plan).items():
            if not any(keep is not None and any(keep.model_dump().values()) for keep in rules.values()):
                continue
            needed = needed or _needed(ledger, states, now)
            try:
                with World(settings, "read", plan.inline) as world:
                    if moved(plan, world, place.connection):
                        left.append(f"backups in {place} are not looked for: the connection points somewhere else now")
                        continue
                    there = _look(world.objects(place.connection), place.folder)
                mine = _mine(ledger, job, plan.lineage, there)
                one = _choose(ledger, job, mine, place, rules, there, needed, now)
                left += _left_alone(job, mine, plan.lineage, place, rules, there, now)
                if not one.empty:
                    found.append(one)
            except VecrunError as exc:
                left.append(f"backups in {place}: nothing is removed there: {exc}")
    return tuple(found), left


def remove(
    settings: Settings, ledger: Sweeper, states: States, shown: OldBackups, now: datetime, say: Callable[[str], None]
) -> tuple[OldBackups | None, list[str]]:
    """Remove what was shown, as far as nobody needs it meanwhile: (what was removed, why something was left)."""
    names = [f"job:{shown.job}", collection(shown.place)]
    try:
        with leased(ledger, names, settings.workspace.limits.lease_seconds):
            if ledger.unfinished(shown.job):
                return None, [f"backups in {shown.place}: a run of job {shown.job} is not finished"]
            found, left = find(settings, ledger, states, now, shown.job)
            still = next((item for item in found if item.place == shown.place), None)
            if still is None:
                return None, left
            wanted = {item.id for item in shown.backups}
            gone = tuple(item for item in still.backups if item.id in wanted)
            rest = [file for file in still.files if file in shown.files]
            plan = next(plan for job, plan in _jobs(ledger, shown.job))
            with World(settings, "write", plan.inline) as world:
                place = next(place for place in _rules(plan) if str(place) == shown.place)
                files, size = _remove(world.objects(place.connection), place.folder, [item.id for item in gone], rest)
            say(f"{shown.place}: done")
            return OldBackups(shown.job, shown.place, gone, tuple(files), size, still.kept), left
    except LockHeld as exc:
        return None, [f"backups in {shown.place}: {exc.detail}"]
    except VecrunError as exc:
        return None, [f"backups in {shown.place}: {exc}"]


# What goes ------------------------------------------------------------------------------------------------------------


def _jobs(ledger: Sweeper, only: str | None) -> Iterator[tuple[str, Plan]]:
    """Jobs that make backups and are not at it, each with the plan that was applied last."""
    seen = set[str]()
    for row in ledger.runs_of(only):
        job = row["job"]
        if job in seen or row["kind"] != "VectorBackup" or row["purpose"] != "apply" or row["status"] not in FINAL:
            continue
        seen.add(job)
        if not ledger.unfinished(job):
            yield job, _plan(ledger, row["run"])


def _plan(ledger: Sweeper, run: str) -> Plan:
    return loads(ledger.run(run)["plan"], f"run {run}")


def _rules(plan: Plan) -> dict[BackupFolder, dict[str, Keep | None]]:
    """Folder -> form of a backup -> rules."""
    found: dict[BackupFolder, dict[str, Keep | None]] = {}
    for step in plan.steps:
        if isinstance(step, BackUpTables):
            found.setdefault(step.into, {})["tables"] = step.keep
        elif isinstance(step, SealBackup):
            found.setdefault(step.into, {})["collections"] = step.keep
    return found


def _look(objects: Objects, folder: str) -> _Folder:
    """Every manifest and every file. DamagedBackup when a manifest cannot be read: what it names is not known then."""
    files = {item.key.removeprefix(f"{folder}/"): item for item in objects.list(folder)}
    parts = {item.key.removeprefix(f"{folder}/"): item for item in objects.unfinished(folder)}
    backups = {name: manifest.read(objects, folder, name) for name in manifest.ids(objects, folder)}
    leaving = {
        found[1]: manifest.parse(objects.read(f"{folder}/{file}"), file)
        for file in files
        if (found := _LEAVING.fullmatch(file)) and found[1] not in backups
    }
    for name, backup in backups.items():
        if backup.id != name:
            key = manifest.manifest_key(folder, name)
            raise DamagedBackup("The manifest of a backup is damaged", f"{key}: it is that of backup {backup.id}")
    return _Folder(backups, leaving, files | parts, frozenset(parts))


def _mine(ledger: Sweeper, job: str, lineage: str, there: _Folder) -> set[str]:
    """Ids of the backups of a job. `state mv` keeps the lineage and gives the runs to the new name: the ledger knows whose
    a run is by now, also when another job has got the old name. A run that it does not know is of the job that it names."""
    owners = {row["run"]: row["job"] for row in ledger.runs_of()}
    return {
        name for name, backup in there.backups.items()
        if backup.lineage == lineage and owners.get(backup.run, backup.job) == job
    }  # fmt: skip


def _left_alone(
    job: str, mine: set[str], lineage: str, place: BackupFolder, rules: dict[str, Keep | None], there: _Folder,
    now: datetime,
) -> list[str]:  # fmt: skip
    """Backups that the rules do not look at, and why; and those that count for none, because files are missing."""
    others: dict[str, list[str]] = {}
    found = list[str]()
    for name, backup in sorted(there.backups.items()):
        if (name not in mine and backup.job != job) or backup.form not in rules:
            others.setdefault(f"they are of {backup.origin}", []).append(name)
        elif not backup.lineage:
            others.setdefault("their manifests do not say which workspace and environment made them", []).append(name)
        elif backup.lineage != lineage:
            others.setdefault(f"they are of {backup.origin}, of another workspace or environment", []).append(name)
        elif name not in mine:
            others.setdefault("the job that made them has another name now", []).append(name)
        elif manifest.ahead(name, now):
            others.setdefault("their time is in the future", []).append(name)
        elif bad := there.missing(backup):
            more = f" and {len(bad) - 3:,} more" if len(bad) > 3 else ""
            found.append(f"backup {name} in {place} is damaged and counts for no rule: {'; '.join(bad[:3])}{more}")
    for why, names in others.items():
        shown = ", ".join(names[-5:]) + (f" and {len(names) - 5:,} older ones" if len(names) > 5 else "")
        found.append(f"backups in {place} are left alone, {why}: {shown}")
    return found


def _choose(
    ledger: Sweeper, job: str, ids: set[str], place: BackupFolder, rules: dict[str, Keep | None], there: _Folder,
    needed: _Needed, now: datetime,
) -> OldBackups:  # fmt: skip
    kept: dict[str, tuple[str, ...]] = {}
    for form, keep in rules.items():
        mine = [item for name, item in there.backups.items() if name in ids and item.form == form]
        kept |= decide((Kept.of(item, damaged=bool(there.missing(item))) for item in mine), keep, now)
    for name in kept:
        backup = there.backups[name]
        for why in (needed.ids.get(name), needed.runs.get(backup.run)):
            if why:
                kept[name] += (why,)
    gone = sorted(name for name, why in kept.items() if not why)
    named, files = there.named(gone), set[str]()
    for backup in [there.backups[name] for name in gone] + [*there.leaving.values()]:
        files |= {file for file in backup.files if file not in named and file in there.files and _ours(file)}
    files |= {file for file in there.files if _LEAVING.fullmatch(file)}
    if str(place) not in needed.written:
        known = named | {file for item in (*there.backups.values(), *there.leaving.values()) for file in item.files}
        old = {file for file, item in there.files.items() if item.modified < now - LEFT_BEHIND} - known
        made = _made_by_runs(ledger, job, place)
        files |= {file for file in old if _DATA.fullmatch(file) or _CLAIM.fullmatch(file) or made(file)}
        files |= old & there.parts
    return OldBackups(
        job, str(place),
        tuple(_old(there.backups[name], there) for name in gone), tuple(sorted(files)),
        sum(there.files[file].size for file in files),
        {name: why for name, why in kept.items() if why},
    )  # fmt: skip


def _old(backup: Backup, there: _Folder) -> OldBackup:
    whole = backup.whole and not there.missing(backup)
    return OldBackup(backup.id, backup.form, whole, backup.rows, sum(backup.files.values()))


def _ours(file: str) -> bool:
    """Whether vecrun gives files such names: a manifest that somebody wrote by hand names nothing else."""
    return bool(_DATA.fullmatch(file) or ((found := _TABLE.fullmatch(file)) and not found[3]))


def _made_by_runs(ledger: Sweeper, job: str, place: BackupFolder) -> Callable[[str], bool]:
    """Whether a CSV file that no manifest names was made by a run of the job: it has the name of one of its tables, and a
    time at which that run was at work. Files that another program put there stay."""
    spans: list[tuple[datetime, datetime, set[str]]] = []
    for row in ledger.runs_of(job):
        if row["kind"] == "VectorBackup" and row["purpose"] == "apply" and row["started"] and row["finished"]:
            steps = [step for step in _plan(ledger, row["run"]).steps if isinstance(step, BackUpTables)]
            tables = {table for step in steps if step.into == place for table in step.tables}
            tables |= {table.rpartition(".")[2] for table in tables}
            began, ended = (datetime.fromisoformat(row[key]) for key in ("started", "finished"))
            spans.append((began - timedelta(seconds=2), ended + timedelta(minutes=1), tables))

    def made(file: str) -> bool:
        found = _TABLE.fullmatch(file)
        if found is None:
            return False
        try:
            at = moment(found[2])
        except ValueError:
            return False
        return any(began <= at <= ended and found[1] in tables for began, ended, tables in spans)

    return made


def _needed(ledger: Sweeper, states: States, now: datetime) -> _Needed:
    """What runs that are not finished, and rollbacks that can still be, need."""
    needed = _Needed({}, {}, set())
    for row in ledger.runs_of():
        if row["status"] not in FINAL:
            _of_unfinished(row, _plan(ledger, row["run"]), needed)
        elif row["kind"] == "VectorBackup" and row["status"] == "completed" and row["purpose"] == "apply":
            plan = _plan(ledger, row["run"])
            if any(isinstance(step, TruncateTables) for step in plan.steps):
                until = _until(states, row, plan)
                if until is not None and until > now:
                    needed.runs[row["run"]] = f"its tables can be filled from it again until {until:%Y-%m-%d}"
        elif row["kind"] == "VectorRestore" and row["status"] == "completed" and row["purpose"] == "apply":
            plan = _plan(ledger, row["run"])
            until = _until(states, row, plan)
            if until is not None and until > now:
                why = f"the restore by run {row['run']} can be rolled back until {until:%Y-%m-%d}"
                needed.ids.update(dict.fromkeys(_read_by(plan), why))
    return needed


def _of_unfinished(row: dict[str, Any], plan: Plan, needed: _Needed) -> None:
    why = f"run {row['run']} of job {row['job']} is not finished and needs it"
    for step in plan.steps:
        if isinstance(step, BackUpTables | BackUpPoints | SealBackup):
            needed.written.add(str(step.into))
        if isinstance(step, BackUpPoints | SealBackup) and step.previous:
            needed.ids[step.previous] = why
        if isinstance(step, LoadTables) and step.of_run:
            needed.runs[step.of_run] = why
    needed.ids.update(dict.fromkeys(_read_by(plan), why))
    needed.runs[row["run"]] = why


def _read_by(plan: Plan) -> set[str]:
    """Backups that a restore reads."""
    found = {step.backup for step in plan.steps if isinstance(step, CheckBackup | LoadTables) and step.backup}
    for step in plan.steps:
        if isinstance(step, CopyPoints | VerifyPoints) and (named := _IN_BACKUP.match(step.source.collection)):
            found.add(named[1])
    return found


def _until(states: States, row: dict[str, Any], plan: Plan) -> datetime | None:
    """Until when a run can be rolled back; None when it cannot any more."""
    state = states.load(row["job"])
    if row["run"] in state.forgotten:
        return None
    for item in state.applied:
        if item.run == row["run"]:
            return datetime.fromisoformat(item.expires)
    return datetime.fromisoformat(row["finished"] or row["created"]) + timedelta(
        seconds=duration_seconds(plan.retention)
    )


# And how --------------------------------------------------------------------------------------------------------------


def _remove(objects: Objects, folder: str, backups: list[str], rest: list[str]) -> tuple[list[str], int]:
    """Remove these backups and files, as far as nothing else names the files: (files that went, their bytes)."""
    there = _look(objects, folder)
    gone = list[str]()

    def delete(file: str) -> None:
        if file in there.parts:
            objects.discard(f"{folder}/{file}")
        else:
            objects.delete(f"{folder}/{file}")
        crash.point("gc", "backup file")

    def delete_files(files: Collection[str]) -> None:
        mine = sorted(file for file in files if file in there.files and file not in there.named())
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="backups") as pool:
            for _done in pool.map(delete, mine):
                pass
        gone.extend(mine)

    for name in backups:
        key, leaving = manifest.manifest_key(folder, name), f"{folder}/leaving_{name}.json"
        objects.copy(key, leaving)
        crash.point("gc", "backup")
        objects.delete(key)
        crash.point("gc", "manifest")
        backup = there.backups.pop(name)
        delete_files([file for file in backup.files if _ours(file)])
        objects.delete(leaving)
    delete_files([file for file in rest if not _LEAVING.fullmatch(file) and file not in gone])
    for file in rest:
        if _LEAVING.fullmatch(file):
            objects.delete(f"{folder}/{file}")
    return gone, sum(there.files[file].size for file in gone)
