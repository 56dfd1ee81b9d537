"""The verb from images to record: both modes, both solvers, all layers, all layouts, bad features."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.model_selection import cross_val_score
from small_voc import COLOURS, make_small_folder, make_small_voc
from svm_cases import literature

from eval_lowshot import VERBS, full
from eval_lowshot.config import SvmConfig
from eval_lowshot.data import open_data
from eval_lowshot.evaluate import run
from eval_lowshot.features import image_transform, unit_features
from siambench.average_precision import interpolated_ap
from siambench.backbone import BackboneMeta, save_backbone
from siambench.checkpoints.source import load_backbone
from siambench.cli import run_verb
from siambench.data.images import decode
from siambench.errors import UserError
from siambench.features import normalise
from siambench.resnet import build_resnet

QUICK = {"costs": [0.1, 1.0], "resize": 0, "size": 32, "workers": 0}
LOW = {"mode": "lowshot", "k": [1, 3], "samples": 2, "negatives_per_positive": 3}


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return make_small_voc(tmp_path_factory.mktemp("voc"))


@pytest.fixture
def config(voc, backbone_file, tmp_path):
    def make(**fields):
        values = {"data": str(voc), "backbone": str(backbone_file), "out": str(tmp_path / "run")}
        return SvmConfig(**{**values, **QUICK, **fields})

    return make


def plain(record):
    return [(m.name, m.value, m.params) for m in record.metrics]


def flags(config):
    """A command line that asks for the same."""
    names = ["backbone", "data", "out", "mode", "solver", "costs", "resize", "size", "workers", "k"]
    return [f"--{name}={getattr(config, name)}" for name in [*names, "samples"]]


def scratch(config):
    (kept,) = Path(config.out).glob("jobs/svm-*/avgpool.jsonl")
    return kept.parent


def test_full(config, capsys):
    (record,) = run(config(layers=["avgpool", "feature5", "feature1"]))
    for layer in ("avgpool", "feature5", "feature1"):
        of_class = [record.metric("AP", layer=layer, **{"class": name}) for name in COLOURS]
        assert record.metric("mAP", layer=layer) == pytest.approx(np.mean(of_class))
        assert record.metric("mAP", layer=layer) > 45  # 40 % of the images are positive
        assert record.metric("cost", layer=layer, **{"class": "red"}) in (0.1, 1.0)
    assert record.protocol["difficult_train"] == "negative"
    assert record.dataset.counts["trainval"] == 48
    assert f"feature5  mAP {record.metric('mAP', layer='feature5'):.2f}" in capsys.readouterr().out


def test_lowshot(config, capsys):
    asked = config(**LOW)
    (record,) = run(asked)
    for k in (1, 3):
        of_sample = [
            record.metric("mAP_sample", k=k, sample=sample, layer="avgpool") for sample in range(2)
        ]
        at = {"k": k, "layer": "avgpool"}
        assert record.metric("mAP", **at) == pytest.approx(np.mean(of_sample))
        assert record.metric("mAP_std", **at) == pytest.approx(np.std(of_sample))
        assert record.metric("mAP_min", **at) == min(of_sample)
        assert record.metric("mAP_max", **at) == max(of_sample)
        assert 30 < record.metric("mAP_honest", **at) <= 100
    assert len(capsys.readouterr().out.splitlines()) == 2
    drawn = json.loads((scratch(asked) / "samples.json").read_text())
    labels = np.load(asked.data + "/labels-trainval.npy")
    assert len(drawn["samples"]) == 2 * 2 * 3
    used = {row for sample in drawn["samples"] for row in sample["images"]}
    assert drawn["trainval"] == {str(row): f"JPEGImages/trainval{row:04d}.jpg" for row in used}
    for row in drawn["samples"]:
        column = labels[row["images"], sorted(COLOURS).index(row["class"])]
        assert (column == 1).sum() == row["k"]
        assert (column == -1).sum() == 3 * row["k"]


def test_trials_draw_other_samples(config):
    first, second = run(config(**{**LOW, "k": [1]}, trials=2))
    assert first.metric("mAP", k=1) != second.metric("mAP", k=1)
    assert (first.seed, second.seed) == (0, 1)


def test_features_are_shared_by_the_two_modes(config, monkeypatch):
    run(config())
    folder = Path(config().out) / "features"
    before = sorted(p.name for p in folder.iterdir())
    assert len(before) == 2

    def refuse(*args, **kwargs):
        raise AssertionError("extracted again")

    monkeypatch.setattr("siambench.cache.normalised_batches", refuse)
    run(config(**LOW))
    assert sorted(p.name for p in folder.iterdir()) == before


def test_features_are_the_backbones_at_unit_length(config, backbone_file):
    asked = config()
    run(asked)
    (path,) = Path(asked.out).glob("features/test-avgpool-*/features.npy")
    x = unit_features(np.load(path), "test's avgpool", "float64", constant=True)
    backbone = load_backbone(backbone_file)
    image = decode(f"{asked.data}/VOCdevkit/VOC2007/JPEGImages/test0000.jpg")
    pixels = normalise(image_transform(asked)(image)[None], backbone.meta.mean, backbone.meta.std)
    with torch.inference_mode():
        feature = backbone.features(pixels)[0].double().numpy()
    np.testing.assert_allclose(x[0, :-1], feature / (np.linalg.norm(feature) + 1e-5), atol=1e-5)
    assert (x[:, -1] == 1).all()
    assert x.dtype == np.float64


def test_transforms(config):
    image = Image.new("RGB", (500, 375))
    left_half = Image.new("RGB", (250, 375), (255, 255, 255))
    image.paste(left_half)
    for fields in ({"resize": 256}, {"resize": 0}):
        squashed = image_transform(config(transform="squash", size=224, **fields))(image)
        assert squashed.shape == (3, 224, 224)
        assert (squashed[0, 0] > 127).sum() == 112
    narrow = Image.new("RGB", (100, 200))
    narrow.paste(Image.new("RGB", (100, 50), (255, 255, 255)))  # the top quarter
    squashed = image_transform(config(transform="squash", resize=64, size=32))(narrow)
    assert (squashed[0, :, 0] > 127).sum() == 8
    cropped = image_transform(config(transform="centercrop", resize=32, size=32))(narrow)
    assert (cropped[0, :, 0] > 127).sum() == 0  # the middle half only


@pytest.mark.parametrize("solver", ["batched", "liblinear"])
@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (0.0, "trainval's avgpool is the same for all 48 images; the backbone collapsed"),
        (1e30, "avgpool of JPEGImages/trainval0000.jpg is nan: the backbone is not sound"),
    ],
)
def test_features_that_say_nothing(config, tmp_path, capsys, scale, message, solver):
    state = build_resnet("resnet10-w16").state_dict()
    state = {n: t * scale if t.is_floating_point() else t for n, t in state.items()}
    path = tmp_path / "collapsed.safetensors"
    save_backbone(path, state, BackboneMeta(arch="resnet10-w16", method="none", epochs=0))
    assert run_verb(VERBS["svm"], flags(config(backbone=str(path), solver=solver))) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("siambench: error: ")
    assert message in error


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[1, 2], [3, np.nan]], "test's avgpool has features that are not finite"),
        ([[1, 2], [np.inf, 3]], "test's avgpool has features that are not finite"),
        ([[100, 200], [300, 600]], "test's avgpool is the same for all 2 images"),  # at unit length
    ],
)
def test_tables_that_say_nothing(table, message):
    with pytest.raises(UserError, match=message):
        unit_features(np.array(table, np.float32), "test's avgpool", "float32")


def test_full_takes_difficult_images_as_it_is_told(config, monkeypatch):
    """Coloured squares of 3 px are "difficult": as negatives or left out, the classifier differs."""
    (negative,) = run(config(difficult_train="negative"))
    (dropped,) = run(config(difficult_train="drop"))
    assert plain(negative) != plain(dropped)
    assert negative.protocol_hash != dropped.protocol_hash


def test_exit_codes(voc, backbone_file, tmp_path, capsys):
    given = ["--backbone", str(backbone_file), "--out", str(tmp_path), "--size=32", "--resize=0"]
    verb = VERBS["svm"]
    assert run_verb(verb, [*given, "--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    low = ["--mode=lowshot", "--k=[1,2]", "--samples=1", "--costs=virtex", "--workers=0"]
    assert run_verb(verb, [*given, *low, "--data", str(voc), "--negatives_per_positive=40"]) == 2
    assert "k = 2 needs 2 and 80" in capsys.readouterr().err
    assert run_verb(verb, [*given, *low, "--data", str(voc), "--negatives_per_positive=2"]) == 0


@pytest.mark.parametrize("solver", ["batched", "liblinear"])
def test_one_label_an_image(config, scenes, solver, monkeypatch):
    """mAP and top-1 from the cached features, class by class with scikit-learn; classes in three blocks."""
    monkeypatch.setattr(full, "_BLOCK", 4)
    asked = config(data=str(scenes / "imagenet"), solver=solver)
    (record,) = run(asked)
    splits = [np.load(p) for p in sorted(Path(asked.out).glob("features/*-avgpool-*/features.npy"))]
    data = open_data(asked)
    x, x_test = (unit_features(part, "x", "float64") for part in splits)
    assert (len(x), len(x_test)) == (len(data.train.labels), len(data.test.labels))
    scores, aps = np.empty((10, len(x_test))), []
    near = 1e-9 if solver == "liblinear" else 0.05
    for number, name in enumerate(data.classes):
        y = np.where(data.train.labels == number, 1, -1)
        cv = [
            cross_val_score(literature(c), x, y, cv=3, scoring="average_precision").mean()
            for c in (0.1, 1.0)
        ]
        cost = (0.1, 1.0)[int(np.argmax(cv))]
        at = {"class": name, "layer": "avgpool"}
        assert record.metric("cost", **at) == cost
        scores[number] = literature(cost).fit(x, y).decision_function(x_test)
        aps.append(100 * interpolated_ap(data.test.labels == number, scores[number]))
        assert record.metric("AP", **at) == pytest.approx(aps[-1], abs=2 * near)
    assert record.metric("mAP", layer="avgpool") == pytest.approx(np.mean(aps), abs=near)
    top1 = 100 * (scores.argmax(axis=0) == data.test.labels).mean()
    assert record.metric("top1", layer="avgpool") == pytest.approx(top1, abs=near)


def test_low_shot_with_one_label_an_image(config, scenes, capsys):
    """Both solvers see the same samples and find the same numbers."""
    asked = {**LOW, "data": str(scenes / "imagenet"), "costs": [0.1, 1.0, 10.0]}
    (ours,), (theirs,) = (run(config(**asked, solver=s)) for s in ("batched", "liblinear"))
    assert (ours.engine, theirs.engine) == ("torch", "scikit-learn")
    assert ours.protocol_hash != theirs.protocol_hash
    assert len(ours.metrics) == len(theirs.metrics)
    for one, other in zip(ours.metrics, theirs.metrics, strict=True):
        assert (one.name, one.params) == (other.name, other.params)
        exact = one.name.startswith("cost")
        assert one.value == pytest.approx(other.value, abs=0 if exact else 0.05)
    lines = capsys.readouterr().out.splitlines()
    assert f"top-1 {ours.metric('top1', k=3, layer='avgpool'):.2f}" in lines[1]


def test_the_best_layer(config, capsys):
    layers = ["avgpool", "feature5", "feature1"]
    (record,) = run(config(layers=layers))
    best = max(record.metric("mAP", layer=layer) for layer in layers)
    (metric,) = [m for m in record.metrics if m.name == "mAP_best_layer"]
    assert metric.value == best == record.metric("mAP", **metric.params)
    assert "the best layer, chosen on test" in capsys.readouterr().out
    (record,) = run(config(layers=layers, **LOW))
    for k in (1, 3):
        best = max(record.metric("mAP", k=k, layer=layer) for layer in layers)
        (metric,) = [m for m in record.metrics if m.name == "mAP_best_layer" and m.params["k"] == k]
        assert metric.value == best == record.metric("mAP", **metric.params)
    (record,) = run(config())
    assert "mAP_best_layer" not in {m.name for m in record.metrics}


@pytest.mark.parametrize("fields", [{}, LOW], ids=["full", "lowshot"])
def test_skipped_classes_are_as_if_they_were_not_there(config, tmp_path, capsys, fields):
    folder = make_small_folder(tmp_path / "all", train=[6, 6, 6, 2], val=[4, 4, 4, 4])
    without = shutil.copytree(folder, tmp_path / "without")
    for split in ("train", "val"):
        shutil.rmtree(without / split / "c3")
    asked = flags(config(data=str(folder), **fields))
    assert run_verb(VERBS["svm"], asked) == 2
    assert "class c3 has 2 images in train" in capsys.readouterr().err
    assert run_verb(VERBS["svm"], [*asked, "--skip_classes=true"]) == 0
    assert "left out: 1 classes with too few images (c3)" in capsys.readouterr().out
    (record,) = run(config(data=str(folder), skip_classes=True, **fields))
    assert record.dataset.counts["classes_left_out"] == 1
    (left_out,) = [m for m in record.metrics if m.name == "left_out"]
    assert left_out.params == {"class": "c3", "why": "has 2 images in train"}
    (wanted,) = run(config(data=str(without), **fields))
    assert [m for m in plain(record) if m[0] != "left_out"] == plain(wanted)


def test_a_run_from_its_own_samples(config, tmp_path):
    (drawn,) = run(config(**LOW))
    given = tmp_path / "given"
    given.mkdir()
    shutil.copy(scratch(config()) / "samples.json", given)
    (again,) = run(config(**LOW, samples_dir=str(given), seed=7))
    assert plain(again) == plain(drawn)
    assert again.key != drawn.key
    assert again.dataset.fingerprint != drawn.dataset.fingerprint
    assert len(list(Path(config().out).glob("records/*.json"))) == 2
