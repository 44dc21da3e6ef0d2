"""Giving chunks of a document other positions, where no two may ever have the same one."""

# Names in SQL are quoted by columns.quoted(); values are always parameters.
# ruff: noqa: S608

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from runner.documents.columns import run
from runner.documents.undo import Side


class Move(NamedTuple):
    """A chunk row and its position in the document, before and after."""

    document: str
    key: Any
    now: int | None
    to: int | None


def move(side: Side, moves: list[Move]) -> None:
    """Carry them out in an order in which no position is taken twice, in case the table forbids it."""
    table, column = side.table, side.roles["position"]
    ordered: list[Move] = []
    for document in dict.fromkeys(one.document for one in moves):
        ordered += _in_order([one for one in moves if one.document == document])
    key = table.given(side.key, "key")
    run(
        table.connection,
        f"UPDATE {table.sql} SET {column.sql} = {table.given(column, 'to')} WHERE {side.key.sql} = {key}",
        [{"key": one.key, "to": one.to} for one in ordered],
    )


def _in_order(moves: list[Move]) -> list[Move]:
    leaving = [one for one in moves if one.to is None]
    coming = [one for one in moves if one.now is None and one.to is not None]
    placed = sorted((one.now, one.to, one) for one in moves if one.now is not None and one.to is not None)
    if any(before[1] >= after[1] for before, after in itertools.pairwise(placed)):
        # some change places with others: all step aside first
        free = max(max(now, to) for now, to, _ in placed) + 1
        aside = [one._replace(to=free + number) for number, (_, _, one) in enumerate(placed)]
        return [*leaving, *aside, *(one for _, _, one in placed), *coming]
    down = [one for now, to, one in placed if to < now]
    up = [one for now, to, one in reversed(placed) if to > now]
    return [*leaving, *down, *up, *coming]
