"""Backup and restore of tables: a real `vecrun apply` against `pg_dump -Fc`, `pg_restore` and psql's `\\copy`.

100,000 rows in the shape of LangChain's tables: 384 numbers, a text and JSON each, with their primary key and GIN index. All
of them read the same tables (pg_dump twice: compressed, and with -Z0), and fill them again as they stand, emptied before, in
one transaction, indexes kept; in turn, in each round. Of vecrun there are two figures: the step that moves the rows, as its ledger says, with everything that it checks
(files read back, every row digested), and the whole process from its start to its end, plan included.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import orjson
import psycopg
import yaml

from bench import process
from tests import servers

ROWS, DIMENSION = 100_000, 384
PARENT, CHILD = "langchain_pg_collection", "langchain_pg_embedding"
COLLECTION = "11111111-2222-3333-4444-555555555555"

#: name of a way -> seconds; vecrun has two of them
Times = dict[str, float]


def run(folder: Path, scale: float, rounds: int) -> None:
    """All ways in turn in each round; of each figure the median."""
    rows = max(1000, int(ROWS * scale))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found: dict[str, list[Times]] = {"backup": [], "restore": []}
    sizes: dict[str, int] = {}
    peak = 0
    with servers.postgres(durable=True) as url:
        _fill(url, rows)
        for number in range(rounds):
            saved, used, sizes = _back_up(folder, url, number)
            restored, more = _restore(folder, url, number, rows)
            found["backup"].append(saved)
            found["restore"].append(restored)
            peak = max(peak, used, more)
    for what, times in found.items():
        _print(what, rows, times)
    shown = " ".join(f"{name}={size / 1e6:.0f}MB" for name, size in sizes.items())
    print(f"bench backup-tables size {shown} peak={peak / 1e6:.0f} MB", flush=True)
    shutil.rmtree(folder)


def _print(what: str, rows: int, times: list[Times]) -> None:
    medians = {name: statistics.median(one[name] for one in times) for name in times[0]}
    shown = " ".join(f"{name}={seconds:.1f}s" for name, seconds in medians.items())
    ratios = " ".join(
        f"of_{name}={statistics.median(one[name] / one['vecrun'] for one in times):.2f}"
        for name in medians
        if not name.startswith("vecrun")
    )
    each = " ".join(f"{one['vecrun']:.1f}" for one in times)
    print(
        f"bench backup-tables {what} {shown} {ratios} ({rows / medians['vecrun']:,.0f} rows/s) rows={rows:,} "
        f"dimension={DIMENSION} (rounds: {each})",
        flush=True,
    )


def _back_up(folder: Path, url: str, number: int) -> tuple[Times, int, dict[str, int]]:
    """Seconds of each way, peak memory of vecrun in bytes, and bytes of what each wrote."""
    for name in ("backups", "copied"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    dump = folder / "dump"
    peaks: list[int] = []

    def ours() -> Times:
        tables = {"connection": "db", "names": [PARENT, CHILD]}
        seconds, peak = process.apply(_workspace(folder, url, "VectorBackup", {"tables": tables, "to": _STORE}, number))
        peaks.append(peak)
        return {"vecrun": seconds["back_up_tables"]}

    def pg_dump() -> Times:
        _program("pg_dump", url, "-Fc", "-t", PARENT, "-t", CHILD, "-f", str(dump))
        return {}

    def plain() -> Times:
        _program("pg_dump", url, "-Fc", "-Z0", "-t", PARENT, "-t", CHILD, "-f", f"{dump}-plain")
        return {}

    def copied() -> Times:
        for table in (PARENT, CHILD):
            _copy(url, f"\\copy {table} to '{folder}/copied/{table}.csv' with (format csv, header)")
        return {}

    times = _turns({"vecrun": ours, "pg_dump": pg_dump, "pg_dump_z0": plain, "copy": copied}, number)
    written = list((folder / "backups").rglob("*.csv"))
    sizes = {
        "vecrun": sum(item.stat().st_size for item in written),
        "pg_dump": dump.stat().st_size,
        "pg_dump_z0": Path(f"{dump}-plain").stat().st_size,
        "copy": sum(item.stat().st_size for item in (folder / "copied").iterdir()),
    }
    return times, max(peaks), sizes


def _restore(folder: Path, url: str, number: int, rows: int) -> tuple[Times, int]:
    peaks: list[int] = []

    def ours() -> Times:
        source = {**_STORE, "backup": "latest"}
        tables = {"connection": "db", "names": "all", "if_not_empty": "refuse"}
        spec = {"from": source, "tables": tables}
        seconds, peak = process.apply(_workspace(folder, url, "VectorRestore", spec, number))
        peaks.append(peak)
        return {"vecrun": seconds["load_tables"]}

    def pg_restore() -> Times:
        _program("pg_restore", url, "--data-only", "--single-transaction", str(folder / "dump"))
        return {}

    def copied() -> Times:
        lines = [
            f"\\copy {table} from '{folder}/copied/{table}.csv' with (format csv, header)" for table in (PARENT, CHILD)
        ]
        _copy(url, *lines)
        return {}

    def emptied(way: Callable[[], Times]) -> Callable[[], Times]:
        def filled() -> Times:
            found = way()
            with psycopg.connect(url) as server:
                (count,) = server.execute("SELECT count(*) FROM langchain_pg_embedding").fetchone() or (0,)
            assert count == rows, f"{count:,} rows came back of {rows:,}"
            return found

        return filled

    ways = {"vecrun": ours, "pg_restore": pg_restore, "copy": copied}
    return _turns({name: emptied(way) for name, way in ways.items()}, number, before=lambda: _empty(url)), max(peaks)


def _turns(ways: dict[str, Callable[[], Times]], number: int, before: Callable[[], None] | None = None) -> Times:
    """Each way once; another one begins in each round."""
    names = [*ways]
    found: Times = {}
    for name in [*names[number % len(names) :], *names[: number % len(names)]]:
        if before is not None:
            before()
        began = time.monotonic()
        more = ways[name]()
        found[f"{name}_whole" if more else name] = time.monotonic() - began
        found.update(more)
    return {name: found[name] for name in [*names, f"{names[0]}_whole"]}


_STORE = {"connection": "files", "folder": "bench/vector_bak"}


def _workspace(folder: Path, url: str, kind: str, spec: dict[str, Any], number: int) -> Path:
    root = folder / f"workspace-{kind}-{number}"
    (root / "jobs").mkdir(parents=True)
    connections = {
        "db": {"type": "sql", "url": url},
        "files": {"type": "folder", "path": str(folder / "backups")},
    }
    settings = {"apiVersion": "vecrun/v1", "kind": "Workspace", "connections": connections}
    (root / "vecrun.yaml").write_text(yaml.safe_dump(settings))
    job = {"apiVersion": "vecrun/v1", "kind": kind, "metadata": {"name": "bench"}, "spec": spec}
    (root / "jobs" / "bench.yaml").write_text(yaml.safe_dump(job))
    return root


def _program(name: str, url: str, *arguments: str) -> None:
    """One of PostgreSQL's own programs, from beside the server's."""
    data = Path(parse_qs(urlsplit(url).query)["host"][0])
    path = Path((data / "postmaster.opts").read_text().split()[0]).with_name(name)
    subprocess.run([str(path), "-d", url, *arguments], check=True, stdout=subprocess.DEVNULL)


def _copy(url: str, *lines: str) -> None:
    commands = [part for line in lines for part in ("-c", line)]
    _program("psql", url, "-X", "-q", "-v", "ON_ERROR_STOP=1", "--single-transaction", *commands)


def _empty(url: str) -> None:
    """Both tables without rows, and nothing else there."""
    with psycopg.connect(url, autocommit=True) as server:
        server.execute("TRUNCATE langchain_pg_collection, langchain_pg_embedding")
        left = server.execute(
            "SELECT format('DROP TABLE %I', tablename) FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE 'langchain_pg_%'"
        ).fetchall()
        for (statement,) in left:
            server.execute(statement)
        server.execute("CHECKPOINT")


def _fill(url: str, rows: int) -> None:
    rng = np.random.default_rng(6)
    with psycopg.connect(url) as server:
        server.execute("CREATE EXTENSION IF NOT EXISTS vector")
        server.execute(
            "CREATE TABLE langchain_pg_collection (uuid uuid PRIMARY KEY, name varchar NOT NULL UNIQUE, cmetadata json)"
        )
        server.execute(
            "CREATE TABLE langchain_pg_embedding (id varchar PRIMARY KEY, collection_id uuid REFERENCES langchain_pg_collection"
            " ON DELETE CASCADE, embedding vector, document varchar, cmetadata jsonb)"
        )
        server.execute("CREATE INDEX ix_cmetadata_gin ON langchain_pg_embedding USING gin (cmetadata jsonb_path_ops)")
        server.execute("INSERT INTO langchain_pg_collection VALUES (%s, 'bench', '{}')", [COLLECTION])
        with server.cursor().copy("COPY langchain_pg_embedding FROM STDIN") as copy:
            for start in range(0, rows, 1000):
                block = rng.normal(size=(min(1000, rows - start), DIMENSION)).astype(np.float32)
                for number, vector in enumerate(block, start):
                    text = f'How many "orders" are there for customer {number}?\n' + "a few more words " * 10
                    metadata = {
                        "kind": "sql",
                        "number": number,
                        "sql": f"SELECT count(*) FROM orders WHERE id = {number}",
                    }
                    values = orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY).decode()
                    copy.write_row((f"d{number:07}", COLLECTION, values, text, orjson.dumps(metadata).decode()))
    with psycopg.connect(url, autocommit=True) as server:
        server.execute("VACUUM ANALYZE langchain_pg_embedding")
