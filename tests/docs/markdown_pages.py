"""The repository's Markdown files as GitHub shows them: headings, anchors, links, blocks of code."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_HTML = re.compile(r"""<(?:a|img)\b[^>]*?\s(id|name|href|src)=["']([^"']*)["']""")


@dataclass(frozen=True)
class Block:
    """Code that stands by itself, or in a line (``inline``).

    Attributes:
        page, line: where, from 1.
        language: of a fence; ``""`` of an indented block.
        text: the code.
    """

    page: Path
    line: int
    language: str
    text: str
    inline: bool = False

    @property
    def where(self) -> str:
        """``docs/linear.md:12``."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@cache
def tokens(page: Path) -> list[Token]:
    """What markdown-it reads in a page."""
    return MarkdownIt("commonmark").enable("table").parse(page.read_text("utf-8"))


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading's text, before it is made unique.

    In lower case, without all but letters, marks, digits, connectors such as ``_``, hyphens and
    spaces; the latter become hyphens (html-pipeline's TableOfContentsFilter).
    """
    kept = [c for c in heading.lower() if c in "- " or _is_word(unicodedata.category(c))]
    return "".join(kept).replace(" ", "-")


def _is_word(category: str) -> bool:
    return category[0] in "LM" or category in ("Nd", "Pc")


def anchors(page: Path) -> set[str]:
    """Everything that a link's #anchor may lead to in a page."""
    return anchors_of(tokens(page))


def anchors_of(parsed: list[Token]) -> set[str]:
    """Headings' anchors, the second of a name with -1, and the ids of HTML's anchors."""
    found: list[str] = []
    count: dict[str, int] = {}
    for before, token in pairwise(parsed):
        if before.type == "heading_open":
            name = slug(_text(token))
            number = count[name] = count.get(name, -1) + 1
            found.append(f"{name}-{number}" if number else name)
    html = "".join(t.content for t in _all(parsed) if t.type in ("html_block", "html_inline"))
    return {*found, *(value for kind, value in _HTML.findall(html) if kind in ("id", "name"))}


def _text(token: Token) -> str:
    return "".join(t.content for t in token.children or () if t.type in ("text", "code_inline"))


def _all(parsed: list[Token]) -> Iterator[Token]:
    for token in parsed:
        yield token
        yield from token.children or ()


def links(page: Path) -> Iterator[str]:
    """The target of every link and picture, in Markdown and in HTML."""
    for token in _all(tokens(page)):
        target = token.attrGet("href") or token.attrGet("src")
        if target:
            yield str(target)
        if token.type in ("html_block", "html_inline"):
            found = _HTML.findall(token.content)
            yield from (value for kind, value in found if kind in ("href", "src"))


def plain_text(page: Path) -> str:
    """What is left as text: a reference link that nothing defines is still in it."""
    inline = (token for token in tokens(page) if token.type == "inline")
    return "\n".join(
        "".join(t.content for t in token.children or () if t.type == "text") for token in inline
    )


def blocks() -> list[Block]:
    """All code of all pages."""
    found = []
    for page in PAGES:
        line = 0
        for token in tokens(page):
            line = token.map[0] + 1 if token.map else line
            if token.type in ("fence", "code_block"):
                first = line + (token.type == "fence")
                found.append(Block(page, first, token.info.strip(), token.content))
            for part in token.children or ():
                if part.type == "code_inline":
                    found.append(Block(page, line, "", part.content, inline=True))
    return found
