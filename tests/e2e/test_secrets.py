"""Secrets planted everywhere a user can put one are found nowhere (G1; issue 7: what must be shown, 3).

Every command runs in one workspace, first with everything right, then with passwords that are wrong and with servers that say back
what they were sent: HTTP, gRPC, Redis and PostgreSQL. All that commands print, write, send or record is searched.
"""

from __future__ import annotations

import base64
import html
import itertools
import json
import re
import socketserver
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import click
import grpc
import psycopg
import pytest
from click.testing import CliRunner

from runner import errors, metrics
from runner.cli import cli
from tests.e2e.knowledge import Knowledge, Server
from tests.e2e.pulls import TOKEN, Flow, opened
from tests.e2e.workspace import Workspace
from tests.embedding_server import EmbeddingServer

# Secrets, and how one is found ------------------------------------------------------------------------------------------

#: What each secret has in its middle: all that a URL, JSON, YAML, repr(), HTML, Markdown or a command line escapes.
HARD = "/+=%40&<>\"'\\|`*@:?#~ !"


def made(number: int, *, middle: str = HARD) -> str:
    """A secret that is like no other: 12 letters and digits, what is hard to quote, and 12 letters and digits."""
    return f"zQ{number:02}xW7kLm9v{middle}nR{number:02}tY3hPb5c"


class Secrets(dict[str, str]):
    """Name -> value. What is searched for are the ends of each, so that a half of one is found as well."""

    def found(self, data: bytes | str) -> set[str]:
        """Names of the secrets that `data` has, or a half of them: as they are, or in any escaped form. The ends are plain letters and
        digits, which percent encoding, JSON, repr() and HTML leave alone; base64 has three ways to begin."""
        text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
        low = text.lower()
        return {
            name for name, value in self.items() for part in (value[:12], value[-12:])
            if part.lower() in low or any(form in text for form in encoded(part))
        }  # fmt: skip


def encoded(text: str) -> Iterator[str]:
    """What base64 makes of `text`, wherever in a longer text it begins; without the letters that its neighbours decide about."""
    for before in range(3):
        whole = base64.b64encode(b"\0" * before + text.encode()).decode().rstrip("=")
        yield whole[-(-before * 8 // 6) : len(whole) - 1]


@pytest.mark.parametrize(
    "form",
    [
        str, quote, json.dumps, repr, lambda text: text[:12], lambda text: text[-14:], str.upper,
        lambda text: base64.b64encode(text.encode()).decode(),
        lambda text: base64.b64encode(f"user:{text}".encode()).decode(),
        lambda text: base64.urlsafe_b64encode(f"me:{text}:x".encode()).decode(),
    ],
)  # fmt: skip
def test_the_search_finds_every_form(form: Callable[[str], str]) -> None:
    secrets = Secrets(one=made(1), two=made(2))
    assert secrets.found(f"a {form(secrets['two'])} b".encode()) == {"two"}
    assert not secrets.found(form(made(3)))


@pytest.mark.parametrize("secret", [made(4), f"+{made(5)}", made(6, middle="\n\tü\U0001f600"), made(7, middle="")])
@pytest.mark.parametrize(
    "form",
    [
        str, quote, quote_plus, json.dumps, repr, html.escape, lambda text: json.dumps(repr(json.dumps(text).encode())),
        lambda text: quote(quote(text)), lambda text: html.escape(json.dumps(text)),
        lambda text: base64.b64encode(f"user:{text}".encode()).decode(),
        lambda text: base64.urlsafe_b64encode(f"me:{text}:x".encode()).decode(),
        lambda text: f"{json.dumps(text)[1:15]}...", lambda text: f"cut {repr(text)[1:16]}",
    ],
)  # fmt: skip
def test_every_form_is_taken_out(secret: str, form: Callable[[str], str]) -> None:
    errors.register_secret(secret)
    text = errors.redact(f"before {form(secret)}")
    assert text.startswith("before ")
    assert "***" in text
    assert not Secrets(one=secret.strip("+")).found(text)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("postgresql://me:p%40ss-word@host/db", "user me, password p@ss-word or p%40ss-word at host/db"),
        ("host=h user=me password = 'p\\'ss-word' dbname=db", "user me, password p'ss-word at host/db"),
        ("https://host/db?me=1&api_key=p-ss-word", "user me, password p-ss-word at host/db"),
    ],
)
def test_a_password_within_a_resolved_text_is_taken_out_alone(given: str, shown: str) -> None:
    errors.register_secret(given)
    text = errors.redact(shown)
    assert "ss-word" not in text
    assert text.startswith("user me, password ***")
    assert text.endswith(" at host/db")


# Servers that say back what they were sent ------------------------------------------------------------------------------


class Echo(socketserver.ThreadingTCPServer):
    """HTTP, Redis and PostgreSQL on one port. To HTTP it answers `status` with all it was sent, or 200 if `quiet`."""

    daemon_threads, allow_reuse_address = True, True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Echoes)
        self.port: int = self.server_address[1]
        self.status, self.quiet, self.cut = 400, False, 0
        self.got: list[bytes] = []
        self.bodies: list[bytes] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _Echoes(socketserver.StreamRequestHandler):
    server: Echo

    def handle(self) -> None:
        first = self.rfile.peek(8)[:8]
        if first[:1] == b"*":
            self._redis()
        elif first[:1] == b"\0":
            self._postgres()
        else:
            while self._http():
                pass

    def _http(self) -> bool:
        head = b"".join(iter(self.rfile.readline, b"\r\n")) if self.rfile.peek(1) else b""
        if not head:
            return False
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        body = self.rfile.read(int(length[1])) if length else b""
        self.server.got.append(head + body)
        self.server.bodies.append(body)
        said = (head + body).decode("latin-1")
        if self.server.cut:  # so long before the keys that a message of that length is cut in the middle of one
            keys = [line.partition(": ")[2] for line in said.splitlines() if re.match("(?i)auth|api-key|x-", line)]
            said = "x" * (self.server.cut - 20) + " ".join(key.removeprefix("Bearer ") for key in keys)
        answer = {"error": {"message": said}, "message": said, "detail": said, "status": {"error": said}}
        data, status = json.dumps({} if self.server.quiet else answer).encode(), self.server.status
        if b"AWS4-HMAC" in head:
            said = said.replace("&", "&amp;").replace("<", "&lt;")
            data = f"<Error><Code>Nothing</Code><Message>{said}</Message></Error>".encode()
        status = 200 if self.server.quiet else status
        kind = "text/xml" if data.startswith(b"<") else "application/json"
        self.wfile.write(
            f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
        )
        return True

    def _redis(self) -> None:
        said = b" ".join(self.rfile.read1(65_536).split())
        self.server.got.append(said)
        self.wfile.write(b"-WRONGPASS " + said + b"\r\n")

    def _postgres(self) -> None:
        """Asks for the password in clear text, and complains of it."""
        while int.from_bytes(self.rfile.peek(8)[4:8]) in (80_877_103, 80_877_104):  # TLS, GSS
            self.rfile.read(8)
            self.wfile.write(b"N")
        self.rfile.read(int.from_bytes(self.rfile.read(4)) - 4)
        self.wfile.write(b"R" + (8).to_bytes(4) + (3).to_bytes(4))
        self.rfile.read(1)
        password = self.rfile.read(int.from_bytes(self.rfile.read(4)) - 4).rstrip(b"\0")
        self.server.got.append(password)
        text = b"SFATAL\0C28P01\0Mpassword authentication failed: " + password + b"\0\0"
        self.wfile.write(b"E" + (len(text) + 4).to_bytes(4) + text)


@contextmanager
def grpc_echo() -> Iterator[tuple[int, list[str]]]:
    """A gRPC server that refuses every call with the metadata it was sent. Its port, and what it has said."""
    said: list[str] = []

    class Refuses(grpc.GenericRpcHandler):
        def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            text = " ".join(f"{key}={value!r}" for key, value in call.invocation_metadata)

            def refuse(_request: bytes, context: grpc.ServicerContext) -> bytes:
                said.append(text)
                context.abort(grpc.StatusCode.PERMISSION_DENIED, text)
                return b""

            return grpc.unary_unary_rpc_method_handler(refuse)

    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Refuses(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port, said
    finally:
        server.stop(0).wait()


# A workspace full of secrets ------------------------------------------------------------------------------------------------

#: Roles of PostgreSQL, each with a password of its own: a connection by parts, a URL, a URL of SQLAlchemy's, libpq's own form.
ROLES = ("parts", "url", "sqlalchemy", "libpq", "records")
#: One connection for each way to give a secret; those that no server here takes are refused, always.
SETTINGS = """\
apiVersion: vecrun/v1
kind: Workspace
connections:
  a: {type: files, path: ./a}
  b: {type: files, path: ./b}
  kb: {type: files, path: ./kb}
  app: {type: sql, url: "sqlite:///./app.db"}
  keep: {type: folder, path: ./backups}
  parts: {type: sql, url: "postgresql://parts:${env:P_PARTS}@/DB?host=${env:P_HOST}&port=${env:P_PORT}"}
  sqlalchemy: {type: sql, url: "${env:P_SQLALCHEMY}"}
  url: {type: pgvector, url: "${file:secrets/url}", connect_timeout: 2}
  libpq: {type: pgvector, url: "${env:P_LIBPQ}", connect_timeout: 2}
  s3: {type: s3, bucket: bucket, endpoint: "http://127.0.0.1:${env:P_HTTP}", region: us-east-1, timeout: 2,
       access_key_id: "${env:P_S3_ID}", secret_access_key: "${env:P_S3_KEY}", session_token: "${env:P_S3_TOKEN}"}
  qdrant: {type: qdrant, url: "http://127.0.0.1:${env:P_HTTP}", api_key: "${file:secrets/qdrant}", timeout: 2,
           prefer_grpc: false}
  weaviate: {type: weaviate, url: "http://127.0.0.1:${env:P_HTTP}", api_key: "${env:P_WEAVIATE}", timeout_seconds: 2,
             grpc_port: GRPC}
  milvus: {type: milvus, uri: "http://127.0.0.1:${env:P_GRPC}", token: "${env:P_MILVUS}", timeout: 1}
  milvus-user: {type: milvus, uri: "http://127.0.0.1:${env:P_GRPC}", user: root, password: "${env:P_MILVUS_USER}", timeout: 1}
models:
  old: {provider: hash, model: old, dimension: 8}
  new: {provider: openai, model: m, base_url: "http://127.0.0.1:${env:P_MODEL_PORT}/v1", api_key: "${env:P_MODEL}", dimension: 16,
        headers: {X-Gateway-Key: "${env:P_HEADER}"}, timeout: 2}
environments:
  server: {state: {database: "postgresql://records:${env:P_RECORDS}@/DB?host=${env:P_HOST}&port=${env:P_PORT}"}}
  team:
    state: {database: "postgresql://records:${env:P_RECORDS}@/DB?host=${env:P_HOST}&port=${env:P_PORT}"}
    broker: {url: "redis://default:${env:P_REDIS}@127.0.0.1:${env:P_HTTP}/0"}
notifications:
  - {webhook: "${env:P_HOOK}", secret: "${env:P_HOOK_KEY}"}
  - {apprise: "${env:P_CHAT}"}
ci: {signing_key: "${env:P_SIGNING}"}
limits: {retries: 1, retry_delay: 0.01}
"""
MOVE = """\
apiVersion: vecrun/v1
kind: VectorMigration
metadata: {{name: {name}}}
spec: {{source: {source}, target: {target}, collections: [{{from: kb, to: kb2}}]}}
"""
SAVE = """\
apiVersion: vecrun/v1
kind: VectorBackup
metadata: {{name: {name}}}
spec:
  tables: {{connection: {source}, names: [items]}}
  to: {{connection: {target}}}
"""
REMOTE = ("url", "qdrant", "weaviate", "milvus", "milvus-user")
#: Commands of a usual life, one after the other.
COMMANDS = """\
init fresh --ci github
schema Workspace
completion bash
lint
lint --json
validate
validate jobs/move.yaml --json
connections test
--debug connections test --json
notify test
--debug notify test --json
plan jobs/move.yaml -o plans/move.json
--debug plan jobs/change.yaml -o plans/change.json --json
plan jobs/save.yaml --format markdown
plan jobs/save.yaml --format html
--debug plan more/save-s3.yaml
show plans/move.json
show plans/move.json --format html
show plans/change.json --json
apply plans/move.json
--debug apply jobs/change.yaml --auto-approve --dry-run
--debug apply jobs/change.yaml --auto-approve
apply jobs/save.yaml --auto-approve --json
--debug apply more/save-s3.yaml --auto-approve
--debug apply jobs/save.yaml --auto-approve --env server
backup list save --json
backup list keep:save/vector_bak
--debug backup check save
--debug backup list s3:save-s3
--debug backup check s3:save-s3 --json
status
status change --json
runs --json
logs RUN
logs RUN --json
show RUN
show RUN --json
failures change --json
report change --format csv
report change --json
--debug verify move
--debug verify change --json
--debug drift
drift --json
drift --format markdown
--debug model-check jobs/change.yaml --json
--debug search kb text-1
--debug search live text-1 --model new --json
--debug retry-failed change --auto-approve
pause change --no-wait
cancel change --no-wait
resume change
state list --json
state show move --json
state history move
state pull move -o pulled.json
state push pulled.json --force
lock list --json
lock show job:move
lock release job:move
--debug ci plan --base origin/main --out plans/ci
--debug ci plan --base origin/main --out plans/ci2 --json
--debug ci comment plans/ci --pr 1
--debug ci apply plans/ci --json
status merged
--debug runs --env server
--debug status --env team --json
--debug workers --env team --json
--debug rollback move --auto-approve
--debug rollback change --auto-approve --json
state mv move moved
state rm moved --auto-approve
gc --dry-run --json
--debug gc --auto-approve
"""
#: Commands that do not run here, and where they do.
LEFT_OUT = {
    "demo": "makes a workspace of its own, without secrets",
    "stamp": "is for relational migrations: tests/e2e/test_sql_secrets.py",
    "worker": "runs until it is stopped, in processes of its own",
}


#: Those of COMMANDS that nothing keeps from their work.
DONE = (
    "apply plans/move.json",
    "--debug apply jobs/change.yaml --auto-approve",
    "apply jobs/save.yaml --auto-approve --json",
    "--debug apply jobs/save.yaml --auto-approve --env server",
    "notify test",
    "--debug verify move",
    "backup list save --json",
    "--debug ci plan --base origin/main --out plans/ci",
    "--debug ci comment plans/ci --pr 1",
    "--debug ci apply plans/ci --json",
    "--debug rollback move --auto-approve",
    "--debug gc --auto-approve",
)
#: What is there before secrets are changed, and what then is run, each against a server that says back what it was sent.
BEFORE = (
    "apply jobs/move.yaml --auto-approve",
    "apply jobs/change.yaml --auto-approve",
    "apply jobs/save.yaml --auto-approve",
)
BROKEN = """\
--debug connections test
--debug connections test --json
--debug notify test --json
--debug plan jobs/save.yaml --json
--debug plan more/save-s3.yaml
--debug backup check s3:save-s3 --json
--debug verify move --json
--debug drift --json
drift --format markdown
--debug apply jobs/save.yaml --auto-approve
--debug rollback move --auto-approve --json
--debug search live text-1 --model new --json
--debug search live text-1 --model new
--debug ci plan --base origin/main --out plans/ci --json
--debug ci apply plans/ci
--debug status --env server
--debug workers --env team --json
"""


@dataclass
class Planted:
    """The workspace, its secrets, and everything that commands have said so far."""

    flow: Flow
    echo: Echo
    receiver: Echo
    port_of_grpc: int
    heard: list[str]
    model: EmbeddingServer
    postgres: str
    monkeypatch: pytest.MonkeyPatch
    secrets: Secrets = field(default_factory=lambda: Secrets(github=TOKEN))
    said: list[tuple[str, int, str]] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def ws(self) -> Workspace:
        return self.flow.ws

    def new(self, name: str, **options: Any) -> str:
        """Another secret."""
        self.secrets[name] = made(next(self.numbers), **options)
        return self.secrets[name]

    def plant(self, when: str, host: str, port: int, model_port: int) -> dict[str, str]:
        """Put new secrets everywhere: PostgreSQL is at `host` and `port`. Role -> its password."""
        name = self.postgres.partition("?")[0].rpartition("/")[2]
        roles = {role: self.new(f"{role} {when}") for role in ROLES}
        at = f"/{name}?host={quote(host, safe='')}&port={port}"
        own = {key: self.new(f"{key} {when}") for key in ["S3_KEY", "S3_TOKEN", "WEAVIATE", "MILVUS", "MILVUS_USER", "MODEL", "HEADER", "REDIS", "HOOK_KEY", "SIGNING"]} | {"S3_ID": self.new(f"S3_ID {when}", middle="")}  # fmt: skip
        escaped = roles["libpq"].replace("\\", "\\\\").replace("'", "\\'")
        hook, chat, key = (quote(self.new(f"{what} {when}"), safe="") for what in ("hook", "chat", "chat key"))
        own |= {
            "PARTS": roles["parts"], "RECORDS": roles["records"], "HOST": host, "PORT": str(port),
            "SQLALCHEMY": f"postgresql+psycopg://sqlalchemy:{quote(roles['sqlalchemy'], safe='')}@{at}",
            "LIBPQ": f"host={host} port={port} dbname={name} user=libpq password = '{escaped}'",
            "HTTP": str(self.echo.port), "GRPC": str(self.port_of_grpc), "MODEL_PORT": str(model_port),
            "HOOK": f"http://127.0.0.1:{self.receiver.port}/services/{hook}?sig={hook}",
            "CHAT": f"json://me:{chat}@127.0.0.1:{self.receiver.port}/{key}",
        }  # fmt: skip
        for variable, value in own.items():
            self.monkeypatch.setenv(f"P_{variable}", value)
        self.ws.write("secrets/url", f"postgresql://url:{quote(roles['url'], safe='')}@{at}\n")
        self.ws.write("secrets/qdrant", self.new(f"qdrant {when}"))
        self.model.set(key=own["MODEL"])
        return roles

    def configure(self) -> None:
        """Roles, tables, collections, texts and jobs; the jobs in a pull request."""
        host = re.search(r"host=([^&]*)", self.postgres)
        assert host is not None
        roles = self.plant("right", host[1], 5432, int(self.model.root.rpartition(":")[2]))
        with psycopg.connect(self.postgres, autocommit=True) as db:
            for role, password in roles.items():
                db.execute(psycopg.sql.SQL("DROP ROLE IF EXISTS {}").format(psycopg.sql.Identifier(role)))
                db.execute(
                    psycopg.sql.SQL("CREATE ROLE {} LOGIN SUPERUSER PASSWORD {}").format(
                        psycopg.sql.Identifier(role), password
                    )
                )
            row = db.execute("SHOW hba_file").fetchone()
            assert row is not None
            path = Path(row[0])
            path.write_text(f"local all {','.join(ROLES)} scram-sha-256\n{path.read_text()}")
            db.execute("SELECT pg_reload_conf()")
            db.execute("CREATE TABLE items (id int PRIMARY KEY, text text)")
            db.execute("INSERT INTO items SELECT n, 'text' FROM generate_series(1, 20) n")
        name = self.postgres.partition("?")[0].rpartition("/")[2]
        self.ws.write("vecrun.yaml", SETTINGS.replace("DB?", f"{name}?").replace("GRPC}", f"{self.port_of_grpc}}}", 1)
                      .replace("grpc_port: GRPC", f"grpc_port: {self.port_of_grpc}"))  # fmt: skip
        self.ws.write(
            ".gitignore",
            "/a/\n/b/\n/kb/\n/state/\n/plans/\n/backups/\n/fresh/\n/secrets/\n/more/\n*.lock\n*.db\n/out\n",
        )
        self.ws.write("jobs/move.yaml", MOVE.format(name="move", source="a", target="libpq"))
        self.ws.write("jobs/merged.yaml", MOVE.format(name="merged", source="a", target="b"))
        self.ws.write("jobs/save.yaml", SAVE.format(name="save", source="parts", target="keep"))
        self.ws.write("more/save-s3.yaml", SAVE.format(name="save-s3", source="sqlalchemy", target="s3"))
        (self.ws.root / "backups").mkdir()
        kb = Knowledge(self.ws, Server(self.model.root))
        kb.fill(12)
        kb.job()
        self.flow.commit()
        self.flow.push()
        self.monkeypatch.setenv("GITHUB_OUTPUT", str(self.ws.root / "out"))
        self.monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(self.ws.root / "out.md"))

    def run(self, line: str) -> int:
        """One command, its answer kept; its exit code. RUN is the last run."""
        if "RUN" in line:
            found = CliRunner().invoke(cli, ["runs", "--json"])
            line = line.replace("RUN", json.loads(found.stdout)["items"][0]["run"])
        done = CliRunner().invoke(cli, line.split())
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise AssertionError(f"vecrun {line}: {done.exception!r}") from done.exception
        self.said.append((line, done.exit_code, done.output))
        return done.exit_code

    def all(self) -> None:
        """Every command."""
        for line in COMMANDS.splitlines():
            self.run(line)

    def breaks(self) -> None:
        """Other secrets, which nobody takes: whoever is asked says back what it was sent. More jobs are in the pull request."""
        self.plant("wrong", "127.0.0.1", self.echo.port, self.echo.port)
        self.receiver.quiet = False
        for name in REMOTE:
            self.ws.write(f"jobs/from-{name}.yaml", MOVE.format(name=f"from-{name}", source=name, target="b"))
        self.flow.commit()
        self.flow.push()

    def scrape(self) -> None:
        """What Prometheus is told."""
        with (
            self.ws.context().ledger() as ledger,
            closing(metrics.serve("127.0.0.1:0", ledger)) as server,
            urllib.request.urlopen(f"http://{server.address}/metrics", timeout=5) as reply,
        ):
            self.said.append(("metrics", 0, reply.read().decode()))

    def leaks(self) -> list[str]:
        """Where a secret is: in what commands said, in any file, in what was sent to receivers and to the pull request."""
        sent = [("a notification", body) for body in self.receiver.bodies]
        sent += [("a comment", str(item.body)) for item in self.flow.forge.said(1)]
        found = [(f"vecrun {line}", self.secrets.found(text), text) for line, _, text in self.said]
        found += [(name, self.secrets.found(data), data) for name, data in sent]
        for path in sorted(self.ws.root.rglob("*")):
            if path.is_file() and path.parent.name != "secrets":
                data = path.read_bytes()
                found.append((str(path.relative_to(self.ws.root)), self.secrets.found(data), data))
        return [f"{place}: {', '.join(sorted(names))}" for place, names, _ in found if names]


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pg_database: str) -> Iterator[Planted]:
    with ExitStack() as stack:
        flow = stack.enter_context(opened("github", tmp_path, monkeypatch))
        echo, receiver = (stack.enter_context(closing_server(Echo())) for _ in range(2))
        receiver.quiet = True
        port, heard = stack.enter_context(grpc_echo())
        model = stack.enter_context(EmbeddingServer(dimension=16))
        world = Planted(flow, echo, receiver, port, heard, model, pg_database, monkeypatch)
        world.configure()
        yield world


@contextmanager
def closing_server(server: Echo) -> Iterator[Echo]:
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def leaves(group: click.Group = cli, before: tuple[str, ...] = ()) -> Iterator[str]:
    """All commands: `state list`, …"""
    for name, item in group.commands.items():
        if isinstance(item, click.Group):
            yield from leaves(item, (*before, name))
        else:
            yield " ".join((*before, name))


def test_every_command_is_run_or_left_out_with_a_reason() -> None:
    lines = [line.removeprefix("--debug ") + " " for line in COMMANDS.splitlines()]
    run = {leaf for leaf in leaves() if any(line.startswith(f"{leaf} ") for line in lines)}
    assert run | {*LEFT_OUT} == {*leaves()}
    assert not run & {*LEFT_OUT}


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # a plugin of Apprise
def test_no_secret_is_shown_written_or_sent(planted: Planted) -> None:
    planted.all()
    assert not [(line, text) for line, code, text in planted.said if code and line in DONE]
    planted.scrape()
    assert planted.leaks() == []


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # a plugin of Apprise
def test_no_secret_is_shown_that_a_server_says_back(planted: Planted) -> None:
    for line in BEFORE:
        planted.run(line)
    planted.breaks()
    codes = {line: planted.run(line) for line in BROKEN.splitlines()}
    assert not [line for line, code in codes.items() if code == 0]
    for planted.echo.cut in (200, 300, 500, 2000):  # where we and clients cut what a server says
        planted.run("--debug connections test --json")
        planted.run("--debug search live text-1 --model new")
    # all that could be said back was: else nothing is shown by what follows
    heard = b"\n".join(planted.echo.got) + "\n".join(planted.heard).encode() + b"".join(planted.receiver.got)
    own = {name for name in planted.secrets if name.endswith(" wrong")}
    quiet = {
        "S3_KEY",
        "HOOK_KEY",
        "SIGNING",
        "REDIS",
    }  # keys that only sign, and a queue that these commands do not ask
    assert own - planted.secrets.found(heard) == {f"{name} wrong" for name in quiet}
    planted.scrape()
    assert planted.leaks() == []
