"""Text out of files: plain text, Markdown, HTML, PDF, Word. The same bytes give the same text.

Text comes in Unicode's composed form (NFC, so that one word is one word whatever wrote it), with \\n between lines and
without characters that a database refuses. Headings of HTML and Word become Markdown's #, so that a splitter sees them.
What cannot be read is a `Permanent` that names the file and the reason; nothing else is raised.
"""

from __future__ import annotations

import io
import logging
import re
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from runner.errors import Permanent, VecrunError

MAX_BYTES = 256 * 2**20  # of a file
MAX_UNPACKED = 512 * 2**20  # of all that is in a DOCX
MAX_XML = 64 * 2**20  # of one XML part of it, and of an HTML page: a tree takes some ten times as much memory
MAX_PARTS = 10_000  # in a DOCX
MAX_PAGES = 20_000  # of a PDF
MAX_TEXT = 64 * 2**20  # characters

_BOMS = (  # UTF-32 first: its mark begins with that of UTF-16
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
#: What no text needs: control characters, and halves of characters beyond U+FFFF. Tab and newline stay.
_CONTROL, _SURROGATE = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]"), re.compile(r"[\ud800-\udfff]")
_DECLARED = re.compile(
    rb"""<(?:meta[^>]{0,200}?charset|\?xml[^>]{0,100}?encoding)\s*=\s*["']?\s*([A-Za-z0-9_-]{2,30})"""
)
_CHARSETS = re.compile(
    r"utf-?8|(us-)?ascii|iso-?8859-\d+|latin-?\d+|(windows-|cp)125\d|cp(437|850|852|866|932|949)|koi8-[ru]|macintosh|tis-620"
    r"|(shift|x)[_-]s?jis|euc-(jp|kr)|iso-2022-jp|gb(2312|k|18030)|big5(-hkscs)?",
    re.IGNORECASE,
)
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # Word before 2007, and what is encrypted


def parse(data: bytes, name: str) -> str:
    """The text of a file. Its kind is told by the ending of `name`, else by its content. May be empty, but for a PDF."""
    if len(data) > MAX_BYTES:
        raise Permanent("A file is too large", f"{name}: {len(data):,} bytes; the limit is {MAX_BYTES:,}")
    kind = KINDS.get(name.rpartition("/")[2].rpartition(".")[2].lower()) or _kind_of(data)
    if kind is None:
        known = ", ".join(KINDS)
        raise Permanent("The kind of a file is not known", name, f"Known by its ending or content: {known}")
    try:
        text = kind(data)
    except ModuleNotFoundError as exc:
        missing = f"{name} needs the package {(exc.name or '').split('.')[0]!r}"
        raise Permanent("A package is missing", missing, "pip install 'vecrun[documents]'") from exc
    except _Unreadable as exc:
        raise Permanent(exc.summary, f"{name}: {exc.detail}", exc.hint) from exc
    except Exception as exc:  # libraries raise anything over a damaged file
        why = str(exc).partition("\n")[0][:200]
        raise Permanent("A file is corrupt", f"{name}: {type(exc).__name__}{': ' if why else ''}{why}") from exc
    if len(text) > MAX_TEXT:
        raise Permanent("A file is too large", f"{name}: {len(text):,} characters; the limit is {MAX_TEXT:,}")
    return _clean(text)


class _Unreadable(VecrunError):
    """Why a file cannot be read; its name is added by `parse`."""


def _clean(text: str) -> str:
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").replace("\x0c", "\n")
    return unicodedata.normalize("NFC", _SURROGATE.sub("\ufffd", _CONTROL.sub("", text)))


def _kind_of(data: bytes) -> Callable[[bytes], str] | None:
    start = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()
    if b"%PDF-" in start:
        return _pdf
    if data.startswith(b"PK\x03\x04"):
        return _docx if b"word/" in data else None
    head = start.lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or (
        head[:5] == b"<?xml" and b"<html" in head
    ):
        return _html
    if data.startswith((_OLE, b"\x1f\x8b", b"\x89PNG", b"GIF8", b"\xff\xd8\xff", b"\x7fELF", b"Rar!", b"7z\xbc\xaf")):
        return None
    if b"\x00" in data[:65_536] and not data.startswith(tuple(mark for mark, _ in _BOMS)):
        return None
    return _plain


def _plain(data: bytes) -> str:
    return _decoded(data)


def _decoded(data: bytes, declared: str = "") -> str:
    """Bytes as text: by their byte order mark, by what they declare, as UTF-8, and else by what they look like."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    for encoding in (declared or "utf-8", "utf-8"):
        try:
            return _readable(data.decode(encoding))
        except (LookupError, UnicodeError):
            continue
    from charset_normalizer import from_bytes

    found = from_bytes(data).best()
    if found is None:
        raise _Unreadable("A file is no text", "its encoding cannot be told", "Save it as UTF-8")
    return _readable(str(found))


def _readable(text: str) -> str:
    """The text, unless it is something else that happened to be decodable."""
    if len(_CONTROL.findall(text)) > 10 + len(text) // 10:
        raise _Unreadable("A file is no text", "too much of it are control characters")
    return text


# HTML ---------------------------------------------------------------------------------------------------------------

_DROPPED = {"head", "iframe", "nav", "noscript", "object", "script", "style", "svg", "template"}
_PARAGRAPHS = {
    "address", "article", "aside", "blockquote", "body", "details", "div", "dl", "fieldset", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5",
    "h6", "header", "hr", "main", "ol", "p", "pre", "section", "table", "ul",
}  # fmt: skip
_LINES = {"br", "caption", "dd", "dt", "figcaption", "legend", "li", "option", "summary", "td", "th", "tr"}
_SPACE = re.compile(r"[ \t\n\r\f]+")


def _html(data: bytes) -> str:
    from lxml import etree  # type: ignore[import-untyped]

    if len(data) > MAX_XML:
        raise _Unreadable("A file is too large", f"{len(data):,} bytes of HTML; the limit is {MAX_XML:,}")
    found = _DECLARED.search(data[:4096])
    declared = found[1].decode() if found else ""
    if declared.lower() in ("iso-8859-1", "latin1", "latin-1", "ascii", "us-ascii"):
        declared = "windows-1252"  # as browsers do
    text = _decoded(data, declared if _CHARSETS.fullmatch(declared) else "")
    text = _SURROGATE.sub("\ufffd", _CONTROL.sub("", text))
    if not text.strip():
        return ""
    parser = etree.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, no_network=True)
    root = etree.fromstring(text.encode(), parser)
    return "" if root is None else re.sub(r"\n{3,}", "\n\n", "\n".join(_html_lines(root, etree.iterwalk))).strip()


def _html_lines(root: Any, walk: Any) -> Iterator[str]:
    """Lines of a page; an empty one between paragraphs."""
    line, before, dropped, pre = list[str](), "", 0, 0

    def add(text: str | None) -> None:
        if text and not dropped:
            text = text if pre else _SPACE.sub(" ", text)
            line.append(text.removeprefix(" ") if line and line[-1].endswith((" ", "\n")) and not pre else text)

    def ended() -> Iterator[str]:
        nonlocal before
        whole = "".join(line)
        line.clear()
        if whole.strip():
            yield before + (whole.strip("\n") if pre else whole.strip())
            before = ""

    for event, item in walk(root, events=("start", "end")):
        tag = item.tag
        heading = len(tag) == 2 and tag[0] == "h" and tag[1] in "123456"
        if (block := tag in _PARAGRAPHS or tag in _LINES) and not dropped:
            yield from ended()
            if tag in _PARAGRAPHS:
                yield ""
        if event == "start":
            dropped += tag in _DROPPED
            pre += tag == "pre"
            if block and not dropped and (heading or tag == "li"):
                before = f"{'#' * int(tag[1])} " if heading else "- "
            add(item.text)
        else:
            dropped -= tag in _DROPPED
            pre -= tag == "pre"
            if heading or tag == "li":
                before = ""
            add(item.tail)
    yield from ended()


# PDF ----------------------------------------------------------------------------------------------------------------


def _pdf(data: bytes) -> str:
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL + 1)  # it would complain on stderr
    if b"%PDF-" not in data[:1024]:
        raise _Unreadable("A file is corrupt", "it is no PDF: it does not begin with %PDF-")
    if b"%%EOF" not in data[-65_536:]:
        raise _Unreadable("A file is corrupt", "the end of this PDF is missing", "Upload it again")
    reader = pypdf.PdfReader(io.BytesIO(data), strict=False)
    if reader.is_encrypted:
        try:
            opened = reader.decrypt("")  # many may be read by everybody, and not changed
        except pypdf.errors.DependencyError as exc:
            hint = "pip install 'pypdf[crypto]'"
            raise _Unreadable(
                "A file is encrypted", "a PDF that only pypdf with a package of cryptography reads", hint
            ) from exc
        if not opened:
            raise _Unreadable("A file is encrypted", "this PDF wants a password", "Store it without one")
    if len(reader.pages) > MAX_PAGES:
        raise _Unreadable("A file is too large", f"{len(reader.pages):,} pages; the limit is {MAX_PAGES:,}")
    if not reader.pages:
        raise _Unreadable("A file is corrupt", "this PDF has no pages")
    pages, size = [], 0
    for page in reader.pages:
        pages.append(page.extract_text().strip())
        size += len(pages[-1])
        if size > MAX_TEXT:
            break
    text = "\n\n".join(page for page in pages if page)
    if not text:
        raise _Unreadable(
            "A file has no text",
            f"none of this PDF's pages ({len(pages)}) has any; probably it was scanned",
            "Recognise its text first (OCR)",
        )
    return text


# DOCX ---------------------------------------------------------------------------------------------------------------

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
#: What is in a paragraph and not its text: settings, what was deleted or moved away, what stands there a second time.
_NO_TEXT = {f"{_W}{name}" for name in ("pPr", "rPr", "del", "moveFrom", "rt", "instrText")} | {_FALLBACK}
_HEADING = re.compile(r"heading ([1-9])")


def _docx(data: bytes) -> str:
    import docx

    if data.startswith(_OLE):
        raise _Unreadable(
            "A file is encrypted", "it wants a password, or is of a Word before 2007", "Store it as plain .docx"
        )
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        parts = packed.infolist()
        large = max((part.file_size for part in parts if part.filename.endswith((".xml", ".rels"))), default=0)
        whole = sum(part.file_size for part in parts)
        if len(parts) > MAX_PARTS or whole > MAX_UNPACKED or large > MAX_XML:
            what = f"{len(parts):,} parts, {whole:,} bytes unpacked, {large:,} in one"
            limits = f"the limits are {MAX_PARTS:,}, {MAX_UNPACKED:,} and {MAX_XML:,}"
            raise _Unreadable("A file is too large", f"{what}; {limits}")
    document = docx.Document(io.BytesIO(data))
    marks = {style.style_id: mark for style in document.styles if (mark := _mark(style))}
    return "\n\n".join(_docx_blocks(document.element.body, marks))


def _mark(style: Any) -> str:
    """What Markdown puts before a paragraph of this style."""
    for _ in range(20):  # a damaged file can have a circle of them
        name = (style.name or "").lower()
        if found := _HEADING.fullmatch(name):
            return "#" * min(int(found[1]), 6) + " "
        if name == "title":
            return "# "
        if name.startswith(("list bullet", "list number")):
            return "- "
        style = getattr(style, "base_style", None)
        if style is None:
            break
    return ""


def _docx_blocks(holder: Any, marks: dict[str, str]) -> Iterator[str]:
    """Paragraphs and tables in their order; a row of a table is a line."""
    for item in holder:
        if item.tag == f"{_W}p":
            style = item.find(f"{_W}pPr/{_W}pStyle")
            mark = marks.get(style.get(f"{_W}val"), "") if style is not None else ""
            if not mark and item.find(f"{_W}pPr/{_W}numPr") is not None:
                mark = "- "
            if text := "".join(_runs(item)).strip():
                yield mark + (" ".join(text.split()) if mark[:1] == "#" else text)
        elif item.tag == f"{_W}tbl":
            rows = (
                " | ".join(" ".join("".join(_runs(cell)).split()) for cell in row.iterchildren(f"{_W}tc"))
                for row in item.iter(f"{_W}tr")
                if next(row.iterancestors(f"{_W}tbl")) is item
            )
            if text := "\n".join(row for row in rows if row.strip(" |")):
                yield text
        elif item.tag not in _NO_TEXT and isinstance(item.tag, str):  # content controls, tracked changes
            yield from _docx_blocks(item, marks)


def _runs(holder: Any) -> Iterator[str]:
    """The text below an element, paragraphs in it on lines of their own."""
    for item in holder:
        if item.tag in _NO_TEXT:
            continue
        if item.tag == f"{_W}t":
            yield item.text or ""
        elif item.tag == f"{_W}tab":
            yield "\t"
        elif item.tag in (f"{_W}br", f"{_W}cr"):
            yield "\n"
        elif item.tag == f"{_W}noBreakHyphen":
            yield "-"
        else:
            yield from _runs(item)
            if item.tag == f"{_W}p":
                yield "\n"


#: ending of a name -> what reads such files
KINDS: dict[str, Callable[[bytes], str]] = {
    "docx": _docx,
    "htm": _html,
    "html": _html,
    "markdown": _plain,
    "md": _plain,
    "pdf": _pdf,
    "txt": _plain,
}
