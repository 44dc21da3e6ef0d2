"""Texts for a comment: measured as a host does, cut after whole lines, and escaped.

Secrets go before anything is escaped: afterwards they would not be recognised.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from runner.errors import redact

#: Characters of one line of an error.
LONGEST = 500

# Length ---------------------------------------------------------------------------------------------------------------


def length(text: str) -> int:
    """Characters as the strictest host counts them: one beyond 16 bits is two."""
    return len(text) + sum(char > "\uffff" for char in text)


def shares(sizes: Sequence[int], room: int) -> list[int]:
    """How much of `room` each gets: short ones all they need, long ones the same each of what is left."""
    found, left = [0] * len(sizes), max(room, 0)
    for number, place in enumerate(sorted(range(len(sizes)), key=lambda place: sizes[place])):
        found[place] = min(sizes[place], left // (len(sizes) - number))
        left -= found[place]
    return found


def first_lines(text: str, room: int) -> str:
    """The first whole lines of a text, as many as have room."""
    kept, used = list[str](), 0
    for line in text.split("\n"):
        used += length(line) + 1
        if used > room:
            break
        kept.append(line)
    return "\n".join(kept).rstrip()


def first_sentence(text: str) -> str:
    """The first sentence of a plan's summary."""
    return text.partition(". ")[0].rstrip(".").removeprefix("Plan: ")


# Escaping -------------------------------------------------------------------------------------------------------------

#: What a host could take for a mention.
_MENTION = re.compile(r"@(?=\w)")
#: A line that GitLab could take for a command, or that opens a block of code.
_COMMAND = re.compile(r"^(\s*)(/|```|~~~)", re.MULTILINE)
_SPECIAL = re.compile(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))")


def harmless(text: str) -> str:
    """Markdown in which nothing that came from outside is HTML, an image, a mention, a command, or opens a block of code."""
    text = redact(text).replace("<", "&lt;").replace("![", "!\\[")
    return _COMMAND.sub(lambda found: f"{found[1]}\\{found[2]}", _MENTION.sub("@\u200b", text))


def cell(text: str) -> str:
    """Plain text in a line or in a table."""
    text = _SPECIAL.sub(r"\\\1", " ".join(redact(text).split()))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MENTION.sub("@\u200b", text)


def quote(text: str) -> str:
    """Plain text of several lines as a quotation, which can be cut after any of them."""
    return "  \n".join(f"> {cell(line[:LONGEST])}" for line in redact(text).splitlines() if line.strip())


def code(text: str) -> str:
    """Plain text as code in a line."""
    text = " ".join(redact(text).split())
    return f"`{text}`" if "`" not in text else cell(text)


def as_html(text: str) -> str:
    return _MENTION.sub("@\u200b", html.escape(" ".join(redact(text).split())))
