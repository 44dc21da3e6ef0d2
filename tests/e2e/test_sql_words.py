"""What is said of a migration afterwards, and where it cannot be right: verifications, status, lists, places of problems (E1, G8)."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner import commands
from runner.errors import VecrunError
from tests.e2e.migrating import ACCOUNTS, COPY, ENCRYPT, KEY, LABEL, TABLES, Migration
from tests.e2e.relations import Relations


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Migration:
    monkeypatch.setenv("MIGRATION_KEY", KEY)
    made = Migration.begin(tmp_path / "ws", Relations(f"sqlite:///{tmp_path / 'app.db'}"))
    made.fill()
    return made


def test_verify_passes_over_a_table_that_a_later_step_has_dropped(ws: Migration) -> None:
    drop = "    - name: settled\n      sql: {forward: [DROP TABLE people_backup]}\n"
    ws.steps(TABLES, COPY, ACCOUNTS)
    ws.apply()
    ws.steps(TABLES, COPY, ACCOUNTS, drop)
    ws.apply()
    found = ws.vecrun("verify", "move")
    assert found.exit_code == 0, found.output
    assert "not compared: table people_backup is not there any more, since step settled" in found.output
    assert "12 rows compared, 12 as they should be" in found.output
    ws.relations.run("DROP TABLE accounts")  # no step did that
    found = ws.vecrun("verify", "move")
    assert found.exit_code == 13, found.output
    assert "table accounts is not there any more" in found.output


def test_rows_that_were_left_out_are_listed_by_their_numbers(ws: Migration) -> None:
    for number in (100, 20, 3000):
        ws.add(number, "{" if number > 50 else "{}")
    ws.steps(TABLES, ACCOUNTS, otherwise="skip")
    plan = ws.plan()
    assert "altogether 3 rows of people would be left out" in "\n".join(one.message for one in plan.notices)
    commands.apply(ws.context(), plan)
    lines = ws.vecrun("failures", "move").output.splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["20", "100", "3000"]


def test_a_table_is_shown_a_line_a_column(ws: Migration) -> None:
    ws.steps(TABLES)
    said = ws.vecrun("plan", ws.job).output
    lines = [line.strip() for line in said.splitlines()]
    first = next(number for number, line in enumerate(lines) if line.endswith("CREATE TABLE accounts ("))
    assert [line.split()[0] for line in lines[first + 1 : first + 6]] == ["id", "login", "secret", "PRIMARY", ")"]


def test_a_dry_run_that_fails_offers_nothing_to_go_on_with(ws: Migration) -> None:
    ws.steps(TABLES, COPY.replace("same_as: SELECT count(*) FROM people", "expect: 13"))
    found = ws.vecrun("apply", ws.job, "--dry-run")
    assert found.exit_code == 13, found.output
    error = found.output.partition("The database is not as it should be")[2]
    assert "It was a dry run: nothing of it is left" in error
    assert "vecrun " not in error


def test_status_counts_rows_or_nothing(ws: Migration) -> None:
    ws.steps(LABEL)
    ws.apply()
    said = ws.vecrun("status", "move").output
    assert "points" not in said
    assert "rows" not in said
    ws.steps(LABEL, ENCRYPT)
    ws.apply()
    assert "rows      12" in ws.vecrun("status", "move").output


def test_status_tells_what_had_not_to_be_undone(ws: Migration) -> None:
    ws.steps(TABLES, LABEL, LABEL.replace("label", "again").replace("'!'", "nothing"))
    with pytest.raises(VecrunError):
        ws.apply()
    ws.roll_back()
    undone = [line for line in ws.vecrun("status", "move").output.splitlines() if "undo the SQL" in line]
    assert [("again" in line, line.endswith("; nothing had to be undone")) for line in undone] == [
        (True, True),
        (False, False),
    ]


@pytest.mark.parametrize(
    ("step", "place"),
    [
        (
            ENCRYPT.replace("key: main}", "key: mian}"),
            "spec.steps.1.encrypt: no such key: mian; keys of the spec: main",
        ),
        (LABEL, "spec.keys.main: no step uses the key main"),
    ],
)
def test_a_key_that_does_not_fit_is_named_where_it_stands(ws: Migration, step: str, place: str) -> None:
    ws.steps(TABLES, step)
    text = ws.job.read_text()
    if "keys:" not in text:
        ws.edit("jobs/move.yaml", "  steps:\n", '  keys: {main: {secret: "${env:MIGRATION_KEY}"}}\n  steps:\n')
    assert place in ws.vecrun("validate", ws.job).output


def test_two_statements_in_one_are_refused_with_the_way_out(ws: Migration) -> None:
    ws.steps(
        "    - name: two\n      sql: {forward: ['CREATE TABLE a (b int); CREATE TABLE c (d int)'], rollback: []}\n"
    )
    found = ws.vecrun("apply", ws.job, "--auto-approve")
    assert found.exit_code == 1, found.output
    assert "Each item of forward and rollback is one statement" in found.output
    assert ws.relations.tables() <= {"people", "vecrun_migrations"}


def test_a_job_under_another_name_knows_what_it_did(ws: Migration) -> None:
    ws.steps(TABLES, COPY)
    ws.apply()
    ws.write("jobs/moved.yaml", ws.job.read_text().replace("name: move", "name: moved"))
    ws.job.unlink()
    assert ws.vecrun("state", "mv", "move", "moved").exit_code == 0
    found = ws.vecrun("plan", ws.root / "jobs/moved.yaml", "--detailed-exitcode")
    assert found.exit_code == 0, found.output
    assert ws.vecrun("rollback", "moved", "--auto-approve").exit_code == 0
    assert ws.relations.tables() == {"people"}


def test_a_name_that_the_record_has_already_is_refused(ws: Migration) -> None:
    ws.steps(TABLES)
    ws.apply()
    ws.relations.run(
        "INSERT INTO vecrun_migrations SELECT 'moved', step, digest, status, run, token, statement, keys, recorded FROM vecrun_migrations"
    )
    found = ws.vecrun("state", "mv", "move", "moved")
    assert found.exit_code == 1, found.output
    assert "has a record in the database already" in found.output
    assert ws.plan().drift == ()
