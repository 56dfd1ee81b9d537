"""The detectron2 file against detectron2's ResNet: rebuilt here from the names alone, and the real one."""

import logging
import pickle
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from torchvision.models.resnet import ResNet

from convert.config import ConvertConfig
from convert.run import Conversion, run
from convert.targets import TARGETS
from siambench.backbone import BackboneMeta, save_backbone

ARCHS = ["resnet18-w8", "resnet34-w8", "resnet50-w8", "resnet50-w16", "resnet101-w8"]
ARCHS += ["wide_resnet50_2-w8", "wide_resnet101_2-w8", "resnet10-w64"]


def to_pkl(model: ResNet, folder: Path, to: str = "detectron2-c4") -> Conversion:
    source = checkpoints.save(model.state_dict(), folder)
    return run(ConvertConfig(source=str(source), out=str(folder / "d2.pkl"), to=to))


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


def load_pkl(path: str) -> dict[str, np.ndarray]:
    with open(path, "rb") as handle:
        content = pickle.load(handle, encoding="latin1")  # as detectron2's checkpointer does
    assert set(content) == {"model", "__author__", "matching_heuristics"}
    assert content["matching_heuristics"] is True
    return content["model"]


@torch.inference_mode()
@pytest.mark.parametrize("arch", ARCHS)
def test_stages_from_the_names_alone(arch: str, tmp_path: Path) -> None:
    model = checkpoints.make_resnet(arch)
    weights = load_pkl(to_pkl(model, tmp_path).out)
    images = checkpoints.images()
    ours, theirs = from_the_names(weights, images), torchvision_stages(model, images)
    for stage in theirs:
        torch.testing.assert_close(ours[stage], theirs[stage], rtol=1e-5, atol=1e-5)


def test_names_are_those_of_mocos_recipe(tmp_path: Path) -> None:
    """Spelt out by hand for one name of every kind."""
    model = checkpoints.make_resnet("resnet50-w8")
    weights, state = load_pkl(to_pkl(model, tmp_path).out), model.state_dict()
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


def settings(arch: str, to: str) -> dict[str, Any]:
    """What is printed for ``arch``, parsed."""
    return yaml.safe_load(TARGETS[to].usage(BackboneMeta(arch, "", None)).settings)


@pytest.mark.parametrize(
    ("arch", "resnets"),
    [
        ("resnet18", {"DEPTH": 18, "RES2_OUT_CHANNELS": 64}),
        ("resnet34", {"DEPTH": 34, "RES2_OUT_CHANNELS": 64}),
        ("resnet50", {"DEPTH": 50, "RES2_OUT_CHANNELS": 256, "WIDTH_PER_GROUP": 64}),
        ("resnet152-w16", {"DEPTH": 152, "RES2_OUT_CHANNELS": 64, "WIDTH_PER_GROUP": 16}),
        ("wide_resnet101_2", {"DEPTH": 101, "RES2_OUT_CHANNELS": 256, "WIDTH_PER_GROUP": 128}),
        ("wide_resnet50_2-w8", {"DEPTH": 50, "RES2_OUT_CHANNELS": 32, "WIDTH_PER_GROUP": 16}),
        (
            "resnet50w2",
            {
                "DEPTH": 50,
                "RES2_OUT_CHANNELS": 512,
                "WIDTH_PER_GROUP": 128,
                "STEM_OUT_CHANNELS": 128,
            },
        ),
        ("resnet10", {"RES2_OUT_CHANNELS": 64}),
    ],
)
def test_settings_follow_from_the_architecture(arch: str, resnets: dict[str, int]) -> None:
    """Spelt out by hand; MoCo's Base-RCNN-C4-BN.yaml and detectron2's Base-RCNN-FPN.yaml for resnet50."""
    pixels = {"PIXEL_MEAN": [123.675, 116.28, 103.53], "PIXEL_STD": [58.395, 57.12, 57.375]}
    resnets = {"STRIDE_IN_1X1": False, **resnets}
    assert settings(arch, "detectron2-c4") == {
        "INPUT": {"FORMAT": "RGB"},
        "MODEL": {
            **pixels,
            "BACKBONE": {"NAME": "build_resnet_backbone"},
            "RESNETS": {**resnets, "OUT_FEATURES": ["res4"]},
            "ROI_HEADS": {"NAME": "Res5ROIHeads", "IN_FEATURES": ["res4"]},
        },
    }
    stages = ["res2", "res3", "res4", "res5"]
    assert settings(arch, "detectron2-fpn") == {
        "INPUT": {"FORMAT": "RGB"},
        "MODEL": {
            **pixels,
            "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
            "RESNETS": {**resnets, "OUT_FEATURES": stages},
            "FPN": {"IN_FEATURES": stages},
        },
    }


def test_what_detectron2_cannot_build_is_said_and_written_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    basic = "Res5ROIHeads builds bottlenecks, never basic blocks"
    for arch, to, said in (
        ("resnet10-w8", "detectron2-c4", ["its depths are 18, 34, 50, 101, 152", basic]),
        ("resnet18-w8", "detectron2-fpn", ["depth 18 is 64 wide"]),
        ("resnet18", "detectron2-c4", [basic]),
        ("resnet18", "detectron2-fpn", []),
        ("resnet50-w8", "detectron2-c4", []),
    ):
        out = tmp_path / f"{arch}-{to}.pkl"
        done = run(ConvertConfig(source=f"random:{arch}", out=str(out), to=to))
        assert load_pkl(str(out))
        printed = capsys.readouterr().out
        assert printed.endswith(f"\nsettings\n{done.settings}\n")
        assert printed.count("note     detectron2") == len(said)
        assert all(text in printed for text in said)


def configure(done: Conversion, norm: str = "BN") -> Any:
    """detectron2's defaults, and what the conversion printed merged into them."""
    from detectron2.config import CfgNode, get_cfg

    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(done.settings)))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.NORM = norm
    return cfg


@pytest.mark.detectron2
@torch.inference_mode()
@pytest.mark.parametrize(
    ("arch", "norm"),
    [
        ("resnet18", "BN"),
        ("resnet34", "BN"),
        ("resnet50", "BN"),
        ("resnet50-w16", "FrozenBN"),
        ("resnet101-w8", "BN"),
        ("wide_resnet50_2-w8", "BN"),
        ("resnet18", "FrozenBN"),
    ],
)
def test_real_backbone_loads_every_key(
    arch: str, norm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import build_resnet_backbone

    model = checkpoints.make_resnet(arch)
    done = to_pkl(model, tmp_path, "detectron2-fpn")
    backbone = build_resnet_backbone(configure(done, norm), ShapeSpec(channels=3)).eval()
    with caplog.at_level(logging.WARNING):
        loaded = DetectionCheckpointer(backbone).load(done.out)
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


def load_detector(done: Conversion, cfg: Any, caplog: pytest.LogCaptureFixture) -> tuple[Any, str]:
    """The detector of ``cfg`` with the file in it, and what the checkpointer did not find in the file."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    detector = build_model(cfg).eval()
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(detector).load(done.out)
    missing = caplog.text.partition("not found in the checkpoint")[2]
    assert "proposal_generator" in missing
    return detector, missing


@pytest.mark.detectron2
def test_real_c4_detector_loads_stem_to_res5(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """res5 is the RoI head's; only what no backbone has (RPN, predictors) may be missing."""
    model = checkpoints.make_resnet("resnet50-w16")
    done = to_pkl(model, tmp_path, "detectron2-c4")
    detector, missing = load_detector(done, configure(done), caplog)
    assert "not used by the model" not in caplog.text
    assert "backbone" not in missing
    assert "res5" not in missing
    for ours, theirs in (
        (model.conv1, detector.backbone.stem.conv1),
        (model.layer3[5].conv2, detector.backbone.res4[5].conv2),
        (model.layer4[0].downsample[0], detector.roi_heads.res5[0].shortcut),
        (model.layer4[2].bn3, detector.roi_heads.res5[2].conv3.norm),
    ):
        assert torch.equal(ours.weight, theirs.weight)


@pytest.mark.detectron2
@torch.inference_mode()
@pytest.mark.parametrize("arch", ["resnet50-w16", "resnet50w2-w8", "resnet18"])
def test_real_fpn_detector_loads_stem_to_res5(
    arch: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What no backbone has (lateral and output convolutions, heads) is all that may be missing."""
    model = checkpoints.make_resnet(arch)
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    source, out = tmp_path / "b.safetensors", tmp_path / "d2.pkl"
    save_backbone(source, model.state_dict(), BackboneMeta(arch, "SimSiam", 100, mean, std))
    done = run(ConvertConfig(source=str(source), out=str(out), to="detectron2-fpn"))
    cfg, levels = configure(done), ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.RPN.IN_FEATURES = levels
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = levels[:4]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1, 8
    detector, missing = load_detector(done, cfg, caplog)
    assert "not used by the model" not in caplog.text
    assert "will not be loaded" not in caplog.text
    assert "backbone.fpn_lateral" in missing
    assert "backbone.bottom_up" not in missing
    picture = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    images = detector.preprocess_image([{"image": picture}]).tensor
    normalised = picture / 255 - torch.tensor(mean).view(3, 1, 1)
    torch.testing.assert_close(images[0], normalised / torch.tensor(std).view(3, 1, 1))
    theirs, ours = detector.backbone.bottom_up(images), torchvision_stages(model, images)
    for stage in ours:
        torch.testing.assert_close(theirs[stage], ours[stage], rtol=1e-5, atol=1e-5)


@pytest.mark.detectron2
def test_real_detectron2_cannot_build_what_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import build_resnet_backbone

    done = to_pkl(checkpoints.make_resnet("resnet18-w8"), tmp_path)
    with pytest.raises(AssertionError, match="RES2_OUT_CHANNELS = 64"):
        build_resnet_backbone(configure(done), ShapeSpec(channels=3))
    done = to_pkl(checkpoints.make_resnet("resnet18"), tmp_path)
    _, missing = load_detector(done, configure(done), caplog)
    assert "roi_heads.res5.0.conv3" in missing
