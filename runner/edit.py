"""A change of the metadata and the tags of a document, and the way back. Pure: the same input always gives the same.

Points and rows are changed by the same value, so that both say the same afterwards.
"""

from __future__ import annotations

import copy
from typing import Any

from pydantic import Field

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

    def metadata(self, present: dict[str, Any]) -> dict[str, Any]:
        """The metadata afterwards. ValueError where a path leads through something that holds no keys."""
        after = copy.deepcopy(present)
        _merge(after, self.merge, ())
        for path, value in self.set.items():
            _put(after, _way(after, path), copy.deepcopy(value))
        for path in self.remove:
            _remove(after, _way(after, path))
        return after

    def metadata_back(self, before: dict[str, Any], present: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """(the metadata with everything this edit did undone, whether somebody changed one of these places since: such a
        place is left as it is). `before` is as it was before the edit."""
        done, back, moved = self.metadata(before), copy.deepcopy(present), False
        if json_dumps(present) == json_dumps(done):
            return copy.deepcopy(before), False
        ways = [_way(done, ".".join(path)) if path not in _leaf_set(self.merge) else path for path in self.paths]
        for way in ways:
            old, new, now = (_get(item, way) for item in (before, done, present))
            if _same(old, new) or _same(now, old):
                continue
            if not _same(now, new):
                moved = True
            elif old is _NOTHING:
                _remove(back, way)
                _prune(back, way, before)
            else:
                _put(back, way, copy.deepcopy(old))
        return back, moved

    def tags(self, present: list[Any]) -> list[Any]:
        """The tags afterwards."""
        kept = [tag for tag in present if tag not in self.remove_tags]
        return kept + [tag for tag in self.add_tags if tag not in kept]

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


def _leaf_set(value: dict[str, Any]) -> set[tuple[str, ...]]:
    return set(_leaves(value, ()))


def _merge(into: dict[str, Any], more: dict[str, Any], path: tuple[str, ...]) -> None:
    for key, value in more.items():
        there = into.get(key)
        if isinstance(value, dict) and isinstance(there, dict):
            _merge(there, value, (*path, key))
        else:
            into[key] = copy.deepcopy(value)


def _way(item: dict[str, Any], path: str) -> tuple[str, ...]:
    """The keys a path stands for: the whole of it where there is such a key."""
    return (path,) if path in item else tuple(path.split("."))


def _get(item: Any, way: tuple[str, ...]) -> Any:
    for key in way:
        if not isinstance(item, dict) or key not in item:
            return _NOTHING
        item = item[key]
    return item


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


def _prune(item: dict[str, Any], way: tuple[str, ...], before: dict[str, Any]) -> None:
    """Levels that the edit made are removed with the last thing in them."""
    for depth in range(len(way) - 1, 0, -1):
        if _get(item, way[:depth]) == {} and _get(before, way[:depth]) is _NOTHING:
            _remove(item, way[:depth])


def _same(left: Any, right: Any) -> bool:
    if left is _NOTHING or right is _NOTHING:
        return left is right
    return json_dumps(left) == json_dumps(right)
