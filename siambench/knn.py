"""Weighted k-nearest-neighbour classification of features, for the kNN benchmark and the monitor.

Cosine similarity s to the k nearest training features, each of which votes exp(s / T) for its class:
Wu et al. 2018 (arXiv 1805.01978, section 3.4), with k and T as printed beside every number.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from siambench.errors import UserError

_QUERIES = 1024  # per block: votes take _QUERIES x classes doubles
_TRAIN = 262_144  # per block on a GPU: similarities take _QUERIES x _TRAIN floats (1 GiB)


def knn_accuracy(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
    device: torch.device | None = None,
) -> dict[tuple[int, float], float]:
    """Top-1 accuracy in % for every k and temperature, from one search with the largest k.

    Rows are L2-normalised here. On a GPU the search is torch's matmul and topk, else faiss's exact
    inner-product search; beyond the features, a normalised copy is held and memory is bounded.

    Args:
        train, test: features (N, D) and (M, D), float.
        train_labels, test_labels: class indices from 0, (N,) and (M,).
        ks: numbers of neighbours.
        temperatures: T of the vote exp(s / T).
        device: where to search; None is the CPU.

    Returns:
        ``{(k, T): accuracy}``. Between classes with equal votes the lowest index wins.

    Raises:
        UserError: a k is below 1 or above N, a temperature is not positive, features are not finite,
            or shapes do not match.

    Example:
        >>> x, y = np.eye(3), np.arange(3)
        >>> knn_accuracy(x, y, 2 * x, y, ks=[1], temperatures=[0.07])
        {(1, 0.07): 100.0}
    """
    _check(train, train_labels, test, test_labels, ks, temperatures)
    right = {(k, t): 0 for k in ks for t in temperatures}
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    similarity, index = nearest(train, test, max(ks), device)
    for start in range(0, len(test), _QUERIES):
        block = slice(start, start + _QUERIES)
        near = train_labels[index[block]]
        for t in temperatures:
            for k, votes in _votes(similarity[block], near, ks, t, classes):
                right[k, t] += int((votes.argmax(axis=1) == test_labels[block]).sum())
    return {key: 100.0 * count / len(test) for key, count in right.items()}


def nearest(
    train: np.ndarray, queries: np.ndarray, k: int, device: torch.device | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of ``train`` most similar (cosine) to each query, most similar first.

    Returns:
        Similarities (M, k), float32, and row numbers (M, k), int64.

    Raises:
        UserError: features hold NaN or infinity.
    """
    train, queries = _normalised(train), _normalised(queries)
    if device is not None and device.type != "cpu":
        return _search_torch(train, queries, k, device)
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    # the exact search of IndexFlatIP, without the index's own copy of the training features
    similarity, index = faiss.knn(queries, train, k, metric=faiss.METRIC_INNER_PRODUCT)
    return similarity, index


def _search_torch(
    train: np.ndarray, queries: np.ndarray, k: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Exact search block by block, merging each block's best with the best so far."""
    best = torch.full((len(queries), k), -torch.inf, device=device)
    index = torch.zeros((len(queries), k), dtype=torch.int64, device=device)
    for start in range(0, len(train), _TRAIN):
        part = torch.from_numpy(train[start : start + _TRAIN]).to(device)
        for first in range(0, len(queries), _QUERIES):
            block = slice(first, first + _QUERIES)
            product = torch.from_numpy(queries[block]).to(device) @ part.T
            found, rows = product.topk(min(k, len(part)))
            found, rows = (
                torch.cat([best[block], found], 1),
                torch.cat([index[block], rows + start], 1),
            )
            best[block], order = found.topk(k)
            index[block] = rows.gather(1, order)
    return best.cpu().numpy(), index.cpu().numpy()


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


def _normalised(features: np.ndarray) -> np.ndarray:
    """Unit rows as float32; a row of zeros stays zero.

    Raises:
        UserError: a row holds NaN or infinity.
    """
    norms = np.sqrt(np.einsum("nd,nd->n", features, features))  # no copy, unlike linalg.norm
    if not np.isfinite(norms).all():
        raise UserError("kNN: features hold NaN or infinity; the backbone is not sound")
    return np.divide(
        features,
        np.maximum(norms, 1e-12)[:, None],
        dtype=np.float32,
        casting="same_kind",
        order="C",
    )


def _check(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    ks: Sequence[int],
    temperatures: Sequence[float],
) -> None:
    if len(train) != len(train_labels) or len(test) != len(test_labels) or not len(test):
        raise UserError(
            f"kNN needs a label per feature: {len(train)} and {len(test)} features, "
            f"{len(train_labels)} and {len(test_labels)} labels"
        )
    if train.shape[1:] != test.shape[1:]:
        raise UserError(f"kNN: features of {train.shape[1:]} and of {test.shape[1:]} numbers")
    if not ks or min(ks) < 1 or max(ks) > len(train):
        raise UserError(
            f"kNN: k = {', '.join(map(str, ks))} with {len(train)} training images; every k must be "
            "between 1 and their number; choose others, e.g. --k '[10,20]'"
        )
    if not temperatures or min(temperatures) <= 0:
        raise UserError(f"kNN: temperatures must be positive, not {list(temperatures)}")
