"""Tables as they are and as they are declared: what a plan shows of them, what it is compared by, and the DDL.

PostgreSQL and SQLite are asked in their own catalogs, where types and defaults stand as they were written; others through
SQLAlchemy's inspector.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.types import UserDefinedType

from runner.documents.database import Database
from runner.mapping import ColumnModel, TableModel
from runner.plan import RECORD
from runner.relational import number, quoted
from runner.spec import digest

#: Characters of a name that every database takes.
LONGEST_NAME = 60


@dataclass(frozen=True)
class Column:
    """A column: its type and default in the words of the database."""

    name: str
    type: str
    nullable: bool
    default: str | None = None
    generated: bool = False

    def __str__(self) -> str:
        default = f" DEFAULT {self.default}" if self.default is not None else ""
        return f"{self.name} {self.type}{'' if self.nullable else ' NOT NULL'}{default}"


@dataclass(frozen=True)
class ForeignKey:
    """Columns whose values have to be in those of a table."""

    columns: tuple[str, ...]
    table: str
    referred: tuple[str, ...]
    on_delete: str = ""

    def __str__(self) -> str:
        then = f" ON DELETE {self.on_delete}" if self.on_delete else ""
        return f"({', '.join(self.columns)}) references {self.table} ({', '.join(self.referred)}){then}"


@dataclass(frozen=True)
class Index:
    """An index that no constraint has brought. `columns`: '' stands for an expression."""

    name: str
    columns: tuple[str, ...]
    unique: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(one or 'expression' for one in self.columns)})"


@dataclass(frozen=True)
class Described:
    """A table as it is in the database."""

    name: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]
    uniques: tuple[tuple[str, ...], ...]
    foreign_keys: tuple[ForeignKey, ...]
    indexes: tuple[Index, ...]
    rows: int = 0

    @property
    def looks(self) -> dict[str, Any]:
        """All but the rows, for digests."""
        return {
            "columns": [[one.name, one.type, one.nullable, one.default, one.generated] for one in self.columns],
            "primary_key": list(self.primary_key),
            "uniques": sorted(list(one) for one in self.uniques),
            "foreign_keys": sorted(str(one) for one in self.foreign_keys),
            "indexes": sorted(f"{one}{' unique' if one.unique else ''}" for one in self.indexes),
        }

    def column(self, name: str) -> Column | None:
        """One of its columns."""
        return next((one for one in self.columns if one.name == name), None)


def describe(database: Database, table: str) -> Described | None:
    """A table with the number of its rows; None when there is none (a view is none)."""
    with database.reading() as connection:
        return look(connection, table)


def look(connection: sa.Connection, table: str, *, count: bool = True) -> Described | None:
    """The same in a transaction that is open. Nothing is remembered between two calls."""
    schema, _, bare = table.rpartition(".")
    inspector, dialect = sa.inspect(connection), connection.dialect.name
    # has_table says true for views, too
    if bare not in inspector.get_table_names(schema or _visible(connection, bare)):
        return None
    rows = 0
    if count:
        rows = number(connection, f"SELECT count(*) FROM {quoted(connection.dialect, table)}")  # noqa: S608
    if dialect == "sqlite":
        return _sqlite(connection, table, schema or "main", bare, rows)
    key = inspector.get_pk_constraint(bare, schema or None)["constrained_columns"]
    uniques = inspector.get_unique_constraints(bare, schema or None)
    return Described(
        table,
        tuple(_postgresql(connection, table) if dialect == "postgresql" else _reflected(inspector, schema, bare)),
        tuple(key),
        tuple(tuple(one["column_names"]) for one in uniques),
        tuple(
            ForeignKey(
                tuple(one["constrained_columns"]),
                ".".join(part for part in (one["referred_schema"], one["referred_table"]) if part),
                tuple(one["referred_columns"]),
                str(one.get("options", {}).get("ondelete") or ""),
            )
            for one in inspector.get_foreign_keys(bare, schema or None)
        ),
        tuple(
            Index(str(one["name"]), tuple(name or "" for name in one["column_names"]), bool(one["unique"]))
            for one in inspector.get_indexes(bare, schema or None)
            if not one.get("duplicates_constraint")
        ),
        rows,
    )


def snapshot(database: Database) -> dict[str, Described]:
    """All tables of the default schema but the record, without counting their rows."""
    with database.reading() as connection:
        found = {name: look(connection, name, count=False) for name in sorted(sa.inspect(connection).get_table_names())}
    return {name: table for name, table in found.items() if table is not None and name != RECORD}


def differences(before: Mapping[str, Described], after: Mapping[str, Described]) -> list[str]:
    """What changes between two states of tables, a line for each thing: + comes, - goes, ~ changes."""
    found: list[str] = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old is None and new is not None:
            found.append(f"+ table {name} ({', '.join(map(str, new.columns))})")
        elif new is None and old is not None:
            found.append(f"- table {name}")
        elif old is not None and new is not None:
            found += _changes(name, old, new)
    return found


def _changes(name: str, old: Described, new: Described) -> list[str]:
    found = [f"- column {name}.{one.name}" for one in old.columns if new.column(one.name) is None]
    for one in new.columns:
        was = old.column(one.name)
        if was is None:
            found.append(f"+ column {name}.{one}")
        elif was != one:
            found.append(f"~ column {name}.{was}: {one}")
    kinds: list[tuple[str, Sequence[Any], Sequence[Any]]] = [
        ("primary key", [old.primary_key], [new.primary_key]), ("unique", old.uniques, new.uniques),
        ("foreign key", old.foreign_keys, new.foreign_keys), ("index", old.indexes, new.indexes),
    ]  # fmt: skip
    for kind, were, are in kinds:
        found += [f"- {kind} of {name}: {_shown(one)}" for one in were if one not in are]
        found += [f"+ {kind} of {name}: {_shown(one)}" for one in are if one not in were]
    common = [one.name for one in old.columns if new.column(one.name) is not None]
    if not found and common != [one.name for one in new.columns]:
        found.append(f"~ table {name}: its columns stand in another order")
    return found


def _shown(one: Any) -> str:
    return ", ".join(one) if isinstance(one, tuple) else str(one)


class Native(UserDefinedType[Any]):
    """A type in the words of the database."""

    cache_ok = True

    def __init__(self, text: str) -> None:
        self.text = text

    def get_col_spec(self, **_: Any) -> str:
        return self.text


def table_of(model: TableModel, dialect: sa.Dialect) -> sa.Table:
    """A declared table."""
    return tables_of([model], dialect)[0]


def tables_of(models: Sequence[TableModel], dialect: sa.Dialect) -> list[sa.Table]:
    """Declared tables, which may reference each other."""
    metadata = sa.MetaData()
    made = [_table(model, metadata, dialect) for model in models]
    for model in models:
        for column in model.columns:
            if column.references:
                parent, _, name = column.references.rpartition(".")
                _mention(metadata, parent, name)
    return made


def ddl(model: TableModel, dialect: sa.Dialect) -> list[str]:
    """The statements that make a declared table."""
    table = table_of(model, dialect)
    elements: list[sa.ClauseElement] = [
        CreateTable(table),
        *(CreateIndex(index) for index in sorted(table.indexes, key=lambda one: str(one.name))),
    ]
    # what is compiled for a driver with %s doubles the %
    doubled = dialect.paramstyle in ("format", "pyformat")
    texts = [str(one.compile(dialect=dialect)).strip() for one in elements]
    texts = [text.replace(" (\n\t", " (\n  ").replace(", \n\t", ",\n  ") for text in texts]
    return [text.replace("%%", "%") if doubled else text for text in texts]


def _table(model: TableModel, metadata: sa.MetaData, dialect: sa.Dialect) -> sa.Table:
    schema, _, bare = model.name.rpartition(".")
    columns: list[sa.Column[Any]] = []
    constraints: list[sa.schema.SchemaItem] = [sa.UniqueConstraint(*names) for names in model.unique]
    for one in model.columns:
        columns.append(
            sa.Column(
                one.name, _type(one, dialect), nullable=one.nullable and not one.primary_key,
                primary_key=one.primary_key, autoincrement=False, server_default=_default(one),
            )
        )  # fmt: skip
        if one.unique:
            constraints.append(sa.UniqueConstraint(one.name))
        if one.references:
            constraints.append(sa.ForeignKeyConstraint([one.name], [one.references], ondelete=one.on_delete.upper()))
    constraints += [sa.Index(_index_name(bare, names), *names) for names in model.indexes]
    return sa.Table(bare, metadata, *columns, *constraints, schema=schema or None)


def _mention(metadata: sa.MetaData, name: str, column: str) -> None:
    """A table that exists already; only its name is needed."""
    if name not in metadata.tables:
        schema, _, bare = name.rpartition(".")
        sa.Table(bare, metadata, sa.Column(column, sa.Text), schema=schema or None)
    elif column not in metadata.tables[name].c:
        metadata.tables[name].append_column(sa.Column(column, sa.Text))


def _index_name(table: str, columns: Sequence[str]) -> str:
    name = f"ix_{table}_{'_'.join(columns)}"
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}_{digest([table, *columns])[:8]}"


def _default(column: ColumnModel) -> str | sa.ColumnElement[Any] | None:
    if column.default_sql is not None:
        return sa.literal_column(column.default_sql)
    value = column.default
    if isinstance(value, bool):
        return sa.true() if value else sa.false()
    return value if value is None or isinstance(value, str) else sa.literal_column(repr(value))


def _type(column: ColumnModel, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
    if column.sql_type is not None:
        return Native(column.sql_type)
    assert column.type is not None
    name, *numbers = re.findall(r"\w+", column.type)
    sizes = [int(one) for one in numbers]
    match name:
        case "string":
            return sa.String(sizes[0])
        case "decimal":
            return sa.Numeric(sizes[0], sizes[1])
        case "timestamp":
            return sa.DateTime(timezone=True)
        case "uuid":  # elsewhere with its hyphens, as an expression gives it
            return sa.Uuid() if dialect.name == "postgresql" else sa.CHAR(36)
    return _TYPES[name]()


_TYPES: dict[str, type[sa.types.TypeEngine[Any]]] = {
    "text": sa.Text, "integer": sa.Integer, "bigint": sa.BigInteger, "boolean": sa.Boolean, "float": sa.Double,
    "date": sa.Date, "json": sa.JSON, "bytes": sa.LargeBinary,
}  # fmt: skip


def _visible(connection: sa.Connection, table: str) -> str | None:
    """The schema in which PostgreSQL finds a table that is named without one; None: the default."""
    if connection.dialect.name != "postgresql":
        return None
    query = "SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass(quote_ident(%(name)s))"
    return connection.exec_driver_sql(query, {"name": table}).scalar()


def _postgresql(connection: sa.Connection, table: str) -> list[Column]:
    query = (
        "SELECT a.attname, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull, pg_get_expr(d.adbin, d.adrelid), "
        "a.attgenerated <> '' OR a.attidentity <> '' FROM pg_attribute a "
        "LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum "
        "WHERE a.attrelid = to_regclass(%(name)s) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
    )
    rows = connection.exec_driver_sql(query, {"name": quoted(connection.dialect, table)})
    return [Column(*row) for row in rows]


def _reflected(inspector: sa.Inspector, schema: str, table: str) -> list[Column]:
    return [
        Column(
            one["name"], str(one["type"]), bool(one["nullable"]), one.get("default"),
            bool(one.get("computed") or one.get("identity")),
        )
        for one in inspector.get_columns(table, schema or None)
    ]  # fmt: skip


def _sqlite(connection: sa.Connection, name: str, schema: str, bare: str, rows: int) -> Described:
    def pragma(which: str, of: str) -> list[Any]:
        quote = connection.dialect.identifier_preparer.quote_identifier
        return list(connection.exec_driver_sql(f"PRAGMA {quote(schema)}.{which}({quote(of)})").mappings())

    columns = [one for one in pragma("table_xinfo", bare) if one["hidden"] != 1]
    # a primary key says nothing of NULL in SQLite unless NOT NULL stands there
    found = tuple(
        Column(one["name"], one["type"], not one["notnull"], one["dflt_value"], one["hidden"] in (2, 3))
        for one in columns
    )
    key = tuple(one["name"] for one in sorted((c for c in columns if c["pk"]), key=lambda one: int(one["pk"])))
    uniques: list[tuple[str, ...]] = []
    indexes: list[Index] = []
    for one in pragma("index_list", bare):
        of = tuple(part["name"] or "" for part in pragma("index_xinfo", one["name"]) if part["key"])
        if one["origin"] == "u":
            uniques.append(of)
        elif one["origin"] == "c":
            indexes.append(Index(one["name"], of, bool(one["unique"])))
    parts: dict[int, list[Any]] = {}
    for part in pragma("foreign_key_list", bare):
        parts.setdefault(part["id"], []).append(part)
    foreign = tuple(
        ForeignKey(
            tuple(part["from"] for part in group), group[0]["table"],
            tuple(part["to"] or "" for part in group),
            "" if group[0]["on_delete"] == "NO ACTION" else group[0]["on_delete"],
        )
        for group in parts.values()
    )  # fmt: skip
    return Described(
        name, found, key, tuple(sorted(uniques)), foreign, tuple(sorted(indexes, key=lambda i: i.name)), rows
    )
