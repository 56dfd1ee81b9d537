"""What both mmsegmentation and we compute for golden.safetensors: networks, pictures, random draws."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

PATH = Path(__file__).parent / "golden.safetensors"
ARCH = "resnet50-w8"
CLASSES = 5
STEPS = 3  # of SGD, the whole poly schedule
SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
MIN_LR, POWER = 1e-4, 0.9
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of levels, RGB

# Of each network, fields of SegmentConfig; dropout is drawn otherwise than mmsegmentation draws it.
SMALL: dict[str, Any] = {"dropout": 0.0, "head_channels": 16, "aux_channels": 8}
FCN8 = SMALL | {"crop": 48, "slide_stride": 32}
CASES: dict[str, dict[str, Any]] = {
    "whole": FCN8,
    "slide": FCN8 | {"align_corners": True, "inference": "slide"},
    "fcn16s": SMALL
    | {
        "output_stride": 16,
        "contract_dilation": False,
        "head_dilation": 6,
        "head_concat": False,
        "aux_weight": 0.0,
        "align_corners": True,
        "loss_over": "labelled",
    },
}

EDGES = (88, 60)  # test images' longer and shorter side, at most
SIZES = [(500, 375), (375, 500), (2048, 1024), (333, 500), (1000, 100), (64, 501), (7, 5)]
RATIOS = [0.5, 0.731, 1.0, 1.2345, 1.9999]
RESIZED = [(44, 30), (21, 17), (80, 57), (13, 61)]  # of the picture of 44 × 30

# What the generator returns, call by call: mmsegmentation's coins are 0 or 1.
DISTORTIONS: list[list[float]] = [
    [0, 0, 0, 0, 0],
    [1, 30.7, 1, 1, 1.42, 0, 0],
    [1, -25.3, 0, 0, 0, 1, 0.6],
    [0, 1, 0, 1, 1.37, 0],
    [0, 0, 0, 1, -18, 0],
    [1, -7.7, 1, 1, 0.83, 1, 0.55, 1, 17],
    [1, 12.5, 0, 1, 1.49, 1, 5, 1, 1.11],
]
# A row per crop: tops and lefts as they are drawn, the redraws' too; of the labels of size 60 × 44.
CROPS: list[tuple[int, float, list[int]]] = [
    (24, 0.75, [0, 0, 3, 5, 20, 36, 1, 1] + [9, 9] * 8),
    (24, 0.75, [20, 36, 0, 0] + [5, 6] * 10),
    (24, 0.5, [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]),
    (50, 0.75, [0, 3, 0, 7, 0, 10] + [0, 1] * 9),
    (24, 1.0, [4, 30]),
]


class Script:
    """A generator whose draws are given: numpy's for us, numpy.random's functions for mmsegmentation."""

    def __init__(self, values: list[float]) -> None:
        self.values = list(values)

    def random(self) -> float:
        return 0.9 - 0.8 * self.values.pop(0)  # below a half where mmsegmentation's coin is 1

    def uniform(self, low: float, high: float) -> float:
        assert low <= self.values[0] <= high
        return self.values.pop(0)

    def integers(self, low: int, high: int | None = None) -> int:
        low, high = (0, low) if high is None else (low, high)
        assert low <= self.values[0] < high
        return int(self.values.pop(0))

    randint = integers  # numpy.random's name


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Values for tensors of mmsegmentation's names, from a stream that numpy promises to keep."""
    found = {}
    for name, shape in shapes.items():
        draws = np.random.RandomState(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            values = np.zeros(shape, np.int64)
        elif len(shape) == 4:
            values = draws.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
        elif name.endswith(("weight", "running_var")):
            values = draws.uniform(0.5, 1.0, shape)
        else:
            values = draws.standard_normal(shape) * 0.1
        found[name] = torch.from_numpy(values if values.dtype == np.int64 else np.float32(values))
    return found


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """uint8 RGB (height, width, 3): smooth colours and noise."""
    draws = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (3 + c) + c) + np.cos(y / (5 - c)) for c in range(3)]
    levels = 127 + 50 * np.stack(waves, -1) + draws.uniform(-30, 30, (height, width, 3))
    return levels.clip(0, 255).astype(np.uint8)


def labels(width: int, height: int, seed: int = 0) -> np.ndarray:
    """uint8 (height, width): rectangles of classes on class 0, an ignored one among them."""
    draws = np.random.RandomState(seed)
    found = np.zeros((height, width), np.uint8)
    for value in (1, 2, 3, 4, 255, 1, 2):
        top, left = draws.randint(height), draws.randint(width)
        found[top : top + height // 2, left : left + width // 3] = value
    return found


def normalised(pixels: np.ndarray) -> Tensor:
    """(1, 3, H, W) of RGB pixels (H, W, 3)."""
    levels = (torch.from_numpy(pixels.copy()).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    return levels.permute(2, 0, 1)[None].contiguous()


def batch() -> tuple[Tensor, Tensor]:
    """Two training images (2, 3, 48, 64) and their labels (2, 48, 64), int64."""
    images = torch.cat([normalised(picture(64, 48, seed)) for seed in (1, 2)])
    return images, torch.from_numpy(np.stack([labels(64, 48, seed) for seed in (1, 2)])).long()


def fingerprint(change: Mapping[str, Tensor]) -> Tensor:
    """(tensors, 2), sorted by name: the norm of each change, and its product with a random vector."""
    rows = []
    for name in sorted(change):
        flat = change[name].detach().double().flatten()
        vector = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(flat.numel())
        rows.append(torch.stack([flat.norm(), flat @ torch.from_numpy(vector)]))
    return torch.stack(rows)
