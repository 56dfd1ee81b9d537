"""Markdown: escaping, links to the records, texts of cells, pipe tables."""

import html
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import quote

from reports.collect import Entry
from reports.stats import Cell

MISSING = "–"
MOST_LINKS = 8  # trials whose links a cell has room for
# _ is markup at the edge of a word only, & only where it opens an entity
_MARKUP = re.compile(r"[\\|*`~\[\]<>]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")


def printable(text: object) -> str:
    """``text`` on one line, with ``�`` for what a terminal or an editor would obey instead of show."""
    line = " ".join(str(text).split())
    return line if line.isprintable() else "".join(c if c.isprintable() else "�" for c in line)


def escape(text: object) -> str:
    """``text`` as it stands: what Markdown or HTML would read as markup is escaped."""
    return _MARKUP.sub(r"\\\g<0>", printable(text))


def summary(text: object) -> str:
    """The line that opens what is folded away. It is HTML: Markdown's escapes do not hold in it."""
    return f"<details><summary>{html.escape(printable(text), quote=False)}</summary>"


def fenced(text: str, language: str) -> list[str]:
    """A block of code whose fence is longer than any in it."""
    runs = re.findall("~+", text)
    fence = "~" * max([6, *(len(run) + 1 for run in runs)])
    return [f"{fence}{language}", text.rstrip(), fence]


def code(text: object) -> str:
    """``text`` as inline code, in a table or not."""
    return f"`{printable(text).replace('`', chr(39)).replace('|', '/')}`"


@dataclass
class Links:
    """Reference links ``[45.3][r7]``: short in the tables, defined once at the end.

    Attributes:
        folder: of the report: targets are relative to it.
        numbers: of the records linked so far, in order of first use.
        known: what :meth:`distinct` has found.
        lists: of records linked together, where a table has no room for their links.
    """

    folder: Path
    numbers: dict[Path, int] = field(default_factory=dict)
    known: dict[tuple[int, ...], list[Entry]] = field(default_factory=dict)
    lists: dict[tuple[int, ...], tuple[int, Sequence[Entry]]] = field(default_factory=dict)

    def to(self, text: str, entry: Entry) -> str:
        """``text`` as a link to the record of ``entry``."""
        return f"[{text}][r{self.numbers.setdefault(entry.path, len(self.numbers) + 1)}]"

    def distinct(self, entries: tuple[Entry, ...]) -> list[Entry]:
        """Each record once: low-shot means and searches have several numbers of one."""
        key = tuple(map(id, entries))  # they live as long as the report is made
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = list({entry.path: entry for entry in entries}.values())
        return found

    def to_all(self, entries: Sequence[Entry]) -> str:
        """Small figures, a link per trial; of many trials one link, to their list."""
        if len(entries) <= MOST_LINKS:
            return " ".join(self.to(str(n), entry) for n, entry in enumerate(entries, 1))
        key = tuple(map(id, entries))
        number, _ = self.lists.setdefault(key, (len(self.lists) + 1, entries))
        return f"[{len(entries)} trials](#t{number})"

    def trials(self) -> list[str]:
        """The lists that :meth:`to_all` leads to, as a section; nothing without any."""
        lines = []
        for number, entries in self.lists.values():
            record = entries[0].record
            links = " ".join(self.to(str(n), entry) for n, entry in enumerate(entries, 1))
            what = escape(f"{record.benchmark} {record.backbone['name']}")
            lines.append(f'- <a id="t{number}"></a>{what}: {links}')
        return ["### Trials", "", *lines, ""] if lines else []

    def definitions(self) -> list[str]:
        """The lines that define every link used so far."""
        targets = {n: relative(path, self.folder) for path, n in self.numbers.items()}
        return [f"[r{number}]: {quote(os.fsencode(target))}" for number, target in targets.items()]


def relative(path: Path, folder: Path) -> str:
    """``path`` as seen from ``folder``, with forward slashes."""
    return f"{_relative_folder(path.parent, folder)}/{path.name}".removeprefix("./")


@cache
def _relative_folder(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def cell_text(cell: Cell | None, decimals: int | None, links: Links, bold: bool = False) -> str:
    """``45.3`` linked to its record; over trials ``45.3 ± 0.2`` and a link per trial."""
    if cell is None:
        return MISSING
    spread = f" ± {_number(cell.std, decimals)}" if len(cell.values) > 1 else ""
    return _linked(_number(cell.mean, decimals), spread, cell, links, "**" * bold)


def sampled_text(
    cell: Cell | None, spread: Cell | None, decimals: int | None, links: Links, bold: bool = False
) -> str:
    """``45.3 ± 0.2`` of a single trial too: the spread over its samples, as it was measured."""
    if cell is None:
        return MISSING
    behind = f" ± {_number(spread.mean, decimals)}" if spread else ""
    return _linked(_number(cell.mean, decimals), behind, cell, links, "**" * bold)


def values_text(cell: Cell | None, links: Links) -> str:
    """``0.1, 1``: all distinct values."""
    if cell is None:
        return MISSING
    return _linked(", ".join(_number(v, None) for v in sorted(set(cell.values))), "", cell, links)


def _number(value: float, decimals: int | None) -> str:
    return format(value, ".4g" if decimals is None else f".{decimals}f")


def _linked(text: str, behind: str, cell: Cell, links: Links, mark: str = "") -> str:
    """``text`` as a link to the one record, or small figures that lead to several."""
    entries = links.distinct(cell.entries)
    if len(entries) == 1:
        return f"{mark}{links.to(text, entries[0])}{behind}{mark}"
    return f"{mark}{text}{behind}{mark} <sup>{links.to_all(entries)}</sup>"


def interval_text(low: Cell | None, high: Cell | None, decimals: int | None, links: Links) -> str:
    """``44.1–46.5``: means over trials; linked where there is one record, as its number is."""
    if low is None or high is None:
        return MISSING
    text = f"{_number(low.mean, decimals)}–{_number(high.mean, decimals)}"
    return links.to(text, low.entries[0]) if len(low.values) == 1 else text


def pipe_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A padded pipe table, the first ``left`` columns aligned left and the others right."""
    widths = [max(3, *(len(row[i]) for row in [header, *rows])) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        pads = [
            c.ljust(w) if i < left else c.rjust(w)
            for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(pads)} |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return [line(header), f"| {' | '.join(rule)} |", *map(line, rows)]
