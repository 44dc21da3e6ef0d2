"""What PostgreSQL and pgvector cannot hold: names of a schema, and ids, payloads and vectors of a batch."""

# ruff: noqa: S608

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from runner.points import CollectionSchema, PointBatch, PointId, canonical_uuid
from runner.store import BAD_ID, BAD_VECTOR, PAYLOAD_FIELD, PRECISION, REFUSED, Problem
from runner.stores.pgvector.connection import message_of
from runner.stores.pgvector.rows import OIDS, array, pack_payloads
from runner.stores.pgvector.table import ID_RANGES, NAME_BYTES, SPARSE_DIMENSIONS, Table

if TYPE_CHECKING:
    from runner.stores.pgvector.connection import Connection

#: code, message, place and the rows of a batch where it was seen
Finding = tuple[str, str, str, list[int]]

_SPARSE_ENTRIES = 16_000
_TAKEN_COLUMNS = {"id", "payload", "ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"}
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_NEGATIVE_ZERO = re.compile(
    rb'"(?:[^"\\]|\\.)*"|(-0(?:\.0+(?:[eE][+-]?\d+)?|[eE][+-]?\d+))(?![\d.eE])', re.DOTALL
)  # strings are passed over


def schema_problems(schema: CollectionSchema) -> Iterator[Problem]:
    names = [item.name for item in schema.vectors] + [item.name for item in schema.sparse]
    for name in [schema.name, *names]:
        if not name or len(name.encode()) > NAME_BYTES or "\0" in name:
            yield Problem(REFUSED, f"a name needs 1 … {NAME_BYTES} bytes", name or "(unnamed)")
        elif name in names and (name in _TAKEN_COLUMNS or names.count(name) > 1):
            yield Problem(REFUSED, "the table has another column of this name", f"vector {name}")
    for item in schema.sparse:
        if (item.dimension or 0) > SPARSE_DIMENSIONS:
            yield Problem(REFUSED, f"more than {SPARSE_DIMENSIONS} dimensions", f"vector {item.name}")


def bad_ids(table: Table, ids: list[PointId]) -> Finding:
    if limit := ID_RANGES.get(table.id_base):
        rows = [row for row, item in enumerate(ids) if not (isinstance(item, int) and -limit <= item < limit)]
        return BAD_ID, f"out of the range of {table.id_base}", "id", rows
    if table.id_type == "uuid":
        rows = [row for row, item in enumerate(ids) if not canonical_uuid(item)]
        return BAD_ID, "not a UUID in its canonical form", "id", rows
    rows = [row for row, item in enumerate(ids) if isinstance(item, str) and "\0" in item]
    return BAD_ID, "PostgreSQL keeps no NUL character", "id", rows


def bad_vectors(table: Table, batch: PointBatch) -> Iterator[Finding]:
    for item in table.vectors:
        place = f"vector {item.name}"
        if item.type == "halfvec" and item.name in batch.vectors:
            large = np.flatnonzero((np.abs(batch.vectors[item.name]) >= 65520).any(axis=1))
            yield BAD_VECTOR, "numbers beyond the range of halfvec", place, large.tolist()
        elif item.type == "sparsevec":
            size = item.size or SPARSE_DIMENSIONS
            entries = [(row, entry) for row, entry in enumerate(batch.sparse.get(item.name, [])) if entry is not None]
            wide = [
                row
                for row, (indices, _) in entries
                if len(indices) and (indices[-1] >= size or indices[0] < 0 or len(indices) > _SPARSE_ENTRIES)
            ]
            yield BAD_VECTOR, f"positions up to {size - 1}, entries up to {_SPARSE_ENTRIES}", place, wide
            zeros = [row for row, (_, values) in entries if not values.all()]
            yield PRECISION, "entries that are zero are not kept", place, zeros


def bad_payloads(texts: list[bytes]) -> Iterator[Finding]:
    """What jsonb changes."""
    nul = [row for row, text in enumerate(texts) if b"\\u0000" in text and _NUL.search(text)]
    yield PAYLOAD_FIELD, "jsonb keeps no NUL character", "payload", nul
    signs = [
        row
        for row, text in enumerate(texts)
        if b"-0" in text and any(found[1] for found in _NEGATIVE_ZERO.finditer(text))
    ]
    yield PAYLOAD_FIELD, "jsonb drops the sign of -0.0", "payload", signs


def bad_columns(conn: Connection, table: Table, texts: list[bytes]) -> Finding:
    """What the typed columns of a table would change: PostgreSQL itself converts there and back and compares."""
    import psycopg

    back, source = "'{}'::jsonb", ""
    if table.fields:
        back, source = f"{table.fields_sql('r')}::jsonb", f", {table.record_sql()}"
        back = f"((s.p - {table.keys_sql()}) || {back})" if table.root else back
    query = (
        "SELECT s.n::int FROM unnest($1::jsonb[]) WITH ORDINALITY AS s(p, n)"
        f"{source} WHERE {back} IS DISTINCT FROM s.p ORDER BY 1"
    )
    pieces = pack_payloads(texts)

    def changed(some: list[bytes]) -> list[int]:
        return [row - 1 for (row,) in conn.execute(query, [array(OIDS["jsonb"], some)])]

    def unlike(piece: bytes) -> str:
        """The keys of one payload that come back otherwise."""
        [(sent, read)] = conn.execute(
            f"SELECT s.p::text, ({back})::text FROM unnest($1::jsonb[]) AS s(p){source}",
            [array(OIDS["jsonb"], [piece])],
        )
        before, after = json.loads(sent), json.loads(read)
        names = []
        for key in sorted({*before, *after}):
            if key not in before:
                names.append(f"{key} (missing, and read back as null)")
            elif key not in after:
                names.append(f"{key} (no such column)")
            elif before[key] != after[key]:
                names.append(key)
        return f": {', '.join(names[:5])}" + (" and more" if len(names) > 5 else "") if names else ""

    try:
        rows = changed(pieces)
        names = unlike(pieces[rows[0]]) if rows else ""
        return PAYLOAD_FIELD, f"the columns cannot hold these keys and values exactly{names}", "payload", rows
    except psycopg.DataError as exc:
        message, rows = f"a column cannot hold the value: {message_of(exc)}", []
    for row, piece in enumerate(pieces):
        try:
            changed([piece])
        except psycopg.DataError:
            rows.append(row)
    return PAYLOAD_FIELD, message, "payload", rows
