"""The first table, which answers "which backbone is best", and the summary of pre-training."""

import math
from collections.abc import Sequence
from typing import Any

from reports.markdown import MISSING, Links, cell_text, escape, pipe_table
from reports.rows import Backbone
from reports.sections import Section
from reports.stats import Row, best_rows, ranks
from reports.tables import Column, Layout


def overview(
    backbones: Sequence[Backbone], sections: Sequence[tuple[Section, Layout]], links: Links
) -> list[str]:
    """Headline metrics of all sections as columns, backbones as rows, and the mean rank."""
    columns = [
        (f"[{escape(name)}](#{section.anchor})<br>{escape(column.header)}{_road(section)}", column)
        for (section, layout), names in zip(sections, _names([s for s, _ in sections]), strict=True)
        for column, name in zip(layout.headline, names[: len(layout.headline)], strict=False)
    ]
    best = [best_rows(column.cells) for _, column in columns]
    mean_ranks = _mean_ranks(backbones, [column for _, column in columns])
    rows = []
    for b in backbones:
        cells = [
            cell_text(column.cells.get(b.row), 1, links, b.row in bold)
            for (_, column), bold in zip(columns, best, strict=True)
        ]
        who = [escape(x) or MISSING for x in (b.label, b.method, b.epochs)]
        rows.append([*who, *cells, _rank_text(mean_ranks.get(b.row), mean_ranks)])
    header = ["backbone", "method", "epochs", *(text for text, _ in columns), "mean rank"]
    return [*_answer(backbones, mean_ranks), *pipe_table(header, rows, left=2), ""]


def _road(section: Section) -> str:
    return "<br>short road" if section.short_road else ""


def _names(sections: list[Section]) -> list[list[str]]:
    """Per section the preset's name for each headline column, told apart where two sections share it."""
    plain = [[g.benchmark for g in s.groups] for s in sections]
    names = []
    for section, of_section in zip(sections, plain, strict=True):
        shared = sum(of_section[0] in other for other in plain) > 1
        extra = f" ({section.anchor})" if shared else ""
        first, last = of_section[0] + extra, of_section[-1] + extra
        names.append([first, last])
    return names


def _mean_ranks(
    backbones: Sequence[Backbone], columns: list[Column]
) -> dict[Row, tuple[float, int, int]]:
    """Mean rank of each backbone, over how many columns, of how many that rank anything."""
    ranked = [r for column in columns if (r := ranks(column.cells))]
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
