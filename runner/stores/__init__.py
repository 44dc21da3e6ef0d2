"""The stores vecrun knows: one file each, imported on use. A fifth store is one file and one line here."""

from __future__ import annotations

import importlib
from typing import cast

from runner.errors import NotFound, Permanent
from runner.store import ConnectionConfig, Store

#: type -> "module:StoreClass:ConfigClass". Importing the module imports no client library; `connect` does.
STORES: dict[str, str] = {
    "files": "runner.stores.files:FilesStore:FilesConfig",
    "milvus": "runner.stores.milvus:MilvusStore:MilvusConfig",
    "pgvector": "runner.stores.pgvector:PgvectorStore:PgvectorConfig",
    "qdrant": "runner.stores.qdrant:QdrantStore:QdrantConfig",
    "weaviate": "runner.stores.weaviate:WeaviateStore:WeaviateConfig",
}


def config_model(store_type: str) -> type[ConnectionConfig]:
    """The pydantic model of a connection of this type. NotFound lists the types there are."""
    module, _, name = _entry(store_type)
    return cast("type[ConnectionConfig]", getattr(importlib.import_module(module), name))


def open_store(config: ConnectionConfig) -> Store:
    """Connect. A client library that is not installed is a Permanent error with the command that adds it."""
    module, name, _ = _entry(config.type)
    store = cast("type[Store]", getattr(importlib.import_module(module), name))
    try:
        return store.connect(config)
    except ModuleNotFoundError as exc:
        raise Permanent(
            "A client library is missing",
            f"connections of type {config.type} need the package {(exc.name or '').split('.')[0]!r}",
            f"pip install 'vecrun[{config.type}]'",
        ) from exc


def _entry(store_type: str) -> tuple[str, str, str]:
    try:
        module, store, config = STORES[store_type].split(":")
    except KeyError:
        raise NotFound("No such store type", f"{store_type!r}; there are {', '.join(STORES)}") from None
    return module, store, config
