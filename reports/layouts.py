"""The tables of each benchmark, laid out as the source papers lay theirs out."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from reports.classification import knn, linear
from reports.stats import Cells, Metrics, Row, mean_over
from reports.tables import Column, Layout, Table


def layout(verb: str, metrics: Metrics) -> Layout:
    """Lay out the metrics of a section; what no table of ``verb`` shows goes into one of its own."""
    made = LAYOUTS.get(verb, _other)(metrics)
    rest = metrics.rest()
    for unit in dict.fromkeys(metrics.units[key] for key in rest):
        columns = [Column(_header(*k), c) for k, c in rest.items() if metrics.units[k] == unit]
        caption = f"Other metrics, {unit}" if unit else "Other metrics"
        decimals = 2 if unit == "%" else None
        made.tables.append(Table(caption, columns, decimals, bold=False, folded=True))
    tables = [table for table in made.tables if any(c.cells for c in table.columns)]
    return replace(made, tables=tables)


def _svm(metrics: Metrics) -> Layout:
    """mmselfsup's table: best layer, full SVM, k = 1 ... 96; then the honest costs and the spread."""
    full = {x: metrics.take("mAP", layer=x) for x in metrics.distinct("mAP", "layer", without="k")}
    layers = list(dict.fromkeys([*full, *metrics.distinct("mAP", "layer")]))
    ks = sorted(metrics.distinct("mAP", "k"))
    low = {
        name: {x: {k: metrics.take(name, k=k, layer=x) for k in ks} for x in layers}
        for name in ("mAP", "mAP_min", "mAP_max", "mAP_std", "mAP_honest")
    }
    best = _best_layers(full, low["mAP"])

    def of_best(by_layer: dict[str, Cells]) -> Cells:
        chosen = {row: by_layer.get(layer, {}).get(row) for row, layer in best.items()}
        return {row: cell for row, cell in chosen.items() if cell}

    shots = {
        name: {k: of_best({x: low[name][x][k] for x in layers}) for k in ks if layers}
        for name in low
    }
    whole = [Column("full SVM", of_best(full), "mAP")] if full else []
    columns = [Column(f"k={k}", cells, f"mAP_k{k}") for k, cells in shots["mAP"].items()]
    tables = [Table(_LOWSHOT if ks else "Linear SVM, mAP %", whole + columns, 2, best)]
    for name, caption in _MORE_LOWSHOT.items():
        of_name = [Column(f"k={k}", cells) for k, cells in shots[name].items() if cells]
        tables.append(Table(caption, of_name, 2, best, bold=name == "mAP_honest"))
    if len(full) > 1:
        by_layer = [Column(x, full[x]) for x in sorted(full, key=lambda x: (x == "avgpool", x))]
        tables.append(Table("Full SVM on each layer, mAP %", by_layer, 2))
    if ks:
        whole.append(Column("low-shot mAP (mean over k)", mean_over(list(shots["mAP"].values()))))
    return Layout(tables, whole, shots)


_LOWSHOT = (
    "Linear SVM, mAP %. Low-shot costs are the best on the test split, as the literature takes them"
)
_MORE_LOWSHOT = {
    "mAP_honest": "Low-shot with honest costs, chosen without the test split, mAP %",
    "mAP_std": "Standard deviation of the low-shot mAP over its samples",
}


def _best_layers(full: dict[str, Cells], low: dict[str, dict[int, Cells]]) -> dict[Row, str]:
    """Per backbone the layer with the highest full-SVM mAP (or low-shot, where there is no full).

    A layer that has both counts before one that has only one of them.
    """
    scores: dict[Row, dict[str, tuple[int, float]]] = {}
    for layer in low:
        shots = mean_over([cells for cells in low[layer].values() if cells])
        for row in {**full.get(layer, {}), **shots}:
            of_full = full.get(layer, {}).get(row)
            score = (of_full or shots[row]).mean
            has = (of_full is not None) + (row in shots)
            scores.setdefault(row, {})[layer] = (has, score)
    return {row: max(by, key=lambda layer: by[layer]) for row, by in scores.items()}


def _detect(metrics: Metrics) -> Layout:
    """Table 5 of the SimSiam paper: AP50, AP, AP75 of boxes, then of masks; a table per AP rule."""
    found = [*metrics.distinct("box_AP", "rule"), *metrics.distinct("box_AP50", "rule")]
    # detectron2 scores VOC 2007 by the 11-point rule, and so do the papers; COCO's is 101 points
    rules = sorted(set(found), key=lambda rule: (_RULES.index(rule) if rule in _RULES else 9, rule))
    tables: list[Table] = []
    headline: list[Column] = []
    for rule in rules:
        cells = {
            f"{kind}_{name}": metrics.take(f"{kind}_{name}", rule=rule)
            for kind in ("box", "mask")
            for name in ("AP50", "AP", "AP75")
        }
        published = rule in ("11-point", "101-point")
        columns = [
            Column(name.replace("_", " "), c, name if published else "")
            for name, c in cells.items()
            if c
        ]
        tables.append(Table(f"Average precision by the {rule} rule, %", columns))
        if not headline:
            names = ("box_AP", "mask_AP") if rule == "101-point" else ("box_AP50", "box_AP")
            headline = [
                Column(f"{n.replace('_', ' ')} ({rule})", cells[n]) for n in names if cells[n]
            ]
    return Layout(tables, headline)


_RULES = ["11-point", "101-point", "all-points"]


def _segment(metrics: Metrics) -> Layout:
    """mIoU and the accuracies, as mmsegmentation prints them."""
    names = {"mIoU": "mIoU", "mean_acc": "mean accuracy", "pixel_acc": "pixel accuracy"}
    columns = [Column(header, metrics.take(n), n) for n, header in names.items()]
    columns = [c for c in columns if c.cells]
    return Layout([Table("Semantic segmentation, %", columns, 2)], columns[:1])


def _other(metrics: Metrics) -> Layout:
    """A benchmark without a layout of its own: its first accuracy stands for it."""
    for key, cells in metrics.rest().items():
        if metrics.units[key] == "%" and key.split != "train":
            return Layout([], [Column(_header(*key), cells)])
    return Layout([], [])


LAYOUTS: dict[str, Callable[[Metrics], Layout]] = {
    "linear": linear,
    "knn": knn,
    "svm": _svm,
    "detect": _detect,
    "segment": _segment,
}


def _header(name: str, split: str, params: tuple[tuple[str, Any], ...]) -> str:
    inside = [f"{k}={v}" for k, v in params] + ([split] if split == "train" else [])
    name = name.replace("_", " ")
    return f"{name} ({', '.join(inside)})" if inside else name
