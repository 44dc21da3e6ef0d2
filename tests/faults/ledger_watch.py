"""Looks into a PostgreSQL ledger from outside, with SQL of its own, while everything around it dies.

Triggers note each change of a partition together with the session it came from: so that a checkpoint by a process
that no longer had the partition is seen even where it would do no harm.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

#: Longest that a restart of the database may take, in seconds.
PATIENCE = 60.0
_AUDIT = """
create table vecrun.audit (
    id bigserial primary key, backend text, run text, step int, part int, old_claim bigint, claim bigint, worker text,
    old_status text, status text, old_read bigint, read bigint, deliveries int);
create function vecrun.note() returns trigger language plpgsql as $$ begin
    insert into vecrun.audit (backend, run, step, part, old_claim, claim, worker, old_status, status, old_read, read, deliveries)
    select pg_backend_pid() || ' ' || backend_start, new.run, new.step, new.part, old.claim, new.claim, new.worker,
        old.status, new.status, old.read, new.read, new.deliveries
    from pg_stat_activity where pid = pg_backend_pid();
    return null; end $$;
create trigger note after update on vecrun.partitions for each row execute function vecrun.note();
"""
#: (step, part)
Place = tuple[int, int]


@dataclass
class Orphan:
    """A partition whose worker was killed, until it moves again."""

    run: str
    place: Place
    claim: int
    worker: str
    since: float


@dataclass(frozen=True)
class Moved:
    """How long a partition stood still. `alone`: nothing else was struck from 10 s before the kill until it moved."""

    seconds: float
    which: str
    alone: bool


@dataclass
class Audit:
    """What the triggers have seen of a run."""

    deliveries: int = 0
    checkpoints: int = 0
    most: int = 0  # deliveries of one partition without a checkpoint in between
    findings: list[str] = field(default_factory=list)


class LedgerWatch:
    """One session, made anew when it is lost. Used by one thread."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection: psycopg.Connection[Any] | None = None

    def query(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows. Waits for a database that is being restarted."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if self._connection is None:
                    self._connection = psycopg.connect(self.url, autocommit=True, options="-c search_path=vecrun")
                cursor = self._connection.execute(text, values)
                return cursor.fetchall() if cursor.description else []
            except psycopg.OperationalError:
                self.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def audit(self) -> None:
        """Set up the triggers; the ledger has its tables by now."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(_AUDIT)

    def dump(self, path: Path) -> None:
        """What is known of all runs, for whoever looks into a finding."""
        with path.open("w") as file:
            for table in ("runs", "steps", "partitions", "audit", "log", "workers", "leases", "findings"):
                order = {"audit": " order by id", "log": " order by id"}.get(table, "")
                file.write(f"-- {table}\n")
                for (row,) in self.query(f"select to_jsonb(t) - 'plan' from {table} t{order}"):
                    file.write(f"{json.dumps(row)}\n")

    # -- runs ------------------------------------------------------------------------------------------------

    def newest(self) -> tuple[str, str, str, str]:
        """(run, purpose, status, error) of the newest run; empty strings when there is none."""
        with contextlib.suppress(psycopg.errors.UndefinedTable):
            rows = self.query("select run, purpose, status, error from runs order by created desc, run desc limit 1")
            if rows:
                run, purpose, status, error = rows[0]
                return run, purpose, status, error or ""
        return "", "", "", ""

    def steps(self, run: str) -> list[tuple[str, str]]:
        """(type, status) of each step."""
        rows = self.query("select plan from runs where run = %s", run)
        if not rows:
            return []
        types = [step["type"] for step in json.loads(rows[0][0])["steps"]]
        states = self.query("select status from steps where run = %s order by step", run)
        return [(kind, state[0]) for kind, state in zip(types, states, strict=True)]

    def seconds(self, run: str) -> dict[str, float]:
        """How long the steps of a run took: type -> seconds."""
        rows = self.query("select started, finished from steps where run = %s order by step", run)
        found: dict[str, float] = {}
        for (kind, _), (started, finished) in zip(self.steps(run), rows, strict=True):
            took = (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()
            found[kind] = max(found.get(kind, 0.0), took)
        return found

    def coordinator(self, run: str) -> int | None:
        """The process that holds the run's lease."""
        rows = self.query(
            "select pid from leases where run = %s and expires > extract(epoch from clock_timestamp()) limit 1", run
        )
        return rows[0][0] if rows else None

    def claims(self, run: str, pid: int) -> list[tuple[Place, int, str]]:
        """Partitions a worker process has: where, under which claim, the worker's name."""
        rows = self.query(
            """select p.step, p.part, p.claim, p.worker from partitions p join workers w on w.worker = p.worker
            where p.run = %s and p.status = 'running' and w.pid = %s""", run, pid,
        )  # fmt: skip
        return [((row[0], row[1]), row[2], row[3]) for row in rows]

    def lines(self, run: str, pattern: str) -> int:
        """Lines of the run's log like `pattern`."""
        return int(self.query("select count(*) from log where run = %s and message like %s", run, pattern)[0][0])

    def serial(self, job: str) -> int:
        """Serial of the job's state document; 0 when there is none."""
        return int(
            self.query("select coalesce(max(serial), 0) from state_documents where name = %s", f"job:{job}")[0][0]
        )

    def audited(self, run: str) -> Audit:
        """What became of the run's partitions, and whether only those who had them changed them."""
        found = Audit()
        owners: dict[str, str] = {}
        rows = self.query(
            """select backend, step, part, old_claim, claim, worker, old_status, status, old_read, read, deliveries
            from audit where run = %s order by id""", run,
        )  # fmt: skip
        for backend, step, part, old_claim, claim, worker, old_status, status, old_read, read, deliveries in rows:
            where = f"partition {part} of step {step + 1}"
            if claim == old_claim + 1 and old_status == "pending" and status == "running":
                found.deliveries += 1
                found.most = max(found.most, deliveries)
                owners[backend] = worker
                continue
            if read < old_read:
                found.findings.append(f"{where}: read goes back from {old_read} to {read}")
            if claim == old_claim and (read != old_read or status in ("done", "failed")):
                found.checkpoints += 1
                writer = owners.get(backend)
                if writer is not None and writer != worker:
                    found.findings.append(f"{where}: a checkpoint by {writer}, and {worker} had it")
        return found


class Stopwatch:
    """Measures, in a thread of its own, how long partitions of killed workers stand still."""

    def __init__(self, url: str) -> None:
        self._ledger = LedgerWatch(url)
        self._waiting: list[Orphan] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.measured: list[Moved] = []
        self.struck: list[float] = []  # when anything was killed, stopped or restarted
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def add(self, orphans: Sequence[Orphan]) -> None:
        with self._lock:
            self._waiting += orphans

    def close(self) -> list[str]:
        """End it; the partitions that never moved again."""
        self._over.set()
        self._thread.join()
        self._ledger.close()
        return [f"{one.run}: partition {one.place} of {one.worker} never moved again" for one in self._waiting]

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            with self._lock:
                waiting = list(self._waiting)
            for one in waiting:
                seconds = time.monotonic() - one.since
                if (how := self._moved(one)) is None:
                    continue
                with self._lock:
                    self._waiting.remove(one)
                    if how:
                        strikes = sum(at > one.since - 10 for at in self.struck)
                        self.measured.append(Moved(seconds, f"{one.run} partition {one.place}", strikes <= 1))

    def _moved(self, one: Orphan) -> str | None:
        """How it moved; empty when there is nothing to wait for any more; None while it stands still."""
        step, part = one.place
        rows = self._ledger.query(
            """select p.status, p.claim, p.worker, r.status from partitions p join runs r on r.run = p.run
            where p.run = %s and p.step = %s and p.part = %s""", one.run, step, part,
        )  # fmt: skip
        if not rows:
            return ""
        status, claim, worker, run_status = rows[0]
        if claim > one.claim and worker is not None and worker != one.worker and status in ("running", "done"):
            return "claimed by another"
        if claim == one.claim and status != "running":  # its last checkpoint came before it died
            return ""
        return None if run_status in ("pending", "running") else ""
