"""Rows inside of a relational database: every type, every kind of key, what is compared, what is encrypted, and what a way back
leaves alone (E1, E2, E4; issue 8, lines 1 and 4). Through jobs, but for moments that no job can be stopped at.
"""

from __future__ import annotations

import base64
import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from runner.ciphers import Cipher
from runner.documents import SqlConfig
from runner.errors import Permanent, Transient
from runner.points import KeyRange
from runner.relational import encrypting, rows, schema
from runner.relational.opened import RelationalDatabase
from runner.relational.shape import shape
from tests.e2e.relations import Relations
from tests.e2e.workspace import Workspace, run

FIRST, SECOND = "0123456789abcdef0123456789abcdef", "another key, which has 32 bytes!"
APPLY = ("apply", "--auto-approve")
SETTINGS = """\
apiVersion: vecrun/v1
kind: Workspace
connections: {app: {type: sql, url: "%s"}}
limits: {workers: 3}
"""
JOB = """\
apiVersion: vecrun/v1
kind: SqlMigration
metadata: {name: move}
spec:
  connection: app
%s  steps:
%s"""
KEYS = """\
  keys:
    first: {secret: "${env:ROWS_FIRST}"}
"""
BOTH = (
    KEYS
    + """\
    second: {secret: "${env:ROWS_SECOND}", algorithm: fernet}
"""
)
#: name, type in PostgreSQL, type in SQLite, a value in SQL for each of both
TYPES = (
    ("a_uuid", "uuid", "CHAR(36)", "'1b4e28ba-2fa1-11d2-883f-0016d3cca427'", "'1b4e28ba-2fa1-11d2-883f-0016d3cca427'"),
    ("a_json", "json", "JSON", """'{"b": [1, 2.50], "a": "é:x%s"}'""", """'{"b": [1, 2.50], "a": "é:x%s"}'"""),
    ("a_jsonb", "jsonb", "JSON", """'{"b": null}'""", """'{"b": null}'"""),
    ("a_text", "text", "TEXT", "'100% of :all'", "'100% of :all'"),
    ("a_big", "bigint", "BIGINT", "9223372036854775807", "9223372036854775807"),
    ("a_decimal", "numeric(30,10)", "NUMERIC", "12345678901234567890.0000000001", "12.5"),
    ("a_float", "double precision", "REAL", "0.1::float8 + 0.2::float8", "0.1 + 0.2"),
    ("a_time", "timestamptz", "TIMESTAMP", "'2001-02-03 04:05:06.789012+05:30'", "'2001-02-03 04:05:06.789012'"),
    ("a_date", "date", "DATE", "'1999-12-31'", "'1999-12-31'"),
    ("a_flag", "boolean", "BOOLEAN", "true", "1"),
    ("some_bytes", "bytea", "BLOB", "'\\x00ff0a'", "x'00ff0a'"),
    ("a_null", "text", "TEXT", "NULL", "NULL"),
)


@pytest.fixture(params=["sqlite", "postgresql"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Relations:
    if request.param == "sqlite":
        return Relations(f"sqlite:///{tmp_path}/app.db")
    return Relations(request.getfixturevalue("pg_database"))


@pytest.fixture
def ws(app: Relations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("ROWS_FIRST", FIRST)
    monkeypatch.setenv("ROWS_SECOND", SECOND)
    return Workspace.create(tmp_path / "ws", SETTINGS % app.url, "")


@pytest.fixture
def database(app: Relations) -> Iterator[RelationalDatabase]:
    with opened_database(app) as found:
        yield found


def opened_database(app: Relations) -> closing[RelationalDatabase]:
    return closing(RelationalDatabase(SqlConfig(type="sql", url=app.url)))


def job(ws: Workspace, *steps: dict[str, Any], keys: str = "") -> None:
    ws.write("jobs/move.yaml", JOB % (keys, "".join(f"    - {json.dumps(step)}\n" for step in steps)))


def vecrun(ws: Workspace, *args: str, code: int = 0) -> str:
    found = run("-w", ws.root, *args, *([ws.job] if args == APPLY else []))
    assert found.exit_code == code, found.output
    return found.output


def types(app: Relations, table: str, key: str = "id integer PRIMARY KEY") -> None:
    app.run(f"CREATE TABLE {table} ({key}, {', '.join(f'{one[0]} {one[2 if app.sqlite else 1]}' for one in TYPES)})")


def opened(stored: str) -> str:
    data = base64.b64decode(stored)
    return AESGCM(FIRST.encode()).decrypt(data[:12], data[12:], None).decode()


@pytest.mark.parametrize("expressions", [False, True])
def test_values_of_every_type_are_the_same_in_another_table(
    ws: Workspace, app: Relations, *, expressions: bool
) -> None:
    types(app, "source")
    types(app, "target")
    values = ", ".join(one[4 if app.sqlite else 3] for one in TYPES)
    for number in range(1, 8):
        with app.connected() as connection:
            connection.execute(f"INSERT INTO source VALUES ({number}, {values})")
    before = app.dump()
    # the filter makes it an expression: else the database copies columns by itself
    made = {name: f"row.{name}" for name in ("id", *(one[0] for one in TYPES))}
    if expressions:
        made["a_text"] = "row.a_text ~ ''"
    job(ws, {"name": "fill", "map": {"from": "source", "batch_size": 2, "into": [{"table": "target", "values": made}]}})
    vecrun(ws, *APPLY)
    every = f"SELECT {', '.join(one[0] if app.sqlite else f'{one[0]}::text' for one in TYPES)} FROM"
    assert app.rows(f"{every} target") == app.rows(f"{every} source")
    assert len(app.rows("SELECT id FROM target")) == 7
    vecrun(ws, "verify", "move")
    vecrun(ws, "rollback", "move", "--auto-approve")
    assert app.dump() == before


@pytest.mark.parametrize("key", [pytest.param("integer", marks=pytest.mark.long), "text", "uuid"])
def test_each_row_is_copied_once_whatever_its_key_is(key: str, ws: Workspace, app: Relations) -> None:
    kind = "CHAR(36)" if app.sqlite and key == "uuid" else key
    app.run(f"CREATE TABLE kbs (id {kind} PRIMARY KEY NOT NULL, note text)")
    for number in range(40):
        # in an order that is not that of their code points
        text = f"{'aZäB_é z'[number % 8]}{number * 7919 % 40}"
        name = {"integer": number * 7919 - 99, "text": text, "uuid": str(uuid.uuid5(uuid.NAMESPACE_OID, text))}[key]
        app.run("INSERT INTO kbs VALUES (%s, %s)", name, ":x" if number == 3 else f"n{number}%")
    wanted = {
        "table": "kbs",
        "columns": ["note"],
        "to": "saved",
        "where": "note <> ':x' AND note NOT LIKE '%5%'",
        "batch_size": 3,
    }
    job(ws, {"name": "save", "back_up": wanted})
    vecrun(ws, *APPLY)
    assert app.rows("SELECT * FROM saved") == app.rows("SELECT * FROM kbs WHERE note <> ':x' AND note NOT LIKE '%5%'")
    assert len(app.rows("SELECT * FROM saved")) == 35


def test_a_row_that_is_there_stays_and_is_compared(ws: Workspace, app: Relations) -> None:
    app.run("CREATE TABLE kbs (id integer PRIMARY KEY, note text)")
    app.run("CREATE TABLE notes (id integer PRIMARY KEY, note text, seen integer)")
    for number in range(1, 6):
        app.run("INSERT INTO kbs VALUES (%s, %s)", number, f"private {number}")
    app.run("INSERT INTO notes VALUES (3, 'of somebody else', 1)")
    values = {"id": "row.id", "note": "row.note"}
    job(ws, {"name": "fill", "map": {"from": "kbs", "into": [{"table": "notes", "values": values}]}})
    told = vecrun(ws, *APPLY, code=13)
    assert "another value in notes.note" in told
    assert "3: " in told
    assert "private" not in told
    assert "somebody" not in told
    app.run("DELETE FROM notes WHERE id = 4")
    told = vecrun(ws, "resume", "move", code=13)
    assert "2 of 5 rows" in told
    assert "4: no row of notes" in told
    app.run("UPDATE notes SET note = 'private 3' WHERE id = 3")
    app.run("INSERT INTO notes VALUES (4, 'private 4', NULL)")
    vecrun(ws, "resume", "move")


def test_a_way_back_leaves_rows_alone_that_somebody_changed(ws: Workspace, app: Relations) -> None:
    app.run("CREATE TABLE kbs (id integer PRIMARY KEY, note text)")
    app.run("CREATE TABLE notes (id integer PRIMARY KEY, note text, seen integer DEFAULT 0)")
    app.run("INSERT INTO notes VALUES (1, 'note 1', 7)")
    for number in range(1, 6):
        app.run("INSERT INTO kbs VALUES (%s, %s)", number, f"note {number}")
    values = {"id": "row.id", "note": "row.note"}
    job(ws, {"name": "fill", "map": {"from": "kbs", "into": [{"table": "notes", "values": values}]}})
    vecrun(ws, *APPLY)
    assert len(app.rows("SELECT * FROM notes")) == 5
    app.run("UPDATE notes SET seen = 1 WHERE id = 2")
    app.run("DELETE FROM notes WHERE id = 3")
    told = vecrun(ws, "rollback", "move", "--auto-approve")
    assert "1 rows of notes were changed since and were left alone" in told
    assert app.rows("SELECT * FROM notes") == [(1, "note 1", 7), (2, "note 2", 1)]
    assert app.tables() == {"kbs", "notes"}


def test_equal_rows_become_one_and_secrets_are_compared_in_clear(ws: Workspace, app: Relations) -> None:
    app.run("CREATE TABLE kbs (id integer PRIMARY KEY, owner integer, secret text)")
    for number in range(12):
        app.run("INSERT INTO kbs VALUES (%s, %s, %s)", number, number % 3, None if number == 5 else f"sk-{number % 2}")
    columns = [
        {"name": "id", "type": "uuid", "primary_key": True}, {"name": "owner", "type": "integer"}, {"name": "secret", "type": "text"},
    ]  # fmt: skip
    identity = {"uuid_from": ["row.owner", "row.secret"], "key": "first"}
    values = {"id": identity, "owner": "row.owner", "secret": {"encrypt": "row.secret", "key": "first"}}
    rule = {"rule": "row.secret", "message": "no key", "otherwise": "skip"}
    made = {"from": "kbs", "rules": [rule], "batch_size": 5, "into": [{"table": "credentials", "values": values}]}
    tables = {"name": "make", "create_tables": [{"name": "credentials", "columns": columns}]}
    job(ws, tables, {"name": "fill", "map": made}, keys=KEYS)
    told = vecrun(ws, *APPLY)
    assert "sk-" not in told
    stored = app.rows("SELECT owner, secret FROM credentials")
    assert sorted((owner, opened(secret)) for owner, secret in stored) == [
        (o, f"sk-{n}") for o in range(3) for n in range(2)
    ]
    assert "no key" in vecrun(ws, "failures", "move")
    one, other = [secret for owner, secret in stored if owner == 1]
    app.run("UPDATE credentials SET secret = %s WHERE secret = %s", one, other)
    assert "another value in credentials.secret" in vecrun(ws, "verify", "move", code=13)


def test_a_batch_with_a_row_that_must_not_be_left_out_is_not_written(ws: Workspace, app: Relations) -> None:
    app.run("CREATE TABLE kbs (id integer PRIMARY KEY, note text)")
    for number in range(1, 8):
        app.run("INSERT INTO kbs VALUES (%s, %s)", number, f"private {number}")
    columns = [{"name": "id", "type": "integer", "primary_key": True}, {"name": "note", "type": "text"}]
    made = {
        "from": "kbs", "rules": [{"rule": "row.note != 'bad'", "message": "a bad note"}], "batch_size": 3,
        "into": [{"table": "notes", "values": {"id": "row.id", "note": "row.note"}}],
    }  # fmt: skip
    # the row turns bad only within the run: nobody sees it in the plan
    turns = {"forward": ["UPDATE kbs SET note = 'bad' WHERE id = 5"], "rollback": []}
    tables = {"name": "make", "create_tables": [{"name": "notes", "columns": columns}]}
    job(ws, tables, {"name": "turn", "sql": turns}, {"name": "fill", "map": made})
    told = vecrun(ws, *APPLY, code=1)
    assert "kbs 5: a bad note" in told
    assert "private" not in told
    assert not {5, 6} & {row[0] for row in app.rows("SELECT id FROM notes")}
    app.run("UPDATE kbs SET note = 'good' WHERE id = 5")
    vecrun(ws, "resume", "move")
    assert len(app.rows("SELECT id FROM notes")) == 7


def test_columns_are_encrypted_rotated_and_brought_back(ws: Workspace, app: Relations) -> None:
    app.run("CREATE TABLE users (name text PRIMARY KEY NOT NULL, token text, pin text)")
    for number in range(1, 9):
        app.run(
            "INSERT INTO users VALUES (%s, %s, %s)",
            f"u{number}",
            None if number == 4 else f"plain é {number}",
            f"p{number}",
        )
    before = app.dump()
    encrypt = {
        "name": "hide",
        "encrypt": {"table": "users", "columns": ["token", "pin"], "key": "first", "batch_size": 3},
    }
    job(ws, encrypt, keys=KEYS)
    vecrun(ws, *APPLY)
    assert [token and opened(token) for _, token in app.rows("SELECT name, token FROM users")][:4] == [
        "plain é 1", "plain é 2", "plain é 3", None,
    ]  # fmt: skip
    rotate = {
        "name": "rotate",
        "rotate": {"table": "users", "columns": ["token", "pin"], "from": "first", "to": "second", "batch_size": 3},
    }
    # the plan cannot see what happens within the run
    turn = {
        "name": "turn",
        "sql": {"forward": ["UPDATE users SET pin = 'in ' || 'clear' WHERE name = 'u7'"], "rollback": []},
    }
    job(ws, encrypt, turn, rotate, keys=BOTH)
    told = vecrun(ws, *APPLY, code=1)
    assert "users.pin, name 'u7'" in told
    assert "in clear" not in told
    fernet = Fernet(base64.urlsafe_b64encode(SECOND.encode()))
    app.run(
        "UPDATE users SET pin = %s WHERE name = 'u7'", fernet.encrypt(b"p7").decode()
    )  # the application knows the key by now
    vecrun(ws, "resume", "move")
    assert [fernet.decrypt(pin).decode() for _, pin in app.rows("SELECT name, pin FROM users")] == [
        f"p{n}" for n in range(1, 9)
    ]
    app.run("UPDATE users SET pin = 'in clear' WHERE name = 'u2'")
    assert "pin not encrypted with key second" in vecrun(ws, "verify", "move", code=13)
    app.run("UPDATE users SET pin = %s WHERE name = 'u2'", fernet.encrypt(b"p2").decode())
    vecrun(ws, "rollback", "move", "--auto-approve")
    by_now = dict(app.pairs("SELECT name, pin FROM users"))
    assert fernet.decrypt(by_now.pop("u7")).decode() == "p7"  # the run has not written it
    assert {opened(pin) for pin in by_now.values()} == {f"p{n}" for n in range(1, 9) if n != 7}
    told = vecrun(ws, "rollback", "move", "--auto-approve", code=1)
    assert "users, 1 value: name 'u7', pin" in told
    assert "None was changed" in told
    assert dict(app.pairs("SELECT name, pin FROM users"))["u7"].startswith("gAAAA")
    cipher = Cipher("first", "aes-256-gcm", FIRST)
    app.run("UPDATE users SET pin = %s WHERE name = 'u7'", cipher.encrypt("p7"))
    app.run("UPDATE users SET pin = 'p1' WHERE name = 'u1'")  # by an application that knows no key
    vecrun(ws, "rollback", "move", "--auto-approve")
    assert app.dump() == before


def test_a_way_back_decrypts_only_what_was_encrypted_on_the_way(ws: Workspace, app: Relations) -> None:
    app.run('CREATE TABLE users (id integer PRIMARY KEY, "the token" text, n integer DEFAULT 1)')
    cipher = Cipher("first", "aes-256-gcm", FIRST)
    app.run("INSERT INTO users VALUES (1, %s, 1), (2, 'plain', 1), (3, NULL, 1)", cipher.encrypt("there before"))
    before = app.dump()
    hide = {"name": "hide", "encrypt": {"table": "users", "columns": ["the token"], "key": "first", "batch_size": 1}}
    job(ws, hide, keys=KEYS)
    vecrun(ws, *APPLY)
    assert opened(dict(app.pairs('SELECT id, "the token" FROM users'))[2]) == "plain"
    app.run("UPDATE users SET n = 1 WHERE id = 2")
    vecrun(ws, "rollback", "move", "--auto-approve")
    assert app.dump() == before


def test_a_way_back_tells_of_values_whose_row_has_another_key_by_now(ws: Workspace, app: Relations) -> None:
    app.run("CREATE TABLE users (id integer PRIMARY KEY, token text)")
    app.run("INSERT INTO users VALUES (1, 'one'), (2, 'two')")
    job(ws, {"name": "hide", "encrypt": {"table": "users", "columns": ["token"], "key": "first"}}, keys=KEYS)
    vecrun(ws, *APPLY)
    app.run("UPDATE users SET id = 9 WHERE id = 2")
    told = vecrun(ws, "rollback", "move", "--auto-approve")
    assert "VI170" in told
    assert "1 value that the run has changed has no row any more" in told
    assert dict(app.pairs("SELECT id, token FROM users"))[1] == "one"


#: What ends a string, an object or a row of the batch document, if it comes there as it is.
BREAKING = '1}, {"id": 99, "data": 2'


def test_text_of_a_row_stays_in_its_value(ws: Workspace, app: Relations) -> None:
    if app.sqlite:
        pytest.skip("a JSON column of SQLite holds any text")
    app.run("CREATE TABLE source (id integer PRIMARY KEY, words text)")
    app.run("CREATE TABLE target (id integer PRIMARY KEY, data json, other jsonb)")
    good = '{"a": 12345678901234567890.10, "a": [1e400,  "\\u00e9"]}'
    app.run("INSERT INTO source VALUES (1, %s), (2, %s), (3, %s)", good, BREAKING, "3")
    values = {"id": "row.id", "data": "row.words ~ ''", "other": "'[]'"}
    made = {"from": "source", "into": [{"table": "target", "values": values}]}
    job(ws, {"name": "fill", "map": made})
    told = vecrun(ws, *APPLY, code=1)
    assert "target.data cannot be computed (not valid JSON): 1 row of source, key 2" in told
    assert "99" not in told
    assert app.rows("SELECT id FROM target") == []
    job(ws, {"name": "fill", "map": made | {"malformed": "skip"}})
    vecrun(ws, *APPLY)
    assert app.rows("SELECT id, data::text FROM target") == [(1, good), (3, "3")]
    assert "not valid JSON" in vecrun(ws, "failures", "move")


def test_a_key_of_rows_that_are_made_has_to_be_unique(ws: Workspace, app: Relations) -> None:
    app.run("CREATE TABLE kbs (id integer PRIMARY KEY, note text)")
    app.run("INSERT INTO kbs VALUES (1, 'a'), (2, 'a'), (3, 'b')")
    app.run("CREATE TABLE notes (id integer PRIMARY KEY, note text NOT NULL, kind text DEFAULT 'x')")
    app.run("CREATE UNIQUE INDEX part ON notes (note) WHERE id > 5")
    wanted = {"table": "notes", "key": ["note"], "values": {"id": "row.id", "note": "row.note"}}
    fill = {"name": "fill", "map": {"from": "kbs", "into": [wanted]}}
    job(ws, fill)
    assert "note is neither its primary key nor unique" in run("-w", ws.root, *APPLY, ws.job).output
    assert app.rows("SELECT * FROM notes") == []
    run("-w", ws.root, "rollback", "move", "--auto-approve")
    app.run("DROP INDEX part")
    app.run("CREATE UNIQUE INDEX each_note ON notes (note)")
    app.run("DELETE FROM kbs WHERE id = 2")
    job(ws, fill)
    vecrun(ws, *APPLY)
    app.run("ALTER TABLE notes ADD COLUMN later text DEFAULT 'since'")
    vecrun(ws, "rollback", "move", "--auto-approve")
    assert app.rows("SELECT * FROM notes") == []


def test_what_no_expression_changes_is_the_same_to_the_last_byte(ws: Workspace, app: Relations) -> None:
    if app.sqlite:
        pytest.skip("SQLite has none of these types")
    app.run("CREATE DOMAIN facts AS json")
    types = ("timestamptz", "timestamp", "date", "interval", "integer[]", "numrange", "facts", "inet", "real", "money",
             "json", "json[]", "point[]")  # fmt: skip
    values = (
        "'infinity'", "'0044-03-15 12:00:00 BC'", "'-infinity'", "'1 mon 31 days -00:00:01'", "'[0:1]={1,2}'", "'(1.50,]'",
        """'{"b":  1.10}'""", "'10.0.0.1/8'", "0.1", "'12.30'",
        r"""'"\u0000"'""", """array['{"a":  1}', '2']::json[]""", "array['(1,2)']::point[]",
    )  # fmt: skip
    names = [f"c{number}" for number in range(len(types))]
    columns = ", ".join(f"{name} {kind}" for name, kind in zip(names, types, strict=True))
    app.run(f"CREATE TABLE source (id integer PRIMARY KEY, {columns})")
    app.run(f"CREATE TABLE target (id integer PRIMARY KEY, {columns}, also text)")
    app.run(f"INSERT INTO source VALUES (1, {', '.join(values)})")
    made = {name: f"row.{name}" for name in ("id", *names)} | {"also": "'x' ~ row.c0"}
    fill = {"name": "fill", "map": {"from": "source", "into": [{"table": "target", "values": made}]}}
    job(ws, fill, {"name": "keep", "back_up": {"table": "source", "columns": names, "to": "kept"}})
    vecrun(ws, *APPLY)
    every = ", ".join(f"{name}::text" for name in names)
    assert app.rows(f"SELECT {every} FROM source") == app.rows(f"SELECT {every} FROM kept")
    assert app.rows(f"SELECT {every}, 'xinfinity' FROM source") == app.rows(f"SELECT {every}, also FROM target")


def test_a_table_that_others_inherit_from_is_not_read(ws: Workspace, app: Relations) -> None:
    if app.sqlite:
        pytest.skip("no tables of SQLite inherit")
    app.run("CREATE TABLE kbs (id integer PRIMARY KEY, note text)")
    app.run("CREATE TABLE heirs () INHERITS (kbs)")
    app.run("INSERT INTO kbs VALUES (1, 'a')")
    app.run("INSERT INTO heirs VALUES (1, 'b')")
    job(ws, {"name": "hide", "encrypt": {"table": "kbs", "columns": ["note"], "key": "first"}}, keys=KEYS)
    assert "heirs" in run("-w", ws.root, *APPLY, ws.job).output
    assert app.rows("SELECT note FROM heirs") == [("b",)]


def test_a_value_that_changed_since_it_was_read_is_read_again(database: RelationalDatabase, app: Relations) -> None:
    app.run("CREATE TABLE users (id integer PRIMARY KEY, token text, pin text)")
    for number in range(1, 6):
        app.run("INSERT INTO users VALUES (%s, %s, 'same')", number, f"old {number}")
    keys = encrypting.Keys(None, Cipher("first", "aes-256-gcm", FIRST))
    (page,) = rows.pages(database, "users", "id", ("token", "pin"), None)
    found = [keys.changed("users", "id", ("token", "pin"), row) for row in page]
    changes = [one for one in found if one is not None]
    app.run("UPDATE users SET token = 'new 2' WHERE id = 2")
    app.run("UPDATE users SET token = NULL WHERE id = 3")
    app.run("DELETE FROM users WHERE id = 4")
    with database.transaction() as connection:
        assert encrypting.write(connection, shape(database, "users"), "id", ("token", "pin"), changes, keys) == 4
    held = app.rows("SELECT id, token, pin FROM users")
    assert [(number, token and opened(token), opened(pin)) for number, token, pin in held] == [
        (1, "old 1", "same"), (2, "new 2", "same"), (3, None, "same"), (5, "old 5", "same"),
    ]  # fmt: skip
    with database.transaction() as connection:  # the batch once more: nothing is encrypted twice
        (page,) = rows.pages(database, "users", "id", ("token", "pin"), None)
        assert not any(keys.changed("users", "id", ("token", "pin"), row) for row in page)
        assert encrypting.write(connection, shape(database, "users"), "id", ("token", "pin"), changes, keys) == 0


def test_a_copied_range_can_be_copied_again(database: RelationalDatabase, app: Relations) -> None:
    app.run("CREATE TABLE kbs (id integer PRIMARY KEY, note text)")
    app.run("CREATE TABLE saved (id integer PRIMARY KEY, words text)")
    for number in range(1, 8):
        app.run("INSERT INTO kbs VALUES (%s, %s)", number, f"n{number}")
    app.run("INSERT INTO saved VALUES (2, 'n2')")
    source, target = shape(database, "kbs"), shape(database, "saved")
    columns = {"id": "id", "words": "note"}
    made = []
    for low, high, count in rows.edges(database, "kbs", "id", None, KeyRange(None, 7), None, 4):
        chosen = rows.chosen(source, "id", None, KeyRange(None, 7), low, high)
        with database.transaction() as connection:
            made.append((count, rows.copy_range(connection, source, target, columns, ("id",), chosen)))
    assert made == [(4, 3), (2, 2)]
    assert app.rows("SELECT * FROM saved") == [(n, f"n{n}") for n in range(1, 7)]


@pytest.mark.parametrize("wanted", ["note", "maybe", "gone", None])
def test_a_key_has_to_tell_rows_apart(wanted: str | None, database: RelationalDatabase, app: Relations) -> None:
    app.run(
        "CREATE TABLE kbs (a integer NOT NULL, b integer NOT NULL UNIQUE, note text, maybe text UNIQUE, PRIMARY KEY (a, b))"
    )
    described = schema.describe(database, "kbs")
    assert described is not None
    assert rows.key_column(described, "b") == "b"
    with pytest.raises(Permanent):
        rows.key_column(described, wanted)


def test_references_that_lead_nowhere_are_found(ws: Workspace, app: Relations) -> None:
    """A row of SQLite whose reference was broken behind the back of the migration; PostgreSQL does not let it be."""
    app.run("CREATE TABLE owners (id integer PRIMARY KEY)")
    app.run("CREATE TABLE kbs (id integer PRIMARY KEY, owner integer)")
    app.run("INSERT INTO owners VALUES (1)")
    for number in range(1, 4):
        app.run("INSERT INTO kbs VALUES (%s, %s)", number, 2 if number == 3 else 1)
    columns = [
        {"name": "id", "type": "integer", "primary_key": True},
        {"name": "owner", "type": "integer", "references": "owners.id"},
    ]
    made = {"from": "kbs", "into": [{"table": "owned", "values": {"id": "row.id", "owner": "row.owner"}}]}
    job(ws, {"name": "make", "create_tables": [{"name": "owned", "columns": columns}]}, {"name": "fill", "map": made})
    told = vecrun(ws, *APPLY, code=1)
    assert "refused" in told
    app.run("INSERT INTO owners VALUES (2)")
    vecrun(ws, "resume", "move")
    if app.sqlite:
        app.run("DELETE FROM owners WHERE id = 2")
        assert "1 rows of owned reference rows of owners that are not there" in vecrun(ws, "verify", "move", code=13)


def test_two_that_wait_for_each_other_try_again(pg_database: str) -> None:
    app = Relations(pg_database)
    app.run("CREATE TABLE kbs (id integer PRIMARY KEY, note text)")
    app.run("INSERT INTO kbs VALUES (1, 'a'), (2, 'b')")

    def cross(waits: threading.Thread) -> None:
        with opened_database(app) as database, database.transaction() as connection:
            connection.exec_driver_sql("SET LOCAL deadlock_timeout = '50ms'")
            connection.exec_driver_sql("UPDATE kbs SET note = 'y' WHERE id = 1")
            waits.start()
            connection.exec_driver_sql("UPDATE kbs SET note = 'y' WHERE id = 2")

    with psycopg.connect(app.url) as other:
        other.execute("SET LOCAL deadlock_timeout = '1min'")
        other.execute("UPDATE kbs SET note = 'x' WHERE id = 2")
        waits = threading.Thread(target=lambda: other.execute("UPDATE kbs SET note = 'x' WHERE id = 1"))
        with pytest.raises(Transient):
            cross(waits)
        waits.join()
