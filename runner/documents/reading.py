"""Documents as the relational tables have them: which there are, what they hold, and what their chunk rows name."""

# Names in SQL are quoted by columns.quoted(); values are always parameters.
# ruff: noqa: S608

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from runner.documents.columns import Column, Relation, batches, plain, run
from runner.documents.database import Database
from runner.documents.undo import DID, Side, Sides, sides, there
from runner.edit import Edit
from runner.errors import Permanent
from runner.plan.batch import ChunkRows, DocumentRows, UndoTables
from runner.points import PointId, json_dumps


@dataclass(frozen=True)
class ChunkRow:
    """One row of the chunks table. `key` is the value of its id column, a UUID as text; metadata and tags are JSON texts,
    None where there is no column."""

    key: Any
    vector_id: PointId | None
    text: str | None
    position: int | None
    metadata: str | None = None
    tags: str | None = None


@dataclass(frozen=True)
class Row:
    """One document. Metadata and tags are None where there is no column, no value, or one that is no object (no list).

    `taken`: this run has taken it out; it is told as it was. `orphan`: only chunk rows name it.
    """

    id: PointId
    name: str | None
    file: str | None
    text: str | None
    metadata: dict[str, Any] | None
    tags: list[Any] | None
    chunks: tuple[ChunkRow, ...]
    taken: bool = False
    orphan: bool = False


def check(database: Database, rows: DocumentRows) -> int:
    """Number of documents. NotFound or Permanent where a table or a column is missing, or cannot be what it is named for."""
    with database.transaction() as connection:
        both = sides(database, connection, rows, None)
        table = both.documents.table
        for name in (rows.name_column, rows.file_column):
            _ = name is None or table[name]
        _holds(table, both.documents.roles)
        _tells_apart(both.documents)
        if both.chunks is not None and rows.chunks is not None:
            chunks, parts = both.chunks, rows.chunks
            vector = chunks.table[parts.vector_id_column]
            if parts.text_column is not None:
                _holds(chunks.table, {"text": chunks.table[parts.text_column]})
            _holds(chunks.table, chunks.roles)
            for column in (vector, chunks.document):
                _ids(chunks.table, column)
            _tells_apart(chunks)
        return int(run(connection, f"SELECT count(*) FROM {table.sql} AS t").scalar_one())


def _holds(table: Relation, roles: dict[str, Column]) -> None:
    able = {"metadata": ("json", "text", "any"), "tags": ("json", "text", "any", "array"), "text": ("text", "any")}
    words = {"metadata": "JSON or text", "tags": "JSON, text or an array of texts", "text": "text"}
    for role, column in roles.items():
        if role in able and column.kind not in able[role]:
            raise Permanent(
                f"A column cannot hold {role}",
                f"{table.name}.{column.name} is {column.type}; it must be {words[role]}",
                f"Name another column, or none, as {role}_column",
            )


def _ids(table: Relation, column: Column) -> None:
    if column.kind not in ("int", "uuid", "text", "any"):
        raise Permanent(
            "A column cannot hold ids", f"{table.name}.{column.name} is {column.type}", "Name a column of integers, texts or UUIDs"
        )  # fmt: skip


def _tells_apart(side: Side) -> None:
    table, column = side.table, side.key
    _ids(table, column)
    if column.unique and not column.nullable:
        return
    query = f"SELECT count(*), count(DISTINCT t.{column.sql}) FROM {table.sql} AS t"
    count, different = run(table.connection, query).one()
    if count != different:
        raise Permanent(
            "A column does not tell rows apart",
            f"{table.name}.{column.name}: {count:,} rows, {different:,} values",
            "Name the primary key as id_column",
        )


def select(database: Database, query: str) -> list[PointId]:
    """The ids that a query of the user's gives in its first column, each once; it reads, and cannot write. Permanent with
    the database's own words when it does not run."""
    query = query.strip().removesuffix(";")
    place, hint = database.shown, "Give one SELECT whose first column is the id of the document"
    if not query:
        raise Permanent("The query does not run", f"{place}: it is empty", hint)
    with database.transaction() as connection:
        lite = connection.dialect.name == "sqlite"
        run(connection, "PRAGMA query_only=ON" if lite else "SET TRANSACTION READ ONLY")
        try:
            # a cursor on the server's side takes no second statement
            asked = connection.execution_options(no_parameters=True, stream_results=not lite)
            with contextlib.closing(asked.exec_driver_sql(query)) as result:
                if not result.returns_rows:
                    raise Permanent("The query does not run", f"{place}: it gives no rows", hint)
                found = {str(one): one for one in (_first(row, place) for row in result) if one is not None}
        except (sa.exc.DBAPIError, Warning) as exc:
            if not lite and isinstance(exc, sa.exc.OperationalError):
                raise
            raise Permanent("The query does not run", f"{place}: {getattr(exc, 'orig', exc)}", hint) from exc
        finally:
            if lite:
                connection.connection.driver_connection.execute("PRAGMA query_only=OFF")  # type: ignore[union-attr]
    return list(found.values())


def _first(row: Any, place: str) -> PointId | None:
    return None if row[0] is None else plain(row[0], place)


def read(
    database: Database, rows: DocumentRows, ids: Sequence[PointId], undo: UndoTables | None = None
) -> dict[str, Row]:
    """str(id) -> the document with its chunks in order, for those that there are; with `undo` also those that this run
    has taken out."""
    found: dict[str, Row] = {}
    with database.transaction() as connection:
        both = sides(database, connection, rows, undo)
        ours = there(database, connection, rows, undo) if undo is not None else []
        for some in batches(ids):
            chunks = _chunks(both, rows.chunks, some, saved=False)
            found |= _documents(both.documents, rows, some, chunks, saved=False)
            if ours:
                gone = _chunks(both, rows.chunks, some, saved=True)
                found |= _documents(both.documents, rows, some, gone, saved=True)
    return found


def _documents(
    side: Side, rows: DocumentRows, ids: Sequence[PointId], chunks: dict[str, list[ChunkRow]], *, saved: bool
) -> dict[str, Row]:
    table, find = side.table, side.table.finder(side.key, ids)
    names = (rows.name_column, rows.file_column, rows.text_column)
    parts = [table.told(side.key)] + [table.text(table[name]) if name is not None else "NULL" for name in names]
    parts += [as_json(table, side.roles.get(role)) for role in ("metadata", "tags")]
    of = f"{side.undo} AS t WHERE t.{DID} = 'out' AND" if saved else f"{table.sql} AS t WHERE"
    found = {}
    for row in run(
        table.connection, f"SELECT {', '.join(parts)} FROM {of} {side.of_documents()}", **side.documents(ids)
    ):
        if (asked := find(row[0])) is None:
            continue
        one = str(asked)
        name, file, text = (None if value is None else _readable(value) for value in row[1:4])
        metadata, tags = (_loaded(value) for value in row[4:6])
        found[one] = Row(
            plain(row[0], table.name), name, file, text, metadata if isinstance(metadata, dict) else None,
            tags if isinstance(tags, list) else None, tuple(chunks.pop(one, ())), taken=saved,
        )  # fmt: skip
    for alone in [one for one in ids if str(one) in chunks]:
        found[str(alone)] = Row(
            alone, None, None, None, None, None, tuple(chunks[str(alone)]), taken=saved, orphan=True
        )
    return found


def _chunks(both: Sides, parts: ChunkRows | None, ids: Sequence[PointId], *, saved: bool) -> dict[str, list[ChunkRow]]:
    side = both.chunks
    if side is None or parts is None:
        return {}
    table, find, found = side.table, side.table.finder(side.document, ids), dict[str, list[ChunkRow]]()
    wanted = [table.told(side.document), table.told(side.key), table.told(table[parts.vector_id_column])]
    wanted += [
        "NULL" if parts.text_column is None else table.text(table[parts.text_column]),
        "NULL" if parts.position_column is None else f"t.{table[parts.position_column].sql}",
        *(as_json(table, side.roles.get(role)) for role in ("metadata", "tags")),
    ]
    of = f"{side.undo} AS t WHERE t.{DID} = 'out' AND" if saved else f"{table.sql} AS t WHERE"
    query = f"SELECT {', '.join(wanted)} FROM {of} {side.of_documents()}{side.within} ORDER BY t.{side.key.sql}"
    for document, key, vector_id, text, position, *held in run(table.connection, query, **side.documents(ids)):
        if (one := find(document)) is not None:
            row = ChunkRow(
                plain(key, table.name), None if vector_id is None else plain(vector_id, table.name),
                None if text is None else _readable(text), None if position is None else int(position),
                *(None if value is None else _readable(value) for value in held),
            )  # fmt: skip
            found.setdefault(str(one), []).append(row)
    for some in found.values():
        some.sort(key=lambda row: (row.position is None, row.position or 0))
    return found


def as_json(table: Relation, column: Column | None, name: str = "t") -> str:
    """The SQL of a JSON text for what the column holds."""
    if column is None:
        return "NULL"
    return f"CAST(to_json({name}.{column.sql}) AS text)" if column.kind == "array" else table.text(column, name)


def _readable(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _loaded(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) and text.strip() else None
    except ValueError:
        return None


def would_change(
    row: Row, edit: Edit, rows: DocumentRows | None = None, points: Collection[str] | None = None
) -> bool:  # fmt: skip
    """Whether the edit changes the document's own row or, with `rows`, one of its chunks': then only columns that there
    are count. `points`: only chunks that name one of these. True where the edit is not possible, which `edit` then says."""
    if not row.orphan:
        on_metadata = edit.on_metadata and (rows is None or rows.metadata_column is not None)
        on_tags = edit.on_tags and (rows is None or rows.tags_column is not None)
        if _changes(edit, row.metadata, row.tags, on_metadata, on_tags):
            return True
    chunks = rows.chunks if rows is not None else None
    on_metadata = edit.on_metadata and chunks is not None and chunks.metadata_column is not None
    on_tags = edit.on_tags and chunks is not None and chunks.tags_column is not None
    if not (on_metadata or on_tags):
        return False
    # chunks of a document mostly hold the same
    held = {(one.metadata, one.tags) for one in row.chunks if points is None or str(one.vector_id) in points}
    return any(_changes(edit, _loaded(first), _loaded(second), on_metadata, on_tags) for first, second in held)


def _changes(edit: Edit, metadata: Any, tags: Any, on_metadata: bool, on_tags: bool) -> bool:
    metadata = metadata if isinstance(metadata, dict) else {}
    tags = tags if isinstance(tags, list) else []
    try:
        if on_metadata and json_dumps(edit.metadata(metadata)) != json_dumps(metadata):
            return True
        return on_tags and edit.tags(tags) != tags
    except ValueError:
        return True
