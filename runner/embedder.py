"""The contract of an embedding model: what it is, what one request may carry, tokens, vectors, errors.

A provider knows only this file, `points` and `errors`. All methods may be called from several threads; batching,
rate limits, retries and the cache are not a provider's business (`executor/embedding.py`).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from runner.errors import Refused
from runner.points import Float32Matrix, Model, json_dumps

Purpose = Literal["document", "query"]


class EmbedderConfig(BaseModel):
    """A model of `vecrun.yaml`; each provider extends it. `provider` chooses the provider."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: str
    model: str = Field("", description="The model's name, as the provider knows it.")
    revision: str = Field("", description="Names a state of the model; another revision is another model.")
    version: str = Field(
        "",
        description="What is written as embedding_model_version; default: PROVIDER:MODEL[@REVISION]:DIMENSION[+SETTINGS].",
    )
    document_prefix: str = Field("", description="Put before each text that is stored.", examples=["passage: "])
    query_prefix: str = Field("", description="Put before each search text.", examples=["query: "])
    normalize: bool = Field(False, description="Scale each vector to length 1.")
    too_long: Literal["fail", "truncate"] = Field(
        "fail", description="A text of more tokens than the model takes: a failed item, or cut to what it takes."
    )
    price: float | None = Field(None, ge=0, description="USD for a million tokens; instead of the price list's.")

    def prefixed(self, texts: Sequence[str], purpose: Purpose = "document") -> list[str]:
        """The texts as the model gets them. What is no Unicode (half a surrogate pair) becomes a question mark."""
        prefix = self.document_prefix if purpose == "document" else self.query_prefix
        return [
            prefix + (text if text.isascii() else text.encode("utf-8", "replace").decode()) for text in texts
        ]  # fmt: skip

    def scaled(self, vectors: Float32Matrix) -> Float32Matrix:
        """The vectors at length 1 where `normalize` asks for it; a vector of zeros stays one."""
        if not self.normalize:
            return vectors
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)


def refuse_long(tokens: Sequence[int], limit: int) -> None:
    """Refused when a text has more tokens than the model takes."""
    longest = max(tokens, default=0)
    if longest > limit:
        raise Refused(
            "A text is too long for the model",
            f"{longest} tokens; the model takes {limit}",
            "Cut it into chunks, or set too_long: truncate in the model",
        )


class ModelIdentity(Model):
    """What decides about a vector besides the text. Two models with one identity give the same vectors."""

    provider: str
    model: str
    revision: str = ""
    dimension: int
    digest: str = ""  # sha256 of the weights, where they are on this machine
    settings: str = ""  # digest of prefixes, scaling and cutting; "" when all are the defaults
    version: str  # what is written as embedding_model_version

    @property
    def key(self) -> str:
        """32 hex digits that name it in the ledger."""
        data = self.model_dump(mode="json", exclude={"version"})
        return hashlib.sha256(json_dumps(data)).hexdigest()[:32]

    @classmethod
    def of(
        cls, config: EmbedderConfig, model: str, dimension: int, weights: str = "", shaping: Mapping[str, object] = {}
    ) -> ModelIdentity:
        """The identity of a configured model whose dimension is known; `weights` is the sha256 of its files.
        `shaping` names what else the provider's settings do to a vector; empty when they are the defaults."""
        defaults = {name: EmbedderConfig.model_fields[name].default for name in _SHAPING}
        chosen = {name: getattr(config, name) for name in _SHAPING} | dict(shaping)
        settings = "" if chosen == defaults else hashlib.sha256(json_dumps(chosen)).hexdigest()[:16]
        name = f"{config.provider}:{model}" if model else config.provider
        revision, shaped = f"@{config.revision}" if config.revision else "", f"+{settings[:6]}" if settings else ""
        version = config.version or f"{name}{revision}:{dimension}{shaped}"
        return cls(
            provider=config.provider, model=model, revision=config.revision, dimension=dimension, digest=weights,
            settings=settings, version=version,
        )  # fmt: skip


#: Settings that change the vector of a text. The query prefix does not change what is stored.
_SHAPING = ("document_prefix", "normalize", "too_long")


@dataclass(frozen=True)
class Bounds:
    """What one request may carry, and how fast they may come. None: no such limit."""

    items: int  # texts a request
    tokens: int | None = None  # tokens a request
    text_tokens: int | None = None  # tokens a text; beyond that `too_long` decides
    concurrency: int = 1  # requests at once, from one process
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True)
class Reply:
    """vectors: float32 of shape (texts, dimension), in the order of the texts. tokens: as the provider counts them for
    its bill; None where it does not say."""

    vectors: Float32Matrix
    tokens: int | None = None


def money(usd: float) -> str:
    """USD for people: 1,234.50 and 0.0042."""
    if usd == 0 or usd >= 0.1:
        return f"{usd:,.2f}"
    return f"{usd:.4f}" if usd >= 0.0001 else "under 0.0001"


@dataclass(frozen=True)
class Price:
    """USD for a million tokens, and where that stands."""

    usd: float
    source: str


class Embedder(ABC):
    """One embedding model. Raises `RateLimited` (with the seconds to wait), `Transient` (time-out, 5xx, a reply that
    is none), `Refused` (the provider takes one of these texts never), `Permanent` (key, model, dimension)."""

    provider: str = ""
    #: How `count` counts: the tokenizer's name, or in words that it is an estimate.
    counting: str = ""

    @classmethod
    @abstractmethod
    def connect(cls, config: EmbedderConfig) -> Embedder:
        """Open it: read weights, or make a client. No request is made."""

    @abstractmethod
    def identity(self) -> ModelIdentity:
        """Who it is. Makes one small request when the provider alone knows the dimension."""

    @abstractmethod
    def bounds(self) -> Bounds: ...

    @abstractmethod
    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, its document prefix included. See `counting`."""

    @abstractmethod
    def embed(self, texts: Sequence[str], purpose: Purpose = "document") -> Reply:
        """The vectors of some texts, within `bounds`. Prefixes, scaling and cutting are done here."""

    def price(self) -> Price | None:
        """What tokens cost; None when nobody knows. A model on this machine costs nothing."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Release everything. May be called twice."""

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
