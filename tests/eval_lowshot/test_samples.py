"""Low-shot samples: how they are drawn, what the SVMs get of them, how they are kept."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from small_voc import make_small_folder

from eval_lowshot.config import SvmConfig
from eval_lowshot.data import SvmData, open_data
from eval_lowshot.samples import Sample, padded, samples_of, write_samples
from siambench.data.classification import Split
from siambench.record import DatasetInfo


def config(**fields):
    low = {"backbone": "", "data": "", "mode": "lowshot", "k": [2, 5], "samples": 2}
    return SvmConfig(**{**low, **fields})


def data_of(labels, classes, **fields):
    """A data set of these labels, whose images are only names."""
    images = SimpleNamespace(name=lambda row: f"images/{row}.jpg")
    names = [f"c{number}" for number in range(classes)]
    split = Split("train", images, labels)
    return SvmData(names, split, split, DatasetInfo("", "", {}), **fields)


@pytest.fixture(scope="module")
def several():
    labels = np.random.default_rng(0).choice([1, 0, -1], (400, 4), p=[0.2, 0.2, 0.6])
    return data_of(labels.astype(np.int8), 4)


@pytest.fixture(scope="module")
def single():
    return data_of(np.random.default_rng(0).integers(0, 6, 120), 6)


def same(one, two):
    return [
        np.array_equal(a.images, b.images) and np.array_equal(a.labels, b.labels)
        for a, b in zip(one, two, strict=True)
    ]


@pytest.mark.parametrize("difficult", ["drop", "negative"])
def test_each_class_has_its_own_positives_and_negatives(several, difficult):
    asked = config(difficult_train=difficult)
    samples = samples_of(several, asked, 0)
    assert [(s.k, s.number) for s in samples] == [(2, 0), (2, 1), (5, 0), (5, 1)]
    for sample in samples:
        rows, y = sample.of([3, 1])
        assert rows.shape == (2, sample.k * 4)
        assert y.shape == (2, sample.k * 4, 1)
        assert (rows.dtype, y.dtype) == (np.int64, np.int8)
        for column, images, signs in zip([3, 1], rows, y[:, :, 0], strict=True):
            assert (np.diff(images) > 0).all()
            truth = several.train.labels[images, column]
            assert ((truth == 1) == (signs == 1)).all()
            assert (signs == 1).sum() == sample.k
            assert (signs == -1).sum() == sample.k * 3  # classes - 1
            assert (truth != 0).all() or difficult == "negative"
    difficult_drawn = any((several.train.labels[s.images[2], 2] == 0).any() for s in samples)
    assert difficult_drawn == (difficult == "negative")


def test_draws_of_several_labels_are_by_seed_k_sample_and_class(several):
    """Written out: positives, then negatives, from one generator; the same in all versions."""
    for sample in samples_of(several, config(negatives_per_positive=7), 11):
        for column, y in enumerate(several.train.labels.T):
            rng = np.random.default_rng([11, sample.k, sample.number, column])
            positives = rng.choice(np.flatnonzero(y == 1), sample.k, replace=False)
            negatives = rng.choice(np.flatnonzero(y == -1), sample.k * 7, replace=False)
            drawn = np.sort(np.concatenate([positives, negatives]))
            np.testing.assert_array_equal(sample.of([column])[0][0], drawn)


def test_single_labels_share_k_images_of_each_class(single):
    for sample in samples_of(single, config(), 0):
        rows, y = sample.of(range(6))
        assert rows.shape == (1, 6 * sample.k)
        assert y.shape == (1, 6 * sample.k, 6)
        assert len(np.unique(rows)) == rows.size
        np.testing.assert_array_equal(y[0] == 1, np.eye(6)[single.train.labels[rows[0]]])
        assert set(np.unique(y)) == {-1, 1}
        np.testing.assert_array_equal((y[0] == 1).sum(0), [sample.k] * 6)
        np.testing.assert_array_equal(sample.of([4, 2])[1], y[:, :, [4, 2]])
        np.testing.assert_array_equal(sample.rows, np.sort(rows[0]))


@pytest.mark.parametrize("kind", ["several", "single"])
def test_draws_repeat_and_depend_on_nothing_else(kind, request):
    data = request.getfixturevalue(kind)
    every = samples_of(data, config(), 3)
    assert all(same(every, samples_of(data, config(), 3)))
    assert not any(same(every, samples_of(data, config(), 4)))
    assert not any(same(every[:1], every[1:2]))
    assert all(same(every[2:3], samples_of(data, config(k=[5], samples=1), 3)))


def test_a_class_that_is_left_out_leaves_the_others_draws_as_they_were(several):
    labels = several.train.labels
    without = data_of(labels[:, [0, 2, 3]], 3, left_out={"c1": "why"}, numbers=[0, 2, 3])
    for one, two in zip(
        samples_of(several, config(), 0), samples_of(without, config(), 0), strict=True
    ):
        np.testing.assert_array_equal(one.images[[0, 2, 3]], two.images)


def test_every_image_is_drawn_equally_often(several, single):
    samples = samples_of(several, config(k=[5], samples=1000, negatives_per_positive=2), 0)
    drawn = np.concatenate([s.images[0] for s in samples])
    counts = np.bincount(drawn, minlength=400)
    for label, number in ((1, 5), (-1, 10), (0, 0)):
        of_label = several.train.labels[:, 0] == label
        mean = 1000 * number / of_label.sum()
        np.testing.assert_allclose(counts[of_label], mean, atol=5 * mean**0.5)
    samples = samples_of(single, config(k=[5], samples=1000), 0)
    counts = np.bincount(np.concatenate([s.images[0] for s in samples]), minlength=120)
    of_class = np.bincount(single.train.labels)[single.train.labels]
    np.testing.assert_allclose(counts / (5000 / of_class), 1, atol=0.3)


def test_padding_is_no_image():
    parts = [(np.array([3, 7]), np.array([1, -1])), (np.array([4, 5, 9]), np.array([-1, 1, -1]))]
    sample = padded(parts, 1, 0)
    rows, y = sample.of([0, 1])
    assert rows.shape == (2, 3)
    assert y[:, :, 0].tolist() == [[1, -1, 0], [-1, 1, -1]]
    assert sample.rows.tolist() == [3, 4, 5, 7, 9]


def test_thousands_of_classes_are_no_matrix():
    """8,142 classes as iNaturalist 2018 has: rows and numbers alone."""
    labels = np.tile(np.arange(8142), 3)
    (sample,) = samples_of(data_of(labels, 8142), config(k=[2], samples=1), 0)
    assert sample.images.nbytes + sample.labels.nbytes == 8142 * 2 * 16
    np.testing.assert_array_equal(np.bincount(labels[sample.images[0]]), [2] * 8142)


@pytest.mark.parametrize("kind", ["several", "single"])
def test_the_file_has_rows_and_their_names(kind, request, tmp_path):
    data = request.getfixturevalue(kind)
    samples = samples_of(data, config(), 9)
    write_samples(samples, data, tmp_path / "samples.json", 9)
    content = json.loads((tmp_path / "samples.json").read_text())
    assert content["seed"] == 9
    used = sorted({row for sample in samples for row in sample.rows.tolist()})
    assert content["train"] == {str(row): f"images/{row}.jpg" for row in used}
    columns = [0, 1, 2, 3] if kind == "several" else [None]
    lines = iter(content["samples"])
    for sample in samples:
        for at, column in enumerate(columns):
            wanted = {"k": sample.k, "sample": sample.number, "images": sorted(sample.images[at])}
            wanted |= {} if column is None else {"class": f"c{column}"}
            assert next(lines) == wanted
    assert next(lines, None) is None


def test_padding_is_not_in_the_file(tmp_path):
    data = data_of(np.ones((9, 2), np.int8), 2)
    sample = Sample(1, 0, np.array([[3, 0], [4, 5]]), np.array([[1, 0], [1, -1]], np.int8), True)
    write_samples([sample], data, tmp_path / "samples.json", 0)
    lines = json.loads((tmp_path / "samples.json").read_text())["samples"]
    assert [line["images"] for line in lines] == [[3], [4, 5]]


def test_draws_from_an_image_folder(tmp_path):
    root = make_small_folder(tmp_path, train=[5, 1, 6], val=[1, 1, 1])
    asked = config(data=str(root), k=[1, 3], samples=1, skip_classes=True)
    data = open_data(asked)
    for sample in samples_of(data, asked, 0):
        names = [data.train.images.name(row).split("/")[1] for row in sample.images[0]]
        assert names == ["c0"] * sample.k + ["c2"] * sample.k
