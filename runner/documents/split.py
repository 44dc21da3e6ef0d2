"""Text into chunks, at headings, paragraphs, sentences, words and, last, characters: as few cuts of the smaller kinds as
the size allows (semantic-text-splitter). The same text and settings give the same chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from runner.errors import Permanent
from runner.plan import Splitter

if TYPE_CHECKING:
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

#: Tokenizers by the name they have in tiktoken -> a model that has it. Their vocabularies come with the splitter.
TOKENIZERS = {
    "cl100k_base": "text-embedding-3-small",
    "gpt2": "gpt2",
    "o200k_base": "gpt-4o",
    "p50k_base": "text-davinci-003",
    "p50k_edit": "text-davinci-edit-001",
    "r50k_base": "davinci",
}


def split(text: str, how: Splitter, count: Callable[[Sequence[str]], list[int]] | None = None) -> list[str]:
    """The chunks of a text in their order, none of them empty. `count` gives the tokens of texts as the model counts
    them, its prefix included; it is asked when `how` names no tokenizer."""
    try:
        if how.unit == "tokens" and not how.tokenizer:
            if count is None:
                raise Permanent("Tokens cannot be counted", "no tokenizer is named, and there is no model")
            splitter = _kind(how).from_callback(lambda part: count([part])[0], how.size, how.overlap, how.trim)
        else:
            splitter = _known(how)
    except ModuleNotFoundError as exc:
        missing = f"splitting needs the package {(exc.name or '').split('.')[0]!r}"
        raise Permanent("A package is missing", missing, "pip install 'vecrun[documents]'") from exc
    return [chunk for chunk in splitter.chunks(text) if chunk.strip()]


@lru_cache(maxsize=8)
def _known(how: Splitter) -> TextSplitter | MarkdownSplitter:
    """A splitter that needs nothing but itself; reading a vocabulary takes a third of a second."""
    kind = _kind(how)
    if how.unit == "characters":
        return kind(how.size, how.overlap, how.trim)
    if how.tokenizer not in TOKENIZERS:
        raise Permanent("No such tokenizer", repr(how.tokenizer), f"There are {', '.join(TOKENIZERS)}")
    return kind.from_tiktoken_model(TOKENIZERS[how.tokenizer], how.size, how.overlap, how.trim)


def _kind(how: Splitter) -> type[TextSplitter] | type[MarkdownSplitter]:
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

    return MarkdownSplitter if how.markdown else TextSplitter
