"""Connections, the records' database, the queue and notifications: whether what is configured answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from runner.commands.context import Context
from runner.errors import NotFound, VecrunError
from runner.notify import Delivery, Event, deliver
from runner.objects import OBJECTS
from runner.settings import Broker, Happening
from runner.store import Health
from runner.world import World


@dataclass(frozen=True)
class ConnectionTest:
    """Answer of one connection, or its error."""

    name: str  # (ledger) and (broker) are what vecrun itself works with
    type: str
    health: Health | None
    error: VecrunError | None
    collections: int | None = None  # None: it is no store


def check_connections(context: Context, names: Iterable[str] = ()) -> list[ConnectionTest]:
    """Open each connection, ask for its version, rights and latency. Without names the ledger's database and the
    broker are asked, too."""
    settings = context.settings
    names = list(names)
    wanted = names or sorted(
        set(settings.workspace.connections)
        | set(getattr(settings.workspace.environments.get(settings.environment), "connections", {}))
    )
    found = []
    for name in wanted:
        kind = str(settings.connection(name).get("type"))
        with World(settings, "read") as world:
            try:
                if kind == "sql":
                    began = time.monotonic()
                    database = world.database(name)
                    with database.transaction() as connection:
                        version = ".".join(str(part) for part in connection.dialect.server_version_info or ())
                    health = Health(
                        f"{database.engine.dialect.name} {version}".strip(), (time.monotonic() - began) * 1000
                    )
                    found.append(ConnectionTest(name, kind, health, None))
                elif kind in OBJECTS:
                    found.append(ConnectionTest(name, kind, world.objects(name).health(), None))
                else:
                    store = world.store(name)
                    found.append(ConnectionTest(name, kind, store.health(), None, len(store.collections())))
            except VecrunError as exc:
                found.append(ConnectionTest(name, kind, None, exc))
    if not names:
        found.append(_answered("(ledger)", "sql", lambda: _ledger_version(context)))
        if settings.has_broker:
            found.append(_answered("(broker)", "redis", lambda: broker_version(settings.broker)))
    return found


def _answered(name: str, kind: str, version: Callable[[], str]) -> ConnectionTest:
    began = time.monotonic()
    try:
        said = version()
    except VecrunError as exc:
        return ConnectionTest(name, kind, None, exc)
    return ConnectionTest(name, kind, Health(said, (time.monotonic() - began) * 1000), None)


def _ledger_version(context: Context) -> str:
    with context.ledger(reading=True) as ledger, ledger.reading() as connection:
        version = ".".join(str(part) for part in connection.dialect.server_version_info or ())
        return f"{ledger.engine.dialect.name} {version}".strip()


def broker_version(broker: Broker | None) -> str:
    """Which Redis answers. VecrunError when none does within a few seconds."""
    assert broker is not None
    try:
        import redis
    except ImportError as exc:
        raise VecrunError("A package is missing", "redis, for a broker", "pip install 'vecrun[distributed]'") from exc
    try:
        with redis.Redis.from_url(broker.url, socket_connect_timeout=3, socket_timeout=3) as client:
            found: dict[str, object] = client.info("server")
            return str(found["redis_version"])
    except ValueError as exc:
        raise VecrunError("The broker's URL cannot be read", "broker.url", "redis://host:6379/0") from exc
    except (redis.RedisError, OSError) as exc:
        raise VecrunError("The queue does not answer", f"broker.url: {exc}", "Check that Redis runs") from exc


def check_notifications(context: Context, event: Happening = "success") -> list[Delivery]:
    """Send a test event to every entry of `notifications`, whatever it asks for. NotFound when there is none."""
    settings = context.settings
    if not settings.workspace.notifications:
        raise NotFound(
            "Nobody is to be told", f"{settings.document.file} has no notifications", "docs/howto/observe.md shows how"
        )
    return deliver(settings, Event.sample(event, settings.environment))
