"""Migrations inside of a relational database: what moved since, what stands in the way of the way back, and what was done by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from runner import __version__
from runner.errors import NotFound, Permanent
from runner.kinds import kind_module
from runner.ledger import Ledger
from runner.lock import now
from runner.mapping import Expectation
from runner.plan import (
    Change,
    CheckQueries,
    DocumentRows,
    DropColumn,
    EncryptColumns,
    MapRows,
    Notice,
    Observed,
    OfDatabase,
    Place,
    Plan,
    Recorded,
    RecordSteps,
    RemoveTables,
    RewriteIds,
    SetModel,
    Step,
    loads,
)
from runner.planner.policies import judged
from runner.settings import Settings
from runner.spec import Job, digest, suggest
from runner.state import State, States
from runner.world import World

if TYPE_CHECKING:
    from runner.documents.database import Database
    from runner.kinds.sql_migration.spec import StepSpec
    from runner.relational.schema import Described

KIND = "SqlMigration"
ROWS_SINCE = "VD109"
KEPT_GONE = "VX249"
IN_THE_WAY = "VX250"
UNMET = "VX243"
FORGOTTEN = "VX251"
GONE = "VI162"
NOT_ASKED = "VI163"
#: Name of the step of a plan that only records.
STAMP = "stamp"


# As it is now ---------------------------------------------------------------------------------------------------------


def described(world: World, place: Place) -> Described | None:
    """A table of any relational database as it is now."""
    from runner.relational import schema

    return schema.describe(world.relational(place.connection), place.collection)


def shape(table: Described) -> dict[str, Any]:
    """All of a table but its rows, in parts that can be told one by one."""
    return {
        "columns": [
            {"name": one.name, "type": one.type, "null": "allowed" if one.nullable else "not allowed", "default": one.default}
            for one in table.columns
        ],
        "primary_key": ", ".join(table.primary_key),
        "unique": [{"name": ", ".join(columns)} for columns in sorted(table.uniques)],
        "foreign_keys": [{"name": text} for text in sorted(map(str, table.foreign_keys))],
        "indexes": [{"name": one.name, "on": ", ".join(one.columns)} for one in table.indexes],
    }  # fmt: skip


def unrecorded(state: State, ledger: Ledger, world: World) -> Iterator[tuple[str, str]]:
    """(place, sentence) for each step that the database does not record any more as it was applied."""
    from runner.relational import record as records

    wanted = dict[tuple[str, str], str]()
    for plan in plans_of(state, ledger):
        for step in plan.steps:
            if isinstance(step, Recorded):
                wanted[step.connection, step.name] = step.digest
            elif isinstance(step, RecordSteps):
                wanted |= {(step.connection, name): named for name, named in step.steps}
    found = {name: records.read(world.relational(name), state.job) for name in {name for name, _step in wanted}}
    for (connection, name), named in wanted.items():
        entry = next((one for one in found[connection].entries if one.step == name), None)
        if entry is None:
            yield connection, f"step {name} is no longer recorded in {connection}"
        elif entry.digest != named:
            yield connection, f"step {name} is recorded in {connection} with another content, by run {entry.run}"
        elif entry.status == "begun":
            yield connection, f"step {name} was begun anew in {connection}, by run {entry.run}"


def plans_of(state: State, ledger: Ledger) -> Iterator[Plan]:
    """Plans of the runs that are applied, oldest first, as far as this ledger knows them."""
    for item in state.applied:
        try:
            yield loads(ledger.run(item.run)["plan"], f"run {item.run}")
        except NotFound:
            continue


# The way back ---------------------------------------------------------------------------------------------------------


def as_it_stands(step: Step, world: World) -> Step:
    """What is dropped, with the rows that are in it now."""
    if not isinstance(step, RemoveTables):
        return step
    return step.model_copy(update={"rows": sum(_rows(world, step).values())})


def really_done(steps: Sequence[Step], job: str, run: str, world: World) -> list[Step]:
    """Those that a run has done, or may have done: of what was one transaction and is not recorded, nothing happened."""
    from runner.relational import record as records

    found = list[Step]()
    for step in steps:
        if isinstance(step, Recorded):
            entries = records.read(world.relational(step.connection), job).entries
            if not any((entry.step, entry.run) == (step.name, run) for entry in entries):
                continue
        found.append(step)
    return found


def keys_of(plan: Plan, steps: Sequence[Step]) -> set[str]:
    """Inline connections that lead to keys which a rollback does not need: it then works without them."""
    needed = {f"key:{key}" for step in steps if isinstance(step, EncryptColumns) for key in (step.before, step.after)}
    return {name for name in plan.inline if name.startswith("key:")} - needed


def hindrances(
    begun: Sequence[Step], rows: Sequence[dict[str, Any]], steps: Sequence[Step], state: State, run: str, world: World, *,
    discard: bool,
) -> list[Notice]:  # fmt: skip
    """What a rollback would destroy or could not bring back. `rows`: of the ledger, for the steps that were begun."""
    found = list[Notice]()
    if (
        state.applied and state.applied[-1].run == run
    ):  # else it never came to its end, and nobody else writes there yet
        found += _rows_since(steps, state, world, discard=discard)
    found += _forgotten(begun, rows, state.job, world)
    for step, row in zip(begun, rows, strict=True):
        if isinstance(step, DropColumn) and row["status"] == "done":
            found += _column_back(step, world)
        elif isinstance(step, MapRows) and step.undo and row["status"] == "done":
            found += _kept(step.connection, step.undo, step.name, world)
    for step in steps:
        if isinstance(step, EncryptColumns):  # a key that is missing is told now
            for name in filter(None, (step.before, step.after)):
                world.cipher(f"key:{name}")
    return found


def _forgotten(begun: Sequence[Step], rows: Sequence[dict[str, Any]], job: str, world: World) -> Iterator[Notice]:
    """Steps that were done and are not recorded any more: their way back would find nothing to undo, and say that it did."""
    from runner.relational import record as records

    known = dict[str, set[str]]()
    for step, row in zip(begun, rows, strict=True):
        if isinstance(step, Recorded) and row["status"] == "done":
            if step.connection not in known:
                entries = records.read(world.relational(step.connection), job).entries
                known[step.connection] = {entry.step for entry in entries}
            if step.name not in known[step.connection]:
                message = (
                    f"it is no longer recorded in {step.connection}, so nothing of it would be undone. Undo it by hand, then "
                    f"forget the job: vecrun state rm {job}"
                )
                yield Notice(code=FORGOTTEN, message=message, where=step.name, blocking=True)


def _rows(world: World, step: RemoveTables) -> dict[str, int]:
    """Rows of the tables that are there."""
    found = {table: described(world, Place(connection=step.connection, collection=table)) for table in step.tables}
    return {table: one.rows for table, one in found.items() if one is not None}


def _rows_since(steps: Sequence[Step], state: State, world: World, *, discard: bool) -> Iterator[Notice]:
    """Rows of tables that are dropped, beyond those that were in them when the run had come to its end."""
    before = {item.place: item.count for item in state.world}
    for step in steps:
        if not isinstance(step, RemoveTables):
            continue
        held = _rows(world, step)
        for table in step.tables:
            place = Place(connection=step.connection, collection=table)
            if table not in held:
                yield Notice(code=GONE, message="it is gone already: nothing is left to drop", where=str(place))
            elif (more := held[table] - (before.get(place) or 0)) > 0:
                message = f"rows that came since the run, and stand nowhere else: {more:,}"
                accepted = "--discard-new-points" if discard else ""
                yield Notice(
                    code=ROWS_SINCE, message=message, where=str(place), accepted=accepted, blocking=not discard
                )


def _column_back(step: DropColumn, world: World) -> Iterator[Notice]:
    place = Place(connection=step.connection, collection=step.table)
    table = described(world, place)
    if table is None:
        message = f"the table is gone: {step.column} cannot come back"
        yield Notice(code=IN_THE_WAY, message=message, where=str(place), blocking=True)
        return
    if table.column(step.column) is not None:
        message = f"somebody has made a column {step.column} since: remove or rename it, then the old one can come back"
        yield Notice(code=IN_THE_WAY, message=message, where=str(place), blocking=True)
    yield from _kept(step.connection, step.undo, step.name, world)


def _kept(connection: str, undo: str, step: str, world: World) -> Iterator[Notice]:
    """An undo table that is not there any more."""
    place = Place(connection=connection, collection=undo)
    if described(world, place) is None:
        message = f"what step {step} kept for its rollback is gone, so it cannot be undone"
        yield Notice(code=KEPT_GONE, message=message, where=str(place), blocking=True)


def touched(steps: Iterable[Step]) -> Iterator[Place]:
    """The tables of the user that steps work on."""
    for step in steps:
        if isinstance(step, OfDatabase):
            undo = {getattr(step, "undo", ""), ""}
            tables = (*step.tables, *(place.collection for place in step.read_places))
            yield from (Place(connection=step.connection, collection=table) for table in tables if table not in undo)


def tables_of(steps: Iterable[Step]) -> set[Place]:
    """Tables of documents and chunks whose rows steps of other kinds change."""
    found = set[Place]()
    for step in steps:
        if isinstance(step, RewriteIds):
            found.add(Place(connection=step.chunks.connection, collection=step.chunks.table))
        elif isinstance(step, SetModel | Change) and step.rows is not None:
            found.add(Place(connection=step.rows.connection, collection=step.rows.table))
            chunks = step.rows.chunks if isinstance(step.rows, DocumentRows) else None
            found |= {Place(connection=step.rows.connection, collection=chunks.table)} if chunks is not None else set()
    return found


# Done by hand ---------------------------------------------------------------------------------------------------------


def stamp(job: Job, settings: Settings, states: States, *, through: str | None = None) -> Plan:
    """The plan that records steps as done, up to `through` (default: all). NotFound when there is no such step; Permanent
    for jobs of other kinds."""
    from runner.kinds.sql_migration.spec import KEY, SqlMigrationSpec

    if not isinstance(job.spec, SqlMigrationSpec):
        raise Permanent("Nothing can be recorded for this job", f"job {job.name} is of kind {job.kind}, not {KIND}")
    spec, state = job.spec, states.load(job.name)
    names = [step.name for step in spec.steps]
    if through is not None and through not in names:
        raise NotFound("No such step", f"{through} in job {job.name}", suggest(through, names))
    last = names.index(through) if through is not None else len(names) - 1
    chosen = spec.steps[: last + 1]
    recorded = tuple((step.name, step.digest) for step in chosen if step.forms)
    if not recorded:
        raise Permanent("Nothing can be recorded", f"the steps up to {names[last]} only check")
    whole = not any(step.forms for step in spec.steps[last + 1 :])
    named, inline = kind_module(job.kind).connections(spec)
    notices, steps = list[Notice](), list[Step]()
    with World(settings, "read", inline) as world:
        for name in spec.keys:
            world.cipher(KEY + name)
        database = world.relational(spec.connection)
        for number, step in enumerate(chosen):
            later = any(one.drop_column is not None or one.sql is not None for one in chosen[number + 1 :])
            notices += _undone(step, world, spec.connection, later=later)
            queries, found = _asked(database, step.name, step.verify, later=later)
            notices += found
            if queries:
                steps.append(CheckQueries(connection=spec.connection, name=step.name, when="after", queries=queries))
        steps.append(RecordSteps(connection=spec.connection, name=STAMP, steps=recorded))
        made = Plan(
            tool_version=__version__, created=now(), job=job.name, kind=job.kind, description=job.description,
            environment=settings.environment, lineage=state.lineage, serial=state.serial,
            # of a part of the steps: the job then still has something to do
            spec_digest=job.digest if whole else digest([job.digest, STAMP, names[last]]),
            connections={name: world.digest(name) for name in [*named, *inline]}, inline=inline,
            world=tuple(_seen(world, spec.connection, chosen)), steps=tuple(steps), notices=tuple(notices),
            retention=spec.retention or settings.state.retention,
        )  # fmt: skip
        return judged(made, settings, {item.code: item.reason for item in spec.accept})


def _undone(step: StepSpec, world: World, connection: str, *, later: bool) -> Iterator[Notice]:
    """What a step would have made or dropped, where the database says that it was not done. `later` as for `_asked`."""
    wanted = {table.name: [column.name for column in table.columns] for table in step.create_tables or ()}
    wanted |= {step.back_up.to: [*step.back_up.columns]} if step.back_up is not None else {}
    for name, columns in wanted.items():
        table = described(world, Place(connection=connection, collection=name))
        has = {column.name for column in table.columns} if table is not None else set()
        lacks = [column for column in columns if column not in has]
        if lacks:
            what = f"table {name} is not there" if table is None else f"{name} has no column {', '.join(lacks)}"
            yield Notice(code=NOT_ASKED if later else UNMET, message=what, where=step.name, blocking=not later)
    if (drop := step.drop_column) is not None:
        table = described(world, Place(connection=connection, collection=drop.table))
        if table is not None and table.column(drop.column) is not None:
            message = f"{drop.table} still has the column {drop.column}"
            yield Notice(code=NOT_ASKED if later else UNMET, message=message, where=step.name, blocking=not later)


def _asked(
    database: Database, step: str, given: Sequence[Expectation], *, later: bool
) -> tuple[tuple[Expectation, ...], list[Notice]]:
    """(questions that can be asked, what does not hold). `later`: a step after it may have taken away what is asked for."""
    from runner.relational import queries

    kept, found = list[Expectation](), list[Notice]()
    for query in given:
        try:
            answers = queries.ask(database, (query,))
        except Permanent as exc:
            message = exc.detail or exc.summary  # begins with its name
            found.append(Notice(code=NOT_ASKED if later else UNMET, message=message, where=step, blocking=not later))
            continue
        kept.append(query)
        found += [Notice(code=UNMET, message=text, where=step, blocking=True) for text in answers]
    return tuple(kept), found


def _seen(world: World, connection: str, steps: Sequence[Any]) -> Iterator[Observed]:
    """The tables that the steps have made, as they are: a drift of theirs is seen from now on."""
    tables = dict.fromkeys(
        name
        for step in steps
        for name in (
            *(table.name for table in step.create_tables or ()),
            *([step.back_up.to] if step.back_up is not None else []),
            *([step.map.from_] if step.map is not None else []),
        )
    )
    for table in tables:
        place = Place(connection=connection, collection=table)
        one = described(world, place)
        yield Observed(
            place=place, role="relation", count=one.rows if one is not None else None, live=True,
            schema_digest=digest(one.looks) if one is not None else None,
        )  # fmt: skip
