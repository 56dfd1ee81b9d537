"""The geometry of a view, in loader processes: pad, rotate, crop, resize."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from pretrain.config import AugmentConfig


def crop_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    tries: np.ndarray,
) -> tuple[int, int, int, int]:
    """A random crop as torchvision's RandomResizedCrop draws it: left, top, width, height.

    Area uniform in ``scale`` (of the image's area), aspect log-uniform in ``ratio``; after as many
    misses as there are ``tries`` (T, 4), uniform in [0, 1), the largest centre crop within ``ratio``.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for u in tries:
        area = width * height * (scale[0] + (scale[1] - scale[0]) * float(u[0]))
        aspect = math.exp(low + (high - low) * float(u[1]))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(u[2] * (width - w + 1)), int(u[3] * (height - h + 1)), w, h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w = max(1, min(width, round(height * aspect)))
    h = max(1, min(height, round(width / aspect)))
    return (width - w) // 2, (height - h) // 2, w, h


def resized(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 (H, W, 3) to (side, side, 3): antialiased bilinear, within 1 level of Pillow's."""
    # permute after unsqueeze: only so do the strides of a batch of one count as channels_last, for
    # which torch has a path twice as fast.
    batch = torch.from_numpy(np.ascontiguousarray(pixels)).unsqueeze(0).permute(0, 3, 1, 2)
    small = F.interpolate(batch, (side, side), mode="bilinear", antialias=True)
    return small.permute(0, 2, 3, 1)[0].numpy()


def grown(size: tuple[int, int], pad: float) -> tuple[int, int]:
    """``size`` with ``pad`` of each side added at both of its ends."""
    return size[0] + 2 * round(pad * size[0]), size[1] + 2 * round(pad * size[1])


def pad_edges(pixels: np.ndarray, config: AugmentConfig) -> np.ndarray:
    """Grow (H, W, 3) by ``config.pad``, and by what a rotation brings in: edge pixels repeated."""
    size = pixels.shape[1], pixels.shape[0]
    width, height = grown(size, config.pad)
    angle = math.radians(min(config.rotate, 45))  # corners reach out furthest at 45 degrees
    reach = math.sin(angle) + math.cos(angle) - 1  # of a square's side, both ends together
    spare = math.ceil(max(width, height) * reach / 2) + 1 if config.rotate else 0
    x, y = (width - size[0]) // 2 + spare, (height - size[1]) // 2 + spare
    if not x and not y:
        return pixels
    return np.pad(pixels, ((y, y), (x, x), (0, 0)), mode="edge")


def turn(picture: Image.Image, size: tuple[int, int], angle: float) -> Image.Image:
    """The middle ``size`` of ``picture`` rotated by ``angle`` degrees about its centre (bilinear)."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x, y = size[0] / 2, size[1] / 2
    left, top = picture.width / 2, picture.height / 2
    back = (cos, -sin, left - cos * x + sin * y, sin, cos, top - sin * x - cos * y)
    return picture.transform(size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
