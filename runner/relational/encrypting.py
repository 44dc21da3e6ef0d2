"""Values of columns that are encrypted, encrypted with another key, or decrypted where they stand.

A value is written only after it was decrypted again and found to be the same, and only over the value that it was made of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import sqlalchemy as sa

from runner.ciphers import Cipher
from runner.errors import Permanent, Transient
from runner.points import PointId
from runner.relational.shape import Shape
from runner.relational.written import prepared

#: What a text has to look like before a key is tried on it. Trying is slow for text that is not encrypted.
LOOKS = {
    "aes-256-gcm": re.compile(r"[A-Za-z0-9+/]{38,}={0,2}"),
    "fernet": re.compile(r"gAAAA[A-Za-z0-9_-]{90,}={0,2}"),
}
#: Times that the rows of a batch are read again because the application has changed them.
TRIES = 10


@dataclass(frozen=True)
class Change:
    """The new values of a row: {column: (old, new)}."""

    key: PointId
    values: dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Keys:
    """From `before` to `after`; None: plain text."""

    before: Cipher | None
    after: Cipher | None

    def changed(self, table: str, key: str, columns: Sequence[str], row: Mapping[str, Any]) -> Change | None:
        """What has to change in a row, if anything. Permanent when a value is neither the old nor the new kind."""
        found = {}
        for column in columns:
            value = row[column]
            if value is not None and (new := self._new(value, f"{table}.{column}, {key} {row[key]!r}")) is not None:
                found[column] = (value, new)
        return Change(row[key], found) if found else None

    def is_done(self, value: Any) -> bool:
        """Whether a value is as it has to be at the end."""
        if value is None:
            return True
        if not isinstance(value, str):
            return False
        if self.after is not None:
            return own(self.after, value)
        return self.before is None or not own(self.before, value)

    def _new(self, value: Any, place: str) -> str | None:
        if not isinstance(value, str):
            raise Permanent("A value is no text", f"{place}: {type(value).__name__}", "Only text can be encrypted")
        # Nobody can make a text that decrypts without the key: both algorithms authenticate (a tag of 128 bits, an HMAC
        # of 256). So what is the new key's own was written by an earlier try of this batch.
        if self.after is not None and own(self.after, value):
            return None
        if self.before is None:
            plain = value
        elif own(self.before, value):
            plain = self.before.decrypt(value)
        elif self.after is None:
            return None  # decrypted by an earlier try, or written since by an application that knows no key
        else:
            raise Permanent(
                "A value is encrypted with neither the old nor the new key", place,
                "Look who wrote it, put it right, and go on with: vecrun resume",
            )  # fmt: skip
        if self.after is None:
            return plain
        new = self.after.encrypt(plain)
        if self.after.decrypt(new) != plain:
            raise Permanent("A value does not decrypt to what was encrypted", place, "Nothing of its batch was written")
        return new


def own(cipher: Cipher, value: str) -> bool:
    """Whether the key has encrypted a value."""
    return LOOKS[cipher.algorithm].fullmatch(value) is not None and cipher.is_own(value)


def write(
    connection: sa.Connection, shape: Shape, key: str, columns: Sequence[str], changes: Sequence[Change], keys: Keys
) -> int:
    """Write changes; a row that the application has changed since it was read is read again. Returns the rows written."""
    total = 0
    for _ in range(TRIES):
        if not changes:
            return total
        done = _update(connection, shape, key, columns, changes)
        total += len(done)
        missed = [change.key for change in changes if change.key not in done]
        again = [keys.changed(shape.name, key, columns, row) for row in _read(connection, shape, key, columns, missed)]
        changes = [change for change in again if change is not None]
    raise Transient("Rows change faster than they can be encrypted", f"{len(changes)} rows of {shape.name}")


def _update(
    connection: sa.Connection, shape: Shape, key: str, columns: Sequence[str], changes: Sequence[Change]
) -> set[PointId]:
    """Keys of the rows that were as they were read, and are written now."""
    if not shape.postgresql:
        return _update_each(connection, shape, key, changes)
    types = [f"k {shape.types[key]}"]
    sets, same, rows = [], [f"t.{shape.quote(key)} = r.k"], [{"k": change.key} for change in changes]
    for number, name in enumerate(columns):
        types += [f"o{number} text", f"n{number} text", f"c{number} boolean"]
        column = f"t.{shape.quote(name)}"
        sets.append(f"{shape.quote(name)} = CASE WHEN r.c{number} THEN r.n{number} ELSE {column} END")
        same.append(f"(r.c{number} IS NULL OR {column} IS NOT DISTINCT FROM r.o{number})")
        for row, change in zip(rows, changes, strict=True):
            if name in change.values:
                old, new = change.values[name]
                row |= {f"o{number}": old, f"n{number}": new, f"c{number}": True}
    text = (
        f"UPDATE {shape.quoted} t SET {', '.join(sets)} FROM json_to_recordset(%(doc)s::json) AS r({', '.join(types)}) "  # noqa: S608
        f"WHERE {' AND '.join(same)} RETURNING {_key(shape, key)}"
    )
    return {row[0] for row in connection.exec_driver_sql(text, {"doc": orjson.dumps(rows).decode()})}


def _update_each(connection: sa.Connection, shape: Shape, key: str, changes: Sequence[Change]) -> set[PointId]:
    statements: dict[tuple[str, ...], Callable[[Mapping[str, Any]], Any]] = {}
    done = set()
    for change in changes:
        names = tuple(change.values)
        if names not in statements:
            column = shape.table.c
            old = [column[name].is_not_distinct_from(sa.bindparam(f"old{n}")) for n, name in enumerate(names)]
            update = sa.update(shape.table).where(column[key] == sa.bindparam("its_key"), *old)
            update = update.values({name: sa.bindparam(f"new{n}") for n, name in enumerate(names)})
            statements[names] = prepared(connection, update)
        values: dict[str, Any] = {"its_key": change.key}
        for number, (was, new) in enumerate(change.values.values()):
            values |= {f"old{number}": was, f"new{number}": new}
        if statements[names](values).rowcount:
            done.add(change.key)
    return done


def _key(shape: Shape, key: str) -> str:
    return f"t.{shape.quote(key)}" + ("::text" if shape.types[key] == "uuid" else "")


def _read(
    connection: sa.Connection, shape: Shape, key: str, columns: Sequence[str], wanted: Sequence[PointId]
) -> list[dict[str, Any]]:
    """Rows as they are now, locked where the database has locks for rows."""
    names, found = [key, *columns], []
    query = sa.select(*(shape.read(name) for name in names)).with_for_update()
    for one in wanted:
        row = connection.execute(query.where(shape.table.c[key] == shape.bound(key, one))).first()
        if row is not None:
            found.append(dict(zip(names, row, strict=True)))
    return found
