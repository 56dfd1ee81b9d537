"""report.html, read back with html.parser: one file, the Markdown's meaning, nothing from a record run."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import made_records as made
import numpy as np
import pytest
from markdown_it import MarkdownIt

from reports import pipes
from reports.page import page
from reports.report import write_report
from siambench.record import Metric, Record, write_record

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags with their attributes, tables as texts, ids; fails on what is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text, self._open = "", []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "th" in self._open or "td" in self._open:
            self.tables[-1][-1][-1] += data

    def all(self, attribute: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(attribute)) is not None]


def html_of(folder: Path) -> str:
    write_report([folder], folder / "report.md")
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("html")
    made.fill(folder, trials=2, official=True)
    for path in sorted(folder.glob("records/voc07-frcnn-c4-*.json")):
        made.detections(folder, path, 0.5)
    made.monitor(folder, "simsiam")
    html_of(folder)
    return folder


def test_it_is_one_file_without_script_or_network(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    found = Page(text)
    sources = found.all("src")
    assert len(sources) == len(re.findall(r"!\[|<img ", (folder / "report.md").read_text()))
    pngs = {path.read_bytes() for path in folder.glob("plots/*.png")}
    shown = {base64.b64decode(s.removeprefix("data:image/png;base64,")) for s in sources}
    assert shown == pngs
    assert {tag for tag, _ in found.tags} & {"script", "link", "iframe", "object", "form"} == set()
    assert "url(" not in text
    assert "@import" not in text
    assert ("viewport", "width=device-width, initial-scale=1") in [
        (a.get("name"), a.get("content")) for _, a in found.tags
    ]
    assert "prefers-color-scheme: dark" in text


def test_every_table_is_that_of_the_markdown(folder: Path) -> None:
    markdown = (folder / "report.md").read_text()
    whole = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    assert Page((folder / "report.html").read_text()).tables == Page(whole).tables


def test_the_quick_way_through_a_cell_is_markdown_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    markdown = (folder / "report.md").read_text()
    quick = page(markdown, folder)
    monkeypatch.setattr(pipes, "_PLAIN", re.compile("(?!)"))  # nothing is plain
    assert page(markdown, folder) == quick


def test_contents_and_links_lead_somewhere(folder: Path) -> None:
    found = Page((folder / "report.html").read_text())
    ids = found.all("id")
    assert len(ids) == len(set(ids))
    inside = [href[1:] for href in found.all("href") if href.startswith("#")]
    assert set(inside) <= set(ids)
    headings = re.findall(r"^## ", (folder / "report.md").read_text(), re.M)
    assert [tag for tag, _ in found.tags].count("li") >= len(headings)
    for href in found.all("href"):
        assert href.startswith("#") or (folder / href).is_file()


def test_first_columns_stay_and_tables_scroll_in_their_box(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert text.count('tabindex="0"><table>') == text.count("<table>") > 20
    style = text.split("<style>")[1].split("</style>")[0]
    found = re.findall(r"([^{}]+?)\s*\{([^{}]*)\}", style.split("@media print")[0])
    rules = {" ".join(names.split()): rule for names, rule in found}
    assert "overflow-x: auto" in rules[".t"]
    assert "position: sticky" in rules["th:first-child, td:first-child"]


EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a|b & c&lt;d <b>_x_",
    "[x](javascript:alert(1))`",
    "<!-- table -->",
    "<details><summary>",
    "![p](plots/../../secret.png)<a href='//evil'>",
)


def evil_record(number: int, text: str, metrics: list[Metric]) -> Record:
    protocol = {"crop": text, "engine": text, "version": f"a\n\n~~~~~~\n{text}"}
    rec = made.record("in1k-knn", text, metrics, verb="knn", dataset=text, **protocol)
    rec.backbone.update(arch=text, method=text, epochs=text)
    rec.software["torch"] = rec.hardware["cpu"] = text
    rec.dataset.counts[text] = 3
    return Record(**{**vars(rec), "benchmark": text, "overrides": ["crop"], "started": text})


@pytest.mark.parametrize("text", EVIL)
def test_what_a_record_says_is_shown_as_text(tmp_path: Path, text: str) -> None:
    rng = np.random.default_rng(0)
    for number, name in enumerate((text, "plain")):
        metrics = made.linear(rng, layers=(text,))
        metrics += [Metric("top1_class", 5.0, params={"class": text, "layer": text})]
        metrics += [Metric(text, 1.5, unit=text, params={text: text})]
        rec = evil_record(number, text, metrics)
        rec.backbone["name"] = name
        verb = ("linear", text)[number]
        body = Record(**{**vars(rec), "verb": verb})
        write_record(tmp_path / "records" / f"{number}.json", body)
    found = Page(html_of(tmp_path))
    assert {tag for tag, _ in found.tags} <= {
        *("html", "head", "meta", "title", "style", "body", "main", "nav", "ul", "li", "a", "h1"),
        *("h2", "h3", "p", "div", "table", "thead", "tbody", "tr", "th", "td", "em", "strong"),
        *("code", "pre", "sup", "br", "details", "summary", "img"),
    }
    assert set().union(*(attrs for _, attrs in found.tags)) <= {
        *("lang", "charset", "http-equiv", "content", "name", "id", "class", "tabindex", "href"),
        *("src", "alt", "width"),
    }
    assert all(src.startswith("data:image/png;base64,") for src in found.all("src"))
    assert all(re.match(r"#[\w-]+$|records/\d\.json$", href) for href in found.all("href"))
    names = {row[0] for table in found.tables for row in table[1:]}
    assert text in names  # not a letter more or less


def test_a_picture_that_is_gone_leaves_its_description(tmp_path: Path) -> None:
    text = "![Curves of *all*](plots/gone.png)\n\n![out](../x.png)\n"
    assert "<p><em>Curves of *all*</em></p>\n<p><em>out</em></p>" in page(text, tmp_path)


def test_a_table_in_a_fence_is_no_table(tmp_path: Path) -> None:
    text = "~~~~~~yaml\n| a |\n|---|\n| b |\n~~~~~~\n\n| c |\n| --- |\n| d |\n"
    found = Page(page(text, tmp_path))
    assert found.tables == [[["c"], ["d"]]]
    assert "| b |" in found.text
