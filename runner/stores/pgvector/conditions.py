"""Conditions as SQL that is true of every row they hold for. NULL counts as false, and other rows may pass as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from runner.conditions import Condition, Need, needs
from runner.points import canonical_uuid
from runner.stores.pgvector.table import Column, Table, literal, quoted

#: Characters of a number up to which float8 is sure to take it.
_LONGEST_NUMBER = 300
_INTEGERS = ("int2", "int4", "int8")

#: Takes a value for the statement and gives the name of its parameter.
Bind = Callable[[Any], str]


def where_sql(table: Table, where: Sequence[Condition], values: list[Any]) -> str:
    """` AND …` for row t, as far as the conditions can be told in SQL; their values are added to `values`."""

    def bind(value: Any) -> str:
        values.append(value)
        return f"${len(values)}"

    found = []
    for item in needs(where):
        kept = len(values)
        terms = [_path(table, item, path, bind) for path in item.paths]
        if None in terms:  # one of its places cannot be asked
            del values[kept:]
        else:
            found.append(f" AND ({' OR '.join(filter(None, terms))})")
    return "".join(found)


def _path(table: Table, item: Need, path: tuple[str, ...], bind: Bind) -> str | None:
    """Whether a value under `path` is as needed. None: cannot be told."""
    column = next((field for field in table.fields if field.name == path[0]), None)
    if column is None:
        if table.root is None:
            return "false"
        return _json(f"t.{quoted(table.root)}", path, item, bind) if table.root_base == "jsonb" else None
    if len(path) == 1:
        return _column(column, item, bind)
    return _json(f"t.{quoted(column.name)}", path[1:], item, bind) if column.base == "jsonb" else None


def _json(root: str, path: tuple[str, ...], item: Need, bind: Bind) -> str:
    """The same expressions as `build_payload_index` makes, so that its indexes are used."""
    *steps, last = map(literal, path)
    inner = " -> ".join([root, *steps])
    value, text = f"({inner} -> {last})", f"({inner} ->> {last})"
    kind, array = f"jsonb_typeof({value})", f"jsonb_typeof({value}) = 'array'"
    terms = []
    if item.texts or item.flags:
        names = bind([*item.texts, *(str(flag).lower() for flag in item.flags)])
        terms.append(f"{text} = ANY({names}::text[])")
    if item.texts and not (item.flags or item.spans):
        terms.append(f"{array} AND {value} ?| {bind(list(item.texts))}::text[]")
    else:
        terms.append(array)
    if item.spans:
        # CASE, because only then is a value that is no number, or too large a one, never cast
        within = _within(f"{text}::float8", item, bind)
        long = f"length({text}) > {_LONGEST_NUMBER}"
        terms.append(f"CASE WHEN {kind} = 'number' THEN CASE WHEN {long} THEN true ELSE {within} END END")
    if item.letters:
        terms.append(f"{kind} = 'string' AND {_between(text, item.letters, bind)}")
    return f"({' OR '.join(terms)})"


def _within(value: str, item: Need, bind: Bind) -> str:
    points = [low for low, high in item.spans if low == high]
    terms = [f"{value} = ANY({bind(points)}::float8[])"] if points else []
    for low, high in item.spans:
        if low != high:
            terms.append(f"{value} BETWEEN {bind(low)}::float8 AND {bind(high)}::float8")
    return f"({' OR '.join(terms)})"


def _between(text: str, letters: tuple[str, str | None], bind: Bind) -> str:
    """By code point, which is the order of bytes in a database of UTF-8; in another one every text passes."""
    low, high = letters
    term = f'{text} COLLATE "C" >= {bind(low)}::text'
    if high is not None:
        term += f' AND {text} COLLATE "C" <= {bind(high)}::text'
    return f"(getdatabaseencoding() <> 'UTF8' OR ({term}))"


def _column(column: Column, item: Need, bind: Bind) -> str | None:
    """A column gives values of one type only, so what is asked of other types is never found in it."""
    value = f"t.{quoted(column.name)}"
    if column.base in ("text", "varchar"):
        terms = [f"{value} = ANY({bind(list(item.texts))}::text[])"] if item.texts else []
        terms += [_between(value, item.letters, bind)] if item.letters else []
        return f"({' OR '.join(terms or ['false'])})"
    if column.base in _INTEGERS and (numbers := item.numbers) is not None:
        whole = [int(number) for number in numbers if number == int(number)]
        return f"{value} = ANY({bind(whole)}::bigint[])"
    if column.base in (*_INTEGERS, "float8") and not (item.texts or item.letters):  # float8 has 'NaN' as a text
        return _within(f"{value}::float8", item, bind) if item.spans else "false"
    if column.base == "uuid" and not item.letters:
        return f"{value} = ANY({bind([text for text in item.texts if canonical_uuid(text)])}::text[]::uuid[])"
    if column.base == "_text" and not item.letters:
        return f"{value} && {bind(list(item.texts))}::text[]"
    return None
