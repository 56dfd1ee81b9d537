"""Colour and blur of a batch of views, on the training device: float, each image by its own numbers.

The numbers were drawn in the loader (:mod:`pretrain.draws`). Nothing here asks the device for a value,
so that nothing waits for it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.config import AugmentConfig
from pretrain.draws import (
    DARK,
    FACTORS,
    GAMMA,
    GRAY,
    LIGHT,
    NOISE,
    ORDER,
    RECOLOUR,
    SIGMA,
    SOLARIZE,
)


def colour_views(
    x: Tensor, colour: Tensor, config: AugmentConfig, noise: Tensor | None = None
) -> Tensor:
    """Jitter, grey, recolouring, blur and solarisation.

    Args:
        x: RGB (N, 3, H, W) in [0, 1].
        colour: (N, COLUMNS), see :mod:`pretrain.draws`.
        config: what is switched off there is left out.
        noise: standard normal (N, 1, H, W), for recolouring with ``config.noise``.

    Returns:
        The shape and memory format of ``x``.
    """
    if config.jitter_p and x.device.type == "cpu":
        x = jitter_each(x, colour[:, FACTORS], colour[:, ORDER])
    elif config.jitter_p:
        x = jitter_batch(x, colour[:, FACTORS], colour[:, ORDER], hue=config.jitter[3] > 0)
    if config.gray:
        x = torch.where(_per_image(colour[:, GRAY]) > 0, luma(x), x)
    if config.recolour:
        x = torch.where(_per_image(colour[:, RECOLOUR]) > 0, _recolour(x, colour, noise), x)
    if config.blur or config.blur_second:
        x = gaussian_blur(x, colour[:, SIGMA], config.sigma[1])
    if config.solarize or config.solarize_second:
        bright = (x >= 128 / 255) & (_per_image(colour[:, SOLARIZE]) > 0)
        x = torch.where(bright, 1 - x, x)
    return x


def jitter_batch(x: Tensor, factors: Tensor, order: Tensor, *, hue: bool = True) -> Tensor:
    """Brightness, contrast, saturation and hue in each image's own order, as torchvision's ColorJitter.

    Each of the first three is a mixture of the pixel, its grey and the image's mean grey.

    Args:
        x: RGB (N, 3, H, W) in [0, 1].
        factors: (N, 4) in the order above; 1, 1, 1, 0 change nothing.
        order: (N, 4), 0 to 3: the operation of each step.
        hue: whether any factor of the hue differs from 0.
    """
    factor = factors.gather(1, order.long())  # of each step
    one, none = torch.ones_like(factor), torch.zeros_like(factor)
    of_pixel = torch.where(order == 3, one, factor)
    of_grey = torch.where(order == 2, 1 - factor, none)
    of_mean = torch.where(order == 1, 1 - factor, none)
    turn = torch.where(order == 3, factor, none)
    for step in range(4):
        grey = luma(x)
        mean = grey.mean((2, 3), keepdim=True) * _per_image(of_mean[:, step])
        x = x * _per_image(of_pixel[:, step])
        x = (x + (grey * _per_image(of_grey[:, step]) + mean)).clamp(0, 1)
        if hue:
            x = shift_hue(x, _per_image(turn[:, step]))
    return x


def jitter_each(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """The same, one image after the other and only what was drawn: for a CPU, which has no one to wait for."""
    images = []
    for now, numbers, steps in zip(
        torch.split(x, 1), factors.tolist(), order.tolist(), strict=True
    ):
        for step in map(int, steps):
            factor = numbers[step]
            if step == 3 and factor:
                now = shift_hue(now, factor)
            elif step < 3 and factor != 1:
                mixed = now * factor
                if step:
                    grey = luma(now)
                    mixed += (1 - factor) * (grey.mean() if step == 1 else grey)
                now = mixed.clamp_(0, 1)
        images.append(now)
    return torch.cat(images)


def _recolour(x: Tensor, colour: Tensor, noise: Tensor | None) -> Tensor:
    """Stretch the brightness to [0, 1]; map 0 to a dark colour and 1 to a lighter one."""
    grey = luma(x)
    low, high = grey.amin((2, 3), keepdim=True), grey.amax((2, 3), keepdim=True)
    ink = ((grey - low) / (high - low).clamp(min=1e-3)) ** _per_image(colour[:, GAMMA])
    if noise is not None:
        ink = ink + _per_image(colour[:, NOISE]) * noise
    dark, light = colour[:, DARK, None, None], colour[:, LIGHT, None, None]
    return (dark + (light - dark) * ink).clamp(0, 1)


def luma(x: Tensor) -> Tensor:
    """Brightness (N, 1, H, W) of RGB (N, 3, H, W), by ITU-R 601 as PIL and torchvision."""
    red, green, blue = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    return 0.299 * red + 0.587 * green + 0.114 * blue


def shift_hue(x: Tensor, turn: Tensor | float) -> Tensor:
    """Turn the hue of RGB (N, 3, H, W) in [0, 1] by ``turn`` (N, 1, 1, 1) of a full circle.

    Value and saturation of the HSV cone stay; each channel is read off the hexagon at its own
    distance from the turned hue.
    """
    value, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = value - least
    red, green, blue = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    safe = chroma.clamp(min=1e-8)
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    turned = sextant + 6 * turn
    turned = turned - 6 * (turned / 6).floor()
    shares = (
        (turned - 3).abs() - 1,
        2 - (turned - 2).abs(),
        2 - (turned - 4).abs(),
    )
    return torch.cat(shares, 1).clamp(0, 1) * chroma + least


def gaussian_blur(x: Tensor, sigma: Tensor, most: float) -> Tensor:
    """Blur each image (N, C, H, W) by a Gaussian of its own ``sigma`` (N,), ``most`` at most; 0 for none.

    Separable, edge pixels repeated outside as Pillow does, cut at three times ``most``.
    """
    count, channels, height, width = x.shape
    radius = max(1, round(3 * most))
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-((offsets / sigma.clamp(min=1e-3)[:, None]) ** 2) / 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    kernel = kernel.repeat_interleave(channels, 0).unsqueeze(1)  # (N·C, 1, taps)
    flat = x.reshape(1, count * channels, height, width)
    flat = F.pad(flat, (radius,) * 4, mode="replicate")
    flat = F.conv2d(flat, kernel.unsqueeze(2), groups=count * channels)
    flat = F.conv2d(flat, kernel.unsqueeze(3), groups=count * channels)
    return flat.view(count, channels, height, width).contiguous(memory_format=torch.channels_last)


def _per_image(numbers: Tensor) -> Tensor:
    return numbers[:, None, None, None]
