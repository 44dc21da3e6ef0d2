"""A workspace for each test, and nothing of one test in the next."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runner import errors
from tests import embedding_server
from tests.e2e.documents import Library
from tests.e2e.knowledge import KEY, NEW, Knowledge, Server
from tests.e2e.pulls import Flow, opened
from tests.e2e.workspace import Workspace


@pytest.fixture(autouse=True)
def no_secrets_left() -> Iterator[None]:
    """Resolved secrets are remembered for the life of the process; tests share one."""
    errors._SECRETS.clear()
    yield
    errors._SECRETS.clear()


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace that is the current folder, as users have it: paths in messages are relative to it."""
    made = Workspace.create(tmp_path / "ws")
    monkeypatch.chdir(made.root)
    monkeypatch.delenv("VECRUN_ENV", raising=False)
    return made


@pytest.fixture
def library(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> Library:
    """Four documents."""
    monkeypatch.setenv("VECRUN_TEST_APP", "")
    made = Library(ws)
    made.configure()
    made.fill(4)
    return made


@pytest.fixture(scope="module")
def counting() -> Iterator[Server]:
    """A server of embeddings in a process of its own."""
    with embedding_server.outside(dimension=NEW) as root:
        yield Server(root)


@pytest.fixture
def kb(ws: Workspace, counting: Server, monkeypatch: pytest.MonkeyPatch) -> Knowledge:
    """A knowledge base whose new model is that server; nothing counted yet."""
    monkeypatch.setenv("VECRUN_TEST_KEY", KEY)
    counting.fresh()
    made = Knowledge(ws, counting)
    made.configure()
    return made


@pytest.fixture(params=["github", "gitlab"])
def flow(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flow]:
    """A branch with a new job, pushed, and its pull request 1."""
    with opened(str(request.param), tmp_path, monkeypatch) as made:
        yield made
