"""Colour and blur of one view in uint8, for loader processes: as many levels as Pillow keeps.

Each operation rounds and clips to 0..255, as the official pipeline's do; Pillow cuts off where this
rounds. Only what was drawn is done.
"""

import cv2
import numpy as np

from pretrain.draws import FACTORS, GRAY, ORDER, SIGMA, SOLARIZE

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL and torchvision


def colour_pixels(pixels: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Jitter, grey, blur and solarisation of RGB (H, W, 3) by a :class:`pretrain.draws.Draw`'s numbers."""
    factors = colour[FACTORS].tolist()
    for step in colour[ORDER].tolist():
        if factors[int(step)] != (0 if step == 3 else 1):
            pixels = _OPERATIONS[int(step)](pixels, factors[int(step)])
    if colour[GRAY]:
        pixels = _grey(pixels)
    if colour[SIGMA]:
        pixels = blur(pixels, float(colour[SIGMA]))
    if colour[SOLARIZE]:
        pixels = np.where(pixels < 128, pixels, 255 - pixels)
    return pixels


def brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Towards or away from black."""
    return cv2.convertScaleAbs(pixels, alpha=factor)


def contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Towards or away from the mean brightness."""
    mean = sum(w * m for w, m in zip(_LUMA, cv2.mean(pixels), strict=False))
    return cv2.addWeighted(pixels, factor, pixels, 0, (1 - factor) * mean)


def saturation(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Towards or away from each pixel's grey."""
    return cv2.addWeighted(pixels, factor, _grey(pixels), 1 - factor, 0)


def hue(pixels: np.ndarray, turn: float) -> np.ndarray:
    """Turn the hue by ``turn`` of a full circle. In float32: 8 bits of hue would be 1.4 degrees each."""
    hsv: np.ndarray = cv2.cvtColor(pixels.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[:, :, 0] += np.float32(360 * (turn % 1))  # cv2 takes angles beyond 360, but none below 0
    return cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, cut at three standard deviations, edge pixels repeated outside as Pillow does."""
    radius = max(1, round(3 * sigma))
    taps = cv2.getGaussianKernel(2 * radius + 1, sigma, cv2.CV_32F)
    return cv2.sepFilter2D(pixels, -1, taps, taps, borderType=cv2.BORDER_REPLICATE)


def _grey(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


_OPERATIONS = (brightness, contrast, saturation, hue)  # in the order of the drawn factors
