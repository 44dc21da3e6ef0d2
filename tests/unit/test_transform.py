"""What happens to points on their way: filter, payload, vectors, ids and the way back (A2, A12, A13)."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest

from runner.conditions import Condition
from runner.errors import Permanent
from runner.points import IdKind, Payload, Payloads, PointBatch, PointId, canonical_uuid
from runner.transform import IdMode, Transform, id_mode, map_id


def batch(payloads: list[Payload], ids: list[PointId] | None = None, **columns: Any) -> PointBatch:
    n = len(payloads)
    vectors = {"v": np.arange(n * 2, dtype=np.float32).reshape(n, 2)}
    return PointBatch(ids=ids or list(range(n)), vectors=vectors, payloads=Payloads(payloads), **columns)


def payload(item: Payload, **rules: Any) -> Payload:
    """One payload after the transform; the original is untouched."""
    before = dict(item)
    result: Payload = Transform(**rules).apply(batch([item]))[0].payloads.dicts[0]
    assert item == before
    return result


def taken(items: list[Payload], *conditions: Condition) -> list[int]:
    return list(Transform(where=conditions).apply(batch(items))[0].ids)  # type: ignore[arg-type]


def test_nothing_to_do_hands_the_columns_through() -> None:
    points = batch([{"a": 1}])
    done, pairs = Transform().apply(points)
    assert done.payloads is points.payloads
    assert done.vectors is points.vectors
    assert pairs == []


@pytest.mark.parametrize(
    ("op", "value", "expected"),
    [
        ("eq", 2, [1]), ("ne", 2, [0, 2, 3, 4, 5]), ("in", [1, 2], [0, 1]), ("gt", 1, [1, 2]), ("gte", 2, [1, 2]),
        ("lt", 2, [0]), ("lte", 2, [0, 1]), ("exists", True, [0, 1, 2, 4, 5]), ("exists", False, [3]), ("eq", True, [5]),
    ],
)  # fmt: skip
def test_conditions(op: Any, value: Any, expected: list[int]) -> None:
    items: list[Payload] = [{"n": 1}, {"n": 2}, {"n": 3}, {}, {"n": "2"}, {"n": True}]
    if op in ("lt", "lte", "gte"):  # true is a number to Python
        items, expected = items[:5], [row for row in expected if row < 5]
    assert taken(items, Condition(field="n", op=op, value=value)) == expected


def test_all_conditions_hold_lists_by_element_and_paths_by_dots() -> None:
    items: list[Payload] = [{"tags": ["a", "b"], "m": {"lang": "en"}}, {"tags": ["b"], "m.lang": "en"}, {"tags": "a"}]
    assert taken(items, Condition(field="tags", value="a")) == [0, 2]
    assert taken(items, Condition(field="tags", value=["b"])) == [1]
    assert taken(items, Condition(field="m.lang", value="en")) == [0, 1]
    assert taken(items, Condition(field="tags", value="b"), Condition(field="m.lang", value="en")) == [0, 1]


def test_a_filter_keeps_every_column_in_step() -> None:
    points = batch([{"k": n % 2} for n in range(6)], partitions=list("ababab"))
    done, _ = Transform(where=(Condition(field="k", value=1),)).apply(points)
    assert done.ids == [1, 3, 5]
    assert done.partitions == ["b", "b", "b"]
    assert done.vectors["v"].tolist() == [[2, 3], [6, 7], [10, 11]]


def test_payload_rules_in_their_order() -> None:
    item = {"old": "7", "gone": 1, "kept": None}
    rules = {"drop": ("gone",), "rename": {"old": "new"}, "cast": {"new": "integer"}, "set": {"lang": "en"}}
    assert payload(item, **rules) == {"new": 7, "kept": None, "lang": "en"}
    assert payload({"a": 1, "b": 2}, rename={"a": "b", "b": "a"}) == {"a": 2, "b": 1}


@pytest.mark.parametrize(
    ("value", "wanted", "expected"),
    [
        (7, "string", "7"), (1.0, "string", "1.0"), (True, "string", "true"), ([1], "string", "[1]"), ("x", "string", "x"),
        ("7", "integer", 7), (7.0, "integer", 7), (2**53 + 1, "integer", 2**53 + 1), ("0.5", "float", 0.5),
        (1, "float", 1.0), ("TRUE", "boolean", True), (0, "boolean", False), (None, "integer", None),
    ],
)  # fmt: skip
def test_casts(value: Any, wanted: Any, expected: Any) -> None:
    done = payload({"f": value}, cast={"f": wanted})["f"]
    assert done == expected
    assert type(done) is type(expected)


@pytest.mark.parametrize(
    ("value", "wanted"), [("x", "integer"), (7.5, "integer"), ("x", "float"), ("maybe", "boolean")]
)
def test_a_cast_that_cannot_be_names_the_point(value: Any, wanted: Any) -> None:
    with pytest.raises(Permanent, match=r"point 0: f = .* to"):
        payload({"f": value}, cast={"f": wanted})


@pytest.mark.parametrize("rules", [{"rename": {"a": "b"}}, {"set": {"b": 3}}])
def test_nothing_overwrites_another_field(rules: Any) -> None:
    with pytest.raises(Permanent, match="already has 'b'"):
        payload({"a": 1, "b": 2}, **rules)
    assert payload({"a": 1, "b": 2}, drop=("b",), **rules)


def test_vectors_are_renamed_and_others_left_behind() -> None:
    points = batch([{}])
    points.vectors["w"] = points.vectors["v"]
    points.missing["w"] = np.array([True])
    done, _ = Transform(vectors={"w": ""}).apply(points)
    assert list(done.vectors) == [""]
    assert list(done.missing) == [""]


def test_partitions_become_a_field() -> None:
    done, _ = Transform(partition_field="_partition").apply(batch([{}, {}], partitions=["p", "q"]))
    assert done.partitions is None
    assert [item["_partition"] for item in done.payloads.dicts] == ["p", "q"]


def test_mapped_ids_keep_the_original_and_find_the_way_back() -> None:
    odd: list[PointId] = [
        1,
        "1",
        -5,
        2**63,
        "a b",
        "",
        "ÄÖ",
        str(uuid.UUID(int=7)),
        "7F9C24E5-2C1B-4A77-9D3E-0B1C2D3E4F50",
    ]
    points = batch([{"n": n} for n in range(len(odd))], list(odd))
    there, pairs = Transform(ids=IdMode.UUID5, keep_id_as="_vecrun_id").apply(points)
    assert all(canonical_uuid(item) for item in there.ids)
    assert len(set(there.ids)) == len(odd)
    assert dict(pairs) | {} == {old: new for old, new in zip(odd, there.ids, strict=True) if old != new}
    assert "_vecrun_id" not in there.payloads.dicts[odd.index(str(uuid.UUID(int=7)))]
    back, _ = Transform(id_from="_vecrun_id").apply(there)
    assert back.ids == odd
    assert [type(item) for item in back.ids] == [type(item) for item in odd]
    assert back.payloads.dicts == points.payloads.dicts


def test_ids_as_text() -> None:
    done, pairs = Transform(ids=IdMode.STRING).apply(batch([{}, {}], [7, "x"]))
    assert done.ids == ["7", "x"]
    assert pairs == [(7, "7")]


@pytest.mark.parametrize("value", [True, 1.5, None, ["a"]])
def test_an_id_field_that_holds_no_id(value: Any) -> None:
    with pytest.raises(Permanent, match="cannot be an id"):
        Transform(id_from="k").apply(batch([{"k": value}]))


def test_mapped_ids_are_the_same_for_ever() -> None:
    # in ledgers and payloads of users: another value would give each point a second identity
    assert map_id(42, IdMode.UUID5) == "9f5f1363-c531-52a0-8041-08b86eab160a"
    assert map_id("42", IdMode.UUID5) == "b5ca2ef7-f08b-5730-87f7-0c04fcafe276"


@pytest.mark.parametrize("source", IdKind)
def test_every_kind_of_id_gets_into_every_store_that_has_text_or_uuids(source: IdKind) -> None:
    for target in (frozenset({IdKind.STRING}), frozenset({IdKind.UUID}), frozenset({IdKind.INT, IdKind.UUID})):
        found = id_mode(source, target)
        assert found is not None
        mode, kind = found
        assert kind in target
        if mode is IdMode.KEEP and source not in target:
            assert (source, kind) == (IdKind.UUID, IdKind.STRING)
    assert (id_mode(source, frozenset({IdKind.INT})) is None) == (source is not IdKind.INT)
