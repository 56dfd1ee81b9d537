"""Views: images a second of one thread making two 224 px views of 500 x 375 JPEGs, against the official code.

Usage: OMP_NUM_THREADS=1 python benchmarks/views.py [ROUNDS]. The files are cuts of scikit-learn's two
photographs. Prints the median over rounds, taken in turn in one run, with lowest and highest, and the
ratio to the official pipeline; then the same for decoding alone and for the device's half.
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder: it has a pretrain.py

import numpy as np
import torch
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images
from torch.utils.data import default_collate
from torchvision import transforms

from pretrain.config import AugmentConfig
from pretrain.views import Views, finish
from siambench.data.images import ImageList, decode, decode_array

IMAGES = 64
SIZE = (500, 375)


def write_images(root: Path) -> ImageList:
    """``IMAGES`` cuts, 512 x 384 of 640 x 427, scaled to ``SIZE``; quality 90."""
    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        left, top = int(rng.integers(640 - 512 + 1)), int(rng.integers(427 - 384 + 1))
        cut = photos[i % 2].crop((left, top, left + 512, top + 384))
        cut.resize(SIZE, Image.Resampling.BICUBIC).save(root / f"{i}.jpg", quality=90)
    return ImageList(root, [f"{i}.jpg" for i in range(IMAGES)], [0] * IMAGES, ["a"])


class OfficialBlur:
    """facebookresearch/simsiam, simsiam/loader.py."""

    def __call__(self, picture: Image.Image) -> Image.Image:
        return picture.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def official(crop: int = 224) -> Callable[[Path], list[torch.Tensor]]:
    """Two views of a file as facebookresearch/simsiam, main_simsiam.py, makes them."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(crop, scale=(0.2, 1.0)),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([OfficialBlur()], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )

    def two(path: Path) -> list[torch.Tensor]:
        with open(path, "rb") as handle:
            picture = Image.open(handle).convert("RGB")
        return [transform(picture), transform(picture)]

    return two


def compare(
    title: str,
    unit: str,
    work: dict[str, tuple[int, Callable[[int], object]]],
    rounds: int,
    against: bool = True,
) -> None:
    """Time ``rounds`` turns of each; ``work`` is name: (units a turn, function of the turn's number)."""
    rates: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(-1, rounds):  # one uncounted
        for name, (units, run) in work.items():
            start = time.perf_counter()
            run(turn + 1)
            if turn >= 0:
                rates[name].append(units / (time.perf_counter() - start))
    print(f"\n{title}, {unit}/s: median (lowest to highest){', against the first' * against}")
    first = next(iter(rates.values()))
    for name, rate in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rate, first, strict=True))
        times = f"  x{ratio:.1f}" if against else ""
        print(
            f"{name:34} {statistics.median(rate):8.0f}  ({min(rate):.0f} to {max(rate):.0f}){times}"
        )


def main(rounds: int) -> None:
    """Write the files, then the three comparisons."""
    torch.set_num_threads(1)
    config = AugmentConfig()
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder))
        paths = [images.root / p for p in images.paths]
        size = statistics.mean(p.stat().st_size for p in paths)
        print(
            f"{IMAGES} files of {SIZE[0]} x {SIZE[1]}, {size / 1000:.0f} kB in the mean, one thread"
        )
        two = official()
        kinds = {kind: Views(images, config, kind, 2, 0) for kind in ("pil", "cpu", "device")}

        def make(views: Views) -> Callable[[int], object]:
            return lambda turn: [views[(turn, i)] for i in range(IMAGES)]

        compare(
            "Loader's half",
            "images",
            {
                "official script": (IMAGES, lambda _: [two(p) for p in paths]),
                "--views pil": (IMAGES, make(kinds["pil"])),
                "--views cpu": (IMAGES, make(kinds["cpu"])),
                "--views device (colour, blur later)": (IMAGES, make(kinds["device"])),
            },
            rounds,
        )
        compare(
            "Decoding alone",
            "images",
            {
                "Pillow": (IMAGES, lambda _: [np.asarray(decode(p)) for p in paths]),
                "decode_array": (IMAGES, lambda _: [decode_array(p) for p in paths]),
            },
            rounds,
        )
        digits = AugmentConfig(
            crop=32,
            jitter_p=0,
            gray=0,
            recolour=1,
            recolour_power=2,
            tone=0.3,
            noise=0.05,
            blur=0.3,
        )
        small = Views(images, digits, "device", 1, 0)
        batches = {
            "32 views of 224 px": (kinds["device"], config, 32),
            "64 views of 32 px, recoloured": (small, digits, 64),
        }
        work: dict[str, tuple[int, Callable[[int], object]]] = {}
        for name, (views, settings, count) in batches.items():
            batch = default_collate([views[(0, i)] for i in range(count)])
            units = count * views.views
            work[name] = (units, lambda _, b=batch, s=settings: finish(b, s, "device"))  # type: ignore[misc]
        compare("Device's half on this CPU thread", "crops", work, rounds, against=False)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
