"""What a classifier says of each image: a CSV file, and the picture of what it takes for what."""

import csv
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from siambench.errors import printable
from siambench.files import atomic_path

MOST_CLASSES = 50  # of a picture that can be read
_LETTERS = 24  # of a class name in the picture


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts (classes, classes): row the true class, column the predicted one.

    Args:
        labels, predicted: classes (n,); images whose prediction is -1 do not count.
        classes: number of classes.
    """
    known = predicted >= 0
    cells = labels[known] * classes + predicted[known]
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def plot_confusion(path: str | Path, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Write a PNG of a confusion matrix, each row in % of its class, atomically.

    Up to 20 classes the cells have their numbers. Long names are cut.

    Args:
        path: of the picture.
        matrix: counts (C, C), C at most ``MOST_CLASSES``.
        classes: C names.

    Raises:
        UserError: ``path`` cannot be written.
    """
    from matplotlib.figure import Figure  # takes half a second

    count = len(classes)
    percent = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = 3 + 0.28 * max(count, 8)
    figure = Figure(figsize=(side + 0.8, side), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    names = [printable(name, _LETTERS) for name in classes]
    axes.set_xticks(range(count), names, rotation=90, fontsize=7, parse_math=False)
    axes.set_yticks(range(count), names, fontsize=7, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    if count <= 20:
        for (row, column), value in np.ndenumerate(percent):
            if value >= 0.5:
                colour = "white" if value > 50 else "black"
                place = {"ha": "center", "va": "center", "color": colour, "fontsize": 6}
                axes.text(column, row, f"{value:.0f}", **place)
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.7)
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # letters the font lacks: boxes
        figure.savefig(temporary, format="png")


def write_predictions(
    path: str | Path,
    names: Iterable[str],
    classes: Sequence[str],
    labels: np.ndarray,
    predicted: np.ndarray | None,
    scores: np.ndarray | None,
) -> None:
    """Write a CSV file (UTF-8), one line per image, atomically.

    The columns are image, label, predicted and score (if there is one); with several labels per image: image, present
    (class names), left out, and each class's score.

    Args:
        path: of the file.
        names: of the images (n).
        classes: names of the classes.
        labels: classes (n,); or (n, C) of 1 present, 0 left out, -1 absent.
        predicted: classes (n,), -1 for none; None with several labels.
        scores: of the predicted class (n,), None where it has none; or of every class (n, C).

    Raises:
        UserError: ``path`` cannot be written.
    """
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        table = csv.writer(file)
        if predicted is not None:
            table.writerow(["image", "label", "predicted", *([] if scores is None else ["score"])])
            shown = [[]] * len(labels) if scores is None else [[f"{score:.6f}"] for score in scores]
            for name, label, said, score in zip(names, labels, predicted, shown, strict=True):
                table.writerow([name, classes[label], classes[said] if said >= 0 else "", *score])
            return
        assert scores is not None, "several labels per image have a score per class"
        table.writerow(["image", "present", "left out", *classes])
        for name, row, values in zip(names, labels, scores, strict=True):
            sets = (
                "|".join(c for c, y in zip(classes, row, strict=True) if y == of) for of in (1, 0)
            )
            table.writerow([name, *sets, *(f"{value:.6f}" for value in values)])
