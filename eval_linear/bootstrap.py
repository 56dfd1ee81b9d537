"""95 % intervals of accuracies: what other test images would have given (percentile bootstrap)."""

from collections.abc import Iterator

import numpy as np

_ENDS = (2.5, 97.5)
_NUMBERS = 2**18  # weights at once: those of a block stay in the cache


def accuracy_interval(
    right: int, count: int, seed: int, draws: int = 10_000
) -> tuple[float, float]:
    """Interval, in %, of the accuracy of ``right`` of ``count`` images.

    The right ones among ``count`` images drawn with replacement are binomially distributed with
    p = right / count, so that is drawn instead of images.

    Example:
        >>> accuracy_interval(50, 50, seed=0)
        (100.0, 100.0)
    """
    found = np.random.default_rng([seed, 3]).binomial(count, right / count, draws)
    low, high = 100 * np.percentile(found, _ENDS) / count
    return float(low), float(high)


def map_interval(
    labels: np.ndarray, scores: np.ndarray, seed: int, draws: int = 1000
) -> tuple[float, float]:
    """Interval, in %, of the mean average precision over images drawn with replacement.

    A draw is scored as ``eval_linear.multilabel.average_precisions`` would score its images, each
    counted as often as it was drawn, and over the classes that it has a present image of. An image
    drawn twice is as good as found twice, which lifts every draw's precision; so the draws are moved
    to have the test split's own mAP as their mean.

    Args:
        labels: (n, C) of 1 present, 0 left out, -1 absent; at least one 1.
        scores: (n, C), finite.
        seed: of the draws.
        draws: how many.
    """
    rng = np.random.default_rng([seed, 4])
    classes = [_Ranked(y, s) for y, s in zip(labels.T, scores.T, strict=True) if (y == 1).any()]
    found = []
    for weight in _drawn(rng, len(labels), draws):
        precisions = np.array([ranked.average_precision(weight) for ranked in classes])
        some = ~np.isnan(precisions).all(0)
        found.append(np.nanmean(precisions[:, some], axis=0))
    draws_of = np.concatenate(found)
    once = np.ones((1, len(labels)), np.int64)
    score = np.mean([ranked.average_precision(once)[0] for ranked in classes])
    low, high = 100 * (np.percentile(draws_of, _ENDS) - draws_of.mean() + score)
    return float(max(low, 0.0)), float(min(high, 100.0))


def _drawn(rng: np.random.Generator, count: int, draws: int) -> Iterator[np.ndarray]:
    """How often each image is drawn, in blocks (some draws, count)."""
    size = max(1, _NUMBERS // count)
    for start in range(0, draws, size):
        some = min(size, draws - start)
        cells = rng.integers(count, size=(some, count)) + count * np.arange(some)[:, None]
        yield (
            np.bincount(cells.ravel(), minlength=some * count).astype(np.int32).reshape(some, count)
        )


class _Ranked:
    """One class's images in falling order of score, cut after each score that a present one has."""

    def __init__(self, labels: np.ndarray, scores: np.ndarray) -> None:
        counted = np.flatnonzero(labels)
        order = counted[np.argsort(-scores[counted], kind="stable")]
        ranked, present = scores[order], labels[order] == 1
        thresholds = np.unique(ranked[present])[::-1]
        ends = np.searchsorted(-ranked, -thresholds, side="right")
        self._order = order[: ends[-1]]  # below the last one nothing matters
        self._starts = np.concatenate([[0], ends[:-1]])
        self._present = present[: ends[-1]]

    def average_precision(self, weight: np.ndarray) -> np.ndarray:
        """Of images counted ``weight`` (draws, n) times; NaN without a present one (draws,)."""
        drawn = weight[:, self._order]
        hits = np.add.reduceat(drawn * self._present, self._starts, axis=1)
        seen = np.add.reduceat(drawn, self._starts, axis=1).cumsum(1)
        precision = hits.cumsum(1) / np.maximum(seen, 1)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        with np.errstate(invalid="ignore"):
            return (best * hits).sum(1) / hits.sum(1)
