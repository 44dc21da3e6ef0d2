"""Filter expressions on the primary key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from runner.points import KeyRange, PointId
from runner.stores.milvus.layout import Layout

#: Most ids one expression lists.
MOST_IDS = 4_096


def literal(value: PointId) -> str:
    """`value` in a filter. Only these escapes are known to every edition; other control characters stand raw."""
    if isinstance(value, int):
        return str(value)
    text = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def in_range(layout: Layout, keys: KeyRange, after: PointId | None = None) -> str:
    """The filter of a range. One without bounds says so, because an empty filter is not always allowed."""
    bounds = (("<", keys.hi), (">", after), (">=", keys.lo))
    terms = [f"{layout.key} {sign} {literal(key)}" for sign, key in bounds if key is not None]
    return " and ".join(terms) or f"{layout.key} " + ('>= ""' if layout.text_key else f"<= {2**63 - 1}")


def among(layout: Layout, ids: Sequence[PointId], size: int = MOST_IDS) -> Iterator[str]:
    """Filters for these ids, `size` in each, without repeats and without those that cannot be keys here."""
    kind = str if layout.text_key else int
    known = [
        key for key in dict.fromkeys(ids) if isinstance(key, kind) and (kind is str or -(2**63) < int(key) < 2**63)
    ]
    for start in range(0, len(known), size):
        yield f"{layout.key} in [{', '.join(map(literal, known[start : start + size]))}]"
