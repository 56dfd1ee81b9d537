"""``siambench data make digit-scenes``: the embedded data sets, in the authentic layouts."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from siambench.data.images import MARKER, read_marker
from siambench.errors import UserError
from siambench.files import leftovers, temporary_path, writable_folder, write_text

NAME = "digit-scenes"
VERSION = 1  # raised when the pictures change


@dataclass
class DigitScenesConfig:
    """What to draw.

    Args:
        out: folder to make; holds imagenet/, VOCdevkit/, coco/ and cityscapes/ afterwards.
        images: pictures in imagenet/train; the other splits follow (docs/digit-scenes.md).
        size: side in pixels of the single-digit pictures; scenes are 2 × 1.5 times as large.
        seed: of every choice; the same seed gives the same bytes.
    """

    out: str
    images: int = 6000
    size: int = 40
    seed: int = 0


def split_sizes(images: int) -> dict[str, int]:
    """Pictures per split for ``images`` in imagenet/train."""

    def share(part: int, least: int) -> int:
        return max(least, images // part)

    return {
        "imagenet/train": images,
        "imagenet/val": share(5, 50),
        "voc2007/train": share(20, 30),
        "voc2007/val": share(20, 30),
        "voc2007/test": share(15, 30),
        "voc2012/train": share(20, 30),
        "voc2012/val": share(40, 15),
        "coco/train": share(20, 20),
        "coco/val": share(40, 10),
        "cityscapes/train": share(20, 12),
        "cityscapes/val": share(40, 6),
    }


def make(config: DigitScenesConfig) -> Path:
    """Draw the data sets; a folder that already holds just these is left as it is.

    Returns:
        The folder.

    Raises:
        UserError: numbers out of range, or the folder holds something else.
    """
    if config.images < 10 or not 24 <= config.size <= 512 or config.seed < 0:
        raise UserError(
            f"digit-scenes: images must be at least 10, size 24 to 512 and seed at least 0, not "
            f"{config.images}, {config.size} and {config.seed}"
        )
    out = Path(config.out)
    wanted = {"name": NAME, "version": VERSION, **asdict(config)}
    del wanted["out"]
    if read_marker(out) == wanted:
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out} exists and is not this data set (images {config.images}, size {config.size}, "
            f"seed {config.seed}); remove it or choose another --out"
        )
    writable_folder(out.parent, "--out: folder")
    for left in leftovers(out):
        shutil.rmtree(left, ignore_errors=True)
    unfinished = temporary_path(out)
    unfinished.mkdir(exist_ok=True)
    try:
        _draw(unfinished, config)
        write_text(unfinished / MARKER, json.dumps(wanted, indent=1) + "\n")
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return out


def _draw(root: Path, config: DigitScenesConfig) -> None:
    import numpy as np

    from siambench.data import layouts
    from siambench.data.digits import Scene, draw_several, draw_single
    from siambench.progress import bar

    sizes = split_sizes(config.images)
    unit = config.size
    with bar("digit scenes: pictures", sum(sizes.values())) as progress:

        def rng(key: str, number: int) -> np.random.Generator:
            return np.random.default_rng([config.seed, list(sizes).index(key), number])

        def singles(key: str, pool: str) -> Iterator[tuple[int, Scene]]:
            for number in range(sizes[key]):
                digit = number % 10
                yield digit, draw_single(pool, digit, unit, rng(key, number), config.seed)
                progress.advance()

        def several(
            key: str, pool: str, *, crowds: float = 0, wide: bool = False
        ) -> Iterator[Scene]:
            for number in range(sizes[key]):
                choose = rng(key, number)
                width, height = (2 * unit, unit if wide else 3 * unit // 2)
                if not wide and choose.random() < 0.3:
                    width, height = height, width
                crowd = bool(choose.random() < crowds)
                yield draw_several(pool, width, height, unit, choose, config.seed, crowd=crowd)
                progress.advance()

        for split, pool in (("train", "train"), ("val", "test")):
            layouts.write_imagenet(root / "imagenet", split, singles(f"imagenet/{split}", pool))
        devkit = root / "VOCdevkit"
        voc07 = {split: several(f"voc2007/{split}", split) for split in ("train", "val", "test")}
        layouts.write_voc(devkit, "2007", voc07)
        voc12 = {split: several(f"voc2012/{split}", split) for split in ("train", "val")}
        layouts.write_voc(devkit, "2012", voc12, segmented=2)
        for split, pool in (("train", "train"), ("val", "test")):
            coco = several(f"coco/{split}", pool, crowds=0.15)
            layouts.write_coco(root / "coco", split, coco)
            city = several(f"cityscapes/{split}", pool, wide=True)
            layouts.write_cityscapes(root / "cityscapes", split, city)
