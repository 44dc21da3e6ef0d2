"""Conditions as a filter expression that is true of every point they hold for, and perhaps of others.

Values of the dynamic field may be of any type, so an array is asked for beside the value itself, and a range of numbers,
which no expression finds in arrays, is left to vecrun there. Keys are plain names: others can be escaped in the JSON.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from runner.conditions import Condition, Need, needs
from runner.stores.milvus.filters import literal
from runner.stores.milvus.layout import INT_BITS, JSON, VARCHAR, Layout

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def compiled(layout: Layout, where: Sequence[Condition]) -> str:
    """The expression; empty if all points have to be read."""
    found = []
    for item in needs(where):
        terms = [_path(layout, item, path) for path in item.paths]
        if None not in terms and any(terms):
            found.append(f"({' or '.join(term for term in terms if term)})")
    return " and ".join(found)


def _path(layout: Layout, item: Need, path: tuple[str, ...]) -> str | None:
    """Whether a value under `path` is as needed; "" if there can be none, None if it cannot be told."""
    head, *steps = path
    typed = layout.typed.get(head)
    if typed is None:
        if not layout.dynamic:
            return ""
        if head in layout.hidden or not all(map(_NAME.fullmatch, path if len(path) > 1 else path[0].split("."))):
            return None
        return _json("$meta" + "".join(f'["{step}"]' for step in path), item)
    if typed.nullable and layout.dynamic:
        return None  # what does not fit the field lies as a text under a key of its own
    if typed.type == JSON and steps:
        return _json(head + "".join(f'["{step}"]' for step in steps), item) if all(map(_NAME.fullmatch, path)) else None
    if steps:
        return None if typed.type == JSON else ""
    return _column(head, typed.type, item)


def _json(key: str, item: Need) -> str | None:
    """Milvus finds an integer where a float is asked for, not the other way round. Numbers that it would
    have to compare beyond 2**53 are not asked for."""
    numbers = item.numbers
    if item.letters or item.flags or numbers is None:
        return None
    terms = []
    for values in (list(map(literal, item.texts)), [repr(number) for number in numbers]):
        if values:
            listed = f"[{', '.join(values)}]"
            terms += [f"{key} in {listed}", f"json_contains_any({key}, {listed})"]
    return " or ".join(terms) if all("e" not in repr(number) for number in numbers) else None


def _column(name: str, kind: int, item: Need) -> str | None:
    """A typed field holds values of its type only."""
    if kind == VARCHAR and not item.letters:
        return f"{name} in [{', '.join(map(literal, item.texts))}]" if item.texts else ""
    if kind in INT_BITS and item.spans:
        bits = INT_BITS[kind] - 1
        terms = []
        if (numbers := item.numbers) is not None:
            whole = [int(number) for number in numbers if number == int(number) and -(2**bits) <= number < 2**bits]
            return f"{name} in {whole}" if whole else ""
        for low, high in item.spans:
            bounds = [
                f"{name} {sign} {int(bound)}" for sign, bound in ((">=", low), ("<=", high)) if abs(bound) < 2**31
            ]
            if not bounds:
                return None
            terms.append(f"({' and '.join(bounds)})")
        return " or ".join(terms)
    return None
