"""Detection in several processes: the losses, weights and detections of one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from two_processes import ALONE, dying, in_two

import eval_detection.torchvision_engine.train as engine_train
from eval_detection.config import DetectConfig
from eval_detection.evaluate import open_data
from eval_detection.torchvision_engine.engine import detect
from siambench import curve
from siambench.checkpoints.source import load_backbone
from siambench.distributed import World
from siambench.evaluation import Job

SMALL = {
    "engine": "torchvision",
    "format": "coco",
    "train_sets": ["train2017"],
    "test_set": "val2017",
    "mask": True,
    "batch_size": 4,
    "reference_batch": 4,
    "lr": 0.003,
    "max_iter": 4,
    "steps": [],
    "warmup_iters": 2,
    "min_size_train": [48, 64],
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
    "score_threshold": 0.0,
    "checkpoint_every": 2,
    "workers": 0,
    "device": "cpu",
}


def config_of(scenes: Path, backbone: Path, **changes) -> DetectConfig:
    return DetectConfig(backbone=str(backbone), data=str(scenes / "coco"), **{**SMALL, **changes})


def run(config: DetectConfig, folder: Path, world: World) -> None:
    """Train and find."""
    job = Job(0, 0, world.device, 0, folder, "key", "detect", world)
    found = detect(load_backbone(config.backbone), open_data(config), config, job)
    if world.rank == 0:
        (folder / "found.json").write_text(json.dumps(found))
    else:
        assert found == []


def run_until(config: DetectConfig, dies_at: int, folder: Path, world: World) -> None:
    """A line of the curve for every iteration; the first process may die at a checkpoint."""
    dying(engine_train, dies_at)
    engine_train.EVERY = curve.EVERY = 1
    run(config, folder, world)


def copy_of(run: Path, folder: Path) -> Path:
    """A folder with the run's checkpoint."""
    folder.mkdir()
    shutil.copy(run / "checkpoint.pth", folder)
    return folder


def state(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pth", weights_only=True)["model"]


def weights(folder: Path) -> torch.Tensor:
    """What the gradients change, in one vector."""
    kept = [v for n, v in state(folder).items() if not n.endswith(("_mean", "_var", "_tracked"))]
    return torch.cat([value.flatten() for value in kept])


def test_two_processes_train_as_one(
    scenes: Path, backbone_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And killed, they go on as they were.

    The first losses agree to the five digits that the curve has. After that float32 sums in another
    order part the two: an activation on the other side of a ReLU, or a proposal that another one
    suppresses, is a loss 0.2 % and a step 1 % off; batch statistics of the parts, or losses over them,
    would be 10 times that.
    """
    config = config_of(scenes, backbone_file)
    assert in_two(run_until, tmp_path / "two", config, 2) == [9, 2]
    assert len((tmp_path / "two" / "curve.jsonl").read_text().splitlines()) == 2
    assert in_two(run_until, tmp_path / "two", config, 4) == [9, 2]
    trained = copy_of(tmp_path / "two", tmp_path / "trained")
    assert in_two(run_until, tmp_path / "two", config, 0) == [0, 0]
    monkeypatch.setattr(engine_train, "EVERY", 1)
    monkeypatch.setattr(curve, "EVERY", 1)
    run(config, tmp_path / "one", ALONE)
    run(replace(config, lr=1e-12, max_iter=1), tmp_path / "still", ALONE)
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "curve.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [line["iteration"] for line in one] == [1, 2, 3, 4]
    assert one[0] == pytest.approx(two[0], abs=2e-5)
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=0.01, abs=1e-3)
    begun, a, b = (weights(tmp_path / name) for name in ("still", "one", "two"))
    assert (a - b).norm() < 0.03 * (a - begun).norm()

    # Of the same weights, the same statistics of every layer that does not work on drawn proposals.
    run(config, trained, ALONE)
    one, two = state(trained), state(tmp_path / "two")
    for name in (n for n in one if n.endswith(("_mean", "_var")) and not n.startswith("head")):
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=1e-4, msg=name)

    # And the same detections; a run killed in its test does not train again.
    folder = copy_of(tmp_path / "two", tmp_path / "finished")
    run(config, folder, ALONE)
    assert not (folder / "curve.jsonl").exists()
    one, two = (json.loads((p / "found.json").read_text()) for p in (folder, tmp_path / "two"))
    assert len(one) == len(two) > 20
    for a, b in zip(one, two, strict=True):
        assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
        assert a["bbox"] == pytest.approx(b["bbox"], abs=1e-3)
        assert a["score"] == pytest.approx(b["score"], abs=1e-5)


def test_one_step_of_a_pyramid(scenes: Path, backbone_file: Path, tmp_path: Path) -> None:
    """Its parts are padded alike, and nothing in it lacks a gradient."""
    changes = {"network": "fpn", "anchor_sizes": [8, 16, 24, 32, 48], "mask": False}
    changes |= {"precise_bn_iters": 0, "detections_per_image": 5}
    config = config_of(scenes, backbone_file, **changes, lr=1.0, warmup_iters=0, max_iter=1)
    assert in_two(run_until, tmp_path / "two", config, 0) == [0, 0]
    run(config, tmp_path / "one", ALONE)
    run(replace(config, lr=1e-12), tmp_path / "still", ALONE)
    begun, a, b = (weights(tmp_path / name) for name in ("still", "one", "two"))
    assert (a - b).norm() < 0.003 * (a - begun).norm()


def test_divergence_ends_both(scenes: Path, backbone_file: Path, tmp_path: Path) -> None:
    config = config_of(scenes, backbone_file, lr=1e12, warmup_iters=0, checkpoint_every=100)
    assert in_two(run_until, tmp_path, config, 0) == [2, 2]
    texts = [(tmp_path / f"{rank}.Diverged").read_text() for rank in (0, 1)]
    assert texts[0] == texts[1]
    assert "not finite" in texts[0]
    assert not (tmp_path / "checkpoint.pth").exists()


def test_a_batch_that_cannot_be_shared(scenes: Path, backbone_file: Path, tmp_path: Path) -> None:
    config = config_of(scenes, backbone_file, batch_size=3)
    assert in_two(run_until, tmp_path, config, 0) == [2, 2]
    told = next(tmp_path.glob("*.UserError"))
    assert "batch_size 3 cannot be shared by 2 processes" in told.read_text()
