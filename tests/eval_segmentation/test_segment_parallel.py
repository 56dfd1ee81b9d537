"""Segmentation in several processes: the weights and the confusion matrix of one."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from two_processes import ALONE, dying, in_two

import eval_segmentation.train as training
from eval_segmentation.config import SegmentConfig
from eval_segmentation.data import open_data
from eval_segmentation.evaluate import evaluate
from siambench.checkpoints.source import load_backbone
from siambench.distributed import World
from siambench.evaluation import Job
from siambench.record import Metric

SMALL = {
    "long_edge": 256,
    "short_edge": 64,
    "crop": 48,  # smaller and larger than the scaled images: some parts have more ignored pixels
    "batch_size": 4,
    "iterations": 3,
    "checkpoint_every": 2,
    "head_channels": 16,
    "aux_channels": 16,
    "lr": 0.1,
    "workers": 0,
    "device": "cpu",
}


def config_of(scenes: Path, backbone: Path, **changes) -> SegmentConfig:
    values = {"backbone": str(backbone), "data": str(scenes / "VOCdevkit"), **SMALL, **changes}
    return SegmentConfig(**values)


def run(config: SegmentConfig, folder: Path, world: World) -> list[Metric]:
    job = Job(0, 0, world.device, 0, folder, "key", "segment", world)
    return evaluate(load_backbone(config.backbone), open_data(config), config, job)


def run_until(config: SegmentConfig, dies_at: int, folder: Path, world: World) -> None:
    """The first process may die at a checkpoint."""
    dying(training, dies_at)
    assert bool(run(config, folder, world)) == (world.rank == 0)


def state(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pth", weights_only=True)["model"]


def moved(folder: Path, begun: Path) -> torch.Tensor:
    """What training changed, weights and batch norm's statistics, in one vector."""
    before, after = state(begun), state(folder)
    kept = [name for name, value in after.items() if value.is_floating_point()]
    return torch.cat([(after[name] - before[name]).flatten() for name in kept])


@pytest.mark.parametrize("loss_over", ["all", "labelled"])
def test_two_processes_train_and_test_as_one(
    scenes: Path, backbone_file: Path, tmp_path: Path, loss_over: str
) -> None:
    """And killed, they go on as they were. Of losses of the parts alone the difference would show."""
    config = config_of(scenes, backbone_file, loss_over=loss_over)
    assert in_two(run_until, tmp_path / "two", config, 2)[0] == 9
    assert in_two(run_until, tmp_path / "two", config, 0) == [0, 0]
    run(config, tmp_path / "one", ALONE)
    run(replace(config, lr=1e-12, min_lr=0.0, iterations=1), tmp_path / "still", ALONE)
    one, two = (moved(tmp_path / name, tmp_path / "still") for name in ("one", "two"))
    assert (one - two).norm() < 1e-3 * one.norm()

    (tmp_path / "again").mkdir()  # of the same weights the same confusion, whoever tests
    shutil.copy(tmp_path / "two" / "checkpoint.pth", tmp_path / "again")
    run(config, tmp_path / "again", ALONE)
    for name in ("confusion.csv", "segmentation.png"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_divergence_is_said_once(scenes: Path, backbone_file: Path, tmp_path: Path) -> None:
    config = config_of(scenes, backbone_file, lr=1e30, iterations=6)
    assert in_two(run_until, tmp_path, config, 0) == [2, 2]
    (told,) = tmp_path.glob("*.UserError")
    assert "not finite" in told.read_text()
    assert not (tmp_path / "checkpoint.pth").exists()


def test_a_batch_that_cannot_be_shared(scenes: Path, backbone_file: Path, tmp_path: Path) -> None:
    assert in_two(run_until, tmp_path, config_of(scenes, backbone_file, batch_size=3), 0) == [2, 2]
    told = next(tmp_path.glob("*Error"))
    assert "batch_size 3 cannot be shared by 2 processes" in told.read_text()
