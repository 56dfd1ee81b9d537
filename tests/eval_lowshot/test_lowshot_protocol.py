"""The numbers made of the samples' results."""

import pytest

from eval_lowshot.lowshot import summarise


def values(metrics, name):
    return [m.value for m in metrics if m.name == name]


# test AP [sample][class] of three costs, and the cross-validated AP that would choose otherwise
AP = [[[0.5, 0.7, 0.1], [0.3, 0.5, 0.1]], [[0.2, 0.3, 0.8], [0.4, 0.3, 0.2]]]
CV = [[[0.9, 0.1, 0.1], [0.1, 0.5, 0.1]], [[0.1, 0.2, 0.9], [0.1, 0.2, 0.3]]]


def results(cv):
    return [[{"AP": AP[s][c], "cv": cv[s][c] if cv else None} for c in range(2)] for s in range(2)]


def test_the_literatures_number_takes_one_cost_by_mean_test_map():
    metrics = summarise(results(CV), [0.1, 1.0, 10.0], {"k": 4, "layer": "avgpool"})
    # mean over classes: sample 0 [40, 60, 10], sample 1 [30, 30, 50]; over samples [35, 45, 30]
    assert values(metrics, "cost") == [1.0]
    assert values(metrics, "mAP_sample") == pytest.approx([60, 30])
    for name, value in {"mAP": 45, "mAP_min": 30, "mAP_max": 60, "mAP_std": 15}.items():
        assert values(metrics, name) == pytest.approx([value])


def test_the_honest_number_takes_each_samples_own_cost():
    metrics = summarise(results(CV), [0.1, 1.0, 10.0], {"k": 4, "layer": "avgpool"})
    # cross-validated means: sample 0 [.5, .3, .1], sample 1 [.1, .2, .6]
    assert values(metrics, "cost_honest") == [0.1, 10.0]
    assert values(metrics, "mAP_honest") == pytest.approx([(40 + 50) / 2])


def test_one_shot_has_nothing_to_validate_on_and_takes_the_cost_nearest_to_1():
    metrics = summarise(results(None), [0.01, 2.0, 10.0], {"k": 1, "layer": "avgpool"})
    assert values(metrics, "cost_honest") == [2.0, 2.0]
    assert values(metrics, "mAP_honest") == pytest.approx([45])
    metrics = summarise(results(None), [0.01, 0.2, 10.0], {"k": 1, "layer": "avgpool"})
    assert values(metrics, "cost_honest") == [0.2, 0.2]  # by ratio: 1/5 is nearer than 10


def test_the_metrics_that_reports_read():
    metrics = summarise(results(CV), [0.1, 1.0, 10.0], {"k": 4, "layer": "avgpool"})
    per_sample = {"mAP_sample", "cost_honest"}
    for metric in metrics:
        wanted = {"k", "layer", "sample"} if metric.name in per_sample else {"k", "layer"}
        assert set(metric.params) == wanted
        assert metric.split == "test"
