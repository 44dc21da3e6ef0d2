"""Rows that are written, fetched and compared, a batch at a time.

PostgreSQL gets a batch as one JSON document, in which text of a row is always a string, JSON too; other databases get its
rows one by one. What a value becomes in its column is the database's to say, when it is written and when it is compared.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import math
import sqlite3
import uuid
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite as sqlite_dialect

from runner.expressions import is_json
from runner.relational.shape import Shape

#: A name that no column of a user has.
NUMBER = "vecrun_n"


def insert(
    connection: sa.Connection, target: Shape, unique: Sequence[str], rows: Sequence[dict[str, Any]],
    kept: str | None = None,
) -> int:  # fmt: skip
    """Write rows, all with the same columns, without those whose `unique` columns the table has. Returns the rows that were
    made; with `kept` their keys go to that table (`undo_table`). `unique`: what `unique_columns` has given."""
    rows = sorted(_first(rows, unique), key=lambda row: [str(row[name]) for name in unique])  # against deadlocks
    if not rows:
        return 0
    if target.postgresql:
        names = [*rows[0]]
        columns = ", ".join(target.quote(name) for name in names)
        given = ", ".join(_given(target, name) for name in names)
        text = f"INSERT INTO {target.quoted} AS t ({columns}) SELECT {given} FROM {recordset(target, names)}"  # noqa: S608
        text += f" ON CONFLICT ({', '.join(target.quote(name) for name in unique)}) DO NOTHING"
        if kept is not None:
            text = _keeping(target, unique, text, kept)
        return int(connection.exec_driver_sql(text, {"doc": document(target, rows)}).rowcount)
    sqlite = target.dialect.name == "sqlite"
    if kept is not None or not sqlite:
        held = fetch(connection, target, unique, rows, [])
        rows = [row for row, one in zip(rows, held, strict=True) if one is None]
    if not rows:
        return 0
    statement: Any = sa.insert(target.table).values({name: sa.bindparam(name) for name in rows[0]})
    if sqlite:
        statement = sqlite_dialect.insert(target.table).values({name: sa.bindparam(name) for name in rows[0]})
        statement = statement.on_conflict_do_nothing(index_elements=[*unique])
    compiled = statement.compile(dialect=connection.dialect)
    values = [bindable(target, row) for row in rows]
    order = compiled.positiontup
    bound = [tuple(row[name] for name in order) for row in values] if order is not None else values
    done = connection.exec_driver_sql(str(compiled), bound)
    if kept is not None:
        _keep(connection, target, unique, rows, kept)
    return int(done.rowcount) if done.rowcount >= 0 else len(rows)


def undo_table(name: str) -> sa.Table:
    """The undo table. `row_key`: JSON of the columns that tell rows apart. `row_columns`: JSON of the columns that the table had,
    of which `row_digest` is, as the row was made."""
    schema, _, bare = name.rpartition(".")
    columns = [sa.Column(one, sa.Text, nullable=False) for one in ("made_in", "row_key", "row_columns", "row_digest")]
    return sa.Table(bare, sa.MetaData(), *columns, schema=schema or None)


def digested(target: Shape, at: str, columns: Sequence[str]) -> str:
    """SQL of PostgreSQL for the digest of a row of the table `at`."""
    values = ", ".join(f"{at}.{target.quote(name)}" for name in columns)
    # a function takes a hundred arguments, a row takes all of them
    return f"md5(to_json(ROW({values}))::text)"


def _keeping(target: Shape, unique: Sequence[str], insert: str, kept: str) -> str:
    """PostgreSQL: an INSERT of `target` AS t, which writes the rows that it makes to the undo table `kept`, too."""
    key = ", ".join(f"{literal(name)}, m.{target.quote(name)}" for name in unique)
    return (
        f"WITH m AS ({insert} RETURNING t.*) "  # noqa: S608
        f"INSERT INTO {name_in(target, kept)} (made_in, row_key, row_columns, row_digest) "
        f"SELECT {literal(target.name)}, json_build_object({key})::text, {literal(json.dumps([*target.types]))}, "
        f"{digested(target, 'm', [*target.types])} FROM m"
    )


def _keep(
    connection: sa.Connection, target: Shape, unique: Sequence[str], rows: Sequence[dict[str, Any]], kept: str
) -> None:
    """Other databases: write rows that were just made to the undo table, as the database has them now."""
    held = fetch(connection, target, unique, rows, [*target.types])
    made = [
        {
            "made_in": target.name,
            "row_key": json.dumps({name: one[name] for name in unique}),
            "row_columns": json.dumps([*target.types]),
            "row_digest": digest(one),
        }
        for one in held
        if one is not None
    ]
    connection.execute(undo_table(kept).insert(), made)


def digest(row: dict[str, Any]) -> str:
    """Names a row as a database that is asked row by row has it."""
    text = json.dumps(sorted(row.items()), ensure_ascii=False, default=repr)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def name_in(target: Shape, table: str) -> str:
    """A table as `Shape.quoted` is."""
    return ".".join(target.quote(part) for part in table.rpartition(".")[::2] if part)


def literal(text: str) -> str:
    """Text within SQL that the client looks through for %s."""
    return "'" + text.replace("'", "''").replace("%", "%%") + "'"


def fetch(
    connection: sa.Connection, target: Shape, unique: Sequence[str], rows: Sequence[dict[str, Any]],
    columns: Sequence[str],
) -> list[dict[str, Any] | None]:  # fmt: skip
    """The row of the table for each of `rows`, found by its `unique` columns; None where there is none."""
    if target.postgresql:
        chosen = "".join(f", t.{target.quote(name)}" for name in columns)
        join = " AND ".join(f"t.{target.quote(name)} = {_given(target, name)}" for name in unique)
        text = f"SELECT r.{NUMBER}{chosen} FROM {recordset(target, unique, NUMBER)} JOIN {target.quoted} t ON {join}"  # noqa: S608
        doc = document(target, [{name: row[name] for name in unique} for row in rows], numbered=True)
        found = {
            row[0]: dict(zip(columns, row[1:], strict=True)) for row in connection.exec_driver_sql(text, {"doc": doc})
        }
        return [found.get(number) for number in range(len(rows))]
    query = sa.select(sa.literal_column("1"), *(target.table.c[name] for name in columns)).where(
        *(target.table.c[name] == sa.bindparam(f"key_{name}") for name in unique)
    )
    ask = prepared(connection, query)
    made: list[dict[str, Any] | None] = []
    for row in rows:
        values = bindable(target, {name: row[name] for name in unique})
        one = ask({f"key_{name}": value for name, value in values.items()}).fetchone()
        made.append(None if one is None else dict(zip(columns, one[1:], strict=True)))
    return made


def compare(
    connection: sa.Connection, target: Shape, unique: Sequence[str], rows: Sequence[dict[str, Any]],
    read: Sequence[str] = (),
) -> list[tuple[list[str], dict[str, Any]] | None]:  # fmt: skip
    """For each of `rows`: the columns in which the table's row is another, and what it has in the columns `read`; None where
    there is none. What a value would become in its column is the database's to say."""
    names = [*rows[0]] if rows else []
    if not rows:
        return []
    if target.postgresql:
        same = [
            f"{_comparable(target, name, _given(target, name))} IS NOT DISTINCT FROM "
            f"{_comparable(target, name, f't.{target.quote(name)}')}"
            for name in names
        ]
        chosen = ", ".join([f"r.{NUMBER}", *same, *(f"t.{target.quote(name)}" for name in read)])
        join = " AND ".join(f"t.{target.quote(name)} = {_given(target, name)}" for name in unique)
        text = f"SELECT {chosen} FROM {recordset(target, names, NUMBER)} JOIN {target.quoted} t ON {join}"  # noqa: S608
        answers = connection.exec_driver_sql(text, {"doc": document(target, rows, numbered=True)})
        found = {row[0]: _answer(names, read, row[1:]) for row in answers}
        return [found.get(number) for number in range(len(rows))]
    told = {name for name in names if target.is_json(name)}
    plain = [name for name in names if name not in told]
    query = sa.select(
        *(target.table.c[name].is_not_distinct_from(sa.bindparam(f"is_{name}")) for name in plain),
        *(target.table.c[name] for name in (*told, *read)),
    ).where(*(target.table.c[name] == sa.bindparam(f"key_{name}") for name in unique))
    ask, made = prepared(connection, query), list[tuple[list[str], dict[str, Any]] | None]()
    for row in rows:
        values = bindable(target, row)
        bound = {f"is_{name}": values[name] for name in plain} | {f"key_{name}": values[name] for name in unique}
        one = ask(bound).fetchone()
        if one is None:
            made.append(None)
            continue
        answer = _answer(plain, (*told, *read), tuple(one))
        other = [name for name in told if _data(answer[1].pop(name)) != _data(values[name])]
        made.append(([*answer[0], *other], answer[1]))
    return made


def prepared(connection: sa.Connection, statement: Any) -> Callable[[Mapping[str, Any]], Any]:
    """A statement that is run once for each row, compiled once: what it gives has fetchone() and rowcount."""
    compiled = statement.compile(dialect=connection.dialect)
    text, order = str(compiled), compiled.positiontup
    # what SQLAlchemy does around a call takes longer than SQLite itself
    bare: Any = connection.connection.driver_connection if connection.dialect.name == "sqlite" else None

    def ask(values: Mapping[str, Any]) -> Any:
        given = tuple(values[name] for name in order) if order is not None else dict(values)
        if bare is not None:
            with contextlib.suppress(sqlite3.Error):  # run again below, which says it in our words
                return bare.execute(text, given)
        return connection.exec_driver_sql(text, given)

    return ask


def _answer(names: Sequence[str], read: Sequence[str], row: Sequence[Any]) -> tuple[list[str], dict[str, Any]]:
    other = [name for name, same in zip(names, row, strict=False) if not same]
    return other, dict(zip(read, row[len(names) :], strict=True))


def recordset(target: Shape, names: Sequence[str], number: str = "") -> str:
    """The parameter `doc` as rows `r` of PostgreSQL, with the types of the table's columns; JSON as text (`_given`)."""
    columns = [f"{target.quote(name)} {'text' if target.is_json(name) else target.types[name]}" for name in names]
    return f"json_to_recordset(%(doc)s::json) AS r({', '.join([*columns, *([f'{number} bigint'] if number else [])])})"


def document(target: Shape, rows: Sequence[dict[str, Any]], *, numbered: bool = False) -> str:
    """Rows as the JSON that `recordset` reads."""
    texts = [name for name in (rows[0] if rows else ()) if target.is_json(name)]
    made: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        one = {name: value if type(value) in _AS_THEY_ARE else _plain(value) for name, value in row.items()}
        for name in texts:
            if row[name] is not None and not isinstance(row[name], str):
                one[name] = json.dumps(_plain(row[name], wide=True), ensure_ascii=False)
        if numbered:
            one[NUMBER] = number
        made.append(one)
    return orjson.dumps(made).decode()


_AS_THEY_ARE = (str, bool, type(None))


def _plain(value: Any, *, wide: bool = False) -> Any:
    """What JSON cannot say, as the text that the database understands; `wide`: integers of any length stay numbers."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return value if wide or -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return "\\x" + bytes(value).hex()
    if isinstance(value, dict):
        return {str(key): one if type(one) in _AS_THEY_ARE else _plain(one, wide=wide) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, wide=wide) if type(one) not in _AS_THEY_ARE else one for one in value]
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    return value if value is None or isinstance(value, str) else str(value)


def bindable(target: Shape, row: Mapping[str, Any]) -> dict[str, Any]:
    """Values as the client of another database than PostgreSQL takes them."""
    return {name: one if type(one) in _BOUND else _bindable(target, name, one) for name, one in row.items()}


_BOUND = (str, int, float, bool, bytes, type(None))


def _bindable(target: Shape, name: str, value: Any) -> Any:
    if isinstance(value, dict | list | tuple):
        return json.dumps(_plain(value, wide=True), ensure_ascii=False)
    if isinstance(value, uuid.UUID):
        return value.hex if target.types[name].replace(" ", "") == "char(32)" else str(value)
    if target.dialect.name == "sqlite" and isinstance(value, Decimal | dt.date | dt.time):
        return str(value)
    return value


def _data(value: Any) -> Any:
    if not isinstance(value, str | bytes):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _first(rows: Sequence[dict[str, Any]], unique: Sequence[str]) -> list[dict[str, Any]]:
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in unique), row)
    return list(found.values())


def _given(target: Shape, name: str) -> str:
    """A column of the rows `r`, with the type of the table's. JSON is read by the database, from a text that cannot be more
    than one value."""
    return f"r.{target.quote(name)}" + (f"::{target.types[name]}" if target.is_json(name) else "")


def _comparable(target: Shape, name: str, column: str) -> str:
    return column if target.is_comparable(name) else f"({column})::text"


def misfit(dialect: str, *, is_json: bool) -> Callable[[Any], str] | None:
    """What says why a value cannot be in a column (empty: it can be), where a database would not say it of one row."""
    if dialect == "postgresql":
        return _no_json if is_json else None
    return _too_long if dialect == "sqlite" else None


def _no_json(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    with contextlib.suppress(ValueError):
        orjson.loads(value)
        return ""
    # it refuses halves of characters and deep nesting, too, which a json column holds
    return "" if is_json(value) else "not valid JSON"


def _too_long(value: Any) -> str:
    fits = not isinstance(value, int) or -(2**63) <= value < 2**63
    return "" if fits else "the number is longer than 64 bits"
