"""Nearest points by comparing a query with every point, block by block."""

from __future__ import annotations

from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from runner.points import Distance, Float32Matrix, PointId
from runner.store import Hit, check_queries
from runner.stores.files.manifest import Manifest
from runner.stores.files.parts import Opener, merged
from runner.stores.files.tables import DELETED, KEYS, ids_of, to_matrix

Matrix = NDArray[np.float64]

#: Numbers of the largest array that is made beside the points: queries times points, or points times dimension.
_NUMBERS = 1 << 20


def search(manifest: Manifest, open_part: Opener, vector: str, queries: Float32Matrix, limit: int) -> list[list[Hit]]:
    """As the store's. Holds what a scan holds and the hits."""
    collection = manifest.collection
    check_queries(collection.name, {item.name: item.dimension for item in collection.vectors}, vector, queries)
    wanted, columns = collection.vector(vector), [*KEYS, DELETED, f"vector:{vector}"]
    nearest = Nearest(wanted.distance, queries, limit)
    with closing(merged(manifest.parts, open_part, columns=columns)) as tables:
        for table in tables:
            there = table.filter(table[columns[-1]].is_valid())
            nearest.show(ids_of(there), to_matrix(there, wanted)[0])
    return nearest.hits()


class Nearest:
    """The best `limit` hits of each query among the points shown so far."""

    def __init__(self, distance: Distance, queries: Float32Matrix, limit: int) -> None:
        self._distance, self._limit = distance, limit
        self._queries = _wide(distance, queries)
        self._scores: Matrix = np.empty((len(queries), 0))
        self._ids: NDArray[np.object_] = np.empty((len(queries), 0), object)

    def show(self, ids: list[PointId], matrix: Float32Matrix) -> None:
        """Compare with these points too."""
        step = max(1, _NUMBERS // max(len(self._queries), matrix.shape[1]))
        for start in range(0, len(ids), step):
            names = np.empty(min(step, len(ids) - start), object)
            names[:] = ids[start : start + step]
            scores, rows = self._best(_scores(self._distance, self._queries, matrix[start : start + step]))
            self._scores, columns = self._best(np.hstack([self._scores, scores]))
            self._ids = np.take_along_axis(np.hstack([self._ids, names[rows]]), columns, axis=1)

    def hits(self) -> list[list[Hit]]:
        """Best first."""
        order = np.argsort(-self._scores, axis=1, kind="stable")
        ids, scores = (np.take_along_axis(item, order, axis=1).tolist() for item in (self._ids, self._scores))
        return [[Hit(*pair) for pair in zip(*row, strict=True)] for row in zip(ids, scores, strict=True)]

    def _best(self, scores: Matrix) -> tuple[Matrix, NDArray[np.intp]]:
        """The `limit` highest of each row in any order, and where they are."""
        if scores.shape[1] <= self._limit:
            return scores, np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
        columns = np.argpartition(-scores, self._limit - 1, axis=1)[:, : self._limit]
        return np.take_along_axis(scores, columns, axis=1), columns


def _wide(distance: Distance, matrix: Float32Matrix) -> Matrix:
    """In float64, under cosine of length 1 (a zero vector stays zero and is like none)."""
    wide = matrix.astype(np.float64)
    if distance == Distance.COSINE:
        lengths = np.linalg.norm(wide, axis=1, keepdims=True)
        wide /= np.where(lengths > 0, lengths, 1)
    return wide


def _scores(distance: Distance, queries: Matrix, matrix: Float32Matrix) -> Matrix:
    """(queries, points), higher is nearer."""
    points = _wide(distance, matrix)
    if distance in (Distance.COSINE, Distance.DOT):
        return queries @ points.T
    # one query at a time, as a difference: the square of a sum would lose the digits of what is near
    scores = np.empty((len(queries), len(points)))
    for row, query in enumerate(queries):
        apart = points - query
        if distance == Distance.EUCLID:
            scores[row] = -np.sqrt(np.einsum("ij,ij->i", apart, apart))
        else:
            scores[row] = -np.abs(apart).sum(axis=1)
    return scores
