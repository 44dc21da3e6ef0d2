"""One open Qdrant: the client, whose calls take turns in local mode, and its errors as ours."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runner.errors import NotFound, Permanent, StoreError
from runner.store import Health
from runner.stores.qdrant.config import QdrantConfig
from runner.stores.qdrant.errors import translated


class Connection:
    """Local mode knows no threads, so its calls are serialised; a server takes them in parallel."""

    def __init__(self, client: Any, config: QdrantConfig) -> None:
        self.client, self.config = client, config
        self.local = config.path is not None
        self.grpc = not self.local and config.prefer_grpc
        self._lock: AbstractContextManager[Any] = threading.RLock() if self.local else nullcontext()

    @classmethod
    def open(cls, config: QdrantConfig) -> Connection:
        """Connect and ask for something: Transient when unreachable, Permanent when the key is wrong."""
        with translated(config.place, "connect"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a key over http: `health` notes it
            opened = cls(_client(config), config)
        if opened.local:
            warnings.filterwarnings("ignore", "Local mode is not recommended", UserWarning)
        try:
            with opened.calling("connect"):
                if not opened.local:  # a wrong key shows here even where the gRPC port is closed
                    opened.client.http.collections_api.get_collections()
                opened.client.get_collections()
        except StoreError:
            opened.close()
            raise
        return opened

    @contextmanager
    def calling(self, doing: str) -> Iterator[None]:
        """One call at a time in local mode; the vendor's errors become ours."""
        with self._lock, translated(self.config.place, doing):
            yield

    def info(self, name: str) -> Any:
        """Qdrant's description of the collection, None if there is none. It would follow an alias."""
        with suppress(NotFound), self.calling(f"inspect {name}"):
            return self.client.get_collection(name)
        return None

    def health(self) -> Health:
        started = time.perf_counter()
        with self.calling("health"):
            version = str(self.client.info().version)
        latency = (time.perf_counter() - started) * 1000
        if self.local:
            return Health(f"local mode {version}", latency, ("read", "write"), ("local mode: one process, small data",))
        rights, notes = ["read"], []
        with self.calling("health"):  # the version is told to anybody; this needs a valid key
            self.client.get_collections()
        try:
            with self.calling("health"):  # no actions: changes nothing, but needs the right to write
                self.client.update_collection_aliases(change_aliases_operations=[])
            rights.append("write")
        except Permanent:
            notes.append("this key may not change aliases: it only reads, or is limited to some collections")
        if self.config.api_key and (self.config.url or "").startswith("http:"):
            notes.append("the API key travels unencrypted (http)")
        return Health(version, latency, tuple(rights), tuple(notes))

    def close(self) -> None:
        with self._lock:
            self.client.close()


def _client(config: QdrantConfig) -> Any:
    from qdrant_client import QdrantClient

    if config.path == ":memory:":
        return QdrantClient(location=":memory:")
    if config.path is not None:
        _check_lock(Path(config.path))
        return QdrantClient(path=config.path, force_disable_check_same_thread=True)
    return QdrantClient(
        url=config.url,
        port=urlsplit(config.url or "").port or 6333,
        api_key=config.api_key,
        grpc_port=config.grpc_port,
        prefer_grpc=config.prefer_grpc,
        timeout=config.timeout,
        check_compatibility=False,
    )


def _check_lock(folder: Path) -> None:
    """Refuse a folder that is open elsewhere. The client would too, but leave open what it opened before it looked."""
    import portalocker  # qdrant-client's own

    if not (folder / ".lock").exists():
        return
    with (folder / ".lock").open("r+") as file:
        try:
            portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
        except portalocker.LockException as exc:
            hint = "One process at a time may open it; use a Qdrant server for more."
            raise Permanent("The folder is in use", str(folder), hint) from exc
        portalocker.unlock(file)
