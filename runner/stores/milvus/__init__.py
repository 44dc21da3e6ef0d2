"""Milvus as a store: Milvus Lite (a directory of this machine) and real servers from 2.3, through pymilvus.

Points travel as the columns of the gRPC messages, not as pymilvus' rows: floats are copied as one block and the payload
is the JSON text of the dynamic field, byte for byte. What a natural key cannot hold lies as JSON text under `_vecrun`.
"""

from runner.stores.milvus.config import MilvusConfig
from runner.stores.milvus.store import MilvusStore

__all__ = ["MilvusConfig", "MilvusStore"]
