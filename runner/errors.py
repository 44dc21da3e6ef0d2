"""Every error vecrun raises on purpose: what happened, why, and the way out, each with its exit code.

Adapters translate their client's errors into `Transient` or `Permanent` at their edge; nothing above them
looks at a vendor's exception. Secrets that were resolved are registered here and removed from every text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SECRETS: set[str] = set()


def register_secret(value: str) -> None:
    """Remember a resolved secret so that `redact` removes it from anything that is shown or stored.

    Values under four characters are not registered: removing them would garble ordinary words.
    """
    if len(value) >= 4:
        _SECRETS.add(value)


def redact(text: str) -> str:
    """`text` with every registered secret replaced by `***`, and without what no database or terminal takes."""
    for secret in sorted(_SECRETS, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


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
