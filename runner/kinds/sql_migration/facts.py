"""What a reviewer reads of each step of a migration: tables and columns that come and go, rows by rule, SQL word for word."""

from __future__ import annotations

from collections.abc import Sequence

from runner.kinds.sql_migration.spec import BackUp, Drop
from runner.kinds.sql_migration.survey import Surveyed
from runner.mapping import ColumnModel, TableModel
from runner.plan import Fact, MapRows, RunStatements, Statement

#: What becomes of a row under a rule that does not hold.
_ENDS = {"fail": "stops it", "skip": "left out", "ignore": "not meant"}


def of_table(table: TableModel, ddl: Sequence[str]) -> list[Fact]:
    """A table that is made: a line for each column, and the SQL that makes it."""
    found = [
        Fact(label=f"table {table.name}", before="not there", after=f"made, {_counted(len(table.columns), 'column')}")
    ]
    found += [Fact(label=f"  + {column.name}", after=_column(column)) for column in table.columns]
    found += [Fact(label=f"  + unique {', '.join(columns)}", after="no two rows alike") for columns in table.unique]
    found += [Fact(label=f"  + index on {', '.join(columns)}", after="made") for columns in table.indexes]
    return found + _lines("  in SQL", [line for statement in ddl for line in statement.split("\n")])


def of_backup(spec: BackUp, columns: Sequence[ColumnModel], rows: int) -> list[Fact]:
    """A table that is made for a copy of columns."""
    found = [Fact(label=f"table {spec.to}", before="not there", after=f"made, {_counted(len(columns), 'column')}")]
    found += [Fact(label=f"  + {column.name}", after=_column(column)) for column in columns]
    some = f" where {spec.where}" if spec.where else ""
    return [*found, Fact(label=f"rows of {spec.to}", before=f"{_counted(rows, 'row')} of {spec.table}{some}", after=_counted(rows, "row"))]  # fmt: skip


def of_rows(step: MapRows, found: Surveyed) -> list[Fact]:
    """Rows that are made, and what rules say of those that are read."""
    facts = []
    for one in found.made:
        read = f"{_counted(found.rows, 'row')} of {step.map.from_}"
        alike = ", equal ones are one" if one.distinct < one.items else ""
        before = read if one.items == found.rows else f"{one.items:,} made of {read}"
        facts.append(Fact(label=f"rows of {one.table}", before=before, after=_counted(one.distinct, "row") + alike))
    for told in found.told:
        what = _counted(told.rows, "row") if told.items == told.rows else f"{told.items:,} in {_counted(told.rows, 'row')}"  # fmt: skip
        facts.append(Fact(label=f"  {told.message}", before=what, after=_ENDS[told.otherwise]))
    return facts


def of_encryption(table: str, columns: Sequence[str], before: str, after: str, rows: int) -> list[Fact]:
    """Columns that are encrypted in their place."""
    was = f"encrypted with {before}" if before else "plain text"
    return [
        Fact(label=f"{table}.{column}", before=f"{was}, {_counted(rows, 'row')}", after=f"encrypted with {after}")
        for column in columns
    ]


def of_drop(spec: Drop, kind: str, values: int, undo: str) -> list[Fact]:
    """A column that goes."""
    return [
        Fact(label=f"table {spec.table}", before="there", after="one column less"),
        Fact(
            label=f"  - {spec.column}",
            before=f"{kind}, {_counted(values, 'value')}",
            after=f"dropped; values in {undo}",
        ),
    ]


def of_sql(step: RunStatements) -> list[Fact]:
    """SQL of the spec, and how it is undone, word for word."""
    found = _lines(f"SQL of {step.name}", _texts(step.statements))
    if step.back is None:
        return [*found, Fact(label="  undone by", after="nothing: there is no way back")]
    return found + (
        _lines("  undone by", _texts(step.back)) or [Fact(label="  undone by", after="nothing has to be done")]
    )


def _texts(statements: Sequence[Statement]) -> list[str]:
    found = []
    for one in statements:
        found += one.sql.strip().split("\n")
        if one.done or one.repeat:
            found.append(f"  -- done when: {one.done}" if one.done else "  -- does no harm when it is run again")
    return found


def _lines(label: str, lines: Sequence[str]) -> list[Fact]:
    """Lines under one label."""
    return [Fact(label="" if number else label, after=line) for number, line in enumerate(lines)]


def _column(column: ColumnModel) -> str:
    parts = [column.type or column.sql_type or ""]
    parts += ["primary key"] if column.primary_key else [] if column.nullable else ["not null"]
    parts += ["unique"] if column.unique else []
    if column.default is not None or column.default_sql is not None:
        parts.append(f"default {column.default_sql or column.default}")
    if column.references is not None:
        parts.append(f"references {column.references}, on delete {column.on_delete}")
    return ", ".join(parts)


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
