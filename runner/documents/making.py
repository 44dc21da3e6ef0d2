"""Making a table that a backup describes: columns first, and what costs time on full tables after the data.

Columns keep their types, collations, NOT NULL and defaults. A column that counted by a sequence gets a sequence of its own; a
default that reckons with a sequence which is not here is left out, and that is told. Names of constraints and indexes are
kept where they are free; elsewhere, and in a table of another name, PostgreSQL chooses them.
"""

# Names in SQL are quoted by shape.quoted(); types, defaults and definitions were written by PostgreSQL itself.

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runner.documents.catalog import NEXT
from runner.documents.fitting import Target, type_here
from runner.documents.loaded import one
from runner.documents.shape import Column, Constraint, Shape, quoted
from runner.errors import Permanent

if TYPE_CHECKING:
    from runner.documents.postgres import Connection

_NAME = r'(?:"(?:[^"]|"")*"|[\w$]+)'
_QUALIFIED = rf"{_NAME}(?:\.{_NAME})?"
_LIST = r'\((?:"(?:[^"]|"")*"|[^")])*\)'
_FOREIGN = re.compile(rf"(FOREIGN KEY {_LIST} REFERENCES ){_QUALIFIED}(\(.*)", re.DOTALL)
_INDEX = re.compile(rf"CREATE (UNIQUE )?INDEX ({_NAME}) ON (?:ONLY )?{_QUALIFIED} (USING .*)", re.DOTALL)
_SERIAL = {"smallint": "smallserial", "integer": "serial", "bigint": "bigserial"}


def make(connection: Connection, target: Target) -> list[str]:
    """The table with its columns, empty, without constraints. What is told of defaults that are left out."""
    columns = ", ".join(_column(connection, item) for item in target.filling.shape.columns)
    connection.execute(f"CREATE TABLE {target.sql} ({columns})")
    left_out = []
    for item in target.filling.shape.columns:
        if _plain(item) or (item.type in _SERIAL and _counted(item)):
            continue
        if _counted(item):
            sequence = _new_sequence(connection, target, item)
            text = sequence.replace("'", "''")
            default = f"nextval('{text}'::regclass)"
        else:
            default = item.default or ""
            if lacking := [name for name in _sequences(default) if not _there(connection, name)]:
                text = f"{target.qualified}.{item.name} is made without its default {default}: there is no {', '.join(lacking)}"
                left_out.append(text)
                continue
        connection.execute(f"ALTER TABLE {target.sql} ALTER COLUMN {quoted(item.name)} SET DEFAULT {default}")
    return left_out


def not_made(shape: Shape) -> list[str]:
    """What a table of a backup was that one which is made is not."""
    found = ["it is made as a plain table, not partitioned"] if shape.relation == "partitioned table" else []
    found += ["it is made as a logged table"] if shape.unlogged else []
    for item in shape.columns:
        if not _plain(item) and not _counted(item):
            found.append(f"column {item.name} has its default {item.default} only where there are such sequences")
    return found


def _new_sequence(connection: Connection, target: Target, item: Column) -> str:
    """A sequence of its own for a column, named like that of a serial one where this name is free."""
    usual = f"{target.name[:20]}_{item.name[:20]}_seq"
    names = (usual, f"{uuid.uuid4().hex[:12]}_seq")
    sequence = next(
        found for name in names if not _there(connection, found := f"{quoted(target.schema)}.{quoted(name)}")
    )
    connection.execute(f"CREATE SEQUENCE {sequence} OWNED BY {target.sql}.{quoted(item.name)}")
    return sequence


def _counted(item: Column) -> bool:
    """Whether the default is the next value of a sequence, and nothing else."""
    return NEXT.fullmatch(item.default or "") is not None


def _plain(item: Column) -> bool:
    """Whether the column has no default that needs a sequence."""
    return item.generated or item.default is None or "nextval(" not in item.default


def _sequences(default: str) -> list[str]:
    return [name.replace("''", "'") for name in NEXT.findall(default)]


def _there(connection: Connection, sequence: str) -> bool:
    return bool(one(connection, "SELECT to_regclass(%s) IS NOT NULL", (sequence,)))


def complete(connection: Connection, targets: Sequence[Target]) -> list[str]:
    """What belongs to the tables that were made, once all are full. Foreign keys to tables that are not filled with them are
    left out: what is told of them."""
    made = [target for target in targets if target.here is None]
    for target in made:
        for item in target.filling.shape.constraints:
            if item.kind != "foreign key":
                _constrain(connection, target, item, item.definition)
        for text in target.filling.shape.indexes:
            _index(connection, target, text)
    here = {target.filling.shape.qualified: target.sql for target in targets}
    left_out = []
    for target in made:
        for item in target.filling.shape.constraints:
            if item.kind == "foreign key" and item.references in here:
                _constrain(connection, target, item, _refer(target, item, here[item.references]))
            elif item.kind == "foreign key":
                left_out.append(
                    f"{target.qualified} is made without its foreign key to {item.references} ({item.name})"
                )
    return left_out


def _refer(target: Target, item: Constraint, to: str) -> str:
    """A foreign key to this table."""
    match = _FOREIGN.fullmatch(item.definition)
    if match is None:
        raise Permanent("A foreign key cannot be read", f"{target.qualified}: {item.definition}")
    return f"{match[1]}{to}{match[2]}"


def _column(connection: Connection, item: Column) -> str:
    written = type_here(connection, item.type) or item.type
    parts = [quoted(item.name), _SERIAL[item.type] if _counted(item) and item.type in _SERIAL else written]
    if item.collation:
        parts.append(f"COLLATE {item.collation}")
    if item.generated:
        parts.append(f"GENERATED ALWAYS AS ({item.default}) STORED")
    elif item.identity:
        parts.append(
            f"GENERATED {item.identity.upper()} AS IDENTITY" + (f" ({item.counting})" if item.counting else "")
        )
    elif item.default is not None and _plain(item):
        parts.append(f"DEFAULT {item.default}")
    if item.not_null:
        parts.append("NOT NULL")
    return " ".join(parts)


def _constrain(connection: Connection, target: Target, item: Constraint, definition: str) -> None:
    name = f"CONSTRAINT {quoted(item.name)} " if _free(connection, target, item.name) else ""
    connection.execute(f"ALTER TABLE {target.sql} ADD {name}{definition}")


def _index(connection: Connection, target: Target, text: str) -> None:
    match = _INDEX.fullmatch(text)
    if match is None:
        raise Permanent("An index cannot be read", f"{target.qualified}: {text}")
    bare = match[2][1:-1].replace('""', '"') if match[2].startswith('"') else match[2]
    name = f"{match[2]} " if _free(connection, target, bare) else ""
    connection.execute(f"CREATE {match[1] or ''}INDEX {name}ON {target.sql} {match[3]}")


def _free(connection: Connection, target: Target, name: str) -> bool:
    """Whether a name of the backup can be used: for the same table, where no other thing has it."""
    if target.name != target.filling.shape.name:
        return False
    query = "SELECT to_regclass(%s) IS NULL"
    return bool(one(connection, query, (f"{quoted(target.schema)}.{quoted(name)}",)))
