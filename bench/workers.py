"""Worker processes on Redis and PostgreSQL: how they scale, what they cost against one process, and what they hold.

Every figure of a line comes from the same run of the benchmark: the same servers, the same points, one after the other.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import psycopg
import yaml

from bench import loops
from bench.process import Ground
from runner import commands
from tests import servers

COMMAND = (sys.executable, "-m", "runner")
#: (worker processes, threads of each) that are compared; 0: embedded, with as many threads.
TEAMS = ((0, 2), (1, 1), (2, 1), (4, 1))
SMALL_POINTS, SMALL_DIMENSION, SMALL_WORKERS = 2_000_000, 8, 4
#: Share of a run after which a process's memory counts: before, it takes what it needs.
WARM = 0.3


@dataclass
class Watch:
    """What was seen of processes while a run went on: seconds since its begin -> bytes resident, CPU seconds."""

    pids: dict[str, int]
    memory: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        over, began = threading.Event(), time.monotonic()
        before = {name: _cpu(pid) for name, pid in self.pids.items()}

        def look() -> None:
            while not over.wait(0.5):
                for name, pid in self.pids.items():
                    with suppress(OSError):
                        self.memory.setdefault(name, []).append((time.monotonic() - began, _resident(pid)))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            for name, pid in self.pids.items():
                with suppress(OSError):
                    self.cpu[name] = _cpu(pid) - before[name]

    def flat(self, name: str) -> tuple[int, int]:
        """(largest in the first half after it was warm, largest in the second), in bytes."""
        seen = self.memory[name]
        end = seen[-1][0]
        warm = [size for at, size in seen if WARM * end <= at < (1 + WARM) / 2 * end]
        late = [size for at, size in seen if at >= (1 + WARM) / 2 * end]
        return max(warm), max(late)


def scaling(folder: Path, scale: float, rounds: int) -> None:
    """pgvector → pgvector with 1, 2 and 4 workers, and embedded with two threads, in turn."""
    points = max(10_000, int(200_000 * scale))
    with _servers(folder) as (url, redis):
        ground = Ground(folder, url, points)
        loops.fill_pgvector(ground)
        seconds: dict[tuple[int, int], list[tuple[float, float]]] = {team: [] for team in TEAMS}
        busy: dict[tuple[int, int], list[str]] = {}
        for number in range(rounds):
            for processes, threads in TEAMS:
                root = _workspace(
                    folder, f"{processes}x{threads}-{number}", url, redis if processes else None, "full", threads
                )
                with _workers(root, processes, threads) as pids:
                    watch, before, began = Watch(pids), _busy(), time.monotonic()
                    with watch.at_work():
                        _run(root, "apply", "jobs/bench.yaml", "--auto-approve")
                    used, wall = _busy() - before, time.monotonic() - began
                    seconds[processes, threads].append(_steps(root))
                    busy[processes, threads] = [
                        f"machine {used / (wall * (os.cpu_count() or 1)):.0%} busy",
                        f"workers {sum(watch.cpu.values()) / wall:.1f} cores",
                    ]
                    _run(root, "rollback", "bench", "--auto-approve")
        middle = {
            team: tuple(statistics.median(item[side] for item in found) for side in (0, 1))
            for team, found in seconds.items()
        }
        one, alone = middle[1, 1], middle[0, 2]
        for (processes, threads), (copy, verify) in middle.items():
            who = f"workers={processes}" if processes else f"embedded threads={threads}"
            print(
                f"bench {who} copy={points / copy:,.0f}/s verify={points / verify:,.0f}/s "
                f"of_one_worker={one[0] / copy:.2f}/{one[1] / verify:.2f} of_embedded={alone[0] / copy:.2f}/{alone[1] / verify:.2f} "
                f"({', '.join(busy[processes, threads])}) points={points:,}",
                flush=True,
            )


def small(folder: Path, scale: float) -> None:
    """Many small points through four workers: the memory of each process, the ledger's size, its queries."""
    points = max(50_000, int(SMALL_POINTS * scale))
    with _servers(folder) as (url, redis):
        _fill_small(url, points)
        root = _workspace(folder, "small", url, redis, "full", 1)
        log = Path(url.rpartition("host=")[2]) / "log"
        servers.sql(url, "ALTER SYSTEM SET log_statement = 'all'", "SELECT pg_reload_conf()")
        with _workers(root, SMALL_WORKERS, 1) as pids:
            process = subprocess.Popen(
                [*COMMAND, "apply", "jobs/bench.yaml", "--auto-approve", "--json"], cwd=root,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(root),
            )  # fmt: skip
            watch = Watch(pids | {"coordinator": process.pid})
            start = log.stat().st_size
            with watch.at_work():
                out, err = process.communicate()
            if process.returncode != 0:
                raise SystemExit(f"vecrun apply failed:\n{out.decode()}{err.decode()}")
            copy, verify = _steps(root)
            queries = _ledger_queries(log, start)
        size = _ledger_size(url)
        for name in watch.pids:
            warm, late = watch.flat(name)
            print(
                f"bench small {name}: memory {warm / 1e6:.0f} MB warm, {late / 1e6:.0f} MB at the end, "
                f"grown by {(late - warm) / 1e6:+.0f} MB",
                flush=True,
            )
        print(
            f"bench small points={points:,} dimension={SMALL_DIMENSION} workers={SMALL_WORKERS} copy={points / copy:,.0f}/s "
            f"verify={points / verify:,.0f}/s ledger={size / 1e6:.1f} MB queries={queries:,} "
            f"queries_per_1000_points={1000 * queries / points:.1f} (ids kept, so nothing is mapped)",
            flush=True,
        )


# -- the ground ----------------------------------------------------------------------------------------------


@contextmanager
def _servers(folder: Path) -> Iterator[tuple[str, str]]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with servers.postgres(durable=True) as url, servers.redis_server() as redis:
        servers.sql(url, "CREATE DATABASE ledger")
        yield url, redis.url


def _workspace(folder: Path, name: str, url: str, redis: str | None, verify: str, threads: int) -> Path:
    root = folder / f"workspace-{name}"
    (root / "jobs").mkdir(parents=True)
    place = {"type": "pgvector", "url": url}
    settings: dict[str, object] = {
        "apiVersion": "vecrun/v1", "kind": "Workspace", "connections": {"source": place, "target": place},
        "limits": {"workers": threads},
    }  # fmt: skip
    if redis is not None:
        servers.sql(servers.database(url, "ledger"), "DROP SCHEMA IF EXISTS vecrun CASCADE")
        settings |= {"state": {"database": servers.database(url, "ledger")}, "broker": {"url": redis}}
    (root / "vecrun.yaml").write_text(yaml.safe_dump(settings))
    job = {
        "apiVersion": "vecrun/v1", "kind": "VectorMigration", "metadata": {"name": "bench"},
        "spec": {
            "source": "source", "target": "target", "verify": {"mode": verify},
            "collections": [{"from": "bench_source", "to": "bench_target"}],
        },
    }  # fmt: skip
    (root / "jobs" / "bench.yaml").write_text(yaml.safe_dump(job))
    return root


def _environment(root: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "VECRUN_LOG": "", "PWD": str(root)}


@contextmanager
def _workers(root: Path, processes: int, threads: int) -> Iterator[dict[str, int]]:
    """Worker name -> pid, once all are there; none for 0."""
    if not processes:
        yield {}
        return
    command = [*COMMAND, "worker", "-p", str(processes), "-t", str(threads)]
    with (root / "workers.log").open("wb") as log:
        supervisor = subprocess.Popen(command, cwd=root, stdout=log, stderr=log, env=_environment(root))
    try:
        found: list[dict[str, int]] = []
        for _ in range(300):
            found = json.loads(_run(root, "workers", "--json"))["items"]
            if len(found) == processes:
                break
            time.sleep(0.2)
        yield {f"worker {n}": item["pid"] for n, item in enumerate(found, 1)}
    finally:
        supervisor.terminate()
        supervisor.wait()


def _run(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=root, capture_output=True, text=True, check=False, env=_environment(root)
    )
    if done.returncode != 0:
        raise SystemExit(f"vecrun {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _steps(root: Path) -> tuple[float, float]:
    """Seconds of (copy, verification) of the newest run, as its ledger says."""
    context = commands.open_context(root)
    with context.ledger(reading=True) as ledger:
        row = commands.status(context, "bench").run
        found: dict[str, float] = {}
        for step, state in zip(commands.status(context, "bench").plan.steps, ledger.steps_of(row["run"]), strict=True):
            if state["finished"]:
                passed = _seconds(state["finished"]) - _seconds(state["started"])
                found[step.type] = found.get(step.type, 0.0) + passed
    return found["copy_points"], found["verify_points"]


def _seconds(text: str) -> float:
    """Since 1970, of an ISO time."""
    return datetime.fromisoformat(text).timestamp()


def _fill_small(url: str, points: int) -> None:
    numbers = ", ".join(["random()"] * SMALL_DIMENSION)
    with psycopg.connect(url, autocommit=True) as database:
        database.execute("create extension if not exists vector")
        database.execute(
            f"create table bench_source (id bigint primary key, embedding vector({SMALL_DIMENSION}), payload jsonb not null)"
        )
        database.execute(
            f"insert into bench_source select n, array[{numbers}]::vector, jsonb_build_object('n', n)"
            f" from generate_series(1, {points}) as n"
        )
        database.execute("vacuum analyze bench_source")


def _ledger_size(url: str) -> int:
    """Bytes of the ledger's tables and indexes."""
    with psycopg.connect(servers.database(url, "ledger")) as database:
        row = database.execute(
            "select sum(pg_total_relation_size(c.oid)) from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            " where n.nspname = 'vecrun' and c.relkind in ('r', 'i')"
        ).fetchone()
    assert row is not None
    return int(row[0])


def _ledger_queries(log: Path, start: int) -> int:
    """Statements in the ledger's tables since `start` bytes of the server's log."""
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    tables = r"\b(leases|runs|steps|partitions|workers|id_map|findings|log|state_documents)\b|clock_timestamp"
    return sum(bool(re.search(tables, line)) for line in re.findall(r"statement: (.*(?:\n\t.*)*)", text))


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _cpu(pid: int) -> float:
    """CPU seconds a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _busy() -> float:
    """CPU seconds the machine has worked, all cores together."""
    fields = [int(item) for item in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
