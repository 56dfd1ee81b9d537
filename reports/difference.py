"""The difference of two means over trials: Welch's interval, or the paired one where it is much narrower."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

NARROWER = 2 / 3


@dataclass(frozen=True)
class Difference:
    """A mean minus another.

    Attributes:
        value: the difference.
        low, high: its 95 % interval; NaN where there is none.
        p: two-sided, of no difference; NaN where there is none.
        how: what made them, or why there are none.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    how: str = ""


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
    """``a`` minus ``b``.

    Student's t interval over the differences of equal seeds where both have the same seeds and it is
    at most ``NARROWER`` as wide as Welch's; else Welch's. The choice looks at widths alone, so it knows
    nothing of the difference; in simulations of 2 to 10 trials of normal noise without one, 1.2 % to
    6.2 % of the p were below 0.05 (a choice of the narrower of the two: up to 6.8 %).

    Args:
        a, b: seed to value, one trial each.
    """
    gap = _mean(list(a.values())) - _mean(list(b.values()))
    alone = [len(values) == 1 for values in (a, b)]
    if any(alone):
        return Difference(gap, how="one trial" + ("" if all(alone) else " of one of them"))
    free = _welch(list(a.values()), list(b.values()))
    best = free
    if a.keys() == b.keys():
        paired = _student([a[seed] - b[seed] for seed in a])
        if 0 < paired[0] <= NARROWER * free[0]:
            best = paired
    width, degrees = best
    if not width:
        return Difference(gap, how="no spread over trials")
    from scipy.special import stdtr, stdtrit

    half = float(stdtrit(degrees, 0.975)) * width
    p = 2 * float(stdtr(degrees, -abs(gap) / width))
    how = f"Welch, n = {len(a)} and {len(b)}" if best is free else f"paired by seed, n = {len(a)}"
    return Difference(gap, gap - half, gap + half, p, how)


def holm(ps: list[float]) -> list[float]:
    """Holm's step-down adjustment; NaN stays NaN and does not count."""
    order = sorted((p, i) for i, p in enumerate(ps) if not math.isnan(p))
    adjusted, highest = list(ps), 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        adjusted[i] = highest
    return adjusted


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: list[float]) -> float:
    mean = _mean(values)
    return math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)


def _student(values: list[float]) -> tuple[float, float]:
    """Standard error of the mean, degrees of freedom."""
    return math.sqrt(_variance(values) / len(values)), len(values) - 1


def _welch(a: list[float], b: list[float]) -> tuple[float, float]:
    """Standard error of the difference, Welch's and Satterthwaite's degrees of freedom."""
    parts = [_variance(values) / len(values) for values in (a, b)]
    both = math.fsum(parts)
    if not both:
        return 0.0, 1.0
    shares = [(p / both) ** 2 / (len(v) - 1) for p, v in zip(parts, (a, b), strict=True)]
    return math.sqrt(both), 1 / math.fsum(shares)
