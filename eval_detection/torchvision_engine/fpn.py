"""FPN: a pyramid on layer1 to layer4, two fully connected layers and four convolutions a region.

detectron2's build_resnet_fpn_backbone (modeling/backbone/fpn.py) and StandardROIHeads with
FastRCNNConvFCHead and MaskRCNNConvUpsampleHead (modeling/roi_heads/), as configs/Base-RCNN-FPN.yaml
has them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import ResNet
from torchvision.ops import roi_align

from eval_detection.config import DetectConfig
from eval_detection.torchvision_engine.detector import Detector
from eval_detection.torchvision_engine.mask_head import mask_head
from eval_detection.torchvision_engine.rpn import RPN
from eval_detection.torchvision_engine.stages import Stages

STRIDES = [4, 8, 16, 32, 64]  # of p2 to p6
_POOLED = 4  # regions are cut from p2 to p5
_CHANNELS = 256  # detectron2, MODEL.FPN.OUT_CHANNELS
_HIDDEN = 1024  # MODEL.ROI_BOX_HEAD.FC_DIM
_MASK_SIDE = 14  # MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION of Base-RCNN-FPN.yaml
_CANONICAL_SIZE, _CANONICAL_LEVEL = 224, 4  # of the FPN paper, equation 1


def fpn(resnet: ResNet, classes: int, config: DetectConfig) -> Detector:
    """The untrained detector; images are padded to multiples of layer4's stride."""
    rpn = RPN(_CHANNELS, STRIDES, [[size] for size in config.anchor_sizes], config)
    head = FPNHead(classes, config)
    return Detector(Pyramid(resnet, config), rpn, head, classes, config, divisible=32)


class Pyramid(nn.Module):
    """p2 to p6: each layer's output, brought to 256 channels, plus the level above it, enlarged."""

    def __init__(self, resnet: ResNet, config: DetectConfig) -> None:
        super().__init__()
        self.stages = Stages(resnet, 4, config.freeze_at)
        self.lateral, self.output = nn.ModuleList(), nn.ModuleList()
        for into in self.stages.channels:
            self.lateral.append(ConvNorm(into, 1, config.extra_norm))
            self.output.append(ConvNorm(_CHANNELS, 3, config.extra_norm))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, 3, H, W), H and W multiples of 32, to five maps, finest first."""
        stages = self.stages(images)
        inner = self.lateral[-1](stages[-1])
        maps = [self.output[-1](inner)]
        for i in range(len(stages) - 2, -1, -1):
            above = F.interpolate(inner, scale_factor=2.0, mode="nearest")
            inner = self.lateral[i](stages[i]) + above
            maps.insert(0, self.output[i](inner))
        return [*maps, F.max_pool2d(maps[-1], 1, 2)]


class ConvNorm(nn.Conv2d):
    """A convolution to 256 channels of the same size, with a batch norm or with a bias."""

    def __init__(self, into: int, kernel: int, norm: bool) -> None:
        super().__init__(into, _CHANNELS, kernel, padding=kernel // 2, bias=not norm)
        self.norm = nn.BatchNorm2d(_CHANNELS) if norm else nn.Identity()
        _xavier(self)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, 256, H, W)."""
        return self.norm(super().forward(input))


class FPNHead(nn.Module):
    """Every region is cut from the level of its size, once for its vector and once for its mask.

    Attributes:
        channels: of a region's vector.
    """

    channels = _HIDDEN

    def __init__(self, classes: int, config: DetectConfig) -> None:
        super().__init__()
        self.side = config.pooler_resolution
        self.fc1 = nn.Linear(_CHANNELS * self.side**2, _HIDDEN)
        self.fc2 = nn.Linear(_HIDDEN, _HIDDEN)
        _xavier(self.fc1)
        _xavier(self.fc2)
        self.mask_head = mask_head(_CHANNELS, classes, 4) if config.mask else None

    def forward(
        self, maps: Sequence[Tensor], boxes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """A vector (R, 1024) for each box; :meth:`masks` has nothing to go on from."""
        vectors = pool(maps, boxes, self.side).flatten(1)
        return F.relu(self.fc2(F.relu(self.fc1(vectors), inplace=True)), inplace=True), None

    def masks(
        self, maps: Sequence[Tensor], boxes: Sequence[Tensor], blocks: Tensor | None
    ) -> Tensor:
        """Mask logits (R, classes, 28, 28) inside each box."""
        assert self.mask_head is not None
        pooled = pool(maps, boxes, _MASK_SIDE)
        return self.mask_head(pooled.contiguous(memory_format=torch.channels_last))


def levels_of(boxes: Tensor) -> Tensor:
    """The map that each box (R, 4) is cut from: 0 to 3, for p2 to p5 (the FPN paper, equation 1)."""
    size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = (_CANONICAL_LEVEL + torch.log2(size / _CANONICAL_SIZE + 1e-8)).floor()
    return level.clamp(2, 1 + _POOLED).long() - 2


def pool(maps: Sequence[Tensor], boxes: Sequence[Tensor], side: int) -> Tensor:
    """RoIAlign of every box of every image: (sum of boxes, 256, side, side); the host waits once."""
    rois = torch.cat([F.pad(b, (1, 0), value=float(i)) for i, b in enumerate(boxes)])
    level = levels_of(rois[:, 1:])
    order = level.argsort(stable=True)
    counts = (level == torch.arange(_POOLED, device=level.device)[:, None]).sum(dim=1).tolist()
    parts = [
        # sampling_ratio 0 lets RoIAlign choose; aligned=True is what detectron2 calls ROIAlignV2.
        roi_align(out, part, side, 1 / stride, 0, True)
        for out, part, stride in zip(maps, rois[order].split(counts), STRIDES, strict=False)
    ]
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return torch.cat(parts)[back]


def _xavier(layer: nn.Conv2d | nn.Linear) -> None:
    """fvcore's c2_xavier_fill: uniform, by the inputs alone."""
    nn.init.kaiming_uniform_(layer.weight, a=1)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
