"""Average precision by the two rules of the VOC devkit, over the IoU thresholds of COCO."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
RULES = ("11-point", "all-points")


@dataclass(frozen=True)
class Truth:
    """Boxes of one class in one image; 1-based, both ends inclusive, as VOC writes them.

    Attributes:
        boxes: (G, 4).
        difficult: (G,) bool: neither found nor missed.
    """

    boxes: np.ndarray
    difficult: np.ndarray


def average_precision(hits: np.ndarray, positives: int, rule: str) -> float:
    """AP in [0, 1] of one class.

    Args:
        hits: (D,) of the detections by falling score: 1 right, 0 wrong; ignored ones left out.
        positives: objects to be found.
        rule: ``"11-point"`` (VOC 2007: mean over recalls 0, .1, ... 1 of the best precision from
            there on) or ``"all-points"`` (VOC 2010 on: the area under that envelope).
    """
    if len(hits) == 0:
        return 0.0
    found = np.cumsum(hits)
    recall = found / positives
    precision = found / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if rule == "all-points":
        return float(np.sum(np.diff(recall, prepend=0.0) * envelope))
    # arange's own rounding (0.30000000000000004) is part of the rule as detectron2 computes it.
    first = np.searchsorted(recall, np.arange(0.0, 1.1, 0.1))
    return float(np.append(envelope, 0.0)[first].mean())


def judge(
    truths: Sequence[Truth],
    images: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    ious: Sequence[float] = IOUS,
) -> list[np.ndarray]:
    """Right or wrong, for each threshold, by the devkit's rule.

    By falling score (the order given decides ties), a detection looks at the one object it overlaps
    most: it is right if their IoU is above the threshold and the object not yet taken; it is left
    out if the object is difficult; else it is wrong.

    Args:
        truths: per image.
        images: (D,) index into ``truths``.
        boxes: (D, 4) as in :class:`Truth`.
        scores: (D,).

    Returns:
        For each of ``ious`` an array of 1 and 0, as :func:`average_precision` takes it.
    """
    order = np.argsort(-scores, kind="stable")
    taken = [[np.zeros(len(t.boxes), bool) for t in truths] for _ in ious]
    hits: list[list[int]] = [[] for _ in ious]
    for d in order:
        truth = truths[images[d]]
        overlaps = _iou(boxes[d], truth.boxes)
        best = int(overlaps.argmax()) if len(overlaps) else -1
        for k, threshold in enumerate(ious):
            if best < 0 or overlaps[best] <= threshold:
                hits[k].append(0)
            elif not truth.difficult[best]:
                hits[k].append(0 if taken[k][images[d]][best] else 1)
                taken[k][images[d]][best] = True
    return [np.array(h, dtype=np.int64) for h in hits]


def _iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of a box (4,) with (G, 4), counting pixels: a side is end - start + 1."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.prod((high - low + 1).clip(min=0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2] + 1, axis=1)
    return common / (np.prod(box[2:] - box[:2] + 1) + areas - common)
