"""The plots: training monitors, low-shot and precision-recall curves, as PNG files that are the same every time."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure

from reports.rows import Backbone
from reports.stats import Cells, Row
from reports.tables import MOST_CURVES, MOST_PAIRS, Curve
from siambench.files import atomic_path

# Okabe & Ito 2008: told apart by readers of every colour vision; then again with other dashes
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
DASHES = ["-", "--", ":", "-."]
MARKERS = "osD^vPX*"


def style_of(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, dash and marker of each backbone, the same in every plot."""
    return {
        name: {
            "color": PALETTE[i % len(PALETTE)],
            "linestyle": DASHES[i // len(PALETTE) % len(DASHES)],
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 4,
            "linewidth": 1.6,
        }
        for i, name in enumerate(names)
    }


def plot_monitors(
    path: Path, monitors: dict[str, list[dict[str, Any]]], styles: dict[str, dict[str, Any]]
) -> None:
    """Figure 2 of the SimSiam paper: loss, std of the normalised output, kNN accuracy, by epoch.

    Runs that record no std (training with labels) have another kind of loss: it gets an axis of its
    own on the right when both kinds are there.
    """
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    plain = {name for name, rows in monitors.items() if not _series(rows, "std")[0]}
    both = 0 < len(plain) < len(monitors)
    other = left.twinx() if both else left
    for name, rows in monitors.items():
        on_right = both and name in plain
        style = {**styles[name], "marker": styles[name]["marker"] if len(rows) <= 25 else ""}
        (other if on_right else left).plot(*_series(rows, "loss"), **style)
        if name not in plain:
            middle.plot(*_series(rows, "std"), **style)
        # the legend is this panel's: every run has a line in it, if only an empty one
        label = f"{name} (loss: right axis)" if on_right else name
        right.plot(*_series(rows, "knn_top1"), label=label, **style)
    targets = {
        target
        for name in set(monitors) - plain
        for target in _series(monitors[name], "std_target")[1]
    }
    for number, target in enumerate(sorted(targets)):
        once = "1/√d (no collapse)" if number == 0 else None
        middle.axhline(target, color="0.45", linestyle=(0, (1, 1)), linewidth=1.2, label=once)
    if targets:
        middle.set_ylim(
            0, 1.15 * max([*targets, *(y for line in middle.lines for y in line.get_ydata())])
        )
        middle.legend(frameon=False, fontsize=8, loc="lower right")
    titles = ("loss", "std of the normalised output", "kNN top-1, %")
    for axes, title in zip((left, middle, right), titles, strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
    if both:
        other.set_ylabel("right axis: trained with labels", fontsize=8)
    legend(figure, right)
    save(figure, path)


def plot_lowshot(
    path: Path,
    shots: dict[str, dict[int, Cells]],
    backbones: Sequence[Backbone],
    styles: dict[str, dict[str, Any]],
) -> None:
    """Low-shot mAP against k, with a band from the worst to the best sample of all trials.

    Of more backbones than can be told apart, the best are drawn; of few, the honest mean too.

    Args:
        path: the PNG file.
        shots: ``mAP``, ``mAP_min``, ``mAP_max`` and ``mAP_honest`` to k to cells.
        backbones: in the order of the legend.
        styles: from :func:`style_of`, by label.
    """
    curves = shots["mAP"]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    drawn = best_curves(curves, [(b.row, b.label) for b in backbones])
    for row, label in drawn:
        at = [k for k, cells in curves.items() if row in cells]
        axes.plot(at, [curves[k][row].mean for k in at], label=label, **styles[label])
        spread = [k for k in at if row in shots["mAP_min"][k] and row in shots["mAP_max"][k]]
        low = [min(shots["mAP_min"][k][row].values) for k in spread]
        high = [max(shots["mAP_max"][k][row].values) for k in spread]
        axes.fill_between(spread, low, high, color=styles[label]["color"], alpha=0.15, linewidth=0)
        honest = [k for k in at if row in shots["mAP_honest"][k]]
        if honest and len(drawn) <= MOST_PAIRS:
            means = [shots["mAP_honest"][k][row].mean for k in honest]
            axes.plot(honest, means, "--", color=styles[label]["color"], linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(curves), [str(k) for k in curves])
    axes.minorticks_off()
    axes.set_xlabel("k, positive images per class")
    axes.set_ylabel("mAP, %")
    axes.grid(alpha=0.25)
    legend(figure, axes)
    save(figure, path)


def plot_precision(
    path: Path, kinds: dict[str, dict[str, Curve]], styles: dict[str, dict[str, Any]]
) -> None:
    """Precision against recall, a panel for boxes and one for masks; IoU 0.5 solid, 0.75 dashed.

    Args:
        path: the PNG file.
        kinds: ``box`` and ``mask`` to label to curve, at most MOST_PAIRS labels.
        styles: from :func:`style_of`, by label.
    """
    labels = list(dict.fromkeys(label for curves in kinds.values() for label in curves))
    if len({styles[label]["color"] for label in labels}) < len(labels):
        styles = style_of(labels)
    figure = Figure(figsize=(5.4 * len(kinds), 4.2), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, (kind, curves) in zip(panels, kinds.items(), strict=True):
        for label, curve in curves.items():
            colour = styles[label]["color"]
            for precision, dash, named in zip(
                curve.precision, ("-", "--"), (label, None), strict=True
            ):
                axes.plot(100 * curve.recall, 100 * precision, dash, color=colour, label=named)
        axes.set(xlim=(0, 100), ylim=(0, 102), xlabel="recall, %", ylabel="precision, %")
        axes.set_title(kind, fontsize=10)
        axes.grid(alpha=0.25)
    legend(figure, panels[0])
    save(figure, path)


def best_curves(curves: dict[int, Cells], rows: Sequence[tuple[Row, str]]) -> list[tuple[Row, str]]:
    """Of the backbones that have a curve the MOST_CURVES with the highest mean, in their order."""
    means = {}
    for row, _ in rows:
        values = [cells[row].mean for cells in curves.values() if row in cells]
        if values:
            means[row] = sum(values) / len(values)
    kept = sorted(means, key=lambda row: -means[row])[:MOST_CURVES]
    return [(row, label) for row, label in rows if row in kept]


def _series(rows: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    points = [(r["epoch"], r[name]) for r in rows if isinstance(r.get(name), (int, float))]
    points = [(x, y) for x, y in points if math.isfinite(y)]
    return [x for x, _ in points], [y for _, y in points]


def legend(figure: Figure, axes: Any) -> None:
    """The lines of ``axes``, named below all panels; the figure grows by what they need."""
    handles, labels = axes.get_legend_handles_labels()
    columns = min(4, max(1, len(labels)))
    figure.set_figheight(figure.get_figheight() + 0.2 * (len(labels) // columns))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )


def save(figure: Figure, path: Path) -> None:
    """Write a PNG file."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
