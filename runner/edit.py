"""A change of the metadata and the tags of a document, and the way back. Pure: the same input always gives the same.

Points and rows are changed by the same value, so that both say the same afterwards.
"""

from __future__ import annotations

import copy
from typing import Any

from pydantic import Field, model_validator

from runner.points import Model, json_dumps

#: What a path leads to when nothing is there.
_NOTHING = object()


class Edit(Model):
    """What is done to metadata (`merge`, `set`, `remove`) and to tags. Paths are dotted; a key that holds a dot itself is
    found, too. Tags are a set: a list without repetition, whose order is kept."""

    merge: dict[str, Any] = Field(default_factory=dict)  # into what is there, level by level
    set: dict[str, Any] = Field(default_factory=dict)  # path -> the value that replaces what is there
    remove: tuple[str, ...] = ()  # paths
    add_tags: tuple[str, ...] = ()
    remove_tags: tuple[str, ...] = ()

    @property
    def on_metadata(self) -> bool:
        """Whether metadata is changed at all."""
        return bool(self.merge or self.set or self.remove)

    @property
    def on_tags(self) -> bool:
        """Whether tags are changed at all."""
        return bool(self.add_tags or self.remove_tags)

    @property
    def paths(self) -> list[tuple[str, ...]]:
        """The keys that are written or removed, from the root of the metadata."""
        return [*_leaves(self.merge, ()), *(tuple(path.split(".")) for path in (*self.set, *self.remove))]

    @model_validator(mode="after")
    def _consistent(self) -> Edit:
        """What is said twice, or of a thing and of a part of it, would depend on an order that nobody sees."""
        for number, one in enumerate(self.paths):
            for other in (*self.paths[:number], *self.paths[number + 1 :]):
                if other[: len(one)] == one:
                    raise ValueError(f"{'.'.join(one)} and {'.'.join(other)} are changed both: name each place once")
        return self

    def metadata(self, present: dict[str, Any]) -> dict[str, Any]:
        """The metadata afterwards; again, it changes nothing. ValueError where a path leads through something that holds
        no keys."""
        after = copy.deepcopy(present)
        _merge(after, self.merge)
        for path, value in self.set.items():
            _put(after, (path,) if path in after else tuple(path.split(".")), copy.deepcopy(value))
        for path in self.remove:
            after.pop(path, None)
            _remove(after, tuple(path.split(".")))
        return after

    def metadata_back(self, before: dict[str, Any], present: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """(the metadata with everything this edit did undone, whether somebody changed one of these places since: such a
        place is left as it is). `before` is as it was before the edit."""
        done, back = self.metadata(before), copy.deepcopy(present)
        if json_dumps(present) == json_dumps(done):
            return copy.deepcopy(before), False
        return back, _back(before, done, back)

    def tags(self, present: list[Any]) -> list[Any]:
        """The tags afterwards."""
        kept = [tag for tag in present if tag not in self.remove_tags]
        return kept + [tag for tag in dict.fromkeys(self.add_tags) if tag not in kept]

    def tags_back(self, before: list[Any], present: list[Any]) -> list[Any]:
        """The tags with what this edit did undone; tags that somebody added or removed since stay so."""
        done = self.tags(before)
        if present == done:
            return list(before)
        added = [tag for tag in done if tag not in before]
        gone = [tag for tag in before if tag not in done]
        kept = [tag for tag in present if tag not in added]
        return kept + [tag for tag in gone if tag not in kept]


def _leaves(value: dict[str, Any], path: tuple[str, ...]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for key, item in value.items():
        found += _leaves(item, (*path, key)) if isinstance(item, dict) and item else [(*path, key)]
    return found


def _back(before: dict[str, Any], done: dict[str, Any], now: dict[str, Any]) -> bool:
    """Undo in `now` what differs between the other two, where it still is as it was done. Whether something was not."""
    moved = False
    for key in dict.fromkeys((*before, *done)):
        old, new, held = (item.get(key, _NOTHING) for item in (before, done, now))
        if _same(old, new) or _same(held, old):
            continue
        if _same(held, new):
            if old is _NOTHING:
                del now[key]
            else:
                now[key] = copy.deepcopy(old)
        elif isinstance(new, dict) and isinstance(held, dict) and (isinstance(old, dict) or old is _NOTHING):
            moved = _back(old if isinstance(old, dict) else {}, new, held) or moved
            if old is _NOTHING and not held:  # the edit made this level
                del now[key]
        else:
            moved = True
    return moved


def _merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        there = into.get(key)
        if isinstance(value, dict) and isinstance(there, dict):
            _merge(there, value)
        else:
            into[key] = copy.deepcopy(value)


def _put(item: dict[str, Any], way: tuple[str, ...], value: Any) -> None:
    for depth, key in enumerate(way[:-1]):
        inner = item.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ValueError(
                f"{'.'.join(way)}: {'.'.join(way[: depth + 1])} is {type(inner).__name__}, and holds no keys"
            )
        item = inner
    item[way[-1]] = value


def _remove(item: dict[str, Any], way: tuple[str, ...]) -> None:
    for key in way[:-1]:
        inner = item.get(key)
        if not isinstance(inner, dict):
            return
        item = inner
    item.pop(way[-1], None)


def _same(left: Any, right: Any) -> bool:
    if left is _NOTHING or right is _NOTHING:
        return left is right
    return json_dumps(left) == json_dumps(right)
