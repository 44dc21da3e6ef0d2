"""A backup compared with its manifest: whether every file is there, and, when asked, whether every byte and row of it is.

All problems are gathered, not only the first. Memory stays flat: CSV is read piece by piece, a row at a time.
"""

from __future__ import annotations

import csv
import hashlib
import io
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from runner.backups import points
from runner.backups.manifest import Backup, CollectionFiles, DamagedBackup, TableFile
from runner.errors import Interrupted, NotFound
from runner.objects.storage import Objects
from runner.stores.files.tables import key_of

Stops = tuple[threading.Event, ...]

#: Files that are read at once.
AT_ONCE = 4
#: Problems of one part that are told; more of the same kind help nobody.
MOST = 20


@dataclass(frozen=True)
class Part:
    """A table or a collection of a backup. `read`: files that were read from the first to the last byte."""

    name: str
    what: Literal["table", "collection"]
    rows: int
    files: int
    bytes: int
    read: int = 0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checked:
    """What is known of a backup. `whole`: nothing of what was asked for is missing; `read_bytes` of `bytes` were read.
    `problem`: its manifest cannot be read, so nothing else is known."""

    backup: str
    whole: bool = False
    form: str = ""
    began: str = ""
    job: str = ""
    run: str = ""
    rows: int = 0
    files: int = 0
    bytes: int = 0
    read_data: bool = False
    subset: str = ""
    read_files: int = 0
    read_bytes: int = 0
    parts: tuple[Part, ...] = ()
    problem: str = ""
    problems: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether nothing is amiss."""
        return not self.problems


def check(
    objects: Objects, folder: str, backup: Backup, *, read_data: bool, subset: tuple[int, int] | None = None,
    names: Collection[str] = (), say: Callable[[str], None] = lambda _line: None, stop: threading.Event | None = None,
    again: Callable[[Callable[[], list[str]]], list[str]] = lambda action: action(),
) -> Checked:  # fmt: skip
    """Look for every file and its size; with `read_data` read them all, or the n-th of t groups (`subset`).

    `names`: only these tables or collections. `again` repeats what failed for a moment. Interrupted when `stop` is set;
    what keeps a file from being read leaves as Transient or Permanent.
    """
    sizes = {item.key.removeprefix(f"{folder}/"): item.size for item in objects.list(folder)}
    every: list[TableFile | CollectionFiles] = [*backup.tables, *backup.collections]
    chosen = [item for item in every if not names or _name(item) in names]
    missing = sorted(set(names) - {_name(item) for item in chosen})
    parts, read_bytes = list[Part](), 0
    over = threading.Event()  # an error ends the other threads, too
    stops = (over, stop) if stop is not None else (over,)
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="check") as pool:
        for item in chosen:
            problems, files, to_read = structure(item), files_of(item), list[str]()
            for file, size in files.items():
                found = sizes.get(file)
                if found is None:
                    problems.append(f"{file} is missing")
                elif found != size:
                    problems.append(f"{file} has {found:,} bytes, {size:,} are expected")
                elif read_data and in_subset(file, subset):
                    to_read.append(file)

            def read(file: str, item: TableFile | CollectionFiles = item) -> list[str]:
                say(f"{_name(item)}: {file}")
                return again(lambda: _read(objects, folder, item, file, stops))

            try:
                for told in pool.map(read, to_read):
                    problems += told
            except BaseException:
                over.set()
                raise
            read_bytes += sum(files[file] for file in to_read)
            if len(problems) > MOST:
                problems = [*problems[:MOST], f"and {len(problems) - MOST:,} more"]
            parts.append(
                Part(
                    _name(item), "table" if isinstance(item, TableFile) else "collection", item.rows, len(files),
                    sum(files.values()), len(to_read), tuple(problems),
                )
            )  # fmt: skip
    problems = [f"{part.what} {part.name}: {problem}" for part in parts for problem in part.problems]
    problems += [f"{name} is not in this backup" for name in missing]
    all_files = {file: size for item in chosen for file, size in files_of(item).items()}
    return Checked(
        backup.id, backup.whole, backup.form, backup.began, backup.job, backup.run, sum(part.rows for part in parts),
        len(all_files), sum(all_files.values()), read_data, f"{subset[0]}/{subset[1]}" if subset else "",
        sum(part.read for part in parts), read_bytes, tuple(parts), "", tuple(problems),
    )  # fmt: skip


def in_subset(file: str, subset: tuple[int, int] | None) -> bool:
    """Whether a file is in the n-th of t groups. Each file is in exactly one, whatever else there is."""
    if subset is None:
        return True
    n, t = subset
    return int.from_bytes(hashlib.sha256(file.encode()).digest()[:8]) % t == n - 1


def files_of(item: TableFile | CollectionFiles) -> dict[str, int]:
    """file -> bytes"""
    if isinstance(item, TableFile):
        return {item.file: item.bytes} if item.file else {}
    return {file.file: file.bytes for file in item.files}


def structure(item: TableFile | CollectionFiles) -> list[str]:
    """What the manifest itself says wrongly about a table or a collection."""
    if isinstance(item, TableFile):
        if item.error:
            return [f"it was not backed up: {item.error}"]
        return [] if item.file and item.shape is not None else ["the manifest names no file, or no columns"]
    problems = []
    if (rows := sum(file.rows for file in item.files)) != item.rows:
        problems.append(f"its files hold {rows:,} points, {item.rows:,} are expected")
    names = [file.file for file in item.files]
    problems += [f"{name} is named twice" for name, count in Counter(names).items() if count > 1]
    problems += [f"{file.file} begins behind its end" for file in item.files if key_of(file.first) > key_of(file.last)]
    return problems


def _name(item: TableFile | CollectionFiles) -> str:
    return item.table if isinstance(item, TableFile) else item.name


def _read(
    objects: Objects, folder: str, item: TableFile | CollectionFiles, file: str, stops: Stops
) -> list[str]:  # fmt: skip
    """What is wrong with one file. What keeps it from being read (rights, a full disk here) is an error and no problem of
    the backup."""
    key = f"{folder}/{file}"
    _go_on(stops, key)
    try:
        if isinstance(item, TableFile):
            return [f"{file}: {problem}" for problem in of_table(_pieces(objects, key, stops), item)]
        one = next(found for found in item.files if found.file == file)
        points.read_back(objects, folder, one, item.collection)
    except DamagedBackup as exc:
        return [exc.detail.removeprefix(f"{folder}/")]
    except NotFound:
        return [f"{file} is missing"]
    return []


def _pieces(objects: Objects, key: str, stops: Stops) -> Iterator[bytes]:
    for piece in objects.pieces(key):
        _go_on(stops, key)
        yield piece


def _go_on(stops: Stops, key: str) -> None:
    if any(event.is_set() for event in stops):
        raise Interrupted("Interrupted", f"{key} was not read to its end", "Check it again")


def of_table(pieces: Iterable[bytes], expected: TableFile) -> list[str]:
    """What is wrong with a CSV file; its pieces are read to their end."""
    whole, total, rows = hashlib.sha256(), 0, -1
    names: list[str] = []
    for row in rows_of(_hashed(pieces, whole)):
        rows += 1
        if rows:
            total += int.from_bytes(hashlib.sha256(row).digest()[:16])
        else:
            text = row.decode("utf-8", "replace").removesuffix("\n")
            names = next(csv.reader(io.StringIO(text, newline="")), [])
    problems = [] if whole.hexdigest() == expected.sha256 else ["its bytes are not those that were written (sha256)"]
    if expected.shape and names != [item.name for item in expected.shape.columns if not item.generated]:
        problems.append("its first line does not name the columns of the table")
    if max(rows, 0) != expected.rows:
        problems.append(f"it holds {max(rows, 0):,} rows, {expected.rows:,} are expected")
    elif f"{total & (1 << 128) - 1:032x}" != expected.rows_digest:
        problems.append("its rows are not those that were read from the table (rows_digest)")
    return problems


def rows_of(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The rows of a CSV file, header first, each with its line feed as COPY sends it: a line feed within quotes ends no row.
    What follows the last one is a row, too."""
    begun, quoted = list[bytes](), False
    for piece in pieces:
        *lines, rest = piece.split(b"\n")
        for line in lines:
            quoted ^= line.count(b'"') % 2 == 1
            if quoted:
                begun += (line, b"\n")
            elif begun:
                yield b"".join((*begun, line, b"\n"))
                begun = []
            else:
                yield line + b"\n"
        if rest:
            quoted ^= rest.count(b'"') % 2 == 1
            begun.append(rest)
    if begun:
        yield b"".join(begun)


def _hashed(pieces: Iterable[bytes], whole: hashlib._Hash) -> Iterator[bytes]:
    for piece in pieces:
        whole.update(piece)
        yield piece
