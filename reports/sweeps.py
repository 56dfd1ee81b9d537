"""Sweeps of the linear probe: what was chosen among its settings, and what that choice cost."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from reports.collect import Entry
from reports.stats import Cell, Cells, Metrics, Row


class Setting(NamedTuple):
    """One setting of a sweep; ``weight_decay`` is None in records that swept the rate alone."""

    base_lr: Any
    weight_decay: Any


@dataclass(frozen=True)
class Choice:
    """What the trials of one backbone chose.

    Attributes:
        setting: the commonest choice, of equals the first trial's.
        agreed: number of trials that chose it.
        held_out: the score that each trial chose by.
        test: the score of each trial's choice on the test split.
        best: what a choice on the test split would have given.
    """

    setting: Setting
    agreed: int
    held_out: Cell
    test: Cell | None
    best: Cell | None


@dataclass(frozen=True)
class Sweep:
    """All settings of one layer's heads.

    Attributes:
        layer: its name.
        score: ``top1`` or ``mAP``.
        held_out: each setting on the held-out part of the training split.
        test: each setting on the test split.
        choices: per backbone.
    """

    layer: str
    score: str
    held_out: dict[Setting, Cells]
    test: dict[Setting, Cells]
    choices: dict[Row, Choice]


def sweeps_of(metrics: Metrics, score: str, reported: Mapping[str, Cells]) -> list[Sweep]:
    """The sweep of every layer that has one.

    Args:
        metrics: of a section.
        score: ``top1`` or ``mAP``.
        reported: per layer the score of the choice on the test split.
    """
    sweeps = []
    held_out = _by_layer(metrics, f"{score}_holdout")
    # version 1 of the probe called its sweep top1_lr
    test = {**_by_layer(metrics, f"{score}_lr"), **_by_layer(metrics, f"{score}_sweep")}
    for layer, cells in reported.items():
        tested = test.get(layer, {})
        best = metrics.take(f"{score}_test_chosen", layer=layer) or {
            row: Cell(tuple(max(s.values()) for _, s in trials), tuple(e for e, _ in trials))
            for row, trials in _by_trial(tested).items()
        }
        choices = {
            row: _choice(trials, cells.get(row), best.get(row))
            for row, trials in _by_trial(held_out.get(layer, {})).items()
        }
        if choices:
            sweeps.append(Sweep(layer, score, held_out[layer], tested, choices))
    return sweeps


def _by_layer(metrics: Metrics, name: str) -> dict[str, dict[Setting, Cells]]:
    layers: dict[str, dict[Setting, Cells]] = {}
    for key, cells in metrics.family(name, "layer", "base_lr").items():
        params = dict(key.params)
        setting = Setting(params["base_lr"], params.get("weight_decay"))
        layers.setdefault(params["layer"], {})[setting] = cells
    return layers


Trials = list[tuple[Entry, dict[Setting, float]]]


def _by_trial(settings: dict[Setting, Cells]) -> dict[Row, Trials]:
    """Per backbone and trial the scores of all settings."""
    trials: dict[Row, dict[Path, tuple[Entry, dict[Setting, float]]]] = {}
    for setting, cells in settings.items():
        for row, cell in cells.items():
            of_row = trials.setdefault(row, {})
            for value, entry in zip(cell.values, cell.entries, strict=True):
                of_row.setdefault(entry.path, (entry, {}))[1][setting] = value
    return {row: list(of_row.values()) for row, of_row in trials.items()}


def _choice(trials: Trials, test: Cell | None, best: Cell | None) -> Choice:
    """The probe's own rule, trial by trial: the highest held-out score, of equals the first."""
    chosen = [max(scores, key=scores.__getitem__) for _, scores in trials]
    held_out = tuple(scores[at] for (_, scores), at in zip(trials, chosen, strict=True))
    ((setting, agreed),) = Counter(chosen).most_common(1)
    return Choice(setting, agreed, Cell(held_out, tuple(e for e, _ in trials)), test, best)
