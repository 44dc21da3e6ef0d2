"""Conditions as a regular expression on the JSON text of a payload: parsing is left to what it finds.

It finds a key at any depth. A text with an escape that a writer is free in (a letter as `\\u0061`, a slash as `\\/`)
passes whatever is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from runner.conditions import Condition, Need, needs
from runner.points import json_dumps

if TYPE_CHECKING:
    import pyarrow as pa

_FREE = r"\\[u/]"
#: A number that may be anything: with an exponent, or more digits than a float64 tells apart.
_ODD = r"-?[0-9.]{15,}|-?[0-9.]+[eE]"
#: Characters of all texts of one condition up to which they are listed; RE2 has a limit of its own.
_LONGEST = 100_000

Filter = Callable[["pa.Table"], "pa.Table"]


def compiled(where: Sequence[Condition]) -> Filter | None:
    """A filter of tables with the column payload; None if all points have to be read."""
    patterns = [f"{_FREE}|(?:{_keys(item)})\\s*:\\s*(?:{_values(item)})" for item in needs(where)]
    if not patterns:
        return None

    def keep(table: pa.Table) -> pa.Table:
        import pyarrow.compute as pc

        for pattern in patterns:
            table = table.filter(pc.match_substring_regex(table["payload"], pattern))
        return table

    return keep


def _keys(item: Need) -> str:
    return "|".join(dict.fromkeys(f'"{_inside(path[-1])}"' for path in item.paths))


def _values(item: Need) -> str:
    terms = [r"\[", *(str(flag).lower() for flag in item.flags)]
    if item.letters or sum(map(len, item.texts)) > _LONGEST:
        terms.append('"')
    elif item.texts:
        terms.append(f'"(?:{"|".join(map(_inside, item.texts))})"')
    if item.spans:
        numbers = item.numbers
        if numbers is None or any(number != int(number) for number in numbers):
            terms.append("-?[0-9]")
        else:
            listed = "|".join(dict.fromkeys(str(abs(int(number))) for number in numbers))
            terms.append(rf"-?(?:{listed})(?:\.0*)?(?:[\s,}}]|$)|{_ODD}")
    return "|".join(terms)


def _inside(text: str) -> str:
    """What stands between the quotes of a JSON string, for RE2: any character but letters and digits may be escaped."""
    inner = json_dumps(text).decode()[1:-1]
    return "".join(letter if letter.isalnum() or ord(letter) > 127 else "\\" + letter for letter in inner)
