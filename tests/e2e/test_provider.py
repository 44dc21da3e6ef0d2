"""What a provider of embeddings does to a run (issue 4): faults, refused texts, limits, money, kills, workers (B5-B7).

A real HTTP server, in a process of its own, fails in every way and counts what it gave: no text twice, no limit broken,
tokens and money as it counted them.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.embedders.hash import hash_vectors
from runner.points import Payloads, PointBatch
from tests import embedding_server, servers
from tests.e2e.knowledge import AFTER, BEFORE, KEY, NEW, PRICE, Knowledge, new_vectors, text_of
from tests.e2e.test_workers import Team
from tests.e2e.workspace import run
from tests.faults.ledger_watch import LedgerWatch


def failures(job: str = "change") -> dict[str, dict[str, Any]]:
    """item -> how it failed"""
    return {item["item"]: item for item in json.loads(run("failures", job, "--json").stdout)["items"]}


def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.02)


def status(job: str = "change") -> dict[str, Any]:
    body: dict[str, Any] = json.loads(run("status", job, "--json").stdout)
    return body


# -- faults of the server ----------------------------------------------------------------------------------------------


def test_every_fault_at_once(kb: Knowledge) -> None:
    """The run completes; each text was given exactly once; what was used is what the server counted."""
    kb.model = {"items": 3, "timeout": 1.5, "concurrency": 3}
    kb.configure()
    texts = {f"p{n:03}": text_of(n % 100) for n in range(120)}
    kb.fill(texts)
    kb.job()
    plan = kb.plan()
    faults = {
        "rate_limit": 11, "server_error": 7, "truncated": 13, "missing": 17, "nan": 19, "html": 23, "hang": 29,
        "drop": 31, "twice": 37, "null": 41, "overloaded": 43, "time_out": 47,
    }  # fmt: skip
    kb.server.set(faults=faults, retry_after=0.05, shuffle=True, delay=0.005, hang=3.0, spare=3)
    outcome = kb.done(run("apply", "plans/change.json", "--json"))
    stats = kb.server.stats()
    assert len(stats["faults"]) >= 7, stats["faults"]
    assert kb.server.returned() == dict.fromkeys(texts.values(), 1)
    kb.paid(outcome)
    assert status()["used"] == outcome["used"]
    assert outcome["used"]["texts"] == 100
    assert outcome["failed"] == 0
    kb.is_new()
    spent = plan["steps"][1]["estimate"]
    assert spent["texts"] == 120
    assert run("failures", "change").exit_code == 0
    assert failures() == {}


@pytest.mark.parametrize("style", ["seconds", "date"])
def test_it_waits_as_long_as_it_is_asked_to(kb: Knowledge, style: str) -> None:
    kb.fill(8)
    kb.job()
    kb.plan()
    kb.server.set(next=["rate_limit"], retry_after=1.5, retry_style=style)
    began = time.monotonic()
    kb.done(run("apply", "plans/change.json", "--json"))
    assert time.monotonic() - began >= (0.5 if style == "date" else 1.5)  # a date has whole seconds
    assert kb.server.stats()["requests"] == 2
    kb.is_new()


def test_a_dead_server(kb: Knowledge) -> None:
    """A clear error after some tries; nothing of what was paid for is paid again when it is back."""
    kb.model = {"items": 5}
    kb.configure(limits={"retry_delay": 0.01, "retries": 2})
    kb.fill(100)
    kb.job()
    before = kb.world()
    kb.plan()
    kb.server.set(next=[*[""] * 8, *["drop"] * 1000])
    found = run("apply", "plans/change.json")
    assert found.exit_code == 3  # partitions that failed
    assert "The endpoint cannot be reached" in found.stderr
    assert "vecrun resume change" in found.stderr
    paid = kb.server.returned()
    assert 20 <= len(paid) <= 40
    kb.server.set(next=[])
    outcome = kb.done(run("resume", "change", "--json"))
    assert kb.server.returned() == dict.fromkeys(kb.texts.values(), 1)
    kb.paid(outcome)
    kb.is_new()
    assert run("rollback", "change", "--auto-approve").exit_code == 0
    assert kb.world() == before


def test_nobody_listens(kb: Knowledge) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    kb.model = {"base_url": f"http://127.0.0.1:{port}/v1"}
    kb.configure(limits={"retry_delay": 0.01, "retries": 1})
    kb.fill(5)
    kb.job()
    assert "the probe was not answered" in run("plan", "jobs/change.yaml").stdout
    found = run("apply", "jobs/change.yaml", "--auto-approve")
    assert found.exit_code == 3
    assert "cannot be reached" in found.stderr
    with embedding_server.EmbeddingServer(port, dimension=NEW) as server:
        assert run("resume", "change").exit_code == 0
        assert server.stats()["returned"] == dict.fromkeys(kb.texts.values(), 1)
    kb.is_new()


def test_a_wrong_key_is_told_and_stands_nowhere(kb: Knowledge, monkeypatch: pytest.MonkeyPatch) -> None:
    kb.fill(20)
    kb.job()
    kb.plan()
    kb.server.set(key="sk-the-right-one-0987654321")
    said = []
    for command in (
        ("plan", "jobs/change.yaml"), ("apply", "plans/change.json"), ("resume", "change", "--json"), ("logs", "change"),
        ("status", "change", "--json"), ("show", "plans/change.json"), ("model-check", "jobs/change.yaml"),
    ):  # fmt: skip
        found = run(*command)
        said.append(found.stdout + found.stderr)
    assert "does not accept the key" in said[1]
    assert "vecrun resume change" in said[1]
    assert "Check api_key" in said[1]
    files = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert any(path.suffix == ".db" for path in files)
    for where, content in [
        *((str(path), body) for path, body in files.items()),
        *((text, text.encode()) for text in said),
    ]:
        for part in (KEY.encode(), b"1234567890-tail", b"sk-abcd", b"-tail"):
            assert part not in content, (part, where)
    monkeypatch.setenv("VECRUN_TEST_KEY", "sk-the-right-one-0987654321")
    kb.server.reset()
    outcome = kb.done(run("resume", "change", "--json"))
    kb.paid(outcome)
    kb.is_new()


def test_a_server_that_asks_to_wait_for_ever(kb: Knowledge, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up at last, clearly; what is missing is asked for when it answers again."""
    monkeypatch.setattr("runner.executor.embedding.MAX_HOLDS", 8)  # 50 are twenty minutes
    kb.model = {"items": 5, "concurrency": 1}
    kb.configure(limits={"retry_delay": 0.01, "retries": 0, "workers": 1})
    kb.fill(20)
    kb.job()
    kb.plan()
    kb.server.set(next=["", *["rate_limit"] * 1000], retry_after=0.01)
    found = run("apply", "plans/change.json")
    assert found.exit_code == 3
    assert "asks for fewer requests" in found.stderr
    assert len(kb.server.returned()) == 5
    kb.server.set(next=[])
    outcome = kb.done(run("resume", "change", "--json"))
    assert kb.server.returned() == dict.fromkeys(kb.texts.values(), 1)
    kb.paid(outcome)


def test_no_credit_left(kb: Knowledge) -> None:
    kb.fill(20)
    kb.job()
    kb.plan()
    kb.server.set(next=["", "no_money"])
    found = run("apply", "plans/change.json")
    assert found.exit_code == 1
    assert "no credit left" in found.stderr
    assert run("resume", "change").exit_code == 0
    assert kb.server.returned() == dict.fromkeys(kb.texts.values(), 1)


def test_a_server_that_refuses_every_text(kb: Knowledge) -> None:
    """It is not the texts: one clear error instead of a list of all of them."""
    kb.fill(50)
    kb.job(failures={"allow": 1000})
    kb.plan()
    kb.server.set(refuse="e")  # every text here has one, and every text that vecrun would try
    found = run("apply", "plans/change.json")
    assert found.exit_code == 1
    assert "The model refuses every text" in found.stderr
    assert kb.server.stats()["requests"] < 30
    assert failures() == {}
    kb.server.set(refuse="")
    assert run("resume", "change").exit_code == 0
    kb.is_new()


def test_a_model_of_another_dimension(kb: Knowledge) -> None:
    kb.fill(10)
    kb.job()
    kb.plan()
    kb.server.set(dimension=NEW + 1)
    found = run("apply", "plans/change.json")
    assert found.exit_code == 1
    assert "17" in found.stderr
    assert "16" in found.stderr
    assert len(kb.points("docs_new")) == 0
    kb.server.set(dimension=NEW)
    assert run("resume", "change").exit_code == 0
    kb.is_new()


# -- texts that cannot be embedded -----------------------------------------------------------------------------------

BAD = {"p003": "this is POISON", "p007": "   ", "p011": "far " * 60, "p030": "POISON again"}


def poisoned(kb: Knowledge, **spec: Any) -> dict[str, Any]:
    """Forty points: two refused texts, an empty one, one too long, one without any; the world before."""
    kb.fill({f"p{n:03}": BAD.get(f"p{n:03}", text_of(n)) for n in range(40)})
    with kb.store() as store:
        held = store.fetch("docs", ["p020"])
        store.upsert("docs", PointBatch(held.ids, held.vectors, Payloads([{"n": 20}])))
    kb.server.set(refuse="POISON", max_text_tokens=50)
    kb.job(**spec)
    return kb.world()


FAILING = {*BAD, "p020"}


def test_bad_texts_stop_before_the_switch_and_are_retried(kb: Knowledge) -> None:
    """B5: the rest goes on; nothing is switched; those that were mended are asked for, and nothing else."""
    before = poisoned(kb)
    found = kb.apply(status=3)
    assert "5 texts could not be embedded" in json.dumps(found)
    good = {one: text for one, text in kb.texts.items() if one not in FAILING}
    assert kb.server.returned() == dict.fromkeys(good.values(), 1)
    after = kb.world()
    assert {key: value for key, value in after.items() if not key.startswith("docs_new")} == before
    assert set(kb.points("docs_new")) == set(good)
    listed = failures()
    assert set(listed) == FAILING
    assert "does not take a text" in listed["p003"]["error"]
    assert listed["p007"]["error"] == "the text is empty"
    assert "maximum context length" in listed["p011"]["error"]
    assert "payload field text is missing" in listed["p020"]["error"]
    assert {item["attempts"] for item in listed.values()} == {1}
    told = run("failures", "change").stdout
    assert all(one in told for one in FAILING)
    assert status()["run"]["status"] == "failed"

    kb.server.reset()
    again = run("retry-failed", "change", "--json")  # nothing was mended
    assert again.exit_code == 3
    assert kb.server.returned() == {}
    listed = failures()
    assert set(listed) == FAILING
    assert {item["attempts"] for item in listed.values()} == {2}

    mended = {one: f"mended text of {one}" for one in FAILING - {"p030"}}
    kb.say(mended)
    assert run("retry-failed", "change", "--json").exit_code == 3
    assert kb.server.returned() == dict.fromkeys(mended.values(), 1)
    assert set(failures()) == {"p030"}
    assert failures()["p030"]["attempts"] == 3
    kb.server.reset()
    kb.server.set(refuse="")
    found = kb.done(run("retry-failed", "change", "--json"))
    assert kb.server.returned() == {"POISON again": 1}
    assert found["failed"] == 0
    assert found["status"] == "completed"
    kb.is_new()
    assert failures() == {}
    after = kb.world()
    assert run("rollback", "change", "--auto-approve").exit_code == 0
    back = kb.world()
    assert back["docs:points"] == after["docs:points"]
    assert back["dump"]["knowledge_bases"] == before["dump"]["knowledge_bases"]
    assert set(kb.versions().values()) == {BEFORE}
    assert "docs_new" not in back


@pytest.mark.parametrize("mode", ["full", "sample", "count"])
def test_retried_texts_are_verified(kb: Knowledge, mode: str) -> None:
    """What came later belongs to what is expected, however it is verified; also by vecrun verify afterwards."""
    poisoned(kb, verify={"mode": mode})
    kb.apply(status=3)
    kb.say({one: f"mended text of {one}" for one in FAILING})
    found = run("retry-failed", "change", "--json")
    assert found.exit_code == 0, found.stderr + found.stdout
    kb.is_new()
    assert json.loads(run("verify", "change", "--json").stdout)["equal"]


def test_bad_points_that_were_deleted(kb: Knowledge) -> None:
    """Another way to mend them."""
    poisoned(kb, verify={"mode": "count"})
    kb.apply(status=3)
    with kb.store() as store:
        store.delete("docs", sorted(FAILING))
    kb.server.reset()
    kb.done(run("retry-failed", "change", "--json"))
    assert kb.server.stats()["requests"] == 0
    kb.is_new(but=list(FAILING))
    assert set(kb.points("docs_new")) == set(kb.texts) - FAILING


def test_bad_texts_that_are_allowed(kb: Knowledge) -> None:
    """Readers are switched, exit code 3; later they come into the serving collection, and a rollback is exact."""
    before = poisoned(kb, failures={"allow": 5})
    outcome = kb.apply(status=3)
    assert (outcome["status"], outcome["failed"]) == ("completed", 5)
    assert (status()["failed"], status()["done"], status()["percent"]) == (5, 35, 100.0)
    kb.is_new(but=list(FAILING))
    assert {kb.versions()[one] for one in FAILING} == {BEFORE}
    assert kb.ws.serving()["live"]["collection"] == "docs_new"
    assert set(failures()) == FAILING
    assert json.loads(run("verify", "change", "--json").stdout)["equal"]
    kb.server.reset()
    assert run("apply", "jobs/change.yaml", "--auto-approve").exit_code == 0  # it is applied
    assert kb.server.stats()["requests"] == 0

    kb.server.set(refuse="", max_text_tokens=0)
    outcome = kb.done(run("retry-failed", "change", "--auto-approve", "--json"), 3)
    taken = {"p003", "p030", "p011"}
    assert kb.server.returned() == {kb.texts[one]: 1 for one in taken}
    kb.paid(outcome)
    kb.is_new(but=["p007", "p020"])
    assert set(failures()) == {"p007", "p020"}
    assert (kb.versions()["p007"], kb.versions()["p003"]) == (BEFORE, AFTER)
    assert json.loads(run("verify", "change", "--json").stdout)["equal"]
    kb.server.reset()
    kb.say({"p007": "mended seven", "p020": "mended twenty"})
    kb.done(run("retry-failed", "change", "--auto-approve", "--json"))
    assert kb.server.returned() == {"mended seven": 1, "mended twenty": 1}
    kb.is_new()
    assert run("retry-failed", "change", "--auto-approve").exit_code == 10  # nothing has failed any more
    kb.say({"p007": "   "})
    with kb.store() as store:
        held = store.fetch("docs", ["p020"])
        store.upsert("docs", PointBatch(held.ids, held.vectors, Payloads([{"n": 20}])))
    found = run("rollback", "change", "--auto-approve")
    assert found.exit_code == 0, found.stderr
    after = kb.world()
    for world in (before, after):
        world.pop("dump")
    assert after == before
    assert set(kb.versions().values()) == {BEFORE}


def test_a_retry_that_is_killed(kb: Knowledge) -> None:
    """Its points are written and not yet recorded: the next one marks them all the same, and the rollback knows them."""
    before = poisoned(kb, failures={"allow": 5})
    kb.apply(status=3)
    kb.server.set(refuse="", max_text_tokens=0)
    for at in ("settle_failures:written", "settle_failures:tried"):
        died = kb.ws.process("retry-failed", "change", "--auto-approve", env={"VECRUN_CRASH_AT": at})
        assert died.returncode == -9, died.stdout + died.stderr
        assert run("resume", "change").exit_code in (0, 3)
        if at == "settle_failures:written":
            assert set(failures()) == {"p007", "p020"}
            kb.is_new(but=["p007", "p020"])
            with kb.store() as store:  # a text for one of them
                held = store.fetch("docs", ["p007"])
                store.upsert("docs", PointBatch(held.ids, held.vectors, Payloads([{"n": 7, "text": "seven"}])))
            kb.texts["p007"] = "seven"
    kb.is_new(but=["p020"])
    assert {text: count for text, count in kb.server.returned().items() if count != 1} == {}
    found = run("rollback", "change", "--auto-approve")
    assert found.exit_code == 0, found.stderr
    assert {"docs_new", "docs_new:points"}.isdisjoint(kb.world())
    assert kb.world()["dump"]["knowledge_bases"] == before["dump"]["knowledge_bases"]
    assert set(kb.versions().values()) == {BEFORE}


def test_a_killed_retry_is_undone(kb: Knowledge) -> None:
    """Its points stand there and nothing knows them: the rollback takes them with the rest."""
    before = poisoned(kb, failures={"allow": 5})
    kb.apply(status=3)
    kb.server.set(refuse="", max_text_tokens=0)
    died = kb.ws.process("retry-failed", "change", "--auto-approve", env={"VECRUN_CRASH_AT": "settle_failures:written"})
    assert died.returncode == -9
    assert len(kb.points("docs_new")) == 38
    for _ in ("the retry", "the run"):
        found = run("rollback", "change", "--auto-approve", "--wait", "40s")
        assert found.exit_code == 0, found.stderr
    assert kb.world() == before


@pytest.mark.parametrize("allow", [0, 5])
def test_bad_texts_in_place(kb: Knowledge, allow: int) -> None:
    """Their points keep the old vector and the old version; nothing says otherwise."""
    kb.models["small"] = {"provider": "hash", "model": "old", "dimension": NEW}
    kb.configure()
    kb.fill(20)
    kb.job("grow", model="small", documents=None, knowledge_base=None, cutover=None, to="wide")
    assert run("apply", "jobs/grow.yaml", "--auto-approve").exit_code == 0
    kb.say({"p003": "this is POISON", "p007": ""}, "wide")
    kb.server.set(refuse="POISON")
    kb.job(collection="wide", from_model="small", strategy="replace", failures={"allow": allow})
    before = kb.world()
    old = {one: item[0].tobytes() for one, item in kb.points("wide").items()}
    kb.apply(status=3)
    held = kb.points("wide")
    for one, text in kb.texts.items():
        wanted = old[one] if one in ("p003", "p007") else new_vectors([text])[0].tobytes()
        assert held[one][0].tobytes() == wanted
    if allow:
        kb.is_new("wide", but=["p003", "p007"])
        assert {kb.versions()[one] for one in ("p003", "p007")} == {BEFORE}
    else:
        assert set(kb.versions().values()) == {None}  # in between nothing says which model it is
        assert kb.info() == {"dimension": 8}
    kb.server.set(refuse="")
    kb.server.reset()
    assert run("retry-failed", "change", "--auto-approve").exit_code == 3
    assert kb.server.returned() == {"this is POISON": 1}
    if allow:
        kb.is_new("wide", but=["p007"])
    found = run("rollback", "change", "--auto-approve")
    assert found.exit_code == 0, found.stderr
    assert kb.world() == before


# -- limits and money ----------------------------------------------------------------------------------------------------


def test_requests_keep_to_the_stated_pace(kb: Knowledge) -> None:
    """400 a minute are 20 in any three seconds."""
    kb.model = {"items": 4, "requests_per_minute": 400, "concurrency": 4}
    kb.configure()
    kb.fill(112)
    kb.job()
    kb.plan()
    kb.server.set(requests_per_minute=20, window=3.0, enforce=False, delay=0.05)
    began = time.monotonic()
    kb.done(run("apply", "plans/change.json", "--json"))
    stats = kb.server.stats()
    assert (stats["violations"], stats["requests"]) == (0, 28)
    assert stats["most_requests"] <= 20
    assert time.monotonic() - began < 10  # and it uses what it is given
    kb.is_new()


def test_tokens_keep_to_the_stated_pace(kb: Knowledge) -> None:
    kb.model = {"items": 6, "tokens": 100, "tokens_per_minute": 12000, "concurrency": 4}
    kb.configure()
    kb.fill(90)
    kb.job()
    kb.plan()
    kb.server.set(tokens_per_minute=600, window=3.0, enforce=False)
    kb.done(run("apply", "plans/change.json", "--json"))
    stats = kb.server.stats()
    assert stats["violations"] == 0
    assert 300 <= stats["most_tokens"] <= 600
    kb.is_new()


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_requests_at_once_than_allowed(kb: Knowledge, most: int) -> None:
    kb.model = {"items": 2, "concurrency": most}
    kb.configure()
    kb.fill(60)
    kb.job()
    kb.plan()
    kb.server.set(delay=0.03)
    kb.done(run("apply", "plans/change.json", "--json"))
    assert kb.server.stats()["most_at_once"] == most


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_budget_ends_spending(kb: Knowledge, concurrency: int) -> None:
    """A plan above it is refused; a run stops before it, at most one request beyond, when a price has risen since."""
    kb.model = {"items": 4, "concurrency": concurrency}
    kb.configure()
    kb.fill(120)
    budget = 0.2  # of about 0.9
    kb.job(budget={"usd": budget})
    found = run("apply", "jobs/change.yaml", "--auto-approve")
    assert found.exit_code == 1
    assert "VC101" in found.stderr
    assert "at most 0.20 is allowed" in found.stderr
    assert kb.ws.state("change") == {}
    kb.model |= {"price": PRICE / 10}
    kb.configure()
    kb.plan()
    kb.model |= {"price": PRICE}
    kb.configure()
    kb.server.set(delay=0.02)
    found = run("apply", "plans/change.json")
    assert found.exit_code == 1
    assert "The budget of the job is used up" in found.stderr
    stats = kb.server.stats()
    spent = stats["tokens"] * PRICE / 1e6
    assert budget * 0.5 < spent <= budget + 4 * 8 * PRICE / 1e6
    assert kb.ws.serving() == {}
    assert run("rollback", "change", "--auto-approve").exit_code == 0
    kb.job(budget={"usd": 5})
    paid = kb.server.returned()
    assert run("apply", "jobs/change.yaml", "--auto-approve").exit_code == 0
    once = kb.server.returned()
    assert {text: once[text] for text in paid} == paid  # what was bought before is kept
    kb.is_new()


def test_policies_of_the_workspace(kb: Knowledge) -> None:
    """VC101 and VC102 block until they are accepted with a reason."""
    kb.model = {"requests_per_minute": 60, "items": 2}
    kb.configure(policies={"usd": 0.01, "time": "5s"})
    kb.fill(40)
    kb.job()
    plan = kb.plan()
    blocking = {item["code"] for item in plan["notices"] if item["blocking"]}
    assert blocking == {"VC101", "VC102"}
    found = run("apply", "plans/change.json")
    assert found.exit_code == 1
    assert "VC102" in found.stderr
    assert kb.server.stats()["requests"] == 0
    codes = [{"code": code, "reason": "it is worth it"} for code in ("VC101", "VC102")]
    kb.job(accept=codes[:1])
    assert {item["code"] for item in kb.plan()["notices"] if item["blocking"]} == {"VC102"}
    kb.job(accept=codes)
    assert not any(item["blocking"] for item in kb.plan()["notices"])
    kb.model = {"items": 2}
    kb.configure()
    assert run("apply", "plans/change.json").exit_code == 0
    kb.is_new()


# -- stopped, killed, gone on with ---------------------------------------------------------------------------------------


def slow(kb: Knowledge) -> None:
    """A plan whose run takes a second or two."""
    kb.model = {"items": 4, "concurrency": 2}
    kb.configure()
    kb.fill(100)
    kb.job(batch_size=8)
    kb.plan()
    kb.server.set(delay=0.08)


def test_paused_and_gone_on_with(kb: Knowledge) -> None:
    slow(kb)
    with kb.ws.start("apply", "plans/change.json") as process:
        until(lambda: kb.server.stats()["replies"] >= 6)
        assert run("pause", "change").exit_code == 0
        assert process.wait(20) == 130
    done = status()
    assert done["run"]["status"] == "paused"
    assert 0 < len(kb.server.returned()) < 100
    outcome = kb.done(run("resume", "change", "--json"))
    assert kb.server.returned() == dict.fromkeys(kb.texts.values(), 1)
    kb.paid(outcome)
    kb.is_new()


def test_stopped_by_ctrl_c(kb: Knowledge) -> None:
    """What is under way is waited for and kept."""
    slow(kb)
    with kb.ws.start("apply", "plans/change.json") as process:
        until(lambda: kb.server.stats()["replies"] >= 6)
        process.send_signal(signal.SIGINT)
        _out, err = process.communicate(timeout=20)
        assert process.returncode == 130
    assert "vecrun resume change" in err
    assert run("resume", "change").exit_code == 0
    assert kb.server.returned() == dict.fromkeys(kb.texts.values(), 1)
    kb.is_new()


def test_cancelled_and_undone(kb: Knowledge) -> None:
    slow(kb)
    before = kb.world()
    with kb.ws.start("apply", "plans/change.json") as process:
        until(lambda: kb.server.stats()["replies"] >= 6)
        assert run("cancel", "change").exit_code == 0
        assert process.wait(20) == 130
    assert run("rollback", "change", "--auto-approve").exit_code == 0
    assert kb.world() == before
    kb.server.set(delay=0)
    assert run("apply", "jobs/change.yaml", "--auto-approve", "--unpin").exit_code == 0
    counts = kb.server.returned()
    assert {text: counts[text] for text in kb.texts.values()} == dict.fromkeys(kb.texts.values(), 1)


def test_killed_in_the_middle(kb: Knowledge) -> None:
    """kill -9: only what was under way at that moment is asked for again."""
    slow(kb)
    with kb.ws.start("apply", "plans/change.json") as process:
        until(lambda: kb.server.stats()["replies"] >= 8)
        process.kill()
        process.wait(10)
    time.sleep(1)  # the server answers what was under way, and counts it
    at_the_kill = kb.server.returned()
    assert 0 < len(at_the_kill) < 100
    outcome = kb.done(run("resume", "change", "--wait", "40s", "--json"))
    counts = kb.server.returned()
    assert set(counts) == set(kb.texts.values())
    twice = [text for text, count in counts.items() if count != 1]
    assert len(twice) <= 2 * 4
    assert all(counts[text] == 2 and text in at_the_kill for text in twice)
    assert outcome["used"]["texts"] == 100
    kb.is_new()


@pytest.mark.parametrize(("at", "again"), [("embed:answered:3", 4), ("copy_points:after_write:2", 0)])
def test_killed_at_a_known_place(kb: Knowledge, at: str, again: int) -> None:
    kb.model = {"items": 4, "concurrency": 1}
    kb.configure()
    kb.fill(60)
    kb.job(batch_size=8)
    kb.plan()
    died = kb.ws.process("apply", "plans/change.json", env={"VECRUN_CRASH_AT": at})
    assert died.returncode == -9, died.stderr
    outcome = kb.done(run("resume", "change", "--wait", "40s", "--json"))
    counts = kb.server.returned()
    assert set(counts) == set(kb.texts.values())
    twice = sum(counts.values()) - 60
    assert twice in (again, 4)  # the next request may be under way while a batch is written
    # what was under way at the kill was answered to nobody, or not at all
    assert kb.server.stats()["replies"] - outcome["used"]["requests"] in (0, 1)
    kb.is_new()


# -- workers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis() -> Iterator[servers.Redis]:
    with servers.redis_server() as server:
        yield server


@pytest.fixture
def team(kb: Knowledge, pg_url: str, redis: servers.Redis) -> Iterator[Team]:
    """A workspace whose ledger is in PostgreSQL, worked on by processes of their own."""
    name = f"team_{uuid.uuid4().hex[:10]}"
    servers.sql(pg_url, f"CREATE DATABASE {name}")
    database = servers.database(pg_url, name)
    kb.configure(
        state={"database": database}, broker={"url": redis.url, "namespace": name},
        limits={"lease_seconds": 5, "retry_delay": 0.05, "workers": 2},
    )  # fmt: skip
    ledger = LedgerWatch(database)
    with contextlib.ExitStack() as processes:
        processes.callback(lambda: servers.sql(pg_url, f"DROP DATABASE {name} WITH (FORCE)"))
        processes.callback(ledger.close)
        yield Team(kb.ws, ledger, processes)


def test_two_workers(kb: Knowledge, team: Team) -> None:
    """Both ask; no text twice, whoever asks for it; the pace holds over both together."""
    kb.model = {"items": 4, "concurrency": 2, "requests_per_minute": 300}
    kb.configure()
    kb.fill({f"p{n:03}": text_of(n) for n in range(120)})
    kb.job(batch_size=8)
    kb.plan()
    kb.server.set(delay=0.15, requests_per_minute=15, window=3.0, enforce=False)
    team.worker(), team.worker()
    outcome = kb.done(run("apply", "plans/change.json", "--json"))
    kb.is_new()
    stats = kb.server.stats()
    assert kb.server.returned() == dict.fromkeys(kb.texts.values(), 1)
    assert stats["violations"] == 0
    assert stats["most_at_once"] <= 4
    kb.paid(outcome)
    workers = team.ledger.query("select count(distinct worker) from partitions where step = 1 and worker is not null")
    assert workers[0][0] == 2
    assert run("rollback", "change", "--auto-approve").exit_code == 0
    assert "docs_new" not in kb.world()


def test_a_worker_is_killed(kb: Knowledge, team: Team) -> None:
    kb.model = {"items": 4, "concurrency": 2}
    kb.configure()
    kb.fill({f"p{n:03}": text_of(n) for n in range(120)})
    kb.job(batch_size=8)
    kb.plan()
    kb.server.set(delay=0.2)
    workers = [team.worker(), team.worker()]
    applied = team.start("apply", "plans/change.json", "--json")
    until(lambda: kb.server.stats()["replies"] >= 6)
    workers[0].kill()
    team.ends(applied, 0)
    kb.is_new()
    counts = kb.server.returned()
    twice = [text for text, count in counts.items() if count != 1]
    assert len(twice) <= 2 * 4
    assert set(counts) == set(kb.texts.values())


# -- written to meanwhile --------------------------------------------------------------------------------------------------

WRITER = """
import json, sys, time
from pathlib import Path
import numpy as np
from runner.embedders.hash import hash_vectors
from runner.points import Payloads, PointBatch
from runner.stores import config_model, open_store

path, name, dimension, model, stop, log = sys.argv[1:]
store, number = open_store(config_model("files")(type="files", path=path)), 0
with open(log, "a") as written:
    while not Path(stop).exists():
        number += 1
        one, text = f"p{number * 7 % 60:03}", f"written {number} meanwhile"
        verb = ("insert", "edit", "edit", "delete")[number % 4]
        if verb == "insert":
            one = f"w{number:03}"
        if verb == "delete":
            one = f"w{number - 2:03}" if number % 8 == 3 else f"p{number % 60:03}"
            store.delete(name, [one])
        else:
            made = hash_vectors([text], int(dimension), model)
            store.upsert(name, PointBatch([one], {"": made}, Payloads([{"text": text, "at": 1000 + number}])))
        written.write(json.dumps([one, None if verb == "delete" else text]) + "\\n")
        written.flush()
        time.sleep(0.02)
"""


@contextlib.contextmanager
def writer(kb: Knowledge, name: str, dimension: int, model: str = "old") -> Iterator[Path]:
    """An application that inserts, edits and deletes; its log says what it did."""
    stop, log = kb.ws.root / "stop", kb.ws.root / "writes.log"
    log.touch()
    program = kb.ws.write("writer.py", WRITER)
    from tests.e2e.workspace import environment

    arguments = [str(kb.ws.root / "kb"), name, str(dimension), model, str(stop), str(log)]
    with subprocess.Popen(
        [sys.executable, str(program), *arguments], env=environment({}), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            until(lambda: log.read_text().count("\n") > 5)
            yield stop
        finally:
            stop.touch()
            _out, err = process.communicate(timeout=20)
        assert process.returncode == 0, err
    for line in log.read_text().splitlines():
        one, text = json.loads(line)
        if text is None:
            kb.texts.pop(one, None)
        else:
            kb.texts[one] = text


def test_written_to_while_it_is_embedded(kb: Knowledge) -> None:
    """A new collection: everything that was there before the switch is right afterwards (B7)."""
    kb.models["slow"] = {"provider": "hash", "model": "m", "dimension": NEW, "delay": 0.05, "items": 4}
    kb.configure()
    kb.fill({f"p{n:03}": text_of(n) for n in range(60)})
    kb.job(
        model="slow", documents=None, live={"bound": 2, "passes": 50, "field": "at"}, to="docs_new",
        knowledge_base=None, batch_size=8,
    )  # fmt: skip
    kb.plan()
    with writer(kb, "docs", 8) as stop, kb.ws.start("apply", "plans/change.json") as process:
        until(lambda: Path("kb/docs_new").exists())
        time.sleep(1.5)
        stop.touch()  # an application that moves with the pointer would go on there
        code = process.wait(40)
        assert code == 0, process.communicate()[1]
    held = kb.points("docs_new")
    assert {one: item[1]["text"] for one, item in held.items()} == kb.texts
    for one, text in kb.texts.items():
        assert held[one][0].tobytes() == new_vectors([text])[0].tobytes(), one


def test_written_to_while_vectors_are_replaced(kb: Knowledge) -> None:
    """In place: no write of the application is lost, and in the end every vector is of the text that stands there."""
    kb.models["slow"] = {"provider": "hash", "model": "m", "dimension": 8, "delay": 0.05, "items": 4}
    kb.configure()
    kb.fill({f"p{n:03}": text_of(n) for n in range(60)})
    kb.job(
        model="slow", documents=None, live={"bound": 5, "passes": 50}, strategy="replace", knowledge_base=None,
        batch_size=8, accept=[{"code": "VL202", "reason": "a moment of milliseconds"}],
    )  # fmt: skip
    kb.plan()
    with writer(kb, "docs", 8) as stop, kb.ws.start("apply", "plans/change.json") as process:
        until(lambda: any(Path("kb").glob("docs__saved*")))
        time.sleep(1.5)
        stop.touch()
        code = process.wait(40)
        assert code == 0, process.communicate()[1]
    held = {one: (vector, item["text"]) for one, (vector, item) in kb.points("docs").items()}
    for one, (vector, text) in held.items():
        assert vector.tobytes() == hash_vectors([text], 8, "m")[0].tobytes(), one
    lost = [one for one in {*held, *kb.texts} if (held[one][1] if one in held else None) != kb.texts.get(one)]
    assert len(lost) <= 3, lost  # VL202: what was written in the very moment of a replacement


@pytest.mark.parametrize("strategy", ["create_new_collection", "replace"])
def test_bad_texts_of_a_live_collection(kb: Knowledge, strategy: str) -> None:
    """Passes and verification leave them out, too; each good text is asked for once."""
    kb.models["small"] = {"provider": "hash", "model": "old", "dimension": NEW}
    kb.configure()
    kb.fill(20)
    kb.job("grow", model="small", documents=None, knowledge_base=None, cutover=None, to="wide")
    assert run("apply", "jobs/grow.yaml", "--auto-approve").exit_code == 0
    kb.say({"p003": "this is POISON", "p007": ""}, "wide")
    kb.server.set(refuse="POISON")
    accept = [{"code": code, "reason": "looked at"} for code in ("VL201", "VL202")]
    kb.job(
        collection="wide", from_model="small", strategy=strategy, failures={"allow": 2}, live={"bound": 0},
        accept=accept,
    )  # fmt: skip
    before = kb.world()
    outcome = kb.apply(status=3)
    assert outcome["failed"] == 2
    good = [text for one, text in kb.texts.items() if one not in ("p003", "p007")]
    assert kb.server.returned() == dict.fromkeys(good, 1)
    name = "wide" if strategy == "replace" else "wide_new"
    kb.is_new(name, but=["p003", "p007"])
    kb.server.set(refuse="")
    kb.server.reset()
    assert run("retry-failed", "change", "--auto-approve").exit_code == 3
    assert kb.server.returned() == {"this is POISON": 1}
    kb.is_new(name, but=["p007"])
    found = run("rollback", "change", "--auto-approve")
    assert found.exit_code == 0, found.stderr
    assert kb.world() == before


@pytest.mark.parametrize("strategy", ["create_new_collection", "incremental"])
def test_an_empty_collection(kb: Knowledge, strategy: str) -> None:
    kb.fill({})
    kb.job(strategy=strategy)
    outcome = kb.apply()
    assert outcome["used"]["requests"] == 0
    assert len(kb.points("docs_new")) == 0
    assert kb.info()["model"] == "m"
    assert run("rollback", "change", "--auto-approve").exit_code == 0
    assert kb.info() == {"dimension": 8}
