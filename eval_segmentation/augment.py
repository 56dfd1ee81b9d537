"""Training crops: random scale, crop, flip and photometric distortion, as mmsegmentation draws them.

Each crop is a function of the seed and of its place in the stream of training images alone, so that
a run resumed at any iteration, with any number of loader processes, sees what it would have seen.
"""

from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from eval_segmentation.config import SegmentConfig
from eval_segmentation.pairs import IGNORE, SegmentationData, read_pair

cv2.setNumThreads(0)  # the loader's processes are the parallelism

# mmsegmentation, mmseg/datasets/transforms/transforms.py, defaults of PhotoMetricDistortion.
BRIGHTNESS = 32  # added, of 255
CONTRAST = SATURATION = (0.5, 1.5)  # factors
HUE = 18  # in OpenCV's units of 2 degrees
REDRAWS = 10  # RandomCrop's
LEVELS = np.arange(256, dtype=np.float32)


def scaled_size(
    size: tuple[int, int], long_edge: int, short_edge: int, ratio: float = 1.0
) -> tuple[int, int]:
    """The largest (width, height) of this shape within the edges, each times ``ratio``.

    mmcv's imrescale and mmsegmentation's RandomResize; it enlarges too. At least one pixel a side.

    Args:
        size: (width, height), pixels.
        long_edge, short_edge: bounds of the longer and the shorter side; both 0 for the image's own.
    """
    long_edge, short_edge = long_edge or max(size), short_edge or min(size)
    long_edge, short_edge = int(long_edge * ratio), int(short_edge * ratio)
    factor = min(long_edge / max(size), short_edge / min(size))
    width, height = (max(1, int(side * factor + 0.5)) for side in size)
    return width, height


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3) to ``size`` (width, height): bilinear, not antialiased, as mmcv resizes."""
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


class TrainCrops(Dataset[tuple[Tensor, Tensor]]):
    """The stream of training crops: item i is what the run's i-th image shows.

    Images come in shuffled epochs without end (mmengine's InfiniteSampler).

    Args:
        data: the pairs.
        config: scales, crop, flip, distortion, number of iterations.
        seed: of the trial.
        fill: RGB 0 to 255 beyond the image's edge; the backbone's mean, which normalises to zero
            (to within half a level).
    """

    def __init__(
        self,
        data: SegmentationData,
        config: SegmentConfig,
        seed: int,
        fill: tuple[float, float, float],
    ) -> None:
        self.data, self.config, self.seed = data, config, seed % 2**32
        self.fill = [round(level) for level in fill]

    def __len__(self) -> int:
        return self.config.iterations * self.config.batch_size

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        """uint8 image (3, crop, crop) and uint8 labels (crop, crop)."""
        config = self.config
        epoch, place = divmod(item, len(self.data.train))
        pair = self.data.train[_shuffled(len(self.data.train), self.seed, epoch)[place]]
        rng = np.random.default_rng([self.seed, 1, item])
        image, labels = read_pair(pair, self.data.table)

        ratio = rng.uniform(config.ratio_min, config.ratio_max)
        size = scaled_size(pair.size, config.long_edge, config.short_edge, ratio)
        image = resize_image(image, size)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        y, x = choose_crop(labels, config.crop, config.cat_max_ratio, rng)
        window = (slice(y, y + config.crop), slice(x, x + config.crop))
        image, labels = image[window], labels[window]
        if config.flip and rng.random() < 0.5:
            image, labels = cv2.flip(image, 1), cv2.flip(labels, 1)
        if config.distort:
            image = distort(image, rng)

        height, width = labels.shape
        out = np.empty((3, config.crop, config.crop), np.uint8)
        out_labels = np.full((config.crop, config.crop), IGNORE, np.uint8)
        out_labels[:height, :width] = labels
        for plane, channel, level in zip(out, cv2.split(image), self.fill, strict=True):
            plane[:height, :width] = channel
            plane[height:], plane[:height, width:] = level, level
        return torch.from_numpy(out), torch.from_numpy(out_labels)


@lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


def choose_crop(
    labels: np.ndarray, crop: int, cat_max_ratio: float, rng: np.random.Generator
) -> tuple[int, int]:
    """Top and left of a random crop in which no class fills ``cat_max_ratio`` of what is labelled.

    Drawn again at most ten times; the last draw is taken, good or not (mmsegmentation's
    RandomCrop). A side shorter than the crop starts at 0.
    """
    height, width = (max(side - crop, 0) for side in labels.shape)

    def draw() -> tuple[int, int]:
        return int(rng.integers(height + 1)), int(rng.integers(width + 1))

    y, x = draw()
    for _ in range(REDRAWS if cat_max_ratio < 1 else 0):
        window = np.ascontiguousarray(labels[y : y + crop, x : x + crop])
        counts = cv2.calcHist([window], [0], None, [256], [0, 256]).ravel()[:IGNORE]
        if np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < cat_max_ratio:
            break
        y, x = draw()
    return y, x


def distort(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """mmsegmentation's PhotoMetricDistortion of uint8 RGB pixels (H, W, 3), one draw after another.

    Brightness, contrast, saturation and hue, each in half of the cases; contrast before or after
    the other two with equal chance. Saturation and hue each go to OpenCV's 8-bit HSV and back: what
    that rounds off is part of the result.
    """
    table = LEVELS.astype(np.uint8)  # what becomes of each level
    if rng.random() < 0.5:
        table = _clipped(LEVELS + rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    early = rng.random() < 0.5
    if early and rng.random() < 0.5:
        table = _clipped(LEVELS * rng.uniform(*CONTRAST))[table]
    pixels = cv2.LUT(pixels, table)
    if rng.random() < 0.5:
        pixels = _through_hsv(pixels, 1, _clipped(LEVELS * rng.uniform(*SATURATION)))
    if rng.random() < 0.5:
        turned = (np.arange(256) + int(rng.integers(-HUE, HUE))) % 180
        pixels = _through_hsv(pixels, 0, turned.astype(np.uint8))
    if not early and rng.random() < 0.5:
        pixels = cv2.LUT(pixels, _clipped(LEVELS * rng.uniform(*CONTRAST)))
    return pixels


def _through_hsv(pixels: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    """``pixels`` with one channel of their HSV (hue 0 to 179) replaced by the table's levels."""
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _clipped(levels: np.ndarray) -> np.ndarray:
    """A table of 256 levels, as uint8: what is beyond 0 to 255 cut off, fractions dropped."""
    return np.clip(levels, 0, 255).astype(np.uint8)
