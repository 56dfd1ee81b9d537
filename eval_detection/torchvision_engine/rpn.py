"""The region proposal network on one map of stride 16, with detectron2's rules."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms

from eval_detection.config import DetectConfig
from eval_detection.masks import Mask
from eval_detection.torchvision_engine.boxes import (
    Weights,
    cell_anchors,
    clip,
    decode,
    encode,
    grid_anchors,
    match,
    nonempty,
    sample,
)

STRIDE = 16  # of layer3
_WEIGHTS: Weights = (1.0, 1.0, 1.0, 1.0)  # detectron2, MODEL.RPN.BBOX_REG_WEIGHTS
_LOW, _HIGH = 0.3, 0.7  # IOU_THRESHOLDS
_FRACTION = 0.5  # POSITIVE_FRACTION
_NMS = 0.7  # NMS_THRESH


@dataclass
class Target:
    """Ground truth of one image as the network sees it.

    Attributes:
        boxes: (G, 4) float32, px of the resized image.
        labels: (G,) int64, from 0.
        masks: one per box, or empty when masks are not trained.
    """

    boxes: Tensor
    labels: Tensor
    masks: list[Mask]


class RPN(nn.Module):
    """Objectness and box deltas for the anchors at every place of the layer3 map."""

    def __init__(self, channels: int, config: DetectConfig) -> None:
        super().__init__()
        self.config = config
        cells = cell_anchors(config.anchor_sizes, config.anchor_ratios)
        self.register_buffer("cells", cells, persistent=False)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, len(cells), 1)
        self.deltas = nn.Conv2d(channels, 4 * len(cells), 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From (N, C, H, W): anchors (R, 4), logits (N, R), deltas (N, R, 4); R = H·W·anchors."""
        hidden = F.relu(self.conv(features))
        logits = self.objectness(hidden).permute(0, 2, 3, 1).flatten(1).float()
        deltas = self.deltas(hidden).permute(0, 2, 3, 1).reshape(len(features), -1, 4).float()
        anchors = grid_anchors(self.cells, *features.shape[2:], STRIDE)
        return anchors, logits, deltas

    def losses(
        self,
        anchors: Tensor,
        logits: Tensor,
        deltas: Tensor,
        targets: Sequence[Target],
        generators: Sequence[torch.Generator],
    ) -> dict[str, Tensor]:
        """Cross-entropy and L1 over sampled anchors, both over the number of anchors asked for."""
        asked = self.config.rpn_batch_per_image
        zero = logits.sum() * 0
        cls, box = [zero], [zero]
        for row, offset, target, generator in zip(logits, deltas, targets, generators, strict=True):
            index, label = match(target.boxes, anchors, _LOW, _HIGH, keep_best=True)
            pos, neg = sample(label == 1, label == 0, asked, _FRACTION, generator)
            cls.append(F.softplus(-row[pos]).sum() + F.softplus(row[neg]).sum())
            if len(pos):
                wanted = encode(target.boxes[index[pos]], anchors[pos], _WEIGHTS)
                box.append((offset[pos] - wanted).abs().sum())
        count = asked * len(targets)
        return {"rpn_cls": sum(cls) / count, "rpn_box": sum(box) / count}

    @torch.no_grad()
    def proposals(
        self, anchors: Tensor, logits: Tensor, deltas: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """The best boxes of each image after non-maximum suppression, best first: N × (P, 4)."""
        config = self.config
        before = config.rpn_pre_nms_train if self.training else config.rpn_pre_nms_test
        after = config.rpn_post_nms_train if self.training else config.rpn_post_nms_test
        scores, top = logits.topk(min(before, logits.shape[1]), dim=1)
        found = []
        for i, (height, width) in enumerate(sizes):
            boxes = clip(decode(deltas[i, top[i]], anchors[top[i]], _WEIGHTS), height, width)
            good = nonempty(boxes)
            boxes, score = boxes[good], scores[i][good]
            found.append(boxes[nms(boxes, score, _NMS)[:after]])
        return found
