"""The filter language: conditions on payload fields, which mean the same for every store.

A store may look for matching points its own way, as long as it misses none (`Store.find`); what matches is decided here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

from pydantic import model_validator

from runner.points import Model, Payload


class Condition(Model):
    """One condition on a payload field; all conditions of a filter must hold. `field` is a key or a dotted path."""

    field: str
    op: Literal["eq", "ne", "in", "gt", "gte", "lt", "lte", "exists"] = "eq"
    value: Any = None

    @model_validator(mode="after")
    def _comparable(self) -> Condition:
        if self.op == "in" and not isinstance(self.value, list | tuple):
            raise ValueError(f"op in needs a list as its value, found {self.value!r}")
        if self.op in _COMPARE and (isinstance(self.value, bool) or not isinstance(self.value, int | float | str)):
            raise ValueError(f"op {self.op} needs a number or a text as its value, found {self.value!r}")
        return self

    @cached_property
    def _values(self) -> tuple[frozenset[Any], list[Any]]:
        """The values of `in`: those that can be looked up (true is not 1), and the others."""
        plain = [one for one in self.value if isinstance(one, str | int | float | None)]
        rest = [one for one in self.value if not isinstance(one, str | int | float | None)]
        return frozenset((isinstance(one, bool), one) for one in plain), rest

    def wants(self, value: Any) -> bool:
        """Whether a value is one of those of `in`."""
        known, rest = self._values
        if isinstance(value, str | int | float | None):
            return (isinstance(value, bool), value) in known
        return any(_equal(value, one) for one in rest)


#: What `look_up` gives when there is nothing.
MISSING = object()


def look_up(item: Payload, path: str) -> Any:
    """The value under a key, or under a dotted path; MISSING when there is none."""
    if path in item:
        return item[path]
    value: Any = item
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            return MISSING
        value = value[part]
    return value


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "gt": lambda a, b: a > b,
    "gte": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "lte": lambda a, b: a <= b,
}


def holds(condition: Condition, item: Payload) -> bool:
    """Whether one condition holds. An array field holds when one of its elements does, as in the stores."""
    value = look_up(item, condition.field)
    if condition.op == "exists":
        return (value is not MISSING) == (condition.value is not False)
    if condition.op == "ne":
        return not holds(condition.model_copy(update={"op": "eq"}), item)
    if value is MISSING:
        return False
    if condition.op == "in":
        return condition.wants(value) or (isinstance(value, list) and any(condition.wants(one) for one in value))
    candidates = value if isinstance(value, list) and not isinstance(condition.value, list) else [value]
    if condition.op == "eq":
        return any(_equal(one, condition.value) for one in candidates)
    try:
        return any(_COMPARE[condition.op](one, condition.value) for one in candidates)
    except TypeError:
        return False


def _equal(left: Any, right: Any) -> bool:
    return left == right and isinstance(left, bool) == isinstance(right, bool)


# For the filters of the stores ---------------------------------------------------------------------------------------


class Need(NamedTuple):
    """What a value, or one element of an array, has to be for a condition to hold. A store that finds all such values
    under `paths`, whatever else it finds, misses no point; text, number and boolean are three things."""

    paths: tuple[tuple[str, ...], ...]  # where it may stand: under the key as it is written, or step by step
    texts: tuple[str, ...] = ()  # one of these
    flags: tuple[bool, ...] = ()
    spans: tuple[tuple[float, float], ...] = ()  # a number that as float64 lies here, both ends included
    letters: tuple[str, str | None] | None = None  # a text from … to …, both included; None is open

    @property
    def numbers(self) -> list[float] | None:
        """The numbers that are asked for one by one; None where there is a wider span, or an integer that float64 may have rounded."""
        exact = all(low == high and abs(low) < 2**53 for low, high in self.spans)
        return [low for low, _ in self.spans] if exact else None

    def coarse(self, most: int) -> list[tuple[float, float]]:
        """At most `most` spans that cover all of `spans`; whole numbers that follow each other become one."""
        ordered = sorted(self.spans)
        gaps = sorted((after[0] - before[1] for before, after in itertools.pairwise(ordered)), reverse=True)
        widest = max(1.0, gaps[most - 1] if len(gaps) >= most else 1.0)
        found: list[tuple[float, float]] = []
        for low, high in ordered:
            if found and low - found[-1][1] <= widest:
                found[-1] = found[-1][0], max(high, found[-1][1])
            else:
                found.append((low, high))
        return found


def need(condition: Condition) -> Need | None:
    """What `condition` needs; None where no store should be asked: `ne`, `exists`, null, arrays, objects, odd texts."""
    values = condition.value if condition.op == "in" else [condition.value]
    if condition.op in ("ne", "exists") or not values or not all(map(_plain, [condition.field, *values])):
        return None
    field = condition.field
    paths = ((field,), tuple(field.split("."))) if "." in field else ((field,),)
    if condition.op in _COMPARE:
        upward, bound = condition.op in ("gt", "gte"), condition.value
        if isinstance(bound, str):
            return Need(paths, letters=(bound, None) if upward else ("", bound))
        low, high = (float(bound), math.inf) if upward else (-math.inf, float(bound))
        # holds() compares a boolean as the number it is to Python
        return Need(paths, flags=tuple(flag for flag in (False, True) if low <= flag <= high), spans=((low, high),))
    numbers = {float(value) for value in values if not isinstance(value, bool | str)}
    return Need(
        paths,
        tuple(dict.fromkeys(value for value in values if isinstance(value, str))),
        tuple(dict.fromkeys(value for value in values if isinstance(value, bool))),
        tuple((number, number) for number in sorted(numbers)),
    )


def needs(where: Sequence[Condition]) -> list[Need]:
    """What those conditions need of which it can be said; all of them must be met."""
    return [found for condition in where if (found := need(condition)) is not None]


def _plain(value: Any) -> bool:
    """Whether every store can be sent this value: a boolean, a number within float64, a text of Unicode without NUL."""
    if isinstance(value, str):
        return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)
    try:
        return isinstance(value, int | float) and math.isfinite(float(value))
    except OverflowError:
        return False
