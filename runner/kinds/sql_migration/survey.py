"""Every row that a step would read, looked at once while the plan is made: by which rule, how many rows, which are left out.

Memory stays flat however large the table is: what tells rows apart is kept in a temporary file that SQLite removes.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runner.mapper import Mapper, Problem, Secret
from runner.plan import Made, MapRows, Told
from runner.points import KeyRange

if TYPE_CHECKING:
    from runner.documents.database import Database

Page = list[dict[str, Any]]

#: Rows that are read at once.
PAGE = 1_000
#: Seconds after which it is told how far a table was read.
TOLD_SECONDS = 5.0
_SEEN = """INSERT INTO seen (of, name, held, odd) VALUES (?1, ?2, ?3, '')
ON CONFLICT (of, name) DO UPDATE SET odd = ?4 WHERE odd = '' AND held <> excluded.held"""
#: Keys that are named under a rule.
NAMED = 20


class Telling:
    """Says every few seconds how far a table was read; of a quick one nothing."""

    def __init__(self, say: Callable[[str], None], table: str, rows: int) -> None:
        self.say, self.table, self.rows = say, table, rows

    def __call__(self, pages: Iterable[Page]) -> Iterator[Page]:
        """The same pages."""
        read, last = 0, time.monotonic()
        for page in pages:
            yield page
            read += len(page)
            if (now := time.monotonic()) - last > TOLD_SECONDS:
                last = now
                self.say(f"reading {self.table}: {read:,} of {self.rows:,} rows")


@dataclass
class Surveyed:
    """What was found. `left`: rows of which something is left out; `used`: column -> values in the other rows."""

    rows: int = 0
    made: tuple[Made, ...] = ()
    told: tuple[Told, ...] = ()
    left: int = 0
    used: dict[str, int] = field(default_factory=dict)
    #: table -> (rows that are one by their key and have different values, keys of the first rows that they are made of)
    differing: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)


@dataclass
class _Count:
    items: int = 0
    rows: int = 0
    first: list[str] = field(default_factory=list)


def survey(
    database: Database, step: MapRows, mapper: Mapper, columns: Sequence[str], watched: Sequence[str],
    keys: Mapping[str, tuple[str, ...]], tell: Telling,
) -> Surveyed:  # fmt: skip
    """Read the rows of a step in the order of its key. `columns`: that are read; `watched`: whose values are counted in rows
    of which nothing is left out; `keys`: table -> columns that tell its rows apart (none: each row is one)."""
    from runner.relational import rows as reading

    found, counts = Surveyed(used=dict.fromkeys(watched, 0)), dict[tuple[str, str], _Count]()
    into, items = step.map.into, dict.fromkeys((one.table for one in step.map.into), 0)
    tables = list(items)
    with _distinct() as distinct:
        pages = reading.pages(
            database, step.map.from_, step.key, tuple(columns), step.map.where, KeyRange(), None, PAGE
        )
        for page in tell(pages):
            told_apart = list[tuple[int, bytes, bytes, str]]()
            for row in page:
                mapped = mapper.apply(row)
                found.rows += 1
                for one in mapped.rows:
                    table = into[one.into].table
                    items[table] += 1
                    name = _name(one.values, keys.get(table, ()), found.rows, items)
                    told_apart.append((tables.index(table), name, _held(one.into, one.values), str(row[step.key])))
                _count(counts, mapped.problems, str(row[step.key]))
                if any(problem.otherwise == "skip" for problem in mapped.problems):
                    found.left += 1
                    continue
                for column in watched:
                    found.used[column] += row[column] is not None
            distinct.executemany(_SEEN, told_apart)
        there = dict(distinct.execute("SELECT of, count(*) FROM seen GROUP BY of").fetchall())
        for number, table in enumerate(tables):
            query = "SELECT count(*) OVER (), odd FROM seen WHERE of = ? AND odd <> '' ORDER BY odd LIMIT ?"
            odd = distinct.execute(query, (number, NAMED)).fetchall()
            if odd:
                found.differing[table] = (odd[0][0], tuple(name for _count, name in odd))
    found.made = tuple(
        Made(table=table, items=items[table], distinct=there.get(number, 0)) for number, table in enumerate(tables)
    )
    found.told = tuple(
        Told(message=message, otherwise=otherwise, items=one.items, rows=one.rows, first=tuple(one.first))
        for (message, otherwise), one in counts.items()
    )
    return found


def _count(counts: dict[tuple[str, str], _Count], problems: Sequence[Problem], key: str) -> None:
    seen = set[tuple[str, str]]()
    for problem in problems:
        name = (problem.message, problem.otherwise)
        count = counts.setdefault(name, _Count())
        count.items += problem.items
        if name in seen:
            continue
        seen.add(name)
        count.rows += 1
        if problem.otherwise != "ignore" and len(count.first) < NAMED:
            count.first.append(key)


def _name(values: Mapping[str, Any], key: tuple[str, ...], row: int, items: Mapping[str, int]) -> bytes:
    """The same bytes for rows that become one."""
    parts: list[Any] = [row, *items.values()]  # nothing tells it apart: it is one of its own
    if key and all(column in values for column in key):
        parts = [values[column] for column in key]
    return hashlib.blake2b(_ENCODER.encode(parts).encode(), digest_size=16).digest()


def _held(into: int, values: Mapping[str, Any]) -> bytes:
    """The same bytes for rows with the same values, made by the same entry of `into`."""
    return hashlib.blake2b(_ENCODER.encode([into, {**values}]).encode(), digest_size=16).digest()


def _plain(value: Any) -> str:
    return str(value.plain) if isinstance(value, Secret) else str(value)


_ENCODER = json.JSONEncoder(sort_keys=True, default=_plain)


@contextmanager
def _distinct() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect("", isolation_level=None)  # a temporary file
    try:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute(
            "CREATE TABLE seen (of INTEGER, name BLOB, held BLOB, odd TEXT, PRIMARY KEY (of, name)) WITHOUT ROWID"
        )
        yield connection
    finally:
        connection.close()
