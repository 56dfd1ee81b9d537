"""COCO's matching of detections with objects, and the precision that follows, as arrays.

Detections of all images and classes are matched together, the best of each, then the second best, ...;
sizes and IoU thresholds are axes. Pairs below the lowest threshold can never match and are not here,
and precision changes its envelope only where a detection matches: both make the arrays short.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
SIZES = ("all", "small", "medium", "large")
_AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  # px², both ends within


@dataclass(frozen=True)
class Things:
    """Objects or detections, by rising group (image · classes + class).

    Attributes:
        groups: (N,).
        areas: (N,) px², which decide the size.
        crowd: (N,) bool, of objects.
        scores: (N,), of detections; falling within a group.
    """

    groups: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    scores: np.ndarray

    @property
    def inside(self) -> np.ndarray:
        """(N, sizes) bool: whether the area is in the range."""
        areas = self.areas[:, None]
        return (areas >= _AREAS[:, 0]) & (areas <= _AREAS[:, 1])


@dataclass(frozen=True)
class Overlaps:
    """Pairs of a detection and an object of the same group whose IoU is at least the lowest threshold.

    Attributes:
        found, truth: (P,) rows.
        iou: (P,).
    """

    found: np.ndarray
    truth: np.ndarray
    iou: np.ndarray


@dataclass(frozen=True)
class _Matches:
    """What became of the detections that overlap an object.

    Attributes:
        rows: (C,) of the detections.
        matched: (C, sizes, IoUs) bool.
        ignored: (C, sizes, IoUs) bool: matched with an object that does not count.
    """

    rows: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray


def precision_of(truth: Things, found: Things, overlaps: Overlaps, classes: int) -> np.ndarray:
    """Precision (IoUs, recalls, classes, sizes) in [0, 1]; -1 where there is no object to find."""
    counts = truth.inside & ~truth.crowd[:, None]
    return _accumulate(truth, found, counts, _match(truth, found, counts, overlaps), classes)


def _match(truth: Things, found: Things, counts: np.ndarray, overlaps: Overlaps) -> _Matches:
    """Match greedily, by falling score.

    A detection takes the object it overlaps most, the last of equals, of those that are not taken
    (crowds never are) and count (``counts``: (N, sizes)); only where there is none, of the others.
    """
    rows, many = np.unique(overlaps.found, return_counts=True)
    groups = found.groups[rows]
    turns = np.arange(len(rows)) - np.searchsorted(groups, groups)
    # By turn, then detection; the best pair of a detection is its last.
    order = np.lexsort((overlaps.truth, overlaps.iou, overlaps.found, np.repeat(turns, many)))
    by_turn = np.argsort(turns, kind="stable")
    rows, many = rows[by_turn], many[by_turn]
    start = np.cumsum(many) - many
    objects, most = overlaps.truth[order], len(order)
    place = np.arange(most) - np.repeat(start, many)
    # The best of the pairs left is the one of the highest key.
    keys = (place[:, None] + most * counts[objects]).astype(np.int32)
    fits = overlaps.iou[order][:, None] >= IOUS
    crowd = truth.crowd[:, None, None]
    shape = (len(SIZES), len(IOUS))
    taken = np.zeros((len(truth.groups), *shape), bool)
    matched = np.zeros((len(rows), *shape), bool)
    ignored = np.zeros((len(rows), *shape), bool)
    for first, last in pairwise([0, *np.cumsum(np.bincount(turns)).tolist()]):
        low, high = start[first], start[last - 1] + many[last - 1]
        mine = objects[low:high]
        free = fits[low:high, None, :] & (crowd[mine] | ~taken[mine])
        key = np.where(free, keys[low:high, :, None], -1)
        best = np.maximum.reduceat(key, start[first:last] - low, axis=0)
        matched[first:last], ignored[first:last] = best >= 0, (best >= 0) & (best < most)
        d, size, iou = np.nonzero(best >= 0)
        taken[objects[start[first + d] + best[d, size, iou] % most], size, iou] = True
    return _Matches(rows, matched, ignored)


def _accumulate(
    truth: Things, found: Things, counts: np.ndarray, matches: _Matches, classes: int
) -> np.ndarray:
    """Precision (IoUs, recalls, classes, sizes): at each recall the best from there on.

    A detection that matches nothing is wrong if its own size is in the range, else ignored. So the wrong
    ones up to some place are those in the range less the matched in the range.
    """
    labels = found.groups % classes
    order = np.lexsort((-found.scores, labels))  # of equal scores by image
    starts = np.searchsorted(labels[order], np.arange(classes + 1))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    inside = found.inside
    before = np.zeros((len(order) + 1, len(SIZES)), np.int64)
    np.cumsum(inside[order], axis=0, out=before[1:])
    by_place = np.argsort(place[matches.rows])
    rows, matched = matches.rows[by_place], matches.matched[by_place]
    right = matched & ~matches.ignored[by_place]
    matched &= inside[rows][:, :, None]
    at = place[rows]
    parts = np.searchsorted(at, starts)
    truth_labels = truth.groups % classes
    totals = np.stack([np.bincount(truth_labels[c], minlength=classes) for c in counts.T], axis=1)
    precision = np.full((len(IOUS), len(RECALLS), classes, len(SIZES)), -1.0)
    for label, total in enumerate(totals.tolist()):
        if not any(total):
            continue
        part = slice(parts[label], parts[label + 1])
        hits = np.cumsum(right[part], axis=0)
        wrong = (before[at[part] + 1] - before[starts[label]])[:, :, None]
        wrong = wrong - np.cumsum(matched[part], axis=0)
        value = hits / (wrong + hits + np.spacing(1))
        value = np.maximum.accumulate(value[::-1])[::-1]
        envelope = np.zeros((max(total), *hits.shape[1:]))  # at the first, second, ... hit
        hit = np.nonzero(right[part])
        envelope[hits[hit] - 1, *hit[1:]] = value[hit]
        for size, count in enumerate(total):
            if count:
                needed = np.searchsorted(np.arange(1, count + 1) / count, RECALLS)
                precision[:, :, label, size] = envelope[needed, size].T
    return precision
