"""Expressions over a row, in Jinja2's sandbox: what they read, and what they give.

They see the columns of the row and the names they are given, nothing else: no clock, no chance, no environment. Of PostgreSQL
they see truth values, numbers, text and bytes as such, and every other type (JSON, times, intervals, arrays) as its text. What
can go wrong is told as a place and the kind of an error, because the text of an error may repeat values.
"""

from __future__ import annotations

import datetime as dt
import decimal
import json
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

_RESULT = "vecrun_result"
_HALF = re.compile("[\ud800-\udfff]")
#: Types that are given on as they are.
_SCALARS = frozenset(
    {
        int, float, bool, type(None), bytes, uuid.UUID, decimal.Decimal, dt.date, dt.datetime,
        dt.time, dt.timedelta,
    }
)  # fmt: skip


class CannotBeComputed(Exception):
    """Says which expression, and why, without a value."""

    def __init__(self, place: str, why: str) -> None:
        super().__init__(f"{place} cannot be computed ({why})")
        self.place, self.why = place, why


class NoSuchColumn(Exception):
    """The row has no column of that name."""


def reason(exc: Exception) -> str:
    """Why something cannot be computed, without the text of the error."""
    return next((words for kind, words in _REASONS if isinstance(exc, kind)), type(exc).__name__)


class Row:
    """What `row` is: its columns and nothing else, whatever they are called."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def column(self, name: Any) -> Any:
        """The value of a column. NoSuchColumn."""
        try:
            return self._values[name]
        except (KeyError, TypeError):
            raise NoSuchColumn from None


class _Sandbox(ImmutableSandboxedEnvironment):
    """A key of a mapping comes before a method of the same name; what was read from a row cannot be changed."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Row):
            return obj.column(attribute)
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return obj.column(argument) if isinstance(obj, Row) else super().getitem(obj, argument)


class _Scope(Context):
    """A context that is made for every value, and so without what expressions do not need."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.parent, self.vars, self.exported_vars = names, {}, set()
        self.environment, self.eval_ctx, self.name, self.globals_keys, self.blocks = (
            _sandbox,
            _evaluation,
            None,
            set(),
            {},
        )


def _no_number(_text: str) -> Any:
    raise json.JSONDecodeError("no JSON", "", 0)  # NaN and Infinity


_decoder = json.JSONDecoder(parse_constant=_no_number)


def parsed(value: Any) -> Any:
    """Filter `json`: the data that a text of JSON stands for; what is no text stays as it is."""
    if isinstance(value, bytes):
        value = value.decode()
    return _decoder.decode(value) if isinstance(value, str) else value


def is_json(value: Any) -> bool:
    """Test `json`: whether the filter can read it."""
    try:
        return not isinstance(parsed(value), Undefined)
    except (ValueError, RecursionError):
        return False


_sandbox = _Sandbox()
_evaluation = nodes.EvalContext(_sandbox)
_sandbox.globals.clear()
del _sandbox.filters["random"]
_sandbox.filters["json"] = parsed
_sandbox.tests["json"] = is_json


class Expression:
    """One expression. `names`: what it is computed from; `columns` of the row that it reads, None where that depends on data.

    ValueError says what is wrong with the text.
    """

    def __init__(self, place: str, text: str) -> None:
        self.place = place
        try:
            parser = Parser(_sandbox, text, state="variable")
            node = parser.parse_expression()
            if not parser.stream.eos:
                raise ValueError(f"{place}: one expression, and something stands behind it: {text}")
            node.set_environment(_sandbox)
            assign = nodes.Assign(nodes.Name(_RESULT, "store"), node, lineno=1)
            template = nodes.Template([assign], lineno=1)
            template.set_environment(_sandbox)
            self.names = frozenset(meta.find_undeclared_variables(template))
            self.columns = _columns(node, place)
            self._compute = _path(node) or _compiled(template)
        except jinja2.TemplateSyntaxError as exc:
            raise ValueError(f"{place}: {exc.message}: {text}") from None
        #: whether it is the bare value of a column
        self.plain = (
            isinstance(node, nodes.Getattr | nodes.Getitem)
            and isinstance(node.node, nodes.Name)
            and node.node.name == "row"
            and (isinstance(node, nodes.Getattr) or isinstance(node.arg, nodes.Const))
        )

    def value(self, scope: dict[str, Any]) -> Any:
        """What it gives, Undefined as well. CannotBeComputed."""
        try:
            return self._compute(scope)
        except Exception as exc:
            why = reason(exc)
        raise CannotBeComputed(self.place, why)  # outside of the handler: the other error may hold values

    def true(self, scope: dict[str, Any]) -> bool:
        """Whether what it gives counts as true. CannotBeComputed."""
        try:
            return bool(self._compute(scope))
        except Exception as exc:
            why = reason(exc)
        raise CannotBeComputed(self.place, why)

    def settled(self, scope: dict[str, Any]) -> Any:
        """What it gives, as a database takes it: a scalar, a list or a dict. CannotBeComputed."""
        value = self.value(scope)
        return value if self.plain else self._settled(value)

    def _settled(self, value: Any) -> Any:
        if type(value) is str:
            if why := unstorable(value):
                raise CannotBeComputed(self.place, why)
            return value
        if type(value) in _SCALARS:
            return value
        if isinstance(value, Undefined):
            raise CannotBeComputed(self.place, "there is no such value")
        if isinstance(value, str):  # what Jinja2 calls Markup
            return self._settled(str(value))
        if isinstance(value, list | tuple):
            return [self._settled(one) for one in value]
        if isinstance(value, dict):
            return {self._settled(key): self._settled(one) for key, one in value.items()}
        raise CannotBeComputed(self.place, f"{type(value).__name__} is no value of a column")


#: The first that fits.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (NoSuchColumn, "the row has no such column"),
    (json.JSONDecodeError, "not valid JSON"),
    (UndefinedError, "a name or key that it needs is not there"),
    (SecurityError, "expressions may not use that"),
    (ZeroDivisionError, "a division by zero"),
    (RecursionError, "it is nested too deeply"),
    (UnicodeError, "bytes that are no text"),
    (TypeError, "a value is of another type than it needs"),
    (ValueError, "a value is not what it needs"),
)


def unstorable(text: str) -> str:
    """Why a text, which JSON can hold, cannot be stored; empty if it can."""
    if "\0" in text:
        return "it has the character NUL"
    return "it has half of a character" if not text.isascii() and _HALF.search(text) else ""


def _columns(node: nodes.Expr, place: str) -> frozenset[str] | None:
    """Columns that are read. ValueError where `row` stands alone."""
    whole = nodes.Tuple([node], "load")  # find_all leaves out the node itself
    rows = [one for one in whole.find_all(nodes.Name) if one.name == "row"]
    reads: list[nodes.Getattr | nodes.Getitem] = [*whole.find_all(nodes.Getattr), *whole.find_all(nodes.Getitem)]
    reads = [one for one in reads if isinstance(one.node, nodes.Name) and one.node.name == "row"]
    if len(rows) > len(reads):
        raise ValueError(f"{place}: row stands alone; name a column of it, such as row.id")
    found = set[str]()
    for one in reads:
        name = one.attr if isinstance(one, nodes.Getattr) else getattr(one.arg, "value", None)
        if not isinstance(name, str):
            return None
        found.add(name)
    return frozenset(found)


def _path(node: nodes.Expr) -> Callable[[dict[str, Any]], Any] | None:
    """The forms that are asked for again and again, without Jinja2's machinery: names, `.key`, `[key]`,
    `| json`, `| default(…)`, `is json`."""
    if isinstance(node, nodes.Name):
        name = node.name
        return lambda scope: scope[name]
    if isinstance(node, nodes.Const):
        constant = node.value
        return lambda _scope: constant
    below: nodes.Expr | None = getattr(node, "node", None)
    inner = _path(below) if below is not None else None
    if inner is None:
        return None
    if isinstance(node, nodes.Getattr):
        attribute = node.attr
        if isinstance(below, nodes.Name) and below.name == "row":
            return lambda scope: scope["row"].column(attribute)
        return lambda scope: _sandbox.getattr(inner(scope), attribute)
    if isinstance(node, nodes.Getitem):
        key = _path(node.arg)
        return None if key is None else lambda scope: _sandbox.getitem(inner(scope), key(scope))
    if isinstance(node, nodes.Filter | nodes.Test) and node.name == "json" and not node.args and not node.kwargs:
        function: Callable[[Any], Any] = parsed if isinstance(node, nodes.Filter) else is_json
        return lambda scope: function(inner(scope))
    if isinstance(node, nodes.Filter) and node.name == "default" and len(node.args) == 1 and not node.kwargs:
        instead = _path(node.args[0])
        return None if instead is None else lambda scope: _or_else(inner(scope), instead, scope)
    return None


def _or_else(value: Any, instead: Callable[[dict[str, Any]], Any], scope: dict[str, Any]) -> Any:
    return instead(scope) if isinstance(value, Undefined) else value


def _compiled(template: nodes.Template) -> Callable[[dict[str, Any]], Any]:
    # as jinja2.Environment.compile_expression does it, without its rewriting of tracebacks, which takes a hundred times as long
    made = jinja2.Template.from_code(_sandbox, _sandbox.compile(template), {}, None)
    render = made.root_render_func

    def compute(scope: dict[str, Any]) -> Any:
        context = _Scope(scope)
        for _ in render(context):
            pass
        return context.vars[_RESULT]

    return compute
