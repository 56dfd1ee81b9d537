"""Cross-validation within what an SVM is trained on: labels of every fold, and their average precision."""

from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import StratifiedKFold

from eval_lowshot.solution import Solution
from siambench.average_precision import step_ap


def fold_labels(y: np.ndarray, folds: int) -> np.ndarray:
    """Labels with one fold of each row left out, stratified and in the order of the images.

    Source: fair_self_supervision_benchmark, tools/svm/train_svm_kfold.py (scikit-learn's
    ``cross_val_score(cv=3)``).

    Args:
        y: (P, n) of 1, -1 and 0 (left out already); each row has ``folds`` of 1 and of -1 at least.
        folds: how many.

    Returns:
        (P * folds, n), the folds of a row together.
    """
    parts = np.repeat(y, folds, axis=0)
    for row, labels in enumerate(y):
        used = np.flatnonzero(labels)
        splits = StratifiedKFold(folds).split(used[:, None], labels[used])
        for fold, (_, held_out) in enumerate(splits):
            parts[row * folds + fold, used[held_out]] = 0
    return parts


def fold_aps(y: np.ndarray, parts: np.ndarray, solution: Solution, first: int) -> np.ndarray:
    """Average precision on what was held out, scikit-learn's, mean over the folds.

    Args:
        y: (P, n), as for :func:`fold_labels`.
        parts: what it returned.
        solution: of SVMs trained on ``parts``, the first of which is row ``first`` of its scores.

    Returns:
        (costs of the solution, P) in [0, 1].
    """
    folds = len(parts) // len(y)
    aps = np.empty((len(solution.costs), len(parts)))
    for row, labels in enumerate(parts):
        truth = y[row // folds]
        held_out = (truth != 0) & (labels == 0)
        scores = solution.scores[:, first + row, held_out]
        aps[:, row] = step_ap(truth[held_out] == 1, scores)
    return aps.reshape(len(aps), len(y), folds).mean(axis=2)


def blocks(count: int, size: int) -> Sequence[range]:
    """Numbers below ``count`` in runs of ``size``."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
