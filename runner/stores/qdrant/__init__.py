"""Qdrant: a server over gRPC (or REST alone), and the client's local mode for demos and tests.

Over gRPC, points are read from and written to the protobuf messages directly: no model object per point.
"""

from __future__ import annotations

from runner.stores.qdrant.config import QdrantConfig
from runner.stores.qdrant.store import QdrantStore

__all__ = ["QdrantConfig", "QdrantStore"]
