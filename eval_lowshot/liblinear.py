"""The reference: scikit-learn's LinearSVC, one problem after the other."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from eval_lowshot.solution import Solution


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


@dataclass(frozen=True)
class Liblinear:
    """``--solver liblinear``.

    Attributes:
        train: (N, D) float64 features of unit length.
        test_split: (M, D).

    Raises:
        ValueError: the splits differ in D.
    """

    train: np.ndarray
    test_split: np.ndarray

    def __post_init__(self) -> None:
        train, test = self.train.shape[1], self.test_split.shape[1]
        if train != test:
            raise ValueError(f"train has {train} features and test {test}")

    def solve(self, rows: np.ndarray, y: np.ndarray, costs: Sequence[float]) -> Iterator[Solution]:
        """As :meth:`eval_lowshot.solution.Solver.solve`; all costs at once."""
        x = self.train[rows]
        weights = np.empty((len(costs), len(y), x.shape[1] + 1))
        for at, cost in enumerate(costs):
            for row, labels in enumerate(y):
                used = labels != 0
                svm = train_svm(x[used], labels[used], cost)
                weights[at, row] = np.append(svm.coef_[0], svm.intercept_)
        yield Solution(list(range(len(costs))), weights, _scores(weights, x))

    def test(self, weights: Sequence[np.ndarray]) -> np.ndarray:
        """As :meth:`eval_lowshot.solution.Solver.test`; float64."""
        return _scores(np.concatenate(list(weights)), self.test_split)


def _scores(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    return weights[..., :-1] @ x.T + weights[..., -1:]
