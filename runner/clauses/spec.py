"""What a user writes about verification, a live source, the cutover and accepted findings, in any kind of job."""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from pydantic import Field

from runner.plan import Notice
from runner.settings import Duration
from runner.spec import SpecModel
from runner.store import Problem

_SAVED = re.compile(r"__saved_[0-9a-f]{8}$")


class Cutover(SpecModel):
    """The name readers use; it is switched to the target after verification."""

    alias: str = Field(
        min_length=1, pattern=r"^([^{}]|\{name\})+$", description="May hold {name}, the target collection's name.",
        examples=["kb_support"],
    )  # fmt: skip


class Verify(SpecModel):
    """How source and target are compared before anything is switched."""

    mode: Literal["count", "sample", "full"] = "full"
    sample: int = Field(100, ge=1, le=1_000_000, description="Points to compare in mode sample.")


class LiveSource(SpecModel):
    """The source is written to while it is moved; what was written is brought over in passes."""

    field: str | None = Field(
        None,
        description="Payload field (a key or a dotted path) with a number or an ISO 8601 time that every write, of any "
        "point, raises above all earlier ones. After the switch it says which side is newer.",
        examples=["updated_at"],
    )
    bound: int = Field(100, ge=0, description="Go on to the cutover when a pass had to repair at most so many points.")
    passes: int = Field(
        10, ge=1, le=1000, description="At most so many passes; then the run stops, and can be resumed."
    )
    hold: bool = Field(
        False, description="Stop before the cutover until vecrun resume JOB: the writers are stopped first."
    )


class Budget(SpecModel):
    """What the run may cost; a plan above it must be accepted (VC101, VC102). A run stops before it spends more USD, unless VC101 is accepted."""

    usd: float | None = Field(None, ge=0)
    time: Duration | None = None


class Acceptance(SpecModel):
    """A finding that was looked at and is wanted."""

    code: str = Field(pattern=r"^V[A-Z]\d{3}$", examples=["VL101"])
    reason: str = Field(min_length=3)


def notice(problem: Problem, where: str, accepted: dict[str, str], *, may_accept: bool = False) -> Notice:
    """A finding with the reason the spec gives for accepting it. `may_accept`: also one that is no loss of information."""
    found = Notice.of(problem, where, accepted.get(problem.code, ""))
    if may_accept and problem.code in accepted:
        found = found.model_copy(update={"accepted": accepted[problem.code], "blocking": False})
    return found


def saved(collection: str) -> bool:
    """Whether a collection holds vectors that a run saved before it replaced them; patterns leave such out."""
    return _SAVED.search(collection) is not None


def saved_name(collection: str, key: str) -> str:
    """A name for the collection that keeps what is replaced in another; `key` names the run."""
    return f"{collection[:40]}__saved_{hashlib.sha256(key.encode()).hexdigest()[:8]}"
