"""What detectron2 is told: the protocol under its own names (its config/defaults.py)."""

from typing import Any

from torchvision.models.resnet import BasicBlock

from eval_detection.config import DetectConfig
from siambench.backbone import BackboneMeta
from siambench.resnet import Arch, parse_arch

_STAGES = ["res2", "res3", "res4", "res5"]
_LEVELS = ["p2", "p3", "p4", "p5", "p6"]


def settings(
    config: DetectConfig,
    meta: BackboneMeta,
    classes: int,
    processes: int,
    *,
    device: str = "cuda",
    mask_format: str = "polygon",
) -> dict[str, Any]:
    """The tree that is merged into detectron2's defaults; what it leaves out is as they say.

    Args:
        config: with one learning rate.
        meta: of the backbone: its architecture and the statistics of its input.
        classes: number of foreground classes.
        processes: that share a batch.
        device: of this process.
        mask_format: of the training data: polygon or bitmask.
    """
    schedule = config.schedule()
    norm = norm_of(processes, device)
    spec, planes = parse_arch(meta.arch)
    resnets: dict[str, Any] = {
        "DEPTH": depth_of(spec),
        "NORM": norm,
        "STRIDE_IN_1X1": False,  # torchvision's stride is in the 3×3 convolution
        "STEM_OUT_CHANNELS": spec.stem,
        "RES2_OUT_CHANNELS": planes * spec.block.expansion,
        "WIDTH_PER_GROUP": planes * spec.width_per_group // 64,
    }
    model: dict[str, Any] = {
        "DEVICE": device,
        "MASK_ON": config.mask,
        "PIXEL_MEAN": [round(255 * x, 6) for x in meta.mean],
        "PIXEL_STD": [round(255 * x, 6) for x in meta.std],
        "RESNETS": resnets,
        "RPN": {
            "BATCH_SIZE_PER_IMAGE": config.rpn_batch_per_image,
            "PRE_NMS_TOPK_TRAIN": config.rpn_pre_nms_train,
            "POST_NMS_TOPK_TRAIN": config.rpn_post_nms_train,
            "PRE_NMS_TOPK_TEST": config.rpn_pre_nms_test,
            "POST_NMS_TOPK_TEST": config.rpn_post_nms_test,
        },
        "ROI_HEADS": {
            "NUM_CLASSES": classes,
            "BATCH_SIZE_PER_IMAGE": config.rois_per_image,
            "SCORE_THRESH_TEST": config.score_threshold,
            "NMS_THRESH_TEST": config.nms_threshold,
        },
        "ROI_BOX_HEAD": {"POOLER_RESOLUTION": config.pooler_resolution},
        "ANCHOR_GENERATOR": {"ASPECT_RATIOS": [list(config.anchor_ratios)]},
    }
    _merge(model, _fpn(config, norm) if config.network == "fpn" else _c4(config))
    model["BACKBONE"]["FREEZE_AT"] = config.freeze_at
    return {
        "VERSION": 2,
        "MODEL": model,
        "INPUT": {
            "FORMAT": "RGB",
            "MASK_FORMAT": mask_format,
            "MIN_SIZE_TRAIN": tuple(config.min_size_train),
            "MAX_SIZE_TRAIN": config.max_size_train,
            "MIN_SIZE_TEST": config.min_size_test,
            "MAX_SIZE_TEST": config.max_size_test,
            "RANDOM_FLIP": "horizontal" if config.flip else "none",
        },
        "SOLVER": {
            "IMS_PER_BATCH": config.batch_size,
            "REFERENCE_WORLD_SIZE": 0,  # the schedule is scaled already
            "BASE_LR": schedule.lr,
            "MOMENTUM": config.momentum,
            "WEIGHT_DECAY": config.weight_decay,
            "MAX_ITER": schedule.max_iter,
            # Its scheduler takes rising steps within the run; others would change nothing.
            "STEPS": tuple(sorted({s for s in schedule.steps if 0 < s < schedule.max_iter})),
            "WARMUP_ITERS": schedule.warmup_iters,
            "CHECKPOINT_PERIOD": config.checkpoint_every,
            "AMP": {"ENABLED": config.bf16},
        },
        "TEST": {
            "DETECTIONS_PER_IMAGE": config.detections_per_image,
            "PRECISE_BN": {
                "ENABLED": config.precise_bn_iters > 0,
                "NUM_ITER": config.precise_bn_iters,
            },
        },
    }


def depth_of(spec: Arch) -> int:
    """The number in a ResNet's name: its convolutions on the longest path, and the classifier."""
    return (2 if spec.block is BasicBlock else 3) * sum(spec.layers) + 2


def norm_of(processes: int, device: str) -> str:
    """Batch norm over all processes. torch's own has no CPU version, detectron2's (MoCo's) has."""
    if processes == 1:
        return "BN"
    return "naiveSyncBN" if device == "cpu" else "SyncBN"


def _c4(config: DetectConfig) -> dict[str, Any]:
    """facebookresearch/moco, detection/configs/Base-RCNN-C4-BN.yaml, on detectron2's defaults."""
    return {
        "BACKBONE": {"NAME": "SiambenchResNet"},
        "RESNETS": {"OUT_FEATURES": ["res4"]},
        "ANCHOR_GENERATOR": {"SIZES": [list(config.anchor_sizes)]},
        "RPN": {"IN_FEATURES": ["res4"]},
        "ROI_HEADS": {
            "NAME": "SiambenchRes5ROIHeads" + ("ExtraNorm" if config.extra_norm else ""),
            "IN_FEATURES": ["res4"],
        },
    }


def _fpn(config: DetectConfig, norm: str) -> dict[str, Any]:
    """detectron2, configs/Base-RCNN-FPN.yaml; the norm is of mmselfsup's file of that name."""
    return {
        "BACKBONE": {"NAME": "SiambenchFPN"},
        "RESNETS": {"OUT_FEATURES": _STAGES},
        "FPN": {"IN_FEATURES": _STAGES, "NORM": norm if config.extra_norm else ""},
        "ANCHOR_GENERATOR": {"SIZES": [[size] for size in config.anchor_sizes]},
        "RPN": {"IN_FEATURES": _LEVELS},
        "ROI_HEADS": {"NAME": "StandardROIHeads", "IN_FEATURES": _LEVELS[:4]},
        "ROI_BOX_HEAD": {"NAME": "FastRCNNConvFCHead", "NUM_FC": 2},
        "ROI_MASK_HEAD": {"NUM_CONV": 4, "POOLER_RESOLUTION": 14},
    }


def _merge(tree: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        tree.setdefault(key, {}).update(value)
