"""Migrations inside of a relational database that are refused, or undone, over what somebody else did meanwhile (E1, E2, E4)."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner import commands
from tests.e2e.migrating import ACCOUNTS, COPY, ENCRYPT, KEY, KEYS, LABEL, TABLES, Migration
from tests.e2e.relations import Relations
from tests.e2e.test_sql_migration import messages


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def ws(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Migration:
    monkeypatch.setenv("MIGRATION_KEY", KEY)
    url = f"sqlite:///{tmp_path / 'app.db'}" if request.param == "sqlite" else request.getfixturevalue("pg_database")
    made = Migration.begin(tmp_path / "ws", Relations(url))
    made.fill()
    return made


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("UPDATE people_backup SET settings = 'theirs' WHERE id = 3", "people_backup: rows were changed since the run, and"),
        ("DELETE FROM people_backup WHERE id = 3", "people_backup: rows were changed since the run: it had 12 rows then"),
        ("UPDATE accounts SET login = 'theirs' WHERE login = 'login1'", "accounts: rows were changed since the run, and"),
    ],
)  # fmt: skip
def test_changed_rows_of_tables_that_go_are_seen(ws: Migration, sql: str, words: str) -> None:
    ws.steps(TABLES, COPY, ACCOUNTS, otherwise="skip", accept="VI155")
    ws.apply()
    assert not ws.back().blocked
    ws.relations.run(sql)
    assert ws.codes(ws.back(), blocking=True) == {"VD109"}
    assert words in messages(ws.back(), "VD109")
    before = ws.relations.dump()
    assert ws.vecrun("rollback", "move", "--auto-approve").exit_code == 1
    assert ws.relations.dump() == before
    assert not commands.plan_rollback(ws.context(), "move", discard_new_points=True).blocked


def test_a_stamp_forgets_nothing_that_a_run_has_done(ws: Migration) -> None:
    before = ws.relations.dump()
    ws.steps(TABLES, COPY)
    ws.apply()
    found = ws.vecrun("stamp", ws.job, "--through", "tables", "--auto-approve")
    assert found.exit_code == 1
    assert "copy" in messages(commands.plan_stamp(ws.context(), ws.job, through="tables"), "VX265")
    assert ws.record() == {"": "closed", "tables": "done", "copy": "done"}
    ws.relations.run("UPDATE vecrun_migrations SET status = 'stamped' WHERE step = 'copy'")
    assert "forgotten" in messages(commands.plan_stamp(ws.context(), ws.job, through="tables"), "VI171")
    ws.relations.run("UPDATE vecrun_migrations SET status = 'done' WHERE step = 'copy'")
    ws.roll_back()
    assert ws.relations.dump() == before


def test_what_another_workspace_added_is_not_taken_away_below_it(ws: Migration, tmp_path: Path) -> None:
    before = ws.relations.dump()
    ws.steps(TABLES, COPY)
    ws.apply()
    other = Migration.begin(tmp_path / "other", ws.relations)
    other.steps(TABLES, COPY, LABEL)
    run = other.apply().run
    assert ws.codes(ws.back(), blocking=True) == {"VX266"}
    assert f"label: it was done by run {run}" in messages(ws.back(), "VX266")
    other.roll_back()
    ws.roll_back()
    assert ws.relations.dump() == before


def test_a_job_under_the_steps_of_another_stays(ws: Migration) -> None:
    ws.steps(TABLES, COPY)
    ws.apply()
    job = ws.job.read_text().split("  steps:")[0].replace("name: move", "name: later")
    encrypt = "    - name: hide\n      encrypt: {table: people_backup, columns: [settings], key: main}\n"
    keys = '  keys: {main: {secret: "${env:MIGRATION_KEY}"}}\n'
    path = ws.write("jobs/later.yaml", f"{job}{keys}  steps:\n{encrypt}")
    commands.apply(ws.context(), commands.plan(ws.context(), path))
    assert ws.codes(ws.back(), blocking=True) == {"VD103", "VD109"}
    assert "job later has steps on it since" in messages(ws.back(), "VD103")
    commands.apply(ws.context(), commands.plan_rollback(ws.context(), "later"))
    ws.roll_back()
    assert ws.relations.tables() == {"people"}


def test_an_apply_that_changed_nothing_is_over(ws: Migration) -> None:
    before = ws.relations.dump()
    broken = LABEL.replace("UPDATE people SET name = name", "UPDATE people SET nam = name")
    ws.steps(broken)
    found = ws.vecrun("apply", ws.job, "--auto-approve")
    assert found.exit_code == 1, found.output
    assert "Nothing was changed" in found.output
    assert "vecrun resume" not in found.output
    assert ws.relations.dump() == before
    ws.steps(LABEL)
    assert ws.vecrun("apply", ws.job, "--auto-approve").exit_code == 0
    ws.steps(LABEL, TABLES, broken.replace("name: label", "name: more"))
    found = ws.vecrun("apply", ws.job, "--auto-approve")
    assert found.exit_code == 1
    assert "after a change of the file, vecrun rollback move" in found.output
    assert ws.record()["tables"] == "done"
    assert ws.vecrun("rollback", "move", "--auto-approve").exit_code == 0
    ws.relations.run("ALTER TABLE people RENAME COLUMN name TO nam")
    found = ws.vecrun("rollback", "move", "--auto-approve")
    assert found.exit_code == 1
    assert "vecrun rollback" not in found.output


def test_a_way_back_with_another_key_or_without_its_table_is_refused(
    ws: Migration, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws.steps(ENCRYPT)
    ws.apply()
    monkeypatch.setenv("MIGRATION_KEY", KEY[::-1])
    assert ws.codes(ws.back(), blocking=True) == {"VX246"}
    monkeypatch.setenv("MIGRATION_KEY", KEY)
    assert not ws.back().blocked
    ws.relations.run("ALTER TABLE people RENAME TO persons")
    assert ws.codes(ws.back(), blocking=True) == {"VX250"}
    assert "app/people: the table is gone" in messages(ws.back(), "VX250")


def test_what_is_misspelt_is_told(ws: Migration) -> None:
    ws.steps(COPY.replace("table: people,", "table: peple,"))
    plan = ws.plan()
    assert "copy: table peple is missing. did you mean people?" in messages(plan, "VX270")
    assert "only checks" not in plan.dumps()
    ws.steps(COPY.replace("[settings]", "[setings]"))
    said = messages(ws.plan(), "VX270")
    assert "people has no column setings. did you mean settings?; it has id, name, settings" in said
    assert "stamp" not in said


def test_values_are_looked_at_before_they_are_encrypted(ws: Migration) -> None:
    keys = '  keys: {main: {secret: "${env:MIGRATION_KEY}"}, new: {secret: "${env:NEW_KEY}", algorithm: fernet}}\n'
    ws.steps(ENCRYPT)
    assert "12 in clear → encrypted" in ws.plan().dumps()
    ws.apply()
    again = ENCRYPT.replace("name: encrypt", "name: again")
    ws.steps(ENCRYPT, again)
    assert "12 encrypted with main already" in messages(ws.plan(), "VI172")
    ws.steps(ENCRYPT, again.replace("encrypt: {table", "rotate: {table").replace("key: main}", "from: main, to: new}"))
    ws.write("jobs/move.yaml", ws.job.read_text().replace(KEYS, keys))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEW_KEY", KEY[::-1])
        assert "12 with the old key → encrypted with new" in ws.plan().dumps()
        ws.relations.run("UPDATE people SET name = 'in clear' WHERE id = 7")
        assert "neither main nor new opens: key 7" in messages(ws.plan(), "VX268")


def test_rows_with_one_key_and_different_values_are_told(ws: Migration) -> None:
    one = ACCOUNTS.replace("{uuid_from: [all.login, all.secret], key: main}", "{uuid_from: ['all']}")
    ws.steps(TABLES, one.replace("login: all.login", "login: row.name"), otherwise="skip")
    assert "4 rows of accounts would be made with one key and different values" in messages(ws.plan(), "VX271")


def test_columns_with_odd_names_and_without_types_are_backed_up(ws: Migration) -> None:
    before = ws.relations.rows("SELECT id, name FROM people")
    ws.relations.run('ALTER TABLE people RENAME COLUMN name TO "API Key"')
    ws.steps('    - name: copy\n      back_up: {table: people, columns: ["API Key"], to: kept}\n')
    ws.apply()
    assert ws.relations.rows('SELECT id, "API Key" FROM kept') == before


def test_values_of_columns_of_any_type_stay_as_they_are(tmp_path: Path) -> None:
    relations = Relations(f"sqlite:///{tmp_path / 'app.db'}")
    relations.run("CREATE TABLE s (id INTEGER PRIMARY KEY, c ANY) STRICT")
    relations.run("CREATE TABLE u (id INTEGER PRIMARY KEY, c)")
    ws = Migration.begin(tmp_path / "ws", relations)
    for table in ("s", "u"):
        for number, value in enumerate(("007", "1e3", 5, b"x", None)):
            relations.run(f"INSERT INTO {table} VALUES (%s, %s)", number, value)
    ws.steps(*(f"    - name: {t}\n      back_up: {{table: {t}, columns: [c], to: {t}_kept}}\n" for t in ("s", "u")))
    ws.apply()
    for table in ("s", "u"):
        kept = relations.rows(f"SELECT id, typeof(c), c FROM {table}_kept")
        assert kept == relations.rows(f"SELECT id, typeof(c), c FROM {table}")


def test_a_stamp_looks_whether_values_are_encrypted(ws: Migration) -> None:
    ws.steps(ENCRYPT)
    found = commands.plan_stamp(ws.context(), ws.job)
    assert "encrypt: 12 of 12 values of people are not encrypted with main" in messages(found, "VX243")
    assert found.blocked
