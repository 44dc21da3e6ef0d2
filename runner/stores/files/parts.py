"""Sorted, immutable Parquet files of points: written once, read by row groups, merged with the newest winning.

Which parts belong to a collection is for its manifest to say.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import uuid
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from runner.errors import Permanent
from runner.points import KeyRange, PointId
from runner.stores.files.tables import DELETED, KEYS, Key, id_at, ids_of, key_of, living, matching, newest, place

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

#: So many runs of one level are merged into one of the next: a point is rewritten once for each power of 16 batches.
FAN_IN = 16
#: Size of a row group, which is what a scan holds of each overlapping part, and of a part file.
GROUP_BYTES = 8 * 2**20
PART_BYTES = 256 * 2**20


class Part(BaseModel):
    """One immutable file of a collection. `run` groups parts that were written as one sorted sequence."""

    model_config = ConfigDict(frozen=True)
    file: str
    run: str
    level: int = Field(description="How often its points were merged; 0 is one write.")
    rows: int
    deletes: int
    bytes: int
    sha256: str
    first: PointId
    last: PointId

    @property
    def low(self) -> Key:
        """The place of `first` in the order."""
        return key_of(self.first)

    @property
    def high(self) -> Key:
        """The place of `last` in the order."""
        return key_of(self.last)


Opener = Callable[[Part], "pq.ParquetFile"]


def checked_opener(folder: Path, intact: set[str]) -> Opener:
    """Opens parts, each checked against its size every time and its checksum unless `intact`, which grows, has it."""
    import pyarrow.parquet as pq

    def open_part(part: Part) -> pq.ParquetFile:
        path = folder / part.file
        if (size := path.stat().st_size) != part.bytes:
            raise _damaged(path, f"{size} bytes where the manifest says {part.bytes}")
        if part.file not in intact:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != part.sha256:
                    raise _damaged(path, "its checksum is not the one in the manifest")
            intact.add(part.file)
        return pq.ParquetFile(path)

    return open_part


def _damaged(path: Path, what: str) -> Permanent:
    return Permanent("A part file is damaged", f"{path}: {what}", "Restore the file from a copy.")


def merged(
    parts: Sequence[Part],
    open_part: Opener,
    keys: KeyRange = KeyRange(),  # noqa: B008  # immutable
    after: PointId | None = None,
    columns: list[str] | None = None,
    keep_deletes: bool = False,
) -> Generator[pa.Table, None, None]:
    """Tables of the living points in key order. Holds one row group of each part that overlaps the present key."""
    inside = [item for item in enumerate(parts) if overlaps(item[1], keys, after)]
    waiting = sorted(inside, key=lambda item: item[1].low)
    active: list[Cursor] = []
    try:
        while waiting or active:
            bound = min((cursor.last for cursor in active), default=None)
            while waiting and (bound is None or waiting[0][1].low <= bound):
                age, part = waiting.pop(0)
                cursor = Cursor(age, open_part(part), keys, after, columns)
                if cursor.load():
                    active.append(cursor)
                    bound = cursor.last if bound is None else min(bound, cursor.last)
            if bound is None:
                return
            active.sort(key=lambda cursor: cursor.age)
            pieces = [piece for cursor in active if (piece := cursor.take(bound)).num_rows]
            table = newest(pieces, already=True)
            if not keep_deletes:
                table = living(table)
            if table.num_rows:
                yield table
            active = [cursor for cursor in active if cursor.table.num_rows or cursor.load()]
    finally:
        for cursor in active:
            cursor.file.close()


def find(parts: Sequence[Part], open_part: Opener, ids: Sequence[PointId]) -> Iterator[pa.Table]:
    """Tables with the living points among `ids`, from the newest part to the oldest."""
    import pyarrow as pa

    open_ids = sorted(set(map(key_of, ids)))
    for part in reversed(parts):
        low, high = bisect_left(open_ids, part.low), bisect_right(open_ids, part.high)
        if low == high:
            continue  # and no file is opened
        with closing(open_part(part)) as file:
            gone: set[Key] = set()
            for group in range(file.num_row_groups):
                first, last = _group_span(file, group) or (part.low, part.high)
                low, high = bisect_left(open_ids, first), bisect_right(open_ids, last)
                if low == high:
                    continue
                hits = matching(file.read_row_group(group, columns=list(KEYS)), open_ids[low:high])
                if hits.any():
                    table = file.read_row_group(group).filter(pa.array(hits))
                    gone.update(map(key_of, ids_of(table)))
                    yield living(table)
        if gone:
            open_ids = [item for item in open_ids if item not in gone]


class Cursor:
    """The row groups of one part within a range, one at a time; `table` is what is loaded and not yet taken."""

    def __init__(
        self, age: int, file: pq.ParquetFile, keys: KeyRange, after: PointId | None, columns: list[str] | None
    ) -> None:
        self.age, self.file, self.columns = age, file, columns
        self.low = None if keys.lo is None else key_of(keys.lo)
        self.high = None if keys.hi is None else key_of(keys.hi)
        self.after = None if after is None else key_of(after)
        self.group = 0
        self.table: Any = None
        self.last = Key(text=False, value=0)

    def load(self) -> bool:
        """Read the next row group with rows in the range; at the end close the file and answer False."""
        while self.group < self.file.num_row_groups:
            group, self.group = self.group, self.group + 1
            span = _group_span(self.file, group)
            if span is not None and self.high is not None and span[0] >= self.high:
                break
            if span is not None and ((self.low and span[1] < self.low) or (self.after and span[1] <= self.after)):
                continue
            table = self.file.read_row_group(group, columns=self.columns)
            start = max(place(table, self.low, right=False), place(table, self.after, right=True))
            stop = table.num_rows if self.high is None else place(table, self.high, right=False)
            if start < stop:
                self.table, self.last = table.slice(start, stop - start), key_of(id_at(table, stop - 1))
                return True
        self.file.close()
        return False

    def take(self, bound: Key) -> pa.Table:
        """Remove and return the rows up to `bound`, which is included."""
        rows = self.table.num_rows if self.last <= bound else place(self.table, bound, right=True)
        piece, self.table = self.table.slice(0, rows), self.table.slice(rows)
        return piece


def _group_span(file: pq.ParquetFile, group: int) -> tuple[Key, Key] | None:
    """First and last key of a row group by its statistics; None where they are not told (very long texts)."""
    ends = []
    for column in range(len(KEYS)):
        statistics = file.metadata.row_group(group).column(column).statistics
        if statistics is None or (statistics.num_values and not statistics.has_min_max):
            return None
        if statistics.num_values:
            ends += [key_of(statistics.min), key_of(statistics.max)]
    return (ends[0], ends[-1]) if ends else None


class PartWriter:
    """Writes sorted tables as part files of about PART_BYTES; `parts` is complete when the `with` block is left.

    Left by an error, nothing remains of them.
    """

    def __init__(self, folder: Path, level: int) -> None:
        self.folder, self.run, self.level = folder, uuid.uuid4().hex[:12], level
        self.parts: list[Part] = []
        self._writer: Any = None
        self._rows = self._deletes = 0

    def write(self, table: pa.Table) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        if self._writer is None:
            self._path = self.folder / f"part-{self.run}-{len(self.parts):04d}.parquet"
            self._file = pa.OSFile(str(self._path), "wb")
            vectors = {name for name in table.column_names if name.startswith(("vector:", "sparse:"))}
            self._writer = pq.ParquetWriter(
                self._file,
                table.schema,  # float32 numbers hardly shrink
                compression={name: "none" if name in vectors else "zstd" for name in table.column_names},
                use_dictionary=["partition"],
                write_statistics=list(KEYS),
            )
            self._first = id_at(table, 0)
        self._last = id_at(table, table.num_rows - 1)
        self._rows += table.num_rows
        if DELETED in table.column_names:
            self._deletes += pc.sum(table[DELETED]).as_py() or 0
        self._writer.write_table(table, row_group_size=max(64, GROUP_BYTES * table.num_rows // max(table.nbytes, 1)))
        if self._file.tell() >= PART_BYTES:
            self._end()

    def _end(self) -> None:
        self._writer.close()
        self._file.close()
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
            size = file.tell()
        self.parts.append(
            Part(
                file=self._path.name,
                run=self.run,
                level=self.level,
                rows=self._rows,
                deletes=self._deletes,
                bytes=size,
                sha256=digest,
                first=self._first,
                last=self._last,
            )
        )
        self._writer, self._rows, self._deletes = None, 0, 0

    def discard(self) -> None:
        """Remove the files written so far."""
        for part in self.parts:
            (self.folder / part.file).unlink(missing_ok=True)

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is not None:
            if self._writer is not None:
                with suppress(OSError):  # a full disk refuses the last bytes too
                    self._writer.close()
                with suppress(OSError):
                    self._file.close()
                self._path.unlink(missing_ok=True)
            self.discard()
        elif self._writer is not None:
            self._end()


# What parts are to one another


def overlaps(part: Part, keys: KeyRange, after: PointId | None) -> bool:
    """Whether the part may hold ids of this range beyond `after`."""
    below = (keys.lo is not None and part.high < key_of(keys.lo)) or (after is not None and part.high <= key_of(after))
    return not below and (keys.hi is None or part.low < key_of(keys.hi))


def is_tidy(parts: Sequence[Part]) -> bool:
    """No deletes, no overlaps: the rows are the points."""
    apart = all(one.high < two.low for one, two in itertools.pairwise(_ordered(parts)))
    return apart and not any(part.deletes for part in parts)


def is_compact(parts: Sequence[Part]) -> bool:
    """Tidy, in order, and no more files than the size asks for."""
    few = len(parts) <= 1 + sum(part.bytes for part in parts) // PART_BYTES
    return few and is_tidy(parts) and list(parts) == _ordered(parts)


def _ordered(parts: Sequence[Part]) -> list[Part]:
    return sorted(parts, key=lambda part: part.low)


def crowd(parts: Sequence[Part]) -> list[Part]:
    """The oldest FAN_IN neighbouring runs of one level, if there are so many."""
    runs: dict[str, list[Part]] = {}
    for part in parts:
        runs.setdefault(part.run, []).append(part)
    alike: list[list[Part]] = []
    for run in runs.values():
        alike = [*alike, run] if alike and alike[0][0].level == run[0].level else [run]
        if len(alike) == FAN_IN:
            return list(itertools.chain.from_iterable(alike))
    return []


def where(parts: tuple[Part, ...], some: tuple[Part, ...]) -> int | None:
    """Where `some` stand in a row in `parts`; None if they do not, or no longer."""
    start = parts.index(some[0]) if some[0] in parts else len(parts)
    return start if parts[start : start + len(some)] == some else None
