"""Makes rows out of a row: items, rules and values of a RowMap, in that order.

Nothing that is told of a row shows a value of it: messages name expressions, rules and classes of errors.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from runner.ciphers import Cipher, WrongKey, named
from runner.errors import Permanent
from runner.expressions import CannotBeComputed, Expression, Row, reason, unstorable
from runner.mapping import Encrypted, Identity, Otherwise, RowMap, Value

#: Says why a value cannot be in a column; empty: it can be.
Misfit = Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class Secret:
    """A value that is to be encrypted with the key of that name. None stays NULL."""

    plain: str | None = field(repr=False)
    key: str


@dataclass(frozen=True, slots=True)
class MadeRow:
    """A row for `into[into]` of the map: column -> value, or Secret."""

    into: int
    values: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why nothing was made of an item. `item`: which one; empty: the row as a whole, which has `items` of them."""

    message: str
    item: str
    otherwise: Otherwise
    items: int = 1


@dataclass(frozen=True, slots=True)
class Mapped:
    """What becomes of one row; what is ignored is among `problems`, too."""

    rows: list[MadeRow]
    problems: list[Problem]


@dataclass(frozen=True, slots=True)
class _Failure:
    """What `let` could not compute stands in the scope as this, so that it is tried once."""

    place: str
    why: str


class Mapper:
    """Applies a RowMap. Safe for use from several threads."""

    def __init__(
        self, rows: RowMap, ciphers: Mapping[str, Cipher], misfits: Mapping[tuple[int, str], Misfit] | None = None
    ) -> None:
        """`ciphers`: by the names of the spec's keys. `misfits`: of (number of `into`, column). Permanent when an expression
        cannot be read."""
        self._map, self._ciphers = rows, ciphers
        if problems := check_expressions(rows):
            raise Permanent("An expression cannot be read", "; ".join(problems), "Plan the job again")
        self._each = next(iter(rows.each), "")
        given = rows.each.get(self._each, ())
        self._list = Expression(f"each.{self._each}", given) if isinstance(given, str) else None
        self._fixed = () if isinstance(given, str) else tuple((_text(item), item) for item in given)
        self._lets = {name: Expression(f"let.{name}", text) for name, text in rows.let.items()}
        self._order = {name: tuple(_needed(name, self._lets)) for name in self._lets}
        self._of_row = {name for name in self._lets if self._needs(self._lets[name])[1]}
        self._rules = [
            (rule, *self._ready(Expression(f"rule {rule.message!r}", rule.rule)), number)
            for number, rule in enumerate(rows.rules)
        ]
        self._into = [
            [
                (column, self._fitting(f"{into.table}.{column}", value, (misfits or {}).get((number, column))))
                for column, value in into.values.items()
            ]
            for number, into in enumerate(rows.into)
        ]
        self.columns = columns_read(rows)

    def apply(self, row: Mapping[str, Any]) -> Mapped:
        """What becomes of a row: {column: value} with at least `columns`."""
        shared: dict[str, Any] = {"row": Row(row)}
        held: dict[int, bool] = {}
        made, problems = list[MadeRow](), list[Problem]()
        try:
            items = self._items(shared)
        except CannotBeComputed as exc:
            return Mapped([], [Problem(str(exc), "", self._map.malformed)])
        for name, item in items:
            scope = {**shared, self._each: item} if self._each else shared
            try:
                if (problem := self._broken(scope, shared, held, name)) is not None:
                    problems.append(problem)
                    continue
                made += [
                    MadeRow(number, {column: value(scope, shared) for column, value in values})
                    for number, values in enumerate(self._into)
                ]
            except CannotBeComputed as exc:
                problems.append(Problem(str(exc), name, self._map.malformed))
        if len(problems) == len(items) > 1 and len({(one.message, one.otherwise) for one in problems}) == 1:
            problems = [replace(problems[0], item="", items=len(items))]
        return Mapped(made, problems)

    def sealed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values with every Secret encrypted."""
        return {
            column: value if not isinstance(value, Secret)
            else None if value.plain is None else self._ciphers[value.key].encrypt(value.plain)
            for column, value in values.items()
        }  # fmt: skip

    def opened(self, secret: Secret, stored: Any) -> bool:
        """Whether what is stored is the secret, encrypted with its key."""
        if secret.plain is None or not isinstance(stored, str):
            return secret.plain is None and stored is None
        try:
            return self._ciphers[secret.key].decrypt(stored) == secret.plain
        except WrongKey:
            return False

    def _items(self, shared: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
        """(how it is called, value). Items out of the row are told by their number, because they may be anything."""
        if not self._each:
            return (("", None),)
        if self._list is None:
            return self._fixed
        needed, _ = self._needs(self._list)
        self._fill(needed, shared, shared)
        found = self._list.value(shared)
        if not isinstance(found, list | tuple | dict):
            raise CannotBeComputed(self._list.place, f"{type(found).__name__} is no list")
        return tuple((f"item {number}", item) for number, item in enumerate(found, 1))

    def _broken(
        self, scope: dict[str, Any], shared: dict[str, Any], held: dict[int, bool], item: str
    ) -> Problem | None:
        """The first rule that does not hold. What depends on the row alone is asked once for it."""
        for rule, expression, needed, of_row, number in self._rules:
            holds = held.get(number)
            if holds is None:
                self._fill(needed, scope, shared)
                holds = expression.true(scope)
                if of_row:
                    held[number] = holds
            if not holds:
                return Problem(rule.message, item, rule.otherwise)
        return None

    def _needs(self, expression: Expression) -> tuple[tuple[str, ...], bool]:
        """(names of `let` that have to be computed for it, in order; whether it depends on the row alone)."""
        found = dict.fromkeys(one for name in sorted(expression.names & {*self._lets}) for one in self._order[name])
        read = expression.names.union(*(self._lets[name].names for name in found))
        return tuple(found), self._each not in read

    def _ready(self, expression: Expression) -> tuple[Expression, tuple[str, ...], bool]:
        return expression, *self._needs(expression)

    def _fill(self, needed: Iterable[str], scope: dict[str, Any], shared: dict[str, Any]) -> None:
        """Compute what is not in the scope yet. CannotBeComputed."""
        for name in needed:
            if name not in scope:
                expression = self._lets[name]
                try:
                    scope[name] = expression.value(scope)
                except CannotBeComputed as exc:
                    scope[name] = _Failure(expression.place, exc.why)
                if name in self._of_row:
                    shared[name] = scope[name]
            if isinstance(value := scope[name], _Failure):
                raise CannotBeComputed(value.place, value.why)

    def _fitting(
        self, place: str, value: Value, misfit: Misfit | None
    ) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
        """The same as `_value`; what does not fit into the column cannot be computed."""
        made = self._value(place, value)
        if misfit is None:
            return made

        def fitting(scope: dict[str, Any], shared: dict[str, Any]) -> Any:
            found = made(scope, shared)
            if why := misfit(found):
                raise CannotBeComputed(place, why)
            return found

        return fitting

    def _value(self, place: str, value: Value) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
        """A function of the scope of an item, and of the row, that gives the value of a column. It raises CannotBeComputed."""
        if isinstance(value, Encrypted):
            plain, key = self._settled(place, value.encrypt), value.key
            self._cipher(key)
            return lambda scope, shared: Secret(_text_of(place, plain(scope, shared)), key)
        if isinstance(value, Identity):
            parts = [self._settled(place, part) for part in value.uuid_from]
            name = self._cipher(value.key).named if value.key is not None else named
            known = (
                f"{value.uuid_from} {value.key}"  # no name of an expression; what refers to a row has its id once more
            )

            def identity(scope: dict[str, Any], shared: dict[str, Any]) -> Any:
                if known not in scope:
                    scope[known] = _named(place, name, [part(scope, shared) for part in parts])
                return scope[known]

            return identity
        return self._settled(place, value)

    def _settled(self, place: str, text: str) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
        expression, needed, _ = self._ready(Expression(place, text))
        if not needed:
            return lambda scope, _shared: expression.settled(scope)

        def settled(scope: dict[str, Any], shared: dict[str, Any]) -> Any:
            self._fill(needed, scope, shared)
            return expression.settled(scope)

        return settled

    def _cipher(self, key: str) -> Cipher:
        if key not in self._ciphers:
            raise Permanent("No such key", f"the spec has no key {key}", "Plan the job again")
        return self._ciphers[key]


def check_expressions(rows: RowMap) -> list[str]:
    """What is wrong with the expressions of a map, each with its place: syntax, unknown names, circles, columns that its
    values do not have."""
    found, lets = list[str](), dict[str, Expression]()
    names = {"row", *rows.each, *rows.let}
    if both := sorted({*rows.each} & {*rows.let}):
        found.append(f"let.{both[0]}: that is the name of each")
    for place, text, known in _texts(rows, names):
        try:
            expression = Expression(place, text)
        except ValueError as exc:
            found.append(str(exc))
            continue
        if place.startswith("let."):
            lets[place.removeprefix("let.")] = expression
        if unknown := sorted(expression.names - known):
            found.append(f"{place}: no such name: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    for name in lets:
        path = [*_circle(name, lets)]
        if path:
            found.append(f"let.{name}: it is computed from itself: {' → '.join(path)}")
    for number, into in enumerate(rows.into):
        if unknown := sorted({*into.key} - {*into.values}):
            found.append(f"into.{number}.key: no such columns among its values: {', '.join(unknown)}")
    return found


def _texts(rows: RowMap, names: set[str]) -> Iterator[tuple[str, str, set[str]]]:
    """(place, expression, names that it may use)"""
    for name, given in rows.each.items():
        if isinstance(given, str):
            yield f"each.{name}", given, names - {name}
    yield from ((f"let.{name}", text, names) for name, text in rows.let.items())
    yield from ((f"rules.{number}.rule", rule.rule, names) for number, rule in enumerate(rows.rules))
    for number, into in enumerate(rows.into):
        for column, value in into.values.items():
            place = f"into.{number}.values.{column}"
            if isinstance(value, Encrypted):
                yield f"{place}.encrypt", value.encrypt, names
            elif isinstance(value, Identity):
                yield from ((f"{place}.uuid_from.{at}", part, names) for at, part in enumerate(value.uuid_from))
            else:
                yield place, value, names


def columns_read(rows: RowMap) -> tuple[str, ...] | None:
    """Columns that the expressions of a map read, in alphabetical order; None: that depends on data."""
    found = set[str]()
    for place, text, _ in _texts(rows, set()):
        columns = Expression(place, text).columns
        if columns is None:
            return None
        found |= columns
    return tuple(sorted(found))


def _needed(name: str, lets: Mapping[str, Expression]) -> Iterator[str]:
    """What `name` is computed from, first things first, and `name`."""
    for other in sorted(lets[name].names & {*lets}):
        yield from _needed(other, lets)
    yield name


def _circle(name: str, lets: Mapping[str, Expression]) -> Sequence[str]:
    """How a name is computed from itself; empty if it is not."""
    waiting: list[tuple[str, ...]] = [(name,)]
    seen = set[str]()
    while waiting:
        path = waiting.pop()
        for other in sorted(lets[path[-1]].names & {*lets}):
            if other == name:
                return *path, other
            if other not in seen:
                seen.add(other)
                waiting.append((*path, other))
    return ()


def _text(item: Any) -> str:
    return "null" if item is None else str(item)


def _text_of(place: str, value: Any) -> str | None:
    """A value that can be encrypted. CannotBeComputed."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise CannotBeComputed(place, f"{type(value).__name__} is no text, and only text is encrypted")
    if why := unstorable(value):
        raise CannotBeComputed(place, why)
    return value


def _named(place: str, name: Callable[[Sequence[Any]], uuid.UUID], parts: list[Any]) -> uuid.UUID:
    try:
        return name(parts)
    except (ValueError, TypeError) as exc:
        why = reason(exc)
    raise CannotBeComputed(place, why)
