"""Text out of files of every kind; what cannot be read is a Permanent that says why (C2)."""

from __future__ import annotations

import io
import random
import unicodedata
import zipfile
import zlib
from collections.abc import Callable

import docx
import pypdf
import pytest
from docx.oxml import parse_xml

from runner.documents import parse as parsing
from runner.documents.parse import KINDS, parse
from runner.errors import Permanent

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def pdf(*pages: str) -> bytes:
    """A PDF with these texts, written by hand."""
    font = 3 + 2 * len(pages)
    kids = " ".join(f"{3 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode()]
    for number, page in enumerate(pages):
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {4 + 2 * number} 0 R "
            f"/Resources << /Font << /F1 {font} 0 R >> >> >>".encode()
        )
        drawn = "".join(
            f"BT /F1 12 Tf 72 {720 - 20 * row} Td ({line}) Tj ET\n" for row, line in enumerate(page.split("\n")) if line
        )
        packed = zlib.compress(drawn.encode("cp1252"))
        objects.append(b"<< /Length %d /Filter /FlateDecode >>\nstream\n%b\nendstream" % (len(packed), packed))
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>")
    made, places = b"%PDF-1.4\n", []
    for number, item in enumerate(objects, 1):
        places.append(b"%010d 00000 n \n" % len(made))
        made += b"%d 0 obj\n%b\nendobj\n" % (number, item)
    size = len(objects) + 1
    table = b"xref\n0 %d\n0000000000 65535 f \n%b" % (size, b"".join(places))
    return made + table + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(made))


def saved(document: object) -> bytes:
    out = io.BytesIO()
    document.save(out)  # type: ignore[attr-defined]
    return out.getvalue()


def word(*paragraphs: str) -> bytes:
    """A DOCX with these paragraphs."""
    document = docx.Document()
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    return saved(document)


# Plain text ---------------------------------------------------------------------------------------------------------

GERMAN = "Das Straßenfest wurde für nächsten Samstag angekündigt, weil es überall schön blühte. " * 3
RUSSIAN = "Собрание состоится в следующую пятницу, приглашаются все жители нашего города. " * 3


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        ("plain é 日本\n".encode(), "plain é 日本\n"),
        ("\ufeffmarked".encode(), "marked"),
        ("\ufeffé日".encode("utf-16-le"), "é日"),
        ("\ufeffé日".encode("utf-16-be"), "é日"),
        ("\ufeffé日".encode("utf-32-le"), "é日"),
        ("\ufeffé日".encode("utf-32-be"), "é日"),
        (GERMAN.encode("cp1252"), GERMAN),
        (RUSSIAN.encode("cp1251"), RUSSIAN),
        (b"a\r\nb\rc\x0cd\n", "a\nb\nc\nd\n"),
        (b"with \x1b[1m", "with [1m"),
        ("e\u0301 A\u030a".encode(), "é Å"),
    ],
)
def test_plain_text(data: bytes, text: str) -> None:
    for name in ("a.txt", "folder/B.MD", "c.markdown", "no ending", "odd.xyz"):
        assert parse(data, name) == text


def test_no_character_that_a_database_refuses() -> None:
    assert parse(b"with\x00 NUL", "a.txt") == "with NUL"
    assert parse(b"<p>with\x00 NUL, &#0;&#xD800; end", "a.html").replace("\ufffd", "").split() == [
        "with",
        "NUL,",
        "end",
    ]


@pytest.mark.parametrize(
    "data", [bytes(range(32)) * 40, random.Random(5).randbytes(4000), b"\x89PNG\r\n\x1a\n" + bytes(900)]
)
def test_what_is_no_text(data: bytes) -> None:
    for name in ("a.txt", "picture", "a.html"):
        with pytest.raises(Permanent, match=r"no text|not known"):
            parse(data, name)


# HTML ---------------------------------------------------------------------------------------------------------------


def test_html_is_read_as_it_is_seen() -> None:
    page = """<!doctype html><html><head><title>no</title><style>no {}</style></head><body><nav>no</nav>
    <h1>The <b>first</b>
    heading</h1><p>a &amp; b &eacute; &#26085; <a href="/no">link</a>   end<br>next line<!-- no --></p>
    <script>no()</script><ul><li>one<li>two <i>three</i></ul><h3>Third</h3>
    <table><tr><th>k</th><td>v</td></tr></table><pre>  keep
    me</pre>tail<template>no</template></body></html>"""
    assert parse(page.encode(), "a.html") == (
        "# The first heading\n\na & b é 日 link end\nnext line\n\n- one\n- two three\n\n### Third\n\nk\nv\n\n"
        "  keep\n    me\n\ntail"
    )
    assert parse(page.encode(), "without ending") == parse(page.encode(), "a.htm")


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ('<meta charset="shift_jis">', "shift_jis"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=euc-jp">', "euc-jp"),
        ('<?xml version="1.0" encoding="utf-8"?><html>', "utf-8"),
        ("", "utf-8"),
        ('<meta charset="utf-16">', "utf-8"),
        ('<meta charset="unicode_escape">', "utf-8"),
        ('<meta charset="no-such-thing">', "utf-8"),
        ("", "utf-16"),
    ],
)
def test_html_says_its_encoding(head: str, encoding: str) -> None:
    assert parse(f"{head}<p>日本語のテキスト</p>".encode(encoding), "a.html") == "日本語のテキスト"


def test_latin1_is_what_browsers_take_it_for() -> None:
    assert parse('<meta charset="iso-8859-1"><p>“quoted” – 5 €</p>'.encode("cp1252"), "a.html") == "“quoted” – 5 €"


@pytest.mark.parametrize("page", [b"", b" ", b"<!-- -->", b"<html></html>", b"<", b"<script>x</script>"])
def test_html_with_nothing_in_it(page: bytes) -> None:
    assert parse(page, "a.html").strip("<") == ""


def test_html_that_is_absurdly_deep() -> None:
    assert "deep" in parse(b"<div>" * 200 + b"deep" + b"<b>" * 50_000, "a.html")


# PDF ----------------------------------------------------------------------------------------------------------------


def test_pdf_pages_are_joined() -> None:
    data = pdf("First page\nsecond line", "", "Third café")
    assert parse(data, "a.pdf") == "First page\nsecond line\n\nThird café"
    assert parse(b"\n\n" + data + b"\nafter", "told by its content") == parse(data, "a.PDF")


def encrypted(user: str, algorithm: str) -> bytes:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf("A secret page")))
    writer.encrypt(user, owner_password="owner", algorithm=algorithm)
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-256"])
def test_encrypted_pdf(algorithm: str) -> None:
    with pytest.raises(Permanent, match=r"encrypted: kb/a\.pdf: .*password"):
        parse(encrypted("user", algorithm), "kb/a.pdf")
    assert parse(encrypted("", algorithm), "a.pdf") == "A secret page"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (pdf("", ""), r"has no text: a\.pdf: .*\(2\).*scanned"),
        (pdf("text")[:-300], r"corrupt: a\.pdf: the end"),
        (b"<html>", r"corrupt: a\.pdf: it is no PDF"),
        (b"", r"corrupt: a\.pdf: it is no PDF"),
        (b"%PDF-1.7\n%%EOF", r"corrupt: a\.pdf"),
        (b"%PDF-1.7\n" + b"garbage " * 99 + b"\nstartxref\n12\n%%EOF", r"corrupt: a\.pdf"),
        (pdf("text").replace(b"/Kids [3 0 R]", b"/Kids [2 0 R]"), r"corrupt: a\.pdf"),
        (pdf(), r"corrupt: a\.pdf: .*no pages"),
    ],
)
def test_pdf_that_cannot_be_read(data: bytes, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Permanent, match=says):
        parse(data, "a.pdf")
    assert capfd.readouterr() == ("", "")


# DOCX ---------------------------------------------------------------------------------------------------------------


def test_docx_in_its_order() -> None:
    document = docx.Document()
    document.add_heading("The title", 0)
    document.add_heading("One", 1)
    document.add_paragraph("A paragraph\twith a tab").add_run(" and a run").bold = True
    document.add_paragraph("   ")
    table = document.add_table(2, 2)
    for row in range(2):
        for column in range(2):
            table.cell(row, column).text = f"r{row} c{column}"
    document.add_heading("Deeper", 3)
    document.add_paragraph("point", style="List Bullet")
    document.add_paragraph("number", style="List Number")
    own = document.styles.add_style("Own Heading", docx.enum.style.WD_STYLE_TYPE.PARAGRAPH)
    own.base_style = document.styles["Heading 2"]
    document.add_paragraph("own style", style="Own Heading")
    assert parse(saved(document), "a.docx") == (
        "# The title\n\n# One\n\nA paragraph\twith a tab and a run\n\nr0 c0 | r0 c1\nr1 c0 | r1 c1\n\n### Deeper\n\n"
        "- point\n\n- number\n\n## own style"
    )
    assert parse(saved(document), "told by its content") == parse(saved(document), "a.docx")


@pytest.mark.parametrize(
    ("xml", "text"),
    [
        ("<w:sdt><w:sdtContent><w:p><w:r><w:t>in a control</w:t></w:r></w:p></w:sdtContent></w:sdt>", "in a control"),
        ("<w:p><w:ins><w:r><w:t>new</w:t></w:r></w:ins><w:del><w:r><w:delText>old</w:delText></w:r></w:del></w:p>", "new"),
        ("<w:p><w:moveFrom><w:r><w:t>away</w:t></w:r></w:moveFrom><w:r><w:t>here</w:t></w:r></w:p>", "here"),
        ("<w:p><w:hyperlink><w:r><w:t>a link</w:t></w:r></w:hyperlink></w:p>", "a link"),
        ("<w:p><w:r><w:t>a</w:t><w:br/><w:t>b</w:t><w:noBreakHyphen/><w:t>c</w:t></w:r></w:p>", "a\nb-c"),
        ("<w:p><w:pPr><w:tabs><w:tab w:val='left' w:pos='1'/></w:tabs></w:pPr><w:r><w:t>x</w:t></w:r></w:p>", "x"),
        ("<w:p><w:pPr><w:numPr/></w:pPr><w:r><w:t>listed</w:t></w:r></w:p>", "- listed"),
        (("<w:tbl><w:tr><w:tc><w:p/><w:tbl><w:tr><w:tc><w:p><w:r><w:t>inner</w:t></w:r></w:p></w:tc></w:tr></w:tbl></w:tc>"
         "<w:tc><w:p><w:r><w:t>outer</w:t></w:r></w:p></w:tc></w:tr></w:tbl>"), "inner | outer"),
        ("<w:p><w:pPr><w:pStyle w:val='Missing'/></w:pPr><w:r><w:t>no such style</w:t></w:r></w:p>", "no such style"),
    ],
)  # fmt: skip
def test_docx_elements(xml: str, text: str) -> None:
    document = docx.Document()
    document.element.body.insert(0, parse_xml(xml.replace(">", f' xmlns:w="{W}">', 1)))
    assert parse(saved(document), "a.docx") == text


def packed(parts: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in parts.items():
            file.writestr(name, data)
    return out.getvalue()


def entities() -> bytes:
    """A DOCX whose document grows when it is read."""
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + b"".join(
        b'<!ENTITY %c "%b">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9)
    )
    with zipfile.ZipFile(io.BytesIO(word("text"))) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    body = parts["word/document.xml"]
    head, _, rest = body.partition(b"?>")
    parts["word/document.xml"] = head + b"?>" + bomb + b"]>" + rest.replace(b"text</w:t>", b"&j;</w:t>")
    return packed(parts)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "corrupt"),
        (b"PK\x03\x04 and no more", "corrupt"),
        (word("text")[:-100], "corrupt"),
        (packed({"hello.txt": b"a ZIP, and no Word"}), "corrupt"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000), r"encrypted: .*password, or .* before 2007"),
        (packed({"word/document.xml": bytes(parsing.MAX_XML + 1)}), "too large"),
        (packed({f"word/{n}.bin": bytes(2**26) for n in range(9)}), "too large"),
        (packed({f"word/{n}": b"" for n in range(parsing.MAX_PARTS + 1)}), "too large"),
    ],
    ids=["empty", "start", "cut", "zip", "ole", "large part", "large whole", "many parts"],
)
def test_docx_that_cannot_be_read(data: bytes, says: str) -> None:
    with pytest.raises(Permanent, match=says) as caught:
        parse(data, "kb/a.docx")
    assert "kb/a.docx" in caught.value.detail


def test_docx_whose_entities_grow() -> None:
    with pytest.raises(Permanent, match="corrupt"):
        parse(entities(), "a.docx")


# All ----------------------------------------------------------------------------------------------------------------

SAMPLES = {
    "docx": word("A paragraph of a document.", "Another one."),
    "html": b'<meta charset="utf-8"><h1>Head</h1><p>caf\xc3\xa9 <b>bold</b></p><table><tr><td>x</table>',
    "md": "# Head\n\nA paragraph – with signs.\n".encode(),
    "pdf": pdf("A page of a document", "and another café"),
    "txt": "Text – with signs.\n".encode(),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_damaged_files_are_text_or_permanent(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Cut and altered at random; under the ending and told by their content."""
    chance, sample, refused = random.Random(kind), SAMPLES[kind], 0
    for turn in range(120):
        data = bytearray(sample)
        if turn % 3 == 0:
            data = data[: chance.randrange(len(data))]
        for _ in range(chance.choice((1, 4, 30)) if turn % 3 and data else 0):
            data[chance.randrange(len(data))] = chance.randrange(256)
        text = ""
        try:
            text = parse(bytes(data), f"a.{kind}" if turn % 2 else "a")
        except Permanent:
            refused += 1
        assert "\x00" not in text
        assert unicodedata.is_normalized("NFC", text)
        text.encode()
    assert refused > (60 if kind in ("docx", "pdf") else -1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", SAMPLES)
def test_the_same_bytes_give_the_same_text(kind: str) -> None:
    assert len({parse(SAMPLES[kind], f"a.{kind}") for _ in range(3)}) == 1


def test_every_kind_has_a_sample() -> None:
    reads: Callable[[str], object] = KINDS.__getitem__
    assert {reads(kind) for kind in SAMPLES} == set(KINDS.values())


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "MAX_TEXT", 10)
    for kind, sample in SAMPLES.items():
        if kind != "txt":
            with pytest.raises(Permanent, match=r"too large: a\..*characters"):
                parse(sample, f"a.{kind}")
    monkeypatch.setattr(parsing, "MAX_PAGES", 1)
    with pytest.raises(Permanent, match="2 pages"):
        parse(SAMPLES["pdf"], "a.pdf")
    monkeypatch.setattr(parsing, "MAX_XML", 20)
    with pytest.raises(Permanent, match="bytes of HTML"):
        parse(SAMPLES["html"], "a.html")
    monkeypatch.setattr(parsing, "MAX_BYTES", 5)
    with pytest.raises(Permanent, match="too large"):
        parse(SAMPLES["txt"], "a.txt")
