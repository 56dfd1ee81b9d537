"""The region proposal network on one map or on a pyramid of them, with detectron2's rules."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from eval_detection.config import DetectConfig
from eval_detection.masks import Mask
from eval_detection.torchvision_engine.boxes import (
    Weights,
    cell_anchors,
    decode,
    encode,
    grid_anchors,
    match,
    nonempty,
    sample,
    within,
)

_WEIGHTS: Weights = (1.0, 1.0)  # detectron2, MODEL.RPN.BBOX_REG_WEIGHTS
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


@dataclass
class Dense:
    """What the network says of all R anchors of all levels, finest level first.

    Attributes:
        anchors: (R, 4).
        logits: (N, R), of holding an object.
        deltas: (N, R, 4), from the anchor to the object.
        levels: anchors of each level; their sum is R.
    """

    anchors: Tensor
    logits: Tensor
    deltas: Tensor
    levels: list[int]


class RPN(nn.Module):
    """Objectness and box deltas for the anchors at every place of every map.

    Args:
        channels: of each map.
        strides: of each map.
        sizes: of the anchors of each map, equally many.
        config: anchor ratios, samplers, proposals to keep.
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        sizes: Sequence[Sequence[int]],
        config: DetectConfig,
    ) -> None:
        super().__init__()
        self.strides, self.config = strides, config
        cells = torch.stack([cell_anchors(level, config.anchor_ratios) for level in sizes])
        self.register_buffer("cells", cells, persistent=False)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness_logits = nn.Conv2d(channels, cells.shape[1], 1)
        self.anchor_deltas = nn.Conv2d(channels, 4 * cells.shape[1], 1)
        for layer in (self.conv, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> Dense:
        """From a map (N, C, H, W) for each stride."""
        anchors, logits, deltas = [], [], []
        for out, cells, stride in zip(maps, self.cells, self.strides, strict=True):
            hidden = F.relu(self.conv(out), inplace=True)
            anchors.append(grid_anchors(cells, *out.shape[2:], stride))
            logits.append(self.objectness_logits(hidden).permute(0, 2, 3, 1).flatten(1))
            rows = self.anchor_deltas(hidden).permute(0, 2, 3, 1)
            deltas.append(rows.reshape(len(out), -1, 4))
        return Dense(
            torch.cat(anchors),
            torch.cat(logits, dim=1).float(),
            torch.cat(deltas, dim=1).float(),
            [len(level) for level in anchors],
        )

    def losses(
        self, dense: Dense, targets: Sequence[Target], generators: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        """Cross-entropy and L1 over sampled anchors, both over the number of anchors asked for."""
        asked, anchors = self.config.rpn_batch_per_image, dense.anchors
        with torch.no_grad():
            index, label = (
                torch.stack(parts)
                for parts in zip(
                    *(match(t.boxes, anchors, _LOW, _HIGH, keep_best=True) for t in targets),
                    strict=True,
                )
            )
            keys = [torch.rand(len(anchors), generator=g, device=g.device) for g in generators]
            drawn = sample(label, torch.stack(keys), asked, _FRACTION)
            positive = within(drawn.positive, drawn.positives)
            negative = within(drawn.negative, drawn.negatives)
            place = anchors[drawn.positive]
            truth = [
                target.boxes[rows] if len(target.boxes) else anchors[: len(rows)]
                for target, rows in zip(targets, index.gather(1, drawn.positive), strict=True)
            ]
            wanted = encode(torch.stack(truth), place, _WEIGHTS)
        cls = F.softplus(-dense.logits.gather(1, drawn.positive)).where(positive, 0).sum()
        cls = cls + F.softplus(dense.logits.gather(1, drawn.negative)).where(negative, 0).sum()
        rows = drawn.positive[..., None].expand(-1, -1, 4)
        error = (dense.deltas.gather(1, rows) - wanted).abs()
        count = asked * len(targets)
        return {
            "rpn_cls": cls / count,
            "rpn_box": error.where(positive[..., None], 0).sum() / count,
        }

    @torch.no_grad()
    def proposals(self, dense: Dense, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """The best boxes of each image, best first: N × (P, 4), px.

        The best of each level, then non-maximum suppression within it, then the best of all levels.

        Args:
            sizes: height and width of each image without its padding.
        """
        config = self.config
        before = config.rpn_pre_nms_train if self.training else config.rpn_pre_nms_test
        after = config.rpn_post_nms_train if self.training else config.rpn_post_nms_test
        tops, start = [], 0
        for logits in dense.logits.split(dense.levels, dim=1):
            tops.append(logits.topk(min(before, logits.shape[1]), dim=1).indices + start)
            start += logits.shape[1]
        top = torch.cat(tops, dim=1)
        scores = dense.logits.gather(1, top)
        deltas = dense.deltas.gather(1, top[..., None].expand(-1, -1, 4))
        boxes = decode(deltas, dense.anchors[top], _WEIGHTS)
        limits = torch.tensor([[w, h, w, h] for h, w in sizes], dtype=boxes.dtype)
        limits = limits.to(boxes.device, non_blocking=True)
        boxes = torch.minimum(boxes.clamp(min=0), limits[:, None])
        good = nonempty(boxes)
        level = torch.cat([torch.full_like(t[0], i) for i, t in enumerate(tops)])
        counts = good.sum(dim=1).tolist()  # the host waits, once a batch
        order = (~good).byte().argsort(dim=1, stable=True)  # those with an inside first
        found = []
        for i, count in enumerate(counts):
            rows = order[i, :count]
            inside = boxes[i, rows]
            keep = batched_nms(inside, scores[i, rows], level[rows], _NMS)  # and here once an image
            found.append(inside[keep[:after]])
        return found
