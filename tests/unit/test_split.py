"""Text into chunks: sizes, overlap, tokens, and always the same (C2)."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest
from pydantic import ValidationError

from runner.documents.split import TOKENIZERS, split
from runner.errors import Permanent, Transient
from runner.plan import Splitter

TEXT = "der Rat beschloss am Abend nach langer Debatte die neue Ordnung für alle Häuser 日本語 👨‍👩‍👧"
WORDS = TEXT.split()


def text(paragraphs: int = 60) -> str:
    chance = random.Random(3)
    many = [" ".join(chance.choices(WORDS, k=chance.randrange(4, 60))) + "." for _ in range(paragraphs)]
    return "\n\n".join(f"## {part[:20]}\n\n{part}" if number % 7 == 0 else part for number, part in enumerate(many))


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


@pytest.mark.parametrize("markdown", [False, True])
@pytest.mark.parametrize("overlap", [0, 30])
@pytest.mark.parametrize("size", [31, 200, 1000])
def test_chunks_are_within_their_size_and_cover_the_text(size: int, overlap: int, markdown: bool) -> None:
    whole = text()
    chunks = split(whole, Splitter(size=size, overlap=overlap, markdown=markdown))
    assert max(map(len, chunks)) <= size
    assert all(chunk.strip() for chunk in chunks)
    assert chunks == split(whole, Splitter(size=size, overlap=overlap, markdown=markdown))
    end = 0
    for chunk in chunks:  # each begins where the one before ended, or before that; nothing but spaces is left out
        start = whole.find(chunk, max(0, end - overlap))
        assert start >= 0
        assert whole[end:start].strip() == ""
        end = max(end, start + len(chunk))
    assert whole[end:].strip() == ""


def test_without_trim_spaces_stay() -> None:
    whole = text()
    chunks = split(whole, Splitter(size=100, trim=False))
    assert "".join("".join(chunks).split()) == "".join(whole.split())
    assert any(chunk.endswith(" ") for chunk in chunks)


def test_neighbours_share() -> None:
    chunks = split(text(), Splitter(size=200, overlap=60))
    shared = sum(any(one.endswith(two[:n]) for n in range(1, 61)) for one, two in itertools.pairwise(chunks))
    assert shared > len(chunks) // 4


def test_markdown_is_cut_at_headings() -> None:
    page = "# One\n\nshort text\n\n# Two\n\n" + "more text " * 8
    assert split(page, Splitter(size=100, markdown=True)) == [
        "# One\n\nshort text",
        page[page.index("# Two") :].strip(),
    ]


@pytest.mark.parametrize("whole", ["", " ", "\n\n \t\n"])
@pytest.mark.parametrize("trim", [True, False])
def test_nothing_gives_no_chunks(whole: str, trim: bool) -> None:
    assert split(whole, Splitter(size=2, trim=trim)) == []
    assert split(f"a{whole}{' ' * 9}b", Splitter(size=2, trim=trim))[0].strip() == "a"


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_tokens_of_a_tokenizer(tokenizer: str) -> None:
    how = Splitter(size=3, unit="tokens", tokenizer=tokenizer)
    chunks = split("hello world antidisestablishmentarianism <|endoftext|> tail", how)
    assert chunks[:2] == ["hello world", "antidisesta"]
    assert chunks[-1] == "|> tail"
    assert split(" hello" * 6, how) == ["hello hello hello"] * 2


@pytest.mark.parametrize("overlap", [0, 5])
def test_tokens_as_the_model_counts_them(overlap: int) -> None:
    chunks = split(text(), Splitter(size=20, overlap=overlap, unit="tokens"), words)
    assert max(words(chunks)) <= 20
    assert len(chunks) > 20


def test_an_error_of_the_model_comes_through() -> None:
    def failing(texts: Sequence[str]) -> list[int]:
        raise Transient("The provider does not answer")

    with pytest.raises(Transient, match="does not answer"):
        split(text(), Splitter(size=20, unit="tokens"), failing)


def test_what_cannot_be() -> None:
    with pytest.raises(Permanent, match="No such tokenizer: 'cl100k'") as caught:
        split("a", Splitter(size=3, unit="tokens", tokenizer="cl100k"))
    assert "cl100k_base" in caught.value.hint
    with pytest.raises(Permanent, match="Tokens cannot be counted"):
        split("a", Splitter(size=3, unit="tokens"))
    for size, overlap in ((0, 0), (-1, 0), (5, 5), (5, 6), (5, -1)):
        with pytest.raises(ValidationError, match="overlap less than size"):
            Splitter(size=size, overlap=overlap)


def test_a_megabyte_of_characters_takes_no_time() -> None:
    whole = text(6000)
    assert len(whole.encode()) > 1_000_000
    began = time.process_time()
    assert len(split(whole, Splitter(size=1000, overlap=100))) > 1000
    assert time.process_time() - began < 2


def test_a_missing_package_is_named() -> None:
    code = (
        "import sys; sys.modules['{0}'] = None\n{1}\n"
        "try: {2}\nexcept Exception as exc: print(type(exc).__name__, exc, exc.hint)"
    )
    for package, imports, call in (
        ("semantic_text_splitter", "from runner.plan import Splitter; from runner.documents.split import split",
         "split('a', Splitter(size=3))"),
        ("pypdf", "from runner.documents.parse import parse", "parse(b'%PDF-', 'a.pdf')"),
    ):  # fmt: skip
        command = [sys.executable, "-c", code.format(package, imports, call)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("Permanent A package is missing: ")
        assert package in done.stdout
        assert "vecrun[documents]" in done.stdout
