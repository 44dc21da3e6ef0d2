"""Indexes: which one a wish for a vector becomes, and building those of vectors and payload keys after the load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.points import Datatype, Distance, PayloadField, PayloadType, VectorField, VectorIndex
from runner.stores.pgvector.table import OPERATOR_CLASSES, Table, literal, quoted

if TYPE_CHECKING:
    from runner.stores.pgvector.connection import Connection

_DIMENSIONS = {Datatype.FLOAT32: 2000, Datatype.FLOAT16: 4000}  # the most an index holds (README of pgvector 0.8)


def fit_index(item: VectorField) -> tuple[VectorIndex | None, list[str]]:
    """The index that is built for `item`, and what is different from the one wished for."""
    wish = item.index
    if wish is None or wish.type.lower() == "flat":
        return None, []
    limit = _DIMENSIONS[item.datatype]
    if item.dimension > limit:
        return None, [f"no index: it holds {limit} dimensions at most; searches read the whole table"]
    if wish.type == "ivfflat" and item.distance != Distance.MANHATTAN:
        unknown = set(wish.params) - {"lists"}
        index = VectorIndex(type="ivfflat", params={"lists": int(wish.params.get("lists", 100))})
        return index, [f"unknown settings {', '.join(sorted(unknown))}"] if unknown else []
    notes = [] if wish.type == "hnsw" else [f"{wish.type} becomes hnsw"]
    m = min(max(wish.m or 16, 2), 100)
    construction = min(max(wish.ef_construction or 64, 2 * m), 1000)
    if m != (wish.m or m) or construction != (wish.ef_construction or construction):
        notes.append(f"m {wish.m}, ef_construction {wish.ef_construction} become {m}, {construction}")
    if wish.params:
        notes.append(f"unknown settings {', '.join(sorted(wish.params))}")
    return VectorIndex(m=m, ef_construction=construction), notes


def build_vector_index(conn: Connection, table: Table, wish: VectorField, memory: str) -> None:
    """Build or rebuild the index of one vector, unless it is there."""
    vector = next((item for item in table.vectors if item.name == wish.name), None)
    # only a column with a dimension can have an index that queries use; `fit` said so
    if vector is None or vector.size is None or wish.index is None:
        return
    present = [item for item in table.indexes if item.column == vector.column and item.distance == wish.distance]
    # collections of LangChain share the index, so its settings are nobody's
    if any(table.collection or item.settings == wish.index for item in present):
        return
    name = table.index_name(vector.column)
    outdated = any(item.name == name for item in table.indexes)
    options = {"m": wish.index.m, "ef_construction": wish.index.ef_construction, **wish.index.params}
    settings = ", ".join(f"{key} = {int(value)}" for key, value in options.items() if value is not None)
    _build(
        conn,
        memory,
        f"DROP INDEX {quoted(name)}" if outdated else "",
        f"CREATE INDEX IF NOT EXISTS {quoted(name)} ON {table.relation} USING {wish.index.type}"
        f" ({quoted(vector.column)} {vector.type}_{OPERATOR_CLASSES[wish.distance]}_ops)"
        + (f" WITH ({settings})" if settings else ""),
    )


def build_payload_index(conn: Connection, table: Table, item: PayloadField, memory: str) -> None:
    """An index for equality on one key: btree, hash for long texts, GIN for arrays and objects."""
    import psycopg

    name = quoted(table.index_name(f"payload {item.name}"))
    start = f"CREATE INDEX IF NOT EXISTS {name} ON {table.relation} USING"
    inverted = item.array or item.type in (PayloadType.JSON, PayloadType.GEO)
    if column := next((field for field in table.fields if field.name == item.name), None):
        present = any(field.indexed for field in table.schema.payload if field.name == item.name)
        if not present and column.base != "json":  # json has no operators to index
            _build(conn, memory, f"{start} {'gin' if inverted else 'btree'} ({quoted(item.name)})")
    elif table.root and inverted:
        _build(conn, memory, f"{start} gin (({quoted(table.root)} -> {literal(item.name)}) jsonb_path_ops)")
    elif table.root:
        value = f"({quoted(table.root)} ->> {literal(item.name)})"
        # a condition asks for arrays as well, and only with an index of those that there are does it use the other one
        arrays = (
            f"CREATE INDEX IF NOT EXISTS {quoted(table.index_name(f'arrays {item.name}'))} ON {table.relation}"
            f" ({quoted(table.id_column)}) WHERE jsonb_typeof({quoted(table.root)} -> {literal(item.name)}) = 'array'"
        )
        try:
            _build(conn, memory, f"{start} {'hash' if item.type == PayloadType.TEXT else 'btree'} ({value})", arrays)
        except psycopg.errors.ProgramLimitExceeded:  # a value is too long for a btree
            _build(conn, memory, f"{start} hash ({value})", arrays)


def _build(conn: Connection, memory: str, *statements: str) -> None:
    """Run the statements, all or nothing."""
    import psycopg

    def run(*steps: str) -> None:
        with conn.transaction():
            conn.execute("SELECT set_config('maintenance_work_mem', $1, true)", [memory])
            for step in filter(None, steps):
                conn.execute(step)

    try:
        run(*statements)
    except psycopg.errors.DiskFull:  # perhaps /dev/shm, which parallel builds need: it is 64 MB in a container
        run("SET LOCAL max_parallel_maintenance_workers = 0", *statements)
