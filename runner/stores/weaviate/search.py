"""Nearest points of one collection, tenant by tenant."""

from __future__ import annotations

import heapq
import math
from typing import Any

import numpy as np

from runner.points import Distance, Float32Matrix
from runner.store import Hit
from runner.stores.weaviate.connection import Connection


def search(
    connection: Connection,
    name: str,
    tenants: list[str],
    vector: str,
    distance: Distance,
    queries: Float32Matrix,
    limit: int,
) -> list[list[Hit]]:
    """The nearest points of all `tenants` ("" is a collection without), for each of `queries`."""
    found = []
    for query in np.ascontiguousarray(queries, np.dtype("<f4")):
        hits: list[Hit] = []
        for tenant in tenants:
            answer = connection.call("Search", _request(name, tenant, vector, query.tobytes(), limit), f"search {name}")
            near = [Hit(item.metadata.id, _score(distance, item.metadata.distance)) for item in answer.results]
            hits = heapq.nlargest(limit, [*hits, *near], key=lambda hit: hit.score)
        found.append(hits)
    return found


def _request(name: str, tenant: str, vector: str, query: bytes, limit: int) -> Any:
    from weaviate.proto.v1 import base_search_pb2, search_get_pb2

    near = base_search_pb2.NearVector(vector_bytes=query)
    if vector:
        near.targets.target_vectors.append(vector)
    return search_get_pb2.SearchRequest(
        collection=name,
        tenant=tenant,
        limit=limit,
        near_vector=near,
        metadata=search_get_pb2.MetadataRequest(uuid=True, distance=True),
        properties=search_get_pb2.PropertiesRequest(),
        uses_125_api=True,
        uses_127_api=True,
    )


def _score(distance: Distance, told: float) -> float:
    """Weaviate tells 1 - cosine, the dot product below zero, the square of a length, the sum of a manhattan."""
    if distance == Distance.COSINE:
        return 1 - told
    return -math.sqrt(max(told, 0)) if distance == Distance.EUCLID else -told
