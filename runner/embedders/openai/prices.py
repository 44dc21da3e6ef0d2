"""What OpenAI takes for tokens, as data. A model that is not here has no known price: `price` in the model says it."""

from __future__ import annotations

from urllib.parse import urlsplit

from runner.embedder import Price

_PAGE = "https://platform.openai.com/docs/pricing"
_AS_OF = "2025"  # prices are from this year's page; the list is not asked again

#: model -> USD for a million tokens, for single requests (not the Batch API).
_USD = {"text-embedding-3-large": 0.13, "text-embedding-3-small": 0.02, "text-embedding-ada-002": 0.10}


def listed(model: str, base_url: str) -> Price | None:
    """OpenAI's price of its model; None behind another address, where a name says nothing about money."""
    if urlsplit(base_url).hostname != "api.openai.com" or model not in _USD:
        return None
    return Price(_USD[model], f"{_PAGE}, as of {_AS_OF}")
