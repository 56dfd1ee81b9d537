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
    return _precisions(positive, scores).mean(axis=-1)


def interpolated_ap(positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the precision-recall curve made monotone from the right.

    Every recall step counts with the best precision at that recall or a higher one
    (fair_self_supervision_benchmark, tools/svm/svm_helper.py); never below :func:`step_ap`.

    Args, Returns: as for :func:`step_ap`.
    """
    return np.maximum.accumulate(_precisions(positive, scores), axis=-1).mean(axis=-1)


def _precisions(positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The precision at the threshold of each positive image, in rising order of their scores.

    Only the positives' places matter, and two sorts and a search of the shorter list in the longer
    find them in a third of the time of ranking all images.

    Returns:
        (..., positives).

    Raises:
        ValueError: ``positive`` is not bool or has none, or a score is not finite.
    """
    if positive.dtype != bool or not positive.any() or not np.isfinite(scores).all():
        raise ValueError("average precision needs a bool mask, a positive, and finite scores")
    ranked = np.sort(scores[..., positive], axis=-1).reshape(-1, positive.sum())
    others = np.sort(scores[..., ~positive], axis=-1).reshape(len(ranked), (~positive).sum())
    precisions = np.empty(ranked.shape)
    for row, (hits, misses) in enumerate(zip(ranked, others, strict=True)):
        above = hits.size - np.searchsorted(hits, hits)
        precisions[row] = above / (above + misses.size - np.searchsorted(misses, hits))
    return precisions.reshape(*scores.shape[:-1], positive.sum())
