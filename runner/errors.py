"""Every error vecrun raises on purpose: what happened, why, and the way out, each with its exit code.

Adapters translate their client's errors into `Transient` or `Permanent` at their edge; nothing above them
looks at a vendor's exception. Secrets that were resolved are registered here and removed from every text.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from urllib.parse import unquote

_SECRETS: set[str] = set()
#: Passwords in a URL (with the user before them) and in a connection string of libpq.
_USER_PASSWORD = re.compile(r"://([^/?#@:\s]*):([^@\s]+)@")
_PARAMETER = re.compile(
    r"[?&](?:\w*password|\w*token|\w*secret|api_?key|sig)=([^&#\s]+)"
    r"|\bpassword\s*=\s*(?:'((?:[^'\\]|\\.)*)'|([^'\s]\S*))",
    re.IGNORECASE,
)
#: So much of the beginning of a secret is taken out where a text was cut, by a client or by us.
_HEAD, _BEGINNING = 4, 8
#: Of a path or URL only the whole is a secret, and the passwords within: its beginning is that of others, too.
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://|\.{0,2}/[\w.-]+(/|\Z)", re.IGNORECASE)
#: The end of a text that was cut, perhaps in the middle of what a character was escaped to.
_CUT = re.compile(r"""(?:\\+[ux]?[0-9a-f]{0,3}|%[0-9a-f]?|&[#a-z0-9]{0,5})?['"]?\s*(?:\.\.\.|…|\n|\Z)""", re.IGNORECASE)


def register_secret(value: str) -> None:
    """Remember a resolved secret, and passwords within it, so that `redact` removes them from all that is shown or stored.

    Values under four characters are not registered: removing them would garble ordinary words.
    """
    _SECRETS.update(item for item in (value, *_passwords(value)) if len(item) >= 4)


def _passwords(value: str) -> Iterator[str]:
    """Those in a URL or connection string, as they stand there and as they are meant: clients quote them without the rest."""
    found = [item[2] for item in _USER_PASSWORD.finditer(value) if item[1] != item[2]]
    found += [item[1] or item[3] or re.sub(r"\\(.)", r"\1", item[2] or "") for item in _PARAMETER.finditer(value)]
    for text in found:
        yield from (text, unquote(text))


def redact(text: str) -> str:
    """`text` with every registered secret replaced by `***`, and without what no database or terminal takes.

    A secret is found also in base64, in any escaped form (of URLs, JSON, repr(), HTML, Markdown), and where it was cut.
    """
    for secret in sorted(_SECRETS, key=len, reverse=True):
        text = text.replace(secret, "***")
        for form in _forms(secret):
            text = _without(text, form)
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


@cache
def _forms(secret: str) -> tuple[str, ...]:
    """The secret, and what base64 makes of it wherever it begins in what is encoded (user:secret), but for the letters that
    depend on its neighbours."""
    if len(secret) < _BEGINNING:
        return (secret,)
    data, found = secret.encode("utf-8", "surrogatepass"), []
    for before in range(3):
        whole = base64.b64encode(b"\0" * before + data).decode().rstrip("=")
        part = whole[-(-before * 8 // 6) : len(whole) - ((before + len(data)) % 3 > 0)]
        found += [part, part.replace("+", "-").replace("/", "_")]
    return secret, *dict.fromkeys(found)


def _without(text: str, form: str) -> str:
    """`text` without the places where `form` stands, escaped in whatever way, or begins and is cut."""
    head, rest = _pattern(form)
    found, at, start = [], 0, head.search(text)
    while start is not None:
        end, known = start.end(), _HEAD
        for piece in rest:
            if (match := piece.match(text, end)) is None:
                break
            end, known = match.end(), known + 1
        if known >= len(form) or (known >= _BEGINNING and not _ADDRESS.match(form) and _CUT.match(text, end)):
            found += [text[at : start.start()], "***"]
            at = end
        start = head.search(text, max(at, start.start() + 1))
    return "".join(found) + text[at:]


@cache
def _pattern(form: str) -> tuple[re.Pattern[str], tuple[re.Pattern[str], ...]]:
    """What the first characters of `form` may look like, and each of the others."""
    pieces = [_character(one) for one in form]
    return re.compile("".join(pieces[:_HEAD])), tuple(map(re.compile, pieces[_HEAD:]))


@cache
def _character(one: str) -> str:
    """A character as it is or escaped, once or again and again."""
    if one.isascii() and one.isalnum():
        return one
    data, wide = one.encode("utf-8", "surrogatepass"), one.encode("utf-16-be", "surrogatepass").hex()
    known = [
        rf"&\#(?:0*{ord(one)}|x0*{ord(one):x});",
        "".join(f"%(?:25)*{byte:02x}" for byte in data),
        "".join(rf"\\+x{byte:02x}" for byte in data),
        rf"\\+x{ord(one):02x}",
        "".join(rf"\\+u{wide[at : at + 4]}" for at in range(0, len(wide), 4)),
        *{" ": [r"\+"], "\n": [r"\\+n"], "\r": [r"\\+r"], "\t": [r"\\+t"]}.get(one, []),
        re.escape(html.escape(one)),
        re.escape(one),  # last: it may be the beginning of the others
    ]
    return rf"(?i:\\*(?:{'|'.join(known)}))"


class VecrunError(Exception):
    """Root of all expected errors. `summary` is a fixed sentence, `detail` names the place, `hint` the remedy."""

    exit_code = 1

    def __init__(self, summary: str, detail: str = "", hint: str = "") -> None:
        self.summary, self.detail, self.hint = redact(summary), redact(detail), redact(hint)
        super().__init__(": ".join(part for part in (self.summary, self.detail) if part))

    def as_dict(self) -> dict[str, object]:
        """The three parts for `--json`."""
        return {"error": type(self).__name__, "summary": self.summary, "detail": self.detail, "hint": self.hint}


@dataclass(frozen=True)
class Diagnostic:
    """One problem of a file. `line` is 1-based (0: no line is known); `field` is a dotted path."""

    file: str
    line: int
    field: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        field = f" {self.field}:" if self.field else ""
        hint = f" ({self.hint})" if self.hint else ""
        return redact(f"{place}:{field} {self.message}{hint}")


class InvalidFile(VecrunError):
    """A spec or workspace file has problems; all of them are in `diagnostics`."""

    exit_code = 14

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = list(diagnostics)
        count = len(self.diagnostics)
        super().__init__(
            f"{count} problem{'s' if count != 1 else ''} found", "\n".join(str(item) for item in self.diagnostics)
        )

    def as_dict(self) -> dict[str, object]:
        return super().as_dict() | {"diagnostics": [vars(item) | {} for item in self.diagnostics]}


class NotFound(VecrunError):
    """A job, run, plan or collection that was named does not exist."""

    exit_code = 10


class LockHeld(VecrunError):
    """Somebody else works on the same job or collection; nothing was written."""

    exit_code = 11


class NoSlot(LockHeld):
    """As many runs are at work as the workspace allows; nothing was written."""


class LeaseLost(VecrunError):
    """This process no longer holds its lease (fencing token is old); it must stop writing at once."""

    exit_code = 11


class ClaimLost(LeaseLost):
    """Another worker has this partition by now; what was done since the last checkpoint is done again there."""


class PlanRefused(VecrunError):
    """A plan file was altered, is stale, or was applied before."""

    exit_code = 12


class VerificationFailed(VecrunError):
    """Source and target differ."""

    exit_code = 13


class ItemsFailed(VecrunError):
    """The run came to its end, but some partitions or items failed."""

    exit_code = 3


class Interrupted(VecrunError):
    """Stopped on request (Ctrl-C, pause); the checkpoints are written and the run can go on."""

    exit_code = 130


class Cancelled(Interrupted):
    """Stopped on request, to be rolled back; it can still go on."""


class HandedOver(Interrupted):
    """This process stops, and another goes on with the run."""


class StoreError(VecrunError):
    """A store answered with an error."""


class Transient(StoreError):
    """May work when tried again: time-out, connection lost, too many requests."""


class TooLarge(Transient):
    """The request was too large or came too fast; smaller batches may pass."""


class RateLimited(Transient):
    """Too many requests; `seconds` is how long the other side asks to wait (None: it does not say)."""

    seconds: float | None = None

    @classmethod
    def after(cls, seconds: float | None, summary: str, detail: str = "", hint: str = "") -> RateLimited:
        """The error with the wait it asks for."""
        error = cls(summary, detail, hint)
        error.seconds = seconds
        return error


class Permanent(StoreError):
    """Trying again cannot help: wrong credentials, missing rights, a value the store refuses."""


class Refused(Permanent):
    """A provider of embeddings does not take one of the texts of a request, and never will."""


class Lossy(Permanent):
    """A point would lose something on its way, and the spec does not accept that."""


def restored(data: dict[str, object]) -> VecrunError:
    """The error that `as_dict` was made of, in another process."""
    kinds: dict[str, type[VecrunError]] = {}
    pending: list[type[VecrunError]] = [VecrunError]
    while pending:
        kind = pending.pop()
        kinds[kind.__name__] = kind
        pending += kind.__subclasses__()
    kind = kinds.get(str(data.get("error")), VecrunError)
    if issubclass(kind, InvalidFile):
        items = data.get("diagnostics")
        return InvalidFile([Diagnostic(**item) for item in items] if isinstance(items, list) else [])
    return kind(*(str(data.get(key, "")) for key in ("summary", "detail", "hint")))
