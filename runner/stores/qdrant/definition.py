"""What a collection of Qdrant looks like: its parameters as a schema, a schema as parameters, and what fits."""

from __future__ import annotations

import json
import re
from typing import Any

from runner.errors import Permanent
from runner.points import (
    CollectionSchema,
    Datatype,
    Distance,
    IdKind,
    PayloadField,
    PayloadType,
    SparseField,
    VectorField,
    VectorIndex,
)
from runner.store import INDEX, PARTITIONS, REFUSED, Problem

DISTANCES = {
    Distance.COSINE: "Cosine",
    Distance.DOT: "Dot",
    Distance.EUCLID: "Euclid",
    Distance.MANHATTAN: "Manhattan",
}
#: Where `create_arguments` notes the id kind in the collection's metadata (servers from 1.16; older ones ignore it).
ID_KIND = "vecrun_id_kind"
#: Settings of a collection that are read and given as they are, as `qdrant.<name>`.
_SETTINGS = ("shard_number", "replication_factor", "write_consistency_factor", "on_disk_payload")
#: Qdrant's own defaults of an HNSW index, https://qdrant.tech/documentation/concepts/indexing
_M, _EF = 16, 100
#: Index parameters that are read and given, with the default a server reports: of HNSW, of the vector's storage,
#: and quantization as JSON.
_PARAMS: dict[str, int | bool | None] = {
    "hnsw.full_scan_threshold": 10_000,
    "hnsw.max_indexing_threads": 0,
    "hnsw.on_disk": False,
    "hnsw.memory": None,
    "hnsw.payload_m": None,
    "hnsw.inline_storage": None,
    "on_disk": None,
    "memory": None,
    "quantization": None,
}
#: Characters the server refuses in names of collections and vectors (they become folders).
_BAD_NAME = re.compile(r'[<>:"/\\|?*\x00\x1f]')

Settings = dict[str, int | float | str | bool | None]

# Reading ------------------------------------------------------------------------------------------------------------


def dense_params(name: str, vectors: Any) -> dict[str, Any]:
    """Vector name -> VectorParams, whichever of its two forms Qdrant gives."""
    found = {} if vectors is None else vectors if isinstance(vectors, dict) else {"": vectors}
    for vector, item in found.items():
        if item.multivector_config is not None:
            where = f"collection {name}, vector {vector or '(unnamed)'}"
            raise Permanent("Multivectors are not supported", where, "Leave this collection out of the job.")
    return found


def is_sharded(params: Any) -> bool:
    """Whether points are placed by shard keys of the user's."""
    method = getattr(params, "sharding_method", None)
    return method is not None and method.value == "custom"


def declared_id_kind(info: Any) -> str | None:
    found: str | None = (getattr(info.config, "metadata", None) or {}).get(ID_KIND)
    return found


def schema_of(name: str, info: Any, id_kind: IdKind, shard_keys: list[str] | None, *, local: bool) -> CollectionSchema:
    """The schema of a collection from Qdrant's description of it."""
    config, params = info.config, info.config.params
    vectors = [
        VectorField(
            name=vector,
            dimension=item.size,
            distance=Distance(str(item.distance.value).lower()),
            datatype=_datatype(item),
            index=_read_index(config, item),
        )
        for vector, item in sorted(dense_params(name, params.vectors).items())
    ]
    sparse = sorted((params.sparse_vectors or {}).items())
    settings: Settings = {
        f"qdrant.{key}": value for key in _SETTINGS if (value := getattr(params, key, None)) is not None
    }
    if not local:
        settings["qdrant.optimizers"] = _as_json(config.optimizer_config)
    metadata = {key: value for key, value in (getattr(config, "metadata", None) or {}).items() if key != ID_KIND}
    if metadata:
        settings["qdrant.metadata"] = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
    settings |= {f"qdrant.sparse.{vector}": text for vector, item in sparse if (text := _as_json(item)) != "{}"}
    payload, tenant = [], None
    for field, item in sorted(info.payload_schema.items()):
        payload.append(PayloadField(name=field, type=PayloadType(str(item.data_type.value)), indexed=True))
        options = {} if item.params is None else item.params.model_dump(mode="json", exclude_none=True)
        options.pop("type", None)
        if tenant is None and options.pop("is_tenant", False):
            tenant = field
        if options:
            settings[f"qdrant.index.{field}"] = json.dumps(options, sort_keys=True)
    return CollectionSchema(
        name=name,
        id_kind=id_kind,
        vectors=tuple(vectors),
        sparse=tuple(SparseField(name=vector) for vector, _ in sparse),
        payload=tuple(payload),
        partitions=None if shard_keys is None else tuple(shard_keys),
        partition_key=tenant,
        settings=settings,
    )


def _datatype(item: Any) -> Datatype:
    """Types that are not ours (turbo4) come out as float32."""
    value = item.datatype and item.datatype.value
    return Datatype(value) if value in list(Datatype) else Datatype.FLOAT32


def _as_json(model: Any) -> str:
    return json.dumps(model.model_dump(mode="json", exclude_none=True), sort_keys=True)


def _read_index(config: Any, item: Any) -> VectorIndex:
    """The index as it works: settings of the vector over those of the collection."""
    own = item.hnsw_config.model_dump(mode="json", exclude_none=True) if item.hnsw_config else {}
    hnsw = config.hnsw_config.model_dump(mode="json", exclude_none=True) | own
    params = {f"hnsw.{key}": value for key, value in hnsw.items()}
    for key in ("on_disk", "memory"):
        if (value := getattr(item, key, None)) is not None:
            params[key] = value if isinstance(value, bool) else value.value
    if quantization := item.quantization_config or config.quantization_config:
        params["quantization"] = _as_json(quantization)
    if not hnsw["m"] and not hnsw.get("payload_m"):
        return VectorIndex(type="flat", params=_own_params(params, "flat"))
    return VectorIndex(
        type="hnsw", m=hnsw["m"], ef_construction=hnsw["ef_construct"], params=_own_params(params, "hnsw")
    )


def _own_params(params: dict[str, Any], index_type: str) -> dict[str, Any]:
    """What Qdrant has of these parameters and does not do anyway."""
    return {
        key: value
        for key, value in params.items()
        if key in _PARAMS and value != _PARAMS[key] and (index_type == "hnsw" or not key.startswith("hnsw."))
    }


# Fitting ------------------------------------------------------------------------------------------------------------


def fit(wish: CollectionSchema, schema: CollectionSchema, *, local: bool) -> tuple[CollectionSchema, list[Problem]]:
    """`schema`, which every store would make of `wish`, as Qdrant can build it. Adds what it cannot."""
    problems: list[Problem] = []
    if not wish.name or _is_bad_name(wish.name, 255):
        problems.append(Problem(REFUSED, f"Qdrant takes no collection of the name {wish.name!r}", "name"))
    sparse_names = [item.name for item in wish.sparse]
    problems += [
        Problem(REFUSED, f"Qdrant takes no vector of the name {name!r}", f"vector {name}")
        for name in [item.name for item in wish.vectors] + sparse_names
        if _is_bad_name(name, 200)
    ]
    if "" in sparse_names:
        problems.append(Problem(REFUSED, "a sparse vector needs a name in Qdrant", "vector (unnamed)"))
    vectors = []
    for item in schema.vectors:
        index, lost = _fit_index(item.index)
        if lost:
            problems.append(Problem(INDEX, lost, f"vector {item.name or '(unnamed)'}"))
        vectors.append(item.model_copy(update={"index": index}))
    payload, tenant, lost_indexes = _fit_payload(wish, local)
    if wish.partitions is not None:
        what = f"{len(wish.partitions)} partitions become one collection"
        problems.append(Problem(PARTITIONS, what, "partitions"))
    settings = {key: value for key, value in wish.settings.items() if key.startswith("qdrant.") and not local}
    changes: dict[str, Any] = {
        "id_max_length": None,
        "vectors": tuple(sorted(vectors, key=lambda item: item.name)),
        "sparse": tuple(SparseField(name=name) for name in sorted(sparse_names)),
        "payload": payload,
        "partitions": None,
        "partition_key": tenant,
        "settings": settings,
    }
    return schema.model_copy(update=changes), problems + lost_indexes


def _is_bad_name(name: str, longest: int) -> bool:
    return bool(_BAD_NAME.search(name)) or name in (".", "..") or len(name.encode()) > longest


def _fit_payload(wish: CollectionSchema, local: bool) -> tuple[tuple[PayloadField, ...], str | None, list[Problem]]:
    """The payload indexes and the field of the tenant index. A payload holds any field without being told."""
    problems, tenant = [], wish.partition_key
    wanted = {item.name: item.type for item in wish.payload if item.indexed}
    if tenant is not None:
        wanted[tenant] = {item.name: item.type for item in wish.payload}.get(tenant, PayloadType.KEYWORD)
        if local or wanted[tenant] not in (PayloadType.KEYWORD, PayloadType.UUID):
            problems.append(Problem(INDEX, "no tenant index for this field here", tenant))
            tenant = None
    for name in [name for name, kind in wanted.items() if local or kind == PayloadType.JSON]:
        why = "local mode keeps no payload indexes" if local else "Qdrant has no index for whole objects"
        problems.append(Problem(INDEX, why, name))
        del wanted[name]
    return tuple(PayloadField(name=name, type=wanted[name], indexed=True) for name in sorted(wanted)), tenant, problems


def _fit_index(wish: VectorIndex | None) -> tuple[VectorIndex, str]:
    """The index Qdrant would build, and what of the wish it has no equal for."""
    wish = wish or VectorIndex(type="hnsw")
    if wish.type not in ("hnsw", "flat"):
        lost = f"no index of type {wish.type}; HNSW is built"
        return VectorIndex(type="hnsw", m=_M, ef_construction=_EF), lost
    unknown = ", ".join(sorted(set(wish.params) - set(_PARAMS)))
    lost = f"no equal for the index settings {unknown}" if unknown else ""
    params = _own_params(wish.params, wish.type)
    if wish.type == "flat":
        return VectorIndex(type="flat", params=params), lost
    m, ef = _M if wish.m is None else wish.m, _EF if wish.ef_construction is None else wish.ef_construction
    return VectorIndex(type="hnsw", m=m, ef_construction=ef, params=params), lost


# Building -----------------------------------------------------------------------------------------------------------


def create_arguments(schema: CollectionSchema, *, local: bool) -> dict[str, Any]:
    """Arguments of `create_collection`: on a server without HNSW graphs and quantization, for a fast load
    (https://qdrant.tech/documentation/manage-data/bulk-upload).
    """
    from qdrant_client import models

    settings, dense = schema.settings, {}
    for item in schema.vectors:
        params = item.index.params if item.index else {}
        no_graph = {"m": 0} | ({"payload_m": 0} if "hnsw.payload_m" in params else {})
        dense[item.name] = models.VectorParams(
            size=item.dimension,
            distance=models.Distance(DISTANCES[item.distance]),
            datatype=None if item.datatype == Datatype.FLOAT32 else models.Datatype(item.datatype.value),
            **{key: params[key] for key in ("on_disk", "memory") if key in params},
            **(index_arguments(item) if local else {"hnsw_config": no_graph}),
        )
    sparse = {item.name: models.SparseVectorParams(**_json(settings, f"sparse.{item.name}")) for item in schema.sparse}
    optimizers, known = _json(settings, "optimizers"), models.OptimizersConfigDiff.model_fields
    return {
        "vectors_config": dense[""] if list(dense) == [""] else dense,
        "sparse_vectors_config": sparse or None,
        # what a server reports may hold more than what it takes
        "optimizers_config": models.OptimizersConfigDiff(
            **{key: optimizers[key] for key in known if key in optimizers}
        ),
        "metadata": _json(settings, "metadata") | {ID_KIND: schema.id_kind.value},
        **{key: settings[f"qdrant.{key}"] for key in _SETTINGS if f"qdrant.{key}" in settings},
    }


def index_arguments(item: VectorField) -> dict[str, Any]:
    """`hnsw_config` and `quantization_config` of a vector, as its index wishes."""
    index, _ = _fit_index(item.index)
    hnsw: dict[str, Any] = {"m": 0}
    if index.type == "hnsw":
        hnsw = {key[5:]: value for key, value in index.params.items() if key.startswith("hnsw.")}
        hnsw |= {"m": index.m, "ef_construct": index.ef_construction}
    found: dict[str, Any] = {"hnsw_config": hnsw}
    if "quantization" in index.params:
        found["quantization_config"] = json.loads(str(index.params["quantization"]))
    return found


def payload_index(schema: CollectionSchema, field: PayloadField) -> Any:
    """The `field_schema` of `create_payload_index`."""
    from qdrant_client import models

    params = _json(schema.settings, f"index.{field.name}")
    if field.name == schema.partition_key:
        params["is_tenant"] = True
    if not params:
        return models.PayloadSchemaType(field.type.value)
    return getattr(models, f"{field.type.value.capitalize()}IndexParams")(type=field.type.value, **params)


def _json(settings: Settings, key: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(str(settings.get(f"qdrant.{key}", "{}")))
    return found
