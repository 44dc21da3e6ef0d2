"""Properties that hold for any input: partitions cover each id once, mapped ids are stable and never meet, plans and
states read back, files hold what they were given (A2, A5, G5, O3).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.conditions import Condition
from runner.executor import fingerprint
from runner.ledger import Ledger
from runner.plan import CopyPoints, Place, Plan, SetServing, VerifyPoints, loads
from runner.points import (
    CollectionSchema,
    Distance,
    IdKind,
    KeyRange,
    PointId,
    VectorField,
    canonical_uuid,
    json_dumps,
    json_loads,
)
from runner.settings import LONGEST, duration_seconds
from runner.spec import digest, parse
from runner.store import Store
from runner.stores import config_model, open_store
from runner.transform import IdMode, Transform, map_id
from tests import worlds
from tests.unit import sample

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=60, deadline=None)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
integers = st.integers(-(2**63), 2**64 - 1)
uuids = st.uuids().map(str)
BY_KIND: dict[IdKind, st.SearchStrategy[PointId]] = {
    IdKind.INT: integers,
    IdKind.UUID: uuids,
    IdKind.STRING: texts,
    IdKind.INT_OR_UUID: st.one_of(integers.filter(lambda n: n >= 0), uuids),
}
jsons = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
payloads = st.dictionaries(texts, jsons, max_size=5)


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with (
        tempfile.TemporaryDirectory() as folder,
        open_store(config_model("files")(type="files", path=folder)) as opened,
    ):
        yield opened


def made(
    store: Store, kind: IdKind, ids: list[PointId], items: list[dict[str, Any]] | None = None, parts: int = 1
) -> CollectionSchema:
    """A collection with these points, written in several batches, in the order given."""
    schema = CollectionSchema(
        name="kb", id_kind=kind, vectors=(VectorField(name="", dimension=2, distance=Distance.DOT),)
    )
    store.drop("kb")
    store.create(schema)
    batch = worlds.points(schema, ids=ids, payloads=items)
    size = max(1, len(ids) // parts)
    for start in range(0, len(ids), size):
        store.upsert("kb", batch.slice(start, start + size))
    return schema


@QUICK
@given(st.data(), st.sampled_from(IdKind), st.integers(1, 9), st.integers(1, 7), st.booleans())
def test_any_table_of_partitions_covers_each_id_once(
    store: Store, data: st.DataObject, kind: IdKind, wanted: int, size: int, finished: bool
) -> None:
    ids = data.draw(st.lists(BY_KIND[kind], unique_by=lambda item: (type(item), item), max_size=60))
    schema = made(store, kind, ids, parts=3)
    if finished:
        store.finish(schema)
    ranges = store.cut("kb", wanted)
    assert ranges[0].lo is None
    assert ranges[-1].hi is None
    found: list[PointId] = []
    for keys in ranges:
        for batch in store.scan("kb", keys, None, size):
            assert 0 < len(batch) <= size
            found += batch.ids
    assert len(found) == len(ids)
    assert {(type(item), item) for item in found} == {(type(item), item) for item in ids}
    assert [item for batch in store.scan("kb", KeyRange()) for item in batch.ids] == found  # in key order
    # points that come later belong to exactly one range as well
    late = data.draw(BY_KIND[kind])
    store.upsert("kb", worlds.points(schema, ids=[late]))
    assert sum(late in batch.ids for keys in ranges for batch in store.scan("kb", keys)) == 1
    # a scan begun again after any id gives the rest
    if found:
        at = data.draw(st.integers(0, len(found) - 1))
        rest = [item for batch in store.scan("kb", KeyRange(), found[at], size) for item in batch.ids]
        assert [item for item in rest if item != late or late in found] == found[at + 1 :]


@QUICK
@given(st.lists(payloads, min_size=1, max_size=10))
def test_files_hold_any_payload(store: Store, items: list[dict[str, Any]]) -> None:
    schema = made(store, IdKind.INT, list(range(len(items))), items, parts=2)
    store.finish(schema)
    batch = worlds.concat(list(store.scan("kb", KeyRange())), schema)
    assert [json_dumps(item) for item in batch.payloads.dicts] == [json_dumps(item) for item in items]


@MANY
@given(st.lists(st.one_of(integers, texts, uuids), unique_by=lambda item: (type(item), item), max_size=40))
def test_mapped_ids_are_stable_and_never_meet(ids: list[PointId]) -> None:
    new = [map_id(item, IdMode.UUID5) for item in ids]
    assert new == [map_id(item, IdMode.UUID5) for item in ids]
    assert all(canonical_uuid(item) for item in new)
    assert len(set(new)) == len(ids)
    assert [map_id(item, IdMode.UUID5) for item in new] == new  # once more changes nothing


@MANY
@given(st.lists(integers, unique=True), st.lists(texts, unique=True))
def test_ids_as_text_never_meet_within_a_kind(numbers: list[int], words: list[str]) -> None:
    for ids in (numbers, words):
        assert len({map_id(item, IdMode.STRING) for item in ids}) == len(ids)


@MANY
@given(
    st.lists(st.one_of(integers, texts), unique_by=lambda item: (type(item), item), min_size=1, max_size=20), st.data()
)
def test_the_way_there_and_back_is_the_identity(ids: list[PointId], data: st.DataObject) -> None:
    items = data.draw(st.lists(payloads, min_size=len(ids), max_size=len(ids)))
    items = [{key: value for key, value in item.items() if key != "_vecrun_id"} for item in items]
    schema = CollectionSchema(
        name="kb", id_kind=IdKind.STRING, vectors=(VectorField(name="v", dimension=2, distance=Distance.DOT),)
    )
    batch = worlds.points(schema, ids=ids, payloads=items)
    there, pairs = Transform(ids=IdMode.UUID5, keep_id_as="_vecrun_id", vectors={"v": ""}).apply(batch)
    back, again = Transform(id_from="_vecrun_id", vectors={"": "v"}).apply(there)
    assert [(type(item), item) for item in back.ids] == [(type(item), item) for item in ids]
    assert [json_dumps(item) for item in back.payloads.dicts] == [json_dumps(item) for item in items]
    assert (back.vectors["v"] == batch.vectors["v"]).all()
    assert len(pairs) == sum(not canonical_uuid(item) for item in ids)
    assert again == [(new, old) for old, new in pairs]


conditions = st.builds(
    Condition, field=texts, op=st.sampled_from(["eq", "ne", "exists"]), value=jsons
) | st.builds(
    Condition, field=texts, op=st.sampled_from(["gt", "gte", "lt", "lte"]),
    value=jsons.filter(lambda value: isinstance(value, int | float | str) and not isinstance(value, bool)),
)  # fmt: skip


@MANY
@given(st.lists(payloads, max_size=12), st.lists(conditions, max_size=3))
def test_a_filter_and_its_opposite_part_the_points(items: list[dict[str, Any]], wanted: list[Condition]) -> None:
    schema = CollectionSchema(
        name="kb", id_kind=IdKind.INT, vectors=(VectorField(name="v", dimension=2, distance=Distance.DOT),)
    )
    batch = worlds.points(schema, ids=list(range(len(items))), payloads=items)

    def rows(*rules: Condition) -> list[PointId]:
        return Transform(where=rules).apply(batch)[0].ids

    taken = [set(rows(rule)) for rule in wanted]
    assert set(rows(*wanted)) == set(range(len(items))).intersection(*taken)
    for rule in wanted:
        if rule.op == "eq":
            other = rule.model_copy(update={"op": "ne"})
            assert sorted([*rows(rule), *rows(other)]) == list(range(len(items)))  # type: ignore[type-var]


places = st.builds(Place, connection=texts, collection=texts)
steps = st.one_of(
    st.builds(SetServing, name=texts, before=st.none() | places, after=st.none() | places),
    st.builds(
        CopyPoints, source=places, target=places, points=st.integers(0, 2**60),
        target_schema=st.builds(CollectionSchema, name=texts, id_kind=st.sampled_from(IdKind)),
        transform=st.builds(Transform, where=st.lists(conditions, max_size=2).map(tuple), set=payloads, rename=st.dictionaries(texts, texts, max_size=3)),
    ),
    st.builds(
        VerifyPoints, source=places, target=places, mode=st.sampled_from(["count", "sample", "full"]),
        target_schema=st.builds(CollectionSchema, name=texts, id_kind=st.sampled_from(IdKind)),
    ),
)  # fmt: skip


@QUICK
@given(st.lists(steps, max_size=4), texts, st.dictionaries(texts, texts, max_size=3), st.lists(texts, max_size=3))
def test_any_plan_reads_back_as_it_was(
    made: list[Any], job: str, connections: dict[str, str], drift: list[str]
) -> None:
    plan = Plan(
        tool_version="0", created="now", job=job, kind="k", lineage="l", serial=0, spec_digest="s",
        connections=connections, steps=tuple(made), drift=tuple(drift),
    ).sealed()  # fmt: skip
    again = loads(plan.dumps(), "f")
    assert again == plan
    assert again.dumps() == plan.dumps()
    assert again.identity() == plan.identity()


@MANY
@given(jsons)
def test_json_is_exact_and_canonical(value: Any) -> None:
    text = json_dumps(value)
    assert json_dumps(json_loads(text)) == text
    assert digest(value) == digest(json.loads(json.dumps(value)))


@MANY
@given(st.dictionaries(texts, jsons, min_size=1, max_size=5))
def test_any_json_is_read_as_yaml_with_a_line_for_each_part(value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=1)
    document = parse(text, "f")
    assert json_dumps(document.data) == json_dumps(json.loads(text))
    lines = text.count("\n") + 1
    assert all(1 <= line <= lines for line in document.lines.values())


@QUICK
@given(st.lists(st.one_of(integers, texts, uuids), unique_by=json.dumps, max_size=30), st.integers(1, 9))
def test_the_ledger_keeps_any_mapping(ids: list[PointId], size: int) -> None:
    with Ledger.temporary() as ledger:
        lease = ledger.acquire(["x"], "r-1", 60)
        ledger.start_run(lease, sample.plan(), sample.plan().dumps())
        ledger.cut(lease, 1, [KeyRange()], "f")
        part = ledger.take(lease, 1, 0)
        assert part is not None
        pairs = [(item, map_id(item, IdMode.UUID5)) for item in ids]
        ledger.checkpoint(lease, 1, part, mapped=pairs, collection="kb")
        found = [pair for page in ledger.mapping("r-1", "kb", size) for pair in page]
        assert sorted(map(repr, found)) == sorted(map(repr, pairs))


@MANY
@given(st.lists(st.tuples(st.none() | texts | integers, st.none() | texts | integers), max_size=6))
def test_a_fingerprint_names_one_table_of_ranges(pairs: list[tuple[Any, Any]]) -> None:
    ranges = [KeyRange(lo, hi) for lo, hi in pairs]
    assert fingerprint(ranges) == fingerprint([KeyRange(*json.loads(json.dumps(keys))) for keys in ranges])
    assert fingerprint(ranges) != fingerprint([*ranges, KeyRange()])


@MANY
@given(st.integers(1, 10**6), st.sampled_from("dhms"), texts)
def test_durations(count: int, unit: str, other: str) -> None:
    seconds = count * {"d": 86400, "h": 3600, "m": 60, "s": 1}[unit]
    assert duration_seconds(f"{count}{unit}") == min(seconds, LONGEST + 1)
    if not other[:-1].isdigit():
        with pytest.raises(ValueError, match="no duration"):
            duration_seconds(other)
