"""`vector_backup_log.txt`: what became of each backup and each truncation, for people, beside the files themselves.

Storage has no append: the file is read and written whole, so it keeps about its newest megabyte.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from runner.backups.manifest import Backup
from runner.errors import redact
from runner.objects.storage import Objects

NAME = "vector_backup_log.txt"
#: Bytes that are kept.
_MOST = 1 << 20


def append(objects: Objects, folder: str, name: str, lines: Sequence[str], *, once: bool = True) -> None:
    """Add a block at the end, under the present time and a name. `once`: not if a block has this name already."""
    key, name = f"{folder}/{NAME}", redact(f"UTC {name}")
    before = objects.read(key).decode(errors="replace") if objects.head(key) is not None else ""
    if once and name in (line[20:] for line in before.splitlines()):
        return
    texts = (" ".join(redact(line).split()) for line in lines)
    block = "\n".join([f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {name}", *(f"  {text}" for text in texts)])
    blocks = [*before.strip("\n").split("\n\n"), block] if before else [block]
    size = sum(len(item.encode()) + 2 for item in blocks)
    while size > _MOST and len(blocks) > 1:
        size -= len(blocks.pop(0).encode()) + 2
    objects.write(key, ("\n\n".join(blocks) + "\n").encode())


def backup(objects: Objects, folder: str, made: Backup) -> None:
    """The block of a backup, whole or not."""
    failed = sum(bool(item.error) for item in made.tables)
    lines = [f"result: {f'{failed} of {len(made.tables)} tables failed' if failed else 'complete'}"]
    lines += [
        f"duration: {seconds(made):.1f} s",
        f"source: {made.source}",
        f"total: {made.rows:,} rows, {sum(made.files.values()):,} bytes",
    ]
    for item in made.tables:
        what = f"FAILED: {item.error}" if item.error else f"{item.rows:,} rows, {item.bytes:,} bytes, {item.file}"
        lines.append(f"table {item.table}: {what}")
    lines += [
        f"collection {one.name}: {one.rows:,} points, {sum(file.bytes for file in one.files):,} bytes in "
        f"{len(one.files):,} files"
        for one in made.collections
    ]
    append(objects, folder, f"backup {made.id}, task {made.job}, run {made.run}", lines)


def seconds(made: Backup) -> float:
    """How long a backup took."""
    return (datetime.fromisoformat(made.finished) - datetime.fromisoformat(made.began)).total_seconds()
