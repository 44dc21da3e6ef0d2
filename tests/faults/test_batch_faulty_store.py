"""Batch operations on a store that fails on purpose: what becomes of each document is right, and nothing is lost."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from runner import cli, world
from runner.errors import Permanent, TooLarge, Transient
from runner.executor import slices
from runner.points import IdKind, PointBatch, PointId
from runner.store import ConnectionConfig, Store
from runner.stores import open_store
from tests.faults import holding, papers
from tests.faults.batch import APPLY, ROLLBACK
from tests.faults.papers import Task
from tests.faults.scene import JOB
from tests.faults.test_faulty_store import Faults, FaultyStore


class Faulty(FaultyStore):
    """Asks before each call that a batch operation makes: (call, collection, ids)."""

    def __init__(self, inner: Store, bench: Bench) -> None:
        super().__init__(inner, Faults())
        self.bench = bench

    def upsert(self, name: str, batch: PointBatch) -> None:
        self.bench.ask("upsert", name, batch.ids)
        self.inner.upsert(name, batch)

    def delete(self, name: str, ids: Sequence[PointId]) -> None:
        self.bench.ask("delete", name, ids)
        self.inner.delete(name, ids)

    def fetch(self, name: str, ids: Sequence[PointId]) -> PointBatch:
        self.bench.ask("fetch", name, ids)
        return self.inner.fetch(name, ids)


class Bench:
    """An operation on 12 documents, over files and SQLite."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.calls, self.lock = directory, 0, threading.Lock()
        self.fault: Callable[[int, str, str, Sequence[PointId]], None] | None = None
        path = directory / "vecrun.yaml"
        limits = {"limits": {"workers": 2, "retries": 3, "retry_delay": 0.001}}
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | limits))
        self.before = self.picture()

    def learn(self) -> None:
        """Done and undone once before anything fails."""
        self.vecrun(*APPLY, expected=3)
        assert holding.remember(str(self.directory)) == []
        self.vecrun(*ROLLBACK)
        self.same(after=False)

    def ask(self, call: str, name: str, ids: Sequence[PointId]) -> None:
        with self.lock:
            self.calls += 1
            number = self.calls
        if self.fault is not None:
            self.fault(number, call, name, ids)

    def vecrun(self, *arguments: str, expected: int = 0) -> None:
        done = CliRunner().invoke(cli.cli, arguments)
        assert done.exit_code == expected, done.output

    def picture(self) -> dict[str, Any]:
        return dict(json.loads(json.dumps(papers.picture(papers.load(str(self.directory))))))

    def report(self) -> dict[str, list[Any]]:
        return {row[0]: row for row in papers.report(papers.load(str(self.directory)))}

    def same(self, *, after: bool) -> None:
        checked = holding.ended(str(self.directory), after)
        assert checked["findings"] == []
        wrong = {key: checked["counts"][key] for key in ("lost", "doubled", "changed")}
        assert wrong == {"lost": 0, "doubled": 0, "changed": 0}, checked["counts"]["examples"]


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(slices, "CHECKPOINT_SECONDS", 0)
    found: list[Bench] = []

    def opened(config: ConnectionConfig) -> Store:
        store = open_store(config)
        return Faulty(store, found[0]) if found else store

    monkeypatch.setattr(world, "open_store", opened)
    task = Task(request.param, "files", IdKind.STRING, "sqlite")
    papers.build(str(tmp_path / "w"), asdict(task), 12, 4, "")
    monkeypatch.chdir(tmp_path / "w")
    found.append(Bench(tmp_path / "w"))
    found[0].learn()
    return found[0]


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("delete", "metadata")]
EACH = pytest.mark.parametrize("bench", [*LONG, "parse"], indirect=True)


@EACH
def test_a_store_that_fails_now_and_then_and_takes_little(bench: Bench) -> None:
    """Each call fails once in a while, a write of more than two points always, and all of them are slow."""

    def now_and_then(number: int, call: str, _name: str, ids: Sequence[PointId]) -> None:
        time.sleep(0.01)
        if number % 4 == 1:
            raise Transient("The store did not answer", "on purpose")
        if call == "upsert" and len(ids) > 2:
            raise TooLarge("The batch is too large", f"{len(ids)} points")

    bench.fault = now_and_then
    bench.vecrun(*APPLY, expected=3)
    bench.fault = None
    bench.same(after=True)
    bench.fault = now_and_then
    bench.vecrun(*ROLLBACK)
    bench.fault = None
    bench.same(after=False)


@EACH
def test_a_document_that_the_store_refuses(bench: Bench) -> None:
    """It alone has failed, and is as before; another try brings it to where it would have been."""
    victim, target = "d009", papers.load(str(bench.directory)).name
    after = json.loads((bench.directory / "after.json").read_text())
    mine = {
        point
        for one in (bench.before, after)
        for point, (_, payload) in one["points"].items()
        if json.loads(payload)["document_id"] == victim
    }

    def refused(_number: int, call: str, name: str, ids: Sequence[PointId]) -> None:
        written = call == "upsert" and name == target
        # what is deleted has its rows in the undo tables by then: it is the copy that cannot be kept
        if (written or (call == "upsert" and operation == "delete")) and mine & {str(one) for one in ids}:
            raise Permanent("The store refused a point", "on purpose")

    operation = papers.load(str(bench.directory)).task.operation
    bench.fault = refused
    bench.vecrun(*APPLY, expected=3)
    bench.fault = None
    said = bench.report()
    expected = {row[0]: row for row in after["report"]}
    assert said[victim][1] == "failed"
    assert "on purpose" in said[victim][5]
    assert {one: row for one, row in said.items() if one != victim} == {
        one: row for one, row in expected.items() if one != victim
    }
    now = bench.picture()
    assert {one: now["points"].get(one) for one in mine} == {one: bench.before["points"].get(one) for one in mine}
    assert [row for row in now["chunks"].values() if row[1] == victim] == [
        row for row in bench.before["chunks"].values() if row[1] == victim
    ]
    bench.vecrun("retry-failed", JOB, "--auto-approve", expected=3)
    bench.same(after=True)
    bench.vecrun(*ROLLBACK)
    bench.same(after=False)


@EACH
def test_a_store_that_stops_answering(bench: Bench) -> None:
    """The run ends and can be resumed; or it is undone."""

    writes = 0

    def gone(_number: int, call: str, _name: str, _ids: Sequence[PointId]) -> None:
        nonlocal writes
        writes += call != "fetch"
        if writes > 3:
            raise Transient("The store did not answer", "on purpose")

    for way in (("resume", JOB), ROLLBACK):
        writes = 0
        bench.fault = gone
        bench.vecrun(*APPLY, expected=3)
        bench.fault = None
        bench.vecrun(*way, expected=3 if way is not ROLLBACK else 0)
        bench.same(after=way is not ROLLBACK)
        if way is not ROLLBACK:
            bench.vecrun(*ROLLBACK)
