"""What Milvus cannot hold: names and settings of a schema, payloads and sparse vectors of a batch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from runner.points import CollectionSchema, IdKind, PayloadField, PayloadType, PointBatch, SparseField, SparseVector
from runner.store import BAD_VECTOR, INDEX, PARTITIONS, PAYLOAD_FIELD, REFUSED, Capabilities, Problem
from runner.stores.milvus.definition import DEFAULT_LENGTH
from runner.stores.milvus.indexes import fit_index
from runner.stores.milvus.layout import DEFAULT_PARTITION, MAX_JSON, MAX_VARCHAR, PRIMARY_KEY, RESERVED, Layout
from runner.stores.milvus.payload import Split, hider

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,253}")


def fit(schema: CollectionSchema, caps: Capabilities) -> tuple[CollectionSchema, list[Problem]]:
    """The schema Milvus would create. No payload field is declared but the partition key."""
    problems = [*_bad_names(schema), *_bad_vectors(schema, caps)]
    vectors = []
    for item in schema.vectors:
        index, lost = fit_index(item.index)
        if lost:
            problems.append(Problem(INDEX, lost, f"vector {item.name}"))
        vectors.append(item.model_copy(update={"index": index}))
    key = schema.partition_key
    if key is not None and (not _NAME.fullmatch(key) or key == PRIMARY_KEY):
        problems.append(Problem(PARTITIONS, f"{key!r} cannot be a partition key", key))
        key = None
    if key and schema.partitions:
        problems.append(Problem(PARTITIONS, "Milvus has either partitions or a partition key; the key is kept"))
    indexed = [item.name for item in schema.payload if item.indexed and item.name != key]
    if indexed:
        problems.append(Problem(INDEX, f"payload fields are not indexed here: {', '.join(indexed)}"))
    text = schema.id_kind != IdKind.INT
    changes = {
        "id_kind": IdKind.STRING if schema.id_kind == IdKind.UUID else schema.id_kind,
        "id_max_length": min(schema.id_max_length or DEFAULT_LENGTH, MAX_VARCHAR) if text else None,
        "vectors": tuple(vectors),
        "sparse": tuple(SparseField(name=item.name) for item in schema.sparse),
        "payload": (_partition_field(schema, key),) if key else (),
        "partitions": None if key else tuple(sorted(set(schema.partitions or ()) - {DEFAULT_PARTITION})) or None,
        "partition_key": key,
    }
    return schema.model_copy(update=changes), problems


def _bad_names(schema: CollectionSchema) -> Iterator[Problem]:
    names = [("collection", schema.name), *(("partition", item) for item in schema.partitions or ())]
    names += [("vector", item.name) for item in schema.vectors]
    names += [("vector", item.name) for item in schema.sparse]
    for what, name in names:
        if not _NAME.fullmatch(name):
            rule = "letters, digits and _, not beginning with a digit, at most 254"
            yield Problem(REFUSED, f"a name in Milvus has {rule}", f"{what} {name or '(unnamed)'}")
        elif what == "vector" and (name in RESERVED or name == PRIMARY_KEY):
            yield Problem(REFUSED, "the name is taken", f"vector {name}")


def _bad_vectors(schema: CollectionSchema, caps: Capabilities) -> Iterator[Problem]:
    total = len(schema.vectors) + len(schema.sparse)
    if not total:
        yield Problem(REFUSED, "a collection in Milvus has at least one vector")
    elif total > caps.max_vectors >= len(schema.vectors) and caps.sparse:
        yield Problem(REFUSED, f"{total} vectors a point, dense and sparse; milvus holds {caps.max_vectors}")
    for item in schema.vectors:
        if item.dimension < 2:
            yield Problem(REFUSED, "Milvus has no vectors of one dimension", f"vector {item.name}")


def _partition_field(schema: CollectionSchema, key: str) -> PayloadField:
    declared = next((item for item in schema.payload if item.name == key), None)
    if declared is not None and declared.type == PayloadType.INTEGER:
        return PayloadField(name=key, type=PayloadType.INTEGER)
    length = (declared.max_length if declared is not None else None) or DEFAULT_LENGTH
    return PayloadField(name=key, type=PayloadType.KEYWORD, max_length=min(length, MAX_VARCHAR))


def bad_sparse(label: str, batch: PointBatch) -> list[Problem]:
    """Points without this sparse vector, and those whose numbers a server refuses."""
    column, place = batch.sparse.get(label, []), f"vector {label}"
    message = "not all positions ascend below 2^32-1 with a finite number above 0"
    bad = [entry is not None and not _sparse_fits(entry) for entry in column]
    return [
        *_seen(REFUSED, "a point without this vector", place, batch, [entry is None for entry in column]),
        *_seen(BAD_VECTOR, message, place, batch, bad),
    ]


def _sparse_fits(entry: SparseVector) -> bool:
    indices, values = entry.indices, entry.values
    ordered = len(indices) > 0 and bool((np.diff(indices) > 0).all()) and indices[0] >= 0 and indices[-1] < 2**32 - 1
    return ordered and bool((values > 0).all()) and bool(np.isfinite(values).all())


def bad_payloads(layout: Layout, batch: PointBatch) -> list[Problem]:
    """Payloads over 64 KB, and values that the typed fields of an existing collection do not hold."""
    try:
        texts = batch.payloads.json
    except ValueError:
        return _seen(PAYLOAD_FIELD, "NaN and infinity are not JSON", "", batch, [True] * len(batch))
    if not layout.typed and layout.dynamic:
        hide = hider(layout)
        # a text grows when keys are hidden: it is put in quotes once more
        large = [len(text) > MAX_JSON // 8 and len(hide(text)) > MAX_JSON for text in texts]
        return _seen(PAYLOAD_FIELD, f"larger than {MAX_JSON:,} bytes as JSON", "", batch, large)
    unfit: dict[str, list[bool]] = {}
    for row, payload in enumerate(batch.payloads.dicts):
        for field in Split(layout, payload).unfit:
            unfit.setdefault(field, [False] * len(batch))[row] = True
    message = "a value or its absence does not fit the field"
    return [problem for field, rows in unfit.items() for problem in _seen(PAYLOAD_FIELD, message, field, batch, rows)]


def _seen(code: str, message: str, field: str, batch: PointBatch, bad: Sequence[bool]) -> list[Problem]:
    """No problem or one, with the ids of the rows that are bad."""
    rows = [row for row, flag in enumerate(bad) if flag]
    return [Problem(code, message, field, tuple(batch.ids[row] for row in rows[:5]), len(rows))] if rows else []
