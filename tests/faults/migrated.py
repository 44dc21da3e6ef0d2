"""A migration with each form of step, what it makes of a library, and what must hold of the database at any moment.

What is read is read with the database's own client and with queries that share nothing with vecrun; what is encrypted is
decrypted here. Every table, column and row that is there must be explained by the record (`Truth.moment`).
"""

from __future__ import annotations

import base64
import json
import uuid
from pathlib import Path
from typing import Any

import yaml
from cryptography.exceptions import InvalidTag
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.e2e import relations
from tests.e2e.relations import KINDS, Library, Relations
from tests.faults.scene import JOB

RECORD, UNDO = "vecrun_migrations", "vecrun_undo"
FIRST, SECOND = b"the first key, of 32 bytes: okay", b"a second key, of 32 bytes: okay!"
#: The environment of all processes. Another key is told by its name alone.
KEYS = {"FAULTS_FIRST": base64.b64encode(FIRST).decode(), "FAULTS_SECOND": base64.b64encode(SECOND).decode()}
#: The steps of the job, in their order: each form there is.
STEPS = ("backup", "tables", "fill", "members", "index", "plan", "token", "rotate", "drop")
SPEC = """\
apiVersion: vecrun/v1
kind: SqlMigration
metadata: {name: JOB}
spec:
  connection: app-db
  keys:
    first: {secret: '${env:FAULTS_FIRST}'}
    second: {secret: '${env:FAULTS_SECOND}', algorithm: fernet}
  accept: [{code: VD107, reason: "the values that are left out are kept in the backup"}]
  steps:
    - name: backup
      check:
        - {name: there are knowledge bases, query: SELECT count(*) FROM users, same_as: SELECT max(id) FROM users}
      back_up: {table: knowledge_bases, columns: [embedding_config], to: config_backup, batch_size: 3}
    - name: tables
      create_tables:
        - name: credentials
          columns:
            - {name: id, type: uuid, primary_key: true}
            - {name: user_id, type: integer, nullable: false, references: users.id}
            - {name: kind, type: string(20), nullable: false}
            - {name: provider, type: text, nullable: false}
            - {name: api_key, type: text, nullable: false}
            - {name: created_at, type: timestamp, default_sql: CURRENT_TIMESTAMP}
        - name: model_configs
          columns:
            - {name: kb_id, type: integer, primary_key: true, references: knowledge_bases.id}
            - {name: kind, type: string(20), primary_key: true}
            - {name: credential_id, type: uuid, nullable: false, references: credentials.id}
            - {name: model, type: text}
          indexes: [[credential_id]]
    - name: fill
      map:
        from: knowledge_bases
        each: {kind: [embedding, llm]}
        let:
          settings: "((row.embedding_config | json) or {}).get(kind)"
        rules:
          - {rule: settings, message: no settings, otherwise: ignore}
          - {rule: settings.api_key, message: no API key, otherwise: skip}
        malformed: skip
        batch_size: 3
        into:
          - table: credentials
            values:
              id: {uuid_from: [row.user_id, kind, settings.provider, settings.api_key], key: first}
              user_id: row.user_id
              kind: kind
              provider: settings.provider
              api_key: {encrypt: settings.api_key, key: first}
          - table: model_configs
            values:
              kb_id: row.id
              kind: kind
              credential_id: {uuid_from: [row.user_id, kind, settings.provider, settings.api_key], key: first}
              model: settings.model
      verify:
        - name: each setting has its key
          query: SELECT count(*) FROM model_configs WHERE credential_id NOT IN (SELECT id FROM credentials)
    - name: members
      map:
        from: users
        batch_size: 2
        into:
          - {table: members, values: {id: row.id, label: row.name}}
    - name: index
      sql:
        transaction: false
        forward:
          - {sql: CREATE INDEX by_provider ON credentials (provider), done: DONE}
        rollback:
          - {sql: DROP INDEX IF EXISTS by_provider, repeat: true}
    - name: plan
      sql:
        forward:
          - ALTER TABLE users ADD COLUMN plan TEXT DEFAULT 'free'
          - "UPDATE users SET plan = 'paid: 100%' WHERE id % 2 = 0"
        rollback:
          - ALTER TABLE users DROP COLUMN plan
    - name: token
      encrypt: {table: users, columns: [token], key: first, batch_size: 2}
    - name: rotate
      rotate: {table: credentials, columns: [api_key], from: first, to: second, batch_size: 4}
    - name: drop
      drop_column: {table: knowledge_bases, column: embedding_config}
"""
DONE = {
    "postgresql": "SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('by_provider') AND indisvalid",
    "sqlite": "SELECT count(*) FROM sqlite_master WHERE name = 'by_provider'",
}


def spec(kind: str, **changes: Any) -> dict[str, Any]:
    """The job with each form of step, for a kind of database. `changes`: {"STEP.FORM.FIELD": value}."""
    made: dict[str, Any] = yaml.safe_load(SPEC.replace("JOB", JOB))
    steps = {step["name"]: step for step in made["spec"]["steps"]}
    statement = steps["index"]["sql"]["forward"][0]
    statement["done"] = DONE[kind]
    if kind == "postgresql":
        statement["sql"] = statement["sql"].replace("INDEX", "INDEX CONCURRENTLY")
    for where, value in changes.items():
        step, form, name = where.split(".")
        steps[step][form][name] = value
    return made


def workspace(root: Path, relation: Relations, *, workers: int = 2, **changes: Any) -> None:
    """vecrun.yaml and the job of a database."""
    (root / "jobs").mkdir(parents=True)
    settings = {
        "apiVersion": "vecrun/v1", "kind": "Workspace",
        "connections": {"app-db": {"type": "sql", "url": relation.url}},
        "limits": {"workers": workers, "retry_delay": 0.1, "lease_seconds": 5},
    }  # fmt: skip
    (root / "vecrun.yaml").write_text(yaml.safe_dump(settings))
    kind = "sqlite" if relation.sqlite else "postgresql"
    (root / "jobs" / f"{JOB}.yaml").write_text(yaml.safe_dump(spec(kind, **changes), sort_keys=False))


# -- what must hold ----------------------------------------------------------------------------------------------------


class Opaque(Exception):
    """A value that a key has not encrypted."""


def opened(text: str, key: bytes) -> str:
    """What AES-256-GCM with the first key, or Fernet with the second, has encrypted."""
    try:
        if key == SECOND:
            return Fernet(base64.urlsafe_b64encode(key)).decrypt(text.encode()).decode()
        data = base64.b64decode(text, validate=True)
        return AESGCM(key).decrypt(data[:12], data[12:], None).decode()
    except (InvalidTag, InvalidToken, ValueError):
        raise Opaque(text) from None


def under(text: str | None, keys: dict[str, bytes]) -> tuple[str, str | None]:
    """(name of the key that opens it, or plain; what is in it)"""
    for name, key in keys.items() if text is not None else ():
        try:
            return name, opened(text or "", key)
        except Opaque:
            continue
    return "plain", text


class Truth:
    """What the job makes of a library, worked out here from what the library was made of."""

    def __init__(self, library: Library) -> None:
        self.library, self.relations = library, library.relations
        self.before = self.relations.dump()
        self.tokens = {user: relations.token(user) for user in range(1, library.users + 1)}
        self.configs: dict[tuple[int, str], tuple[tuple[Any, ...], str]] = {}  # -> (what names the credential, model)
        for number, (user, _, text) in library.bases.items():
            try:
                found = json.loads(text or "{}")
            except ValueError:
                continue
            for kind in KINDS if isinstance(found, dict) else ():
                one = found.get(kind, {})
                if one.get("api_key"):
                    self.configs[number, kind] = (user, kind, one["provider"], one["api_key"]), one["model"]
        self.ids: dict[tuple[Any, ...], str] = {}  # of a run that nobody disturbed

    def record(self) -> dict[str, str]:
        """Step -> status; nothing where there is no record."""
        if RECORD not in self.relations.tables():
            return {}
        return dict(self.relations.pairs(f"SELECT step, status FROM {RECORD} WHERE job = '{JOB}'"))

    def goes_back(self) -> bool:
        """Whether a rollback is under way: rows of a table that it drops are forgotten before they go with it."""
        claim = f"SELECT status, digest FROM {RECORD} WHERE job = '{JOB}' AND step = ''"
        return [(status, digest != "") for status, digest in self.relations.pairs(claim)] == [("open", True)]

    def moment(self) -> list[str]:
        """What is there and is not explained by the record, or is not there that should be: at any moment at all."""
        record, tables = self.record(), self.relations.tables()
        wrong = self._of_record(record)
        if not record and self.relations.dump() != self.before:
            return [*wrong, f"nothing is recorded, and it is not the old database: {self.first_difference()}"]
        wrong += self._of_tables(record, tables)
        wrong += self._old(record, tables) + self._tokens(record)
        wrong += self._credentials(record) if "credentials" in tables else []
        wrong += self._members(record)
        index, plan = "by_provider" in self.relations.indexes(), "plan" in self.relations.columns("users")
        if index != ("index" in record) and record.get("index") not in ("begun", "undoing"):
            wrong.append(f"index: {index}, recorded: {record.get('index')}")
        if plan != (record.get("plan") == "done"):
            wrong.append(f"column plan: {plan}, recorded: {record.get('plan')}")
        if plan and [found for _, found in self.relations.rows("SELECT id, plan FROM users")] != [
            "free" if user % 2 else "paid: 100%" for user in sorted(self.tokens)
        ]:
            wrong.append("the values of plan are not those of the SQL")
        return wrong

    def first_difference(self) -> str:
        before, now = set(self.before), set(self.relations.dump())
        return f"gone {sorted(before - now)[:2]}, new {sorted(now - before)[:2]}"

    def _of_record(self, record: dict[str, str]) -> list[str]:
        """A prefix of the steps, of which the last alone is not done; open as long as it is not all or nothing."""
        steps = [step for step in STEPS if step in record]
        wrong = [] if steps == list(STEPS[: len(steps)]) else [f"recorded steps are no prefix: {steps}"]
        wrong += [f"{step} is {record[step]}, and others follow it" for step in steps[:-1] if record[step] != "done"]
        if unknown := set(record) - {*STEPS, ""}:
            wrong.append(f"recorded steps that nobody knows: {unknown}")
        whole = len(steps) == len(STEPS) and record[steps[-1]] == "done"
        if record.get("") == "closed" and not whole:
            wrong.append(f"the claim is closed, and recorded are {steps}")
        return wrong

    def _of_tables(self, record: dict[str, str], tables: set[str]) -> list[str]:
        old = {"users", "members", "knowledge_bases", "notes"}
        made = {"credentials", "model_configs"}
        wrong = []
        if (there := made & tables) != (made if record.get("tables") == "done" else set()):
            wrong.append(f"made tables: {there}, recorded: {record.get('tables')}")
        if ("config_backup" in tables) != ("backup" in record):
            wrong.append(f"tables {tables}, and the backup is {record.get('backup')}")
        undo = {name for name in tables if name.startswith(UNDO)}
        if undo and not {"members", "drop"} & set(record):
            wrong.append(f"undo tables that no recorded step explains: {undo}")
        if missing := old - tables:
            wrong.append(f"tables are gone: {missing}")
        if strange := tables - old - made - undo - {"config_backup", RECORD}:
            wrong.append(f"tables that nobody explains: {strange}")
        return wrong

    def _old(self, record: dict[str, str], tables: set[str]) -> list[str]:
        """Every old row is there for a reader of the old tables; the column, or else all of its values."""
        wanted = {number: row[:2] for number, row in self.library.bases.items()}
        texts = {number: row[2] for number, row in self.library.bases.items()}
        found = {one[0]: one[1:] for one in self.relations.rows("SELECT id, user_id, name FROM knowledge_bases")}
        wrong = [] if found == wanted else ["rows of knowledge_bases are lost or changed"]
        there = "embedding_config" in self.relations.columns("knowledge_bases")
        if there != (record.get("drop") != "done"):
            wrong.append(f"column embedding_config: {there}, recorded: {record.get('drop')}")
        cast = "embedding_config" if self.relations.sqlite else "embedding_config::text"
        if there and dict(self.relations.pairs(f"SELECT id, {cast} FROM knowledge_bases")) != texts:
            wrong.append("settings of knowledge bases are lost or changed")
        if not there:
            saved = {
                name for name in tables if name.startswith(UNDO) and "embedding_config" in self.relations.columns(name)
            }
            values = [dict(self.relations.pairs(f"SELECT id, {cast} FROM {name}")) for name in saved]
            present = {number: text for number, text in texts.items() if text is not None}
            if not any({n: text for n, text in one.items() if text is not None} == present for one in values):
                wrong.append(f"the values of the dropped column are in no undo table: {saved}")
        if "config_backup" in tables:
            kept = dict(self.relations.pairs(f"SELECT id, {cast} FROM config_backup"))
            if not kept.items() <= texts.items() or (record.get("backup") == "done" and kept != texts):
                wrong.append(f"the backup holds {len(kept)} rows, and is {record.get('backup')}")
        return wrong

    def _tokens(self, record: dict[str, str]) -> list[str]:
        found = {
            user: under(text, {"first": FIRST}) for user, text in self.relations.pairs("SELECT id, token FROM users")
        }
        if {user: text for user, (_, text) in found.items()} != self.tokens:
            return ["tokens of users are lost or changed"]
        return _mixed("token", {key for key, text in found.values() if text is not None}, "plain", "first", record)

    def _credentials(self, record: dict[str, str]) -> list[str]:
        rows = self.relations.rows("SELECT id, user_id, kind, provider, api_key FROM credentials")
        keys, named, wrong = set[str](), dict[str, tuple[Any, ...]](), list[str]()
        for one, user, kind, provider, text in rows:
            key, plain = under(text, {"first": FIRST, "second": SECOND})
            keys.add(key)
            named[_id(one)] = (user, kind, provider, plain)
        if "plain" in keys:
            wrong.append("a credential is not encrypted with either key")
        wanted = {what for what, _ in self.configs.values()}
        if len(set(named.values())) != len(named) or not set(named.values()) <= wanted:
            wrong.append("credentials are doubled, or of nobody")
        found = {
            (number, kind): (named.get(_id(one)), model)
            for number, kind, one, model in self.relations.rows(
                "SELECT kb_id, kind, credential_id, model FROM model_configs"
            )
        }
        if not found.items() <= self.configs.items():
            wrong.append("settings are changed, or of nobody, or without their credential")
        if record.get("fill") == "done" and (found != self.configs or set(named.values()) != wanted):
            wrong.append(f"fill is done, and {len(found)} of {len(self.configs)} settings are there")
        if "fill" not in record and rows and not self.goes_back():
            wrong.append("fill is not recorded, and has made rows")
        for one, what in named.items():
            if self.ids.setdefault(what, one) != one:
                wrong.append("the id of a credential is another one than before")
        return wrong + (_mixed("rotate", keys, "first", "second", record) if keys else [])

    def _members(self, record: dict[str, str]) -> list[str]:
        found = dict(self.relations.pairs("SELECT id, label FROM members"))
        before = {1: "user 1", 1000: "somebody else's"}
        after = before | {user: f"user {user}" for user in self.tokens}
        if not before.items() <= found.items() <= after.items():
            return ["members are lost, changed, or of nobody"]
        if found != {None: before, "done": after}.get(record.get("members"), found):
            return [f"members: {len(found)} rows, recorded: {record.get('members')}"]
        return []


def _id(value: Any) -> str:
    return str(uuid.UUID(str(value)))


def _mixed(step: str, keys: set[str], before: str, after: str, record: dict[str, str]) -> list[str]:
    """Values under two keys: only while the record says that the step is under way."""
    wanted = {None: {before}, "done": {after}}.get(record.get(step), {before, after})
    return [] if keys <= wanted else [f"{step}: values are under {keys}, recorded: {record.get(step)}"]
