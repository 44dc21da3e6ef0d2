"""What happens to points on their way: which are taken, their ids, the names of vectors, the payload fields.

A transform is data (it stands in the plan) and pure: the same point always gives the same result, which is what
makes repeating a batch harmless.
"""

from __future__ import annotations

import uuid
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from runner.conditions import Condition, holds
from runner.embedder import ModelIdentity
from runner.errors import Permanent
from runner.points import IdKind, Model, Payload, Payloads, PointBatch, PointId, canonical_uuid, json_dumps

#: Fixed for ever: another value would give every mapped point a second identity.
ID_NAMESPACE = uuid.UUID("5d3e9b5e-7a0b-5d52-9c37-2f1f5c6f8a41")

Cast = Literal["string", "integer", "float", "boolean"]


class IdMode(StrEnum):
    """How a target id comes from a source id."""

    KEEP = "keep"
    STRING = "string"  # integers become decimal text
    UUID5 = "uuid5"  # canonical UUIDs stay, everything else becomes a deterministic UUID


class TextColumn(Model):
    """A column of the user's relational table that holds the texts; a row names its point by `vector_id_column`."""

    connection: str
    table: str
    vector_id_column: str
    text_column: str
    collection_column: str | None = None
    collection: str = ""


class Embedding(Model):
    """How one dense vector of each point is made from its text. `model` is a name of `vecrun.yaml`."""

    model: str
    identity: ModelIdentity
    vector: str
    field: str | None = None  # payload field of the text, a key or a dotted path; None: `column` has it
    column: TextColumn | None = None
    version_field: str | None = None  # payload field that gets the model's version
    budget: float | None = None  # USD a run may spend


class Transform(Model):
    """Applied in this order: where, payload (drop, rename, cast, set), vectors, ids, partitions.

    `embed` is not done by `apply`, which stays pure: the executor does it afterwards, out of what it keeps of each text.
    """

    where: tuple[Condition, ...] = ()
    drop: tuple[str, ...] = ()
    rename: dict[str, str] = Field(default_factory=dict)
    cast: dict[str, Cast] = Field(default_factory=dict)
    set: dict[str, Any] = Field(default_factory=dict)
    vectors: dict[str, str] = Field(default_factory=dict)  # source name -> target name, for those that are carried
    ids: IdMode = IdMode.KEEP
    id_from: str | None = None  # payload field that holds the id to use; taken out of the payload
    keep_id_as: str | None = None  # payload field that gets the source id when it was mapped
    partition_field: str | None = None  # payload field that gets the partition's name
    embed: Embedding | None = None

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        if self.embed is None:  # plans from before it was there stay as they are
            del data["embed"]
        return data

    @property
    def touches_payload(self) -> bool:
        """Whether payloads have to be parsed at all."""
        return bool(
            self.where
            or self.drop
            or self.rename
            or self.cast
            or self.set
            or self.id_from
            or self.keep_id_as
            or self.partition_field
        )

    def apply(self, batch: PointBatch) -> tuple[PointBatch, list[tuple[PointId, PointId]]]:
        """The transformed points, and (source id, target id) of those whose id changed. Errors name the point."""
        if self.where:
            rows = [row for row, item in enumerate(batch.payloads.dicts) if all(holds(c, item) for c in self.where)]
            if len(rows) < len(batch):
                batch = batch.take(rows)
        payloads = batch.payloads
        if self.touches_payload:
            payloads = Payloads([dict(item) for item in payloads.dicts])
            for point_id, item in zip(batch.ids, payloads.dicts, strict=True):
                self._edit(point_id, item)
        ids = self._ids(batch, payloads)
        pairs = [
            (old, new) for old, new in zip(batch.ids, ids, strict=True) if old != new or type(old) is not type(new)
        ]
        if self.keep_id_as and pairs:
            for old, new, item in zip(batch.ids, ids, payloads.dicts, strict=True):
                if old != new:
                    _put(item, self.keep_id_as, old, old)
        if self.partition_field and batch.partitions is not None:
            for point_id, item, name in zip(batch.ids, payloads.dicts, batch.partitions, strict=True):
                _put(item, self.partition_field, name, point_id)
        return (
            PointBatch(
                ids=ids,
                vectors=self._renamed(batch.vectors),
                payloads=payloads,
                sparse=self._renamed(batch.sparse),
                missing=self._renamed(batch.missing),
                partitions=None if self.partition_field else batch.partitions,
            ),
            pairs,
        )

    def _renamed(self, columns: dict[str, Any]) -> dict[str, Any]:
        if not self.vectors:
            return columns
        return {self.vectors[name]: column for name, column in columns.items() if name in self.vectors}

    def _edit(self, point_id: PointId, item: Payload) -> None:
        for name in self.drop:
            item.pop(name, None)
        moved = [(new, item.pop(old)) for old, new in self.rename.items() if old in item]
        for name, value in moved:
            _put(item, name, value, point_id)
        for name, wanted in self.cast.items():
            if item.get(name) is not None:
                item[name] = _cast(item[name], wanted, name, point_id)
        for name, value in self.set.items():
            _put(item, name, value, point_id)

    def _ids(self, batch: PointBatch, payloads: Payloads) -> list[PointId]:
        ids: list[PointId] = batch.ids
        if self.id_from:
            ids = []
            for old, item in zip(batch.ids, payloads.dicts, strict=True):
                # only points whose id was mapped carry the field (see keep_id_as)
                value = item.pop(self.id_from, old)
                if not isinstance(value, (int, str)) or isinstance(value, bool):
                    raise Permanent("A payload field cannot be an id", f"point {old!r}: {self.id_from} is {value!r}")
                ids.append(value)
        if self.ids is IdMode.KEEP:
            return ids
        return [map_id(item, self.ids) for item in ids]


def map_id(point_id: PointId, mode: IdMode) -> PointId:
    """The target id of one source id. UUID5 keeps the type apart: 42 and "42" become different UUIDs."""
    if mode is IdMode.STRING:
        return str(point_id)
    if mode is IdMode.UUID5 and not canonical_uuid(point_id):
        tag = "i" if isinstance(point_id, int) else "s"
        return str(uuid.uuid5(ID_NAMESPACE, f"{tag}:{point_id}"))
    return point_id


def id_mode(source: IdKind, target_kinds: frozenset[IdKind]) -> tuple[IdMode, IdKind] | None:
    """How ids of kind `source` get into a store with `target_kinds`, and their kind there. None: no way is known."""
    if source in target_kinds:
        return IdMode.KEEP, source
    if source is IdKind.UUID and IdKind.STRING in target_kinds:
        return IdMode.KEEP, IdKind.STRING
    if source is IdKind.INT_OR_UUID and IdKind.STRING in target_kinds:
        return IdMode.STRING, IdKind.STRING
    if IdKind.UUID in target_kinds:
        return IdMode.UUID5, IdKind.UUID
    if IdKind.STRING in target_kinds:
        return IdMode.STRING, IdKind.STRING
    return None


def _put(item: Payload, name: str, value: Any, point_id: PointId) -> None:
    if name in item and json_dumps(item[name]) != json_dumps(value):
        raise Permanent(
            "A payload field would overwrite another",
            f"point {point_id!r} already has {name!r}",
            "rename or drop one of the two in the spec's payload section",
        )
    item[name] = value


def _cast(value: Any, wanted: Cast, name: str, point_id: PointId) -> Any:
    try:
        match wanted:
            case "string":
                return value if isinstance(value, str) else json_dumps(value).decode()
            case "integer":
                if isinstance(value, float) and not value.is_integer():
                    raise ValueError("it has a fraction")
                return int(value)
            case "float":
                return float(value)
            case "boolean":
                return {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
    except (ValueError, TypeError, KeyError) as exc:
        raise Permanent(
            "A payload field cannot be converted", f"point {point_id!r}: {name} = {value!r} to {wanted}: {exc}"
        ) from exc
