"""Training batches and test images: resized, mirrored, and decided by (seed, draw) alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from eval_detection.config import DetectConfig
from eval_detection.masks import Mask
from eval_detection.samples import Sample
from eval_detection.torchvision_engine.rpn import Target
from siambench.data.images import decode_array

Draw = tuple[int, int]  # index of a sample, and the how-manieth draw of the run it is
Size = tuple[int, int]  # height and width in px


@dataclass(frozen=True)
class Batch:
    """Images of one batch, or of one process's part of it, as a loader process hands them over.

    Attributes:
        pixels: (N, H, W, 3) uint8, an image at the left and upper edge of its row.
        sizes: of each image without what is right of it and below.
        objects: number in each image.
        boxes: (sum of ``objects``, 4) float32, px of the resized images.
        labels: (sum of ``objects``,) int64.
        masks: of each image.
    """

    pixels: Tensor
    sizes: list[Size]
    objects: list[int]
    boxes: Tensor
    labels: Tensor
    masks: list[list[Mask]]

    def pin_memory(self) -> "Batch":
        """The same in memory that a GPU can copy from by itself; DataLoader calls it."""
        tensors = {name: getattr(self, name).pin_memory() for name in ("pixels", "boxes", "labels")}
        return replace(self, **tensors)

    def targets(self, device: torch.device) -> list[Target]:
        """What is in each image, on ``device``; the host does not wait for the copies."""
        boxes = self.boxes.to(device, non_blocking=True).split(self.objects)
        labels = self.labels.to(device, non_blocking=True).split(self.objects)
        return [Target(*parts) for parts in zip(boxes, labels, self.masks, strict=True)]


class Normalise:
    """Pixels of :class:`Batch` to a network's input, computed on ``device``.

    Args:
        mean, std: of the backbone's images in [0, 1], per channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.offset = torch.tensor(mean, device=device) * 255
        self.scale = torch.tensor(std, device=device) * 255

    def __call__(self, pixels: Tensor, sizes: Sequence[Size]) -> Tensor:
        """(N, H, W, 3) uint8 to (N, 3, H, W) float32 in channels_last, 0 outside of ``sizes``."""
        images = pixels.to(self.offset.device, non_blocking=True).float()
        images = images.sub_(self.offset).div_(self.scale)
        for image, (height, width) in zip(images, sizes, strict=True):
            image[height:].zero_()
            image[:height, width:].zero_()
        return images.permute(0, 3, 1, 2)


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


def resized_shape(height: int, width: int, shorter: int, longest: int) -> Size:
    """Height and width with the shorter side at ``shorter``, unless the longer passes ``longest``."""
    scale = shorter / min(height, width)
    sides = [shorter * 1.0, scale * max(height, width)]  # rounded as detectron2 rounds
    if sides[1] > longest:
        scale = longest / sides[1]
        sides = [side * scale for side in sides]
    small, large = (max(int(side + 0.5), 1) for side in sides)
    return (small, large) if height < width else (large, small)


def padded_shape(sizes: Sequence[Size], divisible: int) -> Size:
    """Height and width of a batch that holds images of ``sizes``."""
    height, width = (max(side) for side in zip(*sizes, strict=True))
    return -(-height // divisible) * divisible, -(-width // divisible) * divisible


class TrainImages(Dataset[tuple[Image.Image, Target]]):
    """Indexed by a :data:`Draw`: an image and what is in it, resized and mirrored."""

    def __init__(self, samples: Sequence[Sample], config: DetectConfig, seed: int) -> None:
        self.samples, self.config, self.seed = samples, config, seed

    def augmentation(self, draw: Draw) -> tuple[Size, bool]:
        """What becomes of a draw, known without its image: its size, and whether it is mirrored."""
        index, count = draw
        sample, config = self.samples[index], self.config
        rng = np.random.default_rng((self.seed, 1, count))
        shorter = config.min_size_train[rng.integers(len(config.min_size_train))]
        mirror = bool(config.flip and rng.random() < 0.5)
        size = resized_shape(sample.height, sample.width, shorter, config.max_size_train)
        return size, mirror

    def __getitem__(self, draw: Draw) -> tuple[Image.Image, Target]:
        sample = self.samples[draw[0]]
        (height, width), mirror = self.augmentation(draw)
        image = _resized(sample, height, width)
        scale = np.asarray([width / sample.width, height / sample.height])
        boxes = sample.boxes * np.tile(scale, 2)
        masks = [_resize_mask(m, scale, height, width) for m in sample.masks]
        if mirror:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            boxes = np.stack(
                (width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1
            )
            masks = [_mirror_mask(m, width) for m in masks]
        return image, Target(
            torch.from_numpy(boxes).float(), torch.from_numpy(sample.labels), masks
        )


class TrainBatches(Dataset[Batch]):
    """Indexed by the draws of a whole batch: one process's part, padded to the size of the whole.

    Args:
        images: of the training set.
        divisible: height and width of a batch are multiples of it.
        rank, size: the part: of ``size`` equal ones, the one number ``rank``.
    """

    def __init__(self, images: TrainImages, divisible: int, rank: int = 0, size: int = 1) -> None:
        self.images, self.divisible, self.rank, self.size = images, divisible, rank, size

    def __getitem__(self, whole: list[Draw]) -> Batch:
        sizes = [self.images.augmentation(draw)[0] for draw in whole]
        part = len(whole) // self.size
        mine = slice(self.rank * part, (self.rank + 1) * part)
        images, targets = zip(*(self.images[draw] for draw in whole[mine]), strict=True)
        return Batch(
            pixels=_together(images, *padded_shape(sizes, self.divisible)),
            sizes=sizes[mine],
            objects=[len(t.boxes) for t in targets],
            boxes=torch.cat([t.boxes for t in targets]),
            labels=torch.cat([t.labels for t in targets]),
            masks=[t.masks for t in targets],
        )


class EvalBatches(Dataset[Tensor]):
    """Indexed by numbers of test images that share a size: (N, H, W, 3) uint8, resized and padded."""

    def __init__(self, samples: Sequence[Sample], config: DetectConfig, divisible: int) -> None:
        self.samples, self.divisible = samples, divisible
        sizes = config.min_size_test, config.max_size_test
        self.sizes = [resized_shape(s.height, s.width, *sizes) for s in samples]

    def __getitem__(self, numbers: list[int]) -> Tensor:
        size = self.sizes[numbers[0]]
        images = [_resized(self.samples[number], *size) for number in numbers]
        return _together(images, *padded_shape([size], self.divisible))

    def groups(self, most: int) -> list[list[int]]:
        """All numbers, in groups of at most ``most`` whose images have one size."""
        by_size: dict[Size, list[int]] = {}
        for number, size in enumerate(self.sizes):
            by_size.setdefault(size, []).append(number)
        return [
            group[i : i + most] for group in by_size.values() for i in range(0, len(group), most)
        ]


def _resized(sample: Sample, height: int, width: int) -> Image.Image:
    """By Pillow's bilinear filter, as detectron2 does: no other library's is equal to the bit."""
    image = Image.fromarray(decode_array(sample.path))
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _together(images: Sequence[Image.Image], height: int, width: int) -> Tensor:
    pixels = np.zeros((len(images), height, width, 3), np.uint8)
    for row, image in zip(pixels, images, strict=True):
        row[: image.height, : image.width] = np.asarray(image)
    return torch.from_numpy(pixels)


def _resize_mask(mask: Mask, scale: np.ndarray, height: int, width: int) -> Mask:
    if isinstance(mask, np.ndarray):
        resized = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
        return np.asarray(resized)
    return [(p.reshape(-1, 2) * scale).ravel() for p in mask]


def _mirror_mask(mask: Mask, width: int) -> Mask:
    if isinstance(mask, np.ndarray):
        return np.ascontiguousarray(mask[:, ::-1])
    return [np.stack((width - p[0::2], p[1::2]), axis=1).ravel() for p in mask]
