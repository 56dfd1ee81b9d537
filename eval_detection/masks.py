"""Masks: ground truth cut to a RoI for training, and predicted masks pasted into the image."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from pycocotools import mask as rle_tools
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

Polygons = list[np.ndarray]  # each x0, y0, x1, y1, ... in px
Mask = Polygons | np.ndarray  # an array is the (H, W) uint8 mask of the whole image
Code = dict[str, Any]  # COCO's compressed run lengths: {"size": [H, W], "counts": ...}


class Masks(Sequence[Mask]):
    """The masks of one image, kept small: run-length codes are decoded when they are looked at."""

    def __init__(self, kept: Sequence[Polygons | Code]) -> None:
        self._kept = kept

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> Mask: ...
    @overload
    def __getitem__(self, index: slice) -> "Masks": ...
    def __getitem__(self, index: int | slice) -> "Mask | Masks":
        if isinstance(index, slice):
            return Masks(self._kept[index])
        mask = self._kept[index]
        return rle_tools.decode(mask) if isinstance(mask, dict) else mask


def crop_mask(mask: Mask, box: np.ndarray, side: int) -> np.ndarray:
    """The part of ``mask`` inside ``box`` (4,), as (side, side) bool: the target of a RoI.

    Polygons are moved to the RoI's own grid and filled there; a bitmap is averaged into it (the two
    rules of detectron2, structures/masks.py).
    """
    if isinstance(mask, np.ndarray):
        bitmap = torch.from_numpy(mask).float()[None, None]
        roi = torch.cat((torch.zeros(1), torch.from_numpy(box).float()))[None]
        return (roi_align(bitmap, roi, side, 1.0, 0, True)[0, 0] >= 0.5).numpy()
    corner = np.tile(box[:2], 2)[:2]
    scale = side / np.maximum(box[2:] - box[:2], 0.1)
    moved = [((p.reshape(-1, 2) - corner) * scale).ravel() for p in mask]
    return fill(moved, side, side).astype(bool)


def fill(polygons: Polygons, height: int, width: int) -> np.ndarray:
    """Union of polygons as an (height, width) uint8 mask, by COCO's own rule."""
    rles = rle_tools.frPyObjects([p.tolist() for p in polygons], height, width)
    return rle_tools.decode(rle_tools.merge(rles))


def paste(probabilities: Tensor, boxes: Tensor, height: int, width: int) -> list[dict[str, Any]]:
    """Masks of boxes as run-length codes of the whole image.

    Every pixel centre is looked up, bilinearly, in its box's mask, and is inside from 0.5 on
    (detectron2, layers/mask_ops.py). Only the pixels around the box are computed.

    Args:
        probabilities: (N, side, side) in [0, 1].
        boxes: (N, 4) in px of the image.

    Returns:
        N codes whose ``counts`` are strings, as COCO's result files have them.
    """
    codes = []
    for mask, box in zip(probabilities.float().cpu(), boxes.cpu(), strict=True):
        x0, y0 = (int(v) for v in (box[:2].floor() - 1).clamp(min=0))
        x1 = min(int(box[2].ceil()) + 1, width)
        y1 = min(int(box[3].ceil()) + 1, height)
        x = (torch.arange(x0, x1) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
        y = (torch.arange(y0, y1) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
        patch = F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0] >= 0.5
        whole = np.zeros((height, width), np.uint8, order="F")
        whole[y0:y1, x0:x1] = patch.numpy()
        code = rle_tools.encode(whole)
        codes.append({"size": code["size"], "counts": code["counts"].decode("ascii")})
    return codes
