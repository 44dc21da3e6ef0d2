"""Vectors for texts: kept ones first, the rest asked of the model, in requests it takes, at the pace it allows.

One `Service` a model and process. Each answer is kept in the ledger's database before anything is done with it
(`runner.vectors`), so nothing is paid for twice. A text that cannot be embedded is isolated by halving its request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner import crash
from runner.embedder import Embedder, Reply
from runner.errors import Permanent, RateLimited, Refused, TooLarge, Transient
from runner.executor.flow import MAX_DELAY, Stopped
from runner.executor.pace import Pacer, pause
from runner.settings import Limits
from runner.transform import Embedding
from runner.vectors import MAX_HOLD, Refusal, Used, Vectors, text_key
from runner.world import World

#: What comes of a text.
Made = NDArray[np.float32] | Refusal
#: Answers "slow down" in a row, without any other, after which it is given up.
MAX_HOLDS = 50
#: Seconds to wait that are written to the run's log.
LONG_HOLD = 5.0
#: A text every model takes: does it answer at all, or is it the texts?
CANARY = "vecrun"


@dataclass(frozen=True)
class Item:
    """A text on its way; `tokens` by our count, 0 where nobody needs it."""

    key: str
    text: str
    tokens: int


class Service:
    """One model, for one run, in this process. Safe for use from several threads."""

    def __init__(
        self, run: str, embed: Embedding, embedder: Embedder, kept: Vectors, limits: Limits, *, spend: bool = True,
        log: Callable[[str], None] = lambda _text: None,
    ) -> None:  # fmt: skip
        self.run, self.embed, self.embedder, self.kept, self.limits = run, embed, embedder, kept, limits
        self.spend, self.log = spend, log
        self._refused_in = run if spend else ""  # who only compares asks for nothing
        self.key, self.bounds = embed.identity.key, embedder.bounds()
        self.price = embedder.price()
        self.stop = threading.Event()
        self.pacer = Pacer(run, embed, embedder, kept)
        self._pool = ThreadPoolExecutor(self.bounds.concurrency, thread_name_prefix="embed")
        self._coming: dict[str, Future[Made]] = {}
        self._guard = threading.Lock()
        self._proven = False  # it has embedded something

    def vectors(self, texts: Sequence[str], stop: threading.Event) -> list[Made]:
        """What comes of each text, in order. Stopped when `stop` is set meanwhile; what is under way is kept all the same."""
        keys = [text_key(text) for text in texts]
        wanted = dict(zip(keys, texts, strict=True))
        made: dict[str, Made] = {
            key: Refusal("the text is empty", 1) for key, text in wanted.items() if not text.strip()
        }
        kept = self.kept.get(self.key, [key for key in wanted if key not in made], self._refused_in)
        made |= kept
        mine, others = self._claim([key for key in wanted if key not in made])
        try:
            answers = self._ask(mine, wanted, made)
        except BaseException as exc:  # whoever waits for one of these texts learns of it
            for key in mine:
                self._arrived(key, exc)
            raise
        for answer in answers:
            made |= _result(answer, stop)
        for key, coming in others.items():
            made[key] = _result(coming, stop)
        return [made[key] for key in keys]

    def _ask(self, mine: list[str], wanted: dict[str, str], made: dict[str, Made]) -> list[Future[dict[str, Made]]]:
        """Requests for the texts that were claimed; what is kept by now is added to `made`."""
        # what another thread finished between our look and our claim is kept by now
        late = self.kept.get(self.key, mine, self._refused_in)
        for key, item in late.items():
            self._arrived(key, item)
        made |= late
        if not self.spend and len(late) < len(mine) and self.price is not None and self.price.usd:
            raise Permanent(
                "The vectors of some texts are not kept any more",
                f"{len(mine) - len(late):,} texts of a batch would have to be paid for again, with model {self.embed.model}",
                "Compare counts: vecrun verify JOB --mode count. vectors.keep in vecrun.yaml says how long they are kept",
            )
        groups = list(self._groups([(key, wanted[key]) for key in mine if key not in late]))
        return [self._pool.submit(self._whole, group) for group in groups]

    def ask_query(self, texts: Sequence[str], stop: threading.Event) -> NDArray[np.float32]:
        """Vectors of search texts, shape (n, d); they are not kept."""
        rows = []
        for start in range(0, len(texts), self.bounds.items):
            part = list(texts[start : start + self.bounds.items])
            tokens = self._tokens(part)
            reply = self._patiently(part, tokens, stop, query=True)
            self._count({}, self._used(reply, part, 0), sum(tokens))
            rows.append(reply.vectors)
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
        most = min((one for one in (self.bounds.tokens, self.bounds.tokens_per_minute) if one), default=None)
        group, total = list[Item](), 0
        for (key, text), count in zip(texts, tokens, strict=True):
            over = most is not None and total + count > most
            if group and (over or len(group) == self.bounds.items):
                yield group
                group, total = [], 0
            group.append(Item(key, text, count))
            total += count
        if group:
            yield group

    def _tokens(self, texts: list[str]) -> list[int]:
        return self.embedder.count(texts) if self.pacer.counts else [0] * len(texts)

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
            try:
                with self.pacer.turn(sum(tokens), stop):
                    reply = self.embedder.embed(texts, "query" if query else "document")
            except RateLimited as exc:
                held += 1
                self.pacer.gate.slower()
                if held > MAX_HOLDS:
                    raise
                self._hold(max(exc.seconds or 0.0, delay), exc)  # some say 0, or a moment that is over
                delay = min(delay * 2, MAX_DELAY)
            except TooLarge:
                raise
            except Transient as exc:
                failed += 1
                self.pacer.gate.slower()
                if failed > (self.limits.retries if tries is None else tries):
                    raise
                if failed > 1:  # once is nothing; whoever waits wants to know for what
                    self.log(f"model {self.embed.model} does not answer, try {failed}, next in {delay:,.1f} s: {exc}")
                pause(delay, stop)
                delay = min(delay * 2, MAX_DELAY)
            else:
                self.pacer.gate.faster()
                self.pacer.settle(sum(tokens), reply.tokens)
                return self._checked(reply, len(texts))

    def _hold(self, seconds: float, exc: RateLimited) -> None:
        """All processes wait. RateLimited when that is too long for a run to wait."""
        if seconds > MAX_HOLD:
            asked = "days" if seconds >= 2 * 86_400 else "hours" if seconds >= 2 * 3_600 else "minutes"
            count = seconds / {"days": 86_400, "hours": 3_600, "minutes": 60}[asked]
            raise RateLimited.after(
                exc.seconds,
                f"The provider asks to wait for {count:,.0f} {asked}",
                f"model {self.embed.model}: {exc}. What was embedded is kept, nothing is lost",
                "Go on with vecrun resume when the provider answers again",
            ) from exc
        if self.kept.hold(self.embed.model, seconds) and seconds > LONG_HOLD:
            self.log(f"model {self.embed.model}: the provider asks to wait {seconds:,.0f} s")

    def _checked(self, reply: Reply, texts: int) -> Reply:
        shape = (texts, self.embed.identity.dimension)
        if reply.vectors.shape != shape:
            raise Permanent(
                "The model gives vectors of another shape",
                f"model {self.embed.model}: {reply.vectors.shape[-1]} numbers, the plan was made for {shape[1]}",
                "Give dimension in vecrun.yaml, and plan again",
            )
        return reply

    def _answers(self) -> bool:
        """Whether the model embeds anything at all. Permanent when it refuses even what every model takes."""
        try:
            with self.pacer.turn(1, self.stop):
                reply = self.embedder.embed([CANARY])
        except Transient:
            return False
        except Refused as exc:
            raise Permanent("The model refuses every text", f"model {self.embed.model}: {exc}", exc.hint) from exc
        self._proven = True
        self._count({}, self._used(reply, [CANARY], 0), 1)
        return True

    def _keep(self, group: list[Item], reply: Reply) -> dict[str, Made]:
        self._proven = True
        crash.point("embed", "answered")
        made = {item.key: reply.vectors[row] for row, item in enumerate(group)}
        used = self._used(reply, [item.text for item in group], len(group))
        self._count(made, used, sum(item.tokens for item in group))
        crash.point("embed", "kept")
        found: dict[str, Made] = dict(self.kept.get(self.key, list(made)))
        for key, item in found.items():
            self._arrived(key, item)
        return found

    def _count(self, made: dict[str, NDArray[np.float32]], used: Used, tokens: int) -> None:
        """Keep what came, and what it cost; then it is no longer under way."""
        try:
            self.kept.keep(self.run, self.key, made, used)
        finally:
            self.pacer.over(tokens)

    def _used(self, reply: Reply, asked: list[str], texts: int) -> Used:
        """One request: tokens by the provider's count, or ours where it does not say."""
        tokens = sum(self.embedder.count(asked)) if reply.tokens is None else reply.tokens
        return Used(1, texts, tokens, 0, tokens * self.price.usd / 1e6 if self.price is not None else None)

    def _refused(self, item: Item, error: str) -> dict[str, Made]:
        refusal = Refusal(error, self.kept.refuse(self.run, self.key, item.key, error))
        self._arrived(item.key, refusal)
        return {item.key: refusal}


class Services:
    """The models of one run, opened on use and closed together."""

    def __init__(
        self, run: str, world: World, kept: Vectors, limits: Limits, *, spend: bool = True,
        log: Callable[[str], None] = lambda _text: None,
    ) -> None:  # fmt: skip
        self.run, self.world, self.kept, self.limits, self.spend, self.log = run, world, kept, limits, spend, log
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
                self._open[embed.model] = Service(
                    self.run, embed, embedder, self.kept, self.limits, spend=self.spend, log=self.log
                )  # fmt: skip
            return self._open[embed.model]

    def close(self) -> None:
        with self._guard:
            for service in self._open.values():
                service.close()
            self._open.clear()


def _result(coming: Future[Any], stop: threading.Event) -> Any:
    while True:
        try:
            return coming.result(timeout=0.2)
        except NotYet:
            if coming.done():
                raise
            if stop.is_set():
                raise Stopped from None
