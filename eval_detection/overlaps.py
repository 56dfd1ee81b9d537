"""Detections beside the objects that they may be: those of the same image and class."""

from collections.abc import Iterator

import numpy as np

_MOST = 1 << 20  # pairs at a time


def pairs(groups: np.ndarray, truths: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of a detection and an object of one group, in blocks of about a million.

    Args:
        groups: (D,) number of each detection's image and class.
        truths: (G,) the same of each object, rising.

    Yields:
        Two (P,) arrays, rows of detections and of objects. Detections rise, and with them objects;
        all pairs of a detection are in one block.
    """
    first = np.searchsorted(truths, groups, "left")
    counts = np.searchsorted(truths, groups, "right") - first
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.searchsorted(ends, np.arange(_MOST, total, _MOST))
    for start, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(groups)], strict=True):
        count = counts[start:end]
        before = np.cumsum(count) - count
        rows = np.repeat(np.arange(start, end), count)
        yield rows, np.arange(len(rows)) + np.repeat(first[start:end] - before, count)


def common_area(one: np.ndarray, other: np.ndarray, pixel: float = 0.0) -> np.ndarray:
    """Area that boxes share, row by row.

    Args:
        one, other: (P, 4), x0 y0 x1 y1.
        pixel: what a side is longer than end - start: 1 where both ends are pixels of the box.
    """
    width = np.minimum(one[:, 2], other[:, 2]) - np.maximum(one[:, 0], other[:, 0]) + pixel
    height = np.minimum(one[:, 3], other[:, 3]) - np.maximum(one[:, 1], other[:, 1]) + pixel
    return width.clip(min=0) * height.clip(min=0)
