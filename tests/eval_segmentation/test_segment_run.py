"""The verb from end to end: presets, records, learning, interruption and resume."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval_segmentation.train as training
from eval_segmentation import VERBS
from eval_segmentation.config import SegmentConfig
from eval_segmentation.data import open_data
from eval_segmentation.evaluate import run
from eval_segmentation.model import FCN
from eval_segmentation.train import checkpoint_path, learning_rate, train
from siambench.checkpoints.source import load_backbone
from siambench.cli import run_verb
from siambench.config import make_config
from siambench.errors import UserError
from siambench.evaluation import Job

TINY = {
    "long_edge": 256,
    "short_edge": 64,
    "crop": 32,
    "batch_size": 2,
    "iterations": 3,
    "head_channels": 8,
    "aux_channels": 8,
    "workers": 0,
    "device": "cpu",
}


def _config(backbone: Path, data: Path, out: Path, **fields: object) -> SegmentConfig:
    values = {"backbone": str(backbone), "data": str(data), "out": str(out), **TINY, **fields}
    return make_config(VERBS["segment"], values)


def _job(folder: Path) -> Job:
    return Job(3, 0, torch.device("cpu"), 0, folder, "key", "segment test")


def test_defaults_are_the_headline_preset() -> None:
    values = {"backbone": "b", "data": "d"}
    preset = asdict(make_config(VERBS["segment"], {**values, "preset": "voc12aug-fcn-20k"}))
    assert preset == {**asdict(SegmentConfig(**values)), "preset": "voc12aug-fcn-20k"}


def test_cityscapes_preset() -> None:
    config = make_config(
        VERBS["segment"], {"backbone": "b", "data": "d", "preset": "cityscapes-fcn-40k"}
    )
    assert (config.crop, config.slide_stride, config.inference) == (769, 513, "slide")
    assert (config.iterations, config.batch_size, config.align_corners) == (40_000, 8, True)


def test_poly_schedule() -> None:
    config = SegmentConfig(backbone="", data="")
    assert learning_rate(config, 0) == 0.01
    assert learning_rate(config, 10_000) == pytest.approx(0.0099 * 0.5**0.9 + 1e-4)
    assert learning_rate(config, 20_000) == 1e-4


@pytest.mark.parametrize(
    ("preset", "folder", "classes"),
    [("voc12aug-fcn-20k", "VOCdevkit", 11), ("cityscapes-fcn-40k", "cityscapes", 19)],
)
def test_verb_writes_a_record_and_does_not_repeat_itself(
    scenes: Path,
    backbone_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    preset: str,
    folder: str,
    classes: int,
) -> None:
    config = _config(backbone_file, scenes / folder, tmp_path, preset=preset, slide_stride=20)
    (record,) = run(config)
    assert record.benchmark == preset
    assert record.dataset.counts["classes"] == classes
    for name in ("mIoU", "pixel_acc", "mean_acc"):
        assert 0 <= record.metric(name) <= 100
    per_class = [m.value for m in record.metrics if m.name == "IoU"]
    assert np.mean(per_class) == pytest.approx(record.metric("mIoU"))
    assert 1 < len(per_class) <= classes
    assert f"mean over {len(per_class)} of {classes} classes" in capsys.readouterr().out
    assert not list(tmp_path.rglob("checkpoint.pt"))
    (curve,) = tmp_path.rglob("curve.jsonl")
    points = [json.loads(line) for line in curve.read_text().splitlines()]
    assert [p["iteration"] for p in points] == [1, 2, 3]
    curve.unlink()
    assert run(config) == [record]
    assert not curve.exists()  # nothing was trained again


def test_it_learns_to_tell_colours(backbone_file: Path, tmp_path: Path) -> None:
    """Red and blue squares on grey: trivial, so a fault in the pipeline would show."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for label in ("blue", "red"):
        (folder / "ImageSets" / "Main" / f"{label}_train.txt").touch()
    splits = {"train": range(16), "val": range(16, 24)}
    for split, numbers in splits.items():
        lines = "".join(f"{n}\n" for n in numbers)
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(lines)
        for n in numbers:
            pixels = np.full((64, 64, 3), 120, np.uint8)
            labels = np.zeros((64, 64), np.uint8)
            for colour, channel in ((1, 2), (2, 0)):
                y, x = rng.integers(0, 36, 2)
                pixels[y : y + 28, x : x + 28] = np.eye(3, dtype=np.uint8)[channel] * 200
                labels[y : y + 28, x : x + 28] = colour
            Image.fromarray(pixels).save(folder / "JPEGImages" / f"{n}.jpg")
            Image.fromarray(labels).save(folder / "SegmentationClass" / f"{n}.png")
    fields = {"dataset": "voc12", "iterations": 50, "batch_size": 4, "crop": 64, "lr": 0.2}
    fields |= {"head_channels": 32, "aux_channels": 32}
    config = _config(
        backbone_file, folder.parent, tmp_path / "run", ratio_min=0.8, ratio_max=1.2, **fields
    )
    (record,) = run(config)
    assert record.metric("mIoU") > 70
    assert [m.params["class"] for m in record.metrics if m.name == "IoU"] == [
        "background",
        "blue",
        "red",
    ]


def test_interrupted_training_ends_in_the_same_weights(
    scenes: Path, backbone_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(
        backbone_file, scenes / "VOCdevkit", tmp_path, iterations=6, checkpoint_every=2
    )
    data, backbone = open_data(config), load_backbone(backbone_file)

    def weights(folder: Path, *, stop_at: int | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = FCN(backbone, len(data.classes), config)
        steps = iter(range(100))

        def normalise(*args: object) -> torch.Tensor:
            if next(steps) == stop_at:
                raise KeyboardInterrupt
            return original(*args)

        original = training.normalise
        with monkeypatch.context() as patch:
            patch.setattr(training, "normalise", normalise)
            train(model, backbone.meta, data, config, _job(folder))
        return model.state_dict()

    whole = weights(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        weights(tmp_path / "broken", stop_at=5)
    state = torch.load(checkpoint_path(tmp_path / "broken"), weights_only=True)
    assert state["iteration"] == 4
    torch.rand(17)  # the global generator is not what it was
    resumed = weights(tmp_path / "broken")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    curves = [(tmp_path / kind / "curve.jsonl").read_text() for kind in ("whole", "broken")]
    assert curves[0] == curves[1]
    assert all(  # stopped after training, before the test: nothing is trained again
        torch.equal(whole[name], value)
        for name, value in weights(tmp_path / "whole", stop_at=0).items()
    )


def test_heads_may_learn_faster(scenes: Path, backbone_file: Path, tmp_path: Path) -> None:
    """The first step of plain SGD is the learning rate times the gradient."""
    moved = {}
    for times in (1.0, 10.0):
        config = _config(
            backbone_file,
            scenes / "VOCdevkit",
            tmp_path / str(times),
            iterations=1,
            momentum=0.0,
            weight_decay=0.0,
            dropout=0.0,
            head_lr_mult=times,
        )
        data, backbone = open_data(config), load_backbone(backbone_file)
        torch.manual_seed(0)
        model = FCN(backbone, len(data.classes), config)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        train(model, backbone.meta, data, config, _job(tmp_path / str(times)))
        moved[times] = {n: p.detach() - before[n] for n, p in model.named_parameters()}
    for name in ("resnet.conv1.weight", "resnet.layer4.0.conv2.weight"):
        torch.testing.assert_close(moved[10.0][name], moved[1.0][name])
    for name in ("head.classifier.bias", "aux.classifier.bias"):
        torch.testing.assert_close(moved[10.0][name], 10 * moved[1.0][name], rtol=1e-3, atol=1e-6)
        assert moved[1.0][name].abs().max() > 0


def test_damaged_checkpoint_is_named(scenes: Path, backbone_file: Path, tmp_path: Path) -> None:
    config = _config(backbone_file, scenes / "VOCdevkit", tmp_path)
    data, backbone = open_data(config), load_backbone(backbone_file)
    model = FCN(backbone, len(data.classes), config)
    checkpoint_path(tmp_path).write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=rf"{checkpoint_path(tmp_path)} cannot be read.*delete it"):
        train(model, backbone.meta, data, config, _job(tmp_path))


def test_divergence_is_said(scenes: Path, backbone_file: Path, tmp_path: Path) -> None:
    config = _config(backbone_file, scenes / "VOCdevkit", tmp_path, lr=1e30, iterations=20)
    data, backbone = open_data(config), load_backbone(backbone_file)
    model = FCN(backbone, len(data.classes), config)
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at iteration \d+; lower --lr"):
        train(model, backbone.meta, data, config, _job(tmp_path))


def test_wrong_path_is_one_line_and_exit_code_2(
    backbone_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--backbone", str(backbone_file), "--data", str(tmp_path), "--out", str(tmp_path)]
    assert run_verb(VERBS["segment"], flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("siambench: error: VOC folder: ")
    assert error.count("\n") == 1
