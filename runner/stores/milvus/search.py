"""Nearest points of one collection: the messages that ask for them, and the scores of an answer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from runner.points import Distance, Float32Matrix, VectorIndex
from runner.store import Hit
from runner.stores.milvus.indexes import METRICS
from runner.stores.milvus.layout import BFLOAT16_VECTOR, FLOAT16_VECTOR, INT8_VECTOR

#: Hits of one query and queries of one message; the server's `quotaAndLimits.limits`, topK and nq.
MOST_HITS = 16_384
_MOST_QUERIES = 1_000
#: Hits of one answer, and numbers of one message.
_HITS, _NUMBERS = 100_000, 1_000_000
#: Points that a graph looks at for one query, at least. 64 is usual, and misses some where many points were replaced.
_EFFORT = 256


def parts(queries: Float32Matrix, limit: int) -> Iterator[Float32Matrix]:
    """`queries` in pieces that a server takes, and whose answers are not too large."""
    step = max(1, min(_MOST_QUERIES, _HITS // limit, _NUMBERS // queries.shape[1]))
    for start in range(0, len(queries), step):
        yield queries[start : start + step]


def fields(
    label: str, kind: int, distance: Distance, index: VectorIndex | None, queries: Float32Matrix, limit: int
) -> dict[str, Any]:
    """Fields of a SearchRequest for the vector `label` of type `kind`."""
    from pymilvus.grpc_gen import common_pb2

    rows = [row.tobytes() for row in _encoded(kind, queries)]
    group = common_pb2.PlaceholderGroup(placeholders=[{"tag": "$0", "type": kind, "values": rows}])
    params = {
        "anns_field": label,
        "topk": str(limit),
        "metric_type": METRICS[distance],
        "params": json.dumps(_effort(index, limit)),
        "round_decimal": "-1",
    }
    return {
        "dsl_type": common_pb2.DslType.BoolExprV1,
        "nq": len(queries),
        "placeholder_group": group.SerializeToString(),
        "search_params": [{"key": key, "value": value} for key, value in params.items()],
    }


def hits_of(distance: Distance, results: Any) -> Iterator[list[Hit]]:
    """The hits of each query of an answer, best first. L2 is told as its square."""
    ids = results.ids.str_id.data or results.ids.int_id.data
    scores = np.asarray(results.scores, np.float64)
    if distance == Distance.EUCLID:
        scores = -np.sqrt(np.maximum(scores, 0))
    hits = [Hit(point_id, score) for point_id, score in zip(ids, scores.tolist(), strict=True)]
    edges = np.cumsum([0, *results.topks]).tolist()
    for start, stop in pairwise(edges):
        yield hits[start:stop]


def _effort(index: VectorIndex | None, limit: int) -> dict[str, int]:
    """Settings of a search; graphs must look at no fewer points than they give, lists are a share of all."""
    kind = index.type if index else ""
    if kind == "hnsw":
        return {"ef": max(2 * limit, _EFFORT)}
    if kind == "diskann":
        return {"search_list": max(limit, _EFFORT)}
    if index is not None and "nlist" in index.params:
        probes = {"nprobe": math.ceil(math.sqrt(int(index.params["nlist"])))}
        return probes | ({"reorder_k": max(limit, _EFFORT)} if kind == "scann" else {})
    return {}


def _encoded(kind: int, queries: Float32Matrix) -> Any:
    """The rows in the numbers that the field holds."""
    if kind == FLOAT16_VECTOR:
        return queries.astype("<f2")
    if kind == BFLOAT16_VECTOR:
        return (np.ascontiguousarray(queries, "<f4").view("<u4") >> 16).astype("<u2")
    return np.rint(queries).astype(np.int8) if kind == INT8_VECTOR else queries.astype("<f4")
