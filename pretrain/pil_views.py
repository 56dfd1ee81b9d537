"""The official pipeline: Pillow and torchvision's transforms, one image at a time.

facebookresearch/simsiam, main_simsiam.py (the transforms and their order) and simsiam/loader.py (the
blur: Pillow's, its radius drawn as sigma).
"""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms

from pretrain.config import AugmentConfig
from pretrain.draws import of_view
from siambench.data.images import decode


class RadiusBlur:
    """Pillow's GaussianBlur with a radius uniform in ``sigma``, from Python's generator."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        self.sigma = sigma

    def __call__(self, picture: Image.Image) -> Image.Image:
        return picture.filter(ImageFilter.GaussianBlur(radius=random.uniform(*self.sigma)))


class PilViews:
    """uint8 views (H, W, 3) of an image file, by the official transforms."""

    def __init__(self, config: AugmentConfig) -> None:
        self.transforms = [self._of(config, view) for view in (0, 1)]
        self.small = self._of(replace(config, crop=config.small_crop, scale=config.small_scale), 2)

    def _of(self, config: AugmentConfig, view: int) -> transforms.Compose:
        steps = [
            transforms.RandomResizedCrop(config.crop, scale=config.scale, ratio=config.ratio),
            transforms.RandomApply([transforms.ColorJitter(*config.jitter)], config.jitter_p),
            transforms.RandomGrayscale(config.gray),
            transforms.RandomApply([RadiusBlur(config.sigma)], of_view(config, "blur", view)),
        ]
        if solarize := of_view(config, "solarize", view):
            steps.append(transforms.RandomSolarize(128, solarize))
        return transforms.Compose([*steps, transforms.RandomHorizontalFlip(config.flip)])

    def __call__(
        self, path: Path, views: int, small: int, rng: np.random.Generator
    ) -> tuple[list[Tensor], list[Tensor]]:
        """So many views, and so many smaller ones.

        The transforms' own generators are seeded from ``rng``, and put back afterwards.
        """
        chosen = [self.transforms[view == 1] for view in range(views)] + [self.small] * small
        picture = decode(path)
        before = random.getstate()
        seed = int(rng.integers(2**63))
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                random.seed(seed)
                made = [torch.from_numpy(np.array(one(picture))) for one in chosen]
        finally:
            random.setstate(before)
        return made[:views], made[views:]
