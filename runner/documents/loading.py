"""Filling tables from the CSV files of a backup, all of them in one transaction.

Nobody else reads or writes the tables meanwhile. What is there in the end is read back and compared with the manifest;
the commit is the last thing that happens, and with it stands what was there before (undo tables) and that it happened.
"""

# Names in SQL are quoted by shape.quoted().
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

import psycopg

from runner import crash
from runner.documents.catalog import rows as count_rows
from runner.documents.catalog import sequences, shape
from runner.documents.constraints import lifted
from runner.documents.copying import Tally, tally, versions
from runner.documents.fitting import Filling, Target, targets
from runner.documents.loaded import Loaded, Loads, lock, one, patient
from runner.documents.making import complete, make
from runner.documents.shape import quoted
from runner.errors import Permanent, VerificationFailed
from runner.plan import LoadTables

if TYPE_CHECKING:
    from runner.documents.postgres import Connection, Postgres

Guard = Callable[[], AbstractContextManager[object]]


def done(postgres: Postgres, step: LoadTables, run: str) -> tuple[Loaded, ...]:
    """What the run did, if it did it; else ()."""
    with postgres.connect() as connection:
        return Loads(postgres, step, run).read(connection)


def look(postgres: Postgres, step: LoadTables, run: str, fillings: Sequence[Filling]) -> tuple[Loaded, ...]:
    """Everything that can be known before: shapes, rights, rows that are there. NotFound, Permanent. What the run did, if a
    process that was taken for dead has done it meanwhile; else ()."""
    loads = Loads(postgres, step, run)
    with postgres.connect() as connection, connection.transaction():
        patient(connection)
        loads.lock(connection)
        if not (found := loads.read(connection)):
            targets(connection, postgres, step, fillings)
        return found


def load(
    postgres: Postgres, step: LoadTables, run: str, fillings: Sequence[Filling], guard: Guard,
    said: Callable[[str], None] = lambda _text: None, check: Callable[[], None] = lambda: None,
) -> tuple[Loaded, ...]:  # fmt: skip
    """Fill the tables, or find that this run did. `guard` is held over the commit; `check` may raise to stop. VerificationFailed when something else
    than the backup's rows is there afterwards; whatever is raised, nothing was written."""
    loads = Loads(postgres, step, run)
    with postgres.connect() as connection:
        # what is read under the lock is what is there
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        with ExitStack() as stack, _told(), connection.transaction():
            patient(connection)
            loads.lock(connection)
            if found := loads.read(connection):
                return found
            lock(connection, _to_lock(connection, postgres, step))
            ordered = targets(connection, postgres, step, fillings)
            crash.point(step.type, "locked")
            loaded = _fill(connection, step, ordered, said, check)
            crash.point(step.type, "compared")
            loads.write(connection, loaded)
            stack.enter_context(guard())
        crash.point(step.type, "committed")
    return tuple(loaded)


def _to_lock(connection: Connection, postgres: Postgres, step: LoadTables) -> list[str]:
    found = (shape(connection, *postgres.split(here)) for _table, here in step.tables)
    return [item.sql for item in found if item is not None and item.relation != "other"]


def _fill(
    connection: Connection, step: LoadTables, ordered: Sequence[Target], said: Callable[[str], None],
    check: Callable[[], None],
) -> list[Loaded]:  # fmt: skip
    connection.execute("SET CONSTRAINTS ALL DEFERRED")
    undo = {target.filling.table: _save(connection, step, target) for target in ordered}
    replaced = {target.filling.table: 0 for target in ordered}
    if step.existing == "replace" and any(target.rows for target in ordered):
        connection.execute(f"TRUNCATE {', '.join(target.sql for target in ordered if target.here is not None)}")
        replaced = {target.filling.table: target.rows for target in ordered}
    with lifted(connection, [target.here for target in ordered if target.here is not None]):
        for target in ordered:
            said(f"loading {target.qualified}: {target.filling.rows:,} rows")
            for text in make(connection, target) if target.here is None else ():
                said(text)
            if _merged(step, target):
                replaced[target.filling.table] = _merge(connection, target)
            else:
                _copy_in(connection, target, target.sql)
            for text in _count_on(connection, target):
                said(text)
        connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    for text in complete(connection, ordered):
        said(text)
    crash.point(step.type, "loaded")
    return [
        _compared(connection, target, undo[name], replaced[name], check, merged=_merged(step, target))
        for name, target in ((target.filling.table, target) for target in ordered)
    ]


def _merged(step: LoadTables, target: Target) -> bool:
    """Whether there are rows that the backup's rows come beside."""
    return step.existing == "merge" and target.rows > 0


def _save(connection: Connection, step: LoadTables, target: Target) -> str:
    """Keep the rows that are there; the name of the table that has them."""
    if not target.rows or step.existing == "refuse":
        return ""
    name = dict(step.undo).get(target.filling.table)
    if name is None:
        raise Permanent(
            "A table has rows now, and had none when the plan was made", f"{target.qualified} holds {target.rows:,}",
            "Plan again",
        )  # fmt: skip
    connection.execute(f"CREATE TABLE {quoted(target.schema)}.{quoted(name)} AS TABLE {target.sql}")
    return name


def _copy_in(connection: Connection, target: Target, into: str) -> None:
    """The file, as the manifest says it is, into a table with its columns."""
    source = target.filling.shape
    header = "MATCH" if connection.info.server_version >= 150000 else "true"
    columns = f"({source.columns_sql})" if source.copied else ""
    query = f"COPY {into} {columns} FROM STDIN (FORMAT csv, HEADER {header}, ENCODING 'UTF8')"
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        for piece in target.filling.pieces():
            copy.write(piece)


def _merge(connection: Connection, target: Target) -> int:
    """The backup's rows beside those that are there, and over those with the same primary key. How many were there."""
    assert target.here is not None
    given, key = target.filling.shape, target.here.primary_key
    beside = _beside(target)
    connection.execute(
        f"CREATE TEMPORARY TABLE {beside} ON COMMIT DROP AS SELECT {given.columns_sql} FROM {target.sql} WITH NO DATA"
    )
    _copy_in(connection, target, beside)
    connection.execute(f"ANALYZE {beside}")
    known = int(one(connection, f"SELECT count(*) FROM {_of_backup(target)}"))
    # the server refuses to set an identity that it gives always: where it is another one, the comparison finds that
    fixed = {*key, *(item.name for item in target.here.columns if item.identity == "always")}
    rest = [name for name in given.copied if name not in fixed]
    values = ", ".join(f"{quoted(name)} = EXCLUDED.{quoted(name)}" for name in rest)
    connection.execute(
        f"INSERT INTO {target.sql} ({given.columns_sql}) OVERRIDING SYSTEM VALUE "
        f"SELECT {given.columns_sql} FROM {beside} "
        f"ON CONFLICT ({', '.join(map(quoted, key))}) DO {f'UPDATE SET {values}' if rest else 'NOTHING'}"
    )
    return known


def _beside(target: Target) -> str:
    """The table in which the backup's rows are until they are merged."""
    assert target.here is not None
    return f"pg_temp.vecrun_merge_{target.here.oid}"


def _of_backup(target: Target) -> str:
    """The rows of a merged table whose keys are in the backup."""
    assert target.here is not None
    key = " AND ".join(f"t.{quoted(name)} = b.{quoted(name)}" for name in target.here.primary_key)
    return f"{target.sql} AS t WHERE EXISTS (SELECT FROM {_beside(target)} AS b WHERE {key})"


def _count_on(connection: Connection, target: Target) -> list[str]:
    """Sequences go on after the largest value, and never back. What a sequence gave stays given when this is rolled back.
    What is to be told of those that the login may not set."""
    left = []
    looks = target.here or shape(connection, target.schema, target.name)
    assert looks is not None
    for column, sequence, may in sequences(connection, looks):
        if not may:
            left.append(f"{target.qualified}.{column.name}: the login may not set {sequence}, which stays as it is")
            continue
        value = quoted(column.name)
        if column.type not in ("smallint", "integer", "bigint"):  # what is no whole number, the sequence did not give
            value = f"CASE WHEN {value}::text ~ '^-?[0-9]{{1,18}}$' THEN {value}::text::bigint END"
        largest = f"SELECT max({value}) AS largest FROM {target.sql}"
        of = f"FROM ({largest}) t, {sequence} s, pg_sequence p".replace("%", "%%")
        connection.execute(
            f"SELECT setval(%s::regclass, t.largest) {of} WHERE p.seqrelid = %s::regclass AND p.seqincrement > 0 "
            "AND t.largest BETWEEN p.seqmin AND p.seqmax "
            "AND (t.largest > s.last_value OR t.largest = s.last_value AND NOT s.is_called)",
            (sequence, sequence),
        )
    return left


def _compared(
    connection: Connection, target: Target, undo: str, replaced: int, check: Callable[[], None], *, merged: bool
) -> Loaded:  # fmt: skip
    """What is there, read back and compared with the manifest, with what is needed to see later whether it still is."""
    here = shape(connection, target.schema, target.name)
    assert here is not None
    wanted = target.filling
    held = tally(connection, wanted.shape, _of_backup(target) if merged else target.sql, check)
    if wrong := _difference(wanted, held):
        hint = (
            "A trigger or rule of the table that changes or drops rows is the usual cause: disable it for the restore"
        )
        if merged and any(item.identity == "always" and item.name not in here.primary_key for item in here.columns):
            hint += ". A merge leaves an identity column that is no part of the key as it is: if_not_empty: replace does not"
        raise VerificationFailed(
            "A table does not hold what the backup does", f"{target.qualified}: {wrong}. Nothing was changed", hint
        )
    return Loaded(
        backup=wanted.backup,
        table=wanted.table, schema_name=target.schema, name=target.name, oid=here.oid, undo=undo,
        made=target.here is None, before=target.rows, replaced=replaced, rows=wanted.rows,
        after=count_rows(connection, here) if merged else held.rows,
        versions=versions(connection, here),
    )  # fmt: skip


def _difference(wanted: Filling, held: Tally) -> str:
    if held.rows != wanted.rows:
        return f"{held.rows:,} rows are there, the backup has {wanted.rows:,}"
    return "rows are not what they are in the backup" if held.rows_digest != wanted.rows_digest else ""


def differences(
    postgres: Postgres, step: LoadTables, fillings: Sequence[Filling], check: Callable[[], None]
) -> dict[str, str]:  # fmt: skip
    """Table here -> how it differs from the backup now; only those that do. After a merge into rows that were there, which
    of the rows are the backup's cannot be told without writing: then only rows that are missing are."""
    found = {}
    with postgres.connect() as connection:
        for wanted in fillings:
            here = shape(connection, *postgres.split(wanted.table))
            if here is None:
                found[wanted.table] = "it is not there"
            elif step.existing == "merge" and (count := count_rows(connection, here)) != wanted.rows:
                if count < wanted.rows:
                    found[wanted.table] = f"{count:,} rows are there, the backup has {wanted.rows:,}"
            elif wrong := _difference(wanted, tally(connection, wanted.shape, here.sql, check)):
                found[wanted.table] = wrong
    return found


@contextmanager
def _told() -> Iterator[None]:
    """Refusals that have to do with the rows, in words that help."""
    try:
        yield
    except psycopg.IntegrityError as exc:
        where = f"{exc.diag.schema_name}.{exc.diag.table_name}: {exc.diag.constraint_name or exc.diag.column_name}"
        summary, hint = "Rows of the backup do not fit a constraint", "Change the table to what it was"
        if isinstance(exc, psycopg.errors.CheckViolation | psycopg.errors.ForeignKeyViolation):
            hint += ". Where the constraint is NOT VALID, load as the owner of the table, or validate it first"
        if isinstance(exc, psycopg.errors.ForeignKeyViolation):
            summary = "Rows of the backup refer to rows that are not there"
            hint = f"Restore the table that they refer to as well. {hint}"
        elif isinstance(exc, psycopg.errors.UniqueViolation | psycopg.errors.ExclusionViolation):
            summary = "Rows of the backup collide with other rows"
            hint = "Say if_not_empty: replace, or remove the rows that are in the way"
        raise Permanent(summary, f"{where}. Nothing was changed", hint) from exc
