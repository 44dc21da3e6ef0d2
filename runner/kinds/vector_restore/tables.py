"""Tables out of a backup: where each goes, what is there already, and whether it fits."""

from __future__ import annotations

from runner.backups.manifest import Backup, TableFile
from runner.documents.catalog import sequences
from runner.documents.fitting import Filling
from runner.documents.loading import look
from runner.documents.making import not_made
from runner.documents.postgres import Postgres
from runner.documents.shape import Described
from runner.errors import NotFound, Permanent
from runner.kinds import Draft
from runner.kinds.vector_restore.spec import Tables
from runner.plan import BackupFolder, Fact, LoadTables, Notice, Observed, Overview, Place
from runner.spec import digest, suggest
from runner.state import State
from runner.world import World

#: Codes of this kind.
FAILED = "VX231"
CANNOT_BE_FILLED = "VX232"
REPLACES = "VB110"
NO_SEQUENCE = "VI135"
NOT_MADE = "VI143"


def plan_tables(
    job: str, wanted: Tables, world: World, folder: BackupFolder, backup: Backup, state: State, draft: Draft
) -> list[str]:
    """Adds steps, findings, facts and what was observed to the draft; returns the tables that come back."""
    postgres = world.postgres(wanted.connection)
    pairs = _pairs(wanted, backup)
    files = {item.table: item for item in backup.tables}
    undo = list[tuple[str, str]]()
    for name, to in pairs:
        place, file, there = Place(connection=wanted.connection, collection=to), files[name], postgres.describe(to)
        if file.error:
            message = f"its backup failed: {file.error}"
            draft.notices.append(Notice(code=FAILED, message=message, where=str(place), blocking=True))
        if wanted.if_not_empty != "refuse":
            undo.append((to, f"vecrun_undo_{digest([job, state.lineage, state.serial, to]).partition(':')[2][:8]}"))
        if there is not None and there.rows and undo:
            done = (
                "are replaced"
                if wanted.if_not_empty == "replace"
                else "stay, unless the backup has one with the same key"
            )
            message = f"rows that are there: {there.rows:,}. They {done}; all stand in {undo[-1][1]} until the rollback expires"
            draft.notices.append(Notice(code=REPLACES, message=message, where=str(place)))
        if there is None and wanted.create and file.shape is not None and (less := not_made(file.shape)):
            draft.notices.append(Notice(code=NOT_MADE, message="; ".join(less), where=str(place)))
        if there is not None:
            draft.notices += _fixed_sequences(postgres, there, str(place))
        draft.world.append(
            Observed(
                place=place, role="table", count=there.rows if there is not None else None,
                schema_digest=there.shape.fingerprint() if there is not None else None,
            )
        )  # fmt: skip
        source = Place(connection=folder.connection, collection=f"{folder.folder}/{file.file}")
        draft.overview.append(Overview(source=source, target=place, facts=_facts(file, there, wanted)))
    step = LoadTables(
        connection=wanted.connection, tables=tuple(pairs), source=folder, backup=backup.id, manifest=backup.digest,
        existing=wanted.if_not_empty, create=wanted.create, undo=tuple(undo),
        rows=sum(files[name].rows for name, _to in pairs),
    )  # fmt: skip
    draft.steps.append(step)
    draft.notices += _obstacle(postgres, step, backup)
    return [name for name, _to in pairs]


def _fixed_sequences(postgres: Postgres, there: Described, where: str) -> list[Notice]:
    """Sequences that do not go on after the largest value, because the login may not set them."""
    with postgres.connect() as connection:
        fixed = [(column.name, name) for column, name, may in sequences(connection, there.shape) if not may]
    hint = "it stays as it is, so new rows may get numbers that are there: grant SELECT and UPDATE on it"
    return [
        Notice(code=NO_SEQUENCE, message=f"the login may not set {name} (column {column}): {hint}", where=where)
        for column, name in fixed
    ]


def _pairs(wanted: Tables, backup: Backup) -> list[tuple[str, str]]:
    """(table of the backup, table here)"""
    known = [item.table for item in backup.tables]
    if wanted.names == "all":
        return [(name, name) for name in known]
    pairs = [(item, item) if isinstance(item, str) else (item.from_, item.to or item.from_) for item in wanted.names]
    for name, _to in pairs:
        if name not in known:
            raise NotFound("No such table", f"{name!r} in backup {backup.id}", suggest(name, known))
    for column, what in ((0, "One table would come back twice"), (1, "Two tables would become one")):
        names = [pair[column] for pair in pairs]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise Permanent(what, ", ".join(doubled), "Name each table once, and give each its own name")
    return pairs


def _obstacle(postgres: Postgres, step: LoadTables, backup: Backup) -> list[Notice]:
    """Why the tables cannot be filled, as the step itself would find: shapes, keys, rights, rows that are there."""
    files = {item.table: item for item in backup.tables}
    fillings = [
        Filling(backup.id, shape, here, files[name].rows, files[name].rows_digest, lambda: iter(()))
        for name, here in step.tables
        if (shape := files[name].shape) is not None
    ]
    try:
        look(postgres, step, "", fillings)
    except (Permanent, NotFound) as exc:
        message = f"{exc.summary}: {exc.detail}. {exc.hint}".rstrip(". ")
        return [Notice(code=CANNOT_BE_FILLED, message=message, where=step.connection, blocking=True)]
    return []


def _facts(file: TableFile, there: Described | None, wanted: Tables) -> tuple[Fact, ...]:
    """What a reviewer reads about a table."""
    before = "no such table" if there is None else f"{there.rows or 0:,}"
    after = (
        f"{file.rows:,}"
        if wanted.if_not_empty != "merge"
        else f"those that are there, and the {file.rows:,} of the backup"
    )
    return (
        Fact(label="rows", before=before, after=after),
        Fact(label="file", before=f"{file.bytes:,} bytes of CSV"),
    )
