"""The half of a view that happens in batches on the device: colour jitter, grey, recolouring, blur.

Every image draws its own parameters, as torchvision's transforms on single images do; the order of
the jitter's four operations is random per image, as in torchvision's ColorJitter.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.config import AugmentConfig

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL and torchvision
_DARK, _LIGHT = 0.2, 0.8  # ends of the grey ramp that recolouring departs from


class BatchAugment:
    """Colour half of a view: uint8 crops (N, 3, H, W) to floats in [0, 1] of the same shape."""

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config

    def __call__(self, crops: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a batch; all randomness comes from ``generator``, on the crops' device."""
        c = self.config
        x = crops.float() / 255
        if c.jitter_p:
            x = torch.where(_coin(x, c.jitter_p, generator), self._jitter(x, generator), x)
        if c.gray:
            x = torch.where(_coin(x, c.gray, generator), luma(x).expand_as(x), x)
        if c.recolour:
            x = torch.where(_coin(x, c.recolour, generator), self._recolour(x, generator), x)
        if c.blur:
            x = gaussian_blur(x, c.blur, c.sigma, generator)
        return x

    def _jitter(self, x: Tensor, generator: torch.Generator) -> Tensor:
        brightness, contrast, saturation, hue = self.config.jitter
        factors = [_uniform(x, 1 - s, 1 + s, generator) for s in (brightness, contrast, saturation)]
        shift = _uniform(x, -hue, hue, generator)
        order = torch.rand(len(x), 4, device=x.device, generator=generator).argsort(1)
        for step in range(4):
            now = order[:, step].view(-1, 1, 1, 1)
            x = torch.where(now == 0, (x * factors[0]).clamp(0, 1), x)
            grey = luma(x)
            x = torch.where(now == 1, _blend(x, grey.mean((2, 3), keepdim=True), factors[1]), x)
            x = torch.where(now == 2, _blend(x, grey, factors[2]), x)
            if hue:
                x = torch.where(now == 3, shift_hue(x, shift), x)
        return x

    def _recolour(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Stretch the brightness to [0, 1]; map 0 to a dark colour and 1 to a lighter one."""
        c = self.config
        grey = luma(x)
        low, high = grey.amin((2, 3), keepdim=True), grey.amax((2, 3), keepdim=True)
        ink = (grey - low) / (high - low).clamp(min=1e-3)
        if c.tone:
            ink = ink ** torch.exp(_uniform(x, -c.tone, c.tone, generator))
        if c.noise:
            strength = _uniform(x, 0, c.noise, generator)
            draws = torch.randn(ink.shape, device=x.device, generator=generator)
            ink = ink + strength * draws
        dark, light = _two_colours(x, generator)
        if c.recolour_power:
            mix = _uniform(x, 0, 1, generator) ** c.recolour_power
            dark, light = _DARK + mix * (dark - _DARK), _LIGHT + mix * (light - _LIGHT)
        return (dark + (light - dark) * ink).clamp(0, 1)


def luma(x: Tensor) -> Tensor:
    """Brightness (N, 1, H, W) of RGB (N, 3, H, W), by ITU-R 601."""
    weights = torch.tensor(_LUMA, device=x.device).view(1, 3, 1, 1)
    return (x * weights).sum(1, keepdim=True)


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of RGB (N, 3, H, W) in [0, 1] by ``shift`` (N, 1, 1, 1) of a full circle.

    Value and saturation of the HSV cone stay; each channel is read off the hexagon at its own
    distance from the turned hue.
    """
    value, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = value - least
    red, green, blue = x.split(1, dim=1)
    safe = chroma.clamp(min=1e-8)
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    turned = sextant + 6 * shift
    channels = torch.tensor([5.0, 3.0, 1.0], device=x.device).view(1, 3, 1, 1)
    place = (channels + turned) % 6
    return value - chroma * torch.minimum(place, 4 - place).clamp(0, 1)


def gaussian_blur(
    x: Tensor, p: float, sigma: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Blur each image with probability ``p`` by a Gaussian of its own standard deviation.

    Separable, borders reflected, cut at three times the largest standard deviation.
    """
    count, channels, height, width = x.shape
    radius = min(max(1, round(3 * sigma[1])), height - 1, width - 1)
    spread = _uniform(x, *sigma, generator).view(-1, 1)
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-((offsets / spread) ** 2) / 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    kernel = torch.where(_coin(x, p, generator).view(-1, 1), kernel, (offsets == 0).to(x.dtype))
    kernel = kernel.repeat_interleave(channels, 0).unsqueeze(1)  # (N·C, 1, taps)
    flat = x.reshape(1, count * channels, height, width)
    flat = F.pad(flat, (radius,) * 4, mode="reflect")
    flat = F.conv2d(flat, kernel.unsqueeze(2), groups=count * channels)
    flat = F.conv2d(flat, kernel.unsqueeze(3), groups=count * channels)
    return flat.view(count, channels, height, width)


def _two_colours(
    x: Tensor, generator: torch.Generator, contrast: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Two random colours (N, 3, 1, 1) per image, the second lighter, by ``contrast`` if it can be.

    The first of eight random pairs whose brightness differs by so much; if none does (1 image in
    200), the pair that differs most.
    """
    tries = torch.rand(len(x), 8, 2, 3, device=x.device, generator=generator)
    weights = torch.tensor(_LUMA, device=x.device)
    excess = (tries[:, :, 1] - tries[:, :, 0]) @ weights
    first = torch.arange(8.0, 0.0, -1.0, device=x.device)  # above any excess
    chosen = torch.where(excess.abs() >= contrast, first, excess.abs()).argmax(1)
    rows = torch.arange(len(x), device=x.device)
    pair = tries[rows, chosen]
    pair = torch.where((excess[rows, chosen] < 0).view(-1, 1, 1), pair.flip(1), pair)
    return pair[:, 0, :, None, None], pair[:, 1, :, None, None]


def _coin(x: Tensor, p: float, generator: torch.Generator) -> Tensor:
    return _uniform(x, 0, 1, generator) < p


def _uniform(x: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """One number per image, (N, 1, 1, 1)."""
    draws = torch.rand(len(x), 1, 1, 1, device=x.device, generator=generator)
    return low + (high - low) * draws


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (factor * x + (1 - factor) * other).clamp(0, 1)
