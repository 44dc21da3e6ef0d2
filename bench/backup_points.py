"""Backup and restore of a collection against bare Arrow loops: pages out of PostgreSQL into one Parquet file, and back.

vecrun's figures hold what the loops leave out: points sorted by id, a digest of them and of every file, files synced to
disk, all of them read back and compared before the manifest is written, and on the way back once more.
"""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import psycopg
import yaml
from pyarrow import parquet

from bench import loops, process
from bench.process import Ground
from tests import servers

POINTS = 100_000
FOLDER = "bench/vector_bak"


def run(folder: Path, scale: float, rounds: int) -> None:
    """pgvector → files → pgvector at 100,000 points of 384 numbers; then the same backup again, with nothing changed."""
    backups, bare_backups, again, restores, bare_restores = (list[float]() for _ in range(5))
    peak = 0
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with servers.postgres(durable=True) as url:
        ground = Ground(folder, url, max(1000, int(POINTS * scale)))
        loops.fill_pgvector(ground)
        for _ in range(rounds):
            shutil.rmtree(folder / "bak", ignore_errors=True)
            (folder / "bak").mkdir()
            for seconds_of in (backups, again):
                seconds, used = process.apply(_workspace(ground, "VectorBackup", _BACKUP))
                seconds_of.append(seconds["back_up_points"] + seconds["seal_backup"])
                peak = max(peak, used)
            size = sum(path.stat().st_size for path in (folder / "bak").rglob("*.parquet"))
            bare_backups.append(loops.pgvector_to_parquet(ground))
            bare_size = (folder / "bare.parquet").stat().st_size
            root = _workspace(ground, "VectorRestore", _RESTORE)
            seconds, used = process.apply(root)
            restores.append(seconds["check_backup"] + seconds["copy_points"])
            peak = max(peak, used)
            process.rollback(root)
            bare_restores.append(_parquet_to_pgvector(ground))
    n = ground.points
    for name, ours, bare in (("backup", backups, bare_backups), ("restore", restores, bare_restores)):
        ratio = statistics.median(two / one for one, two in zip(ours, bare, strict=True))
        rates = f"vecrun={n / statistics.median(ours):,.0f}/s bare={n / statistics.median(bare):,.0f}/s"
        print(f"bench {name}-points {rates} ratio={ratio:.2f} points={n:,}", flush=True)
    print(
        f"bench backup-points unchanged={n / statistics.median(again):,.0f}/s size={size / 1e6:.1f} MB "
        f"bare={bare_size / 1e6:.1f} MB ratio={size / bare_size:.2f} peak={peak / 1e6:.0f} MB",
        flush=True,
    )


_BACKUP = {
    "collections": {"connection": "pg", "names": ["bench_source"]},
    "to": {"connection": "bak", "folder": FOLDER},
}
_RESTORE = {
    "from": {"connection": "bak", "folder": FOLDER},
    "collections": {
        "connection": "pg",
        "names": [{"from": "bench_source", "to": "bench_target"}],
        "verify": {"mode": "count"},
    },
}


def _workspace(ground: Ground, kind: str, spec: dict[str, object]) -> Path:
    """A fresh workspace with one job; the folder of the backups is beside it."""
    root = ground.folder / "workspace"
    shutil.rmtree(root, ignore_errors=True)
    (root / "jobs").mkdir(parents=True)
    connections = {
        "pg": {"type": "pgvector", "url": ground.pg_url},
        "bak": {"type": "folder", "path": str(ground.folder / "bak")},
    }
    settings = {"apiVersion": "vecrun/v1", "kind": "Workspace", "connections": connections}
    (root / "vecrun.yaml").write_text(yaml.safe_dump(settings))
    job = {"apiVersion": "vecrun/v1", "kind": kind, "metadata": {"name": "bench"}, "spec": spec}
    (root / "jobs" / "bench.yaml").write_text(yaml.safe_dump(job))
    return root


def _parquet_to_pgvector(ground: Ground) -> float:
    """The bare file back into a table, by binary COPY, a commit a batch."""
    with psycopg.connect(ground.pg_url, autocommit=True) as database:
        loops.empty_table(database, "bench_bare")
        began = time.monotonic()
        with parquet.ParquetFile(ground.folder / "bare.parquet") as file:
            for batch in file.iter_batches(loops.BATCH):
                numbers = batch.column("embedding").values.to_numpy()
                matrix = np.ascontiguousarray(numbers.reshape(batch.num_rows, loops.DIMENSION))
                texts = [text.encode() for text in batch.column("payload").to_pylist()]
                loops.copy_rows(database, "bench_bare", batch.column("id").to_pylist(), matrix, texts)
        return time.monotonic() - began
