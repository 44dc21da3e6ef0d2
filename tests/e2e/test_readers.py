"""Readers of a serving pointer while the model behind it changes: none fails, and a reader that fails is seen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runner import commands
from runner.demo import reembedding, stage
from runner.demo.reader import Reader
from tests import warm
from tests.e2e.workspace import Workspace, run
from tests.embedding_server import EmbeddingServer

SETTINGS = """
apiVersion: vecrun/v1
kind: Workspace
connections:
  kb: {{type: files, path: ./kb}}
models:
  old: {{provider: hash, dimension: 4}}
  new: {{provider: openai, base_url: "{url}", model: any, dimension: 8, text_tokens: 1000}}
"""
JOB = """
apiVersion: vecrun/v1
kind: Reembedding
metadata: {name: %s}
spec:
  connection: kb
  collection: %s
  to: %s
  model: %s
  text: {field: text}
  cutover: {alias: live}
"""


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with EmbeddingServer(dimension=8) as made:
        yield made


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: EmbeddingServer) -> Workspace:
    """Points of one model, served as `live`, and a job that brings another."""
    made = Workspace.create(
        tmp_path / "ws", SETTINGS.format(url=server.url), JOB % ("first", "docs", "docs_old", "old")
    )
    made.write("jobs/second.yaml", JOB % ("second", "live", "docs_new", "new"))
    monkeypatch.chdir(made.root)
    payloads = [{"text": f"text number {number}"} for number in range(30)]
    made.fill(30, store="kb", name="docs", payloads=payloads)
    assert run("apply", made.job, "--auto-approve").exit_code == 0
    return made


def test_a_rollback_while_a_query_is_embedded(served: Workspace, server: EmbeddingServer) -> None:
    assert run("apply", "jobs/second.yaml", "--auto-approve").exit_code == 0
    context = commands.open_context(served.root)
    assert commands.search(context, "live", "text number 7").model == "new"
    server.set(delay=3.0)
    before = server.stats()["requests"]
    with ThreadPoolExecutor(1) as other:
        search = other.submit(commands.search, context, "live", "text number 7")
        while server.stats()["requests"] == before:
            time.sleep(0.01)
        rolled = run("rollback", "second", "--auto-approve")
        assert rolled.exit_code == 0, rolled.output
        assert not search.done(), "the query was embedded too early for this test"
        found = search.result()
    assert served.points("kb", "docs_new") is None
    assert (found.model, found.place.collection, len(found.hits)) == ("old", "docs_old", 5)


def test_a_reader_that_fails_says_so(served: Workspace) -> None:
    reader = Reader(served.root, "live", ("text number 7",), served.root / "searches.jsonl")
    try:
        assert reader.wait_for(2)
        with served.store("kb") as store:
            store.drop("docs_old")
        assert reader.wait_for(2)
    finally:
        assert reader.stop() == 0
    first, *_between, last = reader.searches()
    assert (first.model, first.collection, len(first.ids), first.error) == ("old", "docs_old", 3, "")
    assert last.ids == ()
    assert "No such collection" in last.error


@pytest.mark.long
def test_the_demo(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, with fewer texts. `make demo-reembed` starts its commands cold."""
    monkeypatch.setattr(stage, "subprocess", warm)
    reembedding.run(tmp_path / "demo", longest=800)
    printed = capfd.readouterr().out
    assert "failed: 0, wrong results: 0" in printed
    assert f'"texts": {reembedding.EDITED}, ' in printed
    assert printed.splitlines()[-1] == "demo: ok"
