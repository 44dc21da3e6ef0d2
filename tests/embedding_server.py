"""A real HTTP server that speaks POST /v1/embeddings, can be told to fail in every way, and counts what it gave.

`EmbeddingServer` runs in threads of this process; `python -m tests.embedding_server --dimension 8` is a process of its
own that prints its URL, for tests that kill their client. POST /control changes settings, GET /stats tells the counts.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from runner.embedders.hash import hash_vectors

#: Ways a request can go wrong, for `faults` (every n-th request) and `next` (the requests to come).
FAULTS = (
    "rate_limit", "no_money", "overloaded", "server_error", "time_out", "drop", "hang", "redirect", "html", "truncated",
    "missing", "twice", "no_index", "nan", "null", "ragged", "wrong_dimension", "forbidden", "too_large",
)  # fmt: skip


@dataclass
class Settings:
    """How the server behaves. Limits are enforced with 429 where `enforce` is set, and their violations counted."""

    dimension: int = 64
    takes_dimensions: bool = True
    key: str = ""  # the key it wants; "": none
    models: list[str] = field(default_factory=list)  # the models it knows; none: any
    delay: float = 0.0  # seconds each request takes
    requests_per_minute: int = 0  # 0: no limit
    tokens_per_minute: int = 0
    window: float = 60.0  # seconds a "minute" of the limits has
    enforce: bool = True
    retry_after: float = 1.0
    retry_style: Literal["seconds", "date", "reset", "milliseconds", "none"] = "seconds"
    clock: float = 0.0  # seconds its clock is ahead of ours
    faults: dict[str, int] = field(default_factory=dict)  # fault -> every n-th request
    spare: int = 0  # a text that met so many of `faults` is spared more; 0: it is not
    next: list[str] = field(default_factory=list)  # faults of the requests to come, in order; "" for none
    answers: list[tuple[int, Any]] = field(default_factory=list)  # (status, body) of the requests to come
    refuse: str = ""  # a text that holds this makes the whole request a 400
    max_text_tokens: int = 0  # a text of more words makes the whole request a 400
    max_items: int = 0
    shuffle: bool = False  # items come in another order, which is allowed
    hang: float = 30.0  # seconds of the fault `hang`


class Refusal(Exception):
    """A reply that is not 200."""

    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self.status, self.body, self.headers = status, body, headers or {}


def complaint(message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error body as OpenAI writes it."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


class EmbeddingServer:
    """The server in threads of this process. `url` is the base_url of a model; `stats()` what GET /stats tells."""

    def __init__(self, port: int = 0, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self._lock = threading.Lock()
        self._reset()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = _Server(("127.0.0.1", port), handler)
        self.root = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{self.root}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def _reset(self) -> None:
        self._arrivals: deque[tuple[float, int]] = deque()  # of accepted requests: when, how many tokens
        self._at_once = 0
        self._counts: Counter[str] = Counter()
        self._returned: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._met: Counter[str] = Counter()  # faults by text
        self._last: dict[str, Any] = {}

    def set(self, **settings: Any) -> None:
        """Change settings."""
        with self._lock:
            for name, value in settings.items():
                if name not in {item.name for item in fields(Settings)}:
                    raise ValueError(f"no setting {name}")
                setattr(self.settings, name, value)

    def stats(self) -> dict[str, Any]:
        """requests and what was asked for in them (asked: texts, asked_tokens), replies, tokens (of usable replies),
        violations, most_* in any window, at once, and `returned`: text -> how many times a usable embedding of it was
        returned. `last`: headers and body of the last request."""
        names = (
            "requests", "asked", "asked_tokens", "replies", "tokens", "violations", "most_requests", "most_tokens",
            "most_at_once",
        )  # fmt: skip
        with self._lock:
            return {name: self._counts[name] for name in names} | {
                "returned": dict(self._returned), "faults": dict(self._faults), "last": self._last,
            }  # fmt: skip

    def reset(self) -> None:
        """Forget all counts."""
        with self._lock:
            self._reset()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> EmbeddingServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def arrive(self, body: dict[str, Any], headers: dict[str, str]) -> str:
        """Count a request and give its fault, if any. Refusal when it comes too fast or holds what is not taken."""
        texts = _texts(body)
        with self._lock:
            given = self.settings
            self._counts["requests"] += 1
            self._last = {"headers": headers, "body": {**body, "input": texts[:4]}}
            number = self._counts["requests"]
            fault = given.next.pop(0) if given.next else ""
            met = max((self._met[text] for text in texts), default=0)
            if not given.spare or met < given.spare:
                fault = fault or next((name for name, every in given.faults.items() if number % every == 0), "")
            if fault:
                self._faults[fault] += 1
                self._met.update(set(texts))
            tokens = sum(_tokens(text) for text in texts)
            self._counts["asked"] += len(texts)
            self._counts["asked_tokens"] += tokens
            self._check_limits(tokens)
            if given.answers:
                raise Refusal(*given.answers.pop(0))
        if given.key and headers.get("authorization") != f"Bearer {given.key}":
            shown = headers.get("authorization", "").removeprefix("Bearer ")  # OpenAI shows both ends, too
            message = f"Incorrect API key provided: {shown[:7]}****{shown[-4:]}."
            raise Refusal(401, complaint(message, "invalid_api_key"))
        if given.models and body.get("model") not in given.models:
            raise Refusal(404, complaint(f"The model `{body.get('model')}` does not exist", "model_not_found", "model"))
        if "dimensions" in body and not given.takes_dimensions:
            raise Refusal(400, complaint("This model does not support specifying dimensions.", None, "dimensions"))
        if given.max_items and len(texts) > given.max_items:
            raise Refusal(
                422,
                {
                    "error": f"batch size {len(texts)} > maximum allowed batch size {given.max_items}",
                    "error_type": "Validation",
                },
            )
        if given.max_text_tokens and max(map(_tokens, texts), default=0) > given.max_text_tokens:
            limit = given.max_text_tokens
            message = f"This model's maximum context length is {limit} tokens, however you requested more."
            raise Refusal(400, complaint(message))
        if given.refuse and any(given.refuse in text for text in texts):
            raise Refusal(400, complaint("'$.input' is invalid. Please check the API reference.", None, "input"))
        return fault

    def _check_limits(self, tokens: int) -> None:
        """Both limits hold over every stretch of `window` seconds that ends with a request."""
        given, now = self.settings, time.monotonic()
        while self._arrivals and self._arrivals[0][0] <= now - given.window:
            self._arrivals.popleft()
        requests, total = len(self._arrivals) + 1, sum(count for _, count in self._arrivals) + tokens
        over = bool(given.requests_per_minute and requests > given.requests_per_minute) or bool(
            given.tokens_per_minute and total > given.tokens_per_minute
        )
        self._counts["violations"] += over
        if over and given.enforce:
            raise self.too_fast()
        self._arrivals.append((now, tokens))
        self._counts["most_requests"] = max(self._counts["most_requests"], requests)
        self._counts["most_tokens"] = max(self._counts["most_tokens"], total)

    def too_fast(self, status: int = 429) -> Refusal:
        """The refusal of a request that comes too soon, with the wait in the style that is set."""
        seconds, headers = self.settings.retry_after, {}
        match self.settings.retry_style:
            case "seconds":
                headers["Retry-After"] = f"{seconds:g}"
            case "milliseconds":
                headers["retry-after-ms"] = f"{seconds * 1000:g}"
            case "date":
                headers["Retry-After"] = formatdate(time.time() + self.settings.clock + seconds, usegmt=True)
            case "reset":
                headers |= {
                    "x-ratelimit-remaining-requests": "0",
                    "x-ratelimit-reset-requests": f"{seconds * 1000:g}ms",
                }
                headers |= {"x-ratelimit-remaining-tokens": "100", "x-ratelimit-reset-tokens": "6m0s"}
        return Refusal(status, complaint("Rate limit reached", "rate_limit_exceeded"), headers)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """One more request is at work."""
        with self._lock:
            self._at_once += 1
            self._counts["most_at_once"] = max(self._counts["most_at_once"], self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1

    def returned(self, texts: list[str]) -> None:
        """A usable reply is being written."""
        with self._lock:
            self._counts["replies"] += 1
            self._counts["tokens"] += sum(_tokens(text) for text in texts)
            self._returned.update(texts)

    def lost(self, texts: list[str]) -> None:
        """Nobody was there any more to take it."""
        with self._lock:
            self._counts["replies"] -= 1
            self._counts["tokens"] -= sum(_tokens(text) for text in texts)
            self._returned -= Counter(texts)

    def reply(self, body: dict[str, Any], fault: str) -> bytes:
        """The body of a 200, spoilt as `fault` says."""
        texts = _texts(body)
        dimension = int(body.get("dimensions") or self.settings.dimension)
        vectors = hash_vectors(texts, dimension + (fault == "wrong_dimension"), str(body.get("model", "")))
        if body.get("encoding_format") == "base64":
            if fault == "nan":
                vectors[0, 0] = np.nan
            rows: list[Any] = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
        else:
            rows = vectors.tolist()
        items = [{"object": "embedding", "index": row, "embedding": value} for row, value in enumerate(rows)]
        match fault:
            case "missing":
                items.pop()
            case "twice":
                items[-1]["index"] = 0 if len(items) > 1 else 1
            case "no_index":
                del items[0]["index"]
            case "null":
                items[0]["embedding"][0] = None
            case "ragged":
                items[0]["embedding"].pop()
        if self.settings.shuffle:
            items.reverse()
        tokens = sum(_tokens(text) for text in texts)
        whole = orjson.dumps(
            {
                "object": "list", "data": items, "model": body.get("model"),
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )  # fmt: skip
        if fault == "nan" and body.get("encoding_format") != "base64":
            whole = whole.replace(b'"embedding":[', b'"embedding":[NaN,', 1)
        return whole[: len(whole) // 2] if fault == "truncated" else whole


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    owner: EmbeddingServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 20

    def do_GET(self) -> None:
        self._send(200, self.owner.stats()) if self.path == "/stats" else self._send(404, {"error": "no such page"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        if self.path == "/control":
            self.owner.set(**body)
            self._send(200, asdict(self.owner.settings))
        elif self.path == "/reset":
            self.owner.reset()
            self._send(200, {})
        elif self.path.partition("?")[0] == "/v1/embeddings":
            with self.owner.working():
                self._embeddings(body)
        else:
            self._send(404, {"detail": "Not Found"})

    def _embeddings(self, body: dict[str, Any]) -> None:
        owner = self.owner
        try:
            fault = owner.arrive(body, {name.lower(): value for name, value in self.headers.items()})
            time.sleep(owner.settings.delay)
            self._fail(fault)
        except Refusal as exc:
            self._send(exc.status, exc.body, exc.headers)
            return
        if fault == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if fault == "hang":
            self._trickle()
            return
        reply = owner.reply(body, fault)
        if fault:
            self._send(200, reply)
            return
        owner.returned(_texts(body))  # before it is written: the client may ask for the counts at once
        try:
            self._send(200, reply)
        except OSError:
            owner.lost(_texts(body))
            raise

    def _fail(self, fault: str) -> None:
        match fault:
            case "rate_limit":
                raise self.owner.too_fast()
            case "overloaded":
                raise self.owner.too_fast(503)
            case "no_money":
                raise Refusal(429, complaint("You exceeded your current quota", "insufficient_quota"))
            case "server_error":
                raise Refusal(500, b"<html><body>Internal Server Error</body></html>")
            case "time_out":
                raise Refusal(408, {"detail": "Request Timeout"})
            case "forbidden":
                raise Refusal(403, complaint("Country not supported"))
            case "too_large":
                raise Refusal(413, b"Payload Too Large")
            case "redirect":
                raise Refusal(307, b"", {"Location": "http://127.0.0.1:9/v1/embeddings"})
            case "html":
                raise Refusal(200, b"<html><body>Please log in</body></html>")

    def _trickle(self) -> None:
        """A reply that never comes to its end, a byte now and then."""
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        self.close_connection = True
        until = time.monotonic() + self.owner.settings.hang
        with contextlib.suppress(OSError):
            while time.monotonic() < until:
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if data.startswith(b"<") else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def date_time_string(self, timestamp: float | None = None) -> str:
        """What the header Date says."""
        return formatdate((timestamp or time.time()) + self.owner.settings.clock, usegmt=True)

    def log_message(self, *args: Any) -> None:
        """Requests are counted, not told."""


def _texts(body: dict[str, Any]) -> list[str]:
    given = body.get("input", [])
    return [given] if isinstance(given, str) else list(given)


def _tokens(text: str) -> int:
    return max(1, len(text.split()))


@contextlib.contextmanager
def outside(**settings: Any) -> Iterator[str]:
    """The server as a process of its own, which outlives a client that is killed. Yields its root URL."""
    arguments = [part for name, value in settings.items() for part in (f"--{name}", json.dumps(value))]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.embedding_server", *arguments],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline().strip()
        assert line, "the server did not start"
        yield line
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def ask(root: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """GET /stats, or POST /control and /reset with a body, of a server outside."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(f"{root}{path}", data=data, timeout=10) as reply:
        answer: dict[str, Any] = json.load(reply)
    return answer


def main() -> None:
    """Serve until SIGTERM or Ctrl-C. Values of settings are JSON, or plain words."""
    parser = argparse.ArgumentParser(prog="python -m tests.embedding_server")
    parser.add_argument("--port", type=int, default=0)
    for item in fields(Settings):
        parser.add_argument(f"--{item.name}", type=_value, metavar="JSON")
    given = vars(parser.parse_args())
    server = EmbeddingServer(given.pop("port"), **{name: value for name, value in given.items() if value is not None})
    sys.stdout.write(f"{server.root}\n")
    sys.stdout.flush()
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    done.wait()
    server.close()


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    main()
