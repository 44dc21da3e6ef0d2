"""Workers of a distributed run: their signs of life, and what is taken up again when one falls silent.

Every worker process sweeps. Each change is a compare-and-set on what was seen, so that of several sweepers one acts.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from runner.ledger import Ledger
from runner.lock import SLOT, Lease, dead, now
from runner.records import again
from runner.tables import leases, log, partitions, runs, steps, workers

#: Seconds between two signs of life of a worker, and after how many it counts as dead.
BEAT_SECONDS, SILENT_SECONDS = 1.5, 7.0
#: Seconds after which the message of a partition that nobody took counts as lost, if the queue is empty.
LOST_SECONDS = 5.0
#: (run, step, partition)
Claim = tuple[str, int, int]


@dataclass(frozen=True)
class Message:
    """What the queue carries: ids, and the token of the lease under which the partition is worked on."""

    run: str
    step: int
    part: int
    token: int


class Sweeper(Ledger):
    """The ledger, with what only workers do in it."""

    @again
    def beat(self, worker: str, threads: int, running: int) -> None:
        """A sign of life."""
        with self.writing() as connection:
            seen = {"threads": threads, "running": running, "seen": self.clock(connection)}
            if connection.execute(workers.update().where(workers.c.worker == worker).values(**seen)).rowcount == 0:
                connection.execute(
                    workers.insert().values(
                        worker=worker, host=socket.gethostname(), pid=os.getpid(), since=now(), **seen
                    )
                )

    @again
    def leave(self, worker: str) -> None:
        """The last sign: it ended in order."""
        with self.writing() as connection:
            connection.execute(workers.delete().where(workers.c.worker == worker))

    @again
    def sweep(self, worker: str, busy: Callable[[], Collection[Claim]], *, idle: bool) -> list[Message]:
        """Free what dead workers held, and what this one holds without working on it; the messages to send again.

        `busy` tells what this worker is at; it is asked after the ledger. `idle`: the queue is empty, so a partition that nobody took has lost its message.
        """
        found: list[Message] = []
        with self.writing() as connection:
            clock = self.clock(connection)
            connection.execute(workers.delete().where(workers.c.seen < clock - 3600))
            rows = connection.execute(_OPEN).mappings().all()
            own = connection.execute(sa.select(workers.c.seen).where(workers.c.worker == worker)).scalar()
            # after a time in which nobody could write, others need a moment to give a sign of life, too
            judges, at_it = own is not None and own > clock - 2 * BEAT_SECONDS, busy()
            for row in rows:
                claim = (row["run"], row["step"], row["part"])
                if row["status"] == "running":
                    silent = judges and (row["seen"] is None or row["seen"] < clock - SILENT_SECONDS)
                    if not (silent or (row["worker"] == worker and claim not in at_it)):
                        continue
                    values: dict[str, Any] = {"status": "pending", "worker": None, "claim": row["claim"] + 1}
                    condition = partitions.c.claim == row["claim"]
                elif idle and (row["queued"] is None or row["queued"] < clock - LOST_SECONDS):
                    values, silent = {}, False
                    condition = partitions.c.queued.is_not_distinct_from(row["queued"])
                else:
                    continue
                changed = connection.execute(
                    partitions.update()
                    .where(
                        partitions.c.run == row["run"], partitions.c.step == row["step"], partitions.c.part == row["part"],
                        partitions.c.status == row["status"], condition,
                    )
                    .values(queued=clock, **values)
                )  # fmt: skip
                if changed.rowcount != 1:
                    continue
                if silent:
                    text = f"partition {row['part']} of step {row['step'] + 1} is taken up again: {row['worker']} fell silent"
                    connection.execute(log.insert().values(run=row["run"], time=now(), level="warning", message=text))
                found.append(Message(*claim, Lease.loads(row["run"], row["lease"]).token))
        return found

    @again
    def orphans(self, slots: int) -> list[str]:
        """Distributed runs that are to go on, and that nobody coordinates; none while all `slots` are taken."""
        with self.reading() as connection:
            unexpired = (leases.c.run.is_not(None), leases.c.expires > self.clock(connection))
            held = [row for row in connection.execute(sa.select(leases).where(*unexpired)).mappings() if not dead(row)]
            if sum(row["name"].startswith(f"{SLOT}#") for row in held) >= slots:
                return []
            query = (
                sa.select(runs.c.run)
                .where(runs.c.executor == "distributed", runs.c.status.in_(("pending", "running")))
                .order_by(runs.c.created)
            )
            at_work = {row["run"] for row in held}
            return [run for run in connection.execute(query).scalars() if run not in at_work]

    @again
    def at_work(self, run: str) -> int:
        """Partitions of a run that a living worker has."""
        with self.reading() as connection:
            living = workers.c.seen >= self.clock(connection) - SILENT_SECONDS
            query = (
                sa.select(sa.func.count())
                .select_from(partitions.join(workers, workers.c.worker == partitions.c.worker))
                .where(partitions.c.run == run, partitions.c.status == "running", living)
            )
            return int(connection.execute(query).scalar_one())

    @again
    def crew(self) -> list[dict[str, Any]]:
        """Workers that gave a sign of life lately."""
        with self.reading() as connection:
            living = workers.c.seen >= self.clock(connection) - SILENT_SECONDS
            query = sa.select(workers).where(living).order_by(workers.c.since, workers.c.worker)
            return [dict(row) for row in connection.execute(query).mappings()]


_OPEN = (
    sa.select(
        partitions.c.run, partitions.c.step, partitions.c.part, partitions.c.status, partitions.c.worker,
        partitions.c.claim, partitions.c.queued, workers.c.seen, runs.c.lease,
    )
    .select_from(
        runs.join(steps, steps.c.run == runs.c.run)
        .join(partitions, sa.and_(partitions.c.run == steps.c.run, partitions.c.step == steps.c.step))
        .outerjoin(workers, workers.c.worker == partitions.c.worker)
    )
    .where(
        runs.c.executor == "distributed", runs.c.status == "running", runs.c.control.is_(None),
        steps.c.status == "running", partitions.c.status.in_(("pending", "running")),
    )
    .order_by(partitions.c.run, partitions.c.step, partitions.c.part)
)  # fmt: skip
