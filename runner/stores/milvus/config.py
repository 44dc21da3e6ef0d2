"""Settings of a connection to Milvus."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from runner.store import ConnectionConfig


class MilvusConfig(ConnectionConfig):
    """A Milvus Lite directory or a Milvus server."""

    type: Literal["milvus"] = "milvus"
    uri: str = Field(
        description="`http://host:19530` or `https://…` of a server, or the path of a Milvus Lite directory (*.db).",
        examples=["http://localhost:19530", "./points.db"],
    )
    token: str | None = Field(
        default=None, description="API key, or `user:password`.", examples=["${env:MILVUS_TOKEN}"], repr=False
    )
    user: str | None = Field(default=None, description="User, instead of a token.", examples=["root"])
    password: str | None = Field(
        default=None, description="Password of `user`.", examples=["${env:MILVUS_PASSWORD}"], repr=False
    )
    database: str = Field(default="", description="Database; empty for the default one.", examples=["default"])
    timeout: float = Field(default=60, gt=0, description="Seconds one request may take.", examples=[60])
    load: bool = Field(
        default=False,
        description="Load a collection that is not loaded when it has to be read. It takes memory on the server and "
        "stays loaded; without this, reading such a collection is an error. Milvus Lite always loads.",
        examples=[True],
    )

    @property
    def unshared(self) -> str:
        return "" if "://" in self.uri else "a Milvus Lite directory is opened by one process at a time"
