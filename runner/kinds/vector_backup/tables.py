"""Tables that are backed up: what they are, what this login may do with them, and what emptying one would take along."""

from __future__ import annotations

from runner.backups.manifest import Backup
from runner.clauses.spec import notice
from runner.documents.catalog import may_create, sequences, triggers
from runner.documents.constraints import obstacles
from runner.documents.copying import decoded, differs
from runner.documents.postgres import NotUnicode, Postgres
from runner.documents.shape import Described
from runner.errors import VecrunError
from runner.kinds import Draft
from runner.kinds.vector_backup.spec import Tables, VectorBackupSpec
from runner.objects.storage import Objects
from runner.plan import (
    BackupFolder,
    BackUpTables,
    Estimate,
    Fact,
    Notice,
    Observed,
    Overview,
    Place,
    TruncateTables,
)
from runner.store import Problem
from runner.world import World

#: Codes of this kind.
NO_TABLE = "VX222"
NO_RIGHT = "VX223"
HIDDEN_ROWS = "VX224"
NO_TRUE_TABLE = "VX225"
CASCADES = "VX226"
NO_REFILL = "VX227"
TWICE = "VX228"
NO_UTF8 = "VX229"
EMPTIES = "VB109"
TRIGGERS = "VB113"
UNCHANGED = "VI132"
NO_CREATE = "VI134"
NO_SEQUENCE = "VI135"


def plan_tables(
    spec: VectorBackupSpec, tables: Tables, world: World, into: BackupFolder, objects: Objects, earlier: Backup | None,
    applied: bool, accepted: dict[str, str], draft: Draft,
) -> None:  # fmt: skip
    """Adds steps, findings, facts and what was observed to the draft."""
    postgres = world.postgres(tables.connection)
    found = dict[str, Described]()
    for name in tables.all:
        where = f"{tables.connection}/{name}"
        try:
            described = postgres.describe(name)
        except NotUnicode as exc:
            problem = Problem(NO_UTF8, f"{exc.summary}: {exc.detail}. {exc.hint}")
            draft.notices.append(notice(problem, where, accepted))
            continue
        problems = _problems(tables, name, described, postgres)
        draft.notices += [notice(item, where, accepted) for item in problems]
        if described is None:
            continue
        found[name] = described
        place = Place(connection=tables.connection, collection=name)
        draft.world.append(
            Observed(
                place=place, role="table", count=described.rows, schema_digest=described.shape.fingerprint(), live=True
            )
        )
        draft.overview.append(Overview(source=place, target=into.place, facts=_facts(name, described, tables)))
    if len(found) < len(tables.all):
        return
    draft.notices += [
        notice(problem, f"{tables.connection}/{name}", accepted) for name, problem in _together(tables, found, postgres)
    ]
    unchanged = applied and earlier is not None and not _changed(tables, found, postgres, objects, into, earlier)
    if unchanged and earlier is not None and not draft.notices:
        message = f"no row has changed since backup {earlier.id} ({earlier.rows:,} rows), and its files are there"
        if tables.emptied and earlier.rows:
            message += f"; nothing was loaded since it was emptied: {', '.join(tables.emptied)}"
        draft.notices.append(Notice(code=UNCHANGED, message=message, where=str(into)))
        return
    rows = {name: item.rows or 0 for name, item in found.items()}
    draft.steps.append(
        BackUpTables(
            connection=tables.connection, tables=tables.all, into=into, rows=sum(rows.values()), keep=spec.rules,
            estimate=Estimate(bytes=sum(item.csv_bytes or 0 for item in found.values())),
        )
    )  # fmt: skip
    if tables.emptied:
        gone = sum(rows[name] for name in tables.emptied)
        draft.steps.append(TruncateTables(connection=tables.connection, tables=tables.emptied, source=into, rows=gone))
        message = "readers find nothing there afterwards, until something is loaded"
        for name in tables.emptied:
            draft.notices.append(Notice(code=EMPTIES, message=message, where=f"{tables.connection}/{name}"))
        draft.notices += _no_way_back(tables, found, postgres) + _side_effects(tables, found, postgres)


def _no_way_back(tables: Tables, found: dict[str, Described], postgres: Postgres) -> list[Notice]:
    """A rollback that fills the tables again records it in a table of its own."""
    with postgres.connect() as connection:
        schemas = sorted({postgres.split(name)[0] for name in tables.emptied})
        lacking = [schema for schema in schemas if not may_create(connection, schema)]
    message = (
        "a rollback fills the tables again and makes a table to record it; grant CREATE ON SCHEMA before it is needed"
    )
    notices = [Notice(code=NO_CREATE, message=message, where=f"schema {schema}") for schema in lacking]
    for name in tables.emptied:
        if "insert" not in found[name].rights:
            message = (
                f"a rollback fills the table again; GRANT INSERT ON {found[name].shape.qualified} before it is needed"
            )
            notices.append(Notice(code=NO_CREATE, message=message, where=f"{tables.connection}/{name}"))
    return notices


def _together(tables: Tables, found: dict[str, Described], postgres: Postgres) -> list[tuple[str, Problem]]:
    """(name, what is wrong) with tables that can be read each by itself."""
    problems, known = list[tuple[str, Problem]](), dict[int, str]()
    for name, item in found.items():
        if (other := known.setdefault(item.shape.oid, name)) != name:
            problems.append((name, Problem(TWICE, f"it is the same table as {other}: name it once")))
        if item.rows is not None:
            try:
                decoded(postgres, item.shape)
            except NotUnicode as exc:
                problems.append((name, Problem(NO_UTF8, f"{exc.summary}: {exc.detail}. {exc.hint}")))
    if tables.emptied:
        with postgres.connect() as connection:
            blocked = obstacles(connection, [found[name].shape for name in tables.emptied])
        names = {found[name].shape.qualified: name for name in tables.emptied}
        problems += [
            (names[table], Problem(NO_REFILL, f"a rollback could not fill it again: {why}")) for table, why in blocked
        ]
    return problems


def _side_effects(tables: Tables, found: dict[str, Described], postgres: Postgres) -> list[Notice]:
    """What else happens when tables are emptied and filled again."""
    notices = []
    with postgres.connect() as connection:
        for name in tables.emptied:
            shape, where = found[name].shape, f"{tables.connection}/{name}"
            if fired := triggers(connection, shape):
                message = f"triggers fire when it is emptied, and when a rollback fills it again: {', '.join(fired)}"
                notices.append(Notice(code=TRIGGERS, message=message, where=where))
            for column, sequence, may in sequences(connection, shape):
                if not may:
                    message = f"the login may not set {sequence} (column {column.name}): a rollback leaves it as it is"
                    notices.append(Notice(code=NO_SEQUENCE, message=message, where=where))
    return notices


def _problems(tables: Tables, name: str, described: Described | None, postgres: Postgres) -> list[Problem]:
    """Why a table cannot be backed up, or not emptied."""
    if described is None:
        hint = """; a dot inside of a name is written in double quotes, as in public."a.b\"""" if "." in name else ""
        return [Problem(NO_TABLE, f"there is no such table, in {postgres.shown}{hint}")]
    found = list[Problem]()
    shape = described.shape
    wanted = ["select", *(["truncate"] if name in tables.emptied else [])]
    for right in wanted:
        if right not in described.rights:
            found.append(
                Problem(NO_RIGHT, f"the login may not {right.upper()} it; GRANT {right.upper()} ON {shape.qualified}")
            )
    if shape.hidden_rows:
        message = "row level security hides rows from this login: give it BYPASSRLS, or connect as the owner"
        found.append(Problem(HIDDEN_ROWS, message))
    if shape.relation == "other":
        found.append(Problem(NO_TRUE_TABLE, "it is a view or a foreign table; name the tables that hold its rows"))
    if name in tables.emptied:
        emptied = {".".join(postgres.split(other)) for other in tables.emptied}
        for reference in shape.referenced_by:
            if reference.table not in emptied and reference.table != shape.qualified:
                rows = "" if reference.rows is None else f" and its {reference.rows:,} rows"
                message = (
                    f"{reference.table}{rows} points at it (foreign key {reference.constraint}, on delete "
                    f"{reference.on_delete}), and would have to be emptied with it: name it in truncate, too"
                )
                found.append(Problem(CASCADES, message))
    return found


def _facts(name: str, described: Described, tables: Tables) -> tuple[Fact, ...]:
    """What a reviewer reads about a table."""
    shape = described.shape
    rows = "not known" if described.rows is None else f"{described.rows:,}"
    facts = [
        Fact(label="rows", before=rows, after="0, once the backup is whole" if name in tables.emptied else rows),
        Fact(label="columns", before=", ".join(f"{item.name} {item.type}" for item in shape.columns)),
        Fact(label="as CSV", after=f"about {described.csv_bytes or 0:,} bytes"),
    ]
    if references := [item for item in shape.referenced_by if item.table != shape.qualified]:
        shown = ", ".join(f"{item.table} (on delete {item.on_delete})" for item in references)
        facts.append(Fact(label="referenced by", before=shown))
    return tuple(facts)


def _changed(
    tables: Tables, found: dict[str, Described], postgres: Postgres, objects: Objects, into: BackupFolder, earlier: Backup
) -> str:  # fmt: skip
    """Why the newest backup is not enough; empty when it holds exactly what is there, apart from what was emptied since."""
    kept = {item.table: item for item in earlier.tables}
    for name, described in found.items():
        if name in tables.emptied and described.rows == 0:
            continue
        if name not in kept:
            return f"{name} is not in it"
        if name in tables.emptied:
            return f"{name} holds rows"
        if kept[name].shape is None:
            return f"{name} failed in it"
        with postgres.connect() as connection:
            if why := differs(connection, kept[name]):
                return why
    for file, size in earlier.files.items():
        try:
            there = objects.head(into.key(file))
        except VecrunError as exc:
            return str(exc)
        if there is None or there.size != size:
            return f"{file} is gone, or was changed"
    return ""
