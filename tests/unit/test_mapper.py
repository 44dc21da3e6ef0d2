"""Rows made of rows (E1, E4): expressions, the order of rules, and that nothing told of a row shows a value of it."""

from __future__ import annotations

import json
import math
import re
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Undefined
from pydantic import ValidationError

from runner.ciphers import Cipher
from runner.errors import Permanent
from runner.expressions import Expression, Row, _compiled, _path, _sandbox
from runner.mapper import Mapped, Mapper, Secret, check_expressions
from runner.mapping import RowMap

CIPHER = Cipher("k", "aes-256-gcm", "k" * 32)
SECRET = "sk-not-to-be-shown"


def mapped(row: dict[str, Any], *, values: dict[str, Any] | None = None, **rows: Any) -> Mapped:
    """What becomes of a row."""
    return mapper(values=values, **rows).apply(row)


def mapper(*, values: dict[str, Any] | None = None, **rows: Any) -> Mapper:
    return Mapper(model(values=values, **rows), {"k": CIPHER})


def model(*, values: dict[str, Any] | None = None, **rows: Any) -> RowMap:
    into = rows.pop("into", [{"table": "t", "values": values or {"id": "row.id"}}])
    return RowMap.model_validate({"from": "s", "into": into, **rows})


def value(expression: str, **row: Any) -> Any:
    """What an expression gives; the text of the problem if it gives nothing."""
    found = mapped(row, values={"x": expression})
    return found.rows[0].values["x"] if found.rows else found.problems[0].message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(data=JSON)
def test_data_comes_through_as_it_is(data: Any) -> None:
    text = json.dumps(data)
    assert value("row.x", x=text) == text
    found = value("row.x | json", x=text)
    assert found == data or re.search(r"\\u(0000|d[89a-f])", text)
    assert value("row.x is json", x=text) is True
    assert value("row.x | json | json", x=json.dumps(text)) == found


@given(names=st.lists(st.text(), max_size=5, unique=True), key=st.text(), data=JSON)
def test_a_path_gives_what_jinja_gives(names: list[str], key: str, data: Any) -> None:
    """The short way and Jinja2's own are one language."""
    scope = {"row": Row({"x": {**dict.fromkeys(names, data), "deep": {"items": data}}, "k": key}), "item": key}
    for text in (
        "row.x",
        "row['x']",
        "row.x[item]",
        "row.x[row.k]",
        "row.x.deep.items",
        "row.x.none | default(item)",
        "3",
    ):
        short, node = Expression("e", text), _sandbox.parse("{{ " + text + " }}").body[0].nodes[0]  # type: ignore[attr-defined]
        assert _path(node) is not None, text
        assign = _sandbox.parse("{% set vecrun_result = " + text + " %}")
        expected = _compiled(assign)(scope)
        found = short.value(scope)
        assert isinstance(found, Undefined) if isinstance(expected, Undefined) else found == expected, text


@pytest.mark.parametrize(
    ("text", "row", "expected"),
    [
        ("row.items", {"items": 1}, 1),
        ("row.keys", {"keys": "k"}, "k"),
        ("row['two words']", {"two words": 2}, 2),
        ("(row.x | json).items", {"x": '{"items": 3}'}, 3),
        ("(row.x | json).none | default('other')", {"x": "{}"}, "other"),
        ("row.x | json", {"x": None}, None),
        ("row.x | json", {"x": {"a": [1]}}, {"a": [1]}),
        ("row.x is json", {"x": "{"}, False),
        ("row.x is json", {"x": '{"a": NaN}'}, False),
        ("row.x is json", {"x": "[" * 100_000}, False),
        ("row.x ~ '-' ~ row.y", {"x": 1, "y": None}, "1-None"),
        ("'a' if row.x else none", {"x": 0}, None),
        ("[row.x, {'a': row.x}]", {"x": 1}, [1, {"a": 1}]),
        ("row.x | lower", {"x": "ÄB"}, "äb"),
        ("row.x | tojson", {"x": [1]}, "[1]"),
        ("row.x", {"x": uuid.UUID(int=1)}, uuid.UUID(int=1)),
        ("row.x | float", {"x": "1.5"}, 1.5),
    ],
)
def test_expressions(text: str, row: dict[str, Any], expected: Any) -> None:
    found = value(text, **row)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("row.x | json", "not valid JSON"),
        ("row.x | int / 0", "a division by zero"),
        ("row.x.y.z", "a name or key that it needs is not there"),
        ("row.x.y", "there is no such value"),
        ("[row.x.y]", "there is no such value"),
        ("row.other", "the row has no such column"),
        ("row.x.__class__", "there is no such value"),
        ("row.x.__class__.__mro__", "expressions may not use that"),
        ("row['_values']", "the row has no such column"),
        ("row.x.upper", "builtin_function_or_method is no value of a column"),
        ("row.x | map('upper')", "generator is no value of a column"),
        ("(row.x | list).append(1)", "expressions may not use that"),
        (r"row.x ~ '\ud800'", "it has half of a character"),
        (r"[row.x, {'a': '\0'}]", "it has the character NUL"),
    ],
)
def test_what_cannot_be_computed_is_told_without_the_value(text: str, why: str) -> None:
    found = mapped({"x": SECRET}, values={"x": text}, malformed="skip")
    assert [(one.message, one.item, one.otherwise) for one in found.problems] == [
        (f"t.x cannot be computed ({why})", "", "skip")
    ]
    assert not found.rows
    assert SECRET not in repr(found)


def test_problems_name_the_place_where_they_are() -> None:
    rules = [{"rule": "setting", "message": "nothing is set"}]
    found = mapped({"x": "{" + SECRET}, let={"config": "row.x | json", "setting": "config.a"}, rules=rules)
    assert [one.message for one in found.problems] == ["let.config cannot be computed (not valid JSON)"]
    found = mapped({"id": 1, "x": SECRET}, rules=[{"rule": "row.x + 1", "message": "no number"}])
    assert [one.message for one in found.problems] == [
        "rule 'no number' cannot be computed (a value is of another type than it needs)"
    ]
    assert SECRET not in repr(found)


@given(holds=st.lists(st.tuples(st.booleans(), st.sampled_from(["fail", "skip", "ignore"])), max_size=6))
def test_the_first_rule_that_does_not_hold_decides(holds: list[tuple[bool, str]]) -> None:
    rules = [
        {"rule": f"row.r{number}", "message": f"rule {number}", "otherwise": otherwise}
        for number, (_, otherwise) in enumerate(holds)
    ]
    found = mapped({"id": 1} | {f"r{number}": one for number, (one, _) in enumerate(holds)}, rules=rules)
    broken = [(f"rule {number}", holds[number][1]) for number, (one, _) in enumerate(holds) if not one]
    assert [(one.message, one.otherwise) for one in found.problems] == broken[:1]
    assert len(found.rows) == (not broken)


def test_let_is_computed_only_when_it_is_needed() -> None:
    rules = [
        {"rule": "row.x is json", "message": "no JSON", "otherwise": "skip"},
        {"rule": "broken", "message": "never"},
    ]
    found = mapped({"id": 1, "x": "{"}, let={"broken": "(row.x | json).a"}, rules=rules)
    assert [one.message for one in found.problems] == ["no JSON"]
    assert mapped({"id": 1}, let={"idle": "row.none"}).rows


def test_items_one_by_one_and_what_they_share_once() -> None:
    rows = {
        "each": {"type": ["llm", "vlm", "embedding"]},
        "let": {"setting": "(row.x | json)[type]"},
        "rules": [
            {"rule": "row.x is json", "message": "no JSON", "otherwise": "skip"},
            {"rule": "setting", "message": "not set", "otherwise": "ignore"},
            {"rule": "setting.key", "message": "no key"},
        ],
        "values": {"id": "row.id", "type": "type", "key": {"encrypt": "setting.key", "key": "k"}},
    }
    text = json.dumps({"llm": {"key": SECRET}, "vlm": {"key": ""}})
    found = mapped({"id": 1, "x": text}, **rows)
    assert [one.values for one in found.rows] == [{"id": 1, "type": "llm", "key": Secret(SECRET, "k")}]
    assert [(one.message, one.item, one.otherwise) for one in found.problems] == [
        ("no key", "vlm", "fail"), ("not set", "embedding", "ignore")
    ]  # fmt: skip
    assert SECRET not in repr(found)
    found = mapped({"id": 1, "x": "{"}, **rows)
    assert [(one.message, one.item, one.items) for one in found.problems] == [("no JSON", "", 3)]


def test_items_out_of_the_row_are_told_by_number() -> None:
    """They may be anything, and so they are not shown."""
    rows = {
        "each": {"one": "row.x | json"},
        "values": {"id": "one.id"},
        "rules": [{"rule": "one.ok", "message": "bad"}],
    }
    text = json.dumps([{"id": 1, "ok": 1}, {"id": SECRET}])
    found = mapped({"x": text}, **rows)
    assert [one.values for one in found.rows] == [{"id": 1}]
    assert [(one.message, one.item) for one in found.problems] == [("bad", "item 2")]
    assert [
        one.values["k"] for one in mapped({"x": {"a": 1, "b": 2}}, each={"k": "row.x"}, values={"k": "k"}).rows
    ] == ["a", "b"]
    assert mapped({"x": SECRET}, **rows).problems[0].message == "each.one cannot be computed (not valid JSON)"
    assert mapped({"x": SECRET}, **{**rows, "each": {"one": "row.x"}}).problems[0].message == (
        "each.one cannot be computed (str is no list)"
    )


def test_secrets_are_sealed_and_opened() -> None:
    made = mapper(
        values={"id": "row.id", "key": {"encrypt": "row.x", "key": "k"}, "none": {"encrypt": "row.y", "key": "k"}}
    )
    found = made.apply({"id": 1, "x": SECRET, "y": None})
    values = found.rows[0].values
    assert SECRET not in repr(found) + repr(values)
    sealed = made.sealed(values)
    assert sealed["id"] == 1
    assert sealed["none"] is None
    assert CIPHER.decrypt(sealed["key"]) == SECRET
    assert made.opened(values["key"], sealed["key"])
    assert made.opened(values["none"], None)
    for stored in (SECRET, None, CIPHER.encrypt("other"), Cipher("k", "aes-256-gcm", "o" * 32).encrypt(SECRET)):
        assert not made.opened(values["key"], stored)
    assert not made.opened(values["none"], sealed["key"])


@pytest.mark.parametrize("plain", [1, ["a"], {"a": SECRET}, True, "half \ud800"])
def test_only_text_is_encrypted(plain: Any) -> None:
    found = mapped({"x": plain}, values={"key": {"encrypt": "row.x", "key": "k"}})
    assert not found.rows
    assert found.problems[0].message.startswith("t.key cannot be computed (")
    assert SECRET not in repr(found)


@given(one=st.tuples(st.integers(), st.text()), other=st.tuples(st.integers(), st.text()))
def test_equal_credentials_of_one_user_have_one_id_and_users_never_share_one(
    one: tuple[int, str], other: tuple[int, str]
) -> None:
    made = mapper(values={"id": {"uuid_from": ["row.user", "row.key"], "key": "k"}})

    def identity(pair: tuple[int, str]) -> Any:
        found = made.apply({"user": pair[0], "key": pair[1]})
        return found.rows[0].values["id"] if found.rows else None

    if any("\ud800" <= letter <= "\udfff" for pair in (one, other) for letter in pair[1]):
        return
    assert (identity(one) == identity(other)) is (one == other)


def test_columns_that_are_read() -> None:
    assert mapper(values={"a": "row.b", "c": "row['d e'] | json"}, let={"l": "row.z"}).columns == ("b", "d e", "z")
    assert mapper(values={"a": "row[row.which]"}).columns is None


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ({"values": {"x": "row.x +"}}, "into.0.values.x: "),
        ({"values": {"x": "row.x row.y"}}, "something stands behind it"),
        ({"values": {"x": "row.x | jsn"}}, "No filter named 'jsn'"),
        ({"values": {"x": "now()"}}, "no such name: now"),
        ({"values": {"x": "range(3)"}}, "no such name: range"),
        ({"values": {"x": "row"}}, "row stands alone"),
        ({"values": {"x": "row.x | random"}}, "No filter named 'random'"),
        ({"values": {"x": {"uuid_from": ["row.x", "settng"]}}, "let": {"setting": "1"}}, "uuid_from.1: no such name: settng; there are row, setting"),
        ({"let": {"a": "b", "b": "a"}}, "let.a: it is computed from itself: a → b → a"),
        ({"let": {"a": "a"}}, "let.a: it is computed from itself: a → a"),
        ({"each": {"a": "a"}}, "each.a: no such name: a"),
        ({"each": {"a": [1]}, "let": {"a": "1"}}, "let.a: that is the name of each"),
        ({"rules": [{"rule": "row.x ==", "message": "m"}]}, "rules.0.rule: "),
        ({"into": [{"table": "t", "key": ["z"], "values": {"x": "1"}}]}, "into.0.key: no such columns among its values: z"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_with_its_place(rows: dict[str, Any], told: str) -> None:
    found = check_expressions(model(**rows))
    assert any(told in one for one in found), found
    with pytest.raises(Permanent, match="An expression cannot be read"):
        mapper(**rows)


@pytest.mark.parametrize("name", ["row", "none", "if", "a-b", "1a", ""])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ValidationError):
        model(let={name: "1"})


def test_numbers_that_are_none() -> None:
    assert math.isnan(value("row.x", x=math.nan))
