"""Peak memory of `vecrun apply`, verification of every point included: it must not grow with the collection."""

from __future__ import annotations

import shutil
from pathlib import Path

from bench import loops, process
from bench.process import Ground
from tests import servers


def run(folder: Path, scale: float) -> None:
    """pgvector → pgvector at 100,000 and 1,000,000 points of 384 numbers."""
    peaks = []
    for points in (int(100_000 * scale), int(1_000_000 * scale)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with servers.postgres(durable=True) as url:
            ground = Ground(folder, url, points)
            loops.fill_pgvector(ground)
            connection: dict[str, object] = {"type": "pgvector", "url": url}
            root = process.workspace(folder, connection, connection, f"memory-{points}", "full")
            seconds, peak = process.apply(root)
            rates = ", ".join(
                f"{name} {points / passed:,.0f}/s" for name, passed in seconds.items() if "points" in name
            )
            print(
                f"bench memory points={points:,} dimension={loops.DIMENSION} peak={peak / 1e6:.0f} MB ({rates})",
                flush=True,
            )
            peaks.append(peak)
    print(f"bench memory difference={(peaks[1] - peaks[0]) / 1e6:.0f} MB", flush=True)
