"""Small SVM problems of many kinds: unit features (N, D) float32, rows (n,) of them, labels (P, n) of 1, -1, 0.

And the reference that solves them one by one.
"""

import numpy as np
from made_features import made_features
from sklearn.svm import LinearSVC

from eval_lowshot.features import unit_features


def literature(cost):
    """The arguments as published; random_state is free there."""
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


def unit(x):
    return unit_features(x, "x", "float32")


def noise(n, d, seed=0):
    rng = np.random.default_rng(seed)
    return unit(rng.normal(size=(n, d)) + 1), rng


def signs(rng, rows, n, share):
    """(rows, n) at random, the first of each 1 and the last -1."""
    y = np.where(rng.random((rows, n)) < share, 1, -1)
    y[:, 0], y[:, -1] = 1, -1
    return y


def many_images():
    made = made_features(260, 40, classes=3)
    return unit(made.x), np.arange(260), np.where(made.labels.T == 1, 1, -1)


def many_held():
    """More images than features can part: most have a positive hinge, and their products lack digits."""
    made = made_features(725, 45, classes=3, signal=1.0)
    return unit(made.x), np.arange(555), made.labels[:555].T


def few_images():
    x, rng = noise(40, 90)
    return x, np.arange(40), signs(rng, 3, 40, 0.4)


def part_of_the_images():
    made = made_features(300, 100, classes=3)
    rows = np.random.default_rng(0).choice(300, 45, replace=False)
    return unit(made.x), rows, made.labels[rows].T


def separable():
    x, _ = noise(120, 30)
    y = np.where(x[:, :2] > np.quantile(x[:, :2], 0.6, axis=0), 1, -1)
    return x, np.arange(120), y.T


def rank_deficient():
    x, rng = noise(70, 5)
    return unit(x @ rng.normal(size=(5, 50))), np.arange(70), signs(rng, 2, 70, 0.5)


def collinear():
    """Every feature twice, a constant one, one of 0; every image twice, once with the other label."""
    x, rng = noise(30, 12)
    x = np.hstack([x, x, np.full((30, 1), 0.2), np.zeros((30, 1))])
    y = signs(rng, 2, 30, 0.4)
    return unit(np.vstack([x, x])), np.arange(60), np.hstack([y, -y])


def one_positive():
    x, _ = noise(60, 80)
    return x, np.arange(20, 40), np.where(np.arange(20) == np.array([[0], [5], [19]]), 1, -1)


def nineteen_to_one():
    x, _ = noise(200, 60)
    return x, np.arange(160), np.where(np.arange(160) % 20 == np.array([[3], [7]]), 1, -1)


def left_out():
    """Rows that lack different images, and one is padded with the first image."""
    x, rng = noise(90, 25)
    y = signs(rng, 3, 70, 0.4)
    y[0, 10:30] = y[1, 40:69] = 0
    rows = np.arange(70)
    rows[50:], y[2, 50:] = 0, 0
    y[:2, 50:] = 0
    return x, rows, y


CASES = [
    many_images,
    many_held,
    few_images,
    part_of_the_images,
    separable,
    rank_deficient,
    collinear,
    one_positive,
    nineteen_to_one,
    left_out,
]


def with_constant(x):
    return np.hstack([x, np.ones((len(x), 1), x.dtype)])


def objective(w, x, y, cost):
    """The published one and its gradient, in float64; a last column of ones is part of ``x``."""
    x = x.astype(np.float64)
    weight = cost * np.where(y == 1, 2.0, 1.0) * (y != 0)
    hinge = np.maximum(0, 1 - y * (x @ w))
    return 0.5 * w @ w + weight @ hinge**2, w - 2 * x.T @ (weight * hinge * y)
