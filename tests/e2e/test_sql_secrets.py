"""No key and no plain credential in any output of a migration (E3): what commands print, write and record, when all goes well
and when databases refuse rows, triggers quote them, keys are wrong and settings are malformed."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result

from tests.e2e.relations import Relations
from tests.e2e.test_secrets import Secrets, made
from tests.e2e.workspace import Workspace, run

#: The keys as a user has them, and what stands in the rows.
RAW = [bytes(range(100, 132)), bytes(range(200, 232)), b"THIRD-key-of-exactly-32-letters!"]
KEYS = {"OLD_KEY": base64.b64encode(RAW[0]).decode(), "NEW_KEY": RAW[1].hex(), "THIRD_KEY": RAW[2].decode()}
PLAIN = Secrets({f"credential {number}": made(number) for number in range(10, 22)})
SECRETS = Secrets(
    PLAIN
    | KEYS
    | {f"key {number} in hex": raw.hex() for number, raw in enumerate(RAW)}
    | {f"key {number} in base64": base64.urlsafe_b64encode(raw).decode() for number, raw in enumerate(RAW)}
)
MODELS = ("embedding", "llm")
TABLES = {
    "credentials": {"id": "uuid", "kind": "string(16)", "api_key": "text"},
    "tokens": {"id": "integer", "token": "text"},
}


@dataclass
class Bureau:
    """A workspace, its database, and all that its commands have said."""

    ws: Workspace
    data: Relations
    said: list[str] = field(default_factory=list)

    def build(self) -> Bureau:
        """Rows with credentials in clear: complete settings, some without a key, some that are no JSON, and tokens."""
        self.data.run("CREATE TABLE bases (id integer PRIMARY KEY, owner integer NOT NULL, settings text)")
        self.data.run("CREATE TABLE users (id integer PRIMARY KEY, token text)")
        values = list(PLAIN.values())
        for number in range(4):
            one = {kind: {"api_key": values[number * 2 + at], "provider": "p"} for at, kind in enumerate(MODELS)}
            self.data.run("INSERT INTO bases VALUES (%s, %s, %s)", number, number % 2, json.dumps(one))
            self.data.run("INSERT INTO users VALUES (%s, %s)", number, values[8 + number])
        self.data.run("INSERT INTO bases VALUES (90, 1, %s)", '{"embedding": {"api_key": "' + values[0])
        self.data.run("INSERT INTO bases VALUES (91, 1, %s)", json.dumps({"embedding": {"api_key": [values[1]]}}))
        self.data.run("INSERT INTO bases VALUES (92, 1, %s)", json.dumps({"embedding": {"secret": values[2]}}))
        return self

    def share(self) -> None:
        """Another user has the same credentials."""
        self.data.run("INSERT INTO bases SELECT 80, 0, settings FROM bases WHERE id = 1")

    def vecrun(self, *args: str | Path, **keys: str) -> Result:
        """A command, whose words are kept."""
        found = run("-w", self.ws.root, "--debug", *args, env=dict(KEYS | keys))
        assert found.exception is None or isinstance(found.exception, SystemExit)
        self.said.append(f"$ vecrun {' '.join(map(str, args))}\n{found.output}\n{found.stderr}")
        return found

    def job(self, name: str, keys: dict[str, str], *steps: dict[str, Any], **more: Any) -> str:
        """A job file with these steps."""
        spec = {"connection": "app", "keys": {key: {"secret": f"${{env:{place}}}"} for key, place in keys.items()}}
        job = {"apiVersion": "vecrun/v1", "kind": "SqlMigration", "metadata": {"name": name, "description": name}}
        self.ws.write(f"jobs/{name}.yaml", yaml.safe_dump(job | {"spec": spec | {"steps": list(steps)} | more}))
        return f"{self.ws.root}/jobs/{name}.yaml"

    def refused(self, name: str, keys: dict[str, str], *steps: dict[str, Any], words: str) -> None:
        """A job that is refused in plan or in apply, with these words; then it is rolled back, so that the next one can work."""
        before = self.data.dump()
        file = self.job(name, keys, *steps)
        if not self.data.sqlite:
            self.vecrun("apply", file, "--dry-run")
        found = self.vecrun("apply", file, "--auto-approve")
        assert found.exit_code not in (0, 2), found.output
        assert words in found.output, found.output
        for command in ("logs", "failures"):
            self.vecrun(command, name)
        self.vecrun("rollback", name, "--auto-approve")
        assert self.data.dump() == before

    def found(self) -> dict[str, set[str]]:
        """Where secrets stand: in what was said, and in every file but the user's own database."""
        places = {text.split("\n", 1)[0]: SECRETS.found(text) for text in self.said}
        for path in self.ws.root.rglob("*"):
            if path.is_file() and not path.name.startswith("app.db"):
                data = path.read_bytes()
                places[path.name] = SECRETS.found(data) | {str(raw) for raw in RAW if raw in data}
        return {place: names for place, names in places.items() if names}


def made_in(folder: Path, url: str) -> Bureau:
    settings = {"apiVersion": "vecrun/v1", "kind": "Workspace", "connections": {"app": {"type": "sql", "url": url}}}
    ws = Workspace.create(folder, yaml.safe_dump(settings))
    ws.job.unlink()
    return Bureau(ws, Relations(url)).build()


@pytest.fixture
def sqlite(tmp_path: Path) -> Bureau:
    return made_in(tmp_path, f"sqlite:///{tmp_path}/app.db")


@pytest.fixture
def postgresql(tmp_path: Path, pg_database: str) -> Bureau:
    return made_in(tmp_path, pg_database)


def tables(**types: str) -> dict[str, Any]:
    """A step that makes the tables; `types` of columns that are other than usual."""
    made_ = [
        {"name": name, "columns": [{"name": one, "type": types.get(one, kind), "primary_key": one == "id"} for one, kind in columns.items()]}
        for name, columns in TABLES.items()
    ]  # fmt: skip
    return {"name": "tables", "create_tables": made_}


def mapping(otherwise: str = "skip", api_key: Any = None, **more: Any) -> dict[str, Any]:
    """A step that makes credentials out of settings."""
    values = {
        "id": {"uuid_from": ["row.owner", "kind", "setting.api_key"], "key": "one"},
        "kind": "kind",
        "api_key": api_key or {"encrypt": "setting.api_key", "key": "one"},
    }
    rules = [
        {"rule": "setting", "message": "not set", "otherwise": "ignore"},
        {"rule": "setting.api_key", "message": "no API key", "otherwise": otherwise},
    ]
    return {
        "name": "map",
        "map": {
            "from": "bases", "each": {"kind": list(MODELS)}, "let": {"setting": "(row.settings | json)[kind]"}, "rules": rules,
            "malformed": otherwise, "into": [{"table": "credentials", "values": values}], **more,
        },
    }  # fmt: skip


def test_the_search_can_find_them(sqlite: Bureau) -> None:
    """It finds each credential and key in the forms in which it could get out."""
    for name, secret in SECRETS.items():
        for text in (secret, json.dumps({"a": secret}), repr(secret), f"Key (word)=({secret}) already exists"):
            assert name in SECRETS.found(text), name
    sqlite.said.append(f"$ vecrun\n{PLAIN['credential 11']}")
    sqlite.ws.write("state/x.json", json.dumps(KEYS["NEW_KEY"]))
    (sqlite.ws.root / "state" / "raw").write_bytes(b"\0" + RAW[1])
    assert sqlite.found().keys() == {"$ vecrun", "x.json", "raw"}
    assert {place for row in sqlite.data.rows("SELECT settings FROM bases") for place in SECRETS.found(str(row))} >= {
        f"credential {number}" for number in range(10, 18)
    }


def test_a_migration_from_its_plan_to_its_rollback(sqlite: Bureau) -> None:
    before = sqlite.data.dump()
    backup = {"name": "backup", "back_up": {"table": "bases", "columns": ["settings"], "to": "bases_backup"}}
    drop = {"name": "drop", "drop_column": {"table": "bases", "column": "settings"}}
    encrypt = {"name": "encrypt", "encrypt": {"table": "users", "columns": ["token"], "key": "one"}}
    rotate = {"name": "rotate", "rotate": {"table": "users", "columns": ["token"], "from": "one", "to": "two"}}
    accept = [{"code": "VD107", "reason": "they stand in the backup"}]
    keys = {"one": "OLD_KEY", "two": "NEW_KEY"}
    file = sqlite.job("all", keys, tables(), backup, mapping(), encrypt, rotate, drop, accept=accept)
    plan = sqlite.ws.root / "plans" / "all.json"
    for args in (["validate", file], ["lint", file]):
        sqlite.vecrun(*args)
    for form in ("text", "markdown", "json", "html"):
        assert sqlite.vecrun("plan", file, "--format", form).exit_code == 0
    assert sqlite.vecrun("plan", file, "-o", plan).exit_code == 0
    sqlite.vecrun("show", plan)
    dry = sqlite.vecrun("apply", plan, "--dry-run")
    assert dry.exit_code in (0, 3), dry.output
    assert sqlite.data.dump() == before
    done = sqlite.vecrun("apply", plan, "--auto-approve")
    assert done.exit_code in (0, 3), done.output
    assert not any(SECRETS.found(str(row)) for row in sqlite.data.rows("SELECT token FROM users"))
    listed = sqlite.vecrun("failures", "all")
    assert "no API key" in listed.output
    assert "91" in listed.output
    of_job = ("status", "logs", "failures", "drift", "verify")
    for command in (*of_job, "runs", "plan"):
        words = ["all"] if command in of_job else [file] if command == "plan" else []
        sqlite.vecrun(command, *words)
        sqlite.vecrun(command, *words, "--json")
    for args in (["state", "list"], ["state", "show", "all"], ["gc"], ["connections", "test"], ["show", "all"]):
        sqlite.vecrun(*args)
    back = sqlite.vecrun("rollback", "all", "--auto-approve")
    assert back.exit_code == 0, back.output
    assert sqlite.data.dump() == before
    stamped = sqlite.vecrun("stamp", file, "--auto-approve")
    assert stamped.exit_code == 1, stamped.output
    assert "4 of 4 values of users are not encrypted with two" in stamped.output
    sqlite.vecrun("runs", "--json")
    assert sqlite.found() == {}


def statements(*forward: str, rollback: tuple[str, ...] = ()) -> dict[str, Any]:
    """A step of SQL."""
    return {"name": "statements", "sql": {"forward": [*forward], "rollback": [*rollback]}}


#: Credentials as they are, for the database to repeat.
CLEAR = mapping(api_key="setting.api_key")
ONE = {"one": "OLD_KEY"}
ONCE = statements("CREATE UNIQUE INDEX once ON credentials (api_key)")


def test_what_postgresql_refuses(postgresql: Bureau) -> None:
    """Its messages, details and contexts repeat values, and triggers say what they like."""
    postgresql.share()
    refuse = statements(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no %', NEW.api_key; END $$",
        "CREATE TRIGGER refuse BEFORE INSERT ON credentials FOR EACH ROW EXECUTE FUNCTION refuse()",
        rollback=("DROP FUNCTION refuse CASCADE",),
    )
    number = statements("SELECT sum(token::int) FROM users")
    raised = "a trigger or procedure raised an error in refuse, line 1"
    postgresql.refused("unique", ONE, tables(), ONCE, CLEAR, words='unique constraint "once"')
    postgresql.refused(
        "small", ONE, tables(api_key="string(20)"), CLEAR, words="value too long for type character varying(20)"
    )
    postgresql.refused("number", {}, number, words="invalid input syntax for type integer")
    postgresql.refused("trigger", ONE, tables(), refuse, CLEAR, words=raised)
    assert postgresql.found() == {}


def test_what_sqlite_and_the_job_refuse(sqlite: Bureau) -> None:
    sqlite.share()
    refuse = statements(
        "CREATE TRIGGER refuse BEFORE INSERT ON credentials BEGIN SELECT json_extract('{}', NEW.api_key); END"
    )
    listed = {"name": "list", "verify": [{"name": "one token", "query": "SELECT token FROM users LIMIT 1"}]}
    sqlite.refused("unique", ONE, tables(), ONCE, CLEAR, words="UNIQUE constraint failed: credentials.api_key")
    sqlite.refused("trigger", ONE, tables(), refuse, CLEAR, words="is not shown (SQLITE_ERROR)")
    sqlite.refused("rule", ONE, tables(), mapping("fail"), words="no API key")
    sqlite.refused("query", {}, listed, words="one token")
    assert sqlite.found() == {}


def test_keys_that_are_wrong(sqlite: Bureau) -> None:
    """Of another length, or another key: refused before anything is touched, and not shown."""
    before = sqlite.data.dump()
    file = sqlite.job("keys", {"one": "OLD_KEY"}, tables(), mapping())
    plan = sqlite.ws.root / "plan.json"
    short = base64.b64encode(RAW[0][:31]).decode()
    for bad in (short, KEYS["OLD_KEY"][:31], ""):
        found = sqlite.vecrun("plan", file, OLD_KEY=bad)
        assert found.exit_code == 1, found.output
        assert "A key does not have 32 bytes" in found.output
    assert sqlite.vecrun("plan", file, "-o", plan).exit_code == 0
    for args in (["--auto-approve"], ["--dry-run"]):
        found = sqlite.vecrun("apply", plan, *args, OLD_KEY=short)
        assert found.exit_code == 1, found.output
        assert "A key does not have 32 bytes" in found.output
        assert sqlite.data.dump() == before
    assert json.loads(sqlite.vecrun("runs", "--json").output)["items"] == []
    (sqlite.ws.root / "key").write_bytes(RAW[1])  # no text
    sqlite.ws.edit("jobs/keys.yaml", "${env:OLD_KEY}", "${file:./key}")
    assert "file ./key is no text" in sqlite.vecrun("plan", file).output
    (sqlite.ws.root / "key").unlink()
    sqlite.ws.edit("jobs/keys.yaml", "${file:./key}", "${env:OLD_KEY}")
    assert sqlite.vecrun("apply", file, "--auto-approve").exit_code in (0, 3)
    rotate = {
        "name": "rotate",
        "rotate": {"table": "credentials", "columns": ["api_key"], "from": "two", "to": "three"},
    }
    after = sqlite.data.rows("SELECT * FROM credentials")
    file = sqlite.job("rotate", {"two": "NEW_KEY", "three": "THIRD_KEY"}, rotate)
    found = sqlite.vecrun("apply", file, "--auto-approve")
    assert found.exit_code != 0, found.output
    assert sqlite.data.rows("SELECT * FROM credentials") == after
    sqlite.vecrun("rollback", "rotate", "--auto-approve")
    sqlite.said.append(
        "$ the short key\n" + "".join(text for text in sqlite.said if short in text or short[:30] in text)
    )
    assert sqlite.found() == {}
