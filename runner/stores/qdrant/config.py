"""Settings of a connection to Qdrant."""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from runner.store import ConnectionConfig


class QdrantConfig(ConnectionConfig):
    """A Qdrant server (`url`) or a folder of the client's local mode (`path`)."""

    type: Literal["qdrant"] = "qdrant"
    url: str | None = Field(
        None,
        description="Address of the server's REST port.",
        pattern=r"^https?://",
        examples=["http://localhost:6333", "https://xyz.cloud.qdrant.io:6333"],
    )
    path: str | None = Field(
        None,
        description="Folder of the client's local mode (one process at a time, about 1,000 points/s), or `:memory:`. "
        "The folder holds Python pickles: never open one that came from somebody else, it can run their code.",
        examples=["./qdrant_data", ":memory:"],
    )
    api_key: str | None = Field(
        None, description="API key or JWT of the server.", repr=False, examples=["${env:QDRANT_API_KEY}"]
    )
    grpc_port: int = Field(6334, description="gRPC port of the server.", ge=1, le=65535, examples=[6334])
    prefer_grpc: bool = Field(
        True, description="Talk gRPC, several times as fast. false: REST only, where the gRPC port is closed."
    )
    timeout: int = Field(60, description="Seconds one request may take.", ge=1, examples=[60])

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.url is None) == (self.path is None):
            raise ValueError("give either url (a server) or path (local mode)")
        return self

    @property
    def unshared(self) -> str:
        return "" if self.path is None else "a folder of Qdrant's local mode is opened by one process at a time"

    @property
    def place(self) -> str:
        """Where it is, without user and password."""
        if self.path is not None:
            return self.path
        parts = urlsplit(self.url or "")
        return f"{parts.scheme}://{parts.hostname}:{parts.port or 6333}"
