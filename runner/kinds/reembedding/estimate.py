"""How much there is to embed, from a sample of the texts, or from all of them."""

from __future__ import annotations

from runner.clauses.cost import Work
from runner.clauses.texts import Choice, texts_of
from runner.embedder import Embedder
from runner.plan import Place
from runner.points import KeyRange
from runner.transform import Embedding
from runner.vectors import Failure, Vectors, text_key
from runner.world import World

#: Points that are read from each of so many places of the key order.
PLACES, POINTS = 8, 250


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
