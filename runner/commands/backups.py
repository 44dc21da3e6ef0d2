"""`backup list` and `backup check`: what lies in a folder of backups, and whether it would restore. And what `verify` says
of a job that made a backup, or restored tables from one.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner import planner
from runner.backups import manifest
from runner.backups.check import Checked
from runner.backups.check import check as compare
from runner.commands.context import Context
from runner.errors import NotFound, VecrunError
from runner.objects import FolderConfig
from runner.objects.storage import Objects, ReadOnlyObjects, open_objects
from runner.plan import BackUpTables, LoadTables, Plan, SealBackup, loads
from runner.world import World

_MANIFEST = re.compile(r"backup_(\d{8}_\d{6})\.json")


@dataclass(frozen=True)
class Listed:
    """A backup as its manifest tells it. `whole`: nothing of what was asked for is missing. `problem`: why the manifest
    cannot be read; nothing else is known then."""

    id: str
    time: str
    form: str = ""
    rows: int = 0
    bytes: int = 0
    files: int = 0
    whole: bool = False
    job: str = ""
    run: str = ""
    problem: str = ""


@dataclass(frozen=True)
class BackupsChecked:
    """Backups of one place, compared with their manifests."""

    place: str
    ok: bool
    backups: tuple[Checked, ...] = field(default=())


def list_backups(open_workspace: Callable[[], Context], where: str) -> list[Listed]:
    """All backups at a place, the newest first. NotFound when there is none. See `check_backups` for `where`."""
    with _opened(open_workspace, where) as (objects, folder, shown, only):
        found = [_listed(objects, folder, name) for name in reversed(_ids(objects, folder, shown))]
        return [item for item in found if only in ("", item.id)]


def check_backups(
    open_workspace: Callable[[], Context], where: str, *, backup: str = "", every: bool = False, read_data: bool = False,
    subset: tuple[int, int] | None = None, say: Callable[[str], None] = lambda _line: None,
    stop: threading.Event | None = None,
) -> BackupsChecked:  # fmt: skip
    """Compare the newest backup at a place, one of them, or `every` one with its manifest.

    `where`: a folder of backups, or the manifest of one, in the file system; CONNECTION:FOLDER; or a job that made backups.
    A workspace is opened for the latter two only. NotFound when there is no backup.
    """
    with _opened(open_workspace, where) as (objects, folder, shown, only):
        ids = _ids(objects, folder, shown)
        wanted = backup or only
        if wanted and wanted not in ids:
            raise NotFound("No such backup", f"{wanted} in {shown}; the newest there are: {', '.join(ids[-5:])}")
        newest = next((name for name in reversed(ids) if not manifest.ahead(name)), ids[-1])
        chosen = ids[::-1] if every and not wanted else [wanted or newest]
        found = []
        for name in chosen:
            try:
                one = manifest.read(objects, folder, name)
            except manifest.DamagedBackup as exc:
                told = exc.hint if "newer" in exc.summary else ""
                problem = ": ".join(part for part in (exc.summary, exc.detail.removeprefix(f"{folder}/"), told) if part)
                found.append(Checked(name, problem=problem, problems=(problem,)))
                continue
            found.append(
                compare(objects, folder, one, read_data=read_data or bool(subset), subset=subset, say=say, stop=stop)
            )
        return BackupsChecked(shown, all(item.ok for item in found), tuple(found))


def backups_of(
    plan: Plan, run: str, world: World, *, read_data: bool, stop: threading.Event | None
) -> list[dict[str, Any]]:
    """Each backup that a run made, compared with its manifest, as `verify` tells it."""
    found = []
    for step in plan.steps:
        if not isinstance(step, BackUpTables | SealBackup):
            continue
        objects, folder = world.objects(step.into.connection), step.into.folder
        source = (
            step.connection if isinstance(step, BackUpTables) else next((one.connection for one in step.sources), "")
        )
        told: dict[str, Any] = {"from": source, "to": str(step.into), "mode": "backup", "compared": 0}
        try:
            one = manifest.of_run(objects, folder, run)
            if one is None:
                told |= {"differences": [f"the backup of run {run} is not there"]}
            else:
                checked = compare(objects, folder, one, read_data=read_data, stop=stop)
                compared = checked.rows if read_data else 0
                told |= {"backup": one.id, "compared": compared, "differences": list(checked.problems)}
        except manifest.DamagedBackup as exc:
            told |= {"differences": [str(exc)]}
        found.append(told | {"equal": 0 if told["differences"] else told["compared"]})
    return found


def tables_of(plan: Plan, run: str, world: World) -> list[dict[str, Any]]:
    """Each table that a run filled from a backup, compared with it, as `verify` tells it."""
    found = []
    for step in plan.steps:
        if isinstance(step, LoadTables):
            for here, rows, problem in _tables(step, run, world):
                found.append(
                    {"from": f"{step.source}, backup {step.backup}", "to": f"{step.connection}/{here}", "mode": "tables",
                     "compared": rows, "equal": 0 if problem else rows, "differences": [problem] if problem else []}
                )  # fmt: skip
    return found


def _tables(step: LoadTables, run: str, world: World) -> Iterator[tuple[str, int, str]]:
    """(table here, rows compared, what is wrong)"""
    from runner.documents import catalog, copying, loading

    postgres = world.postgres(step.connection)
    backup = manifest.read(world.objects(step.source.connection), step.source.folder, step.backup)
    made = {item.table: item for item in backup.tables}
    loaded = {item.table: item for item in loading.done(postgres, step, run)}
    for table, here in step.tables:
        expected, then = made[table], loaded.get(here)
        with postgres.connect() as connection:
            shape = catalog.shape(connection, *postgres.split(here))
            if shape is None or expected.shape is None:
                yield here, 0, "the table is not there"
            elif step.existing == "merge":  # which rows are the backup's was known to the load only
                rows = catalog.rows(connection, shape)
                same = then is not None and then.versions == copying.versions(connection, shape)
                yield here, rows, "" if same else "it was written to since, or the record of the load is gone"
            else:
                tally = copying.tally(connection, expected.shape, shape.sql)
                if tally.rows != expected.rows:
                    yield here, tally.rows, f"it holds {tally.rows:,} rows, the backup {expected.rows:,}"
                else:
                    same = tally.rows_digest == expected.rows_digest
                    yield here, tally.rows, "" if same else "its rows are not those of the backup"


def _ids(objects: Objects, folder: str, shown: str) -> list[str]:
    ids = manifest.ids(objects, folder)
    if not ids:
        raise NotFound("There is no backup", f"no backup_*.json in {shown}")
    return ids


def _near(path: Path) -> str:
    """Where backups are below a folder, if that is what was meant."""
    found = {str(item.parent) for depth in ("*", "*/*") for item in path.glob(f"{depth}/backup_*.json")}
    return f"There are some in {', '.join(sorted(found)[:5])}" if found else ""


def _listed(objects: Objects, folder: str, name: str) -> Listed:
    try:
        one = manifest.read(objects, folder, name)
    except (manifest.DamagedBackup, NotFound) as exc:
        return Listed(name, "", problem=str(exc))
    size = sum(one.files.values())
    return Listed(
        name, manifest.moment(name).isoformat(), one.form, one.rows, size, len(one.files), one.whole, one.job, one.run
    )


@contextmanager
def _opened(open_workspace: Callable[[], Context], where: str) -> Iterator[tuple[Objects, str, str, str]]:
    """(storage, folder in it, the place in words, the backup that is meant or "")."""
    path = Path(where)
    if path.exists():
        only = ""
        if not path.is_dir():
            named = _MANIFEST.fullmatch(path.name)
            if named is None:
                raise NotFound("This is no backup", f"{where} is not called backup_YYYYMMDD_HHMMSS.json")
            only, path = named[1], path.parent
        if not any(path.glob("backup_*.json")):
            raise NotFound("There is no backup", f"no backup_*.json in {path}", _near(path))
        full = path.resolve()
        with open_objects(FolderConfig(type="folder", path=str(full.parent))) as objects:
            yield ReadOnlyObjects(objects), full.name, str(path), only
        return
    connection, colon, folder = where.partition(":")
    if not colon and ("/" in where or where.endswith(".json")):
        raise NotFound("There is nothing", f"{where} does not exist")
    if colon and not folder.strip("/"):
        raise NotFound("There is nothing", f"{where} names no folder: write CONNECTION:FOLDER")
    context = open_workspace()
    if colon:
        with World(context.settings, "read") as world:
            yield world.objects(connection), folder.strip("/"), where, ""
        return
    with context.ledger(reading=True) as ledger:  # also of a run that failed, or was rolled back: its backup stays
        newest = next((row["run"] for row in ledger.runs_of(where) if row["purpose"] == "apply"), None)
        plan = loads(ledger.run(newest)["plan"], f"run {newest}") if newest is not None else None
    into = [step.into for step in plan.steps if isinstance(step, BackUpTables | SealBackup)] if plan else []
    if plan is None or not into:
        hint = "Give a folder, CONNECTION:FOLDER, or a job of kind VectorBackup that was applied"
        raise NotFound("There is nothing", f"{where} is no folder and no job that made backups", hint)
    with World(context.settings, "read", plan.inline) as world:
        if elsewhere := planner.moved_connections(plan, world):
            raise VecrunError(
                "The job was applied somewhere else than the workspace points to now", "\n".join(elsewhere)
            )
        yield world.objects(into[0].connection), into[0].folder, str(into[0]), ""
