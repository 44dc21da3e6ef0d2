"""The shipped jobs about credentials, as they stand in jobs/examples: forward, verified, dropped, rotated, and back (E1, E2, E3).

Credentials are read with the package cryptography alone, and compared with what the settings meant.
"""

from __future__ import annotations

import base64
import json
import re
import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import Result
from cryptography.exceptions import InvalidTag

from runner.demo.credentials_world import Settings, SQLite, read, settings
from runner.plan import RECORD
from tests.e2e.workspace import REPOSITORY, Workspace, run

FILES = JOB, ROTATE = "jobs/examples/model-credentials.yaml", "jobs/examples/rotate-credentials-key.yaml"
KEY, NEW_KEY = (bytes([*range(first, first + 32)]) for first in (0, 100))
SETTINGS = """\
apiVersion: vecrun/v1
kind: Workspace
connections:
  app-db: {type: sql, url: "sqlite:///app.db"}
"""
SKIP, DROP = ("--var", "malformed=skip"), ("--var", "drop_column=true")
ACCEPTED = "  accept:\n    - {code: VD107, reason: The owners were told.}\n"


class Bases:
    """A workspace with the shipped jobs, and 140 knowledge bases of 40 users in SQLite."""

    def __init__(self, root: Path) -> None:
        self.ws = Workspace(root)
        self.ws.write("vecrun.yaml", SETTINGS)
        for name in FILES:
            self.ws.write(name, (REPOSITORY / name).read_bytes())
        self.made: Settings = settings(broken_json=True, bases=140)
        self.world = SQLite(root / "app.db")
        self.world.fill(self.made)
        self.old = self.world.dump()

    def dump(self) -> str:
        """Without the record, which says which run was there last."""
        return "\n".join(line for line in self.world.dump().splitlines() if RECORD not in line)

    def apply(self, job: str, *words: str) -> Result:
        return run("apply", job, "--auto-approve", *words)

    def applied(self, *words: str) -> None:
        found = self.apply(JOB, *SKIP, *words)
        assert found.exit_code == 0, found.output

    def back(self, job: str = "model-credentials") -> None:
        found = run("rollback", job, "--auto-approve")
        assert found.exit_code == 0, found.output


@pytest.fixture
def bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bases:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CREDENTIALS_KEY", base64.b64encode(KEY).decode())
    monkeypatch.setenv("NEW_CREDENTIALS_KEY", NEW_KEY.hex())
    return Bases(tmp_path)


def test_forward_and_back(bases: Bases) -> None:
    """Each knowledge base uses what it used; equal credentials of one user are one row; users never share one; settings that cannot
    be used are listed with their knowledge base (E1, E2)."""
    bases.applied()
    assert read(bases.world, KEY) == bases.made.used
    assert bases.world.ask("SELECT count(*) FROM model_access_credentials") == [(bases.made.distinct,)]
    assert bases.made.distinct < len(bases.made.used)

    owners = defaultdict(set)
    for one in bases.made.used.values():
        owners[one.api_key].add(one.user)
    assert max(map(len, owners.values())) > 5, "some companies give one API key to several users"
    uses = "SELECT a.id, k.user_id, a.user_id FROM kb_model_configs c JOIN knowledge_bases k ON k.id = c.kb_id JOIN model_access_credentials a ON a.id = c.credential_id"
    assert all(user == owner for _, user, owner in bases.world.ask(uses))
    with closing(sqlite3.connect(bases.world.path)) as file:
        assert file.execute("PRAGMA foreign_key_check").fetchall() == []
    clear = {row[0] for row in bases.world.ask("SELECT api_key FROM model_access_credentials")}
    assert not clear & bases.made.keys

    items = json.loads(run("failures", "model-credentials", "--json").stdout)["items"]
    left = {int(item["item"]): item["error"] for item in items}
    assert left.keys() == bases.made.wrong.keys()
    assert all(wrong in left[base] for base, wrong in bases.made.wrong.items())

    assert run("verify", "model-credentials").exit_code == 0
    assert run("plan", JOB, *SKIP, "--detailed-exitcode").exit_code == 0
    bases.back()
    assert bases.world.dump() == bases.old


def test_the_old_column_is_dropped_later_and_comes_back(bases: Bases) -> None:
    """A step that was added is planned alone. What was left out would be lost, so that is accepted first (E2)."""
    bases.applied()
    before = bases.dump()
    refused = bases.apply(JOB, *SKIP, *DROP)
    assert refused.exit_code == 1, refused.output
    assert "VD107" in refused.output
    assert bases.dump() == before

    bases.ws.write(JOB, (REPOSITORY / JOB).read_text().replace("  accept:\n", ACCEPTED))
    planned = json.loads(run("plan", JOB, *SKIP, *DROP, "--json").stdout)
    assert {step["name"] for step in planned["plan"]["steps"]} == {"drop"}
    bases.applied(*DROP)
    columns = [row[0] for row in bases.world.ask("SELECT name FROM pragma_table_info('knowledge_bases')")]
    assert columns == ["id", "user_id", "name"]
    assert read(bases.world, KEY) == bases.made.used

    bases.back()
    assert bases.dump() == before
    bases.back()
    assert bases.world.dump() == bases.old


def test_what_is_refused_changes_nothing(bases: Bases, monkeypatch: pytest.MonkeyPatch) -> None:
    """Malformed settings, unless the job says otherwise (E1); a key of 31 bytes, which the error does not show (E3)."""
    refused = bases.apply(JOB)
    assert refused.exit_code == 1, refused.output
    lines = [line for line in refused.output.splitlines() if "VX244" in line]
    for base, wrong in bases.made.wrong.items():
        assert any(wrong in line and re.search(rf"\b{base}\b", line) for line in lines)

    short = base64.b64encode(KEY[:31]).decode()
    monkeypatch.setenv("CREDENTIALS_KEY", short)
    for words in (("plan", JOB), ("apply", JOB, "--auto-approve")):
        found = run(*words, *SKIP)
        assert found.exit_code == 1
        assert "32 bytes" in found.output
        assert short not in found.output
    assert bases.world.dump() == bases.old


def test_another_key_and_back(bases: Bases) -> None:
    """After the rotation the new key reads every credential and the old one none; after its rollback the other way round (E3)."""
    bases.applied()
    found = bases.apply(ROTATE)
    assert found.exit_code == 0, found.output
    assert read(bases.world, NEW_KEY) == bases.made.used
    with pytest.raises(InvalidTag):
        read(bases.world, KEY)
    bases.back("rotate-credentials-key")
    assert read(bases.world, KEY) == bases.made.used
    with pytest.raises(InvalidTag):
        read(bases.world, NEW_KEY)
