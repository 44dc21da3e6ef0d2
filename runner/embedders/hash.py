"""Vectors made of hashes of words: for tests and trials, in no time, alike on every machine and every Python.

Texts with words in common are somewhat similar; the meaning of a word is not known. Pure integers until the last
division, so that no order of additions and no library can change a bit.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from runner.embedder import (
    Bounds,
    Embedder,
    EmbedderConfig,
    ModelIdentity,
    Price,
    Purpose,
    Reply,
    refuse_long,
)
from runner.points import Float32Matrix

#: On bytes: what a letter is and how it is lowered is the same in every version of Unicode.
_WORD = re.compile(rb"[a-z0-9\x80-\xff]+")


class HashConfig(EmbedderConfig):
    """Hashes of words as vectors: no meaning, no package, no download. For tests and trials."""

    provider: Literal["hash"] = "hash"
    model: str = Field("", description="Any name; another name gives other vectors.", examples=["second"])
    dimension: int = Field(64, ge=2, le=4096, description="Numbers a vector has.", examples=[64])
    delay: float = Field(0.0, ge=0, description="Seconds each request takes longer.", examples=[0.05])
    items: int = Field(1024, ge=1, description="Texts a request may carry.", examples=[1024])
    tokens: int | None = Field(None, ge=1, description="Words a request may carry.", examples=[100_000])
    text_tokens: int | None = Field(None, ge=1, description="Words a text may have.", examples=[8000])
    concurrency: int = Field(1, ge=1, le=64, description="Requests at once, from one process.", examples=[2])
    requests_per_minute: int | None = Field(None, ge=1, description="Requests in a minute.", examples=[600])
    tokens_per_minute: int | None = Field(None, ge=1, description="Words in a minute.", examples=[1_000_000])


def hash_vectors(texts: Sequence[str], dimension: int, salt: str = "") -> Float32Matrix:
    """float32 of shape (texts, dimension): the mean of the numbers each word's hash gives, between -1 and 1."""
    return _means([_words(text) for text in texts], dimension, salt)


def _means(texts: Sequence[list[bytes]], dimension: int, salt: str) -> Float32Matrix:
    result = np.empty((len(texts), dimension), dtype=np.float32)
    for row, words in enumerate(texts):
        total = np.sum([_numbers(word, dimension, salt) for word in words], axis=0, dtype=np.int64)
        result[row] = total / (255.0 * len(words))
    return result


def _words(text: str) -> list[bytes]:
    """The words of a text; a text without any is one word itself."""
    data = text.encode("utf-8", "replace").lower()
    return cast("list[bytes]", _WORD.findall(data)) or [data]


@lru_cache(maxsize=20_000)
def _numbers(word: bytes, dimension: int, salt: str) -> NDArray[np.int16]:
    digest = hashlib.shake_256(salt.encode() + b"\x00" + word).digest(dimension)
    return np.frombuffer(digest, dtype=np.uint8).astype(np.int16) * np.int16(2) - np.int16(255)


class HashEmbedder(Embedder):
    """See `HashConfig`."""

    provider = "hash"
    counting = "words"

    def __init__(self, config: HashConfig) -> None:
        self._config = config

    @classmethod
    def connect(cls, config: EmbedderConfig) -> HashEmbedder:
        assert isinstance(config, HashConfig)
        return cls(config)

    def identity(self) -> ModelIdentity:
        shaping = {"text_tokens": self._config.text_tokens} if self._config.too_long == "truncate" else {}
        return ModelIdentity.of(self._config, self._config.model, self._config.dimension, shaping=shaping)

    def bounds(self) -> Bounds:
        given = self._config
        return Bounds(
            items=given.items, tokens=given.tokens, text_tokens=given.text_tokens, concurrency=given.concurrency,
            requests_per_minute=given.requests_per_minute, tokens_per_minute=given.tokens_per_minute,
        )  # fmt: skip

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(_words(text)) for text in self._config.prefixed(texts)]

    def embed(self, texts: Sequence[str], purpose: Purpose = "document") -> Reply:
        if self._config.delay:
            time.sleep(self._config.delay)
        given = [_words(text) for text in self._config.prefixed(texts, purpose)]
        limit = self._config.text_tokens
        if limit is not None:
            if self._config.too_long == "fail":
                refuse_long([len(words) for words in given], limit)
            given = [words[:limit] for words in given]
        salt = "@".join(name for name in (self._config.model, self._config.revision) if name)
        vectors = _means(given, self._config.dimension, salt)
        return Reply(self._config.scaled(vectors), sum(len(words) for words in given))

    def price(self) -> Price:
        return Price(self._config.price or 0.0, "this machine")

    def close(self) -> None:
        """There is nothing to release."""
