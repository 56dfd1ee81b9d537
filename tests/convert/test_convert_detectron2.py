"""The detectron2 file against detectron2's ResNet: rebuilt here from the names alone, and the real one."""

import logging
import pickle
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.resnet import ResNet

from convert.config import ConvertConfig
from convert.run import run

ARCHS = ["resnet18-w8", "resnet50-w8", "resnet50-w16", "wide_resnet50_2-w8", "resnet10-w64"]


def make_pkl(model: ResNet, folder: Path) -> Path:
    source = checkpoints.save(model.state_dict(), folder)
    run(ConvertConfig(source=str(source), out=str(folder / "d2.pkl"), to="detectron2-c4"))
    return folder / "d2.pkl"


def torchvision_stages(model: ResNet, images: Tensor) -> dict[str, Tensor]:
    """layer1 to layer4 under detectron2's names for them."""
    x, stages = model.maxpool(model.relu(model.bn1(model.conv1(images)))), {}
    for i in range(1, 5):
        stages[f"res{i + 1}"] = x = getattr(model, f"layer{i}")(x)
    return stages


def from_the_names(weights: dict[str, np.ndarray], images: Tensor) -> dict[str, Tensor]:
    """detectron2's ResNet with STRIDE_IN_1X1 False, as its modeling/backbone/resnet.py computes it."""
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}

    def conv_norm(x: Tensor, name: str, stride: int) -> Tensor:
        weight = tensors[f"{name}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        parts = (tensors[f"{name}.norm.{p}"] for p in ("running_mean", "running_var"))
        affine = (tensors[f"{name}.norm.{p}"] for p in ("weight", "bias"))
        return F.batch_norm(x, *parts, *affine, eps=1e-5)

    x = F.max_pool2d(F.relu(conv_norm(images, "stem.conv1", 2)), 3, stride=2, padding=1)
    stages = {}
    for stage in ("res2", "res3", "res4", "res5"):
        block = 0
        while f"{stage}.{block}.conv1.weight" in tensors:
            name = f"{stage}.{block}"
            stride = 2 if block == 0 and stage != "res2" else 1
            if bottleneck := f"{name}.conv3.weight" in tensors:
                y = F.relu(conv_norm(x, f"{name}.conv1", 1))
                y = F.relu(conv_norm(y, f"{name}.conv2", stride))
                y = conv_norm(y, f"{name}.conv3", 1)
            else:
                y = conv_norm(F.relu(conv_norm(x, f"{name}.conv1", stride)), f"{name}.conv2", 1)
            width = tensors[f"{name}.conv{3 if bottleneck else 2}.weight"].shape[0]
            if width != x.shape[1]:  # detectron2 builds a shortcut exactly then
                x = conv_norm(x, f"{name}.shortcut", stride)
            else:
                assert f"{name}.shortcut.weight" not in tensors
            x = F.relu(x + y)
            block += 1
        stages[stage] = x
    return stages


def load_pkl(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as handle:
        content = pickle.load(handle, encoding="latin1")  # as detectron2's checkpointer does
    assert set(content) == {"model", "__author__", "matching_heuristics"}
    assert content["matching_heuristics"] is True
    return content["model"]


@torch.inference_mode()
@pytest.mark.parametrize("arch", ARCHS)
def test_stages_from_the_names_alone(arch: str, tmp_path: Path) -> None:
    model = checkpoints.make_resnet(arch)
    weights = load_pkl(make_pkl(model, tmp_path))
    images = checkpoints.images()
    ours, theirs = from_the_names(weights, images), torchvision_stages(model, images)
    for stage in theirs:
        torch.testing.assert_close(ours[stage], theirs[stage], rtol=1e-5, atol=1e-5)


def test_names_are_those_of_mocos_recipe(tmp_path: Path) -> None:
    """Spelt out by hand for one name of every kind."""
    model = checkpoints.make_resnet("resnet50-w8")
    weights, state = load_pkl(make_pkl(model, tmp_path)), model.state_dict()
    assert len(weights) == len(state) == 318
    for ours, theirs in {
        "conv1.weight": "stem.conv1.weight",
        "bn1.running_var": "stem.conv1.norm.running_var",
        "layer1.0.conv1.weight": "res2.0.conv1.weight",
        "layer1.0.bn1.bias": "res2.0.conv1.norm.bias",
        "layer2.0.downsample.0.weight": "res3.0.shortcut.weight",
        "layer2.0.downsample.1.running_mean": "res3.0.shortcut.norm.running_mean",
        "layer3.5.bn3.num_batches_tracked": "res4.5.conv3.norm.num_batches_tracked",
        "layer4.2.conv3.weight": "res5.2.conv3.weight",
    }.items():
        np.testing.assert_array_equal(weights[theirs], state[ours].numpy(), strict=True)


@pytest.mark.detectron2
@torch.inference_mode()
@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnet50-w16"])
def test_real_backbone_loads_every_key(
    arch: str, norm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import build_resnet_backbone

    model = checkpoints.make_resnet(arch)
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = 18 if arch == "resnet18" else 50
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = model.layer1[0](torch.zeros(1, 64, 4, 4)).shape[1]
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = model.layer1[0].conv1.out_channels
    backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    with caplog.at_level(logging.WARNING):
        loaded = DetectionCheckpointer(backbone).load(str(make_pkl(model, tmp_path)))
    assert loaded["__author__"] == "siambench"
    complaints = [r.getMessage() for r in caplog.records if "checkpoint" in r.getMessage()]
    if norm == "BN":
        assert complaints == []
    else:  # frozen batch norms count no batches; that is all they leave
        left = [line for text in complaints for line in text.splitlines()[1:]]
        assert left
        assert all("num_batches_tracked" in line for line in left)
    images = checkpoints.images()
    theirs, ours = backbone(images), torchvision_stages(model, images)
    assert set(theirs) == set(ours)
    for stage in ours:
        torch.testing.assert_close(theirs[stage], ours[stage], rtol=1e-5, atol=1e-5)


@pytest.mark.detectron2
def test_real_c4_detector_loads_stem_to_res5(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """res5 is the RoI head's; only what no backbone has (RPN, predictors) may be missing."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    model = checkpoints.make_resnet("resnet50-w16")
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 16
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    detector = build_model(cfg)
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(detector).load(str(make_pkl(model, tmp_path)))
    text = caplog.text
    assert "not used by the model" not in text
    missing = text.partition("not found in the checkpoint")[2]
    assert "proposal_generator" in missing
    assert "backbone" not in missing
    assert "res5" not in missing
    for ours, theirs in (
        (model.conv1, detector.backbone.stem.conv1),
        (model.layer3[5].conv2, detector.backbone.res4[5].conv2),
        (model.layer4[0].downsample[0], detector.roi_heads.res5[0].shortcut),
        (model.layer4[2].bn3, detector.roi_heads.res5[2].conv3.norm),
    ):
        assert torch.equal(ours.weight, theirs.weight)
