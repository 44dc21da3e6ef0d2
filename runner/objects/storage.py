"""The contract of object storage: files by key, and the wrappers that keep planning and dry runs from writing.

A key is a path with `/` below a folder or a prefix. Errors leave as `Transient` or `Permanent`; what is absent is None
where it was looked for, and NotFound where it was needed.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from runner.errors import NotFound, Permanent
from runner.store import ConnectionConfig, Health

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Found:
    """A file that is there: its size in bytes, a mark that changes with its content ("" where there is none), and when it
    was written."""

    key: str
    size: int
    etag: str
    modified: datetime


class Objects(ABC):
    """One folder or bucket. May be called from several threads; every method may be repeated."""

    type: str = ""

    @abstractmethod
    def read(self, key: str, limit: int | None = None) -> bytes:
        """The whole file. NotFound; Permanent when it has more than `limit` bytes, before it is read."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Write it, whole or not at all, over what was there. Durable when this returns."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write a file that is not there yet: whether it is there now with just these bytes, so a repetition says so, too.
        A file with other bytes stays as it is."""

    @abstractmethod
    def write_from(self, key: str, chunks: Iterable[bytes], unfinished: str = "") -> int:
        """As `write`, of bytes that come piece by piece and are nowhere held together; returns how many. When `chunks`
        raises, nothing is written, and its error leaves as it is. `unfinished`: in a folder, the key under which the file
        grows until it is whole; other storage shows a file only when it is."""

    @abstractmethod
    def pieces(self, key: str, size: int = 1 << 20) -> Iterator[bytes]:
        """The file, about `size` bytes at a time. NotFound, when the first is asked for."""

    @abstractmethod
    def free(self) -> int | None:
        """Bytes that this user may still write; None where nobody can say."""

    @abstractmethod
    def head(self, key: str) -> Found | None:
        """What is known about a file without reading it; None when there is none."""

    @abstractmethod
    def copy(self, source: str, to: str) -> None:
        """Copy a file within the storage, over what was there, with what belongs to it (S3: content type and metadata;
        folder: mode and times). The bytes do not pass through here from S3, which takes up to 5 GB. NotFound."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove a file; when there is none nothing happens. Folders stay."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Found]:
        """Every file in the folder `prefix` and below it, in any order."""

    def unfinished(self, prefix: str = "") -> Iterator[Found]:  # noqa: ARG002
        """What killed writes left in the folder `prefix`, which `list` does not show. S3 shows nobody what it has of them."""
        return iter(())

    def discard(self, key: str) -> bool:  # noqa: ARG002
        """Remove one of `unfinished`: whether it is gone. Not while somebody writes it."""
        return False

    @abstractmethod
    def health(self) -> Health:
        """Ask for something small. Raises when it does not answer, is not there or may not be listed."""

    @abstractmethod
    def close(self) -> None:
        """Release everything. May be called twice."""

    def __enter__(self) -> Objects:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Source(Iterator[bytes]):
    """What a caller gives to be written, counted. What it raises leaves the block of this as it is, so that nobody takes it
    for an error of the storage."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self._error = iter(chunks), cast("BaseException | None", None)
        self.size = 0

    def __next__(self) -> bytes:
        try:
            chunk = next(self._chunks)
        except StopIteration:
            raise
        except BaseException as exc:
            self._error = exc
            raise
        self.size += len(chunk)
        return chunk

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._error is not None:
            raise self._error from self._error.__cause__


def open_objects(config: ConnectionConfig) -> Objects:
    """Open a connection of type folder or s3. Permanent when the folder is not there, or a package is missing."""
    from runner.objects import FolderConfig, S3Config

    if isinstance(config, FolderConfig):
        from runner.objects.folder import FolderObjects

        return FolderObjects(config)
    assert isinstance(config, S3Config)
    from runner.objects.s3 import S3Objects

    try:
        return S3Objects(config)
    except ModuleNotFoundError as exc:
        raise Permanent(
            "A client library is missing",
            f"connections of type s3 need the package {(exc.name or '').split('.')[0]!r}",
            "pip install 'vecrun[objects]'",
        ) from exc


def checked_key(key: str) -> str:
    """The key. Permanent when it is none: it leaves its folder, or not every storage can have it."""
    wrong = ""
    if not key:
        wrong = "it is empty"
    elif _UNPRINTABLE.search(key):
        wrong = "it has a control character"
    elif "\\" in key:
        wrong = "it has a backslash; parts are divided by /"
    elif key.startswith("/"):
        wrong = "it begins with /; a key is relative to its folder or bucket"
    elif ".." in key.split("/"):
        wrong = "it has a part .., which leads out of its folder"
    elif not all(key.split("/")) or "." in key.split("/"):
        wrong = "it has an empty part, or ."
    if wrong:
        raise Permanent("This is no key of a file", f"{key[:200]!r}: {wrong}")
    return key


def checked_prefix(prefix: str) -> str:
    """The prefix with one / at its end, or "" for everything."""
    bare = prefix.removesuffix("/")
    return f"{checked_key(bare)}/" if bare else ""


def no_such_file(key: str, place: str) -> NotFound:
    """The error for a file that was needed."""
    return NotFound("No such file", f"{key} in {place}")


def too_large(key: str, size: int, limit: int) -> Permanent:
    """The error for a file that is not read."""
    return Permanent("A file is too large", f"{key} has {size:,} bytes; the limit is {limit:,}")


class ReadOnlyObjects(Objects):
    """Passes reads through and refuses every write."""

    def __init__(self, inner: Objects) -> None:
        self.inner, self.type = inner, inner.type

    def read(self, key: str, limit: int | None = None) -> bytes:
        return self.inner.read(key, limit)

    def pieces(self, key: str, size: int = 1 << 20) -> Iterator[bytes]:
        return self.inner.pieces(key, size)

    def free(self) -> int | None:
        return self.inner.free()

    def head(self, key: str) -> Found | None:
        return self.inner.head(key)

    def list(self, prefix: str = "") -> Iterator[Found]:
        return self.inner.list(prefix)

    def unfinished(self, prefix: str = "") -> Iterator[Found]:
        return self.inner.unfinished(prefix)

    def health(self) -> Health:
        return self.inner.health()

    def close(self) -> None:
        self.inner.close()

    def write(self, key: str, data: bytes) -> None:
        self._refuse(f"write {key} ({len(data):,} bytes)")

    def create(self, key: str, data: bytes) -> bool:
        self._refuse(f"create {key} ({len(data):,} bytes)")
        return True

    def discard(self, key: str) -> bool:
        self._refuse(f"discard {key}")
        return True

    def write_from(self, key: str, chunks: Iterable[bytes], unfinished: str = "") -> int:  # noqa: ARG002
        self._refuse(f"write {key}")
        return sum(map(len, chunks))  # a dry run reads all of it

    def copy(self, source: str, to: str) -> None:
        self._refuse(f"copy {source} to {to}")

    def delete(self, key: str) -> None:
        self._refuse(f"delete {key}")

    def _refuse(self, what: str) -> None:
        raise Permanent("A read-only storage was asked to write", f"{self.type}: {what}", "This is a fault of vecrun.")


class DryRunObjects(ReadOnlyObjects):
    """Passes reads through, accepts every write and discards it."""

    def _refuse(self, what: str) -> None:  # noqa: ARG002
        return None
