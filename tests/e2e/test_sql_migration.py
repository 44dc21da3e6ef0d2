"""Migrations inside of a relational database: what is planned, done, undone, recorded, and what is refused (E1-E4, G3, G5, G8,
G9, A5-A8)."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from runner import commands
from runner.errors import NotFound, Permanent, PlanRefused, VecrunError
from runner.plan import MapRows, Plan
from tests.e2e.migrating import ACCOUNTS, ALL, COPY, ENCRYPT, KEY, LABEL, TABLES, Migration
from tests.e2e.relations import Relations
from tests.e2e.workspace import JOB, Workspace


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def ws(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Migration:
    monkeypatch.setenv("MIGRATION_KEY", KEY)
    url = f"sqlite:///{tmp_path / 'app.db'}" if request.param == "sqlite" else request.getfixturevalue("pg_database")
    made = Migration.begin(tmp_path / "ws", Relations(url))
    made.fill()
    return made


def messages(plan: Plan, code: str) -> str:
    """What the findings of a code say."""
    return "\n".join(f"{item.where}: {item.message}" for item in plan.notices if item.code == code)


# Steps that come later -------------------------------------------------------------------------------------------------


def test_an_appended_step_is_planned_done_and_undone_alone(ws: Migration) -> None:
    ws.steps(TABLES, COPY)
    ws.apply()
    between = ws.relations.dump()
    ws.steps(TABLES, COPY, LABEL)
    plan = ws.plan()
    assert [(step.type, getattr(step, "name", "")) for step in plan.steps] == [("run_statements", "label")]
    assert "tables, copy" in messages(plan, "VI150")
    commands.apply(ws.context(), plan)
    assert ws.relations.rows("SELECT name FROM people WHERE id = 3") == [("person 3!",)]
    assert ws.plan().steps == ()
    assert ws.plan().drift == ()
    ws.roll_back()
    assert [line for line in ws.relations.dump() if "vecrun_migrations" not in line] == [
        line for line in between if "vecrun_migrations" not in line
    ]
    assert ws.record() == {"": "closed", "tables": "done", "copy": "done"}
    ws.steps(TABLES, COPY)
    assert ws.plan().steps == ()
    assert ws.plan().drift == ()
    ws.roll_back()
    assert ws.relations.tables() == {"people"}


@pytest.mark.parametrize(
    ("steps", "code", "words"),
    [
        ((TABLES.replace("string(40)", "string(41)"), COPY), "VX242", "tables: it was applied by run r-"),
        ((TABLES,), "VX242", "copy: it was applied by run r-"),
        ((TABLES, LABEL, COPY), "VX241", "label: it is not recorded, and copy after it is"),
    ],
)
def test_an_applied_step_stays_as_it_is(ws: Migration, steps: tuple[str, ...], code: str, words: str) -> None:
    ws.steps(TABLES, COPY)
    ws.apply()
    before = ws.relations.dump()
    ws.steps(*steps)
    plan = ws.plan()
    assert ws.codes(plan, blocking=True) == {code}
    assert words in messages(plan, code)
    assert plan.steps == ()
    found = ws.vecrun("apply", ws.job, "--auto-approve")
    assert found.exit_code == 1
    assert words in found.output
    assert ws.relations.dump() == before


def test_what_is_said_around_a_step_may_change(ws: Migration) -> None:
    ws.steps(TABLES, COPY)
    ws.apply()
    ws.steps(
        TABLES.replace("everybody has a name", "all have names"),
        COPY.replace("back_up:", "description: x\n      back_up:"),
    )
    plan = ws.plan()
    assert plan.steps == ()
    assert not plan.blocked


def test_another_workspace_sees_what_is_recorded(ws: Migration, tmp_path: Path) -> None:
    ws.steps(TABLES, COPY)
    run = ws.apply().run
    other = Migration.begin(tmp_path / "other", ws.relations)
    other.steps(TABLES, COPY)
    plan = other.plan()
    assert plan.steps == ()
    assert run in messages(plan, "VI150")
    other.steps(TABLES, COPY, LABEL)
    other.apply()
    assert ws.record() == {"": "closed", "tables": "done", "copy": "done", "label": "done"}


# Databases that are not as they should be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("CREATE TABLE accounts (id INTEGER)", "tables: table accounts exists already"),
        ("CREATE TABLE people_backup (id INTEGER)", "copy: table people_backup exists already"),
        (
            "CREATE TABLE accounts (id INTEGER); ALTER TABLE people DROP COLUMN settings",
            "copy: people has no column settings",
        ),
        ("CREATE TABLE accounts (id INTEGER); DROP TABLE people", "copy: table people is missing"),
    ],
)
def test_an_unknown_database_is_refused_with_the_way_out(ws: Migration, sql: str, words: str) -> None:
    ws.steps(TABLES.replace("      check:", "      description: x\n      # check:"), COPY)
    for statement in sql.split("; "):
        ws.relations.run(statement)
    plan = ws.plan()
    assert ws.codes(plan, blocking=True) == {"VX240"}
    assert words in messages(plan, "VX240")
    assert "vecrun stamp" in messages(plan, "VX240")
    assert ws.vecrun("apply", ws.job, "--auto-approve").exit_code == 1
    assert ws.record() == {}


def test_a_half_migrated_database_is_refused_with_the_way_out(ws: Migration, tmp_path: Path) -> None:
    ws.steps(TABLES, COPY)
    ws.apply()
    other = Migration.begin(tmp_path / "other", ws.relations)
    other.steps(TABLES, COPY)
    ws.relations.run("UPDATE vecrun_migrations SET status = 'begun' WHERE step = 'copy'")
    ws.relations.run("UPDATE vecrun_migrations SET status = 'open' WHERE step = ''")
    plan = other.plan()
    assert ws.codes(plan, blocking=True) == {"VX241"}
    assert "copy: run r-" in messages(plan, "VX241")
    assert "vecrun stamp" in messages(plan, "VX241")
    assert other.vecrun("stamp", other.job, "--auto-approve").exit_code == 0
    assert other.plan().steps == ()
    assert ws.record() == {"": "closed", "tables": "done", "copy": "stamped"}


# Done by hand ----------------------------------------------------------------------------------------------------------


def by_hand(ws: Migration) -> None:
    for sql in (
        "CREATE TABLE accounts (id CHAR(36) PRIMARY KEY, login TEXT, secret TEXT)",
        "CREATE TABLE people_backup (id INTEGER PRIMARY KEY, settings TEXT)",
        "INSERT INTO people_backup SELECT id, settings FROM people",
    ):
        ws.relations.run(sql)


def test_what_was_done_by_hand_is_stamped_and_forgotten(ws: Migration) -> None:
    by_hand(ws)
    ws.steps(TABLES, COPY)
    before = ws.relations.dump()
    assert ws.vecrun("stamp", ws.job, "--dry-run").exit_code == 0
    assert ws.relations.dump() == before
    found = ws.vecrun("stamp", ws.job, "--auto-approve")
    assert found.exit_code == 0, found.output
    assert "record as done, and do nothing else: tables, copy" in found.output
    assert ws.record() == {"": "closed", "tables": "stamped", "copy": "stamped"}
    assert [line for line in ws.relations.dump() if "vecrun_migrations" not in line] == before
    assert ws.plan().steps == ()
    assert ws.plan().drift == ()
    ws.roll_back()
    assert ws.relations.dump() == before


def test_a_part_is_stamped_and_the_rest_is_done(ws: Migration) -> None:
    by_hand(ws)
    ws.relations.run("DROP TABLE people_backup")
    ws.steps(TABLES, COPY)
    assert ws.vecrun("stamp", ws.job, "--through", "tables", "--auto-approve").exit_code == 0
    assert {step.name for step in ws.plan().steps if hasattr(step, "name")} == {"copy"}
    ws.apply()
    assert ws.record() == {"": "closed", "tables": "stamped", "copy": "done"}


def test_a_stamp_over_what_was_applied_takes_nothing_of_it_back(ws: Migration) -> None:
    ws.steps(TABLES, COPY)
    ws.apply()
    assert ws.vecrun("stamp", ws.job, "--auto-approve").exit_code == 0
    ws.roll_back()
    assert ws.record() == {"": "closed", "tables": "done", "copy": "done"}
    ws.roll_back()
    assert ws.relations.tables() == {"people"}


def test_a_stamp_asks_what_the_steps_verify(ws: Migration) -> None:
    by_hand(ws)
    ws.relations.run("DELETE FROM people_backup WHERE id = 1")
    ws.steps(TABLES, COPY)
    found = ws.vecrun("stamp", ws.job, "--auto-approve")
    assert found.exit_code == 1
    assert "copy: all are copied: 11 instead of 12" in found.output
    ws.relations.run("DROP TABLE people_backup")
    found = ws.vecrun("stamp", ws.job, "--auto-approve")
    assert found.exit_code == 1
    assert "copy: table people_backup is not there" in found.output
    assert ws.record() == {}
    found = ws.vecrun("stamp", ws.job, "--through", "nothing")
    assert found.exit_code == 10
    assert "No such step" in found.output


# Plans -----------------------------------------------------------------------------------------------------------------


def test_a_plan_goes_stale_when_rows_come_and_not_when_they_may(ws: Migration) -> None:
    ws.steps(TABLES, ACCOUNTS)
    plan = ws.plan()
    ws.add(100, json.dumps({"login": "new", "secret": "in-clear-new"}))
    with pytest.raises(PlanRefused, match="held 12 rows and holds 13 now"):
        commands.apply(ws.context(), plan)
    ws.steps(TABLES, ACCOUNTS, live=True)
    plan = ws.plan()
    ws.add(101, json.dumps({"login": "newer", "secret": "in-clear-newer"}))
    assert commands.apply(ws.context(), plan).status == "completed"
    assert ws.relations.rows("SELECT count(*) FROM accounts") == [(6,)]


def test_rows_are_counted_by_rule_and_as_those_they_become(ws: Migration) -> None:
    ws.add(100, "{broken")
    ws.add(101, "{}")
    ws.steps(TABLES, ACCOUNTS, otherwise="skip")
    plan = ws.plan()
    step = next(step for step in plan.steps if isinstance(step, MapRows))
    assert step.rows == 14
    assert [(item.table, item.items, item.distinct) for item in step.made] == [("accounts", 11, 4)]
    assert {item.message: (item.otherwise, item.rows, item.first) for item in step.told} == {
        "never asked": ("ignore", 1, ()),
        "no JSON": ("skip", 1, ("100",)),
        "no secret": ("skip", 1, ("101",)),
    }
    assert step.left_out == 2
    assert "rows of accounts" in {fact.label for fact in plan.overview[0].facts}
    assert "in-clear" not in plan.dumps()


def test_malformed_rows_stop_it_or_are_listed(ws: Migration) -> None:
    ws.add(100, "{broken")
    ws.steps(TABLES, ACCOUNTS)
    plan = ws.plan()
    assert ws.codes(plan, blocking=True) == {"VX244"}
    assert "accounts: no JSON: 1 row of people, key 100" in messages(plan, "VX244")
    assert ws.vecrun("apply", ws.job, "--auto-approve").exit_code == 1
    assert ws.record() == {}
    ws.steps(TABLES, ACCOUNTS, otherwise="skip", live=True)
    saved = ws.root / "plans" / "move.json"
    assert ws.vecrun("plan", ws.job, "-o", saved).exit_code == 0
    assert ws.vecrun("apply", ws.job, "--auto-approve").exit_code == 0
    found = ws.vecrun("failures", "move")
    assert "100: no JSON" in found.output
    assert "retry-failed" not in found.output
    assert "are not tried again" in ws.vecrun("retry-failed", "move").output
    ws.roll_back()
    plan = commands.plan(ws.context(), ws.job, unpin=True)
    ws.add(102, "{}")
    outcome = commands.apply(ws.context(), plan)
    assert outcome.failed == 1, "one more than the plan has shown"


def test_a_column_is_not_dropped_over_rows_that_were_left_out(ws: Migration) -> None:
    ws.add(100, "{broken")
    ws.steps(*ALL, otherwise="skip")
    plan = ws.plan()
    assert ws.codes(plan, blocking=True) == {"VD107"}
    assert "with 1 value of rows that were left out" in messages(plan, "VD107")
    ws.steps(*ALL, otherwise="skip", accept="VD107")
    assert not ws.plan().blocked
    # the rows are looked at again when the column goes in a later run
    ws.steps(*ALL[:3], otherwise="skip")
    ws.apply()
    ws.steps(*ALL, otherwise="skip")
    assert ws.codes(blocking=True) == {"VD107"}


def test_prerequisites_are_asked_when_the_plan_is_made(ws: Migration) -> None:
    ws.relations.run("UPDATE people SET name = '' WHERE id < 3")
    ws.steps(TABLES, COPY.replace("verify:", "check:"))
    plan = ws.plan()
    assert "tables: everybody has a name: 2 instead of 0" in messages(plan, "VX243")
    assert "copy: all are copied" in messages(plan, "VI158"), "it needs what the steps before it make"
    assert ws.codes(plan, blocking=True) == {"VX243"}


def test_a_table_that_an_earlier_step_makes_is_not_looked_at(ws: Migration) -> None:
    again = ACCOUNTS.replace("name: accounts", "name: again").replace("from: people", "from: people_backup")
    ws.steps(TABLES, COPY, again)
    plan = ws.plan()
    assert "people_backup" in messages(plan, "VI154")
    ws.apply()
    assert ws.relations.rows("SELECT count(*) FROM accounts") == [(4,)]


def test_a_key_is_looked_at_before_anything_is_read(ws: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    ws.steps(TABLES, ACCOUNTS)
    monkeypatch.setenv("MIGRATION_KEY", KEY[:-1])
    ws.relations.run("DROP TABLE people")
    with pytest.raises(Permanent, match="does not have 32 bytes"):
        ws.plan()


def test_another_key_is_refused(ws: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    ws.steps(TABLES, ACCOUNTS)
    ws.apply()
    monkeypatch.setenv("MIGRATION_KEY", KEY[::-1])
    ws.steps(TABLES, ACCOUNTS, LABEL)
    assert ws.codes(blocking=True) == {"VX246"}


# The way back ----------------------------------------------------------------------------------------------------------


def test_a_rollback_needs_no_key(ws: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ws.relations.dump()
    ws.steps(*ALL)
    ws.apply()
    monkeypatch.delenv("MIGRATION_KEY")
    ws.roll_back()
    assert ws.relations.dump() == before


def test_rows_that_came_since_are_not_dropped_unasked(ws: Migration) -> None:
    ws.steps(TABLES, ACCOUNTS)
    ws.apply()
    ws.relations.run("INSERT INTO accounts VALUES ('00000000-0000-0000-0000-000000000001', 'theirs', 'y')")
    plan = ws.back()
    assert ws.codes(plan, blocking=True) == {"VD109"}
    assert "app/accounts: rows that came since the run, and stand nowhere else: 1" in messages(plan, "VD109")
    found = ws.vecrun("rollback", "move", "--auto-approve")
    assert found.exit_code == 1
    assert "--discard-new-points" in found.output
    assert "accounts" in ws.relations.tables()
    assert ws.vecrun("rollback", "move", "--auto-approve", "--discard-new-points").exit_code == 0
    assert ws.relations.tables() == {"people"}


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("DELETE FROM vecrun_migrations WHERE step = 'copy'", "VX251"),
        ("DROP TABLE {undo}", "VX249"),
        ("ALTER TABLE people ADD COLUMN settings TEXT", "VX250"),
        ("DROP TABLE people", "VX250"),
    ],
)
def test_a_rollback_that_cannot_be_is_refused(ws: Migration, sql: str, code: str) -> None:
    ws.steps(*ALL)
    ws.apply()
    undo = next(name for name in ws.relations.tables() if name.startswith("vecrun_undo_"))
    ws.relations.run(sql.format(undo=undo))
    assert code in ws.codes(ws.back(), blocking=True)


def test_what_has_no_way_back_says_so_first(ws: Migration) -> None:
    ws.steps(TABLES, LABEL[: LABEL.index("        rollback:")])
    plan = ws.plan()
    assert "label:" in messages(plan, "VI151")
    found = ws.vecrun("plan", ws.job)
    assert "There is no way back after: run 1 statement of SQL" in found.output
    commands.apply(ws.context(), plan)
    assert ws.codes(ws.back(), blocking=True) == {"VX302"}


def test_sql_that_was_refused_can_be_rolled_back_though_it_has_no_way_back(ws: Migration) -> None:
    before = ws.relations.dump()
    broken = LABEL[: LABEL.index("        rollback:")].replace("UPDATE people", "UPDATE nobody")
    ws.steps(TABLES, broken)
    with pytest.raises(VecrunError):
        ws.apply()
    assert ws.record() == {"": "open", "tables": "done"}
    ws.roll_back()
    assert ws.relations.dump() == before


def test_undo_tables_go_when_the_rollback_expires(ws: Migration) -> None:
    ws.steps(*ALL)
    ws.write("jobs/move.yaml", ws.job.read_text() + "  retention: 1s\n")
    ws.apply()
    time.sleep(1.1)
    found = ws.vecrun("gc", "--auto-approve")
    assert found.exit_code == 0, found.output
    assert "vecrun_undo_" in found.output
    assert ws.relations.tables() == {"people", "people_backup", "accounts", "vecrun_migrations"}
    with pytest.raises(PlanRefused, match="cannot be rolled back any more"):
        ws.back()
    assert ws.plan().steps == ()


# Afterwards ------------------------------------------------------------------------------------------------------------


def test_drift_tells_schemas_and_the_record_and_not_how_many_rows_there_are(ws: Migration) -> None:
    ws.steps(TABLES, COPY, ACCOUNTS)
    ws.apply()
    ws.add(100, None)
    assert commands.drift(ws.context()) == {"move": []}
    ws.relations.run("ALTER TABLE accounts ADD COLUMN note TEXT")
    ws.relations.run("DELETE FROM vecrun_migrations WHERE step = 'tables'")
    moved = "\n".join(commands.drift(ws.context())["move"])
    assert "app/accounts (table): columns.note was not there and is type TEXT" in moved.replace(
        "type text", "type TEXT"
    )
    assert "step tables is no longer recorded in app" in moved
    ws.relations.run("DROP TABLE people_backup")
    assert "app/people_backup (table) is gone" in "\n".join(commands.drift(ws.context())["move"])


def test_verify_finds_a_row_that_somebody_changed(ws: Migration) -> None:
    ws.steps(TABLES, COPY, ACCOUNTS)
    ws.apply()
    found = ws.vecrun("verify", "move")
    assert found.exit_code == 0, found.output
    assert "12 rows compared, 12 as they should be" in found.output
    ws.relations.run("UPDATE accounts SET login = 'unseen' WHERE login = 'login1'")
    found = ws.vecrun("verify", "move")
    assert found.exit_code == 13
    assert "accounts.login" in found.output
    assert "unseen" not in found.output, "no values of rows"


def test_verify_passes_over_what_cannot_be_compared_any_more(ws: Migration) -> None:
    ws.steps(*ALL)
    ws.apply()
    found = ws.vecrun("verify", "move")
    assert found.exit_code == 0, found.output
    assert "not compared: column settings of people" in found.output
    ws.relations.run("DELETE FROM accounts")
    assert ws.vecrun("verify", "move").exit_code == 13


def test_a_dry_run_leaves_nothing(ws: Migration) -> None:
    ws.steps(*ALL)
    before = ws.relations.dump()
    found = ws.vecrun("apply", ws.job, "--dry-run")
    assert found.exit_code == 0, found.output
    assert "nothing is left of it" in found.output
    assert ws.relations.dump() == before


def test_a_change_of_the_same_table_by_another_kind_waits_until_it_is_through(ws: Migration) -> None:
    ws.edit("vecrun.yaml", "limits:", "  a: {type: files, path: ./a}\n  b: {type: files, path: ./b}\nlimits:")
    Workspace.fill(ws, 12)
    table = "{connection: app, table: people, id_column: id, vector_id_column: name}"
    moving = "    - {from: kb, to: kb2, ids: {mode: uuid5}}\n"
    ws.write(
        "jobs/other.yaml",
        JOB.split("    - from")[0].replace("name: move", "name: other") + f"{moving}  documents: {table}\n",
    )
    ws.steps(ENCRYPT, LABEL.replace("UPDATE people", "UPDATE nobody"))
    with pytest.raises(VecrunError):
        ws.apply()
    found = ws.vecrun("apply", ws.root / "jobs" / "other.yaml", "--auto-approve")
    assert found.exit_code == 1
    assert "app/people: run r-" in found.output
    ws.roll_back()
    assert ws.vecrun("apply", ws.root / "jobs" / "other.yaml", "--auto-approve").exit_code == 0


def test_an_interrupted_run_says_what_it_has_done(ws: Migration) -> None:
    ws.steps(TABLES, LABEL.replace("UPDATE people", "UPDATE nobody"))
    with pytest.raises(VecrunError):
        ws.apply()
    assert "app: step tables is done and recorded" in ws.vecrun("cancel", "move").output


def test_only_a_migration_can_be_stamped(ws: Migration) -> None:
    ws.write(
        "jobs/move.yaml",
        "apiVersion: vecrun/v1\nkind: VectorMigration\nmetadata: {name: move}\nspec: {source: app, target: app, collections: all}\n",
    )
    with pytest.raises(Permanent, match="Nothing can be recorded"):
        commands.plan_stamp(ws.context(), ws.job)
    ws.steps(TABLES)
    with pytest.raises(NotFound):
        commands.plan_stamp(ws.context(), ws.job, through="tabels")
