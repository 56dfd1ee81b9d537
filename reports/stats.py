"""Trials to numbers: the mean and spread of a metric, which entries are best, and ranks."""

import json
import math
from collections.abc import Mapping, Sequence
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

    Metrics of single classes and of single low-shot samples are handed out by :meth:`parts` alone.
    What of the others has been handed out is no longer in :meth:`rest`, so that no number goes
    unreported.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries
        found: dict[Key, dict[Row, list[tuple[float, Entry]]]] = {}
        self.units: dict[Key, str] = {}
        known: dict[tuple[Any, ...], Key] = {}  # thousands of records write the same few metrics
        for entry in entries:
            row = row_of(entry)
            for metric in entry.record.metrics:
                if "class" in metric.params or "sample" in metric.params:
                    continue
                written = (metric.name, metric.split, *metric.params.items())
                try:
                    key = known[written]
                except KeyError:
                    key = known[written] = Key(metric.name, metric.split, _items(metric.params))
                except TypeError:  # a list among the parameters
                    key = Key(metric.name, metric.split, _items(metric.params))
                found.setdefault(key, {}).setdefault(row, []).append((metric.value, entry))
                self.units[key] = metric.unit
        self._cells = {key: _cells(rows) for key, rows in found.items()}
        self._taken: set[Key] = set()

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
        """Classes with a metric called ``name``, by its other params, as in the first record."""
        found: dict[tuple[tuple[str, Any], ...], list[str]] = {}
        for entry in self._entries:
            for metric in entry.record.metrics:
                if metric.name == name and "class" in metric.params:
                    others = {k: v for k, v in metric.params.items() if k != "class"}
                    found.setdefault(_items(others), []).append(str(metric.params["class"]))
            if found:
                break
        return found

    def parts(
        self, name: str, params: tuple[tuple[str, Any], ...], of: str = "class"
    ) -> dict[str, Cells]:
        """Class (or sample) to cells of the metric called ``name`` with these params beside it."""
        found: dict[str, dict[Row, list[tuple[float, Entry]]]] = {}
        for entry in self._entries:
            row = row_of(entry)
            for metric in entry.record.metrics:
                has = metric.params
                if metric.name != name or of not in has or len(has) != len(params) + 1:
                    continue
                if all(has.get(k) == v for k, v in params):
                    part = found.setdefault(str(has[of]), {})
                    part.setdefault(row, []).append((metric.value, entry))
        return {part: _cells(rows) for part, rows in found.items()}

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
