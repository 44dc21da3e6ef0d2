"""Any model of sentence-transformers on this machine, with torch. Its tests need torch and do not run with the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from runner.embedder import Bounds, Embedder, EmbedderConfig, ModelIdentity, Price, Purpose, Reply, refuse_long
from runner.errors import Permanent
from runner.points import Float32Matrix


class SentenceTransformersConfig(EmbedderConfig):
    """A model of sentence-transformers: a name of the Hugging Face hub, or a folder."""

    provider: Literal["sentence-transformers"] = "sentence-transformers"
    model: str = Field(
        min_length=1,
        description="Name at the hub, or a folder.",
        examples=["intfloat/multilingual-e5-small", "./models/all-MiniLM-L6-v2"],
    )
    device: str = Field("", description="cpu, cuda, cuda:1, mps; default: the best there is.", examples=["cuda"])
    items: int = Field(128, ge=1, description="Texts a request may carry.")


class SentenceTransformersEmbedder(Embedder):
    """See `SentenceTransformersConfig`. Set `revision` to a commit of the hub: names move, commits do not."""

    provider = "sentence-transformers"

    def __init__(self, config: SentenceTransformersConfig) -> None:
        from sentence_transformers import SentenceTransformer

        self._config = config
        try:
            self._model: Any = SentenceTransformer(
                config.model, revision=config.revision or None, device=config.device or None
            )
        except (OSError, ValueError) as exc:
            raise Permanent(
                "The model cannot be loaded", f"{config.model}: {exc}", "Check model, revision and the network"
            ) from exc
        self._dimension = int(
            self._vectors(["dimension"]).shape[1]
        )  # what it is asked for was renamed; this works in all
        self.counting = f"tokenizer of {config.model}"

    @classmethod
    def connect(cls, config: EmbedderConfig) -> SentenceTransformersEmbedder:
        assert isinstance(config, SentenceTransformersConfig)
        return cls(config)

    def identity(self) -> ModelIdentity:
        return ModelIdentity.of(self._config, self._config.model, self._dimension)

    def bounds(self) -> Bounds:
        return Bounds(items=self._config.items, text_tokens=self._model.max_seq_length)

    def count(self, texts: Sequence[str]) -> list[int]:
        return self._counted(self._config.prefixed(texts))

    def embed(self, texts: Sequence[str], purpose: Purpose = "document") -> Reply:
        given = self._config.prefixed(texts, purpose)
        counts = self._counted(given)
        if self._config.too_long == "fail" and self._model.max_seq_length:
            refuse_long(counts, self._model.max_seq_length)
        if not given:
            return Reply(np.empty((0, self._dimension), dtype=np.float32), 0)
        return Reply(self._config.scaled(self._vectors(given)), sum(counts))

    def _vectors(self, texts: list[str]) -> Float32Matrix:
        found = self._model.encode(texts, batch_size=self._config.items, convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(found, dtype=np.float32)

    def _counted(self, texts: list[str]) -> list[int]:
        return [len(ids) for ids in self._model.tokenizer(texts, truncation=False)["input_ids"]] if texts else []

    def price(self) -> Price:
        return Price(self._config.price or 0.0, "this machine")

    def close(self) -> None:
        """The model goes with the last reference to it."""
