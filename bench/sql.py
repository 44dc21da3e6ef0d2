"""Migrations inside of a relational database: a real `vecrun apply` against the bare statement, and against a loop by hand.

`backup`: two columns of 1,000,000 rows into a new table with its primary key, against one INSERT … SELECT into such a table, on
PostgreSQL and on SQLite. `map`: 200,000 rows with a JSON setting become credentials with an encrypted key and rows that
reference them, against a loop in one thread with the same client, the same encryption and executemany, which commits every
1,000 rows. vecrun's figure is the step that moves the rows, as its ledger says, with checkpoints; verification is told
beside. Both run in turn, another one first in each round. `memory`: peak of the process at a tenth of the rows and at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import sqlite3
import statistics
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import yaml
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bench import process
from tests import servers

ROWS, MAPPED, PAGE, BATCH = 1_000_000, 200_000, 1_000, 10_000
KEY = "0123456789abcdef0123456789abcdef"
SETTING = {"provider": "openai", "model": "text-embedding-3-small", "base_url": "https://api.example.com/v1"}
_CREDENTIALS = "id varchar(36) PRIMARY KEY, user_id integer NOT NULL, provider text, api_key text"
_CONFIGS = "kb integer PRIMARY KEY, credential varchar(36) NOT NULL, model text"
TABLES = ("saved", "bare", "credentials", "configs", "hand_credentials", "hand_configs")


def run(folder: Path, scale: float, rounds: int) -> None:
    """Both databases in turn; of each figure the median of the rounds."""
    os.environ["BENCH_KEY"] = KEY
    with servers.postgres(durable=True) as url:
        for name in ("postgresql", "sqlite"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            address = url if name == "postgresql" else f"sqlite:///{folder.resolve()}/app.db"
            _measure(Bench(name, address, folder), max(1000, int(ROWS * scale)), max(1000, int(MAPPED * scale)), rounds)
    shutil.rmtree(folder, ignore_errors=True)


def _measure(database: Bench, rows: int, mapped: int, rounds: int) -> None:
    database.fill(mapped)
    _print(database.name, "map", mapped, [database.round(n, database.map, database.by_hand) for n in range(rounds)])
    database.fill(rows)
    small = database.round(0, lambda: database.back_up(rows // 10), None)
    times = [database.round(n, lambda: database.back_up(rows), database.bare) for n in range(rounds)]
    _print(database.name, "backup", rows, times)
    peaks = {rows // 10: small["peak"], rows: max(one["peak"] for one in times)}
    shown = " ".join(f"{count:,}={peak / 1e6:.0f}MB" for count, peak in peaks.items())
    print(f"bench sql {database.name} memory {shown}", flush=True)


def _print(name: str, what: str, rows: int, times: list[dict[str, float]]) -> None:
    ours, other, verified = (statistics.median(one[key] for one in times) for key in ("ours", "other", "verify"))
    ratios = [one["other"] / one["ours"] for one in times]
    print(
        f"bench sql {name} {what} vecrun={rows / ours:,.0f}/s {'bare' if what == 'backup' else 'loop'}={rows / other:,.0f}/s "
        f"ratio={statistics.median(ratios):.2f} verify={rows / verified:,.0f}/s rows={rows:,} "
        f"peak={max(one['peak'] for one in times) / 1e6:.0f}MB (rounds: {' '.join(f'{one:.2f}' for one in ratios)})",
        flush=True,
    )


class Bench:
    """One database, the ways of vecrun, and the ways by hand."""

    def __init__(self, name: str, url: str, folder: Path) -> None:
        self.name, self.url, self.folder, self.number = name, url, folder, 0

    def connect(self) -> Any:
        if self.name == "sqlite":
            return closing(sqlite3.connect(self.url.removeprefix("sqlite:///")))
        return psycopg.connect(self.url)

    def fill(self, rows: int) -> None:
        """`kbs` with so many rows of 40 users."""
        before, after = json.dumps(SETTING)[:-1] + ', "api_key": "sk-', '"}'
        with self.connect() as connection:
            connection.execute("DROP TABLE IF EXISTS kbs")
            connection.execute("CREATE TABLE kbs (id integer PRIMARY KEY, user_id integer, config text, name text)")
            if self.name == "sqlite":
                series = "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < ?) "
                select = (
                    f"{series} INSERT INTO kbs SELECT i, i % 40, ? || (i % 200) || ?, 'knowledge base ' || i FROM s"
                )
                connection.execute(select, (rows, before, after))
            else:
                connection.execute(
                    "INSERT INTO kbs SELECT i, i %% 40, %s || (i %% 200) || %s, 'knowledge base ' || i FROM generate_series(1, %s) i",
                    (before, after, rows),
                )
            connection.commit()
        if self.name == "postgresql":
            with psycopg.connect(self.url, autocommit=True) as server:
                server.execute("VACUUM ANALYZE kbs")

    def round(
        self, number: int, ours: Callable[[], dict[str, float]], other: Callable[[], None] | None
    ) -> dict[str, float]:
        """One round: both ways on tables that are not there before."""
        found: dict[str, float] = {}

        def by_vecrun() -> None:
            found.update(ours())

        def by_other() -> None:
            if other is not None:
                began = time.monotonic()
                other()
                found["other"] = time.monotonic() - began

        for way in (by_vecrun, by_other) if number % 2 == 0 else (by_other, by_vecrun):
            self.clean()
            way()
        return found

    def clean(self) -> None:
        with self.connect() as connection:
            for table in (*TABLES, "vecrun_migrations"):
                connection.execute(f"DROP TABLE IF EXISTS {table}")
            connection.commit()
        if self.name == "postgresql":
            with psycopg.connect(self.url, autocommit=True) as server:
                server.execute("CHECKPOINT")

    def back_up(self, rows: int) -> dict[str, float]:
        step = {"table": "kbs", "columns": ["config"], "to": "saved", "where": f"id <= {rows}", "batch_size": BATCH}
        return self._apply([{"name": "save", "back_up": step}], {})

    def bare(self) -> None:
        with self.connect() as connection:
            connection.execute("CREATE TABLE bare (id integer PRIMARY KEY, config text)")
            connection.execute("INSERT INTO bare SELECT id, config FROM kbs")
            connection.commit()

    def map(self) -> dict[str, float]:
        identity = {"uuid_from": ["row.user_id", "setting.provider", "setting.api_key"], "key": "main"}
        secret = {"encrypt": "setting.api_key", "key": "main"}
        credentials = {"id": identity, "user_id": "row.user_id", "provider": "setting.provider", "api_key": secret}
        into = [
            {"table": "credentials", "values": credentials},
            {"table": "configs", "values": {"kb": "row.id", "credential": identity, "model": "setting.model"}},
        ]
        rule = {"rule": "setting.api_key", "message": "no API key", "otherwise": "skip"}
        made = {
            "from": "kbs",
            "let": {"setting": "row.config | json"},
            "rules": [rule],
            "into": into,
            "batch_size": PAGE,
        }
        text = ("provider", "api_key")
        first: list[dict[str, Any]] = [
            {"name": "id", "type": "string(36)", "primary_key": True}, {"name": "user_id", "type": "integer", "nullable": False},
            *({"name": name, "type": "text"} for name in text),
        ]  # fmt: skip
        second: list[dict[str, Any]] = [
            {"name": "kb", "type": "integer", "primary_key": True}, {"name": "credential", "type": "string(36)", "nullable": False},
            {"name": "model", "type": "text"},
        ]  # fmt: skip
        tables: list[dict[str, Any]] = [
            {"name": "credentials", "columns": first},
            {"name": "configs", "columns": second},
        ]
        steps: list[dict[str, Any]] = [{"name": "make", "create_tables": tables}, {"name": "move", "map": made}]
        return self._apply(steps, {"main": {"secret": "${env:BENCH_KEY}"}})

    def by_hand(self) -> None:
        mark = "?" if self.name == "sqlite" else "%s"
        cipher, naming = AESGCM(KEY.encode()), hashlib.sha256(KEY.encode()).digest()
        with self.connect() as connection:
            connection.execute(f"CREATE TABLE hand_credentials ({_CREDENTIALS})")
            connection.execute(f"CREATE TABLE hand_configs ({_CONFIGS})")
            last, cursor = 0, connection.cursor()
            while True:
                page = connection.execute(
                    f"SELECT id, user_id, config FROM kbs WHERE id > {mark} ORDER BY id LIMIT {PAGE}", (last,)
                ).fetchall()
                if not page:
                    break
                credentials: dict[str, tuple[Any, ...]] = {}
                configs = []
                for kb, user, config in page:
                    setting = json.loads(config)
                    if not setting.get("api_key"):
                        continue
                    text = json.dumps([user, setting["provider"], setting["api_key"]]).encode()
                    name = str(uuid.UUID(bytes=hashlib.sha256(naming + text).digest()[:16]))
                    if name not in credentials:
                        nonce = os.urandom(12)
                        sealed = base64.b64encode(nonce + cipher.encrypt(nonce, setting["api_key"].encode(), None))
                        credentials[name] = (name, user, setting["provider"], sealed.decode())
                    configs.append((kb, name, setting["model"]))
                four, three = ", ".join([mark] * 4), ", ".join([mark] * 3)
                ignore = "ON CONFLICT (id) DO NOTHING"
                cursor.executemany(f"INSERT INTO hand_credentials VALUES ({four}) {ignore}", [*credentials.values()])
                cursor.executemany(f"INSERT INTO hand_configs VALUES ({three}) ON CONFLICT (kb) DO NOTHING", configs)
                connection.commit()
                last = page[-1][0]

    def _apply(self, steps: list[dict[str, Any]], keys: dict[str, Any]) -> dict[str, float]:
        self.number += 1
        root = self.folder / f"workspace-{self.number}"
        (root / "jobs").mkdir(parents=True)
        settings = {
            "apiVersion": "vecrun/v1", "kind": "Workspace", "connections": {"app": {"type": "sql", "url": self.url}},
        }  # fmt: skip
        (root / "vecrun.yaml").write_text(yaml.safe_dump(settings))
        spec = {"connection": "app", "keys": keys, "steps": steps} if keys else {"connection": "app", "steps": steps}
        job = {"apiVersion": "vecrun/v1", "kind": "SqlMigration", "metadata": {"name": "bench"}, "spec": spec}
        (root / "jobs" / "bench.yaml").write_text(yaml.safe_dump(job))
        seconds, peak = process.apply(root)
        return {"ours": seconds["map_rows"], "verify": seconds["verify_rows"], "peak": float(peak)}
