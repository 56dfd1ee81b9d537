"""The knn verb on real folders, against brute force."""

import numpy as np
import pytest
import torch

from eval_linear import VERBS
from siambench.checkpoints.source import load_backbone
from siambench.cli import run_verb
from siambench.data.images import read_image_folder
from siambench.data.pictures import FileImages
from siambench.features import ImageFiles, center_crop_transform, extract
from siambench.record import read_record


def brute_force(train, train_labels, test, test_labels, k, temperature):
    right = 0
    for row, label in zip(test.astype(float), test_labels, strict=True):
        s = [row @ t / np.linalg.norm(row) / np.linalg.norm(t) for t in train.astype(float)]
        votes = np.zeros(train_labels.max() + 1)
        for i in np.argsort(s)[::-1][:k]:
            votes[train_labels[i]] += np.exp(s[i] / temperature)
        right += votes.argmax() == label
    return 100 * right / len(test)


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
    assert "100 possible neighbours" in capsys.readouterr().err
    assert not (tmp_path / "records").exists()


def test_verb_leaves_each_image_of_a_flat_folder_out(scenes, backbone_file, tmp_path, capsys):
    flat = scenes / "imagenet" / "train"
    more = [f"--data={flat}", "--k=1", "--temperature=0.07", "--storage=float32"]
    assert run(scenes, backbone_file, tmp_path, *more) == 0
    (path,) = (tmp_path / "records").glob("knn-tiny-*.json")
    record = read_record(path)
    images = read_image_folder(flat, "")
    backbone = load_backbone(backbone_file)
    x = extract(
        backbone.features,
        ImageFiles(FileImages(images.root, images.paths), center_crop_transform(32, 32)),
        mean=backbone.meta.mean,
        std=backbone.meta.std,
        device=torch.device("cpu"),
    ).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    similarity = x @ x.T
    np.fill_diagonal(similarity, -np.inf)
    labels = np.array(images.labels)
    wanted = 100 * (labels[similarity.argmax(1)] == labels).mean()
    assert record.metric("top1", k=1, T=0.07) == pytest.approx(wanted)
    assert wanted < 100  # its own label would always be right
    assert {m.split for m in record.metrics} == {"train"}
