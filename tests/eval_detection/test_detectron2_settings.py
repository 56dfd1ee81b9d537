"""The protocol in detectron2's words, and the networks it makes of them."""

from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch

from eval_detection import VERBS
from eval_detection.config import DetectConfig
from eval_detection.detectron2_engine.settings import depth_of, norm_of, settings
from siambench.backbone import Backbone, BackboneMeta
from siambench.checkpoints.names import to_detectron2
from siambench.checkpoints.pickles import write_detectron2
from siambench.config import make_config
from siambench.errors import UserError
from siambench.resnet import ARCHS, build_resnet

R50 = BackboneMeta(arch="resnet50", method="", epochs=0)
# facebookresearch/moco, detection/configs/: Base-RCNN-C4-BN.yaml, pascal_voc_R_50_C4_24k.yaml with
# ..._moco.yaml, coco_R_50_C4_2x.yaml with ..._moco.yaml.
MOCO = {
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "INPUT.FORMAT": "RGB",
    "INPUT.MIN_SIZE_TEST": 800,
    "TEST.PRECISE_BN.ENABLED": True,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.02,
}
OFFICIAL = {
    "voc0712-frcnn-c4-24k": MOCO
    | {
        "MODEL.MASK_ON": False,
        "MODEL.ROI_HEADS.NUM_CLASSES": 20,
        "INPUT.MIN_SIZE_TRAIN": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
        "SOLVER.STEPS": (18000, 22000),
        "SOLVER.MAX_ITER": 24000,
        "SOLVER.WARMUP_ITERS": 100,
    },
    "coco-mrcnn-c4-2x": MOCO
    | {
        "MODEL.MASK_ON": True,
        "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
        "SOLVER.STEPS": (120000, 160000),
        "SOLVER.MAX_ITER": 180000,
    },
    # detectron2, configs/Base-RCNN-FPN.yaml, with the norms, sizes and schedule of mmselfsup,
    # configs/benchmarks/detectron2/{Base-RCNN-FPN,coco_R_50_FPN_1x}.yaml.
    "coco-mrcnn-fpn-1x": {
        **{k: v for k, v in MOCO.items() if "NMS_TOPK" not in k},
        "MODEL.MASK_ON": True,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.NORM": "BN",
        "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
        "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
        "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
        "SOLVER.STEPS": (60000, 80000),
        "SOLVER.MAX_ITER": 90000,
    },
}
OURS = {  # names that we register, and what moco's files have for GPUs that share a batch
    "MODEL.BACKBONE.NAME",
    "MODEL.ROI_HEADS.NAME",
    "MODEL.RESNETS.NORM",
    "SOLVER.CHECKPOINT_PERIOD",
}


def preset(name: str, **changes) -> DetectConfig:
    values = {"backbone": "", "data": "", "preset": name, **changes}
    return make_config(VERBS["detect"], values)


def flat(tree, prefix: str = "") -> dict:
    found = {}
    for key, value in tree.items():
        inner = hasattr(value, "items")
        found |= flat(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return found


def cfg_of(tree):
    from detectron2.config import CfgNode, get_cfg

    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode(tree))
    return cfg


def build(config: DetectConfig, arch: str, classes: int = 5):
    from detectron2.modeling import build_model

    import eval_detection.detectron2_engine.heads  # noqa: F401

    meta = replace(R50, arch=arch)
    return build_model(cfg_of(settings(config, meta, classes, 1, device="cpu")))


def backbone_of(arch: str) -> Backbone:
    torch.manual_seed(1)
    resnet = build_resnet(arch)
    for module in resnet.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return Backbone(resnet.state_dict(), replace(R50, arch=arch), "made", "0" * 64)


@pytest.mark.parametrize("name", OFFICIAL)
def test_presets_are_the_official_configurations(name: str) -> None:
    classes = OFFICIAL[name].get("MODEL.ROI_HEADS.NUM_CLASSES", 80)
    found = flat(settings(preset(name), R50, classes, 1))
    assert {key: found[key] for key in OFFICIAL[name]} == OFFICIAL[name]


@pytest.mark.detectron2
@pytest.mark.parametrize("name", OFFICIAL)
def test_and_all_else_is_as_detectron2_has_it(name: str) -> None:
    from detectron2.config import get_cfg

    official = OFFICIAL[name]
    expected = flat(get_cfg()) | official
    classes = expected["MODEL.ROI_HEADS.NUM_CLASSES"]
    found = flat(cfg_of(settings(preset(name), R50, classes, 1)))
    assert found.keys() == expected.keys()
    assert {key for key in found if found[key] != expected[key]} <= OURS


@pytest.mark.parametrize(
    ("field", "value", "key", "expected"),
    [
        ("freeze_at", 4, "MODEL.BACKBONE.FREEZE_AT", 4),
        ("extra_norm", False, "MODEL.ROI_HEADS.NAME", "SiambenchRes5ROIHeads"),
        ("anchor_sizes", [8, 16], "MODEL.ANCHOR_GENERATOR.SIZES", [[8, 16]]),
        ("anchor_ratios", [1.0], "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]),
        ("rpn_batch_per_image", 9, "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 9),
        ("rpn_pre_nms_train", 9, "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 9),
        ("rpn_post_nms_train", 9, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 9),
        ("rpn_pre_nms_test", 9, "MODEL.RPN.PRE_NMS_TOPK_TEST", 9),
        ("rpn_post_nms_test", 9, "MODEL.RPN.POST_NMS_TOPK_TEST", 9),
        ("rois_per_image", 9, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 9),
        ("pooler_resolution", 4, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 4),
        ("score_threshold", 0.3, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3),
        ("nms_threshold", 0.3, "MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.3),
        ("detections_per_image", 9, "TEST.DETECTIONS_PER_IMAGE", 9),
        ("max_size_train", 99, "INPUT.MAX_SIZE_TRAIN", 99),
        ("min_size_test", 99, "INPUT.MIN_SIZE_TEST", 99),
        ("max_size_test", 99, "INPUT.MAX_SIZE_TEST", 99),
        ("flip", False, "INPUT.RANDOM_FLIP", "none"),
        ("momentum", 0.5, "SOLVER.MOMENTUM", 0.5),
        ("weight_decay", 0.5, "SOLVER.WEIGHT_DECAY", 0.5),
        ("checkpoint_every", 9, "SOLVER.CHECKPOINT_PERIOD", 9),
        ("bf16", True, "SOLVER.AMP.ENABLED", True),
        ("precise_bn_iters", 0, "TEST.PRECISE_BN.ENABLED", False),
        ("precise_bn_iters", 9, "TEST.PRECISE_BN.NUM_ITER", 9),
        ("steps", [24000, 10, 10], "SOLVER.STEPS", (10,)),
        ("batch_size", 8, "SOLVER.STEPS", (36000, 44000)),
        ("batch_size", 8, "SOLVER.MAX_ITER", 48000),
        ("batch_size", 8, "SOLVER.BASE_LR", 0.01),
        ("lr", 0.04, "SOLVER.BASE_LR", 0.04),
        ("warmup_iters", 9, "SOLVER.WARMUP_ITERS", 9),
    ],
)
def test_every_field_reaches_detectron2(field, value, key, expected) -> None:
    plain, changed = (
        flat(settings(preset("voc0712-frcnn-c4-24k", **more), R50, 20, 1))
        for more in ({}, {field: value})
    )
    assert changed[key] == expected
    assert plain[key] != expected


def test_norm_and_depth() -> None:
    assert [norm_of(n, d) for n, d in ((1, "cuda:0"), (1, "cpu"), (8, "cuda:3"), (2, "cpu"))] == [
        *("BN", "BN"),
        *("SyncBN", "naiveSyncBN"),
    ]
    known = {name: depth_of(spec) for name, spec in ARCHS.items()}
    assert all(str(depth) in name for name, depth in known.items())
    for arch, expected in (
        ("resnet18-w32", {"RES2_OUT_CHANNELS": 32, "STEM_OUT_CHANNELS": 64, "DEPTH": 18}),
        ("wide_resnet50_2", {"RES2_OUT_CHANNELS": 256, "WIDTH_PER_GROUP": 128, "DEPTH": 50}),
        (
            "resnet50w2",
            {"RES2_OUT_CHANNELS": 512, "WIDTH_PER_GROUP": 128, "STEM_OUT_CHANNELS": 128},
        ),
    ):
        config = preset("voc0712-frcnn-c4-24k")
        found = settings(config, replace(R50, arch=arch), 20, 1)["MODEL"]["RESNETS"]
        assert found | expected == found


STOCK = ["resnet50-w32", "resnet101-w8", "wide_resnet50_2-w8", "resnet50w2-w16"]


@pytest.mark.detectron2
@pytest.mark.parametrize(
    ("arch", "network"),
    [(a, n) for a in STOCK for n in ("c4", "fpn")] + [("resnet18", "fpn"), ("resnet34", "fpn")],
)
def test_what_detectron2_can_build_is_the_same_from_both(arch: str, network: str) -> None:
    """Names, shapes, and with the same seed the same initial weights of the backbone."""
    from detectron2.modeling import build_model

    import eval_detection.detectron2_engine.heads  # noqa: F401

    fpn = network == "fpn"
    name = "coco-mrcnn-fpn-1x" if fpn else "coco-mrcnn-c4-1x"
    config = preset(name) if fpn else preset(name, extra_norm=False)
    cfg = cfg_of(settings(config, replace(R50, arch=arch), 5, 1, device="cpu"))
    stock = cfg.clone()
    stock.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone" if fpn else "build_resnet_backbone"
    stock.MODEL.ROI_HEADS.NAME = "StandardROIHeads" if fpn else "Res5ROIHeads"
    states = []
    for one in (cfg, stock):
        torch.manual_seed(0)
        states.append(build_model(one).state_dict())
    ours, theirs = states
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    for key, tensor in ours.items():
        if key.startswith("backbone."):
            torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=0)
    for key in (k for k in ours if k.startswith("roi_heads.res5") and ours[k].ndim == 4):
        torch.testing.assert_close(ours[key].std(), theirs[key].std(), rtol=0.2, atol=1e-6)


@pytest.mark.detectron2
@pytest.mark.parametrize("network", ["c4", "fpn"])
@pytest.mark.parametrize("arch", [f"{name}-w8" for name in ARCHS])
def test_every_architecture_computes_what_torchvisions_does(arch: str, network: str) -> None:
    from eval_detection.detectron2_engine.weights import load_backbone

    backbone = backbone_of(arch)
    name = "coco-mrcnn-fpn-1x" if network == "fpn" else "coco-mrcnn-c4-1x"
    model = build(preset(name, extra_norm=False), arch).eval()
    load_backbone(model, backbone)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        *_, res4, res5 = backbone.stages(image)
        if network == "fpn":
            found = model.backbone.bottom_up(image)
        else:
            found = model.backbone(image)
            found["res5"] = model.roi_heads.res5(found["res4"])
    for stage, expected in (("res4", res4), ("res5", res5)):
        torch.testing.assert_close(found[stage], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.detectron2
@pytest.mark.parametrize("network", ["c4", "fpn"])
def test_weights_from_memory_and_from_the_converted_file_are_the_same(
    network: str, tmp_path: Path
) -> None:
    from detectron2.checkpoint import DetectionCheckpointer

    from eval_detection.detectron2_engine.weights import load_backbone

    backbone = backbone_of("resnet50-w8")
    name = "coco-mrcnn-fpn-1x" if network == "fpn" else "coco-mrcnn-c4-1x"
    config = preset(name)
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(build(config, "resnet50-w8"))
    before = {k: v.clone() for k, v in models[0].state_dict().items()}
    load_backbone(models[0], backbone)
    with open(tmp_path / "made.pkl", "wb") as handle:
        write_detectron2(handle, to_detectron2(backbone.resnet.state_dict()))
    DetectionCheckpointer(models[1]).load(str(tmp_path / "made.pkl"))
    one, other = (m.state_dict() for m in models)
    changed = {k for k, v in one.items() if not torch.equal(v, before[k])}
    assert len(changed) > 100
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, other[key], rtol=0, atol=0)


@pytest.mark.detectron2
@pytest.mark.parametrize("freeze_at", [0, 4])
@pytest.mark.parametrize("network", ["c4", "fpn"])
def test_a_key_that_does_not_match_stops_the_run(
    network: str, freeze_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import eval_detection.detectron2_engine.weights as weights

    backbone = backbone_of("resnet10-w8")
    name = "coco-mrcnn-fpn-1x" if network == "fpn" else "coco-mrcnn-c4-1x"
    model = build(preset(name, freeze_at=freeze_at), "resnet10-w8")
    weights.load_backbone(model, backbone)  # whole, it goes in
    whole = to_detectron2(backbone.resnet.state_dict())
    for wrong, message in (
        ({k: v for k, v in whole.items() if k != "res5.0.conv2.norm.bias"}, "res5.0.conv2.norm.bi"),
        (
            {k: v for k, v in whole.items() if k != "res2.0.conv1.weight"},
            "res2.0.conv1.weight is n",
        ),
        (
            whole | {"res4.7.conv1.weight": np.zeros((1, 1, 3, 3), "f4")},
            "res4.7.conv1.weight has no",
        ),
        (
            whole | {"stem.conv1.weight": np.zeros((8, 3, 7, 7), "f4")},
            "stem.conv1.weight has no pl",
        ),
    ):
        monkeypatch.setattr(weights, "to_detectron2", lambda _, wrong=wrong: wrong)
        with pytest.raises(UserError, match=message):
            weights.load_backbone(model, backbone)


@pytest.mark.detectron2
@pytest.mark.parametrize(
    ("network", "freeze_at", "trained"),
    [
        ("c4", 0, {"stem", "res2", "res3", "res4", "res5"}),
        ("c4", 2, {"res3", "res4", "res5"}),
        ("c4", 5, {"res5"}),
        ("fpn", 4, {"res5"}),
        ("fpn", 5, set()),
    ],
)
def test_freezing_leaves_the_first_stages_out(network, freeze_at, trained) -> None:
    from detectron2.layers import FrozenBatchNorm2d

    name = "coco-mrcnn-fpn-1x" if network == "fpn" else "coco-mrcnn-c4-1x"
    model = build(preset(name, freeze_at=freeze_at), "resnet10-w8")
    stages = {}
    for name, module in model.named_modules():
        for stage in ("stem", "res2", "res3", "res4", "res5"):
            if name.endswith(f".{stage}"):
                stages[stage] = module
    for stage, module in stages.items():
        assert all(p.requires_grad for p in module.parameters()) == (stage in trained)
        frozen = [isinstance(m, FrozenBatchNorm2d) for m in module.modules()]
        assert any(frozen) == (stage not in trained)
    assert len(stages) == 5
    others = reduce(set.union, ({id(p) for p in m.parameters()} for m in stages.values()))
    assert all(p.requires_grad for p in model.parameters() if id(p) not in others)
