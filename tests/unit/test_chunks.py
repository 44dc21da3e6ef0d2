"""Rewriting point ids in the user's chunks table and putting them back, on SQLite and PostgreSQL (A3, O3)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from runner.documents import SqlConfig
from runner.documents.chunks import holds, inspect, restore, rewrite
from runner.documents.database import Database
from runner.errors import NotFound, Permanent, Transient
from runner.plan import ChunkTable
from runner.points import IdKind

CHUNKS = ChunkTable(connection="app", table="chunks", id_column="id", vector_id_column="vector_id")
TYPES = {"text": "TEXT", "int": "BIGINT", "uuid": "UUID"}
ONE, TWO, THREE = (str(uuid.uuid5(uuid.NAMESPACE_OID, name)) for name in ("one", "two", "three"))


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/app.db" if request.param == "sqlite" else request.getfixturevalue("pg_database")
    made = Database(SqlConfig(type="sql", url=url))
    yield made
    made.close()


def table(database: Database, rows: list[Any], column: str = "TEXT", more: str = "", values: str = "") -> None:
    """A chunks table with rows 1, 2, 3 …, each with its vector id."""
    with database.transaction() as connection:
        connection.exec_driver_sql(f"CREATE TABLE chunks (id INTEGER PRIMARY KEY, vector_id {column}, note TEXT{more})")
        for number, row in enumerate(rows, 1):
            connection.execute(
                sa.text(f"INSERT INTO chunks VALUES (:n, :v, 'keep'{values})"),
                {"n": number, "v": row, "even": number % 2},
            )


def held(database: Database) -> list[Any]:
    with database.transaction() as connection:
        rows = connection.exec_driver_sql("SELECT vector_id, note FROM chunks ORDER BY id").all()
    assert {row.note for row in rows} <= {"keep"}
    return [
        None if row.vector_id is None else row.vector_id if isinstance(row.vector_id, int) else str(row.vector_id)
        for row in rows
    ]


def tables(database: Database) -> set[str]:
    return set(sa.inspect(database.engine).get_table_names())


def test_ids_are_rewritten_and_put_back(database: Database) -> None:
    table(database, ["1", "2", "not a point", None])
    assert inspect(database, CHUNKS) == 4
    assert rewrite(database, CHUNKS, "undo", [("kb", [[(1, ONE)], [(2, TWO), (3, THREE)]])]) == 2
    assert held(database) == [ONE, TWO, "not a point", None]
    assert tables(database) == {"chunks", "undo"}
    assert restore(database, CHUNKS, "undo").rows == 2
    assert held(database) == ["1", "2", "not a point", None]
    assert tables(database) == {"chunks"}


def test_several_rows_of_one_point_and_swapped_ids(database: Database) -> None:
    table(database, ["a", "b", "a", "c"])
    assert rewrite(database, CHUNKS, "undo", [("kb", [[("a", "b"), ("b", "c"), ("c", "a")]])]) == 4
    assert held(database) == ["b", "c", "b", "a"]
    assert restore(database, CHUNKS, "undo").rows == 4
    assert held(database) == ["a", "b", "a", "c"]


@pytest.mark.parametrize("kind", ["int", "uuid"])
def test_columns_of_integers_and_uuids(database: Database, kind: str) -> None:
    old, new = ([7, 2**53 + 1], [2**63 - 1, 8]) if kind == "int" else ([ONE, TWO], [THREE, ONE])
    if kind == "uuid" and database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no type for UUIDs")
    table(database, old, TYPES[kind])
    pairs = list(zip(old, new, strict=True))
    if kind == "uuid":
        pairs.append(("never in such a column", ONE))  # its points are not in this table
    rewrite(database, CHUNKS, "undo", [("kb", [pairs])])
    assert held(database) == new
    restore(database, CHUNKS, "undo")
    assert held(database) == old


def test_the_undo_table_says_that_it_was_done(database: Database) -> None:
    table(database, ["a", "b"])
    mapping = [("kb", [[("a", "b"), ("b", "a")]])]
    assert rewrite(database, CHUNKS, "undo", mapping) == 2
    assert rewrite(database, CHUNKS, "undo", mapping) == 2  # again after a crash: nothing happens
    assert held(database) == ["b", "a"]
    assert restore(database, CHUNKS, "undo").rows == 2
    again = restore(database, CHUNKS, "undo")
    assert (again.rows, again.changed_since) == (0, 0)
    assert held(database) == ["a", "b"]


def test_a_crash_in_the_middle_leaves_everything_as_it_was(database: Database) -> None:
    table(database, ["a", "b"])

    def pages() -> Iterator[list[tuple[int | str, int | str]]]:
        yield [("a", "x")]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewrite(database, CHUNKS, "undo", [("kb", pages())])
    assert held(database) == ["a", "b"]
    assert tables(database) == {"chunks"}


def test_rows_that_somebody_changed_since_are_left_alone(database: Database) -> None:
    table(database, ["a", "b", "c"])
    rewrite(database, CHUNKS, "undo", [("kb", [[("a", "x"), ("b", "y"), ("c", "z")]])])
    with database.transaction() as connection:
        connection.exec_driver_sql("UPDATE chunks SET vector_id = 'new' WHERE id = 2")
        connection.exec_driver_sql("DELETE FROM chunks WHERE id = 3")
        connection.exec_driver_sql("INSERT INTO chunks VALUES (9, 'x', 'keep')")
    done = restore(database, CHUNKS, "undo")
    assert (done.rows, done.changed_since) == (1, 2)
    assert held(database) == ["a", "new", "x"]


def test_collections_of_one_table_are_kept_apart(database: Database) -> None:
    chunks = CHUNKS.model_copy(update={"collection_column": "kb"})
    table(database, ["1", "1", "2", "2"], more=", kb TEXT", values=", CASE WHEN :even = 1 THEN 'odd' ELSE 'even' END")
    mappings: list[tuple[str, list[list[tuple[int | str, int | str]]]]] = [
        ("odd", [[(1, "o1"), (2, "o2")]]),
        ("even", [[(1, "e1")]]),
    ]
    assert rewrite(database, chunks, "undo", mappings) == 3
    assert held(database) == ["o1", "e1", "o2", "2"]
    restore(database, chunks, "undo")
    assert held(database) == ["1", "1", "2", "2"]


def test_empty_mappings(database: Database) -> None:
    table(database, ["a"])
    assert rewrite(database, CHUNKS, "undo", [("kb", [])]) == 0
    assert rewrite(database, CHUNKS, "undo2", [("kb", [[]])]) == 0
    assert held(database) == ["a"]


def test_a_schema_and_odd_names(database: Database) -> None:
    schema = "main" if database.engine.dialect.name == "sqlite" else "App Data"
    with database.transaction() as connection:
        if schema != "main":
            connection.exec_driver_sql(f'CREATE SCHEMA "{schema}"')
        connection.exec_driver_sql(
            f'CREATE TABLE "{schema}"."My ""Chunks""" ("Row Id" VARCHAR(20) PRIMARY KEY, "select" TEXT)'
        )
        connection.exec_driver_sql(f'INSERT INTO "{schema}"."My ""Chunks""" VALUES (\'r\', \'a\')')
    chunks = ChunkTable(connection="app", table=f'{schema}.My "Chunks"', id_column="Row Id", vector_id_column="select")
    assert rewrite(database, chunks, "undo", [("kb", [[("a", "b")]])]) == 1
    assert restore(database, chunks, "undo").rows == 1


def test_what_the_column_cannot_hold_is_said_before(database: Database) -> None:
    table(database, [1], "BIGINT")
    assert "Widen the column to text first" in holds(database, CHUNKS, IdKind.UUID)
    assert holds(database, CHUNKS, IdKind.INT) == ""


def test_missing_tables_and_columns_are_named(database: Database) -> None:
    table(database, ["a"])
    with pytest.raises(NotFound, match="chunkz"):
        inspect(database, CHUNKS.model_copy(update={"table": "chunkz"}))
    with pytest.raises(NotFound) as caught:
        inspect(database, CHUNKS.model_copy(update={"vector_id_column": "vectorid"}))
    assert "did you mean vector_id?" in caught.value.hint


@pytest.mark.parametrize("column", ["REAL", "BOOLEAN"])
def test_a_column_that_holds_no_ids(database: Database, column: str) -> None:
    table(database, [1.0 if column == "REAL" else True], column)
    with pytest.raises(Permanent, match="cannot hold ids"):
        rewrite(database, CHUNKS, "undo", [("kb", [[(1, "x")]])])


def test_a_database_that_does_not_answer(tmp_path: Path) -> None:
    for url, error in (
        ("postgresql://u:geheim@127.0.0.1:9/d", Transient),
        (f"sqlite:///{tmp_path}/no/app.db", Transient),
    ):
        database = Database(SqlConfig(type="sql", url=url))
        with pytest.raises(error) as caught:
            inspect(database, CHUNKS)
        assert "geheim" not in str(caught.value)
        database.close()
