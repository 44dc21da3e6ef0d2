"""Nearest points of one collection, many queries in a call."""

from __future__ import annotations

from runner.points import Float32Matrix
from runner.store import Hit, check_queries
from runner.stores.qdrant.connection import Connection
from runner.stores.qdrant.definition import dense_params

#: Queries of one call, and hits it may give back: answers stay below a few megabytes.
_MOST_QUERIES, _MOST_HITS = 100, 50_000


def search(connection: Connection, name: str, vector: str, queries: Float32Matrix, limit: int) -> list[list[Hit]]:
    """As the store's. Points that no index holds yet are compared one by one by the server, so all of them are seen."""
    from qdrant_client import models

    if (info := connection.info(name)) is None or limit < 1:
        return [[] for _ in queries]
    params = dense_params(name, info.config.params.vectors)
    sizes = {item: int(found.size) for item, found in params.items()}
    check_queries(f"{connection.config.place}: {name}", sizes, vector, queries)
    if limit > _MOST_HITS:  # the server makes room for as many as are asked for
        with connection.calling(f"count {name}"):
            limit = max(1, min(limit, connection.client.count(name, timeout=connection.config.timeout).count))
    sign = -1.0 if params[vector].distance.value in ("Euclid", "Manhattan") else 1.0
    # rescored: with quantization the first score is only near the real one
    exactly = None
    if not connection.local:  # which has no quantization, and warns
        exactly = models.SearchParams(quantization=models.QuantizationSearchParams(rescore=True))
    requests = [
        models.QueryRequest.model_construct(
            query=models.NearestQuery.model_construct(nearest=row), using=vector or None, limit=limit, params=exactly
        )
        for row in queries.tolist()
    ]
    found: list[list[Hit]] = []
    step = max(1, min(_MOST_QUERIES, _MOST_HITS // limit))
    for start in range(0, len(requests), step):
        with connection.calling(f"search {name}"):
            answers = connection.client.query_batch_points(
                name, requests[start : start + step], timeout=connection.config.timeout
            )
        found += [[Hit(point.id, sign * point.score) for point in answer.points] for answer in answers]
    return found
