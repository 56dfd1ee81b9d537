"""The network, the training loop and the verb as a whole, on the smallest scenes."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from eval_detection import VERBS
from eval_detection.config import DetectConfig
from eval_detection.curve import Curve
from eval_detection.evaluate import BENCHMARK, open_data, run
from eval_detection.results import Diverged
from eval_detection.torchvision_engine.c4 import C4
from eval_detection.torchvision_engine.precise_bn import precise_bn
from eval_detection.torchvision_engine.rpn import Target
from eval_detection.torchvision_engine.train import _optimizer, learning_rate, train
from eval_detection.torchvision_engine.watch import Watch
from siambench.checkpoints.source import load_backbone
from siambench.cli import run_verb
from siambench.distributed import World
from siambench.evaluation import Job
from siambench.record import read_record
from siambench.resnet import build_resnet

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


def two_images() -> tuple[torch.Tensor, list[tuple[int, int]], list[Target]]:
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[10.0, 10, 40, 50], [50, 5, 90, 40]])
    masks = [[b[[0, 1, 2, 1, 2, 3]].double().numpy()] for b in boxes]
    target = Target(boxes, torch.tensor([0, 2]), masks)
    return images, [(64, 96), (64, 80)], [target, target]


@pytest.mark.parametrize("arch", ["resnet10-w16", "resnet50-w8"])
@pytest.mark.parametrize("mask", [False, True])
def test_every_parameter_is_trained(arch: str, mask: bool) -> None:
    torch.manual_seed(0)
    config = DetectConfig(backbone="", data="", **{**TINY, "mask": mask, "rois_per_image": 32})
    model = C4(build_resnet(arch), 3, config).train()
    losses = model(*two_images(), (0, 1))
    assert set(losses) == {"rpn_cls", "rpn_box", "cls", "box"} | ({"mask"} if mask else set())
    sum(losses.values()).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
    found = model.eval().detect(*two_images()[:2])
    assert len(found) == 2
    assert (found[0].masks is not None) == mask


def test_first_losses_are_those_of_knowing_nothing() -> None:
    """At initialisation every class is equally likely, and so is every anchor and mask cell."""
    torch.manual_seed(0)
    config = DetectConfig(backbone="", data="", **{**TINY, "mask": True, "extra_norm": False})
    model = C4(build_resnet("resnet10-w16"), 9, config)
    losses = model.train()(*two_images(), (0, 1))
    half = torch.tensor(2.0).log()
    torch.testing.assert_close(losses["cls"], torch.tensor(10.0).log(), atol=0.3, rtol=0)
    torch.testing.assert_close(losses["rpn_cls"], half, atol=0.05, rtol=0)
    torch.testing.assert_close(losses["mask"], half, atol=0.05, rtol=0)


def test_an_image_without_objects_trains_on_background_alone() -> None:
    torch.manual_seed(0)
    config = DetectConfig(backbone="", data="", **{**TINY, "mask": True})
    model = C4(build_resnet("resnet10-w16"), 3, config).train()
    images, sizes, _ = two_images()
    empty = Target(torch.empty(0, 4), torch.empty(0, dtype=torch.long), [])
    losses = model(images, sizes, [empty, empty], (0, 1))
    assert losses["box"] == losses["mask"] == losses["rpn_box"] == 0
    assert losses["cls"] > 0


def test_features_are_the_backbones(backbone_file: Path) -> None:
    backbone = load_backbone(backbone_file)
    resnet = build_resnet(backbone.meta.arch)
    resnet.load_state_dict(backbone.resnet.state_dict())
    config = DetectConfig(backbone="", data="", **{**TINY, "extra_norm": False})
    model = C4(resnet, 3, config).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        stages = backbone.stages(images)
        torch.testing.assert_close(model.features(images), stages[3])
        torch.testing.assert_close(model.res5(stages[3]), stages[4])


def test_detections_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    config = DetectConfig(backbone="", data="", **{**TINY, "mask": True, "score_threshold": 0.2})
    model = C4(build_resnet("resnet10-w16"), 3, config).eval()
    images = torch.randn(3, 3, 64, 96)
    together = model.detect(images, [(64, 96)] * 3)
    assert sum(len(d.boxes) for d in together) > 3
    for i, expected in enumerate(together):
        alone = model.detect(images[i : i + 1], [(64, 96)])[0]
        torch.testing.assert_close(alone.boxes, expected.boxes, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(alone.masks, expected.masks, atol=1e-4, rtol=1e-4)


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
    batches = [torch.randn(500, 4) * (i + 1) + i for i in range(4)]
    precise_bn(norm, ((lambda b=batch: norm(b)) for batch in batches))
    values = torch.cat(batches)
    torch.testing.assert_close(norm.running_mean, values.mean(0))
    torch.testing.assert_close(norm.running_var, values.var(0), rtol=5e-3, atol=0)
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
        "save = t._save\n"
        "def save_and_die(path, model, optimizer, done):\n"
        "    save(path, model, optimizer, done)\n"
        "    if done == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "t._save = save_and_die\n"
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
    assert (tmp_path / "checkpoint.pth").exists()
    assert metrics[0] == metrics[1]
    assert "going on from iteration 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("every", "line"),
    [
        (100, r"the loss is not finite at iteration 3 \(rpn_cls nan, .*\); lower lr \(1e\+12 "),
        (1, r"the weights are not finite after iteration 2; lower lr"),
    ],
)
def test_divergence_is_one_line_that_says_when_it_began(
    scenes: Path, backbone_file: Path, tmp_path: Path, every: int, line: str
) -> None:
    """Seen before a checkpoint is written: by the loss, or by the weights before the loss shows it."""
    config = voc(scenes, backbone_file, tmp_path, lr=1e12, warmup_iters=0, checkpoint_every=every)
    with pytest.raises(Diverged, match=line):
        train(load_backbone(backbone_file), open_data(config), config, job_of(tmp_path))
    path = tmp_path / "checkpoint.pth"
    assert path.exists() == (every == 1)
    if path.exists():
        state = torch.load(path, weights_only=True)
        assert state["iteration"] == 1
        assert all(bool(v.isfinite().all()) for v in state["model"].values())


def test_losses_are_looked_at_when_asked(tmp_path: Path) -> None:
    """The last ones, or the first that were not finite, however long ago."""
    config = DetectConfig(backbone="", data="", lr=0.5)
    watch = Watch(World(0, 1, torch.device("cpu")), torch.device("cpu"), config.schedule())
    for iteration in range(1, 6):
        watch.add({"cls": torch.tensor(float(iteration)), "box": torch.tensor(0.5)})
    assert watch.look(5) == {"cls": 5.0, "box": 0.5}
    for value in (1.0, float("inf"), 2.0, float("nan")):
        watch.add({"cls": torch.tensor(2.0), "box": torch.tensor(value)})
    with pytest.raises(Diverged, match=r"iteration 7 \(cls 2, box inf\); lower lr \(0.5 at"):
        watch.look(9)


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
