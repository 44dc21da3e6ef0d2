"""WordLlama: mean of word-piece vectors, 34 000 sentences a second, its weights in the wheel of the package.

The package is not imported: it sets up logging for the whole process, and looks for its tokenizer in a folder that it
does not have. Its two files and this mean give the same vectors (a test compares).
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from runner.embedder import Bounds, Embedder, EmbedderConfig, ModelIdentity, Price, Purpose, Reply
from runner.errors import Permanent, Refused
from runner.points import Float32Matrix

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_WEIGHTS = "weights/l2_supercat_256.safetensors"
_TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"


class WordLlamaConfig(EmbedderConfig):
    """WordLlama (l2_supercat) on this machine: small, fast, works without a network."""

    provider: Literal["wordllama"] = "wordllama"
    model: Literal["l2_supercat"] = Field("l2_supercat", description="The model in the package.")
    dimension: Literal[64, 128, 256] = Field(
        256, description="Numbers a vector has; a shorter vector is the beginning of the long one.", examples=[256]
    )


@lru_cache(maxsize=1)
def _loaded() -> tuple[Float32Matrix, Tokenizer, str]:
    """Vectors of the word pieces, tokenizer, sha256 of the weights file; one copy a process."""
    from safetensors.numpy import load
    from tokenizers import Tokenizer

    found = importlib.util.find_spec("wordllama")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'wordllama'", name="wordllama")
    folder = Path(found.origin).parent
    try:
        data = (folder / _WEIGHTS).read_bytes()
        tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
    except Exception as exc:  # tokenizers raises plain Exception for a file that is not there
        raise Permanent(
            "The package wordllama has no weights where they were", f"{folder}: {exc}", "pip install 'wordllama>=0.4'"
        ) from exc
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return load(data)["embedding.weight"].astype(np.float32), tokenizer, hashlib.sha256(data).hexdigest()


class WordLlamaEmbedder(Embedder):
    """See `WordLlamaConfig`."""

    provider = "wordllama"
    counting = "tokenizer of l2_supercat"

    def __init__(self, config: WordLlamaConfig) -> None:
        self._config = config
        pieces, self._tokenizer, self._digest = _loaded()
        self._pieces = pieces[:, : config.dimension]

    @classmethod
    def connect(cls, config: EmbedderConfig) -> WordLlamaEmbedder:
        assert isinstance(config, WordLlamaConfig)
        return cls(config)

    def identity(self) -> ModelIdentity:
        return ModelIdentity.of(self._config, self._config.model, self._config.dimension, self._digest)

    def bounds(self) -> Bounds:
        return Bounds(items=512, tokens=200_000)

    def count(self, texts: Sequence[str]) -> list[int]:
        return [max(1, len(ids)) for ids in self._ids(self._config.prefixed(texts))]

    def embed(self, texts: Sequence[str], purpose: Purpose = "document") -> Reply:
        given = self._ids(self._config.prefixed(texts, purpose))
        if not all(given):
            raise Refused("A text is empty", "it has no word, so it has no vector", "Leave out points without text")
        if not given:
            return Reply(np.empty((0, self._config.dimension), dtype=np.float32), 0)
        lengths = np.array([len(ids) for ids in given])
        flat = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in given])
        rows: Float32Matrix = self._pieces[np.minimum(flat, len(self._pieces) - 1)]
        sums = np.add.reduceat(rows, np.concatenate([[0], np.cumsum(lengths)[:-1]]), axis=0)
        means: Float32Matrix = (sums / lengths[:, None]).astype(np.float32)
        return Reply(self._config.scaled(means), int(lengths.sum()))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def price(self) -> Price:
        return Price(self._config.price or 0.0, "this machine")

    def close(self) -> None:
        """The weights stay: another model of the same process uses them."""
