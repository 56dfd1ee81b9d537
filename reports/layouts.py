"""The tables of each benchmark, laid out as the source papers lay theirs out."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from reports.classification import knn, linear
from reports.detection import detect
from reports.segmentation import segment
from reports.stats import Metrics
from reports.svm import svm
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


def _other(metrics: Metrics) -> Layout:
    """A benchmark without a layout of its own: its first accuracy stands for it."""
    for key, cells in metrics.rest().items():
        if metrics.units[key] == "%" and key.split != "train":
            return Layout([], [Column(_header(*key), cells)])
    return Layout([], [])


LAYOUTS: dict[str, Callable[[Metrics], Layout]] = {
    "linear": linear,
    "knn": knn,
    "svm": svm,
    "detect": detect,
    "segment": segment,
}


def _header(name: str, split: str, params: tuple[tuple[str, Any], ...]) -> str:
    inside = [f"{k}={v}" for k, v in params] + ([split] if split == "train" else [])
    name = name.replace("_", " ")
    return f"{name} ({', '.join(inside)})" if inside else name
