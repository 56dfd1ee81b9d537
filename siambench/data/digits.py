"""Drawing digit scenes: scikit-learn's handwritten digits on grounds with a trace of photograph.

Why the scenes look as they do is told in docs/digit-scenes.md. The rendering is fixed: recipes may
change views, networks and schedules, never the pictures.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
POOLS = {"train": 1197, "val": 200, "test": 400}  # digits (of 1,797) that each split may draw

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601, as PIL's convert("L")
CONTRAST = 0.4  # least excess of the ink's luma over the ground's, of 1
FAINT = 0.2  # the same for the one digit in ten that VOC's annotators would call difficult
TILT = 12.0  # degrees, either way
TEXTURE = 0.03  # of the photograph's deviation from its mean, added to the ground
INK = 0.35  # coverage from which a pixel belongs to the digit


@dataclass(frozen=True)
class Instance:
    """One digit in a scene.

    Attributes:
        digit: 0 to 9.
        mask: bool (H, W), what is visible of it.
        visible: fraction of its ink that no later digit covers.
        faint: drawn with less contrast than ``CONTRAST``.
    """

    digit: int
    mask: np.ndarray[Any, Any]
    visible: float
    faint: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 of the visible mask; x1 and y1 exclusive."""
        ys, xs = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it.

    Attributes:
        pixels: uint8 (H, W, 3).
        instances: digits, the front one last.
        crowd: digit and bool mask (H, W) of a clump of small digits, or None.
        digits_used: indices into scikit-learn's digits.
    """

    pixels: np.ndarray[Any, Any]
    instances: list[Instance]
    crowd: tuple[int, np.ndarray[Any, Any]] | None
    digits_used: list[int]


@lru_cache(maxsize=1)
def _source() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]:
    digits = load_digits()
    photographs = [p.astype(np.float64) for p in load_sample_images().images]
    return digits.images, digits.target, photographs


@lru_cache(maxsize=8)
def pool(split: str, seed: int) -> tuple[np.ndarray[Any, Any], ...]:
    """Indices of the digits that ``split`` may use, one array per class 0 to 9.

    Stratified and disjoint over the splits of one seed: no digit image is in two.
    """
    _, target, _ = _source()
    rng = np.random.default_rng([seed, 0xD161])
    shares = np.cumsum([POOLS[s] / len(target) for s in ("train", "val", "test")])
    found = []
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(target == digit))
        cuts = np.rint(shares * len(members)).astype(int)
        parts = dict(zip(POOLS, np.split(members, cuts[:-1]), strict=True))
        found.append(np.sort(parts[split]))
    return tuple(found)


def draw_single(split: str, digit: int, size: int, rng: np.random.Generator, seed: int) -> Scene:
    """A ``size`` × ``size`` picture of one digit: ImageNet's kind."""
    canvas = _Canvas(size, size, split, seed, rng)
    canvas.place(digit, round(size * rng.uniform(0.8, 1.0)), faint=False)
    return canvas.scene()


def draw_several(
    split: str,
    width: int,
    height: int,
    unit: int,
    rng: np.random.Generator,
    seed: int,
    *,
    crowd: bool,
) -> Scene:
    """A picture of one to three digits, each 0.6 to 1 ``unit`` high: VOC's and COCO's kind.

    Args:
        split: pool to draw from.
        width, height: pixels.
        unit: pixels; what a digit's size is relative to.
        rng: source of every choice.
        seed: of the pools.
        crowd: add a clump of small digits of one class.
    """
    canvas = _Canvas(width, height, split, seed, rng)
    clump = canvas.clump(int(rng.integers(10)), unit) if crowd else None
    for _ in range(int(rng.integers(1, 4))):
        side = round(unit * rng.uniform(0.6, 1.0))
        canvas.place(int(rng.integers(10)), side, faint=bool(rng.random() < 0.1))
    return canvas.scene(clump)


class _Canvas:
    """A ground on which digits are put one after the other."""

    def __init__(
        self, width: int, height: int, split: str, seed: int, rng: np.random.Generator
    ) -> None:
        self.split, self.seed, self.rng = split, seed, rng
        self.ground = self._ground_colour()
        self.pixels = self.ground + TEXTURE * self._photograph(width, height)
        self.covers: list[tuple[int, np.ndarray[Any, Any], bool]] = []
        self.used: list[int] = []

    def _photograph(self, width: int, height: int) -> np.ndarray[Any, Any]:
        """A crop of a photograph, mirrored where it is too small, less its mean colour."""
        photographs = _source()[2]
        photo = photographs[self.rng.integers(len(photographs))]
        top, left = self.rng.integers(photo.shape[0]), self.rng.integers(photo.shape[1])
        rows = _mirror(top + np.arange(height), photo.shape[0])
        columns = _mirror(left + np.arange(width), photo.shape[1])
        crop = photo[rows][:, columns]
        return crop - crop.mean((0, 1))

    def _ground_colour(self) -> np.ndarray[Any, Any]:
        """A colour that leaves room for lighter ink."""
        while True:
            colour = self.rng.uniform(0, 255, 3)
            if float(LUMA @ colour) / 255 <= 1 - CONTRAST - 0.1:
                return colour

    def _ink_colour(self, faint: bool) -> np.ndarray[Any, Any]:
        """A colour lighter than the ground by CONTRAST or more (from FAINT to CONTRAST if faint)."""
        while True:
            colour = self.rng.uniform(0, 255, 3)
            excess = float(LUMA @ (colour - self.ground)) / 255
            if FAINT <= excess < CONTRAST if faint else excess >= CONTRAST:
                return colour

    def _coverage(self, digit: int, side: int) -> np.ndarray[Any, Any]:
        """Ink coverage in [0, 1] of a digit of the pool: 8×8 enlarged to ``side``, tilted."""
        images = _source()[0]
        index = int(self.rng.choice(pool(self.split, self.seed)[digit]))
        self.used.append(index)
        small = Image.fromarray(np.pad(images[index] * (255 / 16), 2).astype(np.uint8))  # 12×12
        big = small.resize((side * 12 // 8,) * 2, Image.Resampling.BICUBIC)
        big = big.rotate(self.rng.uniform(-TILT, TILT), Image.Resampling.BICUBIC)
        margin = (big.width - side) // 2
        cut = big.crop((margin, margin, margin + side, margin + side))
        return np.asarray(cut, np.float64) / 255

    def _paint(self, cover: np.ndarray[Any, Any], colour: np.ndarray[Any, Any]) -> None:
        self.pixels = self.pixels * (1 - cover[..., None]) + colour * cover[..., None]

    def place(self, digit: int, side: int, *, faint: bool) -> None:
        """Put a digit where it hides little of those before it (the best of five places)."""
        height, width = self.pixels.shape[:2]
        side = min(side, height, width)
        coverage = self._coverage(digit, side)
        taken = np.zeros((height, width), bool)
        for _, earlier, _ in self.covers:
            taken |= earlier > INK
        places = [
            (int(self.rng.integers(height - side + 1)), int(self.rng.integers(width - side + 1)))
            for _ in range(5)
        ]
        top, left = min(places, key=lambda p: taken[p[0] : p[0] + side, p[1] : p[1] + side].sum())
        cover = np.zeros((height, width))
        cover[top : top + side, left : left + side] = coverage
        self._paint(cover, self._ink_colour(faint))
        self.covers.append((digit, cover, faint))

    def clump(self, digit: int, unit: int) -> tuple[int, np.ndarray[Any, Any]]:
        """Six to ten small digits of one class close together, behind everything else."""
        height, width = self.pixels.shape[:2]
        side = max(8, unit // 4)
        extent = min(unit, height, width)
        top = int(self.rng.integers(height - extent + 1))
        left = int(self.rng.integers(width - extent + 1))
        mask = np.zeros((height, width), bool)
        colour = self._ink_colour(faint=False)
        for _ in range(int(self.rng.integers(6, 11))):
            y = top + int(self.rng.integers(extent - side + 1))
            x = left + int(self.rng.integers(extent - side + 1))
            cover = np.zeros((height, width))
            cover[y : y + side, x : x + side] = self._coverage(digit, side)
            self._paint(cover, colour)
            mask |= cover > INK
        return digit, mask

    def scene(self, clump: tuple[int, np.ndarray[Any, Any]] | None = None) -> Scene:
        """The finished picture; digits that others hide completely are left out."""
        instances: list[Instance] = []
        hidden = np.zeros(self.pixels.shape[:2], bool)
        for digit, cover, faint in reversed(self.covers):
            whole = cover > INK
            mask = whole & ~hidden
            hidden |= whole
            if mask.sum() >= 9:
                share = float(mask.sum() / whole.sum())
                instances.append(Instance(digit, mask, share, faint))
        instances.reverse()
        if clump is not None:
            visible = clump[1] & ~hidden
            clump = (clump[0], visible) if visible.any() else None
        pixels = np.clip(np.rint(self.pixels), 0, 255).astype(np.uint8)
        return Scene(pixels, instances, clump, self.used)


def _mirror(index: np.ndarray[Any, Any], length: int) -> np.ndarray[Any, Any]:
    folded = index % (2 * length)
    return np.where(folded < length, folded, 2 * length - 1 - folded)
