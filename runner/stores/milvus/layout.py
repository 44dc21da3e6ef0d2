"""The fields of a collection: their types, and the layout of one collection, described or planned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runner.points import CollectionSchema, IdKind, PayloadType

PRIMARY_KEY = "id"
DEFAULT_PARTITION = "_default"
#: The dynamic key with the JSON text of the payload keys that cannot stand for themselves.
HIDDEN = "_vecrun"
#: Payload keys a server refuses or Milvus Lite drops without a word (found by trial on 2.3.5 and Lite 3.2.2).
RESERVED = frozenset({"$meta", "_seq", "_partition", HIDDEN})
#: Bytes of a dynamic field, a JSON or a VARCHAR (inclusive for JSON: 65,536 passes a 2.3.5, 65,537 does not).
MAX_JSON, MAX_VARCHAR = 65_536, 65_535

# Numbers of pymilvus.DataType, which is not imported here
BOOL, INT8, INT16, INT32, INT64, FLOAT, DOUBLE, VARCHAR, ARRAY, JSON = 1, 2, 3, 4, 5, 10, 11, 21, 22, 23
GEOMETRY, TIMESTAMPTZ = 24, 26
FLOAT_VECTOR, FLOAT16_VECTOR, BFLOAT16_VECTOR, SPARSE_VECTOR, INT8_VECTOR = 101, 102, 103, 104, 105
DENSE = {FLOAT_VECTOR, FLOAT16_VECTOR, BFLOAT16_VECTOR, INT8_VECTOR}
INT_BITS = {INT8: 8, INT16: 16, INT32: 32, INT64: 64}
PAYLOAD_TYPES = dict.fromkeys(INT_BITS, PayloadType.INTEGER) | {
    BOOL: PayloadType.BOOL,
    FLOAT: PayloadType.FLOAT,
    DOUBLE: PayloadType.FLOAT,
    VARCHAR: PayloadType.KEYWORD,
    JSON: PayloadType.JSON,
    GEOMETRY: PayloadType.GEO,
    TIMESTAMPTZ: PayloadType.DATETIME,
}


@dataclass(frozen=True)
class Field:
    """A payload field with a type of its own."""

    type: int
    element: int = 0  # type of an array's elements
    nullable: bool = False
    max_length: int | None = None  # bytes of a VARCHAR, or of each in an array
    capacity: int = 4_096  # elements of an array


@dataclass(frozen=True)
class Layout:
    """The fields of one collection, sorted by use."""

    name: str
    key: str
    text_key: bool
    key_length: int | None
    dense: dict[str, tuple[int, int]]  # name -> (type, dimension)
    sparse: tuple[str, ...]
    typed: dict[str, Field]
    auto_id: bool = False
    dynamic: bool = True
    unsupported: tuple[str, ...] = ()
    partitions: tuple[str, ...] | None = None  # beside _default
    partition_key: str | None = None

    @property
    def hidden(self) -> frozenset[str]:
        """Payload keys that would clash with a field."""
        return RESERVED | {self.key, *self.dense, *self.sparse, *self.unsupported}


def planned(schema: CollectionSchema) -> Layout:
    """The layout a new collection will have."""
    typed = {
        item.name: Field(INT64) if item.type == PayloadType.INTEGER else Field(VARCHAR, max_length=item.max_length)
        for item in schema.payload
        if item.name == schema.partition_key
    }
    return Layout(
        name=schema.name,
        key=PRIMARY_KEY,
        text_key=schema.id_kind != IdKind.INT,
        key_length=schema.id_max_length,
        dense={item.name: (FLOAT_VECTOR, item.dimension) for item in schema.vectors},
        sparse=tuple(item.name for item in schema.sparse),
        typed=typed,
        partitions=schema.partitions,
        partition_key=schema.partition_key,
    )


def described(found: dict[str, Any], partitions: tuple[str, ...] | None) -> Layout:
    """The layout of what describe_collection told."""
    dense: dict[str, tuple[int, int]] = {}
    typed: dict[str, Field] = {}
    sparse: list[str] = []
    unsupported: list[str] = [item["name"] for item in found.get("struct_array_fields") or ()]
    key = key_of(found)
    for item in found["fields"]:
        kind, element, label = int(item["type"]), int(item.get("element_type") or 0), item["name"]
        if item is key or item.get("is_function_output"):
            continue
        if kind in DENSE:
            dense[label] = (kind, int(item["params"]["dim"]))
        elif kind == SPARSE_VECTOR:
            sparse.append(label)
        elif (element if kind == ARRAY else kind) in PAYLOAD_TYPES:
            length, capacity = item["params"].get("max_length"), item["params"].get("max_capacity", 4_096)
            nullable = bool(item.get("nullable"))
            typed[label] = Field(kind, element, nullable, int(length) if length else None, int(capacity))
        else:
            unsupported.append(label)
    text_key = int(key["type"]) == VARCHAR
    return Layout(
        name=found["collection_name"],
        key=key["name"],
        text_key=text_key,
        key_length=int(key["params"]["max_length"]) if text_key else None,
        dense=dense,
        sparse=tuple(sparse),
        typed=typed,
        auto_id=bool(found.get("auto_id") or key.get("auto_id")),
        dynamic=bool(found.get("enable_dynamic_field")),
        unsupported=tuple(unsupported),
        partitions=partitions,
        partition_key=partition_key_of(found),
    )


def key_of(found: dict[str, Any]) -> dict[str, Any]:
    """The field that is the primary key."""
    return next(item for item in found["fields"] if item.get("is_primary"))


def partition_key_of(found: dict[str, Any]) -> str | None:
    return next((item["name"] for item in found["fields"] if item.get("is_partition_key")), None)
