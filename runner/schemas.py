"""The published JSON Schemas, generated from the models that check the same files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from runner.documents import SqlConfig
from runner.embedders import EMBEDDERS
from runner.embedders import config_model as embedder_model
from runner.errors import NotFound
from runner.kinds import spec_models
from runner.objects import OBJECTS
from runner.settings import Workspace
from runner.spec import API_VERSION, Metadata, suggest
from runner.stores import STORES, config_model

_ID = "https://vecrun.dev/schemas/v1/{}.json"


def names() -> list[str]:
    """Job kinds, and Workspace."""
    return [*sorted(spec_models()), "Workspace"]


def schema(kind: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a file of this kind. NotFound."""
    if kind == "Workspace":
        return _headed(kind, _workspace())
    models = spec_models()
    if kind not in models:
        raise NotFound("No such kind", repr(kind), suggest(kind, names()))
    spec = models[kind]().model_json_schema(by_alias=True)
    definitions = spec.pop("$defs", {}) | {"Metadata": Metadata.model_json_schema(), "Spec": spec}
    _inline_connections(definitions)
    return _headed(
        kind,
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["apiVersion", "kind", "metadata", "spec"],
            "properties": {
                "apiVersion": {"const": API_VERSION},
                "kind": {"const": kind},
                "metadata": {"$ref": "#/$defs/Metadata"},
                "spec": {"$ref": "#/$defs/Spec"},
            },
            "$defs": definitions,
        },
    )


def dumps(kind: str) -> str:
    """The schema as it stands in `schemas/`."""
    return json.dumps(schema(kind), indent=2, ensure_ascii=False) + "\n"


def _headed(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": _ID.format(kind),
        "title": f"vecrun {kind}",
    }
    return head | {key: value for key, value in body.items() if key != "title"}


def _connection_schemas() -> dict[str, dict[str, Any]]:
    return _schemas("connection", {name: config_model(name) for name in STORES} | OBJECTS | {"sql": SqlConfig})


def _schemas(prefix: str, models: Mapping[str, type[BaseModel]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, model in sorted(models.items()):
        one = model.model_json_schema(ref_template="#/$defs/{model}")
        found |= one.pop("$defs", {})
        found[f"{prefix}_{name}"] = one
    return found


def _one_connection() -> dict[str, Any]:
    return _one("connection", "type", [*STORES, *OBJECTS, "sql"])


def _one(prefix: str, key: str, names_: Iterable[str]) -> dict[str, Any]:
    """One of several forms, by the value of `key`."""
    return {
        "type": "object",
        "required": [key],
        "properties": {key: {"enum": sorted(names_)}},
        "allOf": [
            {"if": {"properties": {key: {"const": name}}}, "then": {"$ref": f"#/$defs/{prefix}_{name}"}}
            for name in sorted(names_)
        ],
    }


def _inline_connections(definitions: dict[str, Any]) -> None:
    """Where a spec takes a connection by name or written out, say what the written form looks like."""
    definitions |= _connection_schemas()
    for field in definitions["Spec"]["properties"].values():
        for branch in field.get("anyOf", []):
            if branch.get("type") == "object" and branch.get("additionalProperties") is True:
                branch.clear()
                branch.update(_one_connection())


def _workspace() -> dict[str, Any]:
    body = Workspace.model_json_schema(by_alias=True)
    definitions = body.setdefault("$defs", {})
    definitions |= _connection_schemas() | _schemas("model", {name: embedder_model(name) for name in EMBEDDERS})
    for holder in (body, definitions["Environment"]):
        holder["properties"]["connections"]["additionalProperties"] = _one_connection()
        holder["properties"]["models"]["additionalProperties"] = _one("model", "provider", EMBEDDERS)
    body["required"] = sorted({*body.get("required", []), "apiVersion", "kind"})
    return body
