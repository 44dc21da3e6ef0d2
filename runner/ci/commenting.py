"""`vecrun ci comment`: one comment for each workspace and environment of a change, written once and then updated in place."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from runner.ci.bundle import Bundle
from runner.ci.document import Marker, dated, document, marker, parse_marker
from runner.ci.hosts import Comment, Host, number_of
from runner.ci.texts import length
from runner.errors import PlanRefused, RateLimited, Transient
from runner.plan import Plan

#: How often a comment is tried, and seconds between; a host that asks for more gets more, up to LONGEST.
TRIES, PAUSE, LONGEST = 4, 1.0, 120.0
#: Characters that are left free for the result.
ROOM = 5_000


@dataclass(frozen=True)
class Posted:
    """Where a document stands now. `action`: created, updated, unchanged, or none where there is nothing to show."""

    pr: int
    action: str
    comment: int | None = None
    url: str = ""


def show(host: Host, pr: int | None, bundle: Bundle, plans: Mapping[str, Plan], folder: str) -> Posted:
    """Show the plans of a change on its pull request. PlanRefused when the request has another head by now: the run for that
    one shows its own plans, and they must not be overwritten. Where no job is touched, nothing is said, unless it was before."""
    number = number_of(host, pr, bundle.head)
    refuse_other_head(host, number, bundle.head)
    found = find(host, number, place_of(bundle))
    if found is None and not (bundle.jobs or bundle.removed):
        return Posted(number, "none")
    said = found[1] if found is not None else None
    same = said is not None and said.plans == bundle.identity and said.head == bundle.head
    since = said.since if same and said is not None else ""
    text = document(bundle, plans, folder, min(host.limit - ROOM, 400_000))
    return post(host, number, dated(text, since or datetime.now(UTC).isoformat()))


def refuse_other_head(host: Host, pr: int, head: str) -> None:
    """PlanRefused unless `head` is the newest commit of the pull request."""
    if (newest := host.head(pr)) != head:
        raise PlanRefused(
            "The pull request has another head", f"{host.name}: {newest[:12]}; planned: {head[:12]}",
            "Plan its head: actions/checkout: ref: ${{ github.event.pull_request.head.sha }}. "
            "After a new push the pipeline of that push plans again",
        )  # fmt: skip


def place_of(bundle: Bundle) -> Marker:
    """By what the comment of a bundle is found."""
    found = parse_marker(marker(bundle))
    assert found is not None
    return found


def find(host: Host, pr: int, place: Marker) -> tuple[Comment, Marker] | None:
    """Our comment for this workspace and environment, and what it says; the oldest if there are several."""
    for comment in host.comments(pr):
        said = parse_marker(comment.text)
        if said is not None and said.same_place(place):
            return comment, said
    return None


def post(host: Host, pr: int, text: str) -> Posted:
    """Create the comment, or update the one that is there. When a host does not answer, it is looked for again before it is
    written again: the comment may have been made all the same."""
    place = parse_marker(text)
    assert place is not None
    assert length(text) <= host.limit
    for attempt in range(TRIES):
        try:
            return _post(host, pr, text, place)
        except Transient as exc:
            if attempt == TRIES - 1:
                raise
            asked = exc.seconds if isinstance(exc, RateLimited) else None
            time.sleep(min(asked or PAUSE * 2**attempt, LONGEST))
    raise AssertionError("the last try returns or raises")


def _post(host: Host, pr: int, text: str, place: Marker) -> Posted:
    found = find(host, pr, place)
    if found is None:
        made = host.create(pr, text)
        return Posted(pr, "created", made.id, made.url)
    comment, _ = found
    if _same(comment.text, text):
        return Posted(pr, "unchanged", comment.id, comment.url)
    host.update(comment, text)
    return Posted(pr, "updated", comment.id, comment.url)


def _same(one: str, other: str) -> bool:
    """Hosts trim texts, and may end lines in their own way."""
    return one.replace("\r\n", "\n").strip() == other.replace("\r\n", "\n").strip()
