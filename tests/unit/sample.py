"""A plan with every kind of step, for tests of the records."""

from __future__ import annotations

from typing import Any

from runner.plan import (
    ChunkTable,
    CopyPoints,
    CreateCollection,
    FinishCollection,
    Place,
    Plan,
    RewriteIds,
    SetServing,
    Step,
    SwitchAlias,
    VerifyPoints,
)
from runner.points import CollectionSchema, Distance, IdKind, VectorField

SOURCE, TARGET = Place(connection="a", collection="kb"), Place(connection="b", collection="kb2")
SCHEMA = CollectionSchema(
    name="kb2", id_kind=IdKind.INT, vectors=(VectorField(name="", dimension=4, distance=Distance.DOT),)
)
CHUNKS = ChunkTable(connection="app", table="chunks", id_column="id", vector_id_column="vector_id")
STEPS: tuple[Step, ...] = (
    CreateCollection(target=TARGET, schema=SCHEMA),
    CopyPoints(source=SOURCE, target=TARGET, target_schema=SCHEMA, points=3),
    FinishCollection(target=TARGET, schema=SCHEMA),
    VerifyPoints(source=SOURCE, target=TARGET, target_schema=SCHEMA, points=3),
    RewriteIds(chunks=CHUNKS, undo_table="undo", collections=(("kb", "kb2"),), rows=3),
    SwitchAlias(connection="b", alias="live", before="old", after="kb2"),
    SetServing(name="live", before=None, after=TARGET),
)


def plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "tool_version": "0", "created": "2026-11-20T10:00:00+00:00", "job": "move", "kind": "VectorMigration",
        "lineage": "l", "serial": 0, "spec_digest": "sha256:s", "connections": {"a": "x", "b": "y"}, "steps": STEPS,
    }  # fmt: skip
    return Plan(**(values | changes)).sealed()
