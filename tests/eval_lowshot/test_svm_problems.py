"""Both solvers through both protocols: against scikit-learn, and against each other."""

import numpy as np
import pytest
import torch
from made_features import drawn, made_features
from scipy.optimize import minimize
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_score
from svm_cases import literature, noise, objective, with_constant

from eval_lowshot.config import COSTS
from eval_lowshot.full import full_block
from eval_lowshot.liblinear import train_svm
from eval_lowshot.lowshot import lowshot_sample, summarise
from siambench.average_precision import interpolated_ap

SOME = [0.01, 1.0, 10.0]
SHAPES = [
    (400, 64),
    (300, 300),
    (600, 150),
]  # more images than features, fewer (with the constant), more


def test_the_svm_minimises_the_published_objective():
    """Squared hinge, positives twice, bias in the penalty: minimised by scipy instead."""
    x, rng = noise(90, 12)
    y = np.where(rng.random(90) < 0.3, 1, -1)
    best = minimize(
        objective,
        np.zeros(13),
        (with_constant(x), y, 0.7),
        jac=True,
        method="L-BFGS-B",
        options={"ftol": 0, "gtol": 1e-9},
    )
    svm = train_svm(x.astype(np.float64), y, 0.7)
    np.testing.assert_allclose(np.append(svm.coef_, svm.intercept_), best.x, atol=2e-3)


@pytest.mark.parametrize("difficult", ["negative", "drop"])
@pytest.mark.parametrize("solver", ["liblinear", "batched"])
def test_full_is_scikit_learn_done_class_by_class(solver, difficult):
    """cross_val_score chooses the cost, one more training, the interpolated AP without the difficult."""
    made = made_features(150, 40, classes=3, test_images=120)
    labels = made.labels.copy()
    if difficult == "negative":
        labels[labels == 0] = -1
    assert (labels == 0).any() == (difficult == "drop")
    result = full_block(getattr(made, solver)(), labels.T, made.labels_test.T, SOME)
    reference = made.liblinear()
    x, x_test = reference.train, reference.test_split
    near = 1e-12 if solver == "liblinear" else 1e-3
    tops = []
    for number, (y, truth) in enumerate(zip(labels.T, made.labels_test.T, strict=True)):
        used, kept = y != 0, truth != 0
        cv = [
            cross_val_score(
                literature(cost), x[used], y[used], cv=3, scoring="average_precision"
            ).mean()
            for cost in SOME
        ]
        assert result["cv"][number] == pytest.approx(cv, abs=near)
        assert result["cost"][number] == SOME[int(np.argmax(cv))]
        svm = literature(result["cost"][number]).fit(x[used], y[used])
        scores = svm.decision_function(x_test)
        wanted = interpolated_ap(truth[kept] == 1, scores[kept])
        assert result["AP"][number] == pytest.approx(float(wanted), abs=near)
        assert wanted >= average_precision_score(truth[kept], scores[kept])
        tops.append(scores)
    assert result["top"] == pytest.approx(np.max(tops, axis=0), abs=5e-3)
    assert np.mean(result["class"] == np.argmax(tops, axis=0)) > 0.98


def both(made, function, *arguments):
    return [function(solver, *arguments) for solver in (made.batched(), made.liblinear())]


@pytest.mark.parametrize("shape", SHAPES)
def test_full_gives_liblinears_numbers(shape):
    """The same cost for every class; |AP difference| <= 1e-3 at it; mAP within 0.05 points."""
    made = made_features(*shape, seed=1)
    y = np.where(made.labels.T == 1, 1, -1)
    ours, theirs = both(made, full_block, y, made.labels_test.T, COSTS["fair"])
    assert ours["cost"] == theirs["cost"]
    np.testing.assert_allclose(ours["AP"], theirs["AP"], rtol=0, atol=1e-3)
    assert abs(np.mean(ours["AP"]) - np.mean(theirs["AP"])) <= 5e-4
    assert np.mean(theirs["AP"]) > 0.6  # something was learned


@pytest.mark.parametrize("k", [1, 4, 12])
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_low_shot_gives_liblinears_numbers(shape, k):
    """The same two costs; |AP difference| <= 1e-3 of every class at them; mAPs within 0.05 points."""
    made = made_features(*shape, seed=1)
    results = []
    for number in range(2):
        sample, _ = drawn(made, k, 15, seed=number)
        rows = np.arange(shape[0])
        asked = (sample, rows, made.labels_test, 4, COSTS["fair"], min(k, 3) if k > 1 else 0)
        results.append(both(made, lowshot_sample, *asked))
    ours, theirs = (
        {
            (m.name, m.params.get("sample")): m.value
            for m in summarise(of_solver, COSTS["fair"], "test", {})
        }
        for of_solver in zip(*results, strict=True)
    )
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], abs=0 if "cost" in name[0] else 0.05), name
    used = [ours["cost", None], ours["cost_honest", 0], ours["cost_honest", 1]]
    places = [COSTS["fair"].index(cost) for cost in used]
    for batched, liblinear in results:
        difference = np.abs(np.array(batched["AP"]) - liblinear["AP"])
        assert difference[:, places].max() <= 1e-3


@pytest.mark.parametrize("solver", ["liblinear", "batched"])
def test_two_runs_are_bit_equal(solver):
    made = made_features(150, 60, test_images=100)
    sample, _ = drawn(made, 3, 6)
    results = []
    for _ in range(2):
        new = getattr(made, solver)()
        full = full_block(new, np.where(made.labels.T == 1, 1, -1), made.labels_test.T, SOME)
        asked = (sample, np.arange(150), made.labels_test, 4, SOME, 3)
        results.append((full, lowshot_sample(new, *asked)))
    assert results[0] == results[1]


@pytest.mark.gpu
def test_a_gpu_gives_the_cpus_numbers():
    assert torch.cuda.is_available()
    made = made_features(400, 64, seed=1)
    y = np.where(made.labels.T == 1, 1, -1)
    sample, _ = drawn(made, 4, 15)
    for function, arguments in (
        (full_block, (y, made.labels_test.T, COSTS["fair"])),
        (lowshot_sample, (sample, np.arange(400), made.labels_test, 4, COSTS["fair"], 3)),
    ):
        cpu, gpu = (function(made.batched(device), *arguments) for device in ("cpu", "cuda"))
        np.testing.assert_allclose(gpu["AP"], cpu["AP"], rtol=0, atol=1e-3)
