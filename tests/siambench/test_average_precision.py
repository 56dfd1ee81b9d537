"""Average precision against scikit-learn and a threshold-by-threshold restatement."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve

from siambench.average_precision import interpolated_ap, step_ap


def by_thresholds(positive, scores):
    """The definition: at each threshold precision and recall, then the best precision to the right."""
    points = []
    for threshold in sorted(set(scores), reverse=True):
        kept = scores >= threshold
        points.append((positive[kept].sum() / positive.sum(), positive[kept].mean()))
    area, before = 0.0, 0.0
    for place, (recall, _) in enumerate(points):
        area += (recall - before) * max(precision for _, precision in points[place:])
        before = recall
    return area


def rankings(ties):
    rng = np.random.default_rng(int(ties))
    positive = rng.random(60) < 0.3
    scores = rng.normal(size=(2, 7, 60)) + 0.8 * positive
    return positive, np.round(scores) if ties else scores


@pytest.mark.parametrize("ties", [False, True])
def test_interpolated_ap_is_the_definition(ties):
    positive, scores = rankings(ties)
    found = interpolated_ap(positive, scores)
    assert found.shape == (2, 7)
    for index in np.ndindex(found.shape):
        assert found[index] == pytest.approx(by_thresholds(positive, scores[index]), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_interpolated_ap_is_the_envelope_of_scikit_learns_curve(ties):
    positive, scores = rankings(ties)
    for row in scores[0]:
        precision, recall, _ = precision_recall_curve(positive, row)
        wanted = -np.sum(np.diff(recall) * np.maximum.accumulate(precision)[:-1])
        assert interpolated_ap(positive, row) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_step_ap_is_scikit_learns_and_the_lower_one(ties):
    positive, scores = rankings(ties)
    step, interpolated = step_ap(positive, scores), interpolated_ap(positive, scores)
    for index in np.ndindex(step.shape):
        wanted = average_precision_score(positive, scores[index])
        assert step[index] == pytest.approx(wanted, abs=1e-12)
    assert (step <= interpolated + 1e-12).all()
    assert (step < interpolated - 1e-3).any()
    assert (interpolated <= 1).all()


def test_by_hand():
    positive = np.array([False, True, True])
    scores = np.array([3.0, 2.0, 1.0])  # precisions 0, 1/2, 2/3 down the list
    assert step_ap(positive, scores) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert interpolated_ap(positive, scores) == pytest.approx(2 / 3)
    assert interpolated_ap(positive, -scores) == 1


def test_equal_scores_give_the_prevalence_in_any_order():
    positive = np.array([True, False, False, True, False])
    for order in ([0, 1, 2, 3, 4], [1, 2, 4, 0, 3], [3, 0, 1, 2, 4]):
        assert interpolated_ap(positive[order], np.zeros(5)) == pytest.approx(0.4)


@pytest.mark.parametrize("few_levels", [False, True])
def test_float32_scores_are_not_rounded_further(few_levels):
    """Scores a float32 step apart stay apart, equal ones stay equal: as scikit-learn ranks them."""
    rng = np.random.default_rng(0)
    positive = rng.random(400) < 0.1
    steps = rng.integers(0, 40 if few_levels else 10**6, (3, 400)).astype(np.float32)
    scores = np.float32(1) + steps * np.finfo(np.float32).eps
    assert scores.dtype == np.float32
    step, interpolated = step_ap(positive, scores), interpolated_ap(positive, scores)
    for row, one, other in zip(scores, step, interpolated, strict=True):
        assert one == pytest.approx(average_precision_score(positive, row), abs=1e-12)
        assert other == pytest.approx(by_thresholds(positive, row), abs=1e-12)


@pytest.mark.parametrize(
    ("positive", "scores"),
    [
        (np.array([1, 0, 1]), np.array([[0.1, 0.2, 0.3]])),
        (np.array([False, False]), np.array([[0.1, 0.2]])),
        (np.array([True, False]), np.array([[np.nan, 0.2]])),
        (np.array([True, False]), np.array([[np.inf, 0.2]])),
    ],
)
def test_what_has_no_average_precision(positive, scores):
    for ap in (step_ap, interpolated_ap):
        with pytest.raises(ValueError, match="a bool mask, a positive, and finite scores"):
            ap(positive, scores)


def test_no_rows_and_no_negatives():
    positive = np.array([True, False])
    assert step_ap(positive, np.empty((0, 2))).shape == (0,)
    assert interpolated_ap(np.array([True, True]), np.array([[0.1, 0.2]])) == 1
