"""Arithmetic on boxes: anchors, coding, matching, sampling. A box is (x0, y0, x1, y1) in px."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

Weights = tuple[float, float, float, float]
_MOST_LOG_SCALE = math.log(1000 / 16)  # detectron2, box_regression.py: keeps exp() finite


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Anchors around the origin (len(sizes)·len(ratios), 4), unrounded, sizes outermost.

    Args:
        sizes: square roots of areas.
        ratios: height over width.
    """
    rows = []
    for size in sizes:
        for ratio in ratios:
            w, h = size / math.sqrt(ratio), size * math.sqrt(ratio)
            rows.append([-w / 2, -h / 2, w / 2, h / 2])
    return torch.tensor(rows)


def grid_anchors(cells: Tensor, height: int, width: int, stride: int) -> Tensor:
    """``cells`` (A, 4) at every place of a map: (height·width·A, 4), cell k at k·stride."""
    ys = torch.arange(height, device=cells.device, dtype=cells.dtype) * stride
    xs = torch.arange(width, device=cells.device, dtype=cells.dtype) * stride
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    shifts = torch.stack((x, y, x, y), dim=-1).view(-1, 1, 4)
    return (shifts + cells).view(-1, 4)


def encode(boxes: Tensor, references: Tensor, weights: Weights) -> Tensor:
    """The (dx, dy, dw, dh) that lead from ``references`` to ``boxes``, both (N, 4), times weights."""
    size = references[:, 2:] - references[:, :2]
    target_size = boxes[:, 2:] - boxes[:, :2]
    shift = (boxes[:, :2] + boxes[:, 2:] - references[:, :2] - references[:, 2:]) / (2 * size)
    deltas = torch.cat((shift, torch.log(target_size / size)), dim=1)
    return deltas * deltas.new_tensor(weights)


def decode(deltas: Tensor, references: Tensor, weights: Weights) -> Tensor:
    """Undo :func:`encode`, in float32: deltas (..., K, 4) on references (..., 1, 4) or alike."""
    deltas = deltas.float() / torch.tensor(weights, device=deltas.device)
    size = references[..., 2:] - references[..., :2]
    centre = references[..., :2] + size / 2
    centre = centre + deltas[..., :2] * size
    half = torch.exp(deltas[..., 2:].clamp(max=_MOST_LOG_SCALE)) * size / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def clip(boxes: Tensor, height: float, width: float) -> Tensor:
    """Boxes (..., 4) cut at the image's edges."""
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limit)


def nonempty(boxes: Tensor) -> Tensor:
    """Which boxes (N, 4) have an inside: (N,) bool."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def match(
    truth: Tensor, boxes: Tensor, low: float, high: float, *, keep_best: bool
) -> tuple[Tensor, Tensor]:
    """Assign ground truth to boxes by IoU.

    Args:
        truth: (G, 4); G may be 0.
        boxes: (N, 4).
        low, high: below ``low`` is background, from ``high`` on foreground, between is ignored.
        keep_best: every ground truth's best boxes, ties included, are foreground whatever their IoU
            (Faster R-CNN, section 3.1.2).

    Returns:
        Index of the best ground truth (N,) and label (N,): 1 foreground, 0 background, -1 ignored.
    """
    if len(truth) == 0:
        nothing = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
        return nothing, nothing.clone()
    iou = box_iou(truth, boxes)
    best, index = iou.max(dim=0)
    label = torch.where(best >= high, 1, torch.where(best >= low, -1, 0))
    if keep_best:
        best_of_truth = iou.max(dim=1, keepdim=True).values
        label[((iou == best_of_truth) & (iou > 0)).any(dim=0)] = 1
    return index, label


def sample(
    foreground: Tensor, background: Tensor, count: int, fraction: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw at most ``count`` indices, at most ``fraction`` of them foreground, the rest background.

    Args:
        foreground, background: masks (N,) bool.

    Returns:
        Indices of the drawn foreground and background.
    """
    positive, negative = foreground.nonzero().squeeze(1), background.nonzero().squeeze(1)
    most = min(len(positive), int(count * fraction))
    least = min(len(negative), count - most)
    return _draw(positive, most, generator), _draw(negative, least, generator)


def _draw(indices: Tensor, count: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(indices), generator=generator, device=generator.device)
    return indices[order[:count].to(indices.device)]
