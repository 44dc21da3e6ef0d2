"""Embedding: texts per second of `vecrun apply` against a hand-written loop with the same model, and what a crash costs.

In the second part requests, texts and tokens are those that arrived at a server in another process, whether or not
somebody was there to take the reply.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import yaml

from bench import loops, process
from bench.process import Ground
from bench.workers import COMMAND
from runner.embedder import Embedder
from runner.embedders import config_model, open_embedder
from tests import embedding_server, servers

TEXTS, ASKED = 800, 2000
#: Points read and written at once: what a job has that says nothing.
PAGE = 256
#: Seconds the server takes for a request, and how many texts one carries.
DELAY, ITEMS = 0.1, 32
_WORDS = (
    "river stone garden window market engine letter winter doctor music bridge silver forest number island teacher "
    "kitchen morning paper castle harbour village summer question answer printer history station mountain library "
    "carries follows repairs describes measures remembers crosses builds paints counts before after under between "
    "slowly rarely often gladly the a every another no some old new small bright empty heavy quiet useful"
)


def run(folder: Path, scale: float, rounds: int) -> None:
    """Both parts, each on a PostgreSQL of its own."""
    for part, points in ((throughput, TEXTS), (crash, ASKED)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with servers.postgres(durable=True) as url:
            ground = Ground(folder, url, max(PAGE, int(points * scale)))
            _fill(ground)
            part(ground, rounds)


def _texts(count: int) -> list[str]:
    """Sentences of 10 to 26 words, all different, and the same each time."""
    chance, words = random.Random(4), _WORDS.split()
    return [f"{number} {' '.join(chance.choices(words, k=chance.randint(9, 25)))}." for number in range(count)]


def _fill(ground: Ground) -> None:
    """`bench_source` with the texts, and vectors of another model: 8 numbers."""
    with psycopg.connect(ground.pg_url) as database:
        database.execute("create extension if not exists vector")
        database.execute(
            "create table bench_source (id bigint primary key, embedding vector(8), payload jsonb not null)"
        )
        vector = str([1.0] * 8)
        rows = [(number, vector, json.dumps({"text": text})) for number, text in enumerate(_texts(ground.points))]
        with database.cursor() as cursor:
            cursor.executemany("insert into bench_source values (%s, %s, %s)", rows)


def _workspace(ground: Ground, name: str, model: dict[str, object]) -> Path:
    root = ground.folder / f"workspace-{name}"
    (root / "jobs").mkdir(parents=True)
    connections = {"kb": {"type": "pgvector", "url": ground.pg_url}}
    settings = {"apiVersion": "vecrun/v1", "kind": "Workspace", "connections": connections, "models": {"new": model}}
    (root / "vecrun.yaml").write_text(yaml.safe_dump(settings))
    spec = {
        "connection": "kb", "collection": "bench_source", "to": "bench_target", "model": "new", "text": {"field": "text"},
        "verify": {"mode": "count"},
    }  # fmt: skip
    job = {"apiVersion": "vecrun/v1", "kind": "Reembedding", "metadata": {"name": "bench"}, "spec": spec}
    (root / "jobs" / "bench.yaml").write_text(yaml.safe_dump(job))
    return root


# -- throughput ------------------------------------------------------------------------------------------------------


def throughput(ground: Ground, rounds: int) -> None:
    """MiniLM: the copy step; a loop that reads, embeds and writes in one thread; the model alone. In turn."""
    texts = _texts(ground.points)
    with open_embedder(config_model("minilm")(provider="minilm")) as model:
        model.embed(texts[: model.bounds().items])  # what only the first call has to do
        sides: tuple[Callable[[int], float], ...] = (
            lambda number: _step(ground, f"round-{number}"),
            lambda _number: _loop(ground, model),
            lambda _number: _alone(model, texts),
        )
        rates: list[dict[int, float]] = []
        for number in range(rounds):
            order = [(place + number) % len(sides) for place in range(len(sides))]  # none is always the first
            rates.append({side: ground.points / sides[side](number) for side in order})
    vecrun, bare, alone = (statistics.median(item[side] for item in rates) for side in range(3))
    of_bare, of_model = ([item[0] / item[side] for item in rates] for side in (1, 2))
    print(
        f"bench embedding vecrun={vecrun:,.0f}/s bare={bare:,.0f}/s model={alone:,.0f}/s "
        f"ratio={statistics.median(of_bare):.2f} of_model={statistics.median(of_model):.2f} texts={ground.points:,} "
        f"(rounds: {' '.join(f'{one:.2f}' for one in of_bare)})",
        flush=True,
    )


def _step(ground: Ground, name: str) -> float:
    """Seconds of the copy step; a new workspace each time, as vectors are kept in its ledger."""
    root = _workspace(ground, name, {"provider": "minilm"})
    seconds, _peak = process.apply(root)
    process.rollback(root)
    return seconds["copy_points"]


def _loop(ground: Ground, model: Embedder) -> float:
    """By hand: read a page, ask the model in requests of the same size, write the page, commit."""
    size = model.bounds().items
    with psycopg.connect(ground.pg_url) as source, psycopg.connect(ground.pg_url) as target:
        loops.empty_table(target, "bench_bare")
        target.commit()
        began, last = time.monotonic(), -1
        while True:
            query = "select id, payload from bench_source where id > %s order by id limit %s"
            rows = source.execute(query, (last, PAGE)).fetchall()
            if not rows:
                return time.monotonic() - began
            texts = [row[1]["text"] for row in rows]
            matrix = np.concatenate(
                [model.embed(texts[start : start + size]).vectors for start in range(0, len(texts), size)]
            )
            payloads = [json.dumps(row[1]).encode() for row in rows]
            loops.copy_rows(target, "bench_bare", [row[0] for row in rows], matrix, payloads)
            target.commit()
            last = rows[-1][0]


def _alone(model: Embedder, texts: list[str]) -> float:
    """Nothing but the model."""
    size, began = model.bounds().items, time.monotonic()
    for start in range(0, len(texts), size):
        model.embed(texts[start : start + size])
    return time.monotonic() - began


# -- a crash ---------------------------------------------------------------------------------------------------------


def crash(ground: Ground, rounds: int) -> None:
    """What a server is asked for: by a run that nobody disturbs, by one that is killed and resumed, and after a rollback."""
    with embedding_server.outside(dimension=64, delay=DELAY) as server:
        model = {
            "provider": "openai", "base_url": f"{server}/v1", "model": "bench", "dimension": 64, "items": ITEMS,
            "text_tokens": 8000,
        }  # fmt: skip
        calm = _workspace(ground, "calm", model)
        _vecrun(calm, "plan", "jobs/bench.yaml", "-o", "plans/bench.json")  # its probe is not counted
        whole = _counted(server, lambda: _vecrun(calm, "apply", "plans/bench.json"))
        _vecrun(calm, "rollback", "bench", "--auto-approve")
        again = _counted(server, lambda: _vecrun(calm, "apply", "jobs/bench.yaml", "--unpin", "--auto-approve"))
        _vecrun(calm, "rollback", "bench", "--auto-approve")
        _show("undisturbed", whole, whole)
        _show("again after a rollback", again, whole)
        for number in range(rounds):
            share = (number + 1) / (rounds + 1)
            root = _workspace(ground, f"killed-{number}", model)
            _vecrun(root, "plan", "jobs/bench.yaml", "-o", "plans/bench.json")
            killed = _counted(server, lambda: _killed(root, server, int(share * whole["requests"])))  # noqa: B023
            both = killed + _counted(server, lambda: _vecrun(root, "resume", "bench", "--wait", "2m"))  # noqa: B023
            _vecrun(root, "rollback", "bench", "--auto-approve")
            _show(f"kill -9 after {killed['requests']} requests, resumed", both, whole)


class Asked(dict[str, int]):
    """requests, texts, tokens, and how many requests were under way at most."""

    def __add__(self, other: Asked) -> Asked:
        return Asked({key: self[key] + other[key] for key in self})


def _counted(server: str, action: Callable[[], None]) -> Asked:
    """What arrives meanwhile."""
    embedding_server.ask(server, "/reset", {})
    action()
    found = embedding_server.ask(server, "/stats")
    return Asked(requests=found["requests"], texts=found["asked"], tokens=found["asked_tokens"])


def _killed(root: Path, server: str, requests: int) -> None:
    """An apply that gets kill -9 once so many requests have arrived."""
    command = [*COMMAND, "apply", "plans/bench.json"]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process_:
        while embedding_server.ask(server, "/stats")["requests"] < requests:
            if process_.poll() is not None:
                raise SystemExit("vecrun apply ended before it was killed")
            time.sleep(0.01)
        process_.send_signal(signal.SIGKILL)
    time.sleep(2 * DELAY)  # requests that were under way


def _vecrun(root: Path, *arguments: str) -> None:
    done = subprocess.run([*COMMAND, *arguments], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"vecrun {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")


def _show(what: str, asked: Asked, whole: Asked) -> None:
    more = f" (+{asked['texts'] / whole['texts'] - 1:.1%} texts)" if asked["texts"] > whole["texts"] else ""
    counts: dict[str, Any] = asked
    print(f"bench crash {what}: " + " ".join(f"{key}={value:,}" for key, value in counts.items()) + more, flush=True)
