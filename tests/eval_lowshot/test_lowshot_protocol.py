"""Low-shot: one sample against scikit-learn, and the numbers made of all samples' results."""

import numpy as np
import pytest
from made_features import drawn, made_features
from sklearn.model_selection import cross_val_score
from svm_cases import literature

from eval_lowshot import lowshot as lowshot_module
from eval_lowshot.features import unit_features
from eval_lowshot.lowshot import folds_of, lowshot_sample, summarise
from eval_lowshot.samples import Sample, padded
from siambench.average_precision import interpolated_ap

COSTS = [0.01, 1.0, 10.0]


def only(made, rows):
    """What a run extracts: the features of the sample's images alone."""
    return type(made)(made.x[rows], made.labels[rows], made.x_test, made.labels_test)


@pytest.mark.parametrize(("k", "folds"), [(1, 0), (2, 2), (3, 3), (4, 3)])
@pytest.mark.parametrize("solver", ["liblinear", "batched"])
def test_a_sample_is_scikit_learn_done_class_by_class(solver, k, folds, monkeypatch):
    monkeypatch.setattr(lowshot_module, "_BLOCK", 2)  # of the three classes
    made = made_features(200, 60, classes=3, test_images=80)
    sample, rows = drawn(made, k, 6)
    result = lowshot_sample(
        getattr(only(made, rows), solver)(),
        sample,
        rows,
        made.labels_test,
        3,
        COSTS,
        folds_of(k),
    )
    assert folds_of(k) == folds
    assert (result["cv"] is None) == (not folds)
    assert "top1" not in result
    x, x_test = (unit_features(part, "x", "float64") for part in (made.x, made.x_test))
    near = 1e-12 if solver == "liblinear" else 1e-3
    for number in range(3):
        mine, y = sample.images[number], sample.labels[number]
        kept = made.labels_test[:, number] != 0
        assert not kept.all()
        for at, cost in enumerate(COSTS):
            scores = literature(cost).fit(x[mine], y).decision_function(x_test[kept])
            wanted = interpolated_ap(made.labels_test[kept, number] == 1, scores)
            assert result["AP"][number][at] == pytest.approx(float(wanted), abs=near)
            if folds:
                wanted = cross_val_score(
                    literature(cost), x[mine], y, cv=folds, scoring="average_precision"
                ).mean()
                assert result["cv"][number][at] == pytest.approx(wanted, abs=near)


@pytest.mark.parametrize("solver", ["liblinear", "batched"])
def test_padding_and_other_classes_images_change_nothing(solver):
    """Classes of different length: the shorter is padded; in one of its own it has no padding."""
    made = made_features(200, 60, classes=2, test_images=80)
    long, _ = drawn(made, 4, 8)
    short, _ = drawn(made, 4, 3)
    both = [(part.images[number], part.labels[number]) for number, part in enumerate((long, short))]
    asked = (np.arange(200), made.labels_test, 2, COSTS, 3)
    together = lowshot_sample(getattr(made, solver)(), padded(both, 4, 0), *asked)
    twice = lowshot_sample(getattr(made, solver)(), padded([both[1]] * 2, 4, 0), *asked)
    near = 1e-12 if solver == "liblinear" else 1e-3
    assert together["AP"][1] == pytest.approx(twice["AP"][1], abs=near)
    assert together["cv"][1] == pytest.approx(twice["cv"][1], abs=near)


@pytest.mark.parametrize("block", [32, 2])
@pytest.mark.parametrize("solver", ["liblinear", "batched"])
def test_single_labels_share_a_sample(solver, block, monkeypatch):
    """One against the rest, top-1 by the highest score, whether the classes fit into one block or not."""
    monkeypatch.setattr(lowshot_module, "_BLOCK", block)
    made = made_features(100, 60, classes=5, test_images=85, single=True)
    rows = np.sort(np.random.default_rng(0).permutation(100)[:60])
    images = np.concatenate([rows[made.labels[rows] == number][:4] for number in range(5)])
    sample = Sample(4, 0, images[None], made.labels[images][None], False)
    result = lowshot_sample(
        getattr(only(made, rows), solver)(), sample, rows, made.labels_test, 5, COSTS, 3
    )
    x, x_test = (unit_features(part, "x", "float64") for part in (made.x, made.x_test))
    near = 1e-12 if solver == "liblinear" else 1e-3
    for at, cost in enumerate(COSTS):
        scores = np.empty((5, 85))
        for number in range(5):
            y = np.where(made.labels[images] == number, 1, -1)
            scores[number] = literature(cost).fit(x[images], y).decision_function(x_test)
            wanted = interpolated_ap(made.labels_test == number, scores[number])
            assert result["AP"][number][at] == pytest.approx(float(wanted), abs=near)
            wanted = cross_val_score(
                literature(cost), x[images], y, cv=3, scoring="average_precision"
            ).mean()
            assert result["cv"][number][at] == pytest.approx(wanted, abs=near)
        top1 = (scores.argmax(axis=0) == made.labels_test).mean()
        assert result["top1"][at] == pytest.approx(top1, abs=1e-12)


# test AP [sample][class] of three costs, and the cross-validated AP that would choose otherwise
AP = [[[0.5, 0.7, 0.1], [0.3, 0.5, 0.1]], [[0.2, 0.3, 0.8], [0.4, 0.3, 0.2]]]
CV = [[[0.9, 0.1, 0.1], [0.1, 0.5, 0.1]], [[0.1, 0.2, 0.9], [0.1, 0.2, 0.3]]]
TOP1 = [[0.2, 0.4, 0.9], [0.1, 0.6, 0.3]]


def summary(cv=CV, top1=None, costs=(0.1, 1.0, 10.0)):
    results = [{"AP": ap, "cv": cv and cv[sample]} for sample, ap in enumerate(AP)]
    for sample, row in enumerate(top1 or []):
        results[sample]["top1"] = row
    return summarise(results, list(costs), "test", {"k": 4, "layer": "avgpool"})


def values(metrics, name):
    return [m.value for m in metrics if m.name == name]


def test_the_literatures_number_takes_one_cost_by_mean_test_map():
    metrics = summary()
    # mean over classes: sample 0 [40, 60, 10], sample 1 [30, 30, 50]; over samples [35, 45, 30]
    assert values(metrics, "cost") == [1.0]
    assert values(metrics, "mAP_sample") == pytest.approx([60, 30])
    for name, value in {"mAP": 45, "mAP_min": 30, "mAP_max": 60, "mAP_std": 15}.items():
        assert values(metrics, name) == pytest.approx([value])


def test_the_honest_number_takes_each_samples_own_cost():
    metrics = summary()
    # cross-validated means: sample 0 [.5, .3, .1], sample 1 [.1, .2, .6]
    assert values(metrics, "cost_honest") == [0.1, 10.0]
    assert values(metrics, "mAP_honest") == pytest.approx([(40 + 50) / 2])
    assert values(metrics, "mAP_honest_std") == pytest.approx([5])


def test_top1_is_at_the_costs_that_map_chose():
    metrics = summary(top1=TOP1)
    assert values(metrics, "top1") == pytest.approx([(40 + 60) / 2])
    assert values(metrics, "top1_std") == pytest.approx([10])
    assert values(metrics, "top1_honest") == pytest.approx([(20 + 30) / 2])
    assert values(summary(), "top1") == []


def test_one_shot_has_nothing_to_validate_on_and_takes_the_cost_nearest_to_1():
    metrics = summary(cv=None, costs=[0.01, 2.0, 10.0])
    assert values(metrics, "cost_honest") == [2.0, 2.0]
    assert values(metrics, "mAP_honest") == pytest.approx([45])
    metrics = summary(cv=None, costs=[0.01, 0.2, 10.0])
    assert values(metrics, "cost_honest") == [0.2, 0.2]  # by ratio: 1/5 is nearer than 10


def test_the_metrics_that_reports_read():
    per_sample = {"mAP_sample", "cost_honest"}
    for metric in summary():
        wanted = {"k", "layer", "sample"} if metric.name in per_sample else {"k", "layer"}
        assert set(metric.params) == wanted
        assert metric.split == "test"
