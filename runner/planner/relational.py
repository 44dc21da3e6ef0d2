"""Migrations inside of a relational database: what moved since, what stands in the way of the way back, and what was done by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from runner.errors import NotFound
from runner.ledger import Ledger
from runner.plan import (
    Change,
    DocumentRows,
    DropColumn,
    EncryptColumns,
    MapRows,
    Notice,
    OfDatabase,
    Place,
    Plan,
    Recorded,
    RecordSteps,
    RemoveTables,
    RewriteIds,
    SetModel,
    Step,
    UnmapRows,
    loads,
)
from runner.state import State, States
from runner.world import World

if TYPE_CHECKING:
    from runner.relational.schema import Described

ROWS_SINCE = "VD109"
KEPT_GONE = "VX249"
IN_THE_WAY = "VX250"
OTHER_KEY = "VX246"
FORGOTTEN = "VX251"
GONE = "VI162"
ROWLESS = "VI170"
NOT_ONLY_OURS = "VX266"
NEEDED_BY = "VD103"


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
        elif entry.status in ("begun", "undoing"):
            what = "begun anew" if entry.status == "begun" else "begun to be undone"
            yield connection, f"step {name} was {what} in {connection}, by run {entry.run}"


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


def _of_others(of: Plan, run: str, job: str, state: State, ledger: Ledger, world: World) -> Iterator[Notice]:
    """Steps of the job that a run after ours has done from another workspace: they stand on what would be taken away."""
    from runner.relational import record as records

    known = {row["run"] for row in ledger.runs_of(job)} | {item.run for item in state.applied}
    for connection in dict.fromkeys(step.connection for step in of.steps if isinstance(step, OfDatabase)):
        record = records.read(world.relational(connection), job)
        ours = [entry.recorded for entry in record.entries if entry.run == run]
        # two can be recorded in one second; whose claim was the last is sure
        foreign = record.claim is not None and record.claim.run not in known
        for entry in record.entries:
            later = ours and (entry.recorded > max(ours) or (foreign and entry.recorded >= min(ours)))
            if entry.run not in known and later:
                message = (
                    f"it was done by run {entry.run}, which this workspace does not know, after what would be undone: roll that run "
                    "back first, in its workspace"
                )
                yield Notice(code=NOT_ONLY_OURS, message=message, where=entry.step, blocking=True)


def _built_upon(run: str, steps: Sequence[Step], state: State, ledger: Ledger, states: States) -> Iterator[Notice]:
    """Tables that would be dropped, or whose values would be decrypted, and on which a later run of another job stands."""
    places = {
        Place(connection=step.connection, collection=table)
        for step in steps
        if isinstance(step, RemoveTables | UnmapRows | EncryptColumns)
        for table in step.tables
    }
    began = ledger.run(run)["created"]
    for name in states.jobs():
        other = states.load(name)
        if name == state.job or other.status != "applied":
            continue
        for item in other.applied:
            try:
                row = ledger.run(item.run)
            except NotFound:
                continue
            if row["created"] <= began or item.run in other.forgotten:
                continue
            changed = [step for step in loads(row["plan"], f"run {item.run}").steps if isinstance(step, Recorded)]
            for place in sorted(places & {*touched(changed)}, key=str):
                message = f"job {name} has steps on it since; undo that first: vecrun rollback {name}"
                yield Notice(code=NEEDED_BY, message=message, where=str(place), blocking=True)


def hindrances(
    of: Plan, begun: Sequence[Step], rows: Sequence[dict[str, Any]], steps: Sequence[Step], state: State, run: str,
    world: World, ledger: Ledger, states: States, *, discard: bool,
) -> list[Notice]:  # fmt: skip
    """What a rollback would destroy or could not bring back. `of`: the plan of the run; `rows`: of the ledger, for the steps that
    were begun."""
    found = [*_of_others(of, run, state.job, state, ledger, world), *_built_upon(run, steps, state, ledger, states)]
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
        if isinstance(step, EncryptColumns):
            found += [*_with_keys(step, state.job, world), *_rowless(step, world)]
    return found


def _rowless(step: EncryptColumns, world: World) -> Iterator[Notice]:
    """Values that the run has changed and whose row is found no more under its key."""
    from runner.relational import encrypting

    places = [Place(connection=step.connection, collection=name) for name in (step.table, step.undo)]
    if step.undo and all(described(world, place) is not None for place in places):
        lost = encrypting.without_row(world.relational(step.connection), step.table, step.key, step.undo)
        if lost:
            message = (
                f"{lost:,} {'value' if lost == 1 else 'values'} that the run has changed {'has' if lost == 1 else 'have'} no row any "
                f"more: it is gone, or its key was changed, and then what it holds stays encrypted. {step.undo} lists the keys"
            )
            yield Notice(code=ROWLESS, message=message, where=str(places[0]))


def _with_keys(step: EncryptColumns, job: str, world: World) -> Iterator[Notice]:
    """A table that is gone, and keys that are not those of the run. One that is missing is told by its error."""
    from runner.relational import record as records

    claim = records.read(world.relational(step.connection), job).claim
    for name in filter(None, (step.before, step.after)):
        check = world.cipher(f"key:{name}").check
        if claim is not None and claim.keys.get(name, check) != check:
            message = (
                "it is another key than the one that the run has used. Put that one back, then plan the rollback again"
            )
            yield Notice(code=OTHER_KEY, message=message, where=f"key {name}", blocking=True)
    place = Place(connection=step.connection, collection=step.table)
    table = described(world, place)
    lacks = [name for name in step.columns if table is not None and table.column(name) is None]
    if table is None or lacks:
        what = "the table is gone" if table is None else f"{', '.join(lacks)} is gone"
        message = f"{what}: its values cannot be brought back to what they were before step {step.name}"
        yield Notice(code=IN_THE_WAY, message=message, where=str(place), blocking=True)


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
    """Tables that are dropped and do not hold what they held when the run had come to its end."""
    before = {item.place: item.count for item in state.world}
    for step in steps:
        dropped = step.tables if isinstance(step, RemoveTables) else ()
        if isinstance(step, UnmapRows) and step.of.make is not None:
            dropped = (step.of.make.name,)
        for table in dropped:
            assert isinstance(step, RemoveTables | UnmapRows)
            place = Place(connection=step.connection, collection=table)
            found = described(world, place)
            if found is None:
                yield Notice(code=GONE, message="it is gone already: nothing is left to drop", where=str(place))
                continue
            message = _differs(step, table, state.job, world)
            if message is None:  # of a run that did not keep what stood there
                more = found.rows - (before.get(place) or 0) if isinstance(step, RemoveTables) else 0
                message = f"rows that came since the run, and stand nowhere else: {more:,}" if more > 0 else ""
            if message:
                accepted = "--discard-new-points" if discard else ""
                yield Notice(
                    code=ROWS_SINCE, message=message, where=str(place), accepted=accepted, blocking=not discard
                )


def _differs(step: RemoveTables | UnmapRows, table: str, job: str, world: World) -> str | None:
    """How a table differs from what the run has left in it; None when that is not known."""
    from runner.relational import contents
    from runner.relational import record as records

    database = world.relational(step.connection)
    for entry in records.read(database, job).entries:
        if entry.step == step.name and (before := entry.notes.get("contents", {}).get(table)) is not None:
            with database.reading() as connection:
                return contents.differs(connection, table, before)
    return None


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
    undo = described(world, Place(connection=step.connection, collection=step.undo))
    if undo is not None and all(table.column(name) is not None for name in step.key):
        from runner.relational import columns

        lost = columns.without_row(world.relational(step.connection), step.table, step.column, step.key, step.undo)
        if lost:
            message = (
                f"{lost:,} {'value' if lost == 1 else 'values'} of {step.column} stand in {step.undo} and have no row any more: the "
                "row is gone, or its key was changed. The rollback drops them with that table: copy it before, if you need them"
            )
            yield Notice(code=ROWLESS, message=message, where=str(place))


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
