"""Definitions of collections, as the server's REST API has them, from and to a CollectionSchema."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import orjson

from runner.errors import Permanent
from runner.points import CollectionSchema, Distance, IdKind, PayloadField, PayloadType, VectorField, VectorIndex
from runner.store import INDEX, REFUSED, Problem

#: The property that holds, as a JSON object, what of a payload its natural properties cannot give back.
OVERFLOW = "_vecrun"
#: Description of a property nobody declared: a schema leaves it out, for points do not change what was declared.
ADDED = "added by vecrun from the points"

_COLLECTION = re.compile(r"[A-Z][_0-9A-Za-z]{0,254}")
_VECTOR = re.compile(r"[_A-Za-z][_0-9A-Za-z]{0,229}")
_PROPERTY = re.compile(r"[_a-z][_0-9A-Za-z]{0,230}")  # the server turns an upper first letter into a lower one
_TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: Refused by the server (its entities/schema/validation.go); `vector` by its clients.
_RESERVED = frozenset({"id", "_id", "_additional", "vector", OVERFLOW})
_RESERVED_SUFFIXES = ("_propertyLength", "_nullState", "_searchable", "_rangeable", "_temp", "__meta_count")

DISTANCES = {
    "cosine": Distance.COSINE,
    "dot": Distance.DOT,
    "l2-squared": Distance.EUCLID,
    "manhattan": Distance.MANHATTAN,
}
_METRICS = {distance: metric for metric, distance in DISTANCES.items()}
_KINDS = {
    PayloadType.KEYWORD: "text",
    PayloadType.TEXT: "text",
    PayloadType.INTEGER: "int",
    PayloadType.FLOAT: "number",
    PayloadType.BOOL: "boolean",
    PayloadType.DATETIME: "date",
    PayloadType.UUID: "uuid",
    PayloadType.GEO: "geoCoordinates",
}
_TYPES = {kind: payload_type for payload_type, kind in _KINDS.items()} | {"string": PayloadType.TEXT}
_QUANTIZERS = ("pq", "bq", "sq", "rq")
#: maxConnections and efConstruction of a server that is not told any (1.39); always sent, so that plans can name them.
_M, _EF_CONSTRUCTION = 32, 128


class Property(NamedTuple):
    """A property: its data type as the server names it, and the properties of an object."""

    kind: str
    nested: dict[str, Property]

    @property
    def refers(self) -> bool:
        """Whether it is a cross-reference: its type is a collection."""
        return self.kind[:1].isupper()

    @property
    def has_blob(self) -> bool:
        return self.kind.startswith("blob") or any(item.has_blob for item in self.nested.values())


def properties_of(items: Iterable[dict[str, Any]]) -> dict[str, Property]:
    """name -> property, from the `properties` of a definition."""
    return {
        item["name"]: Property(item["dataType"][0], properties_of(item.get("nestedProperties") or ())) for item in items
    }


# Names --------------------------------------------------------------------------------------------------------------


def name_hint(name: str) -> str:
    """What to call a collection or an alias instead; "" if the server keeps this name as it is."""
    if _COLLECTION.fullmatch(name):
        return ""
    usable = re.sub(r"[^_0-9A-Za-z]", "_", name).lstrip("_0123456789")
    usable = usable[:1].upper() + usable[1:255]
    return f"Names are letters, digits and _, the first an upper letter: {usable or 'Collection'}"


def is_property_name(key: str) -> bool:
    """Whether the server keeps a property of this name under exactly this name."""
    return bool(_PROPERTY.fullmatch(key)) and key not in _RESERVED and not key.endswith(_RESERVED_SUFFIXES)


# Reading ------------------------------------------------------------------------------------------------------------


def vector_lengths(definition: dict[str, Any]) -> dict[str, int]:
    """name -> dimension, 0 where only points can tell; "" is the unnamed vector of an old collection."""
    items = definition.get("properties") or []
    described = next((item.get("description") for item in items if item["name"] == OVERFLOW), None)
    try:
        dimensions = orjson.loads(described or "{}")["dimensions"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        dimensions = None
    lengths = {name: (dimensions or {}).get(name, 0) for name in _vector_configs(definition)}
    if dimensions is not None and "" not in dimensions:
        lengths.pop("", None)  # a collection without vectors has one all the same, as the server sees it
    return lengths


def schema_of(definition: dict[str, Any], lengths: dict[str, int], tenants: list[str] | None) -> CollectionSchema:
    """The schema, with the vectors named in `lengths`. Permanent for a vector that is none of fixed length."""
    name, vectors = definition["class"], []
    for vector, config in _vector_configs(definition).items():
        options = config.get("vectorIndexConfig") or {}
        options = options | (options.get("hnsw") or {})  # a dynamic index has its settings one level down
        metric = options.get("distance") or "cosine"
        if (options.get("multivector") or {}).get("enabled"):
            metric = "multi-vector"
        if metric not in DISTANCES:
            raise Permanent(
                "A vector of a kind vecrun does not know",
                f"collection {name}, vector {vector or '(unnamed)'}: {metric}",
                f"Metrics it knows: {', '.join(DISTANCES)}; one vector of fixed length a name.",
            )
        if vector in lengths:
            index = _read_index(config.get("vectorIndexType", "hnsw"), options)
            vectors.append(VectorField(name=vector, dimension=lengths[vector], distance=DISTANCES[metric], index=index))
    fields = [
        _read_field(item)
        for item in definition.get("properties") or []
        if item["name"] != OVERFLOW and item.get("description") != ADDED
    ]
    return CollectionSchema(
        name=name,
        id_kind=IdKind.UUID,
        vectors=tuple(vectors),
        payload=tuple(fields),
        partitions=None if tenants is None else tuple(tenants),
        settings={
            "replication_factor": (definition.get("replicationConfig") or {}).get("factor", 1),
            "shards": None if tenants is not None else (definition.get("shardingConfig") or {}).get("desiredCount", 1),
        },
    )


def _vector_configs(definition: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """name -> configuration; an old collection has one without a name, at the level of the collection."""
    configs = dict(definition.get("vectorConfig") or {})
    return {"": definition} | configs if definition.get("vectorIndexType") else configs


def _read_index(kind: str, options: dict[str, Any]) -> VectorIndex:
    params = {} if options.get("ef", -1) == -1 else {"ef": options["ef"]}
    for quantizer in _QUANTIZERS:
        settings = options.get(quantizer) or {}
        if settings.get("enabled"):
            own = {key: value for key, value in settings.items() if isinstance(value, int | float | str)}
            params |= {"quantizer": quantizer} | {f"{quantizer}.{key}": own[key] for key in own if key != "enabled"}
    return VectorIndex(
        type=kind, m=options.get("maxConnections"), ef_construction=options.get("efConstruction"), params=params
    )


def _read_field(item: dict[str, Any]) -> PayloadField:
    kind = item["dataType"][0]
    payload_type = _TYPES.get(kind.removesuffix("[]"), PayloadType.JSON)
    if kind.removesuffix("[]") == "text":
        payload_type = PayloadType.KEYWORD if item.get("tokenization") == "field" else PayloadType.TEXT
    return PayloadField(
        name=item["name"],
        type=payload_type,
        array=kind.endswith("[]") or kind[:1].isupper(),
        indexed=bool(item.get("indexFilterable") or item.get("indexSearchable")),
    )


# Fitting and writing ------------------------------------------------------------------------------------------------


def fit(schema: CollectionSchema) -> tuple[CollectionSchema, list[Problem]]:
    """The schema the server would hold of a wished one, and what it would not."""
    problems = []
    if hint := name_hint(schema.name):
        problems.append(Problem(REFUSED, f"{schema.name!r} is no name for a collection. {hint}", "name"))
    vectors = []
    for vector in schema.vectors:
        label = f"vector {vector.name or '(unnamed)'}"
        if not _VECTOR.fullmatch(vector.name) and (vector.name or len(schema.vectors) > 1):
            problems.append(Problem(REFUSED, "no name for a vector: letters, digits and _, no digit first", label))
        index, lost = _fit_index(vector.index or VectorIndex())
        if lost:
            problems.append(Problem(INDEX, lost, label))
        vectors.append(vector.model_copy(update={"index": index}))
    fields, taken = [], set[str]()
    for item in schema.payload:
        typed = item.type in _KINDS and not (item.type is PayloadType.GEO and item.array)
        if typed and is_property_name(item.name) and item.name.lower() not in taken:
            taken.add(item.name.lower())
            fields.append(item.model_copy(update={"max_length": None}))
        elif item.indexed:
            problems.append(Problem(INDEX, "held, but not as a property of its own: no filter finds it", item.name))
    if bad := [item for item in schema.partitions or () if not _TENANT.fullmatch(item)]:
        problems.append(Problem(REFUSED, f"no names for tenants (letters, digits, _ and -): {', '.join(bad[:5])}"))
    if schema.partition_key is not None:
        problems.append(Problem(INDEX, "places no points by a payload field", schema.partition_key))
    held = {"id_kind": IdKind.UUID, "id_max_length": None, "sparse": (), "partition_key": None}
    return schema.model_copy(update=held | {"vectors": tuple(vectors), "payload": tuple(fields)}), problems


def _fit_index(wish: VectorIndex) -> tuple[VectorIndex, str]:
    """The index that is made, and what of the wish it leaves out."""
    known = wish.type in ("hnsw", "flat")
    kept = ("ef", "quantizer", *_QUANTIZERS) if known else ()
    params = {key: value for key, value in wish.params.items() if key.split(".")[0] in kept}
    lost = [] if known else [f"index {wish.type} becomes hnsw"]
    if left_out := sorted(wish.params.keys() - params.keys()):
        lost.append(f"without {', '.join(left_out)}")
    if wish.type == "flat":
        return VectorIndex(type="flat", params=params), "; ".join(lost)
    m, ef_construction = wish.m or _M, wish.ef_construction or _EF_CONSTRUCTION
    return VectorIndex(m=m, ef_construction=ef_construction, params=params), "; ".join(lost)


def definition_of(schema: CollectionSchema) -> dict[str, Any]:
    """The definition of a schema that `fit` made."""
    settings = schema.settings
    dimensions = {item.name: item.dimension for item in schema.vectors}
    definition: dict[str, Any] = {
        "class": schema.name,
        "properties": [*map(_write_field, schema.payload), overflow_property(dimensions)],
        "replicationConfig": {"factor": int(settings.get("replication_factor") or 1)},
        "multiTenancyConfig": {"enabled": schema.partitions is not None},
    }
    if schema.partitions is None and settings.get("shards"):
        definition["shardingConfig"] = {"desiredCount": int(cast("int", settings["shards"]))}
    if list(dimensions) == [""]:
        return definition | {"vectorizer": "none"} | _write_index(schema.vectors[0])
    vectors = {item.name: {"vectorizer": {"none": {}}} | _write_index(item) for item in schema.vectors}
    return definition | {"vectorConfig": vectors}


def overflow_property(dimensions: dict[str, int] | None) -> dict[str, Any]:
    """The reserved property. Its description keeps what the server has no place for: the lengths of vectors.

    None for a collection somebody else made, where they are found by reading. Filters ask it for the words of a key.
    """
    return {
        "name": OVERFLOW,
        "dataType": ["text"],
        "tokenization": "word",
        "indexFilterable": True,
        "indexSearchable": False,
        "description": orjson.dumps({"dimensions": dimensions}).decode(),
    }


def _write_index(item: VectorField) -> dict[str, Any]:
    index = item.index or VectorIndex()
    options: dict[str, Any] = {"distance": _METRICS[item.distance]}
    if index.type != "flat":
        options |= {"maxConnections": index.m or _M, "efConstruction": index.ef_construction or _EF_CONSTRUCTION}
    if "ef" in index.params:
        options["ef"] = index.params["ef"]
    if quantizer := index.params.get("quantizer"):
        own = {key.split(".", 1)[1]: value for key, value in index.params.items() if key.startswith(f"{quantizer}.")}
        options[str(quantizer)] = {"enabled": True} | own
    return {"vectorIndexType": index.type, "vectorIndexConfig": options}


def _write_field(item: PayloadField) -> dict[str, Any]:
    definition: dict[str, Any] = {
        "name": item.name,
        "dataType": [_KINDS[item.type] + ("[]" if item.array else "")],
        "indexFilterable": item.indexed,
    }
    if _KINDS[item.type] == "text":
        whole = item.type is PayloadType.KEYWORD
        definition |= {"tokenization": "field" if whole else "word", "indexSearchable": item.indexed and not whole}
    return definition
