"""Tokens of a text: with OpenAI's own vocabulary where it can be had, else an estimate that says that it is one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from re import finditer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiktoken import Encoding

#: The vocabulary of all of OpenAI's embedding models, and how long a text they take.
_ENCODINGS = dict.fromkeys(
    ("text-embedding-3-large", "text-embedding-3-small", "text-embedding-ada-002"), "cl100k_base"
)
TEXT_TOKENS = 8191
_PATIENCE = 3.0  # seconds for tiktoken to download its vocabulary; it sets no limit itself
_BYTES = 4  # of UTF-8, for a token of an estimate


def known(model: str) -> bool:
    """Whether the model is one of OpenAI's, whose vocabulary and limit are known."""
    return model in _ENCODINGS


@lru_cache(maxsize=4)
def _encoding(name: str) -> Encoding | None:
    """The vocabulary; None when it is neither on this machine nor to be had within a moment. Asked once a process."""
    found: list[Encoding] = []

    def load() -> None:
        try:
            import tiktoken

            found.append(tiktoken.get_encoding(name))
        except Exception:  # no network, no package, no room on the disk: all the same, an estimate is made
            return

    thread = threading.Thread(target=load, name="tiktoken", daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return found[0] if found else None


def counter(model: str) -> Counter:
    """How the tokens of this model are counted on this machine."""
    return Counter(_encoding(_ENCODINGS[model]) if known(model) else None)


class Counter:
    """Counts and cuts. `exact`: with the model's vocabulary; otherwise an estimate."""

    def __init__(self, encoding: Encoding | None) -> None:
        self._encoding = encoding
        self.exact = encoding is not None
        self.counting = (
            f"tiktoken {encoding.name}"
            if encoding
            else f"estimate: {_BYTES} bytes a token, at least the number of words"
        )

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, at least 1."""
        if self._encoding is not None:
            many = self._encoding.encode_ordinary_batch(list(texts), num_threads=2)
            return [max(1, len(tokens)) for tokens in many]
        return [max(1, -(-size(text) // _BYTES), len(text.split())) for text in texts]

    def cut(self, text: str, limit: int) -> str:
        """The beginning of the text that has at most `limit` tokens."""
        if self._encoding is None:
            text = text.encode()[: limit * _BYTES].decode(errors="ignore")
            after = next(islice(finditer(r"\S+", text), limit, None), None)
            return text[: after.start()] if after else text
        keep = limit
        while True:  # a cut text may be cut into tokens in another way, and be longer by one
            text = self._encoding.decode(self._encoding.encode_ordinary(text)[:keep], errors="ignore")
            extra = len(self._encoding.encode_ordinary(text)) - limit
            if extra <= 0:
                return text
            keep -= extra


def size(text: str) -> int:
    """Bytes of UTF-8; no token is shorter than one."""
    return len(text) if text.isascii() else len(text.encode())
