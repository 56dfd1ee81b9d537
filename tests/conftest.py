"""Shared by all rooms' tests: the embedded data at its smallest, and a tiny backbone file."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digit scenes in every layout: imagenet/, VOCdevkit/, coco/, cityscapes/. Do not write there."""
    from siambench.data.digit_scenes import DigitScenesConfig, make

    out = tmp_path_factory.mktemp("data") / "digit-scenes"
    make(DigitScenesConfig(out=str(out), images=100, size=32, seed=0))
    return out


@pytest.fixture(scope="session")
def backbone_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised resnet10-w16 (0.3 M parameters, 128-d features) as a backbone file."""
    import torch

    from siambench.backbone import BackboneMeta, save_backbone
    from siambench.resnet import build_resnet

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("backbones") / "tiny.safetensors"
    meta = BackboneMeta(arch="resnet10-w16", method="random init", epochs=0)
    save_backbone(path, build_resnet(meta.arch).state_dict(), meta)
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, with the reason."""
    import importlib.util

    import torch

    lacks = {}
    if importlib.util.find_spec("detectron2") is None:
        lacks["detectron2"] = "detectron2 is not installed"
    if not torch.cuda.is_available():
        lacks["gpu"] = "no CUDA device"
    for item in items:
        for mark, reason in lacks.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))
