"""Image and mask pairs of VOC 2012 (aug) and Cityscapes, all of them checked before training."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from eval_segmentation.config import SegmentConfig, check_config
from siambench.data.images import check_images, dataset_name
from siambench.data.voc import class_names, split_ids, voc_folder
from siambench.errors import UserError
from siambench.files import digest_of, existing
from siambench.progress import bar
from siambench.record import DatasetInfo

IGNORE = 255  # VOC's border and all that Cityscapes does not train on

# labelIds of the 19 classes that are trained and tested, in the order of their train ids; the other
# ids from 0 to 33 are void. Source: mcordts/cityscapesScripts, helpers/labels.py.
CITYSCAPES = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
CITYSCAPES_IDS = 34

# Names under which the list of VOC's and SBD's training images goes round.
AUG_LISTS = ("train_aug", "trainaug")


@dataclass(frozen=True)
class Pair:
    """An image, its mask of the same size, and that size as (width, height)."""

    image: Path
    mask: Path
    size: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class SegmentationData:
    """What there is to train and test on.

    Attributes:
        classes: names, in the order of the label values.
        table: uint8 (256,), from a value in a mask file to a label (or ``IGNORE``).
        train, val: checked pairs.
        info: name, fingerprint and counts, for the record.
    """

    classes: list[str]
    table: np.ndarray
    train: list[Pair]
    val: list[Pair]
    info: DatasetInfo


def open_data(config: SegmentConfig) -> SegmentationData:
    """List the pairs of ``config.dataset`` and check every one of them.

    Raises:
        UserError: a list, an image or a mask is missing; an image cannot be read (and not
            ``skip_bad``); a mask is not of its image's size, not a picture of indices, or holds a
            value that is no class; or a field of ``config`` is out of its range.
    """
    check_config(config)
    root = Path(config.data)
    if config.dataset == "cityscapes":
        classes, values = list(CITYSCAPES), set(range(CITYSCAPES_IDS))
        table = _table(dict(zip(CITYSCAPES.values(), range(len(CITYSCAPES)), strict=True)))
        folder = root
        listed = {split: _cityscapes_pairs(root, split) for split in ("train", "val")}
    else:
        folder = voc_folder(root, "2012")
        classes = ["background", *class_names(folder, "train")]
        values = set(range(len(classes)))
        table = _table({value: value for value in values})
        listed = _voc_pairs(folder, aug=config.dataset == "voc12aug")
    checked, digests, skipped = {}, {}, 0
    for split, pairs in listed.items():
        good, histogram = _check(pairs, values | {IGNORE}, config.skip_bad, split)
        labelled = histogram[table != IGNORE].sum()
        if not labelled:
            raise UserError(f"{folder}: no pixel of the {split} masks belongs to a class")
        checked[split] = good
        skipped += len(pairs) - len(good)
        rows = [[_described(path, folder) for path in (p.image, p.mask)] for p in good]
        digests[split] = digest_of([rows, histogram.tolist()])
    counts = {split: len(pairs) for split, pairs in checked.items()}
    name = dataset_name(folder, counts)
    counts |= {"classes": len(classes), "skipped": skipped}
    info = DatasetInfo(name, digest_of({"classes": classes, **digests}), counts)
    return SegmentationData(classes, table, checked["train"], checked["val"], info)


def read_mask(path: Path, table: np.ndarray) -> np.ndarray:
    """Labels (H, W), uint8, of a mask file; a palette picture is read as its indices."""
    with Image.open(path) as mask:
        return table[np.asarray(mask)]


def _table(labels: dict[int, int]) -> np.ndarray:
    table = np.full(256, IGNORE, np.uint8)
    table[list(labels)] = list(labels.values())
    return table


def _described(path: Path, folder: Path) -> list[str | int]:
    return [path.relative_to(folder).as_posix(), path.stat().st_size]


def _voc_pairs(folder: Path, aug: bool) -> dict[str, list[Pair]]:
    """VOC's own masks for its own training and val images, SBD's for the rest of the aug list.

    mmselfsup does the same: configs/benchmarks/mmsegmentation/_base_/datasets/pascal_voc12_aug.py.
    """
    own, val = _ids(folder, "train"), _ids(folder, "val")
    train = own
    if aug:
        name, train = _aug_ids(folder, own)
        if leaked := sorted(set(train) & set(val)):
            raise UserError(
                f"{folder}/ImageSets/Segmentation/{name}.txt holds {len(leaked)} images of val.txt, "
                f"{leaked[0]} among them; remove them: val is what is tested on"
            )
    annotated_by_voc = set(own) | set(val)

    def pair(name: str) -> Pair:
        kind = "SegmentationClass" if name in annotated_by_voc else "SegmentationClassAug"
        return Pair(folder / "JPEGImages" / f"{name}.jpg", folder / kind / f"{name}.png")

    return {"train": [pair(name) for name in train], "val": [pair(name) for name in val]}


def _ids(folder: Path, split: str) -> list[str]:
    """Image ids of a segmentation list; DeepLab's lists give paths, whose stems are the ids."""
    lines = split_ids(folder, split, "Segmentation")
    return list(dict.fromkeys(Path(line).stem for line in lines))


def _aug_ids(folder: Path, own: list[str]) -> tuple[str, list[str]]:
    lists = folder / "ImageSets" / "Segmentation"
    for name in AUG_LISTS:
        if (lists / f"{name}.txt").is_file():
            return name, _ids(folder, name)
    if (lists / "aug.txt").is_file():  # mmsegmentation's converter: what is not in train.txt
        return "aug", list(dict.fromkeys([*own, *_ids(folder, "aug")]))
    raise UserError(
        f"{lists} has no train_aug.txt (nor trainaug.txt, nor aug.txt): add SBD's masks "
        "(SegmentationClassAug) and their list, or train on VOC's own with --dataset voc12 and no --preset"
    )


def _cityscapes_pairs(root: Path, split: str) -> list[Pair]:
    hint = "expected leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/SPLIT/CITY/*_labelIds.png"
    images = existing(root / "leftImg8bit" / split, "Cityscapes images", folder=True, hint=hint)
    masks = existing(root / "gtFine" / split, "Cityscapes masks", folder=True, hint=hint)
    ending = "_leftImg8bit.png"
    found = sorted(images.glob(f"*/*{ending}"))
    if not found:
        raise UserError(f"{images} has no CITY/*{ending}; unpack leftImg8bit_trainvaltest.zip here")
    return [
        Pair(p, masks / p.parent.name / (p.name[: -len(ending)] + "_gtFine_labelIds.png"))
        for p in found
    ]


def _check(
    pairs: Sequence[Pair], values: set[int], skip_bad: bool, split: str
) -> tuple[list[Pair], np.ndarray]:
    """The usable pairs with their sizes, and how many pixels their masks have of each value (256,)."""
    for number, pair in enumerate(pairs):
        for path, what in ((pair.image, "image"), (pair.mask, "mask")):
            if not path.is_file():
                raise UserError(
                    f"{what} {path} does not exist ({split} pair {number + 1} of {len(pairs)}); "
                    "unpack the data set whole, or take the image off the list"
                )
    readable = check_images([pair.image for pair in pairs], skip_bad)
    pairs = [pair for pair, ok in zip(pairs, readable, strict=True) if ok]
    good, total = [], np.zeros(256, np.int64)
    with ThreadPoolExecutor(8) as pool, bar(f"checking {split} masks", len(pairs)) as progress:
        for pair, result in zip(pairs, pool.map(_inspect, pairs, chunksize=16), strict=True):
            progress.advance()
            if isinstance(result, str):
                if skip_bad:
                    continue
                raise UserError(f"{result}; replace it, or leave such files out with --skip-bad")
            size, histogram = result
            if unknown := sorted(set(np.flatnonzero(histogram).tolist()) - values):
                raise UserError(
                    f"mask {pair.mask} holds the value {unknown[0]} in {histogram[unknown[0]]} pixels; "
                    f"the labels are 0 to {max(values - {IGNORE})} and {IGNORE} (ignored)"
                )
            good.append(Pair(pair.image, pair.mask, size))
            total += histogram
    if not good:
        raise UserError(f"not one of the {len(readable)} {split} images can be used")
    return good, total


def _inspect(pair: Pair) -> tuple[tuple[int, int], np.ndarray] | str:
    """Size and value histogram of a mask, or why it cannot be decoded.

    Raises:
        UserError: the mask is whole but wrong: another size than its image's, or colours.
    """
    try:
        with Image.open(pair.image) as image:  # reads the header only
            # EXIF orientations from 5 exchange the sides; a PNG would be decoded to look for one
            turned = image.format == "JPEG" and image.getexif().get(0x0112, 1) >= 5
            size = image.size[::-1] if turned else image.size
        with Image.open(pair.mask) as mask:
            if mask.size != size:
                raise UserError(
                    f"mask {pair.mask} is {mask.width}×{mask.height} but image {pair.image} is "
                    f"{size[0]}×{size[1]}; they must be of one size"
                )
            if mask.mode not in ("P", "L"):
                raise UserError(
                    f"mask {pair.mask} has mode {mask.mode}; a mask is an 8-bit picture of class "
                    "indices (palette or grey), not of colours"
                )
            return size, np.array(mask.histogram(), np.int64)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        return f"mask {pair.mask} cannot be decoded ({error})"
