"""What is kept of embedding, in the ledger's database: vectors by model and text, texts a provider refuses, what each
point's vector was made from, failed items, what was used and paid, and when the next request may start.

A vector is kept in the transaction that counts what it cost, as soon as the provider has answered: whatever is killed
afterwards, the text is not paid for again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from runner.errors import redact
from runner.lock import now
from runner.points import PointId
from runner.records import Records, again
from runner.tables import failures, marks, pace, usage, vectors

#: Values in one IN (…).
CHUNK = 500
#: Longest time, in seconds, for which a provider's wish to wait is kept; a moment beyond it is of a clock that was wrong.
MAX_HOLD = 900.0
#: A queue for the next turn is no longer than this, in seconds and so many requests: the rest, too.
QUEUE_SECONDS, QUEUE_REQUESTS = 600.0, 100


@dataclass(frozen=True)
class Refusal:
    """A text that the provider does not take, and how often it was asked."""

    error: str
    attempts: int


@dataclass(frozen=True)
class Mark:
    """What the vector of a point was made from: key of the model, digest of the text; `run` wrote it."""

    model: str
    text: str
    run: str


@dataclass(frozen=True)
class Failure:
    """An item that was left out."""

    item: PointId
    error: str
    attempts: int
    text: str | None = None
    time: str = ""


@dataclass(frozen=True)
class Used:
    """What a run has asked of a model. `known`: texts whose vectors were kept from before; `usd`: None if no price is known."""

    requests: int = 0
    texts: int = 0
    tokens: int = 0
    known: int = 0
    usd: float | None = None


def text_key(text: str) -> str:
    """32 hex digits that stand for a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Vectors:
    """The kept vectors and all that belongs to them. Safe for use from several threads."""

    def __init__(self, records: Records) -> None:
        self.records = records
        # for `again`
        self.patience, self.stopping = records.patience, records.stopping

    # -- vectors by model and text ---------------------------------------------------------------------------------

    @again
    def get(self, model: str, texts: Sequence[str], run: str = "") -> dict[str, NDArray[np.float32] | Refusal]:
        """text key -> its vector of shape (d,), or why there is none; what was never asked for is absent. With `run` only
        its own refusals count: what another was refused is asked for again."""
        found: dict[str, NDArray[np.float32] | Refusal] = {}
        with self.records.reading() as connection:
            for part in _chunks(texts):
                query = sa.select(
                    vectors.c.text, vectors.c.vector, vectors.c.error, vectors.c.attempts, vectors.c.run
                )  # fmt: skip
                for row in connection.execute(query.where(vectors.c.model == model, vectors.c.text.in_(part))):
                    if row.vector is not None:
                        found[row.text] = np.frombuffer(row.vector, "<f4")
                    elif row.error is not None and run in ("", row.run):  # else it was forgiven
                        found[row.text] = Refusal(row.error, row.attempts)
        return found

    @again
    def known(self, model: str, texts: Sequence[str]) -> dict[str, bool]:
        """text key -> whether a vector is kept for it (else it was refused); what was never asked for is absent."""
        found: dict[str, bool] = {}
        with self.records.reading() as connection:
            for part in _chunks(texts):
                kept = vectors.c.vector.is_not(None).label("kept")
                query = sa.select(vectors.c.text, kept).where(vectors.c.model == model, vectors.c.text.in_(part))
                found |= {
                    row.text: bool(row.kept)
                    for row in connection.execute(query.where(sa.or_(kept, vectors.c.error.is_not(None))))
                }
        return found

    @again
    def keep(self, run: str, model: str, made: Mapping[str, NDArray[np.float32]], used: Used) -> None:
        """Keep vectors, and count what they cost. What another process kept first stays: `get` says what counts."""
        moment = now()
        rows = [
            {"model": model, "text": text, "vector": vector.astype("<f4").tobytes(), "error": None, "attempts": 0,
             "run": run, "written": moment}
            for text, vector in made.items()
        ]  # fmt: skip
        with self.records.writing() as connection:
            self._upsert(connection, vectors, rows, ("error", "written"), first=("vector", "run"))
            self._count(connection, run, model, used)

    @again
    def refuse(self, run: str, model: str, text: str, error: str) -> int:
        """Keep why a text has no vector, so that it is not asked for again; how often it was refused by now."""
        chosen = (vectors.c.model == model, vectors.c.text == text)
        with self.records.writing() as connection:
            before = connection.execute(sa.select(vectors.c.attempts).where(*chosen)).scalar() or 0
            row = {
                "model": model, "text": text, "vector": None, "error": redact(error), "attempts": before + 1,
                "run": run, "written": now(),
            }  # fmt: skip
            self._upsert(connection, vectors, [row], ("error", "attempts", "run", "written"))
        return before + 1

    @again
    def forgive(self, model: str, texts: Iterable[str]) -> None:
        """Texts that are to be asked for once more. How often they were refused stays known."""
        with self.records.writing() as connection:
            for part in _chunks(list(texts)):
                chosen = (vectors.c.model == model, vectors.c.text.in_(part), vectors.c.vector.is_(None))
                connection.execute(vectors.update().where(*chosen).values(error=None))

    @again
    def of_others(self, run: str, model: str, texts: Sequence[str]) -> int:
        """For how many of these a vector is kept that another run has paid for."""
        kept = (vectors.c.model == model, vectors.c.vector.is_not(None), vectors.c.run != run)
        count = 0
        with self.records.reading() as connection:
            for part in _chunks(texts):
                query = sa.select(sa.func.count()).select_from(vectors).where(*kept, vectors.c.text.in_(part))
                count += int(connection.execute(query).scalar_one())
        return count

    def count_known(self, connection: sa.Connection, run: str, model: str, known: int) -> None:
        """Texts whose vectors were there already, in a transaction of the caller."""
        self._count(connection, run, model, Used(known=known))

    def _count(self, connection: sa.Connection, run: str, model: str, used: Used) -> None:
        chosen = (usage.c.run == run, usage.c.model == model)
        values = {
            "requests": usage.c.requests + used.requests, "texts": usage.c.texts + used.texts,
            "tokens": usage.c.tokens + used.tokens, "known": usage.c.known + used.known,
        }  # fmt: skip
        if used.usd is not None:
            values["usd"] = sa.func.coalesce(usage.c.usd, 0.0) + used.usd
        if connection.execute(usage.update().where(*chosen).values(**values)).rowcount == 0:
            first = dict.fromkeys(("requests", "texts", "tokens", "known"), 0) | {"run": run, "model": model}
            self._upsert(connection, usage, [first], ())  # another may be making it just now
            connection.execute(usage.update().where(*chosen).values(**values))

    def used(self, run: str) -> Used:
        """What a run has used, of all its models together."""
        return self.used_by([run]).get(run, Used())

    @again
    def used_by(self, runs: Sequence[str]) -> dict[str, Used]:
        """run -> what it has used, for those that have asked a model."""
        sums = [sa.func.sum(usage.c[name]).label(name) for name in ("requests", "texts", "tokens", "known", "usd")]
        found: dict[str, Used] = {}
        with self.records.reading() as connection:
            for part in _chunks(runs):
                query = sa.select(usage.c.run, *sums).where(usage.c.run.in_(part)).group_by(usage.c.run)
                for row in connection.execute(query):
                    counts = (int(row.requests), int(row.texts), int(row.tokens), int(row.known))
                    found[row.run] = Used(*counts, usd=row.usd)
        return found

    @again
    def stored(self) -> tuple[int, int]:
        """(kept vectors, their bytes)."""
        size = sa.func.coalesce(sa.func.sum(sa.func.length(vectors.c.vector)), 0)
        with self.records.reading() as connection:
            row = connection.execute(sa.select(sa.func.count(vectors.c.vector), size)).one()
        return int(row[0]), int(row[1])

    @again
    def older(self, before: str) -> tuple[int, int]:
        """(kept vectors and refused texts that were written before an ISO time, bytes of the vectors)."""
        size = sa.func.coalesce(sa.func.sum(sa.func.length(vectors.c.vector)), 0)
        with self.records.reading() as connection:
            row = connection.execute(sa.select(sa.func.count(), size).where(vectors.c.written < before)).one()
        return int(row[0]), int(row[1])

    @again
    def expire(self, before: datetime) -> int:
        """Forget vectors that were written before; how many."""
        chosen = vectors.c.written < before.isoformat(timespec="milliseconds")
        key = sa.tuple_(vectors.c.model, vectors.c.text)
        gone = 0
        while True:
            some = sa.select(vectors.c.model, vectors.c.text).where(chosen).limit(10_000)
            with self.records.writing() as connection:
                count = connection.execute(vectors.delete().where(key.in_(some))).rowcount
            if count == 0:
                return gone
            gone += count

    # -- what points were made from --------------------------------------------------------------------------------

    @again
    def marks(self, place: str, vector: str, items: Sequence[PointId]) -> dict[PointId, Mark]:
        """id -> what its vector was made from, as far as it was recorded."""
        found: dict[PointId, Mark] = {}
        with self.records.reading() as connection:
            for part in _chunks([json.dumps(item) for item in items]):
                chosen = (marks.c.place == place, marks.c.vector == vector, marks.c.item.in_(part))
                for row in connection.execute(sa.select(marks).where(*chosen)):
                    found[json.loads(row.item)] = Mark(row.model, row.text, row.run)
        return found

    def attempts(self, connection: sa.Connection, run: str, found: Sequence[PointId]) -> dict[PointId, int]:
        """item -> how often it has failed, of those that have. In a transaction of the caller."""
        tries: dict[PointId, int] = {}
        for part in _chunks([json.dumps(item) for item in found]):
            query = sa.select(failures.c.item, failures.c.attempts)
            for row in connection.execute(query.where(failures.c.run == run, failures.c.item.in_(part))):
                tries[json.loads(row.item)] = row.attempts
        return tries

    def mark(
        self, connection: sa.Connection, run: str, place: str, vector: str, model: str, made: Mapping[PointId, str]
    ) -> None:
        """id -> text key, in a transaction of the caller: that of the checkpoint. What had failed before has not now."""
        rows = [
            {"place": place, "vector": vector, "item": json.dumps(item), "model": model, "text": text, "run": run}
            for item, text in made.items()
        ]
        self._upsert(connection, marks, rows, ("model", "text", "run"))
        self.settle(connection, run, list(made))

    def unmark(self, connection: sa.Connection, place: str, vector: str, items: Sequence[PointId]) -> None:
        """Nothing is known of these points any more."""
        for part in _chunks([json.dumps(item) for item in items]):
            chosen = (marks.c.place == place, marks.c.vector == vector, marks.c.item.in_(part))
            connection.execute(marks.delete().where(*chosen))

    def set_aside(
        self,
        connection: sa.Connection,
        runs: Sequence[str],
        place: str,
        saved: str,
        vector: str,
        items: Sequence[PointId],
    ) -> None:
        """Before points are written: what is known of them goes with their saved copies, unless one of `runs` recorded
        it, and they are marked as of no model until the checkpoint. The first of `runs` writes them. In a transaction of
        the caller."""
        for part in _chunks([json.dumps(item) for item in items]):
            chosen = (marks.c.place == place, marks.c.vector == vector, marks.c.item.in_(part))
            known = connection.execute(sa.select(marks).where(*chosen, marks.c.run.not_in(runs))).mappings().all()
            self._upsert(connection, marks, [{**row, "place": saved} for row in known], ())
            blank = {"place": place, "vector": vector, "model": "", "text": "", "run": runs[0]}
            self._upsert(connection, marks, [blank | {"item": item} for item in part], ("model", "text", "run"))

    def move_marks(
        self, connection: sa.Connection, place: str, to: str, vector: str, items: Sequence[PointId]
    ) -> None:  # fmt: skip
        """What is known of points goes from one place to another, where it does not replace what is there. In a transaction
        of the caller."""
        for part in _chunks([json.dumps(item) for item in items]):
            chosen = (marks.c.place == place, marks.c.vector == vector, marks.c.item.in_(part))
            known = connection.execute(sa.select(marks).where(*chosen)).mappings().all()
            self._upsert(connection, marks, [{**row, "place": to} for row in known], ())
            connection.execute(marks.delete().where(*chosen))

    def bring_back(
        self, connection: sa.Connection, saved: str, place: str, vector: str, items: Sequence[PointId]
    ) -> None:
        """Saved points stand in their place again, and so does what was known of them."""
        for part in _chunks([json.dumps(item) for item in items]):
            chosen = (marks.c.place == saved, marks.c.vector == vector, marks.c.item.in_(part))
            known = connection.execute(sa.select(marks).where(*chosen)).mappings().all()
            self._upsert(connection, marks, [{**row, "place": place} for row in known], ("model", "text", "run"))

    @again
    def forget_place(self, place: str) -> None:
        """A collection that is gone."""
        with self.records.writing() as connection:
            connection.execute(marks.delete().where(marks.c.place == place))

    @again
    def count_marked(self, place: str, vector: str, model: str) -> int:
        """How many points of a collection carry a vector that this model made, as far as it was recorded."""
        chosen = (marks.c.place == place, marks.c.vector == vector, marks.c.model == model)
        query = sa.select(sa.func.count()).select_from(marks).where(*chosen)
        with self.records.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def marked(
        self, place: str, vector: str, model: str, size: int = 10_000, *, run: str | None = None
    ) -> Iterator[list[PointId]]:
        """Ids of a collection whose vector this model made, in pages; with `run` those that it recorded."""
        last = ""
        while True:
            query = (
                sa.select(marks.c.item)
                .where(marks.c.place == place, marks.c.vector == vector, marks.c.item > last, marks.c.model == model)
                .order_by(marks.c.item).limit(size)
            )  # fmt: skip
            if run is not None:
                query = query.where(marks.c.run == run)
            rows = self.records.fetch(query).scalars().all()
            if not rows:
                return
            yield [json.loads(item) for item in rows]
            last = rows[-1]

    # -- failed items ----------------------------------------------------------------------------------------------

    def fail(self, connection: sa.Connection, run: str, found: Sequence[Failure]) -> None:
        """Record items that were left out, in a transaction of the caller."""
        rows = [
            {"run": run, "item": json.dumps(one.item), "text": one.text, "error": redact(one.error),
             "attempts": one.attempts, "time": now()}
            for one in found
        ]  # fmt: skip
        self._upsert(connection, failures, rows, ("text", "error", "attempts", "time"))

    def settle(self, connection: sa.Connection, run: str, items: Sequence[PointId]) -> None:
        """Items that have not failed any more."""
        if connection.execute(sa.select(failures.c.run).where(failures.c.run == run).limit(1)).first() is None:
            return
        for part in _chunks([json.dumps(item) for item in items]):
            connection.execute(failures.delete().where(failures.c.run == run, failures.c.item.in_(part)))

    @again
    def failed(self, run: str, limit: int | None = None) -> list[Failure]:
        """Items that a run left out."""
        query = sa.select(failures).where(failures.c.run == run).order_by(failures.c.item).limit(limit)
        with self.records.reading() as connection:
            return [
                Failure(json.loads(row.item), row.error, row.attempts, row.text, row.time)
                for row in connection.execute(query)
            ]

    @again
    def count_failed(self, run: str) -> int:
        """How many items a run left out."""
        query = sa.select(sa.func.count()).select_from(failures).where(failures.c.run == run)
        with self.records.reading() as connection:
            return int(connection.execute(query).scalar_one())

    # -- pace ------------------------------------------------------------------------------------------------------

    @again
    def wait_for(self, name: str, seconds: float) -> float:
        """Take the next turn, after which others wait for `seconds`; how long to wait for it."""
        with self.records.writing() as connection:
            clock, row = self._pace(connection, name)
            held = _until(row.held, clock, MAX_HOLD)
            longest = max(QUEUE_SECONDS, held - clock) + QUEUE_REQUESTS * seconds
            start = max(clock, _until(row.next, clock, longest), held)
            connection.execute(pace.update().where(pace.c.name == name).values(next=start + seconds))
        return float(start - clock)

    @again
    def held(self, name: str) -> float:
        """Seconds for which the provider asked to wait; 0 when it did not."""
        with self.records.reading() as connection:
            until = connection.execute(sa.select(pace.c.held).where(pace.c.name == name)).scalar()
            clock = self.records.clock(connection)
            return max(0.0, _until(float(until or 0.0), clock, MAX_HOLD) - clock)

    @again
    def hold(self, name: str, seconds: float) -> bool:
        """The provider asks to wait: nobody starts a request before. Whether nobody was waiting yet."""
        with self.records.writing() as connection:
            clock, row = self._pace(connection, name)
            before = _until(row.held, clock, MAX_HOLD)
            held = max(before, clock + min(seconds, MAX_HOLD))
            connection.execute(pace.update().where(pace.c.name == name).values(held=held, next=max(row.next, held)))
        return bool(before <= clock)

    def _pace(self, connection: sa.Connection, name: str) -> tuple[float, Any]:
        self._upsert(connection, pace, [{"name": name, "next": 0.0, "held": 0.0}], ())
        row = connection.execute(sa.select(pace).where(pace.c.name == name).with_for_update()).one()
        return self.records.clock(connection), row

    def _upsert(
        self, connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]], changed: Sequence[str],
        first: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Insert; where the key is there already, set `changed`, and `first` where the first of them is not there yet."""
        if not rows:
            return
        if connection.dialect.name == "postgresql":
            from sqlalchemy.dialects.postgresql import insert
        else:
            from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
        statement: Any = insert(table)
        keys = list(table.primary_key.columns)
        if changed:
            values = {name: statement.excluded[name] for name in changed}
            values |= {
                name: sa.case((table.c[first[0]].is_(None), statement.excluded[name]), else_=table.c[name])
                for name in first
            }
            statement = statement.on_conflict_do_update(index_elements=keys, set_=values)
        else:
            statement = statement.on_conflict_do_nothing(index_elements=keys)
        connection.execute(statement, rows)


def _until(moment: float, clock: float, longest: float) -> float:
    """A moment in the ledger; the present when it is too far ahead: the clock it was taken from has gone back since."""
    return clock if moment - clock > longest else float(moment)


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]
