"""From what a classifier said of the test images to metrics, a file of predictions and a picture."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval_linear.bootstrap import accuracy_interval, map_interval
from eval_linear.confusion import (
    MOST_CLASSES,
    confusion_matrix,
    plot_confusion,
    write_predictions,
)
from siambench.record import Metric


def top1_interval(right: int, count: int, seed: int) -> dict[str, float]:
    """The 95 % interval of top-1, as metrics."""
    low, high = accuracy_interval(right, count, seed)
    return {"top1_ci_low": low, "top1_ci_high": high}


def map_interval_metrics(labels: np.ndarray, scores: np.ndarray, seed: int) -> dict[str, float]:
    """The 95 % interval of mAP, as metrics."""
    low, high = map_interval(labels, scores, seed)
    return {"mAP_ci_low": low, "mAP_ci_high": high}


def as_metrics(values: dict[str, float], split: str, params: dict[str, Any]) -> list[Metric]:
    """One metric per value, in %."""
    return [Metric(name, value, split=split, params=params) for name, value in values.items()]


def class_metrics(
    name: str, per_class: np.ndarray, classes: Sequence[str], split: str, params: dict[str, Any]
) -> list[Metric]:
    """One metric per class that was measured."""
    return [
        Metric(name, float(value), split=split, params={**params, "class": of})
        for of, value in zip(classes, per_class, strict=True)
        if np.isfinite(value)
    ]


def keep_answers(
    folder: Path,
    names: Iterable[str],
    classes: Sequence[str],
    labels: np.ndarray,
    predicted: np.ndarray | None,
    scores: np.ndarray | None,
) -> None:
    """Write predictions.csv and, for up to 50 classes with one label an image, confusion.png.

    The arguments are those of :func:`eval_linear.confusion.write_predictions`.
    """
    write_predictions(folder / "predictions.csv", names, classes, labels, predicted, scores)
    if predicted is not None and len(classes) <= MOST_CLASSES:
        matrix = confusion_matrix(labels, predicted, len(classes))
        plot_confusion(folder / "confusion.png", matrix, classes)
