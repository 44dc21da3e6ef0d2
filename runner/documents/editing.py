"""Changing metadata and tags in the rows of documents and of their chunks, after the rows were saved as they were."""

# Names in SQL are quoted by columns.quoted(); values are always parameters.
# ruff: noqa: S608

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runner.documents.columns import Column, batches, plain, run
from runner.documents.database import Database
from runner.documents.reading import as_json
from runner.documents.undo import DID, Side, prepare, sides
from runner.edit import Edit
from runner.errors import Permanent
from runner.plan.batch import DocumentRows, UndoTables
from runner.points import PointId


class _Decimal(float):
    """A number of a JSON text that is written again as it stood there: 1.10 stays 1.10."""

    text: str

    def __deepcopy__(self, _memo: Any) -> _Decimal:
        return self


_Decimal.__name__ = "float"  # as errors call it


def _decimal(text: str) -> _Decimal:
    number = _Decimal(text)
    number.text = text
    return number


def loads(text: str) -> Any:
    """The value of a JSON text. ValueError."""
    return json.loads(text, parse_float=_decimal)


def dumps(value: Any) -> str:
    """The JSON text of a value, numbers as `loads` found them."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {dumps(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(dumps(item) for item in value) + "]"
    return value.text if isinstance(value, _Decimal) else json.dumps(value)


@dataclass
class _New:
    """A row and the JSON texts it is to have."""

    document: PointId
    key: Any
    values: dict[str, str]


def edit(
    database: Database, rows: DocumentRows, undo: UndoTables, ids: Sequence[PointId], edit: Edit
) -> dict[str, bool]:
    """Change metadata and tags of the documents and of their chunk rows, where there are such columns; whole old rows are
    saved in the same transaction. str(id) -> whether the run has changed anything there. Permanent, and nothing changed,
    where the edit is not possible: its detail names the document.

    A row that is saved was edited before, and what somebody has made of it since stays.
    """
    prepare(database, rows, undo)
    done = {str(one): False for one in ids}
    with database.transaction() as connection:
        both = sides(database, connection, rows, undo)
        for some in batches(ids):
            both.lock(some)
            both.anew(some)
            for side in both.both:
                roles = {
                    role: column
                    for role, column in side.roles.items()
                    if (role == "metadata" and edit.on_metadata) or (role == "tags" and edit.on_tags)
                }
                if not roles:
                    continue
                new = _computed(side, roles, some, edit)
                _save_and_write(side, roles, new)
                find = side.table.finder(side.document, some)
                told = side.table.told(side.document, "u")
                query = f"SELECT DISTINCT {told} FROM {side.undo} AS u WHERE {side.of_documents('u')} AND u.{DID} = 'changed'"
                for row in run(connection, query, documents=side.table.ids(side.document, some)):
                    if (one := find(row[0])) is not None:
                        done[str(one)] = True
    return done


def _computed(side: Side, roles: dict[str, Column], ids: Sequence[PointId], edit: Edit) -> list[_New]:
    """Rows that are not saved yet and that the edit changes."""
    table, new = side.table, []
    wanted = [table.told(side.document), table.told(side.key), *(as_json(table, column) for column in roles.values())]
    query = (
        f"SELECT {', '.join(wanted)} FROM {table.sql} AS t WHERE {side.of_documents()}{side.within} AND NOT EXISTS "
        f"(SELECT 1 FROM {side.undo} AS u WHERE {side.same}){table.lock}"
    )
    for document, key, *texts in run(table.connection, query, **side.documents(ids)):
        values = {}
        for (role, column), text in zip(roles.items(), texts, strict=True):
            place = f"{table.name}.{column.name} of document {document}"
            before = present(role, text, place)
            try:
                after = edit.metadata(before) if role == "metadata" else edit.tags(before)
            except ValueError as exc:
                raise Permanent("The edit is not possible", f"{place}: {exc}") from exc
            if (text := dumps(after)) != dumps(before):
                values[role] = text
        if values:
            new.append(_New(plain(document, table.name), key, values))
    return new


def present(role: str, text: Any, place: str) -> Any:
    """The object (metadata) or list (tags) that a column holds; an empty one for NULL. Permanent names the place."""
    kind: type[Any] = dict if role == "metadata" else list
    if text is None or (isinstance(text, str) and not text.strip()):
        return kind()
    try:
        value = loads(text) if isinstance(text, str) else text
    except ValueError as exc:
        raise Permanent(f"The {role} are no JSON", f"{place}: {exc}") from exc
    if value is None:
        return kind()
    if not isinstance(value, kind) or (role == "tags" and any(isinstance(one, list | dict) for one in value)):
        raise Permanent(f"The {role} are no {'object' if kind is dict else 'list of texts'}", f"{place} is {text!r}")
    return value


def _save_and_write(side: Side, roles: dict[str, Column], new: list[_New]) -> None:
    table, connection = side.table, side.table.connection
    for names in {tuple(one.values) for one in new}:
        # only columns whose value changes are named: no other one is written
        group = [one for one in new if tuple(one.values) == names]
        columns = [roles[name] for name in names]
        for some in batches(group):
            keys = table.ids(side.key, [one.key for one in some])
            chosen = table.among(side.key, "keys")
            run(connection, side.save("changed", chosen), keys=keys)
            write(side, columns, [(one.key, [one.values[name] for name in names]) for one in some])
            told = ", ".join(
                f"vecrun_{name} = {table.text(column)}" for name, column in zip(names, columns, strict=True)
            )
            run(
                connection,
                f"UPDATE {side.undo} AS u SET {told} FROM {table.sql} AS t "
                f"WHERE t.{side.key.sql} = u.{side.key.sql} AND {chosen}",
                keys=keys,
            )


def write(side: Side, columns: list[Column], rows: list[tuple[Any, list[str | None]]]) -> None:
    """Give JSON texts to columns: (key, a text for each column)."""
    table = side.table
    if not table.postgresql:
        given = ", ".join(f"{column.sql} = :value{number}" for number, column in enumerate(columns))
        each = [{"key": key} | {f"value{n}": text for n, text in enumerate(texts)} for key, texts in rows]
        run(table.connection, f"UPDATE {table.sql} SET {given} WHERE {side.key.sql} = :key", each)
        return
    # one statement for all rows
    given = ", ".join(f"{column.sql} = {_cast(column, f'v.value{n}')}" for n, column in enumerate(columns))
    arrays = "".join(f", CAST(:value{n} AS text[])" for n in range(len(columns)))
    names = "".join(f", value{n}" for n in range(len(columns)))
    values: dict[str, Any] = {f"value{n}": [texts[n] for _, texts in rows] for n in range(len(columns))}
    key = f"CAST(v.id AS {'bigint' if side.key.kind == 'int' else side.key.type})"
    run(
        table.connection,
        f"UPDATE {table.sql} AS t SET {given} FROM unnest(CAST(:ids AS text[]){arrays}) AS v(id{names}) "
        f"WHERE t.{side.key.sql} = {key}",
        ids=[str(key) for key, _ in rows],
        **values,
    )


def _cast(column: Column, value: str) -> str:
    if column.kind == "array":
        listed = f"json_array_elements_text(CAST({value} AS json)) WITH ORDINALITY AS e(one, n)"
        return f"CASE WHEN {value} IS NULL THEN NULL ELSE CAST(ARRAY(SELECT e.one FROM {listed} ORDER BY e.n) AS {column.type}) END"
    return f"CAST({value} AS {column.type})"
