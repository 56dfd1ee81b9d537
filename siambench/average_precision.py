"""Average precision, two ways: scikit-learn's chooses the cost, the literature's tests it.

In both, images of equal score share one threshold, so the order of the images does not matter.
"""

import numpy as np


def step_ap(positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """scikit-learn's ``average_precision_score``, for many rankings at once.

    Args:
        positive: (n,) bool, at least one True.
        scores: (..., n), higher is more positive.

    Returns:
        AP in [0, 1], one per leading index of ``scores``.
    """
    hits, precision = _ranked(positive, scores)
    return (precision * hits).sum(axis=-1) / positive.sum()


def interpolated_ap(positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the precision-recall curve made monotone from the right.

    Every recall step counts with the best precision at that recall or a higher one
    (fair_self_supervision_benchmark, tools/svm/svm_helper.py); never below :func:`step_ap`.

    Args, Returns: as for :func:`step_ap`.
    """
    hits, precision = _ranked(positive, scores)
    best = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    return (best * hits).sum(axis=-1) / positive.sum()


def _ranked(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In falling order of score: whether the image is positive, and the precision at its threshold."""
    order = np.argsort(-scores, axis=-1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=-1)
    hits = positive[order]
    places = np.arange(scores.shape[-1])
    precision = np.cumsum(hits, axis=-1) / (places + 1)
    last = np.ones(scores.shape, bool)  # of a run of equal scores: there its threshold is
    last[..., :-1] = ranked[..., :-1] != ranked[..., 1:]
    ends = np.minimum.accumulate(np.where(last, places, len(places))[..., ::-1], axis=-1)
    return hits, np.take_along_axis(precision, ends[..., ::-1], axis=-1)
