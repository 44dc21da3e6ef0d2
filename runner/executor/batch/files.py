"""The files of documents: several at once, as each call is a round trip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Result = TypeVar("Result")

#: Calls to object storage at once.
AT_ONCE = 8


def each(given: Sequence[Given], action: Callable[[Given], Result]) -> list[Result]:
    """What comes of each, in order."""
    if len(given) < 2:
        return [action(one) for one in given]
    with ThreadPoolExecutor(min(AT_ONCE, len(given)), thread_name_prefix="files") as pool:
        return list(pool.map(action, given))
