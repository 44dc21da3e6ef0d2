"""A collection's schema in our words and in those of pymilvus."""

from __future__ import annotations

from typing import Any

from runner.points import (
    CollectionSchema,
    Datatype,
    Distance,
    IdKind,
    PayloadField,
    PayloadType,
    SparseField,
    VectorField,
)
from runner.stores.milvus import indexes
from runner.stores.milvus.layout import (
    ARRAY,
    BFLOAT16_VECTOR,
    FLOAT16_VECTOR,
    FLOAT_VECTOR,
    INT8_VECTOR,
    PAYLOAD_TYPES,
    PRIMARY_KEY,
    SPARSE_VECTOR,
    Layout,
)

#: Bytes of a key or a partition key of which nothing is known.
DEFAULT_LENGTH = 1_024
_DISTANCES = {metric: distance for distance, metric in indexes.METRICS.items()}
_RARE_VECTORS = {BFLOAT16_VECTOR: "bfloat16", INT8_VECTOR: "int8"}

Settings = dict[str, int | float | str | bool | None]


def schema_of(found: dict[str, Any], layout: Layout, descriptions: dict[str, Any]) -> CollectionSchema:
    """The schema of what describe_collection and DescribeIndex told."""
    settings = _settings(found, layout)
    vectors = []
    for label, (kind, dimension) in layout.dense.items():
        metric, index = indexes.described(descriptions[label]) if label in descriptions else ("", None)
        if metric not in _DISTANCES:
            settings[f"metric of {label}"] = metric or "not set (no index); taken as COSINE"
        if kind in _RARE_VECTORS:
            settings[f"type of {label}"] = _RARE_VECTORS[kind]
        vectors.append(
            VectorField(
                name=label,
                dimension=dimension,
                distance=_DISTANCES.get(metric, Distance.COSINE),
                datatype=Datatype.FLOAT16 if kind == FLOAT16_VECTOR else Datatype.FLOAT32,
                index=index,
            )
        )
    payload = [
        PayloadField(
            name=label,
            type=PAYLOAD_TYPES[field.element if field.type == ARRAY else field.type],
            array=field.type == ARRAY,
            indexed=label in descriptions,
            max_length=field.max_length,
        )
        for label, field in layout.typed.items()
    ]
    return CollectionSchema(
        name=layout.name,
        id_kind=IdKind.STRING if layout.text_key else IdKind.INT,
        id_max_length=layout.key_length,
        vectors=tuple(vectors),
        sparse=tuple(SparseField(name=label) for label in layout.sparse),
        payload=tuple(payload),
        partitions=layout.partitions,
        partition_key=layout.partition_key,
        settings=settings,
    )


def _settings(found: dict[str, Any], layout: Layout) -> Settings:
    settings: Settings = {
        "auto_id": layout.auto_id,
        "consistency_level": str(found.get("consistency_level_name") or found.get("consistency_level", "")),
        "dynamic": layout.dynamic,
        "primary_key": layout.key,
        "shards": int(found.get("num_shards") or 1),
    }
    if found.get("description"):
        settings["description"] = str(found["description"])
    for item in found["fields"]:
        if item.get("is_function_output"):
            settings[f"computed {item['name']}"] = "made by a function of the server, not carried"
    if layout.unsupported:
        settings["fields that cannot be read"] = ", ".join(layout.unsupported)
    return settings


def pymilvus_schema(schema: CollectionSchema) -> Any:
    """What create_collection of pymilvus takes. Payloads go into the dynamic field."""
    from pymilvus import DataType, MilvusClient

    made = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True)
    if schema.id_kind == IdKind.INT:
        made.add_field(PRIMARY_KEY, DataType.INT64, is_primary=True)
    else:
        length = schema.id_max_length or DEFAULT_LENGTH
        made.add_field(PRIMARY_KEY, DataType.VARCHAR, is_primary=True, max_length=length)
    for item in schema.vectors:
        kind = FLOAT16_VECTOR if item.datatype == Datatype.FLOAT16 else FLOAT_VECTOR
        made.add_field(item.name, DataType(kind), dim=item.dimension)
    for sparse in schema.sparse:
        made.add_field(sparse.name, DataType(SPARSE_VECTOR))
    for entry in schema.payload:
        if entry.name == schema.partition_key and entry.type == PayloadType.INTEGER:
            made.add_field(entry.name, DataType.INT64, is_partition_key=True)
        elif entry.name == schema.partition_key:
            length = entry.max_length or DEFAULT_LENGTH
            made.add_field(entry.name, DataType.VARCHAR, is_partition_key=True, max_length=length)
    return made
