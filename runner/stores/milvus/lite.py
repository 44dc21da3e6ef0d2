"""Milvus Lite directories of this process: who uses them, and why one could not be opened."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runner.errors import Permanent, StoreError, Transient

_users: Counter[str] = Counter()
_lock = threading.Lock()


@contextmanager
def opening(path: str) -> Iterator[None]:
    """Count one more user of `path`, unless the block fails. pymilvus only logs why, so the log is listened to."""
    reasons: list[str] = []

    class Keep(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            if record.exc_info and record.exc_info[1]:
                reasons.append(f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}")
            return False

    log, keep = logging.getLogger("milvus_lite.server_manager"), Keep()
    with _lock:
        _users[path] += 1
    log.addFilter(keep)
    try:
        yield
    except BaseException as exc:
        release(path)
        if not isinstance(exc, StoreError) or not reasons:
            raise
        if "Locked" in reasons[0]:
            raise Transient(
                "Another process has this Milvus Lite directory open",
                path,
                "Only one process at a time can: stop the other, or use a Milvus server.",
            ) from exc
        raise Permanent("A Milvus Lite directory cannot be opened", f"{path}: {reasons[0]}") from exc
    finally:
        log.removeFilter(keep)


def clear(path: str, name: str) -> None:
    """Remove the empty folder that a process leaves that was killed while it made a collection: Milvus Lite neither lists
    it nor makes another of that name. A folder with anything in it stays."""
    with suppress(OSError):
        Path(path, "collections", name).rmdir()


def release(path: str) -> None:
    """One user less. The last one in this process stops the directory's server, so that others can open it."""
    from milvus_lite.server_manager import server_manager_instance

    with _lock:
        _users[path] -= 1
        if _users[path] <= 0:
            del _users[path]
            server_manager_instance.release_server(path)
