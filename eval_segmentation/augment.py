"""Training crops: random scale, crop, flip and photometric distortion, as mmsegmentation draws them.

Each crop is a function of the seed and of its place in the stream of training images alone, so that
a run resumed at any iteration, with any number of loader processes, sees what it would have seen.
"""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as T

from eval_segmentation.config import SegmentConfig
from eval_segmentation.data import IGNORE, SegmentationData, read_mask
from siambench.data.images import decode

# mmsegmentation, mmseg/datasets/transforms/transforms.py, defaults of PhotoMetricDistortion.
BRIGHTNESS = 32  # added, of 255
CONTRAST = SATURATION = (0.5, 1.5)  # factors
HUE = 18  # in OpenCV's units of 2 degrees
REDRAWS = 10  # RandomCrop's


def scaled_size(size: tuple[int, int], long_edge: int, short_edge: int) -> tuple[int, int]:
    """The largest (width, height) of this shape with its sides at most ``long_edge``, ``short_edge``.

    mmcv's imrescale; it enlarges too. At least one pixel a side.
    """
    factor = min(long_edge / max(size), short_edge / min(size))
    width, height = (max(1, int(side * factor + 0.5)) for side in size)
    return width, height


def resize_image(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """uint8 (3, H, W) of ``size`` (width, height); bilinear, not antialiased, as OpenCV does it."""
    pixels = T.pil_to_tensor(image)
    return T.resize(pixels, [size[1], size[0]], InterpolationMode.BILINEAR, antialias=False)


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
        self.fill = torch.tensor(fill).round().to(torch.uint8).view(3, 1, 1)

    def __len__(self) -> int:
        return self.config.iterations * self.config.batch_size

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        """uint8 image (3, crop, crop) and uint8 labels (crop, crop)."""
        config = self.config
        epoch, place = divmod(item, len(self.data.train))
        pair = self.data.train[_shuffled(len(self.data.train), self.seed, epoch)[place]]
        rng = np.random.default_rng([self.seed, 1, item])
        image, labels = decode(pair.image), read_mask(pair.mask, self.data.table)

        ratio = rng.uniform(config.ratio_min, config.ratio_max)
        edges = int(config.long_edge * ratio), int(config.short_edge * ratio)
        width, height = scaled_size(image.size, *edges)
        pixels = resize_image(image, (width, height))
        labels = T.resize(
            torch.from_numpy(labels)[None], [height, width], InterpolationMode.NEAREST
        )[0].numpy()

        y, x = choose_crop(labels, config.crop, config.cat_max_ratio, rng)
        window = (slice(y, y + config.crop), slice(x, x + config.crop))
        labels, pixels = labels[window], pixels[:, *window]
        if config.flip and rng.random() < 0.5:
            labels, pixels = labels[:, ::-1], pixels.flip(2)
        if config.distort:
            distorted = distort(pixels.permute(1, 2, 0).contiguous().numpy(), rng)
            pixels = torch.from_numpy(distorted).permute(2, 0, 1)

        out = self.fill.expand(3, config.crop, config.crop).clone()
        out[:, : pixels.shape[1], : pixels.shape[2]] = pixels
        out_labels = torch.full((config.crop, config.crop), IGNORE, dtype=torch.uint8)
        out_labels[: labels.shape[0], : labels.shape[1]] = torch.from_numpy(labels.copy())
        return out, out_labels


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
        counts = np.bincount(labels[y : y + crop, x : x + crop].ravel(), minlength=256)[:IGNORE]
        if np.count_nonzero(counts) > 1 and counts.max() < cat_max_ratio * counts.sum():
            break
        y, x = draw()
    return y, x


def distort(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """mmsegmentation's PhotoMetricDistortion of uint8 RGB pixels (H, W, 3).

    Brightness, contrast, saturation and hue, each in half of the cases; contrast before or after
    the other two with equal chance.
    """
    levels = np.arange(256, dtype=np.float32)
    if rng.random() < 0.5:
        pixels = _clipped(levels + rng.uniform(-BRIGHTNESS, BRIGHTNESS))[pixels]
    contrast = rng.uniform(*CONTRAST) if rng.random() < 0.5 else 1.0
    early = rng.random() < 0.5
    if early:
        pixels = _clipped(levels * contrast)[pixels]
    saturation = rng.uniform(*SATURATION) if rng.random() < 0.5 else 1.0
    hue = int(rng.integers(-HUE, HUE)) if rng.random() < 0.5 else 0
    if saturation != 1 or hue:
        hsv = np.array(Image.fromarray(pixels).convert("HSV"))
        hsv[..., 0] += np.uint8(round(hue * 2 / 360 * 256) % 256)  # PIL's hue has 256 steps
        hsv[..., 1] = _clipped(levels * saturation)[hsv[..., 1]]
        pixels = np.array(Image.fromarray(hsv, "HSV").convert("RGB"))
    if not early:
        pixels = _clipped(levels * contrast)[pixels]
    return pixels


def _clipped(levels: np.ndarray) -> np.ndarray:
    """A look-up table of 256 levels, as uint8."""
    return np.clip(levels, 0, 255).astype(np.uint8)
