"""Errors of gRPC, httpx, the client and the server, translated into those of vecrun."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from runner.errors import Permanent, StoreError, TooLarge, Transient
from runner.points import PointBatch

_TRANSIENT = re.compile(
    r"timeout|timed out|deadline|unavailable|connection refused|connection reset|leader|not enough memory|"
    r"too many requests|shutting down|not ready|broadcast|cannot achieve consistency|replicas",
    re.IGNORECASE,
)
#: gRPC status -> the HTTP status that says the same. Most of the server's own errors come as UNKNOWN, with a text.
_HTTP = {"UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "RESOURCE_EXHAUSTED": 413, "DEADLINE_EXCEEDED": 504}
_HTTP |= dict.fromkeys(("UNAVAILABLE", "ABORTED", "CANCELLED"), 503)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn what a call of the client raises into a StoreError; `what` says what was tried, and on which collection."""
    import grpc
    import httpx
    from weaviate import exceptions as vendor

    try:
        yield
    except grpc.RpcError as exc:
        code = exc.code().name
        raise by_status(_HTTP.get(code, 500), what, f"{code} {exc.details()}") from exc
    except vendor.UnexpectedStatusCodeError as exc:
        raise by_status(exc.status_code, what, str(exc)) from exc
    except vendor.AuthenticationFailedError as exc:
        raise by_status(401, what, str(exc)) from exc
    except vendor.WeaviateGRPCUnavailableError as exc:
        hint = "Check grpc_host and grpc_port (50051 as shipped)."
        raise Transient("Weaviate's gRPC port does not answer", what, hint) from exc
    except (
        vendor.WeaviateStartUpError,
        vendor.WeaviateConnectionError,
        vendor.WeaviateTimeoutError,
        httpx.HTTPError,
    ) as exc:
        if "not supported" in str(exc):
            raise Permanent("The server is too old", str(exc), "vecrun needs Weaviate 1.27 or newer.") from exc
        hint = "Check url, the network and whether the server runs."
        raise Transient("Weaviate does not answer", f"{what}: {_cause(exc)}", hint) from exc
    except vendor.WeaviateBaseError as exc:
        raise Permanent("Weaviate refused the request", f"{what}: {exc}") from exc


def _cause(exc: BaseException) -> str:
    """What an error says, or what it came from where the client wraps that in a text without any."""
    text = str(exc)
    while text.rstrip(". ").endswith("Details:") and (inner := exc.__cause__ or exc.__context__) is not None:
        exc, text = inner, str(inner) or type(inner).__name__
    return text


def by_status(status: int, what: str, text: str) -> StoreError:
    """The error for an HTTP status and the text that came with it."""
    detail = f"{what}: {text.strip()[:500]}"
    if status in (401, 403):
        return Permanent("Weaviate refused the login or its rights", detail, "Check api_key and the roles of its user.")
    if status == 413 or "query maximum results" in text:
        return TooLarge("The message was too large", detail, "Use a smaller batch_size.")
    if "tenant not active" in text:
        return Permanent("A tenant is not active", detail, "Activate it, or allow autoTenantActivation.")
    if status in (408, 429) or status >= 502 or (status == 500 and _TRANSIENT.search(text)):
        return Transient("Weaviate could not answer now", detail)
    return Permanent("Weaviate refused the request", detail)


def check_points(name: str, batch: PointBatch, errors: Sequence[Any]) -> None:
    """Raise for errors of single points: the reply to a batch is a success as a whole all the same."""
    if not errors:
        return
    ids = ", ".join(str(batch.ids[error.index]) for error in errors[:5])
    detail = f"{name}: {len(errors)} of {len(batch)} points ({ids}): {errors[0].error[:500]}"
    if all(_TRANSIENT.search(error.error) for error in errors):
        raise Transient("Points were not written", detail)
    raise Permanent("Weaviate refused points", detail)
