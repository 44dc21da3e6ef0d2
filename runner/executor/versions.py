"""Versions of points: the values of the payload field that every write raises, and the marks made of them.

A mark is the highest version seen, kept apart for numbers and for times, which cannot be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from runner.conditions import look_up
from runner.points import PointBatch

#: Below the mark by which a point is still looked at: a value is often taken a little before its write is seen.
#: Times are kept in microseconds; numbers are often sequences, or milliseconds.
OVERLAP = {"time": 60 * 1_000_000, "number": 10_000}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: kind -> the highest value; JSON.
Marks = dict[str, int | float]


class Version(NamedTuple):
    """A version that can be compared with others of its kind."""

    kind: str
    value: int | float


def read(value: Any) -> Version | None:
    """A number, or an ISO 8601 time (without a zone: UTC). None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Version("number", value) if math.isfinite(value) else None
    if not isinstance(value, str):
        return None
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        return None
    return Version("time", (time.replace(tzinfo=time.tzinfo or UTC) - _EPOCH) // timedelta(microseconds=1))


def column(batch: PointBatch, field: str | None) -> list[Version | None]:
    """The version of each point; None where it has none."""
    if field is None:
        return [None] * len(batch)
    return [read(look_up(item, field)) for item in batch.payloads.dicts]


def not_above(version: Version | None, marks: Mapping[str, int | float]) -> bool:
    """Whether there is a mark to compare with, and the version is not above it."""
    return version is not None and version.kind in marks and version.value <= marks[version.kind]


def newer(one: Version | None, other: Version | None) -> bool:
    """Whether both can be compared and `one` is above `other`."""
    return one is not None and other is not None and one.kind == other.kind and one.value > other.value


def raised(marks: Mapping[str, int | float], found: Sequence[Version | None]) -> Marks:
    """The marks after these versions were seen."""
    return highest([marks, *({item.kind: item.value} for item in found if item is not None)])


def highest(several: Iterable[Mapping[str, int | float]]) -> Marks:
    """The highest of each kind."""
    made: Marks = {}
    for marks in several:
        for kind, value in marks.items():
            made[kind] = max(value, made.get(kind, value))
    return made


def lowered(marks: Mapping[str, int | float]) -> Marks:
    """The marks less the overlap."""
    return {kind: value - OVERLAP[kind] for kind, value in marks.items()}
