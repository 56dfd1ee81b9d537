"""Networks of detectron2's own parts for every ResNet that siambench knows, under names of ours.

detectron2's builders know five depths, basic blocks at one width only, and no basic blocks in a C4
head. These have its names, shapes and initialisation where it can build the network itself. Importing
this file registers them; a configuration that names them (detectron2.yaml) then builds as any other.
"""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.backbone import FPN, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    CNNBlockBase,
)
from detectron2.modeling.roi_heads import Res5ROIHeads
from torch import nn
from torchvision.models import resnet as torchvision_resnet

from eval_detection.detectron2_engine.settings import depth_of
from siambench.resnet import ARCHS

_ARCHS = {depth_of(spec): spec for spec in ARCHS.values()}


def stage(cfg: CfgNode, index: int) -> list[CNNBlockBase]:
    """The blocks of res2 (``index`` 0) to res5 (3), their widths as cfg.MODEL.RESNETS says."""
    resnets = cfg.MODEL.RESNETS
    spec = _ARCHS[resnets.DEPTH]
    out_channels = resnets.RES2_OUT_CHANNELS << index
    count = spec.layers[index]
    common = {
        "in_channels": out_channels // 2 if index else resnets.STEM_OUT_CHANNELS,
        "out_channels": out_channels,
        "stride_per_block": [2 if index else 1] + [1] * (count - 1),
        "norm": resnets.NORM,
    }
    if spec.block is torchvision_resnet.BasicBlock:
        return ResNet.make_stage(BasicBlock, count, **common)
    return ResNet.make_stage(
        BottleneckBlock,
        count,
        bottleneck_channels=resnets.WIDTH_PER_GROUP << index,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
        **common,
    )


@BACKBONE_REGISTRY.register()
def SiambenchResNet(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """The ResNet up to the last of OUT_FEATURES, its first FREEZE_AT stages frozen."""
    resnets = cfg.MODEL.RESNETS
    return ResNet(
        BasicStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, resnets.NORM),
        [stage(cfg, index) for index in range(4)],
        out_features=resnets.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


@BACKBONE_REGISTRY.register()
def SiambenchFPN(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The feature pyramid p2 to p6 on top of it."""
    return FPN(
        SiambenchResNet(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@ROI_HEADS_REGISTRY.register()
class SiambenchRes5ROIHeads(Res5ROIHeads):
    """A C4 head whose res5 may also be of basic blocks."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """detectron2's parts, with the res5 of the architecture in place of its bottlenecks."""
        return {**super().from_config(cfg, input_shape), "res5": nn.Sequential(*stage(cfg, 3))}


@ROI_HEADS_REGISTRY.register()
class SiambenchRes5ROIHeadsExtraNorm(SiambenchRes5ROIHeads):
    """With a batch norm after res5, as in MoCo's transfer (facebookresearch/moco, train_net.py)."""

    @configurable
    def __init__(self, *, norm: str, **parts: Any) -> None:
        super().__init__(**parts)
        self.res5.add_module("norm", get_norm(norm, self.res5[-1].out_channels))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """As above, and which norm it is."""
        return {**super().from_config(cfg, input_shape), "norm": cfg.MODEL.RESNETS.NORM}
