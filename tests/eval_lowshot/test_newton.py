"""The batched solver's optima: against liblinear's, each problem's objective taken in float64.

The test split of both solvers are the unit vectors and 0, so that its scores are the weights, in the
features' own space whatever basis a solver works in.
"""

import warnings
from functools import cache
from itertools import chain
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from svm_cases import (
    CASES,
    few_images,
    left_out,
    many_images,
    objective,
    part_of_the_images,
    separable,
    unit,
    with_constant,
)

from eval_lowshot import batched, newton
from eval_lowshot import eigenbasis as eigenbasis_module
from eval_lowshot.batched import Batched
from eval_lowshot.config import COSTS
from eval_lowshot.eigenbasis import eigenbasis
from eval_lowshot.liblinear import Liblinear, train_svm
from eval_lowshot.rows import Rows

ALL_COSTS = sorted(set(chain(*COSTS.values())))  # 1e-7 to 1000
DEVICE = torch.device("cpu")


@cache
def least(case):
    """(costs, rows): the least objective, by scikit-learn's other algorithm, which knows no random order."""
    x, rows, y = case()
    found = np.empty((len(ALL_COSTS), len(y)))
    for at, cost in enumerate(ALL_COSTS):
        for row, labels in enumerate(y):
            kept = labels != 0
            svm = LinearSVC(C=cost, class_weight={1: 2}, dual=False, tol=1e-12, max_iter=10**5)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                svm.fit(x[rows[kept]].astype(np.float64), labels[kept])
            w = np.append(svm.coef_[0], svm.intercept_)
            found[at, row], gradient = objective(w, with_constant(x)[rows], labels, cost)
            assert 0.5 * gradient @ gradient < 1e-6 * found[at, row]  # no weights are lower by more
    return found


def solved(case, costs=ALL_COSTS):
    """(costs, rows, D + 1): the weights, and (costs, rows, n): the scores of the training images."""
    x, rows, y = case()
    train = with_constant(x)
    solver = Batched(eigenbasis(train, np.eye(train.shape[1], dtype=np.float32), DEVICE))
    weights = np.full((len(costs), len(y), train.shape[1]), np.nan)
    scores = np.full((len(costs), *y.shape), np.nan)
    for solution in solver.solve(rows, y, costs):
        found = solver.test([solution.weights.flatten(0, 1)])
        weights[solution.costs] = found.reshape(len(solution.costs), len(y), -1)
        scores[solution.costs] = solution.scores
    return weights.astype(np.float64), scores


def objectives(weights, case, costs=ALL_COSTS):
    """(costs, rows), and the squared length of each gradient."""
    x, rows, y = case()
    images = with_constant(x)[rows]
    found = [
        [objective(w, images, labels, cost) for w, labels in zip(of_cost, y, strict=True)]
        for of_cost, cost in zip(weights, costs, strict=True)
    ]
    return np.array([[value for value, _ in row] for row in found]), np.array(
        [[gradient @ gradient for _, gradient in row] for row in found]
    )


ROADS = {
    "as is": [],
    "conjugate gradients alone": [(newton, "support_is_faster", lambda *_: False)],
    "support": [(newton, "support_is_faster", lambda *_: True)],
    "too many images for their products": [
        (eigenbasis_module, "PRODUCTS", 0),
        (batched, "PRODUCTS", 0),
    ],
    "one cost at a time": [(newton, "_ROWS", 1)],
    "all costs at once": [(newton, "_ROWS", 10**9), (newton, "_EASY", np.inf)],
}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_objective_is_the_least(case, road, monkeypatch):
    for module, name, value in ROADS[road]:
        monkeypatch.setattr(module, name, value)
    weights, scores = solved(case)
    found, gradients = objectives(weights, case)
    assert (found <= least(case) * (1 + 1e-5)).all()
    assert (found >= least(case) * (1 - 1e-6)).all()
    # f is strongly convex: f(w) - least <= ½‖gradient‖², which at large costs float32 cannot show
    usual = np.array(ALL_COSTS) <= 1
    assert (0.5 * gradients[usual] <= 1e-4 * found[usual]).all()
    x, rows, _ = case()
    np.testing.assert_allclose(scores, weights @ with_constant(x)[rows].T, atol=2e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_no_objective_is_above_liblinears(case):
    x, rows, y = case()
    found, _ = objectives(solved(case)[0], case)
    for at, cost in enumerate(ALL_COSTS):
        for row, labels in enumerate(y):
            kept = labels != 0
            svm = train_svm(x[rows[kept]].astype(np.float64), labels[kept], cost)
            w = np.append(svm.coef_[0], svm.intercept_)
            theirs, _ = objective(w, with_constant(x)[rows], labels, cost)
            assert found[at, row] <= theirs * (1 + 1e-4)


def test_the_roads_are_those_meant(monkeypatch):
    support, gradients = Mock(wraps=newton.support_newton), Mock(wraps=newton.newton_cg)
    monkeypatch.setattr(newton, "support_is_faster", lambda *_: True)
    monkeypatch.setattr(newton, "support_newton", support)
    monkeypatch.setattr(newton, "newton_cg", gradients)
    solved(separable)
    assert gradients.call_count == 1  # the smallest costs
    assert support.call_count > 5


@pytest.mark.parametrize("cost", [100.0, 1e4])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_single_large_cost_is_approached_by_smaller_ones(case, cost):
    alone, _ = objectives(solved(case, [cost])[0], case, [cost])
    led, _ = objectives(solved(case, [1e-3, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4])[0][-1:], case, [1e4])
    if cost == 1e4:
        np.testing.assert_allclose(alone, led, rtol=1e-3)
    else:
        wanted = least(case)[ALL_COSTS.index(cost)]
        assert (alone[0] <= wanted * (1 + 1e-5)).all()


def test_little_variance_keeps_its_digits_beside_the_mean():
    """Features that differ by 0.006: their products are equal to four digits."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    raw = 1 + 0.018 * (rng.normal(size=(200, 300)) + labels[:, None] * rng.normal(size=300))
    x = unit(raw)
    y = np.where(labels == 1, 1, -1)[None]
    train = with_constant(x)
    solver = Batched(eigenbasis(train, train, DEVICE))
    for cost in (1e-7, 1e-3, 1.0):
        (solution,) = solver.solve(np.arange(200), y, [cost])
        svm = train_svm(x.astype(np.float64), y[0], cost)
        wanted = svm.decision_function(x.astype(np.float64))
        found = solution.scores[0, 0]
        spread = np.ptp(wanted)
        np.testing.assert_allclose(found - found.mean(), wanted - wanted.mean(), atol=2e-2 * spread)


@pytest.mark.parametrize("cost", [1e-4, 0.3, 20.0])
def test_the_weights_are_those_that_scipy_finds(cost):
    """The published objective, minimised by a general method in float64."""
    x, rows, y = left_out()
    weights, _ = solved(left_out, [cost])
    images = with_constant(x)[rows]
    for w, labels in zip(weights[0], y, strict=True):
        wanted = minimize(
            objective,
            np.zeros_like(w),
            (images, labels, cost),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 10**5, "maxfun": 10**5, "ftol": 0, "gtol": 1e-9},
        )
        np.testing.assert_allclose(w, wanted.x, atol=1e-4 * np.abs(wanted.x).max())


def test_the_order_and_choice_of_costs_do_not_matter():
    some = [10.0, 1e-3, 1.0]
    ours, _ = solved(left_out, some)
    whole, _ = solved(left_out)
    for w, cost in zip(ours, some, strict=True):
        same = whole[ALL_COSTS.index(cost)]
        np.testing.assert_allclose(w, same, rtol=0, atol=1e-4 * np.abs(same).max())


def test_two_runs_are_bit_equal():
    for case in (many_images, part_of_the_images):
        for first, second in zip(solved(case), solved(case), strict=True):
            np.testing.assert_array_equal(first, second)


def test_splits_of_different_size_are_refused():
    x, _, _ = few_images()
    with pytest.raises(ValueError, match="train has 90 features and test 89"):
        eigenbasis(x, x[:, 1:], DEVICE)
    with pytest.raises(ValueError, match="train has 90 features and test 89"):
        Liblinear(x, x[:, 1:])


def state(case, cost):
    """Rows at 0, the same solved, and their labels."""
    x, rows, y = case()
    z = torch.from_numpy(with_constant(x)[rows])
    start = Rows.at_zero(z, torch.from_numpy(y.astype(np.float32)))
    ends = start.with_costs([cost])
    newton.newton_cg(ends, z.square().mean(0))
    return start.with_costs([cost]), ends, y


@pytest.mark.parametrize("cost", [0.01, 1.0, 100.0])
def test_a_step_ends_at_the_lowest_point_of_its_line(cost):
    """Towards the solution from 0, where every hinge is 1, steps that are too short and too long."""
    now, ends, y = state(separable, cost)
    z = now.z.double().numpy()
    step = ends.w * torch.tensor([[0.6], [3.0]])
    now.move(step, step @ now.z.mT)
    for w, direction, labels in zip(now.w, step.double().numpy(), y, strict=True):
        lowest = minimize_scalar(
            lambda t, d=direction, labels=labels: objective(t * d, z, labels, cost)[0], (0, 1)
        ).x
        np.testing.assert_allclose(w, lowest * direction, rtol=2e-3)
    torch.testing.assert_close(now.margin, now.w @ now.z.mT, rtol=1e-4, atol=1e-4)


def test_a_step_that_is_rounding_leads_nowhere():
    """At the solution the slope along it is rounding, and so is what it is divided by."""
    _, ends, _ = state(separable, 100.0)
    before = ends.margin.clone()
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    ends.move(torch.zeros_like(ends.w), 1e-6 * noise)
    torch.testing.assert_close(ends.margin, before, rtol=0, atol=2e-5)
