"""`find` and `candidates` of every edition: a filter of the store's own never hides a point that meets the conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.conditions import Condition, holds
from runner.points import CollectionSchema, Payload, PayloadField, PayloadType, PointId
from runner.store import Store
from tests import conftest, worlds
from tests.worlds import points

#: Values that some store takes for another one: types, arrays, signs, words, quotes, numbers at the edge of float64.
VALUES: list[Any] = [
    "doc-1", "doc-11", "1-doc", "DOC-1", "doc 1", "the", "", " ", "---", "1", "1.0", "true", "null", "日本語 🙂", "caf\u00e9",
    "cafe\u0301", 'x" or "1" == "1', "x' OR '1'='1", "back\\slash", "a\nb", "[", "a/b", "%", "2024-05-01",
    1, 1.0, True, False, 0, 0.0, -1, 5, 5.0, 1.5, 0.1, 2**53, 2**53 + 1, 1e21, 10**21, None,
    [], ["doc-1", "x"], ["x"], [1, "1"], [1.0, 2], [True], [None], [["doc-1"]], {"a": "doc-1"}, {"a": 1.0}, {"a": [1]},
    {"a": {"b": "doc-1"}},
]  # fmt: skip
ZOO: list[Payload] = [
    *({"k": value} for value in VALUES),
    {},
    {"other": "doc-1"},
    {"k.a": "doc-1"},
    {"k.a": 1, "k": {"a": 2}},
    {"k": {"a.b": "doc-1"}},
    {"k": "doc-1", "large": 10**30},
    {"k": 1, "large": [2**64 - 1]},
    {"odd key": "doc-1", "it's": 1, 'a "quoted" key': "x", "ключ": "doc-1", "in": "doc-1", "the": "doc-1", "1st": 5},
    {"text": "a text with doc-1 in it", "id": "doc-1", "vector": 1, "_vecrun": "doc-1", "payload": 5},
]
FIELDS = ("k", "k.a", "k.a.b", "odd key", "it's", 'a "quoted" key', "ключ", "in", "the", "1st", "id", "vector",
          "payload", "large", "absent", "absent.too", "k.", "$meta", "_vecrun")  # fmt: skip


def conditions() -> list[list[Condition]]:
    """Lists of conditions: each operator with each kind of value, lists of mixed values, odd fields, several at once."""
    found = [[Condition(field="k", op="eq", value=value)] for value in VALUES]
    for value in (1, 0.5, -1, 2**53, 10**30, 1e-320, "doc-1", "a", ""):
        found += [
            [Condition.model_validate({"field": "k", "op": op, "value": value})] for op in ("gt", "gte", "lt", "lte")
        ]
    found += [[Condition(field="k", op="ne", value=value)] for value in ("doc-1", 1, None)]
    found += [[Condition(field=field, op="exists", value=value)] for field in ("k", "k.a") for value in (None, False)]
    lists: list[Any] = [
        ["doc-1"], ["doc-1", 1], [1, True, "1"], [5, 1.5, "x"], [None, "doc-1"], [], [["x"]], [10**400, 1],
        ["nul\0", "doc-1"], ["\ud800", "doc-1"], [*range(250), *(f"doc-{n}" for n in range(250))],
    ]  # fmt: skip
    found += [[Condition(field="k", op="in", value=value)] for value in lists]
    for field in FIELDS[1:]:
        found.append([Condition(field=field, op="in", value=["doc-1", "x", 1])])
        found.append([Condition(field=field, op="gte", value=1)])
    found.append([])
    found.append([Condition(field="k", value="doc-1"), Condition(field="k", op="ne", value=1)])
    found.append([Condition(field="k", op="gte", value=1), Condition(field="k", op="lte", value=5)])
    return found


def make(store: Store, name: str, payload: Sequence[PayloadField] = ()) -> CollectionSchema:
    schema, _ = store.fit(worlds.wish(name, store.capabilities(), payload=payload, dimension=4))
    store.create(schema)
    return schema


def everything(store: Store, name: str) -> dict[PointId, Payload]:
    """All payloads by id, as the store gives them back."""
    ranges = store.cut(name, 1)
    batches = (batch for keys in ranges for batch in store.scan(name, keys))
    return {key: item for batch in batches for key, item in zip(batch.ids, batch.payloads.dicts, strict=True)}


def found_by(search: Callable[..., Any], name: str, where: Sequence[Condition], size: int = 1000) -> list[PointId]:
    """Ids that `find` or `candidates` gives; each batch has the right size and no vector."""
    ids: list[PointId] = []
    for batch in search(name, where, size):
        assert 0 < len(batch) <= size
        assert not batch.vectors, "vectors are not asked for"
        assert len(batch.payloads) == len(batch)
        ids += batch.ids
    assert len(set(ids)) == len(ids), "each point comes once"
    return ids


def assert_nothing_is_missed(store: Store, name: str, wheres: Sequence[Sequence[Condition]]) -> None:
    there = everything(store, name)
    for where in wheres:
        wanted = {key for key, item in there.items() if all(holds(one, item) for one in where)}
        missed = wanted - set(found_by(store.candidates, name, where))
        assert not missed, f"{where} hides {[there[key] for key in missed]}"
        assert set(found_by(store.find, name, where)) == wanted, where


def test_find_gives_what_holds(store: Store, name: str, edition: str) -> None:
    """Rule: whatever the store's own filter is, `find` gives exactly the points for which `holds` is true.

    If this fails, a condition is compiled to a filter that is narrower than it: leave it out, or ask for more.
    """
    schema = make(store, name)
    batch = points(schema, payloads=ZOO)
    good, _ = worlds.without_refused(store, schema, batch)
    store.upsert(name, good)
    store.finish(schema)
    wheres = conditions()
    if edition == "milvus-server":  # each query waits for the clock of the server
        wheres = wheres[::6]
    assert_nothing_is_missed(store, name, wheres)


def test_find_with_declared_fields(store: Store, name: str) -> None:
    """Rule: the same where fields have an index or a column of their own, and not only values of its type.

    If this fails, an index of the store knows only values of one type.
    """
    fields = [
        PayloadField(name="word", type=PayloadType.KEYWORD, indexed=True, max_length=200),
        PayloadField(name="number", type=PayloadType.INTEGER, indexed=True),
        PayloadField(name="score", type=PayloadType.FLOAT, indexed=True),
        PayloadField(name="text", type=PayloadType.TEXT, indexed=True, max_length=200),
        PayloadField(name="flag", type=PayloadType.BOOL, indexed=True),
        PayloadField(name="uid", type=PayloadType.UUID, indexed=True),
        PayloadField(name="tags", type=PayloadType.KEYWORD, array=True, indexed=True, max_length=200),
    ]
    schema = make(store, name, fields)
    uid = "7f9c24e5-2c1b-4a77-9d3e-0b1c2d3e4f50"
    values = ["doc-1", "the", "1", uid, uid.upper(), 1, 1.0, 7, 2.5, True, ["doc-1", "x"], [1, 2.0], [7, 7.5], None]
    batch = points(schema, payloads=[{item.name: value} for item in fields for value in values])
    good, _ = worlds.without_refused(store, schema, batch)
    store.upsert(name, good)
    store.finish(schema)
    asked: list[Condition] = []
    for item in fields:
        asked += [Condition(field=item.name, value=value) for value in ("doc-1", uid, 1, 2.5, 7, True)]
        asked += [
            Condition(field=item.name, op="in", value=["doc-1", uid, 1, 7]),
            Condition(field=item.name, op="gt", value=0),
        ]
    assert_nothing_is_missed(store, name, [[one] for one in asked])


def test_find_narrows_and_pages(store: Store, name: str, edition: str) -> None:
    """Rule: points of some documents are found by the store, not by reading all; thousands come once, page by page.

    If this fails, `candidates` compiles `eq` and `in` on a text no more, or loses its place between two pages.
    """
    count = 300 if edition in conftest.SLOW else 3_300
    schema = make(store, name)
    batch = points(
        schema, count, payloads=[{"document_id": f"doc-{n // 3}", "n": n % 100, "kind": "chunk"} for n in range(count)]
    )
    for start in range(0, count, 1000):
        store.upsert(name, batch.slice(start, start + 1000))
    store.finish(schema)
    all_of_them = [Condition(field="kind", value="chunk")]
    assert set(found_by(store.find, name, [], 700)) == set(batch.ids)
    assert len(found_by(store.find, name, all_of_them, 700)) == count
    few: list[tuple[Condition, int]] = [
        (Condition(field="document_id", value="doc-7"), 3),
        (Condition(field="document_id", op="in", value=[f"doc-{n}" for n in range(10, 20)]), 30),
        (Condition(field="n", value=7), count // 100),
    ]
    for one, wanted in few:
        assert len(found_by(store.find, name, [one], 700)) == wanted
        if edition != "milvus-lite":  # reads all payloads in less time than it takes to filter
            assert len(found_by(store.candidates, name, [one], 700)) <= count // 10, f"{one} is not narrowed"
    assert found_by(store.find, f"{name}None", all_of_them) == []


_SCALARS = st.one_of(
    st.sampled_from(["a", "b", "a b", "A", "é", "1", '"', "\\", "'", "the", ""]),
    st.sampled_from([0, 1, -1, 2, 1.0, 0.5, 2**53 + 1, True, False, None]),
)
_ITEMS = st.fixed_dictionaries(
    {},
    optional={
        "k": st.one_of(_SCALARS, st.lists(_SCALARS, max_size=3), st.dictionaries(st.just("a"), _SCALARS)),
        "k.a": _SCALARS,
        "other": _SCALARS,
    },
)
_CONDITIONS = st.one_of(
    st.builds(Condition, field=st.sampled_from(["k", "k.a"]), op=st.sampled_from(["eq", "ne"]), value=_SCALARS),
    st.builds(Condition, field=st.sampled_from(["k", "k.a"]), op=st.just("in"), value=st.lists(_SCALARS, max_size=4)),
    st.builds(
        Condition,
        field=st.sampled_from(["k", "k.a"]),
        op=st.sampled_from(["gt", "gte", "lt", "lte"]),
        value=st.sampled_from([0, 1, 0.5, "a", "b"]),
    ),
)


@pytest.mark.parametrize("edition", [item for item in conftest.EMBEDDED if item in conftest.CHOSEN], indirect=True)
def test_find_gives_what_holds_for_any_payload(store: Store, name: str) -> None:
    """Rule: the same for payloads and conditions at random. If this fails, the example shows what is missed."""
    schema = make(store, name)

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(_ITEMS, min_size=8, max_size=8), st.lists(_CONDITIONS, min_size=4, max_size=4))
    def check(payloads: list[Payload], wheres: list[Condition]) -> None:
        store.upsert(name, points(schema, payloads=payloads))
        assert_nothing_is_missed(store, name, [[one] for one in wheres] + [wheres[:2]])

    check()
