"""Errors of gRPC, pymilvus and the server, translated into those of vecrun."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from runner.errors import Permanent, StoreError, TooLarge, Transient

#: Summaries that callers look for.
ABSENT, UNLOADED = "There is no such collection", "The collection is not loaded"

# What servers and gRPC say when a request is refused, was too large or came too fast, or came at a bad moment
_REFUSED = ("auth check", "unauthenticated", "permission", "privilege", "password")
_LARGE = ("rate limit", "ratelimit", "larger than max", "resource exhausted", "resource_exhausted", "too large")
_PASSING = ("not ready", "unavailable", "deadline", "no available", "timeout", "fail connecting")
#: gRPC status -> the code of Milvus that says the same; 2 for any other.
_CODES = {"RESOURCE_EXHAUSTED": 8, "UNIMPLEMENTED": -1, "UNAUTHENTICATED": -1, "PERMISSION_DENIED": -1}


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn what pymilvus or its gRPC stub raises into a StoreError; `where` says which server and collection."""
    import grpc
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, grpc.RpcError) as exc:
        # pymilvus says of a wrong password that it cannot connect; what the server said is the cause
        call = exc if isinstance(exc, grpc.RpcError) else exc.__cause__
        if not isinstance(call, grpc.RpcError):
            raise error_of(int(exc.code), exc.message, where, bool(getattr(exc, "retriable", False))) from exc
        status = call.code().name
        raise error_of(_CODES.get(status, 2), f"{status}: {call.details()}", where) from exc


def check(status: Any, where: str) -> None:
    """Raise what the status of an answer says. Servers before 2.3 only have `error_code`."""
    if status.code or status.error_code:
        raise error_of(status.code or status.error_code, status.reason, where, status.retriable)


def error_of(code: int, message: str, where: str, retriable: bool = False) -> StoreError:
    """Codes of milvus pkg/util/merr; 2 also stands for pymilvus' failed connection. Lite's own differ but for 100, 101."""
    text, detail = message.lower(), f"{where}: {message}"
    if any(sign in text for sign in _REFUSED):
        return Permanent("Milvus refuses this login", detail, "Check token, user and password, and their rights.")
    if code == 8 or any(sign in text for sign in _LARGE):
        return TooLarge("A request was too large or came too fast", detail, "Smaller batches may pass.")
    if code == 100:
        return Permanent(ABSENT, detail, "Look at the name and the database.")
    if code == 101:
        hint = "Load it, or set `load: true` in the connection (vecrun loads it; that takes memory there)."
        return Permanent(UNLOADED, detail, hint)
    if code == 2 or retriable or any(sign in text for sign in _PASSING):
        return Transient("Milvus cannot be reached or is not ready", detail, "Check the URI and that the server is up.")
    return Permanent("Milvus answered with an error", detail)
