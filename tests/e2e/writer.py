"""An application that writes all the time: inserts, updates and deletes, each noted in a log once it is acknowledged.

It is a process of its own (`python -m tests.e2e.writer ORDERS.json`), follows the workspace's serving pointer as an
application would, and stops when a file appears. Its log is the truth that a live migration is compared with.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np

from runner.points import Payloads, PointBatch
from runner.store import Store
from runner.stores import config_model, open_store
from tests import warm
from tests.e2e.workspace import REPOSITORY, environment


def batch(points: dict[Any, dict[str, Any]], vector: str) -> PointBatch:
    """Points as the log has them."""
    return PointBatch(
        ids=list(points),
        vectors={vector: np.array([item["vector"] for item in points.values()], np.float32)},
        payloads=Payloads([item["payload"] for item in points.values()]),
    )


class Application:
    """Writes to the collection that serves, one point at a time."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self.orders, self.random = orders, random.Random(orders["seed"])  # type: tuple[dict[str, Any], random.Random]
        self.stores: dict[str, Store] = {}
        self.points: dict[Any, float] = dict.fromkeys(orders["ids"], 0.0)  # id -> when it was inserted
        self.version, self.next = orders["version"], orders["next"]

    def place(self) -> tuple[Store, str, str]:
        """(store, collection, its vector) that serves now."""
        file = Path(self.orders["serving"])
        served = json.loads(file.read_text())["pointers"].get("kb-live") if file.exists() else None
        here = served or self.orders["source"]
        name = here["connection"]
        if name not in self.stores:
            config = self.orders["connections"][name]
            self.stores[name] = open_store(config_model(config["type"])(**config))
        return self.stores[name], here["collection"], self.orders["vectors"][name]

    def step(self) -> dict[str, Any]:
        """One write; its line in the log."""
        store, collection, vector = self.place()
        old = [item for item, since in self.points.items() if time.monotonic() - since > 3]
        verb = self.random.choices(("insert", "update", "delete"), (3, 4, 2 if old else 0))[0]
        self.version += 1
        if verb == "delete":  # not of what was inserted just now: see VI108
            chosen = self.random.choice(old)
            store.delete(collection, [chosen])
            del self.points[chosen]
            return {"verb": verb, "id": chosen}
        if verb == "insert":
            chosen, self.next = self.next, self.next + 1
            self.points[chosen] = time.monotonic()
        else:
            chosen = self.random.choice(list(self.points))
        made = np.array([self.random.gauss(0, 1) for _ in range(self.orders["dimension"])])
        point = {
            "vector": (made / np.linalg.norm(made)).astype(np.float32).tolist(),
            "payload": {"version": self.version, "text": f"{verb} {chosen}"},
        }
        store.upsert(collection, batch({chosen: point}, vector))
        return {"verb": verb, "id": chosen, **point}


def main() -> None:
    orders = json.loads(Path(sys.argv[1]).read_text())
    application = Application(orders)
    with Path(orders["log"]).open("a", encoding="utf-8") as log:
        while not Path(orders["stop"]).exists():
            log.write(json.dumps(application.step()) + "\n")
            log.flush()
            time.sleep(orders["pause"])


class Writer:
    """The process, from the test's side."""

    def __init__(self, folder: Path, **orders: Any) -> None:
        self.log, self.stop_file = folder / "writes.log", folder / "writer.stop"
        self.file = folder / "orders.json"
        self.file.write_text(json.dumps(orders | {"log": str(self.log), "stop": str(self.stop_file)}))

    @contextmanager
    def at_work(self) -> Iterator[Writer]:
        with warm.Popen(
            [sys.executable, "-m", "tests.e2e.writer", str(self.file)], cwd=REPOSITORY, env=environment({}), stderr=PIPE
        ) as process:
            try:
                self.wait_for(20)
                yield self
            finally:
                self.stop_file.touch()
                _out, err = process.communicate(timeout=20)
        assert process.returncode == 0, err.decode()

    def lines(self) -> list[dict[str, Any]]:
        text = self.log.read_text() if self.log.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]  # the last may be half written

    def wait_for(self, more: int) -> None:
        """Until so many more writes are acknowledged."""
        wanted, deadline = len(self.lines()) + more, time.monotonic() + 20
        while len(self.lines()) < wanted:
            assert time.monotonic() < deadline, "the writer stands still"
            time.sleep(0.02)

    def truth(self, before: PointBatch, vector: str) -> dict[Any, tuple[list[float], dict[str, Any]]]:
        """What must stand there: the points at the beginning, and every write since."""
        found = points_of(before, vector)
        for line in self.lines():
            if line["verb"] == "delete":
                found.pop(line["id"], None)
            else:
                found[line["id"]] = (line["vector"], line["payload"])
        return found


def points_of(held: PointBatch, vector: str) -> dict[Any, tuple[list[float], dict[str, Any]]]:
    """Points by id: vector and payload."""
    return {
        point_id: (held.vectors[vector][row].tolist(), dict(held.payloads.dicts[row]))
        for row, point_id in enumerate(held.ids)
    }


if __name__ == "__main__":
    main()
