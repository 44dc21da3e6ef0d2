"""PostgreSQL with the pgvector extension: every table with a vector column is a collection, or every LangChain one is.

Reads are keyset pages in binary, writes are binary COPY with an upsert as the second way. PostgreSQL itself builds
the JSON text of a payload from the columns of a row and takes it apart again, so no payload is parsed here.
"""

from runner.stores.pgvector.config import PgvectorConfig, TableMapping
from runner.stores.pgvector.store import PgvectorStore

__all__ = ["PgvectorConfig", "PgvectorStore", "TableMapping"]
