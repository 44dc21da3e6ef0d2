"""What can be said of the steps of a migration against each other: tables that one declares and another uses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from runner.mapper import columns_read
from runner.mapping import ColumnModel, Encrypted, Into, RowMap, TableModel

if TYPE_CHECKING:
    from runner.kinds.sql_migration.spec import StepSpec

#: Names of tables that are vecrun's own.
_OWN = re.compile(r"(.*\.)?vecrun_", re.IGNORECASE)


def problems(steps: Iterable[StepSpec]) -> Iterator[str]:
    """What cannot be right, whatever the database holds. What SQL of the spec does is not known, so after it nothing is."""
    known, made = dict[str, TableModel](), dict[str, str]()
    for step in steps:
        new = [table.name for table in step.create_tables or ()] + ([step.back_up.to] if step.back_up else [])
        for name in new:
            if _OWN.match(name):
                yield f"{step.name}: names of tables that begin with vecrun_ are vecrun's own: {name}"
            if name in made:
                yield f"{step.name}: {name} is made by step {made[name]} already"
            made[name] = step.name
        known |= {table.name: table for table in step.create_tables or ()}
        if step.sql is not None:
            known.clear()
        for problem in _of_step(step, known):
            yield f"{step.name}: {problem}"
        if step.drop_column is not None:
            known.pop(step.drop_column.table, None)


def _of_step(step: StepSpec, known: dict[str, TableModel]) -> Iterator[str]:
    if step.map is not None:
        yield from _of_map(step.map, known)
    for coded in (step.encrypt, step.rotate):
        if coded is not None and (table := known.get(coded.table)):
            yield from _missing(table, coded.columns)
            yield from _no_text(table, coded.columns)
    if step.rotate is not None and step.rotate.from_ == step.rotate.to:
        yield f"rotate: from and to are the same key, {step.rotate.to}"
    if step.back_up is not None and (table := known.get(step.back_up.table)):
        yield from _missing(table, step.back_up.columns)
    if step.drop_column is not None and (table := known.get(step.drop_column.table)):
        yield from _missing(table, (step.drop_column.column,))


def _of_map(rows: RowMap, known: dict[str, TableModel]) -> Iterator[str]:
    if table := known.get(rows.from_):
        yield from _missing(table, columns_read(rows) or ())
    for into in rows.into:
        if table := known.get(into.table):
            yield from _of_into(table, into)


def _of_into(table: TableModel, into: Into) -> Iterator[str]:
    yield from _missing(table, into.values)
    key = into.key or table.primary_key
    if lacking := [name for name in key if name not in into.values]:
        yield f"{table.name}: its key is not among the values: {', '.join(lacking)}"
    empty = [item.name for item in table.columns if _must_be_given(item) and item.name not in {*into.values, *key}]
    if empty:
        yield f"{table.name}: columns that cannot be NULL have no value: {', '.join(empty)}"
    yield from _no_text(table, [name for name, value in into.values.items() if isinstance(value, Encrypted)])


def _must_be_given(column: ColumnModel) -> bool:
    return not column.nullable and column.default is None and column.default_sql is None and not column.primary_key


def _missing(table: TableModel, names: Iterable[str]) -> Iterator[str]:
    there = [column.name for column in table.columns]
    if unknown := [name for name in names if name not in there]:
        yield f"{table.name} has no column {', '.join(unknown)}; it has {', '.join(there)}"


def _no_text(table: TableModel, names: Iterable[str]) -> Iterator[str]:
    for column in table.columns:
        if column.name in names and column.type is not None and not column.type.startswith(("text", "string")):
            yield f"{table.name}.{column.name} is {column.type}: what is encrypted is stored as text"
