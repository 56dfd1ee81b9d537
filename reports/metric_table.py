"""A benchmark's table as Markdown: our lines, the published ones, their footnotes."""

from collections.abc import Sequence
from dataclasses import replace

from reports.markdown import (
    MISSING,
    Links,
    cell_text,
    escape,
    interval_text,
    pipe_table,
    sampled_text,
    values_text,
)
from reports.published import PublishedRow
from reports.rows import Backbone
from reports.stats import Row, best_rows
from reports.tables import Column, Table


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
        lines_of = table.lines if any(c.second for c in columns) else None
        table = replace(table, columns=columns, lines=lines_of)
    layer = ["best layer"] if table.layers else []
    kind = [table.lines[0]] if table.lines else []
    header = ["backbone", "epochs", *layer, *kind, *(escape(c.header) for c in table.columns)]
    lines = _our_lines(table, rows, links)
    notes: dict[str, str] = {}
    for p in shown:
        mark = notes.setdefault(_footnote(p), _letter(len(notes)))
        layer = [p.layer or MISSING] if table.layers else []
        who = [f"*{escape(p.method)}* <sup>{mark}</sup>", p.epochs or MISSING, *layer]
        if table.lines:
            twice = [c.published for c in table.columns if c.second]
            who.append(table.lines[1] if any(name in p.values for name in twice) else MISSING)
        lines.append([*who, *(_published_cell(c, p) for c in table.columns)])
    if not lines:
        return []
    text = pipe_table(header, lines)
    if notes:
        text += ["", *(f"<sup>{mark}</sup> published: {note}  " for note, mark in notes.items())]
    return text


def _our_lines(table: Table, rows: Sequence[Backbone], links: Links) -> list[list[str]]:
    """One line per backbone, or two; the second repeats nothing."""
    first: list[Column | None] = [*table.columns]
    second = [c.second for c in table.columns] if table.lines else []
    best, best_second = ([_best(c, table) for c in columns] for columns in (first, second))
    lines = []
    for b in rows:
        if not any(b.row in c.cells for c in table.columns):
            continue
        who = [escape(b.label), escape(b.epochs) or MISSING]
        who += [escape(table.layers.get(b.row, MISSING))] if table.layers else []
        kind = [table.lines[1]] if table.lines else []
        lines.append([*who, *kind, *_texts(first, b.row, table, links, best)])
        if table.lines and any(c and b.row in c.cells for c in second):
            below = _texts(second, b.row, table, links, best_second)
            lines.append([*("" for _ in who), table.lines[2], *below])
    return lines


def _best(column: Column | None, table: Table) -> set[Row]:
    """The rows that are bold."""
    return best_rows(column.cells) if column and table.bold and not column.upper else set()


def _texts(
    columns: Sequence[Column | None],
    row: Row,
    table: Table,
    links: Links,
    best: Sequence[set[Row]],
) -> list[str]:
    """A line's numbers; empty where a column has no such line."""
    return [
        _text(column, row, table, links, row in bold) if column else ""
        for column, bold in zip(columns, best, strict=True)
    ]


def _text(column: Column, row: Row, table: Table, links: Links, bold: bool) -> str:
    cell, n = column.cells.get(row), table.decimals
    if column.upper:
        return interval_text(cell, column.upper.get(row), n, links)
    if table.distinct:
        return values_text(cell, links)
    if column.spread is not None:
        return sampled_text(cell, column.spread.get(row), n, links, bold)
    return cell_text(cell, n, links, bold)


def _published_cell(column: Column, row: PublishedRow) -> str:
    value = row.values.get(column.published)
    return MISSING if value is None else value + (" ⚠" if row.anomalous else "")


def _footnote(row: PublishedRow) -> str:
    said = [n.replace("; show with a flag", "") for n in row.notes if n != row.layer]
    said = [f"⚠ {n}" if n.startswith("anomalous") else n for n in said]
    return escape("; ".join([row.source, *said]))


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"a{index}"
