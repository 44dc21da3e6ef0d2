"""The open connections of one command: stores, databases and object storage by name, wrapped for what the command may do.

A planner gets stores that refuse writes, a dry run stores that discard them; only `apply` gets them bare.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

from runner.backups import BackupConfig
from runner.ciphers import Cipher, KeyConfig
from runner.documents import SqlConfig
from runner.embedder import Embedder, EmbedderConfig
from runner.embedders import config_model as embedder_model
from runner.embedders import open_embedder
from runner.errors import NotFound, Permanent, VecrunError
from runner.objects import OBJECTS
from runner.plan import Place
from runner.records import Records
from runner.settings import MODEL, Settings, resolve
from runner.spec import Document, check_model, digest, suggest
from runner.state import open_states
from runner.store import ConnectionConfig, DryRunStore, ReadOnlyStore, Store
from runner.stores import STORES, config_model, open_store
from runner.vectors import Vectors

if TYPE_CHECKING:
    from runner.documents.database import Database
    from runner.documents.postgres import Postgres
    from runner.objects.storage import Objects
    from runner.relational.opened import RelationalDatabase

Mode = Literal["read", "dry", "write"]


class World:
    """Opens connections on first use and closes them all at the end. Safe for use from several threads."""

    def __init__(
        self, settings: Settings, mode: Mode, inline: Mapping[str, dict[str, Any]] | None = None,
        ledger: Records | None = None, say: Callable[[str], None] = lambda _line: None,
    ) -> None:  # fmt: skip
        self.settings, self.mode, self.inline, self.ledger = settings, mode, dict(inline or {}), ledger
        self.say = say  # tells what takes long
        self._open: dict[str, Store | Database | Postgres | Embedder | Objects] = {}
        self._ciphers: dict[str, Cipher] = {}
        self._lock = threading.RLock()  # a store of backups opens the storage that they are in

    def store(self, name: str) -> Store:
        """The store behind a connection of the workspace, or an inline one."""
        with self._lock:
            if name not in self._open:
                config = self._config(name)
                if isinstance(config, BackupConfig):
                    from runner.backups.store import BackupStore

                    self._open[name] = BackupStore(self.objects(config.connection), config.folder)
                    return cast("Store", self._open[name])
                if isinstance(config, SqlConfig) or config.type in OBJECTS:
                    raise Permanent("This connection is no vector store", f"{name} has type {config.type}")
                try:
                    store = open_store(config)
                except VecrunError as exc:
                    raise _named(exc, name) from exc
                wrapper = {"read": ReadOnlyStore, "dry": DryRunStore}.get(self.mode)
                self._open[name] = wrapper(store) if wrapper else store
            if not isinstance(self._open[name], Store):
                raise Permanent("This connection is no vector store", f"{name} has type sql")
            return cast("Store", self._open[name])

    def database(self, name: str) -> Database:
        """The relational database behind a connection of type sql."""
        with self._lock:
            if name not in self._open:
                config = self._config(name)
                if not isinstance(config, SqlConfig):
                    raise Permanent(
                        "This connection is no relational database", f"{name} has type {config.type}, not sql"
                    )
                from runner.documents.database import Database

                self._open[name] = Database(config)
            elif isinstance(opened := self._open[name], Store):
                raise Permanent("This connection is no relational database", f"{name} has type {opened.type}, not sql")
            return cast("Database", self._open[name])

    def relational(self, name: str) -> RelationalDatabase:
        """The same to be migrated: its transactions are refused to a planner, and a dry run takes all of them back."""
        from runner.relational.opened import RelationalDatabase
        from runner.relational.rehearsal import Rehearsal

        with self._lock:
            key = f"relational:{name}"
            if key not in self._open:
                config = self._config(name)
                if not isinstance(config, SqlConfig):
                    raise Permanent(
                        "This connection is no relational database", f"{name} has type {config.type}, not sql"
                    )
                try:
                    dry, writes = self.mode == "dry", self.mode == "write"
                    self._open[key] = Rehearsal(config) if dry else RelationalDatabase(config, writes=writes)
                except VecrunError as exc:
                    raise _named(exc, name) from exc
            return cast("RelationalDatabase", self._open[key])

    def rehearsed(self) -> list[str]:
        """How a dry run has changed the schemas of databases, a line for each thing."""
        from runner.relational.rehearsal import Rehearsal

        with self._lock:
            return [line for one in self._open.values() if isinstance(one, Rehearsal) for line in one.differences()]

    def postgres(self, name: str) -> Postgres:
        """The PostgreSQL database behind a connection of type sql or pgvector, for tables as a whole. The server refuses
        writes unless this is the world of an `apply`."""
        from runner.documents.postgres import Postgres

        with self._lock:
            key = f"postgres:{name}"
            if key not in self._open:
                config = self._config(name)
                url = str(getattr(config, "url", ""))
                if config.type not in ("sql", "pgvector") or not url.startswith("postgres"):
                    what = url.partition(":")[0] if config.type == "sql" else config.type
                    raise Permanent(
                        "Tables are backed up out of PostgreSQL", f"connection {name} is of {what}",
                        "Give a connection of type sql or pgvector to a PostgreSQL database",
                    )  # fmt: skip
                schema = str(getattr(config, "schema_name", "public"))
                try:
                    self._open[key] = Postgres(url, schema, read_only=self.mode != "write")
                except VecrunError as exc:
                    raise _named(exc, name) from exc
            return cast("Postgres", self._open[key])

    def objects(self, name: str) -> Objects:
        """The object storage behind a connection of type folder or s3."""
        from runner.objects.storage import DryRunObjects, ReadOnlyObjects, open_objects

        with self._lock:
            key = f"objects:{name}"
            if key not in self._open:
                config = self._config(name)
                if config.type not in OBJECTS:
                    raise Permanent(
                        "This connection is no object storage",
                        f"{name} has type {config.type}, not {' or '.join(OBJECTS)}",
                    )
                try:
                    objects = open_objects(config)
                except VecrunError as exc:
                    raise _named(exc, name) from exc
                wrapper = {"read": ReadOnlyObjects, "dry": DryRunObjects}.get(self.mode)
                self._open[key] = wrapper(objects) if wrapper else objects
            return cast("Objects", self._open[key])

    def embedder(self, name: str) -> Embedder:
        """A model of vecrun.yaml."""
        with self._lock:
            key = MODEL + name
            if key not in self._open:
                raw = self.settings.resolved(key)
                checked = check_model(
                    embedder_model(str(raw.get("provider"))), raw, self.settings.document, ("models", name)
                )
                if isinstance(checked, list):
                    raise Permanent("A model is not usable", "\n".join(str(item) for item in checked))
                try:
                    self._open[key] = open_embedder(checked)
                except VecrunError as exc:
                    raise _named(exc, name, "model") from exc
            return cast("Embedder", self._open[key])

    def cipher(self, name: str) -> Cipher:
        """The key behind an inline connection of type key. Permanent when it has another length than 32 bytes."""
        with self._lock:
            if name not in self._ciphers:
                config = self._config(name)
                if not isinstance(config, KeyConfig):
                    raise Permanent("This connection is no key", f"{name} has type {config.type}")
                self._ciphers[name] = Cipher(config.name, config.algorithm, config.secret)
            return self._ciphers[name]

    def unshared(self, name: str) -> str:
        """Why only one process at a time can open what is behind a connection; empty if several can."""
        return "" if name.startswith(MODEL) else self._config(name).unshared

    def local(self, name: str) -> bool:
        """Whether a connection lies in the file system of a host."""
        return not name.startswith(MODEL) and self._config(name).local

    @property
    def kept(self) -> Vectors:
        """What is kept of embedding; for a world that was opened with a ledger."""
        assert self.ledger is not None
        return Vectors(self.ledger)

    def serving_models(self) -> dict[str, str]:
        """The model that embeds queries for a serving pointer, where somebody said."""
        return open_states(self.settings).serving().models

    def serving(self) -> dict[str, Place]:
        """The workspace's serving pointers as they stand."""
        return open_states(self.settings).serving().pointers

    def digest(self, name: str) -> str:
        """Names what a connection points at; secrets are not resolved for it."""
        return digest(self.inline[name]) if name in self.inline else self.settings.connection_digest(name)

    def _config(self, name: str) -> ConnectionConfig:
        if name in self.inline:
            raw, document = self.inline[name], Document("the job spec", self.inline[name])
            resolved = resolve(raw, document, (), self.settings.root)
        else:
            document, resolved = self.settings.document, self.settings.resolved(name)
        model = cast("type[ConnectionConfig]", connection_model(str(resolved.get("type"))))
        checked = check_model(model, resolved, document, ("connections", name))
        if isinstance(checked, list):
            raise Permanent("A connection is not usable", "\n".join(str(item) for item in checked))
        return checked

    def close(self) -> None:
        with self._lock:
            for item in self._open.values():
                item.close()
            self._open.clear()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def connection_model(connection_type: str) -> type[ConnectionConfig] | type[EmbedderConfig]:
    """The pydantic model of a connection type: a store, `sql`, `folder`, `s3`, `backup`, `key`, or model:PROVIDER. NotFound lists those there are."""
    if connection_type.startswith(MODEL):
        return embedder_model(connection_type.removeprefix(MODEL))
    if connection_type == "sql":
        return SqlConfig
    if connection_type == "backup":
        return BackupConfig
    if connection_type == "key":
        return KeyConfig
    if connection_type in OBJECTS:
        return OBJECTS[connection_type]
    if connection_type not in STORES:
        raise NotFound(
            "No such store type", repr(connection_type), suggest(connection_type, [*STORES, *OBJECTS, "sql", "backup"])
        )
    return config_model(connection_type)


def _named(exc: VecrunError, name: str, what: str = "connection") -> VecrunError:
    """The same error, saying which connection it was."""
    return type(exc)(exc.summary, f"{what} {name}: {exc.detail}", exc.hint)
