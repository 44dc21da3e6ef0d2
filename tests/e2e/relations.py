"""A relational database with users and knowledge bases, and everything that is in it as lines that can be compared.

What is read here is read with the database's own client and its own catalogue: it shares nothing with vecrun.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import psycopg

from tests import servers

#: Kinds of models that a knowledge base has settings for.
KINDS = ("embedding", "llm")
Row = tuple[Any, ...]

_OF_POSTGRES = {
    "table": """
        SELECT c.oid::regclass::text, c.relkind, c.relpersistence, coalesce(c.reloptions::text, ''),
               coalesce(c.relacl::text, ''), coalesce(obj_description(c.oid, 'pg_class'), '')
        FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S')""",
    "column": """
        SELECT a.attrelid::regclass::text, row_number() OVER (PARTITION BY a.attrelid ORDER BY a.attnum), a.attname,
               format_type(a.atttypid, a.atttypmod), a.attnotnull, coalesce(pg_get_expr(d.adbin, d.adrelid), ''),
               a.attidentity, a.attgenerated, a.attcollation, coalesce(a.attacl::text, ''), a.attstorage,
               coalesce(a.attoptions::text, ''), coalesce(col_description(a.attrelid, a.attnum), '')
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm') AND a.attnum > 0 AND NOT a.attisdropped""",
    "constraint": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace""",
    "index": """
        SELECT i.indrelid::regclass::text, pg_get_indexdef(i.indexrelid), i.indisvalid
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE c.relnamespace = 'public'::regnamespace""",
    "view": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'",
    "sequence": "SELECT sequencename, data_type::text, increment_by, last_value FROM pg_sequences WHERE schemaname = 'public'",
    "trigger": "SELECT tgrelid::regclass::text, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
    "function": "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
    "type": "SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace AND typtype IN ('e', 'd')",
}


@dataclass(frozen=True)
class Relations:
    """A database, by its URL: postgresql://… or sqlite:///PATH."""

    url: str

    @property
    def sqlite(self) -> bool:
        return self.url.startswith("sqlite:")

    @contextlib.contextmanager
    def connected(self) -> Iterator[Any]:
        """A connection of the client itself, which commits each statement."""
        if self.sqlite:
            path = self.url.removeprefix("sqlite:///")
            with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
                yield connection
        else:
            with psycopg.connect(self.url, autocommit=True) as connection:
                yield connection

    def run(self, statement: str, *values: Any) -> None:
        """One statement; %s is a value."""
        with self.connected() as connection:
            connection.execute(statement.replace("%s", "?") if self.sqlite else statement, values)

    def rows(self, query: str) -> list[Row]:
        """What a query gives, sorted."""
        with self.connected() as connection:
            return sorted(map(tuple, connection.execute(query).fetchall()), key=repr)

    def pairs(self, query: str) -> list[tuple[Any, Any]]:
        """The same of two columns."""
        return [(one, other) for one, other in self.rows(query)]

    def tables(self) -> set[str]:
        """Names of all tables."""
        query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        if self.sqlite:
            query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        return {str(name) for (name,) in self.rows(query)}

    def columns(self, table: str) -> list[str]:
        """Names of the columns of a table, in their order."""
        with self.connected() as connection:
            return [str(item[0]) for item in connection.execute(f"SELECT * FROM {table} LIMIT 0").description]

    def indexes(self) -> set[str]:
        """Names of all indexes that can be used."""
        query = "SELECT indexrelid::regclass::text FROM pg_index WHERE indisvalid"
        return {str(name) for (name,) in self.rows("SELECT name FROM sqlite_master WHERE type = 'index'" if self.sqlite else query)}  # fmt: skip

    def dump(self) -> list[str]:
        """Schema and rows, all that is there, a line each: two databases are equal when these are."""
        return self._dump_sqlite() if self.sqlite else self._dump_postgres()

    def _dump_sqlite(self) -> list[str]:
        lines = []
        with self.connected() as connection:
            for kind, name, sql in connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall():
                lines.append(f"{kind} {name} {' '.join((sql or '').split())}")
                if kind != "table":
                    continue
                columns = connection.execute(f"SELECT * FROM pragma_table_xinfo('{name}')").fetchall()
                lines += [f"column {name} {column}" for column in columns]
                row = ", ".join(f'quote("{column[1]}")' for column in columns)
                lines += [f"row {name} {values}" for values in connection.execute(f'SELECT {row} FROM "{name}"')]
        return sorted(lines)

    def _dump_postgres(self) -> list[str]:
        with self.connected() as connection:
            lines = [
                f"{what} {row}" for what, query in _OF_POSTGRES.items() for row in connection.execute(query).fetchall()
            ]
            tables = [f'"{table}"' for table in self.tables()]
            lines += [
                f"row {table} {row}"
                for table in tables
                for (row,) in connection.execute(f"SELECT t::text FROM {table} t")
            ]
        return sorted(lines)

    def quiet(self, seconds: float = 20) -> None:
        """Wait until the server has noticed that nobody but us is connected any more."""
        if self.sqlite:
            return
        query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        deadline = time.monotonic() + seconds
        with self.connected() as connection:
            while connection.execute(query).fetchall():
                assert time.monotonic() < deadline, "a connection of a dead process lives on"
                time.sleep(0.005)


@dataclass(frozen=True)
class Library:
    """Users with knowledge bases, in both databases alike. Settings stand in a JSON column, with API keys in clear."""

    relations: Relations
    count: int = 12
    users: int = 4
    #: Of the knowledge base: its user, its name, the text of its settings.
    bases: dict[int, tuple[int, str, str | None]] = field(default_factory=dict)

    def build(self) -> Library:
        """Tables and rows."""
        json_type = "TEXT" if self.relations.sqlite else "json"
        with self.relations.connected() as connection:
            mark = "?" if self.relations.sqlite else "%s"
            for statement in (
                "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL, token TEXT)",
                "CREATE TABLE members (id INTEGER PRIMARY KEY, label TEXT NOT NULL)",
                f"""CREATE TABLE knowledge_bases (id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES users (id),
                    name TEXT NOT NULL, embedding_config {json_type})""",
                "CREATE TABLE notes (text TEXT)",
                "INSERT INTO notes VALUES ('nobody touches this')",
            ):
                connection.execute(statement)
            for user in range(1, self.users + 1):
                row = (user, f"user {user}", token(user))
                connection.execute(f"INSERT INTO users VALUES ({mark}, {mark}, {mark})", row)
            # one row is there that the migration would make, and one that it knows nothing of
            for member in ((1, "user 1"), (1000, "somebody else's")):
                connection.execute(f"INSERT INTO members VALUES ({mark}, {mark})", member)
            for number in range(1, self.count + 1):
                self.bases[number] = 1 + number % self.users, f"base {number}", self.settings(number)
                values = (number, *self.bases[number])
                connection.execute(f"INSERT INTO knowledge_bases VALUES ({mark}, {mark}, {mark}, {mark})", values)
        return self

    def settings(self, number: int) -> str | None:
        """Settings of a knowledge base, as their text: some share a key, some lack one, some are no JSON, one is NULL."""
        if number % 11 == 5:
            return None
        if number % 11 == 7:
            return "{broken" if self.relations.sqlite else '"no settings"'
        found = {
            kind: {"provider": "open ai", "model": f"{kind}-{number % 3}", "api_key": secret(number, kind)}
            for kind in KINDS
            if (number + len(kind)) % 4
        }
        if number % 6 == 4:
            for one in found.values():
                del one["api_key"]
        return json.dumps(found, separators=(",", ": "))


def token(user: int) -> str | None:
    """The token of a user, in clear."""
    return None if user % 4 == 3 else f"token-in-clear-{user} é"


def secret(number: int, kind: str) -> str:
    """An API key: knowledge bases share some of them, over users too."""
    return f"sk-in-clear-{kind}-{number // 4 % 2}"


def postgres(url: str, name: str) -> Relations:
    """A new database of a server, given the URL of another of its databases."""
    servers.sql(url, f"CREATE DATABASE {name}")
    return Relations(servers.database(url, name))
