"""Leases with fencing tokens: who may write, for how long, and the number that shows who had it last.

They live in the ledger's database, because a token is checked in the same transaction as what it guards.
"""

from __future__ import annotations

import getpass
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from runner.errors import LeaseLost, LockHeld, StoreError, VecrunError

metadata = sa.MetaData()

leases = sa.Table(
    "leases", metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("token", sa.BigInteger, nullable=False),
    sa.Column("run", sa.String(32)),  # None: free
    sa.Column("owner", sa.String(255)),
    sa.Column("host", sa.String(255)),
    sa.Column("pid", sa.Integer),
    sa.Column("since", sa.String(32)),
    sa.Column("expires", sa.Float),
)  # fmt: skip
#: (name, token) of the leases this process holds.
_HELD: set[tuple[str, int]] = set()


@dataclass(frozen=True)
class Lease:
    """The right to write for `run`: the names it holds, each with its fencing token."""

    run: str
    tokens: tuple[tuple[str, int], ...]


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Leases:
    """The database of the ledger, its transactions, and the leases in it. Safe for use from several threads."""

    def __init__(self, url: str) -> None:
        self.url = url
        if url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self.engine = sa.create_engine(url)
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _sqlite_settings)
            event.listen(self.engine, "begin", _sqlite_begin)

    def close(self) -> None:
        self.engine.dispose()

    def _shown(self) -> str:
        return self.engine.url.render_as_string(hide_password=True)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.OperationalError, sa.exc.DatabaseError) as exc:
            raise StoreError(
                "The ledger cannot be used",
                f"{self._shown()}: {exc.orig}",
                "Check disk space and rights of the state directory; nothing of the run is lost, apply goes on from its checkpoints",
            ) from exc

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with self._translated(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        """A transaction that only reads, so that progress displays never wait for a writer."""
        with (
            self._translated(),
            self.engine.connect().execution_options(reading=True) as connection,
            connection.begin(),
        ):
            yield connection

    def acquire(self, names: Sequence[str], run: str, seconds: float) -> Lease:
        """Take all names or none. LockHeld tells who holds one. A holder that died on this host is replaced at once."""
        host, pid, tokens = socket.gethostname(), os.getpid(), []
        with self._transaction() as connection:
            if self.engine.dialect.name == "postgresql":  # SQLite's BEGIN IMMEDIATE does the same
                connection.exec_driver_sql("LOCK TABLE leases IN EXCLUSIVE MODE")
            clock = datetime.now(UTC).timestamp()
            for name in sorted(names):
                row = connection.execute(sa.select(leases).where(leases.c.name == name)).mappings().first()
                if row and row["run"] and row["expires"] > clock and not _dead(row, host):
                    raise LockHeld(
                        "Somebody else is at work",
                        f"{name} is held by {row['owner']} (pid {row['pid']}) for run {row['run']} since {row['since']}",
                        "Wait for it, or look at it with: vecrun lock list",
                    )
                values = {
                    "token": (row["token"] if row else 0) + 1, "run": run, "owner": owner(), "host": host, "pid": pid,
                    "since": now(), "expires": clock + seconds,
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
            names = [name for name, _ in lease.tokens]
            connection.execute(
                leases.update().where(leases.c.name.in_(names)).values(expires=datetime.now(UTC).timestamp() + seconds)
            )

    def release(self, lease: Lease) -> None:
        """Give the names back; those that another took meanwhile are left alone."""
        _HELD.difference_update(lease.tokens)
        with self._transaction() as connection:
            for name, token in lease.tokens:
                connection.execute(
                    leases.update().where(leases.c.name == name, leases.c.token == token).values(run=None, expires=0)
                )

    def force_release(self, name: str, token: int) -> bool:
        """An operator frees `name` if its token is still `token`; the token moves, so the old holder is fenced off."""
        with self._transaction() as connection:
            result = connection.execute(
                leases.update().where(leases.c.name == name, leases.c.token == token, leases.c.run.is_not(None))
                .values(run=None, expires=0, token=token + 1)
            )  # fmt: skip
            return result.rowcount == 1

    def holders(self) -> list[dict[str, Any]]:
        """All leases that are held, expired ones included."""
        with self._reading() as connection:
            rows = connection.execute(sa.select(leases).where(leases.c.run.is_not(None)).order_by(leases.c.name))
            return [dict(row) for row in rows.mappings()]

    @contextmanager
    def guarded(self, lease: Lease) -> Iterator[sa.Connection]:
        """A transaction that fails when the lease is no longer ours; nobody can take the lease while it lasts."""
        with self._transaction() as connection:
            names = [name for name, _ in lease.tokens]
            rows = connection.execute(
                sa.select(leases.c.name, leases.c.token, leases.c.run, leases.c.expires)
                .where(leases.c.name.in_(names))
                .with_for_update()
            )
            clock = datetime.now(UTC).timestamp()
            current = {row.name: row.token for row in rows if row.run == lease.run and row.expires > clock}
            if current != dict(lease.tokens):
                raise LeaseLost(
                    "This process lost its lock",
                    f"run {lease.run}: its lease ran out or was released, and another may be at work",
                    "Nothing was written since. Look with vecrun status, go on with vecrun resume",
                )
            yield connection


class Keeper:
    """Renews a lease from a thread while its block runs; sets `stop` and `error` when that is no longer possible."""

    def __init__(self, leases: Leases, lease: Lease, seconds: float, stop: threading.Event) -> None:
        self.error: VecrunError | None = None
        self._leases, self._lease, self._seconds, self._stop = leases, lease, seconds, stop
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(timeout=5)

    def _renew(self) -> None:
        renewed = time.time()  # the wall clock: a laptop's sleep counts
        while not self._over.wait(self._seconds / 4):
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


def _dead(row: Any, host: str) -> bool:
    """Whether the holder was a process of this host that is gone."""
    if row["host"] != host or row["pid"] is None:
        return False
    if row["pid"] == os.getpid():  # either held by a thread of ours, or left by a process that had our pid before us
        return (row["name"], row["token"]) not in _HELD
    try:
        os.kill(row["pid"], 0)
        # a dead process that its parent has not fetched yet answers, too (Linux; in a container nobody may fetch it)
        return Path(f"/proc/{row['pid']}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except OSError:
        return False


def _sqlite_settings(connection: Any, _record: Any) -> None:
    # autocommit off in the driver: SQLAlchemy's begin event opens the transaction (see _sqlite_begin)
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout=30000")
    deadline = time.monotonic() + 30
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except (
            sqlite3.OperationalError
        ) as exc:  # several processes make a new ledger at once: SQLite does not wait here
            if "locked" not in str(exc) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _sqlite_begin(connection: Any) -> None:
    # IMMEDIATE: a transaction that reads and then writes must not lose the race in between
    reading = connection.get_execution_options().get("reading")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
