"""Weighted k-nearest-neighbour classification of features, for the kNN benchmark and the monitor.

Cosine similarity s to the k nearest training features, each of which votes exp(s / T) for its class:
Wu et al. 2018 (arXiv 1805.01978, section 3.4), with k and T as printed beside every number.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from siambench.errors import UserError
from siambench.nearest import Search, nearest
from siambench.search import Rows

_VOTES = 2**21  # votes (queries x classes, doubles) at a time


def knn_predictions(
    train: Rows,
    train_labels: np.ndarray,
    queries: Rows,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
    classes: int,
    device: torch.device | None = None,
    search: Search = "auto",
    exclude_self: bool = False,
) -> dict[tuple[int, float], np.ndarray]:
    """Each query's likeliest classes for every k and temperature, from one search with the largest k.

    Between classes with equal votes the lowest index comes first. A class for which no neighbour
    voted is not predicted (-1): DINO's eval_knn.py fills its top five with such classes in the order
    in which its sort leaves them, so that with fewer than five classes among the neighbours its
    top-5 accuracy is not less than this one and partly chance.

    Args:
        train: features (N, D), in memory or on disk; any float type, of any length.
        train_labels: class indices (N,), from 0 to ``classes`` - 1.
        queries: features (M, D).
        ks: numbers of neighbours.
        temperatures: T of the vote exp(s / T).
        classes: their number C.
        device, search, exclude_self: as :func:`siambench.nearest.nearest`; ``exclude_self`` is the
            leave-one-out test of a data set on itself.

    Returns:
        ``{(k, T): class indices (M, min(5, C))}``, int64, likeliest first.

    Raises:
        UserError: a k is below 1 or above the number of training rows (less one with
            ``exclude_self``), a temperature is not positive, a label is out of range, features are
            not finite, or shapes do not match.

    Example:
        >>> x, y = np.eye(3), np.arange(3)
        >>> knn_predictions(x, y, 2 * x, ks=[1], temperatures=[0.07], classes=3)[1, 0.07]
        array([[ 0, -1, -1],
               [ 1, -1, -1],
               [ 2, -1, -1]])
    """
    _check(train, train_labels, queries, ks, temperatures, classes, exclude_self)
    similarity, index = nearest(train, queries, max(ks), device, search, exclude_self)
    shape = (len(queries), min(5, classes))
    found = {(k, t): np.empty(shape, np.int64) for k in ks for t in temperatures}
    for start in range(0, len(queries), step := max(1, _VOTES // classes)):
        block = slice(start, start + step)
        near = train_labels[index[block]]
        for t in temperatures:
            for k, votes in _votes(similarity[block], near, ks, t, classes):
                found[k, t][block] = _highest(votes, shape[1])
    return found


def knn_accuracy(
    train: Rows,
    train_labels: np.ndarray,
    test: Rows,
    test_labels: np.ndarray,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
    device: torch.device | None = None,
) -> dict[tuple[int, float], float]:
    """Top-1 accuracy in % for every k and temperature.

    Args:
        train, train_labels, ks, temperatures, device: as :func:`knn_predictions`.
        test, test_labels: features (M, D) and class indices (M,).

    Returns:
        ``{(k, T): accuracy}``.

    Raises:
        UserError: as :func:`knn_predictions`, or there is not one label for each test row.

    Example:
        >>> x, y = np.eye(3), np.arange(3)
        >>> knn_accuracy(x, y, 2 * x, y, ks=[1], temperatures=[0.07])
        {(1, 0.07): 100.0}
    """
    _check_labels(test, test_labels)
    predictions = knn_predictions(
        train,
        train_labels,
        test,
        ks=ks,
        temperatures=temperatures,
        classes=int(max(train_labels.max(), test_labels.max())) + 1,
        device=device,
    )
    return {key: 100 * float((p[:, 0] == test_labels).mean()) for key, p in predictions.items()}


def _votes(
    similarity: np.ndarray, near: np.ndarray, ks: Sequence[int], temperature: float, classes: int
) -> Iterator[tuple[int, np.ndarray]]:
    """For each k, the votes (M, classes) of the first k columns.

    exp((s - s_max) / T) instead of exp(s / T): a factor per query, so that no small T overflows.
    """
    weight = np.exp((similarity.astype(np.float64) - similarity[:, :1]) / temperature)
    cell = np.arange(len(near))[:, None] * classes + near
    votes = np.zeros((len(near), classes))
    done = 0
    for k in sorted(set(ks)):
        new = slice(done, k)
        flat = np.bincount(cell[:, new].ravel(), weight[:, new].ravel(), votes.size)
        votes = votes + flat.reshape(votes.shape)
        done = k
        yield k, votes


def _highest(votes: np.ndarray, count: int) -> np.ndarray:
    """The classes (M, count) with most votes, the lowest index first among equals; -1 for none."""
    votes, every = votes.copy(), np.arange(len(votes))
    found = np.empty((len(votes), count), np.int64)
    for place in range(count):
        best = votes.argmax(axis=1)
        found[:, place] = np.where(votes[every, best] > 0, best, -1)
        votes[every, best] = 0
    return found


def _check(
    train: Rows,
    labels: np.ndarray,
    queries: Rows,
    ks: Sequence[int],
    temperatures: Sequence[float],
    classes: int,
    exclude_self: bool,
) -> None:
    _check_labels(train, labels)
    if not len(queries):
        raise UserError("kNN: no images to classify")
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(
            f"kNN: training labels from {labels.min()} to {labels.max()} for {classes} classes"
        )
    if train.shape[1:] != queries.shape[1:]:
        raise UserError(f"kNN: features of {train.shape[1:]} and of {queries.shape[1:]} numbers")
    if exclude_self and len(train) != len(queries):
        raise UserError(
            f"kNN: {len(train)} and {len(queries)} rows; leave-one-out needs the same rows twice"
        )
    if not ks or min(ks) < 1 or max(ks) > len(train) - exclude_self:
        raise UserError(
            f"kNN: k = {', '.join(map(str, ks))} with {len(train) - exclude_self} training images"
            f"{' beside the one left out' if exclude_self else ''}; every k must be between 1 and "
            "their number; choose others, e.g. --k 10,20"
        )
    if not temperatures or not all(0 < t < np.inf for t in temperatures):
        raise UserError(f"kNN: temperatures must be positive, not {list(temperatures)}")


def _check_labels(rows: Rows, labels: np.ndarray) -> None:
    if len(rows) != len(labels) or not len(rows):
        raise UserError(
            f"kNN needs a label per feature: {len(rows)} features and {len(labels)} labels"
        )
