"""Settings of a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from runner.embedder import EmbedderConfig


class OpenAIConfig(EmbedderConfig):
    """A model behind POST {base_url}/embeddings."""

    provider: Literal["openai"] = "openai"
    model: str = Field(
        min_length=1,
        description="The model's name, as the endpoint knows it.",
        examples=["text-embedding-3-small", "nomic-embed-text"],
    )
    base_url: str = Field(
        "https://api.openai.com/v1",
        description="Address of the API, up to and without /embeddings.",
        examples=["https://api.openai.com/v1", "http://localhost:11434/v1"],
    )
    api_key: str = Field(
        "",
        repr=False,
        description="Key, as a reference to a secret; none for a server that asks for none.",
        examples=["${env:OPENAI_API_KEY}"],
    )
    organization: str = Field("", description="Sent as OpenAI-Organization.", examples=["org-1234"])
    headers: dict[str, str] = Field(
        {},
        repr=False,
        description="Further headers of each request; secrets as references.",
        examples=[{"api-key": "${env:AZURE_OPENAI_API_KEY}"}],
    )
    dimension: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="Numbers a vector has. Without it one small request asks for it.",
        examples=[1536],
    )
    send_dimensions: bool | Literal["auto"] = Field(
        "auto",
        description="Whether `dimension` is sent as a wish. auto: to text-embedding-3 models, which can shorten vectors.",
        examples=[True],
    )
    encoding: Literal["float", "base64"] = Field(
        "float", description="How numbers travel. base64 is smaller and faster, where the endpoint knows it."
    )
    items: int = Field(512, ge=1, le=2048, description="Texts a request may carry. TEI takes 32 by default.")
    tokens: int = Field(250_000, ge=1, description="Tokens a request may carry; OpenAI's limit is 300,000.")
    text_tokens: int | None = Field(
        None, ge=1, description="Tokens a text may have; default: 8191 for OpenAI's models.", examples=[512]
    )
    concurrency: int = Field(4, ge=1, le=64, description="Requests at once, from one process.")
    requests_per_minute: int | None = Field(
        None, ge=1, description="Requests in a minute, of all processes together.", examples=[3000]
    )
    tokens_per_minute: int | None = Field(
        None, ge=1, description="Tokens in a minute, of all processes together.", examples=[1_000_000]
    )
    timeout: float = Field(120.0, gt=0, description="Seconds until a request without its whole reply is given up.")

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        if url.startswith("${"):
            return url
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected https://host/v1 or http://host:port/v1")
        if parts.username or parts.password:
            raise ValueError("a key belongs into api_key or headers, not into the address")
        return url
