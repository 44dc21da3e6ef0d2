"""What changing the model costs and takes, from a sample of the texts, the model's tokenizer, price and limits."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from runner.clauses.texts import Choice, texts_of
from runner.embedder import Embedder
from runner.errors import Refused, Transient
from runner.plan import Place
from runner.points import KeyRange, PointBatch
from runner.transform import Embedding
from runner.vectors import Failure, Vectors, text_key
from runner.world import World

#: Points that are read from each of so many places of the key order.
PLACES, POINTS = 8, 250
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


def sample(
    world: World, kept: Vectors, place: Place, embed: Embedding, embedder: Embedder, choice: Choice | None = None
) -> Work:
    """Look at some of the texts; with a `choice` at all of them, and count those it takes."""
    whole = choice is not None
    store = world.store(place.connection)
    work = Work(store.count(place.collection), exact=whole)
    small = work.points <= PLACES * POINTS
    ranges = [KeyRange()] if small or whole else store.cut(place.collection, PLACES)
    schema = store.inspect(place.collection)
    if whole and schema is not None and schema.partitions is not None:
        ranges = store.cut(place.collection, 1)
    limit, size = embedder.bounds().text_tokens, 0
    wanted = known = tokens = characters = 0
    for keys in ranges:
        left = work.points if small or whole else POINTS
        for batch in store.scan(place.collection, keys, None, 1000 if whole else min(POINTS, max(left, 1))):
            found = texts_of(world, embed, batch)
            rows = choice.rows(batch, found) if choice is not None else range(len(batch))
            texts = [text for row in rows if isinstance(text := found[row], str) and text.strip()]
            for row in rows:
                one = found[row]
                if isinstance(one, Failure):
                    work.failing[one.error] = work.failing.get(one.error, 0) + 1
                elif not one.strip():
                    work.failing["the text is empty"] = work.failing.get("the text is empty", 0) + 1
            named = [text_key(text) for text in texts]
            before = kept.known(embed.identity.key, named)
            refused = sum(before.get(key) is False for key in named)
            if refused:
                why = "the provider refused it before (vecrun retry-failed asks again)"
                work.failing[why] = work.failing.get(why, 0) + refused
            known += sum(before.get(key, False) for key in named)
            unknown = list({key: text for key, text in zip(named, texts, strict=True) if key not in before}.values())
            texts = [text for key, text in zip(named, texts, strict=True) if before.get(key) is not False]
            counts = embedder.count(unknown) if unknown else []
            work.too_long += sum(limit is not None and count > limit for count in counts)
            tokens += sum(counts)
            characters += sum(map(len, texts))
            wanted += len(texts)
            work.first = work.first if work.first is not None else batch
            work.sampled += len(batch)
            size += sum(len(text) for text in batch.payloads.json)
            left -= len(batch)
            if left <= 0:
                break
    share = work.points / work.sampled if work.sampled else 0.0
    work.texts = wanted if whole else round(wanted * share)
    work.known = known if whole else round(known * share)
    work.tokens = tokens if whole else round(tokens * share)
    work.characters = round(characters / wanted) if wanted else 0
    work.point_bytes = size / work.sampled if work.sampled else 0.0
    return work


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
