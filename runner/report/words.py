"""Numbers, sizes and lists for people."""

from __future__ import annotations

from collections.abc import Sequence


def number(value: int | float) -> str:
    """1,234,567"""
    return f"{value:,.0f}"


def counted(value: int, word: str) -> str:
    """1 document, 2 documents."""
    return f"{number(value)} {word}{'' if value == 1 else 's'}"


def size(value: float) -> str:
    """Bytes for people: 1.2 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds for people: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s" if seconds >= 1 else "under 1 s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def about(seconds: float) -> str:
    """Seconds that were estimated: about 12 min, under 1 s."""
    return duration(seconds) if seconds < 1 else f"about {duration(seconds)}"


def joined(parts: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(([", ".join(parts[:-1])] if len(parts) > 1 else []) + [*parts[-1:]])
