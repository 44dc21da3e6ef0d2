"""A bucket as object storage, over obstore. Its errors carry only a text; what they say is read from there.

It tries a request once more at most, after a moment: how long to go on trying is decided by the run.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from runner.errors import NotFound, Permanent, RateLimited, Transient, VecrunError
from runner.objects import S3Config
from runner.objects.storage import Found, Objects, Source, checked_key, checked_prefix, no_such_file, too_large
from runner.store import Health

_CONNECT = 5  # seconds until a connection is there
_WHOLE = 24 * 3600  # seconds a request may take; that it goes on is what `timeout` watches
_KEY = 1024  # bytes a key may have
_PARTS = 256 * 2**20  # bytes beyond which a file goes up in parts, which a killed process leaves behind
_PART, _AT_ONCE = 16 * 2**20, 4  # of what comes piece by piece: S3 takes 10,000 parts, so 160 GB, and 64 MiB of memory
#: Where a virtual machine is asked for keys: the last place that is tried.
_INSTANCE = re.compile(r"https?://[^/ ]+/latest/(?:api/token|meta-data)")
_STATUS = re.compile(r"status code: (\d{3})")
_CODE, _MESSAGE = re.compile(r"<Code>([^<]*)</Code>"), re.compile(r"<Message>([^<]*)</Message>")
#: What a server says that cannot write a file only where there is none.
_NO_CONDITION = re.compile(r"status code: 501|<Code>NotImplemented</Code>|NotImplemented")
_CAUSE = re.compile(r'"((?:dns|tcp connect|tls|certificate)[^"]*)"|(InvalidCertificate|TimedOut|ConnectionRefused)')
_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
_BUSY = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequests",
    "TooManyRequestsException",
}
_AGAIN = {"RequestTimeout", "InternalError", "ServiceUnavailable", "OperationAborted", "RequestTimeTooSkewed"}
_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"}


class S3Objects(Objects):
    """The files of a bucket below a prefix."""

    type = "s3"

    def __init__(self, config: S3Config) -> None:
        import obstore
        from obstore.store import S3Store

        self._config, self._obstore, self.place = config, obstore, config.place
        endpoint = config.endpoint
        settings: dict[str, Any] = {
            "virtual_hosted_style_request": not config.path_style,
            "disable_bulk_delete": True,  # many servers have no such request, and one file is deleted at a time
        }
        if config.region or not os.environ.get("AWS_REGION", os.environ.get("AWS_DEFAULT_REGION")):
            settings["region"] = config.region or "us-east-1"
        if endpoint and not config.path_style:
            parts = urlsplit(endpoint)
            endpoint = f"{parts.scheme}://{config.bucket}.{parts.netloc}{parts.path}"
        if endpoint:
            settings["endpoint"] = endpoint.rstrip("/")
        options: dict[str, Any] = {
            "allow_http": bool(endpoint and endpoint.startswith("http://")),
            "connect_timeout": timedelta(seconds=_CONNECT),
            "read_timeout": timedelta(seconds=config.timeout),
            "timeout": timedelta(seconds=_WHOLE),
        }
        retries: dict[str, Any] = {
            "max_retries": 1,
            "retry_timeout": timedelta(seconds=2 * _CONNECT),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=1),
                "base": 2,
            },
        }
        if config.access_key_id is not None:
            # by a function, so that no token of the environment is mixed with these keys
            keys = {
                "access_key_id": config.access_key_id,
                "secret_access_key": config.secret_access_key,
                "token": config.session_token,
                "expires_at": None,
            }
            settings["credential_provider"] = lambda: keys
        try:
            self._store = S3Store(config.bucket, client_options=options, retry_config=retries, **settings)  # type: ignore[arg-type]
        except Exception as exc:
            raise Permanent("The settings of S3 cannot be used", f"{self.place}: {_first_line(exc)}") from exc
        self._answered = False  # the bucket is there

    def read(self, key: str, limit: int | None = None) -> bytes:
        with self._errors("read", key):
            found = self._obstore.get(self._store, self._key(key))
            if limit is not None and found.meta["size"] > limit:
                raise too_large(key, found.meta["size"], limit)
            return bytes(found.bytes())

    def write(self, key: str, data: bytes) -> None:
        with self._errors("write", key):
            self._obstore.put(self._store, self._key(key), data, use_multipart=len(data) > _PARTS)

    def create(self, key: str, data: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        if self.head(key) is None:  # some servers do not know the condition, and write over what is there
            with self._errors("write", key):
                try:
                    self._obstore.put(self._store, self._key(key), data, mode="create", use_multipart=False)
                except (AlreadyExistsError, PreconditionError):
                    pass
                except Exception as exc:
                    if not _NO_CONDITION.search(str(exc)):
                        raise
                    self._obstore.put(self._store, self._key(key), data)
        return self.read(key) == data

    def write_from(self, key: str, chunks: Iterable[bytes], unfinished: str = "") -> int:  # noqa: ARG002
        with Source(chunks) as source, self._errors("write", key):
            self._obstore.put(
                self._store, self._key(key), source, use_multipart=True, chunk_size=_PART, max_concurrency=_AT_ONCE
            )
        return source.size

    def pieces(self, key: str, size: int = 1 << 20) -> Iterator[bytes]:
        with self._errors("read", key):
            for piece in self._obstore.get(self._store, self._key(key)).stream(min_chunk_size=size):
                yield bytes(piece)

    def free(self) -> int | None:
        return None

    def head(self, key: str) -> Found | None:
        try:
            with self._errors("read", key):
                return self._found(self._obstore.head(self._store, self._key(key)))
        except NotFound:
            return None

    def copy(self, source: str, to: str) -> None:
        with self._errors("copy", source):
            if source == to:  # which S3 refuses
                self._obstore.head(self._store, self._key(source))
                return
            self._obstore.copy(self._store, self._key(source), self._key(to))

    def delete(self, key: str) -> None:
        with contextlib.suppress(NotFound), self._errors("delete", key):
            self._obstore.delete(self._store, self._key(key))

    def list(self, prefix: str = "") -> Iterator[Found]:
        below = checked_prefix(prefix)
        at = "/".join(part for part in (self._config.prefix, below.removesuffix("/")) if part)
        with self._errors("list", prefix):
            for page in self._obstore.list(self._store, at or None):
                for item in page:
                    # a key that no other method takes (kb//a) is left out
                    with contextlib.suppress(Permanent):
                        yield self._found(item)

    def health(self) -> Health:
        began = time.monotonic()
        self._ask()
        latency = (time.monotonic() - began) * 1000
        # to the library a web page (the console of a server, on another port) is a bucket without files
        with contextlib.suppress(Permanent):
            if self.head(f".vecrun-{uuid.uuid4().hex}"):
                what = f"{self.place} says it has a file that nobody wrote"
                raise VecrunError("This is no S3", what, "Check endpoint of the connection and its port")
        return Health(f"s3 {self.place}", latency, ("list",))

    def close(self) -> None:
        return

    def _ask(self) -> None:
        """Whether the bucket is there and may be listed."""
        with self._errors("list", ""):
            for _ in self._obstore.list(self._store, self._config.prefix or None, chunk_size=1):
                break
        self._answered = True

    def _key(self, key: str) -> str:
        whole = f"{self._config.prefix}/{checked_key(key)}" if self._config.prefix else checked_key(key)
        if (size := len(whole.encode())) > _KEY:
            raise Permanent(
                "A key is too long for S3", f"{key[:200]}…: {size:,} bytes with its prefix, of at most {_KEY:,}"
            )
        return whole

    def _found(self, item: Any) -> Found:
        path = item["path"].removeprefix(f"{self._config.prefix}/") if self._config.prefix else item["path"]
        return Found(checked_key(path), item["size"], item["e_tag"] or "", item["last_modified"])

    @contextlib.contextmanager
    def _errors(self, verb: str, what: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
            self._answered = True
        except VecrunError:
            raise
        except (BaseError, OSError, ValueError) as exc:
            error = self._translated(str(exc).partition("Debug source:"), verb, what)
            if not self._answered and verb != "list" and not isinstance(error, Transient):
                with contextlib.suppress(Transient):
                    self._look_closer()
            raise error from exc
        except BaseException as exc:
            if type(exc).__name__ == "PanicException":  # of the library's Rust, and no Exception
                raise Permanent("The settings of S3 cannot be used", f"{self.place}: {_first_line(exc)}") from exc
            raise

    def _look_closer(self) -> None:
        """Raise what is behind an error if it is the bucket or the key: S3 does not say so when it is asked about one file."""
        try:
            self._ask()
        except Permanent as exc:
            if exc.summary in (_NO_BUCKET, _NO_KEY):
                raise
            self._answered = True  # it may not be listed, so it is there

    def _translated(self, parts: tuple[str, str, str], verb: str, what: str) -> VecrunError:
        text, _, debug = parts
        status = int(found[1]) if (found := _STATUS.search(text)) else 0
        code = found[1] if (found := _CODE.search(text)) else ""
        message = found[1] if (found := _MESSAGE.search(text)) else ""
        where = f"{what} in {self.place}" if what else self.place
        said = ": ".join(
            part for part in (where, " ".join(str(part) for part in (status or "", code) if part), message) if part
        )
        if _INSTANCE.search(text) and status < 429:
            return Permanent(
                "There is no key for S3",
                self.place,
                "Set access_key_id and secret_access_key, or AWS_ACCESS_KEY_ID and so on",
            )
        if code == "NoSuchBucket" or (status == 404 and verb == "list"):
            return Permanent(_NO_BUCKET, self.place, "Check bucket, region and endpoint of the connection")
        if code in _REGION or "without LOCATION" in text:
            return Permanent("The bucket is in another region", said, "Set region of the connection")
        if code in _KEYS or status == 401:
            return Permanent(_NO_KEY, said, "Check access_key_id and secret_access_key of the connection")
        if code in _BUSY or status == 429:
            return RateLimited("S3 asks for fewer requests", said)
        if status >= 500 or status == 408 or code in _AGAIN:
            return Transient("S3 did not do it now", said)
        if status == 403:
            hint = "Rights: s3:ListBucket, s3:GetObject, s3:PutObject, s3:DeleteObject"
            if verb in ("read", "copy"):
                hint += ". Without the first one S3 says this of files that do not exist, too"
            return Permanent(
                f"No right to {verb} a file" if verb != "list" else "No right to list the bucket", said, hint
            )
        if status == 404:
            return no_such_file(what, self.place)
        if code == "InvalidRequest" and "copy source" in message:
            return Permanent(
                "A file is too large to be copied",
                said,
                "S3 copies up to 5 GB in one request; move this file by other means",
            )
        if status:
            return Permanent("S3 refused", said)
        cause = next((group for found in _CAUSE.finditer(debug) for group in found.groups() if group), "")
        why = ", ".join(part for part in (_first_line(text).rpartition(" - ")[2], cause) if part)
        if "Certificate" in debug:
            return Permanent("The certificate of S3 is not accepted", f"{where}: {why}")
        return Transient("S3 did not answer", f"{where}: {why}", "Check endpoint of the connection")


_NO_BUCKET, _NO_KEY = "The bucket does not exist", "S3 does not accept the key"


def _first_line(text: object) -> str:
    return str(text).strip().partition("\n")[0][:300]
