"""The client: one pool of connections, whole replies within a time limit, identity, counting, cutting."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from runner.embedder import Bounds, Embedder, EmbedderConfig, ModelIdentity, Price, Purpose, Reply, refuse_long
from runner.embedders.openai import prices, replies, tokens
from runner.embedders.openai.config import OpenAIConfig
from runner.errors import Permanent, Transient, register_secret

_SECRET_HEADER = re.compile(r"key|auth|token|secret|cookie", re.IGNORECASE)
_PROBE = "dimension"


class OpenAIEmbedder(Embedder):
    """See `OpenAIConfig`. Redirects are not followed: they could carry the key to another host."""

    provider = "openai"

    def __init__(self, config: OpenAIConfig) -> None:
        import httpx

        self._httpx = httpx
        self._config = config
        register_secret(config.api_key)
        for name, value in config.headers.items():
            if _SECRET_HEADER.search(name):
                register_secret(value)
        headers = {"Content-Type": "application/json", "User-Agent": "vecrun"}
        if config.api_key:
            headers["Authorization"] = f"Bearer {config.api_key}"
        if config.organization:
            headers["OpenAI-Organization"] = config.organization
        try:
            address = httpx.URL(config.base_url)
            self._url = address.copy_with(path=f"{address.path.rstrip('/')}/embeddings")
            self._client = httpx.Client(
                headers=headers | config.headers,
                timeout=httpx.Timeout(config.timeout, pool=None),
                limits=httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency),
                follow_redirects=False,
            )
        except (httpx.InvalidURL, ValueError) as exc:  # also a line break in a key, a letter no header takes
            hint = "Check base_url, api_key and headers: one line each, without other than ASCII letters"
            raise Permanent("The settings of the model make no request", f"model {config.model}", hint) from exc
        self._place = f"model {config.model} at {config.base_url.partition('?')[0]}"
        self._counter = tokens.counter(config.model)
        self.counting = self._counter.counting
        self._text_tokens = config.text_tokens or (tokens.TEXT_TOKENS if tokens.known(config.model) else None)
        self._dimension = config.dimension
        self._probing = threading.Lock()
        wanted = config.send_dimensions
        sent = config.model.startswith("text-embedding-3") if wanted == "auto" else wanted
        self._body: dict[str, Any] = {"model": config.model, "encoding_format": config.encoding}
        if sent and config.dimension is not None:
            self._body["dimensions"] = config.dimension

    @classmethod
    def connect(cls, config: EmbedderConfig) -> OpenAIEmbedder:
        assert isinstance(config, OpenAIConfig)
        return cls(config)

    def identity(self) -> ModelIdentity:
        with self._probing:
            if self._dimension is None:
                self._dimension = self._request([_PROBE]).vectors.shape[1]
        shaping = {"text_tokens": self._text_tokens} if self._config.too_long == "truncate" else {}
        return ModelIdentity.of(self._config, self._config.model, self._dimension, shaping=shaping)

    def bounds(self) -> Bounds:
        given = self._config
        return Bounds(
            items=given.items, tokens=given.tokens, text_tokens=self._text_tokens, concurrency=given.concurrency,
            requests_per_minute=given.requests_per_minute, tokens_per_minute=given.tokens_per_minute,
        )  # fmt: skip

    def count(self, texts: Sequence[str]) -> list[int]:
        return self._counter.count(self._config.prefixed(texts))

    def embed(self, texts: Sequence[str], purpose: Purpose = "document") -> Reply:
        if not texts:
            return Reply(np.empty((0, self._dimension or 0), dtype=np.float32), 0)
        reply = self._request(self._within(self._config.prefixed(texts, purpose)))
        found = reply.vectors.shape[1]
        if found != (self._dimension or found):
            raise Permanent(
                "The model gives vectors of another dimension",
                f"{self._place}: {found} numbers, expected {self._dimension}",
                f"dimension: {found} in the model; or send_dimensions: true, if the model can be asked for "
                f"{self._dimension}",
            )
        return Reply(self._config.scaled(reply.vectors), reply.tokens)

    def price(self) -> Price | None:
        if self._config.price is not None:
            return Price(self._config.price, "price of the model in vecrun.yaml")
        return prices.listed(self._config.model, self._config.base_url)

    def close(self) -> None:
        self._client.close()

    def _within(self, texts: list[str]) -> list[str]:
        """The texts, cut or refused where they are longer than the model takes."""
        limit = self._text_tokens
        if limit is None or all(tokens.size(text) <= limit for text in texts):
            return texts
        counts = self._counter.count(texts)
        if self._config.too_long == "fail":
            # by an estimate only where somebody set the limit: else the endpoint knows better
            if self._counter.exact or self._config.text_tokens is not None:
                refuse_long(counts, limit)
            return texts
        if tokens.known(self._config.model) and not self._counter.exact:
            raise Permanent(
                "Cutting a text needs the model's vocabulary",
                f"{self._place}: tiktoken cannot load it, and an estimate would cut elsewhere than another machine",
                "Let tiktoken download it once, or point TIKTOKEN_CACHE_DIR at a copy; or too_long: fail",
            )
        return [
            self._counter.cut(text, limit) if count > limit else text for text, count in zip(texts, counts, strict=True)
        ]

    def _request(self, texts: list[str]) -> Reply:
        """One POST. Each way it can fail becomes one of vecrun's errors."""
        httpx = self._httpx
        until = time.monotonic() + self._config.timeout
        try:
            with self._client.stream("POST", self._url, content=orjson.dumps(self._body | {"input": texts})) as reply:
                parts = []
                for part in reply.iter_bytes():
                    parts.append(part)
                    if time.monotonic() > until:  # httpx limits each wait, not their sum
                        raise httpx.ReadTimeout("the reply came too slowly")
            body = b"".join(parts)
        except httpx.TimeoutException as exc:
            raise Transient(
                "The endpoint does not answer in time", f"{self._place}: more than {self._config.timeout:g} s"
            ) from exc
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as exc:
            raise Permanent("The settings of the model make no request", self._place, "Check base_url") from exc
        except (httpx.HTTPError, httpx.StreamError) as exc:
            raise Transient("The endpoint cannot be reached", f"{self._place}: {exc or type(exc).__name__}") from exc
        if reply.status_code != 200:
            raise replies.error_of(reply.status_code, reply.headers, body, self._place)
        vectors, billed = replies.parse(body, len(texts), self._place)
        return Reply(vectors, billed)
