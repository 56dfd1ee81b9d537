"""mIoU and its companions, from one confusion matrix over the whole set."""

import csv
import io
from collections.abc import Sequence

import torch
from torch import Tensor

from eval_segmentation.pairs import IGNORE
from siambench.record import Metric


def confusion(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """How many pixels of each class (row) were predicted as each class (column).

    Args:
        labels: any integer type and shape; ``IGNORE`` does not count.
        predictions: of the same shape, 0 to ``classes`` - 1.
        classes: number of classes.

    Returns:
        int64 (classes, classes), on the device of ``labels``: exact sums whatever the set's size.
    """
    pairs = labels.long() * classes + predictions.long()
    pairs = torch.where(
        labels == IGNORE, classes * classes, pairs
    )  # one bin more, for what does not count
    counts = torch.bincount(pairs.flatten(), minlength=classes * classes + 1)
    return counts[:-1].view(classes, classes)


def metrics_of(matrix: Tensor, classes: Sequence[str], split: str) -> list[Metric]:
    """mIoU, pixel_acc, mean_acc and an IoU per class, in %, of a confusion matrix.

    IoU is true positives over (labelled + predicted - true positives) pixels, as in VOC's devkit. A
    class that is neither labelled nor predicted anywhere has none and is left out of the mean; so
    is a class without labelled pixels out of mean_acc (mmsegmentation's nanmean does the same).
    """
    hits = matrix.diagonal().double().cpu()
    labelled = matrix.sum(1).double().cpu()
    union = labelled + matrix.sum(0).double().cpu() - hits
    iou, accuracy = 100 * hits / union, 100 * hits / labelled  # 0 / 0 is NaN: no such class
    metrics = [
        Metric("mIoU", float(iou.nanmean()), split=split),
        Metric("pixel_acc", float(100 * hits.sum() / labelled.sum()), split=split),
        Metric("mean_acc", float(accuracy.nanmean()), split=split),
    ]
    metrics += [
        Metric("IoU", float(value), split=split, params={"class": name})
        for name, value in zip(classes, iou, strict=True)
        if not value.isnan()
    ]
    return metrics


def csv_of(matrix: Tensor, classes: Sequence[str]) -> str:
    """The matrix as comma-separated values: a row per labelled class, a column per predicted one."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["labelled \\ predicted", *classes])
    writer.writerows([name, *row] for name, row in zip(classes, matrix.tolist(), strict=True))
    return out.getvalue()
