"""The record in a user's database, who may work there, SQL with and without a transaction, and questions (E1, E4; issue 8).

Nothing here goes through a job: the same promises of whole jobs are in tests/e2e and tests/faults.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from runner.documents import SqlConfig
from runner.errors import LeaseLost, Permanent
from runner.mapping import Expectation
from runner.plan import RECORD, Statement
from runner.relational import execute, queries, record, statements
from runner.relational.opened import RelationalDatabase
from runner.relational.record import Mine
from runner.relational.rehearsal import Rehearsal
from tests.e2e.relations import Relations

ME = Mine("job", "run-1", 3, keys={"main": "aa"})
BACK = Mine("job", "run-2", 9, of_run="run-1", keys={"main": "aa"})


@pytest.fixture(params=["sqlite", "postgresql"])
def relations(request: pytest.FixtureRequest, tmp_path: Path) -> Relations:
    if request.param == "sqlite":
        found = Relations(f"sqlite:///{tmp_path}/app.db")
    else:
        found = Relations(request.getfixturevalue("pg_database"))
    found.run("CREATE TABLE theirs (id INTEGER PRIMARY KEY, secret TEXT)")
    found.run("INSERT INTO theirs VALUES (1, 'sk-in-clear')")
    return found


@pytest.fixture
def database(relations: Relations) -> Iterator[RelationalDatabase]:
    with opened(relations) as one:
        yield one


def opened(relations: Relations) -> closing[RelationalDatabase]:
    return closing(RelationalDatabase(SqlConfig(type="sql", url=relations.url)))


def apply(database: RelationalDatabase, me: Mine, *steps: str, close: bool = True) -> None:
    for step in steps:
        with record.working(database, me) as connection:
            record.done(connection, me, step, f"digest of {step}")
            if close and step == steps[-1]:
                record.close(connection, me)


def statuses(database: RelationalDatabase) -> dict[str, str]:
    return {one.step: one.status for one in record.read(database, "job").entries}


# The record and its claim


def test_a_database_that_nobody_migrated_has_no_record(database: RelationalDatabase, relations: Relations) -> None:
    before = relations.dump()
    assert record.read(database, "job") == record.Record()
    assert relations.dump() == before


def test_what_is_recorded(database: RelationalDatabase) -> None:
    apply(database, ME, "one", "two", close=False)
    found = record.read(database, "job")
    assert {one.step: (one.digest, one.status, one.run) for one in found.entries} == {
        "one": ("digest of one", "done", "run-1"),
        "two": ("digest of two", "done", "run-1"),
    }
    assert found.claim == record.Claim("run-1", None, 3, True, {"main": "aa"})
    assert record.read(database, "another").others == (("job", "run-1"),)
    with record.working(database, ME) as connection:
        record.close(connection, ME)
    claim = record.read(database, "job").claim
    assert claim is not None
    assert not claim.open
    assert record.read(database, "another").others == ()


def test_a_rollback_leaves_the_old_database(database: RelationalDatabase, relations: Relations) -> None:
    before = relations.dump()
    apply(database, ME, "one", "two")
    assert relations.dump() != before
    for step in ("two", "one"):
        with record.working(database, BACK) as connection:
            assert record.entry(connection, BACK, step) is not None
            record.forget(connection, BACK, step)
    assert relations.dump() == before
    with record.working(database, BACK) as connection:  # a step that was never done
        assert record.entry(connection, BACK, "zero") is None
        record.close(connection, BACK)
    assert relations.dump() == before


def test_a_rollback_of_the_last_run_keeps_what_earlier_ones_did(database: RelationalDatabase) -> None:
    apply(database, ME, "one")
    second = replace(ME, run="run-5")
    apply(database, second, "two")
    back = replace(BACK, of_run="run-5")
    with record.working(database, back) as connection:
        record.forget(connection, back, "two")
        record.close(connection, back)
    assert statuses(database) == {"one": "done"}
    claim = record.read(database, "job").claim
    assert claim is not None
    assert not claim.open


def test_a_transaction_that_fails_records_nothing(database: RelationalDatabase, relations: Relations) -> None:
    before = relations.dump()
    with suppress(Permanent), record.working(database, ME) as connection:
        record.done(connection, ME, "one", "d")
        execute(connection, "INSERT INTO theirs VALUES (1, 'twice')")
    assert relations.dump() == before


@pytest.mark.parametrize(
    "other",
    [
        Mine("job", "run-7", 99),
        Mine("another", "run-7", 99),
        Mine("job", "run-7", 99, of_run="run-0"),
    ],
)
def test_another_run_does_not_get_in(other: Mine, database: RelationalDatabase, relations: Relations) -> None:
    apply(database, ME, "one", close=False)
    before = relations.dump()
    with pytest.raises(Permanent, match="run-1 of job job"), record.working(database, other):
        pytest.fail("it got in")
    with pytest.raises(LeaseLost if other.job == "job" else Permanent), record.working(database, other, batch=True):
        pytest.fail("it got in")
    assert relations.dump() == before


def test_after_the_last_change_another_run_does(database: RelationalDatabase) -> None:
    apply(database, ME, "one")
    apply(database, Mine("another", "run-7", 1), "first")
    apply(database, Mine("job", "run-8", 1), "two")
    assert statuses(database) == {"one": "done", "two": "done"}


def test_a_rollback_takes_over_and_so_does_the_next_try_of_it(database: RelationalDatabase) -> None:
    apply(database, ME, "one", "two", close=False)
    with record.working(database, BACK) as connection:
        record.forget(connection, BACK, "two")
    with record.working(database, replace(BACK, run="run-4", token=1)) as connection:
        assert record.entry(connection, BACK, "one") is not None
    with pytest.raises(Permanent, match="Another run"), record.working(database, ME):
        pytest.fail("the run that is rolled back went on")


@pytest.mark.parametrize("batch", [True, False])
def test_a_process_that_was_replaced_writes_nothing(batch: bool, database: RelationalDatabase) -> None:
    apply(database, ME, "one", close=False)
    with record.working(database, ME, batch=batch):
        pass
    with record.working(database, replace(ME, token=4), batch=True):  # whoever goes on with the run
        pass
    with pytest.raises(LeaseLost), record.working(database, ME, batch=batch):
        pytest.fail("it got in")


@pytest.mark.parametrize("end", ["closed", "rolled back"])
def test_a_batch_that_comes_late_writes_nothing(end: str, database: RelationalDatabase, relations: Relations) -> None:
    apply(database, ME, "one")
    if end == "rolled back":
        with record.working(database, BACK) as connection:
            record.forget(connection, BACK, "one")
    before = relations.dump()
    with pytest.raises(LeaseLost), record.working(database, ME, batch=True):
        pytest.fail("it got in")
    assert relations.dump() == before


def test_a_process_without_its_lease_claims_nothing(database: RelationalDatabase, relations: Relations) -> None:
    def gone() -> None:
        raise LeaseLost("This process lost its lock")

    before = relations.dump()
    with pytest.raises(LeaseLost), record.working(database, replace(ME, alive=gone)):
        pytest.fail("it got in")
    assert relations.dump() == before


def test_another_key_is_refused_before_anything_is_written(database: RelationalDatabase, relations: Relations) -> None:
    apply(database, ME, "one")
    before = relations.dump()
    other = Mine("job", "run-5", 5, keys={"main": "bb", "new": "cc"})
    with pytest.raises(Permanent, match=r"key main"), record.working(database, other):
        pytest.fail("it got in")
    assert relations.dump() == before
    apply(database, Mine("job", "run-5", 5, keys={"new": "cc"}), "two")
    claim = record.read(database, "job").claim
    assert claim is not None
    assert claim.keys == {"main": "aa", "new": "cc"}


def test_one_works_at_a_time_and_batches_together(database: RelationalDatabase, relations: Relations) -> None:
    apply(database, ME, "one", close=False)
    order: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def alone() -> None:
        with opened(relations) as other, record.working(other, ME):
            inside.set()
            leave.wait(20)
            order.append("alone")

    def batch(name: str) -> None:
        with opened(relations) as other, record.working(other, ME, batch=True):
            order.append(name)
            if not relations.sqlite:
                together.wait(20)  # both are inside at once

    together = threading.Barrier(2)
    threads = [threading.Thread(target=alone)]
    threads[0].start()
    assert inside.wait(20)
    threads += [threading.Thread(target=batch, args=(name,)) for name in ("a", "b")]
    for thread in threads[1:]:
        thread.start()
    threads[1].join(0.5)
    assert order == []
    leave.set()
    for thread in threads:
        thread.join(20)
    assert order[0] == "alone"
    assert sorted(order[1:]) == ["a", "b"]


def test_a_stamp_replaces_any_claim(database: RelationalDatabase) -> None:
    apply(database, ME, "one", close=False)
    stamping = Mine("job", "run-9", 1, keys={"main": "bb"})
    with record.working(database, stamping, replace=True) as connection:
        record.keep_only(connection, stamping, [])
        record.stamp(connection, stamping, "two", "d2")
        record.close(connection, stamping)
    found = record.read(database, "job")
    assert [(one.step, one.status) for one in found.entries] == [("two", "stamped")]
    assert found.claim == record.Claim("run-9", None, 1, False, {"main": "bb"})


# SQL


def test_statements_are_taken_as_they_stand(database: RelationalDatabase, relations: Relations) -> None:
    texts = [
        "INSERT INTO theirs VALUES (2, '100% of :this \\ {{ %s')",
        "UPDATE theirs SET secret = 'x' WHERE id % 2 = 1",
    ]
    with record.working(database, ME) as connection:
        statements.run_whole(database, connection, "one", [Statement(sql=text) for text in texts])
    assert relations.rows("SELECT id, secret FROM theirs") == [(1, "x"), (2, "100% of :this \\ {{ %s")]


def test_no_statement_ends_the_transaction(database: RelationalDatabase, relations: Relations) -> None:
    before = relations.dump()
    for text in ("INSERT INTO theirs VALUES (2, 'x'); COMMIT; SELECT 1", "COMMIT", "/* a */ -- b\n commit", "end;"):
        with pytest.raises(Permanent), record.working(database, ME) as connection:
            statements.run_whole(
                database, connection, "one", [Statement(sql="DELETE FROM theirs"), Statement(sql=text)]
            )
        assert relations.dump() == before, text


def test_a_session_is_left_as_it_was(pg_database: str) -> None:
    relations = Relations(pg_database)
    relations.run("CREATE SCHEMA elsewhere")
    with opened(relations) as database:
        with record.working(database, ME) as connection:
            record.begin(connection, ME, "one", "d")
            statements.run_whole(database, connection, "one", [Statement(sql="SET search_path = elsewhere")])
            record.done(connection, ME, "one", "d")
        with database.reading() as connection:
            assert "public" in str(execute(connection, "SHOW search_path").scalar_one())
        assert statuses(database) == {"one": "done"}


def test_statements_that_break_a_foreign_key_are_undone(database: RelationalDatabase, relations: Relations) -> None:
    relations.run(
        "CREATE TABLE of_theirs (id INTEGER PRIMARY KEY, theirs INTEGER REFERENCES theirs (id) ON DELETE CASCADE)"
    )
    relations.run("INSERT INTO of_theirs VALUES (1, 1)")
    before = relations.dump()
    with pytest.raises(Permanent), record.working(database, ME, foreign_keys=False) as connection:
        statements.run_whole(database, connection, "one", [Statement(sql="INSERT INTO of_theirs VALUES (2, 99)")])
    assert relations.dump() == before


def test_a_table_that_is_made_anew_keeps_the_rows_of_others(tmp_path: Path) -> None:
    """How a table of SQLite is changed: with foreign keys on, dropping the old one would take the rows that reference it."""
    relations = Relations(f"sqlite:///{tmp_path}/app.db")
    relations.run("CREATE TABLE theirs (id INTEGER PRIMARY KEY, secret TEXT)")
    relations.run(
        "CREATE TABLE of_theirs (id INTEGER PRIMARY KEY, one INTEGER REFERENCES theirs (id) ON DELETE CASCADE)"
    )
    relations.run("INSERT INTO theirs VALUES (1, 'x')")
    relations.run("INSERT INTO of_theirs VALUES (1, 1)")
    texts = [
        "CREATE TABLE other (id INTEGER PRIMARY KEY, secret TEXT NOT NULL)",
        "INSERT INTO other SELECT * FROM theirs",
        "DROP TABLE theirs",
        "ALTER TABLE other RENAME TO theirs",
    ]
    with opened(relations) as database, record.working(database, ME, foreign_keys=False) as connection:
        statements.run_whole(database, connection, "one", [Statement(sql=text) for text in texts])
    assert relations.rows("SELECT * FROM of_theirs") == [(1, 1)]


def test_errors_name_no_values(database: RelationalDatabase, relations: Relations) -> None:
    text = "SELECT abs('sk-' || secret)" if relations.sqlite else "UPDATE theirs SET id = secret::int"
    with pytest.raises(Permanent, match="step one, statement 1") as caught, record.working(database, ME) as connection:
        statements.run_whole(database, connection, "one", [Statement(sql=text)])
    assert "in-clear" not in f"{caught.value} {caught.value.hint}"
    duplicate = [Statement(sql="INSERT INTO theirs SELECT id, secret FROM theirs")]
    with pytest.raises(Permanent) as caught, record.working(database, ME) as connection:
        statements.run_whole(database, connection, "one", duplicate)
    assert "in-clear" not in f"{caught.value} {caught.value.hint}"


def alone(database: RelationalDatabase, *some: Statement, back: bool = False, say: list[str] | None = None) -> int:
    told = say if say is not None else []
    return statements.run_alone(database, ME, "one", "d", some, told.append, back=back)


def test_what_cannot_be_in_a_transaction(database: RelationalDatabase, relations: Relations) -> None:
    index = "CREATE INDEX by_secret ON theirs (secret)"
    if not relations.sqlite:
        index = index.replace("INDEX", "INDEX CONCURRENTLY")
    assert alone(database, Statement(sql="VACUUM", repeat=True), Statement(sql=index, repeat=True)) == 2
    assert "by_secret" in relations.indexes()
    found = record.read(database, "job").entries[0]
    assert (found.status, found.statement) == ("begun", 2)


def test_a_statement_at_which_a_process_died(database: RelationalDatabase, relations: Relations) -> None:
    """The second of three: a statement that is told apart by a query, that is repeated, or of which nobody knows."""
    add = "INSERT INTO theirs VALUES ({0}, 'x')"
    done = "SELECT count(*) > 0 FROM theirs WHERE id = {0}"
    all_three = [Statement(sql=add.format(number), done=done.format(number)) for number in (10, 11, 12)]
    with record.working(database, ME) as connection:
        record.mark(connection, ME, "one", "d", "begun", 2)
    relations.run("INSERT INTO theirs VALUES (11, 'x')")  # it had happened
    assert alone(database, *all_three) == 1
    assert [number for (number,) in relations.rows("SELECT id FROM theirs")] == [1, 11, 12]
    with record.working(database, ME) as connection:
        record.mark(connection, ME, "one", "d", "begun", 1)
    relations.run("DELETE FROM theirs WHERE id = 12")
    with pytest.raises(Permanent, match="cannot be told"):
        alone(database, Statement(sql="DELETE FROM theirs"))
    again = Statement(sql="UPDATE theirs SET secret = 'again' WHERE id = 11", repeat=True)
    assert alone(database, again, all_three[2]) == 2
    assert relations.rows("SELECT id, secret FROM theirs WHERE id > 10") == [(11, "again"), (12, "x")]


def test_the_way_back_of_a_step_that_was_half_done(database: RelationalDatabase, relations: Relations) -> None:
    with record.working(database, ME) as connection:
        record.mark(connection, ME, "one", "d", "begun", 1)
    gone = "SELECT count(*) = 0 FROM theirs WHERE id = {0}"
    back = [Statement(sql=f"INSERT INTO theirs VALUES (1, '{n}')", done=gone.format(n)) for n in (2,)]
    assert alone(database, *back, back=True) == 0  # there is nothing to undo


def test_a_rehearsal_leaves_out_what_commits_by_itself(relations: Relations) -> None:
    before, told = relations.dump(), list[str]()
    with closing(Rehearsal(SqlConfig(type="sql", url=relations.url))) as rehearsal:
        assert alone(rehearsal, Statement(sql="VACUUM", repeat=True), say=told) == 0
        assert statuses(rehearsal) == {"one": "begun"}
        with record.working(rehearsal, ME) as connection:
            statements.run_whole(rehearsal, connection, "one", [Statement(sql="DELETE FROM theirs")])
        with suppress(Permanent), record.working(rehearsal, ME) as connection:
            statements.run_whole(
                rehearsal, connection, "one", [Statement(sql="INSERT INTO theirs VALUES (5, 'x'); COMMIT")]
            )
    assert len(told) == 1
    assert "VACUUM" in told[0]
    assert relations.dump() == before


# Questions


ANSWERS: list[tuple[str, bool | float | str | None, str]] = [
    ("SELECT count(*) FROM theirs", 1, ""),
    ("SELECT count(*) FROM theirs", 0, "1 instead of 0"),
    ("SELECT count(*) > 0 FROM theirs", True, ""),
    ("SELECT secret FROM theirs", "sk-in-clear", ""),
    ("SELECT secret FROM theirs", "else", "another text instead of another text"),
    ("SELECT NULL", None, ""),
    ("SELECT NULL", 0, "NULL instead of 0"),
    ("SELECT id FROM theirs WHERE id > 5", 0, "no row"),
    ("SELECT 1 UNION SELECT 2", 1, "more than one row"),
    ("SELECT 1, 2", 1, "2 columns"),
    ("SELECT 1.5", 1.5, ""),
]


def test_an_answer_is_the_one_that_is_wanted(database: RelationalDatabase) -> None:
    for query, expect, told in ANSWERS:
        found = queries.ask(database, [Expectation(name="asked", query=query, expect=expect)])
        assert len(found) == bool(told), query
        assert all(text.startswith("asked: ") and told in text for text in found), (query, found)


def test_two_queries_have_one_answer(database: RelationalDatabase) -> None:
    same = Expectation(name="same", query="SELECT count(*) FROM theirs", same_as="SELECT max(id) FROM theirs")
    other = Expectation(name="other", query="SELECT count(*) FROM theirs", same_as="SELECT 2")
    assert queries.ask(database, [same, other]) == ["other: 1 instead of 2"]


def test_a_query_can_only_read(database: RelationalDatabase, relations: Relations) -> None:
    before = relations.dump()
    returning = "DELETE FROM theirs RETURNING 0"
    for query in ("DELETE FROM theirs", returning, "SELECT nothing FROM theirs", "SELECT 0; SELECT 0"):
        with pytest.raises(Permanent, match="asked"):
            queries.ask(database, [Expectation(name="asked", query=query)])
        assert relations.dump() == before, query


def test_the_record_has_a_name_of_its_own(database: RelationalDatabase, relations: Relations) -> None:
    apply(database, ME, "one")
    assert relations.tables() == {"theirs", RECORD}
