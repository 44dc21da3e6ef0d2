"""An application that writes to the table which a job backs up and empties, while the job's processes are killed.

Every few milliseconds it adds a row, or writes to one that is there, in bursts with pauses between them, so that some
truncates go through and some must refuse. What it was told is committed may never be lost: it is in the table, or else the
newest state of it that was committed is in a whole backup.
"""

from __future__ import annotations

import csv
import json
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from runner.backups import manifest
from runner.backups.check import check
from tests import servers
from tests.faults import archive, kills
from tests.faults.archive import COLLECTIONS, KEY, POINTS, Chore
from tests.faults.matrix import Score
from tests.faults.nursery import Nursery
from tests.faults.scene import JOB

APPLY = ("apply", f"jobs/{JOB}.yaml", "--auto-approve", "--unpin")
#: What a run may answer: done, refused because somebody has written since (or holds the lock), nothing to resume.
ANSWERS = (0, 1, 10)
#: Words of a refusal that is right.
REFUSALS = ("A table was written to after its backup", "There is no whole backup by this run")


@dataclass
class Application:
    """One thread and its connection. `told`: key -> the newest version that was committed."""

    url: str
    seed: int
    told: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Application:
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join()

    def _work(self) -> None:
        chance, number, version = random.Random(self.seed), 0, 0
        pause = chance.uniform(0.2, 1.2)
        try:
            with psycopg.connect(self.url, autocommit=True) as db:
                while not self._stop.is_set():
                    if chance.random() < 0.04:  # the end of a burst
                        self._stop.wait(pause)
                        pause = chance.uniform(0.2, 1.2)
                    version += 1
                    key = f"w{number}"
                    if self.told and chance.random() < 0.3:  # a row of before, if it is there still
                        key = f"w{chance.randrange(number)}"
                        query = f"UPDATE {POINTS} SET cmetadata = %s WHERE id = %s"
                        if not db.execute(query, (json.dumps({"v": version}), key)).rowcount:
                            continue
                    else:
                        number += 1
                        self._insert(db, key, version)
                    self.told[key] = version
                    time.sleep(0.004)
        except psycopg.Error as exc:
            self.errors.append(f"the application got an error: {exc}")

    def _insert(self, db: psycopg.Connection[Any], key: str, version: int) -> None:
        db.execute(
            f"INSERT INTO {POINTS} VALUES (%s, %s, '[1,2,3]', %s, %s)",
            (key, KEY, f'a text\nwith "quotes" of {key}', json.dumps({"v": version})),
        )


def lost(scene: archive.Scene, told: dict[str, int], seen: dict[str, dict[str, int]]) -> list[str]:
    """What was committed as `told` says, and is neither in the table nor, in that version or a later one, in a whole backup
    whose every byte is right. The table is read before the backups; `seen` has those that were read already."""
    with psycopg.connect(scene.app) as db:
        found = db.execute(f"SELECT id, (cmetadata->>'v')::int FROM {POINTS} WHERE id LIKE 'w%'").fetchall()
    best, wrong = dict(found), list[str]()
    if len(best) < len(found):
        wrong.append(f"{len(found) - len(best)} keys are twice in the table")
    with scene.objects() as objects:
        for name in manifest.ids(objects, scene.folder):
            if name not in seen:
                backup = manifest.read(objects, scene.folder, name)
                checked = check(objects, scene.folder, backup, read_data=True)
                if not backup.whole or not checked.ok:
                    wrong.append(f"backup {name}: {checked.problems or 'is not whole'}")
                    continue
                file = next(item.file for item in backup.tables if item.table == POINTS)
                with (scene.place / file).open(newline="", encoding="utf-8") as lines:
                    rows = [row for row in csv.DictReader(lines) if row["id"].startswith("w")]
                seen[name] = {row["id"]: json.loads(row["cmetadata"])["v"] for row in rows}
            for one, version in seen[name].items():
                best[one] = max(best.get(one, -1), version)
    missing = [one for one, version in told.items() if best.get(one, -1) < version]
    if missing:
        wrong.append(f"{len(missing)} of {len(told)} committed rows are lost, such as {missing[:3]}")
    return wrong


class Killed(kills.Migration):
    """A job that empties the table that is written to."""

    def __init__(self, nursery: Nursery, directory: Path, seed: int, score: Score) -> None:
        super().__init__(nursery, directory, random.Random(seed), score)
        self.right = ANSWERS
        self.emptied = self.refused = 0
        self.seen: dict[str, dict[str, int]] = {}  # rows of each backup
        self.normal = {"back_up_tables": 0.25, "truncate_tables": 0.08}

    def go_on(self, application: Application) -> None:
        """A process that is killed at some moment, or not; then everything is looked for."""
        _, purpose, status = self._newest()
        arguments = ("resume", JOB) if status == "running" and self.chance.random() < 0.5 else APPLY
        if purpose == "rollback" and status not in ("completed", "rolled_back"):  # apply does not finish it
            arguments = ("resume", JOB)
        if status == "failed" and purpose == "apply":  # it was refused: another backup is wanted
            arguments = self.chance.choice([("resume", JOB), ("rollback", JOB, "--auto-approve")])
        at = self.log.stat().st_size if self.log.exists() else 0
        if self.chance.random() < 0.3:  # else it would be killed again and again in what is left of one run
            self.undisturbed(*arguments)
        else:
            self.killed(*arguments)
        said = self.log.read_bytes()[at:].decode()
        self.emptied += "emptied, " in said
        if "Error: " in said:
            self.refused += 1
            if not any(words in said for words in REFUSALS) and "Nothing to resume" not in said:
                self.score.findings.append(f"refused for another reason: {said[said.index('Error: ') :][:300]}")
        self.score.runs += 1
        told = dict(application.told)
        self.score.counts.compared += len(told)
        wrong = lost(archive.load(str(self.directory)), told, self.seen)
        self.score.counts.lost += sum("are lost" in text for text in wrong)
        self.score.findings += [f"{self.directory.name} after {' '.join(arguments)}: {text}" for text in wrong]


def run(
    nursery: Nursery, directory: Path, postgres: str, *, seed: int, quota: int, until: float = float("inf")
) -> Score:  # fmt: skip
    """Kill `quota` processes of a job that empties a table which is written to."""
    score, chore = Score(), Chore("backup", "truncate")
    given = {"action": chore.action, "how": chore.how}
    nursery.call("archive.build", directory=str(directory), chore=given, size=200, postgres=postgres)
    scene = archive.load(str(directory))
    # the table of collections stays: the rows of the application refer to it
    job = directory / "jobs" / f"{JOB}.yaml"
    job.write_text(job.read_text().replace(f"    - {COLLECTIONS}\n", "", 1))
    servers.sql(scene.app, f"INSERT INTO {COLLECTIONS} VALUES ('{KEY}', 'ddl', NULL) ON CONFLICT DO NOTHING")
    one = Killed(nursery, directory, seed, score)
    with Application(scene.app, seed) as application:
        while score.kills < quota and not score.findings and time.monotonic() < until:
            if score.missed > 4 * quota + 20:
                score.findings.append("processes end before they can be killed")
            one.go_on(application)
    score.findings += application.errors
    if not score.findings and quota > 20 and not (one.emptied and one.refused):
        score.findings.append(f"emptied {one.emptied} times and refused {one.refused} times: both must happen")
    score.hits |= {"emptied": one.emptied, "refused": one.refused}
    return score
