"""The rows of documents and chunks in the user's tables, as batch operations need them: all that is done with them.

Reading, taking out, editing, swapping and putting back stand in modules of their own; this is their door. Whatever is
written goes with its undo copy in one transaction, and may be repeated. Ids are compared as text.
"""

from __future__ import annotations

from runner.documents.editing import edit
from runner.documents.inserting import NewChunk
from runner.documents.reading import ChunkRow, Row, check, read, select, would_change
from runner.documents.references import referring
from runner.documents.removal import take_out
from runner.documents.restoring import Restored, restorable, restore
from runner.documents.swapping import Swap, announce_all, swap_all
from runner.documents.undo import explained, forget, new_undo, prepare, undo_rows

__all__ = [
    "ChunkRow",
    "NewChunk",
    "Restored",
    "Row",
    "Swap",
    "announce_all",
    "check",
    "edit",
    "explained",
    "forget",
    "new_undo",
    "prepare",
    "read",
    "referring",
    "restorable",
    "restore",
    "select",
    "swap_all",
    "take_out",
    "undo_rows",
    "would_change",
]
