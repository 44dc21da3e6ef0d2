"""Object storage, where the files of documents are: a folder, or a bucket of S3 or of what speaks like it.

Only the settings stand here; `storage` opens them.
"""

from __future__ import annotations

import re
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from runner.store import ConnectionConfig

_NO_FOLDER = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")


class FolderConfig(ConnectionConfig):
    """A folder of files. It must exist; links that lead out of it are not followed."""

    type: Literal["folder"] = Field(description="A folder, for the files of documents.")
    path: str = Field(min_length=1, description="The folder.", examples=["./files", "/srv/documents"])
    shared: bool = Field(False, description="With workers on several hosts: all of them see this folder.")

    @property
    def local(self) -> bool:
        return not self.shared

    @property
    def place(self) -> str:
        """Where it is."""
        return self.path


class S3Config(ConnectionConfig):
    """A bucket of Amazon S3, or of a server that speaks its protocol. Without keys they are looked for as AWS tools do it
    (environment, web identity, container, instance)."""

    type: Literal["s3"] = Field(description="A bucket of S3, for the files of documents.")
    bucket: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$", description="Name of the bucket.")
    prefix: str = Field("", description="Folder within the bucket; keys of files are relative to it.", examples=["kb/"])
    region: str = Field("", description="Region; empty: AWS_REGION, else us-east-1.", examples=["eu-central-1"])
    endpoint: str | None = Field(
        None,
        pattern=r"^https?://",
        description="Address of an S3-compatible server; empty: Amazon's. With http:// nothing is encrypted on its way.",
        examples=["https://minio.internal:9000"],
    )
    access_key_id: str | None = Field(
        None, repr=False, description="A reference.", examples=["${env:S3_ACCESS_KEY_ID}"]
    )
    secret_access_key: str | None = Field(
        None, repr=False, description="A reference.", examples=["${env:S3_SECRET_ACCESS_KEY}"]
    )
    session_token: str | None = Field(
        None, repr=False, description="For temporary keys. A reference.", examples=["${env:S3_SESSION_TOKEN}"]
    )
    path_style: bool = Field(
        True,
        description="The bucket stands in the path of requests. false: before the host name (virtual-hosted style).",
    )
    timeout: int = Field(60, ge=1, le=3600, description="Seconds the server may be silent during a request.")

    @field_validator("prefix")
    @classmethod
    def _folder(cls, prefix: str) -> str:
        bare = prefix.strip("/")
        if bare and (_NO_FOLDER.search(bare) or any(part in ("", ".", "..") for part in bare.split("/"))):
            raise ValueError("a prefix is a folder such as kb/2026, without empty parts, . and .. and \\")
        return bare

    @field_validator("session_token")
    @classmethod
    def _empty_token(cls, token: str | None) -> str | None:
        return token or None

    @model_validator(mode="after")
    def _whole_key(self) -> Self:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("give access_key_id and secret_access_key, or neither")
        try:
            host = urlsplit(self.endpoint or "https://s3").hostname
        except ValueError:
            host = None
        if not host:
            raise ValueError("endpoint is no URL with a host")
        if not self.path_style and (":" in host or host.replace(".", "").isdigit()):
            raise ValueError("a bucket cannot stand before an address of numbers: use path_style: true")
        if self.session_token and self.access_key_id is None:
            raise ValueError("a session_token belongs to an access_key_id")
        return self

    @property
    def place(self) -> str:
        """Where it is."""
        at = f" at {urlsplit(self.endpoint).netloc.rpartition('@')[2]}" if self.endpoint else ""
        return "/".join(part for part in (f"s3://{self.bucket}", self.prefix) if part) + at


#: type of a connection -> its settings
OBJECTS: dict[str, type[ConnectionConfig]] = {"folder": FolderConfig, "s3": S3Config}
