"""report.tex: the tables of a report for a paper, made from its Markdown."""

import re
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from reports.letters import escape
from reports.page import without_definitions
from reports.pipes import cells_of

MOST_COLUMNS = 6  # of numbers in one tabular; further ones go on below

_HEAD = r"""\documentclass{article}
\usepackage{booktabs,graphicx}
\setlength{\tabcolsep}{4pt}
\setlength{\belowcaptionskip}{6pt}
\newsavebox{\tablebox}
\newenvironment{fitted}  % no wider than the text
  {\begin{lrbox}{\tablebox}}
  {\end{lrbox}\ifdim\wd\tablebox>\linewidth
    \resizebox{\linewidth}{!}{\usebox{\tablebox}}\else\usebox{\tablebox}\fi}
\begin{document}
"""
_FENCE = re.compile("~{3,}")
_OF_LINKS = "Every number is a link to its record; "  # there are none here


@dataclass
class _Found:
    """A table of the Markdown: the headings above it, its caption, its lines, its footnotes."""

    headings: tuple[str, str]
    caption: str
    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def latex(text: str) -> str:
    """A whole document: every table that the Markdown does not fold away, under its section.

    Numbers, bold and order are the Markdown's. Published rows are in italics; their sources are below
    the table. Links are left out.

    Args:
        text: the report's Markdown.
    """
    md = MarkdownIt("commonmark", {"html": True})
    text, targets = without_definitions(text)
    env: MutableMapping[str, Any] = {"references": targets}
    parts = [_HEAD]
    above = ("", "")
    for table in _tables(text):
        section, part = table.headings
        if section != above[0]:
            parts.append(f"\\clearpage\n\\section*{{{_inline(md, env, section)}}}\n")
        if part and table.headings != above:
            parts.append(f"\\subsection*{{{_inline(md, env, part)}}}\n")
        above = table.headings
        parts.append(_table(md, env, table))
    return "\n".join([*parts, "\\end{document}\n"])


def _tables(text: str) -> list[_Found]:
    """The tables of numbers outside of folds and code, up to the section on how they were made."""
    section = part = caption = fence = ""
    depth = 0
    found: list[_Found] = []
    for line in text.split("\n"):
        if fence:
            fence = "" if line == fence else fence
        elif mark := _FENCE.match(line):
            fence = mark[0]
        elif line.startswith("## How this was made"):
            break
        elif line.startswith("## "):
            section, part, caption = line[3:], "", ""
        elif line.startswith("### "):
            part = line[4:]
        elif line.startswith("<details>") or line == "</details>":
            depth += 1 if line.startswith("<d") else -1
        elif line.startswith("|"):
            if caption:  # the first line of a table: one always has a line above it
                found += [] if depth else [_Found((section, part), caption)]
                caption = ""
            if not depth:
                found[-1].lines.append(line)
        elif line.startswith("<sup>") and found and not depth:
            found[-1].notes.append(line)
        elif line:
            caption = line
    return [table for table in found if not any("<img " in line for line in table.lines)]


def _table(md: MarkdownIt, env: MutableMapping[str, Any], table: _Found) -> str:
    header, rule, *rows = [cells_of(line) for line in table.lines]
    lead = max(1, next((i for i, cell in enumerate(rule) if cell.endswith(":")), len(rule)))
    caption = _inline(md, env, table.caption.replace(_OF_LINKS, "").rstrip(":"))
    lines = ["\\begin{table}[ht]", "\\centering\\footnotesize", f"\\caption{{{caption}}}"]
    for start in range(lead, max(len(header), lead + 1), MOST_COLUMNS):
        last = min(start + MOST_COLUMNS, len(header))
        shown = [*range(lead if start == lead else 1), *range(start, last)]
        sides = "".join("r" if rule[i].endswith(":") else "l" for i in shown)
        lines += ["", "\\begin{fitted}", f"\\begin{{tabular}}{{{sides}}}", "\\toprule"]
        lines += [_row([_stacked(_inline(md, env, header[i]), rule[i]) for i in shown])]
        lines += ["\\midrule"]
        published = False
        for row in rows:
            if row[0].startswith("*") and not row[0].startswith("**") and not published:
                published = True
                lines += ["\\midrule"] if row is not rows[0] else []
            texts = [_inline(md, env, row[i]) for i in shown]
            lines.append(_row([_italic(t) for t in texts] if published else texts))
        lines += ["\\bottomrule", "\\end{tabular}", "\\end{fitted}", "\\par\\medskip"]
    for note in table.notes:
        lines.append(f"\\par {_inline(md, env, note.strip())}")
    return "\n".join([*lines, "\\end{table}", ""])


def _row(texts: Sequence[str]) -> str:
    return f"{' & '.join(texts)} \\\\"


def _italic(text: str) -> str:
    return text if not text or text.startswith("\\textit") else f"\\textit{{{text}}}"


def _stacked(text: str, rule: str) -> str:
    """A header of several lines, over its column."""
    side = "r" if rule.endswith(":") else "l"
    return f"\\shortstack[{side}]{{{text}}}" if "\\\\" in text else text


def _inline(md: MarkdownIt, env: MutableMapping[str, Any], text: str) -> str:
    """One line of Markdown as LaTeX."""
    (inline,) = md.parseInline(text, env)
    return "".join(_pieces(inline.children or [])).strip()


def _pieces(tokens: Sequence[Token]) -> Iterator[str]:
    links = False  # inside <sup>: a superscript of links leads to trials, and is left out
    raised: list[str] | None = None
    for token in tokens:
        piece = ""
        if token.type == "html_inline":
            if token.content == "<sup>":
                raised, links = [], False
                continue
            if token.content == "</sup>" and raised is not None:
                piece = "" if links else f"$^{{\\mathrm{{{''.join(raised)}}}}}$"
                raised = None
            elif token.content.startswith("<br"):
                piece = r"\\"
        elif token.type == "link_open":
            links = True
        elif token.type in ("text", "code_inline"):
            piece = escape(token.content)
            piece = f"\\texttt{{{piece}}}" if token.type == "code_inline" else piece
        elif token.type in ("strong_open", "em_open"):
            piece = "\\textbf{" if token.type == "strong_open" else "\\textit{"
        elif token.type in ("strong_close", "em_close"):
            piece = "}"
        if raised is not None:
            raised.append(piece)
        else:
            yield piece
