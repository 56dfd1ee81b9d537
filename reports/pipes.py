"""Pipe tables as HTML: markdown-it's meaning, at a large report's pace."""

import re
from collections.abc import MutableMapping, Sequence
from html import escape
from typing import Any

from markdown_it import MarkdownIt

_BETWEEN = re.compile(r"(?<!\\)\|")
_LINK = r"\[[\w.,–+ -]+\]\[r\d+\]"
# What nearly every cell is: a number, linked or not, perhaps bold, with its spread and its trials.
_PLAIN = re.compile(
    rf"(?:\*\*)?(?:{_LINK}|[\d.,+–-]*)(?: ± [\d.]+)?(?:\*\*)?"
    rf"(?: <sup>(?:{_LINK}(?: {_LINK})*|\[\d+ trials\]\(#t\d+\))</sup>)?"
)
_LISTS = re.compile(r"\[(\d+ trials)\]\((#t\d+)\)")
_LINKS = re.compile(r"\[([^]]+)\]\[(r\d+)\]")


class Pipes:
    """Tables of one document.

    Args:
        md: the parser, whose rules hold for every cell that is more than a number.
        env: of the parsed document: it has the targets of the reference links.
    """

    def __init__(self, md: MarkdownIt, env: MutableMapping[str, Any]) -> None:
        self._md, self._env = md, env
        references = env.get("references", {})
        self._targets = {name: escape(references[name]["href"]) for name in references}
        self._known: dict[str, str] = {}

    def table(self, lines: Sequence[str]) -> str:
        """A table in a box of its own, which scrolls sideways.

        Args:
            lines: header, rule and rows, each with a pipe at both ends.
        """
        header, rule, *rows = [cells_of(line) for line in lines]
        sides = [' class="r"' if cell.endswith(":") else "" for cell in rule]
        kind = "t g" if any("<img " in cell for row in rows for cell in row) else "t"
        head = self._row(header, "th", sides)
        body = "\n".join(self._row(row, "td", sides) for row in rows)
        return (
            f'<div class="{kind}" tabindex="0"><table>\n<thead>\n{head}\n</thead>\n'
            f"<tbody>\n{body}\n</tbody>\n</table></div>"
        )

    def _row(self, cells: Sequence[str], tag: str, sides: Sequence[str]) -> str:
        texts = map(self._text, cells)
        made = [f"<{tag}{s}>{t}</{tag}>" for s, t in zip(sides, texts, strict=True)]
        return f"<tr>{''.join(made)}</tr>"

    def _text(self, cell: str) -> str:
        if not _PLAIN.fullmatch(cell):
            if cell not in self._known:
                self._known[cell] = self._md.renderInline(cell, self._env)
            return self._known[cell]
        text = _LINKS.sub(self._link, cell) if "]" in cell else cell
        text = _LISTS.sub(r'<a href="\2">\1</a>', text) if "](" in text else text
        return text.replace("**", "<strong>", 1).replace("**", "</strong>", 1)

    def _link(self, found: re.Match[str]) -> str:
        target = self._targets.get(found[2].upper())
        return found[0] if target is None else f'<a href="{target}">{found[1]}</a>'


def cells_of(line: str) -> list[str]:
    """The cells of a line of a pipe table, as Markdown reads them."""
    return [cell.strip().replace("\\|", "|") for cell in _BETWEEN.split(line.strip()[1:-1])]
