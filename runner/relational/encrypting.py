"""Values of columns that are encrypted, encrypted with another key, or decrypted where they stand.

A value is written only after it was decrypted again and found to be the same, and only over the value that it was made of.
What was changed is listed in the undo table of the step, in the same transaction: the way back touches nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import sqlalchemy as sa

from runner.ciphers import Cipher
from runner.documents.database import Database
from runner.errors import Permanent, Transient
from runner.points import PointId
from runner.relational import column, execute, quoted
from runner.relational.shape import Shape
from runner.relational.written import name_in, prepared

#: What a text has to look like before a key is tried on it. Trying is slow for text that is not encrypted.
LOOKS = {
    "aes-256-gcm": re.compile(r"[A-Za-z0-9+/]{38,}={0,2}"),
    "fernet": re.compile(r"gAAAA[A-Za-z0-9_-]{90,}={0,2}"),
}
#: Keys that are asked for in one go.
LISTED = 500
#: Times that the rows of a batch are read again because the application has changed them.
TRIES = 10


@dataclass(frozen=True)
class Change:
    """The new values of a row: {column: (old, new)}."""

    key: PointId
    values: dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Keys:
    """From `before` to `after`; None: plain text. `undoes`: what is not of `before` was written since, and is left alone."""

    before: Cipher | None
    after: Cipher | None
    undoes: bool = False

    def changed(self, table: str, key: str, columns: Sequence[str], row: Mapping[str, Any]) -> Change | None:
        """What has to change in a row, if anything. Permanent when a value is neither the old nor the new kind."""
        found = {}
        for name in columns:
            value = row[name]
            if value is not None and (new := self._new(value, f"{table}.{name}, {key} {row[key]!r}")) is not None:
                found[name] = (value, new)
        return Change(row[key], found) if found else None

    def is_foreign(self, value: Any) -> bool:
        """Whether a value looks encrypted, and is of neither key."""
        if not isinstance(value, str) or not any(looks.fullmatch(value) for looks in LOOKS.values()) or len(value) % 4:
            return False
        return not any(key is not None and own(key, value) for key in (self.before, self.after))

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
        if self.undoes and not (isinstance(value, str) and self.before is not None and own(self.before, value)):
            return None
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
    connection: sa.Connection, shape: Shape, key: str, columns: Sequence[str], changes: Sequence[Change], keys: Keys,
    undo: str = "",
) -> int:  # fmt: skip
    """Write changes, and list them in `undo`; a row that the application has changed since it was read is read again. Returns
    the rows written."""
    total = 0
    for _ in range(TRIES):
        if not changes:
            return total
        done = _update(connection, shape, key, columns, changes)
        total += len(done)
        if undo:
            _list(connection, shape, key, [change for change in changes if change.key in done], undo)
        missed = {
            change.key: [*change.values] if keys.undoes else columns for change in changes if change.key not in done
        }
        read = _read(connection, shape, key, columns, [*missed])
        again = [keys.changed(shape.name, key, missed[row[key]], row) for row in read]
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
        types += [f"o{number} {shape.types[name]}", f"n{number} text", f"c{number} boolean"]
        held = f"t.{shape.quote(name)}"
        sets.append(f"{shape.quote(name)} = CASE WHEN r.c{number} THEN r.n{number} ELSE {held} END")
        same.append(f"(r.c{number} IS NULL OR {held} IS NOT DISTINCT FROM r.o{number})")
        for row, change in zip(rows, changes, strict=True):
            if name in change.values:
                old, new = change.values[name]
                row |= {f"o{number}": old, f"n{number}": new, f"c{number}": True}
    text = (
        f"UPDATE {shape.quoted} t SET {', '.join(sets)} FROM json_to_recordset(%(doc)s::json) AS r({', '.join(types)}) "  # noqa: S608
        f"WHERE {' AND '.join(same)} RETURNING {shape.read_sql('t', key)}"
    )
    return {row[0] for row in connection.exec_driver_sql(text, {"doc": orjson.dumps(rows).decode()})}


def _update_each(connection: sa.Connection, shape: Shape, key: str, changes: Sequence[Change]) -> set[PointId]:
    statements: dict[tuple[str, ...], Callable[[Mapping[str, Any]], Any]] = {}
    done = set()
    for change in changes:
        names = tuple(change.values)
        if names not in statements:
            columns = shape.table.c
            old = [columns[name].is_not_distinct_from(sa.bindparam(f"old{n}")) for n, name in enumerate(names)]
            update = sa.update(shape.table).where(columns[key] == sa.bindparam("its_key"), *old)
            update = update.values({name: sa.bindparam(f"new{n}") for n, name in enumerate(names)})
            statements[names] = prepared(connection, update)
        values: dict[str, Any] = {"its_key": change.key}
        for number, (was, new) in enumerate(change.values.values()):
            values |= {f"old{number}": was, f"new{number}": new}
        if statements[names](values).rowcount:
            done.add(change.key)
    return done


def make_undo(connection: sa.Connection, shape: Shape, key: str, undo: str) -> None:
    """The undo table: `row_key`, as the table has it, and `changed_column`."""
    text = "CHAR(255)" if shape.dialect.name in ("mysql", "mariadb") else "VARCHAR(255)"
    table, at = quoted(shape.dialect, undo), quoted(shape.dialect, shape.name)
    execute(
        connection,
        f"CREATE TABLE {table} AS SELECT {column(shape.dialect, key)} AS row_key, CAST('' AS {text}) AS changed_column "  # noqa: S608
        f"FROM {at} WHERE 1 = 0",
    )
    index = f"ix_{undo.rpartition('.')[2]}"
    execute(connection, f"CREATE UNIQUE INDEX {column(shape.dialect, index)} ON {table} (row_key, changed_column)")


def changed_rows(dialect: sa.Dialect, key: str, undo: str) -> str:
    """A condition: rows that are listed in the undo table."""
    return f"{column(dialect, key)} IN (SELECT row_key FROM {quoted(dialect, undo)})"  # noqa: S608


def without_row(database: Database, table: str, key: str, undo: str) -> int:
    """Values that are listed in the undo table and whose row is not there any more: they would stay as they are."""
    dialect = database.engine.dialect
    t, u, k = quoted(dialect, table), quoted(dialect, undo), column(dialect, key)
    query = f"SELECT count(*) FROM {u} u WHERE NOT EXISTS (SELECT 1 FROM {t} t WHERE t.{k} = u.row_key)"  # noqa: S608
    with database.reading() as connection:
        return int(execute(connection, query).scalar_one())


def changed_columns(
    connection: sa.Connection, shape: Shape, keys: Sequence[PointId], key: str, undo: str
) -> dict[PointId, list[str]]:
    """What was changed in rows, by their keys, as far as they are listed."""
    schema_name, _, bare = undo.rpartition(".")
    listed = sa.table(bare, sa.column("row_key"), sa.column("changed_column"), schema=schema_name or None)
    at = sa.cast(listed.c.row_key, sa.Text) if shape.as_text(key) else listed.c.row_key
    found: dict[PointId, list[str]] = {}
    for first in range(0, len(keys), LISTED):
        wanted = [shape.bound(key, one) for one in keys[first : first + LISTED]]
        query = sa.select(at, listed.c.changed_column).where(listed.c.row_key.in_(wanted))
        for row in connection.execute(query):
            found.setdefault(row[0], []).append(row[1])
    return found


def _list(connection: sa.Connection, shape: Shape, key: str, changes: Sequence[Change], undo: str) -> None:
    pairs = [(change.key, name) for change in changes for name in change.values]
    if not pairs:
        return
    if shape.postgresql:
        insert = (
            f"INSERT INTO {name_in(shape, undo)} SELECT r.k, r.c FROM json_to_recordset(%(doc)s::json) "  # noqa: S608
            f"AS r(k {shape.types[key]}, c varchar) ON CONFLICT DO NOTHING"
        )
        doc = orjson.dumps([{"k": at, "c": name} for at, name in pairs]).decode()
        connection.exec_driver_sql(insert, {"doc": doc})
        return
    schema_name, _, bare = undo.rpartition(".")
    listed = sa.table(bare, sa.column("row_key"), sa.column("changed_column"), schema=schema_name or None)
    same = (listed.c.row_key == sa.bindparam("k"), listed.c.changed_column == sa.bindparam("c"))
    there = prepared(connection, sa.select(sa.literal_column("1")).select_from(listed).where(*same))
    add = prepared(connection, sa.insert(listed).values(row_key=sa.bindparam("k"), changed_column=sa.bindparam("c")))
    for at, name in pairs:
        if there({"k": at, "c": name}).fetchone() is None:
            add({"k": at, "c": name})


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
