"""What points a collection of Qdrant cannot hold exactly: ids, numbers of vectors, numbers of payloads."""

from __future__ import annotations

import numpy as np

from runner.points import CollectionSchema, Datatype, PointBatch, canonical_uuid
from runner.store import BAD_ID, BAD_VECTOR, PAYLOAD_FIELD, Problem
from runner.stores.qdrant.payload import is_odd, is_rounded

#: Numbers a narrower datatype can hold; beyond them Qdrant would store infinity or wrap around.
_RANGES = {Datatype.FLOAT16: (-65504.0, 65504.0), Datatype.UINT8: (0.0, 255.0)}


def problems(schema: CollectionSchema, batch: PointBatch, *, local: bool) -> list[Problem]:
    """Beyond what every store checks. A server also changes floats of payloads that local mode keeps."""
    found: list[Problem] = []

    def tell(code: str, what: str, field: str, rows: list[int]) -> None:
        if rows:
            found.append(Problem(code, what, field, tuple(batch.ids[row] for row in rows[:5]), len(rows)))

    texts = [row for row, item in enumerate(batch.ids) if isinstance(item, str) and not canonical_uuid(item)]
    tell(BAD_ID, "not a UUID in canonical form", "id", texts)
    for item in schema.vectors:
        if item.datatype in _RANGES and item.name in batch.vectors:
            low, high = _RANGES[item.datatype]
            matrix = batch.vectors[item.name]
            rows = np.flatnonzero(((matrix < low) | (matrix > high)).any(axis=1)).tolist()
            tell(BAD_VECTOR, f"numbers beyond {item.datatype}", f"vector {item.name or '(unnamed)'}", rows)
    for name, entries in batch.sparse.items():
        rows = [
            row
            for row, entry in enumerate(entries)
            if entry is not None and len(entry.indices) and not 0 <= entry.indices[0] <= entry.indices[-1] < 2**32
        ]
        tell(BAD_VECTOR, "positions beyond 32 bits", f"vector {name}", rows)
    payloads = batch.payloads.dicts
    what = "integers beyond 64 bits become floats, NaN, infinity and integers beyond 1.79e308 null"
    tell(PAYLOAD_FIELD, what, "payload", [row for row, payload in enumerate(payloads) if is_odd(payload)])
    if not local:
        what = "floats of 16 or 17 digits that a server reads back with another last digit"
        tell(PAYLOAD_FIELD, what, "payload", [row for row, payload in enumerate(payloads) if is_rounded(payload)])
    return found
