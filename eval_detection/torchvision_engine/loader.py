"""Training batches and test images: resized, mirrored, and decided by (seed, draw) alone."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from eval_detection.config import DetectConfig
from eval_detection.masks import Mask
from eval_detection.samples import Sample
from eval_detection.torchvision_engine.rpn import Target
from siambench.data.images import decode

Draw = tuple[int, int]  # index of a sample, and the how-manieth draw of the run it is
Example = tuple[Tensor, Target]


def draws(samples: Sequence[Sample], batch_size: int, seed: int) -> Iterator[list[Draw]]:
    """Batches without end: epoch after epoch in random order, landscape and portrait apart.

    Images of one orientation share a batch (detectron2, DATALOADER.ASPECT_RATIO_GROUPING), which
    keeps the padding small. The sequence depends on nothing but the arguments.
    """
    landscape = [s.width > s.height for s in samples]
    waiting: dict[bool, list[Draw]] = {True: [], False: []}
    count = epoch = 0
    while True:
        for index in np.random.default_rng((seed, epoch)).permutation(len(samples)).tolist():
            group = waiting[landscape[index]]
            group.append((index, count))
            count += 1
            if len(group) == batch_size:
                yield list(group)
                group.clear()
        epoch += 1


def resized_shape(height: int, width: int, shorter: int, longest: int) -> tuple[int, int]:
    """Height and width with the shorter side at ``shorter``, unless the longer passes ``longest``."""
    scale = shorter / min(height, width)
    scale = min(scale, longest / max(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


class TrainImages(Dataset[Example]):
    """Indexed by a :data:`Draw`: a uint8 image (3, H, W) and its target, resized and mirrored."""

    def __init__(self, samples: Sequence[Sample], config: DetectConfig, seed: int) -> None:
        self.samples, self.config, self.seed = samples, config, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw) -> Example:
        index, count = draw
        sample, config = self.samples[index], self.config
        rng = np.random.default_rng((self.seed, 1, count))
        shorter = config.min_size_train[rng.integers(len(config.min_size_train))]
        mirror = config.flip and rng.random() < 0.5
        height, width = resized_shape(sample.height, sample.width, shorter, config.max_size_train)
        image = _resize(decode(sample.path), height, width)
        scale = np.asarray([width / sample.width, height / sample.height])
        boxes = sample.boxes * np.tile(scale, 2)
        masks = [_resize_mask(m, scale, height, width) for m in sample.masks]
        if mirror:
            image = image[:, ::-1]
            boxes = np.stack(
                (width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1
            )
            masks = [_mirror_mask(m, width) for m in masks]
        target = Target(torch.from_numpy(boxes).float(), torch.from_numpy(sample.labels), masks)
        return _to_tensor(image), target


class EvalImages(Dataset[Tensor]):
    """uint8 images (3, H, W) of the test set, resized."""

    def __init__(self, samples: Sequence[Sample], config: DetectConfig) -> None:
        self.samples, self.config = samples, config

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tensor:
        return _to_tensor(_resize(decode(self.samples[index].path), *self._shape(index)))

    def batches(self, most: int) -> list[list[int]]:
        """Indices in groups of at most ``most`` whose images have one size."""
        by_shape: dict[tuple[int, int], list[int]] = {}
        for index in range(len(self)):
            by_shape.setdefault(self._shape(index), []).append(index)
        return [
            group[i : i + most] for group in by_shape.values() for i in range(0, len(group), most)
        ]

    def _shape(self, index: int) -> tuple[int, int]:
        sample, config = self.samples[index], self.config
        return resized_shape(
            sample.height, sample.width, config.min_size_test, config.max_size_test
        )


def to_batch(
    images: Sequence[Tensor], mean: Sequence[float], std: Sequence[float], device: torch.device
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Normalise uint8 images and pad them with zeros, right and below, to the largest of them.

    Returns:
        (N, 3, H, W) float32 in channels_last, and height and width of each image.
    """
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    batch = torch.zeros(len(images), 3, height, width, device=device)
    batch = batch.to(memory_format=torch.channels_last)
    offset = torch.tensor(mean, device=device).view(3, 1, 1) * 255
    scale = torch.tensor(std, device=device).view(3, 1, 1) * 255
    for row, image, (h, w) in zip(batch, images, sizes, strict=True):
        row[:, :h, :w] = (image.to(device, non_blocking=True).float() - offset) / scale
    return batch, sizes


def _resize(image: Image.Image, height: int, width: int) -> np.ndarray:
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def _to_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _resize_mask(mask: Mask, scale: np.ndarray, height: int, width: int) -> Mask:
    if isinstance(mask, np.ndarray):
        resized = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
        return np.asarray(resized)
    return [(p.reshape(-1, 2) * scale).ravel() for p in mask]


def _mirror_mask(mask: Mask, width: int) -> Mask:
    if isinstance(mask, np.ndarray):
        return np.ascontiguousarray(mask[:, ::-1])
    return [np.stack((width - p[0::2], p[1::2]), axis=1).ravel() for p in mask]
