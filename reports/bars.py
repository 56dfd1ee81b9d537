"""Plots of single classes, backbones side by side, and of transfer against epochs of pre-training."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from reports.plots import save, style_of
from reports.stats import Cells, Row
from reports.tables import MOST_PAIRS

IN_A_LINE = 20  # classes, as many as VOC has


def drawn(cells: Mapping[str, Cells], rows: Sequence[tuple[Row, str]]) -> list[tuple[Row, str]]:
    """Of the backbones with a class the MOST_PAIRS with the highest mean over theirs, in their order."""
    means = {}
    for row, _ in rows:
        values = [by_row[row].mean for by_row in cells.values() if row in by_row]
        if values:
            means[row] = math.fsum(values) / len(values)
    kept = sorted(means, key=lambda row: -means[row])[:MOST_PAIRS]
    return [(row, label) for row, label in rows if row in kept]


def plot_classes(
    path: Path,
    classes: Mapping[str, Cells],
    rows: Sequence[tuple[Row, str]],
    styles: Mapping[str, Mapping[str, Any]],
) -> None:
    """Bars of each class, one per backbone, with a line's length of one standard deviation over trials.

    Classes stand in the order of their mean over the backbones, the highest first, ``IN_A_LINE`` of
    them in a panel.

    Args:
        path: the PNG file.
        classes: class to cells in percent.
        rows: the backbones, from :func:`drawn`.
        styles: from :func:`reports.plots.style_of`, by label.
    """
    if len({styles[label]["color"] for _, label in rows}) < len(rows):
        styles = style_of([label for _, label in rows])
    order = sorted(classes, key=lambda name: -_height(classes[name]))
    lines = [order[i : i + IN_A_LINE] for i in range(0, len(order), IN_A_LINE)]
    wide = len(lines[0])
    width, height = min(13, max(5, 1.6 + 0.11 * wide * (len(rows) + 2))), 2.4 * len(lines) + 0.6
    figure = Figure(figsize=(width, height))
    # margins in inches: a layout engine would set all the text twice
    edges = {"left": 0.55 / width, "right": 1 - 0.1 / width, "top": 1 - 0.1 / height}
    panels = figure.subplots(
        len(lines),
        1,
        squeeze=False,
        gridspec_kw={**edges, "bottom": 1.2 / height, "hspace": 0.5},
    )[:, 0]
    top = max((c.mean + c.std for by_row in classes.values() for c in by_row.values()), default=0)
    width = 0.8 / len(rows)  # of a bar, from here
    for axes, names in zip(panels, lines, strict=True):
        for i, (row, label) in enumerate(rows):
            at = [
                (x + (i - (len(rows) - 1) / 2) * width, classes[name][row])
                for x, name in enumerate(names)
                if row in classes[name]
            ]
            half = 0.46 * width
            bars = [
                [(x - half, 0), (x - half, c.mean), (x + half, c.mean), (x + half, 0)]
                for x, c in at
            ]
            axes.add_collection(
                PolyCollection(bars, facecolors=styles[label]["color"], linewidths=0, label=label)
            )
            spread = [(x, c) for x, c in at if len(c.values) > 1]
            if spread:
                xs = [x for x, _ in spread]
                ends = [[c.mean + sign * c.std for _, c in spread] for sign in (-1, 1)]
                axes.vlines(xs, *ends, color="0.25", linewidth=0.8)
        axes.set(xlim=(-0.6, wide - 0.4), ylim=(0, min(100, 1.05 * top) or 1), ylabel="%")
        short = [name if len(name) <= 14 else f"{name[:13]}…" for name in names]
        axes.set_xticks(range(len(names)), short, rotation=35, ha="right", fontsize=8)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=9)
    save(figure, path)


def _height(cells: Cells) -> float:
    return math.fsum(cell.mean for cell in cells.values()) / max(1, len(cells))


def plot_epochs(
    path: Path,
    panels: Sequence[tuple[str, Mapping[str, Sequence[tuple[float, float, float]]]]],
    styles: Mapping[str, Mapping[str, Any]],
) -> None:
    """A small panel per headline metric: transfer against epochs of pre-training.

    Args:
        path: the PNG file.
        panels: title, and method and architecture to (epochs, mean, standard deviation) by epochs.
        styles: from :func:`reports.plots.style_of`, by method and architecture.
    """
    across = min(4, len(panels))
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(max(4.2, 2.9 * across), 2.5 * down + 0.3), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for panel, (title, lines) in zip(axes, panels, strict=False):
        for label, points in lines.items():
            epochs, means, spreads = zip(*points, strict=True)
            panel.errorbar(epochs, means, spreads, capsize=2, **styles[label])
        every = sorted({x for points in lines.values() for x, *_ in points})
        if min(every) > 0:
            panel.set_xscale("log", base=2)
        panel.set_xticks(every, [f"{x:g}" for x in every], fontsize=8)
        panel.minorticks_off()
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("epochs", fontsize=8)
        panel.tick_params(axis="y", labelsize=8)
        panel.grid(alpha=0.25)
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    names = dict.fromkeys(label for _, lines in panels for label in lines)
    for label in names:
        axes[0].plot([], [], label=label, **styles[label])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.set_figheight(figure.get_figheight() + 0.2 * (1 + len(labels) // 4))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False
    )
    save(figure, path)
