"""Connections and notifications: whether what is configured answers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from runner.commands.context import Context
from runner.errors import NotFound, VecrunError
from runner.notify import Delivery, Event, deliver
from runner.settings import Happening
from runner.store import Health
from runner.world import World


@dataclass(frozen=True)
class ConnectionTest:
    """Answer of one connection, or its error."""

    name: str
    type: str
    health: Health | None
    error: VecrunError | None
    collections: int = 0


def check_connections(context: Context, names: Iterable[str] = ()) -> list[ConnectionTest]:
    """Open each connection, ask for its version, rights and latency."""
    settings = context.settings
    wanted = list(names) or sorted(
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
                else:
                    store = world.store(name)
                    found.append(ConnectionTest(name, kind, store.health(), None, len(store.collections())))
            except VecrunError as exc:
                found.append(ConnectionTest(name, kind, None, exc))
    return found


def check_notifications(context: Context, event: Happening = "success") -> list[Delivery]:
    """Send a test event to every entry of `notifications`, whatever it asks for. NotFound when there is none."""
    settings = context.settings
    if not settings.workspace.notifications:
        raise NotFound(
            "Nobody is to be told", f"{settings.document.file} has no notifications", "docs/howto/observe.md shows how"
        )
    return deliver(settings, Event.sample(event, settings.environment))
