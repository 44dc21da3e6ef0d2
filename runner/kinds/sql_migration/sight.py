"""The database as it is, and as the steps before will have left it: what a step is going to find when its turn comes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from runner.errors import Permanent
from runner.mapping import ColumnModel, TableModel
from runner.plan import CreateTables, DropColumn, MapRows, OfDatabase, RunStatements
from runner.spec import digest

if TYPE_CHECKING:
    from runner.documents.database import Database
    from runner.relational.schema import Described

#: Types of columns whose values are JSON.
JSON = ("json", "jsonb")
#: The way out where a plan cannot see what a step is going to find.
SPLIT = "Apply the steps before it first, then add it at the end"


class Sight:
    """Tables are looked at once. `key` names the plan that is made; `recorded`: steps of the job were done before."""

    def __init__(self, database: Database, connection: str, key: str, *, recorded: bool) -> None:
        self.database, self.connection, self._key, self.recorded = database, connection, key, recorded
        self.made: dict[str, TableModel] = {}  # tables that earlier steps of the plan make
        self.undo: dict[str, str] = {}  # table -> undo table of a column of it that is dropped
        self.undo_tables: set[str] = set()
        self.changed = False  # an earlier step of the plan changes something
        self._unsure = False  # SQL of an earlier step may have made or changed any table
        self._written: set[str] = set()
        self._dropped: set[tuple[str, str]] = set()
        self._described: dict[str, Described | None] = {}

    @property
    def dialect(self) -> sa.Dialect:
        """Of the database."""
        return self.database.engine.dialect

    def after(self, step: OfDatabase) -> None:
        """A step of the plan comes before those that are looked at from now on."""
        self.changed = True
        self._written |= set(step.tables)
        if isinstance(step, RunStatements):
            self._unsure = True
        elif isinstance(step, CreateTables):
            self.made |= {table.name: table for table in step.made}
        elif isinstance(step, MapRows) and step.make is not None:
            self.made[step.make.name] = step.make
        elif isinstance(step, DropColumn):
            self._dropped.add((step.table, step.column))

    def described(self, table: str) -> Described | None:
        """A table as it is now."""
        from runner.relational import schema

        if table not in self._described:
            self._described[table] = schema.describe(self.database, table)
        return self._described[table]

    def there(self, table: str) -> bool:
        """Whether a table is in the way of one that is to be made."""
        return table in self.made or (self.described(table) is not None and not self._unsure)

    def comes(self, table: str) -> bool:
        """Whether a table will be there, as far as can be said."""
        return table in self.made or self.described(table) is not None or self._unsure

    def lacks(self, table: str, columns: Iterable[str]) -> list[str]:
        """Columns that a table will not have, as far as can be said."""
        if table in self.made:
            has = {column.name for column in self.made[table].columns}
        elif (described := self.described(table)) is not None:
            has = {column.name for column in described.columns}
        else:
            return []
        gone = {column for of, column in self._dropped if of == table}
        return [name for name in columns if name in gone or (name not in has and not self._unsure)]

    def names(self, table: str) -> list[str]:
        """Columns that a table has, or will have."""
        if table in self.made:
            return [column.name for column in self.made[table].columns]
        described = self.described(table)
        return [column.name for column in described.columns] if described is not None else []

    def tables(self) -> list[str]:
        """Names of tables, for one that is misspelt."""
        with self.database.reading() as connection:
            return [*self.made, *sa.inspect(connection).get_table_names()]

    def has(self, table: str, columns: Iterable[str]) -> bool:
        """Whether a table has these columns now."""
        described = self.described(table)
        return described is not None and all(described.column(name) is not None for name in columns)

    def is_seen(self, table: str, columns: Iterable[str]) -> bool:
        """Whether the rows of a table are those that a step will read: no earlier step makes or writes it."""
        return table not in self.made and table not in self._written and self.has(table, columns)

    def columns(self, table: str, names: Iterable[str]) -> tuple[ColumnModel, ...]:
        """Columns of a table for a copy of it: the primary key, then `names`. Permanent when they cannot be told."""
        if table in self.made:
            model = self.made[table]
            wanted = dict.fromkeys((*model.primary_key, *names))
            found = {column.name: column for column in model.columns}
            kept = {"references": None, "unique": False, "default": None, "default_sql": None}
            return tuple(found[name].model_copy(update=kept) for name in wanted)
        described = self.described(table)
        if described is None:
            raise Permanent("The columns of a table are not known before an earlier step is done", table, SPLIT)
        if not described.primary_key:
            raise Permanent("A table has no primary key", f"{table}: a copied row could not be found again")
        columns = []
        for name in dict.fromkeys((*described.primary_key, *names)):
            column = described.column(name)
            if column is None:
                raise Permanent("A column is not there before an earlier step is done", f"{table}.{name}", SPLIT)
            key = name in described.primary_key
            kind = column.type
            if self.dialect.name == "sqlite" and (not kind or kind.upper() == "ANY"):
                kind = "BLOB"  # the one type of SQLite that changes no value
            columns.append(ColumnModel(name=name, sql_type=kind, nullable=not key, primary_key=key))
        return tuple(columns)

    def is_json(self, table: str, name: str) -> bool:
        """Whether a column holds JSON, as far as can be said."""
        if table in self.made:
            return any(
                one.name == name and (one.type or one.sql_type or "").lower() in JSON
                for one in self.made[table].columns
            )
        described = self.described(table)
        column = described.column(name) if described is not None else None
        return column is not None and column.type.lower() in JSON

    def primary_key(self, table: str) -> tuple[str, ...]:
        """Columns of the primary key; none where the table is not known yet."""
        if table in self.made:
            return self.made[table].primary_key
        described = self.described(table)
        return tuple(described.primary_key) if described is not None else ()

    def key(self, table: str, wanted: str | None) -> str:
        """The column whose ranges are worked on. Permanent when there is none."""
        from runner.relational import rows

        described = self.described(table) if table not in self.made else None
        if described is not None and not (wanted is not None and described.column(wanted) is None and self._unsure):
            try:
                return rows.key_column(described, wanted)
            except Permanent as exc:
                raise Permanent(exc.summary, f"{table}: {exc.detail}", exc.hint) from None
        primary = self.primary_key(table)
        if wanted is None and len(primary) != 1:
            raise Permanent("A table has no primary key of one column", f"{table}: name a unique column as key")
        return wanted if wanted is not None else primary[0]

    def refuse_heirs(self, table: str) -> None:
        """Permanent when the rows of a table cannot be gone through by its key, as far as can be said."""
        from runner.relational import rows

        if table not in self.made and self.described(table) is not None:
            rows.refuse(self.database, table)

    def refuse_alike(self, table: str, key: tuple[str, ...]) -> None:
        """Permanent when the database does not see to it that the rows of a table differ in these columns."""
        from runner.relational.shape import shape, unique_columns

        unique_columns(shape(self.database, table), key)

    def count(self, table: str, where: str | None = None) -> int:
        """Rows of a table as it is now; 0 where it is not there yet."""
        described = self.described(table)
        if described is None:
            return 0
        if where is None:
            return int(described.rows)
        return self._count(table, sa.literal_column(f"({where})"))

    def values(self, table: str, column: str) -> int:
        """Rows in which a column is not NULL."""
        return self._count(table, sa.column(column).is_not(None))

    def _count(self, table: str, condition: sa.ColumnElement[Any]) -> int:
        schema, _, bare = table.rpartition(".")
        query = sa.select(sa.func.count()).select_from(sa.table(bare, schema=schema or None)).where(condition)
        with self.database.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def new_undo(self, table: str, step: str) -> str:
        """A name for the undo table of a step, beside a table."""
        schema = table.rpartition(".")[0]
        name = f"vecrun_undo_{digest([self._key, step]).removeprefix('sha256:')[:10]}"
        name = f"{schema}.{name}" if schema else name
        self.undo_tables.add(name)
        return name
