"""Every command in README.md and docs/ is run, or stands below with the reason why it cannot be run here (issue 7)."""

from __future__ import annotations

import base64
import json
import runpy
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner import errors
from runner.demo.credentials_world import PostgreSQL
from runner.demo.forge import Forge
from runner.embedders.hash import hash_vectors
from runner.points import CollectionSchema, Distance, IdKind, Payloads, PointBatch, VectorField
from tests import pages, servers
from tests.e2e.training import TABLES
from tests.e2e.workspace import Workspace
from tests.pages import PAGES, Command, Reader, blocks, commands, complaints, inline, vecrun

#: (page, or * for all, what a command begins with, why it is not run). Its words are checked all the same.
LEFT_OUT = [
    ("*", "pip install", "needs a package index"),
    ("*", "make", "the targets are checked; what they do has tests of its own"),
    ("docs/tutorial.md", "python3 -m venv", "makes another virtual environment"),
    (
        "docs/howto/backups.md",
        "vecrun backup check /mnt/",
        "names a folder of another host; the others of its kind are run",
    ),
    ("docs/howto/backups.md", "psql", "needs a database named app on this host"),
    ("docs/howto/migrate-a-relational-database.md", "export CREDENTIALS_KEY", "the world of the page has one"),
    ("README.md", "export VECRUN_", "needs PostgreSQL and Redis; tests/e2e/test_workers.py has them"),
    ("README.md", "vecrun worker", "as above"),
    ("README.md", "vecrun apply jobs/support-kb.yaml --auto-approve --detach", "as above"),
    ("README.md", "vecrun status support-kb --watch", "as above"),
    ("docs/howto/run-workers.md", "vecrun", "as above"),
    ("docs/howto/run-workers.md", "while read", "begins the way with Compose; tests/test_deploy.py checks its files"),
    ("docs/howto/run-workers.md", "chmod 600 .env", "as above"),
    ("docs/howto/run-workers.md", "docker", "needs a container daemon"),
    ("docs/howto/run-workers.md", "useradd", "needs root, and changes the host"),
    ("docs/howto/run-workers.md", "python3 -m venv", "as above"),
    ("docs/howto/run-workers.md", "/usr/local/lib/vecrun/bin/pip", "as above"),
    ("docs/howto/run-workers.md", "install -m", "as above"),
    ("docs/howto/run-workers.md", "systemctl", "needs systemd and root"),
    ("docs/howto/run-workers.md", "kubectl", "needs a cluster"),
    ("docs/howto/state.md", "for ", "needs jq, and a second place; tests/e2e/test_keeping.py moves documents"),
]


def left_out(command: Command) -> bool:
    return any(page in ("*", command.page) and command.text.startswith(begin) for page, begin, _ in LEFT_OUT)


ALL = [command for page in PAGES for block in blocks(page) for command in commands(block)]


def test_there_are_commands_and_each_block_says_what_it_holds() -> None:
    assert len(ALL) > 60
    unknown = [f"{block.page}:{block.line}" for page in PAGES for block in blocks(page)
               if block.language not in pages.SHELL | pages.OTHER]  # fmt: skip
    assert not unknown, "name the language: sh for commands, console for commands with their output, text for none"


def test_the_words_of_every_command_exist() -> None:
    """Also of those that are not run, and of those in the middle of a sentence."""
    told = [*ALL, *(command for page in PAGES for command in inline(page))]
    assert {f"{command.place}: {wrong}" for command in told for wrong in complaints(command.text)} == set()


@pytest.mark.parametrize(
    "text",
    [
        "vecrun plann x", "vecrun plan x --nope", "vecrun -x plan", "make nothing", "vecrun state lst", "python -m bench.nothing",
        "pip install 'vecrun[nope]'", "docker compose run --rm vecrun statuss x", "kubectl apply -f deploy/nowhere.yaml",
        "for n in $(vecrun state lits); do vecrun state list; done", "vecrun worker --processez 3 &",
        "vecrun init x && vecrun valdate",
    ],
)  # fmt: skip
def test_a_slip_in_a_command_is_seen(text: str) -> None:
    assert complaints(text)


def test_what_is_left_out_is_still_there_and_on_a_page_that_is_not_run_in_vain() -> None:
    stale = [
        entry
        for entry in LEFT_OUT
        if not any(entry[0] in ("*", command.page) and command.text.startswith(entry[1]) for command in ALL)
    ]
    assert stale == []
    homeless = {command.page for command in ALL if not left_out(command)} ^ set(WORLDS)
    assert homeless == set(), "a page has commands and no world, or a world and no commands"


@pytest.mark.parametrize(
    ("shown", "printed", "missing"),
    [
        (["a", "b"], "a\nb\n", None), (["a", "…"], "a\nb\n", None), (["a", "…", "c …"], "a\nb\nc 12", None), (["a"], "b", "a"),
        (["a", "c"], "a\nb\nc", "c"), (["a", "…", "d"], "a\nb\nc", "d"), (["b", "a"], "a\nb", "b"),
        (["a"], "a\nb", "(the end: more was printed)"),
    ],
)  # fmt: skip
def test_output_is_compared(shown: list[str], printed: str, missing: str | None) -> None:
    assert pages.not_shown(shown, printed) == missing


# -- a page at a time, in a world like the one that it speaks of ------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The current folder and the environment of a page are its own; secrets of one are not remembered for the next."""
    monkeypatch.chdir(tmp_path)
    for name in ("VECRUN_ENV", "VECRUN_DATABASE", "VECRUN_REDIS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(errors, "_SECRETS", type(errors._SECRETS)())


@pytest.mark.parametrize("page", sorted({command.page for command in ALL if not left_out(command)}))
def test_a_page_can_be_followed(page: str, request: pytest.FixtureRequest) -> None:
    WORLDS[page](request).follow(page, left_out)


def settings(connections: dict[str, Any], **more: Any) -> Workspace:
    """A workspace in the current folder. Where a page has servers, it has files stores of the same name."""
    ws = Workspace(Path.cwd())
    body = {"apiVersion": "vecrun/v1", "kind": "Workspace", "connections": connections, "limits": {"retry_delay": 0.01}}
    ws.write("vecrun.yaml", json.dumps(body | more))
    return ws


def move() -> Workspace:
    """The support-kb of README, its job included."""
    names = ("milvus-prod", "qdrant-prod")
    ws = settings({name: {"type": "files", "path": f"./{name}"} for name in names})
    ws.fill(60, store="milvus-prod", name="kb_support")
    reader = Reader()
    for block in blocks("README.md"):
        if "name: support-kb" in block.text:
            reader.save(block)
    return ws


def readme(_: pytest.FixtureRequest) -> Reader:
    return Reader(before={"vecrun connections test": move})


def migrate(_: pytest.FixtureRequest) -> Reader:
    move()
    return Reader()


def policies(_: pytest.FixtureRequest) -> Reader:
    """The rules of the page, but for the window: it would be closed now and then."""
    ws = move()
    rules, drift = (
        yaml.safe_load(block.text) for block in blocks("docs/howto/policies.md") if block.language == "yaml"
    )
    assert rules["policies"]["rules"][0].pop("window")
    ws.write("vecrun.yaml", json.dumps(json.loads((ws.root / "vecrun.yaml").read_text()) | rules | drift))
    return Reader(ends={"vecrun lint --strict": [2]})


def tutorial(_: pytest.FixtureRequest) -> Reader:
    return Reader(ends={"vecrun apply plans/handbook.json": [1, 0, 12]})


def state(_: pytest.FixtureRequest) -> Reader:
    ws = move()
    assert vecrun("apply", "jobs/support-kb.yaml", "--auto-approve").exit_code == 0

    def somebody_holds_it() -> None:
        """The job's lock, for the seventh time."""
        with ws.context().ledger() as ledger:
            while (lease := ledger.acquire(["job:support-kb"], "r-other", 60)).token < 7:
                ledger.release(lease)

    return Reader(before={"vecrun lock list": somebody_holds_it})


def reembed(_: pytest.FixtureRequest) -> Reader:
    """A knowledge base of 30 texts with vectors of 8 numbers, which is to get 16; both models are hashes."""
    ws = settings(
        {"kb": {"type": "files", "path": "./kb"}, "app-db": {"type": "sql", "url": "sqlite:///app.db"}},
        models={
            "minilm": {"provider": "hash", "model": "old", "dimension": 8},
            "large": {"provider": "hash", "model": "new", "dimension": 16},
        },
    )
    texts = {4700 + n: f"refund after {n} days" if n in (11, 12) else f"page {n} of the manual" for n in range(30)}
    texts |= {4711: "refund after 30 days", 4712: "a refund after 30 days", 4720: ""}  # an empty one fails
    points(ws, "support", texts, [{"text": text, "updated_at": n} for n, text in enumerate(texts.values())], "old")
    with sqlite3.connect("app.db") as db:
        db.execute("CREATE TABLE chunks (id INTEGER PRIMARY KEY, vector_id TEXT, embedding_model_version TEXT)")
        db.execute("CREATE TABLE knowledge_bases (id INTEGER PRIMARY KEY, embedding_model_info JSON)")
        db.execute("INSERT INTO knowledge_bases VALUES (7, '{\"dimension\": 8}')")
        db.executemany(
            "INSERT INTO chunks (vector_id, embedding_model_version) VALUES (?, 'hash:old:8')",
            [(str(n),) for n in texts],
        )
    db.close()

    def edit(number: int, name: str = "") -> None:
        """A text changes, its vector does not."""
        with ws.store("kb") as store:
            name = name or store.aliases()["support-live"]
            held = store.fetch(name, [number])
            changed = [item | {"text": f"another text {number}", "updated_at": 99} for item in held.payloads.dicts]
            store.upsert(name, PointBatch(held.ids, held.vectors, Payloads(changed)))

    def again() -> None:
        assert vecrun("apply", "jobs/better-model.yaml", "--auto-approve", "--unpin").exit_code == 0
        edit(4703)

    return Reader(
        before={
            "vecrun retry-failed better-model": lambda: edit(4720, "support"),
            "vecrun apply jobs/edits.yaml --auto-approve": again,
            "vecrun plan jobs/edits.yaml --detailed-exitcode": lambda: edit(4704),
        },
        ends={
            "vecrun apply plans/better-model.json": [3],
            "vecrun plan jobs/edits.yaml --detailed-exitcode": [2],
        },
    )


def points(ws: Workspace, name: str, texts: dict[int, str], payloads: list[dict[str, Any]], model: str) -> None:
    """A collection of kb with vectors of these texts."""
    vectors = (VectorField(name="", dimension=8, distance=Distance.COSINE),)
    schema = CollectionSchema(name=name, id_kind=IdKind.INT, vectors=vectors)
    with ws.store("kb") as store:
        store.create(schema)
        store.upsert(name, PointBatch(list(texts), {"": hash_vectors([*texts.values()], 8, model)}, Payloads(payloads)))
        store.finish(schema)


def documents(_: pytest.FixtureRequest) -> Reader:
    """Six documents of two chunks each; every other one is acme's. A contract forbids that the first one goes."""
    ws = settings(
        {
            "kb": {"type": "files", "path": "./kb"}, "app-db": {"type": "sql", "url": "sqlite:///app.db"},
            "library": {"type": "folder", "path": "./files"},
        }
    )  # fmt: skip
    texts = {n: f"part {n % 2} of document {n // 2}" for n in range(12)}
    points(ws, "support", texts, [{"document_id": n // 2, "text": text} for n, text in texts.items()], "")
    with sqlite3.connect("app.db") as db:
        db.execute(
            "CREATE TABLE documents (id INTEGER PRIMARY KEY, owner, title, object_key, metadata JSON, tags JSON)"
        )
        db.execute("CREATE TABLE chunks (id INTEGER PRIMARY KEY, document_id, vector_id TEXT, content, position)")
        db.execute("CREATE TABLE contracts (document_id REFERENCES documents (id))")
        for n in range(6):
            ws.write(f"files/{n}.txt", texts[2 * n])
            db.execute(
                "INSERT INTO documents VALUES (?, ?, ?, ?, '{}', '[]')",
                (n, ("acme", "globex")[n % 2], f"Document {n}", f"{n}.txt"),
            )
        db.executemany(
            "INSERT INTO chunks VALUES (?, ?, ?, ?, ?)", [(n, n // 2, str(n), texts[n], n % 2) for n in texts]
        )
        db.execute("INSERT INTO contracts VALUES (0)")
    db.close()

    def the_contract_ends() -> None:
        with sqlite3.connect("app.db") as db:
            db.execute("DELETE FROM contracts")
        db.close()

    return Reader(
        before={"vecrun retry-failed forget-acme": the_contract_ends},
        ends={"vecrun apply plans/forget-acme.json": [3]},
    )


def backups(request: pytest.FixtureRequest) -> Reader:
    """LangChain's tables in a real PostgreSQL."""
    url = request.getfixturevalue("pg_database")
    settings(
        {"app-db": {"type": "sql", "url": "${env:VECRUN_TEST_APP}"}, "backups": {"type": "folder", "path": "./backups"}}
    )
    Path("backups").mkdir()
    request.getfixturevalue("monkeypatch").setenv("VECRUN_TEST_APP", url)
    key = "6f1f8f1e-0000-4000-8000-000000000001"
    servers.sql(
        url, *TABLES, f"INSERT INTO langchain_pg_collection VALUES ('{key}', 'ddl')",
        f"INSERT INTO langchain_pg_embedding SELECT n, '{key}', '[1,2,3]', 'text ' || n, '{{}}' FROM generate_series(1, 9) n",
    )  # fmt: skip

    def another_backup() -> None:
        """The one before was rolled back."""
        assert vecrun("apply", "jobs/training-backup.yaml", "--auto-approve", "--unpin").exit_code == 0

    return Reader(before={"vecrun backup list training-backup": another_backup})


def relational(request: pytest.FixtureRequest) -> Reader:
    """Three knowledge bases of two users in a real PostgreSQL, one of them without an API key."""
    url = request.getfixturevalue("pg_database")
    settings({"app-db": {"type": "sql", "url": "${env:VECRUN_TEST_APP}"}})
    patch = request.getfixturevalue("monkeypatch")
    key = base64.b64encode(b"k" * 32).decode()
    for name, value in {"VECRUN_TEST_APP": url, "CREDENTIALS_KEY": key, "NEW_CREDENTIALS_KEY": "n" * 32}.items():
        patch.setenv(name, value)
    given = {"provider": "openai", "api_key": "sk-one", "model": "m"}
    rows = [
        {"embedding": given, "llm": given},
        {"embedding": given},
        {"embedding": {"provider": "openai", "model": "m"}},
    ]
    servers.sql(
        url,
        "CREATE TABLE knowledge_bases (id bigint PRIMARY KEY, user_id bigint, name text, embedding_config json)",
        *(
            f"INSERT INTO knowledge_bases VALUES ({n}, {n % 2}, 'kb', '{json.dumps(row)}')"
            for n, row in enumerate(rows)
        ),
    )

    def by_hand() -> None:
        servers.sql(url, "CREATE INDEX kb_names ON knowledge_bases (name)")

    def the_application_reads() -> None:
        """With the function that the page shows."""
        api_key = runpy.run_path("read_credential.py")["api_key"]
        stored = PostgreSQL(url).ask("SELECT api_key FROM model_access_credentials")
        assert [api_key(row[0]) for row in stored] == ["sk-one"] * 3

    return Reader(
        before={
            "vecrun rollback model-credentials": the_application_reads,
            "vecrun stamp jobs/search-index.yaml": by_hand,
        }
    )


def pull_requests(request: pytest.FixtureRequest) -> Reader:
    """A branch with the job of README, in a repository with a remote and a host."""
    ws = move()
    ws.write(".gitignore", "/milvus-prod/\n/qdrant-prod/\n/state/\n/plans/\n")
    job = ws.root / "jobs" / "support-kb.yaml"
    text = job.read_text()
    job.unlink()

    def git(*words: str) -> None:
        person = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main")
        subprocess.run(["git", *person, *words], check=True, capture_output=True)

    def push(message: str) -> None:
        for words in (
            ["add", "-A"],
            ["commit", "-q", "-m", message],
            ["push", "-q", "origin", "HEAD"],
            ["fetch", "-q"],
        ):
            git(*words)

    git("init", "-q", "--bare", "remote.git")
    git("init", "-q")
    git("remote", "add", "origin", "remote.git")
    ws.write(".git/info/exclude", "/remote.git/\n")
    push("a workspace")
    git("checkout", "-q", "-b", "change")
    job.write_text(text)
    push("a job")
    forge = Forge(ws.root / "remote.git", {"a-token": "github-actions[bot]"})
    forge.__enter__()
    request.addfinalizer(lambda: forge.__exit__())
    number = forge.open("change")
    patch = request.getfixturevalue("monkeypatch")
    given = {"GITHUB_API_URL": forge.url, "GITHUB_REPOSITORY": "o/r", "GITHUB_TOKEN": "a-token"}
    for name, value in (given | {"GITHUB_REF": f"refs/pull/{number}/merge"}).items():
        patch.setenv(name, value)
    for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_EVENT_PATH"):
        patch.delenv(name, raising=False)
    return Reader()


WORLDS: dict[str, Callable[[pytest.FixtureRequest], Reader]] = {
    "README.md": readme,
    "docs/howto/backups.md": backups,
    "docs/howto/documents.md": documents,
    "docs/howto/migrate.md": migrate,
    "docs/howto/migrate-a-relational-database.md": relational,
    "docs/howto/policies.md": policies,
    "docs/howto/pull-requests.md": pull_requests,
    "docs/howto/reembed.md": reembed,
    "docs/howto/state.md": state,
    "docs/tutorial.md": tutorial,
}
