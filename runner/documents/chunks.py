"""Rewriting point ids in the user's chunks table, and putting the old ones back.

Everything happens in one transaction of the user's database: the new values, and an undo table that holds the old
ones. That the undo table exists is the mark that the rewrite was committed, so repeating it after a crash is harmless.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from runner.documents.database import Database
from runner.errors import NotFound, Permanent
from runner.plan import ChunkTable
from runner.points import IdKind, PointId
from runner.spec import suggest

UUID_LENGTH = 36
#: Names of undo tables, as undo_name() makes them, and their columns.
OURS = re.compile(r"vecrun_undo_[0-9a-f]{10}")
UNDO_COLUMNS = ("row_id", "old_id", "new_id")


@dataclass(frozen=True)
class Restored:
    """Rows put back, and rows that somebody changed since the rewrite and that were left alone."""

    rows: int
    changed_since: int


def inspect(database: Database, chunks: ChunkTable) -> int:
    """Number of rows of the chunks table. NotFound when a table or column is missing."""
    table = database.table(chunks.table)
    for name in (chunks.id_column, chunks.vector_id_column, chunks.collection_column):
        if name is not None:
            column_of(table, name)
    with database.transaction() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def holds(database: Database, chunks: ChunkTable, kind: IdKind) -> str:
    """Empty if the vector id column can hold ids of this kind, else why not."""
    column = column_of(database.table(chunks.table), chunks.vector_id_column)
    place = f"{chunks.table}.{chunks.vector_id_column} is {column.type}; the new ids are {kind}"
    if isinstance(column.type, sa.Integer) and kind is not IdKind.INT:
        return f"{place}. Widen the column to text first"
    if isinstance(column.type, sa.Uuid) and kind is not IdKind.UUID:
        return f"{place}. Change the column to text first"
    if not _holds_ids(column):
        return f"{place}. Change the column to text first"
    length = getattr(column.type, "length", None)
    if kind in (IdKind.UUID, IdKind.INT_OR_UUID) and length is not None and length < UUID_LENGTH:
        return f"{place}, of {UUID_LENGTH} characters. Widen the column first"
    return ""


def stands_for(ids: Iterable[PointId], convert: Callable[[PointId], Any]) -> Callable[[Any], PointId | None]:
    """From what the column holds to the id of `ids` that it stands for. A column may give ids back in another form than
    it was asked for: padded with blanks (char(n)), in other letters (a collation that takes no notice of case)."""
    exact = {convert(one): one for one in ids}
    exact.pop(None, None)
    loose: list[dict[Any, PointId | None]] = []

    def folded(form: Callable[[str], str]) -> dict[Any, PointId | None]:
        made: dict[Any, PointId | None] = {}
        for key, one in exact.items():
            if isinstance(key, str):
                made[form(key)] = one if form(key) not in made else None  # of two nobody knows which
        return made

    def find(value: Any) -> PointId | None:
        if value in exact:
            return exact[value]
        if (same := convert(value)) in exact:
            return exact[same]
        if not isinstance(value, str):
            return None
        if not loose:
            loose.extend([folded(_unpadded), folded(_caseless)])
        found = loose[0].get(_unpadded(value))
        return found if found is not None else loose[1].get(_caseless(value))

    return find


def _unpadded(text: str) -> str:
    return text.rstrip(" ")


def _caseless(text: str) -> str:
    return text.rstrip(" ").casefold()


def free_name(database: Database, table: str, key: str) -> str:
    """A name for the undo table of what `key` stands for, which no table beside `table` has: one that is there already
    is the mark of something that was done, and one from a forgotten run must not be that mark."""
    schema = table.rpartition(".")[0] or None
    with database.transaction() as connection:
        taken = set(sa.inspect(connection).get_table_names(schema=schema))
    while True:
        name = f"vecrun_undo_{hashlib.sha256(key.encode()).hexdigest()[:10]}"
        if name not in taken:
            return name
        key = name


def rewrite(
    database: Database,
    chunks: ChunkTable,
    undo_table: str,
    mappings: Iterable[tuple[str, Iterable[list[tuple[PointId, PointId]]]]],
    *,
    late: bool = False,
) -> int:
    """Replace old ids by new ones; `mappings` is (source collection, pages of pairs). Returns the rows changed.

    `late`: it was done before; rows that came since are changed as well, and the undo table gets them, too.
    """
    table = database.table(chunks.table)
    key, vector_id = column_of(table, chunks.id_column), column_of(table, chunks.vector_id_column)
    undo = _undo_table(undo_table, table, key, vector_id)
    pairs = sa.Table(
        f"{undo_table}_map", sa.MetaData(),
        sa.Column("old_id", plain_type(vector_id), primary_key=True), sa.Column("new_id", plain_type(vector_id)),
        schema=table.schema,
    )  # fmt: skip
    convert = converter(vector_id)
    with database.transaction() as connection:
        done = sa.inspect(connection).has_table(undo_table, schema=table.schema)
        if done and not late:
            return int(connection.execute(sa.select(sa.func.count()).select_from(undo)).scalar_one())
        if not done:
            undo.create(connection)
        for collection, pages in mappings:
            pairs.create(connection)
            for page in pages:
                rows = [{"old_id": convert(old), "new_id": convert(new)} for old, new in page]
                if held := [row for row in rows if row["old_id"] is not None]:
                    connection.execute(pairs.insert(), held)
            chosen = sa.select(key, vector_id, pairs.c.new_id).join_from(table, pairs, vector_id == pairs.c.old_id)
            if chunks.collection_column is not None:
                chosen = chosen.where(column_of(table, chunks.collection_column) == collection)
            if late:
                chosen = chosen.where(key.not_in(sa.select(undo.c.row_id)))
            connection.execute(undo.insert().from_select(list(UNDO_COLUMNS), chosen))
            pairs.drop(connection)
        # one statement at the end: a new id of one row may be the old id of another
        result = connection.execute(
            table.update()
            .values({vector_id.name: undo.c.new_id})
            .where(key == undo.c.row_id, vector_id == undo.c.old_id)
        )
        return int(result.rowcount)


def restore(database: Database, chunks: ChunkTable, undo_table: str) -> Restored:
    """Put the old ids back and remove the undo table. Nothing happens when it is not there: done before."""
    table = database.table(chunks.table)
    key, vector_id = column_of(table, chunks.id_column), column_of(table, chunks.vector_id_column)
    undo = _undo_table(undo_table, table, key, vector_id)
    with database.transaction() as connection:
        if not sa.inspect(connection).has_table(undo_table, schema=table.schema):
            return Restored(0, 0)
        total = int(connection.execute(sa.select(sa.func.count()).select_from(undo)).scalar_one())
        result = connection.execute(
            table.update()
            .values({vector_id.name: undo.c.old_id})
            .where(key == undo.c.row_id, vector_id == undo.c.new_id)
        )
        undo.drop(connection)
        return Restored(int(result.rowcount), total - int(result.rowcount))


def undo_rows(database: Database, chunks: ChunkTable, undo_table: str) -> int | None:
    """Rows of the undo table; None when there is none, or when a table of that name is not one of ours."""
    schema = chunks.table.rpartition(".")[0] or None
    with database.transaction() as connection:
        inspector = sa.inspect(connection)
        if not OURS.fullmatch(undo_table) or not inspector.has_table(undo_table, schema=schema):
            return None
        if {column["name"] for column in inspector.get_columns(undo_table, schema=schema)} != set(UNDO_COLUMNS):
            return None
        undo = sa.table(undo_table, schema=schema)
        return int(connection.execute(sa.select(sa.func.count()).select_from(undo)).scalar_one())


def forget(database: Database, chunks: ChunkTable, undo_table: str) -> None:
    """Remove the undo table: the old ids cannot be put back any more. Nothing happens when there is none."""
    if undo_rows(database, chunks, undo_table) is None:
        return
    schema = chunks.table.rpartition(".")[0] or None
    with database.transaction() as connection:
        sa.Table(undo_table, sa.MetaData(), schema=schema).drop(connection, checkfirst=True)


def column_of(table: sa.Table, name: str) -> sa.Column[Any]:
    """A column of a reflected table. NotFound names those there are."""
    if name not in table.c:
        raise NotFound("No such column", f"{table.fullname}.{name}", suggest(name, [column.name for column in table.c]))
    return table.c[name]


def _undo_table(name: str, table: sa.Table, key: sa.Column[Any], vector_id: sa.Column[Any]) -> sa.Table:
    return sa.Table(
        name, sa.MetaData(),
        sa.Column("row_id", plain_type(key), primary_key=True, autoincrement=False),
        sa.Column("old_id", plain_type(vector_id)), sa.Column("new_id", plain_type(vector_id)),
        schema=table.schema,
    )  # fmt: skip


class _Untyped(sa.types.UserDefinedType[Any]):
    """A column of SQLite that keeps values as they are given, like one that was declared without a type."""

    cache_ok = True

    def get_col_spec(self, **_more: Any) -> str:
        return "BLOB"


def plain_type(column: sa.Column[Any]) -> Any:
    """The column's type for a table of ours, without what belongs to its own table (collations stay, autoincrement does
    not). A type that has a name in the database (an enum) is neither made nor dropped with our table."""
    if isinstance(column.type, sa.types.NullType):
        return sa.Text().with_variant(_Untyped(), "sqlite")
    if hasattr(column.type, "create_type"):
        named = column.type.copy()
        named.create_type = False
        return named
    return column.type


def _holds_ids(column: sa.Column[Any]) -> bool:
    return isinstance(column.type, (sa.Integer, sa.Uuid, sa.String, sa.types.NullType))


def converter(column: sa.Column[Any]) -> Callable[[PointId], Any]:
    """From an id to what the column holds; None for an old id the column can never hold."""

    def convert(point_id: PointId) -> Any:
        try:
            if isinstance(column.type, sa.Integer):
                return int(point_id)
            if isinstance(column.type, sa.Uuid):
                return uuid.UUID(str(point_id)) if column.type.as_uuid else str(point_id)
        except ValueError:
            return None
        if not _holds_ids(column):
            raise Permanent("A chunks table cannot hold ids", f"{column.table.name}.{column.name} is {column.type}")
        return str(point_id)

    return convert
