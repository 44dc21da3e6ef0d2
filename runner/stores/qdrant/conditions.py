"""Conditions as a filter of Qdrant that finds every point they hold for, and perhaps others.

Qdrant looks into arrays by itself. It keeps integers and floats apart where values are matched, so whole numbers are
asked for as ranges: 1 is to find 1.0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from runner.conditions import Condition, Need, needs

_SIMPLE_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
#: Far above the last digit that a server loses of some floats.
_ROUNDED = 1e-14


#: Ranges that stand for a list of numbers: with an index of floats, and where a payload is parsed for each of them.
_INDEXED_RANGES, _RANGES = 500, 8


class Index(Enum):
    """What indexes of a key mean for a filter on numbers."""

    NONE = "none"
    FLOATS = "floats"
    INTEGERS = "integers"  # and every value there is is in it
    PARTIAL = "partial"  # integers alone, and there are other values: the server would not see those


def compiled(where: Sequence[Condition], index_of: Callable[[str], Index]) -> Any:
    """A `models.Filter`, or None if all points have to be read."""
    from qdrant_client import models

    must: list[Any] = []
    for item in needs(where):
        terms = [_terms(key, item, index_of) for path in item.paths if (key := _key(path)) is not None]
        if len(terms) == len(item.paths) and None not in terms:
            must.append(models.Filter(should=[term for some in terms for term in some or ()]))
    return models.Filter(must=must) if must else None


def _key(path: tuple[str, ...]) -> str | None:
    """The path in Qdrant's words, which know no escapes; None if it cannot be said."""
    if any(not part or '"' in part or "\\" in part for part in path):
        return None
    return ".".join(part if _SIMPLE_KEY.fullmatch(part) else f'"{part}"' for part in path)


def _terms(key: str, item: Need, index_of: Callable[[str], Index]) -> list[Any] | None:
    from qdrant_client import models

    if item.letters:
        return None
    terms: list[Any] = []
    if item.texts:
        terms.append(models.FieldCondition(key=key, match=models.MatchAny(any=list(item.texts))))
    terms += [models.FieldCondition(key=key, match=models.MatchValue(value=flag)) for flag in item.flags]
    index = index_of(key) if item.spans else Index.NONE
    if index is Index.PARTIAL:
        return None
    if index is Index.INTEGERS and (numbers := item.numbers) is not None:
        listed = [int(number) for number in numbers if number.is_integer()]
        return [
            *terms,
            *([models.FieldCondition(key=key, match=models.MatchAny(any=listed))] if listed else []),
        ] or None
    for low, high in item.coarse(_RANGES if index is Index.NONE else _INDEXED_RANGES):
        bounds = {"gte": _moved(low, -math.inf), "lte": _moved(high, math.inf)}
        bounds = {sign: bound for sign, bound in bounds.items() if math.isfinite(bound)}
        terms.append(models.FieldCondition(key=key, range=models.Range(**bounds)))
    return terms


def _moved(bound: float, towards: float) -> float:
    """A bound that a float of which the server lost the last digit is still within; whole numbers are exact."""
    if math.isinf(bound) or (bound.is_integer() and abs(bound) < 2**53):
        return bound
    return math.nextafter(bound + math.copysign(abs(bound) * _ROUNDED, towards), towards)
