"""Text of a plan as markup: escaped, secrets hidden, and what differs, names a place or can be typed set apart."""

from __future__ import annotations

import difflib
import html
import json
import re
from typing import Any

from markupsafe import Markup, escape

from runner.errors import redact
from runner.plan import Plan, reversed_steps
from runner.plan.step import Place

#: Control characters, and those that no reader sees or that turn the direction of a line around.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
_WORDS = re.compile(r"[\w.-]+|\s+|.", re.DOTALL)
#: Two texts with less in common than this share are not compared word by word, nor are longer ones than this.
_ALIKE, _LONG = 0.4, 400


def visible(text: str) -> str:
    """`text` without secrets, each character that could mislead a reader as \\u202e and the like."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", redact(text))


def changes(before: str, after: str) -> tuple[Markup, Markup]:
    """Both texts, with what goes marked in the first and what comes in the second."""
    old, new = _WORDS.findall(visible(before)), _WORDS.findall(visible(after))
    alike = difflib.SequenceMatcher(None, old, new, autojunk=False) if max(len(old), len(new)) <= _LONG else None
    if not old or not new or old == new or alike is None or alike.ratio() < _ALIKE:
        return escape("".join(old)), escape("".join(new))
    left, right = Markup(), Markup()
    for tag, start, end, begin, stop in alike.get_opcodes():
        gone, come = "".join(old[start:end]), "".join(new[begin:stop])
        left += escape(gone) if tag == "equal" or not gone else Markup("<del>{}</del>").format(gone)
        right += escape(come) if tag == "equal" or not come else Markup("<ins>{}</ins>").format(come)
    return left, right


def document(plan: Plan) -> Markup:
    """The plan as it is in its file. Secrets go before their quotes are escaped."""

    def hidden(value: Any) -> Any:
        if isinstance(value, dict):
            return {redact(key): hidden(item) for key, item in value.items()}
        if isinstance(value, list):
            return [hidden(item) for item in value]
        return redact(value) if isinstance(value, str) else value

    text = json.dumps(hidden(plan.model_dump(mode="json", by_alias=True)), indent=2, ensure_ascii=False)
    return Markup(html.escape(visible(text), quote=False))  # noqa: S704


class Prose:
    """Sentences of one plan as markup: its places, commands, and what can be written into a spec as code."""

    def __init__(self, plan: Plan) -> None:
        undo, _irreversible = reversed_steps(plan.steps)
        found = [item.place for item in plan.world]
        found += [place for item in plan.overview for place in (item.source, item.target)]
        for step in (*plan.steps, *undo):
            named = (getattr(step, name, None) for name in ("source", "target", "saved"))
            places = (*named, *step.written_places, *step.read_places)
            found += [place for place in places if isinstance(place, Place)]
        self._places = {visible(str(place)) for place in found}
        commands = "apply|drift|failures|gc|plan|resume|retry-failed|rollback|status|verify"
        self._code = re.compile(
            rf"(?P<spec>accept: \[\{{[^}}]*\}}\])|\bvecrun (?:{commands})\b(?: {re.escape(plan.job)}(?![\w-]))?"
            r"|(?P<place>[^\s;,()]+/[^\s;,()]+)"
        )

    def __call__(self, text: str) -> Markup:
        """`text` with its code marked."""
        text, made, at = visible(text), Markup(), 0
        for found in self._code.finditer(text):
            code = found[0]
            if found["place"]:
                code = code.rstrip(":.") if code not in self._places else code
                if code not in self._places:
                    continue
            made += escape(text[at : found.start()]) + Markup("<code>{}</code>").format(code)
            at = found.start() + len(code)
        return made + escape(text[at:])
