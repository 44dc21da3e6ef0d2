"""Indexes of vectors: what Milvus tells of one, which it can have, and how they are asked for."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from runner.points import CollectionSchema, Distance, VectorIndex

METRICS = {Distance.COSINE: "COSINE", Distance.DOT: "IP", Distance.EUCLID: "L2"}
_TYPES = {"autoindex", "diskann", "flat", "ivf_flat", "ivf_pq", "ivf_sq8", "scann"}
_M, _EF_CONSTRUCTION, _NLIST = 16, 200, 128


def described(description: Any) -> tuple[str, VectorIndex]:
    """Metric and index, in our words, of an IndexDescription."""
    params: dict[str, Any] = {pair.key: pair.value for pair in description.params}
    params.update(json.loads(params.pop("params", None) or "{}"))
    metric, kind = str(params.pop("metric_type", "")).upper(), str(params.pop("index_type", "")).lower()
    values = {key: _number(value) for key, value in params.items()}
    m, construction = values.pop("M", None), values.pop("efConstruction", None)
    index = VectorIndex(
        type=kind,
        m=m if isinstance(m, int) else None,
        ef_construction=construction if isinstance(construction, int) else None,
        params=values,
    )
    return metric, index


def _number(value: Any) -> int | float | str | bool:
    """Servers tell everything as text."""
    if isinstance(value, int | float | bool):
        return value
    for kind in (int, float):
        with suppress(ValueError):
            return kind(str(value))
    return str(value)


def fit_index(wish: VectorIndex | None) -> tuple[VectorIndex, str]:
    """The index Milvus will have, and what is lost of the wish. Milvus reads no collection without one."""
    default = VectorIndex(type="hnsw", m=_M, ef_construction=_EF_CONSTRUCTION)
    if wish is None:
        return default, ""
    kind = {"ivfflat": "ivf_flat"}.get(wish.type.lower(), wish.type.lower())
    if kind == "hnsw":
        m, construction = wish.m or _M, wish.ef_construction or _EF_CONSTRUCTION
        fitted = VectorIndex(type="hnsw", m=min(max(m, 2), 2048), ef_construction=max(construction, 1))
        lost = ", ".join(sorted(wish.params))
        return fitted, f"hnsw settings without an equal: {lost}" if lost else ""
    if kind not in _TYPES:
        return default, f"no index of type {wish.type}; hnsw is made"
    params = {("nlist" if key == "lists" else key): value for key, value in wish.params.items()}
    if kind in ("ivf_flat", "ivf_sq8", "ivf_pq", "scann"):
        params.setdefault("nlist", _NLIST)
    return VectorIndex(type=kind, params=params), ""


def wanted(schema: CollectionSchema) -> dict[str, dict[str, str]]:
    """Vector -> parameters of the index it is to have, sparse vectors too."""
    found = {}
    for item in schema.vectors:
        index, _ = fit_index(item.index)
        params = dict(index.params)
        if index.type == "hnsw":
            params |= {"M": index.m or _M, "efConstruction": index.ef_construction or _EF_CONSTRUCTION}
        found[item.name] = {
            "index_type": index.type.upper(),
            "metric_type": METRICS[item.distance],
            "params": json.dumps(params),
        }
    sparse = {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "IP", "params": "{}"}
    return found | dict.fromkeys((item.name for item in schema.sparse), sparse)
