"""The ledger: runs, steps, partitions, checkpoints, id mappings, findings and log, in one SQL database.

It is the truth about progress; queues only carry ids. Every write of a run is guarded by the run's fencing token
in the same transaction, so a process that lost its lease cannot write here any more.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from runner.errors import NotFound, VecrunError, redact
from runner.lock import Lease, Leases, metadata, now, owner
from runner.points import KeyRange, PointId

runs = sa.Table(
    "runs", metadata,
    sa.Column("run", sa.String(32), primary_key=True),
    sa.Column("job", sa.String(64), nullable=False, index=True),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("purpose", sa.String(16), nullable=False),
    sa.Column("of_run", sa.String(32)),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("plan_digest", sa.String(80), nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("created", sa.String(32), nullable=False),
    sa.Column("started", sa.String(32)),
    sa.Column("finished", sa.String(32)),
    sa.Column("owner", sa.String(255)),
    sa.Column("control", sa.String(16)),  # pause or cancel, asked for from outside
    sa.Column("error", sa.Text),
)  # fmt: skip
steps = sa.Table(
    "steps", metadata,
    sa.Column("run", sa.String(32), sa.ForeignKey("runs.run"), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("fingerprint", sa.String(80)),  # of the partition table, once it is cut
    sa.Column("result", sa.Text),
    sa.Column("started", sa.String(32)),
    sa.Column("finished", sa.String(32)),
)  # fmt: skip
partitions = sa.Table(
    "partitions", metadata,
    sa.Column("run", sa.String(32), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("part", sa.Integer, primary_key=True),
    sa.Column("keys", sa.Text, nullable=False),  # JSON of the KeyRange
    sa.Column("status", sa.String(16), nullable=False),  # pending, running, done, failed
    sa.Column("cursor", sa.Text),  # JSON of the last id that is durable in the target
    sa.Column("read", sa.BigInteger, nullable=False, default=0),
    sa.Column("done", sa.BigInteger, nullable=False, default=0),
    sa.Column("deliveries", sa.Integer, nullable=False, default=0),
    sa.Column("error", sa.Text),
)  # fmt: skip
id_map = sa.Table(
    "id_map", metadata,
    sa.Column("run", sa.String(32), primary_key=True),
    sa.Column("collection", sa.String(255), primary_key=True),  # name in the source
    sa.Column("old", sa.Text, primary_key=True),  # JSON, so that 42 and "42" stay apart
    sa.Column("new", sa.Text, nullable=False),
)  # fmt: skip
findings = sa.Table(
    "findings", metadata,
    sa.Column("run", sa.String(32), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("item", sa.String(1024), primary_key=True),  # JSON of the id
    sa.Column("part", sa.Integer, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
)  # fmt: skip
log = sa.Table(
    "log", metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run", sa.String(32), nullable=False, index=True),
    sa.Column("time", sa.String(32), nullable=False),
    sa.Column("level", sa.String(8), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("details", sa.Text),
)  # fmt: skip

#: Statuses a run never leaves.
FINAL = ("completed", "rolled_back")
SCHEMA_VERSION = 1
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


class Ledger(Leases):
    """One SQL database with the tables above. Safe for use from several threads."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        with self._translated():
            metadata.create_all(self.engine)
            self._check_version()

    @classmethod
    @contextmanager
    def temporary(cls) -> Iterator[Ledger]:
        """A ledger that is gone afterwards: for dry runs and verifications on demand."""
        with tempfile.TemporaryDirectory(prefix="vecrun-") as folder:
            ledger = cls(f"sqlite:///{folder}/ledger.db")
            try:
                yield ledger
            finally:
                ledger.close()

    def _check_version(self) -> None:
        if self.engine.dialect.name != "sqlite":
            return
        with self.engine.begin() as connection:
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            if version > SCHEMA_VERSION:
                raise VecrunError(
                    "The ledger has a newer format",
                    f"{self._shown()}: version {version}, this vecrun writes {SCHEMA_VERSION}",
                    "Use the newer vecrun, or another state directory",
                )
            if version != SCHEMA_VERSION:
                connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")

    # -- runs ------------------------------------------------------------------------------------------------

    def start_run(self, lease: Lease, plan: Any, plan_text: str) -> None:
        """Record a new run with its steps, all pending."""
        with self.guarded(lease) as connection:
            connection.execute(
                runs.insert().values(
                    run=lease.run, job=plan.job, kind=plan.kind, purpose=plan.purpose, of_run=plan.of_run, status="running",
                    plan_digest=plan.plan_digest, plan=plan_text, created=now(), started=now(), owner=owner(),
                )
            )  # fmt: skip
            if plan.steps:
                connection.execute(
                    steps.insert(), [{"run": lease.run, "step": n, "status": "pending"} for n in range(len(plan.steps))]
                )

    def set_run(self, lease: Lease, **values: Any) -> None:
        """Change columns of the run (status, finished, error, control)."""
        if values.get("error"):
            values["error"] = redact(values["error"])
        with self.guarded(lease) as connection:
            connection.execute(runs.update().where(runs.c.run == lease.run).values(**values))

    def mark_run(self, run: str, **values: Any) -> None:
        """Like `set_run` for another run than the one the caller holds (a rollback marks the run it undid)."""
        with self._transaction() as connection:
            connection.execute(runs.update().where(runs.c.run == run).values(**values))

    def ask(self, run: str, control: str) -> None:
        """Ask a running run to pause or cancel; it looks between batches."""
        self.mark_run(run, control=control)

    def run(self, run: str) -> dict[str, Any]:
        """One run as a dict. NotFound."""
        with self._reading() as connection:
            row = connection.execute(sa.select(runs).where(runs.c.run == run)).mappings().first()
        if row is None:
            raise NotFound("No such run", repr(run), "vecrun runs")
        return dict(row)

    def runs_of(self, job: str | None = None) -> list[dict[str, Any]]:
        """Runs, newest first, of one job or of all; without their plans."""
        columns = [column for column in runs.c if column.name != "plan"]
        query = sa.select(*columns).order_by(runs.c.created.desc(), runs.c.run.desc())
        if job is not None:
            query = query.where(runs.c.job == job)
        with self._reading() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def unfinished(self, job: str) -> dict[str, Any] | None:
        """The newest run of a job if it has not come to its end: it must be resumed or rolled back first."""
        for row in self.runs_of(job):
            return self.run(row["run"]) if row["status"] not in FINAL else None
        return None

    # -- steps and partitions --------------------------------------------------------------------------------

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

    def steps_of(self, run: str) -> list[dict[str, Any]]:
        """The steps of a run in order."""
        with self._reading() as connection:
            rows = connection.execute(sa.select(steps).where(steps.c.run == run).order_by(steps.c.step)).mappings()
            return [dict(row) | {"result": json.loads(row["result"]) if row["result"] else None} for row in rows]

    def cut(self, lease: Lease, step: int, ranges: Sequence[KeyRange], fingerprint: str) -> None:
        """Store the immutable table of partitions, before the first write. A step is cut once: later calls do nothing."""
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
                }
                for n, keys in enumerate(ranges)
            ]
            if rows:
                connection.execute(partitions.insert(), rows)

    def partitions_of(self, run: str, step: int) -> list[Partition]:
        """The partitions of a step in order; empty before it was cut."""
        query = (
            sa.select(partitions).where(partitions.c.run == run, partitions.c.step == step).order_by(partitions.c.part)
        )
        with self._reading() as connection:
            return [_partition(row) for row in connection.execute(query).mappings()]

    def take(self, lease: Lease, step: int, part: int) -> Partition | None:
        """Begin or go on with a partition, counting the delivery. None when it is done or failed already."""
        where = (partitions.c.run == lease.run, partitions.c.step == step, partitions.c.part == part)
        with self.guarded(lease) as connection:
            row = connection.execute(sa.select(partitions).where(*where)).mappings().one()
            if row["status"] in ("done", "failed"):
                return None
            connection.execute(
                partitions.update().where(*where).values(status="running", deliveries=row["deliveries"] + 1)
            )
            return _partition(row)

    def checkpoint(
        self, lease: Lease, step: int, part: int, *, cursor: PointId | None, read: int, done: int,
        status: str = "running", mapped: Sequence[tuple[PointId, PointId]] = (), collection: str = "",
        found: Sequence[tuple[PointId, str]] = (),
    ) -> None:  # fmt: skip
        """In one transaction: how far the partition is durable, the id mapping of those points, what was found."""
        with self.guarded(lease) as connection:
            for point_id, message in found:
                row = {"run": lease.run, "step": step, "item": json.dumps(point_id)[:1024], "part": part}
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
            values = {"read": read, "done": done, "status": status, "error": None}
            if cursor is not None:
                values["cursor"] = json.dumps(cursor)
            if status == "running":
                values["deliveries"] = (
                    0  # only deliveries that end without a checkpoint count: those that killed their worker
                )
            connection.execute(
                partitions.update()
                .where(partitions.c.run == lease.run, partitions.c.step == step, partitions.c.part == part)
                .values(**values)
            )

    def fail_partition(self, lease: Lease, step: int, part: int, error: str, status: str) -> None:
        """Record an error: `failed` sets the partition aside, `pending` leaves it for another try."""
        with self.guarded(lease) as connection:
            connection.execute(
                partitions.update()
                .where(partitions.c.run == lease.run, partitions.c.step == step, partitions.c.part == part)
                .values(status=status, error=redact(error))
            )

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
                partitions.update().where(*of_step, partitions.c.status == "running").values(status="pending")
            )

    def restart_step(self, lease: Lease, step: int) -> None:
        """Forget the progress of a step (a verification is repeated as a whole after a failure)."""
        with self.guarded(lease) as connection:
            for table in (partitions, findings):
                connection.execute(table.delete().where(table.c.run == lease.run, table.c.step == step))
            connection.execute(
                steps.update().where(steps.c.run == lease.run, steps.c.step == step)
                .values(status="pending", fingerprint=None, result=None)
            )  # fmt: skip

    def findings_of(self, run: str, step: int) -> list[tuple[PointId, str]]:
        """(id, what is wrong with it), as far as it was recorded."""
        query = sa.select(findings).where(findings.c.run == run, findings.c.step == step).order_by(findings.c.item)
        with self._reading() as connection:
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
            with self._reading() as connection:
                rows = connection.execute(query).all()
            if not rows:
                return
            yield [(json.loads(row.old), json.loads(row.new)) for row in rows]
            last = rows[-1].old

    def write_log(self, run: str, level: str, message: str, **details: Any) -> None:
        """Append a line to the run's log."""
        with self._transaction() as connection:
            connection.execute(
                log.insert().values(
                    run=run, time=now(), level=level, message=redact(message),
                    details=redact(json.dumps(details, default=str)) if details else None,
                )
            )  # fmt: skip

    def read_log(self, run: str, after: int = 0) -> list[dict[str, Any]]:
        """Log lines of a run with an id beyond `after`."""
        query = sa.select(log).where(log.c.run == run, log.c.id > after).order_by(log.c.id)
        with self._reading() as connection:
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
