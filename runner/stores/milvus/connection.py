"""One open connection: methods of pymilvus' client, and gRPC messages sent through its stub."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from runner.errors import Permanent
from runner.stores.milvus import lite
from runner.stores.milvus.config import MilvusConfig
from runner.stores.milvus.errors import check, translated

_NO_INDEX = 700


class Connection:
    """pymilvus' client, and its gRPC stub where the client would build an object per point."""

    def __init__(self, config: MilvusConfig) -> None:
        from pymilvus import MilvusClient

        # Everything it would log is raised as well, with a traceback, or is a warning about its own iterators.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        self._config, self._closed = config, False
        self.path = _lite_path(config.uri)
        self.address = self.path or _address(config.uri)
        with lite.opening(self.path) if self.path else contextlib.nullcontext(), translated(self.address):
            self.client = MilvusClient(
                uri=self.path or config.uri,
                user=config.user or "",
                password=config.password or "",
                token=config.token or "",
                db_name=config.database,
                timeout=min(config.timeout, 10),
            )
            try:
                version = str(self.ask("get_server_version"))
                self.lite = version.startswith("milvus_lite")
                found = re.search(r"(\d+)\.(\d+)", version)
                number = (int(found[1]), int(found[2])) if found else (2, 6)
                if (self.path or self.lite) and not (self.lite and number >= (3, 2)):
                    raise Permanent(
                        "Milvus Lite is too old",
                        f"{self.address}: {version}; older ones answer out of key order",
                        "pip install 'milvus-lite>=3.2'",
                    )
            except BaseException:
                self.client.close()
                raise
        #: Several vectors and sparse ones came with 2.4.
        self.modern = self.lite or number >= (2, 4)
        #: Whether a collection may be loaded in order to read it.
        self.loads = self.lite or config.load

    def place(self, name: str) -> str:
        """What errors say of a collection."""
        return f"{self.address}: {name}"

    def ask(self, method: str, *values: Any, **options: Any) -> Any:
        """One method of the client; the first of `values` is the collection, if there is one."""
        with translated(self.place(values[0]) if values else self.address):
            return getattr(self.client, method)(*values, **({"timeout": self._config.timeout} | options))

    def load(self, name: str) -> None:
        """Load a collection; it may take any time."""
        self.ask("load_collection", name, timeout=None)

    def request(self, method: str, name: str, **fields: Any) -> Any:
        """The gRPC message that `method` takes, for one collection."""
        from pymilvus.grpc_gen import milvus_pb2

        message = getattr(milvus_pb2, f"{method}Request")
        return message(db_name=self._config.database, collection_name=name, **fields)

    def send(self, method: str, request: Any, also: Sequence[int] = ()) -> Any:
        """The answer to a gRPC message. Codes in `also` are no errors."""
        where = self.place(request.collection_name)
        with translated(where):
            answer = getattr(self._stub, method)(request, timeout=self._config.timeout)
        status = getattr(answer, "status", answer)
        if status.code not in also:
            check(status, where)
        return answer

    def indexes(self, name: str) -> dict[str, Any]:
        """Field -> IndexDescription of gRPC."""
        answer = self.send("DescribeIndex", self.request("DescribeIndex", name), also=[_NO_INDEX])
        return {item.field_name: item for item in answer.index_descriptions}

    def clock(self) -> int:
        """A timestamp of the server, now: reads that wait for it see every write acknowledged before. 0 is Strong.

        Cheaper than Strong for many pages: Strong waits for a *new* time tick (200 ms) with each query.
        """
        if self.lite:
            return 0
        from pymilvus.grpc_gen import milvus_pb2

        try:
            with translated(self.address):
                answer = self._stub.AllocTimestamp(milvus_pb2.AllocTimestampRequest(), timeout=self._config.timeout)
            return int(answer.timestamp)
        except Permanent:  # not there, or not allowed
            return 0

    def roles(self) -> tuple[str, ...]:
        """Roles of the user who is logged in, as far as the server tells."""
        user, colon, _ = (self._config.token or f"{self._config.user or ''}:").partition(":")
        if self.lite or not user or not colon:
            return ()
        with contextlib.suppress(Exception):  # servers without logins have no users either
            return tuple(self.client.describe_user(user, timeout=self._config.timeout).get("roles", ()))
        return ()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.client.close()
        if self.path is not None:
            lite.release(self.path)

    @property
    def _stub(self) -> Any:
        """pymilvus' own gRPC stub: present, and under this name, in 2.3 … 3.0."""
        return self.client._get_connection()._stub


def _lite_path(uri: str) -> str | None:
    """The directory, if `uri` is one of Milvus Lite."""
    if "://" in uri or uri.startswith("unix:"):
        return None
    if not uri.endswith(".db"):
        raise Permanent(
            "A Milvus URI is not valid", repr(uri), "A Milvus Lite path ends in .db, a server's has http://."
        )
    return os.path.abspath(uri)  # noqa: PTH100 - resolves no links, just as Milvus Lite does


def _address(uri: str) -> str:
    """`uri` without the user and password that may be in it."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or 19530}" if parts.hostname else uri
