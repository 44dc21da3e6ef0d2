"""The relational side of documents: the user's own tables, over any SQLAlchemy database (SQLite and PostgreSQL tested).

Only the settings stand here; `database` and `chunks` import SQLAlchemy.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from runner.store import ConnectionConfig


class SqlConfig(ConnectionConfig):
    """A relational database."""

    type: Literal["sql"] = Field(description="A relational database, for the chunks table.")
    url: str = Field(
        description="SQLAlchemy URL.",
        examples=["sqlite:///./app.db", "postgresql://app:${env:APP_DB_PASSWORD}@db.internal/app"],
    )

    @property
    def local(self) -> bool:
        return self.url.startswith("sqlite")
