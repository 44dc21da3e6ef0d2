"""What every step is made of: its action, its estimate, the places it touches, its reverse."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import SerializerFunctionWrapHandler, model_serializer

from runner.points import Model

if TYPE_CHECKING:
    from runner.plan.document import Step


class Action(StrEnum):
    """What a step does to the world, with the symbol a reader sees."""

    CREATE = "+"
    CHANGE = "~"
    DELETE = "-"
    SWITCH = ">"
    CHECK = "="


class Estimate(Model):
    """Seconds and bytes a step will need at least; texts it will embed, their tokens and USD. None: not measured."""

    seconds: float | None = None
    bytes: int | None = None
    texts: int | None = None
    tokens: int | None = None
    usd: float | None = None

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        return {key: value for key, value in data.items() if value is not None or key in ("seconds", "bytes")}


class Place(Model):
    """A collection of a connection."""

    connection: str
    collection: str

    def __str__(self) -> str:
        return f"{self.connection}/{self.collection}"


class StepBase(Model):
    """What all steps have. `destroys` counts points that are gone afterwards and stand nowhere else."""

    estimate: Estimate = Estimate()

    action: ClassVar[Action]
    #: One transaction: when it is refused, nothing of it was done.
    whole: ClassVar[bool] = False

    @property
    def destroys(self) -> str:
        """What is lost for good by this step; empty if nothing is."""
        return ""

    @property
    def extent(self) -> tuple[int, str]:
        """How much there is to do, and of what: progress is counted in it."""
        if (documents := getattr(self, "documents", None)) is not None:
            return documents, "documents"
        return getattr(self, "points", None) or 0, "points"

    @property
    def written_places(self) -> tuple[Place, ...]:
        """What is written by it, beside its `target` and `saved`."""
        return ()

    @property
    def read_places(self) -> tuple[Place, ...]:
        """What must not be changed by another run meanwhile."""
        return ()

    def reverse(self) -> tuple[Step, ...] | None:
        """The steps that undo this one, () when there is nothing to undo, None when it is irreversible."""
        return ()


class Live(Model):
    """A source that is written to meanwhile. `field`: the target's name of the payload field that every write raises."""

    field: str | None = None
    bound: int = 100  # go on when a pass had to repair at most so many points
    passes: int = 10  # at most so many; then the run stops
    accept: tuple[str, ...] = ()


class ChunkTable(Model):
    """The user's relational table whose rows name points. `where` limits it to one collection's rows."""

    connection: str
    table: str
    id_column: str
    vector_id_column: str
    collection_column: str | None = None
