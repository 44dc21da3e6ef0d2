"""Any endpoint that speaks OpenAI's POST /embeddings: OpenAI, Azure, Ollama, TEI, vLLM, LiteLLM and others."""

from __future__ import annotations

from runner.embedders.openai.config import OpenAIConfig
from runner.embedders.openai.embedder import OpenAIEmbedder

__all__ = ["OpenAIConfig", "OpenAIEmbedder"]
