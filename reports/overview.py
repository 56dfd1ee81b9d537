"""The first table, which answers "which backbone is best", and the summary of pre-training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reports.markdown import MISSING, Links, cell_text, code, escape, pipe_table
from reports.rows import Backbone
from reports.sections import Section
from reports.states import States
from reports.stats import Cells, Row, best_rows, ranks
from reports.tables import Column, Layout


@dataclass(frozen=True)
class Headline:
    """A column of the first table.

    Attributes:
        text: its header, a link to its section.
        benchmark: the preset's name.
        column: our numbers; none where no job of the benchmark has ended.
    """

    text: str
    benchmark: str
    column: Column

    @property
    def cells(self) -> Cells:
        """The numbers alone."""
        return self.column.cells


def headlines(sections: Sequence[tuple[Section, Layout]], states: States) -> list[Headline]:
    """The columns of all sections, then those of benchmarks that only have jobs."""
    found = [
        Headline(
            f"[{escape(name)}](#{section.anchor})<br>{escape(column.header)}{_road(section)}",
            benchmark,
            column,
        )
        for (section, layout), names in zip(sections, _names([s for s, _ in sections]), strict=True)
        for column, (benchmark, name) in zip(layout.headline, names, strict=False)
    ]
    known = {group.benchmark for section, _ in sections for group in section.groups}
    return found + [
        Headline(escape(b), b, Column("", {})) for b in states.benchmarks if b not in known
    ]


def overview(
    backbones: Sequence[Backbone], columns: Sequence[Headline], states: States, links: Links
) -> list[str]:
    """Headline metrics as columns, backbones as rows, and the mean rank; then the gaps.

    Args:
        backbones: the rows.
        columns: from :func:`headlines`.
        states: what is said where there is no number.
        links: collects the links to the records.
    """
    best = [best_rows(column.cells) for column in columns]
    mean_ranks = _mean_ranks(backbones, [column.cells for column in columns])
    rows = []
    for b in backbones:
        cells = [
            cell_text(column.cells[b.row], 1, links, b.row in bold)
            if b.row in column.cells
            else states.cell(column.benchmark, b.row.name)
            for column, bold in zip(columns, best, strict=True)
        ]
        who = [escape(x) or MISSING for x in (b.label, b.method, b.epochs)]
        rows.append([*who, *cells, _rank_text(mean_ranks.get(b.row), mean_ranks)])
    header = ["backbone", "method", "epochs", *(column.text for column in columns), "mean rank"]
    return [
        *_answer(backbones, mean_ranks),
        *pipe_table(header, rows, left=2),
        "",
        *states.footnotes(),
        *_gaps(backbones, columns),
    ]


def supervised(backbones: Sequence[Backbone]) -> Backbone | None:
    """The baseline of transfer: the one backbone whose method says supervised."""
    found = [b for b in backbones if b.method.strip().casefold() == "supervised"]
    return found[0] if len(found) == 1 else None


def _gaps(backbones: Sequence[Backbone], columns: Sequence[Headline]) -> list[str]:
    """What each backbone is above or below the supervised baseline."""
    base = supervised(backbones)
    shown = [c for c in columns if base and base.row in c.cells and len(c.cells) > 1]
    if base is None or not shown:
        return []
    rows = []
    for b in backbones:
        if b is not base and any(b.row in column.cells for column in shown):
            cells = [_gap(column.cells, b.row, base.row) for column in shown]
            rows.append([escape(b.label), *cells])
    return [
        "### Gap to the supervised baseline",
        "",
        f"Each mean minus that of {code(base.label)}, in points; **bold**: above it.",
        "",
        *pipe_table(["backbone", *(column.text for column in shown)], rows),
        "",
    ]


def _gap(cells: Cells, row: Row, base: Row) -> str:
    if row not in cells:
        return MISSING
    gap = cells[row].mean - cells[base].mean
    text = f"{gap:+.1f}".replace("-", "−")
    return f"**{text}**" if gap > 0 else text


def _road(section: Section) -> str:
    return "<br>short road" if section.short_road else ""


def _names(sections: list[Section]) -> list[list[tuple[str, str]]]:
    """Per section the preset of each headline column, and its name, told apart where two share it."""
    plain = [[g.benchmark for g in s.groups] for s in sections]
    names = []
    for section, of_section in zip(sections, plain, strict=True):
        shared = sum(of_section[0] in other for other in plain) > 1
        extra = f" ({section.anchor})" if shared else ""
        names.append([(name, name + extra) for name in (of_section[0], of_section[-1])])
    return names


def _mean_ranks(
    backbones: Sequence[Backbone], columns: Sequence[Cells]
) -> dict[Row, tuple[float, int, int]]:
    """Mean rank of each backbone, over how many columns, of how many that rank anything."""
    ranked = [r for cells in columns if (r := ranks(cells))]
    found = {}
    for b in backbones:
        own = [r[b.row] for r in ranked if b.row in r]
        if own:
            found[b.row] = (math.fsum(own) / len(own), len(own), len(ranked))
    return found


def _rank_text(
    rank: tuple[float, int, int] | None, all_ranks: dict[Row, tuple[float, int, int]]
) -> str:
    if rank is None:
        return MISSING
    mean, own, columns = rank
    whole = [r[0] for r in all_ranks.values() if r[1] == columns]
    mark = "**" if own == columns and mean == min(whole) else ""
    return f"{mark}{mean:.2f}{mark}" + (f" ({own} of {columns})" if own < columns else "")


def _answer(
    backbones: Sequence[Backbone], mean_ranks: dict[Row, tuple[float, int, int]]
) -> list[str]:
    whole = {row: mean for row, (mean, own, columns) in mean_ranks.items() if own == columns}
    legend = (
        "Accuracies and precisions in %. Bold: within 0.5 of the best of its column. Mean rank: 1 is "
        "best, over the columns in which a backbone stands beside another. Every number is a link to "
        f"its record; {MISSING} means that there is none."
    )
    if len(whole) < 2:
        return [legend, ""]
    best = [b.label for b in backbones if whole.get(b.row) == min(whole.values())]
    columns = next(iter(mean_ranks.values()))[2]
    names = " and ".join(f"**{escape(name)}**" for name in best)
    over = f"over {columns} columns" if columns > 1 else "in the one column"
    return [f"Best mean rank: {names} ({min(whole.values()):.2f} {over}).", "", legend, ""]


def monitor_table(monitors: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The last epoch of every training curve; std as a share of 1/√d shows collapse (near 0)."""
    rows = []
    for name, epochs in monitors.items():
        last = epochs[-1]
        std, target = last.get("std"), last.get("std_target")
        share = f"{std / target:.2f}" if _number(std) and _number(target) and target else MISSING
        knn = last.get("knn_top1")
        seconds = math.fsum(e["seconds"] for e in epochs if _number(e.get("seconds")))
        rows.append(
            [
                escape(name),
                str(last["epoch"]),
                f"{last['loss']:.3f}",
                f"{std:.4f}" if _number(std) else MISSING,
                share,
                f"{knn:.1f}" if _number(knn) else MISSING,
                f"{seconds / 3600:.2f}",
            ]
        )
    header = ["run", "epochs", "loss", "std", "std·√d", "kNN top-1", "hours"]
    return [*pipe_table(header, rows), ""]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
