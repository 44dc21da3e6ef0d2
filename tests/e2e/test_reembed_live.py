"""A change of the model while applications write, providers that ask to wait, and what is recorded of points (B1, B5, B6).

Before readers are switched the target is what the model makes of the source, less what failed.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.embedders import config_model, open_embedder
from runner.embedders.hash import hash_vectors
from runner.executor.embedding import Service
from runner.ledger import Ledger
from runner.settings import Limits
from runner.transform import Embedding
from runner.vectors import Vectors
from tests import servers
from tests.e2e.knowledge import BEFORE, Knowledge, new_vectors, text_of
from tests.e2e.workspace import run

ACCEPT = [{"code": "VL201", "reason": "writers only add"}, {"code": "VL202", "reason": "writers are slow"}]


@pytest.fixture
def kb(kb: Knowledge) -> Knowledge:
    """With models that have as many numbers as the present vectors."""
    kb.models = {name: {"provider": "hash", "model": name, "dimension": 8} for name in ("same", "other")}
    kb.configure()
    return kb


def failed(job: str = "change") -> set[str]:
    return {item["item"] for item in json.loads(run("failures", job, "--json").stdout)["items"]}


def add(kb: Knowledge, texts: dict[Any, str]) -> None:
    """An application adds points and their rows."""
    with kb.store() as store:
        store.upsert("docs", kb.batch(texts))
    with kb.database() as db:
        db.executemany(
            "INSERT INTO chunks (vector_id, content, embedding_model_version) VALUES (?, ?, ?)",
            [(one, text, BEFORE) for one, text in texts.items()],
        )
    kb.texts |= texts


def died(kb: Knowledge, *args: str, at: str) -> None:
    found = kb.ws.process(*args, env={"VECRUN_CRASH_AT": at})
    assert found.returncode == -9, found.stdout + found.stderr


def marked(kb: Knowledge, place: str = "kb/docs_new") -> set[str]:
    """Points of a collection of which it is recorded what their vector was made from."""
    with ledger(kb) as db:
        return {json.loads(row[0]) for row in db.execute("SELECT item FROM marks WHERE place = ?", (place,))}


@contextlib.contextmanager
def ledger(kb: Knowledge) -> Iterator[sqlite3.Connection]:
    (path,) = (kb.ws.root / "state").glob("*.db")
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        yield db


# -- texts that cannot be embedded any more ----------------------------------------------------------------------------


def test_texts_that_fail_during_a_hold(kb: Knowledge) -> None:
    """One becomes empty, one is refused, one is new and refused: nothing is switched, and none keeps an old vector."""
    kb.fill(12)
    kb.job(live={"hold": True})
    kb.plan()
    assert run("apply", "plans/change.json").exit_code != 0  # it waits
    assert set(kb.points("docs_new")) == set(kb.texts)
    kb.server.set(refuse="POISON")
    add(kb, {"late": "new POISON"})
    kb.say({"p001": " ", "p002": "now POISON", "p003": "an edited text"})
    found = run("resume", "change")
    assert found.exit_code == 3, found.stdout
    assert "3 texts could not be embedded" in found.stderr
    assert kb.ws.serving() == {}
    assert set(kb.versions().values()) == {BEFORE}
    assert failed() == {"late", "p001", "p002"}
    assert set(kb.points("docs_new")) == set(kb.texts) - failed()
    assert marked(kb) == set(kb.texts) - failed()
    kb.server.set(refuse="")
    kb.say({"p001": "mended"})
    found = run("retry-failed", "change", "--auto-approve")
    assert found.exit_code == 0, found.stderr
    assert failed() == set()
    kb.is_new()
    assert kb.ws.serving()["live"]["collection"] == "docs_new"
    assert json.loads(run("verify", "change", "--json").stdout)["equal"]


@pytest.mark.parametrize(
    ("at", "allow"),
    [
        ("finish_collection:after", 0),
        ("catch_up:cut", 2),
        ("verify_points:cut", 0),
        ("verify_points:before_write", 2),
        pytest.param("finish_collection:after", 2, marks=pytest.mark.long),
        pytest.param("catch_up:cut", 0, marks=pytest.mark.long),
        pytest.param("verify_points:cut", 2, marks=pytest.mark.long),
        pytest.param("verify_points:before_write", 0, marks=pytest.mark.long),
    ],
)
def test_texts_that_fail_in_a_live_source(kb: Knowledge, at: str, allow: int) -> None:
    """Without a hold, in every pass before the switch: what is allowed holds at the switch."""
    kb.fill(12)
    kb.job(live={"bound": 0}, failures={"allow": allow}, accept=ACCEPT)
    kb.plan()
    before = at.startswith("verify_points:before")
    died(kb, "apply", "plans/change.json", at="verify_points:cut" if before else at)
    kb.server.set(refuse="POISON")
    add(kb, {"late": "new POISON"})
    kb.say({"p001": "", "p003": "an edited text"})
    if before:  # after the point that failed was taken away
        died(kb, "resume", "change", at=at)
    found = run("resume", "change")
    assert found.exit_code == 3, found.stdout + found.stderr
    left = {"late", "p001"}
    assert failed() == left
    assert set(kb.points("docs_new")) == set(kb.texts) - left
    assert marked(kb) == set(kb.texts) - left
    assert ("live" in kb.ws.serving()) == bool(allow)
    kb.server.set(refuse="")
    kb.say({"p001": "mended"})
    found = run("retry-failed", "change", "--auto-approve")
    assert found.exit_code == 0, found.stderr
    assert failed() == set()
    kb.is_new()
    assert json.loads(run("verify", "change", "--json").stdout)["equal"]
    with kb.store() as store:  # an application's own, in the new collection
        store.upsert("docs_new", kb_batch("theirs"))
    found = run("rollback", "change", "--auto-approve")
    assert found.exit_code == 1
    assert "VD102" in found.stderr
    assert "1 points" in found.stderr


def kb_batch(one: str) -> Any:
    from runner.points import Payloads, PointBatch

    return PointBatch([one], {"": new_vectors(["theirs"])}, Payloads([{"text": "theirs"}]))


@pytest.mark.parametrize(
    ("step", "at"),
    [
        ("catch_up", "before_delete"),
        ("catch_up", "after_delete"),
        ("verify_points", "before_checkpoint"),
        pytest.param("catch_up", "before_checkpoint", marks=pytest.mark.long),
        pytest.param("verify_points", "before_delete", marks=pytest.mark.long),
        pytest.param("verify_points", "after_delete", marks=pytest.mark.long),
    ],
)
def test_killed_while_a_failed_point_is_taken_away(kb: Knowledge, step: str, at: str) -> None:
    kb.fill(12)
    kb.job(live={"bound": 0}, failures={"allow": 1}, accept=ACCEPT)
    kb.plan()
    died(kb, "apply", "plans/change.json", at=f"{step}:cut")
    kb.say({"p001": ""})
    died(kb, "resume", "change", at=f"{step}:{at}")
    assert run("resume", "change").exit_code == 3
    assert failed() == {"p001"}
    assert set(kb.points("docs_new")) == marked(kb) == set(kb.texts) - {"p001"}


def test_texts_that_fail_in_place(kb: Knowledge) -> None:
    """They are found by the verification, and more than are allowed stop the run before it says that it is through."""
    kb.fill(12)
    kb.job(strategy="replace", model="same", live={"bound": 0}, accept=ACCEPT)
    kb.plan()
    died(kb, "apply", "plans/change.json", at="verify_points:cut")
    kb.say({"p001": ""})
    found = run("resume", "change")
    assert found.exit_code == 3, found.stdout
    assert "1 texts could not be embedded" in found.stderr
    assert kb.ws.serving() == {}
    kb.say({"p001": "mended"})
    found = run("retry-failed", "change", "--auto-approve")
    assert found.exit_code == 0, found.stderr
    np.testing.assert_array_equal(kb.points("docs")["p001"][0], hash_vectors(["mended"], 8, "same")[0])


# -- a provider that asks to wait --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("style", "after"), [("seconds", 0), ("date", -3600)])
def test_a_wait_that_is_none(kb: Knowledge, style: str, after: float) -> None:
    """Retry-After: 0, or a moment that is over: the pause grows all the same."""
    kb.model = {"concurrency": 1}
    kb.configure(limits={"retry_delay": 0.1})
    kb.fill(4)
    kb.job()
    kb.plan()
    kb.server.set(next=["rate_limit"] * 4, retry_after=after, retry_style=style)
    began = time.monotonic()
    kb.done(run("apply", "plans/change.json", "--json"))
    assert time.monotonic() - began >= 1.5  # 0.1 + 0.2 + 0.4 + 0.8
    kb.is_new()


def test_a_wait_that_no_run_waits_for(kb: Knowledge) -> None:
    """Ten days: the run stops and says so; it goes on as soon as the provider does."""
    kb.configure(limits={"retry_delay": 0.01, "retries": 0})
    kb.fill(4)
    kb.job()
    kb.plan()
    kb.server.set(next=["rate_limit"] * 20, retry_after=864_000)
    began = time.monotonic()
    found = run("apply", "plans/change.json")
    assert found.exit_code == 3
    assert "asks to wait for 10 days" in found.stderr
    assert "nothing is lost" in found.stderr
    kb.server.set(next=[])
    kb.done(run("resume", "change", "--json"))
    assert time.monotonic() - began < 20
    kb.is_new()


def test_a_long_wait_is_logged(kb: Knowledge) -> None:
    kb.fill(4)
    kb.job()
    kb.plan()
    kb.server.set(next=["rate_limit"], retry_after=5.5)
    kb.done(run("apply", "plans/change.json", "--json"))
    assert run("logs", "change").stdout.count("the provider asks to wait 6 s") == 1


@pytest.mark.parametrize("column", ["next", "held"])
def test_a_clock_that_went_back(kb: Knowledge, column: str) -> None:
    """A turn an hour ahead is none of ours."""
    kb.model = {"requests_per_minute": 600}
    kb.configure()
    kb.fill(4)
    kb.job()
    kb.apply()
    kb.say({"p001": "an edited text"}, "docs_new")
    kb.job("news", collection="docs_new", strategy="incremental", from_model=None, cutover=None)
    kb.plan("news")
    with ledger(kb) as db:
        assert db.execute(f"UPDATE pace SET {column} = {column} + 3600 + (SELECT max(next) FROM pace)").rowcount
    began = time.monotonic()
    kb.done(run("apply", "plans/news.json", "--json"))
    assert time.monotonic() - began < 20
    kb.is_new()


def test_who_waits_for_a_text_learns_that_it_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure between the claim of a text and its request: the next who wants it asks anew, and does not wait."""
    embedder = open_embedder(config_model("hash")(dimension=8, tokens=100))  # type: ignore[call-arg]
    embed = Embedding(model="m", identity=embedder.identity(), vector="", field="text")
    count, calls = embedder.count, [0]

    def broken(texts: Any) -> Any:
        calls[0] += 1
        if calls[0] == 1:
            raise OSError("no memory")
        return count(texts)

    monkeypatch.setattr(embedder, "count", broken)
    with contextlib.closing(Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")) as kept:
        service = Service("r", embed, embedder, Vectors(kept), Limits())
        stop = threading.Event()
        with pytest.raises(OSError, match="no memory"):
            service.vectors(["a text"], stop)
        waiting = threading.Timer(10, stop.set)
        waiting.start()
        (made,) = service.vectors(["a text"], stop)
        waiting.cancel()
        np.testing.assert_array_equal(made, hash_vectors(["a text"], 8)[0])
        service.close()


# -- what is recorded of points ----------------------------------------------------------------------------------------


def test_a_collection_that_is_made_anew(kb: Knowledge) -> None:
    """What was recorded of its points before it was dropped outside vecrun does not make new ones current."""
    kb.fill(6)
    kb.job(model="other", to="copy", documents=None, knowledge_base=None, cutover=None)
    kb.apply()
    assert len(marked(kb, "kb/copy")) == 6
    with kb.store() as store:
        store.drop("copy")
    body = {
        "apiVersion": "vecrun/v1", "kind": "VectorMigration", "metadata": {"name": "again"},
        "spec": {"source": "kb", "target": "kb", "collections": [{"from": "docs", "to": "copy"}]},
    }  # fmt: skip
    kb.ws.write("jobs/again.yaml", json.dumps(body))
    found = run("apply", "jobs/again.yaml", "--auto-approve")
    assert found.exit_code == 0, found.stderr
    assert marked(kb, "kb/copy") == set()
    kb.job("news", collection="copy", model="other", strategy="incremental", documents=None, knowledge_base=None,
           from_model=None, cutover=None)  # fmt: skip
    kb.apply("news")
    for one, (vector, payload) in kb.points("copy").items():
        np.testing.assert_array_equal(vector, hash_vectors([payload["text"]], 8, "other")[0], str(one))


def test_points_taken_as_they_are_are_told(kb: Knowledge) -> None:
    """Their version is the model's, and nobody recorded their text: the plan says how many, also when nothing is to do."""
    kb.fill(6)
    with kb.database() as db:
        db.execute("UPDATE chunks SET embedding_model_version = 'hash:other:8' WHERE vector_id <> 'p000'")
    kb.job(model="other", strategy="incremental", from_model=None, cutover=None)
    plan = kb.plan()
    (told,) = [item["message"] for item in plan["notices"] if item["code"] == "VI114"]
    assert told.startswith("5 points are taken as they are")
    kb.apply()
    found = run("plan", "jobs/change.yaml", "--detailed-exitcode")
    assert found.exit_code == 0
    assert "VI114" in found.stdout
    kb.job("all", model="other", strategy="replace", from_model=None, cutover=None)
    kb.apply("all")
    assert "VI114" not in run("plan", "jobs/change.yaml").stdout  # they are recorded by now


# -- LangChain's tables ------------------------------------------------------------------------------------------------


LANGCHAIN = """
CREATE TABLE langchain_pg_collection (uuid uuid PRIMARY KEY, name varchar UNIQUE, cmetadata json);
CREATE TABLE langchain_pg_embedding (id varchar PRIMARY KEY,
    collection_id uuid REFERENCES langchain_pg_collection (uuid) ON DELETE CASCADE,
    embedding vector, document varchar, cmetadata jsonb);
INSERT INTO langchain_pg_collection VALUES ('00000000-0000-0000-0000-000000000001', 'docs', NULL);
"""


def test_langchain_tables(kb: Knowledge, pg_database: str) -> None:
    """Their ids are shared by all collections: only in place, with the old points in another store; and back, exactly."""
    texts = {f"p{n:03}": text_of(n) for n in range(10)}
    rows = ", ".join(
        f"('{one}', '00000000-0000-0000-0000-000000000001', '{hash_vectors([text], 8, 'old')[0].tolist()}', '{text}', "
        f"'{{\"page\": {number}}}')"
        for number, (one, text) in enumerate(texts.items())
    )
    servers.sql(pg_database, LANGCHAIN, f"INSERT INTO langchain_pg_embedding VALUES {rows}")
    kb.connection = {
        "type": "pgvector", "url": pg_database, "layout": "langchain", "tables": {"docs": {"distance": "cosine"}},
    }  # fmt: skip
    kb.configure(connections={
        "kb": kb.connection, "beside": {"type": "files", "path": "./beside"}, "lossy": {"type": "qdrant", "path": "./q"},
    })  # fmt: skip
    plain: dict[str, Any] = {"text": {"field": "document"}, "documents": None, "knowledge_base": None, "cutover": None}
    before = kb.points("docs")
    for spec in (
        {"model": "new"},
        {"model": "same", "strategy": "replace"},
        {"model": "same", "strategy": "incremental"},
    ):
        kb.job(**plain | spec)
        found = run("apply", "jobs/change.yaml", "--auto-approve")
        assert found.exit_code != 0
        assert "VX209" in found.stdout + found.stderr
        assert "save_to" in found.stdout + found.stderr
    kb.job(**plain, strategy="replace", model="same", save_to="lossy")
    blocking = {item["code"] for item in kb.plan()["notices"] if item["blocking"]}
    assert "VL101" in blocking  # scaled vectors are not the old ones
    for strategy in ("replace", "incremental"):
        kb.job(**plain, strategy=strategy, model="same", save_to="beside")
        outcome = kb.apply()
        assert outcome["status"] == "completed"
        held = kb.points("docs")
        assert set(held) == set(texts)
        for one, text in texts.items():
            np.testing.assert_array_equal(held[one][0], hash_vectors([text], 8, "same")[0])
            assert held[one][1] == before[one][1]
        assert json.loads(run("verify", "change", "--json").stdout)["equal"]
        found = run("rollback", "change", "--auto-approve")
        assert found.exit_code == 0, found.stderr
        after = kb.points("docs")
        assert {one: (vector.tolist(), payload) for one, (vector, payload) in after.items()} == {
            one: (vector.tolist(), payload) for one, (vector, payload) in before.items()
        }
