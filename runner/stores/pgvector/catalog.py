"""What PostgreSQL's catalogue tells of the collections of one schema, where a table is a collection."""

# ruff: noqa: S608

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from runner.errors import Permanent
from runner.points import (
    CollectionSchema,
    Datatype,
    Distance,
    IdKind,
    PayloadField,
    SparseField,
    VectorField,
    VectorIndex,
)
from runner.store import Capabilities, Problem
from runner.stores.pgvector.aliases import aliases_of
from runner.stores.pgvector.config import PgvectorConfig, TableMapping
from runner.stores.pgvector.connection import Pool, install_extension
from runner.stores.pgvector.table import (
    ID_KINDS,
    ID_TYPES,
    OPERATOR_CLASSES,
    SPARSE_DIMENSIONS,
    VECTOR_TYPES,
    Column,
    Index,
    Table,
    Vector,
    literal,
    quoted,
    relation_of,
    vector_type,
)

if TYPE_CHECKING:
    from runner.stores.pgvector.connection import Connection

ID_BYTES = 2600  # a btree entry holds a third of a page (2704 bytes) at most
_COMMENT_MARK = "vecrun: "

_NAMES = """
SELECT c.relname::text FROM pg_class c
WHERE c.relnamespace = to_regnamespace(quote_ident($1)) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND EXISTS (SELECT FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = c.oid
    AND a.attnum > 0 AND NOT a.attisdropped AND t.typname IN ('vector', 'halfvec', 'sparsevec'))
"""
_COLUMNS = """
SELECT a.attname::text, t.typname::text, format_type(a.atttypid, a.atttypmod), nullif(a.atttypmod, -1), t.oid::bigint,
  a.attgenerated <> '', coalesce(a.attnum = ANY (k.indkey), false),
  EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indkey[0] = a.attnum), c.oid::bigint
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_type t ON t.oid = a.atttypid
  LEFT JOIN pg_index k ON k.indrelid = c.oid AND k.indisprimary
WHERE c.oid = to_regclass($1) AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_INDEXES = """
SELECT c.relname::text, m.amname::text, o.opcname::text, a.attname::text, pg_get_indexdef(i.indexrelid, 1, true),
  coalesce(c.reloptions, '{}')
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
  JOIN pg_opclass o ON o.oid = i.indclass[0]
  LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
WHERE i.indrelid = $1::oid AND i.indisvalid ORDER BY 1
"""


class Attribute(NamedTuple):
    """A column as the catalogue has it; `size` is the type modifier, `table` the oid of the table."""

    base: str
    type: str
    size: int | None
    type_oid: int
    generated: bool
    key: bool
    indexed: bool
    table: int


class Catalog:
    """Every table with a vector column is a collection. What was found is kept until something fails."""

    def __init__(self, config: PgvectorConfig, pool: Pool) -> None:
        self.config, self._pool = config, pool
        self._found: dict[str, Table] = {}

    @contextmanager
    def session(self, doing: str) -> Iterator[Connection]:
        try:
            with self._pool.session(doing) as conn:
                yield conn
        except Exception:
            self._found.clear()  # perhaps somebody changed a table
            raise

    def capabilities(self) -> Capabilities:
        return Capabilities(
            id_kinds=frozenset({IdKind.INT, IdKind.UUID, IdKind.STRING}),
            distances=frozenset(Distance),
            default_vector_name="embedding",
            id_max_bytes=ID_BYTES,
            datatypes=frozenset({Datatype.FLOAT32, Datatype.FLOAT16}),
            max_vectors=100,
            sparse=True,
            missing_vectors=True,
            aliases=True,
        )

    def collections(self) -> list[str]:
        with self.session("listing collections") as conn:
            return sorted(name for (name,) in conn.execute(_NAMES, [self.config.schema_name]))

    def find(self, name: str, fresh: bool = False) -> Table | None:
        table = None if fresh else self._found.get(name)
        if table is None:
            with self.session(f"looking at {name}") as conn:
                table = self._look(conn, name)
            self.forget(name)
            if table is not None:
                self._found[name] = table
        return table

    def forget(self, name: str) -> None:
        self._found.pop(name, None)

    def planned(self, schema: CollectionSchema) -> Table:
        """The table `create` would make."""
        vectors = [Vector(item.name, item.name, vector_type(item), item.dimension) for item in schema.vectors]
        vectors += [Vector(item.name, item.name, "sparsevec", item.dimension) for item in schema.sparse]
        base = {IdKind.INT: "int8", IdKind.UUID: "uuid"}.get(schema.id_kind, "text")
        return Table(schema, self.relation(schema.name), "id", base, tuple(vectors), root="payload")

    def fit(self, schema: CollectionSchema) -> tuple[CollectionSchema, list[Problem]]:
        """What the kind of table changes of a schema that fits otherwise."""
        return schema, []

    def create(self, schema: CollectionSchema) -> None:
        table = self.planned(schema)
        columns = [f"id {table.id_type} PRIMARY KEY"]
        columns += [f"{quoted(item.column)} {item.type}({item.size or SPARSE_DIMENSIONS})" for item in table.vectors]
        columns.append("payload jsonb NOT NULL DEFAULT '{}'")
        note = {
            "distance": {item.name: item.distance for item in schema.vectors},
            "payload": [item.model_dump(mode="json", exclude_defaults=True) for item in schema.payload],
        }
        comment = literal(_COMMENT_MARK + json.dumps(note, sort_keys=True))
        with self.session(f"creating {schema.name}") as conn:
            install_extension(conn)
            with conn.transaction():
                conn.execute(f"CREATE TABLE {table.relation} ({', '.join(columns)})")
                conn.execute(f"COMMENT ON TABLE {table.relation} IS {comment}")
        self.forget(schema.name)

    def drop(self, table: Table) -> None:
        """Our own views go with it; one that somebody else made stops the DROP."""
        name = table.schema.name
        with self.session(f"dropping {name}") as conn, conn.transaction():
            for alias, target in aliases_of(conn, self.config.schema_name).items():
                if target == name:
                    conn.execute(f"DROP VIEW {self.relation(alias)}")
            conn.execute(f"DROP TABLE IF EXISTS {table.relation}")
        self.forget(name)

    def relation(self, table: str) -> str:
        return relation_of(self.config.schema_name, table)

    def attributes(self, conn: Connection, table: str) -> dict[str, Attribute]:
        """The columns by name; empty if there is no such table."""
        return {name: Attribute(*rest) for name, *rest in conn.execute(_COLUMNS, [self.relation(table)])}

    def _look(self, conn: Connection, name: str) -> Table | None:
        [(comment,)] = conn.execute("SELECT obj_description(to_regclass($1), 'pg_class')", [self.relation(name)])
        return self._read(conn, name, name, self.config.tables.get(name) or TableMapping(), _note(comment or ""))

    def _read(
        self,
        conn: Connection,
        name: str,
        table: str,
        mapping: TableMapping,
        note: dict[str, Any],
        collection: str | None = None,
    ) -> Table | None:
        """The table of the collection `name`. Permanent where the mapping must say more."""
        columns = self.attributes(conn, table)
        if not columns:
            return None

        def checked(column: str, *types: str) -> str:
            """`column`, which is there and of one of `types`."""
            if column not in columns:
                there = f"There are {', '.join(columns)}."
                raise Permanent("A column of the mapping does not exist", f"{table}.{column}", there)
            if types and columns[column].base not in types:
                kind = f"{table}.{column} is {columns[column].type}"
                raise Permanent("The type of a column is not supported", kind, f"It must be one of {', '.join(types)}.")
            return column

        keys = [key for key, item in columns.items() if item.key]
        if mapping.id_column is None and len(keys) != 1:
            raise Permanent(
                "The id column is not known",
                f"table {table}: the primary key has {len(keys)} columns",
                f"Set tables.{table}.id_column of the connection.",
            )
        id_column = checked(mapping.id_column or keys[0], *ID_TYPES)
        wanted = mapping.vectors
        if wanted is None:
            wanted = {key: key for key, item in columns.items() if item.base in VECTOR_TYPES}
        if not wanted:
            return None
        vectors = []
        for key, item in wanted.items():
            base, _, size, oid, *_ = columns[checked(item, *VECTOR_TYPES)]
            vectors.append(Vector(key, item, base, size, oid))
        root = mapping.payload_column and checked(mapping.payload_column, "json", "jsonb")
        if root is None and "payload" in columns and "payload" not in (mapping.fields or []):
            root = "payload" if columns["payload"].base == "jsonb" else None
        rest = [key for key, item in columns.items() if item.base not in VECTOR_TYPES and not item.generated]
        rest = [key for key in rest if key not in (id_column, root)]
        chosen = rest if mapping.fields is None else mapping.fields
        fields = [Column(checked(key), columns[key].type, columns[key].base) for key in chosen]
        if binary := [item.name for item in fields if item.base in ("bytea", "_bytea")]:
            raise Permanent(
                "A bytea column cannot be part of a payload",
                f"{table}.{binary[0]}",
                f"Name the columns to carry in tables.{table}.fields and leave it out.",
            )
        told = {
            "columns_left_out": "" if collection else ", ".join(sorted(set(rest) - set(chosen))),
            "numbers_read_as_float": ", ".join(item.name for item in fields if item.base == "numeric"),
        }
        id_base, oid = columns[id_column].base, columns[id_column].table
        root_base = columns[root].base if root else "jsonb"
        names, indexes = _indexes(conn, oid)
        schema = CollectionSchema(
            name=name,
            id_kind=ID_KINDS[ID_TYPES[id_base]],
            payload=tuple(item.payload_field(columns[item.name].indexed) for item in fields),
            settings={key: value for key, value in told.items() if value},
        )
        where = (self.relation(table), id_column, id_base, tuple(vectors), root, root_base, tuple(fields))
        found = Table(schema, *where, collection, oid, indexes)
        return replace(found, schema=_described(conn, found, note, mapping.distance, names))


def _indexes(conn: Connection, oid: int) -> tuple[set[str], tuple[Index, ...]]:
    """Names of all valid indexes; those of vectors. One on a cast as embedding::halfvec(3072) counts for its column."""
    metrics = {suffix: metric for metric, suffix in OPERATOR_CLASSES.items()}
    names, found = set(), []
    for name, method, operators, column, expression, options in conn.execute(_INDEXES, [oid]):
        names.add(name)
        metric = metrics.get(operators.split("_")[1]) if method in ("hnsw", "ivfflat") else None
        if metric is None:
            continue
        given = dict(item.split("=", 1) for item in options)
        if method == "hnsw":
            index = VectorIndex(m=int(given.get("m", 16)), ef_construction=int(given.get("ef_construction", 64)))
        else:
            index = VectorIndex(type="ivfflat", params={"lists": int(given.get("lists", 100))})
        cast = "" if column else expression.removeprefix("(").removesuffix(")").partition("::")[2]
        found.append(Index(column or expression.split("::")[0].strip('()"'), name, index, metric, cast))
    return names, tuple(found)


def _described(
    conn: Connection, table: Table, note: dict[str, Any], metric: Distance | None, indexes: set[str]
) -> CollectionSchema:
    """The schema with its vectors and the payload of the note. `metric` is that of vectors nothing else tells it of."""
    dense, sparse, settings = [], [], dict(table.schema.settings)
    for item in table.vectors:
        if item.type == "sparsevec":
            sparse.append(SparseField(name=item.name, dimension=item.size))
            continue
        index = next((entry for entry in table.indexes if entry.column == item.column), None)
        noted = note.get("distance", {}).get(item.name)
        # collections of LangChain share one index, whatever their own metric is
        told = (noted if table.collection else None) or (index and index.distance) or noted or metric
        if told is None:
            settings["distance_assumed"] = True
        dense.append(
            VectorField(
                name=item.name,
                dimension=item.size or note.get("dimension") or _dimension(conn, table, item),
                distance=Distance(told or Distance.COSINE),
                datatype=Datatype.FLOAT16 if item.type == "halfvec" else Datatype.FLOAT32,
                index=index.settings if index else None,
            )
        )
    payload = list(table.schema.payload)
    for entry in note.get("payload", []):
        indexed = table.index_name(f"payload {entry['name']}") in indexes
        payload.append(PayloadField.model_validate({**entry, "indexed": indexed}))
    changes = {"vectors": tuple(dense), "sparse": tuple(sparse), "payload": tuple(payload), "settings": settings}
    return table.schema.model_copy(update=changes)


def _dimension(conn: Connection, table: Table, item: Vector) -> int:
    """Dimension of a column that declares none, from its first vector."""
    column = f"t.{quoted(item.column)}"
    query = (
        f"SELECT vector_dims({column}) FROM {table.relation} t WHERE {table.filter} AND {column} IS NOT NULL LIMIT 1"
    )
    row = conn.execute(query).fetchone()
    if row is None:
        raise Permanent(
            "The dimension is not known",
            f"collection {table.schema.name}: column {item.column} declares none and holds no vector",
            f"ALTER TABLE … ALTER COLUMN {item.column} TYPE {item.type}(<dimension>)",
        )
    return int(row[0])


def _note(comment: str) -> dict[str, Any]:
    """What `create` wrote into the comment of a table."""
    if not comment.startswith(_COMMENT_MARK):
        return {}
    try:
        return dict(json.loads(comment.removeprefix(_COMMENT_MARK)))
    except ValueError:
        return {}  # edited by hand
