"""Settings of a connection to PostgreSQL."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from runner.points import Distance
from runner.store import ConnectionConfig


class TableMapping(BaseModel):
    """How one table of any shape is read and written. What is left out is detected."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id_column: str | None = Field(
        None, description="Column with unique ids; default: the primary key.", examples=["chunk_id"]
    )
    vectors: dict[str, str] | None = Field(
        None,
        description="Vector name -> column; default: every vector, halfvec and sparsevec column under its own name.",
        examples=[{"text": "text_embedding"}],
    )
    payload_column: str | None = Field(
        None,
        description="jsonb column that is the payload itself; default: a jsonb column called payload.",
        examples=["metadata"],
    )
    fields: list[str] | None = Field(
        None,
        description="Columns carried as payload keys; default: all others.",
        examples=[["title", "published_at"]],
    )
    distance: Distance | None = Field(
        None,
        description="Metric of vectors that have no index telling it (VI105), also of a LangChain collection; default: cosine.",
        examples=["euclid"],
    )


class PgvectorConfig(ConnectionConfig):
    """A PostgreSQL database with pgvector 0.7 or newer."""

    type: Literal["pgvector"] = Field("pgvector", description="The kind of store.", examples=["pgvector"])
    url: str = Field(
        repr=False,
        description="libpq URL or connection string.",
        examples=["postgresql://vecrun:${env:PG_PASSWORD}@db.example.com:5432/app", "host=/run/postgresql dbname=app"],
    )
    schema_name: str = Field("public", description="Schema whose tables are the collections.", examples=["search"])
    layout: Literal["tables", "langchain"] = Field(
        "tables",
        description="tables: a table is a collection. langchain: a row of the collection table is one.",
        examples=["langchain"],
    )
    tables: dict[str, TableMapping] = Field(
        {},
        description="Mappings of tables that detection does not understand.",
        examples=[{"chunks": {"id_column": "chunk_id", "fields": ["text"]}}],
    )
    collection_table: str = Field(
        "langchain_pg_collection", description="LangChain's table of collections.", examples=["langchain_pg_collection"]
    )
    embedding_table: str = Field(
        "langchain_pg_embedding", description="LangChain's table of points.", examples=["langchain_pg_embedding"]
    )
    maintenance_work_mem: str = Field(
        "512MB", description="Memory for building an index; HNSW is slow once it does not fit.", examples=["4GB"]
    )
    connect_timeout: int = Field(10, ge=1, description="Seconds to wait for a connection.", examples=[10])
