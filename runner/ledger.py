"""The ledger: runs, steps, partitions, checkpoints, id mappings, findings and log, in one SQL database.

It is the truth about progress; queues only carry ids. Every write of a run is guarded by the run's fencing token
in the same transaction, so a process that lost its lease cannot write here any more; every write of a partition also
by its claim, so that of two workers with one partition only the later one counts.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from uuid import uuid4

import sqlalchemy as sa

from runner import logs
from runner.errors import ClaimLost, NotFound, VecrunError, redact
from runner.lock import Lease, Leases, dead, now, owner
from runner.points import KeyRange, PointId
from runner.records import again
from runner.tables import findings, id_map, leases, log, partitions, runs, steps

#: Statuses a run never leaves.
FINAL = ("completed", "rolled_back")
#: Seconds of a lease in a ledger that nobody else can open.
UNLIMITED = 1e9


@dataclass(frozen=True)
class Partition:
    """One range of a step's work and how far it has come."""

    part: int
    keys: KeyRange
    status: str
    cursor: PointId | None
    read: int
    done: int
    deliveries: int
    error: str | None
    batches: int = 0
    retries: int = 0
    worker: str | None = None
    claim: int = 0
    notes: dict[str, Any] | None = None  # what its step keeps besides


class Ledger(Leases):
    """What is recorded of runs. Safe for use from several threads."""

    @classmethod
    @contextmanager
    def temporary(cls) -> Iterator[Self]:
        """A ledger that is gone afterwards: for dry runs and verifications on demand."""
        with tempfile.TemporaryDirectory(prefix="vecrun-") as folder:
            ledger = cls(f"sqlite:///{folder}/ledger.db", lasting=False)
            try:
                yield ledger
            finally:
                ledger.close()

    # -- runs ------------------------------------------------------------------------------------------------

    @again
    def start_run(
        self, lease: Lease, plan: Any, plan_text: str, *, executor: str = "embedded", status: str = "running"
    ) -> None:
        """Record a new run with its steps, all pending."""
        with self.guarded(lease) as connection:
            if connection.execute(sa.select(runs.c.run).where(runs.c.run == lease.run)).first():
                return
            moment = self._after_all(connection)
            mine = runs.c.job == plan.job
            if (
                plan.purpose == "rollback"
            ):  # nobody goes on with what is being undone, nor with a rollback of it that never began
                connection.execute(
                    runs.update().where(mine, runs.c.run == plan.of_run, runs.c.status.in_(("pending", "running")))
                    .values(status="cancelled", control=None)
                )  # fmt: skip
                connection.execute(
                    runs.update().where(mine, runs.c.purpose == "rollback", runs.c.status.not_in(FINAL))
                    .values(status="rolled_back", control=None)
                )  # fmt: skip
            connection.execute(
                runs.insert().values(
                    run=lease.run, job=plan.job, kind=plan.kind, purpose=plan.purpose, of_run=plan.of_run, status=status,
                    plan_digest=plan.plan_digest, plan=plan_text, executor=executor, lease=lease.dumps(), created=moment,
                    started=moment if status == "running" else None, owner=owner(),
                )
            )  # fmt: skip
            if plan.steps:
                connection.execute(
                    steps.insert(), [{"run": lease.run, "step": n, "status": "pending"} for n in range(len(plan.steps))]
                )

    def _after_all(self, connection: sa.Connection) -> str:
        """The time by the database's clock, after that of every run so far: their order must not depend on clocks."""
        moment = datetime.fromtimestamp(self.clock(connection), UTC)
        if newest := connection.execute(sa.select(sa.func.max(runs.c.created))).scalar():
            moment = max(moment, datetime.fromisoformat(newest) + timedelta(milliseconds=1))
        return moment.isoformat(timespec="milliseconds")

    @again
    def set_run(self, held: Lease, /, **values: Any) -> None:
        """Change columns of the run (status, finished, error, control)."""
        if values.get("error"):
            values["error"] = redact(values["error"])
        with self.guarded(held) as connection:
            connection.execute(runs.update().where(runs.c.run == held.run).values(**values))

    def hold(self, lease: Lease, **values: Any) -> None:
        """Like `set_run`, and record the lease, so that workers write under it from now on."""
        self.set_run(lease, **{"lease": lease.dumps(), **values})

    @again
    def mark_run(self, run: str, **values: Any) -> None:
        """Like `set_run` for another run than the one the caller holds (a rollback marks the run it undid)."""
        with self.writing() as connection:
            connection.execute(runs.update().where(runs.c.run == run).values(**values))

    @again
    def ask(self, run: str, wish: str, status: str) -> bool:
        """Ask whoever works on a run to pause or cancel; it looks between batches. When nobody holds its lease, the run
        gets `status` at once. False when it has come to its end."""
        with self.writing() as connection:
            if self.on_server:  # nobody begins to work on it in between
                connection.exec_driver_sql("LOCK TABLE leases IN EXCLUSIVE MODE")
            unexpired = (leases.c.run == run, leases.c.expires > self.clock(connection))
            rows = connection.execute(sa.select(leases).where(*unexpired)).mappings().all()
            held = any(not dead(row) for row in rows)
            values: dict[str, Any] = {"status": status, "control": None}
            if held:  # what was asked before goes before a pause
                values = {"control": sa.case((runs.c.control.in_(("cancel", "stop")), runs.c.control), else_=wish)}
            found = connection.execute(
                runs.update().where(runs.c.run == run, runs.c.status.not_in(FINAL)).values(**values)
            )
            return found.rowcount == 1

    @again
    def wish(self, run: str) -> tuple[str | None, dict[str, Any] | None]:
        """(pause, cancel, stop or None; the error for which it is to stop)."""
        with self.reading() as connection:
            row = connection.execute(sa.select(runs.c.control, runs.c.problem).where(runs.c.run == run)).one()
            return row.control, json.loads(row.problem) if row.problem else None

    @again
    def lease_of(self, run: str) -> Lease | None:
        """What its coordinator holds, for those who work for it. Whether it still does, each transaction asks."""
        with self.reading() as connection:
            text = connection.execute(sa.select(runs.c.lease).where(runs.c.run == run)).scalar()
            return Lease.loads(run, text) if text else None

    @again
    def report(self, lease: Lease, error: VecrunError) -> None:
        """A worker met an error that must stop its run; the first one counts."""
        with self.guarded(lease) as connection:
            connection.execute(
                runs.update().where(runs.c.run == lease.run, runs.c.control.is_(None))
                .values(control="stop", problem=redact(json.dumps(error.as_dict())))
            )  # fmt: skip

    @again
    def run(self, run: str) -> dict[str, Any]:
        """One run as a dict. NotFound."""
        with self.reading() as connection:
            row = connection.execute(sa.select(runs).where(runs.c.run == run)).mappings().first()
        if row is None:
            raise NotFound("No such run", repr(run), "vecrun runs")
        return dict(row)

    @again
    def runs_of(self, job: str | None = None) -> list[dict[str, Any]]:
        """Runs, newest first, of one job or of all; without their plans."""
        columns = [column for column in runs.c if column.name != "plan"]
        query = sa.select(*columns).order_by(runs.c.created.desc(), runs.c.run.desc())
        if job is not None:
            query = query.where(runs.c.job == job)
        with self.reading() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def unfinished(self, job: str, *, but: str = "") -> dict[str, Any] | None:
        """The newest run of a job, `but` aside, that has not come to its end: it must be resumed or rolled back first."""
        for row in self.runs_of(job):
            if row["run"] != but and row["status"] not in FINAL:
                return self.run(row["run"])
        return None

    # -- steps and partitions --------------------------------------------------------------------------------

    @again
    def set_step(self, lease: Lease, step: int, status: str, result: Any = None) -> None:
        """Change a step's status; `result` is stored as JSON."""
        values: dict[str, Any] = {"status": status}
        if status == "running":
            values["started"] = now()
        if status == "done":
            values["finished"] = now()
        if result is not None:
            values["result"] = json.dumps(result)
        with self.guarded(lease) as connection:
            connection.execute(steps.update().where(steps.c.run == lease.run, steps.c.step == step).values(**values))
            if status == "done":
                connection.execute(runs.update().where(runs.c.run == lease.run).values(takeovers=0))

    def note_step(self, connection: sa.Connection, run: str, step: int, result: Any) -> None:
        """Store what a step has done so far, in a transaction of the caller."""
        chosen = (steps.c.run == run, steps.c.step == step)
        connection.execute(steps.update().where(*chosen).values(result=json.dumps(result)))

    @again
    def steps_of(self, run: str) -> list[dict[str, Any]]:
        """The steps of a run in order."""
        with self.reading() as connection:
            rows = connection.execute(sa.select(steps).where(steps.c.run == run).order_by(steps.c.step)).mappings()
            return [dict(row) | {"result": json.loads(row["result"]) if row["result"] else None} for row in rows]

    @again
    def cut(self, lease: Lease, step: int, ranges: Sequence[KeyRange], fingerprint: str, *, claim: int = 0) -> None:
        """Store the immutable table of partitions, before the first write. A step is cut once: later calls do nothing.

        `claim`: where claims begin; above those of an earlier pass, whose late workers must not write into this one.
        """
        with self.guarded(lease) as connection:
            held = connection.execute(
                sa.select(steps.c.fingerprint).where(steps.c.run == lease.run, steps.c.step == step)
            ).scalar_one()
            if held is not None:
                return
            connection.execute(
                steps.update().where(steps.c.run == lease.run, steps.c.step == step).values(fingerprint=fingerprint)
            )
            rows = [
                {
                    "run": lease.run,
                    "step": step,
                    "part": n,
                    "keys": json.dumps(keys),
                    "status": "pending",
                    "read": 0,
                    "done": 0,
                    "deliveries": 0,
                    "claim": claim,
                }
                for n, keys in enumerate(ranges)
            ]
            if rows:
                connection.execute(partitions.insert(), rows)

    @again
    def partitions_of(self, run: str, step: int) -> list[Partition]:
        """The partitions of a step in order; empty before it was cut."""
        query = (
            sa.select(partitions).where(partitions.c.run == run, partitions.c.step == step).order_by(partitions.c.part)
        )
        with self.reading() as connection:
            return [_partition(row) for row in connection.execute(query).mappings()]

    def take(self, lease: Lease, step: int, part: int, worker: str = "") -> Partition | None:
        """Begin or go on with a partition, counting the delivery. None when it is done, failed, or another has it."""
        return self._take(lease, step, part, worker, uuid4().hex)

    @again
    def _take(self, lease: Lease, step: int, part: int, worker: str, taking: str) -> Partition | None:
        where = (partitions.c.run == lease.run, partitions.c.step == step, partitions.c.part == part)
        with self.guarded(lease) as connection:
            row = connection.execute(sa.select(partitions).where(*where).with_for_update()).mappings().one_or_none()
            if row is not None and row["taking"] == taking:  # taken already, and the answer was lost
                return _partition({**row, "deliveries": row["deliveries"] - 1})
            if row is None or row["status"] != "pending":
                return None
            taken = {"status": "running", "worker": worker, "claim": row["claim"] + 1, "taking": taking, "queued": None}
            connection.execute(partitions.update().where(*where).values(**taken, deliveries=row["deliveries"] + 1))
            return _partition({**row, **taken})

    @again
    def checkpoint(
        self, lease: Lease, step: int, partition: Partition, *, mapped: Sequence[tuple[PointId, PointId]] = (),
        collection: str = "", found: Sequence[tuple[PointId, str]] = (),
        records: Sequence[Callable[[sa.Connection], None]] = (),
    ) -> bool:  # fmt: skip
        """In one transaction: how far `partition` is durable, the id mapping of those points, what was found, and what
        `records` write besides.

        False when the run is to stop. ClaimLost when another worker has the partition by now.
        """
        with self.guarded(lease) as connection:
            self._claimed(
                connection, lease, step, partition,
                read=partition.read, done=partition.done, batches=partition.batches, retries=partition.retries,
                status=partition.status, error=None, notes=json.dumps(partition.notes) if partition.notes else None,
                **({"cursor": json.dumps(partition.cursor)} if partition.cursor is not None else {}),
                # only deliveries that end without a checkpoint count: those that killed their worker
                **({"deliveries": 0} if partition.status != "done" else {}),
            )  # fmt: skip
            for point_id, message in found:
                row = {"run": lease.run, "step": step, "item": json.dumps(point_id)[:1024], "part": partition.part}
                connection.execute(
                    findings.delete().where(*(findings.c[key] == row[key] for key in ("run", "step", "item")))
                )
                connection.execute(findings.insert().values(**row, message=redact(message)))
            if mapped:
                rows = [
                    {"run": lease.run, "collection": collection, "old": json.dumps(a), "new": json.dumps(b)}
                    for a, b in mapped
                ]
                connection.execute(_upsert(self.engine.dialect.name), rows)
            for record in records:
                record(connection)
            return self._control(connection, lease.run) is None

    @again
    def fail_partition(self, lease: Lease, step: int, partition: Partition, error: str) -> None:
        """Set a partition aside with its error."""
        with self.guarded(lease) as connection:
            self._claimed(connection, lease, step, partition, status="failed", error=redact(error))

    def _claimed(self, connection: sa.Connection, lease: Lease, step: int, partition: Partition, **values: Any) -> None:
        found = connection.execute(
            partitions.update()
            .where(
                partitions.c.run == lease.run, partitions.c.step == step, partitions.c.part == partition.part,
                partitions.c.claim == partition.claim,
            )
            .values(**values)
        )  # fmt: skip
        if found.rowcount != 1:
            raise ClaimLost(
                "Another worker has this partition", f"run {lease.run}, step {step}, partition {partition.part}"
            )

    def _control(self, connection: sa.Connection, run: str) -> str | None:
        control: str | None = connection.execute(sa.select(runs.c.control).where(runs.c.run == run)).scalar()
        return control

    @again
    def reopen(self, lease: Lease, step: int) -> None:
        """On resume: failed partitions get another chance; those whose worker died keep count of their deliveries."""
        of_step = (partitions.c.run == lease.run, partitions.c.step == step)
        with self.guarded(lease) as connection:
            connection.execute(
                partitions.update()
                .where(*of_step, partitions.c.status == "failed")
                .values(status="pending", deliveries=0)
            )
            connection.execute(
                partitions.update()
                .where(*of_step, partitions.c.status == "running")
                .values(status="pending", claim=partitions.c.claim + 1)
            )

    @again
    def restart_step(self, lease: Lease, step: int, result: Any = None) -> None:
        """Forget the progress of a step that is repeated as a whole; `result` is what the next pass begins with."""
        with self.guarded(lease) as connection:
            for table in (partitions, findings):
                connection.execute(table.delete().where(table.c.run == lease.run, table.c.step == step))
            connection.execute(
                steps.update().where(steps.c.run == lease.run, steps.c.step == step)
                .values(status="pending", fingerprint=None, result=None if result is None else json.dumps(result))
            )  # fmt: skip

    @again
    def findings_of(self, run: str, step: int) -> list[tuple[PointId, str]]:
        """(id, what is wrong with it), as far as it was recorded."""
        query = sa.select(findings).where(findings.c.run == run, findings.c.step == step).order_by(findings.c.item)
        with self.reading() as connection:
            return [(_item(row.item), row.message) for row in connection.execute(query)]

    # -- id mapping and log ----------------------------------------------------------------------------------

    def mapping(self, run: str, collection: str, size: int = 10_000) -> Iterator[list[tuple[PointId, PointId]]]:
        """(old id, new id) of a collection, in pages."""
        last = ""
        while True:
            query = (
                sa.select(id_map.c.old, id_map.c.new)
                .where(id_map.c.run == run, id_map.c.collection == collection, id_map.c.old > last)
                .order_by(id_map.c.old).limit(size)
            )  # fmt: skip
            with self.reading() as connection:
                rows = connection.execute(query).all()
            if not rows:
                return
            yield [(json.loads(row.old), json.loads(row.new)) for row in rows]
            last = rows[-1].old

    def known(self, run: str, collection: str, ids: Sequence[PointId]) -> set[PointId]:
        """Those of the source `ids` whose mapping is recorded."""
        return {old for old, _new in self._pairs(run, collection, id_map.c.old, ids)}

    def originals(self, run: str, collection: str, ids: Sequence[PointId]) -> dict[PointId, PointId]:
        """target id -> source id, for those of the target `ids` that are in the mapping. There is no index for it."""
        return {new: old for old, new in self._pairs(run, collection, id_map.c.new, ids)}

    @again
    def _pairs(
        self, run: str, collection: str, column: sa.Column[Any], ids: Sequence[PointId]
    ) -> list[tuple[PointId, PointId]]:
        found: list[tuple[PointId, PointId]] = []
        with self.reading() as connection:
            for start in range(0, len(ids), 500):
                texts = [json.dumps(item) for item in ids[start : start + 500]]
                where = (id_map.c.run == run, id_map.c.collection == collection, column.in_(texts))
                rows = connection.execute(sa.select(id_map.c.old, id_map.c.new).where(*where))
                found += [(json.loads(row.old), json.loads(row.new)) for row in rows]
        return found

    @again
    def remember(self, lease: Lease, collection: str, pairs: Sequence[tuple[PointId, PointId]]) -> None:
        """Record (source id, target id) beside the checkpoints, which do the same."""
        rows = [
            {"run": lease.run, "collection": collection, "old": json.dumps(a), "new": json.dumps(b)} for a, b in pairs
        ]
        with self.guarded(lease) as connection:
            connection.execute(_upsert(self.engine.dialect.name), rows)

    @again
    def forget(self, lease: Lease, collection: str, ids: Sequence[PointId]) -> None:
        """Remove the mapping of these source ids: their points are being deleted."""
        with self.guarded(lease) as connection:
            for start in range(0, len(ids), 500):
                texts = [json.dumps(item) for item in ids[start : start + 500]]
                of_points = (id_map.c.run == lease.run, id_map.c.collection == collection, id_map.c.old.in_(texts))
                connection.execute(id_map.delete().where(*of_points))

    @again
    def write_log(self, run: str, level: str, message: str, **details: Any) -> None:
        """Append a line to the run's log."""
        with self.writing() as connection:
            connection.execute(
                log.insert().values(
                    run=run, time=now(), level=level, message=redact(message),
                    details=redact(json.dumps(details, default=str)) if details else None,
                )
            )  # fmt: skip
        getattr(logs.log(), level)(message, **{"run": run, **details})

    @again
    def read_log(self, run: str, after: int = 0) -> list[dict[str, Any]]:
        """Log lines of a run with an id beyond `after`."""
        query = sa.select(log).where(log.c.run == run, log.c.id > after).order_by(log.c.id)
        with self.reading() as connection:
            return [
                dict(row) | {"details": json.loads(row["details"]) if row["details"] else {}}
                for row in connection.execute(query).mappings()
            ]


def _item(text: str) -> PointId:
    try:
        item: PointId = json.loads(text)
    except ValueError:  # an id longer than the column
        return text
    return item


def _partition(row: Any) -> Partition:
    return Partition(
        part=row["part"],
        keys=KeyRange(*json.loads(row["keys"])),
        status=row["status"],
        cursor=json.loads(row["cursor"]) if row["cursor"] is not None else None,
        read=row["read"],
        done=row["done"],
        deliveries=row["deliveries"],
        error=row["error"],
        batches=row["batches"],
        retries=row["retries"],
        worker=row["worker"],
        claim=row["claim"],
        notes=json.loads(row["notes"]) if row["notes"] else None,
    )


def _upsert(dialect: str) -> sa.Insert:
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as pg_insert

        statement = pg_insert(id_map)
        return statement.on_conflict_do_update(
            index_elements=[id_map.c.run, id_map.c.collection, id_map.c.old], set_={"new": statement.excluded.new}
        )
    from sqlalchemy.dialects.sqlite import insert as sqlite_insert

    lite = sqlite_insert(id_map)
    return lite.on_conflict_do_update(
        index_elements=[id_map.c.run, id_map.c.collection, id_map.c.old], set_={"new": lite.excluded.new}
    )
