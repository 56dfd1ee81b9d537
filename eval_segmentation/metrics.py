"""mIoU and its companions, from one confusion matrix over the whole set."""

import csv
import io
from collections.abc import Sequence

from torch import Tensor

from siambench.record import Metric

_VALUES = 256  # of labels: a row each, so that IGNORE is counted where nobody looks


def confusion(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """How many pixels of each class (row) were predicted as each class (column).

    The host does not wait for a GPU: no boolean index and no bincount, whose sizes it would ask for.

    Args:
        labels: any integer type and shape, 0 to 255; from ``classes`` on (``IGNORE``) they do not
            count.
        predictions: of the same shape, 0 to ``classes`` - 1.
        classes: number of classes.

    Returns:
        int64 (classes, classes), on the device of ``labels``: exact sums whatever the set's size.
    """
    pairs = (labels.long() * classes + predictions).flatten()
    counts = pairs.new_zeros(_VALUES * classes)
    counts.scatter_add_(0, pairs, pairs.new_ones(()).expand_as(pairs))
    return counts.view(_VALUES, classes)[:classes]


def metrics_of(matrix: Tensor, classes: Sequence[str], split: str) -> list[Metric]:
    """mIoU, pixel_acc and mean_acc, then IoU and acc of each class, in %, of a confusion matrix.

    IoU is true positives over (labelled + predicted - true positives) pixels, as in VOC's devkit; acc
    true positives over labelled. A class that is neither labelled nor predicted anywhere has no IoU
    and one without labelled pixels no acc: they are left out, of the means too. mmsegmentation's
    table has the same five under the names mIoU, aAcc, mAcc, IoU and Acc, with nanmean
    (mmseg/evaluation/metrics/iou_metric.py).

    Args:
        matrix: int64 (classes, classes), of which at least one pixel is labelled.
        classes: names, in the order of the labels.
        split: what the pixels are of.
    """
    matrix = matrix.cpu()
    hits, labelled = matrix.diagonal().double(), matrix.sum(1).double()
    union = labelled + matrix.sum(0).double() - hits
    iou, accuracy = 100 * hits / union, 100 * hits / labelled  # 0 / 0 is NaN: no such class
    return [
        Metric("mIoU", float(iou.nanmean()), split=split),
        Metric("pixel_acc", float(100 * hits.sum() / labelled.sum()), split=split),
        Metric("mean_acc", float(accuracy.nanmean()), split=split),
        *(
            Metric(metric, float(value), split=split, params={"class": name})
            for metric, values in (("IoU", iou), ("acc", accuracy))
            for name, value in zip(classes, values, strict=True)
            if not value.isnan()
        ),
    ]


def csv_of(matrix: Tensor, classes: Sequence[str]) -> str:
    """The matrix as comma-separated values: a row per labelled class, a column per predicted one."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["labelled \\ predicted", *classes])
    writer.writerows([name, *row] for name, row in zip(classes, matrix.tolist(), strict=True))
    return out.getvalue()
