"""A VOCdevkit of coloured squares (three classes, several per image, some only as difficult), and noise."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}
SIZES = {"trainval": 48, "test": 30}


def make_small_voc(root: Path, seed: int = 0) -> Path:
    """Draw it; labels (images, classes) are also written as ``labels-SPLIT.npy``. Returns ``root``."""
    rng = np.random.default_rng(seed)
    folder = root / "VOCdevkit" / "VOC2007"
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for split, count in SIZES.items():
        present = rng.random((count, len(COLOURS))) < 0.4
        difficult = ~present & (rng.random(present.shape) < 0.1)
        labels = np.where(present, 1, np.where(difficult, 0, -1))
        ids = [f"{split}{number:04d}" for number in range(count)]
        for image, row in zip(ids, labels, strict=True):
            picture = rng.integers(90, 130, (36, 48, 3), dtype=np.uint8)
            for colour, label in zip(COLOURS.values(), row, strict=True):
                if label >= 0:
                    top, left = rng.integers(0, 24), rng.integers(0, 36)
                    side = 12 if label == 1 else 3
                    picture[top : top + side, left : left + side] = colour
            Image.fromarray(picture).save(folder / "JPEGImages" / f"{image}.jpg")
        main = folder / "ImageSets" / "Main"
        (main / f"{split}.txt").write_text("\n".join(ids) + "\n")
        for name, column in zip(COLOURS, labels.T, strict=True):
            lines = [f"{image} {label:2d}" for image, label in zip(ids, column, strict=True)]
            (main / f"{name}_{split}.txt").write_text("\n".join(lines) + "\n")
        np.save(root / f"labels-{split}.npy", labels)
    return root


def make_small_folder(root: Path, **splits: Sequence[int]) -> Path:
    """Image folders of noise, ``SPLIT/c0/0.png`` ..., as many a class as said (0: an empty class is not made)."""
    rng = np.random.default_rng(0)
    for split, counts in splits.items():
        for label, count in enumerate(counts):
            for number in range(count):
                path = root / split / f"c{label}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return root
