"""Test data: schemas, ids, payloads and vectors within what a store says it can do, and `same`, which compares points.

Everything is built from a seed, so that a failure can be repeated.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.points import (
    CollectionSchema,
    Datatype,
    Distance,
    IdKind,
    Payload,
    PayloadField,
    Payloads,
    PointBatch,
    PointId,
    SparseField,
    SparseVector,
    VectorField,
    VectorIndex,
    empty_batch,
    json_dumps,
)
from runner.store import Capabilities, Store

INT_ZOO: list[PointId] = [0, 1, 7, 12, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**53) - 1, -(2**63)]
UUID_ZOO: list[PointId] = [
    "00000000-0000-0000-0000-000000000000",
    "00000000-0000-0000-0000-000000000001",
    "7f9c24e5-2c1b-4a77-9d3e-0b1c2d3e4f50",
    "80000000-0000-4000-8000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
]
STRING_ZOO: list[PointId] = [
    "plain",
    "two words",
    " leading",
    "trailing ",
    "O'Brien",
    'say "hi"',
    "back\\slash",
    "end with backslash\\",
    "100%",
    "a_b%c",
    "{curly} [square] (round) $dollar #hash",
    "new\nline",
    "tab\tstop",
    "A",
    "a",
    "B",
    "b",
    "Zebra",
    "ångström",
    "caf\u00e9",  # composed and decomposed: two ids, though they look alike
    "cafe\u0301",
    "日本語の文書",
    "Ωμέγα",
    "שלום",
    "🙂🙃",
    "\uffff",  # sorts before an emoji by code point, after it in UTF-16
    "0",
    "00",
    "12",
    "-5",
    "1.0",
    "true",
    "null",
    "7f9c24e5-2c1b-4a77-9d3e-0b1c2d3e4f50",
    "7F9C24E5-2C1B-4A77-9D3E-0B1C2D3E4F50",
    "path/to/file.pdf#page=3&x=1",
    "https://example.org/?q=a+b",
    "nul\x00inside",
    "",
    "long-" + "x" * 200,
    "long-" + "長" * 60,
]

#: One key for each type, so that a store which gives every key one type is not asked for the impossible here.
PAYLOAD_ZOO: dict[str, Payload] = {
    "empty": {},
    "text": {"text": "plain words"},
    "text_empty": {"text": ""},
    "text_unicode": {"text": "naïve 日本語 🙂 \u202eright to left\u202c e\u0301"},
    "text_control": {"text": 'line one\nline two\ttab "quoted" back\\slash \u0001 \u2028'},
    "text_nul": {"text": "a\u0000b"},
    "text_long": {"text": "0123456789 " * 2000},
    "text_like_date": {"text": "2024-01-02T03:04:05Z"},
    "text_like_date_offset": {"text": "2024-01-02T03:04:05.120+02:00"},
    "text_like_uuid": {"text": "7f9c24e5-2c1b-4a77-9d3e-0b1c2d3e4f50"},
    "text_like_number": {"text": "12"},
    "text_like_null": {"text": "null"},
    "text_like_json": {"text": '{"a": [1]}'},
    "int": {"count": 12},
    "int_zero": {"count": 0},
    "int_negative": {"count": -7},
    "int_beyond_32_bits": {"count": 2**40},
    "int_beyond_double": {"count": 2**53 + 1},
    "int_beyond_double_negative": {"count": -(2**53) - 1},
    "int_63_bits": {"count": 2**63 - 1},
    "int_63_bits_negative": {"count": -(2**63)},
    "int_64_bits": {"count": 2**64 - 1},
    "int_100_bits": {"count": 10**30},
    "float": {"score": 0.1},
    "float_whole": {"score": 1.0},
    "float_negative_zero": {"score": -0.0},
    "float_pi": {"score": 3.141592653589793},
    "float_huge": {"score": 1.7976931348623157e308},
    "float_tiny": {"score": 5e-324},
    "float_exponent": {"score": 1e21},
    "bool_true": {"flag": True},
    "bool_false": {"flag": False},
    "null": {"nothing": None},
    "list_empty": {"tags": []},
    "list_text": {"tags": ["a", "b", "a"]},
    "list_int": {"numbers": [3, 1, 2]},
    "list_big_int": {"numbers": [2**53 + 1, 0]},
    "list_float": {"scores": [0.5, 1.0, 2.0]},
    "list_bool": {"flags": [True, False]},
    "list_mixed": {"mixed": [1, "1", 1.0, True, None, [], {}]},
    "list_null": {"holes": [None]},
    "list_nested": {"grid": [[1, 2], [], [3]]},
    "object_empty": {"meta": {}},
    "object": {"meta": {"source": {"file": "a.pdf", "page": 3}, "list": [{"k": None}, {"k": 1.0}]}},
    "object_deep": {"deep": {"a": {"b": {"c": {"d": {"e": {"f": [{"g": 2**53 + 1}]}}}}}}},
    "key_dot": {"a.b": 1, "a": {"b": 2}},
    "key_quotes": {"it's": 1, 'a "quoted" key': 2, "back\\slash": 3},
    "key_space": {"two words": 1, " ": 2},
    "key_empty": {"": "no name"},
    "key_unicode": {"ключ": 1, "🙂": 2},
    "key_dollar": {"$meta": 1, "$": 2},
    "key_brackets": {"a[0]": 1, "a/b": 2, "a-b": 3},
    "key_taken": {"id": "x", "vector": "y", "_id": 5, "payload": 1.5, "embedding": "z", "text": "t"},
    "key_digit": {"1st": 1, "42": 2},
    "key_upper": {"Title": "big", "title": "small"},
    "key_long": {"k" * 300: 1},
    "many": {f"field_{n:03d}": n for n in range(200)},
    "chunk": {
        "document_id": "doc-1",
        "chunk": 3,
        "text": "The quick brown fox.",
        "score": 0.25,
        "tags": ["en", "demo"],
        "active": True,
    },
}

#: What every store must hold exactly, whatever else it refuses.
PLAIN_PAYLOADS = (
    "text",
    "text_unicode",
    "int",
    "int_negative",
    "float",
    "bool_true",
    "bool_false",
    "list_text",
    "chunk",
)


def wish(
    name: str,
    caps: Capabilities,
    *,
    id_kind: IdKind | None = None,
    dimension: int = 8,
    distance: Distance | None = None,
    vectors: Sequence[str] | None = None,
    sparse: Sequence[str] = (),
    payload: Sequence[PayloadField] = (),
    partitions: Sequence[str] | None = None,
    index: VectorIndex | None = None,
    datatype: Datatype = Datatype.FLOAT32,
) -> CollectionSchema:
    """A schema the store can hold: by default its first id kind, one vector under its own name, an exact metric."""
    names = [caps.default_vector_name] if vectors is None else vectors
    metric = distance or exact_distance(caps)
    return CollectionSchema(
        name=name,
        id_kind=id_kind or id_kinds(caps)[0],
        vectors=tuple(
            VectorField(name=item, dimension=dimension + n, distance=metric, datatype=datatype, index=index)
            for n, item in enumerate(names)
        ),
        sparse=tuple(SparseField(name=item, dimension=1000) for item in sparse),
        payload=tuple(payload),
        partitions=None if partitions is None else tuple(partitions),
    )


def id_kinds(caps: Capabilities) -> list[IdKind]:
    """The kinds of ids the store has, in a fixed order."""
    return [kind for kind in IdKind if kind in caps.id_kinds]


def exact_distance(caps: Capabilities) -> Distance:
    """A metric under which the store keeps vectors as they are; else its first one."""
    known = [item for item in Distance if item in caps.distances]
    return next((item for item in known if item not in caps.normalises), known[0])


def ids_of(kind: IdKind, count: int, seed: int = 0) -> list[PointId]:
    """`count` different ids in random order. The same seed and kind give the same ids; seeds share none."""
    rng = np.random.default_rng([seed, 17])
    numbers = (rng.permutation(count) * 3 + 1 + seed * 10_000_000).tolist()
    if kind == IdKind.INT:
        return list(numbers)
    texts = [str(uuid.uuid5(uuid.NAMESPACE_OID, str(number))) for number in numbers]
    if kind == IdKind.UUID:
        return list(texts)
    if kind == IdKind.INT_OR_UUID:
        return [number if number % 2 else text for number, text in zip(numbers, texts, strict=True)]
    shapes = ("doc-{}", "Doc {}", "файл {}.pdf", "o'{}\\{}", "{}", "a%{}_", "é{}", "🙂{}")
    return [shapes[number % len(shapes)].replace("{}", str(number)) for number in numbers]


def odd_ids(kind: IdKind) -> list[PointId]:
    """The zoo of ids of this kind."""
    if kind == IdKind.INT:
        return list(INT_ZOO)
    if kind == IdKind.UUID:
        return list(UUID_ZOO)
    return list(INT_ZOO) + list(UUID_ZOO) if kind == IdKind.INT_OR_UUID else list(STRING_ZOO)


def dense(count: int, dimension: int, seed: int = 0, unit: bool = False) -> NDArray[np.float32]:
    """Random float32 vectors of shape (count, dimension); `unit` scales them to length 1."""
    matrix = np.random.default_rng([seed, 23]).standard_normal((count, dimension)).astype(np.float32)
    if unit:
        matrix /= np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(matrix, np.float32)


def sparse_column(count: int, seed: int = 0, dimension: int = 1000, holes: bool = True) -> list[SparseVector | None]:
    """Sparse vectors of one to ten numbers; with `holes` every fifth point has none."""
    rng = np.random.default_rng([seed, 29])
    column: list[SparseVector | None] = []
    for row in range(count):
        if holes and row % 5 == 4:
            column.append(None)
            continue
        indices = np.sort(rng.choice(dimension, size=1 + row % 10, replace=False)).astype(np.int64)
        column.append(SparseVector(indices, (rng.random(len(indices)) + 0.5).astype(np.float32)))
    return column


def payloads_for(ids: Sequence[PointId], seed: int = 0) -> list[Payload]:
    """Ordinary payloads of a chunk of text, which every store holds. Many points share one text."""
    return [
        {
            "document_id": f"doc-{row % 50}",
            "chunk": row,
            "text": f"Chunk {row % 10} of a document: naïve 日本語 🙂",
            "score": row + 0.5,
            "tags": ["en", f"t{row % 3}"],
            "active": row % 2 == 0,
            "seed": seed,
        }
        for row in range(len(ids))
    ]


def points(
    schema: CollectionSchema,
    count: int | None = None,
    *,
    seed: int = 0,
    ids: Sequence[PointId] | None = None,
    payloads: Sequence[Payload] | None = None,
    unit: bool = False,
    missing: bool = False,
) -> PointBatch:
    """A batch that fits `schema`: `count` points, or one for each of `ids` or `payloads`.

    `missing` leaves out some vectors of collections with several, never all of a point.
    """
    if ids is None:
        ids = ids_of(schema.id_kind, count if count is not None else len(payloads or ()), seed)
    n = len(ids)
    batch = PointBatch(
        ids=list(ids),
        vectors={item.name: dense(n, item.dimension, seed + k, unit) for k, item in enumerate(schema.vectors)},
        payloads=Payloads(list(payloads) if payloads is not None else payloads_for(ids, seed)),
        sparse={item.name: sparse_column(n, seed + k) for k, item in enumerate(schema.sparse)},
        partitions=None
        if schema.partitions is None
        else [schema.partitions[r % len(schema.partitions)] for r in range(n)],
    )
    if missing and len(schema.vectors) > 1:
        for k, item in enumerate(schema.vectors):
            mask = np.arange(n) % (len(schema.vectors) + 1) == k
            batch.vectors[item.name][mask] = 0
            batch.missing[item.name] = mask
    return batch


def concat(batches: Iterable[PointBatch], schema: CollectionSchema) -> PointBatch:
    """All batches as one, in order."""
    parts = [item for item in batches if len(item)]
    if not parts:
        return empty_batch(schema)
    missing = {name for item in parts for name in item.missing}
    partitions = [name for item in parts for name in item.partitions or []]
    return PointBatch(
        ids=[point_id for item in parts for point_id in item.ids],
        vectors={name: np.concatenate([item.vectors[name] for item in parts]) for name in parts[0].vectors},
        payloads=Payloads([payload for item in parts for payload in item.payloads.dicts]),
        sparse={name: [entry for item in parts for entry in item.sparse[name]] for name in parts[0].sparse},
        missing={
            name: np.concatenate([item.missing.get(name, np.zeros(len(item), bool)) for item in parts])
            for name in missing
        },
        partitions=partitions if parts[0].partitions is not None else None,
    )


def newest(batches: Sequence[PointBatch], schema: CollectionSchema, deleted: Iterable[PointId] = ()) -> PointBatch:
    """What a store must hold after these upserts in order (the last of an id wins) and the deletes."""
    everything = concat(batches, schema)
    gone = {_key(point_id) for point_id in deleted}
    rows = {_key(point_id): row for row, point_id in enumerate(everything.ids)}
    return everything.take([row for key, row in rows.items() if key not in gone])


def without_refused(store: Store, schema: CollectionSchema, batch: PointBatch) -> tuple[PointBatch, list[int]]:
    """The points of `batch` about which `problems` says nothing when asked one by one, and the rows of the others."""
    good: list[int] = []
    bad: list[int] = []
    for row in range(len(batch)):
        told = [item for item in store.problems(schema, batch.take([row])) if not item.code.startswith("VI")]
        (bad if told else good).append(row)
    return batch.take(good), bad


def copy_of(batch: PointBatch) -> PointBatch:
    """A deep copy, to see whether somebody changed the original."""
    return replace(
        batch,
        ids=list(batch.ids),
        vectors={name: matrix.copy() for name, matrix in batch.vectors.items()},
        payloads=Payloads(json=[json_dumps(item) for item in batch.payloads.dicts]),
        sparse={
            name: [
                None if entry is None else SparseVector(entry.indices.copy(), entry.values.copy()) for entry in column
            ]
            for name, column in batch.sparse.items()
        },
        missing={name: mask.copy() for name, mask in batch.missing.items()},
        partitions=None if batch.partitions is None else list(batch.partitions),
    )


def same(store: Store | Capabilities, schema: CollectionSchema, expected: PointBatch, got: PointBatch) -> list[str]:
    """Every difference in words (at most ten of a sort); empty when `got` holds exactly the points of `expected`.

    Order does not matter. Ids keep their type (1 is not "1"). Vectors must be equal bit for bit, except under a
    metric that the store normalises (direction within 1e-6) or a smaller datatype (relative 2e-3). Payloads are
    compared as canonical JSON, where 1, 1.0 and true differ.
    """
    caps = store if isinstance(store, Capabilities) else store.capabilities()
    report: list[str] = [*_shape(schema, got)]
    if report:
        return report
    rows: dict[Any, int] = {}
    for row, point_id in enumerate(got.ids):
        if _key(point_id) in rows:
            report.append(f"id {point_id!r} came twice")
        rows[_key(point_id)] = row
    wanted = {_key(point_id): row for row, point_id in enumerate(expected.ids)}
    report += [f"id {key[1]!r} ({key[0]}) is missing" for key in wanted if key not in rows]
    report += [f"id {key[1]!r} ({key[0]}) was not expected" for key in rows if key not in wanted]
    if report:
        return _short(report)
    left, right = list(wanted.values()), [rows[key] for key in wanted]
    ids = [expected.ids[row] for row in left]
    for item in schema.vectors:
        report += _vector_differences(caps, item, ids, expected, got, left, right)
    for sparse in schema.sparse:
        column, other = expected.sparse.get(sparse.name), got.sparse.get(sparse.name)
        for point_id, a, b in zip(ids, left, right, strict=True):
            one, two = column[a] if column else None, other[b] if other else None
            if not _same_sparse(one, two):
                report.append(f"id {point_id!r} sparse {sparse.name}: expected {one}, got {two}")
    for point_id, a, b in zip(ids, left, right, strict=True):
        one_text, two_text = json_dumps(expected.payloads.dicts[a]), json_dumps(got.payloads.dicts[b])
        if one_text != two_text:
            report.append(f"id {point_id!r} payload: expected {_clip(one_text)}, got {_clip(two_text)}")
        if expected.partitions is not None:
            found = got.partitions[b] if got.partitions is not None else None
            if found != expected.partitions[a]:
                report.append(f"id {point_id!r} partition: expected {expected.partitions[a]!r}, got {found!r}")
    return _short(report)


def _key(point_id: PointId) -> tuple[str, PointId]:
    return type(point_id).__name__, point_id


def _shape(schema: CollectionSchema, got: PointBatch) -> Iterable[str]:
    """What is wrong with the form of a batch that a store gave."""
    n = len(got.ids)
    if len(got.payloads) != n:
        yield f"{n} ids but {len(got.payloads)} payloads"
    for item in schema.vectors:
        matrix = got.vectors.get(item.name)
        if matrix is None:
            yield f"vector {item.name!r} is not in the batch (it has {sorted(got.vectors)})"
        elif matrix.shape != (n, item.dimension) or matrix.dtype != np.float32 or not matrix.flags.c_contiguous:
            found = f"{matrix.dtype} {matrix.shape}, C-contiguous: {matrix.flags.c_contiguous}"
            yield f"vector {item.name!r}: expected C-contiguous float32 ({n}, {item.dimension}), got {found}"
    for name, mask in got.missing.items():
        if mask.shape != (n,) or mask.dtype != np.bool_:
            yield f"missing {name!r}: expected bool ({n},), got {mask.dtype} {mask.shape}"
        elif name in got.vectors and got.vectors[name][mask].any():
            yield f"missing {name!r}: the row of a missing vector must be zeros"
    for name, column in got.sparse.items():
        if len(column) != n:
            yield f"sparse {name!r}: {len(column)} entries for {n} ids"
    if got.partitions is not None and len(got.partitions) != n:
        yield f"{len(got.partitions)} partitions for {n} ids"


def _vector_differences(
    caps: Capabilities,
    item: VectorField,
    ids: list[PointId],
    expected: PointBatch,
    got: PointBatch,
    left: list[int],
    right: list[int],
) -> list[str]:
    if not ids:
        return []
    nothing = np.zeros(len(expected), bool), np.zeros(len(got), bool)
    gone = expected.missing.get(item.name, nothing[0])[left]
    lost = got.missing.get(item.name, nothing[1])[right]
    report = [
        f"id {ids[int(row)]!r} vector {item.name!r}: " + ("expected none, got one" if gone[row] else "it is missing")
        for row in np.flatnonzero(gone != lost)
    ]
    one = np.ascontiguousarray(expected.vectors[item.name][left])
    two = np.ascontiguousarray(got.vectors[item.name][right])
    if item.distance in caps.normalises:
        bad = np.abs(_directions(one) - _directions(two)).max(axis=1) > 1e-6
    elif item.datatype != Datatype.FLOAT32:
        scale = np.maximum(np.abs(one).max(axis=1, keepdims=True), 1e-30)
        bad = (np.abs(one - two) / scale).max(axis=1) > (2e-3 if item.datatype == Datatype.FLOAT16 else 1.0)
    else:
        bad = (one.view(np.uint32) != two.view(np.uint32)).any(axis=1)
    return report + [
        f"id {ids[int(row)]!r} vector {item.name!r}: expected {one[row][:4]}…, got {two[row][:4]}…"
        for row in np.flatnonzero(bad & ~gone & ~lost)
    ]


def _directions(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = matrix.astype(np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    scaled: NDArray[np.float64] = np.divide(wide, length, out=np.zeros_like(wide), where=length > 0)
    return scaled


def _same_sparse(one: SparseVector | None, two: SparseVector | None) -> bool:
    if one is None or two is None:
        return one is two
    return np.array_equal(one.indices, two.indices) and np.array_equal(one.values, two.values)


def _clip(text: bytes) -> str:
    shown = text.decode()
    return shown if len(shown) <= 200 else f"{shown[:200]}… ({len(shown)} characters)"


def _short(report: list[str]) -> list[str]:
    return report if len(report) <= 10 else [*report[:10], f"and {len(report) - 10} more"]
