"""Arithmetic on boxes: anchors, coding, matching, sampling. A box is (x0, y0, x1, y1) in px.

Nothing here makes the host wait for a GPU: shapes follow from the arguments' shapes, and small numbers
stay numbers instead of becoming tensors that are copied over.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

Weights = tuple[float, float]  # factors of the shifts and of the logarithms of the scales
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
    """The (dx, dy, dw, dh) that lead from ``references`` to ``boxes``, both (..., 4), times weights."""
    size = references[..., 2:] - references[..., :2]
    target_size = boxes[..., 2:] - boxes[..., :2]
    corners = boxes[..., :2] + boxes[..., 2:] - references[..., :2] - references[..., 2:]
    shift, scale = corners / (2 * size), torch.log(target_size / size)
    return torch.cat((shift * weights[0], scale * weights[1]), dim=-1)


def decode(deltas: Tensor, references: Tensor, weights: Weights) -> Tensor:
    """Undo :func:`encode`, in float32: deltas (..., K, 4) on references (..., 1, 4) or alike."""
    deltas = deltas.float()
    size = references[..., 2:] - references[..., :2]
    centre = references[..., :2] + size / 2
    centre = centre + deltas[..., :2] / weights[0] * size
    half = torch.exp((deltas[..., 2:] / weights[1]).clamp(max=_MOST_LOG_SCALE)) * size / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def clip(boxes: Tensor, height: float, width: float) -> Tensor:
    """Boxes (..., 4) cut at the image's edges."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    cut = x0.clamp(0, width), y0.clamp(0, height), x1.clamp(0, width), y1.clamp(0, height)
    return torch.stack(cut, dim=-1)


def nonempty(boxes: Tensor) -> Tensor:
    """Which boxes (..., 4) have an inside: (...) bool."""
    return (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)


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
        label = torch.where(((iou == best_of_truth) & (iou > 0)).any(dim=0), 1, label)
    return index, label


@dataclass(frozen=True)
class Drawn:
    """What :func:`sample` draws of N rows.

    Attributes:
        positive, negative: (N, P) and (N, M) indices into a row, of which only the first so many count:
        positives, negatives: (N,).
    """

    positive: Tensor
    negative: Tensor
    positives: Tensor
    negatives: Tensor


def sample(label: Tensor, keys: Tensor, count: int, fraction: float) -> Drawn:
    """Draw at most ``count`` of every row, at most ``fraction`` of them foreground, the rest background.

    Args:
        label: (N, R), 1 foreground, 0 background, others are not drawn.
        keys: (N, R) random numbers in [0, 1): the highest are drawn.
        count: at least 1.
    """
    foreground, background = label == 1, label == 0
    most, least = min(int(count * fraction), keys.shape[1]), min(count, keys.shape[1])
    positives = foreground.sum(dim=1).clamp(max=most)
    return Drawn(
        keys.masked_fill(~foreground, -1).topk(most, dim=1).indices,
        keys.masked_fill(~background, -1).topk(least, dim=1).indices,
        positives,
        torch.minimum(background.sum(dim=1), count - positives),
    )


def within(indices: Tensor, counts: Tensor) -> Tensor:
    """Which of ``indices`` (N, K) are among the first ``counts`` (N,) of their row: (N, K) bool."""
    return torch.arange(indices.shape[1], device=indices.device) < counts[:, None]
