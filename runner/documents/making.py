"""Making a table that a backup describes: columns first, and what costs time on full tables after the data.

Columns keep their types, NOT NULL and defaults. A column that counted by a sequence gets a sequence of its own. Names of
constraints and indexes are kept where they are free; elsewhere, and in a table of another name, PostgreSQL chooses them.
"""

# Names in SQL are quoted by shape.quoted(); types, defaults and definitions were written by PostgreSQL itself.

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runner.documents.fitting import Target, type_here
from runner.documents.loaded import one
from runner.documents.shape import Column, Constraint, quoted
from runner.errors import Permanent

if TYPE_CHECKING:
    from runner.documents.postgres import Connection

_NAME = r'(?:"(?:[^"]|"")*"|[\w$]+)'
_QUALIFIED = rf"{_NAME}(?:\.{_NAME})?"
_LIST = r'\((?:"(?:[^"]|"")*"|[^")])*\)'
_FOREIGN = re.compile(rf"(FOREIGN KEY {_LIST} REFERENCES ){_QUALIFIED}(\(.*)", re.DOTALL)
_INDEX = re.compile(rf"CREATE (UNIQUE )?INDEX ({_NAME}) ON (?:ONLY )?{_QUALIFIED} (USING .*)", re.DOTALL)
_SERIAL = {"smallint": "smallserial", "integer": "serial", "bigint": "bigserial"}


def make(connection: Connection, target: Target) -> None:
    """The table with its columns, empty, without constraints."""
    columns = ", ".join(_column(connection, item) for item in target.filling.shape.columns)
    connection.execute(f"CREATE TABLE {target.sql} ({columns})")


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
    counted = (item.default or "").startswith("nextval(")
    parts = [quoted(item.name), _SERIAL[item.type] if counted and item.type in _SERIAL else written]
    if item.generated:
        parts.append(f"GENERATED ALWAYS AS ({item.default}) STORED")
    elif item.identity:
        parts.append(f"GENERATED {item.identity.upper()} AS IDENTITY")
    elif item.default is not None and not counted:
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
