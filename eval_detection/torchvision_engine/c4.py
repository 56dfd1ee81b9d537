"""C4: a ResNet cut after layer3, with layer4 as the head of every region.

The head is detectron2's Res5ROIHeads (modeling/roi_heads/roi_heads.py) with the batch norm after res5
that MoCo's transfer adds (detection/train_net.py).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.resnet import ResNet
from torchvision.ops import roi_align

from eval_detection.config import DetectConfig
from eval_detection.torchvision_engine.detector import Detector
from eval_detection.torchvision_engine.mask_head import mask_head
from eval_detection.torchvision_engine.rpn import RPN
from eval_detection.torchvision_engine.stages import Stages, channels

STRIDE = 16  # of layer3


def c4(resnet: ResNet, classes: int, config: DetectConfig) -> Detector:
    """The untrained detector; images are padded to each other only."""
    body = C4Body(resnet, config)
    rpn = RPN(body.stages.channels[-1], [STRIDE], [config.anchor_sizes], config)
    return Detector(body, rpn, C4Head(resnet, classes, config), classes, config, divisible=1)


class C4Body(nn.Module):
    """Stem to layer3."""

    def __init__(self, resnet: ResNet, config: DetectConfig) -> None:
        super().__init__()
        self.stages = Stages(resnet, 3, config.freeze_at)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, 3, H, W) to the map of stride 16."""
        return self.stages(images)[-1:]


class C4Head(nn.Module):
    """layer4 on every region; its output is averaged for the box predictor, and is the mask head's.

    Attributes:
        channels: of a region's vector.
    """

    def __init__(self, resnet: ResNet, classes: int, config: DetectConfig) -> None:
        super().__init__()
        self.side, self.channels = config.pooler_resolution, channels(resnet.layer4)
        self.layer4 = resnet.layer4
        self.norm = nn.BatchNorm2d(self.channels) if config.extra_norm else nn.Identity()
        self.mask_head = mask_head(self.channels, classes, 0) if config.mask else None

    def blocks(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """layer4 of every box of every image: (sum of boxes, C, side / 2, side / 2)."""
        # sampling_ratio 0 lets RoIAlign choose; aligned=True is what detectron2 calls ROIAlignV2.
        pooled = roi_align(maps[0], list(boxes), self.side, 1 / STRIDE, 0, True)
        return self.norm(self.layer4(pooled.contiguous(memory_format=torch.channels_last)))

    def forward(
        self, maps: Sequence[Tensor], boxes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """A vector (R, C) for each box, and what :meth:`masks` may go on from."""
        blocks = self.blocks(maps, boxes)
        return blocks.mean(dim=(2, 3)), blocks

    def masks(
        self, maps: Sequence[Tensor], boxes: Sequence[Tensor], blocks: Tensor | None
    ) -> Tensor:
        """Mask logits (R, classes, S, S) inside each box, from its blocks where they are known."""
        assert self.mask_head is not None
        return self.mask_head(self.blocks(maps, boxes) if blocks is None else blocks)
