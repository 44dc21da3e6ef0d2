"""A plan as a page: whole, well formed, says all that the other forms say, and runs nothing that comes out of a plan (G3)."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.plan import Plan
from runner.report import html, phrases
from tests.e2e.workspace import Workspace, batch_of, run
from tests.golden.cases import CASES, HERE

VOID = {"meta", "rect", "br", "img", "input", "link"}
#: Elements a page is made of; anything else came out of a plan.
KNOWN = re.compile(
    "html|head|meta|title|style|body|a|header|p|h1|h2|h3|dl|div|dt|dd|time|code|nav|ul|ol|li|main|section|span|b|strong|button"
    "|details|summary|table|caption|thead|tbody|tfoot|tr|th|td|del|ins|svg|rect|pre|footer|script"
)
LOADS = {"src", "srcset", "href", "action", "data", "poster", "background", "style", "formaction", "xlink:href", "ping"}


class Page(HTMLParser):
    """A page taken apart; AssertionError where it is not well formed or would load or run something."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.code, self.open = "", {}, []  # type: tuple[str, dict[str, str], list[str]]
        self.elements: list[tuple[str, dict[str, str]]] = []
        assert text.startswith("<!DOCTYPE html>")
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert KNOWN.fullmatch(tag), tag
        found = {name: value or "" for name, value in attrs}
        assert len(found) == len(attrs), f"{tag}: an attribute twice"
        for name, value in found.items():
            assert not name.startswith("on"), f"{tag} {name}"
            assert name not in LOADS or (tag == "a" and value.startswith("#")), f"{tag} {name}={value}"
        if tag == "li":
            assert self.open[-1] in ("ul", "ol"), "a list in no list"
        self.elements.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "rect", "only a shape closes itself"
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "script"):
            self.code[self.open[-1]] = self.code.get(self.open[-1], "") + data
        else:
            self.text += data

    @property
    def count(self) -> Counter[str]:
        """Elements by name."""
        return Counter(tag for tag, _attributes in self.elements)

    @property
    def said(self) -> str:
        """What is read, with single spaces, without the folded JSON."""
        return words(self.text.partition("The plan as JSON")[0])

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def words(text: str) -> str:
    return " ".join(text.split())


def golden(name: str) -> Plan:
    """A golden plan; its digests are not those of its content, which no page looks at."""
    return Plan.model_validate(json.loads((HERE / f"{name}.json").read_text()))


@pytest.mark.parametrize("name", CASES)
def test_a_page_says_what_the_other_forms_say(name: str) -> None:
    plan = golden(name)
    page = Page(html.plan(plan, "plans/one.json"))
    wanted = [plan.job, plan.description, phrases.summary(plan), *phrases.destroyed(plan), *plan.drift]
    wanted += [text for step in plan.steps for text in (phrases.step_line(step), phrases.estimate(step))]
    wanted += [
        text for item in plan.notices for text in (item.code, phrases.notice_text(item), phrases.notice_state(item))
    ]
    for item in plan.overview:
        wanted += [
            phrases.heading(item),
            *(text for fact in item.facts for text in (fact.label, fact.before, fact.after)),
        ]
    for line in phrases.way_back(plan):
        wanted.append(line.strip().split(" ", 1)[1] if line.startswith("  ") else line)
    for text in wanted:
        assert words(text) in page.said, text
    shown = page.said
    assert ("cannot be applied yet" in shown) == plan.blocked
    assert ("Gone for good" in shown) == bool(phrases.destroyed(plan))
    order = [page.said.index(words(phrases.notice_text(item))) for item in plan.notices if item.blocking]
    others = [page.said.index(words(phrases.notice_text(item))) for item in plan.notices if not item.blocking]
    assert not order or not others or max(order) < min(others), "what blocks comes first"
    steps = [attributes for attributes in page.all("li") if "value" in attributes]
    assert [item["value"] for item in steps] == [str(number) for number in range(1, len(plan.steps) + 1)]
    assert (
        json.loads(page.text.partition("The plan as JSON")[2].replace("Copy", "", 1).rpartition("}")[0] + "}")["steps"]
        == json.loads(plan.dumps())["steps"]
    )


def test_the_heaviest_findings_come_first() -> None:
    shown = Page(html.plan(golden("everything"))).said.partition("Findings VD101")[2]
    codes = re.findall(r"\bV[A-Z]\d{3}\b", "VD101" + shown.partition("Now and after")[0])
    assert codes == ["VD101", "VD101", "VB101", "VB101", "VI101"]
    shown = Page(html.plan(golden("embed"))).said
    assert shown.index("VL201 loses information blocks") < shown.index("VC101 cost or time blocks")


@pytest.mark.parametrize("name", ["everything", "embed"])
def test_a_page_is_whole_and_can_be_walked(name: str) -> None:
    page = Page(html.plan(golden(name)))
    assert page.count["h1"] == page.count["main"] == page.count["nav"] == page.count["title"] == 1
    names = [attributes["id"] for _tag, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    for _tag, attributes in page.elements:
        target = attributes.get("href", "#")[1:] or attributes.get("aria-labelledby", "")
        assert not target or target in names, target
    assert all(item.get("scope") in ("row", "col") for item in page.all("th"))
    assert page.count["caption"] == page.count["table"]
    assert all("role" in item or item.get("aria-hidden") for item in page.all("svg")), "a picture without words"
    html_tag = page.all("html")[0]
    assert html_tag["lang"] == "en"


def test_the_policy_lets_nothing_in_but_the_own_style_and_script() -> None:
    page = Page(html.plan(golden("simple")))
    policy = next(item["content"] for item in page.all("meta") if item.get("http-equiv") == "Content-Security-Policy")
    for part, text in page.code.items():
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{part}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for text in page.code.values():
        assert not re.search(r"url\(|@import|https?:|fetch|XMLHttp|eval|innerHTML", text)


def test_what_a_plan_holds_is_text(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = '<k3y&"quoted">'
    monkeypatch.setenv("VECRUN_TEST_HIDDEN", hidden)
    tricks = [
        "<script>alert(1)</script>",
        "</style><img src=x onerror=alert(1)>",
        "{{ 7 * 7 }}",
        "\"'><b>",
        "שלום עולם",
    ]
    ws.edit("vecrun.yaml", "connections:", 'connections:\n  c: {type: files, path: "${env:VECRUN_TEST_HIDDEN}"}')
    ws.edit("jobs/move.yaml", "source: a", "source: c")
    long = "x" * 150
    ws.fill(3, store=hidden, name=long)
    description = " ".join([*tricks, "\u202egnp.exe", hidden])
    ws.edit(
        "jobs/move.yaml",
        "  name: move",
        f"  name: move\n  description: {{% raw %}}{json.dumps(description)}{{% endraw %}}",
    )
    ws.edit(
        "jobs/move.yaml", "from: kb\n", f"from: {long}\n      payload: {{set: {{note: {json.dumps(tricks[1])}}}}}\n"
    )
    shown = run("plan", "jobs/move.yaml", "--format", "html")
    assert shown.exit_code == 0, shown.output
    page = Page(shown.stdout)
    for text in (*tricks, "\\u202egnp.exe ***", long):
        assert text in page.said, text
    assert "\u202e" not in shown.stdout
    assert "k3y" not in shown.stdout
    assert page.count["script"] == page.count["style"] == 1


PIECES = [
    "<b>",
    "</p>",
    "<img src=x>",
    "&lt;",
    "<",
    "]]>",
    "-->",
    '"',
    "'",
    " a/kb",
    "vecrun apply ",
    "{{ 1 }}",
    "\u202e",
    "\x00",
]
ANY = st.text(max_size=40) | st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


@settings(max_examples=40, deadline=None)
@given(ANY, ANY)
def test_any_text_comes_out_as_it_went_in(first: str, second: str) -> None:
    plan = golden("blocked")
    notice = plan.notices[0].model_copy(update={"message": first, "where": second})
    fact = plan.overview[0].facts[0].model_copy(update={"before": first, "after": second})
    overview = plan.overview[0].model_copy(update={"facts": (fact,)})
    page = Page(
        html.plan(plan.model_copy(update={"notices": (notice,), "overview": (overview,), "description": first}))
    )
    for text in (first, second):
        assert words(html.visible(text)) in page.said


def test_a_large_plan_stays_readable() -> None:
    """200 collections: what is long is folded, each step is there once, and the page is not much larger than the plan."""
    plan = golden("simple")
    text = plan.model_dump_json(by_alias=True)
    many = [Plan.model_validate_json(re.sub(r"\bkb2?\b", lambda m, n=n: f"{m[0]}_{n}", text)) for n in range(200)]
    order = [item.steps[place] for place in range(len(plan.steps)) for item in many]
    large = plan.model_copy(
        update={
            "steps": tuple(order),
            "overview": tuple(item.overview[0] for item in many),
            "notices": tuple(notice for item in many for notice in item.notices),
            "world": tuple(place for item in many for place in item.world),
        }
    )
    made = html.plan(large)
    page = Page(made)
    assert len(made) < 1.75 * len(large.dumps())
    assert [int(item["value"]) for item in page.all("li") if "value" in item] == [*range(1, len(order) + 1)]
    assert page.count["details"] > 200
    assert sum("open" in item for item in page.all("details")) == 0
    assert page.count["rect"] < 100, "a chart of what is largest, not of everything"


def test_show_takes_files_and_runs_and_names_the_next_command(ws: Workspace) -> None:
    ws.fill(3)
    saved = run("plan", "jobs/move.yaml", "-o", "plans/one.json", "--format", "html")
    again = run("show", "plans/one.json", "--format", "html")
    assert saved.exit_code == again.exit_code == 0
    assert saved.stdout == again.stdout
    page = Page(again.stdout)
    assert "This plan can be applied." in page.said
    assert "vecrun apply plans/one.json" in page.said
    assert run("apply", "plans/one.json").exit_code == 0
    assert "vecrun apply PLANFILE" in Page(run("show", "move", "--format", "html").stdout).said
    done = Page(run("plan", "jobs/move.yaml", "--format", "html").stdout)
    assert "Nothing to apply. Nothing to do." in done.said
    assert "steps" not in [attributes.get("id") for attributes in done.all("section")]
    with ws.store("b") as store:
        store.upsert("kb2", batch_of(ws.schemas["a/kb"], [100, 101]))
    moved = Page(run("plan", "jobs/move.yaml", "--format", "html").stdout)
    assert "Nothing to apply, but something moved." in moved.said
    assert "vecrun drift move" in moved.said


def test_a_backup_has_a_page(ws: Workspace) -> None:
    ws.fill(50)
    ws.fill(30, name="kb_en")
    Path("backups").mkdir()
    ws.edit("vecrun.yaml", "connections:", "connections:\n  backups: {type: folder, path: ./backups}")
    ws.write(
        "jobs/keep.yaml",
        "apiVersion: vecrun/v1\nkind: VectorBackup\nmetadata: {name: keep}\n"
        "spec:\n  collections: {connection: a, names: [kb, kb_en]}\n  to: {connection: backups}\n",
    )
    shown = run("plan", "jobs/keep.yaml", "--format", "html")
    assert shown.exit_code == 0, shown.output
    page = Page(shown.stdout)
    assert "back up 50 points of a/kb as Parquet" in page.said
    assert "Points by collection" in page.said
    widths = [float(item["width"]) for item in page.all("rect") if item["class"] == "bar"]
    assert widths[:2] == [100.0, 60.0]
