"""The verb from end to end: presets, records, learning, interruption and resume."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
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
from eval_segmentation.train import learning_rate, train
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


def test_step_schedule_of_mocos_paper() -> None:
    values = {"backbone": "b", "data": "d", "preset": "voc12aug-fcn16s-30k"}
    config = make_config(VERBS["segment"], values)
    rates = {i: learning_rate(config, i) for i in (0, 20_999, 21_000, 26_999, 27_000, 29_999)}
    assert list(rates.values()) == pytest.approx([3e-3, 3e-3, 3e-4, 3e-4, 3e-5, 3e-5])


@pytest.mark.parametrize(
    ("preset", "folder", "classes"),
    [
        ("voc12aug-fcn-20k", "VOCdevkit", 11),
        ("voc12aug-fcn16s-30k", "VOCdevkit", 11),
        ("cityscapes-fcn-40k", "cityscapes", 19),
        ("cityscapes-fcn16s-90k", "cityscapes", 19),
    ],
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
    assert not list(tmp_path.rglob("checkpoint*"))
    for name in ("curve.jsonl", "confusion.csv", "segmentation.png"):
        (path,) = tmp_path.rglob(name)
        path.unlink()
    assert run(config) == [record]
    assert not list(tmp_path.rglob("curve.jsonl"))  # nothing was trained again


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


def _weights(config: SegmentConfig, folder: Path) -> dict[str, torch.Tensor]:
    model = train(load_backbone(config.backbone), open_data(config), config, _job(folder))
    assert not model.training
    return model.state_dict()


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
import eval_segmentation.train as training
from eval_segmentation.config import SegmentConfig
from eval_segmentation.data import open_data
from siambench.checkpoints.source import load_backbone
from siambench.evaluation import Job
saved = training.save
def save_and_die(path, model, optimizer, done):
    saved(path, model, optimizer, done)
    if done == 4:
        os.kill(os.getpid(), signal.SIGKILL)
training.save = save_and_die
config = SegmentConfig(**eval(sys.argv[1]))
job = Job(3, 0, torch.device("cpu"), 0, Path(sys.argv[2]), "key", "segment test")
training.train(load_backbone(config.backbone), open_data(config), config, job)
"""


def test_a_killed_run_ends_in_the_same_weights(
    scenes: Path, backbone_file: Path, tmp_path: Path
) -> None:
    config = _config(
        backbone_file, scenes / "VOCdevkit", tmp_path, iterations=7, checkpoint_every=2
    )
    whole = _weights(config, tmp_path / "whole")
    command = [sys.executable, "-c", KILLED, repr(asdict(config)), str(tmp_path / "killed")]
    done = subprocess.run(command, capture_output=True, check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    state = torch.load(tmp_path / "killed" / "checkpoint.pth", weights_only=True)
    assert state["iteration"] == 4
    torch.rand(17)  # the global generator is not what it was
    resumed = _weights(config, tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    # stopped after training, before the test: nothing is trained again
    again = replace(config, data=str(tmp_path / "gone"))
    job = _job(tmp_path / "whole")
    model = train(load_backbone(backbone_file), open_data(config), again, job)
    assert all(torch.equal(whole[name], value) for name, value in model.state_dict().items())


def test_asked_to_stop_it_saves_that_iteration(
    scenes: Path,
    backbone_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    config = _config(
        backbone_file, scenes / "VOCdevkit", tmp_path, iterations=6, checkpoint_every=100
    )
    whole = _weights(config, tmp_path / "whole")
    rate = training.learning_rate

    def ctrl_c(config: SegmentConfig, iteration: int) -> float:
        if iteration == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return rate(config, iteration)

    monkeypatch.setattr(training, "learning_rate", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        _weights(config, tmp_path / "stopped")
    assert "SIGINT: segment test: iteration 3 is saved" in capsys.readouterr().err
    monkeypatch.undo()
    resumed = _weights(config, tmp_path / "stopped")
    assert "going on from iteration 3" in capsys.readouterr().err
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_heads_may_learn_faster(scenes: Path, backbone_file: Path, tmp_path: Path) -> None:
    """The first step of plain SGD is the learning rate times the gradient."""
    moved = {}
    for times in (1.0, 10.0):
        config = _config(
            backbone_file,
            scenes / "VOCdevkit",
            tmp_path,
            iterations=1,
            momentum=0.0,
            weight_decay=0.0,
            dropout=0.0,
            head_lr_mult=times,
        )
        torch.manual_seed(3)
        before = FCN(load_backbone(backbone_file), 11, config).state_dict()
        after = _weights(config, tmp_path / str(times))
        moved[times] = {name: after[name] - before[name] for name in before}
    for name in ("resnet.conv1.weight", "resnet.layer4.0.conv2.weight"):
        torch.testing.assert_close(moved[10.0][name], moved[1.0][name])
    for name in ("head.classifier.bias", "aux.classifier.bias"):
        torch.testing.assert_close(moved[10.0][name], 10 * moved[1.0][name], rtol=1e-3, atol=1e-6)
        assert moved[1.0][name].abs().max() > 0


def test_a_damaged_checkpoint_is_passed_over(
    scenes: Path, backbone_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _config(backbone_file, scenes / "VOCdevkit", tmp_path)
    whole = _weights(config, tmp_path / "whole")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "checkpoint.pth").write_bytes(b"not a checkpoint")
    again = _weights(config, tmp_path / "damaged")
    assert "checkpoint.pth is damaged" in capsys.readouterr().err
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_divergence_is_said(
    scenes: Path, backbone_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _config(backbone_file, scenes / "VOCdevkit", tmp_path, lr=1e30, iterations=25)
    with pytest.raises(
        UserError, match=r"segment: the .* not finite .*; lower lr \(1e\+30 at batch 2"
    ):
        run(config)


def test_wrong_path_is_one_line_and_exit_code_2(
    backbone_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--backbone", str(backbone_file), "--data", str(tmp_path), "--out", str(tmp_path)]
    assert run_verb(VERBS["segment"], flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("siambench: error: VOC folder: ")
    assert error.count("\n") == 1


def _curve(folder: Path) -> list[float]:
    lines = (folder / "curve.jsonl").read_text().splitlines()
    return [sum(v for k, v in json.loads(line).items() if k in ("head", "aux")) for line in lines]


def test_bf16_trains_float32_weights(scenes: Path, backbone_file: Path, tmp_path: Path) -> None:
    """Near float32's losses, though not the same."""
    curves = {}
    for bf16 in (False, True):
        changes = {"bf16": bf16, "iterations": 20, "lr": 1e-3}
        config = _config(backbone_file, scenes / "VOCdevkit", tmp_path, **changes)
        state = _weights(config, tmp_path / str(bf16))
        assert {v.dtype for v in state.values()} == {torch.float32, torch.int64}
        (curves[bf16],) = _curve(tmp_path / str(bf16))
    assert curves[True] == pytest.approx(curves[False], rel=0.05)
    assert curves[True] != curves[False]


@pytest.mark.gpu
def test_the_host_does_not_wait_for_a_gpu(
    scenes: Path, backbone_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the rate to the losses' note of every iteration; and the verb runs there to its record."""
    rate, add = training.learning_rate, training.Watch.add

    def begin(config: SegmentConfig, iteration: int) -> float:
        torch.cuda.set_sync_debug_mode("error" if iteration >= 2 else "default")
        return rate(config, iteration)

    def end(self: training.Watch, losses: dict[str, torch.Tensor]) -> None:
        add(self, losses)
        torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(training, "learning_rate", begin)
    monkeypatch.setattr(training.Watch, "add", end)
    for loss_over in ("all", "labelled"):
        changes = {"device": "cuda", "iterations": 6, "bf16": True, "loss_over": loss_over}
        config = _config(backbone_file, scenes / "VOCdevkit", tmp_path / loss_over, **changes)
        (record,) = run(config)
        assert 0 <= record.metric("mIoU") <= 100
