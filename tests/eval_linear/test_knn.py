"""kNN against brute force and scikit-learn; the verb on real folders."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

import siambench.knn
from eval_linear import VERBS
from siambench.checkpoints.source import load_backbone
from siambench.cli import run_verb
from siambench.data.images import read_image_folder
from siambench.data.pictures import FileImages
from siambench.errors import UserError
from siambench.features import ImageFiles, center_crop_transform, extract
from siambench.knn import knn_accuracy, nearest
from siambench.record import read_record

KS, TS = [1, 3, 20], [0.07, 0.2]


def clusters(seed: int = 0, train: int = 150, test: int = 60, classes: int = 5):
    """Overlapping classes, so that k and T matter."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, 16))
    y = rng.integers(classes, size=train + test)
    x = (centres[y] + 1.8 * rng.normal(size=(len(y), 16))).astype(np.float32)
    return x[:train], y[:train], x[train:], y[train:]


def brute_force(train, train_labels, test, test_labels, k, temperature):
    right = 0
    for row, label in zip(test.astype(float), test_labels, strict=True):
        s = [row @ t / np.linalg.norm(row) / np.linalg.norm(t) for t in train.astype(float)]
        votes = np.zeros(train_labels.max() + 1)
        for i in np.argsort(s)[::-1][:k]:
            votes[train_labels[i]] += np.exp(s[i] / temperature)
        right += votes.argmax() == label
    return 100 * right / len(test)


def test_equals_brute_force():
    data = clusters()
    found = knn_accuracy(*data, ks=KS, temperatures=TS)
    for k in KS:
        for t in TS:
            assert found[k, t] == pytest.approx(brute_force(*data, k, t))
    assert len(set(found.values())) > 2  # the case tells ks apart


def test_equals_scikit_learn():
    train, y, test, z = clusters(1)
    found = knn_accuracy(train, y, test, z, ks=KS, temperatures=TS)
    for k in KS:
        for t in TS:
            theirs = KNeighborsClassifier(
                k,
                metric="cosine",
                algorithm="brute",
                weights=lambda distance, t=t: np.exp((1 - distance) / t),
            ).fit(train.astype(float), y)
            assert found[k, t] == pytest.approx(100 * theirs.score(test.astype(float), z))


def test_blocks_change_nothing(monkeypatch):
    data = clusters(2)
    whole = knn_accuracy(*data, ks=KS, temperatures=TS)
    monkeypatch.setattr(siambench.knn, "_QUERIES", 7)
    assert knn_accuracy(*data, ks=KS, temperatures=TS) == whole


@pytest.mark.parametrize("block", [7, 13, 1000])
def test_torch_search_equals_faiss(monkeypatch, block):
    train, _, test, _ = clusters(3)
    monkeypatch.setattr(siambench.knn, "_TRAIN", block)
    monkeypatch.setattr(siambench.knn, "_QUERIES", 11)
    s, i = nearest(train, test, 20)
    rows = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test)]
    t, j = siambench.knn._search_torch(*rows, 20, torch.device("cpu"))
    np.testing.assert_allclose(s, t, atol=1e-6)
    assert (i == j).mean() > 0.99  # near ties may swap


@pytest.mark.gpu
def test_gpu_equals_cpu():
    data = clusters(4)
    gpu = knn_accuracy(*data, ks=KS, temperatures=TS, device=torch.device("cuda"))
    assert gpu == pytest.approx(knn_accuracy(*data, ks=KS, temperatures=TS))


def test_tiny_temperature_does_not_overflow():
    """As T goes to 0 the nearest neighbour alone decides."""
    data = clusters(5)
    found = knn_accuracy(*data, ks=[1, 20], temperatures=[1e-6])
    assert found[20, 1e-6] == found[1, 1e-6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ks": [151]}, "150 training images"),
        ({"ks": [0]}, "between 1"),
        ({"temperatures": [0.0]}, "positive"),
        ({"test_labels": np.zeros(3, int)}, "a label per feature"),
        ({"train": np.full((150, 16), np.nan)}, "NaN"),
        ({"train": np.ones((150, 15))}, "of .15,. and of .16,. numbers"),
    ],
)
def test_bad_input(change, message):
    train, y, test, z = clusters()
    values = {
        "train": train,
        "train_labels": y,
        "test": test,
        "test_labels": z,
        "ks": [1],
        "temperatures": [0.07],
    }
    with pytest.raises(UserError, match=message):
        knn_accuracy(**{**values, **change})


def run(scenes, backbone_file, tmp_path, *more: str) -> int:
    arguments = ["--backbone", str(backbone_file), "--data", str(scenes / "imagenet")]
    arguments += ["--resize=32", "--crop=32", "--workers=0", f"--out={tmp_path}", "--quiet"]
    return run_verb(VERBS["knn"], [*arguments, *more])


def test_verb_records_and_prints_the_grid(scenes, backbone_file, tmp_path, capsys):
    assert run(scenes, backbone_file, tmp_path, "--k=[1,20]", "--temperature=[0.07,0.2]") == 0
    (path,) = (tmp_path / "records").glob("knn-tiny-*.json")
    record, printed = read_record(path), capsys.readouterr().out
    backbone = load_backbone(backbone_file)
    features, labels = {}, {}
    for split in ("train", "val"):
        images = read_image_folder(scenes / "imagenet", split)
        files = ImageFiles(FileImages(images.root, images.paths), center_crop_transform(32, 32))
        features[split] = extract(
            backbone.features,
            files,
            mean=backbone.meta.mean,
            std=backbone.meta.std,
            device=torch.device("cpu"),
        )
        labels[split] = np.array(images.labels)
    for k in (1, 20):
        for t in (0.07, 0.2):
            wanted = brute_force(
                features["train"], labels["train"], features["val"], labels["val"], k, t
            )
            assert record.metric("top1", k=k, T=t) == pytest.approx(wanted)
            assert f"{k:>6}{t:>8g}{wanted:8.2f}" in printed
    assert all(m.split == "val" and m.unit == "%" for m in record.metrics)


def test_verb_refuses_more_neighbours_than_images(scenes, backbone_file, tmp_path, capsys):
    assert run(scenes, backbone_file, tmp_path, "--k=[101]") == 2
    assert "100 images" in capsys.readouterr().err
    assert not (tmp_path / "records").exists()
