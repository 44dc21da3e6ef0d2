"""The errors of qdrant-client, httpx, gRPC and local mode, translated into those of vecrun."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from runner.errors import NotFound, Permanent, TooLarge, Transient, VecrunError


@contextmanager
def translated(place: str, doing: str) -> Iterator[None]:
    """Turn what a call of the client raises into ours; `place` and `doing` say where and what was tried."""
    try:
        yield
    except VecrunError:
        raise
    except Exception as exc:
        error = _ours(exc, f"{place}: {doing}")
        if error is None:
            raise
        raise error from exc


def _ours(exc: Exception, where: str) -> VecrunError | None:
    """The error to raise instead; None for what is a fault of vecrun and must be seen as it is."""
    import grpc
    from qdrant_client.common.client_exceptions import QdrantException
    from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

    if isinstance(exc, grpc.RpcError):
        code, text = exc.code().name, exc.details() or ""
    elif isinstance(exc, UnexpectedResponse):
        code, text = str(exc.status_code), exc.content.decode("utf-8", "replace")[:500]
    elif isinstance(exc, QdrantException):  # the client's form of "too many requests, retry after"
        code, text = "429", str(exc)
    elif isinstance(exc, ResponseHandlingException):
        code, text = "UNAVAILABLE", str(exc.source)
    elif isinstance(exc, (ApiException, ValueError, RuntimeError, NotImplementedError)):
        code, text = "", str(exc)
    elif isinstance(exc, OSError):
        code, text = "", f"{type(exc).__name__}: {exc.strerror}"
    else:
        return None
    where = f"{where}: {text.strip()}"
    if code in ("404", "NOT_FOUND") or (not code and re.match("Collection .* not found", text)):
        return NotFound("There is no such collection", where)
    if code in ("401", "403", "UNAUTHENTICATED", "PERMISSION_DENIED") and "limit" not in text.lower():
        return Permanent("Qdrant refuses these credentials", where, "Check api_key and what it may do.")
    if code in ("413", "429", "RESOURCE_EXHAUSTED", "OUT_OF_RANGE") or re.search(
        "limit exceeded|larger than", text, re.IGNORECASE
    ):
        return TooLarge("Qdrant refuses a request of this size or speed", where, "Smaller batches may pass.")
    if code == "UNAVAILABLE":
        hint = "Is the server up? Where only its REST port is open, set prefer_grpc: false."
        return Transient("Qdrant cannot be reached", where, hint)
    if code in ("DEADLINE_EXCEEDED", "ABORTED", "CANCELLED", "INTERNAL", "UNKNOWN", "DATA_LOSS") or code[:1] == "5":
        return Transient("Qdrant could not answer", where)
    return Permanent("Qdrant refuses", where)
