"""A folder as object storage. A file is written beside its place, synced and renamed, so it is there whole or not at all.

Not the LocalStore of the library that speaks to S3: that one links files instead of copying them, refuses names such as
`note #1`, follows links out of the folder, and does not wait for the disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from runner.errors import Permanent, Transient, VecrunError
from runner.objects import FolderConfig
from runner.objects.storage import Found, Objects, Source, checked_key, checked_prefix, no_such_file, too_large
from runner.store import Health

#: What a file is called until it is whole.
_UNFINISHED = ".vecrun-{}.part"
#: What a share says that knows no second name of a file.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
_RIGHTS = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NAME = (
    errno.EFBIG,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.EILSEQ,
    errno.ELOOP,
    errno.EEXIST,
)


class FolderObjects(Objects):
    """The files of a folder. POSIX only."""

    type = "folder"

    def __init__(self, config: FolderConfig) -> None:
        self.place = config.path
        self._given = Path(config.path)
        self._there()
        self._root = self._given.resolve()

    def read(self, key: str, limit: int | None = None) -> bytes:
        with self._errors("read", key), self._opened(key) as file:
            size = os.fstat(file.fileno()).st_size
            if limit is not None and size > limit:
                raise too_large(key, size, limit)
            return file.read()

    def write(self, key: str, data: bytes) -> None:
        with self._errors("write", key):
            self._replace(key, lambda file: file.write(data))

    def create(self, key: str, data: bytes) -> bool:
        with self._errors("write", key):
            path = self._path(key)
            self._there()
            _make(path.parent)
            made = path.parent / _UNFINISHED.format(uuid.uuid4().hex)
            try:
                with made.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                try:
                    _place(made, path)
                except FileExistsError:
                    return path.is_file() and path.read_bytes() == data
            finally:
                made.unlink(missing_ok=True)
            _sync(path.parent)
            return True

    def write_from(self, key: str, chunks: Iterable[bytes], unfinished: str = "") -> int:
        with Source(chunks) as source, self._errors("write", key):
            self._replace(key, lambda file: file.writelines(source), unfinished=unfinished)
        return source.size

    def pieces(self, key: str, size: int = 1 << 20) -> Iterator[bytes]:
        with self._errors("read", key), self._opened(key) as file:
            while piece := file.read(size):
                yield piece

    def free(self) -> int | None:
        with self._errors("read", ""):
            self._there()
            return shutil.disk_usage(self._root).free

    def head(self, key: str) -> Found | None:
        with self._errors("read", key):
            try:
                found = self._path(key).stat()
            except (FileNotFoundError, NotADirectoryError):
                self._there()
                return None
            return _found(key, found) if stat.S_ISREG(found.st_mode) else None

    def copy(self, source: str, to: str) -> None:
        with self._errors("copy", source), self._opened(source) as file:
            if source == to:
                return
            with self._errors("write", to):
                self._replace(to, lambda into: shutil.copyfileobj(file, into, 1 << 20), self._path(source))

    def delete(self, key: str) -> None:
        with self._errors("delete", key):
            path = self._path(key)
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                self._there()
                return
            except OSError:
                if path.is_dir():  # a folder is no file
                    return
                raise
            _sync(path.parent)

    def list(self, prefix: str = "") -> Iterator[Found]:
        below = checked_prefix(prefix)
        with self._errors("list", prefix):
            self._there()
            if not below or self._path(below.removesuffix("/")).is_dir():
                yield from self._walk(below)

    def unfinished(self, prefix: str = "") -> Iterator[Found]:
        below = checked_prefix(prefix)
        with self._errors("list", prefix):
            self._there()
            if not below or self._path(below.removesuffix("/")).is_dir():
                for path in sorted((self._root / below).rglob(_UNFINISHED.format("*"))):
                    with contextlib.suppress(FileNotFoundError):
                        if stat.S_ISREG((found := path.lstat()).st_mode):
                            yield _found(path.relative_to(self._root).as_posix(), found)

    def discard(self, key: str) -> bool:
        folder, _slash, name = checked_key(key).rpartition("/")
        with self._errors("delete", key):
            if not (name.startswith(".vecrun-") and name.endswith(".part")):
                return False
            path = (self._path(folder) if folder else self._root) / name
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            except FileNotFoundError:
                return True
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
            except BlockingIOError:
                return False
            finally:
                os.close(fd)
            return True

    def health(self) -> Health:
        began = time.monotonic()
        with self._errors("list", ""):
            self._there()
            next(self._walk(""), None)
        writable = os.access(self._root, os.W_OK | os.X_OK, effective_ids=True)
        rights = ("list", "read", "write") if writable else ("list", "read")
        return Health("folder", (time.monotonic() - began) * 1000, rights)

    def close(self) -> None:
        return

    def _there(self) -> None:
        """A folder that is gone (a share that is not mounted) must not be taken for an empty one."""
        if not self._given.is_dir():
            raise Permanent(
                "The folder does not exist", self.place, "Make it, or mount what should be there; vecrun does not"
            )

    def _path(self, key: str) -> Path:
        """Where the file is. Permanent when a link leads out of the folder."""
        name = checked_key(key).rpartition("/")[2]
        if name.startswith(".vecrun-") and name.endswith(".part"):
            raise Permanent("This is no key of a file", f"{key!r}: such names are vecrun's own")
        path = self._root / key
        # not Path.resolve, which takes a circle of links for an error of its own
        if self._root not in Path(os.path.realpath(path)).parents:
            raise Permanent("A link leads out of the folder", f"{key} in {self.place}")
        return path

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[BinaryIO]:
        try:
            fd = os.open(self._path(key), os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for who writes to it
        except (FileNotFoundError, NotADirectoryError):
            self._there()
            raise no_such_file(key, self.place) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise no_such_file(key, self.place)
        with os.fdopen(fd, "rb") as file:
            yield file

    def _replace(
        self, key: str, fill: Callable[[BinaryIO], object], like: Path | None = None, unfinished: str = ""
    ) -> None:
        path = self._path(key)
        self._there()
        _make(path.parent)
        # one name for a key, so that what a killed process left is taken up by its repetition
        name = _UNFINISHED.format(hashlib.sha256(key.encode()).hexdigest()[:32])
        growing = self._path(unfinished) if unfinished else path.parent / name
        with _alone(growing) as file:
            try:
                fill(file)
                file.flush()
                if like:
                    shutil.copystat(like, growing)
                os.fsync(file.fileno())
                growing.rename(path)
            except BaseException:
                growing.unlink()
                raise
        _sync(path.parent)

    def _walk(self, below: str) -> Iterator[Found]:
        """What is there, without links that lead out, unfinished files and names that are no text."""
        for name in sorted(entry.name for entry in (self._root / below).iterdir()):
            try:
                path = self._path(f"{below}{name}")
                found = path.stat()
            except (FileNotFoundError, Permanent):
                continue
            except OSError as exc:
                if exc.errno == errno.ELOOP:
                    continue
                raise
            if stat.S_ISREG(found.st_mode):
                yield _found(f"{below}{name}", found)
            elif stat.S_ISDIR(found.st_mode) and not path.is_symlink():  # a linked folder could go round in circles
                yield from self._walk(f"{below}{name}/")

    @contextlib.contextmanager
    def _errors(self, verb: str, what: str) -> Iterator[None]:
        try:
            yield
        except VecrunError:
            raise
        except OSError as exc:
            where, why = f"{what} in {self.place}" if what else self.place, exc.strerror or str(exc)
            if exc.errno in _RIGHTS:
                raise Permanent(f"No right to {verb} a file", f"{where}: {why}") from exc
            if exc.errno in _FULL:
                raise Permanent("The disk is full", f"{where}: {why}", "Make room, then resume") from exc
            if exc.errno in _NAME:
                raise Permanent("The folder cannot have this file", f"{where}: {why}") from exc
            raise Transient("The folder did not answer", f"{where}: {why}") from exc


def _place(made: Path, path: Path) -> None:
    """Give a whole file its name, unless there is one with it. FileExistsError."""
    try:
        os.link(made, path)
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        path.open("xb").close()  # who makes the name has it
        made.rename(path)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[BinaryIO]:
    """The empty file at `path`, which no other process writes to as long as it is open here."""
    while True:
        try:
            file = path.open("ab")
        except PermissionError:
            if not path.exists():
                raise
            path.unlink()  # a killed process had given it the mode of a file that cannot be written
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise Transient("Somebody else writes this file", str(path)) from exc
            except OSError as exc:
                if exc.errno not in (errno.ENOLCK, errno.ENOTSUP):  # some shares know no locks
                    raise
            try:
                same = os.path.samestat(path.stat(), os.fstat(file.fileno()))
            except FileNotFoundError:
                same = False
            if same:  # else the other one has just renamed it, and it is whole
                file.truncate(0)
                yield file
                return


def _make(folder: Path) -> None:
    """Make a folder and those above it, durably."""
    if folder.is_dir():
        return
    _make(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _found(key: str, found: os.stat_result) -> Found:
    modified = datetime.fromtimestamp(found.st_mtime, UTC)
    return Found(key, found.st_size, f"{found.st_mtime_ns:x}-{found.st_size:x}", modified)
