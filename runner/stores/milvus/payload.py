"""Payloads in the dynamic field and in typed fields, so that each comes back exactly as it was."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from runner.points import Payload, json_dumps, json_loads
from runner.stores.milvus.layout import (
    ARRAY,
    BOOL,
    DOUBLE,
    FLOAT,
    HIDDEN,
    INT_BITS,
    JSON,
    MAX_JSON,
    MAX_VARCHAR,
    VARCHAR,
    Field,
    Layout,
)

#: What stands in a field that must not be null and whose value is lost.
_EMPTY: dict[int, Any] = {BOOL: False, FLOAT: 0.0, DOUBLE: 0.0, VARCHAR: "", JSON: b"null"} | dict.fromkeys(INT_BITS, 0)


def hider(layout: Layout) -> Callable[[bytes], bytes]:
    """A function that moves the keys of a JSON object that clash with a field into the text under `_vecrun`.

    Only texts in which such a key, or an escaped letter, is seen are parsed.
    """
    hidden = layout.hidden
    names = b"|".join(re.escape(name.encode()) for name in sorted(hidden))
    suspect = re.compile(rb'"(?:' + names + rb')"|\\u').search

    def hide(text: bytes) -> bytes:
        if suspect(text) is None:
            return text
        payload = json_loads(text)
        taken = {key: payload.pop(key) for key in hidden & payload.keys()}
        return _with_hidden(payload, taken) if taken else text

    return hide


def _with_hidden(payload: Payload, taken: Payload) -> bytes:
    return json_dumps(payload | {HIDDEN: json_dumps(taken).decode()} if taken else payload)


def restored(text: bytes) -> bytes:
    """The payload as it was before `hider`. A `_vecrun` of somebody else's making is left as it is."""
    payload = json_loads(text)
    taken = payload.get(HIDDEN)
    if isinstance(taken, str):
        with contextlib.suppress(ValueError):
            found = json_loads(taken.encode())
            if isinstance(found, dict):
                del payload[HIDDEN]
                return json_dumps(payload | found)
    return text


class Split:
    """One payload for a collection with typed fields: their values, the rest as JSON, and what does not fit."""

    __slots__ = ("text", "unfit", "values")

    def __init__(self, layout: Layout, payload: Payload) -> None:
        self.values: dict[str, Any] = {}
        self.unfit: list[str] = []
        rest = {key: value for key, value in payload.items() if key not in layout.typed}
        taken = {key: rest.pop(key) for key in layout.hidden & rest.keys()}
        for name, field in layout.typed.items():
            if name in payload and _fits(field, field.type, payload[name]):
                value = payload[name]
                self.values[name] = json_dumps(value) if field.type == JSON else value
                continue
            if name in payload and field.nullable and layout.dynamic:
                taken[name] = payload[name]  # null in its field; the exact value is kept beside it
            elif name in payload or not field.nullable:
                self.unfit.append(name)
            self.values[name] = None if field.nullable else [] if field.type == ARRAY else _EMPTY.get(field.type)
        if not layout.dynamic:
            self.unfit += [*rest, *taken]
        self.text = _with_hidden(rest, taken)
        if len(self.text) > MAX_JSON:
            self.unfit.append("(all keys)")


def _fits(field: Field, kind: int, value: Any) -> bool:
    """Whether a field of this type gives `value` back exactly."""
    if kind == BOOL:
        return isinstance(value, bool)
    if kind in INT_BITS:
        bound = 2 ** (INT_BITS[kind] - 1)
        return isinstance(value, int) and not isinstance(value, bool) and -bound <= value < bound
    if kind in (FLOAT, DOUBLE):
        return isinstance(value, float) and (kind == DOUBLE or float(np.float32(value)) == value)
    if kind == VARCHAR:
        return isinstance(value, str) and len(value.encode()) <= (field.max_length or MAX_VARCHAR)
    if kind == JSON:
        return value is not None and len(json_dumps(value)) <= MAX_JSON
    if kind == ARRAY and isinstance(value, list):
        return len(value) <= field.capacity and all(_fits(field, field.element, item) for item in value)
    return False
