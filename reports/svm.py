"""The tables of linear SVMs: the literature's low-shot number and the honest one, line by line."""

from reports.classification import MOST_CLASSES
from reports.stats import Cells, Metrics, Row, joined, mean_over
from reports.tables import Column, Layout, Table

_LINES = ("low-shot cost", "best on test", "honest")
_LOWSHOT = (
    "Low-shot costs: the best on the test split, as the literature takes them; below, honest ones, "
    "chosen without it. ± of low-shot is over the samples of each k"
)
_BEST_LAYER = "The best layer{} is chosen on the test split, as in the literature"
_NAMES = {"mAP": "mAP", "top1": "top-1"}

Shots = dict[str, dict[int, Cells]]
ByLayer = dict[str, dict[int, dict[str, Cells]]]


def svm(metrics: Metrics) -> Layout:
    """mmselfsup's table, best layer, full SVM, k = 1 ... 96, with a second, honest line per backbone.

    Images with one label have the same table for top-1. ``mAP_best_layer`` has no place: it repeats
    the highest of the numbers by layer.
    """
    metrics.family("mAP_best_layer", "layer")
    full = {x: metrics.take("mAP", layer=x) for x in metrics.distinct("mAP", "layer", without="k")}
    layers = list(dict.fromkeys([*full, *metrics.distinct("mAP", "layer")]))
    layers.sort(key=lambda x: (x == "avgpool", x))
    ks = sorted(metrics.distinct("mAP", "k"))
    low = {
        f"{score}{end}": {
            k: {x: metrics.take(f"{score}{end}", k=k, layer=x) for x in layers} for k in ks
        }
        for score in _NAMES
        for end in ("", "_std", "_min", "_max", "_honest", "_honest_std")
    }
    best = _best_layers(full, low["mAP"])
    shots = {
        name: {k: _of_best(best, by_layer) for k, by_layer in low[name].items()} for name in low
    }
    whole = {
        "mAP": _of_best(best, full),
        "top1": _of_best(best, {x: metrics.take("top1", layer=x) for x in full}),
    }
    several = len(layers) > 1
    tables = _main(whole, shots, ks, best, several)
    if several:
        tables += _by_layer(layers, full, low)
    spread = [Column(f"k={k}", shots["mAP_min"][k], upper=shots["mAP_max"][k]) for k in ks]
    tables.append(Table("From the worst to the best sample, mAP %", spread, 2, best, folded=True))
    remarks = _classes(metrics, layers, best, tables)
    tables.append(_costs(metrics, layers, ks, best))

    headline = [Column("full SVM", whole["mAP"])] if full else []
    if ks:
        mean = mean_over(list(shots["mAP"].values()))
        headline.append(Column("low-shot mAP (mean over k)", mean))
    curves = {name: shots[name] for name in ("mAP", "mAP_min", "mAP_max", "mAP_honest")}
    return Layout(tables, headline, curves, remarks=remarks)


def _main(
    whole: dict[str, Cells], shots: Shots, ks: list[int], best: dict[Row, str], several: bool
) -> list[Table]:
    """mAP, and where there is one top-1, of the full and the low-shot SVMs."""
    if not ks:
        columns = [Column("full SVM", whole["mAP"], "mAP"), Column("top-1", whole["top1"])]
        caption = "Linear SVM, mAP %" + f". {_BEST_LAYER.format('')}" * several
        return [Table(caption, [c for c in columns if c.cells], 2, best)]
    cells = [cell for by_row in shots["mAP"].values() for cell in by_row.values()]
    trials = max((len(cell.values) for cell in cells), default=1)
    said = f". {_LOWSHOT}" + ", its mean over trials" * (trials > 1)
    said += f". {_BEST_LAYER.format(' (also of the honest line)')}" * several
    tables = []
    for score, name in _NAMES.items():
        columns = [Column("full SVM", whole[score], score)] if whole[score] else []
        columns += [_shots(f"k={k}", f"{score}_k{k}", shots, score, k) for k in ks]
        caption = f"Linear SVM, {name} %" + said * (score == "mAP")
        tables.append(Table(caption, columns, 2, best, lines=_LINES))
    return tables


def _of_best(best: dict[Row, str], by_layer: dict[str, Cells]) -> Cells:
    """The cell of each backbone's best layer."""
    chosen = {row: by_layer.get(layer, {}).get(row) for row, layer in best.items()}
    return {row: cell for row, cell in chosen.items() if cell}


def _shots(header: str, published: str, shots: Shots, score: str, k: int) -> Column:
    """Mean and spread of one k over its samples, and below it the honest ones."""
    honest = Column(header, shots[f"{score}_honest"][k], spread=shots[f"{score}_honest_std"][k])
    spread = shots[f"{score}_std"][k]
    return Column(header, shots[score][k], published, spread=spread, second=honest)


def _by_layer(layers: list[str], full: dict[str, Cells], low: ByLayer) -> list[Table]:
    """Full and low-shot mAP of every layer."""
    of_full = [Column(x, full[x]) for x in layers if x in full]
    tables = [Table("Full SVM on each layer, mAP %", of_full, 2)] if len(of_full) > 1 else []
    means = {
        name: {x: mean_over([c for by in low[name].values() if (c := by[x])]) for x in layers}
        for name in ("mAP", "mAP_honest")
    }
    of_low = [Column(x, means["mAP"][x], second=Column(x, means["mAP_honest"][x])) for x in layers]
    caption = "Low-shot SVM on each layer, mAP %, mean over k"
    return [*tables, Table(caption, of_low, 2, lines=_LINES)]


def _classes(
    metrics: Metrics, layers: list[str], best: dict[Row, str], tables: list[Table]
) -> list[str]:
    """Add the folded tables of single classes of the full SVM, or say that they are too many."""
    aps = _of_classes(metrics, "AP", layers, best)
    if len(aps) > MOST_CLASSES:
        return [
            f"AP and cost of each class: {len(aps):,} are too many for a table; they are in the records."
        ]
    columns = [Column(name, cells) for name, cells in aps.items()]
    caption = "Full SVM, AP of each class, %"
    tables.append(Table(caption, columns, 1, best, folded=True, drawn=True))
    costs = _of_classes(metrics, "cost", layers, best)
    columns = [Column(name, cells) for name, cells in costs.items()]
    caption = "Full SVM, cost C of each class, by cross-validation"
    tables.append(Table(caption, columns, None, best, bold=False, folded=True, distinct=True))
    return []


def _of_classes(
    metrics: Metrics, name: str, layers: list[str], best: dict[Row, str]
) -> dict[str, Cells]:
    """Class to the cells of each backbone's best layer."""
    found = {x: metrics.parts(name, (("layer", x),)) for x in layers}
    classes = dict.fromkeys(c for by_class in found.values() for c in by_class)
    return {c: _of_best(best, {x: found[x].get(c, {}) for x in layers}) for c in classes}


def _costs(metrics: Metrics, layers: list[str], ks: list[int], best: dict[Row, str]) -> Table:
    """The low-shot costs: one per trial that is best on test, an honest one per sample."""
    columns = []
    for k in ks:
        on_test = {x: metrics.take("cost", k=k, layer=x) for x in layers}
        honest = {}
        for x in layers:
            samples = metrics.parts("cost_honest", (("k", k), ("layer", x)), "sample")
            honest[x] = joined(list(samples.values()))
        second = Column(f"k={k}", _of_best(best, honest))
        columns.append(Column(f"k={k}", _of_best(best, on_test), second=second))
    caption = "Chosen low-shot costs C; honest: every sample's"
    return Table(caption, columns, None, best, bold=False, folded=True, lines=_LINES, distinct=True)


def _best_layers(full: dict[str, Cells], low: dict[int, dict[str, Cells]]) -> dict[Row, str]:
    """Per backbone the layer with the highest full-SVM mAP (or low-shot, where there is no full).

    A layer that has both counts before one that has only one of them.
    """
    scores: dict[Row, dict[str, tuple[int, float]]] = {}
    for layer in dict.fromkeys([*full, *(x for by_layer in low.values() for x in by_layer)]):
        shots = mean_over([cells for by in low.values() if (cells := by.get(layer, {}))])
        for row in {**full.get(layer, {}), **shots}:
            of_full = full.get(layer, {}).get(row)
            score = (of_full or shots[row]).mean
            has = (of_full is not None) + (row in shots)
            scores.setdefault(row, {})[layer] = (has, score)
    return {row: max(by, key=lambda layer: by[layer]) for row, by in scores.items()}
