"""Tables into CSV files, and emptied once these are known to be whole.

Each attempt is a backup of its own, with an id that the run's log has before the first byte is written: a repetition finds
what a killed process left, takes a whole backup as it is, and removes files without a manifest.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runner import __version__, crash
from runner.backups import log, manifest
from runner.backups.manifest import Backup, DamagedBackup, TableFile
from runner.clauses.backups import SPARE
from runner.documents import catalog, copying, truncating
from runner.errors import ItemsFailed, NotFound, Permanent, Transient, VecrunError
from runner.executor.flow import Stopped
from runner.lock import now
from runner.objects.storage import Objects
from runner.plan import BackUpTables, TruncateTables

if TYPE_CHECKING:
    from runner.documents.postgres import Connection, Postgres
    from runner.executor import Run

#: Tables that are copied at once.
_THREADS = 3


def back_up(run: Run, step: BackUpTables) -> dict[str, Any]:
    """Write, read back, and say in the manifest what is there. ItemsFailed when a table failed; the others are kept."""
    postgres, objects = run.world.postgres(step.connection), run.world.objects(step.into.connection)
    folder = step.into.folder
    if not run.dry and (made := _before(run, step, objects)) is not None and not _outdated(run, postgres, made):
        return _told(run, step, made, objects)
    began = now()
    with copying.snapshot(postgres, step.tables) as shared:
        _refuse_too_small(run, objects, step, shared)
        backup = manifest.reserve(objects, folder, run.run)
        if not run.dry:
            run.ledger.write_log(run.run, "info", f"backup {backup} begins", step=step.type, backup=backup)
        files = _Attempt(run, step, postgres, objects, shared, backup).files()
    made = Backup(
        tool_version=__version__, id=backup, job=run.plan.job, run=run.run, environment=run.plan.environment,
        lineage=run.plan.lineage, form="tables", began=began, finished=now(),
        source=f"{shared.server}, {postgres.shown}", tables=tuple(files),
    ).sealed()  # fmt: skip
    failed = [item for item in files if item.error]
    if not run.dry:
        try:
            made = manifest.write(objects, folder, made)
            crash.point(step.type, "manifest")
        except VecrunError:
            if not failed:  # else it is what failed before that has to be told
                raise
    result = _told(run, step, made, objects)
    if failed:
        kept = f"The others are kept in {step.into}. " if len(failed) < len(files) else ""
        raise ItemsFailed(
            f"{len(failed)} of {len(files)} tables could not be backed up",
            "\n".join(f"{item.table}: {item.error}" for item in failed),
            f"{kept}Mend the cause, then: vecrun resume {run.plan.job}",
        )
    return result


def _before(run: Run, step: BackUpTables, objects: Objects) -> Backup | None:
    """The whole backup of an earlier attempt of this run. What others left without a manifest is removed."""
    for line in reversed(run.ledger.read_log(run.run)):
        if line["details"].get("step") != step.type or not (backup := line["details"].get("backup")):
            continue
        try:
            made = manifest.read(objects, step.into.folder, backup)
            if made.whole and made.run == run.run:
                for item in made.tables:
                    read_back(objects, step.into.folder, item)
                return made
        except NotFound:
            for table in step.tables:
                for end in ("", ".tmp"):
                    objects.delete(step.into.key(_name(table, backup) + end))
            manifest.release(objects, step.into.folder, backup)
        except DamagedBackup:
            continue
    return None


def _outdated(run: Run, postgres: Postgres, made: Backup) -> bool:
    """Whether rows have moved since the whole backup of this run, so that an operator who goes on wants another one. Not when
    the tables are empty because this run has emptied them: then that backup is the only copy."""
    after = [one for one in run.plan.steps if isinstance(one, TruncateTables)]
    if not after or any(_committed(run, one, postgres) for one in after):
        return False
    emptied = {table for one in after for table in one.tables}
    with postgres.connect() as connection:
        changed = [item for item in made.tables if copying.moved(connection, item)]
        gone = [
            item
            for item in changed
            if item.table in emptied
            and item.shape is not None
            and item.rows
            and not catalog.rows(connection, item.shape)
        ]
    return bool(changed) and not gone


def _refuse_too_small(run: Run, objects: Objects, step: BackUpTables, shared: copying.Snapshot) -> None:
    needed, free = sum(item.csv_bytes for item in shared.sources) + SPARE, objects.free()
    if free is not None and needed > free:
        raise Permanent(
            "There is not enough room for the backup",
            f"{step.into}: about {needed:,} bytes are needed, {free:,} are free",
            f"Make room, then: vecrun resume {run.plan.job}\nOr give the run up: vecrun rollback {run.plan.job}. Then vecrun gc "
            "removes old backups by the rules of keep, or write to another place",
        )


def _name(table: str, backup: str) -> str:
    """The file of a table. A character that not every storage can have in a name is written as %XX."""
    plain = "".join(one if one.isalnum() or one in "_.-" else f"%{ord(one):02X}" for one in table)
    return f"{plain}_{backup}.csv"


@dataclass
class _Attempt:
    """The tables of one backup, copied side by side from one snapshot."""

    run: Run
    step: BackUpTables
    postgres: Postgres
    objects: Objects
    shared: copying.Snapshot
    backup: str
    _busy: set[Connection] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def files(self) -> list[TableFile]:
        """One for each table, in order. Stopped when the run is to stop: nothing is left then."""
        with ThreadPoolExecutor(min(_THREADS, len(self.shared.sources)), "back-up") as pool:
            asked = [pool.submit(copy_context().run, self._file, source) for source in self.shared.sources]
            while not all(item.done() for item in asked):
                if self.run.stop.wait(0.1):
                    with self._lock:
                        for connection in self._busy:  # it may be waiting for the server
                            connection.cancel()
            try:
                return [item.result() for item in asked]
            except Stopped:
                for item in asked:
                    if item.exception() is None and (file := item.result().file):
                        with suppress(VecrunError):
                            self.objects.delete(self.step.into.key(file))
                raise

    def _file(self, source: copying.Source) -> TableFile:
        began = time.monotonic()
        try:
            if source.error is not None:
                raise source.error
            made = self._copied(source)
        except VecrunError as exc:
            self._check()  # what was ended because the run is to stop, has not failed
            self._tell("error", f"{source.table}: not backed up: {exc}", source.table, error=str(exc))
            return TableFile(table=source.table, shape=source.shape, error=str(exc))
        made = made.model_copy(update={"seconds": round(time.monotonic() - began, 3)})
        self._tell("info", f"{made.table}: {made.rows:,} rows, {made.bytes:,} bytes", **_row(made))
        crash.point(self.step.type, "table")
        return made

    def _copied(self, source: copying.Source) -> TableFile:
        assert source.shape is not None
        shape, name = source.shape, _name(source.table, self.backup)
        key, tally = self.step.into.key(name), copying.Tally()
        select = f"SELECT {shape.columns_sql} FROM {shape.sql}"  # noqa: S608
        with copying.reader(self.postgres, self.shared, shape) as connection, self._cancelled_on_stop(connection):
            failures: list[BaseException] = []
            with closing(copying.csv(connection, select, tally, self._check)) as pieces:
                try:
                    self.objects.write_from(key, _watched(pieces, failures), f"{key}.tmp")
                except Exception:
                    if failures:  # of the database, whatever the storage made of it
                        raise failures[0] from None
                    raise
            try:
                versions = copying.versions(connection, shape)
            except BaseException:  # stopped, or the server is gone: a file without a manifest is of no use
                self.objects.delete(key)
                raise
        made = TableFile(
            table=source.table, shape=shape, file=name, rows=tally.rows, bytes=tally.bytes, sha256=tally.sha256,
            rows_digest=tally.rows_digest, snapshot=versions,
        )  # fmt: skip
        if not self.run.dry:
            crash.point(self.step.type, "written")
            try:
                read_back(self.objects, self.step.into.folder, made, self._check)
            except (DamagedBackup, Stopped):
                self.objects.delete(key)
                raise
        return made

    @contextmanager
    def _cancelled_on_stop(self, connection: Connection) -> Iterator[None]:
        with self._lock:
            self._busy.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(connection)

    def _check(self) -> None:
        if self.run.stop.is_set():
            raise Stopped

    def _tell(self, level: str, text: str, table: str, **details: Any) -> None:
        self.run.say(text)
        self.run.ledger.write_log(self.run.run, level, text, **details | {"table": table})


def _watched(pieces: Iterator[bytes], failures: list[BaseException]) -> Iterator[bytes]:
    try:
        yield from pieces
    except Exception as exc:
        failures.append(exc)
        raise


def read_back(objects: Objects, folder: str, item: TableFile, check: Callable[[], None] = lambda: None) -> None:
    """Read the whole file of a table. DamagedBackup when it is not what the manifest says. `check` may raise meanwhile."""
    size, whole = 0, hashlib.sha256()
    try:
        for piece in objects.pieces(f"{folder}/{item.file}"):
            whole.update(piece)
            size += len(piece)
            check()
    except NotFound as exc:
        raise DamagedBackup("A file of a backup is missing", f"{folder}/{item.file}") from exc
    if (size, whole.hexdigest()) != (item.bytes, item.sha256):
        what = "its content is another" if size == item.bytes else f"{size:,} bytes instead of {item.bytes:,}"
        raise DamagedBackup("A file of a backup is damaged", f"{folder}/{item.file}: {what}")


def _row(item: TableFile) -> dict[str, Any]:
    return {
        "table": item.table, "row_count": item.rows, "file_size": item.bytes, "backup_file": item.file,
        "seconds": item.seconds, "error": item.error,
    }  # fmt: skip


def _told(run: Run, step: BackUpTables, made: Backup, objects: Objects) -> dict[str, Any]:
    """The result of the step; the same goes into the log of the run and into the one beside the files."""
    result = {
        "backup": made.id, "tables": [_row(item) for item in made.tables], "rows": made.rows,
        "bytes": sum(made.files.values()), "seconds": log.seconds(made), "backup_directory": str(step.into),
    }  # fmt: skip
    if not run.dry:
        level = "info" if made.whole else "error"
        text = f"backup {made.id}: {'complete' if made.whole else 'incomplete'}"
        run.ledger.write_log(run.run, level, text, **{key: value for key, value in result.items() if key != "backup"})
        _logged(run, lambda: log.backup(objects, step.into.folder, made))
    return result


def _logged(run: Run, write: Callable[[], None]) -> None:
    """A log that cannot be written makes a backup no worse."""
    try:
        write()
    except VecrunError as exc:
        text = f"{log.NAME} could not be written: {exc}"
        run.say(text)
        run.ledger.write_log(run.run, "warning", text)


def truncate(run: Run, step: TruncateTables) -> dict[str, Any]:
    """Empty the tables. NotOurs when that is refused: nothing was done then, so there is nothing to be undone."""
    if run.dry:
        return {"truncated": [], "rows": 0}
    postgres, objects = run.world.postgres(step.connection), run.world.objects(step.source.connection)
    done = _committed(run, step, postgres) or _emptied(run, step, postgres, objects)
    for item in done["truncated"]:
        run.say(f"{item['table']}: emptied, {item['rows_before']:,} rows before, {item['rows_after']:,} after")
    run.ledger.write_log(run.run, "info", f"emptied: {', '.join(step.tables)}", **done)
    _log_truncation(run, step, objects, done["backup"], done["truncated"])
    return {"truncated": done["truncated"], "rows": sum(item["rows_before"] for item in done["truncated"])}


def _committed(run: Run, step: TruncateTables, postgres: Postgres) -> dict[str, Any] | None:
    """What an earlier attempt has done, whatever is in the tables by now; None when none of them was committed."""
    for line in run.ledger.read_log(run.run):
        details = line["details"]
        if details.get("step") == step.type and truncating.outcome(postgres, details["transaction"]) == "committed":
            return {key: details[key] for key in ("backup", "truncated")}
    return None


def _emptied(run: Run, step: TruncateTables, postgres: Postgres, objects: Objects) -> dict[str, Any]:
    from runner.executor import NotOurs

    backup, folder = "", step.source.folder

    def check() -> None:
        if run.stop.is_set():
            raise Stopped

    def note(transaction: str) -> None:
        check()
        text = f"transaction {transaction} empties {', '.join(step.tables)}"
        run.ledger.write_log(run.run, "info", text, step=step.type, transaction=transaction, **done)

    try:
        made = manifest.of_run(objects, folder, run.run)
        if made is None:
            raise Permanent("There is no whole backup by this run", str(step.source), "Nothing was emptied")
        backup, there = made.id, {item.table: item for item in made.tables}
        if missing := [table for table in step.tables if table not in there]:
            raise Permanent("The backup by this run lacks a table", f"{made.id}: {', '.join(missing)}")
        saved = [there[table] for table in step.tables]
        done = {
            "backup": made.id,
            "truncated": [{"table": item.table, "rows_before": item.rows, "rows_after": 0} for item in saved],
        }
        for item in saved:
            read_back(objects, folder, item, check)
        truncating.truncate(postgres, saved, note, lambda: run.ledger.guarded(run.lease))
    except Permanent as exc:
        # a client may be dead while the server still commits what it asked for
        states = [
            truncating.outcome(postgres, line["details"]["transaction"])
            for line in run.ledger.read_log(run.run)
            if line["details"].get("step") == step.type
        ]
        if "in progress" in states:
            raise Transient(
                "The server has not finished emptying the tables",
                f"{', '.join(step.tables)}: its commit waits",
                f"See what it waits for (pg_stat_activity), then: vecrun resume {run.plan.job}",
            ) from None
        if "committed" in states:
            found = _committed(run, step, postgres)
            assert found is not None
            return found
        _log_truncation(run, step, objects, backup, [], str(exc))
        hint = exc.hint
        if isinstance(exc, truncating.Changed):
            hint = f"Nothing was emptied. With another backup first: vecrun resume {run.plan.job}"
        raise NotOurs(exc.summary, exc.detail, hint) from exc
    return done


def _log_truncation(
    run: Run, step: TruncateTables, objects: Objects, backup: str, tables: list[dict[str, Any]], error: str = ""
) -> None:
    name = f"truncate after backup {backup or '(none)'}, task {run.plan.job}, run {run.run}"
    lines = [
        f"table {item['table']}: {item['rows_before']:,} rows before, {item['rows_after']:,} after" for item in tables
    ]
    lines += [f"FAILED, nothing was emptied: {error}"] if error else []
    _logged(run, lambda: log.append(objects, step.source.folder, name, lines, once=not error))
