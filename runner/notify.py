"""Telling people and machines how a run ended: a webhook by the standard library, everything else through Apprise.

`notify` never raises and takes 36 s at most: a receiver that is down must not change the run's end.
Addresses hold secrets, so no text here shows more of them than the host.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from http import HTTPStatus
from http.client import HTTPException, InvalidURL
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from runner import __version__
from runner.errors import Interrupted, Permanent, Transient, VecrunError, redact, register_secret
from runner.settings import Happening, Notification, Settings, resolve
from runner.spec import KEY_IN_URL, KEYLESS

FORMAT_VERSION = "1.1"
#: Tries of a webhook, seconds one may take, and seconds before the next (doubled before the third).
TRIES, TIMEOUT, PAUSE = 3, 10.0, 1.0
SIGNATURE = "X-Vecrun-Signature"
#: Characters of an error that are sent; chat services refuse long texts.
MAX_TEXT = 2000

_HAPPENING: dict[str, Happening] = {
    "completed": "success", "failed": "failure", "paused": "paused", "cancelled": "cancelled",
}  # fmt: skip
_VERB = {"success": "completed", "failure": "failed", "paused": "is paused", "cancelled": "was cancelled"}
#: Where Apprise's warnings go, in the context of one message.
_SAID: ContextVar[list[str] | None] = ContextVar("said", default=None)
_NEXT = {
    "success": "Look at it: vecrun status {run}",
    "failure": "Look at it: vecrun logs {run}\nGo on: vecrun resume {job}. Undo: vecrun rollback {job}",
    "paused": "Go on: vecrun resume {job}",
    "cancelled": "Undo: vecrun rollback {job}. Or go on: vecrun resume {job}",
}


@dataclass(frozen=True)
class Event:
    """What is told. Times are UTC, ISO 8601; `points` (copied, embedded or changed) is None where nobody counted; `failed` are
    items that could not be embedded, or documents that failed; `hint` names the next command."""

    event: Happening
    run: str
    job: str
    purpose: str
    status: str
    kind: str
    environment: str
    host: str
    started: str | None
    finished: str | None
    points: int | None = None
    error: str = ""
    hint: str = ""
    test: bool = False
    failed: int = 0

    @classmethod
    def of(
        cls, row: Mapping[str, Any], environment: str, points: int | None = None, error: BaseException | None = None,
        failed: int = 0,
    ) -> Event:  # fmt: skip
        """The event of a run's row in the ledger, after its status was set; `error` is what stopped it."""
        # somebody may have gone on with the run meanwhile: then its status is not that of the end that is told
        came: Happening = "success" if error is None else "paused" if isinstance(error, Interrupted) else "failure"
        event = _HAPPENING.get(row["status"], came)
        hint = error.hint if isinstance(error, VecrunError) else ""
        return cls(
            event=event, run=row["run"], job=row["job"], purpose=row["purpose"], status=row["status"], kind=row["kind"],
            environment=environment, host=socket.gethostname(), started=row["started"], finished=row["finished"] or _now(),
            points=points, error=str(error or "") or str(row.get("error") or ""),
            hint=hint or _NEXT[event].format(run=row["run"], job=row["job"]), failed=failed,
        )  # fmt: skip

    @classmethod
    def sample(cls, event: Happening, environment: str) -> Event:
        """An event that did not happen, to try the addresses."""
        status = {"success": "completed", "failure": "failed"}.get(event, event)
        return cls(
            event=event, run="r-test", job="test", purpose="apply", status=status, kind="VectorMigration",
            environment=environment, host=socket.gethostname(), started=_now(), finished=_now(),
            hint="A test of vecrun notify test: nothing happened", test=True,
        )  # fmt: skip

    @property
    def title(self) -> str:
        """One line."""
        what = f"rollback of {self.job}" if self.purpose == "rollback" else self.job
        return redact(f"vecrun: {what} {_VERB[self.event]}" + (" (test)" if self.test else ""))

    @property
    def text(self) -> str:
        """Some lines for a person."""
        where = f"on {self.host}" + (f", environment {self.environment}" if self.environment else "")
        lines = [f"{self.kind} {self.job}: {self.purpose} {_VERB[self.event]} {where}."]
        if self.points is not None:
            done = {"Reembedding": "embedded", "BatchOperation": "changed or deleted"}.get(self.kind, "copied")
            lines.append(f"{self.points:,} points {done}.")
        if self.failed:
            what = f"{self.failed:,} {'text' if self.failed == 1 else 'texts'} could not be embedded"
            if self.kind == "BatchOperation":
                what = f"{self.failed:,} {'document' if self.failed == 1 else 'documents'} failed"
            lines.append(f"{what}: vecrun failures {self.job}")
        lines += [f"Run {self.run}, started {self.started}.", self.error[:MAX_TEXT], self.hint]
        return redact("\n".join(line for line in lines if line))

    def body(self) -> dict[str, Any]:
        """What a webhook gets. A new minor of `format_version` only adds keys."""
        fields = {key: redact(item) if isinstance(item, str) else item for key, item in asdict(self).items()}
        fields["error"] = fields["error"][:MAX_TEXT]
        head = {"format_version": FORMAT_VERSION, "type": "notification", "sent": _now()}
        return head | fields | {"title": self.title, "text": self.text}


@dataclass(frozen=True)
class Delivery:
    """What became of one entry. `error` is empty when the receiver took it."""

    entry: str  # notifications.0
    address: str  # without its secrets
    error: str = ""


def notify(settings: Settings, event: Event, *, timeout: float = TIMEOUT, pause: float = PAUSE) -> list[str]:
    """Send to every entry that wants it, at once. One sentence for each that failed; never raises."""
    found = [
        (number, entry)
        for number, entry in enumerate(settings.workspace.notifications)
        if event.event in entry.on and any(fnmatchcase(event.job, pattern) for pattern in entry.jobs)
    ]
    done = _send_all(settings, found, event, timeout, pause)
    return [f"{item.entry} ({item.address}) was not reached: {item.error}" for item in done if item.error]


def deliver(settings: Settings, event: Event, *, timeout: float = TIMEOUT, pause: float = PAUSE) -> list[Delivery]:
    """Send to every entry whatever it wants: a test of the addresses. Never raises."""
    return _send_all(settings, list(enumerate(settings.workspace.notifications)), event, timeout, pause)


def _send_all(
    settings: Settings, entries: list[tuple[int, Notification]], event: Event, timeout: float, pause: float
) -> list[Delivery]:
    patience = TRIES * timeout + 4 * pause + 2.0  # a receiver may dribble its answer for ever
    late = f"no answer within {patience:.0f} s"
    errors = {number: late for number, _ in entries}

    def send(number: int, entry: Notification) -> None:
        try:
            _send(settings, number, entry, event, timeout, pause)
            errors[number] = ""
        except VecrunError as exc:
            errors[number] = " ".join(part for part in (str(exc), exc.hint) if part)
        except Exception as exc:  # a fault in a client library is no reason to change how the run ends
            errors[number] = f"{type(exc).__name__} in the client"

    threads = [threading.Thread(target=send, args=item, name=f"notify-{item[0]}", daemon=True) for item in entries]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + patience
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0.0))
    return [
        Delivery(f"notifications.{number}", redact(_shown(entry)), " ".join(redact(errors[number]).split()))
        for number, entry in entries
    ]


def _send(settings: Settings, number: int, entry: Notification, event: Event, timeout: float, pause: float) -> None:
    raw = entry.model_dump(include={"webhook", "apprise", "secret"}, exclude_none=True)
    resolved = resolve(raw, settings.document, ("notifications", number), settings.root)
    url = str(resolved.get("webhook") or resolved.get("apprise") or "")
    _register(url)
    if "apprise" in raw:
        _send_by_apprise(url, event)
        return
    if not url.lower().startswith(("http://", "https://")):
        raise Permanent("The webhook is no http(s) URL")
    body = json.dumps(event.body(), ensure_ascii=False).encode()
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "User-Agent": f"vecrun/{__version__}",
        "X-Vecrun-Delivery": uuid.uuid4().hex,  # the same for each try: a receiver can tell a repetition
    }
    if secret := resolved.get("secret"):
        headers[SIGNATURE] = "sha256=" + hmac.new(str(secret).encode(), body, hashlib.sha256).hexdigest()
    _retried(lambda: _post(url, body, headers, timeout), pause)


def _retried(action: Callable[[], None], pause: float) -> None:
    for attempt in range(TRIES):
        try:
            return action()
        except Transient:
            if attempt == TRIES - 1:
                raise
            time.sleep(pause * 2**attempt)
    return None


class _NoRedirect(HTTPRedirectHandler):
    """A redirected POST would lose its body, and the signature would go to somebody else."""

    def redirect_request(self, *_args: Any, **_options: Any) -> None:
        return None


def _post(url: str, body: bytes, headers: dict[str, str], timeout: float) -> None:
    """Transient where another try may help. Errors of the client are not quoted: they show the URL."""
    try:
        with build_opener(_NoRedirect).open(Request(url, body, headers), timeout=timeout):  # noqa: S310
            return
    except HTTPError as exc:
        exc.close()
        phrase = HTTPStatus(exc.code).phrase if exc.code in HTTPStatus._value2member_map_ else ""
        message = f"it answered {exc.code} {phrase}".strip()
        if exc.code >= 500 or exc.code == HTTPStatus.TOO_MANY_REQUESTS:
            raise Transient(f"{message}, {TRIES} times") from None
        raise Permanent(message) from None
    except (InvalidURL, ValueError):  # UnicodeError of a host name among them
        raise Permanent("the URL is not valid") from None
    except (OSError, HTTPException) as exc:
        reason = exc.reason if isinstance(exc, URLError) else exc
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise Permanent(f"its certificate is refused: {reason.verify_message}") from None
        if isinstance(reason, TimeoutError):
            raise Transient(f"it did not answer within {timeout:g} s, {TRIES} times") from None
        text = reason.strerror if isinstance(reason, OSError) and reason.strerror else type(reason).__name__
        raise Transient(f"the connection failed, {TRIES} times: {text}") from None


def _send_by_apprise(url: str, event: Event) -> None:
    try:
        import apprise
    except ImportError as exc:
        raise Permanent("Apprise is not installed", "", "pip install 'vecrun[notify]'") from exc

    kinds = {"success": apprise.NotifyType.SUCCESS, "failure": apprise.NotifyType.FAILURE}
    asset = apprise.AppriseAsset(app_id="vecrun", app_desc="vecrun", secure_logging=True)
    with _what_it_says() as said:
        sender = apprise.Apprise(asset=asset)
        if not sender.add(url):
            why = said[0][:MAX_TEXT] if said else "https://github.com/caronc/apprise/wiki lists the forms"
            raise Permanent("Apprise cannot use the URL", why)
        sent = sender.notify(
            body=event.text, title=event.title, notify_type=kinds.get(event.event, apprise.NotifyType.WARNING),
            body_format=apprise.NotifyFormat.TEXT,
        )  # fmt: skip
    if not sent:
        raise Permanent("Apprise could not send it", "; ".join(said)[:MAX_TEXT])


@contextmanager
def _what_it_says() -> Iterator[list[str]]:
    """Warnings of Apprise about what is sent in this context: the only place where it says why. They go nowhere else."""
    said: list[str] = []
    logger, token = logging.getLogger("apprise"), _SAID.set(said)
    logger.addFilter(_catch)  # several at once add it once
    try:
        yield said
    finally:
        _SAID.reset(token)


def _catch(record: logging.LogRecord) -> bool:
    said = _SAID.get()  # Apprise sends in a thread of its own, which has a copy of our context
    if said is not None and record.levelno >= logging.WARNING:
        said.append(redact(record.getMessage()))
    return said is None


def _shown(entry: Notification) -> str:
    """The address as it stands in the file if that is a reference, else its host; of most Apprise URLs that is a key."""
    kind, raw = ("webhook", entry.webhook) if entry.webhook else ("apprise", entry.apprise or "")
    if raw.startswith("${"):
        return f"{kind} {raw}" if raw.endswith("}") and raw.count("}") == 1 else kind
    scheme, _, rest = raw.partition("://")
    if kind == "apprise" and scheme.lower() not in KEYLESS:
        return f"{kind} {scheme}://"
    return f"{kind} {scheme}://{rest.partition('/')[0].partition('?')[0].rpartition('@')[2]}"


def _register(url: str) -> None:
    """Parts of an address that a client may quote without the rest. The whole is known if it came by reference."""
    try:
        parts = urlsplit(url)
    except ValueError:  # the reference was the whole of it, or it is refused anyhow
        return
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    keys = [] if parts.scheme.lower() in (*KEYLESS, "http", "https") else [parts.netloc, *parts.path.split("/")]
    long = [item for item in (target, *keys) if len(item) >= 8]
    for item in (*long, parts.password or "", *KEY_IN_URL.findall(target)):
        register_secret(item)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
