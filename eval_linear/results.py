"""From what a classifier said of the test images to metrics, files, and the lines that are printed."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval_linear.bootstrap import accuracy_interval, map_interval
from eval_linear.config import LinearConfig
from eval_linear.confusion import (
    MOST_CLASSES,
    confusion_matrix,
    plot_confusion,
    write_predictions,
)
from eval_linear.multilabel import Precisions
from eval_linear.scores import Scores
from siambench.data.classification import Classification, Split
from siambench.record import Metric, Record


def top1_interval(right: int, count: int, seed: int) -> dict[str, float]:
    """The 95 % interval of top-1, as metrics."""
    low, high = accuracy_interval(right, count, seed)
    return {"top1_ci_low": low, "top1_ci_high": high}


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


def layer_metrics(
    found: Scores | Precisions,
    head: int,
    test: Split,
    classes: Sequence[str],
    params: dict[str, Any],
    seed: int,
) -> list[Metric]:
    """The metrics of one layer whose setting number ``head`` was chosen."""
    if isinstance(found, Precisions):
        values = {"mAP": float(found.mean[head])}
        low, high = map_interval(test.labels, found.logits, seed)
        values |= {"mAP_ci_low": low, "mAP_ci_high": high}
        name = "AP_class"
    else:
        values = {
            "top1": float(found.top1[head]),
            **top1_interval(int(found.right[head]), len(test.labels), seed),
            "top5": float(found.top5[head]),
            "top1_mean_class": float(found.mean_class[head]),
        }
        name = "top1_class"
    return [
        *as_metrics(values, test.name, params),
        *class_metrics(name, found.per_class[head], classes, test.name, params),
    ]


def sweep_metrics(
    layer: str,
    settings: list[tuple[float, float]],
    data: Classification,
    twins: Scores | Precisions,
    tested: Scores | Precisions,
) -> list[Metric]:
    """What every setting scored where the choice was made and on the test split."""
    name = "mAP" if data.multilabel else "top1"
    held, of_test = twins.choice[len(settings) :], tested.choice[: len(settings)]
    metrics = as_metrics(
        {f"{name}_test_chosen": float(of_test.max())}, data.test.name, {"layer": layer}
    )
    for number, (rate, decay) in enumerate(settings):
        params = {"layer": layer, "base_lr": rate, "weight_decay": decay}
        metrics += as_metrics({f"{name}_holdout": float(held[number])}, data.train.name, params)
        metrics += as_metrics({f"{name}_sweep": float(of_test[number])}, data.test.name, params)
    return metrics


def lines_of(record: Record, config: LinearConfig) -> list[str]:
    """A line per layer: the score, its 95 % interval, what was chosen and how."""
    kind = "mAP" if any(m.name == "mAP" for m in record.metrics) else "top1"
    headers = [kind.replace("top1", "top-1"), "95 % interval"]
    headers += [] if kind == "mAP" else ["top-5", "class mean"]
    sweep = len(config.settings) > 1
    headers += ["base_lr", "decay", "held out", "best on test"] if sweep else []
    lines = [f"{'layer':<10}" + "".join(f"{header:>15}" for header in headers)]
    for layer in config.layers:

        def value(name: str, layer: str = layer, **params: Any) -> float:
            return record.metric(name, layer=layer, **params)

        cells = [
            f"{value(kind):.2f}",
            f"{value(f'{kind}_ci_low'):.2f} to {value(f'{kind}_ci_high'):.2f}",
        ]
        if kind == "top1":
            cells += [f"{value('top5'):.2f}", f"{value('top1_mean_class'):.2f}"]
        if sweep:
            held = [
                value(f"{kind}_holdout", base_lr=rate, weight_decay=decay)
                for rate, decay in config.settings
            ]
            rate, decay = config.settings[int(np.argmax(held))]
            cells += [f"{rate:g}", f"{decay:g}", f"{max(held):.2f}"]
            cells += [f"{value(f'{kind}_test_chosen'):.2f}"]
        lines.append(f"{layer:<10}" + "".join(f"{cell:>15}" for cell in cells))
    return lines
