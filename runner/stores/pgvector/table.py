"""A table that holds the points of a collection: its columns, and the SQL that reads and addresses its rows."""

# Names are part of the SQL here; all of them pass `quoted` or `literal`, all values are parameters.
# ruff: noqa: S608

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from runner.points import (
    CollectionSchema,
    Datatype,
    Distance,
    IdKind,
    PayloadField,
    PayloadType,
    PointId,
    VectorField,
    VectorIndex,
    canonical_uuid,
)

NAME_BYTES = 63  # NAMEDATALEN - 1; PostgreSQL cuts longer names without an error
SPARSE_DIMENSIONS = 1_000_000_000  # the most a sparsevec may have
OPERATOR_CLASSES = {Distance.COSINE: "cosine", Distance.DOT: "ip", Distance.EUCLID: "l2", Distance.MANHATTAN: "l1"}
VECTOR_TYPES = ("vector", "halfvec", "sparsevec")
ID_KINDS = {"bigint": IdKind.INT, "uuid": IdKind.UUID, "text": IdKind.STRING}
ID_TYPES = {"int2": "bigint", "int4": "bigint", "int8": "bigint", "uuid": "uuid", "text": "text", "varchar": "text"}
ID_RANGES = {"int2": 2**15, "int4": 2**31}
_PAYLOAD_TYPES = {
    **dict.fromkeys(("int2", "int4", "int8"), PayloadType.INTEGER),
    **dict.fromkeys(("float4", "float8", "numeric"), PayloadType.FLOAT),
    **dict.fromkeys(("timestamp", "timestamptz", "date"), PayloadType.DATETIME),
    **dict.fromkeys(("json", "jsonb"), PayloadType.JSON),
    "bool": PayloadType.BOOL,
    "uuid": PayloadType.UUID,
    "text": PayloadType.TEXT,
}


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """An SQL string, for statements that take no parameters."""
    return "'" + text.replace("'", "''") + "'"


def relation_of(schema: str, table: str) -> str:
    return f"{quoted(schema)}.{quoted(table)}"


def vector_type(item: VectorField) -> str:
    return "halfvec" if item.datatype == Datatype.FLOAT16 else "vector"


@dataclass(frozen=True)
class Vector:
    """One vector column; `size` is the declared dimension or None, `oid` its type's."""

    name: str
    column: str
    type: str
    size: int | None
    oid: int = 0


@dataclass(frozen=True)
class Column:
    """One column that is a key of the payload. `type` is written as in SQL, `base` is its name in pg_type."""

    name: str
    type: str
    base: str

    def json_sql(self, row: str) -> str:
        """The value as row_to_json shows it, but a float8 1.0 stays 1.0 where PostgreSQL prints 1."""
        value = f"{row}.{quoted(self.name)}"
        if self.base in ("float4", "float8"):
            whole = f"{value}::text ~ '^-?[0-9]+$'"
            return f"CASE WHEN {whole} THEN ({value}::text || '.0')::json ELSE to_json({value}) END"
        return value

    def payload_field(self, indexed: bool = False) -> PayloadField:
        base = "text" if self.type in ("varchar", "character varying") else self.base.removeprefix("_")
        length = re.match(r"character varying\((\d+)\)", self.type)
        return PayloadField(
            name=self.name,
            type=_PAYLOAD_TYPES.get(base, PayloadType.KEYWORD),
            array=self.base.startswith("_"),
            indexed=indexed,
            max_length=int(length[1]) if length else None,
        )


@dataclass(frozen=True)
class Index:
    """An index of a vector column that is there; `cast` is the type its numbers are cast to, "" where they are not."""

    column: str
    name: str
    settings: VectorIndex
    distance: Distance
    cast: str = ""


@dataclass(frozen=True)
class Table:
    """Where the points of one collection live, and `schema`, what the collection looks like.

    A payload is the jsonb column `root`, the columns `fields`, or both put together.
    """

    schema: CollectionSchema
    relation: str
    id_column: str
    id_base: str
    vectors: tuple[Vector, ...]
    root: str | None
    root_base: str = "jsonb"
    fields: tuple[Column, ...] = ()
    collection: str | None = None  # uuid of the LangChain collection
    oid: int = 0
    indexes: tuple[Index, ...] = ()

    @property
    def id_type(self) -> str:
        return ID_TYPES[self.id_base]

    @property
    def read_type(self) -> str:
        return "bigint" if self.id_type == "bigint" else "text"

    @property
    def plain(self) -> bool:
        """Whether COPY can write it as it is."""
        return self.root_base == "jsonb" and self.id_base not in ID_RANGES and bool(self.root) and not self.fields

    @property
    def filter(self) -> str:
        return f"t.collection_id = '{self.collection}'::uuid" if self.collection else "true"

    def index_name(self, what: str) -> str:
        """The same name for the same index in every run, within the limit of PostgreSQL."""
        full = f"{self.relation} {what}"
        digest = hashlib.sha256(full.encode()).hexdigest()[:8]
        words = re.sub(r"\W+", "_", full.split(".", 1)[1]).strip("_")
        return words.encode()[: NAME_BYTES - 9].decode(errors="ignore") + "_" + digest

    def keys_sql(self) -> str:
        return "ARRAY[" + ", ".join(literal(item.name) for item in self.fields) + "]"

    def fields_sql(self, row: str) -> str:
        """json of the columns of `row`."""
        columns = ", ".join(f"{item.json_sql(row)} AS {quoted(item.name)}" for item in self.fields)
        return f"(SELECT row_to_json(f) FROM (SELECT {columns}) f)"

    def record_sql(self) -> str:
        """Takes the jsonb `s.p` apart into the columns of `r`."""
        return f"jsonb_to_record(s.p) AS r({', '.join(f'{quoted(item.name)} {item.type}' for item in self.fields)})"

    def payload_sql(self) -> str:
        """JSON text of the payload of row t; NULL where the columns and the root column both have a key."""
        root = f"t.{quoted(self.root)}" if self.root else None
        if not self.fields:
            return f"{root}::text" if root else "'{}'::text"
        if root is None:
            return f"{self.fields_sql('t')}::text"
        root = f"coalesce({root}::jsonb, '{{}}')"
        return f"CASE WHEN NOT {root} ?| {self.keys_sql()} THEN ({root} || {self.fields_sql('t')}::jsonb)::text END"

    def select_sql(self) -> str:
        vectors = "".join(f", t.{quoted(item.column)}" for item in self.vectors)
        return (
            f"SELECT t.{quoted(self.id_column)}::{self.read_type}, {self.payload_sql()}{vectors}"
            f" FROM {self.relation} t WHERE {self.filter}"
        )

    def ids_sql(self) -> str:
        given = "bigint[]" if self.id_type == "bigint" else f"text[]::{self.id_type}[]"
        return f"t.{quoted(self.id_column)} = ANY($1::{given})"

    def possible(self, ids: Sequence[PointId]) -> list[PointId]:
        """Those of `ids` that the type of the id column can hold; others cannot be there."""
        if self.id_type == "bigint":
            return [item for item in ids if isinstance(item, int) and -(2**63) <= item < 2**63]
        if self.id_type == "uuid":
            return [item for item in ids if canonical_uuid(item)]
        return [item for item in ids if isinstance(item, str) and "\0" not in item]
