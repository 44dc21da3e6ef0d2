"""The providers of embeddings vecrun knows: one file each, imported on use. A new one is one file and one line here."""

from __future__ import annotations

import importlib
from typing import cast

from runner.embedder import Embedder, EmbedderConfig
from runner.errors import NotFound, Permanent

#: provider -> "module:EmbedderClass:ConfigClass". Importing the module imports no optional package; `connect` does.
EMBEDDERS: dict[str, str] = {
    "hash": "runner.embedders.hash:HashEmbedder:HashConfig",
    "minilm": "runner.embedders.minilm:MiniLMEmbedder:MiniLMConfig",
    "openai": "runner.embedders.openai:OpenAIEmbedder:OpenAIConfig",
    "sentence-transformers": "runner.embedders.sentence_transformers:SentenceTransformersEmbedder:SentenceTransformersConfig",
    "wordllama": "runner.embedders.wordllama:WordLlamaEmbedder:WordLlamaConfig",
}


def config_model(provider: str) -> type[EmbedderConfig]:
    """The pydantic model of a model of this provider. NotFound lists the providers there are."""
    module, _, name = _entry(provider)
    return cast("type[EmbedderConfig]", getattr(importlib.import_module(module), name))


def open_embedder(config: EmbedderConfig) -> Embedder:
    """Open it. A package that is not installed is a Permanent error with the command that adds it."""
    module, name, _ = _entry(config.provider)
    embedder = cast("type[Embedder]", getattr(importlib.import_module(module), name))
    try:
        return embedder.connect(config)
    except ModuleNotFoundError as exc:
        raise Permanent(
            "A package is missing",
            f"models of provider {config.provider} need the package {(exc.name or '').split('.')[0]!r}",
            f"pip install 'vecrun[{config.provider}]'",
        ) from exc


def _entry(provider: str) -> tuple[str, str, str]:
    try:
        module, embedder, config = EMBEDDERS[provider].split(":")
    except KeyError:
        raise NotFound("No such provider of embeddings", f"{provider!r}; there are {', '.join(EMBEDDERS)}") from None
    return module, embedder, config
