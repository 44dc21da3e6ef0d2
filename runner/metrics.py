"""Metrics for Prometheus. They are read from the ledger at each scrape: so they survive restarts, and are the same
wherever they are asked for; only what is said of the queue and `process_*` belong to the process that answers.

A run that came to its end does not change any more and is read once; a scrape then costs what the open runs cost.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from runner import __version__
from runner.embedder import ModelIdentity
from runner.errors import VecrunError
from runner.ledger import FINAL, Ledger
from runner.sweeper import SILENT_SECONDS
from runner.tables import failures, leases, log, partitions, runs, steps, usage, workers

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

#: Runs that get series of their own: unfinished ones first, then the newest. All runs are in the totals.
MAX_RUNS = 50
#: Runs asked for in one query.
_CHUNK = 500
STATUSES = ("pending", "running", "paused", "failed", "cancelled", "completed", "rolled_back")
PARTITION_STATUSES = ("pending", "running", "done", "failed")


@dataclass(frozen=True)
class Metric:
    """One metric as it is documented: `kind` is gauge, counter or summary; a counter's name ends in _total."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


METRICS = {
    item.name: item
    for item in (
        Metric("vecrun_build_info", "gauge", ("version",), "Always 1; the version of the process that answers."),
        Metric("vecrun_ledger_up", "gauge", (), "1 if the ledger could be read; at 0 only this and the queue are told."),
        Metric("vecrun_queue_up", "gauge", (), "1 if the queue answered; absent where no broker is set."),
        Metric("vecrun_scrape_seconds", "gauge", (), "Time it took to read the ledger for this answer."),
        Metric("vecrun_runs", "gauge", ("status",), "Runs in the ledger by status."),
        Metric("vecrun_run_info", "gauge", ("job", "run", "purpose", "status"),
               f"Always 1; unfinished runs, then the newest, at most {MAX_RUNS}, as for all vecrun_run_*."),
        Metric("vecrun_run_points", "gauge", ("job", "run", "step"), "Points the run's plan has for steps of this type."),
        Metric("vecrun_run_points_done", "gauge", ("job", "run", "step"), "Points of them that are done."),
        Metric("vecrun_points_total", "counter", ("job", "step"),
               "Points done by all runs: copied and embedded ones at each checkpoint, others when their step is done."),
        Metric("vecrun_batches_total", "counter", ("job", "step"), "Batches done by all runs, counted like points."),
        Metric("vecrun_retries_total", "counter", ("job", "step"), "Tries again after transient errors of a store."),
        Metric("vecrun_errors_total", "counter", ("job",),
               "Errors in the logs of runs: a run that failed, a partition that was set aside."),
        Metric("vecrun_embedding_requests_total", "counter", ("job", "model"),
               "Requests that models answered; model is the name in vecrun.yaml, and a dry run's job is empty."),
        Metric("vecrun_embedding_texts_total", "counter", ("job", "model"), "Texts that models embedded."),
        Metric("vecrun_embedding_known_total", "counter", ("job", "model"),
               "Texts that nobody was asked for: their vectors are kept from before."),
        Metric("vecrun_embedding_tokens_total", "counter", ("job", "model"),
               "Tokens of these requests, as the provider counts them, else as vecrun does."),
        Metric("vecrun_embedding_usd_total", "counter", ("job", "model"), "What they cost, where a price is known."),
        Metric("vecrun_failed_items", "gauge", ("job",), "Items of its runs that could not be embedded and were left out."),
        Metric("vecrun_step_seconds", "summary", ("job", "step"), "Duration of the steps that are done."),
        Metric("vecrun_partitions", "gauge", ("status",), "Partitions of unfinished runs by status."),
        Metric("vecrun_redeliveries", "gauge", (),
               "Deliveries of unfinished partitions beyond the first since their last checkpoint: their workers died."),
        Metric("vecrun_queue_messages", "gauge", (), "Messages that wait in the queue, as the process that answers sees it."),
        Metric("vecrun_lease_age_seconds", "gauge", ("name",), "Time since a held lease was taken or renewed."),
        Metric("vecrun_lease_expires_in_seconds", "gauge", ("name",), "Time a held lease still has; below 0 it ran out."),
        Metric("vecrun_workers", "gauge", ("state",),
               f"Worker processes: live, or silent for more than {SILENT_SECONDS:g} s without having ended in order."),
        Metric("vecrun_worker_threads", "gauge", (), "Threads of the live workers: partitions they can work on at once."),
        Metric("vecrun_worker_partitions", "gauge", (), "Partitions the live workers are at."),
    )
}  # fmt: skip


@dataclass
class _Work:
    """What one run has done, by type of step."""

    job: str
    points: Counter[str] = field(default_factory=Counter)
    counted: Counter[str] = field(default_factory=Counter)  # of `points`, what can no longer be taken back
    batches: Counter[str] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    finished: Counter[str] = field(default_factory=Counter)
    errors: int = 0


class LedgerCollector:
    """A collector for a registry of prometheus_client. Safe for scrapes at the same time."""

    def __init__(self, ledger: Ledger, queue: Callable[[], int | None] | None) -> None:
        self._ledger, self._queue = ledger, queue
        self._lock = threading.Lock()
        self._ended: dict[str, _Work] = {}  # by run; they do not change
        self._plans: dict[str, list[tuple[str, int]]] = {}  # by run: type and points of each step
        self._models: dict[str, str] = {}  # key of a model's identity -> its name

    def describe(self) -> Iterable[Family]:
        """Nothing: the registry need not read the ledger to know the names."""
        return ()

    def collect(self) -> Iterator[Family]:
        """All families; without a ledger, those that need none."""
        samples = _Samples()
        samples.add("vecrun_build_info", 1, __version__)
        began = time.monotonic()
        try:
            with self._lock, self._ledger.reading() as connection:
                self._read(connection, samples)
            samples.add("vecrun_ledger_up", 1)
            samples.add("vecrun_scrape_seconds", time.monotonic() - began)
        except VecrunError:
            samples = _Samples()
            samples.add("vecrun_ledger_up", 0)
        if self._queue is not None:
            try:
                waiting = self._queue()
            except Exception:  # a broker that does not answer must not hide what the ledger says
                waiting = None
            samples.add("vecrun_queue_up", int(waiting is not None))
            if waiting is not None:
                samples.add("vecrun_queue_messages", waiting)
        yield from samples.families.values()

    def _read(self, connection: sa.Connection, samples: _Samples) -> None:
        clock = self._ledger.clock(connection)
        grouped = connection.execute(sa.select(runs.c.status, sa.func.count()).group_by(runs.c.status))
        counts: dict[str, int] = {status: count for status, count in grouped}  # noqa: C416  # dict() takes it for a mapping
        for status in (*STATUSES, *(item for item in counts if item not in STATUSES)):
            samples.add("vecrun_runs", counts.get(status, 0), status)
        _read_leases(connection, clock, samples)
        _read_workers(connection, clock, samples)
        _read_failures(connection, samples)

        columns = (runs.c.run, runs.c.job, runs.c.purpose, runs.c.status)
        query = sa.select(*columns).order_by(runs.c.created.desc(), runs.c.run.desc())
        open_ = list(connection.execute(query.where(runs.c.status.not_in(FINAL))).mappings())
        ended = list(connection.execute(query.where(runs.c.status.in_(FINAL))).mappings())
        present = [row["run"] for row in (*open_, *ended)]
        self._ended = {run: work for run, work in self._ended.items() if run in set(present)}
        new = [row for row in ended if row["run"] not in self._ended]
        shown = [*open_, *ended][:MAX_RUNS]
        self._plans = {run: self._plans[run] for run in present if run in self._plans}
        self._read_plans(connection, [row["run"] for row in (*open_, *new, *shown)])
        self._add_usage(connection, samples)
        self._ended |= self._work(connection, new)
        work = self._ended | self._work(connection, open_)
        self._add_totals(work.values(), samples)
        for row in shown:
            self._add_run(row, work[row["run"]], samples)
        self._add_partitions(connection, [row["run"] for row in open_], samples)

    def _read_plans(self, connection: sa.Connection, wanted: Sequence[str]) -> None:
        for some in _chunks([run for run in dict.fromkeys(wanted) if run not in self._plans]):
            for run, text in connection.execute(sa.select(runs.c.run, runs.c.plan).where(runs.c.run.in_(some))):
                plan = json.loads(text)["steps"]
                self._plans[run] = [(step["type"], _planned(step)) for step in plan]
                self._models |= dict(found for step in plan for found in _models(step))

    def _add_usage(self, connection: sa.Connection, samples: _Samples) -> None:
        """What runs have asked of models; of a model that no plan names any more, the key of its identity."""
        names = ("requests", "texts", "known", "tokens", "usd")
        query = (
            sa.select(runs.c.job, usage.c.model, *(sa.func.sum(usage.c[name]).label(name) for name in names))
            .join_from(usage, runs, usage.c.run == runs.c.run, isouter=True).group_by(runs.c.job, usage.c.model)
        )  # fmt: skip
        totals: dict[tuple[str, str], Counter[str]] = {}
        for row in connection.execute(query).mappings():  # several identities may have had one name
            total = totals.setdefault((row["job"] or "", self._models.get(row["model"], row["model"])), Counter())
            for name in names:
                if row[name] is not None:
                    total[name] += row[name]
        for labels, total in totals.items():
            for name in names:
                if name in total:
                    samples.add(f"vecrun_embedding_{name}_total", float(total[name]), *labels)

    def _work(self, connection: sa.Connection, rows: Sequence[Any]) -> dict[str, _Work]:
        found = {row["run"]: _Work(row["job"]) for row in rows}
        for some in _chunks(list(found)):
            summed = (
                sa.select(
                    partitions.c.run, partitions.c.step, sa.func.sum(partitions.c.done).label("done"),
                    sa.func.sum(partitions.c.batches).label("batches"), sa.func.sum(partitions.c.retries).label("retries"),
                )
                .where(partitions.c.run.in_(some)).group_by(partitions.c.run, partitions.c.step).subquery()
            )  # fmt: skip
            query = (
                sa.select(steps, summed.c.done, summed.c.batches, summed.c.retries)
                .outerjoin(summed, sa.and_(steps.c.run == summed.c.run, steps.c.step == summed.c.step))
                .where(steps.c.run.in_(some))
            )
            for row in connection.execute(query).mappings():
                _add_step(found[row["run"]], self._plans[row["run"]][row["step"]][0], row)
            errors = sa.select(log.c.run, sa.func.count()).where(log.c.run.in_(some), log.c.level == "error")
            for run, count in connection.execute(errors.group_by(log.c.run)):
                found[run].errors = count
        return found

    def _add_run(self, row: Any, work: _Work, samples: _Samples) -> None:
        samples.add("vecrun_run_info", 1, row["job"], row["run"], row["purpose"], row["status"])
        planned: Counter[str] = Counter()
        for kind, points in self._plans[row["run"]]:
            planned[kind] += points
        for kind, points in planned.items():
            if points:
                samples.add("vecrun_run_points", points, row["job"], row["run"], kind)
                samples.add("vecrun_run_points_done", work.points[kind], row["job"], row["run"], kind)

    def _add_totals(self, work: Iterable[_Work], samples: _Samples) -> None:
        errors: Counter[str] = Counter()
        totals: dict[str, Counter[tuple[str, str]]] = {
            name: Counter() for name in ("counted", "batches", "retries", "seconds", "finished")
        }
        for item in work:
            errors[item.job] += item.errors
            for name, total in totals.items():
                for kind, value in getattr(item, name).items():
                    total[item.job, kind] += value
        for key, name in (
            ("counted", "vecrun_points_total"),
            ("batches", "vecrun_batches_total"),
            ("retries", "vecrun_retries_total"),
        ):
            for labels, value in totals[key].items():
                samples.add(name, value, *labels)
        for job, value in errors.items():
            samples.add("vecrun_errors_total", value, job)
        for labels, count in totals["finished"].items():
            samples.add("vecrun_step_seconds", (count, totals["seconds"][labels]), *labels)

    def _add_partitions(self, connection: sa.Connection, open_: Sequence[str], samples: _Samples) -> None:
        counts: Counter[str] = Counter()
        again = 0
        for some in _chunks(open_):
            query = (
                sa.select(
                    partitions.c.status, sa.func.count(),
                    sa.func.sum(sa.case((partitions.c.deliveries > 1, partitions.c.deliveries - 1), else_=0)),
                )
                .where(partitions.c.run.in_(some)).group_by(partitions.c.status)
            )  # fmt: skip
            for status, count, repeated in connection.execute(query):
                counts[status] += count
                again += int(repeated) if status != "done" else 0
        for status in PARTITION_STATUSES:
            samples.add("vecrun_partitions", counts[status], status)
        samples.add("vecrun_redeliveries", again)


def _models(step: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(key of the identity, name) of the models of a step."""
    for found in ((step.get("transform") or {}).get("embed"), step.get("old"), step.get("new")):
        if found:
            yield ModelIdentity(**found["identity"]).key, str(found["model"])


def _planned(step: dict[str, Any]) -> int:
    """Points that a step of a plan moves or compares; 0 for one that does neither, and for what comes after the switch."""
    if "source" not in step and step["type"] not in ("replace_vectors", "restore_vectors"):
        return 0
    if step.get("mode") == "count" or (step["type"] == "replace_vectors" and step["phase"] == "after"):
        return 0
    points = int(step.get("points") or 0)
    return min(points, int(step["sample"])) if step.get("mode") == "sample" else points


def _add_step(work: _Work, kind: str, row: Any) -> None:
    result = json.loads(row["result"]) if row["result"] else {}
    ended = row["status"] == "done"
    value = {key: row[key] if row[key] is not None else result.get(key) for key in ("done", "batches", "retries")}
    if kind == "replace_vectors" and "looked" in result:  # in passes: each begins anew, and a counter must not fall
        work.counted[kind] += int(result["looked"]) + (0 if ended else int(row["done"] or 0))
        work.points[kind] += max(int(result["done"]), int(row["done"] or 0))
        value["done"] = None
    if value["done"] is not None:
        work.points[kind] += int(value["done"])
        # what is not copied may be begun anew, and a counter must not fall
        if ended or kind in ("copy_points", "replace_vectors"):
            work.counted[kind] += int(value["done"])
            work.batches[kind] += int(value["batches"] or 0)
            work.retries[kind] += int(value["retries"] or 0)
    if ended and row["started"] and row["finished"]:
        passed = datetime.fromisoformat(row["finished"]) - datetime.fromisoformat(row["started"])
        work.seconds[kind] = work.seconds.get(kind, 0.0) + passed.total_seconds()
        work.finished[kind] += 1


def _read_leases(connection: sa.Connection, clock: float, samples: _Samples) -> None:
    for row in connection.execute(sa.select(leases).where(leases.c.run.is_not(None)).order_by(leases.c.name)):
        if row.renewed is not None:
            samples.add("vecrun_lease_age_seconds", clock - row.renewed, row.name)
        samples.add("vecrun_lease_expires_in_seconds", row.expires - clock, row.name)


def _read_failures(connection: sa.Connection, samples: _Samples) -> None:
    query = sa.select(runs.c.job, sa.func.count()).join_from(failures, runs, failures.c.run == runs.c.run)
    for job, count in connection.execute(query.group_by(runs.c.job)):
        samples.add("vecrun_failed_items", count, job)


def _read_workers(connection: sa.Connection, clock: float, samples: _Samples) -> None:
    rows = list(connection.execute(sa.select(workers.c.threads, workers.c.running, workers.c.seen)))
    live = [row for row in rows if row.seen >= clock - SILENT_SECONDS]
    samples.add("vecrun_workers", len(live), "live")
    samples.add("vecrun_workers", len(rows) - len(live), "silent")
    samples.add("vecrun_worker_threads", sum(row.threads for row in live))
    samples.add("vecrun_worker_partitions", sum(row.running for row in live))


def _chunks(items: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


class _Samples:
    """Families of METRICS with their samples."""

    def __init__(self) -> None:
        self.families: dict[str, Family] = {}

    def add(self, name: str, value: float | tuple[float, float], *labels: str) -> None:
        """One sample; of a summary, (count, sum)."""
        from prometheus_client import core

        metric = METRICS[name]
        kinds = {
            "gauge": core.GaugeMetricFamily,
            "counter": core.CounterMetricFamily,
            "summary": core.SummaryMetricFamily,
        }
        if name not in self.families:
            self.families[name] = kinds[metric.kind](name, metric.help, labels=metric.labels)
        family: Any = self.families[name]
        family.add_metric(labels, *(value if isinstance(value, tuple) else (value,)))


class Server:
    """Answers scrapes from a thread that does not keep the process alive."""

    def __init__(self, host: str, port: int, collector: LedgerCollector) -> None:
        try:
            from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
        except ImportError as exc:
            raise VecrunError(
                "A package is missing", "prometheus_client, for metrics", "pip install 'vecrun[metrics]'"
            ) from exc
        registry = CollectorRegistry()
        registry.register(collector)
        ProcessCollector(registry=registry)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, OverflowError) as exc:
            reason = getattr(exc, "strerror", None) or exc
            raise VecrunError(
                "The metrics cannot be served",
                f"{host}:{port}: {reason}",
                "Choose another address, such as 127.0.0.1:0",
            ) from exc
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{self._server.server_port}"

    def close(self) -> None:
        """Stop answering; a scrape in progress is not waited for."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


def serve(address: str, ledger: Ledger, queue: Callable[[], int | None] | None = None) -> Server:
    """Serve the metrics at `address`: host:port, or :port for this machine only; port 0 takes a free one.

    `queue` tells how many messages wait, or None while it does not answer. Anybody who reaches the address can read: names of jobs stand there.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise VecrunError("No such address for metrics", repr(address), "Write HOST:PORT, such as 127.0.0.1:9464")
    return Server(host.strip("[]") or "127.0.0.1", int(port), LedgerCollector(ledger, queue))
