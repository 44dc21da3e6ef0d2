"""A workspace with one job that migrates a small relational database: people whose settings stand in a column of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import Result

from runner import commands
from runner.plan import Plan
from tests.e2e.relations import Relations
from tests.e2e.workspace import Workspace, run

KEY = "0123456789abcdef0123456789abcdef"
HEAD = """\
apiVersion: vecrun/v1
kind: SqlMigration
metadata: {name: move}
spec:
  connection: app
"""
KEYS = '  keys: {main: {secret: "${env:MIGRATION_KEY}"}}\n'
TABLES = """\
    - name: tables
      check: [{name: everybody has a name, query: "SELECT count(*) FROM people WHERE name = ''"}]
      create_tables:
        - name: accounts
          columns:
            - {name: id, type: uuid, primary_key: true}
            - {name: login, type: string(40), nullable: false}
            - {name: secret, type: text, nullable: false}
"""
COPY = """\
    - name: copy
      back_up: {table: people, columns: [settings], to: people_backup}
      verify: [{name: all are copied, query: SELECT count(*) FROM people_backup, same_as: SELECT count(*) FROM people}]
"""
ACCOUNTS = """\
    - name: accounts
      map:
        from: people
        let: {all: row.settings | json}
        rules:
          - {rule: row.settings is not none, message: never asked, otherwise: ignore}
          - {rule: row.settings is json, message: no JSON, otherwise: OTHERWISE}
          - {rule: all.secret is string, message: no secret, otherwise: OTHERWISE}
        live: LIVE
        into:
          - table: accounts
            values:
              id: {uuid_from: [all.login, all.secret], key: main}
              login: all.login
              secret: {encrypt: all.secret, key: main}
      verify: [{name: accounts are there, query: "SELECT count(*) > 0 FROM accounts", expect: true}]
"""
DROP = """\
    - name: drop
      drop_column: {table: people, column: settings}
"""
LABEL = """\
    - name: label
      sql:
        forward: ["UPDATE people SET name = name || '!'"]
        rollback: ["UPDATE people SET name = substr(name, 1, length(name) - 1)"]
"""
ENCRYPT = """\
    - name: encrypt
      encrypt: {table: people, columns: [name], key: main}
"""
ALL = (TABLES, COPY, ACCOUNTS, DROP)


class Migration(Workspace):
    """The job is `move`; its database holds `people`."""

    relations: Relations

    @classmethod
    def begin(cls, root: Path, relations: Relations) -> Migration:
        url = relations.url
        settings = f"apiVersion: vecrun/v1\nkind: Workspace\nconnections:\n  app: {{type: sql, url: '{url}'}}\nlimits: {{workers: 1}}\n"
        made = cls.create(root, settings, "")
        assert isinstance(made, Migration)
        made.relations = relations
        return made

    def fill(self, count: int = 12, **_: Any) -> None:  # type: ignore[override]
        """People; every third pair shares a login and its secret."""
        self.relations.run("CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT NOT NULL, settings TEXT)")
        for number in range(1, count + 1):
            settings = json.dumps({"login": f"login{number % 4}", "secret": f"in-clear-{number % 4}"})
            self.add(number, None if number == count else settings)

    def add(self, number: int, settings: str | None) -> None:
        """One more of them."""
        self.relations.run("INSERT INTO people VALUES (%s, %s, %s)", number, f"person {number}", settings)

    def steps(self, *steps: str, otherwise: str = "fail", live: bool = False, accept: str = "") -> None:
        """Write the job."""
        body = "".join(steps).replace("OTHERWISE", otherwise).replace("LIVE", str(live).lower())
        keys = KEYS if "key: main" in body else ""
        accepted = f"  accept: [{{code: {accept}, reason: looked at}}]\n" if accept else ""
        self.write("jobs/move.yaml", f"{HEAD}{keys}{accepted}  steps:\n{body}")

    def vecrun(self, *args: str | Path) -> Result:
        """The command line in this process."""
        return run("-w", self.root, *args)

    def back(self) -> Plan:
        """The plan of a rollback."""
        return commands.plan_rollback(self.context(), "move")

    def roll_back(self) -> None:
        """Undo the newest run."""
        assert commands.apply(self.context(), self.back()).status == "completed"

    def record(self) -> dict[str, str]:
        """step -> status, out of the database; the claim is the empty step."""
        if "vecrun_migrations" not in self.relations.tables():
            return {}
        return dict(self.relations.rows("SELECT step, status FROM vecrun_migrations"))

    def codes(self, plan: Plan | None = None, *, blocking: bool | None = None) -> set[str]:
        """Codes of the findings of a plan."""
        made = self.plan() if plan is None else plan
        return {item.code for item in made.notices if blocking is None or item.blocking == blocking}
