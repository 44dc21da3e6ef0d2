"""Settings of a connection to Weaviate."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from runner.store import ConnectionConfig


class WeaviateConfig(ConnectionConfig):
    """A Weaviate server or cluster: REST for definitions, gRPC for points."""

    type: Literal["weaviate"] = "weaviate"
    url: str = Field(
        description="REST address: http or https, host, port (80 or 443 if none).",
        examples=["http://localhost:8080", "https://my-cluster.weaviate.network"],
    )
    grpc_host: str | None = Field(
        default=None,
        description="Host of gRPC; that of `url` if none is given.",
        examples=["grpc-my-cluster.weaviate.network"],
    )
    grpc_port: int = Field(default=50051, ge=1, le=65535, description="Port of gRPC.", examples=[50051, 443])
    grpc_secure: bool | None = Field(
        default=None, description="Whether gRPC uses TLS; as `url` does if not given.", examples=[True]
    )
    api_key: str | None = Field(
        default=None,
        repr=False,
        description="API key, as a reference to a secret.",
        examples=["${env:WEAVIATE_API_KEY}"],
    )
    consistency_level: Literal["ONE", "QUORUM", "ALL"] = Field(
        default="ALL",
        description="How many replicas must confirm a write. ALL: counts are right whichever replica answers.",
        examples=["QUORUM"],
    )
    timeout_seconds: float = Field(default=120.0, gt=0, description="Longest wait for one answer.", examples=[60])

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected http://host:port or https://host")
        return url
