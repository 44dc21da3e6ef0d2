"""The file system: locks, files replaced as a whole, and its errors in the words of vecrun."""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runner.errors import Permanent, StoreError, Transient

#: Errors of the file system that another try cannot help.
LASTING = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ENOENT}


@contextmanager
def translated(what: str, passing: type[BaseException] | tuple[()] = ()) -> Iterator[None]:
    """Errors of the file system and of Parquet as StoreErrors; those of `passing` go through."""
    import pyarrow as pa

    try:
        yield
    except passing:
        raise
    except OSError as exc:
        kind: type[StoreError] = Permanent if exc.errno in LASTING else Transient
        raise kind("A file could not be read or written", f"{what}: {exc}", "Check rights and free space.") from exc
    except pa.ArrowException as exc:
        raise Permanent("Arrow refused the data", f"{what}: {exc}") from exc


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file lock, which other processes honour; the system releases it if the process dies."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def replace(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part of it."""
    temporary = path.parent / f".temp-{uuid.uuid4().hex}"
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in a folder survive a crash."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
