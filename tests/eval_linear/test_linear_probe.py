"""The linear verb on real folders: oracle, roads, sweep, resume, frozen backbone, bad input."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import eval_linear.probe
from eval_linear import VERBS
from eval_linear.config import LinearConfig
from eval_linear.linear import BENCHMARK, evaluate, open_data
from eval_linear.probe import epoch_batches
from eval_linear.roads import Online
from eval_linear.scores import hold_out
from eval_linear.views import RandomViews, train_transform
from siambench.checkpoints.source import load_backbone
from siambench.cli import run_verb
from siambench.data.pictures import FileImages
from siambench.errors import UserError
from siambench.evaluation import Job, run_evaluation
from siambench.features import (
    ImageFiles,
    LayerFeatures,
    center_crop_transform,
    extract,
    normalise,
)
from siambench.pooling import LAYERS


@pytest.fixture
def config(scenes, backbone_file, tmp_path) -> LinearConfig:
    """A short cached SGD probe on 32 px digits."""
    return LinearConfig(
        backbone=str(backbone_file),
        data=str(scenes / "imagenet"),
        out=str(tmp_path / "out"),
        workers=0,
        optimizer="sgd",
        base_lr=1.0,
        batch_size=32,
        epochs=4,
        resize=32,
        crop=32,
        min_scale=0.5,
        flip=False,
        road="cached",
        storage="float32",
    )


def job_of(config: LinearConfig, seed: int = 0, workers: int = 0) -> Job:
    folder = Path(config.out) / "job"
    return Job(seed, 0, torch.device("cpu"), workers, folder, "key", "linear")


def probe(config: LinearConfig, name: str = "a", workers: int = 0, data=None):
    """Run the evaluator; metrics as {(name, layer, ...): value} and the saved heads."""
    config = replace(config, out=str(Path(config.out) / name))
    job = job_of(config, workers=workers)
    found = evaluate(load_backbone(config.backbone), data or open_data(config), config, job)
    return {(m.name, *m.params.values()): m.value for m in found}, load_file(
        job.folder / "head.safetensors"
    )


def center_features(config: LinearConfig, split: str) -> torch.Tensor:
    backbone, data = load_backbone(config.backbone), open_data(config)
    return torch.from_numpy(
        extract(
            LayerFeatures(backbone, config.layers, config.crop),
            ImageFiles(
                getattr(data, split).images, center_crop_transform(config.resize, config.crop)
            ),
            mean=backbone.meta.mean,
            std=backbone.meta.std,
            device=torch.device("cpu"),
        )
    )


def test_cached_road_equals_a_plain_torch_loop(config):
    """nn.Linear, torch.optim.SGD and torch's cosine on the same batches: the published recipe."""
    metrics, heads = probe(config)
    data = open_data(config)
    x, y = center_features(config, "train"), torch.tensor(data.train.labels)
    linear = nn.Linear(x.shape[1], 10)
    first = torch.randn(10, x.shape[1], generator=torch.Generator().manual_seed(0)) * 0.01
    linear.weight.data.copy_(first)
    linear.bias.data.zero_()
    sgd = torch.optim.SGD(linear.parameters(), 1.0 * 32 / 256, momentum=0.9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, config.epochs)
    for epoch in range(config.epochs):
        for batch in epoch_batches(len(x), config, 0, epoch):
            sgd.zero_grad()
            F.cross_entropy(linear(x[batch]), y[batch]).backward()
            sgd.step()
        cosine.step()
    torch.testing.assert_close(heads["avgpool.weight"], linear.weight.data, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(heads["avgpool.bias"], linear.bias.data, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        ranked = linear(center_features(config, "test")).argsort(1, descending=True)
    z = torch.tensor(data.test.labels)
    right = ranked == z[:, None]
    assert metrics["top1", "avgpool"] == pytest.approx(100 * right[:, 0].float().mean().item())
    assert metrics["top5", "avgpool"] == pytest.approx(
        100 * right[:, :5].any(1).float().mean().item()
    )
    for label, name in enumerate(data.classes):
        wanted = 100 * right[z == label, 0].float().mean().item()
        assert metrics["top1_class", "avgpool", name] == pytest.approx(wanted)


def test_it_learns(config):
    """The probe fits its training images' features far above chance, by LARS as by SGD."""
    shutil.copytree(Path(config.data) / "train", Path(config.out) / "data" / "train")
    shutil.copytree(Path(config.data) / "train", Path(config.out) / "data" / "val")
    config = replace(config, data=str(Path(config.out) / "data"), batch_norm=True)
    for more in ({"epochs": 40}, {"optimizer": "lars", "base_lr": 100.0, "epochs": 40}):
        metrics, _ = probe(replace(config, **more), more.get("optimizer", "sgd"))
        assert metrics["top1", "avgpool"] > 50


def test_sweep_trains_every_rate_as_if_alone(config):
    """The reported head has seen all images; the choosing one none that is held out."""
    rates = [0.01, 1.0, 3.0]
    metrics, heads = probe(replace(config, base_lr=rates, holdout=0.2), "sweep")
    for rate in rates:
        alone, single = probe(replace(config, base_lr=rate), f"rate{rate}")
        assert metrics["top1_sweep", "avgpool", rate, 0.0] == alone["top1", "avgpool"]
        if metrics["top1_holdout", "avgpool", rate, 0.0] == max(
            metrics["top1_holdout", "avgpool", r, 0.0] for r in rates
        ):
            chosen = alone, single
            break
    assert metrics["top1", "avgpool"] == chosen[0]["top1", "avgpool"]
    for name, tensor in heads.items():
        torch.testing.assert_close(tensor, chosen[1][name], atol=1e-6, rtol=1e-4)


def test_choice_does_not_see_the_held_out_images(config, monkeypatch):
    """Whatever the labels of the held-out images, the head that the choice is made with is the same."""
    data = open_data(config)
    labels = data.train.labels
    held = hold_out(labels, 0.2, 0)
    spoilt = replace(data.train, labels=np.where(held, (labels + 5) % 10, labels))
    choosing = {}

    def spy(probe, road, split, labels, index):
        choosing.update(heads=probe.heads[0], index=index)
        raise KeyboardInterrupt

    monkeypatch.setattr("eval_linear.linear.score", spy)
    monkeypatch.setattr("eval_linear.linear.hold_out", lambda *_: held)
    sweep = replace(config, base_lr=[1.0, 3.0], epochs=1, batch_size=100)
    with pytest.raises(KeyboardInterrupt):
        probe(sweep, "spoilt", data=replace(data, train=spoilt))
    spoilt_heads = choosing["heads"].weight.clone()
    with pytest.raises(KeyboardInterrupt):
        probe(sweep, "honest", data=data)
    torch.testing.assert_close(spoilt_heads[2:], choosing["heads"].weight[2:])
    assert not torch.allclose(spoilt_heads[:2], choosing["heads"].weight[:2])
    assert sorted(choosing["index"]) == np.flatnonzero(held).tolist()


def test_hold_out_is_stratified():
    labels = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
    held = hold_out(labels, 0.2, seed=3)
    assert np.bincount(labels[held], minlength=4).tolist() == [20, 2, 1, 0]
    assert np.bincount(labels[hold_out(labels, 0.99, 3)], minlength=4).tolist() == [99, 9, 1, 0]
    assert not np.array_equal(held, hold_out(labels, 0.2, seed=4))


def test_all_layers_train_at_once_as_if_alone(config):
    config = replace(config, batch_norm=True, layers=list(LAYERS), epochs=2, base_lr=0.1)
    together, heads = probe(config, "together")
    assert {key[1] for key in together if key[0] == "top1"} == set(LAYERS)
    alone, single = probe(replace(config, layers=["feature3"]), "alone")
    assert together["top1", "feature3"] == alone["top1", "feature3"]
    torch.testing.assert_close(heads["feature3.weight"], single["feature3.weight"])


def test_online_road_is_the_same_whatever_the_loader(config):
    config = replace(config, road="online", epochs=2)
    here, heads = probe(config, "here", workers=0)
    there, workers = probe(config, "there", workers=2)
    assert here == there
    assert torch.equal(heads["avgpool.weight"], workers["avgpool.weight"])


def test_online_road_draws_anew_in_every_epoch(config):
    """Epoch e trains on draw e of each image, in the order of the batch."""
    config = replace(config, road="online")
    backbone, data, job = load_backbone(config.backbone), open_data(config), job_of(config, seed=5)
    encoder = LayerFeatures(backbone, ["avgpool"], 32)
    road = Online(encoder, data, config, job)
    batch = np.array([3, 0, 42])
    views = RandomViews(data.train.images, train_transform(config), seed=5)
    for epoch in (0, 2):
        (found,) = road.train(epoch, [batch])
        images = torch.stack([views[epoch * len(views) + i] for i in batch])
        wanted = encoder(normalise(images, backbone.meta.mean, backbone.meta.std))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, next(road.train(0, [batch])), atol=1e-3)


def test_online_and_cached_agree_when_nothing_is_random(config):
    """Without augmentation the two roads are one."""
    config = replace(config, train_crop="random", epochs=2)
    metrics, heads = probe(replace(config, road="online"), "online")
    assert metrics == probe(config, "cached")[0]
    torch.testing.assert_close(
        heads["avgpool.weight"], probe(config, "again")[1]["avgpool.weight"], atol=1e-5, rtol=1e-4
    )


def test_cached_views_change_what_is_learnt(config):
    _, plain = probe(config, "plain")
    _, viewed = probe(replace(config, views=2), "viewed")
    assert not torch.allclose(plain["avgpool.weight"], viewed["avgpool.weight"], atol=1e-3)


def test_views_depend_on_seed_draw_and_image_only(config):
    whole = open_data(config).train.images
    images = FileImages(whole.root, [whole.name(i) for i in range(5)])
    config = replace(config, color_jitter=0.4, lighting=0.1)
    views = RandomViews(images, train_transform(config), seed=1)
    first = views[7].clone()
    torch.manual_seed(99)
    views[3]
    before = torch.get_rng_state()
    assert torch.equal(views[7], first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(views[2], first)  # another draw of the same image
    assert not torch.equal(RandomViews(images, views.transform, seed=2)[7], first)
    assert first.shape == (3, 32, 32)


@pytest.mark.parametrize("road", ["online", "cached"])
def test_killed_run_goes_on_and_ends_alike(config, monkeypatch, road):
    """Stopped after the second of four epochs; the rest is not repeated and the end is the same."""
    config = replace(config, road=road, base_lr=[0.5, 1.0], batch_norm=True)
    monkeypatch.setitem(eval_linear.probe._CHECKPOINT_EVERY, "cached", 0.0)
    whole, heads = probe(config, "whole")
    save, epochs = eval_linear.probe.Probe.save, []

    def killed(self, path, epochs_done, batches=0):
        save(self, path, epochs_done, batches)
        epochs.append(epochs_done)
        if epochs_done == 2 and epochs.count(2) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(eval_linear.probe.Probe, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        probe(config, "killed")
    metrics, resumed = probe(config, "killed")
    assert epochs == [1, 2, 3, 4]
    assert metrics == whole
    assert all(torch.equal(heads[name], resumed[name]) for name in heads)
    # The checkpoint goes when the record is written.
    left = sorted(p.name for p in (Path(config.out) / "killed" / "job").iterdir())
    assert left == [
        "checkpoint.safetensors",
        "confusion.png",
        "head.safetensors",
        "predictions.csv",
    ]


@pytest.mark.parametrize("last", [False, True])
def test_asked_to_stop_it_saves_within_the_epoch(config, monkeypatch, capsys, last):
    """After the first batch of the second epoch, or its last, which ends the epoch."""
    config = replace(config, road="online", batch_norm=True, batch_size=40)
    whole, heads = probe(config, "whole")
    step, asked_at = eval_linear.probe.Probe.step, 6 if last else 4
    calls = []

    def ctrl_c(self, *arguments):
        calls.append(1)
        if len(calls) == asked_at:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *arguments)

    monkeypatch.setattr(eval_linear.probe.Probe, "step", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        probe(config, "stopped")
    assert len(calls) == asked_at
    metrics, resumed = probe(config, "stopped")
    assert len(calls) == 3 * config.epochs  # 100 images: nothing twice
    said = "after epoch 2 of" if last else "after epoch 1 and 1 batches of"
    assert said in capsys.readouterr().err
    assert metrics == whole
    assert all(torch.equal(heads[name], resumed[name]) for name in heads)


def test_a_damaged_checkpoint_is_said_and_left(config, capsys):
    whole, heads = probe(config, "whole")
    folder = Path(config.out) / "damaged" / "job"
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").write_bytes(b"\0" * 100)
    again, anew = probe(config, "damaged")
    assert "checkpoint.safetensors is damaged" in capsys.readouterr().err
    assert again == whole
    assert torch.equal(anew["avgpool.weight"], heads["avgpool.weight"])


def test_divergence_is_said_at_once(config, monkeypatch):
    """Not after the fiftieth epoch; a sweep goes on while one of its rates is sound."""
    monkeypatch.setitem(eval_linear.probe._CHECKPOINT_EVERY, "cached", 0.0)
    epochs, save = [], eval_linear.probe.Probe.save
    monkeypatch.setattr(
        eval_linear.probe.Probe, "save", lambda self, *a: (epochs.append(a[1]), save(self, *a))
    )
    wild = replace(config, base_lr=1e30, weight_decay=1.0, epochs=50)
    with pytest.raises(UserError, match="diverged with base_lr 1e"):
        probe(wild, "wild")
    assert len(epochs) < 3
    metrics, _ = probe(replace(wild, base_lr=[1e30, 0.01], epochs=3), "one is sound")
    assert metrics["top1", "avgpool"] == metrics["top1_sweep", "avgpool", 0.01, 1.0]


def test_several_labels_from_pictures_to_map(config, scenes):
    """VOC07: trained on trainval, mAP on test as a plain forward and a brute-force AP have it."""
    voc = replace(config, data=str(scenes), base_lr=[0.1, 1.0], epochs=20, batch_norm=True)
    metrics, heads = probe(voc, "voc")
    data, x = open_data(voc), center_features(voc, "test")
    scores = F.linear(x, heads["avgpool.weight"], heads["avgpool.bias"]).numpy()
    aps = []
    for column, name in enumerate(data.classes):
        counted = data.test.labels[:, column] != 0
        present = data.test.labels[counted, column] == 1
        order = np.argsort(-scores[counted, column], kind="stable")
        hits = present[order].cumsum()
        precision = hits / np.arange(1, len(order) + 1)
        best = [precision[at:].max() for at in np.flatnonzero(present[order])]
        aps.append(100 * np.mean(best))
        assert metrics["AP_class", "avgpool", name] == pytest.approx(aps[-1], abs=1e-3)
    assert metrics["mAP", "avgpool"] == pytest.approx(np.mean(aps), abs=1e-3)
    assert metrics["mAP_ci_low", "avgpool"] < metrics["mAP", "avgpool"]
    assert metrics["mAP", "avgpool"] < metrics["mAP_ci_high", "avgpool"]
    assert metrics["mAP_test_chosen", "avgpool"] >= metrics["mAP", "avgpool"]
    lines = (Path(voc.out) / "voc" / "job" / "predictions.csv").read_text().splitlines()
    assert len(lines) == 1 + len(data.test.images)
    assert lines[0] == ",".join(["image", "present", "left out", *data.classes])


def test_the_same_run_writes_the_same_bytes(config):
    first, second = (probe(config, name) and name for name in ("first", "second"))
    heads = [Path(config.out) / name / "job" / "head.safetensors" for name in (first, second)]
    assert heads[0].read_bytes() == heads[1].read_bytes()


def test_pictures_that_are_enlarged_are_said(config, capsys):
    open_data(config)
    assert "enlarged" not in capsys.readouterr().err
    open_data(replace(config, resize=64, crop=48))
    assert "32 x 32 pixels and is enlarged to 64" in capsys.readouterr().err


def test_a_backbone_that_moves_is_a_fault(config):
    backbone = load_backbone(config.backbone)

    def drift(*_):
        backbone.resnet.layer4[0].bn1.running_mean += 1e-6

    backbone.resnet.layer4.register_forward_hook(drift)
    with pytest.raises(RuntimeError, match="changed"):
        evaluate(backbone, open_data(config), config, job_of(config))


def test_verb_prints_records_and_does_not_repeat(config, capsys):
    sweep = replace(config, base_lr=[0.1, 1.0], trials=2)
    records = VERBS["linear"](sweep)
    printed = capsys.readouterr().out
    assert [r.seed for r in records] == [0, 1]
    assert f"{records[0].metric('top1', layer='avgpool'):8.2f}" in printed
    assert records[0].protocol["road"] == "cached"
    again = run_evaluation(BENCHMARK, sweep)
    assert [r.started for r in again] == [r.started for r in records]
    (head, other) = Path(config.out).rglob("head.safetensors")
    told = {line.split()[1] for line in printed.splitlines() if line.startswith("head ")}
    assert told == {str(head), str(other)}
    with safe_open(head, framework="pt") as file:
        about = file.metadata()
    assert json.loads(about["classes"]) == open_data(config).classes
    assert about["backbone"] == "tiny"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nowhere"}, "nowhere does not exist"),
        ({"layers": ["layer9"]}, "layer9 not among feature1"),
        ({"layers": []}, "at least one"),
        ({"layers": ["avgpool", "avgpool"]}, "each once"),
        ({"base_lr": []}, "at least one of each"),
        ({"base_lr": [0.1, -1.0]}, "positive"),
        ({"base_lr": [0.1, 1.0], "holdout": 1.0}, "holdout"),
        ({"epochs": 0}, "epochs"),
        ({"crop": 64}, "at most resize"),
        ({"min_scale": 0.0}, "min_scale"),
        ({"road": "online", "views": 1}, "cached road"),
        ({"milestones": [2]}, "schedule step"),
        ({"base_lr": 1e30, "weight_decay": 1.0}, "diverged"),
    ],
)
def test_bad_input_is_one_clear_line(config, capsys, change, message):
    class Fixed(type(VERBS["linear"])):
        def __call__(self, _):
            return super().__call__(replace(config, **change))

    verb = Fixed(**vars(VERBS["linear"]))
    assert run_verb(verb, ["--backbone=x", "--data=y", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (Path(config.out) / "records").exists()


def test_empty_class_and_foreign_class_are_named(config, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(config.data, root)
    (root / "val" / "apple").mkdir()
    with pytest.raises(Exception, match="val/apple is a class that the other split does not have"):
        open_data(replace(config, data=str(root)))
    (root / "train" / "apple").mkdir()
    with pytest.raises(Exception, match="train/apple has no images"):
        open_data(replace(config, data=str(root)))
