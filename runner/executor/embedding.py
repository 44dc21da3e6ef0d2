"""Vectors for texts: kept ones first, the rest asked of the model, in requests it takes, at the pace it allows.

One `Service` a model and process. Each answer is kept in the ledger's database before anything is done with it
(`runner.vectors`), so nothing is paid for twice. A text that cannot be embedded is isolated by halving its request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner import crash
from runner.embedder import Embedder, Reply
from runner.errors import Permanent, RateLimited, Refused, TooLarge, Transient
from runner.executor.flow import MAX_DELAY, Stopped
from runner.settings import Limits
from runner.transform import Embedding
from runner.vectors import Refusal, Used, Vectors, text_key
from runner.world import World

#: What comes of a text.
Made = NDArray[np.float32] | Refusal
#: Answers "slow down" in a row, without any other, after which it is given up.
MAX_HOLDS = 50
#: A text every model takes: does it answer at all, or is it the texts?
CANARY = "vecrun"
#: The provider's minute need not begin with ours.
MARGIN = 1.02


class Gate:
    """How many requests are under way: one until the first answer, then more with every answer, half when it gets slow."""

    def __init__(self, most: int) -> None:
        self.most, self.size, self.busy, self._steep = most, 1.0, 0, True
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, stop: threading.Event) -> Iterator[None]:
        """Wait for a place. Stopped."""
        with self._changed:
            while self.busy >= int(self.size):
                if stop.is_set():
                    raise Stopped
                self._changed.wait(0.2)
            self.busy += 1
        try:
            yield
        finally:
            with self._changed:
                self.busy -= 1
                self._changed.notify_all()

    def faster(self) -> None:
        """It answered."""
        with self._changed:
            self.size = min(float(self.most), self.size * 2 if self._steep else self.size + 1 / self.size)
            self._changed.notify_all()

    def slower(self) -> None:
        """It asked to slow down, or did not answer."""
        with self._changed:
            self.size, self._steep = max(1.0, self.size / 2), False


@dataclass(frozen=True)
class Item:
    """A text on its way; `tokens` by our count, 0 where nobody needs it."""

    key: str
    text: str
    tokens: int


class Service:
    """One model, for one run, in this process. Safe for use from several threads."""

    def __init__(self, run: str, embed: Embedding, embedder: Embedder, kept: Vectors, limits: Limits) -> None:
        self.run, self.embed, self.embedder, self.kept, self.limits = run, embed, embedder, kept, limits
        self.key, self.bounds = embed.identity.key, embedder.bounds()
        self.price = embedder.price()
        self.stop = threading.Event()
        self.gate = Gate(self.bounds.concurrency)
        self._pool = ThreadPoolExecutor(self.bounds.concurrency, thread_name_prefix="embed")
        self._coming: dict[str, Future[Made]] = {}
        self._guard = threading.Lock()
        self._proven = False  # it has embedded something
        self._counted = 1.0  # the provider's tokens for one of ours, at most so far

    def vectors(self, texts: Sequence[str], stop: threading.Event, *, count: bool = False) -> list[Made]:
        """What comes of each text, in order. `count`: add to the run's usage what was kept from before. Stopped when
        `stop` is set meanwhile; what is under way is kept all the same."""
        keys = [text_key(text) for text in texts]
        wanted = dict(zip(keys, texts, strict=True))
        made: dict[str, Made] = {
            key: Refusal("the text is empty", 1) for key, text in wanted.items() if not text.strip()
        }
        kept = self.kept.get(self.key, [key for key in wanted if key not in made])
        made |= kept
        if count and (known := sum(not isinstance(item, Refusal) for item in kept.values())):
            self.kept.count_known(self.run, self.key, known)
        mine, others = self._claim([key for key in wanted if key not in made])
        # what another thread finished between our look and our claim is kept by now
        late = self.kept.get(self.key, mine)
        for key, item in late.items():
            self._arrived(key, item)
        made |= late
        groups = self._groups([(key, wanted[key]) for key in mine if key not in late])
        for answer in [self._pool.submit(self._whole, group) for group in groups]:
            made |= _result(answer, stop)
        for key, coming in others.items():
            made[key] = _result(coming, stop)
        return [made[key] for key in keys]

    def ask_query(self, texts: Sequence[str], stop: threading.Event) -> NDArray[np.float32]:
        """Vectors of search texts, shape (n, d); they are not kept."""
        rows = []
        for start in range(0, len(texts), self.bounds.items):
            part = list(texts[start : start + self.bounds.items])
            rows.append(self._patiently(part, self._tokens(part), stop, query=True).vectors)
        return np.concatenate(rows)

    def close(self) -> None:
        """Wait for what is under way, so that it is kept; start nothing more."""
        self.stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    # -- who asks for what --------------------------------------------------------------------------------------------

    def _claim(self, keys: list[str]) -> tuple[list[str], dict[str, Future[Made]]]:
        """(texts that are ours to ask for, those that another thread is asking for)."""
        mine, others = [], {}
        with self._guard:
            for key in keys:
                if key in self._coming:
                    others[key] = self._coming[key]
                else:
                    self._coming[key] = Future()
                    mine.append(key)
        return mine, others

    def _arrived(self, key: str, item: Made | BaseException) -> None:
        """Tell those who wait for it. The first answer counts."""
        with self._guard:
            coming = self._coming.pop(key, None)
        if coming is None:
            return
        if isinstance(item, BaseException):
            coming.set_exception(item)
        else:
            coming.set_result(item)

    def _groups(self, texts: list[tuple[str, str]]) -> Iterator[list[Item]]:
        """Requests that the model takes: so many texts, so many tokens."""
        tokens = self._tokens([text for _key, text in texts])
        group, total = list[Item](), 0
        for (key, text), count in zip(texts, tokens, strict=True):
            over = self.bounds.tokens is not None and total + count > self.bounds.tokens
            if group and (over or len(group) == self.bounds.items):
                yield group
                group, total = [], 0
            group.append(Item(key, text, count))
            total += count
        if group:
            yield group

    def _tokens(self, texts: list[str]) -> list[int]:
        if self.bounds.tokens is None and self.bounds.tokens_per_minute is None:
            return [0] * len(texts)
        return self.embedder.count(texts)

    # -- asking -------------------------------------------------------------------------------------------------------

    def _whole(self, group: list[Item]) -> dict[str, Made]:
        """`_answer`, and whoever waits for one of these texts learns of an error, too."""
        try:
            return self._answer(group)
        except BaseException as exc:
            for item in group:
                self._arrived(item.key, exc)
            raise

    def _answer(self, group: list[Item], tries: int | None = None) -> dict[str, Made]:
        """What comes of the texts of one request; halved until a text that spoils it stands alone."""
        try:
            reply = self._patiently([item.text for item in group], [item.tokens for item in group], self.stop, tries)
        except (Refused, TooLarge) as exc:
            if len(group) == 1:
                if not self._proven:
                    self._answers()  # raises when it is not the text
                return self._refused(group[0], str(exc))
        except RateLimited:
            raise
        except Transient as exc:
            if not self._answers():  # it is not the texts
                raise
            tries = 1
            if len(group) == 1:
                return self._refused(group[0], str(exc))
        else:
            return self._keep(group, reply)
        middle = len(group) // 2
        return self._answer(group[:middle], tries) | self._answer(group[middle:], tries)

    def _patiently(
        self, texts: list[str], tokens: list[int], stop: threading.Event, tries: int | None = None, *, query: bool = False
    ) -> Reply:  # fmt: skip
        """One request, again after transient errors, and as long as the provider asks to wait."""
        delay, failed, held = self.limits.retry_delay, 0, 0
        while True:
            self._turn(sum(tokens), stop)
            try:
                with self.gate.turn(stop):
                    reply = self.embedder.embed(texts, "query" if query else "document")
            except RateLimited as exc:
                held += 1
                self.gate.slower()
                self.kept.hold(self.embed.model, exc.seconds if exc.seconds is not None else delay)
                if held > MAX_HOLDS:
                    raise
                delay = min(delay * 2, MAX_DELAY)
            except TooLarge:
                raise
            except Transient:
                failed += 1
                self.gate.slower()
                if failed > (self.limits.retries if tries is None else tries):
                    raise
                _pause(delay, stop)
                delay = min(delay * 2, MAX_DELAY)
            else:
                self.gate.faster()
                return self._checked(reply, len(texts))

    def _checked(self, reply: Reply, texts: int) -> Reply:
        shape = (texts, self.embed.identity.dimension)
        if reply.vectors.shape != shape:
            raise Permanent(
                "The model gives vectors of another shape",
                f"model {self.embed.model}: {reply.vectors.shape[-1]} numbers, the plan was made for {shape[1]}",
                "Give dimension in vecrun.yaml, and plan again",
            )
        return reply

    def _turn(self, tokens: int, stop: threading.Event) -> None:
        """Wait until a request may start, by the limits of the model over all processes."""
        share = 0.0
        if self.bounds.requests_per_minute:
            share = 60.0 / self.bounds.requests_per_minute
        if self.bounds.tokens_per_minute:
            share = max(share, 60.0 * tokens * self._counted / self.bounds.tokens_per_minute)
        self._refuse_over_budget(tokens)
        if share:
            _pause(self.kept.wait_for(self.embed.model, share * MARGIN), stop)
        while seconds := self.kept.held(self.embed.model):
            _pause(seconds, stop)
        if stop.is_set():
            raise Stopped

    def _refuse_over_budget(self, tokens: int) -> None:
        if self.embed.budget is None or self.price is None:
            return
        spent = self.kept.used(self.run).usd or 0.0
        if spent + tokens * self.price.usd / 1e6 > self.embed.budget:
            raise Permanent(
                "The budget of the job is used up",
                f"{spent:,.2f} USD were spent on model {self.embed.model}, and budget.usd is {self.embed.budget:,.2f}",
                "What was embedded is kept. Raise budget.usd in the job, roll this run back and apply again: kept texts cost nothing",
            )

    def _answers(self) -> bool:
        """Whether the model embeds anything at all. Permanent when it refuses even what every model takes."""
        self._turn(1, self.stop)
        try:
            with self.gate.turn(self.stop):
                reply = self.embedder.embed([CANARY])
        except Transient:
            return False
        except Refused as exc:
            raise Permanent("The model refuses every text", f"model {self.embed.model}: {exc}", exc.hint) from exc
        self._proven = True
        self.kept.keep(self.run, self.key, {}, self._used(reply, 1, 0, 0))
        return True

    def _keep(self, group: list[Item], reply: Reply) -> dict[str, Made]:
        self._proven = True
        crash.point("embed", "answered")
        made = {item.key: reply.vectors[row] for row, item in enumerate(group)}
        texts = [item.text for item in group]
        counted = sum(item.tokens for item in group)
        if reply.tokens is not None and counted:
            self._counted = max(self._counted, reply.tokens / counted)
        tokens = sum(self.embedder.count(texts)) if reply.tokens is None else reply.tokens
        self.kept.keep(self.run, self.key, made, self._used(reply, 1, len(group), tokens))
        crash.point("embed", "kept")
        found: dict[str, Made] = dict(self.kept.get(self.key, list(made)))
        for key, item in found.items():
            self._arrived(key, item)
        return found

    def _used(self, reply: Reply, requests: int, texts: int, tokens: int) -> Used:
        tokens = tokens or reply.tokens or 0
        return Used(requests, texts, tokens, 0, tokens * self.price.usd / 1e6 if self.price is not None else None)

    def _refused(self, item: Item, error: str) -> dict[str, Made]:
        refusal = Refusal(error, self.kept.refuse(self.key, item.key, error))
        self._arrived(item.key, refusal)
        return {item.key: refusal}


class Services:
    """The models of one run, opened on use and closed together."""

    def __init__(self, run: str, world: World, kept: Vectors, limits: Limits) -> None:
        self.run, self.world, self.kept, self.limits = run, world, kept, limits
        self._open: dict[str, Service] = {}
        self._guard = threading.Lock()

    def of(self, embed: Embedding) -> Service:
        """The service of a planned embedding. Permanent when the model is not the planned one any more."""
        with self._guard:
            if embed.model not in self._open:
                embedder = self.world.embedder(embed.model)
                found = embedder.identity()
                if found.key != embed.identity.key:
                    raise Permanent(
                        "The model is not the one that was planned",
                        f"model {embed.model} is {found.version} {found.digest[:12]} now, the plan was made for "
                        f"{embed.identity.version} {embed.identity.digest[:12]}",
                        "Put it back as it was, or plan again",
                    )
                self._open[embed.model] = Service(self.run, embed, embedder, self.kept, self.limits)
            return self._open[embed.model]

    def close(self) -> None:
        with self._guard:
            for service in self._open.values():
                service.close()
            self._open.clear()


def _pause(seconds: float, stop: threading.Event) -> None:
    if seconds > 0 and stop.wait(seconds):
        raise Stopped


def _result(coming: Future[Any], stop: threading.Event) -> Any:
    while True:
        try:
            return coming.result(timeout=0.2)
        except NotYet:
            if coming.done():
                raise
            if stop.is_set():
                raise Stopped from None


def rate(embedder: Embedder, texts: Sequence[str]) -> tuple[float, Reply]:
    """(texts a second, the reply) of one request: what a plan says about the time."""
    began = time.monotonic()
    reply = embedder.embed(texts)
    return len(texts) / max(time.monotonic() - began, 1e-6), reply
