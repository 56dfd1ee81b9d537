"""The SVM of one class: training, cross-validation and test. Runs in worker processes: no torch."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from siambench.average_precision import interpolated_ap, step_ap


def train_svm(x: np.ndarray, y: np.ndarray, cost: float) -> LinearSVC:
    """scikit-learn's LinearSVC with the literature's arguments.

    fair_self_supervision_benchmark (tools/svm/train_svm_kfold.py, train_svm_low_shot.py), VISSL,
    PCL and virtex agree on them. liblinear visits the images in random order and stops after 2,000
    rounds, converged or not, so at large costs its answer depends on that order: it is fixed here.

    Args:
        x: (n, D) features of unit length.
        y: (n,) of 1 and -1.
        cost: C.
    """
    svm = LinearSVC(
        C=cost,
        class_weight={1: 2, -1: 1},
        intercept_scaling=1.0,
        penalty="l2",
        loss="squared_hinge",
        tol=1e-4,
        dual=True,
        max_iter=2000,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return svm.fit(x, y)


def scores_per_cost(
    x: np.ndarray, y: np.ndarray, costs: Sequence[float], x_test: np.ndarray
) -> np.ndarray:
    """Train on (x, y) with each cost and score ``x_test`` (m, D) with all of them at once.

    Returns:
        (costs, m) decision values.
    """
    weights = np.empty((len(costs), x.shape[1]))
    intercepts = np.empty((len(costs), 1))
    for row, cost in enumerate(costs):
        svm = train_svm(x, y, cost)
        weights[row], intercepts[row] = svm.coef_[0], svm.intercept_
    return weights @ x_test.T + intercepts


def cross_validated_ap(
    x: np.ndarray, y: np.ndarray, costs: Sequence[float], folds: int
) -> np.ndarray:
    """``cross_val_score(svm, x, y, cv=folds, scoring="average_precision").mean()`` for each cost.

    Args:
        x, y: as for :func:`train_svm`.
        costs: values of C.
        folds: stratified, in the order of the images.

    Returns:
        (costs,) in [0, 1].
    """
    aps = [
        step_ap(y[held_out] == 1, scores_per_cost(x[train], y[train], costs, x[held_out]))
        for train, held_out in StratifiedKFold(folds).split(x, y)
    ]
    return np.mean(aps, axis=0)


def ap_on_test(
    x: np.ndarray, y: np.ndarray, costs: Sequence[float], x_test: np.ndarray, y_test: np.ndarray
) -> np.ndarray:
    """Train on (x, y) with each cost and test.

    Args:
        x, y, costs: as for :func:`cross_validated_ap`.
        x_test: (m, D).
        y_test: (m,) of 1, 0 and -1; 0, difficult, is left out (test_svm.py).

    Returns:
        (costs,) interpolated AP in [0, 1].
    """
    scored = y_test != 0
    scores = scores_per_cost(x, y, costs, x_test)[:, scored]
    return interpolated_ap(y_test[scored] == 1, scores)


def full_class(
    x: np.ndarray,
    y: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    costs: Sequence[float],
    folds: int,
) -> dict[str, Any]:
    """One class, full: cross-validate every cost, train once more with the best, test.

    Source: fair_self_supervision_benchmark, tools/svm/train_svm_kfold.py and test_svm.py.

    Args:
        x, x_test: features of trainval (n, D) and test (m, D).
        y: (n,) of 1, -1 and 0; 0 is left out.
        y_test: (m,) of 1, -1 and 0; 0 is left out.
        costs, folds: as for :func:`cross_validated_ap`.

    Returns:
        ``cost``, ``AP`` on test, and ``cv``, the cross-validated AP of every cost; in [0, 1].
    """
    if not y.all():
        x, y = x[y != 0], y[y != 0]
    cv = cross_validated_ap(x, y, costs, folds)
    cost = costs[int(np.argmax(cv))]
    ap = ap_on_test(x, y, [cost], x_test, y_test)
    return {"cost": cost, "AP": float(ap[0]), "cv": cv.tolist()}


def lowshot_class(
    x: np.ndarray,
    y: np.ndarray,
    sample: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    costs: Sequence[float],
    folds: int,
) -> dict[str, Any]:
    """One class of one sample: test AP with every cost, and cross-validated AP within the sample.

    Args:
        x, x_test: features of trainval (n, D) and test (m, D).
        y: (n,) of 1 and -1 where ``sample`` points.
        sample: indices into x and y.
        y_test: (m,) of 1, -1 and 0; 0 is left out.
        costs, folds: as for :func:`cross_validated_ap`; not more folds than positives.

    Returns:
        ``AP``, one per cost, on test; ``cv``, one per cost, null for a single positive, which cannot
        be both trained on and held out; in [0, 1].
    """
    x, y = x[sample], y[sample]
    folds = min(folds, int((y == 1).sum()))
    cv = cross_validated_ap(x, y, costs, folds).tolist() if folds > 1 else None
    return {"AP": ap_on_test(x, y, costs, x_test, y_test).tolist(), "cv": cv}
