"""Payloads to and from properties: what a property would not give back exactly goes to the overflow property."""

from __future__ import annotations

import base64
import re
import sys
from datetime import datetime
from typing import Any, cast

import numpy as np

from runner.errors import Permanent
from runner.points import Payload, PointId, canonical_uuid, json_dumps, json_loads
from runner.stores.weaviate.definition import OVERFLOW, Property

#: Numbers are float64 on the way to the server.
_LARGEST_INT = 2**53
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")
_PLAIN = frozenset({"text_value", "int_value", "number_value", "bool_value", "date_value", "uuid_value", "blob_value"})
_NOTHING = object()
_REFUSED = (_NOTHING, False)


def guess(value: object) -> str | None:
    """The data type for a value nobody declared; None if no property would hold it."""
    match value:
        case bool():
            return "boolean"
        case int():
            return "int" if abs(value) <= _LARGEST_INT else None
        case float():
            return "number"
        case str():
            return "text"
        case [_, *_]:
            kinds = {guess(item) for item in cast("list[object]", value)}
            kinds = {"number"} if kinds == {"int", "number"} else kinds
            kind = kinds.pop() if len(kinds) == 1 else None
            return None if kind is None or kind.endswith("[]") else f"{kind}[]"
    return None


def write(payload: Payload, properties: dict[str, Property], point_id: PointId) -> Payload:
    """The properties of one point, the overflow included. Permanent if the payload is not JSON."""
    natural: Payload = {}
    overflow: Payload = {}
    for key, value in payload.items():
        item = properties.get(key)
        held, exact = _REFUSED if item is None or key == OVERFLOW else _hold(item, value)
        if held is not _NOTHING:
            natural[key] = held
        if not exact:
            overflow[key] = value
    if overflow:
        try:
            natural[OVERFLOW] = json_dumps(overflow).decode()
        except (TypeError, ValueError) as exc:
            raise Permanent("A payload is not JSON", f"{point_id}: {exc}") from exc
    return natural


def _hold(item: Property, value: Any) -> tuple[Any, bool]:
    """What a property takes of `value` (_NOTHING: it refuses), and whether it gives back exactly `value`."""
    kind = item.kind
    if isinstance(value, str):
        return _hold_text(kind, value)
    if isinstance(value, bool):
        return (value, True) if kind == "boolean" else _REFUSED
    if isinstance(value, int | float):
        return _hold_number(kind, value)
    if isinstance(value, dict):
        return _hold_object(item, value)
    return _hold_list(item, value) if isinstance(value, list) else _REFUSED


def _hold_list(item: Property, value: list[Any]) -> tuple[Any, bool]:
    if item.refers and all(type(element) is dict and element.keys() == {"beacon"} for element in value):
        return value, True
    if item.kind.endswith("[]"):
        inner = Property(item.kind[:-2], item.nested)
        held = [_hold(inner, element) for element in value]
        if all(element is not _NOTHING for element, _ in held):
            return [element for element, _ in held], all(exact for _, exact in held)
    return _REFUSED


def _hold_text(kind: str, value: str) -> tuple[Any, bool]:
    if kind in ("text", "string") or (kind == "uuid" and canonical_uuid(value)):
        return value, True
    try:
        if kind == "blob" and base64.b64decode(value, validate=True):
            return value, True
        if kind == "date" and (match := _RFC3339.fullmatch(value)):
            datetime.fromisoformat(value)
            # Go writes dates without zeros at the end of a fraction, and Z for an offset of zero.
            fraction, offset = match.groups()
            return value, not (fraction or "").endswith("0") and offset[1:] != "00:00"
    except ValueError:
        pass
    return _REFUSED


def _hold_number(kind: str, value: float) -> tuple[Any, bool]:
    if kind == "int" and abs(value) <= _LARGEST_INT and value == int(value):
        return int(value), isinstance(value, int)
    if kind == "number" and abs(value) <= sys.float_info.max:  # NaN and infinity: refused with the overflow
        return float(value), isinstance(value, float)
    return _REFUSED


def _hold_object(item: Property, value: Payload) -> tuple[Any, bool]:
    if item.kind == "object" and value.keys() <= item.nested.keys():
        held = {key: _hold(item.nested[key], inner) for key, inner in value.items()}
        if all(exact for _, exact in held.values()):
            return {key: inner for key, (inner, _) in held.items()}, True
    if item.kind == "geoCoordinates" and value.keys() in ({"latitude", "longitude"}, {"lat", "lon"}):
        # Places are float32 on the server: other numbers, and the spelling lat and lon, also go to the overflow.
        latitude, longitude = numbers = [value[key] for key in sorted(value)]
        if all(type(number) in (int, float) for number in numbers) and abs(latitude) <= 90 and abs(longitude) <= 180:
            exact = all(type(number) is float and number == _shortest(number) for number in numbers)
            place = {"latitude": float(latitude), "longitude": float(longitude)}
            return place, "latitude" in value and exact
    if item.kind == "phoneNumber" and type(value.get("input")) is str and value.get("valid"):
        # The server works the other parts out of the input.
        country = str(value.get("defaultCountry") or "").lower()
        return {"input": value["input"], "defaultCountry": country}, False
    return _REFUSED


def _shortest(number: float) -> float:
    """The number a float32 stands for, as JSON shows it: 52.3676 and not 52.36759948…"""
    return float(str(np.float32(number)))


def read(fields: Any) -> Payload:
    """The payload of one point from its properties, the overflow included."""
    payload = _read_fields(fields)
    if OVERFLOW in payload:
        payload |= json_loads(payload.pop(OVERFLOW).encode())
    return payload


def _read_fields(fields: Any) -> Payload:
    payload: Payload = {}
    for key, value in fields.items():
        kind = value.WhichOneof("kind")
        if kind in _PLAIN:
            payload[key] = getattr(value, kind)
        elif kind != "null_value" and kind is not None:
            payload[key] = _read_value(kind, getattr(value, kind))
    return payload


def _read_value(kind: str, value: Any) -> Any:
    if kind == "object_value":
        return _read_fields(value.fields)
    if kind == "geo_value":
        return {"latitude": _shortest(value.latitude), "longitude": _shortest(value.longitude)}
    if kind == "phone_value":
        return {item.json_name: getattr(value, item.name) for item in value.DESCRIPTOR.fields}
    which = value.WhichOneof("kind")
    values: Any = getattr(value, which).values if which else ()
    if which == "int_values":
        return np.frombuffer(values, "<i8").tolist()
    if which == "number_values":
        return np.frombuffer(values, "<f8").tolist()
    return [_read_fields(item.fields) for item in values] if which == "object_values" else list(values)
