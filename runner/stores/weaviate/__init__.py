"""Weaviate (server 1.27 or newer) through the official client's connection and its gRPC messages.

Points travel as protobuf messages, never as the client's per-object classes. Payload keys are natural properties
where a property gives back exactly what it was given; what it cannot hold lies as JSON in one reserved property,
so every JSON payload comes back as it was.
"""

from __future__ import annotations

from runner.stores.weaviate.config import WeaviateConfig
from runner.stores.weaviate.store import WeaviateStore

__all__ = ["WeaviateConfig", "WeaviateStore"]
