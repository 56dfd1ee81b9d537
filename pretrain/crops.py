"""The half of a view that happens in loader processes: decode, pad, rotate, resized crop, flip.

Every draw of a view comes from a generator seeded with (seed, epoch, image), so that neither the number of
workers nor a restart changes a view.
"""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pretrain.config import AugmentConfig
from siambench.data.images import ImageList, decode


def crop_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """A random crop as torchvision's RandomResizedCrop draws it: left, top, width, height.

    Area uniform in ``scale`` (of the image's area), aspect log-uniform in ``ratio``; after ten
    misses, the largest centre crop within ``ratio``.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (width - w) // 2, (height - h) // 2, w, h


class Crops(Dataset[tuple[Tensor, int]]):
    """``views`` random crops of each image: uint8 (views, 3, crop, crop), and the label."""

    def __init__(self, images: ImageList, config: AugmentConfig, views: int, seed: int) -> None:
        self.images, self.config, self.views, self.seed = images, config, views, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        """``key`` is (epoch, image), as :class:`EpochOrder` gives it."""
        epoch, index = key
        rng = np.random.default_rng([self.seed, 1, epoch, index])
        picture = decode(self.images.root / self.images.paths[index])
        padded = pad_edges(picture, self.config)
        crops = np.stack([self._crop(picture.size, padded, rng) for _ in range(self.views)])
        return torch.from_numpy(crops).permute(0, 3, 1, 2), self.images.labels[index]

    def _crop(
        self, size: tuple[int, int], padded: Image.Image, rng: np.random.Generator
    ) -> np.ndarray:
        c = self.config
        picture = padded
        if c.rotate:
            picture = turn(padded, _grown(size, c.pad), rng.uniform(-c.rotate, c.rotate))
        left, top, width, height = crop_box(*picture.size, c.scale, c.ratio, rng)
        crop = picture.resize(
            (c.crop, c.crop),
            Image.Resampling.BILINEAR,
            box=(left, top, left + width, top + height),
        )
        pixels = np.asarray(crop)
        return pixels[:, ::-1] if rng.random() < c.flip else pixels


def _grown(size: tuple[int, int], pad: float) -> tuple[int, int]:
    """``size`` with ``pad`` of each side added at both of its ends."""
    return size[0] + 2 * round(pad * size[0]), size[1] + 2 * round(pad * size[1])


def pad_edges(picture: Image.Image, config: AugmentConfig) -> Image.Image:
    """Grow by ``config.pad``, and by what any rotation brings in from outside: edge pixels repeated."""
    width, height = _grown(picture.size, config.pad)
    angle = math.radians(min(config.rotate, 45))  # corners reach out furthest at 45 degrees
    reach = math.sin(angle) + math.cos(angle) - 1  # of a square's side, both ends together
    spare = math.ceil(max(width, height) * reach / 2) + 1 if config.rotate else 0
    x, y = (width - picture.width) // 2 + spare, (height - picture.height) // 2 + spare
    if not x and not y:
        return picture
    return Image.fromarray(np.pad(np.asarray(picture), ((y, y), (x, x), (0, 0)), mode="edge"))


def turn(picture: Image.Image, size: tuple[int, int], angle: float) -> Image.Image:
    """The middle ``size`` of ``picture`` rotated by ``angle`` degrees about its centre (bilinear)."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x, y = size[0] / 2, size[1] / 2
    left, top = picture.width / 2, picture.height / 2
    back = (cos, -sin, left - cos * x + sin * y, sin, cos, top - sin * x - cos * y)
    return picture.transform(size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
