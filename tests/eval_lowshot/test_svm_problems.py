"""One class at a time: against scikit-learn's own cross-validation and the objective minimised anew."""

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from eval_lowshot.svm import (
    ap_on_test,
    cross_validated_ap,
    full_class,
    lowshot_class,
    train_svm,
)
from siambench.average_precision import interpolated_ap

COSTS = [0.01, 1.0, 10.0]


def problem(n=90, m=60, d=12, seed=0):
    rng = np.random.default_rng(seed)

    def part(size):
        y = np.where(rng.random(size) < 0.3, 1, -1)
        x = rng.normal(size=(size, d)) + 1
        x[:, :3] += 0.7 * y[:, None]
        return x / np.linalg.norm(x, axis=1, keepdims=True), y

    return *part(n), *part(m)


def literature(cost):
    """The arguments as published, random_state apart."""
    return LinearSVC(
        C=cost,
        class_weight={1: 2, -1: 1},
        intercept_scaling=1.0,
        penalty="l2",
        loss="squared_hinge",
        tol=0.0001,
        dual=True,
        max_iter=2000,
        random_state=0,
    )


def test_the_svm_minimises_the_published_objective():
    """Squared hinge, positives twice, bias in the penalty: minimised by scipy instead."""
    x, y, *_ = problem()
    cost = 0.7

    def objective(w):
        margins = np.maximum(0, 1 - y * (x @ w[:-1] + w[-1]))
        weight = cost * np.where(y == 1, 2, 1)
        gradient = w - 2 * np.append(x.T @ (weight * margins * y), (weight * margins * y).sum())
        return 0.5 * w @ w + (weight * margins**2).sum(), gradient

    best = minimize(objective, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", tol=1e-14)
    svm = train_svm(x, y, cost)
    np.testing.assert_allclose(np.append(svm.coef_, svm.intercept_), best.x, atol=2e-3)


@pytest.mark.parametrize("folds", [2, 3])
def test_cross_validation_is_cross_val_score(folds):
    x, y, *_ = problem()
    found = cross_validated_ap(x, y, COSTS, folds)
    for cost, value in zip(COSTS, found, strict=True):
        wanted = cross_val_score(literature(cost), x, y, cv=folds, scoring="average_precision")
        assert value == pytest.approx(wanted.mean(), abs=1e-12)


def test_difficult_test_images_are_left_out():
    x, y, x_test, y_test = problem()
    y_test[::7] = 0
    found = ap_on_test(x, y, COSTS, x_test, y_test)
    kept = y_test != 0
    for cost, value in zip(COSTS, found, strict=True):
        scores = literature(cost).fit(x, y).decision_function(x_test[kept])
        assert value == pytest.approx(interpolated_ap(y_test[kept] == 1, scores), abs=1e-12)
        assert value >= average_precision_score(y_test[kept], scores)


def test_full_retrains_with_the_cross_validated_cost():
    x, y, x_test, y_test = problem()
    result = full_class(x, y, x_test, y_test, COSTS, 3)
    assert result["cost"] == COSTS[int(np.argmax(result["cv"]))]
    scores = literature(result["cost"]).fit(x, y).decision_function(x_test)
    assert result["AP"] == pytest.approx(interpolated_ap(y_test == 1, scores), abs=1e-12)


def test_full_leaves_out_what_is_marked_zero():
    x, y, x_test, y_test = problem()
    y[:20] = 0
    assert full_class(x, y, x_test, y_test, COSTS, 3) == full_class(
        x[20:], y[20:], x_test, y_test, COSTS, 3
    )


def test_low_shot_sees_its_sample_only():
    x, y, x_test, y_test = problem()
    sample = np.concatenate([np.flatnonzero(y == 1)[:4], np.flatnonzero(y == -1)[:20]])
    result = lowshot_class(x, y, sample, x_test, y_test, COSTS, 3)
    others = np.setdiff1d(np.arange(len(y)), sample)
    x[others], y[others] = np.nan, 0
    assert lowshot_class(x, y, sample, x_test, y_test, COSTS, 3) == result
    assert result["AP"] == ap_on_test(x[sample], y[sample], COSTS, x_test, y_test).tolist()
    assert result["cv"] == cross_validated_ap(x[sample], y[sample], COSTS, 3).tolist()


@pytest.mark.parametrize(("k", "folds"), [(1, 0), (2, 2), (3, 3), (4, 3)])
def test_low_shot_folds(k, folds):
    x, y, x_test, y_test = problem()
    sample = np.sort(np.concatenate([np.flatnonzero(y == 1)[:k], np.flatnonzero(y == -1)[:20]]))
    result = lowshot_class(x, y, sample, x_test, y_test, COSTS, 3)
    if not folds:
        assert result["cv"] is None
        return
    for cost, value in zip(COSTS, result["cv"], strict=True):
        scores = cross_val_score(
            literature(cost), x[sample], y[sample], cv=folds, scoring="average_precision"
        )
        assert value == pytest.approx(scores.mean(), abs=1e-12)
