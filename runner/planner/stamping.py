"""What was done by hand: the plan that records steps of a migration as done, after it has looked whether they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from runner import __version__
from runner.errors import NotFound, Permanent
from runner.kinds import kind_module
from runner.lock import now
from runner.mapping import Expectation
from runner.plan import RECORD, CheckQueries, Notice, Observed, Place, Plan, RecordSteps, Step
from runner.planner.policies import judged
from runner.planner.relational import described
from runner.settings import Settings
from runner.spec import Job, digest, suggest
from runner.state import States
from runner.world import World

if TYPE_CHECKING:
    from runner.documents.database import Database
    from runner.kinds.sql_migration.spec import Encrypt, Rotate, StepSpec
    from runner.relational.record import Record

KIND = "SqlMigration"
UNMET = "VX243"
NOT_ASKED = "VI163"
REPLACED = "VI171"
WOULD_FORGET = "VX265"
#: Name of the step of a plan that only records.
STAMP = "stamp"


def stamp(job: Job, settings: Settings, states: States, *, through: str | None = None) -> Plan:
    """The plan that records steps as done, up to `through` (default: all). NotFound when there is no such step; Permanent
    for jobs of other kinds."""
    from runner.kinds.sql_migration.spec import KEY, SqlMigrationSpec
    from runner.relational import record as records

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
        notices += _replaced(records.read(database, job.name), dict(recorded))
        for number, step in enumerate(chosen):
            later = any(one.drop_column or one.sql or one.rotate for one in chosen[number + 1 :])
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


def _replaced(record: Record, wanted: dict[str, str]) -> Iterator[Notice]:
    """What is recorded and is not what a stamp records: it would be forgotten, with what its way back needs."""
    for entry in record.entries:
        if entry.status in ("done", "stamped") and wanted.get(entry.step) == entry.digest:
            continue
        if entry.status == "done":
            other = "says something else now" if entry.step in wanted else "is not among the steps that are stamped"
            message = (
                f"run {entry.run} has done it, and it {other}: to forget it would lose what its rollback needs. Stamp the steps as "
                f"they were applied; or roll it back first, in the workspace of that run. Where nobody can: undo it by hand, then "
                f"delete its row in {RECORD}"
            )
            yield Notice(code=WOULD_FORGET, message=message, where=entry.step, blocking=True)
        else:
            what = {"begun": "begun", "undoing": "begun to be undone"}.get(entry.status, "stamped")
            new = "recorded as done" if entry.step in wanted else "forgotten"
            message = f"it was {what} by run {entry.run}: that is replaced, and it is {new}"
            yield Notice(code=REPLACED, message=message, where=entry.step)


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
    if (coded := step.encrypt or step.rotate) is not None:
        yield from _unencrypted(step.name, coded, world, connection, later=later)
    if (rows := step.map) is not None:
        for into in rows.into:
            table = described(world, Place(connection=connection, collection=into.table))
            if table is None or any(table.column(name) is None for name in into.values):
                gone = [name for name in into.values if table is not None and table.column(name) is None]
                what = f"{into.table} has no column {', '.join(gone)}" if gone else f"table {into.table} is not there"
                yield Notice(code=NOT_ASKED if later else UNMET, message=what, where=step.name, blocking=not later)
    if (drop := step.drop_column) is not None:
        table = described(world, Place(connection=connection, collection=drop.table))
        if table is not None and table.column(drop.column) is not None:
            message = f"{drop.table} still has the column {drop.column}"
            yield Notice(code=NOT_ASKED if later else UNMET, message=message, where=step.name, blocking=not later)


def _unencrypted(name: str, coded: Encrypt | Rotate, world: World, connection: str, *, later: bool) -> Iterator[Notice]:
    """Columns whose values are not encrypted with the key that a step says. `later` as for `_asked`."""
    from runner.kinds.sql_migration import values
    from runner.kinds.sql_migration.spec import KEY, Rotate
    from runner.kinds.sql_migration.survey import Telling
    from runner.relational import rows

    table = described(world, Place(connection=connection, collection=coded.table))
    lacks = [one for one in coded.columns if table is not None and table.column(one) is None]
    if table is None or lacks:
        message = f"{coded.table} has no column {', '.join(lacks)}" if lacks else f"table {coded.table} is not there"
        yield Notice(code=NOT_ASKED if later else UNMET, message=message, where=name, blocking=not later)
        return
    after = coded.to if isinstance(coded, Rotate) else coded.key
    database, key = world.relational(connection), rows.key_column(table, coded.key_column)
    tell = Telling(world.say, coded.table, int(table.rows))
    found = values.look(database, coded.table, key, coded.columns, None, world.cipher(KEY + after), tell)
    if left := found.values - found.after:
        message = f"{left:,} of {found.values:,} values of {coded.table} are not encrypted with {after}"
        yield Notice(code=NOT_ASKED if later else UNMET, message=message, where=name, blocking=not later)


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
