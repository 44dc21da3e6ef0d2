"""Conditions as a filter of Weaviate's gRPC that finds every point they hold for, and perhaps others.

A property holds values of one type; what it refuses lies in the overflow property, so each condition also asks for
points whose overflow names the key. Texts are compared word by word, as they are tokenised: all words of an equal text
are in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from runner.conditions import Condition, Need, needs
from runner.stores.weaviate.definition import OVERFLOW

_TOKENS = ("word", "lowercase", "whitespace", "field")
_WORD = re.compile(r"[A-Za-z0-9]")
#: Characters of a text up to which it is asked for.
_LONGEST = 1_000


def compiled(where: Sequence[Condition], definition: dict[str, Any]) -> Any:
    """A `Filters` message, or None if all points have to be read."""
    from weaviate.proto.v1 import base_pb2

    properties = {item["name"]: item for item in definition.get("properties") or []}
    overflow = properties.get(OVERFLOW)
    if overflow is not None and not overflow.get("indexFilterable", True):
        return None  # made by an older vecrun: nothing tells what is in there
    found = []
    for item in needs(where):
        path = item.paths[0][0]
        wanted = properties.get(path)
        if len(item.paths) > 1 or wanted is None or path == OVERFLOW or not wanted.get("indexFilterable", True):
            continue
        terms = _terms(path, wanted, item)
        if terms is None or not _WORD.search(path):
            continue
        if overflow is not None:
            terms.append(_any_text(OVERFLOW, [path]))
        found.append(_joined(base_pb2.Filters.OPERATOR_OR, terms))
    return _joined(base_pb2.Filters.OPERATOR_AND, found) if found else None


def beyond(narrow: Any, point_id: str) -> Any:
    """`narrow`, for points after this one."""
    from weaviate.proto.v1 import base_pb2

    after = base_pb2.Filters(
        operator=base_pb2.Filters.OPERATOR_GREATER_THAN,
        target=base_pb2.FilterTarget(property="_id"),
        value_text=point_id,
    )
    return _joined(base_pb2.Filters.OPERATOR_AND, [narrow, after])


def _terms(key: str, definition: dict[str, Any], item: Need) -> list[Any] | None:
    """Filters for the values the property itself can hold; None where it cannot be asked, or can hold none of them."""
    from weaviate.proto.v1 import base_pb2

    filters, target = base_pb2.Filters, base_pb2.FilterTarget(property=key)
    kind = definition["dataType"][0].removesuffix("[]")
    if kind == "text" and item.texts and definition.get("tokenization") in _TOKENS:
        told = all(_WORD.search(text) and len(text) <= _LONGEST for text in item.texts)
        return [_any_text(key, list(item.texts))] if told else None
    if kind == "boolean" and item.flags:
        same = filters.OPERATOR_EQUAL
        return [filters(operator=same, target=target, value_boolean=flag) for flag in item.flags]
    if kind in ("int", "number") and item.spans:
        numbers = item.numbers
        if numbers is None:
            return _ranges(key, kind, item.spans)
        listed: dict[str, Any] = {"value_number_array": base_pb2.NumberArray(values=numbers)}
        if kind == "int":
            whole = [int(number) for number in numbers if number == int(number)]
            listed = {"value_int_array": base_pb2.IntArray(values=whole)}
            if not whole:
                return None
        return [filters(operator=filters.OPERATOR_CONTAINS_ANY, target=target, **listed)]
    return None


def _ranges(key: str, kind: str, spans: Sequence[tuple[float, float]]) -> list[Any] | None:
    """Integers of a property lie within 2**53, so whole bounds within that say all; a wider bound is left open."""
    from weaviate.proto.v1 import base_pb2

    filters, target = base_pb2.Filters, base_pb2.FilterTarget(property=key)
    found = []
    for low, high in spans:
        bounds = []
        for operator, bound, rounded in (
            (filters.OPERATOR_GREATER_THAN_EQUAL, low, math.floor),
            (filters.OPERATOR_LESS_THAN_EQUAL, high, math.ceil),
        ):
            if abs(bound) <= 2**53:
                value: dict[str, Any] = {"value_int": rounded(bound)} if kind == "int" else {"value_number": bound}
                bounds.append(filters(operator=operator, target=target, **value))
        if not bounds:
            return None
        found.append(_joined(filters.OPERATOR_AND, bounds))
    return found


def _any_text(key: str, texts: list[str]) -> Any:
    from weaviate.proto.v1 import base_pb2

    return base_pb2.Filters(
        operator=base_pb2.Filters.OPERATOR_CONTAINS_ANY,
        target=base_pb2.FilterTarget(property=key),
        value_text_array=base_pb2.TextArray(values=texts),
    )


def _joined(operator: Any, filters: list[Any]) -> Any:
    from weaviate.proto.v1 import base_pb2

    return filters[0] if len(filters) == 1 else base_pb2.Filters(operator=operator, filters=filters)
