"""Rows of documents and chunks: taken out, edited, swapped, and exactly as before afterwards, on SQLite and PostgreSQL
(C1-C3, C5, O3)."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from runner.documents import SqlConfig, rows
from runner.documents.database import Database
from runner.documents.rows import NewChunk, Swap
from runner.edit import Edit
from runner.errors import NotFound, Permanent
from runner.plan.batch import ChunkRows, DocumentRows, UndoTables
from tests import servers

CHUNKS = ChunkRows(
    table="chunks", id_column="id", document_id_column="doc", vector_id_column="vector_id", text_column="body",
    position_column="position", metadata_column="meta", tags_column="tags",
)  # fmt: skip
ROWS = DocumentRows(
    connection="app", table="documents", id_column="id", name_column="name", file_column="file", text_column="body",
    metadata_column="meta", tags_column="tags", chunks=CHUNKS,
)  # fmt: skip
EDIT = Edit(merge={"a": {"new": 1}}, set={"b": [1.5]}, remove=("gone",), add_tags=("x", "y"), remove_tags=("old",))


@pytest.fixture(scope="module")
def shared(pg_url: str) -> Iterator[str]:
    """A database with pgvector that is emptied after each test, which is quicker than a new one."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    servers.sql(pg_url, f"CREATE DATABASE {name}", f"ALTER DATABASE {name} SET search_path = public, extensions")
    url = servers.database(pg_url, name)
    servers.sql(url, "CREATE SCHEMA extensions", "CREATE EXTENSION vector SCHEMA extensions")
    yield url
    servers.sql(pg_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        made = Database(SqlConfig(type="sql", url=f"sqlite:///{tmp_path}/app.db"))
        yield made
        made.close()
        return
    url = request.getfixturevalue("shared")
    made = Database(SqlConfig(type="sql", url=url))
    yield made
    made.close()
    servers.sql(url, 'DROP SCHEMA IF EXISTS public, "App: Data%" CASCADE', "CREATE SCHEMA public")


@pytest.fixture
def undo(database: Database) -> UndoTables:
    """The world of `fill`, and the names of the undo tables of a run over it."""
    fill(database)
    return rows.new_undo(database, ROWS, "run-1")


def lite(database: Database) -> bool:
    return database.engine.dialect.name == "sqlite"


def sql(database: Database, *statements: str) -> None:
    with database.transaction() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def fill(database: Database) -> None:
    """Five documents of three chunks each, with columns of every sort and values that are easily spoiled."""
    if lite(database):
        sql(
            database,
            "CREATE TABLE documents (id INTEGER PRIMARY KEY, name VARCHAR(80), file TEXT, body TEXT, meta JSON, tags TEXT, "
            "raw BLOB, amount NUMERIC, at TIMESTAMP, anything, size AS (length(body)) STORED)",
            "CREATE TABLE chunks (id INTEGER PRIMARY KEY, doc INTEGER NOT NULL REFERENCES documents (id), "
            "vector_id TEXT NOT NULL, body TEXT, position INTEGER, meta TEXT, tags JSON, tenant TEXT NOT NULL, hash TEXT, "
            "version TEXT DEFAULT 'none', UNIQUE (doc, position))",
        )
        values = "1.10, '2026-01-02 03:04:05.678+02', {any}"
        anything = ["x'00ff'", "'5'", "5", "5.0", "NULL"]
        raw = "x'00ff10'"
    else:
        sql(
            database,
            "CREATE TYPE mood AS ENUM ('sad', 'ok')",
            "CREATE TABLE documents (id INTEGER GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name VARCHAR(80), file TEXT, "
            "body TEXT, meta JSON, tags TEXT[], raw BYTEA, amount NUMERIC(12, 4), at TIMESTAMPTZ, anything mood[], "
            "embedding VECTOR(3) DEFAULT '[0.1,0.2,0.3]', size INT GENERATED ALWAYS AS (length(body)) STORED)",
            "CREATE TABLE chunks (id BIGSERIAL PRIMARY KEY, doc INTEGER NOT NULL REFERENCES documents (id), "
            "vector_id UUID NOT NULL, body TEXT, position SMALLINT, meta JSONB, tags JSONB, tenant TEXT NOT NULL, hash CHAR(8), "
            "version TEXT DEFAULT 'none', UNIQUE (doc, position))",
        )
        values = "1.1000, '2026-01-02 03:04:05.678+02', {any}"
        anything = ["'{sad,ok}'", "'{}'", "NULL", "'{NULL}'", "'{ok}'"]
        raw = "'\\x00ff10'"
    metas = ['\'{ "a": {"b": 1.10},  "gone":true, "umlaut":"\\u00e4"}\'', "'{}'", "NULL", "'{\"a\": 1}'", "'null'"]
    tags = ['\'["old", "kept"]\'', "'[]'", "NULL", '\'["x","y"]\'', "'[\"old\"]'"]
    arrays = ["'{old,kept}'", "'{}'", "NULL", "'{x,y}'", "'{old}'"]
    with database.transaction() as connection:
        for number in range(5):
            given = (metas[number], tags[number] if lite(database) else arrays[number], raw)
            row = f"'Doc {number}', 'docs/{number}.txt', 'text {number}', {', '.join(given)}, {values.format(any=anything[number])}"
            names = "name, file, body, meta, tags, raw, amount, at, anything"
            connection.exec_driver_sql(f"INSERT INTO documents ({names}) VALUES ({row})")
            for position in range(3):
                connection.exec_driver_sql(
                    "INSERT INTO chunks (doc, vector_id, body, position, meta, tags, tenant, hash) VALUES "
                    f"({number + 1}, '{point(number + 1, position)}', 'chunk {position}', {position}, {metas[number]}, "
                    f"{tags[number]}, 't{number}', 'h{position}')"
                )


def point(document: int, position: int | str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{document}/{position}"))


def dump(database: Database, *tables: str) -> list[str]:
    """Every value of every row, with its type."""
    found = []
    with database.transaction() as connection:
        for table in tables or ("documents", "chunks"):
            if not lite(database):
                found += [row[0] for row in connection.exec_driver_sql(f"SELECT t::text FROM {table} t ORDER BY id")]
                continue
            names = [row[1] for row in connection.exec_driver_sql(f"PRAGMA table_xinfo({table})")]
            parts = ", ".join(f"typeof({name}) || quote({name})" for name in names)
            found += [str(tuple(row)) for row in connection.exec_driver_sql(f"SELECT {parts} FROM {table} ORDER BY id")]
    return found


def same(database: Database, before: list[str]) -> None:
    assert dump(database) == before


def new(document: int, *names: str, start: int = 0) -> list[NewChunk]:
    return [NewChunk(None, point(document, name), f"text {name}", start + n) for n, name in enumerate(names)]


def swapping(document: int) -> Swap:
    """Of the three chunks the last stays, becomes the first, and two new ones follow."""
    key = (document - 1) * 3 + 3
    kept = NewChunk(key, point(document, 2), "chunk 2", 0)
    return Swap(document, {key: kept}, new(document, "n1", "n2", start=1), f"text {document} new")


#: What a run does to some documents, and how it is undone.
Operation = Callable[[Database, UndoTables, list[Any]], None]


def announce(database: Database, tables: DocumentRows, undo: UndoTables, document: int, made: list[NewChunk]) -> None:
    rows.announce_all(database, tables, undo, [(document, made)])


def swap(
    database: Database, tables: DocumentRows, undo: UndoTables, document: int, keep: dict[Any, NewChunk],
    made: list[NewChunk], text: str | None,
) -> tuple[int, int]:  # fmt: skip
    return rows.swap_all(database, tables, undo, [Swap(document, keep, made, text)])[str(document)]


def taking(database: Database, undo: UndoTables, ids: list[Any]) -> None:
    assert rows.take_out(database, ROWS, undo, ids) == {str(one): (1, 3) for one in ids}


def editing(database: Database, undo: UndoTables, ids: list[Any]) -> None:
    assert rows.edit(database, ROWS, undo, ids, EDIT) == {str(one): True for one in ids}


def swaps(database: Database, undo: UndoTables, ids: list[Any]) -> None:
    wanted = [swapping(one) for one in ids]
    rows.announce_all(database, ROWS, undo, [(one.document, one.made) for one in wanted])
    assert rows.swap_all(database, ROWS, undo, wanted) == {str(one): (2, 2) for one in ids}


@pytest.mark.parametrize("operation", [taking, editing, swaps])
def test_everything_comes_back_exactly_however_often_it_is_done(
    database: Database, undo: UndoTables, operation: Operation
) -> None:
    before = dump(database)
    operation(database, undo, [1, 2, 3, 4, 5])
    after = dump(database)
    assert after != before
    assert not set(after) & set(before) or operation is editing  # every row is touched
    operation(database, undo, [1, 2])  # once more, after a crash
    operation(database, undo, [5, 1, 3])
    assert dump(database) == after
    back = rows.restore(database, ROWS, undo, [4, 2, 1], EDIT)
    assert {one.changed_since for one in back.values()} == {0}
    assert rows.restore(database, ROWS, undo, [1, 2, 3, 4, 5], EDIT) == rows.restore(
        database, ROWS, undo, [1, 2, 3, 4, 5], EDIT
    )
    assert rows.restore(database, ROWS, undo, [1, 2, 4], EDIT) == back
    same(database, before)
    operation(database, undo, [2, 3])  # and again: the world is as it was
    assert rows.restore(database, ROWS, undo, [1, 2, 3], EDIT)["2"].changed_since == 0
    same(database, before)
    assert (rows.undo_rows(database, ROWS, undo) or 0) > 0
    rows.forget(database, ROWS, undo)
    assert rows.undo_rows(database, ROWS, undo) is None
    rows.forget(database, ROWS, undo)
    assert set(sa.inspect(database.engine).get_table_names()) == {"documents", "chunks"}


def test_documents_are_read(database: Database, undo: UndoTables) -> None:
    assert rows.check(database, ROWS) == 5
    found = rows.read(database, ROWS, [1, "2", 3, 77, "007", "1 ", "no", 10**30, "a\0b", "\ud800"])
    assert set(found) == {"1", "2", "3"}
    one = found["1"]
    assert (one.id, one.name, one.file, one.text, one.taken) == (1, "Doc 0", "docs/0.txt", "text 0", False)
    assert one.metadata == {"a": {"b": 1.1}, "gone": True, "umlaut": "ä"}
    assert one.tags == ["old", "kept"]
    assert [(chunk.key, chunk.vector_id, chunk.text, chunk.position) for chunk in one.chunks] == [
        (n + 1, point(1, n), f"chunk {n}", n) for n in range(3)
    ]
    assert (found["2"].metadata, found["2"].tags, found["3"].metadata, found["3"].tags) == ({}, [], None, None)
    taking(database, undo, [2])
    assert "2" not in rows.read(database, ROWS, [2])
    gone = rows.read(database, ROWS, [2, 3], undo)
    assert (gone["2"].taken, gone["2"].name, len(gone["2"].chunks), gone["3"].taken) == (True, "Doc 1", 3, False)
    assert rows.explained(database, ROWS, undo) == {point(2, n) for n in range(3)}


def test_many_documents_at_once(database: Database, undo: UndoTables) -> None:
    with database.transaction() as connection:
        connection.execute(sa.text("DELETE FROM chunks"))
        connection.execute(sa.text("DELETE FROM documents"))
        statement = "INSERT INTO documents (id, name, meta) {} VALUES (:id, 'n', '{{}}')"
        overriding = "" if lite(database) else "OVERRIDING SYSTEM VALUE"
        connection.execute(sa.text(statement.format(overriding)), [{"id": n} for n in range(1, 5101)])
    ids = list(range(1, 5101))
    assert len(rows.read(database, ROWS, ids)) == 5100
    before = dump(database)
    assert all(rows.edit(database, ROWS, undo, ids[:600], EDIT).values())
    assert rows.read(database, ROWS, [600])["600"].metadata == {"a": {"new": 1}, "b": [1.5]}
    assert sum(one.documents for one in rows.restore(database, ROWS, undo, ids).values()) == 600
    same(database, before)


# Edits -------------------------------------------------------------------------------------------------------------


def test_an_edit_writes_what_it_says_and_nothing_else(database: Database, undo: UndoTables) -> None:
    rows.edit(database, ROWS, undo, [1, 2, 3, 5], EDIT)
    found = rows.read(database, ROWS, [1, 3, 5])
    assert found["1"].metadata == {"a": {"b": 1.1, "new": 1}, "umlaut": "ä", "b": [1.5]}
    assert found["1"].tags == ["kept", "x", "y"]
    assert found["3"].metadata == found["5"].metadata == {"a": {"new": 1}, "b": [1.5]}
    with database.transaction() as connection:
        text = connection.exec_driver_sql("SELECT CAST(meta AS TEXT), name FROM documents WHERE id = 1").one()
        chunk = connection.exec_driver_sql("SELECT CAST(meta AS TEXT) FROM chunks WHERE id = 1").scalar_one()
    assert '"b": 1.10' in text[0]  # a number that nobody named is as it was
    assert '"b": 1.10' in chunk
    untouched = dump(database)
    assert rows.edit(database, ROWS, undo, [4], Edit(add_tags=("x",), remove_tags=("z",))) == {"4": False}
    assert rows.edit(database, ROWS, undo, [4, 99], Edit(merge={"a": 1})) == {"4": False, "99": False}
    assert dump(database) == untouched
    row = rows.read(database, ROWS, [4])["4"]
    assert not rows.would_change(row, Edit(merge={"a": 1}, add_tags=("y",)))
    assert rows.would_change(row, Edit(merge={"a": True}))
    assert not rows.would_change(
        row, Edit(merge={"a": 2}), ROWS.model_copy(update={"metadata_column": None, "chunks": None})
    )


def test_an_edit_that_is_not_possible_names_the_document_and_changes_none(database: Database, undo: UndoTables) -> None:
    before = dump(database)
    with pytest.raises(Permanent, match="document 4") as caught:
        rows.edit(database, ROWS, undo, [1, 4], Edit(set={"a.x.c": 1}))
    assert "holds no keys" in caught.value.detail
    sql(database, "UPDATE chunks SET tags = '{}' WHERE doc = 2")
    with pytest.raises(Permanent, match="document 2"):
        rows.edit(database, ROWS, undo, [1, 2], Edit(add_tags=("z",)))
    sql(database, "UPDATE chunks SET tags = '[]' WHERE doc = 2")
    same(database, before)


def test_what_somebody_changes_after_an_edit_stays(database: Database, undo: UndoTables) -> None:
    before = dump(database)
    rows.edit(database, ROWS, undo, [1, 2, 3, 4], EDIT)
    theirs = '{"a": {"b": 1.10, "new": 1}, "b": [1.5], "umlaut": "ä", "mine": 2}'
    sql(
        database,
        f"UPDATE documents SET meta = '{theirs}', name = 'renamed' WHERE id = 1",
        'UPDATE documents SET meta = \'{"a": {"new": 1}, "b": 7}\' WHERE id = 2',
        "DELETE FROM chunks WHERE id = 9",
    )
    again = dump(database)
    editing(database, undo, [1, 2, 3, 4])
    assert dump(database) == again  # the same edit, repeated after a crash, is not done twice
    back = rows.restore(database, ROWS, undo, [1, 2, 3, 4], EDIT)
    assert [back[str(one)].changed_since for one in (1, 2, 3, 4)] == [0, 1, 1, 0]
    assert back == rows.restore(database, ROWS, undo, [1, 2, 3, 4], EDIT)
    found = rows.read(database, ROWS, [1, 2])
    assert found["1"].metadata == {"a": {"b": 1.1}, "umlaut": "ä", "mine": 2, "gone": True}
    assert (found["1"].name, found["1"].tags) == ("renamed", ["old", "kept"])
    assert found["2"].metadata == {"b": 7}
    kept = [row for row in dump(database) if row in before]
    assert len(kept) == len(before) - 3  # all but the two documents and the chunk that is gone


def test_without_the_edit_only_untouched_values_go_back(database: Database, undo: UndoTables) -> None:
    rows.edit(database, ROWS, undo, [1, 2], EDIT)
    sql(database, "UPDATE documents SET meta = '{\"mine\": 1}' WHERE id = 1")
    back = rows.restore(database, ROWS, undo, [1, 2])
    assert (back["1"], back["2"]) == (rows.Restored(0, 3, 1), rows.Restored(1, 3, 0))
    assert rows.read(database, ROWS, [1])["1"].metadata == {"mine": 1}
    assert rows.read(database, ROWS, [1])["1"].tags == ["old", "kept"]


def test_whether_an_edit_changes_rows(database: Database, undo: UndoTables) -> None:
    edit = Edit(add_tags=("x",))
    rows.edit(database, ROWS, undo, [1, 2], edit)
    sql(database, "UPDATE chunks SET tags = '[\"kept\"]' WHERE id = 5")  # the document has the tag, this chunk has not
    found = rows.read(database, ROWS, [1, 2, 3, 4])
    assert {one: rows.would_change(row, edit, ROWS) for one, row in found.items()} == {
        "1": False, "2": True, "3": True, "4": False,
    }  # fmt: skip
    assert not rows.would_change(found["2"], edit, ROWS, {point(2, 0), point(2, 2)})
    assert rows.would_change(found["2"], edit, ROWS, {point(2, 1)})
    assert not rows.would_change(found["2"], edit)
    without = ROWS.model_copy(update={"chunks": CHUNKS.model_copy(update={"tags_column": None})})
    assert not rows.would_change(rows.read(database, without, [2])["2"], edit, without)


# Taking out --------------------------------------------------------------------------------------------------------


def test_what_somebody_makes_in_the_place_of_a_row_that_is_out_is_theirs(database: Database, undo: UndoTables) -> None:
    taking(database, undo, [1, 2])
    overriding = "" if lite(database) else "OVERRIDING SYSTEM VALUE"
    sql(
        database,
        f"INSERT INTO documents (id, name) {overriding} VALUES (1, 'theirs')",
        "INSERT INTO chunks (id, doc, vector_id, position, tenant) "
        f"VALUES (2, 1, '{point(1, 'their')}', 1, 'theirs'), (99, 1, '{point(1, 'other')}', 7, 'theirs')",
    )
    taking(database, undo, [1, 2])  # repeated: what is there now is not what was taken out
    assert rows.read(database, ROWS, [1])["1"].name == "theirs"
    assert rows.read(database, ROWS, [1], undo)["1"].taken
    assert rows.restorable(database, ROWS, undo, [1, 2]) == {"1": "a document of this id was made again since"}
    back = rows.restore(database, ROWS, undo, [1, 2])
    why = "a document of this id was made again since"
    assert back == {"1": rows.Restored(0, 0, 1, why), "2": rows.Restored(1, 3, 0)}
    assert rows.restore(database, ROWS, undo, [1, 2]) == back
    found = rows.read(database, ROWS, [1])["1"]
    assert (found.name, [chunk.key for chunk in found.chunks]) == ("theirs", [2, 99])


def test_a_key_that_another_row_got_since(database: Database, undo: UndoTables) -> None:
    """As SQLite does: the key of the last row that is deleted is the next row's."""
    before = dump(database)
    taking(database, undo, [4, 5])
    sql(database, f"INSERT INTO chunks (id, doc, vector_id, tenant) VALUES (14, 1, '{point(1, 'late')}', 'late')")
    assert rows.restorable(database, ROWS, undo, [4, 5]) == {}
    back = rows.restore(database, ROWS, undo, [4, 5])
    assert back == {"4": rows.Restored(1, 3, 0), "5": rows.Restored(1, 3, 0)}
    assert rows.restore(database, ROWS, undo, [4, 5]) == back
    found = rows.read(database, ROWS, [1, 5])
    assert [chunk.vector_id for chunk in found["5"].chunks] == [point(5, n) for n in range(3)]
    keys = [chunk.key for chunk in found["5"].chunks]
    assert (keys[0], keys[2], keys[1] not in (13, 14, 15)) == (13, 15, True)
    assert [chunk.vector_id for chunk in found["1"].chunks][3:] == [point(1, "late")]
    # the row is as it was, but for its key
    sql(database, "DELETE FROM chunks WHERE id = 14", f"UPDATE chunks SET id = 14 WHERE id = {keys[1]}")
    same(database, before)


def test_a_key_of_a_changed_or_a_new_row_that_another_row_got_since(database: Database, undo: UndoTables) -> None:
    rows.edit(database, ROWS, undo, [5], Edit(add_tags=("x",)))
    swaps(database, undo, [4])
    made = rows.read(database, ROWS, [4])["4"].chunks[1].key
    sql(
        database,
        f"DELETE FROM chunks WHERE id IN (15, {made})",
        "INSERT INTO chunks (id, doc, vector_id, tags, tenant) SELECT 15, 1, "
        f"'{point(1, 'late')}', '[\"old\", \"x\"]', 'late'",
        f"INSERT INTO chunks (id, doc, vector_id, tenant) VALUES ({made}, 1, '{point(1, 'later')}', 'late')",
    )
    late = [line for line in dump(database) if "late" in line]
    back = rows.restore(database, ROWS, undo, [4, 5], Edit(add_tags=("x",)))
    assert back == {"4": rows.Restored(1, 3, 0), "5": rows.Restored(1, 2, 1)}
    assert [line for line in dump(database) if "late" in line] == late
    assert [chunk.vector_id for chunk in rows.read(database, ROWS, [4])["4"].chunks] == [point(4, n) for n in range(3)]


def test_keys_of_old_rows_are_kept_for_them(database: Database, undo: UndoTables) -> None:
    before = dump(database)
    for document in (5, 4, 3):
        swap(database, ROWS, undo, document, {}, new(document, "n1", "n2", "n3"), None)
    for document in (3, 4, 5):
        rows.restore(database, ROWS, undo, [document])
    same(database, before)
    # of another run, too
    taking(database, undo, [4, 5])
    other = rows.new_undo(database, ROWS, "run-2")
    swap(database, ROWS, other, 1, {}, new(1, "n1", "n2", "n3"), None)
    rows.restore(database, ROWS, undo, [4, 5])
    rows.restore(database, ROWS, other, [1])
    same(database, before)


def test_a_key_that_nothing_fills_is_taken(database: Database) -> None:
    sql(
        database,
        "CREATE TABLE documents (id TEXT PRIMARY KEY)",
        "CREATE TABLE chunks (id TEXT PRIMARY KEY, doc TEXT, vector_id TEXT)",
        "INSERT INTO documents VALUES ('a'), ('b'), ('c')",
        "INSERT INTO chunks VALUES ('1', 'a', 'p'), ('2', 'b', 'q'), ('3', 'c', 'r')",
    )
    chunks = ChunkRows(table="chunks", id_column="id", document_id_column="doc", vector_id_column="vector_id")
    mine = DocumentRows(connection="app", table="documents", id_column="id", chunks=chunks)
    undo = rows.new_undo(database, mine, "run")
    rows.take_out(database, mine, undo, ["a", "b"])
    sql(database, "INSERT INTO chunks VALUES ('2', 'c', 's')")
    refused = {"b": "its rows do not fit any more: another row of chunks has the id of one of them"}
    assert rows.restorable(database, mine, undo, ["a", "b", "c"]) == refused
    back = rows.restore(database, mine, undo, ["a", "b", "c"])
    assert back == {"a": rows.Restored(1, 1, 0), "b": rows.Restored(0, 0, 1, refused["b"]), "c": rows.Restored(0, 0, 0)}
    assert set(rows.read(database, mine, ["a", "b", "c"])) == {"a", "c"}


def test_a_key_that_is_given_out_again_while_the_run_goes_on(database: Database, undo: UndoTables) -> None:
    taking(database, undo, [5])
    sql(database, f"INSERT INTO chunks (id, doc, vector_id, position, tenant) VALUES (15, 1, '{point(1, 9)}', 9, 't')")
    before = dump(database)
    for change in (
        lambda: rows.take_out(database, ROWS, undo, [1]),
        lambda: rows.edit(database, ROWS, undo, [1], EDIT),
        lambda: swap(database, ROWS, undo, 1, {}, new(1, "n", start=20), None),
    ):
        with pytest.raises(Permanent, match=r"(?i)unique"):
            change()
        same(database, before)  # nothing is deleted or changed unsaved
    rows.edit(database, ROWS, undo, [2], EDIT)
    assert rows.restore(database, ROWS, undo, [5])["5"] == rows.Restored(1, 3, 0)


def test_a_table_that_takes_no_row_any_more_stops_it(database: Database, undo: UndoTables) -> None:
    """That is no matter of single documents, and is mended first."""
    taking(database, undo, [1, 2])
    if lite(database):
        rule = "CREATE TRIGGER rule BEFORE INSERT ON documents BEGIN SELECT RAISE(ABORT, 'never'); END"
        away = "DROP TRIGGER rule"
    else:
        rule = "ALTER TABLE documents ADD CONSTRAINT rule CHECK (name = 'never') NOT VALID"
        away = "ALTER TABLE documents DROP CONSTRAINT rule"
    sql(database, rule)
    before = dump(database)
    for ask in (rows.restorable, rows.restore):
        with pytest.raises(Permanent, match=r"never|rule|a trigger"):
            ask(database, ROWS, undo, [1, 2])
        same(database, before)
    sql(database, away)
    assert rows.restore(database, ROWS, undo, [1, 2])["2"] == rows.Restored(1, 3, 0)


@pytest.mark.parametrize("deferred", [False, True])
def test_a_value_that_is_taken_since_concerns_its_document_alone(
    database: Database, undo: UndoTables, deferred: bool
) -> None:
    if lite(database):
        sql(database, "CREATE UNIQUE INDEX by_name ON documents (name)")
    else:
        more = " DEFERRABLE INITIALLY DEFERRED" if deferred else ""
        sql(database, f"ALTER TABLE documents ADD CONSTRAINT by_name UNIQUE (name){more}")
    taking(database, undo, [1, 2, 3, 5])
    overriding = "" if lite(database) else "OVERRIDING SYSTEM VALUE"
    sql(database, f"INSERT INTO documents (id, name) {overriding} VALUES (77, 'Doc 1')")
    middle = dump(database)
    told = rows.restorable(database, ROWS, undo, [1, 2, 3, 4, 5, 77])
    assert list(told) == ["2"]
    assert "its rows do not fit any more" in told["2"]
    assert "name" in told["2"]
    same(database, middle)
    back = rows.restore(database, ROWS, undo, [1, 2, 3, 4, 5])
    assert back["2"] == rows.Restored(0, 0, 1, told["2"])
    assert {back[one] for one in ("1", "3", "5")} == {rows.Restored(1, 3, 0)}
    found = rows.read(database, ROWS, [1, 2, 3, 4, 5])
    assert {one: len(row.chunks) for one, row in found.items()} == {"1": 3, "3": 3, "4": 3, "5": 3}
    assert rows.restore(database, ROWS, undo, [1, 2, 3, 4, 5]) == back
    sql(database, "DELETE FROM documents WHERE id = 77")
    assert rows.restore(database, ROWS, undo, [2])["2"] == rows.Restored(1, 3, 0)


@pytest.mark.parametrize("operation", [editing, swaps])
def test_a_document_that_is_deleted_since_stays_deleted(
    database: Database, undo: UndoTables, operation: Operation
) -> None:
    before = dump(database)
    operation(database, undo, [1, 2, 3])
    announce(database, ROWS, undo, 4, new(4, "n"))  # it came no further
    sql(database, "DELETE FROM chunks WHERE doc IN (2, 4)", "DELETE FROM documents WHERE id IN (2, 4)")
    gone = dict.fromkeys(("2", "4"), "it was deleted since")
    assert rows.restorable(database, ROWS, undo, [1, 2, 3, 4, 5]) == gone
    back = rows.restore(database, ROWS, undo, [1, 2, 3, 4], EDIT)
    assert {one: found.changed_since for one, found in back.items()} == {"1": 0, "2": 1, "3": 0, "4": 1}
    assert dump(database) == [*before[:1], before[2], before[4], *before[5:8], *before[11:14], *before[17:]]
    sql(database, "DELETE FROM chunks WHERE doc = 1", "DELETE FROM documents WHERE id = 1")
    again = rows.restorable(database, ROWS, undo, [1, 2, 3])  # after the rows were back
    assert again == dict.fromkeys(("1", "2"), "it was deleted since")


def test_what_the_database_refuses_changes_nothing(database: Database, undo: UndoTables) -> None:
    sql(
        database,
        "CREATE TABLE cites (id INTEGER PRIMARY KEY, doc INTEGER REFERENCES documents (id))",
        "INSERT INTO cites VALUES (1, 3)",
    )
    before = dump(database)
    with pytest.raises(Permanent, match=r"(?i)foreign key"):
        rows.take_out(database, ROWS, undo, [1, 2, 3])
    same(database, before)
    assert rows.explained(database, ROWS, undo) == set()
    taking(database, undo, [1, 2])
    assert rows.read(database, ROWS, [1, 2, 3], undo)["3"].taken is False


def test_a_trigger_that_keeps_rows_is_told(database: Database, undo: UndoTables) -> None:
    if lite(database):
        sql(database, "CREATE TRIGGER keep BEFORE DELETE ON documents BEGIN SELECT RAISE(IGNORE); END")
    else:
        sql(
            database,
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
            "CREATE TRIGGER keep BEFORE DELETE ON documents FOR EACH ROW EXECUTE FUNCTION keep()",
        )
    before = dump(database)
    with pytest.raises(Permanent, match="still there"):
        rows.take_out(database, ROWS, undo, [1])
    same(database, before)


def test_foreign_keys_of_other_tables_are_told(database: Database, undo: UndoTables) -> None:
    assert rows.referring(database, ROWS) == []
    sql(
        database,
        "CREATE TABLE cites (doc INTEGER REFERENCES documents (id) ON DELETE CASCADE, chunk INTEGER REFERENCES chunks (id))",
        "CREATE TABLE views (doc INTEGER REFERENCES documents (id) ON DELETE SET NULL)",
    )
    assert rows.referring(database, ROWS) == [
        "cites.chunk refers to chunks.id (ON DELETE NO ACTION): a chunk that is named there cannot be deleted",
        "cites.doc refers to documents.id (ON DELETE CASCADE): its rows would be deleted, too, and not come back",
        "views.doc refers to documents.id (ON DELETE SET NULL): its values would be lost, and not come back",
    ]


def test_a_table_of_several_collections(database: Database, undo: UndoTables) -> None:
    sql(database, "UPDATE chunks SET tenant = 'mine' WHERE doc <> 3 OR position = 1")
    chunks = CHUNKS.model_copy(update={"collection_column": "tenant", "collection": "mine"})
    mine = ROWS.model_copy(update={"chunks": chunks})
    found = rows.read(database, mine, [2, 3])
    assert [len(found[one].chunks) for one in ("2", "3")] == [3, 1]
    assert [chunk.vector_id for chunk in found["3"].chunks] == [point(3, 1)]
    before = dump(database)
    with pytest.raises(Permanent, match="document 3 are of 't2'"):
        rows.take_out(database, mine, undo, [2, 3])
    same(database, before)
    assert rows.take_out(database, mine, undo, [2]) == {"2": (1, 3)}
    rows.edit(database, mine, undo, [3], EDIT)
    assert sum(a != b for a, b in zip(before[-9:-6], dump(database)[-9:-6], strict=True)) == 1
    swap(database, mine, undo, 3, {}, new(3, "n", start=5), None)
    assert [chunk.vector_id for chunk in rows.read(database, mine, [3])["3"].chunks] == [point(3, "n")]
    rows.restore(database, mine, undo, [2, 3], EDIT)
    same(database, before)


def test_chunks_whose_document_is_not_there(database: Database, undo: UndoTables) -> None:
    if not lite(database):
        sql(database, "ALTER TABLE chunks DROP CONSTRAINT chunks_doc_fkey")
    sql(database, "DELETE FROM documents WHERE id = 2")
    before = dump(database)
    orphan = rows.read(database, ROWS, [2])["2"]
    assert (orphan.orphan, orphan.id, len(orphan.chunks)) == (True, 2, 3)
    assert rows.take_out(database, ROWS, undo, [2, 99]) == {"2": (0, 3), "99": (0, 0)}
    assert rows.read(database, ROWS, [2], undo)["2"].taken
    assert rows.restore(database, ROWS, undo, [2])["2"] == rows.Restored(0, 3, 0)
    same(database, before)


# Swaps -------------------------------------------------------------------------------------------------------------


def test_new_chunks_in_the_place_of_old_ones(database: Database, undo: UndoTables) -> None:
    announce(database, ROWS, undo, 1, swapping(1).made)
    assert rows.explained(database, ROWS, undo) == {point(1, "n1"), point(1, "n2")}
    swaps(database, undo, [1])
    found = rows.read(database, ROWS, [1])["1"]
    assert found.text == "text 1 new"
    assert [(one.vector_id, one.text, one.position) for one in found.chunks] == [
        (point(1, 2), "chunk 2", 0), (point(1, "n1"), "text n1", 1), (point(1, "n2"), "text n2", 2),
    ]  # fmt: skip
    with database.transaction() as connection:
        carried = connection.exec_driver_sql(
            "SELECT tenant, hash, version FROM chunks WHERE doc = 1 AND position > 0"
        ).all()
    assert [tuple(row) for row in carried] == [("t0", None, "none")] * 2  # the hash differed from chunk to chunk
    assert rows.explained(database, ROWS, undo) >= {point(1, n) for n in (0, 1, "n1", "n2")}


def test_a_swap_that_is_asked_for_anew_with_other_chunks(database: Database, undo: UndoTables) -> None:
    before = dump(database)
    swaps(database, undo, [1])
    other = new(1, "m1", "m2", "m3")
    announce(database, ROWS, undo, 1, other)
    assert swap(database, ROWS, undo, 1, {}, other, "again") == (3, 3)
    assert [one.vector_id for one in rows.read(database, ROWS, [1])["1"].chunks] == [
        point(1, name) for name in ("m1", "m2", "m3")
    ]
    named = {point(1, name) for name in (0, 1, 2, "n1", "n2", "m1", "m2", "m3")}
    assert rows.explained(database, ROWS, undo) == named
    found = {
        row.key: NewChunk(row.key, row.vector_id or "", "", 9 - n)
        for n, row in enumerate(rows.read(database, ROWS, [1])["1"].chunks)
    }
    assert swap(database, ROWS, undo, 1, found, [], None) == (3, 3)  # all are kept, and move
    assert rows.restore(database, ROWS, undo, [1])["1"].changed_since == 0
    same(database, before)


def test_chunks_change_places(database: Database, undo: UndoTables) -> None:
    before = dump(database)
    keep = {key: NewChunk(key, point(2, n), f"chunk {n}", (n + 1) % 3) for n, key in enumerate((4, 5, 6))}
    assert swap(database, ROWS, undo, 2, keep, [], None) == (0, 0)
    assert [one.key for one in rows.read(database, ROWS, [2])["2"].chunks] == [6, 4, 5]
    back = rows.restore(database, ROWS, undo, [2])
    assert back["2"] == rows.Restored(0, 3, 0)
    same(database, before)


def test_chunks_move_up_or_down_together(database: Database, undo: UndoTables) -> None:
    before = dump(database)
    down = {5: NewChunk(5, point(2, 1), "", 0), 6: NewChunk(6, point(2, 2), "", 1)}
    up = {key: NewChunk(key, point(3, n), "", n + 1) for n, key in enumerate((7, 8, 9))}
    done = rows.swap_all(database, ROWS, undo, [Swap(2, down, []), Swap(3, up, new(3, "first"))])
    assert done == {"2": (0, 1), "3": (1, 0)}
    found = rows.read(database, ROWS, [2, 3])
    assert [(one.key, one.position) for one in found["2"].chunks] == [(5, 0), (6, 1)]
    assert [one.key for one in found["3"].chunks][1:] == [7, 8, 9]
    assert rows.restore(database, ROWS, undo, [2, 3]) == {"2": rows.Restored(0, 3, 0), "3": rows.Restored(0, 3, 0)}
    same(database, before)


def test_what_somebody_changes_after_a_swap_stays(database: Database, undo: UndoTables) -> None:
    swaps(database, undo, [1])
    sql(
        database,
        "UPDATE documents SET body = 'theirs' WHERE id = 1",
        f"UPDATE chunks SET vector_id = '{point(1, 'their')}', position = 8 WHERE doc = 1 AND position = 1",
    )
    back = rows.restore(database, ROWS, undo, [1])
    assert back["1"] == rows.Restored(0, 3, 2)
    found = rows.read(database, ROWS, [1])["1"]
    assert (found.text, [one.vector_id for one in found.chunks]) == (
        "theirs", [point(1, 0), point(1, 1), point(1, 2), point(1, "their")],
    )  # fmt: skip


def test_chunks_that_somebody_replaces_after_a_swap_stay(database: Database, undo: UndoTables) -> None:
    swaps(database, undo, [1, 2])
    sql(
        database,
        "DELETE FROM chunks WHERE doc = 1",
        f"INSERT INTO chunks (doc, vector_id, tenant) VALUES (1, '{point(1, 'theirs')}', 'theirs')",
        f"UPDATE chunks SET vector_id = '{point(2, 'other')}', position = 9 WHERE doc = 2 AND position = 1",
        "DELETE FROM chunks WHERE doc = 2 AND position = 2",
    )
    why = "its chunks were made anew since"
    assert rows.restorable(database, ROWS, undo, [1, 2]) == {"1": why}
    assert rows.restore(database, ROWS, undo, [1, 2]) == {"1": rows.Restored(0, 0, 1, why), "2": rows.Restored(1, 3, 1)}
    found = rows.read(database, ROWS, [1, 2])
    assert [chunk.vector_id for chunk in found["1"].chunks] == [point(1, "theirs")]
    assert rows.restorable(database, ROWS, undo, [2]) == {}


def test_columns_that_a_new_row_takes_over(database: Database, undo: UndoTables) -> None:
    sql(database, "DELETE FROM chunks WHERE doc = 4", "DELETE FROM chunks WHERE doc = 5 AND position > 0")
    # one row alone: the tenant is needed, the hash differs within the other documents
    swap(database, ROWS, undo, 5, {}, new(5, "n"), None)
    like = NewChunk(None, point(1, "n"), "text", 3, like=2)
    swap(database, ROWS, undo, 1, {n: NewChunk(n, "", "", n - 1) for n in (1, 2, 3)}, [like], None)
    with database.transaction() as connection:
        found = connection.exec_driver_sql(
            "SELECT doc, tenant, hash FROM chunks WHERE body = 'text' OR body = 'text n' ORDER BY doc"
        ).all()
    assert [(row[0], row[1], str(row[2]).strip()) for row in found] == [(1, "t0", "h1"), (5, "t4", "None")]
    with pytest.raises(Permanent, match=r"chunks\.tenant"):
        swap(database, ROWS, undo, 4, {}, new(4, "n"), None)
    sql(database, "UPDATE chunks SET tenant = 'other' WHERE id = 5")
    with pytest.raises(Permanent, match=r"chunks\.tenant"):
        swap(database, ROWS, undo, 2, {}, new(2, "n"), None)


@pytest.mark.parametrize("kind", ["text", "uuid", "char"])
def test_ids_of_other_kinds_and_odd_names(database: Database, kind: str) -> None:
    schema = "main" if lite(database) else "App: Data%"
    declared = {"text": "TEXT", "uuid": "UUID", "char": "CHAR(40)"}[kind]
    one, two = str(uuid.uuid4()), str(uuid.uuid4())
    if not lite(database):
        sql(database, f'CREATE SCHEMA "{schema.replace("%", "%%")}"')
    names = {"schema": schema, "documents": 'My "Docs" %s :x', "chunks": "order", "key": "Id: %", "doc": "select"}
    quoted = {name: '"' + text.replace('"', '""').replace("%", "%%") + '"' for name, text in names.items()}
    if lite(database):
        quoted = {name: text.replace("%%", "%") for name, text in quoted.items()}
    here = f"{quoted['schema']}."
    sql(
        database,
        f"CREATE TABLE {here}{quoted['documents']} ({quoted['key']} {declared} PRIMARY KEY, tags TEXT)",
        f"CREATE TABLE {here}{quoted['chunks']} ({quoted['key']} {declared} PRIMARY KEY, {quoted['doc']} TEXT, point BIGINT)",
        f"INSERT INTO {here}{quoted['documents']} VALUES ('{one}', '[\"a\"]'), ('{two}', NULL)",
        f"INSERT INTO {here}{quoted['chunks']} VALUES ('{one}', '{two}', 7), ('{two}', '{two}', {2**53 + 1})",
    )
    chunks = ChunkRows(
        table=f"{schema}.order", id_column="Id: %", document_id_column="select", vector_id_column="point"
    )
    mine = DocumentRows(
        connection="app", table=f"{schema}.{names['documents']}", id_column="Id: %", tags_column="tags", chunks=chunks
    )
    undo = rows.new_undo(database, mine, "run")
    assert rows.check(database, mine) == 2
    before = rows.read(database, mine, [one, two])
    assert {chunk.vector_id for chunk in before[two].chunks} == {7, 2**53 + 1}
    assert rows.take_out(database, mine, undo, [one, two]) == {one: (1, 0), two: (1, 2)}
    assert rows.explained(database, mine, undo) == {"7", str(2**53 + 1)}
    rows.restore(database, mine, undo, [one, two])
    assert rows.edit(database, mine, undo, [one, two], Edit(add_tags=("b",))) == {one: True, two: True}
    if kind == "text":  # a key that nothing fills is the id of the point
        assert swap(database, mine, undo, two, {}, [NewChunk(None, 9, "", 0)], "") == (1, 2)
        assert [chunk.key for chunk in rows.read(database, mine, [two])[two].chunks] == ["9"]
    rows.restore(database, mine, undo, [one, two])
    assert rows.read(database, mine, [one, two]) == before


# What is asked before ------------------------------------------------------------------------------------------------


def test_what_is_wrong_with_the_tables_is_told_with_the_way_out(database: Database, undo: UndoTables) -> None:
    with pytest.raises(NotFound, match="documentz"):
        rows.check(database, ROWS.model_copy(update={"table": "documentz"}))
    with pytest.raises(NotFound, match="nam") as caught:
        rows.check(database, ROWS.model_copy(update={"name_column": "nam"}))
    assert "did you mean name?" in caught.value.hint
    with pytest.raises(Permanent, match="cannot hold metadata"):
        rows.check(database, ROWS.model_copy(update={"metadata_column": "raw"}))
    with pytest.raises(Permanent, match="cannot hold tags"):
        rows.check(database, ROWS.model_copy(update={"tags_column": "id"}))
    with pytest.raises(Permanent, match="does not tell rows apart"):
        rows.check(database, ROWS.model_copy(update={"chunks": CHUNKS.model_copy(update={"id_column": "tenant"})}))


@pytest.mark.parametrize(
    "query",
    [
        "", "SELEC 1", "SELECT nothing FROM documents", "DELETE FROM documents", "SELECT 1; DELETE FROM documents",
        "SELECT 1; COMMIT; DELETE FROM documents", "DROP TABLE chunks", "SELECT raw FROM documents",
        "WITH x AS (DELETE FROM documents RETURNING id) SELECT id FROM x",
    ],
)  # fmt: skip
def test_a_query_that_does_not_only_read(database: Database, undo: UndoTables, query: str) -> None:
    before = dump(database)
    with pytest.raises(Permanent):
        rows.select(database, query)
    same(database, before)
    assert rows.edit(database, ROWS, undo, [1], EDIT)["1"]  # the connection writes again


def test_a_query_names_documents(database: Database, undo: UndoTables) -> None:
    assert rows.select(database, " SELECT doc, id FROM chunks WHERE body LIKE '%1' OR doc > 3 ORDER BY doc DESC;\n") == [
        5, 4, 3, 2, 1,
    ]  # fmt: skip
    assert rows.select(database, "SELECT NULL UNION ALL SELECT name FROM documents WHERE id = 1") == ["Doc 0"]


def test_undo_tables_are_made_once_by_many(database: Database, undo: UndoTables) -> None:
    failed: list[BaseException] = []
    start = threading.Barrier(4)

    def work(document: int) -> None:
        try:
            start.wait()
            rows.take_out(database, ROWS, undo, [document])
        except BaseException as exc:
            failed.append(exc)

    before = dump(database)
    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(dump(database)) == 4
    rows.restore(database, ROWS, undo, [1, 2, 3, 4])
    same(database, before)


def test_a_table_that_is_not_ours_is_left_alone(database: Database, undo: UndoTables) -> None:
    sql(database, f"CREATE TABLE {undo.documents} (id INTEGER)")
    assert rows.undo_rows(database, ROWS, undo) is None
    rows.forget(database, ROWS, undo)
    assert undo.documents in sa.inspect(database.engine).get_table_names()
    assert rows.new_undo(database, ROWS, "run-1") != undo
