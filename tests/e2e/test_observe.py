"""Watching from outside: notifications, metrics and logs (A6, A10, O4), and that none of them shows a secret (G1)."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from runner import logs, metrics
from runner.cli.notifications import EVENTS
from runner.commands import open_context
from runner.errors import InvalidFile, VecrunError
from runner.ledger import Ledger
from runner.notify import Event, notify
from runner.points import KeyRange
from runner.settings import Happening, Settings
from tests.e2e.knowledge import Knowledge, Server
from tests.e2e.workspace import REPOSITORY, SETTINGS, Workspace, environment, run

GUIDE = REPOSITORY / "docs" / "howto" / "observe.md"
#: Of the form of the keys that chat services put into the path of a URL.
KEY = "xq7Rw2Lk9sPz4Vb1Nd8Tc3Yf"


# A receiver ---------------------------------------------------------------------------------------------------------


@dataclass
class Receiver:
    """An HTTP server on loopback that keeps what it gets. `answers` are its next statuses; then it answers 200."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    silent: bool = False
    dribble: bool = False
    location: str = ""
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, _, body in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.got.append((self.path, dict(self.headers.items()), body))
            if made.silent:
                made.released.wait(30)
                return
            if made.dribble:
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                while not made.released.wait(0.05):
                    self.wfile.write(b"X-Slow: yes\r\n")
                return
            self.send_response(made.answers.pop(0) if made.answers else 200)
            if made.location:
                self.send_header("Location", made.location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            made.got.append((self.path, {}, b"{}"))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_args: Any) -> None:
            return

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:  # whoever asked has gone
                return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


def told(ws: Workspace, *entries: dict[str, Any]) -> Settings:
    """The settings of the workspace with these notifications (JSON is YAML)."""
    ws.write("vecrun.yaml", f"{SETTINGS}notifications: {json.dumps(entries)}\n")
    return open_context(ws.root).settings


def event(happening: Happening = "failure", job: str = "move", **fields: Any) -> Event:
    status = {"success": "completed", "failure": "failed"}.get(happening, happening)
    row = {
        "run": "r-1", "job": job, "purpose": "apply", "kind": "VectorMigration", "status": status,
        "started": "2026-11-20T10:00:00.000+00:00", "finished": None, "error": None,
    }  # fmt: skip
    return Event.of(
        row | fields, "prod", 1234, VecrunError("No space left", "b/kb2", "Make room, then: vecrun resume move")
    )


# Notifications ------------------------------------------------------------------------------------------------------


def test_a_webhook_gets_the_event_with_a_right_signature(
    ws: Workspace, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPS_KEY", "open-sesame")
    told(ws, {"webhook": f"{receiver.url}/hook", "secret": "${env:OPS_KEY}"})
    found = run("notify", "test", "--event", "failure")
    assert found.exit_code == 0, found.output
    assert found.stdout == f"notifications.0  webhook {receiver.url}  arrived\n"
    ((path, headers, body),) = receiver.got
    assert path == "/hook"
    assert headers["Content-Type"].startswith("application/json")
    assert headers["X-Vecrun-Signature"] == "sha256=" + hmac.new(b"open-sesame", body, hashlib.sha256).hexdigest()
    sent = json.loads(body)
    assert (sent["format_version"], sent["type"], sent["event"], sent["test"]) == (
        "1.1",
        "notification",
        "failure",
        True,
    )
    assert (sent["job"], sent["status"]) == ("test", "failed")
    assert "open-sesame" not in body.decode()


def test_notify_test_says_for_each_entry_whether_it_arrived(ws: Workspace, receiver: Receiver) -> None:
    receiver.answers = [404]
    told(ws, {"webhook": receiver.url, "on": ["paused"], "jobs": ["other"]}, {"webhook": "http://127.0.0.1:9/x"})
    found = run("notify", "test", "--json")
    assert found.exit_code == 1
    first, second = json.loads(found.stdout)["items"]
    assert first == {
        "entry": "notifications.0",
        "address": f"webhook {receiver.url}",
        "error": "it answered 404 Not Found",
    }
    assert "Connection refused" in second["error"]
    receiver.got.clear()
    assert run("notify", "test").exit_code == 1
    assert len(receiver.got) == 1, "it is asked although the entry wants other events of other jobs: it is a test"
    told(ws)
    assert run("notify", "test").exit_code == 10


def test_a_receiver_that_fails_twice_is_told_in_the_end(ws: Workspace, receiver: Receiver) -> None:
    receiver.answers = [503, 429]
    settings = told(ws, {"webhook": receiver.url})
    assert notify(settings, event(), pause=0.01) == []
    assert len(receiver.got) == 3
    assert len({headers["X-Vecrun-Delivery"] for _, headers, _ in receiver.got}) == 1
    assert receiver.got[0][2] == receiver.got[2][2]
    receiver.answers = [500, 502, 503]
    assert notify(settings, event(), pause=0.01) == [
        f"notifications.0 (webhook {receiver.url}) was not reached: it answered 503 Service Unavailable, 3 times"
    ]
    assert len(receiver.got) == 6


def test_what_cannot_get_better_is_not_tried_again(ws: Workspace, receiver: Receiver) -> None:
    receiver.answers = [401]
    (line,) = notify(told(ws, {"webhook": receiver.url}), event())
    assert line.endswith("it answered 401 Unauthorized")
    assert len(receiver.got) == 1


def test_a_receiver_that_never_answers_is_given_up(ws: Workspace, receiver: Receiver) -> None:
    receiver.silent = True
    settings = told(ws, {"webhook": receiver.url})
    began = time.monotonic()
    (line,) = notify(settings, event(), timeout=0.2, pause=0.01)
    assert line.endswith("it did not answer within 0.2 s, 3 times")
    assert time.monotonic() - began < 15
    assert len(receiver.got) == 3


def test_a_receiver_that_dribbles_its_answer_holds_nobody_up(ws: Workspace, receiver: Receiver) -> None:
    receiver.dribble = True
    began = time.monotonic()
    (line,) = notify(told(ws, {"webhook": receiver.url}), event(), timeout=0.3, pause=0.01)
    assert "no answer within" in line
    assert time.monotonic() - began < 15


def test_a_redirect_is_not_followed(ws: Workspace, receiver: Receiver) -> None:
    receiver.answers, receiver.location = [302], f"{receiver.url}/elsewhere"
    (line,) = notify(told(ws, {"webhook": receiver.url}), event())
    assert line.endswith("it answered 302 Found")
    assert len(receiver.got) == 1


def test_entries_choose_events_and_jobs(ws: Workspace, receiver: Receiver) -> None:
    settings = told(
        ws,
        {"webhook": f"{receiver.url}/all"},
        {"webhook": f"{receiver.url}/bad", "on": ["failure", "paused"]},
        {"webhook": f"{receiver.url}/kb", "on": ["cancelled"], "jobs": ["kb-*", "move"]},
    )

    def reached(happening: Happening, job: str) -> list[str]:
        receiver.got.clear()
        assert notify(settings, event(happening, job)) == []
        return sorted(path for path, _, _ in receiver.got)

    assert reached("success", "move") == ["/all"]
    assert reached("failure", "move") == ["/all", "/bad"]
    assert reached("paused", "kb-1") == ["/all", "/bad"]
    assert reached("cancelled", "kb-1") == ["/all", "/kb"]
    assert reached("cancelled", "other") == ["/all"]
    assert get_args(Happening) == EVENTS


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # a plugin of Apprise
def test_apprise_sends_through_any_of_its_services(ws: Workspace, receiver: Receiver) -> None:
    settings = told(ws, {"apprise": f"json://127.0.0.1:{receiver.port}/hook"})
    assert notify(settings, event()) == []
    (sent,) = receiver.bodies()
    assert sent["title"] == "vecrun: move failed"
    assert sent["type"] == "failure"
    assert "1,234 points copied." in sent["message"]
    assert "Make room, then: vecrun resume move" in sent["message"]
    assert notify(settings, event("paused")) == []
    assert receiver.bodies()[1]["type"] == "warning"
    receiver.answers = [500]
    (line,) = notify(settings, event())
    assert "Apprise could not send it" in line
    assert "500" in line


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # a plugin of Apprise
def test_a_kind_of_url_that_apprise_does_not_know(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT", f"nosuch://{KEY}/x")
    (line,) = notify(told(ws, {"apprise": "${env:CHAT}"}), event())
    assert line.startswith("notifications.0 (apprise ${env:CHAT}) was not reached: Apprise cannot use the URL")
    assert KEY not in line


def test_without_the_package_the_way_to_it_is_told(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    (line,) = notify(told(ws, {"apprise": "json://127.0.0.1:9/"}), event())
    assert "Apprise is not installed" in line
    assert "pip install 'vecrun[notify]'" in line


def test_a_secret_that_is_not_there_is_named(ws: Workspace, receiver: Receiver) -> None:
    settings = told(ws, {"webhook": "${env:VECRUN_TEST_NO_SUCH}"}, {"webhook": receiver.url})
    (line,) = notify(settings, event())
    assert "notifications.0 (webhook ${env:VECRUN_TEST_NO_SUCH})" in line
    assert "environment variable VECRUN_TEST_NO_SUCH is not set" in line
    assert len(receiver.got) == 1, "the other entry is told all the same"


ADDRESSES: dict[str, Callable[[int], dict[str, Any]]] = {
    "webhook, closed port": lambda _port: {
        "webhook": f"http://user:open-sesame@127.0.0.1:9/services/{KEY}?sig=open-sesame"
    },
    "webhook, refused": lambda port: {"webhook": f"http://127.0.0.1:{port}/services/{KEY}?token=open-sesame"},
    "webhook, no URL": lambda _port: {"webhook": f"http://[::1/{KEY}/open-sesame"},
    "webhook, a space": lambda _port: {"webhook": f"http://127.0.0.1:9/{KEY} open-sesame"},
    "webhook, a file": lambda _port: {"webhook": f"file:///{KEY}/open-sesame"},
    "webhook, no such host": lambda _port: {"webhook": f"http://{KEY}.invalid/open-sesame"},
    "apprise, closed port": lambda _port: {"apprise": f"json://user:open-sesame@127.0.0.1:9/{KEY}"},
    "apprise, refused": lambda port: {"apprise": f"json://user:open-sesame@127.0.0.1:{port}/{KEY}"},
    "apprise, wrong form": lambda _port: {"apprise": f"slack://{KEY}/open-sesame"},  # it quotes a part
}


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_secret_in_an_address_is_shown_nowhere(
    ws: Workspace, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    receiver.answers = [403] * 9
    ((key, url),) = ADDRESSES[name](receiver.port).items()
    monkeypatch.setenv("ADDRESS", url)
    told(ws, {key: "${env:ADDRESS}"})
    code = (
        "import sys\nfrom runner import logs\nfrom runner.cli import main\n"
        "logs.configure('json', 'debug')\nsys.argv = ['vecrun', '--debug', 'notify', 'test']\nmain()\n"
    )
    done = python(code, ws.root, VECRUN_LOG="debug")
    assert done.returncode == 1
    assert "notifications.0" in done.stdout
    assert "failed: " in done.stdout
    shown = done.stdout + done.stderr
    for secret in (KEY, KEY.lower(), "open-sesame", url):
        assert secret not in shown
    assert "Traceback" not in shown


LITERALS = {
    "a password": {"webhook": "https://user:open-sesame@ops.example.com/hook"},
    "a key in the path": {"webhook": f"https://hooks.slack.com/services/T0/B0/{KEY}"},
    "an id in the path": {"webhook": "https://hc-ping.com/0f4e5c1a-9d2b-4c3e-8f7a-6b5d4c3e2f1a"},
    "a signature": {"webhook": "https://prod.logic.azure.com/workflows/x?sig=open-sesame"},
    "the key": {"webhook": "https://ops.example.com/hook", "secret": "open-sesame"},
    "a chat": {"apprise": "slack://open-sesame/b/c"},
    "a mailbox": {"apprise": "mailto://user:open-sesame@example.com"},
    "no address": {"webhook": f"ftp://{KEY}/open-sesame"},
    "no address of Apprise": {"apprise": f"{KEY} open-sesame"},
    "two addresses": {"webhook": "https://ops.example.com/a", "apprise": "json://ops.example.com/a"},
    "none": {"on": ["success"]},
    "a key for Apprise": {"apprise": "json://ops.example.com/a", "secret": "${env:OPS_KEY}"},
    "an unknown event": {"webhook": "https://ops.example.com/a", "on": ["finished"]},
    "nothing to tell": {"webhook": "https://ops.example.com/a", "on": []},
}


@pytest.mark.parametrize("name", LITERALS)
def test_a_wrong_entry_is_refused_and_its_secret_not_repeated(ws: Workspace, name: str) -> None:
    with pytest.raises(InvalidFile):
        told(ws, LITERALS[name])
    for args in (("validate",), ("validate", "--json")):
        found = run(*args)
        assert found.exit_code == 14
        assert "vecrun.yaml:6" in found.output or '"line": 6' in found.output
        assert "notifications.0" in found.output
        assert "open-sesame" not in found.output
        assert KEY not in found.output


def test_an_address_without_a_secret_may_be_written_out(ws: Workspace) -> None:
    for entry in (
        {"webhook": "http://ops-2.example.com:8080/vecrun/notifications-of-2026"},
        {"webhook": "https://ops.example.com/hook?team=search"},
        {"webhook": "https://hooks.slack.com/services/${env:SLACK_KEY}"},
        {"apprise": "json://ops.example.com/hook"},
        {"apprise": "mailto://user:${env:MAIL_PASSWORD}@example.com"},
        {"apprise": "${env:CHAT}", "on": ["failure"], "jobs": ["kb-*"]},
    ):
        told(ws, entry)
        assert run("validate").exit_code == 0


def test_an_event_tells_what_a_run_did(ws: Workspace, receiver: Receiver) -> None:
    ws.fill(50)
    outcome = ws.apply()
    with ws.context().ledger(reading=True) as ledger:
        row = ledger.run(outcome.run)
    assert notify(told(ws, {"webhook": receiver.url}), Event.of(row, "", outcome.points)) == []
    (sent,) = receiver.bodies()
    assert (sent["event"], sent["status"], sent["run"], sent["points"]) == ("success", "completed", outcome.run, 50)
    assert sent["started"] < sent["finished"] <= sent["sent"]
    assert sent["title"] == "vecrun: move completed"
    assert f"vecrun status {outcome.run}" in sent["hint"]
    assert sent["hint"] in sent["text"]
    assert run("status", outcome.run).exit_code == 0


def test_apply_tells_how_it_ended(ws: Workspace, receiver: Receiver) -> None:
    ws.fill(ids=list(range(4000)))
    ws.poison(3999)  # beyond the sample of the plan
    told(ws, {"webhook": receiver.url})
    failed = run("apply", "jobs/move.yaml", "--auto-approve")
    assert failed.exit_code != 0
    (sent,) = receiver.bodies()
    assert (sent["event"], sent["status"], sent["job"], sent["test"]) == ("failure", "failed", "move", False)
    assert "NaN" in sent["error"]
    assert "vecrun" in sent["hint"]
    assert run("status", sent["run"]).exit_code == 0
    with ws.store("a") as store:
        store.delete("kb", [3999])
    assert run("rollback", "move", "--auto-approve").exit_code == 0
    assert receiver.bodies()[1]["title"] == "vecrun: rollback of move completed"
    assert run("apply", "jobs/move.yaml", "--auto-approve", "--unpin").exit_code == 0
    assert len(receiver.got) == 3
    last = receiver.bodies()[2]
    assert (last["event"], last["points"], last["error"]) == ("success", 3999, "")


def test_a_receiver_that_is_down_does_not_change_how_a_run_ends(ws: Workspace) -> None:
    ws.fill()
    told(ws, {"webhook": "http://127.0.0.1:9/hook"})
    found = run("apply", "jobs/move.yaml", "--auto-approve")
    assert found.exit_code == 0, found.output
    assert ws.serving()
    warnings = [
        line["message"]
        for line in json.loads(run("logs", "move", "--json").stdout)["items"]
        if line["level"] == "warning"
    ]
    assert warnings == [
        "notifications.0 (webhook http://127.0.0.1:9) was not reached: the connection failed, 3 times: Connection refused"
    ]


# Metrics ------------------------------------------------------------------------------------------------------------

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(address: str) -> Samples:
    """Every sample by name and labels, as Prometheus would read it."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, /, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


def test_metrics_of_a_ledger_after_a_real_run(ws: Workspace) -> None:
    ws.fill(50)
    outcome = ws.apply()
    with ws.context().ledger() as ledger:
        server = metrics.serve("127.0.0.1:0", ledger, lambda: 7)
        try:
            found = scrape(server.address)
            again = scrape(server.address)
        finally:
            server.close()
    with pytest.raises(OSError, match="refused"):
        scrape(server.address)
    assert found[key("vecrun_ledger_up")] == 1
    assert found[key("vecrun_runs", status="completed")] == 1
    assert found[key("vecrun_runs", status="failed")] == 0
    assert found[key("vecrun_queue_messages")] == 7
    labels = {"job": "move", "run": outcome.run}
    assert found[key("vecrun_run_info", **labels, purpose="apply", status="completed")] == 1
    for step in ("copy_points", "verify_points"):
        assert found[key("vecrun_run_points", **labels, step=step)] == 50
        assert found[key("vecrun_run_points_done", **labels, step=step)] == 50
        assert found[key("vecrun_points_total", job="move", step=step)] == 50
        assert found[key("vecrun_batches_total", job="move", step=step)] >= 1
        assert found[key("vecrun_retries_total", job="move", step=step)] == 0
        assert found[key("vecrun_step_seconds_count", job="move", step=step)] == 1
        assert 0 <= found[key("vecrun_step_seconds_sum", job="move", step=step)] < outcome.seconds + 1
    assert found[key("vecrun_errors_total", job="move")] == 0
    assert found[key("vecrun_workers", state="live")] == 0
    assert found[key("process_resident_memory_bytes")] > 1e6
    unstable = ("vecrun_scrape_seconds", "process_", "vecrun_lease")
    for item, value in found.items():
        if not item[0].startswith(unstable):
            assert again[item] == value, "what is read once is told the second time, too"
    known = {name + suffix for name in metrics.METRICS for suffix in ("", "_sum", "_count")}
    assert {name for name, _ in found if name.startswith("vecrun_")} <= known


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_metrics_of_a_run_at_work_and_of_its_leases(
    ws: Workspace, request: pytest.FixtureRequest, database: str
) -> None:
    ws.fill(10)
    plan = ws.plan()
    url = f"sqlite:///{ws.root / 'ledger.db'}" if database == "sqlite" else request.getfixturevalue("pg_database")
    with closing(Ledger(url)) as ledger:
        server = metrics.serve(":0", ledger)
        try:
            assert server.address.startswith("127.0.0.1:"), "loopback unless another address is asked for"
            assert key("vecrun_lease_age_seconds", name="job:move") not in scrape(server.address)
            lease = ledger.acquire(["job:move"], "r-1", 60)
            ledger.start_run(lease, plan, plan.dumps())
            verify = next(n for n, step in enumerate(plan.steps) if step.type == "verify_points")
            for number in (1, verify):
                ledger.set_step(lease, number, "running")
                ledger.cut(lease, number, [KeyRange(None, 5), KeyRange(5, None)], "sha256:x")
            for number, done in ((1, 5), (verify, 4)):
                part = ledger.take(lease, number, 0, "w1")
                assert part is not None
                progress = part.__class__(**(vars(part) | {"done": done, "read": done, "batches": 1, "retries": 2}))
                ledger.checkpoint(lease, number, progress)
            ledger.write_log("r-1", "error", "partition 1 of step 1: gone")
            found = scrape(server.address)
            ledger.restart_step(lease, verify)
            again = scrape(server.address)
        finally:
            server.close()
    assert 0 <= found[key("vecrun_lease_age_seconds", name="job:move")] < 30
    assert 30 < found[key("vecrun_lease_expires_in_seconds", name="job:move")] <= 60
    assert found[key("vecrun_runs", status="running")] == 1
    assert found[key("vecrun_run_points", job="move", run="r-1", step="copy_points")] == 10
    assert found[key("vecrun_run_points_done", job="move", run="r-1", step="copy_points")] == 5
    assert found[key("vecrun_points_total", job="move", step="copy_points")] == 5
    assert found[key("vecrun_retries_total", job="move", step="copy_points")] == 2
    assert found[key("vecrun_errors_total", job="move")] == 1
    assert found[key("vecrun_partitions", status="running")] == 2
    assert found[key("vecrun_partitions", status="pending")] == 2
    assert key("vecrun_queue_messages") not in found
    # a verification begins anew: its progress falls, a counter must not
    assert found[key("vecrun_run_points_done", job="move", run="r-1", step="verify_points")] == 4
    assert again[key("vecrun_run_points_done", job="move", run="r-1", step="verify_points")] == 0
    for name in ("vecrun_points_total", "vecrun_batches_total", "vecrun_retries_total"):
        for item, value in found.items():
            assert item[0] != name or again[item] >= value


def embedding(ws: Workspace, receiver: Receiver | None = None, **spec: Any) -> Knowledge:
    """A knowledge base of 40 texts, of which the new model refuses one."""
    models = {
        "wide": {"provider": "hash", "model": "wide", "dimension": 16, "price": 1000, "text_tokens": 20, "items": 8},
        "same": {"provider": "hash", "model": "same", "dimension": 8, "text_tokens": 20},
    }
    made = Knowledge(ws, Server("http://127.0.0.1:9"), models=models)
    made.configure(**({"notifications": [{"webhook": receiver.url}]} if receiver is not None else {}))
    made.fill()
    made.say({"p003": "much " * 30})
    made.job(failures={"allow": 1}, **spec)
    return made


def test_metrics_of_a_run_that_embeds(ws: Workspace) -> None:
    embedding(ws, model="wide")
    assert run("apply", "jobs/change.yaml", "--dry-run", "--sample", "10").exit_code in (0, 3)
    assert run("apply", "jobs/change.yaml", "--auto-approve").exit_code == 3
    assert run("rollback", "change", "--auto-approve").exit_code == 0
    assert run("apply", "jobs/change.yaml", "--auto-approve", "--unpin").exit_code == 3
    used = json.loads(run("status", "change", "--json").stdout)["used"]
    with ws.context().ledger() as ledger:
        server = metrics.serve("127.0.0.1:0", ledger)
        try:
            found = scrape(server.address)
            again = scrape(server.address)
        finally:
            server.close()

    def of(name: str, job: str) -> float:
        value = found[key(f"vecrun_embedding_{name}_total", job=job, model="wide")]
        assert again[key(f"vecrun_embedding_{name}_total", job=job, model="wide")] == value
        return value

    assert of("texts", "change") + of("texts", "") == 39, "each text once, those of the dry run among them"
    assert of("texts", "") >= 8
    assert of("known", "change") == 39 + of("texts", ""), "all of the second run, and of the first what the dry run had"
    assert (used["texts"], used["known"]) == (0, 39)
    newest, back, first = json.loads(run("runs", "--json").stdout)["items"]
    assert newest["used"] == used
    assert back["used"] is None
    assert first["used"]["tokens"] + used["tokens"] == of("tokens", "change")
    assert of("tokens", "change") > 39
    assert of("usd", "change") == pytest.approx(of("tokens", "change") * 1000 / 1e6)
    assert found[key("vecrun_failed_items", job="change")] == 2, "one in each run"


def test_progress_of_vectors_replaced_in_place_is_told(ws: Workspace) -> None:
    embedding(ws, model="same", strategy="replace")
    assert run("apply", "jobs/change.yaml", "--auto-approve").exit_code == 3
    with ws.context().ledger() as ledger:
        server = metrics.serve("127.0.0.1:0", ledger)
        try:
            found = scrape(server.address)
        finally:
            server.close()
    (name,) = {dict(labels)["run"] for metric, labels in found if metric == "vecrun_run_info"}
    labels = {"job": "change", "run": name, "step": "replace_vectors"}
    assert found[key("vecrun_run_points", **labels)] == 40
    assert found[key("vecrun_run_points_done", **labels)] == 39
    assert found[key("vecrun_points_total", job="change", step="replace_vectors")] == 39
    status = run("status", "change").stdout
    assert "  points    39\n" in status
    assert re.search(r"  embedded  39 texts in \d+ requests, \d+ tokens\n", status)
    assert "  failed    1 text: vecrun failures change" in status
    assert run("rollback", "change", "--auto-approve").exit_code == 0
    undone = json.loads(run("status", "change", "--json").stdout)
    assert (undone["done"], undone["total"]) == (39, 39)


def test_what_a_cancelled_change_in_place_has_left_is_said(ws: Workspace) -> None:
    kb = embedding(ws, model="same", strategy="replace")
    died = ws.process(
        "apply", "jobs/change.yaml", "--auto-approve", env={"VECRUN_CRASH_AT": "replace_vectors:after_checkpoint"}
    )
    assert died.returncode == -9
    left = json.loads(run("cancel", "change", "--json").stdout)["left_behind"]
    assert any(
        re.search(
            r"kb/docs: the vectors of \d+ of 40 points were replaced; the old points are in kb/docs__saved_", line
        )
        for line in left
    ), left
    assert any("app: chunks.embedding_model_version is empty for rows of another version" in line for line in left)
    assert set(kb.versions().values()) == {None}
    status = json.loads(run("status", "change", "--json").stdout)
    assert status["run"]["status"] == "cancelled"
    assert (0 < status["done"] <= 39, status["total"]) == (True, 40)


def test_a_notification_of_a_run_that_embeds(ws: Workspace, receiver: Receiver) -> None:
    embedding(ws, receiver, model="wide")
    assert run("apply", "jobs/change.yaml", "--auto-approve").exit_code == 3
    (sent,) = receiver.bodies()
    assert (sent["event"], sent["points"], sent["failed"]) == ("success", 39, 1)
    assert "39 points embedded.\n1 text could not be embedded: vecrun failures change" in sent["text"]


def test_a_broken_ledger_or_broker_is_told_and_breaks_no_scrape(tmp_path: Path) -> None:
    def broken() -> int:
        raise ConnectionError("no Redis")

    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    server = metrics.serve("127.0.0.1:0", ledger, broken)
    try:
        found = scrape(server.address)
        assert found[key("vecrun_ledger_up")] == 1
        assert found[key("vecrun_queue_up")] == 0
        assert key("vecrun_queue_messages") not in found
        ledger.close()
        for path in tmp_path.iterdir():
            path.unlink()
        (tmp_path / "ledger.db").write_bytes(b"no database" * 1000)
        found = scrape(server.address)
        assert found[key("vecrun_ledger_up")] == 0
        assert {name for name, _ in found if name.startswith("vecrun_")} == {"vecrun_ledger_up", "vecrun_queue_up"}
    finally:
        server.close()
        ledger.close()


def test_an_address_that_cannot_be_served_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    server = metrics.serve("127.0.0.1:0", ledger)
    try:
        with pytest.raises(VecrunError, match="in use"):
            metrics.serve(server.address, ledger)
        for wrong in ("9464", "localhost", "127.0.0.1:http", "127.0.0.1:99999"):
            with pytest.raises(VecrunError):
                metrics.serve(wrong, ledger)
        monkeypatch.setitem(sys.modules, "prometheus_client", None)
        with pytest.raises(VecrunError) as caught:
            metrics.serve("127.0.0.1:0", ledger)
        assert caught.value.hint == "pip install 'vecrun[metrics]'"
    finally:
        server.close()
        ledger.close()


def test_a_process_that_serves_metrics_can_end(tmp_path: Path) -> None:
    code = (
        "from runner import metrics\nfrom runner.ledger import Ledger\n"
        f"ledger = Ledger('sqlite:///{tmp_path / 'ledger.db'}')\n"
        "print(metrics.serve('127.0.0.1:0', ledger).address)\n"
    )
    assert python(code, tmp_path).stdout.startswith("127.0.0.1:")


# Logs ---------------------------------------------------------------------------------------------------------------

LOGGED = """\
import logging, sys, threading, warnings, contextvars
from runner import errors, logs
for secret in ('open"sesame', 'käse-brot'):
    errors.register_secret(secret)
logs.log().warning("too early")
logs.configure(FORM, "info")
with logs.bound(run="r-1", job="move", step=2, partition=7):
    logs.log().info("batch", points=10, url='http://u:open"sesame@h/', nested={"a": ['käse-brot', {'open"sesame'}]})
    logs.log().debug("too much")
    logging.getLogger("dramatiq.broker").warning("lost %s", 'open"sesame')
    logging.getLogger("dramatiq.broker").info("too much")
    warnings.warn("careful with käse-brot")
    try:
        raise ValueError('open"sesame')
    except ValueError:
        logs.log().exception("internal error")
        logging.getLogger("sqlalchemy.pool").exception("pool")
    logs.log().error("failed", reason=errors.VecrunError("No", 'in käse-brot', "Do"))
    logging.getLogger("x").warning("%d", 'open"sesame')
logs.log().info("after")
"""


def python(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(variables), capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


def test_logs_are_json_lines_with_the_run_and_without_secrets(tmp_path: Path) -> None:
    done = python(f"FORM = 'json'\n{LOGGED}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for secret in ('open"sesame', 'open\\"sesame', "käse-brot", "k\\u00e4se"):
        assert secret not in done.stderr
    *most, unwritable, last = done.stderr.splitlines()
    assert unwritable == "a line of x could not be logged: TypeError"
    lines = [json.loads(line) for line in (*most, last)]
    assert [line["message"] for line in lines][:2] == ["batch", "lost ***"]
    assert len(lines) == 7
    for line in lines[:-1]:
        assert {"run": "r-1", "job": "move", "step": 2, "partition": 7}.items() <= line.items()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line["time"])
    assert "run" not in lines[-1]
    batch, broker, warning, ours, theirs, failed, _ = lines
    assert (batch["level"], batch["logger"], batch["points"]) == ("info", "vecrun", 10)
    assert batch["nested"] == {"a": ["***", ["***"]]}
    assert (broker["level"], broker["logger"]) == ("warning", "dramatiq.broker")
    assert warning["logger"] == "py.warnings"
    for line in (ours, theirs):
        assert line["level"] == "error"
        assert line["exception"].startswith("Traceback (most recent call last):")
        assert line["exception"].endswith("ValueError: ***")
    assert failed["reason"] == {"error": "VecrunError", "summary": "No", "detail": "in ***", "hint": "Do"}
    documented = GUIDE.read_text()
    for name in set().union(*lines) - {"points", "url", "nested", "reason"}:
        assert f"`{name}`" in documented


def test_lines_that_repeat_are_shown_once_a_minute(tmp_path: Path) -> None:
    code = """
import logging, time, warnings
from runner import logs
logs.configure('json')
now = time.monotonic
for minute in range(2):
    for number in range(3):
        logging.getLogger('dramatiq.x').error('lost %s', number)
        logging.getLogger('dramatiq.y').error('lost %s', number)
        logs.log().warning('queue does not answer', reason=str(number))
        logs.log().warning('ours', number=number)
        logging.getLogger('py.warnings').warning('%s', f'w{number}')
    time.monotonic = lambda: now() + 61
"""
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    first = ["lost 0", "lost 0", "queue does not answer", "ours", "w0", "ours", "w1", "ours", "w2"]
    assert lines == first * 2


def test_logs_as_text(tmp_path: Path) -> None:
    done = python(f"FORM = 'text'\n{LOGGED}", tmp_path)
    assert done.returncode == 0, done.stderr
    for secret in ("sesame", "käse", "too much", "too early", "\x1b["):
        assert secret not in done.stderr
    first = done.stderr.splitlines()[0]
    for word in ("info", "batch", "run=r-1", "job=move", "partition=7", "points=10"):
        assert word in first


def test_form_and_level_of_logs_come_from_the_environment(tmp_path: Path) -> None:
    code = "from runner import logs\nlogs.configure('text', 'warning')\nlogs.log().info('hello')\nlogs.log().warning('stop')\n"
    assert "hello" not in python(code, tmp_path).stderr
    assert "stop" in python(code, tmp_path).stderr
    found = python(code, tmp_path, VECRUN_LOG="info", VECRUN_LOG_FORMAT="auto").stderr
    assert [json.loads(line)["message"] for line in found.splitlines()] == ["hello", "stop"], "no terminal: JSON"
    wrong = python(code, tmp_path, VECRUN_LOG="loud")
    assert "VECRUN_LOG=loud" in wrong.stderr
    documented = GUIDE.read_text()
    for word in (*get_args(logs.Form), *get_args(logs.Level), logs.LEVEL_VARIABLE, logs.FORM_VARIABLE):
        assert f"`{word}`" in documented


@pytest.mark.parametrize("args", [("--help",), ("validate",), ("notify", "--help")], ids=" ".join)
def test_what_watches_is_imported_on_use(ws: Workspace, args: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom runner.cli import main\n"
        f"sys.argv = ['vecrun', *{list(args)!r}]\n"
        "try:\n    main()\nexcept SystemExit as exc:\n    assert not exc.code, exc.code\n"
        "found = sorted({'structlog', 'prometheus_client', 'apprise', 'requests'} & set(sys.modules))\n"
        "assert not found, found\n"
    )
    done = python(code, ws.root)
    assert done.returncode == 0, done.stderr


# Documentation ------------------------------------------------------------------------------------------------------


def table() -> str:
    """The table of metrics as the guide shows it."""
    rows = [
        f"| `{item.name}` | {item.kind} | {', '.join(f'`{label}`' for label in item.labels)} | {item.help} |"
        for item in metrics.METRICS.values()
    ]
    return "\n".join(["| metric | type | labels | |", "| --- | --- | --- | --- |", *rows])


def test_the_guide_has_every_metric_as_it_is() -> None:
    assert table() in GUIDE.read_text(), f"docs/howto/observe.md should have:\n{table()}"


def test_metrics_are_named_as_prometheus_wants_it() -> None:
    for item in metrics.METRICS.values():
        assert re.fullmatch(r"vecrun_[a-z_]+", item.name)
        assert item.name.endswith("_total") == (item.kind == "counter")
        assert item.help.endswith(".")


def test_alert_rules_of_the_guide_name_metrics_that_exist() -> None:
    rules = re.search(r"```yaml\n(groups:.*?)```", GUIDE.read_text(), re.DOTALL)
    assert rules is not None
    (group,) = yaml.safe_load(rules[1])["groups"]
    named = {name for rule in group["rules"] for name in re.findall(r"vecrun_[a-z_]+", rule["expr"])}
    assert named
    assert named <= set(metrics.METRICS)


def test_the_sample_of_a_notification_has_the_keys_of_a_real_one() -> None:
    sample = re.search(r"```json\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert sample is not None
    assert list(json.loads(sample[1])) == list(event().body())
