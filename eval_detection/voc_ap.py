"""Average precision by the two rules of the VOC devkit, over the IoU thresholds of COCO."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval_detection.overlaps import common_area, pairs

IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
RULES = ("11-point", "all-points")


@dataclass(frozen=True)
class Truth:
    """Objects of one class; boxes 1-based, both ends inclusive, as VOC writes them.

    Attributes:
        images: (G,) numbers of their images, rising.
        boxes: (G, 4).
        difficult: (G,) bool: neither found nor missed.
    """

    images: np.ndarray
    boxes: np.ndarray
    difficult: np.ndarray


def recall_and_envelope(hits: np.ndarray, positives: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall (D,) after each detection, and the best precision (D,) from there on.

    Args:
        hits: (D,) of the detections by falling score: 1 right, 0 wrong; ignored ones left out.
        positives: objects to be found.
    """
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    return found / positives, np.maximum.accumulate(precision[::-1])[::-1]


def precision_at(recalls: np.ndarray, hits: np.ndarray, positives: int) -> np.ndarray:
    """The best precision at each of ``recalls`` or a higher one; 0 where it is not reached."""
    recall, envelope = recall_and_envelope(hits, positives)
    return np.append(envelope, 0.0)[np.searchsorted(recall, recalls)]


def average_precision(hits: np.ndarray, positives: int, rule: str) -> float:
    """AP in [0, 1] of one class, of ``hits`` and ``positives`` as :func:`recall_and_envelope` has them.

    Args:
        rule: ``"11-point"`` (VOC 2007: mean over recalls 0, .1, ... 1 of the best precision from
            there on) or ``"all-points"`` (VOC 2010 on: the area under that envelope).
    """
    if rule == "all-points":
        recall, envelope = recall_and_envelope(hits, positives)
        return float(np.sum(np.diff(recall, prepend=0.0) * envelope))
    # arange's own rounding (0.30000000000000004) is part of the rule as detectron2 computes it.
    return float(precision_at(np.arange(0.0, 1.1, 0.1), hits, positives).mean())


def judge(
    truth: Truth,
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
        truth: the objects.
        images: (D,) numbers of the images as in ``truth``.
        boxes: (D, 4) as in :class:`Truth`.
        scores: (D,).

    Returns:
        For each of ``ious`` an array of 1 and 0, as :func:`average_precision` takes it.
    """
    order = np.argsort(-scores, kind="stable")
    best, overlap = _best_objects(truth, images[order], boxes[order])
    hits = []
    for threshold in ious:
        above = overlap > threshold
        right = np.zeros(len(order), np.int64)
        takers = np.flatnonzero(above)
        # An object's first detection takes it, the others are wrong.
        right[takers[np.unique(best[takers], return_index=True)[1]]] = 1
        kept = ~above
        kept[takers] = ~truth.difficult[best[takers]]
        hits.append(right[kept])
    return hits


def _best_objects(
    truth: Truth, images: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(D,) row of the object that overlaps most, of equals the first, and (D,) their IoU.

    IoU counts pixels; without an object in the image it is 0, and the row means nothing.
    """
    best, overlap = np.zeros(len(boxes), np.int64), np.zeros(len(boxes))
    for d, g in pairs(images, truth.images):
        areas = [np.prod(b[:, 2:] - b[:, :2] + 1, axis=1) for b in (boxes[d], truth.boxes[g])]
        common = common_area(boxes[d], truth.boxes[g], pixel=1.0)
        iou = common / (areas[0] + areas[1] - common)
        order = np.lexsort((-g, iou, d))  # the best of a detection is its last
        last = order[np.flatnonzero(np.diff(d[order], append=-1))]
        best[d[last]], overlap[d[last]] = g[last], iou[last]
    return best, overlap
