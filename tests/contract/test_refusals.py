"""What databases say when they refuse is told without values of rows, and still names what there is to look at (E3)."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from runner.documents import SqlConfig
from runner.documents.database import Database
from runner.errors import Permanent, Transient, VecrunError

SECRET = "sk-not-to-be-shown-1234567890"
POSTGRESQL = [
    "CREATE TABLE t (id int PRIMARY KEY, small varchar(5), word text UNIQUE CHECK (word <> 'bad'), number int NOT NULL)",
    "CREATE TYPE mood AS ENUM ('good')",
    """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
       IF NEW.id = 7 THEN RAISE EXCEPTION 'key % is refused', NEW.word USING ERRCODE = '23505', CONSTRAINT = NEW.word; END IF;
       IF NEW.id = 8 THEN EXECUTE 'SELEC ' || NEW.word; END IF;
       IF NEW.id = 9 THEN RAISE EXCEPTION '%', NEW.word; END IF;
       RETURN NEW; END $$""",
    "CREATE TRIGGER refuse BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION refuse()",
    f"INSERT INTO t VALUES (1, '', '{SECRET}', 1)",
]
SQLITE = [
    "CREATE TABLE t (id integer PRIMARY KEY, small text CHECK (length(small) < 6), word text UNIQUE, number int NOT NULL)",
    "CREATE TRIGGER refuse BEFORE INSERT ON t WHEN NEW.id = 9 BEGIN SELECT RAISE(ABORT, 'a trigger says no'); END",
    f"INSERT INTO t VALUES (1, '', '{SECRET}', 1)",
    f"CREATE TABLE odd AS SELECT CAST('{SECRET}' || x'ff' AS text) AS word",
]
INSERT = "INSERT INTO t (id, small, word, number) VALUES (:id, :small, :word, :number)"
FINE = {"id": 2, "small": "", "word": SECRET + "2", "number": 1}


def opened(url: str, statements: list[str]) -> Iterator[Database]:
    with closing(Database(SqlConfig(type="sql", url=url))) as database:
        with database.transaction() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
        yield database


@pytest.fixture
def postgresql(pg_database: str) -> Iterator[Database]:
    yield from opened(pg_database, POSTGRESQL)


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    yield from opened(f"sqlite:///{tmp_path / 'a.db'}", SQLITE)


def refusal(database: Database, query: str, **values: object) -> str:
    """The error of a query as a user reads it. Its traceback shows as little, and where it was."""

    def ask() -> None:
        with database.transaction() as connection:
            found = connection.execute(sa.text(query), values)
            assert not found.all()

    with pytest.raises(VecrunError) as caught:
        ask()
    shown = "".join(traceback.format_exception(caught.value))
    assert "found = connection.execute(sa.text(query), values)" in shown or "found.all()" in shown
    assert SECRET not in shown
    assert isinstance(caught.value, Permanent)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"id": 1}, 'duplicate key value violates unique constraint "t_pkey"'),
        ({"word": SECRET}, 'violates unique constraint "t_word_key"'),
        ({"small": SECRET}, "value too long for type character varying(5) (SQLSTATE 22001)"),
        ({"word": "bad"}, 'violates check constraint "t_word_check"'),
        ({"number": None}, 'null value in column "number" of relation "t" violates not-null constraint'),
        ({"number": 2**40}, "integer out of range"),
        ({"word": f"{SECRET}\0"}, "PostgreSQL text fields cannot contain NUL"),
        ({"id": 7}, "a trigger or procedure raised an error in refuse, line 2 (UniqueViolation, SQLSTATE 23505)"),
        ({"id": 8}, "a trigger or procedure raised an error in refuse, line 3 (SyntaxError, SQLSTATE 42601)"),
        ({"id": 9}, "a trigger or procedure raised an error in refuse, line 4 (RaiseException, SQLSTATE P0001)"),
    ],
)
def test_postgresql_refuses_a_row(postgresql: Database, values: dict[str, object], words: str) -> None:
    assert words in refusal(postgresql, INSERT, **FINE | values)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT word::int FROM t", "invalid input syntax for type integer (SQLSTATE 22P02)"),
        ("SELECT word::json FROM t", "invalid input syntax for type json (SQLSTATE 22P02)"),
        ("SELECT word::mood FROM t", "invalid input value for enum mood (SQLSTATE 22P02)"),
        ("SELECT word::date FROM t", "invalid input syntax for type date (SQLSTATE 22007)"),
        ("SELECT to_timestamp(word, 'YYYY') FROM t", "InvalidDatetimeFormat, SQLSTATE 22007"),
        ("SELECT 'a' ~ (word || '(') FROM t", "InvalidRegularExpression, SQLSTATE 2201B"),
        ("SELECT 1 / 0", "division by zero"),
        ("SELECT nothing FROM t", 'column "nothing" does not exist'),
        ("SELECT 1 FROM none", 'relation "none" does not exist'),
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        (
            "DO $$ BEGIN RAISE EXCEPTION '%', (SELECT word FROM t); END $$",
            "raised an error in inline_code_block, line 1",
        ),
    ],
)
def test_postgresql_refuses_a_query(postgresql: Database, query: str, words: str) -> None:
    assert words in refusal(postgresql, query)


@pytest.mark.parametrize(
    ("query", "values", "words"),
    [
        (INSERT, {"id": 1}, "UNIQUE constraint failed: t.id"),
        (INSERT, {"word": SECRET}, "UNIQUE constraint failed: t.word"),
        (INSERT, {"small": SECRET}, "CHECK constraint failed: length(small) < 6"),
        (INSERT, {"number": None}, "NOT NULL constraint failed: t.number"),
        (INSERT, {"id": 9}, "a trigger "),
        ("SELECT json_extract('{}', word) FROM t", {}, "is not shown (SQLITE_ERROR)"),
        ("SELECT json(word) FROM t", {}, "malformed JSON"),
        ("SELECT word FROM odd", {}, "text that is no UTF-8"),
        ("SELECT absent FROM t", {}, "no such column: absent"),
        ("SELEC 1", {}, 'near "SELEC": syntax error'),
    ],
)
def test_sqlite_refuses(sqlite: Database, query: str, values: dict[str, object], words: str) -> None:
    given = FINE | values if query == INSERT else values
    found = refusal(sqlite, query, **given)
    assert words in found


def test_a_driver_that_is_used_alone_is_no_exception(postgresql: Database) -> None:
    def insert() -> None:
        with postgresql.transaction() as connection:
            driver = connection.connection.driver_connection
            assert driver is not None
            driver.cursor().execute("INSERT INTO t VALUES (2, '', %s, 1)", (SECRET,))

    with pytest.raises(Permanent, match="unique constraint") as caught:
        insert()
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_server_that_is_not_there_is_told_in_its_words(tmp_path: Path) -> None:
    with closing(Database(SqlConfig(type="sql", url=f"postgresql://me:{SECRET}@/db?host={tmp_path}"))) as database:
        with pytest.raises(Transient, match="No such file or directory") as caught, database.transaction():
            pass
        assert SECRET not in "".join(traceback.format_exception(caught.value))
