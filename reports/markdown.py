"""Markdown: cells with links to their records, tables, footnotes."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from urllib.parse import quote

from reports.collect import Entry
from reports.published import PublishedRow
from reports.rows import Backbone
from reports.stats import Cell, best_rows
from reports.tables import Column, Table

MISSING = "–"


def escape(text: object) -> str:
    """``text`` as it stands: what Markdown or HTML would read as markup is escaped."""
    return re.sub(r"([\\|*`\[\]<>])", r"\\\1", " ".join(str(text).split()))


def code(text: object) -> str:
    """``text`` as inline code, in a table or not."""
    return f"`{str(text).replace('`', chr(39)).replace('|', '/')}`"


@dataclass
class Links:
    """Reference links ``[45.3][r7]``: short in the tables, defined once at the end.

    Attributes:
        folder: of the report: targets are relative to it.
        numbers: of the records linked so far, in order of first use.
    """

    folder: Path
    numbers: dict[Path, int] = field(default_factory=dict)

    def to(self, text: str, entry: Entry) -> str:
        """``text`` as a link to the record of ``entry``."""
        return f"[{text}][r{self.numbers.setdefault(entry.path, len(self.numbers) + 1)}]"

    def definitions(self) -> list[str]:
        """The lines that define every link used so far."""
        targets = {n: relative(path, self.folder) for path, n in self.numbers.items()}
        return [f"[r{number}]: {quote(target)}" for number, target in targets.items()]


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
    mark = "**" if bold else ""
    form = ".4g" if decimals is None else f".{decimals}f"
    mean = format(cell.mean, form)
    if len(cell.values) == 1:
        return f"{mark}{links.to(mean, cell.entries[0])}{mark}"
    trials = " ".join(links.to(str(n), entry) for n, entry in enumerate(cell.entries, 1))
    return f"{mark}{mean} ± {cell.std:{form}}{mark} <sup>{trials}</sup>"


def interval_text(low: Cell | None, high: Cell | None, decimals: int | None, links: Links) -> str:
    """``44.1–46.5``: means over trials; linked where there is one record, as its number is."""
    if low is None or high is None:
        return MISSING
    form = ".4g" if decimals is None else f".{decimals}f"
    text = f"{low.mean:{form}}–{high.mean:{form}}"
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


def metric_table(
    table: Table,
    rows: Sequence[Backbone],
    published: Sequence[PublishedRow],
    links: Links,
) -> list[str]:
    """A benchmark's table: our rows, then the published ones, then their footnotes.

    Args:
        table: its columns.
        rows: our backbones, in order; those without a number here are passed over. With none at
            all, only columns with published numbers are shown.
        published: rows to put below; those without a number in any column are passed over.
        links: collects the links to the records.

    Returns:
        The lines; none when no row has a number.
    """
    shown = [p for p in published if any(c.published in p.values for c in table.columns)]
    if not rows:
        columns = [c for c in table.columns if any(c.published in p.values for p in shown)]
        table = replace(table, columns=columns)
    best = [best_rows(c.cells) if table.bold and not c.upper else set() for c in table.columns]
    header = ["backbone", "epochs", *(["best layer"] if table.layers else [])]
    lines = []
    for b in rows:
        if not any(b.row in c.cells for c in table.columns):
            continue
        cells = [
            interval_text(c.cells.get(b.row), c.upper.get(b.row), table.decimals, links)
            if c.upper
            else cell_text(c.cells.get(b.row), table.decimals, links, b.row in bold)
            for c, bold in zip(table.columns, best, strict=True)
        ]
        layer = [table.layers.get(b.row, MISSING)] if table.layers else []
        lines.append([escape(b.label), escape(b.epochs) or MISSING, *layer, *cells])
    notes: dict[str, str] = {}
    for p in shown:
        mark = notes.setdefault(_footnote(p), _letter(len(notes)))
        layer = [p.layer or MISSING] if table.layers else []
        who = [f"*{escape(p.method)}* <sup>{mark}</sup>", p.epochs or MISSING, *layer]
        lines.append([*who, *(_published_cell(c, p) for c in table.columns)])
    if not lines:
        return []
    text = pipe_table([*header, *(escape(c.header) for c in table.columns)], lines)
    if notes:
        text += ["", *(f"<sup>{mark}</sup> published: {note}  " for note, mark in notes.items())]
    return text


def _published_cell(column: Column, row: PublishedRow) -> str:
    value = row.values.get(column.published)
    return MISSING if value is None else value + (" ⚠" if row.anomalous else "")


def _footnote(row: PublishedRow) -> str:
    said = [n.replace("; show with a flag", "") for n in row.notes if n != row.layer]
    said = [f"⚠ {n}" if n.startswith("anomalous") else n for n in said]
    return escape("; ".join([row.source, *said]))


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"a{index}"
