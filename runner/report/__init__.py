"""Reports: text, Markdown, HTML and JSON of the same models. No decisions, no input or output."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from pydantic import BaseModel

from runner.errors import VecrunError, redact

#: Version of the JSON documents that commands print; a new minor only adds keys.
JSON_VERSION = "1.0"


def to_json(kind: str, value: Any) -> str:
    """One JSON document: {format_version, type, …}."""
    data = plain(value)
    body = data if isinstance(data, dict) else {"items": data}
    return redact(json.dumps({"format_version": JSON_VERSION, "type": kind} | body, ensure_ascii=False, default=str))


def plain(value: Any) -> Any:
    """Models, dataclasses and errors as plain JSON values."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, VecrunError):
        return value.as_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
