"""What an endpoint answers, in vecrun's words: vectors, how long to wait, and which errors are whose fault."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np
import orjson

from runner.errors import Permanent, RateLimited, Refused, StoreError, Transient
from runner.points import Float32Matrix

_DURATION = re.compile(
    r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?"
)
_UNITS = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)
_LONGEST = 86_400.0  # what asks for more than a day is no duration but a point in time

#: What a refusal is about, by its message. A text: one of the request is not taken. Items: too many at once.
_TOO_LONG = re.compile(r"context length|context window|too long|input (is )?too large|input length", re.IGNORECASE)
_ABOUT_TEXT = re.compile(r"tokens|content|character|empty", re.IGNORECASE)
_ABOUT_ITEMS = re.compile(
    r"maximum allowed batch size|array too long|too many (inputs|items|texts)|maximum number of inputs", re.IGNORECASE
)
_ABOUT_MODEL = re.compile(r"\bmodel\b|deployment|dimension|matryoshka|encoding_format", re.IGNORECASE)
_MODEL_FIELDS = {"model", "dimensions", "encoding_format"}
_NO_MONEY = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}


def parse(body: bytes, count: int, place: str) -> tuple[Float32Matrix, int | None]:
    """Vectors in the order of the texts, and the tokens of the bill. Transient when it is no list of `count` vectors.
    `place` names model and address."""
    try:
        data = orjson.loads(body)
        items = data["data"]
        if len(items) != count:
            raise ValueError(f"{len(items)} vectors for {count} texts")
        rows: list[Any] = [None] * count
        for item in items:
            if type(item["index"]) is not int or not 0 <= item["index"] < count or rows[item["index"]] is not None:
                raise ValueError(f"index {item['index']!r} is out of range or there twice")
            rows[item["index"]] = _numbers(item["embedding"])
        if len({len(row) for row in rows}) > 1:
            raise ValueError("the vectors are not of one dimension")
        vectors = np.array(rows, dtype=np.float32)
        if vectors.ndim != 2 or not vectors.shape[1] or not np.isfinite(vectors).all():
            raise ValueError("a number of a vector is none")
        usage = data.get("usage") or {}
        tokens = usage.get("prompt_tokens", usage.get("total_tokens"))
        return vectors, tokens if type(tokens) is int and tokens >= 0 else None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as exc:
        reason = f"no {exc}" if isinstance(exc, KeyError) else str(exc)
        raise Transient("The reply is no embedding", f"{place}: {reason[:200]}") from exc


def _numbers(value: Any) -> Any:
    """A row, given as a list of numbers or as base64 of little-endian float32."""
    return np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4") if isinstance(value, str) else value


def error_of(status: int, headers: Mapping[str, str], body: bytes, place: str) -> StoreError:
    """The error of a reply that is not 200. `place` names model and address."""
    message, code, field = _told(body)
    detail = f"{place}: HTTP {status}{f', {message}' if message else ''}"
    if status == 402 or (status in (403, 429) and code in _NO_MONEY):
        return Permanent(
            "The account has no credit left",
            detail,
            "Add credit or raise the limit of the account, then go on",
        )
    if status == 429 or (status == 503 and _wait(headers) is not None):
        return RateLimited.after(_wait(headers), "The endpoint asks for fewer requests", detail)
    if status == 500 and _TOO_LONG.search(message):  # llama.cpp and Ollama: a text, not trouble
        return Refused("The endpoint does not take a text", detail)
    if status in (408, 409, 425) or status >= 500:
        return Transient("The endpoint is in trouble", detail)
    if status in (401, 403):
        quiet = f"{place}: HTTP {status}"  # the message of a 401 often holds a part of the key
        return Permanent(
            "The endpoint does not accept the key",
            quiet if status == 401 else detail,
            "Check api_key (a reference such as ${env:OPENAI_API_KEY}), organization and the rights of the key",
        )
    if status == 404:
        return Permanent(
            "No such model or address",
            detail,
            "Check base_url (often it ends with /v1) and model; a server of your own may have to load it first",
        )
    if status in (400, 413, 422):
        return _of_content(detail, message, code, field)
    if 300 <= status < 400:
        return Permanent(
            "The endpoint sends requests elsewhere",
            f"{place}: HTTP {status} to {headers.get('location', '?')[:200]}",
            "A key is not sent after a redirect; set base_url to the final address",
        )
    return Permanent("The endpoint does not take the request", detail)


def _of_content(detail: str, message: str, code: str, field: str) -> StoreError:
    if _ABOUT_ITEMS.search(message):
        return Permanent("The endpoint does not take so many texts at once", detail, "Set a lower `items` in the model")
    about_model = field in _MODEL_FIELDS or code == "model_not_found"
    about_text = field == "input" or _TOO_LONG.search(message) or _ABOUT_TEXT.search(message)
    if about_model or (not about_text and _ABOUT_MODEL.search(message)):
        return Permanent(
            "The endpoint does not take this model or dimension", detail, "Check model, dimension and send_dimensions"
        )
    return Refused("The endpoint does not take a text", detail)


def _told(body: bytes) -> tuple[str, str, str]:
    """(message, code, field) of an error body of OpenAI, vLLM, TEI, Ollama or FastAPI; the text of any other."""
    try:
        data = orjson.loads(body)
        error = data.get("error", data) if isinstance(data, dict) else {}
        if not isinstance(error, dict):
            error = {"message": error}
        message = error.get("message") or error.get("detail") or ""
        code = error.get("code") or error.get("type") or ""
        return " ".join(str(message).split())[:300], str(code), str(error.get("param") or "")
    except orjson.JSONDecodeError:
        text = body[:2000].decode("utf-8", "replace")
        return ("an HTML page" if "<html" in text.lower() else " ".join(text.split())[:200]), "", ""


def _wait(headers: Mapping[str, str]) -> float | None:
    """Seconds the reply asks to wait: Retry-After, else when the limit that is used up is renewed."""
    given = headers.get("retry-after-ms", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", given):
        return float(given) / 1000
    given = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", given):
        return float(given)
    if given:
        try:
            return max(0.0, (_date(given) - _now(headers)).total_seconds())
        except ValueError:
            pass
    resets: dict[str, float] = {}
    for kind in ("requests", "tokens"):
        seconds = _seconds(headers.get(f"x-ratelimit-reset-{kind}", "").strip())
        if seconds is not None:
            resets[kind] = seconds
    spent = [resets[kind] for kind in resets if headers.get(f"x-ratelimit-remaining-{kind}", "").strip() == "0"]
    return max(spent or resets.values(), default=None)


def _now(headers: Mapping[str, str]) -> datetime:
    """The clock of the endpoint, which its dates go by; ours may be wrong."""
    try:
        return _date(headers["date"])
    except (KeyError, ValueError):
        return datetime.now(UTC)


def _date(text: str) -> datetime:
    found = parsedate_to_datetime(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _seconds(text: str) -> float | None:
    """6m0s, 20ms, 1.5s or 12 as seconds."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        seconds = float(text)
    else:
        found = _DURATION.fullmatch(text) if text else None
        if found is None:
            return None
        seconds = sum(float(part) * unit for part, unit in zip(found.groups(), _UNITS, strict=True) if part)
    return seconds if seconds <= _LONGEST else None
