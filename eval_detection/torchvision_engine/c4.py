"""Faster and Mask R-CNN C4: a ResNet cut after layer3, with layer4 as the head of every RoI.

The network and its rules are detectron2's Res5ROIHeads (modeling/roi_heads/roi_heads.py) with the
batch norm after res5 that MoCo's transfer adds; docs/detection.md lists what differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import ResNet
from torchvision.ops import batched_nms, roi_align

from eval_detection.config import DetectConfig
from eval_detection.masks import Mask, crop_mask
from eval_detection.torchvision_engine.boxes import Weights, clip, decode, encode, match, sample
from eval_detection.torchvision_engine.rpn import RPN, STRIDE, Target
from siambench.distributed import World

_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)  # detectron2, MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS
_FOREGROUND = 0.5  # MODEL.ROI_HEADS.IOU_THRESHOLDS
_FRACTION = 0.25  # POSITIVE_FRACTION
_MASK_CHANNELS = 256  # MODEL.ROI_MASK_HEAD.CONV_DIM


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


@dataclass
class _Rois:
    """Sampled proposals of a batch; ``truth`` and ``masks`` matter where ``labels`` is a class."""

    boxes: list[Tensor]
    labels: Tensor
    truth: Tensor
    masks: list[Mask]


class C4(nn.Module):
    """Faster R-CNN, or Mask R-CNN when ``config.mask``.

    Attributes:
        divisible: images are padded to multiples of this.
        world: the processes that share a batch.

    Args:
        resnet: bottleneck or basic blocks, any width; its layers become part of this module.
        classes: number of foreground classes.
        config: anchors, samplers, thresholds.
    """

    divisible = 1  # detectron2 pads a C4 network's images to each other only

    def __init__(self, resnet: ResNet, classes: int, config: DetectConfig) -> None:
        super().__init__()
        self.config, self.classes = config, classes
        self.world = World(0, 1, torch.device("cpu"))
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        self.res2, self.res3, self.res4 = resnet.layer1, resnet.layer2, resnet.layer3
        channels = _channels(resnet.layer4)
        self.res5 = nn.Sequential(*resnet.layer4)
        if config.extra_norm:
            self.res5.add_module("norm", nn.BatchNorm2d(channels))
        self.rpn = RPN(_channels(resnet.layer3), config)
        self.cls_score = nn.Linear(channels, classes + 1)  # the last one is background
        self.bbox_pred = nn.Linear(channels, 4 * classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.mask_head = _mask_head(channels, classes) if config.mask else None

    def features(self, images: Tensor) -> Tensor:
        """layer3 of normalised ``images`` (N, 3, H, W)."""
        return self.res4(self.res3(self.res2(self.stem(images))))

    def roi_features(self, features: Tensor, boxes: list[Tensor]) -> Tensor:
        """layer4 of every box of every image: (sum of boxes, C, side, side)."""
        side = self.config.pooler_resolution
        # sampling_ratio 0 lets RoIAlign choose; aligned=True is what detectron2 calls ROIAlignV2.
        pooled = roi_align(features, boxes, side, 1 / STRIDE, 0, True)
        return self.res5(pooled.contiguous(memory_format=torch.channels_last))

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
        features = self.features(images)
        anchors, logits, deltas = self.rpn(features)
        losses = self.rpn.losses(anchors, logits, deltas, targets, generators)
        proposals = self.rpn.proposals(anchors, logits, deltas, sizes)
        rois = self._sample(proposals, targets, generators)
        roi_features = self.roi_features(features, rois.boxes)
        pooled = roi_features.mean(dim=(2, 3))
        found = (rois.labels < self.classes).nonzero().squeeze(1)
        counts = torch.tensor([len(rois.labels), len(found)], dtype=torch.float32)
        counts = self.world.mean(counts.to(images.device))  # RoIs, and those of an object
        scores = self.cls_score(pooled).float()
        losses["cls"] = F.cross_entropy(scores, rois.labels, reduction="sum") / counts[0].clamp(
            min=1
        )
        offsets = self.bbox_pred(pooled).float().view(-1, self.classes, 4)
        wanted = encode(rois.truth[found], torch.cat(rois.boxes)[found], _WEIGHTS)
        error = offsets[found, rois.labels[found]] - wanted
        losses["box"] = error.abs().sum() / counts[0].clamp(min=1)
        if self.mask_head is not None:
            masks = self.mask_head(roi_features[found]).float()
            masks = masks[torch.arange(len(found), device=found.device), rois.labels[found]]
            truth = _crops(rois, found, masks.shape[-1]).to(masks.device)
            entropy = F.binary_cross_entropy_with_logits(masks, truth, reduction="sum")
            losses["mask"] = entropy / (counts[1].clamp(min=1) * masks.shape[-1] ** 2)
        return losses

    @torch.no_grad()
    def _sample(
        self,
        proposals: list[Tensor],
        targets: Sequence[Target],
        generators: Sequence[torch.Generator],
    ) -> _Rois:
        """Add the ground truth to each image's proposals, match, and draw the RoIs to train on."""
        rois = _Rois([], torch.empty(0), torch.empty(0), [])
        labels, truth = [], []
        for boxes, target, generator in zip(proposals, targets, generators, strict=True):
            boxes = torch.cat((boxes, target.boxes))
            index, label = match(target.boxes, boxes, _FOREGROUND, _FOREGROUND, keep_best=False)
            drawn = torch.cat(
                sample(label == 1, label == 0, self.config.rois_per_image, _FRACTION, generator)
            )
            index, label = index[drawn], label[drawn]
            rois.boxes.append(boxes[drawn])
            if len(target.boxes) == 0:
                labels.append(torch.full_like(label, self.classes))
                truth.append(boxes[drawn])
                rois.masks += [[] for _ in drawn]
                continue
            labels.append(torch.where(label == 1, target.labels[index], self.classes))
            truth.append(target.boxes[index])
            if target.masks:
                rois.masks += [target.masks[i] for i in index.tolist()]
        rois.labels, rois.truth = torch.cat(labels), torch.cat(truth)
        return rois

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Find objects in normalised ``images`` (N, 3, H, W) of ``sizes`` (height, width)."""
        features = self.features(images)
        proposals = self.rpn.proposals(*self.rpn(features), sizes)
        pooled = self.roi_features(features, proposals).mean(dim=(2, 3))
        scores = self.cls_score(pooled).float().softmax(dim=1)
        deltas = self.bbox_pred(pooled).float().view(len(pooled), self.classes, 4)
        boxes = decode(deltas, torch.cat(proposals)[:, None], _WEIGHTS)
        counts = [len(p) for p in proposals]
        found = [
            self._select(*one)
            for one in zip(boxes.split(counts), scores.split(counts), sizes, strict=True)
        ]
        if self.mask_head is not None:
            masks = self.mask_head(self.roi_features(features, [d.boxes for d in found]))
            labels = torch.cat([d.labels for d in found])
            rows = torch.arange(len(labels), device=labels.device)
            masks = masks[rows, labels].float().sigmoid()
            for one, part in zip(found, masks.split([len(d.boxes) for d in found]), strict=True):
                one.masks = part
        return found

    def _select(self, boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> Detections:
        """Threshold, suppress per class and keep the best of one image's (P, K, 4) and (P, K + 1)."""
        scores = scores[:, : self.classes]
        boxes = clip(boxes, *size)
        chosen = scores > self.config.score_threshold
        labels = chosen.nonzero()[:, 1]
        boxes, scores = boxes[chosen], scores[chosen]
        keep = batched_nms(boxes, scores, labels, self.config.nms_threshold)
        keep = keep[: self.config.detections_per_image]
        return Detections(boxes[keep], scores[keep], labels[keep])


def _channels(layer: nn.Module) -> int:
    """Output channels of a residual stage: those of its last batch norm."""
    return [m for m in layer.modules() if isinstance(m, nn.BatchNorm2d)][-1].num_features


def _mask_head(channels: int, classes: int) -> nn.Sequential:
    """Upsample by two and predict a mask per class (Mask R-CNN, figure 4 left)."""
    up = nn.ConvTranspose2d(channels, _MASK_CHANNELS, 2, 2)
    nn.init.kaiming_normal_(up.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(up.bias)
    predictor = nn.Conv2d(_MASK_CHANNELS, classes, 1)
    nn.init.normal_(predictor.weight, std=0.001)
    nn.init.zeros_(predictor.bias)
    return nn.Sequential(up, nn.ReLU(), predictor)


def _crops(rois: _Rois, found: Tensor, side: int) -> Tensor:
    """Mask targets of the foreground RoIs: (len(found), side, side) float."""
    boxes = torch.cat(rois.boxes)[found].cpu().numpy()
    crops = [
        crop_mask(rois.masks[i], box, side) for i, box in zip(found.tolist(), boxes, strict=True)
    ]
    return torch.from_numpy(np.stack(crops) if crops else np.empty((0, side, side))).float()
