"""kNN's votes against brute force and scikit-learn: top five, leave-one-out, ties, bad input."""

import numpy as np
import pytest
import torch
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

import siambench.knn
from siambench.errors import UserError
from siambench.knn import knn_accuracy, knn_predictions

KS, TS = [1, 3, 20], [0.07, 0.2]


def clusters(seed: int = 0, train: int = 150, test: int = 60, classes: int = 8):
    """Overlapping classes, so that k and T matter."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, 16))
    y = rng.integers(classes, size=train + test)
    x = (centres[y] + 1.8 * rng.normal(size=(len(y), 16))).astype(np.float32)
    return x[:train], y[:train], x[train:], y[train:]


def brute_force(train, labels, queries, k, temperature, classes, exclude_self=False):
    """Row by row in float64; the five classes with most votes."""
    found = np.full((len(queries), min(5, classes)), -1)
    for number, row in enumerate(queries.astype(float)):
        s = [row @ t / np.linalg.norm(row) / np.linalg.norm(t) for t in train.astype(float)]
        if exclude_self:
            s[number] = -np.inf
        votes = {}
        for i in np.argsort(-np.array(s), kind="stable")[:k]:
            votes[labels[i]] = votes.get(labels[i], 0) + np.exp(s[i] / temperature)
        ranked = sorted(votes, key=votes.__getitem__, reverse=True)[: found.shape[1]]
        found[number, : len(ranked)] = ranked
    return found


def sklearn_knn(k, temperature):
    return KNeighborsClassifier(
        k,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / temperature),
    )


@pytest.mark.parametrize("classes", [3, 8])
def test_predictions_equal_brute_force(classes):
    train, y, test, _ = clusters(classes=classes)
    found = knn_predictions(train, y, test, ks=KS, temperatures=TS, classes=classes)
    assert set(found) == {(k, t) for k in KS for t in TS}
    for (k, t), ranked in found.items():
        np.testing.assert_array_equal(ranked, brute_force(train, y, test, k, t, classes))
    assert (found[1, 0.07][:, 1:] == -1).all()
    assert (found[20, 0.07] != found[20, 0.2]).any()


def test_accuracy_equals_scikit_learn():
    train, y, test, z = clusters(1)
    found = knn_accuracy(train, y, test, z, ks=KS, temperatures=TS)
    for k in KS:
        for t in TS:
            theirs = sklearn_knn(k, t).fit(train.astype(float), y).score(test.astype(float), z)
            assert found[k, t] == pytest.approx(100 * theirs)
    assert len(set(found.values())) > 2  # the case tells ks apart


def test_the_order_equals_scikit_learns_probabilities():
    train, y, test, _ = clusters(2)
    found = knn_predictions(train, y, test, ks=[20], temperatures=[0.1], classes=8)[20, 0.1]
    p = sklearn_knn(20, 0.1).fit(train.astype(float), y).predict_proba(test.astype(float))
    order = np.argsort(-p, axis=1, kind="stable")[:, :5]
    order[np.take_along_axis(p, order, 1) == 0] = -1
    np.testing.assert_array_equal(found, order)


@pytest.mark.parametrize("search", ["auto", "torch", "shortlist"])
def test_leave_one_out_equals_scikit_learn_and_brute_force(search):
    x, y, *_ = clusters(3, train=80)
    x[40:50], y[40:50] = x[:10], y[:10]  # duplicates stay
    options = {
        "ks": [5],
        "temperatures": [0.07],
        "classes": 8,
        "search": search,
        "exclude_self": True,
    }
    found = knn_predictions(x, y, x, **options)[5, 0.07]
    np.testing.assert_array_equal(found, brute_force(x, y, x, 5, 0.07, 8, exclude_self=True))
    theirs = cross_val_predict(sklearn_knn(5, 0.07), x.astype(float), y, cv=LeaveOneOut())
    np.testing.assert_array_equal(found[:, 0], theirs)


@pytest.mark.parametrize("search", ["faiss", "torch", "shortlist"])
def test_searches_and_blocks_change_nothing(monkeypatch, search):
    train, y, test, _ = clusters(4)
    options = {"ks": KS, "temperatures": TS, "classes": 8}
    whole = knn_predictions(train, y, test, **options)
    monkeypatch.setattr(siambench.knn, "_VOTES", 8 * 7)
    parts = knn_predictions(train, y, test, search=search, **options)
    for key, ranked in whole.items():
        np.testing.assert_array_equal(parts[key], ranked)


def test_equal_votes_go_to_the_lowest_class():
    train = np.repeat(np.eye(3), 2, axis=0)
    labels = np.array([5, 2, 1, 1, 4, 3])
    found = knn_predictions(train, labels, np.eye(3), ks=[2], temperatures=[0.07], classes=7)
    assert found[2, 0.07][:, :3].tolist() == [[2, 5, -1], [1, -1, -1], [3, 4, -1]]


def test_a_class_without_a_vote_is_no_prediction():
    """Four classes of a thousand vote: the fifth place stays empty, and no label is -1."""
    train, labels = np.eye(4), np.array([999, 0, 7, 8])
    (found,) = knn_predictions(
        train, labels, np.array([[4.0, 3, 2, 1]]), ks=[4], temperatures=[0.2], classes=1000
    ).values()
    assert found.tolist() == [[999, 0, 7, 8, -1]]


def test_tiny_temperature_does_not_overflow():
    """As T goes to 0 the nearest neighbour alone decides."""
    found = knn_accuracy(*clusters(5), ks=[1, 20], temperatures=[1e-6])
    assert found[20, 1e-6] == found[1, 1e-6]


@pytest.mark.gpu
def test_gpu_equals_cpu():
    train, y, test, _ = clusters(6)
    options = {"ks": KS, "temperatures": TS, "classes": 8}
    gpu = knn_predictions(train, y, test, device=torch.device("cuda"), **options)
    for key, ranked in knn_predictions(train, y, test, **options).items():
        np.testing.assert_array_equal(gpu[key], ranked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ks": [151]}, "150 training images"),
        ({"ks": [0]}, "between 1"),
        ({"ks": []}, "between 1"),
        ({"temperatures": [0.0]}, "positive"),
        ({"temperatures": [np.nan]}, "positive"),
        ({"train_labels": np.zeros(3, int)}, "a label per feature"),
        ({"queries": np.ones((0, 16))}, "no images"),
        ({"train": np.full((150, 16), np.nan)}, "NaN"),
        ({"train": np.ones((150, 15))}, "of .15,. and of .16,. numbers"),
        ({"classes": 3}, "labels from 0 to 7 for 3 classes"),
        ({"exclude_self": True}, "same rows twice"),
        ({"exclude_self": True, "queries": np.ones((150, 16)), "ks": [150]}, "149 training images"),
    ],
)
def test_bad_input(change, message):
    train, y, test, _ = clusters()
    values = {"train": train, "train_labels": y, "queries": test, "ks": [1]}
    values |= {"temperatures": [0.07], "classes": 8, **change}
    with pytest.raises(UserError, match=message):
        knn_predictions(**values)


def test_accuracy_needs_a_label_for_each_test_row():
    train, y, test, _ = clusters()
    with pytest.raises(UserError, match="60 features and 3 labels"):
        knn_accuracy(train, y, test, np.zeros(3, int), ks=[1], temperatures=[0.07])
