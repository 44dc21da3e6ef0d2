"""Tables out of a backup, and back to what they were before.

The whole backup of each table is read and compared with the manifest before the first write, and once more while it is
loaded: the storage may have changed in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from runner.backups import manifest
from runner.backups.manifest import Backup, DamagedBackup, TableFile
from runner.errors import NotFound, Permanent, PlanRefused
from runner.executor.flow import Stopped
from runner.plan import LoadTables, TruncateTables, UnloadTables, loads

if TYPE_CHECKING:
    from runner.documents.fitting import Filling
    from runner.documents.loaded import Loaded
    from runner.documents.postgres import Postgres
    from runner.executor import Run


def load(run: Run, step: LoadTables) -> dict[str, Any]:
    """Fill the tables. A dry run checks the backup, the tables and the rights, and writes nothing."""
    from runner.documents import loading

    postgres = run.world.postgres(step.connection)
    if not run.dry and (loaded := loading.done(postgres, step, run.run)):
        return _result(step, loaded[0].backup, loaded)
    if step.of_run and not _emptied(run, step, postgres):
        run.say("the tables were not emptied by that run, so there is nothing to fill")
        return _result(step, "", ())
    backup = backup_of(run, step)
    fillings = _fillings(run, step, backup)
    # what is told at once comes before what takes long
    if loaded := loading.look(postgres, step, run.run, fillings):
        return _result(step, backup.id, loaded)
    for (table, _here), filling in zip(step.tables, fillings, strict=True):
        run.say(f"checking the backup of {table}")
        for _piece in filling.pieces():
            pass
    if run.dry:
        return _result(step, backup.id, ())
    loaded = loading.load(postgres, step, run.run, fillings, lambda: _guard(run), run.say, partial(_go_on, run))
    for item in loaded:
        details = {"table": item.table, "rows": item.rows, "replaced": item.replaced, "backup": backup.id}
        run.ledger.write_log(run.run, "info", f"loaded {item.qualified}", **details)
    return _result(step, backup.id, loaded)


def _emptied(run: Run, step: LoadTables, postgres: Postgres) -> bool:
    """Whether the run that is rolled back emptied the tables: its step says so, or a transaction that it noted."""
    from runner.documents import truncating

    plan = loads(run.ledger.run(step.of_run)["plan"], step.of_run)
    for one, row in zip(plan.steps, run.ledger.steps_of(step.of_run), strict=True):
        if isinstance(one, TruncateTables) and row["status"] == "done":
            return True
    noted = [line["details"] for line in run.ledger.read_log(step.of_run)]
    outcomes = {
        truncating.outcome(postgres, item["transaction"])
        for item in noted
        if item.get("step") == "truncate_tables" and "transaction" in item
    }
    if outcomes & {"committed", "in progress"}:
        return True
    return "" in outcomes and _empty_now(run, step, postgres)


def _empty_now(run: Run, step: LoadTables, postgres: Postgres) -> bool:
    """Whether a table that had rows in the backup has none: for a server that does not know what became of a transaction."""
    from runner.documents import catalog

    backup = backup_of(run, step)
    with postgres.connect() as connection:
        for table, here in step.tables:
            shape = catalog.shape(connection, *postgres.split(here))
            if _table(backup, table).rows and shape is not None and not catalog.rows(connection, shape):
                return True
    return False


def unload(run: Run, step: UnloadTables) -> dict[str, Any]:
    """Undo what the run that is rolled back has loaded."""
    from runner.documents import unloading

    if run.dry:
        return {"tables": [], "rows": 0}
    postgres = run.world.postgres(step.of.connection)
    loaded = unloading.unload(postgres, step.of, run.plan.of_run or run.run, lambda: _guard(run))
    for item in loaded:
        details = {"table": item.table, "rows": item.before, "removed": item.made}
        run.ledger.write_log(run.run, "info", f"brought back {item.qualified}", **details)
    tables = [{"table": item.table, "rows": item.before, "removed": item.made} for item in loaded]
    return {"tables": tables, "rows": sum(item.before for item in loaded)}


def compare(run: Run, step: LoadTables) -> dict[str, str]:
    """Tables that are not what the backup has any more, with what differs; the table's columns have to be the backup's."""
    from runner.documents import loading

    fillings = _fillings(run, step, backup_of(run, step))
    return loading.differences(run.world.postgres(step.connection), step, fillings, partial(_go_on, run))


def backup_of(run: Run, step: LoadTables) -> Backup:
    """The backup that the plan means. NotFound; DamagedBackup; PlanRefused when it is another one by now."""
    objects, source = run.world.objects(step.source.connection), step.source
    if step.of_run:
        found = manifest.of_run(objects, source.folder, step.of_run)
        if found is None:
            raise NotFound(
                "The backup is not there any more",
                f"run {step.of_run} made one in {source}",
                f"vecrun backup list {source.connection}:{source.folder}",
            )
        return found
    found = manifest.read(objects, source.folder, step.backup)
    if found.digest != step.manifest:
        raise PlanRefused(
            "The backup is another one than the plan was made for", f"{source}, backup {step.backup}", "Plan again"
        )
    return found


def _table(backup: Backup, table: str) -> TableFile:
    """A table of the backup that can be restored."""
    found = next((item for item in backup.tables if item.table == table), None)
    if found is None:
        there = ", ".join(item.table for item in backup.tables) or f"none: it is one of {backup.form}"
        raise NotFound("The backup does not have this table", f"backup {backup.id}: {table}; tables in it: {there}")
    if found.error or found.shape is None:
        raise Permanent(
            "The backup of this table failed", f"backup {backup.id}: {table}: {found.error}", "Take an earlier backup"
        )
    return found


def _fillings(run: Run, step: LoadTables, backup: Backup) -> list[Filling]:
    from runner.documents.fitting import Filling

    found = []
    for table, here in step.tables:
        item = _table(backup, table)
        assert item.shape is not None
        pieces = partial(_pieces, run, step, item)
        found.append(Filling(backup.id, item.shape, here, item.rows, item.rows_digest, pieces))
    return found


def _pieces(run: Run, step: LoadTables, item: TableFile) -> Iterator[bytes]:
    """The file of a table. DamagedBackup at its end, or when it has more than it should, or is not there."""
    key, found, size = step.source.key(item.file), hashlib.sha256(), 0
    try:
        for piece in run.world.objects(step.source.connection).pieces(key):
            _go_on(run)
            found.update(piece)
            size += len(piece)
            if size > item.bytes:
                break
            yield piece
    except NotFound as exc:
        raise _damaged(key, "it is not there") from exc
    if size != item.bytes:
        more = "more than" if size > item.bytes else f"{size:,} of"
        raise _damaged(key, f"it has {more} {item.bytes:,} bytes")
    if found.hexdigest() != item.sha256:
        raise _damaged(key, "its content does not match its checksum")


def _damaged(key: str, what: str) -> DamagedBackup:
    return DamagedBackup(
        "A file of the backup is damaged", f"{key}: {what}", "Take another backup, or a copy of the file"
    )


def _go_on(run: Run) -> None:
    if run.stop.is_set():
        raise Stopped


def _guard(run: Run) -> AbstractContextManager[object]:
    """Held over the commit: nobody else can take over the run meanwhile."""
    return run.ledger.guarded(run.lease)


def _result(step: LoadTables, backup: str, loaded: tuple[Loaded, ...]) -> dict[str, Any]:
    """Tables in the order of the step."""
    found = {item.table: item for item in loaded}
    tables = [
        {"table": here, "rows": found[here].rows, "replaced": found[here].replaced}
        for _table, here in step.tables
        if here in found
    ]
    return {"backup": backup, "tables": tables, "rows": sum(item.rows for item in loaded)}
