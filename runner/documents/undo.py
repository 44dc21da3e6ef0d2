"""The undo tables of a run, beside the tables of the user: whole rows as they were, and chunk rows that are coming.

A saved row has the columns of its own table, what the run did with it, and what the run wrote in its place. The first
copy of a row counts; it stays until the tables are forgotten, so that everything may be repeated.
"""

# Names in SQL are quoted by columns.quoted(); values are always parameters.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from runner.documents.chunks import OURS, free_name
from runner.documents.columns import Column, Relation, beside, listed, plain, quoted, run
from runner.documents.database import Database
from runner.plan.batch import DocumentRows, UndoTables
from runner.points import PointId

#: What the run did with a row: out and swapped rows are gone from their table (`taking`, `moved`: in a transaction), changed
#: ones are still there; back and left are those that were put back, or that somebody changed since.
DID = "vecrun_did"
#: What may be changed in a row, each with a column for what the run wrote.
ROLES = ("metadata", "tags", "text", "position")
#: Columns of the table of rows that are coming, came (in), were replaced by later ones (stale) or removed again (gone).
MADE_COLUMNS = ("document_id", "vector_id", "row_id", DID)


@dataclass(frozen=True)
class Side:
    """One of the user's tables and its undo table. `table` is t in statements, `undo` is u."""

    table: Relation
    key: Column
    document: Column  # which document a row is of
    undo: str
    roles: dict[str, Column]
    collection_column: Column | None = None
    collection: str = ""

    @property
    def within(self) -> str:
        """The condition that a row is of the collection."""
        if self.collection_column is None:
            return ""
        return f" AND t.{self.collection_column.sql} = {self.table.given(self.collection_column, 'collection')}"

    @property
    def same(self) -> str:
        """The condition that a row is the saved one."""
        return f"t.{self.key.sql} = u.{self.key.sql} AND t.{self.document.sql} = u.{self.document.sql}"

    def of_documents(self, table: str = "t") -> str:
        """The condition that a row is of one of the documents that `documents` gives."""
        return self.table.among(self.document, "documents", table)

    def documents(self, ids: Sequence[PointId]) -> dict[str, Any]:
        """The parameters of `of_documents` and `within`."""
        given = {"documents": self.table.ids(self.document, ids)}
        return given | ({"collection": self.collection} if self.collection_column is not None else {})

    def save(self, did: str, where: str) -> str:
        """The statement that saves rows which are not saved yet. A row that has the key of another document's saved one is
        refused, as SQLite gives keys out again."""
        columns = list(self.table.columns.values())
        return (
            f"INSERT INTO {self.undo} ({listed(columns)}, {DID}) SELECT {listed(columns, 't')}, '{did}' "
            f"FROM {self.table.sql} AS t WHERE {where} AND NOT EXISTS "
            f"(SELECT 1 FROM {self.undo} AS u WHERE {self.same}){self.table.lock}"
        )

    def anew(self, ids: Sequence[PointId]) -> None:
        """Rows that were put back can be saved again: the world is theirs again since."""
        run(
            self.table.connection,
            f"DELETE FROM {self.undo} AS u WHERE {self.of_documents('u')} AND u.{DID} IN ('back', 'left')",
            documents=self.table.ids(self.document, ids),
        )


@dataclass(frozen=True)
class Sides:
    """Both tables in one transaction, and the table of chunk rows that are coming."""

    documents: Side
    chunks: Side | None
    made: str = ""

    @property
    def both(self) -> list[Side]:
        return [self.documents, *([self.chunks] if self.chunks is not None else [])]

    def lock(self, ids: Sequence[PointId]) -> None:
        """Hold the documents: a chunk that refers to one of them cannot come meanwhile."""
        side = self.documents
        run(
            side.table.connection,
            f"SELECT 1 FROM {side.table.sql} AS t WHERE {side.of_documents()}{side.table.lock}",
            **side.documents(ids),
        )

    def anew(self, ids: Sequence[PointId]) -> None:
        """As `Side.anew`."""
        for side in self.both:
            side.anew(ids)


def made_of(chunks: Side) -> str:
    """The condition that a row that is coming is of one of the documents."""
    renamed = Column(**{**vars(chunks.document), "name": "document_id"})
    return chunks.table.among(renamed, "documents", "m")


def sides(database: Database, connection: sa.Connection, rows: DocumentRows, undo: UndoTables | None) -> Sides:
    """The tables as they stand in this transaction. NotFound."""
    names = undo or UndoTables(documents="", chunks="", made="")
    table = Relation(database, connection, rows.table)
    key = table[rows.id_column]
    found = [rows.metadata_column, rows.tags_column, rows.text_column, None]
    roles = {role: table[name] for role, name in zip(ROLES, found, strict=True) if name is not None}
    documents = Side(table, key, key, beside(table.schema, names.documents), roles)
    if rows.chunks is None:
        return Sides(documents, None)
    chunks = rows.chunks
    table = Relation(database, connection, chunks.table)
    found = [chunks.metadata_column, chunks.tags_column, None, chunks.position_column]
    roles = {role: table[name] for role, name in zip(ROLES, found, strict=True) if name is not None}
    collection = table[chunks.collection_column] if chunks.collection_column is not None else None
    side = Side(
        table, table[chunks.id_column], table[chunks.document_id_column], beside(table.schema, names.chunks), roles,
        collection, chunks.collection,
    )  # fmt: skip
    return Sides(documents, side, beside(table.schema, names.made))


def new_undo(database: Database, rows: DocumentRows, key: str) -> UndoTables:
    """Free names for the undo tables of what `key` stands for. NotFound."""
    chunks = rows.chunks.table if rows.chunks is not None else rows.table
    return UndoTables(
        documents=free_name(database, rows.table, f"{key}/documents"),
        chunks=free_name(database, chunks, f"{key}/chunks"),
        made=free_name(database, chunks, f"{key}/made"),
    )


def prepare(database: Database, rows: DocumentRows, undo: UndoTables) -> None:
    """Make the undo tables that are not there; others may do so at the same time."""
    if len(_ours(database, rows, undo)) == (1 if rows.chunks is None else 3):
        return
    with database.transaction() as connection:
        if connection.dialect.name == "postgresql":  # IF NOT EXISTS alone fails when two do it at once
            run(connection, "SELECT pg_advisory_xact_lock(hashtext(:name))", name=undo.documents)
        both = sides(database, connection, rows, undo)
        for side, name in zip(both.both, (undo.documents, undo.chunks), strict=False):
            _make(connection, side, name)
        if both.chunks is None or _is_there(connection, both.chunks.table.schema, undo.made):
            return
        table, parts = both.chunks.table, rows.chunks
        assert parts is not None
        shapes = (table[parts.document_id_column], table[parts.vector_id_column], both.chunks.key)
        lines = [f"{name} {shape.type}" for name, shape in zip(MADE_COLUMNS, shapes, strict=False)]
        run(
            connection,
            f"CREATE TABLE {both.made} ({', '.join(lines)}, {DID} text NOT NULL, PRIMARY KEY (document_id, vector_id))",
        )


def _make(connection: sa.Connection, side: Side, name: str) -> None:
    if _is_there(connection, side.table.schema, name):
        return
    # PostgreSQL takes over the types exactly; SQLite keeps a value as it is in a column without a type, but finds those
    # that have one with an index
    columns = f"LIKE {side.table.sql}"
    if not side.table.postgresql:
        found = (side.key.name, side.document.name)
        each = side.table.columns.values()
        columns = ", ".join(f"{one.sql} {one.type}" if one.name in found else one.sql for one in each)
    ours = ", ".join(f"vecrun_{role}{' text' if side.table.postgresql else ''}" for role in ROLES)
    run(
        connection,
        f"CREATE TABLE {side.undo} ({columns}, {DID} text NOT NULL, {ours}, PRIMARY KEY ({side.key.sql}))",
    )
    if side.document is not side.key:
        index, on = quoted(f"{name}_document"), quoted(name)
        if side.table.postgresql:
            on = side.undo
        elif side.table.schema:
            index = f"{quoted(side.table.schema)}.{index}"
        run(connection, f"CREATE INDEX {index} ON {on} ({side.document.sql})")


def _is_there(connection: sa.Connection, schema: str, name: str) -> bool:
    return bool(sa.inspect(connection).has_table(name, schema=schema or None))


def _ours(database: Database, rows: DocumentRows, undo: UndoTables) -> list[str]:
    with database.transaction() as connection:
        return there(database, connection, rows, undo)


def there(database: Database, connection: sa.Connection, rows: DocumentRows, undo: UndoTables) -> list[str]:
    """Those of the undo tables that are there and that are ours, as written in SQL: documents, chunks, made."""
    places = [(rows.table, undo.documents, {DID, *(f"vecrun_{role}" for role in ROLES)})]
    if rows.chunks is not None:
        places.append((rows.chunks.table, undo.chunks, places[0][2]))
        places.append((rows.chunks.table, undo.made, set(MADE_COLUMNS)))
    found = []
    for table, name, needed in places:
        schema = table.rpartition(".")[0]
        if OURS.fullmatch(name) and _is_there(connection, schema, name):
            columns = set(Relation(database, connection, f"{schema}.{name}" if schema else name).columns)
            if needed <= columns and (name != undo.made or needed == columns):
                found.append(beside(schema, name))
    return found


def undo_rows(database: Database, rows: DocumentRows, undo: UndoTables) -> int | None:
    """Rows of the undo tables: saved documents and chunks, and chunks that are coming; None where no such table is, or
    none of ours."""
    tables = _ours(database, rows, undo)
    with database.transaction() as connection:
        counts = [int(run(connection, f"SELECT count(*) FROM {table}").scalar_one()) for table in tables]
    return sum(counts) if tables else None


def forget(database: Database, rows: DocumentRows, undo: UndoTables) -> None:
    """Remove the undo tables that are ours: nothing can be put back any more."""
    for table in _ours(database, rows, undo):
        with database.transaction() as connection:
            run(connection, f"DROP TABLE IF EXISTS {table}")


def explained(database: Database, rows: DocumentRows, undo: UndoTables) -> set[str]:
    """Ids of the points that the undo tables name, as text."""
    there = _ours(database, rows, undo)
    if rows.chunks is None or not there:
        return set()
    found: set[str] = set()
    with database.transaction() as connection:
        both = sides(database, connection, rows, undo)
        assert both.chunks is not None
        column = both.chunks.table[rows.chunks.vector_id_column]
        for table, name in ((both.chunks.undo, column.sql), (both.made, "vector_id")):
            if table in there:
                query = f"SELECT {name} FROM {table} WHERE {name} IS NOT NULL"
                found |= {str(plain(row[0], table)).rstrip(" ") for row in run(connection, query)}
    return found
