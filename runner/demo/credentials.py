"""`vecrun demo --sql`: API keys in clear become encrypted credentials, and go back; on PostgreSQL, then on SQLite.

500 knowledge bases of 40 users, some of them with settings that are missing or wrong. An application that knows nothing of vecrun
reads every credential back, and after each rollback the database is dumped and compared, byte for byte.
"""

from __future__ import annotations

import base64
import os
import time
from collections import Counter
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import click

from runner.demo.credentials_world import BASES, PostgreSQL, Settings, SQLite, World, read, settings, shared
from runner.demo.stage import answer, empty, expect, postgres, printed, say, vecrun
from runner.state import write_atomically

#: jobs/examples has it for users; `make schemas` copies it here.
SHIPPED = (resources.files("runner.demo") / "model-credentials.yaml").read_text(encoding="utf-8")
JOB = "jobs/model-credentials.yaml"
NAME = "model-credentials"
SKIP = ("--var", "malformed=skip")
DROP = ("--var", "drop_column=true")
#: What the plan asks for before a column goes that holds settings which were left out.
ACCEPTED = """\
  accept:
    - code: VD107
      reason: Settings that were left out are on the list of the support team, and stand in embedding_config_backup.
"""

SETTINGS = """\
apiVersion: vecrun/v1
kind: Workspace

connections:
  app-db:
    type: sql
    url: ${env:VECRUN_DEMO_SQL_URL}    # the application's own database
"""


def run(directory: Path, bases: int = BASES) -> None:
    """Everything, with what a user would want to read on the way, of so many knowledge bases. Raises Failed when something is not
    as it should."""
    began = time.monotonic()
    directory = empty(directory)
    key = os.urandom(32)
    with postgres() as url:
        demo = Demo(directory, PostgreSQL(url), settings(broken_json=False, bases=bases), key)
        demo.begin()
        demo.refused()
        demo.forward()
        demo.back()
        demo.unaccepted()
        demo.without_the_column()
        demo.searched()
    (directory / "sqlite").mkdir()
    file = SQLite(directory / "sqlite" / "app.db")
    demo = Demo(directory / "sqlite", file, settings(broken_json=True, bases=bases), key)
    demo.begin()
    demo.applied(*SKIP)
    demo.expect_left_out()
    demo.back()
    demo.without_the_column()
    demo.searched()
    click.echo(
        f"\nAll of it took {time.monotonic() - began:.0f} s. The workspace is in {directory}: look at vecrun.yaml, jobs/, plans/ "
        "and state/."
    )
    click.echo("demo: ok")


@dataclass
class Demo:
    """One database, and the workspace for it."""

    directory: Path
    world: World
    made: Settings
    key: bytes
    old: str = ""  # dump of the database as it was

    def begin(self) -> None:
        """The database, the workspace with the shipped job, and the key."""
        for name, text in {"vecrun.yaml": SETTINGS, JOB: SHIPPED}.items():
            (self.directory / name).parent.mkdir(exist_ok=True)
            write_atomically(self.directory / name, text)
        os.environ["VECRUN_DEMO_SQL_URL"] = self.world.url
        os.environ["CREDENTIALS_KEY"] = base64.b64encode(self.key).decode()
        say(f"{self.world.name}: knowledge bases whose model settings hold API keys in clear")
        self.world.fill(self.made)
        self.old = self.world.dump()
        rows = self.made.rows
        users = len({owner for _, owner, _, _ in rows})
        click.echo(f"{len(rows)} knowledge bases of {users} users, {len(self.made.used):,} settings that can be used;")
        for wrong, count in sorted(Counter(self.made.wrong.values()).items()):
            click.echo(f"  {count:>3} with: {wrong}")
        click.echo(f"  {sum(text is None for *_, text in rows):>3} that were never configured")
        expect("the API keys stand in the database in clear", all(key in self.old for key in self.made.keys))

    def refused(self) -> None:
        """A key of 31 bytes, and malformed settings."""
        vecrun(self.directory, "validate")
        say("1. A key of 31 bytes is refused before anything is read")
        os.environ["CREDENTIALS_KEY"] = base64.b64encode(self.key[:31]).decode()
        text = self._printed("plan", JOB, code=1)
        expect("the error says how long a key is", "32 bytes" in text)
        os.environ["CREDENTIALS_KEY"] = base64.b64encode(self.key).decode()
        say("2. Settings that cannot be used stop the job, unless it says otherwise; each is named")
        text = self._printed("apply", JOB, "--auto-approve", code=1)
        expect("each of these knowledge bases is named", all(f" {base}" in text for base in self.made.wrong))
        self._expect_old()

    def forward(self) -> None:
        """The plan, a dry run, and the apply."""
        say("3. The plan, with those settings left out")
        plan = f"plans/{NAME}.json"
        text = self._printed("plan", JOB, *SKIP, "-o", plan)
        expect("the plan says how many credentials there will be", f"{self.made.distinct:,}" in text)
        say("All of it is done in a transaction that is rolled back")
        self._printed("apply", plan, "--dry-run")
        self._expect_old()
        say("And now for good")
        self.applied(plan)
        self.expect_left_out()
        say("Applied again, there is nothing to do")
        vecrun(self.directory, "plan", JOB, *SKIP, "--detailed-exitcode")
        vecrun(self.directory, "verify", NAME)

    def applied(self, *what: str) -> None:
        """Apply a plan or, with variables, the job; the application then reads every credential."""
        words = what if what[0].endswith(".json") else (JOB, *what)
        self._printed("apply", *words, "--auto-approve")
        self._expect_credentials()

    def back(self) -> None:
        """The rollback; the dump is the old one."""
        say(f"{self.world.name}: it is undone")
        self._printed("rollback", NAME, "--auto-approve")
        self._expect_old()

    def unaccepted(self) -> None:
        """The column is not dropped over settings that were left out."""
        say("The old column is to go as well, but holds settings that were left out")
        self._printed("apply", JOB, *SKIP, *DROP, "--unpin", "--auto-approve", code=1)
        self._expect_old()

    def without_the_column(self) -> None:
        """Once more, and the old column goes as well; then back again."""
        say(
            f"{self.world.name}: once more, and the old column goes as well. What was left out would be lost: the job accepts that"
        )
        write_atomically(self.directory / JOB, SHIPPED.replace("  accept:\n", ACCEPTED))
        self.applied(*SKIP, *DROP, "--unpin")
        row = self.world.ask("SELECT * FROM knowledge_bases ORDER BY id")[0]
        expect("the column is gone", row == self.made.rows[0][:3])
        self.back()

    def searched(self) -> None:
        """No API key and no encryption key in any file of the workspace."""
        database = self.directory / "app.db"
        files = [path for path in sorted(self.directory.rglob("*")) if path.is_file() and path != database]
        told = [path.name for path in files if self._holds(path.read_bytes())]
        expect(f"no file of the workspace holds an API key or the encryption key {told}", not told)
        click.echo(f"\n{len(files)} files of the workspace were searched for {len(self._secrets)} secrets: none")
        expect("the search finds what is there", self._holds(self.old.encode()))

    # -- what is expected ------------------------------------------------------------------------------------------------

    def _expect_old(self) -> None:
        expect("the database is byte for byte the old one", self.world.dump() == self.old)
        click.echo(f"{self.world.name} is byte for byte what it was: a dump of {len(self.old):,} bytes")

    def _expect_credentials(self) -> None:
        found = read(self.world, self.key)
        expect("each knowledge base uses what it used, for its own user", found == self.made.used)
        count, several = shared(self.world)
        expect("equal credentials of one user are one", count == self.made.distinct)
        click.echo(
            f"The application reads {len(found):,} settings of {len({base for base, _ in found})} knowledge bases and decrypts them with "
            f"the package cryptography: all as before.\nThey are {count:,} credentials; {several:,} are used more than once."
        )

    def expect_left_out(self) -> None:
        items = answer(self.directory, "failures", NAME)["items"]
        found = {int(item["item"]): str(item["error"]) for item in items}
        right = found.keys() == self.made.wrong.keys()
        expect(
            "every setting that was left out is listed",
            right and all(self.made.wrong[one] in found[one] for one in found),
        )
        click.echo(f"Left out and listed: {len(found)} knowledge bases, each with what is wrong")

    def _printed(self, *arguments: str, code: int = 0) -> str:
        text = printed(self.directory, *arguments, code=code)
        expect("no secret was printed", not self._holds(text.encode()))
        return text

    @property
    def _secrets(self) -> set[str]:
        return {base64.b64encode(self.key).decode(), self.key.hex()} | self.made.keys

    def _holds(self, data: bytes) -> bool:
        """Halves of a secret count, too: a file may have cut one."""
        return any(half.encode() in data for one in self._secrets for half in (one[3:23], one[-20:]))
