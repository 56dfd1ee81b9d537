"""Trials to numbers: the mean and spread of a metric, which entries are best, and ranks."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from reports.collect import Entry
from siambench.record import Metric

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
Params = tuple[tuple[str, Any], ...]
Values = dict[Row, list[tuple[float, Entry]]]


def row_of(entry: Entry) -> Row:
    """The backbone that a record is about."""
    return Row(entry.record.backbone["name"], entry.record.backbone["sha256"])


class Metrics:
    """The metrics of records that may stand in one table, by name and params.

    Metrics of single classes and of single low-shot samples are handed out by :meth:`parts` alone.
    What of the others has been handed out is no longer in :meth:`rest`, so that no number goes
    unreported.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        found: dict[Key, Values] = {}
        self.units: dict[Key, str] = {}
        self._parts: dict[tuple[str, str, Params], dict[str, Values]] = {}
        known: dict[tuple[str, str, int], Values] = {}
        for entry in entries:
            row = row_of(entry)
            for metric in entry.record.metrics:
                # thousands of records write the same few metrics, whose params are then one object
                written = (metric.name, metric.split, id(metric.params))
                values = known.get(written)
                if values is None:
                    values = known[written] = self._place(metric, found)
                if row in values:
                    values[row].append((metric.value, entry))
                else:
                    values[row] = [(metric.value, entry)]
        self._cells = {key: _cells(rows) for key, rows in found.items()}
        self._taken: set[Key] = set()

    def _place(self, metric: Metric, found: dict[Key, Values]) -> Values:
        """Where the values of such a metric go."""
        params = metric.params
        of = next((name for name in ("class", "sample") if name in params), "")
        if of:
            items = _items({k: v for k, v in params.items() if k != of})
            return self._parts.setdefault((metric.name, of, items), {}).setdefault(
                str(params[of]), {}
            )
        key = Key(metric.name, metric.split, _items(params))
        self.units[key] = metric.unit
        return found.setdefault(key, {})

    def take(self, name: str, **params: Any) -> Cells:
        """The cells of the metric with this name and exactly these params.

        Measured on the training split only where it was measured on no other (kNN that leaves each
        image out of its own neighbours).
        """
        items = _items(params)
        keys = [key for key in self._cells if key.name == name and key.params == items]
        if not keys:
            return {}
        key = min(keys, key=lambda key: key.split == "train")
        self._taken.add(key)
        return self._cells[key]

    def family(self, name: str, *params: str) -> dict[Key, Cells]:
        """All metrics called ``name`` that have these parameters, on whatever split."""
        found = {
            key: cells
            for key, cells in self._cells.items()
            if key.name == name and {*params} <= {p for p, _ in key.params}
        }
        self._taken.update(found)
        return found

    def classes(self, name: str) -> dict[tuple[tuple[str, Any], ...], list[str]]:
        """Classes with a metric called ``name``, by its other params, as the records list them."""
        return {
            params: list(classes)
            for (called, of, params), classes in self._parts.items()
            if called == name and of == "class"
        }

    def parts(
        self, name: str, params: tuple[tuple[str, Any], ...], of: str = "class"
    ) -> dict[str, Cells]:
        """Class (or sample) to cells of the metric called ``name`` with these params beside it."""
        parts = self._parts.get((name, of, _items(dict(params))), {})
        return {part: _cells(values) for part, values in parts.items()}

    def splits(self, name: str) -> set[str]:
        """The splits that metrics called ``name`` were measured on."""
        return {key.split for key in self._cells if key.name == name}

    def distinct(self, name: str, param: str, *, without: str = "") -> list[Any]:
        """The values that ``param`` takes in metrics called ``name``, in order of appearance.

        Args:
            name: of the metrics.
            param: name of the parameter.
            without: only among metrics that lack this parameter.
        """
        keys = [dict(key.params) for key in self._cells if key.name == name]
        return list(dict.fromkeys(p[param] for p in keys if param in p and without not in p))

    def rest(self) -> dict[Key, Cells]:
        """What nobody has taken."""
        return {key: cells for key, cells in self._cells.items() if key not in self._taken}


def _cells(rows: dict[Row, list[tuple[float, Entry]]]) -> Cells:
    return {row: Cell(*zip(*pairs, strict=True)) for row, pairs in rows.items()}


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


def joined(columns: list[Cells]) -> Cells:
    """All values of a row in one cell, column after column."""
    pairs: dict[Row, list[tuple[float, Entry]]] = {}
    for cells in columns:
        for row, cell in cells.items():
            pairs.setdefault(row, []).extend(zip(cell.values, cell.entries, strict=True))
    return _cells(pairs)


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
