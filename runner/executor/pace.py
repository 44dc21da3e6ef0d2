"""How fast a model may be asked: requests at once, requests and tokens a minute over all processes, and money."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from runner.embedder import Embedder, money
from runner.errors import Permanent
from runner.executor.flow import Stopped
from runner.transform import Embedding
from runner.vectors import Vectors

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


class Pacer:
    """When the next request to a model may start, and whether it may be paid for. Safe for use from several threads."""

    def __init__(self, run: str, embed: Embedding, embedder: Embedder, kept: Vectors) -> None:
        self.run, self.embed, self.kept = run, embed, kept
        self.bounds, self.price = embedder.bounds(), embedder.price()
        self.gate = Gate(self.bounds.concurrency)
        self._under_way = 0  # tokens of requests that are not answered yet
        self._counted = 1.0  # the provider's tokens for one of ours, at most so far
        self._guard = threading.Lock()

    @property
    def counts(self) -> bool:
        """Whether anything depends on the tokens of a request."""
        most = (self.bounds.tokens, self.bounds.tokens_per_minute, self.embed.budget)
        return any(one is not None for one in most)

    @contextmanager
    def turn(self, tokens: int, stop: threading.Event) -> Iterator[None]:
        """Wait until a request may start, by the limits of the model over all processes; Stopped, or Permanent when it
        may not be paid for. After an answer: `over`, once it is recorded."""
        with self.gate.turn(stop):
            yield from self._turn(tokens, stop)

    def _turn(self, tokens: int, stop: threading.Event) -> Iterator[None]:
        share = self._share(tokens * self._counted)
        while True:
            if share:  # it starts at the moment that was given to it: those who wait do not start together
                pause(self.kept.wait_for(self.embed.model, share), stop)
            seconds = self.kept.held(self.embed.model)
            if not seconds:
                break
            pause(seconds, stop)
        if stop.is_set():
            raise Stopped
        self._spend(tokens)
        try:
            yield
        except BaseException:
            self.over(tokens)
            raise

    def over(self, tokens: int) -> None:
        """What a request cost is recorded by now: it is no longer under way."""
        with self._guard:
            self._under_way -= tokens

    def _share(self, tokens: float) -> float:
        """Seconds that one request takes of what is allowed a minute."""
        share = 60.0 / self.bounds.requests_per_minute if self.bounds.requests_per_minute else 0.0
        if self.bounds.tokens_per_minute:
            share = max(share, 60.0 * tokens / self.bounds.tokens_per_minute)
        return share * MARGIN

    def settle(self, tokens: int, counted: int | None) -> None:
        """The provider counts more tokens than we did: later requests wait for that, too, and it is reckoned with."""
        if counted is None or not tokens or counted <= tokens * self._counted:
            return
        late = self._share(counted) - self._share(tokens * self._counted)
        self._counted = counted / tokens
        if late > 0:
            self.kept.wait_for(self.embed.model, late)

    def _spend(self, tokens: int) -> None:
        """Permanent when the request would cost more than is left of the budget."""
        with self._guard:
            if self.embed.budget is not None and self.price is not None:
                spent = self.kept.used(self.run).usd or 0.0
                if spent + (self._under_way + tokens) * self._counted * self.price.usd / 1e6 > self.embed.budget:
                    reserved = (self._under_way * self._counted) * self.price.usd / 1e6
                    raise Permanent(
                        "The budget of the job is used up",
                        f"model {self.embed.model}: {money(spent)} USD are spent and {money(reserved)} under way, the next request "
                        f"costs about {money(tokens * self._counted * self.price.usd / 1e6)}, and budget.usd is "
                        f"{money(self.embed.budget)}",
                        "What was embedded is kept and costs nothing again. Undo the run (vecrun rollback JOB), raise budget.usd "
                        "in the job, and apply it",
                    )
            self._under_way += tokens


def pause(seconds: float, stop: threading.Event) -> None:
    """Wait, unless it is to stop: Stopped."""
    if seconds > 0 and stop.wait(seconds):
        raise Stopped
