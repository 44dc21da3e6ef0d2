"""Migrations inside of a relational database: steps that are one transaction, and steps over rows.

Who works, and which step is the last change of a run, is said here for both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from runner.errors import Transient
from runner.executor.relational import at_once, encryption, mapping, verify
from runner.ledger import Partition
from runner.plan import EncryptColumns, MapRows, UnmapRows, VerifyRows
from runner.points import KeyRange

if TYPE_CHECKING:
    from runner.executor import Run

#: Steps that are not partitioned.
AtOnce = at_once.Whole | UnmapRows
#: Steps that go through the rows of a table in partitions.
OverRows = MapRows | VerifyRows | EncryptColumns


def do(run: Run, number: int, step: AtOnce) -> dict[str, Any]:
    """Carry out one of them."""
    with _aloud(run):
        if isinstance(step, UnmapRows):
            return mapping.unmap(run, number, step)
        return at_once.do(run, number, step)


def ranges(run: Run, step: OverRows) -> list[KeyRange]:
    """The partition table of a step over rows; what it needs before its first batch is made."""
    with _aloud(run):
        if isinstance(step, MapRows):
            return mapping.ranges(run, step)
        if isinstance(step, EncryptColumns):
            return encryption.ranges(run, step)
        return verify.ranges(run, step)


def work(run: Run, number: int, step: OverRows, part: int, seconds: float) -> bool:
    """Work on one slice of one partition. True when it is done or set aside."""
    if isinstance(step, MapRows):
        return mapping.work(run, number, step, part, seconds)
    if isinstance(step, EncryptColumns):
        return encryption.work(run, number, step, part, seconds)
    return verify.work(run, number, step, part, seconds)


def finish(run: Run, number: int, step: OverRows, parts: Sequence[Partition]) -> dict[str, Any]:
    """After all partitions."""
    with _aloud(run):
        if isinstance(step, MapRows):
            return mapping.finish(run, number, step, parts)
        if isinstance(step, EncryptColumns):
            return encryption.finish(run, number, step, parts)
        return verify.finish(run, number, step, parts)


@contextlib.contextmanager
def _aloud(run: Run) -> Iterator[None]:
    """Whoever tries again after this says why: waiting for a lock takes its time."""
    try:
        yield
    except Transient as exc:
        run.say(f"{exc.summary}; it is tried again")
        raise
