"""Steps of a migration inside of a relational database.

Each step that changes something is recorded in the table vecrun_migrations of that database, in the transaction that does
it; what cannot be one transaction is recorded statement by statement, or batch by batch (docs/safety.md).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, ClassVar, Literal

from runner.mapping import Expectation, RowMap, TableModel
from runner.plan.step import Action, Place, StepBase
from runner.points import Model

if TYPE_CHECKING:
    from runner.plan.document import Step

#: The table of what was done, in the database itself.
RECORD = "vecrun_migrations"
#: A column of the row and nothing else: row.name, or row["any name"], where json.loads reads it.
_COLUMN = re.compile(r'row(?:\.([A-Za-z_][A-Za-z0-9_]*)|\[("[^"\\]*(?:\\["\\][^"\\]*)*")\])')


class Statement(Model):
    """One statement of SQL. Outside of a transaction a process can die while it runs, so one of the two is said there: a query
    that gives true when it has happened, or that it does no harm to run it again."""

    sql: str
    done: str = ""
    repeat: bool = False


class Told(Model):
    """What became of rows under a rule: items (a row for one of `each`), rows, and the keys of the first of them."""

    message: str
    otherwise: str
    items: int
    rows: int
    first: tuple[str, ...] = ()


class Made(Model):
    """Rows that are made for a table: how often one is, and how many there are when equal ones are one."""

    table: str
    items: int
    distinct: int


class OfDatabase(StepBase):
    """A step in a relational database. `name`: of the spec's step that it is a part of."""

    connection: str
    name: str

    @property
    def tables(self) -> tuple[str, ...]:
        """Tables that are written."""
        return ()

    @property
    def written_places(self) -> tuple[Place, ...]:
        """Its tables, and the record: one migration at a time works on a database."""
        return tuple(Place(connection=self.connection, collection=table) for table in (RECORD, *self.tables))


class Recorded(OfDatabase):
    """A step that changes the database and is recorded there. `digest`: of what the spec says of it."""

    digest: str


class CheckQueries(OfDatabase):
    """Ask the database, and stop here when an answer is not the one that is wanted."""

    type: Literal["check_queries"] = "check_queries"
    when: Literal["before", "after"]
    queries: tuple[Expectation, ...]

    action: ClassVar[Action] = Action.CHECK

    @property
    def written_places(self) -> tuple[Place, ...]:
        return ()


class CreateTables(Recorded):
    """Make tables, in one transaction where the database can."""

    type: Literal["create_tables"] = "create_tables"
    made: tuple[TableModel, ...]

    action: ClassVar[Action] = Action.CREATE
    whole: ClassVar[bool] = True

    @property
    def tables(self) -> tuple[str, ...]:
        return tuple(table.name for table in self.made)

    def reverse(self) -> tuple[Step, ...] | None:
        return (RemoveTables(connection=self.connection, name=self.name, of=self.model_copy()),)


class RemoveTables(OfDatabase):
    """Drop the tables that a step has made, if it has."""

    type: Literal["remove_tables"] = "remove_tables"
    of: CreateTables
    rows: int | None = None  # that are in them when the plan is made

    action: ClassVar[Action] = Action.DELETE
    whole: ClassVar[bool] = True

    @property
    def tables(self) -> tuple[str, ...]:
        return self.of.tables

    def reverse(self) -> tuple[Step, ...] | None:
        return None


class RunStatements(Recorded):
    """SQL of the spec, in one transaction, or statement by statement where that cannot be."""

    type: Literal["run_statements"] = "run_statements"
    statements: tuple[Statement, ...]
    back: tuple[Statement, ...] | None = None  # None: irreversible
    transaction: bool = True

    action: ClassVar[Action] = Action.CHANGE

    @property
    def destroys(self) -> str:
        return (
            ""
            if self.back is not None
            else f"what the SQL of step {self.name} takes away; there is no way back from it"
        )

    def reverse(self) -> tuple[Step, ...] | None:
        if self.back is None:
            return None
        return (RevertStatements(connection=self.connection, name=self.name, of=self.model_copy()),)


class RevertStatements(OfDatabase):
    """The SQL that undoes a step, if that was done."""

    type: Literal["revert_statements"] = "revert_statements"
    of: RunStatements

    action: ClassVar[Action] = Action.CHANGE

    def reverse(self) -> tuple[Step, ...] | None:
        return None


class MapRows(Recorded):
    """Make rows of tables from the rows of one. A row that is there already stays as it is; the next step compares."""

    type: Literal["map_rows"] = "map_rows"
    map: RowMap
    key: str  # the column whose ranges are the partitions
    make: TableModel | None = None  # a table that is made first: that of a backup
    undo: str = ""  # table of the keys of rows that were made in tables from before this plan; empty: there are none
    rows: int
    made: tuple[Made, ...] = ()
    told: tuple[Told, ...] = ()
    left_out: int = 0  # rows of which something is left out, as the plan has seen them

    action: ClassVar[Action] = Action.CREATE

    @property
    def tables(self) -> tuple[str, ...]:
        return (*dict.fromkeys(into.table for into in self.map.into), *([self.undo] if self.undo else []))

    @property
    def read_places(self) -> tuple[Place, ...]:
        return (Place(connection=self.connection, collection=self.map.from_),)

    @property
    def extent(self) -> tuple[int, str]:
        return self.rows, "rows"

    @property
    def columns(self) -> dict[str, str] | None:
        """target column -> source column, when all that happens is that columns are copied to one table: the database does it."""
        one = self.map.into[0]
        if len(self.map.into) > 1 or self.map.each or self.map.rules:
            return None
        found = {
            column: match[1] or json.loads(match[2])
            for column, value in one.values.items()
            if isinstance(value, str) and (match := _COLUMN.fullmatch(value))
        }
        return found if len(found) == len(one.values) else None

    def reverse(self) -> tuple[Step, ...] | None:
        return (UnmapRows(connection=self.connection, name=self.name, of=self.model_copy()),)


class UnmapRows(OfDatabase):
    """Remove the rows that a step has made in tables from before it, and the table that it has made."""

    type: Literal["unmap_rows"] = "unmap_rows"
    of: MapRows

    action: ClassVar[Action] = Action.DELETE
    whole: ClassVar[bool] = True

    @property
    def tables(self) -> tuple[str, ...]:
        return self.of.tables

    def reverse(self) -> tuple[Step, ...] | None:
        return None


class EncryptColumns(Recorded):
    """Encrypt text in its place, or with another key (`before`), or bring it back to plain text (no `after`)."""

    type: Literal["encrypt_columns"] = "encrypt_columns"
    table: str
    key: str  # the column whose ranges are the partitions
    columns: tuple[str, ...]
    before: str = ""  # key of the spec that the values are encrypted with; empty: they are plain
    after: str = ""
    undo: str = ""  # table of the keys and columns of values that were changed; nothing else is brought back
    undoes: bool = False  # it is the way back of a step: only if that was begun
    rows: int
    batch_size: int = 1000

    action: ClassVar[Action] = Action.CHANGE

    @property
    def tables(self) -> tuple[str, ...]:
        return (self.table, *([self.undo] if self.undo else []))

    @property
    def extent(self) -> tuple[int, str]:
        return self.rows, "rows"

    def reverse(self) -> tuple[Step, ...] | None:
        if self.undoes:
            return None
        return (self.model_copy(update={"before": self.after, "after": self.before, "undoes": True}),)


class VerifyRows(OfDatabase):
    """Make every row once more and compare it with the one that is there; or decrypt every value."""

    type: Literal["verify_rows"] = "verify_rows"
    of: MapRows | EncryptColumns

    action: ClassVar[Action] = Action.CHECK

    @property
    def written_places(self) -> tuple[Place, ...]:
        return ()

    @property
    def extent(self) -> tuple[int, str]:
        return self.of.extent


class DropColumn(Recorded):
    """Drop a column. Its values stand in an undo table from the same transaction on."""

    type: Literal["drop_column"] = "drop_column"
    table: str
    column: str
    key: tuple[str, ...]  # columns that tell the rows of the table apart
    undo: str
    values: int  # rows where it is not NULL

    action: ClassVar[Action] = Action.DELETE
    whole: ClassVar[bool] = True

    @property
    def tables(self) -> tuple[str, ...]:
        return self.table, self.undo

    def reverse(self) -> tuple[Step, ...] | None:
        return (RestoreColumn(connection=self.connection, name=self.name, of=self.model_copy()),)


class RestoreColumn(OfDatabase):
    """Bring a dropped column back with its values, if it was dropped."""

    type: Literal["restore_column"] = "restore_column"
    of: DropColumn

    action: ClassVar[Action] = Action.CREATE
    whole: ClassVar[bool] = True

    @property
    def tables(self) -> tuple[str, ...]:
        return self.of.tables

    def reverse(self) -> tuple[Step, ...] | None:
        return None


class RecordSteps(OfDatabase):
    """Record steps as done that were done by hand; nothing else is changed."""

    type: Literal["record_steps"] = "record_steps"
    steps: tuple[tuple[str, str], ...]  # (name, digest)

    action: ClassVar[Action] = Action.CHANGE
    whole: ClassVar[bool] = True

    def reverse(self) -> tuple[Step, ...] | None:
        return (ForgetSteps(connection=self.connection, name=self.name, of=self.model_copy()),)


class ForgetSteps(OfDatabase):
    """Forget what was recorded by hand."""

    type: Literal["forget_steps"] = "forget_steps"
    of: RecordSteps

    action: ClassVar[Action] = Action.CHANGE
    whole: ClassVar[bool] = True

    def reverse(self) -> tuple[Step, ...] | None:
        return None
