"""The text of each point, and which points have to be embedded: asked by a plan, and by the run that carries it out."""

from __future__ import annotations

from collections.abc import Sequence

from runner.conditions import MISSING, look_up
from runner.plan import Place, VersionRows
from runner.points import PointBatch, PointId
from runner.transform import Embedding
from runner.vectors import Failure, Vectors, text_key
from runner.world import World


def texts_of(world: World, embed: Embedding, batch: PointBatch) -> list[str | Failure]:
    """The text of each point, or why it has none."""
    if embed.column is not None:
        from runner.documents import texts

        rows = texts.fetch(world.database(embed.column.connection), embed.column, batch.ids)
        return [rows.get(point_id, Failure(point_id, _no_row(embed), 1)) for point_id in batch.ids]
    assert embed.field is not None
    found: list[str | Failure] = []
    for point_id, payload in zip(batch.ids, batch.payloads.dicts, strict=True):
        value = look_up(payload, embed.field)
        if isinstance(value, str):
            found.append(value)
        else:
            what = "is missing" if value is MISSING else f"is no text but {type(value).__name__}"
            found.append(Failure(point_id, f"payload field {embed.field} {what}", 1))
    return found


def _no_row(embed: Embedding) -> str:
    assert embed.column is not None
    return f"no row of {embed.column.table} names this point in {embed.column.vector_id_column}, or its text is NULL"


class Choice:
    """Which points of a collection are to be embedded again in place.

    `stale_only`: those whose recorded text or model, or whose version in `rows` or the payload, is not the present one;
    else all but those that `run` has embedded already.
    """

    def __init__(
        self, world: World, kept: Vectors, place: Place, embed: Embedding, rows: VersionRows | None, *,
        stale_only: bool, run: str = "",
    ) -> None:  # fmt: skip
        self.world, self.kept, self.place, self.embed, self.rows_of = world, kept, place, embed, rows
        self.stale_only, self.run = stale_only, run
        self.trusted = 0  # points taken as current for their version alone: nobody recorded their text

    def rows(self, batch: PointBatch, found: Sequence[str | Failure]) -> list[int]:
        """Positions of these points in the batch; `found` are its texts. Those without a text are among them."""
        marks = self.kept.marks(str(self.place), self.embed.vector, batch.ids)
        current = self._current(batch) if self.stale_only else {}
        chosen = []
        for row, (point_id, text) in enumerate(zip(batch.ids, found, strict=True)):
            mark = marks.get(point_id)
            if isinstance(text, Failure):
                chosen.append(row)
            elif mark is not None:
                made = (mark.model, mark.text) == (self.embed.identity.key, text_key(text))
                counts = self.stale_only or mark.run == self.run
                if not (made and counts and current.get(point_id, True)):
                    chosen.append(row)
            elif not current.get(point_id, False):
                chosen.append(row)
            else:
                self.trusted += 1
        return chosen

    def _current(self, batch: PointBatch) -> dict[PointId, bool]:
        """id -> whether its version, where it has one, is the model's."""
        version = self.embed.identity.version
        if self.rows_of is not None:
            from runner.documents import model

            rows = model.versions(self.world.database(self.rows_of.connection), self.rows_of, batch.ids)
            return {point_id: found == version for point_id, found in rows.items()}
        name = self.embed.version_field
        if name is None:
            return {}
        pairs = zip(batch.ids, batch.payloads.dicts, strict=True)
        return {point_id: item.get(name) == version for point_id, item in pairs}
