"""One line a pair: `bench PAIR vecrun=… bare=… ratio=…`."""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import loops, process
from bench.process import Ground
from tests import servers


@dataclass(frozen=True)
class Pair:
    """`fill` makes the source, `bare` copies by hand and returns the seconds it took, `connect` names both ends."""

    points: int
    source: Callable[[Ground], dict[str, object]]
    target: Callable[[Ground], dict[str, object]]
    fill: Callable[[Ground], None]
    bare: Callable[[Ground], float]
    needs: str = ""


def _pg(ground: Ground) -> dict[str, object]:
    return {"type": "pgvector", "url": ground.pg_url}


def _milvus(ground: Ground) -> dict[str, object]:
    return {"type": "milvus", "uri": str(ground.folder / "milvus.db")}


def _qdrant(ground: Ground) -> dict[str, object]:
    return {"type": "qdrant", "path": str(ground.folder / "qdrant")}


def _qdrant_server(_ground: Ground) -> dict[str, object]:
    port = int(os.environ.get("VECRUN_TEST_QDRANT_GRPC_PORT", "6334"))
    return {"type": "qdrant", "url": os.environ["VECRUN_TEST_QDRANT_URL"], "grpc_port": port}


def _weaviate(_ground: Ground) -> dict[str, object]:
    port = int(os.environ.get("VECRUN_TEST_WEAVIATE_GRPC_PORT", "50051"))
    return {"type": "weaviate", "url": os.environ["VECRUN_TEST_WEAVIATE_URL"], "grpc_port": port}


def _files(ground: Ground) -> dict[str, object]:
    return {"type": "files", "path": str(ground.folder / "files")}


PAIRS: dict[str, Pair] = {
    "pgvector-pgvector": Pair(100_000, _pg, _pg, loops.fill_pgvector, loops.pgvector_to_pgvector),
    "milvus-pgvector": Pair(30_000, _milvus, _pg, loops.fill_milvus, loops.milvus_to_pgvector),
    "pgvector-qdrant": Pair(1_500, _pg, _qdrant, loops.fill_pgvector, loops.pgvector_to_qdrant),
    "pgvector-qdrant-server": Pair(
        50_000, _pg, _qdrant_server, loops.fill_pgvector, loops.pgvector_to_qdrant_server, "VECRUN_TEST_QDRANT_URL"
    ),
    "pgvector-weaviate": Pair(
        20_000, _pg, _weaviate, loops.fill_pgvector, loops.pgvector_to_weaviate, "VECRUN_TEST_WEAVIATE_URL"
    ),
    "pgvector-files": Pair(100_000, _pg, _files, loops.fill_pgvector, loops.pgvector_to_parquet),
}


def run(names: list[str], folder: Path, scale: float, rounds: int) -> None:
    """Measure each pair: vecrun and the loop in turn, so that both see the same machine."""
    for name in names:
        pair = PAIRS[name]
        if pair.needs and pair.needs not in os.environ:
            print(f"bench {name} left out: set {pair.needs}", flush=True)
            continue
        with ExitStack() as stack:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            url = stack.enter_context(servers.postgres(durable=True))
            ground = Ground(folder, url, max(1000, int(pair.points * scale)))
            pair.fill(ground)
            rates: list[tuple[float, float]] = []
            for number in range(rounds):
                with_vecrun = process.copy(ground, pair.source(ground), pair.target(ground), f"round-{number}")
                by_hand = pair.bare(ground)
                rates.append((ground.points / with_vecrun, ground.points / by_hand))
            ratio = statistics.median(one / other for one, other in rates)
            vecrun, bare = (statistics.median(item[side] for item in rates) for side in (0, 1))
            print(
                f"bench {name} vecrun={vecrun:,.0f}/s bare={bare:,.0f}/s ratio={ratio:.2f} points={ground.points:,}",
                flush=True,
            )
