"""Scores, intervals, confusions and predictions against scikit-learn, scipy and brute force."""

import csv
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn import metrics

from eval_linear.bootstrap import accuracy_interval, map_interval
from eval_linear.confusion import confusion_matrix, plot_confusion, write_predictions
from eval_linear.multilabel import Ranking, average_precisions
from eval_linear.scores import Tally, hold_out
from siambench.errors import UserError


def tallied(logits, labels, keep=None, parts=3):
    tally = Tally(keep)
    for z, y in zip(logits.tensor_split(parts), labels.tensor_split(parts), strict=True):
        tally.add(z, y)
    return tally.scores()


def test_scores_are_scikit_learn_s():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(9, (400,), generator=generator)  # class 9 has no images
    logits = torch.randn(400, 3, 10, generator=generator)
    logits[torch.arange(400), :, labels] += torch.tensor([0.0, 1.0, 2.0])
    found = tallied(logits, labels, keep=1)
    for head in range(3):
        z, said = logits[:, head].numpy(), logits[:, head].argmax(1).numpy()
        assert found.top1[head] == pytest.approx(100 * metrics.accuracy_score(labels, said))
        five = metrics.top_k_accuracy_score(labels, z, k=5, labels=range(10))
        assert found.top5[head] == pytest.approx(100 * five)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # class 9 is only ever predicted
            balanced = metrics.balanced_accuracy_score(labels, said)
        assert found.mean_class[head] == pytest.approx(100 * balanced)
        recall = metrics.recall_score(labels, said, labels=range(9), average=None)
        np.testing.assert_allclose(found.per_class[head, :9], 100 * recall)
        assert found.right[head] == (said == labels.numpy()).sum()
    assert np.isnan(found.per_class[:, 9]).all()
    assert np.array_equal(found.predicted, logits[:, 1].argmax(1))
    np.testing.assert_allclose(
        found.probability, logits[:, 1].softmax(1).amax(1).numpy(), rtol=1e-6
    )
    assert found.choice is found.top1


def test_ties_go_to_the_lowest_class_as_in_numpy():
    logits = torch.randint(3, (200, 1, 7), generator=torch.Generator().manual_seed(1)).float()
    labels = torch.arange(200) % 7
    found = tallied(logits, labels, keep=0)
    z = logits[:, 0].numpy()
    assert np.array_equal(found.predicted, z.argmax(1))
    assert found.right[0] == (z.argmax(1) == labels.numpy()).sum()
    order = np.argsort(-z, axis=1, kind="stable")[:, :5]
    assert found.top5[0] == pytest.approx(
        50 * (order == labels.numpy()[:, None]).any(1).sum() / 100
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_not_finite_is_never_right(value, place):
    """NaN at the right class or another, in one head of two."""
    logits = torch.zeros(4, 2, 3)
    logits[:, :, 0] = 1.0
    logits[2, 0, place] = value
    found = tallied(logits, torch.zeros(4, dtype=torch.int64), keep=0, parts=1)
    assert found.top1.tolist() == [75.0, 100.0]
    assert found.top5.tolist() == [75.0, 100.0]
    assert found.predicted.tolist() == [0, 0, -1, 0]


def test_fewer_than_five_classes():
    found = tallied(torch.eye(3).view(3, 1, 3), torch.tensor([0, 2, 1]))
    assert (found.top1[0], found.top5[0]) == (pytest.approx(100 / 3), 100.0)


def brute_force_ap(present, scores):
    """The definition: for every recall reached, the best precision at it or a higher one."""
    points = []
    for threshold in np.unique(scores[present]):
        said = scores >= threshold
        points.append(((said & present).sum() / present.sum(), present[said].mean()))
    recalls = sorted({r for r, _ in points})
    steps = zip([0.0, *recalls], recalls, strict=False)
    return sum((b - a) * max(p for r, p in points if r >= b) for a, b in steps)


def voc_like(seed, images=60, classes=4):
    """Few present, some left out, and scores with ties."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([1, 0, -1], p=[0.25, 0.1, 0.65], size=(images, classes)).astype(np.int8)
    return labels, (rng.normal(size=(images, classes)) + (labels == 1)).round(1).astype(np.float32)


def test_average_precisions_are_brute_force_s():
    labels, scores = voc_like(0)
    other = voc_like(1)[1]
    labels[:, 3] = np.minimum(labels[:, 3], 0)  # a class that no image has
    both = torch.from_numpy(np.stack([scores, other], 1))
    ranking = Ranking(keep=1)
    for z, y in zip(both.split(25), torch.from_numpy(labels).split(25), strict=True):
        ranking.add(z, y)
    found = ranking.scores()
    for head, values in enumerate((scores, other)):
        wanted = []
        for c in range(3):
            counted = labels[:, c] != 0
            wanted.append(100 * brute_force_ap(labels[counted, c] == 1, values[counted, c]))
        np.testing.assert_allclose(found.per_class[head, :3], wanted)
        assert found.mean[head] == pytest.approx(np.mean(wanted))
    assert np.isnan(found.per_class[:, 3]).all()
    assert found.choice is found.mean
    np.testing.assert_allclose(found.probability, 1 / (1 + np.exp(-other)), rtol=1e-5)


def test_a_head_that_diverged_has_no_average_precision():
    labels, scores = voc_like(2)
    both = np.stack([scores, scores], 1)
    both[np.flatnonzero(labels[:, 0])[0], 0, 0] = np.nan
    both[np.flatnonzero(labels[:, 1] == 0)[0], 0, 1] = np.nan  # left out: does not count
    found = average_precisions(labels, both)
    assert found[0, 0] == 0
    assert found[0, 1] == found[1, 1] > 0


def test_accuracy_interval_is_the_normal_approximation_s():
    right, count = 3400, 5000
    low, high = accuracy_interval(right, count, seed=0)
    p, z = right / count, stats.norm.ppf(0.975)
    half = 100 * z * np.sqrt(p * (1 - p) / count)
    assert low == pytest.approx(100 * p - half, abs=0.06)
    assert high == pytest.approx(100 * p + half, abs=0.06)
    exact = [100 * stats.binom.ppf(q, 40, 0.9) / 40 for q in (0.025, 0.975)]
    assert accuracy_interval(36, 40, seed=0) == tuple(exact)
    assert accuracy_interval(right, count, seed=0) == (low, high)
    assert accuracy_interval(right, count, seed=1) != (low, high)
    assert accuracy_interval(0, 7, seed=0) == (0.0, 0.0)


@pytest.mark.parametrize("block", [2**18, 7])
def test_map_interval_is_that_of_resampled_images(monkeypatch, block):
    """The same draws of images, each scored as a test split of its own by brute force."""
    monkeypatch.setattr("eval_linear.bootstrap._NUMBERS", block * 60)
    labels, scores = voc_like(3)
    labels[:, 3] = np.where(np.arange(60) == 11, 1, -1)  # absent from a third of the draws
    draws = 120
    rng, values = np.random.default_rng([5, 4]), []
    for first in range(0, draws, block):
        for images in rng.integers(60, size=(min(block, draws - first), 60)):
            y, s = labels[images], scores[images]
            counted = [(y[:, c] != 0, c) for c in range(4) if (y[:, c] == 1).any()]
            values.append(np.mean([brute_force_ap(y[k, c] == 1, s[k, c]) for k, c in counted]))
    every = [
        brute_force_ap(labels[k, c] == 1, scores[k, c])
        for c in range(4)
        for k in [labels[:, c] != 0]
    ]
    wanted = 100 * (np.percentile(values, [2.5, 97.5]) - np.mean(values) + np.mean(every))
    assert map_interval(labels, scores, seed=5, draws=draws) == pytest.approx(tuple(wanted))
    assert wanted[1] - wanted[0] > 5


def test_map_interval_is_about_the_map_whatever_the_logits_size():
    """Sigmoids of large logits round to 1 and would tie; the interval is of the same ranking."""
    labels, scores = voc_like(6)
    logits = torch.tensor(scores)[:, None] * torch.tensor([1.0, 1000.0]).view(1, 2, 1)
    intervals = []
    for head in (0, 1):
        ranking = Ranking(head)
        ranking.add(logits.float(), torch.tensor(labels))
        found = ranking.scores()
        low, high = map_interval(labels, found.logits, seed=0)
        assert low < found.mean[head] < high
        intervals.append((low, high))
    assert intervals[0] == pytest.approx(intervals[1])


def test_hold_out_of_images_with_several_labels():
    labels = voc_like(4)[0]
    held = hold_out(labels, 0.1, seed=0)
    assert held.sum() == 6
    assert not np.array_equal(held, hold_out(labels, 0.1, seed=1))


def test_confusion_matrix_is_scikit_learn_s():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(6, size=(2, 300))
    wanted = metrics.confusion_matrix(labels, predicted, labels=range(7))
    assert np.array_equal(confusion_matrix(labels, predicted, 7), wanted)
    predicted[:10] = -1
    assert confusion_matrix(labels, predicted, 7).sum() == 290


@pytest.mark.parametrize("count", [2, 12, 50])
def test_confusion_picture_stands_any_names(tmp_path, count):
    """A class that is always right is darker than one that never is, whatever the classes' names."""
    odd = [
        "müll",
        "猫",
        "a$b_{",
        "x" * 300,
        "line\nbreak",
        "\udcff",
        "\x1b[2J",
        "$\\frac{$",
        " ",
        "🐈",
    ]
    names = [*odd, *(f"class {c}" for c in range(50))][:count]
    matrix = np.eye(count, dtype=int) * 5
    matrix[1] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_confusion(tmp_path / "confusion.png", matrix, names)
    with Image.open(tmp_path / "confusion.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert min(image.size) > 400
    assert max(image.size) < 2500
    darkest = np.array([8, 48, 107])  # of the colour map
    assert (np.abs(pixels - darkest).max(1) < 3).sum() > 500


def test_predictions_are_read_back(tmp_path):
    path, classes = tmp_path / "p.csv", ["a,b", 'quo"te', "猫"]
    names = ["x/1.jpg", "new\nline.jpg", "bad\udcff.jpg"]
    write_predictions(
        path,
        names,
        classes,
        np.array([0, 1, 2]),
        np.array([1, 1, -1]),
        np.array([0.5, 0.25, 0.1]),
    )
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "label", "predicted", "score"]
    assert rows[1] == ["x/1.jpg", "a,b", 'quo"te', "0.500000"]
    assert rows[2][:3] == ["new\nline.jpg", 'quo"te', 'quo"te']
    assert rows[3] == ["bad\udcff.jpg", "猫", "", "0.100000"]
    labels = np.array([[1, 0, -1], [1, -1, 1], [-1, -1, -1]], np.int8)
    write_predictions(path, names, classes, labels, None, np.full((3, 3), 0.5))
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "present", "left out", *classes]
    assert rows[1] == ["x/1.jpg", "a,b", 'quo"te', *["0.500000"] * 3]
    assert rows[2][1:3] == ["a,b|猫", ""]
    assert rows[3][1:3] == ["", ""]
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_predictions(blocked / "p.csv", [], classes, labels[:0, 0], labels[:0, 0], labels[:0])
