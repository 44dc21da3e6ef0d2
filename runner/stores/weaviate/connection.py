"""One open connection: a call of gRPC, a call of REST."""

from __future__ import annotations

import time
import warnings
from typing import Any
from urllib.parse import urlsplit

import orjson

from runner.errors import Permanent
from runner.store import Health
from runner.stores.weaviate.config import WeaviateConfig
from runner.stores.weaviate.errors import by_status, translated


class Connection:
    """The client's gRPC stub and REST methods: its public classes build objects per point."""

    def __init__(self, config: WeaviateConfig) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"(?s).*authlib", category=DeprecationWarning)
            import weaviate
            from weaviate.classes.init import AdditionalConfig, Auth, Timeout
        parts, self._seconds = urlsplit(config.url), config.timeout_seconds
        self.host, secure = str(parts.hostname), parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        with translated(f"connect to {self.host}:{port}"):
            self.client = weaviate.WeaviateClient(
                connection_params=weaviate.connect.ConnectionParams.from_params(
                    http_host=self.host,
                    http_port=port,
                    http_secure=secure,
                    grpc_host=config.grpc_host or self.host,
                    grpc_port=config.grpc_port,
                    grpc_secure=secure if config.grpc_secure is None else config.grpc_secure,
                ),
                auth_client_secret=Auth.api_key(config.api_key) if config.api_key else None,
                additional_config=AdditionalConfig(timeout=Timeout(init=10, query=self._seconds, insert=self._seconds)),
                skip_init_checks=True,  # they ask PyPI for a newer client; health() checks gRPC
            )
            self._wire = self.client._connection
            try:
                self.client.connect()
                self.version = self.health().version
                self.message_bytes = int(self.rest("get", "/meta").get("grpcMaxMessageSize", 10 * 1024 * 1024))
            except BaseException:
                self.client.close()
                raise
        self.consistency = {"ONE": 1, "QUORUM": 2, "ALL": 3}[config.consistency_level]

    def health(self) -> Health:
        """Version, latency of one REST call, roles of the login; gRPC must answer too."""
        from weaviate.connect import executor

        start = time.perf_counter()
        meta = self.rest("get", "/meta")
        latency = (time.perf_counter() - start) * 1000
        with translated("health"):
            executor.result(self._wire._ping_grpc("sync"))
        own = self.rest("get", "/users/own-info", without=(401, 403, 404, 501)) or {}
        return Health(meta["version"], latency, tuple(sorted(role["name"] for role in own.get("roles") or [])))

    def call(self, method: str, request: Any, what: str) -> Any:
        """One gRPC call. The client's own methods retry for a minute first; the engine has its own patience."""
        with translated(what):
            stub = self._wire.grpc_stub
            if stub is None:
                raise Permanent("The connection is closed", what)
            return getattr(stub, method)(request, metadata=self._wire.grpc_headers(), timeout=self._seconds)

    def rest(
        self,
        verb: str,
        path: str,
        body: Any = None,
        *,
        params: dict[str, Any] | None = None,
        without: tuple[int, ...] = (),
        what: str = "",
    ) -> Any:
        """One REST call: the parsed body, {} if it is empty, None for a status in `without`."""
        what = what or f"{verb} {path}"
        arguments = {"path": path, "params": params} | ({} if body is None else {"weaviate_object": body})
        with translated(what):
            response = getattr(self._wire, verb)(**arguments)
        status = int(response.status_code)
        if status in without:
            return None
        if not 200 <= status < 300:
            raise by_status(status, what, f"HTTP {status} {response.text}")
        return orjson.loads(response.content) if response.content else {}
