"""Leases with fencing tokens: who may write, for how long, and the number that shows who had it last.

They live in the ledger's database, because a token is checked in the same transaction as what it guards.
"""

from __future__ import annotations

import functools
import getpass
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from runner.errors import LeaseLost, LockHeld, NoSlot, VecrunError
from runner.records import Records, again
from runner.tables import leases

#: (name, token) of the leases this process holds.
_HELD: set[tuple[str, int]] = set()
#: What a run takes a slot of: so many may work at once.
SLOT = "slot"


def collection(place: object) -> str:
    """The name that stands for a collection. `#` is kept for the places of names that several may hold."""
    return f"collection:{place}".replace("%", "%25").replace("#", "%23")


@dataclass(frozen=True)
class Lease:
    """The right to write for `run`: the names it holds, each with its fencing token."""

    run: str
    tokens: tuple[tuple[str, int], ...]

    @property
    def token(self) -> int:
        """The token of its first name: it tells this lease from an earlier one of the same run."""
        return self.tokens[0][1]

    def dumps(self) -> str:
        return json.dumps(self.tokens)

    @classmethod
    def loads(cls, run: str, text: str) -> Lease:
        return cls(run, tuple((name, token) for name, token in json.loads(text)))


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Leases(Records):
    """The leases in a database of records."""

    def acquire(
        self, names: Sequence[str], run: str, seconds: float, *, shared: Mapping[str, int] | None = None
    ) -> Lease:
        """Take all names or none. LockHeld tells who holds one. A holder that died on this machine is replaced at once.

        `shared`: name -> how many runs may hold it at once (NoSlot when the name is `SLOT`); nobody can hold it alone meanwhile.
        """
        pid, tokens = os.getpid(), []
        with self.writing() as connection:
            self._exclude_others(connection)
            clock = self.clock(connection)
            rows = {row["name"]: row for row in connection.execute(sa.select(leases)).mappings()}
            held = {name: row for name, row in rows.items() if row["run"] and row["expires"] > clock and not dead(row)}
            for name in _names(names, shared or {}, held):
                row = rows.get(name)
                values = {
                    "token": (row["token"] if row else 0) + 1, "run": run, "owner": owner(), "host": socket.gethostname(),
                    "machine": machine(), "pid": pid, "since": now(), "renewed": clock, "expires": clock + seconds,
                }  # fmt: skip
                if row:
                    connection.execute(leases.update().where(leases.c.name == name).values(**values))
                else:
                    connection.execute(leases.insert().values(name=name, **values))
                tokens.append((name, int(values["token"])))
            # before the commit shows the rows: another thread would take them for those of a dead process with our pid
            _HELD.update(tokens)
        return Lease(run, tuple(tokens))

    def renew(self, lease: Lease, seconds: float) -> None:
        """Push the end of the lease out. LeaseLost when another holds it by now."""
        with self.guarded(lease) as connection:
            names, clock = [name for name, _ in lease.tokens], self.clock(connection)
            connection.execute(
                leases.update().where(leases.c.name.in_(names)).values(expires=clock + seconds, renewed=clock)
            )

    @again
    def release(self, lease: Lease) -> None:
        """Give the names back; those that another took meanwhile are left alone."""
        _HELD.difference_update(lease.tokens)
        with self.writing() as connection:
            for name, token in lease.tokens:
                connection.execute(
                    leases.update().where(leases.c.name == name, leases.c.token == token).values(run=None, expires=0)
                )

    def force_release(self, name: str, token: int) -> bool:
        """An operator frees `name` if its token is still `token`; the token moves, so the old holder is fenced off."""
        with self.writing() as connection:
            self._exclude_others(connection)
            result = connection.execute(
                leases.update().where(leases.c.name == name, leases.c.token == token, leases.c.run.is_not(None))
                .values(run=None, expires=0, token=token + 1)
            )  # fmt: skip
            return result.rowcount == 1

    @again
    def holders(self) -> list[dict[str, Any]]:
        """All leases that are held, expired ones included (`expired`); `seconds` until they expire."""
        with self.reading() as connection:
            clock = self.clock(connection)
            rows = connection.execute(sa.select(leases).where(leases.c.run.is_not(None)).order_by(leases.c.name))
            return [
                dict(row) | {"expired": row["expires"] <= clock or dead(row), "seconds": row["expires"] - clock}
                for row in rows.mappings()
            ]

    def _exclude_others(self, connection: sa.Connection) -> None:
        """Wait for every guarded transaction; none begins before this one ends. SQLite's BEGIN IMMEDIATE does the same."""
        if self.on_server:
            connection.exec_driver_sql("LOCK TABLE leases IN EXCLUSIVE MODE")

    @contextmanager
    def guarded(self, lease: Lease) -> Iterator[sa.Connection]:
        """A transaction that fails when the lease is no longer ours; nobody can take the lease while it lasts.

        Several of one run may be at work at the same time.
        """
        with self.writing() as connection:
            names = [name for name, _ in lease.tokens]
            rows = connection.execute(
                sa.select(leases.c.name, leases.c.token, leases.c.run, leases.c.expires)
                .where(leases.c.name.in_(names))
                .order_by(leases.c.name)
                # KEY SHARE lets `renew` pass, which a stream of checkpoints would keep out until the lease is over;
                # whoever takes a lease locks the table, and that waits for all of these
                .with_for_update(read=True, key_share=True)
            ).all()
            clock = self.clock(connection)
            current = {row.name: row.token for row in rows if row.run == lease.run and row.expires > clock}
            if current != dict(lease.tokens):
                raise LeaseLost(
                    "This process lost its lock",
                    f"run {lease.run}: its lease ran out or was released, and another may be at work",
                    "Nothing was written since. Look with vecrun status; when nobody goes on with it: vecrun resume",
                )
            yield connection


class Keeper:
    """Renews a lease from a thread while its block runs; sets `stop` and `error` when that is no longer possible."""

    def __init__(self, leases: Leases, lease: Lease, seconds: float, stop: threading.Event) -> None:
        self.error: VecrunError | None = None
        self._leases, self._lease, self._seconds, self._stop = leases, lease, seconds, stop
        self._over = threading.Event()
        self._thread = threading.Thread(target=copy_context().run, args=(self._renew,), name="lease", daemon=True)

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(timeout=5)

    def _renew(self) -> None:
        renewed = time.time()  # the wall clock: a laptop's sleep counts
        while not self._over.wait(self._seconds / 5):
            try:
                self._leases.renew(self._lease, self._seconds)
                renewed = time.time()
            except LeaseLost as exc:
                self.error = exc
            except VecrunError as exc:
                if time.time() - renewed > self._seconds * 0.75:
                    self.error = exc
            if self.error is not None:
                self._stop.set()
                return


def owner() -> str:
    """user@host of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


@functools.cache
def machine() -> str:
    """Names this kernel and its process namespace: containers may share a host name, and a pid means nothing outside its own."""
    try:
        parts = [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), str(Path("/proc/self/ns/pid").readlink())]
    except OSError:  # not Linux: no namespaces
        parts = [str(uuid.getnode())]
    return hashlib.sha256(" ".join([socket.gethostname(), *parts]).encode()).hexdigest()[:32]


def alive(pid: int) -> bool:
    """Whether a process of this machine lives. One that is dead and was not fetched by its parent does not."""
    try:
        os.kill(pid, 0)
        # a zombie answers, too (Linux; in a container nobody may fetch it)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:
        return True


def _names(names: Sequence[str], shared: Mapping[str, int], held: Mapping[str, Any]) -> list[str]:
    """The rows to take: each name, and a free place of each shared one. Raises when there is none."""
    taken = []
    for name in sorted(names):
        for other, row in held.items():
            if other == name or other.partition("#")[0] == name:
                raise _refused(name, [row])
        taken.append(name)
    for name, places in sorted(shared.items()):
        free = [place for n in range(1, places + 1) if (place := f"{name}#{n}") not in held]
        if name in held or not free:
            raise _refused(name, [row for other, row in held.items() if other.partition("#")[0] == name])
        taken.append(free[0])
    return taken


def _refused(name: str, rows: Sequence[Any]) -> LockHeld:
    lines = [f"run {row['run']} of {row['owner']} (pid {row['pid']}) since {row['since']}" for row in rows]
    if name == SLOT:
        return NoSlot(
            "No slot is free",
            f"{len(rows)} runs are at work, and limits.runs allows no more:\n" + "\n".join(lines),
            "Wait for one (--wait 30m), or raise limits.runs in vecrun.yaml",
        )
    return LockHeld(
        "Somebody else is at work",
        f"{name} is held by " + "; ".join(lines),
        "Wait for it (--wait 30m), or look at it with: vecrun lock list",
    )


def dead(row: Any) -> bool:
    """Whether the holder was a process of this machine that is gone."""
    if row["machine"] != machine() or row["pid"] is None:
        return False
    if row["pid"] == os.getpid():  # either held by a thread of ours, or left by a process that had our pid before us
        return (row["name"], row["token"]) not in _HELD
    return not alive(row["pid"])
