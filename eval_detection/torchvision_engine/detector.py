"""Faster and Mask R-CNN: what C4 and FPN networks share, from images to losses and to detections.

The rules are detectron2's (modeling/meta_arch/rcnn.py, modeling/roi_heads/); docs/detection.md lists
what differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from eval_detection.config import DetectConfig
from eval_detection.torchvision_engine.boxes import Weights, clip, decode, encode
from eval_detection.torchvision_engine.rois import Rois, draw_rois
from eval_detection.torchvision_engine.rpn import RPN, Target
from siambench.distributed import World

_WEIGHTS: Weights = (10.0, 5.0)  # detectron2, MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS


@dataclass
class Detections:
    """What was found in one image, best first.

    Attributes:
        boxes: (D, 4), px of the resized image.
        scores: (D,).
        labels: (D,) int64.
        masks: (D, side, side) probabilities inside the box, or None.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None


class Detector(nn.Module):
    """Faster R-CNN, or Mask R-CNN when ``config.mask``.

    Attributes:
        world: the processes that share a batch.

    Args:
        body: images to maps.
        rpn: maps to proposals.
        head: maps and boxes to vectors, and to mask logits.
        classes: number of foreground classes.
        config: samplers, thresholds.
        divisible: images are padded to multiples of this.
    """

    def __init__(
        self,
        body: nn.Module,
        rpn: RPN,
        head: nn.Module,
        classes: int,
        config: DetectConfig,
        *,
        divisible: int,
    ) -> None:
        super().__init__()
        self.config, self.classes, self.divisible = config, classes, divisible
        self.world = World(0, 1, torch.device("cpu"))
        self.body, self.rpn, self.head = body, rpn, head
        self.cls_score = nn.Linear(head.channels, classes + 1)  # the last one is background
        self.bbox_pred = nn.Linear(head.channels, 4 * classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        targets: Sequence[Target],
        seeds: Sequence[int],
    ) -> dict[str, Tensor]:
        """Training losses of this process's part of a batch, normalised over all processes.

        Their mean over the processes is the loss of the whole batch.

        Args:
            images: (N, 3, H, W), normalised, then padded with zeros at the right and below.
            sizes: height and width of each image without its padding.
            targets: ground truth on ``images``' device.
            seeds: one per image: of the draws of its anchors and proposals.
        """
        generators = [torch.Generator(images.device).manual_seed(seed) for seed in seeds]
        maps = self.body(images)
        dense = self.rpn(maps)
        losses = self.rpn.losses(dense, targets, generators)
        rois = draw_rois(
            self.rpn.proposals(dense, sizes),
            targets,
            generators,
            classes=self.classes,
            count=self.config.rois_per_image,
            masks=self.config.mask,
        )
        return losses | self._roi_losses(maps, rois)

    def _roi_losses(self, maps: Sequence[Tensor], rois: Rois) -> dict[str, Tensor]:
        """Cross-entropy and L1 over the regions, and of masks over those of an object."""
        vectors, blocks = self.head(maps, rois.boxes)
        found, wanted = rois.found, rois.labels[rois.found]
        counts = torch.tensor([len(rois.labels), len(found)], dtype=torch.float32)
        counts = self.world.mean(counts.to(vectors.device, non_blocking=True)).clamp(min=1)
        scores, deltas = self._predict(vectors)
        places = torch.cat(rois.objects)
        error = deltas[found, wanted] - encode(rois.truth, places, _WEIGHTS)
        losses = {
            "cls": F.cross_entropy(scores, rois.labels, reduction="sum") / counts[0],
            "box": error.abs().sum() / counts[0],
        }
        if self.config.mask:
            # A GPU computes these while the host cuts the targets.
            masks = self.head.masks(maps, rois.objects, None if blocks is None else blocks[found])
            masks = masks[torch.arange(len(found), device=found.device), wanted].float()
            side = masks.shape[-1]
            truth = rois.mask_targets(side).to(masks.device, non_blocking=True)
            entropy = F.binary_cross_entropy_with_logits(masks, truth, reduction="sum")
            losses["mask"] = entropy / (counts[1] * side**2)
        return losses

    def _predict(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (R, K + 1) and box deltas (R, K, 4) of vectors (R, C)."""
        deltas = self.bbox_pred(vectors).float().view(len(vectors), self.classes, 4)
        return self.cls_score(vectors).float(), deltas

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Find objects in normalised ``images`` (N, 3, H, W) of ``sizes`` (height, width)."""
        maps = self.body(images)
        proposals = self.rpn.proposals(self.rpn(maps), sizes)
        logits, deltas = self._predict(self.head(maps, proposals)[0])
        boxes = decode(deltas, torch.cat(proposals)[:, None], _WEIGHTS)
        counts = [len(p) for p in proposals]
        found = [
            self._select(*one)
            for one in zip(
                boxes.split(counts), logits.softmax(dim=1).split(counts), sizes, strict=True
            )
        ]
        if self.config.mask:
            masks = self.head.masks(maps, [d.boxes for d in found], None)
            labels = torch.cat([d.labels for d in found])
            rows = torch.arange(len(labels), device=labels.device)
            masks = masks[rows, labels].float().sigmoid()
            for one, part in zip(found, masks.split([len(d.boxes) for d in found]), strict=True):
                one.masks = part
        return found

    def _select(self, boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> Detections:
        """Threshold, suppress per class and keep the best of one image's (P, K, 4) and (P, K + 1)."""
        rows, labels = (scores[:, :-1] > self.config.score_threshold).nonzero().unbind(1)
        boxes, scores = clip(boxes[rows, labels], *size), scores[rows, labels]
        keep = batched_nms(boxes, scores, labels, self.config.nms_threshold)
        keep = keep[: self.config.detections_per_image]
        return Detections(boxes[keep], scores[keep], labels[keep])
