"""Trials to numbers: the mean and spread of a metric, which entries are best, and ranks."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from reports.collect import Entry

WITHIN = 0.5  # entries this close to the best are bold, as in Table 5 of the SimSiam paper


class Row(NamedTuple):
    """A backbone: two files of one name are two rows."""

    name: str
    sha256: str


class Key(NamedTuple):
    """A metric: name, split and the sorted items of its params."""

    name: str
    split: str
    params: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Cell:
    """A metric of one backbone over its trials.

    Attributes:
        values: one per trial.
        entries: the records they came from, in the same order.
    """

    values: tuple[float, ...]
    entries: tuple[Entry, ...]

    @property
    def mean(self) -> float:
        """Mean over trials."""
        return math.fsum(self.values) / len(self.values)

    @property
    def std(self) -> float:
        """Sample standard deviation over trials (n - 1); 0 for a single trial."""
        n, mean = len(self.values), self.mean
        return (
            math.sqrt(math.fsum((v - mean) ** 2 for v in self.values) / (n - 1)) if n > 1 else 0.0
        )


Cells = dict[Row, Cell]


def row_of(entry: Entry) -> Row:
    """The backbone that a record is about."""
    return Row(entry.record.backbone["name"], entry.record.backbone["sha256"])


class Metrics:
    """The metrics of records that may stand in one table, by name and params.

    Metrics of single classes and of single low-shot samples are left to the records. What
    :meth:`take` has handed out is no longer in :meth:`rest`, so that no number goes unreported.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        found: dict[Key, dict[Row, list[tuple[float, Entry]]]] = {}
        self.units: dict[Key, str] = {}
        for entry in entries:
            row = row_of(entry)
            for metric in entry.record.metrics:
                if "class" in metric.params or "sample" in metric.params:
                    continue
                key = Key(metric.name, metric.split, _items(metric.params))
                found.setdefault(key, {}).setdefault(row, []).append((metric.value, entry))
                self.units[key] = metric.unit
        self._cells = {
            key: {row: Cell(*zip(*pairs, strict=True)) for row, pairs in rows.items()}
            for key, rows in found.items()
        }
        self._taken: set[Key] = set()

    def take(self, name: str, **params: Any) -> Cells:
        """The cells of the metric with this name and exactly these params, on val or test."""
        items = _items(params)
        for key, cells in self._cells.items():
            if key.name == name and key.params == items and key.split != "train":
                self._taken.add(key)
                return cells
        return {}

    def distinct(self, name: str, param: str, *, without: str = "") -> list[Any]:
        """The values that ``param`` takes in metrics called ``name``, in order of appearance.

        Args:
            name: of the metrics.
            param: name of the parameter.
            without: only among metrics that lack this parameter.
        """
        keys = [dict(k.params) for k in self._cells if k.name == name and k.split != "train"]
        return list(dict.fromkeys(p[param] for p in keys if param in p and without not in p))

    def rest(self) -> dict[Key, Cells]:
        """What nobody has taken."""
        return {key: cells for key, cells in self._cells.items() if key not in self._taken}


def _items(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    plain = (str, int, float, bool, type(None))
    return tuple(
        (k, v if isinstance(v, plain) else json.dumps(v, sort_keys=True))
        for k, v in sorted(params.items())
    )


def mean_over(columns: list[Cells]) -> Cells:
    """The mean over ``columns``, trial by trial, of rows that are whole in all of them."""
    rows = [row for row in columns[0] if all(row in cells for cells in columns)] if columns else []
    result = {}
    for row in rows:
        per_trial: dict[str, list[float]] = {}
        for cells in columns:
            for value, entry in zip(cells[row].values, cells[row].entries, strict=True):
                per_trial.setdefault(str(entry.path), []).append(value)
        whole = [e for e in columns[0][row].entries if len(per_trial[str(e.path)]) == len(columns)]
        if whole:
            means = [math.fsum(per_trial[str(e.path)]) / len(columns) for e in whole]
            result[row] = Cell(tuple(means), tuple(whole))
    return result


def best_rows(cells: Cells) -> set[Row]:
    """Rows whose mean is within 0.5 of the best; none where there is nothing to compare."""
    if len(cells) < 2:
        return set()
    best = max(cell.mean for cell in cells.values())
    return {row for row, cell in cells.items() if cell.mean >= best - WITHIN - 1e-9}


def ranks(cells: Cells) -> dict[Row, float]:
    """1 for the highest mean; equal means share the mean of their ranks. Empty below two rows."""
    if len(cells) < 2:
        return {}
    means = [cell.mean for cell in cells.values()]
    return {
        row: 1 + sum(m > cell.mean for m in means) + (means.count(cell.mean) - 1) / 2
        for row, cell in cells.items()
    }
