"""From the spec, the record in the database and the live tables to steps: what is recorded is not done again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

from runner.ciphers import Cipher
from runner.errors import Permanent
from runner.kinds import Draft
from runner.kinds.sql_migration import facts, findings, values
from runner.kinds.sql_migration.sight import Sight
from runner.kinds.sql_migration.spec import KEY, BackUp, Drop, Encrypt, Rotate, Sql, SqlMigrationSpec, StepSpec
from runner.kinds.sql_migration.standing import due, standing
from runner.kinds.sql_migration.survey import Surveyed, Telling, survey
from runner.mapper import Mapper, Misfit
from runner.mapping import Encrypted, Into, RowMap, TableModel
from runner.plan import (
    CheckQueries,
    CreateTables,
    DropColumn,
    EncryptColumns,
    Fact,
    Made,
    MapRows,
    Notice,
    Observed,
    Overview,
    Place,
    RunStatements,
    Statement,
    Step,
    VerifyRows,
)
from runner.relational import COMMITS_DDL
from runner.spec import digest, meant
from runner.state import State
from runner.world import World

#: What a step of the spec becomes, beside what is asked and compared around it.
Doing = RunStatements | CreateTables | MapRows | EncryptColumns | DropColumn


def recurring(_spec: SqlMigrationSpec) -> bool:
    """Each step is done once."""
    return False


def plan_steps(job: str, spec: SqlMigrationSpec, world: World, state: State, *, applied: bool) -> Draft:  # noqa: ARG001
    """Open the keys, read the record, look at every row that is to be read, and say what has to be done."""
    ciphers = {name: world.cipher(KEY + name) for name in spec.keys}  # before anything is read
    from runner.relational import record as records

    database = world.relational(spec.connection)
    record = records.read(database, job)
    draft = Draft(retention=spec.retention or "")
    known = {item.run for item in state.applied}
    draft.notices = standing(spec, record, {name: cipher.check for name, cipher in ciphers.items()}, known)
    if any(item.blocking for item in draft.notices):
        return draft
    pending = due(spec, record)
    if not pending:
        return draft
    sight = Sight(database, spec.connection, f"{job}:{state.lineage}:{state.serial}", recorded=bool(record.entries))
    work = _Work(spec, sight, {item.code: item.reason for item in spec.accept}, pending)
    work.ciphers, work.say = ciphers, world.say
    work.mappers = {step.name: Mapper(step.map, ciphers) for step in spec.steps if step.map is not None}
    for step in pending:
        draft.steps += work.steps(step)
    place = Place(connection=spec.connection, collection="")
    only = "see the findings" if any(step.forms for step in pending) else "only checks"
    shown = tuple(work.facts) or (Fact(label="steps", after=only),)
    draft.overview = [Overview(source=place, target=place, facts=shown)]
    draft.notices += [*work.found, *findings.plain_text(spec, pending, sight.undo)]
    draft.world = list(_observed(draft.steps, sight))
    return draft


def _observed(steps: list[Step], sight: Sight) -> Iterator[Observed]:
    """The tables that are read or written, as they are, and those that are made. Undo tables are vecrun's own."""
    live = dict[str, bool]()
    for step in steps:
        of = step.of if isinstance(step, VerifyRows) else step
        if isinstance(of, MapRows):
            live[of.map.from_] = live.get(of.map.from_, False) or of.map.live
        for table in getattr(of, "tables", ()):
            if table not in sight.undo_tables:
                live.setdefault(table, False)
    for table, moves in live.items():
        described = sight.described(table)
        yield Observed(
            place=Place(connection=sight.connection, collection=table), role="relation",
            count=described.rows if described is not None else None,
            schema_digest=digest(described.looks) if described is not None else None, live=moves,
        )  # fmt: skip


def _makes(step: StepSpec) -> list[str]:
    """Tables that a step of the spec makes."""
    return [table.name for table in step.create_tables or ()] + ([step.back_up.to] if step.back_up is not None else [])


def _read(column: str) -> str:
    """The expression for a column of a row."""
    return (
        f"row.{column}"
        if column.isidentifier() and column.isascii()
        else f"row[{json.dumps(column, ensure_ascii=False)}]"
    )


class _Work:
    """Goes through the steps of a spec in their order, and collects findings and facts."""

    def __init__(
        self, spec: SqlMigrationSpec, sight: Sight, accepted: Mapping[str, str], pending: list[StepSpec]
    ) -> None:
        self.spec, self.sight, self.accepted, self.pending = spec, sight, accepted, pending
        self.mappers: dict[str, Mapper] = {}
        self.ciphers: dict[str, Cipher] = {}
        self.say: Callable[[str], None] = lambda _line: None
        made = [name for step in pending for name in _makes(step)]
        self._by_hand = any(sight.described(name) is not None for name in made)  # what the steps make is there, in part
        self.found: list[Notice] = []
        self.facts: list[Fact] = []
        self.seen: dict[str, Surveyed] = {}  # step -> what a survey found

    def tell(self, table: str) -> Telling:
        """How far a table was read."""
        return Telling(self.say, table, self.sight.count(table))

    def steps(self, step: StepSpec) -> list[Step]:
        """The plan's steps for one of the spec."""
        of = {"connection": self.spec.connection, "name": step.name}
        steps: list[Step] = []
        if step.check:
            steps.append(CheckQueries(**of, when="before", queries=step.check))
            self._ask(step)
        did: list[Doing] = list(self._does(step, of | {"digest": step.digest})) if step.forms else []
        steps += did
        for one in did:
            if isinstance(one, MapRows | EncryptColumns):
                steps.append(VerifyRows(**of, of=one))
            self.sight.after(one)
        if step.verify:
            steps.append(CheckQueries(**of, when="after", queries=step.verify))
        return steps

    def _does(self, step: StepSpec, of: dict[str, str]) -> Iterator[Doing]:
        try:
            if step.sql is not None:
                yield self._sql(step.sql, of)
            elif step.create_tables is not None:
                yield self._create(step.create_tables, of)
            elif step.back_up is not None:
                yield from self._back_up(step.back_up, of)
            elif step.map is not None:
                yield from self._map(step, step.map, of)
            elif step.encrypt is not None:
                yield from self._encrypt(step.encrypt, of, before="", after=step.encrypt.key)
            elif step.rotate is not None:
                yield from self._encrypt(step.rotate, of, before=step.rotate.from_, after=step.rotate.to)
            elif step.drop_column is not None:
                yield from self._drop(step.drop_column, of)
        except Permanent as exc:  # something of it cannot be: all of those are told at once
            parts = [exc.summary, exc.detail, exc.hint]
            self._refuse(": ".join(part for part in parts if part), of["name"], findings.NO_KEY)

    # what is found ------------------------------------------------------------------------------------------------

    def _refuse(self, message: str, where: str, code: str) -> None:
        self.found.append(findings.blocking(code, message, where))

    def _tell(self, code: str, message: str, where: str) -> None:
        self.found.append(Notice(code=code, message=message, where=where))

    def _amiss(self, what: str, where: str) -> None:
        """Something is there that should not be, or the other way round."""
        notice = findings.unknown(what, recorded=self.sight.recorded)
        self.found.append(notice.model_copy(update={"where": where}))

    def _lacks(self, what: str, where: str, near: str) -> None:
        """Something is not there: misspelt, or taken away by somebody who has done the steps by hand."""
        if self._by_hand or self.sight.recorded:
            self._amiss(what, where)
        else:
            self._refuse(f"{what}. {near}".rstrip(" ."), where, findings.NOT_THERE)

    def _ask(self, step: StepSpec) -> None:
        """Prerequisites, as far as they can be asked before the steps in front of them are done."""
        from runner.relational import queries

        for query in step.check:
            try:
                answers = queries.ask(self.sight.database, (query,))
            except Permanent as exc:
                answers = [exc.detail or exc.summary]  # begins with its name
            if not answers:
                continue
            if self.sight.changed:
                message = f"{query.name}: does not hold yet; it is asked when the steps before it are done"
                self._tell(findings.ASKED_LATER, message, step.name)
                continue
            for answer in answers:
                self._refuse(answer, step.name, findings.UNMET)

    # what is done -------------------------------------------------------------------------------------------------

    def _sql(self, sql: Sql, of: dict[str, str]) -> Doing:
        def statements(given: tuple[object, ...]) -> tuple[Statement, ...]:
            return tuple(Statement(sql=one.sql, done=one.done or "", repeat=one.repeat) for one in given)  # type: ignore[attr-defined]

        step = RunStatements.model_validate(
            of
            | {
                "statements": statements(sql.forward),
                "back": None if sql.rollback is None else statements(sql.rollback),
                "transaction": sql.transaction,
            }
        )
        self.facts += facts.of_sql(step)
        if step.back is None:
            message = "the spec gives no rollback for it: once it is done, this run cannot be rolled back"
            self._tell(findings.NO_WAY_BACK, message, step.name)
        self._piecewise(step.name, whole=sql.transaction)
        return step

    def _piecewise(self, name: str, *, whole: bool = True) -> None:
        dialect = self.sight.dialect.name
        if not whole:
            message = "its statements are done one by one, outside of a transaction; each is recorded before and after"
            self._tell(findings.PIECEWISE, message, name)
        elif dialect in COMMITS_DDL:
            message = f"{dialect} has no transactions for it: it is done and recorded statement by statement"
            self._tell(findings.PIECEWISE, message, name)

    def _create(self, tables: tuple[TableModel, ...], of: dict[str, str]) -> Doing:
        from runner.relational import schema

        for table in tables:
            if self.sight.there(table.name):
                self._amiss(f"table {table.name} exists already", of["name"])
            for parent in dict.fromkeys(one.references.rpartition(".")[0] for one in table.columns if one.references):
                if parent not in {one.name for one in tables} and not self.sight.comes(parent):
                    self._amiss(f"table {parent}, which {table.name} references, is missing", of["name"])
            self.facts += facts.of_table(table, schema.ddl(table, self.sight.dialect))
        self._piecewise(of["name"])
        return CreateTables.model_validate(of | {"made": tables})

    def _back_up(self, spec: BackUp, of: dict[str, str]) -> Iterator[Doing]:
        if self.sight.there(spec.to):
            self._amiss(f"table {spec.to} exists already", of["name"])
        if not self._readable(spec.table, spec.columns, of["name"]):
            return
        self.sight.refuse_heirs(spec.table)
        columns = self.sight.columns(spec.table, spec.columns)
        key = self.sight.key(spec.table, None)
        read = {column.name: _read(column.name) for column in columns}
        make = TableModel(name=spec.to, columns=columns)
        rows = RowMap.model_validate(
            {
                "from": spec.table, "key": key, "where": spec.where, "batch_size": spec.batch_size,
                "into": [Into.model_validate({"table": spec.to, "values": read})],
            }
        )  # fmt: skip
        count = self.sight.count(spec.table, spec.where)
        self.facts += facts.of_backup(spec, columns, count)
        made = (Made(table=spec.to, items=count, distinct=count),)
        yield MapRows.model_validate(of | {"map": rows, "key": key, "make": make, "rows": count, "made": made})

    def _map(self, step: StepSpec, spec: RowMap, of: dict[str, str]) -> Iterator[Doing]:
        mapper = self.mappers[step.name] = Mapper(spec, self.ciphers, self._misfits(spec))
        for into in spec.into:
            self._writable(into, step.name)
        if not self._readable(spec.from_, mapper.columns or (), step.name):
            return
        self.sight.refuse_heirs(spec.from_)
        older = [into.table for into in spec.into if into.table not in self.sight.made]
        undo = self.sight.new_undo(older[0], step.name) if older else ""
        key = self.sight.key(spec.from_, spec.key)
        made = MapRows.model_validate(of | {"map": spec, "key": key, "undo": undo, "rows": 0})
        if self.sight.is_seen(spec.from_, mapper.columns or ()):
            found = self._survey(step, made, mapper)
            self.facts += facts.of_rows(made, found)
            self.found += findings.told(found.told, found.left, step.name, spec.from_)
            for table, (count, first) in found.differing.items():
                more = f" and {count - len(first):,} more" if count > len(first) else ""
                message = f"{count:,} rows of {table} would be made with one key and different values, of which one would stay: {spec.from_} {', '.join(first)}{more}. Choose another key, or let a rule leave rows out"
                self._refuse(message, step.name, findings.DIFFERING)
            yield made.model_copy(
                update={"rows": found.rows, "made": found.made, "told": found.told, "left_out": found.left}
            )
            return
        message = f"an earlier step of this plan makes or changes {spec.from_}: its rows are not looked at before; those that a rule refuses stop the run, or are left out, as the spec says"
        self._tell(findings.UNSEEN, message, step.name)
        self.facts.append(Fact(label=f"rows of {', '.join(dict.fromkeys(i.table for i in spec.into))}", after=f"made from {spec.from_}"))  # fmt: skip
        yield made

    def _misfits(self, spec: RowMap) -> dict[tuple[int, str], Misfit]:
        """What the step will ask of a value before it goes into a column."""
        from runner.relational import written

        asked = {
            (number, name): written.misfit(self.sight.dialect.name, is_json=self.sight.is_json(into.table, name))
            for number, into in enumerate(spec.into)
            for name, value in into.values.items()
            if not isinstance(value, Encrypted)
        }
        return {at: misfit for at, misfit in asked.items() if misfit is not None}

    def _survey(self, step: StepSpec, made: MapRows, mapper: Mapper) -> Surveyed:
        if step.name not in self.seen:
            table = made.map.from_
            described = self.sight.described(table)
            assert described is not None
            there = [column.name for column in described.columns]
            watched = [
                one.drop_column.column
                for one in self.pending
                if one.drop_column is not None and one.drop_column.table == table and one.drop_column.column in there
            ]
            columns = there if mapper.columns is None else dict.fromkeys((made.key, *mapper.columns, *watched))
            keys = {into.table: into.key or self.sight.primary_key(into.table) for into in made.map.into}
            self.seen[step.name] = survey(
                self.sight.database, made, mapper, tuple(columns), watched, keys, self.tell(table)
            )
        return self.seen[step.name]

    def _encrypt(self, spec: Encrypt | Rotate, of: dict[str, str], *, before: str, after: str) -> Iterator[Doing]:
        if not self._readable(spec.table, spec.columns, of["name"]):
            return
        key, count = self.sight.key(spec.table, spec.key_column), self.sight.count(spec.table)
        self.facts += facts.of_encryption(spec.table, spec.columns, before, after, count)
        self.sight.refuse_heirs(spec.table)
        if self.sight.is_seen(spec.table, spec.columns):
            self._values(spec.table, key, spec.columns, of["name"], before=before, after=after)
        yield EncryptColumns.model_validate(
            of
            | {
                "table": spec.table, "key": key, "columns": spec.columns, "before": before, "after": after, "rows": count,
                "batch_size": spec.batch_size, "undo": self.sight.new_undo(spec.table, of["name"]),
            }
        )  # fmt: skip

    def _values(self, table: str, key: str, columns: tuple[str, ...], where: str, *, before: str, after: str) -> None:
        """Every value is looked at: what is refused is refused before anything is changed."""
        if odd := values.no_texts(self.sight.database, table, columns):
            self._refuse(
                f"{table}.{', '.join(odd)} is no text: what is encrypted is stored as text", where, findings.NO_TEXT
            )
            return
        old, new = self.ciphers.get(before), self.ciphers[after]
        found = values.look(self.sight.database, table, key, columns, old, new, self.tell(table))
        self.facts.append(Fact(label="  values", before=f"{found.values:,}", after=found.said(after)))
        if found.odd or found.unreadable:
            more = found.odd + found.unreadable - len(found.named)
            named = ", ".join(found.named) + (f" and {more:,} more" if more > 0 else "")
            what = (
                "cannot be encrypted, as no text stands there" if found.odd else f"neither {before} nor {after} opens"
            )
            number = found.odd or found.unreadable
            message = f"{number:,} {'value' if number == 1 else 'values'} of {table} that {what}: {'key' if number == 1 else 'keys'} {named}"
            self._refuse(message, where, findings.UNREADABLE)
        elif not found.todo:
            self._tell(findings.NOTHING, f"no value of {table} has to be changed: {found.said(after)}", where)
        described = self.sight.described(table)
        for column in described.columns if described is not None and self.sight.dialect.name != "sqlite" else ():
            room = values.room(column.type) if column.name in columns else None
            if room is not None and found.todo and room < (needed := values.length(new, found.longest)):
                message = f"{table}.{column.name} is {column.type}, and what is encrypted takes up to {needed:,} characters: make it longer in a step before"
                self._refuse(message, where, findings.TOO_SHORT)

    def _drop(self, spec: Drop, of: dict[str, str]) -> Iterator[Doing]:
        from runner.relational import changes

        if not self._readable(spec.table, (spec.column,), of["name"]):
            return
        undo = self.sight.new_undo(spec.table, of["name"])
        self.sight.undo[spec.table] = undo
        described, values = self.sight.described(spec.table), 0
        key = self.sight.primary_key(spec.table)
        if not key:
            self._refuse(f"{spec.table} has no primary key: its values could not be brought back", of["name"], findings.NO_KEY)  # fmt: skip
        if described is not None and self.sight.has(spec.table, (spec.column,)):
            values = self.sight.values(spec.table, spec.column)
            for obstacle in changes.obstacles(self.sight.database, spec.table, spec.column):
                self._refuse(
                    f"{spec.table}.{spec.column} cannot be dropped so that it could come back: {obstacle}",
                    of["name"],
                    findings.STAYS,
                )
            if described.columns[-1].name != spec.column:
                message = f"a rollback brings {spec.column} back as the last column of {spec.table}, where it was not the last: SQL that counts on the order of columns notices"
                self._tell(findings.MOVES, message, of["name"])
            self._loses(spec, values, undo, of["name"])
            kind = next(str(one.type) for one in described.columns if one.name == spec.column)
            self.facts += facts.of_drop(spec, kind, values, undo)
        message = f"who still names {spec.table}.{spec.column} fails from then on"
        self._tell(findings.GOES, message, of["name"])
        self._piecewise(of["name"])
        yield DropColumn.model_validate(
            of | {"table": spec.table, "column": spec.column, "key": key, "undo": undo, "values": values}
        )

    def _loses(self, spec: Drop, values: int, undo: str, where: str) -> None:
        """Values that no row was made of: a column is not dropped over them before somebody said so."""
        used = list[int]()
        for step in self.spec.steps:
            if step.map is not None and step.map.from_ == spec.table:
                columns = self.mappers[step.name].columns
                if (columns is not None and spec.column not in columns) or not self.sight.has(
                    spec.table, columns or ()
                ):
                    continue
                key = self.sight.key(spec.table, step.map.key)
                made = MapRows(
                    connection=self.spec.connection, name=step.name, digest="", map=step.map, key=key, rows=0
                )
                used.append(self._survey(step, made, self.mappers[step.name]).used.get(spec.column, 0))
        if used and values > min(used):
            lost = values - min(used)
            self.found.append(findings.loses(spec.table, spec.column, lost, undo, where, self.accepted))

    # what has to be there -----------------------------------------------------------------------------------------

    def _readable(self, table: str, columns: tuple[str, ...], where: str) -> bool:
        """Whether a table and its columns are there when a step comes to them, as far as can be said."""
        if not self.sight.comes(table):
            self._lacks(f"table {table} is missing", where, meant(table, self.sight.tables()))
            return False
        if missing := self.sight.lacks(table, columns):
            there = self.sight.names(table)
            near = "; ".join(filter(None, (meant(missing[0], there), f"it has {', '.join(there)}")))
            self._lacks(f"{table} has no column {', '.join(missing)}", where, near)
            return False
        return True

    def _writable(self, into: Into, where: str) -> None:
        if self._readable(into.table, tuple(into.values), where) and into.table not in self.sight.made:
            described = self.sight.described(into.table)
            if described is not None and not self.sight.changed:
                self.sight.refuse_alike(into.table, into.key)
            if described is not None and described.rows:
                message = (
                    f"{into.table} holds {described.rows:,} rows already: a row of the same key stays as it is, and is compared; a "
                    "rollback removes only those that were added"
                )
                self._tell(findings.FILLED, message, where)
