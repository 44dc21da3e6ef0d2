"""Tables that are odd: what the versions of rows do not tell, constraints that rows break, sequences, names, texts; and that no
error has the values of rows (D1, D2, D5)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from runner import crash
from runner.documents import copying, truncating
from runner.documents import postgres as connections
from runner.documents.postgres import Postgres
from runner.errors import Permanent, Transient, VecrunError
from tests import servers
from tests.e2e.training import SETTINGS, Training, ok, refused
from tests.e2e.workspace import Workspace


class Odd(Training):
    """A workspace with jobs over any table."""

    def job(self, *names: str, truncate: bool = True, job: str = "out") -> None:  # type: ignore[override]
        """A backup of these tables, which are emptied."""
        listed = json.dumps(names)
        more = f", truncate: {listed}" if truncate else ""
        self._write(
            job,
            "VectorBackup",
            f"  tables: {{connection: app-db, names: {listed}{more}}}\n  to: {{connection: backups}}\n",
        )

    def back(self, names: Any, more: str = "", job: str = "in") -> None:
        """A restore of the newest of these backups."""
        tables = f"{{connection: app-db, names: {json.dumps(names)}{more}}}"
        self._write(
            job, "VectorRestore", f"  from: {{connection: backups, folder: out/vector_bak}}\n  tables: {tables}\n"
        )

    def _write(self, job: str, kind: str, spec: str) -> None:
        text = f"apiVersion: vecrun/v1\nkind: {kind}\nmetadata: {{name: {job}}}\nspec:\n{spec}"
        self.ws.write(f"jobs/{job}.yaml", text)

    def texts(self, table: str) -> list[str]:
        """All rows as text."""
        return [str(row) for row in self.rows(table)]

    def value(self, query: str) -> Any:
        """The first value of a query."""
        with psycopg.connect(self.url) as db:
            row = db.execute(query).fetchone()
            assert row is not None
            return row[0]


@pytest.fixture
def odd(tmp_path: Path, pg_database: str, monkeypatch: pytest.MonkeyPatch) -> Odd:
    """Without tables yet."""
    ws = Workspace.create(tmp_path / "ws", SETTINGS)
    monkeypatch.chdir(ws.root)
    monkeypatch.setenv("VECRUN_TEST_APP", pg_database)
    ws.job.unlink()
    (ws.root / "backups").mkdir()
    return Odd(ws, pg_database)


def apply(job: str = "out") -> str:
    """Apply a job; all that was said."""
    return refused(0, "apply", f"jobs/{job}.yaml", "--auto-approve")


def away_and_back(odd: Odd, *tables: str) -> None:
    """Backed up and emptied, then filled again by the rollback: exactly the same rows."""
    before = [odd.texts(table) for table in tables]
    odd.job(*tables)
    apply()
    assert [odd.texts(table) for table in tables] == [[] for _table in tables]
    ok("rollback", "out", "--auto-approve")
    assert [odd.texts(table) for table in tables] == before


# What the versions of rows do not tell ------------------------------------------------------------------------------


def test_a_column_that_was_dropped_and_added_again(odd: Odd, monkeypatch: pytest.MonkeyPatch) -> None:
    """No row was written to, but what they hold is another thing."""
    odd.sql("CREATE TABLE t (id int, meta jsonb)", "INSERT INTO t VALUES (1, '{}'), (2, '{}')")
    odd.job("t")
    point = crash.point

    def meanwhile(step: str, place: str) -> None:
        if place == "manifest":
            odd.sql("ALTER TABLE t DROP COLUMN meta", "ALTER TABLE t ADD COLUMN meta jsonb DEFAULT '{\"new\": 1}'")
            odd.sql("ALTER TABLE t ALTER COLUMN meta DROP DEFAULT")
        point(step, place)

    monkeypatch.setattr(crash, "point", meanwhile)
    assert "its columns or constraints are others" in refused(1, "apply", "jobs/out.yaml", "--auto-approve")
    assert odd.texts("t") == ['(1,"{""new"": 1}")', '(2,"{""new"": 1}")']
    monkeypatch.undo()
    monkeypatch.chdir(odd.ws.root)
    monkeypatch.setenv("VECRUN_TEST_APP", odd.url)
    odd.job("t", truncate=False, job="kept")
    apply("kept")
    assert "no row has changed" in ok("plan", "jobs/kept.yaml")
    odd.sql("ALTER TABLE t DROP COLUMN meta", "ALTER TABLE t ADD COLUMN meta jsonb")
    assert "2 rows to back up" in ok("plan", "jobs/kept.yaml")


def test_other_content_in_the_same_versions_of_rows(odd: Odd) -> None:
    """As after the storage of the database was put back: here the label of an enum changes, and no row."""
    odd.sql("CREATE TYPE mood AS ENUM ('top secret', 'b')", "CREATE TABLE t (id int, m mood)")
    odd.sql("INSERT INTO t VALUES (1, 'top secret')")
    odd.job("t", truncate=False)
    apply()
    odd.sql("ALTER TYPE mood RENAME VALUE 'top secret' TO 'other'")
    assert "1 row to back up" in ok("plan", "jobs/out.yaml").replace("1 rows", "1 row")
    odd.sql("TRUNCATE t")
    odd.back(["t"])
    said = refused(1, "apply", "jobs/in.yaml", "--auto-approve")
    assert "top secret" not in said
    assert "invalid input value for enum mood: …" in said


def test_a_server_that_does_not_know_what_became_of_the_transaction(odd: Odd, monkeypatch: pytest.MonkeyPatch) -> None:
    """It forgets in time: then the tables themselves tell, and what was emptied is filled."""
    odd.sql("CREATE TABLE t (id int)", "INSERT INTO t VALUES (1), (2)")
    odd.job("t")
    point = crash.point

    def dies(step: str, place: str) -> None:
        if (step, place) == ("truncate_tables", "committed"):
            raise VecrunError("The process died")
        point(step, place)

    with monkeypatch.context() as patched:
        patched.setattr(crash, "point", dies)
        refused(1, "apply", "jobs/out.yaml", "--auto-approve")
    assert odd.texts("t") == []
    with monkeypatch.context() as patched:
        patched.setattr(truncating, "outcome", lambda _postgres, _transaction: "")
        ok("rollback", "out", "--auto-approve")
    assert odd.texts("t") == ["(1)", "(2)"]


def test_a_client_that_stops_loses_its_locks(pg_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    servers.sql(pg_database, "CREATE TABLE t (id int)")
    assert Postgres(pg_database).describe("t") is not None
    monkeypatch.setitem(connections._SETTINGS, "idle_in_transaction_session_timeout", "100ms")

    def stops() -> None:
        with Postgres(pg_database).connect() as stopped, stopped.transaction():
            stopped.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
            servers.sql(pg_database, "SET lock_timeout = '20s'", "INSERT INTO t VALUES (1)")
            stopped.execute("SELECT 1")

    with pytest.raises(Transient):
        stops()
    # while rows stream, and while a snapshot is held, it may take as long as it takes
    with copying.snapshot(Postgres(pg_database), ["t"]) as shared:
        (source,) = shared.sources
        assert source.shape is not None
        with (
            Postgres(pg_database).connect() as slow,
            slow.transaction(),
            slow.cursor() as cursor,
            cursor.copy("COPY t FROM STDIN") as copy,
        ):
            copy.write(b"2\n")
            time.sleep(0.3)
            copy.write(b"3\n")
        with copying.reader(Postgres(pg_database), shared, source.shape) as connection:
            time.sleep(0.3)
            assert copying.tally(connection, source.shape, source.shape.sql).rows == 1


# Sequences ----------------------------------------------------------------------------------------------------------


def test_a_sequence_counts_for_what_is_no_integer(odd: Odd) -> None:
    odd.sql("CREATE SEQUENCE one", "CREATE SEQUENCE two")
    odd.sql("CREATE TABLE t (id varchar DEFAULT nextval('one') PRIMARY KEY, n numeric DEFAULT nextval('two'), x int)")
    odd.sql("INSERT INTO t (x) VALUES (1), (2)", "INSERT INTO t VALUES ('a', 7.5, 3), ('5', 9, 4)")
    away_and_back(odd, "t")
    odd.sql("INSERT INTO t (x) VALUES (5)")
    assert "(6,10,5)" in odd.texts("t")


def test_a_login_that_may_not_set_the_sequence(odd: Odd, monkeypatch: pytest.MonkeyPatch) -> None:
    odd.sql("DROP ROLE IF EXISTS odd_low", "CREATE ROLE odd_low LOGIN")
    try:
        odd.sql("CREATE TABLE t (id serial PRIMARY KEY, x int)", "INSERT INTO t (x) VALUES (1), (2)")
        odd.sql("GRANT SELECT, INSERT, TRUNCATE ON t TO odd_low", "GRANT CREATE, USAGE ON SCHEMA public TO odd_low")
        odd.sql("ALTER TABLE t ADD CHECK (x < 2) NOT VALID")
        monkeypatch.setenv("VECRUN_TEST_APP", odd.url.replace("postgres:@", "odd_low:@"))
        odd.job("t")
        said = ok("plan", "jobs/out.yaml")
        assert "! VX227" in said
        assert "connect as the owner" in said
        odd.sql("ALTER TABLE t DROP CONSTRAINT t_x_check", "CREATE TABLE up (id int PRIMARY KEY)")
        odd.sql(
            "ALTER TABLE t OWNER TO odd_low", "ALTER TABLE t ADD CONSTRAINT k FOREIGN KEY (x) REFERENCES up NOT VALID"
        )
        assert "VX227 app-db/t: a rollback could not fill it again: k is NOT VALID" in ok("plan", "jobs/out.yaml")
        odd.sql("ALTER TABLE t DROP CONSTRAINT k", "ALTER TABLE t OWNER TO postgres")
        odd.sql("REVOKE ALL ON SEQUENCE t_id_seq FROM odd_low", "GRANT SELECT, INSERT, TRUNCATE ON t TO odd_low")
        said = ok("plan", "jobs/out.yaml")
        assert "VI135" in said
        assert "may not set public.t_id_seq" in said
        away_and_back(odd, "t")
    finally:
        odd.sql("DROP OWNED BY odd_low", "DROP ROLE odd_low")


# Constraints and triggers -------------------------------------------------------------------------------------------


def test_rows_that_break_a_constraint_which_is_not_valid_come_back(odd: Odd) -> None:
    odd.sql("CREATE TABLE up (id int PRIMARY KEY)", "CREATE TABLE t (id int PRIMARY KEY, x int, up int)")
    odd.sql("INSERT INTO t VALUES (1, -5, 7)", "ALTER TABLE t ADD CONSTRAINT above CHECK (x > 0) NOT VALID")
    odd.sql("ALTER TABLE t ADD CONSTRAINT known FOREIGN KEY (up) REFERENCES up NOT VALID")
    odd.sql("COMMENT ON CONSTRAINT above ON t IS 'it''s mine'")
    away_and_back(odd, "t")
    definitions = "SELECT string_agg(pg_get_constraintdef(oid), '; ' ORDER BY conname) FROM pg_constraint WHERE contype IN ('c', 'f') AND conrelid = 't'::regclass"
    assert odd.value(definitions) == "CHECK ((x > 0)) NOT VALID; FOREIGN KEY (up) REFERENCES up(id) NOT VALID"
    assert odd.value("SELECT obj_description(oid) FROM pg_constraint WHERE conname = 'above'") == "it's mine"
    with pytest.raises(psycopg.errors.CheckViolation):
        odd.sql("INSERT INTO t VALUES (2, -1, NULL)")
    # the same for a restore over rows that are there, and its rollback
    odd.back(["t"], ", if_not_empty: replace")
    apply("in")
    ok("rollback", "in", "--auto-approve")
    assert odd.texts("t") == ["(1,-5,7)"]


def test_what_a_plan_says_of_tables_that_are_emptied(odd: Odd) -> None:
    """A circle of foreign keys, one table under two names, and triggers."""
    odd.sql("CREATE TABLE a (id int PRIMARY KEY, b int)", "CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a)")
    odd.sql("ALTER TABLE a ADD CONSTRAINT back FOREIGN KEY (b) REFERENCES b", "INSERT INTO a VALUES (1, NULL)")
    odd.job("a", "b")
    said = refused(1, "apply", "jobs/out.yaml", "--auto-approve")
    assert said.count("VX227") >= 2
    assert odd.texts("a") == ["(1,)"]
    assert "a circle of public.a, public.b" in said
    odd.sql("ALTER TABLE a ALTER CONSTRAINT back DEFERRABLE")
    odd.sql(
        "CREATE FUNCTION same() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$",
        "CREATE TRIGGER stamp BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION same()",
        "CREATE TRIGGER other BEFORE UPDATE ON b FOR EACH ROW EXECUTE FUNCTION same()",
    )
    said = ok("plan", "jobs/out.yaml")
    assert "VB113" in said
    assert "stamp" in said
    assert "other" not in said
    away_and_back(odd, "a", "b")
    odd.sql(
        "CREATE DOMAIN small AS int", "CREATE TABLE d (x small, p int) PARTITION BY LIST (p)",
        "CREATE TABLE d1 PARTITION OF d DEFAULT", "INSERT INTO d VALUES (99, 1)",
        "ALTER DOMAIN small ADD CONSTRAINT below CHECK (VALUE < 9) NOT VALID",
        "ALTER TABLE d1 ADD CONSTRAINT over CHECK (p > 1) NOT VALID",
    )  # fmt: skip
    odd.job("d")
    assert "below, over (of a domain, or of a partition alone) is NOT VALID" in ok("plan", "jobs/out.yaml")
    odd.job("a", "public.a", truncate=False)
    assert "! VX228" in ok("plan", "jobs/out.yaml")


def test_merging_an_identity_that_is_no_key(odd: Odd) -> None:
    odd.sql("CREATE TABLE t (id text PRIMARY KEY, n bigint GENERATED ALWAYS AS IDENTITY, x text)")
    odd.sql("INSERT INTO t (id, x) VALUES ('a', '1'), ('b', '2')")
    odd.job("t", truncate=False)
    apply()
    odd.sql("UPDATE t SET x = '9'", "INSERT INTO t (id, x) VALUES ('c', '3')", "DELETE FROM t WHERE id = 'b'")
    odd.back(["t"], ", if_not_empty: merge")
    apply("in")
    assert odd.texts("t") == ["(a,1,1)", "(b,2,2)", "(c,3,3)"]
    ok("rollback", "in", "--auto-approve")
    assert odd.texts("t") == ["(a,1,9)", "(c,3,3)"]
    odd.sql("DELETE FROM t", "INSERT INTO t (id, x) VALUES ('a', '9')")
    odd.back(["t"], ", if_not_empty: merge", job="other")
    said = refused(13, "apply", "jobs/other.yaml", "--auto-approve")
    assert "leaves an identity column that is no part of the key as it is" in said
    assert odd.texts("t") == ["(a,4,9)"]


# Making, names, texts -----------------------------------------------------------------------------------------------


def test_tables_that_are_made_are_as_they_were(odd: Odd) -> None:
    odd.sql(
        "CREATE SEQUENCE s",
        "CREATE TABLE t (id varchar PRIMARY KEY DEFAULT nextval('s'), code text COLLATE \"C\" UNIQUE, "
        "k bigint GENERATED ALWAYS AS IDENTITY (START 1000 INCREMENT 5), n int DEFAULT nextval('s') * 10)",
        "INSERT INTO t (code) VALUES ('a'), ('B')",
        "CREATE TABLE p (id int, k text) PARTITION BY LIST (k)", "CREATE TABLE p_a PARTITION OF p DEFAULT",
        "INSERT INTO p VALUES (1, 'a')", "CREATE UNLOGGED TABLE u (a int)", "INSERT INTO u VALUES (1)",
    )  # fmt: skip
    odd.job("t", "p", "u", truncate=False)
    apply()
    odd.back([{"from": name, "to": f"{name}2"} for name in "tpu"], ", create: true")
    said = ok("plan", "jobs/in.yaml")
    assert said.count("VI143") >= 3
    assert "not partitioned" in said
    assert "as a logged table" in said
    apply("in")
    assert [odd.texts(f"{name}2") for name in "tpu"] == [odd.texts(name) for name in "tpu"]
    odd.sql("INSERT INTO t2 (code) VALUES ('b')")
    assert odd.value("SELECT k FROM t2 WHERE code = 'b'") == 1010
    assert odd.value("SELECT string_agg(code, '' ORDER BY code) FROM t2") == "Bab"
    assert odd.value("SELECT n % 10 FROM t2 WHERE code = 'b'") == 0
    odd.sql("DROP TABLE t, t2", "DROP SEQUENCE s")
    odd.back(["t"], ", create: true", job="again")
    assert "public.t.n is made without its default" in apply("again")
    odd.sql("INSERT INTO t (code) VALUES ('c')")  # its own sequence goes on
    assert odd.value("SELECT id FROM t WHERE code = 'c'") == "4"


def test_names(odd: Odd) -> None:
    postgres = Postgres(odd.url, "mine")
    for asked, found in (
        ("t", ("mine", "t")), ("s.t", ("s", "t")), ('"a.b"', ("mine", "a.b")), ('s."a.b"', ("s", "a.b")),
        ('"s.1".t', ("s.1", "t")), ('"s.1"."a""b"', ("s.1", 'a"b')), ('Odd "name", é', ("mine", 'Odd "name", é')),
    ):  # fmt: skip
        assert postgres.split(asked) == found
    with pytest.raises(Permanent, match="too long"):
        postgres.split("é" * 32)
    odd.sql('CREATE TABLE "a.b" (x int)', 'INSERT INTO "a.b" VALUES (1)')
    away_and_back(odd, '"a.b"')
    odd.back([{"from": '"a.b"', "to": "y" * 70}], ", create: true")
    assert "too long for PostgreSQL" in refused(1, "plan", "jobs/in.yaml")


def test_text_that_is_no_utf8_is_refused_before_anything_is_emptied(odd: Odd, monkeypatch: pytest.MonkeyPatch) -> None:
    name = odd.value("SELECT current_database()") + "_ascii"
    create = f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    servers.sql(odd.url, create)
    try:
        url = servers.database(odd.url, name)
        monkeypatch.setenv("VECRUN_TEST_APP", url)
        there = Odd(odd.ws, url)
        there.sql("CREATE TABLE t (id int, x text)", "INSERT INTO t VALUES (1, E'caf\\xc3\\xa9')")
        there.job("t")
        away_and_back(there, "t")
        there.sql("CREATE TABLE w (id int, x text)", "INSERT INTO w VALUES (1, 'fine'), (2, E'caf\\xe9')")
        there.job("w", job="bad")
        said = ok("plan", "jobs/bad.yaml")
        assert "VX229 app-db/w" in said
        assert "text that is no UTF-8" in said
        there.sql("DELETE FROM w")
        ok("plan", "jobs/bad.yaml", "-o", "plan.json")
        there.sql("INSERT INTO w VALUES (1, 'fine'), (2, E'caf\\xe9')")
        said = refused(1, "apply", "plan.json", "--auto-approve")
        assert "There is text that is no UTF-8" in said
        assert "caf" not in said
        assert there.value("SELECT count(*) FROM w") == 2
    finally:
        servers.sql(odd.url, f"DROP DATABASE {name} WITH (FORCE)")
