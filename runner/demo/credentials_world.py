"""The database that `vecrun demo --sql` migrates: 40 users, 500 knowledge bases, model settings with API keys in clear; and an
application that reads credentials without vecrun."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

USERS, BASES = 40, 500
TYPES = {
    "embedding": ("text-embedding-3-small", "embed-v4", "embedding-3"),
    "reranker": ("rerank-v3.5", "jina-reranker-v2"),
    "llm": ("gpt-4.1", "claude-sonnet-4", "glm-4"),
    "vlm": ("gpt-4.1-mini", "qwen-vl-max"),
}
PROVIDERS = {
    "openai": None,
    "azure": "https://acme.openai.azure.com",
    "cohere": None,
    "dashscope": "https://dashscope.cn/v1",
}


@dataclass(frozen=True)
class Used:
    """What a knowledge base uses for one type of model."""

    user: int  # whose credential it is
    provider: str
    base_url: str | None
    api_key: str = field(repr=False)
    model: str


@dataclass
class Settings:
    """Knowledge bases (id, user, name, settings as they are stored) and what they mean."""

    rows: list[tuple[int, int, str, str | None]] = field(default_factory=list)
    used: dict[tuple[int, str], Used] = field(default_factory=dict)  # (knowledge base, type) -> what can be used
    wrong: dict[int, str] = field(default_factory=dict)  # knowledge base -> what is wrong with its settings
    keys: set[str] = field(default_factory=set, repr=False)  # every API key, also of wrong settings

    @property
    def distinct(self) -> int:
        """Credentials that there are when equal ones of a user are one."""
        return len({(one.user, kind, one.provider, one.base_url, one.api_key) for (_, kind), one in self.used.items()})


def settings(*, broken_json: bool, bases: int = BASES) -> Settings:
    """Always the same ones. Users have few API keys, and two companies share one between their users; some settings are missing,
    some wrong. `broken_json`: some are no JSON at all, which a column of PostgreSQL's type json cannot hold."""
    chance = random.Random(8)  # noqa: S311
    made = Settings()
    company = [_key(chance) for _ in range(2)]
    own = {user: [_key(chance) for _ in range(2)] + company[user % 4 : user % 4 + 1] for user in range(1, USERS + 1)}
    for base in range(1, bases + 1):
        user = base if base <= USERS else chance.randint(1, USERS)
        wanted = ["embedding", *(kind for kind in ("reranker", "llm", "vlm") if chance.random() < 0.6)]
        used = {}
        for kind in wanted:
            key = chance.choice(own[user])
            provider = list(PROVIDERS)[ord(key[-1]) % len(PROVIDERS)]
            used[kind] = Used(user, provider, PROVIDERS[provider], key, chance.choice(TYPES[kind]))
        said: Any = {kind: _stored(one) for kind, one in used.items()}
        keys = {one.api_key for one in used.values()}
        text: str | None = json.dumps(said, indent=None if base % 3 else 1)
        if base % 50 == 7:  # was never configured
            text, used = None, {}
        elif base % 25 == 9:
            text, used, made.wrong[base] = _spoiled(base, said, used, broken_json=broken_json)
        made.keys |= {key for key in keys if text is not None and key in text}
        made.rows.append((base, user, f"Handbook {base}", text))
        made.used |= {(base, kind): one for kind, one in used.items()}
    return made


def _key(chance: random.Random) -> str:
    return "sk-" + "".join(chance.choices("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=40))


def _stored(one: Used) -> dict[str, str]:
    """As it stands in the column: no base_url is no entry."""
    found = {"provider": one.provider, "base_url": one.base_url, "api_key": one.api_key, "model": one.model}
    return {name: value for name, value in found.items() if value is not None}


def _spoiled(
    base: int, said: dict[str, Any], used: dict[str, Used], *, broken_json: bool
) -> tuple[str, dict[str, Used], str]:
    """Settings that cannot be used: (their text, what of them can be, what is wrong)."""
    rest = {kind: one for kind, one in used.items() if kind != "embedding"}
    first = said["embedding"]
    match base // 25 % 6:
        case 0:
            del first["api_key"]
            return json.dumps(said), rest, "no API key"
        case 1:
            first["provider"] = "my-own-server"
            return json.dumps(said), rest, "unknown provider"
        case 2:
            del first["model"]
            return json.dumps(said), rest, "no name of a model"
        case 3:
            said["embedding"] = first["api_key"]
            return json.dumps(said), rest, "its settings are no JSON object"
        case 4:
            return json.dumps(json.dumps(said)), {}, "the settings are no JSON object"  # encoded twice
        case _ if broken_json:
            return json.dumps(said)[:-20], {}, "invalid JSON"
    del said["embedding"]
    return json.dumps(said), rest, "no embedding model"


# -- the application, which knows nothing of vecrun ------------------------------------------------------------------------

CREDENTIALS = """
    SELECT c.kb_id, c.model_type, a.user_id, a.provider, a.base_url, a.api_key, c.model_name
    FROM kb_model_configs c JOIN model_access_credentials a ON a.id = c.credential_id
"""


class World(Protocol):
    """A database of the application."""

    name: str
    url: str

    def fill(self, made: Settings) -> None:
        """The tables with their rows."""

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of a query."""

    def dump(self) -> str:
        """Schema and rows of everything in the database, as text."""


def api_key(stored: str, key: bytes) -> str:
    """How an application reads a credential: with the package cryptography, and the 32 bytes of the key."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    data = base64.b64decode(stored)  # 12 bytes of nonce, then what is encrypted with its tag
    return AESGCM(key).decrypt(data[:12], data[12:], None).decode()


def read(world: World, key: bytes) -> dict[tuple[int, str], Used]:
    """What each knowledge base uses now: (knowledge base, type) -> what, with the API key decrypted."""
    return {
        (base, kind): Used(user, provider, url, api_key(stored, key), model)
        for base, kind, user, provider, url, stored, model in world.ask(CREDENTIALS)
    }


# -- PostgreSQL and SQLite -------------------------------------------------------------------------------------------------

TABLES = (
    "CREATE TABLE users (id {number} PRIMARY KEY, name text NOT NULL)",
    "CREATE TABLE knowledge_bases (id {number} PRIMARY KEY, user_id {number} NOT NULL REFERENCES users (id), name text NOT NULL, embedding_config json)",
)
USER_ROWS = [(user, f"user {user}") for user in range(1, USERS + 1)]


class PostgreSQL:
    """A database of a server."""

    name = "PostgreSQL"

    def __init__(self, url: str) -> None:
        self.url = url

    def fill(self, made: Settings) -> None:
        import psycopg

        with psycopg.connect(self.url) as server, server.cursor() as cursor:
            for table in TABLES:
                cursor.execute(table.format(number="bigint").encode())
            cursor.executemany("INSERT INTO users VALUES (%s, %s)", USER_ROWS)
            cursor.executemany("INSERT INTO knowledge_bases VALUES (%s, %s, %s, %s)", made.rows)

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(self.url) as server:
            return server.execute(query.encode()).fetchall()

    def dump(self) -> str:
        """pg_dump's schema, then all rows in the order of their text: a dump with rows has them in the order of the disk."""
        data = Path(parse_qs(urlsplit(self.url).query)["host"][0])
        program = Path((data / "postmaster.opts").read_text().split()[0]).with_name("pg_dump")
        # without a fixed one, each dump has another key in it
        command = [str(program), "--schema-only", "--restrict-key=demo", self.url]
        schema = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
        tables = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"
        rows = [f"{name}\n" + self._rows(name) for (name,) in self.ask(tables)]
        return schema + "\n".join(rows)

    def _rows(self, table: str) -> str:
        import psycopg

        with psycopg.connect(self.url) as server, server.cursor() as cursor:
            query = f'COPY (SELECT * FROM "{table}" ORDER BY 1) TO STDOUT'  # noqa: S608
            with cursor.copy(query.encode()) as copy:
                return b"".join(copy).decode()


class SQLite:
    """A database in a file."""

    name = "SQLite"

    def __init__(self, path: Path) -> None:
        self.path, self.url = path, f"sqlite:///{path}"

    def fill(self, made: Settings) -> None:
        with self._open() as file:
            for table in TABLES:
                file.execute(table.format(number="INTEGER"))
            file.executemany("INSERT INTO users VALUES (?, ?)", USER_ROWS)
            file.executemany("INSERT INTO knowledge_bases VALUES (?, ?, ?, ?)", made.rows)
            file.commit()

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        with self._open() as file:
            return file.execute(query).fetchall()

    def dump(self) -> str:
        """All of it as SQL, by Python's own module."""
        with self._open() as file:
            return "\n".join(file.iterdump())

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.path)) as file:
            yield file


def shared(world: World) -> tuple[int, int]:
    """(credentials, credentials that more than one knowledge base uses)."""
    counts: Sequence[tuple[Any, ...]] = world.ask("SELECT count(*) FROM kb_model_configs GROUP BY credential_id")
    return len(counts), sum(count > 1 for (count,) in counts)
