"""The half of a view that happens in loader processes: decode, rotate, random resized crop, flip.

Every draw comes from a generator seeded with (seed, epoch, image), so that neither the number of
workers nor a restart changes a view.
"""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from pretrain.config import ViewsConfig
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

    def __init__(self, images: ImageList, config: ViewsConfig, views: int, seed: int) -> None:
        self.images, self.config, self.views, self.seed = images, config, views, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        """``key`` is (epoch, image), as :class:`EpochOrder` gives it."""
        epoch, index = key
        rng = np.random.default_rng([self.seed, 1, epoch, index])
        picture = decode(self.images.root / self.images.paths[index])
        crops = np.stack([self._crop(picture, rng) for _ in range(self.views)])
        return torch.from_numpy(crops).permute(0, 3, 1, 2), self.images.labels[index]

    def _crop(self, picture: Image.Image, rng: np.random.Generator) -> np.ndarray:
        c = self.config
        if c.pad or c.rotate:
            picture = _pad_and_rotate(picture, c.pad, rng.uniform(-c.rotate, c.rotate))
        left, top, width, height = crop_box(*picture.size, c.scale, c.ratio, rng)
        crop = picture.resize(
            (c.crop, c.crop),
            Image.Resampling.BILINEAR,
            box=(left, top, left + width, top + height),
        )
        pixels = np.asarray(crop)
        return pixels[:, ::-1] if rng.random() < c.flip else pixels


def _pad_and_rotate(picture: Image.Image, pad: float, angle: float) -> Image.Image:
    """Rotate about the centre in a frame grown by ``pad`` of each side; edge pixels fill the rest."""
    grow_x, grow_y = round(pad * picture.width), round(pad * picture.height)
    spare = max(picture.size) // 4 if angle else 0
    x, y = grow_x + spare, grow_y + spare
    pixels = np.pad(np.asarray(picture), ((y, y), (x, x), (0, 0)), mode="edge")
    turned = Image.fromarray(pixels).rotate(angle, Image.Resampling.BILINEAR)
    return turned.crop((spare, spare, turned.width - spare, turned.height - spare))


class EpochOrder(Sampler[tuple[int, int]]):
    """(epoch, image) in an order drawn from (seed, epoch); call :meth:`set_epoch` first."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs through."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self):  # type: ignore[no-untyped-def]
        order = np.random.default_rng([self.seed, 0, self.epoch]).permutation(self.count)
        return iter((self.epoch, int(i)) for i in order)
