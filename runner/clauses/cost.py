"""What embedding costs and takes, from counted texts, the model's tokenizer, price and limits; and what is too much."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from runner.clauses.spec import Budget
from runner.embedder import Embedder, money
from runner.errors import Refused, Transient
from runner.points import PointBatch
from runner.settings import duration_seconds
from runner.store import Problem
from runner.world import World

#: Codes of findings.
COST = "VC101"
TIME = "VC102"
UNHELD = "VC103"
NO_PRICE = "VI110"
#: Texts of the probe request that measures the model's speed.
PROBE_TEXTS = 16
_WORDS = "the model is asked how fast it answers with a text that nobody needs and that is as long as yours are "


@dataclass
class Work:
    """What there is to embed. `points` of the collection; `texts` of them that are to be embedded, and their tokens."""

    points: int
    texts: int = 0
    known: int = 0  # of these, texts whose vectors are kept from before: nobody is asked for them
    tokens: int = 0  # of the others
    exact: bool = False  # every text was looked at
    sampled: int = 0
    failing: dict[str, int] = field(default_factory=dict)  # why a text cannot be embedded -> how many of the sample
    too_long: int = 0  # texts of the sample beyond what the model takes
    first: PointBatch | None = None  # some of the points
    point_bytes: float = 0.0
    characters: int = 0  # of an average text


@dataclass(frozen=True)
class Cost:
    """Tokens, USD (None: no price is known), seconds (None: nothing was measured), and how each is known."""

    tokens: int
    usd: float | None
    seconds: float | None
    counting: str
    price: str
    speed: str


def cost(work: Work, embedder: Embedder) -> Cost:
    """What embedding will cost. Asks the model once, for texts of the same length that are not the user's."""
    price = embedder.price()
    usd = work.tokens * price.usd / 1e6 if price is not None else None
    seconds, speed = _seconds(work, embedder)
    source = (
        price.source if price is not None else f"no price of {embedder.provider} is known; give price in vecrun.yaml"
    )
    return Cost(work.tokens, usd, seconds, embedder.counting, source, speed)


def _seconds(work: Work, embedder: Embedder) -> tuple[float | None, str]:
    bounds, waits = embedder.bounds(), list[tuple[float, str]]()
    asked = work.texts - work.known
    if asked <= 0:
        return 0.0, ""
    texts = min(PROBE_TEXTS, bounds.items)
    text = (_WORDS * (work.characters // len(_WORDS) + 1))[: max(work.characters, 10)]
    began = time.monotonic()
    try:
        embedder.embed([f"{number} {text}" for number in range(texts)])
    except (Transient, Refused) as exc:
        return None, f"the probe was not answered: {exc}"
    rate = texts / max(time.monotonic() - began, 1e-6) * bounds.concurrency
    waits.append((asked / rate, f"{rate:,.0f} texts a second, as a probe measured just now"))
    if bounds.requests_per_minute:
        waits.append(
            (
                60 * asked / bounds.items / bounds.requests_per_minute,
                f"{bounds.requests_per_minute:,} requests a minute",
            )
        )
    if bounds.tokens_per_minute:
        waits.append((60 * work.tokens / bounds.tokens_per_minute, f"{bounds.tokens_per_minute:,} tokens a minute"))
    return max(waits)


def cost_problems(budget: Budget, world: World, cost: Cost) -> list[Problem]:
    """What embedding costs above what is allowed, or that nobody can say."""
    policies, found = world.settings.workspace.policies, list[Problem]()
    most = min((value for value in (budget.usd, policies.usd) if value is not None), default=None)
    if cost.usd is None and cost.tokens and most is not None:
        message = f"at most {money(most)} USD are allowed, and that cannot be held: {cost.price}"
        found.append(Problem(UNHELD, f"about {cost.tokens:,} tokens; {message}"))
    elif cost.usd is None and cost.tokens:
        found.append(Problem(NO_PRICE, f"about {cost.tokens:,} tokens; {cost.price}"))
    if most is not None and cost.usd is not None and cost.usd > most:
        found.append(Problem(COST, f"embedding costs about {money(cost.usd)} USD; at most {money(most)} is allowed"))
    times = [duration_seconds(value) for value in (budget.time, policies.time) if value is not None]
    if times and cost.seconds is not None and cost.seconds > min(times):
        allowed = f"{min(times):,} s" if min(times) < 120 else f"{min(times) / 60:,.0f} minutes"
        found.append(Problem(TIME, f"embedding takes longer than the {allowed} that are allowed"))
    return found
