"""report.html: the Markdown of a report as one file that needs no other, no network and no script."""

import base64
import re
from collections.abc import MutableMapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from reports.pipes import Pipes
from reports.style import STYLE

# The HTML that our own Markdown writes. Whatever else looks like a tag came from a record.
_OURS = re.compile(
    r"/?(?:details|summary|sup|br)|a id=\"[\w-]+\"|/a|"
    r"a href=\"plots/[\w.-]+\"|img src=\"plots/[\w.-]+\" width=\"\d+\" alt=\"[^\"<>]*\""
)
_TAG = re.compile(r"<([^<>]*)>|[<>]")
_PICTURE = re.compile(r"src=\"(plots/[\w.-]+)\"")
_FENCE = re.compile(r" {0,3}(~{3,}|`{3,})")
_DEFINITION = re.compile(r"\[(r\d+)\]: ([\w./%~-]+)", re.ASCII)
_PLACE = "<!-- table -->"
_GAP = "\0"  # which no Markdown can hold: markdown-it reads it as U+FFFD
# Nothing may be fetched, run, framed or sent; data: pictures and the one style are all there is.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(text: str, folder: Path) -> str:
    """The report as HTML.

    Args:
        text: the Markdown, as :func:`reports.report.write_report` makes it. Its raw HTML passes only
            where it is our own; the rest is shown as text.
        folder: of the report: pictures are read from ``folder/plots`` and become data URIs. One that
            is not there leaves its description.
    """
    md = MarkdownIt("commonmark", {"html": True})
    pictures = _Pictures(folder)
    rules = {"html_block": pictures.ours, "html_inline": pictures.ours, "image": pictures.image}
    md.renderer.rules = {**md.renderer.rules, **rules}
    text, targets = without_definitions(text)
    lines, tables = _without_tables(text)
    env: MutableMapping[str, Any] = {"references": targets}
    tokens = md.parse("\n".join(lines), env)
    contents = _name_headings(tokens)
    body = md.renderer.render(tokens, md.options, env)
    pipes = Pipes(md, env)
    first, *rest = body.split(_GAP)  # in the order of the tables
    texts = [pipes.table(table) + after for table, after in zip(tables, rest, strict=True)]
    return _document(first + "".join(texts), contents)


def without_definitions(text: str) -> tuple[str, dict[str, dict[str, str]]]:
    """The Markdown without the links' definitions at its end, and those as markdown-it keeps them.

    There is one per record; their targets are quoted and relative, so there is nothing to parse.
    """
    lines = text.rstrip("\n").split("\n")
    targets = {}
    while lines and (found := _DEFINITION.fullmatch(lines[-1])):
        targets[found[1].upper()] = {"title": "", "href": found[2]}
        lines.pop()
    return "\n".join(lines), targets


def _without_tables(text: str) -> tuple[list[str], list[list[str]]]:
    """The lines with a place for each table, and the tables' lines.

    markdown-it would take most of a large report's time for its tables' cells, nearly all of which
    are a number and a link: :mod:`reports.pipes`.
    """
    lines: list[str] = []
    tables: list[list[str]] = []
    fence, inside = "", False
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        if line.startswith("|") and not fence:
            if not inside:
                lines.append(_PLACE)
                tables.append([])
            tables[-1].append(line)
            inside = True
        else:
            lines.append(line)
            inside = False
    return lines, tables


def _name_headings(tokens: Sequence[Token]) -> list[tuple[str, str]]:
    """Give every heading the id that GitHub would; id and text of those below the title."""
    contents: list[tuple[str, str]] = []
    taken: dict[str, int] = {}
    for heading, inline in pairwise(tokens):
        if heading.type != "heading_open":
            continue
        title = "".join(t.content for t in inline.children or () if t.type != "html_inline")
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        repeated = taken[slug] = taken.get(slug, -1) + 1
        slug += f"-{repeated}" if repeated else ""
        heading.attrSet("id", slug)
        if heading.tag == "h2":
            contents.append((slug, title))
    return contents


class _Pictures:
    """Render rules for what our Markdown says of pictures, and for the raw HTML around them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shown = 0

    def image(self, tokens: Sequence[Token], at: int, *_: Any) -> str:
        """``![alt](plots/name.png)``"""
        alt = escape(tokens[at].content)
        data = self._data(str(tokens[at].attrs.get("src", "")))
        return f'<img src="{data}" alt="{alt}">' if data else f"<em>{alt}</em>"

    def ours(self, tokens: Sequence[Token], at: int, *_: Any) -> str:
        """Raw HTML: our own as it is, anything else as text."""
        if tokens[at].content.strip() == _PLACE:
            return _GAP
        return _TAG.sub(self._tag, tokens[at].content)

    def _tag(self, found: re.Match[str]) -> str:
        tag = found[0]
        if found[1] is None or not _OURS.fullmatch(found[1]):
            return escape(tag)
        if tag.startswith("<a href"):  # around a picture: enlarges it, in this very page
            return f'<a href="#picture-{self._shown + 1}">'
        if tag.startswith("<img"):
            self._shown += 1
            (source,) = _PICTURE.findall(tag)
            named = f'<img id="picture-{self._shown}" '
            return _PICTURE.sub(f'src="{self._data(source)}"', tag).replace("<img ", named)
        return tag

    def _data(self, source: str) -> str:
        if not re.fullmatch(r"plots/[\w.-]+", source):
            return ""
        try:
            content = (self._folder / source).read_bytes()
        except OSError:
            return ""
        return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _document(body: str, contents: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<li><a href="#{slug}">{escape(title)}</a></li>' for slug, title in contents)
    nav = f"<nav><details><summary>Contents</summary><ul>{items}</ul></details></nav>"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Transfer report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{body.replace('</h1>', f'</h1>{chr(10)}{nav}', 1)}</main>\n</body>\n</html>\n"
    )
