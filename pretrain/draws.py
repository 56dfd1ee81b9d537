"""The random numbers of a view, drawn from (seed, epoch, image) alone.

A view is the same whatever the batch, the place in it, the number of workers or processes, and after
a restart. Distributions are those of torchvision's transforms, which SimSiam's official code composes
(facebookresearch/simsiam, main_simsiam.py).
"""

import math
from dataclasses import dataclass

import numpy as np

from pretrain.config import AugmentConfig

# The columns of a view's colour numbers; an operation that is not drawn has the value that changes
# nothing.
FACTORS = slice(0, 4)  # of brightness, contrast, saturation; turn of the hue (1 is a full circle)
ORDER = slice(4, 8)  # which of those four comes first, second, ...
GRAY = 8  # 1: lose colour
SIGMA = 9  # of the blur in pixels; 0 for none
RECOLOUR, GAMMA, NOISE = 10, 11, 12  # 1: recolour; exponent; standard deviation of the noise
DARK, LIGHT = slice(13, 16), slice(16, 19)  # the ramp's two ends
SOLARIZE = 19  # 1: invert what is bright
COLUMNS = 20

TRIES = 10  # crop boxes tried, as torchvision's RandomResizedCrop
_SCALARS = 18  # other numbers of a view
_PAIRS = 8  # pairs of colours tried
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601
_RAMP = (0.2, 0.8)  # ends of the grey ramp that recolouring departs from


@dataclass(frozen=True)
class Draw:
    """One view's random numbers.

    Attributes:
        boxes: (TRIES, 4) numbers in [0, 1) for :func:`pretrain.crops.crop_box`.
        angle: of the rotation in degrees.
        flip: whether the view is mirrored.
        colour: float32 (COLUMNS,).
    """

    boxes: np.ndarray
    angle: float
    flip: bool
    colour: np.ndarray


def generator(seed: int, epoch: int, image: int) -> np.random.Generator:
    """The source of all random numbers of the views of one image in one epoch."""
    return np.random.default_rng([seed, 1, epoch, image])


def draw_views(rng: np.random.Generator, config: AugmentConfig, views: int) -> list[Draw]:
    """The numbers of all views of an image; what is switched off takes its share of numbers too."""
    rows = rng.random((views, 4 * TRIES + _SCALARS + 6 * _PAIRS))
    draws = [_draw(row, config, view) for view, row in enumerate(rows)]
    solarize = [of_view(config, "solarize", view) for view in range(views)]
    if any(solarize):  # drawn last, so that without it all is as it always was
        for draw, p, u in zip(draws, solarize, rng.random(views), strict=True):
            draw.colour[SOLARIZE] = u < p
    return draws


def of_view(config: AugmentConfig, name: str, view: int) -> float:
    """A probability that an image's second view may have for itself."""
    second = getattr(config, f"{name}_second")
    return float(getattr(config, name) if view != 1 or second is None else second)


def _draw(row: np.ndarray, c: AugmentConfig, view: int) -> Draw:
    boxes = row[: 4 * TRIES].reshape(TRIES, 4)
    u = row[4 * TRIES : 4 * TRIES + _SCALARS].tolist()
    colour = np.zeros(COLUMNS, np.float32)
    colour[FACTORS] = (1, 1, 1, 0)
    colour[ORDER] = (0, 1, 2, 3)
    colour[GAMMA] = 1
    if u[2] < c.jitter_p:
        centres = (1, 1, 1, 0)
        colour[FACTORS] = [
            centre + strength * (2 * x - 1)
            for centre, strength, x in zip(centres, c.jitter, u[3:7], strict=True)
        ]
        colour[ORDER] = sorted(range(4), key=u[7:11].__getitem__)
    colour[GRAY] = u[11] < c.gray
    if u[12] < of_view(c, "blur", view):
        colour[SIGMA] = c.sigma[0] + (c.sigma[1] - c.sigma[0]) * u[13]
    if u[14] < c.recolour:
        colour[RECOLOUR] = 1
        colour[GAMMA] = math.exp(c.tone * (2 * u[15] - 1))
        colour[NOISE] = c.noise * u[16]
        mix = u[17] ** c.recolour_power
        pair = two_colours(row[4 * TRIES + _SCALARS :].reshape(_PAIRS, 2, 3))
        colour[DARK], colour[LIGHT] = (
            grey + mix * (end - grey) for grey, end in zip(_RAMP, pair, strict=True)
        )
    return Draw(boxes, c.rotate * (2 * u[0] - 1), u[1] < c.flip, colour)


def two_colours(tries: np.ndarray, contrast: float = 0.2) -> np.ndarray:
    """Two colours (2, 3) out of random pairs (T, 2, 3), the second lighter, by ``contrast`` if it can be.

    The first pair whose brightness differs by so much; if none does (1 in 200 of eight uniform
    pairs), the pair that differs most.
    """
    excess = (tries[:, 1] - tries[:, 0]) @ _LUMA
    enough = np.abs(excess) >= contrast
    chosen = int((enough if enough.any() else np.abs(excess)).argmax())
    return tries[chosen, ::-1] if excess[chosen] < 0 else tries[chosen]
