"""The files of documents: copied to the trash before anything of a document goes, deleted after all else, and brought back.

Several at once, as each call is a round trip; a file that several documents name is taken once. What is deleted is what was
copied: a file that came in its place stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from runner import crash
from runner.errors import NotFound, Permanent
from runner.executor.batch.documents import Document, home_of
from runner.executor.flow import retried
from runner.objects.storage import Found, Objects, checked_key
from runner.plan import DeleteDocuments, Files

if TYPE_CHECKING:
    from runner.executor import Run

Given = TypeVar("Given")
Result = TypeVar("Result")

#: Calls to object storage at once.
AT_ONCE = 8


def each(given: Sequence[Given], action: Callable[[Given], Result]) -> list[Result]:
    """What comes of each, in order."""
    if len(given) < 2:
        return [action(one) for one in given]
    with ThreadPoolExecutor(min(AT_ONCE, len(given)), thread_name_prefix="files") as pool:
        return list(pool.map(action, given))


def key_of(document: Document) -> str:
    """Key of its file, empty if it has none."""
    return (document.row.file or "") if document.row is not None else ""


def copy_to_trash(run: Run, step: DeleteDocuments, documents: Iterable[Document]) -> dict[str, str]:
    """Key -> why the file cannot be copied, empty where it was, or where it is gone already."""
    files = step.files
    assert files is not None
    objects, home = run.world.objects(files.connection), home_of(run)
    taken = dict[str, bool]()
    for one in documents:
        if (key := key_of(one)) and one.row is not None:
            taken[key] = taken.get(key, True) and one.row.taken

    def copy(key: str) -> str:
        try:
            if run.dry:
                objects.head(key)
            elif not taken[key]:  # once its rows are out, a file under this key came since
                with suppress(NotFound):
                    retried(lambda: objects.copy(key, files.key(home, key)), run.limits, run.stop)
        except Permanent as exc:
            return str(exc)
        return ""

    errors = dict(zip(taken, each(list(taken), copy), strict=True))
    crash.point(step.type, "files_saved")
    return errors


def delete_copied(run: Run, step: DeleteDocuments, keys: Iterable[str]) -> dict[str, tuple[bool, str]]:
    """Key -> (whether its copy is in the trash and no row names the file any more, why the file is not deleted)."""
    files, rows = step.files, step.rows
    assert files is not None
    assert rows is not None
    from runner.documents.files import still_named

    objects, home, database = run.world.objects(files.connection), home_of(run), run.world.database(rows.connection)
    wanted = list(dict.fromkeys(keys))
    shared = retried(lambda: still_named(database, rows, wanted), run.limits, run.stop)

    def drop(key: str) -> tuple[bool, str]:
        if key in shared:
            return False, ""
        try:
            kept = retried(lambda: objects.head(files.key(home, key)), run.limits, run.stop)
            present = retried(lambda: objects.head(key), run.limits, run.stop)
            if present is not None:
                if kept is None or not _same(objects, present, kept):
                    return kept is not None, f"Another file has come in its place: {key}"
                retried(lambda: objects.delete(key), run.limits, run.stop)
        except (NotFound, Permanent) as exc:
            return False, str(exc)
        return kept is not None, ""

    found = dict(zip(wanted, each(wanted, drop), strict=True))
    crash.point(step.type, "files")
    return found


def bring_back(run: Run, files: Files, origin: str, keys: Iterable[str]) -> tuple[int, int]:
    """(files that came out of the trash, files that stay because another one is in their place)."""
    objects, limits, stop = run.world.objects(files.connection), run.limits, run.stop

    def back(key: str) -> str:
        there = files.key(origin, key)
        kept = retried(lambda: objects.head(there), limits, stop)
        if kept is None:
            return ""
        present = retried(lambda: objects.head(key), limits, stop)
        with suppress(NotFound):  # another document has the same file: it is back, and its copy is gone, in this moment
            if present is None:
                retried(lambda: objects.copy(there, key), limits, stop)
                return "back"
            return "" if _same(objects, present, kept) else "left"
        return ""

    found = each(_possible(keys), back)
    return found.count("back"), found.count("left")


def empty_trash(run: Run, files: Files, origin: str, taken: dict[str, bool]) -> None:
    """After the rows are back the copies are of no use any more. `taken`: key -> whether its document was out."""
    objects, limits, stop = run.world.objects(files.connection), run.limits, run.stop

    def out(key: str) -> None:
        there = files.key(origin, key)
        try:
            retried(lambda: objects.delete(there), limits, stop)
        except Permanent:  # who may not delete has no copy there either
            try:
                held = retried(lambda: objects.head(there), limits, stop)
            except Permanent:
                if taken[key]:
                    raise
                return  # a document that is as it was must not stand in the way of the others
            if held is not None:
                raise

    each(_possible(taken), out)


def _possible(keys: Iterable[str]) -> list[str]:
    """Each once. What is no key of a file was never copied."""
    found = list[str]()
    for key in dict.fromkeys(keys):
        with suppress(Permanent):
            found.append(checked_key(key))
    return found


def _same(objects: Objects, one: Found, other: Found) -> bool:
    """Whether two files have the same content. NotFound when one of them goes in this moment."""
    if one.size != other.size:
        return False
    return (bool(one.etag) and one.etag == other.etag) or objects.read(one.key) == objects.read(other.key)
