"""The tables of the linear probe and of kNN."""

from dataclasses import replace
from typing import Any

from reports.stats import Cells, Metrics
from reports.sweeps import sweeps_of
from reports.tables import Column, Layout, Table

MOST_CLASSES = 50  # columns that a reader can still scroll through, as in the pictures of confusion


def linear(metrics: Metrics) -> Layout:
    """mmselfsup's feature1 ... feature5 table, or Table 4 of the SimSiam paper for avgpool alone.

    Images with several labels (VOC07) have mAP where others have top-1.
    """
    score = "top1" if metrics.distinct("top1", "layer") else "mAP"
    name = {"top1": "top-1", "mAP": "mAP"}[score]
    layers = sorted(metrics.distinct(score, "layer"), key=lambda x: (x == "avgpool", x))
    main = {layer: metrics.take(score, layer=layer) for layer in layers}
    intervals = [_interval(metrics, score, "95 %", layer=layer) for layer in layers]
    tables: list[Table] = []
    if len(layers) == 1:
        (layer,) = layers
        columns = [
            Column(name, main[layer], score, interval=intervals[0]),
            *intervals,
            Column("top-5", metrics.take("top5", layer=layer)),
            Column("class mean", metrics.take("top1_mean_class", layer=layer)),
        ]
        columns = [c for c in columns if c.cells]
        caption = f"Linear classification on {layer}, %{_meaning(intervals)}"
        tables.append(Table(caption, columns))
    elif layers:
        caption = "Linear classification on each stage's output, {} %"
        columns = [
            Column(x, main[x], f"{score}_{x}", interval=ends)
            for x, ends in zip(layers, intervals, strict=True)
        ]
        top5 = [Column(x, metrics.take("top5", layer=x)) for x in layers]
        mean = [Column(x, metrics.take("top1_mean_class", layer=x)) for x in layers]
        tables += [
            Table(caption.format(name), columns, 2),
            Table(caption.format("top-5"), [c for c in top5 if c.cells], 2),
            _folded_intervals(f"Each stage's {name}", intervals, layers, 2),
            Table(
                "Class mean on each stage's output, %", [c for c in mean if c.cells], 2, folded=True
            ),
        ]
    headline = [Column(f"{name} ({x})", main[x], interval=intervals[-1]) for x in layers[-1:]]
    made = Layout(tables, headline, sweeps=sweeps_of(metrics, score, main))
    per_class = "AP_class" if score == "mAP" else "top1_class"
    return _with_classes(made, metrics, per_class, layers[-1]) if layers else made


def knn(metrics: Metrics) -> Layout:
    """k across, a table per temperature."""
    temperatures = sorted(metrics.distinct("top1", "T"))
    ks = sorted(metrics.distinct("top1", "k"))
    grid = {(k, t): metrics.take("top1", k=k, T=t) for t in temperatures for k in ks}
    grid = {at: cells for at, cells in grid.items() if cells}
    how = ", each image left out of its own neighbours" * (metrics.splits("top1") == {"train"})
    ends = {(k, t): _interval(metrics, "top1", "", k=k, T=t) for k, t in grid}
    tables = []
    for t in temperatures:
        columns = [
            Column(f"k={k}", grid[k, t], f"top1_k{k}_T{t:g}", interval=ends[k, t])
            for k in ks
            if (k, t) in grid
        ]
        tables.append(Table(f"Weighted kNN with T = {t:g}{how}, top-1 %", columns))
    headers = [f"k={k}, T={t:g}" for k, t in grid]
    tables.append(_folded_intervals("Top-1", list(ends.values()), headers, 1))
    for name, caption in {"top5": "Top-5, %", "top1_mean_class": "Class mean, %"}.items():
        cells = [metrics.take(name, k=k, T=t) for k, t in grid]
        columns = [Column(h, c) for h, c in zip(headers, cells, strict=True)]
        tables.append(Table(caption, columns, folded=True))
    shown = [(20, 0.07)] if (20, 0.07) in grid else list(grid)[:1]
    headline = [
        Column(f"top-1 (k={k}, T={t:g})", grid[k, t], interval=ends[k, t]) for k, t in shown
    ]
    return _with_classes(Layout(tables, headline), metrics, "top1_class")


def _interval(metrics: Metrics, score: str, header: str, **params: Any) -> Column:
    low, high = (metrics.take(f"{score}_ci_{end}", **params) for end in ("low", "high"))
    both = {row: cell for row, cell in low.items() if row in high}
    return Column(header, both, upper=high)


def _folded_intervals(what: str, intervals: list[Column], headers: list[str], n: int) -> Table:
    columns = [
        Column(header, column.cells, upper=column.upper)
        for header, column in zip(headers, intervals, strict=True)
    ]
    return Table(f"{what}, %{_meaning(columns)}", columns, n, bold=False, folded=True)


def _meaning(intervals: list[Column]) -> str:
    """What the interval and the ± are over; nothing without intervals."""
    cells: list[Cells] = [column.cells for column in intervals if column.cells]
    if not cells:
        return ""
    if any(len(cell.values) > 1 for by_row in cells for cell in by_row.values()):
        return (
            ". The 95 % interval is over the test images (bootstrap; ends averaged over the trials), "
            "± is over the trials"
        )
    return ". The 95 % interval is over the test images (bootstrap)"


def _with_classes(made: Layout, metrics: Metrics, name: str, layer: str = "") -> Layout:
    """Add a folded table of single classes, or the remark that they are too many for one.

    Args:
        made: the other tables.
        metrics: of the section.
        name: of the metric of a class.
        layer: the layer to show, where there are layers.
    """
    what = "AP of each class" if name == "AP_class" else "Accuracy of each class"
    for params, classes in metrics.classes(name).items():
        if layer and dict(params).get("layer") != layer:
            continue
        where = ", ".join(str(v) if k == "layer" else f"{k} = {v}" for k, v in params)
        if len(classes) > MOST_CLASSES:
            remark = (
                f"{what}: {len(classes):,} are too many for a table; they are in the records, and the "
                "answers image by image in each job's predictions.csv."
            )
            return replace(made, remarks=[remark], answers=where)
        columns = [Column(c, cells) for c, cells in metrics.parts(name, params).items()]
        table = Table(f"{what} ({where}), %", columns, folded=True)
        return replace(made, tables=[*made.tables, table], answers=where)
    return made
