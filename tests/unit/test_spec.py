"""From YAML to a checked job: rendering, positions, every problem at once, digests (G1, G2)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from runner.errors import Diagnostic, InvalidFile, NotFound, redact, register_secret
from runner.spec import (
    SpecModel,
    check_model,
    digest,
    literal_secrets,
    load_job,
    meant,
    parse,
    read_text,
    render,
    shown,
    suggest,
)


class Inner(SpecModel):
    size: int = 1
    mode: Literal["one", "two"] = "one"


class Outer(SpecModel):
    inner: Inner = Inner()
    many: tuple[Inner, ...] | Literal["all"] = ()
    names: dict[str, str] = {}
    place: str | Inner = ""


KINDS = {"Test": lambda: Outer}


def problems(text: str) -> list[tuple[int, str, str]]:
    """(line, field, message) of everything wrong with `text` as an Outer."""
    document = parse(text, "f.yaml")
    found = check_model(Outer, document.data, document, ())
    assert isinstance(found, list)
    return [(item.line, item.field, item.message) for item in found]


def test_render_knows_variables_and_names_the_line_of_an_unknown_one() -> None:
    assert render("a: {{ x }}\nb: {{ y|upper }}\n", "f", {"x": 1, "y": "z"}) == "a: 1\nb: Z\n"
    with pytest.raises(InvalidFile) as caught:
        render("a: 1\nb:\n  c: {{ nope }}\n", "f", {"x": 1})
    assert caught.value.diagnostics[0].line == 3
    assert "known variables: x" in caught.value.diagnostics[0].hint


@pytest.mark.parametrize(
    "text", ["{{ ''.__class__.__base__ }}", "{{ x.__init__.__globals__ }}", "{{ cycler.__init__ }}"]
)
def test_render_stays_in_its_sandbox(text: str) -> None:
    with pytest.raises(InvalidFile):
        render(text, "f", {"x": object()})


def test_parse_keeps_the_line_of_every_part() -> None:
    document = parse("a:\n  - b: 1\n    c: [2,\n      3]\n", "f")
    assert document.data == {"a": [{"b": 1, "c": [2, 3]}]}
    assert document.lines[("a", 0, "c", 1)] == 4
    assert document.line(("a", 0, "c", 9)) == 3  # the deepest part there is
    assert document.line(("no", "such")) == 1


def test_parse_keeps_dates_as_text_and_reads_anchors() -> None:
    assert parse("a: 2026-11-20\nb: 2026-11-20T10:00:00Z\n", "f").data == {
        "a": "2026-11-20",
        "b": "2026-11-20T10:00:00Z",
    }
    assert parse("a: &x {b: 1}\nc: *x\n", "f").data == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    "text", ["a: !!python/object:os.system x", "a: !custom x", "a: *unknown", "a: 'open", "%YAML x"]
)
def test_parse_refuses_what_is_no_plain_yaml(text: str) -> None:
    with pytest.raises(InvalidFile) as caught:
        parse(text, "f")
    assert caught.value.diagnostics[0].line >= 1


def test_all_problems_come_at_once_with_their_places() -> None:
    text = "inner: {size: x, mode: thre, more: 1}\nmany:\n  - {size: 1.5}\n  - {sise: 1}\nnames: {a: 1}\nplace: 5\nextra: 1\n"
    assert problems(text) == [
        (1, "inner.size", "should be a whole number, found 'x'"),
        (1, "inner.mode", "should be 'one' or 'two', found 'thre'"),
        (1, "inner.more", "unknown key"),
        (3, "many.0.size", "should be a whole number, found 1.5"),
        (4, "many.1.sise", "unknown key"),
        (5, "names.a", "should be text, found 1"),
        (6, "place", "should be text or a mapping, found 5"),
        (7, "extra", "unknown key"),
    ]


def test_keys_that_look_like_the_names_of_types_keep_their_place() -> None:
    assert problems("names:\n  str: 1\n  Inner: 2\n") == [
        (2, "names.str", "should be text, found 1"),
        (3, "names.Inner", "should be text, found 2"),
    ]


def test_one_of_two_forms() -> None:
    assert problems("many: some\n") == [(1, "many", "should be a list or 'all', found 'some'")]
    assert problems("place: {sise: 1}\n") == [(1, "place.sise", "unknown key")]


def test_suggestions() -> None:
    assert suggest("colections", ["collections", "target"]) == "did you mean collections?; allowed: collections, target"
    assert suggest("zzz", ["a"]) == "allowed: a"
    assert suggest("zzz", []) == ""
    assert meant("QDRANT", ["qdrant"]) == "did you mean qdrant?"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


HEAD = "apiVersion: vecrun/v1\nkind: Test\nmetadata: {name: x}\n"


def test_the_digest_names_the_content_and_not_the_form(tmp_path: Path) -> None:
    one = load_job(write(tmp_path / "a.yaml", HEAD + "spec:\n  place: p\n  inner: {size: 1}\n"), KINDS, {})
    two = load_job(
        write(tmp_path / "b.yaml", "# words\n" + HEAD + "spec: {inner: {}, place: '{{ p }}'}\n"), KINDS, {"p": "p"}
    )
    three = load_job(write(tmp_path / "c.yaml", HEAD + "spec: {place: p, inner: {size: 2}}\n"), KINDS, {})
    assert one.digest == two.digest
    assert one.digest != three.digest


def test_a_missing_file_is_not_found_and_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_text(tmp_path / "no.yaml")
    with pytest.raises(InvalidFile):
        read_text(tmp_path)


def test_paths_are_shown_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w").mkdir()
    monkeypatch.chdir(tmp_path / "w")
    assert shown(tmp_path / "w" / "jobs" / "a.yaml") == "jobs/a.yaml"
    assert shown(tmp_path / "other.yaml") == str(tmp_path / "other.yaml")


@pytest.mark.parametrize(
    "value",
    ["password: geheim", "api_key: 12345", "url: 'https://u:geheim@h'", "url: 'postgresql://h/d?x=1&password=geheim'"],
)
def test_secrets_that_are_written_out_are_found(value: str) -> None:
    assert literal_secrets(parse(value, "f"))


@pytest.mark.parametrize(
    "value",
    [
        "password: ${env:X}", "api_key: '${file:/run/x}'", "url: 'https://u:${env:X}@h'", "url: 'https://u@h:5432/d'",
        "url: 'postgresql://u:${file:/run/pw}@h/d'", "url: 'postgresql://h/d?password=${env:X}'", "api_key: ''",
        "text: 'a: b@c'",
    ],
)  # fmt: skip
def test_references_and_harmless_values_are_not(value: str) -> None:
    assert literal_secrets(parse(value, "f")) == []


def test_a_resolved_secret_is_removed_from_every_message() -> None:
    register_secret("unit-test-secret")
    assert redact("x unit-test-secret y") == "x *** y"
    assert "unit-test" not in str(Diagnostic("f", 1, "a", "found 'unit-test-secret'", "not unit-test-secret"))
    assert "unit-test" not in str(NotFound("unit-test-secret", "unit-test-secret", "unit-test-secret").as_dict())


def test_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [1.0, None]}) == digest({"b": [1.0, None], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.0})
