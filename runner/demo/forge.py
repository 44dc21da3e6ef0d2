"""A host of pull requests for the demo and for tests: a local HTTP server that speaks the parts of GitHub's API that are used.

Its repository is a bare one on disk, so a push moves the head of a pull request as it does on GitHub.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

#: GitHub's limit of a comment.
LONGEST = 65_536


@dataclass
class Pull:
    """A pull request: its branch, who made it, and when each commit was pushed."""

    branch: str
    author: str = "ada"
    pushed: dict[str, str] = field(default_factory=dict)


@dataclass
class Remark:
    """A comment under a pull request."""

    id: int
    pr: int
    author: str
    body: str


@dataclass
class Review:
    """What somebody said about a commit. `state`: APPROVED, CHANGES_REQUESTED, COMMENTED, DISMISSED."""

    pr: int
    author: str
    state: str
    commit: str
    at: str


@dataclass(frozen=True)
class Answer:
    """What is answered: a status, a JSON value, headers."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


class Forge:
    """The server, from `with` to its end. `tokens`: who each stands for; `rights`: what each user may do; `log`: every
    request as (method, path, body, status)."""

    def __init__(self, remote: Path, tokens: Mapping[str, str], rights: Mapping[str, str] | None = None) -> None:
        self.remote, self.tokens, self.rights = remote, dict(tokens), dict(rights or {})
        self.pulls: dict[int, Pull] = {}
        self.remarks: list[Remark] = []
        self.reviews: list[Review] = []
        self.log: list[tuple[str, str, str, int]] = []
        self.lock = threading.RLock()
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        self._server, self.url = server, f"http://127.0.0.1:{server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def open(self, branch: str, author: str = "ada") -> int:
        """A new pull request of a branch: its number."""
        number = len(self.pulls) + 1
        self.pulls[number] = Pull(branch, author)
        self.head(number)
        return number

    def head(self, number: int) -> str:
        """The newest commit of the branch."""
        pull = self.pulls[number]
        sha = self.git("rev-parse", f"refs/heads/{pull.branch}")
        pull.pushed.setdefault(sha, _now())
        return sha

    def say(self, number: int, author: str, body: str) -> Remark:
        """A comment."""
        with self.lock:
            self.remarks.append(Remark(len(self.remarks) + 1, number, author, body))
            return self.remarks[-1]

    def review(self, number: int, author: str, state: str = "APPROVED") -> None:
        """A review of the newest commit."""
        self.reviews.append(Review(number, author, state, self.head(number), _now()))

    def said(self, number: int) -> list[Remark]:
        """The comments of a pull request."""
        return [item for item in self.remarks if item.pr == number]

    def git(self, *args: str) -> str:
        command = ["git", "-C", str(self.remote), *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603

    def of_commit(self, sha: str) -> list[int]:
        """The pull requests whose head is in the history of a commit of main, and those whose head it is."""
        return [number for number in self.pulls if self.head(number) in (sha, *self._brought(sha))]

    def _brought(self, sha: str) -> list[str]:
        """What came with a commit: the second parent of a merge, or what its message names."""
        parents = self.git("rev-list", "--parents", "-n", "1", sha).split()[2:]
        return parents + re.findall(r"\b[0-9a-f]{40}\b", self.git("log", "-1", "--format=%B", sha))

    # The API ----------------------------------------------------------------------------------------------------------

    def user(self, headers: Mapping[str, str]) -> str | None:
        """Who asks; None for nobody who is known."""
        return self.tokens.get(headers.get("authorization", "").partition(" ")[2])

    def respond(self, method: str, path: str, data: Mapping[str, Any], user: str) -> Answer:
        """What a request gets."""
        return self.answer(method, path, data, user)

    def answer(self, method: str, path: str, data: Mapping[str, Any], user: str) -> Answer:
        """The answer to a request."""
        if path == "/user":
            if user.endswith("[bot]"):
                return Answer(403, {"message": "Resource not accessible by integration"})
            return Answer(200, self._person(user))
        found = re.fullmatch(r"/repos/[^/]+/[^/]+/(.*)", path)
        parts = found[1].split("/") if found else []
        match method, parts:
            case "GET", ["pulls", number]:
                return Answer(200, self._pull(int(number)))
            case "GET", ["pulls", number, "reviews"]:
                return Answer(200, [self._review(item) for item in self.reviews if item.pr == int(number)])
            case "GET", ["issues", number, "comments"]:
                return Answer(200, [self._remark(item) for item in self.said(int(number))])
            case "POST", ["issues", number, "comments"]:
                if len(data["body"]) > LONGEST:
                    return _invalid(f"body is too long (maximum is {LONGEST} characters)")
                return Answer(201, self._remark(self.say(int(number), user, data["body"])))
            case "PATCH", ["issues", "comments", number]:
                if len(data["body"]) > LONGEST:
                    return _invalid(f"body is too long (maximum is {LONGEST} characters)")
                remark = self.remarks[int(number) - 1]
                if remark.author != user:
                    return Answer(403, {"message": "Must have admin rights to Repository."})
                remark.body = data["body"]
                return Answer(200, self._remark(remark))
            case "GET", ["collaborators", name, "permission"]:
                return Answer(200, {"permission": self.rights.get(name, "read"), "user": self._person(name)})
            case "GET", ["commits", sha]:
                return Answer(200, {"sha": sha, "url": f"{self.url}/repos/o/r/commits/{sha}"})
            case "GET", ["commits", sha, "pulls"]:
                return Answer(200, [self._pull(number) for number in self.of_commit(sha)])
        return Answer(404, {"message": "Not Found"})

    def _pull(self, number: int) -> dict[str, Any]:
        pull, root = self.pulls[number], f"{self.url}/repos/o/r"
        return {
            "number": number, "url": f"{root}/pulls/{number}", "issue_url": f"{root}/issues/{number}",
            "user": self._person(pull.author), "head": {"sha": self.head(number), "ref": pull.branch},
            "html_url": f"{self.url}/o/r/pull/{number}",
        }  # fmt: skip

    def _remark(self, item: Remark) -> dict[str, Any]:
        return {
            "id": item.id, "url": f"{self.url}/repos/o/r/issues/comments/{item.id}", "body": item.body,
            "user": self._person(item.author), "html_url": f"{self.url}/o/r/pull/{item.pr}#issuecomment-{item.id}",
        }  # fmt: skip

    def _review(self, item: Review) -> dict[str, Any]:
        return {
            "user": self._person(item.author),
            "state": item.state,
            "commit_id": item.commit,
            "submitted_at": item.at,
        }

    def _person(self, name: str) -> dict[str, Any]:
        return {"login": name, "type": "Bot" if name.endswith("[bot]") else "User", "url": f"{self.url}/users/{name}"}


def _now() -> str:
    time.sleep(0.001)  # no two events at the same moment
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _invalid(message: str) -> Answer:
    return Answer(422, {"message": "Validation Failed", "errors": [{"message": message}]})


def _handler(forge: Forge) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # an answer in one piece: a second one would wait for the receipt of the first
        disable_nagle_algorithm = True

        def _any(self) -> None:
            split = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(split.query).items()}
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            headers = {key.lower(): value for key, value in self.headers.items()}
            user = forge.user(headers)
            with forge.lock:
                if user is None:
                    done = Answer(401, {"message": "Bad credentials"})
                else:
                    done = forge.respond(self.command, unquote(split.path), json.loads(raw or "{}"), user)
                forge.log.append((self.command, self.path, raw, done.status))
            body, extra = done.body, dict(done.headers)
            if isinstance(body, list):
                size, page = int(query.get("per_page", 30)), int(query.get("page", 1))
                if len(body) > page * size:
                    following = urlencode(query | {"page": str(page + 1)})
                    extra["Link"] = f'<{forge.url}{split.path}?{following}>; rel="next"'
                body = body[(page - 1) * size : page * size]
            text = json.dumps(body).encode()
            self.send_response(done.status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(text)))
            for name, value in extra.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PATCH = do_PUT = _any  # noqa: N815  names that the server looks for

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Nothing on stderr: `log` has it."""
            del format, args

    return Handler
