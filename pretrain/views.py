"""Views of images: what a loader process makes, and what is left for the training device.

Three kinds. ``device``: decode, crop and flip in the loader, colour and blur in batches where the
training runs. ``cpu``: all in the loader. ``pil``: the official pipeline.
"""

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pretrain.colour import colour_views
from pretrain.config import AugmentConfig
from pretrain.crops import crop_box, grown, pad_edges, resized, turn
from pretrain.draws import Draw, draw_views, generator
from pretrain.pil_views import PilViews
from pretrain.pixels import colour_pixels
from siambench.backbone import IMAGENET_MEAN, IMAGENET_STD
from siambench.data.images import ImageList, decode_array

cv2.setNumThreads(0)  # the loader's processes are the parallelism

SMALL = "small_"  # before the names of what belongs to the smaller views


class Views(Dataset[dict[str, Tensor]]):
    """The loader's half: ``views`` random views of each image, and ``config.small_views`` smaller ones.

    Args:
        images: where to read.
        config: the random views.
        kind: device, cpu or pil.
        views: per image.
        seed: of the run; a view depends on it, the epoch and the image alone.
    """

    def __init__(
        self,
        images: ImageList,
        config: AugmentConfig,
        kind: Literal["device", "cpu", "pil"],
        views: int,
        seed: int,
    ) -> None:
        self.images, self.config, self.kind, self.views, self.seed = (
            images,
            config,
            kind,
            views,
            seed,
        )
        self._pil = PilViews(config) if kind == "pil" else None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        """The views of ``key``, (epoch, image).

        Returns:
            ``pixels`` uint8 (views, H, W, 3), ``label`` and ``image`` (scalars); for kind ``device`` also
            ``colour`` float32 (views, COLUMNS) and, with ``config.noise``, ``noise`` float32
            (views, H, W). With ``config.small_views`` the same of those, as ``small_pixels`` and so on.

        Raises:
            UserError: the image cannot be decoded.
        """
        epoch, index = key
        path = self.images.root / self.images.paths[index]
        rng = generator(self.seed, epoch, index)
        large, small = self._pil_views(path, rng) if self._pil else self._drawn(path, rng)
        return {
            **large,
            **{SMALL + name: tensor for name, tensor in small.items()},
            "label": torch.tensor(self.images.labels[index]),
            "image": torch.tensor(index),
        }

    def _pil_views(
        self, path: Path, rng: np.random.Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        assert self._pil is not None
        large, small = self._pil(path, self.views, self.config.small_views, rng)
        return {"pixels": torch.stack(large)}, {"pixels": torch.stack(small)} if small else {}

    def _drawn(
        self, path: Path, rng: np.random.Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        c = self.config
        draws = draw_views(rng, c, self.views + c.small_views)
        whole = decode_array(path)
        padded = pad_edges(whole, c)

        def made(draws: list[Draw], side: int, scale: tuple[float, float]) -> dict[str, Tensor]:
            pixels = np.empty((len(draws), side, side, 3), np.uint8)
            for out, draw in zip(pixels, draws, strict=True):
                view = resized(self._crop(whole, padded, draw, scale), side)
                if self.kind == "cpu":
                    view = colour_pixels(view, draw.colour)
                if draw.flip:
                    cv2.flip(view, 1, dst=out)
                else:
                    out[:] = view
            views = {"pixels": torch.from_numpy(pixels)}
            if self.kind == "device":
                views["colour"] = torch.from_numpy(np.stack([draw.colour for draw in draws]))
                if c.noise:
                    noise = rng.standard_normal(pixels.shape[:3], np.float32)
                    views["noise"] = torch.from_numpy(noise)
            return views

        large = made(draws[: self.views], c.crop, c.scale)
        small = draws[self.views :]
        return large, made(small, c.small_crop, c.small_scale) if small else {}

    def _crop(
        self, whole: np.ndarray, padded: np.ndarray, draw: Draw, scale: tuple[float, float]
    ) -> np.ndarray:
        c = self.config
        picture = padded
        if c.rotate:
            size = grown((whole.shape[1], whole.shape[0]), c.pad)
            picture = np.array(turn(Image.fromarray(padded), size, draw.angle))
        height, width = picture.shape[:2]
        left, top, w, h = crop_box(width, height, scale, c.ratio, draw.boxes)
        return picture[top : top + h, left : left + w]


def finish(batch: dict[str, Tensor], config: AugmentConfig, kind: str) -> list[Tensor]:
    """The device's half: a collated batch of :class:`Views` to normalised views.

    Deterministic, and without a synchronisation of the host with the device.

    Args:
        batch: what :meth:`Views.__getitem__` returns, with a leading dimension N.
        config, kind: as given to :class:`Views`.

    Returns:
        Per view, float32 (N, 3, H, W), channels_last; the smaller ones last.
    """
    device = batch["pixels"].device
    mean, std = (_filled(numbers, device) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    views = []
    for size in ("", SMALL):
        pixels = batch.get(f"{size}pixels")
        for v in range(0 if pixels is None else pixels.shape[1]):
            x = pixels[:, v].permute(0, 3, 1, 2)
            x = x.to(torch.float32, memory_format=torch.channels_last).div_(255)
            if kind == "device":
                noise = batch[f"{size}noise"][:, v, None] if config.noise else None
                x = colour_views(x, batch[f"{size}colour"][:, v], config, noise)
            views.append(((x - mean) / std).contiguous(memory_format=torch.channels_last))
    return views


def _filled(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """(1, 3, 1, 1), written by the device itself: sent there, they would make the host wait."""
    return torch.cat([torch.full((1, 1, 1, 1), n, device=device) for n in numbers], 1)
