"""The lease under which gc removes: nobody else works on a job, or a collection, meanwhile."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from runner.errors import VecrunError
from runner.lock import Keeper, Lease
from runner.sweeper import Sweeper


@contextmanager
def leased(ledger: Sweeper, names: list[str], seconds: int) -> Iterator[Lease]:
    """Hold these names, renewed until the end. LockHeld."""
    lease = ledger.acquire(names, f"gc-{uuid.uuid4().hex[:12]}", seconds)
    try:
        with Keeper(ledger, lease, seconds, threading.Event()):
            yield lease
    finally:
        with suppress(VecrunError):
            ledger.release(lease)
