"""The network, the training loop and the verb as a whole, on the smallest scenes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import eval_detection.torchvision_engine.train
from eval_detection import VERBS
from eval_detection.config import DetectConfig, Schedule
from eval_detection.evaluate import BENCHMARK, open_data, run
from eval_detection.torchvision_engine.names import from_detectron2
from eval_detection.torchvision_engine.precise_bn import precise_bn
from eval_detection.torchvision_engine.train import _optimizer, learning_rate, train
from siambench.checkpoints.source import load_backbone
from siambench.cli import run_verb
from siambench.curve import Curve
from siambench.distributed import World
from siambench.errors import Diverged
from siambench.evaluation import Job
from siambench.record import read_record
from siambench.watch import Watch

TINY = {
    "engine": "torchvision",
    "batch_size": 2,
    "reference_batch": 2,
    "max_iter": 5,
    "steps": [4],
    "warmup_iters": 2,
    "min_size_train": [64],
    "min_size_test": 64,
    "anchor_sizes": [16, 32],
    "rpn_batch_per_image": 32,
    "rpn_pre_nms_train": 100,
    "rpn_post_nms_train": 50,
    "rpn_pre_nms_test": 50,
    "rpn_post_nms_test": 10,
    "rois_per_image": 8,
    "pooler_resolution": 4,
    "precise_bn_iters": 2,
    "checkpoint_every": 1,
    "workers": 0,
    "device": "cpu",
}


def voc(scenes: Path, backbone: Path, out: Path, **changes) -> DetectConfig:
    fields = {**TINY, "train_sets": ["2007/trainval"], **changes}
    return DetectConfig(backbone=str(backbone), data=str(scenes), out=str(out), **fields)


def job_of(folder: Path, seed: int = 0) -> Job:
    return Job(seed, 0, torch.device("cpu"), 0, folder, "key", "detect")


def test_learning_rate_by_hand() -> None:
    config = DetectConfig(
        backbone="", data="", lr=0.02, warmup_iters=10, steps=[50, 80], max_iter=100
    )
    assert learning_rate(config.schedule(), 0) == pytest.approx(0.02e-3)
    assert learning_rate(config.schedule(), 5) == pytest.approx(0.02 * (0.5 + 0.5e-3))
    assert learning_rate(config.schedule(), 10) == learning_rate(config, 49) == 0.02
    assert learning_rate(config.schedule(), 50) == pytest.approx(0.002)
    assert learning_rate(config.schedule(), 80) == pytest.approx(0.0002)


def test_precise_statistics_are_those_of_all_batches() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4).train()
    batches = [torch.randn(5 + 70 * i, 4) * (i + 1) + i for i in range(4)]
    precise_bn(norm, ((lambda b=batch: norm(b)) for batch in batches))
    values = torch.cat(batches)
    torch.testing.assert_close(norm.running_mean, values.mean(0))
    torch.testing.assert_close(norm.running_var, values.var(0, correction=0))
    assert norm.momentum == 0.1


def test_a_killed_run_ends_as_one_that_was_not(
    scenes: Path, backbone_file: Path, tmp_path: Path
) -> None:
    """SIGKILL in the middle; the resumed run's weights are the uninterrupted run's, bit for bit."""
    config = voc(scenes, backbone_file, tmp_path)
    data = open_data(config)
    whole = train(load_backbone(backbone_file), data, config, job_of(tmp_path / "whole"))
    killer = tmp_path / "killer.py"
    killer.write_text(
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "import torch\n"
        "import eval_detection.torchvision_engine.train as t\n"
        "from eval_detection.config import DetectConfig\n"
        "from eval_detection.evaluate import open_data\n"
        "from siambench.checkpoints.source import load_backbone\n"
        "from siambench.evaluation import Job\n"
        "save = t.save\n"
        "def save_and_die(path, model, optimizer, done):\n"
        "    save(path, model, optimizer, done)\n"
        "    if done == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "t.save = save_and_die\n"
        f"config = DetectConfig(**{vars(config)!r})\n"
        f"job = Job(0, 0, torch.device('cpu'), 0, Path({str(tmp_path / 'killed')!r}), 'k', 't')\n"
        "t.train(load_backbone(config.backbone), open_data(config), config, job)\n"
    )
    done = subprocess.run([sys.executable, str(killer)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert (tmp_path / "killed" / "checkpoint.pth").exists()
    resumed = train(load_backbone(backbone_file), data, config, job_of(tmp_path / "killed"))
    expected = whole.state_dict()
    for name, tensor in resumed.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    other = train(load_backbone(backbone_file), data, config, job_of(tmp_path / "other", seed=1))
    assert not torch.equal(other.cls_score.weight, whole.cls_score.weight)


def test_asked_to_stop_it_saves_that_iteration(
    scenes: Path,
    backbone_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    config = voc(scenes, backbone_file, tmp_path, checkpoint_every=100)
    data = open_data(config)
    whole = train(load_backbone(backbone_file), data, config, job_of(tmp_path / "whole"))
    rate = eval_detection.torchvision_engine.train.learning_rate

    def asked(schedule: Schedule, iteration: int) -> float:
        if iteration == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(schedule, iteration)

    monkeypatch.setattr(eval_detection.torchvision_engine.train, "learning_rate", asked)
    with pytest.raises(KeyboardInterrupt):
        train(load_backbone(backbone_file), data, config, job_of(tmp_path / "stopped"))
    assert "iteration 2 is saved" in capsys.readouterr().err
    monkeypatch.undo()
    resumed = train(load_backbone(backbone_file), data, config, job_of(tmp_path / "stopped"))
    for name, tensor in resumed.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name


def test_a_damaged_checkpoint_is_passed_over(
    scenes: Path, backbone_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Bytes that are no checkpoint, and one that fills the network before it fails."""
    config = voc(scenes, backbone_file, tmp_path, max_iter=1, steps=[], precise_bn_iters=0)
    data, backbone = open_data(config), load_backbone(backbone_file)
    whole = train(backbone, data, config, job_of(tmp_path / "whole")).state_dict()
    for name, content in {"bytes": b"not a checkpoint", "half": {"model": whole}}.items():
        path = tmp_path / name / "checkpoint.pth"
        path.parent.mkdir()
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        capsys.readouterr()
        again = train(backbone, data, config, job_of(path.parent)).state_dict()
        assert f"{path} is damaged" in capsys.readouterr().err
        for key, tensor in again.items():
            assert torch.equal(tensor, whole[key]), key


def test_spoilt_lines_of_the_curve_go(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    losses = {"cls": 0.5}
    curve = Curve(path, 0)
    for done in (20, 40, 60):
        curve.add(done, 0.1, losses)
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(whole[0] + b"\0\0\xff\n[]\n" + whole[1] + whole[2] + whole[0][:17])
    Curve(path, 40).add(60, 0.1, losses)
    assert path.read_bytes().splitlines(keepends=True) == whole
    path.write_bytes(b"".join(whole)[:-9])
    Curve(path, 60)
    assert path.read_bytes().splitlines(keepends=True) == whole[:2]


def test_the_checkpoint_outlives_the_test(
    scenes: Path, backbone_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A run killed after its test and before its record only repeats the test."""
    config = voc(scenes, backbone_file, tmp_path)
    data = open_data(config)
    metrics = [
        BENCHMARK.evaluate(load_backbone(backbone_file), data, config, job_of(tmp_path))
        for _ in range(2)
    ]
    trained = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert trained["iteration"] == config.max_iter + config.precise_bn_iters
    assert metrics[0] == metrics[1]
    assert "going on from iteration 5" in capsys.readouterr().err
    kept = torch.load(tmp_path / "detector.pth", weights_only=True)["model"]
    for name, tensor in from_detectron2(kept).items():
        assert torch.equal(tensor, trained["model"][name]), name


@pytest.mark.parametrize("every", [1, 100])
def test_divergence_is_one_line(
    scenes: Path, backbone_file: Path, tmp_path: Path, every: int
) -> None:
    """Seen before a checkpoint is written, and however long after it began."""
    config = voc(scenes, backbone_file, tmp_path, lr=1e12, warmup_iters=0, checkpoint_every=every)
    line = r"not finite (at|after) iteration [23]\b.*; lower lr \(1e\+12 at this batch\)"
    with pytest.raises(Diverged, match=line):
        train(load_backbone(backbone_file), open_data(config), config, job_of(tmp_path))
    path = tmp_path / "checkpoint.pth"
    assert path.exists() == (every == 1)
    if path.exists():
        state = torch.load(path, weights_only=True)
        assert state["iteration"] < 3
        assert all(bool(v.isfinite().all()) for v in state["model"].values())


def test_losses_are_looked_at_when_asked() -> None:
    """The last ones, or the first that were not finite, however long ago."""
    cpu = torch.device("cpu")
    watch = Watch(World(0, 1, cpu), cpu, "detect", "lower lr (0.5 at this batch)")
    for iteration in range(1, 6):
        watch.add({"cls": torch.tensor(float(iteration)), "box": torch.tensor(0.5)})
    assert watch.look(5) == {"cls": 5.0, "box": 0.5}
    for value in (1.0, float("inf"), 2.0, float("nan")):
        watch.add({"cls": torch.tensor(2.0), "box": torch.tensor(value)})
    with pytest.raises(Diverged, match=r"iteration 7 \(cls 2, box inf\); lower lr \(0.5 at"):
        watch.look(9)
    model = nn.Linear(2, 2)
    watch.check(model, 9)
    with torch.no_grad():
        model.weight[0, 1] = float("nan")
    with pytest.raises(Diverged, match="the weights are not finite after iteration 9; lower lr"):
        watch.check(model, 9)


def test_frozen_parts_are_neither_trained_nor_measured() -> None:
    """The optimizer holds what requires a gradient; batch norms, without decay, apart."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4), nn.Conv2d(4, 4, 1))
    model.append(nn.BatchNorm2d(4))
    model[0].requires_grad_(False)
    others, norms = _optimizer(model, DetectConfig(backbone="", data="")).param_groups
    assert [id(p) for p in others["params"]] == [id(p) for p in model[2].parameters()]
    assert [id(p) for p in norms["params"]] == [id(p) for p in model[3].parameters()]
    assert (others["weight_decay"], norms["weight_decay"]) == (1e-4, 0.0)
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    precise_bn(model, [lambda: model(images)])
    assert torch.equal(model[1].running_mean, torch.zeros(4))
    assert model[3].running_mean.any()
    precise_bn(model[:3], [lambda: pytest.fail("there is nothing to measure")])


def test_voc_from_the_verb_to_the_record(
    scenes: Path, backbone_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = voc(scenes, backbone_file, tmp_path, bf16=True)
    record = run(config)[0]
    assert "box 11-point  AP" in capsys.readouterr().out
    assert record.engine == "torchvision"
    assert record.dataset.counts["trainval"] > record.dataset.counts["test"] > 0
    for rule in ("11-point", "all-points"):
        for name in ("box_AP", "box_AP50", "box_AP75"):
            assert 0 <= record.metric(name, rule=rule) <= 100
    written = next((tmp_path / "records").glob("*.json"))
    assert read_record(written) == record
    folder = tmp_path / "jobs" / written.stem
    assert isinstance(json.loads((folder / "predictions.json").read_text()), list)
    assert run(config)[0] == record


def test_coco_from_the_verb_to_the_record(
    scenes: Path, backbone_file: Path, tmp_path: Path
) -> None:
    changes = {"train_sets": ["train2017"], "test_set": "val2017", "score_threshold": 0.0}
    config = voc(scenes / "coco", backbone_file, tmp_path, format="coco", mask=True, **changes)
    record = run(config)[0]
    for kind in ("box", "mask"):
        for name in ("AP", "AP50", "AP75"):
            assert 0 <= record.metric(f"{kind}_{name}", rule="101-point") <= 100
    assert {m.split for m in record.metrics if m.unit == "%"} == {"val"}
    path = next((tmp_path / "jobs").glob("*/predictions.json"))
    results = json.loads(path.read_text())
    assert results
    assert {"image_id", "category_id", "bbox", "score", "segmentation"} == set(results[0])


def test_wrong_path_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--backbone", "none.safetensors", "--data", str(tmp_path)]
    assert run_verb(VERBS["detect"], [*arguments, "--preset", "voc07-frcnn-c4"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("siambench: error: ")
    assert "none.safetensors" in error
    assert len(error.strip().splitlines()) == 1
